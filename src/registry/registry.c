/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  The backend's copy of what is registered: topics, event types and their
 *	  handlers, commands, middleware, fallbacks and subscriptions.
 *
 * Protocol
 *
 * 1. The registry is in ordinary tables. DML on them sends no invalidation by
 *	  itself; their statement trigger (cqrs_registry_changed) sends a relcache
 *	  invalidation of one of them, the marker. Others get it with the commit,
 *	  the sender at its own next command, and again if it aborts.
 * 2. The whole copy is loaded when it is first used after an invalidation. The
 *	  callback only counts; if the count changes during a load, the copy
 *	  remains marked stale.
 * 3. The load reads with the latest snapshot, after opening the tables. With
 *	  the transaction's snapshot, a REPEATABLE READ transaction would leave
 *	  the past behind for the session's later transactions.
 * 4. The owner of a subscription is in the catalogs, whose changes are
 *	  counted, too; see owner.c.
 *
 * Memory
 *
 * The copy lives in one context. If an entry of a stale one was handed out, it
 * is moved below the transaction's context instead of being freed, as callers
 * up the stack may hold the entry. So an entry may be used until the end of
 * the transaction, not longer; and a transaction that registers a thousand
 * commands, and so loads the registry a thousand times, does not keep as many
 * copies. To ask whether there is an entry, or for its id, hands out nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "pgstat.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/debug_point.h"
#include "extension/catalog.h"
#include "extension/version.h"
#include "registry/load.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "shared/announce.h"

static MemoryContext registry_context = NULL;
static CqrsRegistryCopy copy;
CqrsMiddleware *cqrs_registry_middleware = NULL;

/* Was an entry of the copy handed out? */
static bool handed_out = false;

/* Counts invalidations; the copy is good while this equals loaded_count. */
static uint64 invalidation_count = 1;
static uint64 loaded_count = 0;

static void invalidate(Datum arg, Oid relid);
static void relation_changed(Datum arg, int cacheid, uint32 hashvalue);
static int	compare_topics(const ListCell *a, const ListCell *b);
static int	compare_subscriptions(const ListCell *a, const ListCell *b);
static void load_if_stale(void);
static inline void *hand_out(void *entry);
static void *lookup(HTAB **table, const char *name);
static void *peek(HTAB **table, const char *name);

PG_FUNCTION_INFO_V1(cqrs_registry_changed);

/*
 * Called once in each process.
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
 * Can the registry be loaded? Not if library and extension are of different
 * versions: then the other functions raise 55000.
 */
bool
cqrs_registry_usable(void)
{
	return loaded_count == invalidation_count || cqrs_version_fits();
}

/*
 * Another number means that the registry may have changed, and that entries
 * from before are outdated.
 */
uint64
cqrs_registry_generation(void)
{
	load_if_stale();
	return loaded_count;
}

/*
 * Is this database a copy that CREATE DATABASE ... TEMPLATE made, in which
 * cqrs_adopt() was not called? Then nothing may be delivered: the original
 * does that. A template delivers nothing, so its copies count as originals.
 */
bool
cqrs_registry_is_copy(void)
{
	load_if_stale();
	return !copy.has_identity && !copy.is_from_template;
}

/*
 * Is this a copy of a template, without an identity of its own yet?
 */
bool
cqrs_registry_lacks_identity(void)
{
	load_if_stale();
	return !copy.has_identity && copy.is_from_template;
}

/*
 * Is there a restored topic that was not adopted?
 */
bool
cqrs_registry_has_restored(void)
{
	load_if_stale();
	return copy.has_restored;
}

/*
 * For callers that get entries and keep none, with nothing called in between
 * that might: note the state before, and give the entries back.
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
	CqrsTopic  *topic = peek(&copy.topics, name);

	return topic != NULL ? topic->topic_id : 0;
}

bool
cqrs_registry_has_event_type(const char *name)
{
	return peek(&copy.event_types, name) != NULL;
}

CqrsTopic *
cqrs_registry_topic(const char *name)
{
	return lookup(&copy.topics, name);
}

CqrsEventType *
cqrs_registry_event_type(const char *name)
{
	return lookup(&copy.event_types, name);
}

CqrsCommand *
cqrs_registry_command(const char *name)
{
	return lookup(&copy.commands, name);
}

CqrsFallback *
cqrs_registry_fallback(const char *signature)
{
	load_if_stale();
	if (strlen(signature) >= CQRS_MAX_SIGNATURE)
		return NULL;
	return hand_out(hash_search(copy.fallbacks, signature, HASH_FIND, NULL));
}

CqrsSubscription *
cqrs_registry_subscription(const char *name)
{
	return lookup(&copy.subscriptions, name);
}

CqrsTopic *
cqrs_registry_topic_by_id(int32 topic_id)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.topics_by_id, topic_id));
}

CqrsSubscription *
cqrs_registry_subscription_by_id(int32 subscription_id)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.subscriptions_by_id,
											 subscription_id));
}

CqrsConsumer *
cqrs_registry_consumer(const char *name)
{
	return lookup(&copy.consumers, name);
}

CqrsConsumer *
cqrs_registry_consumer_by_id(int32 consumer_id)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.consumers_by_id,
											 consumer_id));
}

/*
 * The subscription that runs the commands that this role enqueued.
 */
CqrsSubscription *
cqrs_registry_command_subscription(Oid owner)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.command_subscriptions,
											 (int32) owner));
}

/*
 * The subscription that runs this role's sagas.
 */
CqrsSubscription *
cqrs_registry_saga_subscription(Oid owner)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.saga_subscriptions,
											 (int32) owner));
}

