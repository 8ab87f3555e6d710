/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  Consumers made, changed and removed. What is wanted of them is checked by
 *	  consumer_check.c.
 *
 * Locking
 *
 * Who consumes has a SHARE lock on the consumer in each transaction; so whoever
 * has it EXCLUSIVE knows that no batch is under way, and that the next one sees
 * what he has changed. What he has changed has a new retried_at, by which workers
 * see that they have to begin anew.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/acl.h"
#include "utils/builtins.h"

#include "broker/server.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/row.h"
#include "inbox/consumer.h"
#include "inbox/consumer_check.h"
#include "inbox/intake_state.h"
#include "inbox/place.h"
#include "log/topic.h"
#include "registry/owner.h"
#include "registry/registry.h"
#include "retry/failure.h"
#include "shared/announce.h"
#include "shared/clock.h"
#include "subscription/subscription.h"

static char *text_arg(FunctionCallInfo fcinfo, int argno);
static bool own_if_nobody_does(CqrsConsumer **consumer);
static void set_state(const CqrsConsumer *consumer, const char *state);
static void warn_of_workers(void);

PG_FUNCTION_INFO_V1(cqrs_create_consumer);
PG_FUNCTION_INFO_V1(cqrs_alter_consumer);
PG_FUNCTION_INFO_V1(cqrs_drop_consumer);
PG_FUNCTION_INFO_V1(cqrs_pause_consumer);
PG_FUNCTION_INFO_V1(cqrs_resume_consumer);
PG_FUNCTION_INFO_V1(cqrs_consumer_owner);

/*
 * cqrs_create_consumer(consumer, server, source, topic, event_name, format, start,
 * message_id, on_gap, workers)
 */
Datum
cqrs_create_consumer(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "consumer");
	CqrsConsumerChoice choice = {0};
	const CqrsBrokerModule *module;
	CqrsConsumer *old;
	CqrsAdmin	admin;

	cqrs_require_writable("cqrs_create_consumer()");
	cqrs_name_check("consumer", name);
	cqrs_arg_required(fcinfo, 1, "server", "consumer", name);
	cqrs_arg_required(fcinfo, 2, "source", "consumer", name);
	cqrs_arg_required(fcinfo, 3, "topic", "consumer", name);
	choice.server = text_arg(fcinfo, 1);
	choice.source = text_arg(fcinfo, 2);
	choice.topic = cqrs_topic_get(text_arg(fcinfo, 3));
	choice.event_name = text_arg(fcinfo, 4);
	choice.format = PG_ARGISNULL(5) ? "raw" : text_arg(fcinfo, 5);
	choice.start = PG_ARGISNULL(6) ? "earliest" : text_arg(fcinfo, 6);
	choice.message_id = text_arg(fcinfo, 7);
	choice.on_gap = PG_ARGISNULL(8) ? "stop" : text_arg(fcinfo, 8);
	choice.workers = PG_ARGISNULL(9) ? 1 : PG_GETARG_INT32(9);
	cqrs_consumer_check(name, &choice);
	choice.start = cqrs_consumer_parse_start(name, choice.start);
	cqrs_consumer_check_event_name(name, choice.event_name, choice.format);
	cqrs_topic_require(choice.topic, ACL_INSERT);
	if (!cqrs_subscription_owner_can_login(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot own consumer \"%s\"",
						GetUserNameFromId(GetUserId(), true), name),
				 errdetail("The worker connects as the owner, who is not permitted to log in."),
				 errhint("ALTER ROLE ... LOGIN; it needs no password for this.")));
	module = cqrs_consumer_check_server(name, choice.server);
	if (!module->keeps_offsets && choice.message_id == NULL)
		choice.message_id = "required";
	cqrs_consumer_check_message_id(name, module, &choice);

	/*
	 * Somebody else may make it, or a subscription of that name, while we
	 * wait for the tables.
	 */
	if (cqrs_registry_consumer(name) == NULL)
		cqrs_admin_run("LOCK TABLE cqrs.subscription, cqrs.consumer IN SHARE ROW EXCLUSIVE MODE", 0);
	old = cqrs_registry_consumer(name);
	if (old != NULL)
	{
		cqrs_consumer_require_owner(old);
		if (cqrs_consumer_is_like(old, &choice))
			PG_RETURN_BOOL(false);
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("consumer \"%s\" already exists, and is another one",
						name),
				 errhint("Use cqrs_alter_consumer(), or cqrs_drop_consumer() first.")));
	}
	if (cqrs_registry_subscription(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("\"%s\" is the name of a subscription", name),
				 errhint("No consumer can have the name of a subscription: choose another one.")));

	cqrs_admin_begin(&admin);
	cqrs_admin_execute("INSERT INTO cqrs.consumer (consumer, server, source, topic_id, event_name, format, start, message_id, on_gap, workers)"
					   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", 10,
					   CQRS_TEXT(name), CQRS_TEXT(choice.server),
					   CQRS_TEXT(choice.source),
					   CQRS_INT4(choice.topic->topic_id),
					   CQRS_NULLABLE(TEXTOID, choice.event_name == NULL ? 0 :
									 CStringGetTextDatum(choice.event_name),
									 choice.event_name == NULL),
					   CQRS_TEXT(choice.format), CQRS_TEXT(choice.start),
					   CQRS_NULLABLE(TEXTOID, choice.message_id == NULL ? 0 :
									 CStringGetTextDatum(choice.message_id),
									 choice.message_id == NULL),
					   CQRS_TEXT(choice.on_gap), CQRS_INT4(choice.workers));
	cqrs_admin_end(&admin);
	cqrs_owner_make_view(name, true, GetUserId());
	cqrs_places_create(cqrs_consumer_get(name)->consumer_id);
	cqrs_shmem_changed();
	warn_of_workers();
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_alter_consumer(consumer, topic, event_name, format, message_id, on_gap,
 * workers)
 */
