/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  Delivers subscriptions to their handlers, or brokers.
 *
 * A worker is connected as the owner of the subscriptions it delivers: their
 * handlers run in an ordinary session of the owner's, and can gain nothing by
 * leaving it. What a handler leaves in the session, no other one sees: see
 * session.c.
 *
 * Protocol
 *
 * 1. The manager writes a cursor (subscription and partition) and the number of
 *	  a look (see manager.c) into the slot, and sets the latch. The worker
 *	  delivers all that is committed, which is at least what the manager saw,
 *	  says so in the slot, and waits.
 * 2. A batch is one transaction: the cursor moves with what the handler did.
 *	  handler_job.c and target_handler.c say what an error does to it.
 * 3. After a process ended unexpectedly (the one before this, or any, if the
 *	  whole server crashed), the next CQRS_BATCH_EVENTS are delivered carefully:
 *	  one by one, each with its attempt counted, and that committed, before the
 *	  handler is called. So an event that kills the process becomes a dead letter
 *	  in the end. A process that ends itself because a handler would not be
 *	  cancelled knows which event it was, and records that on its way out. If it
 *	  could, nobody need be careful.
 * 4. If other cursors wait for a worker, it stops after a while and lets the
 *	  manager decide whose turn it is.
 * 5. To a broker, delivery goes on in steps: connect, exchange (see
 *	  target_broker.c), wait. A worker that has connected serves this cursor as
 *	  long as it lives, and keeps the connection while there is nothing to do.
 *	  As a client library may end the process, too, careful delivery (3)
 *	  includes connecting: see broker_job.c.
 * 6. With a transaction for each event, those that nobody waits for (see
 *	  target_handler.c) commit without waiting for the disk. Every
 *	  cqrs_outbox.batch_duration, and before it says that anything was delivered,
 *	  the worker waits for all of them.
 *
 * Killed anywhere, it loses nothing: what was not committed, cursor and all,
 * is delivered again.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#include "deferred/running.h"
#include "delivery/broker_exchange.h"
#include "delivery/session.h"
#include "delivery/target_broker.h"
#include "process/job.h"
#include "process/launcher.h"
#include "process/process.h"
#include "retry/failure.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

/* Exit after this long without work, in milliseconds. */
#define LONGEST_IDLE	300000

/* Let others have the worker after this long, in milliseconds ... */
#define TIME_SLICE		1000

/* ... and after this long, if they are of another database that has none. */
#define SHORT_TIME_SLICE	200

/* It takes a while to connect: who consumes has more time, also in milliseconds. */
#define CONSUMER_TIME_SLICE	5000

static CqrsWorkerSlot *my_slot = NULL;

/*
 * Was the failure recorded of the event whose handler made this process end?
 */
static bool blamed = false;

/*
 * For what a delivery keeps beyond its transactions; reset before the next
 * one.
 */
static MemoryContext delivery_context = NULL;

static void worker_attach(int index);
static void worker_exit(int code, Datum arg);
static void blame_overdue(int code, Datum arg);
static void deliver(void);
static void begin_job(CqrsJob *job, uint64 *request, int64 *wanted_look);
static void end_job(const CqrsJob *job, CqrsJobOutcome outcome,
					uint64 request, int64 wanted_look);
static CqrsJobOutcome step(CqrsJob *job);
static bool others_wait(const CqrsJob *job, TimestampTz start);

