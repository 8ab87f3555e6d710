/*-------------------------------------------------------------------------
 *
 * handler_batch.c
 *	  What becomes of events that failed in a batch, and whose fault that is. See
 *	  target_handler.c for when this is called, and blame.c for the rules.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "delivery/handler_batch.h"
#include "delivery/relay.h"
#include "delivery/tell.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "retry/retry.h"
#include "shared/bucket.h"
#include "shared/clock.h"

/* How long evidence is gathered if events fail, in milliseconds. */
#define EVIDENCE_DURATION	1000

static void give_up(CqrsBatch *batch, const CqrsEvent *event,
					const CqrsParked *parked, const CqrsFault *fault);
static CqrsEvent with_topic(const CqrsEvent *event);
static bool is_first(const CqrsBatch *batch, const CqrsParked *parked);
static void gather(CqrsBatch *batch, bool suspect);
static bool is_all(const CqrsBatch *batch);

/*
 * Take a token for a call. If there is none, the batch ends.
 */
bool
cqrs_batch_take_token(CqrsBatch *batch)
{
	CqrsSubscription *subscription = batch->relay.subscription;
	TimestampTz next;

	if (subscription->rate_interval == 0 ||
		cqrs_bucket_take(subscription->subscription_id,
						 subscription->rate_interval, &next))
		return true;
	batch->delivery->paced_until = cqrs_steady_to_wall(next);
	batch->stop = true;
	return false;
}

/*
 * There was nothing to call it for.
 */
void
cqrs_batch_did_not_call(CqrsBatch *batch)
{
	CqrsSubscription *subscription = batch->relay.subscription;

	if (unlikely(batch->paced) && subscription->rate_interval != 0)
		cqrs_bucket_give_back(subscription->subscription_id,
							  subscription->rate_interval);
}

/*
 * May the handler be called for this event now, by the rate of its key? Takes a token
 * of the key if it has one; one that is NULL needs none. If not, *due_at gets the time
 * to ask again.
 */
bool
cqrs_key_may_go(const CqrsSubscription *subscription, const CqrsEvent *event,
				TimestampTz *due_at)
{
	TimestampTz next;

	if (subscription->key_interval == 0 || event->key.isnull ||
		cqrs_key_bucket_take(subscription->subscription_id,
							 cqrs_event_lane(event, false),
							 subscription->key_interval, &next))
		return true;
	*due_at = cqrs_steady_to_wall(next);
	return false;
}

/*
 * Take a token for a call with an event of this key. If there is none, the event is
 * parked until there is.
 */
bool
cqrs_batch_take_key_token(CqrsBatch *batch, const CqrsEvent *event,
						  bool is_parked)
{
	CqrsRelay  *relay = &batch->relay;
	TimestampTz due_at;

	if (cqrs_key_may_go(relay->subscription, event, &due_at))
		return true;
	if (is_parked)
		cqrs_parked_put_off(&relay->cursor, event->position, due_at);
	else
		cqrs_relay_park(relay, event, due_at);
	return false;
}

/*
 * An event that was called apart failed. If others were handled before it in this
 * transaction, it is to be tried first in another. If not, it is at fault, unless
 * those that come next fail, too.
 */
void
cqrs_batch_record_failure(CqrsBatch *batch, const CqrsEvent *event, const CqrsParked *parked,
						  ErrorData *error)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsFault	fault = cqrs_fault_of(relay->subscription, error);
	bool		unproven;
	bool		suspect;

	cqrs_batch_note_passed(batch);
	if (fault.proven)
	{
		give_up(batch, event, parked, &fault);
		return;
	}

	/* An error that may be over at once: try again first. */
	unproven = !batch->clean ||
		(!cqrs_batch_comes_first(batch) && cqrs_error_is_transient(error));
	suspect = cqrs_blame(error) == CQRS_BLAME_SUSPECT && !batch->timed_out &&
		!(parked != NULL && cqrs_fault_is_known(parked, error->sqlerrcode,
												&relay->cursor));
	batch->delivery->nfailed++;
	if (parked == NULL)
	{
		CqrsEvent	failed = with_topic(event);

		cqrs_park_unproven(&relay->cursor, &failed, &fault);
		cqrs_lane_forget(&relay->lanes, cqrs_event_lane(&failed,
														relay->cursor.by_topic));
		relay->nevents--;
		relay->nothers++;
	}
	if (unproven)
	{
		/* All that come next may fail. */
		if (++batch->nfailed >= (suspect ? CQRS_SUSPECT_LANES :
								 CQRS_FAILING_LANES))
			batch->stop = true;
		return;
	}
	cqrs_evidence_add(&batch->evidence, event->position,
					  batch->in_worker && !fault.final &&
					  is_first(batch, parked), suspect,
					  batch->in_worker && cqrs_blame(error) == CQRS_BLAME_EVENT,
					  error);
	gather(batch, suspect);
}

/*
 * An event is at fault, and not to be tried again, whatever becomes of others.
 */
