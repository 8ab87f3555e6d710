/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *	  Subscriptions made, changed and removed, and their settings.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/interval.h"
#include "broker/message.h"
#include "broker/server.h"
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
#include "subscription/subscription.h"

static void check_settings(FunctionCallInfo fcinfo, const char *name,
						   int first_arg, bool null_allowed, Oid *types,
						   Datum *values, char *nulls);
static char *check_handler(const char *subscription, text *handler,
						   List *topics);
static bool takes(const void *arg, Oid argtype);
static void warn_of_payloads(const CqrsFunction *function, List *topics);
static List *topic_ids(const CqrsSubscription *subscription);
static void check_broker(FunctionCallInfo fcinfo, const char *name,
						 int first_arg, const CqrsSubscription *old,
						 Oid *types, Datum *values, char *nulls);
static void check_transaction(FunctionCallInfo fcinfo, const char *name,
							  int arg, const CqrsSubscription *old,
							  Oid *type, Datum *value, char *null);
static List *check_topics(const char *subscription, ArrayType *array);
static bool parse_start(const char *subscription, const char *start);

/*
 * The settings of a subscription that are arguments of cqrs_subscribe() and
 * cqrs_alter_subscription(), in their order there.
 */
static const struct
{
	const char *name;
	Oid type;
}			settings[] =

{
	{"max_attempts", INT4OID},
	{"retry_delay", INTERVALOID},
	{"max_retry_delay", INTERVALOID},
	{"handler_timeout", INTERVALOID},
	{"max_retained_size", INT8OID},
	{"max_retained_age", INTERVALOID},
};

#define SETTINGS	lengthof(settings)

/* Behind them come server, format and strict_key_order, and transaction. */
#define BROKER_SETTINGS	3
#define ALL_SETTINGS	(SETTINGS + BROKER_SETTINGS + 1)

PG_FUNCTION_INFO_V1(cqrs_subscribe);
PG_FUNCTION_INFO_V1(cqrs_unsubscribe);
PG_FUNCTION_INFO_V1(cqrs_alter_subscription);

/*
 * cqrs_subscribe(subscription, topics, handler, start, partitions, ...)
 */
