/*-------------------------------------------------------------------------
 *
 * command_result.c
 *	  What has become of an enqueued command, and waiting for that.
 *
 * Where a command is, tells its state: it is scheduled, in its queue's topic,
 * parked, or a dead letter. When it was executed, it is in none of these places;
 * then its answer is found, if that was to be kept. A command that is waiting is
 * being executed, if a worker says so.
 *
 * It may move on while we look: so we look in the order in which it moves, and, if
 * it was nowhere, begin anew once. What is handled by a redrive moves back, but
 * within one statement of ours.
 *
 * Waiting
 *
 * Whoever waits is woken when a worker has delivered, and looks by itself now and
 * then, as cqrs_wait() does: for the answer, which is a matter of an index; for the
 * rest, which may mean to go through all that waits, only so often that this takes
 * a small part of the time.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "deferred/enqueue.h"
#include "deferred/running.h"
#include "delivery/underway.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "mediator/idempotency.h"
#include "shared/clock.h"
#include "shared/delivered.h"
#include "shared/shmem.h"

/* The part of the time that looking everywhere may take: one of these. */
#define LOOK_SHARE		20

typedef enum CommandState
{
	COMMAND_UNKNOWN,
	COMMAND_SCHEDULED,
	COMMAND_READY,
	COMMAND_RETRYING,
	COMMAND_RUNNING,
	COMMAND_DONE,
	COMMAND_FAILED
} CommandState;

static const char *const state_names[] = {
	[COMMAND_UNKNOWN] = "unknown",
	[COMMAND_SCHEDULED] = "scheduled",
	[COMMAND_READY] = "ready",
	[COMMAND_RETRYING] = "retrying",
	[COMMAND_RUNNING] = "running",
	[COMMAND_DONE] = "done",
	[COMMAND_FAILED] = "failed",
};

/* What is known of a command, in the memory context of the look. */
typedef struct CommandOutcome
{
	CommandState state;
	NullableDatum answer;		/* jsonb */
	TransactionId xmin;			/* who wrote that */
	NullableDatum error;		/* text: of the last attempt */
	NullableDatum sqlstate;		/* text */
	int32		queue;			/* the subscription; 0: in none */
	bool		own;			/* this transaction enqueued it */
} CommandOutcome;

static void wait_until_over(const pg_uuid_t *command_id, TimestampTz deadline,
							CommandOutcome *result);
static void refuse_own(const pg_uuid_t *command_id, const CommandOutcome *result);
static void look(const pg_uuid_t *command_id, CommandOutcome *result);
static bool look_for_answer(const pg_uuid_t *command_id, CommandOutcome *result);
static bool look_in_tables(const pg_uuid_t *command_id, List *queues,
						   CommandOutcome *result);
static bool look_in_topics(const pg_uuid_t *command_id, List *queues,
						   CommandOutcome *result);
static NullableDatum text_column(int column, MemoryContext context);
static bool is_over(const CommandOutcome *result);
static Datum form(FunctionCallInfo fcinfo, const CommandOutcome *result);

PG_FUNCTION_INFO_V1(cqrs_command_result);
PG_FUNCTION_INFO_V1(cqrs_wait_command);

/*
 * cqrs_command_result(command_id)
 */
Datum
cqrs_command_result(PG_FUNCTION_ARGS)
{
	CommandOutcome result;

	cqrs_arg_required(fcinfo, 0, "command id", NULL, NULL);
	look(PG_GETARG_UUID_P(0), &result);
	PG_RETURN_DATUM(form(fcinfo, &result));
}

/*
 * cqrs_wait_command(command_id, timeout)
 */
Datum
cqrs_wait_command(PG_FUNCTION_ARGS)
{
	TimestampTz deadline;
	CommandOutcome result;

	cqrs_arg_required(fcinfo, 0, "command id", NULL, NULL);
	deadline = cqrs_delivered_deadline(fcinfo, 1);
	cqrs_require_preloaded();
	wait_until_over(PG_GETARG_UUID_P(0), deadline, &result);
	PG_RETURN_DATUM(form(fcinfo, &result));
}

/*
 * Wait until the command was executed or given up, or is not there any more.
 * *result gets what is known of it then, in the current memory context.
 */
static void
wait_until_over(const pg_uuid_t *command_id, TimestampTz deadline,
				CommandOutcome *result)
{
	static uint32 wait_event = 0;
	MemoryContext oldcontext = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(oldcontext, "cqrs look",
												  ALLOCSET_DEFAULT_SIZES);
	TimestampTz began = cqrs_steady_now();
	TimestampTz now;
	TimestampTz look_at;

	ConditionVariablePrepareToSleep(&cqrs_shared->delivered);
	look(command_id, result);
	refuse_own(command_id, result);
	now = cqrs_steady_now();
	look_at = now + LOOK_SHARE * (now - began);
	while (!is_over(result) && now < deadline)
	{
		cqrs_delivered_sleep(deadline, CQRS_WAIT_EVENT(wait_event,
													   "CqrsOutboxWaitCommand"));
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		began = cqrs_steady_now();
		if (began >= look_at || began >= deadline)
		{
			look(command_id, result);
			now = cqrs_steady_now();
			look_at = now + LOOK_SHARE * (now - began);
		}
		else
		{
			/* The last look is never this one, unless it finds the answer. */
			(void) look_for_answer(command_id, result);
			now = began;
		}
		MemoryContextSwitchTo(oldcontext);
	}
	ConditionVariableCancelSleep();
	if (result->state == COMMAND_DONE)
		cqrs_flush_commit(result->xmin);
}

/*
 * Raises 55000 if nobody can execute the command before this transaction commits,
 * and 55006 if it waits for what this session is doing.
 */
