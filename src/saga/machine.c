/*-------------------------------------------------------------------------
 *
 * machine.c
 *	  How a saga goes on: from one entry to the next.
 *
 * What happens to a saga is a message in its lane: so one thing happens at a time,
 * and is one transaction, in which the newest entry is read and another one written,
 * with what it wakes. A wake-up names the entry that it is about; if that is no longer
 * the newest, it comes too late, or again, and nothing is done. So it does no harm to
 * send it again.
 *
 * Messages that do not know the newest entry are recognized when they come again: a
 * signal by its id, which is kept with it; the end of a branch, or of another saga,
 * as that is looked up and counts once; what a person asks for, by the step that it
 * names.
 *
 * Parallel steps
 *
 * Each is a branch: a lane, with entries, of its own. It begins with the state that the
 * saga has then. When it is over, it tells the saga, which waits for all of them:
 * also if one has failed, as another one may be under way. Then either their answers
 * are put into the state, each under the name of its step, or all that were done are
 * undone with the rest, in reverse of the order in which they ended.
 *
 * Undoing
 *
 * Once a saga is being undone, no step runs again. What cannot be undone stops it, with
 * status failed, until a person decides.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/interval.h"
#include "registry/registry.h"
#include "saga/awaited.h"
#include "saga/machine.h"
#include "saga/signal.h"
#include "shared/clock.h"

/* A step that ends the process is tried no more often, whatever its limit is. */
#define MOST_ENDS		5

/* Sagas within sagas. */
#define MOST_DEPTH		32

static void begin_branches(CqrsSagaRun *run, int step);
static void begin_child(CqrsSagaRun *run, int step);
static int	depth_of(const CqrsSaga *saga);
static void go_back(CqrsSagaRun *run, CqrsSagaEntry *entry);
static void end(CqrsSagaRun *run, CqrsSagaEntry *entry,
				CqrsSagaStatus status);
static void tell_parent(const CqrsSaga *saga);
static NullableDatum merged(Datum state, const char *name,
							NullableDatum answer);

/*
 * Begin a saga: the caller has set all of it but its table.
 */
void
cqrs_saga_begin(CqrsSagaRun *run, Datum state, NullableDatum unique_key)
{
	CqrsSagaEntry entry;

	run->saga.segment = cqrs_saga_current_segment();
	cqrs_saga_insert(&run->saga);
	run->last = (CqrsSagaEntry)
	{
		.branch = CQRS_SAGA_TRUNK,.step = -1,.next = -1,.due = DT_NOEND
	};
	run->last.state.isnull = true;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STARTED, -1);
	entry.begins = true;
	entry.unique_key = unique_key;
	entry.state.value = state;
	entry.state.isnull = false;
	cqrs_saga_go_on(run, &entry, 0);
}

/*
 * The step that the last entry names as the next one was done.
 */
void
cqrs_saga_step_done(CqrsSagaRun *run, CqrsSagaEntry *entry,
					NullableDatum answer, bool by_fallback)
{
	int			number = run->last.next;

	entry->state = answer;
	if (entry->branch != CQRS_SAGA_TRUNK)
	{
		if (by_fallback)
			entry->flags |= CQRS_SAGA_BY_FALLBACK;
		cqrs_saga_end_branch(run, entry, CQRS_SAGA_COMPLETED);
		return;
	}
	cqrs_saga_note_done(run, entry, number, by_fallback);
	cqrs_saga_go_on(run, entry, cqrs_saga_step_after(run->definition, number));
}

/*
 * The step that was done last was undone, or is not to be.
 */
void
cqrs_saga_step_undone(CqrsSagaRun *run, CqrsSagaEntry *entry,
					  NullableDatum answer)
{
	entry->state = answer;
	entry->ndone--;
	go_back(run, entry);
}

/*
 * An attempt at the next step, or at undoing it, failed; the entry says why. It is
 * tried again, or was the last one.
 */
