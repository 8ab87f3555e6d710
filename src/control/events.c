/*-------------------------------------------------------------------------
 *
 * events.c
 *	  The outbox as people see it: cqrs_events().
 *
 * An event's status is not stored; it follows from the cursors, parked events
 * and dead letters of its topic's subscriptions. These, and the events, are
 * those of the caller's snapshot, including what the caller's transaction
 * emitted.
 *
 * The order is that of delivery. First come the parked events. A subscription
 * delivers window by window, each by position; so the others come in up to
 * three windows: to the end of the one being delivered to the cursor that is
 * farthest behind, to the newest tick, and what is not ticked yet.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "base/hash.h"
#include "control/dead_letter.h"
#include "control/events.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/tick.h"
#include "log/topic.h"
#include "log/window.h"
#include "registry/registry.h"
#include "retry/parked.h"

/* The most events that are shown, if max_events is not given. */
#define DEFAULT_EVENTS	100

/* Columns of the result. */
enum
{
	EVENTS_STATUS = CQRS_EVENT_COLUMNS,
	EVENTS_ATTEMPTS,
	EVENTS_COLUMNS
};

/* The most references to events kept at once: 32 MB with room to sort. */
#define WINDOW_ENTRIES	(1024 * 1024)

typedef enum StatusFilter
{
	STATUS_UNDELIVERED,
	STATUS_NEW,
	STATUS_RETRYING,
	STATUS_DEAD,
	STATUS_DELIVERED,
	STATUS_ALL
} StatusFilter;

static const char *const status_names[] = {
	[STATUS_NEW] = "new",
	[STATUS_RETRYING] = "retrying",
	[STATUS_DEAD] = "dead",
	[STATUS_DELIVERED] = "delivered",
	[STATUS_ALL] = "all",
};

/* How far one subscription of the topic is. */
typedef struct Consumer
{
	CqrsSubscription *subscription;
	int			partitions;
	CqrsCursor *cursors;		/* of each partition */
	bool		any_dead;		/* it has dead letters */
} Consumer;

/* The subscriptions of a topic. */
typedef struct Consumers
{
	int			n;
	Consumer   *items;
	Snapshot	snapshot;
} Consumers;

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
	int			window;			/* 0: parked; 1 to 3, see above */
	int64		position;
	HeapTuple	tuple;
} Found;

static List *collect_all(const Search *query, TupleDesc desc);
static List *collect(CqrsTopic *topic, const Search *query, TupleDesc desc,
					 List *found);
static void topic_consumers(CqrsTopic *topic, Snapshot snapshot,
							Consumers *consumers);
static const CqrsCursor *farthest_behind(const Consumers *consumers);
static List *collect_parked(CqrsTopic *topic, const Search *query,
							const Consumers *consumers, TupleDesc desc,
							List *found, HTAB *positions);
static List *collect_dead(CqrsTopic *topic, const Search *query,
						  const Consumers *consumers, TupleDesc desc,
						  List *found, HTAB *positions);
static List *add_found(List *found, const CqrsEvent *event, int window,
					   StatusFilter status, int attempts, TupleDesc desc);
static bool wanted(const Search *query, const CqrsEvent *event,
				   StatusFilter status);
static StatusFilter event_status(const CqrsEvent *event,
								 const Consumers *consumers, int *attempts);
static bool is_parked(const CqrsCursor *cursor, const CqrsEvent *event,
					  Snapshot snapshot);
static int	compare_found(const ListCell *a, const ListCell *b);

PG_FUNCTION_INFO_V1(cqrs_events);

/*
 * cqrs_events(topic, max_events, status, event_name, after_position)
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
	query.limit = PG_ARGISNULL(1) ? DEFAULT_EVENTS : PG_GETARG_INT32(1);
	if (query.limit < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must be at least 1")));
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
					 errhint("Valid values are \"new\", \"retrying\", \"dead\", \"delivered\", \"all\", and NULL for what is not delivered.")));
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
		found = collect_all(&query, desc);

	foreach(lc, found)
	{
		if (n++ == query.limit)
			break;
		tuplestore_puttuple(store, ((Found *) lfirst(lc))->tuple);
	}
	return (Datum) 0;
}

/*
 * What matches in all topics that the user may read. A notice names the others,
 * but those that hold other roles' commands. What was dropped since is passed
 * by.
 */
