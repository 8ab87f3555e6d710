/*-------------------------------------------------------------------------
 *
 * manager.c
 *	  Looks after one database: ticks, and has workers deliver.
 *
 * Protocol
 *
 * 1. Attach to the slot; connect; if the extension is not there, free the
 *	  slot and exit.
 * 2. Each cycle: if something was committed, and the last look is
 *	  tick_interval ago, look: take a snapshot. The emitters have said which
 *	  topics have something new; the cursors of their subscriptions are due up
 *	  to this look, which gets a number of its own. If nobody announced
 *	  anything for poll_interval, look by way of the index whether there is
 *	  something all the same. Then assign workers to what is due.
 * 3. Clients that pull need a tick (see tick.c). If there are such
 *	  subscriptions, tick after a look that found out about a commit, and
 *	  notify those that listen; the workers, who need none, do not wait for it.
 *	  The first look of a manager is followed by a tick in any case: what the
 *	  newest tick in the table shows may be of a time before a crash or a
 *	  promotion.
 * 4. The manager looks at the extension in each cycle. If it was dropped, or
 *	  made anew, it exits, and takes the database's workers with it. If it
 *	  does not fit the library any more, nothing is delivered until it does.
 *
 * An error ends the manager; the launcher starts another.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "lib/ilist.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "launcher.h"
#include "registry.h"
#include "relay.h"
#include "shmem.h"
#include "tick.h"
#include "version.h"
#include "window.h"

/* After an unexpected exit: milliseconds to wait, doubling up to a minute. */
#define FIRST_RESTART_WAIT	500
#define LONGEST_RESTART_WAIT	60000

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

/* A topic that clients pull. */
typedef struct PulledTopic
{
	int32		topic_id;
	char		name[NAMEDATALEN];
} PulledTopic;

static CqrsDatabaseSlot *my_slot = NULL;

/* The extension was not found: nothing to manage. */
static bool nothing_here = false;
static Oid	my_extension = InvalidOid;

/* Does not change under us: who renames a database has us exit. */
static char *my_database_name = NULL;

/* What is scheduled, as of a registry generation. */
static HTAB *schedule = NULL;
static uint64 schedule_generation = 0;

/* What may have something to do; who was served last comes last. */
static dlist_head due_list = DLIST_STATIC_INIT(due_list);

/* By the bits of topics (see shmem.h), in a context of their own: cursors. */
static MemoryContext topics_context = NULL;
static List *scheduled_by_bit[CQRS_DIRTY_BITS];

/* Which topics have something new: bits, as in shmem.h. */
typedef struct TopicSet
{
	uint64		words[CQRS_DIRTY_WORDS];
} TopicSet;

/* The last look. */
static MemoryContext look_context = NULL;
static CqrsSnapshot *seen = NULL;
static int64 seen_look = 0;
static int64 seen_position = 0; /* drawn last before it */
static TimestampTz looked = 0;
static TimestampTz polled = 0;

/* The topics of subscriptions that need a tick, and what to tick for. */
static List *pulled_topics = NIL;
static TopicSet tick_topics;
static bool tick_due = false;

static bool said_exhausted = false;

static void manager_attach(int index);
static void manager_exit(int code, Datum arg);
static long restart_wait(int failures);
static bool begin_cycle(void);
static void end_cycle(void);
static bool time_to_look(TimestampTz now, bool *poll);
static bool may_look(TimestampTz now);
static void look(bool poll);
static bool check_version(void);
static void take_dirty(TopicSet *topics);
static void add_topic(TopicSet *topics, int32 topic_id);
static bool has_topic(const TopicSet *topics, int32 topic_id);
static bool find_topics(const CqrsSnapshot *lower, TopicSet *topics);
static void find_due(const TopicSet *topics);
static void make_due(Scheduled *scheduled);
static void tick(void);
static void refresh_schedule(void);
static void schedule_subscription(CqrsSubscription *subscription,
								  uint64 generation, bool first);
