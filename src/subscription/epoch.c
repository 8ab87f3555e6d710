/*-------------------------------------------------------------------------
 *
 * epoch.c
 *	  Changes of how many partitions a subscription has, or of its ordering,
 *	  while it is delivered.
 *
 * Which partition an event is in depends on how many there are, and on the
 * ordering; so does its lane on that. So there must be one place in the log, the
 * same for all cursors, up to which the old ones count and behind which the new
 * ones do: a snapshot, E. What it shows belongs to the old epoch.
 *
 * Protocol
 *
 * 1. Opening: under the locks of all cursors, E is taken, and written to the
 *	  subscription's row together with what is new. No cursor is beyond E:
 *	  whoever moved one had its lock, and took the snapshots, before.
 * 2. While it is open, no window goes beyond E (cqrs_epoch_limit): the old
 *	  cursors come to E, and stay there. A cursor's arrival there is written
 *	  down.
 * 3. Closing: when all are there, with nothing handed out under a lease, one
 *	  transaction that has all their locks replaces them by the new ones, which
 *	  start at E, and moves what is parked to the new cursors. A lane is parked
 *	  as a whole, in one partition before and in one afterwards: so its order
 *	  is kept. With another ordering, what is parked is in other lanes: what
 *	  follows in such a lane waits for all of it. Dead letters belong to no partition.
 * 4. Whoever moves a cursor looks up the number of partitions under its lock,
 *	  and finds the ordering in the cursor,
 *	  and can be sure of it as long as the lock is held. A partition that is gone
 *	  has no cursor, so there is nothing to move. Code that looks without locks
 *	  counts the cursors that its snapshot shows (cqrs_cursor_partitions).
 * 5. The new cursors' seqs go on behind the highest of all old ones. So a
 *	  remembered seq never matches another cursor, however often partitions
 *	  come and go.
 *
 * A further change while an epoch is open only changes what is new; if that is
 * what there is, the change ends: the old cursors just go on. A seek moves
 * all cursors in any case, and so need not wait until they are at E.
 *
 * Who closes: the manager or, where there is none, cqrs_drain(), or a
 * cqrs_receive() that finds nothing. None of them waits for a lock.
 *
 * Durability: E need not be a tick. What leaves the database is delivered up to
 * E only once there is a tick with a higher id: that shows all that E does.
 *
 * Truncation reads the cursors under the topic's lock, which closing takes, too:
 * it sees all the old ones, or all the new ones.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "base/debug_point.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "subscription/epoch.h"
#include "subscription/receipt.h"
#include "subscription/subscription.h"

static bool has_arrived(const CqrsSubscription *subscription,
						const CqrsCursor *cursor);
static bool all_arrived(const CqrsSubscription *subscription);
static bool lock_tables(void);
static bool lock_cursors(const CqrsSubscription *subscription);
static void unlock_cursors(const CqrsSubscription *subscription, int n);
static bool lock_rest(const CqrsSubscription *subscription);
static void replace_cursors(const CqrsSubscription *subscription,
							const CqrsCursor *old);
static void move_parked(const CqrsSubscription *subscription,
						CqrsCursor *cursors);

PG_FUNCTION_INFO_V1(cqrs_event_lane_of);
PG_FUNCTION_INFO_V1(cqrs_event_partition_of);

/*
 * cqrs.event_lane(topic_id, event_id, key, by_topic)
 */
Datum
cqrs_event_lane_of(PG_FUNCTION_ARGS)
{
	CqrsTopic	topic;
	CqrsEvent	event = {.topic = &topic};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(3))
		PG_RETURN_NULL();
	topic.topic_id = PG_GETARG_INT32(0);
	event.event_id = PG_GETARG_DATUM(1);
	event.key = fcinfo->args[2];
	PG_RETURN_INT64((int64) cqrs_event_lane(&event, PG_GETARG_BOOL(3)));
}

/*
 * cqrs.event_partition(topic_id, event_id, key, by_topic, partitions)
 */
Datum
cqrs_event_partition_of(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(3) ||
		PG_ARGISNULL(4))
		PG_RETURN_NULL();
	if (PG_GETARG_INT32(4) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partitions must be at least 1")));
	PG_RETURN_INT32(cqrs_event_partition(PG_GETARG_INT32(0),
										 PG_GETARG_DATUM(1), fcinfo->args[2],
										 PG_GETARG_BOOL(3),
										 PG_GETARG_INT32(4)));
}

/*
 * Raises 22023 if a subscription cannot have this many partitions.
 */
