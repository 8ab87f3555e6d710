/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *	  Subscriptions made, changed and removed. What is wanted of them is checked by
 *	  subscribe_check.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"

#include "control/operation.h"
#include "control/subscribe.h"
#include "control/subscribe_check.h"
#include "control/topics.h"
#include "delivery/broker_sent.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/topic.h"
#include "log/topic_drop.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "subscription/epoch.h"
#include "subscription/settings.h"
#include "subscription/subscription.h"

static void make(const CqrsSettings *settings, const char *name,
				 List *topics, bool latest);
static bool replace(CqrsSettings *settings, const char *name, List *topics,
					bool path_given, bool or_replace);
static char *differences(const CqrsSettings *settings,
						 const CqrsSubscription *old, List *topics);
static bool change(const CqrsSettings *settings, List *topics,
				   CqrsSubscription *subscription);
static bool own_if_nobody_does(CqrsSubscription **subscription);
static bool parse_start(const char *subscription, const char *start);

/* Where cqrs_subscribe() has the settings, ... */
static const int subscribe_args[CQRS_SETTINGS] = {
	[CQRS_SETTING_HANDLER] = 2,
	[CQRS_SETTING_SERVER] = 3,
	[CQRS_SETTING_PARTITIONS] = 5,
	[CQRS_SETTING_ORDERING] = 6,
	[CQRS_SETTING_MAX_ATTEMPTS] = 7,
	[CQRS_SETTING_RETRY_DELAY] = 8,
	[CQRS_SETTING_MAX_RETRY_DELAY] = 9,
	[CQRS_SETTING_DELIVERY_TIMEOUT] = 10,
	[CQRS_SETTING_MAX_RETAINED_SIZE] = 11,
	[CQRS_SETTING_MAX_RETAINED_AGE] = 12,
	[CQRS_SETTING_FORMAT] = 13,
	[CQRS_SETTING_STRICT_KEY_ORDER] = 14,
	[CQRS_SETTING_TRANSACTION] = 15,
	[CQRS_SETTING_SEARCH_PATH] = 16,
	[CQRS_SETTING_RATE] = 17,
	[CQRS_SETTING_KEY_RATE] = 18,
	[CQRS_SETTING_DELIVERY] = 19,
	[CQRS_SETTING_ON_DIVERGENCE] = 20,
};

#define SUBSCRIBE_START			4
#define SUBSCRIBE_OR_REPLACE	21

/* ... and cqrs_alter_subscription(). */
static const int alter_args[CQRS_SETTINGS] = {
	[CQRS_SETTING_HANDLER] = 2,
	[CQRS_SETTING_SERVER] = 3,
	[CQRS_SETTING_PARTITIONS] = 4,
	[CQRS_SETTING_ORDERING] = 5,
	[CQRS_SETTING_MAX_ATTEMPTS] = 6,
	[CQRS_SETTING_RETRY_DELAY] = 7,
	[CQRS_SETTING_MAX_RETRY_DELAY] = 8,
	[CQRS_SETTING_DELIVERY_TIMEOUT] = 9,
	[CQRS_SETTING_MAX_RETAINED_SIZE] = 10,
	[CQRS_SETTING_MAX_RETAINED_AGE] = 11,
	[CQRS_SETTING_FORMAT] = 12,
	[CQRS_SETTING_STRICT_KEY_ORDER] = 13,
	[CQRS_SETTING_TRANSACTION] = 14,
	[CQRS_SETTING_SEARCH_PATH] = 15,
	[CQRS_SETTING_RATE] = 16,
	[CQRS_SETTING_KEY_RATE] = 17,
	[CQRS_SETTING_DELIVERY] = 18,
	[CQRS_SETTING_ON_DIVERGENCE] = 19,
};

PG_FUNCTION_INFO_V1(cqrs_subscribe);
PG_FUNCTION_INFO_V1(cqrs_unsubscribe);
PG_FUNCTION_INFO_V1(cqrs_alter_subscription);

/*
 * cqrs_subscribe(subscription, topics, handler, server, start, ...)
 */
