/*-------------------------------------------------------------------------
 *
 * pull.c
 *	  Subscriptions without a handler: cqrs_receive(), cqrs_ack() and
 *	  cqrs_nack().
 *
 * What was handed out but not acknowledged is in the cursor, or, of parked
 * events, in cqrs.retry; not in the session: another connection, from behind
 * a pooler, can acknowledge it.
 *
 * A batch has either parked events that are due, or new ones. A position that
 * is acknowledged is looked for among the parked events handed out first: the
 * cursor has passed those, so it cannot mean both.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "events.h"
#include "relay.h"
#include "subscription.h"

/* What this transaction received last, for who does not name a partition. */
static int32 received_subscription_id = 0;
static int32 received_partition;
static LocalTransactionId received_lxid = InvalidLocalTransactionId;

static CqrsSubscription *pull_subscription(const char *name);
static bool receive(CqrsSubscription *subscription, int partition, bool wait,
					int batch_size, Tuplestorestate *store, TupleDesc desc);
static int	receive_parked(CqrsRelay *relay, int batch_size,
						   Tuplestorestate *store, TupleDesc desc);
static int	receive_new(CqrsRelay *relay, int batch_size,
						Tuplestorestate *store, TupleDesc desc);
static void put_event(Tuplestorestate *store, TupleDesc desc,
					  const CqrsEvent *event, int attempts);
static int	partition_arg(FunctionCallInfo fcinfo, int argno,
						  const CqrsSubscription *subscription);
static int	received_partition_arg(FunctionCallInfo fcinfo, int argno,
								   const CqrsSubscription *subscription);
static void begin_ack(CqrsRelay *relay, CqrsSubscription *subscription,
					  int partition);
static void not_received(const CqrsSubscription *subscription,
						 int64 position);
static CqrsParked *last_received(const CqrsParkedSet *set);
static void ack_parked(CqrsRelay *relay, int64 position);
static void ack_new(CqrsCursor *cursor, int64 position);

PG_FUNCTION_INFO_V1(cqrs_receive);
PG_FUNCTION_INFO_V1(cqrs_ack);
PG_FUNCTION_INFO_V1(cqrs_nack);

/*
 * cqrs_receive(subscription, batch_size, partition)
 */
Datum
cqrs_receive(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	int			batch_size = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	CqrsSubscription *subscription;
	Tuplestorestate *store;
	TupleDesc	desc;
	int			partition;

	cqrs_require_writable("cqrs_receive()");
	subscription = pull_subscription(name);
	if (batch_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));
	partition = partition_arg(fcinfo, 2, subscription);

	store = cqrs_srf_begin(fcinfo, &desc);
	if (partition >= 0)
		(void) receive(subscription, partition, true, batch_size, store, desc);
	else
	{
		int			n = subscription->partitions;
		int			start = MyProcPid % n;
		int			i;

		/* Not all clients begin at the same one. */
		for (i = 0; i < n; i++)
			if (receive(subscription, (start + i) % n, false, batch_size,
						store, desc))
				break;
	}
	return (Datum) 0;
}

/*
 * cqrs_ack(subscription, position, partition)
 */
Datum
cqrs_ack(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	CqrsRelay	relay;
	CqrsCursor *cursor = &relay.cursor;
	CqrsParked *parked;
	int64		position;

	cqrs_require_writable("cqrs_ack()");
	subscription = pull_subscription(name);
	begin_ack(&relay, subscription,
			  received_partition_arg(fcinfo, 2, subscription));

	if (PG_ARGISNULL(1))
	{
		parked = cursor->retrying ? last_received(relay.parked) : NULL;
		if (parked != NULL)
			position = parked->position;
		else if (cursor->received != cursor->position)
			position = cursor->received;
		else
			PG_RETURN_NULL();
	}
	else
	{
		position = PG_GETARG_INT64(1);
		parked = cqrs_parked_find(relay.parked, position);
		if (parked == NULL || !parked->received)
		{
			parked = NULL;

			/* An acknowledgement that is repeated does no harm. */
			if (position <= cursor->position ||
				(position > cursor->received &&
				 position <= cursor->last_position))
				PG_RETURN_INT64(position);
			if (position > cursor->received)
				not_received(subscription, position);
		}
	}

	if (parked != NULL)
		ack_parked(&relay, position);
	else
		ack_new(cursor, position);
	cqrs_cursor_append(cursor);
	PG_RETURN_INT64(position);
}

/*
 * cqrs_nack(subscription, position, error, retry_after, partition)
 */
