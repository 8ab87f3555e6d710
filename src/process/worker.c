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
 *	  target_handler.c says what an error does to it.
 * 3. After a process ended unexpectedly (the one before this, or any, if the
 *	  whole server crashed), the next CQRS_BATCH_EVENTS are delivered carefully:
 *	  one by one, each with its attempt counted, and that committed, before the
 *	  handler is called. So an event that kills the process becomes a dead letter
 *	  in the end. A process that ends itself because a handler would not be
 *	  cancelled knows which event it was, and records that on its way out
 *	  (blame_overdue). If it could, nobody need be careful.
 * 4. If other cursors wait for a worker, it stops after a while and lets the
 *	  manager decide whose turn it is.
 * 5. To a broker, delivery goes on in steps: connect, exchange (see
 *	  target_broker.c), wait. A worker that has connected serves this cursor as
 *	  long as it lives, and keeps the connection while there is nothing to do.
 *	  As a client library may end the process, too, careful delivery (3)
 *	  includes connecting: the failure is recorded, with its delay, before it
 *	  is tried.
 *
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

#include "access/xact.h"
#include "access/xlog.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "delivery/attempt.h"
#include "delivery/handler_timeout.h"
#include "delivery/session.h"
#include "delivery/target_broker.h"
#include "delivery/target_handler.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "include/cqrs_broker.h"
#include "mediator/context.h"
#include "process/launcher.h"
#include "process/process.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"
#include "subscription/subscription.h"

/* Exit after this long without work, in milliseconds. */
#define LONGEST_IDLE	60000

/* Let others have the worker after this long, in milliseconds ... */
#define TIME_SLICE		1000

/* ... and after this long, if they are of another database that has none. */
#define SHORT_TIME_SLICE	200

typedef enum Outcome
{
	DELIVERED,					/* something; there may be more */
	DRAINED,					/* nothing more */
	FAILED						/* through no event's fault */
} Outcome;

/* What there is to do in one transaction. */
typedef struct Job
{
	int32		subscription_id;
	int			partition;
	bool		first;			/* the first one of this delivery */
	bool		broker;
	bool		finish;			/* begin nothing new */
	bool		careful;
	const char *lost;			/* why the connection is lost */
	CqrsPace	pace;
	int			one_by_one;		/* how many events are to be delivered alone */
	int64		announced;		/* position of the announced event, or 0 */
	const ErrorData *error;		/* what to record */
	int64		position;		/* ... and for the event at this position */
	CqrsDelivery delivery;
	bool		called;			/* the subscription is there, and ours */
	bool		prepared;		/* everything is ready to connect */
	bool		shown;			/* in pg_stat_activity */
	bool		cleared;		/* the last failure was forgotten */
	bool		committing;		/* the rest is done */
	bool		outage;			/* the error is no event's fault ... */
	bool		suspect;		/* ... or may be none */
	TimestampTz flush_at;		/* wait for the disk then; 0: nothing to wait for */
	TimestampTz failed_until;
} Job;

typedef void (*JobFunction) (CqrsSubscription *subscription, Job *job);

static CqrsWorkerSlot *my_slot = NULL;

/* What is being delivered to a handler, and whether its failure is recorded. */
static Job *delivering = NULL;
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
static bool others_wait(TimestampTz start);
static Outcome deliver_some(Job *job, int *careful);
static bool is_waiting(Job *job);
static Outcome failed_to_deliver(Job *job, ErrorData *error);
static void flush_commits(Job *job);
static Outcome deliver_some_to_broker(Job *job, int *careful);
static Outcome open_broker(Job *job);
static Outcome exchange_with_broker(Job *job, int *careful);
static Outcome fail_broker(Job *job, const char *message);
static void wait_for_broker(void);
static void record_outage(Job *job, ErrorData *error);
static ErrorData *run(JobFunction function, Job *job);
static bool is_outage(const Job *job, const ErrorData *error,
					  bool timed_out);
