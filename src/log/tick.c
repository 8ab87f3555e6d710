/*-------------------------------------------------------------------------
 *
 * tick.c
 *	  Ticks: durably recorded snapshots. The window between two of them is
 *	  the set of events that became visible between them.
 *
 * Protocol
 *
 * 1. Tick ids rise with the snapshots. Whoever ticks holds the ticker's lock
 *	  from before the id is drawn until the commit.
 * 2. A snapshot of ours that is not a tick (where a new subscription starts)
 *	  needs no lock: its id is drawn after the snapshot was taken, a tick's id
 *	  before. So a tick with a higher id has a later snapshot.
 * 3. The transaction that ticks commits with synchronous_commit at least on.
 *	  Every transaction that the snapshot shows has its commit record before
 *	  the tick's. So whoever sees the tick may deliver all that it shows: no
 *	  crash takes it back.
 * 4. last_position is read before the snapshot is taken: what emits later
 *	  draws a higher one.
 * 5. A database's ids begin at a random multiple of TICK_IDS. So ticks that
 *	  come from another database, by logical replication, are out of the
 *	  range that is read and deleted here, and collide with none.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "commands/sequence.h"
#include "utils/snapmgr.h"

#include "base/debug_point.h"
#include "extension/row.h"
#include "log/position.h"
#include "log/tick.h"
#include "shared/database.h"

/* Columns of cqrs.tick. */
enum
{
	TICK_ID = 1,
	TICK_TICKED_AT,
	TICK_SNAPSHOT,
	TICK_LAST_POSITION,
	TICK_NATIVE,
	TICK_COLUMNS = TICK_NATIVE
};

/* Once in this many ids, the ticks behind are deleted. */
#define TICKS_KEPT	64

/* A database has this many ids; the extension's script says the same. */
#define TICK_IDS	(INT64CONST(1) << 40)

static void own_range(ScanKeyData *keys, int64 from);
static int64 newest_id(void);
static void delete_before(int64 tick_id);

PG_FUNCTION_INFO_V1(cqrs_tick);

/*
 * cqrs_tick()
 */
Datum
cqrs_tick(PG_FUNCTION_ARGS)
{
	cqrs_require_writable("cqrs_tick()");
	if (IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cqrs_tick() cannot run inside a transaction block"),
				 errdetail("It would hold up all delivery until the transaction ends."),
				 errhint("Call it in a transaction of its own (autocommit).")));
	PG_RETURN_INT64(cqrs_tick_record(true));
}

/*
 * Record a tick and return its id. It counts once the transaction commits,
 * which should be soon: the ticker's lock is held until then. Without wait, as
 * the manager calls it, returns 0 if the lock cannot be had at once.
 *
 * Only the newest tick is read (for brokers, the durable one), and cursors hold
 * the snapshots they need; so the others are deleted now and then. The one that
 * the manager recorded last stays, too: it will be durable soon.
 */
