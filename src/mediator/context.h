/*-------------------------------------------------------------------------
 *
 * context.h
 *	  What is being handled, what caused it, and what its events' headers say of
 *	  that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CONTEXT_H
#define CQRS_CONTEXT_H

#include "miscadmin.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"

/*
 * A dispatch, or an event at a handler. It is in the memory of the handler's
 * caller, and on the stack while the handler runs.
 */
typedef struct CqrsContext
{
	struct CqrsContext *outer;	/* NULL: none */
	const char *kind;
	const char *name;
	bool		has_id;			/* a dispatch gets one when it is asked for */
	pg_uuid_t	id;
	NullableDatum headers;		/* of an event */
	const struct CqrsEvent *event;	/* also the enqueued command that is
									 * executed; NULL: none */
	bool		runs_command;	/* the delivery of an enqueued command */
	bool		runs_saga;		/* ... of what has a saga go on */
	bool		routes_to_sagas;	/* ... of what sagas may wait for */
	const ErrorData *failure;	/* the handler failed with this error, and is
								 * told; NULL: it is called */
	bool		took_failure;	/* ... and has dealt with it */
	int			attempts;		/* this one included */
	struct CqrsEffects *effects;	/* ids follow from it; NULL: they are new */
	Oid			caller;
} CqrsContext;

/*
 * What is done again after a failover or a restore has the same ids as before: they
 * follow from what does it, and from how many it made.
 */
typedef struct CqrsEffects
{
	const char *key;
	int			n;				/* how many ids were made */
} CqrsEffects;

/* The innermost one, or NULL. */
extern PGDLLIMPORT CqrsContext *cqrs_context_innermost;

/*
 * The innermost dry run, or NULL: what is done stays.
 */
extern struct CqrsDryRun *cqrs_dry_run_innermost;

#define cqrs_dry_run_is_active() (cqrs_dry_run_innermost != NULL)

extern const pg_uuid_t *cqrs_context_id(CqrsContext *context);
extern void cqrs_context_derive_id(TimestampTz now, pg_uuid_t *id);
extern NullableDatum cqrs_context_headers(NullableDatum headers);

/*
 * Set up a context, of a first attempt by the current user; an event's has its
 * id and headers set by the caller. kind and name must live as long.
 */
static inline void
cqrs_context_init(CqrsContext *context, const char *kind, const char *name)
{
	context->outer = NULL;
	context->kind = kind;
	context->name = name;
	context->has_id = false;
	context->headers.isnull = true;
	context->event = NULL;
	context->runs_command = false;
	context->runs_saga = false;
	context->routes_to_sagas = false;
	context->failure = NULL;
	context->took_failure = false;
	context->attempts = 1;
	context->effects = NULL;
	context->caller = GetUserId();
}

/*
 * Whoever pushes a context pops it, also after an error.
 */
static inline void
cqrs_context_push(CqrsContext *context)
{
	context->outer = cqrs_context_innermost;
	cqrs_context_innermost = context;
}

static inline void
cqrs_context_pop(CqrsContext *context)
{
	Assert(cqrs_context_innermost == context);
	cqrs_context_innermost = context->outer;
}

/*
 * An id for what is made now: an event, or a command. Inline, as each event has one.
 */
static inline void
cqrs_context_new_id(TimestampTz now, pg_uuid_t *id)
{
	if (cqrs_context_innermost == NULL)
		cqrs_event_id_generate(now, id);
	else
		cqrs_context_derive_id(now, id);
}

/*
 * Does an event that is emitted now get headers beyond those its emitter gave?
 */
static inline bool
cqrs_context_has_headers(void)
{
	return cqrs_context_innermost != NULL ||
		cqrs_traceparent[0] != '\0' || cqrs_correlation_id[0] != '\0';
}

#endif							/* CQRS_CONTEXT_H */
