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
 *	  ones. No handler should notice that it is in a batch: each event ends as if
 *	  its transaction did (see session.c). An event is the last one of its batch
 *	  where that is not enough, where it changed the registry or moved its own
 *	  subscription (see underway.c), or where the subtransactions would become
 *	  too many.
 * 2. If the handler raises an error at the k-th event, all is rolled back. The
 *	  k - 1 before it are done again; then the others are called apart, each in a
 *	  subtransaction of its own, until none has failed for a while (CqrsPace).
 *	  So from then on, an error costs only its own event, which is parked in
 *	  the batch's transaction. An error is an event's fault only if no other
 *	  event was handled before it in its transaction. Otherwise, it is parked
 *	  without an attempt, and tried again at the beginning of the next batch.
 *	  With a rate, or one for each key, no call is made twice: all are called
 *	  apart from the beginning, and each that is handled is the last of its
 *	  batch. An event whose key has no token is parked, and is due when there
 *	  is one; what comes after it in its lane waits behind it, as ever.
 *	  A handler that takes several events is called once in a batch, with all of
 *	  them; after an error, it gets half as many, until one that fails is found:
 *	  that and the next are called apart. From then on, it gets twice as many
 *	  each time.
 * 3. An error that may be no event's fault is not counted as an attempt until
 *	  another lane was tried; see blame.c. If it turns out to be nobody's, the
 *	  whole subscription waits.
 * 4. Where an event may have ended the process (see worker.c), each is parked
 *	  with its attempt counted, and that committed, before the handler is
 *	  called (cqrs_target_announce). So is any event whose last attempt was
 *	  announced and did not return.
 *
 * The worker limits the time of each call, deferred triggers included (see
 * handler_timeout.c).
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "base/debug_point.h"
#include "delivery/handler_batch.h"
#include "delivery/handler_call.h"
#include "delivery/handler_timeout.h"
#include "delivery/relay.h"
#include "delivery/target_handler.h"
#include "delivery/tell.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "retry/retry.h"
#include "shared/clock.h"

/* The most parked events that a batch begins with. */
#define BATCH_PARKED	100

/* How many events are called apart after an error. */
#define APART_EVENTS	200

static int	deliver_parked(CqrsBatch *batch, int64 position, TimestampTz now);
static bool deliver_parked_event(CqrsBatch *batch, const CqrsParked *parked,
								 int64 position);
static int	deliver_new(CqrsBatch *batch);
static bool next_event(CqrsBatch *batch, CqrsEvent *event);
static bool handle(CqrsBatch *batch, const CqrsEvent *event,
				   const CqrsParked *parked, int attempts, bool apart);
static void note_handled(CqrsBatch *batch);
static void handle_several(CqrsBatch *batch, CqrsEvent *event);
static void finish(CqrsBatch *batch, int nparked);
static void set_commit(const CqrsBatch *batch);
static void delivery_error_callback(void *arg);

/*
 * Deliver one batch to the subscription's handler, in the current transaction.
 * The current user is the subscription's owner.
 *	pace			says which events are called apart
 *	alone			deliver no more than one event
 *	parked_position	not 0: only this parked event, due or not
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
	CqrsBatch	batch = {.in_worker = in_worker,.commit = -1,.clean = true};
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
		batch.deadline = relay->deadline;
		batch.paced = relay->subscription->rate_interval != 0 ||
			relay->subscription->key_interval != 0;
		delivery->paced = batch.paced;

		/* Not if it must not be forgotten why it is alone. */
		batch.key_paced = relay->subscription->key_interval != 0 && !alone;
		batch.one |= relay->subscription->event_transactions ||
			batch.paced;
		batch.is_short = relay->subscription->event_transactions ||
			relay->subscription->runs_sagas || batch.paced || pace->apart > 0;
	}
	batch.nplain = batch.paced ? 0 :
		pace->apart > 0 ? pace->plain : INT_MAX;
	batch.again = pace->again < CQRS_TRANSIENT_TRIES && !batch.paced;
	batch.most = batch.one ? 1 : pace->array > 0 ? pace->array :
		CQRS_BATCH_EVENTS;
	batch.where.subscription = relay->subscription;
	batch.registry = cqrs_registry_generation();
	batch.underway.relay = relay;
	batch.underway.outer = cqrs_underway_innermost;
	cqrs_underway_innermost = &batch.underway;
	batch.context = CurrentMemoryContext;
	batch.per_event = AllocSetContextCreate(CurrentMemoryContext,
											"cqrs event",
											ALLOCSET_DEFAULT_SIZES);

	/* However many parked events are due, new ones get their turn. */
	if (pace->new_first && parked_position == 0)
		nnew = deliver_new(&batch);
	if (nnew == 0)
		nparked = deliver_parked(&batch, parked_position, now);
	delivery->parked_last = nparked > 0 &&
		(batch.stop || nparked == BATCH_PARKED || cqrs_relay_is_late(relay));
	if (!pace->new_first && parked_position == 0 && !delivery->announce)
		nnew = deliver_new(&batch);
	finish(&batch, nparked);
	delivery->more = nparked > 0 || nnew > 0 || delivery->announce ||
		batch.moved;
	delivery->retry_at = relay->cursor.next_retry_at;

	cqrs_underway_innermost = batch.underway.outer;
	if (batch.desc != NULL)
		ReleaseTupleDesc(batch.desc);
	cqrs_relay_end(relay);
	MemoryContextDelete(batch.per_event);
	if (batch.guc_level != 0)
		AtEOXact_GUC(false, batch.guc_level);
	set_commit(&batch);
	error_context_stack = errcallback.previous;
}

