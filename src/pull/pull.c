/*-------------------------------------------------------------------------
 *
 * pull.c
 *	  Subscriptions without a handler: cqrs_receive(). See pull_batch.c for what
 *	  it hands out, pull_ack.c for what settles that.
 *
 * Locking
 *
 * The cursor's lock, and those on the topics' tables, are taken only if they
 * are free. While we wait for events, each attempt is a subtransaction, which
 * is rolled back if there was nothing: so no lock is left, and no transaction
 * id, since nothing is written before the first event is found.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/interval.h"
#include "base/rethrow.h"
#include "extension/catalog.h"
#include "pull/pull.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "shared/shmem.h"
#include "subscription/epoch.h"
#include "subscription/receipt.h"
#include "subscription/subscription.h"

#define DEFAULT_EVENTS		100

#define ANY_PARTITION		PG_INT32_MIN

/* In milliseconds: how long wait may be ... */
#define LONGEST_WAIT		60000

/* ... how long we wait for a tick in any case ... */
#define LONGEST_TICK		100
#define LONGEST_START		1000	/* ... if the manager has to be started */

/* ... and how often we look unasked: if a lock was another's, or not. */
#define POLL_LOCKED			100
#define POLL				1000

static void receive_args(FunctionCallInfo fcinfo, CqrsReceive *receive);
static void check_partition(const CqrsReceive *receive,
							const CqrsSubscription *subscription);
static bool attempt(CqrsReceive *receive, bool last);
static bool attempt_in_next_epoch(CqrsReceive *receive, int32 subscription_id);
static bool attempt_in_subtransaction(CqrsReceive *receive, bool last);
static bool wait_for_events(CqrsReceive *receive);
static long time_to_wait(const CqrsReceive *receive, TimestampTz now,
						 TimestampTz until);

PG_FUNCTION_INFO_V1(cqrs_receive);

/*
 * cqrs_receive(subscription, max_events, wait, lease, partition)
 */
Datum
cqrs_receive(PG_FUNCTION_ARGS)
{
	CqrsReceive receive = {0};
	CqrsSubscription *subscription;
	bool		found;

	cqrs_require_writable("cqrs_receive()");
	receive_args(fcinfo, &receive);
	subscription = cqrs_pull_subscription(receive.name);
	cqrs_subscription_require_active(subscription);
	if (receive.wait > 0)
		cqrs_require_preloaded();
	receive.store = cqrs_srf_begin(fcinfo, &receive.desc);
	receive.context = CurrentMemoryContext;

	found = receive.wait > 0 ? attempt_in_subtransaction(&receive, false) :
		attempt(&receive, true);
	if (!found)
		found = wait_for_events(&receive);
	if (!found)
		found = attempt_in_next_epoch(&receive, subscription->subscription_id);
	if (!found)
		cqrs_received_note(subscription->subscription_id, -1, NULL, false);
	return (Datum) 0;
}

/*
 * The subscription, if it can be pulled from, and the current user may do so.
 */
CqrsSubscription *
cqrs_pull_subscription(const char *name)
{
	CqrsSubscription *subscription = cqrs_subscription_get(name);

	if (!cqrs_subscription_allows(subscription, ACL_UPDATE) &&
		!(OidIsValid(subscription->owner) &&
		  has_privs_of_role(GetUserId(), subscription->owner)))
	{
		if (!OidIsValid(subscription->owner))
			cqrs_subscription_require_owner(subscription);
		else
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for subscription \"%s\"", name),
					 errhint("To receive and acknowledge takes membership in its owner, or GRANT UPDATE ON %s TO %s; and SELECT on its topics.",
							 quote_qualified_identifier(CQRS_SUBSCRIPTION_SCHEMA, name),
							 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
	}
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
	return subscription;
}

static void
receive_args(FunctionCallInfo fcinfo, CqrsReceive *receive)
{
	receive->name = cqrs_name_arg(fcinfo, 0, "subscription");
	receive->max_events = PG_ARGISNULL(1) ? DEFAULT_EVENTS :
		PG_GETARG_INT32(1);
	receive->wait = PG_ARGISNULL(2) ? 0 :
		cqrs_milliseconds(PG_GETARG_DATUM(2));
	receive->lease = PG_ARGISNULL(3) ? NULL : PG_GETARG_INTERVAL_P(3);
	receive->partition = PG_ARGISNULL(4) ? ANY_PARTITION : PG_GETARG_INT32(4);
	if (receive->max_events < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must be at least 1")));
	if (receive->wait < 0 || receive->wait > LONGEST_WAIT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must be between 0 and 1 minute")));
	if (receive->lease != NULL &&
		cqrs_milliseconds(IntervalPGetDatum(receive->lease)) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be positive")));
	if (!PG_ARGISNULL(4))
		check_partition(receive, cqrs_subscription_get(receive->name));
}

/*
 * Raises 22023 if there is no such partition, or no longer, while we wait.
 */
static void
check_partition(const CqrsReceive *receive,
				const CqrsSubscription *subscription)
{
	if (receive->partition < 0 ||
		receive->partition >= subscription->partitions)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no partition %d",
						receive->name, receive->partition),
				 errhint("Its partitions are 0 to %d.",
						 subscription->partitions - 1)));
}

