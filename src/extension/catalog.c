/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  The extension's own relations: where they are, and how they are locked.
 *
 * Tables and sequences are looked up by name once in each backend, and again
 * when the relation that marks registry changes (cqrs.topic) is invalidated:
 * DROP EXTENSION does that too, and nothing else drops them. Indexes are
 * looked up whenever they are opened.
 *
 * Locking
 *
 * 1. Background processes take ACCESS SHARE on the extension itself at the
 *	  start of each transaction (cqrs_extension_lock). DROP EXTENSION takes
 *	  ACCESS EXCLUSIVE on it before it locks anything of ours, so it waits for
 *	  one batch at most and never deadlocks with us.
 * 2. Our objects are locked as database objects: the class is the table, the
 *	  object the id. Such locks show in pg_locks, and belong to the
 *	  transaction, not to the session. From first to last:
 *	  (cqrs.topic, topic_id)	SHARE to subscribe or seek, EXCLUSIVE to
 *								truncate a segment of it or to adopt it, which
 *								requires seeing every cursor
 *	  (cqrs.subscription, subscription_id, partition)
 *								EXCLUSIVE to move that cursor
 *	  (cqrs.consumer, consumer_id)
 *								SHARE to consume, EXCLUSIVE to change or seek
 *	  (cqrs.consumer_position, consumer_id, partition)
 *								EXCLUSIVE to consume that partition
 *	  (cqrs.tick, 0)			EXCLUSIVE to tick
 *	  and anywhere among them:
 *	  (cqrs.idempotency_0, hash)
 *								EXCLUSIVE to send a command with that key
 *	  (cqrs.saga, hash)			EXCLUSIVE to start a saga with that key
 *	  (cqrs.message_turn, 0)	SHARE while some message ids are consumed,
 *								EXCLUSIVE to have another table of them written
 *	  (cqrs.message_turn, 1)	EXCLUSIVE to maintain these tables
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "replication/syncrep.h"
#include "storage/lmgr.h"
#include "storage/bufmgr.h"
#include "storage/lock.h"
#include "utils/fmgroids.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "extension/catalog.h"

