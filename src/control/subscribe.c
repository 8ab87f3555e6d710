/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *	  Subscriptions made, changed and removed.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/rate.h"
#include "broker/message.h"
#include "broker/server.h"
#include "control/operation.h"
#include "control/subscribe.h"
#include "control/topics.h"
#include "delivery/broker_sent.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/topic.h"
#include "log/topic_drop.h"
#include "registry/lookup.h"
#include "registry/owner.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "subscription/epoch.h"
#include "subscription/search_path.h"
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
static void set_handler(CqrsSettings *settings, const char *name,
						CqrsFunction *function);
static void check_handler(const char *subscription, text *handler,
						  CqrsFunction *function);
static void warn(const CqrsSettings *settings, const char *name,
				 const CqrsSubscription *old, const CqrsFunction *function,
				 List *topics);
static bool takes(const void *arg, Oid argtype);
static void warn_of_payloads(const CqrsFunction *function, List *topics);
static void check_broker(CqrsSettings *settings, const char *name,
						 const CqrsSubscription *old);
static void check_delivery(CqrsSettings *settings, const char *name,
						   const CqrsSubscription *old);
static void check_divergence(CqrsSettings *settings, const char *name,
							 bool exactly_once);
static bool resends(const CqrsSettings *settings);
static bool exactly_once(const CqrsSettings *settings,
						 const CqrsSubscription *old);
static void check_ordering(const CqrsSettings *settings, const char *name);
static bool by_topic(const CqrsSettings *settings);
static void check_transaction(const CqrsSettings *settings, const char *name,
							  const CqrsSubscription *old);
static void check_rates(const CqrsSettings *settings, const char *name,
						const CqrsSubscription *old);
static int64 parse_rate(const CqrsSettings *settings, CqrsSetting setting,
						const char *setting_name, const char *name);
static void set_search_path(CqrsSettings *settings, const char *name,
							const CqrsSubscription *old, Oid handler);
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
	set_handler(&settings, name, &handler);
	cqrs_settings_check(&settings, name);
	check_broker(&settings, name, NULL);
	check_delivery(&settings, name, NULL);
	check_ordering(&settings, name);
	check_transaction(&settings, name, NULL);
	check_rates(&settings, name, NULL);
	set_search_path(&settings, name, NULL, handler.funcid);
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
	warn(&settings, name, old, &handler, topics);
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
		set_handler(&settings, name, &handler);
	}
	cqrs_settings_check(&settings, name);
	check_broker(&settings, name, subscription);
	check_delivery(&settings, name, subscription);
	check_ordering(&settings, name);
	check_transaction(&settings, name, subscription);
	check_rates(&settings, name, subscription);
	set_search_path(&settings, name, subscription, handler.funcid);
	if (change(&settings, topics, subscription))
	{
		warn(&settings, name, subscription, &handler, topics);
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
							by_topic(settings), exactly_once(settings, NULL),
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
	ordering = by_topic(settings);
	if (subscription->routes_to_sagas && partitions > 1 &&
		cqrs_setting_is_given(settings, CQRS_SETTING_PARTITIONS))
		cqrs_subscription_refuse_sagas(subscription,
									   "It has one partition, so that a time that is over is brought behind what had been emitted before.");
	cqrs_epoch_open(subscription,
					cqrs_setting_is_given(settings, CQRS_SETTING_PARTITIONS) ?
					&partitions : NULL,
					cqrs_setting_is_given(settings, CQRS_SETTING_ORDERING) ?
					&ordering : NULL);
	once = exactly_once(settings, subscription);
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
		(!subscription->resends && resends(settings)))
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

/*
 * The handler among the settings, if it is given: as it is registered. *function
 * gets it.
 */
static void
set_handler(CqrsSettings *settings, const char *name, CqrsFunction *function)
{
	NullableDatum *handler = &settings->values[CQRS_SETTING_HANDLER];

	if (handler->isnull)
		return;
	check_handler(name, DatumGetTextPP(handler->value), function);
	handler->value = CStringGetTextDatum(function->signature);
}

/*
 * Find the function that is to be the handler of a subscription, which may be the
 * current user's. Raises what cqrs_function_look_up() does, and 42501.
 */
