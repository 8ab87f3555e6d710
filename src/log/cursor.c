/*-------------------------------------------------------------------------
 *
 * cursor.c
 *	  How far a subscription is: a cursor for each of its partitions.
 *
 * A cursor moves by appending a row with the next seq; the newest row counts,
 * and the rows behind it are deleted. So reading it costs the same however
 * long some transaction keeps the dead rows: they are all at the other end of
 * the index.
 *
 * Locking
 *
 * Whoever moves a cursor takes the subscription's lock first, and only then
 * the snapshot that it reads cursor, tick and events with. The primary key is
 * the fence: two moves from the same row cannot both commit.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "port/pg_bitutils.h"
#include "utils/array.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/event_id.h"
#include "extension/row.h"
#include "log/cursor.h"
#include "log/position.h"
#include "log/tick.h"
#include "shared/clock.h"

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
	CURSOR_RECEIVED_ALL,
	CURSOR_RECEIPT,
	CURSOR_LEASED_UNTIL,
	CURSOR_EXPIRED,
	CURSOR_COVERED,
	CURSOR_PASSED,
	CURSOR_NEXT_RETRY_AT,
	CURSOR_PASSED_AT,
	CURSOR_DELIVERED,
	CURSOR_LAST_POSITION,
	CURSOR_MOVED_AT,
	CURSOR_NATIVE,
	CURSOR_BY_TOPIC,
	CURSOR_PRODUCER,
	CURSOR_SENT,
	CURSOR_INTENT,
	CURSOR_INTENT_POSITION,
	CURSOR_INTENT_EVENTS,
	CURSOR_INTENT_PARKED,
	CURSOR_DIVERGED,
	CURSOR_RESENT_AT,
	CURSOR_COLUMNS = CURSOR_RESENT_AT
};

/* Once in this many moves, the rows behind are deleted. */
#define ROWS_KEPT	64

/* The most bytes of a position in "covered": 64 bits, seven to a byte. */
#define PACKED_LENGTH	10

static void init_row(const CqrsCursor *cursor, Datum *values, bool *nulls);
static void read_receipt(CqrsCursor *cursor, const Datum *values,
						 const bool *nulls);
static void write_receipt(const CqrsCursor *cursor, Datum *values,
						  bool *nulls);
static void read_sent(CqrsSent *sent, const Datum *values,
					  const bool *nulls);
static void write_sent(const CqrsSent *sent, Datum *values, bool *nulls);
static void read_id(CqrsTransactionId *id, Datum value, bool isnull);
static int	read_positions(Datum array, int64 **positions);
static Datum write_positions(const int64 *positions, int npositions);
static int	unpack_positions(Datum packed, int64 **positions);
static Datum pack_positions(const int64 *positions, int npositions);
static int	find_position(const int64 *positions, int npositions,
						  int64 position);
static void delete_rows(int nkeys, ScanKeyData *keys);
static void init_keys(ScanKeyData *keys, int32 subscription_id,
					  int32 partition);

/*
 * The newest row of a cursor that the snapshot shows, in the current memory
 * context. Returns false if there is none: the subscription was dropped.
 *
 * A restored cursor has delivered none of this cluster's events; what it says
 * about another cluster's is only for cqrs_adopt().
 */
bool
cqrs_cursor_read(int32 subscription_id, int32 partition, Snapshot snapshot,
				 CqrsCursor *cursor)
{
	if (!cqrs_cursor_read_restored(subscription_id, partition, snapshot,
								   cursor))
		return false;
	if (!cursor->native)
	{
		cursor->tick_id = cursor->until_tick = 0;
		cursor->snapshot = cqrs_snapshot_empty();
		cursor->until_snapshot = NULL;
		cursor->position = cursor->received = 0;
		cursor->received_all = false;
		cursor->npassed = 0;
		memset(&cursor->sent, 0, sizeof(cursor->sent));
		cqrs_cursor_forget_receipt(cursor);
	}
	return true;
}

/*
 * Like cqrs_cursor_read(), but with what a restored cursor says.
 */
