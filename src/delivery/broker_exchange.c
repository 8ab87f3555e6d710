/*-------------------------------------------------------------------------
 *
 * broker_exchange.c
 *	  One exchange with a broker: the transaction in which what it has confirmed
 *	  is recorded, and further events are read. target_broker.c has the protocol.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/memutils.h"

#include "base/debug_point.h"
#include "broker/message.h"
#include "delivery/broker_exchange.h"
#include "delivery/broker_sent.h"
#include "registry/registry.h"
#include "retry/retry.h"
#include "shared/clock.h"

/* The most bytes, about, of message bodies in all entries. */
#define LONGEST_ENTRIES		(2 * CQRS_BATCH_BYTES)

static bool exchange_messages(CqrsRelay *relay, bool read, int64 announced,
							  const char *lost,
							  volatile CqrsDelivery *delivery);
static bool exchange_transaction(CqrsRelay *relay, bool read, int64 announced,
								 const char *lost,
								 volatile CqrsDelivery *delivery);
static bool record_refused(CqrsRelay *relay);
static bool void_announced(CqrsRelay *relay, const char *message);
static int	most_events(void);
static int	record_new(CqrsRelay *relay);
static int	record_parked(CqrsRelay *relay, const char *lost);
static void leave_window(CqrsRelay *relay);
static void read_on(CqrsRelay *relay, int64 announced,
					volatile CqrsDelivery *delivery);
static void read_new(CqrsRelay *relay);
static bool park_at_once(CqrsRelay *relay, CqrsEvent *event,
						 CqrsBrokerEntry *entry);
static bool read_parked(CqrsRelay *relay, int64 announced,
						volatile CqrsDelivery *delivery);
static void keep_cursor(const CqrsCursor *cursor);
static void exchange_error_callback(void *arg);

/*
 * One exchange. The current user is the subscription's owner.
 *	read		read further events; if not, and nothing is on its way, forget
 *				those that were not sent
 *	announced	not 0: only this parked event, whose attempt was counted
 *	lost		why the connection is lost, or NULL
 * Sets in *delivery: nevents, how many confirmed events were recorded; more,
 * whether there may be more to do; announce and retry_at, as a delivery to a
 * handler does.
 */
