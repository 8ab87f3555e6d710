/*-------------------------------------------------------------------------
 *
 * assign.c
 *	  Which worker delivers which of the cursors that are due. Only the manager
 *	  uses this; manager.c has the protocol.
 *
 * Databases take turns, too. A manager that finds no worker notes since when it
 * waits, and when it last looked; others leave it one of the workers that are
 * idle or unused.
 *
 * Times are steady ones (see clock.c), also those that a worker leaves in its
 * slot.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "postmaster/bgworker.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "delivery/relay.h"
#include "process/assign.h"
#include "process/process.h"
#include "process/schedule.h"
#include "shared/clock.h"
#include "shared/database.h"

/* How often to look whether a worker can be had, in milliseconds. */
#define CONTENDED_WAIT	1000

/*
 * The same if the server has no process for it, doubling: one may have just
 * ended without the postmaster knowing yet.
 */
#define FIRST_EXHAUSTED_WAIT	10

/*
 * A database that waits, but has not looked for this long, loses its
 * precedence; in milliseconds.
 */
#define LONGEST_PRECEDENCE	3000

/*
 * A worker that has not attached after this time never will; in milliseconds.
 */
#define LONGEST_START	60000

static bool said_exhausted = false;

/* The server had no process for a worker, so often in a row. */
static int	exhausted = 0;

/* What the last call of cqrs_assign_workers() left. */
static bool any_waiting = false;	/* for a worker */
static bool any_due = false;	/* now, even if a worker is at it */
static bool any_starting = false;	/* a worker is */

static int	spare_workers(const CqrsDatabaseSlot *mine, TimestampTz now,
						  bool *across);
static long note_exhausted(CqrsDatabaseSlot *slot, long wait);
static bool is_any_starting(void);
static void note_results(CqrsDatabaseSlot *slot, TimestampTz now);
static void forget_lost_starts(TimestampTz now);
static bool came_early(const CqrsWorkerSlot *worker);
static bool assign_worker(CqrsDatabaseSlot *database, CqrsScheduled *scheduled,
						  bool calm, int *spare);
static void note_forgotten(const CqrsWorkerSlot *worker);

/*
 * Have workers deliver what is due. Returns how long until there is something
 * else to do, in milliseconds; -1: until woken.
 */
long
cqrs_assign_workers(CqrsDatabaseSlot *slot, const char *database_name)
{
	TimestampTz now = cqrs_steady_now();
	TimestampTz next = 0;
	long		wait = -1;
	int			spare;
	bool		across;
	bool		calm;
	bool		lasts;
	dlist_mutable_iter iter;

	calm = now < cqrs_schedule_calm_until() && slot->asked_to_leave == 0;
	any_waiting = any_due = false;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	slot->next_due = DT_NOEND;
	forget_lost_starts(now);
	note_results(slot, now);
	if (slot->worker_forgotten && cqrs_schedule_exists())
	{
		cqrs_schedule_all_careful();
		slot->worker_forgotten = false;
	}
	slot->exhausted = false;
	slot->assigned_at = now;
	spare = spare_workers(slot, now, &across);
	dlist_foreach_modify(iter, cqrs_schedule_due_list())
	{
		CqrsScheduled *scheduled = dlist_container(CqrsScheduled, node, iter.cur);
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
		if (calm && scheduled->put_off)
			when = Max(when, cqrs_schedule_calm_until());
		if (when > now)
		{
			next = next == 0 ? when : Min(next, when);
			continue;
		}
		any_due = true;
		if (!assign_worker(slot, scheduled, calm, &spare))
			any_waiting = true;
	}
	if (calm)
		next = next == 0 ? cqrs_schedule_calm_until() :
			Min(next, cqrs_schedule_calm_until());
	if (any_waiting)
	{
		/* Before a worker is done: it wakes us only if it sees this. */
		pg_atomic_write_u32(&cqrs_shared->contended,
							across ? CQRS_CONTENDED_ACROSS :
							CQRS_CONTENDED_WITHIN);
		wait = CONTENDED_WAIT;
	}
	if (!any_waiting)
		slot->waiting_since = 0;
	else if (slot->waiting_since == 0)
		slot->waiting_since = now;
	wait = note_exhausted(slot, wait);
	lasts = slot->exhausted;
	any_starting = is_any_starting();
	LWLockRelease(cqrs_shared->lock);

	if (lasts && !said_exhausted)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox in database \"%s\"",
						database_name),
				 errhint("Raise max_worker_processes.")));
	said_exhausted = lasts;

	return next == 0 ? wait : cqrs_sooner(wait, now, next);
}

