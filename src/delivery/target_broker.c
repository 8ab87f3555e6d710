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

#include "broker/message.h"
#include "broker/server.h"
#include "delivery/broker_exchange.h"
#include "delivery/target_broker.h"
#include "registry/registry.h"
#include "shared/clock.h"

/* How long a broker may accept nothing, in milliseconds. */
#define LONGEST_TROUBLE		1000

CqrsBrokerSession cqrs_broker;

static CqrsBrokerTask transaction_task(bool finish, bool look, bool renew);
static bool may_send(bool finish, bool look, bool renew);

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

	Assert(cqrs_broker.server == NULL);
	context = AllocSetContextCreate(TopTransactionContext, "cqrs broker",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	memset(&cqrs_broker, 0, sizeof(cqrs_broker));
	if (!cqrs_transaction_prepare(&cqrs_broker.transaction, subscription, partition))
	{
		MemoryContextSwitchTo(oldcontext);
		return false;
	}
	cqrs_transaction_init(&cqrs_broker.transaction);
	cqrs_broker.context = context;
	cqrs_broker.generation = generation;
	cqrs_broker.partition = partition;
	cqrs_broker.server_name = pstrdup(subscription->server);
	cqrs_broker.subscription_name = pstrdup(subscription->name);
	cqrs_broker.strict = subscription->strict_key_order;
	cqrs_broker.entries.strict = cqrs_broker.strict && !subscription->exactly_once;
	cqrs_broker.entries.apart = subscription->exactly_once;
	cqrs_broker.timeout = subscription->delivery_timeout;
	cqrs_broker.trial.unproven = cqrs_broker.new_first = failed_before != 0;
	cqrs_broker.trial.failing = failed_before == ERRCODE_FDW_ERROR;
	cqrs_broker.trial.context = AllocSetContextCreate(context,
													  "cqrs broker evidence",
													  ALLOCSET_SMALL_SIZES);
	if (!cqrs_format_parse(subscription->format, &cqrs_broker.entries.format))
		elog(ERROR, "unexpected format \"%s\"", subscription->format);
	cqrs_broker.ahead.cursor.seq = -1;
	cqrs_broker_entries_init(&cqrs_broker.entries, context);
	cqrs_broker.server = cqrs_broker_server(subscription->server,
											subscription->name,
											subscription->owner);
	if (cqrs_broker.transaction.used)
		cqrs_broker.server->connection.transactional_id = cqrs_broker.transaction.id;
	cqrs_broker.entries.module = cqrs_broker.server->module;
	cqrs_broker.entries.source = cqrs_broker.server->source;
	cqrs_broker.entries.max_message_size = cqrs_broker.server->max_message_size;
	MemoryContextSwitchTo(oldcontext);
	MemoryContextSetParent(context, TopMemoryContext);
	return true;
}

void
cqrs_target_broker_connect(void)
{
	cqrs_broker.waiting_since = cqrs_steady_now();
	cqrs_broker.entries.link = cqrs_link_open(cqrs_broker.server->module,
											  &cqrs_broker.server->connection);
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
	if (cqrs_broker.entries.link == NULL)
		return CQRS_BROKER_TASK_OPEN;
	if (cqrs_broker.moved)
		return CQRS_BROKER_TASK_RENEW;
	state = cqrs_link_state(cqrs_broker.entries.link, trouble);
	if (cqrs_broker.transaction.used && state == CQRS_LINK_OPEN)
		cqrs_transaction_answers(&cqrs_broker.transaction, cqrs_broker.entries.link);
	if (cqrs_broker_entries_take(&cqrs_broker.entries))
		cqrs_broker.waiting_since = now;
	if (cqrs_broker.transaction.used && state == CQRS_LINK_OPEN)
		cqrs_transaction_confirmed(&cqrs_broker.transaction, &cqrs_broker.entries);

	/* After what changed either committed, nothing more is to be sent. */
	look = cqrs_registry_is_stale();
	renew = cqrs_broker.generation != cqrs_broker_server_generation();
	if (state == CQRS_LINK_OPEN && may_send(finish, look, renew))
	{
		if (cqrs_broker.entries.nsent == 0)
			cqrs_broker.waiting_since = now;
		cqrs_broker_entries_send(&cqrs_broker.entries, cqrs_broker.trial.unproven ? 1 :
								 cqrs_broker.server->window);
	}
	if (cqrs_broker.transaction.used && state == CQRS_LINK_OPEN &&
		!cqrs_broker.transaction.asked)
	{
		cqrs_transaction_advance(&cqrs_broker.transaction, &cqrs_broker.entries);
		if (cqrs_broker.transaction.asked)
			cqrs_broker.waiting_since = now;
	}
	if (trouble[0] == '\0')
		cqrs_broker.trouble_since = 0;
	else if (cqrs_broker.trouble_since == 0)
		cqrs_broker.trouble_since = now;

	if (state == CQRS_LINK_LOST ||
		(cqrs_broker.entries.nsent > 0 && cqrs_broker.trouble_since != 0 &&
		 TimestampDifferenceExceeds(cqrs_broker.trouble_since, now,
									LONGEST_TROUBLE)))
	{
		char	   *text = cqrs_broker_error(trouble);

		strlcpy(error, text, CQRS_BROKER_ERROR_SIZE);
		pfree(text);
	}
	else if ((cqrs_broker.entries.nsent > 0 || cqrs_broker.transaction.asked ||
			  state == CQRS_LINK_CONNECTING) &&
			 cqrs_broker.timeout > 0 &&
			 TimestampDifferenceExceeds(cqrs_broker.waiting_since, now,
										(int) Min(cqrs_broker.timeout, INT_MAX)))
		snprintf(error, CQRS_BROKER_ERROR_SIZE,
				 state == CQRS_LINK_CONNECTING ?
				 "%s of server \"%s\" cannot be connected to within " INT64_FORMAT " ms" :
				 "%s of server \"%s\" has confirmed nothing for " INT64_FORMAT " ms",
				 cqrs_broker.server->module->name, cqrs_broker.server_name,
				 cqrs_broker.timeout);
	if (error[0] != '\0')
	{
		ereport(LOG,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not deliver to server \"%s\" of subscription \"%s\"",
						cqrs_broker.server_name, cqrs_broker.subscription_name),
				 errdetail_internal("%s", error)));
		return CQRS_BROKER_TASK_FAIL;
	}

	if (state == CQRS_LINK_CONNECTING)
		return renew || cqrs_broker.hold ? CQRS_BROKER_TASK_RENEW :
			look ? CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
	if (cqrs_broker.transaction.used)
		return transaction_task(finish, look, renew);
	can_record = cqrs_broker_first_is_final(&cqrs_broker.entries);
	half = cqrs_broker.server->window / 2;
	nfinal = cqrs_broker.entries.nentries - cqrs_broker.entries.nread - cqrs_broker.entries.nsent;
	if (cqrs_broker.entries.nsent == 0 && !can_record && (renew || cqrs_broker.hold))
		return CQRS_BROKER_TASK_RENEW;
	if (look || cqrs_broker.entries.nsent == 0 ||
		(nfinal > half && can_record) ||
		(!cqrs_broker.read_all && !renew && cqrs_broker_has_room()))
		return CQRS_BROKER_TASK_EXCHANGE;
	return CQRS_BROKER_TASK_WAIT;
}

