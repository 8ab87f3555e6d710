/*-------------------------------------------------------------------------
 *
 * segment.c
 *	  The tables that hold a topic's events.
 *
 * cqrs_emit() writes them past the executor, so whatever somebody might have
 * hung on them would be passed by. A segment that is not as we made it is
 * refused instead.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/relation.h"
#include "access/htup_details.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "segment.h"

static const Oid column_types[CQRS_SEG_COLUMNS] = {
	INT8OID, XID8OID, TIMESTAMPTZOID, UUIDOID, BOOLOID, TEXTOID, TEXTOID,
	JSONBOID, JSONBOID
};

static bool is_btree(Oid indexid);
static const char *what_was_altered(Relation rel);

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
		/* Dropped with its topic, or by hand? */
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
 * The index on (xid, position) of an open segment. Raises 55000 if it was dropped.
 */
Oid
cqrs_segment_index(Relation segment)
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
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" has no index on (xid, position)",
					RelationGetRelationName(segment)),
			 errhint("CREATE INDEX ON %s.%s (xid, position).", CQRS_SCHEMA,
					 RelationGetRelationName(segment))));
	return InvalidOid;			/* keep the compiler quiet */
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
	if (rel->trigdesc != NULL)
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
