/*-------------------------------------------------------------------------
 *
 * segment_index.c
 *	  A segment's indexes, kept up without an executor.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/genam.h"
#include "catalog/index.h"

#include "log/segment_index.h"

static void open_index(CqrsIndexes *indexes, Oid indexid);

/*
 * Open the indexes of a segment that is open for writing, in the current
 * memory context. Raises 55000 for one that takes an executor to keep up.
 */
void
cqrs_indexes_open(CqrsIndexes *indexes, Relation segment)
{
	List	   *indexids = RelationGetIndexList(segment);
	ListCell   *lc;

	indexes->segment = segment;
	indexes->nindexes = 0;
	indexes->rels = palloc(sizeof(Relation) * list_length(indexids));
	indexes->infos = palloc(sizeof(IndexInfo *) * list_length(indexids));
	foreach(lc, indexids)
		open_index(indexes, lfirst_oid(lc));
	list_free(indexids);
}

/*
 * Add a row that was just written.
 */
void
cqrs_indexes_insert(CqrsIndexes *indexes, TupleTableSlot *slot)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];
	int			i;

	for (i = 0; i < indexes->nindexes; i++)
	{
		Relation	index = indexes->rels[i];
		IndexInfo  *info = indexes->infos[i];

		if (!info->ii_ReadyForInserts)
			continue;
		FormIndexDatum(info, slot, NULL, values, nulls);
		index_insert(index, values, nulls, &slot->tts_tid, indexes->segment,
					 index->rd_index->indisunique ? UNIQUE_CHECK_YES :
					 UNIQUE_CHECK_NO,
					 false, info);
	}
}

/*
 * Close the indexes. The locks stay, so that they need not be taken anew for
 * each event of a transaction.
 */
void
cqrs_indexes_close(CqrsIndexes *indexes)
{
	int			i;

	for (i = 0; i < indexes->nindexes; i++)
	{
		cqrs_index_insert_cleanup(indexes->rels[i], indexes->infos[i]);
		index_close(indexes->rels[i], NoLock);
	}
}

/*
 * Open one index: ours on (xid, position), or one that somebody made.
 */
static void
open_index(CqrsIndexes *indexes, Oid indexid)
{
	Relation	index = index_open(indexid, RowExclusiveLock);
	IndexInfo  *info = BuildIndexInfo(index);

	if (info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
		info->ii_ExclusionOps != NULL || !index->rd_index->indimmediate)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" cannot be on a table of a topic",
						RelationGetRelationName(index)),
				 errdetail("It is on expressions, on a part of the rows, deferrable, or an exclusion constraint."),
				 errhint("Drop it.")));
	indexes->rels[indexes->nindexes] = index;
	indexes->infos[indexes->nindexes++] = info;
}