Datum
cqrs_alter_consumer(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_alter_consumer()");
	const char *name = consumer->name;
	CqrsConsumerChoice choice = {0};
	bool		changed = own_if_nobody_does(&consumer);
	bool		same_topic;

	consumer = cqrs_consumer_lock(consumer);
	choice.server = consumer->server;
	choice.source = consumer->source;
	choice.topic = PG_ARGISNULL(1) ? consumer->topic :
		cqrs_topic_get(text_arg(fcinfo, 1));
	choice.event_name = PG_ARGISNULL(2) ? consumer->event_name :
		text_arg(fcinfo, 2);
	choice.format = PG_ARGISNULL(3) ? consumer->format : text_arg(fcinfo, 3);
	choice.start = consumer->start;
	choice.message_id = PG_ARGISNULL(4) ? consumer->message_id :
		text_arg(fcinfo, 4);
	choice.on_gap = PG_ARGISNULL(5) ? consumer->skips_gaps ? "earliest" : "stop" :
		text_arg(fcinfo, 5);
	choice.workers = PG_ARGISNULL(6) ? consumer->workers : PG_GETARG_INT32(6);
	cqrs_consumer_check(name, &choice);
	cqrs_consumer_check_event_name(name, choice.event_name, choice.format);
	same_topic = PG_ARGISNULL(1) ||
		(consumer->topic != NULL &&
		 consumer->topic->topic_id == choice.topic->topic_id);
	if (!same_topic)
	{
		/* The worker writes with the owner's privileges. */
		if (GetUserId() != consumer->owner)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of consumer \"%s\" to change its topic",
							name),
					 errhint("SET ROLE %s.",
							 quote_identifier(GetUserNameFromId(consumer->owner,
																false)))));
		cqrs_topic_require(choice.topic, ACL_INSERT);
	}
	if (!PG_ARGISNULL(4))
		cqrs_consumer_check_message_id(name,
									   cqrs_consumer_check_server(name,
																  consumer->server),
									   &choice);
	if (same_topic && cqrs_consumer_is_like(consumer, &choice))
		PG_RETURN_BOOL(changed);

	(void) cqrs_admin_run("UPDATE cqrs.consumer SET topic_id = coalesce($2, topic_id), event_name = $3, format = $4, message_id = $5,"
						  " on_gap = $6, workers = $7, retried_at = pg_catalog.clock_timestamp() WHERE consumer_id = $1", 7,
						  CQRS_INT4(consumer->consumer_id),
						  CQRS_NULLABLE(INT4OID, choice.topic == NULL ? 0 :
										Int32GetDatum(choice.topic->topic_id),
										choice.topic == NULL),
						  CQRS_NULLABLE(TEXTOID, choice.event_name == NULL ? 0 :
										CStringGetTextDatum(choice.event_name),
										choice.event_name == NULL),
						  CQRS_TEXT(choice.format),
						  CQRS_NULLABLE(TEXTOID, choice.message_id == NULL ? 0 :
										CStringGetTextDatum(choice.message_id),
										choice.message_id == NULL),
						  CQRS_TEXT(choice.on_gap), CQRS_INT4(choice.workers));

	/* Workers that it has no longer have no failures. */
	(void) cqrs_admin_run("DELETE FROM cqrs.failure WHERE subscription_id = $1 AND partition >= $2",
						  2, CQRS_INT4(consumer->consumer_id),
						  CQRS_INT4(choice.workers));
	cqrs_shmem_changed();
	if (choice.workers > consumer->workers)
		warn_of_workers();
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_drop_consumer(consumer, if_exists)
 */
