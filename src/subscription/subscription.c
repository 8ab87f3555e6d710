/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  Subscriptions: how they start, their locks, who may do what with them.
 *
 * A subscription starts with a cursor for each partition: at the snapshot that
 * shows nothing, or at one taken now. See tick.c for why the latter needs no
 * lock. Its owner is that of its view: see owner.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "subscription/subscription.h"

/*
 * Have a subscription whose row was just made start with these topics, a list
 * of ids: at what they retain, or at what commits from now on.
 */
void
cqrs_subscription_start(int32 subscription_id, List *topics, int partitions,
						bool by_topic, bool exactly_once, bool latest)
{
	bool		native = true;
	ListCell   *lc;
	int			i;

	foreach(lc, topics)
		native &= cqrs_subscription_add_topic(subscription_id, lfirst_int(lc));
	for (i = 0; i < partitions; i++)
	{
		CqrsCursor	cursor = {.subscription_id = subscription_id};

		cursor.partition = i;
		cursor.by_topic = by_topic;
		cqrs_cursor_start(&cursor, latest, native);
		if (exactly_once)
			cqrs_cursor_draw_producer(&cursor);
		cqrs_cursor_append(&cursor);
	}
	foreach(lc, topics)
		cqrs_shmem_emitted(lfirst_int(lc));
}

/*
 * Have a subscription read a topic, too. Until its cursor can be seen, nothing
 * of the topic is truncated. Returns whether the topic is native.
 */
bool
cqrs_subscription_add_topic(int32 subscription_id, int32 topic_id)
{
	CqrsAdmin	admin;
	CqrsTopic  *topic;

	(void) cqrs_object_lock(CQRS_REL_TOPIC, topic_id, 0, ShareLock, true);

	/*
	 * Dropping a topic locks the table, too: so the topic is there, and
	 * stays.
	 */
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("LOCK TABLE cqrs.subscription_topic IN ROW EXCLUSIVE MODE");
	topic = cqrs_registry_topic_by_id(topic_id);
	if (topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("topic with id %d was dropped", topic_id)));
	cqrs_admin_execute("INSERT INTO cqrs.subscription_topic (subscription_id, topic_id) VALUES ($1, $2)",
					   2, CQRS_INT4(subscription_id), CQRS_INT4(topic_id));
	cqrs_admin_end(&admin);
	return topic->native;
}

/*
 * Take the lock for moving a cursor of the subscription, until the end of the
 * transaction. Without wait, returns false if it cannot be had at once. Raises
 * 42704 if the subscription was dropped while we waited, 42501 if its owner
 * changed.
 */
bool
cqrs_subscription_lock(const CqrsSubscription *subscription, int partition,
					   bool wait)
{
	CqrsSubscription *now;

	if (!cqrs_object_lock(CQRS_REL_SUBSCRIPTION,
						  subscription->subscription_id, partition,
						  ExclusiveLock, wait))
		return false;
	now = cqrs_subscription_get(subscription->name);
	if (now->subscription_id != subscription->subscription_id)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" was dropped",
						subscription->name)));
	if (now->owner != subscription->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("subscription \"%s\" was given to another owner",
						subscription->name)));
	return true;
}

/*
 * Take the locks of all its cursors, waiting for them. Returns the
 * subscription as it is then: it may have more cursors than before, or fewer.
 */
CqrsSubscription *
cqrs_subscription_lock_all(const CqrsSubscription *subscription)
{
	CqrsSubscription *now;
	int			i = 0;

	do
	{
		(void) cqrs_subscription_lock(subscription, i++, true);
		now = cqrs_subscription_get(subscription->name);
	} while (i < now->partitions);
	return now;
}

/*
 * Raises 55000 if what the subscription gets are the steps of sagas, or what they wait
 * for: nothing else may have them go on.
 */
void
cqrs_subscription_refuse_sagas(const CqrsSubscription *subscription,
							   const char *hint)
{
	if (subscription->runs_sagas || subscription->routes_to_sagas)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is for sagas", subscription->name),
				 errhint("%s", hint)));
}

/*
 * Events of the subscription may never be delivered. If they were to have sagas go
 * on, see that these do.
 */
void
cqrs_subscription_lost_events(const CqrsSubscription *subscription)
{
	if (subscription->runs_sagas || subscription->routes_to_sagas)
		(void) cqrs_admin_run("SELECT cqrs.resume_sagas($1)",
							  1, CQRS_INT4(subscription->subscription_id));
}

