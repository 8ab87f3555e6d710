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
--   payload_type  jsonb or a composite type; a number: it was dropped
CREATE VIEW @extschema@.cqrs_event_types AS
SELECT e.event_name, t.topic, e.payload_type
FROM cqrs.event_type e
LEFT JOIN cqrs.topic t USING (topic_id);
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
