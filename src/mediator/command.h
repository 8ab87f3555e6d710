/*-------------------------------------------------------------------------
 *
 * command.h
 *	  Commands and queries, found by name to be dispatched.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_COMMAND_H
#define CQRS_COMMAND_H

#include "fmgr.h"

#include "registry/entry.h"

extern CqrsCommand *cqrs_command_get(const char *name, CqrsCommandKind kind);
extern Datum cqrs_command_payload_arg(FunctionCallInfo fcinfo,
									  CqrsCommand *command);

#endif							/* CQRS_COMMAND_H */
