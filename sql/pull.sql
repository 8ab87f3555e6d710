-- Pull subscriptions in detail: partitions, events tried again, moving about
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('happened', 'things');
CREATE FUNCTION emit_pull(key text, VARIADIC n integer[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. cardinality(n) LOOP
		PERFORM cqrs_emit('happened', jsonb_build_object('n', n[i]), key => key);
	END LOOP;
END $$;
CREATE FUNCTION received(subscription text, batch_size integer DEFAULT 100, part integer DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$
	SELECT string_agg(key || (payload->>'n') || CASE WHEN attempts > 0 THEN '/' || attempts ELSE '' END, ' ')
	FROM cqrs_receive(subscription, batch_size, part) $$;
CREATE FUNCTION position_of(n integer) RETURNS bigint LANGUAGE sql
	RETURN (SELECT position FROM cqrs_topics.things WHERE payload->>'n' = n::text);

-- an event that could not be processed is tried again; its key waits
SELECT cqrs_subscribe('pull', ARRAY['things'], max_attempts => 3, retry_delay => '0');
SELECT emit_pull('a', 1, 2, 3), emit_pull('b', 4), emit_pull('a', 5), emit_pull('b', 6);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull');
SELECT cqrs_nack('pull', position_of(2), 'no luck', '1 hour');
SELECT cqrs_ack('pull');
SELECT received('pull');
SELECT received('pull');
SELECT cqrs_ack('pull') = position_of(4) AS acknowledged;
SELECT received('pull');
SELECT cqrs_ack('pull') = position_of(6) AS acknowledged;
SELECT received('pull');
SELECT payload->>'n' AS n, status, attempts FROM cqrs_events('things');
SELECT retrying, waiting, dead, last_error_sqlstate, last_error, retry_at > now() AS later FROM cqrs_subscription_status;

-- now it is time
UPDATE cqrs.retry SET retry_at = now() WHERE attempts > 0;
SELECT received('pull');
SELECT received('pull');
SELECT cqrs_nack('pull', position_of(2), 'again');
SELECT received('pull');
SELECT cqrs_nack('pull', position_of(2));
SELECT payload, attempts, sqlstate, error FROM cqrs_dead_letters('pull');
SELECT received('pull');
SELECT emit_pull('a', 7);
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_ack('pull', position_of(3)) = position_of(3) AS acknowledged;
SELECT received('pull');
SELECT cqrs_ack('pull') = position_of(5) AS acknowledged;
SELECT received('pull');
SELECT cqrs_ack('pull') = position_of(7) AS acknowledged;
SELECT received('pull');
SELECT cqrs_ack('pull');
SELECT cqrs_redrive('pull');
SELECT received('pull');
SELECT cqrs_ack('pull') = position_of(2) AS acknowledged;
SELECT payload->>'n' AS n, status, attempts FROM cqrs_events('things');
SELECT count(*) FROM cqrs.retry;

-- errors
SELECT emit_pull('a', 8);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull');
SELECT cqrs_nack('pull', NULL);
SELECT cqrs_nack('pull', 1);
SELECT cqrs_nack('pull', position_of(8) + 1);
SELECT cqrs_ack('pull', position_of(8) + 1);
SELECT cqrs_receive('pull', "partition" => 1);
SELECT cqrs_ack('pull', "partition" => -1);
SELECT cqrs_subscribe('none', ARRAY['things'], partitions => 0);
SELECT cqrs_subscribe('none', ARRAY['things'], partitions => 1001);
SELECT cqrs_ack('pull') = position_of(8) AS acknowledged;

-- partitions: each key is in one, and what has no key in the first
SELECT cqrs_subscribe('spread', ARRAY['things'], start => 'latest', partitions => 3, retry_delay => '0');
SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i) ORDER BY i), array_agg('k' || i % 20 ORDER BY i))
	FROM generate_series(101, 160) i;
SELECT cqrs_emit('happened', '{"n": 161}') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
CREATE TABLE spread (seq serial, part integer, key text, n integer);
INSERT INTO spread (part, key, n)
	SELECT part, key, (payload->>'n')::integer FROM generate_series(0, 2) part, cqrs_receive('spread', 1000, part);
SELECT count(*), count(DISTINCT n), count(DISTINCT part) FROM spread;
SELECT key FROM spread GROUP BY key HAVING count(DISTINCT part) > 1;
SELECT part FROM spread WHERE key IS NULL;
SELECT key FROM (SELECT key, n, lag(n) OVER (PARTITION BY key ORDER BY seq) AS before FROM spread) s WHERE n < before;

