/*-------------------------------------------------------------------------
 *
 * target_handler.h
 *	  Events delivered to a handler in the same database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TARGET_HANDLER_H
#define CQRS_TARGET_HANDLER_H

#include "cqrs_outbox.h"

#include "registry.h"
#include "utils/timestamp.h"

/* What became of a batch; also to be read after an error. */
typedef struct CqrsDelivery
{
	int			nevents;		/* handled; after an error, before it */
	int64		position;		/* of the event being handled, or 0: none is */
	int64		last;			/* of the one handled last */
	bool		more;			/* there may be more to do at once ... */
	bool		announce;		/* ... but the next event is to be announced */
	TimestampTz retry_at;		/* a parked event may be tried then; 0: none */
} CqrsDelivery;

extern void cqrs_target_deliver(CqrsSubscription *subscription, int partition,
								int max_events, int64 parked_position,
								TimestampTz now, bool in_worker,
								volatile CqrsDelivery *delivery);
extern void cqrs_target_failed(CqrsSubscription *subscription, int partition,
							   int64 position, const ErrorData *error,
							   bool counted);
extern int64 cqrs_target_announce(CqrsSubscription *subscription,
								  int partition,
								  volatile CqrsDelivery *delivery);
extern bool cqrs_target_is_outage(const ErrorData *error);

#endif							/* CQRS_TARGET_HANDLER_H */
