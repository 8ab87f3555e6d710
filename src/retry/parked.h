/*-------------------------------------------------------------------------
 *
 * parked.h
 *	  The rows of cqrs.retry, and how they are found.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PARKED_H
#define CQRS_PARKED_H

#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "extension/row.h"
#include "log/cursor.h"
#include "log/event.h"

/* Why an event was not delivered. */
typedef struct CqrsFault
{
	int			sqlerrcode;
	const char *message;
	TimestampTz retry_at;		/* 0: as the subscription's settings say */
	bool		final;			/* no use trying again */
	bool		proven;			/* the event's, for sure */
} CqrsFault;

/* A row of cqrs.retry, without the event itself. */
typedef struct CqrsParked
{
	int64		position;		/* 0: none */
	pg_uuid_t	event_id;
	uint64		lane;
	int32		attempts;
	bool		received;		/* handed out, and not settled ... */
	pg_uuid_t	receipt;		/* ... with this receipt */
	bool		head;			/* the first of its lane */
	TimestampTz failed_at;		/* 0: it has no error, counted or not, ... */
	int			sqlerrcode;		/* ... and this is 0 */
	bool		killed;			/* the last attempt did not return */
	TimestampTz retry_at;
} CqrsParked;


/*
 * To be called under the cursor's lock; they see all that was done under it.
 */
extern void cqrs_parked_open(CqrsCursor *cursor);
extern void cqrs_parked_close(CqrsCursor *cursor);
extern bool cqrs_parked_due(CqrsCursor *cursor, TimestampTz now,
							CqrsParked *parked);
extern bool cqrs_parked_find(const CqrsCursor *cursor, int64 position,
							 CqrsParked *parked);
extern bool cqrs_parked_is(const CqrsCursor *cursor, const CqrsEvent *event);
extern int64 cqrs_parked_lane_last(const CqrsCursor *cursor, uint64 lane);
extern bool cqrs_parked_lane_next(const CqrsCursor *cursor, uint64 lane,
								  int64 after_position, CqrsParked *parked);
extern void cqrs_parked_heads_begin(CqrsScan *scan,
									const CqrsCursor *cursor,
									TimestampTz until);
extern bool cqrs_parked_heads_next(CqrsScan *scan, CqrsParked *parked);

extern void cqrs_parked_insert(CqrsCursor *cursor, const CqrsEvent *event,
							   int attempts, TimestampTz retry_at,
							   const CqrsFault *fault,
							   const pg_uuid_t *receipt);
extern void cqrs_parked_update(CqrsCursor *cursor, const CqrsParked *parked,
							   const CqrsFault *fault);
extern void cqrs_parked_set_receipt(CqrsCursor *cursor,
									const CqrsParked *parked);
extern void cqrs_parked_put_off(CqrsCursor *cursor, int64 position,
								TimestampTz due_at);
extern int64 cqrs_parked_due_anew(CqrsCursor *cursor, TimestampTz now);
extern int64 cqrs_parked_try_now(CqrsCursor *cursor, TimestampTz now,
								 const CqrsEventIds *ids);
extern void cqrs_parked_delete(CqrsCursor *cursor, const CqrsParked *parked);
extern void cqrs_parked_discard_all(CqrsCursor *cursor);
extern void cqrs_parked_discard_topic(CqrsCursor *cursor, int32 topic_id);

/*
 * These read what a snapshot shows; NULL: as above. Walks end with
 * cqrs_scan_end().
 */
extern bool cqrs_parked_read(const CqrsCursor *cursor, int64 position,
							 Snapshot snapshot, CqrsEvent *event,
							 int *attempts);
extern void cqrs_parked_events_begin(CqrsScan *scan,
									 const CqrsCursor *cursor,
									 int64 after_position, Snapshot snapshot);
extern bool cqrs_parked_events_next(CqrsScan *scan, CqrsEvent *event,
									int *attempts);

#endif							/* CQRS_PARKED_H */
