/*-------------------------------------------------------------------------
 *
 * retry.c
 *	  Deliveries that failed: the event that a subscription cannot get past
 *	  just now is tried again, after a delay that doubles each time.
 *
 * What failed is in cqrs.failure, one row a subscription, so that a restart
 * forgets neither the error nor the delay.
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

#include "catalog.h"
#include "retry.h"

/* Columns of cqrs.failure. */
enum
{
	FAILURE_SUBSCRIPTION_ID = 1,
	FAILURE_POSITION,
	FAILURE_ATTEMPTS,
	FAILURE_FAILED_AT,
	FAILURE_RETRY_AT,
	FAILURE_SQLSTATE,
	FAILURE_MESSAGE,
	FAILURE_COLUMNS = FAILURE_MESSAGE
};

/* Delay after the first failure, and the longest, in milliseconds. */
#define FIRST_DELAY		200
#define LONGEST_DELAY	(5 * 60 * 1000)

static HeapTuple find(Relation rel, int32 subscription_id, Snapshot snapshot);
static int64 delay_after(int32 attempts);

/*
 * What a subscription failed at. Returns false if nothing.
 */
bool
cqrs_failure_read(int32 subscription_id, Snapshot snapshot,
				  CqrsFailure *failure)
{
	Relation	rel;
	HeapTuple	tuple;

	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE), AccessShareLock);
	tuple = find(rel, subscription_id, snapshot);
	if (tuple != NULL)
	{
		Datum		values[FAILURE_COLUMNS];
		bool		nulls[FAILURE_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		failure->position = DatumGetInt64(values[FAILURE_POSITION - 1]);
		failure->attempts = DatumGetInt32(values[FAILURE_ATTEMPTS - 1]);
		failure->retry_at = DatumGetTimestampTz(values[FAILURE_RETRY_AT - 1]);
	}
	table_close(rel, AccessShareLock);
	return tuple != NULL;
}

/*
 * Record that delivering the event at this position failed once more. Returns
 * when to try again. The caller holds the subscription's lock.
 */
TimestampTz
cqrs_failure_record(int32 subscription_id, int64 position, ErrorData *error)
{
	Relation	rel;
	HeapTuple	old;
	HeapTuple	tuple;
	Datum		values[FAILURE_COLUMNS];
	bool		nulls[FAILURE_COLUMNS] = {0};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz retry_at;
	int32		attempts = 1;
	Snapshot	snapshot;

	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE), RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	old = find(rel, subscription_id, snapshot);
	UnregisterSnapshot(snapshot);
	if (old != NULL)
	{
		heap_deform_tuple(old, RelationGetDescr(rel), values, nulls);
		if (DatumGetInt64(values[FAILURE_POSITION - 1]) == position)
			attempts = DatumGetInt32(values[FAILURE_ATTEMPTS - 1]) + 1;
	}
	retry_at = TimestampTzPlusMilliseconds(now, delay_after(attempts));

	values[FAILURE_SUBSCRIPTION_ID - 1] = Int32GetDatum(subscription_id);
	values[FAILURE_POSITION - 1] = Int64GetDatum(position);
	values[FAILURE_ATTEMPTS - 1] = Int32GetDatum(attempts);
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
 * The subscription got past it. The caller holds the subscription's lock.
 */
void
cqrs_failure_clear(int32 subscription_id)
{
	Relation	rel;
	HeapTuple	tuple;
	Snapshot	snapshot;

	rel = table_open(cqrs_relation_oid(CQRS_REL_FAILURE), RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	tuple = find(rel, subscription_id, snapshot);
	UnregisterSnapshot(snapshot);
	if (tuple != NULL)
		simple_heap_delete(rel, &tuple->t_self);
	table_close(rel, NoLock);
}

/*
 * A copy of the subscription's row, or NULL.
 */
static HeapTuple
find(Relation rel, int32 subscription_id, Snapshot snapshot)
{
	Relation	index;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	index = index_open(cqrs_relation_oid(CQRS_REL_FAILURE_PKEY),
					   AccessShareLock);
	ScanKeyInit(&key, FAILURE_SUBSCRIPTION_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(subscription_id));
	scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (tuple != NULL)
		tuple = heap_copytuple(tuple);
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	return tuple;
}

/*
 * Milliseconds to wait after so many failures: doubling, and up to a quarter
 * more or less, so that what failed together is not retried together.
 */
static int64
delay_after(int32 attempts)
{
	int64		delay = FIRST_DELAY;
	double		jitter = (random() & 0xFFFF) / 65535.0;

	delay <<= Min(attempts - 1, 20);
	delay = Min(delay, LONGEST_DELAY);
	return (int64) (delay * (0.75 + 0.5 * jitter));
}
