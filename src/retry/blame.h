/*-------------------------------------------------------------------------
 *
 * blame.h
 *	  Whose fault is it that an event was not delivered?
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BLAME_H
#define CQRS_BLAME_H

#include "nodes/pg_list.h"

#include "log/cursor.h"
#include "retry/lane.h"
#include "retry/parked.h"

/*
 * When so many lanes in a row meet an error of a suspect class, it is an
 * outage.
 */
#define CQRS_SUSPECT_LANES	3

/*
 * When so many meet any error, the handler or broker is broken. The number
 * grows with each wait, up to the latter.
 */
#define CQRS_FAILING_LANES	20
#define CQRS_MOST_LANES		1000

/* How often an event that meets a transient error is tried again at once. */
#define CQRS_TRANSIENT_TRIES	3

typedef enum CqrsBlame
{
	CQRS_BLAME_EVENT,			/* the event's, unless all others meet it, too */
	CQRS_BLAME_SUSPECT,			/* the event's, if another one can be
								 * delivered */
	CQRS_BLAME_NOBODY			/* no event's: the subscription waits */
} CqrsBlame;

/* What failed since the last delivery, and what that says. */
typedef struct CqrsEvidence
{
	List	   *pending;		/* failures that nobody is blamed for yet */
	int			nlanes;			/* how many lanes that had not failed before */
	int			nsuspects;		/* how many errors of a suspect class */
	ErrorData  *error;			/* of the last one */
} CqrsEvidence;

/*
 * Tells the subscription's handler that an event failed. Returns whether it has dealt
 * with that.
 */
typedef bool (*CqrsTell) (CqrsSubscription *subscription,
						  const CqrsEvent *event, const ErrorData *error);

extern CqrsBlame cqrs_blame(const ErrorData *error);
extern bool cqrs_error_is_transient(const ErrorData *error);
extern CqrsFault cqrs_fault_of(const CqrsSubscription *subscription,
							   const ErrorData *error);
extern bool cqrs_fault_is_known(const CqrsParked *parked, int sqlerrcode,
								const CqrsCursor *cursor);
extern void cqrs_evidence_add(CqrsEvidence *evidence, int64 position,
							  bool first, bool suspect, bool told,
							  ErrorData *error);
extern bool cqrs_evidence_has(const CqrsEvidence *evidence,
							  int64 position);
extern bool cqrs_evidence_is_outage(const CqrsEvidence *evidence);
extern int	cqrs_evidence_enough(int failures);
extern void cqrs_evidence_convict(CqrsEvidence *evidence,
								  CqrsSubscription *subscription,
								  CqrsCursor *cursor, CqrsLanes *lanes,
								  CqrsTell tell, int elevel);
extern bool cqrs_parked_is_told(const CqrsParked *parked,
								CqrsSubscription *subscription,
								CqrsCursor *cursor, CqrsTell tell,
								const ErrorData *error);
extern void cqrs_evidence_put_off(CqrsEvidence *evidence,
								  CqrsCursor *cursor, TimestampTz retry_at);

#endif							/* CQRS_BLAME_H */
