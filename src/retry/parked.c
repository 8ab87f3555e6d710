/*-------------------------------------------------------------------------
 *
 * parked.c
 *	  The rows of cqrs.retry, and how they are found.
 *
 * See cqrs_event_lane() for what a lane is. The parked event of a lane with the
 * lowest position is its head: only that may be tried, and so only it has a
 * due_at. The index on due_at finds what is due, the index on the lane what is
 * parked of it. Nothing is kept in memory: to find a row among a million costs
 * no more than among ten.
 *
 * The cursor has the lowest due_at, or none. So a subscription without parked
 * events does not look here at all; and a search for what is due does not walk
 * over the dead rows of what was due before, which a long transaction may keep.
 *
 * Locking
 *
 * The cursor's lock protects its rows: whoever changes them has read the cursor
 * under it, and appends it afterwards. So one version of each row counts, and
 * SnapshotSelf shows it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "base/sqlstate.h"
#include "extension/row.h"
#include "retry/parked.h"
#include "shared/clock.h"

/* Columns of cqrs.retry. */
enum
{
	RETRY_SUBSCRIPTION_ID = 1,
	RETRY_PARTITION,
	RETRY_LANE,
	RETRY_POSITION,				/* of the event; ... */
	RETRY_EVENT_ID,				/* ... this, and the rest of it */
	RETRY_EVENT_NAME,
	RETRY_TOPIC_ID,
	RETRY_ATTEMPTS = RETRY_POSITION + CQRS_EVENT_COLUMNS,
	RETRY_RECEIPT,
	RETRY_FAILED_AT,
	RETRY_RETRY_AT,
	RETRY_DUE_AT,
	RETRY_SQLSTATE,
	RETRY_MESSAGE,
	RETRY_COLUMNS = RETRY_MESSAGE
};

static bool lane_first(const CqrsCursor *cursor, uint64 lane,
					   int64 position, ScanDirection direction,
					   CqrsParked *parked);
static void lower_next_retry(CqrsCursor *cursor, TimestampTz due_at);
static void find_next_retry(CqrsCursor *cursor);
static void set_due(const CqrsCursor *cursor, int64 position,
					TimestampTz due_at);
static void set_fault(const CqrsFault *fault, Datum *values, bool *nulls);
static void update_row(const CqrsCursor *cursor, int64 position,
					   Datum *values, bool *nulls, bool *replace);
static void begin_scan(CqrsScan *scan, CqrsRelation index,
					   Snapshot snapshot, ScanDirection direction,
					   int nkeys, ScanKeyData *keys);
static void begin_at(CqrsScan *scan, const CqrsCursor *cursor,
					 int64 position, Snapshot snapshot);
static int	init_keys(ScanKeyData *keys, const CqrsCursor *cursor);
static void read_row(CqrsScan *scan, HeapTuple tuple,
					 CqrsParked *parked);
static void read_event(CqrsScan *scan, HeapTuple tuple,
					   CqrsEvent *event, int *attempts);

/*
 * The cursor was read, to be moved. If the clock was set back since it last
 * moved, make sure that nothing waits until the clock is there again.
 */
void
cqrs_parked_open(CqrsCursor *cursor)
{
	if (cursor->next_retry_at != 0 &&
		cqrs_wall_due(cursor->moved_at, cursor->moved_at) != cursor->moved_at)
		(void) cqrs_parked_due_anew(cursor, cqrs_wall_now());
}

/*
 * The cursor is about to be appended. Until now, next_retry_at may have been too
 * early: make it exact.
 */
void
cqrs_parked_close(CqrsCursor *cursor)
{
	if (cursor->next_retry_at != 0)
		find_next_retry(cursor);
}

/*
 * Find the parked event that is to be tried first, if it is due.
 */
bool
cqrs_parked_due(CqrsCursor *cursor, TimestampTz now, CqrsParked *parked)
{
	CqrsScan	scan;
	bool		found;

	if (cursor->next_retry_at == 0 || cursor->next_retry_at > now)
		return false;
	cqrs_parked_heads_begin(&scan, cursor, now);
	found = cqrs_parked_heads_next(&scan, parked);
	cqrs_scan_end(&scan, NoLock);
	if (!found)
		find_next_retry(cursor);
	return found;
}

