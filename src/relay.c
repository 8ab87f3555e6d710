/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  One batch of one subscription, from the window to the cursor. Workers,
 *	  cqrs_drain() and cqrs_receive() all enter here.
 *
 * Protocol
 *
 * 1. Take the subscription's lock; then the latest snapshot; with it, read
 *	  the cursor, the newest tick, and the events. With snapshots of different
 *	  times, a cursor could meet events it does not count yet: they would be
 *	  skipped.
 * 2. What is handed to a handler need not be durable before: the handler's
 *	  transaction commits later in the WAL than all that its snapshots show.
 *	  So its windows end at a snapshot taken now, and wait for no tick. What
 *	  leaves the database ends at a tick.
 * 3. If the cursor is inside a window, go on with that window: another end
 *	  would let lower positions in behind the cursor. If not, or if nothing is
 *	  left of it, the next window goes from its end to the new one.
 * 4. Append the cursor, in the same transaction as what was done with the
 *	  events.
 *
 * In a transaction that keeps its snapshot (REPEATABLE READ), all windows end
 * at a tick, the newest that this snapshot shows. So whoever gets an event also sees
 * what its transaction did. The cursor is read with the latest snapshot all
 * the same; if it is ahead of that tick, nothing is delivered.
 *
 * Memory
 *
 * The references of the window read last are kept by the process, so that the
 * next batch need not look for them again. While a batch is read, its window
 * belongs to the transaction: an error frees it, and a batch of another
 * subscription that the handler reads meanwhile has one of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "events.h"
#include "relay.h"
#include "retry.h"
#include "subscription.h"
#include "topic.h"

/* References kept at once, at most: 32 MB with room to sort. */
#define WINDOW_ENTRIES	(1024 * 1024)

/* The cursor of a subscription without events moves every so many ticks. */
#define EMPTY_TICKS		1000

/* The window read last, and what it is of. */
static CqrsWindow *kept_window = NULL;
static int32 kept_subscription_id;
static uint64 kept_registry;
static int64 kept_until_tick;
static int64 kept_position;

/* The subscription whose handler is being called, to name it in errors. */
typedef struct DeliveryContext
{
	const CqrsSubscription *subscription;
	const CqrsEvent *event;		/* NULL: not at an event */
} DeliveryContext;

/* Subscriptions being drained up the stack. */
static List *draining = NIL;

static void open_window(CqrsRelay *relay);
static void close_window(CqrsRelay *relay);
static void next_window(CqrsCursor *cursor);
static void call_handler(CqrsSubscription *subscription, Datum event);
static void delivery_error_callback(void *arg);

PG_FUNCTION_INFO_V1(cqrs_drain);

/*
 * cqrs_drain(subscription)
 */
Datum
cqrs_drain(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	int32		subscription_id;
	Oid			save_userid;
	int			save_sec_context;
	int64		total = 0;

	cqrs_require_writable("cqrs_drain()");
	subscription = cqrs_subscription_get(name);
	subscription_id = subscription->subscription_id;
	if (!subscription->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no handler", name),
				 errhint("Read it with cqrs_receive() and cqrs_ack().")));
	if (GetUserId() != subscription->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\" to drain it",
						name),
				 errdetail("Its handler runs with the privileges of who drains it."),
				 errhint("SET ROLE to %s.",
						 quote_identifier(GetUserNameFromId(subscription->owner,
															false)))));
	if (list_member_int(draining, subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("subscription \"%s\" is already being drained by this session",
						name),
				 errhint("Its handler must not call cqrs_drain() for it.")));

	/* A handler must not get back to a role that SET ROLE left. */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(save_userid,
						   save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	PG_TRY();
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
		CqrsDelivery delivery;

		draining = lappend_int(draining, subscription_id);
		MemoryContextSwitchTo(oldcontext);
		do
		{
			/* A handler may change the registry, even remove this one. */
			subscription = cqrs_registry_subscription_by_id(subscription_id);
			if (subscription == NULL)
				break;
			cqrs_relay_deliver(subscription, CQRS_BATCH_EVENTS, &delivery);
			total += delivery.nevents;
		} while (delivery.nevents > 0);
	}
	PG_FINALLY();
	{
		draining = list_delete_int(draining, subscription_id);
	}
	PG_END_TRY();
	SetUserIdAndSecContext(save_userid, save_sec_context);
	PG_RETURN_INT64(total);
}

