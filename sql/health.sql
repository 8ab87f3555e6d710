-- cqrs_health(): each problem appears, says what to do, and goes away once that
-- is done. What has to do with processes is left out here.
CREATE EXTENSION cqrs_outbox;
CREATE ROLE regress_cqrs_owner LOGIN;
CREATE ROLE regress_cqrs_watcher;
GRANT CREATE, USAGE ON SCHEMA public TO regress_cqrs_owner;
GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_unsubscribe, cqrs_tick TO regress_cqrs_owner;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_register_event('b', 'topic_b');
CREATE FUNCTION handle(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT cqrs_register_command('handle', 'handle(jsonb)');
GRANT SELECT ON cqrs_topics.topic_a TO regress_cqrs_owner;
SELECT cqrs_subscribe('pull', ARRAY['topic_a'], max_attempts => 2);
SET ROLE regress_cqrs_owner;
CREATE FUNCTION on_event(event cqrs_event) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_subscribe('handled', ARRAY['topic_a'], 'on_event(cqrs_event)', partitions => 2);
RESET ROLE;

-- who may not, and who may: a member of pg_monitor, whatever its search_path
SET ROLE regress_cqrs_watcher;
\set VERBOSITY terse
SELECT * FROM cqrs_health();
\set VERBOSITY default
RESET ROLE;
GRANT pg_monitor TO regress_cqrs_watcher;
SET ROLE regress_cqrs_watcher;
CREATE FUNCTION pg_temp.problems(max_lag interval DEFAULT '5 min', max_hold interval DEFAULT '1 min')
RETURNS TABLE (severity text, problem text, object text, hint text) LANGUAGE sql AS $$
	SELECT severity, problem, object, hint FROM public.cqrs_health(max_lag, max_hold)
	WHERE object !~ '^(setting|database|server)'
$$;
SET search_path = '';
SELECT * FROM pg_temp.problems();
RESET search_path;
SELECT count(*) FROM cqrs.problem;
RESET ROLE;
GRANT EXECUTE ON FUNCTION pg_temp.problems TO PUBLIC;

-- stopped by somebody
SELECT cqrs_pause('pull');
SET ROLE regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
RESET ROLE;
SELECT cqrs_resume('pull');
UPDATE cqrs.subscription SET state = 'suspended', state_reason = 'it keeps 2 GB', missed_events = 7
WHERE subscription = 'pull';
SET ROLE regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
SELECT detail ~ 'since .*, it keeps 2 GB; events that it has missed: 7\.' AS told FROM cqrs_health() WHERE problem = 'suspended';
RESET ROLE;
SELECT cqrs_resume('pull');
SELECT * FROM pg_temp.problems();

-- late
SELECT cardinality(cqrs_emit_many('a', ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series(1, 3) n))) AS emitted;
SELECT * FROM pg_temp.problems();
SELECT * FROM pg_temp.problems(max_lag => '0');
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT count(*) FROM cqrs_receive('pull');
SELECT cqrs_ack('pull') > 0 AS acknowledged;
COMMIT;
SET ROLE regress_cqrs_owner;
GRANT EXECUTE ON FUNCTION on_event TO PUBLIC;
RESET ROLE;
GRANT EXECUTE ON FUNCTION cqrs_drain TO regress_cqrs_owner;
SET ROLE regress_cqrs_owner;
SELECT cqrs_drain('handled');
RESET ROLE;
SELECT * FROM pg_temp.problems(max_lag => '0');

-- tried again, and given up
SELECT cqrs_emit('a', '{}', key => 'k') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_nack('pull', ARRAY[position], 'no luck', '0') FROM cqrs_receive('pull');
SET ROLE regress_cqrs_owner;
SELECT cqrs_drain('handled');
RESET ROLE;
SELECT * FROM pg_temp.problems();
SELECT * FROM pg_temp.problems(max_lag => '0');
SELECT detail ~ '^Events that failed and are tried again: 1, .*: no luck$' AS told FROM cqrs_health('0') WHERE problem = 'retrying';
SELECT cqrs_nack('pull', ARRAY[position], 'no luck') FROM cqrs_receive('pull');
SELECT * FROM pg_temp.problems(max_lag => '0');
SELECT cqrs_redrive_all('pull');
BEGIN;
SELECT count(*) FROM cqrs_receive('pull');
SELECT cqrs_ack('pull') > 0 AS acknowledged;
COMMIT;
SELECT * FROM pg_temp.problems(max_lag => '0');

