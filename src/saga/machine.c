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
 * Signals
 *
 * A signal that a step may wait for later is kept, as an entry of a branch of its
 * own, from the saga's start on. A step that waits takes the oldest of its name
 * that no entry has taken.
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

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/event_id.h"
#include "base/interval.h"
#include "registry/registry.h"
#include "saga/machine.h"
#include "saga/router.h"
#include "shared/clock.h"

/* A saga keeps at most this many signals of a name that nothing has taken. */
#define MOST_SIGNALS	100

/* How long to wait until a stuck saga is looked at again, in milliseconds. */
#define FIRST_LOOK		1000
#define LONGEST_LOOK	60000

/* Sagas within sagas. */
#define MOST_DEPTH		32

static void go_on(CqrsSagaRun *run, CqrsSagaEntry *entry, int step);
static void begin_branches(CqrsSagaRun *run, int step);
static void begin_child(CqrsSagaRun *run, int step);
static int	depth_of(const CqrsSaga *saga);
static void go_back(CqrsSagaRun *run, CqrsSagaEntry *entry);
static void end(CqrsSagaRun *run, CqrsSagaEntry *entry,
				CqrsSagaStatus status);
static void tell_parent(const CqrsSaga *saga);
static void end_branch(CqrsSagaRun *run, CqrsSagaEntry *entry,
					   CqrsSagaStatus status);
static void fail(CqrsSagaRun *run, CqrsSagaEntry *entry);
static void wake_later(const CqrsSagaRun *run, bool by_router);
static void forget_wake(const CqrsSagaRun *run);
static const CqrsStep *current_step(const CqrsSagaRun *run);
static bool is_at(const CqrsSagaRun *run, const char *name);
static void push_done(CqrsSagaEntry *entry, int what);
static NullableDatum merged(Datum state, const char *name,
							NullableDatum answer);
