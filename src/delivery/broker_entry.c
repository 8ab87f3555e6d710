/*-------------------------------------------------------------------------
 *
 * broker_entry.c
 *	  The events on their way to a broker.
 *
 * An entry is a copy of an event, with its message. It is read, then sent, then
 * has an outcome, then is recorded and forgotten; target_broker.c says what is
 * sent when, and what an outcome means.
 *
 * Memory
 *
 * The events of one exchange are in a context of their own, which is freed when
 * the last of them is recorded. The thread of the link reads messages there; so
 * nothing of it is freed before the link says that it is done with them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/hash.h"
#include "base/rethrow.h"
#include "broker/server.h"
#include "delivery/broker_entry.h"
#include "delivery/relay.h"
#include "delivery/target_handler.h"

/* What is known about a lane. */
typedef struct Lane
{
	uint64		lane;			/* hash key */
	int			nsent;			/* on their way; only with one_by_lane */
	bool		failed;			/* one was rejected; what follows is not sent */
} Lane;

/* A message is being formed. If that fails, this many are formed carefully. */
static bool forming = false;
static int	form_carefully = 0;

static CqrsBrokerEntry *copy_event(const CqrsEvent *event);
static void form_message(CqrsBrokerEntries *entries, CqrsBrokerEntry *entry,
						 const CqrsEvent *event);
static Lane *lane_of(CqrsBrokerEntries *entries, uint64 lane);
static void fail_lane(CqrsBrokerEntries *entries, uint64 lane);
static void forget_failed_lanes(CqrsBrokerEntries *entries);
static void drop_lane(CqrsBrokerEntries *entries, Lane *lane);
static bool one_by_lane(const CqrsBrokerEntries *entries);
static dlist_node *node_after(CqrsBrokerEntries *entries, dlist_node *node);

/*
 * Begin with no entries; those to come live in this context. The caller has
 * zeroed *entries.
 */
void
cqrs_broker_entries_init(CqrsBrokerEntries *entries, MemoryContext context)
{
	entries->context = context;
	dlist_init(&entries->list);
	entries->lanes = cqrs_hash_create("cqrs lanes on their way",
									  sizeof(uint64), sizeof(Lane), context);
}

/*
 * Disconnect; the caller deletes the context. If a message could not be
 * formed, those of the next window are formed carefully.
 */
void
cqrs_broker_entries_close(CqrsBrokerEntries *entries, int window)
{
	dlist_iter	iter;

	if (entries->link != NULL)
		cqrs_link_close(entries->link);
	entries->link = NULL;
	dlist_foreach(iter, &entries->list)
		free(dlist_container(CqrsBrokerEntry, node, iter.cur)->message.error);
	entries->nentries = 0;
	if (forming)
		form_carefully = Max(window, CQRS_BATCH_EVENTS);
	forming = false;
}

/*
 * Begin a batch for the events that are read now.
 */
CqrsBrokerBatch *
cqrs_broker_batch(CqrsBrokerEntries *entries)
{
	MemoryContext context = GenerationContextCreate(entries->context,
													"cqrs broker batch",
													0, 8 * 1024, 1024 * 1024);
	CqrsBrokerBatch *batch = MemoryContextAlloc(context, sizeof(CqrsBrokerBatch));

	batch->context = context;
	batch->nentries = 0;
	return batch;
}

void
cqrs_broker_batch_free(CqrsBrokerBatch *batch)
{
	MemoryContextDelete(batch->context);
}

CqrsBrokerEntry *
cqrs_broker_entry_add(CqrsBrokerEntries *entries, CqrsBrokerBatch *batch,
					  const CqrsEvent *event, bool by_topic)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(batch->context);
	CqrsBrokerEntry *entry = copy_event(event);

	entry->message.link = entries->link;
	entry->state = CQRS_ENTRY_READ;
	entry->batch = batch;
	entry->lane = cqrs_event_lane(event, by_topic);
	entry->topic_id = event->topic->topic_id;
	form_message(entries, entry, event);
	MemoryContextSwitchTo(oldcontext);

	dlist_push_tail(&entries->list, &entry->node);
	if (entries->unsent == NULL)
		entries->unsent = &entry->node;
	batch->nentries++;
	entries->nentries++;
	if (entry->state == CQRS_ENTRY_READ)
		entries->nread++;
	else
	{
		if (!entries->apart)
			fail_lane(entries, entry->lane);
		entries->nout++;
	}
	entries->nbytes += entry->message.message.body_size;
	return entry;
}

