/*-------------------------------------------------------------------------
 *
 * cancel.c
 *	  Takes back a command that was enqueued, wherever it waits.
 *
 * A command is in one of three places until it is executed: it is scheduled, a
 * row of cqrs.scheduled_command; it is in its topic, ahead of the queue's cursor;
 * or it is parked, since it failed, or waits behind one that did. To cancel it is
 * to delete that row. An event that is not there any more is passed by, like
 * one that was rolled back: see window.c. A command that a worker is executing is
 * ended (see running.c), and is a dead letter then.
 *
 * Locking
 *
 * The scheduled row is locked against a release, which may put the command into
 * the topic meanwhile: so that is looked at afterwards. Whoever executes commands
 * of a queue has its cursor's lock until he commits. So we take it, and wait; then
 * the command is done with, or failed and is parked, or was not begun. Nobody
 * executes it while we have the lock, until we commit; and who comes after us
 * reads with a snapshot that was taken under the lock.
 *
 * A queue has a cursor for each of its partitions: all of them are locked, as a
 * change of their number may have moved the command to another one meanwhile.
 *
 * A queue is first looked through without the lock: what is being executed is
 * still there for others. So who asks for what is not there waits for nobody.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "deferred/enqueue.h"
#include "deferred/running.h"
#include "delivery/underway.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/row.h"
#include "log/cursor.h"
#include "log/segment.h"
#include "log/window.h"
#include "mediator/context.h"
#include "registry/registry.h"
#include "retry/retry.h"
#include "shared/announce.h"
#include "subscription/subscription.h"

/* How many references to events are kept at once. */
#define WINDOW_ENTRIES	(64 * 1024)

/* The search for a command in a queue. */
typedef struct Search
{
	const CqrsSubscription *queue;
	const pg_uuid_t *command_id;
	bool		remove;
	bool		running;		/* a worker was executing it, and was told to
								 * end it */
	Snapshot	snapshot;
	int			partitions;		/* as many cursors does the snapshot show */
	FullTransactionId xid;		/* that enqueued it, if it was found in the
								 * topic */
} Search;

static bool remove_scheduled(pg_uuid_t *command_id, TimestampTz *run_at);
static bool is_of_saga(int32 topic_id);
static bool is_queue_of_user(const CqrsSubscription *queue);
static bool find_scheduled(pg_uuid_t *command_id, Snapshot snapshot,
						   ItemPointer tid, TimestampTz *run_at);
static bool is_executed_by_us(const pg_uuid_t *command_id);
static bool remove_enqueued(const pg_uuid_t *command_id);
static CqrsSubscription *end_and_lock(const CqrsSubscription *queue,
									  const pg_uuid_t *command_id,
									  bool *running);
static void forget_request(int code, Datum request);
static bool was_ended(const CqrsSubscription *queue,
					  const pg_uuid_t *command_id);
static bool find_in_queue(Search *search, bool ahead);
static bool find_parked(const Search *search, CqrsCursor *cursor);
static void bury(const CqrsCursor *cursor,
				 const CqrsEvent *event, int attempts);
static bool find_ahead(Search *search, const CqrsCursor *cursor);
static bool find_in_window(Search *search, const CqrsCursor *cursor,
						   CqrsWindow *window);

PG_FUNCTION_INFO_V1(cqrs_cancel_command);

/*
 * cqrs_cancel_command(command_id)
 */
Datum
cqrs_cancel_command(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *command_id;
	TimestampTz run_at;

	cqrs_require_writable("cqrs_cancel_command()");
	cqrs_arg_required(fcinfo, 0, "command id", NULL, NULL);
	command_id = PG_GETARG_UUID_P(0);
	if (remove_scheduled(command_id, &run_at))
	{
		cqrs_shmem_command_removed(run_at);
		PG_RETURN_BOOL(true);
	}
	if (is_executed_by_us(command_id))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(remove_enqueued(command_id));
}

/*
 * Remove a scheduled command; *run_at gets its time. Waits for a transaction
 * that is removing it, which may be rolled back. Returns false if there is no
 * such command; raises 42501 if it is not the user's.
 */
