-- What bench/bloat and bench/fence compare: topic "bench", and PgQ's queue
-- "bench". Whoever consumes notes when, and when the event was emitted, in "sink".
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