void
cqrs_epoch_check_partitions(const char *subscription, int partitions)
{
	if (partitions < 1 || partitions > CQRS_MAX_PARTITIONS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have %d partitions",
						subscription, partitions),
				 errhint("Valid are 1 to %d.", CQRS_MAX_PARTITIONS)));
}

/*
 * Begin to change the number of the subscription's partitions, or its ordering;
 * NULL leaves it as it is, or is to be. Waits for the batches being delivered; the
 * caller then wakes whoever delivers. Raises 22023.
 */
void
cqrs_epoch_open(CqrsSubscription *subscription, const int *partitions,
				const bool *by_topic)
{
	int			next_partitions;
	bool		next_by_topic;
	bool		open;
	bool		back;
	CqrsSnapshot *snapshot;
	int64		tick_id;

	if (partitions != NULL)
		cqrs_epoch_check_partitions(subscription->name, *partitions);
	if (subscription->next_partitions == 0 &&
		(partitions == NULL || *partitions == subscription->partitions) &&
		(by_topic == NULL || *by_topic == subscription->by_topic))
		return;

	subscription = cqrs_subscription_lock_all(subscription);
	open = subscription->next_partitions != 0;
	next_partitions = partitions != NULL ? *partitions :
		open ? subscription->next_partitions : subscription->partitions;
	next_by_topic = by_topic != NULL ? *by_topic :
		open ? subscription->next_by_topic : subscription->by_topic;
	back = next_partitions == subscription->partitions &&
		next_by_topic == subscription->by_topic;
	tick_id = subscription->epoch_tick;
	snapshot = subscription->epoch_snapshot;
	if (!back && !open)
	{
		/* The order matters: see tick.c. */
		snapshot = cqrs_snapshot_take();
		tick_id = cqrs_tick_next_id();
	}
	CQRS_DEBUG_POINT("epoch_open");
	(void) cqrs_admin_run("UPDATE cqrs.subscription"
						  " SET next_partitions = $2, next_ordering = $3, epoch_tick = $4, epoch_snapshot = $5,"
						  " epoch_since = CASE WHEN $2 IS NOT NULL THEN coalesce(epoch_since, pg_catalog.clock_timestamp()) END"
						  " WHERE subscription_id = $1",
						  5, CQRS_INT4(subscription->subscription_id),
						  CQRS_NULLABLE(INT4OID, Int32GetDatum(next_partitions), back),
						  CQRS_NULLABLE(TEXTOID, CStringGetTextDatum(next_by_topic ? "topic" : "key"), back),
						  CQRS_NULLABLE(INT8OID, Int64GetDatum(tick_id), back),
						  CQRS_NULLABLE(PG_SNAPSHOTOID, PointerGetDatum(snapshot), back));
}

/*
 * While an epoch is open, windows end at E at the latest. Returns whether one
 * may end at this tick, which is moved to E if it is later. A tick with a
 * lower id than E may still have a later snapshot, if its id was drawn before:
 * no window ends at such a tick.
 */
bool
cqrs_epoch_limit(const CqrsSubscription *subscription, CqrsTick *tick)
{
	if (subscription->next_partitions == 0)
		return true;
	if (tick->tick_id < subscription->epoch_tick)
		return cqrs_snapshot_within(tick->snapshot,
									subscription->epoch_snapshot);
	tick->tick_id = subscription->epoch_tick;
	tick->snapshot = subscription->epoch_snapshot;
	return true;
}

/*
 * Close the subscription's epoch, if one is open and all cursors are at its
 * end. Waits for nobody; if it cannot be done now, the attempt leaves no
 * cursor locked. Returns whether it was done; the change counts from the
 * commit on.
 *
 * A transaction that keeps its snapshot cannot do this: the snapshot may be
 * too old to change the tables with.
 */
bool
cqrs_epoch_close(int32 subscription_id)
{
	CqrsSubscription *subscription = cqrs_registry_subscription_by_id(subscription_id);
	CqrsSubscription *now;
	ListCell   *lc;

	if (subscription == NULL || subscription->next_partitions == 0 ||
		IsolationUsesXactSnapshot() || cqrs_registry_is_copy())
		return false;

	/* This transaction has yet to settle what it was handed. */
	foreach(lc, cqrs_received_list(subscription_id))
		if (((CqrsReceived *) lfirst(lc))->partition >= 0)
		return false;

	if (!lock_tables() || !all_arrived(subscription) ||
		!lock_cursors(subscription))
		return false;
	CQRS_DEBUG_POINT("epoch_close");
	now = cqrs_registry_subscription_by_id(subscription_id);
	if (now == NULL || now->partitions != subscription->partitions ||
		now->next_partitions == 0 || !all_arrived(now) || !lock_rest(now))
	{
		unlock_cursors(subscription, subscription->partitions);
		return false;
	}
	replace_cursors(now, cqrs_cursor_read_all(now->subscription_id,
											  now->partitions));
	return true;
}

