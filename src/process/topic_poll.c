/*-------------------------------------------------------------------------
 *
 * topic_poll.c
 *	  Finds what was committed and nobody announced: by COMMIT PREPARED in a
 *	  session without this library, say, or by logical replication's apply of
 *	  a prepared transaction.
 *
 * Protocol
 *
 * 1. Each topic has a mark: a snapshot, all of whose events of the topic were
 *	  seen. A look of the manager (see manager.c) makes the cursors of some
 *	  topics due up to its snapshot; that is a new mark for these topics. It
 *	  says nothing about others.
 * 2. A poll takes a snapshot first. Then it asks of each topic whether there is
 *	  an event that its mark does not show. If there is one, the topic is to be
 *	  looked at. If not, the poll's snapshot becomes the topic's mark.
 * 3. A topic that is locked, was altered, or raises an error is passed by, and
 *	  keeps its mark: another poll finds what is there.
 * 4. A poll is made of slices, each a transaction, between which the manager
 *	  does its other work; it takes no more than a hundredth of the time. If
 *	  there can be nothing, because no position was drawn since the mark that
 *	  all topics have in common, and whoever had drawn one had ended by then,
 *	  no topic is asked.
 *
 * Topics share marks by their bits (see shmem.h), as they share what is
 * announced.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/transam.h"
#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "extension/catalog.h"
#include "log/position.h"
#include "log/segment.h"
#include "log/window_scan.h"
#include "process/topic_poll.h"
#include "registry/registry.h"

/* How many topics are asked in a slice. */
#define SLICE_TOPICS	64

/* How long a topic that raised an error is passed by, in milliseconds. */
#define ERROR_WAIT		60000

/* A snapshot, all of whose events of some topics were seen. */
typedef struct Mark
{
	int			refs;
	uint64		serial;			/* a later one has a higher one */
	CqrsSnapshot *snapshot;
	int64		position;		/* the last one drawn before it */
	bool		settled;		/* whoever had drawn a position had ended */
} Mark;

/* All is in this context, made by the first look. */
static MemoryContext poll_context = NULL;

/* The mark of all topics except those whose bit has a later or older one. */
static Mark *common_mark = NULL;
static Mark *marks[CQRS_TOPIC_BITS];

/* The poll underway. */
static Mark *poll_mark = NULL;	/* NULL: none is */
static List *todo = NIL;		/* topics still to be asked */
static CqrsTopicSet passed_by;

/* When the last one began, and how long it took; steady time. */
static TimestampTz poll_began = 0;
static int64 poll_took = 0;

/*
 * Until when topics that raised an error are passed by, by their bits; steady
 * time.
 */
static TimestampTz failed_until[CQRS_TOPIC_BITS];

/* The topic that is being asked; 0: none. */
static int32 current_topic = 0;

static Mark *take_mark(void);
static Mark *share_mark(Mark *mark);
static void drop_mark(Mark **mark);
static bool begin_poll(void);
static void end_poll(void);
static bool slice_in_transaction(CqrsTopicSet *found);
static void ask_some(CqrsTopicSet *found);
static bool ask(const CqrsTopic *topic, Snapshot snapshot, bool *has_events);
static void error_callback(void *arg);

/*
 * Note that the manager looks at these topics, in the current transaction:
 * what is committed by now is going to be delivered.
 */
void
cqrs_poll_looked(const CqrsTopicSet *topics)
{
	bool		all = true;
	Mark	   *mark;
	int			i;

	if (poll_context == NULL)
		poll_context = AllocSetContextCreate(TopMemoryContext, "cqrs poll",
											 ALLOCSET_SMALL_SIZES);
	for (i = 0; all && i < CQRS_TOPIC_WORDS; i++)
		all = topics->words[i] == PG_UINT64_MAX;
	mark = take_mark();
	for (i = 0; i < CQRS_TOPIC_BITS; i++)
	{
		if (!cqrs_topic_set_has(topics, i))
			continue;
		drop_mark(&marks[i]);
		if (!all)
			marks[i] = share_mark(mark);
	}
	if (all || common_mark == NULL)
	{
		drop_mark(&common_mark);
		common_mark = share_mark(mark);
		poll_began = cqrs_steady_now();
	}
	drop_mark(&mark);
}

/*
 * Begin a poll if it is time to, and ask some topics; the manager calls this
 * in each of its cycles after its first look, outside a transaction. Topics
 * that are to be looked at are added to *found. Returns whether there are any.
 */
bool
cqrs_poll_next(CqrsTopicSet *found)
{
	bool		any;

	if (poll_mark == NULL && (cqrs_poll_wait() > 0 || !begin_poll()))
		return false;
	any = slice_in_transaction(found);
	if (todo == NIL)
		end_poll();
	return any;
}

/*
 * How long until the next call is needed, in milliseconds.
 */
long
cqrs_poll_wait(void)
{
	int64		wait = Max(cqrs_poll_interval * INT64CONST(1000),
						   100 * poll_took);

	if (poll_mark != NULL)
		return 0;
	return TimestampDifferenceMilliseconds(cqrs_steady_now(),
										   poll_began + wait);
}

/*
 * A mark for what is committed now. Whoever drew a position that we see got a
 * transaction id before we read the next one. If none below that is in
 * progress, all of them have ended.
 */
