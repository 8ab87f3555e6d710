/*-------------------------------------------------------------------------
 *
 * job.c
 *	  A transaction of a worker's job, and what becomes of its error.
 *
 * What is done in the transaction differs between handlers and brokers: see
 * handler_job.c and broker_job.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "pgstat.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "delivery/attempt.h"
#include "delivery/handler_timeout.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "mediator/context.h"
#include "process/job.h"
#include "registry/registry.h"
#include "retry/failure.h"
#include "shared/bucket.h"
#include "shared/clock.h"

/*
 * How long to wait after an outage that cannot be recorded, in milliseconds.
 */
#define UNRECORDED_DELAY	1000

static CqrsBlame blame(const CqrsJob *job, const ErrorData *error,
					   bool timed_out);
static bool is_outage(const CqrsJob *job, const ErrorData *error,
					  bool timed_out);
static bool is_told(const CqrsJob *job, const ErrorData *error,
					bool timed_out);
static ErrorData *run(CqrsJob *job, CqrsJobFunction function,
					  CqrsConsumerFunction consumer_function);
static bool run_subscription(CqrsJob *job, CqrsJobFunction function);
static bool run_consumer(CqrsJob *job, CqrsConsumerFunction function);
static bool begin_transaction(void);
static void show(CqrsJob *job, const char *what, const char *name,
				 const char *part);
static bool record_outage(CqrsSubscription *subscription, CqrsJob *job);

/*
 * Run a function in a transaction. Returns the error that rolled it back, in
 * the current memory context, or NULL.
 */
ErrorData *
cqrs_job_run(CqrsJobFunction function, CqrsJob *job)
{
	return run(job, function, NULL);
}

/*
 * The same, of a job for a consumer.
 */
ErrorData *
cqrs_job_run_consumer(CqrsConsumerFunction function, CqrsJob *job)
{
	return run(job, NULL, function);
}

