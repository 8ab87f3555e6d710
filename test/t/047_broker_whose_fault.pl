# A rejection may be the event's fault, or the broker's: what it does with others
# tells. If it rejects all, no event is at fault. The broker is the peer of the
# example module.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $window = 20;
my $node = new_server('main', "log_statement = none\n");
my $peer = ExamplePeer->new;
my $port = $peer->port;
my $name = 'none';

# query(SQL): its output
sub query { return $node->safe_psql('postgres', $_[0]); }

# begin(NAME, ARGUMENTS OF cqrs_subscribe): a peer without faults, and a
# subscription for what is emitted from now on, in place of the last one
sub begin
{
	my ($new, $arguments) = @_;

	query("SELECT cqrs_unsubscribe('$name')") if $name ne 'none';
	$peer->tell('reset');
	$name = $new;
	query(qq(SELECT cqrs_subscribe('$name', ARRAY['orders'], server => 'peer', start => 'latest',
		max_attempts => 3, retry_delay => '10 ms', max_retry_delay => '20 ms' $arguments)));
}

# emit(KEYS ...): one transaction, one event for each; "n" of the payloads
# counts from 1.
sub emit
{
	my $events = join ', ', map { qq('{"n": $_}') } 1 .. @_;
	my $keys = join ', ', map { "'$_'" } @_;

	query("SELECT cqrs_emit_many('order_placed', ARRAY[$events]::jsonb[], ARRAY[$keys])");
}

# key(PATTERN): what the line of an event with such a key looks like
sub key { return '"key":"' . $_[0] . '"'; }

# received(): { KEY => [NUMBER, ...] } of what the peer received
sub received
{
	my %of_key;

	for my $message ($peer->messages("postgres/$name"))
	{
		my ($n) = $message->{message}{body} =~ /(\d+)/;

		push @{ $of_key{ $message->{message}{key} } }, $n;
	}
	return \%of_key;
}

# wait_status(CONDITION, TEST NAME)
sub wait_status
{
	my ($condition, $what) = @_;

	ok($node->poll_query_until('postgres',
			"SELECT $condition FROM cqrs_subscription_status WHERE subscription = '$name'"), $what)
	  or diag(query("SELECT s FROM cqrs_subscription_status s WHERE subscription = '$name'"));
}

# is_outage(MESSAGE, TEST NAME): the broker's fault, and not once; nobody's attempt
sub is_outage
{
	my ($message, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health('1 h', '1 h')
		WHERE severity = 'error' AND problem = 'failing' AND object LIKE '%$name%' AND detail LIKE '%: $message'"),
		"$what: cqrs_health() says so, with the broker's message")
	  or diag(query("SELECT h FROM cqrs_health('1 h', '1 h') h"));
	ok($node->poll_query_until('postgres', 'SELECT max(failures) > 3 FROM cqrs.failure'), "$what: it is tried again and again");
	is(query('SELECT coalesce(max(attempts), 0), (SELECT count(*) FROM cqrs.dead_letter) FROM cqrs.retry'), '0|0', "$what: nothing of it is an attempt");
}

# dead(): KEY/ATTEMPTS of each dead letter; none are left
sub dead
{
	my $dead = query("SELECT string_agg(key || '/' || attempts, ' ' ORDER BY key) FROM cqrs_dead_letters('$name')");

	query("SELECT cqrs_discard('$name')");
	return $dead;
}

$node->start;
query(qq(
	CREATE EXTENSION cqrs_outbox;
	CREATE EXTENSION cqrs_outbox_example;
	CREATE SERVER peer FOREIGN DATA WRAPPER cqrs_example OPTIONS (host '127.0.0.1', port '$port', window '$window');
	CREATE USER MAPPING FOR postgres SERVER peer OPTIONS (token 'swordfish');
	SELECT cqrs_create_topic('orders');
	SELECT cqrs_register_event('order_placed', 'orders');
));

