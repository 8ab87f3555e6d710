-- Middleware: what is called around each command and query.
CREATE EXTENSION cqrs_outbox;
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, line text);
CREATE FUNCTION say(text) RETURNS void LANGUAGE sql AS 'INSERT INTO log (line) VALUES ($1)';
-- what was said since the last time
CREATE FUNCTION logged() RETURNS SETOF text LANGUAGE sql AS $$
	WITH said AS (DELETE FROM log RETURNING *) SELECT line FROM said ORDER BY n
$$;
SELECT cqrs_register_event('handled', 'handlings'), cqrs_register_event('seen', 'sights');
-- an error, with what its context says of middleware and handlers
CREATE FUNCTION error_of(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
	context text;
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
	RETURN QUERY SELECT format('%s: %s', SQLSTATE, SQLERRM);
	RETURN QUERY SELECT text FROM unnest(ARRAY[detail, hint]) text WHERE text <> '';
	RETURN QUERY SELECT line FROM regexp_split_to_table(context, '\n') line WHERE line ~ '^(middleware|handler) ';
END $$;
\set VERBOSITY terse
CREATE FUNCTION emitted(topic text) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT payload FROM cqrs_events(topic)';

CREATE FUNCTION do_it(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say(format('do %s', c)), cqrs_emit('handled', c);
	IF c ? 'error' THEN
		RAISE EXCEPTION USING ERRCODE = c->>'error', MESSAGE = 'do failed';
	END IF;
	RETURN jsonb_build_object('done', c);
END $$;
CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF c ? 'write' THEN
		PERFORM say('ask');
	END IF;
	RETURN jsonb_build_object('asked', c);
END $$;
SELECT cqrs_register_command('Do', 'do_it(jsonb)'), cqrs_register_query('Ask', 'ask(jsonb)');

-- before and after, in their order: by priority, then as registered
CREATE FUNCTION around(request cqrs_request, who text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb;
BEGIN
	PERFORM say(format('%s before %s', who, request));
	answer := cqrs_proceed();
	PERFORM say(format('%s after %s', who, answer));
	RETURN answer;
END $$;
CREATE FUNCTION a(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT around($1, 'a')$$;
CREATE FUNCTION b(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT around($1, 'b')$$;
CREATE FUNCTION c(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT around($1, 'c')$$;
CREATE FUNCTION d(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT around($1, 'd')$$;
SELECT cqrs_register_middleware('b(cqrs_request)');
SELECT cqrs_register_middleware('d(cqrs_request)', 5), cqrs_register_middleware('a(cqrs_request)', priority => -1);
SELECT cqrs_register_middleware('c(cqrs_request)');
SELECT handler, priority FROM cqrs.middleware ORDER BY priority, seq;
SELECT cqrs_send('Do', '{"n": 1}');
SELECT logged();
-- of a query, which reads only, in a transaction that writes: it may
SELECT cqrs_unregister_middleware('a(cqrs_request)'), cqrs_unregister_middleware('public.c(cqrs_request)'),
	   cqrs_unregister_middleware('d(cqrs_request)');
BEGIN;
SELECT say('before');
SELECT cqrs_query('Ask', '{"n": 2}');
SELECT say('after');
COMMIT;
SELECT logged();
-- what it asks may not
SELECT cqrs_query('Ask', '{"write": true}');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT cqrs_query('Ask');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT logged();

-- nested commands have it too, also those that a handler of an event sends
CREATE FUNCTION nest(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_emit('seen', '{}');
	SELECT cqrs_query('Ask', jsonb_build_object('nested', cqrs_send('Do', c)))
$$;
CREATE FUNCTION on_seen(e jsonb) RETURNS void LANGUAGE sql AS $$SELECT say('on seen'); SELECT cqrs_send('Do', '{"by": "on_seen"}')$$;
SELECT cqrs_register_command('Nest', 'nest(jsonb)'), cqrs_register_event_handler('seen', 'on_seen(jsonb)');
SELECT cqrs_send('Nest', '{"n": 3}');
SELECT logged();
-- not streams
CREATE FUNCTION rows(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT generate_series(1, 2)';
SELECT cqrs_register_command('Rows', 'rows(jsonb)');
SELECT cqrs_stream('Rows');
SELECT logged();
SELECT cqrs_unregister_middleware('b(cqrs_request)'), cqrs_unregister_event_handler('seen', 'on_seen(jsonb)');

-- another payload, another answer, and neither
CREATE FUNCTION stamp(request cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_proceed(request.payload || '{"stamped": true}') || jsonb_build_object('saw', request.payload)
$$;
CREATE FUNCTION see(request cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT say(format('see %s', request.payload)); SELECT cqrs_proceed()
$$;
SELECT cqrs_register_middleware('stamp(cqrs_request)'), cqrs_register_middleware('see(cqrs_request)');
SELECT cqrs_send('Do', '{"n": 4}'), cqrs_query('Ask', '{"n": 5}');
SELECT logged();
SELECT cqrs_unregister_middleware('stamp(cqrs_request)'), cqrs_unregister_middleware('see(cqrs_request)');
CREATE FUNCTION pass(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	CASE request.payload->>'middleware'
		WHEN 'answers' THEN RETURN '"no"';
		WHEN 'null' THEN RETURN NULL;
		WHEN 'array' THEN RETURN cqrs_proceed('[1]');
		WHEN 'json_null' THEN RETURN cqrs_proceed('null');
		ELSE RETURN cqrs_proceed(request.payload->'payload');
	END CASE;
END $$;
SELECT cqrs_register_middleware('pass(cqrs_request)');
SELECT cqrs_send('Do', '{"middleware": "answers"}'), cqrs_query('Ask', '{"middleware": "null"}') IS NULL AS is_null;
SELECT cqrs_send('Do', '{"n": 6}'), cqrs_send('Do', '{"n": 7, "payload": {"n": 8}}');
SELECT error_of($$SELECT cqrs_send('Do', '{"middleware": "array"}')$$);
SELECT error_of($$SELECT cqrs_query('Ask', '{"middleware": "json_null"}')$$);
SELECT logged();
-- void and NULL answers come through
CREATE FUNCTION void(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_command('Void', 'void(jsonb)');
SELECT cqrs_send('Void') IS NULL AS is_null;

-- a composite command: as it was sent, unless the payload is replaced
CREATE TYPE payment AS (amount numeric, note text);
CREATE FUNCTION pay(p payment) RETURNS payment LANGUAGE sql AS 'SELECT say(p::text); SELECT p';
SELECT cqrs_register_command('Pay', 'pay(payment)');
SELECT cqrs_send(ROW(1.50, NULL)::payment), cqrs_send('Pay', '{"amount": 2}');
SELECT cqrs_send('Pay', '{"payload": {"amount": "3.00", "note": "x"}}');
SELECT cqrs_send('Pay', '{"payload": {"amount": "three"}}');
\echo :LAST_ERROR_SQLSTATE
CREATE TYPE letter AS (body json);
CREATE FUNCTION receive(l letter) RETURNS void LANGUAGE sql AS 'SELECT say(l.body::text)';
SELECT cqrs_register_command('Receive', 'receive(letter)');
SELECT cqrs_send(ROW('{"b":1,  "a":2}')::letter);
SELECT logged();
SELECT cqrs_unregister_middleware('pass(cqrs_request)'), cqrs_register_middleware('stamp(cqrs_request)');
CREATE FUNCTION unstamp(request cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT say(format('sent %s', request.payload)); SELECT cqrs_proceed(request.payload - 'stamped')
$$;
SELECT cqrs_register_middleware('unstamp(cqrs_request)');
SELECT cqrs_send(ROW(4, 'y')::payment);
SELECT logged();
SELECT cqrs_unregister_middleware('stamp(cqrs_request)'), cqrs_unregister_middleware('unstamp(cqrs_request)');

-- errors: seen and passed on as they were; named in the context
SELECT cqrs_register_middleware('a(cqrs_request)'), cqrs_register_middleware('b(cqrs_request)');
SELECT error_of($$SELECT cqrs_send('Do', '{"error": "P0002"}')$$);
CREATE FUNCTION watch(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN cqrs_proceed();
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE 'saw % %', SQLSTATE, SQLERRM;
	RAISE;
END $$;
SELECT cqrs_unregister_middleware('a(cqrs_request)'), cqrs_unregister_middleware('b(cqrs_request)'),
	   cqrs_register_middleware('watch(cqrs_request)');
SELECT cqrs_send('Do', '{"error": "23505"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_query('Ask', '{"write": true}');
SELECT cqrs_unregister_middleware('watch(cqrs_request)');
SELECT logged();

-- swallowed: writes and events further in are gone, those further out stay
CREATE FUNCTION swallow(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say('outer'), cqrs_emit('seen', '{"by": "outer"}');
	BEGIN
		PERFORM say('inner'), cqrs_emit('seen', '{"by": "inner"}');
		RETURN cqrs_proceed();
	EXCEPTION WHEN OTHERS THEN
		PERFORM say('swallowed'), cqrs_emit('seen', '{"by": "swallowed"}');
		RETURN jsonb_build_object('error', SQLSTATE);
	END;
END $$;
SELECT cqrs_drop_topic('handlings', true), cqrs_drop_topic('sights', true);
SELECT cqrs_register_event('handled', 'handlings'), cqrs_register_event('seen', 'sights');
SELECT cqrs_register_middleware('swallow(cqrs_request)');
SELECT cqrs_send('Do', '{"error": "22012"}'), cqrs_send('Do', '{"n": 9}');
SELECT logged();
SELECT emitted('handlings');
SELECT emitted('sights');
-- a query's, and then the transaction writes again
SELECT cqrs_query('Ask', '{"write": true}');
SELECT logged();
-- all the same after the caller's savepoint
BEGIN;
SAVEPOINT s;
SELECT cqrs_send('Do', '{"error": "22012"}');
ROLLBACK TO s;
SELECT cqrs_send('Do', '{"n": 10}');
COMMIT;
SELECT logged();
SELECT cqrs_unregister_middleware('swallow(cqrs_request)');

-- again, after an error and without one, with another payload
CREATE FUNCTION retry(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	tries int := (request.payload->>'tries')::int;
BEGIN
	WHILE tries > 1 LOOP
		tries := tries - 1;
		BEGIN
			RETURN cqrs_proceed(request.payload || jsonb_build_object('tries', tries));
		EXCEPTION WHEN serialization_failure OR deadlock_detected THEN
			PERFORM say(SQLSTATE);
		END;
	END LOOP;
	RETURN cqrs_proceed('{"last": true}');
END $$;
CREATE FUNCTION twice(request cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_array(cqrs_proceed(), cqrs_proceed('{"second": true}'), cqrs_proceed())
$$;
SELECT cqrs_register_middleware('retry(cqrs_request)'), cqrs_register_middleware('see(cqrs_request)');
SELECT cqrs_send('Do', '{"tries": 3, "error": "40001"}');
SELECT logged();
SELECT cqrs_send('Do', '{"tries": 2, "error": "P0001"}');
SELECT cqrs_unregister_middleware('retry(cqrs_request)'), cqrs_unregister_middleware('see(cqrs_request)');
SELECT cqrs_register_middleware('twice(cqrs_request)');
SELECT cqrs_send('Do', '{"first": true}');
SELECT cqrs_query('Ask');
SELECT logged();

-- around a chain, and around fallbacks
CREATE FUNCTION first(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say('first');
	RETURN CASE WHEN c ? 'second' THEN '"first"' ELSE cqrs_next() END;
END $$;
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say('fails');
	RAISE 'failed';
END $$;
CREATE FUNCTION instead(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT say('instead'); SELECT '"instead"'::jsonb$$;
SELECT cqrs_register_chain('Chain', ARRAY['first(jsonb)', 'fails(jsonb)']);
SELECT cqrs_register_fallback('fails(jsonb)', 'instead(jsonb)', max_failures => 0);
SELECT cqrs_send('Chain');
SELECT logged();
SELECT cqrs_unregister_middleware('twice(cqrs_request)');
-- it is no handler of the chain
CREATE FUNCTION passes(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
SELECT cqrs_register_middleware('passes(cqrs_request)');
SELECT error_of($$SELECT cqrs_send('Chain')$$);
SELECT cqrs_unregister_middleware('passes(cqrs_request)');
-- nor has it a fallback
CREATE FUNCTION broken(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / 0)';
SELECT cqrs_register_fallback('broken(cqrs_request)', 'see(cqrs_request)');
SELECT cqrs_register_middleware('broken');
SELECT cqrs_send('Do');
SELECT cqrs_unregister_middleware('broken(cqrs_request)');

-- a repeat runs neither it nor the handler; what it answered is kept
SELECT cqrs_register_middleware('twice(cqrs_request)'), cqrs_register_middleware('b(cqrs_request)');
SELECT cqrs_send('Do', '{}', 'key');
SELECT logged();
SELECT cqrs_send('Do', '{}', 'key');
SELECT logged();
SELECT cqrs_unregister_middleware('twice(cqrs_request)'), cqrs_unregister_middleware('b(cqrs_request)');

-- the context is that of what is dispatched; events have it, and wait for its end
CREATE FUNCTION in_context(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	before cqrs_context := cqrs_context();
	answer jsonb;
BEGIN
	PERFORM cqrs_emit('seen', jsonb_build_object('of', request.name));
	answer := cqrs_proceed();
	ASSERT cqrs_context() = before;
	PERFORM say(format('%s %s: same id %s, same cause %s, cause %s', before.kind, before.name,
					   answer->>'id' = before.id::text,
					   answer->>'causation_id' IS NOT DISTINCT FROM before.causation_id,
					   before.causation_id IS NOT NULL));
	RETURN answer;
END $$;
CREATE FUNCTION tell(jsonb) RETURNS cqrs_context LANGUAGE sql AS $$SELECT say('told'); SELECT cqrs_context()$$;
CREATE FUNCTION tell_nested(jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT to_jsonb(cqrs_context()) || jsonb_build_object('nested', cqrs_send('Tell'))
$$;
CREATE FUNCTION on_seen_event(e cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT say(format('event of %s, caused by it %s', e.payload->>'of', e.headers ? 'causation_id'))
$$;
SELECT cqrs_register_command('Tell', 'tell(jsonb)'), cqrs_register_command('TellNested', 'tell_nested(jsonb)'),
	   cqrs_register_event_handler('seen', 'on_seen_event(cqrs_event)'), cqrs_register_middleware('in_context(cqrs_request)');
SELECT answer->'id' = answer->'correlation_id' AS is_origin, answer->'causation_id' AS caused_by,
	   answer->'nested'->'causation_id' = answer->'id' AS nested_caused, answer->'nested'->'correlation_id' = answer->'id' AS nested_correlated
FROM cqrs_send('TellNested') answer;
SELECT logged();
SELECT cqrs_context() IS NULL AS is_null;
SELECT cqrs_unregister_middleware('in_context(cqrs_request)'), cqrs_unregister_event_handler('seen', 'on_seen_event(cqrs_event)');

-- the depth is that of commands, and what a middleware sends counts
CREATE FUNCTION endless(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_send('Do')$$;
SET cqrs_outbox.max_command_depth = 2;
SELECT cqrs_register_middleware('a(cqrs_request)'), cqrs_register_middleware('b(cqrs_request)');
SELECT cqrs_send('Nest');
SELECT logged();
SET cqrs_outbox.max_command_depth = 1;
SELECT cqrs_send('Nest');
RESET cqrs_outbox.max_command_depth;
SELECT cqrs_unregister_middleware('a(cqrs_request)'), cqrs_unregister_middleware('b(cqrs_request)');
SELECT cqrs_register_middleware('endless(cqrs_request)');
SET cqrs_outbox.max_command_depth = 3;
SELECT error_of($$SELECT cqrs_send('Do')$$);
RESET cqrs_outbox.max_command_depth;
SELECT cqrs_send('Do');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unregister_middleware('endless(cqrs_request)');

-- who may not proceed: nobody, a handler, one of a nested command, of an event, of a subscription
SELECT error_of('SELECT cqrs_proceed()');
CREATE FUNCTION proceeds(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN cqrs_proceed('{"stolen": true}');
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RAISE NOTICE '%', SQLERRM;
	RETURN '"refused"';
END $$;
CREATE FUNCTION proceeds_plain(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
CREATE FUNCTION proceeds_rows(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_register_command('Proceed', 'proceeds(jsonb)'), cqrs_register_command('ProceedPlain', 'proceeds_plain(jsonb)'),
	   cqrs_register_command('ProceedRows', 'proceeds_rows(jsonb)');
SELECT error_of($$SELECT cqrs_send('ProceedPlain')$$);
CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE sql AS 'SELECT say(proceeds(NULL)::text)';
SELECT cqrs_subscribe('s', ARRAY['sights'], 'on_event(cqrs_event)', start => 'latest');
CREATE FUNCTION sends(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF request.name <> 'Do' THEN
		RETURN cqrs_proceed();
	END IF;
	IF request.payload ? 'drain' THEN
		PERFORM cqrs_drain('s');
	ELSE
		PERFORM cqrs_send('Proceed');
	END IF;
	BEGIN
		PERFORM cqrs_stream('ProceedRows');
	EXCEPTION WHEN object_not_in_prerequisite_state THEN
		RAISE NOTICE 'a stream: %', SQLERRM;
	END;
	RETURN cqrs_proceed();
END $$;
SELECT cqrs_register_middleware('sends(cqrs_request)');
SELECT cqrs_send('Do', '{"n": 11}');
SELECT cqrs_emit('seen', '{}') IS NOT NULL AS emitted;
SELECT cqrs_send('Do', '{"drain": true}');
SELECT logged();
SELECT cqrs_unsubscribe('s'), cqrs_unregister_middleware('sends(cqrs_request)');
SELECT cqrs_register_event_handler('seen', 'on_event(cqrs_event)'), cqrs_register_middleware('see(cqrs_request)');
CREATE FUNCTION emits(jsonb) RETURNS void LANGUAGE sql AS $$SELECT cqrs_emit('seen', '{}')$$;
SELECT cqrs_register_command('Emit', 'emits(jsonb)');
SELECT cqrs_send('Emit');
SELECT logged();
SELECT cqrs_unregister_middleware('see(cqrs_request)'), cqrs_unregister_event_handler('seen', 'on_event(cqrs_event)');
-- a query that was opened by a middleware, and is read outside of it, or by a handler
CREATE FUNCTION leaves_cursor(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	c refcursor := 'c';
BEGIN
	IF request.name = 'Fetch' THEN
		RETURN cqrs_proceed();
	END IF;
	OPEN c FOR SELECT cqrs_proceed();
	RETURN to_jsonb(c::text);
END $$;
CREATE FUNCTION fetches(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	c refcursor := 'c';
	answer jsonb;
BEGIN
	FETCH c INTO answer;
	RETURN answer;
END $$;
SELECT cqrs_register_command('Fetch', 'fetches(jsonb)');
SELECT cqrs_register_middleware('leaves_cursor(cqrs_request)');
BEGIN;
SELECT cqrs_send('Do');
FETCH c;
ROLLBACK;
BEGIN;
SELECT cqrs_send('Do');
SELECT error_of($$SELECT cqrs_send('Fetch')$$);
ROLLBACK;
SELECT cqrs_unregister_middleware('leaves_cursor(cqrs_request)');
-- the logging one neither
SELECT cqrs_log_dispatch(NULL);

-- as the caller, who needs EXECUTE
CREATE ROLE regress_cqrs_sender LOGIN;
CREATE ROLE regress_cqrs_auditor;
GRANT ALL ON log TO regress_cqrs_sender;
CREATE TABLE audit (who text, path text, of text);
GRANT ALL ON audit TO regress_cqrs_auditor;
GRANT CREATE ON SCHEMA public TO regress_cqrs_auditor;
CREATE FUNCTION who(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_proceed(jsonb_build_object('middleware', current_user))
$$;
CREATE FUNCTION tell_who(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT c || jsonb_build_object('handler', current_user, 'path', current_setting('search_path'))
$$;
SELECT cqrs_register_command('Who', 'tell_who(jsonb)'), cqrs_register_middleware('who(cqrs_request)');
REVOKE EXECUTE ON FUNCTION who(cqrs_request) FROM PUBLIC;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Who');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_middleware('who(cqrs_request)');
SELECT cqrs_unregister_middleware('who(cqrs_request)');
RESET ROLE;
GRANT EXECUTE ON FUNCTION who(cqrs_request) TO regress_cqrs_sender;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Who');
RESET ROLE;
-- who registers it needs that too
GRANT EXECUTE ON FUNCTION cqrs_register_middleware, cqrs_unregister_middleware TO regress_cqrs_auditor;
SET ROLE regress_cqrs_auditor;
SELECT cqrs_unregister_middleware('who(cqrs_request)');
SELECT cqrs_register_middleware('who(cqrs_request)');
-- one that is SECURITY DEFINER may do what senders may not, and lends it to nobody
CREATE FUNCTION audit(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
	INSERT INTO public.audit VALUES (current_user, current_setting('search_path'), request.name);
	RETURN public.cqrs_proceed() || jsonb_build_object('then', current_user, 'then_path', current_setting('search_path'));
EXCEPTION WHEN division_by_zero THEN
	RETURN jsonb_build_object('caught', current_user, 'path', current_setting('search_path'),
							  'again', public.cqrs_proceed('{}'));
END $$;
SELECT cqrs_register_middleware('audit(cqrs_request)');
CREATE FUNCTION is_auditor(jsonb) RETURNS boolean LANGUAGE sql AS $$SELECT true FROM audit$$;
RESET ROLE;
CREATE FUNCTION around_who(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_register_middleware('around_who(cqrs_request)');
SELECT cqrs_register_command('IsAuditor', 'is_auditor(jsonb)');
CREATE FUNCTION divide(c jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT tell_who('{}') || jsonb_build_object('result', 1 / (c->>'by')::int)
$$;
SELECT cqrs_register_command('Divide', 'divide(jsonb)');
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Who');
SELECT cqrs_send('IsAuditor');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('Divide', '{"by": 0}');
SELECT current_user, current_setting('search_path') AS path;
RESET ROLE;
SELECT * FROM audit;
-- and nothing further in changes what it still does
CREATE FUNCTION sets(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config(c->>'name', c->>'value', false);
	RETURN jsonb_build_object('set', current_setting(c->>'name'));
END $$;
SELECT cqrs_register_command('Sets', 'sets(jsonb)');
GRANT regress_cqrs_auditor TO regress_cqrs_sender;
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Sets', '{"name": "search_path", "value": "public, evil"}');
SELECT current_setting('search_path') AS path;
SELECT error_of($$SELECT cqrs_send('Sets', '{"name": "role", "value": "regress_cqrs_auditor"}')$$);
SELECT current_user;
RESET ROLE;
REVOKE regress_cqrs_auditor FROM regress_cqrs_sender;
-- nor the role that another one gave up
CREATE FUNCTION sandbox(cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE regress_cqrs_sender;
	RETURN cqrs_proceed();
END $$;
SELECT cqrs_send('Who')->'handler' AS handler;
SELECT cqrs_register_middleware('sandbox(cqrs_request)', -1);
BEGIN;
SELECT cqrs_send('Who')->'handler' AS handler;
ROLLBACK;
SELECT cqrs_unregister_middleware('sandbox(cqrs_request)');
-- the function of somebody else that it calls proceeds as that one
CREATE FUNCTION others(cqrs_request) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS 'SELECT cqrs_proceed()';
ALTER FUNCTION others(cqrs_request) OWNER TO regress_cqrs_auditor;
CREATE FUNCTION calls_others(request cqrs_request) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS 'SELECT others(request)';
SELECT cqrs_unregister_middleware('audit(cqrs_request)'), cqrs_unregister_middleware('around_who(cqrs_request)');
SELECT cqrs_register_middleware('calls_others(cqrs_request)');
SET ROLE regress_cqrs_sender;
SELECT cqrs_send('Who')->'handler' AS handler;
RESET ROLE;
SELECT cqrs_unregister_middleware('calls_others(cqrs_request)');

-- a deferred command has it when it is executed
CREATE FUNCTION see_deferred(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	PERFORM say(format('%s %s %s as %s', (cqrs_context()).kind, request.name, (cqrs_context()).id, current_user));
	RETURN cqrs_proceed();
END $$;
ALTER FUNCTION do_it(jsonb) SET search_path = public;
GRANT INSERT ON cqrs_topics.handlings TO regress_cqrs_sender;
GRANT EXECUTE ON FUNCTION cqrs_drain(text) TO regress_cqrs_sender;
SELECT cqrs_register_middleware('see_deferred(cqrs_request)');
SET ROLE regress_cqrs_sender;
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Do', '{"deferred": true}') AS id \gset
SELECT cqrs_drain('commands_of_regress_cqrs_sender');
RESET ROLE;
SELECT replace(line, :'id', 'id') FROM logged() line;
SELECT cqrs_unregister_middleware('see_deferred(cqrs_request)'), cqrs_unsubscribe('commands_of_regress_cqrs_sender');

-- one that is gone: nothing can be sent, until an administrator removes it
CREATE FUNCTION gone(cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_register_middleware('gone(cqrs_request)');
SELECT cqrs_send('Void') IS NULL AS sent;
DROP FUNCTION gone(cqrs_request);
SELECT error_of($$SELECT cqrs_send('Void')$$);
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE problem = 'middleware_missing';
-- made anew with another result, or as something else
CREATE FUNCTION gone(cqrs_request) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT error_of($$SELECT cqrs_send('Void')$$);
DROP FUNCTION gone(cqrs_request);
CREATE FUNCTION gone(cqrs_request) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_send('Void');
DROP FUNCTION gone(cqrs_request);
CREATE FUNCTION gone(cqrs_request, int DEFAULT 0) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_send('Void');
DROP FUNCTION gone(cqrs_request, int);
-- made anew as it was
CREATE FUNCTION gone(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT '"back"'::jsonb$$;
SELECT cqrs_send('Void');
CREATE OR REPLACE FUNCTION gone(cqrs_request) RETURNS jsonb LANGUAGE sql AS $$SELECT '"replaced"'::jsonb$$;
SELECT cqrs_send('Void');
DROP FUNCTION gone(cqrs_request);
SELECT cqrs_unregister_middleware('gone(cqrs_request)');
SELECT cqrs_unregister_middleware('public.gone(public.cqrs_request)', if_exists => true);
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT count(*) FROM cqrs_health() WHERE problem = 'middleware_missing';

-- registered and removed in a transaction, and rolled back; while a dispatch runs, it keeps what it began with
BEGIN;
SELECT cqrs_register_middleware('b(cqrs_request)');
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT count(*) FROM logged();
ROLLBACK;
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT count(*) FROM logged();
SELECT cqrs_register_middleware('b(cqrs_request)');
BEGIN;
SAVEPOINT s;
SELECT cqrs_unregister_middleware('b(cqrs_request)');
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT count(*) FROM logged();
ROLLBACK TO s;
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT count(*) FROM logged();
COMMIT;
CREATE FUNCTION removes(cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_unregister_middleware('b(cqrs_request)'), cqrs_unregister_middleware('removes(cqrs_request)');
	RETURN cqrs_proceed();
END $$;
SELECT cqrs_register_middleware('removes(cqrs_request)', -1);
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT logged();
SELECT cqrs_send('Void') IS NULL AS sent;
SELECT logged();

-- what cannot be registered
\set VERBOSITY default
SELECT cqrs_register_middleware('b(cqrs_request)');
SELECT cqrs_register_middleware('b(cqrs_request)', 1);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_middleware('do_it(jsonb)');
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION returns_text(cqrs_request) RETURNS text LANGUAGE sql AS 'SELECT NULL';
SELECT cqrs_register_middleware('returns_text(cqrs_request)');
SELECT cqrs_register_middleware('around(cqrs_request, text)');
SELECT cqrs_register_middleware(NULL);
SELECT cqrs_register_middleware('no_such(cqrs_request)');
SELECT cqrs_unregister_middleware(NULL);
SELECT cqrs_unregister_middleware('a(cqrs_request)');
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT cqrs_register_middleware('a(cqrs_request)');
ROLLBACK;
SELECT cqrs_unregister_middleware('b(cqrs_request)');

-- the logging one: the answer comes through; 056_middleware_hook.pl sees what it logs
SELECT cqrs_register_middleware('cqrs_log_dispatch(cqrs_request)');
SET log_min_messages = fatal;
SELECT cqrs_send('Do', '{"n": 12}'), cqrs_send('Void') IS NULL AS is_null, cqrs_query('Ask');
\set VERBOSITY terse
SELECT cqrs_send('Do', '{"error": "22012"}');
\echo :LAST_ERROR_SQLSTATE
RESET log_min_messages;
SELECT cqrs_unregister_middleware('cqrs_log_dispatch(cqrs_request)');
DROP FUNCTION around(cqrs_request, text), a, b, c, d, stamp, see, pass, unstamp, watch, swallow, retry, twice, passes, broken,
	in_context, endless, on_seen_event, tell, on_event, sends, leaves_cursor, who, audit, around_who, sandbox, others,
	calls_others, see_deferred, removes, returns_text;
SELECT cqrs_drop_topic('handlings', true), cqrs_drop_topic('sights', true);
DROP EXTENSION cqrs_outbox;
DROP TABLE log, audit;
DROP FUNCTION sets, say, logged, error_of, emitted, do_it, ask, nest, on_seen, rows, void, first, fails, instead, tell_nested, proceeds,
	proceeds_plain, proceeds_rows, fetches, emits, tell_who, is_auditor, divide, pay, receive;
DROP TYPE payment, letter;
REVOKE CREATE ON SCHEMA public FROM regress_cqrs_auditor;
DROP ROLE regress_cqrs_sender, regress_cqrs_auditor;