Datum
cqrs_nack(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	CqrsRelay	relay;
	CqrsCursor *cursor = &relay.cursor;
	CqrsFault	fault = {ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION, ""};
	CqrsParked *parked;
	int64		position;

	cqrs_require_writable("cqrs_nack()");
	subscription = pull_subscription(name);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("position must not be null")));
	position = PG_GETARG_INT64(1);
	if (!PG_ARGISNULL(2))
		fault.message = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (!PG_ARGISNULL(3))
		fault.retry_at = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
																 TimestampTzGetDatum(GetCurrentTimestamp()),
																 PG_GETARG_DATUM(3)));
	begin_ack(&relay, subscription,
			  received_partition_arg(fcinfo, 4, subscription));

	parked = cqrs_parked_find(relay.parked, position);
	if (parked != NULL && parked->received)
	{
		ack_parked(&relay, position - 1);
		cqrs_parked_failed(relay.parked, parked, relay.subscription, cursor,
						   &fault, false);
		cursor->retrying = last_received(relay.parked) != NULL;
	}
	else
	{
		CqrsEvent	event;
		CqrsWindow *window;
		Snapshot	snapshot;

		if (position <= cursor->position || position > cursor->received)
			not_received(subscription, position);
		if (relay.parked != NULL && relay.parked->full)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("subscription \"%s\" has too many events to retry",
							name),
					 errhint("Acknowledge or discard some of them first.")));
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		window = cqrs_window_create(CurrentMemoryContext, cursor->snapshot,
									cursor->until_snapshot, position - 1, 1);
		cqrs_window_attach(window, subscription->ntopics,
						   subscription->topics, snapshot);
		if (!cqrs_window_next(window, &event) || event.position != position)
			not_received(subscription, position);
		relay.parked = cqrs_park(relay.parked, subscription, cursor, &event,
								 &fault);
		cqrs_window_detach(window);
		cqrs_window_free(window);
		UnregisterSnapshot(snapshot);

		/* What was received behind it may have to wait for it. */
		if (position < cursor->received)
			cursor->received_all = false;
		cursor->received = position;
		ack_new(cursor, position);
	}
	cqrs_cursor_append(cursor);
	PG_RETURN_VOID();
}

/*
 * The subscription, if the current user may read it.
 */
static CqrsSubscription *
pull_subscription(const char *name)
{
	CqrsSubscription *subscription = cqrs_subscription_get(name);

	cqrs_subscription_require_owner(subscription);
	if (subscription->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has a handler", name),
				 errhint("Its events are delivered to the handler; subscribe without one to receive them.")));
	if (subscription->server != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has a server", name),
				 errhint("Its events are delivered to the broker; subscribe without one to receive them.")));
	cqrs_subscription_require_active(subscription);
	return subscription;
}

/*
 * Receive from one partition. Returns false if there is nothing, or, without
 * wait, somebody else is receiving from it.
 */
static bool
receive(CqrsSubscription *subscription, int partition, bool wait,
		int batch_size, Tuplestorestate *store, TupleDesc desc)
{
	CqrsRelay	relay;
	int			nevents;

	if (!cqrs_relay_begin(&relay, subscription, partition, wait))
		return false;
	cqrs_cursor_require_native(&relay.cursor, subscription->name);
	nevents = receive_parked(&relay, batch_size, store, desc);
	if (nevents == 0)
		nevents = receive_new(&relay, batch_size, store, desc);
	cqrs_relay_end(&relay);
	if (nevents == 0)
		return false;
	received_subscription_id = subscription->subscription_id;
	received_partition = partition;
	received_lxid = CQRS_MY_LXID;
	return true;
}

/*
 * Hand out parked events: those that were not acknowledged, and, if there are
 * none, those that are due.
 */
static int
receive_parked(CqrsRelay *relay, int batch_size, Tuplestorestate *store,
			   TupleDesc desc)
{
	CqrsCursor *cursor = &relay->cursor;
	CqrsParkedSet *set = relay->parked;
	TimestampTz now = GetCurrentTimestamp();
	bool		again = cursor->retrying && last_received(set) != NULL;
	bool		changed = false;
	int			n = 0;
	int			i;

	for (i = 0; set != NULL && i < set->nparked && n < batch_size; i++)
	{
		CqrsParked *parked = &set->parked[i];
		CqrsEvent	event;
		int			attempts;

		if (again ? !parked->received :
			!parked->head || parked->retry_at > now)
			continue;
		if (!cqrs_parked_read(cursor, parked->position, relay->snapshot,
							  &event, &attempts))
			continue;
		put_event(store, desc, &event, attempts);
		n++;
		if (!parked->received)
		{
			cqrs_parked_set_received(parked, cursor);
			changed = true;
		}
	}
	if (changed)
	{
		cursor->retrying = true;
		cqrs_cursor_append(cursor);
	}
	return n;
}

/*
 * Hand out events of the window.
 */