bool
cqrs_parked_find(const CqrsCursor *cursor, int64 position, CqrsParked *parked)
{
	CqrsScan	scan;
	HeapTuple	tuple;

	parked->position = 0;
	if (cursor->next_retry_at == 0)
		return false;
	begin_at(&scan, cursor, position, NULL);
	tuple = cqrs_scan_next(&scan);
	if (tuple != NULL)
		read_row(&scan, tuple, parked);
	cqrs_scan_end(&scan, NoLock);
	return tuple != NULL;
}

/*
 * Is this event parked, and not another one at its position?
 */
bool
cqrs_parked_is(const CqrsCursor *cursor, const CqrsEvent *event)
{
	CqrsParked	parked;

	return cqrs_parked_find(cursor, event->position, &parked) &&
		memcmp(&parked.event_id, DatumGetUUIDP(event->event_id),
			   UUID_LEN) == 0;
}

/*
 * The highest parked position of a lane, or 0 if there is none.
 */
int64
cqrs_parked_lane_last(const CqrsCursor *cursor, uint64 lane)
{
	CqrsParked	parked;

	if (cursor->next_retry_at == 0)
		return 0;
	return lane_first(cursor, lane, PG_INT64_MAX, BackwardScanDirection,
					  &parked) ? parked.position : 0;
}

bool
cqrs_parked_lane_next(const CqrsCursor *cursor, uint64 lane,
					  int64 after_position, CqrsParked *parked)
{
	return lane_first(cursor, lane, after_position, ForwardScanDirection,
					  parked);
}

/*
 * Begin a walk over the heads of lanes that are due by the given time, in the
 * order in which they become due. Nothing may be changed meanwhile.
 */
void
cqrs_parked_heads_begin(CqrsScan *scan, const CqrsCursor *cursor,
						TimestampTz until)
{
	ScanKeyData keys[4];
	int			n = init_keys(keys, cursor);

	ScanKeyInit(&keys[n++], RETRY_DUE_AT, BTGreaterEqualStrategyNumber,
				F_TIMESTAMPTZ_GE, TimestampTzGetDatum(cursor->next_retry_at));
	ScanKeyInit(&keys[n++], RETRY_DUE_AT, BTLessEqualStrategyNumber,
				F_TIMESTAMPTZ_LE, TimestampTzGetDatum(until));
	begin_scan(scan, CQRS_REL_RETRY_DUE, NULL, ForwardScanDirection, n, keys);
}

bool
cqrs_parked_heads_next(CqrsScan *scan, CqrsParked *parked)
{
	HeapTuple	tuple = cqrs_scan_next(scan);

	if (tuple == NULL)
		return false;
	read_row(scan, tuple, parked);
	return true;
}

/*
 * Add an event to the parked ones.
 *	retry_at	not to be tried before
 *	fault		why it failed; NULL: it only waits, or is to be tried anew
 *	receipt		with which it was handed out, or NULL
 */
void
cqrs_parked_insert(CqrsCursor *cursor, const CqrsEvent *event, int attempts,
				   TimestampTz retry_at, const CqrsFault *fault,
				   const pg_uuid_t *receipt)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	uint64		lane = cqrs_event_lane(event, cursor->by_topic);
	CqrsParked other;
	bool		head = true;

	if (cursor->next_retry_at != 0 &&
		lane_first(cursor, lane, PG_INT64_MAX, BackwardScanDirection, &other))
	{
		/*
		 * An event of a late transaction may come before those that are
		 * parked.
		 */
		head = other.position > event->position &&
				   !lane_first(cursor, lane, event->position,
							   BackwardScanDirection, &other);

		if (head && lane_first(cursor, lane, event->position,
							   ForwardScanDirection, &other))
			set_due(cursor, other.position, 0);
	}

	values[RETRY_SUBSCRIPTION_ID - 1] = Int32GetDatum(cursor->subscription_id);
	values[RETRY_PARTITION - 1] = Int32GetDatum(cursor->partition);
	values[RETRY_LANE - 1] = Int64GetDatum((int64) lane);
	cqrs_event_store(event, &values[RETRY_POSITION - 1],
					 &nulls[RETRY_POSITION - 1]);
	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(attempts);
	values[RETRY_RECEIPT - 1] = UUIDPGetDatum(receipt);
	nulls[RETRY_RECEIPT - 1] = receipt == NULL;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(retry_at);
	values[RETRY_DUE_AT - 1] = TimestampTzGetDatum(retry_at);
	nulls[RETRY_DUE_AT - 1] = !head;
	set_fault(fault, values, nulls);

	cqrs_row_insert(CQRS_REL_RETRY, values, nulls);
	CommandCounterIncrement();
	if (head)
		lower_next_retry(cursor, retry_at);
}

