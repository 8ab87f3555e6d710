/*-------------------------------------------------------------------------
 *
 * target_broker.c
 *	  Events delivered to a broker, by a worker.
 *
 * Nothing is sent while a transaction is open. An exchange is a transaction in
 * which the cursor moves past what the broker has confirmed, and further events
 * are read; between exchanges, events are on their way, and the worker waits.
 *
 * Protocol
 *
 * 1. Events are read up to a tick whose commit is known to be durable: what
 *	  leaves the database must not be taken back by a crash or a failover.
 * 2. They are read ahead of the cursor, within one window, into a list of
 *	  entries in the order of delivery. From there they are sent, no more than
 *	  "window" at a time that are not recorded yet: so many may arrive twice if
 *	  we are killed. An entry that has an outcome is recorded once all before
 *	  it have one: confirmed, the cursor passes it; rejected, it is parked.
 * 3. Later events of the topic and key of a rejected one are not sent any more,
 *	  but parked behind it. Those that had been sent already may have arrived;
 *	  with strict_key_order there are none: an event is sent only when nothing
 *	  of its lane is on its way.
 * 4. Parked events that are due are sent when nothing else is on its way, each
 *	  behind those of its lane that come before it.
 * 5. If the connection is lost, what has no outcome is forgotten, and read
 *	  again later. That is no event's fault.
 * 6. A change of the subscription or the server is seen before the next event is
 *	  sent: then what is on its way is waited for and recorded, and no more.
 * 7. If the cursor is not where we left it, somebody moved it: all is
 *	  forgotten, and the connection closed, since events are on their way that
 *	  must not be counted.
 *
 * Memory
 *
 * The events of one exchange are in a context of their own, which is freed when
 * the last of them is recorded. The thread of the link reads messages there; so
 * nothing of it is freed before the link says that it is done with them.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "broker_link.h"
#include "broker_server.h"
#include "debug_point.h"
#include "message.h"
#include "relay.h"
#include "target_broker.h"

/* Entries have at most about so many bytes of message bodies. */
#define LONGEST_ENTRIES		(2 * CQRS_BATCH_BYTES)

/* A broker may accept nothing for so long, in milliseconds. */
#define LONGEST_TROUBLE		1000

/* The cursor of a subscription without events moves every so many ticks. */
#define EMPTY_TICKS			1000

typedef enum EntryState
{
	ENTRY_READ,					/* to be sent */
	ENTRY_SENT,

	/* From here on, it has an outcome. */
	ENTRY_CONFIRMED,
	ENTRY_REJECTED,
	ENTRY_REFUSED,
	ENTRY_WAITS					/* behind one that was rejected */
} EntryState;

/* The events read in one exchange. */
typedef struct Batch
{
	MemoryContext context;
	int			nentries;		/* not recorded */
} Batch;

/* An event. */
typedef struct Entry
{
	CqrsLinkMessage message;	/* first */
	dlist_node	node;
	EntryState	state;
	Batch	   *batch;
	uint64		lane;
	int32		topic_id;
	bool		announced;		/* its attempt was counted before */
	CqrsFault	fault;			/* it is no message, if it has a message */
	CqrsEvent	event;			/* last: a copy, but for topic */
} Entry;

/* What is known of a lane. */
typedef struct Lane
{
	uint64		lane;			/* hash key */
	int			nsent;			/* on their way; only with one_by_lane */
	int			nfailed;		/* rejected, and not recorded */
} Lane;

/* The connection of this process, if server is not NULL. */
static struct
{
	MemoryContext context;
	CqrsBrokerServer *server;
	char	   *server_name;
	char	   *subscription_name;
	uint64		generation;		/* of servers, when it was read */
	CqrsBrokerLink *link;		/* NULL: not begun to connect */
	int			partition;
	CqrsFormat	format;
	bool		strict;

