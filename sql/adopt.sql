-- cqrs_adopt(): what comes through the executor, as a restored dump does, is no
-- event until it is adopted. (See test/t/011_dump_restore.pl for dumps.)
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_register_event('b', 'topic_b');
SELECT cqrs_subscribe('s', ARRAY['topic_a']);
SELECT cqrs_subscribe('t', ARRAY['topic_a']);
SELECT cqrs_subscribe('partitioned', ARRAY['topic_a'], partitions => 4);
SELECT cqrs_subscribe('failed', ARRAY['topic_a'], retry_delay => '1 day', max_retry_delay => '1 day');
SELECT cardinality(cqrs_emit_many('a', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}']::jsonb[], ARRAY['x', 'y', 'z']));
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT payload FROM cqrs_receive('s', 2);
SELECT cqrs_ack('s') IS NOT NULL AS acknowledged;
COMMIT;
SELECT cqrs_nack('failed', ARRAY[position]) FROM cqrs_receive('failed', 1);
SELECT cqrs_emit('a', '{"n": 4}', key => 'x') IS NOT NULL AS emitted;

-- in topics that were made here, nothing is adopted, whoever put it there
INSERT INTO cqrs.topic_2_0 (position, xid, emitted_at, event_id, event_name)
	VALUES (1, '3', now(), gen_random_uuid(), 'b');
SELECT * FROM cqrs_adopt();
SELECT count(*) FROM cqrs_topics.topic_b;
SELECT count(*) FROM cqrs_events('topic_b');
DELETE FROM cqrs.topic_2_0;

-- who changes a topic leaves it what it is
UPDATE cqrs.topic SET retention = '2 days' WHERE topic = 'topic_a' RETURNING native;

-- as if from a dump
CREATE PROCEDURE restore() LANGUAGE plpgsql AS $$
DECLARE
	name text;
	columns text;
BEGIN
	SET LOCAL session_replication_role = replica;
	FOREACH name IN ARRAY ARRAY['topic', 'cursor', 'topic_1_0', 'topic_1_1', 'topic_1_2'] LOOP
		SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
			WHERE attrelid = ('cqrs.' || name)::regclass AND attnum > 0 AND attname <> 'native';
		EXECUTE format('CREATE TEMP TABLE dump AS SELECT %s FROM cqrs.%I', columns, name);
		EXECUTE format('DELETE FROM cqrs.%I', name);
		EXECUTE format('INSERT INTO cqrs.%I (%s) SELECT * FROM dump', name, columns);
		DROP TABLE dump;
	END LOOP;
END $$;
CALL restore();
SELECT payload FROM cqrs_events('topic_a');
SELECT cqrs_tick() > 0 AS ticked;
SELECT * FROM cqrs_receive('s');
SELECT cqrs_seek('s', now());
-- what is to be tried has to wait: the cursor stays where it was
SELECT cqrs_retry_all('failed'), (SELECT count(*) FROM cqrs_retries WHERE subscription = 'failed') AS parked;
SELECT count(*) FILTER (WHERE native) AS moved FROM cqrs.cursor;
SELECT max(seq) AS seq FROM cqrs.cursor WHERE subscription_id = 4;
SELECT cqrs_unregister_event('a');
SELECT cqrs_drop_topic('topic_a');
SELECT cqrs_register_event('a', 'topic_a');

-- not all of it
DELETE FROM cqrs.cursor WHERE subscription_id = 3 AND partition = 2;
SELECT * FROM cqrs_adopt();
SELECT cqrs_unsubscribe('partitioned');

-- what to do with it
SELECT cqrs_subscribe('early', ARRAY['topic_a']);
SELECT cqrs_subscribe('late', ARRAY['topic_a'], start => 'latest');
SELECT cqrs_seek('t', 'latest');
SELECT cqrs_emit('a', '{"n": 5}') IS NOT NULL AS emitted;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM cqrs.topic;
SELECT * FROM cqrs_adopt() ORDER BY 1;
COMMIT;
SELECT cqrs_tick() > 0 AS ticked;
SELECT payload FROM cqrs_receive('s');
SELECT payload FROM cqrs_receive('t');
SELECT payload FROM cqrs_receive('early');
SELECT payload FROM cqrs_receive('late');
SELECT payload, status FROM cqrs_events('topic_a', status => 'all');
SELECT * FROM cqrs_adopt();

-- partitions that were being changed elsewhere: up to what is committed now
SELECT cqrs_subscribe('changing', ARRAY['topic_a'], start => 'latest', partitions => 2);
SELECT cardinality(cqrs_emit_many('a', array_agg(jsonb_build_object('n', n)), array_agg(n::text))) FROM generate_series(6, 9) n;
SELECT cqrs_alter_subscription('changing', partitions => 3);
CALL restore();
UPDATE cqrs.subscription SET epoch_tick = 1, epoch_snapshot = '3:3:' WHERE next_partitions IS NOT NULL;
SELECT * FROM cqrs_adopt() WHERE subscription = 'changing';
SELECT cqrs_emit('a', '{"n": 10}', key => '10') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
CREATE TEMP TABLE got (n text);
DO $$
BEGIN
	FOR i IN 1 .. 9 LOOP
		INSERT INTO got SELECT payload->>'n' FROM cqrs_receive('changing');
		PERFORM cqrs_ack('changing');
		COMMIT;
	END LOOP;
END $$;
SELECT string_agg(n, ' ' ORDER BY n::integer) FROM got;
SELECT partitions, next_partitions FROM cqrs.subscription WHERE subscription = 'changing';
DROP TABLE got;

-- what is adopted cannot be told from what was adopted before
INSERT INTO cqrs.topic_1_1 (position, xid, emitted_at, event_id, event_name)
	VALUES (100, '3', now(), gen_random_uuid(), 'a');
BEGIN;
SET LOCAL session_replication_role = replica;
CREATE TEMP TABLE dump ON COMMIT DROP AS SELECT topic_id, topic, retention, current_segment, opened_at, created_at FROM cqrs.topic;
DELETE FROM cqrs.topic;
INSERT INTO cqrs.topic (topic_id, topic, retention, current_segment, opened_at, created_at) SELECT * FROM dump;
COMMIT;
SELECT cqrs_adopt();

-- it writes
BEGIN READ ONLY;
SELECT cqrs_adopt();
ROLLBACK;
DROP PROCEDURE restore();
DROP EXTENSION cqrs_outbox CASCADE;
