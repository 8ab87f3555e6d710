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
 *	  tick_interval ago, look: take a snapshot, and find out which topics have
 *	  something in the window from the last look's to it. Their subscriptions
 *	  are due up to this look, which gets a number of its own. If
 *	  nobody announced anything for poll_interval, look whether there is
 *	  something by way of the index. Then assign workers to what is due.
 * 3. Clients that pull need a tick (see tick.c). If there are such
 *	  subscriptions, tick after a look that found out about a commit; the
 *	  workers, who need none, do not wait for it. The first look of a manager
 *	  is followed by a tick in any case: what the newest tick in the table
 *	  shows may be of a time before a crash or a promotion.
 * 4. The manager looks at the extension in each cycle. If it was dropped, or
 *	  made anew, it exits, and takes the database's workers with it.
 *
 * An error ends the manager; the launcher starts another.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "launcher.h"
#include "registry.h"
#include "shmem.h"
#include "tick.h"
#include "window.h"

/* After an unexpected exit: milliseconds to wait, doubling up to a minute. */
#define FIRST_RESTART_WAIT	500
#define LONGEST_RESTART_WAIT	60000

/* How often to look whether a worker can be had, in milliseconds. */
#define EXHAUSTED_WAIT	1000

/* A worker that has not attached after so long never will, in milliseconds. */
#define LONGEST_START	60000

/* A subscription with a handler, as the manager sees it. */
typedef struct Scheduled
{
	int32		subscription_id;
	Oid			owner;
	int64		due_look;		/* has events up to this look */
	int64		drained_look;	/* and none up to this one */
	TimestampTz retry_at;
	int			failures;		/* of its workers, in a row */
	int64		served;			/* when a worker was assigned last: a count */
} Scheduled;

static CqrsDatabaseSlot *my_slot = NULL;

/* The extension was not found: nothing to manage. */
static bool nothing_here = false;
static Oid	my_extension = InvalidOid;

/* Does not change under us: who renames a database has us exit. */
static char *my_database_name = NULL;

/* What is scheduled, in a context of its own, as of a registry generation. */
static MemoryContext schedule_context = NULL;
static List *schedule = NIL;
static uint64 schedule_generation = 0;
static int64 assignments = 0;

/* The last look. */
static MemoryContext look_context = NULL;
static CqrsSnapshot *seen = NULL;
static int64 seen_look = 0;
static TimestampTz looked = 0;
static TimestampTz polled = 0;

/* There are subscriptions that need a tick, and something to tick for. */
static bool any_pull = false;
static bool tick_due = false;

static bool said_exhausted = false;

static void manager_attach(int index);
static void manager_exit(int code, Datum arg);
static long restart_wait(int failures);
static bool begin_cycle(void);
static void end_cycle(void);
static bool time_to_look(TimestampTz now, bool *poll);
static void look(bool poll);
static void find_due(const CqrsSnapshot *lower, Snapshot snapshot);
static void tick(void);
static void refresh_schedule(void);
static bool any_events(const CqrsSnapshot *lower, Snapshot snapshot);
static long assign_workers(void);
static int	compare_served(const ListCell *a, const ListCell *b);
static bool assign_worker(Scheduled *scheduled, TimestampTz now);
static bool start_worker(CqrsWorkerSlot *worker);
static long next_wakeup(long wait);

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
	schedule_context = AllocSetContextCreate(TopMemoryContext, "cqrs schedule",
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
			wait = assign_workers();
			if (tick_due)
				tick();
		}

		/*
		 * Emitters set our latch from here on, until one has. There is no
		 * need for it if something is pending already: then we only wait for
		 * the time to look.
		 */
		if (cqrs_deliver)
		{
			pg_atomic_write_u32(&my_slot->asleep, 1);
			pg_memory_barrier();
			if (pg_atomic_read_u32(&my_slot->pending) != 0)
				pg_atomic_write_u32(&my_slot->asleep, 0);
		}
		cqrs_process_wait(next_wakeup(wait));
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
		return TimestampDifferenceExceeds(looked, now, cqrs_tick_interval);
	*poll = TimestampDifferenceExceeds(polled, now, cqrs_poll_interval);
	return *poll;
}

/*
 * Look at what is committed now, and note which subscriptions have something
 * up to here. With poll, only if there is something.
 */
