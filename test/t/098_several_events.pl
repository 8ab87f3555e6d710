# A handler that takes several events gets many of them in a call. Whatever fails in
# it, takes too long, or ends the process: the event that does it is found, each of the
# others is handled once, and each key is in order.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $events = $ENV{CQRS_EVENTS} || 6000;
my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.max_workers = 4");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE got (id bigserial, key text, n integer, call uuid);
	CREATE TABLE refused (n integer, what text);
	CREATE SEQUENCE calls;
	CREATE FUNCTION take(events cqrs_event[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		this uuid := gen_random_uuid();
		whats text;
	BEGIN
		PERFORM nextval('calls');
		INSERT INTO got (key, n, call) SELECT e.key, (e.payload->>'n')::integer, this FROM unnest(events) WITH ORDINALITY e ORDER BY e.ordinality;
		SELECT string_agg(DISTINCT r.what, ' ') INTO whats FROM unnest(events) e JOIN refused r ON r.n = (e.payload->>'n')::integer;
		IF whats ~ 'kills' THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		ELSIF whats ~ 'waits' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		ELSIF whats ~ 'crashes' THEN
			EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid());
		ELSIF whats ~ 'fails' THEN
			RAISE 'no';
		ELSIF random() < 0.02 THEN
			RAISE 'bad luck' USING ERRCODE = '40001';
		END IF;
	END $$;
	SELECT cqrs_subscribe('taker', ARRAY['things'], 'take', max_attempts => 3, retry_delay => '5 ms', max_retry_delay => '20 ms', delivery_timeout => '500 ms', partitions => 2)));

# numbered(FROM, TO): events of 20 keys, in transactions of some
sub numbered
{
	my ($from, $to) = @_;

	query($node, "SELECT count(cqrs_emit('happened', jsonb_build_object('n', n), key => n % 20)) FROM generate_series($from, $to) n");
}

sub all_right
{
	my ($from, $to, $name) = @_;
	my $wanted = query($node, "SELECT count(*) FROM generate_series($from, $to) n WHERE n NOT IN (SELECT n FROM refused)");

	ok($node->poll_query_until('postgres', "SELECT count(*) >= $wanted FROM got WHERE n BETWEEN $from AND $to"), "$name: all are handled");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM cqrs.retry'), "$name: nothing waits");
	is(query($node, "SELECT count(*), count(DISTINCT n) FROM got WHERE n BETWEEN $from AND $to"), "$wanted|$wanted", "$name: once");
	is(query($node, "SELECT string_agg(payload->>'n', ' ' ORDER BY position) IS NOT DISTINCT FROM (SELECT string_agg(n::text, ' ' ORDER BY n) FROM refused) FROM cqrs_dead_letters"),
		't', "$name: and none that cannot be");
	is(query($node, 'SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM got) g WHERE n < before'), '0', "$name: in order by key");
}

# Many at once.
query($node, "SELECT cqrs_pause('taker')");
numbered(1, $events);
query($node, "SELECT cqrs_resume('taker')");
all_right(1, $events, 'many');
cmp_ok(query($node, 'SELECT last_value FROM calls'), '<', $events / 20, 'by few calls');
cmp_ok(query($node, 'SELECT max(c) FROM (SELECT count(*) AS c FROM got GROUP BY call) g'), '>', 300, 'of many events');

# Some of them fail.
query($node, "SELECT setval('calls', 1, false)");
query($node, "INSERT INTO refused SELECT $events + n, 'fails' FROM unnest('{5,6,700,1500,1501,2999}'::integer[]) n");
query($node, "SELECT cqrs_pause('taker')");
numbered($events + 1, $events + 3000);
query($node, "SELECT cqrs_resume('taker')");
all_right($events + 1, $events + 3000, 'some fail');
is(query($node, "SELECT string_agg(DISTINCT attempts || ' ' || error, ' ') FROM cqrs_dead_letters"), '3 no', 'these are tried three times each');

# One takes too long, as somebody has the lock that it waits for, one ends the process,
# one the server.
my ($from, $to) = ($events + 3001, $events + 3000);
my $holder = hold_handlers($node, 'postgres');
for my $what (qw(waits kills crashes))
{
	($from, $to) = ($to + 1, $to + 500);
	query($node, "INSERT INTO refused VALUES ($from + 250, '$what')");
	query($node, "SELECT cqrs_pause('taker')");
	numbered($from, $to);

	# A crash may end this session, too.
	$node->psql('postgres', "SELECT cqrs_resume('taker')");
	poll_through_crashes($node, "SELECT count(*) = 1 FROM cqrs_dead_letters WHERE (payload->>'n')::integer = $from + 250");
	all_right($from, $to, "one $what");
}

$node->stop;
done_testing();
