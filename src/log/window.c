/*-------------------------------------------------------------------------
 *
 * window.c
 *	  The events that became visible between two snapshots, in order of
 *	  position. Everything that reads events reads through here.
 *
 * The window (lower, upper] of a topic is what upper shows and lower does
 * not: of the transactions that were in progress in lower, those that upper
 * shows; and of those from lower's xmax to before upper's xmax, those that
 * upper shows. The index finds both, in all segments of the topic.
 * Whether the transaction committed, and what of it was rolled back to a
 * savepoint, is told by the rows' own visibility under an MVCC snapshot that
 * is at least as late as upper.
 *
 * Within a window, events are ordered by position. That is enough: whoever saw
 * another's commit before emitting drew a higher position, and is visible in
 * no snapshot that does not show the other.
 *
 * Protocol
 *
 * 1. A window is read in chunks. The index on (xid, position) is walked alone,
 *	  without the table, and references to the lowest positions are kept,
 *	  sorted; they outlive the transaction. When they are used up, the next
 *	  chunk is read after the last position, eight times as large, up to
 *	  max_entries. So memory is bounded; the first few events of a large window
 *	  cost a walk over its transactions, not over their events; and a window of
 *	  any size costs a few walks.
 * 2. A reference is not trusted. It may lead to a row that we must not see: it
 *	  aborted, or its transaction id is another cluster's (see topic.c). Once a
 *	  row that aborted has been vacuumed, there may even be another event in
 *	  its place. So a row is an event of the window only if its own position
 *	  and transaction id say so; else it is passed by. An event that commits in
 *	  the window keeps its row where the index says, unless it is deleted: a
 *	  command that is cancelled (cancel.c).
 * 3. If a table was rewritten since the chunk was read, or truncated, the chunk
 *	  is read again.
 *
 * A window is attached to the topics' tables for the time of one transaction
 * at most. An error leaves it attached: it can only be freed then.
 *
 * Whoever keeps a window for another transaction asks cqrs_window_is() whether
 * it is the one that is needed then. That compares what the window itself has:
 * both bounds, the topics and their tables, and what was read last. Nothing
 * else makes a difference to what comes next: neither who reads, nor what has
 * changed meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "log/segment.h"
#include "log/window.h"

/* The first chunk has at most this many references. */
#define FIRST_ENTRIES	128

/* After this many useless entries of one transaction, skip to the next one. */
#define ENTRIES_BEFORE_SKIP	64

/* Where an event is. */
typedef struct Entry
{
	int64		position;
	ItemPointerData tid;
	uint16		source;			/* topic and segment: index into sources */
} Entry;

/* A segment of a topic, open while attached. */
typedef struct Source
{
	const CqrsTopic *topic;
	Relation	rel;
	Oid			index;			/* on (xid, position) */
	TupleTableSlot *slot;
} Source;

struct CqrsWindow
{
	MemoryContext context;
	CqrsSnapshot *lower;
	CqrsSnapshot *upper;		/* NULL: whatever the MVCC snapshot shows */
	char	   *event_name;		/* NULL: all */
	int			max_entries;
	int			chunk_entries;	/* for the next chunk; at most max_entries */

	/*
	 * Set when it is first attached, NULL before: the topics, their tables by
	 * topic and segment, and which of these have entries in the window.
	 */
	int			ntopics;
	int32	   *topic_ids;
	Oid		   *tables;
	bool	   *needed;

	/* While attached. */
	int			nsources;
	Source	   *sources;
	Snapshot	snapshot;

	/* The chunk. */
	Entry	   *entries;
	int			capacity;
	int			nentries;
	int			next;
	bool		loaded;
	Oid		   *filenodes;		/* of each source, when it was loaded */
	bool		complete;		/* nothing of the window is behind it */
	int64		after_position; /* what was read last */
	int64		highest;		/* while loading: from here on, none is kept */
};