static void receive_wake(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_signal(CqrsSagaRun *run, const CqrsSagaMessage *message);
static bool wants_signal(const CqrsSagaRun *run, const char *name);
static const CqrsSagaEntry *find_signal(const CqrsSagaRun *run,
										const char *name, List **untaken);
static void take_signal(CqrsSagaRun *run, const CqrsSagaEntry *signal);
static void receive_end(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void branch_ended(CqrsSagaRun *run, int branch);
static void stop_branches(const CqrsSagaRun *run);
static void child_ended(CqrsSagaRun *run);
static void receive_cancel(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_retry(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_skip(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_move(CqrsSagaRun *run);
static void send(const CqrsSagaRun *run, CqrsSagaMessageKind kind,
				 int32 branch, int32 seq);

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
	go_on(run, &entry, 0);
}

/*
 * Set up the entry behind the last one: what happened to a step, or -1. What is not
 * set is as it was.
 */
void
cqrs_saga_next_entry(const CqrsSagaRun *run, CqrsSagaEntry *entry,
					 CqrsSagaHappening event, int step)
{
	const CqrsSagaEntry *last = &run->last;

	memset(entry, 0, sizeof(*entry));
	entry->branch = last->branch;
	entry->seq = last->seq + 1;
	entry->at = cqrs_wall_now();
	entry->event = event;
	entry->step = step;
	entry->status = last->status;
	entry->next = last->next;
	entry->due = DT_NOEND;
	entry->flags = last->flags;
	entry->ndone = last->ndone;
	entry->done = last->done;
	entry->nends = last->nends;
	entry->ends = last->ends;
	entry->state.isnull = true;
	entry->unique_key.isnull = true;
	entry->state_seq = !last->state.isnull &&
		last->branch == CQRS_SAGA_TRUNK ? last->seq : last->state_seq;
}

/*
 * Write the entry; it is the last one then. A wake-up for later that the one before
 * has is taken back.
 */
void
cqrs_saga_write(CqrsSagaRun *run, CqrsSagaEntry *entry)
{
	forget_wake(run);
	if (!entry->state.isnull && entry->branch == CQRS_SAGA_TRUNK)
		entry->state_seq = 0;
	cqrs_saga_entry_insert(&run->saga, entry);
	run->last = *entry;
}

/*
 * Have the saga go on from its last entry, now or when that is due.
 */
void
cqrs_saga_wake(const CqrsSagaRun *run)
{
	const CqrsStep *step = current_step(run);

	if (run->last.due != DT_NOEND)
		wake_later(run, step != NULL && step->kind == CQRS_STEP_AWAIT &&
				   step->topic != NULL);
	else
		send(run, CQRS_SAGA_WAKE, run->last.branch, run->last.seq);
}

/*
 * The same, though what is to wake it later may be on its way.
 */
void
cqrs_saga_wake_again(const CqrsSagaRun *run)
{
	forget_wake(run);
	CommandCounterIncrement();
	cqrs_saga_wake(run);
}

/*
 * The saga is stuck: look again later, and later each time.
 */
void
cqrs_saga_look_later(const CqrsSagaRun *run, int looks)
{
	CqrsSagaMessage message = {.kind = CQRS_SAGA_WAKE};

	/* It may have been woken twice. */
	forget_wake(run);
	CommandCounterIncrement();
	message.saga_id = run->saga.saga_id;
	message.branch = run->last.branch;
	message.seq = run->last.seq;
	message.looks = looks + 1;
	message.payload.isnull = true;
	cqrs_saga_wake_at(run->topic, run->saga.name, &message, run->headers,
					  TimestampTzPlusMilliseconds(cqrs_wall_now(),
												  cqrs_backoff(FIRST_LOOK, LONGEST_LOOK,
															   looks + 1)));
}

/*
 * The state that a step is given.
 */
Datum
cqrs_saga_state(const CqrsSagaRun *run)
{
	CqrsSagaEntry entry;

	if (run->last.branch == CQRS_SAGA_TRUNK && !run->last.state.isnull)
		return run->last.state.value;
	if (run->last.state_seq == 0 ||
		!cqrs_saga_entry_get(&run->saga, CQRS_SAGA_TRUNK, run->last.state_seq,
							 &entry) ||
		entry.state.isnull)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the state of saga \"%s\" is missing", run->saga.name)));
	return entry.state.value;
}

/*
 * The step that the last entry names as the next one was done.
 */
void
cqrs_saga_step_done(CqrsSagaRun *run, CqrsSagaEntry *entry,
					NullableDatum answer, bool by_fallback)
{
	int			number = run->last.next;
	const CqrsStep *step = &run->definition->steps[number];

	entry->state = answer;
	if (entry->branch != CQRS_SAGA_TRUNK)
	{
		if (by_fallback)
			entry->flags |= CQRS_SAGA_BY_FALLBACK;
		end_branch(run, entry, CQRS_SAGA_COMPLETED);
		return;
	}
	if (by_fallback ? step->has_fallback_compensation || step->has_compensation :
		step->has_compensation)
		push_done(entry, 2 * number + (by_fallback ? 1 : 0));
	if (step->pivot)
	{
		entry->flags |= CQRS_SAGA_IS_PAST_PIVOT;
		entry->ndone = 0;
	}
	go_on(run, entry, cqrs_saga_step_after(run->definition, number));
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
	const CqrsStep *step = &run->definition->steps[run->last.next];
	bool		backward = (run->last.flags & CQRS_SAGA_IS_BACKWARD) != 0;
	int			code = entry->sqlstate == NULL ? 0 :
		MAKE_SQLSTATE(entry->sqlstate[0], entry->sqlstate[1],
					  entry->sqlstate[2], entry->sqlstate[3],
					  entry->sqlstate[4]);
	bool		final;

	entry->attempt = run->last.attempt + 1;
	final = code == ERRCODE_CQRS_GIVE_UP ||
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
		fail(run, entry);
}

/*
 * Do what a message says that does not have a function called.
 */
void
cqrs_saga_receive(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	CqrsSagaEntry entry;

	if (cqrs_saga_is_over(run->last.status) ||
		(run->last.branch != CQRS_SAGA_TRUNK &&
		 run->last.status == CQRS_SAGA_FAILED))
		return;
	switch (message->kind)
	{
		case CQRS_SAGA_WAKE:
			receive_wake(run, message);
			break;
		case CQRS_SAGA_SIGNAL:
			receive_signal(run, message);
			break;
		case CQRS_SAGA_CANCEL:
			receive_cancel(run, message);
			break;
		case CQRS_SAGA_RETRY:
			receive_retry(run, message);
			break;
		case CQRS_SAGA_SKIP:
			receive_skip(run, message);
			break;
		case CQRS_SAGA_ENDED:
			receive_end(run, message);
			break;
		case CQRS_SAGA_STOP:
			if (run->last.branch == CQRS_SAGA_TRUNK)
				break;
			cqrs_saga_next_entry(run, &entry, CQRS_SAGA_CANCEL_ASKED,
								 run->last.next);
			end_branch(run, &entry, CQRS_SAGA_CANCELLED);
			break;
		case CQRS_SAGA_MOVE:
			receive_move(run);
			break;
	}
}

/*
 * The id of the saga that a step begins: the same each time, but another one if that
 * failed and the step is tried again.
 */
void
cqrs_saga_child_id(const CqrsSagaRun *run, int step, pg_uuid_t *child_id)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];
	char	   *what = psprintf("saga of %s/%d/%d",
								cqrs_uuid_text(&run->saga.saga_id, id), step,
								run->last.attempt);

	cqrs_event_id_from(what, child_id);
}

