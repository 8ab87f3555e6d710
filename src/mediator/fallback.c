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
#include "utils/timestamp.h"

#include "base/interval.h"
#include "base/rethrow.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "mediator/fallback.h"
#include "registry/lookup.h"
#include "registry/payload.h"

/* Who registers or removes waits for others who do. */
#define LOCK_FALLBACKS	"LOCK TABLE cqrs.fallback IN SHARE ROW EXCLUSIVE MODE"

/* Where it is not given; that of reset_after is a minute. */
#define DEFAULT_MAX_FAILURES	5

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
static void look_up_pair(const char *handler_name, const char *fallback_name,
						 CqrsFunction *handler, CqrsFunction *fallback);
static bool takes(const void *arg, Oid argtype);
static bool takes_the_same(const void *arg, Oid argtype);
static void check_sqlstates(FunctionCallInfo fcinfo);
static void check_breaker(int max_failures, Datum reset_after);

PG_FUNCTION_INFO_V1(cqrs_register_fallback);
PG_FUNCTION_INFO_V1(cqrs_unregister_fallback);

/*
 * cqrs_register_fallback(handler, fallback, sqlstates, excluded_sqlstates,
 *		max_failures, reset_after, or_replace)
 */
Datum
cqrs_register_fallback(PG_FUNCTION_ARGS)
{
	static const CqrsRegistration registration = {
		.lock = LOCK_FALLBACKS,
		.look = "SELECT (fallback, max_failures, reset_after) = ($2, $5, $6)"
		" AND sqlstates IS NOT DISTINCT FROM $3 AND excluded_sqlstates IS NOT DISTINCT FROM $4, owner = $7"
		" FROM cqrs.fallback WHERE handler = $1",
		.insert = "INSERT INTO cqrs.fallback (handler, fallback, sqlstates, excluded_sqlstates, max_failures, reset_after, owner)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7)",
		.confirm = "UPDATE cqrs.fallback SET owner = $7 WHERE handler = $1",
		.replace = "UPDATE cqrs.fallback SET fallback = $2, sqlstates = $3, excluded_sqlstates = $4,"
		" max_failures = $5, reset_after = $6, owner = $7, registered_at = now() WHERE handler = $1"
	};
	int			max_failures = PG_ARGISNULL(4) ? DEFAULT_MAX_FAILURES :
	PG_GETARG_INT32(4);
	Interval	minute = {.time = USECS_PER_MINUTE};
	Datum		reset_after = PG_ARGISNULL(5) ? IntervalPGetDatum(&minute) :
	PG_GETARG_DATUM(5);
	CqrsFunction handler;
	CqrsFunction fallback;

	cqrs_require_writable("cqrs_register_fallback()");
	cqrs_arg_required(fcinfo, 0, "handler", NULL, NULL);
	cqrs_arg_required(fcinfo, 1, "fallback", NULL, NULL);
	look_up_pair(text_to_cstring(PG_GETARG_TEXT_PP(0)),
				 text_to_cstring(PG_GETARG_TEXT_PP(1)), &handler, &fallback);
	check_sqlstates(fcinfo);
	check_breaker(max_failures, reset_after);

	PG_RETURN_BOOL(cqrs_admin_register(&registration,
									   psprintf("handler %s has another fallback already",
												handler.signature),
									   cqrs_flag_arg(fcinfo, 6), 7,
									   CQRS_TEXT(handler.signature),
									   CQRS_TEXT(fallback.signature),
									   CQRS_NULLABLE(TEXTARRAYOID, PG_GETARG_DATUM(2), PG_ARGISNULL(2)),
									   CQRS_NULLABLE(TEXTARRAYOID, PG_GETARG_DATUM(3), PG_ARGISNULL(3)),
									   CQRS_INT4(max_failures),
									   CQRS_ARG(INTERVALOID, reset_after),
									   CQRS_TEXT(fallback.owner_name)));
}

/*
 * cqrs_unregister_fallback(handler, if_exists)
 */
Datum
cqrs_unregister_fallback(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *signature;
	CqrsAdmin	admin;

	cqrs_require_writable("cqrs_unregister_fallback()");
	cqrs_arg_required(fcinfo, 0, "handler", NULL, NULL);
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_FALLBACKS);
	cqrs_admin_execute("SELECT handler FROM cqrs.fallback", 0);
	signature = cqrs_function_choose(name, "handlers with a fallback");
	if (signature != NULL)
		cqrs_admin_execute("DELETE FROM cqrs.fallback WHERE handler = $1",
						   1, CQRS_TEXT(signature));
	else if (!cqrs_flag_arg(fcinfo, 1))
		cqrs_nothing_to_remove(psprintf("handler %s has no fallback", name),
							   "cqrs_fallbacks");
	cqrs_admin_end(&admin);
	PG_RETURN_BOOL(signature != NULL);
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
 * Find a handler, and what is to stand in for it. The fallback takes what the
 * handler takes. The answer's type must be the same, or one of the two is jsonb,
 * which any answer becomes. Raises what cqrs_function_look_up() does; 22023 both
 * are the same; 42P13 other types.
 */
static void
look_up_pair(const char *handler_name, const char *fallback_name,
			 CqrsFunction *handler, CqrsFunction *fallback)
{
	CqrsPlace	place = {
		.what = "a handler with a fallback",
		.wanted = "Such a handler has one argument, jsonb or of a composite type, and returns void or one value.",
		.takes = takes
	};

	cqrs_function_look_up(handler_name, &place, handler);
	place.what = psprintf("the fallback of %s", handler->signature);
	place.wanted = psprintf("It has one argument, of type %s as the handler's, and returns the same type, or one of them returns jsonb.",
							cqrs_type_name(handler->argtype));
	place.takes = takes_the_same;
	place.arg = &handler->argtype;
	cqrs_function_look_up(fallback_name, &place, fallback);
	if (handler->funcid == fallback->funcid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("function %s cannot be its own fallback",
						handler->signature)));
	if (handler->rettype != fallback->rettype &&
		handler->rettype != JSONBOID && fallback->rettype != JSONBOID)
		cqrs_function_refuse(fallback->signature, &place,
							 psprintf("returns type %s, not %s",
									  cqrs_type_name(fallback->rettype),
									  cqrs_type_name(handler->rettype)));
}

/*
 * May what has a fallback take an argument of this type? It may be the handler of
 * a command, or of an event.
 */
static bool
takes(const void *arg, Oid argtype)
{
	return argtype == JSONBOID ||
		(cqrs_payload_type_is_composite(argtype) &&
		 !cqrs_type_is(argtype, "cqrs_request"));
}

static bool
takes_the_same(const void *arg, Oid argtype)
{
	return argtype == *(const Oid *) arg;
}

/*
 * Raises 22023 if the errors that count, or do not, are not named as they should.
 */
static void
check_sqlstates(FunctionCallInfo fcinfo)
{
	int			n;

	if (!PG_ARGISNULL(2))
	{
		(void) cqrs_sqlstates_parse(PG_GETARG_DATUM(2), "sqlstates", &n);
		if (n == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("sqlstates must not be empty"),
					 errhint("NULL stands for all errors but a few.")));
	}
	if (!PG_ARGISNULL(3))
		(void) cqrs_sqlstates_parse(PG_GETARG_DATUM(3), "excluded_sqlstates",
									&n);
}

/*
 * Raises 22023 for negative settings of a breaker.
 */
static void
check_breaker(int max_failures, Datum reset_after)
{
	if (max_failures < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_failures must not be negative"),
				 errhint("With 0, there is no circuit breaker.")));
	if (cqrs_interval_is_negative(reset_after))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reset_after must not be negative")));
}
