/*-------------------------------------------------------------------------
 *
 * broker_job.c
 *	  A worker's job for a broker: connect, exchange, wait.
 *
 * A client library may end the process. So if the process before this one ended
 * that way, an attempt to connect is recorded as a failure, with its delay,
 * before it is made.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "pgstat.h"

#include "delivery/attempt.h"
#include "delivery/broker_exchange.h"
#include "delivery/target_broker.h"
#include "include/cqrs_broker.h"
#include "process/job.h"
#include "process/process.h"
#include "retry/failure.h"
#include "shared/clock.h"

static CqrsJobOutcome open_connection(CqrsJob *job);
static CqrsJobOutcome exchange(CqrsJob *job);
static CqrsJobOutcome connection_lost(CqrsJob *job, const char *message);
static CqrsJobOutcome stopped(CqrsJob *job);
static CqrsJobOutcome close_and_fail(CqrsJob *job, ErrorData *error);
static void wait_for_broker(void);
static bool run_prepare(CqrsSubscription *subscription, CqrsJob *job);
static bool run_exchange(CqrsSubscription *subscription, CqrsJob *job);

/*
 * Do what there is to do for the connection.
 */
CqrsJobOutcome
cqrs_broker_job_step(CqrsJob *job)
{
	char		error[CQRS_BROKER_ERROR_SIZE];

	switch (cqrs_target_broker_task(job->finish, error))
	{
		case CQRS_BROKER_TASK_OPEN:
			return open_connection(job);
		case CQRS_BROKER_TASK_WAIT:
			wait_for_broker();
			return CQRS_JOB_DELIVERED;
		case CQRS_BROKER_TASK_EXCHANGE:
			return exchange(job);
		case CQRS_BROKER_TASK_RENEW:
			cqrs_target_broker_close();
			return CQRS_JOB_DELIVERED;
		case CQRS_BROKER_TASK_FAIL:
			if (!job->first || cqrs_broker_pending() > 0)
				return connection_lost(job, error);

			/* It was lost while there was nothing to do: try anew at once. */
			cqrs_target_broker_close();
			return CQRS_JOB_DELIVERED;
		case CQRS_BROKER_TASK_STOP:
			return stopped(job);
	}
	pg_unreachable();
}

static CqrsJobOutcome
open_connection(CqrsJob *job)
{
	ErrorData  *error;

	if (job->finish)
		return CQRS_JOB_DRAINED;
	error = cqrs_job_run(run_prepare, job);
	if (error != NULL)
		return close_and_fail(job, error);
	if (job->phase == CQRS_JOB_SKIPPED)
		return CQRS_JOB_DRAINED;
	if (job->failed_until != 0)
		return CQRS_JOB_FAILED;
	cqrs_target_broker_connect();
	return CQRS_JOB_DELIVERED;
}

/*
 * Record what the broker said, and read on.
 */
static CqrsJobOutcome
exchange(CqrsJob *job)
{
	ErrorData  *error;
	bool		done;

	job->announced = 0;
	if (job->careful > 0 && cqrs_broker_pending() == 0 &&
		cqrs_target_broker_may_announce() && !job->finish)
	{
		error = cqrs_job_run(cqrs_job_announce, job);
		if (error != NULL)
			return close_and_fail(job, error);
		if (job->announced == 0)
		{
			if (job->phase != CQRS_JOB_SKIPPED)
				return job->delivery.more ? CQRS_JOB_DELIVERED :
					CQRS_JOB_DRAINED;
			cqrs_target_broker_close();
			return CQRS_JOB_DRAINED;
		}
		job->careful--;
	}

	error = cqrs_job_run(run_exchange, job);
	if (error != NULL)
		return close_and_fail(job, error);
	if (job->delivery.announce)
		job->careful = Max(job->careful, 1);
	done = job->finish || (!job->delivery.more && job->careful == 0);
	if (cqrs_job_must_wait(job))
	{
		cqrs_target_broker_close();
		return CQRS_JOB_FAILED;
	}
	if (job->phase == CQRS_JOB_SKIPPED)
	{
		cqrs_target_broker_close();
		done = true;
	}
	return done && cqrs_broker_pending() == 0 ?
		CQRS_JOB_DRAINED : CQRS_JOB_DELIVERED;
}

/*
 * The connection is lost, or as good as: record what the broker said before.
 */
static CqrsJobOutcome
connection_lost(CqrsJob *job, const char *message)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->elevel = LOG;
	error->sqlerrcode = ERRCODE_CONNECTION_FAILURE;
	error->message = pstrdup(message);
	job->finish = true;
	job->announced = 0;
	job->lost = message;
	(void) cqrs_job_run(run_exchange, job);
	(void) cqrs_job_fail(job, error);

	/* This may end the process, so it comes last. */
	cqrs_target_broker_close();
	return CQRS_JOB_FAILED;
}

/*
 * Nothing may be sent before a person has said what is to be, or somebody else has
 * done something: look again later.
 */
static CqrsJobOutcome
stopped(CqrsJob *job)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->elevel = LOG;
	error->sqlerrcode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->message = pstrdup(cqrs_target_broker_stopped());
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("%s", error->message),
			 errcontext("%s", job->what)));
	return close_and_fail(job, error);
}

static CqrsJobOutcome
close_and_fail(CqrsJob *job, ErrorData *error)
{
	cqrs_target_broker_close();
	return cqrs_job_fail(job, error);
}

static void
wait_for_broker(void)
{
	static uint32 wait_event = 0;

	cqrs_process_wait(cqrs_target_broker_patience(), cqrs_target_broker_fd(),
					  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxBroker"));
}

/*
 * Find out how to connect, unless job->failed_until says to wait. The delay
 * after the last failure is observed, even if that was another process's.
 */
static bool
run_prepare(CqrsSubscription *subscription, CqrsJob *job)
{
	int			failed_before;

	job->failed_until = cqrs_failure_retry_at(job->subscription_id,
											  job->partition, &failed_before);
	if (job->failed_until > cqrs_wall_now())
		return true;
	job->failed_until = 0;
	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
		return false;
	if (job->careful > 0)
	{
		ErrorData	crash = {0};

		crash.sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
		crash.message = psprintf("the server process ended while it was connected to server \"%s\"",
								 subscription->server);
		if (!cqrs_job_lock_cursor(subscription, job))
			return false;
		(void) cqrs_failure_record(job->subscription_id, job->partition,
								   &crash, CQRS_FAILURE_DELAY);
		cqrs_commit_durably();
	}
	return cqrs_target_broker_prepare(subscription, job->partition,
									  failed_before);
}

static bool
run_exchange(CqrsSubscription *subscription, CqrsJob *job)
{
	bool		read = !job->finish &&
	(job->careful == 0 || job->announced != 0);

	cqrs_broker_exchange(subscription, read, job->announced, job->lost,
						 &job->delivery);

	/*
	 * That it can be connected to, or rejects what is sent, does not show
	 * that it works.
	 */
	if (job->delivery.nevents > 0 ||
		(!job->finish && !job->delivery.more && !job->delivery.failing))
		cqrs_failure_clear(job->subscription_id, job->partition);
	return true;
}