/*
 * Write the entry, and go on with a step.
 */
static void
go_on(CqrsSagaRun *run, CqrsSagaEntry *entry, int step)
{
	CqrsSagaDefinition *definition = run->definition;
	const CqrsSagaEntry *signal;

	entry->nends = 0;
	if (step >= definition->nsteps)
	{
		end(run, entry, CQRS_SAGA_COMPLETED);
		return;
	}
	entry->next = step;
	switch (definition->steps[step].kind)
	{
		case CQRS_STEP:
			entry->status = CQRS_SAGA_RUNNING;
			cqrs_saga_write(run, entry);
			cqrs_saga_wake(run);
			break;
		case CQRS_STEP_SLEEP:
			entry->status = CQRS_SAGA_SLEEPING;
			entry->due = cqrs_time_plus(entry->at,
										definition->steps[step].interval);
			cqrs_saga_write(run, entry);
			cqrs_saga_wake(run);
			break;
		case CQRS_STEP_AWAIT:
			entry->status = CQRS_SAGA_WAITING;
			signal = find_signal(run, definition->steps[step].event_name,
								 NULL);
			if (signal == NULL &&
				definition->steps[step].interval != (Datum) 0)
				entry->due = cqrs_time_plus(entry->at,
											definition->steps[step].interval);
			cqrs_saga_write(run, entry);
			if (signal != NULL)
				take_signal(run, signal);
			else if (run->last.due != DT_NOEND)
				cqrs_saga_wake(run);
			break;
		case CQRS_STEP_PARALLEL:
			entry->status = CQRS_SAGA_WAITING;
			cqrs_saga_write(run, entry);
			begin_branches(run, step);
			break;
		case CQRS_STEP_SAGA:
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
			send(run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, i);
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
 * Begin the saga that is a step of this one. If there is none of that name, this one
 * is stuck until there is.
 */
static void
begin_child(CqrsSagaRun *run, int step)
{
	const char *name = run->definition->steps[step].saga_name;
	CqrsSagaRun child = *run;
	NullableDatum no_key = {.isnull = true};
	CqrsSagaEntry entry;

	child.definition = cqrs_saga_definition_current(name);
	if (child.definition == NULL || depth_of(&run->saga) >= MOST_DEPTH)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_MISSING, step);
		entry.attempt = run->last.attempt;
		entry.status = CQRS_SAGA_STUCK;
		entry.error = child.definition == NULL ?
			psprintf("saga \"%s\" is not registered", name) :
			psprintf("sagas are nested more than %d deep", MOST_DEPTH);
		cqrs_saga_write(run, &entry);
		cqrs_saga_look_later(run, 0);
		return;
	}
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
static void
end_branch(CqrsSagaRun *run, CqrsSagaEntry *entry, CqrsSagaStatus status)
{
	entry->status = status;
	entry->next = -1;
	cqrs_saga_write(run, entry);
	send(run, CQRS_SAGA_ENDED, CQRS_SAGA_TRUNK, entry->branch);
}

/*
 * Write the entry: the saga cannot go on. Undo what was done, unless it is past its
 * point of no return: then a person decides.
 */
static void
fail(CqrsSagaRun *run, CqrsSagaEntry *entry)
{
	if (entry->branch != CQRS_SAGA_TRUNK)
		end_branch(run, entry, CQRS_SAGA_FAILED);
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
 * Have the saga go on when its last entry is due. The time of a step that waits for
 * an event goes the event's way: so it comes behind what had committed before.
 */
static void
wake_later(const CqrsSagaRun *run, bool by_router)
{
	CqrsSagaMessage message = {.kind = CQRS_SAGA_WAKE};
	const CqrsTopic *topic = by_router ? cqrs_saga_router_topic(run->topic) : NULL;

	message.saga_id = run->saga.saga_id;
	message.branch = run->last.branch;
	message.seq = run->last.seq;
	message.payload.isnull = true;
	cqrs_saga_wake_at(topic != NULL ? topic : run->topic, run->saga.name,
					  &message, run->headers, run->last.due);
}

/*
 * Take back what the last entry may have had wake the saga later.
 */
static void
forget_wake(const CqrsSagaRun *run)
{
	if (run->last.due != DT_NOEND || run->last.status == CQRS_SAGA_STUCK)
		cqrs_saga_forget_wake(&run->saga, run->last.branch, run->last.seq);
}

/*
 * The step that the last entry names as the next one; NULL: none.
 */
static const CqrsStep *
current_step(const CqrsSagaRun *run)
{
	int			step = run->last.next;

	return step < 0 || step >= run->definition->nsteps ? NULL :
		&run->definition->steps[step];
}

/*
 * Is the next step the one of this name? NULL: any.
 */
static bool
is_at(const CqrsSagaRun *run, const char *name)
{
	const CqrsStep *step = current_step(run);

	return step != NULL && (name == NULL || strcmp(step->name, name) == 0);
}

static void
push_done(CqrsSagaEntry *entry, int what)
{
	int32	   *done = palloc(sizeof(int32) * (entry->ndone + 1));

	if (entry->ndone > 0)
		memcpy(done, entry->done, sizeof(int32) * entry->ndone);
	done[entry->ndone++] = what;
	entry->done = done;
}

/*
 * The state with an answer under a name; without an answer, as it was.
 */
static NullableDatum
merged(Datum state, const char *name, NullableDatum answer)
{
	JsonbParseState *parse = NULL;
	JsonbValue	value = {.type = jbvString};
	NullableDatum result = {.isnull = true};

	if (answer.isnull)
		return result;
	pushJsonbValue(&parse, WJB_BEGIN_OBJECT, NULL);
	value.val.string.val = unconstify(char *, name);
	value.val.string.len = strlen(name);
	pushJsonbValue(&parse, WJB_KEY, &value);
	JsonbToJsonbValue(DatumGetJsonbP(answer.value), &value);
	pushJsonbValue(&parse, WJB_VALUE, &value);
	result.isnull = false;
	result.value = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&parse,
																   WJB_END_OBJECT,
																   NULL)));
	result.value = DirectFunctionCall2(jsonb_concat, state, result.value);
	return result;
}