Datum
cqrs_subscribe(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	bool		latest;
	int			partitions;
	List	   *topics;
	CqrsAdmin	admin;
	Oid			types[3 + ALL_SETTINGS] = {TEXTOID, TEXTOID, INT4OID};
	Datum		values[3 + ALL_SETTINGS];
	char		nulls[3 + ALL_SETTINGS];
	int32		subscription_id;

	cqrs_require_writable("cqrs_subscribe()");
	cqrs_name_check("subscription", name);
	topics = check_topics(name, PG_ARGISNULL(1) ? NULL :
						  PG_GETARG_ARRAYTYPE_P(1));
	latest = parse_start(name, PG_ARGISNULL(3) ? NULL :
						 text_to_cstring(PG_GETARG_TEXT_PP(3)));
	partitions = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
	cqrs_epoch_check_partitions(name, partitions);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(name);
	if (PG_ARGISNULL(2))
		nulls[1] = 'n';
	else
		values[1] = CStringGetTextDatum(check_handler(name, PG_GETARG_TEXT_PP(2), topics));
	values[2] = Int32GetDatum(partitions);
	check_settings(fcinfo, name, 5, false, types + 3, values + 3, nulls + 3);
	check_broker(fcinfo, name, 5 + SETTINGS, NULL, types + 3 + SETTINGS,
				 values + 3 + SETTINGS, nulls + 3 + SETTINGS);
	check_transaction(fcinfo, name, 5 + SETTINGS + BROKER_SETTINGS, NULL,
					  &types[2 + ALL_SETTINGS], &values[2 + ALL_SETTINGS],
					  &nulls[2 + ALL_SETTINGS]);
	if (!PG_ARGISNULL(2) && !PG_ARGISNULL(5 + SETTINGS))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have both a handler and a server",
						name),
				 errhint("Make two subscriptions.")));

	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("LOCK TABLE cqrs.subscription IN SHARE ROW EXCLUSIVE MODE");
	if (cqrs_registry_subscription(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists", name)));
	cqrs_admin_execute_args("INSERT INTO cqrs.subscription (subscription, handler, partitions,"
							" max_attempts, retry_delay, max_retry_delay, handler_timeout,"
							" max_retained_size, max_retained_age, server, format, strict_key_order, transaction)"
							" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING subscription_id",
							3 + ALL_SETTINGS, types, values, nulls);
	subscription_id = DatumGetInt32(cqrs_admin_result());
	cqrs_admin_end(&admin);
	cqrs_owner_make_view(name, GetUserId());
	cqrs_subscription_start(subscription_id, topics, partitions, latest);
	PG_RETURN_VOID();
}

/*
 * cqrs_unsubscribe(subscription)
 */
Datum
cqrs_unsubscribe(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_unsubscribe()");
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
	if (subscription->runs_commands)
	{
		cqrs_admin_run("LOCK TABLE cqrs.subscription IN ROW EXCLUSIVE MODE", 0);
		for (i = 0; i < subscription->ntopics; i++)
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
	PG_RETURN_VOID();
}

/*
 * cqrs_alter_subscription(subscription, handler, max_attempts, ...)
 */
Datum
cqrs_alter_subscription(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_alter_subscription()");
	CqrsAdmin	admin;
	Oid			types[2 + ALL_SETTINGS] = {INT4OID, TEXTOID};
	Datum		values[2 + ALL_SETTINGS];
	char		nulls[2 + ALL_SETTINGS];

	/* Whoever may do this although there is no owner becomes the owner. */
	if (!OidIsValid(subscription->view))
	{
		cqrs_owner_make_view(subscription->name, GetUserId());
		subscription = cqrs_subscription_get(subscription->name);
	}
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(subscription->subscription_id);
	if (PG_ARGISNULL(1))
		nulls[1] = 'n';
	else
	{
		/* A handler runs with the owner's privileges, not a member's. */
		if (GetUserId() != subscription->owner)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of subscription \"%s\" to change its handler",
							subscription->name)));
		if (!subscription->has_handler)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("subscription \"%s\" has no handler",
							subscription->name),
					 errhint("Make another subscription for the handler.")));
		values[1] = CStringGetTextDatum(check_handler(subscription->name,
													  PG_GETARG_TEXT_PP(1),
													  topic_ids(subscription)));
	}
	check_settings(fcinfo, subscription->name, 2, true, types + 2, values + 2,
				   nulls + 2);
	check_broker(fcinfo, subscription->name, 2 + SETTINGS, subscription,
				 types + 2 + SETTINGS, values + 2 + SETTINGS,
				 nulls + 2 + SETTINGS);
	check_transaction(fcinfo, subscription->name,
					  2 + SETTINGS + BROKER_SETTINGS, subscription,
					  &types[1 + ALL_SETTINGS], &values[1 + ALL_SETTINGS],
					  &nulls[1 + ALL_SETTINGS]);
	if (!PG_ARGISNULL(2 + ALL_SETTINGS))
		cqrs_epoch_open(subscription, PG_GETARG_INT32(2 + ALL_SETTINGS));

	cqrs_admin_begin(&admin);
	cqrs_admin_execute_args("UPDATE cqrs.subscription SET handler = coalesce($2, handler),"
							" max_attempts = coalesce($3, max_attempts),"
							" retry_delay = coalesce($4, retry_delay),"
							" max_retry_delay = coalesce($5, max_retry_delay),"
							" handler_timeout = coalesce($6, handler_timeout),"
							" max_retained_size = coalesce($7, max_retained_size),"
							" max_retained_age = coalesce($8, max_retained_age),"
							" server = coalesce($9, server),"
							" format = coalesce($10, format),"
							" strict_key_order = coalesce($11, strict_key_order),"
							" transaction = coalesce($12, transaction)"
							" WHERE subscription_id = $1",
							2 + ALL_SETTINGS, types, values, nulls);
	cqrs_admin_end(&admin);
	cqrs_subscription_wake(subscription);
	PG_RETURN_VOID();
}

/*
 * Check the settings among the arguments, and make them parameters of a
 * statement. Raises 22004 for NULL if that is not allowed, 22023 for a
 * negative value.
 */
static void
check_settings(FunctionCallInfo fcinfo, const char *name, int first_arg,
			   bool null_allowed, Oid *types, Datum *values, char *nulls)
{
	int			i;

	for (i = 0; i < SETTINGS; i++)
	{
		NullableDatum arg = fcinfo->args[first_arg + i];
		bool		negative = false;

		types[i] = settings[i].type;
		values[i] = arg.value;
		nulls[i] = arg.isnull ? 'n' : ' ';
		if (!null_allowed)
			cqrs_arg_required(fcinfo, first_arg + i, settings[i].name,
							  "subscription", name);
		if (arg.isnull)
			continue;
		switch (types[i])
		{
			case INT4OID:
				negative = DatumGetInt32(arg.value) < 0;
				break;
			case INT8OID:
				negative = DatumGetInt64(arg.value) < 0;
				break;
			case INTERVALOID:
				negative = cqrs_interval_is_negative(arg.value);
				break;
		}
		if (negative)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s of subscription \"%s\" must not be negative",
							settings[i].name, name)));
	}
}

/*
 * Find the function that is to be the handler, which may be the current user's, of
 * a subscription to these topics. Returns the text it is registered by. Raises
 * what cqrs_function_look_up() does, and 42501.
 */
static char *
check_handler(const char *subscription, text *handler, List *topics)
{
	CqrsPlace	place = {
		.what = "a handler of a subscription",
		.wanted = "The handler of a subscription has one argument, cqrs_event, jsonb or the composite type of payloads, and returns void or one value.",
		.takes = takes
	};
	CqrsFunction function;

	cqrs_function_look_up(text_to_cstring(handler), &place, &function);
	cqrs_subscription_check_handler_owner(subscription, GetUserId(),
										  function.signature, function.owner);
	cqrs_subscription_require_login(subscription, GetUserId());
	warn_of_payloads(&function, topics);
	return function.signature;
}

