/*-------------------------------------------------------------------------
 *
 * command.c
 *	  Commands and queries: registered, found by name or by type, and
 *	  dispatched.
 *
 * With a warm cache, a dispatch locks no relation, so in an open transaction
 * it would not notice what others committed. So it accepts invalidations
 * itself, to call the handler that is registered now.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/hash.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/event.h"
#include "mediator/command.h"
#include "mediator/dispatch.h"
#include "mediator/dry_run.h"
#include "mediator/idempotency.h"
#include "mediator/stream.h"
#include "registry/lookup.h"
#include "registry/payload.h"
#include "registry/registry.h"

/* Who registers or removes waits for others who do. */
#define LOCK_COMMANDS	"LOCK TABLE cqrs.command IN SHARE ROW EXCLUSIVE MODE"

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

static bool register_one(FunctionCallInfo fcinfo, CqrsCommandKind kind,
						 const char *function);
static bool register_command(CqrsCommandKind kind, const char *name,
							 int nhandlers, Datum *handlers, bool *nulls,
							 bool or_replace);
static void check_kind(const char *name, CqrsCommandKind kind);
static void look_up_handler(CqrsCommandKind kind, const char *handler,
							bool may_return_set, CqrsFunction *function);
static bool takes(const void *arg, Oid argtype);
static bool unregister(FunctionCallInfo fcinfo, CqrsCommandKind kind,
					   const char *function);
static bool is_query(CqrsCommandKind kind);
static const char *unregistering(CqrsCommandKind kind);
static CqrsCommand *command_arg(FunctionCallInfo fcinfo,
								CqrsCommandKind kind);
static CqrsCommand *command_by_type(Oid typid);
static Datum send_once(FunctionCallInfo fcinfo, const char *function,
					   bool *isnull, bool *repeated);

PG_FUNCTION_INFO_V1(cqrs_register_command);
PG_FUNCTION_INFO_V1(cqrs_register_chain);
PG_FUNCTION_INFO_V1(cqrs_register_query);
PG_FUNCTION_INFO_V1(cqrs_unregister_command);
PG_FUNCTION_INFO_V1(cqrs_unregister_query);
PG_FUNCTION_INFO_V1(cqrs_send);
PG_FUNCTION_INFO_V1(cqrs_send_once);
PG_FUNCTION_INFO_V1(cqrs_send_composite);
PG_FUNCTION_INFO_V1(cqrs_dry_run);
PG_FUNCTION_INFO_V1(cqrs_query);
PG_FUNCTION_INFO_V1(cqrs_stream);
PG_FUNCTION_INFO_V1(cqrs_next);

/*
 * cqrs_register_command(command_name, handler, or_replace)
 */
Datum
cqrs_register_command(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(register_one(fcinfo, CQRS_COMMAND,
								"cqrs_register_command()"));
}

/*
 * cqrs_register_chain(command_name, handlers, or_replace)
 */
Datum
cqrs_register_chain(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "command");
	ArrayType  *array;
	Datum	   *handlers;
	bool	   *nulls;
	int			nhandlers;

	cqrs_require_writable("cqrs_register_chain()");
	cqrs_name_check("command", name);
	cqrs_arg_required(fcinfo, 1, "handlers", "command", name);
	array = PG_GETARG_ARRAYTYPE_P(1);
	if (ARR_NDIM(array) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("handlers of command \"%s\" are not a one-dimensional array with elements",
						name)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &handlers,
					  &nulls, &nhandlers);
	PG_RETURN_BOOL(register_command(CQRS_COMMAND, name, nhandlers, handlers,
									nulls, cqrs_flag_arg(fcinfo, 2)));
}

/*
 * cqrs_register_query(query_name, handler, or_replace)
 */
Datum
cqrs_register_query(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(register_one(fcinfo, CQRS_QUERY, "cqrs_register_query()"));
}

/*
 * cqrs_unregister_command(command_name, if_exists)
 */
Datum
cqrs_unregister_command(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(unregister(fcinfo, CQRS_COMMAND,
							  "cqrs_unregister_command()"));
}

/*
 * cqrs_unregister_query(query_name, if_exists)
 */
Datum
cqrs_unregister_query(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(unregister(fcinfo, CQRS_QUERY, "cqrs_unregister_query()"));
}

/*
 * cqrs_send(command_name, payload, idempotency_key)
 */
Datum
cqrs_send(PG_FUNCTION_ARGS)
{
	CqrsCommand *command;
	CqrsDispatch dispatch;
	bool		repeated;

	if (!PG_ARGISNULL(2))
		return send_once(fcinfo, "cqrs_send()", &fcinfo->isnull, &repeated);
	command = command_arg(fcinfo, CQRS_COMMAND);
	cqrs_dispatch_init(&dispatch, command,
					   cqrs_command_payload_arg(fcinfo, command), JSONBOID);
	return cqrs_dispatch_run(&dispatch, &fcinfo->isnull);
}

