/*
 * 67-inbox.sql
 *		Messages from elsewhere: the ids of those that were consumed.
 */

-- ----------------------------------------------------------------------
-- cqrs.message_id_0, _1, _2: ids of messages that were consumed. The tables are
-- written in turn; a table is truncated once each of its ids is older, by the time
-- of its source, than cqrs_outbox.consumed_retention, or was moved to the one that
-- is written. So rows are not updated, and only those that are moved are deleted.
--
-- source_time  how long, in microseconds, the source had been consumed; up to a
--              minute more than that
-- role         who consumed it: the current user then. An id belongs to a role
-- role_name    with this name and, if the row is native, this number
-- native       true if we wrote it; false in a row that was restored from a
--              dump, where the number is from another cluster
-- source       where it came from; at most 255 bytes
-- message_id   the id; at most 255 bytes
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.message_id_0 (
	source_time		bigint		NOT NULL,
	role			oid			NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED,
	role_name		text		COLLATE "C" NOT NULL,
	source			text		COLLATE "C" NOT NULL,
	message_id		text		COLLATE "C" NOT NULL,
	PRIMARY KEY (message_id, source, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE cqrs.message_id_1 (
	LIKE cqrs.message_id_0 INCLUDING GENERATED,
	PRIMARY KEY (message_id, source, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE cqrs.message_id_2 (
	LIKE cqrs.message_id_0 INCLUDING GENERATED,
	PRIMARY KEY (message_id, source, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX message_id_0_source ON cqrs.message_id_0 (source, role_name, source_time);
COMMENT ON TABLE cqrs.message_id_0 IS 'ids of messages that were consumed';
COMMENT ON INDEX cqrs.message_id_0_source IS 'finds those of a source that are to be kept';
SELECT pg_extension_config_dump('cqrs.message_id_0', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.message_id_0
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.message_id_0 ENABLE ALWAYS TRIGGER refuse_write;
CREATE INDEX message_id_1_source ON cqrs.message_id_1 (source, role_name, source_time);
COMMENT ON TABLE cqrs.message_id_1 IS 'ids of messages that were consumed';
COMMENT ON INDEX cqrs.message_id_1_source IS 'finds those of a source that are to be kept';
SELECT pg_extension_config_dump('cqrs.message_id_1', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.message_id_1
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.message_id_1 ENABLE ALWAYS TRIGGER refuse_write;
CREATE INDEX message_id_2_source ON cqrs.message_id_2 (source, role_name, source_time);
COMMENT ON TABLE cqrs.message_id_2 IS 'ids of messages that were consumed';
COMMENT ON INDEX cqrs.message_id_2_source IS 'finds those of a source that are to be kept';
SELECT pg_extension_config_dump('cqrs.message_id_2', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.message_id_2
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.message_id_2 ENABLE ALWAYS TRIGGER refuse_write;

-- ----------------------------------------------------------------------
-- cqrs.message_turn: which of these tables is written. One row. Not dumped: what is
-- restored may be in any of them.
--
-- current  the table's number
-- since    since when
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.message_turn (
	current	integer		NOT NULL,
	since	timestamptz	NOT NULL
);
INSERT INTO cqrs.message_turn VALUES (0, now());
COMMENT ON TABLE cqrs.message_turn IS 'which table of message ids is written';
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.message_turn
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.message_turn ENABLE ALWAYS TRIGGER refuse_write;

-- ----------------------------------------------------------------------
-- cqrs.message_source: for how long each source of messages was consumed. A row is
-- added about twice a minute while that goes on; the one with the most time counts.
-- The ids of a source without a row are not kept.
--
-- source_time  how long, in microseconds
-- noted_at     up to when
-- role         whose source it is (see cqrs.message_id_0)
-- native       as there
-- role_name    as there
-- source       its name
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.message_source (
	source_time	bigint		NOT NULL,
	noted_at	timestamptz	NOT NULL,
	role		oid			NOT NULL,
	native		boolean		GENERATED ALWAYS AS (false) STORED,
	role_name	text		COLLATE "C" NOT NULL,
	source		text		COLLATE "C" NOT NULL
);
CREATE INDEX message_source_time ON cqrs.message_source (source, role_name, role, source_time);
COMMENT ON TABLE cqrs.message_source IS 'for how long sources of messages were consumed';
COMMENT ON INDEX cqrs.message_source_time IS 'finds the row that counts';
SELECT pg_extension_config_dump('cqrs.message_source', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.message_source
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.message_source ENABLE ALWAYS TRIGGER refuse_write;

-- Says whether a message from elsewhere is consumed for the first time. Call it in the
-- transaction that does what the message says: if that rolls back, or the savepoint
-- before, the message was not consumed.
--   source      where the message comes from, such as the queue; the current user's:
--               other roles' sources of that name are others
--   message_id  what identifies the message there, whenever it is sent again
-- Returns true for the first, false for a repeat. An id is known for
-- cqrs_outbox.consumed_retention at least, by the source's own time: that passes
-- only while cqrs_consumed() is called for it, of the time between two calls a
-- minute at most (or a tenth of the retention). While another transaction is
-- consuming the message, this waits for its end, also in REPEATABLE READ, where the
-- answer does not depend on the snapshot.
-- Errors: 22004 an argument is NULL; 22023 one is empty, or has more than 255 bytes;
-- 25006 read-only transaction or standby; 25000 parallel worker; 40P01 two
-- transactions wait for each other's messages.
-- Locks: none for the id. ROW EXCLUSIVE on the table of ids, until the end of the
-- transaction.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_consumed(source text, message_id text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_consumed(text, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_consumed(text, text) IS 'whether a message from elsewhere is consumed for the first time';

-- The same for many messages of a source: an answer each, in their order. One that is
-- there twice is the first, and then a repeat. However two calls are ordered, they
-- do not wait for each other's messages.
-- Errors: as above; 22004 an element is NULL; 2202E the array has more than one
-- dimension.
-- Locks and privileges: as above.
CREATE FUNCTION @extschema@.cqrs_consumed(source text, message_ids text[]) RETURNS boolean[]
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_consumed_many';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_consumed(text, text[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_consumed(text, text[]) IS 'which messages from elsewhere are consumed for the first time';
