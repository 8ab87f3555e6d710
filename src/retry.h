/*-------------------------------------------------------------------------
 *
 * retry.h
 *	  Parked events: those that failed, and those that wait behind them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETRY_H
#define CQRS_RETRY_H

#include "cqrs_outbox.h"

#include "utils/hsearch.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "cursor.h"
#include "registry.h"
#include "window.h"

/*
 * With so many parked events, a cursor moves no further: where everything
 * fails, this bounds what is copied. What was merely handed out to a client
 * does not count.
 */
#define CQRS_MAX_PARKED		1000

/* What is kept in memory of a row of cqrs.retry. */
typedef struct CqrsParked
{
	int64		position;
	pg_uuid_t	event_id;
	uint64		lane;
	int32		attempts;
	bool		received;		/* handed out, and not settled since ... */
	pg_uuid_t	receipt;		/* ... with this receipt */
	bool		head;			/* the lowest position of its lane */
	bool		gone;			/* delivered or dead meanwhile */
	bool		killed;			/* the last attempt did not come back */
	TimestampTz retry_at;
} CqrsParked;

/* The parked events of one cursor, by position. */
typedef struct CqrsParkedSet
{
	int			nparked;
	int			nheld;			/* of them, not merely handed out */
	bool		full;			/* so many of those that no more are loaded */
	int			first;			/* those before it are gone */
	int			room;
	CqrsParked *parked;
	HTAB	   *lanes;
} CqrsParkedSet;

/* Why an event was not delivered. */
typedef struct CqrsFault
{
	int			sqlerrcode;
	const char *message;
	TimestampTz retry_at;		/* 0: as the subscription's settings say */
	bool		final;			/* no use trying again */
} CqrsFault;

extern uint64 cqrs_event_lane(const CqrsEvent *event);

extern CqrsParkedSet *cqrs_parked_load(CqrsCursor *cursor, Snapshot snapshot);
extern bool cqrs_parked_blocks(const CqrsParkedSet *set, uint64 lane);
extern CqrsParked *cqrs_parked_due(const CqrsParkedSet *set, TimestampTz now);
extern TimestampTz cqrs_parked_next_retry(const CqrsParkedSet *set);
extern CqrsParked *cqrs_parked_find(const CqrsParkedSet *set, int64 position);

extern bool cqrs_parked_read(const CqrsCursor *cursor, int64 position,
							 Snapshot snapshot, CqrsEvent *event,
							 int *attempts);
extern void cqrs_parked_insert(CqrsCursor *cursor, const CqrsEvent *event,
							   int attempts, TimestampTz retry_at,
							   const CqrsFault *fault);
extern bool cqrs_parked_redrive(CqrsCursor *cursor, const CqrsEvent *event,
								TimestampTz now);
extern CqrsParkedSet *cqrs_park(CqrsParkedSet *set,
								const CqrsSubscription *subscription,
								CqrsCursor *cursor, const CqrsEvent *event,
								const CqrsFault *fault);
extern void cqrs_parked_failed(CqrsParkedSet *set, CqrsParked *parked,
							   const CqrsSubscription *subscription,
							   CqrsCursor *cursor, const CqrsFault *fault,
							   bool counted);
extern bool cqrs_parked_begin_attempt(CqrsParkedSet *set, CqrsParked *parked,
									  const CqrsSubscription *subscription,
									  CqrsCursor *cursor);
extern void cqrs_parked_void_attempt(CqrsParked *parked,
									 const CqrsSubscription *subscription,
									 CqrsCursor *cursor,
									 const CqrsFault *fault);
extern CqrsParkedSet *cqrs_park_received(CqrsParkedSet *set,
										 CqrsCursor *cursor,
										 const CqrsEvent *event,
										 const pg_uuid_t *receipt);
extern CqrsParked *cqrs_parked_next(CqrsParkedSet *set, int *next,
									TimestampTz now);
extern void cqrs_parked_pass(CqrsParkedSet *set, const CqrsParked *parked);
extern void cqrs_parked_hand_out(CqrsParkedSet *set, CqrsParked *parked,
								 CqrsCursor *cursor,
								 const pg_uuid_t *receipt);
extern bool cqrs_parked_has(const CqrsParkedSet *set, const CqrsEvent *event);
extern void cqrs_parked_done(CqrsParkedSet *set, CqrsParked *parked,
							 CqrsCursor *cursor);
extern void cqrs_parked_discard_all(CqrsCursor *cursor);
extern TimestampTz cqrs_retry_time(const CqrsSubscription *subscription,
								   int attempts);

/* Columns of cqrs.dead_letter. */
enum
{
	CQRS_DEAD_SUBSCRIPTION_ID = 1,
	CQRS_DEAD_POSITION,
	CQRS_DEAD_TOPIC_ID,
	CQRS_DEAD_EVENT_ID,
	CQRS_DEAD_EVENT_NAME,
	CQRS_DEAD_KEY,
	CQRS_DEAD_HEADERS,
	CQRS_DEAD_PAYLOAD,
	CQRS_DEAD_EMITTED_AT,
	CQRS_DEAD_ATTEMPTS,
	CQRS_DEAD_DIED_AT,
	CQRS_DEAD_SQLSTATE,
	CQRS_DEAD_MESSAGE,
	CQRS_DEAD_COLUMNS = CQRS_DEAD_MESSAGE
};

#endif							/* CQRS_RETRY_H */
