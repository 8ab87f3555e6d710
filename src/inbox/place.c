/*-------------------------------------------------------------------------
 *
 * place.c
 *	  How far a source is consumed: a place for each of its partitions.
 *
 * A place moves as a cursor does (see cursor.c): a row with the next seq is
 * appended, the newest one counts, and those behind it are deleted. Whoever moves
 * it has its lock, and has seen under the lock that nobody else has moved it. The
 * primary key is the fence.
 *
 * Besides, a consumer has a row of no partition, from when it is made: it says in
 * which server that was. While a dump is restored, a consumer may be seen before its
 * places are; without that row, it rests.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "extension/row.h"
#include "include/cqrs_broker.h"
#include "inbox/place.h"
#include "shared/clock.h"

/* Columns of cqrs.consumer_position. */
enum
{
	PLACE_CONSUMER_ID = 1,
	PLACE_PARTITION,
	PLACE_SEQ,
	PLACE_NEXT_OFFSET,
	PLACE_START_AT,
	PLACE_LAST_OFFSET,
	PLACE_LAST_HASH,
	PLACE_END_OFFSET,
	PLACE_CONSUMED,
	PLACE_REPEATED,
	PLACE_DEAD,
	PLACE_LAST_TIME,
	PLACE_STOPPED,
	PLACE_MOVED_AT,
	PLACE_NATIVE,
	PLACE_COLUMNS = PLACE_NATIVE
};

/* Once in this many moves, the rows behind are deleted. */
#define ROWS_KEPT	64

/* The row that says where the consumer was made. */
#define NO_PARTITION	(-1)

static const char *const stopped_names[] = {
	[CQRS_STOPPED_GAP] = "gap",
	[CQRS_STOPPED_OTHER] = "other",
};

static CqrsPlace *read_places(int32 consumer_id, int32 first, int *nplaces);
static void read_row(CqrsPlace *place, const Datum *values,
					 const bool *nulls);
static void delete_rows(int nkeys, ScanKeyData *keys);

/*
 * All places of a consumer as they are now, by partition, in the current memory
 * context.
 */
CqrsPlace *
cqrs_places_read(int32 consumer_id, int *nplaces)
{
	return read_places(consumer_id, 0, nplaces);
}

/*
 * Say that the consumer was made here. It has no places yet.
 */
void
cqrs_places_create(int32 consumer_id)
{
	CqrsPlace	place;

	cqrs_place_init(&place, consumer_id, NO_PARTITION);
	cqrs_place_append(&place);
}

/*
 * Was the consumer made elsewhere, and is it not adopted? So it is, too, as long as
 * nothing says where.
 */
bool
cqrs_places_are_restored(int32 consumer_id)
{
	CqrsPlace  *places;
	int			n;
	int			i;

	places = read_places(consumer_id, NO_PARTITION, &n);
	if (n == 0 || places[0].partition != NO_PARTITION)
		return true;
	for (i = 0; i < n; i++)
		if (!places[i].native)
			return true;
	return false;
}

/*
 * Have a restored consumer go on where it was. Returns false if it was not restored.
 * The caller has locked the consumer.
 */
bool
cqrs_places_adopt(int32 consumer_id)
{
	CqrsPlace  *places;
	int			n;
	int			i;

	if (!cqrs_places_are_restored(consumer_id))
		return false;
	places = read_places(consumer_id, NO_PARTITION, &n);
	if (n == 0 || places[0].partition != NO_PARTITION)
		cqrs_places_create(consumer_id);
	for (i = 0; i < n; i++)
		if (!places[i].native)
			cqrs_place_append(&places[i]);
	return true;
}

/*
 * Take the lock for moving a place, until the end of the transaction. Returns
 * false if it is not where it was when it was read.
 */
