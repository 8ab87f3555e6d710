/*-------------------------------------------------------------------------
 *
 * health.c
 *	  What keeps events from being delivered, or will: the part of
 *	  cqrs_health() that no table shows.
 *
 * Each problem has a name that stays, one of three severities, and says what to
 * do. What is an error keeps something from being delivered at all; a warning
 * means that something is late or given up; a notice, that somebody wanted it
 * so. Nothing here raises an error because something is broken, or waits for
 * a lock.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "commands/dbcommands.h"
#include "foreign/foreign.h"
#include "replication/logicallauncher.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "extension/catalog.h"
#include "log/segment.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"
#include "subscription/subscription.h"

/* To wait so long for a manager is a problem, in milliseconds. */
#define LONGEST_WAIT	5000

/* Columns of cqrs.check(). */
enum
{
	CHECK_SEVERITY,
	CHECK_PROBLEM,
	CHECK_OBJECT,
	CHECK_DETAIL,
	CHECK_HINT,
	CHECK_SINCE,
	CHECK_PID,
	CHECK_COLUMNS
};

typedef struct Report
{
	Tuplestorestate *store;
	TupleDesc	desc;
} Report;

static void put(Report *report, const char *severity, const char *problem,
				const char *object, const char *detail, const char *hint);
static void put_held(Report *report, const char *severity,
					 const char *problem, const char *object,
					 const char *detail, const char *hint, TimestampTz since,
					 int pid);
static void check_processes(Report *report);
static void check_manager(Report *report, const CqrsDatabaseSlot *slot,
						  bool full, bool exhausted);
static void check_workers(Report *report, const CqrsDatabaseSlot *slot);
static void check_worker_processes(Report *report);
static void check_clock(Report *report);
static const char *why_not_probed(bool full, const char **hint);
static void check_topic(Report *report, const CqrsTopic *topic);
static CqrsSegmentState look_twice(const CqrsTopic *topic, int segment,
								   const char **detail, int *pid);
static void check_subscription(Report *report,
							   CqrsSubscription *subscription);
static void put_owner_missing(Report *report,
							  const CqrsSubscription *subscription,
							  const char *object);
static void check_owner(Report *report, const CqrsSubscription *subscription,
						const char *object);
static void check_handler(Report *report, CqrsSubscription *subscription,
						  const char *object);
static void check_server(Report *report, const CqrsSubscription *subscription,
						 const char *object);
static bool put_taken_over(Report *report, const CqrsHandler *handler,
						   const char *severity, const char *object);
static void check_command(Report *report, CqrsCommand *command);
static void check_event_type(Report *report, CqrsEventType *event_type);
static void check_middleware(Report *report, CqrsMiddleware *middleware);
static void check_fallback(Report *report, CqrsHandler *handler,
						   char *object);
static const char *role_name(Oid role);

PG_FUNCTION_INFO_V1(cqrs_usable);
PG_FUNCTION_INFO_V1(cqrs_check);

/*
 * cqrs.usable()
 */
Datum
cqrs_usable(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(cqrs_registry_usable());
}

/*
 * cqrs.check()
 */
Datum
cqrs_check(PG_FUNCTION_ARGS)
{
	Report		report;
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	CqrsSubscription *subscription;
	CqrsCommand *command;
	CqrsEventType *event_type;
	CqrsMiddleware *middleware;

	report.store = cqrs_srf_begin(fcinfo, &report.desc);
	if (!cqrs_registry_usable())
	{
		put(&report, "error", "version_mismatch",
			psprintf("extension \"%s\"", CQRS_EXTENSION),
			psprintf("The library is of version %s, the extension is not.",
					 CQRS_VERSION),
			"ALTER EXTENSION cqrs_outbox UPDATE, or restart the server, so that it loads the library that was installed last.");
		return (Datum) 0;
	}
	if (cqrs_registry_is_copy())
		put(&report, "error", "copied",
			psprintf("database \"%s\"", get_database_name(MyDatabaseId)),
			"It is a copy of another database, which delivers; nothing is delivered here.",
			"SELECT cqrs_adopt(); -- delivers from here on what the copy's subscriptions have not got");
	check_processes(&report);

	/* Nothing that is called during a walk loads the registry again. */
	cqrs_registry_topics(&status);
	while ((topic = hash_seq_search(&status)) != NULL)
		check_topic(&report, topic);
	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		check_subscription(&report, subscription);
	cqrs_registry_commands(&status);
	while ((command = hash_seq_search(&status)) != NULL)
		check_command(&report, command);
	cqrs_registry_event_types(&status);
	while ((event_type = hash_seq_search(&status)) != NULL)
		check_event_type(&report, event_type);
	for (middleware = cqrs_registry_get_middleware(); middleware != NULL;
		 middleware = middleware->next)
		check_middleware(&report, middleware);
	return (Datum) 0;
}