void
cqrs_broker_exchange(CqrsSubscription *subscription, bool read,
					 int64 announced, const char *lost,
					 volatile CqrsDelivery *delivery)
{
	ErrorContextCallback errcallback;
	CqrsRelay	relay;
	CqrsCursor *cursor = &relay.cursor;
	int64		delivered;
	TimestampTz next_retry_at;
	bool		same;
	bool		moved;

	errcallback.callback = exchange_error_callback;
	errcallback.arg = subscription;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	/*
	 * The cursor was moved by somebody else, or is gone: what is on its way
	 * counts for nothing.
	 */
	if (cqrs_broker.transaction.used &&
		cqrs_broker.transaction.phase == CQRS_TRANSACTION_CLAIM)
	{
		CQRS_DEBUG_POINT("broker_before_claim");
	}
	same = cqrs_relay_begin_ahead(&relay, subscription, cqrs_broker.partition,
								  &cqrs_broker.ahead);
	if ((!same &&
		 (cqrs_broker_pending() > 0 ||
		  (cqrs_broker.transaction.phase == CQRS_TRANSACTION_OPEN &&
		   cursor->sent.intent.given))) ||
		!cqrs_transaction_is_of(&cqrs_broker.transaction, cursor) ||
		!cqrs_transaction_may_claim(&cqrs_broker.transaction, cursor) ||
		cqrs_relay_is_gone(&relay))
	{
		cqrs_broker.moved = true;
		delivery->more = true;
		cqrs_relay_end(&relay);
		error_context_stack = errcallback.previous;
		return;
	}
	subscription = relay.subscription;
	cqrs_broker.timeout = subscription->delivery_timeout;
	cqrs_broker.hold = subscription->state != CQRS_SUBSCRIPTION_ACTIVE;
	read &= !cqrs_broker.hold;
	if (cqrs_broker.strict != subscription->strict_key_order ||
		cqrs_broker.transaction.used != subscription->exactly_once ||
		strcmp(subscription->server, cqrs_broker.server_name) != 0 ||
		strcmp(subscription->format, cqrs_format_name(cqrs_broker.entries.format)) != 0)
		cqrs_broker.generation = 0;
	delivered = cursor->delivered;
	next_retry_at = cursor->next_retry_at;
	moved = cqrs_broker.transaction.used ?
		exchange_transaction(&relay, read, announced, lost, delivery) :
		exchange_messages(&relay, read, announced, lost, delivery);

	/* Windows with nothing for us need not be recorded each time. */
	moved |= (relay.nothers > 0 && cqrs_broker_pending() == 0) ||
		(relay.start_until != 0 && cursor->tick_id != relay.start_tick) ||
		cqrs_relay_arrives(&relay) ||
		cursor->tick_id >= relay.start_tick + CQRS_EMPTY_TICKS;
	CQRS_DEBUG_POINT("relay_before_cursor");
	cqrs_parked_close(cursor);
	if (moved || cursor->next_retry_at != next_retry_at)
		cqrs_cursor_append(cursor);
	cqrs_broker.transaction.seq = cursor->seq;
	delivery->nevents = (int) (cursor->delivered - delivered);
	delivery->more |= cqrs_broker_pending() > 0 || relay.nothers > 0 ||
		(cqrs_broker.transaction.used &&
		 cqrs_broker.transaction.phase != CQRS_TRANSACTION_OPEN);
	delivery->retry_at = cursor->next_retry_at;
	if (cqrs_broker.transaction.used && !cqrs_broker.hold)
		cqrs_transaction_wants(cursor, &delivery->retry_at);
	delivery->failing = cqrs_broker.trial.failing;
	cqrs_relay_end(&relay);
	keep_cursor(cursor);
	error_context_stack = errcallback.previous;
}

/*
 * Record what is confirmed, and read on. Returns whether the cursor has to be
 * appended.
 */
static bool
exchange_messages(CqrsRelay *relay, bool read, int64 announced,
				  const char *lost, volatile CqrsDelivery *delivery)
{
	CqrsCursor *cursor = &relay->cursor;
	bool		moved = false;

	/* Exactly once, it would be another producer; that may be drawn already. */
	if (!relay->subscription->exactly_once)
	{
		moved = cursor->sent.producer.given;
		memset(&cursor->sent, 0, sizeof(cursor->sent));
	}
	moved |= (cqrs_broker.entries.parked ? record_parked(relay, lost) :
			  record_new(relay)) > 0;
	read &= !cqrs_evidence_is_outage(&cqrs_broker.trial.evidence);

	/* What was read and not sent is read again later. */
	if (cqrs_broker.entries.nsent == 0 && cqrs_broker.entries.nentries > 0 && !read)
	{
		cqrs_broker_entries_forget(&cqrs_broker.entries);
		cqrs_broker.ahead.position = cursor->position;
		cqrs_broker.ahead.at_end = false;
	}
	leave_window(relay);

	cqrs_broker.read_all = !read || cqrs_broker_has_room();
	if (read && cqrs_broker_has_room())
		read_on(relay, announced, delivery);
	cqrs_trial_decide(&cqrs_broker.trial, relay, &cqrs_broker.entries, read && cqrs_broker.read_all,
					  lost != NULL, delivery);
	return moved;
}

/*
 * The same, with events that go in transactions.
 */
