/*
 * 71-health.sql
 *		What is wrong, and what to do about it.
 */

-- Do the library and the extension have the same version?
CREATE FUNCTION cqrs.usable() RETURNS boolean
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_usable';
GRANT EXECUTE ON FUNCTION cqrs.usable() TO PUBLIC;
COMMENT ON FUNCTION cqrs.usable() IS 'whether library and extension fit each other';

-- The version of the library.
CREATE FUNCTION cqrs.library_version() RETURNS text
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_library_version';
REVOKE ALL ON FUNCTION cqrs.library_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.library_version() TO pg_monitor;
COMMENT ON FUNCTION cqrs.library_version() IS 'version of the library';

-- What shared memory says of the processes that this database needs. All NULL if
-- cqrs_outbox is not in shared_preload_libraries.
--   max_databases, max_managers, max_workers
--                  how many there may be
--   launcher       it is running
--   full           no more databases can be served
--   exhausted      the server has no process for a manager
--   state          of the database: unknown, resting, requested, starting, running
--   held           a command that needs the database for itself keeps out its
--                  manager, ...
--   failures       ... which ended unexpectedly, this often in a row, ...
--   start_after    ... and may start then, or has waited since then
--   no_worker      the server has no process for a worker
--   waiting_since  since when a subscription waits for one, or NULL: none does
--   failed_subscription, worker_failures, worker_retry_at
--                  the one whose worker ended unexpectedly (0: none), how often in a
--                  row, and when the next may start
--   now            the time, as if the clock had not been set
--   clock_back_at  the clock was set forward; until then, nothing is released
--                  by it. NULL: it was not
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs.background(OUT max_databases integer, OUT max_managers integer, OUT max_workers integer,
	OUT launcher boolean, OUT "full" boolean, OUT exhausted boolean, OUT state text, OUT held boolean, OUT failures integer,
	OUT start_after timestamptz, OUT no_worker boolean, OUT waiting_since timestamptz, OUT failed_subscription integer,
	OUT worker_failures integer, OUT worker_retry_at timestamptz, OUT now timestamptz, OUT clock_back_at timestamptz)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_background';
REVOKE ALL ON FUNCTION cqrs.background() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.background() TO pg_monitor;
COMMENT ON FUNCTION cqrs.background() IS 'what shared memory says of processes';

