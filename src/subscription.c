/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  Subscriptions: created, changed, stopped, moved, removed.
 *
 * A subscription starts with a cursor for each partition: at the snapshot that
 * shows nothing, or at one taken now. See tick.c for why the latter needs no
 * lock.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "catalog.h"
#include "cursor.h"
#include "handler.h"
#include "registry.h"
#include "retry.h"
#include "shmem.h"
#include "subscription.h"
#include "topic.h"
#include "window.h"

static void check_settings(FunctionCallInfo fcinfo, const char *name,
						   int first_arg, bool null_allowed, Oid *types,
						   Datum *values, char *nulls);
static void start_cursor(CqrsCursor *cursor, bool latest);
static char *check_handler(const char *subscription, Oid funcid);
static bool is_event_type(Oid typid);
static List *check_topics(const char *subscription, ArrayType *array);
static bool parse_start(const char *subscription, const char *start);
static CqrsSubscription *own_subscription(FunctionCallInfo fcinfo,
										  const char *function);
static void wake_manager(const CqrsSubscription *subscription);
static bool has_reached(const CqrsSubscription *subscription,
						const CqrsSnapshot *target);
static int64 set_state(const CqrsSubscription *subscription,
					   const char *state, const char *reason);
static void seek(CqrsSubscription *subscription, bool latest,
				 const TimestampTz *time);

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

/* How often cqrs_wait() looks by itself, in milliseconds. */
#define WAIT_POLL	100

PG_FUNCTION_INFO_V1(cqrs_subscribe);
PG_FUNCTION_INFO_V1(cqrs_unsubscribe);
PG_FUNCTION_INFO_V1(cqrs_alter_subscription);
PG_FUNCTION_INFO_V1(cqrs_pause);
PG_FUNCTION_INFO_V1(cqrs_resume);
PG_FUNCTION_INFO_V1(cqrs_seek);
PG_FUNCTION_INFO_V1(cqrs_seek_time);
PG_FUNCTION_INFO_V1(cqrs_wait);

/*
 * cqrs_subscribe(subscription, topics, handler, start, partitions, ...)
 */
Datum
cqrs_subscribe(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	Oid			owner = GetUserId();
	bool		latest;
	int			partitions;
	List	   *topics;
	ListCell   *lc;
	CqrsAdmin	admin;
	Oid			types[4 + SETTINGS] = {TEXTOID, TEXTOID, OIDOID, INT4OID};
	Datum		values[4 + SETTINGS];
	char		nulls[4 + SETTINGS];
	bool		isnull;
	int32		subscription_id;
	int			i;

	cqrs_require_writable("cqrs_subscribe()");
	cqrs_name_check("subscription", name);
	topics = check_topics(name, PG_ARGISNULL(1) ? NULL :
						  PG_GETARG_ARRAYTYPE_P(1));
	latest = parse_start(name, PG_ARGISNULL(3) ? NULL :
						 text_to_cstring(PG_GETARG_TEXT_PP(3)));
	partitions = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
	if (partitions < 1 || partitions > CQRS_MAX_PARTITIONS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" cannot have %d partitions",
						name, partitions),
				 errhint("Valid are 1 to %d.", CQRS_MAX_PARTITIONS)));
	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(name);
	if (PG_ARGISNULL(2))
		nulls[1] = 'n';
	else
		values[1] = CStringGetTextDatum(check_handler(name, PG_GETARG_OID(2)));
	values[2] = ObjectIdGetDatum(owner);
	values[3] = Int32GetDatum(partitions);
	check_settings(fcinfo, name, 5, false, types + 4, values + 4, nulls + 4);

	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("LOCK TABLE cqrs.subscription IN SHARE ROW EXCLUSIVE MODE");
	if (cqrs_registry_subscription(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists", name)));
	cqrs_admin_execute("INSERT INTO cqrs.subscription (subscription, handler, owner, partitions,"
					   " max_attempts, retry_delay, max_retry_delay, handler_timeout,"
					   " max_retained_size, max_retained_age)"
					   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING subscription_id",
					   4 + SETTINGS, types, values, nulls);
	subscription_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1,
												  &isnull));
	foreach(lc, topics)
	{
		Oid			link_types[2] = {INT4OID, INT4OID};
		Datum		link_values[2];

		/* Until our cursor can be seen, nothing is to be truncated. */
		(void) cqrs_object_lock(CQRS_REL_TOPIC, lfirst_int(lc), 0, ShareLock,
								true);
		link_values[0] = Int32GetDatum(subscription_id);
		link_values[1] = Int32GetDatum(lfirst_int(lc));
		cqrs_admin_execute("INSERT INTO cqrs.subscription_topic (subscription_id, topic_id) VALUES ($1, $2)",
						   2, link_types, link_values, NULL);
	}
	cqrs_admin_end(&admin);

	for (i = 0; i < partitions; i++)
	{
		CqrsCursor	cursor = {.subscription_id = subscription_id};

		cursor.partition = i;
		start_cursor(&cursor, latest);
		cqrs_cursor_append(&cursor);
	}
	foreach(lc, topics)
		cqrs_shmem_emitted(lfirst_int(lc));
	PG_RETURN_VOID();
}

