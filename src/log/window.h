/*-------------------------------------------------------------------------
 *
 * window.h
 *	  The events that became visible between two snapshots, in order.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_WINDOW_H
#define CQRS_WINDOW_H

#include "base/cqrs_outbox.h"

#include "access/skey.h"
#include "access/transam.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/snapshot.h"
#include "log/event.h"
#include "registry/registry.h"

/* What cqrs_window_count() adds up, window by window. */
typedef struct CqrsCount
{
	int64		limit;			/* so many more rows are looked at; 0: there
								 * may be events that were not */
	int64		rows;			/* looked at ... */
	int64		row_bytes;		/* ... their size on disk */
	int64		others;			/* of them, another partition's */
	int64		events;			/* of them, what is counted ... */
	int64		event_bytes;	/* ... their size */
	TimestampTz oldest;			/* when the first was emitted, or before; not
								 * later than it was set to */
} CqrsCount;

typedef struct CqrsWindow CqrsWindow;

extern CqrsWindow *cqrs_window_create(MemoryContext parent,
									  const CqrsSnapshot *lower,
									  const CqrsSnapshot *upper,
									  int64 after_position, int max_entries);
extern void cqrs_window_free(CqrsWindow *window);
extern void cqrs_window_move(CqrsWindow *window, MemoryContext parent);
extern bool cqrs_window_is(const CqrsWindow *window,
						   const CqrsSnapshot *lower,
						   const CqrsSnapshot *upper, int64 after_position,
						   int ntopics, CqrsTopic *const *topics);
extern void cqrs_window_attach(CqrsWindow *window, int ntopics,
							   CqrsTopic *const *topics, Snapshot snapshot);
extern void cqrs_window_detach(CqrsWindow *window);
extern void cqrs_window_filter_name(CqrsWindow *window,
									const char *event_name);
extern bool cqrs_window_next(CqrsWindow *window, CqrsEvent *event);
extern void cqrs_window_unread(CqrsWindow *window, int64 after_position);
extern bool cqrs_window_at_end(CqrsWindow *window);

extern bool cqrs_window_has_events(const CqrsTopic *topic,
								   const CqrsSnapshot *lower,
								   const CqrsSnapshot *upper,
								   Snapshot snapshot);
extern void cqrs_window_count(const CqrsTopic *topic,
							  const CqrsSnapshot *lower,
							  const CqrsSnapshot *upper,
							  int64 after_position, int partitions,
							  int partition, Snapshot snapshot,
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
									   int64 after_position, int partitions,
									   int partition, Snapshot snapshot);

/* For window_scan.c. */
extern FullTransactionId cqrs_window_end(const CqrsSnapshot *upper);
extern void cqrs_xid_range(ScanKeyData *keys, AttrNumber attno,
						   FullTransactionId from, FullTransactionId to);

#endif							/* CQRS_WINDOW_H */