Datum
cqrs_subscribe(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	bool		or_replace = !PG_ARGISNULL(SUBSCRIBE_OR_REPLACE) &&
	PG_GETARG_BOOL(SUBSCRIBE_OR_REPLACE);
	bool		path_given = !PG_ARGISNULL(subscribe_args[CQRS_SETTING_SEARCH_PATH]);
	CqrsSettings settings;
	bool		latest;
	CqrsFunction handler = {0};
	List	   *topics;
	CqrsSubscription *old;

	cqrs_require_writable("cqrs_subscribe()");
	cqrs_name_check("subscription", name);
	topics = cqrs_topics_check(name, PG_ARGISNULL(1) ? NULL :
							   PG_GETARG_ARRAYTYPE_P(1));
	latest = parse_start(name, PG_ARGISNULL(SUBSCRIBE_START) ? "earliest" :
						 text_to_cstring(PG_GETARG_TEXT_PP(SUBSCRIBE_START)));
	cqrs_settings_read(&settings, fcinfo, subscribe_args);
	cqrs_settings_complete(&settings);
	cqrs_epoch_check_partitions(name, DatumGetInt32(settings.values[CQRS_SETTING_PARTITIONS].value));
	cqrs_subscribe_set_handler(&settings, name, &handler);
	cqrs_subscribe_check(&settings, name, NULL, &handler);
	if (cqrs_setting_is_given(&settings, CQRS_SETTING_HANDLER) &&
		cqrs_setting_is_given(&settings, CQRS_SETTING_SERVER))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have both a handler and a server",
						name),
				 errhint("Make two subscriptions.")));

	/* Somebody else may make it while we wait for the table. */
	if (cqrs_registry_subscription(name) == NULL)
		cqrs_admin_run("LOCK TABLE cqrs.subscription IN SHARE ROW EXCLUSIVE MODE", 0);
	old = cqrs_registry_subscription(name);
	if (old == NULL)
		make(&settings, name, topics, latest);
	else if (!replace(&settings, name, topics, path_given, or_replace))
		PG_RETURN_BOOL(false);
	cqrs_subscribe_warn(&settings, name, old, &handler, topics);
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_unsubscribe(subscription, if_exists)
 */
Datum
cqrs_unsubscribe(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;

	cqrs_require_writable("cqrs_unsubscribe()");
	if (cqrs_registry_subscription(name) == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 1))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("subscription \"%s\" does not exist",
										name), "cqrs_subscriptions");
	}
	subscription = cqrs_subscription_get(name);
	cqrs_subscription_require_owner(subscription);

	/* Those that nobody owns are no role's to drop. */
	if (OidIsValid(subscription->owner))
		cqrs_subscription_refuse_sagas(subscription,
									   "Use cqrs_drop_saga_queue().");
	cqrs_subscription_remove(subscription);
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_alter_subscription(subscription, topics, handler, server, ...)
 */
Datum
cqrs_alter_subscription(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_alter_subscription()");
	const char *name = subscription->name;
	CqrsSettings settings;
	CqrsFunction handler = {0};
	List	   *topics = cqrs_topics_of(subscription);
	bool		changed = own_if_nobody_does(&subscription);

	cqrs_settings_read(&settings, fcinfo, alter_args);
	if (!PG_ARGISNULL(1))
		topics = cqrs_topics_check(name, PG_GETARG_ARRAYTYPE_P(1));
	if (cqrs_setting_is_given(&settings, CQRS_SETTING_HANDLER))
	{
		/* A handler runs with the owner's privileges, not a member's. */
		if (GetUserId() != subscription->owner)
			cqrs_subscription_refuse_member(subscription,
											"to change its handler");
		if (cqrs_subscription_is_queue(subscription))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the handler of subscription \"%s\" cannot be changed",
							name),
					 errdetail("It does what its owner wants done.")));
		if (!subscription->has_handler)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("subscription \"%s\" has no handler", name),
					 errhint("Make another subscription for the handler.")));
		cqrs_subscribe_set_handler(&settings, name, &handler);
	}
	cqrs_subscribe_check(&settings, name, subscription, &handler);
	if (change(&settings, topics, subscription))
	{
		cqrs_subscribe_warn(&settings, name, subscription, &handler, topics);
		changed = true;
	}
	PG_RETURN_BOOL(changed);
}

/*
 * Make a subscription that is not there yet. The table is locked.
 */
static void
make(const CqrsSettings *settings, const char *name, List *topics,
	 bool latest)
{
	CqrsAdmin	admin;
	int32		subscription_id;

	cqrs_admin_begin(&admin);
	subscription_id = cqrs_settings_insert(settings, name, NULL);
	cqrs_admin_end(&admin);
	cqrs_owner_make_view(name, false, GetUserId());
	cqrs_subscription_start(subscription_id, topics,
							DatumGetInt32(settings->values[CQRS_SETTING_PARTITIONS].value),
							cqrs_subscribe_by_topic(settings),
							cqrs_subscribe_exactly_once(settings, NULL),
							latest);
}

