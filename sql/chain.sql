-- Chains of responsibility: commands with several handlers.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('handled', 'log');
CREATE TABLE attempt (id serial, who text);

-- each writes and emits first, then answers or passes on
CREATE FUNCTION small(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('small');
	PERFORM cqrs_emit('handled', '{"by": "small"}');
	IF (c->>'amount')::int < 10 THEN
		RETURN '"small"';
	END IF;
	RETURN cqrs_next();
END $$;
CREATE FUNCTION medium(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	INSERT INTO attempt (who) VALUES ('medium');
	SELECT cqrs_emit('handled', '{"by": "medium"}');
	SELECT CASE WHEN (c->>'amount')::int < 100 THEN '"medium"' ELSE cqrs_next() END
$$;
CREATE TYPE payment AS (amount int);
CREATE FUNCTION large(p payment) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('large');
	PERFORM cqrs_emit('handled', '{"by": "large"}');
	IF p.amount >= 1000 THEN
		PERFORM cqrs_next();
		RETURN 'passed on';
	ELSIF p.amount = 999 THEN
		RETURN NULL;
	END IF;
	RETURN 'large';
END $$;
SELECT cqrs_register_chain('Pay', ARRAY['small(jsonb)', 'medium(jsonb)', 'large(payment)']);
SELECT command_name, kind, handlers FROM cqrs.command;
-- what the handlers left behind of this dispatch
CREATE FUNCTION dispatched(amount int, OUT answer text, OUT attempts text[], OUT events jsonb) LANGUAGE plpgsql AS $$
BEGIN
	answer := coalesce(cqrs_send('Pay', jsonb_build_object('amount', amount))::text, 'NULL');
	SELECT array_agg(who ORDER BY id) INTO attempts FROM attempt;
	SELECT jsonb_agg(payload->'by') INTO events FROM cqrs_events('log');
	RAISE EXCEPTION USING ERRCODE = 'P0099';
EXCEPTION WHEN SQLSTATE 'P0099' THEN
END $$;
SELECT amount, d.* FROM unnest(ARRAY[1, 10, 100, 999, 1000]) amount, dispatched(amount) d;

-- each is called until one answers, none after it, and for each dispatch anew; what
-- is rolled back does not undo a sequence
CREATE SEQUENCE by_card;
CREATE SEQUENCE by_transfer;
CREATE SEQUENCE by_cash;
CREATE SEQUENCE by_default;
CREATE FUNCTION pay_by(means regclass, c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT nextval(means);
	SELECT CASE WHEN c->>'by' = means::text OR means = 'by_default'::regclass THEN to_jsonb(means) ELSE cqrs_next() END
$$;
CREATE FUNCTION by_card(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT pay_by('by_card', c)$$;
CREATE FUNCTION by_transfer(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT pay_by('by_transfer', c)$$;
CREATE FUNCTION by_cash(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT pay_by('by_cash', c)$$;
CREATE FUNCTION by_default(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT pay_by('by_default', c)$$;
SELECT cqrs_register_chain('PayBy', ARRAY['by_card(jsonb)', 'by_transfer(jsonb)', 'by_cash(jsonb)', 'by_default(jsonb)']);
CREATE FUNCTION pay_by(means text, OUT answer jsonb, OUT card bigint, OUT transfer bigint, OUT cash bigint, OUT "default" bigint)
LANGUAGE plpgsql AS $$
BEGIN
	answer := cqrs_send('PayBy', jsonb_build_object('by', means));
	SELECT pg_sequence_last_value('by_card'), pg_sequence_last_value('by_transfer'),
		   pg_sequence_last_value('by_cash'), pg_sequence_last_value('by_default')
	INTO card, transfer, cash, "default";
END $$;
SELECT means, called.* FROM unnest('{by_card,by_transfer,by_cash,by_shells,by_card}'::text[]) means, pay_by(means) called;

-- kept when they commit; savepoints around them
SELECT cqrs_send('Pay', '{"amount": 50}');
BEGIN;
INSERT INTO attempt (who) VALUES ('caller');
SAVEPOINT s;
SELECT cqrs_send('Pay', '{"amount": 500}');
ROLLBACK TO s;
SELECT cqrs_send('Pay', '{"amount": 5}');
SAVEPOINT t;
SELECT cqrs_send('Pay', '{"amount": 5000}') IS NULL AS nobody;
RELEASE t;
COMMIT;
SELECT array_agg(who ORDER BY id) FROM attempt;
SELECT array_agg(payload->'by') FROM cqrs_events('log');
-- many in one statement, also when none of them has written before
TRUNCATE attempt;
SELECT cqrs_send('Pay', jsonb_build_object('amount', n * 25)) AS answer, count(*)
FROM generate_series(0, 200) n GROUP BY 1 ORDER BY 1;
SELECT who, count(*) FROM attempt GROUP BY 1 ORDER BY 1;

-- an error does not pass on: it is the caller's
CREATE FUNCTION picky(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO attempt (who) VALUES ('picky');
	PERFORM 1 / (c->>'by')::int;
	RETURN cqrs_next();
END $$;
SELECT cqrs_register_chain('Picky', ARRAY['small(jsonb)', 'picky(jsonb)', 'medium(jsonb)']);
SELECT cqrs_send('Picky', '{"amount": 20, "by": 0}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('Picky', '{"amount": 20, "by": 1}');
-- and what was written before it is gone when it is caught
CREATE FUNCTION catch() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE attempt;
	BEGIN
		PERFORM cqrs_send('Picky', '{"amount": 20, "by": 0}');
	EXCEPTION WHEN division_by_zero THEN
		INSERT INTO attempt (who) VALUES ('catch');
	END;
	RETURN (SELECT string_agg(who, ' ' ORDER BY id) FROM attempt);
END $$;
SELECT catch();
-- a payload that a later handler does not take
SELECT cqrs_send('Pay', '{"amount": 100, "unknown": 1}');
SELECT cqrs_send('Pay', '{"amount": 10, "unknown": 1}');

-- a composite value: what the first handler takes, converted for the others
CREATE TYPE money_payment AS (amount numeric(10, 0));
CREATE FUNCTION nobody(p payment) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
CREATE FUNCTION other_type(p money_payment) RETURNS text LANGUAGE sql AS $$
	SELECT CASE WHEN p.amount = 7 THEN 'seven' ELSE cqrs_next()::text END
$$;
CREATE FUNCTION as_jsonb(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'as jsonb ' || c::text$$;
SELECT cqrs_register_chain('Typed', ARRAY['nobody(payment)', 'other_type(money_payment)', 'as_jsonb(jsonb)']);
SELECT cqrs_send(ROW(7)::payment);
SELECT cqrs_send(ROW(8)::payment);
SELECT cqrs_send(ROW(8)::money_payment);

-- the flag belongs to the innermost dispatch
CREATE FUNCTION outer_handler(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN jsonb_build_object('inner', cqrs_send('Pay', c), 'outer', 'answered');
END $$;
CREATE FUNCTION outer_next(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_next();
	RETURN cqrs_send('Pay', c);
END $$;
SELECT cqrs_register_chain('Outer', ARRAY['outer_next(jsonb)', 'outer_handler(jsonb)']);
SELECT cqrs_send('Outer', '{"amount": 1000}');
SELECT cqrs_send('Outer', '{"amount": 1}');
-- passed on, whatever the handler does afterwards
CREATE FUNCTION caught_next(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM cqrs_next();
		PERFORM 1/0;
	EXCEPTION WHEN division_by_zero THEN
	END;
	RETURN 'answer';
END $$;
SELECT cqrs_register_chain('Caught', ARRAY['caught_next(jsonb)', 'as_jsonb(jsonb)']);
SELECT cqrs_send('Caught');

-- only a handler of a chain can pass on
SELECT cqrs_next();
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION alone(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
CREATE FUNCTION sends_alone(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send('Alone')$$;
CREATE FUNCTION ask_alone(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_query('AskAlone')$$;
SELECT cqrs_register_command('Alone', 'alone(jsonb)');
SELECT cqrs_register_query('AskAlone', 'alone(jsonb)');
SELECT cqrs_register_chain('SendsAlone', ARRAY['sends_alone(jsonb)', 'ask_alone(jsonb)']);
SELECT cqrs_send('Alone');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_query('AskAlone');
SELECT cqrs_send('SendsAlone');
SELECT cqrs_next();

-- SECURITY DEFINER and SET clauses; settings of one that passed on are gone
CREATE ROLE regress_cqrs_chain;
CREATE FUNCTION definer(jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET work_mem = '1MB' AS $$
BEGIN
	PERFORM set_config('cqrs.who', current_user || ' ' || current_setting('work_mem'), false);
	RETURN cqrs_next();
END $$;
ALTER FUNCTION definer(jsonb) OWNER TO regress_cqrs_chain;
CREATE FUNCTION invoker(jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s %s %s', current_user = session_user, current_setting('work_mem'), current_setting('cqrs.who'))
$$;
SELECT cqrs_register_chain('Who', ARRAY['definer(jsonb)', 'invoker(jsonb)']);
SET work_mem = '3MB';
SET cqrs.who = 'unchanged';
SELECT cqrs_send('Who');
RESET work_mem;

-- EXECUTE on each handler that is tried
REVOKE EXECUTE ON FUNCTION invoker(jsonb) FROM PUBLIC;
SET ROLE regress_cqrs_chain;
SELECT cqrs_send('Who');
RESET ROLE;

-- in a query, nothing is written
CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send(c->>'command', c - 'command')$$;
SELECT cqrs_register_query('Ask', 'ask(jsonb)');
SELECT cqrs_query('Ask', '{"command": "Pay", "amount": 1}');
SELECT cqrs_query('Ask', '{"command": "Caught"}');

-- a handler in C
SELECT cqrs_register_chain('C', ARRAY['nobody(payment)', 'jsonb_typeof(jsonb)']);
SELECT cqrs_send('C', '{"amount": 1}');

-- nested in itself
CREATE FUNCTION deeper(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF (c->>'n')::int = 0 THEN
		RETURN cqrs_next();
	END IF;
	RETURN jsonb_build_array(c->'n', cqrs_send('Deeper', jsonb_build_object('n', (c->>'n')::int - 1)));
END $$;
SELECT cqrs_register_chain('Deeper', ARRAY['deeper(jsonb)', 'as_jsonb(jsonb)']);
SELECT cqrs_send('Deeper', '{"n": 3}');

-- and without end: an error through many subtransactions
CREATE FUNCTION endless(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send('Endless')$$;
CREATE FUNCTION endless_plpgsql(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RETURN cqrs_send('EndlessToo'); END$$;
SELECT cqrs_register_chain('Endless', ARRAY['endless(jsonb)', 'as_jsonb(jsonb)']);
SELECT cqrs_register_chain('EndlessToo', ARRAY['endless_plpgsql(jsonb)', 'as_jsonb(jsonb)']);
\set VERBOSITY terse
SELECT cqrs_send('Endless');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('EndlessToo');

-- a cancel is not an error that a handler of a chain can keep
CREATE FUNCTION slow(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_next();
	PERFORM pg_sleep(600);
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	RETURN NULL;
END $$;
SELECT cqrs_register_chain('Slow', ARRAY['slow(jsonb)', 'as_jsonb(jsonb)']);
SET statement_timeout = 10;
SELECT cqrs_send('Slow');
RESET statement_timeout;
\set VERBOSITY default

-- nor by the handler of a subscription that one of a chain has drained
CREATE FUNCTION passes_too(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_next();
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RAISE WARNING '%', SQLERRM;
END $$;
CREATE FUNCTION drains(jsonb) RETURNS text LANGUAGE sql AS $$SELECT cqrs_drain('passing') || ' drained'$$;
SELECT cqrs_register_event('passed', 'passed'), cqrs_register_chain('Drains', ARRAY['drains(jsonb)', 'as_jsonb(jsonb)']);
SELECT cqrs_subscribe('passing', '{passed}', 'passes_too(cqrs_event)');
SELECT cqrs_emit('passed', '{}') IS NOT NULL AS emitted;
SELECT cqrs_send('Drains');
SELECT cqrs_unsubscribe('passing');
SELECT cqrs_drop_topic('passed', cascade => true);
DROP FUNCTION passes_too;

-- registering
CREATE FUNCTION many(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
SELECT cqrs_register_chain('x', ARRAY['small(jsonb)', 'medium(jsonb)', 'small(jsonb)']);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_chain('x', ARRAY['small(jsonb)', NULL]);
SELECT cqrs_register_chain('x', NULL::text[]);
SELECT cqrs_register_chain('x', handlers => '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_chain('x', ARRAY[['small(jsonb)']]);
SELECT cqrs_register_chain('x', ARRAY['small(jsonb)', 'pg_sleep(float8)']);
SELECT cqrs_register_chain('x', ARRAY['small(jsonb)', 'many(jsonb)']);
SELECT cqrs_register_chain('x', ARRAY['small(jsonb)', 'not_there(jsonb)']);
SELECT cqrs_register_chain('x', '{small,large}'::text[]);
SELECT handlers FROM cqrs.command WHERE command_name = 'x';

-- a handler that is gone: those before it still answer
DROP FUNCTION medium(jsonb);
SELECT cqrs_send('Pay', '{"amount": 1}');
SELECT cqrs_send('Pay', '{"amount": 10}');
DROP FUNCTION small(jsonb);
SELECT object, detail, hint FROM cqrs_health() WHERE problem = 'command_handler_missing' AND object LIKE '%Pay%';
SELECT cqrs_unregister_command('Pay');
SELECT cqrs_send('Pay');

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE attempt;
DROP SEQUENCE by_card, by_transfer, by_cash, by_default;
DROP FUNCTION pay_by(regclass, jsonb), pay_by(text), by_card, by_transfer, by_cash, by_default;
DROP FUNCTION large, dispatched, picky, catch, nobody, other_type, as_jsonb, outer_handler, outer_next, caught_next, alone,
	sends_alone, ask_alone, definer, invoker, ask, deeper, endless, endless_plpgsql, slow, many, drains;
DROP TYPE payment, money_payment;
DROP ROLE regress_cqrs_chain;
