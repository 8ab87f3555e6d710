/*-------------------------------------------------------------------------
 *
 * handler.c
 *	  A registered SQL function: found, checked and called.
 *
 * A handler is registered by its signature as text, and found again by it
 * whenever pg_proc has changed: so a function that was dropped and made anew
 * is the handler again, and one with other arguments is not.
 *
 * Memory
 *
 * The FmgrInfo is kept, for what languages cache in it. It is thrown away
 * when pg_proc changes (it holds a SECURITY DEFINER function's owner and
 * settings) and after an error (it may hold a half-run execution). While it
 * is in use up the stack, a nested call gets one of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "handler.h"
#include "rethrow.h"

/* Counts changes of pg_proc. */
static uint64 proc_generation = 1;

static void proc_changed(Datum arg, int cacheid, uint32 hashvalue);
static void forget(CqrsHandler *handler);

/*
 * Once a process.
 */
void
cqrs_handler_init_process(void)
{
	CacheRegisterSyscacheCallback(PROCOID, proc_changed, (Datum) 0);
}

/*
 * Set up a handler of which only the signature is known, and that it returns
 * one value; for a set, the caller sets returns_set. What it allocates later
 * is below parent, which must live as long.
 */
void
cqrs_handler_init(CqrsHandler *handler, const char *signature,
				  MemoryContext parent)
{
	memset(handler, 0, sizeof(*handler));
	handler->signature = MemoryContextStrdup(parent, signature);
	handler->parent = parent;
}

/*
 * Another number means that handlers may have changed.
 */
uint64
cqrs_handler_generation(void)
{
	return proc_generation;
}

/*
 * Find the function, if that was not done since pg_proc changed. Returns
 * false if it does not exist.
 */
bool
cqrs_handler_find(CqrsHandler *handler)
{
	LOCAL_FCINFO(fcinfo, 1);
	HeapTuple	tuple;
	Form_pg_proc proc;
	Datum		funcid;
	Oid			save_userid;
	int			save_sec_context;

	if (handler->generation == proc_generation)
		return OidIsValid(handler->funcid);

	forget(handler);
	handler->funcid = InvalidOid;
	handler->generation = proc_generation;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(handler->signature);
	fcinfo->args[0].isnull = false;

	/*
	 * Whether the user may look into the function's schema, or those of its
	 * arguments' types, does not matter: the privilege is EXECUTE. This runs
	 * no code but the parser's, and an error restores the user.
	 */
	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, save_sec_context |
						   SECURITY_LOCAL_USERID_CHANGE);
	funcid = to_regprocedure(fcinfo);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	if (fcinfo->isnull)
		return false;

	tuple = SearchSysCache1(PROCOID, funcid);
	if (!HeapTupleIsValid(tuple))
		return false;
	proc = (Form_pg_proc) GETSTRUCT(tuple);

	/* The signature holds, but the rest may be another than registered. */
	if (proc->prokind == PROKIND_FUNCTION &&
		proc->proretset == handler->returns_set && proc->pronargs == 1)
	{
		handler->funcid = DatumGetObjectId(funcid);
		handler->argtype = proc->proargtypes.values[0];
		handler->rettype = proc->prorettype;
		handler->owner = proc->proowner;
		handler->security_definer = proc->prosecdef;
	}
	ReleaseSysCache(tuple);
	return OidIsValid(handler->funcid);
}

/*
 * Find the function and see that the current user may execute it. Raises
 * 42883 or 42501; kind and name say whose handler it is.
 */
void
cqrs_handler_check(CqrsHandler *handler, const char *kind, const char *name)
{
	if (!cqrs_handler_find(handler))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler %s of %s \"%s\" does not exist",
						handler->signature, kind, name),
				 handler->returns_set ?
				 errdetail("It was dropped, or replaced by something that is not a function with this signature that returns a set.") :
				 errdetail("It was dropped, or replaced by something that is not a function with this signature that returns one value."),
				 errhint("Create it again, or register another handler.")));
	cqrs_handler_check_privilege(handler);
}

/*
 * See that the current user may execute the function, which was just found.
 * Raises 42501.
 */
void
cqrs_handler_check_privilege(CqrsHandler *handler)
{
	AclResult	aclresult;

	aclresult = object_aclcheck(ProcedureRelationId, handler->funcid,
								GetUserId(), ACL_EXECUTE);
	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FUNCTION, handler->signature);
	InvokeFunctionExecuteHook(handler->funcid);
}

/*
 * Call the function, which cqrs_handler_check() was just done for and which
 * returns one value. The result is in the current memory context.
 */
