# What failed waits for its time, or, in an outage, the whole subscription does.
# Whoever has mended the cause need not wait: cqrs_retry().

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');
$node->start;

# The handler fails with what table "error" says, for all or for a key.
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE error (key text, code text);
	CREATE TABLE handled (seq serial, key text, attempts integer);
	CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		code text := (SELECT e.code FROM error e WHERE e.key IN (event.key, 'all') LIMIT 1);
	BEGIN
		IF code IS NOT NULL THEN
			RAISE EXCEPTION 'no' USING ERRCODE = code;
		END IF;
		INSERT INTO handled (key, attempts) VALUES (event.key, (cqrs_context()).attempts);
	END $$;
	SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)', retry_delay => '1 day', max_retry_delay => '1 day');
));

sub query { return $node->safe_psql('postgres', $_[0]); }

# handled(): what was, and forget it
sub handled
{
	return query(q(WITH h AS (DELETE FROM handled RETURNING *) SELECT string_agg(key || attempts, ' ' ORDER BY seq) FROM h));
}

sub wait_for
{
	my ($condition, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT $condition"), $what);
}

# events that failed, and what waits behind one of them
query(q(INSERT INTO error VALUES ('a', 'P0001'), ('b', 'P0001')));
query("SELECT cqrs_emit('happened', '{}', key) FROM unnest('{a,a,b,c}'::text[]) WITH ORDINALITY u (key, n) ORDER BY n");
wait_for('count(*) = 3 FROM cqrs_retries', 'two fail, and one waits');
is(query(q(SELECT string_agg(concat_ws('/', key, attempts, error, error_sqlstate, retry_at > now() + '12 hours', waits_for IS NOT NULL), ' ' ORDER BY position) FROM cqrs_retries)),
	'a/1/no/P0001/t/f a/0/t b/1/no/P0001/t/f', 'which all can see');
is(handled(), 'c1', 'others go on');
query('DELETE FROM error');
is(query(q(SELECT cqrs_retry('things', (SELECT array_agg(event_id) FROM cqrs_retries WHERE key = 'b')))), 1, 'one is to be tried now');
wait_for("count(*) = 1 FROM handled WHERE key = 'b'", 'which the worker does');
is(handled(), 'b2', 'with its attempts, and no other');
is(query("SELECT cqrs_retry_all('things')"), 1, 'all');
wait_for('count(*) = 2 FROM handled', 'what waited comes behind it');
is(handled(), 'a2 a1', '... in order');
is(query('SELECT count(*) FROM cqrs_retries'), 0, 'nothing is left');

# An outage, that lasts: then the next attempt is 45 s away, at least.
query(q(INSERT INTO error VALUES ('all', '53100')));
query("SELECT cqrs_emit('happened', '{}', key) FROM unnest('{a,b,c,d}'::text[]) key");
wait_for('count(*) = 1 FROM cqrs.failure', 'an outage');
query('UPDATE cqrs.failure SET failures = 20');
wait_for(q(count(*) = 1 FROM cqrs.failure WHERE failures > 20 AND retry_at > clock_timestamp() + '30 s'), '... that lasts');
my $retry_at = query(q(SELECT retry_at FROM cqrs.failure));
query('DELETE FROM error');
query("SELECT cqrs_retry_all('things')");
wait_for('count(*) = 4 FROM handled', 'is over when somebody says so');
is(query("SELECT clock_timestamp() < '$retry_at'"), 't', '... and not when it would be by itself');
like(handled(), qr/^(?:[a-d]1 ?){4}$/, '... and was no attempt');

# Another handler is tried at once, after both.
query("INSERT INTO error VALUES ('a', 'P0001')");
query("SELECT cqrs_emit('happened', '{}', 'a')");
wait_for('attempts = 1 FROM cqrs_retries', 'one fails');
query(q(CREATE FUNCTION mended(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS
	'INSERT INTO handled (key, attempts) VALUES (event.key, (cqrs_context()).attempts)'));
query("SELECT cqrs_alter_subscription('things', handler => 'mended(cqrs_event)')");
wait_for('count(*) = 1 FROM handled', 'another handler is tried at once');
is(handled(), 'a2', '... with its attempts');
query("SELECT cqrs_alter_subscription('things', handler => 'on_thing(cqrs_event)')");
query("INSERT INTO error VALUES ('all', '53100')");
query("SELECT cqrs_emit('happened', '{}', key) FROM unnest('{b,c,d}'::text[]) key");
wait_for('count(*) = 1 FROM cqrs.failure', 'an outage');
query('UPDATE cqrs.failure SET failures = 20');
wait_for(q(count(*) = 1 FROM cqrs.failure WHERE failures > 20 AND retry_at > clock_timestamp() + '30 s'), '... that lasts');
$retry_at = query(q(SELECT retry_at FROM cqrs.failure));
query("SELECT cqrs_alter_subscription('things', handler => 'mended(cqrs_event)')");
wait_for('count(*) = 3 FROM handled', 'another handler is tried at once');
is(query("SELECT clock_timestamp() < '$retry_at'"), 't', '... and not when the one before would be');

done_testing();
