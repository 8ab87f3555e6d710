/*-------------------------------------------------------------------------
 *
 * session.c
 *	  What a handler leaves in its session.
 *
 * The handlers of a batch share a transaction, and those of all subscriptions
 * of an owner share a process. None of them should notice. So each event ends
 * as if its transaction did:
 *
 * 1. Deferred triggers and constraints are fired, with the settings and the
 *	  role that the handler left; an error is that event's. Then the server's
 *	  trigger manager begins anew: SET CONSTRAINTS ends, too.
 * 2. Cursors, held ones too, and open large objects are closed.
 * 3. Settings and role are what they were before the event: SET is undone as
 *	  well as SET LOCAL and SET TRANSACTION.
 * 4. Prepared statements and what currval() and lastval() return are forgotten.
 *	  There is something to UNLISTEN only in PostgreSQL 14: later servers
 *	  refuse LISTEN in a background worker.
 *
 * What can only be done at the end of a transaction makes the event the last
 * one of its batch (cqrs_session_event_was_alone):
 *
 * 5. Temporary objects: ON COMMIT actions belong to the event. After the
 *	  transaction, all temporary objects are dropped.
 * 6. Session-level advisory locks, which are released after the transaction,
 *	  not before: what they protect is not committed earlier.
 * 7. NOTIFY: the server sends equal notifications of one transaction once.
 *
 * A transaction that was rolled back leaves prepared statements and
 * session-level locks behind, too: they are forgotten as well.
 *
 * What stays is what only a new process would end: what libraries and
 * procedural languages keep for themselves.
 *
 * cqrs_drain() runs within a transaction of somebody else's, whose cursors,
 * triggers and temporary tables are not ours to end. There, only 3 applies.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "libpq/be-fsstubs.h"
#include "nodes/memnodes.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "delivery/session.h"
#include "extension/catalog.h"

static object_access_hook_type prev_object_access_hook = NULL;

/* The event did something that only ends with its transaction. */
static bool alone = false;

/* The session's search_path from the next transaction on; NULL: no other. */
static char *next_search_path = NULL;

static bool has_portals(void);
static void object_access(ObjectAccessType access, Oid classId, Oid objectId,
						  int subId, void *arg);

/*
 * Called once, in a worker.
 */
void
cqrs_session_init_worker(void)
{
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
}

/*
 * A utility statement is about to be executed.
 */
void
cqrs_session_note_utility(const Node *stmt)
{
	if (IsA(stmt, NotifyStmt))
		alone = true;
}

/*
 * Begin an event; returns what cqrs_session_end_event() needs. Events that a
 * handler in a worker drains count as done by that handler.
 */
int
cqrs_session_begin_event(bool in_worker)
{
	if (in_worker)
	{
		/* lastval() must not show our own calls of nextval(). */
		ResetSequenceCaches();
		alone = false;
	}
	return NewGUCNestLevel();
}

/*
 * Fire the triggers that the event deferred to the end of its transaction. Called
 * in a worker, outside of any query, in the transaction or in the event's own
 * subtransaction. The server forgets what was fired, though that may yet be
 * rolled back; but nothing was deferred before the event. Raises what the
 * triggers raise.
 */
void
cqrs_session_fire_deferred(void)
{
	AfterTriggerFireDeferred();
}

/*
 * End an event that was handled, or that failed and was rolled back alone. In
 * a worker, after cqrs_session_fire_deferred().
 */
void
cqrs_session_end_event(int level, bool in_worker)
{
	if (!in_worker)
	{
		AtEOXact_GUC(false, level);
		return;
	}

	if (has_portals())
		PortalHashTableDeleteAll();
	AtEOXact_LargeObject(true);
	AfterTriggerEndXact(true);
	AfterTriggerBeginXact();
	AtEOXact_GUC(false, level);
	DropAllPreparedStatements();
	Async_UnlistenAll();
}

/*
 * In a worker, after an event failed and its subtransaction was rolled back: end
 * what the session keeps all the same.
 */
void
cqrs_session_after_failure(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/*
 * Must the event that was just handled be the last one of its transaction?
 */
bool
cqrs_session_event_was_alone(void)
{
	return alone ||
		(MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0;
}

/*
 * How many subtransactions of this transaction the server has to keep. With
 * more than PGPROC_MAX_CACHED_SUBXIDS, they cost every snapshot of the
 * cluster.
 */
int
cqrs_session_subtransactions(void)
{
	return MyProc->subxidStatus.count;
}

/*
 * In a worker: the handlers that are called now have this search_path. From the
 * next transaction on it is the session's own. While a setting is another than
 * the session's, the server looks through all of them at the end of each event,
 * which would take a tenth of a short handler's time.
 */
void
cqrs_session_keep_search_path(const char *path)
{
	if (next_search_path != NULL)
		pfree(next_search_path);
	next_search_path = MemoryContextStrdup(TopMemoryContext, path);
}

/*
 * In a worker, after the end of a transaction in which handlers were called,
 * whether it committed or not.
 */
void
cqrs_session_after_transaction(void)
{
	Assert(!IsTransactionState());
	DropAllPreparedStatements();
	LockReleaseSession(USER_LOCKMETHOD);
	if (next_search_path != NULL)
	{
		cqrs_set_config("search_path", next_search_path, GUC_ACTION_SET);
		pfree(next_search_path);
		next_search_path = NULL;
	}

	/* Until the next transaction begins, the flags are the last one's. */
	if ((MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) == 0)
		return;

	/* A crash ends the session anyway. */
	StartTransactionCommand();
	cqrs_set_commit(SYNCHRONOUS_COMMIT_OFF);
	PushActiveSnapshot(GetTransactionSnapshot());
	ResetTempTableNamespace();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * May there be cursors? To search the server's table of them would take a
 * thirtieth of a short handler's time. But the memory of each is below one
 * context, which we can find by its name.
 */
static bool
has_portals(void)
{
	static MemoryContext portals = NULL;
	MemoryContext context;

	for (context = TopMemoryContext->firstchild;
		 context != NULL && portals == NULL; context = context->nextchild)
	{
		if (strcmp(context->name, "TopPortalContext") == 0)
			portals = context;
	}
	return portals == NULL || portals->firstchild != NULL;
}

/*
 * Object access hook: note which functions are called.
 */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	if (access == OAT_FUNCTION_EXECUTE)
	{
		switch (objectId)
		{
			case F_PG_NOTIFY:
			case F_PG_ADVISORY_LOCK_INT8:
			case F_PG_ADVISORY_LOCK_SHARED_INT8:
			case F_PG_TRY_ADVISORY_LOCK_INT8:
			case F_PG_TRY_ADVISORY_LOCK_SHARED_INT8:
			case F_PG_ADVISORY_LOCK_INT4_INT4:
			case F_PG_ADVISORY_LOCK_SHARED_INT4_INT4:
			case F_PG_TRY_ADVISORY_LOCK_INT4_INT4:
			case F_PG_TRY_ADVISORY_LOCK_SHARED_INT4_INT4:
				alone = true;
				break;
		}
	}
	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);
}
