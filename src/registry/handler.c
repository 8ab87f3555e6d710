/*-------------------------------------------------------------------------
 *
 * handler.c
 *	  A registered SQL function: found, checked and called.
 *
 * A handler is registered by its signature as text, and looked up by it again
 * whenever functions, types, schemas or roles have changed. So a function that
 * was dropped and made anew is the handler again, and one with other arguments
 * is not. But nobody must be able to create a function of that name for others
 * to execute. So the name of the function's owner is registered, too (a dump
 * has no OIDs); a function that belongs to somebody else now is not the
 * handler, unless the owner is a superuser, or owns the extension: they could
 * register it.
 *
 * Memory
 *
 * The FmgrInfo is kept, for what languages cache in it. It is thrown away when
 * another function is found, when pg_proc changes (it holds a SECURITY DEFINER
 * function's owner and settings) and after an error (it may hold an unfinished
 * execution). While it is in use up the stack, a nested call gets one of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/rethrow.h"
#include "extension/catalog.h"
#include "registry/handler.h"
#include "registry/signature.h"

/*
 * Count changes of the catalogs that the look-up of a handler depends on, and
 * those of pg_proc alone.
 */
static uint64 generation = 1;
static uint64 proc_generation = 1;

static void catalog_changed(Datum arg, int cacheid, uint32 hashvalue);
static bool is_trusted_owner(const CqrsHandler *handler, Oid owner);
static void forget(CqrsHandler *handler);

/*
 * Called once in each process.
 */
void
cqrs_handler_init_process(void)
{
	CacheRegisterSyscacheCallback(PROCOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, catalog_changed, (Datum) 0);
}

/*
 * Set up a handler with the given signature, and the owner with which it was
 * registered (NULL: it may be anybody's). It returns one value; for a set, the
 * caller sets returns_set. What is allocated later is below parent, which must
 * live as long.
 */
void
cqrs_handler_init(CqrsHandler *handler, const char *signature,
				  const char *owner, MemoryContext parent)
{
	memset(handler, 0, sizeof(*handler));
	handler->signature = MemoryContextStrdup(parent, signature);
	if (owner != NULL)
		handler->registered_owner = MemoryContextStrdup(parent, owner);
	handler->parent = parent;
}

/*
 * Another number means that handlers may have changed.
 */
uint64
cqrs_handler_generation(void)
{
	return generation;
}

/*
 * Find the function, if that was not done since the catalogs changed. Returns
 * false if it does not exist; the caller's privileges do not matter.
 */
bool
cqrs_handler_find(CqrsHandler *handler)
{
	HeapTuple	tuple;
	Form_pg_proc proc;
	uint64		proc_now = proc_generation;
	Oid			funcid;

	if (handler->generation == generation)
		return OidIsValid(handler->funcid);

	handler->generation = generation;
	funcid = cqrs_signature_find(handler->signature);
	if (funcid != handler->funcid || proc_now != handler->proc_generation)
		forget(handler);
	handler->proc_generation = proc_now;
	handler->funcid = InvalidOid;
	handler->taken_over = false;
	tuple = OidIsValid(funcid) ?
		SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return false;
	proc = (Form_pg_proc) GETSTRUCT(tuple);

	/* The signature is the same, but the rest may have changed. */
	if (proc->prokind == PROKIND_FUNCTION &&
		proc->proretset == handler->returns_set && proc->pronargs == 1 &&
		!cqrs_function_is_temporary(proc))
	{
		handler->owner = proc->proowner;
		handler->taken_over = !is_trusted_owner(handler, proc->proowner);
		if (!handler->taken_over)
			handler->funcid = funcid;
		handler->argtype = proc->proargtypes.values[0];
		handler->rettype = proc->prorettype;
		handler->security_definer = proc->prosecdef;
	}
	ReleaseSysCache(tuple);
	return OidIsValid(handler->funcid);
}

/*
 * Why a handler was not found, for an error's detail; palloc'd.
 */
char *
cqrs_handler_why_missing(const CqrsHandler *handler)
{
	if (handler->taken_over)
		return psprintf("The function of that name belongs to role \"%s\"; the one that was registered belonged to role \"%s\".",
						GetUserNameFromId(handler->owner, true) ?
						GetUserNameFromId(handler->owner, true) : "?",
						handler->registered_owner);
	return psprintf("It was dropped, or replaced by something that is not a function with this signature that returns %s.",
					handler->returns_set ? "a set" : "one value");
}

/*
 * Find the function and check that the current user may execute it. Raises
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
				 errdetail_internal("%s", cqrs_handler_why_missing(handler)),
				 handler->taken_over ?
				 errhint("If it is meant to be the handler, register it again.") :
				 errhint("Create it again, or register another handler.")));
	cqrs_handler_check_privilege(handler);
}

/*
 * Check that the current user may execute the function, which was just found.
 * Raises 42501.
 */
void
cqrs_handler_check_privilege(CqrsHandler *handler)
{
	cqrs_function_require_execute(handler->funcid, handler->signature);
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
 * Like cqrs_handler_call(), for an argument that may be NULL: a STRICT function
 * is not called then, and its result is NULL.
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
 * Raise 42501 unless the current user may execute this function.
 */
void
cqrs_function_require_execute(Oid funcid, const char *signature)
{
	AclResult	aclresult = object_aclcheck(ProcedureRelationId, funcid,
											GetUserId(), ACL_EXECUTE);

	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FUNCTION, signature);
}

static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	generation++;
	if (cacheid == PROCOID)
		proc_generation++;
}

/*
 * Can a function of this owner be the one that was registered?
 */
static bool
is_trusted_owner(const CqrsHandler *handler, Oid owner)
{
	char	   *name;

	if (handler->registered_owner == NULL)
		return true;
	name = GetUserNameFromId(owner, true);
	if (name == NULL)
		return false;
	return strcmp(name, handler->registered_owner) == 0 ||
		superuser_arg(owner) || owner == cqrs_extension_owner();
}

/*
 * Is the function, or one of its types, in a temporary schema?
 */
bool
cqrs_function_is_temporary(Form_pg_proc proc)
{
	Oid			types[2];
	int			i;

	if (isAnyTempNamespace(proc->pronamespace))
		return true;
	types[0] = proc->pronargs == 1 ? proc->proargtypes.values[0] : InvalidOid;
	types[1] = proc->prorettype;
	for (i = 0; i < lengthof(types); i++)
		if (cqrs_type_is_temporary(types[i]))
			return true;
	return false;
}

/*
 * Throw the FmgrInfo away; if it is in use up the stack, once that is over.
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