static void copy_snapshot(CqrsSnapshot **to, const CqrsSnapshot *from);
static bool same_snapshot(const CqrsSnapshot *a, const CqrsSnapshot *b);
static void set_topics(CqrsWindow *window, int ntopics,
					   CqrsTopic *const *topics);
static bool has_topics(const CqrsWindow *window, int ntopics,
					   CqrsTopic *const *topics);
static void attach_segment(CqrsWindow *window, const CqrsTopic *topic,
						   int segment, bool first, bool *needed);
static bool has_entries(const CqrsWindow *window, const Source *source);
static bool has_xids(IndexScanDesc scan, FullTransactionId from,
					 FullTransactionId to);
static void load_chunk(CqrsWindow *window);
static void load_source(CqrsWindow *window, int source);
static void load_xids(CqrsWindow *window, int source, IndexScanDesc scan,
					  FullTransactionId from, FullTransactionId to,
					  const CqrsSnapshot *upper);
static bool add_entry(CqrsWindow *window, int source, int64 position,
					  ItemPointer tid);
static void keep_lowest(CqrsWindow *window);
static int	compare_entries(const void *a, const void *b);
static bool fetch(CqrsWindow *window, const Entry *entry, CqrsEvent *event);
static bool has_xid(const CqrsWindow *window, FullTransactionId xid);
static bool has_name(const CqrsWindow *window, Datum event_name);

/*
 * A window, below context parent.
 *	lower			events that it shows are left out
 *	upper			events that it does not show are left out; NULL: none
 *	after_position	events up to this position are left out
 *	max_entries		how many references are kept at once; there is room for
 *					twice as many, of 16 bytes each
 */
