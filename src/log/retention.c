/*-------------------------------------------------------------------------
 *
 * retention.c
 *	  What keeps a segment from being truncated, and for how long it may.
 *
 * A segment is kept
 *
 * 1. for the topic's retention, counted from when the next segment became
 *	  the current one;
 * 2. if the topic was restored from a dump and has no subscription, until it
 *	  is adopted: its subscriptions may be yet to be restored;
 * 3. for each subscription of the topic that is not suspended, until nothing
 *	  in it is beyond any of its cursors. A cursor that was restored says
 *	  nothing of this cluster's transactions: it holds everything, until it
 *	  is adopted. After that, rows that were restored are nobody's.
 *
 * Whether a row is beyond a cursor is told by its visibility and the cursor's
 * snapshot: nothing is remembered, nothing goes by time or position. Rows of
 * aborted transactions hold nothing. Events parked for a retry, and dead ones,
 * are copies of their own.
 *
 * What a subscription may keep is bounded. Past max_retained_size (of the
 * segments that it holds) or max_retained_age (of its oldest event) it is
 * suspended: it holds nothing any more. What is then truncated that its
 * cursors had not reached is counted, exactly, in missed_events.
 *
 * Counting
 *
 * The count takes a walk over the segment, which nobody should have to wait
 * for. So it is done before the segment is locked, up to a snapshot; under the
 * lock, only what became visible after that is added. If a cursor, or which
 * subscriptions are suspended, has changed in between, the truncation is left
 * for another time.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "base/debug_point.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/retention.h"
#include "log/segment.h"
#include "log/window_scan.h"
#include "registry/registry.h"
#include "shared/clock.h"

/* Events of one partition of a suspended subscription. */
typedef struct MissedPartition
{
	const CqrsSubscription *subscription;
	int			partition;
	int64		seq;			/* of the cursor that was counted from */
	int64		events;
} MissedPartition;

struct CqrsMissed
{
	int			segment;
	CqrsSnapshot *upper;		/* counted up to here */
	int			nparts;
	MissedPartition *parts;		/* by subscription */
};

/* What a subscription keeps. */
typedef struct Kept
{
	int64		bytes;
	TimestampTz oldest;			/* DT_NOEND: nothing */
} Kept;

static void find_hold(const CqrsTopic *topic, int segment,
					  List *subscriptions, Snapshot snapshot, CqrsHold *hold);
static bool record_missed(CqrsMissed *missed, const CqrsTopic *topic,
						  List *subscriptions, Snapshot snapshot);
static void list_suspended(List *subscriptions, CqrsMissed *missed);
static int64 count_events(const CqrsTopic *topic, int segment,
						  const MissedPartition *part,
						  const CqrsCursor *cursor, const CqrsSnapshot *upper,
						  Snapshot snapshot);
static bool may_be_past_limit(const CqrsSubscription *subscription,
							  CqrsSegmentBytes bytes_of, TimestampTz now);
static void what_is_kept(const CqrsSubscription *subscription,
						 CqrsSegmentBytes bytes_of, Snapshot snapshot, Kept *kept);
static bool is_kept(const CqrsSubscription *subscription,
					const CqrsTopic *topic, int segment, Snapshot snapshot,
					TimestampTz *oldest);
static bool suspend(const CqrsSubscription *subscription, const char *reason);

/*
 * Find what holds a segment that is not the current one, as far as can be told
 * without locking it. now is the current time.
 */
void
cqrs_segment_hold(const CqrsTopic *topic, int segment, TimestampTz now,
				  CqrsHold *hold)
{
	Snapshot	snapshot;

	cqrs_retention_hold(topic, segment, now, hold);
	if (hold->holder != CQRS_HELD_BY_NOTHING)
		return;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	find_hold(topic, segment, cqrs_registry_subscription_list(topic), snapshot,
			  hold);
	UnregisterSnapshot(snapshot);
	if (hold->holder == CQRS_HELD_BY_NOTHING &&
		cqrs_table_in_use(topic->segments[segment], &hold->pid))
		hold->holder = CQRS_HELD_BY_LOCK;
}

