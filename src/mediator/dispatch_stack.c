/*-------------------------------------------------------------------------
 *
 * dispatch_stack.c
 *	  What is being dispatched, up the stack.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "mediator/dispatch_stack.h"

CqrsDispatch *cqrs_dispatch_innermost = NULL;

void
cqrs_dispatch_error_context(void *arg)
{
	CqrsDispatch *dispatch = (CqrsDispatch *) arg;

	errcontext("handler %s of %s \"%s\"", dispatch->handler->signature,
			   cqrs_command_kind_name(dispatch->command->kind),
			   dispatch->command->name);
}
