-- How many partitions a subscription has, changed while it has something to get
CREATE EXTENSION cqrs_outbox;
\set SHOW_CONTEXT never
SELECT cqrs_register_event('happened', 'things');
SET client_min_messages = error;
CREATE FUNCTION emit_all(keys integer, VARIADIC n integer[]) RETURNS bigint LANGUAGE sql AS
	$$ SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => 'key ' || k)) FROM unnest(n) i, generate_series(1, keys) k $$;
CREATE FUNCTION numbers() RETURNS TABLE (partitions integer, next_partitions integer, cursors bigint) LANGUAGE sql AS $$
	SELECT s.partitions, s.next_partitions, (SELECT count(DISTINCT partition) FROM cqrs.cursor) FROM cqrs_subscription_status s $$;

-- a handler, which fails with whatever is in the table
-- As if it were time to try again what failed
CREATE FUNCTION due_now() RETURNS void LANGUAGE sql AS $$
	UPDATE cqrs.retry SET retry_at = now(), due_at = CASE WHEN due_at IS NOT NULL THEN now() END;
	UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now() $$;
CREATE TABLE broken (key text, n integer);
CREATE TABLE handled (id serial, key text, n integer, epoch integer);
CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM broken b WHERE b.key = event.key AND b.n = (event.payload->>'n')::integer) THEN
		RAISE 'broken';
	END IF;
	INSERT INTO handled (key, n, epoch) SELECT event.key, (event.payload->>'n')::integer, s.partitions FROM cqrs.subscription s;
END $$;
-- Of each key, once each and in order; and what was handled with how many partitions
CREATE VIEW orders AS SELECT epoch, count(DISTINCT key) AS keys, string_agg(DISTINCT ns, ' | ') AS ns
	FROM (SELECT epoch, key, string_agg(n::text, ' ' ORDER BY id) AS ns FROM handled GROUP BY epoch, key) k GROUP BY epoch;
SELECT cqrs_subscribe('things', ARRAY['things'], 'handle(cqrs_event)', max_attempts => 2, retry_delay => '1 hour');

-- bounds; the same number is no change
SELECT cqrs_alter_subscription('things', partitions => 0);
SELECT cqrs_alter_subscription('things', partitions => 1001);
SELECT cqrs_alter_subscription('things', partitions => -2147483648);
SELECT cqrs_alter_subscription('nothing', partitions => 2);
SELECT cqrs_alter_subscription('things', partitions => NULL);
SELECT cqrs_alter_subscription('things', partitions => 1);
SELECT * FROM numbers();
CREATE ROLE regress_cqrs_partitions;
GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO regress_cqrs_partitions;
SET ROLE regress_cqrs_partitions;
SELECT cqrs_alter_subscription('things', partitions => 2);
SELECT cqrs.event_partition(1, gen_random_uuid(), 'a', false, 2);
RESET ROLE;
DROP OWNED BY regress_cqrs_partitions;
DROP ROLE regress_cqrs_partitions;
BEGIN READ ONLY;
SELECT cqrs_alter_subscription('things', partitions => 2);
ROLLBACK;

-- up, with what failed before: what was emitted before belongs to the old ones
SELECT emit_all(20, 1, 2);
INSERT INTO broken VALUES ('key 1', 2), ('key 2', 2), ('key 3', 1), ('key 5', 1);
SELECT cqrs_alter_subscription('things', partitions => 8);
SELECT emit_all(20, 3, 4);
SELECT * FROM numbers();
UPDATE cqrs.subscription SET epoch_since = epoch_since - interval '1 hour';
SELECT severity, problem, object, hint FROM cqrs_health() WHERE problem = 'partitions_changing';
SELECT cqrs_drain('things');
SELECT * FROM numbers();
SELECT * FROM orders;
-- of the broken keys, what comes behind waits where it is now
SELECT count(*), count(*) FILTER (WHERE partition <> cqrs.event_partition(topic_id, event_id, key, false, 8)) AS astray FROM cqrs.retry;
SELECT count(*) AS astray FROM cqrs.cursor c WHERE next_retry_at IS DISTINCT FROM
	(SELECT min(due_at) FROM cqrs.retry r WHERE r.subscription_id = c.subscription_id AND r.partition = c.partition)
	AND seq = (SELECT max(seq) FROM cqrs.cursor l WHERE l.subscription_id = c.subscription_id AND l.partition = c.partition);
DELETE FROM broken WHERE key IN ('key 1', 'key 3');
SELECT due_now();
SELECT cqrs_drain('things');
SELECT count(*) FROM cqrs_dead_letters WHERE subscription = 'things';
SELECT * FROM orders;

