/*-------------------------------------------------------------------------
 *
 * dispatch.c
 *	  One dispatch: what is called, and how.
 *
 * Queries
 *
 * A query runs with the transaction read-only. If the transaction may write,
 * the query runs in a subtransaction: however that ends, the outer state comes
 * back, and meanwhile the server refuses SET transaction_read_only = off. If
 * nothing may be written anyway, none is needed.
 *
 * Chains
 *
 * Each handler of a chain, including the last one, runs in a subtransaction,
 * which is rolled back if the handler passes on. So a handler that passes on
 * leaves nothing behind. A command with one handler has no such
 * subtransaction, so its handler cannot pass on: what it had done would stay.
 *
 * Fallbacks
 *
 * A handler that has one runs in a subtransaction; see fallback.c.
 *
 * Middleware
 *
 * Middleware and hooks are called around all of that; see middleware.c.
 *
 * Failure
 *
 * After an error, we must end our subtransaction: what catches the error up the
 * stack, such as PL/pgSQL's EXCEPTION, rolls back the innermost one, taking it
 * for its own. The error is raised again unchanged. It is copied before the
 * rollback, which may free what it points to; see rethrow.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/jsonb.h"
#include "utils/resowner.h"

#include "base/rethrow.h"
#include "mediator/dispatch.h"
#include "mediator/fallback.h"
#include "mediator/middleware.h"
#include "registry/payload.h"

/* A call of a handler, or of its fallback. */
typedef struct Call
{
	CqrsDispatch *dispatch;
	Datum		arg;			/* of handler and fallback */
} Call;

static Datum run_handlers(CqrsDispatch *dispatch, bool *isnull);
static Datum run_chain(CqrsDispatch *dispatch, bool *isnull);
static inline void check_depth(CqrsDispatch *dispatch);
static inline void check(CqrsDispatch *dispatch, CqrsHandler *handler);
static inline Datum payload_for(CqrsDispatch *dispatch, CqrsHandler *handler);
static Datum call_handler(CqrsDispatch *dispatch, CqrsHandler *handler,
						  bool *isnull);
static Datum call_checked(void *arg, CqrsHandler *handler, bool *isnull);
static Datum call_on_stack(CqrsDispatch *dispatch, CqrsHandler *handler,
						   Datum arg, bool *isnull);
static Datum call_in_subtransaction(CqrsDispatch *dispatch,
									CqrsHandler *handler, bool *isnull);

/*
 * Call the handler, or those of a chain until one answers, through the
 * middleware, and return the answer as jsonb, in the current memory context.
 *
 * If this is the outermost dispatch, the handlers of the events that were
 * emitted meanwhile are called before it returns.
 *
 * Raises 25000 in parallel mode; 54001 nested too deeply; 42883 no such
 * handler; 42501 it may not be executed; what payload.c raises for a payload that
 * does not fit; what cqrs_middleware_run() raises; and whatever the handlers
 * raise.
 */
Datum
cqrs_dispatch_run(CqrsDispatch *dispatch, bool *isnull)
{
	Datum		answer;

	if (unlikely(cqrs_middleware_present()))
	{
		check_depth(dispatch);
		answer = cqrs_middleware_run(dispatch, run_handlers, isnull);
	}
	else
		answer = run_handlers(dispatch, isnull);
	cqrs_dispatch_events();
	return answer;
}

/*
 * The innermost handler passes on to the next one of its chain. Raises 55000 if
 * it cannot.
 */
void
cqrs_dispatch_pass_on(void)
{
	CqrsDispatch *dispatch = cqrs_dispatch_innermost;
	bool		is_handling;

	/*
	 * An event that cqrs_drain() delivers is no dispatch, but has a context.
	 */
	is_handling = dispatch != NULL && !dispatch->in_middleware &&
		cqrs_context_innermost == &dispatch->context;
	if (!is_handling || dispatch->command->nhandlers == 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_next() was not called by a handler of a chain"),
				 dispatch == NULL ?
				 errdetail("No command is being handled.") :
				 !is_handling ?
				 errdetail("It was called by a middleware, or by a handler of an event.") :
				 errdetail("The innermost handler is the only one of %s \"%s\".",
						   cqrs_command_kind_name(dispatch->command->kind),
						   dispatch->command->name),
				 errhint("A chain is a command that is registered with several handlers.")));
	dispatch->passed_on = true;
}

/*
 * For callers that call the handler themselves: check that it can be called
 * here and now, and return its argument, in the current memory context. Raises
 * what cqrs_dispatch_run() does.
 */
Datum
cqrs_dispatch_prepare(CqrsDispatch *dispatch, CqrsHandler *handler)
{
	check(dispatch, handler);
	return payload_for(dispatch, handler);
}

/*
 * Call what handles the command, and return the answer as jsonb.
 */
static Datum
run_handlers(CqrsDispatch *dispatch, bool *isnull)
{
	CqrsCommand *command = dispatch->command;

	if (command->nhandlers > 1)
		return run_chain(dispatch, isnull);
	if (command->kind == CQRS_QUERY && !XactReadOnly)
		return call_in_subtransaction(dispatch, command->handlers, isnull);
	return call_handler(dispatch, command->handlers, isnull);
}