static void show(const CqrsSubscription *subscription, Job *job);
static void run_deliver(CqrsSubscription *subscription, Job *job);
static void run_announce(CqrsSubscription *subscription, Job *job);
static void run_prepare(CqrsSubscription *subscription, Job *job);
static void run_exchange(CqrsSubscription *subscription, Job *job);
static void run_record_event(CqrsSubscription *subscription, Job *job);
static bool lock_cursor(const CqrsSubscription *subscription, const Job *job);
static void run_record_outage(CqrsSubscription *subscription, Job *job);
static CqrsSubscription *begin_delivery(const Job *job);

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
	my_slot->pid = 0;
	my_slot->latch = NULL;
	cqrs_shmem_wake_all_managers();
	ConditionVariableBroadcast(&cqrs_shared->exited);
	LWLockRelease(cqrs_shared->lock);
}

/*
 * If the process ends because a handler would not be cancelled, record that its
 * event failed. Nothing can interrupt us now, so if somebody else has the
 * cursor's lock, let it be. If others of the batch come before the event, they
 * are to be done again first. In both cases the next process is careful.
 */
static void
blame_overdue(int code, Datum arg)
{
	Job		   *job = delivering;
	CqrsSubscription *subscription;
	ErrorData	error = {0};

	delivering = NULL;
	if (job == NULL || !cqrs_handler_is_overdue() || job->delivery.position == 0)
		return;
	cqrs_context_innermost = NULL;
	cqrs_underway_innermost = NULL;
	subscription = begin_delivery(job);
	if (subscription != NULL && job->partition < subscription->partitions &&
		cqrs_subscription_lock(subscription, job->partition, false))
	{
		error.sqlerrcode = ERRCODE_QUERY_CANCELED;
		error.message = psprintf("handler of subscription \"%s\" took longer than its handler_timeout, and would not be canceled",
								 subscription->name);
		blamed = cqrs_target_failed(subscription, job->partition,
									job->delivery.position, &error,
									job->announced != 0);
	}
	if (subscription != NULL)
		PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Deliver what is asked for, and say in the slot how far we got.
 */
static void
deliver(void)
{
	TimestampTz start = cqrs_steady_now();
	Job			job = {0};
	uint64		request;
	int64		wanted_look;
	int			careful;
	Outcome		outcome;

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	job.subscription_id = my_slot->subscription_id;
	job.partition = my_slot->partition;
	request = my_slot->request;
	wanted_look = my_slot->wanted_look;
	careful = my_slot->careful;
	job.broker = my_slot->broker;
	LWLockRelease(cqrs_shared->lock);

	MemoryContextReset(delivery_context);
	MemoryContextSwitchTo(delivery_context);
	job.first = true;
	job.pace.new_first = true;
	do
	{
		outcome = job.broker ? deliver_some_to_broker(&job, &careful) :
			deliver_some(&job, &careful);
		job.first = false;
		if (job.flush_at != 0 && cqrs_steady_now() >= job.flush_at)
			flush_commits(&job);
		CHECK_FOR_INTERRUPTS();

		/*
		 * But not between the tries of one attempt: they would be forgotten.
		 */
		if (job.pace.again == 0 && others_wait(start))
		{
			if (cqrs_target_broker_pending() == 0)
			{
				pg_atomic_write_u32(&cqrs_shared->contended,
									CQRS_CONTENDED_NOT);
				break;
			}
			job.finish = true;
		}
		job.finish |= !cqrs_deliver;
	} while (outcome == DELIVERED &&
			 (cqrs_deliver || cqrs_target_broker_pending() > 0));
	flush_commits(&job);
	if (outcome == DRAINED && job.finish)
		outcome = DELIVERED;
	if (outcome == DRAINED)
		careful = 0;
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (my_slot->subscription_id == job.subscription_id &&
		my_slot->partition == job.partition)
	{
		if (outcome == DRAINED)
			my_slot->drained_look = wanted_look;
		my_slot->retry_at =
			cqrs_steady_deadline(job.delivery.retry_at, 0);
		my_slot->failed_until = outcome == FAILED ?
			cqrs_steady_deadline(job.failed_until,
								 CQRS_LONGEST_FAILURE) : 0;
		my_slot->unfinished = outcome != DRAINED;
		my_slot->careful = careful;
		my_slot->noted = false;
	}
	my_slot->served = request;
	my_slot->state = CQRS_WORKER_IDLE;
	if (outcome != DRAINED ||
		pg_atomic_read_u32(&cqrs_shared->contended) != CQRS_CONTENDED_NOT)
		cqrs_shmem_wake_all_managers();
	if (outcome != DRAINED || my_slot->retry_at != 0)
	{
		CqrsDatabaseSlot *database = cqrs_database_find(MyDatabaseId);

		/* Otherwise, no manager need come for us. */
		if (database != NULL)
			cqrs_database_due(database, outcome == DRAINED ?
							  my_slot->retry_at : my_slot->failed_until);
	}
	LWLockRelease(cqrs_shared->lock);
	ConditionVariableBroadcast(&cqrs_shared->delivered);
}

/*
 * Others may be waiting for a worker: has this one, which began at start, been
 * at it for long enough?
 */
static bool
others_wait(TimestampTz start)
{
	uint32		contended = pg_atomic_read_u32(&cqrs_shared->contended);

	return contended != CQRS_CONTENDED_NOT &&
		TimestampDifferenceExceeds(start, cqrs_steady_now(),
								   contended == CQRS_CONTENDED_ACROSS ?
								   SHORT_TIME_SLICE : TIME_SLICE);
}

/*
 * Deliver one batch, or do what an error in it calls for. *careful is how many
 * events are still to be delivered carefully.
 */
static Outcome
deliver_some(Job *job, int *careful)
{
	ErrorData  *error;

	job->announced = 0;
	if (*careful > 0)
	{
		if ((error = run(run_announce, job)) != NULL)
		{
			record_outage(job, error);
			return FAILED;
		}
		if (job->announced == 0)
			return job->delivery.more ? DELIVERED : DRAINED;
		--*careful;
	}

	delivering = job;
	error = run(run_deliver, job);
	delivering = NULL;
	cqrs_session_after_transaction();
	if (error != NULL)
		return failed_to_deliver(job, error);

	if (job->delivery.not_flushed && job->flush_at == 0)
		job->flush_at =
			TimestampTzPlusMilliseconds(cqrs_steady_now(),
										cqrs_batch_duration);
	if (job->one_by_one > 0)
		job->one_by_one--;
	cqrs_pace_done(&job->pace, &job->delivery);
	if (is_waiting(job))
		return FAILED;
	if (job->delivery.announce)
		*careful = Max(*careful, 1);
	return job->delivery.more || job->announced != 0 || *careful > 0 ?
		DELIVERED : DRAINED;
}

/*
 * Does the subscription have to wait, because events failed and none is to blame?
 * Says so in the log.
 */
static bool
is_waiting(Job *job)
{
	if (job->delivery.outage == 0)
		return false;
	ereport(LOG,
			(errcode(job->delivery.outage),
			 job->delivery.lone ?
			 errmsg("an event fails, and there is no other to tell by whose fault that is") :
			 errmsg("events fail, and none is to blame"),
			 errdetail_internal("%s", job->delivery.message)));

	/* What comes next shows whose fault it is. */
	if (job->delivery.lone)
		return false;
	job->failed_until = job->delivery.failed_until;
	return true;
}

/*
 * A batch was rolled back: find out which event is to blame, if any, and record
 * it. Frees the error.
 */
static Outcome
failed_to_deliver(Job *job, ErrorData *error)
{
	int			nevents = job->delivery.nevents;

	job->error = error;
	job->position = job->delivery.position;
	if (job->committing)
	{
		/* The commit failed: which event made it? */
		if (nevents > 1 || (nevents == 1 && job->delivery.nfailed > 0))
		{
			job->one_by_one = nevents;
			FreeErrorData(error);
			return DELIVERED;
		}
		job->position = job->delivery.last;
		if (cqrs_error_is_transient(error) && job->announced == 0 &&
			job->pace.again < CQRS_TRANSIENT_TRIES)
		{
			job->pace.again++;
			FreeErrorData(error);
			return DELIVERED;
		}
	}
	else if (job->announced == 0 && !job->outage && job->position != 0)
	{
		/* Do those before it again; then call it apart. */
		cqrs_pace_failed(&job->pace, nevents, error);
		FreeErrorData(error);
		return DELIVERED;
	}

	if (job->position == 0 || job->outage)
	{
		record_outage(job, error);
		return FAILED;
	}
	if (run(run_record_event, job) != NULL)
	{
		record_outage(job, error);
		return FAILED;
	}
	FreeErrorData(error);
	return DELIVERED;
}

/*
 * Wait for the disk, and for a standby where replication is synchronous, until
 * all that was delivered is safe.
 */
static void
flush_commits(Job *job)
{
	if (job->flush_at == 0)
		return;
	job->flush_at = 0;
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		return;
	HOLD_INTERRUPTS();
	XLogFlush(XactLastCommitEnd);
	SyncRepWaitForLSN(XactLastCommitEnd, true);
	RESUME_INTERRUPTS();
}

static Outcome
deliver_some_to_broker(Job *job, int *careful)
{
	char		error[CQRS_BROKER_ERROR_SIZE];
	bool		stop;

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	stop = my_slot->stop;
	LWLockRelease(cqrs_shared->lock);
	if (stop)
		proc_exit(0);

	job->careful = *careful > 0;
	switch (cqrs_target_broker_task(job->finish, error))
	{
		case CQRS_BROKER_TASK_OPEN:
			return open_broker(job);
		case CQRS_BROKER_TASK_WAIT:
			wait_for_broker();
			return DELIVERED;
		case CQRS_BROKER_TASK_EXCHANGE:
			return exchange_with_broker(job, careful);
		case CQRS_BROKER_TASK_RENEW:
			cqrs_target_broker_close();
			return DELIVERED;
		case CQRS_BROKER_TASK_FAIL:
			if (!job->first || cqrs_target_broker_pending() > 0)
				return fail_broker(job, error);

			/* It was lost while there was nothing to do: try anew at once. */
			cqrs_target_broker_close();
			return DELIVERED;
	}
	pg_unreachable();
}

static Outcome
open_broker(Job *job)
{
	ErrorData  *error;

	if (job->finish)
		return DRAINED;
	error = run(run_prepare, job);
	if (error == NULL && !job->called)
		return DRAINED;
	if (error != NULL)
	{
		cqrs_target_broker_close();
		record_outage(job, error);
		return FAILED;
	}
	if (!job->prepared)
		return FAILED;
	cqrs_target_broker_connect();
	return DELIVERED;
}

/*
 * Record what the broker said, and read on.
 */
static Outcome
exchange_with_broker(Job *job, int *careful)
{
	ErrorData  *error = NULL;
	bool		done = false;

	job->announced = 0;
	if (*careful > 0 && cqrs_target_broker_pending() == 0 && !job->finish)
	{
		error = run(run_announce, job);
		done = error == NULL && job->announced == 0;
		if (done && job->called && job->delivery.more)
			return DELIVERED;
		if (job->announced != 0)
			--* careful;
	}
	if (error == NULL && !done)
	{
		error = run(run_exchange, job);
		if (job->delivery.announce)
			*careful = Max(*careful, 1);
		done = job->finish || (!job->delivery.more && *careful == 0);
	}
	if (error != NULL)
	{
		cqrs_target_broker_close();
		record_outage(job, error);
		return FAILED;
	}
	if (is_waiting(job))
	{
		cqrs_target_broker_close();
		return FAILED;
	}
	if (!job->called)
		cqrs_target_broker_close();
	return cqrs_target_broker_pending() == 0 && (done || !job->called) ?
		DRAINED : DELIVERED;
}

/*
 * The connection is lost, or as good as: record what the broker said before.
 */
static Outcome
fail_broker(Job *job, const char *message)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->elevel = LOG;
	error->sqlerrcode = ERRCODE_CONNECTION_FAILURE;
	error->message = pstrdup(message);
	job->finish = true;
	job->announced = 0;
	job->lost = message;
	(void) run(run_exchange, job);
	record_outage(job, error);

	/* This may end the process, so it comes last. */
	cqrs_target_broker_close();
	return FAILED;
}