/*
 * Report a problem that is one however long it has lasted. A hint
 * that is a statement ends as one, to be run as it is.
 */
static void
put(Report *report, const char *severity, const char *problem,
	const char *object, const char *detail, const char *hint)
{
	put_held(report, severity, problem, object, detail, hint, 0, 0);
}

/*
 * Report one that is one only if it lasts: since when, or whose transaction
 * makes it; 0 if that is not so.
 */
static void
put_held(Report *report, const char *severity, const char *problem,
		 const char *object, const char *detail, const char *hint,
		 TimestampTz since, int pid)
{
	Datum		values[CHECK_COLUMNS];
	bool		nulls[CHECK_COLUMNS] = {0};

	values[CHECK_SEVERITY] = CStringGetTextDatum(severity);
	values[CHECK_PROBLEM] = CStringGetTextDatum(problem);
	values[CHECK_OBJECT] = CStringGetTextDatum(object);
	values[CHECK_DETAIL] = CStringGetTextDatum(detail);
	values[CHECK_HINT] = CStringGetTextDatum(hint);
	values[CHECK_SINCE] = TimestampTzGetDatum(since);
	nulls[CHECK_SINCE] = since == 0;
	values[CHECK_PID] = Int32GetDatum(pid);
	nulls[CHECK_PID] = pid == 0;
	tuplestore_putvalues(report->store, report->desc, values, nulls);
}

/*
 * Are there the processes that this database needs? On a standby, none runs.
 */
static void
check_processes(Report *report)
{
	CqrsDatabaseSlot *slot = NULL;
	CqrsDatabaseSlot copy;
	bool		launcher;
	bool		exhausted;
	int			ndatabases = 0;
	int			i;

	if (cqrs_shared == NULL)
	{
		put(report, "error", "not_preloaded", "setting shared_preload_libraries",
			"Nothing is delivered in the background.",
			"Add cqrs_outbox to shared_preload_libraries and restart the server.");
		return;
	}
	if (RecoveryInProgress())
		return;
	if (!cqrs_deliver)
		put(report, "warning", "deliver_off", "setting cqrs_outbox.deliver",
			"Nothing is delivered in the background, in any database.",
			"Turn it on, unless this is a copy of a production database.");

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	launcher = cqrs_shared->launcher_pid != 0;
	exhausted = cqrs_shared->exhausted;
	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].state != CQRS_DATABASE_FREE)
			ndatabases++;
	slot = cqrs_database_find(MyDatabaseId);
	if (slot != NULL)
		copy = *slot;
	LWLockRelease(cqrs_shared->lock);

	if (!launcher)
		put(report, "error", "no_launcher", "server",
			"The launcher is not running: managers that end are not started again.",
			"See the server's log. It is started again within a second, unless max_worker_processes had no room for it when the server started.");
	if (slot != NULL && copy.state == CQRS_DATABASE_RUNNING && cqrs_deliver)
		check_workers(report, &copy);
	else if (cqrs_deliver &&
			 (slot == NULL || copy.state != CQRS_DATABASE_RESTING))
		check_manager(report, slot == NULL ? NULL : &copy,
					  ndatabases == cqrs_shared->ndatabases, exhausted);
	check_worker_processes(report);
	check_clock(report);
}

/*
 * Is the clock far ahead of where it was a moment ago?
 */
static void
check_clock(Report *report)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;

	if (!cqrs_clock_jumped(&until))
		return;
	put(report, "warning", "clock_jumped", "server",
		psprintf("The clock was set forward by more than a minute, to %s. Nothing that is due by it only now is released before %s: scheduled commands, segments, idempotency keys.",
				 pstrdup(timestamptz_to_str(now)),
				 pstrdup(timestamptz_to_str(until + now - cqrs_steady_now()))),
		"If the clock is wrong, put it right before that time.");
}

/*
 * This database is to have a manager, and has none: why? slot is NULL if nobody
 * has asked for one; full: no further database can have one; exhausted: the
 * server has no process for one. To wait for a moment is no problem.
 */
