/*-------------------------------------------------------------------------
 *
 * tell.c
 *	  Telling a handler that an event of it failed.
 *
 * A saga's step that fails is no event that is to be delivered again: the saga counts
 * its attempts itself, has it tried again, or is undone. So where an event of another
 * subscription would be recorded as failed, the handler that runs sagas is called
 * once more, in the transaction that records it, and is told of the error. Only our own
 * code runs then.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "delivery/tell.h"
#include "mediator/context.h"

/*
 * Tell the handler that this event failed with this error, if it is one that wants
 * to know. Returns whether it has dealt with it: then the event is done.
 */
bool
cqrs_tell_failure(CqrsSubscription *subscription, const CqrsEvent *event,
				  const ErrorData *error)
{
	CqrsContext *outer = cqrs_context_innermost;
	CqrsContext context;
	NullableDatum none = {.isnull = true};
	bool		isnull;

	if (!subscription->runs_sagas)
		return false;
	cqrs_handler_check(&subscription->handler, "subscription",
					   subscription->name);
	cqrs_context_init(&context, "event",
					  TextDatumGetCString(event->event_name));
	context.has_id = true;
	context.id = *DatumGetUUIDP(event->event_id);
	context.headers = event->headers;
	context.event = event;
	context.runs_saga = true;
	context.failure = error;
	CommandCounterIncrement();
	cqrs_context_innermost = &context;
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		(void) cqrs_handler_call_nullable(&subscription->handler, none,
										  &isnull);
		PopActiveSnapshot();
	}
	PG_FINALLY();
	{
		cqrs_context_innermost = outer;
	}
	PG_END_TRY();
	CommandCounterIncrement();
	return context.took_failure;
}
