/*-------------------------------------------------------------------------
 *
 * steer.c
 *	  What people and programs tell sagas.
 *
 * They are told by a message in their lane: so it is accepted when the function
 * returns, and done behind what is under way. What a person asks for names the step
 * that it is about, and is passed by if the saga is elsewhere by then.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "base/event_id.h"
#include "deferred/command_queue.h"
#include "deferred/enqueue.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/row.h"
#include "mediator/context.h"
#include "registry/registry.h"
#include "saga/machine.h"
#include "saga/start.h"

static Datum tell(FunctionCallInfo fcinfo, CqrsSagaMessageKind kind,
				  const char *function, bool step_required);
static bool own(const pg_uuid_t *saga_id, CqrsSagaRun *run);
static int64 resume_all(int32 topic_id);
static bool resume(const pg_uuid_t *saga_id);
static bool resume_branch(const CqrsSagaRun *run);

PG_FUNCTION_INFO_V1(cqrs_signal);
PG_FUNCTION_INFO_V1(cqrs_cancel_saga);
PG_FUNCTION_INFO_V1(cqrs_retry_saga);
PG_FUNCTION_INFO_V1(cqrs_skip_step);
PG_FUNCTION_INFO_V1(cqrs_resume_sagas);
PG_FUNCTION_INFO_V1(cqrs_resume_sagas_of);

/*
 * cqrs_signal(saga_id, signal_name, payload)
 */
Datum
cqrs_signal(PG_FUNCTION_ARGS)
{
	CqrsSagaMessage message = {.kind = CQRS_SAGA_SIGNAL};
	CqrsSagaRun run;

	cqrs_require_writable("cqrs_signal()");
	cqrs_arg_required(fcinfo, 0, "saga id", NULL, NULL);
	message.name = cqrs_name_arg(fcinfo, 1, "signal");
	cqrs_name_check("signal", message.name);
	if (!own(PG_GETARG_UUID_P(0), &run))
		PG_RETURN_BOOL(false);
	message.saga_id = run.saga.saga_id;
	cqrs_context_new_id(GetCurrentTimestamp(), &message.id);
	message.payload.isnull = PG_ARGISNULL(2);
	if (!message.payload.isnull)
		message.payload.value = JsonbPGetDatum(PG_GETARG_JSONB_P(2));
	cqrs_saga_send(run.topic, run.saga.name, &message, run.headers);
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_cancel_saga(saga_id, step_name)
 */
Datum
cqrs_cancel_saga(PG_FUNCTION_ARGS)
{
	return tell(fcinfo, CQRS_SAGA_CANCEL, "cqrs_cancel_saga()", false);
}

/*
 * cqrs_retry_saga(saga_id, step_name)
 */
Datum
cqrs_retry_saga(PG_FUNCTION_ARGS)
{
	return tell(fcinfo, CQRS_SAGA_RETRY, "cqrs_retry_saga()", true);
}

/*
 * cqrs_skip_step(saga_id, step_name)
 */
Datum
cqrs_skip_step(PG_FUNCTION_ARGS)
{
	return tell(fcinfo, CQRS_SAGA_SKIP, "cqrs_skip_step()", true);
}

/*
 * cqrs_resume_sagas(owner)
 */
Datum
cqrs_resume_sagas(PG_FUNCTION_ARGS)
{
	CqrsSubscription *queue;
	Oid			owner;

	cqrs_require_writable("cqrs_resume_sagas()");
	owner = cqrs_queue_owner_arg(fcinfo, "resume", "sagas");
	queue = cqrs_registry_saga_subscription(owner);
	if (queue == NULL || queue->ntopics == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("role \"%s\" has no queue of sagas",
						GetUserNameFromId(owner, false)),
				 errhint("Create it with cqrs_create_saga_queue().")));
	PG_RETURN_INT64(resume_all(queue->topics[0]->topic_id));
}

/*
 * cqrs.resume_sagas(subscription_id): those whose events the subscription lost.
 */
Datum
cqrs_resume_sagas_of(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription;

	subscription = cqrs_registry_subscription_by_id(PG_GETARG_INT32(0));
	if (subscription != NULL && subscription->routes_to_sagas)
		subscription = cqrs_registry_saga_subscription(subscription->owner);
	if (subscription == NULL || !subscription->runs_sagas ||
		subscription->ntopics == 0)
		PG_RETURN_INT64(0);
	PG_RETURN_INT64(resume_all(subscription->topics[0]->topic_id));
}

/*
 * Send a message about a step, the second argument, to a saga. Returns false if it is
 * not under way. Raises 42704 if it has no such step.
 */
