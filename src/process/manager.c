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
 *	  to this look, which gets a number of its own. Each poll_interval, find by
 *	  the index which topics have something that nobody announced (see
 *	  topic_poll.c), and look at these. Then assign workers to what is due. What
 *	  was announced is looked at in any case, whatever a poll finds.
 * 3. Clients that pull, and brokers, need a tick (see tick.c). If there are such
 *	  subscriptions, tick after a look that found a commit, and notify those that
 *	  listen (see notify.c); handlers need no tick, and do not wait for it. The
 *	  cursors of brokers are due only then. If somebody else is just ticking, try
 *	  again soon. The first look in a database since the server started is
 *	  followed by a tick in any case: the newest tick in the table may be from
 *	  before a crash or a promotion. A tick is visible before a synchronous
 *	  standby has it, if its commit's wait for that was cancelled. So brokers
 *	  get only what is shown by a tick whose commit we saw complete. Nothing
 *	  cancels ours: SIGINT is ignored, and SIGTERM ends us before we say so.
 * 4. Between looks, it has segments rotated and truncated (see maintain.c), one
 *	  at a time, so that this holds up no delivery; and puts scheduled commands
 *	  whose time has come into the outbox (see release.c).
 * 5. The manager looks at the extension in each cycle. If it was dropped, or
 *	  made anew, it exits, and takes the database's workers with it. If it
 *	  does not fit the library any more, nothing is delivered until it does.
 *
 * 6. A manager that has had nothing to do for manager_idle_timeout ends (sooner,
 *	  if nothing was announced since it came), and leaves in the slot when there
 *	  will be something (see database.c). It also ends, whatever it is doing, if
 *	  the launcher needs its process for another database; then another one goes
 *	  on when this database gets its turn again. It need not hand over what it
 *	  knows: each manager begins by having all cursors looked at. Nobody tells us
 *	  that a prepared transaction was committed; so as long as there are any,
 *	  there is something to do.
 *
 * No topic may hold up another: what is done for one waits for nobody, and an
 * error in it has only that topic passed by. An error that concerns the database
 * as a whole ends the manager; the launcher starts another, after a while. If
 * the same error comes several times in a row, it is logged once.
 *
 * All durations and waits go by steady time: see clock.c.
 *
 * Memory: each cycle has a context that is reset. What outlives a cycle is in
 * a context of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/backoff.h"
#include "base/debug_point.h"
#include "control/adopt.h"
#include "deferred/release.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/version.h"
#include "log/tick.h"
#include "process/assign.h"
#include "process/epoch_close.h"
#include "process/launcher.h"
#include "process/maintain.h"
#include "process/notify.h"
#include "process/process.h"
#include "process/schedule.h"
#include "process/topic_poll.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

/* When to try again if somebody else ticks, in milliseconds. */
#define TICK_LOCKED_WAIT	10

/*
 * Some changes nobody announces: say, a client has acknowledged what kept a
 * segment. So a database in which that may happen does not rest for longer than
 * this, doubling from one manager to the next; in milliseconds.
 */
#define FIRST_REST			(16 * INT64CONST(1000))
#define LONGEST_REST		(1024 * INT64CONST(1000))

/* Check whether the manager is idle at most this often, in milliseconds. */
#define SHORTEST_IDLE		10

/*
 * A manager that nobody has told anything ends after this time with nothing to
 * do; and no manager ends for a rest that is shorter; in milliseconds.
 */
#define UNTOLD_IDLE			10000

/*
 * A manager that was asked to leave while cursors wait for a worker does so
 * only after this time, in milliseconds.
 */
#define LONGEST_STAY		5000

/*
 * A manager that ran for this long, in seconds, does not count as one more
 * failure in a row.
 */
#define LONG_ENOUGH			10

static CqrsDatabaseSlot *my_slot = NULL;

static emit_log_hook_type prev_emit_log_hook = NULL;

