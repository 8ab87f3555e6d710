-- Dry runs: what a command would answer and emit, without effect.
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
SELECT cqrs_register_event('ordered', 'orders'), cqrs_register_event('booked', 'bookings'),
	   cqrs_register_event('shipped', 'orders'), cqrs_register_event('noticed');
CREATE TABLE orders (id int PRIMARY KEY, amount int);
CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, line text);
CREATE FUNCTION say(line text) RETURNS void LANGUAGE sql AS 'INSERT INTO log (line) VALUES (line)';
-- the events, as "name[/topic][ key] payload"
CREATE FUNCTION brief(events cqrs_event[]) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(concat(event_name, '/' || topic, ' ' || key, ' ' || payload::text), ', ' ORDER BY n), 'none')
	FROM unnest(events) WITH ORDINALITY e (position, event_id, event_name, topic, key, payload, headers, emitted_at, n)
$$;
-- what is there; a dry run changes nothing of it
CREATE FUNCTION state(OUT orders bigint, OUT lines bigint, OUT events bigint) LANGUAGE sql AS $$
	SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM log), (SELECT count(*) FROM cqrs_events(status => 'all'))
$$;

CREATE FUNCTION place(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO orders VALUES ((c->>'id')::int, (c->>'amount')::int);
	PERFORM cqrs_emit('ordered', c, key => c->>'id', headers => '{"h": 1}');
	PERFORM say('placed');
	RETURN (SELECT to_jsonb(o) FROM orders o WHERE id = (c->>'id')::int);
END $$;
SELECT cqrs_register_command('Place', 'place(jsonb)');
SELECT answer, brief(events) FROM cqrs_dry_run('Place', '{"id": 1, "amount": 10}');
SELECT * FROM state();
SELECT last_value AS before FROM cqrs.position \gset
SELECT e.position, substr(e.event_id::text, 15, 1) AS uuid_version, e.event_name, e.topic, e.key, e.payload,
	   e.headers->'h' AS h, e.headers ? 'causation_id' AS has_cause,
	   e.emitted_at BETWEEN now() AND clock_timestamp() AS emitted_now
FROM cqrs_dry_run('Place', '{"id": 1, "amount": 10}'), unnest(events) e;
-- of what has been drawn from sequences, nothing comes back
SELECT last_value - :before AS positions FROM cqrs.position;
-- what it says is what is done
SELECT cqrs_send('Place', '{"id": 1, "amount": 10}');
SELECT * FROM state();
-- neither an answer nor events
CREATE FUNCTION nothing(c jsonb) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_command('Nothing', 'nothing(jsonb)');
SELECT * FROM cqrs_dry_run('Nothing');
SELECT * FROM cqrs_dry_run('Nothing', NULL);
-- many in one statement; others that it is in go on
SELECT count(*), count(DISTINCT answer), sum(cardinality(events))
FROM generate_series(2, 200) n, cqrs_dry_run('Place', jsonb_build_object('id', n));
BEGIN;
INSERT INTO orders VALUES (2, 20);
SELECT answer FROM cqrs_dry_run('Place', '{"id": 3, "amount": 30}');
SELECT count(*) FROM pg_locks WHERE relation IN (SELECT c.oid FROM pg_class c WHERE relname LIKE 'topic\_%' AND relkind = 'r')
									 AND pid = pg_backend_pid() AND mode = 'RowExclusiveLock';
SELECT cqrs_send('Place', '{"id": 3, "amount": 31}');
COMMIT;
SELECT * FROM state();

-- every way to emit, in order: one, many, triggers, to another topic, to none;
-- by the handler, by commands that it sends, and then by handlers of events
CREATE TABLE captured (id int PRIMARY KEY);
SELECT cqrs_register_event('by_row', 'rows'), cqrs_register_event('by_statement', 'rows', 'captured');
CREATE TRIGGER by_row AFTER INSERT ON captured FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('by_row', 'id');
CREATE TRIGGER by_statement AFTER INSERT ON captured REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('by_statement', 'id');
CREATE FUNCTION every_way(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('shipped', '{"n": 1}');
	PERFORM cqrs_emit_many('shipped', ARRAY['{"n": 2}', NULL]::jsonb[], ARRAY['k', 'l']);
	INSERT INTO captured VALUES (1), (2);
	PERFORM cqrs_emit('shipped', '{"n": 3}', topic => 'bookings');
	PERFORM cqrs_emit('noticed', '{"n": 4}');
	PERFORM cqrs_send('Place', '{"id": 4}');
	PERFORM cqrs_emit('noticed', '{"n": 5}');
	RETURN 'answer';
END $$;
CREATE FUNCTION on_noticed(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say('noticed'), cqrs_emit('booked', p);
	IF p->>'n' = '5' THEN
		PERFORM cqrs_send('Place', '{"id": 5}');
	END IF;
END $$;
CREATE FUNCTION on_booked(e cqrs_event) RETURNS void LANGUAGE sql AS $$SELECT cqrs_emit('noticed', '{"n": 6}', e.event_name) WHERE e.payload->>'n' = '5'$$;
SELECT cqrs_register_event_handler('noticed', 'on_noticed(jsonb)'), cqrs_register_event_handler('booked', 'on_booked(cqrs_event)'),
	   cqrs_register_command('EveryWay', 'every_way(jsonb)');
SELECT answer, brief(ARRAY[e]) FROM cqrs_dry_run('EveryWay'), unnest(events) e;
SELECT * FROM state();
-- these are the events that cqrs_send() emits
SELECT last_value AS before FROM cqrs.position \gset
BEGIN;
SELECT array_agg(concat_ws(' ', e.event_name, e.topic, e.key, e.payload)) AS expected
FROM cqrs_dry_run('EveryWay'), unnest(events) e WHERE topic IS NOT NULL \gset
SELECT cqrs_send('EveryWay');
SELECT count(*), array_agg(concat_ws(' ', event_name, topic, key, payload) ORDER BY position) = :'expected' AS same
FROM cqrs_events(status => 'all', after_position => :before);
ROLLBACK;

-- only what would be left: not of blocks, handlers and primaries that are rolled back
CREATE FUNCTION tries(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('shipped', '{"n": 1}');
	BEGIN
		PERFORM cqrs_emit('shipped', '{"n": 2}');
		BEGIN
			PERFORM cqrs_emit_many('shipped', ARRAY['{"n": 3}', '{"n": 4}']::jsonb[]);
		EXCEPTION WHEN OTHERS THEN
		END;
		PERFORM cqrs_emit('noticed', '{"n": 5}'), 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM cqrs_emit('shipped', '{"n": 6}');
	END;
	BEGIN
		BEGIN
			PERFORM cqrs_emit('shipped', '{"n": 7}');
		EXCEPTION WHEN OTHERS THEN
		END;
		PERFORM cqrs_emit('shipped', '{"n": 8}');
	EXCEPTION WHEN OTHERS THEN
	END;
	RETURN 'tried';
END $$;
CREATE FUNCTION passes_on(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT cqrs_emit('shipped', '{"n": 9}'); SELECT cqrs_next()$$;
CREATE FUNCTION fails(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT cqrs_emit('shipped', '{"n": 10}'); SELECT (1 / 0)::text$$;
CREATE FUNCTION falls_back(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT cqrs_emit('shipped', '{"n": 11}'); SELECT 'fallback'$$;
SELECT cqrs_register_command('Try', 'tries(jsonb)'), cqrs_register_chain('PassOn', ARRAY['passes_on(jsonb)', 'tries(jsonb)']),
	   cqrs_register_chain('Fail', ARRAY['passes_on(jsonb)', 'fails(jsonb)']),
	   cqrs_register_fallback('fails(jsonb)', 'falls_back(jsonb)', max_failures => 2, reset_after => '1 hour');
SELECT c, answer, brief(events) FROM unnest(ARRAY['Try', 'PassOn', 'Fail']) c, cqrs_dry_run(c);

-- a circuit breaker decides what is called, and counts nothing
SELECT count(*) FROM generate_series(1, 5), cqrs_dry_run('Fail');
SELECT state, failures FROM cqrs_breaker_status;
SELECT cqrs_send('Fail'), cqrs_send('Fail');
SELECT state, failures FROM cqrs_breaker_status;
CREATE OR REPLACE FUNCTION fails(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'works'$$;
SELECT answer FROM cqrs_dry_run('Fail');
UPDATE cqrs.fallback SET reset_after = '0';
SELECT answer FROM cqrs_dry_run('Fail');
SELECT state, failures FROM cqrs_breaker_status;
SELECT cqrs_send('Fail');
SELECT state, failures FROM cqrs_breaker_status;

-- an error is that of cqrs_send(), and leaves nothing either
SELECT cqrs_dry_run('Place', '{"id": 1}');
SELECT cqrs_send('Place', '{"id": 1}');
\set VERBOSITY default
SELECT cqrs_dry_run('Place', '{"id": "one"}');
\set VERBOSITY terse
CREATE FUNCTION refuse(p jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'refused'; END$$;
SELECT cqrs_register_event_handler('shipped', 'refuse(jsonb)');
SELECT cqrs_dry_run('Try');
SELECT cqrs_unregister_event_handler('shipped', 'refuse(jsonb)');
SELECT answer, brief(events) FROM cqrs_dry_run('Place', '{"id": 6}');
SELECT cqrs_dry_run('Unknown');
SELECT cqrs_dry_run(NULL);
SELECT cqrs_dry_run('Place', '[]');
CREATE FUNCTION rows(c jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
SELECT cqrs_register_command('Rows', 'rows(jsonb)'), cqrs_register_query('Nothing?', 'nothing(jsonb)');
SELECT cqrs_dry_run('Rows');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_dry_run('Nothing?');
\echo :LAST_ERROR_SQLSTATE

-- deferred constraints and triggers: what would be told at commit
CREATE TABLE line (order_id int REFERENCES orders DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION on_line() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM say('line ' || NEW.order_id); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER on_line AFTER INSERT ON line DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_line();
CREATE CONSTRAINT TRIGGER by_row AFTER INSERT ON line DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('by_row', 'order_id');
CREATE FUNCTION add_line(c jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO line VALUES ((c->>'id')::int);
	SELECT cqrs_emit('noticed', c)
$$;
SELECT cqrs_register_command('AddLine', 'add_line(jsonb)');
TRUNCATE log;
SELECT cqrs_dry_run('AddLine', '{"id": 77}');
\echo :LAST_ERROR_SQLSTATE
SELECT brief(events) FROM cqrs_dry_run('AddLine', '{"id": 1}');
SELECT * FROM state();
-- what the transaction has deferred is fired once, at its own commit; constraints are as deferred as before
BEGIN;
INSERT INTO line VALUES (1);
SELECT brief(events) FROM cqrs_dry_run('AddLine', '{"id": 2}');
SELECT cqrs_send('AddLine', '{"id": 3}');
INSERT INTO line VALUES (88);
SAVEPOINT s;
SELECT cqrs_dry_run('Nothing');
ROLLBACK TO s;
INSERT INTO orders VALUES (88);
SELECT brief(events) FROM cqrs_dry_run('Nothing');
SELECT line FROM log WHERE line LIKE 'line%';
COMMIT;
SELECT line FROM log WHERE line LIKE 'line%' ORDER BY n;
SELECT payload->'new' FROM cqrs_events('rows', status => 'all') WHERE event_name = 'by_row';
-- a constraint that was made immediate stays so
BEGIN;
SET CONSTRAINTS ALL IMMEDIATE;
SELECT count(*) FROM cqrs_dry_run('AddLine', '{"id": 1}');
INSERT INTO line VALUES (77);
ROLLBACK;

-- within a handler: its events wait for its own end; those of the dry run are handled in there
CREATE FUNCTION asks(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	result jsonb;
BEGIN
	PERFORM cqrs_emit('noticed', '{"n": "mine"}');
	SELECT jsonb_build_object('answer', answer, 'events', brief(events)) INTO result FROM cqrs_dry_run(c->>'ask', c->'payload');
	PERFORM say('asked');
	PERFORM cqrs_emit('noticed', '{"n": "mine too"}');
	RETURN result;
END $$;
SELECT cqrs_register_command('Ask', 'asks(jsonb)');
TRUNCATE log;
SELECT last_value AS before FROM cqrs.position \gset
SELECT cqrs_send('Ask', '{"ask": "EveryWay", "payload": {}}')->>'events' = (SELECT brief(events) FROM cqrs_dry_run('EveryWay')) AS same;
SELECT line FROM log ORDER BY n;
SELECT event_name, payload FROM cqrs_events(status => 'all', after_position => :before);
-- a dry run within a dry run, whose events are none of the outer one's
\x
SELECT answer, brief(events)
FROM cqrs_dry_run('Ask', '{"ask": "Ask", "payload": {"ask": "Place", "payload": {"id": 9}}}');
\x
-- an error in there, caught
CREATE FUNCTION asks_carefully(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('noticed', '{"n": 1}');
	BEGIN
		PERFORM cqrs_dry_run('Place', '{"id": 1}');
	EXCEPTION WHEN unique_violation THEN
		PERFORM cqrs_emit('noticed', '{"n": 2}');
		RETURN 'caught';
	END;
END $$;
SELECT cqrs_register_command('AskCarefully', 'asks_carefully(jsonb)');
SELECT answer, brief(events) FROM cqrs_dry_run('AskCarefully');
SELECT last_value AS before FROM cqrs.position \gset
SELECT cqrs_send('AskCarefully');
SELECT event_name, payload FROM cqrs_events(status => 'all', after_position => :before);
-- in an event's handler; that one belongs to no chain
CREATE FUNCTION on_ordered(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM say(brief(events)) FROM cqrs_dry_run('Nested', '{}');
END $$;
CREATE FUNCTION on_shipped(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.key = 'next' THEN
		PERFORM cqrs_next();
	END IF;
END $$;
CREATE FUNCTION nested(c jsonb) RETURNS uuid LANGUAGE sql AS $$SELECT cqrs_emit('shipped', c, c->>'key')$$;
CREATE FUNCTION chained(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_dry_run('Nested', '{"key": "next"}');
	RETURN '"not reached"';
END $$;
SELECT cqrs_register_event_handler('ordered', 'on_ordered(cqrs_event)'), cqrs_register_event_handler('shipped', 'on_shipped(cqrs_event)'),
	   cqrs_register_command('Nested', 'nested(jsonb)'), cqrs_register_chain('Chain', ARRAY['chained(jsonb)', 'nothing(jsonb)']);
TRUNCATE log;
SELECT cqrs_send('Place', '{"id": 10}');
SELECT line FROM log ORDER BY n;
SELECT cqrs_send('Chain');
\echo :LAST_ERROR_SQLSTATE
-- without end
CREATE FUNCTION recursive(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT answer FROM cqrs_dry_run('Recurse')$$;
SELECT cqrs_register_command('Recurse', 'recursive(jsonb)');
SET cqrs_outbox.max_command_depth = 5;
SELECT cqrs_send('Recurse');
\echo :LAST_ERROR_SQLSTATE
RESET cqrs_outbox.max_command_depth;
SELECT answer IS NOT NULL AS answered, brief(events) FROM cqrs_dry_run('Nested', '{"n": 1}');

-- read-only
BEGIN READ ONLY;
SELECT * FROM cqrs_dry_run('Nothing');
SAVEPOINT s;
SELECT cqrs_dry_run('Place', '{"id": 11}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK TO s;
SELECT cqrs_dry_run('Nested');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(d) FROM cqrs_dry_run(c->>'ask', '{"id": 11}') d$$;
SELECT cqrs_register_query('Ask?', 'ask(jsonb)');
SELECT cqrs_query('Ask?', '{"ask": "Nothing"}');
SELECT cqrs_query('Ask?', '{"ask": "Place"}');
\echo :LAST_ERROR_SQLSTATE

-- keys, locks and settings
CREATE FUNCTION leaves(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('work_mem', '77MB', false), pg_advisory_lock(4711), pg_advisory_xact_lock(4712);
	LISTEN regress_cqrs_dry_run;
	CREATE TABLE made ();
	PERFORM cqrs_register_event('made', 'made');
	PERFORM cqrs_emit('made', '{}');
	RETURN cqrs_send('Place', '{"id": 12}', idempotency_key => 'key');
END $$;
SELECT cqrs_register_command('Leave', 'leaves(jsonb)');
BEGIN;
SELECT answer, brief(events) FROM cqrs_dry_run('Leave');
SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT current_setting('work_mem') = '77MB' AS set, to_regclass('made'), count(*) AS channels FROM pg_listening_channels();
COMMIT;
SELECT pg_advisory_unlock(4711);
SELECT cqrs_emit('made', '{}');
SELECT cqrs_send('Place', '{"id": 13}', idempotency_key => 'key');

-- with middleware; commands that are enqueued are no events, and are not enqueued
CREATE FUNCTION wrap(r cqrs_request) RETURNS jsonb LANGUAGE sql AS $$
	SELECT cqrs_emit('noticed', '{"n": "around"}');
	SELECT jsonb_build_object('wrapped', cqrs_proceed())
$$;
CREATE FUNCTION enqueue(c jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT cqrs_enqueue('Nothing'), cqrs_enqueue('Nothing', run_at => now() + interval '1 day');
	SELECT 'enqueued'
$$;
SELECT cqrs_create_command_queue();
SELECT cqrs_register_middleware('wrap(cqrs_request)'), cqrs_register_command('Enqueue', 'enqueue(jsonb)');
SELECT answer, brief(events) FROM cqrs_dry_run('Enqueue');
SELECT cqrs_unregister_middleware('wrap(cqrs_request)');
SELECT (SELECT count(*) FROM cqrs.scheduled_command) AS scheduled, (SELECT count(*) FROM cqrs.subscription) AS subscriptions;
SELECT cqrs_send('Enqueue');
SELECT answer, brief(events) FROM cqrs_dry_run('Enqueue');
SELECT (SELECT count(*) FROM cqrs.scheduled_command) AS scheduled, (SELECT count(*) FROM cqrs.subscription) AS subscriptions;

-- values that are in a table which is gone
CREATE FUNCTION store(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	stored jsonb;
BEGIN
	CREATE TABLE document (doc jsonb);
	ALTER TABLE document ALTER doc SET STORAGE EXTERNAL;
	INSERT INTO document SELECT jsonb_object_agg(n, md5(n::text)) FROM generate_series(1, 2000) n;
	SELECT doc INTO stored FROM document;
	PERFORM cqrs_emit('noticed', doc), cqrs_emit('shipped', doc) FROM document;
	RETURN stored;
END $$;
SELECT cqrs_register_command('Store', 'store(jsonb)');
SELECT event_name, answer->>'2000' = md5('2000') AS answer, e.payload = answer AS payload FROM cqrs_dry_run('Store'), unnest(events) e;

-- many events
CREATE FUNCTION many(c jsonb) RETURNS bigint LANGUAGE sql AS $$
	SELECT cardinality(cqrs_emit_many('booked', array_agg(jsonb_build_object('n', n)))) FROM generate_series(1, 2500) n
$$;
SELECT cqrs_register_command('Many', 'many(jsonb)');
SELECT answer, cardinality(events), events[1].payload AS first, events[2500].payload AS last FROM cqrs_dry_run('Many');

-- privileges are those of the command
CREATE ROLE regress_cqrs_dry;
GRANT SELECT, INSERT ON orders, log TO regress_cqrs_dry;
SET ROLE regress_cqrs_dry;
SELECT cqrs_dry_run('Place', '{"id": 14}');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT INSERT ON cqrs_topics.orders TO regress_cqrs_dry;
SET ROLE regress_cqrs_dry;
SELECT answer, brief(events) FROM cqrs_dry_run('Place', '{"id": 14}');
RESET ROLE;
-- what its event says is for those who may read the topic
GRANT SELECT ON cqrs_topics.orders TO regress_cqrs_dry;
SET ROLE regress_cqrs_dry;
SELECT answer, brief(events) FROM cqrs_dry_run('Place', '{"id": 14}');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION place FROM PUBLIC;
SET ROLE regress_cqrs_dry;
SELECT cqrs_dry_run('Place', '{"id": 14}');
RESET ROLE;
-- nor is that of an event without topic which somebody else's function emits
SELECT cqrs_register_event('inner');
CREATE FUNCTION emit_inner(c jsonb) RETURNS jsonb LANGUAGE sql AS
	$$SELECT to_jsonb(cqrs_emit('inner', '{"secret": 1}') IS NOT NULL)$$;
SELECT cqrs_register_command('Inner', 'emit_inner(jsonb)');
SET ROLE regress_cqrs_dry;
SELECT (events[1]).payload, (events[1]).event_name FROM cqrs_dry_run('Inner');
RESET ROLE;
ALTER FUNCTION emit_inner SECURITY DEFINER;
SET ROLE regress_cqrs_dry;
SELECT (events[1]).payload, (events[1]).event_name FROM cqrs_dry_run('Inner');
RESET ROLE;
DROP FUNCTION emit_inner;
DROP OWNED BY regress_cqrs_dry;
DROP ROLE regress_cqrs_dry;

DROP TABLE orders, line, log, captured CASCADE;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION say, place, nothing, every_way, on_noticed, tries, passes_on, fails, falls_back, refuse, rows, on_line, add_line,
	asks, asks_carefully, nested, chained, recursive, ask, leaves, enqueue, store, many;
