/*-------------------------------------------------------------------------
 *
 * saga_dry_run.c
 *	  Sagas tried out, without effect.
 *
 * All steps are done, one after the other, and then all that can be undone is, in
 * reverse: in one transaction, which is rolled back. What would wait passes by.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/event_id.h"
#include "extension/catalog.h"
#include "mediator/context.h"
#include "mediator/dry_run.h"
#include "registry/payload.h"
#include "saga/definition.h"
#include "saga/machine.h"
#include "saga/run.h"

/* One under way. */
typedef struct Trial
{
	CqrsSagaDefinition *definition;
	pg_uuid_t	saga_id;
	Datum		state;
	MemoryContext context;		/* where that is */
	List	   *rows;			/* of Row */
} Trial;

/* What happened to a step. */
typedef struct Row
{
	const char *step;
	const char *action;
	NullableDatum state;
	Datum		events;
} Row;

static void run(void *arg);
static void do_step(Trial *trial, int number, bool undo);
static void note(Trial *trial, int number, const char *action, bool changed);

PG_FUNCTION_INFO_V1(cqrs_dry_run_saga);

/*
 * cqrs_dry_run_saga(saga_name, payload)
 */
Datum
cqrs_dry_run_saga(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "saga");
	Trial		trial = {.context = CurrentMemoryContext};
	Tuplestorestate *store;
	TupleDesc	desc;
	ListCell   *lc;

	store = cqrs_srf_begin(fcinfo, &desc);
	trial.definition = cqrs_saga_definition_current(name);
	if (trial.definition == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("saga \"%s\" is not registered", name),
				 errhint("Register it with cqrs_register_saga().")));
	trial.state = PG_ARGISNULL(1) ?
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) :
		PointerGetDatum(PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(1)));
	cqrs_payload_check_object(DatumGetJsonbP(trial.state), "saga", name);
	cqrs_event_id_generate(GetCurrentTimestamp(), &trial.saga_id);
	cqrs_saga_definitions_hold();
	PG_TRY();
	{
		(void) cqrs_dry_run_call(psprintf("saga \"%s\"", name),
								 get_element_type(TupleDescAttr(desc, 3)->atttypid),
								 run, &trial);
		foreach(lc, trial.rows)
		{
			Row		   *row = lfirst(lc);
			Datum		values[4];
			bool		nulls[4] = {0};

			values[0] = CStringGetTextDatum(row->step);
			values[1] = CStringGetTextDatum(row->action);
			values[2] = row->state.value;
			nulls[2] = row->state.isnull;
			values[3] = row->events;
			tuplestore_putvalues(store, desc, values, nulls);
		}
	}
	PG_FINALLY();
	{
		cqrs_saga_definitions_release();
	}
	PG_END_TRY();
	return (Datum) 0;
}

/*
 * Do all there is, and undo it.
 */
static void
run(void *arg)
{
	Trial	   *trial = (Trial *) arg;
	CqrsSagaDefinition *definition = trial->definition;
	int			i;

	for (i = 0; i < definition->nsteps; i++)
	{
		if (definition->steps[i].kind == CQRS_SAGA_STEP)
			do_step(trial, i, false);
		else
			note(trial, i, "passed by", false);
	}
	for (i = definition->nsteps - 1; i >= 0; i--)
		if (definition->steps[i].has_compensation)
			do_step(trial, i, true);
}

/*
 * Call the function of a step, or what undoes it. Those within a parallel step are
 * given the state that the ones before them have left, and put their answers into it.
 */
static void
do_step(Trial *trial, int number, bool undo)
{
	CqrsSagaStep *step = &trial->definition->steps[number];
	bool		in_branch = step->parent >= 0 && !undo;
	NullableDatum none = {.isnull = true};
	NullableDatum answer;
	MemoryContext oldcontext;

	answer = cqrs_saga_call(trial->definition, number,
							undo ? &step->compensation : &step->handler, undo,
							&trial->saga_id,
							in_branch ? number : CQRS_SAGA_TRUNK, 1,
							trial->state, none, NULL);
	oldcontext = MemoryContextSwitchTo(trial->context);
	if (!answer.isnull)
		trial->state = in_branch ?
			cqrs_saga_merge(trial->state, step->name, answer) :
			PointerGetDatum(PG_DETOAST_DATUM_COPY(answer.value));
	MemoryContextSwitchTo(oldcontext);
	note(trial, number, undo ? "undone" : "done", !answer.isnull);
}

static void
note(Trial *trial, int number, const char *action, bool changed)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(trial->context);
	Row		   *row = palloc(sizeof(Row));

	row->step = trial->definition->steps[number].name;
	row->action = action;
	row->state.isnull = !changed;
	row->state.value = trial->state;
	row->events = cqrs_dry_run_take_events();
	trial->rows = lappend(trial->rows, row);
	MemoryContextSwitchTo(oldcontext);
}
