/*-------------------------------------------------------------------------
 *
 * middleware.h
 *	  What is called around each dispatch.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MIDDLEWARE_H
#define CQRS_MIDDLEWARE_H

#include "include/cqrs_hooks.h"
#include "mediator/dispatch_stack.h"
#include "registry/registry.h"

/*
 * Calls the handlers of a dispatch, and returns their answer, in the current
 * memory context.
 */
typedef Datum (*CqrsHandle) (CqrsDispatch *dispatch, bool *isnull);

/* Where the hook of other extensions is. */
extern CqrsDispatchHook *cqrs_dispatch_hook;

extern void cqrs_middleware_init(void);
extern Datum cqrs_middleware_run(CqrsDispatch *dispatch, CqrsHandle handle,
								 bool *isnull);

/*
 * Is there anything to call around a dispatch, whose command was just looked
 * up?
 */
static inline bool
cqrs_middleware_present(void)
{
	return cqrs_registry_middleware != NULL || *cqrs_dispatch_hook != NULL;
}

#endif							/* CQRS_MIDDLEWARE_H */
