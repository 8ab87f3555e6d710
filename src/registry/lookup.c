/*-------------------------------------------------------------------------
 *
 * lookup.c
 *	  The function that somebody means who registers it, or removes it.
 *
 * He says name, schema.name or schema.name(type). With an argument's type, it
 * is that function. Without, it is the one of this name, on his search_path,
 * whose argument the place takes that it is registered for: a name stands for
 * all functions that have it, and a place takes few types. Where none does, or
 * several, the error tells what there is.
 *
 * That is done once, when it is registered. What is removed is compared with
 * what is stored, whether there still is a function or not.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "extension/catalog.h"
#include "registry/handler.h"
#include "registry/lookup.h"
#include "registry/signature.h"

static Oid	find_named(const char *name, const CqrsPlace *place);
static List *split_name(const char *name);
static bool is_folded(const char *name, List *names);
static bool is_reserved(Oid argtype);
static bool takes_reserved(Oid funcid);
pg_noreturn static void refuse_reserved(const char *name,
										const CqrsPlace *place,
										const char *detail);
static Oid	find_exact(const char *name);
static char *wrong_with(Oid funcid, const CqrsPlace *place, bool argument);
static char *wrong_argument(Form_pg_proc proc, const CqrsPlace *place);
static char *wrong_result(Form_pg_proc proc, const CqrsPlace *place);
static void describe(Oid funcid, CqrsFunction *function);
static char *sorted_lines(List *lines);
static int	compare_lines(const ListCell *a, const ListCell *b);

/*
 * Find the function that this name means in a place.
 *
 * Raises 42883 there is none, or none whose argument fits; 42725 several fit;
 * 42P13 it cannot be registered there; 42501 the current user may not execute
 * it; 42602, 42601, 42704, 0A000, 42501 what is wrong with the name.
 */
void
cqrs_function_look_up(const char *name, const CqrsPlace *place,
					  CqrsFunction *function)
{
	Oid			funcid;
	char	   *wrong;

	if (cqrs_signature_has_argument(name))
		funcid = find_exact(name);
	else
		funcid = find_named(name, place);
	wrong = wrong_with(funcid, place, true);
	if (wrong == NULL)
		wrong = wrong_with(funcid, place, false);
	if (wrong != NULL && takes_reserved(funcid))
		refuse_reserved(name, place, psprintf("It %s.", wrong));
	if (wrong != NULL)
		cqrs_function_refuse(format_procedure_qualified(funcid), place, wrong);
	describe(funcid, function);
	cqrs_function_require_execute(funcid, function->signature);
}

/*
 * Raise 42P13: a function cannot be registered in a place. wrong says why: that it
 * "takes type x", "returns a set", or the like.
 */
void
cqrs_function_refuse(const char *signature, const CqrsPlace *place,
					 const char *wrong)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			 errmsg("function %s cannot be %s", signature, place->what),
			 errdetail_internal("It %s.", wrong),
			 errhint("%s", place->wanted)));
}

/*
 * The signature that this name means, of those in the first column of the last
 * statement's result, or NULL. Raises 42725 if it may mean several; what says
 * what they are, in the plural.
 */
char *
cqrs_function_choose(const char *name, const char *what)
{
	List	   *fitting = NIL;
	char	   *chosen = NULL;
	uint64		i;

	for (i = 0; i < SPI_processed; i++)
	{
		char	   *signature = SPI_getvalue(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 1);

		if (!cqrs_signature_fits(signature, name))
			continue;
		fitting = lappend(fitting, quote_literal_cstr(signature));
		chosen = signature;
	}
	if (list_length(fitting) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
				 errmsg("function name \"%s\" is not unique", name),
				 errdetail_internal("Of that name, %s are:\n%s", what,
									sorted_lines(fitting)),
				 errhint("Name one of them, as it is there.")));
	return chosen;
}

/*
 * The only function of this name whose argument fits.
 */
static Oid
find_named(const char *name, const CqrsPlace *place)
{
	List	   *names = split_name(name);
	FuncCandidateList candidate;
	List	   *fitting = NIL;
	List	   *others = NIL;
	Oid			found = InvalidOid;
	bool		reserved = false;

	candidate = FuncnameGetCandidates(names, -1, NIL, false, false, false,
									  true);
	for (; candidate != NULL; candidate = candidate->next)
	{
		char	   *wrong = wrong_with(candidate->oid, place, true);

		reserved |= wrong != NULL && takes_reserved(candidate->oid);
		if (wrong != NULL)
			others = lappend(others,
							 psprintf("%s %s.",
									  format_procedure_qualified(candidate->oid),
									  wrong));
		else
		{
			fitting = lappend(fitting,
							  quote_literal_cstr(cqrs_signature_of(candidate->oid)));
			found = candidate->oid;
		}
	}
	if (list_length(fitting) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
				 errmsg("function name \"%s\" is not unique", name),
				 errdetail_internal("Of that name, these can be %s:\n%s",
									place->what, sorted_lines(fitting)),
				 errhint("Name one of them, as it is there.")));
	if (fitting == NIL && reserved)
		refuse_reserved(name, place, sorted_lines(others));
	if (fitting == NIL && others != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("no function \"%s\" can be %s", name, place->what),
				 errdetail_internal("%s", sorted_lines(others)),
				 errhint("%s", place->wanted)));
	if (fitting == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function \"%s\" does not exist", name),
				 is_folded(name, names) ?
				 errhint("Capital letters are kept only within double quotes: '%s'.",
						 quote_identifier(name)) :
				 list_length(names) > 1 ? 0 :
				 errhint("It is looked for in the schemas of search_path. Name it with its schema if it is in another one.")));
	return found;
}

