/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  The backend's copy of what is registered: topics, event types and their
 *	  handlers, commands, middleware, fallbacks and subscriptions.
 *
 * Protocol
 *
 * 1. The registry is in ordinary tables. DML on them sends no invalidation by
 *	  itself; a statement trigger of theirs (cqrs_registry_changed) sends a
 *	  relcache invalidation of one of them, the marker. It travels with the
 *	  commit, and comes back to the sender at its own next command, and again
 *	  if it aborts.
 * 2. The copy is loaded whole, when it is first asked after an invalidation.
 *	  The callback only counts; a load that sees another count at its end than
 *	  at its start leaves the copy marked stale.
 * 3. The load reads with the latest snapshot, after opening the tables. With
 *	  the transaction's snapshot, a REPEATABLE READ transaction would leave
 *	  the past behind for the session's later transactions.
 * 4. Who owns a subscription is in the catalogs, whose changes are counted,
 *	  too; see owner.c.
 *
 * Memory
 *
 * The copy lives in one context. A stale one is hung below the transaction's
 * context instead of being freed, if callers up the stack may hold entries of
 * it: if somebody has got one. So an entry may be used until the end of the
 * transaction, not longer; and who registers a thousand commands in one
 * transaction, and so has the registry loaded a thousand times, does not keep
 * as many copies. Whoever only asks whether there is an entry, or which id it
 * has, gets none.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/debug_point.h"
#include "extension/catalog.h"
#include "extension/version.h"
#include "log/tick.h"
#include "mediator/fallback.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "shared/announce.h"

typedef void (*RowCallback) (Datum *values, bool *nulls);

static MemoryContext registry_context = NULL;
static HTAB *topics = NULL;
static HTAB *event_types = NULL;
static HTAB *commands = NULL;
static HTAB *fallbacks = NULL;
static HTAB *subscriptions = NULL;
CqrsMiddleware *cqrs_registry_middleware = NULL;

/* Has anybody got an entry of the copy? */
static bool handed_out = false;

/* The same entries by their ids. */
static HTAB *topics_by_id = NULL;
static HTAB *subscriptions_by_id = NULL;

/* The subscriptions that run commands, by their owners. */
static HTAB *command_subscriptions = NULL;

/* Is this database named in cqrs.identity? Is a template? */
static bool has_identity = false;
static bool is_from_template = false;

/* Is any topic a restored one that was not adopted? */
static bool has_restored = false;

typedef struct IdEntry
{
	int32		id;				/* hash key */
	void	   *entry;
} IdEntry;

/* Columns of cqrs.topic. */
enum
{
	TOPIC_ID = 1,
	TOPIC_TOPIC,
	TOPIC_RETENTION,
	TOPIC_CURRENT_SEGMENT,
	TOPIC_OPENED_AT,
	TOPIC_CREATED_AT,
	TOPIC_NATIVE
};

/* Columns of cqrs.command. */
enum
{
	COMMAND_COMMAND_NAME = 1,
	COMMAND_KIND,
	COMMAND_HANDLERS,
	COMMAND_OWNERS
};

/* Columns of cqrs.event_handler. */
enum
{
	EVENT_HANDLER_EVENT_NAME = 1,
	EVENT_HANDLER_HANDLER,
	EVENT_HANDLER_OWNER,
	EVENT_HANDLER_SEQ
};

/* Columns of cqrs.middleware. */
enum
{
	MIDDLEWARE_HANDLER = 1,
	MIDDLEWARE_OWNER,
	MIDDLEWARE_PRIORITY,
	MIDDLEWARE_SEQ
};

/* Columns of cqrs.subscription. */
enum
{
	SUBSCRIPTION_ID = 1,
	SUBSCRIPTION_SUBSCRIPTION,
	SUBSCRIPTION_HANDLER,
	SUBSCRIPTION_SERVER,
	SUBSCRIPTION_FORMAT,
	SUBSCRIPTION_STRICT_KEY_ORDER,
	SUBSCRIPTION_TRANSACTION,
	SUBSCRIPTION_RUNS_COMMANDS,
	SUBSCRIPTION_PARTITIONS,
	SUBSCRIPTION_NEXT_PARTITIONS,
	SUBSCRIPTION_EPOCH_TICK,
	SUBSCRIPTION_EPOCH_SNAPSHOT,
	SUBSCRIPTION_EPOCH_SINCE,
	SUBSCRIPTION_MAX_ATTEMPTS,
	SUBSCRIPTION_RETRY_DELAY,
	SUBSCRIPTION_MAX_RETRY_DELAY,
	SUBSCRIPTION_HANDLER_TIMEOUT,
	SUBSCRIPTION_MAX_RETAINED_SIZE,
	SUBSCRIPTION_MAX_RETAINED_AGE,
	SUBSCRIPTION_STATE
};