/*
 * A subscription of this name is there: if it is like this, do nothing, and return
 * false; if not, change it, if that is wanted. It keeps its cursors. The
 * search_path counts if it is given, not if it is only the session's. Raises
 * 42501, 42710 or 55000.
 */
static bool
replace(CqrsSettings *settings, const char *name, List *topics,
		bool path_given, bool or_replace)
{
	CqrsSubscription *old = cqrs_subscription_get(name);
	NullableDatum path = settings->values[CQRS_SETTING_SEARCH_PATH];
	bool		changed;

	cqrs_subscription_require_owner(old);
	if (!path_given)
		settings->values[CQRS_SETTING_SEARCH_PATH].isnull = true;
	changed = cqrs_settings_differ(settings, old->subscription_id, true);
	if (!changed && cqrs_topics_are(old, topics))
		return own_if_nobody_does(&old);
	if (!or_replace)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists, and is another one",
						name),
				 errdetail_internal("%s", differences(settings, old, topics)),
				 errhint("Use or_replace => true to change it.")));
	if (cqrs_subscription_is_queue(old) ||
		old->has_handler != cqrs_setting_is_given(settings, CQRS_SETTING_HANDLER) ||
		(old->server != NULL) != cqrs_setting_is_given(settings, CQRS_SETTING_SERVER))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" cannot be replaced by one of another kind",
						name),
				 errhint("Use cqrs_unsubscribe() first, or make another subscription.")));
	(void) own_if_nobody_does(&old);
	if (GetUserId() != old->owner)
		cqrs_subscription_refuse_member(old, "to replace it");
	settings->values[CQRS_SETTING_SEARCH_PATH] = path;
	(void) change(settings, topics, old);
	return true;
}

/*
 * What a subscription is, and what it was to be, where that differs: a sentence a
 * line.
 */
static char *
differences(const CqrsSettings *settings, const CqrsSubscription *old,
			List *topics)
{
	StringInfoData lines;
	ListCell   *lc;
	int			i;

	initStringInfo(&lines);
	if (!cqrs_topics_are(old, topics))
	{
		appendStringInfoString(&lines, "Its topics are ");
		for (i = 0; i < old->ntopics; i++)
			appendStringInfo(&lines, "%s%s", i > 0 ? ", " : "",
							 old->topics[i]->name);
		if (old->ntopics == 0)
			appendStringInfoString(&lines, "none");
		foreach(lc, topics)
		{
			CqrsTopic  *topic = cqrs_registry_topic_by_id(lfirst_int(lc));

			appendStringInfo(&lines, "%s%s", lc == list_head(topics) ?
							 ", not " : ", ",
							 topic == NULL ? "one that was dropped" : topic->name);
		}
		appendStringInfoString(&lines, ".\n");
	}
	appendStringInfoString(&lines,
						   cqrs_settings_differences(settings,
													 old->subscription_id));
	if (lines.data[lines.len - 1] == '\n')
		lines.data[lines.len - 1] = '\0';
	return lines.data;
}

/*
 * Change those settings that are given, and which topics it reads. Returns whether
 * that changed anything. Raises 42501 or 55000.
 */
