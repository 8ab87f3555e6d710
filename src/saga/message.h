/*-------------------------------------------------------------------------
 *
 * message.h
 *	  What is sent to sagas, by way of their role's topic.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_MESSAGE_H
#define CQRS_SAGA_MESSAGE_H

#include "log/event.h"
#include "saga/entry.h"

typedef enum CqrsSagaMessageKind
{
	CQRS_SAGA_WAKE,				/* go on, if seq is that of the newest entry */
	CQRS_SAGA_SIGNAL,			/* named so, with a payload */
	CQRS_SAGA_CANCEL,			/* undo what was done, if it is at step */
	CQRS_SAGA_RETRY,			/* try again, if it is at step */
	CQRS_SAGA_SKIP,				/* pass by step, if it is there */
	CQRS_SAGA_ENDED,			/* the branch, or the saga that it waits for */
	CQRS_SAGA_STOP,				/* to a branch: do not try any more */
	CQRS_SAGA_MOVE				/* to the table of those that start now */
} CqrsSagaMessageKind;

typedef struct CqrsSagaMessage
{
	CqrsSagaMessageKind kind;
	pg_uuid_t	saga_id;		/* to which saga */
	int32		branch;			/* ... and which branch of it */
	pg_uuid_t	id;				/* the same when it is sent again */
	int32		seq;			/* of a wake-up, or the number of a branch */
	int			looks;			/* of a wake-up: how often it came to nothing */
	char	   *name;			/* of a signal, or a step; NULL: none */
	NullableDatum payload;		/* of a signal */
} CqrsSagaMessage;

extern void cqrs_saga_send(const CqrsTopic *topic, const char *saga_name,
						   const CqrsSagaMessage *message,
						   NullableDatum headers);
extern void cqrs_saga_wake_at(const CqrsTopic *topic, const char *saga_name,
							  const CqrsSagaMessage *message,
							  NullableDatum headers, TimestampTz at);
extern void cqrs_saga_forget_wake(const CqrsSaga *saga, int32 branch,
								  int32 seq);
extern bool cqrs_saga_message_read(const CqrsEvent *event,
								   CqrsSagaMessage *message);

#endif							/* CQRS_SAGA_MESSAGE_H */
