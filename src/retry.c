/*-------------------------------------------------------------------------
 *
 * retry.c
 *	  Parked events: those that failed, and those that wait behind them.
 *
 * An event that cannot be delivered is copied to cqrs.retry, and the cursor
 * goes on. It is tried again after a delay that doubles each time; after
 * max_attempts it goes to cqrs.dead_letter. Meanwhile the later events of its
 * lane are parked behind it: so order by topic and key is kept, and other
 * keys are not held up.
 *
 * A lane is a hash of topic and key. Keys that collide wait for each other,
 * which does no harm.
 *
 * The cursor has the lowest position that is parked, or that none is. So a
 * subscription without failures does not look here at all, and one with
 * failures does not walk over the dead rows of earlier ones, which a long
 * transaction may keep.
 *
 * Locking
 *
 * The cursor's lock protects its parked events too: whoever changes them has
 * read the cursor under it, and appends it afterwards if parked_from changed.
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
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "clock.h"
#include "retry.h"

/* Columns of cqrs.retry. */
enum
{
	RETRY_SUBSCRIPTION_ID = 1,
	RETRY_PARTITION,
	RETRY_POSITION,
	RETRY_TOPIC_ID,
	RETRY_EVENT_ID,
	RETRY_EVENT_NAME,
	RETRY_KEY,
	RETRY_HEADERS,
	RETRY_PAYLOAD,
	RETRY_EMITTED_AT,
	RETRY_ATTEMPTS,
	RETRY_RECEIPT,
	RETRY_FAILED_AT,
	RETRY_RETRY_AT,
	RETRY_SQLSTATE,
	RETRY_MESSAGE,
	RETRY_COLUMNS = RETRY_MESSAGE
};

/* The parked events of a lane. */
typedef struct LaneEntry
{
	uint64		lane;			/* hash key */
	int			nparked;
	int			npassed;		/* of them, handed out; others may follow */
	bool		closed;			/* of those handed out, none may follow */
} LaneEntry;

static uint64 lane_of(int32 topic_id, NullableDatum key);
static CqrsParkedSet *new_set(void);
static CqrsParked *add_to_set(CqrsParkedSet *set, int64 position, uint64 lane,
							  bool received);
static int	find_index(const CqrsParkedSet *set, int64 position);
static LaneEntry *find_lane(const CqrsParkedSet *set, uint64 lane);
static void insert_row(CqrsCursor *cursor, const CqrsEvent *event,
					   int attempts, TimestampTz retry_at,
					   const CqrsFault *fault, const pg_uuid_t *receipt);
static void remove_from_set(CqrsParkedSet *set, CqrsParked *parked,
							CqrsCursor *cursor);
static void event_from_values(const Datum *values, const bool *nulls,
							  CqrsEvent *event);
static void set_fault(const CqrsFault *fault, Datum *values, bool *nulls);
static void record_attempt(CqrsParked *parked,
						   const CqrsSubscription *subscription,
						   CqrsCursor *cursor, const CqrsFault *fault);
static void bury(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor,
				 const CqrsFault *fault);
static void forget_dead(Relation rel, int32 subscription_id, int64 position);
static void update_row(const CqrsCursor *cursor, int64 position,
					   Datum *values, bool *nulls, bool *replace);
static SysScanDesc begin_scan(Relation rel, Relation *index,
							  const CqrsCursor *cursor, int64 from,
							  bool only_this, Snapshot snapshot);
static void delete_row(const CqrsCursor *cursor, int64 position);

/*
 * The lane of an event.
 */
uint64
cqrs_event_lane(const CqrsEvent *event)
{
	return lane_of(event->topic->topic_id, event->key);
}

/*
 * The parked events of a cursor, or NULL if there are none, in the current
 * memory context. If parked_from turns out to be too low, or outdated, it is
 * put right in the cursor; the caller need not append it for that.
 */
