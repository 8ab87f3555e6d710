/*-------------------------------------------------------------------------
 *
 * pull.h
 *	  Subscriptions that clients pull from.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PULL_H
#define CQRS_PULL_H

#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "log/cursor.h"
#include "registry/entry.h"

/*
 * After so many expired leases in a row, the events are handed out one by one.
 */
#define CQRS_LEASES_EXPIRED	2

/* How far an attempt that found nothing came. */
typedef struct CqrsSeen
{
	MemoryContext context;		/* NULL: no attempt yet */
	int64		seq;			/* valid if the cursor's row is still this one
								 * ... */
	bool		skipped;		/* ... and nothing had to be parked */
	CqrsCursor	cursor;			/* without what the receipt covers */
} CqrsSeen;

/* One call of cqrs_receive(). */
typedef struct CqrsReceive
{
	const char *name;
	int			max_events;
	int			partition;		/* or any */
	int64		wait;			/* in milliseconds */
	Interval   *lease;			/* NULL: none */
	Tuplestorestate *store;
	TupleDesc	desc;
	MemoryContext context;
	CqrsSeen   *seen;			/* by partition; NULL: nothing to remember */

	/* What the last attempt met. */
	bool		locked;			/* another transaction had locked something */
	bool		busy;			/* ... namely a topic's table */
	bool		wrote;			/* a cursor moved, with nothing handed out */
	TimestampTz wake_at;		/* a lease ends, or an event is due; 0: no */
	int64		tick_id;		/* each partition was looked at with a tick as
								 * new as this */
} CqrsReceive;

/* pull.c */
extern CqrsSubscription *cqrs_pull_subscription(const char *name);

/* pull_batch.c */
extern bool cqrs_pull_batch(CqrsReceive *receive,
							CqrsSubscription *subscription, int partition,
							bool last);

/* pull_wait.c */
extern bool cqrs_pull_lock_segments(const CqrsSubscription *subscription);
extern void cqrs_pull_unlock_segments(const CqrsSubscription *subscription);
extern bool cqrs_pull_is_covered(const CqrsSubscription *subscription,
								 const CqrsSnapshot *target, int64 *tick_id);
extern void cqrs_pull_wait_begin(void);
extern void cqrs_pull_wait_end(void);
extern void cqrs_pull_wait(long timeout_ms);
extern bool cqrs_pull_request_tick(const CqrsSubscription *subscription);

#endif							/* CQRS_PULL_H */