-- The tables of a topic that are not as cqrs_create_topic() made them. Waits for
-- nothing.
--   state   locked, missing, altered
--   detail  what was altered
--   pid     who has locked it; NULL: a prepared transaction, or it is waited for
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION cqrs.broken_tables(topic_id integer, OUT name text, OUT state text, OUT detail text, OUT pid integer)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'cqrs_broken_tables';
REVOKE ALL ON FUNCTION cqrs.broken_tables(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.broken_tables(integer) TO pg_monitor;
COMMENT ON FUNCTION cqrs.broken_tables(integer) IS 'tables of a topic that are not as they were made';

-- The function that would be called for a signature (see cqrs.command).
--   registered_owner  whose it must be; NULL: anybody's
--   returns_set       it must return a set; otherwise, it must not
--   funcid, owner, argument_type, result_type
--                     NULL: there is none
--   taken_over        there is one, but it is somebody else's, in words
-- What is in pg_proc is everybody's to read.
CREATE FUNCTION cqrs.find_function(signature text, registered_owner text, returns_set boolean,
	OUT funcid oid, OUT owner oid, OUT argument_type regtype, OUT result_type regtype, OUT taken_over text)
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_find_function';
GRANT EXECUTE ON FUNCTION cqrs.find_function(text, text, boolean) TO PUBLIC;
COMMENT ON FUNCTION cqrs.find_function(text, text, boolean) IS 'function that a signature names';

-- ----------------------------------------------------------------------
-- What may be wrong here, for cqrs_health() to choose from. These are views,
-- so that tables are read with the extension's privileges, and nothing depends
-- on the reader's search_path. They wait for nothing, and raise no error
-- because something is broken.
--
-- Each problem has a stable name, one of three severities, and a hint that says
-- what to do; a hint that is a statement can be run as it is.
--
-- lag    a problem only if this is more than the reader allows ...
-- held   ... or this; NULL: it is one in any case
-- ----------------------------------------------------------------------

-- Does this database have the processes that it needs? On a standby, none runs.
CREATE VIEW cqrs.process_problem WITH (security_barrier) AS
SELECT 'error' AS severity, 'not_preloaded' AS problem, 'setting shared_preload_libraries' AS object,
	   'Nothing is delivered in the background.' AS detail,
	   'Add cqrs_outbox to shared_preload_libraries and restart the server.' AS hint, NULL::interval AS held
FROM cqrs.background() b
WHERE b.state IS NULL
UNION ALL
SELECT c.*
FROM (SELECT *, current_setting('cqrs_outbox.deliver', true)::boolean AS delivers FROM cqrs.background()) b
CROSS JOIN (SELECT format('database "%s"', datname) AS object, datistemplate, datallowconn
			FROM pg_database WHERE datname = current_database()) d
CROSS JOIN LATERAL (
	SELECT 'warning', 'deliver_off', 'setting cqrs_outbox.deliver',
		   'Nothing is delivered in the background, in any database.',
		   'Turn it on, unless this is a copy of a production database.', NULL::interval
	WHERE NOT b.delivers
	UNION ALL
	SELECT 'error', 'no_launcher', 'server',
		   'The launcher is not running: managers that end are not started again.',
		   'See the server''s log. It is started again within a second, unless max_worker_processes had no room for it when the server started.',
		   NULL
	WHERE NOT b.launcher
	UNION ALL
	-- it should have a manager, and has none: the first reason that applies;
	-- to wait for a moment is no problem
	SELECT 'error', 'no_manager', d.object,
		   'Nothing is delivered here in the background: the database has no manager. ' || w.why, w.hint, NULL
	FROM (SELECT why, hint
		  FROM (VALUES
			(1, b.state = 'unknown' AND d.datistemplate, 'It is a template.',
			 'ALTER DATABASE ... IS_TEMPLATE false, then emit an event.'),
			(2, b.state = 'unknown' AND NOT d.datallowconn, 'It does not allow connections.',
			 'ALTER DATABASE ... ALLOW_CONNECTIONS true, then emit an event.'),
			(3, b.state = 'unknown' AND b.full, format('There are %s others that have.', b.max_databases),
			 'Raise cqrs_outbox.max_databases and restart the server.'),
			(4, b.state = 'unknown', 'Nobody has asked for one.', 'Emit an event.'),
			(5, b.held, 'A command that needs the database for itself keeps it out.',
			 'Wait for ALTER DATABASE, DROP DATABASE or CREATE DATABASE to end.'),
			(6, b.failures > 0,
			 format('It ended unexpectedly, %s times in a row; the next may start at %s.', b.failures, b.start_after),
			 'See the server''s log.'),
			(7, b.exhausted, 'All of max_worker_processes are in use.', 'Raise max_worker_processes and restart the server.'),
			(8, b.now - b.start_after >= interval '5 s',
			 format('It waits for one since %s: others have all %s that there may be at the same time.',
					b.start_after, b.max_managers),
			 'Raise cqrs_outbox.max_managers, and max_worker_processes by as many, and restart the server.')
		  ) w(n, applies, why, hint)
		  WHERE applies ORDER BY n LIMIT 1) w
	WHERE b.state NOT IN ('resting', 'running') AND b.delivers
	UNION ALL
	-- its manager does not have the workers that it needs
	SELECT 'error', 'no_worker', d.object, 'Subscriptions wait for a worker: all of max_worker_processes are in use.',
		   'Raise max_worker_processes and restart the server.', NULL
	WHERE b.no_worker AND b.state = 'running' AND b.delivers
	UNION ALL
	SELECT 'warning', 'workers_busy', d.object,
		   format('Subscriptions wait for a worker since %s: all %s are in use.', b.waiting_since, b.max_workers),
		   'See cqrs_worker_status. Raise cqrs_outbox.max_workers and restart the server.',
		   clock_timestamp() - b.waiting_since
	WHERE b.waiting_since IS NOT NULL AND NOT b.no_worker AND b.state = 'running' AND b.delivers
	UNION ALL
	SELECT 'error', 'worker_failed', s.object,
		   format('A worker for it ended unexpectedly, %s times in a row; the next may start at %s.',
				  b.worker_failures, b.worker_retry_at),
		   'See the server''s log.', NULL
	FROM (SELECT subscription_id, format('subscription "%s"', subscription) AS object FROM cqrs.subscription
		  UNION ALL
		  SELECT consumer_id, format('consumer "%s"', consumer) FROM cqrs.consumer) s
	WHERE s.subscription_id = b.failed_subscription AND b.state = 'running' AND b.delivers
	UNION ALL
	-- there is no room for what is configured; the server's launcher of logical
	-- replication takes one, too
	SELECT 'warning', 'few_worker_processes', 'setting max_worker_processes',
		   format('It is %s; needed are %s for the server itself, 1 for the launcher, %s for managers and %s for workers. So there are %s managers and %s workers.',
				  n.available, n.others, n.managers, n.workers, b.max_managers, b.max_workers),
		   format('Set it to %s or more, if there are parallel queries or subscriptions of logical replication, and restart the server.',
				  n.others + 1 + n.managers + n.workers), NULL
	FROM (SELECT current_setting('max_worker_processes')::integer AS available,
				 (current_setting('max_logical_replication_workers')::integer > 0)::integer AS others,
				 current_setting('cqrs_outbox.max_managers', true)::integer AS managers,
				 current_setting('cqrs_outbox.max_workers', true)::integer AS workers) n
	WHERE n.available < n.others + 1 + n.managers + n.workers
	UNION ALL
	SELECT 'warning', 'clock_jumped', 'server',
		   format('The clock was set forward by more than a minute, to %s. Nothing that is due by it only now is released before %s: scheduled commands, segments, idempotency keys.',
				  clock_timestamp(), b.clock_back_at),
		   'If the clock is wrong, put it right before that time.', NULL
	WHERE b.clock_back_at IS NOT NULL
) c
WHERE b.state IS NOT NULL AND NOT pg_is_in_recovery();
COMMENT ON VIEW cqrs.process_problem IS 'what may be wrong with processes';

-- Are topics as cqrs_create_topic() made them?
CREATE VIEW cqrs.topic_problem WITH (security_barrier) AS
SELECT 'notice' AS severity, 'topic_restored' AS problem, format('topic "%s"', t.topic) AS object,
	   'It was restored from a dump; its restored events are not delivered.' AS detail,
	   'SELECT cqrs_adopt();' AS hint, NULL::interval AS held
FROM cqrs.topic t
WHERE NOT t.native
UNION ALL
SELECT 'error', 'topic_view_missing', format('topic "%s"', t.topic),
	   format('View cqrs_topics.%I does not exist: nobody may emit or read.', t.topic),
	   format('SELECT cqrs_alter_topic(%1$L); -- makes it again, and keeps the events; then GRANT what it takes ON cqrs_topics.%1$I', t.topic), NULL
FROM cqrs.topic t
WHERE NOT EXISTS (SELECT FROM pg_class v
				  WHERE v.relnamespace = 'cqrs_topics'::regnamespace AND v.relname = t.topic AND v.relkind = 'v')
UNION ALL
SELECT 'error', 'topic_trigger_missing', format('topic "%s"', t.topic),
	   format('View cqrs_topics.%I has no trigger that emits what is inserted: nothing but cqrs_emit() can emit to it.', t.topic),
	   format('CREATE TRIGGER emit INSTEAD OF INSERT ON cqrs_topics.%I FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event();',
			  t.topic), NULL
FROM cqrs.topic t
JOIN pg_class v ON v.relnamespace = 'cqrs_topics'::regnamespace AND v.relname = t.topic AND v.relkind = 'v'
WHERE NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = v.oid AND g.tgfoid = 'cqrs.insert_event()'::regprocedure)
UNION ALL
SELECT CASE b.state WHEN 'locked' THEN 'warning' ELSE 'error' END,
	   CASE b.state WHEN 'locked' THEN 'topic_locked' ELSE 'topic_table_' || b.state END,
	   format('topic "%s"', t.topic),
	   CASE b.state
			WHEN 'locked' THEN format('%s has, or waits for, ACCESS EXCLUSIVE on table %s; everybody else waits.',
									  coalesce('Process ' || b.pid, 'A transaction'), b.name)
			WHEN 'missing' THEN format('Table %s does not exist.', b.name)
			ELSE format('Table %s was altered. %s', b.name, b.detail) END,
	   CASE b.state
			WHEN 'locked' THEN 'See pg_locks, and end that transaction.'
			WHEN 'missing' THEN format('SELECT cqrs_drop_topic(%L, cascade => true);', t.topic)
			ELSE 'Undo the change; the tables of a topic are not meant to be altered.' END,
	   clock_timestamp() - a.xact_start
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.broken_tables(t.topic_id) b
LEFT JOIN pg_stat_activity a ON a.pid = b.pid
UNION ALL
-- space is not freed
SELECT 'notice', 'truncation_held', format('topic "%s"', t.topic),
	   format('A segment that nobody needs any more cannot be truncated: %s has a lock on it.',
			  CASE WHEN p.held_by = 'lock' THEN format('process %s', p.held_by_pid) ELSE 'a prepared transaction' END),
	   CASE WHEN p.held_by_pid IS NULL THEN 'See pg_prepared_xacts; COMMIT PREPARED or ROLLBACK PREPARED.'
			ELSE format('Let the transaction of process %1$s end, or pg_terminate_backend(%1$s).', p.held_by_pid) END,
	   clock_timestamp() - coalesce(a.xact_start, (SELECT min(prepared) FROM pg_prepared_xacts
												   WHERE database = current_database()))
