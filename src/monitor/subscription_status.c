/*-------------------------------------------------------------------------
 *
 * subscription_status.c
 *	  How far subscriptions are, as people see it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/twophase.h"
#include "catalog/pg_authid.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/position.h"
#include "log/segment.h"
#include "log/window_scan.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "shared/shmem.h"
#include "subscription/subscription.h"

/*
 * How many rows are looked at to count the events of a cursor; beyond that,
 * positions are subtracted. Each cursor looks at the events of all partitions,
 * so there is a limit for all of them together, too.
 */
#define ROWS_COUNTED	10000
#define ROWS_COUNTED_IN_ALL	(10 * ROWS_COUNTED)

/* Columns of cqrs.subscription_progress(). */
enum
{
	PROGRESS_LAG_EVENTS,
	PROGRESS_LAG,
	PROGRESS_LAG_BYTES,
	PROGRESS_EVENTS_PER_SECOND,
	PROGRESS_PID,
	PROGRESS_STATE,
	PROGRESS_COLUMNS
};

/* What is not delivered yet. */
typedef struct Lag
{
	int64		events;
	int64		bytes;
	TimestampTz oldest;
} Lag;

static bool may_know(const CqrsSubscription *subscription);
static int	lock_topics(const CqrsSubscription *subscription);
static void unlock_topics(const CqrsSubscription *subscription, int locked);
static bool is_countable(const CqrsSubscription *subscription);
static void add_lag(CqrsSubscription *subscription, const CqrsCursor *cursor,
					int partitions, Snapshot snapshot, Lag *lag);
static void put_holder(Tuplestorestate *store, TupleDesc desc,
					   int32 subscription_id, int partition);
static const char *state_of(const CqrsSubscription *subscription,
							bool lags, bool parked, int *pid);
static const char *worker_of(int32 subscription_id, int *pid);

PG_FUNCTION_INFO_V1(cqrs_subscription_progress);
PG_FUNCTION_INFO_V1(cqrs_cursor_holders);
PG_FUNCTION_INFO_V1(cqrs_subscription_owner);

/*
 * cqrs.subscription_progress(subscription_id)
 */
Datum
cqrs_subscription_progress(PG_FUNCTION_ARGS)
{
	int32		subscription_id = PG_GETARG_INT32(0);
	CqrsSubscription *subscription;
	Datum		values[PROGRESS_COLUMNS];
	bool		nulls[PROGRESS_COLUMNS] = {0};
	TimestampTz now = GetCurrentTimestamp();
	Lag			lag = {.oldest = now};
	double		rate = 0;
	int			locked;
	bool		countable;
	bool		restored = false;
	bool		parked = false;
	int			pid = 0;
	const char *state;
	int			partitions;
	int			i;

	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL || !may_know(subscription))
		PG_RETURN_NULL();
	partitions = cqrs_cursor_partitions(subscription_id, GetActiveSnapshot());
	if (partitions == 0)
		PG_RETURN_NULL();
	locked = lock_topics(subscription);
	countable = locked == subscription->ntopics && is_countable(subscription);
	for (i = 0; i < partitions; i++)
	{
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription_id, i, GetActiveSnapshot(),
							  &cursor))
			break;
		restored |= !cursor.native;
		parked |= cursor.next_retry_at != 0;
		if (cursor.native && countable)
			add_lag(subscription, &cursor, partitions, GetActiveSnapshot(), &lag);
		rate += cqrs_cursor_rate(&cursor, GetActiveSnapshot());
	}
	unlock_topics(subscription, locked);
	if (i < partitions)
		PG_RETURN_NULL();

	state = cqrs_registry_is_copy() ? "copied" :
		restored ? "restored" :
		state_of(subscription, lag.events > 0 || !countable, parked, &pid);
	values[PROGRESS_LAG_EVENTS] = Int64GetDatum(lag.events);
	values[PROGRESS_LAG] =
		DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(now),
							TimestampTzGetDatum(lag.oldest));
	values[PROGRESS_LAG_BYTES] = Int64GetDatum(lag.bytes);
	nulls[PROGRESS_LAG_EVENTS] = nulls[PROGRESS_LAG] =
		nulls[PROGRESS_LAG_BYTES] = !countable;
	values[PROGRESS_EVENTS_PER_SECOND] = Float8GetDatum(rate);
	values[PROGRESS_PID] = Int32GetDatum(pid);
	nulls[PROGRESS_PID] = pid == 0;
	values[PROGRESS_STATE] = CStringGetTextDatum(state);
	return cqrs_row(fcinfo, values, nulls);
}

/*
 * cqrs.subscription_owner(subscription_id): (owner, view), both NULL if there
 * is none.
 */
Datum
cqrs_subscription_owner(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = NULL;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, true};

	if (cqrs_registry_usable())
		subscription = cqrs_registry_subscription_by_id(PG_GETARG_INT32(0));
	if (subscription != NULL && OidIsValid(subscription->owner))
	{
		values[0] = ObjectIdGetDatum(subscription->owner);
		values[1] = ObjectIdGetDatum(subscription->view);
		nulls[0] = nulls[1] = false;
	}
	return cqrs_row(fcinfo, values, nulls);
}

/*
 * cqrs.cursor_holders(subscription_id)
 */
Datum
cqrs_cursor_holders(PG_FUNCTION_ARGS)
{
	int32		subscription_id = PG_GETARG_INT32(0);
	CqrsSubscription *subscription;
	Tuplestorestate *store;
	TupleDesc	desc;
	int			i;

	store = cqrs_srf_begin(fcinfo, &desc);
	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL || !may_know(subscription))
		return (Datum) 0;
	for (i = 0; i < subscription->partitions; i++)
		put_holder(store, desc, subscription_id, i);
	return (Datum) 0;
}

