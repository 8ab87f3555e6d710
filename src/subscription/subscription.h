/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  Subscriptions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SUBSCRIPTION_H
#define CQRS_SUBSCRIPTION_H

#include "fmgr.h"
#include "nodes/pg_list.h"

#include "registry/entry.h"

extern void cqrs_subscription_start(int32 subscription_id, List *topics,
									int partitions, bool by_topic,
									bool exactly_once, bool latest);
extern bool cqrs_subscription_add_topic(int32 subscription_id, int32 topic_id);
extern CqrsSubscription *cqrs_subscription_own(FunctionCallInfo fcinfo,
											   const char *function);
extern void cqrs_subscription_wake(const CqrsSubscription *subscription);
extern bool cqrs_subscription_lock(const CqrsSubscription *subscription,
								   int partition, bool wait);
extern CqrsSubscription *cqrs_subscription_lock_all(const CqrsSubscription *subscription);
extern void cqrs_subscription_refuse_sagas(const CqrsSubscription *subscription,
										   const char *hint);
extern void cqrs_subscription_lost_events(const CqrsSubscription *subscription);
extern void cqrs_subscription_require_active(const CqrsSubscription *subscription);
pg_noreturn extern void cqrs_subscription_refuse_member(const CqrsSubscription *subscription,
														const char *what);
extern void cqrs_subscription_require_owner(const CqrsSubscription *subscription);
extern bool cqrs_subscription_allows(const CqrsSubscription *subscription,
									 AclMode mode);
extern void cqrs_subscription_check_handler_owner(const char *subscription,
												  Oid owner,
												  const char *signature,
												  Oid funcowner);
extern bool cqrs_subscription_owner_can_login(Oid owner);
extern void cqrs_subscription_require_login(const char *subscription,
											Oid owner);

#endif							/* CQRS_SUBSCRIPTION_H */
