/*-------------------------------------------------------------------------
 *
 * schedule.c
 *	  Which cursors of a database have something to get, and which worker
 *	  delivers which. All of it is the manager's; see there for the protocol.
 *
 * A cursor is due up to a look. It is in the list of what may have something
 * to do until a worker has drained it up to there, and nothing of it is parked
 * for a retry. The list is in the order in which cursors were served last, so
 * where there are more of them than workers, each has its turn.
 *
 * Times are steady ones (see clock.c). A worker leaves such in its slot, too.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "lib/ilist.h"
#include "postmaster/bgworker.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "registry.h"
#include "relay.h"
#include "schedule.h"

/* How often to look whether a worker can be had, in milliseconds. */
#define EXHAUSTED_WAIT	1000

/* A worker that has not attached after so long never will, in milliseconds. */
#define LONGEST_START	60000

typedef struct ScheduledKey
{
	int32		subscription_id;
	int32		partition;
} ScheduledKey;

/* A cursor that workers deliver, as the manager sees it. */
typedef struct Scheduled
{
	ScheduledKey key;			/* hash key */
	Oid			owner;
	bool		broker;
	int64		due_look;		/* has events up to this look */
	int64		drained_look;	/* and none up to this one */
	bool		unfinished;		/* its worker left something to do */
	TimestampTz retry_at;		/* a parked event may be tried then; 0: none */
	TimestampTz failed_until;	/* nothing can be done before */
	int			failures;		/* of its workers, in a row */
	int			careful;		/* see worker.c */
	bool		listed;			/* in due_list */
	dlist_node	node;
	uint64		generation;		/* of the registry that has it */
} Scheduled;

/* What is scheduled, as of a registry generation. */
static HTAB *schedule = NULL;
static uint64 schedule_generation = 0;

/* What may have something to do; who was served last comes last. */
static dlist_head due_list = DLIST_STATIC_INIT(due_list);

/* By the bits of topics (see shmem.h), in a context of their own: cursors. */
static MemoryContext topics_context = NULL;
static List *scheduled_by_bit[CQRS_TOPIC_BITS];

/* The topics of subscriptions that clients pull, in the same context. */
static List *pulled_topics = NIL;

/* The subscriptions whose partitions are being changed, by id; the same. */
static List *epochs = NIL;

static bool has_brokers = false;

static bool said_exhausted = false;

static void schedule_subscription(CqrsSubscription *subscription,
								  uint64 generation, bool first);
static void make_due(Scheduled *scheduled);
static void note_results(CqrsDatabaseSlot *slot, TimestampTz now);
static void forget_lost_starts(TimestampTz now);
static void make_all_careful(void);
static bool assign_worker(CqrsDatabaseSlot *database, Scheduled *scheduled,
						  TimestampTz now);
static void reuse_slot(CqrsWorkerSlot *worker);
static bool start_worker(CqrsWorkerSlot *worker);

/*
 * Bring the schedule up to the registry. What is new in it is due.
 */
void
cqrs_schedule_refresh(void)
{
	uint64		generation = cqrs_registry_generation();
	bool		first = schedule == NULL;
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	Scheduled  *scheduled;

	if (generation == schedule_generation)
		return;
	if (first)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(ScheduledKey);
		ctl.entrysize = sizeof(Scheduled);
		schedule = hash_create("cqrs schedule", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS);
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
		schedule_subscription(subscription, generation, first);

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
			Scheduled  *scheduled = (Scheduled *) lfirst(lc);

			if (scheduled->broker != brokers)
				continue;
			scheduled->due_look = look;
			make_due(scheduled);
		}
	}
}

/*
 * Have workers deliver what is due. Returns how long until there is something
 * else to do, in milliseconds; -1: until woken.
 */