Datum
cqrs_drop_consumer(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "consumer");
	CqrsConsumer *consumer;
	static const char *const tables[] = {
		"consumer_dead_letter", "consumer"
	};
	CqrsAdmin	admin;
	char	   *source;
	int32		consumer_id;
	int			i;

	cqrs_require_writable("cqrs_drop_consumer()");
	if (cqrs_registry_consumer(name) == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 1))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("consumer \"%s\" does not exist", name),
							   "cqrs_consumers");
	}
	consumer = cqrs_consumer_get(name);
	cqrs_consumer_require_owner(consumer);
	consumer_id = cqrs_consumer_lock(consumer)->consumer_id;
	source = cqrs_intake_source_name(consumer);
	cqrs_admin_begin(&admin);
	for (i = 0; i < lengthof(tables); i++)
		cqrs_admin_execute(psprintf("DELETE FROM cqrs.%s WHERE consumer_id = $1",
									tables[i]), 1, CQRS_INT4(consumer_id));
	cqrs_admin_execute("DELETE FROM cqrs.failure WHERE subscription_id = $1",
					   1, CQRS_INT4(consumer_id));
	cqrs_admin_execute("DELETE FROM cqrs.message_source WHERE source = $1",
					   1, CQRS_TEXT(source));
	cqrs_admin_end(&admin);
	cqrs_owner_drop_view(name);
	cqrs_places_delete(consumer_id);
	cqrs_shmem_changed();
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_pause_consumer(consumer)
 */
Datum
cqrs_pause_consumer(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_pause_consumer()");

	if (!consumer->active)
		PG_RETURN_BOOL(false);
	set_state(consumer, "paused");
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_resume_consumer(consumer)
 */
Datum
cqrs_resume_consumer(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_resume_consumer()");
	bool		paused = !consumer->active;

	set_state(consumer, "active");
	PG_RETURN_BOOL(paused);
}

/*
 * cqrs.consumer_owner(consumer_id)
 */
Datum
cqrs_consumer_owner(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = NULL;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, true};

	if (cqrs_registry_usable())
		consumer = cqrs_registry_consumer_by_id(PG_GETARG_INT32(0));
	if (consumer != NULL && OidIsValid(consumer->owner))
	{
		values[0] = ObjectIdGetDatum(consumer->owner);
		values[1] = ObjectIdGetDatum(consumer->view);
		nulls[0] = nulls[1] = false;
	}
	return cqrs_row(fcinfo, values, nulls);
}

/*
 * The consumer that the first argument names, which the current user owns and is
 * about to change.
 */
CqrsConsumer *
cqrs_consumer_own(FunctionCallInfo fcinfo, const char *function)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "consumer");
	CqrsConsumer *consumer;

	cqrs_require_writable(function);
	consumer = cqrs_consumer_get(name);
	cqrs_consumer_require_owner(consumer);
	return consumer;
}

/*
 * Raises 42501 unless the current user is the consumer's owner or a member of that
 * role. One without an owner belongs to the extension's owner, to clear up.
 */
