/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  One dispatch: what is called, how, and what is being dispatched up the
 *	  stack.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DISPATCH_H
#define CQRS_DISPATCH_H

#include "cqrs_outbox.h"

#include "registry.h"

/* What is being dispatched; in the C stack of who dispatches it. */
typedef struct CqrsDispatch
{
	struct CqrsDispatch *outer; /* NULL: none */
	int			depth;			/* 1: the outermost */
	CqrsCommand *command;
	CqrsHandler *handler;		/* the one that runs */
	bool		passed_on;		/* ... called cqrs_next() */
	Datum		payload;
	Oid			payload_type;	/* jsonb, or the first handler's composite */
} CqrsDispatch;

extern void cqrs_dispatch_init(CqrsDispatch *dispatch, CqrsCommand *command,
							   Datum payload, Oid payload_type);
extern Datum cqrs_dispatch_run(CqrsDispatch *dispatch, bool *isnull);
extern void cqrs_dispatch_pass_on(void);

#endif							/* CQRS_DISPATCH_H */
