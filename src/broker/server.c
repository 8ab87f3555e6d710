/*-------------------------------------------------------------------------
 *
 * server.c
 *	  The foreign server that stands for a broker, and its module.
 *
 * The module is the library in which the validator of the server's wrapper is.
 * Only a superuser can make a wrapper, so whatever library this is, a
 * superuser wanted it to be loaded. A loaded module stays the same, even if
 * its file is replaced.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "broker/server.h"

#define MODULE_FUNCTION	"cqrs_broker_module"
#define MAX_WINDOW		1000000

/* In bytes: the limit of RabbitMQ 4, which is higher than most brokers'. */
#define DEFAULT_MESSAGE_SIZE	(16 * 1024 * 1024)

/* Counts possible changes of servers, user mappings and wrappers. */
static uint64 generation = 1;

static const CqrsBrokerModule *find_module(const ForeignServer * server);
static void check_module(const CqrsBrokerModule *module,
						 const char *library, const ForeignServer * server);
static List *user_mapping_options(Oid owner, Oid serverid);
static int	int_option(DefElem *def, const char *server_name, int max);
static const char *utf8(const char *string);
static void forget(Datum arg, int cacheid, uint32 hashvalue);

/*
 * Get all that a subscription of this owner needs to connect, in the current
 * memory context. Raises 42704 if there is no such server, 42501 if the owner
 * has no USAGE on it, 42809 if it does not stand for a broker, 55000 if the
 * module does not fit this library, 22023 if something is wrong with the
 * options.
 */
CqrsBrokerServer *
cqrs_broker_server(const char *server_name, const char *subscription,
				   Oid owner)
{
	ForeignServer *server = GetForeignServerByName(server_name, true);
	CqrsBrokerServer *result = palloc0(sizeof(CqrsBrokerServer));
	CqrsBrokerOption *options;
	List	   *all;
	ListCell   *lc;
	int			n = 0;
	char		error[CQRS_BROKER_ERROR_SIZE] = "";

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", server_name),
				 errhint("Use CREATE SERVER with the foreign-data wrapper of a broker module.")));
	if (object_aclcheck(ForeignServerRelationId, server->serverid, owner,
						ACL_USAGE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s",
						server_name),
				 errdetail("Role \"%s\", which owns subscription \"%s\", has no USAGE on it.",
						   GetUserNameFromId(owner, true), subscription)));
	result->module = find_module(server);

	result->window = result->module->window;
	result->max_message_size = DEFAULT_MESSAGE_SIZE;
	all = list_concat_copy(server->options,
						   user_mapping_options(owner, server->serverid));
	options = palloc(sizeof(CqrsBrokerOption) * (list_length(all) + 1));
	foreach(lc, all)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		options[n].name = utf8(def->defname);
		options[n].value = utf8(defGetString(def));
		if (strcmp(def->defname, CQRS_BROKER_OPTION_SOURCE) == 0)
			result->source = options[n].value;
		if (strcmp(def->defname, CQRS_BROKER_OPTION_WINDOW) == 0)
			result->window = int_option(def, server_name, MAX_WINDOW);
		if (strcmp(def->defname, CQRS_BROKER_OPTION_MAX_MESSAGE_SIZE) == 0)
			result->max_message_size = int_option(def, server_name,
												  CQRS_BROKER_MAX_MESSAGE_SIZE);
		n++;
	}
	result->connection.database = utf8(get_database_name(MyDatabaseId));
	result->connection.subscription = utf8(subscription);
	result->connection.noptions = n;
	result->connection.options = options;

	if (!result->module->check(&result->connection, error))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("server \"%s\" cannot be connected to as it is",
						server_name),
				 errdetail_internal("%s", cqrs_broker_error(error)),
				 errhint("Use ALTER SERVER, or CREATE USER MAPPING FOR %s.",
						 quote_identifier(GetUserNameFromId(owner, false)))));
	return result;
}

/*
 * A number that changes whenever a server, a user mapping or a wrapper may
 * have changed.
 */
uint64
cqrs_broker_server_generation(void)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, forget, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, forget,
									  (Datum) 0);
		registered = true;
	}
	return generation;
}

