-- What comes from outside is not trusted: errors that were rethrown, headers
-- that are no object, types and functions that do not exist.
CREATE EXTENSION cqrs_outbox;
CREATE ROLE regress_cqrs_nobody LOGIN;

-- an error that was rethrown passes through whatever is rolled back and freed
CREATE FUNCTION rethrows(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		RAISE EXCEPTION 'boo';
	EXCEPTION WHEN unique_violation THEN
		NULL;
	END;
	RETURN payload;
END $$;
CREATE FUNCTION passes(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION around(request cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
CREATE FUNCTION rethrown() RETURNS TABLE (place text) LANGUAGE plpgsql AS $$
DECLARE
	caller record;
	detail text;
	context text;
BEGIN
	FOR caller IN SELECT * FROM (VALUES ('command', $q$SELECT cqrs_send('Plain')$q$),
		('query', $q$SELECT cqrs_query('Query')$q$), ('chain', $q$SELECT cqrs_send('Chain')$q$),
		('dry run', $q$SELECT cqrs_dry_run('Plain')$q$), ('fallback', $q$SELECT cqrs_send('Safe')$q$),
		('nested', $q$SELECT cqrs_send('Nested')$q$), ('key', $q$SELECT cqrs_send('Plain', idempotency_key => 'k')$q$)) v (place, call)
	LOOP
		BEGIN
			EXECUTE caller.call;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
			place := format('%s: %s (%s), %s', caller.place, SQLERRM, SQLSTATE, substring(context FROM '[^\n]*'));
			RETURN NEXT;
		END;
	END LOOP;
END $$;
CREATE FUNCTION safe(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT rethrows(payload) $$;
CREATE FUNCTION nested(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cqrs_query('Query', payload) $$;
SELECT cqrs_register_command('Plain', 'rethrows(jsonb)'), cqrs_register_query('Query', 'rethrows(jsonb)'),
	cqrs_register_chain('Chain', ARRAY['rethrows(jsonb)', 'passes(jsonb)']), cqrs_register_command('Safe', 'safe(jsonb)'),
	cqrs_register_fallback('safe(jsonb)', 'passes(jsonb)', ARRAY['23']), cqrs_register_command('Nested', 'nested(jsonb)');
SELECT * FROM rethrown();
SELECT cqrs_register_middleware('around(cqrs_request)');
SELECT * FROM rethrown();
SELECT cqrs_unregister_middleware('around(cqrs_request)');
-- the log has the names of file and function
SET log_error_verbosity = verbose;
SELECT cqrs_query('Query');
SELECT cqrs_send('Chain');
SELECT cqrs_dry_run('Plain');
SELECT cqrs_send('Safe');
\set SHOW_CONTEXT never
DO $$ DECLARE answer jsonb; BEGIN answer := cqrs_send('Chain'); END $$;

-- ... also one that the conversion of a payload rethrew
CREATE TYPE narrow AS (a int);
CREATE FUNCTION takes_narrow(payload narrow) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(payload)';
CREATE FUNCTION sends_wide(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT cqrs_send('Narrow', payload) $$;
SELECT cqrs_register_command('Narrow', 'takes_narrow(narrow)'), cqrs_register_command('Wide', 'sends_wide(jsonb)');
SELECT cqrs_send('Wide', '{"a": "x"}');
\set SHOW_CONTEXT errors
RESET log_error_verbosity;

-- nobody can have a command executed with headers, an id or an attempt of his
CREATE TABLE seen (name text, correlation_id text, causation_id text, attempts int, traceparent text);
CREATE FUNCTION sees(payload jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	INSERT INTO public.seen SELECT name, correlation_id, causation_id, attempts, traceparent FROM public.cqrs_context()
$$;
SELECT cqrs_register_command('See', 'sees(jsonb)');
SET ROLE regress_cqrs_nobody;
SELECT cqrs.run_command(ROW(NULL, NULL, 'See', NULL, NULL, '{}',
	'["AA\u008fAAA\u0001", "xxxxxxxxxxxxco", "rrelation_idzzzz"]', NULL)::cqrs_event);
RESET ROLE;
SELECT cqrs.run_command(ROW(NULL, NULL, 'See', NULL, NULL, '{}',
	'["AA\u008fAAA\u0001", "xxxxxxxxxxxxco", "rrelation_idzzzz"]', NULL)::cqrs_event);
SELECT * FROM seen;

-- ... not within a delivery either
CREATE FUNCTION forges(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs.run_command(event);
EXCEPTION WHEN OTHERS THEN
	INSERT INTO seen VALUES (SQLERRM);
END $$;
CREATE FUNCTION forges_command(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs.run_command(NULL);
EXCEPTION WHEN OTHERS THEN
	INSERT INTO seen VALUES (SQLERRM);
END $$;
SELECT cqrs_create_topic('see'), cqrs_register_event('See', 'see');
SELECT cqrs_subscribe('forger', '{see}', 'forges(cqrs_event)');
SELECT cqrs_emit('See', '{}') IS NOT NULL AS emitted;
SELECT cqrs_drain('forger');
SELECT cqrs_register_command('Forge', 'forges_command(jsonb)');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Forge', '{}') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_postgres');
SELECT * FROM seen;
TRUNCATE seen;
-- ... but may subscribe to it, for nothing
SELECT cqrs_subscribe('runner', '{see}', 'cqrs.run_command(cqrs_event)');
SELECT cqrs_emit('See', '{}') IS NOT NULL AS emitted;
\set VERBOSITY terse
SELECT cqrs_drain('runner');
\set VERBOSITY default
SELECT * FROM seen;
SELECT cqrs_unsubscribe('runner'), cqrs_unsubscribe('forger');

-- headers in tables may be anything, after a restore or by a superuser's hand
CREATE FUNCTION delivered(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen SELECT name, correlation_id, causation_id, attempts, traceparent FROM cqrs_context();
	PERFORM cqrs_emit('Then', '{}');
	PERFORM cqrs_enqueue('See', '{}', run_at => 'tomorrow');
END $$;
SELECT cqrs_create_topic('then'), cqrs_register_event('Then', 'then');
INSERT INTO cqrs.scheduled_command (command_id, command_name, topic_id, run_at, payload, headers, enqueued_at)
	SELECT md5(n::text)::uuid, 'See', (SELECT topic_id FROM cqrs.topic WHERE topic = 'commands_of_postgres'), '2020-01-01', '{}', headers, '2020-01-01'
	FROM unnest(ARRAY['["AA\u008fAAA\u0001", "xxxxxxxxxxxxco", "rrelation_idzzzz"]', '"correlation_id"', '7', 'null',
		'{"correlation_id": 7, "causation_id": ["x"], "traceparent": null}']::jsonb[]) WITH ORDINALITY u (headers, n);
SELECT cqrs_enqueue_scheduled();
SELECT cqrs_drain('commands_of_postgres');
SELECT name, length(correlation_id), causation_id, attempts, traceparent FROM seen;
TRUNCATE seen;
SELECT cqrs_subscribe('reader', '{see}', 'delivered(cqrs_event)', start => 'latest', max_attempts => 3);
SELECT cqrs_emit('See', '{}', headers => '{"correlation_id": "c"}') IS NOT NULL AS emitted;
ALTER FUNCTION delivered(cqrs_event) RENAME TO delivered_later;
CREATE FUNCTION delivered(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not yet'; END $$;
\set VERBOSITY terse
SELECT cqrs_drain('reader');
\set VERBOSITY default
DROP FUNCTION delivered(cqrs_event);
ALTER FUNCTION delivered_later(cqrs_event) RENAME TO delivered;
SELECT count(*) FROM cqrs.retry;
UPDATE cqrs.retry SET headers = '["AA\u008fAAA\u0001", "xxxxxxxxxxxxco", "rrelation_idzzzz"]', retry_at = '2020-01-01', due_at = '2020-01-01';
UPDATE cqrs.cursor SET next_retry_at = '2020-01-01' WHERE next_retry_at > '2020-01-01';
SELECT cqrs_drain('reader');
SELECT name, length(correlation_id), causation_id, attempts, traceparent FROM seen;
SELECT event_name, headers ? 'correlation_id' AS correlated FROM cqrs_topics.then;
SELECT command_name, headers ? 'correlation_id' AS correlated FROM cqrs.scheduled_command;

-- types that do not exist
SELECT cqrs_register_event('x', 'y', 'not_there');

-- who registers much in one transaction does not keep as many copies of the registry
BEGIN;
DO $$
BEGIN
	FOR i IN 1 .. 300 LOOP
		PERFORM cqrs_register_command('Many' || i, 'passes(jsonb)');
		PERFORM cqrs_register_event('Many' || i, 'see');
		PERFORM cqrs_register_event_handler('Many' || i, 'passes(jsonb)');
	END LOOP;
END $$;
SELECT cqrs_send('Many300', '{"n": 1}');
SELECT count(*), sum(total_bytes) < 4000000 AS small FROM pg_backend_memory_contexts WHERE name = 'cqrs registry';
ROLLBACK;
-- ... while what is being handled stays what it is
CREATE FUNCTION registers(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 50 LOOP
		PERFORM cqrs_register_command(format('More%s_%s', payload->>'n', i), 'passes(jsonb)');
	END LOOP;
	PERFORM cqrs_next();
	RETURN payload;
END $$;
SELECT cqrs_register_chain('Register', ARRAY['registers(jsonb)', 'passes(jsonb)']),
	cqrs_register_middleware('around(cqrs_request)');
SELECT cqrs_send('Register', '{"n": 1}');
SELECT cqrs_unregister_middleware('around(cqrs_request)');

DROP TABLE seen;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION rethrows, rethrown, passes, safe, nested, takes_narrow, sends_wide, sees, forges_command, registers;
DROP TYPE narrow;
DROP ROLE regress_cqrs_nobody;
