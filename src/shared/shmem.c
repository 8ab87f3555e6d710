/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  What the processes share, and what emitters tell the managers.
 *
 * A transaction that emitted tells its database's manager after its commit
 * has become visible, and after its invalidations were sent: it may have
 * changed the registry. That is later than XACT_EVENT_COMMIT. One that created the extension, or a database that may
 * have it, tells the launcher. So does one that emitted in a database without
 * a slot: CREATE DATABASE may have copied the extension there. One that scheduled
 * a command, or removed a scheduled one, tells the manager for when; see
 * release.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/logicallauncher.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/resowner.h"

#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "process/utility.h"
#include "shared/shmem.h"

/* After an unexpected exit: milliseconds to wait, doubling up to a minute. */
#define FIRST_RESTART_WAIT	500
#define LONGEST_RESTART_WAIT	60000

CqrsShared *cqrs_shared = NULL;

static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
#if CQRS_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif

/* What this transaction will tell when it commits. */
static bool emitted = false;
static CqrsTopicSet emitted_topics;
static Oid	announced = InvalidOid;

/*
 * The first commands that this transaction scheduled, and that it removed; or
 * DT_NOEND.
 */
static TimestampTz scheduled_from = DT_NOEND;
static TimestampTz removed_from = DT_NOEND;

/* What the transaction that is just ending tells. */
static bool tell_manager = false;
static bool tell_prepared = false;
static TimestampTz tell_run_at = DT_NOEND;
static Oid	tell_launcher = InvalidOid;

/* Our database's slot, when it was last found. */
static CqrsDatabaseSlot *my_database = NULL;

/* SIGTERM may end the process quietly: it only waits. */
static volatile sig_atomic_t waiting = false;

static Size shmem_size(void);
static void shmem_request(void);
static void shmem_startup(void);
static void share_processes(void);
static CqrsDatabaseSlot *my_database_slot(void);
static void at_xact_end(XactEvent event, void *arg);
static void at_release(ResourceReleasePhase phase, bool is_commit,
					   bool is_top_level, void *arg);
static void handle_sigterm(SIGNAL_ARGS);

PG_FUNCTION_INFO_V1(cqrs_announce);

/*
 * Ask for shared memory; in the postmaster, while it preloads us.
 */
void
cqrs_shmem_init(void)
{
#if CQRS_HAVE_SHMEM_REQUEST_HOOK
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
#else
	shmem_request();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/*
 * Once a process, preloaded or not.
 */
void
cqrs_shmem_init_process(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterResourceReleaseCallback(at_release, NULL);
}

/*
 * Raises 55000 if there are no background workers.
 */
void
cqrs_require_preloaded(void)
{
	if (cqrs_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_outbox is not preloaded"),
				 errdetail("Nothing is delivered in the background."),
				 errhint("Add cqrs_outbox to shared_preload_libraries and restart the server.")));
}

/*
 * cqrs.announce(): the extension's scripts end with it.
 */
Datum
cqrs_announce(PG_FUNCTION_ARGS)
{
	cqrs_catalog_invalidate_registry();
	cqrs_shmem_changed();
	cqrs_shmem_announce(MyDatabaseId);
	PG_RETURN_VOID();
}

/*
 * This transaction emitted to a topic, or changed who gets its events: when it
 * commits, have the manager look at that topic.
 */
void
cqrs_shmem_emitted(int32 topic_id)
{
	emitted = true;
	cqrs_topic_set_add(&emitted_topics, topic_id);
}

/*
 * The same for any topic: who knows.
 */
void
cqrs_shmem_changed(void)
{
	emitted = true;
	memset(&emitted_topics, 0xFF, sizeof(emitted_topics));
}

/*
 * This transaction changed something else that is the manager's concern.
 */
void
cqrs_shmem_look(void)
{
	emitted = true;
}

/*
 * This transaction scheduled a command for that time: when it commits, have the
 * manager know. DT_NOBEGIN: any time.
 */
