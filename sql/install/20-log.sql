/*
 * 20-log.sql
 *		What is emitted, and how far it was delivered: topics, types of events,
 *		ticks, cursors.
 */

-- ----------------------------------------------------------------------
-- cqrs_event: one event, as consumers see it
--
-- Wherever an event's columns are, they are these, in this order; what a place
-- adds comes behind them.
--
-- position    orders the events of one outbox; identifies nothing; NULL for an
--             event without topic
-- event_id    UUID v7; deduplicate on this
-- event_name  registered name
-- topic       topic it was emitted to; NULL: none
-- key         events of one key are delivered in order
-- payload     JSON object; NULL is a tombstone
-- headers     JSON object or NULL
-- emitted_at  when it was emitted
-- ----------------------------------------------------------------------
CREATE TYPE @extschema@.cqrs_event AS (
	position	bigint,
	event_id	uuid,
	event_name	text,
	topic		text,
	key			text,
	payload		jsonb,
	headers		jsonb,
	emitted_at	timestamptz
);
GRANT USAGE ON TYPE @extschema@.cqrs_event TO PUBLIC;
COMMENT ON TYPE @extschema@.cqrs_event IS 'an event of the outbox';

-- Positions of events. CACHE 1: a backend must not draw ahead, or an event
-- emitted after another's commit could get the lower position.
CREATE SEQUENCE cqrs.position CACHE 1;
COMMENT ON SEQUENCE cqrs.position IS 'positions of events, in order of emission';
SELECT pg_extension_config_dump('cqrs.position', '');