/*
 * A time has come, of a step that sleeps or waits.
 */
static void
receive_wake(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsStep *step = current_step(run);
	CqrsSagaEntry entry;

	if (message->seq != run->last.seq || step == NULL)
		return;

	/* The clock was set back, or it was sent again. */
	if (run->last.due != DT_NOEND && run->last.due > cqrs_wall_now())
		cqrs_saga_wake_again(run);
	else if (run->last.status == CQRS_SAGA_STUCK &&
			 step->kind == CQRS_STEP_SAGA)
	{
		if (cqrs_saga_definition_current(step->saga_name) == NULL)
			cqrs_saga_look_later(run, message->looks);
		else
		{
			cqrs_saga_next_entry(run, &entry, CQRS_SAGA_RETRY_ASKED,
								 run->last.next);
			entry.attempt = run->last.attempt;
			go_on(run, &entry, run->last.next);
		}
	}
	else if (run->last.status == CQRS_SAGA_SLEEPING)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_SLEPT, run->last.next);
		go_on(run, &entry, cqrs_saga_step_after(run->definition,
												run->last.next));
	}
	else if (run->last.status == CQRS_SAGA_WAITING &&
			 step->kind == CQRS_STEP_AWAIT && run->last.due != DT_NOEND)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_TIMED_OUT, run->last.next);
		entry.error = psprintf("\"%s\" did not come in time",
							   step->event_name);
		if (step->on_timeout >= 0)
			go_on(run, &entry, step->on_timeout);
		else
			fail(run, &entry);
	}
}

