/*-------------------------------------------------------------------------
 *
 * topic_drop.h
 *	  Topics dropped, with all that is about them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TOPIC_DROP_H
#define CQRS_TOPIC_DROP_H

#include "registry/entry.h"

extern CqrsTopic *cqrs_topic_lock_to_drop(const char *name);
extern void cqrs_topic_drop(const CqrsTopic *topic);

#endif							/* CQRS_TOPIC_DROP_H */
