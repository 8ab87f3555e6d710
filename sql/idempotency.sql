-- Idempotent commands: handled once for each key, however often they are sent.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('added', 'additions');
CREATE TABLE item (seq serial, n int, sender text DEFAULT current_user);
CREATE TYPE new_item AS (n int);
CREATE VIEW key AS
	SELECT 0 AS segment, * FROM cqrs.idempotency_0
	UNION ALL SELECT 1, * FROM cqrs.idempotency_1
	UNION ALL SELECT 2, * FROM cqrs.idempotency_2;
CREATE FUNCTION add_item(c new_item) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	result int;
BEGIN
	INSERT INTO item (n) VALUES (c.n) RETURNING seq INTO result;
	PERFORM cqrs_emit('added', to_jsonb(c));
	IF c.n < 0 THEN
		RAISE 'item % is negative', c.n USING ERRCODE = '22003';
	END IF;
	RETURN nullif(result, 3);
END $$;
CREATE FUNCTION remove_item(jsonb) RETURNS void LANGUAGE sql AS $$
	DELETE FROM item WHERE n = ($1->>'n')::int
$$;
CREATE FUNCTION outcome(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT ' || call;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT cqrs_register_command('Add', 'add_item(new_item)');
SELECT cqrs_register_command('Remove', 'remove_item(jsonb)');

-- the same answer, and one effect
SELECT cqrs_send('Add', '{"n": 1}', 'a');
SELECT cqrs_send('Add', '{"n": 1}', 'a');
SELECT cqrs_send('Add', '{ "n":1 }', idempotency_key => 'a');
SELECT cqrs_send('Add', '{"n": 1}', 'b');
-- an answer of NULL is an answer; void, too
SELECT cqrs_send('Add', '{"n": 3}', 'c') IS NULL AS is_null;
SELECT cqrs_send('Add', '{"n": 3}', 'c') IS NULL AS is_null;
SELECT cqrs_send('Remove', '{"n": 3}', 'd') IS NULL AS is_null;
SELECT cqrs_send('Remove', '{"n": 3}', 'd') IS NULL AS is_null;
-- what jsonb takes for equal is the same payload, numbers too; what it does not
-- is another, whatever it looks like
CREATE FUNCTION without_nulls(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_strip_nulls($1)';
SELECT cqrs_register_command('Echo', 'without_nulls');
SELECT cqrs_send('Echo', '{"a": [1, {"b": 1.50}], "c": "1", "d": null}', 'equal') AS first,
	   cqrs_send('Echo', '{"d": null, "c": "1", "a": [1.0, {"b": 15e-1}]}', 'equal') AS again;
SELECT * FROM unnest(ARRAY['{"a": [1, {"b": 1.5}], "c": 1, "d": null}', '{"a": [1, {"b": 1.5}], "c": "1"}',
	'{"a": [[1, {"b": 1.5}]], "c": "1", "d": null}', '{"a": [1, {"b": 1.5001}], "c": "1", "d": null}', '{}']) other
WHERE outcome(format('cqrs_send(''Echo'', %L, ''equal'')', other)) <> 'OB002';
-- who wants to know whether it was handled already
SELECT * FROM cqrs_send_once('Echo', '{"n": 1}', 'told');
SELECT * FROM cqrs_send_once('Echo', '{"n": 1}', 'told');
SELECT * FROM cqrs_send('Echo', '{"n": 1}', 'told');
SELECT * FROM cqrs_send_once('Echo', NULL, 'empty');
SELECT * FROM cqrs_send_once('Echo', '{}', 'empty');
SELECT cqrs_send_once('Echo', '{"n": 1}', NULL);
\echo :LAST_ERROR_SQLSTATE
-- without a key, each is one
SELECT cqrs_send('Add', '{"n": 4}');
SELECT cqrs_send('Add', '{"n": 4}', NULL);
-- in one statement, and in one transaction
SELECT cqrs_send('Add', '{"n": 5}', 'e') FROM generate_series(1, 3);
BEGIN;
SELECT cqrs_send('Add', '{"n": 6}', 'f');
SELECT cqrs_send('Add', '{"n": 6}', 'f');
COMMIT;
SELECT seq, n FROM item ORDER BY seq;
SELECT payload FROM cqrs_events('additions');

-- another payload, or another command
SELECT cqrs_send('Add', '{"n": 2}', 'a');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('Remove', '{"n": 1}', 'a');
\echo :LAST_ERROR_SQLSTATE
-- what is not a key, and what cannot be sent with one
SELECT cqrs_send('Add', '{"n": 1}', '');
SELECT cqrs_send('Add', '{"n": 1}', repeat('x', 256));
SELECT cqrs_send('Add', '{"n": 7}', repeat('x', 255)) = cqrs_send('Add', '{"n": 7}', repeat('x', 255)) AS same;
SELECT cqrs_send('NoSuchCommand', '{}', 'g');
SELECT cqrs_send('Add', '[]', 'g');
BEGIN READ ONLY;
SELECT cqrs_send('Add', '{"n": 1}', 'a');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- what failed, or was rolled back, has left no answer
SELECT cqrs_send('Add', '{"n": -1}', 'h');
SELECT cqrs_send('Add', '{"n": 8}', 'h') > '0' AS answered;
BEGIN;
SELECT cqrs_send('Add', '{"n": 9}', 'i') > '0' AS answered;
SAVEPOINT s;
SELECT cqrs_send('Add', '{"n": 10}', 'j') > '0' AS answered;
ROLLBACK TO s;
SELECT cqrs_send('Add', '{"n": 11}', 'j') > '0' AS answered;
COMMIT;
SELECT n FROM item WHERE n > 7 ORDER BY n;
SELECT idempotency_key, command_name, answer > '0' AS answered FROM key WHERE length(idempotency_key) = 1 ORDER BY 1;

-- a handler may use keys, but not its own command's
CREATE FUNCTION add_with(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_send('Add', '{"n": 20}', c->>'key')
$$;
SELECT cqrs_register_command('AddWith', 'add_with(jsonb)');
SELECT cqrs_send('AddWith', '{"key": "k2"}', 'k') > '0' AS answered;
SELECT cqrs_send('AddWith', '{"key": "k2"}', 'k') = cqrs_send('Add', '{"n": 20}', 'k2') AS same;
SELECT cqrs_send('AddWith', '{"key": "l"}', 'l');
\echo :LAST_ERROR_SQLSTATE
-- ... whose use ends with an error, too
SELECT cqrs_send('AddWith', '{"key": "m"}', 'l') > '0' AS answered;
SELECT count(*) FROM item WHERE n = 20;

-- a chain, large answers
CREATE FUNCTION pass_on(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
CREATE FUNCTION answer_large(jsonb) RETURNS text LANGUAGE sql AS $$
	INSERT INTO item (n) VALUES (30);
	SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i
$$;
SELECT cqrs_register_chain('Large', ARRAY['pass_on(jsonb)', 'answer_large(jsonb)']);
SELECT cqrs_send('Large', '{}', 'n') = cqrs_send('Large', '{}', 'n') AS same, length(cqrs_send('Large', '{}', 'n')::text);
SELECT count(*) FROM item WHERE n = 30;

-- each role has its keys; a repeat takes EXECUTE, as the command does
CREATE ROLE regress_cqrs_sender;
GRANT USAGE ON SEQUENCE item_seq_seq TO regress_cqrs_sender;
GRANT INSERT, SELECT ON item TO regress_cqrs_sender;
GRANT INSERT ON cqrs_topics.additions TO regress_cqrs_sender;
REVOKE EXECUTE ON FUNCTION add_item FROM PUBLIC;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Add', '{"n": 40}', 'a');
RESET ROLE;
GRANT EXECUTE ON FUNCTION add_item TO regress_cqrs_sender;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Add', '{"n": 40}', 'a') > '0' AS answered;
SELECT cqrs_send('Add', '{"n": 40}', 'a') > '0' AS answered;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION add_item FROM regress_cqrs_sender;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Add', '{"n": 40}', 'a') > '0' AS answered;
SELECT count(*) FROM cqrs.idempotency_0;
RESET ROLE;
SELECT sender = 'regress_cqrs_sender' AS by_sender FROM item WHERE n = 40;
-- whoever's handler sends, it is the current user's key
CREATE FUNCTION add_as_owner(n int, key text) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS $$
	SELECT cqrs_send('Add', jsonb_build_object('n', n), key)
$$;
SET ROLE regress_cqrs_sender;
SELECT add_as_owner(1, 'a');
RESET ROLE;

-- keys are looked for in every table, and written to them in turn
DO $$
DECLARE
	segment int;
	years int;
	seconds bigint;
BEGIN
	FOR segment IN 0..2 LOOP
		EXECUTE format('INSERT INTO cqrs.idempotency_%s SELECT role, role_name, ''moved '' || %1$s, command_name, request, answer, stored_at'
					   ' FROM key WHERE idempotency_key = ''e''', segment);
		ASSERT cqrs_send('Add', '{"n": 5}', 'moved ' || segment) = cqrs_send('Add', '{"n": 5}', 'e');
	END LOOP;
	ASSERT (SELECT count(*) FROM item WHERE n = 5) = 1;
	FOR years IN 5..25 LOOP
		seconds := years * 365 * 86400;
		PERFORM set_config('cqrs_outbox.idempotency_retention', seconds || 's', true);
		PERFORM cqrs_send('Remove', '{}', 'years ' || years);
		ASSERT (SELECT k.segment FROM key k WHERE idempotency_key = 'years ' || years) =
			floor(extract(epoch FROM now() - '2000-01-01 UTC') / seconds)::int % 3;
	END LOOP;
	ASSERT (SELECT count(DISTINCT k.segment) FROM key k WHERE idempotency_key LIKE 'years %') = 3;
END $$;

-- what is older than that is truncated; not because of its table's turn
SELECT topic, action, detail FROM cqrs_maintain();
UPDATE cqrs.idempotency_1 SET stored_at = now() - interval '1 day';
UPDATE cqrs.idempotency_2 SET stored_at = now() - interval '1 day';
UPDATE cqrs.idempotency_2 SET stored_at = now() - interval '23:59' WHERE idempotency_key = 'moved 2';
SELECT * FROM cqrs_maintain('additions');
SELECT * FROM cqrs_maintain();
SELECT segment, count(*) > 0 AS has_keys FROM key GROUP BY segment ORDER BY segment;
SELECT pg_relation_size('cqrs.idempotency_1'), pg_relation_size('cqrs.idempotency_1_pkey') <= 8192 AS small;
SET cqrs_outbox.idempotency_retention = 0;
SELECT * FROM cqrs_maintain();
SELECT * FROM cqrs_maintain();
RESET cqrs_outbox.idempotency_retention;
SELECT count(*) FROM key;
-- then the command is handled again
SELECT cqrs_send('Add', '{"n": 5}', 'e') > '0' AS answered;
SELECT count(*) FROM item WHERE n = 5;
-- nothing is left of what was rolled back, either
BEGIN;
SELECT cqrs_send('Add', '{"n": 50}', 'o') > '0' AS answered;
ROLLBACK;
SET cqrs_outbox.idempotency_retention = 0;
SELECT DISTINCT action FROM cqrs_maintain();
RESET cqrs_outbox.idempotency_retention;
SET ROLE regress_cqrs_sender;
SET cqrs_outbox.idempotency_retention = 0;
RESET ROLE;

DROP VIEW key;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION outcome, add_item, remove_item, add_with, pass_on, answer_large, add_as_owner, without_nulls;
DROP TABLE item;
DROP TYPE new_item;
DROP ROLE regress_cqrs_sender;
