/*-------------------------------------------------------------------------
 *
 * command_queue.c
 *	  Where a role's commands wait: a topic, and a subscription to it.
 *
 * They are named after the role, but the name is only a label. The registry
 * knows the subscription by its owner and its column runs; owner.c says
 * why commands are not executed as another role. Nobody but the extension's
 * owner may emit to the topic in another way: whoever could would make the role
 * execute commands. So a topic that is there already is never used.
 *
 * Locking
 *
 * Whoever makes them takes SHARE ROW EXCLUSIVE on cqrs.subscription and
 * cqrs.topic, in that order, until the end of the transaction, and then looks
 * again. Whoever comes second sees in the registry, which is always current,
 * what the first one made, even in a REPEATABLE READ transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "control/drop_topic.h"
#include "control/subscribe.h"
#include "deferred/command_queue.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/topic.h"
#include "log/topic_drop.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "subscription/epoch.h"
#include "subscription/search_path.h"
#include "subscription/settings.h"
#include "subscription/subscription.h"

static void refuse_in_use(const CqrsSubscription *queue, Oid owner);
static bool has_queue(Oid owner, int partitions);
static void make_queue(Oid owner, const char *path, int partitions);

PG_FUNCTION_INFO_V1(cqrs_create_command_queue);
PG_FUNCTION_INFO_V1(cqrs_drop_command_queue);

/*
 * cqrs_create_command_queue(owner, search_path, partitions)
 */
Datum
cqrs_create_command_queue(PG_FUNCTION_ARGS)
{
	Oid			owner;
	char	   *path;
	int			partitions = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2);

	cqrs_require_writable("cqrs_create_command_queue()");
	owner = cqrs_queue_owner_arg(fcinfo, "create", "command queue");
	path = PG_ARGISNULL(1) ? cqrs_search_path_now() :
		text_to_cstring(PG_GETARG_TEXT_PP(1));
	cqrs_search_path_check(path);
	if (!PG_ARGISNULL(2))
		cqrs_epoch_check_partitions(psprintf("commands_of_%s",
											 GetUserNameFromId(owner, false)),
									partitions);
	if (has_queue(owner, partitions))
		PG_RETURN_BOOL(false);
	cqrs_admin_run("LOCK TABLE cqrs.subscription, cqrs.topic IN SHARE ROW EXCLUSIVE MODE", 0);

	/* Another backend may have made it while we waited. */
	if (has_queue(owner, partitions))
		PG_RETURN_BOOL(false);
	make_queue(owner, path, Max(partitions, 1));
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_drop_command_queue(owner, cascade, if_exists)
 */
Datum
cqrs_drop_command_queue(PG_FUNCTION_ARGS)
{
	Oid			owner;
	CqrsSubscription *queue;

	cqrs_require_writable("cqrs_drop_command_queue()");
	owner = cqrs_queue_owner_arg(fcinfo, "drop", "command queue");
	queue = cqrs_registry_command_subscription(owner);
	if (queue == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 2))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("role \"%s\" has no command queue",
										GetUserNameFromId(owner, false)),
							   "cqrs_subscriptions");
	}
	queue = cqrs_subscription_lock_all(queue);
	if (!cqrs_flag_arg(fcinfo, 1))
		refuse_in_use(queue, owner);
	cqrs_subscription_remove(queue);
	PG_RETURN_BOOL(true);
}

/*
 * Raises 55006 if commands or schedules would be lost with a queue. From here on, none is
 * enqueued. The tables are locked in the order in which a queue is made.
 */
static void
refuse_in_use(const CqrsSubscription *queue, Oid owner)
{
	bool		holds = false;
	int			i;

	cqrs_admin_run("LOCK TABLE cqrs.subscription IN ROW EXCLUSIVE MODE", 0);
	for (i = 0; i < queue->ntopics; i++)
		holds |= cqrs_topic_holds_events(cqrs_topic_lock_to_drop(queue->topics[i]->name));
	if (holds)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("command queue of role \"%s\" holds commands",
						GetUserNameFromId(owner, false)),
				 errdetail("They wait, were given up, or are on a schedule."),
				 errhint("See cqrs_enqueued_commands, cqrs_dead_letters and cqrs_schedules. Have them executed first, or use cascade => true.")));
}

/*
 * The role that the first argument names; NULL is the user. Raises 42704, or
 * 42501 if the user is not a member of it, and may not do to its queue, which is
 * called what, what the verb says.
 */
Oid
cqrs_queue_owner_arg(FunctionCallInfo fcinfo, const char *verb, const char *what)
{
	Oid			owner;

	if (PG_ARGISNULL(0))
		return GetUserId();
	owner = get_role_oid(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be a member of role \"%s\" to %s its %s",
						GetUserNameFromId(owner, true), verb, what)));
	return owner;
}