static List *
collect_all(const Search *query, TupleDesc desc)
{
	List	   *found = NIL;
	StringInfoData left_out;
	int			nleft_out = 0;
	ListCell   *lc;

	initStringInfo(&left_out);
	foreach(lc, cqrs_registry_topic_list())
	{
		CqrsTopic  *topic = (CqrsTopic *) lfirst(lc);

		if (cqrs_topic_allows(topic, ACL_SELECT))
		{
			if (cqrs_topic_keep(topic))
				found = collect(topic, query, desc, found);
		}
		else if (topic->runner == NULL &&
				 SearchSysCacheExists1(RELOID, ObjectIdGetDatum(topic->view)))
			appendStringInfo(&left_out, "%s\"%s\"",
							 nleft_out++ > 0 ? ", " : "", topic->name);
	}
	if (nleft_out > 0)
		ereport(NOTICE,
				(errmsg_plural("topic %s is left out",
							   "topics %s are left out", nleft_out,
							   left_out.data),
				 errhint("The privilege needed is SELECT on a topic's view in schema \"%s\".",
						 CQRS_TOPIC_SCHEMA)));
	list_sort(found, compare_found);
	return found;
}

/*
 * Does the topic hold events that one of its subscriptions has not got or, if
 * it has no subscription, any events?
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
 * Add the events of one topic that match, in order, to a list of Found.
 * Without desc, their tuples are left out.
 */
static List *
collect(CqrsTopic *topic, const Search *query, TupleDesc desc, List *found)
{
	int			nbefore = list_length(found);
	Consumers	consumers;
	CqrsSnapshot *bounds[4] = {NULL};
	int			nbounds = 0;
	CqrsTick	tick;
	int64		bound_tick = 0;
	HTAB	   *positions;
	int			i;

	topic_consumers(topic, query->snapshot, &consumers);
	positions = cqrs_hash_create("cqrs positions", sizeof(int64), sizeof(int64),
								 CurrentMemoryContext);
	if (query->status == STATUS_DEAD)
		return collect_dead(topic, query, &consumers, desc, found, positions);
	if (consumers.n == 0 || query->status == STATUS_DELIVERED ||
		query->status == STATUS_ALL)
		bounds[nbounds++] = cqrs_snapshot_empty();
	else
	{
		const CqrsCursor *last = farthest_behind(&consumers);

		found = collect_parked(topic, query, &consumers, desc, found,
							   positions);
		bounds[nbounds++] = last->snapshot;
		if (last->until_tick != 0)
			bounds[nbounds++] = last->until_snapshot;
		bound_tick = Max(last->tick_id, last->until_tick);
	}
	if (cqrs_tick_newest(query->snapshot, PG_INT64_MAX, &tick) && tick.tick_id > bound_tick)
		bounds[nbounds++] = tick.snapshot;
	bounds[nbounds++] = NULL;

	for (i = 0; i + 1 < nbounds; i++)
	{
		CqrsWindow *window;
		CqrsEvent	event;

		if (list_length(found) - nbefore >= query->limit)
			break;
		window = cqrs_window_create(CurrentMemoryContext, bounds[i],
									bounds[i + 1], query->after_position,
									WINDOW_ENTRIES);
		if (query->event_name != NULL)
			cqrs_window_filter_name(window, query->event_name);
		cqrs_window_attach(window, 1, &topic, query->snapshot);
		while (list_length(found) - nbefore < query->limit &&
			   cqrs_window_next(window, &event))
		{
			int			attempts;
			StatusFilter status = event_status(&event, &consumers, &attempts);

			if (wanted(query, &event, status) &&
				hash_search(positions, &event.position, HASH_FIND,
							NULL) == NULL)
				found = add_found(found, &event, i + 5 - nbounds, status,
								  attempts, desc);
		}
		cqrs_window_detach(window);
		cqrs_window_free(window);
	}
	hash_destroy(positions);
	return found;
}

