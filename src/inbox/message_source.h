/*-------------------------------------------------------------------------
 *
 * message_source.h
 *	  Where messages come from, and for how long each source was consumed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MESSAGE_SOURCE_H
#define CQRS_MESSAGE_SOURCE_H

#include "utils/timestamp.h"

/* A role's source of messages. */
typedef struct CqrsMessageSource
{
	Oid			role;
	Datum		role_name;		/* text */
	Datum		name;			/* text */
} CqrsMessageSource;

extern void cqrs_message_source_init(CqrsMessageSource *source, Oid role,
									 const char *name);
extern int64 cqrs_message_source_note(const CqrsMessageSource *source);
extern bool cqrs_message_source_time(const CqrsMessageSource *source,
									 int64 *source_time,
									 TimestampTz *noted_at);
extern int64 cqrs_message_longest_gap(void);

#endif							/* CQRS_MESSAGE_SOURCE_H */