	/* Read, and not recorded. */
	CqrsReadAhead ahead;
	MemoryContext cursor_context;	/* of the snapshots in it */
	bool		parked;			/* the entries are in cqrs.retry */
	dlist_head	entries;
	dlist_node *unsent;			/* the first to be sent; NULL: none */
	HTAB	   *lanes;
	int			nentries;
	int			nread;			/* ... to be sent */
	int			nsent;			/* ... on their way */
	int			nout;			/* ... that were sent, on their way or not */
	int			nfailed;		/* ... rejected */
	int64		nbytes;

	bool		read_all;		/* nothing more can be read just now */
	bool		hold;			/* send nothing */
	bool		unproven;		/* send one event, and see */
	bool		no_room;		/* too many are parked to record more */
	bool		moved;			/* the cursor, by somebody else */
	TimestampTz waiting_since;	/* for the broker to do something */
	TimestampTz trouble_since;	/* it accepts nothing; 0: it does */
	int64		timeout;		/* of the subscription, in milliseconds */
}			broker;

/* A message was being formed; if that failed, so many are formed carefully. */
static bool forming = false;
static int	form_carefully = 0;

static int	record_new(CqrsRelay *relay);
static int	record_parked(CqrsRelay *relay, const char *lost);
static CqrsFault *fault_of(Entry *entry);
static void leave_window(CqrsRelay *relay);
static void read_new(CqrsRelay *relay);
static bool read_parked(CqrsRelay *relay, int64 announced,
						volatile CqrsDelivery *delivery);
static bool lane_is_open(HTAB *lanes, const CqrsParked *parked,
						 TimestampTz now, volatile CqrsDelivery *delivery);
static Batch *new_batch(void);
static void free_batch(Batch *batch);
static Entry *add_entry(Batch *batch, const CqrsEvent *event);
static Entry *copy_event(const CqrsEvent *event);
static void form_message(Entry *entry, const CqrsEvent *event);
static void forget_entry(Entry *entry);
static void forget_all(void);
static void keep_cursor(const CqrsCursor *cursor);
static Lane *lane_of(uint64 lane);
static void drop_lane(Lane *lane);
static bool one_by_lane(void);
static bool has_room(void);
static bool first_is_final(void);
static void take_outcomes(void);
static void hand_out(void);
static void exchange_error_callback(void *arg);

/*
 * Read all that it takes to connect, as the current user, the subscription's
 * owner. If the last attempt failed before anything was confirmed, only one
 * event is sent until the broker says something: a broker that takes what it
 * does not confirm would get as many as it can hold, each time anew.
 *
 * Raises what cqrs_broker_server() does.
 */
