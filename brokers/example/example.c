/*-------------------------------------------------------------------------
 *
 * example.c
 *	  The module as the server sees it: the validator of its foreign-data
 *	  wrapper, and what the core asks it for.
 *
 * This file is PostgreSQL's side. It has nothing to do with the peer; what has
 * is in client.c, which includes no header of the server, so that it cannot
 * call the server by mistake.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/guc.h"

#include "client.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const CqrsBrokerModule *cqrs_broker_module(void);

/* An option; a number from min to max, if max is not 0. */
typedef struct ExampleOption
{
	const char *name;
	Oid			catalog;		/* of what has it */
	int			min;
	int			max;
} ExampleOption;

/* The script of the extension says what each of them means. */
static const ExampleOption known_options[] = {
	{"host", ForeignServerRelationId},
	{"port", ForeignServerRelationId, 1, 65535},
	{"timeout", ForeignServerRelationId, 1, 3600},
	{"token", UserMappingRelationId},

	/* The core reads these, but the validator has to let them pass. */
	{CQRS_BROKER_OPTION_WINDOW, ForeignServerRelationId, 1, 1000000},
	{CQRS_BROKER_OPTION_SOURCE, ForeignServerRelationId},
	{CQRS_BROKER_OPTION_MAX_MESSAGE_SIZE, ForeignServerRelationId, 1,
	CQRS_BROKER_MAX_MESSAGE_SIZE}
};

static void check_option(DefElem *option, Oid catalog);

PG_FUNCTION_INFO_V1(cqrs_example_validator);

/*
 * The validator of foreign-data wrapper cqrs_example. It is given all options
 * that a server, a user mapping, or the wrapper itself would have after a
 * CREATE or an ALTER.
 */
Datum
cqrs_example_validator(PG_FUNCTION_ARGS)
{
	ListCell   *lc;

	foreach(lc, untransformRelOptions(PG_GETARG_DATUM(0)))
		check_option((DefElem *) lfirst(lc), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

/*
 * The core finds the module by this function, in the library of the wrapper's
 * validator.
 */
const CqrsBrokerModule *
cqrs_broker_module(void)
{
	return &example_module;
}

/*
 * Raise HV00D if objects of this catalog have no such option, 22023 if it
 * cannot have this value. The value is not shown: it may be a secret.
 */
static void
check_option(DefElem *option, Oid catalog)
{
	StringInfoData valid;
	int			number;
	int			i;

	initStringInfo(&valid);
	for (i = 0; i < lengthof(known_options); i++)
	{
		const ExampleOption *known = &known_options[i];

		if (known->catalog != catalog)
			continue;
		if (strcmp(known->name, option->defname) != 0)
		{
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 known->name);
			continue;
		}
		if (known->max > 0 &&
			(!parse_int(defGetString(option), &number, 0, NULL) ||
			 number < known->min || number > known->max))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" must be a number from %d to %d",
							known->name, known->min, known->max)));
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("foreign-data wrapper \"cqrs_example\" has no option \"%s\" here",
					option->defname),
			 valid.len > 0 ?
			 errhint("Valid options in this context are: %s.", valid.data) :
			 errhint("There are no valid options in this context.")));
}
