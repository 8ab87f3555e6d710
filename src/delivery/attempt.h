/*-------------------------------------------------------------------------
 *
 * attempt.h
 *	  What is recorded of an attempt outside of the delivery.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ATTEMPT_H
#define CQRS_ATTEMPT_H

#include "delivery/target_handler.h"
#include "registry/registry.h"

/* In a transaction, or subtransaction, of its own. */
extern bool cqrs_target_failed(CqrsSubscription *subscription, int partition,
							   int64 position, const ErrorData *error,
							   bool counted);
extern int64 cqrs_target_announce(CqrsSubscription *subscription,
								  int partition,
								  volatile CqrsDelivery *delivery);
extern void cqrs_target_void_attempt(CqrsSubscription *subscription,
									 int partition, int64 position,
									 const ErrorData *error,
									 TimestampTz retry_at);

#endif							/* CQRS_ATTEMPT_H */
