# A handler may move, stop, alter or remove its own subscription, and the rest of
# the batch follows that; it cannot drain it, or wait for it.

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('main', "cqrs_outbox.batch_duration = '60s'\n");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE got (seq serial, n int);
	CREATE TABLE todo (n int, sql text);
	CREATE FUNCTION handle(e cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		handled int := e.payload->>'n';
	BEGIN
		IF handled = 0 THEN
			RAISE EXCEPTION 'a dead letter';
		END IF;
		IF NOT EXISTS (SELECT FROM got WHERE n = handled) AND EXISTS (SELECT FROM todo WHERE n = handled) THEN
			EXECUTE (SELECT sql FROM todo WHERE n = handled);
		END IF;
		INSERT INTO got (n) VALUES (handled);
	END $$;
	SELECT cqrs_register_event('happened', 'things');
));

# got(ACTION, PARTITIONS): events 0 to 4, the first a dead letter, to a handler
# that does ACTION at the 2; what was handled in the end.
sub got
{
	my ($todo, $partitions) = @_;

	$partitions //= 1;
	$node->safe_psql('postgres', qq(
		TRUNCATE got, todo;
		SELECT cqrs_create_topic('things') WHERE NOT EXISTS (SELECT FROM cqrs_topic_status WHERE topic = 'things');
		SELECT cqrs_subscribe('s', ARRAY['things'], 'handle(cqrs_event)', start => 'latest', max_attempts => 1, partitions => $partitions);
		SELECT cqrs_emit('happened', '{"n": 0}', key => 'number');
	));
	wait_status($node, 'postgres', 's', '0/0/0/1') or die 'no dead letter';
	$node->safe_psql('postgres', qq(
		INSERT INTO todo VALUES (2, \$todo\$$todo\$todo\$);
		SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => 'number')) FROM generate_series(1, 4) i;
	));
	settle();
	return $node->safe_psql('postgres', q(SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got));
}

# settle(): until the subscription has got all, is stopped or gone.
sub settle
{
	$node->poll_query_until('postgres', q(
		SELECT count(*) = 0 FROM cqrs_subscription_status WHERE subscription = 's' AND state <> 'paused' AND lag_events + retrying + waiting > 0)) or
		die 'not delivered';
}

sub status
{
	my ($columns) = @_;

	return $node->safe_psql('postgres', "SELECT $columns FROM cqrs_subscription_status WHERE subscription = 's'");
}

# done(): remove the subscription, and what it had to read.
sub done
{
	$node->safe_psql('postgres', q(
		SELECT cqrs_unsubscribe('s') FROM cqrs_subscription_status WHERE subscription = 's';
	));
	$node->safe_psql('postgres', q(
		SELECT cqrs_unregister_event('happened');
		SELECT cqrs_drop_topic('things', true);
		SELECT cqrs_register_event('happened', 'things');
	));
}

for my $partitions (1, 3)
{
	is(got(q(SELECT cqrs_seek('s', 'earliest')), $partitions), '1 2 1 2 3 4', "seek to earliest, with $partitions partitions");
	is(status('dead, retrying, waiting, lag_events, error'), '1|0|0|0|a dead letter', '... and nothing else is left');
	done();
	is(got(q(SELECT cqrs_seek('s', 'latest')), $partitions), '1 2', 'seek to latest');
	$node->safe_psql('postgres', q(SELECT cqrs_emit('happened', '{"n": 5}')));
	settle();
	is($node->safe_psql('postgres', q(SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got)), '1 2 5', '... goes on from there');
	done();
	is(got(q(SELECT cqrs_redrive_all('s')), $partitions), '1 2 3 4', 'redrive');
	is(status('dead, retrying, lag_events'), '1|0|0', '... had the dead letter tried once more');
	done();
}
is(got(q(DO $$ BEGIN PERFORM cqrs_seek('s', 'earliest'); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END $$)),
	'1 2 3 4', 'a seek that was rolled back');
done();
is(got(q(SELECT cqrs_seek('s', 'latest'); SELECT cqrs_seek('s', 'earliest'))), '1 2 1 2 3 4', 'the last one counts');
done();

# What cannot be is an error, and the event's fault.
for my $function (qw(cqrs_drain cqrs_wait))
{
	is(got("SELECT $function('s')"), '1 3 4', "$function() fails");
	is($node->safe_psql('postgres', q(SELECT string_agg(error, ',' ORDER BY position) FROM cqrs_dead_letters WHERE subscription = 's' AND payload->>'n' = '2')),
		'subscription "s" is being delivered by this session', '... with a clear error');
	done();
}

# Nothing more of the batch is delivered.
is(got(q(SELECT cqrs_pause('s'))), '1 2', 'pause');
is(status('state, lag_events'), 'paused|2', '... keeps the rest');
$node->safe_psql('postgres', q(SELECT cqrs_resume('s')));
settle();
is($node->safe_psql('postgres', q(SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got)), '1 2 3 4', '... until it is resumed');
done();
is(got(q(SELECT cqrs_unsubscribe('s'))), '1 2', 'unsubscribe');
is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM cqrs.cursor) + (SELECT count(*) FROM cqrs.retry)'), 0, '... leaves nothing behind');
done();
$node->safe_psql('postgres', q(
	CREATE FUNCTION other(e cqrs_event) RETURNS void LANGUAGE sql AS 'INSERT INTO public.got (n) VALUES (10 * (e.payload->>''n'')::int)'));
is(got(q(SELECT cqrs_alter_subscription('s', handler => 'other(cqrs_event)'))), '1 2 30 40', 'the next event gets the new handler');
done();

# A parked event, behind which others wait.
$node->safe_psql('postgres', q(
	CREATE TABLE broken (n int);
	INSERT INTO broken VALUES (1);
	CREATE FUNCTION mended(e cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		IF e.payload->>'n' = '1' AND EXISTS (SELECT FROM broken) THEN
			RAISE EXCEPTION 'broken';
		END IF;
		IF e.payload->>'n' = '2' AND NOT EXISTS (SELECT FROM got WHERE n = 2) THEN
			PERFORM cqrs_seek('s', 'earliest');
		END IF;
		INSERT INTO got (n) VALUES ((e.payload->>'n')::int);
	END $$;
	TRUNCATE got;
	SELECT cqrs_subscribe('s', ARRAY['things'], 'mended(cqrs_event)', max_attempts => 0, retry_delay => '10 ms', max_retry_delay => '10 ms');
	SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => (i % 2)::text)) FROM generate_series(1, 1) i;
	SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => '1')) FROM generate_series(2, 4) i;
));
$node->poll_query_until('postgres', q(SELECT waiting = 3 FROM cqrs_subscription_status WHERE subscription = 's')) or die 'none waits';
$node->safe_psql('postgres', 'DELETE FROM broken');
$node->poll_query_until('postgres', 'SELECT count(*) >= 6 FROM got') or die 'not delivered';
settle();
is($node->safe_psql('postgres', q(SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got)), '1 2 1 2 3 4', 'a parked event seeks');
is(status('dead, retrying, waiting, lag_events'), '0|0|0|0', '... and nothing is left');

$node->stop;
done_testing();
