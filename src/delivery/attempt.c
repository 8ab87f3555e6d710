/*-------------------------------------------------------------------------
 *
 * attempt.c
 *	  What is recorded of an attempt at an event outside of the transaction that
 *	  delivers it: before it, if it may end the process, and after it was rolled
 *	  back.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "delivery/attempt.h"
#include "delivery/relay.h"
#include "delivery/tell.h"
#include "retry/blame.h"
#include "retry/retry.h"
#include "shared/clock.h"

static bool is_told(CqrsRelay *relay, const CqrsParked *parked,
					const ErrorData *error);
static bool is_told_of_end(CqrsRelay *relay, const CqrsParked *parked);
static bool parked_may_go(CqrsRelay *relay, const CqrsParked *parked);

/*
 * Record that the event at this position failed: a parked one, or the first
 * behind the cursor. Call this in a transaction, or subtransaction, of its
 * own. For counted, see cqrs_parked_failed(). Returns false, and records
 * nothing, if another event comes first.
 */
bool
cqrs_target_failed(CqrsSubscription *subscription, int partition,
				   int64 position, const ErrorData *error, bool counted)
{
	CqrsRelay	relay;
	CqrsEvent	event;
	CqrsParked	parked;
	CqrsFault	fault = cqrs_fault_of(error);
	bool		recorded = false;

	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	if (cqrs_parked_find(&relay.cursor, position, &parked))
	{
		if (!is_told(&relay, &parked, error))
			cqrs_parked_failed(&parked, relay.subscription, &relay.cursor,
							   &fault, counted);
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
		recorded = true;
	}
	else
	{
		if (cqrs_relay_next(&relay, 1, &event))
		{
			bool		told = event.position == position &&
			cqrs_tell_failure(relay.subscription, &event, error);

			relay.nevents = told ? 1 : 0;
			if (event.position == position)
			{
				if (!told)
				{
					cqrs_park(relay.subscription, &relay.cursor, &event,
							  &fault);
					relay.nothers++;
				}
				recorded = true;
			}
			else
			{
				/* An event of a late transaction comes first now. */
				relay.last = relay.cursor.position;
				cqrs_window_unread(relay.window, relay.last);
			}
		}

		/* What was parked on the way there must not be read again. */
		cqrs_parked_close(&relay.cursor);
		if (relay.nothers > 0 || relay.nevents > 0)
			cqrs_relay_advance(&relay);
	}
	cqrs_relay_end(&relay);
	return recorded;
}

/*
 * Tell the handler that this parked event failed. If it deals with that, the event
 * is no longer parked.
 */
static bool
is_told(CqrsRelay *relay, const CqrsParked *parked, const ErrorData *error)
{
	CqrsEvent	event;
	int			attempts;

	if (!cqrs_parked_read(&relay->cursor, parked->position, NULL, &event,
						  &attempts) ||
		!cqrs_tell_failure(relay->subscription, &event, error))
		return false;
	cqrs_parked_done(parked, &relay->cursor);
	return true;
}

/*
 * If this parked event ended the process when it was tried, tell the handler, which
 * may count that itself.
 */
static bool
is_told_of_end(CqrsRelay *relay, const CqrsParked *parked)
{
	ErrorData	error = {0};

	if (!parked->killed)
		return false;
	error.sqlerrcode = ERRCODE_CRASH_SHUTDOWN;
	error.message = "the server process ended while it was done";
	return is_told(relay, parked, &error);
}

/*
 * May this parked event be tried now, by the rate of its key? If not, it is put off.
 */
static bool
parked_may_go(CqrsRelay *relay, const CqrsParked *parked)
{
	CqrsEvent	event;
	TimestampTz due_at;
	int			attempts;

	if (relay->subscription->key_interval == 0 ||
		!cqrs_parked_read(&relay->cursor, parked->position, NULL, &event,
						  &attempts) ||
		cqrs_key_may_go(relay->subscription, &event, &due_at))
		return true;
	cqrs_parked_put_off(&relay->cursor, parked->position, due_at);
	return false;
}

/*
 * Choose the event to deliver next, park it if it is not parked yet, and count
 * the attempt. Returns its position, or 0 if there is none now. The caller
 * commits, and then has cqrs_target_deliver() deliver it.
 */
int64
cqrs_target_announce(CqrsSubscription *subscription, int partition,
					 volatile CqrsDelivery *delivery)
{
	CqrsRelay	relay;
	CqrsEvent	event;
	CqrsParked	parked;
	TimestampTz due_at;
	int64		position = 0;

	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	while (position == 0 &&
		   cqrs_parked_due(&relay.cursor, cqrs_wall_now(), &parked))
	{
		if (!is_told_of_end(&relay, &parked) &&
			parked_may_go(&relay, &parked) &&
			cqrs_parked_begin_attempt(&parked, relay.subscription,
									  &relay.cursor))
			position = parked.position;
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
	}
	while (position == 0 && cqrs_relay_next(&relay, 1, &event))
	{
		if (!cqrs_key_may_go(relay.subscription, &event, &due_at))
		{
			cqrs_relay_park(&relay, &event, due_at);
			continue;
		}
		cqrs_park(relay.subscription, &relay.cursor, &event, NULL);
		position = event.position;
		if (cqrs_parked_find(&relay.cursor, position, &parked))
			(void) cqrs_parked_begin_attempt(&parked, relay.subscription,
											 &relay.cursor);
		relay.nevents = 0;
		relay.nothers++;
	}
	if (relay.window != NULL || cqrs_relay_arrives(&relay))
		cqrs_relay_advance(&relay);
	delivery->more = relay.nothers > 0;
	cqrs_parked_close(&relay.cursor);
	delivery->retry_at = relay.cursor.next_retry_at;
	cqrs_relay_end(&relay);
	return position;
}

/*
 * The attempt at this parked event, which was counted when it began, failed with
 * an error that may not be the event's fault: uncount it, and have the event
 * tried again with the others, not before retry_at. Does nothing if the outcome
 * was recorded already.
 */
void
cqrs_target_void_attempt(CqrsSubscription *subscription, int partition,
						 int64 position, const ErrorData *error,
						 TimestampTz retry_at)
{
	CqrsRelay	relay;
	CqrsParked	parked;
	CqrsFault	fault = cqrs_fault_of(error);

	fault.retry_at = retry_at;
	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	if (cqrs_parked_find(&relay.cursor, position, &parked) && parked.killed)
	{
		cqrs_parked_void_attempt(&parked, &relay.cursor, &fault);
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
	}
	cqrs_relay_end(&relay);
}
