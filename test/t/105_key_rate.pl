# A subscription's handler is called for one key no more often than its key_rate
# allows, by all workers together, whichever of them comes or goes; other keys, and
# events without one, do not wait for that. Nothing is lost, comes twice, or in
# another order.

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
	CREATE TABLE called (id bigserial, key text, n integer, at timestamptz DEFAULT clock_timestamp(), what text DEFAULT 'handled');
	-- what fails is called, too: the row is written by a transaction of its own
	CREATE EXTENSION dblink;
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF event.payload ? 'fails' THEN
			PERFORM dblink_exec(format('dbname=%s port=%s host=%s', current_database(), current_setting('port'), split_part(current_setting('unix_socket_directories'), ',', 1)),
				format('INSERT INTO called (key, n, what) VALUES (%L, %s, %L)', event.key, event.payload->>'n', 'failed'));
			RAISE 'no';
		END IF;
		INSERT INTO called (key, n) VALUES (event.key, (event.payload->>'n')::integer);
	END $$;
	SELECT cqrs_subscribe('limited', ARRAY['things'], 'on_thing', partitions => 2, key_rate => '5/s', max_attempts => 3, retry_delay => '1 ms')));
ok(wait_managers($node, 'postgres'), 'the manager is there');

# emit(KEY, N, PAYLOAD): so many events of an expression of n that is the key
sub emit
{
	my ($key, $n, $payload) = @_;

	$payload //= '{}';
	query($node, "SELECT count(cqrs_emit('happened', jsonb_build_object('n', n) || '$payload', key => $key)) FROM generate_series(1, $n) n");
}

# done(CONDITION, N): wait until so many were called
sub done
{
	my ($condition, $n) = @_;

	return $node->poll_query_until('postgres', "SELECT count(*) >= $n FROM called WHERE $condition");
}

# The most calls for one key in any interval of 0.9 s.
sub most
{
	return query($node, "SELECT max((SELECT count(*) FROM called b WHERE b.key = a.key AND b.at >= a.at AND b.at < a.at + 0.9 * interval '1 s')) FROM called a");
}

# What is not in order, or not once.
sub wrong
{
	return query($node, "SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY key ORDER BY id) i FROM called WHERE key IS NOT NULL AND what = 'handled') c WHERE n <> i");
}

# A hot key comes first.
emit(q('hot'), 20);
emit(q('key ' || n % 100), 100);
emit('NULL', 100);
ok(done("key <> 'hot'", 100) && done('key IS NULL', 100), 'other keys, and events without one, are handled');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE key = 'hot'"), '<', 20, 'before those of a key that has too many');
is(query($node, "SELECT count(*) FILTER (WHERE retry_at > now() - interval '1 s'), count(*) FILTER (WHERE retry_at IS NULL AND waits_for IS NOT NULL) > 0, max(attempts), count(error) FROM cqrs_retries WHERE key = 'hot'"),
	'1|t|0|0', 'the first of these waits for its time, and the others for it; no attempt counts');
is(query($node, "SELECT retrying, waiting > 0 FROM cqrs_subscription_status WHERE subscription = 'limited'"), '0|t', 'and the status says so');
ok(done("key = 'hot'", 20), 'in the end, they are handled, too');
is(query($node, 'SELECT count(*), count(DISTINCT (key, n)) FROM called WHERE key IS NOT NULL'), '120|120', 'all once');
is(query($node, "SELECT string_agg(n::text, ' ' ORDER BY id) FROM called WHERE key = 'hot'"), join(' ', 1 .. 20), 'in order');

# A second has one token and those that come: six at the most. The row is written a
# little later than the token is taken.
cmp_ok(most(), '<=', 6, 'no more than it may');
my $took = query($node, "SELECT extract(epoch FROM max(at) - min(at)) FROM called WHERE key = 'hot'");