static long assign_workers(void);
static void note_results(TimestampTz now);
static bool assign_worker(Scheduled *scheduled, TimestampTz now);
static bool start_worker(CqrsWorkerSlot *worker);
static long next_wakeup(TimestampTz now, long wait);

void
cqrs_manager_main(Datum arg)
{
	cqrs_process_signals();
	manager_attach(DatumGetInt32(arg));
	BackgroundWorkerInitializeConnectionByOid(my_slot->dboid, InvalidOid, 0);
	cqrs_process_settings();
	pgstat_report_appname("cqrs_outbox manager");

	look_context = AllocSetContextCreate(TopMemoryContext, "cqrs look",
										 ALLOCSET_SMALL_SIZES);
	topics_context = AllocSetContextCreate(TopMemoryContext, "cqrs schedule",
										   ALLOCSET_DEFAULT_SIZES);
	if (!begin_cycle())
		proc_exit(0);
	my_database_name = MemoryContextStrdup(TopMemoryContext,
										   get_database_name(MyDatabaseId));
	end_cycle();
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	my_slot->state = CQRS_DATABASE_RUNNING;
	LWLockRelease(cqrs_shared->lock);
	cqrs_shmem_wake_launcher();
	ereport(DEBUG1,
			(errmsg_internal("cqrs_outbox manager started")));

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		long		wait = -1;
		bool		poll;

		if (cqrs_deliver)
		{
			if (time_to_look(now, &poll))
				look(poll);
			if (seen != NULL)
			{
				wait = assign_workers();
				if (tick_due)
					tick();
			}
		}

		/*
		 * Emitters set our latch from here on, until one has. Not before it
		 * may be time to look again: until then they need not wake us.
		 */
		now = GetCurrentTimestamp();
		if (cqrs_deliver && may_look(now))
		{
			pg_atomic_write_u32(&my_slot->asleep, 1);
			pg_memory_barrier();
			if (pg_atomic_read_u32(&my_slot->pending) != 0)
			{
				pg_atomic_write_u32(&my_slot->asleep, 0);
				continue;
			}
		}
		cqrs_process_wait(next_wakeup(now, wait));
		pg_atomic_write_u32(&my_slot->asleep, 0);
	}
}

/*
 * Take the slot that the launcher chose, or exit if that is over.
 */
static void
manager_attach(int index)
{
	CqrsDatabaseSlot *slot = &cqrs_shared->databases[index];
	bool		held;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (slot->state != CQRS_DATABASE_STARTING || slot->manager_pid != 0)
	{
		LWLockRelease(cqrs_shared->lock);
		proc_exit(0);
	}
	my_slot = slot;
	slot->manager_pid = MyProcPid;
	slot->manager_latch = MyLatch;
	slot->started_at = GetCurrentTimestamp();
	held = slot->held > 0;
	LWLockRelease(cqrs_shared->lock);
	before_shmem_exit(manager_exit, (Datum) 0);
	if (held)
		proc_exit(0);
}

/*
 * Free the slot, or leave it to the launcher to start another manager.
 */
static void
manager_exit(int code, Datum arg)
{
	TimestampTz now = GetCurrentTimestamp();
	int			i;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (code == 0 || now > my_slot->started_at + 10 * USECS_PER_SEC)
		my_slot->failures = 0;
	else
		my_slot->failures++;
	my_slot->manager_pid = 0;
	my_slot->manager_latch = NULL;
	my_slot->start_after = now;
	if (nothing_here && !my_slot->announced)
	{
		my_slot->state = CQRS_DATABASE_FREE;
		my_slot->dboid = InvalidOid;
	}
	else
	{
		my_slot->state = CQRS_DATABASE_REQUESTED;
		if (!nothing_here)
			my_slot->start_after =
				TimestampTzPlusMilliseconds(now,
											restart_wait(my_slot->failures));
	}

	if (nothing_here)
	{
		for (i = 0; i < cqrs_shared->nworkers; i++)
		{
			CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

			if (worker->pid == 0 || worker->dboid != MyDatabaseId)
				continue;
			worker->stop = true;
			SetLatch(worker->latch);
		}
	}
	ConditionVariableBroadcast(&cqrs_shared->exited);
	LWLockRelease(cqrs_shared->lock);
	cqrs_shmem_wake_launcher();
}