/*
 * Is there something to deliver now, even if workers are at it?
 */
bool
cqrs_assign_busy(void)
{
	return any_due;
}

/*
 * May the manager end? Not while a cursor waits for a worker, as it would lose
 * its place; nor while a worker is starting, as nobody would notice if it
 * never came.
 */
bool
cqrs_assign_may_end(void)
{
	return !any_waiting && !any_starting;
}

/*
 * How many workers this database may take besides those at work: those that are
 * idle or unused, less one for each database that has waited for longer.
 * *across gets whether another database has any. The lock is held.
 */
static int
spare_workers(const CqrsDatabaseSlot *mine, TimestampTz now, bool *across)
{
	int			spare = 0;
	int			i;

	*across = false;
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state < CQRS_WORKER_STARTING || came_early(worker) ||
			(worker->state == CQRS_WORKER_IDLE &&
			 worker->request == worker->served))
			spare++;
		if (worker->state >= CQRS_WORKER_STARTING &&
			worker->dboid != mine->dboid)
			*across = true;
	}
	for (i = 0; i < cqrs_shared->nused; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];

		if (slot != mine && slot->state == CQRS_DATABASE_RUNNING &&
			slot->waiting_since != 0 &&
			(mine->waiting_since == 0 ||
			 slot->waiting_since < mine->waiting_since) &&
			!TimestampDifferenceExceeds(slot->assigned_at, now,
										LONGEST_PRECEDENCE))
			spare--;
	}
	return spare;
}

/*
 * How long to wait: as long as wait, unless the server had no process for a
 * worker. Only if that lasts, it stays in the slot for all to see. The lock is
 * held.
 */
static long
note_exhausted(CqrsDatabaseSlot *slot, long wait)
{
	if (!slot->exhausted)
	{
		exhausted = 0;
		return wait;
	}
	wait = cqrs_backoff_exact(FIRST_EXHAUSTED_WAIT, CONTENDED_WAIT,
							  ++exhausted);
	slot->exhausted = wait == CONTENDED_WAIT;
	return wait;
}

/*
 * Was a worker of this database asked for that is not there yet? The lock is
 * held.
 */
static bool
is_any_starting(void)
{
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state == CQRS_WORKER_STARTING && worker->pid == 0 &&
			worker->dboid == MyDatabaseId)
			return true;
	}
	return false;
}

/*
 * Note what the workers of this database have done. The slot tells whose
 * worker was lost last, until that cursor is drained, or scheduled no more.
 * The lock is held.
 */
static void
note_results(CqrsDatabaseSlot *slot, TimestampTz now)
{
	CqrsScheduledKey failed = {slot->failed_subscription, slot->failed_partition};
	CqrsScheduled *lost;
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];
		CqrsScheduled *scheduled;

		/* A worker that ended by itself may have left something to note. */
		if (worker->dboid != MyDatabaseId ||
			(worker->state == CQRS_WORKER_FREE &&
			 worker->request != worker->served))
			continue;
		scheduled = cqrs_schedule_find(worker->subscription_id,
									   worker->partition);
		if (worker->state == CQRS_WORKER_FAILED)
		{
			/* An event may have made it end. */
			if (scheduled != NULL)
			{
				scheduled->failed_until =
					TimestampTzPlusMilliseconds(now,
												cqrs_restart_wait(scheduled->failures++));
				scheduled->careful = CQRS_BATCH_EVENTS;
				scheduled->unfinished = true;
				cqrs_schedule_make_due(scheduled);
				failed = scheduled->key;
			}
			worker->state = CQRS_WORKER_FREE;
			continue;
		}

		/* No other cursor can use its connection, nor can another owner. */
		if (worker->broker && cqrs_schedule_exists() &&
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

		/* It may have failed before somebody wanted it tried again. */
		scheduled->failed_until =
			worker->retried_at == scheduled->retried_at ?
			worker->failed_until : 0;
		scheduled->careful = worker->careful;
		if (scheduled->retry_at != 0)
			cqrs_schedule_make_due(scheduled);
	}

	lost = failed.subscription_id == 0 ? NULL :
		cqrs_schedule_find(failed.subscription_id, failed.partition);
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
 * A worker that has not come for LONGEST_START will not. Its slot is free
 * again, even if the manager that asked for it is gone. The lock is held.
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
 * A slot is reused for another worker. If the one before was lost, and its manager
 * has not noted that yet, tell it that we forgot which one it was. The lock is held.
 */
