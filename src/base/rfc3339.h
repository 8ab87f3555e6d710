/*-------------------------------------------------------------------------
 *
 * rfc3339.h
 *	  Timestamps as the internet writes them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RFC3339_H
#define CQRS_RFC3339_H

#include "lib/stringinfo.h"
#include "utils/timestamp.h"

extern bool cqrs_rfc3339_parse(const char *str, int len, TimestampTz *result);
extern void cqrs_rfc3339_append(StringInfo buf, TimestampTz timestamp);

#endif							/* CQRS_RFC3339_H */
