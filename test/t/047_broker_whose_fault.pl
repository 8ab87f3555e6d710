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
my $name;

# begin(NAME, ARGUMENTS OF cqrs_subscribe...): the subscription that all is about from
# now on
sub begin
{
	$name = $_[0];
	$peer->begin($node, @_, 'max_attempts => 3');
}

sub emit { emit_keys($node, 'order_placed', @_); }

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

# is_outage(MESSAGE, TEST NAME): the broker's fault, and not once; nobody's attempt
sub is_outage
{
	my ($message, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health('1 h', '1 h')
		WHERE severity = 'error' AND problem = 'failing' AND object LIKE '%$name%' AND detail LIKE '%: $message'"),
		"$what: cqrs_health() says so, with the broker's message")
	  or diag(query($node, "SELECT h FROM cqrs_health('1 h', '1 h') h"));
	ok($node->poll_query_until('postgres', 'SELECT max(failures) > 3 FROM cqrs.failure'), "$what: it is tried again and again");
	is(query($node, 'SELECT coalesce(max(attempts), 0), (SELECT count(*) FROM cqrs.dead_letter) FROM cqrs.retry'), '0|0', "$what: nothing of it is an attempt");
}

# dead(): KEY/ATTEMPTS of each dead letter; none are left
sub dead { return take_dead($node, $name, 'key, attempts'); }

$node->start;
$peer->create_server($node, 'postgres', 'peer', window => $window);
query($node, q(
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

		begin("all_$strict" . "_$keys", "strict_key_order => $strict");
		$peer->tell('rule', '-no queue', '.');
		emit(@keys);
		is_outage('no queue', $what);

		# What is on its way at first, then three to tell by, and no more.
		my $failures = query($node, 'SELECT max(failures) FROM cqrs.failure');
		cmp_ok($peer->tell('count', "postgres/$name"), '<=', $window + 3 * ($failures + 1), "$what: little is sent meanwhile");
		$node->restart if $strict eq 'true' && $keys == 60;
		is(query($node, 'SELECT count(*) FROM cqrs.failure'), 1, "$what: a restart does not forget it");

		# The peer forgets what it had rejected.
		$peer->tell('reset');
		ok(wait_status($node, 'postgres', $name, '0/0/0/0'), "$what: once it takes one, all is delivered");
		push @{ $expected{ $keys[ $_ - 1 ] } }, $_ for 1 .. @keys;
		is_deeply(received(), \%expected, "$what: each once, in order by key");
		is(query($node, 'SELECT count(*) FROM cqrs.failure'), 0, "$what: nothing is wrong any more");
	}
}

# One key only: there is no other to tell by, until there is.
begin('lone');
$peer->tell('rule', '-no such shelf', key('a'));
emit('a');
is_outage('no such shelf', 'a single key');
emit('b');
ok(wait_status($node, 'postgres', $name, '0/0/0/1'), 'another one passes: it is at fault');
is(scalar @{ received()->{b} }, 1, '... which was not kept waiting');
is(dead(), 'a/3', '... after its attempts');
is(query($node, 'SELECT count(*) FROM cqrs.failure'), 0, '... and nothing is wrong any more');

# What passed before tells nothing.
begin('last');
$peer->tell('rule', '-no such shelf', key('b'));
emit('a', 'b');
is_outage('no such shelf', 'the last one');
$peer->tell('rule_off');
ok(wait_status($node, 'postgres', $name, '0/0/0/0'), 'the last one: delivered in the end');

# Some are at fault, more than it takes for an outage, and before all others.
begin('some');
$peer->tell('rule', '-what is this', key('bad.*'));
emit((map { "bad$_" } 1 .. 7), 'good', 'good');
ok(wait_status($node, 'postgres', $name, '0/0/0/7'), 'several that are at fault are given up');
is_deeply(received()->{good}, [ 8, 9 ], '... and do not keep others from being delivered');
is(dead(), join(' ', map { "bad$_/3" } 1 .. 7), '... after their attempts');

# They are at fault also if the others come later; new ones are tried first.
begin('later');
$peer->tell('rule', '-what is this', key('bad.*'));
emit(map { "bad$_" } 1 .. 7);
is_outage('what is this', 'all that there are');
emit('good');
ok(wait_status($node, 'postgres', $name, '0/0/0/7'), 'all that there were: given up once another passes');
is(scalar @{ received()->{good} }, 1, '... which is not kept waiting for ever');
dead();

# Of those that wait, each has its turn, though none is new.
begin('turns');
$peer->tell('rule', '-no queue', '.');
emit((map { "bad$_" } 1 .. 7), 'good');
is_outage('no queue', 'all again');
$peer->tell('rule_off');
$peer->tell('rule', '-what is this', key('bad.*'));
ok(wait_status($node, 'postgres', $name, '0/0/0/7'), 'all again: the last one passes in the end, and tells');
is(dead(), join(' ', map { "bad$_/3" } 1 .. 7), '... of the others');

# Refused is refused, whatever becomes of others.
begin('refused');
$peer->tell('rule', '!too large', '.');
emit('a', 'b', 'c', 'd');
ok(wait_status($node, 'postgres', $name, '0/0/0/4'), 'what is refused is given up at once');
is(dead(), 'a/1 b/1 c/1 d/1', '... and nothing else');

$node->stop('fast');
$peer->stop;
done_testing();