-- down: dead letters come from anywhere; cursors' rows are numbered on
SELECT max(seq) AS highest FROM cqrs.cursor \gset
SELECT cqrs_alter_subscription('things', partitions => 3);
SELECT emit_all(20, 5);
SELECT cqrs_drain('things');
SELECT * FROM numbers();
SELECT count(*) AS numbered_anew FROM cqrs.cursor WHERE seq <= :highest;
DELETE FROM broken;
SELECT emit_all(20, 6);
SELECT cqrs_redrive_all('things');
SELECT count(*), count(*) FILTER (WHERE partition <> cqrs.event_partition(topic_id, event_id, key, false, 3)) AS astray FROM cqrs.retry;
SELECT cqrs_drain('things');
SELECT * FROM orders;
SELECT key, string_agg(n::text, ' ' ORDER BY id) AS ns FROM handled GROUP BY key HAVING string_agg(n::text, ' ' ORDER BY id) <> '1 2 3 4 5 6' ORDER BY key;

-- parked in a partition that goes
TRUNCATE handled;
INSERT INTO broken SELECT 'key ' || k, 7 FROM generate_series(1, 20) k;
SELECT cqrs_alter_subscription('things', max_attempts => 9);
SELECT emit_all(20, 7, 8);
SELECT cqrs_drain('things');
SELECT cqrs_alter_subscription('things', partitions => 1);
SELECT cqrs_drain('things');
SELECT partition, attempts, count(*) FROM cqrs.retry GROUP BY 1, 2 ORDER BY 1, 2;
TRUNCATE broken;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT * FROM orders;
SELECT retrying, waiting, lag_events FROM cqrs_subscription_status;

-- another number, or the present one, while it is being changed; rolled back
SELECT cqrs_alter_subscription('things', partitions => 4);
SELECT cqrs_alter_subscription('things', partitions => 2);
SELECT * FROM numbers();
SELECT cqrs_alter_subscription('things', partitions => 1);
SELECT * FROM numbers();
SELECT count(*) AS open FROM cqrs.subscription WHERE epoch_tick IS NOT NULL OR epoch_snapshot IS NOT NULL OR epoch_since IS NOT NULL;
BEGIN;
SELECT cqrs_alter_subscription('things', partitions => 5);
SELECT * FROM numbers();
ROLLBACK;
SELECT * FROM numbers();
SELECT cqrs_alter_subscription('things', partitions => 4);
SELECT cqrs_alter_subscription('things', partitions => 2);
SELECT cqrs_drain('things');
SELECT * FROM numbers();

-- who keeps his snapshot leaves it to others
SELECT cqrs_alter_subscription('things', partitions => 3);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT cqrs_drain('things');
COMMIT;
SELECT * FROM numbers();
SELECT cqrs_drain('things');
SELECT * FROM numbers();

-- in a transaction that has emitted: that is for the new ones
TRUNCATE handled;
BEGIN;
SELECT emit_all(4, 1);
SELECT cqrs_alter_subscription('things', partitions => 2);
SELECT cqrs_drain('things');
COMMIT;
SELECT cqrs_drain('things');
SELECT * FROM orders;

-- a paused one waits, and a seek does not
SELECT cqrs_pause('things');
SELECT emit_all(4, 2);
SELECT cqrs_alter_subscription('things', partitions => 6);
UPDATE cqrs.subscription SET epoch_since = epoch_since - interval '1 hour';
SELECT severity, hint FROM cqrs_health() WHERE problem = 'partitions_changing';
SELECT cqrs_seek('things', 'latest');
SELECT * FROM numbers();
SELECT cqrs_resume('things');
SELECT cqrs_drain('things');
SELECT emit_all(4, 3);
SELECT cqrs_drain('things');
SELECT n, epoch, count(*) FROM handled GROUP BY 1, 2 ORDER BY 1;
SELECT cqrs_alter_subscription('things', partitions => 2), cqrs_seek('things', 'earliest');
SELECT * FROM numbers();
SELECT cqrs_drain('things') > 100 AS again;
SELECT cqrs_alter_subscription('things', partitions => 3), cqrs_seek('things', clock_timestamp());
SELECT * FROM numbers();

-- by the handler itself, and a subscription that goes
CREATE OR REPLACE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO handled (key, n, epoch) SELECT event.key, (event.payload->>'n')::integer, s.partitions FROM cqrs.subscription s;
	IF event.payload ? 'partitions' THEN
		PERFORM cqrs_alter_subscription('things', partitions => (event.payload->>'partitions')::integer);
	END IF;
END $$;
TRUNCATE handled;
SELECT cqrs_drain('things') > 0;
TRUNCATE handled;
SELECT emit_all(6, 1);
SELECT cqrs_emit('happened', '{"n": 2, "partitions": 7}', key => 'key 1') IS NOT NULL;
SELECT emit_all(6, 3);
SELECT cqrs_drain('things');
SELECT key, string_agg(n::text, ' ' ORDER BY id) FROM handled GROUP BY key ORDER BY key;
SELECT * FROM numbers();
SELECT cqrs_alter_subscription('things', partitions => 2);
SELECT cqrs_unsubscribe('things');
SELECT count(*) FROM cqrs.cursor;

