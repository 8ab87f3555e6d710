/*-------------------------------------------------------------------------
 *
 * middleware.c
 *	  What is called around each dispatch: registered functions, and the hook
 *	  of other extensions.
 *
 * Protocol
 *
 * 1. The hook is outermost, then come the registered middleware in their order,
 *	  then all that dispatch.c does: a query's subtransaction, chains, fallbacks.
 *	  Who is called, and in which order, is settled at the start of the
 *	  dispatch.
 * 2. Each goes on to the next by proceeding, as often as it likes, with a
 *	  payload of its choice. Afterwards all is as before, also after an error: a
 *	  middleware that catches it may proceed again.
 * 3. Meanwhile the dispatch is on the stack, as a frame without a handler: so it
 *	  counts for the depth and the cause of what a middleware sends, and for when
 *	  events are handled. While the handlers are called, the frame does not
 *	  count: they see the depth and the causes that they would see without it.
 * 4. Only the innermost frame may proceed, and only if nothing runs within it:
 *	  no handler of a nested command, nor one that cqrs_drain() calls.
 *
 * Privileges
 *
 * A middleware may be SECURITY DEFINER, to do what senders may not. But it
 * must not lend its owner's privileges, or the search_path in its SET clause,
 * to the handlers of everybody's commands: when it proceeds, what is further
 * in gets back the role and the search_path that the middleware was called
 * with. Nor may that change the search_path for what the middleware still
 * does: what it SETs ends with it, and it cannot SET ROLE. This is done only
 * if the current user is the owner: a middleware that has taken another role,
 * or runs in somebody else's function, goes on as that.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/typcache.h"

#include "base/event_id.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "mediator/middleware.h"
#include "registry/lookup.h"
#include "registry/payload.h"

/* Who registers or removes waits for others who do. */
#define LOCK_MIDDLEWARE	"LOCK TABLE cqrs.middleware IN SHARE ROW EXCLUSIVE MODE"

/* Columns of type cqrs_request. */
#define REQUEST_COLUMNS	3

/* A middleware, or the hook, that was called. */
typedef struct Step
{
	CqrsMiddleware *middleware; /* NULL: the hook, or the caller of that */
	Jsonb	   *payload;		/* that it was called with */
	Oid			userid;			/* of its caller ... */
	int			sec_context;
	char	   *search_path;	/* ... and this; NULL: not SECURITY DEFINER */
} Step;

/* A middleware of a command, to name both in errors. */
typedef struct StepName
{
	const CqrsMiddleware *middleware;
	const CqrsCommand *command;
} StepName;

/*
 * A dispatch on its way through the middleware; in the memory of its caller.
 */
typedef struct MiddlewareRun
{
	CqrsDispatch frame;			/* its handler is NULL */
	CqrsDispatch *dispatch;		/* what is dispatched */
	CqrsHandle	handle;
	CqrsMiddleware *first;		/* the outermost, or NULL */
	Step		step;			/* the innermost */
} MiddlewareRun;

CqrsDispatchHook *cqrs_dispatch_hook = NULL;

static bool takes(const void *arg, Oid argtype);
static MiddlewareRun *innermost_run(const char *function);
static bool is_innermost(const MiddlewareRun *run);
static Jsonb *proceed(MiddlewareRun *run, Jsonb *payload);
static Jsonb *go_on(MiddlewareRun *run, Jsonb *payload);
static Jsonb *proceed_from_hook(void *inner, Jsonb *payload);
static bool is_definer(const Step *step);
static int	leave_definer(const Step *step);
static Jsonb *call_middleware(MiddlewareRun *run, CqrsMiddleware *middleware);
static Jsonb *call_handlers(MiddlewareRun *run);
static void check_middleware(CqrsHandler *handler);
static Datum form_request(const MiddlewareRun *run, Oid typid);
static void error_callback(void *arg);
static void log_dispatch(const MiddlewareRun *run, instr_time start,
						 int code);

static const CqrsPlace middleware_place = {
	.what = "a middleware",
	.wanted = "A middleware has one argument, of type cqrs_request, and returns jsonb.",
	.takes = takes,
	.rettype = JSONBOID
};

PG_FUNCTION_INFO_V1(cqrs_register_middleware);
PG_FUNCTION_INFO_V1(cqrs_unregister_middleware);
PG_FUNCTION_INFO_V1(cqrs_proceed);
PG_FUNCTION_INFO_V1(cqrs_log_dispatch);

/*
 * Called once in each process.
 */
void
cqrs_middleware_init(void)
{
	cqrs_dispatch_hook = cqrs_find_dispatch_hook();
}

/*
 * cqrs_register_middleware(handler, priority, or_replace)
 */
