/*-------------------------------------------------------------------------
 *
 * release.c
 *	  Puts scheduled commands into the outbox when their time has come, in the
 *	  manager or in cqrs_enqueue_scheduled().
 *
 * Protocol
 *
 * 1. To release a command is to delete its row of cqrs.scheduled_command, and
 *	  to emit it to its topic, in one transaction. So it happens exactly once,
 *	  whatever is killed.
 * 2. The manager does this in passes over what is due, in the order of (run_at,
 *	  command_id). A pass is made of batches, each a transaction, between which
 *	  the manager does its other work.
 * 3. next_run_at in shared memory says when the manager is to begin the next
 *	  pass, and where: no waiting command is scheduled for an earlier time. At
 *	  the beginning of a pass, the manager sets it to DT_NOEND, and only then
 *	  takes the first snapshot. Whoever commits a command after that lowers it to
 *	  the command's time, and wakes the manager if that made it lower. At the end
 *	  of the pass, the manager lowers it to the first time in the index that is
 *	  not due.
 * 4. Nobody announces a COMMIT PREPARED, or rows restored from a dump. So about
 *	  each poll_interval, a pass begins at the very first row; less often if it
 *	  has to walk over many dead rows, so that it takes no more than a hundredth
 *	  of the time.
 *
 * So a pass, except for those of point 4, never meets a row that an earlier
 * one has dealt with: its cost does not depend on how many dead rows some
 * transaction keeps, not even if many commands have the same time, as batches
 * go on behind a command's id. Cancelled commands cost nothing either: the
 * first time that is not due is taken from the index without asking whether
 * there is still a row. If there is none, a pass begins in vain.
 *
 * Locking
 *
 * We wait for nobody. A row that somebody has locked, say to cancel the
 * command, is passed by. Whoever cancels lowers next_run_at at the end of the
 * transaction, committed or not. The topic's segment is locked as by any
 * emitter, but only if that is possible at once; otherwise, the topic's
 * commands are passed by, and looked at again a second later. So is a run of a
 * schedule that is being changed.
 *
 * Failure
 *
 * An error ends the batch and is logged, and the topic's commands are passed by
 * for a minute: the others go on. Commands without an owner (see owner.c) wait
 * until they have one; cqrs_health() tells.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "deferred/cron_schedule.h"
#include "deferred/enqueue.h"
#include "deferred/release.h"
#include "emit/emit.h"
#include "extension/catalog.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "shared/clock.h"

/* A batch of the manager's has at most this many commands ... */
#define BATCH_COMMANDS	1000

/* ... and ends after this time, in milliseconds. */
#define LONGEST_BATCH	50

/* How long to pass by a topic that is locked, in milliseconds. */
#define LOCKED_WAIT		1000

/* ... and after an error. */
#define ERROR_WAIT		60000

/* Columns of the index on (run_at, command_id). */
#define INDEX_RUN_AT		1
#define INDEX_COMMAND_ID	2

/* A pass over what is due. */
typedef struct Pass
{
	TimestampTz now;			/* commands due by then, on the wall clock,
								 * are released */

	/* Where the next batch begins: */
	TimestampTz run_at;			/* at this time ... */
	bool		resumed;		/* ... behind ... */
	pg_uuid_t	command_id;		/* ... this id */

	TimestampTz next;			/* the first time that is not due */
	TimestampTz passed_from;	/* time of the first one that was passed by
								 * because of its topic; DT_NOEND: none */
	bool		locked;			/* ... a topic was passed by because it was
								 * locked */
	bool		full;			/* it began at the very first row */
	bool		over;
	int64		released;
} Pass;

/* A batch under way. */
typedef struct ReleaseBatch
{
	Pass	   *pass;
	Relation	rel;
	Relation	index;
	Snapshot	snapshot;
	TupleTableSlot *slot;
	MemoryContext per_command;
	bool		in_manager;
	int64		max_commands;	/* how many more */
	TimestampTz deadline;
} ReleaseBatch;

/* The manager's pass. Times outside of it are steady ones (see clock.c). */
static Pass pass;
static bool underway = false;
static TimestampTz pass_began = 0;

/* When the last pass that began at the very first row ended, ... */
static TimestampTz full_pass_ended = 0;

/* ... and how long it took, in microseconds. */
static int64 full_pass_took = 0;

/*
 * When to begin a pass for what was passed by, and from which time (on the
 * wall clock) on.
 */
static TimestampTz retry_at = DT_NOEND;
static TimestampTz retry_from = DT_NOEND;

/* Topics that are passed by after an error, in TopMemoryContext, until ... */
static List *failed_topics = NIL;
static TimestampTz failed_until = 0;

/* After an error about no topic in particular, nothing is done before this. */
static TimestampTz all_failed_until = 0;

