/*
 * 80-process.sql
 *		What the processes do, done by hand; and the end of the script.
 */

-- Rotates topics to their next segment, truncates the segments whose retention
-- is over and which every subscription has got, and suspends subscriptions
-- past one of their limits. Truncates the tables of idempotency keys, of sagas and
-- of message ids whose rows have all been kept for long enough. The worker does this
-- by itself.
--   topic  only this topic and its subscriptions; NULL: all, and these tables
-- Returns what it did, and what it could not do:
--   topic    NULL for 'suspended', and for these tables
--   action   rotated, truncated, held (the segment holds events but is not
--            truncated), suspended
--   segment  the one that became current, was truncated, or is held;
--            for these tables, the table's number
--   detail   held: by what; suspended: the subscription; of these tables, 'idempotency
--            keys', 'sagas' or 'message ids'
--   pid      held by a lock: the process that has it; NULL for a prepared
--            transaction
-- Errors: 42704 no such topic; 25001 in a transaction block (it would keep
-- everybody from reading what it truncated until its end); 25006 read-only
-- transaction or standby; 55000 the topic's tables were altered.
-- Locks: ACCESS EXCLUSIVE on the segments that are truncated, until the end of
-- the statement. None is waited for.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_maintain(topic text DEFAULT NULL, OUT topic text, OUT action text, OUT segment integer,
	OUT detail text, OUT pid integer) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_maintain(text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_maintain(text) IS 'rotates and truncates segments by hand';

-- Called at the end of the extension's scripts, including those that update it:
-- at commit, tells the launcher that this database has the extension, and every
-- backend to check whether it fits the library.
CREATE FUNCTION cqrs.announce() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_announce';
REVOKE ALL ON FUNCTION cqrs.announce() FROM PUBLIC;
COMMENT ON FUNCTION cqrs.announce() IS 'asks the launcher to serve this database';
SELECT cqrs.announce();

-- Only the owner has what is not granted explicitly, functions included. So what
-- changes configuration is not for everybody, and what is for everybody does not
-- depend on a default.
SELECT cqrs.withdraw_privileges();