/*
 * May a handler have an argument of this type: an event, or its payload?
 */
static bool
takes(const void *arg, Oid argtype)
{
	return argtype == JSONBOID ||
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

	if (function->argtype == JSONBOID || cqrs_event_is_type(function->argtype))
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

static List *
topic_ids(const CqrsSubscription *subscription)
{
	List	   *ids = NIL;
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		ids = lappend_int(ids, subscription->topics[i]->topic_id);
	return ids;
}

/*
 * Check the arguments server, format and strict_key_order of a new
 * subscription, or of a change to an old one, and make them parameters of a
 * statement. Raises what cqrs_broker_server() does, and 22004, 22023, 42501 or
 * 55000.
 */
static void
check_broker(FunctionCallInfo fcinfo, const char *name, int first_arg,
			 const CqrsSubscription *old, Oid *types, Datum *values,
			 char *nulls)
{
	NullableDatum *args = &fcinfo->args[first_arg];
	bool		has_server = !args[0].isnull || (old && old->server);
	CqrsFormat	format;
	int			i;

	types[0] = types[1] = TEXTOID;
	types[2] = BOOLOID;
	for (i = 0; i < BROKER_SETTINGS; i++)
	{
		values[i] = args[i].value;
		nulls[i] = args[i].isnull ? 'n' : ' ';
	}
	if (old == NULL)
		cqrs_arg_required(fcinfo, first_arg + 2, "strict_key_order",
						  "subscription", name);
	if (old != NULL && old->server == NULL &&
		!(args[0].isnull && args[1].isnull && args[2].isnull))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has no server", name),
				 errhint("Make another subscription for the server.")));
	if (!has_server &&
		(!args[1].isnull || (!args[2].isnull && DatumGetBool(args[2].value))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no server", name),
				 errdetail("The format of messages and strict_key_order are for what goes to a broker.")));
	if (!args[1].isnull &&
		!cqrs_format_parse(TextDatumGetCString(args[1].value), &format))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have format \"%s\"",
						name, TextDatumGetCString(args[1].value)),
				 errhint("Valid values are \"cqrs\", \"cloudevents\" and \"raw\".")));
	if (args[0].isnull)
		return;

	/* The broker gets what the owner may read. */
	if (old != NULL && GetUserId() != old->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\" to change its server",
						name)));
	cqrs_subscription_require_login(name, GetUserId());
	(void) cqrs_broker_server(TextDatumGetCString(args[0].value), name,
							  GetUserId());
	if (old == NULL && args[1].isnull)
	{
		values[1] = CStringGetTextDatum(cqrs_format_name(CQRS_FORMAT_CQRS));
		nulls[1] = ' ';
	}
}

/*
 * Check the argument transaction of a new subscription, or of a change to an
 * old one, and make it a parameter of a statement. Raises 22004, 22023 or
 * 55000.
 */
static void
check_transaction(FunctionCallInfo fcinfo, const char *name, int arg,
				  const CqrsSubscription *old, Oid *type, Datum *value,
				  char *null)
{
	char	   *transaction;

	*type = TEXTOID;
	*value = PG_GETARG_DATUM(arg);
	*null = PG_ARGISNULL(arg) ? 'n' : ' ';
	if (old == NULL)
		cqrs_arg_required(fcinfo, arg, "transaction", "subscription", name);
	if (PG_ARGISNULL(arg))
		return;
	transaction = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	if (strcmp(transaction, "batch") != 0 && strcmp(transaction, "event") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have transaction \"%s\"",
						name, transaction),
				 errhint("Valid values are \"batch\" and \"event\".")));
	if (old != NULL ? !old->has_handler :
		PG_ARGISNULL(2) && strcmp(transaction, "event") == 0)
		ereport(ERROR,
				(errcode(old != NULL ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no handler", name),
				 errdetail("The transaction is for what a handler does.")));
}

/*
 * The ids of the topics to subscribe to. Raises 22023 if there are none,
 * 42704, or 42501.
 */
static List *
check_topics(const char *subscription, ArrayType *array)
{
	List	   *ids = NIL;
	Datum	   *names = NULL;
	bool	   *nulls = NULL;
	int			nnames = 0;
	int			i;

	if (array != NULL)
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
						  &names, &nulls, &nnames);
	if (nnames == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no topics", subscription),
				 errhint("Name at least one topic.")));
	for (i = 0; i < nnames; i++)
	{
		CqrsTopic  *topic;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("topic name must not be null")));
		topic = cqrs_topic_get(TextDatumGetCString(names[i]));
		cqrs_topic_require(topic, ACL_SELECT);
		ids = list_append_unique_int(ids, topic->topic_id);
	}
	return ids;
}

static bool
parse_start(const char *subscription, const char *start)
{
	if (start != NULL && strcmp(start, "latest") == 0)
		return true;
	if (start == NULL || strcmp(start, "earliest") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot start at \"%s\"",
						subscription, start ? start : "NULL"),
				 errhint("Valid values are \"earliest\" and \"latest\".")));
	return false;
}
