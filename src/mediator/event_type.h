/*-------------------------------------------------------------------------
 *
 * event_type.h
 *	  Event types, and who handles their events in the transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENT_TYPE_H
#define CQRS_EVENT_TYPE_H

#include "registry/entry.h"

extern void cqrs_event_type_require_payload(const CqrsEventType *event_type);
extern void cqrs_event_type_check_handler(const CqrsEventType *event_type,
										  const char *signature, Oid argtype);

#endif							/* CQRS_EVENT_TYPE_H */