/*
 * Does the role have a queue? Raises 42710 if that has another number of
 * partitions, or is to get another; 0: any.
 */
static bool
has_queue(Oid owner, int partitions)
{
	CqrsSubscription *queue = cqrs_registry_command_subscription(owner);
	int			has;

	if (queue == NULL)
		return false;
	has = queue->next_partitions != 0 ? queue->next_partitions :
		queue->partitions;
	if (partitions != 0 && partitions != has)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("command queue of role \"%s\" already exists, and has another number of partitions",
						GetUserNameFromId(owner, false)),
				 errdetail("It has %d, not %d.", has, partitions),
				 errhint("Use cqrs_alter_subscription('%s', partitions => %d).",
						 queue->name, partitions)));
	return queue->ntopics > 0;
}

/*
 * Make a role's queue; only the topic, if just that was dropped. The tables
 * are locked.
 */
static void
make_queue(Oid owner, const char *path, int partitions)
{
	CqrsSubscription *existing = cqrs_registry_command_subscription(owner);
	char	   *name = cqrs_queue_free_name("commands", owner);
	Interval	retention = {.day = 1};
	int32		topic_id;
	int32		subscription_id;

	cqrs_subscription_require_login(name, owner);
	topic_id = cqrs_topic_create(name, &retention, owner, false);

	/* The manager has passed by what this role had scheduled before. */
	cqrs_shmem_command_scheduled(DT_NOBEGIN);
	if (existing != NULL)
	{
		(void) cqrs_subscription_add_topic(existing->subscription_id, topic_id);
		return;
	}
	subscription_id = cqrs_queue_make_subscription(name, "run_command", "commands",
												   path, partitions);
	cqrs_owner_make_view(name, false, owner);
	cqrs_subscription_start(subscription_id, list_make1_int(topic_id),
							partitions, false, false, false);
}

/*
 * Insert the subscription; returns its id. It has no limits: if they suspended
 * it, it would lose commands.
 */
int32
cqrs_queue_make_subscription(const char *name, const char *handler,
							 const char *runs, const char *path, int partitions)
{
	CqrsSettings settings;
	CqrsAdmin	admin;
	char	   *signature;
	int32		subscription_id;

	cqrs_settings_none(&settings);
	cqrs_setting_set(&settings, CQRS_SETTING_MAX_RETAINED_SIZE,
					 Int64GetDatum(0));
	cqrs_setting_set(&settings, CQRS_SETTING_PARTITIONS,
					 Int32GetDatum(partitions));
	cqrs_setting_set(&settings, CQRS_SETTING_SEARCH_PATH,
					 CStringGetTextDatum(path));
	cqrs_settings_complete(&settings);
	cqrs_admin_begin(&admin);
	if (cqrs_admin_execute("SELECT p.oid::regprocedure::text FROM pg_extension e"
						   " JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid"
						   "  AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'"
						   " JOIN pg_proc p ON p.oid = d.objid"
						   " WHERE e.extname = 'cqrs_outbox' AND p.pronamespace = 'cqrs'::regnamespace AND p.proname = $1",
						   1, CQRS_TEXT(handler)) != 1)
		elog(ERROR, "could not find function %s", handler);
	signature = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	cqrs_setting_set(&settings, CQRS_SETTING_HANDLER,
					 CStringGetTextDatum(signature));
	subscription_id = cqrs_settings_insert(&settings, name, runs);
	cqrs_admin_end(&admin);
	return subscription_id;
}

/*
 * A name that neither a topic nor a subscription has: the prefix, "_of_", and the
 * role's name, and a number if need be. It is palloc'd.
 */
char *
cqrs_queue_free_name(const char *prefix, Oid owner)
{
	char	   *wanted = psprintf("%s_of_%s", prefix,
								  GetUserNameFromId(owner, false));
	Oid			topics = get_namespace_oid(CQRS_TOPIC_SCHEMA, false);
	Oid			subscriptions = get_namespace_oid(CQRS_SUBSCRIPTION_SCHEMA,
												  false);
	int			n;

	for (n = 1;; n++)
	{
		char		suffix[16] = "";
		char	   *name;
		int			len;

		if (n > 1)
			snprintf(suffix, sizeof(suffix), "_%d", n);
		len = pg_mbcliplen(wanted, strlen(wanted),
						   CQRS_MAX_NAME - strlen(suffix));
		name = psprintf("%.*s%s", len, wanted, suffix);
		if (cqrs_registry_topic(name) == NULL &&
			cqrs_registry_subscription(name) == NULL &&
			!OidIsValid(get_relname_relid(name, topics)) &&
			!OidIsValid(get_relname_relid(name, subscriptions)))
			return name;
	}
}
