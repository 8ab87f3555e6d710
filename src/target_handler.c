/*-------------------------------------------------------------------------
 *
 * target_handler.c
 *	  Events delivered to a handler in the same database, by a worker or by
 *	  cqrs_drain().
 *
 * Protocol
 *
 * 1. A batch is one transaction, or subtransaction: the cursor moves with what
 *	  the handler did. First come the parked events that are due, then new
 *	  ones. No handler is to notice that it is in a batch: each event ends as if
 *	  the transaction did (see session.c), and is the last one of its batch
 *	  where that is not enough; where it changed what is registered, or moved its
 *	  own subscription (see underway.c); and where the subtransactions would
 *	  become too many.
 * 2. If the handler raises an error at the k-th event, all is rolled back. The
 *	  k - 1 before it are done again; then the others are called apart, each in a
 *	  subtransaction of its own, until none has failed for a while (CqrsPace).
 *	  So an error costs only its own event from then on: that is parked in the
 *	  batch's transaction.
 *	  An error is an event's fault only if nothing of another is in its
 *	  transaction: if none was handled before it there. Otherwise, it is parked
 *	  as it is, and tried anew at the beginning of the next batch.
 * 3. An error that is no event's fault (cqrs_target_is_outage) counts as no
 *	  attempt; the whole subscription waits.
 * 4. Where an event may have ended the process (see worker.c), each is parked
 *	  with its attempt counted, and that committed, before the handler is
 *	  called (cqrs_target_announce). So is any event whose last attempt was
 *	  announced, and did not come back.
 *
 * The worker limits the time of each call, deferred triggers included. The
 * timeout cancels the handler like pg_cancel_backend(). One that catches this
 * fails when it returns; if it does not within HANDLER_GRACE from then, the
 * process ends, and the worker records the event as failed on its way out.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "clock.h"
#include "context.h"
#include "debug_point.h"
#include "events.h"
#include "relay.h"
#include "rethrow.h"
#include "session.h"
#include "subscription.h"
#include "target_handler.h"
#include "underway.h"

/* A batch ends where it would have more subtransactions. */
#define BATCH_SUBTRANSACTIONS	48

/* A batch begins with so many parked events, at most. */
#define BATCH_PARKED	100

/* After an error, so many events are called apart. */
#define APART_EVENTS	200

/* A handler that catches its timeout has so long, in milliseconds. */
#define HANDLER_GRACE	1000

/* What is being delivered, to name it in errors. */
typedef struct DeliveryContext
{
	const CqrsSubscription *subscription;
	const CqrsEvent *event;		/* NULL: not at an event */
} DeliveryContext;

/* A batch under way. */
typedef struct Batch
{
	CqrsRelay	relay;
	CqrsUnderway underway;
	DeliveryContext where;
	TupleDesc	desc;			/* of the handler's argument */
	MemoryContext context;
	MemoryContext per_event;
	bool		in_worker;
	int			nplain;			/* so many more are not called apart */
	bool		one;			/* ends with the first that is handled ... */
	bool		alone;			/* ... or fails */
	bool		clean;			/* nothing was handled yet */
	bool		is_short;		/* it does not wait for the disk alone */
	uint64		registry;		/* its generation */
	int			subtransactions;	/* of the event that had most */
	bool		stop;			/* no further event */
	bool		moved;			/* the cursor was, by the handler */
	int			commit;			/* what synchronous_commit is to be */
	volatile CqrsDelivery *delivery;
} Batch;

static bool timeouts_registered = false;
static TimeoutId handler_timeout_id;
static TimeoutId handler_grace_id;
static volatile sig_atomic_t handler_timed_out = false;
static volatile sig_atomic_t handler_overdue = false;

static void find_handler(Batch *batch);
static int	deliver_parked(Batch *batch, int64 position, TimestampTz now);
static int	deliver_new(Batch *batch);
static bool handle(Batch *batch, const CqrsEvent *event, CqrsParked *parked,
				   int attempts, bool apart);
static ErrorData *call_handler(Batch *batch, const CqrsEvent *event,
							   const CqrsParked *parked, int attempts,
							   bool apart);
static ErrorData *call_apart(Batch *batch, const CqrsEvent *event,
							 const CqrsParked *parked, int attempts);
