/*-------------------------------------------------------------------------
 *
 * events.c
 *	  The outbox as people see it: cqrs_events().
 *
 * An event's status is nowhere stored; it follows from the cursors and
 * failures of its topic's subscriptions. Those of the caller's snapshot, as
 * are the events: what the caller's transaction emitted is among them.
 *
 * The order is that of delivery. A subscription delivers window by window,
 * each by position; so events come in up to three windows: to the end of the
 * one being delivered to the subscription that is farthest behind, to the
 * newest tick, and what is not ticked yet.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "cursor.h"
#include "events.h"
#include "retry.h"
#include "topic.h"

/* References to events kept at once, at most; 32 MB with room to sort. */
#define WINDOW_ENTRIES	(1024 * 1024)

typedef enum StatusFilter
{
	STATUS_UNDELIVERED,
	STATUS_NEW,
	STATUS_NOT_PRODUCED,
	STATUS_PRODUCED,
	STATUS_ALL
} StatusFilter;

static const char *const status_names[] = {
	[STATUS_NEW] = "new",
	[STATUS_NOT_PRODUCED] = "not_produced",
	[STATUS_PRODUCED] = "produced",
	[STATUS_ALL] = "all",
};

/* How far one subscription of the topic is. */
typedef struct Consumer
{
	CqrsCursor	cursor;
	bool		failed;
	CqrsFailure failure;
} Consumer;

/* What to look for. */
typedef struct Search
{
	StatusFilter status;
	char	   *event_name;		/* NULL: any */
	int64		after_position;
	int			limit;
	Snapshot	snapshot;
} Search;

/* One event found. */
typedef struct Found
{
	int			window;			/* 0 to 2, see above */
	int64		position;
	HeapTuple	tuple;
} Found;

static List *collect(CqrsTopic *topic, const Search *query, TupleDesc desc,
					 List *found);
static Consumer *topic_consumers(CqrsTopic *topic, Snapshot snapshot,
								 int *nconsumers);
static StatusFilter event_status(const CqrsEvent *event,
								 const Consumer *consumers, int nconsumers,
								 int *attempts);
static int	compare_found(const ListCell *a, const ListCell *b);

PG_FUNCTION_INFO_V1(cqrs_events);

/*
 * cqrs_events(topic, batch_size, status, event_name, after_position)
 */
Datum
cqrs_events(PG_FUNCTION_ARGS)
{
	Search		query = {STATUS_UNDELIVERED, NULL, 0, 0, NULL};
	Tuplestorestate *store;
	TupleDesc	desc;
	List	   *found = NIL;
	ListCell   *lc;
	int			n = 0;

	PreventCommandIfParallelMode("cqrs_events()");
	query.limit = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	if (query.limit < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));
	if (!PG_ARGISNULL(2))
	{
		char	   *status = text_to_cstring(PG_GETARG_TEXT_PP(2));
		int			i;

		for (i = STATUS_NEW; i <= STATUS_ALL; i++)
			if (strcmp(status, status_names[i]) == 0)
				query.status = i;
		if (query.status == STATUS_UNDELIVERED)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized event status \"%s\"", status),
					 errhint("Valid values are \"new\", \"not_produced\", \"produced\", \"all\", and NULL for what is not delivered.")));
	}
	if (!PG_ARGISNULL(3))
		query.event_name = text_to_cstring(PG_GETARG_TEXT_PP(3));
	if (!PG_ARGISNULL(4))
		query.after_position = PG_GETARG_INT64(4);
	query.snapshot = GetActiveSnapshot();

	store = cqrs_srf_begin(fcinfo, &desc);
	if (!PG_ARGISNULL(0))
	{
		CqrsTopic  *topic = cqrs_topic_get(text_to_cstring(PG_GETARG_TEXT_PP(0)));

		cqrs_topic_require(topic, ACL_SELECT);
		found = collect(topic, &query, desc, found);
	}
	else
	{
		HASH_SEQ_STATUS status;
		CqrsTopic  *topic;
		List	   *topics = NIL;

		/* Not during the walk: an error would leave it unfinished. */
		cqrs_registry_topics(&status);
		while ((topic = hash_seq_search(&status)) != NULL)
			topics = lappend(topics, topic);
		foreach(lc, topics)
		{
			topic = (CqrsTopic *) lfirst(lc);
			if (cqrs_topic_allows(topic, ACL_SELECT))
				found = collect(topic, &query, desc, found);
		}
		list_sort(found, compare_found);
	}

	foreach(lc, found)
	{
		if (n++ == query.limit)
			break;
		tuplestore_puttuple(store, ((Found *) lfirst(lc))->tuple);
	}
	return (Datum) 0;
}

/*
 * Does the topic hold events that a subscription of it has not got, or events
 * at all while it has none?
 */
bool
cqrs_events_pending(CqrsTopic *topic)
{
	Search		query = {STATUS_UNDELIVERED, NULL, 0, 1, NULL};
	List	   *found;

	query.snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = collect(topic, &query, NULL, NIL);
	UnregisterSnapshot(query.snapshot);
	return found != NIL;
}

/*
 * The columns of a cqrs_event; they point where the event's do.
 */
void
cqrs_event_deform(const CqrsEvent *event, const char *status, int attempts,
				  Datum *values, bool *nulls)
{
	memset(nulls, 0, sizeof(bool) * CQRS_EVENT_COLUMNS);
	values[0] = Int64GetDatum(event->position);
	values[1] = event->event_id;
	values[2] = event->event_name;
	values[3] = CStringGetTextDatum(event->topic->name);
	values[4] = event->key.value;
	nulls[4] = event->key.isnull;
	values[5] = event->payload.value;
	nulls[5] = event->payload.isnull;
	values[6] = event->headers.value;
	nulls[6] = event->headers.isnull;
	values[7] = CStringGetTextDatum(status);
	values[8] = Int32GetDatum(attempts);
	values[9] = TimestampTzGetDatum(event->emitted_at);
}

