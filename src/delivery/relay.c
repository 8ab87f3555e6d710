/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  One batch of one cursor of a subscription, from the window to the
 *	  cursor. Workers, cqrs_drain() and cqrs_receive() all enter here.
 *
 * Protocol
 *
 * 1. Take the cursor's lock; then the latest snapshot; with it, read
 *	  the cursor, the newest tick, and the events. With snapshots of different
 *	  times, a cursor could move past events that it has not seen: they would
 *	  be skipped.
 * 2. What is handed to a handler need not be durable: the handler's
 *	  transaction commits later in the WAL than all that its snapshots show. So
 *	  its windows end at a snapshot taken now, and wait for no tick. Windows
 *	  whose events leave the database end at a tick.
 * 3. If the cursor is inside a window, go on with that window: another end
 *	  would let lower positions in behind the cursor. If not, or if nothing is
 *	  left of it, the next window goes from its end to the new one.
 * 4. Pass by the events of other partitions, and those that are settled or
 *	  parked already, as some ahead of the cursor may be; park those of a lane
 *	  in which an earlier one is parked (see retry.c).
 * 5. Append the cursor, in the same transaction as what was done with the
 *	  events.
 *
 * In a transaction that keeps its snapshot (REPEATABLE READ), all windows end
 * at a tick, the newest that this snapshot shows. So whoever gets an event also sees
 * what its transaction did. The cursor is read with the latest snapshot all
 * the same; if it is ahead of that tick, nothing is delivered.
 *
 * Memory
 *
 * The window read last is kept by the process, with its references to what
 * comes next, so that the next batch need not look for them again: with a
 * backlog of a million events, each batch of a thousand would walk over all of
 * them. It is used again only if it is exactly the one that the cursor is in,
 * read as far as the cursor is (cqrs_window_is); then it does not matter whose
 * it was, or what happened since. While a batch is read, its window belongs to
 * the transaction: an error frees it, and a batch of another subscription that
 * the handler reads meanwhile has a window of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/debug_point.h"
#include "delivery/relay.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "retry/parked.h"
#include "retry/retry.h"
#include "shared/database.h"
#include "subscription/epoch.h"
#include "subscription/subscription.h"

/* The most references kept at once: 32 MB with room to sort. */
#define WINDOW_ENTRIES	(1024 * 1024)

/* A batch passes by at most this many events that are not for it. */
#define BATCH_OTHERS	(10 * CQRS_BATCH_EVENTS)

/* The window read last, if something may be left of it. */
static CqrsWindow *kept_window = NULL;

/* What is to be done with an event of the window. */
typedef enum Decision
{
	DELIVER,
	PASS_BY,					/* another partition's, settled, or parked */
	PARK						/* it waits for an earlier one of its lane */
} Decision;

static bool begin(CqrsRelay *relay, CqrsSubscription *subscription,
				  int partition, bool wait);
static bool may_read(const CqrsRelay *relay);
static int64 read_position(const CqrsRelay *relay);
static void open_window(CqrsRelay *relay);
static void close_window(CqrsRelay *relay);
static Decision what_to_do(CqrsRelay *relay, const CqrsEvent *event);
static void park_behind(CqrsRelay *relay, const CqrsEvent *event);
static void add_bytes(CqrsRelay *relay, const CqrsEvent *event);
static bool batch_is_over(const CqrsRelay *relay, int max_events);

/*
 * Begin a batch: lock, read the cursor, find the window. Everything is in the
 * current memory context. Without wait, returns false if the cursor's lock
 * cannot be had at once.
 *
 * Raises 42501 if the current user, the subscription's owner, may not read
 * one of its topics any more; 42704 if the subscription went meanwhile.
 */
bool
cqrs_relay_begin(CqrsRelay *relay, CqrsSubscription *subscription,
				 int partition, bool wait)
{
	if (!begin(relay, subscription, partition, wait))
		return false;
	cqrs_relay_open(relay);
	return true;
}

/*
 * Begin a batch for a client that pulls, without waiting for the lock: only
 * read the cursor.
 */
bool
cqrs_relay_begin_pull(CqrsRelay *relay, CqrsSubscription *subscription,
					  int partition)
{
	return begin(relay, subscription, partition, false);
}

/*
 * Find the window of a batch that was begun.
 */
void
cqrs_relay_open(CqrsRelay *relay)
{
	if (may_read(relay))
		open_window(relay);
}

