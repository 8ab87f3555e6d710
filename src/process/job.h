/*-------------------------------------------------------------------------
 *
 * job.h
 *	  What a worker does for one cursor, transaction by transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_JOB_H
#define CQRS_JOB_H

#include "delivery/target_handler.h"
#include "retry/blame.h"
#include "subscription/subscription.h"

typedef enum CqrsJobOutcome
{
	CQRS_JOB_DELIVERED,			/* something; there may be more */
	CQRS_JOB_DRAINED,			/* nothing more */
	CQRS_JOB_FAILED				/* through no event's fault */
} CqrsJobOutcome;

/* How far a transaction got. */
typedef enum CqrsJobPhase
{
	CQRS_JOB_SKIPPED,			/* there is nothing for us to do */
	CQRS_JOB_AT_WORK,
	CQRS_JOB_COMMITTING			/* an error is one that only a commit finds */
} CqrsJobPhase;

typedef struct CqrsJob
{
	/* What is asked for. */
	int32		subscription_id;
	int			partition;
	bool		broker;
	bool		consumer;		/* subscription_id is a consumer's, partition
								 * one of its workers */

	/* What is known since the job began. */
	bool		first;			/* nothing was done yet */
	bool		finish;			/* begin nothing new */
	char		what[NAMEDATALEN + 64]; /* as pg_stat_activity shows it;
										 * empty: not yet */
	bool		cleared;		/* the last failure was forgotten */
	int			careful;		/* how many events are to be announced */
	int			one_by_one;		/* how many are to be delivered alone */
	CqrsPace	pace;
	TimestampTz flush_at;		/* wait for the disk then; 0: nothing to wait
								 * for */

	/* What the next transaction is about. */
	int64		announced;		/* position of the announced event, or 0 */
	const char *lost;			/* why the connection is lost */
	const ErrorData *error;		/* to be recorded */
	int64		position;		/* ... for the event at this position, or 0 */

	/* What became of the last one. */
	CqrsJobPhase phase;
	CqrsBlame	blame;			/* whose fault its error is */
	CqrsDelivery delivery;
	TimestampTz failed_until;
} CqrsJob;

/* Return false if it turned out that there is nothing for us to do. */
typedef bool (*CqrsJobFunction) (CqrsSubscription *subscription, CqrsJob *job);
typedef bool (*CqrsConsumerFunction) (CqrsConsumer *consumer, CqrsJob *job);

/* job.c */
extern ErrorData *cqrs_job_run(CqrsJobFunction function, CqrsJob *job);
extern ErrorData *cqrs_job_run_consumer(CqrsConsumerFunction function,
										CqrsJob *job);
extern CqrsSubscription *cqrs_job_begin(const CqrsJob *job);
extern bool cqrs_job_announce(CqrsSubscription *subscription, CqrsJob *job);
extern bool cqrs_job_lock_cursor(const CqrsSubscription *subscription,
								 const CqrsJob *job);
extern CqrsJobOutcome cqrs_job_fail(CqrsJob *job, ErrorData *error);
extern bool cqrs_job_must_wait(CqrsJob *job);

/* handler_job.c */
extern CqrsJobOutcome cqrs_handler_job_step(CqrsJob *job);
extern void cqrs_handler_job_flush(CqrsJob *job);
extern bool cqrs_handler_job_blame_overdue(void);

/* broker_job.c */
extern CqrsJobOutcome cqrs_broker_job_step(CqrsJob *job);

/* consumer_job.c */
extern CqrsJobOutcome cqrs_consumer_job_step(CqrsJob *job);

#endif							/* CQRS_JOB_H */