static void call(Batch *batch, const CqrsEvent *event,
				 const CqrsParked *parked, int attempts);
static void call_limited(Batch *batch, Datum arg);
static void end_event(Batch *batch, int level, int subtransactions);
static void record_failure(Batch *batch, const CqrsEvent *event,
						   CqrsParked *parked, const ErrorData *error);
static void set_commit(const Batch *batch);
static void arm_timeouts(const CqrsSubscription *subscription);
static void disarm_timeouts(void);
static void handler_timeout(void);
static void handler_grace_over(void);
static void delivery_error_callback(void *arg);

/*
 * Deliver one batch to the subscription's handler, in the current transaction.
 * The current user is the subscription's owner.
 *	pace			which events are called apart
 *	alone			no more than one
 *	parked_position	not 0: this parked event, due or not, and nothing else
 *	now				parked events are due if they are to be tried by then
 *	in_worker		limit the time of each call, and of the batch
 *
 * After an error, the caller sets cqrs_context_innermost and
 * cqrs_underway_innermost to what they were.
 */
void
cqrs_target_deliver(CqrsSubscription *subscription, int partition,
					const CqrsPace *pace, bool alone, int64 parked_position,
					TimestampTz now, bool in_worker,
					volatile CqrsDelivery *delivery)
{
	ErrorContextCallback errcallback;
	Batch		batch = {.in_worker = in_worker,.commit = -1,.clean = true};
	CqrsRelay  *relay = &batch.relay;
	int			nparked = 0;
	int			nnew = 0;

	batch.delivery = delivery;
	batch.where.subscription = subscription;
	*delivery = (CqrsDelivery)
	{
		0
	};
	errcallback.callback = delivery_error_callback;
	errcallback.arg = &batch.where;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	(void) cqrs_relay_begin(relay, subscription, partition, true);
	if (!in_worker && !cqrs_relay_is_gone(relay))
		cqrs_cursor_require_native(&relay->cursor, subscription->name);
	relay->park_inside = true;
	batch.alone = alone;
	batch.one = alone;
	if (in_worker)
	{
		SetCurrentStatementStartTimestamp();
		relay->began = GetCurrentStatementStartTimestamp();
		relay->deadline = TimestampTzPlusMilliseconds(relay->began,
													  cqrs_batch_duration);
		batch.one |= relay->subscription->event_transactions;
		batch.is_short = relay->subscription->event_transactions ||
			pace->apart > 0;
	}
	batch.nplain = pace->apart > 0 ? pace->plain : INT_MAX;
	batch.where.subscription = relay->subscription;
	batch.registry = cqrs_registry_generation();
	batch.underway.relay = relay;
	batch.underway.outer = cqrs_underway_innermost;
	cqrs_underway_innermost = &batch.underway;
	batch.context = CurrentMemoryContext;
	batch.per_event = AllocSetContextCreate(CurrentMemoryContext,
											"cqrs event",
											ALLOCSET_DEFAULT_SIZES);

	/* However many parked events are due, new ones have their turn. */
	if (pace->new_first && parked_position == 0)
		nnew = deliver_new(&batch);
	if (nnew == 0)
		nparked = deliver_parked(&batch, parked_position, now);
	delivery->parked_last = nparked > 0 &&
		(batch.stop || nparked == BATCH_PARKED || cqrs_relay_is_late(relay));
	if (!pace->new_first && parked_position == 0 && !delivery->announce)
		nnew = deliver_new(&batch);
	delivery->more = nparked > 0 || nnew > 0 || delivery->announce ||
		batch.moved;
	delivery->retry_at = relay->cursor.next_retry_at;

	cqrs_underway_innermost = batch.underway.outer;
	if (batch.desc != NULL)
		ReleaseTupleDesc(batch.desc);
	cqrs_relay_end(relay);
	MemoryContextDelete(batch.per_event);
	set_commit(&batch);
	error_context_stack = errcallback.previous;
}

/*
 * Record that the event at this position, which an error kept from being
 * delivered, failed: a parked one, or the first behind the cursor. In a
 * transaction, or subtransaction, of its own. With counted, see
 * cqrs_parked_failed(). Returns false, and records nothing, if another event
 * comes first.
 */