FROM cqrs.topic t
CROSS JOIN LATERAL cqrs.topic_progress(t.topic_id) p
LEFT JOIN pg_stat_activity a ON a.pid = p.held_by_pid
WHERE p.held_by IN ('lock', 'prepared_transaction');
COMMENT ON VIEW cqrs.topic_problem IS 'what may be wrong with topics';

-- Do the registered functions and types exist?
CREATE VIEW cqrs.function_problem WITH (security_barrier) AS
WITH handler(severity, problem, object, signature, owner, returns_set, detail, hint) AS (
	SELECT 'warning', 'command_handler_missing', format('%s "%s"', c.kind, c.command_name),
		   h.signature, h.owner, c.kind = 'stream',
		   format('Its handler %s does not exist.', h.signature),
		   format('SELECT cqrs_unregister_%s(%L); -- or create it again', CASE c.kind WHEN 'query' THEN 'query' ELSE 'command' END,
				  c.command_name)
	FROM cqrs.command c
	CROSS JOIN LATERAL unnest(c.handlers, c.owners) h(signature, owner)
	UNION ALL
	SELECT 'warning', 'event_handler_missing', format('event "%s"', h.event_name),
		   h.handler, h.owner, false,
		   format('Its handler %s does not exist.', h.handler),
		   format('SELECT cqrs_unregister_event_handler(%L, %L); -- or create it again', h.event_name, h.handler)
	FROM cqrs.event_handler h
	JOIN cqrs.event_type USING (event_name)
), registered AS (
	SELECT *, object AS taken_over_object FROM handler
	UNION ALL
	SELECT 'warning', 'fallback_missing', h.object, b.fallback, b.owner, false,
		   format('The fallback %s of its handler %s does not exist.', b.fallback, b.handler),
		   format('SELECT cqrs_unregister_fallback(%L); -- or create it again', b.handler),
		   'fallback ' || b.fallback
	FROM handler h
	JOIN cqrs.fallback b ON b.handler = h.signature
	UNION ALL
	SELECT 'error', 'middleware_missing', 'middleware ' || m.handler, m.handler, m.owner, false,
		   'It does not exist, so no command or query can be sent.',
		   format('SELECT cqrs_unregister_middleware(%L); -- or create it again', m.handler),
		   'middleware ' || m.handler
	FROM cqrs.middleware m
)
SELECT r.severity, c.*
FROM registered r
CROSS JOIN LATERAL cqrs.find_function(r.signature, r.owner, r.returns_set) f
CROSS JOIN LATERAL (
	SELECT r.problem, r.object, r.detail, r.hint
	WHERE f.taken_over IS NULL
	UNION ALL
	-- it exists, but belongs to somebody else now
	SELECT 'function_taken_over', r.taken_over_object, format('Function %s is not called. %s', r.signature, f.taken_over),
		   'Register it again if that is what is meant; otherwise remove it.'
	WHERE f.taken_over IS NOT NULL
) c
WHERE f.funcid IS NULL
UNION ALL
SELECT 'warning', 'payload_type_missing', format('event "%s"', e.event_name),
	   'Its payload type was dropped: no event of it can be emitted.',
	   'Register it again, with a type that exists.'
FROM cqrs.event_type e
WHERE NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = e.payload_type);
COMMENT ON VIEW cqrs.function_problem IS 'what may be wrong with what is registered';

