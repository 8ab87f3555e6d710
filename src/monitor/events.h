/*-------------------------------------------------------------------------
 *
 * events.h
 *	  The outbox as people see it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENTS_H
#define CQRS_EVENTS_H

#include "base/cqrs_outbox.h"

#include "access/tupdesc.h"

#include "log/window.h"
#include "registry/registry.h"

/* Columns of type cqrs_event. */
#define CQRS_EVENT_COLUMNS	10

extern void cqrs_event_deform(const CqrsEvent *event, const char *status,
							  int attempts, Datum *values, bool *nulls);
extern Datum cqrs_event_form(const CqrsEvent *event, const char *status,
							 int attempts, TupleDesc desc);
extern bool cqrs_events_pending(CqrsTopic *topic);
extern bool cqrs_event_is_type(Oid typid);

#endif							/* CQRS_EVENTS_H */
