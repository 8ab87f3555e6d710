/*
 * 65-saga.sql
 *		Sagas: steps that are done one after the other, each in a transaction of its
 *		own, and undone if one of them cannot be done.
 */

-- ----------------------------------------------------------------------
-- cqrs.saga_definition: what a saga does, by version. A saga that is under way goes
-- on as the version says that it began with.
--
-- saga_name    which saga
-- version      from 1
-- steps        array of objects, as cqrs_saga_step has them; functions by their
--              signatures
-- owners       object: who owned the functions when they were registered
-- on_topic     an event of this topic ...
-- on_event     ... and name starts one, or NULL
-- starter      the role whose sagas those are
-- is_current   new ones begin with it; false: it was replaced, or unregistered
-- registered_at
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.saga_definition (
	saga_name		text		COLLATE "C" NOT NULL,
	version			integer		NOT NULL,
	steps			jsonb		NOT NULL,
	owners			jsonb		NOT NULL,
	on_topic		text,
	on_event		text,
	starter			text		NOT NULL,
	is_current		boolean		NOT NULL DEFAULT true,
	registered_at	timestamptz	NOT NULL DEFAULT now(),
	PRIMARY KEY (saga_name, version)
);
COMMENT ON TABLE cqrs.saga_definition IS 'what sagas do';
SELECT pg_extension_config_dump('cqrs.saga_definition', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.saga_definition
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.saga_definition
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.saga_definition ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- ----------------------------------------------------------------------
-- cqrs.saga: the sagas that are under way. Rows are inserted and deleted, never
-- updated but when a saga is moved to another of the tables below.
--
-- saga_id     UUID v7, or v8 of one that an event started
-- saga_name, version
--             its definition
-- topic_id    the topic of the role that started it
-- segment     which of the tables below has its entries
-- parent_id   the saga that it is a step of, or NULL
-- started_at
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.saga (
	saga_id		uuid		PRIMARY KEY,
	saga_name	text		COLLATE "C" NOT NULL,
	version		integer		NOT NULL,
	topic_id	integer		NOT NULL,
	segment		integer		NOT NULL,
	parent_id	uuid,
	started_at	timestamptz	NOT NULL
);
COMMENT ON TABLE cqrs.saga IS 'sagas that are under way';
SELECT pg_extension_config_dump('cqrs.saga', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.saga
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.saga ENABLE ALWAYS TRIGGER refuse_write;

-- ----------------------------------------------------------------------
-- cqrs.saga_entry_0, _1 and _2: what happened to sagas, and where they are: the
-- newest entry of a saga is the truth about it. The tables are written in turn, a
-- saga's entries to that of its start, and truncated when all in it have been over
-- for long enough.
--
-- saga_id, branch, seq
--             which entry. Branch 0 is the saga; a step within cqrs_parallel() has
--             a branch of its own, with its number; -1 has the messages
-- at          when
-- event       what happened; see cqrs_saga_history()
-- step        to which step, by its number in the definition; NULL: to none
-- status      where the saga is since then; see cqrs_saga_status
-- next        at which step; NULL: it is over
-- attempt     how often that has failed
-- due         when it goes on by itself, or NULL
-- flags       1 it is to be undone because somebody cancelled it; 2 it is past its
--             point of no return; 4 it is being undone; 8 the fallback did it
-- done        what is to be undone if need be, in the order in which it was done:
--             twice the number of the step, one more if its fallback did it
-- ends        the parallel steps that have ended, in the order in which they did
-- message_id  the message that this entry comes of, or NULL
-- name        of the message
-- sqlstate, error
--             why it failed, or NULL
-- state       the saga's state, or a message's payload, or a parallel step's answer;
--             NULL: as before, which is ...
-- state_seq   ... in this entry
-- saga_name, version, topic_id, started_at, parent_id
--             of the saga, in its first entry and the first after a move
-- unique_key  the same, or NULL
-- ended_at    in the last entry
-- trouble     the status, if that is failed or stuck; else NULL
-- ----------------------------------------------------------------------
CREATE TABLE cqrs.saga_entry_0 (
	saga_id		uuid		NOT NULL,
	branch		integer		NOT NULL,
	seq			integer		NOT NULL,
	at			timestamptz	NOT NULL,
	event		text		NOT NULL,
	step		integer,
	status		text		NOT NULL,
	next		integer,
	attempt		integer		NOT NULL,
	due			timestamptz,
	flags		integer		NOT NULL,
	done		integer[],
	ends		integer[],
	message_id	uuid,
	name		text,
	sqlstate	text,
	error		text,
	state		jsonb,
	state_seq	integer,
	saga_name	text		COLLATE "C",
	version		integer,
	topic_id	integer,
	started_at	timestamptz,
	parent_id	uuid,
	unique_key	text		COLLATE "C",
	ended_at	timestamptz,
	trouble		text,
	PRIMARY KEY (saga_id, branch, seq)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX saga_entry_0_key ON cqrs.saga_entry_0 (unique_key, saga_name) WHERE unique_key IS NOT NULL;
CREATE INDEX saga_entry_0_ended_at ON cqrs.saga_entry_0 (ended_at) WHERE ended_at IS NOT NULL;
COMMENT ON TABLE cqrs.saga_entry_0 IS 'what happened to sagas';
COMMENT ON INDEX cqrs.saga_entry_0_key IS 'finds a saga by its key';
COMMENT ON INDEX cqrs.saga_entry_0_ended_at IS 'finds the newest end';
CREATE INDEX saga_entry_0_trouble ON cqrs.saga_entry_0 (trouble) WHERE trouble IS NOT NULL;
COMMENT ON INDEX cqrs.saga_entry_0_trouble IS 'finds sagas that need somebody';
CREATE TABLE cqrs.saga_entry_1 (
	LIKE cqrs.saga_entry_0,
	PRIMARY KEY (saga_id, branch, seq)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX saga_entry_1_key ON cqrs.saga_entry_1 (unique_key, saga_name) WHERE unique_key IS NOT NULL;
CREATE INDEX saga_entry_1_ended_at ON cqrs.saga_entry_1 (ended_at) WHERE ended_at IS NOT NULL;
COMMENT ON TABLE cqrs.saga_entry_1 IS 'what happened to sagas';
COMMENT ON INDEX cqrs.saga_entry_1_key IS 'finds a saga by its key';
COMMENT ON INDEX cqrs.saga_entry_1_ended_at IS 'finds the newest end';
CREATE INDEX saga_entry_1_trouble ON cqrs.saga_entry_1 (trouble) WHERE trouble IS NOT NULL;
COMMENT ON INDEX cqrs.saga_entry_1_trouble IS 'finds sagas that need somebody';
CREATE TABLE cqrs.saga_entry_2 (
	LIKE cqrs.saga_entry_0,
	PRIMARY KEY (saga_id, branch, seq)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX saga_entry_2_key ON cqrs.saga_entry_2 (unique_key, saga_name) WHERE unique_key IS NOT NULL;
CREATE INDEX saga_entry_2_ended_at ON cqrs.saga_entry_2 (ended_at) WHERE ended_at IS NOT NULL;
COMMENT ON TABLE cqrs.saga_entry_2 IS 'what happened to sagas';
COMMENT ON INDEX cqrs.saga_entry_2_key IS 'finds a saga by its key';
COMMENT ON INDEX cqrs.saga_entry_2_ended_at IS 'finds the newest end';
CREATE INDEX saga_entry_2_trouble ON cqrs.saga_entry_2 (trouble) WHERE trouble IS NOT NULL;
COMMENT ON INDEX cqrs.saga_entry_2_trouble IS 'finds sagas that need somebody';
DO $$
BEGIN
	FOR n IN 0 .. 2 LOOP
		PERFORM pg_extension_config_dump(format('cqrs.saga_entry_%s', n)::regclass, '');
		EXECUTE format('CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.saga_entry_%s'
					   ' EXECUTE FUNCTION cqrs.refuse_write()', n);
		EXECUTE format('ALTER TABLE cqrs.saga_entry_%s ENABLE ALWAYS TRIGGER refuse_write', n);
	END LOOP;
END $$;

-- All of them.
CREATE VIEW cqrs.saga_entry WITH (security_barrier) AS
SELECT 0 AS segment, * FROM cqrs.saga_entry_0
UNION ALL
SELECT 1, * FROM cqrs.saga_entry_1
UNION ALL
SELECT 2, * FROM cqrs.saga_entry_2;
COMMENT ON VIEW cqrs.saga_entry IS 'what happened to sagas';

-- ----------------------------------------------------------------------
-- cqrs_saga_step: a step of a saga, as the functions below make them for
-- cqrs_register_saga()
--
-- step_name  unique in its saga, 1 to 63 bytes
-- kind       step, await, sleep, parallel or saga
-- options    the other arguments of what made it
-- ----------------------------------------------------------------------
CREATE TYPE @extschema@.cqrs_saga_step AS (
	step_name	text,
	kind		text,
	options		jsonb
);
GRANT USAGE ON TYPE @extschema@.cqrs_saga_step TO PUBLIC;
COMMENT ON TYPE @extschema@.cqrs_saga_step IS 'a step of a saga';

-- A step that calls a function, in a transaction of its own.
--   handler          a function with one argument, jsonb or of a composite type: the
--                    saga's state. What it returns, if it is not NULL, is the new one:
--                    a JSON object, or a composite value
--   compensation     such a function, which undoes it; NULL: there is nothing to undo
--   fallback         is called instead if the handler fails, and what that did is rolled
--                    back; or if it keeps failing (see cqrs_register_fallback()). NULL:
--                    that which is registered for the handler, if there is one
--   fallback_compensation
--                    undoes the step if the fallback did it; NULL: compensation does
--   pivot            the point of no return: once it is done, nothing is undone
--   max_attempts     how often it is tried, as is its compensation; 0: without end
--   retry_delay      before the second time; it doubles each time, up to ...
--   max_retry_delay  ... this
--   timeout          how long the function may take, NULL: as the subscription's
--                    delivery_timeout says
--   final_sqlstates  errors, by code or by class, after which it is not tried again;
--                    OB100 is one anyway
CREATE FUNCTION @extschema@.cqrs_step(step_name text, handler text, compensation text DEFAULT NULL, fallback text DEFAULT NULL,
	fallback_compensation text DEFAULT NULL, pivot boolean DEFAULT false, max_attempts integer DEFAULT 5,
	retry_delay interval DEFAULT '1 second', max_retry_delay interval DEFAULT '5 minutes', timeout interval DEFAULT NULL,
	final_sqlstates text[] DEFAULT NULL) RETURNS @extschema@.cqrs_saga_step
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET intervalstyle = iso_8601
RETURN ROW(step_name, 'step', jsonb_strip_nulls(jsonb_build_object('handler', handler, 'compensation', compensation, 'fallback', fallback,
	'fallback_compensation', fallback_compensation, 'pivot', nullif(pivot, false), 'max_attempts', coalesce(max_attempts, 5),
	'retry_delay', coalesce(retry_delay, '1 second')::text, 'max_retry_delay', coalesce(max_retry_delay, '5 minutes')::text,
	'timeout', timeout::text, 'final_sqlstates', final_sqlstates)))::@extschema@.cqrs_saga_step;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_step(text, text, text, text, text, boolean, integer, interval, interval, interval, text[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_step(text, text, text, text, text, boolean, integer, interval, interval, interval, text[]) IS
'a step of a saga that calls a function';

-- A step that waits: for an event with the saga's unique_key as its key, or its id as
-- its correlation id, or for cqrs_signal(). One that came before, but after the saga's
-- start had committed, counts; each counts once. Its payload is put into the state,
-- under the name of the step.
--   topic       the events' topic; NULL: that of the event's type
--   event_name  the name of the events, and of signals; NULL: only signals, named like
--               the step
--   timeout     how long to wait; NULL: as long as it takes. What committed in time
--               counts, however late it is delivered
--   on_timeout  the step, behind this one, to go on with then; NULL: this one has failed
CREATE FUNCTION @extschema@.cqrs_await(step_name text, topic text DEFAULT NULL, event_name text DEFAULT NULL, timeout interval DEFAULT NULL,
	on_timeout text DEFAULT NULL) RETURNS @extschema@.cqrs_saga_step
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET intervalstyle = iso_8601
RETURN ROW(step_name, 'await', jsonb_strip_nulls(jsonb_build_object('topic', topic, 'event_name', event_name, 'timeout', timeout::text,
	'on_timeout', on_timeout)))::@extschema@.cqrs_saga_step;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_await(text, text, text, interval, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_await(text, text, text, interval, text) IS 'a step of a saga that waits for an event or a signal';

-- A step that lets time pass.
--   duration  how long
CREATE FUNCTION @extschema@.cqrs_sleep(step_name text, duration interval) RETURNS @extschema@.cqrs_saga_step
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET intervalstyle = iso_8601
RETURN ROW(step_name, 'sleep', jsonb_strip_nulls(jsonb_build_object('duration', duration::text)))::@extschema@.cqrs_saga_step;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_sleep(text, interval) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_sleep(text, interval) IS 'a step of a saga that lets time pass';

-- Steps that are done side by side, by several workers. Each is given the state that
-- the saga has then. When all have ended, their answers are put into the state, each
-- under the name of its step; or, if one has failed, those that were done are undone.
--   steps  made by cqrs_step(), without pivot
CREATE FUNCTION @extschema@.cqrs_parallel(step_name text, steps @extschema@.cqrs_saga_step[]) RETURNS @extschema@.cqrs_saga_step
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ROW(step_name, 'parallel', jsonb_build_object('steps', coalesce(to_jsonb(steps), '[]')))::@extschema@.cqrs_saga_step;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_parallel(text, @extschema@.cqrs_saga_step[]) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_parallel(text, @extschema@.cqrs_saga_step[]) IS 'steps of a saga that are done side by side';

-- A step that starts another saga, with the state, and waits for its end: if that was
-- completed, its state is this one's; if not, the step has failed.
--   saga_name     registered when the step is begun; until then, the saga is stuck
--   compensation  as for cqrs_step(): nothing of a completed saga is undone by itself
CREATE FUNCTION @extschema@.cqrs_sub_saga(step_name text, saga_name text, compensation text DEFAULT NULL) RETURNS @extschema@.cqrs_saga_step
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(step_name, 'saga', jsonb_strip_nulls(jsonb_build_object('saga_name', saga_name, 'compensation', compensation,
	'max_attempts', 5, 'retry_delay', 'PT1S', 'max_retry_delay', 'PT5M')))::@extschema@.cqrs_saga_step;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_sub_saga(text, text, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_sub_saga(text, text, text) IS 'a step of a saga that is another saga';

-- Registers a saga: what new ones of this name do. Those that are under way go on as
-- they began. Functions are found when they are called, so a new one of the same
-- signature and owner counts for all.
--   saga_name   1 to 63 bytes
--   steps       made by the functions above, in the order in which they are done
--   on_event    an event of this name starts one, of the role that registers it: with
--               its payload as the state, and its key as the unique_key; NULL: none does
--   on_topic    from this topic; NULL: that of the event's type
--   or_replace  if it is registered with other steps, new ones begin with these
-- Returns whether that changed anything.
-- Errors: 42710 it is registered with other steps, or two steps have one name; 42883,
-- 42725, 42P13, 42809 and others of functions, as of cqrs_register_command(); 42704 a
-- topic or event type; 42809 a topic of commands or sagas; 22023 steps that cannot be: a pivot, or anything but
-- cqrs_step(), within cqrs_parallel(); a compensation, or a timeout without
-- on_timeout, behind a pivot; on_timeout that does not lead to a later step; negative
-- times; no steps; 55000 on_event without a queue of sagas; 22004, 42602, 42622
-- names; 54000 more than 1,000 steps; 25006 read-only transaction or standby.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.saga_definition; if it waits for events of other
-- topics than before, the cursors of subscriptions saga_events_of_<role>, until the
-- end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC; none on the functions.
CREATE FUNCTION @extschema@.cqrs_register_saga(saga_name text, steps @extschema@.cqrs_saga_step[], on_event text DEFAULT NULL,
	on_topic text DEFAULT NULL, or_replace boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_saga(text, @extschema@.cqrs_saga_step[], text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_saga(text, @extschema@.cqrs_saga_step[], text, text, boolean) IS 'registers a saga';

-- Has no new saga of this name begin. Those that are under way go on.
--   if_exists  if it is not registered, that is no error
-- Returns whether it was registered. Errors: 42704; 25006.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.saga_definition.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_unregister_saga(saga_name text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_saga(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_saga(text, boolean) IS 'has no new saga of a name begin';

-- Creates what a role's sagas are run by: subscriptions sagas_of_<role>, for their steps,
-- and saga_events_of_<role>, for what they wait for, each with a topic of its name. If
-- they are there, adds topics that registered sagas wait for and the role may read.
--   owner        the role; NULL: the current user
--   search_path  that the steps are executed with; NULL: that of this session
--   partitions   how many workers run them; NULL: 4. cqrs_alter_subscription() changes
--                it
-- Returns false if the role has them. Errors, locks and privileges: as of
-- cqrs_create_command_queue(); the cursors of saga_events_of_<role>, too.
CREATE FUNCTION @extschema@.cqrs_create_saga_queue(owner text DEFAULT NULL, search_path text DEFAULT NULL, partitions integer DEFAULT NULL)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_create_saga_queue(text, text, integer) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_create_saga_queue(text, text, integer) IS 'creates what a role''s sagas are run by';

-- Drops them.
--   cascade    also if sagas of the role are under way: these are forgotten, neither
--              completed nor undone
--   if_exists  if there are none, that is no error
-- Returns whether there were any. Errors: 55006 sagas are under way; else, locks and
-- privileges: as of cqrs_drop_command_queue(); SHARE ROW EXCLUSIVE on cqrs.saga, too.
CREATE FUNCTION @extschema@.cqrs_drop_saga_queue(owner text DEFAULT NULL, cascade boolean DEFAULT false, if_exists boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_drop_saga_queue(text, boolean, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_drop_saga_queue(text, boolean, boolean) IS 'drops what a role''s sagas are run by';

-- Starts a saga: when the transaction has committed, the worker does its steps, as
-- the role that started it, each in a transaction of its own.
--   saga_name   a registered saga
--   payload     JSON object, NULL: {}: its first state
--   unique_key  NULL: none. If one of this name and key is kept, of the same role,
--               under way or over, it is not started again
--   restart     if that one is over, it is
-- Returns its id, a UUID v7, and whether it was started now; if not, the id of the one
-- that is kept.
-- Errors: OB001 not registered, or the role has no queue of sagas; 42883, 42501 of any
-- of its functions; 55000 the topic of an event that it waits for is not read for the
-- role; 22023 the payload, or a key of no or more than 1024 bytes; what a payload that
-- does not fit the first step raises; 25006 read-only transaction or standby.
-- Locks: ROW EXCLUSIVE on cqrs.saga, on the current one of cqrs.saga_entry_0 to _2, and
-- on its topic's current segment or cqrs.scheduled_command; the key, until the end of
-- the transaction: whoever starts one with the same key waits for that.
-- Privileges: EXECUTE on its functions, checked again when they are called.
CREATE FUNCTION @extschema@.cqrs_start_saga(saga_name text, payload jsonb DEFAULT '{}', unique_key text DEFAULT NULL,
	restart boolean DEFAULT false, OUT saga_id uuid, OUT started boolean)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_start_saga(text, jsonb, text, boolean) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_start_saga(text, jsonb, text, boolean) IS 'starts a saga';

-- Sends a signal to a saga: a step that waits for it, or will, takes it; if there is
-- no such step to come, it is dropped. Of a name, 100 are kept; then the oldest goes.
--   signal_name  the event_name of a cqrs_await(), or else the name of the step
--   payload      any JSON value; NULL: none
-- Returns false if no saga of this id is under way.
-- Errors: 42501 it is another role's; 22004, 42602, 42622 names; 55000 its role has no
-- queue of sagas; 25006 read-only transaction or standby.
-- Locks: ROW EXCLUSIVE on its topic's current segment.
-- Privileges: membership in the role that started it.
CREATE FUNCTION @extschema@.cqrs_signal(saga_id uuid, signal_name text, payload jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_signal(uuid, text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_signal(uuid, text, jsonb) IS 'sends a signal to a saga';

-- Cancels a saga: no further step of it is done, and what was done is undone. What is
-- being done ends first. One that is being undone, or past its point of no return, is
-- left alone. That happens after the commit, in turn; cqrs_wait_saga() tells the outcome.
--   step_name  only if it is at this step; NULL: wherever it is
-- Returns false if no saga of this id is under way. Errors: 42704 it has no such step;
-- else, locks and privileges: as of cqrs_signal().
CREATE FUNCTION @extschema@.cqrs_cancel_saga(saga_id uuid, step_name text DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_cancel_saga(uuid, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_cancel_saga(uuid, text) IS 'cancels a saga, and undoes what it did';

-- Has a saga that failed, is stuck, or waits to try again, try this step now, or to undo
-- it, as if it had not failed. If it is elsewhere by then, nothing happens.
-- Returns, errors, locks and privileges: as of cqrs_cancel_saga().
CREATE FUNCTION @extschema@.cqrs_retry_saga(saga_id uuid, step_name text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_retry_saga(uuid, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_retry_saga(uuid, text) IS 'has a saga try a step again';

-- Has a saga pass by this step, which is not done, nor undone later; or pass by undoing
-- it. If it is elsewhere by then, nothing happens; nor if it is a step that runs in
-- other lanes, cqrs_parallel() or cqrs_sub_saga().
-- Returns, errors, locks and privileges: as of cqrs_cancel_saga().
CREATE FUNCTION @extschema@.cqrs_skip_step(saga_id uuid, step_name text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_skip_step(uuid, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_skip_step(uuid, text) IS 'has a saga pass by a step';

-- Has a role's sagas go on whose events were lost, as when somebody truncated
-- cqrs.scheduled_command. cqrs_resume(), cqrs_discard() and cqrs_adopt() do so by
-- themselves. What is not lost makes no difference: each goes on once.
--   owner  the role; NULL: the current user
-- Returns how many were woken, or have their time set anew.
-- Errors: OB001 no queue of sagas; 42501 the caller is not a member of the role; 42704;
-- 25006. Locks: as of cqrs_start_saga(). Privileges: membership in the role.
CREATE FUNCTION @extschema@.cqrs_resume_sagas(owner text DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_resume_sagas(text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_resume_sagas(text) IS 'has sagas go on whose events were lost';

-- The same, for the sagas of a subscription; called where its events may be lost.
CREATE FUNCTION cqrs.resume_sagas(subscription_id integer) RETURNS bigint
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_resume_sagas_of';
REVOKE ALL ON FUNCTION cqrs.resume_sagas(integer) FROM PUBLIC;
COMMENT ON FUNCTION cqrs.resume_sagas(integer) IS 'has the sagas of a subscription go on';

-- Waits for the end of a saga.
--   timeout  how long; NULL: 10 s
-- Returns, when it is over or the time is, status, as cqrs_saga_status has it; the
-- state, if it is over; and the last error. It returns at once for one that failed, and
-- waits for a person.
-- Errors: 42704 none of this id is kept; 42501 it is another role's; 55000 this
-- transaction has started it, or the library is not preloaded; 55006 it is under way in
-- the queue whose sagas this session executes; 22023 a negative timeout; 22004.
-- Privileges: membership in the role that started it.
CREATE FUNCTION @extschema@.cqrs_wait_saga(saga_id uuid, timeout interval DEFAULT NULL, OUT status text, OUT state jsonb, OUT error text)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_wait_saga(uuid, interval) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_wait_saga(uuid, interval) IS 'waits for the end of a saga';

-- What a saga would do, without effect: all its steps, one after the other, those within
-- cqrs_parallel(), too; and then all compensations, in reverse; in one transaction,
-- which is rolled back as by cqrs_dry_run().
--   saga_name, payload
--              as of cqrs_start_saga()
-- Returns a row for each step and compensation, in order:
--   action     done; undone; passed by: it would wait
--   state      if it changed that
--   events     what was emitted, as of cqrs_dry_run()
-- Errors: as of cqrs_start_saga(), and what a step raises, in which case nothing is
-- returned. Privileges: EXECUTE on its functions.
CREATE FUNCTION @extschema@.cqrs_dry_run_saga(saga_name text, payload jsonb DEFAULT '{}')
RETURNS TABLE (step_name text, action text, state jsonb, events @extschema@.cqrs_event[])
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_dry_run_saga(text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_dry_run_saga(text, jsonb) IS 'what a saga would do';

-- Handler of the subscriptions that run sagas.
-- Errors: 55000 called by anything but the delivery.
-- Privileges: EXECUTE is PUBLIC's, as every role's sagas go through this.
CREATE FUNCTION cqrs.run_saga(event @extschema@.cqrs_event) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_run_saga';
GRANT EXECUTE ON FUNCTION cqrs.run_saga(@extschema@.cqrs_event) TO PUBLIC;
COMMENT ON FUNCTION cqrs.run_saga(@extschema@.cqrs_event) IS 'has a saga go on';

-- Handler of the subscriptions that bring sagas what they wait for.
-- Errors and privileges: as cqrs.run_saga().
CREATE FUNCTION cqrs.route_to_sagas(event @extschema@.cqrs_event) RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_route_to_sagas';
GRANT EXECUTE ON FUNCTION cqrs.route_to_sagas(@extschema@.cqrs_event) TO PUBLIC;
COMMENT ON FUNCTION cqrs.route_to_sagas(@extschema@.cqrs_event) IS 'brings sagas what they wait for';

-- The names of the steps of a version of a saga, in the order of their numbers; NULL: there
-- is no such version. For views, which call it as the reader.
CREATE FUNCTION cqrs.saga_steps(saga_name text, version integer) RETURNS text[]
LANGUAGE C STABLE STRICT PARALLEL UNSAFE COST 10 AS 'MODULE_PATHNAME', 'cqrs_saga_steps';
GRANT EXECUTE ON FUNCTION cqrs.saga_steps(text, integer) TO PUBLIC;
COMMENT ON FUNCTION cqrs.saga_steps(text, integer) IS 'names of the steps of a saga';

-- The steps of sagas, by number. For cqrs_diagram() and cqrs_health().
--   within  the step, or the parallel one that it is part of
CREATE VIEW cqrs.diagram_step WITH (security_barrier) AS
SELECT d.saga_name, (row_number() OVER (PARTITION BY d.saga_name ORDER BY s.n, c.n NULLS FIRST) - 1)::integer AS number,
	   coalesce(c.step, s.step - 'steps') AS step, s.step ->> 'name' AS within
FROM cqrs.saga_definition d
CROSS JOIN LATERAL jsonb_array_elements(d.steps) WITH ORDINALITY s(step, n)
LEFT JOIN LATERAL (
	SELECT NULL::jsonb AS step, NULL::bigint AS n
	UNION ALL
	SELECT i.step, i.n FROM jsonb_array_elements(CASE WHEN jsonb_typeof(s.step -> 'steps') = 'array' THEN s.step -> 'steps' ELSE '[]' END)
		WITH ORDINALITY i(step, n)
) c ON true
WHERE d.is_current;
GRANT SELECT ON cqrs.diagram_step TO pg_monitor;
COMMENT ON VIEW cqrs.diagram_step IS 'steps of sagas';

-- Registered sagas. Privileges: SELECT, granted to PUBLIC.
--   steps     names of its steps, in order; those of cqrs_parallel() come behind it
--   on_topic, on_event
--             what starts one, or NULL
--   starter   the role whose sagas those are that an event starts, or NULL
CREATE VIEW @extschema@.cqrs_sagas AS
SELECT d.saga_name, d.version, cqrs.saga_steps(d.saga_name, d.version) AS steps, d.on_topic, d.on_event, CASE WHEN d.on_event IS NOT NULL THEN d.starter END AS starter, d.registered_at
FROM cqrs.saga_definition d
WHERE d.is_current;
GRANT SELECT ON @extschema@.cqrs_sagas TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_sagas IS 'registered sagas';

-- Sagas, under way and over, of the roles that the reader is a member of; for members
-- of pg_monitor, all.
--   owner       who started it; NULL: that role has no queue of sagas any more
--   unique_key  or NULL
--   status      running: a step is to be done, or being done; retrying: again, when it
--               is due; waiting: for an event, a signal, or the end of other things;
--               sleeping; compensating: what was done is being undone; failed: a
--               person has to decide, as a step could not be undone, or none is undone
--               any more; stuck: a function, or a saga, is missing, or may not be
--               executed; completed, compensated, cancelled: it is over
--   step_name   at which step it is; NULL: it is over
--   attempt     how often that has failed
--   since_at    since when it is there
--   due_at      when it goes on by itself, or gives up waiting; NULL: now, or never
--   error       the last one, of this entry
--   state       NULL for who only watches
CREATE VIEW @extschema@.cqrs_saga_status WITH (security_barrier) AS
WITH visible AS MATERIALIZED (
	SELECT t.topic_id, pg_get_userbyid(o.owner) AS owner, pg_has_role(current_user, o.owner, 'USAGE') AS is_own
	FROM cqrs.subscription s
	JOIN cqrs.subscription_topic st USING (subscription_id)
	JOIN cqrs.topic t USING (topic_id)
	CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
	WHERE s.runs = 'sagas' AND (pg_has_role(current_user, o.owner, 'USAGE') OR pg_has_role(current_user, 'pg_monitor', 'USAGE'))
)
SELECT b.saga_id,
	   b.saga_name,
	   b.version,
	   v.owner,
	   b.unique_key,
	   e.status,
	   (cqrs.saga_steps(b.saga_name, b.version))[e.next + 1] AS step_name,
	   e.attempt,
	   e.at AS since_at,
	   e.due AS due_at,
	   e.error,
	   CASE WHEN v.is_own THEN coalesce(e.state, (SELECT s.state FROM cqrs.saga_entry s
			WHERE s.segment = b.segment AND s.saga_id = b.saga_id AND s.branch = 0 AND s.seq = e.state_seq)) END AS state,
	   b.parent_id,
	   b.started_at
FROM cqrs.saga_entry b
JOIN visible v USING (topic_id)
CROSS JOIN LATERAL (SELECT l.* FROM cqrs.saga_entry l
					WHERE l.segment = b.segment AND l.saga_id = b.saga_id AND l.branch = 0 ORDER BY l.seq DESC LIMIT 1) e
WHERE b.branch = 0 AND b.saga_name IS NOT NULL
-- it was not moved to another table
AND NOT EXISTS (SELECT FROM cqrs.saga_entry m WHERE m.saga_id = b.saga_id AND m.branch = 0 AND m.seq > b.seq AND m.saga_name IS NOT NULL);
GRANT SELECT ON @extschema@.cqrs_saga_status TO PUBLIC;
COMMENT ON VIEW @extschema@.cqrs_saga_status IS 'sagas, under way and over';

-- What happened to sagas, of the roles that the reader is a member of. For
-- cqrs_saga_history().
CREATE VIEW cqrs.saga_history WITH (security_barrier) AS
WITH visible AS MATERIALIZED (
	SELECT st.topic_id
	FROM cqrs.subscription s
	JOIN cqrs.subscription_topic st USING (subscription_id)
	CROSS JOIN LATERAL cqrs.subscription_owner(s.subscription_id) o
	WHERE s.runs = 'sagas' AND pg_has_role(current_user, o.owner, 'USAGE')
)
SELECT e.saga_id, e.at, e.event, n.steps[e.step + 1] AS step_name, CASE WHEN e.branch > 0 THEN n.steps[e.branch + 1] END AS branch,
	   CASE WHEN e.branch >= 0 THEN e.status END AS status, nullif(e.attempt, 0) AS attempt, e.message_id, e.name, e.sqlstate, e.error, e.state,
	   e.branch AS number, e.seq
FROM cqrs.saga_entry b
JOIN visible v USING (topic_id)
CROSS JOIN LATERAL cqrs.saga_steps(b.saga_name, b.version) n(steps)
JOIN cqrs.saga_entry e ON e.segment = b.segment AND e.saga_id = b.saga_id
WHERE b.branch = 0 AND b.saga_name IS NOT NULL;
GRANT SELECT ON cqrs.saga_history TO PUBLIC;
COMMENT ON VIEW cqrs.saga_history IS 'what happened to sagas';

-- What happened to a saga, in order. What comes from before it was moved to another
-- table, after a long time, is gone.
--   event       started; done, failed, skipped, undone, undoing failed: the step;
--               function missing; slept; timed out; received: an event or a signal;
--               forked, branch ended, joined: of parallel steps; cancel, retry: what
--               somebody asked for; moved; signal: one came, which is taken later
--   step_name   which step, or NULL
--   branch      NULL, or the parallel step that this is about
--   status      since then, as in cqrs_saga_status
--   attempt     which attempt failed
--   message_id, message_name
--               of the event or signal
--   error_sqlstate, error
--               why it failed
--   state       if it changed: the saga's, or the answer of a parallel step; or what
--               came with a signal
-- Privileges: membership in the role that started it; of others', there is nothing.
CREATE FUNCTION @extschema@.cqrs_saga_history(saga_id uuid)
RETURNS TABLE (at timestamptz, event text, step_name text, branch text, status text, attempt integer, message_id uuid, message_name text,
			   error_sqlstate text, error text, state jsonb)
LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 20
BEGIN ATOMIC
	SELECT h.at, h.event, h.step_name, h.branch, h.status,
		   -- The last attempt at a step is not one at what comes next.
		   CASE WHEN h.event = 'failed' THEN coalesce(h.attempt, 1 + coalesce(lag(h.attempt) OVER (PARTITION BY h.number ORDER BY h.seq), 0)) ELSE h.attempt END,
		   h.message_id, h.name, h.sqlstate, h.error, h.state
	FROM cqrs.saga_history h
	WHERE h.saga_id = $1
	ORDER BY h.at, h.number, h.seq;
END;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_saga_history(uuid) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_saga_history(uuid) IS 'what happened to a saga';
