-- Queries: registering, dispatching, and that they write nothing.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('noted', 'notes');
CREATE TABLE note (n int, note text);
CREATE TEMP TABLE scratch (n int);
CREATE SEQUENCE note_n;
INSERT INTO note VALUES (1, 'one'), (2, 'two');

-- handlers in SQL, PL/pgSQL and C; an argument of jsonb and of a composite type
CREATE FUNCTION count_notes(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM note';
CREATE FUNCTION get_note(q note) RETURNS note LANGUAGE plpgsql AS $$
DECLARE
	found note;
BEGIN
	SELECT * INTO found FROM note WHERE n = q.n;
	RETURN found;
END $$;
CREATE FUNCTION answer_null(jsonb) RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
SELECT cqrs_register_query('CountNotes', 'count_notes(jsonb)');
SELECT cqrs_register_query('GetNote', 'get_note(note)');
SELECT cqrs_register_query('Kind', 'jsonb_typeof(jsonb)');
SELECT cqrs_register_query('Null', 'answer_null(jsonb)');
SELECT cqrs_query('CountNotes');
SELECT cqrs_query('GetNote', '{"n": 2}');
SELECT cqrs_query('Kind', '{"n": 2}'), cqrs_query('Kind', NULL) AS of_none;
SELECT cqrs_query('Null') IS NULL AS is_null;
SELECT cqrs_query('GetNote', '{"m": 2}');
SELECT cqrs_query('CountNotes', '[]');
SELECT cqrs_query('NoSuchQuery');
SELECT cqrs_query(NULL);

-- commands and queries share their names, and each has its function
CREATE FUNCTION add_note(c note) RETURNS void LANGUAGE sql AS $$
	INSERT INTO note VALUES (c.n, c.note);
	SELECT cqrs_emit('noted', to_jsonb(c))
$$;
CREATE FUNCTION many_notes(jsonb) RETURNS SETOF note LANGUAGE sql AS 'SELECT * FROM note';
SELECT cqrs_register_command('AddNote', 'add_note(note)');
SELECT cqrs_register_query('AddNote', 'count_notes(jsonb)');
SELECT cqrs_register_command('CountNotes', 'count_notes(jsonb)');
SELECT cqrs_register_query('CountNotes', 'count_notes(jsonb)');
SELECT cqrs_register_query('x', 'many_notes(jsonb)');
SELECT cqrs_register_query('x', 'pg_sleep(float8)');
SELECT cqrs_register_query('x', NULL);
SELECT cqrs_register_query('', 'count_notes(jsonb)');
SELECT cqrs_register_query(NULL, 'count_notes(jsonb)');
SELECT cqrs_query('AddNote');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('CountNotes');
\echo :LAST_ERROR_SQLSTATE
-- a query is not what takes a type
SELECT cqrs_send(ROW(3, 'three')::note);
SELECT command_name, kind, handlers FROM cqrs.command ORDER BY 1;
SELECT count(*) FROM note;
SELECT cqrs_query('CountNotes');
SELECT event_name, payload FROM cqrs_events('notes');

-- what a query may not do, whoever does it
CREATE FUNCTION run(q jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	IF q->>'sql' ~ '^SELECT' THEN
		EXECUTE q->>'sql' INTO result;
	ELSE
		EXECUTE q->>'sql';
	END IF;
	RETURN result;
END $$;
SELECT cqrs_register_query('Run', 'run(jsonb)');
CREATE FUNCTION refused(sql text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_query('Run', jsonb_build_object('sql', sql));
	RETURN 'allowed';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ' ' || sqlerrm;
END $$;
CREATE FUNCTION caught() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO note VALUES (4, 'caught');
	RETURN 'written';
EXCEPTION WHEN read_only_sql_transaction THEN
	RETURN 'caught ' || sqlerrm;
END $$;
CREATE FUNCTION definer() RETURNS void LANGUAGE sql SECURITY DEFINER SET work_mem = '1MB' AS
	$$INSERT INTO note VALUES (5, 'definer')$$;
CREATE FUNCTION unset() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('transaction_read_only', 'off', true);
	INSERT INTO note VALUES (5, 'unset');
END $$;
CREATE PROCEDURE proc() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
\t on
\a
CREATE TEMP TABLE attempt (id int GENERATED ALWAYS AS IDENTITY, sql text);
INSERT INTO attempt (sql) VALUES
	('INSERT INTO note VALUES (3, '''') RETURNING n'), ('UPDATE note SET n = 9'), ('DELETE FROM note'),
	('TRUNCATE note'),
	('WITH w AS (DELETE FROM note RETURNING n) SELECT * FROM w'), ('SELECT n FROM note FOR UPDATE'),
	('COPY note FROM ''/dev/null'''), ('CREATE TABLE t (n int)'), ('CREATE TEMP TABLE t (n int)'), ('DROP TABLE note'),
	('SELECT nextval(''note_n'')'), ('SELECT setval(''note_n'', 5)'), ('LOCK TABLE note IN EXCLUSIVE MODE'),
	('SELECT cqrs_emit(''noted'', ''{}'')'), ('SELECT cqrs_emit_many(''noted'', ARRAY[''{}'']::jsonb[])'),
	('SELECT cqrs_send(''AddNote'', ''{"n": 6}'')'), ('SELECT cqrs_register_query(''q'', ''run(jsonb)'')'),
	('SELECT cqrs_unregister_command(''Run'')'),
	('SELECT cqrs_query(''Run'', ''{"sql": "DELETE FROM note"}'')'), ('SELECT definer()'), ('SELECT unset()'),
	('SELECT set_config(''transaction_read_only'', ''off'', true)'), ('SET transaction_read_only = off'),
	('SET TRANSACTION READ WRITE'), ('CALL proc()'),
	('SELECT 1'), ('SELECT cqrs_query(''CountNotes'')'), ('SELECT count(*) FROM cqrs_events(''notes'')'),
	('INSERT INTO scratch VALUES (1)'), ('SELECT pg_notify(''c'', ''p'')'), ('SELECT pg_advisory_xact_lock(1)'),
	('SET TRANSACTION READ ONLY'), ('SELECT set_config(''cqrs.x'', ''1'', true)');
SELECT sql || ': ' || refused(sql) FROM attempt ORDER BY id;
\t off
\a
-- nothing of it is left
SELECT count(*), cqrs_query('CountNotes') FROM note;
SELECT cqrs_query('Run', '{"sql": "SELECT caught()"}');
SELECT nextval('note_n');

-- the error is the handler's, and says whose
SELECT cqrs_query('Run', '{"sql": "INSERT INTO note VALUES (3)"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_query('Run', '{"sql": "SELECT 1/0"}');
\echo :LAST_ERROR_SQLSTATE

-- in a transaction that writes, before and after, also after an error
BEGIN;
INSERT INTO note VALUES (7, 'seven');
SELECT cqrs_query('GetNote', '{"n": 7}');
SHOW transaction_read_only;
INSERT INTO note VALUES (8, 'eight');
SAVEPOINT s;
SELECT cqrs_query('Run', '{"sql": "DELETE FROM note"}');
ROLLBACK TO s;
SHOW transaction_read_only;
SELECT cqrs_send('AddNote', '{"n": 9}');
SAVEPOINT s;
INSERT INTO note VALUES (10, 'ten');
SELECT cqrs_query('CountNotes');
ROLLBACK TO s;
SELECT cqrs_query('CountNotes');
COMMIT;
SELECT array_agg(n ORDER BY n) FROM note;

-- in a read-only one
BEGIN READ ONLY;
SELECT cqrs_query('CountNotes');
SELECT cqrs_query('Run', '{"sql": "SELECT cqrs_query(''CountNotes'')"}');
SELECT cqrs_query('Run', '{"sql": "SET transaction_read_only = off"}');
ROLLBACK;

-- within a command, whose writes go on; an error is caught there
CREATE FUNCTION add_and_count(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	before bigint := cqrs_query('CountNotes');
	message text;
BEGIN
	INSERT INTO note VALUES (11, 'eleven');
	PERFORM cqrs_emit('noted', '{"n": 11}');
	BEGIN
		INSERT INTO note VALUES (12, 'twelve');
		PERFORM cqrs_query('Run', '{"sql": "DELETE FROM note"}');
	EXCEPTION WHEN OTHERS THEN
		message := sqlerrm;
	END;
	PERFORM cqrs_send('AddNote', '{"n": 13}');
	RETURN jsonb_build_object('before', before, 'after', cqrs_query('CountNotes'), 'message', message);
END $$;
SELECT cqrs_register_command('AddAndCount', 'add_and_count(jsonb)');
SELECT cqrs_send('AddAndCount');
SELECT array_agg(n ORDER BY n) FROM note;
SELECT array_agg(payload->'n') FROM cqrs_events('notes');

-- a command within a query may be sent; what it writes fails
CREATE FUNCTION harmless(jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'harmless'$$;
SELECT cqrs_register_command('Harmless', 'harmless(jsonb)');
SELECT cqrs_query('Run', '{"sql": "SELECT cqrs_send(''Harmless'')"}');
SELECT cqrs_query('Run', '{"sql": "SELECT cqrs_send(''AddNote'')"}');

-- many in one statement; SECURITY DEFINER and SET clauses; settings of the handler
SELECT count(cqrs_query('GetNote', jsonb_build_object('n', n))) FROM generate_series(1, 200) n;
CREATE ROLE regress_cqrs_reader;
CREATE FUNCTION who(jsonb) RETURNS text LANGUAGE sql SECURITY DEFINER SET work_mem = '2MB' AS
	$$SELECT current_user || ' ' || current_setting('work_mem') || ' ' || current_setting('transaction_read_only')$$;
ALTER FUNCTION who(jsonb) OWNER TO regress_cqrs_reader;
SELECT cqrs_register_query('Who', 'who(jsonb)');
SET work_mem = '3MB';
SELECT cqrs_query('Who');
SELECT current_user = session_user AS restored, current_setting('work_mem'), current_setting('transaction_read_only');
RESET work_mem;

-- EXECUTE on the handler is what a query takes; registering is not for everybody
REVOKE EXECUTE ON FUNCTION count_notes(jsonb) FROM PUBLIC;
SET ROLE regress_cqrs_reader;
SELECT cqrs_query('CountNotes');
SELECT cqrs_query('Kind');
SELECT cqrs_register_query('q', 'run(jsonb)');
RESET ROLE;

-- nested too deeply, also with commands between
CREATE FUNCTION deeper(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_query('Deeper')$$;
SELECT cqrs_register_query('Deeper', 'deeper(jsonb)');
\set VERBOSITY terse
SELECT cqrs_query('Deeper');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SHOW transaction_read_only;

-- prepared, and from a cursor
PREPARE get(int) AS SELECT cqrs_query('GetNote', jsonb_build_object('n', $1));
EXECUTE get(1);
EXECUTE get(2);
BEGIN;
DECLARE c CURSOR FOR SELECT n, cqrs_query('GetNote', jsonb_build_object('n', n)) FROM note ORDER BY n;
FETCH 1 FROM c;
INSERT INTO note VALUES (0, 'zero');
FETCH 1 FROM c;
ROLLBACK;

-- a handler that is gone
DROP FUNCTION get_note(note);
SELECT cqrs_query('GetNote', '{"n": 1}');
SELECT problem, object, detail, hint FROM cqrs_health() WHERE problem = 'command_handler_missing';
SELECT cqrs_unregister_query('GetNote');
SELECT cqrs_query('GetNote', '{"n": 1}');

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP SEQUENCE note_n;
DROP FUNCTION add_note, many_notes, count_notes, answer_null, run, refused, caught, definer, unset, add_and_count, harmless, who, deeper;
DROP PROCEDURE proc;
DROP TABLE note;
DROP ROLE regress_cqrs_reader;
