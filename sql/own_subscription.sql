-- A handler that moves or stops its own subscription, drained; what it sets
-- ends with its event.
CREATE EXTENSION cqrs_outbox;
CREATE TABLE got (seq serial, n int, what text);
CREATE TABLE todo (n int, sql text);
CREATE FUNCTION handle(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	handled int := e.payload->>'n';
BEGIN
	IF handled = 0 THEN
		RAISE EXCEPTION 'a dead letter';
	END IF;
	IF NOT EXISTS (SELECT FROM got WHERE n = handled) AND EXISTS (SELECT FROM todo WHERE n = handled) THEN
		EXECUTE (SELECT sql FROM todo WHERE n = handled);
	END IF;
	INSERT INTO got (n) VALUES (handled);
END $$;
SELECT cqrs_register_event('happened', 'things');
SELECT cqrs_subscribe('s', ARRAY['things'], 'handle(cqrs_event)', max_attempts => 1);
SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => 'k')) FROM generate_series(0, 4) i;

-- to its own start: what is dead dies again
INSERT INTO todo VALUES (2, $$SELECT cqrs_seek('s', 'earliest')$$);
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;
SELECT payload, attempts, error FROM cqrs_dead_letters WHERE subscription = 's';

-- to its end
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$SELECT cqrs_seek('s', 'latest')$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;

-- what is dead, once more: from the next drain on
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$SELECT cqrs_redrive_all('s')$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;
SELECT payload, attempts, error FROM cqrs_dead_letters WHERE subscription = 's';

-- undone by an EXCEPTION block
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$
	DO $do$
	BEGIN
		PERFORM cqrs_seek('s', 'latest');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END $do$
$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;

-- paused
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$SELECT cqrs_pause('s')$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;
SELECT cqrs_resume('s');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;

-- drained within: an error
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$SELECT cqrs_drain('s')$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;

-- removed
TRUNCATE got, todo;
INSERT INTO todo VALUES (2, $$SELECT cqrs_unsubscribe('s')$$);
SELECT cqrs_seek('s', 'earliest');
SELECT cqrs_drain('s');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;
SELECT count(*) FROM cqrs.cursor;