/*
 * Write down what became of a parked event: attempts, receipt, retry_at, and
 * why it failed.
 */
void
cqrs_parked_update(CqrsCursor *cursor, const CqrsParked *parked,
				   const CqrsFault *fault)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};

	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(parked->attempts);
	replace[RETRY_ATTEMPTS - 1] = true;
	values[RETRY_RECEIPT - 1] = UUIDPGetDatum(&parked->receipt);
	nulls[RETRY_RECEIPT - 1] = !parked->received;
	replace[RETRY_RECEIPT - 1] = true;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(parked->retry_at);
	replace[RETRY_RETRY_AT - 1] = true;
	if (parked->head)
	{
		values[RETRY_DUE_AT - 1] = TimestampTzGetDatum(parked->retry_at);
		replace[RETRY_DUE_AT - 1] = true;
	}
	set_fault(fault, values, nulls);
	replace[RETRY_FAILED_AT - 1] = true;
	replace[RETRY_SQLSTATE - 1] = true;
	replace[RETRY_MESSAGE - 1] = true;
	update_row(cursor, parked->position, values, nulls, replace);
	if (parked->head)
		lower_next_retry(cursor, parked->retry_at);
}

/*
 * Write down the receipt that a parked event was handed out with.
 */
void
cqrs_parked_set_receipt(CqrsCursor *cursor, const CqrsParked *parked)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};

	values[RETRY_RECEIPT - 1] = UUIDPGetDatum(&parked->receipt);
	nulls[RETRY_RECEIPT - 1] = !parked->received;
	replace[RETRY_RECEIPT - 1] = true;
	update_row(cursor, parked->position, values, nulls, replace);
}

/*
 * Have the head of a lane wait until this time, though it has not failed since it
 * was last due. Nothing else is written down of that.
 */
void
cqrs_parked_put_off(CqrsCursor *cursor, int64 position, TimestampTz due_at)
{
	CqrsParked	parked;

	if (cqrs_parked_find(cursor, position, &parked) && parked.head)
		set_due(cursor, position, due_at);
}

/*
 * Make the heads due that were put off: each may be tried from its retry_at on.
 * Returns how many were not due before.
 */
int64
cqrs_parked_due_anew(CqrsCursor *cursor, TimestampTz now)
{
	CqrsScan	scan;
	CqrsParked	parked;
	int64	   *positions = NULL;
	int64		due = 0;
	int			n = 0;
	int			i;

	if (cursor->next_retry_at == 0)
		return 0;

	/* Collect them first: the walk must not meet what it changes. */
	cqrs_parked_heads_begin(&scan, cursor, DT_NOEND);
	while (cqrs_parked_heads_next(&scan, &parked))
	{
		if (positions == NULL)
			positions = palloc(sizeof(int64));
		else if ((n & (n - 1)) == 0)
			positions = repalloc_huge(positions, sizeof(int64) * 2 * n);
		positions[n++] = parked.position;
	}
	cqrs_scan_end(&scan, NoLock);
	for (i = 0; i < n; i++)
		if (cqrs_parked_find(cursor, positions[i], &parked) &&
			parked.retry_at <= now)
		{
			set_due(cursor, parked.position, parked.retry_at);
			due++;
		}
	cursor->next_retry_at = DT_NOBEGIN + 1;
	find_next_retry(cursor);
	return due;
}

/*
 * Make the events that failed due now: all, or those with these ids. Returns how
 * many were not due before. An event that waits for another one of its lane still
 * does.
 */