/*
 * Begin a batch that reads ahead of the cursor: wait for the lock, and only
 * read the cursor. Returns false if the cursor is not where *ahead says,
 * because somebody else moved it meanwhile; *ahead is put there then.
 */
bool
cqrs_relay_begin_ahead(CqrsRelay *relay, CqrsSubscription *subscription,
					   int partition, CqrsReadAhead *ahead)
{
	(void) begin(relay, subscription, partition, true);
	relay->ahead = ahead;
	if (relay->cursor.seq == ahead->cursor.seq &&
		relay->cursor.subscription_id == ahead->cursor.subscription_id &&
		relay->cursor.partition == ahead->cursor.partition)
	{
		CqrsCursor	read = relay->cursor;

		relay->cursor = ahead->cursor;
		relay->cursor.sent = read.sent;
		relay->cursor.next_retry_at = read.next_retry_at;
		relay->cursor.npassed = read.npassed;
		relay->cursor.passed = read.passed;
		relay->cursor.ncovered = 0;
		return true;
	}
	ahead->position = 0;
	ahead->at_end = false;
	return false;
}

/*
 * Go on reading where *ahead says, or in the next window.
 */
void
cqrs_relay_read_ahead(CqrsRelay *relay)
{
	if (may_read(relay) &&
		(relay->cursor.until_tick == 0 || !relay->ahead->at_end))
		open_window(relay);
}

/*
 * Take the lock, and read what the batch depends on.
 */
static bool
begin(CqrsRelay *relay, CqrsSubscription *subscription, int partition,
	  bool wait)
{
	int			i;

	memset(relay, 0, sizeof(*relay));
	if (!cqrs_subscription_lock(subscription, partition, wait))
		return false;
	CQRS_DEBUG_POINT("relay_after_lock");

	/* It may have changed while we waited. */
	subscription = cqrs_subscription_get(subscription->name);
	relay->subscription = subscription;

	if (subscription->has_handler && !IsolationUsesXactSnapshot())
	{
		relay->tick.snapshot = cqrs_snapshot_take();
		relay->tick.tick_id = cqrs_tick_next_id();
		relay->snapshot = RegisterSnapshot(GetLatestSnapshot());
		relay->has_tick = true;
	}
	else
	{
		relay->snapshot = RegisterSnapshot(GetLatestSnapshot());

		/*
		 * Ticks above the durable one are passed by; those below are durable,
		 * too.
		 */
		relay->has_tick = cqrs_tick_newest(IsolationUsesXactSnapshot() ?
										   GetTransactionSnapshot() :
										   relay->snapshot,
										   subscription->server != NULL ?
										   cqrs_shmem_durable_tick() :
										   PG_INT64_MAX,
										   &relay->tick);
	}

	if (subscription->next_partitions != 0)
	{
		relay->epoch_tick = subscription->epoch_tick;
		relay->has_tick = relay->has_tick &&
			cqrs_epoch_limit(subscription, &relay->tick);
	}

	/*
	 * Without a cursor, the subscription is being restored just now, or the
	 * partition is gone.
	 */
	(void) cqrs_cursor_read(subscription->subscription_id, partition,
							relay->snapshot, &relay->cursor);
	relay->start_tick = relay->cursor.tick_id;
	relay->start_until = relay->cursor.until_tick;

	/*
	 * It is restored and not adopted, which takes a person. Do not check
	 * privileges: during a restore, the owner's are granted last.
	 */
	if (!relay->cursor.native)
	{
		relay->cursor.next_retry_at = 0;
		return true;
	}
	for (i = 0; i < subscription->ntopics; i++)
		cqrs_topic_require(subscription->topics[i], ACL_SELECT);
	cqrs_parked_open(&relay->cursor);
	return true;
}

static bool
may_read(const CqrsRelay *relay)
{
	return relay->has_tick && relay->cursor.native &&
		relay->tick.tick_id >= Max(relay->cursor.tick_id,
								   relay->cursor.until_tick);
}

/*
 * The batch's next event. Returns false if there is none, or at max_events,
 * CQRS_BATCH_BYTES, or the deadline.
 *
 * Without park_inside, it also ends at an event that has to be parked, if
 * others were handed out before it: the caller may not move the cursor over
 * all of them.
 */
