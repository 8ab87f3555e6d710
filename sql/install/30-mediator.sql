/*
 * 30-mediator.sql
 *		Commands and queries, which share one space of names, and what is called
 *		with them: chains, fallbacks, middleware, handlers of events.
 */

-- ----------------------------------------------------------------------
-- cqrs.command: the registered commands and queries
--
-- command_name   name, at most 63 bytes
-- kind           command: for cqrs_send(); query: for cqrs_query(); stream: a
--                command whose handler returns a set, for cqrs_stream()
-- handlers       the functions called, in the order in which they are tried, as
--                schema.name(schema.type), quoted always by the same rule:
--                text, because pg_upgrade refuses regprocedure columns. Only
--                a command may have more than one
-- owners         the roles that owned them when they were registered. A function
--                that belongs to somebody else now, unless a superuser or the
--                extension's owner, is not the one registered, and is not
--                called. Names, as a dump may be restored where a role is missing
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
SELECT pg_extension_config_dump('cqrs.command', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.command
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.command
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.command ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- Binds a command to its handler. The same again changes nothing, but binds it to
-- the function that is there now, and whose that is.
--   command_name  name, 1 to 63 bytes
--   handler       a function with one argument, jsonb or composite, that returns
--                 void, jsonb, a scalar, a composite, or a set of them: name,
--                 schema.name or schema.name(type). Without a type, the one of
--                 that name in the search_path with such an argument
--   or_replace    another handler, or chain, takes the place of the one that is
--                 there
-- Returns whether anything changed.
-- Errors: 42710 registered already with another handler, or as a query; 42883 no
-- such function, or none with such an argument; 42725 several; 42P13 a function
-- of another form; 42501 the caller may not execute it; 42602, 42622, 22004 a
-- name.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.command until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_register_command(command_name text, handler text, or_replace boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_command(text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_command(text, text, boolean) IS 'binds a command to its handler';

-- Binds a command to a chain of handlers: they are tried in their order, until
-- one does not call cqrs_next().
--   handlers    as the handler of cqrs_register_command(), but none returns a set
--   or_replace  another handler, or chain, takes the place of the one that is there
-- Result, locks and privileges: as cqrs_register_command().
-- Errors: as there; 42710 the same handler twice; 22004, 2202E handlers.
CREATE FUNCTION @extschema@.cqrs_register_chain(command_name text, handlers text[], or_replace boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_chain(text, text[], boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_chain(text, text[], boolean) IS 'binds a command to a chain of handlers';

-- Binds a query to its handler.
--   query_name  name, 1 to 63 bytes
--   handler     as for a command, but does not return a set
--   or_replace  another handler takes the place of the one that is there
-- Result, errors, locks and privileges: as cqrs_register_command().
CREATE FUNCTION @extschema@.cqrs_register_query(query_name text, handler text, or_replace boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_query(text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_query(text, text, boolean) IS 'binds a query to its handler';

-- Removes a command, be it a stream or a chain.
--   if_exists  if there is none, that is no error
-- Returns whether anything was removed.
-- Errors: 42704 not registered; 42809 it is a query; 22004.
-- Locks and privileges: as cqrs_register_command().
CREATE FUNCTION @extschema@.cqrs_unregister_command(command_name text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_command(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_command(text, boolean) IS 'removes a command';

-- The same of a query. Errors: 42704; 42809 it is none; 22004.
CREATE FUNCTION @extschema@.cqrs_unregister_query(query_name text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_query(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_query(text, boolean) IS 'removes a query';

-- Dispatches a command: calls its handler in the caller's transaction and
-- returns its answer (void and SQL NULL: NULL). Each handler of a chain gets the
-- payload converted to its own argument; if none answers, the answer is NULL.
--   command_name  a registered command
--   payload       JSON object, NULL: {}; converted when the handler takes a
--                 composite
--   idempotency_key
--                 NULL: none; 1 to 255 bytes, chosen by the caller anew for each
--                 command, and repeated with it: a command that was
--                 handled with this key is not handled again, but its answer
--                 is returned. The same payload is one that jsonb takes for
--                 equal. Keys are the current user's own, whatever the command.
--                 A key is kept from when its transaction commits, for
--                 cqrs_outbox.idempotency_retention at least. Errors are not
--                 kept.
-- Errors: OB001 not registered; 42883 its handler is gone; 42809 it is not a
-- command; 42501 the caller may not execute the handler; 22023 and those of the
-- types' input functions for the payload; 54001 commands nested too deeply
-- (cqrs_outbox.max_command_depth); whatever the handler raises. With a key: 22023
-- its length; OB002 it was used for another command, or another payload; 55006
-- it is used by a command that this one is part of; 25006 read-only transaction
-- or standby.
-- Locks: each handler of a chain runs in a subtransaction, and so does one that
-- has a fallback. A key is locked until the end of the transaction: a repeat
-- waits for it, and then returns what was committed, even in a REPEATABLE READ
-- transaction, which does not see what the command did. Two transactions that
-- use the same keys in different order may deadlock; each key takes a place in
-- the server's table of locks.
-- Privileges: EXECUTE on the handler; of a chain, on those that are tried; on
-- the first one for a repeat.
CREATE FUNCTION @extschema@.cqrs_send(command_name text, payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL)
RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_send(text, jsonb, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_send(text, jsonb, text) IS 'dispatches a command to its handler';

-- Like cqrs_send() with an idempotency key, but also says whether the command
-- had been handled already.
--   repeated  true: the answer is that of the first time
-- Errors, locks and privileges: as of cqrs_send(); 22004 no key.
CREATE FUNCTION @extschema@.cqrs_send_once(command_name text, payload jsonb, idempotency_key text,
	OUT answer jsonb, OUT repeated boolean)
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_send_once(text, jsonb, text) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_send_once(text, jsonb, text) IS
'dispatches a command, and tells whether it had been handled already';

-- Dispatches a command by the type of its composite payload: to the command whose
-- handler, in a chain the first one, takes that type. For the other handlers of a
-- chain it is converted.
-- Errors: as above; 42883 no command takes that type; 42725 several do.
CREATE FUNCTION @extschema@.cqrs_send(command record) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_send_composite';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_send(record) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_send(record) IS 'dispatches a command given as a composite value';

-- What cqrs_send() would answer, without effect: the command is handled in a
-- subtransaction, with the handlers of the events that it emits, and all is
-- rolled back. Even within a handler, this works as if the command were sent by
-- itself: handlers of events are called before this returns.
--   command_name, payload
--             as of cqrs_send()
--   answer    the answer
--   events    what would have been emitted, in order, by whatever was
--             called, also by triggers, and without topic. Not what was rolled back
--             on the way: by a handler that passed on, or failed and has a
--             fallback. position is NULL, and the ids are new ones each time.
--             Commands that are enqueued are no events. key, payload and
--             headers are NULL of an event whose topic the caller may not read,
--             and of one without topic that somebody else emitted
-- What would only be done at commit, deferred constraints and triggers, is done
-- at the end, as by SET CONSTRAINTS ALL IMMEDIATE. That includes what the
-- transaction had deferred before, with its errors and events; afterwards it is
-- deferred as it was.
-- What stays: sequences have advanced, including that of positions;
-- session-level locks; what was done outside the database. The transaction has
-- got an id if something was written. Circuit breakers decide what is called,
-- but do not count it; no idempotency key is used up; nobody is notified.
-- Errors: as of cqrs_send(), and of a deferred constraint; 25006 something below
-- tried to write in a read-only transaction; 54001 dry runs nested too deeply
-- (cqrs_outbox.max_command_depth); 54000 more than 1 GB of events.
-- Locks: as of cqrs_send(), while it runs.
-- Privileges: as of cqrs_send(); to see what an event says, SELECT on its topic.
CREATE FUNCTION @extschema@.cqrs_dry_run(command_name text, payload jsonb DEFAULT '{}',
	OUT answer jsonb, OUT events @extschema@.cqrs_event[])
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_dry_run(text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_dry_run(text, jsonb) IS 'what a command would answer and emit';

-- Dispatches a command whose handler returns a set: returns its rows, each as
-- cqrs_send() returns an answer, NULL ones too. In a select list, and through a
-- cursor over it, each row is made when it is asked for, together with what the
-- handler does for it, events included, if the handler's language can do that
-- (SQL, PL/Python, C); no more rows are made than the caller asks for. PL/pgSQL
-- makes all of them before the first one.
--   command_name  a registered command
--   payload       as of cqrs_send()
-- Errors: as of cqrs_send(); 42809 it is not a stream.
-- Privileges: EXECUTE on the handler.
CREATE FUNCTION @extschema@.cqrs_stream(command_name text, payload jsonb DEFAULT '{}') RETURNS SETOF jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_stream(text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_stream(text, jsonb) IS 'dispatches a command whose handler returns a set';

-- For a chain's handler: passes the command on to the next one. Returns NULL, for
-- "RETURN cqrs_next()": once the handler returns, its answer counts for nothing,
-- and all that it did is rolled back, events included. It stays passed on even
-- if the handler rolls back a block in which it called this. A handler that
-- answers NULL without it has answered.
-- Errors: 55000 the innermost handler is not one of a chain; so also the handler
-- of a command that has no other.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_next() RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_next() TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_next() IS 'passes a command on to the next handler of its chain';

-- Dispatches a query: calls its handler and returns its answer, as cqrs_send()
-- does, but neither the handler nor what it calls may write or emit, even in a
-- transaction that writes. What the server forbids in a read-only transaction is
-- an error; what it allows there is allowed here: to write temporary tables,
-- pg_notify(), advisory locks, settings and, before version 16, large objects.
--   query_name  a registered query
--   payload     as of cqrs_send()
-- Errors: as of cqrs_send(); 42809 it is not a query; 25006 something below
-- tried to write.
-- Locks: a subtransaction is held meanwhile, unless the transaction is
-- read-only itself.
-- Privileges: EXECUTE on the handler.
CREATE FUNCTION @extschema@.cqrs_query(query_name text, payload jsonb DEFAULT '{}') RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_query(text, jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_query(text, jsonb) IS 'dispatches a query, which writes nothing, to its handler';

-- ----------------------------------------------------------------------
-- cqrs.idempotency_0, _1, _2: answers of commands that were sent with an
-- idempotency key, for those that repeat them. The tables are written in turn,
-- by time; rows are neither updated nor deleted, but a table is truncated when
-- all in it are older than cqrs_outbox.idempotency_retention.
--
-- role, role_name  who sent it: the current user then. A key belongs to a role
--                  with this name and, if the row is native, this number
-- idempotency_key  the key; at most 255 bytes
-- command_name     which command
-- request          SHA-256 of the command's name and the payload; of the answer of
--                  an enqueued command, whose id is the key, of its name
-- answer           the answer, or NULL
-- stored_at        when it was handled
-- native           true if we wrote it; false in a row that was restored from a
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
	LIKE cqrs.idempotency_0 INCLUDING GENERATED,
	PRIMARY KEY (idempotency_key, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX idempotency_1_stored_at ON cqrs.idempotency_1 (stored_at);
COMMENT ON TABLE cqrs.idempotency_1 IS 'answers of commands that were sent with an idempotency key';
COMMENT ON INDEX cqrs.idempotency_1_stored_at IS 'finds the newest';
CREATE TABLE cqrs.idempotency_2 (
	LIKE cqrs.idempotency_0 INCLUDING GENERATED,
	PRIMARY KEY (idempotency_key, role_name, role)
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX idempotency_2_stored_at ON cqrs.idempotency_2 (stored_at);
COMMENT ON TABLE cqrs.idempotency_2 IS 'answers of commands that were sent with an idempotency key';
COMMENT ON INDEX cqrs.idempotency_2_stored_at IS 'finds the newest';
SELECT pg_extension_config_dump('cqrs.idempotency_0', '');
SELECT pg_extension_config_dump('cqrs.idempotency_1', '');
SELECT pg_extension_config_dump('cqrs.idempotency_2', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_0
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_0 ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_1
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_1 ENABLE ALWAYS TRIGGER refuse_write;
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.idempotency_2
	EXECUTE FUNCTION cqrs.refuse_write();
ALTER TABLE cqrs.idempotency_2 ENABLE ALWAYS TRIGGER refuse_write;

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
COMMENT ON SEQUENCE cqrs.event_handler_seq IS 'order of the handlers of an event';
CREATE TABLE cqrs.event_handler (
	event_name		text		NOT NULL,
	handler			text		NOT NULL,
	owner			text		NOT NULL,
	seq				bigint		NOT NULL DEFAULT nextval('cqrs.event_handler_seq'),
	registered_at	timestamptz	NOT NULL DEFAULT now(),
	PRIMARY KEY (event_name, handler)
);
COMMENT ON TABLE cqrs.event_handler IS 'registered handlers of events';
SELECT pg_extension_config_dump('cqrs.event_handler_seq', '');
SELECT pg_extension_config_dump('cqrs.event_handler', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_handler
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.event_handler
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.event_handler ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- Has a function called for each event of a type, in the transaction that
-- emits it. An event has any number of handlers; they are called in the order
-- in which they were registered, as the current user. An event emitted outside
-- any dispatch is handled before the emitting call returns; in a command, after
-- the outermost command's handler has returned, and before cqrs_send() does; in
-- a stream, before the caller gets the row for which it was emitted. What handlers
-- emit is handled after that, breadth first, until nothing is left. An event that is
-- rolled back to a savepoint before that is not handled. An error of a handler is
-- raised by the call that leads to it. A transaction that is open while a
-- handler is registered calls it from the next command that it sends; what it
-- emits outside commands need not be handled.
--   event_name  a registered event type
--   handler     a function with one argument: cqrs_event; jsonb, or the event's
--               payload type: the payload, NULL of a tombstone. It returns void
--               or one value, which is ignored. Named as for
--               cqrs_register_command()
-- Returns whether anything changed: not if it is a handler of this event already.
-- Errors: 42704 the event is not registered, or its payload type is gone; 42883 no
-- such function, or none with such an argument; 42725 several; 42P13 a function
-- of another form; 42501 the caller may not execute it; 22004.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.event_type until the end of the
-- transaction.
-- Privileges: EXECUTE, not granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_register_event_handler(event_name text, handler text) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_event_handler(text, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_event_handler(text, text) IS
'has a function called in the transaction that emits';

-- Removes a handler of an event.
--   handler    name, schema.name or schema.name(type), of those that the event has,
--              be the function there or not; what is left out may be any
--   if_exists  if it is none, or there is no such event, that is no error
-- Returns whether anything was removed.
-- Errors: 42704 the event is not registered, or the function is not its
-- handler; 42725 several of its handlers have that name; 22004.
-- Locks and privileges: as cqrs_register_event_handler().
CREATE FUNCTION @extschema@.cqrs_unregister_event_handler(event_name text, handler text, if_exists boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_event_handler(text, text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_event_handler(text, text, boolean) IS 'removes a handler of an event';

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
-- excluded_sqlstates
--                errors that are no failures for the breaker, as sqlstates
-- max_failures   how many failures in a row open the circuit breaker; 0: there
--                is none
-- reset_after    how long after that the handler is tried again
-- registered_at  when it was registered
-- ----------------------------------------------------------------------
CREATE SEQUENCE cqrs.fallback_id AS integer;
COMMENT ON SEQUENCE cqrs.fallback_id IS 'numbers fallbacks';
CREATE TABLE cqrs.fallback (
	fallback_id		integer		PRIMARY KEY DEFAULT nextval('cqrs.fallback_id'),
	handler			text		NOT NULL UNIQUE,
	fallback		text		NOT NULL,
	owner			text		NOT NULL,
	sqlstates		text[],
	excluded_sqlstates text[],
	max_failures	integer		NOT NULL,
	reset_after		interval	NOT NULL,
	registered_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.fallback IS 'fallbacks of handlers';
SELECT pg_extension_config_dump('cqrs.fallback_id', '');
SELECT pg_extension_config_dump('cqrs.fallback', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.fallback
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.fallback
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.fallback ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- Gives a handler a fallback: when the handler raises an error, wherever it
-- handles a command or a query, alone or in a chain, or an event in the
-- transaction that emits it, all that it wrote and emitted is rolled back, and
-- the fallback is called with the same argument; its answer counts. A
-- subscription's handler has no fallback: it is tried again. An error of the
-- dispatch itself (the payload, a handler that is not there or may not be
-- executed) is no failure of the handler; nor is that of a deferred constraint
-- at commit. The fallback's own fallback, if it has one, is not called.
--   handler    a function with one argument, jsonb or composite, that does not
--              return a set; it need not be registered as a handler yet
--   fallback   a function with the same argument and the same return type; one
--              of the two may return jsonb instead
--   sqlstates  after which errors, as SQLSTATEs, or classes of two characters;
--              NULL: after all but class 57, 53200, P0004, XX001 and XX002. The
--              errors of a cancelled statement and of a shutdown (57014, 57P01,
--              57P02) are never caught
--   excluded_sqlstates
--              errors that are no failures for the breaker, but count as
--              success: those of a handler that works; like sqlstates. The fallback
--              is still called
--   max_failures
--              after this many failures in a row, of all sessions, the circuit
--              breaker opens: the fallback is called instead of the handler;
--              0: no breaker
--   reset_after
--              this long after it opened, one call is the trial: its success
--              closes the breaker, its failure opens it again. Not negative
--   or_replace the handler's fallback, and all of this, takes the place of what is
--              there; the breaker keeps what it has counted
-- Both functions are named as for cqrs_register_command(); without its argument, a
-- fallback is the function of that name with the handler's argument.
-- An error in sqlstates that is not in excluded_sqlstates counts as a failure;
-- other errors leave the breaker as it is. A rollback does not undo what the
-- breaker has counted. The breaker is common to all sessions if cqrs_outbox is in
-- shared_preload_libraries; else each has its own. A restart closes it.
-- Returns whether anything changed.
-- Errors: 42710 it has another one already; 42883 no such function, or none with
-- such an argument; 42725 several; 42P13 a function of another form; 42501 the
-- caller may not execute it; 22004, 22023 arguments.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.fallback until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC. Dispatching needs EXECUTE on the
-- handler, and on the fallback when that is called.
CREATE FUNCTION @extschema@.cqrs_register_fallback(handler text, fallback text, sqlstates text[] DEFAULT NULL,
	excluded_sqlstates text[] DEFAULT NULL, max_failures integer DEFAULT 5, reset_after interval DEFAULT '60 s',
	or_replace boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_fallback(text, text, text[], text[], integer, interval, boolean)
	FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_fallback(text, text, text[], text[], integer, interval, boolean) IS
'has another function called when a handler fails';

-- Removes a handler's fallback.
--   handler    name, schema.name or schema.name(type), of those that have one, be
--              the function there or not; what is left out may be any
--   if_exists  if it has none, that is no error
-- Returns whether anything was removed.
-- Errors: 42704 it has none; 42725 several of that name have one; 22004 handler.
-- Locks and privileges: as cqrs_register_fallback().
CREATE FUNCTION @extschema@.cqrs_unregister_fallback(handler text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_fallback(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_fallback(text, boolean) IS 'removes the fallback of a handler';

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
COMMENT ON SEQUENCE cqrs.middleware_seq IS 'order of middleware';
CREATE TABLE cqrs.middleware (
	handler			text		PRIMARY KEY,
	owner			text		NOT NULL,
	priority		integer		NOT NULL,
	seq				bigint		NOT NULL DEFAULT nextval('cqrs.middleware_seq'),
	registered_at	timestamptz	NOT NULL DEFAULT now()
);
COMMENT ON TABLE cqrs.middleware IS 'registered middleware';
SELECT pg_extension_config_dump('cqrs.middleware_seq', '');
SELECT pg_extension_config_dump('cqrs.middleware', '');
CREATE TRIGGER refuse_write BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.middleware
	EXECUTE FUNCTION cqrs.refuse_write();
CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON cqrs.middleware
	EXECUTE FUNCTION cqrs.registry_changed();
ALTER TABLE cqrs.middleware ENABLE ALWAYS TRIGGER refuse_write, ENABLE ALWAYS TRIGGER registry_changed;

-- ----------------------------------------------------------------------
-- cqrs_request: a command or a query, as middleware sees it
--
-- kind     command or query
-- name     its registered name
-- payload  JSON object; of a command that was sent as a composite value, what
--          to_jsonb() makes of it; what the middleware further out passed on
-- ----------------------------------------------------------------------
CREATE TYPE @extschema@.cqrs_request AS (
	kind	text,
	name	text,
	payload	jsonb
);
GRANT USAGE ON TYPE @extschema@.cqrs_request TO PUBLIC;
COMMENT ON TYPE @extschema@.cqrs_request IS 'a command or a query, as middleware sees it';

-- Has a function called around each command and query, whoever sends it, also
-- within handlers and middleware; around a deferred one when it is executed. It
-- returns the answer; to have the command handled, it calls cqrs_proceed(). It
-- runs in the sender's transaction, outside what makes a query read-only, and
-- outside chains and fallbacks, and has no fallback of its own. It is not called
-- for streams, for handlers of events, or for a repeat with an idempotency key. A
-- transaction that is open while it is registered calls it from its next command
-- on.
-- In it, cqrs_context() is that of the command, which is also the cause of the
-- events that it emits; they are handled, like all others, when the outermost
-- command is over.
--   handler     a function with one argument, cqrs_request, that returns jsonb;
--               named as for cqrs_register_command()
--   priority    those with a smaller one are further out; of those with the same
--               one, those that were registered first
--   or_replace  if it is registered with another priority, it gets this one
-- Returns whether anything changed.
-- Errors: 42710 it is registered with another priority; 42883 no such function, or
-- none with such an argument; 42P13 a function of another form; 42501 the caller
-- may not execute it; 22004.
-- Locks: SHARE ROW EXCLUSIVE on cqrs.middleware until the end of the transaction.
-- Privileges: EXECUTE, not granted to PUBLIC. Whoever sends a command needs
-- EXECUTE on each middleware that is called.
CREATE FUNCTION @extschema@.cqrs_register_middleware(handler text, priority integer DEFAULT 0, or_replace boolean DEFAULT false)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_register_middleware(text, integer, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_register_middleware(text, integer, boolean) IS
'has a function called around each command and query';

-- Removes a middleware.
--   handler    name, schema.name or schema.name(type), of those that are, be the
--              function there or not; what is left out may be any
--   if_exists  if it is none, that is no error
-- Returns whether anything was removed.
-- Errors: 42704 it is none; 42725 several have that name; 22004.
-- Locks and privileges: as cqrs_register_middleware().
CREATE FUNCTION @extschema@.cqrs_unregister_middleware(handler text, if_exists boolean DEFAULT false) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION @extschema@.cqrs_unregister_middleware(text, boolean) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_unregister_middleware(text, boolean) IS 'removes a middleware';

-- For a middleware: goes on to the next one, and finally to the handlers, and
-- returns their answer. It may be called several times; as always, whoever
-- catches an error undoes what was done before it. What is further in runs as
-- the current user. But if the middleware is SECURITY DEFINER and the current
-- user is its owner, that runs as the role, and with the search_path, that the
-- middleware was called with: then what is SET further in ends there, and ROLE
-- cannot be SET.
--   payload  JSON object for what is further in, converted like
--            any payload; NULL: the one that the middleware was called with
-- Errors: 55000 it is called outside any dispatch, or by a handler; 22023
-- payload; what cqrs_send() raises.
-- Privileges: EXECUTE, granted to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_proceed(payload jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_proceed(jsonb) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_proceed(jsonb) IS 'goes on from a middleware to what is further in';

-- A middleware that can be registered: writes a line to the server's log after
-- each command and query, at level LOG: its kind, name, and id, how long what
-- is further in took, in milliseconds, and the SQLSTATE of its error; never
-- the payload. Errors: 55000 as cqrs_proceed(). Privileges: EXECUTE, granted
-- to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_log_dispatch(request @extschema@.cqrs_request) RETURNS jsonb
LANGUAGE C VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_log_dispatch(@extschema@.cqrs_request) TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_log_dispatch(@extschema@.cqrs_request) IS
'a middleware that logs commands and queries';

-- ----------------------------------------------------------------------
-- cqrs_context: what is being handled
--
-- kind            command, query, stream, event or step; events: several at once
-- name            its registered name; of a step, saga.step; of several events, the
--                 subscription's
-- id              UUID v7: the event's id; of what was sent, one made for it; of a
--                 step, the saga's
-- topic, key      of an event, or of an enqueued command; otherwise NULL
-- correlation_id  the same for everything of one origin: the header of that name
--                 of an event; of what was sent by a handler, the handler's;
--                 otherwise the setting cqrs_outbox.correlation_id, or if that
--                 is empty, its own id
-- causation_id    id of what was handled when it was sent or emitted, or NULL:
--                 nothing was. Text, as what comes from elsewhere has an id of
--                 its own form
-- attempts        how often a subscription has delivered the event, this time
--                 included; else 1
-- traceparent     the header of an event, otherwise the setting, or NULL
-- caller          the role that sent it, or for which the event is handled: for a
--                 subscription, its owner; in a SECURITY DEFINER function,
--                 not the current user
-- effect_key      in a step of a saga, a UUID that is the same whenever this step is
--                 done, also after a failover or a restore, for what it causes
--                 elsewhere, such as a header Idempotency-Key; else NULL
-- ----------------------------------------------------------------------
CREATE TYPE @extschema@.cqrs_context AS (
	kind			text,
	name			text,
	id				uuid,
	topic			text,
	key				text,
	correlation_id	text,
	causation_id	text,
	attempts		integer,
	traceparent		text,
	caller			text,
	effect_key		text
);
GRANT USAGE ON TYPE @extschema@.cqrs_context TO PUBLIC;
COMMENT ON TYPE @extschema@.cqrs_context IS 'what is being handled';

-- What is being handled by the calling handler (of a command, query, stream or
-- event, or of a subscription) or middleware; NULL outside of any.
CREATE FUNCTION @extschema@.cqrs_context() RETURNS @extschema@.cqrs_context
LANGUAGE C STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME';
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_context() TO PUBLIC;
COMMENT ON FUNCTION @extschema@.cqrs_context() IS 'what is being handled';
