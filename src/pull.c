/*-------------------------------------------------------------------------
 *
 * pull.c
 *	  Subscriptions without a handler: cqrs_receive() and cqrs_ack().
 *
 * What was handed out but not acknowledged is in the cursor, not in the
 * session: another connection, from behind a pooler, can acknowledge it.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "events.h"
#include "relay.h"
#include "subscription.h"

static CqrsSubscription *pull_subscription(const char *name);

PG_FUNCTION_INFO_V1(cqrs_receive);
PG_FUNCTION_INFO_V1(cqrs_ack);

/*
 * cqrs_receive(subscription, batch_size)
 */
Datum
cqrs_receive(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	int			batch_size = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	CqrsSubscription *subscription;
	Tuplestorestate *store;
	TupleDesc	desc;
	CqrsRelay	relay;
	CqrsEvent	event;

	cqrs_require_writable("cqrs_receive()");
	subscription = pull_subscription(name);
	if (batch_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));

	store = cqrs_srf_begin(fcinfo, &desc);
	cqrs_relay_begin(&relay, subscription);
	while (cqrs_relay_next(&relay, batch_size, &event))
	{
		Datum		values[CQRS_EVENT_COLUMNS];
		bool		nulls[CQRS_EVENT_COLUMNS];

		cqrs_event_deform(&event, "new", 0, values, nulls);
		tuplestore_putvalues(store, desc, values, nulls);
	}
	if (relay.nevents == 0)
		cqrs_relay_advance(&relay);
	else if (relay.cursor.received < relay.last)
	{
		relay.cursor.received = relay.last;
		cqrs_cursor_append(&relay.cursor);
	}
	cqrs_relay_end(&relay);
	return (Datum) 0;
}

/*
 * cqrs_ack(subscription, position)
 */
Datum
cqrs_ack(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	CqrsCursor	cursor;
	Snapshot	snapshot;
	int64		position;

	cqrs_require_writable("cqrs_ack()");
	subscription = pull_subscription(name);
	cqrs_relay_lock(subscription);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (!cqrs_cursor_read(subscription->subscription_id, 0, snapshot, &cursor))
		elog(ERROR, "subscription %d has no cursor",
			 subscription->subscription_id);
	UnregisterSnapshot(snapshot);

	if (PG_ARGISNULL(1))
	{
		if (cursor.received == cursor.position)
			PG_RETURN_NULL();
		position = cursor.received;
	}
	else
	{
		position = PG_GETARG_INT64(1);

		/* An acknowledgement that is repeated does no harm. */
		if (position <= cursor.position ||
			(position > cursor.received && position <= cursor.last_position))
			PG_RETURN_INT64(position);
		if (position > cursor.received)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("position " INT64_FORMAT " was not received by subscription \"%s\"",
							position, name),
					 errhint("Acknowledge positions that cqrs_receive() returned.")));
	}

	cursor.position = position;
	cursor.last_position = Max(cursor.last_position, position);
	cqrs_cursor_append(&cursor);
	PG_RETURN_INT64(position);
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
	return subscription;
}
