-- Streams: commands whose handlers return a set.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('made', 'rows');
CREATE TABLE made (n int, by text);

-- handlers in SQL, PL/pgSQL and C; of jsonb, scalars, composites and NULLs
CREATE FUNCTION sql_rows(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('n', n, 'emitted', cqrs_emit('made', jsonb_build_object('n', n)) IS NOT NULL)
	FROM generate_series(1, (c->>'rows')::int) n
$$;
CREATE FUNCTION plpgsql_rows(c jsonb) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN 1 .. (c->>'rows')::int LOOP
		INSERT INTO made VALUES (n, 'plpgsql');
		PERFORM cqrs_emit('made', jsonb_build_object('n', n));
		RETURN NEXT CASE WHEN n <> 2 THEN 'row ' || n END;
	END LOOP;
END $$;
CREATE TYPE wanted AS (rows int);
CREATE FUNCTION table_rows(w wanted) RETURNS TABLE (n int, name text) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT g, 'row ' || g FROM generate_series(1, w.rows) g;
END $$;
CREATE FUNCTION composite_rows(c jsonb) RETURNS SETOF wanted LANGUAGE sql AS
	'SELECT CASE WHEN n <> 2 THEN ROW(n)::wanted END FROM generate_series(1, 3) n';
CREATE FUNCTION record_rows(c jsonb) RETURNS SETOF record LANGUAGE sql AS $$VALUES (1, 'a'), (2, 'b')$$;
CREATE FUNCTION no_rows(c jsonb) RETURNS SETOF int LANGUAGE plpgsql AS 'BEGIN RETURN; END';
SELECT cqrs_register_command(name, handler) FROM (VALUES
	('Sql', 'sql_rows(jsonb)'), ('Plpgsql', 'plpgsql_rows(jsonb)'), ('Table', 'table_rows(wanted)'),
	('Composite', 'composite_rows(jsonb)'), ('Record', 'record_rows(jsonb)'),
	('None', 'no_rows(jsonb)'), ('Keys', 'jsonb_object_keys(jsonb)'), ('Each', 'jsonb_each(jsonb)')) v(name, handler);
SELECT command_name, kind, handlers FROM cqrs.command WHERE command_name IN ('Sql', 'Keys') ORDER BY 1;
\pset null '(null)'
SELECT cqrs_stream('Sql', '{"rows": 3}');
SELECT * FROM cqrs_stream('Sql', '{"rows": 3}') WITH ORDINALITY;
SELECT cqrs_stream('Plpgsql', '{"rows": 3}');
SELECT * FROM cqrs_stream('Plpgsql', '{"rows": 3}') WITH ORDINALITY;
SELECT cqrs_stream('Table', '{"rows": 2}');
SELECT cqrs_stream('Composite');
SELECT * FROM cqrs_stream('Composite');
SELECT cqrs_stream('Record');
SELECT cqrs_stream('Record', NULL);
SELECT cqrs_stream('None');
SELECT cqrs_stream('Sql', '{"rows": 0}');
SELECT cqrs_stream('Keys', '{"a": 1, "b": 2}');
SELECT cqrs_stream('Each', '{"a": 1, "b": 2}');
SELECT cqrs_stream('Table', jsonb_build_object('rows', n)) FROM generate_series(0, 3) n;
SELECT cqrs_stream('Keys', '{"a": 1}'), cqrs_stream('Each', '{"a": 1, "b": 2}');
SELECT n, row FROM generate_series(1, 2) n, cqrs_stream('Table', jsonb_build_object('rows', n)) row;
SELECT count(*) FROM cqrs_events('rows', 1000);

-- a stream has its own function
SELECT cqrs_send('Sql');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_query('Sql');
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION one(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT cqrs_register_command('One', 'one(jsonb)');
SELECT cqrs_register_query('AskOne', 'one(jsonb)');
SELECT cqrs_stream('One');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_stream('AskOne');
SELECT cqrs_register_query('Sql', 'one(jsonb)');
SELECT cqrs_send(ROW(1)::wanted);
SELECT cqrs_stream('NoSuchStream');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_stream(NULL);
SELECT cqrs_stream('Sql', '[]');
SELECT cqrs_stream('Table', '{"row": 1}');
SELECT cqrs_register_chain('x', ARRAY['one(jsonb)', 'sql_rows(jsonb)']);

-- what was emitted for a row is in the outbox when the caller has it, and no
-- more than that
TRUNCATE made;
SELECT cqrs_drop_topic('rows', true);
SELECT cqrs_register_event('made', 'rows');
CREATE FUNCTION emitted() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT count(*) FROM cqrs_events('rows'));
END $$;
SELECT row, emitted() FROM (SELECT cqrs_stream('Sql', '{"rows": 3}') AS row OFFSET 0) s;
SELECT row, emitted() FROM (SELECT cqrs_stream('Plpgsql', '{"rows": 3}') AS row OFFSET 0) s;
BEGIN;
DECLARE c CURSOR FOR SELECT cqrs_stream('Sql', '{"rows": 3}');
SELECT emitted();
FETCH 1 FROM c;
SELECT emitted();
FETCH 1 FROM c;
SELECT emitted();
-- closed early: the third row is never made
CLOSE c;
SELECT emitted();
COMMIT;
SELECT emitted();
SELECT cqrs_stream('Sql', '{"rows": 1000000}') LIMIT 2;
SELECT emitted();
SELECT cqrs_stream('Plpgsql', '{"rows": 3}') LIMIT 1;
SELECT emitted();

-- between the rows nothing is being dispatched, and the caller does what it likes
CREATE FUNCTION steps(c jsonb) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT CASE WHEN n = (c->>'fail')::int THEN (1 / (n - n))::text ELSE 'step ' || n END FROM generate_series(1, 3) n
$$;
SELECT cqrs_register_command('Steps', 'steps(jsonb)');
CREATE FUNCTION reads(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	rows CURSOR FOR SELECT cqrs_stream('Steps', c);
	row jsonb;
	result jsonb[];
BEGIN
	OPEN rows;
	FETCH rows INTO row;
	result := result || row || cqrs_next();
	FETCH rows INTO row;
	result := result || row || cqrs_send('One');
	RAISE NOTICE '%', result;
	RETURN 'not the answer';
END $$;
SELECT cqrs_register_chain('Reads', ARRAY['reads(jsonb)', 'one(jsonb)']);
SELECT cqrs_send('Reads');
BEGIN;
DECLARE c CURSOR FOR SELECT cqrs_stream('Steps', '{"fail": 3}');
FETCH 1 FROM c;
SELECT cqrs_next();
ROLLBACK;
BEGIN;
DECLARE c CURSOR FOR SELECT cqrs_stream('Steps', '{"fail": 3}');
DECLARE d CURSOR FOR SELECT cqrs_stream('Steps');
FETCH 1 FROM c;
FETCH 1 FROM d;
SAVEPOINT s;
SELECT cqrs_send('One');
FETCH 1 FROM c;
FETCH 2 FROM d;
-- an error comes with the row that it happens at
FETCH 1 FROM c;
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT cqrs_send('One');
SELECT cqrs_stream('Steps');
COMMIT;

-- a handler that passes on is none of a chain; errors say whose they are
CREATE FUNCTION stream_next(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
SELECT cqrs_register_command('StreamNext', 'stream_next(jsonb)');
SELECT cqrs_stream('StreamNext');

-- abandoned at an error, and caught
CREATE FUNCTION abandon() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	row jsonb;
	n int := 0;
BEGIN
	BEGIN
		FOR row IN SELECT cqrs_stream('Sql', '{"rows": 10}') LOOP
			n := n + 1;
			IF n = 3 THEN
				RAISE division_by_zero;
			END IF;
		END LOOP;
	EXCEPTION WHEN division_by_zero THEN
	END;
	RETURN n;
END $$;
SELECT emitted() AS before \gset
SELECT abandon(), emitted() - :before AS emitted;
-- one row and its event; none, and none
SELECT emitted() AS before \gset
SELECT row, emitted() - :before AS emitted FROM (SELECT cqrs_stream('Sql', '{"rows": 1}') AS row OFFSET 0) s;
SELECT row, emitted() - :before AS emitted FROM (SELECT cqrs_stream('Sql', '{"rows": 0}') AS row OFFSET 0) s;
SELECT emitted() - :before AS emitted;

-- in a query, and a query in a stream
CREATE FUNCTION asks(c jsonb) RETURNS jsonb LANGUAGE sql AS
	$$SELECT jsonb_agg(row) FROM cqrs_stream(c->>'stream', c) row$$;
SELECT cqrs_register_query('Ask', 'asks(jsonb)');
SELECT cqrs_query('Ask', '{"stream": "Steps"}');
SELECT cqrs_query('Ask', '{"stream": "Sql", "rows": 1}');
CREATE FUNCTION stream_asks(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS
	$$SELECT cqrs_query('Ask', '{"stream": "Steps"}') FROM generate_series(1, 2)$$;
SELECT cqrs_register_command('StreamAsks', 'stream_asks(jsonb)');
SELECT cqrs_stream('StreamAsks');

-- SECURITY DEFINER and SET clauses hold for each row, not between the rows
CREATE ROLE regress_cqrs_stream;
CREATE FUNCTION who(jsonb) RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET work_mem = '2MB' AS
	$$SELECT current_user || ' ' || current_setting('work_mem') FROM generate_series(1, 2)$$;
ALTER FUNCTION who(jsonb) OWNER TO regress_cqrs_stream;
SELECT cqrs_register_command('Who', 'who(jsonb)');
SET work_mem = '3MB';
SELECT cqrs_stream('Who'), current_user = session_user AS restored, current_setting('work_mem');
RESET work_mem;
REVOKE EXECUTE ON FUNCTION steps(jsonb) FROM PUBLIC;
SET ROLE regress_cqrs_stream;
SELECT cqrs_stream('Steps');
SELECT cqrs_stream('Keys', '{"a": 1}');
RESET ROLE;

-- large rows, and more of them than work_mem holds
CREATE FUNCTION large(jsonb) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT repeat(md5(n::text), 100) FROM generate_series(1, 2000) n;
END $$;
SELECT cqrs_register_command('Large', 'large(jsonb)');
SET work_mem = '64kB';
SELECT count(*), sum(length(row #>> '{}')) FROM (SELECT cqrs_stream('Large') AS row) s;
BEGIN;
DECLARE c CURSOR FOR SELECT length(row #>> '{}') FROM (SELECT cqrs_stream('Large') AS row) s;
FETCH 1 FROM c;
MOVE 1500 FROM c;
FETCH 1 FROM c;
COMMIT;
RESET work_mem;

-- nested in itself
CREATE FUNCTION tree(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$
	SELECT c UNION ALL
	SELECT row FROM generate_series(1, (c->>'n')::int) n, cqrs_stream('Tree', jsonb_build_object('n', n - 1)) row
$$;
SELECT cqrs_register_command('Tree', 'tree(jsonb)');
SELECT cqrs_stream('Tree', '{"n": 2}');
CREATE FUNCTION endless(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$SELECT cqrs_stream('Endless')$$;
SELECT cqrs_register_command('Endless', 'endless(jsonb)');
\set VERBOSITY terse
SELECT cqrs_stream('Endless');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default

-- prepared, and a handler that was replaced, or is gone
PREPARE stream AS SELECT cqrs_stream('Steps');
EXECUTE stream;
CREATE OR REPLACE FUNCTION steps(c jsonb) RETURNS SETOF text LANGUAGE sql AS $$SELECT 'replaced'$$;
EXECUTE stream;
DROP FUNCTION steps(jsonb);
CREATE FUNCTION steps(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'single'$$;
EXECUTE stream;
SELECT object, detail, hint FROM cqrs_health() WHERE problem = 'command_handler_missing';
SELECT cqrs_unregister_command('Steps');
EXECUTE stream;

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE made;
DROP FUNCTION sql_rows, plpgsql_rows, table_rows, composite_rows, record_rows, no_rows, one, emitted, steps,
	reads, stream_next, abandon, asks, stream_asks, who, large, tree, endless;
DROP TYPE wanted;
DROP ROLE regress_cqrs_stream;
