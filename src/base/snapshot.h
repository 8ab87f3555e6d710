/*-------------------------------------------------------------------------
 *
 * snapshot.h
 *	  Snapshots that are kept: values of type pg_snapshot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SNAPSHOT_H
#define CQRS_SNAPSHOT_H

#include "access/transam.h"

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

extern CqrsSnapshot *cqrs_snapshot_take(void);
extern CqrsSnapshot *cqrs_snapshot_empty(void);
extern CqrsSnapshot *cqrs_snapshot_from_datum(Datum value);
extern bool cqrs_snapshot_within(const CqrsSnapshot *earlier,
								 const CqrsSnapshot *later);
extern bool cqrs_snapshot_shows(const CqrsSnapshot *snapshot,
								FullTransactionId xid);

#endif							/* CQRS_SNAPSHOT_H */