CqrsWindow *
cqrs_window_create(MemoryContext parent, const CqrsSnapshot *lower,
				   const CqrsSnapshot *upper, int64 after_position,
				   int max_entries)
{
	MemoryContext context;
	MemoryContext oldcontext;
	CqrsWindow *window;

	context = AllocSetContextCreate(parent, "cqrs window",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	window = palloc0(sizeof(CqrsWindow));
	window->context = context;
	copy_snapshot(&window->lower, lower);
	copy_snapshot(&window->upper, upper);
	window->after_position = after_position;
	window->max_entries = max_entries;
	window->chunk_entries = Min(FIRST_ENTRIES, max_entries);
	MemoryContextSwitchTo(oldcontext);
	return window;
}

/*
 * Free a detached window, or one that an error left attached.
 */
void
cqrs_window_free(CqrsWindow *window)
{
	MemoryContextDelete(window->context);
}

/*
 * Put a window below another context.
 */
void
cqrs_window_move(CqrsWindow *window, MemoryContext parent)
{
	MemoryContextSetParent(window->context, parent);
}

/*
 * Is this the window (lower, upper] of these topics, and does it go on behind
 * this position? It has been attached before.
 */
bool
cqrs_window_is(const CqrsWindow *window, const CqrsSnapshot *lower,
			   const CqrsSnapshot *upper, int64 after_position, int ntopics,
			   CqrsTopic *const *topics)
{
	return window->after_position == after_position &&
		same_snapshot(window->lower, lower) &&
		same_snapshot(window->upper, upper) &&
		window->event_name == NULL &&
		has_topics(window, ntopics, topics);
}

/*
 * Open the topics' tables, until cqrs_window_detach(). The snapshot must show
 * all that upper shows, and stay registered. The topics and their tables must
 * be the same each time (cqrs_window_is).
 *
 * Raises 54000 for more segments than an entry can tell apart.
 *
 * Only segments that have something in the window stay open and locked. Which
 * ones does not change: all the window's transactions have ended. Otherwise, a
 * worker that delivers batch after batch would keep segments that it is done
 * with from ever being truncated.
 */
void
cqrs_window_attach(CqrsWindow *window, int ntopics, CqrsTopic *const *topics,
				   Snapshot snapshot)
{
	bool		first = window->needed == NULL;
	int			i;
	int			j;

	Assert(window->nsources == 0);
	window->snapshot = snapshot;
	window->sources = palloc(sizeof(Source) * Max(ntopics, 1) * CQRS_SEGMENTS);
	if (first)
		set_topics(window, ntopics, topics);
	Assert(has_topics(window, ntopics, topics));
	for (i = 0; i < ntopics; i++)
		for (j = 0; j < CQRS_SEGMENTS; j++)
			attach_segment(window, topics[i], j, first,
						   &window->needed[i * CQRS_SEGMENTS + j]);
}

/*
 * Close the topics' tables. The locks stay until the end of the transaction.
 */
void
cqrs_window_detach(CqrsWindow *window)
{
	int			i;

	for (i = 0; i < window->nsources; i++)
	{
		if (window->sources[i].slot != NULL)
			ExecDropSingleTupleTableSlot(window->sources[i].slot);
		relation_close(window->sources[i].rel, NoLock);
	}
	window->nsources = 0;
	pfree(window->sources);
	window->sources = NULL;
	window->snapshot = NULL;
}

void
cqrs_window_filter_name(CqrsWindow *window, const char *event_name)
{
	window->event_name = MemoryContextStrdup(window->context, event_name);
}

/*
 * The next event. Returns false at the end of the window.
 */
bool
cqrs_window_next(CqrsWindow *window, CqrsEvent *event)
{
	for (;;)
	{
		Entry	   *entry;

		if (!window->loaded)
			load_chunk(window);
		if (window->next == window->nentries)
		{
			if (window->complete)
				return false;
			window->loaded = false;
			continue;
		}
		entry = &window->entries[window->next++];
		window->after_position = entry->position;
		if (fetch(window, entry, event))
			return true;
	}
}

/*
 * Have the event that was read last read again. after_position is that of the
 * one before it.
 */
void
cqrs_window_unread(CqrsWindow *window, int64 after_position)
{
	Assert(window->loaded && window->next > 0);
	window->next--;
	window->after_position = after_position;
}

/*
 * Delete the event that was read last from its topic, for all who would read it.
 * The caller has ROW EXCLUSIVE on the topic's tables, and sees to it that nobody
 * else deletes it.
 */
void
cqrs_window_delete(CqrsWindow *window)
{
	Entry	   *entry = &window->entries[window->next - 1];

	Assert(window->loaded && window->next > 0);
	simple_table_tuple_delete(window->sources[entry->source].rel, &entry->tid,
							  window->snapshot);
	CommandCounterIncrement();
}

/*
 * Is it known that cqrs_window_next() would return false? It may do so without
 * this being known, if all that is left are rows that aborted.
 */
bool
cqrs_window_at_end(CqrsWindow *window)
{
	return window->loaded && window->complete &&
		window->next == window->nentries;
}

static void
copy_snapshot(CqrsSnapshot **to, const CqrsSnapshot *from)
{
	*to = NULL;
	if (from != NULL)
	{
		*to = palloc(VARSIZE(from));
		memcpy(*to, from, VARSIZE(from));
	}
}

static bool
same_snapshot(const CqrsSnapshot *a, const CqrsSnapshot *b)
{
	return a != NULL && b != NULL && VARSIZE(a) == VARSIZE(b) &&
		memcmp(a, b, VARSIZE(a)) == 0;
}

/*
 * Remember which topics a window is of, and where they are.
 */
static void
set_topics(CqrsWindow *window, int ntopics, CqrsTopic *const *topics)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(window->context);
	int			nsegments = Max(ntopics, 1) * CQRS_SEGMENTS;
	int			i;

	window->ntopics = ntopics;
	window->topic_ids = palloc(sizeof(int32) * Max(ntopics, 1));
	window->tables = palloc(sizeof(Oid) * nsegments);
	window->needed = palloc0(sizeof(bool) * nsegments);
	for (i = 0; i < ntopics; i++)
	{
		window->topic_ids[i] = topics[i]->topic_id;
		memcpy(&window->tables[i * CQRS_SEGMENTS], topics[i]->segments,
			   sizeof(topics[i]->segments));
	}
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Are these its topics, and still where they were?
 */
static bool
has_topics(const CqrsWindow *window, int ntopics, CqrsTopic *const *topics)
{
	int			i;

	if (window->ntopics != ntopics)
		return false;
	for (i = 0; i < ntopics; i++)
		if (window->topic_ids[i] != topics[i]->topic_id ||
			memcmp(&window->tables[i * CQRS_SEGMENTS], topics[i]->segments,
				   sizeof(topics[i]->segments)) != 0)
			return false;
	return true;
}

/*
 * Open a segment of a topic, if it is needed.
 */
static void
attach_segment(CqrsWindow *window, const CqrsTopic *topic, int segment,
			   bool first, bool *needed)
{
	Source	   *source = &window->sources[window->nsources];

	if (!first && !*needed)
		return;
	source->topic = topic;
	source->rel = cqrs_segment_open(topic, segment, AccessShareLock);
	source->index = cqrs_segment_index(source->rel);
	source->slot = NULL;
	if (first)
		*needed = has_entries(window, source);
	if (!*needed)
	{
		relation_close(source->rel, AccessShareLock);
		return;
	}
	if (window->nsources > PG_UINT16_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d tables of topics have new events",
						PG_UINT16_MAX + 1),
				 errhint("Divide the topics among several subscriptions.")));
	if (window->loaded && window->filenodes[window->nsources] !=
		source->rel->rd_rel->relfilenode)
		window->loaded = false;
	window->nsources++;
}

