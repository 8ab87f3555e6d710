/*-------------------------------------------------------------------------
 *
 * window.h
 *	  The events that became visible between two snapshots, in order.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_WINDOW_H
#define CQRS_WINDOW_H

#include "access/skey.h"
#include "access/transam.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/snapshot.h"
#include "log/event.h"

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
extern void cqrs_window_delete(CqrsWindow *window);
extern bool cqrs_window_at_end(CqrsWindow *window);

/* For window_scan.c. */
extern FullTransactionId cqrs_window_end(const CqrsSnapshot *upper);
extern void cqrs_xid_range(ScanKeyData *keys, AttrNumber attno,
						   FullTransactionId from, FullTransactionId to);

#endif							/* CQRS_WINDOW_H */
