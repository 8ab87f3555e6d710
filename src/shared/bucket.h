/*-------------------------------------------------------------------------
 *
 * bucket.h
 *	  How often the handlers of a subscription are called.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BUCKET_H
#define CQRS_BUCKET_H

#include "utils/timestamp.h"

extern bool cqrs_bucket_take(int32 subscription_id, int64 interval,
							 TimestampTz *next);
extern void cqrs_bucket_give_back(int32 subscription_id, int64 interval);

#endif							/* CQRS_BUCKET_H */