/* Columns of cqrs.identity. */
enum
{
	IDENTITY_ID = 1,
	IDENTITY_DATABASE
};

/* Counts invalidations; the copy is good while it is loaded_count. */
static uint64 invalidation_count = 1;
static uint64 loaded_count = 0;

static void invalidate(Datum arg, Oid relid);
static void relation_changed(Datum arg, int cacheid, uint32 hashvalue);
static void load_if_stale(void);
static HTAB *new_table(const char *name, Size entrysize);
static HTAB *new_fallback_table(void);
static HTAB *new_id_table(const char *name);
static void remember_by_id(HTAB *table, int32 id, void *entry);
static void *find_by_id(HTAB *table, int32 id);
static void load_rows(CqrsRelation relation, Snapshot snapshot,
					  RowCallback add);
static void add_identity(Datum *values, bool *nulls);
static void add_topic(Datum *values, bool *nulls);
static void add_event_type(Datum *values, bool *nulls);
static void add_event_handler(Datum *values, bool *nulls);
static void add_fallback(Datum *values, bool *nulls);
static void init_handler(CqrsHandler *handler, Datum signature, Datum owner);
static void add_command(Datum *values, bool *nulls);
static void add_middleware(Datum *values, bool *nulls);
static void add_subscription(Datum *values, bool *nulls);
static void add_subscription_topic(Datum *values, bool *nulls);
static void find_command_owners(void);
static inline void *hand_out(void *entry);
static void *lookup(HTAB **table, const char *name);
static void *peek(HTAB **table, const char *name);

PG_FUNCTION_INFO_V1(cqrs_registry_changed);

/*
 * Once a process.
 */
void
cqrs_registry_init(void)
{
	CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	CacheRegisterSyscacheCallback(RELNAMENSP, relation_changed, (Datum) 0);
}

/*
 * cqrs.registry_changed(): statement trigger of the registry's tables.
 */
Datum
cqrs_registry_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"registry_changed\" was not called by trigger manager")));
	cqrs_catalog_invalidate_registry();
	cqrs_shmem_look();
	return PointerGetDatum(NULL);
}

/*
 * Can it be loaded? Not if library and extension are of different versions:
 * then the other functions raise 55000.
 */
bool
cqrs_registry_usable(void)
{
	return loaded_count == invalidation_count || cqrs_version_fits();
}

/*
 * Another number means that the registry may have changed, and that entries
 * got before are of the past.
 */
uint64
cqrs_registry_generation(void)
{
	load_if_stale();
	return loaded_count;
}

/*
 * Is this database a copy that CREATE DATABASE ... TEMPLATE made, and that
 * cqrs_adopt() was not called in? Then nothing may be delivered: the original
 * delivers it. A template delivers nothing, so its copies are originals.
 */
bool
cqrs_registry_is_copy(void)
{
	load_if_stale();
	return !has_identity && !is_from_template;
}

/*
 * Is this the copy of a template, and is yet to be told from it for good?
 */
bool
cqrs_registry_lacks_identity(void)
{
	load_if_stale();
	return !has_identity && is_from_template;
}

/*
 * Is there a topic that was restored, and not adopted?
 */
bool
cqrs_registry_has_restored(void)
{
	load_if_stale();
	return has_restored;
}

/*
 * For who gets entries, and keeps none of them, with nothing called in between
 * that may: note the state before, and give it back.
 */
CqrsRegistryMark
cqrs_registry_mark(void)
{
	CqrsRegistryMark mark;

	load_if_stale();
	mark.context = registry_context;
	mark.handed_out = handed_out;
	return mark;
}

void
cqrs_registry_give_back(CqrsRegistryMark mark)
{
	if (registry_context == mark.context)
		handed_out = mark.handed_out;
}