void
cqrs_target_broker_prepare(CqrsSubscription *subscription, int partition,
						   bool failed_before)
{
	MemoryContext context;
	MemoryContext oldcontext;
	uint64		generation = cqrs_broker_server_generation();
	HASHCTL		ctl;

	Assert(broker.server == NULL);
	context = AllocSetContextCreate(TopTransactionContext, "cqrs broker",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	memset(&broker, 0, sizeof(broker));
	broker.context = context;
	broker.generation = generation;
	broker.partition = partition;
	broker.server_name = pstrdup(subscription->server);
	broker.subscription_name = pstrdup(subscription->name);
	broker.strict = subscription->strict_key_order;
	broker.timeout = subscription->handler_timeout;
	broker.unproven = failed_before;
	if (!cqrs_format_parse(subscription->format, &broker.format))
		elog(ERROR, "unexpected format \"%s\"", subscription->format);
	broker.ahead.cursor.seq = -1;
	dlist_init(&broker.entries);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Lane);
	ctl.hcxt = context;
	broker.lanes = hash_create("cqrs lanes on their way", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	broker.server = cqrs_broker_server(subscription->server,
									   subscription->name,
									   subscription->owner);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextSetParent(context, TopMemoryContext);
}

/*
 * Begin to connect.
 */
void
cqrs_target_broker_connect(void)
{
	broker.waiting_since = GetCurrentTimestamp();
	broker.link = cqrs_link_open(broker.server->module,
								 &broker.server->connection);
}

/*
 * Take what the broker had to say, send what may be sent (with finish, nothing
 * more), and say what is to be done next. With CQRS_BROKER_TASK_FAIL, error,
 * of CQRS_BROKER_ERROR_SIZE bytes, says why, in the server's encoding.
 */
CqrsBrokerTask
cqrs_target_broker_task(bool finish, char *error)
{
	CqrsLinkState state;
	TimestampTz now = GetCurrentTimestamp();
	char		trouble[CQRS_BROKER_ERROR_SIZE];
	bool		look;
	bool		renew;
	int			half;
	int			nfinal;

	error[0] = '\0';
	if (broker.link == NULL)
		return CQRS_BROKER_TASK_OPEN;
	if (broker.moved)
		return CQRS_BROKER_TASK_RENEW;
	state = cqrs_link_state(broker.link, trouble);
	take_outcomes();

	/* After what changed either committed, nothing more is to be sent. */
	look = cqrs_registry_is_stale();
	renew = broker.generation != cqrs_broker_server_generation();
	if (state == CQRS_LINK_OPEN && !look && !renew && !broker.hold && !finish)
		hand_out();
	if (trouble[0] == '\0')
		broker.trouble_since = 0;
	else if (broker.trouble_since == 0)
		broker.trouble_since = now;

	if (state == CQRS_LINK_LOST ||
		(broker.nsent > 0 && broker.trouble_since != 0 &&
		 TimestampDifferenceExceeds(broker.trouble_since, now,
									LONGEST_TROUBLE)))
	{
		char	   *text = cqrs_broker_error(trouble);

		strlcpy(error, text, CQRS_BROKER_ERROR_SIZE);
		pfree(text);
	}
	else if ((broker.nsent > 0 || state == CQRS_LINK_CONNECTING) &&
			 broker.timeout > 0 &&
			 TimestampDifferenceExceeds(broker.waiting_since, now,
										(int) Min(broker.timeout, INT_MAX)))
		snprintf(error, CQRS_BROKER_ERROR_SIZE,
				 state == CQRS_LINK_CONNECTING ?
				 "%s of server \"%s\" cannot be connected to within " INT64_FORMAT " ms" :
				 "%s of server \"%s\" has confirmed nothing for " INT64_FORMAT " ms",
				 broker.server->module->name, broker.server_name,
				 broker.timeout);
	if (error[0] != '\0')
	{
		ereport(LOG,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not deliver to server \"%s\" of subscription \"%s\"",
						broker.server_name, broker.subscription_name),
				 errdetail_internal("%s", error)));
		return CQRS_BROKER_TASK_FAIL;
	}

	if (state == CQRS_LINK_CONNECTING)
		return renew || broker.hold ? CQRS_BROKER_TASK_RENEW :
			look ? CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
	half = broker.server->window / 2;
	nfinal = broker.nentries - broker.nread - broker.nsent;
	if (broker.nsent == 0 && !first_is_final() && (renew || broker.hold))
		return CQRS_BROKER_TASK_RENEW;
	if (look || broker.nsent == 0 ||
		(nfinal > half && first_is_final() && !broker.no_room) ||
		(!broker.read_all && !renew && has_room()))
		return CQRS_BROKER_TASK_EXCHANGE;
	return CQRS_BROKER_TASK_WAIT;
}

/*
 * How many events were read and are not recorded.
 */
int
cqrs_target_broker_pending(void)
{
	return broker.server != NULL ? broker.nentries : 0;
}

/*
 * What is readable when the broker had something to say.
 */
int
cqrs_target_broker_fd(void)
{
	return cqrs_link_fd(broker.link);
}

/*
 * How long to wait for that, in milliseconds.
 */
long
cqrs_target_broker_patience(void)
{
	long		patience = LONGEST_TROUBLE;

	if (broker.timeout > 0)
	{
		TimestampTz until = TimestampTzPlusMilliseconds(broker.waiting_since,
														broker.timeout);

		patience = Min(patience,
					   TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   until) + 1);
	}
	return patience;
}

/*
 * Disconnect, and forget what is not recorded.
 */