bool
cqrs_target_failed(CqrsSubscription *subscription, int partition,
				   int64 position, const ErrorData *error, bool counted)
{
	CqrsRelay	relay;
	CqrsEvent	event;
	CqrsParked	parked;
	CqrsFault	fault = {0};
	bool		recorded = false;

	fault.sqlerrcode = error->sqlerrcode;
	fault.message = error->message;
	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	if (cqrs_parked_find(&relay.cursor, position, &parked))
	{
		cqrs_parked_failed(&parked, relay.subscription, &relay.cursor, &fault,
						   counted);
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
		recorded = true;
	}
	else
	{
		if (cqrs_relay_next(&relay, 1, &event))
		{
			relay.nevents = 0;
			if (event.position == position)
			{
				cqrs_park(relay.subscription, &relay.cursor, &event, &fault);
				relay.nothers++;
				recorded = true;
			}
			else
			{
				/* A late one comes first now. */
				relay.last = relay.cursor.position;
				cqrs_window_unread(relay.window, relay.last);
			}
		}

		/* What was parked on the way there must not be met again. */
		cqrs_parked_close(&relay.cursor);
		if (relay.nothers > 0)
			cqrs_relay_advance(&relay);
	}
	cqrs_relay_end(&relay);
	return recorded;
}

/*
 * Choose the event to deliver next, park it if it is not yet, and count the
 * attempt. Returns its position, 0 if there is none now. The caller commits,
 * and then has cqrs_target_deliver() deliver it.
 */
