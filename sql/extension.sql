-- The extension itself: its schema, its privileges, what depends on it.
-- an application may have its schemas' names already
CREATE SCHEMA cqrs;
CREATE SCHEMA cqrs_topics;
\set VERBOSITY terse
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY default
\echo :LAST_ERROR_SQLSTATE
DROP SCHEMA cqrs, cqrs_topics;
CREATE SCHEMA app;
CREATE EXTENSION cqrs_outbox SCHEMA app;
SELECT app.cqrs_register_event('a', 'topic_a');
SELECT app.cqrs_emit('a', '{}') IS NOT NULL;
SELECT count(*) FROM app.cqrs_events('topic_a');
CREATE TABLE got (payload jsonb);
CREATE FUNCTION on_event(event app.cqrs_event) RETURNS void LANGUAGE sql AS 'INSERT INTO public.got VALUES (event.payload)';
SELECT app.cqrs_subscribe('s', ARRAY['topic_a'], 'on_event(app.cqrs_event)');
SELECT app.cqrs_tick() > 0 AS ticked;
SELECT app.cqrs_drain('s');
SELECT * FROM got;

-- a type of the same name is not the extension's: it is a payload's
CREATE TYPE cqrs_event AS (x int);
CREATE FUNCTION on_other(cqrs_event) RETURNS void LANGUAGE sql AS '';
\set VERBOSITY terse
SELECT app.cqrs_subscribe('other', ARRAY['topic_a'], 'on_other(cqrs_event)');
\set VERBOSITY default
SELECT app.cqrs_unsubscribe('other');
DROP FUNCTION on_other;
DROP TYPE cqrs_event;

-- what filters rows by their reader is a security barrier; the one that shows
-- everybody everything need not be
SELECT c.oid::regclass AS no_barrier
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'v'
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox')
	  AND NOT coalesce(c.reloptions @> '{security_barrier=true}', false)
ORDER BY 1;

-- every table, those of topics too, is guarded against writers other than its
-- owner; and no foreign key makes the order matter in which a dump is restored
SELECT c.oid::regclass AS unguarded
FROM pg_class c
WHERE c.relnamespace = 'cqrs'::regnamespace AND c.relkind IN ('r', 'p', 'f')
	  AND NOT EXISTS (SELECT FROM pg_trigger t
					  WHERE t.tgrelid = c.oid AND t.tgfoid = 'cqrs.refuse_write'::regproc AND t.tgenabled = 'A'
							AND t.tgtype = (2 | 4 | 8 | 16 | 32));
SELECT conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'cqrs'::regnamespace;

-- everything is commented, but types that are made with a relation or a type
SELECT pg_describe_object(d.classid, d.objid, 0) AS uncommented
FROM pg_depend d
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'cqrs_outbox')
	  AND obj_description(d.objid, d.classid::regclass::name) IS NULL
	  AND NOT EXISTS (SELECT FROM pg_depend i WHERE i.classid = d.classid AND i.objid = d.objid AND i.deptype = 'i');

-- privileges are copied by scripts that update the extension, and nobody else
SELECT cqrs.copy_privileges('app.cqrs_grant_admin(text)', 'app.cqrs_revoke_admin(text)');
\echo :LAST_ERROR_SQLSTATE

-- it cannot go while topics exist
\set VERBOSITY terse
DROP EXTENSION cqrs_outbox;
DROP FUNCTION on_event;
DROP EXTENSION cqrs_outbox;
DROP EXTENSION cqrs_outbox CASCADE;

-- and leaves nothing behind
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cqrs%';
SELECT relname FROM pg_class WHERE relname LIKE 'topic%' AND relnamespace <> 'pg_catalog'::regnamespace;
SELECT proname FROM pg_proc WHERE proname LIKE 'cqrs%';

-- functions of an extension that is gone, and one that is made anew
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_emit('a', '{}') IS NOT NULL;
SELECT cqrs_drop_topic('topic_a', true);
DROP EXTENSION cqrs_outbox;
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_emit('a', '{}');
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_emit('a', '{}') IS NOT NULL;
SELECT count(*) FROM cqrs_events();
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE got;
DROP SCHEMA app;