Datum
cqrs_register_middleware(PG_FUNCTION_ARGS)
{
	static const CqrsRegistration registration = {
		.lock = LOCK_MIDDLEWARE,
		.look = "SELECT priority = $2, owner = $3 FROM cqrs.middleware WHERE handler = $1",
		.insert = "INSERT INTO cqrs.middleware (handler, priority, owner) VALUES ($1, $2, $3)",
		.confirm = "UPDATE cqrs.middleware SET owner = $3 WHERE handler = $1",
		.replace = "UPDATE cqrs.middleware SET priority = $2, owner = $3, registered_at = now() WHERE handler = $1"
	};
	CqrsFunction function;

	cqrs_require_writable("cqrs_register_middleware()");
	cqrs_arg_required(fcinfo, 0, "handler", NULL, NULL);
	cqrs_function_look_up(text_to_cstring(PG_GETARG_TEXT_PP(0)),
						  &middleware_place, &function);
	PG_RETURN_BOOL(cqrs_admin_register(&registration,
									   psprintf("middleware %s is already registered with another priority",
												function.signature),
									   cqrs_flag_arg(fcinfo, 2), 3,
									   CQRS_TEXT(function.signature),
									   CQRS_INT4(PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1)),
									   CQRS_TEXT(function.owner_name)));
}

/*
 * cqrs_unregister_middleware(handler, if_exists)
 */
Datum
cqrs_unregister_middleware(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *signature;
	CqrsAdmin	admin;

	cqrs_require_writable("cqrs_unregister_middleware()");
	cqrs_arg_required(fcinfo, 0, "handler", NULL, NULL);
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_MIDDLEWARE);
	cqrs_admin_execute("SELECT handler FROM cqrs.middleware", 0);
	signature = cqrs_function_choose(name, "middleware");
	if (signature != NULL)
		cqrs_admin_execute("DELETE FROM cqrs.middleware WHERE handler = $1",
						   1, CQRS_TEXT(signature));
	else if (!cqrs_flag_arg(fcinfo, 1))
		cqrs_nothing_to_remove(psprintf("function %s is not a middleware", name),
							   "cqrs_middleware");
	cqrs_admin_end(&admin);
	PG_RETURN_BOOL(signature != NULL);
}

/*
 * cqrs_proceed(payload)
 */
