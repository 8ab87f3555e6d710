/*-------------------------------------------------------------------------
 *
 * dispatch_stack.h
 *	  What is being dispatched, up the stack.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DISPATCH_STACK_H
#define CQRS_DISPATCH_STACK_H

#include "mediator/context.h"
#include "registry/entry.h"
#include "registry/handler.h"

/*
 * What is being dispatched; in the memory of the function that dispatches it.
 * It is on the stack only while its handler, or middleware, runs.
 */
typedef struct CqrsDispatch
{
	struct CqrsDispatch *outer; /* NULL: none */
	int			depth;			/* 1: the outermost */
	CqrsCommand *command;
	bool		in_middleware;	/* a frame of middleware.c, without a handler */
	CqrsHandler *handler;		/* the one that runs; NULL: none yet */
	bool		passed_on;		/* ... called cqrs_next() */
	Datum		payload;
	Oid			payload_type;	/* jsonb, or the first handler's composite */
	ErrorContextCallback errcallback;
	CqrsContext context;
} CqrsDispatch;

/* The innermost one whose handler is running, or NULL. */
extern CqrsDispatch *cqrs_dispatch_innermost;

extern void cqrs_dispatch_error_context(void *arg);

/*
 * Set up a dispatch. The payload is a JSON object, or a value of the composite
 * type that the first handler takes; it must not be toasted.
 */
static inline void
cqrs_dispatch_init(CqrsDispatch *dispatch, CqrsCommand *command,
				   Datum payload, Oid payload_type)
{
	dispatch->outer = NULL;
	dispatch->depth = 0;
	dispatch->command = command;
	dispatch->in_middleware = false;
	dispatch->handler = NULL;
	dispatch->passed_on = false;
	dispatch->payload = payload;
	dispatch->payload_type = payload_type;
	cqrs_context_init(&dispatch->context,
					  cqrs_command_kind_name(command->kind), command->name);
}

/*
 * Put the dispatch on the stack, to call this handler. Whoever pushes it pops
 * it, also after an error. Not in a PG_FINALLY, though: if there was no error,
 * the PG_END_TRY after it brings back the error context that is popped here.
 */
static inline void
cqrs_dispatch_push(CqrsDispatch *dispatch, CqrsHandler *handler)
{
	CqrsDispatch *outer = cqrs_dispatch_innermost;

	dispatch->handler = handler;
	dispatch->passed_on = false;
	dispatch->outer = outer;
	dispatch->depth = outer ? outer->depth + 1 : 1;
	dispatch->errcallback.callback = cqrs_dispatch_error_context;
	dispatch->errcallback.arg = dispatch;
	dispatch->errcallback.previous = error_context_stack;
	error_context_stack = &dispatch->errcallback;
	cqrs_dispatch_innermost = dispatch;
	cqrs_context_push(&dispatch->context);
}

static inline void
cqrs_dispatch_pop(CqrsDispatch *dispatch)
{
	Assert(cqrs_dispatch_innermost == dispatch);
	cqrs_dispatch_innermost = dispatch->outer;
	cqrs_context_pop(&dispatch->context);
	error_context_stack = dispatch->errcallback.previous;
}

#endif							/* CQRS_DISPATCH_STACK_H */
