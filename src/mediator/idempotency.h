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

#include "mediator/dispatch_stack.h"

/* A locked key; in the memory of the function that sends the command. */
typedef struct CqrsIdempotencyKey
{
	struct CqrsIdempotencyKey *outer;	/* whose command is being handled */
	Oid			role;
	text	   *role_name;
	text	   *text;			/* not toasted */
} CqrsIdempotencyKey;

/* What cqrs_idempotency_truncate() found. */
typedef enum CqrsIdempotencyState
{
	CQRS_KEYS_KEPT,
	CQRS_KEYS_LOCKED,
	CQRS_KEYS_TRUNCATED
} CqrsIdempotencyState;

extern void cqrs_idempotency_lock(CqrsIdempotencyKey *key, text *value);
extern Datum cqrs_idempotency_run(CqrsIdempotencyKey *key,
								  CqrsDispatch *dispatch, bool *isnull);
extern CqrsIdempotencyState cqrs_idempotency_truncate(int segment,
													  TimestampTz *look_at,
													  int *pid);

#endif							/* CQRS_IDEMPOTENCY_H */
