/*-------------------------------------------------------------------------
 *
 * drop_topic.h
 *	  Dropping a topic, unless something would be lost.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DROP_TOPIC_H
#define CQRS_DROP_TOPIC_H

#include "registry/entry.h"

extern bool cqrs_topic_holds_events(CqrsTopic *topic);

#endif							/* CQRS_DROP_TOPIC_H */
