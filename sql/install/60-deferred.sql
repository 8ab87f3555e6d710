/*
 * 60-deferred.sql
 *		Commands that are executed after the commit, or later.
 */

-- ----------------------------------------------------------------------
-- cqrs.scheduled_command: commands that were enqueued for later. A row is
-- deleted by the transaction that puts the command into the outbox, when its
-- time has come.
--
-- command_id    UUID v7, which its event gets
-- command_name  which command
-- topic_id      the topic of the role that enqueued it
-- key           commands of one key are executed in order
-- run_at        not before
-- payload       JSON object
-- headers       JSON object, or NULL: what its event's headers will say about what
--               caused it
-- enqueued_at   when it was enqueued
-- schedule_id   of the schedule whose next run this is, or NULL
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.scheduled_command (
	command_id		uuid		PRIMARY KEY,
	command_name	text		NOT NULL,
	topic_id		integer		NOT NULL,
	key				text,
	run_at			timestamptz	NOT NULL,
	payload			jsonb		NOT NULL,
	headers			jsonb,
	enqueued_at		timestamptz	NOT NULL,
	schedule_id		integer
);
CREATE INDEX scheduled_command_run_at ON cqrs.scheduled_command (run_at, command_id);
COMMENT ON TABLE cqrs.scheduled_command IS 'commands that were enqueued for later';
COMMENT ON INDEX cqrs.scheduled_command_run_at IS 'finds what is due';
CREATE UNIQUE INDEX scheduled_command_schedule ON cqrs.scheduled_command (schedule_id) WHERE schedule_id IS NOT NULL;
COMMENT ON INDEX cqrs.scheduled_command_schedule IS 'finds the next run of a schedule';
SELECT pg_extension_config_dump('cqrs.scheduled_command', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.scheduled_command
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.scheduled_command ENABLE ALWAYS TRIGGER refuse_write;

-- Creates a role's command queue: a topic, and a subscription of the role,
-- both named commands_of_<role>, with a number behind that if need be. What
-- the role enqueues goes through it. If only its topic is missing, that is
-- created.
--   owner        the role; NULL: the current user
--   search_path  that its commands are executed with; NULL: that of this session.
--                pg_temp comes last, and is not named
--   partitions   1 (the default) to 1000: so many of its commands are executed side
--                by side, if there are as many workers; those of one key are in
--                one partition, those without a key in any. Later,
--                cqrs_alter_subscription() changes it
-- Returns false if the role has one.
-- Errors: 42704 no such role; 42501 the caller is not a member of it, or, before
-- PostgreSQL 17, it has no LOGIN, which the worker needs; 22023 search_path, or
-- partitions; 42710 the role has one with other partitions; 25006 read-only
-- transaction or standby.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.subscription and cqrs.topic until the end
-- of the transaction.
-- Privileges: membership in the role.
CREATE FUNCTION @extschema@.cqrs_create_command_queue(owner text DEFAULT NULL, search_path text DEFAULT NULL,
	partitions integer DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_create_command_queue(text, text, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_create_command_queue(text, text, integer) IS 'creates a role''s queue of commands';

-- Drops a role's command queue: its topic, its subscription, and what was enqueued.
--   owner      the role; NULL: the current user
--   cascade    also if commands wait in it, or for their time, or are dead letters,
--              or if the role has schedules, paused ones, too
--   if_exists  if there is none, that is no error
-- Returns whether there was one.
-- Errors: 42704 no such role, or it has none; 42501 the caller is not a member of it;
-- 55006 it holds commands, or has schedules; 25006 read-only transaction or standby.
-- Locks: ACCESS EXCLUSIVE on its topic's tables and view; ROW EXCLUSIVE on
-- cqrs.subscription; its cursors. Waits for commands that are being executed.
-- Privileges: membership in the role.
CREATE FUNCTION @extschema@.cqrs_drop_command_queue(owner text DEFAULT NULL, cascade boolean DEFAULT false, if_exists boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_drop_command_queue(text, boolean, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_drop_command_queue(text, boolean, boolean) IS 'drops a role''s queue of commands';

-- Enqueues a command: once the transaction has committed, and not before
-- run_at, the worker executes it, as cqrs_send() would, but in a transaction of
-- its own, as the role that enqueued it, with the search_path of that role's
-- queue. Its answer is lost, unless it is to be kept. In its handler, cqrs_context() has its command id
-- as id, what was being handled when it was enqueued as the cause, and the
-- number of attempts.
--
-- The role has a command queue: see cqrs_create_command_queue(). A command is
-- delivered like an event of the queue's topic, to its subscription. So one that
-- fails is tried again, after the same delays, with the same number of attempts,
-- and is a dead letter in the end; cqrs_alter_subscription(), cqrs_pause(),
-- cqrs_dead_letters, cqrs_retry(), cqrs_redrive(), cqrs_drain() and cqrs_wait() work on the
-- subscription. It keeps its commands whatever their size, until cqrs_alter_subscription()
-- gives it a limit. In each of the queue's partitions, one command is executed after
-- the other.
-- cqrs_unsubscribe() drops the topic, too, with what is in it and what was
-- enqueued for later. A role that is made the owner of the subscription's view
-- does not get the commands: they are executed as the role that enqueued them,
-- or not at all, unless the extension's owner says otherwise, by GRANT SELECT
-- ON the topic TO the owner WITH GRANT OPTION.
--   command_name  a registered command
--   payload       JSON object, NULL: {}; must fit the handlers, as of now
--   key           while a command waits to be tried again, later ones of its key wait
--                 behind it; NULL: none waits for another, and its event has its
--                 command id as key. Of the types that cqrs_emit() takes
--   run_at        in the past, or NULL: at once. Those for the same time are
--                 executed in the order in which they were enqueued; a command
--                 for now comes before one whose time has come just now
--   idempotency_key
--                 NULL: none; as of cqrs_send(): a command that was enqueued with
--                 this key is not enqueued again, but its id is returned
--   options       JSON object, NULL: {}; an option that is null is not given
--     expires_at   a timestamp of RFC 3339, as to_jsonb(now() + '1 hour'::interval)
--                  makes it: once that time has come, it is not begun any more, nor
--                  tried again, but is a dead letter (OB004)
--     keep_answer  true: its answer is kept, as long as one with an idempotency
--                  key; see cqrs_command_result(). While it is kept, the command is
--                  not executed again, also if it is delivered again after a seek
-- Returns the command id, a UUID v7.
-- Errors: as of cqrs_send(); OB001 the role has no command queue, too; 42883 or
-- 42501 of any handler of a chain; 22008 an infinite run_at; 22023 options, or
-- an expires_at that is not after run_at; 25006 read-only transaction or standby, or in a query; 25000 parallel
-- operation.
-- Locks: ROW EXCLUSIVE on the topic's current segment, or on
-- cqrs.scheduled_command; the key, as of cqrs_send().
-- Privileges: EXECUTE on the handlers; checked again when it is executed.
CREATE FUNCTION @extschema@.cqrs_enqueue(command_name text, payload jsonb DEFAULT '{}',
	key anycompatible DEFAULT NULL::text, run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL,
	options jsonb DEFAULT NULL) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_enqueue(text, jsonb, anycompatible, timestamptz, text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_enqueue(text, jsonb, anycompatible, timestamptz, text, jsonb) IS
'has a command executed after the commit, or later';

-- Cancels a command that waits: for its time, for its turn, or to be tried again. One
-- that a worker is executing is ended, with all that it did, and is a dead letter
-- (OB005); a handler that catches this is not done, either, once it returns.
-- Returns false if none of that id is there: it was executed, given up, or cancelled,
-- it is what is being executed here, or never was.
-- Errors: 42501 it waits for its time, and belongs to another role; 55000 commands
-- were restored, and not adopted; 22004; 25006 read-only transaction or standby.
-- Locks: of one that waits for its time, its row; of another one, the cursors of
-- its role's queue, until the end of the transaction: nothing in it is executed
-- meanwhile. Waits for whoever is cancelling it, putting it into the outbox, or
-- executing commands of the queue, as long as that takes. What is in the queue is
-- walked over.
-- Privileges: membership in the role that enqueued it or, if nobody owns it any
-- more, in the extension's owner; without it, what is in a queue is not found.
CREATE FUNCTION @extschema@.cqrs_cancel_command(command_id uuid) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_cancel_command(uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_cancel_command(uuid) IS 'cancels a command that waits, or is being executed';

-- What has become of an enqueued command.
-- Returns one row:
--   state           scheduled, ready, retrying: as in cqrs_enqueued_commands;
--                   running: a worker is executing it; of a batch, the one that it
--                   has come to; done: it was executed, and this is its answer; failed: it is a
--                   dead letter; unknown: none of these. It was executed and its
--                   answer is not kept, or not any more; it was cancelled or
--                   discarded; it is another role's; or it never was
--   answer          of one that is done
--   error, error_sqlstate
--                   of the last time that it failed, if it is retrying, running
--                   again, or failed
-- Errors: 22004; 55000 commands were restored, and not adopted.
-- Locks: none. An answer is found by its key; otherwise, what waits in the queues of
-- the caller's roles is walked over.
-- Privileges: membership in the role that enqueued it; without it, it is unknown.
CREATE FUNCTION @extschema@.cqrs_command_result(command_id uuid,
	OUT state text, OUT answer jsonb, OUT error text, OUT error_sqlstate text)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_command_result(uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_command_result(uuid) IS 'what has become of an enqueued command';

-- Waits until an enqueued command is executed, or given up, or is not there any more.
--   timeout  NULL: 10 s
-- Returns what cqrs_command_result() does then, or, after the timeout, now.
-- Errors: as of that; 55000 this transaction enqueued it, so that it cannot be
-- executed yet, or the library is not preloaded; 55006 it is in the queue whose
-- commands this session is executing; 22023 a negative timeout.
-- Locks: none. A snapshot is held by the statement that calls it, as by any other.
-- Privileges: as for cqrs_command_result().
CREATE FUNCTION @extschema@.cqrs_wait_command(command_id uuid, timeout interval DEFAULT NULL,
	OUT state text, OUT answer jsonb, OUT error text, OUT error_sqlstate text)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_wait_command(uuid, interval) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_wait_command(uuid, interval) IS 'waits for an enqueued command';

-- Handler of the subscriptions that execute commands: executes the enqueued
-- command that is being delivered.
-- Errors: 55000 it is called by anything but the delivery; else as cqrs_send().
-- Privileges: EXECUTE is PUBLIC's, as every role's commands go through this.
CREATE FUNCTION cqrs.run_command(event @extschema@.cqrs_event) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_run_command';
GRANT EXECUTE ON FUNCTION cqrs.run_command(@extschema@.cqrs_event) TO PUBLIC;
COMMENT ON FUNCTION cqrs.run_command(@extschema@.cqrs_event) IS 'executes an enqueued command, when it is delivered';

-- Puts all commands whose time has come, whoever enqueued them, into the
-- outbox; once the transaction has committed, cqrs_drain() executes them. The
-- worker does this by itself. Those that somebody is cancelling, or whose topic
-- is locked, are left for the next time. Returns how many.
-- Errors: 55000 a topic's tables were altered; 25006 read-only transaction or
-- standby.
-- Locks: the commands' rows, and ROW EXCLUSIVE on the topics' current segments,
-- until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_enqueue_scheduled() RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_enqueue_scheduled() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_enqueue_scheduled() IS 'puts commands whose time has come into the outbox, by hand';

-- ----------------------------------------------------------------------
-- cqrs.schedule: commands that are enqueued again and again. The next run of each
-- is a row of cqrs.scheduled_command.
--
-- topic_id      the topic of the role that made it
-- cron          when, as it was given
-- time_zone     in which zone that is
-- command_name  which command, with ...
-- payload       ... this payload
-- catch_up      what becomes of runs that were missed: none, one, all
-- overlap       a run does not wait for the one before
-- paused        it has no next run, until it is resumed
-- created_at    when it was created
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.schedule_id AS integer;
COMMENT ON SEQUENCE cqrs.schedule_id IS 'numbers schedules';
CREATE TABLE cqrs.schedule (
	schedule_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.schedule_id'),
	schedule		text		NOT NULL UNIQUE,
	topic_id		integer		NOT NULL,
	cron			text		NOT NULL,
	time_zone		text		NOT NULL,
	command_name	text		NOT NULL,
	payload			jsonb		NOT NULL,
	catch_up		text		NOT NULL,
	overlap			boolean		NOT NULL,
	paused			boolean		NOT NULL DEFAULT false,
	created_at		timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.schedule IS 'commands that are enqueued again and again';
SELECT pg_extension_config_dump('cqrs.schedule_id', '');
SELECT pg_extension_config_dump('cqrs.schedule', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.schedule
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.schedule ENABLE ALWAYS TRIGGER refuse_write;

-- Has a command enqueued again and again, as by cqrs_enqueue() of the caller: its
-- command queue executes it, as this role, with retries and dead letters. A run is
-- enqueued once, whatever is killed. In its handler, cqrs_context() has the
-- schedule's name as correlation id, and an id that follows from the schedule and
-- the time that the run is for, which its event has as header occurred_at, too.
--   schedule      name, 1 to 63 bytes
--   cron          when: the five fields of crontab(5), minute (0 to 59), hour (0
--                 to 23), day of the month (1 to 31), month (1 to 12, jan to dec) and
--                 day of the week (0 to 7, sun to sat; 0 and 7 are Sunday), or
--                 six, with the second (0 to 59) first. A field is a list, with
--                 commas, of values, ranges (1-5) and * (all), each with a step
--                 (*/15) or without. If both days are given, one of them is
--                 enough. Or @yearly, @annually, @monthly, @weekly, @daily,
--                 @midnight, @hourly. Where a clock is put forward, what it skips is
--                 done at once after that; where it is put back, once. With * as
--                 the hour, with a step or not, it goes on as if nothing was done to
--                 the clock
--   command_name  a registered command
--   payload       JSON object, NULL: {}; must fit the handlers, as of now
--   time_zone     in which zone the times are; NULL: UTC, whatever the session's is
--   catch_up      when runs are late, as the server was down or the command queue's
--                 topic locked: 'one', the default: of those that were missed, one
--                 comes; 'all': each of them; 'none': none, that is none that is
--                 more than a minute late
--   overlap       false: a run waits for the one before; and while that waits to be
--                 tried again, no further one is enqueued, unless catch_up is
--                 'all'. Its key is the schedule's name. true: runs have no key
--   or_replace    if there is a schedule of this name that is another, it becomes
--                 this; a paused one stays paused
-- Returns whether that changed anything: false if the same is there.
-- Errors: 22023 cron, time_zone, catch_up, or a payload that is no object; 42710
-- there is another one of this name; 42501 it is another role's; else as
-- cqrs_enqueue(), OB001 the role has no command queue, among them; 22004, 42602,
-- 42622 names.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.schedule, and that of the schedule, until the
-- end of the transaction.
-- Privileges: as for cqrs_enqueue(); to replace one, membership in the role that
-- made it.
CREATE FUNCTION @extschema@.cqrs_schedule(schedule text, cron text, command_name text, payload jsonb DEFAULT '{}',
	time_zone text DEFAULT NULL, catch_up text DEFAULT 'one', overlap boolean DEFAULT false,
	or_replace boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_schedule(text, text, text, jsonb, text, text, boolean, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_schedule(text, text, text, jsonb, text, text, boolean, boolean) IS
'has a command enqueued again and again';

-- Removes a schedule. What it enqueued already stays.
--   if_exists  one that does not exist is no error
-- Returns false if it does not exist. Errors: 42704 does not exist; 42501 another
-- role's. Locks: as cqrs_schedule().
-- Privileges: membership in the role that made it.
CREATE FUNCTION @extschema@.cqrs_unschedule(schedule text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_unschedule(text, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unschedule(text, boolean) IS 'removes a schedule';

-- Has a schedule enqueue nothing, until cqrs_resume_schedule(). Runs that it would
-- have had meanwhile are not made up for. Returns false if it was paused already.
-- Errors, locks and privileges: as cqrs_unschedule().
CREATE FUNCTION @extschema@.cqrs_pause_schedule(schedule text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_pause_schedule(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_pause_schedule(text) IS 'stops a schedule';

-- Has a schedule go on, with the next run from now on; also one that has none
-- because somebody removed what was scheduled. Returns false if it has one.
-- Errors, locks and privileges: as cqrs_unschedule().
CREATE FUNCTION @extschema@.cqrs_resume_schedule(schedule text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_resume_schedule(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_resume_schedule(text) IS 'has a schedule go on';

-- The times that a cron expression means, to try it out.
--   cron       as for cqrs_schedule()
--   time_zone  likewise
--   after      the first time is behind this; NULL: now
--   max_runs   how many, 0 to 1000; NULL: 10
-- Errors: 22023, 22004.
CREATE FUNCTION @extschema@.cqrs_next_runs(cron text, time_zone text DEFAULT NULL, after timestamptz DEFAULT NULL,
	max_runs integer DEFAULT 10) RETURNS SETOF timestamptz
LANGUAGE C STABLE PARALLEL SAFE ROWS 10 AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_next_runs(text, text, timestamptz, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_next_runs(text, text, timestamptz, integer) IS 'times that a cron expression means';
