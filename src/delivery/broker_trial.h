/*-------------------------------------------------------------------------
 *
 * broker_trial.h
 *	  Whose fault it is that a broker rejected events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_TRIAL_H
#define CQRS_BROKER_TRIAL_H

#include "delivery/broker_entry.h"
#include "delivery/relay.h"
#include "delivery/target_handler.h"
#include "retry/blame.h"

/* What was rejected since the last event was confirmed, and what that says. */
typedef struct CqrsBrokerTrial
{
	CqrsEvidence evidence;
	MemoryContext context;		/* of the evidence */
	bool		alone;			/* there is no other lane to compare with */
	bool		failing;		/* the last failure was nobody's fault */
	bool		unproven;		/* send one event, and see */
} CqrsBrokerTrial;

extern void cqrs_trial_reject(CqrsBrokerTrial *trial, CqrsRelay *relay,
							  CqrsBrokerEntry *entry);
extern void cqrs_trial_reject_parked(CqrsBrokerTrial *trial,
									 CqrsRelay *relay, CqrsBrokerEntry *entry,
									 CqrsParked *parked);
extern void cqrs_trial_passed(CqrsBrokerTrial *trial, CqrsRelay *relay,
							  int n);
extern void cqrs_trial_decide(CqrsBrokerTrial *trial, CqrsRelay *relay,
							  const CqrsBrokerEntries *entries, bool read_all,
							  bool lost, volatile CqrsDelivery *delivery);
extern int	cqrs_trial_choose(const CqrsBrokerTrial *trial,
							  const CqrsCursor *cursor, TimestampTz now,
							  CqrsParked *chosen,
							  volatile CqrsDelivery *delivery);

#endif							/* CQRS_BROKER_TRIAL_H */
