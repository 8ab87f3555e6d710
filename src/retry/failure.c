/*-------------------------------------------------------------------------
 *
 * failure.c
 *	  Cursors whose subscription cannot be delivered at all just now: its
 *	  handler does not exist, its owner may not read a topic, the disk is full.
 *
 * That is no event's fault, and counts as nobody's attempt. It is tried again
 * after a delay that doubles each time. What failed is in cqrs.failure, for
 * people to see, and so that a restart forgets neither the error nor the
 * delay.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

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

#include "extension/catalog.h"
#include "retry/failure.h"
#include "shared/clock.h"

/* Columns of cqrs.failure. */
enum
{
	FAILURE_SUBSCRIPTION_ID = 1,
	FAILURE_PARTITION,
	FAILURE_FAILURES,
	FAILURE_FAILED_AT,
	FAILURE_RETRY_AT,
	FAILURE_SQLSTATE,
	FAILURE_MESSAGE,
	FAILURE_COLUMNS = FAILURE_MESSAGE
};

/* The longest delay, in milliseconds. */
#define LONGEST_DELAY	(CQRS_LONGEST_FAILURE * 4 / 5)

static HeapTuple find(Relation rel, int32 subscription_id, int32 partition);
static int64 delay_after(int32 failures, int first_delay);

/*
 * Record that delivery failed once more. Returns when to try again: after
 * first_delay milliseconds, and twice as many each time. The caller holds the
 * cursor's lock.
 */
TimestampTz
cqrs_failure_record(int32 subscription_id, int32 partition,
					const ErrorData *error, int first_delay)
{
	Relation	rel;
	HeapTuple	old;
	HeapTuple	tuple;
	Datum		values[FAILURE_COLUMNS];
	bool		nulls[FAILURE_COLUMNS] = {0};
	TimestampTz now = cqrs_wall_now();
	TimestampTz retry_at;
	int32		failures = 1;

	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE), RowExclusiveLock);
	old = find(rel, subscription_id, partition);
	if (old != NULL)
	{
		heap_deform_tuple(old, RelationGetDescr(rel), values, nulls);
		failures = DatumGetInt32(values[FAILURE_FAILURES - 1]) + 1;
	}
	retry_at = TimestampTzPlusMilliseconds(now,
										   delay_after(failures, first_delay));

	values[FAILURE_SUBSCRIPTION_ID - 1] = Int32GetDatum(subscription_id);
	values[FAILURE_PARTITION - 1] = Int32GetDatum(partition);
	values[FAILURE_FAILURES - 1] = Int32GetDatum(failures);
	values[FAILURE_FAILED_AT - 1] = TimestampTzGetDatum(now);
	values[FAILURE_RETRY_AT - 1] = TimestampTzGetDatum(retry_at);
	values[FAILURE_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[FAILURE_MESSAGE - 1] =
		CStringGetTextDatum(error->message ? error->message : "");
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	if (old != NULL)
		CatalogTupleUpdate(rel, &old->t_self, tuple);
	else
		CatalogTupleInsert(rel, tuple);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return retry_at;
}

/*
 * When to try again, if delivery failed last; 0 otherwise. *sqlerrcode gets why.
 */
TimestampTz
cqrs_failure_retry_at(int32 subscription_id, int32 partition,
					  int *sqlerrcode)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE),
								 AccessShareLock);
	HeapTuple	tuple = find(rel, subscription_id, partition);
	TimestampTz now = cqrs_wall_now();
	TimestampTz retry_at = 0;

	*sqlerrcode = 0;
	if (tuple != NULL)
	{
		Datum		values[FAILURE_COLUMNS];
		bool		nulls[FAILURE_COLUMNS];
		char	   *code;

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		retry_at = DatumGetTimestampTz(values[FAILURE_RETRY_AT - 1]);
		code = TextDatumGetCString(values[FAILURE_SQLSTATE - 1]);
		if (strlen(code) == 5)
			*sqlerrcode = MAKE_SQLSTATE(code[0], code[1], code[2], code[3],
										code[4]);
		pfree(code);

		/* None of ours is so far ahead: the clock was set back. */
		if (retry_at > TimestampTzPlusMilliseconds(now, CQRS_LONGEST_FAILURE))
			retry_at = now;
	}
	table_close(rel, AccessShareLock);
	return retry_at;
}

/*
 * How often it failed in a row.
 */
int32
cqrs_failure_count(int32 subscription_id, int32 partition)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE),
								 AccessShareLock);
	HeapTuple	tuple = find(rel, subscription_id, partition);
	int32		failures = 0;
	bool		isnull;

	if (tuple != NULL)
		failures = DatumGetInt32(heap_getattr(tuple, FAILURE_FAILURES,
											  RelationGetDescr(rel), &isnull));
	table_close(rel, AccessShareLock);
	return failures;
}

/*
 * Delivery works (again). The caller holds the cursor's lock.
 */
void
cqrs_failure_clear(int32 subscription_id, int32 partition)
{
	Relation	rel;
	HeapTuple	tuple;

	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE), RowExclusiveLock);
	tuple = find(rel, subscription_id, partition);
	if (tuple != NULL)
		simple_heap_delete(rel, &tuple->t_self);
	table_close(rel, NoLock);
}

/*
 * A copy of the cursor's row, or NULL.
 */
static HeapTuple
find(Relation rel, int32 subscription_id, int32 partition)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation	index;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;

	index = cqrs_index_open(rel, CQRS_REL_FAILURE_PKEY, AccessShareLock);
	ScanKeyInit(&keys[0], FAILURE_SUBSCRIPTION_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(subscription_id));
	ScanKeyInit(&keys[1], FAILURE_PARTITION, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(partition));
	scan = systable_beginscan_ordered(rel, index, snapshot, 2, keys);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (tuple != NULL)
		tuple = heap_copytuple(tuple);
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return tuple;
}

/*
 * Milliseconds to wait after so many failures in a row: doubling, and up to a
 * quarter more or less.
 */
static int64
delay_after(int32 failures, int first_delay)
{
	int64		delay = first_delay;
	double		jitter = (random() & 0xFFFF) / 65535.0;

	delay <<= Min(failures - 1, 20);
	delay = Min(delay, LONGEST_DELAY);
	return (int64) (delay * (0.75 + 0.5 * jitter));
}