void
cqrs_target_broker_close(void)
{
	dlist_iter	iter;

	if (broker.server == NULL)
		return;
	if (broker.link != NULL)
		cqrs_link_close(broker.link);
	broker.link = NULL;
	dlist_foreach(iter, &broker.entries)
		free(dlist_container(Entry, node, iter.cur)->message.error);
	if (forming)
		form_carefully = Max(broker.server->window, CQRS_BATCH_EVENTS);
	forming = false;
	broker.nentries = 0;
	broker.server = NULL;
	MemoryContextDelete(broker.context);
}

/*
 * One exchange. The current user is the subscription's owner.
 *	read		read further events; if not, and nothing is on its way, forget
 *				those that were not sent
 *	announced	not 0: only this parked event, whose attempt was counted
 *	lost		why the connection is lost, or NULL
 * In *delivery, nevents gets how many were confirmed and are recorded now; more,
 * whether there may be more to do; announce and retry_at as in a delivery to a
 * handler.
 */
void
cqrs_target_broker_exchange(CqrsSubscription *subscription, bool read,
							int64 announced, const char *lost,
							volatile CqrsDelivery *delivery)
{
	ErrorContextCallback errcallback;
	CqrsRelay	relay;
	CqrsCursor *cursor = &relay.cursor;
	int64		delivered;
	int64		parked_from;
	bool		moved;

	errcallback.callback = exchange_error_callback;
	errcallback.arg = subscription;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	if (!cqrs_relay_begin_ahead(&relay, subscription, broker.partition,
								&broker.ahead) && broker.nentries > 0)
	{
		broker.moved = true;
		cqrs_relay_end(&relay);
		error_context_stack = errcallback.previous;
		return;
	}
	subscription = relay.subscription;
	broker.timeout = subscription->handler_timeout;
	broker.hold = subscription->state != CQRS_SUBSCRIPTION_ACTIVE;
	read &= !broker.hold;
	if (broker.strict != subscription->strict_key_order ||
		strcmp(subscription->server, broker.server_name) != 0 ||
		strcmp(subscription->format, cqrs_format_name(broker.format)) != 0)
		broker.generation = 0;
	delivered = cursor->delivered;
	parked_from = cursor->parked_from;
	moved = (broker.parked ? record_parked(&relay, lost) :
			 record_new(&relay)) > 0;
	relay.full = relay.parked != NULL && relay.parked->full;
	broker.no_room = relay.full && !moved;

	/* If there is no room to park what is rejected, it is read again later. */
	if (broker.nsent == 0 && broker.nentries > 0 &&
		(!read || (broker.no_room && !broker.parked)))
	{
		forget_all();
		broker.ahead.position = cursor->position;
		broker.ahead.at_end = false;
	}
	leave_window(&relay);

	broker.read_all = !read || has_room();
	if (read && has_room())
	{
		bool		due = read_parked(&relay, announced, delivery);

		if (!due && !broker.parked && announced == 0)
		{
			read_new(&relay);
			leave_window(&relay);
		}
	}

	/* Windows that had nothing for us need not be recorded each time. */
	moved |= (relay.nothers > 0 && broker.nentries == 0) ||
		(relay.start_until != 0 && cursor->tick_id != relay.start_tick) ||
		cursor->tick_id >= relay.start_tick + EMPTY_TICKS;
	CQRS_DEBUG_POINT("relay_before_cursor");
	if (moved || cursor->parked_from != parked_from)
		cqrs_cursor_append(cursor);
	delivery->nevents = (int) (cursor->delivered - delivered);
	delivery->more |= broker.nentries > 0 || relay.nothers > 0;
	delivery->retry_at = cqrs_parked_next_retry(relay.parked);
	cqrs_relay_end(&relay);
	keep_cursor(cursor);
	error_context_stack = errcallback.previous;
}

/*
 * Record the outcomes of new events, as far as all before them have one, and
 * there is room to park. Returns how many.
 */
