/*-------------------------------------------------------------------------
 *
 * broker_sent.c
 *	  What a cursor's row says of a broker's transactions, and who changes it
 *	  besides the worker; see broker_transaction.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "delivery/broker_sent.h"
#include "retry/retry.h"
#include "shared/clock.h"

/*
 * The events of the intent were sent: the cursor, under its lock, passes them.
 */
void
cqrs_sent_apply(CqrsCursor *cursor)
{
	CqrsSent   *sent = &cursor->sent;

	if (!sent->intent.given || sent->intent_position == 0)
		return;
	if (sent->intent_parked)
	{
		CqrsParked	parked;

		if (!cqrs_parked_find(cursor, sent->intent_position, &parked))
			return;
		cqrs_parked_done(&parked, cursor);
	}
	else if (cursor->until_tick != 0)
	{
		cursor->position = Max(cursor->position, sent->intent_position);
		cursor->last_position = Max(cursor->last_position, cursor->position);
		cqrs_cursor_forget_passed(cursor);
	}
	cursor->delivered += sent->intent_events;
	cursor->passed_at = cqrs_wall_now();
}

/*
 * The subscription, whose locks are held, is delivered exactly once from now on; or,
 * with elsewhere, to another server.
 */
void
cqrs_sent_begin(const CqrsSubscription *subscription, bool elsewhere)
{
	CqrsCursor *cursors = cqrs_cursor_read_all(subscription->subscription_id,
											   subscription->partitions);
	int			i;

	for (i = 0; i < subscription->partitions; i++)
	{
		bool		changed = elsewhere && cqrs_sent_elsewhere(&cursors[i].sent);

		/* A restored one says nothing yet. */
		if (!cursors[i].native ||
			(!changed && cursors[i].sent.producer.given))
			continue;
		cqrs_cursor_draw_producer(&cursors[i]);
		cqrs_cursor_rewrite_sent(&cursors[i]);
	}
}

/*
 * There need not be a record any more where the next transaction goes to. If nothing
 * is in doubt, the last one becomes an intent that says nothing: it is known if its
 * record is there, and not missed if none is. Returns whether that changed *sent.
 */
bool
cqrs_sent_elsewhere(CqrsSent *sent)
{
	if (sent->intent.given || !sent->sent.given)
		return false;
	sent->intent = sent->sent;
	sent->intent_position = 0;
	sent->sent.given = false;
	return true;
}
