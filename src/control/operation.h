/*-------------------------------------------------------------------------
 *
 * operation.h
 *	  Subscriptions in operation.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_OPERATION_H
#define CQRS_OPERATION_H

#include "base/event_id.h"
#include "registry/entry.h"

extern void cqrs_subscription_due_anew(CqrsSubscription *subscription);
extern int64 cqrs_subscription_try_now(CqrsSubscription *subscription,
									   const CqrsEventIds *ids);

#endif							/* CQRS_OPERATION_H */