# All is rejected: more than the window, of few keys and of many.
for my $strict (qw(false true))
{
	for my $keys (4, 60)
	{
		my $what = "strict_key_order $strict, $keys keys";
		my @keys = map { "k" . $_ % $keys } 0 .. 119;
		my %expected;

		begin("all_$strict" . "_$keys", ", strict_key_order => $strict");
		$peer->tell('rule', '-no queue', '.');
		emit(@keys);
		is_outage('no queue', $what);

		# What is on its way at first, then three to tell by, and no more.
		my $failures = query('SELECT max(failures) FROM cqrs.failure');
		cmp_ok($peer->tell('count', "postgres/$name"), '<=', $window + 3 * ($failures + 1), "$what: little is sent meanwhile");
		$node->restart if $strict eq 'true' && $keys == 60;
		is(query('SELECT count(*) FROM cqrs.failure'), 1, "$what: a restart does not forget it");

		# The peer forgets what it had rejected.
		$peer->tell('reset');
		wait_status('lag_events = 0 AND waiting = 0 AND retrying = 0 AND dead = 0', "$what: once it takes one, all is delivered");
		push @{ $expected{ $keys[ $_ - 1 ] } }, $_ for 1 .. @keys;
		is_deeply(received(), \%expected, "$what: each once, in order by key");
		is(query('SELECT count(*) FROM cqrs.failure'), 0, "$what: nothing is wrong any more");
	}
}

# One key only: there is no other to tell by, until there is.
begin('lone', '');
$peer->tell('rule', '-no such shelf', key('a'));
emit('a');
is_outage('no such shelf', 'a single key');
emit('b');
wait_status('dead = 1 AND lag_events = 0 AND waiting = 0 AND retrying = 0', 'another one passes: it is at fault');
is(scalar @{ received()->{b} }, 1, '... which was not kept waiting');
is(dead(), 'a/3', '... after its attempts');
is(query('SELECT count(*) FROM cqrs.failure'), 0, '... and nothing is wrong any more');

# What passed before tells nothing.
begin('last', '');
$peer->tell('rule', '-no such shelf', key('b'));
emit('a', 'b');
is_outage('no such shelf', 'the last one');
$peer->tell('rule_off');
wait_status('lag_events = 0 AND waiting = 0 AND retrying = 0 AND dead = 0', 'the last one: delivered in the end');

# Some are at fault, more than it takes for an outage, and before all others.
begin('some', '');
$peer->tell('rule', '-what is this', key('bad.*'));
emit((map { "bad$_" } 1 .. 7), 'good', 'good');
wait_status('dead = 7 AND lag_events = 0 AND waiting = 0 AND retrying = 0', 'several that are at fault are given up');
is_deeply(received()->{good}, [ 8, 9 ], '... and do not keep others from being delivered');
is(dead(), join(' ', map { "bad$_/3" } 1 .. 7), '... after their attempts');

# They are at fault also if the others come later; new ones are tried first.
begin('later', '');
$peer->tell('rule', '-what is this', key('bad.*'));
emit(map { "bad$_" } 1 .. 7);
is_outage('what is this', 'all that there are');
emit('good');
wait_status('dead = 7 AND lag_events = 0 AND waiting = 0 AND retrying = 0', 'all that there were: given up once another passes');
is(scalar @{ received()->{good} }, 1, '... which is not kept waiting for ever');
dead();

# Of those that wait, each has its turn, though none is new.
begin('turns', '');
$peer->tell('rule', '-no queue', '.');
emit((map { "bad$_" } 1 .. 7), 'good');
is_outage('no queue', 'all again');
$peer->tell('rule_off');
$peer->tell('rule', '-what is this', key('bad.*'));
wait_status('dead = 7 AND lag_events = 0 AND waiting = 0 AND retrying = 0', 'all again: the last one passes in the end, and tells');
is(dead(), join(' ', map { "bad$_/3" } 1 .. 7), '... of the others');

# Refused is refused, whatever becomes of others.
begin('refused', '');
$peer->tell('rule', '!too large', '.');
emit('a', 'b', 'c', 'd');
wait_status('dead = 4 AND lag_events = 0 AND waiting = 0', 'what is refused is given up at once');
is(dead(), 'a/1 b/1 c/1 d/1', '... and nothing else');

$node->stop('fast');
$peer->stop;
done_testing();