/*
 * Look for events, in one partition after the other. With last, cursors are
 * moved over what is not for them.
 */
static bool
attempt(CqrsReceive *receive, bool last)
{
	CqrsSubscription *subscription = cqrs_pull_subscription(receive->name);
	int			n = subscription->partitions;
	int			start = MyProcPid % n;
	int			i;

	cqrs_subscription_require_active(subscription);
	receive->locked = receive->busy = false;
	receive->wake_at = 0;
	receive->tick_id = PG_INT64_MAX;
	if (receive->partition != ANY_PARTITION)
	{
		check_partition(receive, subscription);
		return cqrs_pull_batch(receive, subscription, receive->partition, last);
	}

	/* Not all clients should begin at the same partition. */
	for (i = 0; i < n; i++)
		if (cqrs_pull_batch(receive, subscription, (start + i) % n, last))
			return true;
	return false;
}

/*
 * There is nothing. If partitions are being changed, and no manager sees to
 * it, complete the change if possible, and look in the new partitions.
 */
static bool
attempt_in_next_epoch(CqrsReceive *receive, int32 subscription_id)
{
	if ((cqrs_shared != NULL && cqrs_deliver) ||
		!cqrs_epoch_close(subscription_id))
		return false;

	/*
	 * Do not raise an error for a partition that is gone: it would undo the
	 * change.
	 */
	return (receive->partition == ANY_PARTITION ||
			receive->partition < cqrs_pull_subscription(receive->name)->partitions) &&
		attempt(receive, true);
}

/*
 * Like attempt(), but leave no lock if there is nothing.
 */
static bool
attempt_in_subtransaction(CqrsReceive *receive, bool last)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	bool		found = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		found = attempt(receive, last);
		if (found || receive->wrote)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcontext);
		CurrentResourceOwner = oldowner;
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(oldcontext);

		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcontext);
		CurrentResourceOwner = oldowner;
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	return found;
}

/*
 * There is nothing: wait as long as the caller wants to and, if something is
 * committed that no tick shows yet, for a tick that does.
 */
static bool
wait_for_events(CqrsReceive *receive)
{
	TimestampTz now = cqrs_steady_now();
	TimestampTz until = TimestampTzPlusMilliseconds(now, receive->wait);
	TimestampTz tick_until = TimestampTzPlusMilliseconds(now, LONGEST_TICK);
	bool		for_tick = cqrs_deliver && !IsolationUsesXactSnapshot();
	bool		asked = false;
	int64		known_tick;
	CqrsSnapshot *target;
	bool		found = false;

	if (cqrs_shared == NULL || (receive->wait == 0 && !for_tick))
		return false;
	target = cqrs_snapshot_take();

	/* If no partition could be looked at, no tick was seen. */
	known_tick = receive->tick_id == PG_INT64_MAX ? 0 : receive->tick_id;
	if (receive->wait > 0)
		receive->seen = palloc0(sizeof(CqrsSeen) * CQRS_MAX_PARTITIONS);
	while (!found)
	{
		CqrsSubscription *subscription = cqrs_pull_subscription(receive->name);
		int64		tick_id;
		bool		covered;

		/* A tick from here on ends the wait; one before it is seen now. */
		cqrs_pull_wait_begin();
		covered = cqrs_pull_is_covered(subscription, for_tick ? target : NULL,
									   &tick_id);
		for_tick = (!covered || receive->busy) && for_tick &&
			now < tick_until;
		if (tick_id <= known_tick)
		{
			if (!for_tick && (now >= until || receive->wrote))
				break;
			if (!covered && !asked)
			{
				if (cqrs_pull_request_tick(subscription))
					tick_until = TimestampTzPlusMilliseconds(now,
															 LONGEST_START);
				asked = true;
			}
			cqrs_pull_wait(time_to_wait(receive, now,
										now < until ? until : tick_until));
		}
		cqrs_pull_wait_end();
		known_tick = Max(known_tick, tick_id);
		found = receive->wait > 0 ?
			attempt_in_subtransaction(receive, false) :
			attempt(receive, true);
		now = cqrs_steady_now();
	}
	cqrs_pull_wait_end();

	/* Nothing came: have the cursors move over what is not for them. */
	receive->seen = NULL;
	if (!found && receive->wait > 0 && !receive->wrote)
		found = attempt_in_subtransaction(receive, true);
	return found;
}

/*
 * How long to wait, in milliseconds, before we look again.
 */
static long
time_to_wait(const CqrsReceive *receive, TimestampTz now, TimestampTz until)
{
	long		timeout = receive->busy ? 5 :
	receive->locked ? POLL_LOCKED : POLL;

	if (receive->wake_at != 0)
		until = Min(until, cqrs_steady_from_wall(receive->wake_at));
	return Min(timeout, TimestampDifferenceMilliseconds(now, until) + 1);
}
