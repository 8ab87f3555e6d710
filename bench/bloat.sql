-- Three outboxes for bench/bloat: topic "bench", PgQ's queue "bench", and a
-- table that consumers take rows from with SKIP LOCKED. Whoever consumes notes
-- when, and when the event was emitted, in "sink".
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION pgq;
CREATE TABLE sink (handled_at timestamptz, emitted_at timestamptz);

CREATE FUNCTION stamp() RETURNS jsonb LANGUAGE sql VOLATILE AS $$
	SELECT jsonb_build_object('at', clock_timestamp())
$$;

SELECT cqrs_create_topic('bench', '0') \g /dev/null
SELECT cqrs_register_event('bench', 'bench') \g /dev/null
CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.sink VALUES (clock_timestamp(), (event.payload->>'at')::timestamptz)
$$;

SELECT pgq.create_queue('bench') \g /dev/null
SELECT pgq.set_queue_config('bench', 'rotation_period', '5 seconds'),
	   pgq.set_queue_config('bench', 'ticker_max_lag', '0.1 seconds') \g /dev/null
SELECT pgq.register_consumer('bench', 'bench') \g /dev/null
CREATE PROCEDURE consume_pgq() LANGUAGE plpgsql AS $$
DECLARE
	batch bigint;
BEGIN
	LOOP
		batch := pgq.next_batch('bench', 'bench');
		IF batch IS NOT NULL THEN
			INSERT INTO sink SELECT clock_timestamp(), (ev_data::jsonb->>'at')::timestamptz FROM pgq.get_batch_events(batch);
			PERFORM pgq.finish_batch(batch);
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE batch IS NULL;
	END LOOP;
END $$;

CREATE SCHEMA queue;
CREATE TABLE queue.event (id bigserial PRIMARY KEY, payload jsonb);
CREATE PROCEDURE consume_queue() LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		WITH taken AS (
			DELETE FROM queue.event
			WHERE id IN (SELECT id FROM queue.event ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED)
			RETURNING payload)
		INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz FROM taken;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE NOT FOUND;
	END LOOP;
END $$;

-- Dead rows and size, with indexes and TOAST, of every table of a schema, each
-- five seconds.
CREATE TABLE sample (at timestamptz, relation text, bytes bigint, dead bigint);
CREATE PROCEDURE watch(schema name) LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		INSERT INTO sample
		SELECT clock_timestamp(), relid::regclass, pg_total_relation_size(relid), n_dead_tup
		FROM pg_stat_user_tables WHERE schemaname = schema;
		COMMIT;
		PERFORM pg_sleep(5);
	END LOOP;
END $$;
CREATE VIEW most AS
SELECT max(bytes) / 1048576.0 AS megabytes, max(dead) AS dead
FROM (SELECT sum(bytes) AS bytes, sum(dead) AS dead FROM sample GROUP BY at) s;

-- events a second and median milliseconds of latency, of a span of time
CREATE FUNCTION delivered(since timestamptz, seconds double precision, OUT rate double precision, OUT latency double precision)
LANGUAGE sql AS $$
	SELECT count(*) / seconds,
		   percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM handled_at - emitted_at)) * 1000
	FROM sink WHERE handled_at >= since AND handled_at < since + seconds * interval '1 second'
$$;