static bool
remove_scheduled(pg_uuid_t *command_id, TimestampTz *run_at)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_SCHEDULED_COMMAND),
								 RowExclusiveLock);
	TM_Result	result = TM_Updated;

	/* What this statement has enqueued counts, too. */
	CommandCounterIncrement();
	while (result == TM_Updated)
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		TM_FailureData failure;
		ItemPointerData tid;

		result = TM_Deleted;
		if (find_scheduled(command_id, snapshot, &tid, run_at))
			result = cqrs_table_delete(rel, &tid, GetCurrentCommandId(true),
									   snapshot, true, &failure);
		UnregisterSnapshot(snapshot);
	}
	table_close(rel, NoLock);
	if (result != TM_Ok && result != TM_Deleted)
		elog(ERROR, "unexpected result of table_tuple_delete: %u", result);
	CommandCounterIncrement();
	return result == TM_Ok;
}

/*
 * Is the current user the owner of the commands for this topic, or a member of
 * that role?
 */
bool
cqrs_command_is_own(int32 topic_id)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(topic_id);

	return is_queue_of_user(topic == NULL ? NULL : topic->runner);
}

/*
 * Find a scheduled command. Raises 42501 if it is not the user's, and 55000 if it
 * is a schedule's.
 */
static bool
find_scheduled(pg_uuid_t *command_id, Snapshot snapshot, ItemPointer tid,
			   TimestampTz *run_at)
{
	CqrsScan	scan;
	ScanKeyData key;
	Datum		values[CQRS_SCHEDULED_COLUMNS];
	bool		nulls[CQRS_SCHEDULED_COLUMNS];
	char		id[CQRS_UUID_TEXT_LEN + 1];
	HeapTuple	row;

	ScanKeyInit(&key, CQRS_SCHEDULED_COMMAND_ID, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(command_id));
	cqrs_scan_begin(&scan, CQRS_REL_SCHEDULED_COMMAND,
					CQRS_REL_SCHEDULED_COMMAND_PKEY, RowExclusiveLock,
					snapshot, ForwardScanDirection, 1, &key);
	row = cqrs_scan_read(&scan, values, nulls);
	if (row != NULL)
	{
		if (!cqrs_command_is_own(DatumGetInt32(values[CQRS_SCHEDULED_TOPIC_ID - 1])))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of command %s",
							cqrs_uuid_text(command_id, id)),
					 errhint("What it takes is membership in the role that enqueued it.")));
		if (is_of_saga(DatumGetInt32(values[CQRS_SCHEDULED_TOPIC_ID - 1])))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("%s is no command, but the time of a saga",
							cqrs_uuid_text(command_id, id)),
					 errhint("Use cqrs_skip_step() or cqrs_cancel_saga().")));
		if (!nulls[CQRS_SCHEDULED_SCHEDULE_ID - 1])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("command %s is the next run of a schedule",
							cqrs_uuid_text(command_id, id)),
					 errhint("Use cqrs_pause_schedule() or cqrs_unschedule().")));
		*tid = row->t_self;
		*run_at =
			DatumGetTimestampTz(values[CQRS_SCHEDULED_RUN_AT - 1]);
	}
	cqrs_scan_end(&scan, NoLock);
	return row != NULL;
}

/*
 * Is what is scheduled for this topic a time of a saga, and no command?
 */
static bool
is_of_saga(int32 topic_id)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(topic_id);

	return topic != NULL && topic->runner != NULL &&
		!topic->runner->runs_commands;
}

/*
 * Is the current user the owner of the commands in this queue, or a member of
 * that role? Commands without an owner belong to the extension's owner.
 */
static bool
is_queue_of_user(const CqrsSubscription *queue)
{
	Oid			owner = queue == NULL ? InvalidOid : queue->owner;

	return has_privs_of_role(GetUserId(), OidIsValid(owner) ? owner :
							 cqrs_extension_owner());
}