bool
cqrs_cursor_read_restored(int32 subscription_id, int32 partition,
						  Snapshot snapshot, CqrsCursor *cursor)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[CURSOR_COLUMNS];
	bool		nulls[CURSOR_COLUMNS];
	bool		found;

	memset(cursor, 0, sizeof(*cursor));
	cursor->subscription_id = subscription_id;
	cursor->partition = partition;

	init_keys(keys, subscription_id, partition);
	cqrs_scan_begin(&scan, CQRS_REL_CURSOR, CQRS_REL_CURSOR_PKEY,
					AccessShareLock, snapshot, BackwardScanDirection, 2, keys);
	found = cqrs_scan_read(&scan, values, nulls) != NULL;
	if (found)
	{
		cursor->seq = DatumGetInt64(values[CURSOR_SEQ - 1]);
		cursor->native = DatumGetBool(values[CURSOR_NATIVE - 1]);
		cursor->by_topic = DatumGetBool(values[CURSOR_BY_TOPIC - 1]);
		cursor->tick_id = DatumGetInt64(values[CURSOR_TICK_ID - 1]);
		cursor->snapshot =
			cqrs_snapshot_from_datum(values[CURSOR_SNAPSHOT - 1]);
		if (!nulls[CURSOR_UNTIL_TICK - 1])
		{
			cursor->until_tick = DatumGetInt64(values[CURSOR_UNTIL_TICK - 1]);
			cursor->until_snapshot =
				cqrs_snapshot_from_datum(values[CURSOR_UNTIL_SNAPSHOT - 1]);
			cursor->position = DatumGetInt64(values[CURSOR_POSITION - 1]);
			cursor->received = DatumGetInt64(values[CURSOR_RECEIVED - 1]);
		}
		cursor->received_all =
			DatumGetBool(values[CURSOR_RECEIVED_ALL - 1]);
		read_receipt(cursor, values, nulls);
		read_sent(&cursor->sent, values, nulls);
		if (!nulls[CURSOR_NEXT_RETRY_AT - 1])
			cursor->next_retry_at =
				DatumGetTimestampTz(values[CURSOR_NEXT_RETRY_AT - 1]);
		if (!nulls[CURSOR_PASSED_AT - 1])
			cursor->passed_at =
				DatumGetTimestampTz(values[CURSOR_PASSED_AT - 1]);
		cursor->delivered = DatumGetInt64(values[CURSOR_DELIVERED - 1]);
		cursor->last_position =
			DatumGetInt64(values[CURSOR_LAST_POSITION - 1]);
		cursor->moved_at = DatumGetTimestampTz(values[CURSOR_MOVED_AT - 1]);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return found;
}

/*
 * All cursors of a subscription, as they are now. Their locks are held.
 */
CqrsCursor *
cqrs_cursor_read_all(int32 subscription_id, int partitions)
{
	CqrsCursor *cursors = palloc(sizeof(CqrsCursor) * partitions);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			i;

	for (i = 0; i < partitions; i++)
		if (!cqrs_cursor_read(subscription_id, i, snapshot, &cursors[i]))
			elog(ERROR, "subscription %d has no cursor %d",
				 subscription_id, i);
	UnregisterSnapshot(snapshot);
	return cursors;
}

/*
 * Copy where a cursor is, its snapshots included, to the current memory
 * context. Whatever else it points to is not copied.
 */
void
cqrs_cursor_copy(CqrsCursor *copy, const CqrsCursor *cursor)
{
	*copy = *cursor;
	copy->snapshot =
		cqrs_snapshot_from_datum(PointerGetDatum(cursor->snapshot));
	if (cursor->until_tick != 0)
		copy->until_snapshot =
			cqrs_snapshot_from_datum(PointerGetDatum(cursor->until_snapshot));
}

/*
 * How many cursors of a subscription the snapshot shows; the registry may be
 * of another time. 0: the subscription is not there, or being restored.
 */
