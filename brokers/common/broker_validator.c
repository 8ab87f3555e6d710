/*-------------------------------------------------------------------------
 *
 * broker_validator.c
 *	  The validator of a foreign-data wrapper whose servers are brokers.
 *
 *-------------------------------------------------------------------------
 */
#include "broker_validator.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"

#include "broker_client.h"

static bool check_window(const char *value, char *error);
static bool check_max_message_size(const char *value, char *error);

/* The options of any module's servers that the core reads. */
static const BrokerOptionDef core_options[] = {
	{CQRS_BROKER_OPTION_WINDOW, ForeignServerRelationId, false, check_window},
	{CQRS_BROKER_OPTION_SOURCE, ForeignServerRelationId, false,
	broker_check_not_empty},
	{CQRS_BROKER_OPTION_MAX_MESSAGE_SIZE, ForeignServerRelationId, false,
	check_max_message_size}
};

static const BrokerOptionDef *find_option(const char *name, Oid catalog,
										  const BrokerOptionDef *defs,
										  int ndefs);
static void unknown_option(const char *name, Oid catalog,
						   const BrokerOptionDef *defs, int ndefs,
						   const char *module);
static void append_options(StringInfo list, Oid catalog,
						   const BrokerOptionDef *defs, int ndefs);
static const char *catalog_object(Oid catalog);

/*
 * Check options as the validator of a foreign-data wrapper is given them: all
 * that an object of this catalog would have. Servers may have the core's own
 * options too.
 *
 * module is the wrapper's name, for messages. No message has an option's value
 * in it, as that may be a secret.
 *
 * ERRCODE_FDW_INVALID_OPTION_NAME: there is no such option; the hint lists
 * those that there are. ERRCODE_INSUFFICIENT_PRIVILEGE: it is a superuser's to
 * set. ERRCODE_INVALID_PARAMETER_VALUE: it cannot have this value.
 */
void
broker_validate(Datum options, Oid catalog, const BrokerOptionDef *defs,
				int ndefs, const char *module)
{
	ListCell   *lc;

	foreach(lc, untransformRelOptions(options))
	{
		DefElem    *option = (DefElem *) lfirst(lc);
		const BrokerOptionDef *def;
		char		error[CQRS_BROKER_ERROR_SIZE] = "";

		def = find_option(option->defname, catalog, defs, ndefs);
		if (def == NULL)
			def = find_option(option->defname, catalog, core_options,
							  lengthof(core_options));
		if (def == NULL)
			unknown_option(option->defname, catalog, defs, ndefs, module);

		if (def->superuser_only && !superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to set option \"%s\" of a %s of foreign-data wrapper \"%s\"",
							def->name, catalog_object(catalog), module),
					 errdetail("It has the database server open a file, or run code, as its own operating system user."),
					 errhint("Only superusers may set it.")));

		if (def->check != NULL && !def->check(defGetString(option), error))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" of a %s of foreign-data wrapper \"%s\" cannot have this value",
							def->name, catalog_object(catalog), module),
					 errdetail("%s", error)));
	}
}

/*
 * The option of this name that an object of this catalog may have; NULL if
 * there is none.
 */
static const BrokerOptionDef *
find_option(const char *name, Oid catalog, const BrokerOptionDef *defs,
			int ndefs)
{
	int			i;

	for (i = 0; i < ndefs; i++)
	{
		if (defs[i].catalog == catalog && strcmp(defs[i].name, name) == 0)
			return &defs[i];
	}
	return NULL;
}

/*
 * Raise the error about an option that an object of this catalog cannot have.
 */
static void
unknown_option(const char *name, Oid catalog, const BrokerOptionDef *defs,
			   int ndefs, const char *module)
{
	StringInfoData valid;
	const char *elsewhere = NULL;

	if (catalog == ForeignServerRelationId &&
		find_option(name, UserMappingRelationId, defs, ndefs) != NULL)
		elsewhere = "user mapping";
	if (catalog == UserMappingRelationId &&
		(find_option(name, ForeignServerRelationId, defs, ndefs) != NULL ||
		 find_option(name, ForeignServerRelationId, core_options,
					 lengthof(core_options)) != NULL))
		elsewhere = "server";

	initStringInfo(&valid);
	append_options(&valid, catalog, defs, ndefs);
	append_options(&valid, catalog, core_options, lengthof(core_options));

	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("a %s of foreign-data wrapper \"%s\" has no option \"%s\"",
					catalog_object(catalog), module, name),
			 elsewhere != NULL ?
			 errdetail("It is an option of a %s.", elsewhere) : 0,
			 valid.len > 0 ?
			 errhint("Valid options in this context are: %s.", valid.data) :
			 errhint("There are no valid options in this context.")));
}

/*
 * Append the names of the options that an object of this catalog may have.
 */
static void
append_options(StringInfo list, Oid catalog, const BrokerOptionDef *defs,
			   int ndefs)
{
	int			i;

	for (i = 0; i < ndefs; i++)
	{
		if (defs[i].catalog == catalog)
			appendStringInfo(list, "%s%s", list->len > 0 ? ", " : "",
							 defs[i].name);
	}
}

/*
 * What the objects of a catalog are called.
 */
static const char *
catalog_object(Oid catalog)
{
	switch (catalog)
	{
		case ForeignServerRelationId:
			return "server";
		case UserMappingRelationId:
			return "user mapping";
		case ForeignDataWrapperRelationId:
			return "definition";
		default:
			return "foreign table";
	}
}

/*
 * The number of messages that may be with the module unreported.
 */
static bool
check_window(const char *value, char *error)
{
	return broker_check_int(value, 1, 1000000, error);
}

/*
 * The largest body of a message, in bytes.
 */
static bool
check_max_message_size(const char *value, char *error)
{
	return broker_check_int(value, 1, CQRS_BROKER_MAX_MESSAGE_SIZE, error);
}
