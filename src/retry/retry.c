/*-------------------------------------------------------------------------
 *
 * retry.c
 *	  What becomes of events that were not delivered.
 *
 * An event that cannot be delivered is parked: copied to cqrs.retry, and the
 * cursor goes on. It is tried again after a delay that doubles each time; after
 * max_attempts it goes to cqrs.dead_letter. Meanwhile the later events of its
 * lane are parked behind it, so the order by topic and key is kept, and other
 * keys are not held up. However many are parked, nobody else is slowed down:
 * parked.c says how the rows are found.
 *
 * Locking
 *
 * The cursor's lock protects its parked events too: whoever changes them has
 * read the cursor under it, and appends it afterwards, as next_retry_at may
 * have changed.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"

#include "base/backoff.h"
#include "extension/row.h"
#include "retry/retry.h"
#include "shared/clock.h"

static TimestampTz retry_time(const CqrsSubscription *subscription,
							  int attempts);
static void record_attempt(CqrsParked *parked, CqrsCursor *cursor,
						   const CqrsFault *fault, TimestampTz retry_at);
static TimestampTz at_once(const CqrsEvent *event);
static void bury(const CqrsParked *parked, CqrsCursor *cursor,
				 const CqrsFault *fault);
static void forget_dead(int32 subscription_id, int64 position);

/*
 * Park an event that failed or, if fault is NULL, has to wait. If it may not
 * be tried again, it is given up at once.
 */
void
cqrs_park(const CqrsSubscription *subscription, CqrsCursor *cursor,
		  const CqrsEvent *event, const CqrsFault *fault)
{
	TimestampTz retry_at = fault == NULL ? at_once(event) :
	fault->retry_at != 0 ? fault->retry_at : retry_time(subscription, 1);
	CqrsParked	parked;

	cqrs_parked_insert(cursor, event, fault ? 1 : 0, retry_at, fault, NULL);
	if (fault != NULL && (fault->final || subscription->max_attempts == 1) &&
		cqrs_parked_find(cursor, event->position, &parked))
		bury(&parked, cursor, fault);
}

/*
 * Park an event that has not failed, but was handed out with this receipt, and
 * may have to come again.
 */
void
cqrs_park_received(CqrsCursor *cursor, const CqrsEvent *event,
				   const pg_uuid_t *receipt)
{
	cqrs_parked_insert(cursor, event, 0, at_once(event), NULL, receipt);
}

/*
 * Park an event that failed, perhaps through no fault of its own (see blame.c;
 * or others were handled in its transaction). It is to be tried anew, and this
 * attempt does not count yet.
 */
void
cqrs_park_unproven(CqrsCursor *cursor, const CqrsEvent *event,
				   const CqrsFault *fault)
{
	cqrs_parked_insert(cursor, event, 0, at_once(event), fault, NULL);
}

/*
 * When to try an event that only waits: the oldest comes first. If it was emitted
 * while the clock was ahead, it does not wait for that time.
 */
static TimestampTz
at_once(const CqrsEvent *event)
{
	return Min(event->emitted_at, cqrs_wall_now());
}

/*
 * Have an event that was given up tried anew: park it or, if it is parked
 * again by now, let it be as if it had not failed. Returns false if another
 * event is parked at its position.
 */
bool
cqrs_parked_redrive(CqrsCursor *cursor, const CqrsEvent *event,
					TimestampTz now)
{
	CqrsParked	parked;

	if (!cqrs_parked_find(cursor, event->position, &parked))
	{
		cqrs_parked_insert(cursor, event, 0, now, NULL, NULL);
		return true;
	}
	if (memcmp(&parked.event_id, DatumGetUUIDP(event->event_id),
			   UUID_LEN) != 0)
		return false;
	parked.attempts = 0;
	parked.retry_at = now;
	cqrs_parked_update(cursor, &parked, NULL);
	return true;
}

/*
 * A parked event failed once more: have it tried again later, or give it up.
 * If counted, the attempt was counted when it began.
 */
void
cqrs_parked_failed(CqrsParked *parked, const CqrsSubscription *subscription,
				   CqrsCursor *cursor, const CqrsFault *fault, bool counted)
{
	if (!counted)
		parked->attempts++;
	if (fault->final ||
		(subscription->max_attempts > 0 &&
		 parked->attempts >= subscription->max_attempts))
		bury(parked, cursor, fault);
	else
		record_attempt(parked, cursor, fault,
					   fault->retry_at != 0 ? fault->retry_at :
					   retry_time(subscription, parked->attempts));
}

/*
 * Count an attempt before it is made, because it may end this process. Returns
 * false if there were enough of them already: then the event was given up.
 */
