/*-------------------------------------------------------------------------
 *
 * entry.c
 *	  Sagas that are under way, and what happened to them.
 *
 * A saga that is under way has a row in cqrs.saga, its anchor, which says where its
 * entries are: in one of three tables, which are written in turn, by the clock. So a
 * saga costs one dead row; its entries are truncated with others' (see keep.c).
 *
 * The newest entry is the truth about a saga. It is read with the latest snapshot
 * by whoever delivers to the saga's lane, and so has the lock of the cursor: nobody
 * else writes entries of the branch. If two do all the same, the primary key lets
 * only one of them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "postmaster/bgworker.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "extension/catalog.h"
#include "extension/row.h"
#include "saga/entry.h"
#include "shared/clock.h"

/* How many entries before the newest one may be read for the state. */
#define NEAR	8

/* Columns of cqrs.saga. */
enum
{
	SAGA_ID = 1,
	SAGA_NAME,
	SAGA_VERSION,
	SAGA_TOPIC_ID,
	SAGA_SEGMENT,
	SAGA_PARENT_ID,
	SAGA_STARTED_AT,
	SAGA_COLUMNS = SAGA_STARTED_AT
};

/* Columns of cqrs.saga_entry_0 and its likes. */
enum
{
	ENTRY_SAGA_ID = 1,
	ENTRY_BRANCH,
	ENTRY_SEQ,
	ENTRY_AT,
	ENTRY_EVENT,
	ENTRY_STEP,
	ENTRY_STATUS,
	ENTRY_NEXT,
	ENTRY_ATTEMPT,
	ENTRY_DUE,
	ENTRY_FLAGS,
	ENTRY_DONE,
	ENTRY_ENDS,
	ENTRY_MESSAGE_ID,
	ENTRY_NAME,
	ENTRY_SQLSTATE,
	ENTRY_ERROR,
	ENTRY_STATE,
	ENTRY_STATE_SEQ,
	ENTRY_SAGA_NAME,
	ENTRY_VERSION,
	ENTRY_TOPIC_ID,
	ENTRY_STARTED_AT,
	ENTRY_PARENT_ID,
	ENTRY_UNIQUE_KEY,
	ENTRY_ENDED_AT,
	ENTRY_TROUBLE,
	ENTRY_COLUMNS = ENTRY_TROUBLE
};

const char *const cqrs_saga_statuses[CQRS_SAGA_STATUSES] = {
	[CQRS_SAGA_RUNNING] = "running",
	[CQRS_SAGA_RETRYING] = "retrying",
	[CQRS_SAGA_WAITING] = "waiting",
	[CQRS_SAGA_SLEEPING] = "sleeping",
	[CQRS_SAGA_STUCK] = "stuck",
	[CQRS_SAGA_COMPENSATING] = "compensating",
	[CQRS_SAGA_FAILED] = "failed",
	[CQRS_SAGA_COMPLETED] = "completed",
	[CQRS_SAGA_COMPENSATED] = "compensated",
	[CQRS_SAGA_CANCELLED] = "cancelled",
};

static const char *const happenings[CQRS_SAGA_HAPPENINGS] = {
	[CQRS_SAGA_STARTED] = "started",
	[CQRS_SAGA_STEP_DONE] = "done",
	[CQRS_SAGA_STEP_FAILED] = "failed",
	[CQRS_SAGA_STEP_UNDONE] = "undone",
	[CQRS_SAGA_UNDOING_FAILED] = "undoing failed",
	[CQRS_SAGA_STEP_MISSING] = "function missing",
	[CQRS_SAGA_STEP_SKIPPED] = "skipped",
	[CQRS_SAGA_RECEIVED] = "received",
	[CQRS_SAGA_TIMED_OUT] = "timed out",
	[CQRS_SAGA_SLEPT] = "slept",
	[CQRS_SAGA_FORKED] = "forked",
	[CQRS_SAGA_BRANCH_ENDED] = "branch ended",
	[CQRS_SAGA_JOINED] = "joined",
	[CQRS_SAGA_CANCEL_ASKED] = "cancel",
	[CQRS_SAGA_RETRY_ASKED] = "retry",
	[CQRS_SAGA_MOVED] = "moved",
	[CQRS_SAGA_SIGNALLED] = "signal",
};