static void
give_up(CqrsBatch *batch, const CqrsEvent *event, const CqrsParked *parked,
		const CqrsFault *fault)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsParked	again;

	batch->delivery->nfailed++;
	if (parked == NULL)
	{
		CqrsEvent	failed = with_topic(event);

		cqrs_park(relay->subscription, &relay->cursor, &failed, fault);
		relay->nevents--;
		relay->nothers++;
	}
	else if (cqrs_parked_find(&relay->cursor, parked->position, &again))
		cqrs_parked_failed(&again, relay->subscription, &relay->cursor, fault,
						   false);
	cqrs_lane_forget(&relay->lanes,
					 cqrs_event_lane(event, relay->cursor.by_topic));
}

/*
 * The event with its topic as it is registered now: the one that it was read with may
 * be gone since a subtransaction was rolled back.
 */
static CqrsEvent
with_topic(const CqrsEvent *event)
{
	CqrsEvent	now = *event;

	now.topic = cqrs_registry_topic_by_id(event->topic->topic_id);
	if (now.topic == NULL)
		elog(ERROR, "topic %d, which is being delivered, is gone",
			 event->topic->topic_id);
	return now;
}

/*
 * Has the event not failed before, or only since an event was last handled,
 * without that counting?
 */
static bool
is_first(const CqrsBatch *batch, const CqrsParked *parked)
{
	return parked == NULL || parked->failed_at == 0 ||
		(parked->attempts == 0 &&
		 parked->failed_at >= batch->relay.cursor.passed_at);
}

/*
 * There is evidence: try other lanes until it suffices, however late it is if an
 * error is suspect, and for a while if none is. If the subscription waited
 * before, it may be a long run of bad events: then look further.
 */
static void
gather(CqrsBatch *batch, bool suspect)
{
	CqrsRelay  *relay = &batch->relay;
	CqrsEvidence *evidence = &batch->evidence;

	if (!batch->in_worker)
	{
		batch->stop |= cqrs_evidence_is_outage(evidence);
		return;
	}
	if (evidence->nlanes == CQRS_FAILING_LANES)
		batch->enough =
			cqrs_evidence_enough(cqrs_failure_count(relay->cursor.subscription_id,
													relay->cursor.partition));
	if (evidence->nsuspects >= CQRS_SUSPECT_LANES ||
		(evidence->nlanes >= CQRS_FAILING_LANES &&
		 evidence->nlanes >= batch->enough))
		batch->stop = true;
	if (suspect)
		relay->deadline = 0;
	else if (relay->deadline != 0)
		relay->deadline = evidence->nlanes >= CQRS_FAILING_LANES ? batch->deadline :
			Max(batch->deadline,
				TimestampTzPlusMilliseconds(relay->began, EVIDENCE_DURATION));
}

/*
 * Note in the cursor when an event was last delivered: not for each of them, but
 * before anything else is recorded, so that it is not later than the next
 * failure.
 */
void
cqrs_batch_note_passed(CqrsBatch *batch)
{
	if (batch->passed)
		batch->relay.cursor.passed_at = cqrs_wall_now();
	batch->passed = false;
}

bool
cqrs_batch_comes_first(const CqrsBatch *batch)
{
	return batch->clean && batch->delivery->nfailed == 0;
}

/*
 * Nothing was handled since these events failed. Whose fault is that? If an error
 * is suspect, few lanes make an outage only if there is no other one to try.
 */
void
cqrs_batch_decide(CqrsBatch *batch)
{
	CqrsEvidence *evidence = &batch->evidence;
	CqrsCursor *cursor = &batch->relay.cursor;

	if (evidence->pending == NIL)
		return;
	if (cqrs_evidence_is_outage(evidence) ||
		(evidence->nsuspects > 0 && (batch->alone || is_all(batch))))
		cqrs_target_wait(batch->delivery, evidence, cursor);
	else if (evidence->nsuspects == 0)
		cqrs_evidence_convict(evidence, batch->relay.subscription, cursor,
							  &batch->relay.lanes, cqrs_tell_failure,
							  batch->in_worker ? LOG : WARNING);
}

/*
 * What failed is nobody's fault: it is not tried again for a while. Says in
 * *delivery why, until when, and whether only the failed events wait.
 */
void
cqrs_target_wait(volatile CqrsDelivery *delivery, CqrsEvidence *evidence,
				 CqrsCursor *cursor)
{
	CqrsDelivery *result = unvolatize(CqrsDelivery *, delivery);

	result->outage = evidence->error->sqlerrcode;
	result->lone = !cqrs_evidence_is_outage(evidence);
	strlcpy(result->message, evidence->error->message, CQRS_DELIVERY_MESSAGE);
	result->failed_until = cqrs_failure_record(cursor->subscription_id,
											   cursor->partition,
											   evidence->error,
											   evidence->nsuspects > 0 ?
											   CQRS_FAILURE_DELAY :
											   CQRS_RUN_DELAY);
	cqrs_evidence_put_off(evidence, cursor, result->failed_until);
}

/*
 * Was everything tried that there is?
 */
static bool
is_all(const CqrsBatch *batch)
{
	const CqrsRelay *relay = &batch->relay;

	return !batch->stop &&
		(relay->window == NULL ||
		 (cqrs_window_at_end(relay->window) &&
		  relay->cursor.until_tick >= relay->tick.tick_id));
}
