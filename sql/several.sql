-- A handler that takes several events at once, cqrs_event[]: one call, one
-- transaction; if it fails, the event that makes it fail is found.
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
SELECT cqrs_register_event('happened', 'things');
CREATE TABLE calls (call serial, events int, context cqrs_context);
CREATE SEQUENCE tries;
CREATE TABLE got (seq serial, call int, key text, n int);
CREATE TABLE bad (n int);
CREATE FUNCTION take(events cqrs_event[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	this int;
BEGIN
	PERFORM nextval('tries');
	INSERT INTO calls (events, context) VALUES (cardinality(events), cqrs_context()) RETURNING call INTO this;
	INSERT INTO got (call, key, n) SELECT this, e.key, (e.payload->>'n')::int FROM unnest(events) WITH ORDINALITY e ORDER BY e.ordinality;
	IF EXISTS (SELECT FROM unnest(events) e JOIN bad ON bad.n = (e.payload->>'n')::int) THEN
		RAISE 'one of % is bad', cardinality(events);
	END IF;
END $$;
CREATE FUNCTION emit_many(lo int, hi int) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => i % 7)) FROM generate_series(lo, hi) i
$$;
CREATE VIEW summary AS SELECT (SELECT count(*) FROM got) AS got, (SELECT count(DISTINCT n) FROM got) AS different,
	(SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY seq) AS before FROM got) g WHERE n < before) AS out_of_order;

SELECT cqrs_subscribe('taker', ARRAY['things'], 'take', max_attempts => 3, retry_delay => '0');
SELECT cqrs_subscribe('taker', ARRAY['things'], 'take(cqrs_event[])', max_attempts => 3, retry_delay => '0');
SELECT handler FROM cqrs_subscriptions;

-- all at once, in order
SELECT emit_many(1, 100);
SELECT cqrs_drain('taker');
SELECT events, (context).kind, (context).name, (context).topic, (context).key, (context).attempts FROM calls;
SELECT * FROM summary;
-- the first ones
SELECT n FROM got ORDER BY seq LIMIT 3;

-- one is bad: it is found, and the others are handled, once
TRUNCATE calls, got;
SELECT setval('tries', 1, false);
INSERT INTO bad VALUES (150);
SELECT emit_many(101, 300);
SET client_min_messages = error;
SELECT cqrs_drain('taker');
RESET client_min_messages;
SELECT last_value < 40 AS few_calls, last_value < (SELECT count(*) FROM got) AS fewer_than_events FROM tries;
SELECT got, different, out_of_order, (SELECT count(*) FROM got WHERE n = 150) AS bad FROM summary;
SELECT max(events) > 10 AS many_again FROM calls;
SELECT key, payload, attempts, error FROM cqrs_retries WHERE attempts > 0;
-- those behind it wait
SELECT count(*) = (SELECT count(*) FROM generate_series(151, 300) i WHERE i % 7 = 150 % 7) AS waits FROM cqrs_retries WHERE waits_for IS NOT NULL;
TRUNCATE bad;
SELECT cqrs_retry_all('taker');
SELECT cqrs_drain('taker');
SELECT * FROM summary;

-- several are bad, until they are given up
TRUNCATE calls, got;
INSERT INTO bad VALUES (310), (311), (400), (599);
SELECT emit_many(301, 600);
SET client_min_messages = error;
SELECT cqrs_drain('taker');
SELECT cqrs_drain('taker'), cqrs_retry_all('taker') AS due;
SELECT cqrs_drain('taker'), cqrs_retry_all('taker') AS due;
SELECT cqrs_drain('taker'), cqrs_retry_all('taker') AS due;
RESET client_min_messages;
SELECT payload, attempts, error FROM cqrs_dead_letters ORDER BY position;
SELECT * FROM summary;
SELECT count(*) FROM cqrs_retries;
TRUNCATE bad;
SELECT cqrs_redrive_all('taker');
SELECT cqrs_drain('taker');
SELECT got, different FROM summary;

-- one that gives up says so of one event
TRUNCATE calls, got;
CREATE OR REPLACE FUNCTION take(events cqrs_event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM unnest(events) e WHERE (e.payload->>'n')::int IN (605, 606) OR e.payload IS NULL) THEN
		RAISE 'never' USING ERRCODE = 'OB100';
	END IF;
	INSERT INTO got (key, n) SELECT e.key, (e.payload->>'n')::int FROM unnest(events) e;
END $$;
SELECT emit_many(601, 610);
SELECT cqrs_emit('happened', NULL, key => 'tombstone') IS NOT NULL;
SET client_min_messages = error;
SELECT cqrs_drain('taker');
RESET client_min_messages;
SELECT payload, attempts FROM cqrs_dead_letters ORDER BY position;
SELECT * FROM summary;

-- large ones do not come all at once
TRUNCATE got;
CREATE OR REPLACE FUNCTION take(events cqrs_event[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO got (call, n) SELECT cardinality(events), length(e.payload->>'text') FROM unnest(events) e
$$;
SELECT count(cqrs_emit('happened', jsonb_build_object('text', repeat('x', 1000000)))) FROM generate_series(1, 10) i;
SELECT cqrs_drain('taker');
SELECT count(*), min(n) = max(n) AS whole, max(call) < 10 AS not_at_once FROM got;

-- a handler is replaced by one that takes several, and back
CREATE FUNCTION take_one(event cqrs_event) RETURNS void LANGUAGE sql AS $$ INSERT INTO got (call) VALUES (1) $$;
SELECT cqrs_alter_subscription('taker', handler => 'take_one');
SELECT emit_many(1, 3);
SELECT cqrs_drain('taker');
SELECT cqrs_alter_subscription('taker', handler => 'take');
SELECT emit_many(1, 3);
SELECT cqrs_drain('taker');
SELECT call, count(*) FROM got WHERE call < 4 AND (n IS NULL OR n < 1000) GROUP BY call ORDER BY call;

-- nothing else takes them
CREATE FUNCTION take_numbers(numbers int[]) RETURNS void LANGUAGE sql AS $$$$;
\set VERBOSITY default
SELECT cqrs_subscribe('other', ARRAY['things'], 'take_numbers');
SELECT cqrs_register_command('Take', 'take');
SELECT cqrs_register_event_handler('happened', 'take');
\set VERBOSITY terse

DROP EXTENSION cqrs_outbox CASCADE;
DROP VIEW IF EXISTS summary;
DROP TABLE IF EXISTS calls, got, bad;
DROP SEQUENCE tries;
