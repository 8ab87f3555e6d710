/*-------------------------------------------------------------------------
 *
 * pull_batch.c
 *	  What cqrs_receive() hands out of one partition.
 *
 * Protocol
 *
 * 1. What is handed out gets a receipt, which is written to the cursor,
 *	  together with the positions that it covers; parked events that are handed
 *	  out have it in cqrs.retry, too. Whoever settles an event shows the
 *	  receipt, which proves that he was handed the event, or told by whoever
 *	  was.
 * 2. Without a lease, the cursor's lock keeps others out until the
 *	  transaction ends; with one, leased_until does, from the commit on.
 * 3. A batch has parked events that are due, in order, and then events of the
 *	  window, behind those that are settled. An event that failed before holds
 *	  its lane: what is behind it comes when it is settled.
 * 4. What is not settled is handed out again by the next call in another
 *	  transaction. A further call in the same transaction goes on behind what
 *	  was handed out, and its receipt covers both.
 * 5. If two leases in a row ran out over the same events, these are handed out
 *	  alone, parked, with the attempt counted. So is an event that was not
 *	  settled in such an attempt before.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/detoast.h"
#include "shared/clock.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "base/interval.h"
#include "delivery/relay.h"
#include "extension/catalog.h"
#include "pull/pull.h"
#include "retry/retry.h"
#include "subscription/receipt.h"
#include "subscription/subscription.h"

/* Columns of type cqrs_received. */
#define RECEIVED_COLUMNS	11

/*
 * How many events that are settled ahead of the cursor are kept in its row. If
 * there are more, what is not settled before them is parked.
 */
#define PASSED_KEPT			1000

/* One partition in one attempt. */
typedef struct Batch
{
	CqrsRelay	relay;
	bool		here;			/* goes on behind what this transaction
								 * received */
	bool		alone;			/* hand out one by one ... */
	bool		over;			/* ... but none is left of those */
	bool		wrote;			/* the cursor was moved */
	TimestampTz now;
	pg_uuid_t	receipt;
	int			nevents;
	int64		nbytes;
	int			ncovered;
	int			room;
	int64	   *covered;
} Batch;

/* What came of it. */
typedef enum Outcome
{
	NOTHING,
	FOUND,
	AGAIN						/* try once more */
} Outcome;

static Outcome try_batch(CqrsReceive *receive, Batch *batch, bool last,
						 bool force, bool *together);
static void begin_batch(CqrsReceive *receive, Batch *batch, bool force,
						bool together);
static void count_expired(Batch *batch);
static Outcome hand_out_alone(CqrsReceive *receive, Batch *batch);
static int	alone_candidates(CqrsReceive *receive, Batch *batch,
							 int64 **positions);
static void hand_out_parked_alone(CqrsReceive *receive, Batch *batch,
								  bool *changed);
static void hand_out_parked(CqrsReceive *receive, Batch *batch);
static int	choose_parked(CqrsReceive *receive, Batch *batch,
						  CqrsParked **chosen);
static int	choose_of_lane(Batch *batch, const CqrsParked *head,
						   CqrsParked *chosen, int n, int room);
static int	compare_parked(const void *a, const void *b);
static bool hand_out_new(CqrsReceive *receive, Batch *batch);
static Outcome found_nothing(CqrsReceive *receive, Batch *batch, bool last);
static void finish_batch(CqrsReceive *receive, Batch *batch);
static void put_event(CqrsReceive *receive, Batch *batch, const CqrsEvent *event,
					  int attempts);
static void cover(Batch *batch, int64 position);
static void note_wake(CqrsReceive *receive, TimestampTz at);
static void remember(CqrsReceive *receive, const Batch *batch);
static void recall(CqrsReceive *receive, Batch *batch);

/*
 * Receive from one partition. Returns false if there is nothing, or if
 * somebody else has it.
 */
