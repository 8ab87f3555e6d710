/*-------------------------------------------------------------------------
 *
 * message_id.c
 *	  Messages that are consumed once, however often they are sent: their ids.
 *
 * An id is of a role and a source: nobody can have a message of another role look
 * consumed, which would lose it. It is written by the transaction that consumes the
 * message, so one exists if and only if the other does.
 *
 * Protocol
 *
 * Ids are in three tables, of which one is written at a time (see message_turn.c). To
 * consume an id:
 *
 * 1. Lock the turn in share mode. So everybody writes the same table.
 * 2. Look for the id in the other tables, the oldest first, and then in this one,
 *	  for what committed, and for what may yet. If somebody's transaction may, unlock the
 *	  turn, wait for its end, and begin anew. If it is there, it was consumed.
 * 3. Insert it, unless the unique index has it by now: then begin anew.
 * 4. Unlock the turn. It is only ever locked for as long as some ids take, and never
 *	  while waiting for a transaction: so who changes it waits for milliseconds, however
 *	  many ids are consumed all the time. The tables are closed as well, so that
 *	  one of them can be truncated.
 *
 * A transaction that has written an id need not have ended when the next table is
 * written: it is found in its table, and waited for. So transactions may be long, or
 * prepared, and which table is written is of no importance to what is consumed. An id
 * that is moved to another table goes to the one that is looked at last.
 *
 * There is no lock an id: ten thousand in a transaction would exhaust the server's.
 * Nor is the transaction's snapshot used, which under REPEATABLE READ does not show
 * what committed while we waited; nor are serializable transactions in conflict because
 * their ids are on the same page.
 *
 * Locking
 *
 * The ids of a call are consumed in their order as bytes, so that two calls cannot wait
 * for each other. Transactions with several calls can, and get 40P01.
 *
 * ACCESS SHARE on all three tables while the turn is locked; ROW EXCLUSIVE on what was
 * written until the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "extension/row.h"
#include "inbox/message_id.h"

/* How many ids are consumed before others may change the turn. */
#define IDS_AT_ONCE		100

/* Columns of cqrs.message_turn. */
#define TURN_CURRENT	1
#define TURN_SINCE		2

/* One of the ids of a call. */
typedef struct MessageId
{
	const char *bytes;
	int			length;
	int			number;
} MessageId;

/* Who has an id, as far as it is known. */
typedef enum Owner
{
	NOBODY,
	CONSUMED,					/* it is consumed */
	IN_PROGRESS					/* it may be, by another transaction */
} Owner;

/* The other transaction. */
typedef struct Other
{
	TransactionId xid;
	uint32		token;			/* it will soon know about the row */
} Other;

static char *source_arg(FunctionCallInfo fcinfo);
static void check_length(const char *what, int length);
static int	compare_ids(const void *a, const void *b);
static Owner look(CqrsMessageTables *tables, const Datum *values, Other *other);
static Owner look_in_table(CqrsMessageTables *tables, int table,
						   const Datum *values, Other *other);
static bool is_of_role(TupleTableSlot *slot, Oid role);
static void wait_for(const Other *other);

PG_FUNCTION_INFO_V1(cqrs_consumed);
PG_FUNCTION_INFO_V1(cqrs_consumed_many);

/*
 * cqrs_consumed(source, message_id)
 */
Datum
cqrs_consumed(PG_FUNCTION_ARGS)
{
	char	   *source = source_arg(fcinfo);
	Datum		id;
	bool		first;

	cqrs_arg_required(fcinfo, 1, "message id", "source", source);
	cqrs_require_writable("cqrs_consumed()");
	id = PointerGetDatum(PG_GETARG_TEXT_PP(1));
	cqrs_message_ids_consume(GetUserId(), source, 1, &id, &first);
	PG_RETURN_BOOL(first);
}

/*
 * cqrs_consumed(source, message_ids)
 */
Datum
cqrs_consumed_many(PG_FUNCTION_ARGS)
{
	char	   *source = source_arg(fcinfo);
	ArrayType  *array;
	Datum	   *ids;
	bool	   *nulls;
	bool	   *first;
	Datum	   *result;
	int			n;
	int			i;

	cqrs_arg_required(fcinfo, 1, "message ids", "source", source);
	cqrs_require_writable("cqrs_consumed()");
	array = PG_GETARG_ARRAYTYPE_P(1);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("message ids of source \"%s\" are not a one-dimensional array",
						source)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &ids, &nulls,
					  &n);
	for (i = 0; i < n; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("message id of source \"%s\" must not be null",
							source),
					 errdetail("Element %d of the array is null.", i + 1)));

	first = palloc(Max(n, 1) * sizeof(bool));
	result = palloc(Max(n, 1) * sizeof(Datum));
	cqrs_message_ids_consume(GetUserId(), source, n, ids, first);
	for (i = 0; i < n; i++)
		result[i] = BoolGetDatum(first[i]);
	PG_RETURN_ARRAYTYPE_P(construct_array(result, n, BOOLOID, 1, true,
										  TYPALIGN_CHAR));
}