int64
cqrs_parked_try_now(CqrsCursor *cursor, TimestampTz now,
					const CqrsEventIds *ids)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;
	int64		n = 0;

	if (cursor->next_retry_at == 0)
		return 0;
	begin_scan(&scan, CQRS_REL_RETRY_PKEY, NULL, ForwardScanDirection,
			   init_keys(keys, cursor), keys);
	while ((tuple = cqrs_scan_next(&scan)) != NULL)
	{
		Datum		values[RETRY_COLUMNS];
		bool		nulls[RETRY_COLUMNS] = {0};
		bool		replace[RETRY_COLUMNS] = {0};
		CqrsParked	parked;

		CHECK_FOR_INTERRUPTS();
		read_row(&scan, tuple, &parked);
		if (parked.retry_at <= now ||
			(ids != NULL && !cqrs_event_ids_contain(ids, &parked.event_id)))
			continue;
		values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(now);
		replace[RETRY_RETRY_AT - 1] = true;
		values[RETRY_DUE_AT - 1] = TimestampTzGetDatum(now);
		replace[RETRY_DUE_AT - 1] = parked.head;

		/* If the walk meets the new row, it passes it by as due. */
		CatalogTupleUpdate(scan.rel, &tuple->t_self,
						   heap_modify_tuple(tuple, RelationGetDescr(scan.rel),
											 values, nulls, replace));
		if (parked.head)
			lower_next_retry(cursor, now);
		n++;
	}
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	return n;
}

/*
 * Remove a parked event, so that the next of its lane may be tried.
 */
void
cqrs_parked_delete(CqrsCursor *cursor, const CqrsParked *parked)
{
	CqrsScan	scan;
	CqrsParked	next;
	HeapTuple	tuple;

	begin_at(&scan, cursor, parked->position, NULL);
	tuple = cqrs_scan_next(&scan);
	if (tuple != NULL)
		cqrs_scan_delete(&scan, tuple);
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	if (parked->head &&
		cqrs_parked_lane_next(cursor, parked->lane, parked->position, &next))
	{
		TimestampTz due_at = next.retry_at;

		/*
		 * It only waited: if its time is yet to come, the clock was set back.
		 */
		if (next.failed_at == 0)
			due_at = Min(due_at, cqrs_wall_now());

		set_due(cursor, next.position, due_at);
		lower_next_retry(cursor, due_at);
	}
}

void
cqrs_parked_discard_all(CqrsCursor *cursor)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;

	if (cursor->next_retry_at == 0)
		return;
	begin_scan(&scan, CQRS_REL_RETRY_PKEY, NULL, ForwardScanDirection,
			   init_keys(keys, cursor), keys);
	while ((tuple = cqrs_scan_next(&scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		cqrs_scan_delete(&scan, tuple);
	}
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	cursor->next_retry_at = 0;
}

/*
 * Remove what is parked of a topic.
 */
void
cqrs_parked_discard_topic(CqrsCursor *cursor, int32 topic_id)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;
	CqrsParked	parked;
	List	   *positions = NIL;
	ListCell   *lc;

	if (cursor->next_retry_at == 0)
		return;

	/* Collect them first: the walk must not meet what it changes. */
	begin_scan(&scan, CQRS_REL_RETRY_PKEY, NULL, ForwardScanDirection,
			   init_keys(keys, cursor), keys);
	while ((tuple = cqrs_scan_next(&scan)) != NULL)
	{
		int32		topic = DatumGetInt32(cqrs_row_column(tuple, RETRY_TOPIC_ID,
														  RelationGetDescr(scan.rel)));

		CHECK_FOR_INTERRUPTS();
		if (topic != topic_id)
			continue;
		read_row(&scan, tuple, &parked);
		positions = lappend(positions, memcpy(palloc(sizeof(int64)),
											  &parked.position, sizeof(int64)));
	}
	cqrs_scan_end(&scan, NoLock);
	foreach(lc, positions)
		if (cqrs_parked_find(cursor, *(int64 *) lfirst(lc), &parked))
		cqrs_parked_delete(cursor, &parked);
	list_free_deep(positions);
	cqrs_parked_close(cursor);
}

/*
 * Read a whole parked event, in the current memory context, and how often it
 * was tried. Returns false if the snapshot does not show it, or its topic is
 * gone.
 */