/*
 * How far the topic's subscriptions are, as the snapshot shows.
 */
static void
topic_consumers(CqrsTopic *topic, Snapshot snapshot, Consumers *consumers)
{
	List	   *subscriptions = cqrs_registry_subscription_list(topic);
	ListCell   *lc;
	int			i;

	consumers->n = 0;
	consumers->items = palloc(sizeof(Consumer) *
							  Max(list_length(subscriptions), 1));
	consumers->snapshot = snapshot;
	foreach(lc, subscriptions)
	{
		Consumer   *consumer = &consumers->items[consumers->n];
		CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);

		consumer->subscription = subscription;

		/* The registry may be newer than the snapshot. */
		consumer->partitions =
			cqrs_cursor_partitions(subscription->subscription_id, snapshot);
		consumer->cursors = palloc(sizeof(CqrsCursor) *
								   Max(consumer->partitions, 1));
		for (i = 0; i < consumer->partitions; i++)
			if (!cqrs_cursor_read(subscription->subscription_id, i, snapshot,
								  &consumer->cursors[i]))
				break;
		if (i == 0 || i < consumer->partitions)
			continue;
		consumer->any_dead =
			cqrs_dead_letter_attempts(subscription->subscription_id, 0,
									  snapshot) > 0;
		consumers->n++;
	}
}

static const CqrsCursor *
farthest_behind(const Consumers *consumers)
{
	const CqrsCursor *last = &consumers->items[0].cursors[0];
	int			i;
	int			j;

	for (i = 0; i < consumers->n; i++)
	{
		const Consumer *consumer = &consumers->items[i];

		for (j = 0; j < consumer->partitions; j++)
			if (consumer->cursors[j].tick_id < last->tick_id)
				last = &consumer->cursors[j];
	}
	return last;
}

/*
 * Add the topic's events that some subscription has parked; positions gets
 * their positions.
 */
static List *
collect_parked(CqrsTopic *topic, const Search *query,
			   const Consumers *consumers, TupleDesc desc, List *found,
			   HTAB *positions)
{
	int			i;
	int			j;

	for (i = 0; i < consumers->n; i++)
	{
		Consumer   *consumer = &consumers->items[i];

		for (j = 0; j < consumer->partitions; j++)
		{
			CqrsCursor	cursor = consumer->cursors[j];
			CqrsScan	scan;
			CqrsEvent	event;
			int			attempts;
			int			n = 0;

			if (cursor.next_retry_at == 0)
				continue;
			cqrs_parked_events_begin(&scan, &cursor, query->after_position,
									 query->snapshot);
			while (n < query->limit &&
				   cqrs_parked_events_next(&scan, &event, &attempts))
			{
				StatusFilter status = attempts > 0 ? STATUS_RETRYING :
				STATUS_NEW;
				bool		known;

				if (event.topic == NULL ||
					event.topic->topic_id != topic->topic_id ||
					!wanted(query, &event, status))
					continue;
				n++;
				(void) hash_search(positions, &event.position, HASH_ENTER,
								   &known);
				if (!known)
					found = add_found(found, &event, 0, status, attempts,
									  desc);
			}
			cqrs_scan_end(&scan, NoLock);
		}
	}
	list_sort(found, compare_found);
	return found;
}

