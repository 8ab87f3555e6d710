/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Finds the databases that have the extension, and starts a manager for
 *	  each that has something to do.
 *
 * Protocol
 *
 * 1. The launcher is connected to no database. Only a process connected to a
 *	  database can see whether it has the extension: the manager itself. A
 *	  manager that finds nothing to manage exits and frees its slot.
 * 2. At its start, the launcher probes each database that accepts connections
 *	  and is no template. Later, databases are requested: by the commit of
 *	  CREATE EXTENSION, of CREATE DATABASE, or of a transaction that emitted
 *	  where there is no slot.
 * 3. A manager that has nothing to do ends, and leaves its database RESTING (see
 *	  database.c) until something is announced, or due.
 * 4. No more than nmanagers run at the same time. Databases get them in the
 *	  order in which they came to wait. If all are taken, the manager that has
 *	  had nothing to look at for the longest time is asked to leave. But each
 *	  may stay for LONGEST_STAY, so that databases that are busy all the time
 *	  do not start managers all the time; for less, if so many wait that the
 *	  last one would wait for longer than QUEUE_WAIT.
 * 5. One manager is started at a time; the next when it has connected or
 *	  exited. So probing needs one free slot and one background worker.
 *	  If something was announced, a worker is started at the same time, for the
 *	  owner whose subscriptions were delivered last: so it has connected when
 *	  the manager knows what to deliver.
 * 6. A manager that exits for another reason than 1 leaves its slot requested,
 *	  with a delay that grows with failures in a row.
 *
 * The launcher starts when recovery is over: nothing of ours runs on a
 * standby, and a promoted one starts by probing.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/backoff.h"
#include "process/launcher.h"
#include "process/process.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

/*
 * How long to wait after a background worker could not be had, in milliseconds,
 * doubling. One may have just ended without the postmaster knowing yet.
 */
#define FIRST_EXHAUSTED_WAIT	10
#define LONGEST_EXHAUSTED_WAIT	1000

/* See point 4; in milliseconds. */
#define LONGEST_STAY	100
#define QUEUE_WAIT		300

/*
 * A manager that has not left this long after it was asked may be unable to;
 * in milliseconds.
 */
#define LEAVE_WAIT		200

/* The manager that was asked for last, until it has attached. */
static CqrsDatabaseSlot *starting = NULL;
static BackgroundWorkerHandle *starting_handle = NULL;

/* How often in a row none could be had, and when to try again. */
static int	exhausted = 0;
static TimestampTz exhausted_until = 0;

/* Logged once, until it is over. */
static bool said_exhausted = false;
static bool said_slots = false;

static void launcher_exit(int code, Datum arg);
static List *find_databases(Oid only);
static bool still_starting(void);
static void apply_settings(void);
static long start_next(List **to_probe);
static void request_databases(List **to_probe);
static CqrsDatabaseSlot *next_in_line(TimestampTz now, int *nwaiting,
									  long *wait);
static bool is_full(void);
static void make_room(TimestampTz now, int nwaiting, long *wait);
static CqrsDatabaseSlot *idlest(TimestampTz now, long stay, long *wait);
static void note_exhausted(TimestampTz now);
static bool start_manager(CqrsDatabaseSlot *slot, Oid dboid);
static void start_worker(const CqrsDatabaseSlot *slot);

/*
 * In the postmaster, while it preloads us.
 */
void
cqrs_launcher_register(void)
{
	BackgroundWorker worker;

	/* Delivering and ticking would go on behind pg_upgrade's back. */
	if (IsBinaryUpgrade)
		return;

	cqrs_process_describe(&worker, "cqrs_outbox launcher",
						  "cqrs_launcher_main");
	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}