/*
 * The transaction id before which a window ends. There is always one: restored
 * rows, any number of them, may have higher ids.
 */
FullTransactionId
cqrs_window_end(const CqrsSnapshot *upper)
{
	return upper ? upper->xmax : ReadNextFullTransactionId();
}

/*
 * Does a segment have entries in the window, of rows visible or not?
 */
static bool
has_entries(const CqrsWindow *window, const Source *source)
{
	const CqrsSnapshot *lower = window->lower;
	const CqrsSnapshot *upper = window->upper;
	FullTransactionId end;
	Relation	index;
	IndexScanDesc scan;
	bool		found = false;
	uint32		i;

	if (RelationGetNumberOfBlocks(source->rel) == 0)
		return false;
	end = cqrs_window_end(upper);
	index = index_open(source->index, AccessShareLock);
	scan = cqrs_index_beginscan(source->rel, index, window->snapshot, 2);
	for (i = 0; !found && i < lower->nxip; i++)
	{
		FullTransactionId next = lower->xip[i];

		next.value++;
		if (!upper || cqrs_snapshot_shows(upper, lower->xip[i]))
			found = has_xids(scan, lower->xip[i], next);
	}
	if (!found && FullTransactionIdPrecedes(lower->xmax, end))
		found = has_xids(scan, lower->xmax, end);
	index_endscan(scan);
	index_close(index, AccessShareLock);
	return found;
}

/*
 * Does the index have any entry with from <= xid < to?
 */
static bool
has_xids(IndexScanDesc scan, FullTransactionId from, FullTransactionId to)
{
	ScanKeyData keys[2];

	cqrs_xid_range(keys, 1, from, to);
	index_rescan(scan, keys, 2, NULL, 0);
	return index_getnext_tid(scan, ForwardScanDirection) != NULL;
}

/*
 * Read the references to the next events.
 */
