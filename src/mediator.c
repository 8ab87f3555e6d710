/*-------------------------------------------------------------------------
 *
 * mediator.c
 *	  Commands: registered, and dispatched to their handlers in the caller's
 *	  transaction.
 *
 * A dispatch on a warm cache takes no lock on a relation, so in an open
 * transaction it would not learn of what others committed: it asks for
 * invalidations itself. So the handler called is the one that is there now.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "payload.h"
#include "registry.h"

/* Which command takes a composite type; see command_by_type(). */
typedef struct TypeEntry
{
	Oid			typid;			/* hash key */
	CqrsCommand *command;
	bool		ambiguous;
} TypeEntry;

static HTAB *commands_by_type = NULL;
static uint64 by_type_registry = 0;
static uint64 by_type_procs = 0;

/* How many commands are being handled up the stack. */
static int	command_depth = 0;

static void check_dispatch(CqrsCommand *command);
static Datum convert_payload(CqrsCommand *command, Jsonb *payload);
static Datum dispatch(FunctionCallInfo fcinfo, CqrsCommand *command,
					  Datum arg);
static void dispatch_error_callback(void *arg);
static CqrsCommand *command_by_type(Oid typid);

PG_FUNCTION_INFO_V1(cqrs_register_command);
PG_FUNCTION_INFO_V1(cqrs_unregister_command);
PG_FUNCTION_INFO_V1(cqrs_send);
PG_FUNCTION_INFO_V1(cqrs_send_composite);

/*
 * cqrs_register_command(command_name, handler)
 */
Datum
cqrs_register_command(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "command");
	char	   *signature;
	Oid			argtype;
	Oid			rettype;
	CqrsAdmin	admin;
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];

	cqrs_require_writable("cqrs_register_command()");
	cqrs_name_check("command", name);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("handler of command \"%s\" must not be null", name)));
	signature = cqrs_handler_describe(PG_GETARG_OID(1), &argtype, &rettype);
	if (argtype != JSONBOID && !cqrs_payload_type_is_composite(argtype))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be a handler of a command",
						signature),
				 errdetail("Its argument is of type %s.",
						   format_type_be(argtype)),
				 errhint("The argument of a command's handler is jsonb or of a composite type.")));

	cqrs_admin_begin(&admin);
	cqrs_admin_ddl("LOCK TABLE cqrs.command IN SHARE ROW EXCLUSIVE MODE");
	if (cqrs_registry_command(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("command \"%s\" is already registered", name)));
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(signature);
	cqrs_admin_execute("INSERT INTO cqrs.command (command_name, handler) VALUES ($1, $2)",
					   2, types, values, NULL);
	cqrs_admin_end(&admin);
	PG_RETURN_VOID();
}

/*
 * cqrs_unregister_command(command_name)
 */
Datum
cqrs_unregister_command(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "command");
	CqrsAdmin	admin;
	Oid			types[1] = {TEXTOID};
	Datum		values[1];

	cqrs_require_writable("cqrs_unregister_command()");
	cqrs_admin_begin(&admin);
	values[0] = CStringGetTextDatum(name);
	if (cqrs_admin_execute("DELETE FROM cqrs.command WHERE command_name = $1",
						   1, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("command \"%s\" is not registered", name)));
	cqrs_admin_end(&admin);
	PG_RETURN_VOID();
}

/*
 * cqrs_send(command_name, payload)
 */
Datum
cqrs_send(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "command");
	CqrsCommand *command;

	AcceptInvalidationMessages();
	command = cqrs_registry_command(name);
	if (command == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("command \"%s\" is not registered", name),
				 errhint("Register it with cqrs_register_command().")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload of command \"%s\" must not be null", name),
				 errhint("A command without values has the payload {}.")));
	check_dispatch(command);
	return dispatch(fcinfo, command,
					convert_payload(command, PG_GETARG_JSONB_P(1)));
}

/*
 * cqrs_send(command record): the command that takes this type.
 */