/*
 * Take the lock for moving the subscription's cursor, until the end of the
 * transaction. Raises 42704 if the subscription went while we waited.
 */
void
cqrs_relay_lock(const CqrsSubscription *subscription)
{
	CqrsSubscription *now;

	(void) cqrs_object_lock(CQRS_REL_SUBSCRIPTION,
							subscription->subscription_id, 0, ExclusiveLock,
							true);
	now = cqrs_subscription_get(subscription->name);
	if (now->subscription_id != subscription->subscription_id)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" was dropped", subscription->name)));
}

/*
 * Begin a batch: lock, read the cursor, find the window. Everything is in the
 * current memory context.
 *
 * Raises 42501 if the current user, the subscription's owner, may not read
 * one of its topics any more.
 */
void
cqrs_relay_begin(CqrsRelay *relay, CqrsSubscription *subscription)
{
	bool		found;
	int			i;

	memset(relay, 0, sizeof(*relay));
	cqrs_relay_lock(subscription);

	/* What the wait may have brought. */
	subscription = cqrs_subscription_get(subscription->name);
	relay->subscription = subscription;
	for (i = 0; i < subscription->ntopics; i++)
		cqrs_topic_require(subscription->topics[i], ACL_SELECT);

	if (subscription->has_handler && !IsolationUsesXactSnapshot())
	{
		relay->tick.snapshot = cqrs_snapshot_take();
		relay->tick.tick_id = cqrs_tick_next_id();
		relay->snapshot = RegisterSnapshot(GetLatestSnapshot());
		found = true;
	}
	else
	{
		relay->snapshot = RegisterSnapshot(GetLatestSnapshot());
		found = cqrs_tick_newest(IsolationUsesXactSnapshot() ?
								 GetTransactionSnapshot() : relay->snapshot,
								 &relay->tick);
	}
	if (!cqrs_cursor_read(subscription->subscription_id, 0, relay->snapshot,
						  &relay->cursor))
		elog(ERROR, "subscription %d has no cursor",
			 subscription->subscription_id);
	relay->start_tick = relay->cursor.tick_id;
	if (!found || !relay->cursor.native)
		return;
	if (relay->tick.tick_id < Max(relay->cursor.tick_id,
								  relay->cursor.until_tick))
		return;
	open_window(relay);
}

/*
 * The batch's next event. Returns false at its end: of what there is, at
 * max_events, or at CQRS_BATCH_BYTES.
 */
bool
cqrs_relay_next(CqrsRelay *relay, int max_events, CqrsEvent *event)
{
	if (relay->window == NULL || relay->nevents >= max_events ||
		relay->nbytes >= CQRS_BATCH_BYTES)
		return false;

	while (!cqrs_window_next(relay->window, event))
	{
		/* A batch stays within one window. */
		if (relay->nevents > 0)
			return false;

		/* Nothing left of this one: on to the next, if there is one. */
		close_window(relay);
		next_window(&relay->cursor);
		open_window(relay);
		if (relay->window == NULL)
			return false;
	}

	relay->nevents++;
	if (!event->payload.isnull)
		relay->nbytes += toast_raw_datum_size(event->payload.value);
	relay->last = event->position;
	return true;
}

/*
 * Move the cursor past what was read. If nothing was, only now and then: so
 * many empty windows need not be looked through again.
 */
void
cqrs_relay_advance(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;

	if (relay->nevents > 0)
	{
		cursor->last_position = Max(cursor->last_position, relay->last);
		cursor->position = relay->last;
		cursor->received = Max(cursor->received, relay->last);
		if (cqrs_window_at_end(relay->window))
			next_window(cursor);
	}
	else if (cursor->tick_id < relay->start_tick + EMPTY_TICKS)
		return;

	/* The handler may have removed its own subscription. */
	if (cqrs_registry_subscription_by_id(cursor->subscription_id) != NULL)
		cqrs_cursor_append(cursor);
}

/*
 * End a batch.
 */
void
cqrs_relay_end(CqrsRelay *relay)
{
	if (relay->window != NULL)
		close_window(relay);
	UnregisterSnapshot(relay->snapshot);
}

/*
 * Deliver one batch of up to max_events to the subscription's handler, in the
 * current transaction. The current user is the subscription's owner.
 */