void
cqrs_launcher_main(Datum arg)
{
	static uint32 wait_event = 0;
	List	   *to_probe;
	int			i;

	cqrs_process_signals();
	before_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	cqrs_shared->launcher_pid = MyProcPid;
	cqrs_shared->launcher_latch = MyLatch;
	cqrs_shared->launcher_started_at = cqrs_steady_now();

	/*
	 * A manager that the previous launcher had just asked for may never come.
	 * If it does come, whichever of it and ours attaches second exits.
	 */
	for (i = 0; i < cqrs_shared->nused; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];

		if (slot->state == CQRS_DATABASE_STARTING && slot->manager_pid == 0)
			slot->state = CQRS_DATABASE_REQUESTED;
	}
	LWLockRelease(cqrs_shared->lock);

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	cqrs_process_settings("cqrs_outbox launcher");
	pgstat_report_appname("cqrs_outbox launcher");

	to_probe = find_databases(InvalidOid);
	for (;;)
	{
		apply_settings();
		cqrs_process_wait(start_next(&to_probe), PGINVALID_SOCKET,
						  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxLauncher"));
	}
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	cqrs_shared->launcher_pid = 0;
	cqrs_shared->launcher_latch = NULL;
	LWLockRelease(cqrs_shared->lock);
}

/*
 * The databases that may have the extension: those that accept connections and
 * are no templates. With only, just that one, if it is among them. One that an
 * interrupted DROP DATABASE left behind accepts none, whatever datallowconn
 * says.
 */
static List *
find_databases(Oid only)
{
	List	   *databases = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	MemoryContext oldcontext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (!database->datallowconn || database->datistemplate ||
			database->datconnlimit == DATCONNLIMIT_INVALID_DB ||
			(OidIsValid(only) && database->oid != only))
			continue;
		oldcontext = MemoryContextSwitchTo(TopMemoryContext);
		databases = lappend_oid(databases, database->oid);
		MemoryContextSwitchTo(oldcontext);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return databases;
}

/*
 * If a setting changed by which managers reckon when there is something to do,
 * have those of all resting databases look again.
 */
static void
apply_settings(void)
{
	static int	segment_age = -1;
	static int	segment_size = -1;
	static int	retention = -1;
	static int	saga_retention = -1;
	static int	consumed_retention = -1;
	int			i;

	if (segment_age == cqrs_segment_age && segment_size == cqrs_segment_size &&
		retention == cqrs_idempotency_retention &&
		saga_retention == cqrs_saga_retention &&
		consumed_retention == cqrs_consumed_retention)
		return;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	for (i = 0; segment_age >= 0 && i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].state == CQRS_DATABASE_RESTING)
			cqrs_shared->databases[i].next_due = DT_NOBEGIN;
	LWLockRelease(cqrs_shared->lock);
	segment_age = cqrs_segment_age;
	segment_size = cqrs_segment_size;
	retention = cqrs_idempotency_retention;
	saga_retention = cqrs_saga_retention;
	consumed_retention = cqrs_consumed_retention;
}

/*
 * Start the next manager, if there is one to start. Returns how long to wait,
 * in milliseconds; -1: until woken.
 */
static long
start_next(List **to_probe)
{
	CqrsDatabaseSlot *slot;
	int			nwaiting;
	long		wait;

	if (still_starting())
		return -1;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	request_databases(to_probe);
	for (;;)
	{
		TimestampTz now = cqrs_steady_now();
		Oid			dboid;
		List	   *found;
		bool		announced;
		bool		started;

		slot = next_in_line(now, &nwaiting, &wait);
		if (slot == NULL || !cqrs_deliver)
			break;
		if (exhausted_until > now)
		{
			wait = cqrs_sooner(wait, now, exhausted_until);
			break;
		}
		if (is_full())
		{
			make_room(now, nwaiting, &wait);
			break;
		}

		slot->state = CQRS_DATABASE_STARTING;
		slot->announced = false;
		dboid = slot->dboid;

		/* Before the manager takes notice of it. */
		announced = pg_atomic_read_u32(&slot->pending) != 0;
		LWLockRelease(cqrs_shared->lock);
		found = find_databases(dboid);
		started = found != NIL && start_manager(slot, dboid);
		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		if (started)
		{
			cqrs_shared->exhausted = false;
			if (announced)
				start_worker(slot);
			wait = -1;
			break;
		}
		if (found == NIL)
		{
			/* It was dropped meanwhile, or never was one for us. */
			slot->state = CQRS_DATABASE_FREE;
			slot->dboid = InvalidOid;
			continue;
		}
		list_free(found);

		/*
		 * It keeps its place in line. An idle manager of ours may be in the
		 * way.
		 */
		slot->state = CQRS_DATABASE_REQUESTED;
		note_exhausted(now);
		make_room(now, nwaiting, &wait);
		wait = cqrs_sooner(wait, now, exhausted_until);
		break;
	}
	LWLockRelease(cqrs_shared->lock);
	return wait;
}