/*
 * Make an entry with a copy of the event, in one piece. Of a payload that is
 * stored out of line, only the pointer is copied: the cursor is before the
 * event, so the payload stays where it is.
 */
static CqrsBrokerEntry *
copy_event(const CqrsEvent *event)
{
	Datum		values[] = {event->event_name, event->key.value,
	event->headers.value, event->payload.value};
	bool		nulls[] = {false, event->key.isnull, event->headers.isnull,
	event->payload.isnull};
	Size		sizes[lengthof(values)];
	Size		size = MAXALIGN(sizeof(CqrsBrokerEntry)) + MAXALIGN(UUID_LEN);
	CqrsBrokerEntry *entry;
	char	   *next;
	int			i;

	for (i = 0; i < lengthof(values); i++)
	{
		sizes[i] = nulls[i] ? 0 : VARSIZE_ANY(DatumGetPointer(values[i]));
		size += MAXALIGN(sizes[i]);
	}
	entry = palloc(size);
	memset(entry, 0, offsetof(CqrsBrokerEntry, event));
	next = (char *) entry + MAXALIGN(sizeof(CqrsBrokerEntry));
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
 * Form an event's message. If that is not possible, it raises an error, which
 * ends the exchange; the next messages are then formed in a subtransaction
 * each, and an event whose message fails is refused.
 */
static void
form_message(CqrsBrokerEntries *entries, CqrsBrokerEntry *entry,
			 const CqrsEvent *event)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;

	if (form_carefully == 0)
	{
		forming = true;
		cqrs_message_form(event, entries->format, entries->module,
						  entries->source, entries->max_message_size,
						  &entry->message.message);
		forming = false;
		return;
	}

	--form_carefully;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		cqrs_message_form(event, entries->format, entries->module,
						  entries->source, entries->max_message_size,
						  &entry->message.message);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(oldcontext);

		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = oldowner;
		if (cqrs_target_is_outage(error))
			cqrs_error_rethrow(error);
		entry->state = CQRS_ENTRY_REFUSED;
		entry->fault.sqlerrcode = error->sqlerrcode;
		entry->fault.message = error->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
}

/*
 * Why the broker did not take an event; NULL: it was not sent.
 */
CqrsFault *
cqrs_broker_entry_fault(CqrsBrokerEntry *entry)
{
	CqrsFault  *fault = &entry->fault;
	const char *error = entry->message.error;

	if (entry->state == CQRS_ENTRY_WAITS)
		return NULL;
	if (fault->message == NULL)
	{
		fault->sqlerrcode = ERRCODE_FDW_ERROR;
		fault->message = error == NULL ? "the broker gave no reason" :
			cqrs_broker_error(error);
	}
	fault->final = entry->state == CQRS_ENTRY_REFUSED;
	return fault;
}

/*
 * Forget an entry that has an outcome, which was recorded.
 */
void
cqrs_broker_entry_forget(CqrsBrokerEntries *entries, CqrsBrokerEntry *entry)
{
	Assert(entry->state >= CQRS_ENTRY_CONFIRMED);
	if (entry->state != CQRS_ENTRY_WAITS)
		entries->nout--;
	free(entry->message.error);
	if (entries->unsent == &entry->node)
		entries->unsent = node_after(entries, &entry->node);
	dlist_delete(&entry->node);
	entries->nentries--;
	entries->nbytes -= entry->message.message.body_size;
	if (--entry->batch->nentries == 0)
		cqrs_broker_batch_free(entry->batch);
	if (entries->nentries == 0)
		forget_failed_lanes(entries);
}

/*
 * Forget all entries. None is on its way.
 */
void
cqrs_broker_entries_forget(CqrsBrokerEntries *entries)
{
	dlist_mutable_iter iter;

	Assert(entries->nsent == 0);
	entries->parked = false;
	dlist_foreach_modify(iter, &entries->list)
	{
		CqrsBrokerEntry *entry = dlist_container(CqrsBrokerEntry, node, iter.cur);

		if (entry->state == CQRS_ENTRY_READ)
		{
			entry->state = CQRS_ENTRY_WAITS;
			entries->nread--;
		}
		cqrs_broker_entry_forget(entries, entry);
	}
}

static Lane *
lane_of(CqrsBrokerEntries *entries, uint64 lane)
{
	Lane	   *entry;
	bool		found;

	entry = hash_search(entries->lanes, &lane, HASH_ENTER, &found);
	if (!found)
	{
		entry->nsent = 0;
		entry->failed = false;
	}
	return entry;
}

/*
 * An event of this lane was rejected. That counts until nothing is left of what
 * was read before, even if the event is recorded: later ones of its lane may be
 * among that.
 */
