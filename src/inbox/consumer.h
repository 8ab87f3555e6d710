/*-------------------------------------------------------------------------
 *
 * consumer.h
 *	  Consumers: who may do what with them, and their locks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CONSUMER_H
#define CQRS_CONSUMER_H

#include "fmgr.h"

#include "registry/entry.h"

extern CqrsConsumer *cqrs_consumer_own(FunctionCallInfo fcinfo,
									   const char *function);
extern void cqrs_consumer_require_owner(const CqrsConsumer *consumer);
extern CqrsConsumer *cqrs_consumer_lock(const CqrsConsumer *consumer);
extern void cqrs_consumer_changed(int32 consumer_id);
extern void cqrs_consumers_adopt(void);

#endif							/* CQRS_CONSUMER_H */
