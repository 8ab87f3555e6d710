/*-------------------------------------------------------------------------
 *
 * receive.c
 *	  What a message says to a saga, if it does not have a function called.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/timestamp.h"

#include "saga/machine.h"
#include "saga/receive.h"
#include "saga/signal.h"
#include "shared/clock.h"

static void receive_wake(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_signal(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_end(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void branch_ended(CqrsSagaRun *run, int branch);
static void stop_branches(const CqrsSagaRun *run);
static void child_ended(CqrsSagaRun *run);
static void receive_cancel(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_retry(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_skip(CqrsSagaRun *run, const CqrsSagaMessage *message);
static void receive_move(CqrsSagaRun *run);
static bool is_at(const CqrsSagaRun *run, const char *name);

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
			cqrs_saga_end_branch(run, &entry, CQRS_SAGA_CANCELLED);
			break;
		case CQRS_SAGA_MOVE:
			receive_move(run);
			break;
	}
}

/*
 * Is the next step the one of this name? NULL: any.
 */
static bool
is_at(const CqrsSagaRun *run, const char *name)
{
	const CqrsSagaStep *step = cqrs_saga_current_step(run);

	return step != NULL && (name == NULL || strcmp(step->name, name) == 0);
}

/*
 * A time has come, of a step that sleeps or waits.
 */
static void
receive_wake(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsSagaStep *step = cqrs_saga_current_step(run);
	CqrsSagaEntry entry;

	if (message->seq != run->last.seq || step == NULL)
		return;

	/* The clock was set back, or it was sent again. */
	if (run->last.due != DT_NOEND && run->last.due > cqrs_wall_now())
		cqrs_saga_wake_again(run);
	else if (run->last.status == CQRS_SAGA_STUCK &&
			 step->kind == CQRS_SAGA_SUB_SAGA)
	{
		if (cqrs_saga_child_missing(run, run->last.next) != NULL)
			cqrs_saga_look_later(run, message->looks);
		else
		{
			cqrs_saga_next_entry(run, &entry, CQRS_SAGA_RETRY_ASKED,
								 run->last.next);
			entry.attempt = run->last.attempt;
			cqrs_saga_go_on(run, &entry, run->last.next);
		}
	}
	else if (run->last.status == CQRS_SAGA_SLEEPING)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_SLEPT, run->last.next);
		cqrs_saga_go_on(run, &entry, cqrs_saga_step_after(run->definition,
														  run->last.next));
	}
	else if (run->last.status == CQRS_SAGA_WAITING &&
			 step->kind == CQRS_SAGA_AWAIT && run->last.due != DT_NOEND)
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_TIMED_OUT, run->last.next);
		entry.error = psprintf("\"%s\" did not come in time",
							   step->event_name);
		if (step->on_timeout >= 0)
			cqrs_saga_go_on(run, &entry, step->on_timeout);
		else
			cqrs_saga_fail(run, &entry);
	}
}

/*
 * A signal: it is what the saga waits for, or is kept until it waits for it.
 */
static void
receive_signal(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsSagaStep *step = cqrs_saga_current_step(run);
	const CqrsSagaEntry *signal;

	if (run->last.branch != CQRS_SAGA_TRUNK)
		return;
	signal = cqrs_saga_keep_signal(run, message);
	if (signal != NULL && run->last.status == CQRS_SAGA_WAITING &&
		step != NULL && step->kind == CQRS_SAGA_AWAIT &&
		strcmp(step->event_name, message->name) == 0)
		cqrs_saga_take_signal(run, signal);
}

/*
 * A branch has ended, or the saga that this one waits for.
 */
static void
receive_end(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsSagaStep *step = cqrs_saga_current_step(run);

	if (run->last.branch != CQRS_SAGA_TRUNK || step == NULL ||
		run->last.status != CQRS_SAGA_WAITING)
		return;
	if (step->kind == CQRS_SAGA_PARALLEL)
		branch_ended(run, message->seq);
	else if (step->kind == CQRS_SAGA_SUB_SAGA)
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
		(!cqrs_saga_is_over(ended.status) &&
		 ended.status != CQRS_SAGA_FAILED) ||
		cqrs_saga_has_ended(run, branch))
		return;

	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_BRANCH_ENDED, branch);
	entry.sqlstate = ended.sqlstate;
	entry.error = ended.error;
	entry.ends = palloc(sizeof(int32) * (run->last.nends + 1));
	if (run->last.nends > 0)
		memcpy(entry.ends, run->last.ends, sizeof(int32) * run->last.nends);
	entry.ends[run->last.nends] = branch;
	entry.nends = run->last.nends + 1;
	if (ended.status == CQRS_SAGA_COMPLETED &&
		ended.event != CQRS_SAGA_STEP_SKIPPED)
		cqrs_saga_note_done(run, &entry, branch,
							(ended.flags & CQRS_SAGA_BY_FALLBACK) != 0);
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
		(void) cqrs_saga_entry_newest(&run->saga, i, &ended);
		failed |= ended.status != CQRS_SAGA_COMPLETED;
		if (ended.state.isnull)
			continue;
		state = cqrs_saga_merge(state, definition->steps[i].name, ended.state);
		changed = true;
	}
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_JOINED, number);
	if (failed || entry.flags & CQRS_SAGA_IS_CANCELLED)
	{
		cqrs_saga_fail(run, &entry);
		return;
	}
	entry.state.value = state;
	entry.state.isnull = !changed;
	cqrs_saga_go_on(run, &entry, cqrs_saga_step_after(definition, number));
}

