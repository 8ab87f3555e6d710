/*-------------------------------------------------------------------------
 *
 * bucket.c
 *	  How often the handler of a subscription is called, by all workers: in all,
 *	  or for events of the same key.
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
 * A key has a bucket of the same kind, in one of the places of a set that its hash
 * tells. If all of these have buckets that are not full, the key waits until one is.
 * So if there are too many keys, some are called for less often than they might be,
 * and none more often. The same is true of two keys with the same hash.
 *
 * Locking: the shared lock protects the buckets.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "common/hashfn.h"
#include "miscadmin.h"

#include "shared/bucket.h"
#include "shared/clock.h"
#include "shared/shmem.h"

/* What a full bucket holds comes in this time, in nanoseconds. */
#define BURST	INT64CONST(100000000)

/* Whoever finds it empty waits for so long at least, in microseconds. */
#define SHORTEST_WAIT	20000

static bool take(int64 *full_at, int64 now, int64 interval, TimestampTz *next);
static CqrsBucket *find(int32 subscription_id, int64 now);
static CqrsKeyBucket *find_key(uint64 owner);

/*
 * Take a token from a subscription's bucket, where one takes so many nanoseconds to
 * come. Returns false if there is none; *next gets the steady time to ask again.
 */
bool
cqrs_bucket_take(int32 subscription_id, int64 interval, TimestampTz *next)
{
	int64		now = cqrs_steady_now() * 1000;
	bool		taken;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	taken = take(&find(subscription_id, now)->full_at, now, interval, next);
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
 * The same for events of a key, of which only the hash is given.
 */
bool
cqrs_key_bucket_take(int32 subscription_id, uint64 key, int64 interval,
					 TimestampTz *next)
{
	int64		now = cqrs_steady_now() * 1000;
	uint64		owner;
	CqrsKeyBucket *bucket;
	bool		taken = false;

	owner = hash_combine64(hash_combine64(MyDatabaseId, subscription_id), key);
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	bucket = find_key(owner);
	if (bucket->owner != owner && bucket->full_at > now)
		*next = bucket->full_at / 1000 + 1;
	else
	{
		if (bucket->owner != owner)
			*bucket = (CqrsKeyBucket)
		{
			owner, now
		};
		taken = take(&bucket->full_at, now, interval, next);
	}
	LWLockRelease(cqrs_shared->lock);
	return taken;
}

/*
 * Take a token from a bucket, if there is one.
 */
static bool
take(int64 *full_at, int64 now, int64 interval, TimestampTz *next)
{
	int64		capacity = Max(BURST, interval);
	int64		full_after;

	/* It is not emptier than empty, if the rate was lower before. */
	*full_at = Min(*full_at, now + capacity);
	full_after = Max(*full_at, now) + interval;
	if (full_after <= now + capacity)
	{
		*full_at = full_after;
		return true;
	}
	*next = Max((full_after - capacity) / 1000 + 1,
				now / 1000 + SHORTEST_WAIT);
	return false;
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

/*
 * A key's bucket; if it has none, the place of the one of its set that is full, or
 * will be first.
 */
static CqrsKeyBucket *
find_key(uint64 owner)
{
	CqrsKeyBucket *set = cqrs_shared->key_buckets[owner % CQRS_KEY_BUCKET_SETS];
	CqrsKeyBucket *fullest = &set[0];
	int			i;

	for (i = 0; i < CQRS_KEY_BUCKET_WAYS; i++)
	{
		if (set[i].owner == owner)
			return &set[i];
		if (set[i].full_at < fullest->full_at)
			fullest = &set[i];
	}
	return fullest;
}