static void
refuse_own(const pg_uuid_t *command_id, const CommandOutcome *result)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];

	if (result->own)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("command %s was enqueued by this transaction",
						cqrs_uuid_text(command_id, id)),
				 errdetail("It is executed once the transaction has committed."),
				 errhint("Commit, and then wait for it.")));
	if (result->queue != 0 && cqrs_underway_is(result->queue))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("command %s is in the queue whose commands this session executes",
						cqrs_uuid_text(command_id, id)),
				 errhint("A command must not wait for another one of its queue.")));
}

/*
 * Find out where the command is; *result is in the current memory context.
 */
static void
look(const pg_uuid_t *command_id, CommandOutcome *result)
{
	List	   *queues = cqrs_command_queues();

	memset(result, 0, sizeof(CommandOutcome));
	result->answer.isnull = result->error.isnull = result->sqlstate.isnull =
		true;

	/* What this statement has enqueued counts, too. */
	if (GetTopTransactionIdIfAny() != InvalidTransactionId)
		CommandCounterIncrement();
	if (!look_for_answer(command_id, result) &&
		!look_in_tables(command_id, queues, result) &&
		!look_in_topics(command_id, queues, result) &&
		!look_for_answer(command_id, result))
		(void) look_in_tables(command_id, queues, result);
	if ((result->state == COMMAND_READY || result->state == COMMAND_RETRYING) &&
		cqrs_running_shows(command_id))
		result->state = COMMAND_RUNNING;
}

static bool
look_for_answer(const pg_uuid_t *command_id, CommandOutcome *result)
{
	if (!cqrs_answer_find(command_id, &result->answer.value,
						  &result->answer.isnull, &result->xmin))
		return false;
	result->state = COMMAND_DONE;
	result->error.isnull = result->sqlstate.isnull = true;
	return true;
}

/*
 * Is it scheduled, parked or dead?
 */
static bool
look_in_tables(const pg_uuid_t *command_id, List *queues, CommandOutcome *result)
{
	MemoryContext context = CurrentMemoryContext;
	Datum	   *ids = palloc(sizeof(Datum) * Max(list_length(queues), 1));
	int			nids = 0;
	ListCell   *lc;
	CqrsAdmin	admin;
	bool		found;

	foreach(lc, queues)
		ids[nids++] = Int32GetDatum(((CqrsSubscription *) lfirst(lc))->subscription_id);
	cqrs_admin_begin(&admin);
	found = cqrs_admin_execute("SELECT $3, t.subscription_id, NULL, NULL, c.xmin"
							   " FROM cqrs.scheduled_command c JOIN cqrs.subscription_topic t USING (topic_id)"
							   " WHERE c.command_id = $1 AND t.subscription_id = ANY ($2)"
							   " UNION ALL"
							   " SELECT CASE WHEN r.failed_at IS NULL THEN $4 ELSE $5 END, r.subscription_id, r.message, r.sqlstate, r.xmin"
							   " FROM cqrs.retry r"
							   " WHERE r.event_id = $1 AND r.subscription_id = ANY ($2)"
							   " UNION ALL"
							   " SELECT $6, d.subscription_id, d.message, d.sqlstate, d.xmin"
							   " FROM cqrs.dead_letter d"
							   " WHERE d.event_id = $1 AND d.subscription_id = ANY ($2)",
							   6, CQRS_ARG(UUIDOID, UUIDPGetDatum(command_id)),
							   CQRS_ARG(INT4ARRAYOID,
										construct_array(ids, nids, INT4OID, 4, true, TYPALIGN_INT)),
							   CQRS_INT4(COMMAND_SCHEDULED),
							   CQRS_INT4(COMMAND_READY),
							   CQRS_INT4(COMMAND_RETRYING),
							   CQRS_INT4(COMMAND_FAILED)) > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		result->state = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		result->queue = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
		result->error = text_column(3, context);
		result->sqlstate = text_column(4, context);
		result->own = result->state == COMMAND_SCHEDULED &&
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(SPI_getbinval(row, desc, 5, &isnull)));
	}
	cqrs_admin_end(&admin);
	return found;
}

/*
 * Is it in a topic, and is it not yet its turn?
 */
static bool
look_in_topics(const pg_uuid_t *command_id, List *queues, CommandOutcome *result)
{
	ListCell   *lc;

	foreach(lc, queues)
	{
		const CqrsSubscription *queue = lfirst(lc);

		if (!cqrs_command_is_ahead(queue, command_id, &result->own))
			continue;
		result->state = COMMAND_READY;
		result->queue = queue->subscription_id;
		return true;
	}
	return false;
}

/*
 * A text of the first row that SPI has returned, in this memory context.
 */
static NullableDatum
text_column(int column, MemoryContext context)
{
	NullableDatum value = {0};

	value.value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								column, &value.isnull);
	if (!value.isnull)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		value.value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value.value));
		MemoryContextSwitchTo(oldcontext);
	}
	return value;
}

static bool
is_over(const CommandOutcome *result)
{
	return result->state == COMMAND_DONE || result->state == COMMAND_FAILED ||
		result->state == COMMAND_UNKNOWN;
}

/*
 * The result as a row: state, answer, error, error_sqlstate.
 */
static Datum
form(FunctionCallInfo fcinfo, const CommandOutcome *result)
{
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(state_names[result->state]);
	values[1] = result->answer.value;
	nulls[1] = result->answer.isnull;
	values[2] = result->error.value;
	nulls[2] = result->error.isnull;
	values[3] = result->sqlstate.value;
	nulls[3] = result->sqlstate.isnull;
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}