/* The topic of the command that is being released; 0: none. */
static int32 current_topic = 0;

static bool time_for_full_pass(TimestampTz now);
static bool begin_pass(CqrsDatabaseSlot *slot, TimestampTz now);
static void end_pass(CqrsDatabaseSlot *slot);
static void note_retry(TimestampTz from, TimestampTz at);
static void note_failure(void);
static long wait_for_pass(CqrsDatabaseSlot *slot, long wait);
static void release_some(void *arg);
static bool release_batch(Pass *tried, bool in_manager);
static bool release_range(ReleaseBatch *batch, int nkeys, ScanKey keys);
static void release(ReleaseBatch *batch);
static const CqrsTopic *find_topic(ReleaseBatch *batch, int32 topic_id,
								   TimestampTz run_at);
static void error_callback(void *arg);

PG_FUNCTION_INFO_V1(cqrs_enqueue_scheduled);

/*
 * cqrs_enqueue_scheduled()
 */
Datum
cqrs_enqueue_scheduled(PG_FUNCTION_ARGS)
{
	Pass		all = {0};

	cqrs_require_writable("cqrs_enqueue_scheduled()");
	all.now = cqrs_wall_now();
	all.run_at = DT_NOBEGIN;
	all.next = all.passed_from = DT_NOEND;
	(void) release_batch(&all, false);
	PG_RETURN_INT64(all.released);
}

/*
 * Release the next batch, if any command is due; the manager calls this in
 * each of its cycles, outside a transaction. Returns how long to wait then, in
 * milliseconds: no longer than wait (-1: until woken), for what else there is
 * to do.
 */
long
cqrs_release_next(CqrsDatabaseSlot *slot, long wait)
{
	Pass		tried;

	if (!underway && !begin_pass(slot, cqrs_steady_now()))
		return wait_for_pass(slot, wait);

	/* What an error rolls back has to be done again. */
	tried = pass;
	tried.over = true;
	current_topic = 0;
	if (cqrs_registry_run_guarded(release_some, &tried, error_callback))
	{
		pass = tried;
		if (pass.over)
			end_pass(slot);
	}
	else
		note_failure();
	return underway ? 0 : wait_for_pass(slot, wait);
}

/*
 * Is it time to look for what nobody announced? Half the interval, so that it
 * is time whenever the manager polls.
 */
static bool
time_for_full_pass(TimestampTz now)
{
	return now >= full_pass_ended +
		Max(cqrs_poll_interval * INT64CONST(1000) / 2, 100 * full_pass_took);
}

/*
 * If it is time for a pass, set it up and return true.
 */
static bool
begin_pass(CqrsDatabaseSlot *slot, TimestampTz now)
{
	bool		full = time_for_full_pass(now);
	TimestampTz from;

	if (all_failed_until > now)
		return false;
	from = (TimestampTz) pg_atomic_read_u64(&slot->next_run_at);
	if (!full && from > cqrs_wall_now() && retry_at > now)
		return false;

	/* What commits from here on is announced again. */
	from = (TimestampTz) pg_atomic_exchange_u64(&slot->next_run_at,
												(uint64) DT_NOEND);
	if (retry_at <= now)
		from = Min(from, retry_from);
	if (full || from <= retry_from)
	{
		/* This pass meets what was passed by. */
		retry_at = retry_from = DT_NOEND;
	}
	if (failed_until <= now)
	{
		list_free(failed_topics);
		failed_topics = NIL;
	}

	memset(&pass, 0, sizeof(pass));
	pass.full = full || from == DT_NOBEGIN;
	pass.now = cqrs_wall_now();
	pass.run_at = full ? DT_NOBEGIN : from;
	pass.next = pass.passed_from = DT_NOEND;
	pass_began = now;
	underway = true;
	return true;
}

/*
 * The pass is over: note when the next one begins.
 */
static void
end_pass(CqrsDatabaseSlot *slot)
{
	TimestampTz now = cqrs_steady_now();

	underway = false;
	(void) cqrs_shmem_lower_next_run_at(slot, pass.next);
	if (pass.passed_from != DT_NOEND)
		note_retry(pass.passed_from, pass.locked ?
				   TimestampTzPlusMilliseconds(now, LOCKED_WAIT) :
				   failed_until);

	if (pass.full)
	{
		full_pass_ended = now;
		full_pass_took = now - pass_began;
	}
}

/*
 * Have a pass begin at time at, from time from on. What an earlier pass passed
 * by, and this one did not reach, must not be forgotten.
 */
static void
note_retry(TimestampTz from, TimestampTz at)
{
	retry_from = Min(retry_from, from);
	retry_at = Min(retry_at, at);
}

