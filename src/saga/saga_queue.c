/*-------------------------------------------------------------------------
 *
 * saga_queue.c
 *	  Where a role's sagas are run: two subscriptions, each with a topic of its own.
 *
 * One runs the steps; see run.c. The other one brings what sagas wait for; see
 * router.c. They are the role's as a command queue is; see command_queue.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "control/subscribe.h"
#include "deferred/command_queue.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/topic.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "saga/awaited.h"
#include "subscription/epoch.h"
#include "subscription/search_path.h"
#include "subscription/subscription.h"

/* How many workers run a role's sagas, unless it is told. */
#define DEFAULT_PARTITIONS	4

static void refuse_under_way(CqrsSubscription *queue, Oid owner);
static bool has_topic(const CqrsSubscription *subscription);
static void make(Oid owner, const CqrsSubscription *existing,
				 const char *prefix, const char *handler, const char *runs,
				 const char *path, int partitions);

PG_FUNCTION_INFO_V1(cqrs_create_saga_queue);
PG_FUNCTION_INFO_V1(cqrs_drop_saga_queue);

/*
 * cqrs_create_saga_queue(owner, search_path, partitions)
 */
Datum
cqrs_create_saga_queue(PG_FUNCTION_ARGS)
{
	int			partitions = PG_ARGISNULL(2) ? DEFAULT_PARTITIONS :
	PG_GETARG_INT32(2);
	Oid			owner;
	char	   *path;
	CqrsSubscription *router;
	bool		made = false;

	cqrs_require_writable("cqrs_create_saga_queue()");
	owner = cqrs_queue_owner_arg(fcinfo, "create", "queue of sagas");
	path = PG_ARGISNULL(1) ? cqrs_search_path_now() :
		text_to_cstring(PG_GETARG_TEXT_PP(1));
	cqrs_search_path_check(path);
	cqrs_epoch_check_partitions("sagas", partitions);
	if (!has_topic(cqrs_registry_saga_subscription(owner)) ||
		!has_topic(cqrs_registry_saga_router(owner)))
	{
		CqrsSubscription *queue;

		cqrs_admin_run("LOCK TABLE cqrs.subscription, cqrs.topic IN SHARE ROW EXCLUSIVE MODE", 0);

		/* Another backend may have made it while we waited. */
		queue = cqrs_registry_saga_subscription(owner);
		if (!has_topic(queue))
		{
			make(owner, queue, "sagas", "run_saga", "sagas", path, partitions);
			made = true;
		}
		CommandCounterIncrement();
		router = cqrs_registry_saga_router(owner);
		if (!has_topic(router))
		{
			make(owner, router, "saga_events", "route_to_sagas", "saga_events",
				 path, 1);
			made = true;
		}
		CommandCounterIncrement();
	}
	router = cqrs_registry_saga_router(owner);
	if (router == NULL)
		elog(ERROR, "queue of sagas was not made");
	cqrs_saga_router_complete(router);
	PG_RETURN_BOOL(made);
}

/*
 * cqrs_drop_saga_queue(owner, cascade, if_exists)
 */
Datum
cqrs_drop_saga_queue(PG_FUNCTION_ARGS)
{
	Oid			owner;
	CqrsSubscription *queue;
	CqrsSubscription *router;

	cqrs_require_writable("cqrs_drop_saga_queue()");
	owner = cqrs_queue_owner_arg(fcinfo, "drop", "queue of sagas");
	queue = cqrs_registry_saga_subscription(owner);
	router = cqrs_registry_saga_router(owner);
	if (queue == NULL && router == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 2))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("role \"%s\" has no queue of sagas",
										GetUserNameFromId(owner, false)),
							   "cqrs_subscriptions");
	}
	if (queue != NULL)
	{
		if (!cqrs_flag_arg(fcinfo, 1))
			refuse_under_way(queue, owner);
		cqrs_subscription_remove(queue);
		CommandCounterIncrement();
	}
	router = cqrs_registry_saga_router(owner);
	if (router != NULL)
		cqrs_subscription_remove(router);
	PG_RETURN_BOOL(true);
}

/*
 * Raises 55006 if sagas of the role are under way. From here on, none is started.
 */
static void
refuse_under_way(CqrsSubscription *queue, Oid owner)
{
	int			i;

	queue = cqrs_subscription_lock_all(queue);
	cqrs_admin_run("LOCK TABLE cqrs.saga IN SHARE ROW EXCLUSIVE MODE", 0);
	for (i = 0; i < queue->ntopics; i++)
		if (cqrs_admin_run("SELECT FROM cqrs.saga WHERE topic_id = $1 LIMIT 1",
						   1, CQRS_INT4(queue->topics[i]->topic_id)) > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("sagas of role \"%s\" are under way",
							GetUserNameFromId(owner, false)),
					 errhint("See cqrs_saga_status. Let them end, or use cascade => true, which leaves them as they are, neither completed nor undone.")));
}

static bool
has_topic(const CqrsSubscription *subscription)
{
	int			i;

	for (i = 0; subscription != NULL && i < subscription->ntopics; i++)
		if (subscription->topics[i]->runner == subscription)
			return true;
	return false;
}

/*
 * Make a subscription of the role, with its topic; only the topic, if just that was
 * dropped. The tables are locked.
 */
static void
make(Oid owner, const CqrsSubscription *existing, const char *prefix,
	 const char *handler, const char *runs, const char *path, int partitions)
{
	const char *name = existing != NULL ? existing->name :
	cqrs_queue_free_name(prefix, owner);
	Interval	retention = {0};
	int32		topic_id;
	int32		subscription_id;

	cqrs_subscription_require_login(name, owner);
	topic_id = cqrs_topic_create(name, &retention, owner, false);
	if (existing != NULL)
	{
		(void) cqrs_subscription_add_topic(existing->subscription_id, topic_id);
		return;
	}
	subscription_id = cqrs_queue_make_subscription(name, handler, runs, path,
												   partitions);
	cqrs_owner_make_view(name, false, owner);
	cqrs_subscription_start(subscription_id, list_make1_int(topic_id),
							partitions, false, false, false);
}