static bool
exchange_transaction(CqrsRelay *relay, bool read, int64 announced,
					 const char *lost, volatile CqrsDelivery *delivery)
{
	CqrsBrokerTransaction *transaction = &cqrs_broker.transaction;
	CqrsBrokerEntries *entries = &cqrs_broker.entries;
	CqrsCursor *cursor = &relay->cursor;
	bool		moved = true;
	int			nevents;

	if (lost != NULL)
		return entries->parked && void_announced(relay, lost);
	switch (transaction->phase)
	{
		case CQRS_TRANSACTION_CLAIM:
			cqrs_transaction_claim(transaction, relay);
			cqrs_broker.ahead.position = 0;
			cqrs_broker.ahead.at_end = false;
			cqrs_broker.trial.failing |= transaction->phase == CQRS_TRANSACTION_STOPPED;
			delivery->more = true;
			return true;
		case CQRS_TRANSACTION_COMMITTED:
			CQRS_DEBUG_POINT("broker_committed");
			if (cqrs_transaction_settle(transaction, cursor))
				cqrs_trial_passed(&cqrs_broker.trial, relay, 0);
			if (entries->nentries > 0)
				cqrs_broker_entries_forget(entries);
			break;
		case CQRS_TRANSACTION_ABORTED:
			cqrs_transaction_forget(transaction, cursor, record_refused(relay));
			if (transaction->phase == CQRS_TRANSACTION_STOPPED)
				return true;
			break;
		case CQRS_TRANSACTION_OPEN:
			moved = false;
			break;
		default:
			return false;
	}
	read &= !cqrs_evidence_is_outage(&cqrs_broker.trial.evidence) &&
		!cqrs_transaction_is_late(transaction);

	/* What was read and not sent is read again later. */
	if (!read && entries->nsent == 0)
	{
		cqrs_broker_entries_forget(entries);
		cqrs_broker.ahead.position = cursor->position;
		cqrs_broker.ahead.at_end = false;
		if (transaction->nevents > 0)
		{
			cqrs_broker.ahead.position = transaction->position;
			cqrs_transaction_close(transaction, entries, relay,
								   transaction->position);
			moved = true;
		}
	}
	if (!cqrs_transaction_is_under_way(transaction))
		leave_window(relay);

	cqrs_broker.read_all = !read || cqrs_broker_has_room();
	if (read && cqrs_broker_has_room())
		read_on(relay, announced, delivery);
	nevents = transaction->nevents + entries->nentries;
	if (transaction->phase == CQRS_TRANSACTION_OPEN && nevents > 0 && read &&
		(entries->parked || cqrs_broker.ahead.at_end || nevents >= most_events()))
	{
		CqrsBrokerEntry *entry = dlist_is_empty(&entries->list) ? NULL :
		dlist_head_element(CqrsBrokerEntry, node, &entries->list);

		cqrs_transaction_close(transaction, entries, relay, entries->parked ?
							   entry->event.position : cqrs_broker.ahead.position);
		moved = true;
	}
	if (read && nevents == 0 && cqrs_transaction_refresh(transaction, relay))
		moved = true;
	if (!cqrs_transaction_is_under_way(transaction) && entries->nentries == 0)
		cqrs_trial_decide(&cqrs_broker.trial, relay, entries, read && cqrs_broker.read_all,
						  false, delivery);
	if (!cqrs_transaction_is_under_way(transaction) &&
		strcmp(relay->subscription->server, cqrs_broker.server_name) != 0)
		moved |= cqrs_sent_elsewhere(&cursor->sent);
	return moved || relay->has_parked;
}

/*
 * A transaction was aborted: park the events that are at fault, as what is rejected
 * and not parked is; forget all others, which are read again. Returns whether any
 * is at fault.
 */
static bool
record_refused(CqrsRelay *relay)
{
	CqrsBrokerEntries *entries = &cqrs_broker.entries;
	CqrsCursor *cursor = &relay->cursor;
	bool		any = false;
	dlist_iter	iter;

	dlist_foreach(iter, &entries->list)
	{
		CqrsBrokerEntry *entry = dlist_container(CqrsBrokerEntry, node, iter.cur);
		bool		refused = entry->state == CQRS_ENTRY_REFUSED;
		CqrsParked	parked;

		if (!refused && entry->state != CQRS_ENTRY_REJECTED)
			continue;
		any = true;
		entry->event.topic = cqrs_registry_topic_by_id(entry->topic_id);
		if (entry->event.topic == NULL)
			;
		else if (!entries->parked && refused)
			cqrs_park(relay->subscription, cursor, &entry->event,
					  cqrs_broker_entry_fault(entry));
		else if (!entries->parked)
			cqrs_trial_reject(&cqrs_broker.trial, relay, entry);
		else if (!cqrs_parked_find(cursor, entry->event.position, &parked))
			;
		else if (refused)
			cqrs_parked_failed(&parked, relay->subscription, cursor,
							   cqrs_broker_entry_fault(entry), entry->announced);
		else
			cqrs_trial_reject_parked(&cqrs_broker.trial, relay, entry, &parked);
	}
	if (entries->parked && !any)
		(void) void_announced(relay, "the transaction was aborted");
	cqrs_broker_entries_forget(entries);
	cqrs_broker.ahead.position = cursor->position;
	cqrs_broker.ahead.at_end = false;
	return any;
}