int64
cqrs_tick_record(bool wait)
{
	Datum		values[TICK_COLUMNS];
	bool		nulls[TICK_COLUMNS] = {0};
	int64		tick_id;
	int64		newest;
	int64		last_position;

	if (!cqrs_object_lock(CQRS_REL_TICK, 0, 0, ExclusiveLock, wait))
		return 0;
	newest = newest_id();
	last_position = cqrs_last_position();
	tick_id = cqrs_tick_next_id();
	if (!wait)
		cqrs_shmem_tick_recorded(tick_id);
	CQRS_DEBUG_POINT("tick_before_snapshot");

	values[TICK_ID - 1] = Int64GetDatum(tick_id);
	values[TICK_TICKED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[TICK_SNAPSHOT - 1] = PointerGetDatum(cqrs_snapshot_take());
	values[TICK_LAST_POSITION - 1] = Int64GetDatum(last_position);
	values[TICK_NATIVE - 1] = BoolGetDatum(true);
	cqrs_row_insert(CQRS_REL_TICK, values, nulls);
	if (tick_id / TICKS_KEPT != newest / TICKS_KEPT)
		delete_before(tick_id);

	cqrs_commit_durably();
	CQRS_DEBUG_POINT("tick_before_commit");
	return tick_id;
}

/*
 * The newest tick that the snapshot shows, with an id of at most at_most, in
 * the current memory context. Returns false if there is none, or only
 * restored ones.
 */
bool
cqrs_tick_newest(Snapshot snapshot, int64 at_most, CqrsTick *tick)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[TICK_COLUMNS];
	bool		nulls[TICK_COLUMNS];
	bool		found = false;

	own_range(keys, 0);
	if (at_most < DatumGetInt64(keys[1].sk_argument))
		keys[1].sk_argument = Int64GetDatum(at_most + 1);
	cqrs_scan_begin(&scan, CQRS_REL_TICK, CQRS_REL_TICK_PKEY, AccessShareLock,
					snapshot, BackwardScanDirection, 2, keys);
	if (cqrs_scan_read(&scan, values, nulls))
	{
		found = DatumGetBool(values[TICK_NATIVE - 1]);
		tick->tick_id = DatumGetInt64(values[TICK_ID - 1]);
		tick->ticked_at = DatumGetTimestampTz(values[TICK_TICKED_AT - 1]);
		tick->snapshot = cqrs_snapshot_from_datum(values[TICK_SNAPSHOT - 1]);
		tick->last_position = DatumGetInt64(values[TICK_LAST_POSITION - 1]);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return found;
}

/*
 * The next tick id; see point 2 of the protocol for when to draw it.
 */
int64
cqrs_tick_next_id(void)
{
	return nextval_internal(cqrs_relation_oid(CQRS_REL_TICK_SEQ), false);
}

/*
 * Scan keys for the ids of this database, from this one on.
 */
static void
own_range(ScanKeyData *keys, int64 from)
{
	bool		is_called;
	int64		first = cqrs_sequence_last(CQRS_REL_TICK_SEQ, &is_called) / TICK_IDS *
	TICK_IDS;

	cqrs_key_int8(&keys[0], TICK_ID, BTGreaterEqualStrategyNumber,
				  Max(first, from));
	cqrs_key_int8(&keys[1], TICK_ID, BTLessStrategyNumber, first + TICK_IDS);
}

/*
 * The id of the newest tick, or 0. The ticker's lock is held.
 */
static int64
newest_id(void)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CqrsTick	tick;
	bool		found = cqrs_tick_newest(snapshot, PG_INT64_MAX, &tick);

	UnregisterSnapshot(snapshot);
	return found ? tick.tick_id : 0;
}

/*
 * Delete the ticks with lower ids, but for the manager's. This process remembers
 * up to where it has deleted before: a search would walk over the dead entries
 * that a long transaction keeps in the index. If we abort, what is left waits
 * for another process. The ticker's lock is held.
 */
static void
delete_before(int64 tick_id)
{
	static int64 deleted_before = 0;
	int64		durable;
	int64		recorded;
	CqrsScan	scan;
	ScanKeyData keys[2];
	HeapTuple	row;

	/* Ids begin anew if the extension is made anew. */
	if (deleted_before > tick_id)
		deleted_before = 0;
	cqrs_shmem_manager_ticks(&durable, &recorded);
	own_range(keys, deleted_before);
	keys[1].sk_argument = Int64GetDatum(tick_id);
	cqrs_scan_begin(&scan, CQRS_REL_TICK, CQRS_REL_TICK_PKEY, RowExclusiveLock,
					NULL, ForwardScanDirection, 2, keys);
	deleted_before = tick_id;
	while ((row = cqrs_scan_next(&scan)) != NULL)
	{
		int64		id = DatumGetInt64(cqrs_row_column(row, TICK_ID,
													   RelationGetDescr(scan.rel)));

		if (id != durable && id != recorded)
			cqrs_scan_delete(&scan, row);
		else
			deleted_before = Min(deleted_before, id);
	}
	cqrs_scan_end(&scan, NoLock);
}
