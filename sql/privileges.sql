-- Privileges: the caller's decide, and they can be given one by one.
CREATE EXTENSION cqrs_outbox;
CREATE ROLE regress_cqrs_admin LOGIN;
CREATE ROLE regress_cqrs_app LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO regress_cqrs_admin;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_register_event('b', 'topic_b');
CREATE FUNCTION handle(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION handle_more(jsonb) RETURNS int LANGUAGE sql AS 'SELECT 2';
REVOKE EXECUTE ON FUNCTION handle(jsonb), handle_more(jsonb) FROM PUBLIC;
SELECT cqrs_register_command('handle', 'handle(jsonb)');
SELECT cqrs_register_command('handle_more', 'handle_more(jsonb)');
CREATE FUNCTION on_event(cqrs_event) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_emit('a', '{}') IS NOT NULL;
SELECT cqrs_emit('b', '{}') IS NOT NULL;
\set VERBOSITY terse

-- a role that was given nothing
SET ROLE regress_cqrs_app;
SELECT cqrs_send('handle');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('a', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT cardinality(cqrs_emit_many('a', ARRAY['{}']::jsonb[]));
SELECT cqrs_events('a');
SELECT cqrs_events('topic_a');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM cqrs_events();
SELECT * FROM cqrs_topics.topic_a;
SELECT * FROM cqrs.topic;
SELECT cqrs_create_topic('t');
SELECT cqrs_drop_topic('topic_a');
SELECT cqrs_register_event('e', 'topic_a');
SELECT cqrs_unregister_event('a');
SELECT cqrs_register_command('c', 'handle(jsonb)');
SELECT cqrs_unregister_command('handle');
SELECT cqrs_subscribe('s', ARRAY['topic_a']);
SELECT cqrs_unsubscribe('s');
SELECT cqrs_tick();
SELECT cqrs_drain('s');
SELECT * FROM cqrs_worker_status;
SELECT * FROM cqrs_subscription_status;

-- just one command
RESET ROLE;
GRANT EXECUTE ON FUNCTION handle(jsonb) TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT cqrs_send('handle');
SELECT cqrs_send('handle_more');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION handle(jsonb) FROM regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT cqrs_send('handle');

-- just emitting to one topic
RESET ROLE;
GRANT INSERT ON cqrs_topics.topic_a TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT cqrs_emit('a', '{"by": "app"}') IS NOT NULL;
SELECT cardinality(cqrs_emit_many('a', ARRAY['{"by": "app"}']::jsonb[]));
SELECT cqrs_emit('b', '{}');
SELECT cqrs_emit('a', '{}', topic => 'topic_b');
SELECT cqrs_emit('b', '{}', topic => 'topic_a') IS NOT NULL;
SELECT cqrs_events('topic_a');
-- an INSERT emits
INSERT INTO cqrs_topics.topic_a (event_name, payload) VALUES ('b', '{"by": "app"}');
INSERT INTO cqrs_topics.topic_b (event_name, payload) VALUES ('b', '{"by": "app"}');
INSERT INTO cqrs_topics.topic_a (event_name) VALUES ('b') RETURNING event_id;
-- some columns alone
RESET ROLE;
GRANT INSERT (event_name, payload) ON cqrs_topics.topic_b TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
INSERT INTO cqrs_topics.topic_b (event_name, payload) VALUES ('b', '{"by": "app"}');
INSERT INTO cqrs_topics.topic_b (event_name, payload, headers) VALUES ('b', '{"by": "app"}', '{}');
COPY cqrs_topics.topic_b (event_name, payload) FROM STDIN;
b	{"by": "app"}
\.
SELECT cqrs_emit('b', '{}');
-- by way of a view, its owner's privileges count
RESET ROLE;
CREATE VIEW emits_b AS SELECT event_name, payload FROM cqrs_topics.topic_b;
GRANT INSERT ON emits_b TO regress_cqrs_app;
REVOKE INSERT (event_name, payload) ON cqrs_topics.topic_b FROM regress_cqrs_app;
SET ROLE regress_cqrs_app;
INSERT INTO emits_b VALUES ('b', '{"by": "app"}');
INSERT INTO cqrs_topics.topic_b (event_name, payload) VALUES ('b', '{"by": "app"}');
RESET ROLE;
DROP VIEW emits_b;
-- nobody's own trigger
SET ROLE regress_cqrs_app;
CREATE TRIGGER mine INSTEAD OF INSERT ON cqrs_topics.topic_a FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event();

-- just reading one topic
RESET ROLE;
REVOKE INSERT ON cqrs_topics.topic_a FROM regress_cqrs_app;
GRANT SELECT ON cqrs_topics.topic_a TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT count(*) FROM cqrs_events('topic_a');
SELECT count(*) FROM cqrs_events();
SELECT count(*) FROM cqrs_topics.topic_a;
SELECT cqrs_events('topic_b');
SELECT cqrs_emit('a', '{}');

-- a role that may administer: topics of its own, handlers it may execute
RESET ROLE;
GRANT EXECUTE ON FUNCTION cqrs_create_topic, cqrs_drop_topic, cqrs_register_event, cqrs_register_command(text, text, boolean),
	cqrs_subscribe, cqrs_unsubscribe, cqrs_tick, cqrs_drain TO regress_cqrs_admin;
SET ROLE regress_cqrs_admin;
SELECT cqrs_create_topic('mine');
SELECT cqrs_register_event('m', 'mine');
SELECT cqrs_emit('m', '{}') IS NOT NULL;
SELECT count(*) FROM cqrs_events('mine');
GRANT SELECT ON cqrs_topics.mine TO regress_cqrs_app;
SELECT cqrs_register_command('c', 'handle(jsonb)');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_drop_topic('topic_a');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_subscribe('s', ARRAY['mine', 'topic_a']);
\echo :LAST_ERROR_SQLSTATE

-- whose handler: one's own or a superuser's
CREATE FUNCTION on_mine(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE 'handled as %', current_user;
END $$;
SELECT cqrs_subscribe('mine', ARRAY['mine'], 'on_mine(cqrs_event)');
SELECT cqrs_subscribe('superuser''s', ARRAY['mine'], 'on_event(cqrs_event)');
SELECT cqrs_subscribe('pull', ARRAY['mine']);
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('mine');
SELECT subscription, owner, lag_events FROM cqrs_subscription_status ORDER BY 1;
SELECT count(*) FROM cqrs_receive('pull');
RESET ROLE;
SELECT cqrs_drain('mine');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_subscribe('not mine', ARRAY['mine'], 'on_mine(cqrs_event)');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_cqrs_app;
SELECT cqrs_receive('pull');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_ack('pull');
SELECT * FROM cqrs_subscription_status;
RESET ROLE;
GRANT pg_monitor TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT subscription, owner, lag_events FROM cqrs_subscription_status ORDER BY 1;
RESET ROLE;

-- a handler that was dropped, and made anew by somebody else
SET ROLE regress_cqrs_admin;
CREATE FUNCTION regress_cqrs_taken(event cqrs_event) RETURNS void LANGUAGE sql AS 'SELECT';
SELECT cqrs_subscribe('taken', ARRAY['mine'], 'regress_cqrs_taken(cqrs_event)');
DROP FUNCTION regress_cqrs_taken;
RESET ROLE;
GRANT CREATE ON SCHEMA public TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
CREATE FUNCTION regress_cqrs_taken(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE 'taken over as %', current_user;
END $$;
SET ROLE regress_cqrs_admin;
SELECT cqrs_drain('taken');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unsubscribe('taken');
RESET ROLE;
DROP FUNCTION regress_cqrs_taken;
REVOKE CREATE ON SCHEMA public FROM regress_cqrs_app;

-- a handler cannot get at what the drainer's session was before SET ROLE
CREATE FUNCTION regress_cqrs_escape(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RESET ROLE;
	RAISE NOTICE 'escaped to %', current_user;
END $$;
ALTER FUNCTION regress_cqrs_escape OWNER TO regress_cqrs_admin;
SET ROLE regress_cqrs_admin;
SELECT cqrs_subscribe('escape', ARRAY['mine'], 'regress_cqrs_escape(cqrs_event)');
SELECT cqrs_drain('escape');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- a privilege that is taken away later
REVOKE ALL ON cqrs_topics.mine FROM regress_cqrs_admin CASCADE;
SET ROLE regress_cqrs_admin;
SELECT cqrs_receive('pull');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unsubscribe('pull');
RESET ROLE;

-- a role that cannot log in cannot have a worker, before PostgreSQL 17
ALTER ROLE regress_cqrs_admin NOLOGIN;
GRANT SELECT ON cqrs_topics.mine TO regress_cqrs_admin;
SET ROLE regress_cqrs_admin;
DO $$
BEGIN
	PERFORM cqrs_subscribe('nologin', ARRAY['mine'], 'on_mine(cqrs_event)');
	IF current_setting('server_version_num')::int < 170000 THEN
		RAISE EXCEPTION 'subscribed';
	END IF;
EXCEPTION WHEN insufficient_privilege THEN
	NULL;
END $$;
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION cqrs_outbox CASCADE;
RESET client_min_messages;
DROP FUNCTION handle, handle_more;
DROP OWNED BY regress_cqrs_admin, regress_cqrs_app;
DROP ROLE regress_cqrs_admin, regress_cqrs_app;