/*
 * Does the topic's retention hold a segment that is not the current one?
 */
void
cqrs_retention_hold(const CqrsTopic *topic, int segment, TimestampTz now,
					CqrsHold *hold)
{
	memset(hold, 0, sizeof(*hold));

	/* A segment written out of turn, by hand, is as old as the current one. */
	hold->since = topic->opened_at[(segment + 1) % CQRS_SEGMENTS];
	if (hold->since == 0)
		hold->since = topic->opened_at[topic->current_segment];
	hold->until = TimestampTzPlusMilliseconds(hold->since, topic->retention);
	if (hold->until > now)
		hold->holder = CQRS_HELD_BY_RETENTION;
}

/*
 * Find the subscription that holds a segment, with the locks that rotation.c
 * lists. If there is none, record what is missed; missed is what
 * cqrs_missed_count() returned.
 *
 * Both go by the same list: a subscription that was suspended at the first
 * step and resumed before the second would be neither waited for nor told.
 */
void
cqrs_subscription_hold(const CqrsTopic *topic, int segment,
					   CqrsMissed *missed, Snapshot snapshot, CqrsHold *hold)
{
	List	   *subscriptions = cqrs_registry_subscription_list(topic);

	find_hold(topic, segment, subscriptions, snapshot, hold);
	if (hold->holder == CQRS_HELD_BY_NOTHING &&
		!record_missed(missed, topic, subscriptions, snapshot))
		hold->holder = CQRS_HELD_BY_CHANGE;
}

/*
 * Find one of the subscriptions that is not suspended and has not got all that
 * the snapshot shows of a segment.
 */
static void
find_hold(const CqrsTopic *topic, int segment, List *subscriptions,
		  Snapshot snapshot, CqrsHold *hold)
{
	ListCell   *lc;

	memset(hold, 0, sizeof(*hold));
	if (!topic->native && subscriptions == NIL)
		hold->holder = CQRS_HELD_BY_RESTORE;
	foreach(lc, subscriptions)
	{
		const CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);
		int			i;

		if (subscription->state == CQRS_SUBSCRIPTION_SUSPENDED)
		{
			CQRS_DEBUG_POINT("truncate_past_suspended");
			continue;
		}
		for (i = 0; i < subscription->partitions; i++)
		{
			CqrsCursor	cursor;
			TimestampTz emitted_at;

			/* Without a cursor: it is being removed, or restored. */
			if (cqrs_cursor_read(subscription->subscription_id, i, snapshot,
								 &cursor) &&
				cursor.native &&
				!cqrs_window_segment_has_events(topic, segment,
												cursor.snapshot, snapshot,
												&emitted_at))
				continue;
			hold->holder = CQRS_HELD_BY_SUBSCRIPTION;
			strlcpy(hold->subscription, subscription->name, NAMEDATALEN);
			hold->since = cursor.moved_at;
			return;
		}
	}
}

/*
 * A hold in a word, for a view; NULL if there is none.
 */
const char *
cqrs_hold_word(const CqrsHold *hold)
{
	switch (hold->holder)
	{
		case CQRS_HELD_BY_NOTHING:
			return NULL;
		case CQRS_HELD_BY_RETENTION:
			return "retention";
		case CQRS_HELD_BY_RESTORE:
			return "restore";
		case CQRS_HELD_BY_SUBSCRIPTION:
			return "subscription";
		case CQRS_HELD_BY_LOCK:
			return hold->pid == 0 ? "prepared_transaction" : "lock";
		case CQRS_HELD_BY_CHANGE:
			return "change";
	}
	return NULL;
}

/*
 * A hold in words; NULL if there is none.
 */
