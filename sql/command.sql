-- Commands: registering and dispatching.
CREATE EXTENSION cqrs_outbox;

-- every kind of answer
CREATE TYPE join_meeting AS (user_id text, meeting_id int);
CREATE FUNCTION answer_void(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION answer_jsonb(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1 || ''{"handled": true}''';
CREATE FUNCTION answer_null(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION answer_int(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE FUNCTION answer_text(jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'it''s "text"'$$;
CREATE FUNCTION answer_composite(jsonb) RETURNS join_meeting LANGUAGE sql AS $$SELECT 'u', 7$$;
CREATE FUNCTION answer_out(jsonb, OUT a int, OUT b text) LANGUAGE sql AS $$SELECT 1, 'two'$$;
CREATE FUNCTION answer_array(jsonb) RETURNS int[] LANGUAGE sql AS 'SELECT ARRAY[1, 2]';
SELECT cqrs_register_command(f, format('answer_%s(jsonb)', f))
FROM unnest(ARRAY['void', 'jsonb', 'null', 'int', 'text', 'composite', 'out', 'array']) f;
SELECT f, cqrs_send(f, '{"a": 1}') AS answer, cqrs_send(f) IS NULL AS is_null
FROM unnest(ARRAY['void', 'jsonb', 'null', 'int', 'text', 'composite', 'out', 'array']) f;

-- a composite argument, from JSON and as itself
CREATE FUNCTION join_meeting(command join_meeting) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN format('%s joins %s', command.user_id, command.meeting_id + 1);
END $$;
SELECT cqrs_register_command('JoinMeeting', 'join_meeting(join_meeting)');
SELECT cqrs_send('JoinMeeting', '{"user_id": "1", "meeting_id": 5}');
SELECT cqrs_send('JoinMeeting', '{"user_id": 1, "meeting_id": "5"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": null}');
SELECT cqrs_send('JoinMeeting');
SELECT cqrs_send('JoinMeeting', NULL, NULL);
SELECT cqrs_send(ROW('1', 5)::join_meeting);
SELECT cqrs_send(j) FROM (VALUES ('a', 1), ('b', 2)) v(u, m), LATERAL (SELECT (u, m)::join_meeting AS j) r;
SELECT cqrs_send('JoinMeeting', '{"user_id": "1", "meeting_id": "one"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "1", "meeting": 5}');
SELECT cqrs_send(ROW('1', 5));
SELECT cqrs_send(NULL::join_meeting);
CREATE TYPE nobody AS (x int);
SELECT cqrs_send(ROW(1)::nobody);
SELECT cqrs_register_command('LeaveMeeting', 'join_meeting(join_meeting)');
SELECT cqrs_send(ROW('1', 5)::join_meeting);
SELECT cqrs_unregister_command('LeaveMeeting');
SELECT cqrs_send(ROW('1', 5)::join_meeting);

-- registering
SELECT cqrs_register_command('JoinMeeting', 'answer_int(jsonb)');
SELECT cqrs_register_command(NULL, 'answer_int(jsonb)');
SELECT cqrs_register_command('', 'answer_int(jsonb)');
SELECT cqrs_register_command(repeat('x', 64), 'answer_int(jsonb)');
SELECT cqrs_register_command(repeat('x', 63), 'answer_int(jsonb)');
SELECT cqrs_send(repeat('x', 63));
SELECT cqrs_send(repeat('x', 64));
SELECT cqrs_register_command('a "quoted".name; it''s', 'answer_int(jsonb)');
SELECT cqrs_send('a "quoted".name; it''s');
SELECT cqrs_register_command('x', 'no_such_function(jsonb)');
SELECT cqrs_register_command('x', NULL);
CREATE FUNCTION takes_two(jsonb, int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION takes_text(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION takes_variadic(VARIADIC jsonb[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION is_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE PROCEDURE is_procedure(jsonb) LANGUAGE sql AS 'SELECT 1';
SELECT cqrs_register_command('x', 'takes_two(jsonb, int)');
SELECT cqrs_register_command('x', 'takes_text(text)');
SELECT cqrs_register_command('x', 'takes_variadic(jsonb[])');
SELECT cqrs_register_command('x', 'is_trigger()');
SELECT cqrs_register_command('x', 'is_procedure(jsonb)');
SELECT cqrs_unregister_command('x');
SELECT cqrs_unregister_command(NULL);

-- dispatching
SELECT cqrs_send('NoSuchCommand');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send(NULL);
SELECT cqrs_send('int', '[1, 2]');
SELECT cqrs_send('int', '"text"');
SELECT cqrs_send('int', 'null');

-- a handler's error is the caller's, and says whose it is
CREATE FUNCTION fails(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'no seats left' USING ERRCODE = 'P0042', HINT = 'Come back later.';
END $$;
SELECT cqrs_register_command('fails', 'fails(jsonb)');
SELECT cqrs_send('fails');
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION sometimes(c jsonb) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	RETURN 10 / (c->>'by')::int;
END $$;
SELECT cqrs_register_command('sometimes', 'sometimes(jsonb)');
SELECT cqrs_send('sometimes', '{"by": 5}');
SELECT cqrs_send('sometimes', '{"by": 0}');
SELECT cqrs_send('sometimes', '{"by": 2}');

-- a handler that is dropped, replaced, or replaced with another signature
DROP FUNCTION answer_int(jsonb);
SELECT cqrs_send('int');
CREATE FUNCTION answer_int(json) RETURNS int LANGUAGE sql AS 'SELECT 43';
SELECT cqrs_send('int');
CREATE FUNCTION answer_int(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 43';
SELECT cqrs_send('int');
DROP FUNCTION answer_int(jsonb);
CREATE FUNCTION answer_int(jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'forty-three'$$;
SELECT cqrs_send('int');
CREATE OR REPLACE FUNCTION answer_int(jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'forty-four'$$;
SELECT cqrs_send('int');

-- nested, recursive, and without end
CREATE FUNCTION countdown(c jsonb) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF (c->>'n')::int = 0 THEN
		RETURN 0;
	END IF;
	RETURN 1 + cqrs_send('countdown', jsonb_build_object('n', (c->>'n')::int - 1))::int;
END $$;
SELECT cqrs_register_command('countdown', 'countdown(jsonb)');
SELECT cqrs_send('countdown', '{"n": 10}');
CREATE FUNCTION countdown_sql(c jsonb) RETURNS int LANGUAGE sql AS $$
	SELECT CASE WHEN (c->>'n')::int = 0 THEN 0
		   ELSE 1 + cqrs_send('countdown_sql', jsonb_build_object('n', (c->>'n')::int - 1))::int END
$$;
SELECT cqrs_register_command('countdown_sql', 'countdown_sql(jsonb)');
SELECT cqrs_send('countdown_sql', '{"n": 10}');
\set VERBOSITY terse
SELECT cqrs_send('countdown', '{"n": -1}');
\echo :LAST_ERROR_SQLSTATE
SET cqrs_outbox.max_command_depth = 5;
SELECT cqrs_send('countdown', '{"n": 10}');
SELECT cqrs_send('countdown', '{"n": 4}');
SET cqrs_outbox.max_command_depth = 10000;
SET max_stack_depth = '100kB';
SELECT cqrs_send('countdown', '{"n": -1}');
\echo :LAST_ERROR_SQLSTATE
RESET max_stack_depth;
RESET cqrs_outbox.max_command_depth;
\set VERBOSITY default
SELECT cqrs_send('countdown', '{"n": 3}');

-- an error after the handler has returned is not the handler's
SELECT cqrs_send('countdown', '{"n": 3}'), 1 / (cqrs_send('countdown', '{"n": 0}')::int);

-- SECURITY DEFINER and SET clauses hold, also after they are changed
CREATE FUNCTION who(jsonb) RETURNS text LANGUAGE sql SET work_mem = '1MB' AS
	$$SELECT current_user || ' ' || current_setting('work_mem')$$;
SELECT cqrs_register_command('who', 'who(jsonb)');
CREATE ROLE regress_cqrs_handler;
SET work_mem = '3MB';
SELECT cqrs_send('who') = to_jsonb(current_user || ' 1MB');
ALTER FUNCTION who(jsonb) SECURITY DEFINER SET work_mem = '2MB';
ALTER FUNCTION who(jsonb) OWNER TO regress_cqrs_handler;
-- of another role, it is not what was registered
SELECT cqrs_send('who');
SELECT cqrs_unregister_command('who'), cqrs_register_command('who', 'who(jsonb)');
SELECT cqrs_send('who');
RESET work_mem;

-- prepared statements, and an error caught on the way
PREPARE send(jsonb) AS SELECT cqrs_send('sometimes', $1);
EXECUTE send('{"by": 1}');
EXECUTE send('{"by": 0}');
EXECUTE send('{"by": 1}');
BEGIN;
SAVEPOINT s;
SELECT cqrs_send('sometimes', '{"by": 0}');
ROLLBACK TO s;
SELECT cqrs_send('sometimes', '{"by": 5}');
COMMIT;

-- a registration that is rolled back never was
BEGIN;
SELECT cqrs_register_command('briefly', 'answer_void(jsonb)');
SELECT cqrs_send('briefly');
ROLLBACK;
SELECT cqrs_send('briefly');

-- the registry's tables are what counts
UPDATE cqrs.command SET handlers = '{public.answer_text(pg_catalog.jsonb)}' WHERE command_name = 'void';
SELECT cqrs_send('void');
TRUNCATE cqrs.command;
SELECT cqrs_send('void');
-- a value may outlive its type
CREATE TYPE short_lived AS (x int);
BEGIN;
DECLARE c CURSOR FOR SELECT cqrs_send(ROW(1)::short_lived);
DROP TYPE short_lived;
FETCH c;
ROLLBACK;
DROP TYPE short_lived;

DROP EXTENSION cqrs_outbox;
\set VERBOSITY terse
DROP OWNED BY regress_cqrs_handler;
DROP ROLE regress_cqrs_handler;
DROP FUNCTION answer_void, answer_jsonb, answer_null, answer_int(jsonb), answer_int(json), answer_text, answer_composite,
	answer_out, answer_array, join_meeting, takes_two, takes_text, takes_variadic, is_trigger, fails,
	sometimes, countdown, countdown_sql;
DROP PROCEDURE is_procedure;
DROP TYPE join_meeting, nobody;
