# Exactly once to Kafka, and a failover has lost the last two transactions, the first of
# which was about a parked event: it is not sent again. A worker that has read what Kafka
# has committed last does not rely on it if the cursor was moved meanwhile. Nobody does if
# the record is gone; what is old is written anew, so that it is not. And a transaction
# does not take events for ever.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;
use RealKafka;

# Time is made to pass, and Kafka is not to mind.
my @any_time = ('message.timestamp.after.max.ms' => '9223372036854775807');
my $kafka = RealKafka->new(1);
$kafka->create_topic('things', 1, @any_time);

my $first = new_server('server0', "log_statement = none\ncqrs_outbox.poll_interval = '200ms'\n"
	  . "cqrs_outbox.debug_points = 'broker_committed=wait, broker_before_claim=wait, relay_before_cursor=wait'\n", allows_streaming => 1);
$first->start;
$first->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$kafka->create_server($first, 'postgres', 'events', window => 100);
$first->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	delivery => 'exactly_once', retry_delay => '1 h', max_retry_delay => '1 h')");

# emit(NODE, NAME, KEY): an event, without a key if none is given.
sub emit
{
	my ($node, $name, $key) = @_;

	$key = defined $key ? ", '$key'" : '';
	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"name\": \"$name\"}'$key)");
	return;
}

# arrived(): the names of the events that are committed in Kafka.
sub arrived
{
	return join ' ', map { $_->{value} =~ /"name": ?"(.*)"/ } $kafka->committed_records('things');
}

# delivered(NODE): wait until all is.
sub delivered
{
	my ($node) = @_;

	return $node->poll_query_until('postgres', 'SELECT lag_events = 0 AND retrying + waiting = 0 FROM cqrs_subscription_status');
}

# free(HOLDER): who waits at a point goes on, as do all that come there.
sub free
{
	my ($holder) = @_;

	$holder->query('SELECT pg_advisory_unlock_all()');
	return;
}

# step(HOLDER, POINT): who waits there goes on, and the next one that comes there waits.
sub step
{
	my ($holder, $point) = @_;

	free($holder);
	$holder->query("SELECT pg_advisory_lock(hashtext('cqrs_outbox'), hashtext('$point'))");
	return;
}

# cursor(NODE, COLUMN): of its newest row.
sub cursor
{
	my ($node, $column) = @_;

	return $node->safe_psql('postgres', "SELECT $column FROM cqrs.cursor ORDER BY seq DESC LIMIT 1");
}

# A compacted topic takes no event without a key, if there are others: it is parked.
emit($first, 'a', 'key');
ok(delivered($first), 'delivered by the first primary');
$kafka->set_config('things', 'cleanup.policy' => 'compact');
$first->safe_psql('postgres', q(
	BEGIN;
	SELECT cqrs_emit('happened', '{"name": "b"}', 'key');
	SELECT cqrs_emit('happened', '{"name": "parked"}');
	COMMIT));
ok($first->poll_query_until('postgres', 'SELECT lag_events = 0 AND retrying = 1 FROM cqrs_subscription_status'), 'one event is parked')
  or diag($first->safe_psql('postgres', 'SELECT * FROM cqrs_subscription_status; SELECT * FROM cqrs_health()'));
$kafka->set_config('things', 'cleanup.policy' => undef);
is(arrived(), 'a b', '... and not sent');

# The standby knows that it is about to be sent, and not that it was.
my $second = new_standby($first, 'server1');
my $holder = hold_point($first, 'broker_committed');
$first->safe_psql('postgres', "SELECT cqrs_retry_all('things')");
at_point($first, 'broker_committed');
is(arrived(), 'a b parked', 'it is sent');
emit($first, 'c', 'key');
$first->safe_psql('postgres', 'SELECT cqrs_tick()');
$first->wait_for_catchup($second);
$second->stop('fast');
free($holder);
ok(delivered($first), '... and the next one, which the standby does not know either');
is(arrived(), 'a b parked c', '... which is sent');

$holder->kill;
$first->stop('immediate');
$second->start;
$second->promote;
$second->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die;
ok(delivered($second), 'the standby finds out about both')
  or diag($second->safe_psql('postgres', 'SELECT * FROM cqrs_health()'));
emit($second, 'd', 'key');
ok(delivered($second), '... and goes on');
is(arrived(), 'a b parked c d', '... and sends nothing twice');

# worker(): its pid.
sub worker
{
	return $second->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
}

