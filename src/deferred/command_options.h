/*-------------------------------------------------------------------------
 *
 * command_options.h
 *	  What may be chosen for one command when it is enqueued.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_COMMAND_OPTIONS_H
#define CQRS_COMMAND_OPTIONS_H

#include "utils/jsonb.h"
#include "utils/timestamp.h"

typedef struct CqrsCommandOptions
{
	TimestampTz expires_at;		/* DT_NOEND: never */
	bool		keep_answer;
} CqrsCommandOptions;

extern void cqrs_command_options_parse(Jsonb *given, const char *command_name,
									   CqrsCommandOptions *options);
extern NullableDatum cqrs_command_options_headers(const CqrsCommandOptions *options);
extern void cqrs_command_options_of(NullableDatum headers,
									CqrsCommandOptions *options);

#endif							/* CQRS_COMMAND_OPTIONS_H */