static void
wait_for_broker(void)
{
	static uint32 wait_event = 0;

	cqrs_process_wait(cqrs_target_broker_patience(), cqrs_target_broker_fd(),
					  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxBroker"));
}

/*
 * Record, if possible, a failure that is no event's fault, and free the error.
 */
static void
record_outage(Job *job, ErrorData *error)
{
	job->error = error;
	job->failed_until = TimestampTzPlusMilliseconds(cqrs_wall_now(),
													TIME_SLICE);
	(void) run(run_record_outage, job);
	FreeErrorData(error);
}

/*
 * Run a function in a transaction. Returns the error that rolled it back, in
 * the current memory context, or NULL. It was logged, if it is not one that
 * makes us do part of the batch again first.
 */
static ErrorData *
run(JobFunction function, Job *job)
{
	MemoryContext context = CurrentMemoryContext;
	CqrsSubscription *subscription;
	ErrorData  *volatile error = NULL;

	job->committing = false;
	job->called = false;
	memset(&job->delivery, 0, sizeof(job->delivery));
	PG_TRY();
	{
		subscription = begin_delivery(job);
		if (subscription != NULL && job->partition < subscription->partitions)
		{
			job->called = true;
			if (!job->shown)
				show(subscription, job);
			function(subscription, job);
			PopActiveSnapshot();
		}
		job->committing = true;
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		bool		timed_out;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		timed_out = cqrs_handler_timeout_end();
		job->outage = is_outage(job, error, timed_out);
		job->suspect = !timed_out && cqrs_blame(error) == CQRS_BLAME_SUSPECT;
		if (job->committing ? job->delivery.nevents <= 1 :
			job->delivery.position == 0 || job->announced != 0 ||
			job->outage ||
			(!timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED))
			EmitErrorReport();
		FlushErrorState();
		disable_all_timeouts(false);
		QueryCancelPending = false;
		AbortCurrentTransaction();
		cqrs_context_innermost = NULL;
		cqrs_underway_innermost = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return error;
}

/*
 * Is an error that rolled back a transaction no event's fault? If it was raised
 * in the middle of a batch, evidence tells.
 */
static bool
is_outage(const Job *job, const ErrorData *error, bool timed_out)
{
	if (cqrs_blame(error) == CQRS_BLAME_NOBODY)
		return true;
	if (!job->committing && job->delivery.position != 0 &&
		job->announced == 0)
		return false;
	return cqrs_target_is_outage(error) &&
		!(timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED);
}

/*
 * Show in pg_stat_activity what is delivered: once a job, as it does not
 * change.
 */
static void
show(const CqrsSubscription *subscription, Job *job)
{
	char		activity[NAMEDATALEN + 64];

	snprintf(activity, sizeof(activity),
			 "delivering subscription \"%s\" partition %d",
			 subscription->name, job->partition);
	pgstat_report_activity(STATE_RUNNING, activity);
	job->shown = true;
}

/*
 * Deliver a batch, or the announced event.
 */
static void
run_deliver(CqrsSubscription *subscription, Job *job)
{
	cqrs_target_deliver(subscription, job->partition, &job->pace,
						job->one_by_one > 0, job->announced, cqrs_wall_now(),
						true, &job->delivery);
	/* If something is parked, that there was nothing to do shows nothing. */
	if (!job->cleared && job->delivery.outage == 0 &&
		(job->delivery.nevents > 0 ||
		 (job->delivery.nfailed == 0 && job->delivery.retry_at == 0)))
	{
		cqrs_failure_clear(job->subscription_id, job->partition);
		job->cleared = true;
	}
}

/*
 * Choose the event to deliver next, and count the attempt beforehand.
 */
static void
run_announce(CqrsSubscription *subscription, Job *job)
{
	job->announced = cqrs_target_announce(subscription, job->partition,
										  &job->delivery);
	cqrs_commit_durably();
}

/*
 * Find out how to connect. The delay after the last failure is observed, even
 * if that was another process's. If an attempt may end the process, it counts
 * as failed before it begins.
 */
static void
run_prepare(CqrsSubscription *subscription, Job *job)
{
	int			failed_before;

	job->prepared = false;
	job->failed_until = cqrs_failure_retry_at(job->subscription_id,
											  job->partition, &failed_before);
	if (job->failed_until > cqrs_wall_now())
		return;
	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
	{
		job->called = false;
		return;
	}
	if (job->careful)
	{
		ErrorData	crash = {0};

		crash.sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
		crash.message = psprintf("the server process ended while it was connected to server \"%s\"",
								 subscription->server);
		if (!lock_cursor(subscription, job))
		{
			job->called = false;
			return;
		}
		(void) cqrs_failure_record(job->subscription_id, job->partition,
								   &crash, CQRS_FAILURE_DELAY);
		cqrs_commit_durably();
	}
	cqrs_target_broker_prepare(subscription, job->partition, failed_before);
	job->prepared = true;
}

static void
run_exchange(CqrsSubscription *subscription, Job *job)
{
	cqrs_target_broker_exchange(subscription,
								!job->finish && (!job->careful || job->announced != 0),
								job->announced, job->lost, &job->delivery);

	/*
	 * That it can be connected to, or rejects what is sent, does not show that
	 * it works.
	 */
	if (job->delivery.nevents > 0 ||
		(!job->finish && !job->delivery.more && !job->delivery.failing))
		cqrs_failure_clear(job->subscription_id, job->partition);
}

static void
run_record_event(CqrsSubscription *subscription, Job *job)
{
	if (job->announced != 0 && job->suspect)
		cqrs_target_void_attempt(subscription, job->partition, job->position,
								 job->error,
								 TimestampTzPlusMilliseconds(cqrs_wall_now(),
															 CQRS_FAILURE_DELAY));
	else
		(void) cqrs_target_failed(subscription, job->partition, job->position,
								  job->error, job->announced != 0);
}

static void
run_record_outage(CqrsSubscription *subscription, Job *job)
{
	if (!lock_cursor(subscription, job))
		return;
	job->failed_until = cqrs_failure_record(job->subscription_id,
											job->partition, job->error,
											CQRS_FAILURE_DELAY);
	if (job->announced != 0)
		cqrs_target_void_attempt(subscription, job->partition, job->announced,
								 job->error, job->failed_until);
}

/*
 * Lock the cursor. Returns false if its partition went away while we waited:
 * then nothing may be recorded of it, as nobody would clear that.
 */
static bool
lock_cursor(const CqrsSubscription *subscription, const Job *job)
{
	(void) cqrs_subscription_lock(subscription, job->partition, true);
	return job->partition <
		cqrs_subscription_get(subscription->name)->partitions;
}

/*
 * Begin a transaction in which the extension cannot be dropped. Returns the
 * subscription, or NULL if it is gone, or not for us any more.
 */
static CqrsSubscription *
begin_delivery(const Job *job)
{
	CqrsSubscription *subscription;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!OidIsValid(cqrs_extension_lock()) || !cqrs_registry_usable() ||
		cqrs_registry_is_copy())
		return NULL;

	subscription = cqrs_registry_subscription_by_id(job->subscription_id);
	if (subscription == NULL || subscription->owner != GetUserId())
		return NULL;

	/* If it is paused, what is on its way to a broker is still recorded. */
	if (job->broker ? subscription->server == NULL ||
		subscription->state == CQRS_SUBSCRIPTION_SUSPENDED :
		!subscription->has_handler ||
		subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
		return NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	return subscription;
}
