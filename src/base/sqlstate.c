/*-------------------------------------------------------------------------
 *
 * sqlstate.c
 *	  Lists of error codes.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/sqlstate.h"


/*
 * Parse the elements of a text array; the result is palloc'd. argument names
 * it in errors. Raises 22023 for what is neither an error code nor a class,
 * 22004 for NULL.
 */
CqrsSqlstate *
cqrs_sqlstates_parse(Datum array, const char *argument, int *n)
{
	CqrsSqlstate *sqlstates;
	Datum	   *elements;
	bool	   *nulls;
	int			i;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, n);
	sqlstates = palloc(sizeof(CqrsSqlstate) * Max(*n, 1));
	for (i = 0; i < *n; i++)
	{
		char	   *element;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("elements of %s must not be null", argument)));
		element = TextDatumGetCString(elements[i]);

		if (!cqrs_sqlstate_parse(element, &sqlstates[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("element \"%s\" of %s is no SQLSTATE", element,
							argument),
					 errhint("It is a code of five digits and capital letters, or its first two, a class.")));
	}
	return sqlstates;
}

bool
cqrs_sqlstate_listed(const CqrsSqlstate *sqlstates, int n, int code)
{
	int			i;

	for (i = 0; i < n; i++)
		if ((code & sqlstates[i].mask) == sqlstates[i].code)
			return true;
	return false;
}

/*
 * The code for its text form in a table; 0 if that is no code.
 */
int
cqrs_sqlstate_of_text(Datum value)
{
	char	   *code = TextDatumGetCString(value);
	CqrsSqlstate sqlstate;

	if (!cqrs_sqlstate_parse(code, &sqlstate))
		sqlstate.code = 0;
	pfree(code);
	return sqlstate.code;
}

/*
 * An error code, or a class, from its text form. Returns false if it is neither.
 */
bool
cqrs_sqlstate_parse(const char *text, CqrsSqlstate *sqlstate)
{
	size_t		len = strlen(text);

	if (strspn(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != len)
		return false;
	if (len == 5)
	{
		sqlstate->code = MAKE_SQLSTATE(text[0], text[1], text[2], text[3],
									   text[4]);
		sqlstate->mask = -1;
		return true;
	}
	if (len == 2)
	{
		sqlstate->code = MAKE_SQLSTATE(text[0], text[1], '0', '0', '0');
		sqlstate->mask = ERRCODE_TO_CATEGORY(-1);
		return true;
	}
	return false;
}
