-- What waits for an event that failed: by key, or by topic; and topics that are
-- added and taken away
CREATE EXTENSION cqrs_outbox;
\set SHOW_CONTEXT never
SELECT cqrs_register_event('happened', 'things');
SELECT cqrs_register_event('other', 'others');
SELECT cqrs_register_event('third', 'thirds');
SET client_min_messages = error;
CREATE FUNCTION due_now() RETURNS void LANGUAGE sql AS $$
	UPDATE cqrs.retry SET retry_at = now(), due_at = CASE WHEN due_at IS NOT NULL THEN now() END;
	UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now() $$;
CREATE TABLE broken (n integer);
CREATE TABLE handled (id serial, topic text, key text, n integer);
CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM broken b WHERE b.n = (event.payload->>'n')::integer) THEN
		RAISE 'broken';
	END IF;
	INSERT INTO handled (topic, key, n) VALUES (event.topic, event.key, (event.payload->>'n')::integer);
END $$;
CREATE FUNCTION handled() RETURNS TABLE (topic text, ns text) LANGUAGE sql AS
	$$ SELECT topic, string_agg(n::text, ' ' ORDER BY id) FROM handled GROUP BY topic ORDER BY topic $$;
CREATE FUNCTION emit(name text, key text, VARIADIC n integer[]) RETURNS bigint LANGUAGE sql AS
	$$ SELECT count(cqrs_emit(name, jsonb_build_object('n', i), key => key)) FROM unnest(n) i $$;
CREATE VIEW parked AS SELECT key, (payload->>'n')::integer AS n, attempts, due_at IS NOT NULL AS head,
		lane = cqrs.event_lane(topic_id, event_id, key, ordering = 'topic') AS lane,
		r.partition = cqrs.event_partition(topic_id, event_id, key, ordering = 'topic', partitions) AS partition
	FROM cqrs.retry r JOIN cqrs.subscription USING (subscription_id);
SELECT cqrs_subscribe('things', ARRAY['things', 'others'], 'handle', ordering => 'age');
SELECT cqrs_subscribe('things', ARRAY['things', 'others'], 'handle', retry_delay => '1 hour', max_attempts => 3);
SELECT cqrs_alter_subscription('things', ordering => 'Topic');
SELECT cqrs_alter_subscription('things', ordering => 'key');
SELECT ordering FROM cqrs_subscriptions;

-- by key: an event without one waits for nothing, and nothing for it
INSERT INTO broken VALUES (2), (11);
SELECT emit('happened', NULL, 1, 2, 3, 4), emit('happened', 'k', 11, 12), emit('happened', 'l', 13), emit('other', NULL, 5);
SELECT cqrs_drain('things');
SELECT * FROM handled();
SELECT * FROM parked ORDER BY n;
DELETE FROM broken;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT * FROM handled();

-- by topic, from what is committed after the change; what is parked, and new
-- events behind it, wait in the order of the topic
TRUNCATE handled;
INSERT INTO broken VALUES (22), (24);
SELECT emit('happened', NULL, 21, 22, 23), emit('happened', 'k', 24, 25), emit('happened', 'l', 26);
SELECT cqrs_alter_subscription('things', ordering => 'topic');
SELECT cqrs_alter_subscription('things', ordering => 'topic');
SELECT partitions, ordering, next_partitions, next_ordering FROM cqrs.subscription;
UPDATE cqrs.subscription SET epoch_since = '2020-01-01 00:00+00';
SET timezone = 'UTC';
SELECT detail, hint FROM cqrs_health() WHERE problem = 'partitions_changing';
SELECT emit('happened', 'm', 27), emit('other', NULL, 28);
SELECT cqrs_drain('things');
SELECT partitions, ordering, next_partitions, next_ordering FROM cqrs.subscription;
SELECT * FROM handled();
SELECT * FROM parked ORDER BY n;
DELETE FROM broken WHERE n = 22;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT * FROM handled();
SELECT * FROM parked ORDER BY n;
DELETE FROM broken;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT * FROM handled();

-- and back, with partitions: a lane that ends leaves several
TRUNCATE handled;
INSERT INTO broken VALUES (31), (33);
SELECT emit('happened', 'k', 31), emit('happened', NULL, 32, 33, 34), emit('happened', 'l', 35), emit('happened', 'k', 36);
SELECT cqrs_drain('things');
SELECT * FROM parked ORDER BY n;
SELECT cqrs_alter_subscription('things', partitions => 3);
SELECT cqrs_alter_subscription('things', ordering => 'key');
SELECT emit('happened', 'k', 37), emit('happened', 'm', 38);
SELECT cqrs_drain('things');
SELECT array_agg(n ORDER BY n) FROM handled;
SELECT * FROM parked ORDER BY n;
SELECT partitions, ordering FROM cqrs_subscriptions;
DELETE FROM broken;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT topic, key, string_agg(n::text, ' ' ORDER BY id) FILTER (WHERE key IS NOT NULL) AS ns, count(*) FROM handled GROUP BY topic, key ORDER BY topic, key;
-- events without a key are spread
TRUNCATE handled;
SELECT count(cqrs_emit('happened', '{"n": 40}')) FROM generate_series(1, 100);
SELECT count(DISTINCT cqrs.event_partition(1, event_id, NULL, false, 3)) AS partitions, count(DISTINCT cqrs.event_partition(1, event_id, NULL, true, 3)) AS by_topic FROM cqrs_topics.things;
SELECT sum(lag_events) FROM cqrs_subscription_status;
SELECT cqrs_drain('things');
SELECT sum(lag_events) FROM cqrs_subscription_status;
SELECT count(*) FROM handled;
-- the change is dropped if what is asked for is what there is
SELECT cqrs_alter_subscription('things', ordering => 'topic');
SELECT cqrs_alter_subscription('things', ordering => 'key');
SELECT partitions, ordering, next_partitions, next_ordering FROM cqrs.subscription;
SELECT cqrs_alter_subscription('things', partitions => 1);
SELECT cqrs_drain('things');