void
cqrs_worker_main(Datum arg)
{
	static uint32 wait_event = 0;
	TimestampTz idle_since = cqrs_steady_now();

	cqrs_process_signals();
	worker_attach(DatumGetInt32(arg));
	BackgroundWorkerInitializeConnectionByOid(my_slot->dboid, my_slot->owner,
											  CQRS_WORKER_CONNECT_FLAGS);
	cqrs_process_settings("cqrs_outbox worker");
	cqrs_process_reload();
	cqrs_session_init_worker();
	delivery_context = AllocSetContextCreate(TopMemoryContext,
											 "cqrs delivery",
											 ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		bool		stop;
		bool		work;

		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		stop = my_slot->stop;
		work = cqrs_deliver && !stop && my_slot->request != my_slot->served;
		my_slot->state = work ? CQRS_WORKER_DELIVERING : CQRS_WORKER_IDLE;
		LWLockRelease(cqrs_shared->lock);

		if (stop ||
			(!work && TimestampDifferenceExceeds(idle_since, cqrs_steady_now(),
												 LONGEST_IDLE)))
			proc_exit(0);
		if (work)
		{
			deliver();
			idle_since = cqrs_steady_now();
		}
		else
			cqrs_process_wait(LONGEST_IDLE, PGINVALID_SOCKET,
							  CQRS_WAIT_EVENT(wait_event,
											  "CqrsOutboxWorkerIdle"));
	}
}

/*
 * Take the slot that the manager chose, or exit if it has no use for us any
 * more.
 */
static void
worker_attach(int index)
{
	CqrsWorkerSlot *slot = &cqrs_shared->workers[index];
	CqrsDatabaseSlot *database;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (slot->state != CQRS_WORKER_STARTING || slot->pid != 0)
	{
		LWLockRelease(cqrs_shared->lock);
		proc_exit(0);
	}
	my_slot = slot;
	cqrs_running_attach(slot);
	slot->pid = MyProcPid;
	slot->latch = MyLatch;

	/* A manager that was asked to leave may wait for this. */
	database = cqrs_database_find(slot->dboid);
	if (database != NULL && database->asked_to_leave != 0)
		SetLatch(database->manager_latch);
	LWLockRelease(cqrs_shared->lock);
	before_shmem_exit(worker_exit, (Datum) 0);

	/*
	 * Registered before we connect, so that it runs after the transaction was
	 * rolled back.
	 */
	before_shmem_exit(blame_overdue, (Datum) 0);
}

/*
 * Free the slot, and tell whoever waits for one. After an unexpected end, the
 * manager waits before it starts another worker for the subscription.
 */
static void
worker_exit(int code, Datum arg)
{
	CqrsDatabaseSlot *database;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	my_slot->state = code == 0 || blamed ? CQRS_WORKER_FREE :
		CQRS_WORKER_FAILED;
	database = cqrs_database_find(my_slot->dboid);
	if (database != NULL && (my_slot->state == CQRS_WORKER_FAILED ||
							 my_slot->request != my_slot->served))
		cqrs_database_due(database, cqrs_steady_now());

	/* If it could not even connect, there may be no such role any more. */
	if (database != NULL && my_slot->subscription_id == 0)
		database->worker_owner = InvalidOid;
	my_slot->pid = 0;
	my_slot->latch = NULL;
	cqrs_shmem_wake_all_managers();
	ConditionVariableBroadcast(&cqrs_shared->exited);
	LWLockRelease(cqrs_shared->lock);
}

static void
blame_overdue(int code, Datum arg)
{
	blamed = cqrs_handler_job_blame_overdue();
}

/*
 * Deliver what is asked for, and say in the slot how far we got.
 */
static void
deliver(void)
{
	TimestampTz start = cqrs_steady_now();
	CqrsJob		job = {0};
	uint64		request;
	int64		wanted_look;
	CqrsJobOutcome outcome;

	begin_job(&job, &request, &wanted_look);
	MemoryContextReset(delivery_context);
	MemoryContextSwitchTo(delivery_context);
	do
	{
		outcome = step(&job);
		job.first = false;
		if (job.flush_at != 0 && cqrs_steady_now() >= job.flush_at)
			cqrs_handler_job_flush(&job);
		CHECK_FOR_INTERRUPTS();

		/*
		 * But not between the tries of one attempt, nor while we look for the
		 * event that fails: they would be forgotten.
		 */
		if (job.pace.again == 0 && !job.pace.halved && others_wait(&job, start))
		{
			if (cqrs_broker_pending() == 0)
			{
				pg_atomic_write_u32(&cqrs_shared->contended,
									CQRS_CONTENDED_NOT);
				break;
			}
			job.finish = true;
		}
		job.finish |= !cqrs_deliver;
	} while (outcome == CQRS_JOB_DELIVERED &&
			 (cqrs_deliver || cqrs_broker_pending() > 0));
	cqrs_handler_job_flush(&job);
	if (outcome == CQRS_JOB_DRAINED && job.finish)
		outcome = CQRS_JOB_DELIVERED;
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);

	end_job(&job, outcome, request, wanted_look);
	ConditionVariableBroadcast(&cqrs_shared->delivered);
}