-- Does everything exist that delivering to a subscription takes, and may its
-- owner use it? If nobody owns it, owner is NULL, and so are the owner's
-- privileges.
CREATE VIEW cqrs.owner_problem WITH (security_barrier) AS
WITH owned AS (
	SELECT s.subscription_id, s.subscription, s.handler, s.server, s.runs,
		   s.handler IS NULL AND s.server IS NULL AS is_pulled,
		   o.owner
	FROM cqrs.subscription s
	CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
), unowned AS (
	SELECT o.*, pg_get_userbyid(v.relowner) AS role
	FROM owned o
	LEFT JOIN pg_class v ON v.relnamespace = 'cqrs_subscriptions'::regnamespace AND v.relname = o.subscription AND v.relkind = 'v'
	WHERE o.owner IS NULL
), reads AS (
	SELECT o.subscription_id, o.subscription, o.owner, t.topic
	FROM owned o
	JOIN cqrs.subscription_topic USING (subscription_id)
	JOIN cqrs.topic t USING (topic_id)
), called AS (
	SELECT o.*, f.funcid, f.owner AS function_owner
	FROM owned o
	CROSS JOIN LATERAL cqrs.find_function(o.handler, NULL, false) f
	WHERE o.handler IS NOT NULL AND o.owner IS NOT NULL
)
SELECT c.severity, c.problem, format('subscription "%s"', c.subscription) AS object, c.detail, c.hint
FROM (
	SELECT 'warning' AS severity, 'no_topics' AS problem, subscription, 'The topics that it reads were dropped.' AS detail,
		   format('SELECT cqrs_unsubscribe(%L);', subscription) AS hint
	FROM owned o
	WHERE NOT EXISTS (SELECT FROM reads r WHERE r.subscription_id = o.subscription_id)
	UNION ALL
	SELECT 'error', 'owner_missing', subscription,
		   format('View cqrs_subscriptions.%I does not exist, whose owner is the subscription''s; nothing is delivered to it.',
				  subscription),
		   format('SELECT cqrs_alter_subscription(%1$L); -- as a superuser, who owns it then; or cqrs_unsubscribe(%1$L)%2$s',
				  subscription, CASE runs WHEN 'sagas' THEN ', which forgets the sagas' END)
	FROM unowned
	WHERE role IS NULL
	UNION ALL
	SELECT 'error', 'owner_missing', subscription,
		   CASE u.runs WHEN 'commands'
				THEN format('Role "%s" owns its view, but another role enqueued its commands; they are not executed.', u.role)
				ELSE format('Role "%s" owns its view, but another role started its sagas; they do not go on.', u.role) END,
		   CASE u.runs WHEN 'commands'
				THEN format('GRANT SELECT ON cqrs_topics.%1$I TO %2$I WITH GRANT OPTION; -- to have role "%2$s" execute them; or SELECT cqrs_unsubscribe(%3$L);',
							r.topic, u.role, subscription)
				ELSE format('GRANT SELECT ON cqrs_topics.%1$I TO %2$I WITH GRANT OPTION; -- to have them go on as role "%2$s"; or %4$sSELECT cqrs_unsubscribe(%3$L);',
							r.topic, u.role, subscription, CASE u.runs WHEN 'sagas' THEN 'to forget them, ' END) END
	FROM unowned u
	JOIN reads r USING (subscription_id, subscription)
	WHERE u.role IS NOT NULL
	-- of what sagas wait for, only the times are in a topic of its own
	AND (u.runs IN ('commands', 'sagas') OR u.runs = 'saga_events' AND r.topic = subscription)
	UNION ALL
	SELECT 'error', 'topic_privilege', subscription,
		   format('Its owner, role "%s", may not read topic "%s".', pg_get_userbyid(owner), topic),
		   format('GRANT SELECT ON cqrs_topics.%I TO %I;', topic, pg_get_userbyid(owner))
	FROM reads r
	JOIN pg_class v ON v.relnamespace = 'cqrs_topics'::regnamespace AND v.relname = r.topic
	WHERE NOT has_table_privilege(r.owner, v.oid, 'SELECT')
	UNION ALL
	SELECT 'error', 'owner_connect', subscription,
		   format('The worker connects as its owner, role "%s", who may not connect to this database.', r.rolname),
		   format('GRANT CONNECT ON DATABASE %I TO %I;', current_database(), r.rolname)
	FROM owned o
	JOIN pg_roles r ON r.oid = o.owner
	WHERE NOT is_pulled AND NOT has_database_privilege(r.oid, current_database(), 'CONNECT')
	UNION ALL
	-- 17 lets a worker connect as a role without LOGIN
	SELECT 'error', 'owner_login', subscription,
		   format('The worker connects as its owner, role "%s", who is not permitted to log in.', r.rolname),
		   format('ALTER ROLE %I LOGIN; -- it needs no password for this', r.rolname)
	FROM owned o
	JOIN pg_roles r ON r.oid = o.owner
	WHERE NOT is_pulled AND NOT r.rolcanlogin AND current_setting('server_version_num')::integer < 170000
	UNION ALL
	SELECT 'error', 'handler_missing', subscription,
		   format('Its handler %s does not exist: it was dropped, or replaced by something that is not a function with this signature that returns one value.',
				  handler),
		   'Create it again, or name another with cqrs_alter_subscription().'
	FROM called
	WHERE funcid IS NULL
	UNION ALL
	SELECT 'error', 'handler_owner', subscription,
		   format('Its handler %s belongs to role "%s", which is neither the subscription''s owner nor a superuser.',
				  handler, pg_get_userbyid(function_owner)),
		   format('ALTER FUNCTION %s OWNER TO %I;', (pg_identify_object('pg_proc'::regclass, funcid, 0)).identity, pg_get_userbyid(owner))
	FROM called c
	WHERE function_owner <> owner AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = c.function_owner AND r.rolsuper)
	UNION ALL
	SELECT 'error', 'handler_privilege', subscription,
		   format('Its owner, role "%s", may not execute its handler %s.', pg_get_userbyid(owner), handler),
		   format('GRANT EXECUTE ON FUNCTION %s TO %I;', (pg_identify_object('pg_proc'::regclass, funcid, 0)).identity, pg_get_userbyid(owner))
	FROM called
	WHERE NOT has_function_privilege(owner, funcid, 'EXECUTE')
	UNION ALL
	SELECT 'error', 'server_missing', subscription,
		   format('Its server "%s" does not exist: it was dropped, or renamed.', server),
		   'Create it again, or name another with cqrs_alter_subscription().'
	FROM owned o
	WHERE server IS NOT NULL AND owner IS NOT NULL AND NOT EXISTS (SELECT FROM pg_foreign_server f WHERE f.srvname = o.server)
	UNION ALL
	SELECT 'error', 'server_privilege', subscription,
		   format('Its owner, role "%s", may not use server "%s".', pg_get_userbyid(owner), server),
		   format('GRANT USAGE ON FOREIGN SERVER %I TO %I;', server, pg_get_userbyid(owner))
	FROM owned o
	JOIN pg_foreign_server f ON f.srvname = o.server
	WHERE NOT has_server_privilege(o.owner, f.oid, 'USAGE')
) c;
COMMENT ON VIEW cqrs.owner_problem IS 'what subscriptions lack to be delivered';

