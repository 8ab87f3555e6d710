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
 * 2. If the handler raises an error at the k-th event, all is rolled back;
 *	  the k - 1 before it are done again in a batch; then the one comes first,
 *	  and if it fails again, it is recorded as failed (cqrs_target_failed), and
 *	  the batches go on behind it. So what fails was alone in its transaction.
 *	  The batches that follow are small at first, so that failures have few
 *	  others done twice (CqrsPace).
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
#include "epoch.h"
#include "events.h"
#include "relay.h"
#include "rethrow.h"
#include "session.h"
#include "subscription.h"
#include "target_handler.h"
#include "underway.h"

/* A batch ends where it would have more subtransactions. */
#define BATCH_SUBTRANSACTIONS	48

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
	DeliveryContext context;
	TupleDesc	desc;			/* of the handler's argument */
	MemoryContext per_event;
	bool		in_worker;
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
static bool deliver_parked(Batch *batch, int max_events, int64 position,
						   TimestampTz now);
static void deliver_new(Batch *batch, int max_events);
static void call_handler(Batch *batch, const CqrsEvent *event,
						 const char *status, int attempts);
static void call_limited(Batch *batch, Datum arg);
static void end_event(Batch *batch, int level, int subtransactions);
static void set_commit(const Batch *batch);
static void arm_timeouts(const CqrsSubscription *subscription);
static void disarm_timeouts(void);
static void handler_timeout(void);
static void handler_grace_over(void);
static void delivery_error_callback(void *arg);
static int64 drain(int32 subscription_id, int partition);
static ErrorData *deliver_in_subtransaction(CqrsSubscription *subscription,
											int partition, int max_events,
											TimestampTz now,
											CqrsDelivery *delivery);

PG_FUNCTION_INFO_V1(cqrs_drain);

/*
 * Deliver one batch to the subscription's handler, in the current transaction.
 * The current user is the subscription's owner.
 *	max_events		at most so many
 *	parked_position	not 0: this parked event, due or not, and nothing else
 *	now				parked events are due if they are to be tried by then
 *	in_worker		limit the time of each call, and of the batch
 *
 * After an error, the caller sets cqrs_context_innermost and
 * cqrs_underway_innermost to what they were.
 */