static void
check_manager(Report *report, const CqrsDatabaseSlot *slot, bool full,
			  bool exhausted)
{
	const char *name = get_database_name(MyDatabaseId);
	const char *hint = "See the server's log.";
	const char *why;

	if (slot == NULL)
		why = why_not_probed(full, &hint);
	else if (slot->held > 0)
	{
		why = "A command that needs the database for itself keeps it out.";
		hint = "Wait for ALTER DATABASE, DROP DATABASE or CREATE DATABASE to end.";
	}
	else if (slot->failures > 0)
		why = psprintf("It ended unexpectedly, %d times in a row; the next may start at %s.",
					   slot->failures,
					   timestamptz_to_str(cqrs_steady_to_wall(slot->start_after)));
	else if (exhausted)
	{
		why = "All of max_worker_processes are in use.";
		hint = "Raise max_worker_processes and restart the server.";
	}
	else if (TimestampDifferenceExceeds(slot->start_after, cqrs_steady_now(),
										LONGEST_WAIT))
	{
		why = psprintf("It waits for one since %s: others have all %d that there may be at the same time.",
					   timestamptz_to_str(cqrs_steady_to_wall(slot->start_after)),
					   cqrs_shared->nmanagers);
		hint = "Raise cqrs_outbox.max_managers, and max_worker_processes by as many, and restart the server.";
	}
	else
		return;
	put(report, "error", "no_manager", psprintf("database \"%s\"", name),
		psprintf("Nothing is delivered here in the background: the database has no manager. %s",
				 why),
		hint);
}

/*
 * Why the launcher has not been asked for a manager.
 */
static const char *
why_not_probed(bool full, const char **hint)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(MyDatabaseId));
	Form_pg_database database;
	const char *why = "Nobody has asked for one.";

	*hint = "Emit an event.";
	if (full)
	{
		why = psprintf("There are %d others that have.",
					   cqrs_shared->ndatabases);
		*hint = "Raise cqrs_outbox.max_databases and restart the server.";
	}
	if (!HeapTupleIsValid(tuple))
		return why;
	database = (Form_pg_database) GETSTRUCT(tuple);
	if (database->datistemplate)
	{
		why = "It is a template.";
		*hint = "ALTER DATABASE ... IS_TEMPLATE false, then emit an event.";
	}
	else if (!database->datallowconn)
	{
		why = "It does not allow connections.";
		*hint = "ALTER DATABASE ... ALLOW_CONNECTIONS true, then emit an event.";
	}
	ReleaseSysCache(tuple);
	return why;
}

/*
 * Has this database's manager the workers that it needs?
 */
static void
check_workers(Report *report, const CqrsDatabaseSlot *slot)
{
	const char *object = psprintf("database \"%s\"",
								  get_database_name(MyDatabaseId));

	if (slot->exhausted)
		put(report, "error", "no_worker", object,
			"Subscriptions wait for a worker: all of max_worker_processes are in use.",
			"Raise max_worker_processes and restart the server.");
	else if (slot->waiting_since != 0)
		put_held(report, "warning", "workers_busy", object,
				 psprintf("Subscriptions wait for a worker since %s: all %d are in use.",
						  timestamptz_to_str(cqrs_steady_to_wall(slot->waiting_since)),
						  cqrs_shared->nworkers),
				 "See cqrs_worker_status(). Raise cqrs_outbox.max_workers and restart the server.",
				 cqrs_steady_to_wall(slot->waiting_since), 0);
	if (slot->failed_subscription != 0)
	{
		CqrsSubscription *subscription;

		subscription = cqrs_registry_subscription_by_id(slot->failed_subscription);
		if (subscription != NULL)
			put(report, "error", "worker_failed",
				psprintf("subscription \"%s\"", subscription->name),
				psprintf("A worker for it ended unexpectedly, %d times in a row; the next may start at %s.",
						 slot->worker_failures,
						 timestamptz_to_str(cqrs_steady_to_wall(slot->worker_retry_at))),
				"See the server's log.");
	}
}

/*
 * Is there room for what is configured? The server's launcher of logical
 * replication takes one, too.
 */
static void
check_worker_processes(Report *report)
{
	int			others = max_logical_replication_workers > 0 ? 1 : 0;
	int			needed = others + 1 + cqrs_max_managers + cqrs_max_workers;

	if (max_worker_processes >= needed)
		return;
	put(report, "warning", "few_worker_processes",
		"setting max_worker_processes",
		psprintf("It is %d; needed are %d for the server itself, 1 for the launcher, %d for managers and %d for workers. So there are %d managers and %d workers.",
				 max_worker_processes, others, cqrs_max_managers,
				 cqrs_max_workers, cqrs_shared->nmanagers,
				 cqrs_shared->nworkers),
		psprintf("Set it to %d or more, if there are parallel queries or subscriptions of logical replication, and restart the server.",
				 needed));
}