bool
cqrs_relay_next(CqrsRelay *relay, int max_events, CqrsEvent *event)
{
	CqrsCursor *cursor = &relay->cursor;

	while (relay->window != NULL && !batch_is_over(relay, max_events))
	{
		if (!cqrs_window_next(relay->window, event))
		{
			/* A batch stays within one window. */
			if (relay->nevents > 0 ||
				(relay->nothers > 0 && !relay->hold_back))
				return false;

			if (relay->ahead != NULL && !relay->may_leave)
				return false;

			/* Nothing left of this one: on to the next, if there is one. */
			close_window(relay);
			cqrs_relay_close_window(cursor);
			relay->last = 0;
			open_window(relay);
			continue;
		}

		switch (what_to_do(relay, event))
		{
			case DELIVER:
				relay->nevents++;
				add_bytes(relay, event);
				relay->last = event->position;
				return true;
			case PASS_BY:
				relay->nothers++;
				break;
			case PARK:
				if (relay->hold_back && relay->nevents == 0)
					relay->skipped = true;
				else if (!relay->park_inside && relay->nevents > 0)
				{
					cqrs_window_unread(relay->window, relay->last);
					return false;
				}
				else
				{
					park_behind(relay, event);
					cqrs_lane_add(&relay->lanes,
								  cqrs_event_lane(event, cursor->by_topic),
								  event->position);
					relay->has_parked = true;
					add_bytes(relay, event);
				}
				relay->nothers++;
				break;
		}
		relay->last = event->position;
		if (relay->nevents == 0 && relay->ahead == NULL)
			cursor->position = event->position;
	}
	return false;
}

/*
 * Park an event behind one of its lane. Whoever was handed it out may still
 * settle it, as long as nobody else is handed it: the receipt goes with it.
 */
static void
park_behind(CqrsRelay *relay, const CqrsEvent *event)
{
	CqrsCursor *cursor = &relay->cursor;

	if (cursor->has_receipt && cursor->until_tick == relay->start_until &&
		cqrs_cursor_covers(cursor, event->position))
		cqrs_park_received(cursor, event, &cursor->receipt);
	else
		cqrs_park(relay->subscription, cursor, event, NULL);
}

/*
 * Park an event that was handed out, because it has to wait until due_at, as does
 * what follows in its lane.
 */
void
cqrs_relay_park(CqrsRelay *relay, const CqrsEvent *event, TimestampTz due_at)
{
	CqrsCursor *cursor = &relay->cursor;

	cqrs_park(relay->subscription, cursor, event, NULL);
	cqrs_parked_put_off(cursor, event->position, due_at);
	cqrs_lane_add(&relay->lanes, cqrs_event_lane(event, cursor->by_topic),
				  event->position);
	relay->nevents--;
	relay->nothers++;
}

static Decision
what_to_do(CqrsRelay *relay, const CqrsEvent *event)
{
	const CqrsCursor *cursor = &relay->cursor;
	CqrsLaneState state;

	if (cqrs_event_partition(event->topic->topic_id, event->event_id, event->key,
							 cursor->by_topic,
							 relay->subscription->partitions) !=
		cursor->partition)
		return PASS_BY;
	if (cqrs_cursor_has_passed(cursor, event->position))
		return PASS_BY;
	state = cqrs_lane_state(&relay->lanes, cursor, event);
	if (state == CQRS_LANE_PARKED)
		return PASS_BY;			/* it is delivered from cqrs.retry */
	relay->blocked = relay->ahead != NULL && state == CQRS_LANE_BLOCKED;
	if (relay->ahead != NULL || state == CQRS_LANE_OPEN ||
		(relay->here && cursor->until_tick == relay->start_until &&
		 cqrs_cursor_covers(cursor, event->position)))
		return DELIVER;
	return PARK;
}

static void
add_bytes(CqrsRelay *relay, const CqrsEvent *event)
{
	if (!event->payload.isnull)
		relay->nbytes += toast_raw_datum_size(event->payload.value);
}

/*
 * Is the batch's time over, if it has a limit? If not, the next event begins
 * now, also for statement_timestamp(): the clock is read once for both. That
 * is the wall clock; if it was set back, the time is over, too.
 */
bool
cqrs_relay_is_late(const CqrsRelay *relay)
{
	TimestampTz now;

	if (relay->deadline == 0)
		return false;
	SetCurrentStatementStartTimestamp();
	now = GetCurrentStatementStartTimestamp();
	return now >= relay->deadline || now < relay->began;
}

/*
 * Move the cursor past what was read. If nothing was, move it only to say that
 * a window, or an epoch, is done with, or now and then, so that many empty
 * windows need not be looked through again.
 */