static Mark *
take_mark(void)
{
	static uint64 serial = 0;
	MemoryContext oldcontext = MemoryContextSwitchTo(poll_context);
	Mark	   *mark = palloc(sizeof(Mark));
	FullTransactionId next;

	mark->refs = 1;
	mark->serial = ++serial;
	mark->position = cqrs_last_position();
	next = ReadNextFullTransactionId();
	mark->snapshot = cqrs_snapshot_take();
	mark->settled = mark->snapshot->nxip == 0 &&
		!FullTransactionIdPrecedes(mark->snapshot->xmax, next);
	MemoryContextSwitchTo(oldcontext);
	return mark;
}

static Mark *
share_mark(Mark *mark)
{
	mark->refs++;
	return mark;
}

static void
drop_mark(Mark **mark)
{
	if (*mark != NULL && --(*mark)->refs == 0)
	{
		pfree((*mark)->snapshot);
		pfree(*mark);
	}
	*mark = NULL;
}

/*
 * Begin a poll. Returns false if there can be nothing to find.
 */
static bool
begin_poll(void)
{
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	bool		begun = false;
	MemoryContext oldcontext;

	poll_began = cqrs_steady_now();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable() &&
		!(common_mark->settled &&
		  common_mark->position == cqrs_last_position()))
	{
		begun = true;
		poll_mark = take_mark();
		memset(&passed_by, 0, sizeof(passed_by));
		cqrs_registry_topics(&status);
		oldcontext = MemoryContextSwitchTo(poll_context);
		while ((topic = hash_seq_search(&status)) != NULL)
			todo = lappend_int(todo, topic->topic_id);
		MemoryContextSwitchTo(oldcontext);
	}
	CommitTransactionCommand();
	return begun;
}

/*
 * All topics were asked: those that were not passed by get the poll's mark,
 * unless they have a later one by now.
 */
static void
end_poll(void)
{
	int			i;

	for (i = 0; i < CQRS_TOPIC_BITS; i++)
	{
		if (cqrs_topic_set_has(&passed_by, i))
		{
			if (marks[i] == NULL)
				marks[i] = share_mark(common_mark);
		}
		else if (marks[i] != NULL && marks[i]->serial < poll_mark->serial)
			drop_mark(&marks[i]);
	}
	if (common_mark->serial < poll_mark->serial)
	{
		drop_mark(&common_mark);
		common_mark = share_mark(poll_mark);
	}
	drop_mark(&poll_mark);
	poll_took = cqrs_steady_now() - poll_began;
}

/*
 * Ask some topics, in a transaction of its own. After an error, which is
 * logged, its topic is passed by for a while. Returns whether something was
 * found.
 */
static bool
slice_in_transaction(CqrsTopicSet *found)
{
	ErrorContextCallback callback;
	CqrsTopicSet *volatile result = found;
	CqrsTopicSet before = *found;

	callback.callback = error_callback;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	current_topic = 0;
	PG_TRY();
	{
		error_context_stack = &callback;
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable())
			ask_some(result);
		else
		{
			list_free(todo);
			todo = NIL;
		}
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		int			bit = (uint32) current_topic % CQRS_TOPIC_BITS;

		/* If it is about no topic in particular, all are passed by. */
		if (current_topic == 0)
			PG_RE_THROW();
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
		failed_until[bit] = TimestampTzPlusMilliseconds(cqrs_steady_now(),
														ERROR_WAIT);
		cqrs_topic_set_add(&passed_by, bit);
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	return memcmp(&before, result, sizeof(before)) != 0;
}

/*
 * Ask the next topics, and add those that have something to *found.
 */
static void
ask_some(CqrsTopicSet *found)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TimestampTz now = cqrs_steady_now();
	int			n;

	for (n = 0; todo != NIL && n < SLICE_TOPICS; n++)
	{
		int32		topic_id = linitial_int(todo);
		CqrsTopic  *topic = cqrs_registry_topic_by_id(topic_id);
		bool		has_events = false;

		/* A topic that raises an error is not asked a second time. */
		todo = list_delete_first(todo);
		if (topic == NULL)
			continue;
		current_topic = topic_id;
		if (failed_until[(uint32) topic_id % CQRS_TOPIC_BITS] > now ||
			!ask(topic, snapshot, &has_events))
			cqrs_topic_set_add(&passed_by, topic_id);
		else if (has_events)
			cqrs_topic_set_add(found, topic_id);
		current_topic = 0;
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Does the topic have something that its mark does not show? Returns false if
 * that cannot be told without waiting for somebody, or the topic is broken.
 */
static bool
ask(const CqrsTopic *topic, Snapshot snapshot, bool *has_events)
{
	Mark	   *mark = marks[(uint32) topic->topic_id % CQRS_TOPIC_BITS];
	List	   *parts;
	bool		possible;

	if (!cqrs_segments_lock(topic))
		return false;
	possible = cqrs_segments_lock_parts(topic, &parts);
	if (possible)
	{
		possible = cqrs_segments_intact(topic);
		if (possible)
			*has_events = cqrs_window_has_events(topic,
												 (mark ? mark : common_mark)->snapshot,
												 NULL, snapshot);
		cqrs_segments_unlock_parts(parts);
	}
	cqrs_segments_unlock(topic);
	return possible;
}

static void
error_callback(void *arg)
{
	if (current_topic != 0)
		errcontext("looking for unannounced events of topic %d",
				   current_topic);
}