-- dead letters are counted so far, and no further; the last error is found
INSERT INTO cqrs.dead_letter
SELECT subscription_id, n, gen_random_uuid(), 'a', 1, NULL, '{}', NULL, now(), 1, now() - n * interval '1 s', 'XX000', 'died as ' || n
FROM cqrs.subscription, generate_series(1, 10001) n WHERE subscription = 'pull';
SELECT detail FROM cqrs_health() WHERE problem = 'dead_letters';
SELECT dead, error FROM cqrs_subscription_status WHERE subscription = 'pull';
SELECT cqrs_discard_all('pull');
SELECT * FROM pg_temp.problems();

-- held by a transaction that was prepared
SELECT cqrs_emit('a', '{}') IS NOT NULL AS emitted;
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT count(*) FROM cqrs_receive('pull');
SELECT * FROM pg_temp.problems(max_hold => '0');
PREPARE TRANSACTION 'it''s prepared';
SET ROLE regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
SELECT * FROM pg_temp.problems(max_hold => '0');
RESET ROLE;
ROLLBACK PREPARED 'it''s prepared';
SELECT * FROM pg_temp.problems(max_hold => '0');
BEGIN;
SELECT count(*) FROM cqrs_receive('pull');
SELECT cqrs_ack('pull');
COMMIT;

-- the owner's privileges
REVOKE SELECT ON cqrs_topics.topic_a FROM regress_cqrs_owner;
REVOKE EXECUTE ON FUNCTION on_event FROM PUBLIC, regress_cqrs_owner;
SELECT current_database() AS database \gset
REVOKE CONNECT ON DATABASE :"database" FROM PUBLIC;
SET ROLE regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
RESET ROLE;
GRANT SELECT ON cqrs_topics.topic_a TO regress_cqrs_owner;
GRANT EXECUTE ON FUNCTION on_event TO PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO PUBLIC;
SELECT * FROM pg_temp.problems();
-- before PostgreSQL 17
ALTER ROLE regress_cqrs_owner NOLOGIN;
SELECT count(*) = (current_setting('server_version_num')::int < 170000)::int AS told
FROM pg_temp.problems() WHERE problem = 'owner_login' AND hint ~ 'ALTER ROLE regress_cqrs_owner LOGIN';
ALTER ROLE regress_cqrs_owner LOGIN;
SELECT * FROM pg_temp.problems();