/*
 * cqrs_send_once(command_name, payload, idempotency_key)
 */
Datum
cqrs_send_once(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {0};
	bool		repeated;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "unexpected result type");
	cqrs_arg_required(fcinfo, 2, "idempotency key", NULL, NULL);
	values[0] = send_once(fcinfo, "cqrs_send_once()", &nulls[0], &repeated);
	values[1] = BoolGetDatum(repeated);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * Dispatch a command unless that was done with the same key. The key is locked
 * first, as that may have to wait.
 */
static Datum
send_once(FunctionCallInfo fcinfo, const char *function, bool *isnull,
		  bool *repeated)
{
	CqrsIdempotencyKey key;
	CqrsCommand *command;
	CqrsDispatch dispatch;

	cqrs_idempotency_lock(&key, PG_GETARG_TEXT_P(2), function);
	command = command_arg(fcinfo, CQRS_COMMAND);
	cqrs_dispatch_init(&dispatch, command,
					   cqrs_command_payload_arg(fcinfo, command), JSONBOID);
	return cqrs_idempotency_run(&key, &dispatch, isnull, repeated);
}

/*
 * cqrs_dry_run(command_name, payload)
 */
Datum
cqrs_dry_run(PG_FUNCTION_ARGS)
{
	CqrsCommand *command = command_arg(fcinfo, CQRS_COMMAND);
	CqrsDispatch dispatch;
	TupleDesc	desc;
	Oid			event_type;
	Datum		values[2];
	bool		nulls[2] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "unexpected result type");
	event_type = get_element_type(TupleDescAttr(desc, 1)->atttypid);
	cqrs_dispatch_init(&dispatch, command,
					   cqrs_command_payload_arg(fcinfo, command), JSONBOID);
	values[1] = cqrs_dry_run_dispatch(&dispatch, event_type, &values[0],
									  &nulls[0]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * cqrs_query(query_name, payload)
 */
Datum
cqrs_query(PG_FUNCTION_ARGS)
{
	CqrsCommand *command = command_arg(fcinfo, CQRS_QUERY);
	CqrsDispatch dispatch;

	cqrs_dispatch_init(&dispatch, command,
					   cqrs_command_payload_arg(fcinfo, command), JSONBOID);
	return cqrs_dispatch_run(&dispatch, &fcinfo->isnull);
}

/*
 * cqrs_send(command record): the command that takes this type.
 */
Datum
cqrs_send_composite(PG_FUNCTION_ARGS)
{
	CqrsCommand *command;
	CqrsDispatch dispatch;
	HeapTupleHeader payload;
	Oid			typid;

	cqrs_arg_required(fcinfo, 0, "command", NULL, NULL);

	/*
	 * Flat: of an expanded record that may be written to, the first function
	 * that gets it is the owner, and several may get this.
	 */
	payload = PG_GETARG_HEAPTUPLEHEADER(0);
	typid = HeapTupleHeaderGetTypeId(payload);
	if (typid == RECORDOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("command is an anonymous record"),
				 errhint("Cast it to the composite type that its handler takes.")));
	AcceptInvalidationMessages();
	command = command_by_type(typid);
	cqrs_dispatch_init(&dispatch, command, HeapTupleHeaderGetDatum(payload),
					   typid);
	return cqrs_dispatch_run(&dispatch, &fcinfo->isnull);
}

/*
 * cqrs_stream(command_name, payload)
 */
Datum
cqrs_stream(PG_FUNCTION_ARGS)
{
	if (SRF_IS_FIRSTCALL())
	{
		CqrsCommand *command = command_arg(fcinfo, CQRS_STREAM);

		cqrs_stream_begin(fcinfo, command,
						  cqrs_command_payload_arg(fcinfo, command));
	}
	return cqrs_stream_next(fcinfo);
}

/*
 * cqrs_next()
 */
Datum
cqrs_next(PG_FUNCTION_ARGS)
{
	cqrs_dispatch_pass_on();
	PG_RETURN_NULL();
}

/*
 * The command of this name and kind, as it is registered now. Raises 42883 or
 * 42809.
 */
CqrsCommand *
cqrs_command_get(const char *name, CqrsCommandKind kind)
{
	const char *kind_name = cqrs_command_kind_name(kind);
	CqrsCommand *command;

	AcceptInvalidationMessages();
	command = cqrs_registry_command(name);
	if (command == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("%s \"%s\" is not registered", kind_name, name),
				 errhint("Register it with %s.",
						 kind == CQRS_QUERY ? "cqrs_register_query()" :
						 "cqrs_register_command()")));
	if (command->kind != kind)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a %s, not a %s", name,
						cqrs_command_kind_name(command->kind), kind_name),
				 errhint("Call %s.", cqrs_command_function(command->kind))));
	return command;
}