static int
record_new(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;
	int			n = 0;

	while (first_is_final())
	{
		Entry	   *entry = dlist_head_element(Entry, node, &broker.entries);

		if (entry->state == ENTRY_CONFIRMED)
			cursor->delivered++;
		else
		{
			entry->event.topic = cqrs_registry_topic_by_id(entry->topic_id);
			if (relay->parked != NULL &&
				relay->parked->nparked >= CQRS_MAX_PARKED)
				break;

			/* Without its topic, it is nobody's event any more. */
			if (entry->event.topic != NULL)
				relay->parked = cqrs_park(relay->parked, relay->subscription,
										  cursor, &entry->event,
										  fault_of(entry));
		}
		cursor->position = entry->event.position;
		cursor->last_position = Max(cursor->last_position, cursor->position);
		forget_entry(entry);
		n++;
	}
	return n;
}

/*
 * Record the outcomes of parked events. Those of other lanes need not have one.
 * Returns how many. If the connection is lost, it is to blame for what was
 * announced, and has none.
 */
static int
record_parked(CqrsRelay *relay, const char *lost)
{
	CqrsCursor *cursor = &relay->cursor;
	dlist_mutable_iter iter;
	int			n = 0;

	dlist_foreach_modify(iter, &broker.entries)
	{
		Entry	   *entry = dlist_container(Entry, node, iter.cur);
		CqrsParked *parked;

		parked = cqrs_parked_find(relay->parked, entry->event.position);
		if (entry->state < ENTRY_CONFIRMED)
		{
			CqrsFault	fault = {ERRCODE_CONNECTION_FAILURE, lost};

			fault.retry_at = GetCurrentTimestamp();
			if (lost != NULL && entry->announced && parked != NULL)
				cqrs_parked_void_attempt(parked, relay->subscription, cursor,
										 &fault);
			continue;
		}
		if (parked == NULL || entry->state == ENTRY_WAITS)
			;
		else if (entry->state == ENTRY_CONFIRMED)
		{
			cqrs_parked_done(relay->parked, parked, cursor);
			cursor->delivered++;
		}
		else
			cqrs_parked_failed(relay->parked, parked, relay->subscription,
							   cursor, fault_of(entry), entry->announced);
		forget_entry(entry);
		n++;
	}
	broker.parked = broker.nentries > 0;
	return n;
}

/*
 * Why the broker did not take an event; NULL: it was not sent.
 */
static CqrsFault *
fault_of(Entry *entry)
{
	CqrsFault  *fault = &entry->fault;
	const char *error = entry->message.error;

	if (entry->state == ENTRY_WAITS)
		return NULL;
	if (fault->message == NULL)
	{
		fault->sqlerrcode = ERRCODE_FDW_ERROR;
		fault->message = error == NULL ? "the broker gave no reason" :
			cqrs_broker_error(error);
	}
	fault->final = entry->state == ENTRY_REFUSED;
	return fault;
}

/*
 * If all that was read is recorded, the cursor is where we read to; if that was
 * all of the window, done with it.
 */
static void
leave_window(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;

	if (broker.nentries > 0 || cursor->until_tick == 0)
		return;
	cursor->position = Max(cursor->position, broker.ahead.position);
	if (broker.ahead.at_end)
	{
		cqrs_relay_close_window(cursor);
		broker.ahead.position = 0;
		broker.ahead.at_end = false;
	}
}

/*
 * Read new events, behind those that were read before.
 */
static void
read_new(CqrsRelay *relay)
{
	int			most = Max(broker.server->window / 2, CQRS_BATCH_EVENTS);
	Batch	   *batch = new_batch();
	CqrsEvent	event;

	relay->nbytes = broker.nbytes;
	relay->may_leave = broker.nentries == 0;
	cqrs_relay_read_ahead(relay);
	while (cqrs_relay_next(relay, most, &event))
	{
		Entry	   *entry = add_entry(batch, &event);

		if (!relay->blocked || entry->state != ENTRY_READ)
			continue;
		entry->state = ENTRY_WAITS;
		broker.nread--;
	}
	if (relay->nevents > 0 || relay->nothers > 0)
		broker.ahead.position = relay->last;
	if (relay->window != NULL)
	{
		broker.ahead.at_end = cqrs_window_at_end(relay->window);
		broker.read_all = broker.ahead.at_end;
	}
	if (batch->nentries == 0)
		free_batch(batch);
}