int64
cqrs_target_announce(CqrsSubscription *subscription, int partition,
					 volatile CqrsDelivery *delivery)
{
	CqrsRelay	relay;
	CqrsEvent	event;
	CqrsParked	parked;
	int64		position = 0;

	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	while (position == 0 &&
		   cqrs_parked_due(&relay.cursor, cqrs_wall_now(), &parked))
	{
		if (cqrs_parked_begin_attempt(&parked, relay.subscription,
									  &relay.cursor))
			position = parked.position;
		cqrs_parked_close(&relay.cursor);
		cqrs_cursor_append(&relay.cursor);
	}
	if (position == 0 && cqrs_relay_next(&relay, 1, &event))
	{
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
 * Is this error no event's fault? Then it would fail any other event too:
 * resources are short, an administrator intervened, the system has an error.
 * A handler's timeout is none: whoever calls one asks for that first.
 */
bool
cqrs_target_is_outage(const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	return category == ERRCODE_INSUFFICIENT_RESOURCES ||
		category == ERRCODE_OPERATOR_INTERVENTION ||
		category == ERRCODE_SYSTEM_ERROR;
}

/*
 * A batch was delivered.
 */
void
cqrs_pace_done(CqrsPace *pace, volatile CqrsDelivery *delivery)
{
	pace->plain = 0;
	pace->apart = delivery->nfailed > 0 ? APART_EVENTS :
		Max(pace->apart - delivery->nevents, 0);
	pace->new_first = delivery->parked_last;
}

/*
 * A batch was rolled back after so many of its events were handled.
 */
void
cqrs_pace_failed(CqrsPace *pace, int nevents)
{
	pace->plain = nevents;
	pace->apart = APART_EVENTS;
}

/*
 * Find the handler, and see that the owner may call it. No event is to blame
 * if it is not there.
 */
static void
find_handler(Batch *batch)
{
	CqrsSubscription *subscription = batch->relay.subscription;

	if (batch->desc != NULL)
		return;
	cqrs_handler_check(&subscription->handler, "subscription",
					   subscription->name);

	/* It may have been dropped, and made anew by somebody else. */
	cqrs_subscription_check_handler_owner(subscription->name,
										  subscription->owner,
										  subscription->handler.signature,
										  subscription->handler.owner);
	batch->desc = lookup_rowtype_tupdesc(subscription->handler.argtype, -1);
}

/*
 * Deliver parked events that are due, or the one at position. Returns how many
 * there were.
 *
 * Those that have failed before come first in their transaction, as long as they
 * fail. Once one of them is handled, others may be, too.
 */
static int
deliver_parked(Batch *batch, int64 position, TimestampTz now)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	bool		failed = false;
	CqrsParked	parked;
	int			n = 0;

	batch->underway.parked = true;
	while (n < BATCH_PARKED && !batch->stop)
	{
		CqrsEvent	event;
		int			attempts;
		bool		found;

		if (!(position != 0 ? cqrs_parked_find(cursor, position, &parked) :
			  cqrs_parked_due(cursor, now, &parked)))
			break;
		if (position == 0 && parked.killed && batch->in_worker)
		{
			batch->delivery->announce = true;
			break;
		}
		if (parked.failed && failed && !batch->clean)
			break;
		find_handler(batch);
		n++;
		MemoryContextSwitchTo(batch->per_event);
		found = cqrs_parked_read(cursor, parked.position, NULL, &event,
								 &attempts);
		MemoryContextSwitchTo(batch->context);
		if (!found)
			cqrs_parked_done(&parked, cursor);
		else if (handle(batch, &event, &parked,
						position != 0 ? attempts - 1 : attempts,
						position == 0 && parked.failed))
			cursor->delivered++;
		else
		{
			failed = true;
			if (!batch->clean)
				n = BATCH_PARKED;	/* it comes first in the next batch */
		}
		if (position != 0 || cqrs_relay_is_late(&batch->relay))
			break;
	}
	CQRS_DEBUG_POINT("relay_before_cursor");
	cqrs_parked_close(cursor);

	/* The handler may have removed its own subscription. */
	if (n > 0 && !batch->moved &&
		cqrs_registry_subscription_by_id(cursor->subscription_id) != NULL)
		cqrs_cursor_append(cursor);
	return n;
}

/*
 * Deliver new events, and move the cursor. Returns how many were read.
 */
static int
deliver_new(Batch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsEvent	event;

	batch->underway.parked = false;
	while (!batch->stop && cqrs_relay_next(relay, CQRS_BATCH_EVENTS, &event))
	{
		find_handler(batch);
		(void) handle(batch, &event, NULL, 0, false);
	}
	CQRS_DEBUG_POINT("relay_before_cursor");
	if (batch->delivery->nfailed > 0)
		cqrs_parked_close(&relay->cursor);
	if (!batch->moved)
		cqrs_relay_advance(relay);
	return relay->nevents + relay->nothers;
}

/*
 * Have an event handled: one of the window, or, with parked, that. Returns false
 * if it failed, which was recorded, or can be told when it comes first. Raises an
 * error if it was not called apart, or if the error is no event's fault.
 */
static bool
handle(Batch *batch, const CqrsEvent *event, CqrsParked *parked, int attempts,
	   bool apart)
{
	ErrorData  *error;

	/* What was recorded is not to be rolled back. */
	apart |= batch->nplain-- <= 0 || batch->delivery->nfailed > 0;
	error = call_handler(batch, event, parked, attempts, apart);
	batch->stop |= batch->alone || (batch->one && error == NULL);
	if (error == NULL)
		batch->clean = false;
	else
	{
		record_failure(batch, event, parked, error);
		FreeErrorData(error);
	}
	MemoryContextReset(batch->per_event);
	return error == NULL;
}

/*
 * Call the handler with one event, under a snapshot of its own. What it is
 * within, in cqrs_drain(), has nothing to do with the event. Sets stop if the
 * batch has to end with this one. Returns the error of one that was called
 * apart.
 */
static ErrorData *
call_handler(Batch *batch, const CqrsEvent *event, const CqrsParked *parked,
			 int attempts, bool apart)
{
	CqrsContext *outer = cqrs_context_innermost;
	int			subtransactions = cqrs_session_subtransactions();
	ErrorData  *error = NULL;
	int			level;

	CHECK_FOR_INTERRUPTS();
	batch->where.event = event;
	batch->delivery->position = event->position;
	CommandCounterIncrement();
	level = cqrs_session_begin_event(batch->in_worker);
	if (apart)
		error = call_apart(batch, event, parked, attempts);
	else
		call(batch, event, parked, attempts);
	end_event(batch, level, subtransactions);
	cqrs_context_innermost = outer;
	batch->where.event = NULL;
	batch->delivery->position = 0;
	if (error == NULL)
	{
		batch->delivery->last = event->position;
		batch->delivery->nevents++;
	}
	return error;
}

/*
 * Call the handler in a subtransaction. Returns the error that rolled it back,
 * in the batch's context, or NULL. What the session was left with ends with the
 * event, not here: the trigger manager, for one, must not begin anew within.
 */
static ErrorData *
call_apart(Batch *batch, const CqrsEvent *event, const CqrsParked *parked,
		   int attempts)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	CqrsCursor	before = *cursor;
	ErrorData  *volatile error = NULL;

	if (cursor->npassed > 0)
	{
		before.passed = MemoryContextAlloc(batch->context, sizeof(int64) *
										   pg_nextpower2_32(cursor->npassed));
		memcpy(before.passed, cursor->passed,
			   sizeof(int64) * cursor->npassed);
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		call(batch, event, parked, attempts);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		bool		timed_out = false;

		if (batch->in_worker && timeouts_registered)
		{
			disarm_timeouts();
			timed_out = cqrs_target_timed_out();
		}

		/* What is no event's fault concerns the whole batch. */
		MemoryContextSwitchTo(batch->context);
		error = CopyErrorData();
		if (cqrs_target_is_outage(error) &&
			!(timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED))
			PG_RE_THROW();
		if (batch->clean && batch->in_worker)
			EmitErrorReport();
		FlushErrorState();
		if (timed_out)
			QueryCancelPending = false;
		RollbackAndReleaseCurrentSubTransaction();
		cqrs_underway_innermost = &batch->underway;
		*cursor = before;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	return error;
}

/*
 * Have a parked event removed, and call the handler.
 */
static void
call(Batch *batch, const CqrsEvent *event, const CqrsParked *parked,
	 int attempts)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	CqrsContext context;
	Datum		arg;

	/* Before, so that the handler may move the cursor. */
	if (parked != NULL)
		cqrs_parked_done(parked, &batch->relay.cursor);
	MemoryContextSwitchTo(batch->per_event);
	arg = cqrs_event_form(event, attempts > 0 ? "not_produced" : "new",
						  attempts, batch->desc);
	cqrs_context_init(&context, "event",
					  TextDatumGetCString(event->event_name));
	context.has_id = true;
	context.id = *DatumGetUUIDP(event->event_id);
	context.headers = event->headers;
	context.attempt = attempts + 1;
	if (batch->relay.subscription->runs_commands)
		context.command = event;
	cqrs_context_innermost = &context;
	call_limited(batch, arg);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * The call itself; in a worker, with what is deferred to the end of the
 * transaction, and within the time that the subscription allows.
 */
static void
call_limited(Batch *batch, Datum arg)
{
	CqrsSubscription *subscription = batch->relay.subscription;
	bool		limited = batch->in_worker &&
	subscription->handler_timeout > 0;
	int			commit = synchronous_commit;
	bool		isnull;

	if (limited)
		arm_timeouts(subscription);
	PushActiveSnapshot(GetTransactionSnapshot());
	(void) cqrs_handler_call(&subscription->handler, arg, &isnull);
	PopActiveSnapshot();
	if (batch->in_worker)
		cqrs_session_fire_deferred();
	if (limited)
	{
		disarm_timeouts();
		CHECK_FOR_INTERRUPTS();
		if (handler_timed_out)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("handler took too long")));
	}

	/* The batch commits as the most demanding of its handlers wants. */
	if (synchronous_commit != commit)
		commit = synchronous_commit;
	else if (batch->is_short && !cqrs_session_event_was_alone())
		commit = SYNCHRONOUS_COMMIT_OFF;
	batch->commit = Max(batch->commit, commit);
}