/*
 * What is to be done next with an open link, if events go in transactions.
 */
static CqrsBrokerTask
transaction_task(bool finish, bool look, bool renew)
{
	CqrsBrokerTransaction *transaction = &cqrs_broker.transaction;
	bool		leave = renew || cqrs_broker.hold;
	bool		end = leave || finish ||
	cqrs_evidence_is_outage(&cqrs_broker.trial.evidence) ||
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
	if (cqrs_broker.entries.nsent == 0 && transaction->nevents == 0 && leave)
		return CQRS_BROKER_TASK_RENEW;
	if (cqrs_broker.entries.nsent == 0 && (end || cqrs_broker.entries.nentries == 0))
		return CQRS_BROKER_TASK_EXCHANGE;
	return !end && !cqrs_broker.read_all && cqrs_broker_has_room() ?
		CQRS_BROKER_TASK_EXCHANGE : CQRS_BROKER_TASK_WAIT;
}

/*
 * May events be sent now? A transaction that is closed gets all that it is to have,
 * or is aborted.
 */
static bool
may_send(bool finish, bool look, bool renew)
{
	CqrsBrokerTransaction *transaction = &cqrs_broker.transaction;
	bool		leave = look || renew || cqrs_broker.hold;

	if (!transaction->used)
		return !leave && !finish &&
			!cqrs_evidence_is_outage(&cqrs_broker.trial.evidence);
	if (cqrs_broker.entries.failed)
		return false;
	if (transaction->phase == CQRS_TRANSACTION_CLOSED)
	{
		if ((renew || cqrs_broker.hold) && cqrs_broker.entries.nread > 0)
			cqrs_broker.entries.failed = true;
		return !leave;
	}
	return transaction->phase == CQRS_TRANSACTION_OPEN && !leave && !finish &&
		!cqrs_evidence_is_outage(&cqrs_broker.trial.evidence) &&
		!cqrs_transaction_is_late(transaction);
}

/*
 * Why nothing can be delivered before a person has done something, in the server's
 * encoding.
 */
const char *
cqrs_target_broker_stopped(void)
{
	return cqrs_broker.transaction.reason;
}

/*
 * Is it known what the broker has? Before, the next event may be one that was sent.
 */
bool
cqrs_target_broker_may_announce(void)
{
	return !cqrs_broker.transaction.used ||
		cqrs_broker.transaction.phase == CQRS_TRANSACTION_OPEN;
}

/*
 * The descriptor that is readable when the broker has said something.
 */
int
cqrs_target_broker_fd(void)
{
	return cqrs_link_fd(cqrs_broker.entries.link);
}

/*
 * How long to wait for the broker, in milliseconds.
 */
long
cqrs_target_broker_patience(void)
{
	long		patience = LONGEST_TROUBLE;

	if (cqrs_broker.timeout > 0)
	{
		TimestampTz until = TimestampTzPlusMilliseconds(cqrs_broker.waiting_since,
														cqrs_broker.timeout);

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
	if (cqrs_broker.server == NULL)
		return;
	cqrs_broker_entries_close(&cqrs_broker.entries, cqrs_broker.server->window);
	cqrs_broker.server = NULL;
	MemoryContextDelete(cqrs_broker.context);
}
