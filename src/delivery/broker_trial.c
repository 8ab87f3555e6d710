/*-------------------------------------------------------------------------
 *
 * broker_trial.c
 *	  Whose fault it is that a broker rejected events.
 *
 * What the broker rejects is parked, and nobody is to blame before others were
 * sent: if one is confirmed, those that were rejected are at fault; if none is, it
 * is an outage (see blame.c).
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/memutils.h"

#include "delivery/broker_trial.h"
#include "retry/retry.h"
#include "shared/clock.h"

static void add_evidence(CqrsBrokerTrial *trial, CqrsBrokerEntry *entry,
						 bool first, bool suspect);
static void convict(CqrsBrokerTrial *trial, CqrsRelay *relay);
static void forget_evidence(CqrsBrokerTrial *trial);

/*
 * A new event was rejected. If another one of its lane was rejected before it,
 * it only waits.
 */
void
cqrs_trial_reject(CqrsBrokerTrial *trial, CqrsRelay *relay, CqrsBrokerEntry *entry)
{
	CqrsCursor *cursor = &relay->cursor;

	if (cqrs_parked_lane_last(cursor, entry->lane) != 0)
		cqrs_park(relay->subscription, cursor, &entry->event, NULL);
	else
	{
		cqrs_park_unproven(cursor, &entry->event, cqrs_broker_entry_fault(entry));
		add_evidence(trial, entry, true, true);
	}
}

/*
 * A parked event was rejected. One whose attempt was counted before was sent
 * alone.
 */
void
cqrs_trial_reject_parked(CqrsBrokerTrial *trial, CqrsRelay *relay, CqrsBrokerEntry *entry, CqrsParked *parked)
{
	CqrsFault	fault = *cqrs_broker_entry_fault(entry);

	if (entry->announced)
	{
		fault.retry_at = cqrs_wall_now();
		cqrs_parked_void_attempt(parked, &relay->cursor, &fault);
		trial->alone = true;
	}
	add_evidence(trial, entry, parked->failed_at == 0,
				 !cqrs_fault_is_known(parked, fault.sqlerrcode,
									  &relay->cursor));
}

static void
add_evidence(CqrsBrokerTrial *trial, CqrsBrokerEntry *entry, bool first, bool suspect)
{
	MemoryContext oldcontext;
	CqrsFault  *fault = cqrs_broker_entry_fault(entry);
	ErrorData  *error;

	if (cqrs_evidence_has(&trial->evidence, entry->event.position))
		return;
	oldcontext = MemoryContextSwitchTo(trial->context);
	error = palloc0(sizeof(ErrorData));
	error->sqlerrcode = fault->sqlerrcode;
	error->message = pstrdup(fault->message);
	cqrs_evidence_add(&trial->evidence, entry->event.position, first, suspect,
					  true, error);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Events were confirmed, n of which are to be counted: those rejected before them
 * are at fault, unless there were enough of them for an outage. Then the outage
 * is over, and they are tried anew.
 */
void
cqrs_trial_passed(CqrsBrokerTrial *trial, CqrsRelay *relay, int n)
{
	relay->cursor.delivered += n;
	relay->cursor.passed_at = cqrs_wall_now();
	trial->unproven = trial->failing = false;
	if (cqrs_evidence_is_outage(&trial->evidence))
		forget_evidence(trial);
	else
		convict(trial, relay);
}

/*
 * The events that were rejected are at fault.
 */
static void
convict(CqrsBrokerTrial *trial, CqrsRelay *relay)
{
	if (trial->evidence.pending == NIL)
		return;
	cqrs_evidence_convict(&trial->evidence, relay->subscription,
						  &relay->cursor, &relay->lanes, NULL, LOG);
	trial->failing = false;
	forget_evidence(trial);
}

static void
forget_evidence(CqrsBrokerTrial *trial)
{
	memset(&trial->evidence, 0, sizeof(trial->evidence));
	trial->alone = false;
	MemoryContextReset(trial->context);
}

/*
 * Nothing was confirmed since these events were rejected. Whose fault is that?
 * With read_all, all that there is to try was read. If the connection is lost, there
 * is no telling; those that were not tried come first next time.
 */
void
cqrs_trial_decide(CqrsBrokerTrial *trial, CqrsRelay *relay,
				  const CqrsBrokerEntries *entries, bool read_all, bool lost,
				  volatile CqrsDelivery *delivery)
{
	CqrsEvidence *evidence = &trial->evidence;
	bool		outage = cqrs_evidence_is_outage(evidence);

	if (evidence->pending == NIL || (!lost && entries->nsent > 0))
		return;
	if (evidence->nsuspects == 0)
		convict(trial, relay);
	else if (!lost && !outage && entries->nentries > 0)
		return;
	else if (lost)
		cqrs_evidence_put_off(evidence, &relay->cursor, cqrs_wall_now());
	else if (outage || trial->alone ||
			 (read_all && relay->nothers == 0))
	{
		cqrs_target_wait(delivery, evidence, &relay->cursor);
		trial->failing = true;
		forget_evidence(trial);
	}
}

/*
 * Choose parked events that may be sent, each once those of its lane before it
 * are confirmed: from the lanes whose heads have been due for longest, in that
 * order, so that each gets its turn. What may end the process is announced first.
 */
int
cqrs_trial_choose(const CqrsBrokerTrial *trial, const CqrsCursor *cursor,
				  TimestampTz now, CqrsParked *chosen,
				  volatile CqrsDelivery *delivery)
{
	CqrsScan	scan;
	CqrsParked	parked;
	int			n = 0;

	cqrs_parked_heads_begin(&scan, cursor, now);
	while (n < CQRS_BATCH_EVENTS && cqrs_parked_heads_next(&scan, &parked))
	{
		if (parked.killed)
		{
			delivery->announce = true;
			break;
		}
		if (cqrs_evidence_has(&trial->evidence, parked.position))
			continue;
		do
		{
			if (parked.killed || parked.retry_at > now)
				break;
			chosen[n++] = parked;
		} while (n < CQRS_BATCH_EVENTS &&
				 cqrs_parked_lane_next(cursor, parked.lane, parked.position,
									   &parked));
	}
	cqrs_scan_end(&scan, NoLock);
	return n;
}
