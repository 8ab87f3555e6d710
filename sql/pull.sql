-- Pull subscriptions in detail: what is handed out, to whom, and who may settle it
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('happened', 'things');
CREATE FUNCTION emit_pull(key text, VARIADIC n integer[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. cardinality(n) LOOP
		PERFORM cqrs_emit('happened', jsonb_build_object('n', n[i]), key => key);
	END LOOP;
END $$;
-- What is received, and the receipt in the setting pull.receipt
CREATE FUNCTION received(subscription text, max_events integer DEFAULT 100, part integer DEFAULT NULL, lease interval DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	receipt text;
BEGIN
	SELECT string_agg(r.key || (payload->>'n') || CASE WHEN attempts > 1 THEN '/' || attempts ELSE '' END, ' '), max(r.receipt::text)
	INTO result, receipt
	FROM cqrs_receive(subscription, max_events, lease => lease, partition => part) r;
	PERFORM set_config('pull.receipt', coalesce(receipt, ''), false);
	RETURN result;
END $$;
CREATE FUNCTION receipt() RETURNS uuid LANGUAGE sql RETURN nullif(current_setting('pull.receipt'), '')::uuid;
CREATE FUNCTION positions_of(VARIADIC n integer[]) RETURNS bigint[] LANGUAGE sql
	RETURN (SELECT array_agg(position) FROM cqrs_topics.things WHERE (payload->>'n')::integer = ANY (n));
-- As if all leases had run out
CREATE FUNCTION expire() RETURNS void LANGUAGE sql AS
	$$ UPDATE cqrs.cursor SET leased_until = now() - interval '1 s' WHERE leased_until IS NOT NULL $$;
-- As if it were time to try again what failed
CREATE FUNCTION due_now() RETURNS void LANGUAGE sql AS $$
	UPDATE cqrs.retry SET retry_at = now(), due_at = CASE WHEN due_at IS NOT NULL THEN now() END WHERE attempts > 0;
	UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now() $$;
SET client_min_messages = warning;

-- an event that could not be processed is tried again; its key waits, others do not
SELECT cqrs_subscribe('pull', ARRAY['things'], max_attempts => 3, retry_delay => '0');
SELECT emit_pull('a', 1, 2, 3), emit_pull('b', 4), emit_pull('a', 5), emit_pull('b', 6);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received('pull');
SELECT cqrs_nack('pull', positions_of(2), 'no luck', '1 hour');
SELECT cqrs_nack('pull', positions_of(2), 'no luck', '1 hour') AS nacked_again;
SELECT cqrs_ack('pull', positions_of(1)), cqrs_ack('pull', positions_of(1)) AS again;
COMMIT;
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
SELECT cqrs_ack('pull') AS again;
SELECT received('pull');
COMMIT;
SELECT payload->>'n' AS n, status, attempts FROM cqrs_events('things');
SELECT retrying, waiting, dead, error_sqlstate, error, retry_at > now() AS later FROM cqrs_subscription_status;

-- now it is time; what failed before holds its key until it is settled
SELECT due_now();
SELECT emit_pull('c', 7);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received('pull');
SELECT cqrs_nack('pull', positions_of(2), 'again');
SELECT cqrs_ack('pull');
COMMIT;
BEGIN;
SELECT received('pull');
SELECT cqrs_nack('pull', positions_of(2));
COMMIT;
SELECT payload, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'pull';
BEGIN;
SELECT received('pull');
SELECT cqrs_nack('pull', positions_of(5), 'hopeless', give_up => true);
SELECT cqrs_ack('pull');
COMMIT;
SELECT payload, attempts, error FROM cqrs_dead_letters WHERE subscription = 'pull';
SELECT received('pull');
SELECT cqrs_redrive_all('pull');
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;
SELECT payload->>'n' AS n, status, attempts FROM cqrs_events('things');
SELECT count(*) FROM cqrs.retry;

-- what a client refuses lets what it has done be acknowledged, and nothing else
SELECT emit_pull('a', 11, 12, 13), emit_pull('b', 14, 15);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT cqrs_nack('pull', positions_of(12), 'no', '0', receipt => receipt());
SELECT cqrs_ack('pull', positions_of(13, 15), receipt());
SELECT position - min(position) OVER () AS "position", attempts, receipt IS NOT NULL AS handed_out FROM cqrs.retry ORDER BY 1;
SELECT cqrs_renew('pull', receipt(), '0') <= clock_timestamp() AS given_back;
SELECT received('pull', lease => '1 min');
SELECT cqrs_ack('pull', positions_of(11, 12, 14), receipt());
SELECT received('pull');
SELECT count(*) FROM cqrs.retry;

-- also if the same transaction received again meanwhile
SELECT emit_pull('a', 16, 17), emit_pull('b', 18);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received('pull', 2);
SELECT cqrs_nack('pull', positions_of(16), 'no', '0');
SELECT received('pull');
SELECT cqrs_ack('pull', positions_of(17));
SELECT cqrs_ack('pull');
COMMIT;
SELECT received('pull');

-- also if somebody else looked meanwhile, and was handed out nothing
SELECT emit_pull('a', 19, 20);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT receipt() AS receipt \gset
SELECT cqrs_nack('pull', positions_of(19), 'no', '1 day', receipt => :'receipt');
SELECT cqrs_renew('pull', :'receipt', '0') <= clock_timestamp() AS given_back;
SELECT received('pull');
SELECT cqrs_ack('pull', positions_of(20), :'receipt');
SELECT due_now();
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;

-- of two retried events that a client was handed out, and left, none is taken as done
SELECT emit_pull('a', 21), emit_pull('b', 22);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received('pull');
SELECT cqrs_nack('pull', positions_of(21, 22), 'fails', '0');
COMMIT;
SELECT received('pull');
BEGIN;
SELECT received('pull', 1);
SELECT cqrs_ack('pull');
COMMIT;
BEGIN;
SELECT received('pull', 1);
SELECT cqrs_ack('pull');
COMMIT;

-- who acknowledges in another transaction shows what, and the receipt
SELECT emit_pull('a', 31), emit_pull('b', 32), emit_pull('c', 33);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', 2);
SELECT receipt() AS first_receipt \gset
SELECT received('pull', 3);
SELECT cqrs_ack('pull');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_ack('pull', positions_of(31, 32));
SELECT cqrs_ack('pull', positions_of(31, 32), :'first_receipt');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_nack('pull', positions_of(31, 32), receipt => :'first_receipt');
SELECT cqrs_renew('pull', :'first_receipt', '1 s');
SELECT cqrs_ack('pull', positions_of(31, 32), receipt());
SELECT cqrs_ack('pull', positions_of(31, 32), receipt()) AS again;
SELECT cqrs_ack('pull', NULL, :'first_receipt') AS nothing, cqrs_ack('pull', '{}') AS nothing;
\set VERBOSITY sqlstate
SELECT cqrs_ack('pull', positions_of(21), receipt());
\set VERBOSITY default
SELECT cqrs_ack('pull', ARRAY[9223372036854775807], receipt());
SELECT cqrs_ack('pull', ARRAY[NULL::bigint], receipt());
SELECT cqrs_ack('pull', positions_of(33), gen_random_uuid());
SELECT cqrs_renew('pull', NULL, '1 s');
SELECT cqrs_renew('pull', receipt(), NULL);
SELECT cqrs_renew('pull', receipt(), '-1 s');
SELECT cqrs_nack('pull', positions_of(33), retry_after => '-1 s', receipt => receipt());
SELECT cqrs_ack('pull', positions_of(33), receipt());

-- a savepoint that is rolled back takes what was received with it
SELECT emit_pull('a', 41, 42, 43);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', 2);
SELECT receipt() AS first_receipt \gset
BEGIN;
SAVEPOINT s;
SELECT received('pull', 4);
ROLLBACK TO s;
SELECT cqrs_ack('pull');
ROLLBACK;
SELECT cqrs_ack('pull', positions_of(41), :'first_receipt') AS still_valid;
BEGIN;
SELECT received('pull', 1);
SAVEPOINT s;
SELECT received('pull', 1);
RELEASE s;
SAVEPOINT s;
SELECT cqrs_ack('pull');
ROLLBACK TO s;
SELECT cqrs_ack('pull', positions_of(43));
COMMIT;
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;

-- a transaction that received nothing has nothing to acknowledge; one that did not ask is told
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;
SELECT cqrs_ack('pull');

-- in one transaction, more is more; from behind, and in any order
SELECT emit_pull('a', 51, 52, 53), emit_pull('b', 54, 55, 56);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received('pull', 2);
SELECT received('pull', 2);
SELECT cqrs_ack('pull', positions_of(54));
SELECT cqrs_ack('pull', positions_of(52));
COMMIT;
SELECT payload->>'n' AS n, status FROM cqrs_events('things');
SELECT array_length(passed, 1) AS settled_ahead FROM cqrs.cursor ORDER BY seq DESC LIMIT 1;
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull', positions_of(56, 55)), cqrs_ack('pull', positions_of(53)), cqrs_ack('pull', positions_of(51));
COMMIT;
SELECT received('pull');

-- leases: the partition is the receipt's; the second time that one runs out, events come one by one
SELECT emit_pull('a', 61), emit_pull('b', 62), emit_pull('c', 63);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT count(*) AS free FROM cqrs_receive('pull', lease => '1 min');
SELECT cqrs_renew('pull', receipt(), '2 min') > now() + interval '1 min' AS prolonged;
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT cqrs_ack('pull', positions_of(62), receipt()) AS late;
SELECT received('pull', lease => '1 min');
SELECT cqrs_ack('pull', positions_of(61), receipt());
SELECT received('pull', lease => '1 min');

-- one does not come back, again and again: it is given up, and others go on
SELECT emit_pull('d', 64);
SELECT cqrs_tick() > 0 AS ticked;
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT payload, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'pull';
SELECT cqrs_ack('pull', positions_of(64), receipt());
SELECT cqrs_discard_all('pull');

-- one that was handed out alone may fail like others: its attempt was counted
SELECT emit_pull('a', 65), emit_pull('a', 66);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT cqrs_nack('pull', positions_of(65), 'no', '0', receipt => receipt());
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull');
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;

-- what was handed out alone within a savepoint that is rolled back comes again
SELECT emit_pull('a', 71), emit_pull('b', 72);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT expire();
SELECT received('pull', lease => '1 min');
SELECT expire();
BEGIN;
SAVEPOINT s;
SELECT received('pull');
SELECT cqrs_ack('pull');
ROLLBACK TO s;
SELECT received('pull');
SELECT cqrs_ack('pull');
SELECT received('pull');
SELECT cqrs_ack('pull');
COMMIT;

-- partitions: each key is in one
SELECT cqrs_subscribe('spread', ARRAY['things'], start => 'latest', partitions => 3, retry_delay => '0');
SELECT cardinality(cqrs_emit_many('happened', array_agg(jsonb_build_object('n', i) ORDER BY i), array_agg('k' || i % 20 ORDER BY i)))
	FROM generate_series(101, 160) i;
SELECT cqrs_emit('happened', '{"n": 161}') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
CREATE TABLE spread (seq serial, part integer, key text, n integer);
BEGIN;
INSERT INTO spread (part, key, n)
	SELECT r.partition, key, (payload->>'n')::integer FROM generate_series(0, 2) part, cqrs_receive('spread', 1000, partition => part) r;
SELECT count(*), count(DISTINCT n), count(DISTINCT part) FROM spread;
SELECT key FROM spread GROUP BY key HAVING count(DISTINCT part) > 1;
SELECT count(*) FROM spread WHERE key IS NULL;
SELECT key FROM (SELECT key, n, lag(n) OVER (PARTITION BY key ORDER BY seq) AS before FROM spread) s WHERE n < before;
-- whichever they are of
SELECT cqrs_ack('spread', positions_of(101, 102, 103, 104, 105));
SELECT cqrs_nack('spread', positions_of(161), 'no', '0');
SELECT cqrs_ack('spread');
COMMIT;
BEGIN;
SELECT payload, attempts FROM cqrs_receive('spread');
SELECT cqrs_ack('spread');
COMMIT;
SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'spread';
SELECT cqrs_receive('spread', partition => 3);
SELECT cqrs_receive('spread', partition => -1);
SELECT cqrs_subscribe('none', ARRAY['things'], partitions => 0);
SELECT cqrs_subscribe('none', ARRAY['things'], partitions => 1001);

-- NULL is not given
SELECT count(*) FROM cqrs_receive('spread', NULL, NULL, NULL, NULL);

-- paused: nothing is handed out, what was may be settled
BEGIN;
SELECT received('pull');
SELECT cqrs_ack('pull') > 0 AS acknowledged;
COMMIT;
SELECT emit_pull('a', 201), emit_pull('b', 202);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('pull', lease => '1 min');
SELECT cqrs_pause('pull');
SELECT cqrs_pause('pull');
SELECT state, state_reason FROM cqrs_subscription_status WHERE subscription = 'pull';
SELECT cqrs_receive('pull');
SELECT cqrs_ack('pull', positions_of(202), receipt());
SELECT cqrs_nack('pull', positions_of(201), 'no', '0', receipt => receipt());
SELECT cqrs_renew('pull', receipt(), '0') <= clock_timestamp() AS given_back;
SELECT cqrs_resume('pull');
SELECT cqrs_resume('pull');
SELECT received('pull', 3);

-- moved about: receipts are not valid any more
SELECT receipt() AS first_receipt \gset
SELECT cqrs_seek('pull', 'latest');
SELECT cqrs_ack('pull', positions_of(201), :'first_receipt');
BEGIN;
SELECT received('pull');
SELECT cqrs_seek('pull', 'earliest');
SELECT received('pull', 5);
SELECT cqrs_seek('pull', 'latest');
SELECT cqrs_ack('pull');
ROLLBACK;
SELECT cqrs_seek('pull', 'earliest');
SELECT received('pull', 5);
SELECT cqrs_nack('pull', positions_of(1), retry_after => '0', receipt => receipt());
SELECT cqrs_seek('pull', (SELECT emitted_at FROM cqrs_topics.things WHERE payload->>'n' = '6'));
SELECT received('pull', 3);
SELECT count(*) FROM cqrs.retry;
SELECT cqrs_seek('pull', '2000-01-01 00:00');
SELECT received('pull', 5);
SELECT cqrs_seek('pull', 'tomorrow');
SELECT received('pull', 5);
SELECT cqrs_seek('pull', 'whenever');
SELECT cqrs_seek('pull', NULL::text);
SELECT cqrs_seek('no such subscription', 'latest');

-- a parked event that was received does not hide what a seek brings back
SELECT cqrs_register_event('sought', 'sought');
SELECT cqrs_subscribe('sought', ARRAY['sought']);
SELECT count(cqrs_emit('sought', jsonb_build_object('n', i), key => i::text)) FROM generate_series(1, 3) i;
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT count(*) FROM cqrs_receive('sought');
SELECT cqrs_nack('sought', (SELECT array_agg(position) FROM cqrs_topics.sought WHERE payload->>'n' = '2'), 'no', '0');
SELECT cqrs_ack('sought');
COMMIT;
SELECT cqrs_emit('sought', '{"n": 4}', key => '4') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
SELECT payload, attempts FROM cqrs_receive('sought');
SELECT cqrs_seek('sought', 'earliest');
SELECT payload, attempts FROM cqrs_receive('sought');

-- an outbox as a consumer outside has it: of three events one is done, one is tried
-- again and given up, and the other is not held up by that
SELECT cqrs_register_event('placed', 'outbox');
SELECT cqrs_subscribe('outbox', ARRAY['outbox'], max_attempts => 5, retry_delay => '0');
SELECT count(cqrs_emit('placed', jsonb_build_object('n', n), key => n::text)) FROM generate_series(1, 3) n;
SELECT cqrs_tick() > 0 AS ticked;
SELECT event_name, payload, status FROM cqrs_events('outbox', 3);
SELECT array_agg(event_id) AS ids FROM cqrs_events('outbox', 3) \gset
SELECT array_agg(event_id) = :'ids' AS the_same FROM cqrs_events('outbox', 3);
SELECT array_agg(event_id) = :'ids' AS the_same FROM cqrs_receive('outbox', 3);
SELECT cqrs_ack('outbox', ARRAY[position], receipt) FROM cqrs_receive('outbox', 1);
SELECT event_name, payload, status FROM cqrs_events('outbox', 3);
SELECT count(*), cqrs_nack('outbox', ARRAY[min(position)], 'no luck', '1 hour') AS nacked FROM cqrs_receive('outbox', 2);
SELECT payload, status, attempts FROM cqrs_events('outbox', 2) ORDER BY status, position;
BEGIN;
SELECT payload FROM cqrs_receive('outbox', 2);
SELECT cqrs_ack('outbox');
COMMIT;
DO $$
BEGIN
	FOR attempt IN 2..5 LOOP
		PERFORM due_now();
		PERFORM cqrs_nack('outbox', ARRAY[position], 'no luck', '1 hour') FROM cqrs_receive('outbox');
	END LOOP;
END $$;
SELECT count(*) FROM cqrs_events('outbox');
SELECT payload, attempts, error FROM cqrs_dead_letters WHERE subscription = 'outbox';

-- far more settled ahead of the cursor than its row keeps: what is not is parked
SELECT cqrs_register_event('many', 'many');
SELECT cqrs_subscribe('many', ARRAY['many']);
SELECT cardinality(cqrs_emit_many('many', array_agg(jsonb_build_object('n', i) ORDER BY i), array_agg(i::text ORDER BY i))) FROM generate_series(1, 2500) i;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_ack('many', array_agg(position) FILTER (WHERE payload->>'n' NOT IN ('1', '7'))) FROM cqrs_receive('many', 2000);
SELECT position - (SELECT min(position) FROM cqrs_topics.many) AS "position", cardinality(passed) AS passed
	FROM cqrs.cursor WHERE subscription_id = (SELECT subscription_id FROM cqrs.subscription WHERE subscription = 'many') ORDER BY seq DESC LIMIT 1;
SELECT payload, attempts FROM cqrs_receive('many', 3);
SELECT count(*) FROM cqrs.retry r JOIN cqrs.subscription USING (subscription_id) WHERE subscription = 'many';
BEGIN;
SELECT count(*), min((payload->>'n')::integer), max((payload->>'n')::integer) FROM cqrs_receive('many', 1000);
SELECT cqrs_ack('many');
COMMIT;
SELECT count(*) FROM cqrs_receive('many');

-- what is parked because a later one of its lane failed is not delivered, and is counted
SELECT cqrs_subscribe('counted', ARRAY['things'], start => 'latest');
SELECT emit_pull('counted ', 9001, 9002);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received('counted', lease => '1 hour');
SELECT cqrs_nack('counted', positions_of(9002), retry_after => '1 hour', receipt => receipt());
SELECT lag_events, retrying, waiting FROM cqrs_subscription_status WHERE subscription = 'counted';
SELECT cqrs_ack('counted', positions_of(9001), receipt());
SELECT lag_events, retrying, waiting FROM cqrs_subscription_status WHERE subscription = 'counted';

DROP FUNCTION received, receipt, positions_of, emit_pull, expire, due_now;
DROP TABLE spread;
DROP EXTENSION cqrs_outbox CASCADE;
