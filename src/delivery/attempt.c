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

static bool next_failed(CqrsRelay *relay, int64 position,
						const ErrorData *error, const CqrsFault *fault);
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
	CqrsParked	parked;
	CqrsFault	fault = cqrs_fault_of(subscription, error);
	bool		recorded = true;

	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	if (cqrs_parked_find(&relay.cursor, position, &parked))
	{
		if (!cqrs_parked_is_told(&parked, relay.subscription, &relay.cursor,
								 cqrs_tell_failure, error))
			cqrs_parked_failed(&parked, relay.subscription, &relay.cursor,
							   &fault, counted);
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
	}
	else
	{
		recorded = next_failed(&relay, position, error, &fault);

		/* What was parked on the way there must not be read again. */
		cqrs_parked_close(&relay.cursor);
		if (relay.nothers > 0 || relay.nevents > 0)
			cqrs_relay_advance(&relay);
	}
	cqrs_relay_end(&relay);
	return recorded;
}

/*
 * The first event behind the cursor failed, if it is at this position: tell the handler
 * or, if that does not deal with it, park the event. Returns false if it is another one.
 */
static bool
next_failed(CqrsRelay *relay, int64 position, const ErrorData *error,
			const CqrsFault *fault)
{
	CqrsEvent	event;

	if (!cqrs_relay_next(relay, 1, &event))
		return false;
	if (event.position != position)
	{
		/* An event of a late transaction comes first now. */
		relay->nevents = 0;
		relay->last = relay->cursor.position;
		cqrs_window_unread(relay->window, relay->last);
		return false;
	}
	if (!cqrs_tell_failure(relay->subscription, &event, error))
	{
		cqrs_park(relay->subscription, &relay->cursor, &event, fault);
		relay->nevents = 0;
		relay->nothers++;
	}
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
	return cqrs_parked_is_told(parked, relay->subscription, &relay->cursor,
							   cqrs_tell_failure, &error);
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
	CqrsFault	fault = cqrs_fault_of(subscription, error);

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
