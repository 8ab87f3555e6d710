/*-------------------------------------------------------------------------
 *
 * enqueue.h
 *	  Commands that are executed by the worker, after the commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ENQUEUE_H
#define CQRS_ENQUEUE_H

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
	CQRS_SCHEDULED_COLUMNS = CQRS_SCHEDULED_ENQUEUED_AT
};

#endif							/* CQRS_ENQUEUE_H */