static const char *const relation_names[CQRS_RELATIONS] = {
	[CQRS_REL_TOPIC] = "topic",
	[CQRS_REL_EVENT_TYPE] = "event_type",
	[CQRS_REL_EVENT_HANDLER] = "event_handler",
	[CQRS_REL_COMMAND] = "command",
	[CQRS_REL_MIDDLEWARE] = "middleware",
	[CQRS_REL_FALLBACK] = "fallback",
	[CQRS_REL_SUBSCRIPTION] = "subscription",
	[CQRS_REL_SUBSCRIPTION_TOPIC] = "subscription_topic",
	[CQRS_REL_CONSUMER] = "consumer",
	[CQRS_REL_CONSUMER_POSITION] = "consumer_position",
	[CQRS_REL_CONSUMER_POSITION_PKEY] = "consumer_position_pkey",
	[CQRS_REL_CONSUMER_DEAD_LETTER] = "consumer_dead_letter",
	[CQRS_REL_CONSUMER_DEAD_LETTER_PKEY] = "consumer_dead_letter_pkey",
	[CQRS_REL_IDENTITY] = "identity",
	[CQRS_REL_TICK] = "tick",
	[CQRS_REL_TICK_PKEY] = "tick_pkey",
	[CQRS_REL_CURSOR] = "cursor",
	[CQRS_REL_CURSOR_PKEY] = "cursor_pkey",
	[CQRS_REL_FAILURE] = "failure",
	[CQRS_REL_FAILURE_PKEY] = "failure_pkey",
	[CQRS_REL_RETRY] = "retry",
	[CQRS_REL_RETRY_PKEY] = "retry_pkey",
	[CQRS_REL_RETRY_LANE] = "retry_lane",
	[CQRS_REL_RETRY_DUE] = "retry_due",
	[CQRS_REL_DEAD_LETTER] = "dead_letter",
	[CQRS_REL_DEAD_LETTER_PKEY] = "dead_letter_pkey",
	[CQRS_REL_SCHEDULED_COMMAND] = "scheduled_command",
	[CQRS_REL_SCHEDULED_COMMAND_PKEY] = "scheduled_command_pkey",
	[CQRS_REL_SCHEDULED_COMMAND_RUN_AT] = "scheduled_command_run_at",
	[CQRS_REL_SCHEDULE] = "schedule",
	[CQRS_REL_IDEMPOTENCY_0] = "idempotency_0",
	[CQRS_REL_IDEMPOTENCY_1] = "idempotency_1",
	[CQRS_REL_IDEMPOTENCY_2] = "idempotency_2",
	[CQRS_REL_IDEMPOTENCY_0_PKEY] = "idempotency_0_pkey",
	[CQRS_REL_IDEMPOTENCY_1_PKEY] = "idempotency_1_pkey",
	[CQRS_REL_IDEMPOTENCY_2_PKEY] = "idempotency_2_pkey",
	[CQRS_REL_IDEMPOTENCY_0_STORED_AT] = "idempotency_0_stored_at",
	[CQRS_REL_IDEMPOTENCY_1_STORED_AT] = "idempotency_1_stored_at",
	[CQRS_REL_IDEMPOTENCY_2_STORED_AT] = "idempotency_2_stored_at",
	[CQRS_REL_SAGA_DEFINITION] = "saga_definition",
	[CQRS_REL_SAGA_DEFINITION_PKEY] = "saga_definition_pkey",
	[CQRS_REL_SAGA] = "saga",
	[CQRS_REL_SAGA_PKEY] = "saga_pkey",
	[CQRS_REL_SAGA_ENTRY_0] = "saga_entry_0",
	[CQRS_REL_SAGA_ENTRY_1] = "saga_entry_1",
	[CQRS_REL_SAGA_ENTRY_2] = "saga_entry_2",
	[CQRS_REL_SAGA_ENTRY_0_PKEY] = "saga_entry_0_pkey",
	[CQRS_REL_SAGA_ENTRY_1_PKEY] = "saga_entry_1_pkey",
	[CQRS_REL_SAGA_ENTRY_2_PKEY] = "saga_entry_2_pkey",
	[CQRS_REL_SAGA_ENTRY_0_KEY] = "saga_entry_0_key",
	[CQRS_REL_SAGA_ENTRY_1_KEY] = "saga_entry_1_key",
	[CQRS_REL_SAGA_ENTRY_2_KEY] = "saga_entry_2_key",
	[CQRS_REL_SAGA_ENTRY_0_ENDED_AT] = "saga_entry_0_ended_at",
	[CQRS_REL_SAGA_ENTRY_1_ENDED_AT] = "saga_entry_1_ended_at",
	[CQRS_REL_SAGA_ENTRY_2_ENDED_AT] = "saga_entry_2_ended_at",
	[CQRS_REL_MESSAGE_ID_0] = "message_id_0",
	[CQRS_REL_MESSAGE_ID_1] = "message_id_1",
	[CQRS_REL_MESSAGE_ID_2] = "message_id_2",
	[CQRS_REL_MESSAGE_ID_0_PKEY] = "message_id_0_pkey",
	[CQRS_REL_MESSAGE_ID_1_PKEY] = "message_id_1_pkey",
	[CQRS_REL_MESSAGE_ID_2_PKEY] = "message_id_2_pkey",
	[CQRS_REL_MESSAGE_ID_0_SOURCE] = "message_id_0_source",
	[CQRS_REL_MESSAGE_ID_1_SOURCE] = "message_id_1_source",
	[CQRS_REL_MESSAGE_ID_2_SOURCE] = "message_id_2_source",
	[CQRS_REL_MESSAGE_TURN] = "message_turn",
	[CQRS_REL_MESSAGE_SOURCE] = "message_source",
	[CQRS_REL_MESSAGE_SOURCE_TIME] = "message_source_time",
	[CQRS_REL_POSITION_SEQ] = "position",
	[CQRS_REL_TICK_SEQ] = "tick_id",
};

/* InvalidOid: not looked up yet. */
static Oid	relation_oids[CQRS_RELATIONS];

/*
 * The relation that marks registry changes. It is not forgotten with the
 * others, so that no invalidation is missed until it is looked up again.
 */
static Oid	marker_oid = InvalidOid;

/* The extension, or InvalidOid: not looked up yet. */
static Oid	extension_oid = InvalidOid;

static Oid	primary_key(Relation table, CqrsRelation index);
static Oid	look_up(CqrsRelation relation);

/*
 * The OID of one of our relations, except indexes (see cqrs_index_open()).
 * Raises 55000 if the extension, or the relation, is not in this database.
 */
