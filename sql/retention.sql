-- The log empties itself: rotation, truncation, what holds it, and limits.
CREATE EXTENSION cqrs_outbox;

-- Large enough once there is anything in it.
SET cqrs_outbox.segment_size = '8kB';
SELECT cqrs_create_topic('t', retention => '0');
SELECT cqrs_register_event('e', 't');
CREATE FUNCTION emit(n int) RETURNS bigint LANGUAGE sql AS $$
	SELECT cardinality(cqrs_emit_many('e', array_agg(jsonb_build_object('n', i)), array_agg('k' || i))) FROM generate_series(1, n) i
$$;
CREATE FUNCTION sizes() RETURNS TABLE (segment int, pages bigint) LANGUAGE sql AS $$
	SELECT i, pg_relation_size(format('cqrs.topic_%s_%s', topic_id, i)) / 8192
	FROM cqrs.topic, generate_series(0, 2) i WHERE topic = 't' ORDER BY i
$$;

-- nothing to do; without subscriptions, only the retention counts
SELECT * FROM cqrs_maintain();
SELECT emit(3);
SELECT * FROM cqrs_maintain();
SELECT count(*) FROM cqrs_topics.t;
SELECT * FROM sizes();
SELECT emit(1);
SELECT emit(1);
SELECT * FROM cqrs_maintain('t');
SELECT * FROM cqrs_maintain('t');

-- a large payload goes, too
SELECT cqrs_emit('e', jsonb_build_object('x', string_agg(md5(i::text), ''))) IS NOT NULL AS emitted
FROM generate_series(1, 1000) i;
SELECT topic, events, bytes > 32768 AS large, segments, current_segment FROM cqrs_topic_status;
SELECT * FROM cqrs_maintain('t');
SELECT topic, events, bytes, oldest_emitted_at, segments, current_segment, held_by FROM cqrs_topic_status;

-- not before half the retention; then kept for all of it
SELECT cqrs_alter_topic('t', '1 hour');
SELECT emit(1);
SELECT * FROM cqrs_maintain();
UPDATE cqrs.topic SET opened_at[current_segment + 1] = now() - interval '31 min';
SELECT * FROM cqrs_maintain();
SELECT topic, events, segments, retention, held_by, held_by_pid, held_since = opened_at[cqrs.topic.current_segment + 1] AS since
FROM cqrs_topic_status JOIN cqrs.topic USING (topic, retention);
SELECT emit(1);
UPDATE cqrs.topic SET opened_at[current_segment + 1] = now() - interval '59 min';
-- the third one, too; the first is kept for the retention
SELECT * FROM cqrs_maintain();
UPDATE cqrs.topic SET opened_at = array_fill(now() - interval '61 min', ARRAY[3]);
SELECT * FROM cqrs_maintain();
SELECT * FROM sizes();

-- a segment that is neither large nor old stays the current one
SET cqrs_outbox.segment_size = '1GB';
SELECT cqrs_alter_topic('t', '0');
SELECT cqrs_alter_topic('t');
SELECT emit(1);
SELECT * FROM cqrs_maintain();
UPDATE cqrs.topic SET opened_at[current_segment + 1] = now() - interval '9 min';
SELECT * FROM cqrs_maintain();
UPDATE cqrs.topic SET opened_at[current_segment + 1] = now() - interval '10 min';
SELECT * FROM cqrs_maintain();
SET cqrs_outbox.segment_size = '8kB';

-- a subscription holds what it has not got, no more, no less
SELECT cqrs_subscribe('reader', ARRAY['t']);
CREATE FUNCTION receive(batch_size int) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT payload FROM cqrs_receive('reader', batch_size);
	PERFORM cqrs_ack('reader');
END $$;
SELECT emit(3);
SELECT * FROM cqrs_maintain();
SELECT topic, events, segments, held_by, held_by_pid, held_since = moved_at AS since FROM cqrs_topic_status, cqrs.cursor;
SELECT cqrs_tick() > 0 AS ticked;
SELECT receive(2);
SELECT * FROM cqrs_maintain();
SELECT emit(1);
SELECT receive(2);
SELECT * FROM cqrs_maintain();
-- received is not acknowledged; acknowledged is not committed
SELECT cqrs_tick() > 0 AS ticked;
SELECT position, payload, receipt FROM cqrs_receive('reader') \gset
SELECT :'payload' AS payload;
SELECT * FROM cqrs_maintain();
SELECT cqrs_ack('reader', ARRAY[:position], :'receipt');
SELECT * FROM cqrs_maintain();