void
cqrs_consumer_require_owner(const CqrsConsumer *consumer)
{
	Oid			owner = consumer->owner;

	if (has_privs_of_role(GetUserId(), OidIsValid(owner) ? owner :
						  cqrs_extension_owner()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of consumer \"%s\"", consumer->name),
			 OidIsValid(owner) ?
			 errhint("What it takes is membership in its owner: GRANT %s TO %s.",
					 quote_identifier(GetUserNameFromId(owner, false)),
					 quote_identifier(GetUserNameFromId(GetUserId(), false))) :
			 errhint("Nobody owns it. The extension's owner may remove it, or own it by cqrs_alter_consumer().")));
}

/*
 * Wait until no batch of the consumer is under way, and let none begin until the
 * end of the transaction. Returns the consumer as it is then: somebody else may have
 * changed it. Raises 42704 if it was dropped meanwhile, 42501 if it was given to
 * another owner.
 */
CqrsConsumer *
cqrs_consumer_lock(const CqrsConsumer *consumer)
{
	CqrsConsumer *now;

	(void) cqrs_object_lock(CQRS_REL_CONSUMER, consumer->consumer_id, 0,
							ExclusiveLock, true);
	now = cqrs_registry_consumer_by_id(consumer->consumer_id);
	if (now == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("consumer \"%s\" was dropped", consumer->name)));
	if (now->owner != consumer->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("consumer \"%s\" was given to another owner",
						consumer->name)));
	return now;
}

/*
 * Have those who consume begin anew.
 */
void
cqrs_consumer_changed(int32 consumer_id)
{
	(void) cqrs_admin_run("UPDATE cqrs.consumer SET retried_at = pg_catalog.clock_timestamp() WHERE consumer_id = $1",
						  1, CQRS_INT4(consumer_id));
	cqrs_shmem_changed();
}

/*
 * Have restored consumers go on where they were.
 */
void
cqrs_consumers_adopt(void)
{
	HASH_SEQ_STATUS status;
	CqrsConsumer *consumer;
	List	   *ids = NIL;
	ListCell   *lc;

	cqrs_registry_consumers(&status);
	while ((consumer = hash_seq_search(&status)) != NULL)
		ids = lappend_int(ids, consumer->consumer_id);
	foreach(lc, ids)
	{
		(void) cqrs_object_lock(CQRS_REL_CONSUMER, lfirst_int(lc), 0,
								ExclusiveLock, true);
		if (cqrs_places_adopt(lfirst_int(lc)))
			cqrs_consumer_changed(lfirst_int(lc));
	}
}

static char *
text_arg(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(argno));
}

/*
 * Whoever may change a consumer that has no owner becomes the owner. Returns whether
 * there was none.
 */
static bool
own_if_nobody_does(CqrsConsumer **consumer)
{
	char	   *name = (*consumer)->name;

	if (OidIsValid((*consumer)->view))
		return false;
	cqrs_owner_make_view(name, true, GetUserId());
	cqrs_consumer_changed((*consumer)->consumer_id);
	*consumer = cqrs_consumer_get(name);
	return true;
}

static void
set_state(const CqrsConsumer *consumer, const char *state)
{
	int			i;

	consumer = cqrs_consumer_lock(consumer);
	(void) cqrs_admin_run("UPDATE cqrs.consumer SET state = $2, retried_at = pg_catalog.clock_timestamp(),"
						  " state_since = CASE WHEN state = $2 THEN state_since ELSE pg_catalog.now() END WHERE consumer_id = $1",
						  2, CQRS_INT4(consumer->consumer_id), CQRS_TEXT(state));
	for (i = 0; i < consumer->workers; i++)
		(void) cqrs_failure_try_now(consumer->consumer_id, i);
	cqrs_shmem_changed();
}

/*
 * Who consumes does so all the time: do any workers remain for subscriptions?
 */
static void
warn_of_workers(void)
{
	HASH_SEQ_STATUS status;
	CqrsConsumer *consumer;
	int			workers = 0;

	CommandCounterIncrement();
	cqrs_registry_consumers(&status);
	while ((consumer = hash_seq_search(&status)) != NULL)
		if (consumer->active)
			workers += consumer->workers;
	if (workers >= cqrs_max_workers)
		ereport(WARNING,
				(errmsg("consumers take all workers"),
				 errdetail("They have %d, and cqrs_outbox.max_workers is %d. Subscriptions and consumers have to take turns.",
						   workers, cqrs_max_workers),
				 errhint("Raise cqrs_outbox.max_workers, and restart the server.")));
}
