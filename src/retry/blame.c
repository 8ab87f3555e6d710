/*-------------------------------------------------------------------------
 *
 * blame.c
 *	  Whose fault is it that an event was not delivered?
 *
 * Evidence decides; the class of an error only raises a suspicion. A statement
 * that needs too much disk is that event's fault if the next event can be
 * handled, and the server's if the next one fails, too. So
 *
 * 1. an error of a suspect class is nobody's fault until another lane has been
 *	  tried. If that is delivered, the event is at fault: its attempt counts.
 *	  If CQRS_SUSPECT_LANES fail, or there is no other lane, it is an outage:
 *	  the subscription waits, and no attempt is counted;
 * 2. an error of another class is the event's fault, unless CQRS_FAILING_LANES in
 *	  a row meet an error that is not decided yet, and none is delivered. Then the
 *	  handler is broken, or the broker, and the subscription waits as in an
 *	  outage; but not for long at first, and each time it tries more lanes than
 *	  before, as it may be a run of bad events;
 * 3. what failed in an outage is parked, and the next attempt begins with what
 *	  is new: with other lanes, if there are any;
 * 4. if there was no other lane, whatever comes next tells, and is not kept
 *	  waiting. If it is delivered, the cursor says so (passed_at); then the event
 *	  is at fault when it fails again with the same error.
 *
 * A broker's rejection is of a suspect class: an exchange without a queue
 * rejects everything, but a message may also be rejected for its own sake.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "retry/blame.h"
#include "retry/retry.h"

/* An event that failed. */
typedef struct Pending
{
	int64		position;
	bool		told;			/* it was reported in the log */
	ErrorData  *error;
} Pending;

/*
 * Whose fault is an error, by its class? Whether a handler took longer than it
 * may, only the caller knows.
 */
CqrsBlame
cqrs_blame(const ErrorData *error)
{
	switch (error->sqlerrcode)
	{
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION:
		case ERRCODE_UNDEFINED_TABLE:
		case ERRCODE_UNDEFINED_COLUMN:
		case ERRCODE_UNDEFINED_FUNCTION:
		case ERRCODE_UNDEFINED_OBJECT:
		case ERRCODE_UNDEFINED_PARAMETER:
		case ERRCODE_SYNTAX_ERROR:
		case ERRCODE_INVALID_SCHEMA_NAME:
		case ERRCODE_FEATURE_NOT_SUPPORTED:
		case ERRCODE_INVALID_SQL_STATEMENT_NAME:
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
		case ERRCODE_CQRS_NOT_REGISTERED:
			return CQRS_BLAME_SUSPECT;
		case ERRCODE_READ_ONLY_SQL_TRANSACTION:
		case ERRCODE_CQRS_WAIT:
			return CQRS_BLAME_NOBODY;
	}
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return CQRS_BLAME_SUSPECT;
		case ERRCODE_OPERATOR_INTERVENTION:
			return CQRS_BLAME_NOBODY;
	}
	return CQRS_BLAME_EVENT;
}

/*
 * Is this an error that concurrent transactions cause each other? Then it is
 * nobody's fault, and may be over at once.
 */
bool
cqrs_error_is_transient(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
}

/*
 * What is recorded of an event that failed with this error; it points into
 * *error. That a command expired, or was cancelled, is not for its handler to say,
 * and nothing else has to show whose fault it is. Any other handler may raise what a
 * command that it waited for ended with: that is an error like others.
 */
CqrsFault
cqrs_fault_of(const CqrsSubscription *subscription, const ErrorData *error)
{
	CqrsFault	fault = {error->sqlerrcode, error->message};

	fault.proven = subscription->runs_commands &&
		(error->sqlerrcode == ERRCODE_CQRS_EXPIRED ||
		 error->sqlerrcode == ERRCODE_CQRS_CANCELED);
	fault.final = fault.proven || error->sqlerrcode == ERRCODE_CQRS_GIVE_UP;
	return fault;
}

/*
 * A parked event failed again. Is it known to be its own fault: did the same
 * error count before, or was an event of another lane delivered since?
 */
bool
cqrs_fault_is_known(const CqrsParked *parked, int sqlerrcode,
					const CqrsCursor *cursor)
{
	return parked->sqlerrcode == sqlerrcode &&
		(parked->attempts > 0 || parked->failed_at < cursor->passed_at);
}