/*
 * Read parked events that are due, if nothing else is on its way. Returns true
 * if there are such.
 */
static bool
read_parked(CqrsRelay *relay, int64 announced,
			volatile CqrsDelivery *delivery)
{
	CqrsParkedSet *set = relay->parked;
	TimestampTz now = GetCurrentTimestamp();
	HASHCTL		ctl;
	HTAB	   *lanes;
	Batch	   *batch;
	Snapshot	snapshot;
	int			i;

	if (announced == 0 && cqrs_parked_due(set, now) == NULL)
		return false;
	if (set == NULL || broker.nentries > 0)
		return true;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Lane);
	ctl.hcxt = CurrentMemoryContext;
	lanes = hash_create("cqrs open lanes", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	batch = new_batch();

	/* Some may have been parked in this exchange. */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < set->nparked; i++)
	{
		CqrsParked *parked = &set->parked[i];
		CqrsEvent	event;
		int			attempts;

		if (announced != 0 ? parked->position != announced :
			!lane_is_open(lanes, parked, now, delivery))
			continue;
		if (cqrs_parked_read(&relay->cursor, parked->position, snapshot,
							 &event, &attempts))
			add_entry(batch, &event)->announced = announced != 0;
		else
			cqrs_parked_done(set, parked, &relay->cursor);
	}
	UnregisterSnapshot(snapshot);
	if (batch->nentries == 0)
		free_batch(batch);
	broker.parked = broker.nentries > 0;
	return true;
}

/*
 * May this parked event be sent, once all of its lane before it have been? They
 * are asked about in order.
 */
static bool
lane_is_open(HTAB *lanes, const CqrsParked *parked, TimestampTz now,
			 volatile CqrsDelivery *delivery)
{
	Lane	   *lane;
	bool		found;
	bool		due = parked->retry_at <= now;

	if (parked->gone)
		return false;
	lane = hash_search(lanes, &parked->lane, HASH_ENTER, &found);
	if (!found)
		lane->nfailed = 0;
	if (parked->killed && due && !found)
		delivery->announce = true;
	if (!due || parked->killed)
		lane->nfailed++;
	return lane->nfailed == 0;
}

static Batch *
new_batch(void)
{
	MemoryContext context = cqrs_generation_context(broker.context,
													"cqrs broker batch");
	Batch	   *batch = MemoryContextAlloc(context, sizeof(Batch));

	batch->context = context;
	batch->nentries = 0;
	return batch;
}

static void
free_batch(Batch *batch)
{
	MemoryContextDelete(batch->context);
}

/*
 * Add an event to the entries.
 */
static Entry *
add_entry(Batch *batch, const CqrsEvent *event)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(batch->context);
	Entry	   *entry = copy_event(event);

	entry->message.link = broker.link;
	entry->state = ENTRY_READ;
	entry->batch = batch;
	entry->lane = cqrs_event_lane(event);
	entry->topic_id = event->topic->topic_id;
	form_message(entry, event);
	MemoryContextSwitchTo(oldcontext);

	dlist_push_tail(&broker.entries, &entry->node);
	if (broker.unsent == NULL)
		broker.unsent = &entry->node;
	batch->nentries++;
	broker.nentries++;
	if (entry->state == ENTRY_READ)
		broker.nread++;
	else
	{
		lane_of(entry->lane)->nfailed++;
		broker.nfailed++;
		broker.nout++;
	}
	broker.nbytes += entry->message.message.body_size;
	return entry;
}

/*
 * An entry with a copy of the event, in one piece. Of a payload that is stored
 * out of line, only the pointer is copied: the cursor is before the event, so
 * it stays where it is.
 */