static ErrorData *
run(CqrsJob *job, CqrsJobFunction function,
	CqrsConsumerFunction consumer_function)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	job->phase = CQRS_JOB_SKIPPED;
	memset(&job->delivery, 0, sizeof(job->delivery));
	PG_TRY();
	{
		bool		done = consumer_function != NULL ?
		run_consumer(job, consumer_function) : run_subscription(job, function);

		job->phase = CQRS_JOB_COMMITTING;
		CommitTransactionCommand();
		if (!done)
			job->phase = CQRS_JOB_SKIPPED;
	}
	PG_CATCH();
	{
		bool		timed_out;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		timed_out = cqrs_handler_timeout_end();
		job->blame = blame(job, error, timed_out);
		if (is_told(job, error, timed_out))
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

static bool
run_subscription(CqrsJob *job, CqrsJobFunction function)
{
	CqrsSubscription *subscription = cqrs_job_begin(job);
	bool		done = false;

	if (subscription == NULL)
		return false;
	if (job->partition < subscription->partitions)
	{
		job->phase = CQRS_JOB_AT_WORK;
		show(job, "delivering subscription", subscription->name, "partition");
		done = function(subscription, job);
	}
	PopActiveSnapshot();
	return done;
}

static bool
run_consumer(CqrsJob *job, CqrsConsumerFunction function)
{
	CqrsConsumer *consumer = NULL;
	bool		done;

	if (begin_transaction())
		consumer = cqrs_registry_consumer_by_id(job->subscription_id);
	if (consumer == NULL || consumer->owner != GetUserId() ||
		!consumer->active || job->partition >= consumer->workers)
		return false;
	PushActiveSnapshot(GetTransactionSnapshot());
	job->phase = CQRS_JOB_AT_WORK;
	show(job, "consuming for consumer", consumer->name, "worker");
	done = function(consumer, job);
	PopActiveSnapshot();
	return done;
}

/*
 * Whose fault is an error that rolled a transaction back?
 */
static CqrsBlame
blame(const CqrsJob *job, const ErrorData *error, bool timed_out)
{
	if (is_outage(job, error, timed_out))
		return CQRS_BLAME_NOBODY;
	return !timed_out && cqrs_blame(error) == CQRS_BLAME_SUSPECT ?
		CQRS_BLAME_SUSPECT : CQRS_BLAME_EVENT;
}

/*
 * Is an error no event's fault? If it was raised in the middle of a batch,
 * evidence tells.
 */
static bool
is_outage(const CqrsJob *job, const ErrorData *error, bool timed_out)
{
	if (cqrs_blame(error) == CQRS_BLAME_NOBODY)
		return true;
	if (job->phase == CQRS_JOB_AT_WORK && job->delivery.position != 0 &&
		job->announced == 0)
		return false;
	return cqrs_target_is_outage(error) &&
		!(timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED);
}

/*
 * Is the error to be logged? Not if it makes us do part of the batch again
 * first.
 */
static bool
is_told(const CqrsJob *job, const ErrorData *error, bool timed_out)
{
	if (job->phase == CQRS_JOB_COMMITTING)
		return job->delivery.nevents <= 1;
	return job->delivery.position == 0 || job->announced != 0 ||
		job->blame == CQRS_BLAME_NOBODY ||
		(!timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED);
}

/*
 * Show in pg_stat_activity what is delivered: once a job, as it does not
 * change.
 */
static void
show(CqrsJob *job, const char *what, const char *name, const char *part)
{
	if (job->what[0] != '\0')
		return;
	snprintf(job->what, sizeof(job->what), "%s \"%s\" %s %d", what, name, part,
			 job->partition);
	pgstat_report_activity(STATE_RUNNING, job->what);
}

/*
 * Begin a transaction in which the extension cannot be dropped. Returns the
 * subscription, or NULL if it is gone, or not for us any more.
 */
CqrsSubscription *
cqrs_job_begin(const CqrsJob *job)
{
	CqrsSubscription *subscription;

	if (!begin_transaction())
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

/*
 * Begin a transaction in which the extension cannot be dropped. Returns false if it
 * is not there, or not to be used.
 */
static bool
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	return OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable() &&
		!cqrs_registry_is_copy();
}

/*
 * Choose the event to deliver next, and count the attempt beforehand, if the
 * subscription's rate, and its key's, allow one.
 */
bool
cqrs_job_announce(CqrsSubscription *subscription, CqrsJob *job)
{
	int64		interval = subscription->rate_interval;
	TimestampTz next;

	job->announced = 0;
	job->delivery.paced_until = 0;
	if (interval != 0 &&
		!cqrs_bucket_take(subscription->subscription_id, interval, &next))
	{
		job->delivery.paced_until = cqrs_steady_to_wall(next);
		return true;
	}
	job->announced = cqrs_target_announce(subscription, job->partition,
										  &job->delivery);
	if (interval != 0 && job->announced == 0)
		cqrs_bucket_give_back(subscription->subscription_id, interval);
	cqrs_commit_durably();
	return true;
}

/*
 * Lock the cursor. Returns false if its partition went away while we waited:
 * then nothing may be recorded of it, as nobody would clear that.
 */
bool
cqrs_job_lock_cursor(const CqrsSubscription *subscription, const CqrsJob *job)
{
	(void) cqrs_subscription_lock(subscription, job->partition, true);
	return job->partition <
		cqrs_subscription_get(subscription->name)->partitions;
}

/*
 * Record, if possible, an error that is no event's fault, and free it.
 */
CqrsJobOutcome
cqrs_job_fail(CqrsJob *job, ErrorData *error)
{
	job->error = error;
	job->failed_until = TimestampTzPlusMilliseconds(cqrs_wall_now(),
													UNRECORDED_DELAY);
	(void) cqrs_job_run(record_outage, job);
	FreeErrorData(error);
	return CQRS_JOB_FAILED;
}

static bool
record_outage(CqrsSubscription *subscription, CqrsJob *job)
{
	if (!cqrs_job_lock_cursor(subscription, job))
		return false;
	job->failed_until = cqrs_failure_record(job->subscription_id,
											job->partition, job->error,
											CQRS_FAILURE_DELAY);
	if (job->announced != 0)
		cqrs_target_void_attempt(subscription, job->partition, job->announced,
								 job->error, job->failed_until);
	return true;
}

/*
 * Does the subscription have to wait, because events failed and none is to blame?
 * Says so in the log.
 */
bool
cqrs_job_must_wait(CqrsJob *job)
{
	if (job->delivery.outage == 0)
		return false;
	ereport(LOG,
			(errcode(job->delivery.outage),
			 job->delivery.lone ?
			 errmsg("an event fails, and there is no other to tell by whose fault that is") :
			 errmsg("events fail, and none is to blame"),
			 errdetail_internal("%s", job->delivery.message),
			 errcontext("%s", job->what)));

	/* What comes next shows whose fault it is. */
	if (job->delivery.lone)
		return false;
	job->failed_until = job->delivery.failed_until;
	return true;
}