static void
check_handler(const char *subscription, text *handler, CqrsFunction *function)
{
	CqrsPlace	place = {
		.what = "a handler of a subscription",
		.wanted = "The handler of a subscription has one argument, cqrs_event, cqrs_event[], jsonb or the composite type of payloads, and returns void or one value.",
		.takes = takes
	};

	cqrs_function_look_up(text_to_cstring(handler), &place, function);
	cqrs_subscription_check_handler_owner(subscription, GetUserId(),
										  function->signature, function->owner);
	cqrs_subscription_require_login(subscription, GetUserId());
}

/*
 * What may be meant, but is dangerous. Not where nothing was changed: whoever runs
 * a migration once more has read it.
 */
static void
warn(const CqrsSettings *settings, const char *name,
	 const CqrsSubscription *old, const CqrsFunction *function, List *topics)
{
	bool		has_function = OidIsValid(function->funcid);

	if (has_function)
		warn_of_payloads(function, topics);
	if (cqrs_setting_is_given(settings, CQRS_SETTING_SEARCH_PATH))
		cqrs_search_path_warn(name, old != NULL ? old->owner : GetUserId(),
							  TextDatumGetCString(settings->values[CQRS_SETTING_SEARCH_PATH].value),
							  function->funcid);
	else if (has_function)
		cqrs_search_path_warn(name, old->owner, old->search_path,
							  function->funcid);
}

/*
 * May a handler have an argument of this type: an event, several, or its payload?
 */
static bool
takes(const void *arg, Oid argtype)
{
	return argtype == JSONBOID || cqrs_event_is_array(argtype) ||
		(cqrs_payload_type_is_composite(argtype) &&
		 !cqrs_type_is(argtype, "cqrs_request"));
}

/*
 * Warn if an event is registered on these topics, now, whose payloads are of
 * another composite type than the one that the handler takes.
 */
static void
warn_of_payloads(const CqrsFunction *function, List *topics)
{
	HASH_SEQ_STATUS status;
	CqrsEventType *event_type;
	CqrsEventType *odd = NULL;

	if (function->argtype == JSONBOID ||
		cqrs_event_is_type(function->argtype) ||
		cqrs_event_is_array(function->argtype))
		return;
	cqrs_registry_event_types(&status);
	while ((event_type = hash_seq_search(&status)) != NULL)
		if (event_type->topic != NULL &&
			list_member_int(topics, event_type->topic->topic_id) &&
			event_type->payload_type != JSONBOID &&
			event_type->payload_type != function->argtype &&
			(odd == NULL || strcmp(event_type->name, odd->name) < 0))
			odd = event_type;

	if (odd != NULL)
		ereport(WARNING,
				(errmsg("handler %s does not take payloads of event \"%s\"",
						function->signature, odd->name),
				 errdetail("They are of type %s.",
						   format_type_extended(odd->payload_type, -1,
												FORMAT_TYPE_ALLOW_INVALID)),
				 errhint("An event whose payload does not convert becomes a dead letter at once. A handler may take jsonb, or cqrs_event.")));
}

/*
 * Check server, format and strict_key_order of a new subscription, or of a change
 * to an old one. Raises what cqrs_broker_server() does, and 22023, 42501 or 55000.
 */
static void
check_broker(CqrsSettings *settings, const char *name,
			 const CqrsSubscription *old)
{
	NullableDatum server = settings->values[CQRS_SETTING_SERVER];
	NullableDatum format = settings->values[CQRS_SETTING_FORMAT];
	NullableDatum strict = settings->values[CQRS_SETTING_STRICT_KEY_ORDER];
	bool		has_server = !server.isnull || (old && old->server);
	CqrsFormat	parsed;

	if (old != NULL && old->server == NULL &&
		!(server.isnull && format.isnull && strict.isnull))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no server", name),
				 errhint("Make another subscription for the server.")));
	if (!has_server &&
		(!format.isnull || (!strict.isnull && DatumGetBool(strict.value))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no server", name),
				 errdetail("The format of messages and strict_key_order are for what goes to a broker.")));
	if (!format.isnull &&
		!cqrs_format_parse(TextDatumGetCString(format.value), &parsed))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have format \"%s\"",
						name, TextDatumGetCString(format.value)),
				 errhint("Valid values are \"cqrs\", \"cloudevents\" and \"raw\".")));
	if (server.isnull)
		return;

	/* The broker gets what the owner may read. */
	if (old != NULL && GetUserId() != old->owner)
		cqrs_subscription_refuse_member(old, "to change its server");
	cqrs_subscription_require_login(name, GetUserId());
	(void) cqrs_broker_server(TextDatumGetCString(server.value), name,
							  GetUserId());
	if (old == NULL && format.isnull)
		cqrs_setting_set(settings, CQRS_SETTING_FORMAT,
						 CStringGetTextDatum(cqrs_format_name(CQRS_FORMAT_CQRS)));
}

