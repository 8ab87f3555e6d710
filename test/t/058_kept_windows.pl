# What a worker keeps of a window between batches is not trusted: a topic is
# dropped while a batch runs, by its handler or by somebody else; rows that were
# rolled back are vacuumed, and new events take their places. Each event is
# delivered once, and in order; no process ends.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE got (seq serial, n integer);
	-- Drops a topic, or waits for the test, at the event that says so.
	CREATE FUNCTION record(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.got (n) VALUES ((event.payload->>'n')::integer);
		IF event.payload ? 'drop' THEN
			PERFORM public.cqrs_drop_topic(event.payload->>'drop', true);
		ELSIF event.payload ? 'wait' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
	END $$;
	CREATE FUNCTION emit(event_name text, n integer, more jsonb DEFAULT '{}') RETURNS void LANGUAGE sql
		AS $$ SELECT cqrs_emit(event_name, jsonb_build_object('n', n) || more) $$));

# got(COUNT): what was delivered, when there is so much of it.
sub got
{
	my ($count) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) >= $count FROM got");
	$node->safe_psql('postgres', "SELECT cqrs_wait('recorder')");
	return $node->safe_psql('postgres', q(
		SELECT concat_ws(' ', count(*), count(DISTINCT n), min(n), max(n), bool_and(n >= coalesce(before, n)))
		FROM (SELECT n, lag(n) OVER (ORDER BY seq) AS before FROM got) g));
}

# begin_with(TOPICS...): the subscription, of topics with these names and an
# event type each, of the same name.
sub begin_with
{
	my @topics = @_;

	$node->safe_psql('postgres', q(TRUNCATE got; SELECT cqrs_unsubscribe(subscription) FROM cqrs.subscription));
	$node->safe_psql('postgres', "SELECT cqrs_register_event('$_', '$_') WHERE NOT EXISTS (SELECT FROM cqrs.topic WHERE topic = '$_')")
		foreach @topics;
	$node->safe_psql('postgres',
		"SELECT cqrs_subscribe('recorder', ARRAY[" . join(', ', map { "'$_'" } @topics) . "], 'record(cqrs_event)', start => 'latest')");
}

begin_with('a', 'b', 'c');
$node->safe_psql('postgres', q(
	SELECT count(emit(CASE WHEN i % 2 = 0 THEN 'b' ELSE 'c' END, i, CASE i WHEN 500 THEN '{"drop": "a"}' ELSE '{}' END::jsonb))
	FROM generate_series(1, 2500) i));
is(got(2500), '2500 2500 1 2500 t', 'a topic without events, of three, is dropped by the handler');

begin_with('a', 'b');
$node->safe_psql('postgres', q(
	SELECT count(emit('b', i, CASE i WHEN 500 THEN '{"drop": "a"}' ELSE '{}' END::jsonb)) FROM generate_series(1, 2500) i));
is(got(2500), '2500 2500 1 2500 t', '... of two');

# Somebody else waits for the batch, and is not waited for.
my $other = new_session($node, 'postgres');
begin_with('a', 'b', 'c');
my $holder = hold_handlers($node, 'postgres');
$node->safe_psql('postgres', q(
	SELECT count(emit(CASE WHEN i % 2 = 0 THEN 'b' ELSE 'c' END, i, CASE i WHEN 500 THEN '{"wait": true}' ELSE '{}' END::jsonb))
	FROM generate_series(1, 2500) i));
in_handler($node, 'postgres');
$other->begin(q(SELECT cqrs_drop_topic('a', true)));
$node->poll_query_until('postgres', q(SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%drop_topic%' AND pid <> pg_backend_pid())));
$node->safe_psql('postgres', q(SELECT cqrs_register_event('d', 'd')));
pass('meanwhile others register events');
$holder->quit;
unlike($other->finish, qr/ERROR/, 'a topic is dropped between two batches');
is(got(2500), '2500 2500 1 2500 t', '... and all others of the window come');

# The chunk of references that holds event 500 goes beyond the first batch.
begin_with('e');
$holder = hold_handlers($node, 'postgres');
$node->safe_psql('postgres', q(
	BEGIN;
	SELECT count(emit('e', i, CASE i WHEN 500 THEN '{"wait": true}' ELSE '{}' END::jsonb)) FROM generate_series(1, 1050) i;
	SAVEPOINT before;
	SELECT count(emit('e', 3000 + i)) FROM generate_series(1, 40) i;
	ROLLBACK TO before;
	SELECT count(emit('e', i)) FROM generate_series(1051, 1055) i;
	COMMIT));
in_handler($node, 'postgres');
my $segment = $node->safe_psql('postgres', q(SELECT format('cqrs.topic_%s_0', topic_id) FROM cqrs.topic WHERE topic = 'e'));
$node->safe_psql('postgres', "VACUUM $segment");
$node->safe_psql('postgres', q(SELECT count(emit('e', i)) FROM generate_series(1056, 1060) i));
is($node->safe_psql('postgres', "SELECT count(*) FROM $segment WHERE (payload->>'n')::int > 1055 AND ctid < (SELECT ctid FROM $segment WHERE payload->>'n' = '1051')"),
	'5', 'new events took places of those that were rolled back');
$holder->quit;
is(got(1060), '1060 1060 1 1060 t', '... and came once, in their turn');

unlike(slurp_file($node->logfile), qr/terminated by signal|deadlock detected|XX000/, 'no process ended, none was in the way');

done_testing();