/*
 * The second argument, a JSON object that is not toasted; {} if it is not
 * given. Raises 22023.
 */
Datum
cqrs_command_payload_arg(FunctionCallInfo fcinfo, CqrsCommand *command)
{
	const char *kind_name = cqrs_command_kind_name(command->kind);
	Jsonb	   *payload;

	if (PG_ARGISNULL(1))
		return DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	payload = PG_GETARG_JSONB_P(1);
	cqrs_payload_check_object(payload, kind_name, command->name);
	return JsonbPGetDatum(payload);
}

/*
 * Register what has one handler, the second argument. Returns whether anything
 * changed.
 */
static bool
register_one(FunctionCallInfo fcinfo, CqrsCommandKind kind,
			 const char *function)
{
	const char *kind_name = cqrs_command_kind_name(kind);
	char	   *name = cqrs_name_arg(fcinfo, 0, kind_name);

	cqrs_require_writable(function);
	cqrs_name_check(kind_name, name);
	return register_command(kind, name, 1, &fcinfo->args[1].value,
							&fcinfo->args[1].isnull,
							cqrs_flag_arg(fcinfo, 2));
}

/*
 * Find the handlers, and add the command to the registry; as a stream, if its
 * only handler returns a set. Returns whether anything changed. Raises what
 * cqrs_register_command() documents, except for a malformed name.
 */
static bool
register_command(CqrsCommandKind kind, const char *name, int nhandlers,
				 Datum *handlers, bool *nulls, bool or_replace)
{
	static const CqrsRegistration registration = {
		.lock = LOCK_COMMANDS,
		.look = "SELECT kind = $2 AND handlers = $3, owners = $4 FROM cqrs.command WHERE command_name = $1",
		.insert = "INSERT INTO cqrs.command (command_name, kind, handlers, owners) VALUES ($1, $2, $3, $4)",
		.confirm = "UPDATE cqrs.command SET owners = $4 WHERE command_name = $1",
		.replace = "UPDATE cqrs.command SET kind = $2, handlers = $3, owners = $4, registered_at = now() WHERE command_name = $1"
	};
	Datum	   *signatures = palloc(sizeof(Datum) * nhandlers);
	Datum	   *owners = palloc(sizeof(Datum) * nhandlers);
	CqrsFunction *functions = palloc(sizeof(CqrsFunction) * nhandlers);
	char	   *registered = psprintf("%s \"%s\" is already registered with another handler",
									  cqrs_command_kind_name(kind), name);
	int			i;
	int			j;

	for (i = 0; i < nhandlers; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("handler of %s \"%s\" must not be null",
							cqrs_command_kind_name(kind), name)));
		look_up_handler(kind, TextDatumGetCString(handlers[i]),
						nhandlers == 1, &functions[i]);
		for (j = 0; j < i; j++)
			if (functions[j].funcid == functions[i].funcid)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("function %s is more than one handler of command \"%s\"",
								functions[i].signature, name)));
		signatures[i] = CStringGetTextDatum(functions[i].signature);
		owners[i] = CStringGetTextDatum(functions[i].owner_name);
	}
	check_kind(name, kind);
	if (functions[0].returns_set)
		kind = CQRS_STREAM;

	return cqrs_admin_register(&registration, registered, or_replace,
							   4, CQRS_TEXT(name),
							   CQRS_TEXT(cqrs_command_kind_name(kind)),
							   CQRS_ARG(TEXTARRAYOID, PointerGetDatum(construct_array(signatures, nhandlers, TEXTOID, -1, false, TYPALIGN_INT))),
							   CQRS_ARG(TEXTARRAYOID, PointerGetDatum(construct_array(owners, nhandlers, TEXTOID, -1, false, TYPALIGN_INT))));
}

/*
 * See that what is registered under this name, if anything is, is a query if
 * that is meant, and none otherwise: the one is not replaced by the other. Nobody
 * changes it then until the end of the transaction. Raises 42710.
 */
static void
check_kind(const char *name, CqrsCommandKind kind)
{
	CqrsRegistryMark mark;
	CqrsCommand *command;

	cqrs_admin_run(LOCK_COMMANDS, 0);
	mark = cqrs_registry_mark();
	command = cqrs_registry_command(name);
	if (command != NULL && is_query(command->kind) != is_query(kind))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("%s \"%s\" is already registered",
						cqrs_command_kind_name(command->kind), name),
				 errdetail("Commands and queries share one space of names."),
				 errhint("Remove it with %s.",
						 unregistering(command->kind))));
	cqrs_registry_give_back(mark);
}

