/* cqrs_outbox 1.0 */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cqrs_outbox" to load this file. \quit

-- Whoever may create functions and operators in the target schema must not have
-- tables' defaults, views and SQL functions call his own. So what is made of
-- expressions is made with this search_path, and what it means of the target
-- schema is qualified.
SET LOCAL search_path TO pg_catalog, pg_temp;

-- ----------------------------------------------------------------------
-- Schemas
--
-- cqrs         tables, sequences and functions of the extension's own, and
--              the segments of every topic; nobody needs USAGE on it
-- cqrs_topics  one view for each topic, named like the topic: what people
--              read, and what carries a topic's privileges
-- cqrs_subscriptions
--              one view for each subscription, named like it, with its row of
--              cqrs_subscription_status. Who owns the view owns the
--              subscription; whoever has CREATE here could own one whose view
--              was dropped
-- ----------------------------------------------------------------------

CREATE SCHEMA cqrs;
CREATE SCHEMA cqrs_topics;
CREATE SCHEMA cqrs_subscriptions;
COMMENT ON SCHEMA cqrs IS 'internals of cqrs_outbox';
COMMENT ON SCHEMA cqrs_topics IS
'one view for each topic; GRANT INSERT on it allows to emit, GRANT SELECT to read';
COMMENT ON SCHEMA cqrs_subscriptions IS
'one view for each subscription; who owns it owns the subscription, GRANT SELECT on it allows to see it, GRANT UPDATE to receive';

-- ----------------------------------------------------------------------
-- cqrs.topic: the topics
--
-- topic_id         names the segments: cqrs.topic_<topic_id>_<0|1|2>
-- topic            name, at most 63 bytes; also the name of the view in
--                  cqrs_topics
-- retention        how long delivered events are kept at least
-- current_segment  the segment that emitters write to
-- opened_at        for each segment, when it last became the current one, or
--                  NULL
-- created_at       when the topic was created
-- native           true as cqrs_create_topic() makes it; false in a row that
--                  was restored from a dump: the topic's restored events wait
--                  for cqrs_adopt()
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.topic_id AS integer;
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

-- ----------------------------------------------------------------------
-- cqrs.event_handler: functions called in the transaction that emits
--
-- event_name     of which events
-- handler        the function called, as text (see cqrs.command)
-- owner          whose it was (see cqrs.command)
-- seq            those of one event are called in this order
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.event_handler_seq;
CREATE TABLE cqrs.event_handler (
	event_name		text		NOT NULL,
	handler			text		NOT NULL,
	owner			text		NOT NULL,
	seq				bigint		NOT NULL DEFAULT nextval('cqrs.event_handler_seq'),
	registered_at	timestamptz	NOT NULL DEFAULT now(),
	PRIMARY KEY (event_name, handler)
);
COMMENT ON TABLE cqrs.event_handler IS 'registered handlers of events';

-- ----------------------------------------------------------------------
-- cqrs.command: the registered commands and queries
--
-- command_name   name, at most 63 bytes
-- kind           command: for cqrs_send(); query: for cqrs_query(); stream: a
--                command whose handler returns a set, for cqrs_stream()
-- handlers       the functions called, in the order in which they are tried, as
--                schema.name(schema.type), quoted always by the same rule:
--                text, because pg_upgrade refuses regprocedure columns. More
--                than one only of a command
-- owners         the roles that owned them when they were registered: a function
--                of somebody else's, unless of a superuser's or the extension's
--                owner's, is not what was registered, and is not called. Names, as
--                a dump may be restored where a role is missing
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.command (
	command_name	text		PRIMARY KEY,
	kind			text		NOT NULL DEFAULT 'command' CHECK (kind IN ('command', 'query', 'stream')),
	handlers		text[]		NOT NULL,
	owners			text[]		NOT NULL,
	registered_at	timestamptz	NOT NULL DEFAULT now(),
	CHECK (cardinality(handlers) > 0 AND array_position(handlers, NULL) IS NULL),
	CHECK (cardinality(owners) = cardinality(handlers) AND array_position(owners, NULL) IS NULL),
	CHECK (cardinality(handlers) = 1 OR kind = 'command')
);
COMMENT ON TABLE cqrs.command IS 'registered commands and queries';

