/*-------------------------------------------------------------------------
 *
 * message_turn.c
 *	  Which table of message ids is written, and what is kept of the others.
 *
 * The three tables are written in turn. A turn takes a little more than half of the
 * retention, and ends only if any source was consumed in it: so while all rest,
 * nothing is done. When it is over, the oldest table is emptied, and written next.
 * What is in it is older than two turns by the wall clock, and so older than the
 * retention by the time of each source that was consumed all the while. Of the others, it
 * has ids that are not old enough: these are moved to the table that is written now, some
 * at a time. So a source that rests for years is moved once in three turns, while
 * others are consumed, and keeps its last ids; they are no more than it consumed in a
 * retention of its own time.
 *
 * Which ids are old is decided with the turn locked, which keeps everybody from looking
 * into a table meanwhile, and under ACCESS EXCLUSIVE on theirs, which is tried, not waited
 * for. Whoever has written one has a lock on it until the end of the transaction; so
 * with these locks, what is not seen is not there. As long as the second one is not to be
 * had, the current table goes on being written.
 *
 * Only one process at a time does this. Ids of a role that is gone are not moved.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/table.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "extension/admin.h"
#include "extension/row.h"
#include "inbox/message_id.h"
#include "inbox/message_source.h"
#include "inbox/message_turn.h"
#include "log/segment.h"
#include "shared/clock.h"

/* How many ids are moved in one transaction. */
#define MOVED_AT_ONCE	10000

static int64 turn_duration(void);
static bool any_consumed(TimestampTz since);
static bool is_empty(int segment);
static bool move(int segment);
static List *list_sources(void);
static int	move_source(CqrsMessageTables *tables, int segment,
						const CqrsMessageSource *source, int max);
static void forget_sources(void);

/*
 * If the turn is over, and this is the table to be written next, empty it, if that is
 * possible at once, and have it written. For *look_at and *pid, see
 * cqrs_idempotency_truncate().
 */
CqrsTableState
cqrs_message_ids_truncate(int segment, TimestampTz *look_at, int *pid)
{
	TimestampTz now = cqrs_wall_now();
	TimestampTz since;
	TimestampTz due;
	Oid			relid = cqrs_relation_oid(CQRS_REL_MESSAGE_ID_0 + segment);
	CqrsTableState state = CQRS_TABLE_KEPT;

	*pid = 0;
	*look_at = DT_NOEND;
	if (!cqrs_object_lock(CQRS_REL_MESSAGE_TURN, 1, 0, ExclusiveLock, false))
		return CQRS_TABLE_LOCKED;
	if (segment != (cqrs_message_turn(&since) + 1) % CQRS_SEGMENTS)
		return state;
	/* A clock that was set back ends the turn, too. */
	if (!any_consumed(since > now ? DT_NOBEGIN : since))
	{
		*look_at = now + turn_duration();
		return state;
	}
	due = cqrs_wall_due(since + turn_duration(), since);
	if (due > now)
	{
		*look_at = due;
		return state;
	}

	if (!is_empty(segment))
	{
		*look_at = now;
		if (!move(segment))
			return state;
	}
	forget_sources();

	(void) cqrs_object_lock(CQRS_REL_MESSAGE_TURN, 0, 0, ExclusiveLock, true);
	if (!is_empty(segment))
	{
		if (cqrs_table_in_use(relid, pid) || !cqrs_table_lock(relid))
		{
			cqrs_object_unlock(CQRS_REL_MESSAGE_TURN, 0, 0, ExclusiveLock);
			return CQRS_TABLE_LOCKED;
		}

		/* All transactions that wrote to it have ended now. */
		if (!move(segment))
			return state;
		cqrs_admin_run(psprintf("TRUNCATE cqrs.message_id_%d", segment), 0);
		state = CQRS_TABLE_TRUNCATED;
	}
	cqrs_admin_run("UPDATE cqrs.message_turn SET current = $1, since = $2", 2,
				   CQRS_INT4(segment),
				   CQRS_ARG(TIMESTAMPTZOID, TimestampTzGetDatum(now)));
	*look_at = now + turn_duration();
	return state;
}

/*
 * How long a table is written, in microseconds. A source's time is behind by up to two
 * gaps, and an id's ahead by one.
 */
static int64
turn_duration(void)
{
	return cqrs_consumed_retention * USECS_PER_SEC / 2 +
		2 * cqrs_message_longest_gap();
}

/*
 * Was any source consumed since then?
 */
