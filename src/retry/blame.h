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

/* So many lanes in a row meet an error of a suspect class: an outage. */
#define CQRS_SUSPECT_LANES	3

/* So many meet any: whoever delivers is broken. After each wait it takes more. */
#define CQRS_FAILING_LANES	20
#define CQRS_MOST_LANES		1000

/* An event that meets a transient error is tried again at once so often. */
#define CQRS_TRANSIENT_TRIES	3

typedef enum CqrsBlame
{
	CQRS_BLAME_EVENT,			/* unless all others meet it, too */
	CQRS_BLAME_SUSPECT,			/* if another one can be delivered */
	CQRS_BLAME_NOBODY			/* it waits */
} CqrsBlame;

/* What failed since something was delivered last, and what that says. */
typedef struct CqrsEvidence
{
	List	   *pending;		/* failures that nobody is blamed for yet */
	int			nlanes;			/* of lanes that had not failed before */
	int			nsuspects;		/* of a suspect class */
	ErrorData  *error;			/* of the last one */
} CqrsEvidence;

extern CqrsBlame cqrs_blame(const ErrorData *error);
extern bool cqrs_error_is_transient(const ErrorData *error);
extern CqrsFault cqrs_fault_of(const ErrorData *error);
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
								  const CqrsSubscription *subscription,
								  CqrsCursor *cursor, CqrsLanes *lanes,
								  int elevel);
extern void cqrs_evidence_put_off(CqrsEvidence *evidence,
								  CqrsCursor *cursor, TimestampTz retry_at);

#endif							/* CQRS_BLAME_H */
