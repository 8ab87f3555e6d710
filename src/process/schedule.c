/*-------------------------------------------------------------------------
 *
 * schedule.c
 *	  Which cursors of a database have something to get. Only the manager uses
 *	  this; manager.c has the protocol, and assign.c says who delivers them.
 *
 * A cursor is due up to a look. It stays in the list of those that may have
 * something to do until a worker has drained it up to there, and nothing of it
 * is parked for a retry. The list is in the order in which cursors were last
 * served, so if there are more of them than workers, each gets its turn. A
 * manager that has just started knows no such order, and begins with any.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "base/hash.h"
#include "delivery/relay.h"
#include "process/schedule.h"
#include "registry/registry.h"
#include "shared/clock.h"

/* How long a manager begins calmly, in milliseconds. */
#define CALM_TIME	20

/* What is scheduled, as of a registry generation. */
static HTAB *schedule = NULL;
static uint64 schedule_generation = 0;

/* Differs between managers, so that they begin with different cursors. */
static uint32 first_order;

/* Cursors that may have something to do; the one served last comes last. */
static dlist_head due_list = DLIST_STATIC_INIT(due_list);

/* By the bits of topics (see shmem.h), in a context of their own: cursors. */
static MemoryContext topics_context = NULL;
static List *scheduled_by_bit[CQRS_TOPIC_BITS];

/* The topics of subscriptions that clients pull, in the same context. */
static List *pulled_topics = NIL;

/* The subscriptions whose partitions are being changed, by id; the same. */
static List *epochs = NIL;

static bool has_brokers = false;

/* See cqrs_schedule_begin_calmly(). */
static TimestampTz calm_until = 0;

static void schedule_subscription(CqrsSubscription *subscription,
								  uint64 generation, bool first,
								  bool careful);
static void schedule_consumer(CqrsConsumer *consumer, uint64 generation,
							  bool careful);
static CqrsScheduled *schedule_part(int32 id, int32 partition, Oid owner,
									TimestampTz retried_at, bool careful);

/*
 * Bring the schedule up to the registry. What is new in it is due. The first
 * time, if careful is set, any of the cursors may have made a process end.
 */
void
cqrs_schedule_refresh(bool careful)
{
	uint64		generation = cqrs_registry_generation();
	bool		first = schedule == NULL;
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	CqrsConsumer *consumer;
	CqrsScheduled *scheduled;

	if (generation == schedule_generation)
		return;
	if (first)
	{
		first_order = (uint32) cqrs_steady_now();
		schedule = cqrs_hash_create("cqrs schedule", sizeof(CqrsScheduledKey),
									sizeof(CqrsScheduled), TopMemoryContext);
		topics_context = AllocSetContextCreate(TopMemoryContext,
											   "cqrs schedule",
											   ALLOCSET_DEFAULT_SIZES);
	}
	MemoryContextReset(topics_context);
	memset(scheduled_by_bit, 0, sizeof(scheduled_by_bit));
	pulled_topics = NIL;
	epochs = NIL;
	has_brokers = false;

	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		schedule_subscription(subscription, generation, first,
							  first && careful);

	cqrs_registry_consumers(&status);
	while ((consumer = hash_seq_search(&status)) != NULL)
		schedule_consumer(consumer, generation, first && careful);

	hash_seq_init(&status, schedule);
	while ((scheduled = hash_seq_search(&status)) != NULL)
	{
		if (scheduled->generation == generation)
			continue;
		if (scheduled->listed)
			dlist_delete(&scheduled->node);
		hash_search(schedule, &scheduled->key, HASH_REMOVE, NULL);
	}
	schedule_generation = generation;
}

/*
 * The cursors on these topics are due up to this look: those of handlers, or
 * of brokers.
 */