bool
cqrs_place_lock(const CqrsPlace *place)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[PLACE_COLUMNS];
	bool		nulls[PLACE_COLUMNS];
	int64		seq = 0;

	(void) cqrs_object_lock(CQRS_REL_CONSUMER_POSITION, place->consumer_id,
							place->partition, ExclusiveLock, true);
	cqrs_key_int4(&keys[0], PLACE_CONSUMER_ID, place->consumer_id);
	cqrs_key_int4(&keys[1], PLACE_PARTITION, place->partition);
	cqrs_scan_begin(&scan, CQRS_REL_CONSUMER_POSITION,
					CQRS_REL_CONSUMER_POSITION_PKEY, AccessShareLock, NULL,
					BackwardScanDirection, 2, keys);
	if (cqrs_scan_read(&scan, values, nulls) != NULL)
		seq = DatumGetInt64(values[PLACE_SEQ - 1]);
	cqrs_scan_end(&scan, AccessShareLock);
	return seq == place->seq;
}

/*
 * The place of a partition of which nothing is consumed yet; it begins at its
 * beginning.
 */
void
cqrs_place_init(CqrsPlace *place, int32 consumer_id, int32 partition)
{
	memset(place, 0, sizeof(*place));
	place->consumer_id = consumer_id;
	place->partition = partition;
	place->next_offset = CQRS_BROKER_OFFSET_EARLIEST;
	place->last_offset = place->end_offset = -1;
	place->last_time = DT_NOBEGIN;
}

/*
 * Append the place's next row; seq becomes that row's. The caller has its lock.
 * Raises 23505 if somebody moved it all the same.
 */
void
cqrs_place_append(CqrsPlace *place)
{
	ScanKeyData keys[4];
	Datum		values[PLACE_COLUMNS];
	bool		nulls[PLACE_COLUMNS] = {0};

	place->seq++;
	place->native = true;
	values[PLACE_CONSUMER_ID - 1] = Int32GetDatum(place->consumer_id);
	values[PLACE_PARTITION - 1] = Int32GetDatum(place->partition);
	values[PLACE_SEQ - 1] = Int64GetDatum(place->seq);
	values[PLACE_NEXT_OFFSET - 1] = Int64GetDatum(place->next_offset);
	values[PLACE_START_AT - 1] = TimestampTzGetDatum(place->start_at);
	nulls[PLACE_START_AT - 1] = place->next_offset != CQRS_BROKER_OFFSET_TIME;
	values[PLACE_LAST_OFFSET - 1] = Int64GetDatum(place->last_offset);
	values[PLACE_LAST_HASH - 1] = Int64GetDatum(place->last_hash);
	values[PLACE_END_OFFSET - 1] = Int64GetDatum(place->end_offset);
	nulls[PLACE_END_OFFSET - 1] = place->end_offset < 0;
	values[PLACE_CONSUMED - 1] = Int64GetDatum(place->consumed);
	values[PLACE_REPEATED - 1] = Int64GetDatum(place->repeated);
	values[PLACE_DEAD - 1] = Int64GetDatum(place->dead);
	values[PLACE_LAST_TIME - 1] = TimestampTzGetDatum(place->last_time);
	nulls[PLACE_LAST_TIME - 1] = place->last_time == DT_NOBEGIN;
	if (place->stopped != CQRS_STOPPED_NOT)
		values[PLACE_STOPPED - 1] =
			CStringGetTextDatum(stopped_names[place->stopped]);
	nulls[PLACE_STOPPED - 1] = place->stopped == CQRS_STOPPED_NOT;
	values[PLACE_MOVED_AT - 1] = TimestampTzGetDatum(cqrs_wall_now());
	values[PLACE_NATIVE - 1] = BoolGetDatum(true);
	cqrs_row_insert(CQRS_REL_CONSUMER_POSITION, values, nulls);

	/* As in cursor.c: computed, not looked up. */
	if (place->seq % ROWS_KEPT == 0)
	{
		cqrs_key_int4(&keys[0], PLACE_CONSUMER_ID, place->consumer_id);
		cqrs_key_int4(&keys[1], PLACE_PARTITION, place->partition);
		cqrs_key_int8(&keys[2], PLACE_SEQ, BTGreaterEqualStrategyNumber,
					  place->seq - 2 * ROWS_KEPT);
		cqrs_key_int8(&keys[3], PLACE_SEQ, BTLessStrategyNumber, place->seq);
		delete_rows(4, keys);
	}
	CommandCounterIncrement();
}