/*
 * A parked event was not sent, through no fault of its own. If its attempt was
 * counted, uncount it, and return true.
 */
static bool
void_announced(CqrsRelay *relay, const char *message)
{
	CqrsBrokerEntry *entry = dlist_head_element(CqrsBrokerEntry, node,
												&cqrs_broker.entries.list);
	CqrsFault	fault = {ERRCODE_CONNECTION_FAILURE, message};
	CqrsParked	parked;

	if (!entry->announced ||
		!cqrs_parked_find(&relay->cursor, entry->event.position, &parked))
		return false;
	fault.retry_at = cqrs_wall_now();
	cqrs_parked_void_attempt(&parked, &relay->cursor, &fault);
	return true;
}

/*
 * The most events that a transaction may have just now.
 */
static int
most_events(void)
{
	return cqrs_broker.trial.unproven ? 1 : cqrs_broker.transaction.most;
}

/*
 * Record the outcomes of new events, up to the first that has none. Returns how
 * many.
 */
static int
record_new(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;
	int			nconfirmed = 0;
	int			n = 0;

	while (cqrs_broker_first_is_final(&cqrs_broker.entries))
	{
		CqrsBrokerEntry *entry = dlist_head_element(CqrsBrokerEntry, node,
													&cqrs_broker.entries.list);

		if (entry->state == CQRS_ENTRY_CONFIRMED)
			nconfirmed++;
		else
		{
			if (nconfirmed > 0)
				cqrs_trial_passed(&cqrs_broker.trial, relay, nconfirmed);
			nconfirmed = 0;
			entry->event.topic = cqrs_registry_topic_by_id(entry->topic_id);

			/* If its topic was dropped, there is nothing to record. */
			if (entry->event.topic == NULL)
				;
			else if (entry->state == CQRS_ENTRY_REJECTED)
				cqrs_trial_reject(&cqrs_broker.trial, relay, entry);
			else
				cqrs_park(relay->subscription, cursor, &entry->event,
						  cqrs_broker_entry_fault(entry));
		}
		cursor->position = entry->event.position;
		cursor->last_position = Max(cursor->last_position, cursor->position);
		cqrs_broker_entry_forget(&cqrs_broker.entries, entry);
		n++;
	}
	if (nconfirmed > 0)
		cqrs_trial_passed(&cqrs_broker.trial, relay, nconfirmed);
	return n;
}

/*
 * Record the outcomes of parked events, whether or not those of other lanes
 * have one. Returns how many. If the connection is lost, that is to blame for
 * an announced event without an outcome.
 */
