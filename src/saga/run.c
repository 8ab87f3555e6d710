/*-------------------------------------------------------------------------
 *
 * run.c
 *	  The handler of the subscriptions that run sagas: calls the function of a step.
 *
 * Everything about a saga is an event in its lane: see machine.c. A step's function, the
 * entry that says that it was done, what it emits and what it wakes are one
 * transaction, and maybe that of other sagas' steps, too.
 *
 * If a step fails, the delivery has it tried apart, and decides whether that was its
 * fault, as of any event. If so, it calls the handler once more, with the error: then
 * the attempt is recorded, in a transaction in which the step did nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "postmaster/bgworker.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "delivery/handler_timeout.h"
#include "log/header.h"
#include "mediator/context.h"
#include "mediator/fallback.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "saga/machine.h"
#include "saga/receive.h"
#include "saga/run.h"
#include "shared/clock.h"

/* A call of a step's function, or of what undoes it. */
typedef struct Call
{
	const CqrsSagaStep *step;
	CqrsHandler *handler;
	Datum		state;
	CqrsEffects *effects;
	bool		by_fallback;	/* that was called, and returned */
} Call;

static void run_event(CqrsContext *delivery);
static bool open_run(const CqrsContext *delivery,
					 const CqrsSagaMessage *message, CqrsSagaRun *run);
static bool is_call(const CqrsSagaRun *run, const CqrsSagaMessage *message);
static void run_step(CqrsSagaRun *run, const CqrsSagaMessage *message);
static CqrsHandler *handler_of(const CqrsSagaRun *run);
static char *why_stuck(CqrsHandler *handler);
static Datum call_function(void *arg, CqrsHandler *handler, bool *isnull);
static void record_failure(CqrsSagaRun *run, const ErrorData *error);

PG_FUNCTION_INFO_V1(cqrs_run_saga);

/*
 * cqrs.run_saga(event): handler of the subscriptions that run sagas.
 *
 * As cqrs.run_command(), it does what is being delivered, whatever its argument is.
 */
Datum
cqrs_run_saga(PG_FUNCTION_ARGS)
{
	CqrsContext *delivery = cqrs_context_innermost;

	if (delivery == NULL || !delivery->runs_saga || delivery->event == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no step of a saga is being delivered"),
				 errdetail("cqrs.run_saga() is only called by the delivery of sagas."),
				 errhint("Start a saga with cqrs_start_saga().")));
	cqrs_saga_definitions_hold();
	PG_TRY();
	{
		run_event(delivery);
		if (CQRS_DEBUG_TWICE("saga_receive"))
		{
			CommandCounterIncrement();
			run_event(delivery);
		}
	}
	PG_FINALLY();
	{
		cqrs_saga_definitions_release();
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

/*
 * Do what an event says, or record that this failed.
 */
static void
run_event(CqrsContext *delivery)
{
	const CqrsEvent *event = delivery->event;
	CqrsSagaMessage message;
	CqrsSagaRun run;

	if (!cqrs_saga_message_read(event, &message))
	{
		if (delivery->failure != NULL)
			return;
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_GIVE_UP),
				 errmsg("event in topic \"%s\" of sagas says nothing to a saga",
						event->topic->name)));
	}
	if (!open_run(delivery, &message, &run))
	{
		delivery->took_failure = delivery->failure != NULL;
		return;
	}
	if (delivery->failure != NULL)
	{
		/* The saga counts what failed; the rest is an event as any. */
		delivery->took_failure = is_call(&run, &message);
		if (delivery->took_failure)
			record_failure(&run, delivery->failure);
	}
	else if (is_call(&run, &message))
		run_step(&run, &message);
	else
		cqrs_saga_receive(&run, &message);
}

/*
 * Find the saga, as it is now, that a message is to. Returns false if it is not under
 * way, or is another role's.
 */
static bool
open_run(const CqrsContext *delivery, const CqrsSagaMessage *message,
		 CqrsSagaRun *run)
{
	const CqrsEvent *event = delivery->event;

	memset(run, 0, sizeof(*run));
	if (!cqrs_saga_find(&message->saga_id, &run->saga) ||
		run->saga.topic_id != event->topic->topic_id ||
		!cqrs_saga_entry_newest(&run->saga, message->branch, &run->last))
		return false;
	run->topic = event->topic;
	run->headers = event->headers;
	run->definition = cqrs_saga_definition(run->saga.name, run->saga.version);
	if (run->definition == NULL || run->last.next >= run->definition->nsteps)
	{
		/* Then it failed for just that. */
		if (delivery->failure != NULL)
			return true;
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("version %d of saga \"%s\" is missing",
						run->saga.version, run->saga.name)));
	}
	return true;
}

