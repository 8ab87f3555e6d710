/*-------------------------------------------------------------------------
 *
 * cron_schedule.h
 *	  Commands that are executed again and again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CRON_SCHEDULE_H
#define CQRS_CRON_SCHEDULE_H

#include "log/event.h"

/* What is to be done about a run whose time has come. */
typedef struct CqrsDueRun
{
	bool		locked;			/* nothing: its schedule is being changed */
	bool		runs;			/* it is to be enqueued */
	TimestampTz next;			/* when the next one is; DT_NOEND: never */
	pg_uuid_t	next_id;		/* the id of that */
	NullableDatum next_headers;
} CqrsDueRun;

extern void cqrs_due_run(int32 schedule_id, TimestampTz run_at,
						 TimestampTz now, CqrsDueRun *due);

#endif							/* CQRS_CRON_SCHEDULE_H */
