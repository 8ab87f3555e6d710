# What a broker rejects is tried again, and given up in the end; what it refuses
# is given up at once; that it fails or never answers is no event's fault. The
# events behind are delivered, and no more are on their way than the window
# allows. The broker is the peer of the example module.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use ExamplePeer;

my $node = new_server('main', "cqrs_outbox.max_workers = 8\nlog_statement = none\n");
my $peer = ExamplePeer->new;
my $port = $peer->port;
my $name;

# begin(NAME, ARGUMENTS OF cqrs_subscribe...): the subscription that all is about from
# now on
sub begin
{
	$name = $_[0];
	$peer->begin($node, @_);
}

sub emit { emit_keys($node, 'order_placed', @_); }

# of(N): what the line of such an event looks like
sub of { return 'u0022n.u0022:' . $_[0] . '\}'; }

# numbers(KEY): "n" of the messages, in order; with this key, or all
sub numbers
{
	my ($key) = @_;

	return join ' ', map { $_->{message}{body} =~ /(\d+)/; $1 }
	  grep { !defined $key || $_->{message}{key} eq $key } $peer->messages("postgres/$name");
}

# wait_numbers(EXPECTED, KEY)
sub wait_numbers
{
	my ($expected, $key) = @_;

	wait_until(sub { numbers($key) eq $expected }, "$expected has been received");
	return is(numbers($key), $expected, $_[2]);
}

# status(EXPRESSION): of the subscription
sub status { return query($node, "SELECT $_[0] FROM cqrs_subscription_status WHERE subscription = '$name'"); }

# done(WHAT): everything is delivered, and was nobody's fault
sub done
{
	my ($what) = @_;

	ok(wait_status($node, 'postgres', $name, '0/0/0/0'), "$what: delivered");
}

$node->start;
$peer->create_server($node, 'postgres', 'peer', window => 5);
query($node, q(
	CREATE USER MAPPING FOR postgres SERVER peer OPTIONS (token 'swordfish');
	SELECT cqrs_create_topic('orders');
	SELECT cqrs_register_event('order_placed', 'orders');
));

# ----------------------------------------------------------------------
# The event's fault
# ----------------------------------------------------------------------

# Rejected: tried again, the rest of its key behind it, and others go on.
begin('rejected', 'strict_key_order => true, max_attempts => 10000');
$peer->tell('rule', '-this shelf is being repaired', of(1));
emit(qw(a b a b c));
wait_until(sub { numbers('b') eq '2 4' && numbers('c') eq '5' && numbers('a') =~ /^1 1 1/ }, 'others went on');
is(numbers('b') . ', ' . numbers('c'), '2 4, 5', 'other keys go on behind a rejected event');
like(numbers('a'), qr/^1( 1)+$/, 'its own key waits, and it is tried again');
ok(wait_status($node, 'postgres', $name, '0/1/1/0'), 'the status shows both');
is(status('error, error_sqlstate, kind'), 'this shelf is being repaired|HV000|broker', 'and says why');
$peer->tell('rule_off');
wait_until(sub { numbers('a') =~ /3$/ }, 'its key goes on');
like(numbers('a'), qr/^1( 1)+ 3$/, 'once it is confirmed, its key goes on');
done('after a rejection');

# ... until it is given up.
begin('given_up', 'strict_key_order => true, max_attempts => 3');
$peer->tell('rule', '-no shelf', of(1));
emit(qw(a b a));
ok(wait_status($node, 'postgres', $name, '0/0/0/1'), 'attempts used up: a dead letter');
is(numbers('a'), '1 1 1 3', 'after all attempts, its key goes on');
is(query($node, "SELECT payload, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'given_up'"), '{"n": 1}|3|HV000|no shelf',
	'the dead letter says why');
$peer->tell('rule_off');
query($node, "SELECT cqrs_redrive_all('given_up')");
wait_numbers('1 1 1 3 1', 'a', 'a dead letter can be redriven');
done('after redriving');

# Refused: not tried again.
begin('refused', 'strict_key_order => true');
$peer->tell('rule', '!too large', of(1));
emit(qw(a b a));
ok(wait_status($node, 'postgres', $name, '0/0/0/1'), 'refused: a dead letter');
wait_numbers('1 3', 'a', 'at once, and the others go on');
is(query($node, "SELECT payload, attempts, error FROM cqrs_dead_letters WHERE subscription = 'refused'"), '{"n": 1}|1|too large', 'which says why');

# Without strict_key_order, what was on its way arrives, and later ones wait.
begin('pipelined', 'max_attempts => 10000');
$peer->tell('hold');
$peer->tell('rule', '-busy', of(1), 1);
emit(qw(a a b a));
$peer->wait_held(4);
is(numbers(), '1 2 3 4', 'all are on their way');
$peer->tell('answer', 1);
$peer->tell('release');
wait_numbers('1 2 3 4 1', undef, 'the rejected one is sent again, and those that were confirmed are not');
done('without strict_key_order');

# A reason may be anything.
begin('reasons', 'max_attempts => 1');
$peer->tell('rule', '-' . "\xc3\xa9" x 400, of(1));
$peer->tell('rule', "-\xe9\x01", of(2));
$peer->tell('rule', '-', of(3));
emit(qw(a b c d));
ok(wait_status($node, 'postgres', $name, '0/0/0/3'), 'long, empty and unprintable reasons');
wait_numbers('1 2 3 4 1 2 3', undef, 'and the others go on: then the three, that might have been an outage, once more');
is($node->psql('postgres', "SELECT convert_from(convert_to(error, 'UTF8'), 'UTF8') FROM cqrs_dead_letters WHERE subscription = 'reasons'"), 0,
	'are valid text in the end, wherever they were cut');