/*
 * The parts of a name. Raises 42602 if it is none.
 */
static List *
split_name(const char *name)
{
	List	   *parts;

	if (!SplitIdentifierString(pstrdup(name), '.', &parts) || parts == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid function name \"%s\"", name),
				 errhint("Write name, schema.name or schema.name(type), and what is not only letters, digits and underscores within double quotes: '%s'.",
						 quote_identifier(*name == '\0' || strchr(name, '"') ?
										  "My Handler" : name))));
	return cqrs_qualified_name_list(name);
}

/*
 * Does a name of one part, without quotes, have capital letters?
 */
static bool
is_folded(const char *name, List *names)
{
	return list_length(names) == 1 && strchr(name, '"') == NULL &&
		strcmp(name, strVal(linitial(names))) != 0 &&
		pg_strcasecmp(name, strVal(linitial(names))) == 0;
}

/*
 * The function that is named with its argument: as we store it, or as the
 * server understands it, which raises an error if there is none.
 */
static Oid
find_exact(const char *name)
{
	Oid			funcid = cqrs_signature_find(name);

	if (!OidIsValid(funcid))
		funcid = DatumGetObjectId(DirectFunctionCall1(regprocedurein,
													  CStringGetDatum(name)));
	return funcid;
}

/*
 * What keeps a function from being registered in a place: a predicate, palloc'd,
 * or NULL. Either what is wrong with what it is and takes, or with what it
 * returns.
 */
static char *
wrong_with(Oid funcid, const CqrsPlace *place, bool argument)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;
	char	   *wrong;

	if (!HeapTupleIsValid(tuple))
		cqrs_signature_gone(funcid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	wrong = argument ? wrong_argument(proc, place) : wrong_result(proc, place);
	ReleaseSysCache(tuple);
	return wrong;
}

static char *
wrong_argument(Form_pg_proc proc, const CqrsPlace *place)
{
	switch (proc->prokind)
	{
		case PROKIND_FUNCTION:
			break;
		case PROKIND_PROCEDURE:
			return pstrdup("is a procedure");
		case PROKIND_AGGREGATE:
			return pstrdup("is an aggregate");
		default:
			return pstrdup("is a window function");
	}
	if (proc->pronargs != 1 || OidIsValid(proc->provariadic))
		return pstrdup("does not have exactly one argument");
	if (cqrs_function_is_temporary(proc))
		return pstrdup("is in a temporary schema, or has a type of one");
	if (is_reserved(proc->proargtypes.values[0]))
		return psprintf("takes type %s, which is not supported yet",
						cqrs_type_name(proc->proargtypes.values[0]));
	if (!place->takes(place->arg, proc->proargtypes.values[0]))
		return psprintf("takes type %s",
						cqrs_type_name(proc->proargtypes.values[0]));
	return NULL;
}

/*
 * Is this an argument that a handler may have one day: what came from a broker?
 */
static bool
is_reserved(Oid argtype)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(argtype));
	bool		reserved;

	if (!HeapTupleIsValid(tuple))
		return false;
	reserved = strcmp(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname),
					  "cqrs_message") == 0;
	ReleaseSysCache(tuple);
	return reserved;
}

static bool
takes_reserved(Oid funcid)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	bool		reserved = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);

		reserved = proc->pronargs == 1 &&
			is_reserved(proc->proargtypes.values[0]);
		ReleaseSysCache(tuple);
	}
	return reserved;
}

static void
refuse_reserved(const char *name, const CqrsPlace *place, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("function %s cannot be %s", name, place->what),
			 errdetail_internal("%s", detail),
			 errhint("%s", place->wanted)));
}

static char *
wrong_result(Form_pg_proc proc, const CqrsPlace *place)
{
	if (proc->proretset && !place->may_return_set)
		return pstrdup("returns a set");
	if (proc->prorettype == TRIGGEROID ||
		proc->prorettype == EVENT_TRIGGEROID ||
		proc->prorettype == INTERNALOID ||
		(OidIsValid(place->rettype) && proc->prorettype != place->rettype))
		return psprintf("returns type %s", cqrs_type_name(proc->prorettype));
	return NULL;
}

static void
describe(Oid funcid, CqrsFunction *function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		cqrs_signature_gone(funcid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	function->funcid = funcid;
	function->owner = proc->proowner;
	function->argtype = proc->proargtypes.values[0];
	function->rettype = proc->prorettype;
	function->returns_set = proc->proretset;
	ReleaseSysCache(tuple);
	function->signature = cqrs_signature_of(funcid);
	function->owner_name = GetUserNameFromId(function->owner, false);
}

/*
 * The lines as one text, in an order that does not depend on the catalogs'.
 */
static char *
sorted_lines(List *lines)
{
	StringInfoData text;
	ListCell   *lc;

	list_sort(lines, compare_lines);
	initStringInfo(&text);
	foreach(lc, lines)
		appendStringInfo(&text, "%s%s", text.len > 0 ? "\n" : "",
						 (char *) lfirst(lc));
	return text.data;
}

static int
compare_lines(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}
