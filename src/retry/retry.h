/*-------------------------------------------------------------------------
 *
 * retry.h
 *	  What becomes of events that were not delivered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETRY_H
#define CQRS_RETRY_H

#include "utils/timestamp.h"

#include "log/cursor.h"
#include "retry/parked.h"

extern void cqrs_park(const CqrsSubscription *subscription,
					  CqrsCursor *cursor, const CqrsEvent *event,
					  const CqrsFault *fault);
extern void cqrs_park_received(CqrsCursor *cursor, const CqrsEvent *event,
							   const pg_uuid_t *receipt);
extern void cqrs_park_unproven(CqrsCursor *cursor, const CqrsEvent *event,
							   const CqrsFault *fault);
extern void cqrs_bury(const CqrsCursor *cursor, const CqrsEvent *event,
					  int attempts, const CqrsFault *fault);
extern bool cqrs_parked_redrive(CqrsCursor *cursor, const CqrsEvent *event,
								TimestampTz now);
extern void cqrs_parked_failed(CqrsParked *parked,
							   const CqrsSubscription *subscription,
							   CqrsCursor *cursor, const CqrsFault *fault,
							   bool counted);
extern bool cqrs_parked_begin_attempt(CqrsParked *parked,
									  const CqrsSubscription *subscription,
									  CqrsCursor *cursor);
extern void cqrs_parked_void_attempt(CqrsParked *parked, CqrsCursor *cursor,
									 const CqrsFault *fault);
extern void cqrs_parked_hand_out(CqrsParked *parked, CqrsCursor *cursor,
								 const pg_uuid_t *receipt);
extern void cqrs_parked_done(const CqrsParked *parked, CqrsCursor *cursor);

/* Columns of cqrs.dead_letter. */
enum
{
	CQRS_DEAD_SUBSCRIPTION_ID = 1,
	CQRS_DEAD_POSITION,			/* of the event, and the rest of it */
	CQRS_DEAD_ATTEMPTS = CQRS_DEAD_POSITION + CQRS_EVENT_COLUMNS,
	CQRS_DEAD_DIED_AT,
	CQRS_DEAD_SQLSTATE,
	CQRS_DEAD_MESSAGE,
	CQRS_DEAD_COLUMNS = CQRS_DEAD_MESSAGE
};

#endif							/* CQRS_RETRY_H */
