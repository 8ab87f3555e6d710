/*-------------------------------------------------------------------------
 *
 * topics.h
 *	  Which topics a subscription reads.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TOPICS_H
#define CQRS_TOPICS_H

#include "nodes/pg_list.h"
#include "utils/array.h"

#include "registry/entry.h"

extern List *cqrs_topics_check(const char *subscription, ArrayType *array);
extern List *cqrs_topics_of(const CqrsSubscription *subscription);
extern bool cqrs_topics_are(const CqrsSubscription *subscription,
							List *topics);
extern void cqrs_topics_set(const CqrsSubscription *subscription,
							List *topics);

#endif							/* CQRS_TOPICS_H */
