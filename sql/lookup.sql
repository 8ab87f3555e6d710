-- Registered functions: how they are stored, and what is found by that.
\set VERBOSITY terse
\set SHOW_CONTEXT never
CREATE EXTENSION cqrs_outbox;
CREATE ROLE regress_cqrs_app LOGIN;
CREATE ROLE regress_cqrs_other LOGIN IN ROLE pg_monitor;
CREATE FUNCTION cmd(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
SELECT cqrs_register_command('Any', 'cmd(jsonb)');
SELECT cqrs_register_event('e', 't');

-- ----------------------------------------------------------------------
-- The privilege is EXECUTE, nothing else: not USAGE of schemas
-- ----------------------------------------------------------------------
CREATE SCHEMA closed;
CREATE TYPE closed.pay AS (amount integer);
CREATE TYPE open AS (amount integer);
CREATE FUNCTION closed.handle(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RETURN '"handled"'; END$$;
CREATE FUNCTION closed.pay(closed.pay) RETURNS integer LANGUAGE plpgsql AS $$BEGIN RETURN $1.amount; END$$;
CREATE FUNCTION closed.fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE 'failed'; END$$;
CREATE FUNCTION open(open) RETURNS integer LANGUAGE sql AS 'SELECT $1.amount';
CREATE FUNCTION closed.on_event(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'handled'; END$$;
CREATE FUNCTION closed.around(r cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RETURN public.cqrs_proceed(); END$$;
SELECT cqrs_register_command('Closed', 'closed.handle(jsonb)');
SELECT cqrs_register_command('Fails', 'closed.fails(jsonb)'), cqrs_register_fallback('closed.fails(jsonb)', 'closed.handle(jsonb)');
SELECT cqrs_register_command('Pay', 'closed.pay(closed.pay)'), cqrs_register_command('Open', 'open(open)');
SELECT cqrs_register_event_handler('e', 'closed.on_event(cqrs_event)');
SELECT cqrs_register_middleware('closed.around(cqrs_request)');
GRANT INSERT ON cqrs_topics.t TO regress_cqrs_other;
-- in one session, who may not use the schema asks first
\c
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET ROLE regress_cqrs_other;
SELECT cqrs_send(ROW(2)::open), cqrs_send('Closed'), cqrs_send('Fails'), cqrs_send('Pay', '{"amount": 1}');
SELECT cqrs_emit('e', '{}') IS NOT NULL;
SELECT problem, object FROM cqrs_health() WHERE problem LIKE '%missing%';
SELECT cqrs_diagram() LIKE '%closed.handle%';
RESET ROLE;
SELECT cqrs_send('Closed');
REVOKE EXECUTE ON FUNCTION closed.handle FROM PUBLIC;
SET ROLE regress_cqrs_other;
SELECT cqrs_send('Closed');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT cqrs_send('Closed');
SELECT cqrs_unregister_middleware('closed.around(cqrs_request)');

-- ----------------------------------------------------------------------
-- Another schema or type of that name: what is there now is called
-- ----------------------------------------------------------------------
CREATE SCHEMA new;
CREATE TYPE new.pay AS (amount integer);
CREATE FUNCTION new.handle(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '"new"'::jsonb$$;
CREATE FUNCTION new.on_event(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'handled anew'; END$$;
CREATE FUNCTION new.pay(new.pay) RETURNS integer LANGUAGE sql AS 'SELECT 2 * $1.amount';
SELECT cqrs_subscribe('s', ARRAY['t'], 'closed.on_event(cqrs_event)');
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('s');
SELECT cqrs_send('Closed'), cqrs_send(ROW(1)::closed.pay);
BEGIN;
ALTER SCHEMA closed RENAME TO old;
SELECT cqrs_send('Closed');
ROLLBACK;
SELECT cqrs_send('Closed');
BEGIN;
ALTER SCHEMA closed RENAME TO old;
ALTER SCHEMA new RENAME TO closed;
COMMIT;
SELECT cqrs_send('Closed'), cqrs_send('Pay', '{"amount": 1}'), cqrs_send(ROW(1)::closed.pay);
SELECT cqrs_emit('e', '{}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('s');
CREATE FUNCTION closed.of_type(open) RETURNS text LANGUAGE sql AS $$SELECT 'the first'$$;
CREATE TYPE open_new AS (amount integer);
CREATE FUNCTION closed.of_type(open_new) RETURNS text LANGUAGE sql AS $$SELECT 'the second'$$;
SELECT cqrs_register_query('OfType', 'closed.of_type(open)');
SELECT cqrs_query('OfType', '{"amount": 1}');
ALTER TYPE open RENAME TO open_old;
SELECT cqrs_query('OfType', '{"amount": 1}');
ALTER TYPE open_new RENAME TO open;
SELECT cqrs_query('OfType', '{"amount": 1}');
ALTER FUNCTION closed.of_type(open) SET SCHEMA old;
SELECT cqrs_query('OfType', '{"amount": 1}');

-- ----------------------------------------------------------------------
-- A type or schema that is gone spoils nothing else, and can be unregistered
-- ----------------------------------------------------------------------
SELECT cqrs_unsubscribe('s');
SELECT cqrs_register_event('paid', 't', 'closed.pay');
CREATE FUNCTION closed.on_paid(closed.pay) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_event_handler('paid', 'closed.on_paid(closed.pay)');
SELECT cqrs_register_fallback('closed.handle(jsonb)', 'cmd(jsonb)');
SELECT cqrs_register_command('Other', 'open(open_old)');
DROP SCHEMA closed CASCADE;
\c
\set VERBOSITY terse
\set SHOW_CONTEXT never
SELECT cqrs_send(ROW(2)::open_old);
SELECT cqrs_send('Any', '{"a": 1}');
SELECT cqrs_send('Pay', '{"amount": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('paid', '{"amount": 1}');
SELECT problem, object, detail FROM cqrs_health() WHERE problem LIKE '%_missing' ORDER BY 1, 2;
SELECT cqrs_unregister_event_handler('paid', 'closed.on_paid(closed.pay)');
SELECT cqrs_unregister_event_handler('e', '"closed" . ON_event ( public.cqrs_event )');
SELECT cqrs_unregister_fallback('closed.fails(jsonb)'), cqrs_unregister_fallback('closed.handle(jsonb)');
SELECT cqrs_unregister_fallback('closed.fails(jsonb)');
-- also the payload type of an event, of which somebody else's handler knows nothing
CREATE TYPE paid_type AS (amount integer);
SELECT cqrs_register_event('typed', 't', 'paid_type');
CREATE TABLE captured (a integer);
CREATE TRIGGER capture AFTER INSERT ON captured FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('typed');
DROP TYPE paid_type;
CREATE FUNCTION of_other(open_old) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_event_handler('typed', 'of_other(open_old)');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO captured VALUES (1);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('typed', '{"amount": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unregister_event('typed');
DROP TABLE captured;
DROP FUNCTION of_other;
-- names of other forms
SELECT cqrs_unregister_fallback('f');
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY ARRAY['"f', 'f(', 'f(jsonb', 'f(jsonb) x', 'a.b.f(jsonb)', 'f(jsonb, jsonb)', '', '()',
								'.f(jsonb)', '"a""', '"', '""(jsonb)', repeat('f', 100) || '(jsonb)', 'no.f(no.t)'] LOOP
		BEGIN
			PERFORM cqrs_unregister_fallback(name);
			RAISE 'removed %', name;
		EXCEPTION WHEN undefined_object THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT cqrs_unregister_command('Closed'), cqrs_unregister_command('Fails'), cqrs_unregister_command('Pay'),
	   cqrs_unregister_query('OfType'), cqrs_unregister_command('Open'), cqrs_unregister_command('Other');

-- ----------------------------------------------------------------------
-- What is stored depends on no setting
-- ----------------------------------------------------------------------
CREATE FUNCTION "Odd ""Name"(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE 'failed'; END$$;
SELECT cqrs_register_command('Odd', '"Odd ""Name"(jsonb)'), cqrs_register_command('Fails', 'fails(jsonb)');
SET quote_all_identifiers = on;
SELECT cqrs_register_fallback('fails(jsonb)', '"Odd ""Name"(jsonb)');
SELECT cqrs_register_middleware('cqrs_log_dispatch(cqrs_request)');
SELECT cqrs_register_event_handler('e', '"Odd ""Name"(jsonb)');
SET ROLE regress_cqrs_other;
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Odd') IS NOT NULL;
RESET ROLE;
RESET quote_all_identifiers;
SELECT handler, fallback FROM cqrs.fallback;
SELECT handler FROM cqrs.middleware;
SELECT handler FROM cqrs.event_handler;
SELECT handler NOT LIKE '%"%' AS plain FROM cqrs.subscription WHERE runs = 'commands';
SELECT cqrs_register_event_handler('e', '"Odd ""Name"(jsonb)');
SELECT cqrs_send('Fails', '{"a": 1}');
SELECT cqrs_unregister_fallback('public."fails"("jsonb")');
SELECT cqrs_unregister_event_handler('e', 'public."Odd ""Name"(pg_catalog.jsonb)');
SELECT cqrs_unregister_middleware('cqrs_log_dispatch(cqrs_request)');
SELECT cqrs_unregister_command('Odd'), cqrs_unregister_command('Fails');
DROP FUNCTION fails(jsonb);

-- ----------------------------------------------------------------------
-- Temporary functions, and those with temporary types, are not registered
-- ----------------------------------------------------------------------
CREATE FUNCTION pg_temp.around(r cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
CREATE FUNCTION pg_temp.handle(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION pg_temp.on_event(e cqrs_event) RETURNS void LANGUAGE sql AS '';
CREATE TYPE pg_temp.t AS (x integer);
CREATE FUNCTION of_temp(pg_temp.t) RETURNS jsonb LANGUAGE sql AS $$SELECT '1'::jsonb$$;
CREATE FUNCTION to_temp(jsonb) RETURNS pg_temp.t LANGUAGE sql AS $$SELECT NULL::pg_temp.t$$;
DO $$
DECLARE
	call text;
BEGIN
	FOREACH call IN ARRAY ARRAY[
		$x$cqrs_register_command('Temp', 'pg_temp.handle(jsonb)')$x$,
		$x$cqrs_register_chain('Temp', ARRAY['cmd(jsonb)', 'pg_temp.handle(jsonb)'])$x$,
		$x$cqrs_register_command('Temp', 'of_temp(pg_temp.t)')$x$,
		$x$cqrs_register_command('Temp', 'to_temp(jsonb)')$x$,
		$x$cqrs_register_query('Temp', 'pg_temp.handle(jsonb)')$x$,
		$x$cqrs_register_middleware('pg_temp.around(cqrs_request)')$x$,
		$x$cqrs_register_event_handler('e', 'pg_temp.on_event(cqrs_event)')$x$,
		$x$cqrs_register_fallback('cmd(jsonb)', 'pg_temp.handle(jsonb)')$x$,
		$x$cqrs_subscribe('temp', ARRAY['t'], 'pg_temp.on_event(cqrs_event)')$x$,
		$x$cqrs_register_event('temp', 't', 'pg_temp.t')$x$] LOOP
		BEGIN
			EXECUTE 'SELECT ' || call;
			RAISE NOTICE 'accepted: %', call;
		EXCEPTION WHEN invalid_function_definition OR datatype_mismatch THEN
			NULL;
		END;
	END LOOP;
	-- what a dump, or the owner, brings into the tables is not found
	EXECUTE format('INSERT INTO cqrs.command (command_name, handlers, owners) VALUES (%L, ARRAY[%L], ARRAY[%L])',
				   'Temp', pg_my_temp_schema()::regnamespace || '.handle(pg_catalog.jsonb)', current_user);
	BEGIN
		PERFORM cqrs_send('Temp');
		RAISE NOTICE 'sent';
	EXCEPTION WHEN undefined_function THEN
		NULL;
	END;
END $$;
SELECT cqrs_unregister_command('Temp');
DROP TYPE pg_temp.t CASCADE;

-- ----------------------------------------------------------------------
-- A function that another role made anew is not what was registered
-- ----------------------------------------------------------------------
GRANT CREATE ON SCHEMA public TO regress_cqrs_app, regress_cqrs_other;
SET ROLE regress_cqrs_app;
CREATE FUNCTION regress_cqrs_f(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '"app"'::jsonb$$;
CREATE FUNCTION regress_cqrs_m(r cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT public.cqrs_proceed()';
RESET ROLE;
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE 'failed'; END$$;
SELECT cqrs_register_command('F', 'regress_cqrs_f(jsonb)');
SELECT cqrs_register_query('Q', 'regress_cqrs_f(jsonb)');
SELECT cqrs_register_command('Fails', 'fails(jsonb)'), cqrs_register_fallback('fails(jsonb)', 'regress_cqrs_f(jsonb)');
SELECT cqrs_register_event_handler('e', 'regress_cqrs_f(jsonb)');
SELECT cqrs_register_middleware('regress_cqrs_m(cqrs_request)');
SELECT cqrs_send('F'), cqrs_query('Q'), cqrs_send('Fails');
SET ROLE regress_cqrs_app;
DROP FUNCTION regress_cqrs_f, regress_cqrs_m;
SET ROLE regress_cqrs_other;
CREATE FUNCTION regress_cqrs_f(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS
	$$BEGIN RAISE NOTICE 'taken over as %', current_user; RETURN c; END$$;
CREATE FUNCTION regress_cqrs_m(r cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS
	$$BEGIN RAISE NOTICE 'taken over as %', current_user; RETURN NULL; END$$;
RESET ROLE;
SELECT cqrs_send('F');
SELECT severity, problem, object, detail FROM cqrs_health() WHERE problem = 'function_taken_over' ORDER BY 3;
SELECT cqrs_unregister_middleware('regress_cqrs_m(cqrs_request)');
\set VERBOSITY default
SELECT cqrs_send('F');
\set VERBOSITY terse
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_query('Q');
SELECT cqrs_send('Fails');
SELECT cqrs_emit('e', '{}');
SELECT cqrs_enqueue('F');
-- of the one who made it, or a superuser, it is
ALTER FUNCTION regress_cqrs_f OWNER TO regress_cqrs_app;
SELECT cqrs_send('F', '{"of": "app"}');
DROP FUNCTION regress_cqrs_f;
CREATE FUNCTION regress_cqrs_f(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '"superuser"'::jsonb$$;
SELECT cqrs_send('F'), cqrs_query('Q'), cqrs_send('Fails');
ALTER FUNCTION regress_cqrs_f OWNER TO regress_cqrs_other;
SELECT cqrs_send('F');
ALTER ROLE regress_cqrs_other SUPERUSER;
SELECT cqrs_send('F');
ALTER ROLE regress_cqrs_other NOSUPERUSER;
SELECT cqrs_send('F');
SELECT cqrs_unregister_command('F'), cqrs_register_command('F', 'regress_cqrs_f(jsonb)');
SELECT cqrs_send('F');

DROP EXTENSION cqrs_outbox CASCADE;
DROP SCHEMA old CASCADE;
DROP FUNCTION cmd, fails, "Odd ""Name", open, regress_cqrs_f;
DROP TYPE open, open_old;
DROP OWNED BY regress_cqrs_app, regress_cqrs_other;
DROP ROLE regress_cqrs_app, regress_cqrs_other;
