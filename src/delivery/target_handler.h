/*-------------------------------------------------------------------------
 *
 * target_handler.h
 *	  Events delivered to a handler in the same database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TARGET_HANDLER_H
#define CQRS_TARGET_HANDLER_H

#include "delivery/handler_batch.h"

/*
 * How to deliver the next batch: after an error, as many events as were handled
 * before it, and then the others apart. All zero to begin with.
 */
typedef struct CqrsPace
{
	int			plain;			/* with apart, how many come before that */
	int			apart;			/* how many events are to be called apart */
	int			again;			/* how often the first event met an error that
								 * may be over at once */
	bool		new_first;		/* new ones before those that are parked */
	int			array;			/* a handler that takes several events gets no
								 * more; 0: as many as there may be */
	bool		halved;			/* that is to find out which of them fails */
} CqrsPace;

/*
 * Does what became of a batch show that the subscription can be delivered? If
 * something is parked, that there was nothing to do shows nothing.
 */
static inline bool
cqrs_delivery_works(const CqrsDelivery *delivery)
{
	return delivery->outage == 0 &&
		(delivery->nevents > 0 ||
		 (delivery->nfailed == 0 && delivery->retry_at == 0 &&
		  delivery->paced_until == 0));
}

extern void cqrs_pace_done(CqrsPace *pace, volatile CqrsDelivery *delivery);
extern void cqrs_pace_failed(CqrsPace *pace,
							 volatile CqrsDelivery *delivery,
							 const ErrorData *error);

extern void cqrs_target_deliver(CqrsSubscription *subscription, int partition,
								const CqrsPace *pace, bool alone,
								int64 parked_position, TimestampTz now,
								bool in_worker,
								volatile CqrsDelivery *delivery);
extern bool cqrs_target_is_outage(const ErrorData *error);

#endif							/* CQRS_TARGET_HANDLER_H */
