/*-------------------------------------------------------------------------
 *
 * bucket.h
 *	  How often the handler of a subscription is called, in all or for a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BUCKET_H
#define CQRS_BUCKET_H

#include "utils/timestamp.h"

extern bool cqrs_bucket_take(int32 subscription_id, int64 interval,
							 TimestampTz *next);
extern void cqrs_bucket_give_back(int32 subscription_id, int64 interval);
extern bool cqrs_key_bucket_take(int32 subscription_id, uint64 key,
								 int64 interval, TimestampTz *next);

#endif							/* CQRS_BUCKET_H */