/*
 * Raises 55000 if the subscription is paused or suspended, or has no owner.
 */
void
cqrs_subscription_require_active(const CqrsSubscription *subscription)
{
	if (!OidIsValid(subscription->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no owner",
						subscription->name),
				 errhint("See cqrs_health().")));
	if (cqrs_registry_is_copy())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database \"%s\" is a copy of another one",
						get_database_name(MyDatabaseId)),
				 errdetail("Nothing is delivered to subscription \"%s\", because the original delivers it.",
						   subscription->name),
				 errhint("Use cqrs_adopt() to have this database deliver what it holds.")));
	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is %s", subscription->name,
						subscription->state == CQRS_SUBSCRIPTION_PAUSED ?
						"paused" : "suspended"),
				 errhint("Use cqrs_resume().")));
}

/*
 * The subscription that the first argument names, which the current user owns
 * and is about to change.
 */
CqrsSubscription *
cqrs_subscription_own(FunctionCallInfo fcinfo, const char *function)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;

	cqrs_require_writable(function);
	subscription = cqrs_subscription_get(name);
	cqrs_subscription_require_owner(subscription);
	return subscription;
}

/*
 * At commit, have the manager look at the subscription's topics.
 */
void
cqrs_subscription_wake(const CqrsSubscription *subscription)
{
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		cqrs_shmem_emitted(subscription->topics[i]->topic_id);
}

/*
 * Raises 42501 unless the current user is the subscription's owner or a member
 * of that role. One without an owner belongs to the extension's owner, to
 * clear up.
 */
void
cqrs_subscription_require_owner(const CqrsSubscription *subscription)
{
	Oid			owner = subscription->owner;

	if (has_privs_of_role(GetUserId(), OidIsValid(owner) ? owner :
						  cqrs_extension_owner()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of subscription \"%s\"",
					subscription->name),
			 OidIsValid(owner) ?
			 errhint("What it takes is membership in its owner: GRANT %s TO %s.",
					 quote_identifier(GetUserNameFromId(owner, false)),
					 quote_identifier(GetUserNameFromId(GetUserId(), false))) :
			 errhint("Nobody owns it. The extension's owner may remove it, or own it by cqrs_alter_subscription().")));
}

/*
 * The same for what only the owner may do, not a member. what is what, as in
 * "to drain it".
 */
void
cqrs_subscription_refuse_member(const CqrsSubscription *subscription,
								const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of subscription \"%s\" %s",
					subscription->name, what),
			 errdetail("What handles its events has the owner's privileges, not a member's."),
			 errhint("SET ROLE %s.",
					 quote_identifier(GetUserNameFromId(subscription->owner,
														false)))));
}

/*
 * Does the current user have this privilege on the subscription's view?
 */
bool
cqrs_subscription_allows(const CqrsSubscription *subscription, AclMode mode)
{
	bool		missing = false;

	return OidIsValid(subscription->view) &&
		pg_class_aclcheck_ext(subscription->view, GetUserId(), mode,
							  &missing) == ACLCHECK_OK;
}

/*
 * Raises 42501 if a function of this owner may not be the handler: the
 * subscription's owner must not run just anybody's code.
 */
void
cqrs_subscription_check_handler_owner(const char *subscription, Oid owner,
									  const char *signature, Oid funcowner)
{
	if (funcowner != owner && !superuser_arg(funcowner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("function %s cannot be the handler of subscription \"%s\"",
						signature, subscription),
				 errdetail("It belongs to role \"%s\".",
						   GetUserNameFromId(funcowner, true)),
				 errhint("A handler belongs to the subscription's owner or to a superuser.")));
}

/*
 * Can a worker connect as this role? Before PostgreSQL 17, that takes LOGIN.
 */
bool
cqrs_subscription_owner_can_login(Oid owner)
{
	HeapTuple	tuple;
	bool		can_login;

	if (!CQRS_ROLE_NEEDS_LOGIN)
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	if (!HeapTupleIsValid(tuple))
		return false;
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return can_login;
}

/*
 * Raises 42501 unless a role can own a subscription that a worker delivers.
 */
void
cqrs_subscription_require_login(const char *subscription, Oid owner)
{
	if (!cqrs_subscription_owner_can_login(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot own subscription \"%s\"",
						GetUserNameFromId(owner, true), subscription),
				 errdetail("The worker connects as the owner, who is not permitted to log in."),
				 errhint("ALTER ROLE ... LOGIN; it needs no password for this.")));
}
