/*-------------------------------------------------------------------------
 *
 * epoch_close.c
 *	  Has changes of partitions come to their end; see epoch.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "extension/catalog.h"
#include "process/epoch_close.h"
#include "process/schedule.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "subscription/epoch.h"

/* How often the manager tries to close, at least and at most; milliseconds. */
#define SHORTEST_WAIT	10
#define LONGEST_WAIT	500

/* One that raised an error is left alone for so long; the same. */
#define ERROR_WAIT		60000

static bool close_epochs(TimestampTz now);
static bool close_in_transaction(int32 subscription_id, bool *closed);

/*
 * The manager calls this in each of its cycles, outside a transaction: closes
 * what can be closed. look: the number of the last look. Returns how long to
 * wait then, in milliseconds, if it is wait (-1: until woken) for what else
 * there is to do.
 */
long
cqrs_epoch_next(CqrsDatabaseSlot *slot, int64 look, long wait)
{
	static int	pause = SHORTEST_WAIT;
	static TimestampTz tried = 0;
	static int64 last_look = 0;
	TimestampTz now = cqrs_steady_now();
	long		until;

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
	until = TimestampDifferenceMilliseconds(now,
											TimestampTzPlusMilliseconds(tried,
																		pause));
	return wait < 0 ? until : Min(wait, until);
}

/*
 * Close those that can be closed, each in a transaction of its own. Returns
 * whether there were any.
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
		if (list_member_int(failed, lfirst_int(lc)) ||
			close_in_transaction(lfirst_int(lc), &closed))
			continue;
		oldcontext = MemoryContextSwitchTo(TopMemoryContext);
		failed = lappend_int(failed, lfirst_int(lc));
		MemoryContextSwitchTo(oldcontext);
		failed_until = TimestampTzPlusMilliseconds(now, ERROR_WAIT);
	}
	return closed;
}

/*
 * Sets *closed if it could be. An error is logged, and concerns no other
 * subscription: then returns false.
 */
static bool
close_in_transaction(int32 subscription_id, bool *closed)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	volatile bool done = false;
	volatile bool now_closed = false;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable())
			now_closed = cqrs_epoch_close(subscription_id);
		PopActiveSnapshot();
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
		now_closed = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	pgstat_report_stat(false);
	*closed |= now_closed;
	return done;
}
