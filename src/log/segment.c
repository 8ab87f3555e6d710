/*-------------------------------------------------------------------------
 *
 * segment.c
 *	  The tables that hold a topic's events.
 *
 * cqrs_emit() writes them past the executor, so whatever somebody has attached
 * to them would be ignored. A segment that is not as we made it is refused
 * instead.
 *
 * Locking
 *
 * A segment is truncated under ACCESS EXCLUSIVE, which is never waited for: in
 * the lock's queue, we would stop everybody who comes behind us. Nor is it
 * tried while somebody is seen to have a lock on it, for each try would use up
 * a transaction id (where wal_level is replica or higher). Whoever emitted to
 * the segment holds a lock on it until the end of the transaction, a prepared
 * one included; so under our lock, all that is in it is committed or never
 * will be.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "extension/privilege.h"
#include "log/segment.h"
#include "registry/registry.h"

/* To estimate a segment's rows, look at this many of its pages. */
#define SAMPLED_PAGES	4

static const Oid column_types[CQRS_SEG_COLUMNS] = {
	INT8OID, XID8OID, UUIDOID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID,
	JSONBOID, JSONBOID
};

static Oid	find_index(Relation segment);
static Oid	look_for_index(Relation segment);
static bool is_btree(Oid indexid);
static int64 index_blocks(Relation rel);
static int	rows_of_page(Relation rel, BlockNumber block);
static bool lock_segment(Oid relid);
static bool lock_parts(Oid relid, List **locked);
static List *relations_of(Oid relid);
static const char *what_was_altered(Relation rel);
static bool has_foreign_trigger(Relation rel);

/*
 * Open a segment with this lock. Raises 42704 if the topic was dropped, 55000
 * if the table is not as cqrs_create_topic() made it.
 */
Relation
cqrs_segment_open(const CqrsTopic *topic, int segment, LOCKMODE lockmode)
{
	Relation	rel = NULL;
	const char *altered;

	if (OidIsValid(topic->segments[segment]))
		rel = try_relation_open(topic->segments[segment], lockmode);
	if (rel == NULL)
	{
		/* Was it dropped with its topic, or by hand? */
		cqrs_topic_get(topic->name);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a table of topic \"%s\" does not exist", topic->name),
				 errhint("Drop the topic with cqrs_drop_topic().")));
	}

	altered = what_was_altered(rel);
	if (unlikely(altered != NULL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" of topic \"%s\" was altered",
						RelationGetRelationName(rel), topic->name),
				 errdetail_internal("%s", altered),
				 errhint("Undo the change; the tables of a topic are not meant to be altered.")));
	return rel;
}

/*
 * The index on (xid, position) of an open segment. Raises 55000 if it was
 * dropped.
 */
Oid
cqrs_segment_index(Relation segment)
{
	Oid			indexid = find_index(segment);

	if (unlikely(!OidIsValid(indexid)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no index on (xid, position)",
						RelationGetRelationName(segment)),
				 errhint("CREATE INDEX ON %s.%s (xid, position).", CQRS_SCHEMA,
						 RelationGetRelationName(segment))));
	return indexid;
}

/*
 * Is the segment as it was made? For monitoring: waits for nothing and raises
 * nothing. *problem gets a sentence, or NULL. No lock is left on it: a
 * transaction that only looks must not keep it from being truncated.
 */
CqrsSegmentState
cqrs_segment_look(const CqrsTopic *topic, int segment, const char **problem)
{
	Oid			relid = topic->segments[segment];
	CqrsSegmentState state = CQRS_SEGMENT_INTACT;
	Relation	rel = NULL;

	*problem = NULL;
	if (OidIsValid(relid))
	{
		if (!ConditionalLockRelationOid(relid, AccessShareLock))
			return CQRS_SEGMENT_LOCKED;
		rel = try_relation_open(relid, NoLock);
		if (rel == NULL)
			UnlockRelationOid(relid, AccessShareLock);
	}
	if (rel == NULL)
	{
		*problem = "A table of it does not exist.";
		return CQRS_SEGMENT_MISSING;
	}

	*problem = what_was_altered(rel);
	if (*problem == NULL && !OidIsValid(find_index(rel)))
		*problem = "It has no index on (xid, position).";
	if (*problem != NULL)
		state = CQRS_SEGMENT_ALTERED;
	relation_close(rel, AccessShareLock);
	return state;
}

