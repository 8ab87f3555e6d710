/*-------------------------------------------------------------------------
 *
 * failure.c
 *	  Cursors whose subscription cannot be delivered at all just now: its
 *	  handler does not exist, its owner may not read a topic, the disk is full.
 *
 * That is no event's fault, and counts as no event's attempt. Delivery is
 * tried again after a delay that doubles each time. The failure is in
 * cqrs.failure, for people to see, and so that a restart forgets neither the
 * error nor the delay.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/indexing.h"
#include "utils/builtins.h"

#include "base/backoff.h"
#include "base/sqlstate.h"
#include "extension/row.h"
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

static HeapTuple find(CqrsScan *scan, int32 subscription_id, int32 partition,
					  LOCKMODE lockmode);

/*
 * Record that delivery failed once more. Returns when to try again: after
 * first_delay milliseconds, and twice as many each time. The caller holds the
 * cursor's lock.
 */
TimestampTz
cqrs_failure_record(int32 subscription_id, int32 partition,
					const ErrorData *error, int first_delay)
{
	CqrsScan	scan;
	HeapTuple	old = find(&scan, subscription_id, partition, RowExclusiveLock);
	HeapTuple	row;
	Datum		values[FAILURE_COLUMNS];
	bool		nulls[FAILURE_COLUMNS] = {0};
	TimestampTz now = cqrs_wall_now();
	TimestampTz retry_at;
	int32		failures = 1;

	if (old != NULL)
		failures += DatumGetInt32(cqrs_row_column(old, FAILURE_FAILURES,
												  RelationGetDescr(scan.rel)));
	retry_at = TimestampTzPlusMilliseconds(now,
										   cqrs_backoff(first_delay, LONGEST_DELAY, failures));

	values[FAILURE_SUBSCRIPTION_ID - 1] = Int32GetDatum(subscription_id);
	values[FAILURE_PARTITION - 1] = Int32GetDatum(partition);
	values[FAILURE_FAILURES - 1] = Int32GetDatum(failures);
	values[FAILURE_FAILED_AT - 1] = TimestampTzGetDatum(now);
	values[FAILURE_RETRY_AT - 1] = TimestampTzGetDatum(retry_at);
	values[FAILURE_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[FAILURE_MESSAGE - 1] =
		CStringGetTextDatum(error->message ? error->message : "");
	row = heap_form_tuple(RelationGetDescr(scan.rel), values, nulls);
	if (old != NULL)
		CatalogTupleUpdate(scan.rel, &old->t_self, row);
	else
		CatalogTupleInsert(scan.rel, row);
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	return retry_at;
}

/*
 * When to try again, if the last delivery failed; 0 otherwise. *sqlerrcode gets
 * why.
 */
TimestampTz
cqrs_failure_retry_at(int32 subscription_id, int32 partition,
					  int *sqlerrcode)
{
	CqrsScan	scan;
	HeapTuple	row = find(&scan, subscription_id, partition, AccessShareLock);
	TimestampTz now = cqrs_wall_now();
	TimestampTz retry_at = 0;

	*sqlerrcode = 0;
	if (row != NULL)
	{
		TupleDesc	desc = RelationGetDescr(scan.rel);

		retry_at = DatumGetTimestampTz(cqrs_row_column(row, FAILURE_RETRY_AT,
													   desc));
		*sqlerrcode =
			cqrs_sqlstate_of_text(cqrs_row_column(row, FAILURE_SQLSTATE, desc));

		/* No delay of ours is that long: the clock was set back. */
		if (retry_at > TimestampTzPlusMilliseconds(now, CQRS_LONGEST_FAILURE))
			retry_at = now;
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return retry_at;
}

/*
 * Why the last delivery failed, palloc'd; NULL: it did not.
 */
char *
cqrs_failure_message(int32 subscription_id, int32 partition)
{
	CqrsScan	scan;
	HeapTuple	row = find(&scan, subscription_id, partition, AccessShareLock);
	char	   *message = NULL;

	if (row != NULL)
		message = TextDatumGetCString(cqrs_row_column(row, FAILURE_MESSAGE,
													  RelationGetDescr(scan.rel)));
	cqrs_scan_end(&scan, AccessShareLock);
	return message;
}

int32
cqrs_failure_count(int32 subscription_id, int32 partition)
{
	CqrsScan	scan;
	HeapTuple	row = find(&scan, subscription_id, partition, AccessShareLock);
	int32		failures = 0;

	if (row != NULL)
		failures = DatumGetInt32(cqrs_row_column(row, FAILURE_FAILURES,
												 RelationGetDescr(scan.rel)));
	cqrs_scan_end(&scan, AccessShareLock);
	return failures;
}

/*
 * If delivery failed, let it be tried again now. Returns whether it had failed.
 * The caller holds the cursor's lock.
 */
bool
cqrs_failure_try_now(int32 subscription_id, int32 partition)
{
	CqrsScan	scan;
	HeapTuple	row = find(&scan, subscription_id, partition, RowExclusiveLock);

	if (row != NULL)
	{
		TupleDesc	desc = RelationGetDescr(scan.rel);
		Datum		values[FAILURE_COLUMNS];
		bool		nulls[FAILURE_COLUMNS] = {0};
		bool		replace[FAILURE_COLUMNS] = {0};

		values[FAILURE_RETRY_AT - 1] = cqrs_row_column(row, FAILURE_FAILED_AT,
													   desc);
		replace[FAILURE_RETRY_AT - 1] = true;
		CatalogTupleUpdate(scan.rel, &row->t_self,
						   heap_modify_tuple(row, desc, values, nulls,
											 replace));
	}
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	return row != NULL;
}

/*
 * Delivery works: forget the failure. The caller holds the cursor's lock.
 */
void
cqrs_failure_clear(int32 subscription_id, int32 partition)
{
	CqrsScan	scan;
	HeapTuple	row = find(&scan, subscription_id, partition, RowExclusiveLock);

	if (row != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
}

/*
 * Begin a scan for the cursor's row. Returns it, or NULL if there is none.
 */
static HeapTuple
find(CqrsScan *scan, int32 subscription_id, int32 partition,
	 LOCKMODE lockmode)
{
	ScanKeyData keys[2];

	cqrs_key_int4(&keys[0], FAILURE_SUBSCRIPTION_ID, subscription_id);
	cqrs_key_int4(&keys[1], FAILURE_PARTITION, partition);
	cqrs_scan_begin(scan, CQRS_REL_FAILURE, CQRS_REL_FAILURE_PKEY, lockmode,
					NULL, ForwardScanDirection, 2, keys);
	return cqrs_scan_next(scan);
}
