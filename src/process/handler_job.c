/*-------------------------------------------------------------------------
 *
 * handler_job.c
 *	  A worker's job for a handler: batches, and what their errors lead to.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "pgstat.h"
#include "utils/snapmgr.h"

#include "delivery/attempt.h"
#include "delivery/handler_timeout.h"
#include "delivery/session.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "mediator/context.h"
#include "process/job.h"
#include "process/process.h"
#include "retry/failure.h"
#include "shared/clock.h"

/* How long to wait here for what a rate allows, in milliseconds. */
#define LONGEST_PACE	1000

/* How long to let others have what they want, in milliseconds; then twice, ... */
#define SHORTEST_WAIT	5

/* What is being delivered now. */
static CqrsJob *delivering = NULL;

static CqrsJobOutcome pace(CqrsJob *job);
static CqrsJobOutcome batch_failed(CqrsJob *job, ErrorData *error);
static void give_way(const CqrsJob *job, const ErrorData *error);
static bool batch_is_repeated(CqrsJob *job, const ErrorData *error);
static bool deliver(CqrsSubscription *subscription, CqrsJob *job);
static bool record_event(CqrsSubscription *subscription, CqrsJob *job);

/*
 * Deliver one batch, or do what an error in it calls for.
 */
CqrsJobOutcome
cqrs_handler_job_step(CqrsJob *job)
{
	ErrorData  *error;

	job->announced = 0;
	if (job->careful > 0)
	{
		if ((error = cqrs_job_run(cqrs_job_announce, job)) != NULL)
			return cqrs_job_fail(job, error);
		if (job->delivery.paced_until != 0)
			return pace(job);
		if (job->announced == 0)
			return job->delivery.more ? CQRS_JOB_DELIVERED : CQRS_JOB_DRAINED;
		job->careful--;
	}

	delivering = job;
	error = cqrs_job_run(deliver, job);
	delivering = NULL;
	cqrs_session_after_transaction();
	if (error != NULL)
		return batch_failed(job, error);

	if (job->delivery.not_flushed && job->flush_at == 0)
		job->flush_at =
			TimestampTzPlusMilliseconds(cqrs_steady_now(),
										cqrs_batch_duration);
	if (job->one_by_one > 0)
		job->one_by_one--;
	cqrs_pace_done(&job->pace, &job->delivery);
	if (cqrs_job_must_wait(job))
		return CQRS_JOB_FAILED;
	if (job->delivery.paced_until != 0)
		return pace(job);
	if (job->delivery.announce)
		job->careful = Max(job->careful, 1);
	return job->delivery.more || job->announced != 0 || job->careful > 0 ?
		CQRS_JOB_DELIVERED : CQRS_JOB_DRAINED;
}

/*
 * The subscription's rate allows no more calls for a while. If it is to be found out
 * which event made a commit fail, that must not be forgotten.
 */