/*
 * A signal: it is what the saga waits for, or is kept until it waits for it.
 */
static void
receive_signal(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsStep *step = current_step(run);
	List	   *untaken = NIL;
	CqrsSagaEntry signal;
	ListCell   *lc;
	int			n = 0;

	if (run->last.branch != CQRS_SAGA_TRUNK ||
		!wants_signal(run, message->name))
		return;
	foreach(lc, cqrs_saga_entries(&run->saga, CQRS_SAGA_MAILBOX))
	{
		CqrsSagaEntry *other = lfirst(lc);

		/* It came before. */
		if (other->has_message &&
			memcmp(&other->message_id, &message->id, UUID_LEN) == 0)
			return;
		n = other->seq;
	}

	memset(&signal, 0, sizeof(signal));
	signal.branch = CQRS_SAGA_MAILBOX;
	signal.seq = n + 1;
	signal.at = cqrs_wall_now();
	signal.event = CQRS_SAGA_SIGNALLED;
	signal.step = signal.next = -1;
	signal.status = CQRS_SAGA_WAITING;
	signal.due = DT_NOEND;
	signal.has_message = true;
	signal.message_id = message->id;
	signal.name = message->name;
	signal.state = message->payload;
	signal.unique_key.isnull = true;
	(void) find_signal(run, message->name, &untaken);
	if (list_length(untaken) >= MOST_SIGNALS)
		cqrs_saga_entry_delete(&run->saga, CQRS_SAGA_MAILBOX,
							   ((CqrsSagaEntry *) linitial(untaken))->seq);
	cqrs_saga_entry_insert(&run->saga, &signal);
	if (run->last.status == CQRS_SAGA_WAITING && step != NULL &&
		step->kind == CQRS_STEP_AWAIT &&
		strcmp(step->event_name, message->name) == 0)
		take_signal(run, &signal);
}

/*
 * May a step that is yet to come wait for a signal of this name?
 */
static bool
wants_signal(const CqrsSagaRun *run, const char *name)
{
	int			i;

	if (run->last.flags & (CQRS_SAGA_IS_BACKWARD | CQRS_SAGA_IS_CANCELLED))
		return false;
	for (i = Max(run->last.next, 0); i < run->definition->nsteps; i++)
		if (run->definition->steps[i].kind == CQRS_STEP_AWAIT &&
			strcmp(run->definition->steps[i].event_name, name) == 0)
			return true;
	return false;
}

/*
 * The oldest signal of this name that no step has taken, or NULL; with untaken, all of
 * them.
 */
static const CqrsSagaEntry *
find_signal(const CqrsSagaRun *run, const char *name, List **untaken)
{
	const CqrsSagaEntry *oldest = NULL;
	List	   *taken = NIL;
	ListCell   *lc;
	ListCell   *lc2;

	CommandCounterIncrement();
	foreach(lc, cqrs_saga_entries(&run->saga, CQRS_SAGA_MAILBOX))
	{
		CqrsSagaEntry *signal = lfirst(lc);
		bool		is_taken = false;

		if (signal->name == NULL || strcmp(signal->name, name) != 0)
			continue;
		if (taken == NIL)
			taken = cqrs_saga_entries(&run->saga, CQRS_SAGA_TRUNK);
		foreach(lc2, taken)
		{
			CqrsSagaEntry *entry = lfirst(lc2);

			is_taken |= entry->has_message &&
				memcmp(&entry->message_id, &signal->message_id, UUID_LEN) == 0;
		}
		if (is_taken)
			continue;
		if (oldest == NULL)
			oldest = signal;
		if (untaken == NULL)
			break;
		*untaken = lappend(*untaken, signal);
	}
	return oldest;
}

