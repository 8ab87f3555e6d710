/*
 * 40-emit.sql
 *		Into the outbox.
 */

-- Adds one event to the outbox, and has its handlers called (see
-- cqrs_register_event_handler). It exists if and only if the transaction
-- commits. One without a topic is only for the handlers. Every event that is
-- emitted, here and below, gets some headers by itself, unless the caller gives
-- it headers of these names, even null ones: in a handler, correlation_id and
-- causation_id (see cqrs_context); otherwise correlation_id, if the setting
-- cqrs_outbox.correlation_id is not empty; and traceparent, if the setting
-- cqrs_outbox.traceparent is not.
--   event_name  a registered event type
--   payload     JSON object that fits the payload type; NULL is a tombstone
--   key         events of one key are delivered in order; text, smallint,
--               integer, bigint or uuid, or a domain of these, kept as text
--   headers     JSON object, or NULL. These names are reserved, and their values
--               are strings, or null for none: correlation_id, causation_id,
--               traceparent, tracestate; and occurred_at, when it happened, if
--               that is not when it is emitted: a timestamp of RFC 3339
--   topic       NULL: the event type's
--   event_id    NULL: a new UUID v7
-- Returns the event id.
-- Errors: 42704 not registered, no such topic; 22023 the key's type, headers;
-- 22023 and those of the types' input functions for the payload; 42501; 25006 read-only transaction or
-- standby; 25000 parallel operation; 55000 the topic's tables were altered;
-- 54001 too long a chain of events, each emitted by a handler of the one before
-- (cqrs_outbox.max_event_depth); 42883 a handler is gone; whatever a handler
-- raises.
-- Locks: ROW EXCLUSIVE on the topic's current segment.
-- Privileges: INSERT on cqrs_topics.<topic>; EXECUTE on the handlers, of the
-- role that has them called.
CREATE FUNCTION @extschema@.cqrs_emit(event_name text, payload jsonb, key anycompatible DEFAULT NULL::text,
	headers jsonb DEFAULT NULL, topic text DEFAULT NULL, event_id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_emit(text, jsonb, anycompatible, jsonb, text, uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_emit(text, jsonb, anycompatible, jsonb, text, uuid) IS 'adds an event to the outbox';

-- Adds many events of one type, in the order of the array.
--   payloads   one element an event
--   keys, headers, event_ids
--              NULL, or as many as payloads
--   topic      NULL: the event type's
-- Returns the event ids, in the same order. Errors, locks, privileges: as
-- cqrs_emit(); 2202E for arrays of more than one dimension or of different
-- lengths.
CREATE FUNCTION @extschema@.cqrs_emit_many(event_name text, payloads jsonb[], keys text[] DEFAULT NULL,
	headers jsonb[] DEFAULT NULL, topic text DEFAULT NULL, event_ids uuid[] DEFAULT NULL) RETURNS uuid[]
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_emit_many(text, jsonb[], text[], jsonb[], text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_emit_many(text, jsonb[], text[], jsonb[], text, uuid[]) IS
'adds many events to the outbox';

-- INSTEAD OF INSERT trigger, FOR EACH ROW, of the views of topics:
--   INSERT INTO cqrs_topics.<topic> (event_name, payload, key, headers, event_id, occurred_at)
-- emits an event to the topic, as cqrs_emit() does. occurred_at becomes the
-- header of that name. What is not given is NULL. RETURNING gives the event as it
-- was emitted, with its position, event_id, headers and emitted_at.
-- Errors: 22004 no event name; 22023 position or emitted_at is given, or
-- occurred_at and another one in the headers; 22008 occurred_at that is infinite;
-- 39P01 the trigger is on anything else; 55000 the view was altered; otherwise as
-- cqrs_emit().
-- Privileges: INSERT on the view, or on the columns given.
CREATE FUNCTION cqrs.insert_event() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_insert_event';
REVOKE ALL ON FUNCTION cqrs.insert_event() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.insert_event() IS 'emits what is inserted into the view of a topic';

-- Triggers of the views of topics for UPDATE and DELETE, INSTEAD OF them and
-- BEFORE them: both are refused, with 42809.
CREATE FUNCTION cqrs.refuse_change() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_refuse_change';
REVOKE ALL ON FUNCTION cqrs.refuse_change() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.refuse_change() IS 'refuses to change events';

-- What a broker gets of an event in this format, the body of the message, for
-- whoever sends it by himself. In UTF-8; event_id, event_name, topic and emitted_at
-- are needed. Of formats cloudevents and raw, the rest is in headers of the
-- message, which are not here. An event without payload is, as for RabbitMQ, an
-- envelope whose payload is null, nothing, or null.
--   event   NULL: so is the result
--   format  cqrs, cloudevents or raw; NULL: cqrs
-- Errors: 22023 format, or a payload or headers that are no object; 22004, 42602,
-- 42622 what is needed; 22008 emitted at infinity; 54000 too large; 22P05 what is not in UTF-8.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_envelope(event @extschema@.cqrs_event, format text DEFAULT 'cqrs') RETURNS bytea
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_envelope(@extschema@.cqrs_event, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_envelope(@extschema@.cqrs_event, text) IS 'what a broker gets of an event';

-- Change capture: a trigger function that emits the changes of a table, in
-- the transaction that makes them. For AFTER triggers of tables, FOR EACH ROW
-- or with transition tables FOR EACH STATEMENT (which costs less for many
-- rows); also constraint triggers. Arguments, all of them strings:
--   event name   a registered event type; its payload type decides:
--                jsonb: an envelope, {"op": "insert", "update", "delete" or
--                "truncate", "schema", "table", "old": row, "new": row}, with the
--                rows as to_jsonb() gives them, and only where there are any.
--                An update that changes the key is one event, under the new
--                key.
--                The table's row type: the new row itself. A deleted row
--                leaves a tombstone, and so does, under its old key, a row
--                whose key is changed. The tombstones of a statement come
--                before its rows, but a row trigger sees one row at a time:
--                where a statement hands one row's key to another row, create
--                a statement trigger. TRUNCATE is refused.
--   key columns  their text output is the event's key: of one column as it
--                is; of several as a JSON array of strings, such as
--                ["1","a"]. NULL if all of them are NULL, or none is named. The
--                text of dates, floats and bytea depends on the session's
--                settings: such columns are no good keys.
-- On a partitioned table, an update that moves a row to another partition is
-- seen by a row trigger as a deletion and an insertion, by a statement trigger
-- as an update. An UPDATE whose transition tables differ in their number of
-- rows (a trigger kept a moved row out of its new partition) is emitted
-- unpaired: first each old row, then each new one. Virtual generated columns
-- are null in a trigger.
-- Errors: 39P01 not called by a trigger, or by one of another form; 22023
-- missing arguments; 42703 no such key column; 0A000 a key column that is a
-- virtual generated one, TRUNCATE (see above); 42804 another payload type;
-- otherwise as cqrs_emit().
-- Locks: ROW EXCLUSIVE on the topic's current segment.
-- Privileges: INSERT on cqrs_topics.<topic>, of the role that the trigger is
-- run as: whoever changes the table, inside a SECURITY DEFINER function its
-- owner (before PostgreSQL 18, a deferred trigger is run as the role that
-- commits). EXECUTE is PUBLIC's: it allows nothing that cqrs_emit() does not.
CREATE FUNCTION @extschema@.cqrs_emit_trigger() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_emit_trigger() TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_emit_trigger() IS 'emits the changes of a table';
