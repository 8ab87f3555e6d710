/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  Subscriptions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SUBSCRIPTION_H
#define CQRS_SUBSCRIPTION_H

#include "cqrs_outbox.h"

#include "fmgr.h"

#include "registry.h"

extern CqrsSubscription *cqrs_subscription_own(FunctionCallInfo fcinfo,
											   const char *function);
extern void cqrs_subscription_wake(const CqrsSubscription *subscription);
extern bool cqrs_subscription_lock(const CqrsSubscription *subscription,
								   int partition, bool wait);
extern void cqrs_subscription_lock_all(const CqrsSubscription *subscription);
extern void cqrs_subscription_require_active(const CqrsSubscription *subscription);
extern void cqrs_subscription_require_owner(const CqrsSubscription *subscription);
extern void cqrs_subscription_check_handler_owner(const char *subscription,
												  Oid owner,
												  const char *signature,
												  Oid funcowner);
extern bool cqrs_subscription_owner_can_login(Oid owner);

#endif							/* CQRS_SUBSCRIPTION_H */
