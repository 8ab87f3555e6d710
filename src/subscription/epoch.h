/*-------------------------------------------------------------------------
 *
 * epoch.h
 *	  Changes of how many partitions a subscription has, or of its ordering.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EPOCH_H
#define CQRS_EPOCH_H

#include "log/tick.h"
#include "registry/entry.h"

extern void cqrs_epoch_check_partitions(const char *subscription,
										int partitions);
extern void cqrs_epoch_open(CqrsSubscription *subscription,
							const int *partitions, const bool *by_topic);
extern bool cqrs_epoch_limit(const CqrsSubscription *subscription,
							 CqrsTick *tick);
extern bool cqrs_epoch_close(int32 subscription_id);
extern CqrsSubscription *cqrs_epoch_abandon(CqrsSubscription *subscription);
extern void cqrs_epoch_restart(int32 subscription_id);

#endif							/* CQRS_EPOCH_H */