-- a client that pulls: what it has been handed out is settled first
-- What is received, how often; the positions and the receipt in settings
CREATE FUNCTION received(part integer DEFAULT NULL, lease interval DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	got cqrs_received[] := ARRAY(SELECT r FROM cqrs_receive('pulled', 1000, partition => part, lease => lease) r);
BEGIN
	PERFORM set_config('pull.receipt', max(g.receipt::text), false), set_config('pull.positions', array_agg(g.position)::text, false)
	FROM unnest(got) g HAVING count(*) > 0;
	RETURN (SELECT string_agg(format('%s (%s)', n, c), ' ' ORDER BY n)
			FROM (SELECT g.payload->>'n' AS n, count(*) AS c FROM unnest(got) g GROUP BY 1) g);
END $$;
CREATE FUNCTION receipt() RETURNS uuid LANGUAGE sql RETURN current_setting('pull.receipt')::uuid;
CREATE FUNCTION positions(first integer, last integer) RETURNS bigint[] LANGUAGE sql
	RETURN (current_setting('pull.positions')::bigint[])[first:last];
-- All there is, from whichever partitions
CREATE FUNCTION receive_all() RETURNS TABLE (n text, count bigint) LANGUAGE plpgsql AS $$
DECLARE
	got text[];
	more text[];
BEGIN
	LOOP
		more := ARRAY(SELECT payload->>'n' FROM cqrs_receive('pulled', 1000));
		EXIT WHEN more = '{}';
		PERFORM cqrs_ack('pulled');
		got := got || more;
	END LOOP;
	RETURN QUERY SELECT g, count(*) FROM unnest(got) g GROUP BY 1 ORDER BY 1;
END $$;
SELECT cqrs_subscribe('pulled', ARRAY['things'], start => 'latest', retry_delay => '1 hour');
SELECT emit_all(20, 1);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received(0, '1 hour');
SELECT cqrs_alter_subscription('pulled', partitions => 4);
SELECT emit_all(20, 2);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received(), * FROM numbers();
SELECT received(3);
UPDATE cqrs.subscription SET epoch_since = epoch_since - interval '1 hour';
SELECT severity, detail LIKE '%it waits for partition 0: a client has what is before that until %' AS names_it
FROM cqrs_health() WHERE problem = 'partitions_changing';
SELECT cqrs_nack('pulled', positions(1, 2), 'no luck', receipt => receipt());
SELECT cqrs_ack('pulled', positions(3, 19), receipt());
SELECT received(), * FROM numbers();
SELECT cqrs_ack('pulled', positions(20, 20), receipt());
-- who finds nothing else has the new ones begin, and looks there
SELECT received() LIKE '2 (%' AS got, * FROM numbers();
SELECT * FROM numbers();
SELECT cqrs_ack('pulled', positions(1, 2), receipt());
SELECT * FROM receive_all();
SELECT due_now();
SELECT * FROM receive_all();
SELECT count(*) FROM cqrs.retry;

-- what failed before, and is handed out once more, is settled first
SELECT emit_all(20, 5);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT received(2) IS NOT NULL AS received;
SELECT cqrs_nack('pulled', positions(1, 1), retry_after => '0');
SELECT cqrs_ack('pulled') > 0 AS acked;
COMMIT;
SELECT cqrs_alter_subscription('pulled', partitions => 3);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received(2, '1 hour');
SELECT * FROM receive_all();
SELECT received();
SELECT * FROM numbers();
SELECT cqrs_ack('pulled', positions(1, 1), receipt());
SELECT * FROM receive_all();
SELECT * FROM numbers();
SELECT cqrs_alter_subscription('pulled', partitions => 4);
SELECT cqrs_tick() > 0 AS ticked;
SELECT * FROM receive_all();
SELECT * FROM numbers();

-- of a partition that is to go
SELECT emit_all(20, 3);
SELECT cqrs_tick() > 0 AS ticked;
SELECT * FROM receive_all();
SELECT cqrs_alter_subscription('pulled', partitions => 2);
SELECT cqrs_tick() > 0 AS ticked;
SELECT received(0), received(1), received(2);
SELECT received(3), * FROM numbers();
SELECT received(3);
SELECT received(-2147483648);
-- what this transaction has received, it settles first
SELECT emit_all(20, 4);
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_alter_subscription('pulled', partitions => 5);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT * FROM receive_all();
SELECT * FROM numbers();
SELECT cqrs_ack('pulled');
COMMIT;
SELECT * FROM receive_all();
SELECT * FROM numbers();
SELECT cqrs_unsubscribe('pulled');
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE broken, handled CASCADE;
DROP FUNCTION due_now, emit_all, numbers, received, receipt, positions, receive_all;