-- acknowledged one by one; what is not comes again
SELECT cqrs_ack('spread');
SELECT cqrs_ack('spread', "partition" => 0) IS NOT NULL AS acknowledged;
SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'spread';
SELECT count(*) = (SELECT count(*) FROM spread WHERE part = 1) AS again FROM cqrs_receive('spread', 1000, 1);
SELECT count(*) FROM cqrs_receive('spread', 1000, 0);

-- whichever has something; acknowledged in the same transaction
CREATE TABLE got (n integer);
DO $$
DECLARE
	n integer;
BEGIN
	FOR i IN 1 .. 10 LOOP
		INSERT INTO got SELECT (payload->>'n')::integer FROM cqrs_receive('spread', 7);
		GET DIAGNOSTICS n = ROW_COUNT;
		EXIT WHEN n = 0;
		PERFORM cqrs_ack('spread');
	END LOOP;
END $$;
SELECT count(*) = (SELECT count(*) FROM spread WHERE part > 0) AS rest, count(DISTINCT n) = count(*) AS once FROM got;
SELECT payload->>'n' AS n FROM cqrs_events('things', status => 'new') LIMIT 1;

-- paused, and resumed
SELECT cqrs_pause('pull');
SELECT cqrs_pause('pull');
SELECT state, state_reason FROM cqrs_subscription_status WHERE subscription = 'pull';
SELECT cqrs_receive('pull');
SELECT cqrs_ack('pull');
SELECT cqrs_resume('pull');
SELECT cqrs_resume('pull');
SELECT received('pull', 3);

-- moved about
SELECT cqrs_seek('pull', 'latest');
SELECT received('pull');
SELECT cqrs_seek('pull', 'earliest');
SELECT received('pull', 5);
SELECT cqrs_nack('pull', position_of(1), retry_after => '0');
SELECT cqrs_seek('pull', (SELECT emitted_at FROM cqrs_topics.things WHERE payload->>'n' = '6'));
SELECT received('pull', 5);
SELECT count(*) FROM cqrs.retry;
SELECT cqrs_seek('pull', '2000-01-01 00:00');
SELECT received('pull', 5);
SELECT cqrs_seek('pull', 'tomorrow');
SELECT received('pull', 5);
SELECT cqrs_seek('pull', 'whenever');
SELECT cqrs_seek('pull', NULL::text);
SELECT cqrs_seek('no such subscription', 'latest');

-- an outbox as a consumer outside has it: of three events one is done, one is tried
-- again and given up, and the other is not held up by that
SELECT cqrs_register_event('placed', 'outbox');
SELECT cqrs_subscribe('outbox', ARRAY['outbox'], retry_delay => '0');
SELECT count(cqrs_emit('placed', jsonb_build_object('n', n), key => n::text)) FROM generate_series(1, 3) n;
SELECT cqrs_tick() > 0 AS ticked;
SELECT event_name, payload, status FROM cqrs_events('outbox', 3);
SELECT array_agg(event_id) AS ids FROM cqrs_events('outbox', 3) \gset
SELECT array_agg(event_id) = :'ids' AS the_same FROM cqrs_events('outbox', 3);
SELECT array_agg(event_id) = :'ids' AS the_same FROM cqrs_receive('outbox', 3);
SELECT cqrs_ack('outbox', position) = position AS acknowledged FROM cqrs_receive('outbox', 1);
SELECT event_name, payload, status FROM cqrs_events('outbox', 3);
SELECT count(*) FROM cqrs_receive('outbox', 3);
SELECT count(*), cqrs_nack('outbox', min(position), 'no luck', '1 hour') IS NOT NULL AS nacked FROM cqrs_receive('outbox', 2);
SELECT payload, status, attempts FROM cqrs_events('outbox', 2) ORDER BY status, position;
SELECT payload FROM cqrs_receive('outbox', 2);
SELECT cqrs_ack('outbox') IS NOT NULL AS acknowledged;
DO $$
BEGIN
	FOR attempt IN 2..5 LOOP
		UPDATE cqrs.retry SET retry_at = now() WHERE attempts > 0;
		PERFORM cqrs_nack('outbox', position, 'no luck', '1 hour') FROM cqrs_receive('outbox');
	END LOOP;
END $$;
SELECT count(*) FROM cqrs_events('outbox');
SELECT payload, attempts, error FROM cqrs_dead_letters('outbox');

DROP FUNCTION received, position_of, emit_pull;
DROP TABLE spread, got;
DROP EXTENSION cqrs_outbox CASCADE;