static Entry *
copy_event(const CqrsEvent *event)
{
	Datum		values[] = {event->event_name, event->key.value,
	event->headers.value, event->payload.value};
	bool		nulls[] = {false, event->key.isnull, event->headers.isnull,
	event->payload.isnull};
	Size		sizes[lengthof(values)];
	Size		size = MAXALIGN(sizeof(Entry)) + MAXALIGN(UUID_LEN);
	Entry	   *entry;
	char	   *next;
	int			i;

	for (i = 0; i < lengthof(values); i++)
	{
		sizes[i] = nulls[i] ? 0 : VARSIZE_ANY(DatumGetPointer(values[i]));
		size += MAXALIGN(sizes[i]);
	}
	entry = palloc(size);
	memset(entry, 0, offsetof(Entry, event));
	next = (char *) entry + MAXALIGN(sizeof(Entry));
	entry->event = *event;
	entry->event.topic = NULL;
	memcpy(next, DatumGetPointer(event->event_id), UUID_LEN);
	entry->event.event_id = PointerGetDatum(next);
	next += MAXALIGN(UUID_LEN);
	for (i = 0; i < lengthof(values); i++)
	{
		if (!nulls[i])
			memcpy(next, DatumGetPointer(values[i]), sizes[i]);
		values[i] = PointerGetDatum(next);
		next += MAXALIGN(sizes[i]);
	}
	entry->event.event_name = values[0];
	entry->event.key.value = values[1];
	entry->event.headers.value = values[2];
	entry->event.payload.value = values[3];
	return entry;
}

/*
 * Make an event's message. If it cannot be one, that fails, and with it the
 * exchange; the next ones are then made in a subtransaction each, and one that
 * fails is refused.
 */
static void
form_message(Entry *entry, const CqrsEvent *event)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;

	if (form_carefully == 0)
	{
		forming = true;
		cqrs_message_form(event, broker.format, broker.server->module,
						  broker.server->source, &entry->message.message);
		forming = false;
		return;
	}

	--form_carefully;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		cqrs_message_form(event, broker.format, broker.server->module,
						  broker.server->source, &entry->message.message);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(oldcontext);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = oldowner;
		if (cqrs_target_is_outage(error))
			ReThrowError(error);
		entry->state = ENTRY_REFUSED;
		entry->fault.sqlerrcode = error->sqlerrcode;
		entry->fault.message = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
}

/*
 * An entry that has an outcome is done with.
 */
static void
forget_entry(Entry *entry)
{
	Assert(entry->state >= ENTRY_CONFIRMED);
	if (entry->state == ENTRY_REJECTED || entry->state == ENTRY_REFUSED)
	{
		Lane	   *lane = lane_of(entry->lane);

		lane->nfailed--;
		drop_lane(lane);
		broker.nfailed--;
	}
	if (entry->state != ENTRY_WAITS)
		broker.nout--;
	free(entry->message.error);
	if (broker.unsent == &entry->node)
		broker.unsent = dlist_has_next(&broker.entries, &entry->node) ?
			dlist_next_node(&broker.entries, &entry->node) : NULL;
	dlist_delete(&entry->node);
	broker.nentries--;
	broker.nbytes -= entry->message.message.body_size;
	if (--entry->batch->nentries == 0)
		free_batch(entry->batch);
}

/*
 * Forget all entries. None is on its way.
 */
static void
forget_all(void)
{
	dlist_mutable_iter iter;

	Assert(broker.nsent == 0);
	broker.parked = false;
	dlist_foreach_modify(iter, &broker.entries)
	{
		Entry	   *entry = dlist_container(Entry, node, iter.cur);

		if (entry->state == ENTRY_READ)
		{
			entry->state = ENTRY_WAITS;
			broker.nread--;
		}
		forget_entry(entry);
	}
}

/*
 * Remember where the cursor is, beyond the transaction.
 */