bool
cqrs_parked_begin_attempt(CqrsParked *parked,
						  const CqrsSubscription *subscription,
						  CqrsCursor *cursor)
{
	CqrsFault	fault = {ERRCODE_CRASH_SHUTDOWN};

	fault.message = subscription->has_handler || subscription->server != NULL ?
		"the server process ended while it handled the event" :
		"the lease ran out before the event was acknowledged";
	if (subscription->max_attempts > 0 &&
		parked->attempts >= subscription->max_attempts)
	{
		bury(parked, cursor, &fault);
		return false;
	}
	parked->attempts++;
	record_attempt(parked, cursor, &fault,
				   retry_time(subscription, parked->attempts));
	return true;
}

/*
 * An attempt that was counted when it began failed through no fault of the
 * event's: uncount it. fault says when to try again.
 */
void
cqrs_parked_void_attempt(CqrsParked *parked, CqrsCursor *cursor,
						 const CqrsFault *fault)
{
	parked->attempts--;
	record_attempt(parked, cursor, fault, fault->retry_at);
}

/*
 * Note that a parked event was handed out by cqrs_receive(), with this
 * receipt.
 */
void
cqrs_parked_hand_out(CqrsParked *parked, CqrsCursor *cursor,
					 const pg_uuid_t *receipt)
{
	parked->received = true;
	parked->receipt = *receipt;
	cqrs_parked_set_receipt(cursor, parked);
}

/*
 * A parked event was delivered, or given up: the next of its lane may go on.
 */
void
cqrs_parked_done(const CqrsParked *parked, CqrsCursor *cursor)
{
	cqrs_parked_delete(cursor, parked);
	cqrs_cursor_pass(cursor, parked->position);
}

static TimestampTz
retry_time(const CqrsSubscription *subscription, int attempts)
{
	return TimestampTzPlusMilliseconds(cqrs_wall_now(),
									   cqrs_backoff(subscription->retry_delay,
													subscription->max_retry_delay,
													attempts));
}

static void
record_attempt(CqrsParked *parked, CqrsCursor *cursor, const CqrsFault *fault,
			   TimestampTz retry_at)
{
	parked->retry_at = retry_at;
	parked->received = false;
	parked->sqlerrcode = fault->sqlerrcode;
	parked->killed = fault->sqlerrcode == ERRCODE_CRASH_SHUTDOWN;
	cqrs_parked_update(cursor, parked, fault);
}

/*
 * Give an event up: from cqrs.retry to cqrs.dead_letter.
 */
static void
bury(const CqrsParked *parked, CqrsCursor *cursor, const CqrsFault *fault)
{
	CqrsEvent	event;
	int			attempts;

	if (cqrs_parked_read(cursor, parked->position, NULL, &event, &attempts))
		cqrs_bury(cursor, &event, parked->attempts, fault);
	cqrs_parked_done(parked, cursor);
}

/*
 * Make a dead letter of an event. The caller sees to it that it is not delivered.
 */
void
cqrs_bury(const CqrsCursor *cursor, const CqrsEvent *event, int attempts,
		  const CqrsFault *fault)
{
	Datum		values[CQRS_DEAD_COLUMNS];
	bool		nulls[CQRS_DEAD_COLUMNS] = {0};

	values[CQRS_DEAD_SUBSCRIPTION_ID - 1] =
		Int32GetDatum(cursor->subscription_id);
	cqrs_event_store(event, &values[CQRS_DEAD_POSITION - 1],
					 &nulls[CQRS_DEAD_POSITION - 1]);
	values[CQRS_DEAD_ATTEMPTS - 1] = Int32GetDatum(attempts);
	values[CQRS_DEAD_DIED_AT - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	values[CQRS_DEAD_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(fault->sqlerrcode));
	values[CQRS_DEAD_MESSAGE - 1] =
		CStringGetTextDatum(fault->message ? fault->message : "");
	forget_dead(cursor->subscription_id, event->position);
	cqrs_row_insert(CQRS_REL_DEAD_LETTER, values, nulls);
}

/*
 * An event that comes again after a seek may have been given up before: its
 * new dead letter replaces the old one.
 */
static void
forget_dead(int32 subscription_id, int64 position)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	HeapTuple	row;

	cqrs_key_int4(&keys[0], CQRS_DEAD_SUBSCRIPTION_ID, subscription_id);
	cqrs_key_int8(&keys[1], CQRS_DEAD_POSITION, BTEqualStrategyNumber,
				  position);
	cqrs_scan_begin(&scan, CQRS_REL_DEAD_LETTER, CQRS_REL_DEAD_LETTER_PKEY,
					RowExclusiveLock, NULL, ForwardScanDirection, 2, keys);
	row = cqrs_scan_next(&scan);
	if (row != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
}