static CqrsJobOutcome
pace(CqrsJob *job)
{
	static uint32 wait_event = 0;
	TimestampTz until = job->delivery.paced_until;
	long		wait = TimestampDifferenceMilliseconds(cqrs_wall_now(), until);

	if (job->one_by_one > 0 && wait < LONGEST_PACE)
	{
		cqrs_process_wait(wait + 1, PGINVALID_SOCKET,
						  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxWorkerPaced"));
		return CQRS_JOB_DELIVERED;
	}
	job->failed_until = until;
	return CQRS_JOB_FAILED;
}

/*
 * A batch was rolled back: find out which event is to blame, if any, and record
 * it. Frees the error.
 */
static CqrsJobOutcome
batch_failed(CqrsJob *job, ErrorData *error)
{
	if (!batch_is_repeated(job, error))
	{
		if (job->position == 0 || job->blame == CQRS_BLAME_NOBODY)
			return cqrs_job_fail(job, error);
		job->error = error;
		if (cqrs_job_run(record_event, job) != NULL)
			return cqrs_job_fail(job, error);
	}
	else
		give_way(job, error);
	FreeErrorData(error);
	return CQRS_JOB_DELIVERED;
}

/*
 * The first event met others, and is to be tried again. Who waits for what it had
 * must first get it: else it takes that again before they wake up, and meets them
 * again.
 */
static void
give_way(const CqrsJob *job, const ErrorData *error)
{
	static uint32 wait_event = 0;

	if (job->pace.again > 0 && cqrs_error_is_transient(error))
		cqrs_process_wait(SHORTEST_WAIT << (job->pace.again - 1),
						  PGINVALID_SOCKET,
						  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxWorkerGivesWay"));
}

/*
 * Is the batch to be delivered again, in another way, before its error counts?
 * If not, job->position is the event that met it, or 0.
 */
static bool
batch_is_repeated(CqrsJob *job, const ErrorData *error)
{
	int			nevents = job->delivery.nevents;

	if (job->phase != CQRS_JOB_COMMITTING)
	{
		job->position = job->delivery.position;
		if (job->announced != 0 || job->blame == CQRS_BLAME_NOBODY ||
			job->position == 0)
			return false;

		/* Do those before it again; then call it apart. */
		cqrs_pace_failed(&job->pace, &job->delivery, error);
		return true;
	}

	/* The commit failed: which event made it? */
	job->position = job->delivery.last;
	if (nevents > 1 || (nevents == 1 && job->delivery.nfailed > 0))
	{
		job->one_by_one = nevents;
		return true;
	}
	if (cqrs_error_is_transient(error) && job->announced == 0 &&
		!job->delivery.paced &&
		job->pace.again < CQRS_TRANSIENT_TRIES)
	{
		job->pace.again++;
		return true;
	}
	return false;
}

/*
 * Deliver a batch, or the announced event.
 */
static bool
deliver(CqrsSubscription *subscription, CqrsJob *job)
{
	cqrs_target_deliver(subscription, job->partition, &job->pace,
						job->one_by_one > 0, job->announced, cqrs_wall_now(),
						true, &job->delivery);

	if (!job->cleared && cqrs_delivery_works(&job->delivery))
	{
		cqrs_failure_clear(job->subscription_id, job->partition);
		job->cleared = true;
	}
	return true;
}

static bool
record_event(CqrsSubscription *subscription, CqrsJob *job)
{
	if (job->announced != 0 && job->blame == CQRS_BLAME_SUSPECT)
		cqrs_target_void_attempt(subscription, job->partition, job->position,
								 job->error,
								 TimestampTzPlusMilliseconds(cqrs_wall_now(),
															 CQRS_FAILURE_DELAY));
	else
		(void) cqrs_target_failed(subscription, job->partition, job->position,
								  job->error, job->announced != 0);
	return true;
}

/*
 * Wait for the disk, and for a standby where replication is synchronous, until
 * all that was delivered is safe.
 */
void
cqrs_handler_job_flush(CqrsJob *job)
{
	if (job->flush_at == 0)
		return;
	job->flush_at = 0;
	cqrs_flush(XactLastCommitEnd);
}

/*
 * The process ends. If that is because a handler would not be cancelled,
 * record that its event failed. Nothing can interrupt us now, so if somebody
 * else has the cursor's lock, let it be. If others of the batch come before
 * the event, they are to be done again first; if it had several events at once, it
 * may have been any of them. In all of these cases the next process is to be
 * careful, and this returns false.
 */
bool
cqrs_handler_job_blame_overdue(void)
{
	CqrsJob    *job = delivering;
	CqrsSubscription *subscription;
	ErrorData	error = {0};
	bool		blamed = false;

	delivering = NULL;
	if (job == NULL || !cqrs_handler_is_overdue() ||
		job->delivery.position == 0 || job->delivery.array > 1)
		return false;
	cqrs_context_innermost = NULL;
	cqrs_underway_innermost = NULL;
	subscription = cqrs_job_begin(job);
	if (subscription != NULL && job->partition < subscription->partitions &&
		cqrs_subscription_lock(subscription, job->partition, false))
	{
		error.sqlerrcode = ERRCODE_QUERY_CANCELED;
		error.message = psprintf("handler of subscription \"%s\" took longer than its delivery_timeout, and would not be canceled",
								 subscription->name);
		blamed = cqrs_target_failed(subscription, job->partition,
									job->delivery.position, &error,
									job->announced != 0);
	}
	if (subscription != NULL)
		PopActiveSnapshot();
	CommitTransactionCommand();
	return blamed;
}
