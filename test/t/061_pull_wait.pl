# A receive finds what was committed before it, at once; or it waits for what
# comes, holding nothing that others would have to wait for.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('wait');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things'), cqrs_register_event('other', 'others');
	SELECT cqrs_subscribe('pull', ARRAY['things']), cqrs_subscribe('spread', ARRAY['things'], partitions => 4);
));
ok(wait_managers($node, 'postgres'), 'there is a manager');

my $session = new_session($node, 'postgres');
my $other = new_session($node, 'postgres');
my $found = 0;

# Right after the commit: by the one who emitted, and by another.
for my $n (1 .. 50)
{
	$session->query("SELECT cqrs_emit('happened', '{\"n\": $n}', key => '$n')");
	my $by = $n % 2 ? $session : $other;
	my $answer = $by->query(qq(BEGIN; SELECT 'got', payload->>'n' FROM cqrs_receive('pull'); SELECT cqrs_ack('pull'); COMMIT));

	$found++ if $answer =~ /^got\|$n$/m;
}
is($found, 50, 'what was committed is received');
# A tick may come while a client looks through the partitions. Ticks come at any
# time, so some of these events are committed right before one.
$node->safe_psql('postgres', q(
	CREATE PROCEDURE emit_and_receive(INOUT missed int) LANGUAGE plpgsql AS $$
	DECLARE
		positions bigint[];
		receipts uuid[];
	BEGIN
		missed := 0;
		FOR i IN 1 .. 500 LOOP
			PERFORM cqrs_emit('happened', '{}', key => i::text);
			COMMIT;
			LOOP
				SELECT array_agg(position), array_agg(receipt) INTO positions, receipts FROM cqrs_receive('spread', lease => '1 min');
				COMMIT;
				EXIT WHEN positions IS NOT NULL;
				missed := missed + 1;
			END LOOP;
			PERFORM cqrs_ack('spread', positions, receipts[1]);
			COMMIT;
			PERFORM pg_sleep(random() * 0.008);
		END LOOP;
	END $$));
$node->safe_psql('postgres', "SELECT cqrs_seek('spread', 'latest')");
is($node->safe_psql('postgres', 'CALL emit_and_receive(NULL)'), '0', 'in whichever of several partitions it is');
$node->safe_psql('postgres', "SELECT cqrs_seek('pull', 'latest')");
$node->safe_psql('postgres', "BEGIN; SELECT cqrs_emit('happened', '{\"n\": 51}'); PREPARE TRANSACTION 'p'");
$node->safe_psql('postgres', "COMMIT PREPARED 'p'");
like($session->query("BEGIN; SELECT payload->>'n' FROM cqrs_receive('pull'); SELECT cqrs_ack('pull'); COMMIT"), qr/^51$/m, 'what was prepared, too, which nobody announces');

# While it waits.
sub waits
{
	my ($pid) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type IN ('Extension', 'IPC') AND state = 'active'");
}
my $pid = $session->query('SELECT pg_backend_pid()');
$session->begin("SELECT 'got', payload->>'n' FROM cqrs_receive('pull', wait => '1 min')");
ok(waits($pid), 'a client waits');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $pid AND (locktype = 'object' OR locktype = 'transactionid' OR relation::regclass::text LIKE 'cqrs.topic_%')"),
	'0', 'without the lock of a cursor, without a transaction id, without the tables of a topic');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND backend_xid IS NOT NULL"), '0', 'indeed');
$node->safe_psql('postgres', "SELECT cqrs_emit('other', '{}')");
emit_numbers($node, 'postgres', 52);
like($session->finish, qr/NOTICE:  received events were not acknowledged in the same transaction.*^got\|52$/ms, 'until something comes; and is told, once a session, that it is not its own');

# Two clients of four partitions, one event after the other.
my @waiting = ($session, $other);
$node->safe_psql('postgres', "SELECT cqrs_seek('spread', 'latest'); SELECT cqrs_seek('pull', 'latest')");
$_->begin("BEGIN; SELECT 'got', payload->>'n' FROM cqrs_receive('spread', wait => '1 min'); SELECT cqrs_ack('spread'); COMMIT") for @waiting;
ok(waits($_), 'both wait') for $pid;
$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": 60}', key => 'a')");
$node->poll_query_until('postgres', "SELECT lag_events = 0 FROM cqrs_subscription_status WHERE subscription = 'spread'");
$node->safe_psql('postgres', "SELECT cqrs_emit('happened', '{\"n\": 61}', key => 'b')");
is(join(' ', sort map { $_->finish =~ /^got\|(\d+)$/m } @waiting), '60 61', 'each gets one');

# A lease that runs out wakes, and so does the time of a retry.
$node->safe_psql('postgres', "SELECT cqrs_seek('pull', 'latest'); SELECT cqrs_emit('happened', '{\"n\": 70}')");
is($other->query("SELECT payload->>'n' FROM cqrs_receive('pull', lease => '500 ms')"), '70', 'under a lease');
like($session->query("SELECT 'got', payload->>'n', cqrs_nack('pull', ARRAY[position], 'no', '300 ms') FROM cqrs_receive('pull', wait => '1 min')"),
	qr/^got\|70\|1$/, 'what was left is received when the lease is over');
like($session->query("SELECT 'got', payload->>'n', cqrs_ack('pull', ARRAY[position]) FROM cqrs_receive('pull', wait => '1 min')"),
	qr/^got\|70\|1$/, 'what was refused, when it is due');

# In vain; and what goes away meanwhile.
is($session->query("SELECT count(*) FROM cqrs_receive('pull', wait => '50 ms')"), '0', 'nothing comes');
is($session->query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM cqrs_receive('pull', wait => '50 ms'); COMMIT"), '0', 'nor in a transaction that keeps its snapshot');
$session->begin("SELECT count(*) FROM cqrs_receive('pull', wait => '1 min')");
ok(waits($pid), 'a client waits');
$node->safe_psql('postgres', "SELECT cqrs_pause('pull')");
like($session->finish, qr/subscription "pull" is paused/, 'until the subscription is paused');
$node->safe_psql('postgres', "SELECT cqrs_resume('pull')");
$session->begin("SELECT count(*) FROM cqrs_receive('pull', wait => '1 min')");
ok(waits($pid), 'a client waits');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
like($session->finish, qr/canceling statement/, 'and can be cancelled');
is($session->query("DO \$\$ BEGIN PERFORM cqrs_receive('pull', wait => '1 ms'); PERFORM cqrs_receive('gone', wait => '1 s'); EXCEPTION WHEN undefined_object THEN END \$\$; SELECT 1"),
	'1', 'an error within leaves the transaction usable');

$_->quit for $session, $other;
$node->stop;
done_testing();
