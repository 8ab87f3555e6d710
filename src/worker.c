/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  Delivers subscriptions to their handlers.
 *
 * A worker is connected as the owner of the subscriptions it delivers: their
 * handlers run in an ordinary session of the owner's, and can gain nothing by
 * leaving it. What a handler set is undone before the next delivery; what else
 * it left in the session (temporary tables, advisory locks) stays, for the
 * other handlers of the same owner to meet.
 *
 * Protocol
 *
 * 1. The manager writes a subscription and the number of a look (see manager.c)
 *	  into the slot, and sets the latch. The worker delivers all that is
 *	  committed, which is all that the manager saw by then and maybe more,
 *	  says so in the slot, and waits.
 * 2. A batch is one transaction: the cursor moves with what the handler did.
 * 3. If a batch fails, it is done again event by event, each in a transaction
 *	  of its own. The one that fails again is recorded, and the subscription
 *	  waits before the next attempt.
 * 4. If other subscriptions wait for a worker, it stops after a while and
 *	  lets the manager decide whose turn it is.
 *
 * Killed anywhere, it loses nothing: what was not committed, cursor and all,
 * is delivered again.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "launcher.h"
#include "registry.h"
#include "relay.h"
#include "retry.h"
#include "shmem.h"

/* Exit after so long without work, in milliseconds. */
#define LONGEST_IDLE	60000

/* Let others in after so long, in milliseconds. */
#define TIME_SLICE		1000

typedef enum Outcome
{
	DELIVERED,					/* a batch; there may be more */
	DRAINED,					/* nothing more */
	FAILED						/* this batch */
} Outcome;

static CqrsWorkerSlot *my_slot = NULL;

/* The subscription that failed last: its next attempt is not made in a batch. */
static int32 failed_subscription_id = 0;

static void worker_attach(int index);
static void worker_exit(int code, Datum arg);
static void deliver(int32 subscription_id, int64 wanted_look);
static void reset_session(void);
static void reset_role(void);
static Outcome deliver_batch(int32 subscription_id, int max_events,
							 bool record_failure, TimestampTz *retry_at);
static TimestampTz record(int32 subscription_id, int64 position,
						  ErrorData *error);
static CqrsSubscription *begin_delivery(int32 subscription_id);

void
cqrs_worker_main(Datum arg)
{
	TimestampTz idle_since = GetCurrentTimestamp();

	cqrs_process_signals();
	worker_attach(DatumGetInt32(arg));
	BackgroundWorkerInitializeConnectionByOid(my_slot->dboid, my_slot->owner,
											  CQRS_WORKER_CONNECT_FLAGS);
	cqrs_process_settings();
	pgstat_report_appname("cqrs_outbox worker");

	for (;;)
	{
		int32		subscription_id;
		int64		wanted_look;
		bool		stop;
		bool		work;

		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		subscription_id = my_slot->subscription_id;
		wanted_look = my_slot->wanted_look;
		stop = my_slot->stop;
		work = cqrs_deliver && !stop && my_slot->retry_at == 0 &&
			wanted_look > my_slot->drained_look;
		my_slot->state = work ? CQRS_WORKER_DELIVERING : CQRS_WORKER_IDLE;
		LWLockRelease(cqrs_shared->lock);

		if (stop || TimestampDifferenceExceeds(idle_since,
											   GetCurrentTimestamp(),
											   LONGEST_IDLE))
			proc_exit(0);
		if (work)
		{
			deliver(subscription_id, wanted_look);
			idle_since = GetCurrentTimestamp();
		}
		else
			cqrs_process_wait(LONGEST_IDLE);
	}
}

/*
 * Take the slot that the manager chose, or exit if that is over.
 */
static void
worker_attach(int index)
{
	CqrsWorkerSlot *slot = &cqrs_shared->workers[index];

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (slot->state != CQRS_WORKER_STARTING || slot->pid != 0)
	{
		LWLockRelease(cqrs_shared->lock);
		proc_exit(0);
	}
	my_slot = slot;
	slot->pid = MyProcPid;
	slot->latch = MyLatch;
	LWLockRelease(cqrs_shared->lock);
	before_shmem_exit(worker_exit, (Datum) 0);
}

/*
 * Free the slot. Whoever waits for one is told. If this was not meant to be,
 * the manager is to wait before it starts another for the subscription.
 */
static void
worker_exit(int code, Datum arg)
{
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	my_slot->state = code == 0 ? CQRS_WORKER_FREE : CQRS_WORKER_FAILED;
	my_slot->pid = 0;
	my_slot->latch = NULL;
	cqrs_shmem_wake_all_managers();
	ConditionVariableBroadcast(&cqrs_shared->exited);
	LWLockRelease(cqrs_shared->lock);
}

