/*-------------------------------------------------------------------------
 *
 * awaited.c
 *	  The topics whose events sagas wait for.
 *
 * The subscription that brings a role's sagas what they wait for, see router.c, reads
 * those that the role may read. It is completed when a saga is registered, for all
 * roles, and by cqrs_create_saga_queue(). A saga whose events it would not get is not
 * started.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/acl.h"

#include "control/topics.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "saga/awaited.h"
#include "subscription/subscription.h"

/*
 * The topic of times for what the sagas in this topic wait for; NULL: there is none.
 */
const CqrsTopic *
cqrs_saga_router_topic(const CqrsTopic *topic)
{
	CqrsSubscription *router;
	int			i;

	if (topic->runner == NULL)
		return NULL;
	router = cqrs_registry_saga_router(topic->runner->owner);
	for (i = 0; router != NULL && i < router->ntopics; i++)
		if (router->topics[i]->runner == router)
			return router->topics[i];
	return NULL;
}

/*
 * Have a subscription read what its owner's sagas may wait for, as far as he may read
 * it. What it reads already stays: versions that are no longer current may need it.
 */
void
cqrs_saga_router_complete(CqrsSubscription *router)
{
	List	   *topics = cqrs_topics_of(router);
	char	   *owner = GetUserNameFromId(router->owner, true);
	ListCell   *lc;
	int			i;

	if (owner == NULL)
		return;
	foreach(lc, cqrs_saga_definitions())
	{
		CqrsSagaDefinition *definition = lfirst(lc);

		if (!definition->is_current)
			continue;
		for (i = -1; i < definition->nsteps; i++)
		{
			const char *name = i >= 0 ? definition->steps[i].topic :
			definition->on_topic != NULL &&
			strcmp(definition->starter, owner) == 0 ?
			definition->on_topic : NULL;
			CqrsTopic  *topic = name == NULL ? NULL :
			cqrs_registry_topic(name);

			if (topic != NULL &&
				cqrs_topic_allows_role(topic, ACL_SELECT, router->owner))
				topics = list_append_unique_int(topics, topic->topic_id);
		}
	}
	if (!cqrs_topics_are(router, topics))
	{
		cqrs_topics_set(router, topics);
		cqrs_subscription_wake(router);
	}
}

/*
 * The same for all roles.
 */
void
cqrs_saga_routers_complete(void)
{
	HASH_SEQ_STATUS status;
	CqrsSubscription *subscription;
	List	   *routers = NIL;
	ListCell   *lc;

	CommandCounterIncrement();
	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		if (subscription->routes_to_sagas && OidIsValid(subscription->owner))
			routers = lappend_int(routers, subscription->subscription_id);
	list_sort(routers, list_int_cmp);
	foreach(lc, routers)
	{
		subscription = cqrs_registry_subscription_by_id(lfirst_int(lc));
		if (subscription != NULL)
			cqrs_saga_router_complete(subscription);
	}
}

/*
 * The first topic that this saga waits for and that would not be brought to this
 * role's; NULL: there is none.
 */
const char *
cqrs_saga_router_lacks(const CqrsSagaDefinition *definition, Oid owner)
{
	CqrsSubscription *router = NULL;
	int			i;

	for (i = 0; i < definition->nsteps; i++)
	{
		const char *name = definition->steps[i].topic;
		CqrsTopic  *topic;

		if (name == NULL)
			continue;
		if (router == NULL)
			router = cqrs_registry_saga_router(owner);
		topic = cqrs_registry_topic(name);
		if (router == NULL || topic == NULL ||
			!cqrs_subscription_reads(router, topic))
			return name;
	}
	return NULL;
}

/*
 * Raises 55000 if there is one.
 */
void
cqrs_saga_router_require(const CqrsSagaDefinition *definition, Oid owner)
{
	const char *name = cqrs_saga_router_lacks(definition, owner);

	if (name != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga \"%s\" waits for events of topic \"%s\", which are not brought to those of role \"%s\"",
						definition->name, name,
						GetUserNameFromId(owner, true)),
				 cqrs_registry_topic(name) == NULL ?
				 errdetail("The topic was dropped.") :
				 errhint("If the role may read the topic, use cqrs_create_saga_queue().")));
}