/*
 * Is the topic as cqrs_create_topic() made it?
 */
static void
check_topic(Report *report, const CqrsTopic *topic)
{
	const char *object = psprintf("topic \"%s\"", topic->name);
	int			i;

	if (!topic->native)
		put(report, "notice", "topic_restored", object,
			"It was restored from a dump; its restored events are not delivered.",
			"SELECT cqrs_adopt();");

	/* The registry does not learn that it was dropped. */
	if (get_rel_relkind(topic->view) != RELKIND_VIEW)
		put(report, "error", "topic_view_missing", object,
			psprintf("View %s.%s does not exist: nobody may emit or read.",
					 CQRS_TOPIC_SCHEMA,
					 quote_identifier(topic->name)),
			psprintf("SELECT cqrs_drop_topic(%s, force => true); -- then create it again",
					 quote_literal_cstr(topic->name)));
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		char	   *table = psprintf("%s.topic_%d_%d", CQRS_SCHEMA,
									 topic->topic_id, i);
		const char *problem;
		int			pid;

		switch (look_twice(topic, i, &problem, &pid))
		{
			case CQRS_SEGMENT_INTACT:
				break;
			case CQRS_SEGMENT_LOCKED:
				put_held(report, "warning", "topic_locked", object,
						 psprintf("%s has, or waits for, ACCESS EXCLUSIVE on table %s; everybody else waits.",
								  pid == 0 ? "A transaction" :
								  psprintf("Process %d", pid), table),
						 "See pg_locks, and end that transaction.", 0, pid);
				break;
			case CQRS_SEGMENT_MISSING:
				put(report, "error", "topic_table_missing", object,
					psprintf("Table %s does not exist.", table),
					psprintf("SELECT cqrs_drop_topic(%s, force => true);",
							 quote_literal_cstr(topic->name)));
				break;
			case CQRS_SEGMENT_ALTERED:
				put(report, "error", "topic_table_altered", object,
					psprintf("Table %s was altered. %s", table, problem),
					"Undo the change; the tables of a topic are not meant to be altered.");
				break;
		}
	}
}

/*
 * The state of a segment. If it is locked, *pid gets who has the lock. If
 * nobody has, that may just be over, or somebody waits for it and has all
 * others wait behind.
 */
static CqrsSegmentState
look_twice(const CqrsTopic *topic, int segment, const char **detail, int *pid)
{
	CqrsSegmentState state;
	LOCKTAG		tag;
	int			i;

	*pid = 0;
	for (i = 0; i < 2; i++)
	{
		state = cqrs_segment_look(topic, segment, detail);
		if (state != CQRS_SEGMENT_LOCKED)
			break;
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, topic->segments[segment]);
		if (cqrs_lock_holder(&tag, AccessShareLock, pid))
			break;
	}
	return state;
}

/*
 * Can the subscription be delivered?
 */
static void
check_subscription(Report *report, CqrsSubscription *subscription)
{
	const char *object = psprintf("subscription \"%s\"", subscription->name);

	if (subscription->ntopics == 0)
		put(report, "warning", "no_topics", object,
			"The topics that it reads were dropped.",
			psprintf("SELECT cqrs_unsubscribe(%s);",
					 quote_literal_cstr(subscription->name)));
	if (!OidIsValid(subscription->owner))
	{
		put_owner_missing(report, subscription, object);
		return;
	}
	check_owner(report, subscription, object);
	if (subscription->has_handler)
		check_handler(report, subscription, object);
	if (subscription->server != NULL)
		check_server(report, subscription, object);
}

/*
 * Nobody owns the subscription.
 */
