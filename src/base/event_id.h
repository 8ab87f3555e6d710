/*-------------------------------------------------------------------------
 *
 * event_id.h
 *	  Ids of events: UUIDs of version 7.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENT_ID_H
#define CQRS_EVENT_ID_H

#include "base/cqrs_outbox.h"

#include "utils/timestamp.h"
#include "utils/uuid.h"

extern void cqrs_event_id_generate(TimestampTz now, pg_uuid_t *result);

#endif							/* CQRS_EVENT_ID_H */