bool
cqrs_pull_batch(CqrsReceive *receive, CqrsSubscription *subscription, int partition,
				bool last)
{
	MemoryContext context;
	MemoryContext oldcontext;
	bool		force = false;
	bool		together = false;
	Outcome		outcome;

	context = AllocSetContextCreate(receive->context, "cqrs receive",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	do
	{
		Batch		batch = {0};

		CHECK_FOR_INTERRUPTS();
		if (!cqrs_relay_begin_pull(&batch.relay, subscription, partition))
		{
			receive->locked = true;
			outcome = NOTHING;
			break;
		}
		cqrs_subscription_require_active(batch.relay.subscription);
		if (cqrs_relay_is_gone(&batch.relay))
		{
			cqrs_relay_end(&batch.relay);
			outcome = NOTHING;
			break;
		}
		cqrs_cursor_require_native(&batch.relay.cursor, subscription->name);
		receive->tick_id = Min(receive->tick_id, batch.relay.has_tick ?
							   batch.relay.tick.tick_id : 0);
		outcome = try_batch(receive, &batch, last, force, &together);
		force |= batch.relay.skipped;
		cqrs_relay_end(&batch.relay);
	} while (outcome == AGAIN);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	return outcome == FOUND;
}

/*
 * Hand out a batch. With force, park what has to be parked. Sets *together
 * when nothing is left to be handed out one by one.
 */
static Outcome
try_batch(CqrsReceive *receive, Batch *batch, bool last, bool force,
		  bool *together)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	Outcome		outcome = NOTHING;

	batch->now = cqrs_wall_now();
	batch->here = cqrs_received_here(cursor->subscription_id, cursor);
	if (cursor->leased_until > batch->now)
		note_wake(receive, cursor->leased_until);
	else if (!cqrs_pull_lock_segments(relay->subscription))
		receive->busy = receive->locked = true;
	else
	{
		begin_batch(receive, batch, force, *together);
		if (!batch->here)
			outcome = hand_out_alone(receive, batch);
		if (outcome == AGAIN)
			*together = batch->over;
		else if (outcome == NOTHING && !batch->alone)
		{
			hand_out_parked(receive, batch);
			if (batch->nevents < receive->max_events &&
				batch->nbytes < CQRS_BATCH_BYTES)
			{
				/* Once something is handed out, we may write at once. */
				relay->hold_back &= batch->nevents == 0;
				if (!hand_out_new(receive, batch))
					outcome = AGAIN;
			}
			if (outcome == NOTHING && batch->nevents > 0)
			{
				finish_batch(receive, batch);
				outcome = FOUND;
			}
		}
		cqrs_pull_unlock_segments(relay->subscription);
		if (outcome == NOTHING)
			outcome = found_nothing(receive, batch, last);
	}

	receive->wrote |= batch->wrote;
	if (outcome == NOTHING && !batch->wrote)
		cqrs_object_unlock(CQRS_REL_SUBSCRIPTION, cursor->subscription_id,
						   cursor->partition, ExclusiveLock);
	return outcome;
}

static void
begin_batch(CqrsReceive *receive, Batch *batch, bool force, bool together)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;

	relay->park_inside = true;
	relay->here = batch->here;
	relay->hold_back = !force;
	cqrs_receipt_generate(cursor->partition, &batch->receipt);
	if (!batch->here)
		count_expired(batch);
	if (together)
		cursor->expired = 0;
	batch->alone = cursor->expired >= CQRS_LEASES_EXPIRED;
	note_wake(receive, cursor->next_retry_at);
	if (!force && !batch->alone)
		recall(receive, batch);
}

/*
 * Count a lease that ran out over events that are not settled. An event that
 * was handed out alone does not count: its own row says that it was the one.
 */
static void
count_expired(Batch *batch)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	int			nleft = 0;
	bool		killed = false;
	int			i;

	if (cursor->expired >= CQRS_LEASES_EXPIRED)
		return;
	for (i = 0; cursor->has_receipt && i < cursor->ncovered; i++)
	{
		CqrsParked	parked;

		if (!cqrs_receipt_is_open(cursor, cursor->covered[i], &parked))
			continue;
		killed |= parked.position != 0 && parked.killed;
		nleft++;
	}
	if (nleft == 0)
		cursor->expired = 0;
	else if (cursor->leased_until != 0 && !killed)
		cursor->expired++;
}

/*
 * Hand out one event alone, parked, with the attempt counted: one whose last
 * attempt did not return or, if the leases on a batch ran out, the next of
 * that batch. Returns NOTHING if there is none to hand out alone, AGAIN if
 * there is none any more.
 */
