/*-------------------------------------------------------------------------
 *
 * lane.c
 *	  A saga, or a branch of it, for which a message is being handled: its entries,
 *	  and what wakes it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/backoff.h"
#include "base/event_id.h"
#include "saga/awaited.h"
#include "saga/lane.h"
#include "shared/clock.h"

/* How long to wait until a stuck saga is looked at again, in milliseconds. */
#define FIRST_LOOK		1000
#define LONGEST_LOOK	60000

static void wake_later(const CqrsSagaRun *run, bool by_router);

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
	cqrs_saga_forget(run);
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
	const CqrsSagaStep *step = cqrs_saga_current_step(run);

	if (run->last.due != DT_NOEND)
		wake_later(run, step != NULL && step->kind == CQRS_SAGA_AWAIT &&
				   step->topic != NULL);
	else
		cqrs_saga_tell(run, CQRS_SAGA_WAKE, run->last.branch, run->last.seq);
}

/*
 * The same, though what is to wake it later may be on its way.
 */
void
cqrs_saga_wake_again(const CqrsSagaRun *run)
{
	cqrs_saga_forget(run);
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
	cqrs_saga_forget(run);
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
 * Has the saga noted that this branch of its parallel step has ended?
 */
bool
cqrs_saga_has_ended(const CqrsSagaRun *run, int branch)
{
	int			i;

	for (i = 0; i < run->last.nends; i++)
		if (run->last.ends[i] == branch)
			return true;
	return false;
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
	if (run->last.near_state != (Datum) 0)
		return run->last.near_state;
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
void
cqrs_saga_forget(const CqrsSagaRun *run)
{
	if (run->last.due != DT_NOEND || run->last.status == CQRS_SAGA_STUCK)
		cqrs_saga_forget_wake(&run->saga, run->last.branch, run->last.seq);
}

/*
 * The step that the last entry names as the next one; NULL: none.
 */
const CqrsSagaStep *
cqrs_saga_current_step(const CqrsSagaRun *run)
{
	int			step = run->last.next;

	return step < 0 || step >= run->definition->nsteps ? NULL :
		&run->definition->steps[step];
}

/*
 * Send a message to the saga, or to a branch of it.
 */
void
cqrs_saga_tell(const CqrsSagaRun *run, CqrsSagaMessageKind kind, int32 branch, int32 seq)
{
	CqrsSagaMessage message = {.kind = kind};

	message.saga_id = run->saga.saga_id;
	message.branch = branch;
	message.seq = seq;
	message.payload.isnull = true;
	cqrs_saga_send(run->topic, run->saga.name, &message, run->headers);
}