/*
 * Note that an event, which is parked now, failed, with nothing delivered before
 * it in its transaction.
 *	first		its lane had not failed before
 *	suspect		the error may be nobody's fault
 *	told		it was reported already
 *	error		must live as long as the evidence
 */
void
cqrs_evidence_add(CqrsEvidence *evidence, int64 position, bool first,
				  bool suspect, bool told, ErrorData *error)
{
	Pending    *pending = palloc(sizeof(Pending));

	pending->position = position;
	pending->told = told;
	pending->error = error;
	evidence->pending = lappend(evidence->pending, pending);
	evidence->nlanes += first ? 1 : 0;
	evidence->nsuspects += suspect ? 1 : 0;
	evidence->error = error;
}

/*
 * Is it undecided who is to blame for this event's failure?
 */
bool
cqrs_evidence_has(const CqrsEvidence *evidence, int64 position)
{
	ListCell   *lc;

	foreach(lc, evidence->pending)
	{
		if (((Pending *) lfirst(lc))->position == position)
			return true;
	}
	return false;
}

/*
 * Have enough lanes failed that it is no event's fault?
 */
bool
cqrs_evidence_is_outage(const CqrsEvidence *evidence)
{
	return evidence->nsuspects >= CQRS_SUSPECT_LANES ||
		evidence->nlanes >= CQRS_FAILING_LANES;
}

/*
 * How many lanes to try after this many waits: a few waits should get us past a
 * run of bad events, however long, but a broken handler should not be called
 * for all events that there are.
 */
int
cqrs_evidence_enough(int failures)
{
	return Min(CQRS_FAILING_LANES << Min(failures, 10), CQRS_MOST_LANES);
}

/*
 * The events that failed are at fault: their attempts count, unless their handler
 * takes that on itself (tell; NULL: none does). Reports those errors that were not
 * yet, at this level.
 */
void
cqrs_evidence_convict(CqrsEvidence *evidence,
					  CqrsSubscription *subscription,
					  CqrsCursor *cursor, CqrsLanes *lanes, CqrsTell tell,
					  int elevel)
{
	ListCell   *lc;

	foreach(lc, evidence->pending)
	{
		Pending    *pending = (Pending *) lfirst(lc);
		CqrsFault	fault = cqrs_fault_of(subscription, pending->error);
		CqrsParked	parked;

		if (tell != NULL &&
			cqrs_parked_find(cursor, pending->position, &parked) &&
			cqrs_parked_is_told(&parked, subscription, cursor, tell,
								pending->error))
		{
			cqrs_lane_forget(lanes, parked.lane);
			continue;
		}
		if (!pending->told)
			ereport(elevel,
					(errcode(pending->error->sqlerrcode),
					 errmsg("could not deliver position " INT64_FORMAT " to subscription \"%s\"",
							pending->position, subscription->name),
					 errdetail_internal("%s", pending->error->message)));
		if (!cqrs_parked_find(cursor, pending->position, &parked))
			continue;
		cqrs_parked_failed(&parked, subscription, cursor, &fault, false);
		cqrs_lane_forget(lanes, parked.lane);
	}
	*evidence = (CqrsEvidence)
	{
		0
	};
}

/*
 * Tell the handler that this parked event failed. If it deals with that, the event
 * is no longer parked, and this returns true.
 */
bool
cqrs_parked_is_told(const CqrsParked *parked, CqrsSubscription *subscription,
					CqrsCursor *cursor, CqrsTell tell, const ErrorData *error)
{
	CqrsEvent	event;
	int			attempts;

	if (!cqrs_parked_read(cursor, parked->position, NULL, &event, &attempts) ||
		!tell(subscription, &event, error))
		return false;
	cqrs_parked_done(parked, cursor);
	return true;
}

/*
 * It is an outage: nothing counts, and what failed is not tried again before
 * the given time.
 */
void
cqrs_evidence_put_off(CqrsEvidence *evidence, CqrsCursor *cursor,
					  TimestampTz retry_at)
{
	ListCell   *lc;

	foreach(lc, evidence->pending)
	{
		Pending    *pending = (Pending *) lfirst(lc);
		CqrsFault	fault = {pending->error->sqlerrcode, pending->error->message};
		CqrsParked	parked;

		if (!cqrs_parked_find(cursor, pending->position, &parked))
			continue;
		parked.retry_at = retry_at;
		cqrs_parked_update(cursor, &parked, &fault);
	}
	evidence->pending = NIL;
}
