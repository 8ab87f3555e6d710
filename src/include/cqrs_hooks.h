/*-------------------------------------------------------------------------
 *
 * cqrs_hooks.h
 *	  A hook by which other extensions' C code is called around each dispatch.
 *
 * It is called instead of what handles a command (cqrs_send) or a query
 * (cqrs_query), and calls that itself, with proceed(); so it can act before and
 * after each, change its payload or answer, and see its errors. Registered
 * middleware is further in: proceed() goes on with the first of it. A nested
 * command is a dispatch of its own. The hook is not called for streams
 * (cqrs_stream): between their rows, the caller runs.
 *
 * Installing it
 *
 * The hook is found by name, so it does not matter whether cqrs_outbox is
 * loaded yet, or ever is. An extension that installs a hook keeps the previous
 * one, and calls it instead of proceed() from then on:
 *
 *		static CqrsDispatchHook previous;
 *
 *		void
 *		_PG_init(void)
 *		{
 *			CqrsDispatchHook *hook = cqrs_find_dispatch_hook();
 *
 *			previous = *hook;
 *			*hook = my_hook;
 *		}
 *
 *		static Jsonb *
 *		my_hook(const CqrsRequest *request, CqrsProceed proceed, void *inner)
 *		{
 *			if (previous != NULL)
 *				return previous(request, proceed, inner);
 *			return proceed(inner, request->payload);
 *		}
 *
 * A hook that changes the payload passes the new one to the previous hook, in a
 * copy of the request, or else to proceed().
 *
 * What holds while it runs
 *
 * 1. It is called in the sender's transaction, as the sender, after the checks
 *	  that the command or query is registered, its payload is a JSON object,
 *	  and it is not nested too deeply. proceed() checks whether the handler
 *	  exists and may be executed. cqrs_context() is that of the dispatch. A
 *	  command that is repeated with an idempotency key is not dispatched.
 * 2. It may proceed once, several times, or not at all. It must not keep inner
 *	  for later. Handlers of the events that are emitted meanwhile are called
 *	  after it, when the outermost dispatch is over.
 * 3. proceed() raises errors with ereport(), as usual. A hook that catches one
 *	  with PG_TRY() must raise it again with PG_RE_THROW(), or have run
 *	  proceed() in a subtransaction, and roll that back. The hook may raise
 *	  errors of its own, which the sender gets.
 * 4. The request, with all it points to, belongs to the caller: it lives until
 *	  the hook returns, and must not be changed. What proceed() returns is in
 *	  the memory context that was current then; what the hook returns must be
 *	  in the one that was current when it was called. Neither may be changed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HOOKS_H
#define CQRS_HOOKS_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/*
 * What is dispatched.
 */
typedef struct CqrsRequest
{
	const char *kind;			/* "command" or "query" */
	const char *name;			/* as it is registered */
	const pg_uuid_t *id;		/* the dispatch's, as in cqrs_context() */
	Jsonb	   *payload;		/* an object */
} CqrsRequest;

/*
 * Goes on with the dispatch; inner is what the hook was given, payload an object:
 * the request's own, or another one. Returns the answer; NULL is SQL's NULL.
 * Raises what cqrs_send() does.
 */
typedef Jsonb *(*CqrsProceed) (void *inner, Jsonb *payload);

/*
 * Returns the answer; NULL is SQL's NULL.
 */
typedef Jsonb *(*CqrsDispatchHook) (const CqrsRequest *request,
									CqrsProceed proceed, void *inner);

/*
 * The name changes with the types above, so that a hook compiled for others is
 * not called.
 */
#define CQRS_DISPATCH_HOOK	"cqrs_outbox.dispatch_hook.1"

/*
 * Where the hook is; NULL there means none. The place stays the same for the
 * life of a process.
 */
static inline CqrsDispatchHook *
cqrs_find_dispatch_hook(void)
{
	return (CqrsDispatchHook *) find_rendezvous_variable(CQRS_DISPATCH_HOOK);
}

#endif							/* CQRS_HOOKS_H */