/*
 * How long to wait after so many failures in a row, in milliseconds.
 */
static long
restart_wait(int failures)
{
	return Min(FIRST_RESTART_WAIT << Min(failures, 10), LONGEST_RESTART_WAIT);
}

/*
 * Begin a transaction in which the extension stays. Returns false, with no
 * transaction, if it is not there, or not the one that was.
 */
static bool
begin_cycle(void)
{
	Oid			extension;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	extension = cqrs_extension_lock();
	if (OidIsValid(extension))
	{
		if (!OidIsValid(my_extension) || my_extension == extension)
		{
			my_extension = extension;
			PushActiveSnapshot(GetTransactionSnapshot());
			return true;
		}

		/* Another one by now: start afresh. */
		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		my_slot->announced = true;
		LWLockRelease(cqrs_shared->lock);
	}
	AbortCurrentTransaction();
	nothing_here = true;
	return false;
}

static void
end_cycle(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/*
 * Has anything been announced, tick_interval after the last look? Or is it
 * time to look whether there is something all the same (*poll)?
 */
static bool
time_to_look(TimestampTz now, bool *poll)
{
	*poll = false;
	if (seen == NULL)
		return true;
	if (pg_atomic_read_u32(&my_slot->pending) != 0)
		return may_look(now);
	*poll = TimestampDifferenceExceeds(polled, now, cqrs_poll_interval);
	return *poll;
}

/*
 * Is the last look tick_interval ago?
 */
static bool
may_look(TimestampTz now)
{
	return TimestampDifferenceExceeds(looked, now, cqrs_tick_interval);
}

/*
 * Look at what is committed now, and note which cursors have something up to
 * here. With poll, only if there is something.
 */
static void
look(bool poll)
{
	CqrsSnapshot *previous = seen;
	TopicSet	topics;
	int64		position;
	MemoryContext oldcontext;
	int			i;

	/* What is committed from here on is announced again. */
	(void) pg_atomic_exchange_u32(&my_slot->pending, 0);
	pg_memory_barrier();
	take_dirty(&topics);

	if (!begin_cycle())
		proc_exit(0);
	polled = GetCurrentTimestamp();
	if (!check_version())
	{
		end_cycle();
		return;
	}
	refresh_schedule();
	position = cqrs_last_position();
	if (previous == NULL)
		memset(&topics, 0xFF, sizeof(topics));
	else if (poll)
	{
		/*
		 * An event that we have not seen has drawn its position since the
		 * last look, or is of a transaction that was in progress then.
		 */
		if ((position == seen_position && previous->nxip == 0) ||
			!find_topics(previous, &topics))
		{
			end_cycle();
			return;
		}
	}

	/*
	 * Workers are told the number before they take their snapshots. So what
	 * this one shows, theirs will.
	 */
	oldcontext = MemoryContextSwitchTo(look_context);
	seen = cqrs_snapshot_take();
	MemoryContextSwitchTo(oldcontext);
	seen_position = position;
	seen_look = pg_atomic_add_fetch_u64(&cqrs_shared->looks, 1);
	find_due(&topics);
	end_cycle();
	looked = GetCurrentTimestamp();
	for (i = 0; i < CQRS_DIRTY_WORDS; i++)
		tick_topics.words[i] |= topics.words[i];
	tick_due = pulled_topics != NIL || previous == NULL;
	if (previous != NULL)
		pfree(previous);
}

/*
 * Do library and extension fit each other? If not, say so once, and forget
 * what was seen: once they do, everything is to be looked at.
 */
static bool
check_version(void)
{
	static bool said = false;

	if (cqrs_registry_usable())
	{
		said = false;
		return true;
	}
	if (!said)
		cqrs_version_report(LOG, psprintf("cqrs_outbox delivers nothing in database \"%s\"",
										  my_database_name));
	said = true;
	if (seen != NULL)
		pfree(seen);
	seen = NULL;
	return false;
}

/*
 * The topics that were announced since the last time.
 */
static void
take_dirty(TopicSet *topics)
{
	int			i;

	for (i = 0; i < CQRS_DIRTY_WORDS; i++)
		topics->words[i] = pg_atomic_read_u64(&my_slot->dirty[i]) == 0 ? 0 :
			pg_atomic_exchange_u64(&my_slot->dirty[i], 0);
}

static void
add_topic(TopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_DIRTY_BITS;

	topics->words[bit / 64] |= UINT64CONST(1) << (bit % 64);
}

static bool
has_topic(const TopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_DIRTY_BITS;

	return (topics->words[bit / 64] & (UINT64CONST(1) << (bit % 64))) != 0;
}

/*
 * Which topics have an event that lower does not show? Returns false if none
 * has.
 */
static bool
find_topics(const CqrsSnapshot *lower, TopicSet *topics)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	List	   *all = NIL;
	ListCell   *lc;
	bool		found = false;

	/* Not during the walk: the registry may be loaded again. */
	cqrs_registry_topics(&status);
	while ((topic = hash_seq_search(&status)) != NULL)
		all = lappend(all, topic);
	foreach(lc, all)
	{
		topic = (CqrsTopic *) lfirst(lc);
		if (!cqrs_window_has_events(topic, lower, NULL, snapshot))
			continue;
		add_topic(topics, topic->topic_id);
		found = true;
	}
	UnregisterSnapshot(snapshot);
	return found;
}