static int
receive_new(CqrsRelay *relay, int batch_size, Tuplestorestate *store,
			TupleDesc desc)
{
	CqrsCursor *cursor = &relay->cursor;
	int64		position = cursor->position;
	int64		received = cursor->received;
	bool		received_all = cursor->received_all;
	int64		nnew = 0;
	CqrsEvent	event;

	while (cqrs_relay_next(relay, batch_size, &event))
	{
		put_event(store, desc, &event, 0);
		if (cursor->until_tick != relay->start_until ||
			event.position > received)
			nnew++;
	}
	if (relay->nevents == 0)
	{
		cqrs_relay_advance(relay);
		return 0;
	}

	/* What was passed by before the first one is done with. */
	cursor->received = relay->last;
	cursor->received_all = cqrs_window_at_end(relay->window);
	cursor->delivered += nnew;
	cursor->retrying = false;
	if (cursor->until_tick != relay->start_until ||
		cursor->position != position || cursor->received != received ||
		cursor->received_all != received_all)
		cqrs_cursor_append(cursor);
	return relay->nevents;
}

static void
put_event(Tuplestorestate *store, TupleDesc desc, const CqrsEvent *event,
		  int attempts)
{
	Datum		values[CQRS_EVENT_COLUMNS];
	bool		nulls[CQRS_EVENT_COLUMNS];

	cqrs_event_deform(event, attempts > 0 ? "not_produced" : "new", attempts,
					  values, nulls);
	tuplestore_putvalues(store, desc, values, nulls);
}

/*
 * The partition that an argument names; if there is one only, that; else -1.
 */
static int
partition_arg(FunctionCallInfo fcinfo, int argno,
			  const CqrsSubscription *subscription)
{
	int			partition;

	if (PG_ARGISNULL(argno))
		return subscription->partitions == 1 ? 0 : -1;
	partition = PG_GETARG_INT32(argno);
	if (partition < 0 || partition >= subscription->partitions)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no partition %d",
						subscription->name, partition),
				 errhint("Its partitions are 0 to %d.",
						 subscription->partitions - 1)));
	return partition;
}

/*
 * The same, or the one that this transaction received from last.
 */
static int
received_partition_arg(FunctionCallInfo fcinfo, int argno,
					   const CqrsSubscription *subscription)
{
	int			partition = partition_arg(fcinfo, argno, subscription);

	if (partition >= 0)
		return partition;
	if (received_subscription_id != subscription->subscription_id ||
		received_lxid != CQRS_MY_LXID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partition of subscription \"%s\" is not given",
						subscription->name),
				 errdetail("This transaction has received nothing from it."),
				 errhint("Receive and acknowledge in one transaction, or name the partition in both calls.")));
	return received_partition;
}

/*
 * Lock and read the cursor, without a window.
 */
static void
begin_ack(CqrsRelay *relay, CqrsSubscription *subscription, int partition)
{
	Snapshot	snapshot;

	memset(relay, 0, sizeof(*relay));
	(void) cqrs_subscription_lock(subscription, partition, true);
	relay->subscription = cqrs_subscription_get(subscription->name);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (!cqrs_cursor_read(subscription->subscription_id, partition, snapshot,
						  &relay->cursor))
		elog(ERROR, "subscription %d has no cursor %d",
			 subscription->subscription_id, partition);
	cqrs_cursor_require_native(&relay->cursor, subscription->name);
	relay->parked = cqrs_parked_load(&relay->cursor, snapshot);
	UnregisterSnapshot(snapshot);
}

static void
not_received(const CqrsSubscription *subscription, int64 position)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("position " INT64_FORMAT " was not received by subscription \"%s\"",
					position, subscription->name),
			 errhint("Acknowledge positions that cqrs_receive() returned.")));
}

/*
 * The highest of the parked events that were handed out, or NULL.
 */
static CqrsParked *
last_received(const CqrsParkedSet *set)
{
	CqrsParked *last = NULL;
	int			i;

	for (i = 0; set != NULL && i < set->nparked; i++)
		if (set->parked[i].received && !set->parked[i].gone)
			last = &set->parked[i];
	return last;
}

/*
 * Acknowledge parked events handed out, up to a position.
 */
static void
ack_parked(CqrsRelay *relay, int64 position)
{
	CqrsParkedSet *set = relay->parked;
	int			i;

	for (i = 0; i < set->nparked; i++)
	{
		CqrsParked *parked = &set->parked[i];

		if (parked->received && !parked->gone && parked->position <= position)
		{
			cqrs_parked_done(set, parked, &relay->cursor);
			relay->cursor.delivered++;
		}
	}
	relay->cursor.retrying = last_received(set) != NULL;
}

/*
 * Acknowledge events of the window up to a position that was received.
 */
static void
ack_new(CqrsCursor *cursor, int64 position)
{
	cursor->position = position;
	cursor->last_position = Max(cursor->last_position, position);
	if (position == cursor->received && cursor->received_all)
		cqrs_relay_close_window(cursor);
}