/*
 * Does the message have a function called?
 */
static bool
is_call(const CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	CqrsSagaStatus status = run->last.status;

	if (message->kind != CQRS_SAGA_WAKE || message->seq != run->last.seq ||
		run->definition == NULL || run->last.next < 0 ||
		run->last.next >= run->definition->nsteps ||
		(run->last.due != DT_NOEND && run->last.due > cqrs_wall_now()))
		return false;
	return status == CQRS_SAGA_COMPENSATING ||
		((status == CQRS_SAGA_RUNNING || status == CQRS_SAGA_RETRYING ||
		  status == CQRS_SAGA_STUCK) &&
		 (run->definition->steps[run->last.next].kind == CQRS_SAGA_STEP ||
		  run->last.flags & CQRS_SAGA_IS_BACKWARD));
}

/*
 * Call the function that is next, of a step or of what undoes it, and go on.
 */
static void
run_step(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	bool		backward = (run->last.flags & CQRS_SAGA_IS_BACKWARD) != 0;
	int			number = run->last.next;
	CqrsHandler *handler = handler_of(run);
	CqrsSagaEntry entry;
	NullableDatum answer;
	bool		by_fallback;
	char	   *why = why_stuck(handler);

	if (why != NULL)
	{
		if (run->last.status != CQRS_SAGA_STUCK)
		{
			cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_MISSING, number);
			entry.attempt = run->last.attempt;
			entry.status = CQRS_SAGA_STUCK;
			entry.error = why;
			cqrs_saga_write(run, &entry);
		}
		cqrs_saga_look_later(run, message->looks);
		return;
	}

	answer = cqrs_saga_call(run->definition, number, handler, backward,
							&run->saga.saga_id, run->last.branch,
							run->last.attempt + 1, cqrs_saga_state(run),
							run->headers, &by_fallback);

	/* The registry may have been loaded again meanwhile. */
	run->topic = cqrs_registry_topic_by_id(run->saga.topic_id);
	if (run->topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the topic of saga \"%s\" was dropped",
						run->saga.name)));
	CommandCounterIncrement();
	cqrs_saga_next_entry(run, &entry, backward ? CQRS_SAGA_STEP_UNDONE :
						 CQRS_SAGA_STEP_DONE, number);
	if (backward)
		cqrs_saga_step_undone(run, &entry, answer);
	else
		cqrs_saga_step_done(run, &entry, answer, by_fallback);
}

/*
 * Call a function of a step: its own, or with undo what undoes it.
 *	branch		the parallel step, or 0
 *	attempt		which one
 *	cause		headers of what has it called
 *	*by_fallback
 *				gets whether its fallback answered; may be NULL
 * Returns its answer, which is a JSON object, or NULL. Raises 22023 for another one, and
 * what the function raises.
 */
NullableDatum
cqrs_saga_call(const CqrsSagaDefinition *definition, int number,
			   CqrsHandler *handler, bool undo, const pg_uuid_t *saga_id,
			   int branch, int attempt, Datum state, NullableDatum cause,
			   bool *by_fallback)
{
	Call		call = {.step = &definition->steps[number],.handler = handler};
	char		id[CQRS_UUID_TEXT_LEN + 1];
	CqrsEffects effects = {0};
	CqrsContext context;
	NullableDatum answer;
	volatile Datum value = (Datum) 0;

	call.state = state;
	effects.key = psprintf("saga %s/%d/%d/%s", cqrs_uuid_text(saga_id, id),
						   branch, number, undo ? "undo" : "do");
	cqrs_context_init(&context, "step",
					  psprintf("%s.%s", definition->name, call.step->name));
	context.has_id = true;
	context.id = *saga_id;
	context.headers = cqrs_saga_headers(saga_id, cause);
	context.attempts = attempt;
	context.effects = call.effects = &effects;
	if (call.step->timeout > 0 && MyBgworkerEntry != NULL)
		cqrs_handler_timeout_begin(call.step->timeout);
	cqrs_context_push(&context);
	PG_TRY();
	{
		value = handler->fallback != NULL ?
			cqrs_fallback_run(handler, "step", call.step->name, call_function,
							  &call, &answer.isnull) :
			call_function(&call, handler, &answer.isnull);
	}
	PG_FINALLY();
	{
		cqrs_context_innermost = context.outer;
	}
	PG_END_TRY();
	answer.value = value;
	if (!answer.isnull && !JB_ROOT_IS_OBJECT(DatumGetJsonbP(answer.value)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("answer of %s is no JSON object", handler->signature),
				 errhint("It becomes the saga's state. A function that returns NULL, or void, leaves that as it is.")));
	if (by_fallback != NULL)
		*by_fallback = call.by_fallback;
	return answer;
}