/*
 * Call the handlers of a chain until one does not pass on.
 */
static Datum
run_chain(CqrsDispatch *dispatch, bool *isnull)
{
	CqrsCommand *command = dispatch->command;
	int			i;

	for (i = 0; i < command->nhandlers; i++)
	{
		Datum		answer;

		answer = call_in_subtransaction(dispatch, &command->handlers[i],
										isnull);
		if (!dispatch->passed_on)
			return answer;
	}
	*isnull = true;
	return (Datum) 0;
}

/*
 * Check that one more dispatch can be on the stack. Raises 25000 or 54001.
 */
static pg_attribute_always_inline void
check_depth(CqrsDispatch *dispatch)
{
	CqrsCommand *command = dispatch->command;
	CqrsDispatch *outer = cqrs_dispatch_innermost;
	int			depth = outer ? outer->depth : 0;

	PreventCommandIfParallelMode(cqrs_command_function(command->kind));
	if (depth >= cqrs_max_command_depth)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("%s \"%s\" is nested too deeply",
						cqrs_command_kind_name(command->kind), command->name),
				 errdetail("%d commands are being handled already, one within the other.",
						   depth),
				 errhint("A handler may send its own command without end; otherwise raise cqrs_outbox.max_command_depth.")));
	check_stack_depth();
}

/*
 * Can the current user have this handler called here and now? Raises 25000,
 * 54001, 42883 or 42501.
 */
static pg_attribute_always_inline void
check(CqrsDispatch *dispatch, CqrsHandler *handler)
{
	CqrsCommand *command = dispatch->command;

	check_depth(dispatch);
	cqrs_handler_check(handler, cqrs_command_kind_name(command->kind),
					   command->name);
}

/*
 * The payload as the handler, which was checked, takes it; in the current
 * memory context. Raises what payload.c does.
 */
static pg_attribute_always_inline Datum
payload_for(CqrsDispatch *dispatch, CqrsHandler *handler)
{
	Datum		payload;
	bool		isnull;

	if (handler->argtype == dispatch->payload_type)
		return dispatch->payload;

	payload = cqrs_payload_from_value(dispatch->payload, false,
									  dispatch->payload_type, &isnull);
	if (handler->argtype == JSONBOID)
		return payload;
	return cqrs_payload_to_composite(DatumGetJsonbP(payload), handler->argtype,
									 cqrs_command_kind_name(dispatch->command->kind),
									 dispatch->command->name);
}

/*
 * Call one handler, or its fallback if it has one and fails, and return the
 * answer as jsonb.
 */
static Datum
call_handler(CqrsDispatch *dispatch, CqrsHandler *handler, bool *isnull)
{
	Datum		arg;
	Datum		answer;
	Oid			rettype;

	check(dispatch, handler);
	rettype = handler->rettype;
	arg = payload_for(dispatch, handler);
	if (handler->fallback != NULL)
	{
		Call		call = {dispatch, arg};

		return cqrs_fallback_run(handler,
								 cqrs_command_kind_name(dispatch->command->kind),
								 dispatch->command->name,
								 call_checked, &call, isnull);
	}
	answer = call_on_stack(dispatch, handler, arg, isnull);
	return cqrs_payload_from_value(answer, *isnull, rettype, isnull);
}

/*
 * Call a handler for fallback.c, once it is checked and its argument is made.
 */
static Datum
call_checked(void *arg, CqrsHandler *handler, bool *isnull)
{
	Call	   *call = (Call *) arg;
	Oid			rettype = handler->rettype;
	Datum		answer;

	answer = call_on_stack(call->dispatch, handler, call->arg, isnull);
	return cqrs_payload_from_value(answer, *isnull, rettype, isnull);
}

/*
 * The call itself; the dispatch is on the stack meanwhile.
 */
static Datum
call_on_stack(CqrsDispatch *dispatch, CqrsHandler *handler, Datum arg,
			  bool *isnull)
{
	volatile Datum answer;

	cqrs_dispatch_push(dispatch, handler);
	PG_TRY();
	{
		answer = cqrs_handler_call(handler, arg, isnull);
	}
	PG_CATCH();
	{
		cqrs_dispatch_pop(dispatch);
		PG_RE_THROW();
	}
	PG_END_TRY();
	cqrs_dispatch_pop(dispatch);
	return answer;
}

/*
 * Call one handler in a subtransaction, which is read-only for a query, and
 * rolled back if the handler passes on.
 */
static Datum
call_in_subtransaction(CqrsDispatch *dispatch, CqrsHandler *handler,
					   bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Datum		answer;

	/* The server would refuse too, but name the subtransaction. */
	PreventCommandIfParallelMode(cqrs_command_function(dispatch->command->kind));
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (dispatch->command->kind == CQRS_QUERY)
			XactReadOnly = true;
		answer = call_handler(dispatch, handler, isnull);
		if (!dispatch->passed_on)
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(context);

		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	if (dispatch->passed_on)
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return answer;
}
