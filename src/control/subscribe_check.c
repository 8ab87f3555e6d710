/*-------------------------------------------------------------------------
 *
 * subscribe_check.c
 *	  Whether a subscription can have the settings that are wanted: those that are
 *	  given for a new one, and changes to an old one.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "base/rate.h"
#include "broker/message.h"
#include "broker/server.h"
#include "control/subscribe_check.h"
#include "extension/catalog.h"
#include "log/event.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "subscription/search_path.h"
#include "subscription/subscription.h"

static void check_handler(const char *subscription, text *handler,
						  CqrsFunction *function);
static bool takes(const void *arg, Oid argtype);
static void check_broker(CqrsSettings *settings, const char *name,
						 const CqrsSubscription *old);
static void check_delivery(CqrsSettings *settings, const char *name,
						   const CqrsSubscription *old);
static void check_divergence(CqrsSettings *settings, const char *name,
							 bool exactly_once);
static void check_ordering(const CqrsSettings *settings, const char *name);
static void check_transaction(const CqrsSettings *settings, const char *name,
							  const CqrsSubscription *old);
static void check_rates(const CqrsSettings *settings, const char *name,
						const CqrsSubscription *old);
static int64 parse_rate(const CqrsSettings *settings, CqrsSetting setting,
						const char *setting_name, const char *name);
static void set_search_path(CqrsSettings *settings, const char *name,
							const CqrsSubscription *old, Oid handler);
static void warn_of_payloads(const CqrsFunction *function, List *topics);

/*
 * The handler among the settings, if it is given: as it is registered. *function
 * gets it.
 */
void
cqrs_subscribe_set_handler(CqrsSettings *settings, const char *name, CqrsFunction *function)
{
	NullableDatum *handler = &settings->values[CQRS_SETTING_HANDLER];

	if (handler->isnull)
		return;
	check_handler(name, DatumGetTextPP(handler->value), function);
	handler->value = CStringGetTextDatum(function->signature);
}

/*
 * Check the settings of a new subscription, or of a change to an old one, and
 * complete those that depend on others. *handler is what
 * cqrs_subscribe_set_handler() has found, or zeroed. Raises 22023, 0A000, 42501 or
 * 55000, and what cqrs_settings_check() and cqrs_broker_server() do.
 */
void
cqrs_subscribe_check(CqrsSettings *settings, const char *name,
					 const CqrsSubscription *old, const CqrsFunction *handler)
{
	cqrs_settings_check(settings, name);
	check_broker(settings, name, old);
	check_delivery(settings, name, old);
	check_ordering(settings, name);
	check_transaction(settings, name, old);
	check_rates(settings, name, old);
	set_search_path(settings, name, old, handler->funcid);
}

/*
 * What may be meant, but is dangerous. Not where nothing was changed: whoever runs
 * a migration once more has read it.
 */
void
cqrs_subscribe_warn(const CqrsSettings *settings, const char *name,
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
 * Is ordering "topic" given?
 */
bool
cqrs_subscribe_by_topic(const CqrsSettings *settings)
{
	NullableDatum ordering = settings->values[CQRS_SETTING_ORDERING];

	return !ordering.isnull &&
		strcmp(TextDatumGetCString(ordering.value), "topic") == 0;
}

/*
 * Is what has diverged to be sent again from now on?
 */
bool
cqrs_subscribe_resends(const CqrsSettings *settings)
{
	NullableDatum divergence = settings->values[CQRS_SETTING_ON_DIVERGENCE];

	return !divergence.isnull &&
		strcmp(TextDatumGetCString(divergence.value), "resend") == 0;
}

/*
 * Is it, or will it be, delivered exactly once?
 */
bool
cqrs_subscribe_exactly_once(const CqrsSettings *settings, const CqrsSubscription *old)
{
	NullableDatum delivery = settings->values[CQRS_SETTING_DELIVERY];

	return delivery.isnull ? old != NULL && old->exactly_once :
		strcmp(TextDatumGetCString(delivery.value), "exactly_once") == 0;
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
	bool		once = cqrs_subscribe_exactly_once(settings, old);
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
	if (cqrs_subscribe_resends(settings))
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
		topic_ordering = cqrs_subscribe_by_topic(settings);
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
