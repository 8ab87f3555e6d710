/*-------------------------------------------------------------------------
 *
 * cursor.h
 *	  How far a subscription is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CURSOR_H
#define CQRS_CURSOR_H

#include "utils/uuid.h"

#include "base/snapshot.h"

/*
 * A transaction of a broker, or none. The id of all zeros is none's.
 */
typedef struct CqrsTransactionId
{
	bool		given;
	pg_uuid_t	id;
} CqrsTransactionId;

/*
 * For what is delivered exactly once; see broker_transaction.c.
 */
typedef struct CqrsSent
{
	CqrsTransactionId producer; /* not a transaction, but what their name is
								 * made of */
	CqrsTransactionId sent;		/* committed last */
	CqrsTransactionId intent;	/* perhaps committed since */
	int64		intent_position;	/* 0: does not matter any more */
	int32		intent_events;
	bool		intent_parked;
	CqrsTransactionId diverged; /* committed, but nobody knows it here */
	TimestampTz resent_at;		/* when that was passed over; 0: never */
} CqrsSent;

typedef struct CqrsCursor
{
	int32		subscription_id;
	int32		partition;
	int64		seq;			/* of the row that was read; 0: none yet */

	/* Everything that this snapshot shows has been delivered. */
	int64		tick_id;
	CqrsSnapshot *snapshot;

	/* The window being delivered ends here; until_tick 0: none is. */
	int64		until_tick;
	CqrsSnapshot *until_snapshot;
	int64		position;		/* delivered up to here, in that window */
	int64		received;		/* handed out up to here; >= position */
	bool		received_all;	/* nothing of the window is behind received */

	/*
	 * For clients that pull: the positions that were handed out last, which
	 * the receipt covers, in order; and the positions of the window, beyond
	 * position, that are settled already.
	 */
	bool		has_receipt;
	pg_uuid_t	receipt;
	TimestampTz leased_until;	/* 0: only until the transaction ended */
	int			expired;		/* how many leases ran out in a row */
	int			ncovered;
	int64	   *covered;
	int			npassed;
	int64	   *passed;

	TimestampTz next_retry_at;	/* lowest due_at in cqrs.retry, or lower; 0:
								 * no rows */
	TimestampTz passed_at;		/* when an event was delivered last; 0: never */
	int64		delivered;		/* how many events; to show the rate */
	int64		last_position;	/* see cqrs.cursor */
	TimestampTz moved_at;
	bool		native;			/* false: restored, and not adopted */
	bool		by_topic;		/* ordering of the subscription's events */
	CqrsSent	sent;			/* all zeros: not exactly once */
} CqrsCursor;

extern bool cqrs_cursor_read(int32 subscription_id, int32 partition,
							 Snapshot snapshot, CqrsCursor *cursor);
extern CqrsCursor *cqrs_cursor_read_all(int32 subscription_id,
										int partitions);
extern void cqrs_cursor_copy(CqrsCursor *copy, const CqrsCursor *cursor);
extern int	cqrs_cursor_partitions(int32 subscription_id, Snapshot snapshot);
extern void cqrs_cursor_start(CqrsCursor *cursor, bool latest, bool native);
extern double cqrs_cursor_rate(const CqrsCursor *cursor, Snapshot snapshot);
extern void cqrs_cursor_require_native(const CqrsCursor *cursor,
									   const char *subscription);
extern bool cqrs_cursor_read_restored(int32 subscription_id, int32 partition,
									  Snapshot snapshot, CqrsCursor *cursor);
extern void cqrs_cursor_append(CqrsCursor *cursor);
extern void cqrs_cursor_draw_producer(CqrsCursor *cursor);
extern void cqrs_cursor_rewrite_sent(CqrsCursor *cursor);
extern void cqrs_cursor_forget_receipt(CqrsCursor *cursor);
extern bool cqrs_cursor_covers(const CqrsCursor *cursor, int64 position);
extern bool cqrs_cursor_has_passed(const CqrsCursor *cursor, int64 position);
extern void cqrs_cursor_pass(CqrsCursor *cursor, int64 position);
extern void cqrs_cursor_forget_passed(CqrsCursor *cursor);
extern void cqrs_cursor_delete_all(int32 subscription_id);
extern bool cqrs_positions_contain(const int64 *positions, int npositions,
								   int64 position);
extern int	cqrs_position_compare(const void *a, const void *b);

#endif							/* CQRS_CURSOR_H */
