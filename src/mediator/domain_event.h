/*-------------------------------------------------------------------------
 *
 * domain_event.h
 *	  Handlers of events, called in the transaction that emits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DOMAIN_EVENT_H
#define CQRS_DOMAIN_EVENT_H

#include "lib/ilist.h"

#include "log/event.h"

/* Events that wait for their handlers, set aside while others are handled. */
typedef struct CqrsDomainEvents
{
	dlist_head	queue;
	MemoryContext context;
	bool		working;
	struct DomainEvent *handling;
} CqrsDomainEvents;

/* Events whose handlers are to be called, at the end of the dispatch. */
extern dlist_head cqrs_domain_event_queue;

extern void cqrs_domain_event_add(CqrsEventType *event_type,
								  const CqrsEvent *event);
extern void cqrs_domain_events_handle(void);
extern void cqrs_domain_events_set_aside(CqrsDomainEvents *aside);
extern void cqrs_domain_events_bring_back(CqrsDomainEvents *aside);

#endif							/* CQRS_DOMAIN_EVENT_H */
