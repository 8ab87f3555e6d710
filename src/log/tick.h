/*-------------------------------------------------------------------------
 *
 * tick.h
 *	  Ticks: durably recorded snapshots.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TICK_H
#define CQRS_TICK_H

#include "base/cqrs_outbox.h"

#include "access/transam.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

/*
 * The layout of a pg_snapshot value, which the server's headers do not
 * export: top-level transaction ids with their epoch.
 */
typedef struct CqrsSnapshot
{
	int32		vl_len_;		/* varlena header */
	uint32		nxip;			/* how many xip */
	FullTransactionId xmin;		/* all before it had ended */
	FullTransactionId xmax;		/* all from it on had not */
	FullTransactionId xip[FLEXIBLE_ARRAY_MEMBER];	/* between, in progress;
													 * sorted */
} CqrsSnapshot;

typedef struct CqrsTick
{
	int64		tick_id;
	TimestampTz ticked_at;
	CqrsSnapshot *snapshot;
	int64		last_position;
} CqrsTick;

extern CqrsSnapshot *cqrs_snapshot_take(void);
extern CqrsSnapshot *cqrs_snapshot_empty(void);
extern CqrsSnapshot *cqrs_snapshot_from_datum(Datum value);
extern bool cqrs_snapshot_within(const CqrsSnapshot *earlier,
								 const CqrsSnapshot *later);
extern bool cqrs_snapshot_shows(const CqrsSnapshot *snapshot,
								FullTransactionId xid);

extern int64 cqrs_tick_record(bool wait);
extern bool cqrs_tick_newest(Snapshot snapshot, int64 at_most,
							 CqrsTick *tick);
extern int64 cqrs_tick_next_id(void);
extern int64 cqrs_last_position(void);
extern void cqrs_position_raise(int64 position);

#endif							/* CQRS_TICK_H */