/* The extension was not found: nothing to manage. */
static bool nothing_here = false;
static Oid	my_extension = InvalidOid;

/* Does not change under us: renaming a database makes us exit. */
static char *my_database_name = NULL;

static MemoryContext cycle_context = NULL;

/* The last look. */
static bool seen = false;
static int64 seen_look = 0;
static TimestampTz looked = 0;

/* When there was last something to do. */
static TimestampTz active_at = 0;
static bool was_told = false;	/* ... because somebody announced it */

/* Until when the schedule and the others need not be looked at; DT_NOEND. */
static TimestampTz work_due = DT_NOEND;

/* We are ending for lack of anything to do, or because others wait. */
static bool resting = false;
static TimestampTz rest_until = DT_NOEND;

/* Whatever is announced, all topics are to be looked at. */
static bool look_at_all = false;

/* What to tick for. */
static CqrsTopicSet tick_topics;
static bool tick_due = false;

static void manager_attach(int index);
static void manager_exit(int code, Datum arg);
static void note_end(ErrorData *edata);
static bool begin_cycle(void);
static void end_cycle(void);
static long work(void);
static bool time_to_rest(TimestampTz now);
static long idle_timeout(void);
static TimestampTz find_rest(TimestampTz now);
static bool has_prepared(void);
static bool time_to_look(TimestampTz now);
static bool may_look(TimestampTz now);
static void look(const CqrsTopicSet *found);
static bool check_version(void);
static bool check_identity(void);
static bool tick(void);
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

	/*
	 * From here on, the launcher need not wait for us: to look at the
	 * extension may mean to wait for who is dropping it, as long as that one
	 * likes.
	 */
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	my_slot->state = CQRS_DATABASE_RUNNING;
	LWLockRelease(cqrs_shared->lock);
	cqrs_shmem_wake_launcher();

	cycle_context = AllocSetContextCreate(TopMemoryContext, "cqrs cycle",
										  ALLOCSET_DEFAULT_SIZES);
	if (!begin_cycle())
		proc_exit(0);
	my_database_name = MemoryContextStrdup(TopMemoryContext,
										   get_database_name(MyDatabaseId));
	end_cycle();
	ereport(DEBUG1,
			(errmsg_internal("cqrs_outbox manager started")));

	for (;;)
	{
		TimestampTz now;
		long		wait = -1;

		MemoryContextSwitchTo(cycle_context);
		MemoryContextReset(cycle_context);
		if (cqrs_deliver)
			wait = work();

		/*
		 * From here on, the next emitter sets our latch. We ask for that only
		 * once it may be time to look again: until then they need not wake
		 * us.
		 */
		now = cqrs_steady_now();
		if (!cqrs_deliver || time_to_rest(now))
			proc_exit(0);
		if (may_look(now))
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
 * Take the slot that the launcher chose, or exit if it has no use for us any
 * more.
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
	slot->started_at = active_at = cqrs_steady_now();
	slot->next_due = DT_NOEND;
	pg_atomic_write_u64(&slot->next_run_at, (uint64) DT_NOBEGIN);
	pg_atomic_write_u64(&slot->looked_at, (uint64) active_at);
	pg_atomic_write_u32(&slot->asleep, 0);
	held = slot->held > 0;
	LWLockRelease(cqrs_shared->lock);
	before_shmem_exit(manager_exit, (Datum) 0);
	prev_emit_log_hook = emit_log_hook;
	emit_log_hook = note_end;
	if (held)
		proc_exit(0);
}

/*
 * Free the slot, or leave it to the launcher to start another manager.
 */