char *
cqrs_hold_describe(const CqrsHold *hold)
{
	switch (hold->holder)
	{
		case CQRS_HELD_BY_NOTHING:
			return NULL;
		case CQRS_HELD_BY_RETENTION:
			return "retention";
		case CQRS_HELD_BY_RESTORE:
			return "restore";
		case CQRS_HELD_BY_SUBSCRIPTION:
			return psprintf("subscription \"%s\"", hold->subscription);
		case CQRS_HELD_BY_LOCK:
			if (hold->pid == 0)
				return "lock of a prepared transaction";
			return psprintf("lock of pid %d", hold->pid);
		case CQRS_HELD_BY_CHANGE:
			return "change of the topic or its subscriptions";
	}
	return NULL;
}

/*
 * Count the events in a segment that suspended subscriptions have not got.
 * Returns NULL if none is suspended. Walks over the segment for each partition
 * of each, so call it before the segment is locked.
 */
CqrsMissed *
cqrs_missed_count(const CqrsTopic *topic, int segment)
{
	CqrsMissed *missed = palloc0(sizeof(CqrsMissed));
	Snapshot	snapshot;
	int			i;

	missed->segment = segment;
	list_suspended(cqrs_registry_subscription_list(topic), missed);
	if (missed->nparts == 0)
		return NULL;

	/* In this order, the snapshot shows all that upper does. */
	missed->upper = cqrs_snapshot_take();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < missed->nparts; i++)
	{
		MissedPartition *part = &missed->parts[i];
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(part->subscription->subscription_id, part->partition,
							  snapshot, &cursor))
			continue;
		part->seq = cursor.seq;
		part->events = count_events(topic, segment, part, &cursor,
									missed->upper, snapshot);
	}
	UnregisterSnapshot(snapshot);
	return missed;
}

/*
 * Lock the subscriptions' rows, in which the count is to be recorded: resuming
 * one locks it too, and reports what is written there. Returns false if that
 * is not possible at once, or one is not suspended any more.
 */
bool
cqrs_missed_lock(CqrsMissed *missed)
{
	CqrsAdmin	admin;
	bool		locked = true;
	int			i;

	if (!ConditionalLockRelationOid(cqrs_relation_oid(CQRS_REL_SUBSCRIPTION),
									RowExclusiveLock))
		return false;
	cqrs_admin_begin(&admin);
	for (i = 0; locked && i < missed->nparts; i++)
	{
		if (missed->parts[i].partition != 0)
			continue;
		locked = cqrs_admin_execute("SELECT FROM cqrs.subscription"
									" WHERE subscription_id = $1 AND state = 'suspended'"
									" FOR NO KEY UPDATE SKIP LOCKED",
									1,
									CQRS_INT4(missed->parts[i].subscription->subscription_id)) > 0;
	}
	cqrs_admin_end(&admin);
	return locked;
}

/*
 * Add to the count what the snapshot, taken with the segment locked, shows in
 * addition, and record it. missed may be NULL. Returns false, with nothing
 * recorded, if the count is not right any more.
 */
static bool
record_missed(CqrsMissed *missed, const CqrsTopic *topic,
			  List *subscriptions, Snapshot snapshot)
{
	CqrsMissed	now = {0};
	CqrsAdmin	admin;
	int			i;

	list_suspended(subscriptions, &now);
	if (now.nparts != (missed ? missed->nparts : 0))
		return false;
	for (i = 0; i < now.nparts; i++)
	{
		MissedPartition *part = &missed->parts[i];
		CqrsCursor	cursor;

		if (part->subscription->subscription_id !=
			now.parts[i].subscription->subscription_id ||
			!cqrs_cursor_read(part->subscription->subscription_id, part->partition,
							  snapshot, &cursor) ||
			cursor.seq != part->seq)
			return false;
		if (cursor.native)
			part->events += cqrs_window_segment_count(topic, missed->segment,
													  missed->upper, NULL, 0,
													  &cursor,
													  part->subscription->partitions,
													  snapshot);
	}
	if (now.nparts == 0)
		return true;

	cqrs_admin_begin(&admin);
	for (i = 0; i < missed->nparts; i++)
	{
		if (missed->parts[i].events == 0)
			continue;
		cqrs_admin_execute("UPDATE cqrs.subscription SET missed_events = missed_events + $2"
						   " WHERE subscription_id = $1",
						   2,
						   CQRS_INT4(missed->parts[i].subscription->subscription_id),
						   CQRS_INT8(missed->parts[i].events));
	}
	cqrs_admin_end(&admin);
	return true;
}

