/*-------------------------------------------------------------------------
 *
 * breaker.h
 *	  Circuit breakers: a handler that keeps failing is not called for a while.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BREAKER_H
#define CQRS_BREAKER_H

#include "utils/timestamp.h"

#include "registry/entry.h"

typedef enum CqrsBreakerState
{
	CQRS_BREAKER_CLOSED,		/* the handler is called */
	CQRS_BREAKER_OPEN,			/* the handler is not called */
	CQRS_BREAKER_HALF_OPEN		/* one call of the handler is the trial */
} CqrsBreakerState;

typedef enum CqrsBreakerOutcome
{
	CQRS_BREAKER_SUCCEEDED,
	CQRS_BREAKER_FAILED,
	CQRS_BREAKER_UNDECIDED		/* says nothing about the handler */
} CqrsBreakerOutcome;

/* One call of a handler. */
typedef struct CqrsBreakerCall
{
	const CqrsBreaker *breaker;
	Oid			relid;			/* of cqrs.fallback */
	bool		counts;			/* its outcome is to be reported */
	bool		trial;
} CqrsBreakerCall;

extern void cqrs_breaker_shmem_request(void);
extern void cqrs_breaker_shmem_startup(void);

extern bool cqrs_breaker_enter(CqrsBreakerCall *call,
							   const CqrsBreaker *breaker);
extern bool cqrs_breaker_leave(CqrsBreakerCall *call,
							   CqrsBreakerOutcome outcome);
extern CqrsBreakerState cqrs_breaker_look(const CqrsBreaker *breaker,
										  int *failures,
										  TimestampTz *opened_at);

#endif							/* CQRS_BREAKER_H */