/*
 * Is this an error that would fail any other event too, because resources are
 * short, an administrator intervened, or the system has an error? A handler's
 * timeout looks like one: callers check for that first.
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
	pace->plain = pace->again = 0;
	pace->halved = false;
	if (delivery->array > 0)
		pace->apart = 0;
	else
		pace->apart = delivery->nfailed > 0 ? APART_EVENTS :
			Max(pace->apart - delivery->nevents, 0);
	if (delivery->nevents > 0)
		pace->array *= 2;
	if (pace->array >= CQRS_BATCH_EVENTS)
		pace->array = 0;
	pace->new_first = delivery->parked_last;
}

/*
 * A batch was rolled back by this error. If its handler had several events at once,
 * it gets half of them, down to one, to find out which of them fails.
 */
void
cqrs_pace_failed(CqrsPace *pace, volatile CqrsDelivery *delivery,
				 const ErrorData *error)
{
	int			nevents = delivery->nevents;

	if (delivery->array > 0)
	{
		pace->halved = true;
		pace->array = Max(delivery->array / 2, 1);
		if (delivery->array > 1)
			return;
	}
	if (nevents == 0 && cqrs_error_is_transient(error))
		pace->again++;
	pace->plain = nevents;
	pace->apart = APART_EVENTS;
}

/*
 * Deliver parked events that are due, or the one at position. Returns how many
 * there were.
 *
 * Those that have failed before come first in their transaction, for as long as
 * they fail again. Once one of them is handled, others may be, too.
 */
static int
deliver_parked(CqrsBatch *batch, int64 position, TimestampTz now)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	int64		heads[BATCH_PARKED];
	CqrsScan	scan;
	CqrsParked	parked;
	int			nheads = 0;
	int			n = 0;
	int			i;

	if (position != 0)
		heads[nheads++] = position;
	else if (cqrs_parked_due(cursor, now, &parked))
	{
		cqrs_parked_heads_begin(&scan, cursor, now);
		while (nheads < BATCH_PARKED && cqrs_parked_heads_next(&scan, &parked))
			heads[nheads++] = parked.position;
		cqrs_scan_end(&scan, NoLock);
	}

	batch->underway.parked = true;
	for (i = 0; i < nheads && !batch->stop; i++)
	{
		if (!cqrs_parked_find(cursor, heads[i], &parked))
			continue;
		if (position == 0 && parked.killed && batch->in_worker)
		{
			batch->delivery->announce = true;
			break;
		}

		/* It will come first in the next batch. */
		if (parked.failed_at != 0 && batch->nfailed > 0)
			return BATCH_PARKED;

		/* Where one is handled, the next of its lane may follow. */
		do
		{
			n++;
			if (!deliver_parked_event(batch, &parked, position))
				break;
		} while (position == 0 && n < BATCH_PARKED && !batch->stop &&
				 !cqrs_relay_is_late(&batch->relay) &&
				 cqrs_parked_lane_next(cursor, parked.lane, parked.position,
									   &parked) &&
				 parked.retry_at <= now && parked.failed_at == 0);
		if (n >= BATCH_PARKED || cqrs_relay_is_late(&batch->relay))
			break;
	}
	return n;
}

/*
 * Deliver a parked event. Returns false if it failed, or may not be tried yet.
 */
static bool
deliver_parked_event(CqrsBatch *batch, const CqrsParked *parked, int64 position)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	CqrsEvent	event;
	int			attempts;
	bool		found;

	/* An attempt that was announced is made. */
	if (position == 0 && !cqrs_batch_may_call(batch))
		return false;
	cqrs_batch_find_handler(batch);
	MemoryContextSwitchTo(batch->per_event);
	found = cqrs_parked_read(cursor, parked->position, NULL, &event,
							 &attempts);
	MemoryContextSwitchTo(batch->context);
	if (!found)
	{
		cqrs_parked_done(parked, cursor);
		return true;
	}
	if (position == 0 && !cqrs_batch_key_may_go(batch, &event, true))
	{
		cqrs_batch_did_not_call(batch);
		MemoryContextReset(batch->per_event);
		return false;
	}
	if (!handle(batch, &event, parked,
				position != 0 ? attempts - 1 : attempts,
				position == 0 && parked->failed_at != 0))
		return false;
	cursor->delivered++;
	return true;
}