CqrsParkedSet *
cqrs_parked_load(CqrsCursor *cursor, Snapshot snapshot)
{
	CqrsParkedSet *set;
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		last;

	if (cursor->parked_from == 0)
		return NULL;
	set = new_set();

	/* What the receipt covers is needed in any case. */
	last = cursor->ncovered > 0 ? cursor->covered[cursor->ncovered - 1] : 0;

	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), AccessShareLock);
	scan = begin_scan(rel, &index, cursor, cursor->parked_from, false,
					  snapshot);
	while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
	{
		Datum		values[RETRY_COLUMNS];
		bool		nulls[RETRY_COLUMNS];
		CqrsParked *parked;
		NullableDatum key;
		int64		position;

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		position = DatumGetInt64(values[RETRY_POSITION - 1]);
		if (set->full && position > last)
			break;
		key.value = values[RETRY_KEY - 1];
		key.isnull = nulls[RETRY_KEY - 1];
		parked = add_to_set(set, position,
							lane_of(DatumGetInt32(values[RETRY_TOPIC_ID - 1]),
									key),
							!nulls[RETRY_RECEIPT - 1]);
		parked->event_id = *DatumGetUUIDP(values[RETRY_EVENT_ID - 1]);
		parked->attempts = DatumGetInt32(values[RETRY_ATTEMPTS - 1]);
		if (parked->received)
			parked->receipt = *DatumGetUUIDP(values[RETRY_RECEIPT - 1]);
		parked->retry_at =
			cqrs_wall_due(DatumGetTimestampTz(values[RETRY_RETRY_AT - 1]),
						  DatumGetTimestampTz(values[nulls[RETRY_FAILED_AT - 1] ?
													 RETRY_RETRY_AT - 1 :
													 RETRY_FAILED_AT - 1]));
		parked->killed = !nulls[RETRY_SQLSTATE - 1] &&
			strcmp(TextDatumGetCString(values[RETRY_SQLSTATE - 1]),
				   unpack_sql_state(ERRCODE_CRASH_SHUTDOWN)) == 0;
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);

	cursor->parked_from = set->nparked > 0 ? set->parked[0].position : 0;
	return set->nparked > 0 ? set : NULL;
}

/*
 * Does an event of this lane have to wait?
 */
bool
cqrs_parked_blocks(const CqrsParkedSet *set, uint64 lane)
{
	LaneEntry  *entry;

	if (set == NULL)
		return false;
	entry = hash_search(set->lanes, &lane, HASH_FIND, NULL);
	return entry != NULL && entry->nparked > entry->npassed;
}

/*
 * The first parked event that may be tried now, or NULL.
 */
CqrsParked *
cqrs_parked_due(const CqrsParkedSet *set, TimestampTz now)
{
	int			i;

	for (i = 0; set != NULL && i < set->nparked; i++)
	{
		CqrsParked *parked = &set->parked[i];

		if (parked->head && !parked->gone && parked->retry_at <= now)
			return parked;
	}
	return NULL;
}

/*
 * When the next of them may be tried; 0: there are none.
 */
TimestampTz
cqrs_parked_next_retry(const CqrsParkedSet *set)
{
	TimestampTz next = 0;
	int			i;

	for (i = 0; set != NULL && i < set->nparked; i++)
	{
		CqrsParked *parked = &set->parked[i];

		if (parked->head && !parked->gone &&
			(next == 0 || parked->retry_at < next))
			next = parked->retry_at;
	}
	return next;
}

/*
 * The parked event at this position, or NULL.
 */
CqrsParked *
cqrs_parked_find(const CqrsParkedSet *set, int64 position)
{
	int			i;

	if (set == NULL)
		return NULL;
	for (i = find_index(set, position);
		 i < set->nparked && set->parked[i].position == position;
		 i++)
		if (!set->parked[i].gone)
			return &set->parked[i];
	return NULL;
}

/*
 * Is this event parked?
 */
bool
cqrs_parked_has(const CqrsParkedSet *set, const CqrsEvent *event)
{
	CqrsParked *parked = cqrs_parked_find(set, event->position);

	return parked != NULL &&
		memcmp(&parked->event_id, DatumGetUUIDP(event->event_id),
			   UUID_LEN) == 0;
}

/*
 * The next parked event from index *next on that may be handed out to who
 * pulls, or NULL: one that is due, and before which nothing of its lane is
 * left. What is called with it next is cqrs_parked_pass().
 */
CqrsParked *
cqrs_parked_next(CqrsParkedSet *set, int *next, TimestampTz now)
{
	while (set != NULL && *next < set->nparked)
	{
		CqrsParked *parked = &set->parked[(*next)++];
		LaneEntry  *entry;

		if (parked->gone)
			continue;
		entry = find_lane(set, parked->lane);
		if (entry->closed)
			continue;
		if (parked->retry_at <= now)
			return parked;
		entry->closed = true;
	}
	return NULL;
}

