/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  Commands that answer with a set of rows, one by one.
 *
 * The handler is called as the executor calls a set-returning function in a
 * select list, for one row at a time where its language can do that. So if the
 * caller asks for no more rows, no more are made, and what the handler did for
 * a row is done when the caller gets it. A handler that materialises its rows
 * (PL/pgSQL) has run to its end before the first one.
 *
 * The dispatch is on the stack while the handler makes a row, but not between
 * rows, when the caller does what it likes.
 *
 * Memory
 *
 * All that outlives a row is in the context that funcapi keeps for the set. It
 * is freed with the set, or with the portal whose query was abandoned.
 *
 * Failure
 *
 * A stream that the caller abandons without an error (LIMIT, a cursor that is
 * closed) is shut down by a callback of the caller's expression context, so
 * the handler's language is told. After an error, only memory and resource
 * owners are cleaned up, as for any set-returning function.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "nodes/execnodes.h"
#include "nodes/makefuncs.h"
#include "utils/datum.h"

#include "mediator/dispatch.h"
#include "mediator/stream.h"
#include "registry/payload.h"

/* A set that is being returned. */
typedef struct Stream
{
	CqrsDispatch dispatch;
	Oid			rettype;		/* of a row */
	SetExprState *handler;
	ExprContext *econtext;		/* the handler's */
	bool		last;			/* the handler must not be called again */
} Stream;

static Datum stream_row(Stream *stream, bool *isnull, ExprDoneCond *done);
static void stream_shutdown(Datum arg);

/*
 * For the first call of a set-returning function: check the stream's handler,
 * and make it ready to be called. The payload is a JSON object; it is copied.
 * Raises what cqrs_dispatch_prepare() does.
 */
void
cqrs_stream_begin(FunctionCallInfo fcinfo, CqrsCommand *command,
				  Datum payload)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	CqrsHandler *handler = &command->handlers[0];
	FuncCallContext *funcctx = SRF_FIRSTCALL_INIT();
	MemoryContext oldcontext;
	Stream	   *stream;
	Const	   *arg;
	FuncExpr   *expr;

	oldcontext = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
	stream = palloc0(sizeof(Stream));
	cqrs_dispatch_init(&stream->dispatch, command, payload, JSONBOID);
	payload = cqrs_dispatch_prepare(&stream->dispatch, handler);
	stream->rettype = handler->rettype;

	/* jsonb, or a composite type: of variable length. */
	arg = makeConst(handler->argtype, -1, InvalidOid, -1,
					datumCopy(payload, false, -1), false, false);
	expr = makeFuncExpr(handler->funcid, handler->rettype, list_make1(arg),
						InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	expr->funcretset = true;
	stream->econtext = CreateStandaloneExprContext();
	stream->handler = ExecInitFunctionResultSet((Expr *) expr,
												stream->econtext, NULL);
	MemoryContextSwitchTo(oldcontext);

	funcctx->user_fctx = stream;
	RegisterExprContextCallback(rsinfo->econtext, stream_shutdown,
								PointerGetDatum(stream));
}

/*
 * For every call: return the next row, as a set-returning function does.
 */
Datum
cqrs_stream_next(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	FuncCallContext *funcctx = SRF_PERCALL_SETUP();
	Stream	   *stream = funcctx->user_fctx;
	Datum		row = (Datum) 0;
	bool		isnull = true;
	ExprDoneCond done = ExprEndResult;

	if (!stream->last)
		row = stream_row(stream, &isnull, &done);
	if (done == ExprEndResult)
	{
		UnregisterExprContextCallback(rsinfo->econtext, stream_shutdown,
									  PointerGetDatum(stream));
		stream_shutdown(PointerGetDatum(stream));
		SRF_RETURN_DONE(funcctx);
	}
	stream->last = done == ExprSingleResult;
	if (isnull)
		SRF_RETURN_NEXT_NULL(funcctx);
	SRF_RETURN_NEXT(funcctx, row);
}

/*
 * Have the handler make the next row, as jsonb in the current memory context.
 */
static Datum
stream_row(Stream *stream, bool *isnull, ExprDoneCond *done)
{
	CqrsDispatch *dispatch = &stream->dispatch;
	volatile Datum row;

	ResetExprContext(stream->econtext);
	cqrs_dispatch_push(dispatch, &dispatch->command->handlers[0]);
	PG_TRY();
	{
		row = ExecMakeFunctionResultSet(stream->handler, stream->econtext,
										stream->econtext->ecxt_per_query_memory,
										isnull, done);
	}
	PG_CATCH();
	{
		cqrs_dispatch_pop(dispatch);
		PG_RE_THROW();
	}
	PG_END_TRY();
	cqrs_dispatch_pop(dispatch);

	/* Handle what was emitted on the way before the caller goes on. */
	if (*done != ExprEndResult)
		row = cqrs_payload_from_value(row, *isnull, stream->rettype, isnull);
	cqrs_dispatch_events();
	return row;
}

/*
 * No more rows are wanted.
 */
static void
stream_shutdown(Datum arg)
{
	Stream	   *stream = (Stream *) DatumGetPointer(arg);

	FreeExprContext(stream->econtext, true);
}
