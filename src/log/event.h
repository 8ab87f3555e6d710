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

/*
 * Columns of an event, in a row and in this order wherever they are: position,
 * event_id, event_name, topic, key, payload, headers, emitted_at. These are all
 * of type cqrs_event, and the first of cqrs_received, cqrs_events() and
 * cqrs_dead_letters(). In cqrs.retry and cqrs.dead_letter, the topic is its id.
 */
#define CQRS_EVENT_COLUMNS	8

/* Where its values point is up to the function that made it. */
typedef struct CqrsEvent
{
	const CqrsTopic *topic;		/* NULL: it is in none */
	int64		position;		/* 0: it has none */
	FullTransactionId xid;
	TimestampTz emitted_at;
	Datum		event_id;
	Datum		event_name;
	NullableDatum key;
	NullableDatum headers;
	NullableDatum payload;
} CqrsEvent;

extern NullableDatum cqrs_key_arg(FunctionCallInfo fcinfo, int argno,
								  const char *kind, const char *name);
extern uint64 cqrs_event_lane(const CqrsEvent *event, bool by_topic);
extern int	cqrs_event_partition(int32 topic_id, Datum event_id,
								 NullableDatum key, bool by_topic,
								 int partitions);
extern void cqrs_event_store(const CqrsEvent *event, Datum *values,
							 bool *nulls);
extern void cqrs_event_load(CqrsEvent *event, const Datum *values,
							const bool *nulls);
extern void cqrs_event_show(const CqrsEvent *event, Datum *values,
							bool *nulls);
extern Datum cqrs_event_form(const CqrsEvent *event, TupleDesc desc);
extern bool cqrs_event_is_type(Oid typid);
extern bool cqrs_event_is_array(Oid typid);

#endif							/* CQRS_EVENT_H */
