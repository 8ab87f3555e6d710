/*-------------------------------------------------------------------------
 *
 * fallback.c
 *	  What is called instead of a handler that failed.
 *
 * A fallback belongs to a function, by its signature, and counts wherever that
 * function is the handler of a command or a query, alone or in a chain, or of an
 * event in the transaction that emits it. A fallback's own fallback, if that
 * function has one, does not count. A subscription's handler has attempts and
 * dead letters instead.
 *
 * Protocol
 *
 * 1. The caller has checked the handler and converted the payload: errors in
 *	  that are the caller's. So is a stack too deep.
 * 2. Unless its circuit breaker is open, the handler runs in a subtransaction.
 *	  After an error that the fallback is for, the subtransaction is rolled
 *	  back, and with it all that the handler wrote and emitted.
 * 3. The fallback runs in the transaction, or subtransaction, that the handler
 *	  would have run in without it. Its error is the caller's.
 *
 * Failure
 *
 * A cancelled query or a terminated process is not the handler's failure:
 * those errors are never caught, whatever is registered.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/interval.h"
#include "base/rethrow.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "mediator/fallback.h"
#include "registry/payload.h"
#include "registry/signature.h"

/* Why a fallback is called, for the error context if it fails, too. */
typedef struct Cause
{
	CqrsHandler *handler;
	ErrorData  *error;			/* NULL: its circuit breaker is open */
} Cause;

static ErrorData *try_handler(CqrsHandler *handler, CqrsBreakerCall *attempt,
							  CqrsCall call, void *arg, Datum *answer,
							  bool *isnull);
static void note_error(const CqrsFallback *fallback, CqrsBreakerCall *attempt,
					   const ErrorData *error, bool caught);
static bool is_for(const CqrsFallback *fallback, int code);
static bool is_end(int code);
static void error_callback(void *arg);
static char *check_function(Oid funcid, Oid *argtype, Oid *rettype);
static void check_pair(const char *handler, const char *fallback,
					   Oid *argtypes, Oid *rettypes);
static void check_breaker(FunctionCallInfo fcinfo);

PG_FUNCTION_INFO_V1(cqrs_register_fallback);
PG_FUNCTION_INFO_V1(cqrs_unregister_fallback);

/*
 * cqrs_register_fallback(handler, fallback, sqlstates, fail_max, reset_after,
 *		excluded)
 */
Datum
cqrs_register_fallback(PG_FUNCTION_ARGS)
{
	char	   *signatures[2];
	Oid			argtypes[2];
	Oid			rettypes[2];
	int			n;
	int			i;

	cqrs_require_writable("cqrs_register_fallback()");
	for (i = 0; i < 2; i++)
	{
		cqrs_arg_required(fcinfo, i, i == 0 ? "handler" : "fallback", NULL,
						  NULL);
		signatures[i] = check_function(PG_GETARG_OID(i), &argtypes[i],
									   &rettypes[i]);
	}
	check_pair(signatures[0], signatures[1], argtypes, rettypes);
	if (!PG_ARGISNULL(2))
	{
		(void) cqrs_sqlstates_parse(PG_GETARG_DATUM(2), "sqlstates", &n);
		if (n == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("sqlstates must not be empty"),
					 errhint("NULL stands for all errors but a few.")));
	}
	check_breaker(fcinfo);

	if (cqrs_admin_run("INSERT INTO cqrs.fallback (handler, fallback, sqlstates, fail_max, reset_after, excluded, owner) "
					   "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (handler) DO NOTHING",
					   7, CQRS_TEXT(signatures[0]), CQRS_TEXT(signatures[1]),
					   CQRS_NULLABLE(TEXTARRAYOID, PG_GETARG_DATUM(2), PG_ARGISNULL(2)),
					   CQRS_INT4(PG_GETARG_INT32(3)),
					   CQRS_ARG(INTERVALOID, PG_GETARG_DATUM(4)),
					   CQRS_NULLABLE(TEXTARRAYOID, PG_GETARG_DATUM(5), PG_ARGISNULL(5)),
					   CQRS_TEXT(cqrs_handler_owner(PG_GETARG_OID(1)))) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("handler %s has a fallback already", signatures[0]),
				 errhint("Remove it with cqrs_unregister_fallback().")));
	PG_RETURN_VOID();
}