void
cqrs_schedule_due(const CqrsTopicSet *topics, int64 look, bool brokers)
{
	int			bit;

	for (bit = 0; bit < CQRS_TOPIC_BITS; bit++)
	{
		ListCell   *lc;

		if (topics->words[bit / 64] == 0)
		{
			bit |= 63;
			continue;
		}
		if (!cqrs_topic_set_has(topics, bit))
			continue;
		foreach(lc, scheduled_by_bit[bit])
		{
			CqrsScheduled *scheduled = (CqrsScheduled *) lfirst(lc);

			if (scheduled->broker != brokers)
				continue;
			scheduled->due_look = look;
			scheduled->put_off = false;
			cqrs_schedule_make_due(scheduled);
		}
	}
}

/*
 * The manager has just started, and has all cursors looked at. If something was
 * announced, most of them will have nothing to do, and the processes that would start
 * for them would be in the way. So for a moment, those on other topics are put off,
 * and assign.c starts one worker for each owner.
 */
void
cqrs_schedule_begin_calmly(const CqrsTopicSet *announced)
{
	HASH_SEQ_STATUS status;
	CqrsScheduled *scheduled;
	ListCell   *lc;
	bool		any = false;
	int			bit;

	for (bit = 0; bit < CQRS_TOPIC_BITS; bit++)
		any |= cqrs_topic_set_has(announced, bit) &&
			scheduled_by_bit[bit] != NIL;
	if (!any)
		return;
	hash_seq_init(&status, schedule);
	while ((scheduled = hash_seq_search(&status)) != NULL)
		scheduled->put_off = true;
	for (bit = 0; bit < CQRS_TOPIC_BITS; bit++)
	{
		if (!cqrs_topic_set_has(announced, bit))
			continue;
		foreach(lc, scheduled_by_bit[bit])
			((CqrsScheduled *) lfirst(lc))->put_off = false;
	}
	calm_until = TimestampTzPlusMilliseconds(cqrs_steady_now(), CALM_TIME);
}

/*
 * Until when that lasts.
 */
TimestampTz
cqrs_schedule_calm_until(void)
{
	return calm_until;
}

/*
 * Is there a cursor whose workers were lost, or that is to be delivered
 * carefully? The next manager would not know.
 */
bool
cqrs_schedule_uneasy(bool *careful)
{
	HASH_SEQ_STATUS status;
	CqrsScheduled *scheduled;
	bool		failing = false;

	*careful = false;
	if (schedule == NULL)
		return false;
	hash_seq_init(&status, schedule);
	while ((scheduled = hash_seq_search(&status)) != NULL)
	{
		*careful |= scheduled->careful > 0;
		failing |= scheduled->failures > 0;
	}
	return *careful || failing;
}

/*
 * Was there a refresh yet?
 */
bool
cqrs_schedule_exists(void)
{
	return schedule != NULL;
}

/*
 * A cursor that is scheduled; NULL if it is not.
 */
CqrsScheduled *
cqrs_schedule_find(int32 subscription_id, int32 partition)
{
	CqrsScheduledKey key = {subscription_id, partition};

	return schedule == NULL ? NULL :
		hash_search(schedule, &key, HASH_FIND, NULL);
}

/*
 * Cursors that may have something to do, in the order in which they were last
 * served.
 */
dlist_head *
cqrs_schedule_due_list(void)
{
	return &due_list;
}

/*
 * A cursor may have something to do.
 */
void
cqrs_schedule_make_due(CqrsScheduled *scheduled)
{
	if (scheduled->listed)
		return;
	dlist_push_tail(&due_list, &scheduled->node);
	scheduled->listed = true;
}

/*
 * A worker was lost, and it is not known any more which cursor it delivered:
 * be careful with all of them.
 */
void
cqrs_schedule_all_careful(void)
{
	HASH_SEQ_STATUS status;
	CqrsScheduled *scheduled;

	hash_seq_init(&status, schedule);
	while ((scheduled = hash_seq_search(&status)) != NULL)
	{
		scheduled->careful = CQRS_BATCH_EVENTS;
		scheduled->unfinished = true;
		cqrs_schedule_make_due(scheduled);
	}
}

/*
 * The topics that clients pull, as CqrsPulledTopic.
 */
List *
cqrs_schedule_pulled_topics(void)
{
	return pulled_topics;
}

/*
 * The ids of the subscriptions whose partitions are being changed.
 */