/*
 * cqrs_unsubscribe(subscription)
 */
Datum
cqrs_unsubscribe(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo,
													  "cqrs_unsubscribe()");
	int32		subscription_id = subscription->subscription_id;
	CqrsAdmin	admin;
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	static const char *const tables[] = {
		"subscription_topic", "failure", "retry", "dead_letter", "subscription"
	};
	int			i;

	cqrs_subscription_lock_all(subscription);
	values[0] = Int32GetDatum(subscription_id);
	cqrs_admin_begin(&admin);
	for (i = 0; i < lengthof(tables); i++)
	{
		char	   *sql = psprintf("DELETE FROM cqrs.%s WHERE subscription_id = $1",
								   tables[i]);

		cqrs_admin_execute(sql, 1, types, values, NULL);
	}
	cqrs_admin_end(&admin);
	cqrs_cursor_delete_all(subscription_id);
	PG_RETURN_VOID();
}

/*
 * cqrs_alter_subscription(subscription, handler, max_attempts, ...)
 */
Datum
cqrs_alter_subscription(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo,
													  "cqrs_alter_subscription()");
	CqrsAdmin	admin;
	Oid			types[2 + SETTINGS] = {INT4OID, TEXTOID};
	Datum		values[2 + SETTINGS];
	char		nulls[2 + SETTINGS];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(subscription->subscription_id);
	if (PG_ARGISNULL(1))
		nulls[1] = 'n';
	else
	{
		/* It runs with the owner's privileges, not with those of a member. */
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
													  PG_GETARG_OID(1)));
	}
	check_settings(fcinfo, subscription->name, 2, true, types + 2, values + 2,
				   nulls + 2);

	cqrs_admin_begin(&admin);
	cqrs_admin_execute("UPDATE cqrs.subscription SET handler = coalesce($2, handler),"
					   " max_attempts = coalesce($3, max_attempts),"
					   " retry_delay = coalesce($4, retry_delay),"
					   " max_retry_delay = coalesce($5, max_retry_delay),"
					   " handler_timeout = coalesce($6, handler_timeout),"
					   " max_retained_size = coalesce($7, max_retained_size),"
					   " max_retained_age = coalesce($8, max_retained_age)"
					   " WHERE subscription_id = $1",
					   2 + SETTINGS, types, values, nulls);
	cqrs_admin_end(&admin);
	wake_manager(subscription);
	PG_RETURN_VOID();
}

/*
 * cqrs_pause(subscription)
 */
Datum
cqrs_pause(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo, "cqrs_pause()");

	/* Once we have the locks, no batch is under way. */
	cqrs_subscription_lock_all(subscription);
	(void) set_state(subscription, "paused", "by cqrs_pause()");
	PG_RETURN_VOID();
}

/*
 * cqrs_resume(subscription)
 */
Datum
cqrs_resume(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo, "cqrs_resume()");
	int64		missed = set_state(subscription, "active", NULL);

	wake_manager(subscription);
	if (missed > 0)
		ereport(WARNING,
				(errmsg("subscription \"%s\" missed " INT64_FORMAT " events",
						subscription->name, missed),
				 errdetail("They were truncated while it was suspended.")));
	PG_RETURN_INT64(missed);
}

/*
 * cqrs_seek(subscription, target text)
 */
Datum
cqrs_seek(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo, "cqrs_seek()");
	char	   *target;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("target of cqrs_seek() must not be null")));
	target = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(target, "earliest") == 0)
		seek(subscription, false, NULL);
	else if (strcmp(target, "latest") == 0)
		seek(subscription, true, NULL);
	else
	{
		TimestampTz time;

		time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
													   CStringGetDatum(target),
													   ObjectIdGetDatum(InvalidOid),
													   Int32GetDatum(-1)));
		seek(subscription, false, &time);
	}
	PG_RETURN_VOID();
}

/*
 * cqrs_seek(subscription, target timestamptz)
 */