/*
 * The step that waits has got what it waits for.
 */
static void
take_signal(CqrsSagaRun *run, const CqrsSagaEntry *signal)
{
	int			number = run->last.next;
	CqrsSagaEntry entry;

	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_RECEIVED, number);
	entry.has_message = true;
	entry.message_id = signal->message_id;
	entry.name = signal->name;
	entry.state = merged(cqrs_saga_state(run),
						 run->definition->steps[number].name, signal->state);
	go_on(run, &entry, cqrs_saga_step_after(run->definition, number));
}

/*
 * A branch has ended, or the saga that this one waits for.
 */
static void
receive_end(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsStep *step = current_step(run);

	if (run->last.branch != CQRS_SAGA_TRUNK || step == NULL ||
		run->last.status != CQRS_SAGA_WAITING)
		return;
	if (step->kind == CQRS_STEP_PARALLEL)
		branch_ended(run, message->seq);
	else if (step->kind == CQRS_STEP_SAGA)
		child_ended(run);
}

/*
 * Note that a branch has ended. When all have, go on.
 */
static void
branch_ended(CqrsSagaRun *run, int branch)
{
	CqrsSagaDefinition *definition = run->definition;
	int			number = run->last.next;
	int			nchildren = definition->steps[number].nchildren;
	CqrsSagaEntry ended;
	CqrsSagaEntry entry;
	Datum		state;
	bool		failed = false;
	bool		changed = false;
	int			i;

	if (branch <= number || branch > number + nchildren ||
		!cqrs_saga_entry_newest(&run->saga, branch, &ended) ||
		!cqrs_saga_is_over(ended.status == CQRS_SAGA_FAILED ?
						   CQRS_SAGA_COMPLETED : ended.status))
		return;
	for (i = 0; i < run->last.nends; i++)
		if (run->last.ends[i] == branch)
			return;

	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_BRANCH_ENDED, branch);
	entry.sqlstate = ended.sqlstate;
	entry.error = ended.error;
	entry.ends = palloc(sizeof(int32) * (run->last.nends + 1));
	if (run->last.nends > 0)
		memcpy(entry.ends, run->last.ends, sizeof(int32) * run->last.nends);
	entry.ends[run->last.nends] = branch;
	entry.nends = run->last.nends + 1;
	if (ended.status == CQRS_SAGA_COMPLETED)
	{
		const CqrsStep *step = &definition->steps[branch];
		bool		by_fallback = (ended.flags & CQRS_SAGA_BY_FALLBACK) != 0;

		if (ended.event != CQRS_SAGA_STEP_SKIPPED &&
			(by_fallback ? step->has_fallback_compensation || step->has_compensation :
			 step->has_compensation))
			push_done(&entry, 2 * branch + (by_fallback ? 1 : 0));
	}
	cqrs_saga_write(run, &entry);
	if (ended.status != CQRS_SAGA_COMPLETED)
		stop_branches(run);
	if (run->last.nends < nchildren)
		return;

	/* All have. */
	CommandCounterIncrement();
	state = cqrs_saga_state(run);
	for (i = number + 1; i <= number + nchildren; i++)
	{
		NullableDatum answer;

		(void) cqrs_saga_entry_newest(&run->saga, i, &ended);
		failed |= ended.status != CQRS_SAGA_COMPLETED;
		answer = merged(state, definition->steps[i].name, ended.state);
		if (!answer.isnull)
		{
			state = answer.value;
			changed = true;
		}
	}
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_JOINED, number);
	if (failed || entry.flags & CQRS_SAGA_IS_CANCELLED)
	{
		fail(run, &entry);
		return;
	}
	entry.state.value = state;
	entry.state.isnull = !changed;
	go_on(run, &entry, cqrs_saga_step_after(definition, number));
}