static void
manager_exit(int code, Datum arg)
{
	TimestampTz now = cqrs_steady_now();
	bool		careful;
	int			i;

	(void) cqrs_schedule_uneasy(&careful);
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	my_slot->worker_forgotten |= careful;
	if (code == 0 || now > my_slot->started_at + LONG_ENOUGH * USECS_PER_SEC)
		my_slot->failures = my_slot->failure_hash = 0;
	else
		my_slot->failures++;
	cqrs_database_clear(my_slot);
	my_slot->start_after = now;
	if (resting)
		cqrs_database_rest(my_slot, rest_until);
	else if (nothing_here && !my_slot->announced)
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
		my_slot->known = my_slot->told = false;
		pg_atomic_write_u64(&my_slot->durable_tick, 0);
		pg_atomic_write_u64(&my_slot->recorded_tick, 0);
		for (i = 0; i < cqrs_shared->nworkers; i++)
		{
			CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

			/* A worker that is only starting, too: it will see. */
			if (worker->state < CQRS_WORKER_STARTING ||
				worker->dboid != MyDatabaseId)
				continue;
			worker->stop = true;
			if (worker->latch != NULL)
				SetLatch(worker->latch);
		}
	}
	ConditionVariableBroadcast(&cqrs_shared->exited);
	LWLockRelease(cqrs_shared->lock);
	cqrs_shmem_wake_launcher();
}

/*
 * Called for each message that is logged. If managers end soon after their
 * start, with the same error several times in a row, it is logged once;
 * cqrs_health() tells that it goes on.
 */
static void
note_end(ErrorData *edata)
{
	if (edata->elevel >= ERROR && edata->message != NULL &&
		cqrs_steady_now() <= my_slot->started_at + LONG_ENOUGH * USECS_PER_SEC)
	{
		uint32		hash = hash_bytes((const unsigned char *) edata->message,
									  strlen(edata->message)) | 1;

		/* Nobody else writes it while we are here. */
		if (my_slot->failure_hash == hash)
			edata->output_to_server = false;
		my_slot->failure_hash = hash;
	}
	if (prev_emit_log_hook)
		prev_emit_log_hook(edata);
}

/*
 * Begin a transaction in which the extension cannot be dropped. Returns false,
 * with no transaction, if it is not there, or is not the same one as before.
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

		/* It was made anew: start afresh. */
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
	MemoryContextSwitchTo(cycle_context);
	pgstat_report_stat(false);
}

/*
 * Do what there is to do in a cycle. Returns how long to wait for more, in
 * milliseconds; -1: until woken.
 */
static long
work(void)
{
	CqrsTopicSet found = {0};
	long		wait;

	work_due = DT_NOEND;
	if (time_to_look(cqrs_steady_now()))
		look(&found);
	if (seen && cqrs_poll_next(&found))
		look(&found);
	if (!seen)
		return -1;
	wait = cqrs_assign_workers(my_slot, my_database_name);
	if (tick_due && tick() && cqrs_schedule_has_brokers())
		wait = cqrs_assign_workers(my_slot, my_database_name);
	wait = cqrs_epoch_next(my_slot, seen_look, wait);
	wait = cqrs_notify_next(wait);
	wait = cqrs_release_next(my_slot, wait);
	if (tick_due)
		wait = wait < 0 ? TICK_LOCKED_WAIT : Min(wait, TICK_LOCKED_WAIT);
	if (wait >= 0)
		work_due = TimestampTzPlusMilliseconds(cqrs_steady_now(), wait);
	return cqrs_maintain_next(wait);
}

/*
 * Is it time to end, because there is nothing to do, or others wait?
 */
static bool
time_to_rest(TimestampTz now)
{
	TimestampTz asked = my_slot->asked_to_leave;
	bool		careful;

	if (pg_atomic_read_u32(&my_slot->pending) != 0 || look_at_all ||
		cqrs_assign_busy() || work_due <= now)
		active_at = now;
	if (asked != 0)
		resting = cqrs_assign_may_end() ||
			TimestampDifferenceExceeds(asked, now, LONGEST_STAY);
	else
		resting = idle_timeout() >= 0 &&
			TimestampDifferenceExceeds(active_at, now, idle_timeout()) &&
			cqrs_assign_may_end() && !cqrs_schedule_uneasy(&careful);
	if (!resting)
		return false;

	rest_until = find_rest(now);
	if (asked == 0 &&
		(look_at_all ||
		 rest_until < TimestampTzPlusMilliseconds(now, Min(idle_timeout(),
														   UNTOLD_IDLE))))
	{
		/* Ending for such a short time is not worth it. */
		active_at = now;
		resting = false;
	}
	else
		my_slot->rests = was_told ? 0 : my_slot->rests + 1;
	return resting;
}

