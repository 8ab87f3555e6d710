/*-------------------------------------------------------------------------
 *
 * relay.h
 *	  One batch of one cursor of a subscription.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RELAY_H
#define CQRS_RELAY_H

#include "log/cursor.h"
#include "log/tick.h"
#include "log/window.h"
#include "retry/lane.h"

/* The most events, and about the most bytes of payload, that a batch has. */
#define CQRS_BATCH_EVENTS	1000
#define CQRS_BATCH_BYTES	(16 * 1024 * 1024)

/*
 * The cursor of a subscription without events moves once in this many ticks.
 */
#define CQRS_EMPTY_TICKS	1000

/*
 * How far a worker has read ahead of the cursor, to send events to a broker
 * that has yet to confirm those before.
 */
typedef struct CqrsReadAhead
{
	CqrsCursor	cursor;			/* in which window; else as in the table */
	int64		position;		/* of that window, read up to here */
	bool		at_end;			/* nothing is left of it */
} CqrsReadAhead;

/* One batch being read, in one transaction. */
typedef struct CqrsRelay
{
	CqrsSubscription *subscription;
	CqrsCursor	cursor;
	CqrsTick	tick;			/* the end of what may be delivered; only id
								 * and snapshot */
	bool		has_tick;
	Snapshot	snapshot;
	CqrsWindow *window;			/* NULL: nothing to deliver */
	CqrsLanes	lanes;			/* what is known of the lanes met so far */
	bool		park_inside;	/* park also behind events of this batch */
	bool		here;			/* this transaction received what the receipt
								 * covers: hand that out, even if its lane is
								 * blocked */
	bool		hold_back;		/* park nothing before the first event ... */
	bool		skipped;		/* ... but something has to be */
	bool		has_parked;		/* something was parked on the way */
	CqrsReadAhead *ahead;		/* park nothing, leave the cursor; or NULL */
	bool		may_leave;		/* with ahead: all read before is recorded */
	bool		blocked;		/* with ahead: the event read last has to wait */
	TimestampTz began;			/* with deadline */
	TimestampTz deadline;		/* stop then; 0: no matter how long */

	/* What of the window was passed by in this batch. */
	int			nevents;		/* handed out */
	int			nothers;		/* parked, or of another partition */
	int64		nbytes;
	int64		last;			/* position read last */

	/* Where the cursor was as it was read. */
	int64		start_tick;
	int64		start_until;

	int64		epoch_tick;		/* windows end there; 0: no matter where */
} CqrsRelay;

extern bool cqrs_relay_begin(CqrsRelay *relay, CqrsSubscription *subscription,
							 int partition, bool wait);
extern bool cqrs_relay_begin_ahead(CqrsRelay *relay,
								   CqrsSubscription *subscription,
								   int partition, CqrsReadAhead *ahead);
extern bool cqrs_relay_begin_pull(CqrsRelay *relay,
								  CqrsSubscription *subscription,
								  int partition);
extern void cqrs_relay_open(CqrsRelay *relay);
extern void cqrs_relay_read_ahead(CqrsRelay *relay);
extern bool cqrs_relay_next(CqrsRelay *relay, int max_events,
							CqrsEvent *event);
extern void cqrs_relay_park(CqrsRelay *relay, const CqrsEvent *event,
							TimestampTz due_at);
extern bool cqrs_relay_is_late(const CqrsRelay *relay);
extern void cqrs_relay_advance(CqrsRelay *relay);
extern bool cqrs_relay_arrives(const CqrsRelay *relay);
extern bool cqrs_relay_is_gone(const CqrsRelay *relay);
extern void cqrs_relay_close_window(CqrsCursor *cursor);
extern void cqrs_relay_end(CqrsRelay *relay);

#endif							/* CQRS_RELAY_H */
