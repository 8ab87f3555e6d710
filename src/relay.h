/*-------------------------------------------------------------------------
 *
 * relay.h
 *	  One batch of one subscription.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RELAY_H
#define CQRS_RELAY_H

#include "cqrs_outbox.h"

#include "cursor.h"
#include "registry.h"
#include "window.h"

/* A batch has at most so many events, and about so many bytes of payload. */
#define CQRS_BATCH_EVENTS	1000
#define CQRS_BATCH_BYTES	(16 * 1024 * 1024)

/* One batch being read, in one transaction. */
typedef struct CqrsRelay
{
	CqrsSubscription *subscription;
	CqrsCursor	cursor;
	CqrsTick	tick;			/* what may be delivered; only id and snapshot */
	Snapshot	snapshot;
	CqrsWindow *window;			/* NULL: nothing to deliver */
	int64		start_tick;		/* the cursor's tick as it was read */
	int			nevents;		/* read of this batch */
	int64		nbytes;
	int64		last;			/* position read last */
} CqrsRelay;

extern void cqrs_relay_lock(const CqrsSubscription *subscription);
extern void cqrs_relay_begin(CqrsRelay *relay,
							 CqrsSubscription *subscription);
extern bool cqrs_relay_next(CqrsRelay *relay, int max_events,
							CqrsEvent *event);
extern void cqrs_relay_advance(CqrsRelay *relay);
extern void cqrs_relay_end(CqrsRelay *relay);

/* What became of a batch; also to be read after an error. */
typedef struct CqrsDelivery
{
	int			nevents;		/* delivered */
	int64		position;		/* of the event handled last, or 0 */
} CqrsDelivery;

extern void cqrs_relay_deliver(CqrsSubscription *subscription, int max_events,
							   volatile CqrsDelivery *delivery);

#endif							/* CQRS_RELAY_H */