static Outcome
hand_out_alone(CqrsReceive *receive, Batch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	bool		changed = false;
	CqrsEvent	event;

	hand_out_parked_alone(receive, batch, &changed);
	if (batch->nevents == 0 && batch->alone)
	{
		int64		until_tick = cursor->until_tick;
		int64		received = cursor->received;

		relay->hold_back = false;
		if (until_tick != 0)
			cqrs_relay_open(relay);
		while (cursor->until_tick == until_tick && relay->window != NULL &&
			   cursor->position < received &&
			   cqrs_relay_next(relay, 1, &event) &&
			   cursor->until_tick == until_tick && event.position <= received)
		{
			CqrsParked	parked;

			cqrs_park(relay->subscription, cursor, &event, NULL);
			changed = true;

			/* It was read, but parked: so it does not count as handed out. */
			relay->nevents = 0;
			relay->nothers++;
			if (!cqrs_parked_find(cursor, event.position, &parked) ||
				!cqrs_parked_begin_attempt(&parked, relay->subscription,
										   cursor))
				continue;
			cqrs_parked_hand_out(&parked, cursor, &batch->receipt);
			put_event(receive, batch, &event, parked.attempts);
			break;
		}
		changed |= relay->has_parked;
	}
	if (batch->nevents == 0 && !changed && !batch->alone)
		return NOTHING;
	if (batch->nevents == 0)
	{
		/* Some may have been given up. */
		batch->over = batch->alone;
		if (changed)
		{
			cursor->expired = 0;
			cqrs_parked_close(cursor);
			cqrs_cursor_append(cursor);
			batch->wrote = true;
		}
		return AGAIN;
	}
	finish_batch(receive, batch);
	return FOUND;
}

/*
 * The first parked event that is to be handed out alone, if there is one.
 */
static void
hand_out_parked_alone(CqrsReceive *receive, Batch *batch, bool *changed)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	int64	   *positions;
	int			n = alone_candidates(receive, batch, &positions);
	int			i;

	for (i = 0; i < n && batch->nevents == 0; i++)
	{
		CqrsParked	parked;
		CqrsEvent	event;
		int			attempts;

		if (!cqrs_parked_find(cursor, positions[i], &parked) ||
			!parked.head || parked.retry_at > batch->now ||
			!(parked.killed || (batch->alone && parked.received)))
			continue;
		*changed = true;
		if (!cqrs_parked_begin_attempt(&parked, relay->subscription,
									   cursor) ||
			!cqrs_parked_read(cursor, parked.position, NULL, &event,
							  &attempts))
			continue;
		cqrs_parked_hand_out(&parked, cursor, &batch->receipt);
		put_event(receive, batch, &event, parked.attempts);
	}
}

/*
 * The positions of events that may have to be handed out alone: of those due
 * now, as many as would be handed out, and those that were handed out before.
 */
static int
alone_candidates(CqrsReceive *receive, Batch *batch, int64 **positions)
{
	const CqrsCursor *cursor = &batch->relay.cursor;
	int			room = Min(receive->max_events, CQRS_BATCH_EVENTS);
	CqrsScan	scan;
	CqrsParked	parked;
	int			ndue;
	int			n = 0;
	int			i;

	if (cursor->next_retry_at == 0)
		return 0;
	*positions = palloc_extended(sizeof(int64) * (room + cursor->ncovered),
								 MCXT_ALLOC_HUGE);
	cqrs_parked_heads_begin(&scan, cursor, batch->now);
	for (ndue = 0; ndue < room && cqrs_parked_heads_next(&scan, &parked); ndue++)
		if (parked.killed)
			(*positions)[n++] = parked.position;
	cqrs_scan_end(&scan, NoLock);
	for (i = 0; batch->alone && i < cursor->ncovered; i++)
		(*positions)[n++] = cursor->covered[i];
	return n;
}

static void
hand_out_parked(CqrsReceive *receive, Batch *batch)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	CqrsParked *chosen;
	int			n = choose_parked(receive, batch, &chosen);
	int			i;

	for (i = 0; i < n && batch->nbytes < CQRS_BATCH_BYTES; i++)
	{
		CqrsEvent	event;
		int			attempts;

		/* Its topic may be gone. */
		if (!cqrs_parked_read(cursor, chosen[i].position, NULL, &event,
							  &attempts))
			continue;
		put_event(receive, batch, &event, attempts + 1);
		cqrs_parked_hand_out(&chosen[i], cursor, &batch->receipt);
	}
}

/*
 * Choose parked events: those of the lanes whose heads have been due for
 * longest, as many as there is room for, in order of position.
 */