/*
 * Have the branches that have not ended do so.
 */
static void
stop_branches(const CqrsSagaRun *run)
{
	int			number = run->last.next;
	int			i;
	int			j;

	for (i = number + 1; i <= number + run->definition->steps[number].nchildren; i++)
	{
		bool		has_ended = false;

		for (j = 0; j < run->last.nends; j++)
			has_ended |= run->last.ends[j] == i;
		if (!has_ended)
			send(run, CQRS_SAGA_STOP, i, 0);
	}
}

/*
 * The saga that this one waits for may have ended.
 */
static void
child_ended(CqrsSagaRun *run)
{
	int			number = run->last.next;
	pg_uuid_t	child_id;
	CqrsSaga	child;
	CqrsSagaEntry ended;
	CqrsSagaEntry entry;
	NullableDatum answer = {.isnull = true};

	cqrs_saga_child_id(run, number, &child_id);
	if (!cqrs_saga_find_kept(&child_id, &child, NULL) ||
		!cqrs_saga_entry_newest(&child, CQRS_SAGA_TRUNK, &ended) ||
		!cqrs_saga_is_over(ended.status))
		return;
	if (ended.status == CQRS_SAGA_COMPLETED)
	{
		CqrsSagaRun other = *run;

		other.saga = child;
		other.last = ended;
		answer.value = cqrs_saga_state(&other);
		answer.isnull = false;
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_DONE, number);
		if ((entry.flags & CQRS_SAGA_IS_CANCELLED) == 0)
		{
			cqrs_saga_step_done(run, &entry, answer, false);
			return;
		}
		entry.state = answer;
		if (run->definition->steps[number].has_compensation)
			push_done(&entry, 2 * number);
	}
	else
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_FAILED, number);
		entry.attempt = run->last.attempt + 1;
		entry.error = psprintf("saga \"%s\" ended as %s", child.name,
							   cqrs_saga_statuses[ended.status]);
	}
	fail(run, &entry);
}

/*
 * Undo what was done, if it is not being undone, nor past its point of no return.
 */
static void
receive_cancel(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsStep *step = current_step(run);
	CqrsSagaEntry entry;

	if (run->last.branch != CQRS_SAGA_TRUNK || !is_at(run, message->name) ||
		run->last.flags & (CQRS_SAGA_IS_BACKWARD | CQRS_SAGA_IS_PAST_PIVOT |
						   CQRS_SAGA_IS_CANCELLED))
		return;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_CANCEL_ASKED, run->last.next);
	entry.flags |= CQRS_SAGA_IS_CANCELLED;
	if (run->last.status != CQRS_SAGA_WAITING || step->kind == CQRS_STEP_AWAIT)
	{
		fail(run, &entry);
		return;
	}

	/* What is under way ends first. */
	entry.attempt = run->last.attempt;
	cqrs_saga_write(run, &entry);
	if (step->kind == CQRS_STEP_PARALLEL)
		stop_branches(run);
	else
	{
		CqrsSagaRun child = *run;

		cqrs_saga_child_id(run, run->last.next, &child.saga.saga_id);
		child.saga.name = step->saga_name;
		send(&child, CQRS_SAGA_CANCEL, CQRS_SAGA_TRUNK, 0);
	}
}

/*
 * Try the next step again, or to undo it, as if it had not failed.
 */
static void
receive_retry(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	CqrsSagaStatus status = run->last.status;
	CqrsSagaEntry entry;
	bool		backward = (run->last.flags & CQRS_SAGA_IS_BACKWARD) != 0;

	if (!is_at(run, message->name) ||
		(status != CQRS_SAGA_FAILED && status != CQRS_SAGA_RETRYING &&
		 status != CQRS_SAGA_STUCK &&
		 (status != CQRS_SAGA_COMPENSATING || run->last.due == DT_NOEND)))
		return;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_RETRY_ASKED, run->last.next);
	if (backward)
		entry.status = CQRS_SAGA_COMPENSATING;
	else if (current_step(run)->kind == CQRS_STEP)
		entry.status = CQRS_SAGA_RUNNING;
	else
	{
		if (current_step(run)->kind == CQRS_STEP_SAGA)
			entry.attempt = run->last.attempt;
		go_on(run, &entry, run->last.next);
		return;
	}
	cqrs_saga_write(run, &entry);
	cqrs_saga_wake(run);
}