static LOCKMODE read_lock(void);
static void read_entry(const Datum *values, const bool *nulls,
					   CqrsSagaEntry *entry);
static void read_near_state(CqrsScan *scan, CqrsSagaEntry *entry);
static int	index_of(Datum value, const char *const *names, int n);
static Datum int_array(int n, const int32 *elements);
static void read_int_array(Datum value, bool isnull, int *n,
						   int32 **elements);
static void entry_keys(ScanKeyData *keys, const pg_uuid_t *saga_id,
					   int32 branch);
static void read_begin(int segment, const Datum *values, const bool *nulls,
					   CqrsSaga *saga);

/*
 * Find a saga that is under way; what is found is in the current memory context.
 */
bool
cqrs_saga_find(const pg_uuid_t *saga_id, CqrsSaga *saga)
{
	CqrsScan	scan;
	ScanKeyData key;
	Datum		values[SAGA_COLUMNS];
	bool		nulls[SAGA_COLUMNS];
	bool		found;

	ScanKeyInit(&key, SAGA_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(saga_id));
	cqrs_scan_begin(&scan, CQRS_REL_SAGA, CQRS_REL_SAGA_PKEY, AccessShareLock,
					NULL, ForwardScanDirection, 1, &key);
	found = cqrs_scan_read(&scan, values, nulls) != NULL;
	if (found)
	{
		saga->saga_id = *saga_id;
		saga->name = TextDatumGetCString(values[SAGA_NAME - 1]);
		saga->version = DatumGetInt32(values[SAGA_VERSION - 1]);
		saga->topic_id = DatumGetInt32(values[SAGA_TOPIC_ID - 1]);
		saga->segment = DatumGetInt32(values[SAGA_SEGMENT - 1]);
		saga->has_parent = !nulls[SAGA_PARENT_ID - 1];
		if (saga->has_parent)
			saga->parent_id = *DatumGetUUIDP(values[SAGA_PARENT_ID - 1]);
		saga->started_at = DatumGetTimestampTz(values[SAGA_STARTED_AT - 1]);
	}
	cqrs_scan_end(&scan, read_lock());
	return found && saga->segment >= 0 && saga->segment < CQRS_SEGMENTS;
}

void
cqrs_saga_insert(const CqrsSaga *saga)
{
	Datum		values[SAGA_COLUMNS];
	bool		nulls[SAGA_COLUMNS] = {0};

	values[SAGA_ID - 1] = UUIDPGetDatum(&saga->saga_id);
	values[SAGA_NAME - 1] = CStringGetTextDatum(saga->name);
	values[SAGA_VERSION - 1] = Int32GetDatum(saga->version);
	values[SAGA_TOPIC_ID - 1] = Int32GetDatum(saga->topic_id);
	values[SAGA_SEGMENT - 1] = Int32GetDatum(saga->segment);
	values[SAGA_PARENT_ID - 1] = UUIDPGetDatum(&saga->parent_id);
	nulls[SAGA_PARENT_ID - 1] = !saga->has_parent;
	values[SAGA_STARTED_AT - 1] = TimestampTzGetDatum(saga->started_at);
	cqrs_row_insert(CQRS_REL_SAGA, values, nulls);
}

/*
 * The saga is over. Returns false if it is not under way.
 */
