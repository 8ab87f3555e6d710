-- Commands in commands: errors caught at any level, privileges, settings, savepoints.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('noted', 'notes');
CREATE TABLE note (n int GENERATED ALWAYS AS IDENTITY, line text);
CREATE FUNCTION note(line text) RETURNS void LANGUAGE sql AS $$
	INSERT INTO note (line) VALUES (line);
	SELECT cqrs_emit('noted', jsonb_build_object('line', line))
$$;
-- the event's own handler notes it, too
CREATE FUNCTION on_noted(e jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO note (line) SELECT 'handled ' || (e->>'line')
$$;
SELECT cqrs_register_event_handler('noted', 'on_noted(jsonb)');
-- what is new since the last time: what was noted, and the events
CREATE TABLE seen AS SELECT 0::bigint AS position;
CREATE FUNCTION noted(OUT notes text, OUT events text) LANGUAGE plpgsql AS $$
BEGIN
	SELECT string_agg(line, ', ' ORDER BY n) INTO notes FROM note;
	DELETE FROM note;
	SELECT string_agg(e.payload->>'line', ', ' ORDER BY e.position) INTO events
	FROM seen, cqrs_events('notes', 1000, after_position => seen.position) e;
	UPDATE seen SET position = (SELECT max(e.position) FROM cqrs_topics.notes e);
END $$;

-- at each level: note, send the next, maybe catch what it raises, maybe fail
CREATE FUNCTION level(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	level int := c->'level';
	answer jsonb := '"deepest"';
BEGIN
	PERFORM note('level ' || level);
	IF level < 4 THEN
		BEGIN
			answer := cqrs_send(c->>'command', c || jsonb_build_object('level', level + 1));
			PERFORM note('after ' || level);
			IF c->'fail_after' @> to_jsonb(level) THEN
				RAISE 'failed after %', level;
			END IF;
		EXCEPTION WHEN raise_exception THEN
			IF NOT coalesce(c->'catch' @> to_jsonb(level), false) THEN
				RAISE;
			END IF;
			answer := to_jsonb(sqlerrm);
			PERFORM note('caught ' || level);
		END;
	END IF;
	IF c->'fail' @> to_jsonb(level) THEN
		RAISE 'failed at %', level;
	END IF;
	RETURN jsonb_build_object((cqrs_context()).name, answer);
END $$;
CREATE FUNCTION pass_on(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT note('passed on'), cqrs_next(); SELECT NULL::jsonb
$$;
CREATE FUNCTION guarded(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT level(c)';
CREATE FUNCTION instead(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT note('instead'); SELECT '"instead"'::jsonb$$;
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM note('fails');
	RAISE 'always' USING ERRCODE = '22012';
END $$;
SELECT cqrs_register_command('Plain', 'level(jsonb)'),
	   cqrs_register_chain('Chain', ARRAY['pass_on(jsonb)', 'level(jsonb)']),
	   cqrs_register_command('Guarded', 'guarded(jsonb)'),
	   cqrs_register_fallback('guarded(jsonb)', 'instead(jsonb)', '{08}'),
	   cqrs_register_command('Instead', 'fails(jsonb)'),
	   cqrs_register_fallback('fails(jsonb)', 'level(jsonb)', '{22}', max_failures => 0);
CREATE FUNCTION try(command text, how jsonb, OUT answer text, OUT notes text, OUT events text) LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		answer := cqrs_send(command, how || jsonb_build_object('command', command, 'level', 1));
	EXCEPTION WHEN raise_exception THEN
		answer := sqlerrm;
	END;
	ASSERT cqrs_context() IS NULL;
	SELECT * INTO notes, events FROM noted();
END $$;
CREATE TABLE attempt (id int GENERATED ALWAYS AS IDENTITY, how jsonb);
INSERT INTO attempt (how) VALUES
	('{}'), ('{"fail": [4]}'), ('{"fail": [4], "catch": [3]}'), ('{"fail": [4], "catch": [1]}'),
	('{"fail": [4, 3, 2], "catch": [1, 2, 3]}'), ('{"fail": [3], "fail_after": [3], "catch": [2, 3]}'),
	('{"fail_after": [1], "catch": [1]}'), ('{"fail_after": [1, 3], "catch": [3]}');
\x
SELECT how, t.* FROM attempt, try('Plain', how) t ORDER BY id;
\x
-- the same for handlers of a chain, for those that have a fallback, and for fallbacks
SELECT command, count(*), count(*) FILTER (WHERE replace(t.answer, command, 'Plain') = p.answer) AS same_answer,
	   count(*) FILTER (WHERE (t.notes, t.events) IS NOT DISTINCT FROM (p.notes, p.events)) AS same_effect
FROM attempt, try('Plain', how) p, unnest('{Chain,Guarded,Instead}'::text[]) command, try(command, how) t
GROUP BY command ORDER BY command;

-- SECURITY DEFINER: what its owner may, who sends it may not
CREATE ROLE regress_cqrs_owner;
CREATE ROLE regress_cqrs_user;
GRANT INSERT, SELECT ON note TO PUBLIC;
GRANT INSERT ON cqrs_topics.notes TO regress_cqrs_owner;
CREATE FUNCTION who(at text) RETURNS void LANGUAGE sql AS $$
	SELECT note(format('%s %s, called by %s', at, current_user, (cqrs_context()).caller))
$$;
CREATE FUNCTION inner_one(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT who('inner'); SELECT current_user::text$$;
CREATE FUNCTION definer(c jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM who('outer');
	RETURN jsonb_build_array(current_user, cqrs_send('Inner'));
END $$;
CREATE FUNCTION invoker(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('around', current_user, 'definer', cqrs_send('Definer'), 'behind', current_user)
$$;
CREATE FUNCTION definer_fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM who('failing'), cqrs_send('Inner');
	RAISE 'definer failed';
END $$;
CREATE FUNCTION catches(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_send('DefinerFails');
EXCEPTION WHEN raise_exception THEN
	RETURN jsonb_build_object('caught as', current_user, 'caller', (cqrs_context()).caller);
END $$;
-- run as who sends the outermost command, whoever emitted
CREATE FUNCTION on_noted_who(e jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO note (line) SELECT format('handled as %s, called by %s', current_user, (cqrs_context()).caller)
$$;
SELECT cqrs_unregister_event_handler('noted', 'on_noted(jsonb)'), cqrs_register_event_handler('noted', 'on_noted_who(jsonb)');
ALTER FUNCTION definer(jsonb) OWNER TO regress_cqrs_owner;
ALTER FUNCTION definer_fails(jsonb) OWNER TO regress_cqrs_owner;
REVOKE EXECUTE ON FUNCTION inner_one(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION inner_one(jsonb) TO regress_cqrs_owner;
SELECT cqrs_register_command('Inner', 'inner_one(jsonb)'), cqrs_register_command('Definer', 'definer(jsonb)'),
	   cqrs_register_command('Invoker', 'invoker(jsonb)'), cqrs_register_command('DefinerFails', 'definer_fails(jsonb)'),
	   cqrs_register_command('Catches', 'catches(jsonb)');
SET ROLE regress_cqrs_user;
SELECT cqrs_send('Invoker');
SELECT cqrs_send('Catches');
SELECT current_user;
\set VERBOSITY terse
SELECT cqrs_emit('noted', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('Inner');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
RESET ROLE;
SELECT line FROM note ORDER BY n;
SELECT regexp_split_to_table(events, ', (?!called)') AS events FROM noted();
-- a role that the handler's owner is not: none of what it sends is kept
REVOKE INSERT ON cqrs_topics.notes FROM regress_cqrs_owner;
SET ROLE regress_cqrs_user;
\set VERBOSITY terse
SELECT cqrs_send('Invoker');
\set VERBOSITY default
SELECT current_user;
RESET ROLE;
GRANT INSERT ON cqrs_topics.notes TO regress_cqrs_owner;
SELECT * FROM noted();

-- SET clauses hold for what is sent within, and end with the handler
CREATE SCHEMA regress_cqrs_schema;
CREATE FUNCTION regress_cqrs_schema.where_am_i() RETURNS text LANGUAGE sql AS $$SELECT 'there'$$;
CREATE FUNCTION where_am_i() RETURNS text LANGUAGE sql AS $$SELECT 'here'$$;
CREATE FUNCTION settings(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN concat_ws(' ', where_am_i(), current_setting('work_mem'), current_setting('DateStyle'));
END $$;
CREATE FUNCTION with_settings(c jsonb) RETURNS jsonb LANGUAGE plpgsql
SET search_path = regress_cqrs_schema, public SET work_mem = '1MB' AS $$
DECLARE
	answer jsonb := cqrs_send('Settings');
BEGIN
	PERFORM set_config('work_mem', '2MB', true), set_config('DateStyle', 'German', true);
	answer := jsonb_build_array(answer, cqrs_send('Settings'));
	IF c ? 'fail' THEN
		RAISE 'with settings';
	END IF;
	RETURN answer;
END $$;
CREATE FUNCTION around_settings(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb := '[]';
BEGIN
	answer := answer || cqrs_send('Settings');
	BEGIN
		answer := answer || cqrs_send('WithSettings', c);
	EXCEPTION WHEN raise_exception THEN
		answer := answer || to_jsonb(sqlerrm);
	END;
	RETURN answer || cqrs_send('Settings');
END $$;
CREATE FUNCTION pass_with_settings(c jsonb) RETURNS jsonb LANGUAGE sql SET work_mem = '1MB' AS $$
	SELECT set_config('DateStyle', 'German', true), cqrs_next(); SELECT NULL::jsonb
$$;
SELECT cqrs_register_command('Settings', 'settings(jsonb)'), cqrs_register_command('WithSettings', 'with_settings(jsonb)'),
	   cqrs_register_command('AroundSettings', 'around_settings(jsonb)'),
	   cqrs_register_chain('PassSettings', ARRAY['pass_with_settings(jsonb)', 'settings(jsonb)']);
SET DateStyle = 'ISO, MDY';
SET work_mem = '3MB';
BEGIN;
SELECT cqrs_send('AroundSettings', '{"fail": true}');
SELECT cqrs_send('Settings');
SELECT cqrs_send('PassSettings');
SAVEPOINT s;
-- what a handler sets for the transaction stays, but for what its SET clauses are for
SELECT cqrs_send('AroundSettings');
SELECT cqrs_send('Settings');
ROLLBACK TO s;
SELECT cqrs_send('Settings');
SELECT cqrs_send('AroundSettings') IS NOT NULL AS sent;
COMMIT;
SELECT cqrs_send('Settings');
RESET DateStyle;
RESET work_mem;

-- savepoints before, between, and after chains, fallbacks, domain events, and keys
SELECT cqrs_unregister_event_handler('noted', 'on_noted_who(jsonb)'), cqrs_register_event_handler('noted', 'on_noted(jsonb)');
CREATE FUNCTION leaf(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT note(c->>'line'); SELECT c->'line'$$;
CREATE FUNCTION leaf_fails(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT note('fails'); SELECT to_jsonb(1 / length(c->>'none'))$$;
SELECT cqrs_register_chain('Leaf', ARRAY['pass_on(jsonb)', 'leaf_fails(jsonb)']),
	   cqrs_register_fallback('leaf_fails(jsonb)', 'leaf(jsonb)', '{22}', max_failures => 0);
CREATE FUNCTION send(line text, key text DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_send('Leaf', jsonb_build_object('line', line, 'none', ''), key)
$$;
BEGIN;
SAVEPOINT a;
SELECT send('one', 'key 1');
SAVEPOINT b;
SELECT send('two', 'key 2');
ROLLBACK TO b;
SELECT send('two again', 'key 2');
SAVEPOINT c;
SELECT send('three');
RELEASE b;
SELECT send('two again', 'key 2');
ROLLBACK TO a;
SELECT send('four', 'key 1');
SAVEPOINT d;
SELECT send('five', 'key 5');
ROLLBACK TO d;
-- after an error, too
SAVEPOINT e;
SELECT cqrs_send('Leaf', '{"line": "six"}'), send('six', 'key 6'), 1 / (random() * 0)::int;
ROLLBACK TO e;
SELECT send('seven', 'key 5');
COMMIT;
SELECT * FROM noted();
SELECT send('four', 'key 1'), send('seven', 'key 5');
SELECT send('eight', 'key 2'), send('nine', 'key 6');
SELECT * FROM noted();
-- within a command
CREATE FUNCTION steps(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb := '[]';
BEGIN
	FOR i IN 1..3 LOOP
		BEGIN
			answer := answer || send('step ' || i, 'step ' || i);
			IF i = 2 THEN
				RAISE 'not this one';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			answer := answer || send('step ' || i || ' again', 'step ' || i);
		END;
	END LOOP;
	RETURN answer;
END $$;
SELECT cqrs_register_command('Steps', 'steps(jsonb)');
SELECT cqrs_send('Steps');
SELECT * FROM noted();
SELECT send('step 1', 'step 1'), send('step 2 again', 'step 2'), send('step 3', 'step 3');
SELECT * FROM noted();
-- prepared transactions, and procedures that commit between
BEGIN;
SELECT send('prepared', 'key p');
PREPARE TRANSACTION 'regress_cqrs_kept';
COMMIT PREPARED 'regress_cqrs_kept';
BEGIN;
SELECT send('prepared', 'key q');
PREPARE TRANSACTION 'regress_cqrs_gone';
ROLLBACK PREPARED 'regress_cqrs_gone';
SELECT send('prepared', 'key p'), send('not prepared', 'key q');
SELECT * FROM noted();
DO $$
BEGIN
	PERFORM send('first transaction', 'key t');
	COMMIT;
	PERFORM send('second transaction');
	ROLLBACK;
	PERFORM send('third transaction'), send('first transaction', 'key t');
END $$;
SELECT * FROM noted();

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE note, attempt, seen;
DROP FUNCTION note, on_noted, noted, level, pass_on, guarded, instead, fails, try, who, inner_one, definer, invoker, definer_fails,
	catches, on_noted_who, where_am_i, settings, with_settings, around_settings, pass_with_settings, leaf, leaf_fails, send, steps;
DROP SCHEMA regress_cqrs_schema CASCADE;
DROP ROLE regress_cqrs_owner, regress_cqrs_user;
