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
	RETRY_RECEIVED,
	RETRY_FAILED_AT,
	RETRY_RETRY_AT,
	RETRY_SQLSTATE,
	RETRY_MESSAGE,
	RETRY_COLUMNS = RETRY_MESSAGE
};

/* The first, in position, of the parked events of a lane. */
typedef struct LaneEntry
{
	uint64		lane;			/* hash key */
	int			nparked;
} LaneEntry;

static uint64 lane_of(int32 topic_id, NullableDatum key);
static CqrsParkedSet *new_set(void);
static void add_to_lane(CqrsParkedSet *set, CqrsParked *parked);
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
					   Datum *values, bool *replace);
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

	if (cursor->parked_from == 0)
		return NULL;
	set = new_set();

	rel = table_open(cqrs_relation_oid(CQRS_REL_RETRY), AccessShareLock);
	scan = begin_scan(rel, &index, cursor, cursor->parked_from, false,
					  snapshot);
	while (!set->full &&
		   HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
	{
		Datum		values[RETRY_COLUMNS];
		bool		nulls[RETRY_COLUMNS];
		CqrsParked *parked = &set->parked[set->nparked++];
		NullableDatum key;

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		key.value = values[RETRY_KEY - 1];
		key.isnull = nulls[RETRY_KEY - 1];
		parked->position = DatumGetInt64(values[RETRY_POSITION - 1]);
		parked->lane = lane_of(DatumGetInt32(values[RETRY_TOPIC_ID - 1]), key);
		parked->attempts = DatumGetInt32(values[RETRY_ATTEMPTS - 1]);
		parked->received = DatumGetBool(values[RETRY_RECEIVED - 1]);
		parked->retry_at = DatumGetTimestampTz(values[RETRY_RETRY_AT - 1]);
		parked->gone = false;
		parked->killed = !nulls[RETRY_SQLSTATE - 1] &&
			strcmp(TextDatumGetCString(values[RETRY_SQLSTATE - 1]),
				   unpack_sql_state(ERRCODE_CRASH_SHUTDOWN)) == 0;
		add_to_lane(set, parked);
		set->full = set->nparked == CQRS_MAX_PARKED;
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
	return entry != NULL && entry->nparked > 0;
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

	for (i = 0; set != NULL && i < set->nparked; i++)
		if (set->parked[i].position == position && !set->parked[i].gone)
			return &set->parked[i];
	return NULL;
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
	values[RETRY_RECEIVED - 1] = BoolGetDatum(false);
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
 * Park an event that the cursor is about to pass: because it failed, or, with
 * fault NULL, because it has to wait. Returns the set, made if there was none.
 * A full set has room for just one more.
 */
CqrsParkedSet *
cqrs_park(CqrsParkedSet *set, const CqrsSubscription *subscription,
		  CqrsCursor *cursor, const CqrsEvent *event, const CqrsFault *fault)
{
	CqrsParked *parked;

	if (set == NULL)
		set = new_set();
	Assert(set->nparked <= CQRS_MAX_PARKED);
	parked = &set->parked[set->nparked++];
	parked->position = event->position;
	parked->lane = cqrs_event_lane(event);
	parked->attempts = fault ? 1 : 0;
	parked->received = false;
	parked->gone = false;
	parked->killed = false;
	parked->retry_at = fault == NULL ? event->emitted_at :
		fault->retry_at != 0 ? fault->retry_at :
		cqrs_retry_time(subscription, 1);
	add_to_lane(set, parked);
	set->full = set->nparked >= CQRS_MAX_PARKED;
	cqrs_parked_insert(cursor, event, parked->attempts, parked->retry_at,
					   fault);
	if (fault != NULL && (fault->final || subscription->max_attempts == 1))
		bury(set, parked, cursor, fault);
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

	fault.message = "the server process ended while it handled the event";
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
 * Note that a parked event was handed out by cqrs_receive().
 */
void
cqrs_parked_set_received(CqrsParked *parked, CqrsCursor *cursor)
{
	Datum		values[RETRY_COLUMNS];
	bool		replace[RETRY_COLUMNS] = {0};

	parked->received = true;
	values[RETRY_RECEIVED - 1] = BoolGetDatum(true);
	replace[RETRY_RECEIVED - 1] = true;
	update_row(cursor, parked->position, values, replace);
}

/*
 * A parked event was delivered, or given up: the next of its lane may go on.
 */
void
cqrs_parked_done(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor)
{
	delete_row(cursor, parked->position);
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
	cursor->retrying = false;
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
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
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

	/*
	 * One more: what fails, or is announced, when the set has just become
	 * full.
	 */
	set->parked = palloc(sizeof(CqrsParked) * (CQRS_MAX_PARKED + 1));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(LaneEntry);
	ctl.hcxt = CurrentMemoryContext;
	set->lanes = hash_create("cqrs lanes", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return set;
}

/*
 * Events are added in the order in which they are to be delivered.
 */
static void
add_to_lane(CqrsParkedSet *set, CqrsParked *parked)
{
	LaneEntry  *entry;
	bool		found;

	entry = hash_search(set->lanes, &parked->lane, HASH_ENTER, &found);
	if (!found)
		entry->nparked = 0;
	parked->head = entry->nparked++ == 0;
}

static void
remove_from_set(CqrsParkedSet *set, CqrsParked *parked, CqrsCursor *cursor)
{
	LaneEntry  *entry;
	int			i;

	entry = hash_search(set->lanes, &parked->lane, HASH_FIND, NULL);
	entry->nparked--;
	parked->gone = true;
	cursor->parked_from = 0;
	for (i = 0; i < set->nparked; i++)
	{
		CqrsParked *other = &set->parked[i];

		if (other->gone)
			continue;
		if (cursor->parked_from == 0 || other->position < cursor->parked_from)
			cursor->parked_from = other->position;

		if (parked->head && other->lane == parked->lane)
		{
			other	  ->head = true;

			parked->head = false;
		}
	}

	/* Those that were not loaded have higher positions. */
	if (cursor->parked_from == 0 && set->full)
		cursor->parked_from = parked->position + 1;
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
	values[RETRY_FAILED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
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
	bool		nulls[RETRY_COLUMNS];
	bool		replace[RETRY_COLUMNS] = {0};

	parked->retry_at = fault->retry_at != 0 ? fault->retry_at :
		cqrs_retry_time(subscription, parked->attempts);
	parked->received = false;
	values[RETRY_ATTEMPTS - 1] = Int32GetDatum(parked->attempts);
	replace[RETRY_ATTEMPTS - 1] = true;
	values[RETRY_RECEIVED - 1] = BoolGetDatum(false);
	replace[RETRY_RECEIVED - 1] = true;
	values[RETRY_RETRY_AT - 1] = TimestampTzGetDatum(parked->retry_at);
	replace[RETRY_RETRY_AT - 1] = true;
	set_fault(fault, values, nulls);
	replace[RETRY_FAILED_AT - 1] = true;
	replace[RETRY_SQLSTATE - 1] = true;
	replace[RETRY_MESSAGE - 1] = true;
	update_row(cursor, parked->position, values, replace);
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
		values[CQRS_DEAD_PARTITION - 1] = Int32GetDatum(cursor->partition);
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
 * Change some columns of a row, none to NULL.
 */
static void
update_row(const CqrsCursor *cursor, int64 position, Datum *values,
		   bool *replace)
{
	bool		nulls[RETRY_COLUMNS] = {0};
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