/*
 * Find the function that is to handle what is registered. Raises what
 * cqrs_function_look_up() does.
 */
static void
look_up_handler(CqrsCommandKind kind, const char *handler,
				bool may_return_set, CqrsFunction *function)
{
	CqrsPlace	place = {.takes = takes};

	place.may_return_set = kind == CQRS_COMMAND && may_return_set;
	if (kind == CQRS_QUERY)
	{
		place.what = "a handler of a query";
		place.wanted = "The handler of a query has one argument, jsonb or of a composite type, and returns void or one value.";
	}
	else
	{
		place.what = may_return_set ? "a handler of a command" :
			"a handler of a chain";
		place.wanted = may_return_set ?
			"The handler of a command has one argument, jsonb or of a composite type, and returns void, one value or a set." :
			"A handler of a chain has one argument, jsonb or of a composite type, and returns void or one value.";
	}
	cqrs_function_look_up(handler, &place, function);
}

/*
 * May a handler have an argument of this type? What handlers of events, and
 * middleware, get is no payload.
 */
static bool
takes(const void *arg, Oid argtype)
{
	return argtype == JSONBOID ||
		(cqrs_payload_type_is_composite(argtype) &&
		 !cqrs_event_is_type(argtype) &&
		 !cqrs_type_is(argtype, "cqrs_request"));
}

/*
 * Remove what the first argument names, unless it is of the other kind. Returns
 * whether anything was there. Raises 42704 if not, and the second argument does
 * not allow that; 42809.
 */
static bool
unregister(FunctionCallInfo fcinfo, CqrsCommandKind kind,
		   const char *function)
{
	const char *kind_name = cqrs_command_kind_name(kind);
	char	   *name = cqrs_name_arg(fcinfo, 0, kind_name);
	CqrsCommand *command;

	cqrs_require_writable(function);
	cqrs_admin_run(LOCK_COMMANDS, 0);
	command = cqrs_registry_command(name);
	if (command == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 1))
			return false;
		cqrs_nothing_to_remove(psprintf("%s \"%s\" is not registered", kind_name,
										name), "cqrs_commands");
	}
	if (is_query(command->kind) != is_query(kind))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a %s, not a %s", name,
						cqrs_command_kind_name(command->kind), kind_name),
				 errhint("Call %s.", unregistering(command->kind))));
	cqrs_admin_run("DELETE FROM cqrs.command WHERE command_name = $1",
				   1, CQRS_TEXT(name));
	return true;
}

static bool
is_query(CqrsCommandKind kind)
{
	return kind == CQRS_QUERY;
}

static const char *
unregistering(CqrsCommandKind kind)
{
	return is_query(kind) ? "cqrs_unregister_query()" :
		"cqrs_unregister_command()";
}

/*
 * The command of this kind that the first argument names. Raises 22004, 42883
 * or 42809.
 */
static CqrsCommand *
command_arg(FunctionCallInfo fcinfo, CqrsCommandKind kind)
{
	return cqrs_command_get(cqrs_name_arg(fcinfo, 0,
										  cqrs_command_kind_name(kind)),
							kind);
}

/*
 * The only command whose handler, the first one of a chain, takes this
 * composite type. Raises 42883 if there is none, 42725 if there are several.
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

		if (commands_by_type != NULL)
			hash_destroy(commands_by_type);
		commands_by_type = NULL;
		commands_by_type = cqrs_hash_create("cqrs commands by type",
											sizeof(Oid), sizeof(TypeEntry),
											TopMemoryContext);
		by_type_registry = registry;
		by_type_procs = cqrs_handler_generation();

		cqrs_registry_commands(&status);
		while ((command = hash_seq_search(&status)) != NULL)
		{
			if (command->kind != CQRS_COMMAND ||
				!cqrs_handler_find(&command->handlers[0]))
				continue;
			entry = hash_search(commands_by_type,
								&command->handlers[0].argtype,
								HASH_ENTER, &found);
			entry->command = command;
			entry->ambiguous = found;
		}
	}

	/* A value may outlive its type, if somebody drops that meanwhile. */
	entry = hash_search(commands_by_type, &typid, HASH_FIND, NULL);
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("no command takes type %s",
						format_type_extended(typid, -1,
											 FORMAT_TYPE_ALLOW_INVALID)),
				 errhint("Register one with cqrs_register_command(), or send the command by its name.")));
	if (entry->ambiguous)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
				 errmsg("more than one command takes type %s",
						format_type_extended(typid, -1,
											 FORMAT_TYPE_ALLOW_INVALID)),
				 errhint("Send the command by its name.")));
	return entry->command;
}