/*
 * Forget how far a consumer is, and where it was made.
 */
void
cqrs_places_delete(int32 consumer_id)
{
	ScanKeyData key;

	cqrs_key_int4(&key, PLACE_CONSUMER_ID, consumer_id);
	delete_rows(1, &key);
}

/*
 * The places from this partition on.
 */
static CqrsPlace *
read_places(int32 consumer_id, int32 first, int *nplaces)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[PLACE_COLUMNS];
	bool		nulls[PLACE_COLUMNS];
	int			size = 16;
	int			n = 0;
	CqrsPlace  *places = palloc(sizeof(CqrsPlace) * size);

	/* In the order of the index, the newest row of each comes last. */
	cqrs_key_int4(&keys[0], PLACE_CONSUMER_ID, consumer_id);
	ScanKeyInit(&keys[1], PLACE_PARTITION, BTGreaterEqualStrategyNumber,
				F_INT4GE, Int32GetDatum(first));
	cqrs_scan_begin(&scan, CQRS_REL_CONSUMER_POSITION,
					CQRS_REL_CONSUMER_POSITION_PKEY, AccessShareLock, NULL,
					ForwardScanDirection, 2, keys);
	while (cqrs_scan_read(&scan, values, nulls) != NULL)
	{
		int32		partition = DatumGetInt32(values[PLACE_PARTITION - 1]);

		if (n == 0 || places[n - 1].partition != partition)
			n++;
		if (n > size)
		{
			size *= 2;
			places = repalloc(places, sizeof(CqrsPlace) * size);
		}
		read_row(&places[n - 1], values, nulls);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	*nplaces = n;
	return places;
}

static void
read_row(CqrsPlace *place, const Datum *values, const bool *nulls)
{
	cqrs_place_init(place, DatumGetInt32(values[PLACE_CONSUMER_ID - 1]),
					DatumGetInt32(values[PLACE_PARTITION - 1]));
	place->seq = DatumGetInt64(values[PLACE_SEQ - 1]);
	place->next_offset = DatumGetInt64(values[PLACE_NEXT_OFFSET - 1]);
	if (!nulls[PLACE_START_AT - 1])
		place->start_at = DatumGetTimestampTz(values[PLACE_START_AT - 1]);
	place->last_offset = DatumGetInt64(values[PLACE_LAST_OFFSET - 1]);
	place->last_hash = DatumGetInt64(values[PLACE_LAST_HASH - 1]);
	if (!nulls[PLACE_END_OFFSET - 1])
		place->end_offset = DatumGetInt64(values[PLACE_END_OFFSET - 1]);
	place->consumed = DatumGetInt64(values[PLACE_CONSUMED - 1]);
	place->repeated = DatumGetInt64(values[PLACE_REPEATED - 1]);
	place->dead = DatumGetInt64(values[PLACE_DEAD - 1]);
	if (!nulls[PLACE_LAST_TIME - 1])
		place->last_time = DatumGetTimestampTz(values[PLACE_LAST_TIME - 1]);
	if (!nulls[PLACE_STOPPED - 1])
		place->stopped =
			strcmp(TextDatumGetCString(values[PLACE_STOPPED - 1]),
				   stopped_names[CQRS_STOPPED_GAP]) == 0 ?
			CQRS_STOPPED_GAP : CQRS_STOPPED_OTHER;
	place->native = DatumGetBool(values[PLACE_NATIVE - 1]);
}

static void
delete_rows(int nkeys, ScanKeyData *keys)
{
	CqrsScan	scan;
	HeapTuple	row;

	cqrs_scan_begin(&scan, CQRS_REL_CONSUMER_POSITION,
					CQRS_REL_CONSUMER_POSITION_PKEY, RowExclusiveLock, NULL,
					ForwardScanDirection, nkeys, keys);
	while ((row = cqrs_scan_next(&scan)) != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
}
