/*-------------------------------------------------------------------------
 *
 * epoch_close.c
 *	  Closes epochs, to complete changes of partitions; see epoch.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "process/epoch_close.h"
#include "process/schedule.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "subscription/epoch.h"

/* How often the manager tries to close, at least and at most; milliseconds. */
#define SHORTEST_WAIT	10
#define LONGEST_WAIT	500

/* How long one that raised an error is left alone, in milliseconds. */
#define ERROR_WAIT		60000

/* A subscription whose partitions are being changed. */
typedef struct Closing
{
	int32		subscription_id;
	bool		closed;
} Closing;

static bool close_epochs(TimestampTz now);
static void close_epoch(void *arg);

/*
 * Close what can be closed; the manager calls this in each of its cycles,
 * outside a transaction. look is the number of the last look. Returns how long
 * to wait then, in milliseconds: no longer than wait (-1: until woken), for
 * what else there is to do.
 */
long
cqrs_epoch_next(CqrsDatabaseSlot *slot, int64 look, long wait)
{
	static int	pause = SHORTEST_WAIT;
	static TimestampTz tried = 0;
	static int64 last_look = 0;
	TimestampTz now = cqrs_steady_now();

	if (cqrs_schedule_epochs() == NIL)
		return wait;
	if (look != last_look)
		pause = SHORTEST_WAIT;
	last_look = look;
	if (TimestampDifferenceExceeds(tried, now, pause))
	{
		tried = now;
		pause = Min(2 * pause, LONGEST_WAIT);
		if (close_epochs(now))
			ConditionVariableBroadcast(&slot->ticked);
	}
	return cqrs_sooner(wait, now, TimestampTzPlusMilliseconds(tried, pause));
}

/*
 * Close those that can be closed, each in a transaction of its own, so that an
 * error concerns no other. Returns whether there were any.
 */
static bool
close_epochs(TimestampTz now)
{
	static List *failed = NIL;
	static TimestampTz failed_until = 0;
	MemoryContext oldcontext;
	ListCell   *lc;
	bool		closed = false;

	if (now >= failed_until)
	{
		list_free(failed);
		failed = NIL;
	}
	foreach(lc, cqrs_schedule_epochs())
	{
		Closing		closing = {lfirst_int(lc), false};

		if (list_member_int(failed, closing.subscription_id))
			continue;
		if (cqrs_registry_run_guarded(close_epoch, &closing, NULL))
		{
			closed |= closing.closed;
			continue;
		}
		oldcontext = MemoryContextSwitchTo(TopMemoryContext);
		failed = lappend_int(failed, lfirst_int(lc));
		MemoryContextSwitchTo(oldcontext);
		failed_until = TimestampTzPlusMilliseconds(now, ERROR_WAIT);
	}
	return closed;
}

static void
close_epoch(void *arg)
{
	Closing    *closing = (Closing *) arg;

	closing->closed = cqrs_epoch_close(closing->subscription_id);
}
