/*
 * 74-registered.sql
 *		What is registered, as lists. Each has the arguments that registered it, of
 *		functions as they are stored, schema.name(schema.type); so a row is
 *		registered elsewhere by what is in it.
 *
 * All of it is everybody's to read: what is called when he sends a command, or
 * emits an event, concerns him, and functions' and topics' names are in catalogs
 * that everybody reads. What a topic has in it is another matter.
 */

-- Commands, queries and streams. Privileges: SELECT, granted to PUBLIC.
--   kind           command, query or stream
--   handlers       in the order in which they are tried; one, but of a chain
--   argument_type  of the first handler: what it takes; NULL: it is not there
--   result_type    the same: what it returns, one of or a set of
CREATE VIEW @extschema@.cqrs_commands AS
SELECT c.command_name, c.kind, c.handlers, f.argument_type, f.result_type
FROM cqrs.command c
CROSS JOIN LATERAL cqrs.find_function(c.handlers[1], c.owners[1], c.kind = 'stream') f;
GRANT SELECT ON @extschema@.cqrs_commands TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_commands IS 'registered commands and queries';

-- Event types. Privileges: SELECT, granted to PUBLIC.
--   topic         NULL: its events are for their handlers only
--   payload_type  schema.type; a number: it was dropped
CREATE VIEW @extschema@.cqrs_event_types AS
SELECT e.event_name, t.topic, CASE WHEN p.oid IS NULL THEN e.payload_type::oid::text ELSE format('%I.%I', n.nspname, p.typname) END AS payload_type
FROM cqrs.event_type e
LEFT JOIN cqrs.topic t USING (topic_id)
LEFT JOIN (pg_type p JOIN pg_namespace n ON n.oid = p.typnamespace) ON p.oid = e.payload_type;
GRANT SELECT ON @extschema@.cqrs_event_types TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_event_types IS 'registered event types';

-- Handlers of events in the transaction that emits. Privileges: SELECT, granted to
-- PUBLIC.
--   turn  those of one event are called in this order, from 1
CREATE VIEW @extschema@.cqrs_event_handlers AS
SELECT h.event_name, h.handler, row_number() OVER (PARTITION BY h.event_name ORDER BY h.seq)::integer AS turn
FROM cqrs.event_handler h
JOIN cqrs.event_type USING (event_name);
GRANT SELECT ON @extschema@.cqrs_event_handlers TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_event_handlers IS 'registered handlers of events';

-- Fallbacks of handlers. Columns: see cqrs_register_fallback(). Privileges: SELECT,
-- granted to PUBLIC.
CREATE VIEW @extschema@.cqrs_fallbacks AS
SELECT handler, fallback, sqlstates, excluded_sqlstates, max_failures, reset_after
FROM cqrs.fallback;
GRANT SELECT ON @extschema@.cqrs_fallbacks TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_fallbacks IS 'registered fallbacks';

-- Middleware. Privileges: SELECT, granted to PUBLIC.
--   turn  they are called in this order, from 1, the outermost
CREATE VIEW @extschema@.cqrs_middleware AS
SELECT handler, priority, row_number() OVER (ORDER BY priority, seq)::integer AS turn
FROM cqrs.middleware;
GRANT SELECT ON @extschema@.cqrs_middleware TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_middleware IS 'registered middleware';

-- Commands that wait: of roles that the reader is a member of. What has become a
-- dead letter is in cqrs_dead_letters.
--   command_id   as cqrs_enqueue() returned it
--   command_name, key, payload
--                as they were enqueued; key is NULL if none was given
--   owner        who enqueued it
--   state        scheduled: it waits for its time; ready: for its turn, maybe
--                behind one of its key that failed; retrying: it failed itself
--   run_at       not before; of one that is ready or is retried, when it became so
--   enqueued_at  when it was enqueued
CREATE VIEW @extschema@.cqrs_enqueued_commands WITH (security_barrier) AS
WITH queue AS MATERIALIZED (
	SELECT t.topic_id, t.topic, pg_get_userbyid(o.owner) AS owner
	FROM cqrs.subscription s
	JOIN cqrs.subscription_topic st USING (subscription_id)
	JOIN cqrs.topic t USING (topic_id)
	CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
	WHERE s.runs = 'commands' AND pg_has_role(current_user, o.owner, 'USAGE')
)
SELECT c.command_id,
	   c.command_name,
	   q.owner,
	   c.key,
	   c.payload,
	   'scheduled' AS state,
	   c.run_at,
	   c.enqueued_at
FROM cqrs.scheduled_command c
JOIN queue q USING (topic_id)
UNION ALL
-- The id, a UUID v7, says when it was made, in milliseconds.
SELECT e.event_id,
	   e.event_name,
	   q.owner,
	   e.key,
	   e.payload,
	   CASE e.status WHEN 'retrying' THEN 'retrying' ELSE 'ready' END,
	   e.emitted_at,
	   to_timestamp(('x' || substr(replace(e.event_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
FROM queue q
CROSS JOIN LATERAL @extschema@.cqrs_events(q.topic, 2147483647) e
WHERE e.status IN ('new', 'retrying');
GRANT SELECT ON @extschema@.cqrs_enqueued_commands TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_enqueued_commands IS 'commands that wait for their time, for their turn, or to be tried again';

-- Schedules, of the roles that the reader is a member of; for members of pg_monitor,
-- all.
--   payload      NULL for who only watches
--   owner        NULL: nobody, and nothing is enqueued
--   state        active, paused, or stopped: it has no next run, though it is not
--                paused; see schedule_stopped in cqrs_health()
--   next_run_at  when the next run is
CREATE VIEW @extschema@.cqrs_schedules WITH (security_barrier) AS
SELECT d.schedule,
	   d.cron,
	   d.time_zone,
	   d.command_name,
	   CASE WHEN pg_has_role(current_user, o.owner, 'USAGE') THEN d.payload END AS payload,
	   d.catch_up,
	   d.overlap,
	   pg_get_userbyid(o.owner) AS owner,
	   CASE WHEN d.paused THEN 'paused' WHEN c.run_at IS NULL THEN 'stopped' ELSE 'active' END AS state,
	   c.run_at AS next_run_at,
	   d.created_at
FROM cqrs.schedule d
JOIN cqrs.subscription_topic st USING (topic_id)
JOIN cqrs.subscription s ON s.subscription_id = st.subscription_id AND s.runs = 'commands'
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
LEFT JOIN cqrs.scheduled_command c USING (schedule_id)
WHERE pg_has_role(current_user, o.owner, 'USAGE') OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_schedules TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_schedules IS 'commands that are enqueued again and again';