/*
 * The index on (xid, position), or InvalidOid. The segment is locked, so it is
 * good until that lock goes: REINDEX CONCURRENTLY waits before it drops it.
 *
 * It may have replaced the index after we got the list and before we looked at
 * the index itself; then we look again. It cannot do so twice while we have
 * the lock.
 */
static Oid
find_index(Relation segment)
{
	Oid			indexid = look_for_index(segment);

	if (unlikely(!OidIsValid(indexid)))
	{
		AcceptInvalidationMessages();
		indexid = look_for_index(segment);
	}
	return indexid;
}

static Oid
look_for_index(Relation segment)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(segment))
	{
		Oid			indexid = lfirst_oid(lc);
		HeapTuple	tuple = SearchSysCache1(INDEXRELID,
											ObjectIdGetDatum(indexid));
		Form_pg_index index;
		bool		ours;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		ours = index->indisvalid && index->indnatts == 2 &&
			index->indkey.values[0] == CQRS_SEG_XID &&
			index->indkey.values[1] == CQRS_SEG_POSITION &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
			is_btree(indexid);
		ReleaseSysCache(tuple);
		if (ours)
			return indexid;
	}
	return InvalidOid;
}

/*
 * The bytes that a segment takes on disk, with its indexes and its TOAST
 * table. 0 if no row was ever written since it was made or truncated, or if it
 * does not exist. No lock is left on it.
 */
int64
cqrs_segment_bytes(const CqrsTopic *topic, int segment)
{
	Relation	rel = NULL;
	int64		blocks;

	if (OidIsValid(topic->segments[segment]))
		rel = try_relation_open(topic->segments[segment], AccessShareLock);
	if (rel == NULL)
		return 0;
	blocks = RelationGetNumberOfBlocks(rel);
	if (blocks > 0)
	{
		blocks += index_blocks(rel);
		if (OidIsValid(rel->rd_rel->reltoastrelid))
		{
			Relation	toast = relation_open(rel->rd_rel->reltoastrelid,
											  AccessShareLock);

			blocks += RelationGetNumberOfBlocks(toast) + index_blocks(toast);
			relation_close(toast, AccessShareLock);
		}
	}
	relation_close(rel, AccessShareLock);
	return blocks * BLCKSZ;
}

/*
 * About how many rows a segment has, dead ones included: the average of a few
 * pages for each page but the last, which is seldom full and is counted. No
 * statistics are needed, and no lock is left on it.
 */
int64
cqrs_segment_estimate(const CqrsTopic *topic, int segment)
{
	Relation	rel = cqrs_segment_open(topic, segment, AccessShareLock);
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);
	BlockNumber full = blocks > 0 ? blocks - 1 : 0;
	BlockNumber sampled = Min(full, SAMPLED_PAGES);
	int64		rows = 0;
	BlockNumber i;

	for (i = 0; i < sampled; i++)
		rows += rows_of_page(rel, (uint64) i * full / sampled);
	if (sampled < full)
		rows = (double) rows / sampled * full;
	if (blocks > 0)
		rows += rows_of_page(rel, blocks - 1);
	relation_close(rel, AccessShareLock);
	return rows;
}

/*
 * When the first event, by transaction id, of a segment was emitted. Returns
 * false if the snapshot shows none. No lock is left on it.
 */
