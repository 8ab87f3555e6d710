-- What is registered: functions by their names, the same twice, something else,
-- removed, listed.
CREATE EXTENSION cqrs_outbox;
CREATE SCHEMA a;
CREATE SCHEMA b;
CREATE TYPE thing AS (n integer);
CREATE FUNCTION handle(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION other(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION rows(jsonb) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION on_event(cqrs_event) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION on_thing(thing) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION around(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
-- what a statement says: its result, or its error
CREATE FUNCTION try(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	detail text;
	hint text;
BEGIN
	EXECUTE 'SELECT ' || sql INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, ''));
END $$;
\pset format unaligned
\pset tuples_only on

-- ----------------------------------------------------------------------
-- The same again changes nothing; something else is refused, or replaces
-- ----------------------------------------------------------------------
SELECT try(call) FROM unnest(ARRAY[
	-- commands
	$$cqrs_register_command('C', 'handle')$$,
	$$cqrs_register_command('C', 'handle')$$,
	$$cqrs_register_command('C', 'public.handle')$$,
	$$cqrs_register_command('C', 'handle(jsonb)')$$,
	$$cqrs_register_chain('C', ARRAY['handle'])$$,
	$$cqrs_register_command('C', 'handle', or_replace => true)$$,
	$$cqrs_register_command('C', 'handle', or_replace => NULL)$$,
	$$cqrs_register_command('C', 'other')$$,
	$$cqrs_register_command('C', 'other', or_replace => NULL)$$,
	$$cqrs_register_chain('C', ARRAY['handle', 'other'])$$,
	$$cqrs_register_command('C', 'rows')$$,
	$$cqrs_register_command('C', 'other', or_replace => true)$$,
	$$cqrs_register_chain('C', ARRAY['other', 'handle'], or_replace => true)$$,
	$$cqrs_register_chain('C', ARRAY['other', 'handle'])$$,
	$$cqrs_register_chain('C', ARRAY['handle', 'other'])$$,
	$$cqrs_register_command('C', 'rows', or_replace => true)$$,
	$$cqrs_register_command('C', 'rows')$$,
	-- queries share their names with commands, but misfit becomes the other
	$$cqrs_register_query('C', 'handle', or_replace => true)$$,
	$$cqrs_register_query('Q', 'handle')$$,
	$$cqrs_register_query('Q', 'handle')$$,
	$$cqrs_register_query('Q', 'other')$$,
	$$cqrs_register_query('Q', 'other', or_replace => true)$$,
	$$cqrs_register_command('Q', 'other', or_replace => true)$$]) call;
SELECT try(call) FROM unnest(ARRAY[
	-- topics
	$$cqrs_create_topic('t')$$,
	$$cqrs_create_topic('t', '24 hours')$$,
	$$cqrs_create_topic('t', NULL, NULL)$$,
	$$cqrs_create_topic('t', '2 days')$$,
	$$cqrs_create_topic('t', '2 days', or_replace => true)$$,
	$$cqrs_create_topic('t', '2 days', or_replace => true)$$,
	$$cqrs_alter_topic('t', '2 days')$$,
	$$cqrs_alter_topic('t', NULL)$$,
	$$cqrs_alter_topic('t', '3 days')$$,
	$$cqrs_alter_topic('no such', '3 days')$$,
	-- events
	$$cqrs_register_event('e', 't')$$,
	$$cqrs_register_event('e', 't')$$,
	$$cqrs_register_event('e', 't', NULL, NULL)$$,
	$$cqrs_register_event('e')$$,
	$$cqrs_register_event('e', 'u')$$,
	$$cqrs_register_event('e', 't', 'thing')$$,
	-- handlers of events
	$$cqrs_register_event_handler('e', 'handle')$$,
	$$cqrs_register_event_handler('e', 'handle(jsonb)')$$,
	$$cqrs_register_event_handler('e', 'on_event')$$,
	-- an event that is replaced keeps them
	$$cqrs_register_event('e', 'u', 'thing', or_replace => true)$$,
	$$cqrs_register_event('e', 'u', 'thing', or_replace => true)$$,
	$$cqrs_register_event('e', or_replace => true)$$,
	$$cqrs_register_event('e', 'u', 'thing', true)$$,
	-- unless they could not be called any more
	$$cqrs_register_event_handler('e', 'on_thing')$$,
	$$cqrs_register_event('e', 'u', or_replace => true)$$,
	$$cqrs_unregister_event_handler('e', 'on_thing')$$]) call;
SELECT * FROM cqrs_event_types;
SELECT * FROM cqrs_event_handlers ORDER BY 1, 3;
SELECT try(call) FROM unnest(ARRAY[
	-- fallbacks
	$$cqrs_register_fallback('handle', 'other')$$,
	$$cqrs_register_fallback('handle', 'other')$$,
	$$cqrs_register_fallback('handle', 'other', NULL, NULL, NULL, NULL, NULL)$$,
	$$cqrs_register_fallback('handle', 'other', max_failures => 5, reset_after => '1 min')$$,
	$$cqrs_register_fallback('handle', 'other', max_failures => 6)$$,
	$$cqrs_register_fallback('handle', 'other', reset_after => '2 min')$$,
	$$cqrs_register_fallback('handle', 'other', '{22}')$$,
	$$cqrs_register_fallback('handle', 'other', excluded_sqlstates => '{22}')$$,
	$$cqrs_register_fallback('handle', 'other', '{22,23}', '{22012}', 6, '2 min', true)$$,
	$$cqrs_register_fallback('handle', 'other', '{22,23}', '{22012}', 6, '120 s')$$,
	-- middleware
	$$cqrs_register_middleware('around')$$,
	$$cqrs_register_middleware('around', 0)$$,
	$$cqrs_register_middleware('around', NULL, NULL)$$,
	$$cqrs_register_middleware('around', 1)$$,
	$$cqrs_register_middleware('around', 1, or_replace => true)$$,
	$$cqrs_register_middleware('around', 1)$$,
	$$cqrs_register_middleware('cqrs_log_dispatch')$$]) call;
-- nothing is written where nothing changes
SELECT xmin AS before FROM cqrs.command WHERE command_name = 'C' \gset
SELECT cqrs_register_command('C', 'rows', or_replace => true);
SELECT xmin::text = :'before' FROM cqrs.command WHERE command_name = 'C';

-- ----------------------------------------------------------------------
-- What the lists say, everybody may see; and it registers the same elsewhere
-- ----------------------------------------------------------------------
SELECT cqrs_register_chain('Chain', ARRAY['handle', 'other']), cqrs_register_command('Odd', '"rows"');
CREATE ROLE regress_cqrs_nobody;
SET ROLE regress_cqrs_nobody;
\pset tuples_only off
SELECT * FROM cqrs_commands ORDER BY command_name COLLATE "C";
SELECT * FROM cqrs_event_types;
SELECT * FROM cqrs_event_handlers ORDER BY 1, 3;
SELECT * FROM cqrs_fallbacks;
SELECT * FROM cqrs_middleware ORDER BY turn;
\pset tuples_only on
RESET ROLE;
SELECT bool_or(CASE kind WHEN 'query' THEN cqrs_register_query(command_name, handlers[1]) ELSE cqrs_register_chain(command_name, handlers) END)
FROM cqrs_commands WHERE kind <> 'stream';
SELECT bool_or(cqrs_register_command(command_name, handlers[1])) FROM cqrs_commands WHERE kind = 'stream';
SELECT bool_or(cqrs_register_event(event_name, topic, payload_type)) FROM cqrs_event_types;
SELECT bool_or(cqrs_register_event_handler(event_name, handler)) FROM cqrs_event_handlers;
SELECT bool_or(cqrs_register_fallback(handler, fallback, sqlstates, excluded_sqlstates, max_failures, reset_after)) FROM cqrs_fallbacks;
SELECT bool_or(cqrs_register_middleware(handler, priority)) FROM cqrs_middleware;

-- ----------------------------------------------------------------------
-- Removed, or not there
-- ----------------------------------------------------------------------
SELECT try(call) FROM unnest(ARRAY[
	$$cqrs_unregister_query('C')$$,
	$$cqrs_unregister_query('C', if_exists => true)$$,
	$$cqrs_unregister_command('Q')$$,
	$$cqrs_unregister_command('C')$$,
	$$cqrs_unregister_command('C')$$,
	$$cqrs_unregister_command('C', if_exists => NULL)$$,
	$$cqrs_unregister_command('C', if_exists => true)$$,
	$$cqrs_unregister_query('Q')$$,
	$$cqrs_unregister_query('Q')$$,
	$$cqrs_unregister_query('Q', true)$$,
	$$cqrs_unregister_event_handler('e', 'on_event')$$,
	$$cqrs_unregister_event_handler('e', 'on_event')$$,
	$$cqrs_unregister_event_handler('e', 'on_event', if_exists => true)$$,
	$$cqrs_unregister_event_handler('no such', 'on_event', if_exists => true)$$,
	$$cqrs_unregister_event_handler('no such', 'on_event')$$,
	$$cqrs_unregister_event('e')$$,
	$$cqrs_unregister_event('e')$$,
	$$cqrs_unregister_event('e', if_exists => true)$$,
	$$cqrs_unregister_fallback('handle')$$,
	$$cqrs_unregister_fallback('handle')$$,
	$$cqrs_unregister_fallback('handle', if_exists => true)$$,
	$$cqrs_unregister_middleware('around')$$,
	$$cqrs_unregister_middleware('around')$$,
	$$cqrs_unregister_middleware('around', if_exists => true)$$,
	$$cqrs_unregister_middleware('cqrs_log_dispatch(public.cqrs_request)')$$,
	$$cqrs_drop_topic('t')$$,
	$$cqrs_drop_topic('t')$$,
	$$cqrs_drop_topic('t', if_exists => true)$$,
	$$cqrs_drop_topic('t', if_exists => NULL)$$,
	$$cqrs_drop_topic('u', NULL, NULL)$$]) call;
-- cascade
SELECT cqrs_register_event('e', 't'), cqrs_emit('e', '{}') IS NOT NULL;
SELECT try(call) FROM unnest(ARRAY[$$cqrs_drop_topic('t')$$, $$cqrs_drop_topic('t', cascade => NULL)$$, $$cqrs_drop_topic('t', cascade => true)$$]) call;
SELECT count(*) FROM cqrs_event_types;

-- ----------------------------------------------------------------------
-- Which function a name means
-- ----------------------------------------------------------------------
CREATE FUNCTION a.h(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '"a"'::jsonb$$;
CREATE FUNCTION b.h(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '"b"'::jsonb$$;
CREATE FUNCTION b.h(integer) RETURNS jsonb LANGUAGE sql AS $$SELECT '"b"'::jsonb$$;
CREATE FUNCTION b.h(jsonb, integer DEFAULT 1) RETURNS jsonb LANGUAGE sql AS $$SELECT '"b"'::jsonb$$;
CREATE FUNCTION public.two(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION public.two(thing) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1)';
CREATE FUNCTION misfit(integer) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1)';
CREATE FUNCTION misfit(jsonb, text DEFAULT 'x') RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION misfit() RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION misfit(VARIADIC jsonb[]) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION misfit(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1)';
CREATE FUNCTION misfit(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE AGGREGATE misfit(text) (SFUNC = textcat, STYPE = text);
CREATE FUNCTION misfit("char") RETURNS bigint LANGUAGE internal WINDOW AS 'window_row_number';
CREATE PROCEDURE misfit(thing) LANGUAGE sql AS '';
CREATE FUNCTION trigger_of(jsonb) RETURNS trigger LANGUAGE internal AS 'jsonb_in';
CREATE FUNCTION "Odd ""Na.me("(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE SCHEMA "order";
CREATE TYPE "order"."select" AS (n integer);
CREATE FUNCTION "order"."table"("order"."select") RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1)';
CREATE FUNCTION pg_temp.temporary(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SET search_path = public, a, b;
SELECT try(call) FROM unnest(ARRAY[
	-- as people spell it, the first one in the path
	$$cqrs_register_command('N', 'h', true)$$, $$cqrs_send('N')$$,
	$$cqrs_register_command('N', ' B . H ', true)$$, $$cqrs_send('N')$$,
	$$cqrs_register_command('N', 'b.h(jsonb)')$$,
	$$cqrs_register_command('N', '"b"."h" ( "jsonb" )')$$,
	$$cqrs_register_command('N', 'b.h(pg_catalog.jsonb)')$$,
	$$cqrs_register_command('N', '"Odd ""Na.me("', true)$$,
	$$cqrs_register_command('N', '"Odd ""Na.me("(jsonb)')$$,
	$$cqrs_register_command('N', handlers[1]) FROM cqrs_commands WHERE command_name = 'N'$$,
	$$cqrs_register_command('N', '"order"."table"', true)$$,
	$$cqrs_register_command('N', handlers[1]) FROM cqrs_commands WHERE command_name = 'N'$$,
	-- whatever a driver gives
	$$cqrs_register_command('N'::varchar, 'handle'::varchar, true)$$,
	$$cqrs_register_chain('N'::text, ARRAY['handle']::varchar[])$$,
	$$cqrs_register_query('V', 'handle'::varchar(20))$$,
	$$cqrs_register_command('N', 'handle(jsonb)'::regprocedure::text)$$,
	$$cqrs_register_command('N', 'handle(jsonb)'::regprocedure)$$,
	$$cqrs_register_event('e', 't'::varchar), cqrs_register_event_handler('e', 'handle'::varchar)$$,
	$$cqrs_register_event('of_thing', 't'::varchar, 'thing'::varchar)$$,
	$$cqrs_register_event('of_thing', 't', 'public.thing')$$,
	$$cqrs_register_event('of_thing', 't', ' "public" . thing ')$$,
	$$cqrs_register_event('of_thing', 't', 'pg_catalog.jsonb')$$,
	$$cqrs_register_event('of_nothing', 't', 'nothing')$$,
	$$cqrs_register_event('of_nothing', 't', 'nowhere.thing')$$,
	$$cqrs_register_event('of_nothing', 't', 'thing[]')$$,
	$$cqrs_register_event('of_nothing', 't', 'thing,')$$,
	$$cqrs_register_fallback('handle'::varchar, 'other'::varchar)$$,
	$$cqrs_register_middleware('around'::varchar), cqrs_unregister_middleware('around'::varchar)$$]) call;
PREPARE register AS SELECT cqrs_register_command($1, $2), cqrs_register_command($1, $2::varchar), cqrs_register_chain($1, ARRAY[$2]);
EXECUTE register('N', 'handle');
SELECT try(call) FROM unnest(ARRAY[
	-- several, none, one that is none
	$$cqrs_register_command('N', 'two', true)$$,
	$$cqrs_register_command('N', 'public.two', true)$$,
	$$cqrs_register_command('N', 'public.two(pg_catalog.jsonb)', true)$$,
	$$cqrs_register_command('N', 'misfit', true)$$,
	$$cqrs_register_command('N', 'public.misfit(cqrs_request)', true)$$,
	$$cqrs_register_command('N', 'misfit(anyelement)', true)$$,
	$$cqrs_register_command('N', 'misfit(thing)', true)$$,
	$$cqrs_register_command('N', 'misfit(text)', true)$$,
	$$cqrs_register_command('N', 'misfit("char")', true)$$,
	$$cqrs_register_command('N', 'misfit(jsonb, text)', true)$$,
	$$cqrs_register_command('N', 'misfit(jsonb[])', true)$$,
	$$cqrs_register_command('N', 'trigger_of', true)$$,
	$$cqrs_register_command('N', 'nowhere', true)$$,
	$$cqrs_register_command('N', 'nowhere.h', true)$$,
	$$cqrs_register_command('N', 'b.nowhere', true)$$,
	$$cqrs_register_command('N', 'nowhere(jsonb)', true)$$,
	$$cqrs_register_command('N', 'handle(nowhere)', true)$$,
	$$cqrs_register_command('N', 'temporary', true)$$,
	$$cqrs_register_command('N', '', true)$$,
	$$cqrs_register_command('N', '"handle', true)$$,
	$$cqrs_register_command('N', 'my handler', true)$$,
	$$cqrs_register_command('N', 'Handle2', true)$$,
	$$cqrs_register_command('N', 'a.b.c.d', true)$$,
	$$cqrs_register_command('N', 'handle(', true)$$,
	$$cqrs_register_command('N', '{handle,other}', true)$$,
	$$cqrs_register_chain('N', '{handle,two}', true)$$,
	$$cqrs_register_query('N2', 'rows')$$,
	$$cqrs_register_query('N2', 'two')$$,
	-- other places take other types
	$$cqrs_register_event_handler('e', 'two')$$,
	$$cqrs_register_event_handler('e', 'rows')$$,
	$$cqrs_register_event_handler('e', 'around')$$,
	$$cqrs_register_middleware('handle')$$,
	$$cqrs_register_fallback('two(thing)', 'two')$$,
	$$cqrs_register_fallback('other', 'two')$$,
	$$cqrs_subscribe('s', ARRAY['t'], 'around')$$,
	$$cqrs_subscribe('s', ARRAY['t'], 'on_event'::varchar)$$,
	$$cqrs_alter_subscription('s', handler => 'public.on_event')$$]) call;
SELECT regexp_replace(try($$cqrs_register_command('N', 'pg_temp.temporary', true)$$), 'pg_temp_\d+', 'pg_temp', 'g');
SELECT handler FROM cqrs_subscription_status;
-- what a handler may take one day
CREATE TYPE cqrs_message AS (body bytea);
CREATE FUNCTION on_message(cqrs_message) RETURNS void LANGUAGE sql AS '';
SELECT try(call) FROM unnest(ARRAY[
	$$cqrs_subscribe('s', ARRAY['t'], 'on_message')$$,
	$$cqrs_register_command('Message', 'on_message(cqrs_message)')$$]) call;
-- what fits twice
CREATE FUNCTION on_batch(cqrs_event[]) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION on_batch(cqrs_event) RETURNS void LANGUAGE sql AS '';
SELECT try(call) FROM unnest(ARRAY[
	$$cqrs_subscribe('of_events', ARRAY['t'], 'on_batch')$$,
	$$cqrs_subscribe('of_events', ARRAY['t'], 'on_batch(cqrs_event[])')$$]) call;
SELECT cqrs_unsubscribe('of_events');
DROP FUNCTION on_batch(cqrs_event), on_batch(cqrs_event[]), on_message;
DROP TYPE cqrs_message;
-- it must be executable, wherever it is
REVOKE EXECUTE ON FUNCTION a.h FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs_register_query TO regress_cqrs_nobody;
GRANT USAGE ON SCHEMA a TO regress_cqrs_nobody;
SET ROLE regress_cqrs_nobody;
SELECT try(call) FROM unnest(ARRAY[$$cqrs_register_query('H', 'h')$$, $$cqrs_register_query('H', 'a.h(jsonb)')$$, $$cqrs_register_query('H', 'b.h')$$]) call;
RESET ROLE;

-- ----------------------------------------------------------------------
-- What is removed is compared with what is stored
-- ----------------------------------------------------------------------
SELECT cqrs_register_event_handler('e', 'a.h'), cqrs_register_event_handler('e', 'b.h'), cqrs_register_event_handler('e', 'two(jsonb)');
SELECT cqrs_register_fallback('a.h', 'b.h'), cqrs_register_fallback('b.h', 'a.h');
DROP FUNCTION a.h;
DROP FUNCTION two(jsonb);
SELECT try(call) FROM unnest(ARRAY[
	$$cqrs_unregister_event_handler('e', 'h')$$,
	$$cqrs_unregister_event_handler('e', 'h(jsonb)', if_exists => true)$$,
	$$cqrs_unregister_event_handler('e', 'h(integer)')$$,
	$$cqrs_unregister_event_handler('e', 'c.h')$$,
	$$cqrs_unregister_event_handler('e', 'a.h')$$,
	$$cqrs_unregister_event_handler('e', 'H')$$,
	$$cqrs_unregister_event_handler('e', 'two')$$,
	$$cqrs_unregister_fallback('h')$$,
	$$cqrs_unregister_fallback('a.h(pg_catalog.jsonb)')$$,
	$$cqrs_unregister_fallback('b.h')$$]) call;
RESET search_path;

-- ----------------------------------------------------------------------
-- Registered again, it is bound to the function, and the type, that is there now
-- ----------------------------------------------------------------------
CREATE ROLE regress_cqrs_maker;
GRANT CREATE ON SCHEMA public TO regress_cqrs_maker;
SELECT cqrs_register_command('N', 'handle', true), cqrs_register_middleware('around');
ALTER FUNCTION handle OWNER TO regress_cqrs_maker;
ALTER FUNCTION around OWNER TO regress_cqrs_maker;
SELECT try($$cqrs_send('N')$$);
SELECT cqrs_register_middleware('around'), cqrs_register_command('N', 'handle'), cqrs_register_event_handler('e', 'handle'), cqrs_register_query('V', 'handle');
SELECT cqrs_send('N', '{"n": 1}'), cqrs_query('V', '{"n": 2}');
SELECT problem, object FROM cqrs_health() WHERE problem = 'function_taken_over';
SELECT cqrs_unregister_middleware('around');
CREATE TYPE payload AS (n integer);
CREATE FUNCTION on_payload(payload) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_event('typed', 't', 'payload'), cqrs_register_event_handler('typed', 'on_payload');
DROP TYPE payload CASCADE;
SELECT try($$cqrs_register_event_handler('typed', 'handle')$$);
CREATE TYPE payload AS (n integer);
CREATE FUNCTION on_payload(payload) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '% handled', $1; END $$;
SELECT problem, object, hint FROM cqrs_health() WHERE object LIKE '%typed%';
SELECT cqrs_register_event('typed', 't', 'payload'), cqrs_register_event('typed', 't', 'payload');
SELECT cqrs_emit('typed', '{"n": 1}') IS NOT NULL;

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP SCHEMA a, b, "order" CASCADE;
DROP PROCEDURE misfit(thing);
DROP AGGREGATE misfit(text);
DROP FUNCTION misfit(integer), misfit(jsonb, text), misfit(), misfit(jsonb[]), misfit(anyelement), misfit("char");
DROP FUNCTION handle, other, rows, two, trigger_of, "Odd ""Na.me(", try, on_thing, on_payload;
DROP TYPE thing, payload;
REVOKE CREATE ON SCHEMA public FROM regress_cqrs_maker;
DROP ROLE regress_cqrs_nobody, regress_cqrs_maker;