bool
cqrs_saga_delete(const pg_uuid_t *saga_id)
{
	CqrsScan	scan;
	ScanKeyData key;
	HeapTuple	row;

	ScanKeyInit(&key, SAGA_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(saga_id));
	cqrs_scan_begin(&scan, CQRS_REL_SAGA, CQRS_REL_SAGA_PKEY, RowExclusiveLock,
					NULL, ForwardScanDirection, 1, &key);
	row = cqrs_scan_next(&scan);
	if (row != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
	return row != NULL;
}

/*
 * Write an entry to the saga's table. The lock on that stays until the end of the
 * transaction.
 */
void
cqrs_saga_entry_insert(const CqrsSaga *saga, const CqrsSagaEntry *entry)
{
	Datum		values[ENTRY_COLUMNS];
	bool		nulls[ENTRY_COLUMNS] = {0};
	int			i;

	values[ENTRY_SAGA_ID - 1] = UUIDPGetDatum(&saga->saga_id);
	values[ENTRY_BRANCH - 1] = Int32GetDatum(entry->branch);
	values[ENTRY_SEQ - 1] = Int32GetDatum(entry->seq);
	values[ENTRY_AT - 1] = TimestampTzGetDatum(entry->at);
	values[ENTRY_EVENT - 1] = CStringGetTextDatum(happenings[entry->event]);
	values[ENTRY_STEP - 1] = Int32GetDatum(entry->step);
	nulls[ENTRY_STEP - 1] = entry->step < 0;
	values[ENTRY_STATUS - 1] =
		CStringGetTextDatum(cqrs_saga_statuses[entry->status]);
	values[ENTRY_NEXT - 1] = Int32GetDatum(entry->next);
	nulls[ENTRY_NEXT - 1] = entry->next < 0;
	values[ENTRY_ATTEMPT - 1] = Int32GetDatum(entry->attempt);
	values[ENTRY_DUE - 1] = TimestampTzGetDatum(entry->due);
	nulls[ENTRY_DUE - 1] = entry->due == DT_NOEND;
	values[ENTRY_FLAGS - 1] = Int32GetDatum(entry->flags);
	nulls[ENTRY_DONE - 1] = entry->ndone == 0;
	if (entry->ndone > 0)
		values[ENTRY_DONE - 1] = int_array(entry->ndone, entry->done);
	nulls[ENTRY_ENDS - 1] = entry->nends == 0;
	if (entry->nends > 0)
		values[ENTRY_ENDS - 1] = int_array(entry->nends, entry->ends);
	values[ENTRY_MESSAGE_ID - 1] = UUIDPGetDatum(&entry->message_id);
	nulls[ENTRY_MESSAGE_ID - 1] = !entry->has_message;
	nulls[ENTRY_NAME - 1] = entry->name == NULL;
	if (entry->name != NULL)
		values[ENTRY_NAME - 1] = CStringGetTextDatum(entry->name);
	nulls[ENTRY_SQLSTATE - 1] = entry->sqlstate == NULL;
	if (entry->sqlstate != NULL)
		values[ENTRY_SQLSTATE - 1] = CStringGetTextDatum(entry->sqlstate);
	nulls[ENTRY_ERROR - 1] = entry->error == NULL;
	if (entry->error != NULL)
		values[ENTRY_ERROR - 1] = CStringGetTextDatum(entry->error);
	values[ENTRY_STATE - 1] = entry->state.value;
	nulls[ENTRY_STATE - 1] = entry->state.isnull;
	values[ENTRY_STATE_SEQ - 1] = Int32GetDatum(entry->state_seq);
	nulls[ENTRY_STATE_SEQ - 1] = entry->state_seq == 0;

	for (i = ENTRY_SAGA_NAME; i <= ENTRY_UNIQUE_KEY; i++)
		nulls[i - 1] = !entry->begins;
	if (entry->begins)
	{
		values[ENTRY_SAGA_NAME - 1] = CStringGetTextDatum(saga->name);
		values[ENTRY_VERSION - 1] = Int32GetDatum(saga->version);
		values[ENTRY_TOPIC_ID - 1] = Int32GetDatum(saga->topic_id);
		values[ENTRY_STARTED_AT - 1] = TimestampTzGetDatum(saga->started_at);
		values[ENTRY_PARENT_ID - 1] = UUIDPGetDatum(&saga->parent_id);
		nulls[ENTRY_PARENT_ID - 1] = !saga->has_parent;
		values[ENTRY_UNIQUE_KEY - 1] = entry->unique_key.value;
		nulls[ENTRY_UNIQUE_KEY - 1] = entry->unique_key.isnull;
	}
	values[ENTRY_ENDED_AT - 1] = TimestampTzGetDatum(entry->at);
	nulls[ENTRY_ENDED_AT - 1] = entry->branch != CQRS_SAGA_TRUNK ||
		!cqrs_saga_is_over(entry->status);
	values[ENTRY_TROUBLE - 1] = values[ENTRY_STATUS - 1];
	nulls[ENTRY_TROUBLE - 1] = entry->status != CQRS_SAGA_STUCK &&
		(entry->status != CQRS_SAGA_FAILED ||
		 entry->branch != CQRS_SAGA_TRUNK);
	cqrs_row_insert(CQRS_REL_SAGA_ENTRY_0 + saga->segment, values, nulls);
}

/*
 * The newest entry of a branch, in the current memory context.
 */
bool
cqrs_saga_entry_newest(const CqrsSaga *saga, int32 branch,
					   CqrsSagaEntry *entry)
{
	return cqrs_saga_entry_get(saga, branch, 0, entry);
}

/*
 * One entry of a branch, in the current memory context; seq 0: the newest.
 */
bool
cqrs_saga_entry_get(const CqrsSaga *saga, int32 branch, int32 seq,
					CqrsSagaEntry *entry)
{
	CqrsScan	scan;
	ScanKeyData keys[3];
	Datum		values[ENTRY_COLUMNS];
	bool		nulls[ENTRY_COLUMNS];
	HeapTuple	row;

	entry_keys(keys, &saga->saga_id, branch);
	cqrs_key_int4(&keys[2], ENTRY_SEQ, seq);
	cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + saga->segment,
					CQRS_REL_SAGA_ENTRY_0_PKEY + saga->segment,
					AccessShareLock, NULL, BackwardScanDirection,
					seq == 0 ? 2 : 3, keys);
	row = cqrs_scan_read(&scan, values, nulls);
	if (row != NULL)
	{
		read_entry(values, nulls, entry);
		entry->xmin = HeapTupleHeaderGetXmin(row->t_data);
		if (seq == 0 && branch == CQRS_SAGA_TRUNK)
			read_near_state(&scan, entry);
	}
	else
		*entry = (CqrsSagaEntry)
	{
		.branch = branch,.step = -1,.next = -1,.due = DT_NOEND
	};
	cqrs_scan_end(&scan, read_lock());
	return row != NULL;
}