/*
 * This parked event is handed out: others of its lane may follow it, unless
 * it failed before.
 */
void
cqrs_parked_pass(CqrsParkedSet *set, const CqrsParked *parked)
{
	LaneEntry  *entry = find_lane(set, parked->lane);

	if (parked->attempts > 0)
		entry->closed = true;
	else
		entry->npassed++;
}

/*
 * A parked event, whole, in the current memory context, and how often it was
 * tried. Returns false if the snapshot does not show it, or its topic is gone.
 */
bool
cqrs_parked_read(const CqrsCursor *cursor, int64 position, Snapshot snapshot,
				 CqrsEvent *event, int *attempts)
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;

	event->topic = NULL;
	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), AccessShareLock);
	scan = begin_scan(rel, &index, cursor, position, true, snapshot);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[RETRY_COLUMNS];
		bool		nulls[RETRY_COLUMNS];

		heap_deform_tuple(heap_copytuple(tuple), RelationGetDescr(rel),
						  values, nulls);
		event_from_values(values, nulls, event);
		*attempts = DatumGetInt32(values[RETRY_ATTEMPTS - 1]);
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return event->topic != NULL;
}

/*
 * Add an event to the parked ones.
 *	retry_at	not to be tried before
 *	fault		why it failed; NULL: it has to wait, or is to be tried anew
 */
void
cqrs_parked_insert(CqrsCursor *cursor, const CqrsEvent *event, int attempts,
				   TimestampTz retry_at, const CqrsFault *fault)
{
	insert_row(cursor, event, attempts, retry_at, fault, NULL);
}

/*
 * Have an event that was given up tried anew: parked, or, if it is parked
 * again since, as if it had not failed. Returns false if another event is
 * parked at its position.
 */
bool
cqrs_parked_redrive(CqrsCursor *cursor, const CqrsEvent *event,
					TimestampTz now)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};
	CqrsEvent	parked;
	int			attempts;
	bool		found;

	found = cqrs_parked_read(cursor, event->position, snapshot, &parked,
							 &attempts);
	UnregisterSnapshot(snapshot);
	if (!found)
	{
		cqrs_parked_insert(cursor, event, 0, now, NULL);
		return true;
	}
	if (memcmp(DatumGetUUIDP(parked.event_id), DatumGetUUIDP(event->event_id),
			   UUID_LEN) != 0)
		return false;
	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(0);
	replace[RETRY_ATTEMPTS - 1] = true;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(now);
	replace[RETRY_RETRY_AT - 1] = true;
	set_fault(NULL, values, nulls);
	replace[RETRY_FAILED_AT - 1] = true;
	replace[RETRY_SQLSTATE - 1] = true;
	replace[RETRY_MESSAGE - 1] = true;
	update_row(cursor, event->position, values, nulls, replace);
	return true;
}

static void
insert_row(CqrsCursor *cursor, const CqrsEvent *event, int attempts,
		   TimestampTz retry_at, const CqrsFault *fault,
		   const pg_uuid_t *receipt)
{
	Relation	rel;
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};

	values[RETRY_SUBSCRIPTION_ID - 1] = Int32GetDatum(cursor->subscription_id);
	values[RETRY_PARTITION - 1] = Int32GetDatum(cursor->partition);
	values[RETRY_POSITION - 1] = Int64GetDatum(event->position);
	values[RETRY_TOPIC_ID - 1] = Int32GetDatum(event->topic->topic_id);
	values[RETRY_EVENT_ID - 1] = event->event_id;
	values[RETRY_EVENT_NAME - 1] = event->event_name;
	values[RETRY_KEY - 1] = event->key.value;
	nulls[RETRY_KEY - 1] = event->key.isnull;
	values[RETRY_HEADERS - 1] = event->headers.value;
	nulls[RETRY_HEADERS - 1] = event->headers.isnull;
	values[RETRY_PAYLOAD - 1] = event->payload.value;
	nulls[RETRY_PAYLOAD - 1] = event->payload.isnull;
	values[RETRY_EMITTED_AT - 1] = TimestampTzGetDatum(event->emitted_at);
	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(attempts);
	values[RETRY_RECEIPT - 1] = UUIDPGetDatum(receipt);
	nulls[RETRY_RECEIPT - 1] = receipt == NULL;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(retry_at);
	set_fault(fault, values, nulls);

	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), RowExclusiveLock);
	CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values,
											nulls));
	table_close(rel, NoLock);
	CommandCounterIncrement();

	/* Of a late transaction, it may be lower than what was parked before. */
	if (cursor->parked_from == 0 || event->position < cursor->parked_from)
		cursor->parked_from = event->position;
}

