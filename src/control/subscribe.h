/*-------------------------------------------------------------------------
 *
 * subscribe.h
 *	  Removing a subscription.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SUBSCRIBE_H
#define CQRS_SUBSCRIBE_H

#include "registry/entry.h"

extern void cqrs_subscription_remove(CqrsSubscription *subscription);

#endif							/* CQRS_SUBSCRIBE_H */