/*
 * All entries of a branch, from the first on, in the current memory context.
 */
List *
cqrs_saga_entries(const CqrsSaga *saga, int32 branch)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[ENTRY_COLUMNS];
	bool		nulls[ENTRY_COLUMNS];
	List	   *entries = NIL;

	entry_keys(keys, &saga->saga_id, branch);
	cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + saga->segment,
					CQRS_REL_SAGA_ENTRY_0_PKEY + saga->segment,
					AccessShareLock, NULL, ForwardScanDirection, 2, keys);
	while (cqrs_scan_read(&scan, values, nulls))
	{
		CqrsSagaEntry *entry = palloc(sizeof(CqrsSagaEntry));

		read_entry(values, nulls, entry);
		entries = lappend(entries, entry);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return entries;
}

void
cqrs_saga_entry_delete(const CqrsSaga *saga, int32 branch, int32 seq)
{
	CqrsScan	scan;
	ScanKeyData keys[3];
	HeapTuple	row;

	entry_keys(keys, &saga->saga_id, branch);
	cqrs_key_int4(&keys[2], ENTRY_SEQ, seq);
	cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + saga->segment,
					CQRS_REL_SAGA_ENTRY_0_PKEY + saga->segment,
					RowExclusiveLock, NULL, ForwardScanDirection, 3, keys);
	row = cqrs_scan_next(&scan);
	if (row != NULL)
		cqrs_scan_delete(&scan, row);
	cqrs_scan_end(&scan, NoLock);
}