/*
 * Park an event: because it failed, or, with fault NULL, because it has to
 * wait. Returns the set, made if there was none. What was found in a set
 * before may be elsewhere by then.
 */
CqrsParkedSet *
cqrs_park(CqrsParkedSet *set, const CqrsSubscription *subscription,
		  CqrsCursor *cursor, const CqrsEvent *event, const CqrsFault *fault)
{
	CqrsParked *parked;

	if (set == NULL)
		set = new_set();
	parked = add_to_set(set, event->position, cqrs_event_lane(event), false);
	parked->event_id = *DatumGetUUIDP(event->event_id);
	parked->attempts = fault ? 1 : 0;
	parked->killed = false;
	parked->retry_at = fault == NULL ? event->emitted_at :
		fault->retry_at != 0 ? fault->retry_at :
		cqrs_retry_time(subscription, 1);
	cqrs_parked_insert(cursor, event, parked->attempts, parked->retry_at,
					   fault);
	if (fault != NULL && (fault->final || subscription->max_attempts == 1))
		bury(set, parked, cursor, fault);
	return set;
}

/*
 * Park an event that has not failed, but was handed out with this receipt, and
 * may have to come again.
 */
CqrsParkedSet *
cqrs_park_received(CqrsParkedSet *set, CqrsCursor *cursor,
				   const CqrsEvent *event, const pg_uuid_t *receipt)
{
	CqrsParked *parked;

	if (set == NULL)
		set = new_set();
	parked = add_to_set(set, event->position, cqrs_event_lane(event), true);
	parked->event_id = *DatumGetUUIDP(event->event_id);
	parked->attempts = 0;
	parked->receipt = *receipt;
	parked->killed = false;
	parked->retry_at = event->emitted_at;
	cqrs_parked_pass(set, parked);
	insert_row(cursor, event, 0, parked->retry_at, NULL, receipt);
	return set;
}

/*
 * A parked event failed once more: try it again later, or give it up. With
 * counted, the attempt was counted when it began.
 */
void
cqrs_parked_failed(CqrsParkedSet *set, CqrsParked *parked,
				   const CqrsSubscription *subscription, CqrsCursor *cursor,
				   const CqrsFault *fault, bool counted)
{
	if (!counted)
		parked->attempts++;
	if (fault->final ||
		(subscription->max_attempts > 0 &&
		 parked->attempts >= subscription->max_attempts))
		bury(set, parked, cursor, fault);
	else
		record_attempt(parked, subscription, cursor, fault);
}

/*
 * Count an attempt that is about to be made, because it may end this process.
 * Returns false if there were enough of them: then the event was given up.
 */
bool
cqrs_parked_begin_attempt(CqrsParkedSet *set, CqrsParked *parked,
						  const CqrsSubscription *subscription,
						  CqrsCursor *cursor)
{
	CqrsFault	fault = {ERRCODE_CRASH_SHUTDOWN};

	fault.message = subscription->has_handler || subscription->server != NULL ?
		"the server process ended while it handled the event" :
		"the lease ran out before the event was acknowledged";
	if (subscription->max_attempts > 0 &&
		parked->attempts >= subscription->max_attempts)
	{
		bury(set, parked, cursor, &fault);
		return false;
	}
	parked->attempts++;
	record_attempt(parked, subscription, cursor, &fault);
	return true;
}

/*
 * An attempt that was counted when it began came to nothing, through no fault
 * of the event's: it does not count. fault says when to try again.
 */
void
cqrs_parked_void_attempt(CqrsParked *parked,
						 const CqrsSubscription *subscription,
						 CqrsCursor *cursor, const CqrsFault *fault)
{
	parked->attempts--;
	record_attempt(parked, subscription, cursor, fault);
}

/*
 * Note that a parked event was handed out by cqrs_receive(), with this
 * receipt.
 */