static void
look(bool poll)
{
	CqrsSnapshot *previous = seen;
	Snapshot	snapshot;
	MemoryContext oldcontext;

	/* What is committed from here on is announced again. */
	(void) pg_atomic_exchange_u32(&my_slot->pending, 0);
	pg_memory_barrier();

	if (!begin_cycle())
		proc_exit(0);
	polled = GetCurrentTimestamp();
	refresh_schedule();
	if (poll)
	{
		bool		found;

		snapshot = RegisterSnapshot(GetLatestSnapshot());
		found = any_events(previous, snapshot);
		UnregisterSnapshot(snapshot);
		if (!found)
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
	seen_look = pg_atomic_add_fetch_u64(&cqrs_shared->looks, 1);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	find_due(previous, snapshot);
	UnregisterSnapshot(snapshot);
	end_cycle();
	looked = GetCurrentTimestamp();
	tick_due = any_pull || previous == NULL;
	if (previous != NULL)
		pfree(previous);
}

/*
 * Note which subscriptions have something in the window from lower, or NULL:
 * not known, to the last look.
 */
static void
find_due(const CqrsSnapshot *lower, Snapshot snapshot)
{
	ListCell   *lc;

	foreach(lc, schedule)
	{
		Scheduled  *scheduled = (Scheduled *) lfirst(lc);
		CqrsSubscription *subscription;
		int			i;

		/* If it is due already, the look just goes along. */
		if (scheduled->due_look > scheduled->drained_look || lower == NULL)
		{
			scheduled->due_look = seen_look;
			continue;
		}
		subscription = cqrs_registry_subscription_by_id(scheduled->subscription_id);
		for (i = 0; subscription != NULL && i < subscription->ntopics; i++)
		{
			if (cqrs_window_has_events(subscription->topics[i], lower, seen,
									   snapshot))
			{
				scheduled->due_look = seen_look;
				break;
			}
		}
	}
}

/*
 * Tick, for those who pull.
 */
static void
tick(void)
{
	if (!begin_cycle())
		proc_exit(0);
	cqrs_tick_record();
	end_cycle();
	tick_due = false;
}

/*
 * Bring the schedule up to the registry. New subscriptions are due.
 */
static void
refresh_schedule(void)
{
	uint64		generation = cqrs_registry_generation();
	List	   *old = schedule;
	MemoryContext old_context = schedule_context;
	MemoryContext oldcontext;
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	ListCell   *lc;

	if (generation == schedule_generation)
		return;

	schedule_context = AllocSetContextCreate(TopMemoryContext, "cqrs schedule",
											 ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(schedule_context);
	schedule = NIL;
	any_pull = false;
	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
	{
		Scheduled  *scheduled;

		if (!subscription->has_handler)
		{
			any_pull = true;
			continue;
		}
		scheduled = palloc0(sizeof(Scheduled));
		scheduled->subscription_id = subscription->subscription_id;
		scheduled->due_look = PG_INT64_MAX;
		foreach(lc, old)
		{
			if (((Scheduled *) lfirst(lc))->subscription_id ==
				subscription->subscription_id)
				*scheduled = *(Scheduled *) lfirst(lc);
		}
		scheduled->owner = subscription->owner;
		schedule = lappend(schedule, scheduled);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(old_context);
	schedule_generation = generation;
}

/*
 * Is any event visible that lower does not show?
 */
static bool
any_events(const CqrsSnapshot *lower, Snapshot snapshot)
{
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	List	   *topics = NIL;
	ListCell   *lc;

	cqrs_registry_topics(&status);
	while ((topic = hash_seq_search(&status)) != NULL)
		topics = lappend(topics, topic);
	foreach(lc, topics)
	{
		if (cqrs_window_has_events((CqrsTopic *) lfirst(lc), lower, NULL,
								   snapshot))
			return true;
	}
	return false;
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
	long		wait = -1;
	ListCell   *lc;
	int			i;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);

	/* What the workers have done. */
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state == CQRS_WORKER_FREE ||
			worker->dboid != MyDatabaseId)
			continue;
		if (worker->state == CQRS_WORKER_STARTING && worker->pid == 0 &&
			TimestampDifferenceExceeds(worker->started_at, now,
									   LONGEST_START))
			worker->state = CQRS_WORKER_FAILED;
		foreach(lc, schedule)
		{
			Scheduled  *scheduled = (Scheduled *) lfirst(lc);

			if (scheduled->subscription_id != worker->subscription_id)
				continue;
			if (worker->state == CQRS_WORKER_FAILED)
			{
				scheduled->retry_at =
					TimestampTzPlusMilliseconds(now,
												restart_wait(scheduled->failures++));
				continue;
			}
			if (worker->drained_look > scheduled->drained_look)
			{
				scheduled->drained_look = worker->drained_look;
				scheduled->failures = 0;
			}
			scheduled->retry_at = worker->retry_at;
		}
		if (worker->state == CQRS_WORKER_FAILED)
			worker->state = CQRS_WORKER_FREE;
	}

	list_sort(schedule, compare_served);
	foreach(lc, schedule)
	{
		Scheduled  *scheduled = (Scheduled *) lfirst(lc);

		if (scheduled->due_look == PG_INT64_MAX)
			scheduled->due_look = seen_look;
		if (scheduled->due_look <= scheduled->drained_look)
			continue;
		if (scheduled->retry_at > now)
		{
			long		until = TimestampDifferenceMilliseconds(now,
																scheduled->retry_at);

			wait = wait < 0 ? until : Min(wait, until);
		}
		else if (!assign_worker(scheduled, now))
			contended = true;
	}
	if (contended)
	{
		/* Before a worker is done: it wakes us only if it sees this. */
		pg_atomic_write_u32(&cqrs_shared->contended, 1);
		wait = wait < 0 ? EXHAUSTED_WAIT : Min(wait, EXHAUSTED_WAIT);
	}
	LWLockRelease(cqrs_shared->lock);
	return wait;
}