/*
 * The function that is next.
 */
static CqrsHandler *
handler_of(const CqrsSagaRun *run)
{
	CqrsSagaStep *step = &run->definition->steps[run->last.next];

	if ((run->last.flags & CQRS_SAGA_IS_BACKWARD) == 0)
	{
		if (step->handler.fallback == NULL)
			step->handler.fallback =
				cqrs_registry_fallback(step->handler.signature);
		return &step->handler;
	}
	if (run->last.ndone > 0 && run->last.done[run->last.ndone - 1] % 2 == 1 &&
		step->has_fallback_compensation)
		return &step->fallback_compensation;
	return &step->compensation;
}

/*
 * Why can the function not be called here, though it may be later? NULL: it can.
 */
static char *
why_stuck(CqrsHandler *handler)
{
	if (!cqrs_handler_find(handler))
		return psprintf("function %s does not exist. %s", handler->signature,
						cqrs_handler_why_missing(handler));
	if (object_aclcheck(ProcedureRelationId, handler->funcid, GetUserId(),
						ACL_EXECUTE) != ACLCHECK_OK)
		return psprintf("role \"%s\" may not execute function %s",
						GetUserNameFromId(GetUserId(), false),
						handler->signature);
	return NULL;
}

/*
 * Call a function, which can be called, with the state as it takes it.
 */
static Datum
call_function(void *arg, CqrsHandler *handler, bool *isnull)
{
	Call	   *call = (Call *) arg;
	Oid			rettype;
	Datum		answer;

	cqrs_handler_check(handler, "step", call->step->name);
	if (handler != call->handler)
	{
		/* What the fallback does is something else. */
		call->effects->key = psprintf("%s by fallback", call->effects->key);
		call->effects->n = 0;
	}
	rettype = handler->rettype;
	answer = handler->argtype == JSONBOID ? call->state :
		cqrs_payload_to_composite(DatumGetJsonbP(call->state),
								  handler->argtype, "step", call->step->name);
	answer = cqrs_handler_call(handler, answer, isnull);
	answer = cqrs_payload_from_value(answer, *isnull, rettype, isnull);
	call->by_fallback = handler != call->handler;
	return answer;
}

/*
 * An attempt at the function that is next failed.
 */
static void
record_failure(CqrsSagaRun *run, const ErrorData *error)
{
	bool		backward = (run->last.flags & CQRS_SAGA_IS_BACKWARD) != 0;
	CqrsSagaEntry entry;

	cqrs_saga_next_entry(run, &entry, backward ? CQRS_SAGA_UNDOING_FAILED :
						 CQRS_SAGA_STEP_FAILED, run->last.next);
	entry.sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	entry.error = error->message == NULL ? "?" : pstrdup(error->message);
	cqrs_saga_step_failed(run, &entry);
}

/*
 * The headers of what a saga causes: its id as correlation id, and a traceparent, if
 * what caused this has one.
 */
NullableDatum
cqrs_saga_headers(const pg_uuid_t *saga_id, NullableDatum cause)
{
	JsonbParseState *state = NULL;
	JsonbValue	value = {.type = jbvString};
	NullableDatum result = {.isnull = false};
	char		id[CQRS_UUID_TEXT_LEN + 1];
	char	   *traceparent = NULL;
	int			len = 0;

	if (!cause.isnull && JB_ROOT_IS_OBJECT(DatumGetJsonbP(cause.value)))
		traceparent = cqrs_header_string(DatumGetJsonbP(cause.value),
										 "traceparent", &len);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	value.val.string.val = "correlation_id";
	value.val.string.len = strlen("correlation_id");
	pushJsonbValue(&state, WJB_KEY, &value);
	value.val.string.val = cqrs_uuid_text(saga_id, id);
	value.val.string.len = CQRS_UUID_TEXT_LEN;
	pushJsonbValue(&state, WJB_VALUE, &value);
	if (traceparent != NULL)
	{
		value.val.string.val = "traceparent";
		value.val.string.len = strlen("traceparent");
		pushJsonbValue(&state, WJB_KEY, &value);
		value.val.string.val = traceparent;
		value.val.string.len = len;
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	result.value = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
																   WJB_END_OBJECT,
																   NULL)));
	return result;
}
