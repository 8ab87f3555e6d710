/*-------------------------------------------------------------------------
 *
 * payload.h
 *	  Payloads: jsonb from and to SQL values.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PAYLOAD_H
#define CQRS_PAYLOAD_H

#include "fmgr.h"
#include "utils/jsonb.h"

/* kind is "event" or "command", name the event's or command's name. */
extern void cqrs_payload_check_object(Jsonb *payload, const char *kind,
									  const char *name);
extern Datum cqrs_payload_to_composite(Jsonb *payload, Oid typid,
									   const char *kind, const char *name);
extern Datum cqrs_payload_from_value(Datum value, bool isnull, Oid typid,
									 bool *result_null);
extern void cqrs_payload_init_to_jsonb(FmgrInfo *flinfo, Oid typid);
extern bool cqrs_payload_type_is_composite(Oid typid);

#endif							/* CQRS_PAYLOAD_H */