/*
 * End an open epoch, if there is one, here and now; the caller, who has the
 * locks of the cursors and of the topics, is about to move all cursors. What is
 * parked is forgotten. Returns the subscription as it is then, with the locks
 * of its new cursors held.
 */
CqrsSubscription *
cqrs_epoch_abandon(CqrsSubscription *subscription)
{
	CqrsCursor *cursors;
	int			i;

	if (subscription->next_partitions == 0)
		return subscription;
	cursors = cqrs_cursor_read_all(subscription->subscription_id,
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
		cqrs_parked_discard_all(&cursors[i]);
	replace_cursors(subscription, cursors);
	return cqrs_subscription_lock_all(subscription);
}

/*
 * The subscription's cursors are adopted from another cluster, or another time:
 * an epoch that was open there ends with what is committed here and now. The
 * caller has the locks of the cursors.
 */
void
cqrs_epoch_restart(int32 subscription_id)
{
	CqrsSnapshot *snapshot = cqrs_snapshot_take();
	int64		tick_id = cqrs_tick_next_id();

	(void) cqrs_admin_run("UPDATE cqrs.subscription SET epoch_snapshot = $2, epoch_tick = $3"
						  " WHERE subscription_id = $1 AND next_partitions IS NOT NULL",
						  3, CQRS_INT4(subscription_id),
						  CQRS_ARG(PG_SNAPSHOTOID, PointerGetDatum(snapshot)),
						  CQRS_INT8(tick_id));
}

/*
 * Is nothing of the old epoch left for this cursor, and nothing handed out, or on
 * its way in a broker's transaction?
 */
static bool
has_arrived(const CqrsSubscription *subscription, const CqrsCursor *cursor)
{
	return cursor->native && cursor->until_tick == 0 &&
		cursor->tick_id == subscription->epoch_tick &&
		!cursor->sent.intent.given &&
		cursor->leased_until <= cqrs_wall_now();
}

static bool
all_arrived(const CqrsSubscription *subscription)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		arrived = true;
	int			i;

	for (i = 0; arrived && i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;

		arrived = cqrs_cursor_read(subscription->subscription_id, i, snapshot,
								   &cursor) &&
			has_arrived(subscription, &cursor);
	}
	UnregisterSnapshot(snapshot);
	return arrived;
}

/*
 * Lock the tables that closing changes, if they can be had at once.
 */
static bool
lock_tables(void)
{
	static const CqrsRelation tables[] = {
		CQRS_REL_SUBSCRIPTION, CQRS_REL_CURSOR, CQRS_REL_FAILURE, CQRS_REL_RETRY
	};
	int			i;

	for (i = 0; i < lengthof(tables); i++)
		if (!ConditionalLockRelationOid(cqrs_relation_oid(tables[i]),
										RowExclusiveLock))
			return false;
	return true;
}

/*
 * Lock the cursors, if they can be had at once, or none of them.
 */
static bool
lock_cursors(const CqrsSubscription *subscription)
{
	int			i;

	for (i = 0; i < subscription->partitions; i++)
		if (!cqrs_object_lock(CQRS_REL_SUBSCRIPTION,
							  subscription->subscription_id, i, ExclusiveLock,
							  false))
		{
			unlock_cursors(subscription, i);
			return false;
		}
	return true;
}

static void
unlock_cursors(const CqrsSubscription *subscription, int n)
{
	int			i;

	for (i = 0; i < n; i++)
		cqrs_object_unlock(CQRS_REL_SUBSCRIPTION,
						   subscription->subscription_id, i, ExclusiveLock);
}

/*
 * Keep the topics from being truncated, and the subscription's row from being
 * changed, if both can be had at once.
 */
static bool
lock_rest(const CqrsSubscription *subscription)
{
	bool		locked;
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		if (!cqrs_object_lock(CQRS_REL_TOPIC,
							  subscription->topics[i]->topic_id, 0, ShareLock,
							  false))
			return false;
	locked = cqrs_admin_run("SELECT FROM cqrs.subscription WHERE subscription_id = $1"
							" FOR NO KEY UPDATE SKIP LOCKED",
							1, CQRS_INT4(subscription->subscription_id)) > 0;
	return locked;
}