/*
 * Suspend the subscriptions of a topic (NULL: all) that keep more than they
 * may. What is cheap to know is looked at first: a subscription costs more than
 * a glance only if everything in its topics is more than it may keep. Those
 * with ids in except are passed by; *current, if it is given, has the id of the
 * one that an error is about. Returns their names.
 */
List *
cqrs_limits_apply(const CqrsTopic *topic, CqrsSegmentBytes bytes_of,
				  List *except, int32 *current)
{
	TimestampTz now = cqrs_wall_now();
	List	   *suspended = NIL;
	ListCell   *lc;

	foreach(lc, cqrs_registry_subscription_list(topic))
	{
		const CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);
		Snapshot	snapshot;
		Kept		kept;
		char	   *reason;

		if (subscription->state == CQRS_SUBSCRIPTION_SUSPENDED ||
			list_member_int(except, subscription->subscription_id) ||
			!may_be_past_limit(subscription, bytes_of, now))
			continue;
		if (current != NULL)
			*current = subscription->subscription_id;
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		what_is_kept(subscription, bytes_of, snapshot, &kept);
		UnregisterSnapshot(snapshot);

		if (subscription->max_retained_size > 0 &&
			kept.bytes > subscription->max_retained_size)
			reason = psprintf("it keeps " INT64_FORMAT " bytes of events, more than max_retained_size ("
							  INT64_FORMAT ")",
							  kept.bytes, subscription->max_retained_size);
		else if (subscription->max_retained_age > 0 &&
				 kept.oldest < now -
				 subscription->max_retained_age * INT64CONST(1000))
			reason = psprintf("it keeps an event of %.3f s ago, more than max_retained_age (%.3f s)",
							  (now - kept.oldest) / (double) USECS_PER_SEC,
							  subscription->max_retained_age / 1000.0);
		else
			continue;
		if (suspend(subscription, reason))
			suspended = lappend(suspended, pstrdup(subscription->name));
	}
	if (current != NULL)
		*current = 0;
	return suspended;
}

/*
 * The partitions of those of the subscriptions that are suspended.
 */
static void
list_suspended(List *subscriptions, CqrsMissed *missed)
{
	ListCell   *lc;
	int			nparts = 0;

	foreach(lc, subscriptions)
	{
		const CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);

		if (subscription->state == CQRS_SUBSCRIPTION_SUSPENDED)
			nparts += subscription->partitions;
	}
	if (nparts == 0)
		return;

	missed->parts = palloc0(sizeof(MissedPartition) * nparts);
	foreach(lc, subscriptions)
	{
		const CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);
		int			i;

		if (subscription->state != CQRS_SUBSCRIPTION_SUSPENDED)
			continue;

		for (i = 0; i < subscription->partitions; i++)
		{
			MissedPartition *part = &missed->parts[missed->nparts++];

			part->subscription = subscription;
			part->partition = i;
		}
	}
}

/*
 * How many events of a partition in a segment are beyond its cursor, up to a
 * snapshot. For a restored cursor, none that are known.
 */
static int64
count_events(const CqrsTopic *topic, int segment, const MissedPartition *part,
			 const CqrsCursor *cursor, const CqrsSnapshot *upper,
			 Snapshot snapshot)
{
	const CqrsSnapshot *lower = cursor->snapshot;
	int64		events = 0;

	if (!cursor->native)
		return 0;
	if (cursor->until_tick != 0)
	{
		events = cqrs_window_segment_count(topic, segment, lower,
										   cursor->until_snapshot,
										   cursor->position, cursor,
										   part->subscription->partitions,
										   snapshot);
		lower = cursor->until_snapshot;
	}
	return events + cqrs_window_segment_count(topic, segment, lower, upper, 0,
											  cursor, part->subscription->partitions,
											  snapshot);
}