static bool
any_consumed(TimestampTz since)
{
	return cqrs_admin_run("SELECT FROM cqrs.message_source WHERE noted_at > $1 LIMIT 1",
						  1, CQRS_ARG(TIMESTAMPTZOID, TimestampTzGetDatum(since))) > 0;
}

static bool
is_empty(int segment)
{
	Relation	rel = table_open(cqrs_relation_oid(CQRS_REL_MESSAGE_ID_0 + segment),
								 AccessShareLock);
	bool		empty = RelationGetNumberOfBlocks(rel) == 0;

	table_close(rel, AccessShareLock);
	return empty;
}

/*
 * Move ids that are not old enough to the current table. Returns whether all were; else
 * there are more.
 */
static bool
move(int segment)
{
	List	   *sources = list_sources();
	int			left = MOVED_AT_ONCE;
	CqrsMessageTables tables;
	ListCell   *lc;

	cqrs_message_tables_open(&tables);
	foreach(lc, sources)
	{
		left -= move_source(&tables, segment,
							(CqrsMessageSource *) lfirst(lc), left);
		if (left == 0)
			break;
	}
	cqrs_message_tables_close(&tables);
	return left > 0;
}

/*
 * The sources of all roles that exist; in the current memory context.
 */
static List *
list_sources(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *sources = NIL;
	CqrsAdmin	admin;
	int			n;
	int			i;

	cqrs_admin_begin(&admin);
	n = cqrs_admin_execute("SELECT DISTINCT role_name, source FROM cqrs.message_source",
						   0);
	for (i = 0; i < n; i++)
	{
		char	   *role_name = SPI_getvalue(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 1);
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 2);
		Oid			role = get_role_oid(role_name, true);
		MemoryContext oldcontext = MemoryContextSwitchTo(context);

		if (OidIsValid(role))
		{
			CqrsMessageSource *source = palloc(sizeof(CqrsMessageSource));

			cqrs_message_source_init(source, role, name);
			sources = lappend(sources, source);
		}
		MemoryContextSwitchTo(oldcontext);
	}
	cqrs_admin_end(&admin);
	return sources;
}

/*
 * Move ids of a source that are not old enough, up to a number. Returns how many.
 */
static int
move_source(CqrsMessageTables *tables, int segment,
			const CqrsMessageSource *source, int max)
{
	CqrsScan	scan;
	ScanKeyData keys[3];
	Datum		values[CQRS_MESSAGE_COLUMNS];
	bool		nulls[CQRS_MESSAGE_COLUMNS];
	int64		source_time;
	TimestampTz noted_at;
	HeapTuple	row;
	int			n = 0;

	/* Another role had the name. */
	if (!cqrs_message_source_time(source, &source_time, &noted_at))
		return 0;
	ScanKeyInit(&keys[0], CQRS_MESSAGE_SOURCE, BTEqualStrategyNumber, F_TEXTEQ,
				source->name);
	ScanKeyInit(&keys[1], CQRS_MESSAGE_ROLE_NAME, BTEqualStrategyNumber,
				F_TEXTEQ, source->role_name);
	cqrs_key_int8(&keys[2], CQRS_MESSAGE_SOURCE_TIME, BTGreaterStrategyNumber,
				  source_time - cqrs_consumed_retention * USECS_PER_SEC);
	cqrs_scan_begin(&scan, CQRS_REL_MESSAGE_ID_0 + segment,
					CQRS_REL_MESSAGE_ID_0_SOURCE + segment, RowExclusiveLock,
					SnapshotSelf, ForwardScanDirection, 3, keys);
	while (n < max && (row = cqrs_scan_read(&scan, values, nulls)) != NULL)
	{
		if (DatumGetBool(values[CQRS_MESSAGE_NATIVE - 1]) &&
			DatumGetObjectId(values[CQRS_MESSAGE_ROLE - 1]) != source->role)
			continue;
		CHECK_FOR_INTERRUPTS();
		cqrs_scan_delete(&scan, row);
		(void) cqrs_message_add(tables, values);
		n++;
	}
	cqrs_scan_end(&scan, NoLock);
	return n;
}

/*
 * Forget notes about sources that do not count, and those of roles that are gone.
 */
static void
forget_sources(void)
{
	cqrs_admin_run("DELETE FROM cqrs.message_source s"
				   " WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = s.role_name)"
				   " OR EXISTS (SELECT FROM cqrs.message_source n WHERE n.source = s.source AND n.role_name = s.role_name"
				   " AND n.role = s.role AND n.source_time > s.source_time)", 0);
}