void
cqrs_shmem_command_scheduled(TimestampTz run_at)
{
	scheduled_from = Min(scheduled_from, run_at);
}

/*
 * This transaction removed a command scheduled for that time. However it ends,
 * have the manager know: it passes by what somebody is removing, and that may
 * be there again, also if only a savepoint is rolled back.
 */
void
cqrs_shmem_command_removed(TimestampTz run_at)
{
	removed_from = Min(removed_from, run_at);
}

/*
 * A command may be scheduled for that time. Returns whether the manager might
 * have looked too late. Needs no lock.
 */
bool
cqrs_shmem_lower_next_run_at(CqrsDatabaseSlot *slot, TimestampTz run_at)
{
	uint64		known = pg_atomic_read_u64(&slot->next_run_at);

	while (run_at < (TimestampTz) known)
		if (pg_atomic_compare_exchange_u64(&slot->next_run_at, &known,
										   (uint64) run_at))
			return true;
	return false;
}

void
cqrs_topic_set_add(CqrsTopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_TOPIC_BITS;

	topics->words[bit / 64] |= UINT64CONST(1) << (bit % 64);
}

bool
cqrs_topic_set_has(const CqrsTopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_TOPIC_BITS;

	return (topics->words[bit / 64] & (UINT64CONST(1) << (bit % 64))) != 0;
}

/*
 * Which topics of a database were announced since the last time.
 */
void
cqrs_shmem_take_dirty(CqrsDatabaseSlot *slot, CqrsTopicSet *topics)
{
	int			i;

	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		topics->words[i] = pg_atomic_read_u64(&slot->dirty[i]) == 0 ? 0 :
			pg_atomic_exchange_u64(&slot->dirty[i], 0);
}

/*
 * When this transaction commits, have the launcher look for the extension in
 * this database.
 */
void
cqrs_shmem_announce(Oid dboid)
{
	announced = dboid;
}

/*
 * A worker slot became free, or something else changed that any manager may
 * be waiting for. The lock is held.
 */
void
cqrs_shmem_wake_all_managers(void)
{
	int			i;

	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].manager_pid != 0)
			SetLatch(cqrs_shared->databases[i].manager_latch);
}

void
cqrs_shmem_wake_launcher(void)
{
	Latch	   *latch = cqrs_shared->launcher_latch;

	if (latch != NULL)
		SetLatch(latch);
}

/*
 * The newest tick of this database that no crash, and no failover to a
 * synchronous standby, takes back; 0: none is known.
 */
int64
cqrs_shmem_durable_tick(void)
{
	int64		durable;
	int64		recorded;

	cqrs_shmem_manager_ticks(&durable, &recorded);
	return durable;
}

/*
 * The same, and the one that the manager recorded last; 0: none.
 */
void
cqrs_shmem_manager_ticks(int64 *durable, int64 *recorded)
{
	CqrsDatabaseSlot *slot = my_database_slot();

	*durable = slot ? pg_atomic_read_u64(&slot->durable_tick) : 0;
	*recorded = slot ? pg_atomic_read_u64(&slot->recorded_tick) : 0;
}

/*
 * The manager is recording this tick.
 */
void
cqrs_shmem_tick_recorded(int64 tick_id)
{
	CqrsDatabaseSlot *slot = my_database_slot();

	if (slot != NULL)
		pg_atomic_write_u64(&slot->recorded_tick, tick_id);
}

/*
 * The slot of this database, or NULL.
 */
static CqrsDatabaseSlot *
my_database_slot(void)
{
	CqrsDatabaseSlot *slot;

	if (cqrs_shared == NULL)
		return NULL;
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	slot = cqrs_database_find(MyDatabaseId);
	LWLockRelease(cqrs_shared->lock);
	return slot;
}

/*
 * Signal handling of managers and workers. To be called first in their main
 * functions.
 */
void
cqrs_process_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	BackgroundWorkerUnblockSignals();
}

