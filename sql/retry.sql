-- Events that fail: attempts, lanes, dead letters
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('happened', 'things');

-- a handler that fails for what table broken says
CREATE TABLE broken (n integer);
CREATE TABLE handled (seq serial, key text, n integer, attempts integer);
CREATE FUNCTION on_thing(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	INSERT INTO handled (key, n, attempts)
		VALUES (event.key, (event.payload->>'n')::integer, (cqrs_context()).attempts);
	IF EXISTS (SELECT FROM broken WHERE n = (event.payload->>'n')::integer) THEN
		RAISE EXCEPTION 'cannot handle %', event.payload->>'n';
	END IF;
END $$;
SELECT cqrs_subscribe('things', ARRAY['things'], 'on_thing(cqrs_event)', max_attempts => 3, retry_delay => '0');
CREATE FUNCTION emit_retry(key text, n integer[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. cardinality(n) LOOP
		PERFORM cqrs_emit('happened', jsonb_build_object('n', n[i]), key => key);
	END LOOP;
END $$;
CREATE VIEW progress AS
	SELECT state, lag_events, retrying, waiting, dead, error_sqlstate, error FROM cqrs_subscription_status;
CREATE VIEW outbox AS
	SELECT key, payload->>'n' AS n, status, attempts FROM cqrs_events('things');

-- the one that fails is rolled back, later ones of its key wait, others go on
INSERT INTO broken VALUES (2);
SELECT emit_retry('a', '{1, 2, 3}'), emit_retry('b', '{4}'), emit_retry('a', '{5}'), emit_retry(NULL, '{6}');
\set VERBOSITY terse
SELECT cqrs_drain('things') AS delivered;
SELECT * FROM progress;
SELECT * FROM outbox;
SELECT key, n, attempts FROM handled ORDER BY seq;

-- what waited goes on, in order, when it succeeds
DELETE FROM broken;
SELECT emit_retry('a', '{7}'), emit_retry('b', '{8}');
SELECT cqrs_drain('things') AS delivered;
SELECT key, n, attempts FROM handled ORDER BY seq;
SELECT * FROM progress;
SELECT * FROM outbox;
TRUNCATE handled RESTART IDENTITY;

-- or when it is given up
INSERT INTO broken VALUES (10), (11);
SELECT emit_retry('a', '{9, 10, 11, 12}'), emit_retry('b', '{13}');
SELECT cqrs_drain('things') AS delivered FROM generate_series(1, 6);
SELECT key, n, attempts FROM handled ORDER BY seq;
SELECT * FROM progress;
SELECT * FROM outbox;
SELECT key, payload->>'n' AS n, status, attempts FROM cqrs_events('things', status => 'dead');
SELECT key, payload->>'n' AS n, status, attempts FROM cqrs_events('things', status => 'all') WHERE (payload->>'n')::integer > 8;
SELECT event_name, topic, key, payload, attempts, error_sqlstate, error FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY position;
SELECT position, died_at >= emitted_at AS died FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY 1;

-- tried anew: all, or one
DELETE FROM broken;
TRUNCATE handled RESTART IDENTITY;
SELECT event_id FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY position DESC LIMIT 1 \gset
SELECT cqrs_redrive('things', ARRAY[:'event_id']::uuid[]);
SELECT cqrs_redrive('things', ARRAY['01890a5d-ac96-774b-bcce-b302099a8057']::uuid[]);
SELECT cqrs_redrive_all('things');
SELECT cqrs_redrive_all('things');
SELECT * FROM outbox;
SELECT cqrs_drain('things') AS delivered;
SELECT key, n, attempts FROM handled ORDER BY seq;

-- also those that were sought, and failed again ...
INSERT INTO broken VALUES (20), (21), (22);
SELECT cqrs_alter_subscription('things', max_attempts => 1);
SELECT emit_retry('a', '{20}'), emit_retry('b', '{21}'), emit_retry('c', '{22}');
SELECT cqrs_drain('things') AS delivered;
SELECT cqrs_alter_subscription('things', max_attempts => 3, retry_delay => '1 hour', max_retry_delay => '1 hour');
SELECT cqrs_seek('things', 'earliest');
SELECT cqrs_drain('things') > 0 AS delivered;
SELECT retrying, dead FROM progress;
DELETE FROM broken;
TRUNCATE handled RESTART IDENTITY;
SELECT event_id FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY position LIMIT 1 \gset
SELECT cqrs_redrive('things', ARRAY[:'event_id']::uuid[]);
SELECT cqrs_redrive_all('things');
SELECT * FROM outbox;
SELECT cqrs_drain('things') AS delivered;
SELECT key, n, attempts FROM handled ORDER BY seq;
SELECT retrying, dead FROM progress;
-- ... or have yet to come again: once
INSERT INTO broken VALUES (21), (23);
SELECT cqrs_alter_subscription('things', max_attempts => 1, retry_delay => '0');
SELECT emit_retry('a', '{23}');
SELECT cqrs_drain('things') AS delivered;
SELECT cqrs_seek('things', 'earliest');
DELETE FROM broken;
TRUNCATE handled RESTART IDENTITY;
SELECT cqrs_redrive_all('things');
SELECT cqrs_drain('things') > 0 AS delivered;
SELECT key, n, attempts FROM handled WHERE n > 21 ORDER BY seq;
SELECT retrying, dead FROM progress;
TRUNCATE handled RESTART IDENTITY;
SELECT cqrs_alter_subscription('things', max_attempts => 3);

-- or discarded
INSERT INTO broken VALUES (14), (15);
SELECT cqrs_alter_subscription('things', max_attempts => 1);
SELECT emit_retry('a', '{14, 15, 16}');
SELECT cqrs_drain('things') AS delivered;
SELECT event_id FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY position LIMIT 1 \gset
-- nobody discards all by a variable that was never set
SELECT cqrs_discard('things', NULL), cqrs_discard('things', '{}'), cqrs_redrive('things', '{}'), cqrs_retry('things', '{}'),
	   cqrs_redrive('things', NULL), cqrs_retry('things', NULL);
SELECT cqrs_discard('things', ARRAY[NULL]::uuid[]);
SELECT cqrs_discard('things', ARRAY[:'event_id', '01890a5d-ac96-774b-bcce-b302099a8057', :'event_id']::uuid[]);
SELECT payload FROM cqrs_dead_letters WHERE subscription = 'things' ORDER BY position;
SELECT cqrs_drop_topic('things', cascade => false);
SELECT cqrs_unregister_event('happened');
SELECT cqrs_drop_topic('things');
SELECT cqrs_discard_all('things');
SELECT cqrs_discard('things', ARRAY['01890a5d-ac96-774b-bcce-b302099a8057']::uuid[]);
SELECT cqrs_register_event('happened', 'things');

-- for ever
SELECT cqrs_alter_subscription('things', max_attempts => 0);
SELECT emit_retry('a', '{14}');
DO $$ BEGIN FOR i IN 1 .. 10 LOOP PERFORM cqrs_drain('things'); END LOOP; END $$;
SELECT attempts >= 7 AS many FROM outbox;
DELETE FROM broken;
SELECT cqrs_drain('things') AS delivered;
SELECT * FROM outbox;

-- what failed waits for its time, what comes behind it for it; unless somebody
-- wants it tried at once: all, or one
INSERT INTO broken VALUES (30), (32);
TRUNCATE handled RESTART IDENTITY;
SELECT cqrs_alter_subscription('things', max_attempts => 3, retry_delay => '1 hour', max_retry_delay => '1 hour');
SELECT emit_retry('a', '{30, 31}'), emit_retry('b', '{32, 33}');
SELECT cqrs_drain('things') AS delivered;
CREATE VIEW waiting AS
SELECT r.event_name, r.topic, r.key, r.payload, r.headers, r.emitted_at <= now() AS emitted, r.attempts, r.error, r.error_sqlstate,
	   r.error_at >= r.emitted_at AS failed, r.retry_at > r.error_at + interval '30 min' AS later, e.payload AS waits_for
FROM cqrs_retries r LEFT JOIN cqrs_events('things') e ON e.event_id = r.waits_for
WHERE r.subscription = 'things' ORDER BY r.position;
SELECT * FROM waiting;
DELETE FROM broken;
SELECT cqrs_drain('things') AS delivered;
SELECT cqrs_retry('things', (SELECT array_agg(event_id) FROM cqrs_retries WHERE payload->>'n' IN ('31', '32'))) AS retried;
SELECT cqrs_drain('things') AS delivered;
SELECT * FROM waiting;
SELECT cqrs_retry_all('things') AS retried;
SELECT cqrs_retry_all('things') AS retried;
SELECT cqrs_drain('things') AS delivered;
SELECT * FROM waiting;
SELECT key, n, attempts FROM handled ORDER BY seq;
DROP VIEW waiting;
SELECT cqrs_alter_subscription('things', retry_delay => '0');

-- a deferred constraint fails when the transaction ends: no one event did it
CREATE TABLE once (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION on_once(event cqrs_event) RETURNS void LANGUAGE sql SET search_path = public AS $$
	INSERT INTO once VALUES ((event.payload->>'n')::integer) $$;
SELECT cqrs_alter_subscription('things', handler => 'on_once(cqrs_event)', max_attempts => 2);
SELECT emit_retry('a', '{1, 1, 2}');
SELECT cqrs_drain('things') AS delivered;

-- where everything fails, however many are parked
DROP TABLE once;
CREATE FUNCTION on_nothing(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE division_by_zero; END $$;
SELECT cqrs_seek('things', 'latest');
SELECT cqrs_alter_subscription('things', handler => 'on_nothing(cqrs_event)', max_attempts => 2, retry_delay => '1 hour');
SELECT cardinality(cqrs_emit_many('happened', array_agg('{}'::jsonb), array_agg(i::text))) FROM generate_series(1, 999) i;
SET client_min_messages = error;
SELECT cqrs_drain('things') AS delivered;
-- another one waits, and others fail
SELECT emit_retry('1', '{1}'), emit_retry('z', '{2}'), emit_retry('y', '{3}');
SELECT cqrs_drain('things') AS delivered;
RESET client_min_messages;
SELECT state, lag_events, retrying, waiting, dead FROM cqrs_subscription_status;
SELECT cqrs_seek('things', 'latest');
SELECT cardinality(cqrs_emit_many('happened', array_agg('{}'::jsonb), array_agg(i::text))) FROM generate_series(1, 1010) i;
SET client_min_messages = error;
SELECT cqrs_drain('things') AS delivered;
RESET client_min_messages;
SELECT state, lag_events, retrying, waiting, dead FROM cqrs_subscription_status;
SELECT status, count(*) FROM cqrs_events('things', 2000) GROUP BY 1 ORDER BY 1;
SELECT cqrs_alter_subscription('things', handler => 'on_thing(cqrs_event)');
SELECT cqrs_seek('things', 'latest');
SELECT state, lag_events, retrying, waiting, dead FROM cqrs_subscription_status;

-- no event's fault
TRUNCATE handled RESTART IDENTITY;
CREATE FUNCTION on_outage(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
SELECT cqrs_alter_subscription('things', handler => 'on_outage(cqrs_event)');
SELECT emit_retry('a', '{17}');
SELECT cqrs_drain('things') AS delivered;
\echo :LAST_ERROR_SQLSTATE
DROP FUNCTION on_outage(cqrs_event);
SELECT cqrs_drain('things') AS delivered;
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM outbox;
SELECT cqrs_alter_subscription('things', handler => 'on_thing(cqrs_event)');
SELECT cqrs_drain('things') AS delivered;

-- what may be over at once
CREATE SEQUENCE tries;
CREATE FUNCTION on_busy(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF nextval('tries') <= 3 THEN
		RAISE serialization_failure;
	END IF;
	INSERT INTO handled (n) VALUES ((cqrs_context()).attempts);
END $$;
TRUNCATE handled RESTART IDENTITY;
SELECT cqrs_alter_subscription('things', handler => 'on_busy(cqrs_event)');
SELECT emit_retry('a', '{18}');
SELECT cqrs_drain('things') AS delivered;
SELECT n AS attempts FROM handled;
SELECT count(*) FROM cqrs.retry;
DROP SEQUENCE tries;

-- no other to tell by: who drains is told, and it is no attempt
SELECT emit_retry('a', '{19}');
SELECT cqrs_drain('things') AS delivered;
SELECT attempts, sqlstate FROM cqrs.retry;
SELECT cqrs_seek('things', 'latest');
SELECT cqrs_alter_subscription('things', handler => 'on_thing(cqrs_event)');
DROP FUNCTION on_busy(cqrs_event);

-- privileges
CREATE ROLE regress_cqrs_nobody;
GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO regress_cqrs_nobody;
SELECT cqrs_alter_subscription('things', max_attempts => 2, retry_delay => '1 hour');
SELECT cqrs_seek('things', 'latest');
INSERT INTO broken VALUES (50), (51);
SELECT cqrs_alter_subscription('things', max_attempts => 1);
SELECT emit_retry('a', '{50}');
SELECT cqrs_drain('things') AS delivered;
SELECT cqrs_alter_subscription('things', max_attempts => 2);
SELECT emit_retry('b', '{51}');
SELECT cqrs_drain('things') AS delivered;
SELECT (SELECT count(*) FROM cqrs_dead_letters) AS dead, (SELECT count(*) FROM cqrs_retries) AS retries;
SET ROLE regress_cqrs_nobody;
SELECT (SELECT count(*) FROM cqrs_dead_letters) AS dead, (SELECT count(*) FROM cqrs_retries) AS retries;
SELECT cqrs_redrive_all('things');
SELECT cqrs_retry_all('things');
SELECT cqrs_discard('things', NULL);
SELECT cqrs_discard_all('things');
SELECT cqrs_alter_subscription('things', max_attempts => 1);
SELECT cqrs_nack('things', '{1}');
SELECT cqrs_ack('things', '{1}');
SELECT cqrs_renew('things', gen_random_uuid(), '1 s');
RESET ROLE;
SELECT cqrs_discard_all('no such subscription');
SELECT cqrs_redrive_all(NULL);
SELECT cqrs_alter_subscription('things', max_attempts => -1);
SELECT cqrs_alter_subscription('things', retry_delay => '-1 s');
SELECT cqrs_subscribe('other', ARRAY['things'], max_retained_size => -1);
SELECT cqrs_subscribe('other', ARRAY['things'], delivery_timeout => '-1 s');
SELECT cqrs_unsubscribe('things');
SELECT count(*) FROM cqrs.retry;
SELECT count(*) FROM cqrs.dead_letter;
REVOKE ALL ON FUNCTION cqrs_alter_subscription FROM regress_cqrs_nobody;
DROP ROLE regress_cqrs_nobody;
DROP VIEW progress, outbox;
DROP TABLE broken, handled;
DROP FUNCTION emit_retry, on_nothing;
DROP EXTENSION cqrs_outbox CASCADE;