/*
 * Pass by the next step, which is done in another way, or is not to be done; or pass
 * by undoing it. What is under way is waited for.
 */
static void
receive_skip(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	CqrsSagaStatus status = run->last.status;
	NullableDatum none = {.isnull = true};
	CqrsSagaEntry entry;

	if (!is_at(run, message->name) ||
		(status == CQRS_SAGA_WAITING &&
		 current_step(run)->kind != CQRS_STEP_AWAIT))
		return;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_SKIPPED, run->last.next);
	if (run->last.flags & CQRS_SAGA_IS_BACKWARD)
		cqrs_saga_step_undone(run, &entry, none);
	else if (run->last.branch != CQRS_SAGA_TRUNK)
		end_branch(run, &entry, CQRS_SAGA_COMPLETED);
	else
		go_on(run, &entry, cqrs_saga_step_after(run->definition,
												run->last.next));
}

/*
 * Move the saga to the table of those that start now, so that its own can be
 * truncated: its newest entries, and those that they refer to. The history stays
 * behind. A saga with branches is left where it is: they write entries, too, and if
 * they are tried again, it counts which were done.
 */
static void
receive_move(CqrsSagaRun *run)
{
	const CqrsStep *step = current_step(run);
	int			segment = cqrs_saga_current_segment();
	NullableDatum unique_key = {.isnull = true};
	List	   *signals;
	CqrsSagaEntry entry;
	CqrsSaga	kept;
	ListCell   *lc;
	Datum		state;

	if (run->last.branch != CQRS_SAGA_TRUNK || run->saga.segment == segment ||
		(step != NULL && step->kind == CQRS_STEP_PARALLEL))
		return;
	state = cqrs_saga_state(run);
	(void) cqrs_saga_find_kept(&run->saga.saga_id, &kept, &unique_key);
	signals = cqrs_saga_entries(&run->saga, CQRS_SAGA_MAILBOX);
	foreach(lc, cqrs_saga_entries(&run->saga, CQRS_SAGA_TRUNK))
	{
		CqrsSagaEntry *old = lfirst(lc);
		ListCell   *lc2;

		/* Those that were taken are not needed any more. */
		foreach(lc2, signals)
		{
			CqrsSagaEntry *signal = lfirst(lc2);

			if (old->has_message &&
				memcmp(&old->message_id, &signal->message_id, UUID_LEN) == 0)
				signal->name = NULL;
		}
	}

	forget_wake(run);
	(void) cqrs_saga_delete(&run->saga.saga_id);
	run->saga.segment = segment;
	cqrs_saga_insert(&run->saga);
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_MOVED, run->last.next);
	entry.attempt = run->last.attempt;
	entry.due = run->last.due;
	entry.begins = true;
	entry.unique_key = unique_key;
	entry.state.value = state;
	entry.state.isnull = false;
	entry.state_seq = 0;
	cqrs_saga_entry_insert(&run->saga, &entry);
	run->last = entry;
	foreach(lc, signals)
	{
		CqrsSagaEntry *signal = lfirst(lc);

		if (signal->name == NULL)
			signal->name = "";
		cqrs_saga_entry_insert(&run->saga, signal);
	}
	if (run->last.due != DT_NOEND ||
		run->last.status == CQRS_SAGA_RUNNING ||
		run->last.status == CQRS_SAGA_STUCK ||
		run->last.status == CQRS_SAGA_COMPENSATING)
		cqrs_saga_wake(run);
}

/*
 * Send a message to the saga, or to a branch of it.
 */
static void
send(const CqrsSagaRun *run, CqrsSagaMessageKind kind, int32 branch, int32 seq)
{
	CqrsSagaMessage message = {.kind = kind};

	message.saga_id = run->saga.saga_id;
	message.branch = branch;
	message.seq = seq;
	message.payload.isnull = true;
	cqrs_saga_send(run->topic, run->saga.name, &message, run->headers);
}
