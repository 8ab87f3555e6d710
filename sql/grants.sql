-- Whom it does not trust: who may create in the target schema, who was granted
-- more than was meant.
\set VERBOSITY terse
\set SHOW_CONTEXT never
CREATE ROLE regress_cqrs_boss SUPERUSER LOGIN;
CREATE ROLE regress_cqrs_app LOGIN;
CREATE ROLE regress_cqrs_writer LOGIN IN ROLE pg_write_all_data;
CREATE ROLE regress_cqrs_monitor LOGIN IN ROLE pg_monitor;

-- ----------------------------------------------------------------------
-- Decoys in the target schema: for what the script uses, with argument types
-- that fit as well or better. Nothing of ours refers to any of them.
-- ----------------------------------------------------------------------
CREATE SCHEMA target;
CREATE FUNCTION target.pg_has_role(name, regrole, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION target.pg_get_userbyid(regrole) RETURNS name LANGUAGE sql AS $$SELECT 'x'::name$$;
CREATE FUNCTION target.cardinality(text[]) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION target.array_position(text[], text) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT NULL::integer';
CREATE FUNCTION target.nextval(text) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
CREATE FUNCTION target.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION target.format(text, integer) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION target.format(text, timestamptz, text, bigint) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION target.same(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION target.join_text(text, integer) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE OPERATOR target.= (LEFTARG = text, RIGHTARG = text, FUNCTION = target.same);
CREATE OPERATOR target.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = target.same);
CREATE OPERATOR target.> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq);
CREATE OPERATOR target.= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4ne);
CREATE OPERATOR target.|| (LEFTARG = text, RIGHTARG = integer, FUNCTION = target.join_text);
CREATE TYPE target.regrole AS (x integer);
CREATE TABLE target.pg_stat_activity (pid integer);
CREATE EXTENSION cqrs_outbox SCHEMA target;
SET search_path TO target;
SELECT cqrs_register_event('decoy', 'decoy_topic');
SELECT cqrs_subscribe('decoy_subscription', ARRAY['decoy_topic']);
RESET search_path;
-- what our tables, views, functions, with their defaults, constraints and rules,
-- and those of topics refer to; most of pg_catalog is pinned, and does not show
WITH RECURSIVE ours(classid, objid) AS (
	SELECT d.classid, d.objid FROM pg_depend d
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
		  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox')
	UNION
	SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c
	WHERE c.relnamespace IN ('cqrs'::regnamespace, 'cqrs_topics'::regnamespace, 'cqrs_subscriptions'::regnamespace)
	UNION
	SELECT d.classid, d.objid FROM ours o
	JOIN pg_depend d ON d.refclassid = o.classid AND d.refobjid = o.objid AND d.deptype IN ('a', 'i')
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) AS object,
	   pg_describe_object(d.refclassid, d.refobjid, 0) AS refers_to
FROM ours o
JOIN pg_depend d ON d.classid = o.classid AND d.objid = o.objid
WHERE NOT EXISTS (SELECT FROM ours u WHERE u.classid = d.refclassid AND u.objid = d.refobjid)
	  AND d.refclassid <> 'pg_extension'::regclass
	  AND NOT (d.refclassid = 'pg_namespace'::regclass AND d.refobjid = 'target'::regnamespace)
	  AND NOT EXISTS (SELECT FROM pg_class c WHERE d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
					  AND c.relnamespace = 'pg_catalog'::regnamespace)
ORDER BY 1, 2;
DROP EXTENSION cqrs_outbox CASCADE;
DROP SCHEMA target CASCADE;

-- ----------------------------------------------------------------------
-- Default privileges give nobody anything, and take nothing that is meant
-- ----------------------------------------------------------------------
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_cqrs_app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_cqrs_app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO regress_cqrs_app, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_cqrs_app;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('secret', 'secret_topic');
SELECT cqrs_subscribe('secret', ARRAY['secret_topic']);
-- who has what in the schemas
SELECT n.nspname || coalesce('.' || c.relname, '') AS object,
	   CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee, a.privilege_type