/*
 * A cqrs_event value, in the current memory context. desc is the type's.
 */
Datum
cqrs_event_form(const CqrsEvent *event, const char *status, int attempts,
				TupleDesc desc)
{
	Datum		values[CQRS_EVENT_COLUMNS];
	bool		nulls[CQRS_EVENT_COLUMNS];

	cqrs_event_deform(event, status, attempts, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/*
 * Add what matches in one topic, in order, to a list of Found. Without desc,
 * their tuples are left out.
 */
static List *
collect(CqrsTopic *topic, const Search *query, TupleDesc desc, List *found)
{
	Consumer   *consumers;
	int			nconsumers;
	CqrsSnapshot *bounds[4] = {NULL};
	int			nbounds = 0;
	CqrsTick	tick;
	int64		bound_tick = 0;
	int			nfound = 0;
	int			i;

	consumers = topic_consumers(topic, query->snapshot, &nconsumers);
	if (nconsumers == 0 || query->status == STATUS_PRODUCED ||
		query->status == STATUS_ALL)
		bounds[nbounds++] = cqrs_snapshot_empty();
	else
	{
		CqrsCursor *last = &consumers[0].cursor;

		for (i = 1; i < nconsumers; i++)
			if (consumers[i].cursor.tick_id < last->tick_id)
				last = &consumers[i].cursor;
		bounds[nbounds++] = last->snapshot;
		if (last->until_tick != 0)
			bounds[nbounds++] = last->until_snapshot;
		bound_tick = Max(last->tick_id, last->until_tick);
	}
	if (cqrs_tick_newest(query->snapshot, &tick) && tick.tick_id > bound_tick)
		bounds[nbounds++] = tick.snapshot;
	bounds[nbounds++] = NULL;

	for (i = 0; i + 1 < nbounds && nfound < query->limit; i++)
	{
		CqrsWindow *window;
		CqrsEvent	event;

		window = cqrs_window_create(CurrentMemoryContext, bounds[i],
									bounds[i + 1], query->after_position,
									WINDOW_ENTRIES);
		if (query->event_name != NULL)
			cqrs_window_filter_name(window, query->event_name);
		cqrs_window_attach(window, 1, &topic, query->snapshot);
		while (nfound < query->limit && cqrs_window_next(window, &event))
		{
			int			attempts;
			StatusFilter status = event_status(&event, consumers, nconsumers,
											   &attempts);
			Found	   *item;

			if (query->status == STATUS_UNDELIVERED ?
				status == STATUS_PRODUCED :
				query->status != STATUS_ALL && query->status != status)
				continue;
			item = palloc(sizeof(Found));
			item->window = i + 4 - nbounds;
			item->position = event.position;
			if (desc != NULL)
			{
				Datum		values[CQRS_EVENT_COLUMNS];
				bool		nulls[CQRS_EVENT_COLUMNS];

				cqrs_event_deform(&event, status_names[status], attempts,
								  values, nulls);
				item->tuple = heap_form_tuple(desc, values, nulls);
			}
			found = lappend(found, item);
			nfound++;
		}
		cqrs_window_detach(window);
		cqrs_window_free(window);
	}
	return found;
}

/*
 * How far the topic's subscriptions are, as the snapshot shows.
 */
static Consumer *
topic_consumers(CqrsTopic *topic, Snapshot snapshot, int *nconsumers)
{
	Consumer   *consumers = NULL;
	int			n = 0;
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	List	   *ids = NIL;
	ListCell   *lc;
	int			i;

	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		for (i = 0; i < subscription->ntopics; i++)
			if (subscription->topics[i]->topic_id == topic->topic_id)
				ids = lappend_int(ids, subscription->subscription_id);

	if (ids != NIL)
		consumers = palloc(sizeof(Consumer) * list_length(ids));
	foreach(lc, ids)
	{
		Consumer   *consumer = &consumers[n];

		/* The registry may be newer than the snapshot. */
		if (!cqrs_cursor_read(lfirst_int(lc), 0, snapshot, &consumer->cursor))
			continue;
		consumer->failed = cqrs_failure_read(lfirst_int(lc), snapshot,
											 &consumer->failure);
		n++;
	}
	*nconsumers = n;
	return consumers;
}

/*
 * What became of the event so far.
 */
static StatusFilter
event_status(const CqrsEvent *event, const Consumer *consumers,
			 int nconsumers, int *attempts)
{
	bool		delivered = nconsumers > 0;
	int			i;

	*attempts = 0;
	for (i = 0; i < nconsumers; i++)
	{
		const Consumer *consumer = &consumers[i];
		const CqrsCursor *cursor = &consumer->cursor;

		if (cqrs_snapshot_shows(cursor->snapshot, event->xid))
			continue;
		if (cursor->until_tick != 0 && event->position <= cursor->position &&
			cqrs_snapshot_shows(cursor->until_snapshot, event->xid))
			continue;
		delivered = false;
		if (consumer->failed && consumer->failure.position == event->position)
			*attempts = Max(*attempts, consumer->failure.attempts);
	}
	if (delivered)
		return STATUS_PRODUCED;
	return *attempts > 0 ? STATUS_NOT_PRODUCED : STATUS_NEW;
}

static int
compare_found(const ListCell *a, const ListCell *b)
{
	const Found *left = (const Found *) lfirst(a);
	const Found *right = (const Found *) lfirst(b);

	if (left->window != right->window)
		return left->window - right->window;
	return (left->position > right->position) -
		(left->position < right->position);
}
