/*-------------------------------------------------------------------------
 *
 * underway.c
 *	  Batches under way up the stack: what happens when a handler moves its
 *	  own subscription.
 *
 * "Rebuild me" events are legitimate: their handler seeks or redrives the
 * subscription whose batch it is called from. By then, the cursor in memory is
 * ahead of the one in the table. Two moves from one row would collide, and a
 * seek would not find what this batch has parked. So
 *
 * 1. whoever moves a cursor has the batches under way settle first: the
 *	  cursor's next row is written as it will be when the event at hand is
 *	  done. What follows moves on from there, as if it came after the batch's
 *	  commit;
 * 2. the batch ends with the event at hand, and leaves the cursor as it finds it.
 *
 * What a handler does may be undone by an EXCEPTION block of its own. So whether
 * a batch was settled is told by the cursor in the table alone.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/snapmgr.h"

#include "delivery/underway.h"

CqrsUnderway *cqrs_underway_innermost = NULL;

/*
 * Is a batch of this subscription under way up the stack?
 */
bool
cqrs_underway_is(int32 subscription_id)
{
	CqrsUnderway *underway;

	for (underway = cqrs_underway_innermost; underway != NULL;
		 underway = underway->outer)
		if (underway->relay->cursor.subscription_id == subscription_id)
			return true;
	return false;
}

/*
 * Have the batches of this subscription settle. Called before its cursors are
 * read to be moved, under their locks.
 */
void
cqrs_underway_settle(int32 subscription_id)
{
	CqrsUnderway *underway;

	for (underway = cqrs_underway_innermost; underway != NULL;
		 underway = underway->outer)
	{
		CqrsRelay	relay = *underway->relay;

		if (relay.cursor.subscription_id != subscription_id ||
			cqrs_underway_moved(underway))
			continue;
		underway->settled = true;
		if (underway->parked)
		{
			relay.cursor.delivered++;
			cqrs_cursor_append(&relay.cursor);
		}
		else
			cqrs_relay_advance(&relay);
	}
}

/*
 * Did somebody other than the batch move the cursor, or is it gone?
 */
bool
cqrs_underway_moved(const CqrsUnderway *underway)
{
	const CqrsCursor *ours = &underway->relay->cursor;
	CqrsCursor	cursor;
	Snapshot	snapshot;
	bool		found;

	if (!underway->settled)
		return false;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = cqrs_cursor_read(ours->subscription_id, ours->partition, snapshot,
							 &cursor);
	UnregisterSnapshot(snapshot);
	return !found || cursor.seq != ours->seq;
}
