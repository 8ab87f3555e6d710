/*-------------------------------------------------------------------------
 *
 * delivered.c
 *	  Waiting, for a while, for what deliveries do.
 *
 * Whoever waits looks, and sleeps until a worker has delivered. Clients that pull, and
 * sessions that drain by hand, wake nobody: so he looks by himself now and then, too.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "storage/condition_variable.h"
#include "utils/timestamp.h"

#include "base/interval.h"
#include "shared/clock.h"
#include "shared/delivered.h"
#include "shared/shmem.h"

/* How often one who waits looks by himself, in milliseconds. */
#define WAIT_POLL	100

/* ... and for how long, unless he is told, in milliseconds. */
#define WAIT_TIMEOUT	10000

/*
 * The steady time until which the function that is called is to wait: its argument,
 * counted from 0, is an interval, or NULL for the usual time. Raises 22023 for a
 * negative one.
 */
TimestampTz
cqrs_delivered_deadline(FunctionCallInfo fcinfo, int argument)
{
	TimestampTz now = cqrs_steady_now();
	TimestampTz deadline = PG_ARGISNULL(argument) ?
	TimestampTzPlusMilliseconds(now, WAIT_TIMEOUT) :
	cqrs_time_plus(now, PG_GETARG_DATUM(argument));

	if (deadline < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	return deadline;
}

/*
 * Sleep until it may be time to look again; not beyond the deadline. If the caller
 * has not prepared to sleep on cqrs_shared->delivered, this does so, and returns at
 * once.
 */
void
cqrs_delivered_sleep(TimestampTz deadline, uint32 wait_event_info)
{
	long		left = TimestampDifferenceMilliseconds(cqrs_steady_now(),
													   deadline);

	(void) ConditionVariableTimedSleep(&cqrs_shared->delivered,
									   Min(left + 1, WAIT_POLL),
									   wait_event_info);
}