/*
 * The text of a module's error in a form that the server can print, whatever
 * its bytes (it may have been cut within a character), in a transaction or
 * not.
 */
char *
cqrs_broker_error(const char *error)
{
	char	   *result = pstrdup(error);
	int			length = strlen(error);
	int			valid = pg_encoding_verifymbstr(PG_UTF8, error, length);
	char	   *c;

	if (GetDatabaseEncoding() == PG_UTF8 &&
		length - valid < pg_encoding_max_length(PG_UTF8))
	{
		result[valid] = '\0';
		return result;
	}
	for (c = result; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = '?';
	return result;
}

static const CqrsBrokerModule *
find_module(const ForeignServer * server)
{
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);
	const CqrsBrokerModule *(*function) (void) = NULL;
	const CqrsBrokerModule *module;
	char	   *library = NULL;

	if (OidIsValid(wrapper->fdwvalidator))
	{
		HeapTuple	tuple;
		Datum		value;
		bool		isnull;

		tuple = SearchSysCache1(PROCOID,
								ObjectIdGetDatum(wrapper->fdwvalidator));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for function %u",
				 wrapper->fdwvalidator);
		value = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_probin, &isnull);
		if (((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId &&
			!isnull)
			library = TextDatumGetCString(value);
		ReleaseSysCache(tuple);
	}
	if (library != NULL)
		function = (const CqrsBrokerModule *(*) (void))
			load_external_function(library, MODULE_FUNCTION, false, NULL);
	if (function == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not one of a message broker",
						server->servername),
				 errdetail("Its foreign-data wrapper \"%s\" does not belong to a broker module.",
						   wrapper->fdwname)));
	module = function();
	check_module(module, library, server);
	return module;
}

static void
check_module(const CqrsBrokerModule *module, const char *library,
			 const ForeignServer * server)
{
	if (module == NULL || module->magic != CQRS_BROKER_MAGIC)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("library \"%s\" of server \"%s\" is not a broker module",
						library, server->servername),
				 errdetail("What its function %s() returns does not begin with the magic number.",
						   MODULE_FUNCTION)));
	if (module->version != CQRS_BROKER_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("broker module \"%s\" of server \"%s\" does not fit cqrs_outbox",
						library, server->servername),
				 errdetail("It has version %u of the interface, cqrs_outbox has %u.",
						   module->version, CQRS_BROKER_VERSION),
				 errhint("Install builds of both that fit, and restart the server.")));
	if (module->name == NULL || module->cloudevents_prefix == NULL ||
		module->window < 1 || module->window > MAX_WINDOW ||
		module->check == NULL || module->startup == NULL ||
		module->publish == NULL || module->poll == NULL ||
		module->fd == NULL || module->shutdown == NULL ||
		(module->assign == NULL) != (module->receive == NULL) ||
		(module->assign == NULL) != (module->settle == NULL) ||
		(module->fence != NULL &&
		 (module->begin == NULL || module->commit == NULL ||
		  module->abort == NULL || module->read_record == NULL)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("broker module \"%s\" of server \"%s\" is not complete",
						library, server->servername),
				 errdetail("A callback, its name, its prefix of headers or its window is missing.")));
}

/*
 * The options of the owner's user mapping, or else of PUBLIC's; a broker may
 * need none.
 */
static List *
user_mapping_options(Oid owner, Oid serverid)
{
	HeapTuple	tuple;
	Datum		value;
	bool		isnull;
	List	   *options = NIL;

	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(owner),
							ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
								ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tuple))
		return NIL;
	value = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
							Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		options = untransformRelOptions(value);
	ReleaseSysCache(tuple);
	return options;
}

/*
 * An option of the server that is a number from 1 to max. Raises 22023 for
 * anything else.
 */
static int
int_option(DefElem *def, const char *server_name, int max)
{
	int			value;

	if (!parse_int(defGetString(def), &value, 0, NULL) ||
		value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" of server \"%s\" must be from 1 to %d",
						def->defname, server_name, max)));
	return value;
}

static const char *
utf8(const char *string)
{
	return pg_server_to_any(string, strlen(string), PG_UTF8);
}

static void
forget(Datum arg, int cacheid, uint32 hashvalue)
{
	generation++;
}