/* Longest not served comes first. */
static int
compare_served(const ListCell *a, const ListCell *b)
{
	int64		left = ((const Scheduled *) lfirst(a))->served;
	int64		right = ((const Scheduled *) lfirst(b))->served;

	return (left > right) - (left < right);
}

/*
 * Have a worker deliver a subscription: the one that has it already; or a new
 * one; or one that has nothing to do. Returns false if there is none: then an
 * idle one that cannot be used was asked to exit. The lock is held.
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
				 slot->subscription_id == scheduled->subscription_id)
			worker = slot;
		else if (slot->state == CQRS_WORKER_IDLE &&
				 (slot->wanted_look <= slot->drained_look ||
				  slot->retry_at != 0))
		{
			/* Not one that has been given work, and is waking up. */
			if (slot->dboid == MyDatabaseId && slot->owner == scheduled->owner)
				idle = slot;
			else
				foreign = slot;
		}
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

	if (worker->subscription_id != scheduled->subscription_id)
	{
		worker->subscription_id = scheduled->subscription_id;
		worker->drained_look = scheduled->drained_look;
		worker->wanted_look = scheduled->drained_look;
		worker->retry_at = 0;
	}
	if (worker->wanted_look != scheduled->due_look || worker->retry_at != 0)
	{
		scheduled->served = ++assignments;
		worker->wanted_look = scheduled->due_look;
		worker->retry_at = 0;
		if (worker->latch != NULL)
			SetLatch(worker->latch);
	}
	return true;
}

/*
 * Ask for the process of a worker slot. Returns false, and says so once, if
 * there is no background worker to be had.
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
	{
		said_exhausted = false;
		return true;
	}
	if (!said_exhausted)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox in database \"%s\"",
						my_database_name),
				 errhint("Raise max_worker_processes.")));
	said_exhausted = true;
	return false;
}

/*
 * How long to wait, in milliseconds: until the next look if something is
 * pending, or the next poll, or what assign_workers() said.
 */
static long
next_wakeup(long wait)
{
	TimestampTz now = GetCurrentTimestamp();
	long		until;

	if (!cqrs_deliver)
		return -1;
	if (pg_atomic_read_u32(&my_slot->pending) != 0)
		until = TimestampDifferenceMilliseconds(now,
												TimestampTzPlusMilliseconds(looked,
																			cqrs_tick_interval));
	else
		until = TimestampDifferenceMilliseconds(now,
												TimestampTzPlusMilliseconds(polled,
																			cqrs_poll_interval));
	return wait < 0 ? until : Min(wait, until);
}
