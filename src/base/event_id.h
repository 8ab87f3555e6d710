/*-------------------------------------------------------------------------
 *
 * event_id.h
 *	  Ids of events: UUIDs of version 7.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EVENT_ID_H
#define CQRS_EVENT_ID_H

#include "fmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* The length of a UUID as text, without the terminating null. */
#define CQRS_UUID_TEXT_LEN	36

extern void cqrs_event_id_generate(TimestampTz now, pg_uuid_t *result);
extern void cqrs_event_id_derive(TimestampTz time, const char *what,
								 pg_uuid_t *result);
extern void cqrs_event_id_from(const char *what, pg_uuid_t *result);
extern char *cqrs_uuid_text(const pg_uuid_t *uuid, char *text);
extern bool cqrs_uuid_read(const char *text, int len, pg_uuid_t *id);

/* Some ids, in order. */
typedef struct CqrsEventIds
{
	int			n;
	pg_uuid_t  *ids;
} CqrsEventIds;

extern CqrsEventIds *cqrs_event_ids_arg(FunctionCallInfo fcinfo, int argno);
extern bool cqrs_event_ids_contain(const CqrsEventIds *ids,
								   const pg_uuid_t *id);

#endif							/* CQRS_EVENT_ID_H */