/*
 * A batch failed: pass by the topic that the error was about. If it was about
 * none, or passing it by did not help, begin anew later.
 */
static void
note_failure(void)
{
	TimestampTz until = TimestampTzPlusMilliseconds(cqrs_steady_now(),
													ERROR_WAIT);
	MemoryContext oldcontext;

	if (current_topic == 0 ||
		list_member_int(failed_topics, current_topic))
	{
		underway = false;
		all_failed_until = until;
		note_retry(DT_NOBEGIN, until);
		return;
	}
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	failed_topics = lappend_int(failed_topics, current_topic);
	MemoryContextSwitchTo(oldcontext);
	failed_until = until;
}

/*
 * The shorter one of wait (in milliseconds; -1: for ever) and the time until
 * the next pass. A full pass is no reason to wake up.
 */
static long
wait_for_pass(CqrsDatabaseSlot *slot, long wait)
{
	TimestampTz next = (TimestampTz) pg_atomic_read_u64(&slot->next_run_at);

	next = Max(Min(cqrs_steady_from_wall(next), retry_at), all_failed_until);
	if (next == DT_NOEND)
		return wait;
	return cqrs_sooner(wait, cqrs_steady_now(), next);
}

/*
 * Release a batch of a pass. The commit need not reach the disk at once: the
 * command's handler commits later in the WAL, and if a crash undoes this, it
 * is done again.
 */
static void
release_some(void *arg)
{
	Pass	   *tried = (Pass *) arg;

	cqrs_set_commit(SYNCHRONOUS_COMMIT_OFF);
	tried->over = release_batch(tried, true);
}

/*
 * Release what is due, from where the pass is, in the current transaction; in
 * the manager, no more than a batch. Returns whether the pass is over.
 */
static bool
release_batch(Pass *tried, bool in_manager)
{
	ReleaseBatch batch = {.pass = tried,.in_manager = in_manager};
	ScanKeyData keys[2];
	bool		over = true;

	batch.max_commands = in_manager ? BATCH_COMMANDS : PG_INT64_MAX;
	batch.deadline = !in_manager ? DT_NOEND :
		TimestampTzPlusMilliseconds(cqrs_steady_now(), LONGEST_BATCH);

	/* What this statement has done so far counts. */
	CommandCounterIncrement();
	batch.rel = table_open(cqrs_relation_oid(CQRS_REL_SCHEDULED_COMMAND),
						   RowExclusiveLock);
	batch.index = cqrs_index_open(batch.rel, CQRS_REL_SCHEDULED_COMMAND_RUN_AT,
								  AccessShareLock);
	batch.snapshot = RegisterSnapshot(GetLatestSnapshot());
	batch.slot = table_slot_create(batch.rel, NULL);
	batch.per_command = AllocSetContextCreate(CurrentMemoryContext,
											  "cqrs command",
											  ALLOCSET_DEFAULT_SIZES);

	/* First, the rest of those with the time at which the last batch ended. */
	if (tried->resumed)
	{
		ScanKeyInit(&keys[0], INDEX_RUN_AT, BTEqualStrategyNumber,
					F_TIMESTAMPTZ_EQ, TimestampTzGetDatum(tried->run_at));
		ScanKeyInit(&keys[1], INDEX_COMMAND_ID, BTGreaterStrategyNumber,
					F_UUID_GT, UUIDPGetDatum(&tried->command_id));
		over = release_range(&batch, 2, keys);
	}
	if (over)
	{
		ScanKeyInit(&keys[0], INDEX_RUN_AT,
					tried->resumed ? BTGreaterStrategyNumber :
					BTGreaterEqualStrategyNumber,
					tried->resumed ? F_TIMESTAMPTZ_GT : F_TIMESTAMPTZ_GE,
					TimestampTzGetDatum(tried->run_at));
		over = release_range(&batch, 1, keys);
	}

	MemoryContextDelete(batch.per_command);
	ExecDropSingleTupleTableSlot(batch.slot);
	UnregisterSnapshot(batch.snapshot);
	index_close(batch.index, AccessShareLock);
	table_close(batch.rel, NoLock);
	return over;
}

/*
 * Release what is due in a range of the index. Returns false if the batch is
 * full before the end.
 */
