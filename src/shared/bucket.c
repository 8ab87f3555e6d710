/*-------------------------------------------------------------------------
 *
 * bucket.c
 *	  How often the handlers of a subscription are called, by all workers.
 *
 * A subscription that has a rate has a bucket of tokens in shared memory, which
 * fills as time passes; each call takes one. What is in the bucket is a time: that
 * at which it will be full. So nobody has to fill it, and one that is full is like
 * one that is not there: its place may be taken. The bucket holds what comes in
 * BURST, and one token at least.
 *
 * Workers come and go, and the bucket stays. When the server starts, it is full:
 * that is one burst too many. A call that is rolled back has taken its token:
 * what it did outside, it may have done.
 *
 * Locking: the shared lock protects the buckets.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "miscadmin.h"

#include "shared/bucket.h"
#include "shared/clock.h"
#include "shared/shmem.h"

/* What a full bucket holds comes in this time, in nanoseconds. */
#define BURST	INT64CONST(100000000)

/* Whoever finds it empty waits for so long at least, in microseconds. */
#define SHORTEST_WAIT	20000

static CqrsBucket *find(int32 subscription_id, int64 now);

/*
 * Take a token from a subscription's bucket, where one takes so many nanoseconds to
 * come. Returns false if there is none; *next gets the steady time to ask again.
 */
bool
cqrs_bucket_take(int32 subscription_id, int64 interval, TimestampTz *next)
{
	int64		now = cqrs_steady_now() * 1000;
	int64		capacity = Max(BURST, interval);
	int64		full_at;
	CqrsBucket *bucket;
	bool		taken;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	bucket = find(subscription_id, now);
	full_at = Max(bucket->full_at, now) + interval;

	/* The rate may have been lower before. */
	full_at = Min(full_at, now + capacity + interval);
	taken = full_at <= now + capacity;
	if (taken)
		bucket->full_at = full_at;
	else
		*next = Max((full_at - capacity) / 1000 + 1,
					now / 1000 + SHORTEST_WAIT);
	LWLockRelease(cqrs_shared->lock);
	return taken;
}

/*
 * A token was taken, and nothing was called.
 */
void
cqrs_bucket_give_back(int32 subscription_id, int64 interval)
{
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	find(subscription_id, cqrs_steady_now() * 1000)->full_at -= interval;
	LWLockRelease(cqrs_shared->lock);
}

/*
 * A subscription's bucket; if it has none, the place of the one that is full, or
 * will be first.
 */
static CqrsBucket *
find(int32 subscription_id, int64 now)
{
	CqrsBucket *fullest = &cqrs_shared->buckets[0];
	int			i;

	for (i = 0; i < CQRS_MAX_BUCKETS; i++)
	{
		CqrsBucket *bucket = &cqrs_shared->buckets[i];

		if (bucket->dboid == MyDatabaseId &&
			bucket->subscription_id == subscription_id)
			return bucket;
		if (bucket->full_at < fullest->full_at)
			fullest = bucket;
	}
	fullest->dboid = MyDatabaseId;
	fullest->subscription_id = subscription_id;
	fullest->full_at = now;
	return fullest;
}