Oid
cqrs_relation_oid(CqrsRelation relation)
{
	Oid			relid = relation_oids[relation];

	if (OidIsValid(relid))
		return relid;

	/*
	 * The marker first: without it, a remembered relation would never be
	 * forgotten. Repeat this if the marker is invalidated during the look-up.
	 */
	do
	{
		if (relation != CQRS_REL_TOPIC)
			(void) cqrs_relation_oid(CQRS_REL_TOPIC);
		relid = look_up(relation);
	} while (relation != CQRS_REL_TOPIC &&
			 !OidIsValid(relation_oids[CQRS_REL_TOPIC]));
	relation_oids[relation] = relid;
	if (relation == CQRS_REL_TOPIC)
		marker_oid = relid;
	return relid;
}

/*
 * A sequence's last value; *is_called gets whether it was drawn, or comes
 * next. Its only row is read in place, as nextval() does: every batch calls
 * this.
 */
int64
cqrs_sequence_last(CqrsRelation sequence, bool *is_called)
{
	Relation	rel = relation_open(cqrs_relation_oid(sequence),
									AccessShareLock);
	Buffer		buffer = ReadBuffer(rel, 0);
	HeapTupleHeader tuple;
	Form_pg_sequence_data data;
	Page		page;
	int64		value;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple = (HeapTupleHeader) PageGetItem(page,
										  PageGetItemId(page,
														FirstOffsetNumber));
	data = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	value = data->last_value;
	*is_called = data->is_called;
	UnlockReleaseBuffer(buffer);
	relation_close(rel, AccessShareLock);
	return value;
}

/*
 * Open an index of one of our tables, which is open, and so locked. Raises
 * 55000 if somebody dropped it.
 *
 * Its OID is not remembered: REINDEX CONCURRENTLY makes another index, and
 * swaps their names. It keeps the old one up to date, and drops it only when
 * all transactions that had a lock on the table have ended. So whichever has
 * the name now, or is the primary key, is good for as long as the lock on the
 * table is held.
 */
Relation
cqrs_index_open(Relation table, CqrsRelation index, LOCKMODE lockmode)
{
	Relation	rel;
	Oid			indexid;

	Assert(CheckRelationLockedByMe(table, AccessShareLock, true));
	indexid = primary_key(table, index);
	rel = index_open(OidIsValid(indexid) ? indexid : look_up(index), lockmode);
	if (rel->rd_index->indrelid != RelationGetRelid(table))
		elog(ERROR, "\"%s\" is not an index of \"%s\"",
			 relation_names[index], RelationGetRelationName(table));
	return rel;
}

/*
 * The index, if it is the primary key, which the server remembers with the table; else
 * InvalidOid.
 */
static Oid
primary_key(Relation table, CqrsRelation index)
{
	const char *name = relation_names[index];
	size_t		length = strlen(name);

	if (length < strlen("_pkey") ||
		strcmp(name + length - strlen("_pkey"), "_pkey") != 0)
		return InvalidOid;
	if (!table->rd_indexvalid)
		list_free(RelationGetIndexList(table));
	return table->rd_pkindex;
}

static Oid
look_up(CqrsRelation relation)
{
	Oid			relid = get_relname_relid(relation_names[relation],
										  get_namespace_oid(CQRS_SCHEMA, true));

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation \"%s.%s\" does not exist",
						CQRS_SCHEMA, relation_names[relation]),
				 errhint("Run CREATE EXTENSION %s.", CQRS_EXTENSION)));
	return relid;
}

/*
 * Keep the extension from being dropped until the end of the transaction.
 * Returns its OID, or InvalidOid if it is not there (any more).
 *
 * If we knew it already, and no invalidation has come by the time we have the
 * lock, it is still the one: DROP EXTENSION invalidates the marker before it
 * releases its lock.
 */
Oid
cqrs_extension_lock(void)
{
	Oid			extoid = extension_oid;

	if (!OidIsValid(extoid))
		extoid = get_extension_oid(CQRS_EXTENSION, true);
	if (!OidIsValid(extoid))
		return InvalidOid;
	LockDatabaseObject(ExtensionRelationId, extoid, 0, AccessShareLock);
	AcceptInvalidationMessages();
	if (extension_oid == extoid)
		return extoid;

	/* It may have been dropped, or even made anew, while we waited. */
	if (get_extension_oid(CQRS_EXTENSION, true) != extoid)
		return InvalidOid;
	(void) cqrs_relation_oid(CQRS_REL_TOPIC);
	extension_oid = extoid;
	return extoid;
}

