/*
 * 56-consumer.sql
 *		Consumers: what comes from a broker becomes events of a topic.
 */

-- ----------------------------------------------------------------------
-- cqrs.consumer
--
-- consumer_id   of the numbers of subscriptions, so that cqrs.failure and the
--               processes need not tell them apart
-- consumer      name, at most 63 bytes; also the name of the view in
--               cqrs_subscriptions, whose owner's privileges the consumer has
-- incarnation   of its events' ids, with where a message is from
-- server        the foreign server of the broker
-- source        what is consumed there: a topic, or a queue
-- topic_id      where the events go
-- event_name    of all of them; NULL: the message says
-- format        of the messages: raw, bytes, cqrs or cloudevents
-- message_id    of a source without offsets: what its messages are known by;
--               required, header:NAME or body_hash. NULL: it has offsets
-- start         where partitions that are there at first begin: earliest,
--               latest, or a timestamp
-- on_gap        when what was to be consumed next is not there any more: stop,
--               or earliest
-- workers       how many consume side by side
-- state         active, or paused
-- state_since   when it got into that state
-- retried_at    when something was last changed by hand
-- created_at    when it was created
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.consumer (
	consumer_id	integer		PRIMARY KEY DEFAULT nextval('cqrs.subscription_id'),
	consumer	text		NOT NULL UNIQUE,
	incarnation	uuid		NOT NULL DEFAULT gen_random_uuid(),
	server		text		NOT NULL,
	source		text		NOT NULL,
	topic_id	integer		NOT NULL,
	event_name	text,
	format		text		NOT NULL,
	message_id	text,
	start		text		NOT NULL,
	on_gap		text		NOT NULL,
	workers		integer		NOT NULL,
	state		text		NOT NULL DEFAULT 'active',
	state_since	timestamptz	NOT NULL DEFAULT now(),
	retried_at	timestamptz	NOT NULL DEFAULT now(),
	created_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.consumer IS 'what is consumed from brokers';
SELECT pg_extension_config_dump('cqrs.consumer', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.consumer
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.consumer ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.consumer
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.consumer ENABLE ALWAYS TRIGGER registry_changed;

-- ----------------------------------------------------------------------
-- cqrs.consumer_position: how far the partitions of a source are consumed, in the
-- same transaction as the events. Moved as cqrs.cursor is, by appending a row: the
-- newest one counts. A source without offsets has a row for each worker, with the
-- counts alone. The row of partition -1 is written when the consumer is made, and has
-- nothing but native: it says in which server that was. Without it, nothing is
-- consumed.
--
-- consumer_id, partition, seq
-- next_offset   of the message to consume next; -1: where the partition ends, -2:
--               where it begins, -3: at start_at, once that is looked up
-- start_at      only with next_offset -3
-- last_offset   of the last message consumed, or -1 ...
-- last_hash     ... and of its contents, by which another partition is told
-- end_offset    where the partition ended when that was last heard of, or NULL; if
--               stopped is gap, where it began: behind what is missing
-- consumed      how many messages became events
-- repeated      how many were known
-- dead          how many became dead letters
-- last_time     the last message's timestamp, or NULL
-- stopped       why it is not consumed any more: gap, other, or NULL
-- moved_at      when the row was written
-- native        true if we wrote it; false if it was restored, until cqrs_adopt()
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.consumer_position (
	consumer_id	integer		NOT NULL,
	partition	integer		NOT NULL,
	seq			bigint		NOT NULL,
	next_offset	bigint		NOT NULL,
	start_at	timestamptz,
	last_offset	bigint		NOT NULL,
	last_hash	bigint		NOT NULL,
	end_offset	bigint,
	consumed	bigint		NOT NULL,
	repeated	bigint		NOT NULL,
	dead		bigint		NOT NULL,
	last_time	timestamptz,
	stopped		text,
	moved_at	timestamptz	NOT NULL,
	native		boolean		GENERATED ALWAYS AS (false) STORED,
	PRIMARY KEY (consumer_id, partition, seq)
);
COMMENT ON TABLE cqrs.consumer_position IS 'how far sources are consumed, newest row by seq';
SELECT pg_extension_config_dump('cqrs.consumer_position', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.consumer_position
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.consumer_position ENABLE ALWAYS TRIGGER refuse_write;

-- ----------------------------------------------------------------------
-- cqrs.consumer_dead_letter: messages that could not become events
--
-- consumer_id, event_id
--               the id is the one that the event would have
-- partition, message_offset
--               where the message is from; the offset is -1 if it has none
-- message_id    or NULL
-- key, body     its bytes; of a body that is too large, the first megabyte
-- body_size     in bytes, all of it
-- headers       as text
-- message_time  its timestamp, or NULL
-- sqlstate, message
--               why
-- died_at       when
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.consumer_dead_letter (
	consumer_id		integer		NOT NULL,
	event_id		uuid		NOT NULL,
	partition		integer		NOT NULL,
	message_offset	bigint		NOT NULL,
	message_id		text,
	key				bytea,
	body			bytea,
	body_size		bigint		NOT NULL,
	content_type	text,
	headers			jsonb,
	message_time	timestamptz,
	sqlstate		text		NOT NULL,
	message			text		NOT NULL,
	died_at			timestamptz	NOT NULL,
	PRIMARY KEY (consumer_id, event_id)
);
COMMENT ON TABLE cqrs.consumer_dead_letter IS 'messages that could not become events';
SELECT pg_extension_config_dump('cqrs.consumer_dead_letter', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.consumer_dead_letter
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.consumer_dead_letter ENABLE ALWAYS TRIGGER refuse_write;

-- Who owns a consumer, and its view; NULL: nobody.
CREATE FUNCTION cqrs.consumer_owner(consumer_id integer, OUT owner oid, OUT view oid)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_consumer_owner';
GRANT EXECUTE ON FUNCTION cqrs.consumer_owner(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.consumer_owner(integer) IS 'owner of a consumer';

-- Has what comes from a broker become events of a topic: a message and how far the
-- source is consumed are one transaction, so each message is an event once. What
-- is to happen to the events is up to subscriptions. No handler that is registered
-- for the event type is called in that transaction.
--   consumer    name of at most 63 bytes; no subscription has it
--   server      the foreign server of the broker. The current user, who will own
--               the consumer, needs USAGE, and a user mapping if the broker
--               wants a password
--   source      what to consume: a topic of Kafka, a queue of RabbitMQ
--   topic       where the events go; the owner needs INSERT on it, also later
--   event_name  of all events; a registered one. NULL: the message says, in the
--               formats cqrs and cloudevents
--   format      of the messages. raw, the default: the body is the payload, a JSON
--               object. bytes: any body; the payload is {"base64": "..."}. cqrs:
--               the body is the envelope that brokers get in this format.
--               cloudevents: CloudEvents 1.0, binary or structured
--   start       earliest, the default, latest, or a timestamp: where the
--               partitions begin that the source has at first. Those that it gets
--               later begin at their beginning. For sources without offsets it
--               means nothing
--   message_id  of sources without offsets: by what a message is recognised that
--               comes again. required, the default: its message id; header:NAME,
--               a header; body_hash, a hash of its body. A message without is a
--               dead letter
--   on_gap      what to do if the next message is not there any more, because the
--               broker has deleted it. stop, the default: stop consuming this
--               partition, until cqrs_seek_consumer(); earliest: go on with the
--               first that is there
--   workers     how many consume side by side, 1 to 64; partitions are spread over
--               them. Of a source without partitions, more than one loses the
--               order. Each takes one of cqrs_outbox.max_workers all the time
-- Of an event, event_id is made of where the message is from: a message that is
-- consumed again, after cqrs_seek_consumer(), has the same. The key is the
-- message's, or if that is no text, its bytes in hexadecimal behind \x. The headers
-- are the message's and source, source_partition, source_offset,
-- source_message_id, and occurred_at, its timestamp. correlation_id, traceparent and
-- tracestate go on; causation_id is the id of the event that the message was, where
-- the format has one.
-- Returns true; false if there was a consumer like it.
-- Errors: 42710 there is another consumer, or a subscription, of the name; 42704
-- server, topic or event type do not exist; 42501 not permitted; 42809 not the server
-- of a broker; 0A000 its module cannot consume; 22004, 22023, 42622 an argument;
-- 22007, 22008 a start that is no timestamp, or not one of 1970 to 9999; 25006
-- read-only transaction or standby.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.consumer and cqrs.subscription.
-- Privileges: EXECUTE, not granted to PUBLIC; USAGE on the server; INSERT on the
-- topic.
CREATE FUNCTION @extschema@.cqrs_create_consumer(consumer text, server text, source text, topic text,
	event_name text DEFAULT NULL, format text DEFAULT NULL, start text DEFAULT NULL, message_id text DEFAULT NULL,
	on_gap text DEFAULT NULL, workers integer DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_create_consumer(text, text, text, text, text, text, text, text, text, integer) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_create_consumer(text, text, text, text, text, text, text, text, text, integer) IS
'has messages of a broker become events';

-- Changes what was chosen for a consumer; NULL leaves it as it is. What was consumed
-- stays consumed. If nobody owns it, because its view was dropped, the caller does
-- from then on.
-- Returns whether anything changed. Errors, privileges: as cqrs_create_consumer(),
-- and membership in the owner; to change the topic, being the owner; 42704 there is
-- no such consumer.
-- Locks: waits for the batches that are under way.
CREATE FUNCTION @extschema@.cqrs_alter_consumer(consumer text, topic text DEFAULT NULL, event_name text DEFAULT NULL,
	format text DEFAULT NULL, message_id text DEFAULT NULL, on_gap text DEFAULT NULL, workers integer DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_alter_consumer(text, text, text, text, text, text, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_alter_consumer(text, text, text, text, text, text, integer) IS 'changes a consumer';

-- Removes a consumer, how far it was, and its dead letters; its events stay.
--   if_exists  no error if there is none
-- Returns whether there was one. Errors: 42704; 42501 not its owner; 25006.
-- Locks: waits for the batches that are under way.
-- Privileges: membership in the owner.
CREATE FUNCTION @extschema@.cqrs_drop_consumer(consumer text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_drop_consumer(text, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_drop_consumer(text, boolean) IS 'removes a consumer';

-- Has a consumer stop. Once the transaction has committed, nothing more is
-- consumed; the connection is closed within a second or two.
-- Returns whether it was not paused. Errors, locks, privileges: as
-- cqrs_drop_consumer().
CREATE FUNCTION @extschema@.cqrs_pause_consumer(consumer text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_pause_consumer(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_pause_consumer(text) IS 'has a consumer stop';

-- Has a consumer go on, and not wait any longer after an error.
-- Returns whether it was paused. Errors, privileges: as cqrs_drop_consumer().
CREATE FUNCTION @extschema@.cqrs_resume_consumer(consumer text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_resume_consumer(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_resume_consumer(text) IS 'has a consumer go on';

-- Has partitions of a source consumed from elsewhere; one that was stopped goes on.
-- What is consumed again becomes events again, with the same ids.
--   target     earliest, latest, or a timestamp: the first message with that one or
--              a later one
--   partition  NULL: all that are known
-- Errors: 55000 the source has no offsets; 22023 it has no such partition, or an
-- argument; 22007, 22008 no timestamp of 1970 to 9999; and as cqrs_drop_consumer().
-- Locks, privileges: as cqrs_drop_consumer().
CREATE FUNCTION @extschema@.cqrs_seek_consumer(consumer text, target text, "partition" integer DEFAULT NULL) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_seek_consumer(text, text, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_seek_consumer(text, text, integer) IS 'has a source consumed from elsewhere';

-- The same, to an offset of one partition.
CREATE FUNCTION @extschema@.cqrs_seek_consumer(consumer text, "partition" integer, "offset" bigint) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_seek_consumer_offset';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_seek_consumer(text, integer, bigint) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_seek_consumer(text, integer, bigint) IS 'has a partition consumed from an offset';

-- Makes events of these dead letters after all, once what was wrong is mended: the
-- consumer's format, or the event type. They come behind what was consumed meanwhile.
-- What still cannot be stays.
--   event_ids  NULL, or none: none
-- Returns how many became events. Errors: as cqrs_drop_consumer(); 42501 no INSERT on
-- the topic; 55000 the topic was dropped, or nobody owns the consumer.
-- Locks, privileges: as cqrs_drop_consumer(), and INSERT on the topic.
CREATE FUNCTION @extschema@.cqrs_redrive_consumed(consumer text, event_ids uuid[]) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_redrive_consumed(text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_redrive_consumed(text, uuid[]) IS 'makes events of a consumer''s dead letters';

-- The same, of all dead letters of the consumer.
CREATE FUNCTION @extschema@.cqrs_redrive_all_consumed(consumer text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_redrive_all_consumed(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_redrive_all_consumed(text) IS 'makes events of all dead letters of a consumer';

-- Deletes these dead letters of a consumer.
--   event_ids  NULL, or none: none
-- Returns how many there were. Errors, locks, privileges: as cqrs_drop_consumer().
CREATE FUNCTION @extschema@.cqrs_discard_consumed(consumer text, event_ids uuid[]) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_discard_consumed(text, uuid[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_discard_consumed(text, uuid[]) IS 'deletes dead letters of a consumer';

-- The same, of all dead letters of the consumer.
CREATE FUNCTION @extschema@.cqrs_discard_all_consumed(consumer text) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_discard_all_consumed(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_discard_all_consumed(text) IS 'deletes all dead letters of a consumer';

-- What was chosen for each consumer that the reader may see: as a member of its
-- owner, with SELECT on its view, or as pg_monitor.
CREATE VIEW @extschema@.cqrs_consumers WITH (security_barrier) AS
SELECT c.consumer,
	   c.server,
	   c.source,
	   t.topic,
	   c.event_name,
	   c.format,
	   c.message_id,
	   c.start,
	   c.on_gap,
	   c.workers,
	   pg_get_userbyid(o.owner) AS owner,
	   c.created_at
FROM cqrs.consumer c
CROSS JOIN LATERAL cqrs.consumer_owner(c.consumer_id) o
LEFT JOIN cqrs.topic t USING (topic_id)
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_consumers TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_consumers IS 'what was chosen for each consumer';

-- How far each partition of those consumers' sources is consumed. Of a source
-- without offsets, partition is the number of the worker.
--   offset     of the next message; NULL: not known yet, or it has none
--   end_offset where the partition ended when that was last heard of; if stopped is
--              gap, where it began: behind what is missing
--   lag        how many offsets are between them; not all of them need be messages
--   lag_time   how old the last message was when it was consumed, or, with
--              nothing left to consume, 0
--   consumed, repeated, dead
--              how many messages became events, were known already, or became dead
--              letters
--   stopped    why it is not consumed: gap, the next message was deleted at the
--              broker; other, it is not the partition that it was. NULL: it is
--   moved_at   when that was last written
CREATE VIEW @extschema@.cqrs_consumer_partitions WITH (security_barrier) AS
SELECT c.consumer,
	   p.partition,
	   CASE WHEN p.next_offset >= 0 THEN p.next_offset END AS "offset",
	   p.end_offset,
	   CASE WHEN p.next_offset >= 0 THEN greatest(p.end_offset - p.next_offset, 0) END AS lag,
	   CASE WHEN p.end_offset <= p.next_offset THEN interval '0'
			ELSE greatest(p.moved_at - p.last_time, interval '0') END AS lag_time,
	   p.consumed,
	   p.repeated,
	   p.dead,
	   p.stopped,
	   p.moved_at
FROM cqrs.consumer c
CROSS JOIN LATERAL cqrs.consumer_owner(c.consumer_id) o
CROSS JOIN LATERAL (
	SELECT DISTINCT ON (p.partition) p.*
	FROM cqrs.consumer_position p
	WHERE p.consumer_id = c.consumer_id AND p.partition >= 0
	ORDER BY p.partition, p.seq DESC) p
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_consumer_partitions TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_consumer_partitions IS 'how far the partitions of sources are consumed';

-- How each of those consumers is doing.
--   state      active; paused; stopped, not all partitions are consumed; failing,
--              there is an error, and it tries again at retry_at; restored, from a
--              dump, or copied, from another database, until cqrs_adopt(); broken,
--              nobody owns it
--   partitions .. dead
--              of all its partitions
--   dead_letters
--              how many there are, up to 10000
--   error, error_sqlstate, error_at, retry_at
--              why nothing is consumed just now
CREATE VIEW @extschema@.cqrs_consumer_status WITH (security_barrier) AS
SELECT c.consumer,
	   c.server,
	   c.source,
	   t.topic,
	   pg_get_userbyid(o.owner) AS owner,
	   CASE WHEN o.owner IS NULL THEN 'broken'
			WHEN c.state <> 'active' THEN c.state
			WHEN NOT EXISTS (SELECT FROM cqrs.identity i JOIN pg_database d ON d.oid = i.database
							 WHERE d.datname = current_database() OR d.datistemplate) THEN 'copied'
			WHEN p.restored THEN 'restored'
			WHEN p.stopped > 0 THEN 'stopped'
			WHEN f.failed_at IS NOT NULL THEN 'failing'
			ELSE c.state END AS state,
	   c.state_since,
	   p.partitions,
	   p.lag,
	   p.lag_time,
	   coalesce(p.consumed, 0) AS consumed,
	   coalesce(p.repeated, 0) AS repeated,
	   coalesce(p.dead, 0) AS dead,
	   (SELECT count(*)
		FROM (SELECT FROM cqrs.consumer_dead_letter d WHERE d.consumer_id = c.consumer_id LIMIT 10000) d) AS dead_letters,
	   p.moved_at,
	   f.message AS error,
	   f.sqlstate AS error_sqlstate,
	   f.failed_at AS error_at,
	   f.retry_at
FROM cqrs.consumer c
CROSS JOIN LATERAL cqrs.consumer_owner(c.consumer_id) o
LEFT JOIN cqrs.topic t USING (topic_id)
CROSS JOIN LATERAL (
	SELECT count(*) FILTER (WHERE p.partition >= 0) AS partitions,
		   count(p.stopped) AS stopped,
		   NOT coalesce(bool_and(p.native) AND bool_or(p.partition < 0), false) AS restored,
		   sum(CASE WHEN p.next_offset >= 0 THEN greatest(p.end_offset - p.next_offset, 0) END)::bigint AS lag,
		   max(CASE WHEN p.end_offset <= p.next_offset THEN interval '0'
					ELSE greatest(p.moved_at - p.last_time, interval '0') END) FILTER (WHERE p.partition >= 0) AS lag_time,
		   sum(p.consumed)::bigint AS consumed,
		   sum(p.repeated)::bigint AS repeated,
		   sum(p.dead)::bigint AS dead,
		   max(p.moved_at) FILTER (WHERE p.partition >= 0) AS moved_at
	FROM (SELECT DISTINCT ON (p.partition) p.*
		  FROM cqrs.consumer_position p
		  WHERE p.consumer_id = c.consumer_id
		  ORDER BY p.partition, p.seq DESC) p) p
LEFT JOIN LATERAL (
	SELECT f.failed_at, f.retry_at, f.sqlstate, f.message
	FROM cqrs.failure f WHERE f.subscription_id = c.consumer_id
	ORDER BY f.failed_at DESC LIMIT 1) f ON true
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_consumer_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_consumer_status IS 'lag and errors of each consumer';

-- The messages that could not become events, of those consumers that the reader may
-- act for.
--   event_id   that the event would have
--   key, body  bytes; of a body of more than the server's option max_message_size,
--              the first megabyte
--   body_size  in bytes, all of it
CREATE VIEW @extschema@.cqrs_consumer_dead_letters WITH (security_barrier) AS
SELECT c.consumer,
	   d.event_id,
	   d.partition,
	   nullif(d.message_offset, -1) AS "offset",
	   d.message_id,
	   d.key,
	   d.body,
	   d.body_size,
	   d.content_type,
	   d.headers,
	   d.message_time,
	   d.message AS error,
	   d.sqlstate AS error_sqlstate,
	   d.died_at
FROM cqrs.consumer c
CROSS JOIN LATERAL cqrs.consumer_owner(c.consumer_id) o
JOIN cqrs.consumer_dead_letter d USING (consumer_id)
WHERE pg_has_role(current_user, coalesce(o.owner, (SELECT extowner FROM pg_extension WHERE extname = 'cqrs_outbox')), 'USAGE');
GRANT SELECT ON @extschema@.cqrs_consumer_dead_letters TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_consumer_dead_letters IS 'messages that could not become events';
