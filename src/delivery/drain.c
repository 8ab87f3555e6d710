/*-------------------------------------------------------------------------
 *
 * drain.c
 *	  cqrs_drain(): events delivered to a handler in the caller's transaction.
 *
 * Each batch is a subtransaction, and is delivered as in a worker (see
 * target_handler.c). But an error that is no event's fault is raised to the
 * caller. And draining does not wait: however many lanes fail with errors of
 * their events' own, their attempts count.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/resowner.h"

#include "base/rethrow.h"
#include "delivery/target_handler.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "mediator/context.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "shared/clock.h"
#include "subscription/epoch.h"
#include "subscription/subscription.h"

static int64 drain(int32 subscription_id, int partition);
static void report_outage(const CqrsSubscription *subscription,
						  const CqrsDelivery *delivery);
static ErrorData *deliver_in_subtransaction(CqrsSubscription *subscription,
											int partition,
											const CqrsPace *pace,
											TimestampTz now,
											CqrsDelivery *delivery);

PG_FUNCTION_INFO_V1(cqrs_drain);

/*
 * cqrs_drain(subscription)
 */
Datum
cqrs_drain(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	int32		subscription_id;
	Oid			save_userid;
	int			save_sec_context;
	int			partitions;
	int64		total = 0;
	int			i;

	cqrs_require_writable("cqrs_drain()");
	subscription = cqrs_subscription_get(name);
	subscription_id = subscription->subscription_id;
	if (!subscription->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no handler", name),
				 subscription->server != NULL ?
				 errhint("Only the background worker delivers to a broker.") :
				 errhint("Read it with cqrs_receive() and cqrs_ack().")));
	if (!OidIsValid(subscription->owner))
		cqrs_subscription_require_owner(subscription);
	else if (GetUserId() != subscription->owner)
		cqrs_subscription_refuse_member(subscription, "to drain it");
	cqrs_subscription_require_active(subscription);
	if (cqrs_underway_is(subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("subscription \"%s\" is being delivered by this session",
						name),
				 errhint("Its handler must not call cqrs_drain() for it.")));

	/* A handler must not be able to return to a role that SET ROLE left. */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(save_userid,
						   save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	do
	{
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		partitions = subscription != NULL ? subscription->partitions : 0;
		for (i = 0; i < partitions; i++)
			total += drain(subscription_id, i);

		/* If partitions are changed, there may be more in the new ones. */
	} while (cqrs_epoch_close(subscription_id));
	SetUserIdAndSecContext(save_userid, save_sec_context);
	PG_RETURN_INT64(total);
}

/*
 * Deliver all of one partition. Returns how many events were delivered. What
 * fails is not tried a second time, however short the delay.
 */
static int64
drain(int32 subscription_id, int partition)
{
	TimestampTz start = cqrs_wall_now();
	CqrsPace	pace = {0};
	int64		total = 0;
	CqrsDelivery delivery;

	do
	{
		CqrsSubscription *subscription;
		ErrorData  *error;

		/*
		 * A handler may change the registry, and even remove this
		 * subscription.
		 */
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		if (subscription == NULL ||
			subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
			break;
		error = deliver_in_subtransaction(subscription, partition, &pace,
										  start, &delivery);
		if (error == NULL)
		{
			report_outage(subscription, &delivery);
			if (cqrs_delivery_works(&delivery))
				cqrs_failure_clear(subscription_id, partition);
			total += delivery.nevents;
			cqrs_pace_done(&pace, &delivery);
			continue;
		}

		if (delivery.position == 0 ||
			cqrs_blame(error) == CQRS_BLAME_NOBODY ||
			error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			cqrs_error_rethrow(error);
		delivery.more = true;
		cqrs_pace_failed(&pace, &delivery, error);
		FreeErrorData(error);
	} while (delivery.more);
	return total;
}

/*
 * What failed is no event's fault: raise the error. But if that is only because
 * there was no other lane to compare with, and it does not look like the server's
 * fault, warn and go on: that should not undo what was delivered.
 */
static void
report_outage(const CqrsSubscription *subscription,
			  const CqrsDelivery *delivery)
{
	ErrorData	error = {.sqlerrcode = delivery->outage};

	if (delivery->outage == 0)
		return;
	if (delivery->lone && !cqrs_target_is_outage(&error))
		ereport(WARNING,
				(errcode(delivery->outage),
				 errmsg("could not deliver to subscription \"%s\"",
						subscription->name),
				 errdetail_internal("%s", delivery->message)));
	else
		ereport(ERROR,
				(errcode(delivery->outage),
				 errmsg_internal("%s", delivery->message),
				 errcontext("delivering to subscription \"%s\"",
							subscription->name)));
}

/*
 * Deliver one batch, or part of it. Returns the error that rolled it back, or
 * NULL.
 */
static ErrorData *
deliver_in_subtransaction(CqrsSubscription *subscription, int partition,
						  const CqrsPace *pace, TimestampTz now,
						  CqrsDelivery *delivery)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	CqrsContext *outer = cqrs_context_innermost;
	CqrsUnderway *outer_underway = cqrs_underway_innermost;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		cqrs_target_deliver(subscription, partition, pace, false, 0, now,
							false, delivery);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		error = cqrs_error_take(oldcontext);
		RollbackAndReleaseCurrentSubTransaction();
		cqrs_context_innermost = outer;
		cqrs_underway_innermost = outer_underway;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	return error;
}
