/*-------------------------------------------------------------------------
 *
 * row.c
 *	  Rows of our own tables: found by an index, inserted, deleted.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "executor/tuptable.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "extension/row.h"

static bool insert_into_index(Relation rel, Oid indexid, ItemPointer tid,
							  const Datum *values, const bool *nulls,
							  IndexUniqueCheck unique);

/*
 * Set a scan key for rows with this value of an integer column.
 */
void
cqrs_key_int4(ScanKeyData *key, AttrNumber column, int32 value)
{
	ScanKeyInit(key, column, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(value));
}

/*
 * Set a scan key for rows whose value of a bigint column compares so to this
 * one.
 */
void
cqrs_key_int8(ScanKeyData *key, AttrNumber column, StrategyNumber strategy,
			  int64 value)
{
	static const RegProcedure functions[] = {
		[BTLessStrategyNumber] = F_INT8LT,
		[BTLessEqualStrategyNumber] = F_INT8LE,
		[BTEqualStrategyNumber] = F_INT8EQ,
		[BTGreaterEqualStrategyNumber] = F_INT8GE,
		[BTGreaterStrategyNumber] = F_INT8GT,
	};

	ScanKeyInit(key, column, strategy, functions[strategy],
				Int64GetDatum(value));
}

/*
 * Open a table and an index of it, and begin to walk over the rows that the
 * snapshot shows; NULL: the latest.
 */
void
cqrs_scan_begin(CqrsScan *scan, CqrsRelation table, CqrsRelation index,
				LOCKMODE lockmode, Snapshot snapshot, ScanDirection direction,
				int nkeys, ScanKeyData *keys)
{
	scan->rel = table_open(cqrs_relation_oid(table), lockmode);
	scan->index = cqrs_index_open(scan->rel, index, AccessShareLock);
	scan->latest = NULL;
	if (snapshot == NULL)
		snapshot = scan->latest = RegisterSnapshot(GetLatestSnapshot());
	scan->scan = systable_beginscan_ordered(scan->rel, scan->index, snapshot,
											nkeys, keys);
	scan->direction = direction;
}

/*
 * The next row, valid until the one after it is read, or the walk ends. NULL:
 * there is none.
 */
HeapTuple
cqrs_scan_next(CqrsScan *scan)
{
	return systable_getnext_ordered(scan->scan, scan->direction);
}

/*
 * Like cqrs_scan_next(), and get the row's columns.
 */
HeapTuple
cqrs_scan_read(CqrsScan *scan, Datum *values, bool *nulls)
{
	HeapTuple	row = cqrs_scan_next(scan);

	if (HeapTupleIsValid(row))
		heap_deform_tuple(row, RelationGetDescr(scan->rel), values, nulls);
	return row;
}

/*
 * Delete a row. A later command no longer sees it.
 */
void
cqrs_scan_delete(CqrsScan *scan, HeapTuple row)
{
	simple_heap_delete(scan->rel, &row->t_self);
}

/*
 * Delete a row of a walk with the latest snapshot, unless somebody else has it
 * locked, or has deleted it. Returns whether it was.
 */
bool
cqrs_scan_delete_if_free(CqrsScan *scan, HeapTuple row)
{
	TM_FailureData failure;

	return cqrs_table_delete(scan->rel, &row->t_self, GetCurrentCommandId(true),
							 scan->latest, false, &failure) == TM_Ok;
}

/*
 * End the walk, and release this lock on the table; NoLock: keep it, and that on the
 * index, which need not be taken anew then for the next walk of the transaction.
 */
void
cqrs_scan_end(CqrsScan *scan, LOCKMODE lockmode)
{
	systable_endscan_ordered(scan->scan);
	index_close(scan->index, lockmode == NoLock ? NoLock : AccessShareLock);
	table_close(scan->rel, lockmode);
	if (scan->latest != NULL)
		UnregisterSnapshot(scan->latest);
}

/*
 * Get a column that is NOT NULL.
 */