static int
record_parked(CqrsRelay *relay, const char *lost)
{
	CqrsCursor *cursor = &relay->cursor;
	dlist_mutable_iter iter;
	int			n = 0;

	dlist_foreach_modify(iter, &cqrs_broker.entries.list)
	{
		CqrsBrokerEntry *entry = dlist_container(CqrsBrokerEntry, node, iter.cur);
		CqrsParked	parked;
		bool		found;

		found = cqrs_parked_find(cursor, entry->event.position, &parked);
		if (entry->state < CQRS_ENTRY_CONFIRMED)
		{
			CqrsFault	fault = {ERRCODE_CONNECTION_FAILURE, lost};

			fault.retry_at = cqrs_wall_now();
			if (lost != NULL && entry->announced && found)
				cqrs_parked_void_attempt(&parked, cursor, &fault);
			continue;
		}
		if (!found || entry->state == CQRS_ENTRY_WAITS)
			;
		else if (entry->state == CQRS_ENTRY_CONFIRMED)
		{
			cqrs_parked_done(&parked, cursor);
			cqrs_trial_passed(&cqrs_broker.trial, relay, 1);
		}
		else if (entry->state == CQRS_ENTRY_REJECTED)
			cqrs_trial_reject_parked(&cqrs_broker.trial, relay, entry, &parked);
		else
			cqrs_parked_failed(&parked, relay->subscription, cursor,
							   cqrs_broker_entry_fault(entry), entry->announced);
		cqrs_broker_entry_forget(&cqrs_broker.entries, entry);
		n++;
	}
	cqrs_broker.entries.parked = cqrs_broker.entries.nentries > 0;
	return n;
}

/*
 * If all that was read is recorded, move the cursor up to where we read; if
 * that was all of the window, past the window.
 */
static void
leave_window(CqrsRelay *relay)
{
	CqrsCursor *cursor = &relay->cursor;

	if (cqrs_broker.entries.nentries > 0 || cursor->until_tick == 0)
		return;
	cursor->position = Max(cursor->position, cqrs_broker.ahead.position);
	if (cqrs_broker.ahead.at_end)
	{
		cqrs_relay_close_window(cursor);
		cqrs_broker.ahead.position = 0;
		cqrs_broker.ahead.at_end = false;
	}
}

/*
 * Read what is to be sent next. However many parked events are due, new ones get
 * their turn.
 */
static void
read_on(CqrsRelay *relay, int64 announced, volatile CqrsDelivery *delivery)
{
	bool		due = false;

	cqrs_broker.new_first |= cqrs_broker.trial.evidence.pending != NIL;
	if (announced != 0 || !cqrs_broker.new_first)
		due = read_parked(relay, announced, delivery);
	if (!due && !cqrs_broker.entries.parked && announced == 0)
	{
		read_new(relay);
		leave_window(relay);
	}
	if (cqrs_broker.new_first && announced == 0 && cqrs_broker.entries.nentries == 0)
		(void) read_parked(relay, 0, delivery);
	cqrs_broker.new_first = cqrs_broker.entries.parked;
}

static void
read_new(CqrsRelay *relay)
{
	CqrsBrokerTransaction *transaction = &cqrs_broker.transaction;
	int			most = Max(cqrs_broker.server->window / 2, CQRS_BATCH_EVENTS);
	CqrsBrokerBatch *batch = cqrs_broker_batch(&cqrs_broker.entries);
	CqrsEvent	event;

	relay->nbytes = cqrs_broker.entries.nbytes;
	relay->may_leave = cqrs_broker_pending() == 0;
	if (transaction->used)
		most = Min(most, most_events() - transaction->nevents -
				   cqrs_broker.entries.nentries);
	cqrs_relay_read_ahead(relay);

	/* It is to stay, even if nothing is left of it meanwhile. */
	batch->nentries++;
	while (cqrs_relay_next(relay, most, &event))
	{
		CqrsBrokerEntry *entry;

		if (transaction->used && relay->blocked)
		{
			(void) park_at_once(relay, &event, NULL);
			continue;
		}
		entry = cqrs_broker_entry_add(&cqrs_broker.entries, batch, &event,
									  relay->cursor.by_topic);
		if ((transaction->used && park_at_once(relay, &event, entry)) ||
			!relay->blocked || entry->state != CQRS_ENTRY_READ)
			continue;
		entry->state = CQRS_ENTRY_WAITS;
		cqrs_broker.entries.nread--;
	}
	if (relay->nevents > 0 || relay->nothers > 0)
		cqrs_broker.ahead.position = relay->last;
	if (relay->window != NULL)
	{
		cqrs_broker.ahead.at_end = cqrs_window_at_end(relay->window);
		cqrs_broker.read_all = cqrs_broker.ahead.at_end;
	}
	if (--batch->nentries == 0)
		cqrs_broker_batch_free(batch);
}