-- ----------------------------------------------------------------------
-- cqrs.middleware: functions called around each command and query
--
-- handler        the function called, as text (see cqrs.command)
-- owner          whose it was (see cqrs.command)
-- priority       those with a smaller one are further out
-- seq            of those with the same one, the first is the outermost
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.middleware_seq;
CREATE TABLE cqrs.middleware (
	handler			text		PRIMARY KEY,
	owner			text		NOT NULL,
	priority		integer		NOT NULL,
	seq				bigint		NOT NULL DEFAULT nextval('cqrs.middleware_seq'),
	registered_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.middleware IS 'registered middleware';

-- ----------------------------------------------------------------------
-- cqrs.fallback: what is called instead of handlers that fail
--
-- fallback_id    names its circuit breaker
-- handler        the function whose failure counts, as text (see cqrs.command),
--                wherever it is a handler
-- fallback       the function called instead, as text
-- owner          whose that was (see cqrs.command)
-- sqlstates      after which errors: SQLSTATEs, or the two characters of a
--                class; NULL: after all but class 57 (operator intervention),
--                53200 (out of memory), P0004 (failed assertion), XX001 and
--                XX002 (corrupted data). Never after 57014, 57P01 and 57P02
-- fail_max       so many failures in a row open the circuit breaker; 0: there
--                is none
-- reset_after    so long after that, the handler is tried again
-- excluded       errors that are no failures for the breaker, as sqlstates
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.fallback_id AS integer;
CREATE TABLE cqrs.fallback (
	fallback_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.fallback_id'),
	handler			text		NOT NULL UNIQUE,
	fallback		text		NOT NULL,
	owner			text		NOT NULL,
	sqlstates		text[],
	fail_max		integer		NOT NULL,
	reset_after		interval	NOT NULL,
	excluded		text[],
	registered_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.fallback IS 'fallbacks of handlers';

-- ----------------------------------------------------------------------
-- cqrs.subscription: the consumers
--
-- subscription_id    names its cursors and their locks
-- subscription       name, at most 63 bytes; also the name of the view in
--                    cqrs_subscriptions, whose owner's privileges the delivery
--                    has
-- handler            the function that gets the events, as text (see
--                    cqrs.command), or NULL
-- server             the foreign server of the broker that gets the events, or
--                    NULL; if both are NULL, read with cqrs_receive()
-- format             of the messages to the broker: cqrs, cloudevents or raw;
--                    NULL without server
-- strict_key_order   to the broker, no event is on its way together with
--                    another one of its topic and key
-- transaction        of a handler: batch, one for the events of a batch; event,
--                    one for each event
-- runs_commands      what it gets are commands that its owner enqueued
-- partitions         over how many cursors the events are spread, by key
-- next_partitions    over how many they are to be, while that is being changed;
--                    NULL otherwise, as are the next three
-- epoch_tick         the present partitions are for what was visible in this
--                    tick, which need not be recorded ...
-- epoch_snapshot     ... which is what this snapshot shows
-- epoch_since        when the change was asked for
-- max_attempts       so often an event is tried before it is a dead letter;
--                    0: for ever
-- retry_delay        after the first failure; doubles with each further one
-- max_retry_delay    ... up to this
-- handler_timeout    the longest that the handler may take for one event, or a
--                    broker confirm nothing; 0: no limit
-- max_retained_size  suspended when it keeps more bytes of events than this
--                    from being truncated; 0: no limit
-- max_retained_age   ... or events older than this; 0: no limit
-- state              active; paused: by cqrs_pause(), keeps its events;
--                    suspended: past a limit of the two, keeps nothing
-- state_since        when it got into that state
-- state_reason       why, in words
-- missed_events      while suspended, so many of its events were truncated
-- created_at         when it was created
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.subscription_id AS integer;
CREATE TABLE cqrs.subscription (
	subscription_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.subscription_id'),
	subscription		text		NOT NULL UNIQUE,
	handler				text,
	server				text,
	format				text,
	strict_key_order	boolean		NOT NULL,
	transaction			text		NOT NULL DEFAULT 'batch',
	runs_commands		boolean		NOT NULL DEFAULT false,
	partitions			integer		NOT NULL,
	next_partitions		integer,
	epoch_tick			bigint,
	epoch_snapshot		pg_snapshot,
	epoch_since			timestamptz,
	max_attempts		integer		NOT NULL,
	retry_delay			interval	NOT NULL,
	max_retry_delay		interval	NOT NULL,
	handler_timeout		interval	NOT NULL,
	max_retained_size	bigint		NOT NULL,
	max_retained_age	interval	NOT NULL,
	state				text		NOT NULL DEFAULT 'active',
	state_since			timestamptz	NOT NULL DEFAULT now(),
	state_reason		text,
	missed_events		bigint		NOT NULL DEFAULT 0,
	created_at			timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.subscription IS 'subscriptions';

-- ----------------------------------------------------------------------
-- cqrs.subscription_topic: which topics a subscription reads
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.subscription_topic (
	subscription_id	integer,
	topic_id		integer,
	PRIMARY KEY (subscription_id, topic_id)
);
COMMENT ON TABLE cqrs.subscription_topic IS 'topics of each subscription';

-- ----------------------------------------------------------------------
-- cqrs.tick: durably recorded snapshots, appended and deleted behind
--
-- tick_id        rises with the snapshot; begins at a random multiple of 2^40, so
--                that ticks that come by logical replication do not collide
-- ticked_at      when the snapshot was taken
-- snapshot       what had committed then
-- last_position  the last position drawn before the snapshot was taken
-- native         true as we write it; false in a row that comes from another
--                cluster, where its transaction ids are from
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.tick_id;
SELECT pg_catalog.setval('cqrs.tick_id',
	(pg_catalog.floor(pg_catalog.random() OPERATOR(pg_catalog.*) 4194304)::bigint OPERATOR(pg_catalog.<<) 40)
	OPERATOR(pg_catalog.+) 1::bigint, false);
CREATE TABLE cqrs.tick (
	tick_id			bigint		PRIMARY KEY,
	ticked_at		timestamptz	NOT NULL,
	snapshot		pg_snapshot	NOT NULL,
	last_position	bigint		NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED
);
COMMENT ON TABLE cqrs.tick IS 'snapshots between which events are delivered';

-- ----------------------------------------------------------------------
-- cqrs.cursor: how far each partition of a subscription is, appended and
-- deleted behind; the row with the highest seq counts
--
-- subscription_id, partition, seq
--                 key, and the fence between two movers of one cursor
-- tick_id         everything visible in this tick has been delivered ...
-- snapshot        ... which is what this snapshot shows
-- until_tick      the window being delivered ends with this tick, or NULL:
--                 none is
-- until_snapshot  ... and with this snapshot
-- position        of that window, delivered up to this position
-- received        of that window, read by cqrs_receive() up to this position
-- received_all    nothing of that window is behind what was received
-- receipt         of what cqrs_receive() handed out last, or NULL
-- leased_until    nothing else is handed out before; NULL: only the receiving
--                 transaction had the partition
-- expired         so many leases on that batch ran out in a row; from 2 on,
--                 its events are handed out one by one
-- covered         the positions that the receipt covers, in order, packed
-- passed          of that window, positions beyond position that are settled
-- next_retry_at   the lowest due_at of its rows in cqrs.retry, or NULL: it has
--                 none
-- passed_at       when something was delivered last, or NULL: never yet
-- delivered       how many events were delivered; only for showing the rate
-- last_position   an estimate of what had been emitted when the cursor
--                 moved; only for showing the lag
-- moved_at        when the cursor moved
-- native          true as we write it; false in a row that was restored from
--                 a dump, and in one that starts at 'earliest' of restored
--                 topics: nothing is delivered before cqrs_adopt()
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
	PRIMARY KEY (subscription_id, partition, seq)
);
COMMENT ON TABLE cqrs.cursor IS 'cursors of subscriptions, newest row by seq';

-- ----------------------------------------------------------------------
-- cqrs.retry: events that are not delivered, and that the cursor passes by:
-- those that failed, and the later ones of the same topic and key, which wait
-- for them
--
-- subscription_id, partition, position
--                  of which cursor, and where the event was in the log
-- lane             hash of topic and key: events of a lane wait for each other
-- topic_id         the event's topic
-- event_id .. emitted_at
--                  the event, whole
-- attempts         how often it was tried, and that counted; 0: it waits for an
--                  earlier one, or is tried next
-- receipt          handed out by cqrs_receive() with this receipt, and not
--                  settled, or NULL
-- failed_at        when it was last tried, or NULL
-- retry_at         not tried again before
-- due_at           retry_at, if it is the lowest position of its lane: only that
--                  is tried; or NULL
-- sqlstate         of the last error, or NULL
-- message          of the last error, or NULL
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.retry (
	subscription_id	integer		NOT NULL,
	partition		integer		NOT NULL,
	position		bigint		NOT NULL,
	lane			bigint		NOT NULL,
	topic_id		integer		NOT NULL,
	event_id		uuid		NOT NULL,
	event_name		text		NOT NULL,
	key				text,
	headers			jsonb,
	payload			jsonb,
	emitted_at		timestamptz	NOT NULL,
	attempts		integer		NOT NULL,
	receipt			uuid,
	failed_at		timestamptz,
	retry_at		timestamptz	NOT NULL,
	due_at			timestamptz,
	sqlstate		text,
	message			text,
	PRIMARY KEY (subscription_id, partition, position)
);
CREATE INDEX retry_lane ON cqrs.retry (subscription_id, partition, lane, position);
CREATE INDEX retry_due ON cqrs.retry (subscription_id, partition, due_at, position);
COMMENT ON TABLE cqrs.retry IS 'events whose delivery failed, and those that wait behind them';
COMMENT ON INDEX cqrs.retry_lane IS 'finds whether something of a lane is parked, and in which order';
COMMENT ON INDEX cqrs.retry_due IS 'finds what may be tried';

-- ----------------------------------------------------------------------
-- cqrs.dead_letter: events that a subscription gave up on, kept until
-- somebody redrives or discards them
--
-- Columns as in cqrs.retry; died_at is when it was given up. It is in no
-- partition: redriven, it is parked in that of its key.
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.dead_letter (
	subscription_id	integer		NOT NULL,
	position		bigint		NOT NULL,
	topic_id		integer		NOT NULL,
	event_id		uuid		NOT NULL,
	event_name		text		NOT NULL,
	key				text,
	headers			jsonb,
	payload			jsonb,
	emitted_at		timestamptz	NOT NULL,
	attempts		integer		NOT NULL,
	died_at			timestamptz	NOT NULL,
	sqlstate		text		NOT NULL,
	message			text		NOT NULL,
	PRIMARY KEY (subscription_id, position)
);
CREATE INDEX dead_letter_died_at ON cqrs.dead_letter (subscription_id, died_at);
COMMENT ON TABLE cqrs.dead_letter IS 'events that a subscription gave up on';
COMMENT ON INDEX cqrs.dead_letter_died_at IS 'finds the error that was last';

-- ----------------------------------------------------------------------
-- cqrs.failure: cursors whose subscription cannot be delivered at all just
-- now, through no event's fault
--
-- subscription_id, partition
--                  of which cursor
-- failures         how often in a row
-- failed_at        when it was last tried
-- retry_at         when it is tried next
-- sqlstate         of the last error
-- message          of the last error
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.failure (
	subscription_id	integer		NOT NULL,
	partition		integer		NOT NULL,
	failures		integer		NOT NULL,
	failed_at		timestamptz	NOT NULL,
	retry_at		timestamptz	NOT NULL,
	sqlstate		text		NOT NULL,
	message			text		NOT NULL,
	PRIMARY KEY (subscription_id, partition)
);
COMMENT ON TABLE cqrs.failure IS 'subscriptions that cannot be delivered just now';

-- ----------------------------------------------------------------------
-- cqrs.idempotency_0, _1, _2: answers of commands that were sent with an
-- idempotency key, for those that repeat them. The tables are written in turn,
-- by time; rows are neither updated nor deleted, but a table is truncated when
-- all in it are older than cqrs_outbox.idempotency_retention.
--
-- role, role_name  who sent it: the current user then. A key is that of a role
--                  with this name and, if the row is native, this number
-- idempotency_key  the key; at most 255 bytes
-- command_name     which command
-- request          SHA-256 of the command's name and the payload
-- answer           the answer, or NULL
-- stored_at        when it had been handled
-- native           true as we write it; false in a row that was restored from a
--                  dump, where the number is from another cluster
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.idempotency_0 (
	role			oid			NOT NULL,
	role_name		text		COLLATE "C" NOT NULL,
	idempotency_key	text		COLLATE "C" NOT NULL,
	command_name	text		NOT NULL,
	request			bytea		NOT NULL,
	answer			jsonb,
	stored_at		timestamptz	NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED,
	PRIMARY KEY (idempotency_key, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX idempotency_0_stored_at ON cqrs.idempotency_0 (stored_at);
COMMENT ON TABLE cqrs.idempotency_0 IS 'answers of commands that were sent with an idempotency key';
COMMENT ON INDEX cqrs.idempotency_0_stored_at IS 'finds the newest';
CREATE TABLE cqrs.idempotency_1 (
	role			oid			NOT NULL,
	role_name		text		COLLATE "C" NOT NULL,
	idempotency_key	text		COLLATE "C" NOT NULL,
	command_name	text		NOT NULL,
	request			bytea		NOT NULL,
	answer			jsonb,
	stored_at		timestamptz	NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED,
	PRIMARY KEY (idempotency_key, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX idempotency_1_stored_at ON cqrs.idempotency_1 (stored_at);
COMMENT ON TABLE cqrs.idempotency_1 IS 'answers of commands that were sent with an idempotency key';
COMMENT ON INDEX cqrs.idempotency_1_stored_at IS 'finds the newest';
CREATE TABLE cqrs.idempotency_2 (
	role			oid			NOT NULL,
	role_name		text		COLLATE "C" NOT NULL,
	idempotency_key	text		COLLATE "C" NOT NULL,
	command_name	text		NOT NULL,
	request			bytea		NOT NULL,
	answer			jsonb,
	stored_at		timestamptz	NOT NULL,
	native			boolean		GENERATED ALWAYS AS (false) STORED,
	PRIMARY KEY (idempotency_key, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX idempotency_2_stored_at ON cqrs.idempotency_2 (stored_at);
COMMENT ON TABLE cqrs.idempotency_2 IS 'answers of commands that were sent with an idempotency key';
COMMENT ON INDEX cqrs.idempotency_2_stored_at IS 'finds the newest';

-- ----------------------------------------------------------------------
-- cqrs.scheduled_command: commands that were enqueued for later. A row is
-- deleted by the transaction that puts the command into the outbox, when its
-- time has come.
--
-- command_id    UUID v7, which its event gets
-- command_name  which command
-- topic_id      where to: the topic of who enqueued it
-- key           commands of one key are executed in order
-- run_at        not before
-- payload       JSON object
-- headers       JSON object, or NULL: what its event's headers will say of what
--               caused it
-- enqueued_at   when it was enqueued
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.scheduled_command (
	command_id		uuid		PRIMARY KEY,
	command_name	text		NOT NULL,
	topic_id		integer		NOT NULL,
	key				text,
	run_at			timestamptz	NOT NULL,
	payload			jsonb		NOT NULL,
	headers			jsonb,
	enqueued_at		timestamptz	NOT NULL
);
CREATE INDEX scheduled_command_run_at ON cqrs.scheduled_command (run_at, command_id);
COMMENT ON TABLE cqrs.scheduled_command IS 'commands that were enqueued for later';
COMMENT ON INDEX cqrs.scheduled_command_run_at IS 'finds what is due';

-- Positions of events. CACHE 1: a backend must not draw ahead, or an event
-- emitted after another's commit could get the lower position.
CREATE SEQUENCE cqrs.position CACHE 1;
COMMENT ON SEQUENCE cqrs.position IS 'positions of events, in order of emission';

-- ----------------------------------------------------------------------
-- cqrs.identity: which databases this one is, or was copied from. Where no row
-- has the database's OID, it is a copy that CREATE DATABASE ... TEMPLATE made:
-- nothing is delivered in it until cqrs_adopt() adds one. Not dumped: what
-- is restored gets a row when the extension is created.
--
-- id        of the database, random
-- database  its OID in pg_database
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.identity (
	id			uuid	NOT NULL,
	database	oid		NOT NULL
);
COMMENT ON TABLE cqrs.identity IS 'which databases this one is, or was copied from';
INSERT INTO cqrs.identity (id, database)
SELECT pg_catalog.gen_random_uuid(), d.oid
FROM pg_catalog.pg_database d
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();
-- No table refers to another by a foreign key: in a dump, a key between members
-- of an extension is no dependency, and pg_restore -j would load the tables in
-- any order. Who changes them takes the locks that it takes (see topic.c,
-- subscription.c), and a row that refers to nothing is passed by.

-- What a dump contains. Not the ticks, nor where their ids are: they mean
-- nothing elsewhere, and the worker makes new ones while a dump is restored.
SELECT pg_catalog.pg_extension_config_dump('cqrs.topic_id', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.topic', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.event_type', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.event_handler_seq', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.event_handler', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.command', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.middleware_seq', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.middleware', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.fallback_id', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.fallback', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.subscription_id', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.subscription_topic', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.cursor', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.failure', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.retry', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.dead_letter', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.scheduled_command', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.position', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.idempotency_0', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.idempotency_1', '');
SELECT pg_catalog.pg_extension_config_dump('cqrs.idempotency_2', '');

-- ----------------------------------------------------------------------
-- cqrs.registry_changed(): statement trigger of the registry's tables. Has
-- every backend reload its copy of the registry, from the commit on. ALWAYS,
-- so that replication and session_replication_role do not pass it by.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs.registry_changed() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cqrs_registry_changed';
COMMENT ON FUNCTION cqrs.registry_changed() IS 'has the registry reloaded everywhere';

CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.topic
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.topic ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_type
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.event_type ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_handler
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.event_handler ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.command
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.command ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.middleware
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.middleware ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.fallback
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.fallback ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.subscription ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription_topic
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.subscription_topic ENABLE ALWAYS TRIGGER registry_changed;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.identity
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.identity ENABLE ALWAYS TRIGGER registry_changed;

-- ----------------------------------------------------------------------
-- cqrs.refuse_write(): statement trigger of every table in schema cqrs, those of
-- topics too. Whatever is granted, nobody but a table's owner, and superusers,
-- may write it: what is there says as whom functions are executed. What we
-- write ourselves passes it by. ALWAYS, as above.
-- Errors: 42501.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs.refuse_write() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cqrs_refuse_write';
COMMENT ON FUNCTION cqrs.refuse_write() IS 'keeps everybody but the owner from writing our tables';

CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.topic
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.topic ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_type
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.event_type ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_handler
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.event_handler ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.command
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.command ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.middleware
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.middleware ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.fallback
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.fallback ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.subscription ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription_topic
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.subscription_topic ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.tick
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.tick ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.cursor
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.cursor ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.retry
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.retry ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.dead_letter
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.dead_letter ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.failure
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.failure ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_0
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_0 ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_1
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_1 ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_2
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_2 ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.scheduled_command
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.scheduled_command ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.identity
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.identity ENABLE ALWAYS TRIGGER refuse_write;

SET LOCAL search_path TO @extschema@, pg_temp;

-- ----------------------------------------------------------------------
-- cqrs_event: one event, as consumers see it
--
-- position    orders the events of one outbox; identifies nothing; NULL of an
--             event without topic
-- event_id    UUID v7; deduplicate on this
-- event_name  registered name
-- topic       topic it was emitted to, or NULL: none
-- key         events of one key are delivered in order
-- payload     JSON object; NULL is a tombstone
-- headers     JSON object or NULL
-- status      new: not delivered to every subscription of its topic yet;
--             not_produced: the same, and a delivery failed, and is tried
--             again; dead: delivered to every subscription but those that
--             gave it up; produced: delivered to every subscription
-- attempts    how often the delivery that failed was tried
-- emitted_at  when it was emitted
-- ----------------------------------------------------------------------
CREATE TYPE cqrs_event AS (
	position	bigint,
	event_id	uuid,
	event_name	text,
	topic		text,
	key			text,
	payload		jsonb,
	headers		jsonb,
	status		text,
	attempts	integer,
	emitted_at	timestamptz
);
COMMENT ON TYPE cqrs_event IS 'an event of the outbox';

-- ----------------------------------------------------------------------
-- Topics and event types
-- ----------------------------------------------------------------------

-- Creates a topic and its storage: three segments in schema cqrs and the
-- view cqrs_topics.<topic>. Its creator gets SELECT and INSERT on the view,
-- with grant option.
--   topic      name, 1 to 63 bytes
--   retention  how long events are kept after delivery, not negative
-- Errors: 42710 exists; 42602, 42622, 22004 name; 22023 retention; 42P07 a
-- relation of that name is in schema cqrs_topics.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.topic until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_create_topic(topic text, retention interval DEFAULT '1 day') RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_create_topic(text, interval) IS 'creates a topic';

-- Changes a topic's settings; what is NULL stays as it is.
--   retention  how long events are kept after delivery, not negative
-- Errors: 42704 does not exist; 22023 retention; 42501 neither its creator
-- nor the extension's owner; 25006 read-only transaction or standby.
-- Locks: ROW EXCLUSIVE on cqrs.topic, and the topic's row in it.
-- Privileges: as cqrs_drop_topic().
CREATE FUNCTION cqrs_alter_topic(topic text, retention interval DEFAULT NULL) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_alter_topic(text, interval) IS 'changes the retention of a topic';

-- Drops a topic and its events; with force also undelivered events, and the
-- event types that have it as their default, with their handlers.
-- Errors: 42704 does not exist; 55006 holds undelivered events; 2BP01 event
-- types use it; 42501 neither its creator nor the extension's owner.
-- Locks: ACCESS EXCLUSIVE on its segments and view; as cqrs_create_topic().
-- Privileges: EXECUTE, not granted to PUBLIC, and SELECT and INSERT with
-- grant option on the topic.
CREATE FUNCTION cqrs_drop_topic(topic text, force boolean DEFAULT false) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_drop_topic(text, boolean) IS 'drops a topic';

-- Registers an event type. Creates the topic, with the default retention,
-- when there is none of that name.
--   event_name    name, 1 to 63 bytes
--   topic         where its events go, unless cqrs_emit() says otherwise; NULL:
--                 nowhere but to their handlers
--   payload_type  jsonb: any JSON object; a composite type: an object with
--                 these keys and values that convert to their types
-- Errors: 42710 registered already; 42804 another kind of type; 22004,
-- 42602, 42622 names.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.event_type; those of cqrs_create_topic().
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_register_event(event_name text, topic text DEFAULT NULL, payload_type regtype DEFAULT 'jsonb')
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_event(text, text, regtype) IS 'registers an event type';

-- Removes an event type and its handlers; its events stay. Errors: 42704 not
-- registered.
-- Locks and privileges: as cqrs_register_event().
CREATE FUNCTION cqrs_unregister_event(event_name text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unregister_event(text) IS 'removes an event type';

-- Has a function called for each event of a type, in the transaction that
-- emits it. An event has any number of handlers; they are called in the order
-- in which they were registered, as the current user. Emitted outside of any
-- dispatch, it is handled before the emitting call returns; in a command, when
-- the outermost command's handler has returned, and before cqrs_send() does; in
-- a stream, before the caller gets the next row. What handlers emit is handled
-- after that, breadth first, until nothing is left. An event that is rolled
-- back to a savepoint before that is not handled. An error of a handler is that
-- of the call that has it called. A transaction that is open while a handler is
-- registered calls it from the next command that it sends on; what it emits
-- outside of commands need not be handled.
--   event_name  a registered event type
--   handler     a function with one argument: cqrs_event (status new, attempts
--               0); jsonb, or the event's payload type: the payload, NULL of a
--               tombstone. It returns void or one value, which is ignored
-- Errors: 42704 the event is not registered; 42710 it is a handler of this
-- event already; 42883 no such function; 42P13 a function of another form;
-- 42501 the caller may not execute it; 22004.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.event_type until the end of the
-- transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_register_event_handler(event_name text, handler regprocedure) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_event_handler(text, regprocedure) IS 'has a function called in the transaction that emits';

-- Removes a handler of an event.
--   handler  the function; one that is gone as cqrs.event_handler names it
-- Errors: 42704 the event is not registered, or the function is not its
-- handler; 22004.
-- Locks: ROW EXCLUSIVE on cqrs.event_handler.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_unregister_event_handler(event_name text, handler text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unregister_event_handler(text, text) IS 'removes a handler of an event';

-- ----------------------------------------------------------------------
-- Commands and queries, which share one space of names
-- ----------------------------------------------------------------------

-- Binds a command to its handler; or to several, a chain: they are tried in
-- their order, until one does not call cqrs_next(). A command whose handler
-- returns a set is a stream, for cqrs_stream().
--   command_name  name, 1 to 63 bytes
--   handlers      each a function with one argument, jsonb or composite, that
--                 returns void, jsonb, a scalar or a composite; a single one, also
--                 a set of them
-- Errors: 42710 registered already, or the same handler twice; 42883 no such
-- function; 42P13 a function of another form; 42501 the caller may not execute
-- it; 22004, 42602, 42622 name; 22004, 2202E handlers.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.command until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_register_command(command_name text, VARIADIC handlers regprocedure[]) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_command(text, regprocedure[]) IS 'binds a command to its handler, or to a chain of them';

-- Binds a query to its handler.
--   query_name  name, 1 to 63 bytes
--   handler     as of a command; does not return a set
-- Errors, locks and privileges: as cqrs_register_command().
CREATE FUNCTION cqrs_register_query(query_name text, handler regprocedure) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_query(text, regprocedure) IS 'binds a query to its handler';

-- Removes a command or a query. Errors: 42704 not registered.
-- Locks and privileges: as cqrs_register_command().
CREATE FUNCTION cqrs_unregister_command(command_name text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unregister_command(text) IS 'removes a command or a query';

-- Gives a handler a fallback: when the handler raises an error, wherever it
-- handles a command or a query, alone or in a chain, or an event in the
-- transaction that emits it, all that it wrote and emitted is rolled back, and
-- the fallback is called with the same argument; its answer counts. A
-- subscription's handler has no fallback: it is tried again. What is wrong with
-- the dispatch itself (the payload, a handler that is not there or may not be
-- executed) is no failure of the handler; nor is what a deferred constraint says
-- at commit. The fallback's own fallback, if it has one, is not called.
--   handler    a function with one argument, jsonb or composite, that does not
--              return a set; it need not be registered as a handler yet
--   fallback   a function with the same argument and the same return type; one
--              of the two may return jsonb instead
--   sqlstates  after which errors, as SQLSTATEs, or classes of two characters;
--              NULL: after all but class 57, 53200, P0004, XX001 and XX002. The
--              errors of a cancelled statement and of a shutdown (57014, 57P01,
--              57P02) are never caught
--   fail_max   after so many failures in a row, of all sessions, the circuit
--              breaker opens: the handler is not called any more, the fallback is;
--              0: no breaker
--   reset_after  so long after it opened, one call is the trial: its success
--              closes the breaker, its failure opens it again. Not negative
--   excluded   errors that are no failures for the breaker, but count like
--              success: those of a handler that works; as sqlstates. The fallback
--              is called all the same
-- What counts as a failure is an error in sqlstates that is not in excluded; others
-- leave the breaker as it is. What the breaker has counted is not undone by a
-- rollback; it is common to all sessions if cqrs_outbox is in
-- shared_preload_libraries, else each has its own. A restart closes it.
-- Errors: 42710 it has one already; 42883 no such function; 42P13 a function of
-- another form; 42501 the caller may not execute it; 22004, 22023 arguments.
-- Privileges: EXECUTE, not granted to PUBLIC. Dispatching needs EXECUTE on the
-- handler, and on the fallback when that is called.
CREATE FUNCTION cqrs_register_fallback(handler regprocedure, fallback regprocedure, sqlstates text[] DEFAULT NULL,
	fail_max integer DEFAULT 5, reset_after interval DEFAULT '60 s', excluded text[] DEFAULT NULL) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_fallback(regprocedure, regprocedure, text[], integer, interval, text[]) IS
'has another function called when a handler fails';

-- Removes a handler's fallback.
--   handler  the function; one that was dropped is named as in cqrs.fallback
-- Errors: 42704 it has none; 22004 handler.
-- Privileges: as cqrs_register_fallback().
CREATE FUNCTION cqrs_unregister_fallback(handler text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unregister_fallback(text) IS 'removes the fallback of a handler';

-- The circuit breaker of a handler's fallback, as cqrs_breaker_status has it;
-- NULL if it has no fallback.
CREATE FUNCTION cqrs.breaker_state(handler text, OUT state text, OUT failures integer, OUT opened_at timestamptz,
	OUT retry_at timestamptz)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_breaker_state';
COMMENT ON FUNCTION cqrs.breaker_state(text) IS 'state of a circuit breaker';

-- The circuit breakers, as they are now. Privileges: SELECT, granted to PUBLIC.
--   handler    the function that is called while it is closed
--   fallback   the function that is called while it is not
--   state      closed; open: the handler is not called; half_open: the next call
--              is the trial, or it is under way
--   failures   in a row
--   opened_at  when it opened last, or NULL: it is closed
--   retry_at   when it is half_open, or NULL
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW @extschema@.cqrs_breaker_status AS
SELECT f.handler, f.fallback, b.state, b.failures, b.opened_at, b.retry_at
FROM cqrs.fallback f
CROSS JOIN LATERAL cqrs.breaker_state(f.handler) b
WHERE f.fail_max > 0;
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs_breaker_status IS 'circuit breakers';

-- Dispatches a command: calls its handler in the caller's transaction and
-- returns its answer (void and SQL NULL: NULL). Each handler of a chain gets the
-- payload converted to its own argument; if none answers, the answer is NULL.
--   command_name  a registered command
--   payload       JSON object; converted when the handler takes a composite
--   idempotency_key
--                 NULL: none; 1 to 255 bytes, chosen by the caller anew for each
--                 command, and the same when he repeats it: a command that was
--                 handled with this key is not handled again, but its answer
--                 is returned. Keys are the current user's own, whatever the
--                 command. A key is kept from when its transaction commits, for
--                 cqrs_outbox.idempotency_retention at least. Errors are not
--                 kept.
-- Errors: 42883 not registered, or its handler is gone; 42809 it is not a
-- command; 42501 the caller may not execute the handler; 22023 and those of the
-- types' input functions for the payload; 54001 commands nested too deeply
-- (cqrs_outbox.max_command_depth); whatever the handler raises. With a key: 22023
-- its length; 42710 it was used for another command, or another payload; 55006
-- it is used by a command that this one is part of; 25006 read-only transaction
-- or standby.
-- Locks: each handler of a chain runs in a subtransaction, and so does one that
-- has a fallback. A key is locked until the end of the transaction: a repeat
-- waits for it, and then returns what was committed, in a REPEATABLE READ
-- transaction, too, although that does not see what the command did. Two
-- transactions that use the same keys in different order may deadlock; each key
-- takes a place in the server's table of locks.
-- Privileges: EXECUTE on the handler; of a chain, on those that are tried; on
-- the first one for a repeat.
CREATE FUNCTION cqrs_send(command_name text, payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_send(text, jsonb, text) IS 'dispatches a command to its handler';

-- The same with the handler's composite argument itself: dispatches on its
-- type. Of a chain, this is what the first handler takes; to the others it is
-- converted.
-- Errors: as above; 42883 no command takes that type; 42725 several do.
CREATE FUNCTION cqrs_send(command record) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_send_composite';
COMMENT ON FUNCTION cqrs_send(record) IS 'dispatches a command given as a composite value';

-- What cqrs_send() would answer, without effect: the command is handled in a
-- subtransaction, with the handlers of the events that it emits, and all is
-- rolled back. Within a handler, too, as if it were sent by itself: handlers of
-- events are called before this returns.
--   command_name, payload
--             as of cqrs_send()
--   answer    the answer
--   events    what would have been emitted, in that order, by whatever was
--             called: also by triggers, and to no topic. Not what was rolled back
--             on the way: by a handler that passed on, or failed and has a
--             fallback. position is NULL, and the ids are new ones each time.
--             Commands that are enqueued are no events. key, payload and
--             headers are NULL of an event whose topic the caller may not read,
--             and of one without topic that somebody else emitted
-- What would be done at commit only, deferred constraints and triggers, is done
-- at the end, as by SET CONSTRAINTS ALL IMMEDIATE. So is what the transaction had
-- deferred before, whose errors and events are then among these; afterwards it
-- is deferred as it was.
-- What stays: sequences have advanced, that of positions too; locks of the
-- session; what was done outside of the database. The transaction has got an id
-- if something was written. Circuit breakers decide what is called, but do not
-- count it; no idempotency key is used up; nobody is notified.
-- Errors: as of cqrs_send(), and of a deferred constraint; 25006 something below
-- tried to write in a read-only transaction; 54001 dry runs nested too deeply
-- (cqrs_outbox.max_command_depth); 54000 more than 1 GB of events.
-- Locks: as of cqrs_send(), while it runs.
-- Privileges: as of cqrs_send(); to see what an event says, SELECT on its topic.
CREATE FUNCTION cqrs_dry_run(command_name text, payload jsonb DEFAULT '{}', OUT answer jsonb, OUT events cqrs_event[])
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_dry_run(text, jsonb) IS 'what a command would answer and emit';

-- Dispatches a command whose handler returns a set: returns its rows, each as
-- cqrs_send() returns an answer, NULL ones too. In a select list, and through a
-- cursor over it, a row is made when it is asked for, if the handler's language
-- can do that (SQL, PL/Python, C), and what the handler did for it, events
-- included, is done then; no more rows are made than the caller asks for. PL/pgSQL
-- makes all of them before the first one.
--   command_name  a registered command
--   payload       as of cqrs_send()
-- Errors: as of cqrs_send(); 42809 it is not a stream.
-- Privileges: EXECUTE on the handler.
CREATE FUNCTION cqrs_stream(command_name text, payload jsonb DEFAULT '{}') RETURNS SETOF jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_stream(text, jsonb) IS 'dispatches a command whose handler returns a set';

-- For a chain's handler: passes the command on to the next one. Returns NULL, for
-- "RETURN cqrs_next()": once the handler returns, its answer counts for nothing,
-- and all that it did is rolled back, events included. It stays passed on even
-- if the handler rolls back a block in which it called this. A handler that
-- answers NULL without it has answered.
-- Errors: 55000 the innermost handler is not one of a chain; so also the handler
-- of a command that has no other.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION cqrs_next() RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_next() IS 'passes a command on to the next handler of its chain';

-- Dispatches a query: calls its handler, and returns its answer, as
-- cqrs_send() does, but neither the handler nor what it calls may write or emit,
-- in a transaction that writes too. What the server forbids in a read-only
-- transaction is an error; what it allows there is allowed here: to write
-- temporary tables, pg_notify(), advisory locks, settings and, before version
-- 16, large objects.
--   query_name  a registered query
--   payload     as of cqrs_send()
-- Errors: as of cqrs_send(); 42809 it is not a query; 25006 something below
-- tried to write.
-- Locks: a subtransaction is held meanwhile, unless the transaction is
-- read-only itself.
-- Privileges: EXECUTE on the handler.
CREATE FUNCTION cqrs_query(query_name text, payload jsonb DEFAULT '{}') RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_query(text, jsonb) IS 'dispatches a query, which writes nothing, to its handler';

-- ----------------------------------------------------------------------
-- cqrs_request: a command or a query, as middleware sees it
--
-- kind     command or query
-- name     its registered name
-- payload  JSON object; of a command that was sent as a composite value, what
--          to_jsonb() makes of it; what the middleware further out passed on
-- ----------------------------------------------------------------------
CREATE TYPE cqrs_request AS (
	kind	text,
	name	text,
	payload	jsonb
);
COMMENT ON TYPE cqrs_request IS 'a command or a query, as middleware sees it';

-- Has a function called around each command and query, whoever sends it, also
-- within handlers and middleware; around a deferred one when it is executed. It returns the answer; to
-- have the command handled, it calls cqrs_proceed(). It runs in the sender's
-- transaction, outside of what makes a query read-only, and outside of chains
-- and fallbacks; a fallback of its own, if it has one, is not called. It is not
-- called for streams, for handlers of events, or for a repeat with an
-- idempotency key. A transaction that is open while it is registered has it
-- called from its next command on.
-- cqrs_context() in it is that of the command, and the events that it emits were
-- caused by that; they are handled, as all others, when the outermost command is
-- over.
--   handler   a function with one argument, cqrs_request, that returns jsonb
--   priority  those with a smaller one are further out; of those with the same
--             one, those that were registered first
-- Errors: 42710 it is a middleware already; 42883 no such function; 42P13 a
-- function of another form; 42501 the caller may not execute it; 22004.
-- Locks: ROW EXCLUSIVE on cqrs.middleware.
-- Privileges: EXECUTE, not granted to PUBLIC. Whoever sends a command needs
-- EXECUTE on each middleware that is called.
CREATE FUNCTION cqrs_register_middleware(handler regprocedure, priority integer DEFAULT 0) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_register_middleware(regprocedure, integer) IS 'has a function called around each command and query';

-- Removes a middleware.
--   handler  the function; one that is gone as cqrs.middleware names it
-- Errors: 42704 it is none; 22004.
-- Locks and privileges: as cqrs_register_middleware().
CREATE FUNCTION cqrs_unregister_middleware(handler text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unregister_middleware(text) IS 'removes a middleware';

-- For a middleware: goes on to the next one, in the end to the handlers, and
-- returns their answer. It may be called several times; what was done before an
-- error in it is undone by whoever catches that, as always. What is further in
-- runs as the current user; but if that is the owner of the middleware, which is
-- SECURITY DEFINER, as the role, and with the search_path, that the middleware
-- was called with: then what is SET further in ends there, and ROLE cannot be.
--   payload  JSON object: what is further in gets this one, which is converted as
--            any payload; NULL: the one that the middleware was called with
-- Errors: 55000 it is not called by a middleware, but outside of any dispatch, or
-- by a handler; 22023 payload; what cqrs_send() raises.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION cqrs_proceed(payload jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_proceed(jsonb) IS 'goes on from a middleware to what is further in';

-- A middleware, to be registered: writes a line to the server's log after each
-- command and query, at level LOG: its kind, name, and id, how long what is
-- further in took, in milliseconds, and the SQLSTATE of its error. Never the
-- payload. Errors: 55000 as cqrs_proceed(). Privileges: EXECUTE, granted to
-- PUBLIC.
CREATE FUNCTION cqrs_log_dispatch(request cqrs_request) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_log_dispatch(cqrs_request) IS 'a middleware that logs commands and queries';

-- ----------------------------------------------------------------------
-- cqrs_context: what is being handled
--
-- kind            command, query, stream or event
-- name            its registered name
-- id              UUID v7: the event's id; of what was sent, one made for it
-- correlation_id  the same for all that has one origin: the header of that name
--                 of an event; of what was sent by a handler, the handler's;
--                 otherwise the setting cqrs_outbox.correlation_id, or if that
--                 is empty, its own id
-- causation_id    id of what was handled when it was sent or emitted, or NULL:
--                 nothing was
-- attempt         which it is of a subscription's deliveries of the event; else 1
-- traceparent     the header of an event, otherwise the setting, or NULL
-- caller          the role that sent it, or has the event handled, which for a
--                 subscription is its owner; in a SECURITY DEFINER function,
--                 not the current user
-- ----------------------------------------------------------------------
CREATE TYPE cqrs_context AS (
	kind			text,
	name			text,
	id				uuid,
	correlation_id	text,
	causation_id	text,
	attempt			integer,
	traceparent		text,
	caller			text
);
COMMENT ON TYPE cqrs_context IS 'what is being handled';

-- What the calling handler, or middleware, handles, or NULL outside of any: inside
-- handlers of commands, queries, streams and events, those of subscriptions too.
CREATE FUNCTION cqrs_context() RETURNS cqrs_context
LANGUAGE C STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_context() IS 'what is being handled';

-- ----------------------------------------------------------------------
-- The outbox
-- ----------------------------------------------------------------------

-- Adds one event to the outbox, and has its handlers called (see
-- cqrs_register_event_handler). It exists if and only if the transaction
-- commits. One without topic is only for the handlers. Every event that is
-- emitted, here and below, has headers that it is not given, unless it is given
-- others of these names, be they null: in a handler, correlation_id and
-- causation_id (see cqrs_context); otherwise correlation_id, if the setting
-- cqrs_outbox.correlation_id is not empty; and traceparent, if the setting
-- cqrs_outbox.traceparent is not.
--   event_name  a registered event type
--   payload     JSON object that fits the payload type; NULL is a tombstone
--   key         events of one key are delivered in order
--   headers     JSON object, or NULL
--   topic       NULL: the event type's
--   event_id    NULL: a new UUID v7
-- Returns the event id.
-- Errors: 42704 not registered, no such topic; 22023 and those of the types'
-- input functions for the payload; 42501; 25006 read-only transaction or
-- standby; 25000 parallel operation; 55000 the topic's tables were altered;
-- 54001 too long a chain of events, each emitted by a handler of the one before
-- (cqrs_outbox.max_event_depth); 42883 a handler is gone; whatever a handler
-- raises.
-- Locks: ROW EXCLUSIVE on the topic's current segment.
-- Privileges: INSERT on cqrs_topics.<topic>; EXECUTE on the handlers, of the
-- role that has them called.
CREATE FUNCTION cqrs_emit(event_name text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
	topic text DEFAULT NULL, event_id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_emit(text, jsonb, text, jsonb, text, uuid) IS 'adds an event to the outbox';

-- Adds many events of one type, in the order of the array.
--   payloads  one element an event
--   keys      NULL, or as many as payloads
-- Returns how many. Errors, locks, privileges: as cqrs_emit(); 2202E for
-- arrays of more than one dimension or of different lengths.
CREATE FUNCTION cqrs_emit_many(event_name text, payloads jsonb[], keys text[] DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_emit_many(text, jsonb[], text[]) IS 'adds many events to the outbox';

-- Change capture: a trigger function that emits the changes of a table, in
-- the transaction that makes them. For AFTER triggers of tables, FOR EACH ROW
-- or with transition tables FOR EACH STATEMENT (which costs less for many
-- rows); also constraint triggers. Arguments, all of them strings:
--   event name   a registered event type; its payload type decides:
--                jsonb: an envelope, {"op": "insert", "update", "delete" or
--                "truncate", "schema", "table", "old": row, "new": row}, the
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
CREATE FUNCTION cqrs_emit_trigger() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_emit_trigger() IS 'emits the changes of a table';

-- The outbox in delivery order.
--   topic           NULL: every topic that the caller may read
--   batch_size      at most so many events, at least 1
--   status          NULL: what is not delivered to every subscription yet (of
--                   a topic without subscriptions: everything); 'new',
--                   'not_produced', 'produced', 'dead'; 'all'
--   event_name      only these
--   after_position  only events with a higher position
-- Errors: 42704 no such topic; 22023 batch_size, status; 42501; 55000.
-- Locks: ACCESS SHARE on the topics' segments.
-- Privileges: SELECT on cqrs_topics.<topic>.
CREATE FUNCTION cqrs_events(topic text DEFAULT NULL, batch_size integer DEFAULT 100, status text DEFAULT NULL,
	event_name text DEFAULT NULL, after_position bigint DEFAULT NULL) RETURNS SETOF cqrs_event
LANGUAGE C STABLE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_events(text, integer, text, text, bigint) IS 'events of the outbox in delivery order';

-- ----------------------------------------------------------------------
-- Subscriptions
-- ----------------------------------------------------------------------

-- Subscribes to topics. The caller becomes the subscription's owner: he owns
-- view cqrs_subscriptions.<subscription>, which shows its row of
-- cqrs_subscription_status, and who owns that owns the subscription. ALTER VIEW
-- ... OWNER TO and REASSIGN OWNED give it to another role, from the next batch
-- on; DROP ROLE is refused. If the view is dropped, nothing is delivered.
--   subscription       name, 1 to 63 bytes
--   topics             one or more topics
--   handler            a function with one argument of type cqrs_event, called
--                      for each event in the transaction that moves the
--                      cursor; NULL without server: read with cqrs_receive()
--                      and cqrs_ack()
--   start              'earliest': from the oldest event retained; if a topic
--                      was restored from a dump, nothing before cqrs_adopt();
--                      'latest': from what commits after this call
--   partitions         1 to 1000: by their keys, events are spread over so many
--                      cursors, which are delivered side by side; events
--                      without a key are in the first
--   max_attempts       so often an event is tried, then it is a dead letter;
--                      0: for ever
--   retry_delay        after the first failure; doubles with each further one,
--                      and varies by a quarter
--   max_retry_delay    ... up to this
--   handler_timeout    the longest that the handler may take for one event when
--                      the worker calls it, or that a broker may confirm
--                      nothing; 0: no limit
--   max_retained_size  suspended when it keeps more bytes of events than this
--                      from being truncated; 0: no limit
--   max_retained_age   ... or events older than this; 0: no limit
--   server             the foreign server of a broker, made with the wrapper of a
--                      broker module; not together with a handler
--   format             of the messages to it. 'cqrs', the default: the envelope
--                      of python-cqrs in JSON; 'cloudevents': CloudEvents 1.0 in
--                      binary mode; 'raw': the payload alone, the rest in
--                      headers
--   transaction        'batch': the handler is called for up to 1000 events in a
--                      transaction, which it can tell by nothing but now() and
--                      the transaction's id; 'event': for each in one of its
--                      own, which is slower; see docs/subscriptions.md
--   strict_key_order   never have two events of one topic and key (or of one
--                      topic, without keys) on their way to the broker
--                      together. Otherwise, if the broker rejects one, the next
--                      ones of its key may have got there before it is tried
--                      again
-- Errors: 42710 exists; 42P07 a relation of that name is in schema
-- cqrs_subscriptions; 42704 no such topic, or server; 42883, 42P13 handler;
-- 42809 the server is not one of a broker; 55000 its module does not fit;
-- 42501 no SELECT on a topic, no EXECUTE on the handler, no USAGE on the
-- server, a handler that belongs neither to the caller nor to a superuser, or
-- a caller without LOGIN (before PostgreSQL 17); 22023 no topics, handler and
-- server, options of the server that are not enough, or another argument out
-- of its range; 22004, 42602, 42622 names.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.subscription until the end of the
-- transaction. Until then, nothing of its topics is truncated.
-- Privileges: EXECUTE, not granted to PUBLIC, and the above.
CREATE FUNCTION cqrs_subscribe(subscription text, topics text[], handler regprocedure DEFAULT NULL,
	start text DEFAULT 'earliest', partitions integer DEFAULT 1, max_attempts integer DEFAULT 5,
	retry_delay interval DEFAULT '200 ms', max_retry_delay interval DEFAULT '5 min',
	handler_timeout interval DEFAULT '1 min', max_retained_size bigint DEFAULT 10737418240,
	max_retained_age interval DEFAULT '0', server text DEFAULT NULL, format text DEFAULT NULL,
	strict_key_order boolean DEFAULT false, transaction text DEFAULT 'batch') RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_subscribe(text, text[], regprocedure, text, integer, integer, interval, interval, interval,
	bigint, interval, text, text, boolean, text) IS 'subscribes to topics';

-- Changes settings of a subscription; NULL leaves one as it is. If its view was
-- dropped, makes it again: the caller is the owner then.
--   handler  another handler, for a subscription that has one
--   server   another server, for a subscription that has one; what the first
--            one was given it does not get
--   partitions
--            so many partitions, in a while: what was committed before is
--            delivered in the old ones, and only when all of that is, and
--            nothing is handed out under a lease, the new ones begin. So each
--            key stays in order. Until then, next_partitions in
--            cqrs_subscription_status is not NULL. Another call changes the
--            number to be; with the present one, nothing is changed
--   others   as in cqrs_subscribe()
-- Errors: 42704 does not exist; 42501 not its owner, or for the handler as in
-- cqrs_subscribe(), as for the server; 55000 it has no handler, or no server;
-- 22023 out of its range.
-- Locks: with partitions, those for moving its cursors, until the end of the
-- transaction; it waits for the batches being delivered.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner; to
-- change the handler or the server, being the owner. If there is no owner,
-- membership in the extension's.
CREATE FUNCTION cqrs_alter_subscription(subscription text, handler regprocedure DEFAULT NULL,
	max_attempts integer DEFAULT NULL, retry_delay interval DEFAULT NULL, max_retry_delay interval DEFAULT NULL,
	handler_timeout interval DEFAULT NULL, max_retained_size bigint DEFAULT NULL,
	max_retained_age interval DEFAULT NULL, server text DEFAULT NULL, format text DEFAULT NULL,
	strict_key_order boolean DEFAULT NULL, transaction text DEFAULT NULL, partitions integer DEFAULT NULL) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_alter_subscription(text, regprocedure, integer, interval, interval, interval, bigint, interval,
	text, text, boolean, text, integer) IS 'changes settings of a subscription';

-- In which of so many partitions the events of a key are.
CREATE FUNCTION cqrs.key_partition(key text, partitions integer) RETURNS integer
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'cqrs_key_partition_of';
COMMENT ON FUNCTION cqrs.key_partition(text, integer) IS 'partition of a key';

-- Removes a subscription, with what it has to retry and its dead letters; one
-- that executes commands (see cqrs_enqueue()), with its topic. Waits for the
-- batch being delivered, and with a topic for its emitters; what is on its way
-- to a broker may arrive.
-- Errors: 42704 does not exist; 42501 not its owner; 2BP01 something depends on
-- its view.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner, or,
-- if there is none, in the extension's.
CREATE FUNCTION cqrs_unsubscribe(subscription text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_unsubscribe(text) IS 'removes a subscription';

-- Stops a subscription: nothing is delivered to it, and its events are kept,
-- within max_retained_size and max_retained_age. Waits for the batch being
-- delivered: once it returns, and until cqrs_resume(), no handler runs. What is
-- on its way to a broker arrives, and is recorded. One that is suspended stays
-- so.
-- Errors: 42704 does not exist; 42501 not its owner.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner.
CREATE FUNCTION cqrs_pause(subscription text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_pause(text) IS 'stops delivery to a subscription';

-- Has a subscription that was paused or suspended go on where it was.
-- Returns how many events it missed, because they were truncated while it was
-- suspended; if any, a warning says so too. Errors and privileges: as
-- cqrs_pause().
CREATE FUNCTION cqrs_resume(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_resume(text) IS 'has delivery to a subscription go on';

-- Moves a subscription in the log, to replay or to skip. What it has to retry
-- is forgotten; its dead letters stay. What is on its way to a broker may
-- arrive, and counts for nothing. If its partitions are being changed, they are
-- at once.
--   target  'earliest': to the oldest event retained; 'latest': to what
--           commits after this call; a time: to the first transaction that
--           emitted at that time or later, whose earlier events, and those of
--           later transactions, come with it
-- Errors: 42704 does not exist; 42501 not its owner; 22007 neither of the
-- two, nor a time; 25006 read-only transaction or standby.
-- Locks: those for moving its cursors, until the end of the transaction; until
-- then, nothing of its topics is truncated.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner.
CREATE FUNCTION cqrs_seek(subscription text, target text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_seek(text, text) IS 'moves a subscription in the log';
CREATE FUNCTION cqrs_seek(subscription text, target timestamptz) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_seek_time';
COMMENT ON FUNCTION cqrs_seek(text, timestamptz) IS 'moves a subscription to a time in the log';

-- Waits until a subscription has got what was committed when it was called, or
-- has it parked for a retry, or gave it up.
--   timeout  how long at most
-- Returns false if the time was over before. What the caller's transaction
-- emitted itself is not waited for.
-- Errors: 42704 does not exist; 42501 not its owner; 55000 cqrs_outbox is not
-- in shared_preload_libraries; 22004, 22023 timeout.
-- Privileges: membership in the owner.
CREATE FUNCTION cqrs_wait(subscription text, timeout interval DEFAULT '10 s') RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_wait(text, interval) IS 'waits until a subscription has got what is committed';

-- An event as cqrs_receive() hands it out.
--   attempts   how often it was handed out to be tried, this time included
--   partition  where it is from
--   receipt    of this batch, for cqrs_ack(), cqrs_nack() and cqrs_renew()
CREATE TYPE cqrs_received AS (
	position	bigint,
	event_id	uuid,
	event_name	text,
	topic		text,
	key			text,
	payload		jsonb,
	headers		jsonb,
	emitted_at	timestamptz,
	attempts	integer,
	partition	integer,
	receipt		uuid
);
COMMENT ON TYPE cqrs_received IS 'an event, as cqrs_receive() hands it out';

-- The next events of one partition of a subscription without handler: those
-- that failed, or were not settled, and are due, then new ones; none whose
-- topic and key wait for another. What was committed before the call is
-- found. NULL for an argument means its default.
--   max_events  at most so many, at least 1; a batch may be shorter although
--               more is waiting, also to stay within 16 MB
--   wait        if there is nothing, wait for so long, at most a minute
--   lease       NULL: the partition is this transaction's until its end;
--               otherwise it is the receipt's for so long
--   partition   from this one; NULL: from one that has something
-- A partition that another transaction, or a lease, has is passed by. What is
-- not settled with cqrs_ack() or cqrs_nack() when the transaction, or the
-- lease, is over comes again; if the lease on a batch runs out twice, one
-- event at a time, and each time is an attempt.
-- Errors: 42704 does not exist; 42501 not granted; 55000 it has a handler, is
-- paused or suspended, has no owner, or was restored from a dump, or wait without
-- cqrs_outbox in shared_preload_libraries; 22023 an argument; 25006 read-only
-- transaction or standby.
-- Locks: the partition's until the end of the transaction, if events are
-- returned. It waits for no lock. While it waits it keeps the statement's
-- snapshot, as any statement does.
-- Privileges: membership in the subscription's owner, or UPDATE on its view
-- cqrs_subscriptions.<subscription>; and SELECT on its topics.
CREATE FUNCTION cqrs_receive(subscription text, max_events integer DEFAULT 100, wait interval DEFAULT '0',
	lease interval DEFAULT NULL, "partition" integer DEFAULT NULL) RETURNS SETOF cqrs_received
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_receive(text, integer, interval, interval, integer) IS 'next events of a subscription';

-- Acknowledges all that this transaction received and has not settled: it does
-- not come again. Returns how many events that were; 0 if it received nothing.
-- Errors: as cqrs_receive(), but not if it is paused; OB003 this transaction
-- has not called cqrs_receive(), or what it received was moved away.
-- Privileges: membership in the subscription's owner, or UPDATE on its view.
CREATE FUNCTION cqrs_ack(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_ack(text) IS 'acknowledges what this transaction received';

-- Acknowledges exactly these events.
--   positions  of events that the receipt covers; NULL: none
--   receipt    they were received with; NULL: this transaction's
-- Returns how many were not settled before. Errors: as above; OB003 the
-- receipt is not the newest of its partition any more, or not valid for
-- another reason; 22023 a position that it does not cover; 22004 a position
-- is NULL.
-- Locks: the partition's until the end of the transaction; it waits for that
-- only while the lease lasts.
-- Privileges: membership in the subscription's owner, or UPDATE on its view.
CREATE FUNCTION cqrs_ack(subscription text, positions bigint[], receipt uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_ack_positions';
COMMENT ON FUNCTION cqrs_ack(text, bigint[], uuid) IS 'acknowledges received events';

-- Says that these events could not be processed: they are received again
-- later, or, after max_attempts, are dead letters. Until then, later events of
-- their topics and keys wait, unless they are acknowledged; others go on.
-- Nothing is acknowledged by this.
--   positions    of events that the receipt covers; NULL: none
--   error        why, for people to read
--   retry_after  not again before; NULL: as the subscription's settings say
--   give_up      no more attempts
--   receipt      they were received with; NULL: this transaction's
-- Returns how many were not settled before. Errors, locks, privileges: as
-- cqrs_ack().
CREATE FUNCTION cqrs_nack(subscription text, positions bigint[], error text DEFAULT NULL,
	retry_after interval DEFAULT NULL, give_up boolean DEFAULT false, receipt uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_nack(text, bigint[], text, interval, boolean, uuid) IS 'has received events tried again later';

-- Prolongs a lease.
--   lease  from now on; '0' gives the partition back, with what is not settled
-- Returns until when it is leased. Errors, locks, privileges: as cqrs_ack();
-- 22004 NULL, 22023 a negative lease.
CREATE FUNCTION cqrs_renew(subscription text, receipt uuid, lease interval) RETURNS timestamptz
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_renew(text, uuid, interval) IS 'prolongs the lease of received events';

-- The events that a subscription gave up on, by position. topic is NULL if it
-- was dropped; error is the last one's message.
-- Errors: 42704 does not exist; 42501 not its owner.
-- Privileges: membership in the subscription's owner.
CREATE FUNCTION cqrs_dead_letters(subscription text, OUT "position" bigint, OUT event_id uuid, OUT event_name text,
	OUT topic text, OUT key text, OUT payload jsonb, OUT headers jsonb, OUT emitted_at timestamptz,
	OUT attempts integer, OUT died_at timestamptz, OUT sqlstate text, OUT error text) RETURNS SETOF record
LANGUAGE C STABLE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_dead_letters(text) IS 'events that a subscription gave up on';

-- Has dead letters delivered after all, in order of their positions, with all
-- their attempts. Later events of the same keys, as far as they were delivered
-- meanwhile, are not delivered again.
--   event_id  only this one; NULL: all
-- Returns how many. Errors: 42704 the subscription, or a dead letter of that
-- id, does not exist; 42501 not its owner; 55000 restored from a dump.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner.
CREATE FUNCTION cqrs_redrive(subscription text, event_id uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_redrive(text, uuid) IS 'has dead letters delivered after all';

-- Deletes dead letters: this one, or all. Returns how many. Errors and
-- privileges: as cqrs_redrive().
CREATE FUNCTION cqrs_discard(subscription text, event_id uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_discard(text, uuid) IS 'deletes dead letters';

-- Records a snapshot: what has committed can be received from then on. The
-- worker does this by itself, where there is a subscription without handler.
-- Returns the tick id. Errors: 25001 in a transaction block (it would hold
-- up every delivery until its end); 25006 read-only transaction or standby.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_tick() RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_tick() IS 'records a snapshot, up to which cqrs_receive() reaches';

-- Delivers to a subscription's handler what is committed (in a REPEATABLE
-- READ transaction: what the newest tick that it sees shows), and what is to
-- be retried by now, in the caller's transaction. The worker does this by
-- itself. An event that the handler raises an error for is rolled back by
-- itself, and tried again, as the worker would; there is a warning.
-- Returns the number of events. Errors: 42704 does not exist; 55000 it has no
-- handler or no owner, is paused or suspended, or was restored from a dump; 42501 the
-- caller is not its owner; 55006 called by its own handler; 25006 read-only
-- transaction or standby; what the handler raises, if its class is 53, 57 or
-- 58: no event's fault.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC, and being the owner.
CREATE FUNCTION cqrs_drain(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_drain(text) IS 'delivers to a subscription''s handler by hand';

-- Makes the events of topics that were restored from a dump ordinary events of
-- this cluster, and has the restored subscriptions go on: first with exactly
-- what they had not got when the dump was made, then with what was emitted
-- here since. Until then, nothing is delivered to them. Subscriptions that
-- were made after the restore get what was restored if they start at
-- 'earliest', and nothing of it if they start at 'latest'. With nothing to
-- adopt, does nothing.
--
-- In a copy that CREATE DATABASE ... TEMPLATE made, where nothing is delivered
-- before, it has the copy's subscriptions go on where they were.
--
-- Takes what is in the topics' tables for events, whoever put it there; of
-- topics that were made here, nothing. Writes each restored row anew.
--
-- Returns the subscriptions that it had go on, and how many restored events
-- each is about to get; events that wait in cqrs.retry are not counted.
-- Errors: 55000 a subscription's cursor was not restored, the topic's tables
-- were altered, or topics hold events that were adopted before; 54000 too
-- many subscriptions at different places; 25006 read-only transaction or
-- standby.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.topic; nobody subscribes to these topics
-- until the end of the transaction. Emitters do not wait.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_adopt(OUT subscription text, OUT events bigint) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_adopt() IS 'makes restored events ordinary events of this cluster';

-- ----------------------------------------------------------------------
-- Deferred commands
-- ----------------------------------------------------------------------

-- Enqueues a command: once the transaction has committed, and not before
-- run_at, the worker executes it, as cqrs_send() would, but in a transaction of
-- its own, as the role that enqueued it, with search_path pg_catalog. Its
-- answer is lost. In its handler, the id in cqrs_context() is its command id;
-- what was being handled when it was enqueued is its cause; attempt is which it
-- is.
--
-- It is delivered like an event to a subscription: of a topic, to a
-- subscription, both made when a role first enqueues, and named
-- commands_of_<role>, or with a number behind that. So one that fails is tried
-- again, after the same delays, with the same number of attempts, and is a dead
-- letter in the end; cqrs_alter_subscription(), cqrs_pause(),
-- cqrs_dead_letters(), cqrs_redrive(), cqrs_drain() and cqrs_wait() are used with
-- it. It keeps its events whatever their size, until cqrs_alter_subscription()
-- gives it a limit. A role's commands are executed one after the other.
-- cqrs_unsubscribe() drops the topic, too, with what is in it and what was
-- enqueued for later; the next cqrs_enqueue() makes both anew. Who is made the
-- owner of the subscription's view does not get the commands: they are executed
-- as the role that enqueued them, or not at all, unless the extension's owner
-- says otherwise, by GRANT SELECT ON the topic TO the owner WITH GRANT OPTION.
--   command_name  a registered command
--   payload       JSON object; must fit the handlers, as of now
--   key           while one waits to be tried again, later ones of its key wait
--                 behind it; NULL: nobody waits for anybody. Its event has its
--                 command id as key
--   run_at        in the past: at once. Those for the same time are executed in
--                 the order in which they were enqueued; a command for now comes
--                 before one whose time has come just now
-- Returns the command id, a UUID v7.
-- Errors: as of cqrs_send(); 42883 or 42501 of any handler of a chain; 22004,
-- 22008 a run_at that is NULL, or infinite; 25006 read-only transaction or
-- standby, or in a query; 25000 parallel operation. The first time, 42501 the
-- role has no LOGIN (before PostgreSQL 17).
-- Locks: ROW EXCLUSIVE on the topic's current segment, or on
-- cqrs.scheduled_command. The first time, SHARE ROW EXCLUSIVE on
-- cqrs.subscription and cqrs.topic until the end of the transaction.
-- Privileges: EXECUTE on the handlers; checked again when it is executed.
CREATE FUNCTION cqrs_enqueue(command_name text, payload jsonb DEFAULT '{}', key text DEFAULT NULL,
	run_at timestamptz DEFAULT now()) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_enqueue(text, jsonb, text, timestamptz) IS 'has a command executed after the commit, or later';

-- Cancels a command that was enqueued for later, and is not in the outbox yet.
-- Returns false if there is none of that id: its time has come, it was
-- cancelled already, or never was.
-- Errors: 42501 it belongs to another role; 22004; 25006 read-only transaction
-- or standby.
-- Locks: the command's row. Waits for who is cancelling it, or putting it into
-- the outbox.
-- Privileges: membership in the role that enqueued it, or, if it is nobody's any
-- more, in the extension's owner.
CREATE FUNCTION cqrs_cancel_command(command_id uuid) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_cancel_command(uuid) IS 'cancels a command that was enqueued for later';

-- Who owns a subscription, and its view; NULL, both: nobody does, and nothing is
-- delivered.
CREATE FUNCTION cqrs.subscription_owner(subscription_id integer, OUT owner oid, OUT view oid)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_subscription_owner';
COMMENT ON FUNCTION cqrs.subscription_owner(integer) IS 'owner of a subscription';

-- Commands that were enqueued for later, and are not in the outbox yet, of roles
-- that the reader is a member of. Columns: see cqrs.scheduled_command.
--   owner  who enqueued it
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW @extschema@.cqrs_scheduled_commands WITH (security_barrier) AS
SELECT c.command_id,
	   c.command_name,
	   pg_get_userbyid(o.owner) AS owner,
	   c.key,
	   c.run_at,
	   c.payload,
	   c.enqueued_at
FROM cqrs.scheduled_command c
JOIN cqrs.subscription_topic t USING (topic_id)
JOIN cqrs.subscription s ON s.subscription_id = t.subscription_id AND s.runs_commands
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
WHERE pg_has_role(current_user, o.owner, 'USAGE');
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs_scheduled_commands IS 'commands that were enqueued for later';

-- Puts the commands whose time has come, everybody's, into the outbox; once the
-- transaction has committed, cqrs_drain() executes them. The worker does this
-- by itself. Those that somebody is cancelling, or whose topic is locked, are
-- left for the next time. Returns how many.
-- Errors: 55000 a topic's tables were altered; 25006 read-only transaction or
-- standby.
-- Locks: the commands' rows, and ROW EXCLUSIVE on the topics' current segments,
-- until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_release_commands() RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_release_commands() IS 'puts commands whose time has come into the outbox, by hand';

-- Handler of the subscriptions that execute commands: executes the enqueued
-- command that is being delivered.
-- Errors: 55000 none is, as whenever anybody but the delivery calls it; else as
-- of cqrs_send().
-- Privileges: EXECUTE is PUBLIC's, as roles have their commands delivered.
CREATE FUNCTION cqrs.run_command(event cqrs_event) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_run_command';
COMMENT ON FUNCTION cqrs.run_command(cqrs_event) IS 'executes an enqueued command, when it is delivered';

-- ----------------------------------------------------------------------
-- Retention
-- ----------------------------------------------------------------------

-- Has topics go on to their next segment, truncates the segments whose
-- retention is over and which every subscription has got, and suspends the
-- subscriptions that are past a limit of theirs. Truncates the tables of
-- idempotency keys that are old enough. The worker does this by itself.
--   topic  only this topic and its subscriptions; NULL: all, and the keys
-- Returns what it did, and what it could not do:
--   topic    NULL for 'suspended', and for idempotency keys
--   action   rotated, truncated, held (the segment holds events but is not
--            truncated), suspended
--   segment  the one that became the current one, was truncated or is held;
--            of idempotency keys, the table's number
--   detail   held: by what; suspended: the subscription; 'idempotency keys'
--   pid      held by a lock: of this process, unless of a prepared
--            transaction
-- Errors: 42704 no such topic; 25001 in a transaction block (it would keep
-- everybody from reading what it truncated until its end); 25006 read-only
-- transaction or standby; 55000 the topic's tables were altered.
-- Locks: ACCESS EXCLUSIVE on the segments that are truncated, until the end of
-- the statement. None is waited for.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION cqrs_maintain(topic text DEFAULT NULL, OUT topic text, OUT action text, OUT segment integer,
	OUT detail text, OUT pid integer) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_maintain(text) IS 'rotates and truncates segments by hand';

-- ----------------------------------------------------------------------
-- Status
-- ----------------------------------------------------------------------

-- What a topic keeps, seen by the caller's snapshot. All is read off a few
-- pages, however many events there are. All NULL if the caller may not know;
-- all but held_by, if a table of the topic is locked, missing or altered.
--   events             estimate: pages times the rows of a few of them;
--                      includes those of transactions that aborted or are in
--                      progress
--   bytes              of tables and indexes
--   oldest_emitted_at  when the first event of the oldest segment was emitted
--   segments           how many are not empty
--   held_by            what keeps the oldest segment but the current one from
--                      being truncated, or NULL: nothing, or there is none:
--                      retention; restore (until cqrs_adopt());
--                      subscription "..."; lock of pid ...; lock of a
--                      prepared transaction; change of the topic or its
--                      subscriptions (it is underway)
--   held_by_pid        process that has the lock; NULL otherwise, and for a
--                      prepared transaction
--   held_since         retention: since another segment is the current one;
--                      subscription: since its cursor moved last
CREATE FUNCTION cqrs.topic_progress(topic_id integer,
	OUT events bigint, OUT bytes bigint, OUT oldest_emitted_at timestamptz, OUT segments integer,
	OUT held_by text, OUT held_by_pid integer, OUT held_since timestamptz)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_topic_progress';
COMMENT ON FUNCTION cqrs.topic_progress(integer) IS 'what a topic keeps, and why';

-- Topics that the reader has SELECT on or, as a member of pg_monitor, all.
-- Columns: see cqrs.topic and cqrs.topic_progress(); held_since is, with a
-- lock, when the transaction that has it started, if the reader may know.
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW @extschema@.cqrs_topic_status WITH (security_barrier) AS
SELECT t.topic,
	   p.events,
	   p.bytes,
	   p.oldest_emitted_at,
	   p.segments,
	   t.current_segment,
	   t.retention,
	   p.held_by,
	   p.held_by_pid,
	   coalesce(p.held_since, a.xact_start) AS held_since
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.topic_progress(t.topic_id) p
LEFT JOIN pg_stat_activity a ON a.pid = p.held_by_pid
WHERE p.segments IS NOT NULL OR p.held_by IS NOT NULL;
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs_topic_status IS 'size of each topic, and what keeps it from being truncated';

-- How far a subscription is, seen by the caller's snapshot. However many events
-- wait, this costs the same: no more than 10,000 are looked at for each
-- partition, 100,000 in all.
--   lag_events       committed events not delivered: exact up to that, beyond
--                    an upper bound (with several partitions, an estimate of
--                    one). NULL, as are the next two, if they cannot be
--                    counted: a topic's table was altered or is locked
--   lag_seconds      age of the oldest of them, in seconds; 0 if there is
--                    none. An upper bound while much of a large window was
--                    delivered
--   lag_bytes        their size on disk, estimated from those looked at
--   events_a_second  at which they were delivered lately
--   pid              of a process that delivers, or NULL
--   state            idle, delivering, waiting to retry, no worker, paused,
--                    suspended, restored, or copied
CREATE FUNCTION cqrs.subscription_progress(subscription_id integer,
	OUT lag_events bigint, OUT lag_seconds double precision, OUT lag_bytes bigint,
	OUT events_a_second double precision, OUT pid integer, OUT state text)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_subscription_progress';
COMMENT ON FUNCTION cqrs.subscription_progress(integer) IS 'progress of a subscription';

-- Who has the locks for moving a subscription's cursors, other than the caller.
--   partition    whose cursor; no row if nobody has its lock
--   pid          the process, or NULL: a prepared transaction has it ...
--   transaction  ... of this id
CREATE FUNCTION cqrs.cursor_holders(subscription_id integer,
	OUT "partition" integer, OUT pid integer, OUT transaction xid) RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'cqrs_cursor_holders';
COMMENT ON FUNCTION cqrs.cursor_holders(integer) IS 'who has the locks of a subscription''s cursors';

-- The same, with what the reader may know of them from pg_stat_activity: with
-- the role's own, and to members of pg_monitor, everything, otherwise NULL.
--   since  when the transaction began, or was prepared
--   gid    of a prepared transaction
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW cqrs.cursor_holder WITH (security_barrier) AS
SELECT s.subscription_id,
	   h.partition,
	   h.pid,
	   coalesce(a.xact_start, a.query_start, x.prepared) AS since,
	   coalesce(a.backend_type = 'cqrs_outbox worker', false) AS is_worker,
	   a.usename,
	   a.application_name,
	   a.state,
	   x.gid
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.cursor_holders(s.subscription_id) h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN pg_prepared_xacts x ON x.transaction = h.transaction;
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs.cursor_holder IS 'who has the locks of cursors';

-- Subscriptions that the reader owns, or has SELECT on the view of, or, as a
-- member of pg_monitor, all.
--   owner     NULL: nobody, and nothing is delivered; see owner_missing in
--             cqrs_health()
--   next_partitions
--             so many are asked for; NULL: those it has
--   held_by_pid, held_since
--             who has had the lock of a cursor for a second or more, so that
--             nobody else can deliver: a client in an open transaction, a
--             handler at work; and since when, if the reader may know. Of
--             several, the first. With held_since alone, a prepared
--             transaction
--   retrying  events that failed and are tried again
--   waiting   events that are parked, and have not failed: they wait for one
--             that has, or were handed out, and are not settled
--   dead      dead letters; of these three, 10,000 means as many or more
--   last_error ..
--             of what failed last, be it an event, or the whole subscription
--             (then last_error_position is NULL); of more than 10,000 events
--             that are tried again, so many are looked at
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW @extschema@.cqrs_subscription_status WITH (security_barrier) AS
SELECT s.subscription,
	   ARRAY(SELECT t.topic
			 FROM cqrs.subscription_topic st JOIN cqrs.topic t USING (topic_id)
			 WHERE st.subscription_id = s.subscription_id
			 ORDER BY t.topic) AS topics,
	   CASE WHEN s.server IS NOT NULL THEN 'broker' WHEN s.handler IS NOT NULL THEN 'handler' ELSE 'pull' END AS kind,
	   s.handler,
	   s.server,
	   s.format,
	   pg_get_userbyid(o.owner) AS owner,
	   s.partitions,
	   s.next_partitions,
	   p.state,
	   s.state_since,
	   s.state_reason,
	   s.missed_events,
	   p.lag_events,
	   p.lag_seconds,
	   p.lag_bytes,
	   p.events_a_second,
	   p.pid,
	   h.pid AS held_by_pid,
	   h.since AS held_since,
	   r.retrying,
	   r.waiting,
	   (SELECT count(*)
		FROM (SELECT FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id LIMIT 10000) d) AS dead,
	   r.retry_at,
	   e.failed_at AS last_error_at,
	   e.position AS last_error_position,
	   e.sqlstate AS last_error_sqlstate,
	   e.message AS last_error
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
CROSS JOIN LATERAL cqrs.subscription_progress(s.subscription_id) p
CROSS JOIN LATERAL (
	SELECT (SELECT count(*)
			FROM (SELECT FROM cqrs.retry r
				  WHERE r.subscription_id = s.subscription_id AND attempts > 0 LIMIT 10000) r) AS retrying,
		   (SELECT count(*)
			FROM (SELECT FROM cqrs.retry r
				  WHERE r.subscription_id = s.subscription_id AND attempts = 0 LIMIT 10000) r) AS waiting,
		   (SELECT min(r.due_at)
			FROM generate_series(0, s.partitions - 1) part
			CROSS JOIN LATERAL (
				SELECT due_at FROM cqrs.retry r
				WHERE r.subscription_id = s.subscription_id AND r.partition = part
					  AND due_at IS NOT NULL AND attempts > 0
				ORDER BY due_at LIMIT 1) r) AS retry_at) r
LEFT JOIN LATERAL (
	SELECT h.pid, h.since
	FROM cqrs.cursor_holder h
	WHERE h.subscription_id = s.subscription_id
		  AND coalesce(h.since <= clock_timestamp() - interval '1 s', true)
	ORDER BY h.since LIMIT 1) h ON true
LEFT JOIN LATERAL (
	SELECT failed_at, NULL::bigint AS position, sqlstate, message
	FROM cqrs.failure f WHERE f.subscription_id = s.subscription_id
	UNION ALL
	(SELECT failed_at, position, sqlstate, message
	 FROM cqrs.retry r WHERE r.subscription_id = s.subscription_id AND attempts > 0 LIMIT 10000)
	UNION ALL
	(SELECT died_at, position, sqlstate, message
	 FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id
	 ORDER BY d.subscription_id DESC, died_at DESC LIMIT 1)
	ORDER BY 1 DESC LIMIT 1) e ON true
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs_subscription_status IS 'lag, errors and worker of each subscription';

-- The processes of cqrs_outbox in the whole cluster.
--   kind          launcher, manager (one a database) or worker
--   pid           process id
--   database      NULL for the launcher
--   subscription_id, partition
--                 what a worker serves
--   state         starting, idle, delivering or stopping
--   started_at    when it started
-- Errors: 55000 cqrs_outbox is not in shared_preload_libraries.
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs_worker_status(OUT kind text, OUT pid integer, OUT database name, OUT subscription_id integer,
	OUT "partition" integer, OUT state text, OUT started_at timestamptz) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_worker_status() IS 'processes of cqrs_outbox';

-- What is wrong here that no table shows; see cqrs_health(). Nothing is waited
-- for, and nothing that is broken raises an error.
--   since  since when, if it matters only after a while
--   pid    a process whose transaction is to blame, if it matters only after a
--          while
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs.check(OUT severity text, OUT problem text, OUT object text, OUT detail text, OUT hint text,
	OUT since timestamptz, OUT pid integer) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'cqrs_check';
COMMENT ON FUNCTION cqrs.check() IS 'problems that no table shows';

-- Are library and extension of one version?
CREATE FUNCTION cqrs.usable() RETURNS boolean
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_usable';
COMMENT ON FUNCTION cqrs.usable() IS 'whether library and extension fit each other';

-- What may be wrong here, for cqrs_health() to choose from. It is a view so
-- that tables are read with the extension's privileges, and it does not depend
-- on the reader's search_path.
--   lag   a problem only if this is more than what the reader allows ...
--   held  ... or this; NULL: it is one in any case
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE VIEW cqrs.problem WITH (security_barrier) AS
SELECT c.severity, c.problem, c.object, c.detail, c.hint,
	   NULL::interval AS lag,
	   clock_timestamp() - coalesce(c.since, a.xact_start) AS held
FROM cqrs.check() c
LEFT JOIN pg_stat_activity a ON a.pid = c.pid
UNION ALL
SELECT c.severity, c.problem, format('subscription "%s"', s.subscription), c.detail, c.hint, c.lag, c.held
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_progress(s.subscription_id) p
CROSS JOIN LATERAL (
	-- nothing is delivered, because somebody or something decided so
	SELECT 'error' AS severity, 'suspended' AS problem,
		   format('It is suspended since %s, %s; it has missed %s events.',
				  s.state_since, s.state_reason, s.missed_events) AS detail,
		   format('SELECT cqrs_resume(%L); -- behind what it missed; see max_retained_size, max_retained_age',
				  s.subscription) AS hint,
		   NULL::interval AS lag, NULL::interval AS held
	WHERE s.state = 'suspended'
	UNION ALL
	SELECT 'notice', 'paused',
		   format('It is paused since %s, %s; its events are kept.', s.state_since, s.state_reason),
		   format('SELECT cqrs_resume(%L);', s.subscription), NULL, NULL
	WHERE s.state = 'paused'
	UNION ALL
	SELECT 'error', 'restored',
		   'It was restored from a dump, or reads a topic that was; nothing is delivered to it.',
		   format('SELECT cqrs_adopt(); -- or cqrs_seek(%L, ''latest''), to pass the restored events by',
				  s.subscription), NULL, NULL
	WHERE p.state = 'restored'
	UNION ALL
	SELECT 'error', 'cursor_missing', 'One of its cursors was not restored.',
		   format('SELECT cqrs_unsubscribe(%L); -- then subscribe again', s.subscription), NULL, NULL
	WHERE p IS NULL
	UNION ALL
	-- or cannot be
	SELECT 'error',
		   -- what may be the server's, or the other side's, and what not
		   CASE WHEN s.handler IS NOT NULL AND left(f.sqlstate, 2) NOT IN ('08', '53', '57', '58', 'XX')
				THEN 'handler_failing' ELSE 'failing' END,
		   format('It failed %s times in a row, and is tried again at %s: %s', f.failures, f.retry_at, f.message),
		   'It is tried again by itself; remove the cause of the error.', NULL, NULL
	FROM (SELECT * FROM cqrs.failure f
		  WHERE f.subscription_id = s.subscription_id
		  ORDER BY f.failed_at DESC LIMIT 1) f
	WHERE s.state = 'active'
	UNION ALL
	-- or is late
	SELECT 'warning', 'late',
		   format('%s events wait, the first since %s.', p.lag_events,
				  date_trunc('second', clock_timestamp() - make_interval(secs => p.lag_seconds))),
		   CASE WHEN s.server IS NOT NULL THEN 'See its row in cqrs_subscription_status: its worker, and what the broker said last.'
				WHEN s.handler IS NULL THEN 'See whether its clients receive and acknowledge.'
				ELSE 'See its row in cqrs_subscription_status: whether its handler is at work, or waits.' END,
		   make_interval(secs => p.lag_seconds), NULL
	WHERE s.state = 'active' AND p.lag_events > 0
	UNION ALL
	SELECT 'warning', 'retrying',
		   format('%s events%s failed and are tried again, the first emitted at %s, the last with: %s',
				  r.events, CASE r.events WHEN 10000 THEN ' or more' END, r.emitted_at, r.message),
		   'Remove the cause of the error; after max_attempts, they are dead letters.',
		   clock_timestamp() - r.emitted_at, NULL
	FROM (SELECT count(*) AS events, min(emitted_at) AS emitted_at,
				 (array_agg(message ORDER BY failed_at DESC))[1] AS message
		  FROM (SELECT emitted_at, failed_at, message FROM cqrs.retry r
				WHERE r.subscription_id = s.subscription_id AND r.attempts > 0 LIMIT 10000) r) r
	WHERE r.events > 0
	UNION ALL
	SELECT 'warning', 'dead_letters',
		   format('It gave up on %s events%s.', d.events, CASE d.events WHEN 10000 THEN ' or more' END),
		   format('SELECT * FROM cqrs_dead_letters(%1$L); -- then cqrs_redrive(%1$L) or cqrs_discard(%1$L)',
				  s.subscription), NULL, NULL
	FROM (SELECT count(*) AS events
		  FROM (SELECT FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id LIMIT 10000) d) d
	WHERE d.events > 0
	UNION ALL
	-- or does not get the partitions that it is to have
	SELECT 'warning', 'partitions_changing',
		   format('Since %s it is to have %s partitions instead of %s; it waits for partition %s: %s', s.epoch_since,
				  s.next_partitions, s.partitions, w.partition,
				  CASE WHEN w.partition IS NULL THEN 'their locks, or those of its topics, are not free.'
					   WHEN w.leased_until > clock_timestamp() THEN format('a client has what is before that until %s.', w.leased_until)
					   ELSE 'not all is delivered that was committed before.' END),
		   CASE WHEN s.state <> 'active' THEN format('SELECT cqrs_resume(%L);', s.subscription)
				ELSE format('SELECT cqrs_alter_subscription(%L, partitions => %s); -- to keep those that it has', s.subscription, s.partitions) END,
		   NULL, clock_timestamp() - s.epoch_since
	FROM (SELECT) one
	LEFT JOIN LATERAL (
		SELECT c.partition, c.leased_until
		FROM generate_series(0, s.partitions - 1) n
		CROSS JOIN LATERAL (
			SELECT * FROM cqrs.cursor c
			WHERE c.subscription_id = s.subscription_id AND c.partition = n
			ORDER BY c.seq DESC LIMIT 1) c
		WHERE c.tick_id <> s.epoch_tick OR c.until_tick IS NOT NULL OR c.leased_until > clock_timestamp()
		LIMIT 1) w ON true
	WHERE s.next_partitions IS NOT NULL
	UNION ALL
	-- or is held back
	SELECT 'warning',
		   CASE WHEN h.pid IS NULL THEN 'held_by_prepared'
				WHEN h.is_worker THEN 'handler_slow'
				ELSE 'held_by_client' END,
		   CASE WHEN h.pid IS NULL THEN format('Prepared transaction %L', h.gid)
				WHEN h.is_worker THEN format('Its worker, process %s,', h.pid)
				ELSE format('Process %s (role %s, application "%s", %s)',
							h.pid, h.usename, h.application_name, h.state) END ||
		   format(' has had the lock of partition %s since %s.', h.partition, h.since),
		   CASE WHEN h.pid IS NULL THEN format('COMMIT PREPARED %L; -- or ROLLBACK PREPARED', h.gid)
				WHEN h.is_worker
				THEN format('SELECT pg_blocking_pids(%s); -- whom its handler waits for; handler_timeout limits it', h.pid)
				ELSE format('SELECT pg_terminate_backend(%s); -- unless the client ends its transaction', h.pid) END,
		   NULL, clock_timestamp() - h.since
	FROM cqrs.cursor_holder h
	WHERE h.subscription_id = s.subscription_id AND h.since IS NOT NULL
) c
WHERE (SELECT cqrs.usable())
UNION ALL
-- a command is not executed
SELECT 'error', 'commands_late',
	   CASE WHEN c.owner IS NULL THEN format('commands of topic "%s"', coalesce(c.topic, c.topic_id::text))
			ELSE format('commands of role "%s"', pg_get_userbyid(c.owner)) END,
	   format('%s commands whose time has come are not in the outbox, the first since %s%s.', c.commands, c.run_at,
			  CASE WHEN c.owner IS NULL THEN ': nobody owns them' END),
	   CASE WHEN c.owner IS NULL
			THEN format('SELECT cqrs_cancel_command(command_id) FROM cqrs.scheduled_command WHERE topic_id = %s; -- or see owner_missing',
						c.topic_id)
			ELSE 'See the server''s log, and who has locked the topic''s tables.' END,
	   clock_timestamp() - c.run_at, NULL
FROM (SELECT d.topic_id, t.topic, o.owner, count(*) AS commands, min(d.run_at) AS run_at
	  FROM (SELECT topic_id, run_at FROM cqrs.scheduled_command
			WHERE run_at <= clock_timestamp() ORDER BY run_at LIMIT 10000) d
	  LEFT JOIN cqrs.topic t USING (topic_id)
	  LEFT JOIN (cqrs.subscription_topic st JOIN cqrs.subscription s USING (subscription_id))
			ON st.topic_id = d.topic_id AND s.runs_commands
	  LEFT JOIN LATERAL cqrs.subscription_owner(st.subscription_id) o ON true
	  GROUP BY d.topic_id, t.topic, o.owner) c
WHERE (SELECT cqrs.usable())
UNION ALL
-- a handler is not called
SELECT 'warning', 'breaker_open', format('handler %s', b.handler),
	   format('It failed %s times in a row; since %s, its fallback %s is called instead.',
			  b.failures, b.opened_at, b.fallback),
	   format('Remove the cause of its errors; it is tried again at %s.', b.retry_at), NULL, NULL
FROM @extschema@.cqrs_breaker_status b
WHERE b.state <> 'closed' AND (SELECT cqrs.usable())
UNION ALL
-- space is not freed
SELECT 'notice', 'truncation_held', format('topic "%s"', t.topic),
	   format('A segment that nobody needs any more cannot be truncated: %s.', p.held_by),
	   CASE WHEN p.held_by_pid IS NULL THEN 'See pg_prepared_xacts; COMMIT PREPARED or ROLLBACK PREPARED.'
			ELSE format('Let the transaction of process %1$s end, or pg_terminate_backend(%1$s).', p.held_by_pid) END,
	   NULL,
	   clock_timestamp() - coalesce(a.xact_start, (SELECT min(prepared) FROM pg_prepared_xacts
												   WHERE database = current_database()))
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.topic_progress(t.topic_id) p
LEFT JOIN pg_stat_activity a ON a.pid = p.held_by_pid
WHERE p.held_by LIKE 'lock of %' AND (SELECT cqrs.usable());
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON VIEW cqrs.problem IS 'what may be wrong';

-- What is wrong with cqrs_outbox in this database, and what to do about it: a
-- row a problem, errors first; none if all is well. Costs no more with a larger
-- backlog.
--   max_lag   longer than this, an event may not wait
--   max_hold  longer than this, nothing may hold a subscription back: the
--             handler, a client's transaction, the lack of a worker
-- Columns:
--   severity  error: something is not delivered at all; warning: something is
--             late, or was given up; notice: somebody wanted it so
--   problem   its name, which does not change from version to version
--   object    with what
--   detail    what is the matter
--   hint      what to do: a sentence, or a statement to run
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC; and membership in
-- pg_monitor, or being a superuser.
SET LOCAL search_path TO pg_catalog, pg_temp;
CREATE FUNCTION @extschema@.cqrs_health(max_lag interval DEFAULT '5 min', max_hold interval DEFAULT '1 min')
RETURNS TABLE (severity text, problem text, object text, detail text, hint text)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 10
BEGIN ATOMIC
	SELECT p.severity, p.problem, p.object, p.detail, p.hint
	FROM cqrs.problem p
	WHERE coalesce(p.lag > max_lag, true) AND coalesce(p.held > max_hold, true)
	ORDER BY array_position(ARRAY['error', 'warning', 'notice'], p.severity), p.problem, p.object, p.detail;
END;
SET LOCAL search_path TO @extschema@, pg_temp;
COMMENT ON FUNCTION cqrs_health(interval, interval) IS 'what is wrong, and what to do about it';

-- A picture of what is registered, as Mermaid text (https://mermaid.js.org).
-- Equal registries give equal texts.
--   kind  'flowchart': middleware, from the outermost to the innermost; commands,
--         queries and streams, their handlers (a chain's are numbered), and
--         fallbacks (dotted, with the errors that they are called after);
--         events, their handlers, and their topics; subscriptions, and where
--         they deliver to. Arrows to and from topics, where delivery is after
--         the commit, are thick. Which events a handler emits is not registered.
--         'sequence': how one command, query or stream is handled
--   name  flowchart: only what leads to or from the command, query, stream,
--         event, topic, subscription or server of this name; NULL: all.
--         sequence: the command, query or stream
-- Errors: 22023 another kind; 22004 no kind, or no name for a sequence; 42704
-- nothing has that name; 42883 no command, query or stream has.
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs_diagram(kind text DEFAULT 'flowchart', name text DEFAULT NULL) RETURNS text
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION cqrs_diagram(text, text) IS 'a picture of what is registered, as Mermaid text';

-- The extension's scripts, those that update it too, end with this: at commit,
-- tell the launcher that this database has the extension, and everybody to
-- look whether it fits the library.
CREATE FUNCTION cqrs.announce() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_announce';
COMMENT ON FUNCTION cqrs.announce() IS 'asks the launcher to serve this database';

-- ----------------------------------------------------------------------
-- Privileges: what is not granted here is nobody's but the owner's, functions
-- too, whatever ALTER DEFAULT PRIVILEGES says. So what changes configuration is
-- not for everybody, and what is for everybody does not depend on a default.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs.withdraw_privileges() RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_withdraw_privileges';
COMMENT ON FUNCTION cqrs.withdraw_privileges() IS 'withdraws every privilege on the extension''s objects';
SELECT cqrs.withdraw_privileges();

-- Each checks what its caller may do.
GRANT EXECUTE ON FUNCTION
	cqrs_send(text, jsonb, text), cqrs_send(record), cqrs_query(text, jsonb), cqrs_stream(text, jsonb),
	cqrs_dry_run(text, jsonb), cqrs_next(), cqrs_proceed(jsonb), cqrs_log_dispatch(cqrs_request), cqrs_context(),
	cqrs_enqueue(text, jsonb, text, timestamptz), cqrs_cancel_command(uuid), cqrs.run_command(cqrs_event),
	cqrs_emit(text, jsonb, text, jsonb, text, uuid), cqrs_emit_many(text, jsonb[], text[]), cqrs_emit_trigger(),
	cqrs_events(text, integer, text, text, bigint),
	cqrs_wait(text, interval), cqrs_receive(text, integer, interval, interval, integer), cqrs_ack(text),
	cqrs_ack(text, bigint[], uuid), cqrs_nack(text, bigint[], text, interval, boolean, uuid),
	cqrs_renew(text, uuid, interval), cqrs_dead_letters(text)
TO PUBLIC;
GRANT USAGE ON TYPE cqrs_event, cqrs_received, cqrs_request, cqrs_context TO PUBLIC;
GRANT USAGE ON SCHEMA cqrs_topics, cqrs_subscriptions TO PUBLIC;

-- The views show what their reader may know; they call these as the reader.
GRANT SELECT ON cqrs_breaker_status, cqrs_scheduled_commands, cqrs_topic_status, cqrs_subscription_status TO PUBLIC;
GRANT EXECUTE ON FUNCTION
	cqrs.breaker_state(text), cqrs.topic_progress(integer), cqrs.subscription_progress(integer),
	cqrs.subscription_owner(integer), cqrs.cursor_holders(integer), cqrs.usable()
TO PUBLIC;

GRANT EXECUTE ON FUNCTION cqrs_worker_status(), cqrs_health(interval, interval), cqrs.check(), cqrs_diagram(text, text)
TO pg_monitor;
GRANT SELECT ON cqrs.problem TO pg_monitor;

SELECT cqrs.announce();