static void
fail_lane(CqrsBrokerEntries *entries, uint64 lane)
{
	lane_of(entries, lane)->failed = true;
	entries->failed = true;
}

/*
 * There are no entries. What is read from now on is known to wait if it has to.
 */
static void
forget_failed_lanes(CqrsBrokerEntries *entries)
{
	HASH_SEQ_STATUS status;
	Lane	   *lane;

	if (!entries->failed)
		return;
	hash_seq_init(&status, entries->lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
		hash_search(entries->lanes, &lane->lane, HASH_REMOVE, NULL);
	entries->failed = false;
}

/*
 * Forget a lane that nothing need be known about.
 */
static void
drop_lane(CqrsBrokerEntries *entries, Lane *lane)
{
	if (lane->nsent == 0 && !lane->failed)
		hash_search(entries->lanes, &lane->lane, HASH_REMOVE, NULL);
}

/*
 * Is an event sent only when no other one of its lane is on its way?
 */
static bool
one_by_lane(const CqrsBrokerEntries *entries)
{
	return entries->strict || entries->parked;
}

static dlist_node *
node_after(CqrsBrokerEntries *entries, dlist_node *node)
{
	return dlist_has_next(&entries->list, node) ?
		dlist_next_node(&entries->list, node) : NULL;
}

/*
 * Does the first entry have an outcome, which can be recorded?
 */
bool
cqrs_broker_first_is_final(CqrsBrokerEntries *entries)
{
	CqrsBrokerEntry *first;

	if (dlist_is_empty(&entries->list))
		return false;
	first = dlist_head_element(CqrsBrokerEntry, node, &entries->list);
	return first->state >= CQRS_ENTRY_CONFIRMED;
}

/*
 * Take what the broker said about events. Returns false if that was nothing.
 */
bool
cqrs_broker_entries_take(CqrsBrokerEntries *entries)
{
	CqrsLinkMessage *message = cqrs_link_take(entries->link);

	if (message == NULL)
		return false;
	while (message != NULL)
	{
		CqrsBrokerEntry *entry = (CqrsBrokerEntry *) message;

		message = message->next;
		entry->state =
			entry->message.outcome == CQRS_BROKER_CONFIRMED ? CQRS_ENTRY_CONFIRMED :
			entry->message.outcome == CQRS_BROKER_REFUSED ? CQRS_ENTRY_REFUSED :
			entry->message.outcome == CQRS_BROKER_AGAIN ? CQRS_ENTRY_AGAIN :
			CQRS_ENTRY_REJECTED;
		entries->nsent--;
		if (entry->state != CQRS_ENTRY_CONFIRMED)
			fail_lane(entries, entry->lane);
		if (one_by_lane(entries))
		{
			Lane	   *lane = lane_of(entries, entry->lane);

			lane->nsent--;
			drop_lane(entries, lane);
		}
	}
	return true;
}

/*
 * Send what may be sent, up to the given number of events that were sent and
 * are not recorded.
 */
void
cqrs_broker_entries_send(CqrsBrokerEntries *entries, int most)
{
	CqrsLinkMessage *first = NULL;
	CqrsLinkMessage *last = NULL;
	dlist_node *node = entries->unsent;

	while (node != NULL && entries->nread > 0 &&
		   entries->nout < most)
	{
		CqrsBrokerEntry *entry = dlist_container(CqrsBrokerEntry, node, node);

		node = node_after(entries, node);
		if (entry->state != CQRS_ENTRY_READ)
			continue;
		if (one_by_lane(entries) || entries->failed)
		{
			Lane	   *lane = lane_of(entries, entry->lane);

			if (lane->failed)
			{
				entry->state = CQRS_ENTRY_WAITS;
				entries->nread--;
				continue;
			}
			if (one_by_lane(entries) && lane->nsent > 0)
				continue;
			lane->nsent += one_by_lane(entries) ? 1 : 0;
			drop_lane(entries, lane);
		}
		entry->state = CQRS_ENTRY_SENT;
		entries->nread--;
		entries->nsent++;
		entries->nout++;
		entry->message.next = NULL;
		if (first == NULL)
			first = &entry->message;
		else
			last->next = &entry->message;
		last = &entry->message;
	}
	for (node = entries->unsent; node != NULL; node = node_after(entries, node))
		if (dlist_container(CqrsBrokerEntry, node, node)->state == CQRS_ENTRY_READ)
			break;
	entries->unsent = node;
	if (first != NULL)
		cqrs_link_send(entries->link, first, last);
}