-- rows of aborted transactions hold nothing; what was rolled back to a savepoint neither
BEGIN;
SELECT emit(5);
ROLLBACK;
SELECT * FROM cqrs_maintain();
BEGIN;
SAVEPOINT s;
SELECT emit(5);
ROLLBACK TO s;
COMMIT;
SELECT * FROM cqrs_maintain();

-- nothing of a parked event is held: it is kept elsewhere
SELECT emit(1);
SELECT cqrs_tick() > 0 AS ticked;
SELECT payload, cqrs_nack('reader', ARRAY[position], 'no', retry_after => '0') FROM cqrs_receive('reader');
SELECT * FROM cqrs_maintain();
SELECT receive(1);

-- each subscription holds, and each partition of it; once it is gone, it does not
SELECT cqrs_subscribe('other', ARRAY['t'], partitions => 2);
SELECT emit(8);
SELECT cqrs_tick() > 0 AS ticked;
SELECT receive(8);
SELECT * FROM cqrs_maintain();
BEGIN;
SELECT count(*) FROM cqrs_receive('other', partition => 0);
SELECT cqrs_ack('other') > 0 AS acked;
COMMIT;
SELECT * FROM cqrs_maintain();
BEGIN;
SELECT count(*) FROM cqrs_receive('other', partition => 1);
SELECT cqrs_ack('other') > 0 AS acked;
COMMIT;
SELECT * FROM cqrs_maintain();
SELECT emit(1);
SELECT cqrs_tick() > 0 AS ticked;
SELECT receive(1);
SELECT * FROM cqrs_maintain();
SELECT cqrs_unsubscribe('other');
SELECT * FROM cqrs_maintain();

-- past max_retained_size: suspended; what it then misses is counted
SELECT cqrs_alter_subscription('reader', max_retained_size => 32767);
SELECT emit(5);
SELECT cqrs_tick() > 0 AS ticked;
SELECT receive(2);
SELECT emit(4);
SELECT topic, bytes, segments FROM cqrs_topic_status;
SELECT * FROM cqrs_maintain();
SELECT state, state_reason, missed_events FROM cqrs.subscription;
SELECT * FROM cqrs_maintain();
SELECT emit(2);
SELECT * FROM cqrs_maintain();
SELECT cqrs_pause('reader');
SELECT state, missed_events FROM cqrs.subscription;
SELECT emit(1);
SELECT cqrs_resume('reader');
SELECT cqrs_tick() > 0 AS ticked;
SELECT receive(10);
SELECT * FROM cqrs_maintain();

-- also a paused one; of two partitions, each misses its own events
SELECT cqrs_subscribe('other', ARRAY['t'], max_retained_size => 1, partitions => 2);
SELECT cqrs_pause('other');
SELECT emit(100);
SELECT cqrs_tick() > 0 AS ticked;
SELECT count(*) FROM receive(100);
SELECT * FROM cqrs_maintain();
SELECT subscription, state, missed_events FROM cqrs.subscription WHERE subscription = 'other';
SELECT cqrs_unsubscribe('other');

-- past max_retained_age, which does not count what is delivered
SELECT cqrs_alter_subscription('reader', max_retained_size => 0, max_retained_age => '10 ms');
UPDATE cqrs.topic SET retention = '1 hour', opened_at[current_segment + 1] = now() - interval '1 hour';
SELECT emit(1);
SELECT cqrs_tick() > 0 AS ticked;
SELECT count(*) FROM receive(1);
DO $$
BEGIN
	WHILE (SELECT max(emitted_at) FROM cqrs_topics.t) > clock_timestamp() - interval '20 ms' LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END $$;
SELECT * FROM cqrs_maintain();
SELECT emit(1);
DO $$
BEGIN
	WHILE (SELECT max(emitted_at) FROM cqrs_topics.t) > clock_timestamp() - interval '20 ms' LOOP
		PERFORM pg_sleep(0.001);
	END LOOP;