int
cqrs_cursor_partitions(int32 subscription_id, Snapshot snapshot)
{
	CqrsScan	scan;
	ScanKeyData key;
	HeapTuple	row;
	int			partitions = 0;

	cqrs_key_int4(&key, CURSOR_SUBSCRIPTION_ID, subscription_id);
	cqrs_scan_begin(&scan, CQRS_REL_CURSOR, CQRS_REL_CURSOR_PKEY,
					AccessShareLock, snapshot, BackwardScanDirection, 1, &key);
	row = cqrs_scan_next(&scan);
	if (row != NULL)
		partitions = DatumGetInt32(cqrs_row_column(row, CURSOR_PARTITION,
												   RelationGetDescr(scan.rel))) + 1;
	cqrs_scan_end(&scan, AccessShareLock);
	return partitions;
}

/*
 * Set where a new cursor starts: at what is retained, or at what commits from
 * now on. In the first case, restored events come first; so unless all its
 * topics are native, it has to be adopted before it delivers.
 */
void
cqrs_cursor_start(CqrsCursor *cursor, bool latest, bool native)
{
	cursor->native = latest || native;
	cursor->npassed = 0;
	cursor->sent.intent_position = 0;
	cqrs_cursor_forget_receipt(cursor);
	if (latest)
	{
		cursor->last_position = cqrs_last_position();
		cursor->snapshot = cqrs_snapshot_take();
		cursor->tick_id = cqrs_tick_next_id();
	}
	else
	{
		cursor->last_position = 0;
		cursor->snapshot = cqrs_snapshot_empty();
		cursor->tick_id = 0;
	}
}

/*
 * At what rate events were delivered lately, in events a second: over the last
 * ROWS_KEPT / 2 moves or so.
 */
double
cqrs_cursor_rate(const CqrsCursor *cursor, Snapshot snapshot)
{
	CqrsScan	scan;
	ScanKeyData keys[3];
	Datum		values[CURSOR_COLUMNS];
	bool		nulls[CURSOR_COLUMNS];
	double		rate = 0;

	init_keys(keys, cursor->subscription_id, cursor->partition);
	cqrs_key_int8(&keys[2], CURSOR_SEQ, BTGreaterEqualStrategyNumber,
				  cursor->seq - ROWS_KEPT / 2);
	cqrs_scan_begin(&scan, CQRS_REL_CURSOR, CQRS_REL_CURSOR_PKEY,
					AccessShareLock, snapshot, ForwardScanDirection, 3, keys);
	if (cqrs_scan_read(&scan, values, nulls))
	{
		double		seconds;

		seconds = (cqrs_wall_now() -
				   DatumGetTimestampTz(values[CURSOR_MOVED_AT - 1])) /
			(double) USECS_PER_SEC;
		if (seconds > 0)
			rate = (cursor->delivered -
					DatumGetInt64(values[CURSOR_DELIVERED - 1])) / seconds;
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return rate;
}

/*
 * Raises 55000 if the cursor was restored, and not adopted.
 */
void
cqrs_cursor_require_native(const CqrsCursor *cursor, const char *subscription)
{
	if (!cursor->native)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" was restored from a dump",
						subscription),
				 errdetail("Nothing is delivered to it."),
				 errhint("Use cqrs_adopt() to have the restored events delivered, or cqrs_seek() to pass them by.")));
}

/*
 * Append the cursor's next row; seq becomes that row's. The caller holds the
 * subscription's lock, and read the cursor under it. Raises 23505 if somebody
 * moved it all the same.
 */
void
cqrs_cursor_append(CqrsCursor *cursor)
{
	ScanKeyData keys[4];
	Datum		values[CURSOR_COLUMNS];
	bool		nulls[CURSOR_COLUMNS];

	cursor->seq++;
	cursor->moved_at = cqrs_wall_now();
	init_row(cursor, values, nulls);
	cqrs_row_insert(CQRS_REL_CURSOR, values, nulls);

	/*
	 * What to delete is computed, not looked up: a search for the oldest row
	 * would walk over the dead ones. The ranges overlap, so that what an
	 * aborted move left is deleted ROWS_KEPT moves later.
	 */
	if (cursor->seq % ROWS_KEPT == 0)
	{
		init_keys(keys, cursor->subscription_id, cursor->partition);
		cqrs_key_int8(&keys[2], CURSOR_SEQ, BTGreaterEqualStrategyNumber,
					  cursor->seq - 2 * ROWS_KEPT);
		cqrs_key_int8(&keys[3], CURSOR_SEQ, BTLessStrategyNumber, cursor->seq);
		delete_rows(4, keys);
	}
	CommandCounterIncrement();
}

