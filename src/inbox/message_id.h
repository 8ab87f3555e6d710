/*-------------------------------------------------------------------------
 *
 * message_id.h
 *	  Messages that are consumed once, however often they are sent: their ids.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MESSAGE_ID_H
#define CQRS_MESSAGE_ID_H

#include "utils/rel.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "access/relscan.h"
#include "inbox/message_source.h"
#include "log/segment.h"

/* The most bytes that an id, or the name of its source, may have. */
#define CQRS_MAX_MESSAGE_ID		255

/* Columns of the tables of message ids. */
enum
{
	CQRS_MESSAGE_SOURCE_TIME = 1,
	CQRS_MESSAGE_ROLE,
	CQRS_MESSAGE_NATIVE,
	CQRS_MESSAGE_ROLE_NAME,
	CQRS_MESSAGE_SOURCE,
	CQRS_MESSAGE_ID,
	CQRS_MESSAGE_COLUMNS = CQRS_MESSAGE_ID
};

/* The tables, while ids are looked up in them, and the turn is locked. */
typedef struct CqrsMessageTables
{
	int			current;		/* the one that is written */
	Relation	rels[CQRS_SEGMENTS];
	Relation	indexes[CQRS_SEGMENTS];
	IndexScanDesc scans[CQRS_SEGMENTS];
	TupleTableSlot *slots[CQRS_SEGMENTS];
	SnapshotData snapshot;
} CqrsMessageTables;

extern void cqrs_message_ids_consume(Oid role, const char *source, int n,
									 const Datum *ids, bool *first);

/* For what keeps the tables small. */
extern void cqrs_message_tables_open(CqrsMessageTables *tables);
extern void cqrs_message_tables_close(CqrsMessageTables *tables);
extern bool cqrs_message_add(CqrsMessageTables *tables, const Datum *values);
extern int	cqrs_message_turn(TimestampTz *since);

#endif							/* CQRS_MESSAGE_ID_H */