Datum
cqrs_proceed(PG_FUNCTION_ARGS)
{
	MiddlewareRun *run = innermost_run("cqrs_proceed()");
	Jsonb	   *answer;

	answer = proceed(run, PG_ARGISNULL(0) ? run->step.payload :
					 PG_GETARG_JSONB_P(0));
	if (answer == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(answer);
}

/*
 * cqrs_log_dispatch(request): a middleware, which logs what was dispatched.
 */
Datum
cqrs_log_dispatch(PG_FUNCTION_ARGS)
{
	MiddlewareRun *run = innermost_run("cqrs_log_dispatch()");
	Jsonb	   *volatile answer;
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	PG_TRY();
	{
		answer = proceed(run, run->step.payload);
	}
	PG_CATCH();
	{
		log_dispatch(run, start, geterrcode());
		PG_RE_THROW();
	}
	PG_END_TRY();
	log_dispatch(run, start, 0);

	if (answer == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(answer);
}

/*
 * Run a dispatch, which is not nested too deeply, through the hook and the
 * registered middleware and finally handle. Returns the answer as jsonb, in
 * the current memory context.
 *
 * Raises 42883 no such middleware; 42P13 it is another function than when it
 * was registered; 42501 it may not be executed; 22023 it passes on a payload
 * that is no object; and what the middleware and handle raise.
 */
Datum
cqrs_middleware_run(CqrsDispatch *dispatch, CqrsHandle handle, bool *isnull)
{
	CqrsCommand *command = dispatch->command;
	CqrsDispatchHook hook = *cqrs_dispatch_hook;
	Jsonb	   *volatile answer;
	CqrsRequest request;
	MiddlewareRun run = {.dispatch = dispatch,.handle = handle};

	run.first = cqrs_registry_get_middleware();
	run.step.payload =
		DatumGetJsonbP(cqrs_payload_from_value(dispatch->payload, false,
											   dispatch->payload_type,
											   isnull));

	/* The same id for all, whoever asks first. */
	request.id = cqrs_context_id(&dispatch->context);
	request.kind = cqrs_command_kind_name(command->kind);
	request.name = command->name;
	request.payload = run.step.payload;

	run.frame.in_middleware = true;
	run.frame.command = command;
	run.frame.context = dispatch->context;
	run.frame.outer = cqrs_dispatch_innermost;
	run.frame.depth = run.frame.outer ? run.frame.outer->depth + 1 : 1;
	cqrs_dispatch_innermost = &run.frame;
	cqrs_context_push(&run.frame.context);
	PG_TRY();
	{
		if (hook != NULL)
			answer = hook(&request, proceed_from_hook, &run);
		else
			answer = proceed(&run, run.step.payload);
	}
	PG_FINALLY();
	{
		cqrs_dispatch_innermost = run.frame.outer;
		cqrs_context_innermost = run.frame.context.outer;
	}
	PG_END_TRY();

	*isnull = answer == NULL;
	return *isnull ? (Datum) 0 : JsonbPGetDatum(answer);
}

/*
 * Is this the type of a middleware's argument?
 */
static bool
takes(const void *arg, Oid argtype)
{
	return cqrs_type_is(argtype, "cqrs_request");
}

/*
 * The dispatch whose middleware calls the named function. Raises 55000 if
 * there is none.
 */
static MiddlewareRun *
innermost_run(const char *function)
{
	CqrsDispatch *innermost = cqrs_dispatch_innermost;
	MiddlewareRun *run;

	if (innermost != NULL && innermost->in_middleware)
	{
		run = (MiddlewareRun *) innermost;
		if (is_innermost(run) && run->step.middleware != NULL)
			return run;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s was not called by a middleware", function),
			 innermost == NULL ?
			 errdetail("No command or query is being dispatched.") :
			 !innermost->in_middleware ?
			 errdetail("It was called by handler %s of %s \"%s\".",
					   innermost->handler->signature,
					   cqrs_command_kind_name(innermost->command->kind),
					   innermost->command->name) :
			 errdetail("It was called within the middleware of %s \"%s\", but not by one of them.",
					   cqrs_command_kind_name(innermost->command->kind),
					   innermost->command->name),
			 errhint("A middleware is a function that is registered with cqrs_register_middleware(), and was called by a dispatch.")));
}

/*
 * Is nothing being handled within the running middleware? An event that
 * cqrs_drain() delivers there is no dispatch, but has a context.
 */
static bool
is_innermost(const MiddlewareRun *run)
{
	return cqrs_dispatch_innermost == &run->frame &&
		cqrs_context_innermost == &run->frame.context;
}

/*
 * Go on to the next step, with this payload. Returns its answer, in the current
 * memory context; NULL is SQL's NULL.
 */
static Jsonb *
proceed(MiddlewareRun *run, Jsonb *payload)
{
	Jsonb	   *answer;
	int			nestlevel;
	Oid			userid;
	int			sec_context;

	if (!is_definer(&run->step))
		return go_on(run, payload);

	/* After an error, the rollback restores them. */
	GetUserIdAndSecContext(&userid, &sec_context);
	nestlevel = leave_definer(&run->step);
	answer = go_on(run, payload);
	AtEOXact_GUC(false, nestlevel);
	SetUserIdAndSecContext(userid, sec_context);
	return answer;
}

/*
 * Go on to the next step as the current user.
 */
static Jsonb *
go_on(MiddlewareRun *run, Jsonb *payload)
{
	CqrsDispatch *dispatch = run->dispatch;
	Step		step = run->step;
	Datum		sent = dispatch->payload;
	Oid			sent_type = dispatch->payload_type;
	int			depth = run->frame.depth;
	Jsonb	   *volatile answer;

	Assert(is_innermost(run));

	/* A payload that nobody replaces reaches the handler as it was sent. */
	if (payload != step.payload)
	{
		cqrs_payload_check_object(payload,
								  cqrs_command_kind_name(dispatch->command->kind),
								  dispatch->command->name);
		run->step.payload = payload;
		dispatch->payload = JsonbPGetDatum(payload);
		dispatch->payload_type = JSONBOID;
	}

	PG_TRY();
	{
		CqrsMiddleware *next = run->first;

		if (step.middleware != NULL)
			next = step.middleware->next;
		answer = next != NULL ? call_middleware(run, next) :
			call_handlers(run);
	}
	PG_FINALLY();
	{
		run->step = step;
		run->frame.depth = depth;
		cqrs_context_innermost = &run->frame.context;
		dispatch->payload = sent;
		dispatch->payload_type = sent_type;
	}
	PG_END_TRY();
	return answer;
}

/*
 * Go on to the next step for a hook.
 */
static Jsonb *
proceed_from_hook(void *inner, Jsonb *payload)
{
	MiddlewareRun *run = (MiddlewareRun *) inner;

	if (!is_innermost(run) || run->step.middleware != NULL)
		elog(ERROR, "a dispatch proceeds outside of its hook");
	return proceed(run, payload);
}

/*
 * Does this step run as the owner of its SECURITY DEFINER function?
 */
static bool
is_definer(const Step *step)
{
	return step->middleware != NULL && step->search_path != NULL &&
		step->middleware->handler.owner == GetUserId();
}

/*
 * For what comes next, restore the role and the search_path that this step was
 * called with, but no way out of a restricted operation. Returns the nesting
 * level of settings, for AtEOXact_GUC().
 */
static int
leave_definer(const Step *step)
{
	int			nestlevel = NewGUCNestLevel();

	if (strcmp(step->search_path, namespace_search_path) != 0)
		cqrs_set_config("search_path", step->search_path, GUC_ACTION_SAVE);
	SetUserIdAndSecContext(step->userid,
						   step->sec_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   (InSecurityRestrictedOperation() ?
							SECURITY_RESTRICTED_OPERATION : 0));
	return nestlevel;
}

static Jsonb *
call_middleware(MiddlewareRun *run, CqrsMiddleware *middleware)
{
	CqrsHandler *handler = &middleware->handler;
	StepName	name = {middleware, run->dispatch->command};
	ErrorContextCallback errcallback;
	Datum		request;
	Datum		answer;
	bool		isnull;

	check_middleware(handler);
	run->step.middleware = middleware;
	GetUserIdAndSecContext(&run->step.userid, &run->step.sec_context);
	run->step.search_path = handler->security_definer ?
		pstrdup(namespace_search_path) : NULL;
	request = form_request(run, handler->argtype);
	errcallback.callback = error_callback;
	errcallback.arg = &name;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;
	answer = cqrs_handler_call(handler, request, &isnull);
	error_context_stack = errcallback.previous;
	return isnull ? NULL : DatumGetJsonbP(answer);
}

/*
 * Call the handlers as if there were no middleware. The caller restores the
 * frame.
 */
static Jsonb *
call_handlers(MiddlewareRun *run)
{
	Datum		answer;
	bool		isnull;

	run->frame.depth--;
	cqrs_context_pop(&run->frame.context);
	answer = run->handle(run->dispatch, &isnull);
	return isnull ? NULL : DatumGetJsonbP(answer);
}

/*
 * Raises 42883, 42P13 or 42501 unless the current user can have this
 * middleware called.
 */
static void
check_middleware(CqrsHandler *handler)
{
	if (!cqrs_handler_find(handler))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("middleware %s does not exist", handler->signature),
				 errdetail_internal("%s", cqrs_handler_why_missing(handler)),
				 errhint("Create it again, or remove it with SELECT cqrs_unregister_middleware(%s).",
						 quote_literal_cstr(handler->signature))));
	if (handler->rettype != JSONBOID)
		cqrs_function_refuse(handler->signature, &middleware_place,
							 psprintf("returns type %s",
									  cqrs_type_name(handler->rettype)));
	cqrs_handler_check_privilege(handler);
}

