/*-------------------------------------------------------------------------
 *
 * segment_index.h
 *	  A segment's indexes, kept up without an executor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SEGMENT_INDEX_H
#define CQRS_SEGMENT_INDEX_H

#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"

/* The indexes of a segment open for writing. */
typedef struct CqrsIndexes
{
	Relation	segment;
	int			nindexes;
	Relation   *rels;
	IndexInfo **infos;
} CqrsIndexes;

extern void cqrs_indexes_open(CqrsIndexes *indexes, Relation segment);
extern void cqrs_indexes_insert(CqrsIndexes *indexes, TupleTableSlot *slot);
extern void cqrs_indexes_close(CqrsIndexes *indexes);

#endif							/* CQRS_SEGMENT_INDEX_H */
