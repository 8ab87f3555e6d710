/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Finds the databases that have the extension, and starts a manager in
 *	  each.
 *
 * Protocol
 *
 * 1. The launcher is connected to no database. Whether one has the extension,
 *	  only a process connected to it can see: the manager itself. One that
 *	  finds nothing to manage exits and frees its slot.
 * 2. At its start, the launcher has each database probed that accepts
 *	  connections and is no template. Later, databases are requested: by the
 *	  commit of CREATE EXTENSION, of CREATE DATABASE, or of a transaction that
 *	  emitted where no manager is.
 * 3. One manager is started at a time; the next when it has connected or
 *	  exited. So probing needs one free slot and one background worker.
 * 4. A manager that exits otherwise than by 1 leaves its slot requested, with
 *	  a delay that grows with failures in a row.
 *
 * The launcher starts when recovery is over: nothing of ours runs on a
 * standby, and a promoted one starts by probing.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

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

#include "clock.h"
#include "launcher.h"
#include "shmem.h"

/* How long to wait after a background worker could not be had. */
#define EXHAUSTED_WAIT	1000

/* The manager that was asked for last, until it has attached. */
static CqrsDatabaseSlot *starting = NULL;
static BackgroundWorkerHandle *starting_handle = NULL;

/* Said once, until it is over. */
static bool said_exhausted = false;
static bool said_slots = false;

static void launcher_exit(int code, Datum arg);
static List *find_databases(Oid only);
static bool still_starting(void);
static long start_next(List **to_probe);
static bool start_manager(CqrsDatabaseSlot *slot, Oid dboid);

/*
 * In the postmaster, while it preloads us.
 */
void
cqrs_launcher_register(void)
{
	BackgroundWorker worker = {0};

	/* Delivering and ticking would go on behind pg_upgrade's back. */
	if (IsBinaryUpgrade)
		return;

	strlcpy(worker.bgw_name, "cqrs_outbox launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "cqrs_outbox launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "cqrs_outbox", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "cqrs_launcher_main", BGW_MAXLEN);
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
	 * What the launcher before us had just asked for may never come. If it
	 * does, it or ours is the second to attach, and exits.
	 */
	for (i = 0; i < cqrs_shared->ndatabases; i++)
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
		cqrs_process_wait(start_next(&to_probe), PGINVALID_SOCKET,
						  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxLauncher"));
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
 * The databases that may have the extension: all that accept connections and
 * are no templates; or just one, if it is of those. One that an interrupted
 * DROP DATABASE left behind accepts none, whatever datallowconn says.
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
 * Start the next manager, if there is one to start. Returns how long to wait,
 * in milliseconds; -1: until woken.
 */
static long
start_next(List **to_probe)
{
	TimestampTz now = cqrs_steady_now();
	long		wait = -1;
	int			i;

	if (still_starting())
		return -1;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
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

	for (i = 0; i < cqrs_shared->ndatabases; i++)
	{
		CqrsDatabaseSlot *slot = &cqrs_shared->databases[i];
		Oid			dboid = slot->dboid;
		List	   *found;
		bool		started;

		if (slot->state != CQRS_DATABASE_REQUESTED || slot->held > 0)
			continue;
		if (slot->start_after > now)
		{
			long		until = TimestampDifferenceMilliseconds(now,
																slot->start_after);

			wait = wait < 0 ? until : Min(wait, until);
			continue;
		}

		slot->state = CQRS_DATABASE_STARTING;
		slot->announced = false;
		LWLockRelease(cqrs_shared->lock);
		found = find_databases(dboid);
		started = found != NIL && start_manager(slot, dboid);
		list_free(found);
		if (started)
			return -1;

		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		slot->state = CQRS_DATABASE_REQUESTED;
		if (found == NIL)
		{
			/* Dropped meanwhile, or it never was one for us. */
			slot->state = CQRS_DATABASE_FREE;
			slot->dboid = InvalidOid;
			continue;
		}
		slot->exhausted = true;
		slot->start_after = TimestampTzPlusMilliseconds(now, EXHAUSTED_WAIT);
		wait = EXHAUSTED_WAIT;
		break;
	}
	LWLockRelease(cqrs_shared->lock);
	return wait;
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
			TimestampTzPlusMilliseconds(cqrs_steady_now(), EXHAUSTED_WAIT);
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
 * Ask for a manager in a database. Returns false, and says so once, if there
 * is no background worker to be had.
 */
static bool
start_manager(CqrsDatabaseSlot *slot, Oid dboid)
{
	BackgroundWorker worker = {0};
	MemoryContext oldcontext;
	bool		started;

	snprintf(worker.bgw_name, BGW_MAXLEN, "cqrs_outbox manager for database %u",
			 dboid);
	strlcpy(worker.bgw_type, "cqrs_outbox manager", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "cqrs_outbox", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "cqrs_manager_main", BGW_MAXLEN);
	worker.bgw_main_arg = Int32GetDatum(slot - cqrs_shared->databases);
	worker.bgw_notify_pid = MyProcPid;

	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &starting_handle);
	MemoryContextSwitchTo(oldcontext);
	if (started)
	{
		starting = slot;
		said_exhausted = false;
	}
	else if (!said_exhausted)
	{
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots for cqrs_outbox"),
				 errhint("Raise max_worker_processes.")));
		said_exhausted = true;
	}
	return started;
}