/*
 * The cursors on these topics are due up to the last look.
 */
static void
find_due(const TopicSet *topics)
{
	int			bit;

	for (bit = 0; bit < CQRS_DIRTY_BITS; bit++)
	{
		ListCell   *lc;

		if (topics->words[bit / 64] == 0)
		{
			bit |= 63;
			continue;
		}
		if (!has_topic(topics, bit))
			continue;
		foreach(lc, scheduled_by_bit[bit])
		{
			Scheduled  *scheduled = (Scheduled *) lfirst(lc);

			scheduled->due_look = seen_look;
			make_due(scheduled);
		}
	}
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
 * Tick, for those who pull, and tell those of them who listen to a topic's
 * channel. That is done in a transaction of its own: a commit that notifies
 * has to wait for others that do.
 */
static void
tick(void)
{
	bool		notify = false;
	ListCell   *lc;

	if (!begin_cycle())
		proc_exit(0);
	cqrs_tick_record();
	end_cycle();
	tick_due = false;

	foreach(lc, pulled_topics)
	{
		PulledTopic *topic = (PulledTopic *) lfirst(lc);

		if (!has_topic(&tick_topics, topic->topic_id))
			continue;
		if (!notify && !begin_cycle())
			proc_exit(0);
		notify = true;
		Async_Notify(topic->name, "");
	}
	if (notify)
		end_cycle();
	memset(&tick_topics, 0, sizeof(tick_topics));
}

/*
 * Bring the schedule up to the registry. What is new in it is due.
 */
static void
refresh_schedule(void)
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
	}
	MemoryContextReset(topics_context);
	memset(scheduled_by_bit, 0, sizeof(scheduled_by_bit));
	pulled_topics = NIL;

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

static void
schedule_subscription(CqrsSubscription *subscription, uint64 generation,
					  bool first)
{
	MemoryContext oldcontext;
	int			i;
	int			j;

	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
		return;
	oldcontext = MemoryContextSwitchTo(topics_context);
	for (i = 0; !subscription->has_handler && i < subscription->ntopics; i++)
	{
		PulledTopic *topic = palloc(sizeof(PulledTopic));

		topic->topic_id = subscription->topics[i]->topic_id;
		strlcpy(topic->name, subscription->topics[i]->name, NAMEDATALEN);
		pulled_topics = lappend(pulled_topics, topic);
	}
	for (i = 0; subscription->has_handler && i < subscription->partitions; i++)
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
		scheduled->owner = subscription->owner;
		for (j = 0; j < subscription->ntopics; j++)
		{
			int			bit = (uint32) subscription->topics[j]->topic_id %
			CQRS_DIRTY_BITS;

			scheduled_by_bit[bit] = lappend(scheduled_by_bit[bit], scheduled);
		}
		if (!found)
			make_due(scheduled);
	}
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Have workers deliver what is due. Returns how long until there is something
 * else to do, in milliseconds; -1: until woken.
 */