static Datum
tell(FunctionCallInfo fcinfo, CqrsSagaMessageKind kind, const char *function,
	 bool step_required)
{
	CqrsSagaMessage message = {.kind = kind};
	CqrsSagaRun run;
	int			step;

	cqrs_require_writable(function);
	cqrs_arg_required(fcinfo, 0, "saga id", NULL, NULL);
	if (step_required)
		cqrs_arg_required(fcinfo, 1, "step", NULL, NULL);
	if (!own(PG_GETARG_UUID_P(0), &run))
		PG_RETURN_BOOL(false);
	message.saga_id = run.saga.saga_id;
	message.payload.isnull = true;
	if (!PG_ARGISNULL(1))
	{
		message.name = text_to_cstring(PG_GETARG_TEXT_PP(1));
		step = run.definition == NULL ? -1 :
			cqrs_saga_find_step(run.definition, message.name);
		if (step < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("saga \"%s\" has no step \"%s\"", run.saga.name,
							message.name)));
		if (run.definition->steps[step].parent >= 0 &&
			kind != CQRS_SAGA_CANCEL)
		{
			/* It is undone by the saga, though it is done by itself. */
			CqrsSagaEntry trunk;

			if (cqrs_saga_entry_newest(&run.saga, CQRS_SAGA_TRUNK, &trunk) &&
				(trunk.flags & CQRS_SAGA_IS_BACKWARD) == 0)
				message.branch = step;
		}
	}
	cqrs_saga_send(run.topic, run.saga.name, &message, run.headers);
	if (!cqrs_deliver ||
		run.topic->runner->state != CQRS_SUBSCRIPTION_ACTIVE)
		ereport(NOTICE,
				(errmsg("nothing happens to saga \"%s\" for now",
						run.saga.name),
				 !cqrs_deliver ?
				 errdetail("Nothing is delivered, as cqrs_outbox.deliver is off.") :
				 errdetail("Subscription \"%s\" is not active.",
						   run.topic->runner->name)));
	PG_RETURN_BOOL(true);
}

/*
 * Find a saga that is under way, to send it something. Returns false if there is
 * none. Raises 42501 if it is not the user's.
 */
static bool
own(const pg_uuid_t *saga_id, CqrsSagaRun *run)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];

	memset(run, 0, sizeof(*run));
	run->headers.isnull = true;
	CommandCounterIncrement();
	if (!cqrs_saga_find(saga_id, &run->saga))
		return false;
	if (!cqrs_command_is_own(run->saga.topic_id))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga %s", cqrs_uuid_text(saga_id, id)),
				 errhint("What it takes is membership in the role that started it.")));
	run->topic = cqrs_registry_topic_by_id(run->saga.topic_id);
	if (run->topic == NULL || run->topic->runner == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the role of saga %s has no queue of sagas",
						cqrs_uuid_text(saga_id, id)),
				 errhint("Create it with cqrs_create_saga_queue().")));
	run->definition = cqrs_saga_definition(run->saga.name, run->saga.version);
	return true;
}

/*
 * Have all sagas in this topic go on that are to: what was to wake them may be lost. One
 * that is woken twice does nothing the second time. Returns how many were woken, or
 * have their time set anew.
 */
static int64
resume_all(int32 topic_id)
{
	uint64		n;
	volatile int64 resumed = 0;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext per_saga = AllocSetContextCreate(context, "cqrs saga",
												   ALLOCSET_DEFAULT_SIZES);
	pg_uuid_t  *ids;
	CqrsAdmin	admin;
	uint64		i;

	cqrs_admin_begin(&admin);
	n = cqrs_admin_execute("SELECT saga_id FROM cqrs.saga WHERE topic_id = $1 ORDER BY saga_id",
						   1, CQRS_INT4(topic_id));
	ids = MemoryContextAllocHuge(context, sizeof(pg_uuid_t) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		bool		isnull;

		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1,
											  &isnull));
	}
	cqrs_admin_end(&admin);
	cqrs_saga_definitions_hold();
	MemoryContextSwitchTo(per_saga);
	PG_TRY();
	{
		for (i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			MemoryContextReset(per_saga);
			resumed += resume(&ids[i]) ? 1 : 0;
		}
	}
	PG_FINALLY();
	{
		cqrs_saga_definitions_release();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	MemoryContextDelete(per_saga);
	pfree(ids);
	return resumed;
}

static bool
resume(const pg_uuid_t *saga_id)
{
	CqrsSagaRun run = {0};
	const CqrsSagaStep *step;
	bool		resumed;
	int			i;

	run.headers.isnull = true;
	if (!cqrs_saga_find(saga_id, &run.saga) ||
		!cqrs_saga_entry_newest(&run.saga, CQRS_SAGA_TRUNK, &run.last))
		return false;
	run.topic = cqrs_registry_topic_by_id(run.saga.topic_id);
	run.definition = cqrs_saga_definition(run.saga.name, run.saga.version);
	if (run.topic == NULL || run.definition == NULL ||
		run.last.next < 0 || run.last.next >= run.definition->nsteps)
		return false;
	resumed = resume_branch(&run);
	step = &run.definition->steps[run.last.next];
	if (run.last.status != CQRS_SAGA_WAITING)
		return resumed;
	if (step->kind == CQRS_SAGA_SUB_SAGA)
	{
		/* If that has not ended, it finds out. */
		cqrs_saga_tell(&run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, 0);
		return true;
	}
	if (step->kind != CQRS_SAGA_PARALLEL)
		return resumed;
	for (i = run.last.next + 1; i <= run.last.next + step->nchildren; i++)
	{
		CqrsSagaRun branch = run;

		if (cqrs_saga_has_ended(&run, i) ||
			!cqrs_saga_entry_newest(&run.saga, i, &branch.last))
			continue;
		if (cqrs_saga_is_over(branch.last.status) ||
			branch.last.status == CQRS_SAGA_FAILED)
			cqrs_saga_tell(&run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, i);
		else
			(void) resume_branch(&branch);
		resumed = true;
	}
	return resumed;
}

/*
 * Wake a saga, or a branch of it, if it is to go on by itself.
 */
static bool
resume_branch(const CqrsSagaRun *run)
{
	if (run->last.due == DT_NOEND &&
		run->last.status != CQRS_SAGA_RUNNING &&
		run->last.status != CQRS_SAGA_COMPENSATING &&
		run->last.status != CQRS_SAGA_STUCK)
		return false;
	cqrs_saga_wake_again(run);
	return true;
}
