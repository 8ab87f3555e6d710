/*-------------------------------------------------------------------------
 *
 * window_scan.c
 *	  What there is in a window, in no particular order: anything at all, how
 *	  many events, since when. See window.c for what a window is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "base/debug_point.h"
#include "log/segment.h"
#include "log/window.h"
#include "log/window_scan.h"

/* Gets each row of a window; returns false to stop. */
typedef bool (*RowCallback) (void *arg, HeapTuple tuple, TupleDesc desc,
							 FullTransactionId xid);

/* What cqrs_window_count() looks for. */
typedef struct Counting
{
	int64		after_position;
	TimestampTz after_time;		/* when the last one up to there was emitted */
	int32		topic_id;
	const CqrsCursor *cursor;
	int			partitions;
	CqrsCount  *count;
} Counting;

/* What cqrs_window_since() looks for. */
typedef struct Since
{
	TimestampTz time;
	FullTransactionId first;	/* of the transactions that emitted at that
								 * time or later */
} Since;

/* What cqrs_window_has_events() finds. */
typedef struct First
{
	bool		found;
	TimestampTz emitted_at;
} First;

static bool scan_window(Relation rel, const CqrsSnapshot *lower,
						const CqrsSnapshot *upper, Snapshot snapshot,
						RowCallback callback, void *arg);
static bool scan_xids(Relation rel, Relation index, FullTransactionId from,
					  FullTransactionId to, const CqrsSnapshot *upper,
					  Snapshot snapshot, RowCallback callback, void *arg);
static bool stop_at_first(void *arg, HeapTuple tuple, TupleDesc desc,
						  FullTransactionId xid);
static bool count_row(void *arg, HeapTuple tuple, TupleDesc desc,
					  FullTransactionId xid);
static bool find_since(void *arg, HeapTuple tuple, TupleDesc desc,
					   FullTransactionId xid);
static void scan_topic(const CqrsTopic *topic, const CqrsSnapshot *lower,
					   const CqrsSnapshot *upper, Snapshot snapshot,
					   RowCallback callback, void *arg);

bool
cqrs_window_has_events(const CqrsTopic *topic, const CqrsSnapshot *lower,
					   const CqrsSnapshot *upper, Snapshot snapshot)
{
	First		first = {false, 0};

	scan_topic(topic, lower, upper, snapshot, stop_at_first, &first);
	return first.found;
}

/*
 * Count the events of the topic that are in this window after a position, and
 * in the cursor's partition, of so many. They are added to *count.
 *
 * The rows up to the position have to be looked at, too. If the limit is
 * reached, the events that were not looked at are no older than the last of
 * these rows, so its time is taken for the oldest.
 */
void
cqrs_window_count(const CqrsTopic *topic, const CqrsSnapshot *lower,
				  const CqrsSnapshot *upper, int64 after_position,
				  const CqrsCursor *cursor, int partitions, Snapshot snapshot,
				  CqrsCount *count)
{
	Counting	counting = {after_position, 0, topic->topic_id, cursor, partitions, count};

	if (count->limit > 0)
		scan_topic(topic, lower, upper, snapshot, count_row, &counting);
	if (count->limit == 0 && counting.after_time != 0)
		count->oldest = Min(count->oldest, counting.after_time);
}

/*
 * A snapshot that shows no event emitted at this time or later: it shows the
 * transactions before the first one that emitted such an event. So a few
 * earlier events of later transactions are beyond it, too.
 *
 * It ends at the oldest running transaction at the latest. We find out which
 * one that is before we take the snapshot to look with, which then shows all
 * that has committed before it. In the other order, what commits in between
 * would be passed by: not seen, and yet before the end.
 */
CqrsSnapshot *
cqrs_window_since(int ntopics, CqrsTopic *const *topics, TimestampTz time)
{
	CqrsSnapshot *empty = cqrs_snapshot_empty();
	CqrsSnapshot *result = cqrs_snapshot_take();
	Since		since = {time, result->xmin};
	Snapshot	snapshot;
	int			i;
	int			j;

	CQRS_DEBUG_POINT("seek_before_scan");
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < ntopics; i++)
	{
		for (j = 0; j < CQRS_SEGMENTS; j++)
		{
			Relation	rel = cqrs_segment_open(topics[i], j, AccessShareLock);

			scan_window(rel, empty, NULL, snapshot, find_since, &since);
			relation_close(rel, NoLock);
		}
	}
	UnregisterSnapshot(snapshot);
	SET_VARSIZE(result, offsetof(CqrsSnapshot, xip));
	result->nxip = 0;
	result->xmin = result->xmax = since.first;
	return result;
}

/*
 * Does a segment of the topic have an event that the snapshot shows and lower
 * does not? *emitted_at gets when the first one, by transaction id, was
 * emitted. No lock is left on the segment.
 */
bool
cqrs_window_segment_has_events(const CqrsTopic *topic, int segment,
							   const CqrsSnapshot *lower, Snapshot snapshot,
							   TimestampTz *emitted_at)
{
	First		first = {false, 0};
	Relation	rel = cqrs_segment_open(topic, segment, AccessShareLock);

	scan_window(rel, lower, NULL, snapshot, stop_at_first, &first);
	relation_close(rel, AccessShareLock);
	*emitted_at = first.emitted_at;
	return first.found;
}

/*
 * How many events are in the window (lower, upper] after a position, in one
 * segment of the topic and the cursor's partition, of so many. No lock is left on it.
 */