static int
choose_parked(CqrsReceive *receive, Batch *batch, CqrsParked **chosen)
{
	const CqrsCursor *cursor = &batch->relay.cursor;
	int			room = Min(receive->max_events, CQRS_BATCH_EVENTS);
	CqrsScan	scan;
	CqrsParked	head;
	int			n = 0;

	if (cursor->next_retry_at == 0)
		return 0;
	*chosen = palloc(sizeof(CqrsParked) * room);
	cqrs_parked_heads_begin(&scan, cursor, batch->now);
	while (n < room && cqrs_parked_heads_next(&scan, &head))
	{
		CHECK_FOR_INTERRUPTS();
		n = choose_of_lane(batch, &head, *chosen, n, room);
	}
	cqrs_scan_end(&scan, NoLock);
	qsort(*chosen, n, sizeof(CqrsParked), compare_parked);
	return n;
}

/*
 * Add the events of a lane. One that failed before holds those that come after
 * it, and so does one that is to be handed out alone. If none does, later events
 * may follow in the same batch. What this transaction was handed already is
 * passed by.
 */
static int
choose_of_lane(Batch *batch, const CqrsParked *head, CqrsParked *chosen, int n,
			   int room)
{
	const CqrsCursor *cursor = &batch->relay.cursor;
	CqrsParked	parked = *head;

	do
	{
		if (n == room || parked.killed || parked.retry_at > batch->now)
			return n;
		if (!(batch->here && parked.received &&
			  cqrs_receipt_is_newest(cursor, &parked.receipt)))
			chosen[n++] = parked;
		if (parked.attempts > 0)
			return n;
	} while (cqrs_parked_lane_next(cursor, parked.lane, parked.position,
								   &parked));
	cqrs_lane_pass(&batch->relay.lanes, head->lane);
	return n;
}

static int
compare_parked(const void *a, const void *b)
{
	int64		left = ((const CqrsParked *) a)->position;
	int64		right = ((const CqrsParked *) b)->position;

	return (left > right) - (left < right);
}

/*
 * Hand out events of the window. Returns false, with nothing handed out, if
 * something has to be parked before.
 */
static bool
hand_out_new(CqrsReceive *receive, Batch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	int64		start_until = cursor->until_tick;
	bool		settled_ahead = cursor->npassed > PASSED_KEPT;
	CqrsEvent	event;

	cqrs_relay_open(relay);
	while (batch->nevents < receive->max_events &&
		   batch->nbytes < CQRS_BATCH_BYTES &&
		   cqrs_relay_next(relay, INT_MAX, &event))
	{
		if (relay->skipped && relay->hold_back)
			return false;
		relay->hold_back = false;
		relay->nbytes = 0;
		if (batch->here && cursor->until_tick == start_until &&
			cqrs_cursor_covers(cursor, event.position))
			continue;
		put_event(receive, batch, &event, 1);
		if (settled_ahead && cursor->until_tick == start_until &&
			event.position < cursor->passed[cursor->npassed - 1])
		{
			cqrs_park_received(cursor, &event, &batch->receipt);
			relay->has_parked = true;
		}
	}
	return true;
}

/*
 * Nothing is to be handed out. If what was passed by on the way is worth it,
 * or something had to be parked, move the cursor over that.
 */
static Outcome
found_nothing(CqrsReceive *receive, Batch *batch, bool last)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	bool		more = relay->window != NULL && relay->nevents == 0 &&
	relay->nothers > 0;
	bool		arrives = cqrs_relay_arrives(relay);

	if (relay->skipped && (more || last || arrives))
		return AGAIN;
	if (relay->has_parked || more || arrives ||
		(last && (relay->nothers > 0 ||
				  (relay->start_until != 0 &&
				   cursor->tick_id != relay->start_tick) ||
				  cursor->tick_id >= relay->start_tick + CQRS_EMPTY_TICKS)))
	{
		if (relay->window != NULL && relay->nevents == 0 &&
			cqrs_window_at_end(relay->window))
			cqrs_relay_close_window(cursor);
		cursor->last_position = Max(cursor->last_position, cursor->position);
		cqrs_cursor_forget_passed(cursor);
		cqrs_cursor_append(cursor);
		batch->wrote = true;
		if (more)
			return AGAIN;
	}
	else if (!last)
		remember(receive, batch);
	return NOTHING;
}