/*
 * End an event that was handled, and see if the batch has to end, too.
 */
static void
end_event(Batch *batch, int level, int subtransactions)
{
	int			now;

	cqrs_session_end_event(level, batch->in_worker);
	if (cqrs_underway_moved(&batch->underway))
		batch->moved = batch->stop = true;
	if (cqrs_registry_is_stale() ||
		cqrs_registry_generation() != batch->registry)
		batch->stop = true;
	if (!batch->in_worker)
		return;
	now = cqrs_session_subtransactions();
	batch->subtransactions = Max(batch->subtransactions,
								 now - subtransactions);
	if (now + batch->subtransactions > BATCH_SUBTRANSACTIONS ||
		cqrs_session_event_was_alone())
		batch->stop = true;
}

/*
 * An event failed that was called apart: record that, or, if others were handled
 * before it, have it tried first. The registry may be another one by now, and
 * what was taken from it before not what counts.
 */
static void
record_failure(Batch *batch, const CqrsEvent *event, CqrsParked *parked,
			   const ErrorData *error)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	CqrsFault	fault = {error->sqlerrcode, error->message};
	CqrsEvent	failed = *event;

	batch->delivery->nfailed++;
	failed.topic = cqrs_registry_topic_by_id(event->topic->topic_id);
	relay->subscription =
		cqrs_registry_subscription_by_id(cursor->subscription_id);
	if (failed.topic == NULL || relay->subscription == NULL)
		elog(ERROR, "subscription %d, which is being delivered, is gone",
			 cursor->subscription_id);
	batch->where.subscription = relay->subscription;
	if (batch->clean && !batch->in_worker)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not deliver position " INT64_FORMAT " to subscription \"%s\"",
						event->position, relay->subscription->name),
				 errdetail_internal("%s", error->message)));
	if (parked != NULL)
	{
		if (batch->clean)
			cqrs_parked_failed(parked, relay->subscription, cursor, &fault,
							   false);
		return;
	}
	if (batch->clean)
		cqrs_park(relay->subscription, cursor, &failed, &fault);
	else
		cqrs_park_unproven(cursor, &failed, &fault);
	cqrs_lane_forget(&relay->lanes, cqrs_event_lane(&failed));
	relay->nevents--;
	relay->nothers++;
}