bool
cqrs_parked_read(const CqrsCursor *cursor, int64 position, Snapshot snapshot,
				 CqrsEvent *event, int *attempts)
{
	CqrsScan	scan;
	HeapTuple	tuple;

	event->topic = NULL;
	begin_at(&scan, cursor, position, snapshot);
	tuple = cqrs_scan_next(&scan);
	if (tuple != NULL)
		read_event(&scan, heap_copytuple(tuple), event, attempts);
	cqrs_scan_end(&scan, NoLock);
	return event->topic != NULL;
}

void
cqrs_parked_events_begin(CqrsScan *scan, const CqrsCursor *cursor,
						 int64 after_position, Snapshot snapshot)
{
	ScanKeyData keys[3];
	int			n = init_keys(keys, cursor);

	cqrs_key_int8(&keys[n++], RETRY_POSITION, BTGreaterStrategyNumber,
				  after_position);
	begin_scan(scan, CQRS_REL_RETRY_PKEY, snapshot, ForwardScanDirection, n,
			   keys);
}

/*
 * The walk's next event, valid until the one after it is read. Its topic is
 * NULL if that was dropped.
 */
bool
cqrs_parked_events_next(CqrsScan *scan, CqrsEvent *event, int *attempts)
{
	HeapTuple	tuple;

	CHECK_FOR_INTERRUPTS();
	tuple = cqrs_scan_next(scan);
	if (tuple == NULL)
		return false;
	read_event(scan, tuple, event, attempts);
	return true;
}

/*
 * Find the parked event of a lane that is nearest to a position, above or
 * below it.
 */
static bool
lane_first(const CqrsCursor *cursor, uint64 lane, int64 position,
		   ScanDirection direction, CqrsParked *parked)
{
	bool		above = ScanDirectionIsForward(direction);
	CqrsScan	scan;
	ScanKeyData keys[4];
	int			n = init_keys(keys, cursor);
	HeapTuple	tuple;

	cqrs_key_int8(&keys[n++], RETRY_LANE, BTEqualStrategyNumber, (int64) lane);
	cqrs_key_int8(&keys[n++], RETRY_POSITION,
				  above ? BTGreaterStrategyNumber : BTLessStrategyNumber,
				  position);
	begin_scan(&scan, CQRS_REL_RETRY_LANE, NULL, direction, n, keys);
	tuple = cqrs_scan_next(&scan);
	if (tuple != NULL)
		read_row(&scan, tuple, parked);
	cqrs_scan_end(&scan, NoLock);
	return tuple != NULL;
}

/*
 * Note that a head is due at this time.
 */
static void
lower_next_retry(CqrsCursor *cursor, TimestampTz due_at)
{
	if (cursor->next_retry_at == 0 || due_at < cursor->next_retry_at)
		cursor->next_retry_at = due_at;
}

/*
 * No head is due before next_retry_at: find out when the first one is.
 */
static void
find_next_retry(CqrsCursor *cursor)
{
	CqrsScan	scan;
	HeapTuple	tuple;
	bool		isnull;

	cqrs_parked_heads_begin(&scan, cursor, DT_NOEND);
	tuple = cqrs_scan_next(&scan);
	cursor->next_retry_at = tuple == NULL ? 0 :
		DatumGetTimestampTz(heap_getattr(tuple, RETRY_DUE_AT,
										 RelationGetDescr(scan.rel), &isnull));
	cqrs_scan_end(&scan, NoLock);
}

/*
 * Make a parked event the head of its lane, due at this time; 0: the head no
 * more.
 */
static void
set_due(const CqrsCursor *cursor, int64 position, TimestampTz due_at)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};

	values[RETRY_DUE_AT - 1] = TimestampTzGetDatum(due_at);
	nulls[RETRY_DUE_AT - 1] = due_at == 0;
	replace[RETRY_DUE_AT - 1] = true;
	update_row(cursor, position, values, nulls, replace);
}

static void
set_fault(const CqrsFault *fault, Datum *values, bool *nulls)
{
	nulls[RETRY_FAILED_AT - 1] = fault == NULL;
	nulls[RETRY_SQLSTATE - 1] = fault == NULL;
	nulls[RETRY_MESSAGE - 1] = fault == NULL;
	if (fault == NULL)
		return;
	values[RETRY_FAILED_AT - 1] = TimestampTzGetDatum(cqrs_wall_now());
	values[RETRY_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(fault->sqlerrcode));
	values[RETRY_MESSAGE - 1] =
		CStringGetTextDatum(fault->message ? fault->message : "");
}