/*
 * Park an event ahead of the cursor, if it has to wait (then entry is NULL) or its
 * message cannot be formed. Otherwise, returns false.
 */
static bool
park_at_once(CqrsRelay *relay, CqrsEvent *event, CqrsBrokerEntry *entry)
{
	if (entry != NULL && entry->state != CQRS_ENTRY_REFUSED)
		return false;
	cqrs_park(relay->subscription, &relay->cursor, event,
			  entry != NULL ? cqrs_broker_entry_fault(entry) : NULL);
	if (entry != NULL)
		cqrs_broker_entry_forget(&cqrs_broker.entries, entry);
	else
		cqrs_lane_add(&relay->lanes,
					  cqrs_event_lane(event, relay->cursor.by_topic),
					  event->position);
	relay->has_parked = true;
	return true;
}

/*
 * Read parked events that are due, if nothing else is on its way. Returns true
 * if there are such.
 */
static bool
read_parked(CqrsRelay *relay, int64 announced,
			volatile CqrsDelivery *delivery)
{
	CqrsCursor *cursor = &relay->cursor;
	CqrsParked *chosen;
	CqrsBrokerBatch *batch;
	int			n = 0;
	int			i;

	chosen = palloc(sizeof(CqrsParked) * CQRS_BATCH_EVENTS);
	if (announced == 0 && !cqrs_parked_due(cursor, cqrs_wall_now(), chosen))
		return false;
	if (cqrs_broker.entries.nentries > 0)
		return true;
	if (announced == 0)
		n = cqrs_trial_choose(&cqrs_broker.trial, cursor, cqrs_wall_now(), chosen,
							  delivery);
	else if (cqrs_parked_find(cursor, announced, chosen))
		n = 1;
	if (cqrs_broker.transaction.used)
		n = Min(n, 1);

	batch = cqrs_broker_batch(&cqrs_broker.entries);
	for (i = 0; i < n && cqrs_broker.entries.nbytes < LONGEST_ENTRIES; i++)
	{
		CqrsEvent	event;
		int			attempts;

		if (cqrs_parked_read(cursor, chosen[i].position, NULL, &event,
							 &attempts))
		{
			CqrsBrokerEntry *entry;

			entry = cqrs_broker_entry_add(&cqrs_broker.entries, batch, &event,
										  cursor->by_topic);
			entry->announced = announced != 0;
		}
		else
			cqrs_parked_done(&chosen[i], cursor);
	}
	if (batch->nentries == 0)
		cqrs_broker_batch_free(batch);
	cqrs_broker.entries.parked = cqrs_broker.entries.nentries > 0;
	return true;
}

/*
 * Remember where the cursor is, beyond the end of the transaction.
 */
static void
keep_cursor(const CqrsCursor *cursor)
{
	MemoryContext context = AllocSetContextCreate(cqrs_broker.context,
												  "cqrs broker cursor",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);

	cqrs_cursor_copy(&cqrs_broker.ahead.cursor, cursor);
	MemoryContextSwitchTo(oldcontext);
	if (cqrs_broker.cursor_context != NULL)
		MemoryContextDelete(cqrs_broker.cursor_context);
	cqrs_broker.cursor_context = context;
}

/*
 * How many events were read and are not recorded; more, if there is something to
 * record about their transaction.
 */
int
cqrs_broker_pending(void)
{
	return cqrs_broker.server == NULL ? 0 :
		cqrs_broker.entries.nentries + cqrs_broker.transaction.nevents +
		(cqrs_transaction_is_under_way(&cqrs_broker.transaction) ? 1 : 0);
}

/*
 * Is it time to read on? While half a window is being sent, the next half is
 * read.
 */
bool
cqrs_broker_has_room(void)
{
	return cqrs_broker.entries.nread <= cqrs_broker.server->window / 2 &&
		cqrs_broker.entries.nbytes < LONGEST_ENTRIES;
}

static void
exchange_error_callback(void *arg)
{
	errcontext("delivering to subscription \"%s\"",
			   ((CqrsSubscription *) arg)->name);
}
