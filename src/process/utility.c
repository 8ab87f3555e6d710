/*-------------------------------------------------------------------------
 *
 * utility.c
 *	  Utility commands that concern our processes.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME or SET TABLESPACE, and CREATE
 * DATABASE with a template fail if anybody is connected to the database. So
 * these commands first hold the database: its manager and workers are asked to
 * exit, and none is started until the transaction ends.
 *
 * COMMIT PREPARED does not run the callbacks of the transaction that emitted;
 * the manager is woken here instead. It is also woken by DROP EXTENSION, to
 * find out that there is nothing to manage any more, and by what may give a
 * subscription another owner.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "delivery/session.h"
#include "process/utility.h"
#include "shared/announce.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

/* How long to wait for our processes, in milliseconds. */
#define LONGEST_WAIT	10000

static ProcessUtility_hook_type prev_ProcessUtility_hook = NULL;

/* The database that this transaction holds. */
static Oid	held_database = InvalidOid;

static void at_xact_end(XactEvent event, void *arg);
static void process_utility(PlannedStmt *pstmt, const char *queryString,
							bool readOnlyTree,
							ProcessUtilityContext context,
							ParamListInfo params, QueryEnvironment *queryEnv,
							DestReceiver *dest, QueryCompletion *qc);
static bool concerns_manager(Node *stmt);
static bool may_give_owner(Node *stmt);
static const char *database_to_hold(Node *stmt);
static bool is_possible(Node *stmt, ProcessUtilityContext context);
static bool may_copy(Oid dboid);
static void hold_database(Oid dboid);
static bool ask_to_exit(Oid dboid);

/*
 * In the postmaster, while it preloads us.
 */
void
cqrs_utility_init(void)
{
	prev_ProcessUtility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	RegisterXactCallback(at_xact_end, NULL);
}

/*
 * The transaction ended: let the database go.
 */
static void
at_xact_end(XactEvent event, void *arg)
{
	CqrsDatabaseSlot *slot;

	if (!OidIsValid(held_database) ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		 event != XACT_EVENT_PREPARE))
		return;
	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	slot = cqrs_database_find(held_database);
	if (slot != NULL && slot->held > 0)
	{
		slot->held--;

		/* If it was dropped, the launcher frees its slot. */
		cqrs_database_due(slot, cqrs_steady_now());
	}
	LWLockRelease(cqrs_shared->lock);
	held_database = InvalidOid;
	cqrs_shmem_wake_launcher();
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	const char *name = database_to_hold(stmt);
	char	   *created = NULL;
	bool		wake_manager;

	/* Before the command: the tree may not outlive it. */
	wake_manager = concerns_manager(stmt);
	if (IsA(stmt, CreatedbStmt))
		created = pstrdup(((CreatedbStmt *) stmt)->dbname);
	if (name != NULL && !OidIsValid(held_database) &&
		is_possible(stmt, context))
	{
		Oid			dboid = get_database_oid(name, true);

		if (OidIsValid(dboid) && dboid != MyDatabaseId &&
			(object_ownercheck(DatabaseRelationId, dboid, GetUserId()) ||
			 (IsA(stmt, CreatedbStmt) && may_copy(dboid))))
			hold_database(dboid);
	}

	cqrs_session_note_utility(stmt);
	if (prev_ProcessUtility_hook)
		prev_ProcessUtility_hook(pstmt, queryString, readOnlyTree, context,
								 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	/* A new database may be a copy of one that has the extension. */
	if (created != NULL)
		cqrs_shmem_announce(get_database_oid(created, true));
	if (wake_manager)
		cqrs_shmem_changed();
}

/*
 * Is the manager to be woken after this command?
 */
