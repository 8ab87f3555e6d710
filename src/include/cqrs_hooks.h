/*-------------------------------------------------------------------------
 *
 * cqrs_hooks.h
 *	  The hook that other extensions' C code has around each dispatch.
 *
 * It is called instead of what handles a command (cqrs_send) or a query
 * (cqrs_query), and calls that itself, with proceed(); so it sees each of them
 * before and after, may give it another payload or another answer, and sees
 * its errors. Registered middleware is further in: proceed() goes on with the
 * first of it. A nested command is a dispatch of its own. Streams (cqrs_stream)
 * are not seen: between their rows, the caller runs.
 *
 * Installing it
 *
 * The hook is found by name, so it does not matter whether cqrs_outbox is
 * loaded yet, or ever is. Whoever installs one keeps the one that was there,
 * and calls it instead of proceed() from then on:
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
 * A hook with another payload for what is further in gives it, in a copy of the
 * request, to the previous hook; or else to proceed().
 *
 * What holds while it runs
 *
 * 1. It is called in the sender's transaction, as the sender, once what was
 *	  sent was found, its payload is a JSON object, and it is not nested too
 *	  deeply. Whether the handler exists, and may be executed, is seen in
 *	  proceed(). cqrs_context() is that of the dispatch. A command that is
 *	  repeated with an idempotency key is not dispatched.
 * 2. It may proceed once, several times, or not at all. It must not keep inner
 *	  for later. Handlers of the events that are emitted on the way are called
 *	  after it, when the outermost dispatch is over.
 * 3. An error comes out of proceed() with ereport(), like any other. Whoever
 *	  looks at it with PG_TRY() lets it go on with PG_RE_THROW(), or else ran
 *	  proceed() in a subtransaction, which is rolled back. The hook may raise
 *	  errors: they are the sender's.
 * 4. The request, with all it points to, is the caller's: it lives until the
 *	  hook returns, and must not be changed. What proceed() returns is in the
 *	  memory context that was current, and so is what the hook returns; it must
 *	  live as long as that does. Neither may be changed.
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
 * Its name changes with the types above: a hook that was compiled for others is
 * not called.
 */
#define CQRS_DISPATCH_HOOK	"cqrs_outbox.dispatch_hook.1"

/*
 * Where the hook is; NULL there: none. The place is the same in all of a
 * process's life.
 */
static inline CqrsDispatchHook *
cqrs_find_dispatch_hook(void)
{
	return (CqrsDispatchHook *) find_rendezvous_variable(CQRS_DISPATCH_HOOK);
}

#endif							/* CQRS_HOOKS_H */
