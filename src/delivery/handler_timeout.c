/*-------------------------------------------------------------------------
 *
 * handler_timeout.c
 *	  The time that a handler of events may take, in a worker.
 *
 * The timeout cancels the handler like pg_cancel_backend(). A handler that
 * catches this fails when it returns; if it does not return within HANDLER_GRACE,
 * the process ends, and the worker records the event as failed on its way out.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timeout.h"

#include "delivery/handler_timeout.h"

/* How long a handler that catches its timeout may go on, in milliseconds. */
#define HANDLER_GRACE	1000

static bool registered = false;
static bool armed = false;
static TimeoutId timeout_id;
static TimeoutId grace_id;
static volatile sig_atomic_t timed_out = false;
static volatile sig_atomic_t overdue = false;

static void time_is_over(void);
static void grace_is_over(void);

/*
 * Limit the time of a call, in milliseconds. While it is limited, this sets another
 * limit, from now on.
 */
void
cqrs_handler_timeout_begin(int64 timeout)
{
	if (!registered)
	{
		timeout_id = RegisterTimeout(USER_TIMEOUT, time_is_over);
		grace_id = RegisterTimeout(USER_TIMEOUT, grace_is_over);
		registered = true;
	}
	timed_out = false;
	armed = true;
	enable_timeout_after(timeout_id, (int) Min(timeout, INT_MAX));
}

bool
cqrs_handler_timeout_is_armed(void)
{
	return armed;
}

/*
 * The handler has returned, in time or not.
 */
void
cqrs_handler_timeout_disarm(void)
{
	armed = false;
	disable_timeout(timeout_id, false);
	if (timed_out)
		disable_timeout(grace_id, false);
}

bool
cqrs_handler_timed_out(void)
{
	return timed_out;
}

/*
 * The last call, which may have had no limit, raised an error. Was that because
 * its time was over? To be asked once, when the error is handled: the next call
 * may be cancelled by somebody else.
 */
bool
cqrs_handler_timeout_end(void)
{
	bool		result = timed_out;

	if (registered)
		cqrs_handler_timeout_disarm();
	timed_out = false;
	return result;
}

/*
 * Does this process end because a handler caught its timeout?
 */
bool
cqrs_handler_is_overdue(void)
{
	return overdue;
}

/*
 * Runs in the signal handler of SIGALRM.
 */
static void
time_is_over(void)
{
	timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
	enable_timeout_after(grace_id, HANDLER_GRACE);
}

/*
 * Likewise. The handler cannot catch this one.
 */
static void
grace_is_over(void)
{
	overdue = true;
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}
