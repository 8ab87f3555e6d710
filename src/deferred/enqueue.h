/*-------------------------------------------------------------------------
 *
 * enqueue.h
 *	  Commands that are executed by the worker, after the commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ENQUEUE_H
#define CQRS_ENQUEUE_H

#include "utils/uuid.h"

#include "log/event.h"
#include "registry/entry.h"

/* Columns of cqrs.scheduled_command. */
enum
{
	CQRS_SCHEDULED_COMMAND_ID = 1,
	CQRS_SCHEDULED_COMMAND_NAME,
	CQRS_SCHEDULED_TOPIC_ID,
	CQRS_SCHEDULED_KEY,
	CQRS_SCHEDULED_RUN_AT,
	CQRS_SCHEDULED_PAYLOAD,
	CQRS_SCHEDULED_HEADERS,
	CQRS_SCHEDULED_ENQUEUED_AT,
	CQRS_SCHEDULED_SCHEDULE_ID,
	CQRS_SCHEDULED_COLUMNS = CQRS_SCHEDULED_SCHEDULE_ID
};

extern void cqrs_enqueue_check(CqrsCommand *command, Datum payload);
extern const CqrsTopic *cqrs_command_queue_topic(void);
extern void cqrs_command_schedule(const CqrsEvent *event, TimestampTz run_at,
								  int32 schedule_id);

/* cancel.c */
extern bool cqrs_command_is_own(int32 topic_id);
extern List *cqrs_command_queues(void);
extern bool cqrs_command_is_ahead(const CqrsSubscription *queue,
								  const pg_uuid_t *command_id, bool *own);

#endif							/* CQRS_ENQUEUE_H */