Datum
cqrs_row_column(HeapTuple row, AttrNumber column, TupleDesc desc)
{
	bool		isnull;

	return heap_getattr(row, column, desc, &isnull);
}

/*
 * Insert a row. The locks on the table and its indexes stay, so that they need not be
 * taken anew for each row of a transaction; a later command sees the row.
 */
void
cqrs_row_insert(CqrsRelation table, Datum *values, bool *nulls)
{
	Relation	rel = table_open(cqrs_relation_oid(table), RowExclusiveLock);
	HeapTuple	row = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	List	   *indexids = RelationGetIndexList(rel);
	ListCell   *lc;

	simple_heap_insert(rel, row);
	foreach(lc, indexids)
		(void) insert_into_index(rel, lfirst_oid(lc), &row->t_self, values,
								 nulls, UNIQUE_CHECK_YES);
	list_free(indexids);
	heap_freetuple(row);
	table_close(rel, NoLock);
}

/*
 * Like cqrs_row_insert(), unless a unique index has, or may soon have, such a row:
 * then nothing is inserted, and false returned. Waits for nobody: the other
 * transaction may be in progress.
 *
 * The row is there on approval, as with INSERT ... ON CONFLICT: who meets it waits
 * until it is decided on, which is before this returns.
 */
bool
cqrs_row_insert_new(CqrsRelation table, const Datum *values, const bool *nulls)
{
	Relation	rel = table_open(cqrs_relation_oid(table), RowExclusiveLock);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsVirtual);
	int			natts = RelationGetDescr(rel)->natts;
	List	   *indexids = RelationGetIndexList(rel);
	TransactionId xid = GetCurrentTransactionId();
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		is_new = true;
	ListCell   *lc;

	memcpy(slot->tts_values, values, natts * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, natts * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	table_tuple_insert_speculative(rel, slot, GetCurrentCommandId(true), 0,
								   NULL, token);
	foreach(lc, indexids)
	{
		is_new = insert_into_index(rel, lfirst_oid(lc), &slot->tts_tid, values,
								   nulls, UNIQUE_CHECK_PARTIAL);
		if (!is_new)
			break;
	}
	table_tuple_complete_speculative(rel, slot, token, is_new);
	SpeculativeInsertionLockRelease(xid);
	list_free(indexids);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	return is_new;
}

/*
 * Add a row that was just written to one of the indexes. Ours are on columns; a partial
 * one has the rows where its first column is not NULL. How a unique index is checked
 * is up to the caller; if only in part, false: there may be another such row.
 */
static bool
insert_into_index(Relation rel, Oid indexid, ItemPointer tid,
				  const Datum *values, const bool *nulls,
				  IndexUniqueCheck unique)
{
	Relation	index = index_open(indexid, RowExclusiveLock);
	Form_pg_index form = index->rd_index;
	Datum		keys[INDEX_MAX_KEYS];
	bool		key_nulls[INDEX_MAX_KEYS] = {true};
	IndexInfo  *info;
	bool		is_unique = true;
	int			i;

	for (i = 0; i < form->indnatts; i++)
	{
		AttrNumber	column = form->indkey.values[i];

		if (column <= 0)
			elog(ERROR, "index \"%s\" is on an expression",
				 RelationGetRelationName(index));
		keys[i] = values[column - 1];
		key_nulls[i] = nulls[column - 1];
	}
	if (form->indisready &&
		(!key_nulls[0] || heap_attisnull(index->rd_indextuple,
										 Anum_pg_index_indpred, NULL)))
	{
		info = BuildIndexInfo(index);
		is_unique = index_insert(index, keys, key_nulls, tid, rel,
								 form->indisunique ? unique : UNIQUE_CHECK_NO,
								 false, info) || !form->indisunique ||
			unique != UNIQUE_CHECK_PARTIAL;
		cqrs_index_insert_cleanup(index, info);
		pfree(info);
	}
	index_close(index, NoLock);
	return is_unique;
}