Oid
cqrs_extension_owner(void)
{
	Oid			extoid = get_extension_oid(CQRS_EXTENSION, false);
	SysScanDesc scan;
	ScanKeyData key;
	Relation	rel;
	HeapTuple	tuple;
	Oid			owner;

	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extoid));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "could not find tuple for extension %u", extoid);
	owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return owner;
}

/*
 * Forget where the relations are. Called when the marker is invalidated.
 */
void
cqrs_catalog_reset(void)
{
	memset(relation_oids, 0, sizeof(relation_oids));
	extension_oid = InvalidOid;
}

/*
 * Does an invalidation of this relation mean that the registry changed?
 */
bool
cqrs_catalog_is_marker(Oid relid)
{
	return relid == InvalidOid || relid == marker_oid;
}

/*
 * Have every backend reload its registry once this transaction commits, and
 * this one at the next command.
 */
void
cqrs_catalog_invalidate_registry(void)
{
	CacheInvalidateRelcacheByRelid(cqrs_relation_oid(CQRS_REL_TOPIC));
}

/*
 * Is this the extension's type of that name? Others may have that name, too.
 */
bool
cqrs_type_is(Oid typid, const char *name)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	bool		named;

	if (!HeapTupleIsValid(tuple))
		return false;
	named = strcmp(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname),
				   name) == 0;
	ReleaseSysCache(tuple);
	return named && getExtensionOfObject(TypeRelationId, typid) ==
		get_extension_oid(CQRS_EXTENSION, false);
}

/*
 * Is this type, or the element type of an array, in a temporary schema?
 */
bool
cqrs_type_is_temporary(Oid typid)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	bool		temporary;

	if (!HeapTupleIsValid(tuple))
		return false;
	temporary =
		isAnyTempNamespace(((Form_pg_type) GETSTRUCT(tuple))->typnamespace);
	ReleaseSysCache(tuple);
	return temporary;
}

/*
 * A type's name as in format_type(), for a message; ??? if it was just dropped.
 */
char *
cqrs_type_name(Oid typid)
{
	return format_type_extended(typid, -1, FORMAT_TYPE_ALLOW_INVALID);
}

/*
 * Keep a type from being dropped, until cqrs_type_unlock(). Returns false if it
 * is gone already.
 */
bool
cqrs_type_lock(Oid typid)
{
	LockDatabaseObject(TypeRelationId, typid, 0, AccessShareLock);
	if (SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(typid)))
		return true;
	cqrs_type_unlock(typid);
	return false;
}

void
cqrs_type_unlock(Oid typid)
{
	UnlockDatabaseObject(TypeRelationId, typid, 0, AccessShareLock);
}

void
cqrs_object_tag(LOCKTAG *tag, CqrsRelation relation, int32 id, int32 part)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, cqrs_relation_oid(relation),
					   (Oid) id, part);
}

/*
 * Take a lock on an object of ours until the end of the transaction. Without
 * wait, returns false if it cannot be had at once.
 */