static void
keep_cursor(const CqrsCursor *cursor)
{
	MemoryContext context = AllocSetContextCreate(broker.context,
												  "cqrs broker cursor",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	CqrsCursor *kept = &broker.ahead.cursor;

	*kept = *cursor;
	kept->snapshot =
		cqrs_snapshot_from_datum(PointerGetDatum(cursor->snapshot));
	if (cursor->until_tick != 0)
		kept->until_snapshot =
			cqrs_snapshot_from_datum(PointerGetDatum(cursor->until_snapshot));
	MemoryContextSwitchTo(oldcontext);
	if (broker.cursor_context != NULL)
		MemoryContextDelete(broker.cursor_context);
	broker.cursor_context = context;
}

static Lane *
lane_of(uint64 lane)
{
	Lane	   *entry;
	bool		found;

	entry = hash_search(broker.lanes, &lane, HASH_ENTER, &found);
	if (!found)
		entry->nsent = entry->nfailed = 0;
	return entry;
}

/*
 * Forget a lane of which nothing is to be known.
 */
static void
drop_lane(Lane *lane)
{
	if (lane->nsent == 0 && lane->nfailed == 0)
		hash_search(broker.lanes, &lane->lane, HASH_REMOVE, NULL);
}

/*
 * Is an event sent only when none of its lane is on its way?
 */
static bool
one_by_lane(void)
{
	return broker.strict || broker.parked;
}

/*
 * Is it time to read on? While half a window is sent, the next half is read.
 */
static bool
has_room(void)
{
	return broker.nread <= broker.server->window / 2 &&
		broker.nbytes < LONGEST_ENTRIES;
}

/*
 * Is there something to record?
 */
static bool
first_is_final(void)
{
	return !dlist_is_empty(&broker.entries) &&
		dlist_head_element(Entry, node, &broker.entries)->state >= ENTRY_CONFIRMED;
}

/*
 * Take what the broker said about events.
 */
static void
take_outcomes(void)
{
	CqrsLinkMessage *message = cqrs_link_take(broker.link);

	if (message != NULL)
	{
		broker.waiting_since = GetCurrentTimestamp();
		broker.unproven = false;
	}
	while (message != NULL)
	{
		Entry	   *entry = (Entry *) message;

		message = message->next;
		entry->state =
			entry->message.outcome == CQRS_BROKER_CONFIRMED ? ENTRY_CONFIRMED :
			entry->message.outcome == CQRS_BROKER_REFUSED ? ENTRY_REFUSED :
			ENTRY_REJECTED;
		broker.nsent--;
		if (entry->state != ENTRY_CONFIRMED)
		{
			lane_of(entry->lane)->nfailed++;
			broker.nfailed++;
		}
		if (one_by_lane())
		{
			Lane	   *lane = lane_of(entry->lane);

			lane->nsent--;
			drop_lane(lane);
		}
	}
}

/*
 * Send what may be sent.
 */
static void
hand_out(void)
{
	CqrsLinkMessage *first = NULL;
	CqrsLinkMessage *last = NULL;
	dlist_node *node = broker.unsent;

	if (broker.nsent == 0)
		broker.waiting_since = GetCurrentTimestamp();
	while (node != NULL && broker.nread > 0 &&
		   broker.nout < (broker.unproven ? 1 : broker.server->window))
	{
		Entry	   *entry = dlist_container(Entry, node, node);

		node = dlist_has_next(&broker.entries, node) ?
			dlist_next_node(&broker.entries, node) : NULL;
		if (entry->state != ENTRY_READ)
			continue;
		if (one_by_lane() || broker.nfailed > 0)
		{
			Lane	   *lane = lane_of(entry->lane);

			if (lane->nfailed > 0)
			{
				entry->state = ENTRY_WAITS;
				broker.nread--;
				continue;
			}
			if (one_by_lane() && lane->nsent > 0)
				continue;
			lane->nsent += one_by_lane() ? 1 : 0;
			drop_lane(lane);
		}
		entry->state = ENTRY_SENT;
		broker.nread--;
		broker.nsent++;
		broker.nout++;
		entry->message.next = NULL;
		if (first == NULL)
			first = &entry->message;
		else
			last->next = &entry->message;
		last = &entry->message;
	}
	while (broker.unsent != NULL &&
		   dlist_container(Entry, node, broker.unsent)->state != ENTRY_READ)
		broker.unsent = dlist_has_next(&broker.entries, broker.unsent) ?
			dlist_next_node(&broker.entries, broker.unsent) : NULL;
	if (first != NULL)
		cqrs_link_send(broker.link, first, last);
}

static void
exchange_error_callback(void *arg)
{
	errcontext("delivering to subscription \"%s\"",
			   ((CqrsSubscription *) arg)->name);
}