static bool
concerns_manager(Node *stmt)
{
	ListCell   *lc;

	if (IsA(stmt, TransactionStmt))
		return ((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
	if (may_give_owner(stmt))
		return true;
	if (!IsA(stmt, DropStmt) ||
		((DropStmt *) stmt)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, ((DropStmt *) stmt)->objects)
		if (strcmp(strVal(lfirst(lc)), CQRS_EXTENSION) == 0)
		return true;
	return false;
}

/*
 * May this command give a subscription another owner, so that there is
 * something to deliver that nobody announces? See owner.c.
 */
static bool
may_give_owner(Node *stmt)
{
	ListCell   *lc;

	switch (nodeTag(stmt))
	{
		case T_ReassignOwnedStmt:
			return true;
		case T_AlterTableStmt:
			foreach(lc, ((AlterTableStmt *) stmt)->cmds)
				if (((AlterTableCmd *) lfirst(lc))->subtype == AT_ChangeOwner)
				return true;
			return false;
		case T_RenameStmt:
			return ((RenameStmt *) stmt)->renameType == OBJECT_VIEW;
		case T_AlterObjectSchemaStmt:
			return ((AlterObjectSchemaStmt *) stmt)->objectType == OBJECT_VIEW;
		case T_GrantStmt:
			return ((GrantStmt *) stmt)->objtype == OBJECT_TABLE &&
				((GrantStmt *) stmt)->grant_option;
		default:
			return false;
	}
}

/*
 * The database that nobody may be connected to, or NULL.
 */
static const char *
database_to_hold(Node *stmt)
{
	List	   *options = NIL;
	const char *option = NULL;
	const char *name = NULL;
	ListCell   *lc;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) stmt)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) stmt)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			options = ((AlterDatabaseStmt *) stmt)->options;
			option = "tablespace";
			name = ((AlterDatabaseStmt *) stmt)->dbname;
			break;
		case T_CreatedbStmt:
			options = ((CreatedbStmt *) stmt)->options;
			option = "template";
			name = "template1";
			break;
		default:
			return NULL;
	}

	foreach(lc, options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		if (strcmp(def->defname, option) != 0)
			continue;
		if (IsA(stmt, AlterDatabaseStmt))
			return name;
		return def->arg != NULL ? defGetString(def) : name;
	}
	return IsA(stmt, CreatedbStmt) ? name : NULL;
}

/*
 * Where a command that needs a database is refused at once, nobody need leave it. One
 * that is not is over with its transaction, or has the database renamed by its owner.
 */
static bool
is_possible(Node *stmt, ProcessUtilityContext context)
{
	return IsA(stmt, RenameStmt) ||
		(context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock());
}

/*
 * May the current user, who does not own this database, copy it?
 */
static bool
may_copy(Oid dboid)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (HeapTupleIsValid(tuple))
	{
		result &= ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Have our processes leave a database and stay out until the transaction ends.
 * If some do not leave within LONGEST_WAIT, the command will complain.
 */
static void
hold_database(Oid dboid)
{
	static uint32 wait_event = 0;
	CqrsDatabaseSlot *slot;
	TimestampTz deadline;

	LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
	slot = cqrs_database_find(dboid);
	if (slot != NULL)
	{
		slot->held++;
		held_database = dboid;
	}
	LWLockRelease(cqrs_shared->lock);

	/* A worker may outlive the manager that asked for it. */
	deadline = TimestampTzPlusMilliseconds(cqrs_steady_now(), LONGEST_WAIT);
	ConditionVariablePrepareToSleep(&cqrs_shared->exited);
	while (ask_to_exit(dboid) && cqrs_steady_now() < deadline)
		ConditionVariableTimedSleep(&cqrs_shared->exited, 100,
									CQRS_WAIT_EVENT(wait_event,
													"CqrsOutboxExit"));
	ConditionVariableCancelSleep();
}

/*
 * Signal the processes of a database. Returns false if there are none.
 */
static bool
ask_to_exit(Oid dboid)
{
	CqrsDatabaseSlot *slot;
	bool		any = false;
	int			i;

	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	slot = cqrs_database_find(dboid);
	if (slot != NULL && slot->state >= CQRS_DATABASE_STARTING)
	{
		any = true;
		if (slot->manager_pid != 0)
			kill(slot->manager_pid, SIGTERM);
	}
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state < CQRS_WORKER_STARTING || worker->dboid != dboid)
			continue;
		any = true;
		if (worker->pid != 0)
			kill(worker->pid, SIGTERM);
	}
	LWLockRelease(cqrs_shared->lock);
	return any;
}