/*
 * cqrs_unregister_fallback(handler)
 */
Datum
cqrs_unregister_fallback(PG_FUNCTION_ARGS)
{
	char	   *signature;
	bool		exists;

	cqrs_require_writable("cqrs_unregister_fallback()");
	cqrs_arg_required(fcinfo, 0, "handler", NULL, NULL);
	signature = cqrs_signature_named(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									 &exists);
	if (cqrs_admin_run("DELETE FROM cqrs.fallback WHERE handler = $1",
					   1, CQRS_TEXT(signature)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("handler %s has no fallback", signature),
				 exists ? 0 :
				 errhint("The function does not exist; if it did, name it as in cqrs.fallback.")));
	PG_RETURN_VOID();
}

/*
 * Call a handler that has a fallback, or the fallback if the handler fails or
 * keeps failing. Returns the answer, in the current memory context. The handler
 * is checked, and is called by call, with arg; kind and name say whose handler
 * it is. Must not be called in parallel mode.
 *
 * Raises what the handler raises, if the fallback is not for that; 42883 or
 * 42501 for the fallback, and what the fallback raises.
 */
Datum
cqrs_fallback_run(CqrsHandler *handler, const char *kind, const char *name,
				  CqrsCall call, void *arg, bool *isnull)
{
	CqrsFallback *fallback = handler->fallback;
	ErrorContextCallback errcallback;
	CqrsBreakerCall attempt;
	Datum		answer;
	Cause		cause;

	Assert(fallback != NULL && !IsInParallelMode());
	cause.handler = handler;
	cause.error = NULL;
	if (cqrs_breaker_enter(&attempt, &fallback->breaker))
	{
		cause.error = try_handler(handler, &attempt, call, arg, &answer,
								  isnull);
		if (cause.error == NULL)
			return answer;
	}

	errcallback.callback = error_callback;
	errcallback.arg = &cause;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;
	cqrs_handler_check(&fallback->handler, kind, name);
	answer = call(arg, &fallback->handler, isnull);
	error_context_stack = errcallback.previous;
	if (cause.error != NULL)
		FreeErrorData(cause.error);
	return answer;
}

/*
 * Call the handler in a subtransaction. Returns NULL, and the answer; or, if
 * the fallback is for it, the error, after the rollback. The outcome is
 * reported to the breaker.
 */
static ErrorData *
try_handler(CqrsHandler *handler, CqrsBreakerCall *attempt, CqrsCall call,
			void *arg, Datum *answer, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		*answer = call(arg, handler, isnull);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		bool		caught;

		error = cqrs_error_take(context);
		caught = is_for(handler->fallback, error->sqlerrcode);
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		note_error(handler->fallback, attempt, error, caught);
		if (!caught)
			cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error == NULL)
		(void) cqrs_breaker_leave(attempt, CQRS_BREAKER_SUCCEEDED);
	return error;
}

/*
 * Report an error to the breaker; caught says that the fallback is for it. An
 * excluded error counts as success: a handler that works may raise it. Other
 * errors that the fallback is not for count as neither.
 */
static void
note_error(const CqrsFallback *fallback, CqrsBreakerCall *attempt,
		   const ErrorData *error, bool caught)
{
	CqrsBreakerOutcome outcome = CQRS_BREAKER_UNDECIDED;
	int			code = error->sqlerrcode;

	if (!is_end(code) &&
		cqrs_sqlstate_listed(fallback->excluded, fallback->nexcluded, code))
		outcome = CQRS_BREAKER_SUCCEEDED;
	else if (caught)
		outcome = CQRS_BREAKER_FAILED;
	if (cqrs_breaker_leave(attempt, outcome))
		ereport(LOG,
				(errmsg("circuit breaker of handler %s opened",
						fallback->primary),
				 errdetail("The last error was %s: %s",
						   unpack_sql_state(code), error->message)));
}