bool
cqrs_segment_oldest(const CqrsTopic *topic, int segment, Snapshot snapshot,
					TimestampTz *emitted_at)
{
	Relation	rel = cqrs_segment_open(topic, segment, AccessShareLock);
	Relation	index = index_open(cqrs_segment_index(rel), AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;
	bool		isnull;

	scan = systable_beginscan_ordered(rel, index, snapshot, 0, NULL);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	found = HeapTupleIsValid(tuple);
	if (found)
		*emitted_at = DatumGetTimestampTz(heap_getattr(tuple,
													   CQRS_SEG_EMITTED_AT,
													   RelationGetDescr(rel),
													   &isnull));
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	relation_close(rel, AccessShareLock);
	return found;
}

/*
 * Are all segments of the topic as they were made, and not locked? Waits for
 * nothing, raises nothing, and leaves no lock.
 */
bool
cqrs_segments_intact(const CqrsTopic *topic)
{
	const char *problem;
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
		if (cqrs_segment_look(topic, i, &problem) != CQRS_SEGMENT_INTACT)
			return false;
	return true;
}

/*
 * Keep the topic's segments from being dropped or truncated, until
 * cqrs_segments_unlock(). Returns false, with nothing locked, if that is not
 * possible at once, or somebody has dropped one. Afterwards, look the topic up
 * again: the registry may have been reloaded.
 */
bool
cqrs_segments_lock(const CqrsTopic *topic)
{
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		if (lock_segment(topic->segments[i]))
			continue;
		while (--i >= 0)
			UnlockRelationOid(topic->segments[i], AccessShareLock);
		return false;
	}
	return true;
}

void
cqrs_segments_unlock(const CqrsTopic *topic)
{
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
		UnlockRelationOid(topic->segments[i], AccessShareLock);
}

/*
 * Lock, in the same way, what belongs to the locked segments: their indexes,
 * their TOAST tables, and the indexes of those. A REINDEX, say, may hold a
 * lock on one of these alone. *locked, in the current memory context, is for
 * cqrs_segments_unlock_parts(), to be called before the segments are unlocked.
 */
bool
cqrs_segments_lock_parts(const CqrsTopic *topic, List **locked)
{
	int			i;

	*locked = NIL;
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		if (lock_parts(topic->segments[i], locked))
			continue;
		cqrs_segments_unlock_parts(*locked);
		return false;
	}
	return true;
}

void
cqrs_segments_unlock_parts(List *locked)
{
	ListCell   *lc;

	foreach(lc, locked)
		UnlockRelationOid(lfirst_oid(lc), AccessShareLock);
	list_free(locked);
}

/*
 * Does another transaction hold a lock that keeps the table from being
 * truncated? *pid gets the process, or 0 if the transaction is prepared. The
 * table exists; no lock is left on it.
 */
bool
cqrs_table_in_use(Oid relid, int *pid)
{
	ListCell   *lc;

	foreach(lc, relations_of(relid))
	{
		LOCKTAG		tag;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		if (cqrs_lock_holder(&tag, AccessExclusiveLock, pid))
			return true;
	}
	return false;
}

/*
 * Lock a table to truncate it, until the end of the transaction. Returns false
 * if that is not possible at once.
 *
 * So is all that belongs to the table. TRUNCATE locks that as well, and would
 * wait for it while everybody waits for the table: an anti-wraparound vacuum
 * of the TOAST table, say, holds a lock there alone.
 */
bool
cqrs_table_lock(Oid relid)
{
	int			pid;
	ListCell   *lc;

	if (cqrs_table_in_use(relid, &pid) ||
		!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return false;

	/* Only now do its indexes stay the same. */
	foreach(lc, relations_of(relid))
	{
		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessExclusiveLock))
			return false;
	}
	return true;
}

/*
 * Empty a segment that is locked. Raises 55000 if it was altered.
 *
 * Runs the statement, as the extension's owner, rather than the functions
 * below it: so whoever watches TRUNCATE (replication, auditing) sees it, and
 * nothing depends on the server's version.
 */
void
cqrs_segment_truncate(const CqrsTopic *topic, int segment)
{
	relation_close(cqrs_segment_open(topic, segment, NoLock), NoLock);
	cqrs_admin_run(psprintf("TRUNCATE cqrs.topic_%d_%d", topic->topic_id,
							segment), 0);
}