static List *
collect_dead(CqrsTopic *topic, const Search *query,
			 const Consumers *consumers, TupleDesc desc, List *found,
			 HTAB *positions)
{
	int			i;

	for (i = 0; i < consumers->n; i++)
	{
		CqrsDeadLetterScan *scan;
		CqrsEvent	event;
		int			attempts;

		scan = cqrs_dead_letter_begin(consumers->items[i].subscription->subscription_id,
									  query->snapshot);
		while (cqrs_dead_letter_next(scan, &event, &attempts))
		{
			bool		known;

			if (event.topic == NULL ||
				event.topic->topic_id != topic->topic_id ||
				!wanted(query, &event, STATUS_DEAD))
				continue;
			(void) hash_search(positions, &event.position, HASH_ENTER,
							   &known);
			if (!known)
				found = add_found(found, &event, 0, STATUS_DEAD, attempts,
								  desc);
		}
		cqrs_dead_letter_end(scan);
	}
	list_sort(found, compare_found);
	return found;
}

static List *
add_found(List *found, const CqrsEvent *event, int window,
		  StatusFilter status, int attempts, TupleDesc desc)
{
	Found	   *item = palloc(sizeof(Found));

	item->window = window;
	item->position = event->position;
	if (desc != NULL)
	{
		Datum		values[EVENTS_COLUMNS];
		bool		nulls[EVENTS_COLUMNS] = {0};

		cqrs_event_show(event, values, nulls);
		values[EVENTS_STATUS] = CStringGetTextDatum(status_names[status]);
		values[EVENTS_ATTEMPTS] = Int32GetDatum(attempts);
		item->tuple = heap_form_tuple(desc, values, nulls);
	}
	return lappend(found, item);
}

static bool
wanted(const Search *query, const CqrsEvent *event, StatusFilter status)
{
	if (query->status == STATUS_UNDELIVERED)
	{
		if (status != STATUS_NEW && status != STATUS_RETRYING)
			return false;
	}
	else if (query->status != STATUS_ALL && query->status != status)
		return false;
	if (event->position <= query->after_position)
		return false;
	return query->event_name == NULL ||
		strcmp(TextDatumGetCString(event->event_name), query->event_name) == 0;
}

/*
 * What became of the event so far.
 */
static StatusFilter
event_status(const CqrsEvent *event, const Consumers *consumers,
			 int *attempts)
{
	bool		delivered = consumers->n > 0;
	bool		dead = false;
	int			i;

	*attempts = 0;
	for (i = 0; i < consumers->n; i++)
	{
		const Consumer *consumer = &consumers->items[i];
		const CqrsCursor *cursor;
		CqrsEvent	parked;
		int			n;

		cursor = &consumer->cursors[cqrs_event_partition(event->topic->topic_id,
														 event->event_id,
														 event->key,
														 consumer->cursors[0].by_topic,
														 consumer->partitions)];
		if (!cqrs_snapshot_shows(cursor->snapshot, event->xid) &&
			(cursor->until_tick == 0 ||
			 (event->position > cursor->position &&
			  !cqrs_cursor_has_passed(cursor, event->position)) ||
			 !cqrs_snapshot_shows(cursor->until_snapshot, event->xid)) &&
			!is_parked(cursor, event, consumers->snapshot))
			delivered = false;
		else if (cursor->next_retry_at != 0 &&
				 cqrs_parked_read(cursor, event->position,
								  consumers->snapshot, &parked, &n))
		{
			delivered = false;
			*attempts = Max(*attempts, n);
		}
		else if (consumer->any_dead &&
				 (n = cqrs_dead_letter_attempts(consumer->subscription->subscription_id,
												event->position,
												consumers->snapshot)) > 0)
		{
			dead = true;
			*attempts = Max(*attempts, n);
		}
	}
	if (!delivered)
		return *attempts > 0 && !dead ? STATUS_RETRYING : STATUS_NEW;
	return dead ? STATUS_DEAD : STATUS_DELIVERED;
}

/*
 * Is the event parked, ahead of the cursor?
 */
static bool
is_parked(const CqrsCursor *cursor, const CqrsEvent *event, Snapshot snapshot)
{
	CqrsEvent	parked;
	int			attempts;

	return cursor->next_retry_at != 0 &&
		event->position <= cursor->received &&
		cqrs_parked_read(cursor, event->position, snapshot, &parked,
						 &attempts);
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
