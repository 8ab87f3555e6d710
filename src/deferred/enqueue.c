/*-------------------------------------------------------------------------
 *
 * enqueue.c
 *	  Commands that are executed by the worker, after the commit.
 *
 * An enqueued command is an event in a topic of the role that enqueued it:
 * named like the command, with its payload, and with its id as event id. A
 * subscription of the role, whose handler is cqrs.run_command(), dispatches it.
 * So all that is true of subscriptions is true of commands: they run exactly
 * once, with their owner's privileges, in order by key; they are retried,
 * become dead letters, can be paused and redriven.
 *
 * A command for later waits in cqrs.scheduled_command until its time has come;
 * release.c has the rest. cancel.c takes one back.
 *
 * Topic and subscription are made beforehand: see command_queue.c. To enqueue
 * is only to write a row.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "deferred/command_options.h"
#include "deferred/enqueue.h"
#include "deferred/running.h"
#include "emit/emit.h"
#include "extension/admin.h"
#include "extension/row.h"
#include "log/topic.h"
#include "mediator/command.h"
#include "mediator/context.h"
#include "mediator/dispatch.h"
#include "mediator/idempotency.h"
#include "registry/owner.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "shared/clock.h"
#include "subscription/subscription.h"

static pg_uuid_t *enqueue(FunctionCallInfo fcinfo, const CqrsCommand *command,
						  Datum payload, const CqrsCommandOptions *options);
static Datum answer_of_id(const pg_uuid_t *command_id);
static Datum id_of_answer(Datum answer);
static void run(CqrsDispatch *dispatch, const CqrsCommandOptions *options);
static bool is_due(TimestampTz run_at, const char *command_name);
static void check_expiry(FunctionCallInfo fcinfo,
						 const CqrsCommandOptions *options,
						 const char *command_name);
static void refuse_expired(const CqrsCommandOptions *options,
						   const char *command_name);

PG_FUNCTION_INFO_V1(cqrs_enqueue);
PG_FUNCTION_INFO_V1(cqrs_run_command);

/*
 * cqrs_enqueue(command_name, payload, key, run_at, idempotency_key, options)
 */
Datum
cqrs_enqueue(PG_FUNCTION_ARGS)
{
	CqrsIdempotencyKey key;
	CqrsCommand *command;
	CqrsCommandOptions options;
	Datum		payload;
	Datum		stored;
	bool		isnull;
	pg_uuid_t  *command_id;

	cqrs_require_writable("cqrs_enqueue()");
	if (!PG_ARGISNULL(4))
		cqrs_idempotency_lock(&key, PG_GETARG_TEXT_P(4), "cqrs_enqueue()");
	command = cqrs_command_get(cqrs_name_arg(fcinfo, 0, "command"),
							   CQRS_COMMAND);
	payload = cqrs_command_payload_arg(fcinfo, command);
	cqrs_enqueue_check(command, payload);
	cqrs_command_options_parse(PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5),
							   command->name, &options);
	check_expiry(fcinfo, &options, command->name);
	if (PG_ARGISNULL(4))
		PG_RETURN_UUID_P(enqueue(fcinfo, command, payload, &options));

	if (cqrs_idempotency_find(&key, CQRS_KEY_ENQUEUE, command, payload,
							  &stored, &isnull))
		return id_of_answer(stored);
	command_id = enqueue(fcinfo, command, payload, &options);
	cqrs_idempotency_store(&key, answer_of_id(command_id), false);
	PG_RETURN_UUID_P(command_id);
}

/*
 * Write the command to the user's queue, or schedule it. Returns its id.
 */
static pg_uuid_t *
enqueue(FunctionCallInfo fcinfo, const CqrsCommand *command, Datum payload,
		const CqrsCommandOptions *options)
{
	pg_uuid_t  *command_id = palloc(sizeof(pg_uuid_t));
	CqrsEvent	event = {0};

	event.topic = cqrs_command_queue_topic();
	event.emitted_at = GetCurrentTimestamp();
	cqrs_context_new_id(event.emitted_at, command_id);
	event.event_id = UUIDPGetDatum(command_id);
	event.event_name = CStringGetTextDatum(command->name);
	event.key = cqrs_key_arg(fcinfo, 2, "command", command->name);
	event.payload.value = payload;
	event.headers =
		cqrs_context_headers(cqrs_command_options_headers(options));

	if (PG_ARGISNULL(3) || is_due(PG_GETARG_TIMESTAMPTZ(3), command->name))
		cqrs_event_write(&event);
	else
		cqrs_command_schedule(&event, PG_GETARG_TIMESTAMPTZ(3), 0);
	return command_id;
}

