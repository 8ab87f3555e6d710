/*-------------------------------------------------------------------------
 *
 * signal.c
 *	  Signals that were sent to a saga.
 *
 * A signal that a step may wait for later is kept, as an entry of a branch of its
 * own, from the saga's start on. A step that waits takes the oldest of its name
 * that no entry has taken; one that comes again is known by its id.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"

#include "saga/signal.h"
#include "shared/clock.h"

/* A saga keeps at most this many signals of a name that nothing has taken. */
#define MOST_SIGNALS	100

static bool wants_signal(const CqrsSagaRun *run, const char *name);

/*
 * Keep a signal, if a step that is yet to come may wait for it, and it did not come
 * before. Returns the entry, palloc'd, or NULL.
 */
const CqrsSagaEntry *
cqrs_saga_keep_signal(const CqrsSagaRun *run, const CqrsSagaMessage *message)
{
	CqrsSagaEntry *signal;
	List	   *untaken = NIL;
	ListCell   *lc;
	int			n = 0;

	if (!wants_signal(run, message->name))
		return NULL;
	foreach(lc, cqrs_saga_entries(&run->saga, CQRS_SAGA_MAILBOX))
	{
		CqrsSagaEntry *other = lfirst(lc);

		if (other->has_message &&
			memcmp(&other->message_id, &message->id, UUID_LEN) == 0)
			return NULL;
		n = other ->seq;
	}

	signal = palloc0(sizeof(CqrsSagaEntry));
	signal->branch = CQRS_SAGA_MAILBOX;
	signal->seq = n + 1;
	signal->at = cqrs_wall_now();
	signal->event = CQRS_SAGA_SIGNALLED;
	signal->step = signal->next = -1;
	signal->status = CQRS_SAGA_WAITING;
	signal->due = DT_NOEND;
	signal->has_message = true;
	signal->message_id = message->id;
	signal->name = message->name;
	signal->state = message->payload;
	signal->unique_key.isnull = true;
	(void) cqrs_saga_find_signal(run, message->name, &untaken);
	if (list_length(untaken) >= MOST_SIGNALS)
		cqrs_saga_entry_delete(&run->saga, CQRS_SAGA_MAILBOX,
							   ((CqrsSagaEntry *) linitial(untaken))->seq);
	cqrs_saga_entry_insert(&run->saga, signal);
	return signal;
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
		if (run->definition->steps[i].kind == CQRS_SAGA_AWAIT &&
			strcmp(run->definition->steps[i].event_name, name) == 0)
			return true;
	return false;
}

/*
 * The oldest signal of this name that no step has taken, or NULL; with untaken, all of
 * them.
 */
const CqrsSagaEntry *
cqrs_saga_find_signal(const CqrsSagaRun *run, const char *name, List **untaken)
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
