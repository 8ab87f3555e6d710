/*-------------------------------------------------------------------------
 *
 * failure.h
 *	  Cursors whose subscription cannot be delivered at all just now.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_FAILURE_H
#define CQRS_FAILURE_H

#include "cqrs_outbox.h"

#include "utils/timestamp.h"

/* No failure has a longer delay, in milliseconds. */
#define CQRS_LONGEST_FAILURE	75000

extern TimestampTz cqrs_failure_record(int32 subscription_id, int32 partition,
									   const ErrorData *error);
extern TimestampTz cqrs_failure_retry_at(int32 subscription_id,
										 int32 partition);
extern void cqrs_failure_clear(int32 subscription_id, int32 partition);

#endif							/* CQRS_FAILURE_H */
