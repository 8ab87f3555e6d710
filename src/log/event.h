/*-------------------------------------------------------------------------
 *
 * event.h
 *	  An event, and how people and handlers see it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENT_H
#define CQRS_EVENT_H

#include "access/transam.h"
#include "access/tupdesc.h"
#include "utils/timestamp.h"

#include "registry/entry.h"

/* Columns of type cqrs_event. */
#define CQRS_EVENT_COLUMNS	10

/* Columns of an event in cqrs.retry and cqrs.dead_letter, in a row. */
#define CQRS_STORED_COLUMNS	7

/* Where its values point is up to the function that made it. */
typedef struct CqrsEvent
{
	const CqrsTopic *topic;		/* NULL: it is in no topic, ... */
	int64		position;		/* ... and has no position */
	FullTransactionId xid;
	TimestampTz emitted_at;
	Datum		event_id;
	Datum		event_name;
	NullableDatum key;
	NullableDatum headers;
	NullableDatum payload;
} CqrsEvent;

extern int	cqrs_key_partition(NullableDatum key, int partitions);
extern void cqrs_event_store(const CqrsEvent *event, Datum *values,
							 bool *nulls);
extern void cqrs_event_load(CqrsEvent *event, int64 position,
							const Datum *values, const bool *nulls);
extern void cqrs_event_show(const CqrsEvent *event, Datum *values,
							bool *nulls);
extern void cqrs_event_deform(const CqrsEvent *event, const char *status,
							  int attempts, Datum *values, bool *nulls);
extern Datum cqrs_event_form(const CqrsEvent *event, const char *status,
							 int attempts, TupleDesc desc);
extern bool cqrs_event_is_type(Oid typid);

#endif							/* CQRS_EVENT_H */
