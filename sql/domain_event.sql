-- Domain events: handlers called in the transaction that emits.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_register_event('b');
SELECT cqrs_register_event('c', NULL);
CREATE TYPE order_placed AS (id int, amount numeric);
SELECT cqrs_register_event('placed', payload_type => 'order_placed');

-- what was done, in order
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, line text);
CREATE FUNCTION say(line text) RETURNS void LANGUAGE sql AS 'INSERT INTO log (line) VALUES (line)';
CREATE FUNCTION logged() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	SELECT string_agg(line, ', ' ORDER BY n) INTO result FROM log;
	DELETE FROM log;
	RETURN result;
END $$;

-- every kind of argument, and of answer
CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say(format('%s %s %s %s %s, %s %s', e.event_name, e.topic, e.key, e.payload,
					   nullif(e.headers - ARRAY['causation_id', 'correlation_id'], '{}'),
					   e.position IS NULL, e.emitted_at BETWEEN now() AND clock_timestamp()));
END $$;
CREATE FUNCTION on_jsonb(p jsonb) RETURNS text LANGUAGE sql AS $$SELECT say(coalesce('jsonb ' || p::text, 'tombstone'));
	SELECT 'ignored'$$;
CREATE FUNCTION on_strict(p jsonb) RETURNS int STRICT LANGUAGE plpgsql AS $$BEGIN
	PERFORM say('strict ' || coalesce(p::text, 'not')); RETURN 1; END$$;