/*
 * Consume messages of a role's source by their ids, each a text that is not toasted
 * outside the row. first gets for each whether it is consumed now; if not, it was
 * before, which may be earlier in this transaction, or in this call.
 *
 * The caller has checked that the transaction may write (cqrs_require_writable). Waits
 * for transactions that are consuming one of them. Raises 22023 for an id, or the
 * name of a source, that is empty or too long.
 */
void
cqrs_message_ids_consume(Oid role, const char *source, int n, const Datum *ids,
						 bool *first)
{
	CqrsMessageSource of;
	CqrsMessageTables tables;
	Datum		values[CQRS_MESSAGE_COLUMNS];
	MessageId  *sorted = palloc(Max(n, 1) * sizeof(MessageId));
	int			i;

	check_length("source of messages", strlen(source));
	for (i = 0; i < n; i++)
	{
		text	   *id = DatumGetTextPP(ids[i]);

		sorted[i].bytes = VARDATA_ANY(id);
		sorted[i].length = VARSIZE_ANY_EXHDR(id);
		sorted[i].number = i;
		check_length("message id", sorted[i].length);
	}
	if (n == 0)
		return;
	qsort(sorted, n, sizeof(MessageId), compare_ids);

	cqrs_message_source_init(&of, role, source);
	values[CQRS_MESSAGE_SOURCE_TIME - 1] =
		Int64GetDatum(cqrs_message_source_note(&of));
	values[CQRS_MESSAGE_ROLE - 1] = ObjectIdGetDatum(role);
	values[CQRS_MESSAGE_NATIVE - 1] = BoolGetDatum(true);
	values[CQRS_MESSAGE_ROLE_NAME - 1] = of.role_name;
	values[CQRS_MESSAGE_SOURCE - 1] = of.name;

	cqrs_message_tables_open(&tables);
	for (i = 0; i < n; i++)
	{
		text	   *id = cstring_to_text_with_len(sorted[i].bytes,
												  sorted[i].length);

		CHECK_FOR_INTERRUPTS();
		values[CQRS_MESSAGE_ID - 1] = PointerGetDatum(id);
		first[sorted[i].number] = cqrs_message_add(&tables, values);
		pfree(id);
		if (i % IDS_AT_ONCE == IDS_AT_ONCE - 1)
		{
			cqrs_message_tables_close(&tables);
			cqrs_message_tables_open(&tables);
		}
	}
	cqrs_message_tables_close(&tables);
	pfree(sorted);
}

/*
 * Lock the turn and open the tables, in the current memory context. Waits for who has
 * another table written.
 */
void
cqrs_message_tables_open(CqrsMessageTables *tables)
{
	TimestampTz since;
	int			i;

	(void) cqrs_object_lock(CQRS_REL_MESSAGE_TURN, 0, 0, ShareLock, true);
	tables->current = cqrs_message_turn(&since);
	InitDirtySnapshot(tables->snapshot);
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_MESSAGE_ID_0 + i),
									 AccessShareLock);

		tables->rels[i] = rel;
		tables->indexes[i] = cqrs_index_open(rel,
											 CQRS_REL_MESSAGE_ID_0_PKEY + i,
											 AccessShareLock);
		tables->slots[i] = table_slot_create(rel, NULL);
		tables->scans[i] = cqrs_index_beginscan(rel, tables->indexes[i],
												&tables->snapshot, 3);
	}
}

void
cqrs_message_tables_close(CqrsMessageTables *tables)
{
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		index_endscan(tables->scans[i]);
		ExecDropSingleTupleTableSlot(tables->slots[i]);
		index_close(tables->indexes[i], AccessShareLock);
		table_close(tables->rels[i], AccessShareLock);
	}
	cqrs_object_unlock(CQRS_REL_MESSAGE_TURN, 0, 0, ShareLock);
}

/*
 * Add a row, none of whose columns is NULL, unless there is one for the same message.
 * Returns whether it was added. Waits for transactions that are adding one; the tables
 * are closed meanwhile.
 */