static void
put_owner_missing(Report *report, const CqrsSubscription *subscription,
				  const char *object)
{
	const char *name = quote_literal_cstr(subscription->name);
	const char *owner;
	Oid			view;

	if (!OidIsValid(subscription->view))
		put(report, "error", "owner_missing", object,
			psprintf("View %s does not exist, whose owner is the subscription's; nothing is delivered to it.",
					 quote_qualified_identifier(CQRS_SUBSCRIPTION_SCHEMA,
												subscription->name)),
			psprintf("SELECT cqrs_alter_subscription(%s); -- as a superuser, who owns it then; or cqrs_unsubscribe(%s)",
					 name, name));
	else if (subscription->ntopics > 0)
	{
		owner = GetUserNameFromId(cqrs_owner_find(subscription->name, &view),
								  true);
		if (owner == NULL)
			owner = "?";
		put(report, "error", "owner_missing", object,
			psprintf("Role \"%s\" owns its view, but another role enqueued its commands; they are not executed.",
					 owner),
			psprintf("GRANT SELECT ON %s TO %s WITH GRANT OPTION; -- to have role \"%s\" execute them; or SELECT cqrs_unsubscribe(%s);",
					 quote_qualified_identifier(CQRS_TOPIC_SCHEMA,
												subscription->topics[0]->name),
					 quote_identifier(owner), owner, name));
	}
}

/*
 * May the owner, who exists, do what delivering takes?
 */
static void
check_owner(Report *report, const CqrsSubscription *subscription,
			const char *object)
{
	Oid			owner = subscription->owner;
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
	{
		CqrsTopic  *topic = subscription->topics[i];
		bool		missing = false;

		if (pg_class_aclcheck_ext(topic->view, owner, ACL_SELECT,
								  &missing) == ACLCHECK_OK || missing)
			continue;
		put(report, "error", "topic_privilege", object,
			psprintf("Its owner, role \"%s\", may not read topic \"%s\".",
					 GetUserNameFromId(owner, false), topic->name),
			psprintf("GRANT SELECT ON %s TO %s;",
					 quote_qualified_identifier(CQRS_TOPIC_SCHEMA,
												topic->name),
					 role_name(owner)));
	}
	if (cqrs_subscription_is_pulled(subscription))
		return;

	if (object_aclcheck(DatabaseRelationId, MyDatabaseId, owner,
						ACL_CONNECT) != ACLCHECK_OK)
		put(report, "error", "owner_connect", object,
			psprintf("The worker connects as its owner, role \"%s\", who may not connect to this database.",
					 GetUserNameFromId(owner, false)),
			psprintf("GRANT CONNECT ON DATABASE %s TO %s;",
					 quote_identifier(get_database_name(MyDatabaseId)),
					 role_name(owner)));
	if (!cqrs_subscription_owner_can_login(owner))
		put(report, "error", "owner_login", object,
			psprintf("The worker connects as its owner, role \"%s\", who is not permitted to log in.",
					 GetUserNameFromId(owner, false)),
			psprintf("ALTER ROLE %s LOGIN; -- it needs no password for this",
					 role_name(owner)));
}

/*
 * Can the handler be called, by the owner, who exists?
 */
static void
check_handler(Report *report, CqrsSubscription *subscription,
			  const char *object)
{
	CqrsHandler *handler = &subscription->handler;
	Oid			owner = subscription->owner;

	if (!cqrs_handler_find(handler))
	{
		put(report, "error", "handler_missing", object,
			psprintf("Its handler %s does not exist: it was dropped, or replaced by something that is not a function with this signature that returns one value.",
					 handler->signature),
			"Create it again, or name another with cqrs_alter_subscription().");
		return;
	}
	if (handler->owner != owner && !superuser_arg(handler->owner))
		put(report, "error", "handler_owner", object,
			psprintf("Its handler %s belongs to role \"%s\", which is neither the subscription's owner nor a superuser.",
					 handler->signature,
					 GetUserNameFromId(handler->owner, true)),
			psprintf("ALTER FUNCTION %s OWNER TO %s;",
					 format_procedure_qualified(handler->funcid),
					 role_name(owner)));
	if (object_aclcheck(ProcedureRelationId, handler->funcid, owner,
						ACL_EXECUTE) != ACLCHECK_OK)
		put(report, "error", "handler_privilege", object,
			psprintf("Its owner, role \"%s\", may not execute its handler %s.",
					 GetUserNameFromId(owner, false),
					 handler->signature),
			psprintf("GRANT EXECUTE ON FUNCTION %s TO %s;",
					 format_procedure_qualified(handler->funcid),
					 role_name(owner)));
}

/*
 * Is there the server, and may the owner, who exists, use it?
 */
