/*-------------------------------------------------------------------------
 *
 * rotation.c
 *	  Goes on to a topic's next segment, and truncates those before.
 *
 * Protocol
 *
 * 1. A topic goes on to its next segment if that is empty, and the current one
 *	  is not, and is large or old enough; but not before half the retention
 *	  has passed, so that three segments are enough for it. An emitter may
 *	  have a stale idea of which segment is the current one. That is harmless:
 *	  readers read all segments, and a truncation looks at what is there.
 * 2. A segment other than the current one is truncated when nothing holds it
 *	  (see retention.c). First we look at this without locks. Then, in this
 *	  order, with no lock waited for:
 *	  a) the topic's lock, which subscribing and seeking take, too: we see
 *		 every cursor that there is or is about to be; and the rows of
 *		 suspended subscriptions: none of them is being resumed;
 *	  b) the segment's lock (see segment.c): every transaction that wrote to it
 *		 has ended;
 *	  c) a snapshot, which therefore shows all of these cursors and events.
 *		 With it, we look again whether anything holds the segment. A snapshot
 *		 from before (a) or (b) would miss a cursor, or an event, and lose the
 *		 event.
 *	  d) TRUNCATE, and commit.
 *
 * TRUNCATE is not MVCC-safe: a transaction with an older snapshot, if it has
 * not read the segment yet (else its lock holds us off), finds it empty. It
 * misses only what every subscription had got: cqrs_receive() and the workers
 * read cursors and events with the latest snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/debug_point.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/rotation.h"
#include "log/segment.h"
#include "registry/registry.h"
#include "shared/clock.h"

static bool truncate_segment(int32 topic_id, int segment, CqrsHold *hold);
static bool rotate_topic(const CqrsTopic *topic);
static void note_set_back(const CqrsTopic *topic, TimestampTz now);

/*
 * Do one step in a topic, if there is one to do: truncate a segment, or rotate.
 * Locks stay until the end of the transaction only if something was done, or a
 * truncation was given up late. The topic may be gone afterwards.
 */
void
cqrs_topic_step(CqrsTopic *topic, CqrsStep *step)
{
	int32		topic_id = topic->topic_id;
	TimestampTz now = cqrs_wall_now();
	int			current;
	int			next;
	List	   *parts;
	bool		set_back = false;
	int			i;

	memset(step, 0, sizeof(*step));
	step->rotate_at = DT_NOEND;
	if (!cqrs_segments_lock(topic))
	{
		/* The topic is perhaps being dropped. */
		step->holds[topic->current_segment].holder = CQRS_HELD_BY_CHANGE;
		return;
	}
	topic = cqrs_registry_topic_by_id(topic_id);
	if (topic == NULL)
		return;
	if (!cqrs_segments_lock_parts(topic, &parts))
	{
		step->holds[topic->current_segment].holder = CQRS_HELD_BY_CHANGE;
		cqrs_segments_unlock(topic);
		return;
	}
	current = topic->current_segment;
	next = (current + 1) % CQRS_SEGMENTS;
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		step->sizes[i] = cqrs_segment_bytes(topic, i);
		set_back |= topic->opened_at[i] > now + USECS_PER_SEC;
	}
	if (set_back)
		note_set_back(topic, now);

	/* The oldest first. */
	for (i = 1; i < CQRS_SEGMENTS; i++)
	{
		int			segment = (current + i) % CQRS_SEGMENTS;

		if (step->sizes[segment] == 0)
			continue;
		cqrs_segment_hold(topic, segment, now, &step->holds[segment]);
		if (step->holds[segment].holder == CQRS_HELD_BY_NOTHING &&
			truncate_segment(topic_id, segment, &step->holds[segment]))
		{
			step->action = CQRS_STEP_TRUNCATED;
			step->segment = segment;
			break;
		}
	}

	if (step->action == CQRS_STEP_NONE && step->sizes[current] > 0)
	{
		int64		wait = topic->retention / 2;

		if (step->sizes[current] / 1024 < cqrs_segment_size)
			wait = Max(wait, cqrs_segment_age);
		step->rotate_at =
			TimestampTzPlusMilliseconds(topic->opened_at[current], wait);
		if (step->rotate_at <= now && step->sizes[next] == 0 &&
			rotate_topic(topic))
		{
			step->action = CQRS_STEP_ROTATED;
			step->segment = next;
		}
	}
	cqrs_segments_unlock_parts(parts);
	cqrs_segments_unlock(topic);
}

