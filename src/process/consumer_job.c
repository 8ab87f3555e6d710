/*-------------------------------------------------------------------------
 *
 * consumer_job.c
 *	  A worker's job for a source of messages: connect, store what comes, wait.
 *
 * There is never nothing more to do, except for one that is paused, or has no part
 * of the source: the job lasts as long as the worker, and the worker serves nothing
 * else. intake.c has what is done in each transaction.
 *
 * A client library may end the process. So if the process before this one ended
 * that way, an attempt to connect is recorded as a failure, with its delay, before
 * it is made.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "pgstat.h"

#include "broker/server.h"
#include "extension/catalog.h"
#include "include/cqrs_broker.h"
#include "inbox/intake.h"
#include "inbox/place.h"
#include "process/job.h"
#include "process/process.h"
#include "registry/registry.h"
#include "retry/failure.h"
#include "shared/clock.h"

static CqrsJobOutcome open_connection(CqrsJob *job);
static CqrsJobOutcome run(CqrsJob *job, CqrsConsumerFunction function,
						  void (*done) (void));
static CqrsJobOutcome fail(CqrsJob *job, const ErrorData *error);
static CqrsJobOutcome lost(CqrsJob *job, const char *message);
static bool prepare(CqrsConsumer *consumer, CqrsJob *job);
static bool plan(CqrsConsumer *consumer, CqrsJob *job);
static bool store(CqrsConsumer *consumer, CqrsJob *job);
static bool check(CqrsConsumer *consumer, CqrsJob *job);
static bool record_failure(CqrsConsumer *consumer, CqrsJob *job);

/*
 * Do what there is to do for the connection.
 */
CqrsJobOutcome
cqrs_consumer_job_step(CqrsJob *job)
{
	static uint32 wait_event = 0;
	char		error[CQRS_BROKER_ERROR_SIZE] = "";

	if (job->finish)
	{
		cqrs_intake_close();
		return CQRS_JOB_DRAINED;
	}
	switch (cqrs_intake_task(error))
	{
		case CQRS_INTAKE_OPEN:
			return open_connection(job);
		case CQRS_INTAKE_PLAN:
			return run(job, plan, cqrs_intake_planned);
		case CQRS_INTAKE_STORE:
			return run(job, store, cqrs_intake_stored);
		case CQRS_INTAKE_CHECK:
			return run(job, check, NULL);
		case CQRS_INTAKE_WAIT:
			cqrs_process_wait(cqrs_intake_patience(), cqrs_intake_fd(),
							  CQRS_WAIT_EVENT(wait_event, "CqrsOutboxSource"));
			return CQRS_JOB_DELIVERED;
		case CQRS_INTAKE_RENEW:
			cqrs_intake_close();
			return CQRS_JOB_DELIVERED;
		case CQRS_INTAKE_FAIL:
			return lost(job, error);
	}
	pg_unreachable();
}

static CqrsJobOutcome
open_connection(CqrsJob *job)
{
	ErrorData  *error;

	cqrs_intake_close();
	error = cqrs_job_run_consumer(prepare, job);
	if (error != NULL)
		return fail(job, error);
	if (job->phase == CQRS_JOB_SKIPPED)
	{
		cqrs_intake_close();
		return CQRS_JOB_DRAINED;
	}
	if (job->failed_until != 0)
		return CQRS_JOB_FAILED;
	cqrs_intake_connect();
	return CQRS_JOB_DELIVERED;
}

/*
 * A transaction, and what is done once it has committed.
 */
static CqrsJobOutcome
run(CqrsJob *job, CqrsConsumerFunction function, void (*done) (void))
{
	ErrorData  *error = cqrs_job_run_consumer(function, job);

	if (error != NULL)
	{
		if (cqrs_intake_goes_apart())
		{
			FreeErrorData(error);
			return CQRS_JOB_DELIVERED;
		}
		return fail(job, error);
	}
	if (job->phase == CQRS_JOB_SKIPPED)
	{
		cqrs_intake_close();
		return CQRS_JOB_DRAINED;
	}
	job->careful = 0;
	if (done != NULL)
		done();
	return CQRS_JOB_DELIVERED;
}

/*
 * An error is no message's fault: record it, and wait.
 */
static CqrsJobOutcome
fail(CqrsJob *job, const ErrorData *error)
{
	job->error = error;
	job->failed_until = TimestampTzPlusMilliseconds(cqrs_wall_now(),
													CQRS_FAILURE_DELAY);
	(void) cqrs_job_run_consumer(record_failure, job);

	/* This may end the process, so it comes last. */
	cqrs_intake_close();
	return CQRS_JOB_FAILED;
}

static CqrsJobOutcome
lost(CqrsJob *job, const char *message)
{
	ErrorData	error = {0};

	error.elevel = LOG;
	error.sqlerrcode = ERRCODE_CONNECTION_FAILURE;
	error.message = cqrs_broker_error(message);
	ereport(LOG,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("the connection was lost while %s", job->what),
			 errdetail_internal("%s", error.message)));
	return fail(job, &error);
}

/*
 * Find out how to connect, unless job->failed_until says to wait, or it is not to.
 */
static bool
prepare(CqrsConsumer *consumer, CqrsJob *job)
{
	int			failed_before;

	/* The broker is not even connected to. */
	if (cqrs_places_are_restored(consumer->consumer_id))
		return false;
	job->failed_until = cqrs_failure_retry_at(job->subscription_id,
											  job->partition, &failed_before);
	if (job->failed_until > cqrs_wall_now())
		return true;
	job->failed_until = 0;
	if (job->careful > 0)
	{
		ErrorData  *crash = palloc0(sizeof(ErrorData));

		crash->sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
		crash->message = psprintf("the server process ended while it consumed from server \"%s\"",
								  consumer->server);
		job->error = crash;
		(void) record_failure(consumer, job);
		job->failed_until = 0;
		failed_before = crash->sqlerrcode;
		cqrs_commit_durably();
	}
	cqrs_intake_prepare(consumer, job->partition, failed_before != 0);
	return true;
}

static bool
plan(CqrsConsumer *consumer, CqrsJob *job)
{
	return cqrs_intake_plan(consumer);
}

static bool
store(CqrsConsumer *consumer, CqrsJob *job)
{
	cqrs_intake_store(consumer);
	return true;
}

static bool
check(CqrsConsumer *consumer, CqrsJob *job)
{
	cqrs_intake_check(consumer);
	return true;
}

static bool
record_failure(CqrsConsumer *consumer, CqrsJob *job)
{
	/* Whoever drops the consumer clears up. */
	(void) cqrs_object_lock(CQRS_REL_CONSUMER, consumer->consumer_id, 0,
							ShareLock, true);
	if (cqrs_registry_consumer_by_id(consumer->consumer_id) == NULL)
		return false;
	job->failed_until = cqrs_failure_record(consumer->consumer_id,
											job->partition, job->error,
											CQRS_FAILURE_DELAY);
	return true;
}