/*
 * Is this command being executed up the stack? When it was tried before, it is
 * parked meanwhile.
 */
static bool
is_executed_by_us(const pg_uuid_t *command_id)
{
	CqrsContext *context;

	for (context = cqrs_context_innermost; context != NULL;
		 context = context->outer)
		if (context->runs_command &&
			memcmp(&context->id, command_id, UUID_LEN) == 0)
			return true;
	return false;
}

/*
 * The queues whose commands are the current user's, or of a role that has him as
 * a member.
 */
List *
cqrs_command_queues(void)
{
	HASH_SEQ_STATUS status;
	CqrsSubscription *queue;
	List	   *queues = NIL;

	cqrs_registry_subscriptions(&status);
	while ((queue = hash_seq_search(&status)) != NULL)
		if (queue->runs_commands && is_queue_of_user(queue))
			queues = lappend(queues, queue);
	return queues;
}

/*
 * Is a command in this queue's topic, not yet come to? *own gets whether this
 * transaction enqueued it. Raises 55000 if the queue is restored, and not adopted.
 */
bool
cqrs_command_is_ahead(const CqrsSubscription *queue,
					  const pg_uuid_t *command_id, bool *own)
{
	Search		search = {queue, command_id};
	bool		found = find_in_queue(&search, true);

	*own = found && FullTransactionIdEquals(search.xid,
											GetTopFullTransactionIdIfAny());
	return found;
}

/*
 * Remove a command from the queue that it is in, of those whose commands are the
 * user's. Returns false if it is in none. Raises 55000 if it may be in one that
 * is restored, and not adopted.
 */
static bool
remove_enqueued(const pg_uuid_t *command_id)
{
	ListCell   *lc;

	foreach(lc, cqrs_command_queues())
	{
		Search		search = {lfirst(lc), command_id};

		if (!find_in_queue(&search, false))
			continue;
		search.queue = end_and_lock(search.queue, command_id,
									&search.running);
		cqrs_underway_settle(search.queue->subscription_id);
		search.remove = true;
		if (!find_in_queue(&search, false))
			return was_ended(search.queue, command_id);
		cqrs_subscription_wake(search.queue);
		return true;
	}
	return false;
}

/*
 * End the command, if it is being executed, and lock the queue's cursors. Returns
 * the queue as it is then.
 */
static CqrsSubscription *
end_and_lock(const CqrsSubscription *queue, const pg_uuid_t *command_id,
			 bool *running)
{
	int			request = cqrs_running_cancel(command_id, running);
	CqrsSubscription *locked;

	PG_ENSURE_ERROR_CLEANUP(forget_request, Int32GetDatum(request));
	{
		locked = cqrs_subscription_lock_all(queue);
	}
	PG_END_ENSURE_ERROR_CLEANUP(forget_request, Int32GetDatum(request));
	cqrs_running_forget(request);
	return locked;
}

static void
forget_request(int code, Datum request)
{
	cqrs_running_forget(DatumGetInt32(request));
}

/*
 * Is the command a dead letter because it was cancelled while it was executed?
 */
static bool
was_ended(const CqrsSubscription *queue, const pg_uuid_t *command_id)
{
	return cqrs_admin_run("SELECT FROM cqrs.dead_letter WHERE subscription_id = $1 AND event_id = $2 AND sqlstate = $3",
						  3, CQRS_INT4(queue->subscription_id),
						  CQRS_ARG(UUIDOID, UUIDPGetDatum(command_id)),
						  CQRS_TEXT(unpack_sql_state(ERRCODE_CQRS_CANCELED))) > 0;
}

/*
 * Is the command in the queue, or, with ahead, in its topic? With remove, remove
 * it; the caller has the locks of the queue's cursors then.
 */