/*
 * May the user know how far a subscription is? The views leave out what they may
 * not see, but users can call these functions without the views.
 */
static bool
may_know(const CqrsSubscription *subscription)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		(OidIsValid(subscription->owner) &&
		 (has_privs_of_role(GetUserId(), subscription->owner) ||
		  cqrs_subscription_allows(subscription, ACL_SELECT)));
}

/*
 * Keep the subscription's topics from being dropped while they are looked at.
 * Returns how many are locked: not all, if that would mean waiting, or one was
 * dropped.
 */
static int
lock_topics(const CqrsSubscription *subscription)
{
	int			locked = 0;

	while (locked < subscription->ntopics &&
		   cqrs_segments_lock(subscription->topics[locked]))
		locked++;
	return locked;
}

static void
unlock_topics(const CqrsSubscription *subscription, int locked)
{
	while (--locked >= 0)
		cqrs_segments_unlock(subscription->topics[locked]);
}

/*
 * Can the events of a subscription, whose topics are locked, be counted without
 * an error and without waiting for a lock on a table?
 */
static bool
is_countable(const CqrsSubscription *subscription)
{
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		if (!cqrs_segments_intact(subscription->topics[i]))
			return false;
	return true;
}

/*
 * Add the events that the snapshot shows beyond a cursor.
 */
static void
add_lag(CqrsSubscription *subscription, const CqrsCursor *cursor,
		int partitions, Snapshot snapshot, Lag *lag)
{
	CqrsCount	count = {
		.limit = Min(ROWS_COUNTED, ROWS_COUNTED_IN_ALL / partitions),
		.oldest = lag->oldest
	};
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
	{
		const CqrsSnapshot *lower = cursor->snapshot;

		if (cursor->until_tick != 0)
		{
			cqrs_window_count(subscription->topics[i], lower,
							  cursor->until_snapshot, cursor->position,
							  cursor, partitions, snapshot, &count);
			lower = cursor->until_snapshot;
		}
		cqrs_window_count(subscription->topics[i], lower, NULL, 0, cursor,
						  partitions, snapshot, &count);
	}
	lag->oldest = count.oldest;
	if (count.limit == 0)
	{
		double		counted = count.events + count.others;
		double		positions = cqrs_last_position() - cursor->last_position;

		/* Assume the partition's share of those counted. */
		positions *= counted == 0 ? 1.0 / partitions : count.events / counted;
		count.events = Max(count.events, (int64) positions);
		count.event_bytes = (double) count.row_bytes / count.rows * count.events;
	}
	lag->events += count.events;
	lag->bytes += count.event_bytes;
}

/*
 * Add who has the lock for moving a cursor: at most one process or prepared
 * transaction, other than our own.
 */
static void
put_holder(Tuplestorestate *store, TupleDesc desc, int32 subscription_id,
		   int partition)
{
	LOCKTAG		tag;
	VirtualTransactionId holder;
	int			pid;
	TransactionId xid = InvalidTransactionId;
	bool		more;
	Datum		values[3];
	bool		nulls[3] = {0};

	cqrs_object_tag(&tag, CQRS_REL_SUBSCRIPTION, subscription_id, partition);
	holder = GetLockConflicts(&tag, ExclusiveLock, NULL)[0];
	if (!VirtualTransactionIdIsValid(holder))
		return;
	pid = cqrs_vxid_pid(holder);
	if (pid == 0)
	{
		xid = VirtualTransactionIdIsRecoveredPreparedXact(holder) ?
			holder.localTransactionId :
			TwoPhaseGetXidByVirtualXID(holder, &more);

		/* The transaction has just ended. */
		if (!TransactionIdIsValid(xid))
			return;
	}
	values[0] = Int32GetDatum(partition);
	values[1] = Int32GetDatum(pid);
	nulls[1] = pid == 0;
	values[2] = TransactionIdGetDatum(xid);
	nulls[2] = pid != 0;
	tuplestore_putvalues(store, desc, values, nulls);
}

/*
 * The state of a subscription, in a word: of its workers, if it has any; or of
 * what it waits for. *pid gets that of a worker, if there is one.
 */
static const char *
state_of(const CqrsSubscription *subscription, bool lags, bool parked,
		 int *pid)
{
	const char *state = NULL;

	switch (subscription->state)
	{
		case CQRS_SUBSCRIPTION_PAUSED:
			return "paused";
		case CQRS_SUBSCRIPTION_SUSPENDED:
			return "suspended";
		case CQRS_SUBSCRIPTION_ACTIVE:
			break;
	}
	if (!cqrs_subscription_is_pulled(subscription))
		state = worker_of(subscription->subscription_id, pid);
	if (state != NULL)
		return state;
	if (lags)
		return cqrs_subscription_is_pulled(subscription) ? "pending" :
			"no_worker";
	return parked ? "waiting" : "idle";
}

/*
 * The state of a subscription's workers, and the pid of one, if there is any:
 * preferably of one that delivers. NULL: there is none.
 */
static const char *
worker_of(int32 subscription_id, int *pid)
{
	const char *state = NULL;
	TimestampTz now = cqrs_steady_now();
	int			i;

	if (cqrs_shared == NULL)
		return state;
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state < CQRS_WORKER_STARTING ||
			worker->dboid != MyDatabaseId ||
			worker->subscription_id != subscription_id)
			continue;
		*pid = worker->pid;
		state = worker->failed_until > now || worker->retry_at > now ?
			"waiting" : "idle";
		if (worker->state != CQRS_WORKER_IDLE)
		{
			state = "delivering";
			break;
		}
	}
	LWLockRelease(cqrs_shared->lock);
	return state;
}
