/*-------------------------------------------------------------------------
 *
 * lane.c
 *	  What a batch knows of the lanes of its events.
 *
 * An index tells whether any event of a lane is parked. A batch looks that up
 * once for each lane: a lane may have many events in the batch, and many dead
 * entries in the index. So there are no more lanes in memory than events in a
 * batch.
 *
 * Lanes whose hashes collide wait for each other, which does no harm.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "base/hash.h"
#include "retry/lane.h"
#include "retry/parked.h"

typedef struct LaneEntry
{
	uint64		lane;			/* hash key */
	int64		last;			/* highest parked position; 0: none */
	bool		passed;			/* all parked ones were handed out before */
} LaneEntry;

static LaneEntry *find_lane(CqrsLanes *lanes, uint64 lane, bool *found);

CqrsLaneState
cqrs_lane_state(CqrsLanes *lanes, const CqrsCursor *cursor,
				const CqrsEvent *event)
{
	LaneEntry  *entry;
	uint64		lane;
	bool		found;

	if (cursor->next_retry_at == 0)
		return CQRS_LANE_OPEN;
	lane = cqrs_event_lane(event, cursor->by_topic);
	entry = find_lane(lanes, lane, &found);
	if (!found)
		entry->last = cqrs_parked_lane_last(cursor, lane);
	if (entry->last == 0)
		return CQRS_LANE_OPEN;
	if (event->position <= entry->last && cqrs_parked_is(cursor, event))
		return CQRS_LANE_PARKED;
	return entry->passed ? CQRS_LANE_OPEN : CQRS_LANE_BLOCKED;
}

void
cqrs_lane_add(CqrsLanes *lanes, uint64 lane, int64 position)
{
	LaneEntry  *entry;

	if (lanes->table == NULL)
		return;
	entry = hash_search(lanes->table, &lane, HASH_FIND, NULL);
	if (entry != NULL)
		entry->last = Max(entry->last, position);
}

/*
 * All parked events of a lane were handed out, and those that follow may be.
 */
void
cqrs_lane_pass(CqrsLanes *lanes, uint64 lane)
{
	LaneEntry  *entry;
	bool		found;

	entry = find_lane(lanes, lane, &found);
	entry->last = PG_INT64_MAX;
	entry->passed = true;
}

/*
 * What is parked of this lane has changed: look it up again.
 */
void
cqrs_lane_forget(CqrsLanes *lanes, uint64 lane)
{
	if (lanes->table != NULL)
		hash_search(lanes->table, &lane, HASH_REMOVE, NULL);
}

static LaneEntry *
find_lane(CqrsLanes *lanes, uint64 lane, bool *found)
{
	LaneEntry  *entry;

	if (lanes->table == NULL)
	{
		lanes->table = cqrs_hash_create("cqrs lanes", sizeof(uint64),
										sizeof(LaneEntry),
										CurrentMemoryContext);
	}
	entry = hash_search(lanes->table, &lane, HASH_ENTER, found);
	if (!*found)
	{
		entry->last = 0;
		entry->passed = false;
	}
	return entry;
}
