/*-------------------------------------------------------------------------
 *
 * intake.h
 *	  Messages consumed by this process, from its connection into a topic.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_INTAKE_H
#define CQRS_INTAKE_H

#include "registry/entry.h"

/* What there is to do for this process's connection. */
typedef enum CqrsIntakeTask
{
	CQRS_INTAKE_OPEN,			/* there is no connection */
	CQRS_INTAKE_PLAN,			/* find out what to consume */
	CQRS_INTAKE_STORE,			/* messages have come */
	CQRS_INTAKE_CHECK,			/* see whether the consumer is what it was */
	CQRS_INTAKE_WAIT,			/* nothing but wait */
	CQRS_INTAKE_RENEW,			/* close it: it is not to be used any more */
	CQRS_INTAKE_FAIL			/* it is lost */
} CqrsIntakeTask;

/* In a transaction. Those that return false found nothing for us to do. */
extern void cqrs_intake_prepare(CqrsConsumer *consumer, int worker,
								bool failed_before);
extern bool cqrs_intake_plan(CqrsConsumer *consumer);
extern void cqrs_intake_store(CqrsConsumer *consumer);
extern void cqrs_intake_check(CqrsConsumer *consumer);

/* Outside. */
extern void cqrs_intake_connect(void);
extern CqrsIntakeTask cqrs_intake_task(char *error);
extern void cqrs_intake_planned(void);
extern void cqrs_intake_stored(void);
extern bool cqrs_intake_goes_apart(void);
extern int	cqrs_intake_fd(void);
extern long cqrs_intake_patience(void);
extern void cqrs_intake_close(void);

#endif							/* CQRS_INTAKE_H */
