/*-------------------------------------------------------------------------
 *
 * idempotency.h
 *	  Commands that are handled once, however often they are sent: answers
 *	  kept by the sender's key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_IDEMPOTENCY_H
#define CQRS_IDEMPOTENCY_H

#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "log/rotation.h"
#include "mediator/dispatch_stack.h"

/* A locked key; in the memory of the function that sends the command. */
typedef struct CqrsIdempotencyKey
{
	struct CqrsIdempotencyKey *outer;	/* whose command is being handled */
	Oid			role;
	text	   *role_name;
	text	   *text;			/* not toasted */
	const char *command_name;	/* set once it was looked up */
	bytea	   *request;
} CqrsIdempotencyKey;

/* What a key is used for. */
typedef enum CqrsIdempotencyUse
{
	CQRS_KEY_SEND = 's',
	CQRS_KEY_ENQUEUE = 'e',
	CQRS_KEY_ANSWER = 'a'		/* of an enqueued command, by its id */
} CqrsIdempotencyUse;

extern void cqrs_idempotency_lock(CqrsIdempotencyKey *key, text *value,
								  const char *function);
extern bool cqrs_idempotency_find(CqrsIdempotencyKey *key,
								  CqrsIdempotencyUse use,
								  const CqrsCommand *command, Datum payload,
								  Datum *answer, bool *isnull);
extern void cqrs_idempotency_store(const CqrsIdempotencyKey *key,
								   Datum answer, bool isnull);
extern Datum cqrs_idempotency_run(CqrsIdempotencyKey *key,
								  CqrsDispatch *dispatch, bool *isnull,
								  bool *repeated);
extern bool cqrs_answer_find(const pg_uuid_t *command_id, Datum *answer,
							 bool *isnull, TransactionId *xmin);
extern void cqrs_answer_store(const pg_uuid_t *command_id,
							  const char *command_name, Datum answer,
							  bool isnull);
extern CqrsTableState cqrs_idempotency_truncate(int segment,
												TimestampTz *look_at,
												int *pid);

#endif							/* CQRS_IDEMPOTENCY_H */
