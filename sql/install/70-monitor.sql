/*
 * 70-monitor.sql
 *		What can be seen: events, and the status of everything.
 */

-- The outbox in delivery order.
--   topic           NULL: every topic that the caller may read; a notice names
--                   the others
--   max_events      the most events, at least 1; NULL: 100
--   status          NULL: what is not delivered to every subscription yet (in
--                   a topic without subscriptions: everything); 'new',
--                   'retrying', 'dead', 'delivered'; 'all'
--   event_name      only these
--   after_position  only events with a higher position
-- Returns the columns of cqrs_event, and:
--   status    new: not delivered to every subscription of its topic yet;
--             retrying: the same, and a delivery failed, and is tried again;
--             dead: delivered to every subscription but those that gave it up;
--             delivered: to every subscription
--   attempts  how often the delivery that failed was tried
-- Errors: 42704 no such topic; 22023 max_events, status; 42501; 55000.
-- Locks: ACCESS SHARE on the topics' segments.
-- Privileges: SELECT on cqrs_topics.<topic>.
CREATE FUNCTION @extschema@.cqrs_events(topic text DEFAULT NULL, max_events integer DEFAULT 100,
	status text DEFAULT NULL, event_name text DEFAULT NULL, after_position bigint DEFAULT NULL, OUT "position" bigint,
	OUT event_id uuid, OUT event_name text, OUT topic text, OUT key text, OUT payload jsonb, OUT headers jsonb,
	OUT emitted_at timestamptz, OUT status text, OUT attempts integer) RETURNS SETOF record
LANGUAGE C STABLE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_events(text, integer, text, text, bigint) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_events(text, integer, text, text, bigint) IS
'events of the outbox in delivery order';

-- The circuit breaker of a handler's fallback, as cqrs_breaker_status has it;
-- NULL if it has no fallback.
CREATE FUNCTION cqrs.breaker_state(handler text, OUT state text, OUT failures integer, OUT opened_at timestamptz,
	OUT retry_at timestamptz)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_breaker_state';
GRANT EXECUTE ON FUNCTION cqrs.breaker_state(text) TO PUBLIC;
COMMENT ON FUNCTION cqrs.breaker_state(text) IS 'state of a circuit breaker';

-- The circuit breakers, as they are now. Privileges: SELECT, granted to PUBLIC.
--   handler    the function that is called while it is closed
--   fallback   the function that is called while it is not
--   state      closed; open: the handler is not called; half_open: the next call
--              is the trial, or it is under way
--   failures   in a row
--   opened_at  when it last opened; NULL: it is closed
--   retry_at   from when it is half_open, or NULL
CREATE VIEW @extschema@.cqrs_breaker_status AS
SELECT f.handler, f.fallback, b.state, b.failures, b.opened_at, b.retry_at
FROM cqrs.fallback f
CROSS JOIN LATERAL cqrs.breaker_state(f.handler) b
WHERE f.max_failures > 0;
GRANT SELECT ON @extschema@.cqrs_breaker_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_breaker_status IS 'circuit breakers';

-- What a topic keeps, as the caller's snapshot shows it. It is estimated from
-- a few pages, however many events there are. All NULL if the caller may not
-- know; all but held_by NULL if a table of the topic is locked, missing or
-- altered.
--   events             estimate: pages times the rows of a few of them;
--                      includes those of transactions that aborted or are in
--                      progress
--   bytes              of tables and indexes
--   oldest_emitted_at  when the first event of the oldest segment was emitted
--   segments           how many are not empty
--   held_by            what keeps the oldest segment but the current one from
--                      being truncated, or NULL: nothing, or there is none:
--                      retention; restore (until cqrs_adopt()); subscription;
--                      lock; prepared_transaction; change (of the topic or its
--                      subscriptions, which is under way); or unusable: a
--                      table of the topic is locked, missing or altered
--   held_by_name       of the subscription
--   held_by_pid        process that has the lock; NULL otherwise, and for a
--                      prepared transaction
--   held_since         retention: since another segment is the current one;
--                      subscription: since its cursor last moved
CREATE FUNCTION cqrs.topic_progress(topic_id integer,
	OUT events bigint, OUT bytes bigint, OUT oldest_emitted_at timestamptz, OUT segments integer,
	OUT held_by text, OUT held_by_name text, OUT held_by_pid integer, OUT held_since timestamptz)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_topic_progress';