void
cqrs_parked_hand_out(CqrsParkedSet *set, CqrsParked *parked,
					 CqrsCursor *cursor, const pg_uuid_t *receipt)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};

	parked->received = true;
	parked->receipt = *receipt;
	values[RETRY_RECEIPT - 1] = UUIDPGetDatum(receipt);
	replace[RETRY_RECEIPT - 1] = true;
	update_row(cursor, parked->position, values, nulls, replace);
}

/*
 * A parked event was delivered, or given up: the next of its lane may go on.
 */
void
cqrs_parked_done(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor)
{
	delete_row(cursor, parked->position);
	cqrs_cursor_pass(cursor, parked->position);
	remove_from_set(set, parked, cursor);
}

/*
 * Forget everything that is parked at this cursor.
 */
void
cqrs_parked_discard_all(CqrsCursor *cursor)
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	Snapshot	snapshot;

	if (cursor->parked_from == 0)
		return;
	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = begin_scan(rel, &index, cursor, cursor->parked_from, false,
					  snapshot);
	while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
		simple_heap_delete(rel, &tuple->t_self);
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	cursor->parked_from = 0;
}

/*
 * When to try again after so many failed attempts: after retry_delay, doubled
 * with each attempt up to max_retry_delay, and up to a quarter more or less,
 * so that what failed together is not retried together.
 */
TimestampTz
cqrs_retry_time(const CqrsSubscription *subscription, int attempts)
{
	double		jitter = (random() & 0xFFFF) / 65535.0;
	int64		delay = subscription->retry_delay;
	int64		longest = Max(subscription->max_retry_delay, delay);
	int			i;

	for (i = 1; i < attempts && delay < longest; i++)
		delay *= 2;
	delay = Min(delay, longest);
	return TimestampTzPlusMilliseconds(cqrs_wall_now(),
									   (int64) (delay * (0.75 + 0.5 * jitter)));
}

static uint64
lane_of(int32 topic_id, NullableDatum key)
{
	text	   *value;
	uint64		lane;

	if (key.isnull)
		return hash_bytes_uint32_extended(topic_id, 1);
	value = DatumGetTextPP(key.value);
	lane = hash_bytes_extended((unsigned char *) VARDATA_ANY(value),
							   VARSIZE_ANY_EXHDR(value), topic_id);
	if ((Pointer) value != DatumGetPointer(key.value))
		pfree(value);
	return lane;
}