/*
 * The name of the transactions that the cursor is to be delivered in, if it has
 * none. The caller writes it: in the transaction from which on it is delivered
 * exactly once, so that whoever has lost the name has lost that, too.
 */
void
cqrs_cursor_draw_producer(CqrsCursor *cursor)
{
	if (cursor->sent.producer.given)
		return;
	cursor->sent.producer.given = true;
	cqrs_event_id_generate(GetCurrentTimestamp(), &cursor->sent.producer.id);
}

/*
 * Change, in the cursor's newest row, what it says of a broker's transactions: the
 * cursor has not moved, so what is on its way counts. The caller holds the
 * subscription's lock, and read the cursor, a native one, under it.
 */
void
cqrs_cursor_rewrite_sent(CqrsCursor *cursor)
{
	ScanKeyData keys[3];
	Datum		values[CURSOR_COLUMNS];
	bool		nulls[CURSOR_COLUMNS];

	Assert(cursor->native);
	init_keys(keys, cursor->subscription_id, cursor->partition);
	cqrs_key_int8(&keys[2], CURSOR_SEQ, BTEqualStrategyNumber, cursor->seq);
	delete_rows(3, keys);
	init_row(cursor, values, nulls);
	cqrs_row_insert(CQRS_REL_CURSOR, values, nulls);
	CommandCounterIncrement();
}

static void
init_row(const CqrsCursor *cursor, Datum *values, bool *nulls)
{
	memset(nulls, 0, sizeof(bool) * CURSOR_COLUMNS);
	values[CURSOR_SUBSCRIPTION_ID - 1] = Int32GetDatum(cursor->subscription_id);
	values[CURSOR_PARTITION - 1] = Int32GetDatum(cursor->partition);
	values[CURSOR_SEQ - 1] = Int64GetDatum(cursor->seq);
	values[CURSOR_TICK_ID - 1] = Int64GetDatum(cursor->tick_id);
	values[CURSOR_SNAPSHOT - 1] = PointerGetDatum(cursor->snapshot);
	values[CURSOR_UNTIL_TICK - 1] = Int64GetDatum(cursor->until_tick);
	values[CURSOR_UNTIL_SNAPSHOT - 1] =
		PointerGetDatum(cursor->until_snapshot);
	values[CURSOR_POSITION - 1] = Int64GetDatum(cursor->position);
	values[CURSOR_RECEIVED - 1] = Int64GetDatum(cursor->received);
	if (cursor->until_tick == 0)
		nulls[CURSOR_UNTIL_TICK - 1] = nulls[CURSOR_UNTIL_SNAPSHOT - 1] =
			nulls[CURSOR_POSITION - 1] = nulls[CURSOR_RECEIVED - 1] = true;
	values[CURSOR_RECEIVED_ALL - 1] = BoolGetDatum(cursor->received_all);
	write_receipt(cursor, values, nulls);
	write_sent(&cursor->sent, values, nulls);
	values[CURSOR_NEXT_RETRY_AT - 1] =
		TimestampTzGetDatum(cursor->next_retry_at);
	nulls[CURSOR_NEXT_RETRY_AT - 1] = cursor->next_retry_at == 0;
	values[CURSOR_PASSED_AT - 1] = TimestampTzGetDatum(cursor->passed_at);
	nulls[CURSOR_PASSED_AT - 1] = cursor->passed_at == 0;
	values[CURSOR_DELIVERED - 1] = Int64GetDatum(cursor->delivered);
	values[CURSOR_LAST_POSITION - 1] = Int64GetDatum(cursor->last_position);
	values[CURSOR_MOVED_AT - 1] = TimestampTzGetDatum(cursor->moved_at);
	values[CURSOR_NATIVE - 1] = BoolGetDatum(cursor->native);
	values[CURSOR_BY_TOPIC - 1] = BoolGetDatum(cursor->by_topic);
}

