/*-------------------------------------------------------------------------
 *
 * retry.h
 *	  Deliveries that failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETRY_H
#define CQRS_RETRY_H

#include "cqrs_outbox.h"

#include "utils/snapshot.h"
#include "utils/timestamp.h"

typedef struct CqrsFailure
{
	int64		position;
	int32		attempts;
	TimestampTz retry_at;
} CqrsFailure;

extern bool cqrs_failure_read(int32 subscription_id, Snapshot snapshot,
							  CqrsFailure *failure);
extern TimestampTz cqrs_failure_record(int32 subscription_id, int64 position,
									   ErrorData *error);
extern void cqrs_failure_clear(int32 subscription_id);

#endif							/* CQRS_RETRY_H */