/*
 * Find a saga, under way or over, by what its first entry says, or the first after a
 * move. It is in the table in which it was last.
 */
bool
cqrs_saga_find_kept(const pg_uuid_t *saga_id, CqrsSaga *saga,
					NullableDatum *unique_key)
{
	CqrsSaga	found;
	bool		any = false;
	int32		newest = 0;
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		CqrsScan	scan;
		ScanKeyData keys[2];
		Datum		values[ENTRY_COLUMNS];
		bool		nulls[ENTRY_COLUMNS];
		HeapTuple	row;

		entry_keys(keys, saga_id, CQRS_SAGA_TRUNK);
		cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + i,
						CQRS_REL_SAGA_ENTRY_0_PKEY + i, AccessShareLock, NULL,
						ForwardScanDirection, 2, keys);
		row = cqrs_scan_read(&scan, values, nulls);
		if (row != NULL && !nulls[ENTRY_SAGA_NAME - 1] &&
			DatumGetInt32(values[ENTRY_SEQ - 1]) > newest)
		{
			read_begin(i, values, nulls, &found);
			found.is_ours =
				TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(row->t_data));
			any = true;
			newest = DatumGetInt32(values[ENTRY_SEQ - 1]);
			if (unique_key != NULL)
			{
				unique_key->isnull = nulls[ENTRY_UNIQUE_KEY - 1];
				if (!unique_key->isnull)
					unique_key->value =
						datumCopy(values[ENTRY_UNIQUE_KEY - 1], false, -1);
			}
		}
		cqrs_scan_end(&scan, AccessShareLock);
	}
	if (any)
		*saga = found;
	return any;
}

/*
 * All sagas of this name and key, in this role's topic, that are kept: a list of
 * CqrsSaga. What other transactions have committed counts, whatever the snapshot.
 */
List *
cqrs_saga_find_by_key(int32 topic_id, const char *saga_name, Datum unique_key)
{
	List	   *result = NIL;
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		CqrsScan	scan;
		ScanKeyData keys[2];
		Datum		values[ENTRY_COLUMNS];
		bool		nulls[ENTRY_COLUMNS];

		/* Columns of the index. */
		ScanKeyInit(&keys[0], ENTRY_UNIQUE_KEY, BTEqualStrategyNumber, F_TEXTEQ,
					unique_key);
		ScanKeyInit(&keys[1], ENTRY_SAGA_NAME, BTEqualStrategyNumber, F_TEXTEQ,
					CStringGetTextDatum(saga_name));
		cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + i,
						CQRS_REL_SAGA_ENTRY_0_KEY + i, AccessShareLock,
						SnapshotSelf, ForwardScanDirection, 2, keys);
		while (cqrs_scan_read(&scan, values, nulls))
		{
			CqrsSaga   *saga;

			if (DatumGetInt32(values[ENTRY_TOPIC_ID - 1]) != topic_id)
				continue;
			saga = palloc(sizeof(CqrsSaga));
			read_begin(i, values, nulls, saga);
			result = lappend(result, saga);
		}
		cqrs_scan_end(&scan, AccessShareLock);
	}
	return result;
}

/*
 * The table to which sagas that start now are written.
 */
int
cqrs_saga_current_segment(void)
{
	uint64		turn = Max(cqrs_saga_retention, 1) * USECS_PER_SEC;

	/* Unsigned: a clock may be wrong by decades. */
	return (int) (((uint64) cqrs_wall_now() / turn) % CQRS_SEGMENTS);
}

