/*-------------------------------------------------------------------------
 *
 * saga_wait.c
 *	  Waiting for the end of a saga.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/wait_event.h"

#include "base/event_id.h"
#include "deferred/enqueue.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "registry/registry.h"
#include "saga/machine.h"
#include "shared/clock.h"
#include "shared/delivered.h"
#include "shared/shmem.h"

static bool look(const pg_uuid_t *saga_id, MemoryContext context,
				 CqrsSagaRun *run);
static void refuse_own(const CqrsSaga *saga);

PG_FUNCTION_INFO_V1(cqrs_wait_saga);

/*
 * cqrs_wait_saga(saga_id, timeout)
 */
Datum
cqrs_wait_saga(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	TimestampTz deadline;
	MemoryContext context;
	CqrsSagaRun run;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3];
	bool		over;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "unexpected result type");
	cqrs_arg_required(fcinfo, 0, "saga id", NULL, NULL);
	deadline = cqrs_delivered_deadline(fcinfo, 1);
	context = AllocSetContextCreate(CurrentMemoryContext, "cqrs look",
									ALLOCSET_DEFAULT_SIZES);
	over = look(PG_GETARG_UUID_P(0), context, &run);
	cqrs_require_preloaded();
	if (!over)
		refuse_own(&run.saga);
	while (!over && cqrs_steady_now() < deadline)
	{
		/* The first time, we get ready to be woken, and look again. */
		cqrs_delivered_sleep(deadline, CQRS_WAIT_EVENT(wait_event,
													   "CqrsOutboxWait"));
		over = look(PG_GETARG_UUID_P(0), context, &run);
	}
	ConditionVariableCancelSleep();
	if (over)
		cqrs_flush_commit(run.last.xmin);
	values[0] = CStringGetTextDatum(cqrs_saga_statuses[run.last.status]);
	nulls[0] = false;
	nulls[1] = !over;
	values[1] = over ? cqrs_saga_state(&run) : (Datum) 0;
	nulls[2] = run.last.error == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(run.last.error);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * Is the saga over, or does it wait for a person? *run gets what is known of it, in
 * the context, which is reset before. Raises 42704 if none of this id is kept, and
 * 42501 if it is another role's.
 */
static bool
look(const pg_uuid_t *saga_id, MemoryContext context, CqrsSagaRun *run)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	char		id[CQRS_UUID_TEXT_LEN + 1];

	MemoryContextReset(context);

	if (!cqrs_saga_find_kept(saga_id, &run->saga, NULL) ||
		!cqrs_saga_entry_newest(&run->saga, CQRS_SAGA_TRUNK, &run->last))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga %s does not exist", cqrs_uuid_text(saga_id, id)),
				 errdetail("It never did, or was over so long ago that it is not kept.")));
	if (!cqrs_command_is_own(run->saga.topic_id))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga %s", cqrs_uuid_text(saga_id, id)),
				 errhint("What it takes is membership in the role that started it.")));
	MemoryContextSwitchTo(oldcontext);
	return cqrs_saga_is_over(run->last.status) ||
		run->last.status == CQRS_SAGA_FAILED;
}

/*
 * Raises 55000 if nobody can begin the saga before this transaction commits, and
 * 55006 if it waits for what this session is doing.
 */
static void
refuse_own(const CqrsSaga *saga)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(saga->topic_id);
	char		id[CQRS_UUID_TEXT_LEN + 1];

	if (saga->is_ours)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga %s was started by this transaction",
						cqrs_uuid_text(&saga->saga_id, id)),
				 errhint("It begins when the transaction has committed: commit first.")));
	if (topic != NULL && topic->runner != NULL &&
		cqrs_underway_is(topic->runner->subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("saga %s is in the queue whose sagas this session executes",
						cqrs_uuid_text(&saga->saga_id, id)),
				 errhint("A step must not wait for a saga of its queue; cqrs_sub_saga() makes another saga a step.")));
}