cmp_ok($took, '>=', 3.7, 'as slowly as it must');
cmp_ok($took, '<', 8, 'and not much more slowly');
ok($node->poll_query_until('postgres', "SELECT state = 'idle' FROM cqrs_subscription_status WHERE subscription = 'limited'"), 'then it waits for nothing');
is(query($node, 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'nothing is given up');

# A key does not take what is another topic's.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_register_event('elsewhere', 'places'), cqrs_alter_subscription('limited', topics => ARRAY['things', 'places'], key_rate => '1/h')");
query($node, "SELECT cqrs_emit('happened', '{\"n\": 1}', key => 'both'), cqrs_emit('elsewhere', '{\"n\": 2}', key => 'both')");
ok(done("key = 'both'", 2), 'the same key of two topics is two keys');

# Workers that end, and a server that crashes, in the middle.
query($node, "SELECT cqrs_alter_subscription('limited', topics => ARRAY['things'], key_rate => '5/s')");
query($node, 'TRUNCATE called');
emit(q('k' || (n % 2)), 20);
ok(done('true', 4), 'some are handled');
query($node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
ok(done('true', 20), 'all are');
is(query($node, 'SELECT count(DISTINCT (key, n)), count(*) FROM called'), '20|20', 'once');
cmp_ok(most(), '<=', 6, 'no more than it may, with new workers');

query($node, 'TRUNCATE called');
emit(q('c' || (n % 2)), 20);
ok(done('true', 4), 'some are handled');
crash_server($node, processes($node, 'manager', 'postgres'));
ok(done('true', 20), 'after a crash, all are');
is(query($node, 'SELECT count(DISTINCT (key, n)), count(*) FROM called'), '20|20', 'once');

# Carefully: one by one. The buckets are full again: one burst more.
cmp_ok(most(), '<=', 7, 'no more than it may, after a crash');

# A worker that is careful has to find what may be called for.
query($node, 'TRUNCATE called');
crash_server($node, processes($node, 'manager', 'postgres'));
emit(q('careful'), 10);
emit(q('beside' || n), 10);
ok(done("key ~ 'beside'", 10), 'other keys are handled after a crash');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE key = 'careful'"), '<', 10, 'before those of a key that has too many');
ok(done("key = 'careful'", 10), 'in the end, they are handled, too');
cmp_ok(most(), '<=', 6, 'no more than it may');

# Attempts count.
query($node, 'TRUNCATE called');
emit(q('fails'), 3, '{"fails": 1}');
ok($node->poll_query_until('postgres', "SELECT count(*) = 3 FROM cqrs_dead_letters WHERE subscription = 'limited'"), 'those that fail are given up');
is(query($node, "SELECT count(*) FROM called WHERE what = 'failed'"), '9', 'after three attempts each');
cmp_ok(most(), '<=', 6, 'no more of these than there may be');

# The subscription's rate counts, too.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '20/s')");
emit(q('r' || n), 40);
emit(q('slow'), 4);
ok(done('true', 44), 'with both rates, all are handled');
cmp_ok(most(), '<=', 6, '... by that of a key');
cmp_ok(query($node, "SELECT max((SELECT count(*) FROM called b WHERE b.at >= a.at AND b.at < a.at + 0.9 * interval '1 s')) FROM called a"), '<=', 22, "... and the subscription's");

# Raised, and taken away.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_alter_subscription('limited', rate => '0', key_rate => '1/h')");
emit(q('late'), 300);
ok($node->poll_query_until('postgres', "SELECT waiting = 299 FROM cqrs_subscription_status WHERE subscription = 'limited'"), 'one an hour');
query($node, "SELECT cqrs_alter_subscription('limited', key_rate => '50/s')");
ok(done('true', 11), 'with another rate, they go on');
query($node, "SELECT cqrs_alter_subscription('limited', key_rate => '0')");
ok(done('true', 300), 'without a limit, all are handled');
is(query($node, 'SELECT count(DISTINCT n), count(*) FROM called'), '300|300', 'once');
is(wrong(), '0', 'in order');

# Too many keys at the same time for the places that there are, of which the hash of
# a key has 16: none of them is called for more often than it may.
query($node, 'TRUNCATE called');
query($node, "SELECT cqrs_alter_subscription('limited', key_rate => '1/h')");
my ($dboid, $id, $topic) = split /\|/, query($node, "SELECT oid, (SELECT subscription_id FROM cqrs.subscription WHERE subscription = 'limited'), (SELECT topic_id FROM cqrs.topic WHERE topic = 'things') FROM pg_database WHERE datname = 'postgres'");
my @lanes = map { [ split /\|/ ] } split /\n/, query($node, "SELECT 'x' || n, cqrs.event_lane($topic, gen_random_uuid(), 'x' || n, false) FROM generate_series(1, 120000) n");

sub combine
{
	my ($a, $b) = @_;
	my $high = do { no integer; $a >> 7 };

	use integer;
	return $a ^ ($b + 0x49a0f4dd15e5a8e3 + ($a << 54) + $high);
}

my $whose = combine($dboid, $id);
my @same = grep { (combine($whose, $_->[1]) & 4095) == 7 } @lanes;

cmp_ok(scalar @same, '>=', 20, 'there are so many keys');
query($node, "SELECT count(cqrs_emit('happened', '{\"n\": 1}', key => key)) FROM unnest('{" . join(',', map { $_->[0] } @same[0 .. 19]) . "}'::text[]) key");
ok($node->poll_query_until('postgres', "SELECT waiting = 4 FROM cqrs_subscription_status WHERE subscription = 'limited'"), 'four of twenty wait for a place');
is(query($node, 'SELECT count(*) FROM called'), '16', 'the others do not');
query($node, "SELECT cqrs_alter_subscription('limited', key_rate => '0')");
ok(done('true', 20), 'without a limit, all are handled');

# Commands that have a key.
$node->safe_psql('postgres', q(
	CREATE FUNCTION note(command jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (key, n) VALUES (command->>'key', (command->>'n')::integer) $$;
	SELECT cqrs_register_command('Note', 'note');
	SELECT cqrs_create_command_queue();
	SELECT cqrs_alter_subscription('commands_of_' || current_user, key_rate => '2/s')));
query($node, 'TRUNCATE called');
query($node, q(SELECT count(cqrs_enqueue('Note', jsonb_build_object('key', 'a', 'n', n), key => 'a')) FROM generate_series(1, 4) n));
query($node, q(SELECT count(cqrs_enqueue('Note', jsonb_build_object('key', 'b' || n, 'n', n), key => 'b' || n)) FROM generate_series(1, 50) n));
ok(done("key ~ 'b'", 50), 'commands of other keys are executed');
cmp_ok(query($node, "SELECT count(*) FROM called WHERE key = 'a'"), '<', 4, 'before those of a key that has too many');
ok(done("key = 'a'", 4), 'in the end, they are executed, too');
cmp_ok(query($node, "SELECT extract(epoch FROM max(at) - min(at)) FROM called WHERE key = 'a'"), '>=', 1.4, 'as slowly as they must');

$node->stop;
done_testing();