-- ----------------------------------------------------------------------
-- cqrs.topic: the topics
--
-- topic_id         names the segments: cqrs.topic_<topic_id>_<0|1|2>
-- topic            name, at most 63 bytes; also the name of the view in
--                  cqrs_topics
-- retention        how long delivered events are kept, at least
-- current_segment  the segment that emitters write to
-- opened_at        for each segment, when it last became the current one, or
--                  NULL
-- created_at       when the topic was created
-- native           true as cqrs_create_topic() makes it; false in a row that
--                  was restored from a dump: the topic's restored events wait
--                  for cqrs_adopt()
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.topic_id AS integer;
COMMENT ON SEQUENCE cqrs.topic_id IS 'numbers topics';
CREATE TABLE cqrs.topic (
	topic_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.topic_id'),
	topic			text		NOT NULL UNIQUE,
	retention		interval	NOT NULL,
	current_segment	smallint	NOT NULL DEFAULT 0,
	opened_at		timestamptz[] NOT NULL DEFAULT ARRAY[now(), NULL, NULL],
	created_at		timestamptz	NOT NULL DEFAULT now(),
	native			boolean		GENERATED ALWAYS AS (false) STORED
);
COMMENT ON TABLE cqrs.topic IS 'topics';
SELECT pg_extension_config_dump('cqrs.topic_id', '');
SELECT pg_extension_config_dump('cqrs.topic', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.topic
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.topic
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.topic ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- Creates a topic and its storage: three segments in schema cqrs and the
-- view cqrs_topics.<topic>. Its creator gets SELECT and INSERT on the view,
-- with grant option. What is inserted into the view is emitted: see
-- cqrs.insert_event().
--   topic       name, 1 to 63 bytes
--   retention   how long events are kept after delivery, not negative
--   or_replace  a topic of that name that is there gets this retention; it keeps
--               all else
-- Returns whether anything changed: not if it is there with this retention.
-- Errors: 42710 exists with another retention; 42602, 42622, 22004 name; 22023
-- retention; 42P07 a relation of that name is in schema cqrs_topics; 42501 as of
-- cqrs_alter_topic(), to change one.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.topic until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_create_topic(topic text, retention interval DEFAULT '1 day', or_replace boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_create_topic(text, interval, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_create_topic(text, interval, boolean) IS 'creates a topic';

-- Changes a topic's settings; an argument that is NULL changes nothing. If
-- somebody dropped the topic's view, the extension's owner has it made again by
-- this; what was granted on it is lost.
--   retention  how long events are kept after delivery, not negative
-- Returns whether anything changed.
-- Errors: 42704 does not exist; 22023 retention; 42501 neither its creator
-- nor the extension's owner; 25006 read-only transaction or standby.
-- Locks: ROW EXCLUSIVE on cqrs.topic, and the topic's row in it.
-- Privileges: as cqrs_drop_topic().
CREATE FUNCTION @extschema@.cqrs_alter_topic(topic text, retention interval DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_alter_topic(text, interval) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_alter_topic(text, interval) IS 'changes the retention of a topic';

-- Drops a topic and its events.
--   cascade    also undelivered events, and the event types that have it as their
--              default, with their handlers. A consumer that writes to it waits for
--              another topic
--   if_exists  if there is none, that is no error
-- Returns whether anything was dropped.
-- Errors: 42704 does not exist; 55006 holds undelivered events; 2BP01 event
-- types or consumers use it; 42501 neither its creator nor the extension's owner;
-- 55000 it is for sagas.
-- Locks: ACCESS EXCLUSIVE on its segments and view; as cqrs_create_topic().
-- Privileges: EXECUTE, not granted to PUBLIC, and INSERT with grant option on the
-- topic.
CREATE FUNCTION @extschema@.cqrs_drop_topic(topic text, cascade boolean DEFAULT false, if_exists boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_drop_topic(text, boolean, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_drop_topic(text, boolean, boolean) IS 'drops a topic';

-- When an event happened, if its headers say so: column occurred_at of topics'
-- views. NULL for what is no timestamp of RFC 3339. Privileges: EXECUTE, granted
-- to PUBLIC.
CREATE FUNCTION cqrs.occurred_at(headers jsonb) RETURNS timestamptz
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cqrs_occurred_at';
GRANT EXECUTE ON FUNCTION cqrs.occurred_at(jsonb) TO PUBLIC;
COMMENT ON FUNCTION cqrs.occurred_at(jsonb) IS 'header occurred_at of an event';

-- ----------------------------------------------------------------------
-- cqrs.event_type: the registered event names
--
-- event_name     name, at most 63 bytes
-- topic_id       the default topic of its events, or NULL: they are for their
--                handlers only
-- payload_type   jsonb, or the composite type that a payload must fit
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.event_type (
	event_name		text		PRIMARY KEY,
	topic_id		integer,
	payload_type	regtype		NOT NULL,
	registered_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.event_type IS 'registered event types';
SELECT pg_extension_config_dump('cqrs.event_type', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_type
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_type
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.event_type ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- Registers an event type. Creates the topic, with the default retention, if
-- there is none of that name.
--   event_name    name, 1 to 63 bytes
--   topic         where its events go, unless cqrs_emit() says otherwise; NULL:
--                 nowhere but to their handlers
--   payload_type  jsonb: any JSON object; a composite type: an object with
--                 these keys and values that convert to their types. Named as
--                 type or schema.type, in the search_path
--   or_replace    an event type of that name that is there gets this topic and
--                 payload type; it keeps its handlers
-- Returns whether anything changed: not if it is registered so. A payload type that
-- was dropped is the same as the one that is given.
-- Errors: 42710 registered already with another topic or payload type; 42804
-- another kind of type; 42704 no such type; 42601 no name of a type; 42P13 one of its handlers does not take
-- that type; 22004, 42602, 42622 names.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.event_type; those of cqrs_create_topic(), if
-- the topic is not there.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_register_event(event_name text, topic text DEFAULT NULL,
	payload_type text DEFAULT 'jsonb', or_replace boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_event(text, text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_event(text, text, text, boolean) IS 'registers an event type';

-- Removes an event type and its handlers; its events stay.
--   if_exists  if there is none, that is no error
-- Returns whether anything was removed.
-- Errors: 42704 not registered; 22004.
-- Locks and privileges: as cqrs_register_event().
CREATE FUNCTION @extschema@.cqrs_unregister_event(event_name text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_event(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_event(text, boolean) IS 'removes an event type';

-- ----------------------------------------------------------------------
-- cqrs.tick: durably recorded snapshots, added at one end and deleted at the
-- other. Neither they nor the sequence of their ids is dumped: they mean
-- nothing elsewhere, and the worker makes new ones while a dump is restored.
--
-- tick_id        grows with the snapshot; begins at a random multiple of 2^40, so
--                that ticks that come by logical replication do not collide
-- ticked_at      when the snapshot was taken
-- snapshot       what had committed then
-- last_position  the last position drawn before the snapshot was taken
-- native         true if we wrote it; false in a row that comes from another
--                cluster, where its transaction ids are from
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.tick_id;
COMMENT ON SEQUENCE cqrs.tick_id IS 'numbers ticks';
SELECT setval('cqrs.tick_id', (floor(random() * 4194304)::bigint << 40) + 1, false);
CREATE TABLE cqrs.tick (
	tick_id			bigint		PRIMARY KEY,
	ticked_at		timestamptz	NOT NULL,
	snapshot		pg_snapshot	NOT NULL,
	last_position	bigint		NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED
);
COMMENT ON TABLE cqrs.tick IS 'snapshots between which events are delivered';
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.tick
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.tick ENABLE ALWAYS TRIGGER refuse_write;

-- Records a snapshot: what has committed can be received from then on. The
-- worker does this by itself if there is a subscription without a handler.
-- Returns the tick id. Errors: 25001 in a transaction block (it would hold up
-- every delivery until its end); 25006 read-only transaction or standby.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_tick() RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_tick() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_tick() IS 'records a snapshot, up to which cqrs_receive() reaches';

-- ----------------------------------------------------------------------
-- cqrs.cursor: how far each partition of a subscription is. A cursor moves by
-- appending a row: the one with the highest seq counts
--
-- subscription_id, partition, seq
--                 key, and the fence between two movers of one cursor
-- tick_id         everything visible in this tick has been delivered ...
-- snapshot        ... which is what this snapshot shows
-- until_tick      the window being delivered ends with this tick, or NULL:
--                 none is
-- until_snapshot  ... and with this snapshot
-- position        in that window, delivered up to this position
-- received        in that window, read by cqrs_receive() up to this position
-- received_all    nothing in that window is behind what was received
-- receipt         of what cqrs_receive() handed out last, or NULL
-- leased_until    nothing else is handed out before; NULL: only the receiving
--                 transaction had the partition
-- expired         how many leases on that batch ran out in a row; from 2 on,
--                 its events are handed out one by one
-- covered         the positions that the receipt covers, in order, packed
-- passed          in that window, positions beyond position that are settled
-- next_retry_at   the lowest due_at of its rows in cqrs.retry, or NULL: it has
--                 none
-- passed_at       when something was last delivered; NULL: never yet
-- delivered       how many events were delivered; only for showing the rate
-- last_position   an estimate of what had been emitted when the cursor
--                 moved; only for showing the lag
-- moved_at        when the cursor moved
-- native          true if we wrote it; false in a row that was restored from
--                 a dump, and in one that starts at 'earliest' of restored
--                 topics: nothing is delivered before cqrs_adopt()
-- by_topic        an event waits for others of its topic, not only of its key
-- producer        delivered exactly once: names the broker's transactions; as the
--                 next seven, see src/delivery/broker_transaction.c
-- sent            the transaction that the broker committed last, or NULL: none
-- intent          the transaction that it may have committed since, or NULL: none
-- intent_position ... which has the events up to this position of the window, or,
--                 with intent_parked, the parked one at this position; NULL: that
--                 says nothing any more
-- intent_events   ... how many
-- intent_parked
-- diverged        what the broker has committed last, and we know nothing of, so
--                 that nothing is delivered; all zeros: it has no record; or NULL
-- resent_at       when that happened last, and it went on all the same, as
--                 on_divergence says; or NULL
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.cursor (
	subscription_id	integer		NOT NULL,
	partition		integer		NOT NULL,
	seq				bigint		NOT NULL,
	tick_id			bigint		NOT NULL,
	snapshot		pg_snapshot	NOT NULL,
	until_tick		bigint,
	until_snapshot	pg_snapshot,
	position		bigint,
	received		bigint,
	received_all	boolean		NOT NULL,
	receipt			uuid,
	leased_until	timestamptz,
	expired			smallint	NOT NULL,
	covered			bytea,
	passed			bigint[],
	next_retry_at	timestamptz,
	passed_at		timestamptz,
	delivered		bigint		NOT NULL,
	last_position	bigint		NOT NULL,
	moved_at		timestamptz	NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED,
	by_topic		boolean		NOT NULL,
	producer		uuid,
	sent			uuid,
	intent			uuid,
	intent_position	bigint,
	intent_events	integer,
	intent_parked	boolean,
	diverged		uuid,
	resent_at		timestamptz,
	PRIMARY KEY (subscription_id, partition, seq)
);
COMMENT ON TABLE cqrs.cursor IS 'cursors of subscriptions, newest row by seq';
SELECT pg_extension_config_dump('cqrs.cursor', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.cursor
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.cursor ENABLE ALWAYS TRIGGER refuse_write;
