/*-------------------------------------------------------------------------
 *
 * target_broker.h
 *	  Events delivered to a broker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TARGET_BROKER_H
#define CQRS_TARGET_BROKER_H

#include "delivery/target_handler.h"

/* What there is to do for this process's connection. */
typedef enum CqrsBrokerTask
{
	CQRS_BROKER_TASK_OPEN,		/* there is no connection */
	CQRS_BROKER_TASK_WAIT,		/* nothing but wait */
	CQRS_BROKER_TASK_EXCHANGE,	/* record what is confirmed, read on */
	CQRS_BROKER_TASK_RENEW,		/* close it: it is not to be used any more */
	CQRS_BROKER_TASK_FAIL,		/* it is lost */
	CQRS_BROKER_TASK_STOP		/* close it, and wait for a person */
} CqrsBrokerTask;

/* In a transaction. */
extern bool cqrs_target_broker_prepare(CqrsSubscription *subscription,
									   int partition, int failed_before);

/* Outside. */
extern void cqrs_target_broker_connect(void);
extern CqrsBrokerTask cqrs_target_broker_task(bool finish, char *error);
extern const char *cqrs_target_broker_stopped(void);
extern bool cqrs_target_broker_may_announce(void);
extern int	cqrs_target_broker_fd(void);
extern long cqrs_target_broker_patience(void);
extern void cqrs_target_broker_close(void);

#endif							/* CQRS_TARGET_BROKER_H */
