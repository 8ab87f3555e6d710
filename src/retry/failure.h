/*-------------------------------------------------------------------------
 *
 * failure.h
 *	  Cursors whose subscription cannot be delivered at all just now.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_FAILURE_H
#define CQRS_FAILURE_H

#include "utils/timestamp.h"

/*
 * Delay after the first failure, in milliseconds: if it is a server's, and if
 * it may only be a run of bad events.
 */
#define CQRS_FAILURE_DELAY	200
#define CQRS_RUN_DELAY		1

/* No failure has a longer delay, in milliseconds. */
#define CQRS_LONGEST_FAILURE	75000

extern TimestampTz cqrs_failure_record(int32 subscription_id, int32 partition,
									   const ErrorData *error,
									   int first_delay);
extern TimestampTz cqrs_failure_retry_at(int32 subscription_id,
										 int32 partition, int *sqlerrcode);
extern char *cqrs_failure_message(int32 subscription_id, int32 partition);
extern int32 cqrs_failure_count(int32 subscription_id, int32 partition);
extern bool cqrs_failure_try_now(int32 subscription_id, int32 partition);
extern void cqrs_failure_clear(int32 subscription_id, int32 partition);

#endif							/* CQRS_FAILURE_H */
