/*-------------------------------------------------------------------------
 *
 * events.h
 *	  The outbox as people see it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENTS_H
#define CQRS_EVENTS_H

#include "registry/entry.h"

extern bool cqrs_events_pending(CqrsTopic *topic);

#endif							/* CQRS_EVENTS_H */