static void
check_server(Report *report, const CqrsSubscription *subscription,
			 const char *object)
{
	ForeignServer *server = GetForeignServerByName(subscription->server, true);
	Oid			owner = subscription->owner;

	if (server == NULL)
		put(report, "error", "server_missing", object,
			psprintf("Its server \"%s\" does not exist: it was dropped, or renamed.",
					 subscription->server),
			"Create it again, or name another with cqrs_alter_subscription().");
	else if (object_aclcheck(ForeignServerRelationId, server->serverid, owner,
							 ACL_USAGE) != ACLCHECK_OK)
		put(report, "error", "server_privilege", object,
			psprintf("Its owner, role \"%s\", may not use server \"%s\".",
					 GetUserNameFromId(owner, false), server->servername),
			psprintf("GRANT USAGE ON FOREIGN SERVER %s TO %s;",
					 quote_identifier(server->servername), role_name(owner)));
}

/*
 * Is the function that was not found there, but another role's by now? Then it
 * is reported.
 */
static bool
put_taken_over(Report *report, const CqrsHandler *handler,
			   const char *severity, const char *object)
{
	if (!handler->taken_over)
		return false;
	put(report, severity, "function_taken_over", object,
		psprintf("Function %s is not called. %s", handler->signature,
				 cqrs_handler_why_missing(handler)),
		"Unregister it, and register it again if that is what is meant.");
	return true;
}

/*
 * Are there the functions to call?
 */
static void
check_command(Report *report, CqrsCommand *command)
{
	const char *kind = cqrs_command_kind_name(command->kind);
	int			i;

	for (i = 0; i < command->nhandlers; i++)
	{
		CqrsHandler *handler = &command->handlers[i];

		if (!cqrs_handler_find(handler) &&
			!put_taken_over(report, handler, "warning",
							psprintf("%s \"%s\"", kind, command->name)))
			put(report, "warning", "command_handler_missing",
				psprintf("%s \"%s\"", kind, command->name),
				psprintf("Its handler %s does not exist.",
						 handler->signature),
				psprintf("Create it again, or unregister the %s with cqrs_unregister_command().",
						 kind));
		check_fallback(report, handler,
					   psprintf("%s \"%s\"", kind, command->name));
	}
}

static void
check_event_type(Report *report, CqrsEventType *event_type)
{
	CqrsEventHandler *handler;

	if (!SearchSysCacheExists1(TYPEOID,
							   ObjectIdGetDatum(event_type->payload_type)))
		put(report, "warning", "payload_type_missing",
			psprintf("event \"%s\"", event_type->name),
			"Its payload type was dropped: no event of it can be emitted.",
			psprintf("SELECT cqrs_unregister_event(%s); -- then register it again",
					 quote_literal_cstr(event_type->name)));
	for (handler = event_type->handlers; handler != NULL; handler = handler->next)
	{
		if (!cqrs_handler_find(&handler->handler) &&
			!put_taken_over(report, &handler->handler, "warning",
							psprintf("event \"%s\"", event_type->name)))
			put(report, "warning", "event_handler_missing",
				psprintf("event \"%s\"", event_type->name),
				psprintf("Its handler %s does not exist.",
						 handler->handler.signature),
				psprintf("SELECT cqrs_unregister_event_handler(%s, %s); -- or create it again",
						 quote_literal_cstr(event_type->name),
						 quote_literal_cstr(handler->handler.signature)));
		check_fallback(report, &handler->handler,
					   psprintf("event \"%s\"", event_type->name));
	}
}

/*
 * Without it, no command is handled.
 */
static void
check_middleware(Report *report, CqrsMiddleware *middleware)
{
	const char *signature = middleware->handler.signature;

	if (!cqrs_handler_find(&middleware->handler) &&
		!put_taken_over(report, &middleware->handler, "error",
						psprintf("middleware %s", signature)))
		put(report, "error", "middleware_missing",
			psprintf("middleware %s", signature),
			"It does not exist, so no command or query can be sent.",
			psprintf("SELECT cqrs_unregister_middleware(%s); -- or create it again",
					 quote_literal_cstr(signature)));
}

static void
check_fallback(Report *report, CqrsHandler *handler, char *object)
{
	if (handler->fallback != NULL &&
		!cqrs_handler_find(&handler->fallback->handler) &&
		!put_taken_over(report, &handler->fallback->handler, "warning",
						psprintf("fallback %s",
								 handler->fallback->handler.signature)))
		put(report, "warning", "fallback_missing", object,
			psprintf("The fallback %s of its handler %s does not exist.",
					 handler->fallback->handler.signature, handler->signature),
			psprintf("SELECT cqrs_unregister_fallback(%s); -- or create it again",
					 quote_literal_cstr(handler->signature)));
}

/*
 * A role's name as it is written in SQL.
 */
static const char *
role_name(Oid role)
{
	return quote_identifier(GetUserNameFromId(role, false));
}