/*
 * Could the subscription be past a limit, given all that is in its topics?
 */
static bool
may_be_past_limit(const CqrsSubscription *subscription, CqrsSegmentBytes bytes_of,
				  TimestampTz now)
{
	int64		max_size = subscription->max_retained_size;
	int64		max_age = subscription->max_retained_age;
	int64		bytes = 0;
	bool		old = false;
	int			i;
	int			j;

	if (max_size == 0 && max_age == 0)
		return false;
	for (i = 0; i < subscription->ntopics; i++)
	{
		const CqrsTopic *topic = subscription->topics[i];

		for (j = 0; j < CQRS_SEGMENTS; j++)
		{
			int64		segment_bytes = bytes_of(topic, j);

			bytes += segment_bytes;
			if (segment_bytes > 0 &&
				topic->opened_at[j] < now - max_age * INT64CONST(1000))
				old = true;
		}
	}
	return (max_size > 0 && bytes > max_size) || (max_age > 0 && old);
}

/*
 * Find what the subscription keeps from being truncated. A topic that cannot
 * be looked at just now is left out.
 */
static void
what_is_kept(const CqrsSubscription *subscription, CqrsSegmentBytes bytes_of,
			 Snapshot snapshot, Kept *kept)
{
	int			i;
	int			j;

	kept->bytes = 0;
	kept->oldest = DT_NOEND;
	for (i = 0; i < subscription->ntopics; i++)
	{
		const CqrsTopic *topic = subscription->topics[i];
		List	   *parts;

		if (!cqrs_segments_lock(topic))
			continue;
		if (!cqrs_segments_lock_parts(topic, &parts))
		{
			cqrs_segments_unlock(topic);
			continue;
		}
		for (j = 0; j < CQRS_SEGMENTS; j++)
		{
			int64		bytes = bytes_of(topic, j);

			if (bytes > 0 &&
				is_kept(subscription, topic, j, snapshot, &kept->oldest))
				kept->bytes += bytes;
		}
		cqrs_segments_unlock_parts(parts);
		cqrs_segments_unlock(topic);
	}
}

/*
 * Does the subscription keep this segment? Lowers *oldest to when the first
 * event that it has not got was emitted. What it keeps because its cursor is
 * restored and not adopted does not count.
 */
static bool
is_kept(const CqrsSubscription *subscription, const CqrsTopic *topic,
		int segment, Snapshot snapshot, TimestampTz *oldest)
{
	bool		kept = false;
	int			i;

	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;
		TimestampTz emitted_at;

		if (cqrs_cursor_read(subscription->subscription_id, i, snapshot,
							 &cursor) &&
			cursor.native &&
			cqrs_window_segment_has_events(topic, segment, cursor.snapshot,
										   snapshot, &emitted_at))
		{
			kept = true;
			*oldest = Min(*oldest, emitted_at);
		}
	}
	return kept;
}

/*
 * Suspend a subscription, and say so. Returns false if somebody else is
 * changing it just now.
 */
static bool
suspend(const CqrsSubscription *subscription, const char *reason)
{
	bool		done;

	if (!ConditionalLockRelationOid(cqrs_relation_oid(CQRS_REL_SUBSCRIPTION),
									RowExclusiveLock))
		return false;
	done = cqrs_admin_run("UPDATE cqrs.subscription s"
						  " SET state = 'suspended', state_since = pg_catalog.clock_timestamp(), state_reason = $2"
						  " FROM (SELECT subscription_id FROM cqrs.subscription"
						  "		  WHERE subscription_id = $1 AND state <> 'suspended'"
						  "		  FOR NO KEY UPDATE SKIP LOCKED) l"
						  " WHERE s.subscription_id = l.subscription_id",
						  2, CQRS_INT4(subscription->subscription_id),
						  CQRS_TEXT(reason)) > 0;
	if (done)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("subscription \"%s\" is suspended: %s",
						subscription->name, reason),
				 errdetail("Its events are kept for it no longer."),
				 errhint("Find out why it is behind, and have it go on with cqrs_resume().")));
	return done;
}