/*
 * Forget the receipt, and what was handed out with it.
 */
void
cqrs_cursor_forget_receipt(CqrsCursor *cursor)
{
	cursor->has_receipt = false;
	cursor->leased_until = 0;
	cursor->expired = 0;
	cursor->ncovered = 0;
}

bool
cqrs_cursor_covers(const CqrsCursor *cursor, int64 position)
{
	return cqrs_positions_contain(cursor->covered, cursor->ncovered, position);
}

/*
 * Is this position of the window settled, ahead of the cursor?
 */
bool
cqrs_cursor_has_passed(const CqrsCursor *cursor, int64 position)
{
	return cqrs_positions_contain(cursor->passed, cursor->npassed, position);
}

/*
 * Is position one of these, which are in order?
 */
bool
cqrs_positions_contain(const int64 *positions, int npositions, int64 position)
{
	int			i = find_position(positions, npositions, position);

	return i < npositions && positions[i] == position;
}

/*
 * For qsort().
 */
int
cqrs_position_compare(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

/*
 * The event at this position is settled. If the cursor has yet to come there,
 * note that it is to be passed by. (If it is of an earlier window, that does
 * no harm.) Between windows, it is one that was redriven before a seek, which
 * brings it again, in the next window.
 */
void
cqrs_cursor_pass(CqrsCursor *cursor, int64 position)
{
	int			i;

	if (cursor->until_tick == 0 ? position <= cursor->last_position :
		position <= cursor->position)
		return;
	i = find_position(cursor->passed, cursor->npassed, position);
	if (i < cursor->npassed && cursor->passed[i] == position)
		return;

	/* Double the room each time that a power of two is reached. */
	if (cursor->npassed == 0)
		cursor->passed = palloc(sizeof(int64));
	else if ((cursor->npassed & (cursor->npassed - 1)) == 0)
		cursor->passed = repalloc_huge(cursor->passed,
									   sizeof(int64) * 2 * cursor->npassed);
	memmove(&cursor->passed[i + 1], &cursor->passed[i],
			sizeof(int64) * (cursor->npassed - i));
	cursor->passed[i] = position;
	cursor->npassed++;
}

/*
 * Of the positions that were to be passed by, forget those that the cursor has
 * come to.
 */
void
cqrs_cursor_forget_passed(CqrsCursor *cursor)
{
	int			n;

	if (cursor->npassed == 0)
		return;
	n = find_position(cursor->passed, cursor->npassed, cursor->position + 1);
	if (n == 0)
		return;
	cursor->npassed -= n;
	if (cursor->npassed > 0)
	{
		int64	   *rest = palloc(sizeof(int64) *
								  pg_nextpower2_32(cursor->npassed));

		memcpy(rest, cursor->passed + n, sizeof(int64) * cursor->npassed);
		cursor->passed = rest;
	}
}

void
cqrs_cursor_delete_all(int32 subscription_id)
{
	ScanKeyData key;

	cqrs_key_int4(&key, CURSOR_SUBSCRIPTION_ID, subscription_id);
	delete_rows(1, &key);
}

/*
 * Read what a row says of what was handed out.
 */
static void
read_receipt(CqrsCursor *cursor, const Datum *values, const bool *nulls)
{
	cursor->has_receipt = !nulls[CURSOR_RECEIPT - 1];
	if (cursor->has_receipt)
		cursor->receipt = *DatumGetUUIDP(values[CURSOR_RECEIPT - 1]);
	if (!nulls[CURSOR_LEASED_UNTIL - 1])
		cursor->leased_until =
			cqrs_wall_due(DatumGetTimestampTz(values[CURSOR_LEASED_UNTIL - 1]),
						  DatumGetTimestampTz(values[CURSOR_MOVED_AT - 1]));
	cursor->expired = DatumGetInt16(values[CURSOR_EXPIRED - 1]);
	if (!nulls[CURSOR_COVERED - 1])
		cursor->ncovered = unpack_positions(values[CURSOR_COVERED - 1],
											&cursor->covered);
	if (!nulls[CURSOR_PASSED - 1])
		cursor->npassed = read_positions(values[CURSOR_PASSED - 1],
										 &cursor->passed);
}

static void
write_receipt(const CqrsCursor *cursor, Datum *values, bool *nulls)
{
	nulls[CURSOR_RECEIPT - 1] = !cursor->has_receipt;
	values[CURSOR_RECEIPT - 1] = UUIDPGetDatum(&cursor->receipt);
	nulls[CURSOR_LEASED_UNTIL - 1] = cursor->leased_until == 0;
	values[CURSOR_LEASED_UNTIL - 1] =
		TimestampTzGetDatum(cursor->leased_until);
	values[CURSOR_EXPIRED - 1] = Int16GetDatum((int16) cursor->expired);
	nulls[CURSOR_COVERED - 1] = cursor->ncovered == 0;
	if (cursor->ncovered > 0)
		values[CURSOR_COVERED - 1] = pack_positions(cursor->covered,
													cursor->ncovered);
	nulls[CURSOR_PASSED - 1] = cursor->npassed == 0;
	if (cursor->npassed > 0)
		values[CURSOR_PASSED - 1] = write_positions(cursor->passed,
													cursor->npassed);
}

/*
 * Read what a row says of a broker's transactions.
 */
static void
read_sent(CqrsSent *sent, const Datum *values, const bool *nulls)
{
	read_id(&sent->producer, values[CURSOR_PRODUCER - 1],
			nulls[CURSOR_PRODUCER - 1]);
	read_id(&sent->sent, values[CURSOR_SENT - 1], nulls[CURSOR_SENT - 1]);
	read_id(&sent->intent, values[CURSOR_INTENT - 1],
			nulls[CURSOR_INTENT - 1]);
	read_id(&sent->diverged, values[CURSOR_DIVERGED - 1],
			nulls[CURSOR_DIVERGED - 1]);
	if (!nulls[CURSOR_RESENT_AT - 1])
		sent->resent_at = DatumGetTimestampTz(values[CURSOR_RESENT_AT - 1]);
	if (nulls[CURSOR_INTENT_POSITION - 1])
		return;
	sent->intent_position = DatumGetInt64(values[CURSOR_INTENT_POSITION - 1]);
	sent->intent_events = DatumGetInt32(values[CURSOR_INTENT_EVENTS - 1]);
	sent->intent_parked = DatumGetBool(values[CURSOR_INTENT_PARKED - 1]);
}

static void
write_sent(const CqrsSent *sent, Datum *values, bool *nulls)
{
	bool		none = !sent->intent.given || sent->intent_position == 0;

	nulls[CURSOR_PRODUCER - 1] = !sent->producer.given;
	values[CURSOR_PRODUCER - 1] = UUIDPGetDatum(&sent->producer.id);
	nulls[CURSOR_SENT - 1] = !sent->sent.given;
	values[CURSOR_SENT - 1] = UUIDPGetDatum(&sent->sent.id);
	nulls[CURSOR_INTENT - 1] = !sent->intent.given;
	values[CURSOR_INTENT - 1] = UUIDPGetDatum(&sent->intent.id);
	nulls[CURSOR_INTENT_POSITION - 1] = nulls[CURSOR_INTENT_EVENTS - 1] =
		nulls[CURSOR_INTENT_PARKED - 1] = none;
	values[CURSOR_INTENT_POSITION - 1] = Int64GetDatum(sent->intent_position);
	values[CURSOR_INTENT_EVENTS - 1] = Int32GetDatum(sent->intent_events);
	values[CURSOR_INTENT_PARKED - 1] = BoolGetDatum(sent->intent_parked);
	nulls[CURSOR_DIVERGED - 1] = !sent->diverged.given;
	values[CURSOR_DIVERGED - 1] = UUIDPGetDatum(&sent->diverged.id);
	nulls[CURSOR_RESENT_AT - 1] = sent->resent_at == 0;
	values[CURSOR_RESENT_AT - 1] = TimestampTzGetDatum(sent->resent_at);
}

static void
read_id(CqrsTransactionId *id, Datum value, bool isnull)
{
	id->given = !isnull;
	if (!isnull)
		id->id = *DatumGetUUIDP(value);
}

/*
 * Copy the elements of an array of bigint, none NULL, to new memory with room
 * for a power of two of them.
 */
static int
read_positions(Datum array, int64 **positions)
{
	ArrayType  *value = DatumGetArrayTypeP(array);
	int			n = ArrayGetNItems(ARR_NDIM(value), ARR_DIMS(value));

	if (n == 0)
		return 0;
	*positions = palloc(sizeof(int64) * pg_nextpower2_32(n));
	memcpy(*positions, ARR_DATA_PTR(value), sizeof(int64) * n);
	return n;
}

static Datum
write_positions(const int64 *positions, int npositions)
{
	Size		size = ARR_OVERHEAD_NONULLS(1) + sizeof(int64) * npositions;
	ArrayType  *array = palloc0(size);

	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->dataoffset = 0;
	array->elemtype = INT8OID;
	ARR_DIMS(array)[0] = npositions;
	ARR_LBOUND(array)[0] = 1;
	memcpy(ARR_DATA_PTR(array), positions, sizeof(int64) * npositions);
	return PointerGetDatum(array);
}

/*
 * Each receive and each acknowledgement writes down what was handed out, so it
 * is packed: for each position, the difference to the one before, seven bits
 * to a byte, the lowest first; all bytes but the last have the eighth bit set.
 */
static Datum
pack_positions(const int64 *positions, int npositions)
{
	bytea	   *packed = palloc(VARHDRSZ + (Size) npositions * PACKED_LENGTH);
	uint8	   *next = (uint8 *) VARDATA(packed);
	int64		before = 0;
	int			i;

	for (i = 0; i < npositions; i++)
	{
		uint64		rest = positions[i] - before;

		for (; rest >= 0x80; rest >>= 7)
			*next++ = (rest & 0x7F) | 0x80;
		*next++ = rest;
		before = positions[i];
	}
	SET_VARSIZE(packed, (char *) next - (char *) packed);
	return PointerGetDatum(packed);
}

static int
unpack_positions(Datum packed, int64 **positions)
{
	bytea	   *value = DatumGetByteaPP(packed);
	const uint8 *next = (const uint8 *) VARDATA_ANY(value);
	const uint8 *end = next + VARSIZE_ANY_EXHDR(value);
	uint64		position = 0;
	int			n = 0;

	*positions = palloc_extended(sizeof(int64) * (end - next + 1),
								 MCXT_ALLOC_HUGE);
	while (next < end)
	{
		uint64		step = 0;
		int			shift = 0;

		for (; next < end && (*next & 0x80) != 0 && shift < 56; shift += 7)
			step |= (uint64) (*next++ & 0x7F) << shift;
		if (next < end)
			step |= (uint64) *next++ << shift;
		position += step;
		(*positions)[n++] = (int64) position;
	}
	return n;
}

/*
 * The index of the first position that is not lower.
 */
static int
find_position(const int64 *positions, int npositions, int64 position)
{
	int			low = 0;
	int			high = npositions;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (positions[middle] < position)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void
delete_rows(int nkeys, ScanKeyData *keys)
{
	CqrsScan	scan;
	HeapTuple	row;

	cqrs_scan_begin(&scan, CQRS_REL_CURSOR, CQRS_REL_CURSOR_PKEY,
					RowExclusiveLock, NULL, ForwardScanDirection, nkeys, keys);
	while ((row = cqrs_scan_next(&scan)) != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
}

static void
init_keys(ScanKeyData *keys, int32 subscription_id, int32 partition)
{
	cqrs_key_int4(&keys[0], CURSOR_SUBSCRIPTION_ID, subscription_id);
	cqrs_key_int4(&keys[1], CURSOR_PARTITION, partition);
}