static long
assign_workers(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		contended = false;
	bool		exhausted;
	TimestampTz next = 0;
	long		wait = -1;
	dlist_mutable_iter iter;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	note_results(now);
	my_slot->exhausted = false;
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
		else if (!assign_worker(scheduled, now))
			contended = true;
	}
	if (contended)
	{
		/* Before a worker is done: it wakes us only if it sees this. */
		pg_atomic_write_u32(&cqrs_shared->contended, 1);
		wait = EXHAUSTED_WAIT;
	}
	exhausted = my_slot->exhausted;
	LWLockRelease(cqrs_shared->lock);

	if (exhausted && !said_exhausted)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox in database \"%s\"",
						my_database_name),
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
 * Note what the workers of this database have done. The lock is held.
 */
static void
note_results(TimestampTz now)
{
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];
		ScheduledKey key = {worker->subscription_id, worker->partition};
		Scheduled  *scheduled;

		if (worker->state == CQRS_WORKER_FREE ||
			worker->dboid != MyDatabaseId)
			continue;
		if (worker->state == CQRS_WORKER_STARTING && worker->pid == 0 &&
			TimestampDifferenceExceeds(worker->started_at, now,
									   LONGEST_START))
			worker->state = CQRS_WORKER_FAILED;
		scheduled = schedule == NULL ? NULL :
			hash_search(schedule, &key, HASH_FIND, NULL);
		if (worker->state == CQRS_WORKER_FAILED)
		{
			/* It may be the event's doing. */
			if (scheduled != NULL)
			{
				scheduled->failed_until =
					TimestampTzPlusMilliseconds(now,
												restart_wait(scheduled->failures++));
				scheduled->careful = CQRS_BATCH_EVENTS;
				scheduled->unfinished = true;
				make_due(scheduled);
			}
			worker->state = CQRS_WORKER_FREE;
			continue;
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
}

/*
 * Have a worker deliver a cursor: the one that has it already; or a new one;
 * or one that has nothing to do. Returns false if there is none: then an idle
 * one that cannot be used was asked to exit. The lock is held.
 */
static bool
assign_worker(Scheduled *scheduled, TimestampTz now)
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
			slot->state == CQRS_WORKER_FAILED)
			unused = slot;
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
			if (slot->dboid == MyDatabaseId && slot->owner == scheduled->owner)
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
		memset(unused, 0, sizeof(*unused));
		unused->state = CQRS_WORKER_STARTING;
		unused->dboid = MyDatabaseId;
		unused->owner = scheduled->owner;
		unused->started_at = now;
		if (start_worker(unused))
			worker = unused;
		else
			unused->state = CQRS_WORKER_FREE;
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
	if (RegisterDynamicBackgroundWorker(&bgworker, NULL))
		return true;
	my_slot->exhausted = true;
	return false;
}

/*
 * How long to wait, in milliseconds: until we may look again, or else until
 * the next poll; or what assign_workers() said.
 */
static long
next_wakeup(TimestampTz now, long wait)
{
	TimestampTz until;
	long		timeout;

	if (!cqrs_deliver)
		return -1;
	until = may_look(now) ?
		TimestampTzPlusMilliseconds(polled, cqrs_poll_interval) :
		TimestampTzPlusMilliseconds(looked, cqrs_tick_interval);
	timeout = TimestampDifferenceMilliseconds(now, until);
	return wait < 0 ? timeout : Min(wait, timeout);
}