-- handlers
ALTER FUNCTION on_event OWNER TO regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
ALTER FUNCTION on_event OWNER TO regress_cqrs_owner;
SELECT * FROM pg_temp.problems();
DROP FUNCTION on_event, handle;
SELECT * FROM pg_temp.problems();
CREATE FUNCTION handle(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION on_event(event cqrs_event) RETURNS void LANGUAGE sql AS '';
SELECT * FROM pg_temp.problems();

-- what was restored
SELECT subscription_id, seq FROM cqrs.subscription JOIN cqrs.cursor USING (subscription_id)
WHERE subscription = 'pull' ORDER BY seq DESC LIMIT 1 \gset
INSERT INTO cqrs.cursor (subscription_id, partition, seq, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic)
SELECT subscription_id, partition, seq + 1, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic
FROM cqrs.cursor WHERE subscription_id = :subscription_id AND seq = :seq;
SELECT * FROM pg_temp.problems();
SELECT cqrs_seek('pull', 'latest');
SELECT * FROM pg_temp.problems();
DELETE FROM cqrs.cursor WHERE subscription_id = :subscription_id;
SELECT * FROM pg_temp.problems();
SELECT cqrs_unsubscribe('pull');
SELECT * FROM pg_temp.problems();

-- topics; nothing of this keeps the others from being seen
SELECT cqrs_subscribe('both', ARRAY['topic_a', 'topic_b']);
SELECT topic_id AS a FROM cqrs.topic WHERE topic = 'topic_a' \gset
SELECT topic_id AS b FROM cqrs.topic WHERE topic = 'topic_b' \gset
SELECT 'cqrs.topic_' || :a || '_0' AS table_a, 'cqrs.topic_' || :b || '_2' AS table_b \gset
ALTER TABLE :table_a ADD CONSTRAINT added CHECK (position > 0);
DROP VIEW cqrs_topics.topic_b;
SET ROLE regress_cqrs_watcher;
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE object ~ '^topic';
SELECT subscription, lag_events, lag, lag_bytes FROM cqrs_subscription_status ORDER BY 1;
SELECT topic, events, bytes, held_by FROM cqrs_topic_status ORDER BY 1;
RESET ROLE;
ALTER TABLE :table_a DROP CONSTRAINT added;
DROP TABLE :table_b;
SELECT indexrelid::regclass AS index_a FROM pg_index WHERE indrelid = :'table_a'::regclass \gset
DROP INDEX :index_a;
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE object ~ '^topic';
CREATE INDEX ON :table_a (xid, position);
-- this session's registry does not learn by itself that a table was dropped
UPDATE cqrs.topic SET retention = retention WHERE topic = 'topic_b';
SELECT cqrs_drop_topic('topic_b', cascade => true);
SELECT * FROM pg_temp.problems();
SELECT lag_events > 0 AS lags, lag_bytes > 0 AS bytes FROM cqrs_subscription_status WHERE subscription = 'both';
-- who watches keeps no segment from being truncated
BEGIN;
SELECT count(*) FROM cqrs_subscription_status;
SELECT topic, events > 0 AS events, bytes > 0 AS bytes, segments FROM cqrs_topic_status;
SELECT * FROM pg_temp.problems();
SELECT relation::regclass, mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text ~ 'topic_\d+_\d';
COMMIT;
SELECT cqrs_drop_topic('topic_a', cascade => true);
SELECT * FROM pg_temp.problems();
SELECT cqrs_unsubscribe('both'), cqrs_unsubscribe('handled');
SELECT * FROM pg_temp.problems();

-- the owner
SELECT cqrs_create_topic('t');
GRANT SELECT ON cqrs_topics.t TO regress_cqrs_owner;
SET ROLE regress_cqrs_owner;
SELECT cqrs_subscribe('orphan', ARRAY['t']);
RESET ROLE;
DROP OWNED BY regress_cqrs_owner;
DROP ROLE regress_cqrs_owner;
SET ROLE regress_cqrs_watcher;
SELECT * FROM pg_temp.problems();
RESET ROLE;
SELECT cqrs_unsubscribe('orphan');
SELECT * FROM pg_temp.problems();

-- queues of sagas: each hint does what it says
CREATE ROLE regress_cqrs_booker LOGIN;
CREATE ROLE regress_cqrs_heir LOGIN;
CREATE FUNCTION book(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_event('paid', 't');
GRANT SELECT ON cqrs_topics.t TO regress_cqrs_booker, regress_cqrs_heir;
SELECT cqrs_register_saga('Trip', ARRAY[cqrs_step('book', 'book'), cqrs_await('paid', event_name => 'paid')]);
CREATE FUNCTION restore_queues() RETURNS void LANGUAGE sql AS $$
	INSERT INTO cqrs.cursor (subscription_id, partition, seq, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic)
	SELECT DISTINCT ON (subscription_id, partition)
		   subscription_id, partition, seq + 1, tick_id, snapshot, received_all, expired, delivered, last_position, moved_at, by_topic
	FROM cqrs.cursor JOIN cqrs.subscription USING (subscription_id) WHERE runs IN ('sagas', 'saga_events')
	ORDER BY subscription_id, partition, seq DESC
$$;
CREATE FUNCTION sagas() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM cqrs.saga';
SET ROLE regress_cqrs_booker;
SELECT cqrs_create_saga_queue();
SELECT started FROM cqrs_start_saga('Trip');
RESET ROLE;
-- restored
SELECT restore_queues();
SELECT * FROM pg_temp.problems();
SELECT hint FROM pg_temp.problems() WHERE problem = 'restored' LIMIT 1 \gexec
SELECT * FROM pg_temp.problems();
SELECT restore_queues();
SELECT cqrs_drop_saga_queue('regress_cqrs_booker', cascade => true), sagas();
SELECT * FROM pg_temp.problems();
-- not all of it
SET ROLE regress_cqrs_booker;
SELECT cqrs_create_saga_queue();
RESET ROLE;
DELETE FROM cqrs.cursor USING cqrs.subscription s WHERE s.subscription_id = cursor.subscription_id AND runs IN ('sagas', 'saga_events');
SELECT * FROM pg_temp.problems();
SELECT hint FROM pg_temp.problems() WHERE problem = 'cursor_missing' LIMIT 1 \gexec
SELECT * FROM pg_temp.problems();
-- given away: they go on as that role, or are forgotten
SET ROLE regress_cqrs_booker;
SELECT cqrs_create_saga_queue();
SELECT started FROM cqrs_start_saga('Trip');
RESET ROLE;
REASSIGN OWNED BY regress_cqrs_booker TO regress_cqrs_heir;
SELECT * FROM pg_temp.problems();
SELECT hint FROM pg_temp.problems() WHERE problem = 'owner_missing' \gexec
SELECT * FROM pg_temp.problems();
SELECT owner, count(*) FROM cqrs_saga_status GROUP BY owner;
SELECT cqrs_unsubscribe('sagas_of_regress_cqrs_booker');
REVOKE ALL ON cqrs_topics.sagas_of_regress_cqrs_booker, cqrs_topics.saga_events_of_regress_cqrs_booker FROM regress_cqrs_heir;
SELECT sagas(), cqrs_unsubscribe('sagas_of_regress_cqrs_booker'), cqrs_unsubscribe('saga_events_of_regress_cqrs_booker');
SELECT sagas(), count(*) FROM cqrs.topic WHERE topic ~ 'saga';
SELECT * FROM pg_temp.problems();
-- without its view
SET ROLE regress_cqrs_booker;
SELECT cqrs_create_saga_queue();
SELECT started FROM cqrs_start_saga('Trip');
RESET ROLE;
DROP OWNED BY regress_cqrs_booker, regress_cqrs_heir;
SELECT * FROM pg_temp.problems();
SELECT cqrs_unsubscribe('sagas_of_regress_cqrs_booker'), cqrs_unsubscribe('saga_events_of_regress_cqrs_booker');
SELECT sagas();
SELECT * FROM pg_temp.problems();
SELECT cqrs_unregister_saga('Trip'), cqrs_unregister_event('paid');
DROP FUNCTION book, restore_queues, sagas;
DROP ROLE regress_cqrs_booker, regress_cqrs_heir;

-- a topic that was restored
CREATE TEMP TABLE dump AS
SELECT topic_id, topic, retention, current_segment, opened_at, created_at FROM cqrs.topic WHERE topic = 't';
BEGIN;
SET LOCAL session_replication_role = replica;
DELETE FROM cqrs.topic WHERE topic = 't';
INSERT INTO cqrs.topic (topic_id, topic, retention, current_segment, opened_at, created_at) SELECT * FROM dump;
COMMIT;
SELECT * FROM pg_temp.problems();
SELECT cqrs_adopt();
SELECT * FROM pg_temp.problems();

-- the size of what is not delivered: as it is on disk, estimated if there is much
SELECT cqrs_register_event('e', 't');
SELECT cqrs_subscribe('small', ARRAY['t'], start => 'latest');
SELECT cqrs_subscribe('spread', ARRAY['t'], start => 'latest', partitions => 4);
SELECT cqrs_emit('e', jsonb_build_object('x', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 10000) n))) IS NOT NULL;
SELECT subscription, lag_events, lag_bytes BETWEEN 250000 AND 350000 AS as_toasted FROM cqrs_subscription_status ORDER BY 1;
SELECT cqrs_seek('small', 'latest'), cqrs_seek('spread', 'latest');
SELECT cardinality(cqrs_emit_many('e', array_agg(jsonb_build_object('n', n)), array_agg('key ' || n))) FROM generate_series(1, 9999) n;
SELECT subscription, lag_events, lag > '0' AS lags FROM cqrs_subscription_status ORDER BY 1;
SELECT cardinality(cqrs_emit_many('e', array_agg(jsonb_build_object('n', n)), array_agg('key ' || n))) FROM generate_series(1, 30001) n;
SELECT subscription, lag_events BETWEEN 38000 AND 42000 AS events,
	   lag_bytes / lag_events BETWEEN 80 AND 160 AS bytes
