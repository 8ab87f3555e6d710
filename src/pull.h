/*-------------------------------------------------------------------------
 *
 * pull.h
 *	  Subscriptions that clients pull from.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PULL_H
#define CQRS_PULL_H

#include "cqrs_outbox.h"

#include "registry.h"
#include "tick.h"

/* So many leases in a row over the same events: then one by one. */
#define CQRS_LEASES_EXPIRED	2

/* pull.c */
extern CqrsSubscription *cqrs_pull_subscription(const char *name);

/* pull_wait.c */
extern bool cqrs_pull_lock_segments(const CqrsSubscription *subscription);
extern void cqrs_pull_unlock_segments(const CqrsSubscription *subscription);
extern bool cqrs_pull_is_covered(const CqrsSubscription *subscription,
								 const CqrsSnapshot *target, int64 *tick_id);
extern void cqrs_pull_wait_begin(void);
extern void cqrs_pull_wait_end(void);
extern void cqrs_pull_wait(long timeout_ms);
extern void cqrs_pull_request_tick(const CqrsSubscription *subscription);

#endif							/* CQRS_PULL_H */
