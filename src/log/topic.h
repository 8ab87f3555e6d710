/*-------------------------------------------------------------------------
 *
 * topic.h
 *	  Topics.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TOPIC_H
#define CQRS_TOPIC_H

#include "utils/timestamp.h"

#include "registry/entry.h"

extern int32 cqrs_topic_obtain(const char *name);
extern int32 cqrs_topic_create(const char *name, Interval *retention, Oid creator,
							   bool may_emit);
extern bool cqrs_topic_allows_role(const CqrsTopic *topic, AclMode mode,
								   Oid role);
extern bool cqrs_topic_allows(const CqrsTopic *topic, AclMode mode);
extern bool cqrs_topic_keep(const CqrsTopic *topic);
extern void cqrs_topic_require(const CqrsTopic *topic, AclMode mode);
extern void cqrs_topic_require_control(const CqrsTopic *topic,
									   const char *verb);
extern void cqrs_topic_set_native(int32 topic_id);

#endif							/* CQRS_TOPIC_H */