long
cqrs_schedule_assign(CqrsDatabaseSlot *slot, const char *database_name)
{
	TimestampTz now = cqrs_steady_now();
	bool		contended = false;
	bool		exhausted;
	TimestampTz next = 0;
	long		wait = -1;
	dlist_mutable_iter iter;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	forget_lost_starts(now);
	note_results(slot, now);
	if (slot->worker_forgotten && schedule != NULL)
	{
		make_all_careful();
		slot->worker_forgotten = false;
	}
	slot->exhausted = false;
	dlist_foreach_modify(iter, &due_list)
	{
		Scheduled  *scheduled = dlist_container(Scheduled, node, iter.cur);
		TimestampTz when = 0;

		if (scheduled->due_look <= scheduled->drained_look &&
			!scheduled->unfinished)
		{
			if (scheduled->retry_at == 0)
			{
				dlist_delete(&scheduled->node);
				scheduled->listed = false;
				continue;
			}
			when = scheduled->retry_at;
		}
		when = Max(when, scheduled->failed_until);
		if (when > now)
			next = next == 0 ? when : Min(next, when);
		else if (!assign_worker(slot, scheduled, now))
			contended = true;
	}
	if (contended)
	{
		/* Before a worker is done: it wakes us only if it sees this. */
		pg_atomic_write_u32(&cqrs_shared->contended, 1);
		wait = EXHAUSTED_WAIT;
	}
	if (!contended)
		slot->waiting_since = 0;
	else if (slot->waiting_since == 0)
		slot->waiting_since = now;
	exhausted = slot->exhausted;
	LWLockRelease(cqrs_shared->lock);

	if (exhausted && !said_exhausted)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox in database \"%s\"",
						database_name),
				 errhint("Raise max_worker_processes.")));
	said_exhausted = exhausted;
	if (next != 0)
	{
		long		until = TimestampDifferenceMilliseconds(now, next);

		wait = wait < 0 ? until : Min(wait, until);
	}
	return wait;
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
					  bool first)
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
		ScheduledKey key = {subscription->subscription_id, i};
		Scheduled  *scheduled;
		bool		found;

		scheduled = hash_search(schedule, &key, HASH_ENTER, &found);
		if (!found)
		{
			memset(scheduled, 0, sizeof(Scheduled));
			scheduled->key = key;
			scheduled->unfinished = true;

			/* Whatever crashed may have been handling an event of this one. */
			if (first && cqrs_shared->crashed)
				scheduled->careful = CQRS_BATCH_EVENTS;
		}
		scheduled->generation = generation;
		if (scheduled->owner != subscription->owner)
		{
			/* What kept the owner before it need not keep this one. */
			scheduled->owner = subscription->owner;
			scheduled->unfinished = true;
			scheduled->failed_until = 0;
			make_due(scheduled);
		}
		scheduled->broker = subscription->server != NULL;
		for (j = 0; j < subscription->ntopics; j++)
		{
			int			bit = (uint32) subscription->topics[j]->topic_id %
			CQRS_TOPIC_BITS;

			scheduled_by_bit[bit] = lappend(scheduled_by_bit[bit], scheduled);
		}
	}
	MemoryContextSwitchTo(oldcontext);
}

static void
make_due(Scheduled *scheduled)
{
	if (scheduled->listed)
		return;
	dlist_push_tail(&due_list, &scheduled->node);
	scheduled->listed = true;
}

/*
 * Note what the workers of this database have done. The slot tells which one
 * was lost last, until its cursor was drained, or is scheduled no more. The
 * lock is held.
 */
static void
note_results(CqrsDatabaseSlot *slot, TimestampTz now)
{
	ScheduledKey failed = {slot->failed_subscription, slot->failed_partition};
	Scheduled  *lost;
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];
		ScheduledKey key = {worker->subscription_id, worker->partition};
		Scheduled  *scheduled;

		if (worker->state == CQRS_WORKER_FREE ||
			worker->dboid != MyDatabaseId)
			continue;
		scheduled = schedule == NULL ? NULL :
			hash_search(schedule, &key, HASH_FIND, NULL);
		if (worker->state == CQRS_WORKER_FAILED)
		{
			/* It may be the event's doing. */
			if (scheduled != NULL)
			{
				scheduled->failed_until =
					TimestampTzPlusMilliseconds(now,
												cqrs_restart_wait(scheduled->failures++));
				scheduled->careful = CQRS_BATCH_EVENTS;
				scheduled->unfinished = true;
				make_due(scheduled);
				failed = key;
			}
			worker->state = CQRS_WORKER_FREE;
			continue;
		}

		/* Nobody else can use its connection, nor another owner. */
		if (worker->broker && schedule != NULL &&
			(scheduled == NULL || scheduled->owner != worker->owner) &&
			worker->state == CQRS_WORKER_IDLE && !worker->stop)
		{
			worker->stop = true;
			SetLatch(worker->latch);
		}
		if (worker->noted || worker->served == 0)
			continue;
		worker->noted = true;
		if (scheduled == NULL)
			continue;
		if (worker->drained_look > scheduled->drained_look)
		{
			scheduled->drained_look = worker->drained_look;
			scheduled->failures = 0;
		}
		scheduled->unfinished = worker->unfinished;
		scheduled->retry_at = worker->retry_at;
		scheduled->failed_until = worker->failed_until;
		scheduled->careful = worker->careful;
		if (scheduled->retry_at != 0)
			make_due(scheduled);
	}

	lost = failed.subscription_id == 0 || schedule == NULL ? NULL :
		hash_search(schedule, &failed, HASH_FIND, NULL);
	if (lost != NULL && lost->failures > 0)
	{
		slot->failed_subscription = failed.subscription_id;
		slot->failed_partition = failed.partition;
		slot->worker_failures = lost->failures;
		slot->worker_retry_at = lost->failed_until;
	}
	else
		slot->failed_subscription = 0;
}

/*
 * A worker that has not come for so long will not. Its slot is free again, also
 * if the manager that asked for it is gone. The lock is held.
 */
static void
forget_lost_starts(TimestampTz now)
{
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state == CQRS_WORKER_STARTING && worker->pid == 0 &&
			TimestampDifferenceExceeds(worker->started_at, now,
									   LONGEST_START))
			worker->state = CQRS_WORKER_FAILED;
	}
}

/*
 * A worker was lost, and nobody knows any more which cursor it delivered.
 */