void
cqrs_saga_step_failed(CqrsSagaRun *run, CqrsSagaEntry *entry)
{
	const CqrsSagaStep *step = &run->definition->steps[run->last.next];
	bool		backward = (run->last.flags & CQRS_SAGA_IS_BACKWARD) != 0;
	int			code = entry->sqlstate == NULL ? 0 :
	MAKE_SQLSTATE(entry->sqlstate[0], entry->sqlstate[1],
				  entry->sqlstate[2], entry->sqlstate[3],
				  entry->sqlstate[4]);
	bool		final;

	entry->attempt = run->last.attempt + 1;
	final = code == ERRCODE_CQRS_GIVE_UP ||
		(code == ERRCODE_CRASH_SHUTDOWN && entry->attempt >= MOST_ENDS) ||
		(step->max_attempts > 0 && entry->attempt >= step->max_attempts) ||
		cqrs_sqlstate_listed(step->final, step->nfinal, code);
	if (!final)
	{
		entry->status = backward ? CQRS_SAGA_COMPENSATING : CQRS_SAGA_RETRYING;
		entry->due =
			TimestampTzPlusMilliseconds(entry->at,
										cqrs_backoff(step->retry_delay,
													 step->max_retry_delay,
													 entry->attempt));
		cqrs_saga_write(run, entry);
		cqrs_saga_wake(run);
	}
	else if (backward)
	{
		entry->status = CQRS_SAGA_FAILED;
		cqrs_saga_write(run, entry);
	}
	else
		cqrs_saga_fail(run, entry);
}

/*
 * A state with an answer under a name.
 */
Datum
cqrs_saga_merge(Datum state, const char *name, NullableDatum answer)
{
	JsonbParseState *parse = NULL;
	JsonbValue	value = {.type = jbvString};
	Jsonb	   *object;

	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	value.val.string.val = unconstify(char *, name);
	value.val.string.len = strlen(name);
	pushJsonbValue(&parse, WJB_KEY, &value);
	JsonbToJsonbValue(DatumGetJsonbP(answer.value), &value);
	pushJsonbValue(&parse, WJB_VALUE, &value);
	object = JsonbValueToJsonb(pushJsonbValue(&parse, WJB_END_OBJECT, NULL));
	return DirectFunctionCall2(jsonb_concat, state, JsonbPGetDatum(object));
}

/*
 * The same for an entry: without an answer, the state is as it was.
 */
static NullableDatum
merged(Datum state, const char *name, NullableDatum answer)
{
	if (!answer.isnull)
		answer.value = cqrs_saga_merge(state, name, answer);
	return answer;
}

/*
 * Write the entry, and go on with a step. A pivot between the last step and this one
 * need not have been done: what is behind it is not undone, so nothing is any more.
 */
void
cqrs_saga_go_on(CqrsSagaRun *run, CqrsSagaEntry *entry, int step)
{
	CqrsSagaDefinition *definition = run->definition;
	const CqrsSagaEntry *signal;
	int			i;

	/* A saga begins another one, whose first step does; and so on. */
	check_stack_depth();
	for (i = Max(run->last.next, 0); i < Min(step, definition->nsteps); i++)
		if (definition->steps[i].pivot)
		{
			entry->flags |= CQRS_SAGA_IS_PAST_PIVOT;
			entry->ndone = 0;
		}
	entry->nends = 0;
	if (step >= definition->nsteps)
	{
		end(run, entry, CQRS_SAGA_COMPLETED);
		return;
	}
	entry->next = step;
	switch (definition->steps[step].kind)
	{
		case CQRS_SAGA_STEP:
			entry->status = CQRS_SAGA_RUNNING;
			cqrs_saga_write(run, entry);
			cqrs_saga_wake(run);
			break;
		case CQRS_SAGA_SLEEP:
			entry->status = CQRS_SAGA_SLEEPING;
			entry->due = cqrs_time_plus(entry->at,
										definition->steps[step].interval);
			cqrs_saga_write(run, entry);
			cqrs_saga_wake(run);
			break;
		case CQRS_SAGA_AWAIT:
			entry->status = CQRS_SAGA_WAITING;
			signal = cqrs_saga_find_signal(run, definition->steps[step].event_name,
										   NULL);
			if (signal == NULL &&
				definition->steps[step].interval != (Datum) 0)
				entry->due = cqrs_time_plus(entry->at,
											definition->steps[step].interval);
			cqrs_saga_write(run, entry);
			if (signal != NULL)
				cqrs_saga_take_signal(run, signal);
			else if (run->last.due != DT_NOEND)
				cqrs_saga_wake(run);
			break;
		case CQRS_SAGA_PARALLEL:
			entry->status = CQRS_SAGA_WAITING;
			cqrs_saga_write(run, entry);
			begin_branches(run, step);
			break;
		case CQRS_SAGA_SUB_SAGA:
			entry->status = CQRS_SAGA_WAITING;
			cqrs_saga_write(run, entry);
			begin_child(run, step);
			break;
	}
}

