-- Fallbacks: what is called instead of handlers that fail.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('handled', 'log');
CREATE TABLE attempt (id serial, who text);

-- writes and emits first, then fails as the payload says
CREATE FUNCTION primary_handler(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('primary');
	PERFORM cqrs_emit('handled', '{"by": "primary"}');
	IF c ? 'error' THEN
		RAISE EXCEPTION USING ERRCODE = c->>'error', MESSAGE = 'primary failed';
	END IF;
	RETURN '"primary"';
END $$;
CREATE FUNCTION fallback_handler(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('fallback');
	PERFORM cqrs_emit('handled', '{"by": "fallback"}');
	IF c ? 'fallback_error' THEN
		RAISE EXCEPTION USING ERRCODE = c->>'fallback_error', MESSAGE = 'fallback failed';
	END IF;
	RETURN jsonb_build_object('fallback', c);
END $$;
SELECT cqrs_register_command('Do', 'primary_handler(jsonb)');
SELECT cqrs_register_fallback('primary_handler(jsonb)', 'fallback_handler(jsonb)', max_failures => 0);
SELECT handler, fallback, sqlstates FROM cqrs.fallback;
-- what a dispatch answers and leaves behind
CREATE FUNCTION dispatched(command text, payload jsonb, OUT answer text, OUT attempts text[], OUT events jsonb) LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		answer := coalesce(cqrs_send(command, payload)::text, 'NULL');
	EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
		answer := format('%s: %s', SQLSTATE, SQLERRM);
	END;
	SELECT array_agg(who ORDER BY id) INTO attempts FROM attempt;
	SELECT jsonb_agg(e.payload->'by') INTO events FROM cqrs_events('log') e;
	RAISE EXCEPTION USING ERRCODE = 'P0099';
EXCEPTION WHEN SQLSTATE 'P0099' THEN
END $$;
SELECT * FROM dispatched('Do', '{}');
SELECT * FROM dispatched('Do', '{"error": "22012"}');
-- by default after all errors but a few
SELECT error, d.answer LIKE '{"fallback"%' AS fallback, d.attempts
FROM unnest(ARRAY['P0001', '40001', '53100', '58030', 'XX000', '53200', 'P0004', 'XX001', 'XX002', '57000', '57014', '57P01', '57P02', '57P03', '57P04']) error,
	 dispatched('Do', jsonb_build_object('error', error)) d;
-- kept when it commits, and gone with the caller's savepoint
SELECT cqrs_send('Do', '{"error": "22012"}');
BEGIN;
INSERT INTO attempt (who) VALUES ('caller');
SAVEPOINT s;
SELECT cqrs_send('Do', '{"error": "22012"}');
ROLLBACK TO s;
SELECT cqrs_send('Do');
COMMIT;
SELECT array_agg(who ORDER BY id) FROM attempt;
SELECT array_agg(payload->'by') FROM cqrs_events('log');
-- many in one statement
TRUNCATE attempt;
SELECT count(cqrs_send('Do', CASE n % 2 WHEN 0 THEN '{}' ELSE '{"error": "22012"}'::jsonb END)) FROM generate_series(1, 200) n;
SELECT who, count(*) FROM attempt GROUP BY 1 ORDER BY 1;
TRUNCATE attempt;

-- an error of the fallback is the caller's, with both in its context
SELECT cqrs_send('Do', '{"error": "22012", "fallback_error": "P0002"}');
\echo :LAST_ERROR_SQLSTATE
SELECT who FROM attempt;
-- one that the fallback is not for, as it was
SELECT cqrs_send('Do', '{"error": "57000"}');
\echo :LAST_ERROR_SQLSTATE

-- only after some errors: codes, and classes, of which 22000 is the code of one
SELECT cqrs_unregister_fallback('primary_handler(jsonb)');
SELECT cqrs_send('Do', '{"error": "22012"}');
SELECT cqrs_register_fallback('primary_handler(jsonb)', 'fallback_handler(jsonb)', sqlstates => '{08,22000,23505,57}', max_failures => 0);
SELECT error, d.answer LIKE '{"fallback"%' AS fallback
FROM unnest(ARRAY['08000', '08006', '22000', '22012', '23505', '23503', 'P0001', '57000', '57P03', '57014', '57P01', '57P02', '53200']) error,
	 dispatched('Do', jsonb_build_object('error', error)) d;
SELECT cqrs_unregister_fallback('primary_handler(jsonb)');
SELECT cqrs_register_fallback('primary_handler(jsonb)', 'fallback_handler(jsonb)', '{57014,57P01,53200,XX001}', max_failures => 0);
SELECT error, d.answer LIKE '{"fallback"%' AS fallback
FROM unnest(ARRAY['57014', '57P01', '53200', 'XX001', 'P0001']) error, dispatched('Do', jsonb_build_object('error', error)) d;

-- a cancel comes through, also in the middle of the handler
CREATE FUNCTION slow(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT pg_sleep(600); SELECT c';
SELECT cqrs_register_command('Slow', 'slow(jsonb)');
SELECT cqrs_register_fallback('slow(jsonb)', 'fallback_handler(jsonb)', '{57014}');
SET statement_timeout = '10ms';
SELECT cqrs_send('Slow');
RESET statement_timeout;

-- what is wrong with the dispatch is no failure of the handler
SELECT cqrs_unregister_fallback('primary_handler(jsonb)');
SELECT cqrs_register_fallback('primary_handler(jsonb)', 'fallback_handler(jsonb)', max_failures => 0);
CREATE TYPE payment AS (amount int);
CREATE FUNCTION pay(p payment) RETURNS text LANGUAGE sql AS $$SELECT 'paid ' || 100 / p.amount$$;
CREATE FUNCTION pay_later(p payment) RETURNS text LANGUAGE sql AS $$SELECT 'later ' || p.amount$$;
SELECT cqrs_register_command('Pay', 'pay(payment)');
SELECT cqrs_register_fallback('pay(payment)', 'pay_later(payment)', ARRAY['22', '42']);
SELECT cqrs_send('Pay', '{"amount": 4}');
SELECT cqrs_send('Pay', '{"amount": 0}');
SELECT cqrs_send(ROW(0)::payment);
SELECT cqrs_send('Pay', '{"amount": "many"}');
SET cqrs_outbox.max_command_depth = 1;
CREATE FUNCTION nested(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send('Pay', c)$$;
SELECT cqrs_register_command('Nested', 'nested(jsonb)');
\set VERBOSITY terse
SELECT cqrs_send('Nested', '{"amount": 0}');
\set VERBOSITY default
RESET cqrs_outbox.max_command_depth;
SELECT cqrs_send('Nested', '{"amount": 0}');
CREATE ROLE regress_cqrs_fallback;
REVOKE EXECUTE ON FUNCTION pay(payment), pay_later(payment) FROM PUBLIC;
SET ROLE regress_cqrs_fallback;
SELECT cqrs_send('Pay', '{"amount": 0}');
RESET ROLE;
-- EXECUTE on the fallback counts only when it is called
GRANT EXECUTE ON FUNCTION pay(payment) TO regress_cqrs_fallback;
SET ROLE regress_cqrs_fallback;
SELECT cqrs_send('Pay', '{"amount": 4}');
SELECT cqrs_send('Pay', '{"amount": 0}');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
-- registering needs it on both
GRANT EXECUTE ON FUNCTION cqrs_register_fallback TO regress_cqrs_fallback;
SET ROLE regress_cqrs_fallback;
SELECT cqrs_register_fallback('pay(payment)', 'pay_later(payment)');
SELECT cqrs_unregister_fallback('pay(payment)');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION cqrs_register_fallback FROM regress_cqrs_fallback;

-- a query's, which writes nothing either
CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM 1 / (c->>'by')::int;
	RETURN '"asked"';
END $$;
CREATE FUNCTION ask_cache(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF c ? 'write' THEN
		INSERT INTO attempt (who) VALUES ('ask_cache');
	END IF;
	RETURN '"cached"';
END $$;
SELECT cqrs_register_query('Ask', 'ask(jsonb)');
SELECT cqrs_register_fallback('ask(jsonb)', 'ask_cache(jsonb)');
SELECT cqrs_query('Ask', '{"by": 1}'), cqrs_query('Ask', '{"by": 0}');
SELECT cqrs_query('Ask', '{"by": 0, "write": true}');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
INSERT INTO attempt (who) VALUES ('before');
SELECT cqrs_query('Ask', '{"by": 0}');
INSERT INTO attempt (who) VALUES ('after');
COMMIT;
SELECT array_agg(who ORDER BY id) FROM attempt;
TRUNCATE attempt;
BEGIN READ ONLY;
SELECT cqrs_query('Ask', '{"by": 0}');
COMMIT;

-- in a chain: handler and fallback may pass on, also one that fails afterwards
CREATE FUNCTION first(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('first');
	IF c ? 'pass' THEN
		PERFORM cqrs_next();
	END IF;
	IF c ? 'fail' THEN
		RAISE 'first failed';
	END IF;
	RETURN '"first"';
END $$;
CREATE FUNCTION instead(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('instead');
	IF c ? 'pass_instead' THEN
		RETURN cqrs_next();
	END IF;
	RETURN '"instead"';
END $$;
CREATE FUNCTION last(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('last');
	RETURN '"last"';
END $$;
SELECT cqrs_register_chain('Chain', ARRAY['first(jsonb)', 'last(jsonb)']);
SELECT cqrs_register_fallback('first(jsonb)', 'instead(jsonb)', max_failures => 0);
SELECT payload, d.answer, d.attempts
FROM unnest(ARRAY['{}', '{"pass": 1}', '{"fail": 1}', '{"pass": 1, "fail": 1}', '{"fail": 1, "pass_instead": 1}',
				  '{"pass": 1, "fail": 1, "pass_instead": 1}']::jsonb[]) payload, dispatched('Chain', payload) d;

-- the same fallback of several; a fallback's own fallback is not called
SELECT cqrs_register_fallback('instead(jsonb)', 'last(jsonb)');
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / 0)';
SELECT cqrs_register_command('Fails', 'fails(jsonb)');
SELECT cqrs_register_fallback('fails(jsonb)', 'primary_handler(jsonb)');
SELECT cqrs_send('Fails');
SELECT cqrs_send('Fails', '{"error": "22012"}');
SELECT who FROM attempt;
TRUNCATE attempt;

-- nested: what fails below is caught once
CREATE FUNCTION sends(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('sends');
	RETURN jsonb_build_array(cqrs_send('Do', c), 1 / (c->>'by')::int);
END $$;
SELECT cqrs_register_command('Sends', 'sends(jsonb)');
SELECT cqrs_register_fallback('sends(jsonb)', 'instead(jsonb)');
SELECT payload, d.answer, d.attempts FROM unnest(ARRAY['{"by": 1}', '{"by": 1, "error": "P0001"}', '{"by": 0, "error": "P0001"}',
				  '{"by": 1, "error": "P0001", "fallback_error": "P0002"}']::jsonb[]) payload, dispatched('Sends', payload) d;

-- without end: an error that no fallback on its way is for, and one that each is for
CREATE FUNCTION endless(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send('Endless', $1)$$;
CREATE FUNCTION enough(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / 0)';
SELECT cqrs_register_command('Endless', 'endless(jsonb)');
SELECT cqrs_register_fallback('endless(jsonb)', 'enough(jsonb)', '{08}');
\set VERBOSITY terse
SELECT cqrs_send('Endless', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unregister_fallback('endless(jsonb)');
SELECT cqrs_register_fallback('endless(jsonb)', 'enough(jsonb)', max_failures => 0);
SELECT cqrs_send('Endless', '{}');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default

-- handlers in SQL and C, void ones; SECURITY DEFINER and SET clauses are undone
CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET work_mem = '1MB' AS $$
BEGIN
	PERFORM set_config('cqrs.who', 'nothing', false);
	RAISE 'nothing works';
END $$;
ALTER FUNCTION nothing(jsonb) OWNER TO regress_cqrs_fallback;
CREATE FUNCTION who(jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_array(current_user = session_user, current_setting('work_mem'), current_setting('cqrs.who'))
$$;
SET work_mem = '3MB';
SET cqrs.who = 'unchanged';
SELECT cqrs_register_command('Nothing', 'nothing(jsonb)');
SELECT cqrs_register_fallback('nothing(jsonb)', 'who(jsonb)');
SELECT cqrs_send('Nothing');
RESET work_mem;
SELECT cqrs_register_command('C', 'jsonb_array_length(jsonb)');
SELECT cqrs_send('C');
CREATE FUNCTION no_array(jsonb) RETURNS int LANGUAGE sql AS 'SELECT -1';
SELECT cqrs_register_fallback('jsonb_array_length(jsonb)', 'no_array(jsonb)');
SELECT cqrs_send('C');

-- handlers of events, in the emitting transaction
CREATE TABLE done (n int GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION notify_it(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO done (what) VALUES ('notify ' || (e.payload->>'n'));
	PERFORM cqrs_emit('told', e.payload);
	IF e.payload ? 'fail' THEN
		RAISE EXCEPTION USING MESSAGE = 'no', ERRCODE = e.payload->>'fail';
	END IF;
END $$;
CREATE FUNCTION note_it(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO done (what) VALUES ('note ' || (e.payload->>'n'));
	IF e.payload ? 'fail_too' THEN
		RAISE EXCEPTION 'neither';
	END IF;
	PERFORM cqrs_emit('noted', jsonb_build_object('context', (cqrs_context()).name) || e.payload);
END $$;
CREATE FUNCTION told(jsonb) RETURNS void LANGUAGE sql AS $$INSERT INTO done (what) VALUES ('told ' || ($1->>'n'))$$;
CREATE FUNCTION with_null(jsonb) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'payload %', $1; END $$;
CREATE FUNCTION null_too(jsonb) RETURNS text LANGUAGE sql AS $$INSERT INTO done (what) VALUES (coalesce($1::text, 'null')) RETURNING 'ok'$$;
SELECT cqrs_register_event('happened'), cqrs_register_event('told', 'told'), cqrs_register_event('noted', 'told'),
	   cqrs_register_event_handler('happened', 'notify_it(cqrs_event)'), cqrs_register_event_handler('told', 'told(jsonb)'),
	   cqrs_register_event_handler('noted', 'told(jsonb)'),
	   cqrs_register_fallback('notify_it(cqrs_event)', 'note_it(cqrs_event)', sqlstates => '{22}', max_failures => 2);
TRUNCATE done;
SELECT cqrs_emit('happened', '{"n": 1}') IS NOT NULL AS emitted;
SELECT cqrs_emit('happened', '{"n": 2, "fail": "22012"}') IS NOT NULL AS emitted;
-- what the one that failed wrote and emitted is gone
SELECT what FROM done ORDER BY n;
SELECT event_name, payload FROM cqrs_events('told') ORDER BY position;
-- another error, and one of the fallback
SELECT cqrs_emit('happened', '{"n": 3, "fail": "23505"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('happened', '{"n": 4, "fail": "22012", "fail_too": 1}');
-- it was the second failure in a row: the breaker is open
SELECT handler, state, failures FROM cqrs_breaker_status WHERE handler LIKE '%notify_it%';
TRUNCATE done;
SELECT cqrs_emit('happened', '{"n": 5}') IS NOT NULL AS emitted;
SELECT what FROM done ORDER BY n;
-- a tombstone
SELECT cqrs_register_event_handler('told', 'with_null(jsonb)'), cqrs_register_fallback('with_null(jsonb)', 'null_too(jsonb)');
TRUNCATE done;
SELECT cqrs_emit('told', NULL) IS NOT NULL AS emitted;
SELECT what FROM done ORDER BY n;
-- functions that are gone
DROP FUNCTION null_too(jsonb);
SELECT cqrs_emit('told', NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT object, detail, hint FROM cqrs_health() WHERE problem = 'fallback_missing';
DROP FUNCTION with_null(jsonb);
SELECT cqrs_unregister_fallback('with_null(jsonb)');
SELECT cqrs_unregister_fallback('public.with_null(pg_catalog.jsonb)', if_exists => true);
SELECT cqrs_drop_topic('told', cascade => true);

-- registering
CREATE FUNCTION many(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION as_text(jsonb) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION of_int(int) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1)';
SELECT cqrs_register_fallback('first(jsonb)', 'last(jsonb)');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_fallback('last(jsonb)', 'last(jsonb)');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_fallback(NULL, 'last(jsonb)');
SELECT cqrs_register_fallback('last(jsonb)', NULL);
SELECT cqrs_register_fallback('last(jsonb)', 'not_there(jsonb)');
SELECT cqrs_register_fallback('many(jsonb)', 'last(jsonb)');
SELECT cqrs_register_fallback('last(jsonb)', 'many(jsonb)');
SELECT cqrs_register_fallback('of_int(int)', 'of_int(int)');
SELECT cqrs_register_fallback('last(jsonb)', 'pay_later(payment)');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_fallback('as_text(jsonb)', 'no_array(jsonb)');
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)', '{}');
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)', '{22,NULL}');
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)', '{22,2201}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)', '{p0001}');
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)', '{division_by_zero}');
BEGIN READ ONLY;
SELECT cqrs_register_fallback('last(jsonb)', 'first(jsonb)');
ROLLBACK;
SELECT cqrs_unregister_fallback('last(jsonb)');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unregister_fallback(NULL);
SELECT cqrs_register_fallback('as_text(jsonb)', 'last(jsonb)');
-- undone with its transaction
BEGIN;
SELECT cqrs_unregister_fallback('first(jsonb)');
SELECT cqrs_send('Chain', '{"fail": 1}');
ROLLBACK;
SELECT cqrs_send('Chain', '{"fail": 1}');

-- a fallback that is gone
DROP FUNCTION instead(jsonb);
SELECT cqrs_send('Chain', '{}');
SELECT cqrs_send('Chain', '{"fail": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT object, detail, hint FROM cqrs_health() WHERE problem = 'fallback_missing' AND object LIKE '%Chain%';

\set VERBOSITY terse
DROP FUNCTION notify_it, note_it;
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE attempt, done;
DROP FUNCTION primary_handler, fallback_handler, dispatched, slow, pay, pay_later, nested, ask, ask_cache, first, last,
	fails, sends, endless, enough, nothing, who, no_array, many, as_text, of_int, told;
DROP TYPE payment;
DROP ROLE regress_cqrs_fallback;
