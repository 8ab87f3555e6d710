/*-------------------------------------------------------------------------
 *
 * load.c
 *	  What is registered, read from its tables.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/hash.h"
#include "base/interval.h"
#include "base/rate.h"
#include "base/snapshot.h"
#include "extension/catalog.h"
#include "registry/load.h"
#include "registry/owner.h"

typedef void (*RowCallback) (CqrsRegistryCopy *copy, Datum *values,
							 bool *nulls);

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

/* Columns of cqrs.fallback. */
enum
{
	FALLBACK_ID = 1,
	FALLBACK_HANDLER,
	FALLBACK_FALLBACK,
	FALLBACK_OWNER,
	FALLBACK_SQLSTATES,
	FALLBACK_EXCLUDED_SQLSTATES,
	FALLBACK_MAX_FAILURES,
	FALLBACK_RESET_AFTER
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
	SUBSCRIPTION_SEARCH_PATH,
	SUBSCRIPTION_RATE,
	SUBSCRIPTION_KEY_RATE,
	SUBSCRIPTION_DELIVERY,
	SUBSCRIPTION_ON_DIVERGENCE,
	SUBSCRIPTION_RUNS,
	SUBSCRIPTION_PARTITIONS,
	SUBSCRIPTION_ORDERING,
	SUBSCRIPTION_NEXT_PARTITIONS,
	SUBSCRIPTION_NEXT_ORDERING,
	SUBSCRIPTION_EPOCH_TICK,
	SUBSCRIPTION_EPOCH_SNAPSHOT,
	SUBSCRIPTION_EPOCH_SINCE,
	SUBSCRIPTION_MAX_ATTEMPTS,
	SUBSCRIPTION_RETRY_DELAY,
	SUBSCRIPTION_MAX_RETRY_DELAY,
	SUBSCRIPTION_DELIVERY_TIMEOUT,
	SUBSCRIPTION_MAX_RETAINED_SIZE,
	SUBSCRIPTION_MAX_RETAINED_AGE,
	SUBSCRIPTION_STATE,
	SUBSCRIPTION_STATE_SINCE,
	SUBSCRIPTION_STATE_REASON,
	SUBSCRIPTION_MISSED_EVENTS,
	SUBSCRIPTION_RETRIED_AT
};

/* Columns of cqrs.consumer. */
enum
{
	CONSUMER_ID = 1,
	CONSUMER_CONSUMER,
	CONSUMER_INCARNATION,
	CONSUMER_SERVER,
	CONSUMER_SOURCE,
	CONSUMER_TOPIC_ID,
	CONSUMER_EVENT_NAME,
	CONSUMER_FORMAT,
	CONSUMER_MESSAGE_ID,
	CONSUMER_START,
	CONSUMER_ON_GAP,
	CONSUMER_WORKERS,
	CONSUMER_STATE,
	CONSUMER_STATE_SINCE,
	CONSUMER_RETRIED_AT
};

/* Columns of cqrs.identity. */
enum
{
	IDENTITY_ID = 1,
	IDENTITY_DATABASE
};

static HTAB *new_table(const char *name, Size keysize, Size entrysize);
static HTAB *new_id_table(const char *name);
static void remember_by_id(HTAB *table, int32 id, void *entry);
static void load_rows(CqrsRegistryCopy *copy, CqrsRelation relation,
					  Snapshot snapshot, RowCallback add);
