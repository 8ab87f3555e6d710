/*-------------------------------------------------------------------------
 *
 * lane.h
 *	  What a batch knows of the lanes of its events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LANE_H
#define CQRS_LANE_H

#include "utils/hsearch.h"

#include "log/cursor.h"
#include "log/event.h"

typedef enum CqrsLaneState
{
	CQRS_LANE_OPEN,				/* nothing is before the event */
	CQRS_LANE_BLOCKED,			/* it has to wait */
	CQRS_LANE_PARKED			/* it is parked itself */
} CqrsLaneState;

/* The table is in the memory context that was current at the first lookup. */
typedef struct CqrsLanes
{
	HTAB	   *table;			/* NULL: none yet */
} CqrsLanes;

extern CqrsLaneState cqrs_lane_state(CqrsLanes *lanes,
									 const CqrsCursor *cursor,
									 const CqrsEvent *event);
extern void cqrs_lane_add(CqrsLanes *lanes, uint64 lane, int64 position);
extern void cqrs_lane_pass(CqrsLanes *lanes, uint64 lane);
extern void cqrs_lane_forget(CqrsLanes *lanes, uint64 lane);

#endif							/* CQRS_LANE_H */