-- Are subscriptions delivered, and in time?
CREATE VIEW cqrs.subscription_problem WITH (security_barrier) AS
SELECT c.severity, c.problem, format('subscription "%s"', s.subscription) AS object, c.detail, c.hint, c.lag, c.held
FROM cqrs.subscription s
CROSS JOIN LATERAL cqrs.subscription_progress(s.subscription_id) p
-- whose the sagas are
LEFT JOIN LATERAL (SELECT pg_get_userbyid(w.owner) AS owner FROM cqrs.subscription_owner(s.subscription_id) w) o ON s.runs IN ('sagas', 'saga_events')
CROSS JOIN LATERAL (
	-- nothing is delivered, because somebody or something decided so
	SELECT 'error' AS severity, 'suspended' AS problem,
		   format('It is suspended since %s, %s; events that it has missed: %s.',
				  s.state_since, s.state_reason, s.missed_events) AS detail,
		   format('SELECT cqrs_resume(%1$L); -- behind what it missed; if it is over its limit still, first cqrs_alter_subscription(%1$L, max_retained_size => ..., max_retained_age => ...)',
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
		   CASE WHEN s.runs IN ('sagas', 'saga_events')
				THEN format('SELECT cqrs_adopt(); -- or cqrs_drop_saga_queue(%L, cascade => true), to forget the restored sagas', o.owner)
				ELSE format('SELECT cqrs_adopt(); -- or cqrs_seek(%L, ''latest''), to pass the restored events by',
							s.subscription) END, NULL, NULL
	WHERE p.state = 'restored'
	UNION ALL
	SELECT 'error', 'cursor_missing', 'One of its cursors was not restored.',
		   CASE WHEN s.runs IN ('sagas', 'saga_events')
				THEN format('SELECT cqrs_drop_saga_queue(%1$L, cascade => true); -- then cqrs_create_saga_queue(%1$L)', o.owner)
				ELSE format('SELECT cqrs_unsubscribe(%L); -- then subscribe again', s.subscription) END, NULL, NULL
	WHERE p IS NULL
	UNION ALL
	-- or cannot be
	SELECT 'error',
		   -- could it be the server's fault, or the other side's?
		   CASE WHEN s.handler IS NOT NULL AND left(f.sqlstate, 2) NOT IN ('08', '53', '57', '58', 'XX')
				THEN 'handler_failing' ELSE 'failing' END,
		   format('It failed %s times in a row, and is tried again at %s: %s', f.failures, f.retry_at, f.message),
		   format('SELECT cqrs_retry_all(%L); -- once the cause is removed; otherwise, it is tried again by itself%s', s.subscription,
				  '. Its search_path: ' || s.search_path), NULL, NULL
	FROM (SELECT * FROM cqrs.failure f
		  WHERE f.subscription_id = s.subscription_id
		  ORDER BY f.failed_at DESC LIMIT 1) f
	WHERE s.state = 'active' AND NOT (s.delivery = 'exactly_once' AND f.sqlstate = '55000')
	UNION ALL
	-- or must not be, before it is known what its broker has
	SELECT 'error', 'diverged',
		   format('Partition %s is stopped: %s.', n, coalesce(f.message, 'the broker has what this database knows nothing of')),
		   format('SELECT cqrs_resume(%1$L, sent => ''again''); -- or ''trust''; before that, cqrs_seek(%1$L, ...) may pass by what consumers have. If another server has taken over, end this one',
				  s.subscription), NULL, NULL
	FROM generate_series(0, s.partitions - 1) n
	CROSS JOIN LATERAL (
		SELECT c.diverged FROM cqrs.cursor c
		WHERE c.subscription_id = s.subscription_id AND c.partition = n
		ORDER BY c.seq DESC LIMIT 1) c
	LEFT JOIN cqrs.failure f ON f.subscription_id = s.subscription_id AND f.partition = n
	WHERE s.delivery = 'exactly_once' AND c.diverged IS NOT NULL
	UNION ALL
	-- or went on without knowing that
	SELECT 'warning', 'resent',
		   format('Partition %s has sent again, since %s, what its broker may have had: what it had, this database did not know.', n, c.resent_at),
		   format('See what consumers have got twice. To be asked before: SELECT cqrs_alter_subscription(%L, on_divergence => ''stop'');', s.subscription),
		   NULL, NULL
	FROM generate_series(0, s.partitions - 1) n
	CROSS JOIN LATERAL (
		SELECT c.resent_at FROM cqrs.cursor c
		WHERE c.subscription_id = s.subscription_id AND c.partition = n
		ORDER BY c.seq DESC LIMIT 1) c
	WHERE s.delivery = 'exactly_once' AND c.resent_at > clock_timestamp() - interval '1 day'
	UNION ALL
	-- or is late
	SELECT 'warning', 'late',
		   format('Events that wait: %s, the first since %s.', p.lag_events,
				  date_trunc('second', clock_timestamp() - p.lag)),
		   CASE WHEN s.server IS NOT NULL THEN 'See its row in cqrs_subscription_status: its worker, and what the broker said last.'
				WHEN s.handler IS NULL THEN 'See whether its clients receive and acknowledge.'
				ELSE 'See its row in cqrs_subscription_status: whether its handler is at work, or waits.' END,
		   p.lag, NULL
	WHERE s.state = 'active' AND p.lag_events > 0
	UNION ALL
	SELECT 'warning', 'retrying',
		   format('Events that failed and are tried again: %s%s, the first emitted at %s, the last with: %s',
				  r.events, CASE r.events WHEN 10000 THEN ' or more' END, r.emitted_at, r.message),
		   format('SELECT cqrs_retry_all(%L); -- once the cause is removed; after max_attempts, they are dead letters', s.subscription),
		   clock_timestamp() - r.emitted_at, NULL
	FROM (SELECT count(*) AS events, min(emitted_at) AS emitted_at,
				 (array_agg(message ORDER BY failed_at DESC))[1] AS message
		  FROM (SELECT emitted_at, failed_at, message FROM cqrs.retry r
				WHERE r.subscription_id = s.subscription_id AND r.attempts > 0 LIMIT 10000) r) r
	WHERE r.events > 0
	UNION ALL
	SELECT 'warning', 'dead_letters',
		   format('Events that it gave up on: %s%s.', d.events, CASE d.events WHEN 10000 THEN ' or more' END),
		   format('SELECT * FROM cqrs_dead_letters WHERE subscription = %1$L; -- then cqrs_redrive_all(%1$L), cqrs_discard(%1$L, ARRAY[event_id]) or cqrs_discard_all(%1$L)',
				  s.subscription), NULL, NULL
	FROM (SELECT count(*) AS events
		  FROM (SELECT FROM cqrs.dead_letter d WHERE d.subscription_id = s.subscription_id LIMIT 10000) d) d
	WHERE d.events > 0
	UNION ALL
	-- or does not get its new number of partitions, or its new ordering
	SELECT 'warning', 'partitions_changing',
		   format('Since %s it is to have %s partitions, ordering by %s, instead of %s, by %s; it waits for partition %s: %s', s.epoch_since,
				  s.next_partitions, s.next_ordering, s.partitions, s.ordering, w.partition,
				  CASE WHEN w.partition IS NULL THEN 'their locks, or those of its topics, are not free.'
					   WHEN w.leased_until > clock_timestamp() THEN format('a client has what is before that until %s.', w.leased_until)
					   ELSE 'not all is delivered that was committed before.' END),
		   CASE WHEN s.state <> 'active' THEN format('SELECT cqrs_resume(%L);', s.subscription)
				ELSE format('SELECT cqrs_alter_subscription(%L, partitions => %s, ordering => %L); -- to keep those that it has', s.subscription, s.partitions, s.ordering) END,
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
				THEN format('SELECT pg_blocking_pids(%s); -- whom its handler waits for; delivery_timeout limits it', h.pid)
				ELSE format('SELECT pg_terminate_backend(%s); -- unless the client ends its transaction', h.pid) END,
		   NULL, clock_timestamp() - h.since
	FROM cqrs.cursor_holder h
	WHERE h.subscription_id = s.subscription_id AND h.since IS NOT NULL
) c;
COMMENT ON VIEW cqrs.subscription_problem IS 'what may be wrong with subscriptions';

-- What may be wrong with sagas. One that is to go on by itself, and does not though
-- nothing waits for its role's worker, has lost what was to wake it; for that, the
-- 10,000 oldest are looked at.
CREATE VIEW cqrs.saga_problem WITH (security_barrier) AS
WITH trouble AS (
	SELECT a.saga_id, a.saga_name, e.status, e.at, e.error, (cqrs.saga_steps(a.saga_name, a.version))[e.next + 1] AS step_name
	FROM cqrs.saga_entry e
	JOIN cqrs.saga a ON a.saga_id = e.saga_id AND a.segment = e.segment
	WHERE e.trouble IS NOT NULL
	AND NOT EXISTS (SELECT FROM cqrs.saga_entry l
					WHERE l.segment = e.segment AND l.saga_id = e.saga_id AND l.branch = e.branch AND l.seq > e.seq)
	LIMIT 10000
), asleep AS (
	SELECT a.saga_id, a.saga_name, a.topic_id, e.at, e.due, (cqrs.saga_steps(a.saga_name, a.version))[e.next + 1] AS step_name
	FROM (SELECT * FROM cqrs.saga ORDER BY saga_id LIMIT 10000) a
	CROSS JOIN LATERAL (SELECT l.* FROM cqrs.saga_entry l
						WHERE l.segment = a.segment AND l.saga_id = a.saga_id AND l.branch = 0 ORDER BY l.seq DESC LIMIT 1) e
	WHERE e.status IN ('running', 'compensating', 'retrying', 'sleeping') AND coalesce(e.due, e.at) < clock_timestamp() - interval '1 minute'
)
SELECT 'error' AS severity, 'saga_failed' AS problem, format('saga %s, "%s"', saga_id, saga_name) AS object,
	   format('It failed at step "%s": %s', step_name, error) AS detail,
	   format('SELECT cqrs_retry_saga(%L, %L); -- when the cause is removed; or cqrs_skip_step()', saga_id, step_name) AS hint,
	   NULL::interval AS held
FROM trouble
WHERE status = 'failed'
UNION ALL
SELECT 'error', 'saga_stuck', format('saga %s, "%s"', saga_id, saga_name), format('It is stuck at step "%s": %s', step_name, error),
	   'Create what is missing, or grant EXECUTE; it goes on by itself then.', clock_timestamp() - at
FROM trouble
WHERE status = 'stuck'
UNION ALL
SELECT 'error', 'saga_asleep', format('saga %s, "%s"', n.saga_id, n.saga_name),
	   format('It was to go on with step "%s" at %s, and nothing is on its way to it.', n.step_name, coalesce(n.due, n.at)),
	   format('SELECT cqrs_resume_sagas(%L);', pg_get_userbyid(o.owner)), NULL
FROM asleep n
JOIN cqrs.subscription_topic st USING (topic_id)
JOIN cqrs.subscription s ON s.subscription_id = st.subscription_id AND s.runs = 'sagas' AND s.state = 'active'
CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
WHERE o.owner IS NOT NULL
AND NOT EXISTS (SELECT FROM @extschema@.cqrs_subscription_status u
				WHERE u.subscription = s.subscription AND (u.lag_events > 0 OR u.retrying > 0 OR u.waiting > 0))
AND NOT EXISTS (SELECT FROM cqrs.scheduled_command c WHERE c.topic_id = n.topic_id AND c.run_at <= clock_timestamp());
COMMENT ON VIEW cqrs.saga_problem IS 'what may be wrong with sagas';

-- What sagas wait for, or are started by, and will not get.
CREATE VIEW cqrs.saga_event_problem WITH (security_barrier) AS
SELECT 'warning' AS severity, 'saga_topic_missing' AS problem, format('saga "%s"', d.saga_name) AS object,
	   format('Step "%s" waits for events of topic "%s", which was dropped.', d.step ->> 'name', d.step ->> 'topic') AS detail,
	   'Create the topic, and use cqrs_create_saga_queue() for each role that has sagas.' AS hint
FROM cqrs.diagram_step d
WHERE d.step ->> 'topic' IS NOT NULL AND NOT EXISTS (SELECT FROM cqrs.topic t WHERE t.topic = d.step ->> 'topic')
UNION ALL
SELECT 'error', 'saga_not_started', format('saga "%s"', d.saga_name),
	   format('Event "%s" of topic "%s" does not start it: %s.', d.on_event, d.on_topic,
			  CASE WHEN r.oid IS NULL THEN format('role "%s" does not exist', d.starter)
				   ELSE format('role "%s" has no queue of sagas that reads the topic', d.starter) END),
	   CASE WHEN r.oid IS NULL THEN 'SELECT cqrs_register_saga(...); -- as another role'
			ELSE format('SELECT cqrs_create_saga_queue(%L); -- when the topic is there, and the role may read it', d.starter) END
FROM cqrs.saga_definition d
LEFT JOIN pg_roles r ON r.rolname = d.starter
WHERE d.is_current AND d.on_event IS NOT NULL
AND NOT EXISTS (SELECT FROM cqrs.subscription s
				JOIN cqrs.subscription_topic st USING (subscription_id)
				JOIN cqrs.topic t USING (topic_id)
				CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
				WHERE s.runs = 'saga_events' AND t.topic = d.on_topic AND o.owner = r.oid);
COMMENT ON VIEW cqrs.saga_event_problem IS 'what sagas will not get';

-- Are messages of brokers consumed, and in time? Of a partition, waits_since is since
-- when at least nothing was consumed; the rows that are kept do not say more.
CREATE VIEW cqrs.consumer_problem WITH (security_barrier) AS
WITH owned AS (
	SELECT c.*, o.owner, t.topic
	FROM cqrs.consumer c
	CROSS JOIN LATERAL cqrs.consumer_owner(c.consumer_id) o
	LEFT JOIN cqrs.topic t USING (topic_id)
), place AS (
	SELECT DISTINCT ON (p.consumer_id, p.partition) p.*,
		   min(p.moved_at) OVER (PARTITION BY p.consumer_id, p.partition, p.next_offset) AS waits_since
	FROM cqrs.consumer_position p
	ORDER BY p.consumer_id, p.partition, p.seq DESC
), failure AS (
	SELECT DISTINCT ON (f.subscription_id) f.*
	FROM cqrs.failure f
	ORDER BY f.subscription_id, f.failed_at DESC
), behind AS (
	-- what a partition has that is not consumed
	SELECT c.consumer, p.partition, p.end_offset - p.next_offset AS messages, p.last_time, p.moved_at, p.waits_since,
		   EXISTS (SELECT FROM pg_stat_activity a
				   WHERE a.datname = current_database() AND a.backend_type = 'cqrs_outbox worker'
				   AND a.query = format('consuming for consumer "%s" worker %s', c.consumer, p.partition % c.workers)) AS connected
	FROM owned c
	JOIN place p USING (consumer_id)
	WHERE c.state = 'active' AND c.owner IS NOT NULL AND p.native AND p.stopped IS NULL
	AND p.next_offset >= 0 AND p.end_offset > p.next_offset
	AND NOT EXISTS (SELECT FROM failure f WHERE f.subscription_id = c.consumer_id)
)
SELECT c.severity, c.problem, format('consumer "%s"', c.consumer) AS object, c.detail, c.hint, c.lag, c.held
FROM (
	-- nothing is consumed
	SELECT 'error' AS severity, 'consumer_without_owner' AS problem, consumer,
		   format('View cqrs_subscriptions.%I does not exist, whose owner is the consumer''s; nothing is consumed.', consumer) AS detail,
		   format('SELECT cqrs_alter_consumer(%1$L); -- as a superuser, who owns it then; or cqrs_drop_consumer(%1$L)', consumer) AS hint,
		   NULL::interval AS lag, NULL::interval AS held
	FROM owned
	WHERE owner IS NULL
	UNION ALL
	SELECT 'error', 'consumer_without_topic', consumer, 'The topic that it writes to was dropped; nothing is consumed.',
		   format('SELECT cqrs_alter_consumer(%1$L, topic => ...); -- or cqrs_drop_consumer(%1$L)', consumer), NULL, NULL
	FROM owned
	WHERE topic IS NULL
	UNION ALL
	SELECT 'notice', 'consumer_paused', consumer, format('It is paused since %s.', state_since),
		   format('SELECT cqrs_resume_consumer(%L);', consumer), NULL, NULL
	FROM owned
	WHERE state = 'paused'
	UNION ALL
	SELECT 'error', 'consumer_restored', consumer, 'It was restored from a dump; nothing is consumed.',
		   format('SELECT cqrs_adopt(); -- goes on where it was when the dump was made; or cqrs_drop_consumer(%L)', consumer), NULL, NULL
	FROM owned c
	WHERE NOT coalesce((SELECT bool_and(p.native) AND bool_or(p.partition < 0)
						FROM place p WHERE p.consumer_id = c.consumer_id), false)
	UNION ALL
	SELECT 'error', 'consumer_failing', c.consumer,
		   format('Worker %s failed %s times in a row, and tries again at %s: %s', f.partition, f.failures, f.retry_at, f.message),
		   format('SELECT cqrs_resume_consumer(%L); -- once the cause is removed; otherwise, it is tried again by itself', c.consumer), NULL, NULL
	FROM owned c
	JOIN failure f ON f.subscription_id = c.consumer_id
	WHERE c.state = 'active' AND (f.failures > 1 OR f.retry_at < clock_timestamp())
	UNION ALL
	-- or not all of it
	SELECT 'error', 'consumer_stopped', c.consumer,
		   CASE p.stopped
				WHEN 'gap' THEN format('Partition %s is not consumed: what was to be consumed next, at offset %s, the broker has deleted.',
									   p.partition, p.next_offset)
				ELSE format('Partition %s is not consumed: it is another one than that of which all up to offset %s was consumed.',
							p.partition, p.last_offset) END,
		   format('SELECT cqrs_seek_consumer(%L, ''earliest'', %s); -- goes on with the first message that is there; or ''latest'', a time, or an offset',
				  c.consumer, p.partition), NULL, NULL
	FROM owned c
	JOIN place p USING (consumer_id)
	WHERE p.stopped IS NOT NULL
	UNION ALL
	-- or late
	SELECT 'warning', 'consumer_behind', consumer,
		   format('Partition %s has %s offsets that are not consumed; the last message was sent at %s, and consumed at %s.',
				  partition, messages, last_time, moved_at),
		   'See cqrs_consumer_partitions. More workers, of a source with several partitions, consume more.',
		   moved_at - last_time, NULL
	FROM behind
	WHERE last_time IS NOT NULL
	UNION ALL
	SELECT 'warning', 'consumer_held_by_open_transaction', consumer,
		   format('Partition %s is connected, and has %s offsets that cannot be read since %s: most likely, a producer has left a transaction open.',
				  partition, messages, waits_since),
		   'Have the producer end it, or abort it at the broker: kafka-transactions.sh find-hanging shows it. Otherwise, it is aborted after its transaction.timeout.ms.',
		   NULL, clock_timestamp() - waits_since
	FROM behind
	WHERE connected
	UNION ALL
	SELECT 'warning', 'consumer_dead_letters', c.consumer,
		   format('Messages that could not become events: %s%s, the last with: %s', d.messages,
				  CASE d.messages WHEN 10000 THEN ' or more' END, d.message),
		   format('SELECT * FROM cqrs_consumer_dead_letters WHERE consumer = %1$L; -- then cqrs_redrive_all_consumed(%1$L), cqrs_discard_consumed(%1$L, ARRAY[event_id]) or cqrs_discard_all_consumed(%1$L)',
				  c.consumer), NULL, NULL
	FROM owned c
	CROSS JOIN LATERAL (
		SELECT count(*) AS messages, (array_agg(message ORDER BY died_at DESC))[1] AS message
		FROM (SELECT message, died_at FROM cqrs.consumer_dead_letter d WHERE d.consumer_id = c.consumer_id LIMIT 10000) d) d
	WHERE d.messages > 0
) c;
COMMENT ON VIEW cqrs.consumer_problem IS 'what may be wrong with consumers';

-- All of it.
CREATE VIEW cqrs.problem WITH (security_barrier) AS
SELECT 'error' AS severity, 'version_mismatch' AS problem, 'extension "cqrs_outbox"' AS object,
	   format('The library is of version %s, the extension is not.', cqrs.library_version()) AS detail,
	   'ALTER EXTENSION cqrs_outbox UPDATE, or restart the server, so that it loads the library that was installed last.' AS hint,
	   NULL::interval AS lag, NULL::interval AS held
WHERE NOT cqrs.usable()
UNION ALL
SELECT p.*
FROM (
SELECT 'error', 'copied', format('database "%s"', current_database()),
	   'It is a copy of another database, which delivers; nothing is delivered here.',
	   'SELECT cqrs_adopt(); -- delivers from here on what the copy''s subscriptions have not got', NULL::interval, NULL::interval
WHERE NOT EXISTS (SELECT FROM cqrs.identity i JOIN pg_database d ON d.oid = i.database
				  WHERE d.datname = current_database() OR d.datistemplate)
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, held FROM cqrs.process_problem
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, held FROM cqrs.topic_problem
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, NULL FROM cqrs.function_problem
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, NULL FROM cqrs.owner_problem
UNION ALL
SELECT severity, problem, object, detail, hint, lag, held FROM cqrs.subscription_problem
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, held FROM cqrs.saga_problem
UNION ALL
SELECT severity, problem, object, detail, hint, NULL, NULL FROM cqrs.saga_event_problem
UNION ALL
SELECT severity, problem, object, detail, hint, lag, held FROM cqrs.consumer_problem
UNION ALL
-- a command is not executed, or a saga not woken
SELECT 'error', 'commands_late',
	   CASE WHEN c.owner IS NULL THEN format('commands of topic "%s"', coalesce(c.topic, c.topic_id::text))
			ELSE format('commands of role "%s"', pg_get_userbyid(c.owner)) END,
	   format('%s commands whose time has come are not in the outbox, the first since %s%s.', c.commands, c.run_at,
			  CASE WHEN c.owner IS NULL THEN ': nobody owns them' END),
	   CASE WHEN c.owner IS NULL
			THEN format('SELECT cqrs_cancel_command(command_id) FROM cqrs.scheduled_command WHERE topic_id = %s AND schedule_id IS NULL; -- or see owner_missing',
						c.topic_id)
			ELSE 'See the server''s log, and who has locked the topic''s tables.' END,
	   clock_timestamp() - c.run_at, NULL
FROM (SELECT d.topic_id, t.topic, o.owner, count(*) AS commands, min(d.run_at) AS run_at
	  FROM (SELECT topic_id, run_at FROM cqrs.scheduled_command
			WHERE run_at <= clock_timestamp() ORDER BY run_at LIMIT 10000) d
	  LEFT JOIN cqrs.topic t USING (topic_id)
	  LEFT JOIN (cqrs.subscription_topic st JOIN cqrs.subscription s USING (subscription_id))
			ON st.topic_id = d.topic_id AND (s.runs IN ('commands', 'sagas') OR s.subscription = t.topic)
	  LEFT JOIN LATERAL cqrs.subscription_owner(st.subscription_id) o ON true
	  GROUP BY d.topic_id, t.topic, o.owner) c
UNION ALL
-- or will never be again
SELECT 'error', 'schedule_stopped', format('schedule "%s"', d.schedule),
	   format('It has no next run: either somebody removed that, or time zone "%s" is not known any more.', d.time_zone),
	   format('SELECT cqrs_resume_schedule(%1$L); -- or cqrs_schedule() with another time zone, or cqrs_unschedule(%1$L)', d.schedule),
	   NULL, NULL
FROM cqrs.schedule d
WHERE NOT d.paused AND NOT EXISTS (SELECT FROM cqrs.scheduled_command c WHERE c.schedule_id = d.schedule_id)
UNION ALL
-- a handler is not called
SELECT 'warning', 'breaker_open', format('handler %s', b.handler),
	   format('It failed %s times in a row; since %s, its fallback %s is called instead.',
			  b.failures, b.opened_at, b.fallback),
	   format('Remove the cause of its errors; it is tried again at %s.', b.retry_at), NULL, NULL
FROM @extschema@.cqrs_breaker_status b
WHERE b.state <> 'closed'
) p
WHERE (SELECT cqrs.usable());
GRANT SELECT ON cqrs.problem TO pg_monitor;
COMMENT ON VIEW cqrs.problem IS 'what may be wrong';

-- What is wrong with cqrs_outbox in this database, and what to do about it: a
-- row a problem, errors first; none if all is well. Costs no more with a larger
-- backlog.
--   max_lag   how long an event may wait
--   max_hold  how long something may hold a subscription back: the
--             handler, a client's transaction, the lack of a worker
-- Columns:
--   severity  error: something is not delivered at all; warning: something is
--             late, or was given up; notice: somebody wanted it so
--   problem   its name, which does not change from version to version
--   object    what has the problem
--   detail    what is the matter
--   hint      what to do: a sentence, or a statement to run
-- Errors: 55P03 somebody has had one of the extension's own tables locked for
-- two seconds; who, pg_locks says. A topic's table that is locked is a problem
-- that is told, and not waited for.
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC; and membership in
-- pg_monitor, or being a superuser. jit is off because compiling would take
-- longer than running.
CREATE FUNCTION @extschema@.cqrs_health(max_lag interval DEFAULT '5 min', max_hold interval DEFAULT '1 min')
RETURNS TABLE (severity text, problem text, object text, detail text, hint text)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 10 SET jit = off SET lock_timeout = '2 s'
BEGIN ATOMIC
	SELECT p.severity, p.problem, p.object, p.detail, p.hint
	FROM cqrs.problem p
	WHERE coalesce(p.lag > coalesce(max_lag, '5 min'), true) AND coalesce(p.held > coalesce(max_hold, '1 min'), true)
	ORDER BY array_position(ARRAY['error', 'warning', 'notice'], p.severity), p.problem, p.object, p.detail;
END;
REVOKE ALL ON FUNCTION @extschema@.cqrs_health(interval, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_health(interval, interval) TO pg_monitor;
COMMENT ON FUNCTION @extschema@.cqrs_health(interval, interval) IS 'what is wrong, and what to do about it';