/*
 * Replace the old cursors by the new ones, which start at the epoch's end; the
 * new number of partitions counts from now on. All locks are held.
 */
static void
replace_cursors(const CqrsSubscription *subscription, const CqrsCursor *old)
{
	CqrsAdmin	admin;
	CqrsCursor *cursors = palloc0(sizeof(CqrsCursor) *
								  subscription->next_partitions);
	CqrsCursor	first = {.native = true};
	int			i;

	first.subscription_id = subscription->subscription_id;
	first.tick_id = subscription->epoch_tick;
	first.snapshot = subscription->epoch_snapshot;
	first.by_topic = subscription->next_by_topic;
	for (i = 0; i < subscription->partitions; i++)
	{
		first.seq = Max(first.seq, old[i].seq);
		first.last_position = Max(first.last_position, old[i].last_position);
		first.native &= old[i].native;
		first.sent.resent_at = Max(first.sent.resent_at, old[i].sent.resent_at);
	}
	for (i = 0; i < subscription->next_partitions; i++)
	{
		cursors[i] = first;
		cursors[i].partition = i;
		if (subscription->exactly_once)
			cqrs_cursor_draw_producer(&cursors[i]);
	}
	cqrs_cursor_delete_all(subscription->subscription_id);

	cqrs_admin_begin(&admin);
	(void) cqrs_admin_execute("DELETE FROM cqrs.failure WHERE subscription_id = $1 AND partition >= $2",
							  2, CQRS_INT4(subscription->subscription_id),
							  CQRS_INT4(subscription->next_partitions));
	(void) cqrs_admin_execute("UPDATE cqrs.subscription"
							  " SET partitions = $2, next_partitions = NULL,"
							  " ordering = next_ordering, next_ordering = NULL,"
							  " epoch_tick = NULL, epoch_snapshot = NULL, epoch_since = NULL"
							  " WHERE subscription_id = $1",
							  2, CQRS_INT4(subscription->subscription_id),
							  CQRS_INT4(subscription->next_partitions));
	move_parked(subscription, cursors);
	cqrs_admin_end(&admin);
	for (i = 0; i < subscription->next_partitions; i++)
		cqrs_cursor_append(&cursors[i]);
	cqrs_subscription_wake(subscription);
}

/*
 * Move what is parked to the new cursors, and to new lanes if the ordering is
 * another. It is not handed out any more.
 */
static void
move_parked(const CqrsSubscription *subscription, CqrsCursor *cursors)
{
	bool		isnull;
	uint64		i;

	(void) cqrs_admin_execute("UPDATE cqrs.retry"
							  " SET partition = cqrs.event_partition(topic_id, event_id, key, $2, $3), receipt = NULL"
							  " WHERE subscription_id = $1"
							  " AND (partition <> cqrs.event_partition(topic_id, event_id, key, $2, $3) OR receipt IS NOT NULL)",
							  3, CQRS_INT4(subscription->subscription_id),
							  CQRS_BOOL(subscription->next_by_topic),
							  CQRS_INT4(subscription->next_partitions));
	if (subscription->next_by_topic != subscription->by_topic)
		(void) cqrs_admin_execute("UPDATE cqrs.retry r SET lane = n.lane, due_at = CASE"
								  " WHEN n.head AND r.failed_at IS NULL THEN least(r.retry_at, pg_catalog.clock_timestamp())"
								  " WHEN n.head THEN r.retry_at END"
								  " FROM (SELECT partition, position, lane,"
								  " pg_catalog.row_number() OVER (PARTITION BY lane ORDER BY position) = 1 AS head"
								  " FROM (SELECT partition, position, cqrs.event_lane(topic_id, event_id, key, $2) AS lane"
								  " FROM cqrs.retry WHERE subscription_id = $1) e) n"
								  " WHERE r.subscription_id = $1 AND r.partition = n.partition AND r.position = n.position",
								  2, CQRS_INT4(subscription->subscription_id),
								  CQRS_BOOL(subscription->next_by_topic));
	(void) cqrs_admin_execute("SELECT partition, pg_catalog.min(due_at) FROM cqrs.retry"
							  " WHERE subscription_id = $1 AND due_at IS NOT NULL GROUP BY partition",
							  1, CQRS_INT4(subscription->subscription_id));
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		int			partition = DatumGetInt32(SPI_getbinval(row, desc, 1,
															&isnull));

		cursors[partition].next_retry_at =
			DatumGetTimestampTz(SPI_getbinval(row, desc, 2, &isnull));
	}
}