-- settings are the event's (SET ROLE is refused here); what was set before is there afterwards
CREATE FUNCTION set_all(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO got (n, what) VALUES ((e.payload->>'n')::int,
		concat_ws(' ', current_setting('app.tenant', true), current_setting('work_mem'),
				  current_setting('transaction_read_only')));
	PERFORM set_config('app.tenant', 'of ' || (e.payload->>'n'), true);
	SET work_mem = '123MB';
	SET TRANSACTION READ ONLY;
END $$;
TRUNCATE got, todo;
SET app.tenant = 'mine';
SET work_mem = '5MB';
SELECT cqrs_subscribe('s', ARRAY['things'], 'set_all(cqrs_event)');
SELECT cqrs_drain('s');
SELECT n, what FROM got ORDER BY seq;
SHOW app.tenant;
SHOW work_mem;

-- how often handlers are called if some fail
CREATE SEQUENCE calls;
CREATE FUNCTION often(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('calls');
	IF (e.payload->>'n')::int % 100 = 0 THEN
		RAISE EXCEPTION 'never';
	END IF;
END $$;
SELECT cqrs_register_event('counted', 'counted');
SELECT count(cqrs_emit('counted', jsonb_build_object('n', i), key => i::text)) FROM generate_series(1, 2000) i;
SELECT cqrs_subscribe('often', ARRAY['counted'], 'often(cqrs_event)', max_attempts => 1);
SET client_min_messages = error;
SELECT cqrs_drain('often');
RESET client_min_messages;
SELECT last_value < 3000 FROM calls;
SELECT count(*) FROM cqrs_dead_letters WHERE subscription = 'often';

-- one transaction for each event is the worker's; who has no handler has none
SELECT cqrs_alter_subscription('often', transaction => 'event');
SELECT transaction FROM cqrs.subscription WHERE subscription = 'often';
SELECT cqrs_alter_subscription('often', transaction => 'none');
SELECT cqrs_subscribe('pulled', ARRAY['counted'], transaction => 'event');
SELECT cqrs_subscribe('pulled', ARRAY['counted']);
SELECT cqrs_alter_subscription('pulled', transaction => 'batch');
-- a rate is the worker's, too: as often as that
SELECT cqrs_alter_subscription('often', rate => '100/min'), cqrs_alter_subscription('often', rate => '100/min') AS again;
SELECT rate FROM cqrs_subscriptions WHERE subscription = 'often';
SELECT cqrs_seek('often', 'earliest');
SET client_min_messages = error;
SELECT cqrs_drain('often') > 100 AS takes_no_heed;
RESET client_min_messages;
SELECT cqrs_alter_subscription('often', rate => rate) FROM unnest('{0,0/s,1/s,1000000/h}'::text[]) rate;
DO $$
DECLARE
	rate text;
BEGIN
	FOREACH rate IN ARRAY '{fast,-1/s,1000001/s,1,/s,1/d," 1/s","1/s ","",99999999999999999999/s}'::text[] LOOP
		BEGIN
			PERFORM cqrs_alter_subscription('often', rate => rate);
			RAISE EXCEPTION 'rate "%" was taken', rate;
		EXCEPTION WHEN invalid_parameter_value THEN
			RAISE NOTICE '%', SQLERRM;
		END;
	END LOOP;
END $$;
SELECT cqrs_alter_subscription('often', rate => 'fast');
SELECT cqrs_alter_subscription('pulled', rate => '1/s');
SELECT cqrs_subscribe('pulled too', ARRAY['counted'], rate => '1/s');
SELECT cqrs_subscribe('pulled too', ARRAY['counted'], rate => '0');
-- so is that of a key, which needs keys that do not wait for each other
SELECT cqrs_alter_subscription('often', key_rate => '10/s'), cqrs_alter_subscription('often', key_rate => '10/s') AS again;
SELECT rate, key_rate FROM cqrs_subscriptions WHERE subscription = 'often';
SELECT cqrs_alter_subscription('often', key_rate => 'fast');
SELECT cqrs_alter_subscription('often', ordering => 'topic');
SELECT cqrs_alter_subscription('often', ordering => 'topic', key_rate => '0');
SELECT cqrs_alter_subscription('often', key_rate => '1/s');
SELECT cqrs_alter_subscription('often', ordering => 'key', key_rate => '1/s');
SELECT cqrs_seek('often', 'earliest');
SET client_min_messages = error;
SELECT cqrs_drain('often') > 100 AS takes_no_heed;
RESET client_min_messages;
SELECT cqrs_subscribe('by topic', ARRAY['counted'], 'often(cqrs_event)', ordering => 'topic', key_rate => '1/s');
SELECT cqrs_subscribe('often', ARRAY['counted'], 'often(cqrs_event)', max_attempts => 1, transaction => 'event', rate => '1000000/h', key_rate => '2/s');
SELECT cqrs_alter_subscription('pulled', key_rate => '1/s');
SELECT cqrs_subscribe('pulled three', ARRAY['counted'], key_rate => '1/s');

SELECT cqrs_unsubscribe(subscription) FROM cqrs_subscription_status;
-- topics that it adds to itself: the event at hand is done, and comes once
TRUNCATE got, todo;
SELECT cqrs_register_event('other', 'others');
SELECT cqrs_subscribe('widening', ARRAY['things'], 'handle', start => 'latest');
INSERT INTO todo VALUES (2, $$SELECT cqrs_alter_subscription('widening', topics => ARRAY['things', 'others'])$$);
SELECT count(cqrs_emit('happened', jsonb_build_object('n', i), key => 'k')) FROM generate_series(1, 4) i;
SELECT cqrs_drain('widening');
SELECT cqrs_emit('other', '{"n": 5}', key => 'k') IS NOT NULL AS emitted;
SELECT cqrs_drain('widening');
SELECT string_agg(n::text, ' ' ORDER BY seq) FROM got;
SELECT count(*) FROM cqrs_retries;
SELECT cqrs_unsubscribe('widening');
SELECT cqrs_drop_topic('others', cascade => true);

DROP FUNCTION handle(cqrs_event), set_all(cqrs_event), often(cqrs_event);
DROP TABLE got, todo;
DROP SEQUENCE calls;
DROP EXTENSION cqrs_outbox CASCADE;
