# A commit wakes the manager at once, though it would not poll for an hour; many
# commits share a tick; and what concerns no events wakes nobody.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

$node->start;
set_up_recording($node, 'postgres');

# Ticks are made for who pulls.
$node->safe_psql('postgres', "SELECT cqrs_subscribe('puller', ARRAY['things'])");

sub ticks
{
	return $node->safe_psql('postgres', 'SELECT max(tick_id) FROM cqrs.tick');
}

# One after the other: each must be woken for by itself.
my $session = new_session($node, 'postgres');

$session->query(q(
	CREATE PROCEDURE emit_and_wait(n int) LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM cqrs_emit('happened', jsonb_build_object('n', n));
		COMMIT;
		WHILE NOT EXISTS (SELECT FROM recorded WHERE payload->>'n' = n::text) LOOP
			PERFORM pg_sleep(0.001);
			COMMIT;
		END LOOP;
	END $$));
is($session->query("SET statement_timeout = '60s'; CALL emit_and_wait($_)"), '', "round $_") for 1 .. 200;
is(recorded($node, 'postgres'), join(' ', 1 .. 200), '200 events were waited for, one after the other');

# A handler that emits, itself: the worker's commits wake as well.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('followed', 'followers');
	CREATE FUNCTION follow(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
		SELECT cqrs_emit('followed', event.payload)
	$$;
	SELECT cqrs_subscribe('follower', ARRAY['things'], 'follow(cqrs_event)', start => 'latest');
	SELECT cqrs_subscribe('followers', ARRAY['followers'], 'record_event(cqrs_event)');
	TRUNCATE recorded));
emit_numbers($node, 'postgres', 1);
ok(wait_recorded($node, 'postgres', 2), 'what a handler emits is delivered, too');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('follower')");

# What is there when it is subscribed to.
$node->safe_psql('postgres', q(
	TRUNCATE recorded;
	SELECT cqrs_subscribe('late', ARRAY['followers'], 'record_event(cqrs_event)')));
ok(wait_recorded($node, 'postgres', 1), 'a new subscription is delivered without anybody emitting');

# Nothing to tick for. The last one is ticked, and is the last of all.
emit_numbers($node, 'postgres', 3);
ok(wait_recorded($node, 'postgres', 2), 'before');
$node->safe_psql('postgres', q(
	CREATE FUNCTION happen(c jsonb) RETURNS uuid LANGUAGE sql AS $$SELECT cqrs_emit('happened', c)$$;
	SELECT cqrs_register_command('Happen', 'happen(jsonb)')));
my $before = ticks();
for (1 .. 5)
{
	$node->safe_psql('postgres', "SELECT cqrs_dry_run('Happen')");
	$node->safe_psql('postgres', 'CREATE TABLE t (); DROP TABLE t');
	$node->safe_psql('postgres', "BEGIN; SELECT cqrs_emit('happened', '{}'); ROLLBACK");
}
is(ticks(), $before, 'what concerns no events, was rolled back or run dry, makes no tick');

# Many commits, few ticks: no more than there is time for.
reconfigure($node, "cqrs_outbox.tick_interval = '1s'");
$node->safe_psql('postgres', "TRUNCATE recorded; SELECT cqrs_emit('happened', '{\"n\": 0}')");
ok(wait_recorded($node, 'postgres', 1), 'the manager has the new setting');
$before = ticks();
my ($manager) = processes($node, 'manager', 'postgres');

# wakeups(): how often the manager waited until now, by the kernel's count.
sub wakeups
{
	slurp_file("/proc/$manager/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m or die;
	return $1;
}

my $wakeups = wakeups();
my $start = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->pgbench('-n -c 4 -t 250', 0, [qr/processed: 1000/], [qr/^$/], 'many commits',
	{ 'emit' => q(SELECT cqrs_emit('happened', '{"n": 1}')) });
$wakeups = wakeups() - $wakeups;
my $took = $node->safe_psql('postgres', "SELECT extract(epoch FROM clock_timestamp() - '$start')");
ok(wait_recorded($node, 'postgres', 1001), 'all are delivered');
my ($ticks, $seconds) = split /\|/, $node->safe_psql('postgres',
	"SELECT count(*) FILTER (WHERE tick_id > $before), extract(epoch FROM max(ticked_at) - min(ticked_at)) FROM cqrs.tick WHERE tick_id >= $before");
cmp_ok($ticks, '<=', $seconds + 1, "in no more ticks than there is time for: $ticks in $seconds s");
cmp_ok($ticks, '>=', 1, 'and in one at least');

# Each tick waits for the disk, too; and the first commit may wake it at once.
cmp_ok($wakeups, '<', 100, "the manager was not woken by each of the commits: $wakeups times in $took s");
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT event_id) FROM recorded'), '1001|1001', 'each once');
$session->quit;
$node->stop;

done_testing();