Datum
cqrs_seek_time(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = own_subscription(fcinfo, "cqrs_seek()");
	TimestampTz time;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("target of cqrs_seek() must not be null")));
	time = PG_GETARG_TIMESTAMPTZ(1);
	seek(subscription, false, &time);
	PG_RETURN_VOID();
}

/*
 * cqrs_wait(subscription, timeout)
 */
Datum
cqrs_wait(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription = cqrs_subscription_get(name);
	int32		subscription_id = subscription->subscription_id;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline;
	CqrsSnapshot *target;
	bool		reached = false;

	cqrs_subscription_require_owner(subscription);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("timeout must not be null")));
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(now),
													   PG_GETARG_DATUM(1)));
	if (deadline < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	cqrs_require_preloaded();

	target = cqrs_snapshot_take();
	ConditionVariablePrepareToSleep(&cqrs_shared->delivered);
	for (;;)
	{
		/* It may be dropped while we wait: then there is nothing to get. */
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		reached = subscription == NULL || has_reached(subscription, target);
		now = GetCurrentTimestamp();
		if (reached || now >= deadline)
			break;

		/* Who pulls tells nobody: look now and then. */
		(void) ConditionVariableTimedSleep(&cqrs_shared->delivered,
										   Min(TimestampDifferenceMilliseconds(now, deadline) + 1,
											   WAIT_POLL),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(reached);
}

/*
 * Take the lock for moving a cursor of the subscription, until the end of the
 * transaction. Without wait, returns false if it cannot be had at once. Raises
 * 42704 if the subscription went while we waited.
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
	return true;
}

/*
 * The same for all its cursors.
 */
void
cqrs_subscription_lock_all(const CqrsSubscription *subscription)
{
	int			partitions = subscription->partitions;
	int			i;

	for (i = 0; i < partitions; i++)
		(void) cqrs_subscription_lock(subscription, i, true);
}

/*
 * Raises 55000 if it is paused or suspended.
 */
void
cqrs_subscription_require_active(const CqrsSubscription *subscription)
{
	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is %s", subscription->name,
						subscription->state == CQRS_SUBSCRIPTION_PAUSED ?
						"paused" : "suspended"),
				 errhint("Use cqrs_resume().")));
}

/*
 * Is the current user the subscription's owner, or a member of it? If not,
 * 42501.
 */
void
cqrs_subscription_require_owner(const CqrsSubscription *subscription)
{
	if (!has_privs_of_role(GetUserId(), subscription->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\"",
						subscription->name)));
}

/*
 * Raises 42501 if a function of this owner may not be the handler: the
 * subscription's owner must not run the code of just anybody.
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
 * The settings among the arguments, as parameters of a statement. Raises 22004
 * for NULL if that is not allowed, 22023 for a negative one.
 */
static void
check_settings(FunctionCallInfo fcinfo, const char *name, int first_arg,
			   bool null_allowed, Oid *types, Datum *values, char *nulls)
{
	Interval	zero = {0};
	int			i;

	for (i = 0; i < SETTINGS; i++)
	{
		NullableDatum arg = fcinfo->args[first_arg + i];
		bool		negative = false;

		types[i] = settings[i].type;
		values[i] = arg.value;
		nulls[i] = arg.isnull ? 'n' : ' ';
		if (arg.isnull && !null_allowed)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s of subscription \"%s\" must not be null",
							settings[i].name, name)));
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
				negative = DatumGetInt32(DirectFunctionCall2(interval_cmp,
															 arg.value,
															 IntervalPGetDatum(&zero))) < 0;
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
 * Where a new cursor starts: at what is retained, or at what commits from now
 * on.
 */
static void
start_cursor(CqrsCursor *cursor, bool latest)
{
	if (latest)
	{
		cursor->last_position = cqrs_last_position();
		cursor->snapshot = cqrs_snapshot_take();
		cursor->tick_id = cqrs_tick_next_id();
	}
	else
	{
		cursor->last_position = 0;
		cursor->snapshot = cqrs_snapshot_empty();
		cursor->tick_id = 0;
	}
}

/*
 * Can this function be the handler, and may it be the current user's? Returns
 * the text it is registered by.
 */