/*
 * The request as a middleware takes it, in the current memory context.
 */
static Datum
form_request(const MiddlewareRun *run, Oid typid)
{
	CqrsCommand *command = run->dispatch->command;
	TupleDesc	desc = lookup_rowtype_tupdesc(typid, -1);
	Datum		values[REQUEST_COLUMNS];
	bool		nulls[REQUEST_COLUMNS] = {0};
	HeapTuple	tuple;

	if (desc->natts != REQUEST_COLUMNS)
		elog(ERROR, "unexpected type of a request");
	values[0] = CStringGetTextDatum(cqrs_command_kind_name(command->kind));
	values[1] = CStringGetTextDatum(command->name);
	values[2] = JsonbPGetDatum(run->step.payload);
	tuple = heap_form_tuple(desc, values, nulls);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

static void
error_callback(void *arg)
{
	StepName   *name = (StepName *) arg;

	errcontext("middleware %s of %s \"%s\"",
			   name->middleware->handler.signature,
			   cqrs_command_kind_name(name->command->kind),
			   name->command->name);
}

/*
 * Log a dispatch that ended, with an error if code is not 0. The payload may
 * be secret: leave it out, and whatever else of a log message may contain it.
 */
static void
log_dispatch(const MiddlewareRun *run, instr_time start, int code)
{
	CqrsCommand *command = run->dispatch->command;
	instr_time	duration;
	double		ms;
	char		id[CQRS_UUID_TEXT_LEN + 1];

	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, start);
	ms = INSTR_TIME_GET_MILLISEC(duration);
	(void) cqrs_uuid_text(&run->frame.context.id, id);
	if (code == 0)
		ereport(LOG,
				(errmsg("%s \"%s\" (%s) took %.3f ms",
						cqrs_command_kind_name(command->kind), command->name,
						id, ms),
				 errhidestmt(true), errhidecontext(true)));
	else
		ereport(LOG,
				(errmsg("%s \"%s\" (%s) failed with %s after %.3f ms",
						cqrs_command_kind_name(command->kind), command->name,
						id, unpack_sql_state(code), ms),
				 errhidestmt(true), errhidecontext(true)));
}