/*
 * Deliver new events. Returns how many were read.
 */
static int
deliver_new(CqrsBatch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsEvent	event;

	batch->underway.parked = false;
	while (!batch->stop && cqrs_batch_may_call(batch))
	{
		if (!next_event(batch, &event))
		{
			cqrs_batch_did_not_call(batch);
			break;
		}
		cqrs_batch_find_handler(batch);
		if (batch->array > 1)
			handle_several(batch, &event);
		else
			(void) handle(batch, &event, NULL, 0, false);
	}
	return relay->nevents + relay->nothers;
}

/*
 * The next new event for which the handler may be called. Returns false if there is
 * none.
 */
static bool
next_event(CqrsBatch *batch, CqrsEvent *event)
{
	while (cqrs_relay_next(&batch->relay, CQRS_BATCH_EVENTS, event))
		if (cqrs_batch_key_may_go(batch, event, false))
			return true;
	return false;
}

/*
 * Say who is to blame, and move the cursor.
 */
static void
finish(CqrsBatch *batch, int nparked)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsCursor *cursor = &relay->cursor;
	int64		seq = cursor->seq;

	cqrs_batch_note_passed(batch);
	cqrs_batch_decide(batch);
	CQRS_DEBUG_POINT("relay_before_cursor");
	if (batch->moved)
		return;
	cqrs_parked_close(cursor);
	cqrs_relay_advance(relay);

	/* The handler may have removed its own subscription. */
	if (nparked > 0 && cursor->seq == seq &&
		cqrs_registry_subscription_by_id(cursor->subscription_id) != NULL)
		cqrs_cursor_append(cursor);
}

/*
 * Have an event handled: one of the window or, if parked is given, that one.
 * Returns false if it failed, and that was recorded. Raises the error if it was
 * not called apart, if the error is no event's fault, or if the event is to be
 * tried again at once.
 */
static bool
handle(CqrsBatch *batch, const CqrsEvent *event, const CqrsParked *parked,
	   int attempts, bool apart)
{
	ErrorData  *error;

	/* What was recorded is not to be rolled back. */
	apart |= batch->nplain-- <= 0 || batch->delivery->nfailed > 0;
	error = cqrs_batch_call(batch, event, parked, attempts, apart);
	batch->stop |= batch->alone || (batch->one && error == NULL);
	if (error != NULL)
		cqrs_batch_record_failure(batch, event, parked, error);
	else
		note_handled(batch);
	MemoryContextReset(batch->per_event);
	return error == NULL;
}

/*
 * As something was handled, what failed before it is at fault.
 */
static void
note_handled(CqrsBatch *batch)
{
	cqrs_evidence_convict(&batch->evidence, batch->relay.subscription,
						  &batch->relay.cursor, &batch->relay.lanes,
						  cqrs_tell_failure, batch->in_worker ? LOG : WARNING);
	batch->passed = true;
	batch->clean = false;
	batch->relay.deadline = batch->deadline;
	batch->nfailed = 0;
}

/*
 * Have this new event handled, and as many as come next, by one call: the batch's
 * only one. An error rolls all back.
 */
static void
handle_several(CqrsBatch *batch, CqrsEvent *event)
{
	cqrs_batch_call_several(batch, event);
	batch->stop = true;
	note_handled(batch);
	MemoryContextReset(batch->per_event);
}

/*
 * Have the transaction commit as its handlers want it. With a transaction for
 * each event, with sagas, whose steps follow one another, or if events are called
 * apart, transactions are short. Then one whose handlers have not set
 * synchronous_commit and announced nothing need not wait for the disk: the worker
 * does so for several at once. A crash takes back cursor and effects together.
 */
static void
set_commit(const CqrsBatch *batch)
{
	int			commit = batch->commit;

	/* Nobody waits for failures to reach the disk. */
	if (commit < 0 && batch->delivery->nfailed > 0)
		commit = SYNCHRONOUS_COMMIT_OFF;
	if (!batch->in_worker || commit < 0)
		return;
	batch->delivery->not_flushed = commit == SYNCHRONOUS_COMMIT_OFF &&
		(batch->is_short || batch->commit < 0);
	if (commit != synchronous_commit)
		cqrs_set_commit(commit);
}

static void
delivery_error_callback(void *arg)
{
	CqrsDeliveryContext *context = (CqrsDeliveryContext *) arg;

	if ((cqrs_handler_timed_out() && geterrcode() == ERRCODE_QUERY_CANCELED) ||
		(cqrs_handler_is_overdue() && geterrcode() == ERRCODE_ADMIN_SHUTDOWN))
		errmsg("handler of subscription \"%s\" took longer than its delivery_timeout",
			   context->subscription->name);
	if (context->event != NULL)
		errcontext("delivering position " INT64_FORMAT " of topic \"%s\" to subscription \"%s\"",
				   context->event->position, context->event->topic->name,
				   context->subscription->name);
	else
		errcontext("delivering to subscription \"%s\"",
				   context->subscription->name);
}