static void
make_all_careful(void)
{
	HASH_SEQ_STATUS status;
	Scheduled  *scheduled;

	hash_seq_init(&status, schedule);
	while ((scheduled = hash_seq_search(&status)) != NULL)
	{
		scheduled->careful = CQRS_BATCH_EVENTS;
		scheduled->unfinished = true;
		make_due(scheduled);
	}
}

/*
 * The slot may have another worker. If the one before was lost, and its manager
 * has not noted that yet, it will know that it does not know. The lock is held.
 */
static void
reuse_slot(CqrsWorkerSlot *worker)
{
	if (worker->state == CQRS_WORKER_FAILED)
	{
		CqrsDatabaseSlot *database = cqrs_database_find(worker->dboid);

		if (database != NULL)
			database->worker_forgotten = true;
	}
	memset(worker, 0, sizeof(*worker));
}

/*
 * Have a worker deliver a cursor: the one that has it already; or a new one;
 * or one that has nothing to do. Returns false if there is none: then an idle
 * one that cannot be used was asked to exit. The lock is held.
 *
 * A cursor of a broker gets a process of its own, and that is given no other:
 * it has a connection, and a client library in it that handlers had better not
 * meet.
 */
static bool
assign_worker(CqrsDatabaseSlot *database, Scheduled *scheduled,
			  TimestampTz now)
{
	CqrsWorkerSlot *unused = NULL;
	CqrsWorkerSlot *idle = NULL;
	CqrsWorkerSlot *foreign = NULL;
	CqrsWorkerSlot *worker = NULL;
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *slot = &cqrs_shared->workers[i];

		if (slot->state == CQRS_WORKER_FREE ||
			(slot->state == CQRS_WORKER_FAILED && unused == NULL))
			unused = slot;
		else if (slot->state == CQRS_WORKER_FAILED)
			continue;
		else if (slot->stop)
			continue;
		else if (slot->dboid == MyDatabaseId &&
				 slot->subscription_id == scheduled->key.subscription_id &&
				 slot->partition == scheduled->key.partition)
			worker = slot;
		else if (slot->state == CQRS_WORKER_IDLE &&
				 slot->request == slot->served)
		{
			/* Not one that has been given work, and is waking up. */
			if (slot->dboid == MyDatabaseId &&
				slot->owner == scheduled->owner &&
				!slot->broker && !scheduled->broker)
				idle = slot;
			else
				foreign = slot;
		}
	}

	/* A change of the owner takes another process. */
	if (worker != NULL && worker->owner != scheduled->owner)
	{
		worker->stop = true;
		if (worker->latch != NULL)
			SetLatch(worker->latch);
		return false;
	}

	if (worker == NULL && unused != NULL)
	{
		reuse_slot(unused);
		unused->state = CQRS_WORKER_STARTING;
		unused->dboid = MyDatabaseId;
		unused->owner = scheduled->owner;
		unused->broker = scheduled->broker;
		unused->started_at = now;
		if (start_worker(unused))
			worker = unused;
		else
		{
			database->exhausted = true;
			unused->state = CQRS_WORKER_FREE;
		}
	}
	if (worker == NULL && idle != NULL)
		worker = idle;
	if (worker == NULL)
	{
		if (foreign != NULL && unused == NULL)
		{
			foreign->stop = true;
			SetLatch(foreign->latch);
		}
		return false;
	}

	if (worker->subscription_id != scheduled->key.subscription_id ||
		worker->partition != scheduled->key.partition)
	{
		worker->subscription_id = scheduled->key.subscription_id;
		worker->partition = scheduled->key.partition;
		worker->drained_look = scheduled->drained_look;
		worker->wanted_look = scheduled->drained_look;
		worker->noted = true;
	}
	else if (worker->request != worker->served &&
			 worker->wanted_look == scheduled->due_look)
		return true;			/* it is at it */

	/* Those that wait now come first next time. */
	dlist_delete(&scheduled->node);
	dlist_push_tail(&due_list, &scheduled->node);
	worker->wanted_look = scheduled->due_look;
	worker->careful = scheduled->careful;
	worker->request++;
	if (worker->latch != NULL)
		SetLatch(worker->latch);
	return true;
}

/*
 * Ask for the process of a worker slot. Returns false if there is no
 * background worker to be had.
 */
static bool
start_worker(CqrsWorkerSlot *worker)
{
	BackgroundWorker bgworker = {0};

	snprintf(bgworker.bgw_name, BGW_MAXLEN,
			 "cqrs_outbox worker for database %u", MyDatabaseId);
	strlcpy(bgworker.bgw_type, "cqrs_outbox worker", BGW_MAXLEN);
	bgworker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgworker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgworker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(bgworker.bgw_library_name, "cqrs_outbox", BGW_MAXLEN);
	strlcpy(bgworker.bgw_function_name, "cqrs_worker_main", BGW_MAXLEN);
	bgworker.bgw_main_arg = Int32GetDatum(worker - cqrs_shared->workers);
	bgworker.bgw_notify_pid = 0;
	return RegisterDynamicBackgroundWorker(&bgworker, NULL);
}