static void
note_forgotten(const CqrsWorkerSlot *worker)
{
	CqrsDatabaseSlot *database;

	if (worker->state != CQRS_WORKER_FAILED)
		return;
	database = cqrs_database_find(worker->dboid);
	if (database != NULL)
		database->worker_forgotten = true;
}

/*
 * Was this worker started by the launcher, with a manager, and has had nothing to
 * deliver yet? The lock is held.
 */
static bool
came_early(const CqrsWorkerSlot *worker)
{
	return worker->state >= CQRS_WORKER_STARTING &&
		worker->subscription_id == 0;
}

/*
 * Have a worker deliver a cursor: the one that has it already, or a new one,
 * or one that has nothing to do. Returns false if there is none; then an idle
 * one that cannot be used was asked to exit. The lock is held.
 *
 * A broker's cursor gets a process of its own, which is given no other cursor:
 * it has a connection, and a client library that handlers had better not meet.
 *
 * If calm is set, a worker of the same owner gets one cursor after the other, before
 * another is started: true may mean that this one comes next.
 */
static bool
assign_worker(CqrsDatabaseSlot *database, CqrsScheduled *scheduled,
			  bool calm, int *spare)
{
	CqrsWorkerSlot *unused = NULL;
	CqrsWorkerSlot *early = NULL;
	CqrsWorkerSlot *idle = NULL;
	CqrsWorkerSlot *foreign = NULL;
	CqrsWorkerSlot *worker = NULL;
	bool		any = false;	/* does the owner have one already? */
	int			i;

	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *slot = &cqrs_shared->workers[i];

		any |= slot->state >= CQRS_WORKER_STARTING && !slot->broker &&
			slot->dboid == MyDatabaseId && slot->owner == scheduled->owner;
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
		else if (came_early(slot) && slot->dboid == MyDatabaseId &&
				 slot->owner == scheduled->owner && !scheduled->broker)
			early = slot;
		else if (slot->state == CQRS_WORKER_IDLE &&
				 slot->request == slot->served)
		{
			/* Not one that was given work and is just waking up. */
			if (slot->dboid == MyDatabaseId &&
				slot->owner == scheduled->owner &&
				!slot->broker && !scheduled->broker)
				idle = slot;
			else
				foreign = slot;
		}
	}

	/* Another owner takes another process. */
	if (worker != NULL && worker->owner != scheduled->owner)
	{
		worker->stop = true;
		if (worker->latch != NULL)
			SetLatch(worker->latch);
		return false;
	}

	/* For now, this is the next one's turn that is done. */
	if (calm && any && worker == NULL && early == NULL && !scheduled->broker)
	{
		if (idle == NULL)
			return true;
		worker = idle;
	}

	if (worker != NULL && worker->request != worker->served)
	{
		if (worker->wanted_look == scheduled->due_look)
			return true;		/* it is working on this */
	}
	else if (--*spare < 0)
		return false;			/* others have waited for longer */

	if (worker == NULL)
		worker = early;
	if (worker == NULL && unused != NULL)
	{
		note_forgotten(unused);
		if (cqrs_process_start_worker(unused, MyDatabaseId, scheduled->owner,
									  scheduled->broker))
			worker = unused;
		else
			database->exhausted = true;
	}
	if (worker == NULL && idle != NULL)
		worker = idle;
	if (worker == NULL)
	{
		if (foreign != NULL && (unused == NULL || database->exhausted))
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
		worker->consumer = scheduled->consumer;
		worker->drained_look = scheduled->drained_look;
		worker->wanted_look = scheduled->drained_look;
		worker->noted = true;
	}

	/* Those that wait now come first next time. */
	dlist_delete(&scheduled->node);
	dlist_push_tail(cqrs_schedule_due_list(), &scheduled->node);
	if (!scheduled->broker)
		database->worker_owner = scheduled->owner;
	worker->wanted_look = scheduled->due_look;
	worker->retried_at = scheduled->retried_at;
	worker->careful = scheduled->careful;
	worker->tell = calm;
	worker->request++;
	if (worker->latch != NULL)
		SetLatch(worker->latch);
	return true;
}