/*
 * Truncate a segment that nothing seemed to hold, or say what holds it now.
 * Steps (a) to (d) of the protocol.
 */
static bool
truncate_segment(int32 topic_id, int segment, CqrsHold *hold)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(topic_id);
	CqrsMissed *missed;
	Snapshot	snapshot;

	if (topic == NULL)
		return false;
	missed = cqrs_missed_count(topic, segment);
	CQRS_DEBUG_POINT("truncate_before_lock");

	hold->holder = CQRS_HELD_BY_CHANGE;
	if (!cqrs_object_lock(CQRS_REL_TOPIC, topic_id, 0, ExclusiveLock, false))
	{
		LOCKTAG		tag;

		cqrs_object_tag(&tag, CQRS_REL_TOPIC, topic_id, 0);
		(void) cqrs_lock_holder(&tag, ExclusiveLock, &hold->pid);
		return false;
	}
	topic = cqrs_registry_topic_by_id(topic_id);
	if (topic == NULL || topic->current_segment == segment ||
		(missed != NULL && !cqrs_missed_lock(missed)))
		return false;

	if (!cqrs_table_lock(topic->segments[segment]))
	{
		/*
		 * If it is not in use, somebody waits for the lock, or had it and is
		 * done.
		 */
		if (cqrs_table_in_use(topic->segments[segment], &hold->pid))
			hold->holder = CQRS_HELD_BY_LOCK;
		return false;
	}

	CQRS_DEBUG_POINT("truncate_after_lock");
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	cqrs_retention_hold(topic, segment, cqrs_wall_now(), hold);
	if (hold->holder == CQRS_HELD_BY_NOTHING)
		cqrs_subscription_hold(topic, segment, missed, snapshot, hold);
	UnregisterSnapshot(snapshot);
	if (hold->holder != CQRS_HELD_BY_NOTHING)
		return false;

	cqrs_segment_truncate(topic, segment);
	ereport(DEBUG1,
			(errmsg_internal("truncated segment %d of topic \"%s\"", segment,
							 topic->name)));
	return true;
}

/*
 * Make the next segment the current one. Returns false if the topic is being
 * changed by somebody else.
 */
static bool
rotate_topic(const CqrsTopic *topic)
{
	int			next = (topic->current_segment + 1) % CQRS_SEGMENTS;
	bool		done;

	if (!ConditionalLockRelationOid(cqrs_relation_oid(CQRS_REL_TOPIC),
									RowExclusiveLock))
		return false;
	done = cqrs_admin_run("UPDATE cqrs.topic t"
						  " SET current_segment = $3, opened_at[$3 + 1] = $4"
						  " FROM (SELECT topic_id FROM cqrs.topic"
						  "		  WHERE topic_id = $1 AND current_segment = $2"
						  "		  FOR NO KEY UPDATE SKIP LOCKED) l"
						  " WHERE t.topic_id = l.topic_id",
						  4, CQRS_INT4(topic->topic_id),
						  CQRS_INT4(topic->current_segment), CQRS_INT4(next),
						  CQRS_ARG(TIMESTAMPTZOID, TimestampTzGetDatum(cqrs_wall_now()))) > 0;
	if (done)
		ereport(DEBUG1,
				(errmsg_internal("topic \"%s\" goes on in segment %d",
								 topic->name, next)));
	return done;
}

/*
 * The clock was set back after a segment became the current one: let that have
 * been now. Otherwise nothing would be rotated or truncated until the clock is
 * there again.
 */
static void
note_set_back(const CqrsTopic *topic, TimestampTz now)
{
	if (!ConditionalLockRelationOid(cqrs_relation_oid(CQRS_REL_TOPIC),
									RowExclusiveLock))
		return;
	(void) cqrs_admin_run("UPDATE cqrs.topic t"
						  " SET opened_at = ARRAY(SELECT CASE WHEN o.at > $2 THEN $2 ELSE o.at END"
						  "  FROM pg_catalog.unnest(t.opened_at) WITH ORDINALITY o (at, n)"
						  "  ORDER BY o.n)"
						  " FROM (SELECT topic_id FROM cqrs.topic WHERE topic_id = $1"
						  "		  FOR NO KEY UPDATE SKIP LOCKED) l"
						  " WHERE t.topic_id = l.topic_id",
						  2, CQRS_INT4(topic->topic_id),
						  CQRS_ARG(TIMESTAMPTZOID, TimestampTzGetDatum(now)));
}