FROM pg_namespace n
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'v', 'S')
CROSS JOIN LATERAL (SELECT * FROM aclexplode(c.relacl) UNION SELECT * FROM aclexplode(n.nspacl) WHERE c.oid IS NULL) a
WHERE n.nspname IN ('cqrs', 'cqrs_topics', 'cqrs_subscriptions') AND a.grantee <> n.nspowner
UNION
SELECT n.nspname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type
FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a
WHERE n.nspname IN ('cqrs', 'cqrs_topics', 'cqrs_subscriptions') AND a.grantee <> n.nspowner
ORDER BY 1, 2, 3;
SET ROLE regress_cqrs_app;
SELECT cqrs_create_topic('mine');
SELECT * FROM cqrs_topics.secret_topic;
SELECT cqrs_emit('secret', '{}');
SELECT * FROM cqrs.scheduled_command;
-- what everybody may
SELECT cqrs_context() IS NULL AS context, (SELECT count(*) FROM cqrs_events()) AS events,
	   (SELECT count(*) FROM cqrs_topic_status) AS topics, (SELECT count(*) FROM cqrs_subscription_status) AS subscriptions,
	   (SELECT count(*) FROM cqrs_breaker_status) AS breakers, (SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled') AS scheduled;
SET ROLE regress_cqrs_monitor;
SELECT count(*) >= 0 AS asked FROM cqrs_health();
SELECT count(*) FROM cqrs_topic_status;
RESET ROLE;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM regress_cqrs_app;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM regress_cqrs_app;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM regress_cqrs_app, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM regress_cqrs_app;

-- ----------------------------------------------------------------------
-- Nobody but the owner writes the tables, whatever is granted
-- ----------------------------------------------------------------------
CREATE FUNCTION cmd(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT c';
SELECT cqrs_register_command('Any', 'cmd(jsonb)');
SELECT cqrs_emit('secret', '{}') IS NOT NULL;
GRANT ALL ON ALL TABLES IN SCHEMA cqrs TO regress_cqrs_app;
GRANT USAGE ON SCHEMA cqrs TO regress_cqrs_app;
-- by INSERT, UPDATE, DELETE and TRUNCATE, each table
CREATE FUNCTION pg_temp.written() RETURNS TABLE (who text, statement text) LANGUAGE plpgsql AS $$
DECLARE
	t record;
BEGIN
	FOREACH who IN ARRAY '{regress_cqrs_app,regress_cqrs_writer}'::text[] LOOP
		FOR t IN SELECT c.oid::regclass AS name, a.attname AS col FROM pg_class c
				 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
				 WHERE c.relnamespace = 'cqrs'::regnamespace AND c.relkind = 'r' ORDER BY 1 LOOP
			FOREACH statement IN ARRAY ARRAY[
				format('INSERT INTO %s (%I) SELECT NULL LIMIT 0', t.name, t.col),
				format('UPDATE %s SET %I = DEFAULT', t.name, t.col),
				format('DELETE FROM %s', t.name),
				format('TRUNCATE %s', t.name)] LOOP
				BEGIN
					PERFORM set_config('role', who, true);
					EXECUTE statement;
					RETURN NEXT;
				EXCEPTION WHEN insufficient_privilege THEN
					NULL;
				END;
				PERFORM set_config('role', 'none', true);
			END LOOP;
		END LOOP;
	END LOOP;
END $$;
SELECT * FROM pg_temp.written();
SET ROLE regress_cqrs_writer;
INSERT INTO cqrs.command (command_name, handlers, owners) VALUES ('evil', '{public.evil(pg_catalog.jsonb)}', '{postgres}');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO cqrs.scheduled_command (command_id, command_name, topic_id, run_at, payload, enqueued_at)
VALUES (gen_random_uuid(), 'evil', 1, now(), '{}', now());
DELETE FROM cqrs.topic_1_0;
COPY cqrs.cursor FROM STDIN;
\.
RESET ROLE;
SET session_replication_role = replica;
SET ROLE regress_cqrs_writer;
DELETE FROM cqrs.subscription;
RESET ROLE;
RESET session_replication_role;
-- the owner may, and what functions write is not affected
BEGIN;
DELETE FROM cqrs.command;
SELECT cqrs_send('Any');
ROLLBACK;
SELECT cqrs_emit('secret', '{}') IS NOT NULL;
SELECT cqrs_create_topic('second'), cqrs_drop_topic('second');
-- another trigger on a topic's table is still one too many
CREATE FUNCTION other_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
BEGIN;
CREATE TRIGGER other AFTER INSERT ON cqrs.topic_1_0 EXECUTE FUNCTION other_trigger();
SELECT cqrs_emit('secret', '{}');
ROLLBACK;
BEGIN;
DROP TRIGGER refuse_write ON cqrs.topic_1_0;
SELECT cqrs_emit('secret', '{}') IS NOT NULL;
CREATE TRIGGER other AFTER INSERT ON cqrs.topic_1_0 EXECUTE FUNCTION other_trigger();
SELECT cqrs_emit('secret', '{}');
ROLLBACK;

-- ----------------------------------------------------------------------
-- The topic of a role's commands takes nothing but those
-- ----------------------------------------------------------------------
SELECT cqrs_register_event('Any', 'secret_topic');
SET ROLE regress_cqrs_boss;
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Any', '{"by": "boss"}') IS NOT NULL;
RESET ROLE;
GRANT ALL ON ALL TABLES IN SCHEMA cqrs_topics TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
SELECT cqrs_emit('Any', '{"by": "app"}') IS NOT NULL;
SELECT cqrs_emit('Any', '{"by": "app, as boss"}', topic => 'commands_of_regress_cqrs_boss');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_cqrs_boss;
SELECT cqrs_emit('Any', '{"by": "boss"}', topic => 'commands_of_regress_cqrs_boss');
SELECT cqrs_register_event('Commands', 'commands_of_regress_cqrs_boss');
SELECT cardinality(cqrs_emit_many('Commands', ARRAY['{}']::jsonb[]));
SELECT count(*) FROM cqrs_topics.commands_of_regress_cqrs_boss;
RESET ROLE;

-- ----------------------------------------------------------------------
-- What a view filters out, a cheap function does not see
-- ----------------------------------------------------------------------
CREATE FUNCTION fails(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'card % declined', e.payload; END$$;
SELECT cqrs_subscribe('secret_subscription', ARRAY['secret_topic'], 'fails(cqrs_event)', max_attempts => 1);
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('secret_subscription') > 0 AS drained;
SET ROLE regress_cqrs_boss;
SELECT cqrs_enqueue('Any', '{"secret": 1}', run_at => now() + interval '1 day') IS NOT NULL;
RESET ROLE;
REVOKE ALL ON ALL TABLES IN SCHEMA cqrs_topics FROM regress_cqrs_app;
SELECT count(*) > 0 FROM cqrs_subscription_status WHERE error LIKE 'card%';
GRANT CREATE ON SCHEMA public TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
CREATE FUNCTION leak(VARIADIC anyarray) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
	$$BEGIN RAISE NOTICE 'leaked: %', $1; RETURN true; END$$;
SELECT subscription FROM cqrs_subscription_status WHERE leak(subscription, handler, owner::text, state_reason);
SELECT subscription FROM cqrs_subscription_status WHERE leak(error, subscription);
SELECT topic FROM cqrs_topic_status WHERE leak(topic);
SELECT command_id FROM cqrs_enqueued_commands WHERE leak(command_name, owner::text, payload::text);
RESET ROLE;

-- ----------------------------------------------------------------------
-- A role that administers
-- ----------------------------------------------------------------------
CREATE ROLE "regress cqrs ops";
CREATE VIEW refused AS
SELECT p.oid::regprocedure::text COLLATE "C" AS function
FROM pg_extension e
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_proc p ON p.oid = d.objid AND p.pronamespace = e.extnamespace
WHERE e.extname = 'cqrs_outbox' AND NOT has_function_privilege('regress cqrs ops', p.oid, 'EXECUTE');
SELECT count(*) - 2 AS grantable FROM refused
WHERE NOT has_function_privilege('pg_monitor', function::regprocedure, 'EXECUTE') \gset
SELECT cqrs_grant_admin('regress cqrs ops') = :grantable AS granted, cqrs_grant_admin('regress cqrs ops') AS again;
SELECT * FROM refused ORDER BY 1;
SET ROLE "regress cqrs ops";
SELECT cqrs_create_topic('of_ops'), cqrs_drop_topic('of_ops');
SELECT cqrs_grant_admin('regress_cqrs_app');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT cqrs_revoke_admin('regress cqrs ops') = :grantable AS revoked, cqrs_revoke_admin('regress cqrs ops') AS again;
SELECT count(*) > :grantable + 2 AS as_before FROM refused;
SELECT cqrs_grant_admin(current_user), cqrs_revoke_admin(current_user);
SELECT cqrs_grant_admin(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_grant_admin('no_such_role');
DROP ROLE "regress cqrs ops";

DROP EXTENSION cqrs_outbox CASCADE;
DROP VIEW refused;
DROP FUNCTION cmd, other_trigger, leak;
DROP OWNED BY regress_cqrs_app, regress_cqrs_writer, regress_cqrs_monitor, regress_cqrs_boss;
DROP ROLE regress_cqrs_app, regress_cqrs_writer, regress_cqrs_monitor, regress_cqrs_boss;