void
cqrs_target_deliver(CqrsSubscription *subscription, int partition,
					int max_events, int64 parked_position, TimestampTz now,
					bool in_worker, volatile CqrsDelivery *delivery)
{
	ErrorContextCallback errcallback;
	Batch		batch = {.in_worker = in_worker,.commit = -1};
	CqrsRelay  *relay = &batch.relay;

	batch.delivery = delivery;
	batch.context.subscription = subscription;
	delivery->nevents = 0;
	delivery->position = 0;
	delivery->more = false;
	delivery->announce = false;
	delivery->not_flushed = false;
	delivery->retry_at = 0;
	errcallback.callback = delivery_error_callback;
	errcallback.arg = &batch.context;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	(void) cqrs_relay_begin(relay, subscription, partition, true);
	if (!in_worker && !cqrs_relay_is_gone(relay))
		cqrs_cursor_require_native(&relay->cursor, subscription->name);
	relay->park_inside = true;
	if (in_worker)
	{
		SetCurrentStatementStartTimestamp();
		relay->began = GetCurrentStatementStartTimestamp();
		relay->deadline = TimestampTzPlusMilliseconds(relay->began,
													  cqrs_batch_duration);
		if (relay->subscription->event_transactions)
			max_events = Min(max_events, 1);
	}
	batch.context.subscription = relay->subscription;
	batch.registry = cqrs_registry_generation();
	batch.underway.relay = relay;
	batch.underway.outer = cqrs_underway_innermost;
	cqrs_underway_innermost = &batch.underway;
	batch.per_event = AllocSetContextCreate(CurrentMemoryContext,
											"cqrs event",
											ALLOCSET_DEFAULT_SIZES);
	if (deliver_parked(&batch, max_events, parked_position, now) ||
		delivery->announce)
		delivery->more = true;
	else if (parked_position == 0)
		deliver_new(&batch, max_events);
	if (batch.moved)
		delivery->more = true;
	delivery->retry_at = cqrs_parked_next_retry(relay->parked);

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
	CqrsParked *parked;
	CqrsFault	fault = {0};
	bool		recorded = false;

	fault.sqlerrcode = error->sqlerrcode;
	fault.message = error->message;
	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	parked = cqrs_parked_find(relay.parked, position);
	if (parked != NULL)
	{
		cqrs_parked_failed(relay.parked, parked, relay.subscription,
						   &relay.cursor, &fault, counted);
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
				relay.parked = cqrs_park(relay.parked, relay.subscription,
										 &relay.cursor, &event, &fault);
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
	CqrsParked *parked;
	int64		position = 0;

	(void) cqrs_relay_begin(&relay, subscription, partition, true);
	while (position == 0 &&
		   (parked = cqrs_parked_due(relay.parked,
									 cqrs_wall_now())) != NULL)
	{
		if (cqrs_parked_begin_attempt(relay.parked, parked,
									  relay.subscription, &relay.cursor))
			position = parked->position;
		cqrs_cursor_append(&relay.cursor);
	}
	if (position == 0 && !relay.full && cqrs_relay_next(&relay, 1, &event))
	{
		CqrsParkedSet *set = cqrs_park(relay.parked, relay.subscription,
									   &relay.cursor, &event, NULL);

		relay.parked = set;
		position = event.position;
		(void) cqrs_parked_begin_attempt(set, cqrs_parked_find(set, position),
										 relay.subscription, &relay.cursor);
		relay.nevents = 0;
		relay.nothers++;
	}
	if (relay.window != NULL || cqrs_relay_arrives(&relay))
		cqrs_relay_advance(&relay);
	delivery->more = relay.nothers > 0;
	delivery->retry_at = cqrs_parked_next_retry(relay.parked);
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
 * How many events the next batch may have.
 */
int
cqrs_pace_events(const CqrsPace *pace)
{
	return pace->again > 0 ? pace->again : pace->limit;
}

/*
 * A batch was delivered. After one that only did again what was done before an
 * error, the event comes first that was in error.
 */
void
cqrs_pace_done(CqrsPace *pace)
{
	if (pace->again == 0)
		pace->limit = Min(2 * pace->limit, CQRS_BATCH_EVENTS);
	pace->again = 0;
}

/*
 * A batch was rolled back after so many of its events were handled.
 */
void
cqrs_pace_failed(CqrsPace *pace, int nevents)
{
	pace->again = nevents;
	if (nevents > 0)
		pace->limit = Max((nevents + 1) / 2, 1);
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
 * Deliver parked events that are due: one that failed before, or several that
 * only had to wait. Or the one at position. Returns false if there is none.
 */
static bool
deliver_parked(Batch *batch, int max_events, int64 position, TimestampTz now)
{
	CqrsRelay  *relay = &batch->relay;
	bool		failed_before = false;
	CqrsParked *parked;
	int			n = 0;

	while (n < max_events && !failed_before && !batch->stop)
	{
		CqrsEvent	event;
		int			attempts;

		parked = position != 0 ? cqrs_parked_find(relay->parked, position) :
			cqrs_parked_due(relay->parked, now);
		if (parked == NULL || (n > 0 && parked->attempts > 0))
			break;
		if (parked->killed && position == 0 && batch->in_worker)
		{
			batch->delivery->announce = true;
			break;
		}
		find_handler(batch);
		failed_before = parked->attempts > 0 || position != 0;
		if (cqrs_parked_read(&relay->cursor, parked->position, relay->snapshot,
							 &event, &attempts))
		{
			/* Before, so that the handler may move the cursor. */
			cqrs_parked_done(relay->parked, parked, &relay->cursor);
			batch->underway.parked = true;
			call_handler(batch, &event, attempts > 0 ? "not_produced" : "new",
						 position != 0 ? attempts - 1 : attempts);
			relay->cursor.delivered++;
		}
		else
			cqrs_parked_done(relay->parked, parked, &relay->cursor);
		n++;
		if (cqrs_relay_is_late(relay))
			break;
	}

	CQRS_DEBUG_POINT("relay_before_cursor");

	/* The handler may have removed its own subscription. */
	if (n > 0 && !batch->moved &&
		cqrs_registry_subscription_by_id(relay->cursor.subscription_id) != NULL)
		cqrs_cursor_append(&relay->cursor);
	return n > 0;
}

/*
 * Deliver new events, and move the cursor.
 */
static void
deliver_new(Batch *batch, int max_events)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsEvent	event;

	batch->underway.parked = false;
	while (!batch->stop && cqrs_relay_next(relay, max_events, &event))
	{
		find_handler(batch);
		call_handler(batch, &event, "new", 0);
	}
	CQRS_DEBUG_POINT("relay_before_cursor");
	if (!batch->moved)
		cqrs_relay_advance(relay);
	batch->delivery->more = relay->nevents > 0 || relay->nothers > 0;
}

/*
 * Call the handler with one event, under a snapshot of its own. What it is
 * within, in cqrs_drain(), has nothing to do with the event. Sets stop if the
 * batch has to end with this one.
 */
static void
call_handler(Batch *batch, const CqrsEvent *event, const char *status,
			 int attempts)
{
	CqrsContext *outer = cqrs_context_innermost;
	MemoryContext oldcontext;
	CqrsContext context;
	Datum		arg;
	int			subtransactions = cqrs_session_subtransactions();
	int			level;

	CHECK_FOR_INTERRUPTS();
	batch->context.event = event;
	batch->delivery->position = event->position;
	oldcontext = MemoryContextSwitchTo(batch->per_event);
	arg = cqrs_event_form(event, status, attempts, batch->desc);
	cqrs_context_init(&context, "event",
					  TextDatumGetCString(event->event_name));
	context.has_id = true;
	context.id = *DatumGetUUIDP(event->event_id);
	context.headers = event->headers;
	context.attempt = attempts + 1;
	if (batch->relay.subscription->runs_commands)
		context.command = event;
	cqrs_context_innermost = &context;
	CommandCounterIncrement();
	level = cqrs_session_begin_event(batch->in_worker);
	call_limited(batch, arg);
	end_event(batch, level, subtransactions);
	cqrs_context_innermost = outer;
	MemoryContextSwitchTo(oldcontext);
	MemoryContextReset(batch->per_event);
	batch->context.event = NULL;
	batch->delivery->position = 0;
	batch->delivery->last = event->position;
	batch->delivery->nevents++;
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
	else if (subscription->event_transactions &&
			 !cqrs_session_event_was_alone())
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
 * Have the transaction commit as its handlers want it. With a transaction for
 * each event, who has set nothing and announced nothing need not wait for the
 * disk: the worker does so for several of them. A crash takes back cursor and
 * effects together.
 */
static void
set_commit(const Batch *batch)
{
	if (!batch->in_worker || batch->commit < 0)
		return;
	batch->delivery->not_flushed =
		batch->commit == SYNCHRONOUS_COMMIT_OFF &&
		batch->relay.subscription->event_transactions;
	if (batch->commit != synchronous_commit)
		cqrs_set_commit(batch->commit);
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
	int			partitions;
	int			i;

	cqrs_require_writable("cqrs_drain()");
	subscription = cqrs_subscription_get(name);
	subscription_id = subscription->subscription_id;
	if (!subscription->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no handler", name),
				 subscription->server != NULL ?
				 errhint("Only the background worker delivers to a broker.") :
				 errhint("Read it with cqrs_receive() and cqrs_ack().")));
	if (!OidIsValid(subscription->owner))
		cqrs_subscription_require_owner(subscription);
	else if (GetUserId() != subscription->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\" to drain it",
						name),
				 errdetail("Its handler runs with the privileges of who drains it."),
				 errhint("SET ROLE to %s.",
						 quote_identifier(GetUserNameFromId(subscription->owner,
															false)))));
	cqrs_subscription_require_active(subscription);
	if (cqrs_underway_is(subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("subscription \"%s\" is being delivered by this session",
						name),
				 errhint("Its handler must not call cqrs_drain() for it.")));

	/* A handler must not get back to a role that SET ROLE left. */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(save_userid,
						   save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	do
	{
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		partitions = subscription != NULL ? subscription->partitions : 0;
		for (i = 0; i < partitions; i++)
			total += drain(subscription_id, i);

		/* If partitions are changed, there may be more in the new ones. */
	} while (cqrs_epoch_close(subscription_id));
	SetUserIdAndSecContext(save_userid, save_sec_context);
	PG_RETURN_INT64(total);
}

/*
 * Deliver all of one partition. Returns how many events were. What fails is
 * not tried a second time, however short the delay.
 */
static int64
drain(int32 subscription_id, int partition)
{
	TimestampTz start = cqrs_wall_now();
	CqrsPace	pace = CQRS_PACE_INIT;
	int64		total = 0;
	CqrsDelivery delivery;

	do
	{
		CqrsSubscription *subscription;
		ErrorData  *error;

		/* A handler may change the registry, even remove this one. */
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		if (subscription == NULL ||
			subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
			break;
		error = deliver_in_subtransaction(subscription, partition,
										  cqrs_pace_events(&pace), start,
										  &delivery);
		if (error == NULL)
		{
			total += delivery.nevents;
			cqrs_pace_done(&pace);
			continue;
		}

		/* The timeout is that of a handler that drains. */
		if (delivery.position == 0 || handler_timed_out ||
			cqrs_target_is_outage(error))
			cqrs_error_rethrow(error);
		delivery.more = true;
		cqrs_pace_failed(&pace, delivery.nevents);
		if (delivery.nevents > 0)
		{
			FreeErrorData(error);
			continue;
		}

		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not deliver position " INT64_FORMAT " to subscription \"%s\"",
						delivery.position, subscription->name),
				 errdetail_internal("%s", error->message)));
		(void) cqrs_target_failed(subscription, partition, delivery.position, error,
								  false);
		FreeErrorData(error);
	} while (delivery.more);
	return total;
}

/*
 * One batch, or part of it. Returns the error that rolled it back, or NULL.
 */
static ErrorData *
deliver_in_subtransaction(CqrsSubscription *subscription, int partition,
						  int max_events, TimestampTz now,
						  CqrsDelivery *delivery)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	CqrsContext *outer = cqrs_context_innermost;
	CqrsUnderway *outer_underway = cqrs_underway_innermost;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		cqrs_target_deliver(subscription, partition, max_events, 0, now, false,
							delivery);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		error = cqrs_error_take(oldcontext);
		RollbackAndReleaseCurrentSubTransaction();
		cqrs_context_innermost = outer;
		cqrs_underway_innermost = outer_underway;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	return error;
}