List *
cqrs_schedule_epochs(void)
{
	return epochs;
}

/*
 * Is there a subscription that delivers to a broker?
 */
bool
cqrs_schedule_has_brokers(void)
{
	return has_brokers;
}

static void
schedule_subscription(CqrsSubscription *subscription, uint64 generation,
					  bool first, bool careful)
{
	bool		is_pulled = cqrs_subscription_is_pulled(subscription);
	MemoryContext oldcontext;
	int			i;
	int			j;

	oldcontext = MemoryContextSwitchTo(topics_context);
	if (subscription->next_partitions != 0)
		epochs = lappend_int(epochs, subscription->subscription_id);
	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE ||
		!OidIsValid(subscription->owner))
	{
		MemoryContextSwitchTo(oldcontext);
		return;
	}
	has_brokers |= subscription->server != NULL;
	for (i = 0; is_pulled && i < subscription->ntopics; i++)
	{
		CqrsPulledTopic *topic = palloc(sizeof(CqrsPulledTopic));

		topic->topic_id = subscription->topics[i]->topic_id;
		strlcpy(topic->name, subscription->topics[i]->name, NAMEDATALEN);
		pulled_topics = lappend(pulled_topics, topic);
	}
	for (i = 0; !is_pulled && i < subscription->partitions; i++)
	{
		CqrsScheduled *scheduled = schedule_part(subscription->subscription_id, i,
												 subscription->owner,
												 subscription->retried_at,
												 careful);

		scheduled->generation = generation;
		scheduled->broker = subscription->server != NULL;
		for (j = 0; j < subscription->ntopics; j++)
		{
			int			bit = (uint32) subscription->topics[j]->topic_id %
			CQRS_TOPIC_BITS;

			scheduled_by_bit[bit] = lappend(scheduled_by_bit[bit], scheduled);
		}

		/*
		 * Vary the order, so that none has to wait for the same ones each
		 * time.
		 */
		if (first && hash_bytes_uint32(first_order + subscription->subscription_id + i) % 2 == 0)
		{
			dlist_delete(&scheduled->node);
			dlist_push_head(&due_list, &scheduled->node);
		}
	}
	MemoryContextSwitchTo(oldcontext);
}

/*
 * What each of its workers does is never done.
 */
static void
schedule_consumer(CqrsConsumer *consumer, uint64 generation, bool careful)
{
	int			i;

	if (!consumer->active || !OidIsValid(consumer->owner))
		return;
	for (i = 0; i < consumer->workers; i++)
	{
		CqrsScheduled *scheduled = schedule_part(consumer->consumer_id, i,
												 consumer->owner,
												 consumer->retried_at,
												 careful);

		/* A worker that found nothing to do is to look again. */
		if (!scheduled->consumer || scheduled->changed)
			scheduled->due_look =
				pg_atomic_add_fetch_u64(&cqrs_shared->looks, 1);
		scheduled->generation = generation;
		scheduled->broker = scheduled->consumer = true;
	}
}

/*
 * What one worker does at a time. If it is new, or something was changed, it is
 * due.
 */
static CqrsScheduled *
schedule_part(int32 id, int32 partition, Oid owner, TimestampTz retried_at,
			  bool careful)
{
	CqrsScheduledKey key = {id, partition};
	CqrsScheduled *scheduled;
	bool		found;

	scheduled = hash_search(schedule, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset(scheduled, 0, sizeof(CqrsScheduled));
		scheduled->key = key;
		scheduled->retried_at = retried_at;
		scheduled->unfinished = true;

		/*
		 * The process that crashed may have been handling an event of this
		 * cursor.
		 */
		if (careful)
			scheduled->careful = CQRS_BATCH_EVENTS;
	}
	scheduled->changed = scheduled->owner != owner ||
		scheduled->retried_at != retried_at;
	if (scheduled->changed)
	{
		/* What kept it from delivering need not keep it now. */
		scheduled->owner = owner;
		scheduled->retried_at = retried_at;
		scheduled->unfinished = true;
		scheduled->failed_until = 0;
		cqrs_schedule_make_due(scheduled);
	}
	return scheduled;
}