GRANT EXECUTE ON FUNCTION cqrs.topic_progress(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.topic_progress(integer) IS 'what a topic keeps, and why';

-- The topics that the reader has SELECT on; for members of pg_monitor, all.
-- Columns: see cqrs.topic and cqrs.topic_progress(); held_since is, with a
-- lock, when the transaction that has it started, if the reader may know.
CREATE VIEW @extschema@.cqrs_topic_status WITH (security_barrier) AS
SELECT t.topic,
	   p.events,
	   p.bytes,
	   p.oldest_emitted_at,
	   p.segments,
	   t.current_segment,
	   t.retention,
	   p.held_by,
	   p.held_by_name,
	   p.held_by_pid,
	   coalesce(p.held_since, a.xact_start) AS held_since
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.topic_progress(t.topic_id) p
LEFT JOIN pg_stat_activity a ON a.pid = p.held_by_pid
WHERE p.segments IS NOT NULL OR p.held_by IS NOT NULL;
GRANT SELECT ON @extschema@.cqrs_topic_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_topic_status IS 'size of each topic, and what keeps it from being truncated';

-- How far a subscription is, as the caller's snapshot shows it. However many
-- events wait, this costs the same: at most 10,000 are looked at for each
-- partition, 100,000 in all.
--   lag_events       committed events not delivered: exact up to that number, beyond
--                    an upper bound (with several partitions, an estimate of
--                    one). NULL, as are the next two, if they cannot be
--                    counted: a topic's table was altered or is locked
--   lag              age of the oldest of them; 0 if there is none. An upper bound while much of a large window was
--                    delivered
--   lag_bytes        their size on disk, estimated from those looked at
--   events_per_second
--                    the rate at which they were delivered lately
--   pid              of a process that delivers, or NULL
--   state            idle; delivering; waiting: only for another attempt, or for
--                    an outage to end; no_worker: there are events, and no
--                    worker; pending: there are events, which no client has
--                    settled; paused; suspended; restored; copied
CREATE FUNCTION cqrs.subscription_progress(subscription_id integer,
	OUT lag_events bigint, OUT lag interval, OUT lag_bytes bigint,
	OUT events_per_second double precision, OUT pid integer, OUT state text)
LANGUAGE C STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_subscription_progress';
GRANT EXECUTE ON FUNCTION cqrs.subscription_progress(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.subscription_progress(integer) IS 'progress of a subscription';

-- Who has the locks for moving a subscription's cursors, other than the caller.
--   partition    whose cursor; no row if nobody has its lock
--   pid          the process, or NULL: a prepared transaction has it ...
--   transaction  ... of this id
CREATE FUNCTION cqrs.cursor_holders(subscription_id integer,
	OUT "partition" integer, OUT pid integer, OUT transaction xid) RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'cqrs_cursor_holders';
GRANT EXECUTE ON FUNCTION cqrs.cursor_holders(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.cursor_holders(integer) IS 'who has the locks of a subscription''s cursors';

-- The same, with what the reader may see of these sessions in
-- pg_stat_activity: everything for members of pg_monitor and for the role's
-- own sessions, otherwise NULL.
--   since  when the transaction began, or was prepared
--   gid    of a prepared transaction
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
COMMENT ON VIEW cqrs.cursor_holder IS 'who has the locks of cursors';

-- The subscriptions that the reader owns, or on whose view the reader has
-- SELECT; for members of pg_monitor, all.
--   owner     NULL: nobody, and nothing is delivered; see owner_missing in
--             cqrs_health()
--   next_partitions
--             the number that was asked for; NULL: no other one
--   held_by_pid, held_since
--             who has had the lock of a cursor for a second or more, so that
--             nobody else can deliver: a client in an open transaction, a
--             handler at work; and since when, if the reader may know. Of
--             several, the first. With held_since alone, a prepared
--             transaction
--   retrying  events that failed and are tried again
--   waiting   parked events that have not failed: they wait for one
--             that has, or were handed out and are not settled
--   dead      dead letters; of these three, 10,000 means as many or more
--   retry_at  when the first of these that failed is due or, if the whole
--             subscription failed, when it is tried again
--   state     as in cqrs.subscription_progress(); or held: none of it, because somebody
--             has the lock of a cursor; or broken: a cursor is missing
--   error ..  of what failed, and was not delivered since: the whole
--             subscription (then error_position is NULL), or else the event
--             that failed last; of more than 10,000 events that are tried
--             again, so many are looked at. NULL: nothing is wrong, and there is
--             no dead letter
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
	   CASE WHEN p.state IN ('idle', 'waiting', 'no_worker', 'pending') AND (h.pid IS NOT NULL OR h.since IS NOT NULL) THEN 'held'
			ELSE coalesce(p.state, 'broken') END AS state,
	   s.state_since,
	   s.state_reason,
	   s.missed_events,
	   p.lag_events,
	   p.lag,
	   p.lag_bytes,
	   p.events_per_second,
	   p.pid,
	   h.pid AS held_by_pid,
	   h.since AS held_since,
	   r.retrying,
	   r.waiting,
	   (SELECT count(*)
		FROM (SELECT FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id LIMIT 10000) d) AS dead,
	   r.retry_at,
	   e.message AS error,
	   e.sqlstate AS error_sqlstate,
	   e.failed_at AS error_at,
	   e.position AS error_position
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
		   (SELECT min(coalesce(f.retry_at, r.due_at))
			FROM generate_series(0, s.partitions - 1) part
			LEFT JOIN cqrs.failure f ON f.subscription_id = s.subscription_id AND f.partition = part
			LEFT JOIN LATERAL (
				SELECT due_at FROM cqrs.retry r
				WHERE r.subscription_id = s.subscription_id AND r.partition = part
					  AND due_at IS NOT NULL AND attempts > 0
				ORDER BY due_at LIMIT 1) r ON true) AS retry_at) r
LEFT JOIN LATERAL (
	SELECT h.pid, h.since
	FROM cqrs.cursor_holder h
	WHERE h.subscription_id = s.subscription_id
		  AND coalesce(h.since <= clock_timestamp() - interval '1 s', true)
	ORDER BY h.since LIMIT 1) h ON true
LEFT JOIN LATERAL (
	SELECT f.*
	FROM (SELECT failed_at, NULL::bigint AS position, sqlstate, message
		  FROM cqrs.failure f WHERE f.subscription_id = s.subscription_id
		  UNION ALL
		  (SELECT failed_at, position, sqlstate, message
		   FROM cqrs.retry r WHERE r.subscription_id = s.subscription_id AND failed_at IS NOT NULL LIMIT 10000)
		  UNION ALL
		  (SELECT died_at, position, sqlstate, message
		   FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id
		   ORDER BY d.subscription_id DESC, died_at DESC LIMIT 1)) f
	ORDER BY f.position IS NOT NULL, f.failed_at DESC LIMIT 1) e ON true
WHERE pg_has_role(current_user, o.owner, 'USAGE')
   OR has_table_privilege(current_user, o.view, 'SELECT')
   OR pg_has_role(current_user, 'pg_monitor', 'USAGE');
GRANT SELECT ON @extschema@.cqrs_subscription_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_subscription_status IS 'lag, errors and worker of each subscription';

-- The processes of cqrs_outbox in the whole cluster; columns as below, but the
-- subscription's id, which is of the worker's database.
-- Errors: 55000 cqrs_outbox is not in shared_preload_libraries.
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs.worker_status(OUT kind text, OUT pid integer, OUT database name,
	OUT subscription_id integer, OUT "partition" integer, OUT state text, OUT started_at timestamptz) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'cqrs_worker_status';
REVOKE ALL ON FUNCTION cqrs.worker_status() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.worker_status() TO pg_monitor;
COMMENT ON FUNCTION cqrs.worker_status() IS 'processes of cqrs_outbox';

-- The processes of cqrs_outbox in the whole cluster.
--   kind          launcher, manager (one a database) or worker
--   pid           process id
--   database      NULL for the launcher
--   subscription, partition
--                 what a worker serves; subscription is NULL if it is in another
--                 database, or gone
--   state         starting, running, idle, delivering or stopping
--   started_at    when it started
-- Errors: 55000 cqrs_outbox is not in shared_preload_libraries.
-- Privileges: SELECT, granted to pg_monitor, not to PUBLIC.
CREATE VIEW @extschema@.cqrs_worker_status WITH (security_barrier) AS
SELECT w.kind, w.pid, w.database, coalesce(s.subscription, c.consumer) AS subscription, w.partition, w.state, w.started_at
FROM cqrs.worker_status() w
LEFT JOIN cqrs.subscription s ON s.subscription_id = w.subscription_id AND w.database = current_database()
LEFT JOIN cqrs.consumer c ON c.consumer_id = w.subscription_id AND w.database = current_database();
GRANT SELECT ON @extschema@.cqrs_worker_status TO pg_monitor;
COMMENT ON VIEW @extschema@.cqrs_worker_status IS 'processes of cqrs_outbox';
