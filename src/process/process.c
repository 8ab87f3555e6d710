/*-------------------------------------------------------------------------
 *
 * process.c
 *	  What the launcher, managers and workers do alike: signals, settings,
 *	  waiting.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

#include "process/process.h"
#include "shared/clock.h"

/* After an unexpected exit: milliseconds to wait, doubling up to a minute. */
#define FIRST_RESTART_WAIT	500
#define LONGEST_RESTART_WAIT	60000

/* The process only waits, so SIGTERM may end it quietly. */
static volatile sig_atomic_t waiting = false;

static void handle_sigterm(SIGNAL_ARGS);

/*
 * Set up signal handling. To be called first in the main function.
 */
void
cqrs_process_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	BackgroundWorkerUnblockSignals();
}

/*
 * Describe a process that the postmaster does not start again.
 */
void
cqrs_process_describe(BackgroundWorker *worker, const char *type,
					  const char *main_function)
{
	memset(worker, 0, sizeof(BackgroundWorker));
	strlcpy(worker->bgw_name, type, BGW_MAXLEN);
	strlcpy(worker->bgw_type, type, BGW_MAXLEN);
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "cqrs_outbox", BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, main_function, BGW_MAXLEN);
}

/*
 * Ask for a worker, which gets this slot. Returns false, and leaves the slot free, if
 * there is no background worker to be had. The shared lock is held exclusively.
 */
bool
cqrs_process_start_worker(CqrsWorkerSlot *worker, Oid dboid, Oid owner,
						  bool broker)
{
	BackgroundWorker bgworker;

	memset(worker, 0, sizeof(*worker));
	worker->dboid = dboid;
	worker->owner = owner;
	worker->broker = broker;
	worker->started_at = cqrs_steady_now();
	cqrs_process_describe(&bgworker, "cqrs_outbox worker", "cqrs_worker_main");
	snprintf(bgworker.bgw_name, BGW_MAXLEN,
			 "cqrs_outbox worker for database %u", dboid);
	bgworker.bgw_main_arg = Int32GetDatum(worker - cqrs_shared->workers);
	if (RegisterDynamicBackgroundWorker(&bgworker, NULL))
		worker->state = CQRS_WORKER_STARTING;
	return worker->state == CQRS_WORKER_STARTING;
}

/*
 * Set what managers and workers need, instead of what ALTER ROLE or ALTER
 * DATABASE may have set for ordinary sessions. RESET returns to these values.
 *
 * A background worker ignores SIGHUP until cqrs_process_signals(), and so may have
 * missed that the configuration has changed since it was forked. So that is read when
 * it waits for the first time, if it does not do so before.
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

	ConfigReloadPending = true;
	for (i = 0; i < lengthof(settings); i++)
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
}

/*
 * Wait until the latch is set, the socket (unless it is PGINVALID_SOCKET) is
 * readable, or the time is over (-1: no limit). The wait shows as
 * wait_event_info: each kind of process has its own. Exits if SIGTERM came,
 * rereads the configuration if SIGHUP did.
 *
 * A process that the postmaster should start again exits with 1: 0 would tell
 * it not to.
 */
void
cqrs_process_wait(long timeout_ms, pgsocket socket, uint32 wait_event_info)
{
	waiting = true;
	if (!ShutdownRequestPending && !ConfigReloadPending)
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
		cqrs_process_reload();
}

/*
 * Read the configuration anew.
 */
void
cqrs_process_reload(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

/*
 * How long to wait after this many unexpected exits in a row, in milliseconds.
 */
long
cqrs_restart_wait(int failures)
{
	return Min(FIRST_RESTART_WAIT << Min(failures, 10), LONGEST_RESTART_WAIT);
}

/*
 * A process that only waits exits by itself, quietly; otherwise it ends like
 * any backend.
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
