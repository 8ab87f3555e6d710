/*-------------------------------------------------------------------------
 *
 * command_queue.h
 *	  Topics and subscriptions for what a role has done.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_COMMAND_QUEUE_H
#define CQRS_COMMAND_QUEUE_H

#include "fmgr.h"

extern Oid	cqrs_queue_owner_arg(FunctionCallInfo fcinfo, const char *verb,
								 const char *what);
extern char *cqrs_queue_free_name(const char *prefix, Oid owner);
extern int32 cqrs_queue_make_subscription(const char *name,
										  const char *handler,
										  const char *runs, const char *path,
										  int partitions);

#endif							/* CQRS_COMMAND_QUEUE_H */