# ----------------------------------------------------------------------
# The connection's fault
# ----------------------------------------------------------------------

# Lost, with messages on their way.
begin('lost');
$peer->tell('rule', 'close', of(4), 1);
emit(qw(a b a b a b a b a));
done('a lost connection');
my %seen;
is(join(' ', grep { !$seen{$_}++ } split / /, numbers()), '1 2 3 4 5 6 7 8 9', 'nothing is lost, the order is kept');
cmp_ok(scalar(split / /, numbers()), '<=', 9 + 5, 'and no more than the window comes twice');
is(query($node, "SELECT count(*) FROM cqrs_events('orders', status => 'delivered') WHERE attempts > 0"), '0', 'nothing has counted as an attempt');

# Not answered.
begin('silent', q(delivery_timeout => '200 ms'));
$peer->tell('rule', 'silence', of(2));
emit(qw(a b));
ok(wait_error($node, 'postgres', $name, 'has confirmed nothing for 200 ms'), 'a broker that does not answer');
is(status('error_position IS NULL AND retrying = 0 AND dead = 0'), 't', 'is at fault, not the event');
$peer->tell('rule_off');
done('one that answers again');

# Down.
begin('down');
wait_until(sub { grep { $_->{client} eq 'postgres/down' } @{ $peer->tell('hellos') } }, 'it has connected');
$peer->stop;
emit(qw(a b a));
ok(wait_error($node, 'postgres', $name, "^could not connect to 127.0.0.1:$port: Connection refused\$"), 'a broker that is down');
is(status('error_position IS NULL AND retrying = 0 AND dead = 0'), 't', 'is at fault, not the event');
$peer->start;
wait_numbers('1 2 3', undef, 'one that comes up again');
done('one that comes up again');

# Unwilling.
begin('unwilling');
$peer->tell('refuse', 'who are you?');
$peer->tell('close');
emit(qw(a));
ok(wait_error($node, 'postgres', $name, "^127.0.0.1:$port does not accept us: who are you[?]\$"), 'a broker that refuses to log us in');
$peer->tell('refuse');
done('one that thinks better of it');
unlike(slurp_file($node->logfile), qr/swordfish/, 'no secret is in the log');

# Accepting nothing, for a while.
begin('full');
$peer->tell('hold');
emit(qw(a b));
$peer->wait_held(2);
$peer->tell('say', '~the disk is full');
ok(wait_error($node, 'postgres', $name, "^127.0.0.1:$port accepts nothing: the disk is full\$"), 'a broker that accepts nothing');
$peer->tell('release');
done('one that has room again');

# Talking nonsense.
for my $nonsense ('+4711', '+-1', '', 'x' x 5000, '?0')
{
	begin('nonsense');
	$peer->tell('hold');
	emit(qw(a));
	$peer->wait_held(1);
	$peer->tell('say', $nonsense);
	ok(wait_error($node, 'postgres', $name, "^127.0.0.1:$port has "), 'a broker that says ' . substr($nonsense, 0, 10));
	$peer->tell('release');
	done('one that is sensible again');
}

# ----------------------------------------------------------------------
# On their way
# ----------------------------------------------------------------------

# While one subscription's answers are held back, another one shows that there
# was time to send more.
query($node, "SELECT cqrs_subscribe('other', ARRAY['orders'], server => 'peer', start => 'latest')");

# held(COUNT, EXPECTED, WHAT): what has been sent, with so many unanswered
sub held
{
	my ($count, $expected, $what) = @_;

	$peer->wait_held($count);
	return is(numbers(), $expected, $what);
}

begin('window');
$peer->tell('hold', 'postgres/window');
emit(map { "key $_" } 1 .. 12);
$peer->wait_messages('postgres/other', 12);
held(5, '1 2 3 4 5', 'no more than the window is on its way');
$peer->tell('answer', 3);
held(5, '1 2 3 4 5 6 7 8', 'the next ones, once more than half of it is confirmed');
$peer->tell('answer', 3);
held(5, '1 2 3 4 5 6 7 8 9 10 11', 'and again');
$peer->tell('answer', 3);
held(3, '1 2 3 4 5 6 7 8 9 10 11 12', 'and the rest');
$peer->tell('release');
done('window after window');

begin('strict', 'strict_key_order => true');
$peer->tell('hold', 'postgres/strict');
emit(qw(a a b a c b));
$peer->wait_messages('postgres/other', 6);
held(3, '1 3 5', 'with strict_key_order, one of each key');
$peer->tell('answer', 1);
held(3, '1 3 5 2', 'then the next of the key');
$peer->tell('answer', 2);
held(2, '1 3 5 2 6', 'and of another');
$peer->tell('answer', 1);
held(2, '1 3 5 2 6 4', 'and the last');
$peer->tell('release');
done('one by one');

# Events without a key wait for nothing; by topic, all of a topic do.
for (['keyless', "'key'", 2, '1 2'], ['by_topic', "'topic'", 1, '1'])
{
	my ($subscription, $ordering, $count, $first) = @$_;

	begin($subscription, "strict_key_order => true, ordering => $ordering");
	$peer->tell('hold', "postgres/$subscription");
	query($node, q(SELECT cqrs_emit_many('order_placed', ARRAY['{"n": 1}', '{"n": 2}']::jsonb[])));
	$peer->wait_messages('postgres/other', 2);
	held($count, $first, "without keys, ordering by $ordering: what is on its way");
	$peer->tell('release');
	wait_numbers('1 2', undef, "without keys, ordering by $ordering: all");
	done("without keys, ordering by $ordering");
}

$peer->stop;
$node->stop;
done_testing();