/*
 * Have the branches that have not ended do so.
 */
static void
stop_branches(const CqrsSagaRun *run)
{
	int			number = run->last.next;
	int			i;

	for (i = number + 1; i <= number + run->definition->steps[number].nchildren; i++)
		if (!cqrs_saga_has_ended(run, i))
			cqrs_saga_tell(run, CQRS_SAGA_STOP, i, 0);
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
		!cqrs_saga_entry_newest(&child, CQRS_SAGA_TRUNK, &ended))
	{
		/* This one was held up for longer than the other is kept. */
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_FAILED, number);
		entry.attempt = run->last.attempt + 1;
		entry.error = psprintf("how saga \"%s\" ended is not kept any more",
							   run->definition->steps[number].saga_name);
		cqrs_saga_fail(run, &entry);
		return;
	}
	if (!cqrs_saga_is_over(ended.status))
		return;
	if (ended.status == CQRS_SAGA_COMPLETED)
	{
		CqrsSagaRun other = *run;

		other.		saga = child;
		other.		last = ended;

		answer.value = cqrs_saga_state(&other);
		answer.isnull = false;
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_DONE, number);
		if ((entry.flags & CQRS_SAGA_IS_CANCELLED) == 0)
		{
			cqrs_saga_step_done(run, &entry, answer, false);
			return;
		}
		entry.state = answer;
		cqrs_saga_note_done(run, &entry, number, false);
	}
	else
	{
		cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_FAILED, number);
		entry.attempt = run->last.attempt + 1;
		entry.error = psprintf("saga \"%s\" ended as %s", child.name,
							   cqrs_saga_statuses[ended.status]);
	}
	cqrs_saga_fail(run, &entry);
}

/*
 * Undo what was done, if it is not being undone, nor past its point of no return.
 */
static void
receive_cancel(CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	const CqrsSagaStep *step = cqrs_saga_current_step(run);
	CqrsSagaEntry entry;

	if (run->last.branch != CQRS_SAGA_TRUNK || !is_at(run, message->name) ||
		run->last.flags & (CQRS_SAGA_IS_BACKWARD | CQRS_SAGA_IS_PAST_PIVOT |
						   CQRS_SAGA_IS_CANCELLED))
		return;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_CANCEL_ASKED, run->last.next);
	entry.flags |= CQRS_SAGA_IS_CANCELLED;
	if (run->last.status != CQRS_SAGA_WAITING || step->kind == CQRS_SAGA_AWAIT)
	{
		cqrs_saga_fail(run, &entry);
		return;
	}

	/* What is under way ends first. */
	entry.attempt = run->last.attempt;
	cqrs_saga_write(run, &entry);
	if (step->kind == CQRS_SAGA_PARALLEL)
		stop_branches(run);
	else
	{
		CqrsSagaRun child = *run;

		cqrs_saga_child_id(run, run->last.next, &child.saga.saga_id);
		child.saga.name = step->saga_name;
		cqrs_saga_tell(&child, CQRS_SAGA_CANCEL, CQRS_SAGA_TRUNK, 0);
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
	else if (cqrs_saga_current_step(run)->kind == CQRS_SAGA_STEP)
		entry.status = CQRS_SAGA_RUNNING;
	else
	{
		if (cqrs_saga_current_step(run)->kind == CQRS_SAGA_SUB_SAGA)
			entry.attempt = run->last.attempt;
		cqrs_saga_go_on(run, &entry, run->last.next);
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
		 cqrs_saga_current_step(run)->kind != CQRS_SAGA_AWAIT))
		return;
	cqrs_saga_next_entry(run, &entry, CQRS_SAGA_STEP_SKIPPED, run->last.next);
	if (run->last.flags & CQRS_SAGA_IS_BACKWARD)
		cqrs_saga_step_undone(run, &entry, none);
	else if (run->last.branch != CQRS_SAGA_TRUNK)
		cqrs_saga_end_branch(run, &entry, CQRS_SAGA_COMPLETED);
	else
		cqrs_saga_go_on(run, &entry, cqrs_saga_step_after(run->definition,
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
	const CqrsSagaStep *step = cqrs_saga_current_step(run);
	int			segment = cqrs_saga_current_segment();
	NullableDatum unique_key = {.isnull = true};
	List	   *signals;
	CqrsSagaEntry entry;
	CqrsSaga	kept;
	ListCell   *lc;
	Datum		state;

	if (run->last.branch != CQRS_SAGA_TRUNK || run->saga.segment == segment ||
		(step != NULL && step->kind == CQRS_SAGA_PARALLEL))
		return;

	/* It has been there, and that was not truncated yet. */
	kept = run->saga;
	kept.segment = segment;
	if (cqrs_saga_entry_newest(&kept, CQRS_SAGA_TRUNK, &entry))
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

	cqrs_saga_forget(run);
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