/*
 * Settings of managers and workers: nothing that ALTER ROLE or ALTER DATABASE
 * may have set for ordinary sessions. RESET returns to these.
 */
void
cqrs_process_settings(const char *application_name)
{
	const char *const settings[][2] = {
		{"application_name", application_name},
		{"role", "none"},
		{"search_path", "pg_catalog"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"},
		{"row_security", "on"},
	};
	int			i;

	for (i = 0; i < lengthof(settings); i++)
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
}

/*
 * Wait until the latch is set, the socket, if it is not PGINVALID_SOCKET, is
 * readable, or the time is over; -1: no time. The wait shows
 * as wait_event_info: each kind of process has its own. Exits if
 * SIGTERM came, rereads the configuration if SIGHUP did.
 *
 * What the postmaster is to start again exits with 1: 0 would tell it that
 * this is over for good.
 */
void
cqrs_process_wait(long timeout_ms, pgsocket socket, uint32 wait_event_info)
{
	waiting = true;
	if (!ShutdownRequestPending)
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
								 (timeout_ms >= 0 ? WL_TIMEOUT : 0) |
								 (socket != PGINVALID_SOCKET ?
								  WL_SOCKET_READABLE : 0),
								 socket, timeout_ms, wait_event_info);
	ResetLatch(MyLatch);
	waiting = false;
	if (ShutdownRequestPending)
		proc_exit(MyBgworkerEntry->bgw_restart_time == BGW_NEVER_RESTART ? 0 : 1);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * How long to wait after so many unexpected exits in a row, in milliseconds.
 */
long
cqrs_restart_wait(int failures)
{
	return Min(FIRST_RESTART_WAIT << Min(failures, 10), LONGEST_RESTART_WAIT);
}

static Size
shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(CqrsShared));

	size = add_size(size, mul_size(cqrs_max_databases,
								   MAXALIGN(sizeof(CqrsDatabaseSlot))));
	return add_size(size, mul_size(cqrs_max_workers,
								   MAXALIGN(sizeof(CqrsWorkerSlot))));
}

static void
shmem_request(void)
{
#if CQRS_HAVE_SHMEM_REQUEST_HOOK
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("cqrs_outbox", 1);
	cqrs_breaker_shmem_request();
}

static void
shmem_startup(void)
{
	static int	startups = 0;
	bool		found;
	int			i;
	int			j;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	cqrs_shared = ShmemInitStruct("cqrs_outbox", shmem_size(), &found);
	if (!found)
	{
		memset(cqrs_shared, 0, shmem_size());
		cqrs_shared->lock = &(GetNamedLWLockTranche("cqrs_outbox"))->lock;
		ConditionVariableInit(&cqrs_shared->exited);
		ConditionVariableInit(&cqrs_shared->delivered);
		cqrs_clock_init(&cqrs_shared->clock);

		/* The postmaster does this again after a process crashed. */
		cqrs_shared->crashed = startups++ > 0;
		pg_atomic_init_u32(&cqrs_shared->contended, 0);
		pg_atomic_init_u64(&cqrs_shared->looks, 0);
		cqrs_shared->ndatabases = cqrs_max_databases;
		share_processes();
		cqrs_shared->databases = (CqrsDatabaseSlot *)
			((char *) cqrs_shared + MAXALIGN(sizeof(CqrsShared)));
		cqrs_shared->workers = (CqrsWorkerSlot *)
			(cqrs_shared->databases + cqrs_max_databases);
		for (i = 0; i < cqrs_max_databases; i++)
		{
			pg_atomic_init_u64(&cqrs_shared->databases[i].durable_tick, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].recorded_tick, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].next_run_at, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].looked_at, 0);
			pg_atomic_init_u32(&cqrs_shared->databases[i].prepared, 0);
			ConditionVariableInit(&cqrs_shared->databases[i].ticked);
			pg_atomic_init_u32(&cqrs_shared->databases[i].pending, 0);
			pg_atomic_init_u32(&cqrs_shared->databases[i].asleep, 0);
			for (j = 0; j < CQRS_TOPIC_WORDS; j++)
				pg_atomic_init_u64(&cqrs_shared->databases[i].dirty[j], 0);
		}
	}
	cqrs_breaker_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