bool
cqrs_message_add(CqrsMessageTables *tables, const Datum *values)
{
	static const bool nulls[CQRS_MESSAGE_COLUMNS] = {0};

	for (;;)
	{
		Other other;

		switch (look(tables, values, &other))
		{
			case NOBODY:
				if (cqrs_row_insert_new(CQRS_REL_MESSAGE_ID_0 + tables->current,
										values, nulls))
					return true;
				break;
			case CONSUMED:
				return false;
			case IN_PROGRESS:
				cqrs_message_tables_close(tables);
				wait_for(&other);
				cqrs_message_tables_open(tables);
				break;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Which table is written, and since when. It stays so as long as the caller has a lock
 * on the turn.
 */
int
cqrs_message_turn(TimestampTz *since)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_MESSAGE_TURN),
								 AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	TupleDesc	desc = RelationGetDescr(rel);
	HeapTuple	row = heap_getnext(scan, ForwardScanDirection);
	int			current;

	if (row == NULL)
		elog(ERROR, "table \"%s\" has no row", RelationGetRelationName(rel));
	current = DatumGetInt32(cqrs_row_column(row, TURN_CURRENT, desc));
	*since = DatumGetTimestampTz(cqrs_row_column(row, TURN_SINCE, desc));
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return current;
}

/*
 * The first argument: a source's name.
 */
static char *
source_arg(FunctionCallInfo fcinfo)
{
	cqrs_arg_required(fcinfo, 0, "source of messages", NULL, NULL);
	return text_to_cstring(PG_GETARG_TEXT_PP(0));
}

static void
check_length(const char *what, int length)
{
	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what)));
	if (length > CQRS_MAX_MESSAGE_ID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is too long", what),
				 errdetail("It has %d bytes.", length),
				 errhint("It may have %d bytes at most.",
						 CQRS_MAX_MESSAGE_ID)));
}

/*
 * By their bytes; the same in the order of the call, so that the first one is consumed.
 */
static int
compare_ids(const void *a, const void *b)
{
	const MessageId *left = (const MessageId *) a;
	const MessageId *right = (const MessageId *) b;
	int			order = memcmp(left->bytes, right->bytes,
							   Min(left->length, right->length));

	if (order == 0)
		order = left->length - right->length;
	return order != 0 ? order : left->number - right->number;
}

/*
 * Who has the message? If another transaction may, *other gets which.
 */
static Owner
look(CqrsMessageTables *tables, const Datum *values, Other *other)
{
	int			i;

	/* What is moved from the first one is seen there, or else in the last. */
	for (i = 1; i <= CQRS_SEGMENTS; i++)
	{
		Owner		owner = look_in_table(tables,
										  (tables->current + i) % CQRS_SEGMENTS,
										  values, other);

		if (owner != NOBODY)
			return owner;
	}
	return NOBODY;
}

static Owner
look_in_table(CqrsMessageTables *tables, int table, const Datum *values,
			  Other *other)
{
	IndexScanDesc scan = tables->scans[table];
	TupleTableSlot *slot = tables->slots[table];
	ScanKeyData keys[3];
	Owner		owner = NOBODY;

	/* In the order of the primary key. */
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				values[CQRS_MESSAGE_ID - 1]);
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				values[CQRS_MESSAGE_SOURCE - 1]);
	ScanKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_TEXTEQ,
				values[CQRS_MESSAGE_ROLE_NAME - 1]);
	index_rescan(scan, keys, 3, NULL, 0);
	while (owner == NOBODY &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		if (!is_of_role(slot,
						DatumGetObjectId(values[CQRS_MESSAGE_ROLE - 1])))
			continue;
		owner = CONSUMED;
		if (TransactionIdIsValid(tables->snapshot.xmin))
		{
			owner = IN_PROGRESS;
			other	  ->xid = tables->snapshot.xmin;
			other	  ->token = tables->snapshot.speculativeToken;
		}
	}
	ExecClearTuple(slot);
	return owner;
}

/*
 * Is a row with this role's name its own?
 */
static bool
is_of_role(TupleTableSlot *slot, Oid role)
{
	bool		isnull;

	return !DatumGetBool(slot_getattr(slot, CQRS_MESSAGE_NATIVE, &isnull)) ||
		DatumGetObjectId(slot_getattr(slot, CQRS_MESSAGE_ROLE, &isnull)) == role;
}

/*
 * Wait until it is known what becomes of another transaction's row.
 */
static void
wait_for(const Other *other)
{
	if (other->token != 0)
		(void) SpeculativeInsertionWait(other->xid, other->token);
	else
		XactLockTableWait(other->xid, NULL, NULL, XLTW_None);
}
