-- What peers.sh compares: topic "bench", PgQ's queue "bench", and a table that
-- consumers take rows from with SKIP LOCKED. Whoever consumes notes in "sink" when,
-- and when and in which transaction the event was emitted.
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION pgq;
CREATE TABLE sink (handled_at timestamptz, emitted_at timestamptz, emitter xid8);

CREATE FUNCTION stamp() RETURNS jsonb LANGUAGE sql VOLATILE AS $$
	SELECT jsonb_build_object('at', clock_timestamp(), 'xid', pg_current_xact_id())
$$;

SELECT cqrs_create_topic('bench', '0') \g /dev/null
SELECT cqrs_register_event('bench', 'bench') \g /dev/null
CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.sink VALUES (clock_timestamp(), (event.payload->>'at')::timestamptz, (event.payload->>'xid')::xid8)
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
			INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz, (payload->>'xid')::xid8
			FROM pgq.get_batch_events(batch), CAST(ev_data AS jsonb) payload;
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
		INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz, (payload->>'xid')::xid8 FROM taken;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE NOT FOUND;
	END LOOP;
END $$;
