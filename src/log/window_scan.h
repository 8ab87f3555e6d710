/*-------------------------------------------------------------------------
 *
 * window_scan.h
 *	  What there is in a window, in no particular order.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_WINDOW_SCAN_H
#define CQRS_WINDOW_SCAN_H

#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/snapshot.h"
#include "log/cursor.h"
#include "registry/entry.h"

/* What cqrs_window_count() adds up, window by window. */
typedef struct CqrsCount
{
	int64		limit;			/* how many more rows to look at; 0: events
								 * may be left that were not */
	int64		rows;			/* looked at ... */
	int64		row_bytes;		/* ... their size on disk */
	int64		others;			/* of which another partition's */
	int64		events;			/* of which counted ... */
	int64		event_bytes;	/* ... their size */
	TimestampTz oldest;			/* when the first one was emitted, or before;
								 * only ever lowered */
} CqrsCount;

extern bool cqrs_window_has_events(const CqrsTopic *topic,
								   const CqrsSnapshot *lower,
								   const CqrsSnapshot *upper,
								   Snapshot snapshot);
extern void cqrs_window_count(const CqrsTopic *topic,
							  const CqrsSnapshot *lower,
							  const CqrsSnapshot *upper,
							  int64 after_position, const CqrsCursor *cursor,
							  int partitions, Snapshot snapshot,
							  CqrsCount *count);

extern CqrsSnapshot *cqrs_window_since(int ntopics, CqrsTopic *const *topics,
									   TimestampTz time);

/* In one segment of the topic. */
extern bool cqrs_window_segment_has_events(const CqrsTopic *topic,
										   int segment,
										   const CqrsSnapshot *lower,
										   Snapshot snapshot,
										   TimestampTz *emitted_at);
extern int64 cqrs_window_segment_count(const CqrsTopic *topic, int segment,
									   const CqrsSnapshot *lower,
									   const CqrsSnapshot *upper,
									   int64 after_position,
									   const CqrsCursor *cursor, int partitions,
									   Snapshot snapshot);

#endif							/* CQRS_WINDOW_SCAN_H */