/*
 * The list of middleware, from the outermost to the innermost.
 */
CqrsMiddleware *
cqrs_registry_get_middleware(void)
{
	return hand_out(cqrs_registry_middleware);
}

/*
 * The topic's id, or 0 if there is none of this name.
 */
int32
cqrs_registry_topic_id(const char *name)
{
	CqrsTopic  *topic = peek(&topics, name);

	return topic != NULL ? topic->topic_id : 0;
}

bool
cqrs_registry_has_event_type(const char *name)
{
	return peek(&event_types, name) != NULL;
}

CqrsTopic *
cqrs_registry_topic(const char *name)
{
	return lookup(&topics, name);
}

CqrsEventType *
cqrs_registry_event_type(const char *name)
{
	return lookup(&event_types, name);
}

CqrsCommand *
cqrs_registry_command(const char *name)
{
	return lookup(&commands, name);
}

/*
 * The fallback of the handler with this signature.
 */
CqrsFallback *
cqrs_registry_fallback(const char *signature)
{
	load_if_stale();
	if (strlen(signature) >= CQRS_MAX_SIGNATURE)
		return NULL;
	return hand_out(hash_search(fallbacks, signature, HASH_FIND, NULL));
}

CqrsSubscription *
cqrs_registry_subscription(const char *name)
{
	return lookup(&subscriptions, name);
}

CqrsTopic *
cqrs_registry_topic_by_id(int32 topic_id)
{
	load_if_stale();
	return hand_out(find_by_id(topics_by_id, topic_id));
}

CqrsSubscription *
cqrs_registry_subscription_by_id(int32 subscription_id)
{
	load_if_stale();
	return hand_out(find_by_id(subscriptions_by_id, subscription_id));
}

/*
 * The subscription that runs the commands which this role enqueued.
 */
CqrsSubscription *
cqrs_registry_command_subscription(Oid owner)
{
	load_if_stale();
	return hand_out(find_by_id(command_subscriptions, (int32) owner));
}

/*
 * The topic, or 42704.
 */
CqrsTopic *
cqrs_topic_get(const char *name)
{
	CqrsTopic  *topic = cqrs_registry_topic(name);

	if (topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("topic \"%s\" does not exist", name),
				 errhint("Create it with cqrs_create_topic().")));
	return topic;
}

/*
 * The event type, or 42704.
 */
CqrsEventType *
cqrs_event_type_get(const char *name)
{
	CqrsEventType *event_type = cqrs_registry_event_type(name);

	if (event_type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event \"%s\" is not registered", name),
				 errhint("Register it with cqrs_register_event().")));
	return event_type;
}

/*
 * Did what this session did, or has noticed, change the registry since that
 * generation?
 */
bool
cqrs_registry_is_past(uint64 generation)
{
	return generation != loaded_count || loaded_count != invalidation_count;
}

/*
 * Would the next one to look at the registry load it again? To be asked outside
 * of a transaction.
 */
bool
cqrs_registry_is_stale(void)
{
	AcceptInvalidationMessages();
	return loaded_count != invalidation_count;
}

/*
 * The subscription, or 42704.
 */
CqrsSubscription *
cqrs_subscription_get(const char *name)
{
	CqrsSubscription *subscription = cqrs_registry_subscription(name);

	if (subscription == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" does not exist", name),
				 errhint("Create it with cqrs_subscribe().")));
	return subscription;
}

void
cqrs_registry_topics(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, topics);
}

void
cqrs_registry_event_types(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, event_types);
}

void
cqrs_registry_commands(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, commands);
}

void
cqrs_registry_subscriptions(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, subscriptions);
}

/*
 * Relcache callback. May come at any time, also in the middle of a load.
 */
static void
invalidate(Datum arg, Oid relid)
{
	if (cqrs_catalog_is_marker(relid))
	{
		invalidation_count++;
		cqrs_catalog_reset();
	}
}

/*
 * Syscache callback, the same.
 */
static void
relation_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (cqrs_owner_is_watched(hashvalue))
		invalidation_count++;
}

/*
 * Have a copy that was right when this was called.
 */
