/*
 * 70-monitor.sql
 *		What can be seen: events, status of everything, what is wrong, diagrams.
 */

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
CREATE FUNCTION @extschema@.cqrs_events(topic text DEFAULT NULL, batch_size integer DEFAULT 100,
	status text DEFAULT NULL, event_name text DEFAULT NULL, after_position bigint DEFAULT NULL) RETURNS SETOF @extschema@.cqrs_event
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
--   opened_at  when it opened last, or NULL: it is closed
--   retry_at   when it is half_open, or NULL
CREATE VIEW @extschema@.cqrs_breaker_status AS
SELECT f.handler, f.fallback, b.state, b.failures, b.opened_at, b.retry_at
FROM cqrs.fallback f
CROSS JOIN LATERAL cqrs.breaker_state(f.handler) b
WHERE f.fail_max > 0;
GRANT SELECT ON @extschema@.cqrs_breaker_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_breaker_status IS 'circuit breakers';

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
GRANT EXECUTE ON FUNCTION cqrs.topic_progress(integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.topic_progress(integer) IS 'what a topic keeps, and why';

-- Topics that the reader has SELECT on or, as a member of pg_monitor, all.
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
	   p.held_by_pid,
	   coalesce(p.held_since, a.xact_start) AS held_since
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.topic_progress(t.topic_id) p
LEFT JOIN pg_stat_activity a ON a.pid = p.held_by_pid
WHERE p.segments IS NOT NULL OR p.held_by IS NOT NULL;
GRANT SELECT ON @extschema@.cqrs_topic_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_topic_status IS 'size of each topic, and what keeps it from being truncated';

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

-- The same, with what the reader may know of them from pg_stat_activity: with
-- the role's own, and to members of pg_monitor, everything, otherwise NULL.
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
GRANT SELECT ON @extschema@.cqrs_subscription_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_subscription_status IS 'lag, errors and worker of each subscription';

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
CREATE FUNCTION @extschema@.cqrs_worker_status(OUT kind text, OUT pid integer, OUT database name,
	OUT subscription_id integer, OUT "partition" integer, OUT state text, OUT started_at timestamptz) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_worker_status() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_worker_status() TO pg_monitor;
COMMENT ON FUNCTION @extschema@.cqrs_worker_status() IS 'processes of cqrs_outbox';

-- What is wrong here that no table shows; see cqrs_health(). Nothing is waited
-- for, and nothing that is broken raises an error.
--   since  since when, if it matters only after a while
--   pid    a process whose transaction is to blame, if it matters only after a
--          while
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs.check(OUT severity text, OUT problem text, OUT object text, OUT detail text, OUT hint text,
	OUT since timestamptz, OUT pid integer) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'cqrs_check';
REVOKE ALL ON FUNCTION cqrs.check() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.check() TO pg_monitor;
COMMENT ON FUNCTION cqrs.check() IS 'problems that no table shows';

-- Are library and extension of one version?
CREATE FUNCTION cqrs.usable() RETURNS boolean
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_usable';
GRANT EXECUTE ON FUNCTION cqrs.usable() TO PUBLIC;
COMMENT ON FUNCTION cqrs.usable() IS 'whether library and extension fit each other';

-- What may be wrong here, for cqrs_health() to choose from. It is a view so
-- that tables are read with the extension's privileges, and it does not depend
-- on the reader's search_path.
--   lag   a problem only if this is more than what the reader allows ...
--   held  ... or this; NULL: it is one in any case
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
GRANT SELECT ON cqrs.problem TO pg_monitor;
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
CREATE FUNCTION @extschema@.cqrs_health(max_lag interval DEFAULT '5 min', max_hold interval DEFAULT '1 min')
RETURNS TABLE (severity text, problem text, object text, detail text, hint text)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 10
BEGIN ATOMIC
	SELECT p.severity, p.problem, p.object, p.detail, p.hint
	FROM cqrs.problem p
	WHERE coalesce(p.lag > max_lag, true) AND coalesce(p.held > max_hold, true)
	ORDER BY array_position(ARRAY['error', 'warning', 'notice'], p.severity), p.problem, p.object, p.detail;
END;
REVOKE ALL ON FUNCTION @extschema@.cqrs_health(interval, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_health(interval, interval) TO pg_monitor;
COMMENT ON FUNCTION @extschema@.cqrs_health(interval, interval) IS 'what is wrong, and what to do about it';

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
CREATE FUNCTION @extschema@.cqrs_diagram(kind text DEFAULT 'flowchart', name text DEFAULT NULL) RETURNS text
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_diagram(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_diagram(text, text) TO pg_monitor;
COMMENT ON FUNCTION @extschema@.cqrs_diagram(text, text) IS 'a picture of what is registered, as Mermaid text';