static bool
is_btree(Oid indexid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(indexid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relam == BTREE_AM_OID;
	ReleaseSysCache(tuple);
	return result;
}

static int64
index_blocks(Relation rel)
{
	List	   *indexids = RelationGetIndexList(rel);
	ListCell   *lc;
	int64		blocks = 0;

	foreach(lc, indexids)
	{
		Relation	index = relation_open(lfirst_oid(lc), AccessShareLock);

		blocks += RelationGetNumberOfBlocks(index);
		relation_close(index, AccessShareLock);
	}
	list_free(indexids);
	return blocks;
}

/*
 * How many rows a page has, dead ones included.
 */
static int
rows_of_page(Relation rel, BlockNumber block)
{
	Buffer		buffer = ReadBuffer(rel, block);
	Page		page;
	int			rows = 0;
	OffsetNumber offset;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	if (!PageIsNew(page))
		for (offset = FirstOffsetNumber;
			 offset <= PageGetMaxOffsetNumber(page); offset++)
			if (ItemIdIsNormal(PageGetItemId(page, offset)))
				rows++;
	UnlockReleaseBuffer(buffer);
	return rows;
}

/*
 * Lock a segment for cqrs_segments_lock(). Returns false if that is not
 * possible at once, or there is no such table.
 */
static bool
lock_segment(Oid relid)
{
	if (!OidIsValid(relid) ||
		!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		return true;
	UnlockRelationOid(relid, AccessShareLock);
	return false;
}

/*
 * Lock what belongs to a table, and add it to *locked. Returns false at the
 * first that cannot be had at once.
 */
static bool
lock_parts(Oid relid, List **locked)
{
	Relation	rel = try_relation_open(relid, NoLock);
	List	   *parts;
	ListCell   *lc;
	Oid			toast;

	if (rel == NULL)
		return false;
	parts = RelationGetIndexList(rel);
	toast = rel->rd_rel->reltoastrelid;
	if (OidIsValid(toast))
		parts = lappend_oid(parts, toast);
	relation_close(rel, NoLock);

	foreach(lc, parts)
	{
		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock))
			return false;
		*locked = lappend_oid(*locked, lfirst_oid(lc));
	}
	return !OidIsValid(toast) || lock_parts(toast, locked);
}

/*
 * A table, its TOAST table, and the indexes of both.
 */
static List *
relations_of(Oid relid)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	List	   *relids = list_concat(list_make1_oid(relid),
									 RelationGetIndexList(rel));

	if (OidIsValid(rel->rd_rel->reltoastrelid))
		relids = list_concat(relids, relations_of(rel->rd_rel->reltoastrelid));
	relation_close(rel, AccessShareLock);
	return relids;
}

/*
 * A sentence that says what is not as it was made, or NULL.
 */
static const char *
what_was_altered(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			i;

	if (rel->rd_rel->relkind != RELKIND_RELATION)
		return "It is not a table.";
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		return "It is unlogged.";
	if (rel->rd_rules != NULL)
		return "It has a rule.";
	if (rel->rd_rel->relrowsecurity)
		return "It has row-level security.";
	if (rel->trigdesc != NULL && has_foreign_trigger(rel))
		return "It has a trigger.";
	if (rel->rd_rel->relhassubclass || rel->rd_rel->relispartition)
		return "It is part of an inheritance tree.";
	for (i = 0; i < Max(desc->natts, CQRS_SEG_COLUMNS); i++)
	{
		/* A column that was added and dropped again does no harm. */
		if (i >= CQRS_SEG_COLUMNS && TupleDescAttr(desc, i)->attisdropped)
			continue;
		if (i >= desc->natts || i >= CQRS_SEG_COLUMNS ||
			TupleDescAttr(desc, i)->atttypid != column_types[i])
			return "It has other columns.";
		if (i >= CQRS_SEG_KEY - 1 && TupleDescAttr(desc, i)->attnotnull)
			return "A column that may be null has NOT NULL.";
	}
	if (desc->constr == NULL || !desc->constr->has_generated_stored)
		return "Its column native is not generated.";
	if (desc->constr->num_check > 0)
		return "It has a CHECK constraint.";
	return NULL;
}

/*
 * Does it have a trigger other than the one that it was made with?
 *
 * The trigger function's OID is remembered and not checked again: dropping a
 * function drops its triggers.
 */
static bool
has_foreign_trigger(Relation rel)
{
	static Oid	guard = InvalidOid;
	Oid			function;

	if (rel->trigdesc->numtriggers != 1)
		return true;
	function = rel->trigdesc->triggers[0].tgfoid;
	if (unlikely(function != guard))
		guard = cqrs_guard_function();
	return function != guard;
}