/*
 * A command's id as the answer that is kept with an idempotency key, and back.
 */
static Datum
answer_of_id(const pg_uuid_t *command_id)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = cqrs_uuid_text(command_id, id);
	value.val.string.len = CQRS_UUID_TEXT_LEN;
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

static Datum
id_of_answer(Datum answer)
{
	JsonbValue	value;

	if (!JsonbExtractScalar(&DatumGetJsonbP(answer)->root, &value) ||
		value.type !=jbvString)
		elog(ERROR, "unexpected answer of an enqueued command");
	return DirectFunctionCall1(uuid_in,
							   CStringGetDatum(pnstrdup(value.val.string.val,
														value.val.string.len)));
}

/*
 * Is a command for this time to be executed at once? Raises 22008.
 */
static bool
is_due(TimestampTz run_at, const char *command_name)
{
	if (TIMESTAMP_NOT_FINITE(run_at))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("run_at of command \"%s\" must be finite",
						command_name)));

	/* now() is due, whether the clock is believed or not. */
	return run_at == GetCurrentTransactionStartTimestamp() ||
		run_at <= cqrs_wall_now();
}

/*
 * Raises 22023 for a command that expires before its time comes.
 */
static void
check_expiry(FunctionCallInfo fcinfo, const CqrsCommandOptions *options,
			 const char *command_name)
{
	if (!PG_ARGISNULL(3) && options->expires_at != DT_NOEND &&
		options->expires_at <= PG_GETARG_TIMESTAMPTZ(3))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expires_at of command \"%s\" is not after its run_at",
						command_name)));
}

/*
 * Raises OB004 if a command is not to be begun any more.
 */
static void
refuse_expired(const CqrsCommandOptions *options, const char *command_name)
{
	if (options->expires_at != DT_NOEND &&
		cqrs_wall_now() >= options->expires_at)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_EXPIRED),
				 errmsg("command \"%s\" expired before it could be executed",
						command_name),
				 errdetail("Its expires_at was %s.",
						   timestamptz_to_str(options->expires_at))));
}

/*
 * cqrs.run_command(event): handler of the subscriptions that run commands.
 *
 * It executes the command that is being delivered, whatever its argument is, and
 * only when the delivery itself calls it: so nobody can pass it a forged id,
 * attempt, or cause.
 *
 * Its handler sees the command with the id under which it was enqueued, caused
 * by what was being handled then, and with the attempts of the event.
 *
 * A command whose answer is kept is not executed again, should a seek have it
 * delivered again.
 */
Datum
cqrs_run_command(PG_FUNCTION_ARGS)
{
	CqrsContext *delivery = cqrs_context_innermost;
	const CqrsEvent *event = delivery && delivery->runs_command ? delivery->event : NULL;
	CqrsCommandOptions options;
	CqrsDispatch dispatch;
	CqrsCommand *command;
	Jsonb	   *payload;

	if (event == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no enqueued command is being delivered"),
				 errdetail("cqrs.run_command() is only called by the delivery of commands."),
				 errhint("Send a command with cqrs_send(), or enqueue it with cqrs_enqueue().")));
	cqrs_command_options_of(event->headers, &options);
	if (options.keep_answer &&
		cqrs_answer_find(&delivery->id, NULL, NULL, NULL))
		PG_RETURN_VOID();
	refuse_expired(&options, delivery->name);
	command = cqrs_command_get(delivery->name, CQRS_COMMAND);
	if (event->payload.isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload of command \"%s\" must not be null",
						command->name)));
	payload = DatumGetJsonbP(event->payload.value);
	cqrs_payload_check_object(payload, "command", command->name);
	cqrs_dispatch_init(&dispatch, command, JsonbPGetDatum(payload), JSONBOID);
	dispatch.context.has_id = true;
	dispatch.context.id = delivery->id;
	dispatch.context.event = event;
	dispatch.context.attempts = delivery->attempts;

	/* Without headers, its delivery would be the cause. */
	dispatch.context.headers = delivery->headers;
	if (delivery->headers.isnull)
	{
		dispatch.context.headers.isnull = false;
		dispatch.context.headers.value =
			DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	}

	run(&dispatch, &options);
	PG_RETURN_VOID();
}

