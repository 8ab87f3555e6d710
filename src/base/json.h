/*-------------------------------------------------------------------------
 *
 * json.h
 *	  JSON text for readers outside the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_JSON_H
#define CQRS_JSON_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

extern void cqrs_json_append(StringInfo buf, JsonbContainer *container,
							 int limit);
extern void cqrs_json_append_scalar(StringInfo buf, const JsonbValue *value,
									int limit);
extern void cqrs_json_append_string(StringInfo buf, const char *str, int len,
									int limit);
extern void cqrs_utf8_append(StringInfo buf, const char *str, int len,
							 int limit);
pg_noreturn extern void cqrs_text_too_long(void);

#endif							/* CQRS_JSON_H */
