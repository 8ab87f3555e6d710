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
 *	  Whose fault a rejection is shows in what follows (see blame.c): whether
 *	  events behind it are confirmed, or rejected as well. If it is no event's
 *	  fault, nothing more is sent; once all that is on its way is recorded, the
 *	  connection is closed, as if it were lost.
 * 3. Later events of the topic and key of a rejected one are not sent any more,
 *	  but parked behind it. Those that had been sent already may have arrived;
 *	  with strict_key_order there are none: an event is sent only when nothing
 *	  of its lane is on its way.
 * 4. Parked events that are due are sent when nothing else is on its way, each
 *	  behind those of its lane that come before it; but not while it is undecided
 *	  whose fault their rejection was.
 * 5. If the connection is lost, what has no outcome is forgotten, and read
 *	  again later. That is no event's fault.
 * 6. A change of the subscription or the server is seen before the next event is
 *	  sent: then what is on its way is waited for and recorded, and no more.
 * 7. What is delivered exactly once is sent in transactions of the broker's, and
 *	  the cursor passes none of it before the broker has committed: see
 *	  broker_transaction.c. What is rejected, or has to wait, is parked ahead of the
 *	  cursor at once.
 * 8. If the cursor is not where we left it, somebody moved it: all is
 *	  forgotten, and the connection closed, since events are on their way that
 *	  must not be counted.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/memutils.h"

#include "base/debug_point.h"
#include "broker/message.h"
#include "broker/server.h"
#include "delivery/broker_entry.h"
#include "delivery/broker_sent.h"
#include "delivery/broker_transaction.h"
#include "delivery/broker_trial.h"
#include "delivery/relay.h"
#include "delivery/target_broker.h"
#include "registry/registry.h"
#include "retry/retry.h"
#include "shared/clock.h"

/* The most bytes, about, of message bodies in all entries. */
#define LONGEST_ENTRIES		(2 * CQRS_BATCH_BYTES)

/* How long a broker may accept nothing, in milliseconds. */
#define LONGEST_TROUBLE		1000

/* The connection of this process, if server is not NULL. */
static struct
{
	MemoryContext context;
	CqrsBrokerServer *server;
	char	   *server_name;
	char	   *subscription_name;
	uint64		generation;		/* of servers, when it was read */
	int			partition;

	/* Read, and not recorded. */
	CqrsReadAhead ahead;
	MemoryContext cursor_context;	/* of the snapshots in ahead */
	CqrsBrokerEntries entries;	/* the events */
	CqrsBrokerTransaction transaction;
	bool		strict;			/* with strict_key_order */

	bool		read_all;		/* nothing more can be read just now */
	bool		hold;			/* send nothing */
	bool		new_first;		/* the last ones were parked */
	bool		moved;			/* somebody else moved the cursor */

	CqrsBrokerTrial trial;		/* of what was rejected */

	TimestampTz waiting_since;	/* for the broker to answer */
	TimestampTz trouble_since;	/* it accepts nothing since then; 0: it does */
	int64		timeout;		/* of the subscription, in milliseconds */
}			broker;

static CqrsBrokerTask transaction_task(bool finish, bool look, bool renew);
static bool may_send(bool finish, bool look, bool renew);
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
static bool has_room(void);
static void exchange_error_callback(void *arg);

/*
 * Read all that it takes to connect, as the current user, the subscription's
 * owner. If the last attempt failed before anything was confirmed, for the reason
 * failed_before (an SQLSTATE, or 0), only one event at a time is sent until the
 * broker confirms one, new ones first: a broker that takes messages without
 * confirming them would get as many as it can hold at each attempt.
 *
 * Returns false if there is nothing to connect for. Raises what
 * cqrs_broker_server() does.
 */