/*
 * Check delivery and on_divergence of a new subscription, or of a change to an old
 * one, and whether its server can do that. Raises what cqrs_broker_server() does,
 * and 22023, 0A000 or 55000.
 */
static void
check_delivery(CqrsSettings *settings, const char *name,
			   const CqrsSubscription *old)
{
	NullableDatum delivery = settings->values[CQRS_SETTING_DELIVERY];
	NullableDatum server = settings->values[CQRS_SETTING_SERVER];
	char	   *value = delivery.isnull ? NULL :
	TextDatumGetCString(delivery.value);
	char	   *server_name = !server.isnull ? TextDatumGetCString(server.value) :
	old != NULL ? old->server : NULL;
	bool		once = exactly_once(settings, old);
	const CqrsBrokerModule *module;

	if (value != NULL && !once && strcmp(value, "at_least_once") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have delivery \"%s\"",
						name, value),
				 errhint("Valid values are \"at_least_once\" and \"exactly_once\".")));
	if (value != NULL && server_name == NULL && (old != NULL || once))
		ereport(ERROR,
				(errcode(old != NULL ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no server", name),
				 errdetail("The delivery is that to a broker. A handler gets each event once, in its transaction.")));
	check_divergence(settings, name, once);
	if (!once || (value == NULL && server.isnull))
		return;
	module = cqrs_broker_server(server_name, name,
								old != NULL ? old->owner : GetUserId())->module;
	if (module->fence == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("subscription \"%s\" cannot be delivered exactly once",
						name),
				 errdetail("%s, of server \"%s\", has no transactions, or its module does not use them.",
						   module->name, server_name),
				 errhint("Have it delivered at least once, and let consumers leave out event ids that they have seen.")));
}

/*
 * Check on_divergence; if nothing can diverge any more, it is as usual. Raises
 * 22023.
 */
static void
check_divergence(CqrsSettings *settings, const char *name, bool exactly_once)
{
	NullableDatum divergence = settings->values[CQRS_SETTING_ON_DIVERGENCE];
	char	   *value = divergence.isnull ? NULL :
	TextDatumGetCString(divergence.value);

	if (value != NULL && strcmp(value, "stop") != 0 &&
		strcmp(value, "resend") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have on_divergence \"%s\"",
						name, value),
				 errhint("Valid values are \"stop\" and \"resend\".")));
	if (exactly_once)
		return;
	if (resends(settings))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have on_divergence \"resend\"",
						name),
				 errdetail("It is not delivered exactly once, so what is in doubt is sent again in any case."),
				 errhint("It is for subscriptions with delivery => 'exactly_once'.")));
	cqrs_setting_set(settings, CQRS_SETTING_ON_DIVERGENCE,
					 CStringGetTextDatum("stop"));
}

/*
 * Is what has diverged to be sent again from now on?
 */
static bool
resends(const CqrsSettings *settings)
{
	NullableDatum divergence = settings->values[CQRS_SETTING_ON_DIVERGENCE];

	return !divergence.isnull &&
		strcmp(TextDatumGetCString(divergence.value), "resend") == 0;
}

/*
 * Is it, or will it be, delivered exactly once?
 */
static bool
exactly_once(const CqrsSettings *settings, const CqrsSubscription *old)
{
	NullableDatum delivery = settings->values[CQRS_SETTING_DELIVERY];

	return delivery.isnull ? old != NULL && old->exactly_once :
		strcmp(TextDatumGetCString(delivery.value), "exactly_once") == 0;
}

/*
 * Raises 22023.
 */
static void
check_ordering(const CqrsSettings *settings, const char *name)
{
	NullableDatum ordering = settings->values[CQRS_SETTING_ORDERING];

	if (!ordering.isnull &&
		strcmp(TextDatumGetCString(ordering.value), "key") != 0 &&
		strcmp(TextDatumGetCString(ordering.value), "topic") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have ordering \"%s\"",
						name, TextDatumGetCString(ordering.value)),
				 errhint("Valid values are \"key\" and \"topic\".")));
}

static bool
by_topic(const CqrsSettings *settings)
{
	NullableDatum ordering = settings->values[CQRS_SETTING_ORDERING];

	return !ordering.isnull &&
		strcmp(TextDatumGetCString(ordering.value), "topic") == 0;
}