bool
cqrs_object_lock(CqrsRelation relation, int32 id, int32 part, LOCKMODE mode,
				 bool wait)
{
	LOCKTAG		tag;

	cqrs_object_tag(&tag, relation, id, part);
	if (LockAcquire(&tag, mode, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;

	/* From here on, we know what the previous holder committed. */
	AcceptInvalidationMessages();
	return true;
}

/*
 * Release a lock before the transaction ends: nothing was changed under it.
 */
void
cqrs_object_unlock(CqrsRelation relation, int32 id, int32 part, LOCKMODE mode)
{
	LOCKTAG		tag;

	cqrs_object_tag(&tag, relation, id, part);
	(void) LockRelease(&tag, mode, false);
}

/*
 * Does another transaction have a lock that conflicts with this mode? *pid
 * gets the process, or 0 if the transaction is prepared.
 */
bool
cqrs_lock_holder(const LOCKTAG *tag, LOCKMODE mode, int *pid)
{
	VirtualTransactionId *holders = GetLockConflicts(tag, mode, NULL);

	*pid = 0;
	if (!VirtualTransactionIdIsValid(holders[0]))
		return false;
	*pid = cqrs_vxid_pid(holders[0]);
	return true;
}

/*
 * Raises an error where nothing can be written: 25006 in a read-only
 * transaction or on a standby, 25000 in a parallel operation.
 */
void
cqrs_require_writable(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/*
 * Make this transaction's commit wait until it is flushed, and replicated if
 * replication is synchronous, whatever the session's setting.
 */
void
cqrs_commit_durably(void)
{
	if (synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		cqrs_set_commit(SYNCHRONOUS_COMMIT_ON);
}

/*
 * Have this transaction commit with this value of synchronous_commit.
 */
void
cqrs_set_commit(int level)
{
	static const char *const values[] = {
		[SYNCHRONOUS_COMMIT_OFF] = "off",
		[SYNCHRONOUS_COMMIT_LOCAL_FLUSH] = "local",
		[SYNCHRONOUS_COMMIT_REMOTE_WRITE] = "remote_write",
		[SYNCHRONOUS_COMMIT_REMOTE_FLUSH] = "on",
		[SYNCHRONOUS_COMMIT_REMOTE_APPLY] = "remote_apply",
	};

	cqrs_set_config("synchronous_commit", values[level], GUC_ACTION_LOCAL);
}

/*
 * Wait for the disk, and for a standby where replication is synchronous, until all
 * up to there is safe; unless the session's setting is off.
 */
void
cqrs_flush(XLogRecPtr lsn)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF ||
		XLogRecPtrIsInvalid(lsn) || RecoveryInProgress())
		return;
	HOLD_INTERRUPTS();
	XLogFlush(lsn);
	SyncRepWaitForLSN(lsn, true);
	RESUME_INTERRUPTS();
}

/*
 * The same for the commit of a transaction of which we see something: it may not have
 * waited for that.
 */
void
cqrs_flush_commit(TransactionId xid)
{
	cqrs_flush(TransactionIdGetCommitLSN(xid));
}

/*
 * Set, for a while, something that any user may set.
 */
void
cqrs_set_config(const char *name, const char *value, GucAction action)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, action,
							 true, 0, false);
}

/*
 * Is this a name that can be registered? Raises 42602 for an empty one, 42622
 * for one longer than CQRS_MAX_NAME bytes.
 */
void
cqrs_name_check(const char *kind, const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("%s name must not be empty", kind)));
	if (strlen(name) > CQRS_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("%s name \"%s\" is too long", kind, name),
				 errdetail("It has %zu bytes.", strlen(name)),
				 errhint("Names have at most %d bytes.", CQRS_MAX_NAME)));
}

/*
 * The name given as an argument of a SQL function, palloc'd. Raises 22004 for
 * NULL.
 */
char *
cqrs_name_arg(FunctionCallInfo fcinfo, int argno, const char *kind)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s name must not be null", kind)));
	return text_to_cstring(PG_GETARG_TEXT_PP(argno));
}

/*
 * Raise 42704: what is to be removed is not there, as the message says. The view
 * is that of what is there.
 */
void
cqrs_nothing_to_remove(const char *message, const char *view)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg_internal("%s", message),
			 errhint("View %s has what there is. With if_exists => true, this is no error.",
					 view)));
}

/*
 * A boolean argument of a SQL function, which is false if it is not given.
 */
bool
cqrs_flag_arg(FunctionCallInfo fcinfo, int argno)
{
	return !PG_ARGISNULL(argno) && PG_GETARG_BOOL(argno);
}

/*
 * Raises 22004 if an argument of a SQL function is NULL. argument is its name
 * in the message; kind and name, unless NULL, say whose argument it is.
 */
void
cqrs_arg_required(FunctionCallInfo fcinfo, int argno, const char *argument,
				  const char *kind, const char *name)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 kind == NULL ?
				 errmsg("%s must not be null", argument) :
				 errmsg("%s of %s \"%s\" must not be null", argument, kind,
						name)));
}

/*
 * A result of one row, of the type that the function returns.
 */
Datum
cqrs_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 nulls));
}

/*
 * Start a result of many rows, collected in a tuplestore. *tupdesc gets the
 * row type. The caller puts rows and returns NULL.
 */
Tuplestorestate *
cqrs_srf_begin(FunctionCallInfo fcinfo, TupleDesc *tupdesc)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext oldcontext;
	Tuplestorestate *store;
	Oid			result_type;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));

	oldcontext = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, &result_type, tupdesc) == TYPEFUNC_COMPOSITE)
		*tupdesc = BlessTupleDesc(CreateTupleDescCopy(*tupdesc));
	else
	{
		*tupdesc = CreateTemplateTupleDesc(1);
		TupleDescInitEntry(*tupdesc, 1, "value", result_type, -1, 0);
	}
	store = tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
								  false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = store;
	rsinfo->setDesc = *tupdesc;
	MemoryContextSwitchTo(oldcontext);
	return store;
}