/*
 * After how long with nothing to do to end, in milliseconds; -1: never.
 *
 * What was announced is likely to be followed by more, soon. A look at a database
 * is not: at the server's start, there is one at each.
 */
static long
idle_timeout(void)
{
	return was_told ? cqrs_manager_idle_timeout :
		Min(cqrs_manager_idle_timeout, UNTOLD_IDLE);
}

/*
 * When there will be something to do, if nobody announces anything.
 */
static TimestampTz
find_rest(TimestampTz now)
{
	TimestampTz until = work_due;
	bool		polled = true;

	if (seen)
	{
		if (!begin_cycle())
			proc_exit(0);
		CQRS_DEBUG_POINT("manager_before_rest");
		until = Min(until, cqrs_maintain_due(&polled));
		if (pg_atomic_exchange_u32(&my_slot->prepared, 0) != 0)
		{
			if (has_prepared())
			{
				pg_atomic_write_u32(&my_slot->prepared, 1);
				until = Min(until,
							TimestampTzPlusMilliseconds(now,
														cqrs_poll_interval));
			}
			else
			{
				/*
				 * The last prepared transaction may have just been committed.
				 */
				look_at_all = true;
				until = now;
			}
		}
		end_cycle();
	}
	else
		pg_atomic_write_u64(&my_slot->next_run_at, (uint64) DT_NOEND);
	if (polled)
		until = Min(until,
					TimestampTzPlusMilliseconds(now,
												cqrs_backoff_exact(FIRST_REST, LONGEST_REST,
																   my_slot->rests + 1)));
	return until;
}

static bool
has_prepared(void)
{
	bool		result;

	result = cqrs_admin_run("SELECT FROM pg_catalog.pg_prepared_xact() WHERE dbid = $1",
							1,
							CQRS_ARG(OIDOID, ObjectIdGetDatum(MyDatabaseId))) > 0;
	return result;
}

/*
 * Has anything been announced, tick_interval after the last look? Or has
 * nothing been seen yet?
 */
static bool
time_to_look(TimestampTz now)
{
	if (pg_atomic_read_u32(&my_slot->pending) != 0 || look_at_all)
		return may_look(now);
	return !seen && TimestampDifferenceExceeds(looked, now, cqrs_poll_interval);
}

static bool
may_look(TimestampTz now)
{
	return TimestampDifferenceExceeds(looked, now, cqrs_tick_interval);
}

/*
 * Look at what is committed now, and note which cursors have something up to
 * here: those of topics that were announced, or that a poll has found.
 */