CREATE FUNCTION on_placed(o order_placed) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say(format('order %s: %s', o.id, o.amount + 1)); RETURN NULL;
END $$;
SELECT cqrs_register_event_handler('a', 'on_strict(jsonb)');
SELECT cqrs_register_event_handler('a', 'on_event(cqrs_event)');
SELECT cqrs_register_event_handler('a', 'on_jsonb(jsonb)');
SELECT cqrs_register_event_handler('b', 'on_event(cqrs_event)');
SELECT cqrs_register_event_handler('placed', 'on_placed(order_placed)');
SELECT cqrs_register_event_handler('placed', 'on_event(cqrs_event)');
SELECT cqrs_register_event_handler('placed', 'on_jsonb(jsonb)');
SELECT event_name, handler, row_number() OVER (ORDER BY seq) FROM cqrs.event_handler ORDER BY seq;
SELECT cqrs_emit('a', '{"x": 1}', 'k', '{"h": 1}') IS NOT NULL AS emitted;
SELECT logged();
-- in the order of registration, wherever the rows are
UPDATE cqrs.event_handler SET registered_at = now() WHERE handler LIKE 'public.on_strict%';
SELECT cqrs_emit('a', '{"x": 2}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_emit('a', NULL) IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_emit('placed', '{"id": 1, "amount": "2.50"}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_emit('placed', NULL) IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_emit('placed', '{"id": "one"}');
SELECT logged();

-- the handler's event is the one in the outbox
CREATE FUNCTION same(e cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT say('same ' || (ROW(o.position, o.event_id, o.event_name, o.topic, o.key, o.payload, o.headers, o.emitted_at) = e)::text)
	FROM cqrs_events(e.topic) o WHERE o.event_id = e.event_id
$$;
SELECT cqrs_register_event_handler('a', 'same(cqrs_event)');
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
SELECT cqrs_emit('a', '{"x": 3}', event_id => '01890a5d-ac96-774b-bcce-b302099a8057');
RESET cqrs_outbox.traceparent;
SELECT logged();
SELECT cqrs_unregister_event_handler('a', 'same(cqrs_event)');

-- an event may be in no topic, and needs no handler; it goes where cqrs_emit() says
SELECT cqrs_emit('c', '{}', event_id => '01890a5d-ac96-774b-bcce-b302099a8058');
SELECT cardinality(cqrs_emit_many('c', ARRAY['{}', NULL]::jsonb[]));
SELECT cqrs_emit('b', '{"to": "topic_a"}', topic => 'topic_a') IS NOT NULL AS emitted;
SELECT logged();
SELECT event_name, payload FROM cqrs_events('topic_a');
BEGIN READ ONLY;
SELECT cqrs_emit('c', '{}');
ROLLBACK;
SELECT cqrs_emit('c', '[]');

-- registering
SELECT cqrs_register_event_handler('a', 'on_jsonb(jsonb)');
SELECT cqrs_register_event_handler('nothing', 'on_jsonb(jsonb)');
SELECT cqrs_register_event_handler(NULL, 'on_jsonb(jsonb)');
SELECT cqrs_register_event_handler('a', NULL);
SELECT cqrs_register_event_handler('a', 'on_placed(order_placed)');
SELECT cqrs_register_event_handler('placed', 'logged()');
SELECT cqrs_register_event_handler('placed', 'say(text)');
SELECT cqrs_register_event_handler('a', 'jsonb_object_keys(jsonb)');
SELECT cqrs_unregister_event_handler('a', 'say(text)');
SELECT cqrs_unregister_event_handler('nothing', 'say(text)');
SELECT cqrs_unregister_event_handler('a', 'no_such_function(jsonb)');
SELECT cqrs_unregister_event_handler('a', NULL);
SELECT cqrs_unregister_event_handler(NULL, 'on_jsonb(jsonb)');
CREATE ROLE regress_cqrs_emitter;
SET ROLE regress_cqrs_emitter;
\set VERBOSITY terse
SELECT cqrs_register_event_handler('a', 'on_jsonb(jsonb)');
SELECT cqrs_unregister_event_handler('a', 'on_jsonb(jsonb)');
RESET ROLE;

-- EXECUTE is needed at each call, and no privilege on a topic where there is none
REVOKE EXECUTE ON FUNCTION on_event FROM PUBLIC;
SET ROLE regress_cqrs_emitter;
SELECT cqrs_emit('c', '{}') IS NOT NULL AS emitted;
SELECT cqrs_emit('c', '{}', topic => 'topic_a');
SELECT cqrs_emit('b', '{}');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT EXECUTE ON FUNCTION on_event TO PUBLIC;
\set VERBOSITY default

-- in a command: after its handler, before cqrs_send() returns; breadth first
CREATE FUNCTION first(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say('first ' || (p->>'n')), cqrs_emit('second', p || '{"from": "first"}');
	PERFORM say('first done');
END $$;
CREATE FUNCTION first_too(p jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT say('first too ' || (p->>'n')), cqrs_send('Nested', p)
$$;
CREATE FUNCTION second(p jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT say(format('second %s from %s', p->>'n', p->>'from')), cqrs_emit('third', p)
$$;
CREATE FUNCTION third(p jsonb) RETURNS void LANGUAGE sql AS $$SELECT say(format('third %s from %s', p->>'n', p->>'from'))$$;
CREATE FUNCTION nested(p jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT say('nested ' || (p->>'n')), cqrs_emit('second', p || '{"from": "nested"}'), say('nested done')
$$;
CREATE FUNCTION outermost(p jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('first', '{"n": 1}');
	PERFORM cqrs_send('Nested', '{"n": 2}');
	PERFORM cqrs_emit_many('first', ARRAY['{"n": 3}', '{"n": 4}']::jsonb[]);
	PERFORM say('outermost done');
	RETURN 'answer';
END $$;
SELECT cqrs_register_event(e) FROM unnest(ARRAY['first', 'second', 'third']) e;
SELECT cqrs_register_event_handler('first', 'first(jsonb)'), cqrs_register_event_handler('first', 'first_too(jsonb)'),
	   cqrs_register_event_handler('second', 'second(jsonb)'), cqrs_register_event_handler('third', 'third(jsonb)'),
	   cqrs_register_command('Nested', 'nested(jsonb)'), cqrs_register_command('Outermost', 'outermost(jsonb)');
SELECT cqrs_send('Outermost');
SELECT line FROM log ORDER BY n;
SELECT logged() IS NOT NULL AS logged;
-- outside of any: at once, with all that follows
SELECT cqrs_emit('second', '{"n": 5, "from": "me"}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cardinality(cqrs_emit_many('second', ARRAY['{"n": 6, "from": "me"}', '{"n": 7, "from": "me"}']::jsonb[]));
SELECT logged();
-- a handler sees what the command did, whatever its volatility
CREATE FUNCTION stable(p jsonb) RETURNS int STABLE LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% lines', (SELECT count(*) FROM log);
	RETURN 0;
END $$;
SELECT cqrs_register_event_handler('third', 'stable(jsonb)');
SELECT cqrs_send('Nested', '{"n": 8}');
SELECT logged();

-- four commands, four events, each handled before its command returns
CREATE FUNCTION join_meeting(c jsonb) RETURNS void LANGUAGE sql AS $$SELECT say('joins'), cqrs_emit('b', c)$$;
SELECT cqrs_register_command('JoinMeeting', 'join_meeting(jsonb)');
SELECT user_id, cqrs_send('JoinMeeting', jsonb_build_object('user', user_id)) IS NULL AS sent, logged()
FROM generate_series(1, 4) user_id;

-- handlers in C: what the first does is send a command; the second does not take this payload
CREATE TYPE numbered AS (n int);
CREATE FUNCTION on_c(numbered) RETURNS jsonb LANGUAGE c STRICT AS '$libdir/cqrs_outbox', 'cqrs_send_composite';
CREATE FUNCTION sent_by_c(numbered) RETURNS void LANGUAGE sql AS $$
	SELECT say(format('%s %s: %s', (cqrs_context()).kind, (cqrs_context()).name, $1.n))
$$;
SELECT cqrs_register_event('c', payload_type => 'numbered', or_replace => true);
SELECT cqrs_register_command('SentByC', 'sent_by_c'), cqrs_register_event_handler('c', 'on_c');
SELECT cqrs_emit('c', '{"n": 1}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_register_event_handler('c', 'jsonb_array_length(jsonb)');
SELECT cqrs_emit('c', '{"n": 2}');
SELECT logged();
SELECT cqrs_unregister_event_handler('c', 'jsonb_array_length(jsonb)'), cqrs_unregister_event_handler('c', 'on_c'),
	   cqrs_unregister_command('SentByC'), cqrs_register_event('c', or_replace => true);
DROP FUNCTION on_c, sent_by_c;
DROP TYPE numbered;

-- an error aborts; it keeps what it is, and says what led there
CREATE FUNCTION fails(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'out of stock' USING ERRCODE = 'P0042', HINT = 'Come back later.';
END $$;
SELECT cqrs_register_event_handler('third', 'fails(jsonb)');
SELECT cqrs_send('Nested', '{"n": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('third', '{"n": 1}');
SELECT cqrs_emit('second', '{"n": 1}');
\set VERBOSITY terse
SELECT count(*) FROM log;
-- and is caught where somebody does
CREATE FUNCTION catching(p jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('b', '{"before": true}');
	BEGIN
		PERFORM cqrs_emit('third', '{}');
		BEGIN
			PERFORM cqrs_emit('third', '{}');
		EXCEPTION WHEN others THEN
			RAISE EXCEPTION 'not here';
		END;
		PERFORM say('put off');
		PERFORM cqrs_send('Nested', '{"n": 1}');
		RAISE EXCEPTION 'never mind';
	EXCEPTION WHEN raise_exception THEN
		PERFORM say('caught ' || sqlerrm);
	END;
	BEGIN
		PERFORM cqrs_emit('b', '{"kept": true}');
	EXCEPTION WHEN others THEN
		RAISE EXCEPTION 'not here';
	END;
	PERFORM cqrs_emit('b', '{"after": true}');
	RETURN 'done';
END $$;
SELECT cqrs_register_command('Catching', 'catching(jsonb)');
SELECT cqrs_send('Catching');
SELECT logged();
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN others THEN
	RETURN sqlstate || ' ' || sqlerrm;
END $$;
BEGIN;
SELECT try($$SELECT cqrs_send('Outermost')$$);
SELECT try($$SELECT cqrs_emit('third', '{}')$$);
SELECT try($$SELECT cqrs_emit('b', '{}')$$);
SELECT logged();
COMMIT;
-- in a handler, too
CREATE FUNCTION careful(p jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT say(try('SELECT 1 / 0')), say(try('SELECT cqrs_emit(''b'', ''{"lost": true}''), 1 / 0')),
		   say(try('SELECT cqrs_emit(''b'', ''{"emitted": true}'')'))
$$;
SELECT cqrs_register_event_handler('c', 'careful(jsonb)');
SELECT cqrs_emit('c', '{}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_unregister_event_handler('third', 'fails(jsonb)');

-- savepoints around it
BEGIN;
SAVEPOINT s;
SELECT cqrs_emit('b', '{"n": 1}') IS NOT NULL AS emitted;
ROLLBACK TO s;
SELECT cqrs_emit('b', '{"n": 2}') IS NOT NULL AS emitted;
SAVEPOINT s2;
SELECT cqrs_send('Nested', '{"n": 3}');
RELEASE s;
COMMIT;
SELECT logged();

-- a chain: what was emitted by who passed on is not handled
CREATE FUNCTION passes_on(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('b', '{"passed": "on"}');
	RETURN cqrs_next();
END $$;
CREATE FUNCTION answers(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('b', '{"answered": true}'), say('answered');
	RETURN NULL;
END $$;
SELECT cqrs_register_chain('Chain', ARRAY['passes_on(jsonb)', 'answers(jsonb)']);
SELECT cqrs_send('Chain');
SELECT logged();

-- no query emits; the query of a handler does not have the queue worked off
CREATE FUNCTION asks(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('b', '{"asks": true}');
	PERFORM say(format('asked %s', cqrs_query('Ask')));
	PERFORM say('emitting in a query: ' || try('SELECT cqrs_query(''Emit'')'));
END $$;
CREATE FUNCTION ask(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE FUNCTION emit(jsonb) RETURNS uuid LANGUAGE sql AS $$SELECT cqrs_emit('b', '{}')$$;
SELECT cqrs_register_query('Ask', 'ask(jsonb)'), cqrs_register_query('Emit', 'emit(jsonb)'),
	   cqrs_register_command('Asks', 'asks(jsonb)');
SELECT cqrs_send('Asks');
SELECT logged();

-- a stream: before the caller gets the row, or knows that there are no more
CREATE FUNCTION streams(jsonb) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT format('row %s: %s', n, cqrs_emit('b', jsonb_build_object('row', n)) IS NOT NULL)
	FROM generate_series(1, 3) n
$$;
SELECT cqrs_register_command('Stream', 'streams(jsonb)');
BEGIN;
DECLARE c CURSOR FOR SELECT cqrs_stream('Stream');
FETCH 1 FROM c;
SELECT logged();
FETCH 1 FROM c;
SELECT logged();
FETCH ALL FROM c;
SELECT logged();
COMMIT;
CREATE FUNCTION reads(jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	line jsonb;
BEGIN
	FOR line IN SELECT cqrs_stream('Stream') LOOP
		PERFORM say(line->>0);
	END LOOP;
END $$;
SELECT cqrs_register_command('Reads', 'reads(jsonb)');
SELECT cqrs_send('Reads');
SELECT logged();

-- change capture, by row, by statement, and deferred
CREATE TABLE item (id int PRIMARY KEY, name text);
SELECT cqrs_register_event('item_changed');
SELECT cqrs_register_event('item_state', 'items', 'item');
CREATE FUNCTION on_item(i item) RETURNS void LANGUAGE sql AS $$SELECT say(format('item %s', i))$$;
SELECT cqrs_register_event_handler('item_changed', 'on_jsonb(jsonb)');
SELECT cqrs_register_event_handler('item_state', 'on_item(item)');
CREATE TRIGGER by_row AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_changed', 'id');
CREATE TRIGGER by_statement AFTER INSERT ON item REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('item_state', 'id');
INSERT INTO item VALUES (1, 'one'), (2, 'two');
SELECT line FROM log ORDER BY n;
SELECT logged() IS NOT NULL AS logged;
SELECT event_name, key, payload FROM cqrs_events('items');
DROP TRIGGER by_row ON item;
DROP TRIGGER by_statement ON item;
CREATE CONSTRAINT TRIGGER deferred AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_changed', 'id');
BEGIN;
UPDATE item SET name = 'three';
SELECT say('committing');
COMMIT;
SELECT logged();
CREATE FUNCTION changes(jsonb) RETURNS void LANGUAGE sql AS $$UPDATE item SET name = 'four' WHERE id = 1; SELECT say('changed')$$;
SELECT cqrs_register_command('Change', 'changes(jsonb)');
DROP TRIGGER deferred ON item;
CREATE TRIGGER by_row AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_changed', 'id');
SELECT cqrs_send('Change');
SELECT logged();

-- a cycle ends, and shows
\set VERBOSITY default
CREATE FUNCTION ping(jsonb) RETURNS void LANGUAGE sql AS $$SELECT cqrs_emit('pong', '{}')$$;
CREATE FUNCTION pong(jsonb) RETURNS void LANGUAGE sql AS $$SELECT cqrs_emit('ping', '{}')$$;
SELECT cqrs_register_event('ping', 'topic_a'), cqrs_register_event('pong', 'topic_a'),
	   cqrs_register_event_handler('ping', 'ping(jsonb)'), cqrs_register_event_handler('pong', 'pong(jsonb)');
SET cqrs_outbox.max_event_depth = 4;
SELECT cqrs_emit('ping', '{}');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SET cqrs_outbox.max_event_depth = 2;
SELECT cqrs_emit('second', '{"n": 9, "from": "me"}') IS NOT NULL AS emitted;
SET cqrs_outbox.max_event_depth = 1;
SELECT cqrs_emit('second', '{"n": 9, "from": "me"}');
-- the depth is that of a chain of causes, not of the queue
SET cqrs_outbox.max_event_depth = 3;
SELECT cqrs_send('Outermost');
RESET cqrs_outbox.max_event_depth;
SELECT cqrs_emit('ping', '{}');
SELECT event_name FROM cqrs_events('topic_a') WHERE event_name LIKE 'p_ng';
SELECT logged() IS NOT NULL AS logged;

-- handlers that are gone, or are something else
\set VERBOSITY default
DROP FUNCTION third(jsonb);
SELECT cqrs_emit('third', '{}');
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE problem = 'event_handler_missing';
SELECT cqrs_unregister_event_handler('third', 'third(jsonb)');
SELECT cqrs_unregister_event_handler('third', 'public.third(pg_catalog.jsonb)', if_exists => true);
SELECT count(*) FROM cqrs_health() WHERE problem = 'event_handler_missing';
SELECT cqrs_emit('third', '{}') IS NOT NULL AS emitted;
UPDATE cqrs.event_handler SET handler = 'public.say(pg_catalog.text)' WHERE handler = 'public.stable(pg_catalog.jsonb)';
SELECT cqrs_emit('third', '{}');

-- a registration that is rolled back never was; an event goes with its handlers
BEGIN;
SELECT cqrs_register_event_handler('third', 'on_jsonb(jsonb)');
ROLLBACK;
SELECT cqrs_unregister_event('third');
SELECT cqrs_register_event('third');
SELECT cqrs_emit('third', '{}') IS NOT NULL AS emitted;
SELECT logged();
SELECT cqrs_drop_topic('topic_a', cascade => true);
SELECT DISTINCT event_name FROM cqrs.event_handler ORDER BY 1;

DROP TABLE item CASCADE;
SELECT cqrs_drop_topic('items', cascade => true);
\set VERBOSITY terse
DROP FUNCTION on_event, same;
DROP EXTENSION cqrs_outbox;
DROP ROLE regress_cqrs_emitter;
DROP FUNCTION say, logged, on_jsonb, on_strict, on_placed, first, first_too, second, nested, outermost, stable, fails,
	catching, try, careful, join_meeting, passes_on, answers, asks, ask, emit, streams, reads, changes, ping, pong;
DROP TYPE order_placed;
DROP TABLE log;
