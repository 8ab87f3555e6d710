/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  One dispatch: what is called, and how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DISPATCH_H
#define CQRS_DISPATCH_H

#include "mediator/dispatch_stack.h"
#include "mediator/domain_event.h"

extern Datum cqrs_dispatch_run(CqrsDispatch *dispatch, bool *isnull);
extern void cqrs_dispatch_pass_on(void);

/* For callers that call the handler in another way. */
extern Datum cqrs_dispatch_prepare(CqrsDispatch *dispatch,
								   CqrsHandler *handler);

/*
 * Call the handlers of the events emitted so far; during a dispatch, that is
 * put off until the outermost one is over. Raises whatever the handlers raise.
 * Inline, as each dispatch and each event calls it.
 */
static inline void
cqrs_dispatch_events(void)
{
	if (cqrs_dispatch_innermost == NULL &&
		!dlist_is_empty(&cqrs_domain_event_queue))
		cqrs_domain_events_handle();
}

#endif							/* CQRS_DISPATCH_H */