static void
look(const CqrsTopicSet *found)
{
	CqrsTopicSet topics;
	CqrsTopicSet announced;
	bool		first = !seen;
	int			i;

	/* What is committed from here on is announced again. */
	if (pg_atomic_exchange_u32(&my_slot->pending, 0) != 0)
	{
		was_told = true;
		pg_atomic_write_u64(&my_slot->looked_at, (uint64) cqrs_steady_now());
	}
	pg_memory_barrier();
	cqrs_shmem_take_dirty(my_slot, &topics);
	announced = topics;
	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		topics.words[i] |= found->words[i];

	if (!begin_cycle())
		proc_exit(0);
	CQRS_DEBUG_POINT("manager_before_look");
	looked = cqrs_steady_now();
	if (!check_version() || !check_identity())
	{
		end_cycle();
		return;
	}
	cqrs_schedule_refresh(cqrs_shared->crashed && !my_slot->known);
	if (!seen || look_at_all)
		memset(&topics, 0xFF, sizeof(topics));
	look_at_all = false;

	/* Some transactions may have been prepared before the server stopped. */
	if (!my_slot->known && max_prepared_xacts > 0)
		pg_atomic_write_u32(&my_slot->prepared, 1);

	/*
	 * Workers are told the number before they take their snapshots. So theirs
	 * will show all that this one does.
	 */
	cqrs_poll_looked(&topics);
	seen_look = pg_atomic_add_fetch_u64(&cqrs_shared->looks, 1);
	cqrs_schedule_due(&topics, seen_look, false);
	if (first)
		cqrs_schedule_begin_calmly(&announced);
	end_cycle();
	looked = cqrs_steady_now();
	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		tick_topics.words[i] |= topics.words[i];
	tick_due |= cqrs_schedule_pulled_topics() != NIL ||
		cqrs_schedule_has_brokers() || !my_slot->known;
	seen = true;
}

/*
 * Do library and extension fit each other? If not, say so once.
 */
static bool
check_version(void)
{
	if (cqrs_registry_usable())
		return true;
	if (!my_slot->told)
		cqrs_version_report(LOG, psprintf("cqrs_outbox delivers nothing in database \"%s\"",
										  my_database_name));
	my_slot->told = true;
	seen = false;
	return false;
}

/*
 * Is this the database in which the extension was made, or that adopted what
 * it holds? If not, it is a copy by CREATE DATABASE ... TEMPLATE, and the
 * original delivers: say so once, and deliver nothing.
 */
static bool
check_identity(void)
{
	if (!cqrs_registry_is_copy())
	{
		/* The database it was copied from may stop being a template. */
		if (cqrs_registry_lacks_identity())
			cqrs_adopt_identity();
		my_slot->told = false;
		return true;
	}
	if (!my_slot->told)
		ereport(LOG,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_outbox delivers nothing in database \"%s\"",
						my_database_name),
				 errdetail("It is a copy of another database, which delivers."),
				 errhint("Use cqrs_adopt() to have this database deliver what it holds.")));
	my_slot->told = true;
	seen = false;
	return false;
}

/*
 * Tick, for brokers and clients that pull. Returns false if somebody else is
 * just ticking: then it is still due.
 */
static bool
tick(void)
{
	int64		tick_id;

	if (!begin_cycle())
		proc_exit(0);
	tick_id = cqrs_tick_record(false);
	end_cycle();
	if (tick_id == 0)
		return false;
	CHECK_FOR_INTERRUPTS();
	tick_due = false;
	my_slot->known = true;
	pg_atomic_write_u64(&my_slot->durable_tick, tick_id);
	ConditionVariableBroadcast(&my_slot->ticked);
	cqrs_schedule_due(&tick_topics, seen_look, true);
	cqrs_notify_add(&tick_topics);
	memset(&tick_topics, 0, sizeof(tick_topics));
	return true;
}

/*
 * How long to wait, in milliseconds: until we may look again, or else until
 * the next poll; or what work() said.
 */
static long
next_wakeup(TimestampTz now, long wait)
{
	long		timeout;

	if (!may_look(now))
		timeout = TimestampDifferenceMilliseconds(now,
												  TimestampTzPlusMilliseconds(looked,
																			  cqrs_tick_interval));
	else if (look_at_all)
		timeout = 0;
	else if (seen)
		timeout = cqrs_poll_wait();
	else
		timeout = cqrs_poll_interval;
	if (idle_timeout() >= 0)
	{
		long		idle = Max(idle_timeout(), SHORTEST_IDLE) + 1;

		timeout = Min(timeout,
					  TimestampDifferenceMilliseconds(now,
													  TimestampTzPlusMilliseconds(active_at,
																				  idle)));
	}
	return wait < 0 ? timeout : Min(wait, timeout);
}
