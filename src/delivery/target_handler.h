/*-------------------------------------------------------------------------
 *
 * target_handler.h
 *	  Events delivered to a handler in the same database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TARGET_HANDLER_H
#define CQRS_TARGET_HANDLER_H

#include "retry/blame.h"
#include "utils/timestamp.h"

/* How much of a message is kept. */
#define CQRS_DELIVERY_MESSAGE	512

/* What became of a batch; also valid after an error. */
typedef struct CqrsDelivery
{
	int			nevents;		/* handled; if there was an error, before it */
	int			nfailed;		/* called apart, and failed */
	int64		position;		/* of the event being handled, or 0: none is */
	int64		last;			/* of the one handled last */
	bool		more;			/* there may be more to do at once ... */
	bool		announce;		/* ... but the next event is to be announced */
	bool		parked_last;	/* parked events left no time for new ones */
	bool		not_flushed;	/* it commits without waiting for the disk */
	TimestampTz retry_at;		/* a parked event may be tried then; 0: none */
	int			outage;			/* not 0: what failed is nobody's fault; the
								 * SQLSTATE */
	char		message[CQRS_DELIVERY_MESSAGE]; /* ... why ... */
	bool		lone;			/* ... there is no other lane to compare with */
	TimestampTz failed_until;	/* ... not to be tried again before */
	bool		failing;		/* to a broker: the last failure was nobody's
								 * fault, and nothing was confirmed since */
} CqrsDelivery;

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
		 (delivery->nfailed == 0 && delivery->retry_at == 0));
}

extern void cqrs_pace_done(CqrsPace *pace, volatile CqrsDelivery *delivery);
extern void cqrs_pace_failed(CqrsPace *pace, int nevents,
							 const ErrorData *error);

extern void cqrs_target_deliver(CqrsSubscription *subscription, int partition,
								const CqrsPace *pace, bool alone,
								int64 parked_position, TimestampTz now,
								bool in_worker,
								volatile CqrsDelivery *delivery);
extern void cqrs_target_wait(volatile CqrsDelivery *delivery,
							 CqrsEvidence *evidence, CqrsCursor *cursor);
extern bool cqrs_target_is_outage(const ErrorData *error);

#endif							/* CQRS_TARGET_HANDLER_H */