/*
 * Begin the steps that are to be done side by side. If they are tried again, those
 * that were done are not.
 */
static void
begin_branches(CqrsSagaRun *run, int step)
{
	int			i;

	for (i = step + 1; i <= step + run->definition->steps[step].nchildren; i++)
	{
		CqrsSagaRun branch = *run;
		CqrsSagaEntry entry;

		if (cqrs_saga_entry_newest(&run->saga, i, &entry) &&
			entry.status == CQRS_SAGA_COMPLETED)
		{
			cqrs_saga_tell(run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, i);
			continue;
		}
		branch.last.branch = i;
		branch.last.seq = entry.seq;
		branch.last.ndone = 0;
		branch.last.due = DT_NOEND;
		branch.last.state.isnull = true;
		branch.last.state_seq = run->last.state.isnull ?
			run->last.state_seq : run->last.seq;
		cqrs_saga_next_entry(&branch, &entry, CQRS_SAGA_FORKED, step);
		entry.status = CQRS_SAGA_RUNNING;
		entry.next = i;
		cqrs_saga_write(&branch, &entry);
		cqrs_saga_wake(&branch);
	}
}

/*
 * Why can the saga that is a step of this one not be begun, though it may be later?
 * NULL: it can.
 */
char *
cqrs_saga_child_missing(const CqrsSagaRun *run, int step)
{
	const char *name = run->definition->steps[step].saga_name;
	const CqrsSagaDefinition *definition = cqrs_saga_definition_current(name);
	const CqrsTopic *topic = cqrs_registry_topic_by_id(run->saga.topic_id);
	const char *awaited;

	if (definition == NULL)
		return psprintf("saga \"%s\" is not registered", name);
	if (topic == NULL || topic->runner == NULL)
		return NULL;
	awaited = cqrs_saga_router_lacks(definition, topic->runner->owner);
	return awaited == NULL ? NULL :
		psprintf("saga \"%s\" waits for events of topic \"%s\", which are not brought to those of its role",
				 name, awaited);
}

/*
 * Begin the saga that is a step of this one. If it cannot be begun, this one is stuck
 * until it can.
 */
static void
begin_child(CqrsSagaRun *run, int step)
{
	CqrsSagaRun child = *run;
	NullableDatum no_key = {.isnull = true};
	CqrsSagaEntry entry;
	char	   *why;

	/* The sagas around this one may have been begun by this command. */
	CommandCounterIncrement();
	why = cqrs_saga_child_missing(run, step);
	if (why != NULL)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_MISSING, step);
		entry.attempt = run->last.attempt;
		entry.status = CQRS_SAGA_STUCK;
		entry.error = why;
		cqrs_saga_write(run, &entry);
		cqrs_saga_look_later(run, 0);
		return;
	}
	if (depth_of(&run->saga) >= MOST_DEPTH)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_FAILED, step);
		entry.attempt = run->last.attempt + 1;
		entry.error = psprintf("sagas are nested more than %d deep", MOST_DEPTH);
		cqrs_saga_fail(run, &entry);
		return;
	}
	child.definition =
		cqrs_saga_definition_current(run->definition->steps[step].saga_name);
	cqrs_saga_child_id(run, step, &child.saga.saga_id);
	child.saga.name = child.definition->name;
	child.saga.version = child.definition->version;
	child.saga.has_parent = true;
	child.saga.parent_id = run->saga.saga_id;
	child.saga.started_at = cqrs_wall_now();
	cqrs_saga_begin(&child, cqrs_saga_state(run), no_key);
}

static int
depth_of(const CqrsSaga *saga)
{
	CqrsSaga	outer = *saga;
	int			depth = 1;

	while (outer.has_parent && depth < MOST_DEPTH)
	{
		if (!cqrs_saga_find(&outer.parent_id, &outer))
			break;
		depth++;
	}
	return depth;
}