/*
 * Request managers for the databases to probe, as long as there are slots. The
 * lock is held exclusively.
 */
static void
request_databases(List **to_probe)
{
	while (*to_probe != NIL)
	{
		if (cqrs_database_request(linitial_oid(*to_probe)) == NULL)
		{
			if (!said_slots)
				ereport(LOG,
						(errmsg("cqrs_outbox cannot serve more than %d databases",
								cqrs_shared->ndatabases),
						 errhint("Raise cqrs_outbox.max_databases.")));
			said_slots = true;
			break;
		}
		*to_probe = list_delete_first(*to_probe);
	}
}

/*
 * The database that has waited for a manager for the longest time, or NULL.
 * *nwaiting gets how many wait; *wait, how long until there may be another, in
 * milliseconds (-1: until woken). The lock is held exclusively.
 *
 * A scheduled command is due by the wall clock. Somebody has to check whether
 * that was set; if there are no managers, we do.
 */
static CqrsDatabaseSlot *
next_in_line(TimestampTz now, int *nwaiting, long *wait)
{
	CqrsDatabaseSlot *first = NULL;
	int			i;

	*nwaiting = 0;
	*wait = -1;
	for (i = 0; i < cqrs_shared->nused; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];

		if (slot->state == CQRS_DATABASE_RESTING)
		{
			TimestampTz due = cqrs_database_next_due(slot);

			if (due <= now)
			{
				slot->state = CQRS_DATABASE_REQUESTED;
				slot->start_after = due == DT_NOBEGIN ? now : due;
			}
			else if (due != DT_NOEND)
				*wait = cqrs_sooner(cqrs_sooner(*wait, now, due), now,
									TimestampTzPlusMilliseconds(now,
																cqrs_poll_interval));
		}
		if (slot->state != CQRS_DATABASE_REQUESTED || slot->held > 0)
			continue;
		if (slot->start_after > now)
		{
			*wait = cqrs_sooner(*wait, now, slot->start_after);
			continue;
		}
		++*nwaiting;
		if (first == NULL || slot->start_after < first->start_after)
			first = slot;
	}
	return first;
}

/*
 * Are there as many managers as there may be? The lock is held.
 */
static bool
is_full(void)
{
	int			n = 0;
	int			i;

	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].state >= CQRS_DATABASE_STARTING)
			n++;
	return n >= cqrs_shared->nmanagers;
}

/*
 * Some wait for a manager: ask as many others to leave. The lock is held
 * exclusively.
 */
static void
make_room(TimestampTz now, int nwaiting, long *wait)
{
	long		stay = Min(LONGEST_STAY,
						   QUEUE_WAIT * cqrs_shared->nmanagers / nwaiting);
	int			i;

	for (i = 0; i < cqrs_shared->nused; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];
		TimestampTz until = TimestampTzPlusMilliseconds(slot->asked_to_leave,
														LEAVE_WAIT);

		if (slot->state != CQRS_DATABASE_RUNNING ||
			slot->asked_to_leave == 0 || until <= now)
			continue;
		*wait = cqrs_sooner(*wait, now, until);
		nwaiting--;
	}
	while (nwaiting-- > 0)
	{
		CqrsDatabaseSlot *slot = idlest(now, stay, wait);

		if (slot == NULL)
			break;
		slot->asked_to_leave = now;
		SetLatch(slot->manager_latch);
	}
}