static void
finish_batch(CqrsReceive *receive, Batch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	int			i;

	/*
	 * What this transaction received before gets the new receipt, too. Of an
	 * earlier window that it is done with, nothing is left.
	 */
	for (i = 0; batch->here && i < cursor->ncovered; i++)
	{
		CqrsParked	parked;
		bool		found;

		found = cqrs_parked_find(cursor, cursor->covered[i], &parked);
		if (!found && cursor->until_tick != relay->start_until)
			continue;
		cover(batch, cursor->covered[i]);
		if (found && parked.received &&
			cqrs_receipt_is_newest(cursor, &parked.receipt))
			cqrs_parked_hand_out(&parked, cursor, &batch->receipt);
	}

	if (!batch->alone && relay->window != NULL)
	{
		int64		last = relay->nevents > 0 ? relay->last : cursor->position;

		/* If the window is new, received is 0 here. */
		cursor->received = batch->here ? Max(cursor->received, last) : last;
		cursor->received_all = cqrs_window_at_end(relay->window);
	}
	else if (!batch->alone && !batch->here)
	{
		cursor->received = cursor->position;
		cursor->received_all = false;
	}
	qsort(batch->covered, batch->ncovered, sizeof(int64), cqrs_position_compare);
	cursor->covered = batch->covered;
	cursor->ncovered = 0;
	for (i = 0; i < batch->ncovered; i++)
		if (i == 0 || batch->covered[i] != batch->covered[i - 1])
			cursor->covered[cursor->ncovered++] = batch->covered[i];
	cursor->has_receipt = true;
	cursor->receipt = batch->receipt;
	cursor->leased_until = 0;
	if (receive->lease != NULL)
		cursor->leased_until = cqrs_time_plus(cqrs_wall_now(),
											  IntervalPGetDatum(receive->lease));
	cqrs_cursor_forget_passed(cursor);
	cqrs_parked_close(cursor);
	cqrs_cursor_append(cursor);
	cqrs_received_note(cursor->subscription_id, cursor->partition,
					   &batch->receipt, receive->lease != NULL);
}

static void
put_event(CqrsReceive *receive, Batch *batch, const CqrsEvent *event,
		  int attempts)
{
	Datum		values[RECEIVED_COLUMNS];
	bool		nulls[RECEIVED_COLUMNS] = {0};

	cqrs_event_show(event, values, nulls);
	values[8] = Int32GetDatum(attempts);
	values[9] = Int32GetDatum(batch->relay.cursor.partition);
	values[10] = UUIDPGetDatum(&batch->receipt);
	tuplestore_putvalues(receive->store, receive->desc, values, nulls);
	pfree(DatumGetPointer(values[3]));
	if (!event->payload.isnull)
		batch->nbytes += toast_raw_datum_size(event->payload.value);
	batch->nevents++;
	cover(batch, event->position);
}

static void
cover(Batch *batch, int64 position)
{
	if (batch->ncovered == batch->room)
	{
		batch->room = Max(64, batch->room * 2);
		batch->covered = batch->covered == NULL ?
			palloc(sizeof(int64) * batch->room) :
			repalloc_huge(batch->covered, sizeof(int64) * batch->room);
	}
	batch->covered[batch->ncovered++] = position;
}

static void
note_wake(CqrsReceive *receive, TimestampTz at)
{
	if (at != 0 && (receive->wake_at == 0 || at < receive->wake_at))
		receive->wake_at = at;
}

/*
 * An attempt found nothing up to where the cursor is in memory: the next one
 * need not look there again, unless the cursor was moved meanwhile.
 */
static void
remember(CqrsReceive *receive, const Batch *batch)
{
	const CqrsCursor *cursor = &batch->relay.cursor;
	MemoryContext oldcontext;
	CqrsSeen   *seen;
	CqrsSeen	now;

	if (receive->seen == NULL || batch->here)
		return;
	seen = &receive->seen[cursor->partition];
	now.context = AllocSetContextCreate(receive->context, "cqrs seen",
										ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(now.context);
	now.seq = cursor->seq;
	now.skipped = batch->relay.skipped;
	cqrs_cursor_copy(&now.cursor, cursor);
	MemoryContextSwitchTo(oldcontext);
	if (seen->context != NULL)
		MemoryContextDelete(seen->context);
	*seen = now;
}

static void
recall(CqrsReceive *receive, Batch *batch)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	CqrsSeen   *seen;

	if (receive->seen == NULL || batch->here)
		return;
	seen = &receive->seen[cursor->partition];
	if (seen->context == NULL || seen->seq != cursor->seq || seen->skipped)
		return;
	cursor->tick_id = seen->cursor.tick_id;
	cursor->snapshot = seen->cursor.snapshot;
	cursor->until_tick = seen->cursor.until_tick;
	cursor->until_snapshot = seen->cursor.until_snapshot;
	cursor->position = seen->cursor.position;
	cursor->received = seen->cursor.received;
	cursor->received_all = seen->cursor.received_all;
}
