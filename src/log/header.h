/*-------------------------------------------------------------------------
 *
 * header.h
 *	  Headers of events that have a meaning here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HEADER_H
#define CQRS_HEADER_H

#include "utils/jsonb.h"
#include "utils/timestamp.h"

extern void cqrs_headers_check(NullableDatum headers, const char *event_name);
extern char *cqrs_header_string(Jsonb *headers, const char *name, int *len);
extern bool cqrs_header_occurred_at(Jsonb *headers, TimestampTz *occurred_at);
extern NullableDatum cqrs_headers_with_occurred_at(NullableDatum headers,
												   TimestampTz occurred_at);

#endif							/* CQRS_HEADER_H */
