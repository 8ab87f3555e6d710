# A subscription's handler is called no more often than its rate allows, by all
# workers together, whichever of them comes or goes, and not much less often; others
# are as fast as ever.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

$PostgreSQL::Test::Utils::timeout_default = 30;

my $node = new_server('main', "cqrs_outbox.max_workers = 4\nrestart_after_crash = on");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE called (id bigserial, what text, n integer, at timestamptz DEFAULT clock_timestamp(), pid integer DEFAULT pg_backend_pid());
	-- what fails is called, too: the row is written by a transaction of its own
	CREATE EXTENSION dblink;
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF event.payload ? 'fails' THEN
			PERFORM dblink_exec(format('dbname=%s port=%s host=%s', current_database(), current_setting('port'), split_part(current_setting('unix_socket_directories'), ',', 1)),
				format('INSERT INTO called (what, n) VALUES (%L, %s)', 'failed', event.payload->>'n'));
			RAISE 'no';
		END IF;
		INSERT INTO called (what, n) VALUES ('handled', (event.payload->>'n')::integer);
	END $$;
	CREATE FUNCTION on_other(event cqrs_event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (what, n) VALUES ('other', (event.payload->>'n')::integer) $$;
	SELECT cqrs_subscribe('limited', ARRAY['things'], 'on_thing', partitions => 3, rate => '50/s', max_attempts => 3, retry_delay => '1 ms');
	SELECT cqrs_subscribe('other', ARRAY['things'], 'on_other')));
ok(wait_managers($node, 'postgres'), 'the manager is there');

# The most calls of this kind in any interval of so many seconds.
sub most
{
	my ($what, $seconds) = @_;

	return query($node, "SELECT max((SELECT count(*) FROM called b WHERE b.what ~ '$what' AND b.at >= a.at AND b.at < a.at + $seconds * interval '1 s')) FROM called a WHERE a.what ~ '$what'");
}

# emit(N, PAYLOAD): so many events, with keys
sub emit
{
	my ($n, $payload) = @_;

	query($node, "SELECT count(cqrs_emit('happened', jsonb_build_object('n', i) || '$payload', key => i)) FROM generate_series(1, $n) i");
}

# done(WHAT, N): wait until it was so many times
sub done
{
	my ($what, $n) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) >= $n FROM called WHERE what = '$what'");
}

emit(200, '{}');
ok(done('other', 200), 'the other subscription has all');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE what = 'handled'"), '<', 200, 'before the limited one has');
ok(done('handled', 200), 'in the end, that has all');
is(query($node, "SELECT count(DISTINCT n), count(*) FROM called WHERE what = 'handled'"), '200|200', 'once');
# A burst of 5, and 50 a second: a second has 55 at the most. The row is written a
# little later than the token is taken.
cmp_ok(most('handled', 0.9), '<=', 55, 'no more than it may');
cmp_ok(query($node, "SELECT extract(epoch FROM max(at) - min(at)) FROM called WHERE what = 'handled'"), '>=', 3.8, 'all of it takes as long as it must');
cmp_ok(query($node, "SELECT count(DISTINCT pid) FROM called WHERE what = 'handled'"), '>', 1, 'by several workers');
is(query($node, "SELECT state FROM cqrs_subscription_status WHERE subscription = 'limited'"), 'idle', 'then it waits for nothing');

# Workers that end, and a server that crashes, in the middle.
query($node, 'TRUNCATE called');
emit(100, '{}');
ok(done('handled', 10), 'some are handled');
query($node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
ok(done('handled', 100), 'all are');
is(query($node, "SELECT count(DISTINCT n), count(*) FROM called WHERE what = 'handled'"), '100|100', 'once');
cmp_ok(most('handled', 0.9), '<=', 55, 'no more than it may, with new workers');
query($node, 'TRUNCATE called');
emit(60, '{}');
ok(done('handled', 10), 'some are handled');
crash_server($node, processes($node, 'manager', 'postgres'));
ok(done('handled', 60), 'after a crash, all are');
# Carefully: one by one, and no faster. The buckets are full again: one burst more.
cmp_ok(most('handled', 0.9), '<=', 61, 'no more than it may, after a crash');

# Attempts count.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '20/s')");
emit(10, '{"fails": 1}');
ok($node->poll_query_until('postgres', "SELECT count(*) = 10 FROM cqrs_dead_letters WHERE subscription = 'limited'"), 'those that fail are given up');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE what = 'failed'"), '>=', 30, 'after three attempts each');
cmp_ok(most('failed', 0.9), '<=', 22, 'no more of these than there may be');

# Raised, and taken away.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '1/h')");
emit(300, '{}');
ok(done('other', 300), 'the other subscription has all');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE what = 'handled'"), '<=', 1, 'one an hour');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '50/s')");
ok(done('handled', 10), 'with another rate, they go on');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '0')");
ok(done('handled', 300), 'without a limit, all are handled');
is(query($node, "SELECT count(DISTINCT n), count(*) FROM called WHERE what = 'handled'"), '300|300', 'once');

$node->stop;
done_testing();