static bool
release_range(ReleaseBatch *batch, int nkeys, ScanKey keys)
{
	Pass	   *tried = batch->pass;
	IndexScanDesc scan;
	ItemPointer tid;
	bool		over = true;

	scan = cqrs_index_beginscan(batch->rel, batch->index, batch->snapshot,
								nkeys);
	scan->xs_want_itup = true;
	index_rescan(scan, keys, nkeys, NULL, 0);
	while ((tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		TimestampTz run_at;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		run_at = DatumGetTimestampTz(index_getattr(scan->xs_itup,
												   INDEX_RUN_AT,
												   scan->xs_itupdesc,
												   &isnull));
		if (run_at > tried->now)
		{
			tried->next = run_at;
			break;
		}
		if (batch->max_commands == 0 ||
			(batch->in_manager && cqrs_steady_now() > batch->deadline))
		{
			over = false;
			break;
		}
		tried->run_at = run_at;
		tried->command_id =
			*DatumGetUUIDP(index_getattr(scan->xs_itup, INDEX_COMMAND_ID,
										 scan->xs_itupdesc, &isnull));
		tried->resumed = true;
		if (index_fetch_heap(scan, batch->slot))
			release(batch);
	}
	index_endscan(scan);
	return over;
}

/*
 * Release the command in the slot, if nobody else has it locked, and its topic
 * can be written to. If it is a schedule's, its next run takes its place.
 */
static void
release(ReleaseBatch *batch)
{
	Pass	   *tried = batch->pass;
	TupleTableSlot *slot = batch->slot;
	CqrsEvent	event = {0};
	MemoryContext oldcontext;
	TM_FailureData failure;
	bool	   *nulls;
	Datum	   *values;
	int32		schedule_id = 0;
	CqrsDueRun	due = {.runs = true,.next = DT_NOEND};

	oldcontext = MemoryContextSwitchTo(batch->per_command);
	slot_getallattrs(slot);
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	current_topic = DatumGetInt32(values[CQRS_SCHEDULED_TOPIC_ID - 1]);
	event.topic = find_topic(batch, current_topic, tried->run_at);
	if (event.topic != NULL && !nulls[CQRS_SCHEDULED_SCHEDULE_ID - 1])
	{
		schedule_id = DatumGetInt32(values[CQRS_SCHEDULED_SCHEDULE_ID - 1]);
		cqrs_due_run(schedule_id, tried->run_at, tried->now, &due);
		if (due.locked)
		{
			tried->passed_from = Min(tried->passed_from, tried->run_at);
			tried->locked = true;
			event.topic = NULL;
		}
	}
	if (event.topic == NULL ||
		cqrs_table_delete(batch->rel, &slot->tts_tid,
						  GetCurrentCommandId(true), batch->snapshot, false,
						  &failure) != TM_Ok)
	{
		current_topic = 0;
		MemoryContextSwitchTo(oldcontext);
		return;
	}

	/*
	 * Toasted values are read from the deleted row's toast table: they stay
	 * there until the end of the transaction.
	 */
	event.emitted_at = GetCurrentTimestamp();
	event.event_id = values[CQRS_SCHEDULED_COMMAND_ID - 1];
	event.event_name = values[CQRS_SCHEDULED_COMMAND_NAME - 1];
	event.key.value = values[CQRS_SCHEDULED_KEY - 1];
	event.key.isnull = nulls[CQRS_SCHEDULED_KEY - 1];
	event.headers.value = values[CQRS_SCHEDULED_HEADERS - 1];
	event.headers.isnull = nulls[CQRS_SCHEDULED_HEADERS - 1];
	event.payload.value = values[CQRS_SCHEDULED_PAYLOAD - 1];
	if (due.runs)
		cqrs_event_write(&event);
	if (due.next != DT_NOEND)
	{
		event.event_id = UUIDPGetDatum(&due.next_id);
		event.headers = due.next_headers;
		cqrs_command_schedule(&event, due.next, schedule_id);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextReset(batch->per_command);

	current_topic = 0;
	tried->released += due.runs ? 1 : 0;
	batch->max_commands--;

	/* The manager knows itself whether it has committed. */
	if (!batch->in_manager)
		cqrs_shmem_command_removed(tried->run_at);
}

/*
 * Find a topic of commands, and lock its current segment for writing. Returns
 * NULL if its commands are to be passed by.
 */
static const CqrsTopic *
find_topic(ReleaseBatch *batch, int32 topic_id, TimestampTz run_at)
{
	const CqrsTopic *topic = cqrs_registry_topic_by_id(topic_id);
	Oid			segment;
	bool		failed;

	if (topic == NULL || topic->runner == NULL ||
		!OidIsValid(topic->runner->owner))
		return NULL;
	segment = topic->segments[topic->current_segment];
	failed = batch->in_manager && list_member_int(failed_topics, topic_id);
	if (!failed && (!OidIsValid(segment) ||
					ConditionalLockRelationOid(segment, RowExclusiveLock)))
		return topic;
	batch->pass->passed_from = Min(batch->pass->passed_from, run_at);
	batch->pass->locked |= !failed;
	return NULL;
}

static void
error_callback(void *arg)
{
	errcontext("putting scheduled commands into the outbox");
}
