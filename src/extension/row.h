/*-------------------------------------------------------------------------
 *
 * row.h
 *	  Rows of our own tables: found by an index, inserted, deleted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ROW_H
#define CQRS_ROW_H

#include "access/genam.h"
#include "access/htup_details.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "extension/catalog.h"

/* A walk over rows, in the order of an index. */
typedef struct CqrsScan
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	ScanDirection direction;
	Snapshot	latest;			/* registered for the walk, or NULL */
} CqrsScan;

extern void cqrs_key_int4(ScanKeyData *key, AttrNumber column, int32 value);
extern void cqrs_key_int8(ScanKeyData *key, AttrNumber column,
						  StrategyNumber strategy, int64 value);
extern void cqrs_scan_begin(CqrsScan *scan, CqrsRelation table,
							CqrsRelation index, LOCKMODE lockmode,
							Snapshot snapshot, ScanDirection direction,
							int nkeys, ScanKeyData *keys);
extern HeapTuple cqrs_scan_next(CqrsScan *scan);
extern HeapTuple cqrs_scan_read(CqrsScan *scan, Datum *values, bool *nulls);
extern void cqrs_scan_delete(CqrsScan *scan, HeapTuple row);
extern bool cqrs_scan_delete_if_free(CqrsScan *scan, HeapTuple row);
extern void cqrs_scan_end(CqrsScan *scan, LOCKMODE lockmode);
extern Datum cqrs_row_column(HeapTuple row, AttrNumber column,
							 TupleDesc desc);
extern void cqrs_row_insert(CqrsRelation table, Datum *values, bool *nulls);
extern bool cqrs_row_insert_new(CqrsRelation table, const Datum *values,
								const bool *nulls);

#endif							/* CQRS_ROW_H */