FROM cqrs_subscription_status ORDER BY 1;
SELECT problem, object, detail ~ '^Events that wait: [0-9]+, the first since ' AS told
FROM cqrs_health('0') WHERE problem = 'late' ORDER BY object;
-- what that costs does not grow with it
CREATE FUNCTION pages(query text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
	plan json;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ' || query INTO plan;
	RETURN (plan->0->'Plan'->>'Shared Hit Blocks')::int + (plan->0->'Plan'->>'Shared Read Blocks')::int;
END $$;
SELECT pages('SELECT * FROM cqrs_subscription_status') AS status_pages, pages('SELECT * FROM cqrs_health()') AS health_pages \gset
SELECT cardinality(cqrs_emit_many('e', array_agg(jsonb_build_object('n', n)), array_agg('key ' || n))) FROM generate_series(1, 100000) n;
SELECT pages('SELECT * FROM cqrs_subscription_status') < 1.5 * :status_pages AS status_flat,
	   pages('SELECT * FROM cqrs_health()') < 1.5 * :health_pages AS health_flat;
-- also behind delivered events of a window, more than are looked at
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT count(*) FROM cqrs_receive('small', 50000);
SELECT cqrs_ack('small') > 0 AS acknowledged;
COMMIT;
SELECT lag_events, lag > '0' AS lags, lag_bytes / lag_events BETWEEN 80 AND 160 AS bytes
FROM cqrs_subscription_status WHERE subscription = 'small';
SELECT pages('SELECT * FROM cqrs_subscription_status') < 1.5 * :status_pages AS status_flat;
-- and where all are in one partition
SELECT cqrs_seek('spread', 'latest');
SELECT cardinality(cqrs_emit_many('e', array_agg(jsonb_build_object('n', n)), array_agg('a key'::text))) FROM generate_series(1, 100000) n;
SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'spread';
SELECT pages('SELECT * FROM cqrs_subscription_status') < 1.5 * :status_pages AS status_flat;

DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION handle, pages;
DROP OWNED BY regress_cqrs_watcher;
DROP ROLE regress_cqrs_watcher;