static void
load_if_stale(void)
{
	MemoryContext context;
	MemoryContext oldcontext;
	Snapshot	snapshot;
	uint64		count;

	if (loaded_count == invalidation_count)
		return;

	if (registry_context != NULL)
	{
		if (handed_out)
			MemoryContextSetParent(registry_context, TopTransactionContext);
		else
			MemoryContextDelete(registry_context);
		registry_context = NULL;
		topics = event_types = commands = fallbacks = subscriptions = NULL;
		topics_by_id = subscriptions_by_id = command_subscriptions = NULL;
	}
	cqrs_registry_middleware = NULL;
	handed_out = false;

	/* Until the load is over, the context goes with the transaction. */
	context = AllocSetContextCreate(TopTransactionContext, "cqrs registry",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	topics = new_table("cqrs topics", sizeof(CqrsTopic));
	topics_by_id = new_id_table("cqrs topics by id");
	event_types = new_table("cqrs event types", sizeof(CqrsEventType));
	commands = new_table("cqrs commands", sizeof(CqrsCommand));
	fallbacks = new_fallback_table();
	subscriptions = new_table("cqrs subscriptions", sizeof(CqrsSubscription));
	subscriptions_by_id = new_id_table("cqrs subscriptions by id");
	command_subscriptions = new_id_table("cqrs subscriptions for commands");

	/* Opening the marker takes in what has been committed by now. */
	relation_close(relation_open(cqrs_relation_oid(CQRS_REL_TOPIC),
								 AccessShareLock), NoLock);
	count = invalidation_count;
	if (!cqrs_version_fits())
		cqrs_version_report(ERROR, "cqrs_outbox cannot be used in this database");
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CQRS_DEBUG_POINT("registry_load");
	has_restored = false;
	has_identity = is_from_template = false;
	cqrs_owner_watch_nothing();
	load_rows(CQRS_REL_IDENTITY, snapshot, add_identity);
	load_rows(CQRS_REL_TOPIC, snapshot, add_topic);
	load_rows(CQRS_REL_FALLBACK, snapshot, add_fallback);
	load_rows(CQRS_REL_EVENT_TYPE, snapshot, add_event_type);
	load_rows(CQRS_REL_EVENT_HANDLER, snapshot, add_event_handler);
	load_rows(CQRS_REL_COMMAND, snapshot, add_command);
	load_rows(CQRS_REL_MIDDLEWARE, snapshot, add_middleware);
	load_rows(CQRS_REL_SUBSCRIPTION, snapshot, add_subscription);
	load_rows(CQRS_REL_SUBSCRIPTION_TOPIC, snapshot, add_subscription_topic);
	find_command_owners();
	UnregisterSnapshot(snapshot);

	MemoryContextSwitchTo(oldcontext);
	MemoryContextSetParent(context, CacheMemoryContext);
	registry_context = context;
	loaded_count = count;
}

static HTAB *
new_table(const char *name, Size entrysize)
{
	HASHCTL		ctl;

	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = entrysize;
	ctl.hcxt = CurrentMemoryContext;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

static HTAB *
new_fallback_table(void)
{
	HASHCTL		ctl;

	ctl.keysize = CQRS_MAX_SIGNATURE;
	ctl.entrysize = sizeof(CqrsFallback);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create("cqrs fallbacks", 16, &ctl,
					   HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

static HTAB *
new_id_table(const char *name)
{
	HASHCTL		ctl;

	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(IdEntry);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
remember_by_id(HTAB *table, int32 id, void *entry)
{
	((IdEntry *) hash_search(table, &id, HASH_ENTER, NULL))->entry = entry;
}

static void *
find_by_id(HTAB *table, int32 id)
{
	IdEntry    *found = hash_search(table, &id, HASH_FIND, NULL);

	return found ? found->entry : NULL;
}

/*
 * Call add for each row of one of our tables.
 */
static void
load_rows(CqrsRelation relation, Snapshot snapshot, RowCallback add)
{
	Relation	rel = table_open(cqrs_relation_oid(relation), AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);
	SysScanDesc scan;
	HeapTuple	tuple;

	scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		heap_deform_tuple(tuple, desc, values, nulls);
		add(values, nulls);
	}
	systable_endscan(scan);

	/* Not held: DROP EXTENSION and TRUNCATE need not wait for readers. */
	table_close(rel, AccessShareLock);
	pfree(values);
	pfree(nulls);
}

static void
add_identity(Datum *values, bool *nulls)
{
	Oid			database = DatumGetObjectId(values[IDENTITY_DATABASE - 1]);
	HeapTuple	tuple;

	has_identity |= database == MyDatabaseId;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return;
	is_from_template |=
		((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
}

static void
add_topic(Datum *values, bool *nulls)
{
	char	   *name = TextDatumGetCString(values[TOPIC_TOPIC - 1]);
	CqrsTopic  *topic = hash_search(topics, name, HASH_ENTER, NULL);
	ArrayType  *opened_at = DatumGetArrayTypeP(values[TOPIC_OPENED_AT - 1]);
	Datum	   *opened_values;
	bool	   *opened_nulls;
	int			nopened;
	Oid			schema = get_namespace_oid(CQRS_SCHEMA, true);
	char		relname[NAMEDATALEN];
	int			i;

	topic->topic_id = DatumGetInt32(values[TOPIC_ID - 1]);
	topic->retention = cqrs_milliseconds(values[TOPIC_RETENTION - 1]);
	topic->current_segment =
		DatumGetInt16(values[TOPIC_CURRENT_SEGMENT - 1]);
	deconstruct_array(opened_at, TIMESTAMPTZOID, sizeof(TimestampTz),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &opened_values, &opened_nulls, &nopened);
	for (i = 0; i < CQRS_SEGMENTS; i++)
		topic->opened_at[i] = i >= nopened || opened_nulls[i] ? 0 :
			DatumGetTimestampTz(opened_values[i]);
	topic->native = DatumGetBool(values[TOPIC_NATIVE - 1]);
	has_restored |= !topic->native;
	topic->runner = NULL;
	remember_by_id(topics_by_id, topic->topic_id, topic);
	topic->view = get_relname_relid(name,
									get_namespace_oid(CQRS_TOPIC_SCHEMA, true));
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		snprintf(relname, sizeof(relname), "topic_%d_%d", topic->topic_id, i);
		topic->segments[i] = get_relname_relid(relname, schema);
	}
}

static void
add_event_type(Datum *values, bool *nulls)
{
	CqrsEventType *event_type;

	event_type = hash_search(event_types, TextDatumGetCString(values[0]),
							 HASH_ENTER, NULL);
	event_type->topic = nulls[1] ? NULL :
		find_by_id(topics_by_id, DatumGetInt32(values[1]));
	event_type->payload_type = DatumGetObjectId(values[2]);
	event_type->handlers = NULL;
}

/*
 * Rows come in any order; the list is in that of registration.
 */
static void
add_event_handler(Datum *values, bool *nulls)
{
	CqrsEventType *event_type;
	CqrsEventHandler *handler;
	CqrsEventHandler **link;

	event_type = hash_search(event_types,
							 TextDatumGetCString(values[EVENT_HANDLER_EVENT_NAME - 1]),
							 HASH_FIND, NULL);
	if (event_type == NULL)
		return;
	handler = palloc0(sizeof(CqrsEventHandler));
	init_handler(&handler->handler, values[EVENT_HANDLER_HANDLER - 1],
				 values[EVENT_HANDLER_OWNER - 1]);
	handler->seq = DatumGetInt64(values[EVENT_HANDLER_SEQ - 1]);
	link = &event_type->handlers;
	while (*link != NULL && (*link)->seq < handler->seq)
		link = &(*link)->next;
	handler->next = *link;
	*link = handler;
}

static void
add_fallback(Datum *values, bool *nulls)
{
	cqrs_fallback_load(hash_search(fallbacks, cqrs_fallback_primary(values),
								   HASH_ENTER, NULL),
					   values, nulls);
}

/*
 * Set up the handler of what is dispatched, or of an event in its transaction:
 * one that has a fallback gets it.
 */
static void
init_handler(CqrsHandler *handler, Datum signature, Datum owner)
{
	char	   *string = TextDatumGetCString(signature);

	cqrs_handler_init(handler, string, TextDatumGetCString(owner),
					  CurrentMemoryContext);
	handler->fallback = hash_search(fallbacks, string, HASH_FIND, NULL);
}

static void
add_command(Datum *values, bool *nulls)
{
	char	   *kind = TextDatumGetCString(values[COMMAND_KIND - 1]);
	CqrsCommand *command;
	Datum	   *signatures;
	Datum	   *owners;
	int			nowners;
	int			i;

	command = hash_search(commands,
						  TextDatumGetCString(values[COMMAND_COMMAND_NAME - 1]),
						  HASH_ENTER, NULL);
	command->kind =
		strcmp(kind, "query") == 0 ? CQRS_QUERY :
		strcmp(kind, "stream") == 0 ? CQRS_STREAM :
		CQRS_COMMAND;
	deconstruct_array(DatumGetArrayTypeP(values[COMMAND_HANDLERS - 1]),
					  TEXTOID, -1, false, TYPALIGN_INT,
					  &signatures, NULL, &command->nhandlers);
	deconstruct_array(DatumGetArrayTypeP(values[COMMAND_OWNERS - 1]),
					  TEXTOID, -1, false, TYPALIGN_INT,
					  &owners, NULL, &nowners);
	if (nowners != command->nhandlers)
		elog(ERROR, "command \"%s\" has %d handlers, but %d owners of them",
			 command->name, command->nhandlers, nowners);
	command->handlers = palloc(sizeof(CqrsHandler) * command->nhandlers);
	for (i = 0; i < command->nhandlers; i++)
	{
		init_handler(&command->handlers[i], signatures[i], owners[i]);
		command->handlers[i].returns_set = command->kind == CQRS_STREAM;
	}
}

/*
 * Rows come in any order; the list is from the outermost to the innermost.
 */
static void
add_middleware(Datum *values, bool *nulls)
{
	CqrsMiddleware *middleware = palloc(sizeof(CqrsMiddleware));
	CqrsMiddleware **link = &cqrs_registry_middleware;

	cqrs_handler_init(&middleware->handler,
					  TextDatumGetCString(values[MIDDLEWARE_HANDLER - 1]),
					  TextDatumGetCString(values[MIDDLEWARE_OWNER - 1]),
					  CurrentMemoryContext);
	middleware->priority = DatumGetInt32(values[MIDDLEWARE_PRIORITY - 1]);
	middleware->seq = DatumGetInt64(values[MIDDLEWARE_SEQ - 1]);
	while (*link != NULL &&
		   ((*link)->priority < middleware->priority ||
			((*link)->priority == middleware->priority &&
			 (*link)->seq < middleware->seq)))
		link = &(*link)->next;
	middleware->next = *link;
	*link = middleware;
}

static void
add_subscription(Datum *values, bool *nulls)
{
	CqrsSubscription *subscription;
	char	   *state = TextDatumGetCString(values[SUBSCRIPTION_STATE - 1]);

	subscription = hash_search(subscriptions,
							   TextDatumGetCString(values[SUBSCRIPTION_SUBSCRIPTION - 1]),
							   HASH_ENTER, NULL);
	subscription->subscription_id = DatumGetInt32(values[SUBSCRIPTION_ID - 1]);
	subscription->has_handler = !nulls[SUBSCRIPTION_HANDLER - 1];
	if (subscription->has_handler)
		cqrs_handler_init(&subscription->handler,
						  TextDatumGetCString(values[SUBSCRIPTION_HANDLER - 1]),
						  NULL, CurrentMemoryContext);
	subscription->server = nulls[SUBSCRIPTION_SERVER - 1] ? NULL :
		TextDatumGetCString(values[SUBSCRIPTION_SERVER - 1]);
	subscription->format = nulls[SUBSCRIPTION_FORMAT - 1] ? NULL :
		TextDatumGetCString(values[SUBSCRIPTION_FORMAT - 1]);
	subscription->strict_key_order =
		DatumGetBool(values[SUBSCRIPTION_STRICT_KEY_ORDER - 1]);
	subscription->event_transactions =
		strcmp(TextDatumGetCString(values[SUBSCRIPTION_TRANSACTION - 1]),
			   "event") == 0;
	subscription->runs_commands =
		DatumGetBool(values[SUBSCRIPTION_RUNS_COMMANDS - 1]);
	subscription->owner = cqrs_owner_find(subscription->name,
										  &subscription->view);
	subscription->partitions =
		DatumGetInt32(values[SUBSCRIPTION_PARTITIONS - 1]);
	subscription->next_partitions = 0;
	if (!nulls[SUBSCRIPTION_NEXT_PARTITIONS - 1])
	{
		subscription->next_partitions =
			DatumGetInt32(values[SUBSCRIPTION_NEXT_PARTITIONS - 1]);
		subscription->epoch_tick =
			DatumGetInt64(values[SUBSCRIPTION_EPOCH_TICK - 1]);
		subscription->epoch_snapshot =
			cqrs_snapshot_from_datum(values[SUBSCRIPTION_EPOCH_SNAPSHOT - 1]);
	}
	subscription->max_attempts =
		DatumGetInt32(values[SUBSCRIPTION_MAX_ATTEMPTS - 1]);
	subscription->retry_delay =
		cqrs_milliseconds(values[SUBSCRIPTION_RETRY_DELAY - 1]);
	subscription->max_retry_delay =
		cqrs_milliseconds(values[SUBSCRIPTION_MAX_RETRY_DELAY - 1]);
	subscription->handler_timeout =
		cqrs_milliseconds(values[SUBSCRIPTION_HANDLER_TIMEOUT - 1]);
	subscription->max_retained_size =
		DatumGetInt64(values[SUBSCRIPTION_MAX_RETAINED_SIZE - 1]);
	subscription->max_retained_age =
		cqrs_milliseconds(values[SUBSCRIPTION_MAX_RETAINED_AGE - 1]);
	subscription->state =
		strcmp(state, "paused") == 0 ? CQRS_SUBSCRIPTION_PAUSED :
		strcmp(state, "suspended") == 0 ? CQRS_SUBSCRIPTION_SUSPENDED :
		CQRS_SUBSCRIPTION_ACTIVE;
	subscription->ntopics = 0;
	subscription->topics = NULL;
	remember_by_id(subscriptions_by_id, subscription->subscription_id,
				   subscription);
}

static void
add_subscription_topic(Datum *values, bool *nulls)
{
	CqrsSubscription *subscription;
	CqrsTopic  *topic;

	subscription = find_by_id(subscriptions_by_id, DatumGetInt32(values[0]));
	topic = find_by_id(topics_by_id, DatumGetInt32(values[1]));
	if (subscription == NULL || topic == NULL)
		return;
	if (subscription->topics == NULL)
		subscription->topics = palloc(sizeof(CqrsTopic *));
	else
		subscription->topics = repalloc(subscription->topics,
										sizeof(CqrsTopic *) *
										(subscription->ntopics + 1));
	subscription->topics[subscription->ntopics++] = topic;
	if (subscription->runs_commands)
		topic->runner = subscription;
}

/*
 * A subscription for commands is only its owner's if the commands are. Of
 * several that somebody has given a role, it enqueues with the oldest.
 */
static void
find_command_owners(void)
{
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;

	hash_seq_init(&status, subscriptions);
	while ((subscription = hash_seq_search(&status)) != NULL)
	{
		CqrsSubscription *other;
		int			i;

		if (!subscription->runs_commands)
			continue;
		for (i = 0; i < subscription->ntopics; i++)
			if (!cqrs_owner_has_commands(subscription->topics[i]->name,
										 subscription->owner))
				subscription->owner = InvalidOid;
		other = find_by_id(command_subscriptions, (int32) subscription->owner);

		if (OidIsValid(subscription->owner) &&
			(other == NULL ||
			 other->subscription_id > subscription->subscription_id))
			remember_by_id(command_subscriptions, (int32) subscription->owner,
						   subscription);
	}
}

/*
 * An interval in milliseconds; a month has 30 days. At most so much that it
 * can be added to the time.
 */
int64
cqrs_milliseconds(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);

	return Min(((int64) value->month * DAYS_PER_MONTH + value->day) *
			   (USECS_PER_DAY / 1000) + value->time / 1000,
			   PG_INT64_MAX / 4000);
}

/*
 * Somebody gets this entry, unless it is NULL.
 */
static inline void *
hand_out(void *entry)
{
	handed_out |= entry != NULL;
	return entry;
}

static void *
lookup(HTAB **table, const char *name)
{
	return hand_out(peek(table, name));
}

/*
 * For who does not keep it. A longer name cannot be registered, and the hash
 * would cut it.
 */
static void *
peek(HTAB **table, const char *name)
{
	load_if_stale();
	if (strlen(name) > CQRS_MAX_NAME)
		return NULL;
	return hash_search(*table, name, HASH_FIND, NULL);
}