/*
 * Have the transaction commit as its handlers want it. With a transaction for
 * each event, or where events are called apart, so that the transactions are
 * short, who has set nothing and announced nothing need not wait for the disk:
 * the worker does so for several of them. A crash takes back cursor and effects
 * together.
 */
static void
set_commit(const Batch *batch)
{
	int			commit = batch->commit;

	/* Nobody waits for what only failed. */
	if (commit < 0 && batch->delivery->nfailed > 0)
		commit = SYNCHRONOUS_COMMIT_OFF;
	if (!batch->in_worker || commit < 0)
		return;
	batch->delivery->not_flushed = commit == SYNCHRONOUS_COMMIT_OFF &&
		(batch->is_short || batch->commit < 0);
	if (commit != synchronous_commit)
		cqrs_set_commit(commit);
}

/*
 * Limit the time of a call. After an error, who handles it disables all
 * timeouts.
 */
static void
arm_timeouts(const CqrsSubscription *subscription)
{
	if (!timeouts_registered)
	{
		handler_timeout_id = RegisterTimeout(USER_TIMEOUT, handler_timeout);
		handler_grace_id = RegisterTimeout(USER_TIMEOUT, handler_grace_over);
		timeouts_registered = true;
	}
	handler_timed_out = false;
	enable_timeout_after(handler_timeout_id,
						 (int) Min(subscription->handler_timeout, INT_MAX));
}

static void
disarm_timeouts(void)
{
	disable_timeout(handler_timeout_id, false);
	if (handler_timed_out)
		disable_timeout(handler_grace_id, false);
}

/*
 * Did the last call end because its time was over? To be asked once, by who
 * handles its error: what cancels the next one may be somebody else.
 */
bool
cqrs_target_timed_out(void)
{
	bool		result = handler_timed_out;

	handler_timed_out = false;
	return result;
}

/*
 * Does this process end because a handler caught its timeout?
 */
bool
cqrs_target_overdue(void)
{
	return handler_overdue;
}

/*
 * Runs in the signal handler of SIGALRM.
 */
static void
handler_timeout(void)
{
	handler_timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
	enable_timeout_after(handler_grace_id, HANDLER_GRACE);
}

/*
 * The same. Nobody can catch that.
 */
static void
handler_grace_over(void)
{
	handler_overdue = true;
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}

static void
delivery_error_callback(void *arg)
{
	DeliveryContext *context = (DeliveryContext *) arg;

	if ((handler_timed_out && geterrcode() == ERRCODE_QUERY_CANCELED) ||
		(handler_overdue && geterrcode() == ERRCODE_ADMIN_SHUTDOWN))
		errmsg("handler of subscription \"%s\" took longer than its handler_timeout",
			   context->subscription->name);
	if (context->event != NULL)
		errcontext("delivering position " INT64_FORMAT " of topic \"%s\" to subscription \"%s\"",
				   context->event->position, context->event->topic->name,
				   context->subscription->name);
	else
		errcontext("delivering to subscription \"%s\"",
				   context->subscription->name);
}