/*
 * The subscription to what this role's sagas wait for.
 */
CqrsSubscription *
cqrs_registry_saga_router(Oid owner)
{
	load_if_stale();
	return hand_out(cqrs_registry_find_by_id(copy.saga_routers,
											 (int32) owner));
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
 * Did the registry change since that generation, by this session, or as far as
 * it has noticed?
 */
bool
cqrs_registry_is_past(uint64 generation)
{
	return generation != loaded_count || loaded_count != invalidation_count;
}

/*
 * Would the next look at the registry load it again? To be asked outside of a
 * transaction.
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
				 cqrs_registry_consumer(name) == NULL ?
				 errhint("Create it with cqrs_subscribe().") :
				 errhint("It is a consumer: use the functions of that, such as cqrs_pause_consumer().")));
	return subscription;
}

CqrsConsumer *
cqrs_consumer_get(const char *name)
{
	CqrsConsumer *consumer = cqrs_registry_consumer(name);

	if (consumer == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("consumer \"%s\" does not exist", name),
				 cqrs_registry_subscription(name) == NULL ?
				 errhint("Create it with cqrs_create_consumer().") :
				 errhint("It is a subscription: use the functions of that, such as cqrs_pause().")));
	return consumer;
}

void
cqrs_registry_topics(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, copy.topics);
}

void
cqrs_registry_event_types(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, copy.event_types);
}

void
cqrs_registry_commands(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, copy.commands);
}

void
cqrs_registry_subscriptions(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, copy.subscriptions);
}

void
cqrs_registry_consumers(HASH_SEQ_STATUS *status)
{
	load_if_stale();
	handed_out = true;
	hash_seq_init(status, copy.consumers);
}

/*
 * All topics, by id. The entries stay until the end of the transaction: code
 * that may raise an error, or make the registry be loaded again, must use such
 * a list instead of a walk.
 */
List *
cqrs_registry_topic_list(void)
{
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	List	   *topics = NIL;

	cqrs_registry_topics(&status);
	while ((topic = hash_seq_search(&status)) != NULL)
		topics = lappend(topics, topic);
	list_sort(topics, compare_topics);
	return topics;
}

/*
 * The subscriptions to a topic (NULL: all there are), in the same way.
 */
List *
cqrs_registry_subscription_list(const CqrsTopic *topic)
{
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	List	   *subscriptions = NIL;

	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		if (topic == NULL || cqrs_subscription_reads(subscription, topic))
			subscriptions = lappend(subscriptions, subscription);
	list_sort(subscriptions, compare_subscriptions);
	return subscriptions;
}

bool
cqrs_subscription_reads(const CqrsSubscription *subscription,
						const CqrsTopic *topic)
{
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		if (subscription->topics[i]->topic_id == topic->topic_id)
			return true;
	return false;
}

static int
compare_topics(const ListCell *a, const ListCell *b)
{
	return ((const CqrsTopic *) lfirst(a))->topic_id -
		((const CqrsTopic *) lfirst(b))->topic_id;
}

static int
compare_subscriptions(const ListCell *a, const ListCell *b)
{
	return ((const CqrsSubscription *) lfirst(a))->subscription_id -
		((const CqrsSubscription *) lfirst(b))->subscription_id;
}

/*
 * Run a part of a background process's work in a transaction of its own, in which
 * the extension cannot be dropped; if it is gone, or of another version, nothing
 * is done. An error is logged, with context (NULL: none), and only ends this
 * part. Returns whether there was none.
 */
bool
cqrs_registry_run_guarded(void (*part) (void *arg), void *arg,
						  void (*context) (void *arg))
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ErrorContextCallback callback = {error_context_stack, context, arg};
	volatile bool done = false;

	PG_TRY();
	{
		if (context != NULL)
			error_context_stack = &callback;
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable())
			part(arg);
		PopActiveSnapshot();
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	MemoryContextSwitchTo(oldcontext);
	pgstat_report_stat(false);
	return done;
}

/*
 * Relcache callback. May be called at any time, also in the middle of a load.
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
 * Syscache callback; likewise.
 */
static void
relation_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (cqrs_owner_is_watched(hashvalue))
		invalidation_count++;
}

/*
 * Make sure that the copy is as new as this call.
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
	}
	cqrs_registry_middleware = NULL;
	handed_out = false;

	/* Until the load is complete, the context goes with the transaction. */
	context = AllocSetContextCreate(TopTransactionContext, "cqrs registry",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);

	/* Opening the marker accepts the invalidations committed by now. */
	relation_close(relation_open(cqrs_relation_oid(CQRS_REL_TOPIC),
								 AccessShareLock), NoLock);
	count = invalidation_count;
	if (!cqrs_version_fits())
		cqrs_version_report(ERROR, "cqrs_outbox cannot be used in this database");
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CQRS_DEBUG_POINT("registry_load");
	cqrs_registry_load(&copy, snapshot);
	cqrs_registry_middleware = copy.middleware;
	UnregisterSnapshot(snapshot);

	MemoryContextSwitchTo(oldcontext);
	MemoryContextSetParent(context, CacheMemoryContext);
	registry_context = context;
	loaded_count = count;
}

/*
 * Note that an entry, unless NULL, is handed out.
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
 * For callers that do not keep the entry. A longer name cannot be registered,
 * and the hash would truncate it.
 */
static void *
peek(HTAB **table, const char *name)
{
	load_if_stale();
	if (strlen(name) > CQRS_MAX_NAME)
		return NULL;
	return hash_search(*table, name, HASH_FIND, NULL);
}