int64
cqrs_window_segment_count(const CqrsTopic *topic, int segment,
						  const CqrsSnapshot *lower,
						  const CqrsSnapshot *upper, int64 after_position,
						  const CqrsCursor *cursor, int partitions,
						  Snapshot snapshot)
{
	CqrsCount	count = {.limit = PG_INT64_MAX,.oldest = DT_NOEND};
	Counting	counting = {after_position, 0, topic->topic_id, cursor, partitions, &count};
	Relation	rel = cqrs_segment_open(topic, segment, AccessShareLock);

	scan_window(rel, lower, upper, snapshot, count_row, &counting);
	relation_close(rel, AccessShareLock);
	return count.events;
}

/*
 * Call callback for each row of a segment in the window (lower, upper], in no
 * particular order. Returns false if it stopped.
 */
static bool
scan_window(Relation rel, const CqrsSnapshot *lower,
			const CqrsSnapshot *upper, Snapshot snapshot,
			RowCallback callback, void *arg)
{
	FullTransactionId end;
	Relation	index;
	bool		go_on = true;
	uint32		i;

	end = cqrs_window_end(upper);
	index = index_open(cqrs_segment_index(rel), AccessShareLock);
	for (i = 0; go_on && i < lower->nxip; i++)
	{
		FullTransactionId xid = lower->xip[i];
		FullTransactionId next = xid;

		if (upper && !cqrs_snapshot_shows(upper, xid))
			continue;
		next.value++;
		go_on = scan_xids(rel, index, xid, next, NULL, snapshot, callback,
						  arg);
	}
	if (go_on && FullTransactionIdPrecedes(lower->xmax, end))
		go_on = scan_xids(rel, index, lower->xmax, end, upper, snapshot,
						  callback, arg);
	index_close(index, AccessShareLock);
	return go_on;
}

/*
 * Like scan_window(), for the rows with from <= xid < to that upper, if given,
 * shows.
 */
static bool
scan_xids(Relation rel, Relation index, FullTransactionId from,
		  FullTransactionId to, const CqrsSnapshot *upper, Snapshot snapshot,
		  RowCallback callback, void *arg)
{
	TupleDesc	desc = RelationGetDescr(rel);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		go_on = true;

	cqrs_xid_range(keys, CQRS_SEG_XID, from, to);
	scan = systable_beginscan_ordered(rel, index, snapshot, 2, keys);
	while (go_on &&
		   HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
	{
		FullTransactionId xid;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		xid = DatumGetFullTransactionId(heap_getattr(tuple, CQRS_SEG_XID,
													 desc, &isnull));
		if (upper && !cqrs_snapshot_shows(upper, xid))
			continue;
		if (!DatumGetBool(heap_getattr(tuple, CQRS_SEG_NATIVE, desc, &isnull)))
			continue;
		go_on = callback(arg, tuple, desc, xid);
	}
	systable_endscan_ordered(scan);
	return go_on;
}

static bool
stop_at_first(void *arg, HeapTuple tuple, TupleDesc desc,
			  FullTransactionId xid)
{
	First	   *first = (First *) arg;
	bool		isnull;

	first->found = true;
	first->emitted_at =
		DatumGetTimestampTz(heap_getattr(tuple, CQRS_SEG_EMITTED_AT, desc,
										 &isnull));
	return false;
}

static bool
count_row(void *arg, HeapTuple tuple, TupleDesc desc, FullTransactionId xid)
{
	Counting   *counting = (Counting *) arg;
	CqrsCount  *count = counting->count;
	NullableDatum key;
	bool		isnull;
	TimestampTz emitted_at;
	Datum		payload;
	int64		bytes = tuple->t_len;

	payload = heap_getattr(tuple, CQRS_SEG_PAYLOAD, desc, &isnull);
	if (!isnull && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(payload)))
		bytes += toast_datum_size(payload);
	count->limit--;
	count->rows++;
	count->row_bytes += bytes;
	emitted_at = DatumGetTimestampTz(heap_getattr(tuple, CQRS_SEG_EMITTED_AT,
												  desc, &isnull));
	key.value = heap_getattr(tuple, CQRS_SEG_KEY, desc, &key.isnull);
	if (DatumGetInt64(heap_getattr(tuple, CQRS_SEG_POSITION, desc, &isnull)) <=
		counting->after_position)
		counting->after_time = Max(counting->after_time, emitted_at);
	else if (cqrs_event_partition(counting->topic_id,
								  heap_getattr(tuple, CQRS_SEG_EVENT_ID, desc,
											   &isnull),
								  key, counting->cursor->by_topic,
								  counting->partitions) !=
			 counting->cursor->partition)
		count->others++;
	else
	{
		count->events++;
		count->event_bytes += bytes;
		count->oldest = Min(count->oldest, emitted_at);
	}
	return count->limit > 0;
}

/*
 * Rows of one segment come in the order of their transactions.
 */
static bool
find_since(void *arg, HeapTuple tuple, TupleDesc desc, FullTransactionId xid)
{
	Since	   *since = (Since *) arg;
	bool		isnull;

	if (!FullTransactionIdPrecedes(xid, since->first))
		return false;
	if (DatumGetTimestampTz(heap_getattr(tuple, CQRS_SEG_EMITTED_AT, desc,
										 &isnull)) < since->time)
		return true;
	since->first = xid;
	return false;
}

/*
 * scan_window() over all segments of a topic. No lock is left on them.
 */
static void
scan_topic(const CqrsTopic *topic, const CqrsSnapshot *lower,
		   const CqrsSnapshot *upper, Snapshot snapshot,
		   RowCallback callback, void *arg)
{
	bool		go_on = true;
	int			i;

	for (i = 0; go_on && i < CQRS_SEGMENTS; i++)
	{
		Relation	rel = cqrs_segment_open(topic, i, AccessShareLock);

		go_on = scan_window(rel, lower, upper, snapshot, callback, arg);
		relation_close(rel, AccessShareLock);
	}
}