static bool
find_in_queue(Search *search, bool ahead)
{
	int32		subscription_id = search->queue->subscription_id;
	bool		found = false;
	int			i;

	search->snapshot = RegisterSnapshot(GetLatestSnapshot());
	search->partitions = cqrs_cursor_partitions(subscription_id,
												search->snapshot);
	for (i = 0; !found && i < search->partitions; i++)
	{
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription_id, i, search->snapshot, &cursor))
			continue;
		cqrs_cursor_require_native(&cursor, search->queue->name);
		found = (!ahead && find_parked(search, &cursor)) ||
			find_ahead(search, &cursor);
	}
	UnregisterSnapshot(search->snapshot);
	return found;
}

/*
 * Is the command parked?
 */
static bool
find_parked(const Search *search, CqrsCursor *cursor)
{
	CqrsScan	scan;
	CqrsEvent	event;
	CqrsParked	parked;
	int64		position = 0;
	int			attempts;
	bool		found = false;

	if (cursor->next_retry_at == 0)
		return false;
	cqrs_parked_events_begin(&scan, cursor, 0, search->snapshot);
	while (!found && cqrs_parked_events_next(&scan, &event, &attempts))
	{
		found = memcmp(DatumGetUUIDP(event.event_id), search->command_id,
					   UUID_LEN) == 0;
		position = event.position;
	}
	cqrs_scan_end(&scan, NoLock);
	if (!found || !search->remove)
		return found;

	cqrs_parked_open(cursor);
	if (!cqrs_parked_find(cursor, position, &parked))
		return false;
	if (search->running &&
		cqrs_parked_read(cursor, position, NULL, &event, &attempts))
		bury(cursor, &event, attempts + 1);
	cqrs_parked_delete(cursor, &parked);
	cqrs_parked_close(cursor);
	cqrs_cursor_append(cursor);
	return true;
}

/*
 * The command was ended, and the batch that it was in was rolled back, but the worker
 * has not recorded it yet.
 */
static void
bury(const CqrsCursor *cursor, const CqrsEvent *event, int attempts)
{
	CqrsFault	fault = {ERRCODE_CQRS_CANCELED};

	fault.message = psprintf("command \"%s\" was canceled",
							 TextDatumGetCString(event->event_name));
	cqrs_bury(cursor, event, attempts, &fault);
}

/*
 * Is the command in the topic, where the cursor has yet to come to? The window
 * that it is in is gone through from there on, and whatever comes behind that.
 */
static bool
find_ahead(Search *search, const CqrsCursor *cursor)
{
	CqrsSnapshot *lower = cursor->snapshot;

	if (cursor->until_tick != 0)
	{
		if (find_in_window(search, cursor,
						   cqrs_window_create(CurrentMemoryContext, lower,
											  cursor->until_snapshot,
											  cursor->position,
											  WINDOW_ENTRIES)))
			return true;
		lower = cursor->until_snapshot;
	}
	return find_in_window(search, cursor,
						  cqrs_window_create(CurrentMemoryContext, lower, NULL,
											 0, WINDOW_ENTRIES));
}

/*
 * Is the command in this window, which is freed?
 */
static bool
find_in_window(Search *search, const CqrsCursor *cursor, CqrsWindow *window)
{
	const CqrsSubscription *queue = search->queue;
	CqrsEvent	event;
	bool		found = false;
	int			i;
	int			j;

	for (i = 0; search->remove && i < queue->ntopics; i++)
		for (j = 0; j < CQRS_SEGMENTS; j++)
			relation_close(cqrs_segment_open(queue->topics[i], j,
											 RowExclusiveLock), NoLock);
	cqrs_window_attach(window, queue->ntopics, queue->topics,
					   search->snapshot);
	while (!found && cqrs_window_next(window, &event))
	{
		found = memcmp(DatumGetUUIDP(event.event_id), search->command_id,
					   UUID_LEN) == 0 &&
			cqrs_event_partition(event.topic->topic_id, event.event_id,
								 event.key, cursor->by_topic,
								 search->partitions) == cursor->partition;
		search->xid = event.xid;
	}
	if (found && search->running)
		bury(cursor, &event, 1);
	if (found && search->remove)
		cqrs_window_delete(window);
	cqrs_window_detach(window);
	cqrs_window_free(window);
	return found;
}