void
cqrs_relay_deliver(CqrsSubscription *subscription, int max_events,
				   volatile CqrsDelivery *delivery)
{
	ErrorContextCallback errcallback;
	DeliveryContext context = {subscription, NULL};
	MemoryContext per_event;
	MemoryContext oldcontext;
	CqrsRelay	relay;
	CqrsEvent	event;
	CqrsFailure failure;
	bool		failed_before;
	TupleDesc	desc = NULL;

	delivery->nevents = 0;
	delivery->position = 0;
	errcallback.callback = delivery_error_callback;
	errcallback.arg = &context;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	cqrs_relay_begin(&relay, subscription);
	context.subscription = subscription = relay.subscription;
	failed_before = cqrs_failure_read(subscription->subscription_id,
									  relay.snapshot, &failure);
	per_event = AllocSetContextCreate(CurrentMemoryContext, "cqrs event",
									  ALLOCSET_DEFAULT_SIZES);
	while (cqrs_relay_next(&relay, max_events, &event))
	{
		Datum		arg;

		context.event = &event;
		delivery->position = event.position;
		if (desc == NULL)
		{
			cqrs_handler_check(&subscription->handler, "subscription",
							   subscription->name);

			/* It may have been dropped, and made anew by somebody else. */
			cqrs_subscription_check_handler_owner(subscription->name,
												  subscription->owner,
												  subscription->handler.signature,
												  subscription->handler.owner);
			desc = lookup_rowtype_tupdesc(subscription->handler.argtype, -1);
		}
		oldcontext = MemoryContextSwitchTo(per_event);
		if (failed_before && failure.position == event.position)
			arg = cqrs_event_form(&event, "not_produced", failure.attempts,
								  desc);
		else
			arg = cqrs_event_form(&event, "new", 0, desc);
		call_handler(subscription, arg);
		MemoryContextSwitchTo(oldcontext);
		MemoryContextReset(per_event);
		context.event = NULL;
	}
	if (desc != NULL)
		ReleaseTupleDesc(desc);
	cqrs_relay_advance(&relay);
	if (failed_before && relay.nevents > 0)
		cqrs_failure_clear(subscription->subscription_id);
	cqrs_relay_end(&relay);
	MemoryContextDelete(per_event);

	delivery->nevents = relay.nevents;
	error_context_stack = errcallback.previous;
}

/*
 * Attach the window that the cursor is in, or the one up to the relay's tick.
 * None if there is nothing beyond the cursor.
 */
static void
open_window(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;
	CqrsSubscription *subscription = relay->subscription;
	uint64		registry = cqrs_registry_generation();

	if (cursor->until_tick == 0)
	{
		if (cursor->tick_id >= relay->tick.tick_id)
			return;
		cursor->until_tick = relay->tick.tick_id;
		cursor->until_snapshot = relay->tick.snapshot;
		cursor->position = cursor->received = 0;
	}

	if (kept_window != NULL &&
		kept_subscription_id == subscription->subscription_id &&
		kept_registry == registry &&
		kept_until_tick == cursor->until_tick &&
		kept_position == cursor->position)
	{
		relay->window = kept_window;
		kept_window = NULL;
		cqrs_window_move(relay->window, CurTransactionContext);
	}
	else
		relay->window = cqrs_window_create(CurTransactionContext,
										   cursor->snapshot,
										   cursor->until_snapshot,
										   cursor->position, WINDOW_ENTRIES);
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
	kept_subscription_id = relay->cursor.subscription_id;
	kept_registry = cqrs_registry_generation();
	kept_until_tick = relay->cursor.until_tick;
	kept_position = relay->nevents > 0 ? relay->last : relay->cursor.position;
}

/*
 * The cursor's window is done with.
 */
static void
next_window(CqrsCursor *cursor)
{
	cursor->tick_id = cursor->until_tick;
	cursor->snapshot = cursor->until_snapshot;
	cursor->until_tick = 0;
	cursor->position = cursor->received = 0;
}

/*
 * Call the handler with one event, under a snapshot of its own.
 */
static void
call_handler(CqrsSubscription *subscription, Datum event)
{
	bool		isnull;

	CHECK_FOR_INTERRUPTS();
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	(void) cqrs_handler_call(&subscription->handler, event, &isnull);
	PopActiveSnapshot();
}

static void
delivery_error_callback(void *arg)
{
	DeliveryContext *context = (DeliveryContext *) arg;

	if (context->event != NULL)
		errcontext("delivering position " INT64_FORMAT " of topic \"%s\" to subscription \"%s\"",
				   context->event->position, context->event->topic->name,
				   context->subscription->name);
	else
		errcontext("delivering to subscription \"%s\"",
				   context->subscription->name);
}