Datum
cqrs_send_composite(PG_FUNCTION_ARGS)
{
	CqrsCommand *command;
	Oid			typid;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null")));
	typid = HeapTupleHeaderGetTypeId(PG_GETARG_HEAPTUPLEHEADER(0));
	if (typid == RECORDOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("command is an anonymous record"),
				 errhint("Cast it to the composite type that its handler takes.")));
	AcceptInvalidationMessages();
	command = command_by_type(typid);
	check_dispatch(command);
	return dispatch(fcinfo, command, PG_GETARG_DATUM(0));
}

/*
 * May the current user dispatch this command here and now? Raises 25000,
 * 54001, 42883 or 42501.
 */
static void
check_dispatch(CqrsCommand *command)
{
	PreventCommandIfParallelMode("cqrs_send()");
	if (command_depth >= cqrs_max_command_depth)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("command \"%s\" is nested too deeply", command->name),
				 errdetail("%d commands are being handled already, one within the other.",
						   command_depth),
				 errhint("A handler may send its own command without end; otherwise raise cqrs_outbox.max_command_depth.")));
	check_stack_depth();

	cqrs_handler_check(&command->handler, "command", command->name);
}

/*
 * What the command's handler takes. Raises what payload.c says.
 */
static Datum
convert_payload(CqrsCommand *command, Jsonb *payload)
{
	cqrs_payload_check_object(payload, "command", command->name);
	if (command->handler.argtype == JSONBOID)
		return JsonbPGetDatum(payload);
	return cqrs_payload_to_composite(payload, command->handler.argtype,
									 "command", command->name);
}

/*
 * Call the command's handler with its argument; check_dispatch() was done.
 */
static Datum
dispatch(FunctionCallInfo fcinfo, CqrsCommand *command, Datum arg)
{
	ErrorContextCallback errcallback;
	Oid			rettype = command->handler.rettype;
	bool		isnull;
	Datum		answer;

	errcallback.callback = dispatch_error_callback;
	errcallback.arg = command;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;
	command_depth++;
	PG_TRY();
	{
		answer = cqrs_handler_call(&command->handler, arg, &isnull);
	}
	PG_FINALLY();
	{
		command_depth--;
	}
	PG_END_TRY();
	error_context_stack = errcallback.previous;

	return cqrs_payload_from_value(answer, isnull, rettype, &fcinfo->isnull);
}

static void
dispatch_error_callback(void *arg)
{
	CqrsCommand *command = (CqrsCommand *) arg;

	errcontext("handler %s of command \"%s\"", command->handler.signature,
			   command->name);
}

/*
 * The only command whose handler takes this composite type. Raises 42883 if
 * there is none, 42725 if there are several.
 *
 * The answers are kept until the registry or pg_proc changes.
 */
static CqrsCommand *
command_by_type(Oid typid)
{
	uint64		registry = cqrs_registry_generation();
	TypeEntry  *entry;
	bool		found;

	if (commands_by_type == NULL || by_type_registry != registry ||
		by_type_procs != cqrs_handler_generation())
	{
		HASH_SEQ_STATUS status;
		CqrsCommand *command;
		HASHCTL		ctl;

		if (commands_by_type != NULL)
			hash_destroy(commands_by_type);
		commands_by_type = NULL;
		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(TypeEntry);
		ctl.hcxt = TopMemoryContext;
		commands_by_type = hash_create("cqrs commands by type", 64, &ctl,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		by_type_registry = registry;
		by_type_procs = cqrs_handler_generation();

		cqrs_registry_commands(&status);
		while ((command = hash_seq_search(&status)) != NULL)
		{
			if (!cqrs_handler_find(&command->handler))
				continue;
			entry = hash_search(commands_by_type, &command->handler.argtype,
								HASH_ENTER, &found);
			entry->command = command;
			entry->ambiguous = found;
		}
	}

	entry = hash_search(commands_by_type, &typid, HASH_FIND, NULL);
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("no command takes type %s", format_type_be(typid)),
				 errhint("Register one with cqrs_register_command(), or send the command by its name.")));
	if (entry->ambiguous)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
				 errmsg("more than one command takes type %s",
						format_type_be(typid)),
				 errhint("Send the command by its name.")));
	return entry->command;
}