/*
 * When did the last of those sagas end that are in this table, which is locked?
 * Returns false if none has; *empty: nothing was ever written to it.
 */
bool
cqrs_saga_newest_end(int segment, TimestampTz *ended_at, bool *empty)
{
	CqrsScan	scan;
	HeapTuple	row;

	cqrs_scan_begin(&scan, CQRS_REL_SAGA_ENTRY_0 + segment,
					CQRS_REL_SAGA_ENTRY_0_ENDED_AT + segment, NoLock,
					SnapshotSelf, BackwardScanDirection, 0, NULL);
	*empty = RelationGetNumberOfBlocks(scan.rel) == 0;
	row = *empty ? NULL : cqrs_scan_next(&scan);
	if (row != NULL)
		*ended_at =
			DatumGetTimestampTz(cqrs_row_column(row, ENTRY_ENDED_AT,
												RelationGetDescr(scan.rel)));
	cqrs_scan_end(&scan, NoLock);
	return row != NULL;
}

/*
 * The lock on what was read that is to be released. A worker, whose transactions are
 * short, keeps it: so it need not be taken anew for each step.
 */
static LOCKMODE
read_lock(void)
{
	return MyBgworkerEntry != NULL ? NoLock : AccessShareLock;
}

/*
 * An entry from its row, copied to the current memory context.
 */
static void
read_entry(const Datum *values, const bool *nulls, CqrsSagaEntry *entry)
{
	memset(entry, 0, sizeof(*entry));
	entry->branch = DatumGetInt32(values[ENTRY_BRANCH - 1]);
	entry->seq = DatumGetInt32(values[ENTRY_SEQ - 1]);
	entry->at = DatumGetTimestampTz(values[ENTRY_AT - 1]);
	entry->event = index_of(values[ENTRY_EVENT - 1], happenings,
							CQRS_SAGA_HAPPENINGS);
	entry->step = nulls[ENTRY_STEP - 1] ? -1 :
		DatumGetInt32(values[ENTRY_STEP - 1]);
	entry->status = index_of(values[ENTRY_STATUS - 1], cqrs_saga_statuses,
							 CQRS_SAGA_STATUSES);
	entry->next = nulls[ENTRY_NEXT - 1] ? -1 :
		DatumGetInt32(values[ENTRY_NEXT - 1]);
	entry->attempt = DatumGetInt32(values[ENTRY_ATTEMPT - 1]);
	entry->due = nulls[ENTRY_DUE - 1] ? DT_NOEND :
		DatumGetTimestampTz(values[ENTRY_DUE - 1]);
	entry->flags = DatumGetInt32(values[ENTRY_FLAGS - 1]);
	read_int_array(values[ENTRY_DONE - 1], nulls[ENTRY_DONE - 1],
				   &entry->ndone, &entry->done);
	read_int_array(values[ENTRY_ENDS - 1], nulls[ENTRY_ENDS - 1],
				   &entry->nends, &entry->ends);
	entry->has_message = !nulls[ENTRY_MESSAGE_ID - 1];
	if (entry->has_message)
		entry->message_id = *DatumGetUUIDP(values[ENTRY_MESSAGE_ID - 1]);
	if (!nulls[ENTRY_NAME - 1])
		entry->name = TextDatumGetCString(values[ENTRY_NAME - 1]);
	if (!nulls[ENTRY_SQLSTATE - 1])
		entry->sqlstate = TextDatumGetCString(values[ENTRY_SQLSTATE - 1]);
	if (!nulls[ENTRY_ERROR - 1])
		entry->error = TextDatumGetCString(values[ENTRY_ERROR - 1]);
	entry->state.isnull = nulls[ENTRY_STATE - 1];
	if (!entry->state.isnull)
		entry->state.value =
			JsonbPGetDatum(DatumGetJsonbPCopy(values[ENTRY_STATE - 1]));
	entry->state_seq = nulls[ENTRY_STATE_SEQ - 1] ? 0 :
		DatumGetInt32(values[ENTRY_STATE_SEQ - 1]);
	entry->begins = !nulls[ENTRY_SAGA_NAME - 1];
	entry->unique_key.isnull = nulls[ENTRY_UNIQUE_KEY - 1];
	if (!entry->unique_key.isnull)
		entry->unique_key.value = datumCopy(values[ENTRY_UNIQUE_KEY - 1],
											false, -1);
}