/*
 * Check transaction of a new subscription, or of a change to an old one. Raises
 * 22023 or 55000.
 */
static void
check_transaction(const CqrsSettings *settings, const char *name,
				  const CqrsSubscription *old)
{
	char	   *transaction;
	bool		has_handler = old != NULL ? old->has_handler :
	cqrs_setting_is_given(settings, CQRS_SETTING_HANDLER);

	if (!cqrs_setting_is_given(settings, CQRS_SETTING_TRANSACTION))
		return;
	transaction =
		TextDatumGetCString(settings->values[CQRS_SETTING_TRANSACTION].value);
	if (strcmp(transaction, "batch") != 0 && strcmp(transaction, "event") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have transaction \"%s\"",
						name, transaction),
				 errhint("Valid values are \"batch\" and \"event\".")));
	if (!has_handler && (old != NULL || strcmp(transaction, "event") == 0))
		ereport(ERROR,
				(errcode(old != NULL ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no handler", name),
				 errdetail("The transaction is for what a handler does.")));
}

/*
 * Check the rates of a new subscription, or of a change to an old one. Raises 22023
 * or 55000.
 */
static void
check_rates(const CqrsSettings *settings, const char *name,
			const CqrsSubscription *old)
{
	bool		has_handler = old != NULL ? old->has_handler :
	cqrs_setting_is_given(settings, CQRS_SETTING_HANDLER);
	int			code = old != NULL ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
	ERRCODE_INVALID_PARAMETER_VALUE;
	int64		interval = 0;
	int64		key_interval = old != NULL ? old->key_interval : 0;
	bool		topic_ordering = old == NULL ? false :
	old->next_partitions != 0 ? old->next_by_topic : old->by_topic;

	if (cqrs_setting_is_given(settings, CQRS_SETTING_RATE))
		interval = parse_rate(settings, CQRS_SETTING_RATE, "rate", name);
	if (cqrs_setting_is_given(settings, CQRS_SETTING_KEY_RATE))
		key_interval = parse_rate(settings, CQRS_SETTING_KEY_RATE, "key_rate",
								  name);
	if (!has_handler && (interval != 0 || key_interval != 0))
		ereport(ERROR,
				(errcode(code),
				 errmsg("subscription \"%s\" has no handler", name),
				 errdetail("The rate is that of calls of a handler.")));
	if (cqrs_setting_is_given(settings, CQRS_SETTING_ORDERING))
		topic_ordering = by_topic(settings);
	if (topic_ordering && key_interval != 0)
		ereport(ERROR,
				(errcode(code),
				 errmsg("subscription \"%s\" cannot have a key_rate with ordering \"topic\"",
						name),
				 errdetail("Events of all keys would wait for the one whose key has to wait."),
				 errhint("Take ordering \"key\", or a rate of the whole subscription.")));
}

/*
 * What a rate that is given means; see cqrs_rate_parse(). Raises 22023.
 */
static int64
parse_rate(const CqrsSettings *settings, CqrsSetting setting,
		   const char *setting_name, const char *name)
{
	char	   *rate = TextDatumGetCString(settings->values[setting].value);
	int64		interval;

	if (!cqrs_rate_parse(rate, &interval))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have %s \"%s\"",
						name, setting_name, rate),
				 errhint("It looks like 10/s, 100/min or 1000/h, with up to 1000000; 0 is no limit.")));
	return interval;
}

/*
 * Check search_path of a new subscription, or of a change to an old one. Not
 * given, a new one's is that of the session. Raises 22023 or 55000.
 */
static void
set_search_path(CqrsSettings *settings, const char *name,
				const CqrsSubscription *old, Oid handler)
{
	bool		given = cqrs_setting_is_given(settings,
											  CQRS_SETTING_SEARCH_PATH);
	bool		has_handler = old != NULL ? old->has_handler :
	OidIsValid(handler);
	char	   *path;

	if (given && !has_handler)
		ereport(ERROR,
				(errcode(old != NULL ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no handler", name),
				 errdetail("The search_path is for what a handler calls.")));
	if (given)
		path = TextDatumGetCString(settings->values[CQRS_SETTING_SEARCH_PATH].value);
	else if (old != NULL || !OidIsValid(handler))
		return;
	else
		path = cqrs_search_path_now();
	cqrs_search_path_check(path);
	cqrs_setting_set(settings, CQRS_SETTING_SEARCH_PATH,
					 CStringGetTextDatum(path));
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