/*
 * Is the fallback to be called after an error with this code?
 */
static bool
is_for(const CqrsFallback *fallback, int code)
{
	if (is_end(code))
		return false;
	if (fallback->nsqlstates >= 0)
		return cqrs_sqlstate_listed(fallback->sqlstates, fallback->nsqlstates, code);
	return ERRCODE_TO_CATEGORY(code) != ERRCODE_OPERATOR_INTERVENTION &&
		code != ERRCODE_OUT_OF_MEMORY &&
		code != ERRCODE_ASSERT_FAILURE &&
		code != ERRCODE_DATA_CORRUPTED &&
		code != ERRCODE_INDEX_CORRUPTED;
}

/*
 * Is it the error of a cancel or a shutdown, which nothing here catches?
 */
static bool
is_end(int code)
{
	return code == ERRCODE_QUERY_CANCELED || code == ERRCODE_ADMIN_SHUTDOWN ||
		code == ERRCODE_CRASH_SHUTDOWN;
}

static void
error_callback(void *arg)
{
	Cause	   *cause = (Cause *) arg;

	if (cause->error == NULL)
		errcontext("fallback for handler %s, whose circuit breaker is open",
				   cause->handler->signature);
	else
		errcontext("fallback for handler %s, which failed with %s: %s",
				   cause->handler->signature,
				   unpack_sql_state(cause->error->sqlerrcode),
				   cause->error->message);
}

/*
 * Can this function be a handler that has a fallback, or a fallback, and may
 * the current user execute it? Returns the text it is registered by.
 */
static char *
check_function(Oid funcid, Oid *argtype, Oid *rettype)
{
	char	   *signature = cqrs_handler_describe(funcid, argtype, rettype,
												  NULL);

	if (*argtype != JSONBOID && !cqrs_payload_type_is_composite(*argtype))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be a handler", signature),
				 errdetail("Its argument is of type %s.",
						   format_type_be(*argtype)),
				 errhint("The argument of a handler, and of its fallback, is jsonb or of a composite type.")));
	return signature;
}

/*
 * Can the fallback stand in for the handler? They must return the same type,
 * or one of them jsonb, which any answer becomes.
 */
static void
check_pair(const char *handler, const char *fallback, Oid *argtypes,
		   Oid *rettypes)
{
	if (strcmp(handler, fallback) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("function %s cannot be its own fallback", handler)));
	if (argtypes[0] != argtypes[1])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be the fallback of %s",
						fallback, handler),
				 errdetail("Its argument is of type %s, not %s.",
						   format_type_be(argtypes[1]),
						   format_type_be(argtypes[0]))));
	if (rettypes[0] != rettypes[1] &&
		rettypes[0] != JSONBOID && rettypes[1] != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be the fallback of %s",
						fallback, handler),
				 errdetail("It returns type %s, not %s.",
						   format_type_be(rettypes[1]),
						   format_type_be(rettypes[0])),
				 errhint("Both return the same type, or one of them returns jsonb.")));
}

/*
 * Check the arguments of the breaker. Raises 22004 or 22023.
 */
static void
check_breaker(FunctionCallInfo fcinfo)
{
	int			n;

	cqrs_arg_required(fcinfo, 3, "fail_max", NULL, NULL);
	cqrs_arg_required(fcinfo, 4, "reset_after", NULL, NULL);
	if (PG_GETARG_INT32(3) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("fail_max must not be negative"),
				 errhint("With 0, there is no circuit breaker.")));
	if (cqrs_interval_is_negative(PG_GETARG_DATUM(4)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reset_after must not be negative")));
	if (!PG_ARGISNULL(5))
		(void) cqrs_sqlstates_parse(PG_GETARG_DATUM(5), "excluded", &n);
}