static void add_identity(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_topic(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_event_type(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_event_handler(CqrsRegistryCopy *copy, Datum *values,
							  bool *nulls);
static void add_fallback(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_command(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_middleware(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static void add_subscription(CqrsRegistryCopy *copy, Datum *values,
							 bool *nulls);
static bool is_by_topic(Datum ordering);
static void add_subscription_topic(CqrsRegistryCopy *copy, Datum *values,
								   bool *nulls);
static void add_consumer(CqrsRegistryCopy *copy, Datum *values, bool *nulls);
static char *text_or_null(Datum value, bool isnull);
static void init_handler(CqrsRegistryCopy *copy, CqrsHandler *handler,
						 Datum signature, Datum owner);
static char *search_path(const char *stored);
static void find_command_owners(CqrsRegistryCopy *copy);

/*
 * Fill in a copy of what the snapshot shows to be registered, in the current
 * memory context.
 */
void
cqrs_registry_load(CqrsRegistryCopy *copy, Snapshot snapshot)
{
	memset(copy, 0, sizeof(*copy));
	copy->topics = new_table("cqrs topics", NAMEDATALEN, sizeof(CqrsTopic));
	copy->topics_by_id = new_id_table("cqrs topics by id");
	copy->event_types = new_table("cqrs event types", NAMEDATALEN,
								  sizeof(CqrsEventType));
	copy->commands = new_table("cqrs commands", NAMEDATALEN,
							   sizeof(CqrsCommand));
	copy->fallbacks = new_table("cqrs fallbacks", CQRS_MAX_SIGNATURE,
								sizeof(CqrsFallback));
	copy->subscriptions = new_table("cqrs subscriptions", NAMEDATALEN,
									sizeof(CqrsSubscription));
	copy->subscriptions_by_id = new_id_table("cqrs subscriptions by id");
	copy->consumers = new_table("cqrs consumers", NAMEDATALEN,
								sizeof(CqrsConsumer));
	copy->consumers_by_id = new_id_table("cqrs consumers by id");
	copy->command_subscriptions =
		new_id_table("cqrs subscriptions for commands");
	copy->saga_subscriptions = new_id_table("cqrs subscriptions for sagas");
	copy->saga_routers = new_id_table("cqrs subscriptions for events of sagas");

	cqrs_owner_watch_nothing();
	load_rows(copy, CQRS_REL_IDENTITY, snapshot, add_identity);
	load_rows(copy, CQRS_REL_TOPIC, snapshot, add_topic);
	load_rows(copy, CQRS_REL_FALLBACK, snapshot, add_fallback);
	load_rows(copy, CQRS_REL_EVENT_TYPE, snapshot, add_event_type);
	load_rows(copy, CQRS_REL_EVENT_HANDLER, snapshot, add_event_handler);
	load_rows(copy, CQRS_REL_COMMAND, snapshot, add_command);
	load_rows(copy, CQRS_REL_MIDDLEWARE, snapshot, add_middleware);
	load_rows(copy, CQRS_REL_SUBSCRIPTION, snapshot, add_subscription);
	load_rows(copy, CQRS_REL_SUBSCRIPTION_TOPIC, snapshot,
			  add_subscription_topic);
	load_rows(copy, CQRS_REL_CONSUMER, snapshot, add_consumer);
	find_command_owners(copy);
}

/*
 * The entry of that id, or NULL.
 */
void *
cqrs_registry_find_by_id(HTAB *table, int32 id)
{
	IdEntry    *found = hash_search(table, &id, HASH_FIND, NULL);

	return found ? found->entry : NULL;
}

static HTAB *
new_table(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = CurrentMemoryContext;
	return hash_create(name, 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

static HTAB *
new_id_table(const char *name)
{
	return cqrs_hash_create(name, sizeof(int32), sizeof(IdEntry),
							CurrentMemoryContext);
}

static void
remember_by_id(HTAB *table, int32 id, void *entry)
{
	((IdEntry *) hash_search(table, &id, HASH_ENTER, NULL))->entry = entry;
}

static void
load_rows(CqrsRegistryCopy *copy, CqrsRelation relation, Snapshot snapshot,
		  RowCallback add)
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
		add(copy, values, nulls);
	}
	systable_endscan(scan);

	/*
	 * Release the lock: DROP EXTENSION and TRUNCATE need not wait for
	 * readers.
	 */
	table_close(rel, AccessShareLock);
	pfree(values);
	pfree(nulls);
}

static void
add_identity(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	Oid			database = DatumGetObjectId(values[IDENTITY_DATABASE - 1]);
	HeapTuple	tuple;

	copy->has_identity |= database == MyDatabaseId;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return;
	copy->is_from_template |=
		((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
}

static void
add_topic(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	char	   *name = TextDatumGetCString(values[TOPIC_TOPIC - 1]);
	CqrsTopic  *topic = hash_search(copy->topics, name, HASH_ENTER, NULL);
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
	copy->has_restored |= !topic->native;
	topic->runner = NULL;
	remember_by_id(copy->topics_by_id, topic->topic_id, topic);
	topic->view = get_relname_relid(name,
									get_namespace_oid(CQRS_TOPIC_SCHEMA, true));
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		snprintf(relname, sizeof(relname), "topic_%d_%d", topic->topic_id, i);
		topic->segments[i] = get_relname_relid(relname, schema);
	}
}

static void
add_event_type(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsEventType *event_type;

	event_type = hash_search(copy->event_types, TextDatumGetCString(values[0]),
							 HASH_ENTER, NULL);
	event_type->topic = nulls[1] ? NULL :
		cqrs_registry_find_by_id(copy->topics_by_id, DatumGetInt32(values[1]));
	event_type->payload_type = DatumGetObjectId(values[2]);
	event_type->handlers = NULL;
}

/*
 * Rows come in any order; the list is in the order of registration.
 */
static void
add_event_handler(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsEventType *event_type;
	CqrsEventHandler *handler;
	CqrsEventHandler **link;

	event_type = hash_search(copy->event_types,
							 TextDatumGetCString(values[EVENT_HANDLER_EVENT_NAME - 1]),
							 HASH_FIND, NULL);
	if (event_type == NULL)
		return;
	handler = palloc0(sizeof(CqrsEventHandler));
	init_handler(copy, &handler->handler, values[EVENT_HANDLER_HANDLER - 1],
				 values[EVENT_HANDLER_OWNER - 1]);
	handler->seq = DatumGetInt64(values[EVENT_HANDLER_SEQ - 1]);
	link = &event_type->handlers;
	while (*link != NULL && (*link)->seq < handler->seq)
		link = &(*link)->next;
	handler->next = *link;
	*link = handler;
}

static void
add_fallback(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsFallback *fallback;

	fallback = hash_search(copy->fallbacks,
						   TextDatumGetCString(values[FALLBACK_HANDLER - 1]),
						   HASH_ENTER, NULL);
	cqrs_handler_init(&fallback->handler,
					  TextDatumGetCString(values[FALLBACK_FALLBACK - 1]),
					  TextDatumGetCString(values[FALLBACK_OWNER - 1]),
					  CurrentMemoryContext);
	fallback->nsqlstates = -1;
	fallback->sqlstates = NULL;
	if (!nulls[FALLBACK_SQLSTATES - 1])
		fallback->sqlstates =
			cqrs_sqlstates_parse(values[FALLBACK_SQLSTATES - 1], "sqlstates",
								 &fallback->nsqlstates);
	fallback->nexcluded = 0;
	fallback->excluded = NULL;
	if (!nulls[FALLBACK_EXCLUDED_SQLSTATES - 1])
		fallback->excluded =
			cqrs_sqlstates_parse(values[FALLBACK_EXCLUDED_SQLSTATES - 1],
								 "excluded_sqlstates", &fallback->nexcluded);
	fallback->breaker.fallback_id = DatumGetInt32(values[FALLBACK_ID - 1]);
	fallback->breaker.max_failures =
		DatumGetInt32(values[FALLBACK_MAX_FAILURES - 1]);
	fallback->breaker.reset_after =
		cqrs_milliseconds(values[FALLBACK_RESET_AFTER - 1]);
}

/*
 * Set up the handler of a command or of an event in its transaction, with its
 * fallback if it has one.
 */
static void
init_handler(CqrsRegistryCopy *copy, CqrsHandler *handler, Datum signature, Datum owner)
{
	char	   *string = TextDatumGetCString(signature);

	cqrs_handler_init(handler, string, TextDatumGetCString(owner),
					  CurrentMemoryContext);
	handler->fallback = hash_search(copy->fallbacks, string, HASH_FIND, NULL);
}

static void
add_command(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	char	   *kind = TextDatumGetCString(values[COMMAND_KIND - 1]);
	CqrsCommand *command;
	Datum	   *signatures;
	Datum	   *owners;
	int			nowners;
	int			i;

	command = hash_search(copy->commands,
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
		init_handler(copy, &command->handlers[i], signatures[i], owners[i]);
		command->handlers[i].returns_set = command->kind == CQRS_STREAM;
	}
}

/*
 * Rows come in any order; the list is from the outermost to the innermost.
 */
static void
add_middleware(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsMiddleware *middleware = palloc(sizeof(CqrsMiddleware));
	CqrsMiddleware **link = &copy->middleware;

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
add_subscription(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsSubscription *subscription;
	char	   *state = TextDatumGetCString(values[SUBSCRIPTION_STATE - 1]);
	char	   *runs;

	subscription = hash_search(copy->subscriptions,
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
	subscription->search_path =
		search_path(nulls[SUBSCRIPTION_SEARCH_PATH - 1] ? "" :
					TextDatumGetCString(values[SUBSCRIPTION_SEARCH_PATH - 1]));
	if (!cqrs_rate_parse(TextDatumGetCString(values[SUBSCRIPTION_RATE - 1]),
						 &subscription->rate_interval))
		subscription->rate_interval = 0;
	if (!cqrs_rate_parse(TextDatumGetCString(values[SUBSCRIPTION_KEY_RATE - 1]),
						 &subscription->key_interval))
		subscription->key_interval = 0;
	subscription->exactly_once =
		strcmp(TextDatumGetCString(values[SUBSCRIPTION_DELIVERY - 1]),
			   "exactly_once") == 0;
	subscription->resends =
		strcmp(TextDatumGetCString(values[SUBSCRIPTION_ON_DIVERGENCE - 1]),
			   "resend") == 0;
	runs = nulls[SUBSCRIPTION_RUNS - 1] ? "" :
		TextDatumGetCString(values[SUBSCRIPTION_RUNS - 1]);
	subscription->runs_commands = strcmp(runs, "commands") == 0;
	subscription->runs_sagas = strcmp(runs, "sagas") == 0;
	subscription->routes_to_sagas = strcmp(runs, "saga_events") == 0;
	subscription->owner = cqrs_owner_find(subscription->name,
										  &subscription->view);
	subscription->partitions =
		DatumGetInt32(values[SUBSCRIPTION_PARTITIONS - 1]);
	subscription->by_topic = is_by_topic(values[SUBSCRIPTION_ORDERING - 1]);
	subscription->next_partitions = 0;
	if (!nulls[SUBSCRIPTION_NEXT_PARTITIONS - 1])
	{
		subscription->next_partitions =
			DatumGetInt32(values[SUBSCRIPTION_NEXT_PARTITIONS - 1]);
		subscription->next_by_topic =
			is_by_topic(values[SUBSCRIPTION_NEXT_ORDERING - 1]);
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
	subscription->delivery_timeout =
		cqrs_milliseconds(values[SUBSCRIPTION_DELIVERY_TIMEOUT - 1]);
	subscription->max_retained_size =
		DatumGetInt64(values[SUBSCRIPTION_MAX_RETAINED_SIZE - 1]);
	subscription->max_retained_age =
		cqrs_milliseconds(values[SUBSCRIPTION_MAX_RETAINED_AGE - 1]);
	subscription->state =
		strcmp(state, "paused") == 0 ? CQRS_SUBSCRIPTION_PAUSED :
		strcmp(state, "suspended") == 0 ? CQRS_SUBSCRIPTION_SUSPENDED :
		CQRS_SUBSCRIPTION_ACTIVE;
	subscription->retried_at = nulls[SUBSCRIPTION_RETRIED_AT - 1] ? 0 :
		DatumGetTimestampTz(values[SUBSCRIPTION_RETRIED_AT - 1]);
	subscription->ntopics = 0;
	subscription->topics = NULL;
	remember_by_id(copy->subscriptions_by_id, subscription->subscription_id,
				   subscription);
}

static void
add_consumer(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsConsumer *consumer;

	consumer = hash_search(copy->consumers,
						   TextDatumGetCString(values[CONSUMER_CONSUMER - 1]),
						   HASH_ENTER, NULL);
	consumer->consumer_id = DatumGetInt32(values[CONSUMER_ID - 1]);
	consumer->owner = cqrs_owner_find(consumer->name, &consumer->view);
	consumer->incarnation = *DatumGetUUIDP(values[CONSUMER_INCARNATION - 1]);
	consumer->server = TextDatumGetCString(values[CONSUMER_SERVER - 1]);
	consumer->source = TextDatumGetCString(values[CONSUMER_SOURCE - 1]);
	consumer->topic =
		cqrs_registry_find_by_id(copy->topics_by_id,
								 DatumGetInt32(values[CONSUMER_TOPIC_ID - 1]));
	consumer->event_name = text_or_null(values[CONSUMER_EVENT_NAME - 1],
										nulls[CONSUMER_EVENT_NAME - 1]);
	consumer->format = TextDatumGetCString(values[CONSUMER_FORMAT - 1]);
	consumer->message_id = text_or_null(values[CONSUMER_MESSAGE_ID - 1],
										nulls[CONSUMER_MESSAGE_ID - 1]);
	consumer->start = TextDatumGetCString(values[CONSUMER_START - 1]);
	consumer->skips_gaps =
		strcmp(TextDatumGetCString(values[CONSUMER_ON_GAP - 1]), "earliest") == 0;
	consumer->workers = DatumGetInt32(values[CONSUMER_WORKERS - 1]);
	consumer->active =
		strcmp(TextDatumGetCString(values[CONSUMER_STATE - 1]), "active") == 0;
	consumer->retried_at =
		DatumGetTimestampTz(values[CONSUMER_RETRIED_AT - 1]);
	remember_by_id(copy->consumers_by_id, consumer->consumer_id, consumer);
}

static char *
text_or_null(Datum value, bool isnull)
{
	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
is_by_topic(Datum ordering)
{
	return strcmp(TextDatumGetCString(ordering), "topic") == 0;
}

/*
 * The one that is set: where pg_temp is not named, it would come first.
 */
static char *
search_path(const char *stored)
{
	return psprintf("%s%spg_temp", stored, stored[0] != '\0' ? ", " : "");
}

static void
add_subscription_topic(CqrsRegistryCopy *copy, Datum *values, bool *nulls)
{
	CqrsSubscription *subscription;
	CqrsTopic  *topic;

	subscription = cqrs_registry_find_by_id(copy->subscriptions_by_id, DatumGetInt32(values[0]));
	topic = cqrs_registry_find_by_id(copy->topics_by_id, DatumGetInt32(values[1]));
	if (subscription == NULL || topic == NULL)
		return;
	if (subscription->topics == NULL)
		subscription->topics = palloc(sizeof(CqrsTopic *));
	else
		subscription->topics = repalloc(subscription->topics,
										sizeof(CqrsTopic *) *
										(subscription->ntopics + 1));
	subscription->topics[subscription->ntopics++] = topic;

	/* Of what sagas wait for, only the times are in a topic of its own. */
	if (subscription->runs_commands || subscription->runs_sagas ||
		(subscription->routes_to_sagas &&
		 strcmp(subscription->name, topic->name) == 0))
		topic->runner = subscription;
}

/*
 * A subscription that runs its owner's commands or sagas has an owner only if these
 * are the owner's, too. A role that was given several of them uses the oldest.
 */
static void
find_command_owners(CqrsRegistryCopy *copy)
{
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;

	hash_seq_init(&status, copy->subscriptions);
	while ((subscription = hash_seq_search(&status)) != NULL)
	{
		HTAB	   *table = subscription->runs_commands ? copy->command_subscriptions :
		subscription->runs_sagas ? copy->saga_subscriptions : copy->saga_routers;
		CqrsSubscription *other;
		int			i;

		if (!cqrs_subscription_is_queue(subscription))
			continue;
		for (i = 0; i < subscription->ntopics; i++)
			if (subscription->topics[i]->runner == subscription &&
				!cqrs_owner_has_commands(subscription->topics[i]->name,
										 subscription->owner))
				subscription->owner = InvalidOid;
		other = cqrs_registry_find_by_id(table, (int32) subscription->owner);

		if (OidIsValid(subscription->owner) &&
			(other == NULL ||
			 other->subscription_id > subscription->subscription_id))
			remember_by_id(table, (int32) subscription->owner, subscription);
	}
}
