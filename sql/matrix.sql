-- What everybody, and an application, may do: privilege by privilege, function by
-- function, from the catalog's own list. What is expected is docs/privileges.md.
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION cqrs_outbox;
-- nobody has CONNECT alone; app has what that names to an application; the
-- monitor watches; boss is whose everything else is
CREATE ROLE regress_cqrs_nobody LOGIN;
CREATE ROLE regress_cqrs_reader LOGIN;
CREATE ROLE regress_cqrs_app LOGIN IN ROLE regress_cqrs_reader;
CREATE ROLE regress_cqrs_monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE regress_cqrs_boss LOGIN SUPERUSER;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
CREATE FUNCTION open(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION closed(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION tells(c jsonb) RETURNS uuid LANGUAGE sql SECURITY DEFINER AS $$ SELECT public.cqrs_emit('secret', c) $$;
CREATE FUNCTION streams(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION streams_closed(c jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT c';
CREATE FUNCTION on_event(e cqrs_event) RETURNS void LANGUAGE sql AS '';
CREATE TYPE closed_type AS (a integer);
CREATE FUNCTION closed_of(closed_type) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$;
REVOKE EXECUTE ON FUNCTION open, closed, closed_of, tells, streams, streams_closed, on_event FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open, tells, streams TO regress_cqrs_app;
SELECT cqrs_register_event('open', 'open'), cqrs_register_event('secret', 'secret');
SELECT cqrs_register_command('Open', 'open(jsonb)'), cqrs_register_command('Closed', 'closed(jsonb)'),
	cqrs_register_command('Tells', 'tells(jsonb)'), cqrs_register_command('ClosedOf', 'closed_of(closed_type)'),
	cqrs_register_chain('Chain', ARRAY['open(jsonb)', 'closed(jsonb)']),
	cqrs_register_command('Streams', 'streams(jsonb)'), cqrs_register_command('StreamsClosed', 'streams_closed(jsonb)'),
	cqrs_register_query('AskOpen', 'open(jsonb)'), cqrs_register_query('AskClosed', 'closed(jsonb)'),
	cqrs_register_saga('Opens', ARRAY[cqrs_step('s', 'open(jsonb)')]), cqrs_register_saga('Closes', ARRAY[cqrs_step('s', 'closed(jsonb)')]);
GRANT SELECT, INSERT ON cqrs_topics.open TO regress_cqrs_app;
GRANT SELECT ON cqrs_topics.open TO regress_cqrs_reader;
GRANT EXECUTE ON FUNCTION cqrs_subscribe TO regress_cqrs_reader;
SET ROLE regress_cqrs_reader;
SELECT cqrs_subscribe('mine', ARRAY['open']);
RESET ROLE;
REVOKE EXECUTE ON FUNCTION cqrs_subscribe FROM regress_cqrs_reader;
SET ROLE regress_cqrs_boss;
SELECT cqrs_subscribe('secret', ARRAY['secret']), cqrs_subscribe('secret_handled', ARRAY['secret'], 'on_event(cqrs_event)');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Closed', '{"secret": 1}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Closed', '{"secret": 1}', run_at => '2100-01-01') IS NOT NULL AS scheduled;
SELECT cqrs_schedule('secret', '0 0 1 1 *', 'Closed', '{"secret": 1}');
SELECT cqrs_create_saga_queue();
INSERT INTO cqrs.consumer (consumer, server, source, topic_id, event_name, format, start, on_gap, workers)
SELECT 'secret_in', 'peer', 'source', topic_id, 'secret', 'raw', 'earliest', 'stop', 1 FROM cqrs.topic WHERE topic = 'secret';
CREATE VIEW cqrs_subscriptions.secret_in AS SELECT * FROM cqrs_consumer_status WHERE consumer = 'secret_in';
INSERT INTO cqrs.consumer_position (consumer_id, partition, seq, next_offset, last_offset, last_hash, consumed, repeated, dead, moved_at)
SELECT consumer_id, 0, 1, 7, 6, 0, 7, 0, 1, now() FROM cqrs.consumer;
INSERT INTO cqrs.consumer_dead_letter (consumer_id, event_id, partition, message_offset, body_size, sqlstate, message, died_at)
SELECT consumer_id, gen_random_uuid(), 0, 6, 0, '22023', 'it is secret', now() FROM cqrs.consumer;
SELECT started FROM cqrs_start_saga('Closes', '{"secret": 1}');
RESET ROLE;
SELECT cqrs_create_command_queue('regress_cqrs_app'), cqrs_create_saga_queue('regress_cqrs_app');
-- each subscription has a dead letter and an event that is to be retried
SELECT count(cqrs_emit(topic, '{"failed": true}', topic || n)) FROM unnest('{open,secret}'::text[]) topic, generate_series(1, 2) n;
SELECT cqrs_tick() > 0 AS ticked;
CREATE FUNCTION fail(subscription text) RETURNS bigint[] LANGUAGE sql AS $$
	SELECT array_agg(cqrs_nack(subscription, ARRAY[position], retry_after => '1 day', give_up => key LIKE '%2')) FROM cqrs_receive(subscription) $$;
SET ROLE regress_cqrs_reader;
SELECT fail('mine');
SET ROLE regress_cqrs_boss;
SELECT fail('secret');
RESET ROLE;
DROP FUNCTION fail;
SELECT count(cqrs_emit(topic, '{"of": "boss"}', topic)) FROM unnest('{open,secret}'::text[]) topic;
SELECT cqrs_tick() > 0 AS ticked;

CREATE TABLE roles (role text, n serial);
INSERT INTO roles VALUES ('regress_cqrs_nobody'), ('regress_cqrs_app'), ('regress_cqrs_monitor');
CREATE VIEW functions AS
SELECT p.oid, p.oid::regprocedure::text COLLATE "C" AS function, p.proname,
	   (SELECT coalesce(string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY i), '')
		FROM unnest(p.proargtypes) WITH ORDINALITY u (t, i)) AS nothing
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox');

-- ----------------------------------------------------------------------
-- Who has EXECUTE
-- ----------------------------------------------------------------------
SELECT function,
	   concat_ws(', ', CASE WHEN has_function_privilege('regress_cqrs_nobody', oid, 'EXECUTE') THEN 'everybody' END,
				 CASE WHEN NOT has_function_privilege('regress_cqrs_nobody', oid, 'EXECUTE') AND has_function_privilege('regress_cqrs_app', oid, 'EXECUTE') THEN 'app' END,
				 CASE WHEN NOT has_function_privilege('regress_cqrs_nobody', oid, 'EXECUTE') AND has_function_privilege('regress_cqrs_monitor', oid, 'EXECUTE') THEN 'monitor' END) AS may_execute
FROM functions ORDER BY function;
-- who gets more privileges than he has: none of ours
SELECT function FROM functions JOIN pg_proc p USING (oid) WHERE p.prosecdef ORDER BY 1;

-- ----------------------------------------------------------------------
-- Who may do what with tables, views, sequences, schemas; what nobody may is
-- not listed
-- ----------------------------------------------------------------------
SELECT replace(role, 'regress_cqrs_', '') AS role, c.oid::regclass::text COLLATE "C" AS relation, string_agg(privilege, ', ' ORDER BY privilege) AS may
FROM roles, pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) privilege
WHERE (c.relnamespace IN ('cqrs'::regnamespace, 'cqrs_topics'::regnamespace, 'cqrs_subscriptions'::regnamespace)
	   OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
				  AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox')))
	  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND has_table_privilege(role, c.oid, privilege)
GROUP BY n, 1, 2 ORDER BY n, 2;
SELECT role, c.oid::regclass AS sequence
FROM roles, pg_class c
WHERE c.relnamespace IN ('cqrs'::regnamespace, 'cqrs_topics'::regnamespace, 'cqrs_subscriptions'::regnamespace) AND c.relkind = 'S'
	  AND has_sequence_privilege(role, c.oid, 'USAGE, SELECT, UPDATE');
SELECT replace(role, 'regress_cqrs_', '') AS role, nspname, string_agg(privilege, ', ') AS may
FROM roles, pg_namespace, unnest('{USAGE,CREATE}'::text[]) privilege
WHERE nspname IN ('cqrs', 'cqrs_topics', 'cqrs_subscriptions') AND has_schema_privilege(role, nspname, privilege)
GROUP BY n, 1, 2 ORDER BY n, 2;

-- ----------------------------------------------------------------------
-- What comes of calling it. Each call is rolled back.
-- ----------------------------------------------------------------------
CREATE TABLE calls (n serial, call text, tells text DEFAULT 'result');
INSERT INTO calls (call, tells) VALUES
	-- commands and queries
	('cqrs_send(''Open'', ''{"a": 1}'')', 'result'), ('cqrs_send(''Closed'')', 'result'), ('cqrs_send(''Chain'')', 'result'),
	('cqrs_send(''Tells'')', 'result IS NOT NULL'), ('cqrs_send(ROW(1)::closed_type)', 'result'), ('cqrs_send(''None'')', 'result'),
	('(cqrs_send_once(''Closed'', ''{}'', ''key'')).answer', 'result'),
	('cqrs_query(''AskOpen'')', 'result'), ('cqrs_query(''AskClosed'')', 'result'),
	('cqrs_stream(''Streams'')', 'result'), ('cqrs_stream(''StreamsClosed'')', 'result'),
	('(cqrs_dry_run(''Open'')).answer', 'result'), ('(cqrs_dry_run(''Closed'')).answer', 'result'),
	('(cqrs_dry_run(''Tells'', ''{"secret": 1}'')).events', '(result::cqrs_event[])[1].payload'),
	('cqrs_next()', 'result'), ('cqrs_proceed()', 'result'), ('cqrs_log_dispatch(NULL)', 'result'), ('cqrs_context()', 'result'),
	('cqrs_enqueue(''Open'')', 'result IS NOT NULL'), ('cqrs_enqueue(''Closed'')', 'result IS NOT NULL'),
	('cqrs_enqueue(''Chain'')', 'result IS NOT NULL'), ('cqrs_enqueue(''Open'', run_at => ''2100-01-01'')', 'result IS NOT NULL'),
	('cqrs_create_command_queue(''regress_cqrs_boss'')', 'result'), ('cqrs_drop_command_queue(''regress_cqrs_boss'', true)', 'result'),
	('cqrs_cancel_command((SELECT command_id FROM scheduled))', 'result'),
	('(cqrs_command_result((SELECT command_id FROM scheduled))).state', 'result'),
	('(cqrs_wait_command((SELECT command_id FROM scheduled), ''0'')).state', 'result IS NOT NULL'),
	('cqrs_schedule(''new'', ''0 0 * * *'', ''Open'')', 'result'), ('cqrs_schedule(''secret'', ''0 1 * * *'', ''Open'', or_replace => true)', 'result'),
	('cqrs_pause_schedule(''secret'')', 'result'), ('cqrs_resume_schedule(''secret'')', 'result IS NOT NULL'), ('cqrs_unschedule(''secret'')', 'result'),
	('(SELECT array_agg(schedule) FROM cqrs_schedules)', 'result LIKE ''%secret%'''), ('(SELECT count(*) FROM cqrs_next_runs(''@daily''))', 'result'),
	('cqrs.run_command(NULL)', 'result'),
	-- sagas
	('(cqrs_start_saga(''Opens'')).started', 'result'), ('(cqrs_start_saga(''Closes'')).started', 'result'),
	('cqrs_signal((SELECT saga_id FROM begun), ''x'')', 'result'), ('cqrs_cancel_saga((SELECT saga_id FROM begun))', 'result'),
	('cqrs_retry_saga((SELECT saga_id FROM begun), ''s'')', 'result'), ('cqrs_skip_step((SELECT saga_id FROM begun), ''s'')', 'result'),
	('(cqrs_wait_saga((SELECT saga_id FROM begun), ''0'')).status', 'result'), ('(SELECT count(*) FROM cqrs_saga_history((SELECT saga_id FROM begun)))', 'result'),
	('(SELECT array_agg(status || coalesce(state::text, '' hidden'')) FROM cqrs_saga_status)', 'result'), ('(SELECT array_agg(saga_name) FROM cqrs_sagas)', 'result'),
	('cqrs_create_saga_queue(''regress_cqrs_boss'')', 'result'), ('cqrs_drop_saga_queue(''regress_cqrs_boss'', true)', 'result'),
	('cqrs_resume_sagas(''regress_cqrs_boss'')', 'result'), ('(SELECT count(*) FROM cqrs_dry_run_saga(''Opens''))', 'result'),
	('(SELECT count(*) FROM cqrs_dry_run_saga(''Closes''))', 'result'),
	('(cqrs_step(''s'', ''x'')).kind', 'result'), ('(cqrs_await(''s'')).kind', 'result'), ('(cqrs_sleep(''s'', ''1 s'')).kind', 'result'),
	('(cqrs_parallel(''s'', NULL)).kind', 'result'), ('(cqrs_sub_saga(''s'', ''x'')).kind', 'result'),
	('cqrs.saga_steps(''Opens'', 1)', 'result'), ('cqrs.run_saga(NULL)', 'result'), ('cqrs.route_to_sagas(NULL)', 'result'),
	('cqrs.saga_diagram(''Opens'')', 'result LIKE ''%open%'''),
	-- messages from elsewhere
	('cqrs_consumed(''mine'', ''1'')', 'result'), ('cqrs_consumed(''secret'', ARRAY[''1'', ''1''])', 'result'),
	('cqrs_alter_consumer(''secret_in'')', 'result'), ('cqrs_drop_consumer(''secret_in'')', 'result'), ('cqrs_pause_consumer(''secret_in'')', 'result'), ('cqrs_resume_consumer(''secret_in'')', 'result'),
	('cqrs_seek_consumer(''secret_in'', ''latest'')', 'result'), ('cqrs_redrive_consumed(''secret_in'', ''{}'')', 'result'), ('cqrs_redrive_all_consumed(''secret_in'')', 'result'),
	('cqrs_discard_consumed(''secret_in'', ''{}'')', 'result'), ('cqrs_discard_all_consumed(''secret_in'')', 'result'),
	('(SELECT count(*) FROM cqrs_consumers)', 'result'), ('(SELECT count(*) FROM cqrs_consumer_partitions)', 'result'),
	('(SELECT count(*) FROM cqrs_consumer_status)', 'result'), ('(SELECT count(*) FROM cqrs_consumer_dead_letters)', 'result'),
	('(cqrs.consumer_owner((SELECT consumer_id FROM consuming))).view IS NOT NULL', 'result'), ('(SELECT count(*) FROM cqrs_subscriptions.secret_in)', 'result'),
	-- events
	('cqrs_emit(''open'', ''{}'')', 'result IS NOT NULL'), ('cqrs_emit(''secret'', ''{}'')', 'result IS NOT NULL'),
	('cqrs_emit(''open'', ''{}'', topic => ''secret'')', 'result IS NOT NULL'),
	('cqrs_emit(''open'', ''{}'', topic => ''commands_of_regress_cqrs_boss'')', 'result IS NOT NULL'),
	('cqrs_emit_many(''open'', ''{}'')', 'result'), ('cqrs_envelope(NULL)', 'result'), ('cqrs_emit_many(''secret'', ARRAY[''{}'']::jsonb[])', 'result'),
	('(SELECT array_agg(payload) FROM cqrs_events(''open''))', 'result'), ('(SELECT array_agg(payload) FROM cqrs_events(''secret''))', 'result'),
	('(SELECT array_agg(topic) FROM cqrs_events(status => ''all''))', 'result'),
	('(SELECT array_agg(payload) FROM cqrs_topics.open)', 'result'), ('(SELECT array_agg(payload) FROM cqrs_topics.secret)', 'result'),
	-- subscriptions
	('(SELECT array_agg(payload) FROM cqrs_receive(''mine''))', 'result'), ('(SELECT array_agg(payload) FROM cqrs_receive(''secret''))', 'result'),
	('(SELECT array_agg(payload) FROM cqrs_receive(''secret_handled''))', 'result'), ('(SELECT array_agg(payload) FROM cqrs_receive(''none''))', 'result'),
	('cqrs_ack(''mine'')', 'result'), ('cqrs_ack(''secret'')', 'result'),
	('cqrs_ack(''mine'', ''{1}'', gen_random_uuid())', 'result'), ('cqrs_ack(''secret'', ''{1}'', gen_random_uuid())', 'result'),
	('cqrs_nack(''mine'', ''{1}'', receipt => gen_random_uuid())', 'result'), ('cqrs_nack(''secret'', ''{1}'', receipt => gen_random_uuid())', 'result'),
	('cqrs_renew(''mine'', gen_random_uuid(), ''1 h'')', 'result'), ('cqrs_renew(''secret'', gen_random_uuid(), ''1 h'')', 'result'),
	('(SELECT count(*) FROM cqrs_dead_letters)', 'result'), ('(SELECT count(*) FROM cqrs_retries)', 'result'),
	('cqrs_retry(''mine'', ''{}'')', 'result'), ('cqrs_retry(''secret'', ''{}'')', 'result'), ('cqrs_redrive(''mine'', ''{}'')', 'result'), ('cqrs_redrive(''secret'', ''{}'')', 'result'),
	('cqrs_retry_all(''mine'')', 'result'), ('cqrs_retry_all(''secret'')', 'result'), ('cqrs_redrive_all(''mine'')', 'result'), ('cqrs_redrive_all(''secret'')', 'result'),
	('cqrs_discard(''mine'', NULL)', 'result'), ('cqrs_discard(''secret'', NULL)', 'result'),
	('cqrs_discard_all(''mine'')', 'result'), ('cqrs_discard_all(''secret'')', 'result'),
	('cqrs_pause(''mine'')', 'result'), ('cqrs_pause(''secret'')', 'result'), ('cqrs_resume(''mine'')', 'result'), ('cqrs_resume(''secret'')', 'result'),
	('cqrs_seek(''mine'', ''latest'')', 'result = '''''), ('cqrs_seek(''secret'', ''latest'')', 'result = '''''),
	('cqrs_seek(''mine'', now())', 'result = '''''), ('cqrs_seek(''secret'', now())', 'result = '''''),
	('cqrs_wait(''mine'', ''0'')', 'result IS NOT NULL'), ('cqrs_wait(''secret'', ''0'')', 'result IS NOT NULL'),
	-- what the views call
	('cqrs.occurred_at(''{}'')', 'result'),
	('(cqrs.breaker_state(''public.closed(pg_catalog.jsonb)''))', 'result'), ('(SELECT array_agg(t) FROM cqrs.topic_progress(2) t)', 'result ~ ''[0-9]'''),
	('(SELECT array_agg(t) FROM cqrs.subscription_progress(2) t)', 'result ~ ''[0-9]'''), ('(SELECT count(*) FROM cqrs.cursor_holders(2) t)', 'result'),
	('(cqrs.subscription_owner(2)).view IS NOT NULL', 'result'), ('cqrs.usable()', 'result'),
	('(SELECT array_agg(subscription) FROM cqrs_subscriptions.mine)', 'result'), ('(SELECT array_agg(subscription) FROM cqrs_subscriptions.secret)', 'result'),
	('(SELECT array_agg(subscription) FROM cqrs_subscription_status)', 'result'), ('(SELECT array_agg(topic) FROM cqrs_topic_status)', 'result'),
	('(SELECT array_agg(payload) FROM cqrs_enqueued_commands)', 'result'), ('(SELECT count(*) FROM cqrs_breaker_status)', 'result'),
	('(SELECT count(*) FROM cqrs.problem)', 'result IS NOT NULL'),
	-- what is registered
	('(SELECT array_agg(handlers[1]) FROM cqrs_commands)', 'result LIKE ''%closed%'''), ('(SELECT array_agg(topic) FROM cqrs_event_types)', 'result LIKE ''%secret%'''),
	('(SELECT count(*) FROM cqrs_event_handlers)', 'result'), ('(SELECT count(*) FROM cqrs_fallbacks)', 'result'), ('(SELECT count(*) FROM cqrs_middleware)', 'result'),
	-- watching
	('(SELECT count(*) FROM cqrs_worker_status)', 'result IS NOT NULL'), ('(SELECT count(*) FROM cqrs_health())', 'result IS NOT NULL'),
	('(SELECT count(*) FROM cqrs.worker_status())', 'result IS NOT NULL'), ('cqrs.library_version()', 'result IS NOT NULL'), ('(SELECT count(*) FROM cqrs.background())', 'result IS NOT NULL'),
	('(SELECT count(*) FROM cqrs.broken_tables(2))', 'result IS NOT NULL'),
	('(SELECT count(*) FROM cqrs.find_function(''x'', NULL, false))', 'result IS NOT NULL'),
	('cqrs.flowchart(NULL)', 'result LIKE ''%closed%'''), ('cqrs.sequence_diagram(''Closed'')', 'result LIKE ''%closed%'''),
	('cqrs.diagram_label(''x'')', 'result'), ('cqrs.no_diagram(''flowchart'', ''x'')', 'result'),
	('(SELECT count(*) FROM cqrs.diagram_handler)', 'result IS NOT NULL'), ('(SELECT count(*) FROM cqrs.diagram_edge)', 'result IS NOT NULL'),
	('cqrs_diagram()', 'result LIKE ''%closed%''');
-- the id of a saga that is boss's, and of a command
CREATE TABLE begun AS SELECT saga_id FROM cqrs.saga;
GRANT SELECT ON begun TO PUBLIC;
CREATE TABLE consuming AS SELECT consumer_id FROM cqrs.consumer;
GRANT SELECT ON consuming TO PUBLIC;
CREATE TABLE scheduled AS SELECT command_id FROM cqrs.scheduled_command WHERE schedule_id IS NULL;
GRANT SELECT ON scheduled TO PUBLIC;
CREATE FUNCTION called(role text, call text, tells text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	BEGIN
		PERFORM set_config('role', role, true);
		EXECUTE 'SELECT (' || call || ')::text' INTO result;
		RAISE SQLSTATE 'UNDO0';
	EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
		EXECUTE 'SELECT coalesce((' || tells || ')::text, ''NULL'') FROM (SELECT $1 AS result) r' INTO result USING result;
		RETURN result;
	WHEN OTHERS THEN
		-- This is told to who may ask.
		RETURN CASE WHEN SQLERRM = 'cqrs_outbox is not preloaded' THEN 'true' WHEN SQLSTATE = '42501' THEN regexp_replace(replace(SQLERRM, 'permission denied', 'denied'), '[-0-9a-f]{36}', 'its id') ELSE SQLSTATE || ' ' || SQLERRM END;
	END;
END $$;
CREATE FUNCTION pg_temp.hash_of_tables() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	name regclass;
	hash text;
	hashes text := '';
BEGIN
	FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'cqrs'::regnamespace AND relkind = 'r' ORDER BY oid LOOP
		EXECUTE format('SELECT md5(string_agg(t::text, E''\n'' ORDER BY t::text)) FROM %s t', name) INTO hash;
		hashes := hashes || ' ' || coalesce(hash, 'empty');
	END LOOP;
	RETURN hashes;
END $$;
SELECT pg_temp.hash_of_tables() AS before \gset
SELECT call, called('regress_cqrs_nobody', call, tells) AS nobody, called('regress_cqrs_app', call, tells) AS app,
	   called('regress_cqrs_monitor', call, tells) AS monitor
FROM calls ORDER BY n \gx
-- each function that one of them may execute has been called
SELECT function AS not_called
FROM functions
WHERE EXISTS (SELECT FROM roles WHERE has_function_privilege(role, functions.oid, 'EXECUTE'))
	  AND NOT EXISTS (SELECT FROM calls WHERE call ~ ('\m' || proname || '\('))
	  AND proname <> 'cqrs_emit_trigger'
ORDER BY 1;
-- who was let into the schema by mistake learns no more
GRANT USAGE ON SCHEMA cqrs TO regress_cqrs_nobody, regress_cqrs_app, regress_cqrs_monitor;
BEGIN;
SET LOCAL ROLE regress_cqrs_boss;
SELECT payload FROM cqrs_receive('secret');
PREPARE TRANSACTION 'holds';
SELECT call, called('regress_cqrs_nobody', call, tells) AS nobody, called('regress_cqrs_app', call, tells) AS app,
	   called('regress_cqrs_monitor', call, tells) AS monitor
FROM calls WHERE call LIKE '%cqrs.%' ORDER BY n \gx
ROLLBACK PREPARED 'holds';
REVOKE USAGE ON SCHEMA cqrs FROM regress_cqrs_nobody, regress_cqrs_app, regress_cqrs_monitor;
-- a trigger emits as who writes the table
CREATE TABLE written (a integer);
GRANT INSERT ON written TO PUBLIC;
CREATE TRIGGER emits AFTER INSERT ON written FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('secret');
SET ROLE regress_cqrs_app;
INSERT INTO written VALUES (1);
RESET ROLE;
-- what nobody may execute, nobody can, whatever the arguments
SELECT function, role
FROM roles, functions
WHERE NOT has_function_privilege(role, functions.oid, 'EXECUTE')
	  AND called(role, format('%s(%s)', functions.oid::regproc, nothing), 'result')
		  !~ '^denied for (function|schema) ';
-- with nothing for arguments, what they may execute says so, or does nothing
SELECT function, role, called
FROM roles, functions,
	 called(role, format('%s(%s)', functions.oid::regproc, nothing), 'result')
WHERE has_function_privilege(role, functions.oid, 'EXECUTE') AND called ~ '^(XX|58|53|57)';
SELECT pg_temp.hash_of_tables() = :'before' AS unchanged;

DROP TABLE roles, calls, scheduled, consuming, written CASCADE;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION called, open, closed, closed_of, tells, streams, streams_closed;
DROP TYPE closed_type;
DROP OWNED BY regress_cqrs_nobody, regress_cqrs_reader, regress_cqrs_app, regress_cqrs_monitor, regress_cqrs_boss;
DROP ROLE regress_cqrs_nobody, regress_cqrs_reader, regress_cqrs_app, regress_cqrs_monitor, regress_cqrs_boss;