/*
 * Read from the slot what is asked for.
 */
static void
begin_job(CqrsJob *job, uint64 *request, int64 *wanted_look)
{
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	job->subscription_id = my_slot->subscription_id;
	job->partition = my_slot->partition;
	job->broker = my_slot->broker;
	job->consumer = my_slot->consumer;
	job->careful = my_slot->careful;
	*request = my_slot->request;
	*wanted_look = my_slot->wanted_look;
	LWLockRelease(cqrs_shared->lock);
	job->first = true;
	job->pace.new_first = true;
}

/*
 * Say in the slot what became of it, and wake those whom that concerns.
 */
static void
end_job(const CqrsJob *job, CqrsJobOutcome outcome, uint64 request,
		int64 wanted_look)
{
	bool		drained = outcome == CQRS_JOB_DRAINED;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (my_slot->subscription_id == job->subscription_id &&
		my_slot->partition == job->partition)
	{
		if (drained)
			my_slot->drained_look = wanted_look;
		my_slot->retry_at =
			cqrs_steady_deadline(job->delivery.retry_at, 0);
		my_slot->failed_until = outcome == CQRS_JOB_FAILED ?
			cqrs_steady_deadline(job->failed_until,
								 CQRS_LONGEST_FAILURE) : 0;
		my_slot->unfinished = !drained;
		my_slot->careful = drained ? 0 : job->careful;
		my_slot->noted = false;
	}
	my_slot->served = request;
	my_slot->state = CQRS_WORKER_IDLE;
	if (!drained || my_slot->tell ||
		pg_atomic_read_u32(&cqrs_shared->contended) != CQRS_CONTENDED_NOT)
		cqrs_shmem_wake_all_managers();
	if (!drained || my_slot->retry_at != 0)
	{
		CqrsDatabaseSlot *database = cqrs_database_find(MyDatabaseId);

		/* Otherwise, no manager need come for us. */
		if (database != NULL)
			cqrs_database_due(database, drained ? my_slot->retry_at :
							  my_slot->failed_until);
	}
	LWLockRelease(cqrs_shared->lock);
}

/*
 * One step of a job. A worker that is connected to a broker may be asked to
 * leave in the middle.
 */
static CqrsJobOutcome
step(CqrsJob *job)
{
	bool		stop;

	if (!job->broker)
		return cqrs_handler_job_step(job);

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	stop = my_slot->stop;
	LWLockRelease(cqrs_shared->lock);
	if (stop)
		proc_exit(0);
	return job->consumer ? cqrs_consumer_job_step(job) :
		cqrs_broker_job_step(job);
}

/*
 * Others may be waiting for a worker: has this one, which began at start, been
 * at it for long enough?
 */
static bool
others_wait(const CqrsJob *job, TimestampTz start)
{
	uint32		contended = pg_atomic_read_u32(&cqrs_shared->contended);

	return contended != CQRS_CONTENDED_NOT &&
		TimestampDifferenceExceeds(start, cqrs_steady_now(),
								   job->consumer ? CONSUMER_TIME_SLICE :
								   contended == CQRS_CONTENDED_ACROSS ?
								   SHORT_TIME_SLICE : TIME_SLICE);
}