static CqrsParkedSet *
new_set(void)
{
	CqrsParkedSet *set = palloc0(sizeof(CqrsParkedSet));
	HASHCTL		ctl;

	set->room = 64;
	set->parked = palloc(sizeof(CqrsParked) * set->room);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(LaneEntry);
	ctl.hcxt = CurrentMemoryContext;
	set->lanes = hash_create("cqrs lanes", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return set;
}

/*
 * Add an event, in its place by position. Of a lane, the lowest position comes
 * first, also if it is a late transaction's.
 */
static CqrsParked *
add_to_set(CqrsParkedSet *set, int64 position, uint64 lane, bool received)
{
	int			index = find_index(set, position + 1);
	CqrsParked *parked;
	LaneEntry  *entry;
	bool		found;
	int			i;

	if (set->nparked == set->room)
	{
		set->room *= 2;
		set->parked = repalloc_huge(set->parked,
									sizeof(CqrsParked) * set->room);
	}
	parked = &set->parked[index];
	memmove(parked + 1, parked, sizeof(CqrsParked) * (set->nparked - index));
	set->nparked++;
	set->first = Min(set->first, index);
	parked->position = position;
	parked->lane = lane;
	parked->received = received;
	parked->gone = false;

	entry = hash_search(set->lanes, &lane, HASH_ENTER, &found);
	if (!found)
	{
		entry->nparked = entry->npassed = 0;
		entry->closed = false;
	}
	parked->head = entry->nparked++ == 0;
	if (!parked->head && index < set->nparked - 1)
	{
		/* Is it before the one that was first? */
		for (i = index + 1; i < set->nparked; i++)
		{
			CqrsParked *other = &set->parked[i];

			if (other->lane != lane || other->gone || !other->head)
				continue;
			other	  ->head = false;

			parked->head = true;
			break;
		}
	}
	if (!received && ++set->nheld >= CQRS_MAX_PARKED)
		set->full = true;
	return parked;
}

/*
 * The index of the first that is not lower.
 */
static int
find_index(const CqrsParkedSet *set, int64 position)
{
	int			low = 0;
	int			high = set->nparked;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (set->parked[middle].position < position)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static LaneEntry *
find_lane(const CqrsParkedSet *set, uint64 lane)
{
	return (LaneEntry *) hash_search(set->lanes, &lane, HASH_FIND, NULL);
}

static void
remove_from_set(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor)
{
	LaneEntry  *entry = find_lane(set, parked->lane);
	int			i;

	parked->gone = true;
	if (--entry->nparked > 0 && parked->head)
	{
		for (i = parked - set->parked + 1; i < set->nparked; i++)
		{
			CqrsParked *next = &set->parked[i];

			if (next->lane != parked->lane || next->gone)
				continue;
			next->head = true;
			break;
		}
	}
	parked->head = false;

	while (set->first < set->nparked && set->parked[set->first].gone)
		set->first++;
	if (set->first < set->nparked)
		cursor->parked_from = set->parked[set->first].position;
	else
	{
		/* Those that were not loaded have higher positions. */
		cursor->parked_from = set->full ?
			set->parked[set->nparked - 1].position + 1 : 0;
	}
}

/*
 * The event in a row of cqrs.retry; its topic is NULL if that was dropped.
 */
static void
event_from_values(const Datum *values, const bool *nulls, CqrsEvent *event)
{
	event->topic =
		cqrs_registry_topic_by_id(DatumGetInt32(values[RETRY_TOPIC_ID - 1]));
	event->position = DatumGetInt64(values[RETRY_POSITION - 1]);
	event->xid = InvalidFullTransactionId;
	event->emitted_at = DatumGetTimestampTz(values[RETRY_EMITTED_AT - 1]);
	event->event_id = values[RETRY_EVENT_ID - 1];
	event->event_name = values[RETRY_EVENT_NAME - 1];
	event->key.value = values[RETRY_KEY - 1];
	event->key.isnull = nulls[RETRY_KEY - 1];
	event->headers.value = values[RETRY_HEADERS - 1];
	event->headers.isnull = nulls[RETRY_HEADERS - 1];
	event->payload.value = values[RETRY_PAYLOAD - 1];
	event->payload.isnull = nulls[RETRY_PAYLOAD - 1];
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

/*
 * Write an attempt down, and when the next one may be made.
 */
static void
record_attempt(CqrsParked *parked, const CqrsSubscription *subscription,
			   CqrsCursor *cursor, const CqrsFault *fault)
{
	Datum		values[RETRY_COLUMNS];
	bool		nulls[RETRY_COLUMNS] = {0};
	bool		replace[RETRY_COLUMNS] = {0};

	parked->retry_at = fault->retry_at != 0 ? fault->retry_at :
		cqrs_retry_time(subscription, parked->attempts);
	parked->received = false;
	parked->killed = fault->sqlerrcode == ERRCODE_CRASH_SHUTDOWN;
	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(parked->attempts);
	replace[RETRY_ATTEMPTS - 1] = true;
	nulls[RETRY_RECEIPT - 1] = true;
	replace[RETRY_RECEIPT - 1] = true;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(parked->retry_at);
	replace[RETRY_RETRY_AT - 1] = true;
	set_fault(fault, values, nulls);
	replace[RETRY_FAILED_AT - 1] = true;
	replace[RETRY_SQLSTATE - 1] = true;
	replace[RETRY_MESSAGE - 1] = true;
	update_row(cursor, parked->position, values, nulls, replace);
}

/*
 * Give an event up: from cqrs.retry to cqrs.dead_letter.
 */
static void
bury(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor,
	 const CqrsFault *fault)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CqrsEvent	event;
	int			attempts;

	if (cqrs_parked_read(cursor, parked->position, snapshot, &event,
						 &attempts))
	{
		Relation	rel;
		Datum		values[CQRS_DEAD_COLUMNS];
		bool		nulls[CQRS_DEAD_COLUMNS] = {0};

		values[CQRS_DEAD_SUBSCRIPTION_ID - 1] =
			Int32GetDatum(cursor->subscription_id);
		values[CQRS_DEAD_POSITION - 1] = Int64GetDatum(event.position);
		values[CQRS_DEAD_TOPIC_ID - 1] = Int32GetDatum(event.topic->topic_id);
		values[CQRS_DEAD_EVENT_ID - 1] = event.event_id;
		values[CQRS_DEAD_EVENT_NAME - 1] = event.event_name;
		values[CQRS_DEAD_KEY - 1] = event.key.value;
		nulls[CQRS_DEAD_KEY - 1] = event.key.isnull;
		values[CQRS_DEAD_HEADERS - 1] = event.headers.value;
		nulls[CQRS_DEAD_HEADERS - 1] = event.headers.isnull;
		values[CQRS_DEAD_PAYLOAD - 1] = event.payload.value;
		nulls[CQRS_DEAD_PAYLOAD - 1] = event.payload.isnull;
		values[CQRS_DEAD_EMITTED_AT - 1] =
			TimestampTzGetDatum(event.emitted_at);
		values[CQRS_DEAD_ATTEMPTS - 1] = Int32GetDatum(parked->attempts);
		values[CQRS_DEAD_DIED_AT - 1] =
			TimestampTzGetDatum(GetCurrentTimestamp());
		values[CQRS_DEAD_SQLSTATE - 1] =
			CStringGetTextDatum(unpack_sql_state(fault->sqlerrcode));
		values[CQRS_DEAD_MESSAGE - 1] =
			CStringGetTextDatum(fault->message ? fault->message : "");
		rel = table_open(cqrs_relation_oid(CQRS_REL_DEAD_LETTER),
						 RowExclusiveLock);
		forget_dead(rel, cursor->subscription_id, event.position);
		CatalogTupleInsert(rel, heap_form_tuple(RelationGetDescr(rel), values,
												nulls));
		table_close(rel, NoLock);
	}
	UnregisterSnapshot(snapshot);
	cqrs_parked_done(set, parked, cursor);
}

/*
 * An event that comes again, after a seek, may have been given up before: its
 * new dead letter takes the place of the old one.
 */
static void
forget_dead(Relation rel, int32 subscription_id, int64 position)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation	index;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;

	index = cqrs_index_open(rel, CQRS_REL_DEAD_LETTER_PKEY, AccessShareLock);
	ScanKeyInit(&keys[0], CQRS_DEAD_SUBSCRIPTION_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(subscription_id));
	ScanKeyInit(&keys[1], CQRS_DEAD_POSITION, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum(position));
	scan = systable_beginscan_ordered(rel, index, snapshot, 2, keys);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (HeapTupleIsValid(tuple))
		simple_heap_delete(rel, &tuple->t_self);
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	CommandCounterIncrement();
}

/*
 * Change some columns of a row.
 */
static void
update_row(const CqrsCursor *cursor, int64 position, Datum *values,
		   bool *nulls, bool *replace)
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	Snapshot	snapshot;

	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = begin_scan(rel, &index, cursor, position, true, snapshot);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (HeapTupleIsValid(tuple))
		CatalogTupleUpdate(rel, &tuple->t_self,
						   heap_modify_tuple(tuple, RelationGetDescr(rel),
											 values, nulls, replace));
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

static void
delete_row(const CqrsCursor *cursor, int64 position)
{
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	Snapshot	snapshot;

	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), RowExclusiveLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = begin_scan(rel, &index, cursor, position, true, snapshot);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (HeapTupleIsValid(tuple))
		simple_heap_delete(rel, &tuple->t_self);
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/*
 * The cursor's rows from this position on, or the one at it.
 */
static SysScanDesc
begin_scan(Relation rel, Relation *index, const CqrsCursor *cursor,
		   int64 from, bool only_this, Snapshot snapshot)
{
	ScanKeyData keys[3];

	*index = cqrs_index_open(rel, CQRS_REL_RETRY_PKEY, AccessShareLock);
	ScanKeyInit(&keys[0], RETRY_SUBSCRIPTION_ID, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(cursor->subscription_id));
	ScanKeyInit(&keys[1], RETRY_PARTITION, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(cursor->partition));
	ScanKeyInit(&keys[2], RETRY_POSITION,
				only_this ? BTEqualStrategyNumber : BTGreaterEqualStrategyNumber,
				only_this ? F_INT8EQ : F_INT8GE, Int64GetDatum(from));
	return systable_beginscan_ordered(rel, *index, snapshot, 3, keys);
}
