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
 * 3. Clients that pull, and brokers, need a tick (see tick.c). If there are such
 *	  subscriptions, tick after a look that found out about a commit, and
 *	  notify those that listen; the handlers, which need none, do not wait for
 *	  it. The cursors of brokers are due only then.
 *	  The first look of a manager is followed by a tick in any case: what the
 *	  newest tick in the table shows may be of a time before a crash or a
 *	  promotion.
 *	  A tick is visible before a synchronous standby has it, if its commit's
 *	  wait for that was ended. So brokers get only what a tick shows whose
 *	  commit we saw done, and nothing cancels ours: SIGINT is ignored, and
 *	  SIGTERM ends us before we say so.
 * 4. Between looks, it has segments rotated and truncated (see maintain.c), one
 *	  at a time, so that this holds up no delivery; and puts commands that were
 *	  scheduled, and whose time has come, into the outbox (see release.c).
 * 5. The manager looks at the extension in each cycle. If it was dropped, or
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
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "launcher.h"
#include "maintain.h"
#include "registry.h"
#include "release.h"
#include "schedule.h"
#include "shmem.h"
#include "tick.h"
#include "version.h"
#include "window.h"

static CqrsDatabaseSlot *my_slot = NULL;

/* The extension was not found: nothing to manage. */
static bool nothing_here = false;
static Oid	my_extension = InvalidOid;

/* Does not change under us: who renames a database has us exit. */
static char *my_database_name = NULL;

/* The last look. */
static MemoryContext look_context = NULL;
static CqrsSnapshot *seen = NULL;
static int64 seen_look = 0;
static int64 seen_position = 0; /* drawn last before it */
static TimestampTz looked = 0;
static TimestampTz polled = 0;

/* What to tick for. */
static CqrsTopicSet tick_topics;
static bool tick_due = false;

static void manager_attach(int index);
static void manager_exit(int code, Datum arg);
static bool begin_cycle(void);
static void end_cycle(void);
static bool time_to_look(TimestampTz now, bool *poll);
static bool may_look(TimestampTz now);
static void look(bool poll);
static bool check_version(void);
static bool check_identity(void);
static void forget_look(void);
static bool find_topics(const CqrsSnapshot *lower, CqrsTopicSet *topics);
static void tick(void);
static long next_wakeup(TimestampTz now, long wait);

void
cqrs_manager_main(Datum arg)
{
	static uint32 wait_event = 0;

	cqrs_process_signals();
	pqsignal(SIGINT, PG_SIG_IGN);
	manager_attach(DatumGetInt32(arg));
	BackgroundWorkerInitializeConnectionByOid(my_slot->dboid, InvalidOid, 0);
	cqrs_process_settings("cqrs_outbox manager");

	look_context = AllocSetContextCreate(TopMemoryContext, "cqrs look",
										 ALLOCSET_SMALL_SIZES);
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
				wait = cqrs_schedule_assign(my_slot, my_database_name);
				if (tick_due)
				{
					tick();
					if (cqrs_schedule_has_brokers())
						wait = cqrs_schedule_assign(my_slot, my_database_name);
				}
				wait = cqrs_maintain_next(wait);
				wait = cqrs_release_next(my_slot, wait);
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
		cqrs_process_wait(next_wakeup(now, wait), PGINVALID_SOCKET,
						  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxManager"));
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
	cqrs_database_clear(slot);
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
	cqrs_database_clear(my_slot);
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
											cqrs_restart_wait(my_slot->failures));
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
	CqrsTopicSet topics;
	int64		position;
	MemoryContext oldcontext;
	int			i;

	/* What is committed from here on is announced again. */
	(void) pg_atomic_exchange_u32(&my_slot->pending, 0);
	pg_memory_barrier();
	cqrs_shmem_take_dirty(my_slot, &topics);

	if (!begin_cycle())
		proc_exit(0);
	polled = GetCurrentTimestamp();
	if (!check_version() || !check_identity())
	{
		end_cycle();
		return;
	}
	cqrs_schedule_refresh();
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
	cqrs_schedule_due(&topics, seen_look, false);
	end_cycle();
	looked = GetCurrentTimestamp();
	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		tick_topics.words[i] |= topics.words[i];
	tick_due = cqrs_schedule_pulled_topics() != NIL ||
		cqrs_schedule_has_brokers() || previous == NULL;
	if (previous != NULL)
		pfree(previous);
}

/*
 * Do library and extension fit each other? If not, say so once.
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
	forget_look();
	return false;
}

/*
 * Is this database the one that its extension was made for, or that adopted
 * what it holds? If not, say so once, and deliver nothing: CREATE DATABASE ...
 * TEMPLATE copied it, and the original delivers.
 */
static bool
check_identity(void)
{
	static bool said = false;

	if (!cqrs_registry_is_copy())
	{
		said = false;
		return true;
	}
	if (!said)
		ereport(LOG,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_outbox delivers nothing in database \"%s\"",
						my_database_name),
				 errdetail("It is a copy of another database, which delivers."),
				 errhint("Use cqrs_adopt() to have this database deliver what it holds.")));
	said = true;
	forget_look();
	return false;
}

/*
 * Once delivery begins again, everything is to be looked at.
 */
static void
forget_look(void)
{
	if (seen != NULL)
		pfree(seen);
	seen = NULL;
}

/*
 * Which topics have an event that lower does not show? Returns false if none
 * has.
 */
static bool
find_topics(const CqrsSnapshot *lower, CqrsTopicSet *topics)
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
		cqrs_topic_set_add(topics, topic->topic_id);
		found = true;
	}
	UnregisterSnapshot(snapshot);
	return found;
}

/*
 * Tick, for brokers and those who pull, and tell those of them who listen to a
 * topic's channel. That is done in a transaction of its own: a commit that
 * notifies has to wait for others that do.
 */
static void
tick(void)
{
	bool		notify = false;
	ListCell   *lc;
	int64		tick_id;

	if (!begin_cycle())
		proc_exit(0);
	tick_id = cqrs_tick_record();
	end_cycle();
	CHECK_FOR_INTERRUPTS();
	tick_due = false;
	pg_atomic_write_u64(&my_slot->durable_tick, tick_id);
	ConditionVariableBroadcast(&my_slot->ticked);
	cqrs_schedule_due(&tick_topics, seen_look, true);

	foreach(lc, cqrs_schedule_pulled_topics())
	{
		CqrsPulledTopic *topic = (CqrsPulledTopic *) lfirst(lc);

		if (!cqrs_topic_set_has(&tick_topics, topic->topic_id))
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
 * How long to wait, in milliseconds: until we may look again, or else until
 * the next poll; or what cqrs_schedule_assign() said.
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