void
cqrs_relay_advance(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;

	if (relay->nevents > 0 || relay->nothers > 0)
	{
		cursor->last_position = Max(cursor->last_position, relay->last);
		cursor->position = relay->last;
		cqrs_cursor_forget_passed(cursor);
		cursor->received = Max(cursor->received, relay->last);
		cursor->delivered += relay->nevents;
		if (cqrs_window_at_end(relay->window))
			cqrs_relay_close_window(cursor);
	}
	else if (!cqrs_relay_arrives(relay) &&
			 (relay->start_until == 0 ||
			  cursor->tick_id == relay->start_tick) &&
			 cursor->tick_id < relay->start_tick + CQRS_EMPTY_TICKS)
		return;

	/* The handler may have removed its own subscription. */
	if (cqrs_registry_subscription_by_id(cursor->subscription_id) != NULL)
		cqrs_cursor_append(cursor);
}

/*
 * Has the cursor come to the end of its epoch in this batch? That must be
 * written down, as somebody waits for it.
 */
bool
cqrs_relay_arrives(const CqrsRelay *relay)
{
	return relay->epoch_tick != 0 && relay->cursor.until_tick == 0 &&
		relay->cursor.tick_id == relay->epoch_tick &&
		relay->start_tick != relay->epoch_tick;
}

/*
 * Does the subscription have fewer partitions by now, and this one no more?
 */
bool
cqrs_relay_is_gone(const CqrsRelay *relay)
{
	return relay->cursor.partition >= relay->subscription->partitions;
}

void
cqrs_relay_close_window(CqrsCursor *cursor)
{
	cursor->tick_id = cursor->until_tick;
	cursor->snapshot = cursor->until_snapshot;
	cursor->until_tick = 0;
	cursor->position = cursor->received = 0;
	cursor->received_all = false;
	cursor->npassed = 0;
}

void
cqrs_relay_end(CqrsRelay *relay)
{
	if (relay->window != NULL)
		close_window(relay);
	UnregisterSnapshot(relay->snapshot);
}

/*
 * Attach the window that the cursor is in, or else the one from there to the
 * relay's tick; none if there is nothing beyond the cursor.
 */
static void
open_window(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;
	CqrsSubscription *subscription = relay->subscription;

	if (cursor->until_tick == 0)
	{
		if (cursor->tick_id >= relay->tick.tick_id)
			return;
		cursor->until_tick = relay->tick.tick_id;
		cursor->until_snapshot = relay->tick.snapshot;
		cursor->position = cursor->received = 0;
		cursor->received_all = false;
		if (relay->ahead != NULL)
		{
			relay->ahead->position = 0;
			relay->ahead->at_end = false;
		}
	}

	if (kept_window != NULL &&
		cqrs_window_is(kept_window, cursor->snapshot, cursor->until_snapshot,
					   read_position(relay), subscription->ntopics,
					   subscription->topics))
	{
		relay->window = kept_window;
		kept_window = NULL;
		cqrs_window_move(relay->window, CurTransactionContext);
	}
	else
		relay->window = cqrs_window_create(CurTransactionContext,
										   cursor->snapshot,
										   cursor->until_snapshot,
										   read_position(relay),
										   WINDOW_ENTRIES);
	cqrs_window_attach(relay->window, subscription->ntopics,
					   subscription->topics, relay->snapshot);
}

/*
 * Detach the relay's window, and keep it if something is left of it.
 */
static void
close_window(CqrsRelay *relay)
{
	CqrsWindow *window = relay->window;

	relay->window = NULL;
	cqrs_window_detach(window);
	if (cqrs_window_at_end(window))
	{
		cqrs_window_free(window);
		return;
	}
	if (kept_window != NULL)
		cqrs_window_free(kept_window);
	kept_window = window;
	cqrs_window_move(window, TopMemoryContext);
}

/*
 * The position behind which the cursor's window is read.
 */
static int64
read_position(const CqrsRelay *relay)
{
	return relay->ahead ? Max(relay->ahead->position, relay->cursor.position) :
		relay->cursor.position;
}

static bool
batch_is_over(const CqrsRelay *relay, int max_events)
{
	return relay->nevents >= max_events || relay->nothers >= BATCH_OTHERS ||
		relay->nbytes >= CQRS_BATCH_BYTES ||
		(relay->nevents + relay->nothers > 0 && cqrs_relay_is_late(relay));
}