static char *
check_handler(const char *subscription, Oid funcid)
{
	Oid			argtype;
	Oid			rettype;
	char	   *signature = cqrs_handler_describe(funcid, &argtype, &rettype);
	HeapTuple	tuple;
	Oid			funcowner;

	if (!is_event_type(argtype))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be a handler of a subscription",
						signature),
				 errdetail("Its argument is of type %s.",
						   format_type_be(argtype)),
				 errhint("The argument of a subscription's handler is of type cqrs_event.")));

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", funcid);
	funcowner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	cqrs_subscription_check_handler_owner(subscription, GetUserId(),
										  signature, funcowner);

	if (CQRS_ROLE_NEEDS_LOGIN)
	{
		bool		can_login;

		tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for role %u", GetUserId());
		can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
		ReleaseSysCache(tuple);
		if (!can_login)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("role \"%s\" cannot own subscription \"%s\"",
							GetUserNameFromId(GetUserId(), true),
							subscription),
					 errdetail("The worker connects as the owner, who is not permitted to log in."),
					 errhint("ALTER ROLE ... LOGIN; it needs no password for this.")));
	}
	return signature;
}

/*
 * Is it the extension's type cqrs_event?
 */
static bool
is_event_type(Oid typid)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	bool		named;

	if (!HeapTupleIsValid(tuple))
		return false;
	named = strcmp(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname),
				   "cqrs_event") == 0;
	ReleaseSysCache(tuple);
	return named && getExtensionOfObject(TypeRelationId, typid) ==
		get_extension_oid(CQRS_EXTENSION, false);
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

/*
 * Is it 'latest', or 'earliest'?
 */
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

/*
 * The subscription that the first argument names, which the current user owns
 * and is about to change.
 */
static CqrsSubscription *
own_subscription(FunctionCallInfo fcinfo, const char *function)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;

	cqrs_require_writable(function);
	subscription = cqrs_subscription_get(name);
	cqrs_subscription_require_owner(subscription);
	return subscription;
}

/*
 * Set the state, and return how many events it missed in the old one.
 */
static int64
set_state(const CqrsSubscription *subscription, const char *state,
		  const char *reason)
{
	CqrsAdmin	admin;
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	int64		missed = 0;
	bool		isnull;

	values[0] = Int32GetDatum(subscription->subscription_id);
	values[1] = CStringGetTextDatum(state);
	if (reason == NULL)
		nulls[2] = 'n';
	else
		values[2] = CStringGetTextDatum(reason);
	cqrs_admin_begin(&admin);
	if (cqrs_admin_execute("UPDATE cqrs.subscription n"
						   " SET state = $2, state_since = pg_catalog.now(), state_reason = $3, missed_events = 0"
						   " FROM (SELECT subscription_id, missed_events FROM cqrs.subscription"
						   "       WHERE subscription_id = $1 FOR UPDATE) o"
						   " WHERE n.subscription_id = o.subscription_id AND n.state <> $2"
						   " RETURNING o.missed_events",
						   3, types, values, nulls) > 0)
		missed = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1,
											 &isnull));
	cqrs_admin_end(&admin);
	return missed;
}

/*
 * Move the cursors: to what is retained, to what commits from now on, or to
 * the first transaction that emitted at this time or later. What is parked is
 * forgotten: it comes again, or is passed by.
 */
static void
seek(CqrsSubscription *subscription, bool latest, const TimestampTz *time)
{
	int			i;

	/* Until the new place can be seen, nothing behind it is truncated. */
	for (i = 0; i < subscription->ntopics; i++)
		(void) cqrs_object_lock(CQRS_REL_TOPIC,
								subscription->topics[i]->topic_id, 0,
								ShareLock, true);
	cqrs_subscription_lock_all(subscription);
	for (i = 0; i < subscription->partitions; i++)
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription->subscription_id, i, snapshot,
							  &cursor))
			elog(ERROR, "subscription %d has no cursor %d",
				 subscription->subscription_id, i);
		cqrs_parked_discard_all(&cursor);
		cursor.until_tick = 0;
		cursor.received_all = false;
		start_cursor(&cursor, latest);
		if (time != NULL)
			cursor.snapshot = cqrs_window_since(subscription->ntopics,
												subscription->topics, *time,
												snapshot);
		UnregisterSnapshot(snapshot);
		cqrs_cursor_append(&cursor);
	}
	wake_manager(subscription);
}

/*
 * At commit, have the manager look at the subscription's topics.
 */
static void
wake_manager(const CqrsSubscription *subscription)
{
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		cqrs_shmem_emitted(subscription->topics[i]->topic_id);
}

/*
 * Has the subscription got all events that this snapshot shows?
 */
static bool
has_reached(const CqrsSubscription *subscription, const CqrsSnapshot *target)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		reached = true;
	int			i;
	int			j;

	for (i = 0; reached && i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription->subscription_id, i, snapshot,
							  &cursor))
			break;
		for (j = 0; reached && j < subscription->ntopics; j++)
			reached = !cqrs_window_has_events(subscription->topics[j],
											  cursor.snapshot, target,
											  snapshot);
	}
	UnregisterSnapshot(snapshot);
	return reached;
}