/*
 * The database whose manager has had nothing to look at for the longest time, or
 * NULL; of those that have had one for stay milliseconds and were not asked for
 * it yet. The lock is held.
 */
static CqrsDatabaseSlot *
idlest(TimestampTz now, long stay, long *wait)
{
	CqrsDatabaseSlot *result = NULL;
	int			i;

	for (i = 0; i < cqrs_shared->nused; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];
		TimestampTz until = TimestampTzPlusMilliseconds(slot->started_at,
														stay);

		if (slot->state != CQRS_DATABASE_RUNNING || slot->asked_to_leave != 0)
			continue;
		if (until > now)
			*wait = cqrs_sooner(*wait, now, until);
		else if (result == NULL ||
				 pg_atomic_read_u64(&slot->looked_at) <
				 pg_atomic_read_u64(&result->looked_at))
			result = slot;
	}
	return result;
}

/*
 * There is no background worker to be had. If that lasts, it is logged once.
 */
static void
note_exhausted(TimestampTz now)
{
	long		wait = cqrs_backoff_exact(FIRST_EXHAUSTED_WAIT,
										  LONGEST_EXHAUSTED_WAIT, ++exhausted);

	exhausted_until = TimestampTzPlusMilliseconds(now, wait);
	if (wait < LONGEST_EXHAUSTED_WAIT)
		return;
	cqrs_shared->exhausted = true;
	if (!said_exhausted)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox"),
				 errhint("Raise max_worker_processes.")));
	said_exhausted = true;
}

/*
 * Is the manager started last not connected yet? Its slot is freed if it
 * never came to attach to it.
 */
static bool
still_starting(void)
{
	pid_t		pid;
	bool		result;

	if (starting == NULL)
		return false;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	result = starting->state == CQRS_DATABASE_STARTING;
	if (result && starting->manager_pid == 0 &&
		GetBackgroundWorkerPid(starting_handle, &pid) == BGWH_STOPPED)
	{
		starting->state = CQRS_DATABASE_REQUESTED;
		starting->start_after =
			TimestampTzPlusMilliseconds(cqrs_steady_now(),
										LONGEST_EXHAUSTED_WAIT);
		result = false;
	}
	LWLockRelease(cqrs_shared->lock);
	if (!result)
	{
		pfree(starting_handle);
		starting_handle = NULL;
		starting = NULL;
	}
	return result;
}

/*
 * Ask for a manager in a database. Returns false if there is no background
 * worker to be had.
 */
static bool
start_manager(CqrsDatabaseSlot *slot, Oid dboid)
{
	BackgroundWorker worker;
	MemoryContext oldcontext;
	bool		started;

	cqrs_process_describe(&worker, "cqrs_outbox manager", "cqrs_manager_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "cqrs_outbox manager for database %u",
			 dboid);
	worker.bgw_main_arg = Int32GetDatum(slot - cqrs_shared->databases);
	worker.bgw_notify_pid = MyProcPid;

	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &starting_handle);
	MemoryContextSwitchTo(oldcontext);
	if (started)
	{
		starting = slot;
		exhausted = 0;
		said_exhausted = false;
	}
	return started;
}

/*
 * Something was announced in a database that has no process: have a worker start
 * beside its manager, which will need one, most likely for the same owner as last
 * time. The lock is held exclusively.
 */
static void
start_worker(const CqrsDatabaseSlot *slot)
{
	CqrsWorkerSlot *unused = NULL;
	int			i;

	if (!OidIsValid(slot->worker_owner))
		return;
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state >= CQRS_WORKER_STARTING &&
			worker->dboid == slot->dboid)
			return;
		if (worker->state == CQRS_WORKER_FREE)
			unused = worker;
	}
	if (unused != NULL)
		(void) cqrs_process_start_worker(unused, slot->dboid,
										 slot->worker_owner, false);
}