/*
 * How many managers and workers there may be at the same time. Each kind has a
 * share of its own, so that neither can take all processes, and then wait for
 * the other. What the server's own launcher of logical replication and ours
 * leave is theirs; managers, which others wait for less long, have no more than
 * half of it.
 */
static void
share_processes(void)
{
	int			left = max_worker_processes - 1 -
	(max_logical_replication_workers > 0 ? 1 : 0);

	cqrs_shared->nmanagers = Max(Min(cqrs_max_managers, left / 2), 1);
	cqrs_shared->nworkers = Max(Min(cqrs_max_workers,
									left - cqrs_shared->nmanagers), 1);
}

/*
 * The transaction's end. At XACT_EVENT_COMMIT, the commit is visible.
 */
static void
at_xact_end(XactEvent event, void *arg)
{
	/* Most transactions are not ours. */
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	cqrs_utility_at_xact_end();
	if (event == XACT_EVENT_COMMIT && cqrs_shared != NULL)
	{
		tell_manager = emitted;
		tell_launcher = announced;
		tell_run_at = Min(scheduled_from, removed_from);
	}
	else if (emitted)
	{
		memset(&emitted_topics, 0, sizeof(emitted_topics));
		tell_prepared = event == XACT_EVENT_PREPARE && cqrs_shared != NULL;
	}
	if (event == XACT_EVENT_ABORT && cqrs_shared != NULL)
		tell_run_at = removed_from;
	emitted = false;
	announced = InvalidOid;
	scheduled_from = removed_from = DT_NOEND;
}

/*
 * Tell what is to be told, once the transaction has released its locks.
 */
static void
at_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level,
		   void *arg)
{
	CqrsDatabaseSlot *slot;

	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level ||
		(!tell_manager && !tell_prepared && tell_run_at == DT_NOEND &&
		 !OidIsValid(tell_launcher)))
		return;

	if (tell_manager || tell_prepared || tell_run_at != DT_NOEND)
	{
		if (my_database == NULL || my_database->dboid != MyDatabaseId)
		{
			LWLockAcquire(cqrs_shared->lock, LW_SHARED);
			my_database = cqrs_database_find(MyDatabaseId);
			LWLockRelease(cqrs_shared->lock);
		}
		if (my_database != NULL)
		{
			int			i;

			if (tell_prepared)
				cqrs_database_prepared(my_database);
			for (i = 0; tell_manager && i < CQRS_TOPIC_WORDS; i++)
				if (emitted_topics.words[i] != 0)
					(void) pg_atomic_fetch_or_u64(&my_database->dirty[i],
												  emitted_topics.words[i]);
			if (cqrs_shmem_lower_next_run_at(my_database, tell_run_at) ||
				tell_manager)
				cqrs_shmem_wake(my_database);
		}
		else if (!OidIsValid(tell_launcher))
			tell_launcher = MyDatabaseId;
	}

	if (OidIsValid(tell_launcher))
	{
		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		slot = cqrs_database_request(tell_launcher);
		if (slot != NULL)
			slot->announced = true;
		LWLockRelease(cqrs_shared->lock);
		cqrs_shmem_wake_launcher();
	}
	if (tell_manager)
		memset(&emitted_topics, 0, sizeof(emitted_topics));
	tell_manager = tell_prepared = false;
	tell_run_at = DT_NOEND;
	tell_launcher = InvalidOid;
}

/*
 * While it only waits, a process exits by itself, and says nothing of it;
 * otherwise like any backend.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	if (waiting)
		SetLatch(MyLatch);
	else
		die(CQRS_PASS_SIGNAL_ARGS);
	errno = save_errno;
}
