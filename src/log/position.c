/*-------------------------------------------------------------------------
 *
 * position.c
 *	  Positions of events: a sequence, for all topics.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/snapmgr.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/position.h"
#include "log/segment.h"
#include "registry/registry.h"

static void raise_position(int64 position);
static int64 highest_position(const CqrsTopic *topic, int segment);

/*
 * The position drawn last, by any session; 0 if none was.
 */
int64
cqrs_last_position(void)
{
	bool		is_called;
	int64		position = cqrs_sequence_last(CQRS_REL_POSITION_SEQ, &is_called);

	return is_called ? position : 0;
}

/*
 * Have positions go on behind all restored ones; called before the first event
 * is emitted where something was restored. A dump includes the sequence, but
 * logical replication leaves it out, and two events must not have the same
 * position. Once a position was drawn, nothing is done: what arrives later is
 * for cqrs_adopt().
 */
void
cqrs_position_pass_restored(void)
{
	ListCell   *lc;
	int64		last_position = 0;
	int			i;

	if (cqrs_last_position() != 0)
		return;
	(void) cqrs_object_lock(CQRS_REL_POSITION_SEQ, 0, 0, ExclusiveLock, true);
	if (cqrs_last_position() != 0)
		return;
	foreach(lc, cqrs_registry_topic_list())
	{
		CqrsTopic  *topic = (CqrsTopic *) lfirst(lc);

		for (i = 0; !topic->native && i < CQRS_SEGMENTS; i++)
			last_position = Max(last_position, highest_position(topic, i));
	}
	raise_position(last_position);
}

/*
 * Have positions go on behind this one, whoever emits. Not undone by an abort, which
 * does no harm.
 */
static void
raise_position(int64 position)
{
	if (cqrs_last_position() < position)
		(void) cqrs_admin_run("SELECT pg_catalog.setval('cqrs.position', $1)",
							  1, CQRS_ARG(INT8OID, Int64GetDatum(position)));
}

/*
 * The highest position of a row in a segment, or 0.
 */
static int64
highest_position(const CqrsTopic *topic, int segment)
{
	Relation	rel = cqrs_segment_open(topic, segment, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = cqrs_table_beginscan(rel, snapshot);
	int64		highest = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		highest = Max(highest,
					  DatumGetInt64(slot_getattr(slot, CQRS_SEG_POSITION,
												 &isnull)));
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return highest;
}