/*
 * Write the entry, and undo what was done last; if nothing is left, it is over.
 */
static void
go_back(CqrsSagaRun *run, CqrsSagaEntry *entry)
{
	entry->nends = 0;
	if (entry->ndone == 0)
	{
		end(run, entry, entry->flags & CQRS_SAGA_IS_CANCELLED ?
			CQRS_SAGA_CANCELLED : CQRS_SAGA_COMPENSATED);
		return;
	}
	entry->status = CQRS_SAGA_COMPENSATING;
	entry->flags |= CQRS_SAGA_IS_BACKWARD;
	entry->next = entry->done[entry->ndone - 1] / 2;
	cqrs_saga_write(run, entry);
	cqrs_saga_wake(run);
}

/*
 * Write the entry, the last one.
 */
static void
end(CqrsSagaRun *run, CqrsSagaEntry *entry, CqrsSagaStatus status)
{
	entry->status = status;
	entry->next = -1;
	cqrs_saga_write(run, entry);
	CommandCounterIncrement();
	(void) cqrs_saga_delete(&run->saga.saga_id);
	if (run->saga.has_parent)
		tell_parent(&run->saga);
}

/*
 * Tell the saga that waits for this one.
 */
static void
tell_parent(const CqrsSaga *saga)
{
	CqrsSagaMessage message = {.kind = CQRS_SAGA_ENDED};
	NullableDatum none = {.isnull = true};
	CqrsSaga	parent;
	const CqrsTopic *topic;

	if (!cqrs_saga_find(&saga->parent_id, &parent))
		return;
	topic = cqrs_registry_topic_by_id(parent.topic_id);
	if (topic == NULL)
		return;
	message.saga_id = parent.saga_id;
	message.payload.isnull = true;
	cqrs_saga_send(topic, parent.name, &message, none);
}

/*
 * Write the last entry of a branch, and tell the saga.
 */
void
cqrs_saga_end_branch(CqrsSagaRun *run, CqrsSagaEntry *entry, CqrsSagaStatus status)
{
	entry->status = status;
	entry->next = -1;
	cqrs_saga_write(run, entry);
	cqrs_saga_tell(run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, entry->branch);
}

/*
 * Write the entry: the saga cannot go on. Undo what was done, unless it is past its
 * point of no return: then a person decides.
 */
void
cqrs_saga_fail(CqrsSagaRun *run, CqrsSagaEntry *entry)
{
	if (entry->branch != CQRS_SAGA_TRUNK)
		cqrs_saga_end_branch(run, entry, CQRS_SAGA_FAILED);
	else if (entry->flags & CQRS_SAGA_IS_PAST_PIVOT)
	{
		entry->status = CQRS_SAGA_FAILED;
		cqrs_saga_write(run, entry);
	}
	else
	{
		entry->attempt = 0;
		go_back(run, entry);
	}
}

/*
 * A step was done, by itself or by its fallback: it is to be undone before all that
 * were done earlier, if it can be.
 */
void
cqrs_saga_note_done(const CqrsSagaRun *run, CqrsSagaEntry *entry, int number,
					bool by_fallback)
{
	const CqrsSagaStep *step = &run->definition->steps[number];
	int32	   *done;

	if (!step->has_compensation &&
		!(by_fallback && step->has_fallback_compensation))
		return;
	done = palloc(sizeof(int32) * (entry->ndone + 1));

	if (entry->ndone > 0)
		memcpy(done, entry->done, sizeof(int32) * entry->ndone);
	done[entry->ndone++] = 2 * number + (by_fallback ? 1 : 0);
	entry->done = done;
}

/*
 * The step that waits has got what it waits for.
 */
void
cqrs_saga_take_signal(CqrsSagaRun *run, const CqrsSagaEntry *signal)
{
	int			number = run->last.next;
	CqrsSagaEntry entry;

	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_RECEIVED, number);
	entry.has_message = true;
	entry.message_id = signal->message_id;
	entry.name = signal->name;
	entry.state = merged(cqrs_saga_state(run),
						 run->definition->steps[number].name, signal->state);
	cqrs_saga_go_on(run, &entry, cqrs_saga_step_after(run->definition, number));
}