static bool
change(const CqrsSettings *settings, List *topics,
	   CqrsSubscription *subscription)
{
	int32		subscription_id = subscription->subscription_id;
	bool		same_topics = cqrs_topics_are(subscription, topics);
	int			partitions;
	bool		ordering;
	bool		once;
	bool		elsewhere;
	CqrsAdmin	admin;

	if (same_topics && !cqrs_settings_differ(settings, subscription_id, false))
		return false;
	if (!same_topics)
	{
		/* The owner gets what the owner may read. */
		if (GetUserId() != subscription->owner)
			cqrs_subscription_refuse_member(subscription,
											"to change its topics");
		if (subscription->runs_commands)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("subscription \"%s\" is a command queue",
							subscription->name),
					 errdetail("It has a topic of its own.")));
		cqrs_subscription_refuse_sagas(subscription,
									   "Its topics are those that sagas need.");
		cqrs_topics_set(subscription, topics);
	}
	partitions = DatumGetInt32(settings->values[CQRS_SETTING_PARTITIONS].value);
	ordering = cqrs_subscribe_by_topic(settings);
	if (subscription->routes_to_sagas && partitions > 1 &&
		cqrs_setting_is_given(settings, CQRS_SETTING_PARTITIONS))
		cqrs_subscription_refuse_sagas(subscription,
									   "It has one partition, so that a time that is over is brought behind what had been emitted before.");
	cqrs_epoch_open(subscription,
					cqrs_setting_is_given(settings, CQRS_SETTING_PARTITIONS) ?
					&partitions : NULL,
					cqrs_setting_is_given(settings, CQRS_SETTING_ORDERING) ?
					&ordering : NULL);
	once = cqrs_subscribe_exactly_once(settings, subscription);
	elsewhere = cqrs_setting_is_given(settings, CQRS_SETTING_SERVER) &&
		subscription->server != NULL &&
		strcmp(TextDatumGetCString(settings->values[CQRS_SETTING_SERVER].value),
			   subscription->server) != 0;
	if (once && (!subscription->exactly_once || elsewhere))
		cqrs_sent_begin(cqrs_subscription_lock_all(subscription), elsewhere);
	cqrs_admin_begin(&admin);
	cqrs_settings_update(settings, subscription_id);

	/* Nobody waits for what the rates before would have allowed. */
	if (cqrs_setting_is_given(settings, CQRS_SETTING_RATE))
		(void) cqrs_admin_execute("UPDATE cqrs.subscription SET retried_at = pg_catalog.clock_timestamp()"
								  " WHERE subscription_id = $1",
								  1, CQRS_INT4(subscription_id));
	cqrs_admin_end(&admin);
	if (cqrs_setting_is_given(settings, CQRS_SETTING_KEY_RATE))
		cqrs_subscription_due_anew(subscription);

	/* What could not be done before need not wait for its time. */
	if (cqrs_setting_is_given(settings, CQRS_SETTING_HANDLER) ||
		(!subscription->resends && cqrs_subscribe_resends(settings)))
		(void) cqrs_subscription_try_now(subscription, NULL);
	cqrs_subscription_wake(subscription);
	return true;
}

/*
 * Whoever may change a subscription that has no owner becomes the owner. Returns
 * whether there was none.
 */
static bool
own_if_nobody_does(CqrsSubscription **subscription)
{
	char	   *name = (*subscription)->name;

	if (OidIsValid((*subscription)->view))
		return false;
	cqrs_owner_make_view(name, false, GetUserId());
	*subscription = cqrs_subscription_get(name);
	return true;
}

/*
 * Remove a subscription, and all that it has.
 */
void
cqrs_subscription_remove(CqrsSubscription *subscription)
{
	int32		subscription_id = subscription->subscription_id;
	char	   *name = subscription->name;
	CqrsAdmin	admin;
	static const char *const tables[] = {
		"subscription_topic", "failure", "retry", "dead_letter", "subscription"
	};
	int			i;

	(void) cqrs_subscription_lock_all(subscription);

	/* Sagas that are under way are forgotten. From here on, none is started. */
	if (subscription->runs_sagas)
	{
		cqrs_admin_run("LOCK TABLE cqrs.saga IN SHARE ROW EXCLUSIVE MODE", 0);
		for (i = 0; i < subscription->ntopics; i++)
			cqrs_admin_run("DELETE FROM cqrs.saga WHERE topic_id = $1",
						   1, CQRS_INT4(subscription->topics[i]->topic_id));
	}

	/*
	 * Its topic goes with it. Lock the tables in the same order as enqueuing
	 * does.
	 */
	if (cqrs_subscription_is_queue(subscription))
	{
		cqrs_admin_run("LOCK TABLE cqrs.subscription IN ROW EXCLUSIVE MODE", 0);
		for (i = 0; i < subscription->ntopics; i++)
			if (subscription->topics[i]->runner == subscription)
				cqrs_topic_drop(cqrs_topic_lock_to_drop(subscription->topics[i]->name));
	}
	cqrs_admin_begin(&admin);
	for (i = 0; i < lengthof(tables); i++)
		cqrs_admin_execute(psprintf("DELETE FROM cqrs.%s WHERE subscription_id = $1",
									tables[i]),
						   1, CQRS_INT4(subscription_id));
	cqrs_admin_end(&admin);
	cqrs_owner_drop_view(name);
	cqrs_cursor_delete_all(subscription_id);
}

static bool
parse_start(const char *subscription, const char *start)
{
	if (pg_strcasecmp(start, "latest") == 0)
		return true;
	if (pg_strcasecmp(start, "earliest") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot start at \"%s\"",
						subscription, start),
				 errhint("Valid values are \"earliest\" and \"latest\".")));
	return false;
}