bool
cqrs_target_broker_prepare(CqrsSubscription *subscription, int partition,
						   int failed_before)
{
	MemoryContext context;
	MemoryContext oldcontext;
	uint64		generation = cqrs_broker_server_generation();

	Assert(broker.server == NULL);
	context = AllocSetContextCreate(TopTransactionContext, "cqrs broker",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	memset(&broker, 0, sizeof(broker));
	if (!cqrs_transaction_prepare(&broker.transaction, subscription, partition))
	{
		MemoryContextSwitchTo(oldcontext);
		return false;
	}
	cqrs_transaction_init(&broker.transaction);
	broker.context = context;
	broker.generation = generation;
	broker.partition = partition;
	broker.server_name = pstrdup(subscription->server);
	broker.subscription_name = pstrdup(subscription->name);
	broker.strict = subscription->strict_key_order;
	broker.entries.strict = broker.strict && !subscription->exactly_once;
	broker.entries.apart = subscription->exactly_once;
	broker.timeout = subscription->delivery_timeout;
	broker.trial.unproven = broker.new_first = failed_before != 0;
	broker.trial.failing = failed_before == ERRCODE_FDW_ERROR;
	broker.trial.context = AllocSetContextCreate(context,
												 "cqrs broker evidence",
												 ALLOCSET_SMALL_SIZES);
	if (!cqrs_format_parse(subscription->format, &broker.entries.format))
		elog(ERROR, "unexpected format \"%s\"", subscription->format);
	broker.ahead.cursor.seq = -1;
	cqrs_broker_entries_init(&broker.entries, context);
	broker.server = cqrs_broker_server(subscription->server,
									   subscription->name,
									   subscription->owner);
	if (broker.transaction.used)
		broker.server->connection.transactional_id = broker.transaction.id;
	broker.entries.module = broker.server->module;
	broker.entries.source = broker.server->source;
	broker.entries.max_message_size = broker.server->max_message_size;
	MemoryContextSwitchTo(oldcontext);
	MemoryContextSetParent(context, TopMemoryContext);
	return true;
}

void
cqrs_target_broker_connect(void)
{
	broker.waiting_since = cqrs_steady_now();
	broker.entries.link = cqrs_link_open(broker.server->module,
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
	TimestampTz now = cqrs_steady_now();
	char		trouble[CQRS_BROKER_ERROR_SIZE];
	bool		look;
	bool		renew;
	bool		can_record;
	int			half;
	int			nfinal;

	error[0] = '\0';
	if (broker.entries.link == NULL)
		return CQRS_BROKER_TASK_OPEN;
	if (broker.moved)
		return CQRS_BROKER_TASK_RENEW;
	state = cqrs_link_state(broker.entries.link, trouble);
	if (broker.transaction.used && state == CQRS_LINK_OPEN)
		cqrs_transaction_answers(&broker.transaction, broker.entries.link);
	if (cqrs_broker_entries_take(&broker.entries))
		broker.waiting_since = now;
	if (broker.transaction.used && state == CQRS_LINK_OPEN)
		cqrs_transaction_confirmed(&broker.transaction, &broker.entries);

	/* After what changed either committed, nothing more is to be sent. */
	look = cqrs_registry_is_stale();
	renew = broker.generation != cqrs_broker_server_generation();
	if (state == CQRS_LINK_OPEN && may_send(finish, look, renew))
	{
		if (broker.entries.nsent == 0)
			broker.waiting_since = now;
		cqrs_broker_entries_send(&broker.entries, broker.trial.unproven ? 1 :
								 broker.server->window);
	}
	if (broker.transaction.used && state == CQRS_LINK_OPEN &&
		!broker.transaction.asked)
	{
		cqrs_transaction_advance(&broker.transaction, &broker.entries);
		if (broker.transaction.asked)
			broker.waiting_since = now;
	}
	if (trouble[0] == '\0')
		broker.trouble_since = 0;
	else if (broker.trouble_since == 0)
		broker.trouble_since = now;

	if (state == CQRS_LINK_LOST ||
		(broker.entries.nsent > 0 && broker.trouble_since != 0 &&
		 TimestampDifferenceExceeds(broker.trouble_since, now,
									LONGEST_TROUBLE)))
	{
		char	   *text = cqrs_broker_error(trouble);

		strlcpy(error, text, CQRS_BROKER_ERROR_SIZE);
		pfree(text);
	}
	else if ((broker.entries.nsent > 0 || broker.transaction.asked ||
			  state == CQRS_LINK_CONNECTING) &&
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
	if (broker.transaction.used)
		return transaction_task(finish, look, renew);
	can_record = cqrs_broker_first_is_final(&broker.entries);
	half = broker.server->window / 2;
	nfinal = broker.entries.nentries - broker.entries.nread - broker.entries.nsent;
	if (broker.entries.nsent == 0 && !can_record && (renew || broker.hold))
		return CQRS_BROKER_TASK_RENEW;
	if (look || broker.entries.nsent == 0 ||
		(nfinal > half && can_record) ||
		(!broker.read_all && !renew && has_room()))
		return CQRS_BROKER_TASK_EXCHANGE;
	return CQRS_BROKER_TASK_WAIT;
}

/*
 * What is to be done next with an open link, if events go in transactions.
 */
static CqrsBrokerTask
transaction_task(bool finish, bool look, bool renew)
{
	CqrsBrokerTransaction *transaction = &broker.transaction;
	bool		leave = renew || broker.hold;
	bool		end = leave || finish ||
	cqrs_evidence_is_outage(&broker.trial.evidence) ||
	cqrs_transaction_is_late(transaction);

	switch (transaction->phase)
	{
		case CQRS_TRANSACTION_STOPPED:
			return CQRS_BROKER_TASK_STOP;
		case CQRS_TRANSACTION_CLAIM:
		case CQRS_TRANSACTION_COMMITTED:
		case CQRS_TRANSACTION_ABORTED:
			return CQRS_BROKER_TASK_EXCHANGE;
		case CQRS_TRANSACTION_LOOK:
		case CQRS_TRANSACTION_FENCE:
		case CQRS_TRANSACTION_READ:
			return leave ? CQRS_BROKER_TASK_RENEW :
				look ? CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
		case CQRS_TRANSACTION_OPEN:
			break;
		default:
			return look ? CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
	}
	if (look)
		return CQRS_BROKER_TASK_EXCHANGE;
	if (broker.entries.nsent == 0 && transaction->nevents == 0 && leave)
		return CQRS_BROKER_TASK_RENEW;
	if (broker.entries.nsent == 0 && (end || broker.entries.nentries == 0))
		return CQRS_BROKER_TASK_EXCHANGE;
	return !end && !broker.read_all && has_room() ?
		CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
}

/*
 * May events be sent now? A transaction that is closed gets all that it is to have,
 * or is aborted.
 */
static bool
may_send(bool finish, bool look, bool renew)
{
	CqrsBrokerTransaction *transaction = &broker.transaction;
	bool		leave = look || renew || broker.hold;

	if (!transaction->used)
		return !leave && !finish &&
			!cqrs_evidence_is_outage(&broker.trial.evidence);
	if (broker.entries.failed)
		return false;
	if (transaction->phase == CQRS_TRANSACTION_CLOSED)
	{
		if ((renew || broker.hold) && broker.entries.nread > 0)
			broker.entries.failed = true;
		return !leave;
	}
	return transaction->phase == CQRS_TRANSACTION_OPEN && !leave && !finish &&
		!cqrs_evidence_is_outage(&broker.trial.evidence) &&
		!cqrs_transaction_is_late(transaction);
}

/*
 * Why nothing can be delivered before a person has done something, in the server's
 * encoding.
 */
const char *
cqrs_target_broker_stopped(void)
{
	return broker.transaction.reason;
}

/*
 * Is it known what the broker has? Before, the next event may be one that was sent.
 */
bool
cqrs_target_broker_may_announce(void)
{
	return !broker.transaction.used ||
		broker.transaction.phase == CQRS_TRANSACTION_OPEN;
}

/*
 * How many events were read and are not recorded; more, if there is something to
 * record about their transaction.
 */
int
cqrs_target_broker_pending(void)
{
	return broker.server == NULL ? 0 :
		broker.entries.nentries + broker.transaction.nevents +
		(cqrs_transaction_is_under_way(&broker.transaction) ? 1 : 0);
}

/*
 * The descriptor that is readable when the broker has said something.
 */
int
cqrs_target_broker_fd(void)
{
	return cqrs_link_fd(broker.entries.link);
}

/*
 * How long to wait for the broker, in milliseconds.
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
					   TimestampDifferenceMilliseconds(cqrs_steady_now(),
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
	if (broker.server == NULL)
		return;
	cqrs_broker_entries_close(&broker.entries, broker.server->window);
	broker.server = NULL;
	MemoryContextDelete(broker.context);
}

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
cqrs_target_broker_exchange(CqrsSubscription *subscription, bool read,
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
	if (broker.transaction.used &&
		broker.transaction.phase == CQRS_TRANSACTION_CLAIM)
	{
		CQRS_DEBUG_POINT("broker_before_claim");
	}
	same = cqrs_relay_begin_ahead(&relay, subscription, broker.partition,
								  &broker.ahead);
	if ((!same &&
		 (cqrs_target_broker_pending() > 0 ||
		  (broker.transaction.phase == CQRS_TRANSACTION_OPEN &&
		   cursor->sent.intent.given))) ||
		!cqrs_transaction_is_of(&broker.transaction, cursor) ||
		!cqrs_transaction_may_claim(&broker.transaction, cursor) ||
		cqrs_relay_is_gone(&relay))
	{
		broker.moved = true;
		delivery->more = true;
		cqrs_relay_end(&relay);
		error_context_stack = errcallback.previous;
		return;
	}
	subscription = relay.subscription;
	broker.timeout = subscription->delivery_timeout;
	broker.hold = subscription->state != CQRS_SUBSCRIPTION_ACTIVE;
	read &= !broker.hold;
	if (broker.strict != subscription->strict_key_order ||
		broker.transaction.used != subscription->exactly_once ||
		strcmp(subscription->server, broker.server_name) != 0 ||
		strcmp(subscription->format, cqrs_format_name(broker.entries.format)) != 0)
		broker.generation = 0;
	delivered = cursor->delivered;
	next_retry_at = cursor->next_retry_at;
	moved = broker.transaction.used ?
		exchange_transaction(&relay, read, announced, lost, delivery) :
		exchange_messages(&relay, read, announced, lost, delivery);

	/* Windows with nothing for us need not be recorded each time. */
	moved |= (relay.nothers > 0 && cqrs_target_broker_pending() == 0) ||
		(relay.start_until != 0 && cursor->tick_id != relay.start_tick) ||
		cqrs_relay_arrives(&relay) ||
		cursor->tick_id >= relay.start_tick + CQRS_EMPTY_TICKS;
	CQRS_DEBUG_POINT("relay_before_cursor");
	cqrs_parked_close(cursor);
	if (moved || cursor->next_retry_at != next_retry_at)
		cqrs_cursor_append(cursor);
	broker.transaction.seq = cursor->seq;
	delivery->nevents = (int) (cursor->delivered - delivered);
	delivery->more |= cqrs_target_broker_pending() > 0 || relay.nothers > 0 ||
		(broker.transaction.used &&
		 broker.transaction.phase != CQRS_TRANSACTION_OPEN);
	delivery->retry_at = cursor->next_retry_at;
	if (broker.transaction.used && !broker.hold)
		cqrs_transaction_wants(cursor, &delivery->retry_at);
	delivery->failing = broker.trial.failing;
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
	moved |= (broker.entries.parked ? record_parked(relay, lost) :
			  record_new(relay)) > 0;
	read &= !cqrs_evidence_is_outage(&broker.trial.evidence);

	/* What was read and not sent is read again later. */
	if (broker.entries.nsent == 0 && broker.entries.nentries > 0 && !read)
	{
		cqrs_broker_entries_forget(&broker.entries);
		broker.ahead.position = cursor->position;
		broker.ahead.at_end = false;
	}
	leave_window(relay);

	broker.read_all = !read || has_room();
	if (read && has_room())
		read_on(relay, announced, delivery);
	cqrs_trial_decide(&broker.trial, relay, &broker.entries, read && broker.read_all,
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
	CqrsBrokerTransaction *transaction = &broker.transaction;
	CqrsBrokerEntries *entries = &broker.entries;
	CqrsCursor *cursor = &relay->cursor;
	bool		moved = true;
	int			nevents;

	if (lost != NULL)
		return entries->parked && void_announced(relay, lost);
	switch (transaction->phase)
	{
		case CQRS_TRANSACTION_CLAIM:
			cqrs_transaction_claim(transaction, relay);
			broker.ahead.position = 0;
			broker.ahead.at_end = false;
			broker.trial.failing |= transaction->phase == CQRS_TRANSACTION_STOPPED;
			delivery->more = true;
			return true;
		case CQRS_TRANSACTION_COMMITTED:
			CQRS_DEBUG_POINT("broker_committed");
			if (cqrs_transaction_settle(transaction, cursor))
				cqrs_trial_passed(&broker.trial, relay, 0);
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
	read &= !cqrs_evidence_is_outage(&broker.trial.evidence) &&
		!cqrs_transaction_is_late(transaction);

	/* What was read and not sent is read again later. */
	if (!read && entries->nsent == 0)
	{
		cqrs_broker_entries_forget(entries);
		broker.ahead.position = cursor->position;
		broker.ahead.at_end = false;
		if (transaction->nevents > 0)
		{
			broker.ahead.position = transaction->position;
			cqrs_transaction_close(transaction, entries, relay,
								   transaction->position);
			moved = true;
		}
	}
	if (!cqrs_transaction_is_under_way(transaction))
		leave_window(relay);

	broker.read_all = !read || has_room();
	if (read && has_room())
		read_on(relay, announced, delivery);
	nevents = transaction->nevents + entries->nentries;
	if (transaction->phase == CQRS_TRANSACTION_OPEN && nevents > 0 && read &&
		(entries->parked || broker.ahead.at_end || nevents >= most_events()))
	{
		CqrsBrokerEntry *entry = dlist_is_empty(&entries->list) ? NULL :
		dlist_head_element(CqrsBrokerEntry, node, &entries->list);

		cqrs_transaction_close(transaction, entries, relay, entries->parked ?
							   entry->event.position : broker.ahead.position);
		moved = true;
	}
	if (read && nevents == 0 && cqrs_transaction_refresh(transaction, relay))
		moved = true;
	if (!cqrs_transaction_is_under_way(transaction) && entries->nentries == 0)
		cqrs_trial_decide(&broker.trial, relay, entries, read && broker.read_all,
						  false, delivery);
	if (!cqrs_transaction_is_under_way(transaction) &&
		strcmp(relay->subscription->server, broker.server_name) != 0)
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
	CqrsBrokerEntries *entries = &broker.entries;
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
			cqrs_trial_reject(&broker.trial, relay, entry);
		else if (!cqrs_parked_find(cursor, entry->event.position, &parked))
			;
		else if (refused)
			cqrs_parked_failed(&parked, relay->subscription, cursor,
							   cqrs_broker_entry_fault(entry), entry->announced);
		else
			cqrs_trial_reject_parked(&broker.trial, relay, entry, &parked);
	}
	if (entries->parked && !any)
		(void) void_announced(relay, "the transaction was aborted");
	cqrs_broker_entries_forget(entries);
	broker.ahead.position = cursor->position;
	broker.ahead.at_end = false;
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
												&broker.entries.list);
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
	return broker.trial.unproven ? 1 : broker.transaction.most;
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

	while (cqrs_broker_first_is_final(&broker.entries))
	{
		CqrsBrokerEntry *entry = dlist_head_element(CqrsBrokerEntry, node,
													&broker.entries.list);

		if (entry->state == CQRS_ENTRY_CONFIRMED)
			nconfirmed++;
		else
		{
			if (nconfirmed > 0)
				cqrs_trial_passed(&broker.trial, relay, nconfirmed);
			nconfirmed = 0;
			entry->event.topic = cqrs_registry_topic_by_id(entry->topic_id);

			/* If its topic was dropped, there is nothing to record. */
			if (entry->event.topic == NULL)
				;
			else if (entry->state == CQRS_ENTRY_REJECTED)
				cqrs_trial_reject(&broker.trial, relay, entry);
			else
				cqrs_park(relay->subscription, cursor, &entry->event,
						  cqrs_broker_entry_fault(entry));
		}
		cursor->position = entry->event.position;
		cursor->last_position = Max(cursor->last_position, cursor->position);
		cqrs_broker_entry_forget(&broker.entries, entry);
		n++;
	}
	if (nconfirmed > 0)
		cqrs_trial_passed(&broker.trial, relay, nconfirmed);
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

	dlist_foreach_modify(iter, &broker.entries.list)
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
			cqrs_trial_passed(&broker.trial, relay, 1);
		}
		else if (entry->state == CQRS_ENTRY_REJECTED)
			cqrs_trial_reject_parked(&broker.trial, relay, entry, &parked);
		else
			cqrs_parked_failed(&parked, relay->subscription, cursor,
							   cqrs_broker_entry_fault(entry), entry->announced);
		cqrs_broker_entry_forget(&broker.entries, entry);
		n++;
	}
	broker.entries.parked = broker.entries.nentries > 0;
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

	if (broker.entries.nentries > 0 || cursor->until_tick == 0)
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
 * Read what is to be sent next. However many parked events are due, new ones get
 * their turn.
 */
static void
read_on(CqrsRelay *relay, int64 announced, volatile CqrsDelivery *delivery)
{
	bool		due = false;

	broker.new_first |= broker.trial.evidence.pending != NIL;
	if (announced != 0 || !broker.new_first)
		due = read_parked(relay, announced, delivery);
	if (!due && !broker.entries.parked && announced == 0)
	{
		read_new(relay);
		leave_window(relay);
	}
	if (broker.new_first && announced == 0 && broker.entries.nentries == 0)
		(void) read_parked(relay, 0, delivery);
	broker.new_first = broker.entries.parked;
}

static void
read_new(CqrsRelay *relay)
{
	CqrsBrokerTransaction *transaction = &broker.transaction;
	int			most = Max(broker.server->window / 2, CQRS_BATCH_EVENTS);
	CqrsBrokerBatch *batch = cqrs_broker_batch(&broker.entries);
	CqrsEvent	event;

	relay->nbytes = broker.entries.nbytes;
	relay->may_leave = cqrs_target_broker_pending() == 0;
	if (transaction->used)
		most = Min(most, most_events() - transaction->nevents -
				   broker.entries.nentries);
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
		entry = cqrs_broker_entry_add(&broker.entries, batch, &event,
									  relay->cursor.by_topic);
		if ((transaction->used && park_at_once(relay, &event, entry)) ||
			!relay->blocked || entry->state != CQRS_ENTRY_READ)
			continue;
		entry->state = CQRS_ENTRY_WAITS;
		broker.entries.nread--;
	}
	if (relay->nevents > 0 || relay->nothers > 0)
		broker.ahead.position = relay->last;
	if (relay->window != NULL)
	{
		broker.ahead.at_end = cqrs_window_at_end(relay->window);
		broker.read_all = broker.ahead.at_end;
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
		cqrs_broker_entry_forget(&broker.entries, entry);
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
	if (broker.entries.nentries > 0)
		return true;
	if (announced == 0)
		n = cqrs_trial_choose(&broker.trial, cursor, cqrs_wall_now(), chosen,
							  delivery);
	else if (cqrs_parked_find(cursor, announced, chosen))
		n = 1;
	if (broker.transaction.used)
		n = Min(n, 1);

	batch = cqrs_broker_batch(&broker.entries);
	for (i = 0; i < n && broker.entries.nbytes < LONGEST_ENTRIES; i++)
	{
		CqrsEvent	event;
		int			attempts;

		if (cqrs_parked_read(cursor, chosen[i].position, NULL, &event,
							 &attempts))
		{
			CqrsBrokerEntry *entry;

			entry = cqrs_broker_entry_add(&broker.entries, batch, &event,
										  cursor->by_topic);
			entry->announced = announced != 0;
		}
		else
			cqrs_parked_done(&chosen[i], cursor);
	}
	if (batch->nentries == 0)
		cqrs_broker_batch_free(batch);
	broker.entries.parked = broker.entries.nentries > 0;
	return true;
}

/*
 * Remember where the cursor is, beyond the end of the transaction.
 */
static void
keep_cursor(const CqrsCursor *cursor)
{
	MemoryContext context = AllocSetContextCreate(broker.context,
												  "cqrs broker cursor",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);

	cqrs_cursor_copy(&broker.ahead.cursor, cursor);
	MemoryContextSwitchTo(oldcontext);
	if (broker.cursor_context != NULL)
		MemoryContextDelete(broker.cursor_context);
	broker.cursor_context = context;
}

/*
 * Is it time to read on? While half a window is being sent, the next half is
 * read.
 */
static bool
has_room(void)
{
	return broker.entries.nread <= broker.server->window / 2 &&
		broker.entries.nbytes < LONGEST_ENTRIES;
}

static void
exchange_error_callback(void *arg)
{
	errcontext("delivering to subscription \"%s\"",
			   ((CqrsSubscription *) arg)->name);
}
