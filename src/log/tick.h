/*-------------------------------------------------------------------------
 *
 * tick.h
 *	  Ticks: durably recorded snapshots.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TICK_H
#define CQRS_TICK_H

#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/snapshot.h"

typedef struct CqrsTick
{
	int64		tick_id;
	TimestampTz ticked_at;
	CqrsSnapshot *snapshot;
	int64		last_position;
} CqrsTick;

extern int64 cqrs_tick_record(bool wait);
extern bool cqrs_tick_newest(Snapshot snapshot, int64 at_most,
							 CqrsTick *tick);
extern int64 cqrs_tick_next_id(void);

#endif							/* CQRS_TICK_H */