/*
 * The state is often in one of the entries before the newest, which the walk is at: a
 * few steps back cost less than another look-up.
 */
static void
read_near_state(CqrsScan *scan, CqrsSagaEntry *entry)
{
	int			i;

	if (entry->state_seq == 0)
		return;
	for (i = entry->seq - entry->state_seq; i > 0 && i <= NEAR; i--)
	{
		HeapTuple	row = cqrs_scan_next(scan);
		Datum		state;
		bool		isnull;

		if (row == NULL)
			return;
		if (DatumGetInt32(cqrs_row_column(row, ENTRY_SEQ,
										  RelationGetDescr(scan->rel))) != entry->state_seq)
			continue;
		state = heap_getattr(row, ENTRY_STATE, RelationGetDescr(scan->rel),
							 &isnull);
		if (!isnull)
			entry->near_state = JsonbPGetDatum(DatumGetJsonbPCopy(state));
		return;
	}
}

/*
 * Which of the names is this? Raises XX001 for none: nobody but us writes them.
 */
static int
index_of(Datum value, const char *const *names, int n)
{
	char	   *name = TextDatumGetCString(value);
	int			i;

	for (i = 0; i < n; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("an entry of a saga says \"%s\", which means nothing",
					name)));
}

static Datum
int_array(int n, const int32 *elements)
{
	Datum	   *datums = palloc(sizeof(Datum) * n);
	int			i;

	for (i = 0; i < n; i++)
		datums[i] = Int32GetDatum(elements[i]);
	return PointerGetDatum(construct_array(datums, n, INT4OID, sizeof(int32),
										   true, TYPALIGN_INT));
}

static void
read_int_array(Datum value, bool isnull, int *n, int32 **elements)
{
	Datum	   *datums;
	bool	   *nulls;
	int			i;

	*n = 0;
	*elements = NULL;
	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value), INT4OID, sizeof(int32), true,
					  TYPALIGN_INT, &datums, &nulls, n);
	*elements = palloc(sizeof(int32) * Max(*n, 1));
	for (i = 0; i < *n; i++)
		(*elements)[i] = nulls[i] ? 0 : DatumGetInt32(datums[i]);
}

static void
entry_keys(ScanKeyData *keys, const pg_uuid_t *saga_id, int32 branch)
{
	ScanKeyInit(&keys[0], ENTRY_SAGA_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(saga_id));
	cqrs_key_int4(&keys[1], ENTRY_BRANCH, branch);
}

/*
 * A saga from an entry that begins it.
 */
static void
read_begin(int segment, const Datum *values, const bool *nulls,
		   CqrsSaga *saga)
{
	saga->saga_id = *DatumGetUUIDP(values[ENTRY_SAGA_ID - 1]);
	saga->name = TextDatumGetCString(values[ENTRY_SAGA_NAME - 1]);
	saga->version = DatumGetInt32(values[ENTRY_VERSION - 1]);
	saga->topic_id = DatumGetInt32(values[ENTRY_TOPIC_ID - 1]);
	saga->segment = segment;
	saga->has_parent = !nulls[ENTRY_PARENT_ID - 1];
	if (saga->has_parent)
		saga->parent_id = *DatumGetUUIDP(values[ENTRY_PARENT_ID - 1]);
	saga->started_at = DatumGetTimestampTz(values[ENTRY_STARTED_AT - 1]);
}