static void
load_chunk(CqrsWindow *window)
{
	int			i;

	if (window->entries == NULL)
	{
		window->capacity = 2 * window->chunk_entries;
		window->entries = MemoryContextAllocHuge(window->context,
												 sizeof(Entry) * window->capacity);
		window->filenodes = MemoryContextAlloc(window->context,
											   sizeof(Oid) * Max(window->nsources, 1));
	}
	else if (window->chunk_entries < window->max_entries)
	{
		window->chunk_entries = Min(8 * window->chunk_entries,
									window->max_entries);
		window->capacity = 2 * window->chunk_entries;
		window->entries = repalloc_huge(window->entries,
										sizeof(Entry) * window->capacity);
	}
	window->nentries = 0;
	window->next = 0;
	window->complete = true;
	window->highest = PG_INT64_MAX;
	for (i = 0; i < window->nsources; i++)
	{
		window->filenodes[i] = window->sources[i].rel->rd_rel->relfilenode;
		load_source(window, i);
	}
	keep_lowest(window);
	window->loaded = true;
}

/*
 * Add one segment's share of the chunk.
 */
static void
load_source(CqrsWindow *window, int source)
{
	const CqrsSnapshot *lower = window->lower;
	const CqrsSnapshot *upper = window->upper;
	FullTransactionId end;
	Relation	index;
	IndexScanDesc scan;
	uint32		i;

	end = cqrs_window_end(upper);
	index = index_open(window->sources[source].index, AccessShareLock);
	scan = cqrs_index_beginscan(window->sources[source].rel, index,
								window->snapshot, 2);
	scan->xs_want_itup = true;
	for (i = 0; i < lower->nxip; i++)
	{
		FullTransactionId next = lower->xip[i];

		if (upper && !cqrs_snapshot_shows(upper, lower->xip[i]))
			continue;
		next.value++;
		load_xids(window, source, scan, lower->xip[i], next, NULL);
	}
	if (FullTransactionIdPrecedes(lower->xmax, end))
		load_xids(window, source, scan, lower->xmax, end, upper);
	index_endscan(scan);
	index_close(index, NoLock);
}

/*
 * Add the entries with from <= xid < to that upper, if given, shows.
 *
 * The index has a transaction's positions in order. So once one of them is
 * too high, the rest are; and those up to after_position come first.
 */