END $$;
SET client_min_messages = error;
SELECT action, detail FROM cqrs_maintain() WHERE action = 'suspended';
RESET client_min_messages;
SELECT state, regexp_replace(state_reason, '[0-9.]+', 'N') AS state_reason FROM cqrs.subscription;
SELECT cqrs_resume('reader');
SELECT cqrs_alter_subscription('reader', max_retained_age => '0');
SELECT cqrs_tick() > 0 AS ticked;
SELECT count(*) FROM receive(1);
SELECT cqrs_alter_topic('t', '0');
SELECT action, detail FROM cqrs_maintain();

-- rows that did not come by way of cqrs_emit() are nobody's, except while a
-- cursor is restored, which holds everything
SELECT format('topic_%s_%s', topic_id, current_segment) AS segment FROM cqrs.topic \gset
INSERT INTO cqrs.:segment (position, xid, emitted_at, event_id, event_name)
VALUES (1, '3', now(), gen_random_uuid(), 'e');
CREATE TEMP TABLE saved AS SELECT * FROM cqrs.cursor ORDER BY seq DESC LIMIT 1;
INSERT INTO cqrs.cursor (subscription_id, partition, seq, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic)
SELECT subscription_id, partition, seq + 1, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic FROM saved;
SELECT action, detail FROM cqrs_maintain();
SELECT cqrs_seek('reader', 'latest');
SELECT action, detail FROM cqrs_maintain();

-- a restored topic without subscriptions, which are perhaps yet to be
-- restored, keeps everything
SELECT cqrs_create_topic('restored', retention => '0');
SELECT cqrs_emit('e', '{}', topic => 'restored') IS NOT NULL AS emitted;
CREATE TEMP TABLE saved_topic AS SELECT * FROM cqrs.topic WHERE topic = 'restored';
DELETE FROM cqrs.topic WHERE topic = 'restored';
INSERT INTO cqrs.topic (topic_id, topic, retention, current_segment, opened_at, created_at)
SELECT topic_id, topic, retention, current_segment, opened_at, created_at FROM saved_topic;
SELECT action, detail FROM cqrs_maintain('restored');
SELECT held_by FROM cqrs_topic_status WHERE topic = 'restored';
SELECT cqrs_adopt();
SELECT action, detail FROM cqrs_maintain('restored');
SELECT cqrs_drop_topic('restored');

-- errors
\set VERBOSITY terse
SELECT * FROM cqrs_maintain('nowhere');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT * FROM cqrs_maintain();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM cqrs_maintain();
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT cqrs_alter_topic('nowhere', '1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_alter_topic('t', '-1 day');
\echo :LAST_ERROR_SQLSTATE
SELECT emit(1);
SELECT format('topic_%s_%s', topic_id, current_segment) AS segment FROM cqrs.topic \gset
ALTER TABLE cqrs.:segment ADD CONSTRAINT added CHECK (position > 0);
SELECT * FROM cqrs_maintain();
\echo :LAST_ERROR_SQLSTATE

-- who may
CREATE ROLE regress_cqrs_watcher;
GRANT EXECUTE ON FUNCTION cqrs_alter_topic(text, interval) TO regress_cqrs_watcher;
SET ROLE regress_cqrs_watcher;
SELECT topic FROM cqrs_topic_status;
SELECT * FROM cqrs_maintain();
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_alter_topic('t', '1 day');
\echo :LAST_ERROR_SQLSTATE
SET cqrs_outbox.segment_size = '16kB';
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
\set VERBOSITY default
ALTER TABLE cqrs.:segment DROP CONSTRAINT added;
GRANT SELECT ON cqrs_topics.t TO regress_cqrs_watcher;
SET ROLE regress_cqrs_watcher;
SELECT topic, events FROM cqrs_topic_status;
RESET ROLE;
REVOKE SELECT ON cqrs_topics.t FROM regress_cqrs_watcher;
GRANT pg_monitor TO regress_cqrs_watcher;
SET ROLE regress_cqrs_watcher;
SELECT topic, events FROM cqrs_topic_status;
RESET ROLE;

DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION emit(int), sizes(), receive(int);
DROP ROLE regress_cqrs_watcher;
