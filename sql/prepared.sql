-- Prepared statements and cursors: what changes between their executions.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('done', 'log');
CREATE TYPE task AS (id int);
CREATE FUNCTION do_task(t task) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('done', to_jsonb(t));
	RETURN 'done ' || 12 / t.id;
END $$;
CREATE FUNCTION do_otherwise(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'otherwise ' || c::text$$;
CREATE FUNCTION ask_task(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_agg(payload) FROM cqrs_events('log')$$;
CREATE FUNCTION stream_tasks(c jsonb) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT n || ' ' || (cqrs_emit('done', jsonb_build_object('id', n)) IS NOT NULL) FROM generate_series(1, (c->>'tasks')::int) n
$$;
SELECT cqrs_register_command('Do', 'do_task(task)'), cqrs_register_query('Ask', 'ask_task(jsonb)'),
	   cqrs_register_command('Stream', 'stream_tasks(jsonb)');
CREATE FUNCTION done() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT coalesce(string_agg(payload->>'id', ' ' ORDER BY position), 'nothing') FROM cqrs_events('log', 1000));
END $$;

-- with plans of each kind
PREPARE do_by_name(text, jsonb) AS SELECT cqrs_send($1, $2);
PREPARE do_value(int) AS SELECT cqrs_send(ROW($1)::task);
PREPARE do_once(int, text) AS SELECT cqrs_send('Do', jsonb_build_object('id', $1), $2);
PREPARE do_dynamic AS SELECT cqrs_send('Do', '{"id": 12}');
PREPARE ask AS SELECT cqrs_query('Ask');
PREPARE stream(int) AS SELECT cqrs_stream('Stream', jsonb_build_object('tasks', $1));
PREPARE emit(int) AS SELECT cqrs_emit('done', jsonb_build_object('id', $1)) IS NOT NULL AS emitted;
SET plan_cache_mode = force_generic_plan;
EXECUTE do_by_name('Do', '{"id": 1}');
EXECUTE do_by_name('Do', '{"id": 2}');
EXECUTE do_by_name('Do', '{"id": 0}');
EXECUTE do_by_name('Done', '{"id": 2}');
EXECUTE do_value(3);
EXECUTE do_value(4);
EXECUTE do_once(6, 'key');
EXECUTE do_once(6, 'key');
EXECUTE do_dynamic;
EXECUTE do_dynamic;
EXECUTE ask;
EXECUTE stream(2);
EXECUTE stream(0);
EXECUTE emit(13);
SELECT done();
SET plan_cache_mode = force_custom_plan;
EXECUTE do_by_name('Do', '{"id": 1}');
EXECUTE do_value(2);
RESET plan_cache_mode;
SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE name IN ('do_by_name', 'do_value') ORDER BY name;

-- a command that is registered anew, its handler, and the type that it takes
SELECT cqrs_unregister_command('Do');
EXECUTE do_dynamic;
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_command('Do', 'do_otherwise(jsonb)');
EXECUTE do_dynamic;
EXECUTE do_by_name('Do', '{"id": 0}');
EXECUTE do_value(1);
SELECT cqrs_unregister_command('Do'), cqrs_register_command('Do', 'do_task(task)');
EXECUTE do_value(1);
CREATE OR REPLACE FUNCTION do_task(t task) RETURNS text LANGUAGE sql AS $$SELECT 'replaced ' || t.id$$;
EXECUTE do_value(1);
ALTER TYPE task ADD ATTRIBUTE note text;
EXECUTE do_by_name('Do', '{"id": 0, "note": "new"}');
ALTER TYPE task DROP ATTRIBUTE note;
EXECUTE do_value(1);
SELECT cqrs_unregister_event('done');
EXECUTE emit(1);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_event('done', 'log');
EXECUTE emit(14);

-- plans, and all else of a session, thrown away
DISCARD PLANS;
EXECUTE do_by_name('Do', '{"id": 1}');
EXECUTE do_value(1);
EXECUTE stream(1);
EXECUTE ask;
DISCARD ALL;
EXECUTE do_value(1);
SELECT cqrs_send('Do', '{"id": 1}'), cqrs_query('Ask') IS NOT NULL AS asked, cqrs_emit('done', '{"id": 15}') IS NOT NULL AS emitted;
SELECT cqrs_stream('Stream', '{"tasks": 1}');

-- an extension made anew
PREPARE do_by_name(text, jsonb) AS SELECT cqrs_send($1, $2);
EXECUTE do_by_name('Do', '{"id": 1}');
\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
EXECUTE do_by_name('Do', '{"id": 1}');
CREATE EXTENSION cqrs_outbox;
EXECUTE do_by_name('Do', '{"id": 1}');
SELECT cqrs_register_event('done', 'log'), cqrs_register_command('Do', 'do_task(task)'),
	   cqrs_register_command('Stream', 'stream_tasks(jsonb)');
EXECUTE do_by_name('Do', '{"id": 1}');
\set VERBOSITY default

-- a cursor that is held gets all its rows when its transaction commits, and their
-- events with it
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT cqrs_stream('Stream', '{"tasks": 4}');
FETCH 1 FROM held;
SELECT done();
COMMIT;
SELECT done();
FETCH 2 FROM held;
FETCH ALL FROM held;
CLOSE held;
SELECT done();
-- rolled back, there is neither
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT cqrs_stream('Stream', '{"tasks": 4}');
FETCH 1 FROM held;
ROLLBACK;
FETCH 1 FROM held;
SELECT done();
-- an error on the way is the commit's
CREATE OR REPLACE FUNCTION stream_tasks(c jsonb) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT n || ' ' || (cqrs_emit('done', jsonb_build_object('id', n)) IS NOT NULL) || 6 / (3 - n) FROM generate_series(1, 4) n
$$;
\set VERBOSITY terse
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT cqrs_stream('Stream');
FETCH 1 FROM held;
COMMIT;
\echo :LAST_ERROR_SQLSTATE
FETCH 1 FROM held;
\set VERBOSITY default
SELECT done();
-- a loop that commits
CREATE OR REPLACE FUNCTION stream_tasks(c jsonb) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT n || ' ' || (cqrs_emit('done', jsonb_build_object('id', n)) IS NOT NULL) FROM generate_series(21, 23) n
$$;
DO $$
DECLARE
	row jsonb;
BEGIN
	FOR row IN SELECT cqrs_stream('Stream') LOOP
		RAISE NOTICE '%', row;
		COMMIT;
	END LOOP;
END $$;
SELECT done();

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION do_task, do_otherwise, ask_task, stream_tasks, done;
DROP TYPE task;