/*
 * Execute a command, such that it can be cancelled meanwhile. Then nothing else has
 * become of it.
 */
static void
run(CqrsDispatch *dispatch, const CqrsCommandOptions *options)
{
	const pg_uuid_t *command_id = &dispatch->context.id;
	const char *name = dispatch->command->name;
	bool		began = cqrs_running_begin(command_id);
	Datum		answer;
	bool		isnull;

	PG_TRY();
	{
		cqrs_running_check(name);
		answer = cqrs_dispatch_run(dispatch, &isnull);
		if (options->keep_answer)
			cqrs_answer_store(command_id, name, answer, isnull);
		cqrs_running_check(name);
	}
	PG_CATCH();
	{
		cqrs_running_failed(began, name);
		PG_RE_THROW();
	}
	PG_END_TRY();
	cqrs_running_end(began);
}

/*
 * Check that the command could be executed now: the user may execute all its
 * handlers, and they take the payload. Raises 42883, 42501, and what payload.c
 * does.
 */
void
cqrs_enqueue_check(CqrsCommand *command, Datum payload)
{
	int			i;

	for (i = 0; i < command->nhandlers; i++)
	{
		CqrsHandler *handler = &command->handlers[i];

		cqrs_handler_check(handler, "command", command->name);
		if (handler->argtype != JSONBOID)
			(void) cqrs_payload_to_composite(DatumGetJsonbP(payload),
											 handler->argtype, "command",
											 command->name);
	}
}

/*
 * The topic of the current user's commands. Raises OB001 if there is none.
 */
const CqrsTopic *
cqrs_command_queue_topic(void)
{
	CqrsSubscription *queue = cqrs_registry_command_subscription(GetUserId());

	if (unlikely(queue == NULL || queue->ntopics == 0))
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("role \"%s\" has no command queue",
						GetUserNameFromId(GetUserId(), true)),
				 errhint("Create it with cqrs_create_command_queue().")));
	return queue->topics[0];
}

/*
 * Schedule a command; it is a run of this schedule, unless that is 0.
 */
void
cqrs_command_schedule(const CqrsEvent *event, TimestampTz run_at,
					  int32 schedule_id)
{
	Datum		values[CQRS_SCHEDULED_COLUMNS];
	bool		nulls[CQRS_SCHEDULED_COLUMNS] = {0};

	values[CQRS_SCHEDULED_COMMAND_ID - 1] = event->event_id;
	values[CQRS_SCHEDULED_COMMAND_NAME - 1] = event->event_name;
	values[CQRS_SCHEDULED_TOPIC_ID - 1] =
		Int32GetDatum(event->topic->topic_id);
	values[CQRS_SCHEDULED_KEY - 1] = event->key.value;
	nulls[CQRS_SCHEDULED_KEY - 1] = event->key.isnull;
	values[CQRS_SCHEDULED_RUN_AT - 1] = TimestampTzGetDatum(run_at);
	values[CQRS_SCHEDULED_PAYLOAD - 1] = event->payload.value;
	values[CQRS_SCHEDULED_HEADERS - 1] = event->headers.value;
	nulls[CQRS_SCHEDULED_HEADERS - 1] = event->headers.isnull;
	values[CQRS_SCHEDULED_ENQUEUED_AT - 1] =
		TimestampTzGetDatum(event->emitted_at);
	values[CQRS_SCHEDULED_SCHEDULE_ID - 1] = Int32GetDatum(schedule_id);
	nulls[CQRS_SCHEDULED_SCHEDULE_ID - 1] = schedule_id == 0;

	cqrs_row_insert(CQRS_REL_SCHEDULED_COMMAND, values, nulls);
	cqrs_shmem_command_scheduled(run_at);
}
