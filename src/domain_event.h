/*-------------------------------------------------------------------------
 *
 * domain_event.h
 *	  Handlers of events, called in the transaction that emits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DOMAIN_EVENT_H
#define CQRS_DOMAIN_EVENT_H

#include "cqrs_outbox.h"

#include "registry.h"
#include "window.h"

extern void cqrs_domain_event_add(CqrsEventType *event_type,
								  const CqrsEvent *event);
extern void cqrs_domain_events_handle(void);

#endif							/* CQRS_DOMAIN_EVENT_H */