/*
 * Deliver a subscription, and say in the slot how far it came.
 */
static void
deliver(int32 subscription_id, int64 wanted_look)
{
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz retry_at = 0;
	int			one_by_one;
	Outcome		outcome;

	pgstat_report_activity(STATE_RUNNING, "delivering events");
	reset_session();
	one_by_one = subscription_id == failed_subscription_id ?
		CQRS_BATCH_EVENTS : 0;
	do
	{
		outcome = deliver_batch(subscription_id,
								one_by_one > 0 ? 1 : CQRS_BATCH_EVENTS,
								one_by_one > 0, &retry_at);
		if (outcome == FAILED && one_by_one == 0)
		{
			one_by_one = CQRS_BATCH_EVENTS;
			outcome = DELIVERED;
		}
		else if (one_by_one > 0)
			one_by_one--;

		CHECK_FOR_INTERRUPTS();
		if (pg_atomic_read_u32(&cqrs_shared->contended) != 0 &&
			TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   TIME_SLICE))
		{
			pg_atomic_write_u32(&cqrs_shared->contended, 0);
			break;
		}
	} while (outcome == DELIVERED && cqrs_deliver);
	if (outcome == FAILED)
		failed_subscription_id = subscription_id;
	else if (subscription_id == failed_subscription_id)
		failed_subscription_id = 0;
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	if (my_slot->subscription_id == subscription_id)
	{
		if (outcome == DRAINED)
			my_slot->drained_look = wanted_look;
		else if (outcome == DELIVERED)
			my_slot->wanted_look = my_slot->drained_look;	/* to be asked again */
		my_slot->retry_at = retry_at;
	}
	my_slot->state = CQRS_WORKER_IDLE;
	if (outcome != DRAINED)
		cqrs_shmem_wake_all_managers();
	else
	{
		CqrsDatabaseSlot *database = cqrs_database_find(MyDatabaseId);

		/* The manager has other work for us only if some had to wait. */
		if (database != NULL && database->manager_latch != NULL &&
			pg_atomic_read_u32(&cqrs_shared->contended) != 0)
			SetLatch(database->manager_latch);
	}
	LWLockRelease(cqrs_shared->lock);
}

/*
 * Undo what a handler set for the session, be it the role: it was meant for
 * that handler, and the next one may be another subscription's.
 */
static void
reset_session(void)
{
	StartTransactionCommand();
	reset_role();
	ResetAllOptions();
	CommitTransactionCommand();
}

static void
reset_role(void)
{
	SetPGVariable("session_authorization", NIL, false);
	SetPGVariable("role", NIL, false);
}

/*
 * One transaction.
 *	max_events		at most so many events
 *	record_failure	FAILED: say so in cqrs.failure and in the log, and put
 *					the time of the next attempt into *retry_at
 */
static Outcome
deliver_batch(int32 subscription_id, int max_events, bool record_failure,
			  TimestampTz *retry_at)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Outcome outcome = DRAINED;
	CqrsDelivery delivery = {0};
	CqrsSubscription *subscription;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		subscription = begin_delivery(subscription_id);
		if (subscription != NULL)
		{
			cqrs_relay_deliver(subscription, max_events, &delivery);
			if (delivery.nevents > 0)
				outcome = DELIVERED;
			PopActiveSnapshot();
		}
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();

		/* What goes wrong in a batch is looked at one by one first. */
		if (record_failure)
			EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		outcome = FAILED;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);

	if (outcome == FAILED && record_failure)
		*retry_at = record(subscription_id, delivery.position, error);
	if (error != NULL)
		FreeErrorData(error);
	return outcome;
}

/*
 * Record a failure, in a transaction of its own. Returns when to try again.
 */
static TimestampTz
record(int32 subscription_id, int64 position, ErrorData *error)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz retry_at = GetCurrentTimestamp();
	CqrsSubscription *subscription;

	subscription = begin_delivery(subscription_id);
	if (subscription != NULL)
	{
		cqrs_relay_lock(subscription);
		retry_at = cqrs_failure_record(subscription_id, position, error);
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return retry_at;
}

/*
 * Begin a transaction in which the extension stays. Returns the subscription,
 * or NULL if it is not there, or not one for us, any more.
 */
static CqrsSubscription *
begin_delivery(int32 subscription_id)
{
	CqrsSubscription *subscription;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!OidIsValid(cqrs_extension_lock()))
		return NULL;

	/* The handler of the batch before may have left another one. */
	if (GetUserId() != my_slot->owner)
		reset_role();

	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL || !subscription->has_handler ||
		subscription->owner != GetUserId())
		return NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	return subscription;
}
