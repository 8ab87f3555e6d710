/*
 * 50-delivery.sql
 *		Out of the outbox: subscriptions, what failed for them, what their clients
 *		receive, and restored events.
 */

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
-- strict_key_order   no event is on its way to the broker together with
--                    another one that it may have to wait for
-- transaction        for a handler: batch, one for the events of a batch; event,
--                    one for each event
-- search_path        for a handler: it is called with this, and pg_temp behind it,
--                    unless it has a SET search_path; NULL without handler
-- rate               for a handler: how often it may be called, as 10/s; 0: no limit
-- key_rate           likewise, for events of the same topic and key
-- delivery           to the broker: at_least_once, or exactly_once, in transactions of
--                    its own
-- on_divergence      exactly once, if the broker has what this database does not know,
--                    or has forgotten what it has: stop, until a person says what is to
--                    be; resend what this database has not delivered
-- runs               what its owner has done by it: commands that were enqueued; sagas,
--                    the steps of sagas; saga_events, what sagas wait for. NULL: none of
--                    that
-- partitions         over how many cursors the events are spread, by key
-- ordering           key: an event waits for others of its topic and key; topic:
--                    for others of its topic
-- next_partitions    the number that this is being changed to;
--                    NULL if neither it nor the ordering is, as are the next four
-- next_ordering      likewise
-- epoch_tick         the present ones are for what was visible in this
--                    tick, which need not be recorded ...
-- epoch_snapshot     ... which is what this snapshot shows
-- epoch_since        when the change was asked for
-- max_attempts       how often an event is tried before it is a dead letter;
--                    0: for ever
-- retry_delay        after the first failure; doubles with each further one
-- max_retry_delay    ... up to this
-- delivery_timeout    the longest that the handler may take for one event, or a
--                    broker confirm nothing; 0: no limit
-- max_retained_size  suspended when it keeps more bytes of events than this
--                    from being truncated; 0: no limit
-- max_retained_age   ... or events older than this; 0: no limit
-- state              active; paused: by cqrs_pause(), keeps its events;
--                    suspended: past one of these limits, keeps nothing
-- state_since        when it got into that state
-- state_reason       why, in words
-- missed_events      how many of its events were truncated while suspended
-- retried_at         when cqrs_retry(), another handler, or another rate last ended
--                    the wait of an outage, or for what the rate allows
-- created_at         when it was created
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.subscription_id AS integer;
COMMENT ON SEQUENCE cqrs.subscription_id IS 'numbers subscriptions';
CREATE TABLE cqrs.subscription (
	subscription_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.subscription_id'),
	subscription		text		NOT NULL UNIQUE,
	handler				text,
	server				text,
	format				text,
	strict_key_order	boolean		NOT NULL,
	transaction			text		NOT NULL,
	search_path			text,
	rate				text		NOT NULL,
	key_rate			text		NOT NULL,
	delivery			text		NOT NULL,
	on_divergence		text		NOT NULL,
	runs				text,
	partitions			integer		NOT NULL,
	ordering			text		NOT NULL,
	next_partitions		integer,
	next_ordering		text,
	epoch_tick			bigint,
	epoch_snapshot		pg_snapshot,
	epoch_since			timestamptz,
	max_attempts		integer		NOT NULL,
	retry_delay			interval	NOT NULL,
	max_retry_delay		interval	NOT NULL,
	delivery_timeout		interval	NOT NULL,
	max_retained_size	bigint		NOT NULL,
	max_retained_age	interval	NOT NULL,
	state				text		NOT NULL DEFAULT 'active',
	state_since			timestamptz	NOT NULL DEFAULT now(),
	state_reason		text,
	missed_events		bigint		NOT NULL DEFAULT 0,
	retried_at			timestamptz,
	created_at			timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.subscription IS 'subscriptions';
SELECT pg_extension_config_dump('cqrs.subscription_id', '');
SELECT pg_extension_config_dump('cqrs.subscription', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.subscription ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- ----------------------------------------------------------------------
-- cqrs.subscription_topic: which topics a subscription reads
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.subscription_topic (
	subscription_id	integer,
	topic_id		integer,
	PRIMARY KEY (subscription_id, topic_id)
);
COMMENT ON TABLE cqrs.subscription_topic IS 'topics of each subscription';
SELECT pg_extension_config_dump('cqrs.subscription_topic', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription_topic
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.subscription_topic
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.subscription_topic ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- The owner of a subscription, and its view. If both are NULL, nobody owns it,
-- and nothing is delivered.
CREATE FUNCTION cqrs.subscription_owner(subscription_id integer, OUT owner oid, OUT view oid)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_subscription_owner';
GRANT EXECUTE ON FUNCTION cqrs.subscription_owner(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.subscription_owner(integer) IS 'owner of a subscription';

-- The lane of an event: by its topic, or by topic and key; see log/event.c.
CREATE FUNCTION cqrs.event_lane(topic_id integer, event_id uuid, key text, by_topic boolean) RETURNS bigint
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'cqrs_event_lane_of';
REVOKE ALL ON FUNCTION cqrs.event_lane(integer, uuid, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION cqrs.event_lane(integer, uuid, text, boolean) IS 'what an event waits for: a hash';

-- Which of the given number of partitions an event is in.
CREATE FUNCTION cqrs.event_partition(topic_id integer, event_id uuid, key text, by_topic boolean, partitions integer)
RETURNS integer
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'cqrs_event_partition_of';
REVOKE ALL ON FUNCTION cqrs.event_partition(integer, uuid, text, boolean, integer) FROM PUBLIC;
COMMENT ON FUNCTION cqrs.event_partition(integer, uuid, text, boolean, integer) IS 'partition of an event';

-- The subscriptions, with all that was chosen for them: see cqrs.subscription and
-- cqrs_subscribe(). Those that the reader may act for, as a member of the owner,
-- receive from or see, or, as a member of pg_monitor, all.
--   owner  NULL: nobody, and nothing is delivered
CREATE VIEW @extschema@.cqrs_subscriptions WITH (security_barrier) AS
SELECT s.subscription,
	   ARRAY(SELECT t.topic
			 FROM cqrs.subscription_topic st JOIN cqrs.topic t USING (topic_id)
			 WHERE st.subscription_id = s.subscription_id
			 ORDER BY t.topic) AS topics,
	   s.handler,
	   s.server,
	   pg_get_userbyid(o.owner) AS owner,
	   s.partitions,
	   s.ordering,
	   s.max_attempts,
	   s.retry_delay,
	   s.max_retry_delay,
	   s.delivery_timeout,
	   s.max_retained_size,
	   s.max_retained_age,
	   s.format,
	   s.strict_key_order,
	   s.transaction,
	   s.search_path,
	   s.rate,
	   s.key_rate,
	   s.delivery,
	   s.on_divergence,
	   s.created_at
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT, UPDATE')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_subscriptions TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_subscriptions IS 'what was chosen for each subscription';

-- Subscribes to topics. The caller becomes the owner of the subscription, and
-- of view cqrs_subscriptions.<subscription>, which shows its row of
-- cqrs_subscription_status: whoever owns the view owns the subscription. ALTER
-- VIEW ... OWNER TO and REASSIGN OWNED give it to another role, from the next
-- batch on; DROP ROLE is refused. If the view is dropped, nothing is delivered.
-- NULL for an argument means its default.
--   subscription       name, 1 to 63 bytes
--   topics             one or more topics
--   handler            a function with one argument, called for each event in
--                      the transaction that moves the cursor: cqrs_event, the
--                      event; cqrs_event[], all that are delivered together, in one
--                      call: if it fails, it gets half of them, down to one, until
--                      the one that fails is found; jsonb, or a composite type that payloads are
--                      converted to, its payload, NULL of a tombstone. What it
--                      returns is ignored. Named as for
--                      cqrs_register_command(). NULL without server: read with
--                      cqrs_receive() and cqrs_ack()
--   server             the foreign server of a broker, made with the wrapper of a
--                      broker module; not together with a handler
--   start              'earliest', the default: from the oldest event retained;
--                      if a topic was restored from a dump, nothing before
--                      cqrs_adopt();
--                      'latest': from what commits after this call
--   partitions         1 (the default) to 1000: by their keys, events are spread
--                      over this many cursors, which are delivered side by side;
--                      events without a key by their ids, and all of a topic are
--                      in one if that is the ordering
--   ordering           what comes in order, and waits for an event that failed:
--                      'key', the default: later events of its topic and key;
--                      nothing waits for an event without a key, nor overtakes it
--                      in its partition unless that fails. 'topic': all later
--                      events of its topic
--   max_attempts       how often an event is tried before it is a dead letter;
--                      0: for ever. Default 25, in a day and a half
--   retry_delay        after the first failure; doubles with each further one,
--                      and varies by a quarter. Default 1 s
--   max_retry_delay    ... up to this. Default 3 h
--   delivery_timeout   the longest that the handler may take for one event when
--                      the worker calls it, or that a broker may confirm
--                      nothing; 0: no limit. Default 1 min
--   max_retained_size  suspended when it keeps more bytes of events than this
--                      from being truncated; 0: no limit. Default 10 GB
--   max_retained_age   ... or events older than this; 0, the default: no limit
--   format             of the messages to it. 'cqrs', the default: the envelope
--                      of python-cqrs in JSON; 'cloudevents': CloudEvents 1.0 in
--                      binary mode; 'raw': the payload alone, the rest in
--                      headers
--   strict_key_order   never have two events of one topic and key (or, if that is
--                      the ordering, of one topic) on their way to the broker
--                      together. Otherwise, if the broker rejects one, the next
--                      ones of its key may have got there before it is tried
--                      again
--   transaction        'batch', the default: the handler is called for up to 1000
--                      events in a transaction, which it can see only by
--                      now() and the transaction's id; 'event': for each in one
--                      of its own, which is slower; see docs/subscriptions.md
--   search_path        that the handler is called with, unless it has a SET
--                      search_path; pg_temp comes last, and is not named.
--                      Default: the setting of this session. A warning says so if
--                      others may create in a schema of it
--   rate               how often the handler is called by the worker, in all partitions
--                      together: '10/s', '100/min', '1000/h'; at most so often, evenly,
--                      with bursts of a tenth of a second. '0', the default: no limit.
--                      Attempts count. cqrs_drain() takes no heed of it
--   key_rate           the same for events of the same topic and key; those of others
--                      go on meanwhile, and events without a key always. Not with
--                      ordering 'topic'. Both rates may be given
--   delivery           to the broker: 'at_least_once', the default; 'exactly_once', if
--                      its module uses transactions, as that of Kafka does: consumers
--                      that read what is committed get each event once. See docs/kafka.md
--   on_divergence      exactly once, if the broker has what this database has lost, in
--                      a failover or a restore, or has forgotten what it has: 'stop',
--                      the default, until somebody says so with cqrs_resume(); 'resend':
--                      go on at once, and send what may be there already, which
--                      cqrs_health() says. Not while another server has taken over
--   or_replace         if there is a subscription of this name, with other topics
--                      or settings, change them, as cqrs_alter_subscription() does:
--                      it stays where it is. start does not matter then
-- Returns whether that made or changed anything: false if there is a
-- subscription of this name, with the same topics and settings. search_path
-- counts only if it is given.
-- Errors: 42710 there is one of this name, with other settings; 42501 it belongs
-- to somebody else; 55000 or_replace cannot make something else of it; 42P07 a relation of that name is in schema
-- cqrs_subscriptions; 42704 no such topic, or server; 42883, 42P13 handler;
-- 42809 the server is not one of a broker; 55000 its module does not fit;
-- 42501 no SELECT on a topic, no EXECUTE on the handler, no USAGE on the
-- server, a handler that belongs neither to the caller nor to a superuser, or
-- a caller without LOGIN (before PostgreSQL 17); 22023 no topics, handler and
-- server, options of the server that are not enough, or another argument out
-- of its range; 0A000 the broker has no transactions; 22004, 42602, 42622 names.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.subscription until the end of the
-- transaction. Until then, nothing of its topics is truncated.
-- Privileges: EXECUTE, not granted to PUBLIC, and the above.
CREATE FUNCTION @extschema@.cqrs_subscribe(subscription text, topics text[], handler text DEFAULT NULL,
	server text DEFAULT NULL, start text DEFAULT NULL, partitions integer DEFAULT NULL, ordering text DEFAULT NULL,
	max_attempts integer DEFAULT NULL, retry_delay interval DEFAULT NULL, max_retry_delay interval DEFAULT NULL,
	delivery_timeout interval DEFAULT NULL, max_retained_size bigint DEFAULT NULL,
	max_retained_age interval DEFAULT NULL, format text DEFAULT NULL, strict_key_order boolean DEFAULT NULL,
	transaction text DEFAULT NULL, search_path text DEFAULT NULL, rate text DEFAULT NULL, key_rate text DEFAULT NULL,
	delivery text DEFAULT NULL, on_divergence text DEFAULT NULL,
	or_replace boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_subscribe(text, text[], text, text, text, integer, text, integer,
	interval, interval, interval, bigint, interval, text, boolean, text, text, text, text, text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_subscribe(text, text[], text, text, text, integer, text, integer,
	interval, interval, interval, bigint, interval, text, boolean, text, text, text, text, text, text, boolean) IS 'subscribes to topics';

-- Changes settings of a subscription; NULL leaves one as it is. If its view was
-- dropped, makes it again, and the caller becomes the owner.
--   handler  another handler, for a subscription that has one. Events that
--            failed with the former one are tried again now, as by cqrs_retry_all()
--   server   another server, for a subscription that has one; it does not
--            get what was sent to the first one. What is on its way may get to both
--   on_divergence
--            with 'resend', what has stopped before goes on now, and events that
--            failed are tried again, as by cqrs_retry_all()
--   topics   all that it is to read. Those that are new are read from where it
--            is: of what was committed before this, it may get what it has not
--            come to yet. Nothing is delivered any more of those that are not
--            named, however old; their dead letters stay
--   partitions, ordering
--            these count later: what was committed before is delivered in the
--            old partitions and order, and only when all of that is, and
--            nothing is handed out under a lease, the new ones begin. So each
--            key stays in order. Until then, next_partitions in
--            cqrs_subscription_status is not NULL. Another call changes what
--            is to come; with what there is, nothing is changed
--   others   as in cqrs_subscribe()
-- Returns whether that changed anything.
-- Errors: 42704 does not exist; 42501 not its owner, or for the handler as in
-- cqrs_subscribe(), as for the server; 55000 it has no handler, or no server, or
-- topics are given, and it was restored and not adopted, or is a queue of commands or
-- sagas, or partitions, and it brings sagas what they wait for; 0A000 the broker has no
-- transactions; 22023 out of its range.
-- Locks: with topics, partitions, ordering, a key_rate, a handler, a server, delivery or
-- on_divergence, those for moving its cursors, until the end of the transaction; it waits
-- for the batches being delivered.
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner; to
-- change the topics, the handler or the server, being the owner. If there is no
-- owner, membership in the extension's.
CREATE FUNCTION @extschema@.cqrs_alter_subscription(subscription text, topics text[] DEFAULT NULL, handler text DEFAULT NULL,
	server text DEFAULT NULL, partitions integer DEFAULT NULL, ordering text DEFAULT NULL, max_attempts integer DEFAULT NULL,
	retry_delay interval DEFAULT NULL, max_retry_delay interval DEFAULT NULL,
	delivery_timeout interval DEFAULT NULL, max_retained_size bigint DEFAULT NULL,
	max_retained_age interval DEFAULT NULL, format text DEFAULT NULL, strict_key_order boolean DEFAULT NULL,
	transaction text DEFAULT NULL, search_path text DEFAULT NULL, rate text DEFAULT NULL,
	key_rate text DEFAULT NULL, delivery text DEFAULT NULL, on_divergence text DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_alter_subscription(text, text[], text, text, integer, text, integer, interval,
	interval, interval, bigint, interval, text, boolean, text, text, text, text, text, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_alter_subscription(text, text[], text, text, integer, text, integer, interval,
	interval, interval, bigint, interval, text, boolean, text, text, text, text, text, text) IS 'changes settings of a subscription';

-- Removes a subscription, with what it has to retry and its dead letters; one
-- that executes commands (see cqrs_enqueue()), with its topic, too; so one that is
-- for sagas, if nobody owns it: those that it runs are forgotten, neither completed
-- nor undone. Waits for the batch being delivered, and for the emitters of such a
-- topic; what is on its way to a broker may arrive.
--   if_exists  one that does not exist is no error
-- Returns false if it does not exist. Errors: 42704 does not exist; 42501 not
-- its owner; 2BP01 something depends on its view; 55000 it is for sagas, and a role
-- owns it, which has cqrs_drop_saga_queue().
-- Privileges: EXECUTE, not granted to PUBLIC, and membership in the owner, or,
-- if there is none, in the extension's.
CREATE FUNCTION @extschema@.cqrs_unsubscribe(subscription text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unsubscribe(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unsubscribe(text, boolean) IS 'removes a subscription';

-- Stops a subscription: nothing is delivered to it, and its events are kept,
-- within max_retained_size and max_retained_age. Waits for the batch being
-- delivered: once it returns, and until cqrs_resume(), no handler runs. What is
-- on its way to a broker arrives, and is recorded. A suspended subscription
-- stays suspended.
-- Returns false if it was stopped already. Errors: 42704 does not exist; 42501
-- not its owner.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: membership in the owner.
CREATE FUNCTION @extschema@.cqrs_pause(subscription text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_pause(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_pause(text) IS 'stops delivery to a subscription';

-- Lets a subscription that was paused or suspended go on where it was. Returns
-- how many events it missed because they were truncated while it was
-- suspended; if there are any, a warning says so, too.
--   sent  for one that is delivered exactly once, and stopped because its broker has a
--         transaction that this database knows nothing of, or has forgotten which
--         it had last (problem diverged in cqrs_health()). 'again': deliver from where it
--         is, or where cqrs_seek() has moved it; what the broker has, it may get
--         twice. 'trust': if it was forgotten, the last transaction was committed;
--         its events are passed by. NULL, the default: leave that as it is
-- Errors and privileges: as cqrs_pause(); 22023 another sent; 55000 it is not stopped
-- for that, or there is nothing to trust.
CREATE FUNCTION @extschema@.cqrs_resume(subscription text, sent text DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_resume(text, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_resume(text, text) IS 'has delivery to a subscription go on';

-- Moves a subscription in the log, to replay or to skip. What it has to retry
-- is forgotten; its dead letters stay. What is on its way to a broker may
-- arrive, and counts for nothing. A pending change of partitions takes effect
-- at once.
--   target  'earliest': to the oldest event retained; 'latest': to what
--           commits after this call; a time: to the first transaction that
--           emitted at that time or later, whose earlier events, and those of
--           later transactions, come with it
-- Errors: 42704 does not exist; 42501 not its owner; 22007 no such target;
-- 55000 it is for sagas; 25006 read-only transaction or standby.
-- Locks: those for moving its cursors, until the end of the transaction; until
-- then, nothing of its topics is truncated.
-- Privileges: membership in the owner.
CREATE FUNCTION @extschema@.cqrs_seek(subscription text, target text) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_seek(text, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_seek(text, text) IS 'moves a subscription in the log';

CREATE FUNCTION @extschema@.cqrs_seek(subscription text, target timestamptz) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_seek_time';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_seek(text, timestamptz) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_seek(text, timestamptz) IS 'moves a subscription to a time in the log';

-- Waits until a subscription has got all that was committed when this was
-- called, parked events, too.
--   timeout  how long at most; NULL: 10 s
--   since    of what is parked, or was given up, only events count that were
--            emitted at that time or later; NULL: all
-- Returns false on timeout, and at once if it gave up on an event up to then:
-- if there is a dead letter, which a notice says; so does one of what takes
-- somebody to do something: it is paused, or its handler does not exist. It does
-- not wait for what the caller's own transaction emitted.
-- Errors: 42704 does not exist; 42501 not its owner; 55000 cqrs_outbox is not
-- in shared_preload_libraries; 55006 called by its own handler; 22023 timeout.
-- Privileges: membership in the owner.
CREATE FUNCTION @extschema@.cqrs_wait(subscription text, timeout interval DEFAULT '10 s', since timestamptz DEFAULT NULL)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_wait(text, interval, timestamptz) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_wait(text, interval, timestamptz) IS 'waits until a subscription has got what is committed';

-- ----------------------------------------------------------------------
-- cqrs.retry: undelivered events that the cursor passes by: those that failed,
-- and later ones of the same topic and key, which wait for them
--
-- subscription_id, partition
--                  of which cursor
-- lane             hash of topic and key, or of the topic: events of a lane wait for each other
-- position .. emitted_at
--                  the event, whole
-- attempts         how many attempts counted; 0: it waits for an
--                  earlier one, or is tried next
-- receipt          handed out by cqrs_receive() with this receipt, and not
--                  settled, or NULL
-- failed_at        when it was last tried, or NULL
-- retry_at         not tried again before
-- due_at           retry_at, or when its key has a token, if it is the lowest
--                  position of its lane: only that is tried; or NULL
-- sqlstate         of the last error, or NULL
-- message          of the last error, or NULL
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.retry (
	subscription_id	integer		NOT NULL,
	partition		integer		NOT NULL,
	lane			bigint		NOT NULL,
	position		bigint		NOT NULL,
	event_id		uuid		NOT NULL,
	event_name		text		NOT NULL,
	topic_id		integer		NOT NULL,
	key				text,
	payload			jsonb,
	headers			jsonb,
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
SELECT pg_extension_config_dump('cqrs.retry', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.retry
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.retry ENABLE ALWAYS TRIGGER refuse_write;

-- ----------------------------------------------------------------------
-- cqrs.dead_letter: events that a subscription gave up on, kept until
-- somebody redrives or discards them
--
-- Columns as in cqrs.retry; died_at is when it was given up. It is in no
-- partition: if it is redriven, it is parked in that of its key.
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.dead_letter (
	subscription_id	integer		NOT NULL,
	position		bigint		NOT NULL,
	event_id		uuid		NOT NULL,
	event_name		text		NOT NULL,
	topic_id		integer		NOT NULL,
	key				text,
	payload			jsonb,
	headers			jsonb,
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
SELECT pg_extension_config_dump('cqrs.dead_letter', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.dead_letter
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.dead_letter ENABLE ALWAYS TRIGGER refuse_write;

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
SELECT pg_extension_config_dump('cqrs.failure', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.failure
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.failure ENABLE ALWAYS TRIGGER refuse_write;

-- Delivers to a subscription's handler what is committed (in a REPEATABLE
-- READ transaction: what the newest tick that it sees shows), and what is to
-- be retried by now, in the caller's transaction. The worker does this by
-- itself. An event for which the handler raises an error is rolled back alone
-- and tried again, as by the worker, with a warning.
-- Returns the number of events. Errors: 42704 does not exist; 55000 it has no
-- handler or no owner, is paused or suspended, or was restored from a dump; 42501 the
-- caller is not its owner; 55006 called by its own handler; 25006 read-only
-- transaction or standby; what the handler raises, if its class is 53, 57 or
-- 58: no event's fault.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC, and being the owner.
CREATE FUNCTION @extschema@.cqrs_drain(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_drain(text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_drain(text) IS 'delivers to a subscription''s handler by hand';

-- An event as cqrs_receive() hands it out.
--   attempts   how often it was handed out to be tried, this time included
--   partition  where it is from
--   receipt    of this batch, for cqrs_ack(), cqrs_nack() and cqrs_renew()
CREATE TYPE @extschema@.cqrs_received AS (
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
GRANT USAGE ON TYPE @extschema@.cqrs_received TO PUBLIC;
COMMENT ON TYPE @extschema@.cqrs_received IS 'an event, as cqrs_receive() hands it out';

-- The next events of one partition of a subscription without a handler: those
-- that failed, or were not settled, and are due, then new ones; none that has
-- to wait for another one of its topic and key. All that was committed before
-- the call is found, with two exceptions, which find it later: what the worker
-- has yet to announce is waited for 100 ms, or a second if it has to be started,
-- but not if there is something else to return, or if earlier events of this
-- transaction or lease are not settled; and a REPEATABLE READ transaction finds
-- what was announced when it began. NULL for an argument means its default.
--   max_events  the most events, at least 1; a batch may be shorter although
--               more are waiting, also to stay within 16 MB
--   wait        how long to wait if there is nothing, at most a minute
--   lease       NULL: the partition is this transaction's until its end;
--               otherwise, for how long it is the receipt's
--   partition   which one; NULL: any that has something
-- A partition that is held by another transaction, or by a lease, is passed
-- by. What is not settled with cqrs_ack() or cqrs_nack() when the transaction,
-- or the lease, ends comes again; after two leases on a batch ran out, one
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
CREATE FUNCTION @extschema@.cqrs_receive(subscription text, max_events integer DEFAULT 100, wait interval DEFAULT '0',
	lease interval DEFAULT NULL, "partition" integer DEFAULT NULL) RETURNS SETOF @extschema@.cqrs_received
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_receive(text, integer, interval, interval, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_receive(text, integer, interval, interval, integer) IS
'next events of a subscription';

-- Acknowledges all that this transaction received and has not settled, so that
-- it does not come again. Returns how many events; 0 if it received nothing.
-- Errors: as cqrs_receive(), but not if it is paused; OB003 this transaction
-- has not called cqrs_receive(), or what it received was moved away.
-- Privileges: membership in the subscription's owner, or UPDATE on its view.
CREATE FUNCTION @extschema@.cqrs_ack(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_ack(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_ack(text) IS 'acknowledges what this transaction received';

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
CREATE FUNCTION @extschema@.cqrs_ack(subscription text, positions bigint[], receipt uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_ack_positions';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_ack(text, bigint[], uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_ack(text, bigint[], uuid) IS 'acknowledges received events';

-- Says that these events could not be processed: they are received again
-- later, or, after max_attempts, are dead letters. Until then, later events of
-- their topics and keys wait, unless they are acknowledged; others go on.
-- Nothing is acknowledged by this.
--   positions    of events that the receipt covers; NULL: none
--   error        why, for people to read
--   retry_after  how long not to try again; NULL: as the subscription's settings say
--   give_up      no more attempts
--   receipt      they were received with; NULL: this transaction's
-- Returns how many were not settled before. Errors, locks, privileges: as
-- cqrs_ack().
CREATE FUNCTION @extschema@.cqrs_nack(subscription text, positions bigint[], error text DEFAULT NULL,
	retry_after interval DEFAULT NULL, give_up boolean DEFAULT false, receipt uuid DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_nack(text, bigint[], text, interval, boolean, uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_nack(text, bigint[], text, interval, boolean, uuid) IS
'has received events tried again later';

-- Prolongs a lease.
--   lease  from now on; '0' gives the partition back, with what is not settled
-- Returns until when it is leased. Errors, locks, privileges: as cqrs_ack();
-- 22004 NULL, 22023 a negative lease.
CREATE FUNCTION @extschema@.cqrs_renew(subscription text, receipt uuid, lease interval) RETURNS timestamptz
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_renew(text, uuid, interval) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_renew(text, uuid, interval) IS 'prolongs the lease of received events';

-- The events that subscriptions gave up on: of those subscriptions that the reader
-- may act for, as a member of the owner, or, if there is none, of the
-- extension's. ORDER BY position is the order in which they were emitted.
--   position .. emitted_at
--                   the event; topic is NULL if it was dropped
--   attempts        how often it was tried, the last time included
--   error           the last one's message
--   error_sqlstate  its code
--   died_at         when it was given up
CREATE VIEW @extschema@.cqrs_dead_letters WITH (security_barrier) AS
SELECT s.subscription,
	   d.position,
	   d.event_id,
	   d.event_name,
	   t.topic,
	   d.key,
	   d.payload,
	   d.headers,
	   d.emitted_at,
	   d.attempts,
	   d.message AS error,
	   d.sqlstate AS error_sqlstate,
	   d.died_at
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
JOIN cqrs.dead_letter d USING (subscription_id)
LEFT JOIN cqrs.topic t USING (topic_id)
WHERE pg_has_role(current_user, coalesce(o.owner, (SELECT extowner FROM pg_extension WHERE extname = 'cqrs_outbox')), 'USAGE');
GRANT SELECT ON @extschema@.cqrs_dead_letters TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_dead_letters IS 'events that subscriptions gave up on';

-- The events that are parked: those that failed and will be tried again, later
-- events of their topics and keys, which wait for them, events whose key_rate has
-- them wait, and events that a client was handed and has not settled. Of the same subscriptions as above.
--   position .. emitted_at
--                   the event; topic is NULL if it was dropped
--   attempts        how often it was tried, and that counted
--   error, error_sqlstate, error_at
--                   of the last time; NULL: it has not failed
--   retry_at        not tried again before; NULL: it waits for another one
--   waits_for       that one's id, or NULL
CREATE VIEW @extschema@.cqrs_retries WITH (security_barrier) AS
SELECT s.subscription,
	   r.position,
	   r.event_id,
	   r.event_name,
	   t.topic,
	   r.key,
	   r.payload,
	   r.headers,
	   r.emitted_at,
	   r.attempts,
	   r.message AS error,
	   r.sqlstate AS error_sqlstate,
	   r.failed_at AS error_at,
	   r.due_at AS retry_at,
	   CASE WHEN r.due_at IS NULL
			THEN (SELECT h.event_id FROM cqrs.retry h
				  WHERE h.subscription_id = r.subscription_id AND h.partition = r.partition AND h.lane = r.lane
				  ORDER BY h.position LIMIT 1) END AS waits_for
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
JOIN cqrs.retry r USING (subscription_id)
LEFT JOIN cqrs.topic t USING (topic_id)
WHERE pg_has_role(current_user, coalesce(o.owner, (SELECT extowner FROM pg_extension WHERE extname = 'cqrs_outbox')), 'USAGE');
GRANT SELECT ON @extschema@.cqrs_retries TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_retries IS 'events that are tried again, or wait for one that is';

-- Has events that failed tried again now instead of at their retry_at, once the
-- cause was removed. If the whole subscription waits, because of an outage, that
-- is over, too. Attempts are counted on.
--   event_ids  these; NULL: none, and nothing is done
-- Returns how many were not due before. Errors: 42704 the subscription does not
-- exist; 42501 not its owner; 22004 an id is NULL; 25006 read-only transaction
-- or standby.
-- Locks: those for moving its cursors, until the end of the transaction.
-- Privileges: membership in the owner.
CREATE FUNCTION @extschema@.cqrs_retry(subscription text, event_ids uuid[]) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_retry(text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_retry(text, uuid[]) IS 'has events that failed tried again now';

-- The same of all events of a subscription that failed.
CREATE FUNCTION @extschema@.cqrs_retry_all(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_retry_all(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_retry_all(text) IS 'has all that failed tried again now';

-- Has these dead letters delivered after all, in order of their positions, with a
-- full number of attempts. Later events of the same keys that were delivered
-- meanwhile are not delivered again.
--   event_ids  NULL: none
-- Returns how many there were. Errors, locks, privileges: as cqrs_retry(); and
-- 55000 restored from a dump.
CREATE FUNCTION @extschema@.cqrs_redrive(subscription text, event_ids uuid[]) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_redrive(text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_redrive(text, uuid[]) IS 'has dead letters delivered after all';

-- The same of all dead letters of a subscription.
CREATE FUNCTION @extschema@.cqrs_redrive_all(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_redrive_all(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_redrive_all(text) IS 'has all dead letters of a subscription delivered after all';

-- Deletes these dead letters.
--   event_ids  NULL: none
-- Returns how many there were. Errors and privileges: as cqrs_retry().
CREATE FUNCTION @extschema@.cqrs_discard(subscription text, event_ids uuid[]) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_discard(text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_discard(text, uuid[]) IS 'deletes dead letters';

-- Deletes all dead letters of a subscription. Returns how many there were.
-- Errors and privileges: as cqrs_retry().
CREATE FUNCTION @extschema@.cqrs_discard_all(subscription text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_discard_all(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_discard_all(text) IS 'deletes all dead letters of a subscription';

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
-- Takes everything in the restored topics' tables for events, whoever put it
-- there, but nothing in topics that were made here. Rewrites each restored
-- row.
--
-- Returns the subscriptions that go on, and how many restored events each is
-- about to get; events that wait in cqrs.retry are not counted.
-- Errors: 55000 a subscription's cursor was not restored, the topic's tables
-- were altered, or topics hold events that were adopted before; 54000 too
-- many subscriptions at different places; 25006 read-only transaction or
-- standby.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.topic; nobody subscribes to these topics
-- until the end of the transaction. Emitters do not wait.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_adopt(OUT subscription text, OUT events bigint) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_adopt() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_adopt() IS 'makes restored events ordinary events of this cluster';