static void
update_row(const CqrsCursor *cursor, int64 position, Datum *values,
		   bool *nulls, bool *replace)
{
	CqrsScan	scan;
	HeapTuple	tuple;

	begin_at(&scan, cursor, position, NULL);
	tuple = cqrs_scan_next(&scan);
	if (tuple != NULL)
		CatalogTupleUpdate(scan.rel, &tuple->t_self,
						   heap_modify_tuple(tuple, RelationGetDescr(scan.rel),
											 values, nulls, replace));
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
}

static void
begin_scan(CqrsScan *scan, CqrsRelation index, Snapshot snapshot,
		   ScanDirection direction, int nkeys, ScanKeyData *keys)
{
	cqrs_scan_begin(scan, CQRS_REL_RETRY, index,
					snapshot == NULL ? RowExclusiveLock : AccessShareLock,
					snapshot == NULL ? SnapshotSelf : snapshot, direction,
					nkeys, keys);
}

static void
begin_at(CqrsScan *scan, const CqrsCursor *cursor, int64 position,
		 Snapshot snapshot)
{
	ScanKeyData keys[3];
	int			n = init_keys(keys, cursor);

	cqrs_key_int8(&keys[n++], RETRY_POSITION, BTEqualStrategyNumber, position);
	begin_scan(scan, CQRS_REL_RETRY_PKEY, snapshot, ForwardScanDirection, n,
			   keys);
}

/*
 * Set scan keys for the rows of the cursor. Returns how many.
 */
static int
init_keys(ScanKeyData *keys, const CqrsCursor *cursor)
{
	cqrs_key_int4(&keys[0], RETRY_SUBSCRIPTION_ID, cursor->subscription_id);
	cqrs_key_int4(&keys[1], RETRY_PARTITION, cursor->partition);
	return 2;
}

/*
 * Read all of a row but the event.
 */
static void
read_row(CqrsScan *scan, HeapTuple tuple, CqrsParked *parked)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(scan->rel), values, nulls);
	parked->position = DatumGetInt64(values[RETRY_POSITION - 1]);
	parked->event_id = *DatumGetUUIDP(values[RETRY_EVENT_ID - 1]);
	parked->lane = (uint64) DatumGetInt64(values[RETRY_LANE - 1]);
	parked->attempts = DatumGetInt32(values[RETRY_ATTEMPTS - 1]);
	parked->received = !nulls[RETRY_RECEIPT - 1];
	if (parked->received)
		parked->receipt = *DatumGetUUIDP(values[RETRY_RECEIPT - 1]);
	parked->head = !nulls[RETRY_DUE_AT - 1];
	parked->failed_at = nulls[RETRY_FAILED_AT - 1] ? 0 :
		DatumGetTimestampTz(values[RETRY_FAILED_AT - 1]);
	parked->retry_at =
		cqrs_wall_due(DatumGetTimestampTz(values[RETRY_RETRY_AT - 1]),
					  DatumGetTimestampTz(values[nulls[RETRY_FAILED_AT - 1] ?
												 RETRY_RETRY_AT - 1 :
												 RETRY_FAILED_AT - 1]));
	parked->sqlerrcode = nulls[RETRY_SQLSTATE - 1] ? 0 :
		cqrs_sqlstate_of_text(values[RETRY_SQLSTATE - 1]);
	parked->killed = parked->sqlerrcode == ERRCODE_CRASH_SHUTDOWN;
}

/*
 * Read the event in a row; it points into the tuple.
 */
static void
read_event(CqrsScan *scan, HeapTuple tuple, CqrsEvent *event,
		   int *attempts)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS];

	heap_deform_tuple(tuple, RelationGetDescr(scan->rel), values, nulls);
	cqrs_event_load(event, &values[RETRY_POSITION - 1],
					&nulls[RETRY_POSITION - 1]);
	*attempts = DatumGetInt32(values[RETRY_ATTEMPTS - 1]);
}