static void
load_xids(CqrsWindow *window, int source, IndexScanDesc scan,
		  FullTransactionId from, FullTransactionId to,
		  const CqrsSnapshot *upper)
{
	ScanKeyData keys[2];
	ItemPointer tid;
	uint64		last_xid = 0;
	int			useless = 0;

	cqrs_xid_range(keys, 1, from, to);
	index_rescan(scan, keys, 2, NULL, 0);
	while ((tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		FullTransactionId xid;
		int64		position;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		xid = DatumGetFullTransactionId(index_getattr(scan->xs_itup, 1,
													  scan->xs_itupdesc,
													  &isnull));
		position = DatumGetInt64(index_getattr(scan->xs_itup, 2,
											   scan->xs_itupdesc, &isnull));
		if (position > window->after_position &&
			(upper == NULL || cqrs_snapshot_shows(upper, xid)) &&
			add_entry(window, source, position, tid))
		{
			useless = 0;
			continue;
		}

		if (U64FromFullTransactionId(xid) != last_xid)
		{
			last_xid = U64FromFullTransactionId(xid);
			useless = 0;
		}
		if (position > window->after_position &&
			++useless == ENTRIES_BEFORE_SKIP)
		{
			FullTransactionId next = xid;

			next.value++;
			cqrs_xid_range(keys, 1, next, to);
			index_rescan(scan, keys, 2, NULL, 0);
		}
	}
}

/*
 * Keys for from <= xid < to; attno is xid's place in what is scanned.
 */
void
cqrs_xid_range(ScanKeyData *keys, AttrNumber attno, FullTransactionId from,
			   FullTransactionId to)
{
	ScanKeyInit(&keys[0], attno, BTGreaterEqualStrategyNumber,
				F_XID8GE, FullTransactionIdGetDatum(from));
	ScanKeyInit(&keys[1], attno, BTLessStrategyNumber,
				F_XID8LT, FullTransactionIdGetDatum(to));
}

/*
 * Add a reference to the chunk. Returns false if its position is too high.
 */
static bool
add_entry(CqrsWindow *window, int source, int64 position, ItemPointer tid)
{
	Entry	   *entry;

	if (window->nentries == window->capacity)
		keep_lowest(window);
	if (position >= window->highest)
	{
		window->complete = false;
		return false;
	}
	entry = &window->entries[window->nentries++];
	entry->position = position;
	entry->tid = *tid;
	entry->source = source;
	return true;
}

/*
 * Sort what was collected, and drop what is above chunk_entries.
 */
static void
keep_lowest(CqrsWindow *window)
{
	qsort(window->entries, window->nentries, sizeof(Entry), compare_entries);
	if (window->nentries > window->chunk_entries)
	{
		window->nentries = window->chunk_entries;
		window->highest = window->entries[window->nentries - 1].position;
		window->complete = false;
	}
}

static int
compare_entries(const void *a, const void *b)
{
	int64		left = ((const Entry *) a)->position;
	int64		right = ((const Entry *) b)->position;

	return (left > right) - (left < right);
}

/*
 * Get the event that an entry refers to. Returns false if it is not an event
 * of the window, or is filtered out.
 */
static bool
fetch(CqrsWindow *window, const Entry *entry, CqrsEvent *event)
{
	Source	   *source = &window->sources[entry->source];
	ItemPointerData tid = entry->tid;
	Datum	   *values;
	bool	   *nulls;

	if (source->slot == NULL)
		source->slot = table_slot_create(source->rel, NULL);
	if (!table_tuple_fetch_row_version(source->rel, &tid, window->snapshot,
									   source->slot))
		return false;
	slot_getallattrs(source->slot);
	values = source->slot->tts_values;
	nulls = source->slot->tts_isnull;
	event->topic = source->topic;
	event->position = DatumGetInt64(values[CQRS_SEG_POSITION - 1]);
	event->xid = DatumGetFullTransactionId(values[CQRS_SEG_XID - 1]);
	if (!DatumGetBool(values[CQRS_SEG_NATIVE - 1]) ||
		event->position != entry->position ||
		!has_xid(window, event->xid) ||
		!has_name(window, values[CQRS_SEG_EVENT_NAME - 1]))
		return false;

	event->emitted_at = DatumGetTimestampTz(values[CQRS_SEG_EMITTED_AT - 1]);
	event->event_id = values[CQRS_SEG_EVENT_ID - 1];
	event->event_name = values[CQRS_SEG_EVENT_NAME - 1];
	event->key.value = values[CQRS_SEG_KEY - 1];
	event->key.isnull = nulls[CQRS_SEG_KEY - 1];
	event->headers.value = values[CQRS_SEG_HEADERS - 1];
	event->headers.isnull = nulls[CQRS_SEG_HEADERS - 1];
	event->payload.value = values[CQRS_SEG_PAYLOAD - 1];
	event->payload.isnull = nulls[CQRS_SEG_PAYLOAD - 1];
	return true;
}

/*
 * Are the events of this transaction in the window?
 */
static bool
has_xid(const CqrsWindow *window, FullTransactionId xid)
{
	return !cqrs_snapshot_shows(window->lower, xid) &&
		(window->upper == NULL || cqrs_snapshot_shows(window->upper, xid));
}

static bool
has_name(const CqrsWindow *window, Datum event_name)
{
	text	   *name;

	if (window->event_name == NULL)
		return true;
	name = DatumGetTextPP(event_name);
	return VARSIZE_ANY_EXHDR(name) == strlen(window->event_name) &&
		memcmp(VARDATA_ANY(name), window->event_name,
			   VARSIZE_ANY_EXHDR(name)) == 0;
}
