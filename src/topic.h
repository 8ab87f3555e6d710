/*-------------------------------------------------------------------------
 *
 * topic.h
 *	  Topics and event types.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TOPIC_H
#define CQRS_TOPIC_H

#include "cqrs_outbox.h"

#include "registry.h"

extern bool cqrs_topic_allows(const CqrsTopic *topic, AclMode mode);
extern void cqrs_topic_require(const CqrsTopic *topic, AclMode mode);
extern void cqrs_topic_set_native(int32 topic_id);

#endif							/* CQRS_TOPIC_H */
