/*-------------------------------------------------------------------------
 *
 * cursor.c
 *	  How far a subscription is.
 *
 * A cursor moves by appending a row with the next seq; the newest row counts,
 * and rows behind are deleted. So reading it costs the same however long some
 * transaction keeps the dead rows: they are all at the other end of the
 * index.
 *
 * Locking
 *
 * Who moves a cursor takes the subscription's lock first, and only then the
 * snapshot that it reads cursor, tick and events with. The primary key is the
 * fence: two moves from the same row cannot both commit.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "cursor.h"

/* Columns of cqrs.cursor. */
enum
{
	CURSOR_SUBSCRIPTION_ID = 1,
	CURSOR_PARTITION,
	CURSOR_SEQ,
	CURSOR_TICK_ID,
	CURSOR_SNAPSHOT,
	CURSOR_UNTIL_TICK,
	CURSOR_UNTIL_SNAPSHOT,
	CURSOR_POSITION,
	CURSOR_RECEIVED,
	CURSOR_LAST_POSITION,
	CURSOR_MOVED_AT,
	CURSOR_NATIVE,
	CURSOR_COLUMNS = CURSOR_NATIVE
};

/* Every so many moves, the rows behind are deleted. */
#define ROWS_KEPT	64

static void delete_range(Relation rel, int32 subscription_id, int64 from,
						 int64 to);
static void init_keys(ScanKeyData *keys, int32 subscription_id);

/*
 * The newest row of a subscription's cursor that the snapshot shows, in the
 * current memory context. Returns false if there is none: the subscription
 * was dropped.
 */
bool
cqrs_cursor_read(int32 subscription_id, Snapshot snapshot, CqrsCursor *cursor)
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;
	bool		found;

	memset(cursor, 0, sizeof(*cursor));
	cursor->subscription_id = subscription_id;

	rel = table_open(cqrs_relation_oid(CQRS_REL_CURSOR), AccessShareLock);
	index = index_open(cqrs_relation_oid(CQRS_REL_CURSOR_PKEY),
					   AccessShareLock);
	init_keys(keys, subscription_id);
	scan = systable_beginscan_ordered(rel, index, snapshot, 2, keys);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		Datum		values[CURSOR_COLUMNS];
		bool		nulls[CURSOR_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		cursor->seq = DatumGetInt64(values[CURSOR_SEQ - 1]);
		if (!DatumGetBool(values[CURSOR_NATIVE - 1]))
		{
			/* Restored: its snapshots mean nothing here, all events are new. */
			cursor->snapshot = cqrs_snapshot_empty();
		}
		else
		{
			cursor->tick_id = DatumGetInt64(values[CURSOR_TICK_ID - 1]);
			cursor->snapshot =
				cqrs_snapshot_from_datum(values[CURSOR_SNAPSHOT - 1]);
		}
		if (DatumGetBool(values[CURSOR_NATIVE - 1]) &&
			!nulls[CURSOR_UNTIL_TICK - 1])
		{
			cursor->until_tick = DatumGetInt64(values[CURSOR_UNTIL_TICK - 1]);
			cursor->until_snapshot =
				cqrs_snapshot_from_datum(values[CURSOR_UNTIL_SNAPSHOT - 1]);
			cursor->position = DatumGetInt64(values[CURSOR_POSITION - 1]);
			cursor->received = DatumGetInt64(values[CURSOR_RECEIVED - 1]);
		}
		cursor->last_position =
			DatumGetInt64(values[CURSOR_LAST_POSITION - 1]);
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * Append the cursor's next row; seq becomes that row's. The caller holds the
 * subscription's lock, and read the cursor under it. Raises 23505 if somebody
 * moved it all the same.
 */
void
cqrs_cursor_append(CqrsCursor *cursor)
{
	Relation	rel;
	Datum		values[CURSOR_COLUMNS];
	bool		nulls[CURSOR_COLUMNS] = {0};

	cursor->seq++;
	values[CURSOR_SUBSCRIPTION_ID - 1] = Int32GetDatum(cursor->subscription_id);
	values[CURSOR_PARTITION - 1] = Int32GetDatum(0);
	values[CURSOR_SEQ - 1] = Int64GetDatum(cursor->seq);
	values[CURSOR_TICK_ID - 1] = Int64GetDatum(cursor->tick_id);
	values[CURSOR_SNAPSHOT - 1] = PointerGetDatum(cursor->snapshot);
	if (cursor->until_tick != 0)
	{
		values[CURSOR_UNTIL_TICK - 1] = Int64GetDatum(cursor->until_tick);
		values[CURSOR_UNTIL_SNAPSHOT - 1] =
			PointerGetDatum(cursor->until_snapshot);
		values[CURSOR_POSITION - 1] = Int64GetDatum(cursor->position);
		values[CURSOR_RECEIVED - 1] = Int64GetDatum(cursor->received);
	}
	else
	{
		nulls[CURSOR_UNTIL_TICK - 1] = true;
		nulls[CURSOR_UNTIL_SNAPSHOT - 1] = true;
		nulls[CURSOR_POSITION - 1] = true;
		nulls[CURSOR_RECEIVED - 1] = true;
	}
	values[CURSOR_LAST_POSITION - 1] = Int64GetDatum(cursor->last_position);
	values[CURSOR_MOVED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[CURSOR_NATIVE - 1] = BoolGetDatum(true);

	rel = table_open(cqrs_relation_oid(CQRS_REL_CURSOR), RowExclusiveLock);
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values,
											nulls));

	/*
	 * What to delete is computed, not looked up: a search for the oldest row
	 * would walk over the dead ones. What an aborted move left is deleted
	 * ROWS_KEPT moves later, if it is deleted with overlap.
	 */
	if (cursor->seq % ROWS_KEPT == 0)
		delete_range(rel, cursor->subscription_id,
					 cursor->seq - 2 * ROWS_KEPT, cursor->seq);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/*
 * Delete a subscription's cursor.
 */
void
cqrs_cursor_delete_all(int32 subscription_id)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_CURSOR),
								 RowExclusiveLock);

	delete_range(rel, subscription_id, 0, PG_INT64_MAX);
	table_close(rel, NoLock);
}

/*
 * Delete the rows from <= seq < to.
 */
static void
delete_range(Relation rel, int32 subscription_id, int64 from, int64 to)
{
	Relation	index;
	SysScanDesc scan;
	ScanKeyData keys[4];
	Snapshot	snapshot;
	HeapTuple	tuple;

	index = index_open(cqrs_relation_oid(CQRS_REL_CURSOR_PKEY),
					   AccessShareLock);
	init_keys(keys, subscription_id);
	ScanKeyInit(&keys[2], CURSOR_SEQ, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(from));
	ScanKeyInit(&keys[3], CURSOR_SEQ, BTLessStrategyNumber, F_INT8LT,
				Int64GetDatum(to));
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan_ordered(rel, index, snapshot, 4, keys);
	while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
		simple_heap_delete(rel, &tuple->t_self);
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
}

static void
init_keys(ScanKeyData *keys, int32 subscription_id)
{
	ScanKeyInit(&keys[0], CURSOR_SUBSCRIPTION_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(subscription_id));
	ScanKeyInit(&keys[1], CURSOR_PARTITION, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(0));
}