# end_worker(): and wait until it is gone.
sub end_worker
{
	my $pid = worker();

	$second->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	$second->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
	return;
}

# The cursor is moved while a worker knows what the record says, and has not claimed it.
end_worker();
$holder = hold_point($second, 'broker_before_claim');
emit($second, 'e', 'key');
my $pid = at_point($second, 'broker_before_claim');
$second->safe_psql('postgres', "SELECT cqrs_seek('things', 'latest')");
emit($second, 'f', 'key');
step($holder, 'broker_before_claim');
is(at_point($second, 'broker_before_claim'), $pid, 'who finds the cursor moved reads the record anew');
is(arrived(), 'a b parked c d', '... and has sent nothing before');
free($holder);
ok(delivered($second), '... and goes on then');
is(arrived(), 'a b parked c d f', '... where it was moved to');

# A record that is old is written anew, with no events.
$second->safe_psql('postgres', "CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock'");
my $sent = cursor($second, 'sent');
$second->safe_psql('postgres', 'SELECT set_clock(0, 23 * 3600000::bigint)');
emit($second, 'g', 'key');
ok(delivered($second), 'after most of a day, one more is delivered');
isnt(cursor($second, 'sent'), $sent, '... with a record of its own');
$sent = cursor($second, 'sent');
$second->safe_psql('postgres', 'SELECT set_clock(0, 25 * 3600000::bigint)');
ok($second->poll_query_until('postgres', "SELECT intent IS NULL AND sent <> '$sent' FROM cqrs.cursor ORDER BY seq DESC LIMIT 1"),
	'a day later, the record is written anew');
is(arrived(), 'a b parked c d f g', '... with no event');
$sent = cursor($second, 'sent');
end_worker();
emit($second, 'h', 'key');
ok(delivered($second), '... and it is the one that is there');
is(arrived(), 'a b parked c d f g h', '... as nothing stops');

# The time that a transaction takes events for is over while it has some of them.
$holder = hold_point($second, 'relay_before_cursor');
my $committed = hold_point($second, 'broker_committed');
$second->safe_psql('postgres', "SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('name', n) ORDER BY n), array_agg('key' || n % 7 ORDER BY n)) FROM generate_series(1, 5000) n");
at_point($second, 'relay_before_cursor');
for (1 .. 2)
{
	step($holder, 'relay_before_cursor');
	at_point($second, 'relay_before_cursor');
}
$second->safe_psql('postgres', 'SELECT set_clock(0, 21000)');
free($holder);
at_point($second, 'broker_committed');
my $part = () = $kafka->committed_records('things');
ok($part > 8 && $part < 5008, 'a transaction that has taken events for 20 s is committed without the rest of the window')
  or diag($part);
free($committed);
ok(delivered($second), '... which comes in the next');
is(scalar(my @all = $kafka->committed_records('things')), 5008, '... once');

# The record is forgotten while Kafka's last commit is in doubt.
$holder = hold_point($second, 'broker_committed');
emit($second, 'i', 'key');
at_point($second, 'broker_committed');
end_worker();
$kafka->delete_topic('things');
$kafka->create_topic('things', 1, @any_time);
free($holder);
my $diverged = "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'diverged'";
ok($second->poll_query_until('postgres', $diverged), 'the record is forgotten, and something is in doubt: it stops');
ok($second->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'diverged' AND detail LIKE '%its record is gone.'"), '... and says why');
emit($second, 'j', 'key');
$second->safe_psql('postgres', "SELECT cqrs_resume('things', sent => 'trust')");
ok(delivered($second), 'a person says that it was sent: it goes on');
is(arrived(), 'j', '... and does not send it again');

# ... and while nothing is: another server may have sent more.
end_worker();
$kafka->delete_topic('things');
$kafka->create_topic('things', 1, @any_time);
emit($second, 'k', 'key');
ok($second->poll_query_until('postgres', $diverged), 'the record is forgotten, and nothing is in doubt: it stops, too');
is(arrived(), '', '... and sends nothing');
$second->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', on_divergence => 'resend')");
ok(delivered($second), '... until its on_divergence says that it is to');
is(arrived(), 'k', '... go on');
like($second->safe_psql('postgres', "SELECT severity, detail FROM cqrs_health() WHERE problem = 'resent'"), qr/^warning\|Partition 0 has sent again, since /, '... which health says');

$second->stop('fast');
done_testing();
