/*-------------------------------------------------------------------------
 *
 * segment.h
 *	  The tables that hold a topic's events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SEGMENT_H
#define CQRS_SEGMENT_H

#include "utils/rel.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "registry/entry.h"

/*
 * Columns of a segment; cqrs_create_topic() makes them. They are in the order
 * of an event's, but what has always the same length comes first.
 */
#define CQRS_SEG_POSITION	1
#define CQRS_SEG_XID		2
#define CQRS_SEG_EVENT_ID	3
#define CQRS_SEG_EMITTED_AT	4
#define CQRS_SEG_NATIVE		5
#define CQRS_SEG_EVENT_NAME	6
#define CQRS_SEG_KEY		7
#define CQRS_SEG_PAYLOAD	8
#define CQRS_SEG_HEADERS	9
#define CQRS_SEG_COLUMNS	9

typedef enum CqrsSegmentState
{
	CQRS_SEGMENT_INTACT,
	CQRS_SEGMENT_LOCKED,		/* somebody has, or waits for, a lock on it */
	CQRS_SEGMENT_MISSING,
	CQRS_SEGMENT_ALTERED
} CqrsSegmentState;

extern Relation cqrs_segment_open(const CqrsTopic *topic, int segment,
								  LOCKMODE lockmode);
extern Oid	cqrs_segment_index(Relation segment);
extern CqrsSegmentState cqrs_segment_look(const CqrsTopic *topic, int segment,
										  const char **problem);

extern int64 cqrs_segment_bytes(const CqrsTopic *topic, int segment);
extern int64 cqrs_segment_estimate(const CqrsTopic *topic, int segment);
extern bool cqrs_segment_oldest(const CqrsTopic *topic, int segment,
								Snapshot snapshot, TimestampTz *emitted_at);

extern bool cqrs_segments_intact(const CqrsTopic *topic);
extern bool cqrs_segments_lock(const CqrsTopic *topic);
extern void cqrs_segments_unlock(const CqrsTopic *topic);
extern bool cqrs_segments_lock_parts(const CqrsTopic *topic, List **locked);
extern void cqrs_segments_unlock_parts(List *locked);
extern void cqrs_segment_truncate(const CqrsTopic *topic, int segment);

/* These are for any table of ours that is to be truncated. */
extern bool cqrs_table_in_use(Oid relid, int *pid);
extern bool cqrs_table_lock(Oid relid);

#endif							/* CQRS_SEGMENT_H */