Datum
cqrs_handler_call(CqrsHandler *handler, Datum arg, bool *isnull)
{
	NullableDatum nullable = {.value = arg,.isnull = false};

	return cqrs_handler_call_nullable(handler, nullable, isnull);
}

/*
 * The same with an argument that may be NULL: then a function that is STRICT is
 * not called, and its result is NULL.
 */
Datum
cqrs_handler_call_nullable(CqrsHandler *handler, NullableDatum arg,
						   bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 1);
	PgStat_FunctionCallUsage usage;
	FmgrInfo	nested;
	bool		is_nested = handler->busy;
	MemoryContext caller = CurrentMemoryContext;
	volatile Datum result = (Datum) 0;

	if (is_nested)
		fmgr_info(handler->funcid, &nested);
	else if (handler->context == NULL)
	{
		MemoryContext context;

		context = AllocSetContextCreate(handler->parent, "cqrs handler",
										ALLOCSET_SMALL_SIZES);
		fmgr_info_cxt(handler->funcid, &handler->flinfo, context);
		handler->context = context;
	}

	InitFunctionCallInfoData(*fcinfo, is_nested ? &nested : &handler->flinfo,
							 1, InvalidOid, NULL, NULL);
	fcinfo->args[0] = arg;
	if (arg.isnull && fcinfo->flinfo->fn_strict)
	{
		*isnull = true;
		return (Datum) 0;
	}

	handler->busy = true;
	PG_TRY();
	{
		pgstat_init_function_usage(fcinfo, &usage);
		result = FunctionCallInvoke(fcinfo);
		pgstat_end_function_usage(&usage, true);
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(caller);

		handler->busy = is_nested;
		if (!is_nested)
			forget(handler);
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	handler->busy = is_nested;
	if (!is_nested && handler->stale)
		forget(handler);

	*isnull = fcinfo->isnull;
	return result;
}

/*
 * The text that a function is registered by, palloc'd; *argtype and *rettype
 * get its types, and *returns_set whether it returns a set of the latter.
 * Raises 42883 if there is none, 42P13 if it is not a function with one
 * argument, or returns a set and returns_set is NULL, 42501 if the current
 * user may not execute it.
 */
char *
cqrs_handler_describe(Oid funcid, Oid *argtype, Oid *rettype,
					  bool *returns_set)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;
	AclResult	aclresult;
	const char *wrong = NULL;
	char	   *signature;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", funcid)));
	signature = format_procedure_qualified(funcid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION)
		wrong = "It is not a plain function.";
	else if (proc->pronargs != 1 || OidIsValid(proc->provariadic))
		wrong = "It does not have exactly one argument.";
	else if (proc->proretset && returns_set == NULL)
		wrong = "It returns a set.";
	else if (proc->prorettype == TRIGGEROID ||
			 proc->prorettype == EVENT_TRIGGEROID ||
			 proc->prorettype == INTERNALOID)
		wrong = "It returns a value that SQL cannot use.";
	if (wrong)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be a handler", signature),
				 errdetail_internal("%s", wrong),
				 returns_set == NULL ?
				 errhint("A handler has one argument and returns void or one value.") :
				 errhint("A handler has one argument and returns void, one value or a set.")));
	if (returns_set != NULL)
		*returns_set = proc->proretset;
	*argtype = proc->proargtypes.values[0];
	*rettype = proc->prorettype;
	ReleaseSysCache(tuple);

	aclresult = object_aclcheck(ProcedureRelationId, funcid, GetUserId(),
								ACL_EXECUTE);
	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FUNCTION, signature);
	return signature;
}

static void
proc_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	proc_generation++;
}

/*
 * Throw the FmgrInfo away; if it is in use up the stack, after that.
 */
static void
forget(CqrsHandler *handler)
{
	handler->stale = handler->busy;
	if (handler->busy)
		return;
	if (handler->context != NULL)
	{
		MemoryContextDelete(handler->context);
		handler->context = NULL;
	}
}

/*
 * The text by which a function that somebody names, in a text, was registered;
 * palloc'd. One that does not exist any more is named as it was registered.
 */
char *
cqrs_handler_named(Datum name, bool *exists)
{
	LOCAL_FCINFO(call, 1);
	Datum		funcid;

	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = name;
	call->args[0].isnull = false;
	funcid = to_regprocedure(call);
	*exists = !call->isnull;
	return *exists ? format_procedure_qualified(DatumGetObjectId(funcid)) :
		TextDatumGetCString(name);
}
