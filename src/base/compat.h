/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between the server versions 15 to 19. No other file looks
 *	  at PG_VERSION_NUM; a wrapper has the newest server's signature.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_COMPAT_H
#define CQRS_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "common/base64.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parse_type.h"
#include "postmaster/bgworker.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/sinvaladt.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/regproc.h"

#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif

#if PG_VERSION_NUM < 150000
#error "cqrs_outbox needs PostgreSQL 15 or newer"
#endif

/* 16 merged the pg_<catalog>_aclcheck() and _ownercheck() functions. */
#if PG_VERSION_NUM < 160000
static inline AclResult
object_aclcheck(Oid classid, Oid objectid, Oid roleid, AclMode mode)
{
	switch (classid)
	{
		case DatabaseRelationId:
			return pg_database_aclcheck(objectid, roleid, mode);
		case ForeignServerRelationId:
			return pg_foreign_server_aclcheck(objectid, roleid, mode);
		default:
			Assert(classid == ProcedureRelationId);
			return pg_proc_aclcheck(objectid, roleid, mode);
	}
}

static inline bool
object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	Assert(classid == DatabaseRelationId);
	return pg_database_ownercheck(objectid, roleid);
}
#endif

/* 16 can have it report an error instead of raising it. */
static inline List *
cqrs_qualified_name_list(const char *string)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(string, NULL);
#else
	return stringToQualifiedNameList(string);
#endif
}

/* The same; a type that is not there is InvalidOid. */
static inline Oid
cqrs_type_of_name(const char *name)
{
	Oid			typid = InvalidOid;
	int32		typmod;
#if PG_VERSION_NUM >= 160000
	ErrorSaveContext missing = {T_ErrorSaveContext};

	if (!parseTypeString(name, &typid, &typmod, (Node *) &missing))
		return InvalidOid;
#else
	parseTypeString(name, &typid, &typmod, true);
#endif
	return typid;
}

/* 18 takes bytes that are unsigned. */
static inline int
cqrs_base64_encode(const uint8 *bytes, int length, char *text, int room)
{
#if PG_VERSION_NUM >= 180000
	return pg_b64_encode(bytes, length, text, room);
#else
	return pg_b64_encode((const char *) bytes, length, text, room);
#endif
}

/* 17 added index_insert_cleanup(). */
#if PG_VERSION_NUM >= 170000
#define cqrs_index_insert_cleanup(index, info) \
	index_insert_cleanup(index, info)
#else
#define cqrs_index_insert_cleanup(index, info) ((void) 0)
#endif

/* 16 has a table's update say which indexes to update. */
static inline bool
cqrs_table_update(Relation rel, ItemPointer tid, TupleTableSlot *slot,
				  Snapshot snapshot)
{
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update_indexes;
#else
	bool		update_indexes;
#endif

	simple_table_tuple_update(rel, tid, slot, snapshot, &update_indexes);
	return (bool) update_indexes;
}

/* 19 gave table_tuple_delete() options. */
static inline TM_Result
cqrs_table_delete(Relation rel, ItemPointer tid, CommandId cid,
				  Snapshot snapshot, bool wait, TM_FailureData *tmfd)
{
#if PG_VERSION_NUM >= 190000
	return table_tuple_delete(rel, tid, cid, 0, snapshot, InvalidSnapshot,
							  wait, tmfd);
#else
	return table_tuple_delete(rel, tid, cid, snapshot, InvalidSnapshot, wait,
							  tmfd, false);
#endif
}

/* 18 gave index_beginscan() instrument, 19 flags. */
static inline IndexScanDesc
cqrs_index_beginscan(Relation rel, Relation index, Snapshot snapshot,
					 int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0, 0);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(rel, index, snapshot, nkeys, 0);
#endif
}

/* 18 has generated columns that are computed when they are read. */
#ifdef ATTRIBUTE_GENERATED_VIRTUAL
#define CQRS_ATTRIBUTE_IS_VIRTUAL(attribute) \
	((attribute)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define CQRS_ATTRIBUTE_IS_VIRTUAL(attribute) false
#endif

/* 19 gave table_beginscan() flags. */
static inline TableScanDesc
cqrs_table_beginscan(Relation rel, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan(rel, snapshot, 0, NULL, 0);
#else
	return table_beginscan(rel, snapshot, 0, NULL);
#endif
}

/* 19 wants to be told that a TupleDesc has all its columns. */
#if PG_VERSION_NUM < 190000
#define TupleDescFinalize(tupdesc) ((void) 0)
#endif

/*
 * The process that runs a transaction, or 0 if none does: also if it was
 * prepared, and the process went on. 17 made backend ids process numbers.
 */
static inline int
cqrs_vxid_pid(VirtualTransactionId vxid)
{
	PGPROC	   *proc;

#if PG_VERSION_NUM >= 170000
	proc = vxid.procNumber == INVALID_PROC_NUMBER ? NULL :
		ProcNumberGetProc(vxid.procNumber);
	if (proc != NULL && proc->vxid.lxid != vxid.localTransactionId)
		proc = NULL;
#else
	proc = vxid.backendId == InvalidBackendId ? NULL :
		BackendIdGetProc(vxid.backendId);
	if (proc != NULL && proc->lxid != vxid.localTransactionId)
		proc = NULL;
#endif
	return proc ? proc->pid : 0;
}

/* 19 hands signal handlers a second argument. */
#if PG_VERSION_NUM >= 190000
#define CQRS_PASS_SIGNAL_ARGS	postgres_signal_arg, pg_siginfo
#else
#define CQRS_PASS_SIGNAL_ARGS	postgres_signal_arg
#endif

/* 19 has a name of its own for ignoring a signal. */
#if PG_VERSION_NUM < 190000
#define PG_SIG_IGN	SIG_IGN
#endif

/* 17 lets a background worker connect as a role without LOGIN. */
#ifdef BGWORKER_BYPASS_ROLELOGINCHECK
#define CQRS_ROLE_NEEDS_LOGIN	false
#define CQRS_WORKER_CONNECT_FLAGS	BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define CQRS_ROLE_NEEDS_LOGIN	true
#define CQRS_WORKER_CONNECT_FLAGS	0
#endif

/* 17 moved the local transaction id. */
#if PG_VERSION_NUM >= 170000
#define CQRS_MY_LXID	(MyProc->vxid.lxid)
#else
#define CQRS_MY_LXID	(MyProc->lxid)
#endif

/* 18 puts this before the declaration. */
#ifndef pg_noreturn
#define pg_noreturn	__attribute__((noreturn))
#endif

/*
 * Since the minor versions of 2023, an interrupted DROP DATABASE leaves this.
 */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB	(-2)
#endif

/* 17 has infinite intervals. */
#if PG_VERSION_NUM < 170000
#define INTERVAL_NOT_FINITE(interval) ((void) (interval), false)
#endif

/* 17 names an extension's wait events. */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define CQRS_WAIT_EVENT(var, name) \
	((var) == 0 ? ((var) = WaitEventExtensionNew(name)) : (var))
#else
#define CQRS_WAIT_EVENT(var, name) \
	((var) = PG_WAIT_EXTENSION)
#endif

/* 18 replaced PG_MODULE_MAGIC by a form that carries name and version. */
#ifdef PG_MODULE_MAGIC_EXT
#define CQRS_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "cqrs_outbox", .version = CQRS_VERSION)
#else
#define CQRS_MODULE_MAGIC	PG_MODULE_MAGIC
#endif

#endif							/* CQRS_COMPAT_H */