-- topics: from where it is, in order with the others; what is parked of one that
-- is taken away goes
TRUNCATE handled;
SELECT emit('third', NULL, 50), emit('happened', NULL, 51);
SELECT cqrs_alter_subscription('things', topics => ARRAY['things', 'others', 'thirds']);
SELECT cqrs_alter_subscription('things', topics => ARRAY['thirds', 'others', 'things', 'others']);
SELECT topics FROM cqrs_subscriptions;
SELECT emit('third', 'k', 52), emit('happened', 'k', 53), emit('other', 'k', 54);
INSERT INTO broken VALUES (52), (53), (54);
SELECT cqrs_drain('things');
SELECT * FROM handled();
SELECT cqrs_subscribe('things', ARRAY['things'], 'handle', retry_delay => '1 hour', max_attempts => 3);
SELECT cqrs_subscribe('things', ARRAY['things'], 'handle', retry_delay => '1 hour', max_attempts => 3, or_replace => true);
SELECT topics FROM cqrs_subscriptions;
SELECT * FROM parked ORDER BY n;
SELECT emit('third', NULL, 55), emit('happened', NULL, 56);
DELETE FROM broken;
SELECT due_now();
SELECT cqrs_drain('things');
SELECT * FROM handled();
SELECT count(*) FROM cqrs.cursor WHERE next_retry_at IS NOT NULL AND seq = (SELECT max(seq) FROM cqrs.cursor);
-- which topics
SELECT cqrs_alter_subscription('things', topics => '{}');
SELECT cqrs_alter_subscription('things', topics => ARRAY['nothing']);
CREATE ROLE regress_cqrs_ordering LOGIN;
CREATE ROLE regress_cqrs_member IN ROLE regress_cqrs_ordering;
SELECT cqrs_grant_admin('regress_cqrs_ordering');
GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO regress_cqrs_member;
GRANT SELECT ON cqrs_topics.things TO regress_cqrs_ordering;
SET ROLE regress_cqrs_ordering;
SELECT cqrs_subscribe('mine', ARRAY['things']);
SELECT cqrs_alter_subscription('mine', topics => ARRAY['things', 'others']);
SET ROLE regress_cqrs_member;
SELECT cqrs_alter_subscription('mine', topics => ARRAY['things', 'others']);
RESET ROLE;
GRANT SELECT ON cqrs_topics.others TO regress_cqrs_ordering;
SET ROLE regress_cqrs_member;
SELECT cqrs_alter_subscription('mine', topics => ARRAY['things', 'others']);
SET ROLE regress_cqrs_ordering;
SELECT cqrs_alter_subscription('mine', topics => ARRAY['others']);
RESET ROLE;
SELECT subscription, topics FROM cqrs_subscriptions ORDER BY 1;
-- not of what was restored, and not adopted: what it has got is not known
SELECT subscription_id, seq FROM cqrs.cursor JOIN cqrs.subscription USING (subscription_id) WHERE subscription = 'mine' ORDER BY seq DESC LIMIT 1 \gset
INSERT INTO cqrs.cursor (subscription_id, partition, seq, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic)
SELECT subscription_id, partition, seq + 1, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic
FROM cqrs.cursor WHERE subscription_id = :subscription_id AND seq = :seq;
SET ROLE regress_cqrs_ordering;
SELECT cqrs_alter_subscription('mine', topics => ARRAY['things', 'others']);
RESET ROLE;
SELECT max(seq) - :seq AS rows FROM cqrs.cursor WHERE subscription_id = :subscription_id;
-- not of a command queue
SELECT cqrs_create_command_queue();
SELECT subscription AS queue FROM cqrs.subscription WHERE runs = 'commands' \gset
SELECT cqrs_alter_subscription(:'queue', topics => ARRAY['things']);
SELECT cqrs_unsubscribe('mine');
SELECT cqrs_revoke_admin('regress_cqrs_ordering');
DROP OWNED BY regress_cqrs_ordering, regress_cqrs_member;
DROP ROLE regress_cqrs_member, regress_cqrs_ordering;
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE broken, handled CASCADE;
DROP FUNCTION due_now, emit, handled;
