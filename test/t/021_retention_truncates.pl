# The log empties itself under load, and no event is lost or delivered twice: the
# segments are truncated many times meanwhile. What holds a segment is shown,
# and holds up nobody else. A subscription that keeps too much is suspended, and
# what it missed is counted exactly.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', q(
client_min_messages = warning
cqrs_outbox.segment_size = '64kB'
cqrs_outbox.segment_age = '1s'
log_min_messages = debug1
));

$node->start;
set_up_recording($node, 'postgres');
$node->safe_psql('postgres', q(
	SELECT cqrs_alter_topic('things', '0');
	CREATE TABLE stop ();
	-- Emits events one by one, and a few that are rolled back, until told to
	-- stop; not faster than the worker delivers.
	CREATE PROCEDURE emit_until_stop(first int) LANGUAGE plpgsql AS $$
	DECLARE
		n int := first;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop) LOOP
			PERFORM cqrs_emit('happened', jsonb_build_object('n', n, 'filler', repeat('x', 200)));
			IF n % 50 = 49 THEN
				ROLLBACK;
			ELSE
				COMMIT;
			END IF;
			n := n + 1;
			PERFORM pg_sleep(0.001);
		END LOOP;
		RAISE WARNING 'next %', n;
	END $$;
	-- What the topics take on disk.
	CREATE VIEW kept AS
	SELECT topic, sum(pg_relation_size(format('cqrs.topic_%s_%s', topic_id, i))) AS bytes
	FROM cqrs.topic, generate_series(0, 2) i GROUP BY topic));

sub truncations
{
	my ($topic) = @_;
	my $log = slurp_file($node->logfile);

	return scalar(() = $log =~ /truncated segment \d of topic "$topic"/g);
}

# wait_truncations(TOPIC, COUNT): until so many more happened.
sub wait_truncations
{
	my ($topic, $count) = @_;
	my $until = truncations($topic) + $count;

	return wait_until(sub { truncations($topic) >= $until });
}

sub wait_empty
{
	my ($topic) = @_;

	return $node->poll_query_until('postgres', "SELECT bytes = 0 FROM kept WHERE topic = '$topic'");
}

# Under load.
my @emitters = map { new_session($node, 'postgres') } 1 .. 3;

$emitters[$_]->begin('CALL emit_until_stop(' . 1000000 * ($_ + 1) . ')') for 0 .. 2;
ok(wait_truncations('things', 6), 'segments are truncated while events are emitted');

# A transaction that emitted and stays open.
my $late = new_session($node, 'postgres');

$late->query(q(BEGIN; SELECT cqrs_emit('happened', '{"n": 1}')));
ok($node->poll_query_until('postgres',
	"SELECT held_by = 'lock' AND held_by_pid IS NOT NULL FROM cqrs_topic_status WHERE topic = 'things'"),
	'what it emitted to is held by its lock');
$late->query('COMMIT');
ok(wait_truncations('things', 3), 'and is truncated when it has ended');

$node->safe_psql('postgres', 'INSERT INTO stop DEFAULT VALUES');
my $total = 1;
for my $i (0 .. 2)
{
	my ($next) = $emitters[$i]->finish =~ /next (\d+)/;
	my $emitted = grep { $_ % 50 != 49 } 1000000 * ($i + 1) .. $next - 1;

	$total += $emitted;
}
ok(wait_recorded($node, 'postgres', $total), "$total events are delivered");
ok(wait_empty('things'), 'the topic empties itself');
is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT payload->>'n') FROM recorded"), "$total|$total",
	'each once');

# A subscription that keeps too much, after a part of it was delivered.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('filled', 'bulk');
	SELECT cqrs_alter_topic('bulk', '0');
	SELECT cqrs_subscribe('idle', ARRAY['bulk'], partitions => 3, max_retained_size => 100000);
	SELECT cqrs_subscribe('busy', ARRAY['bulk'], 'record_event(cqrs_event)');
	TRUNCATE recorded;
	SELECT cqrs_emit('filled', '{}', i::text) FROM generate_series(1, 10) i));
ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cqrs_receive('idle', partition => 0)"), 'the first few are received');
my $received = $node->safe_psql('postgres', q(
	BEGIN;
	SELECT count(*) FROM cqrs_receive('idle', partition => 0);
	SELECT cqrs_ack('idle') > 0;
	COMMIT));
$received =~ s/\D.*//s;
$node->safe_psql('postgres', q(
	SELECT cqrs_pause('idle');
	DO $$
	BEGIN
		FOR i IN 1 .. 30 LOOP
			PERFORM cqrs_emit_many('filled', array_agg('{}'::jsonb), array_agg((100 * i + j)::text)) FROM generate_series(1, 100) j;
			COMMIT;
		END LOOP;
	END $$));
ok($node->poll_query_until('postgres', "SELECT state = 'suspended' FROM cqrs.subscription WHERE subscription = 'idle'"),
	'a paused subscription past max_retained_size is suspended');
like(slurp_file($node->logfile),
	qr/WARNING:  subscription "idle" is suspended: it keeps \d+ bytes of events, more than max_retained_size \(100000\).*HINT: [^\n]*cqrs_resume/s,
	'and the log says so');
ok(wait_empty('bulk'), 'what it kept is truncated');
ok(wait_recorded($node, 'postgres', 3010), 'others got it');
is($node->safe_psql('postgres', "SELECT missed_events FROM cqrs.subscription WHERE subscription = 'idle'"),
	3010 - $received, 'what it missed is counted');
is($node->safe_psql('postgres', "SELECT cqrs_resume('idle')"), 3010 - $received, 'and reported');
$node->safe_psql('postgres', "SELECT cqrs_emit('filled', '{}', '1')");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_receive('idle')"), 'it goes on');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('idle')");

# A topic in error, and one that somebody is dropping, hold up no other.
my ($manager) = processes($node, 'manager', 'postgres');
my $offset = -s $node->logfile;

$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('altered', 'altered');
	SELECT cqrs_alter_topic('altered', '0');
	SELECT cqrs_register_event('dropped', 'dropped');
	SELECT cqrs_alter_topic('dropped', '0');
	BEGIN;
	SELECT cqrs_emit('altered', '{}');
	DO $$
	BEGIN
		EXECUTE (SELECT string_agg(format('ALTER TABLE cqrs.topic_%s_%s ADD CHECK (position > 0)', topic_id, i), ';')
				 FROM cqrs.topic, generate_series(0, 2) i WHERE topic = 'altered');
	END $$;
	COMMIT));
$node->wait_for_log(qr/table "topic_\d+_\d" of topic "altered" was altered.*CONTEXT:  maintaining topic "altered"/s, $offset);

$late->query(q(BEGIN; SELECT cqrs_emit('happened', '{"n": 2}')));
ok($node->poll_query_until('postgres', "SELECT held_by = 'lock' FROM cqrs_topic_status WHERE topic = 'things'"),
	'after an error in one topic, others are rotated');
my $dropper = new_session($node, 'postgres');
$dropper->query("BEGIN; SELECT cqrs_drop_topic('dropped', cascade => true)");
$late->query('COMMIT');
ok(wait_truncations('things', 1), 'and truncated, although somebody is dropping one');
$dropper->query('COMMIT');
emit_numbers($node, 'postgres', 3);
ok(wait_empty('things'), 'also after the drop');
is((processes($node, 'manager', 'postgres'))[0], $manager, 'by the same manager');
unlike(slurp_file($node->logfile), qr/maintaining topic "dropped"/, 'the drop was no error');

$node->stop;
done_testing();
