/*-------------------------------------------------------------------------
 *
 * event_type.c
 *	  Event types, and who handles their events in the transaction: registered
 *	  and removed.
 *
 * All of them wait for each other, and for who drops a topic: by the lock on
 * cqrs.event_type, handlers' too. So an event stays while somebody registers a
 * handler of it, and its topic while somebody registers an event.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/event.h"
#include "log/topic.h"
#include "mediator/event_type.h"
#include "registry/lookup.h"
#include "registry/payload.h"
#include "registry/registry.h"

#define LOCK_EVENT_TYPES \
	"LOCK TABLE cqrs.event_type IN SHARE ROW EXCLUSIVE MODE"

static Oid	payload_type_arg(FunctionCallInfo fcinfo, int n, const char *name);
static void check_handlers(const char *name, Oid payload_type);
static void set_place(CqrsPlace *place, const char *name,
					  const Oid *payload_type);
static bool takes(const void *payload_type, Oid argtype);

PG_FUNCTION_INFO_V1(cqrs_register_event);
PG_FUNCTION_INFO_V1(cqrs_unregister_event);
PG_FUNCTION_INFO_V1(cqrs_register_event_handler);
PG_FUNCTION_INFO_V1(cqrs_unregister_event_handler);

/*
 * cqrs_register_event(event_name, topic, payload_type, or_replace)
 */
Datum
cqrs_register_event(PG_FUNCTION_ARGS)
{
	/* A type that was dropped, and made anew, is the same. */
	static const CqrsRegistration registration = {
		.lock = LOCK_EVENT_TYPES,
		.look = "SELECT topic_id IS NOT DISTINCT FROM $2 AND"
		" (payload_type = $3 OR NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = payload_type)), payload_type = $3"
		" FROM cqrs.event_type WHERE event_name = $1",
		.insert = "INSERT INTO cqrs.event_type (event_name, topic_id, payload_type) VALUES ($1, $2, $3)",
		.confirm = "UPDATE cqrs.event_type SET payload_type = $3 WHERE event_name = $1",
		.replace = "UPDATE cqrs.event_type SET topic_id = $2, payload_type = $3, registered_at = now() WHERE event_name = $1"
	};
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	Oid			payload_type;
	bool		or_replace = cqrs_flag_arg(fcinfo, 3);
	int32		topic_id = 0;

	cqrs_require_writable("cqrs_register_event()");
	cqrs_name_check("event", name);
	payload_type = payload_type_arg(fcinfo, 2, name);

	cqrs_admin_run(LOCK_EVENT_TYPES, 0);
	if (or_replace)
		check_handlers(name, payload_type);
	if (!PG_ARGISNULL(1))
		topic_id = cqrs_topic_obtain(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_BOOL(cqrs_admin_register(&registration,
									   psprintf("event \"%s\" is already registered with another topic or payload type",
												name),
									   or_replace, 3, CQRS_TEXT(name),
									   CQRS_NULLABLE(INT4OID, Int32GetDatum(topic_id), topic_id == 0),
									   CQRS_ARG(REGTYPEOID, ObjectIdGetDatum(payload_type))));
}

/*
 * cqrs_unregister_event(event_name, if_exists)
 */
Datum
cqrs_unregister_event(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");

	cqrs_require_writable("cqrs_unregister_event()");
	cqrs_admin_run(LOCK_EVENT_TYPES, 0);
	if (!cqrs_registry_has_event_type(name))
	{
		if (cqrs_flag_arg(fcinfo, 1))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("event \"%s\" is not registered", name),
							   "cqrs_event_types");
	}
	cqrs_admin_run("DELETE FROM cqrs.event_handler WHERE event_name = $1",
				   1, CQRS_TEXT(name));
	cqrs_admin_run("DELETE FROM cqrs.event_type WHERE event_name = $1",
				   1, CQRS_TEXT(name));
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_register_event_handler(event_name, handler)
 */
Datum
cqrs_register_event_handler(PG_FUNCTION_ARGS)
{
	static const CqrsRegistration registration = {
		.lock = LOCK_EVENT_TYPES,
		.look = "SELECT true, owner = $3 FROM cqrs.event_handler WHERE event_name = $1 AND handler = $2",
		.insert = "INSERT INTO cqrs.event_handler (event_name, handler, owner) VALUES ($1, $2, $3)",
		.confirm = "UPDATE cqrs.event_handler SET owner = $3 WHERE event_name = $1 AND handler = $2"
	};
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	CqrsEventType *event_type;
	Oid			payload_type;
	CqrsRegistryMark mark;
	CqrsPlace	place;
	CqrsFunction function;

	cqrs_require_writable("cqrs_register_event_handler()");
	cqrs_arg_required(fcinfo, 1, "handler", "event", name);
	cqrs_admin_run(LOCK_EVENT_TYPES, 0);
	mark = cqrs_registry_mark();
	event_type = cqrs_event_type_get(name);
	cqrs_event_type_require_payload(event_type);
	payload_type = event_type->payload_type;
	cqrs_registry_give_back(mark);

	set_place(&place, name, &payload_type);
	cqrs_function_look_up(text_to_cstring(PG_GETARG_TEXT_PP(1)), &place,
						  &function);
	PG_RETURN_BOOL(cqrs_admin_register(&registration, NULL, false, 3,
									   CQRS_TEXT(name),
									   CQRS_TEXT(function.signature),
									   CQRS_TEXT(function.owner_name)));
}

/*
 * cqrs_unregister_event_handler(event_name, handler, if_exists)
 */
Datum
cqrs_unregister_event_handler(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	bool		if_exists = cqrs_flag_arg(fcinfo, 2);
	char	   *handler;
	char	   *signature;
	CqrsAdmin	admin;

	cqrs_require_writable("cqrs_unregister_event_handler()");
	cqrs_arg_required(fcinfo, 1, "handler", "event", name);
	handler = text_to_cstring(PG_GETARG_TEXT_PP(1));
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_EVENT_TYPES);
	if (!if_exists && !cqrs_registry_has_event_type(name))
		cqrs_nothing_to_remove(psprintf("event \"%s\" is not registered", name),
							   "cqrs_event_types");
	cqrs_admin_execute("SELECT handler FROM cqrs.event_handler WHERE event_name = $1",
					   1, CQRS_TEXT(name));
	signature = cqrs_function_choose(handler,
									 psprintf("handlers of event \"%s\"",
											  name));
	if (signature != NULL)
		cqrs_admin_execute("DELETE FROM cqrs.event_handler WHERE event_name = $1 AND handler = $2",
						   2, CQRS_TEXT(name), CQRS_TEXT(signature));
	else if (!if_exists)
		cqrs_nothing_to_remove(psprintf("function %s is not a handler of event \"%s\"",
										handler, name),
							   "cqrs_event_handlers");
	cqrs_admin_end(&admin);
	PG_RETURN_BOOL(signature != NULL);
}

/*
 * Raise 42704 if the payload type of an event is gone.
 */
void
cqrs_event_type_require_payload(const CqrsEventType *event_type)
{
	if (event_type->payload_type != JSONBOID &&
		!cqrs_payload_type_is_composite(event_type->payload_type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("payload type of event \"%s\" does not exist",
						event_type->name),
				 errhint("Register the event again, with a type that exists.")));
}

/*
 * Raise 42P13 if a handler of this event cannot take an argument of this type;
 * 42704 if the event's own type is gone.
 */
void
cqrs_event_type_check_handler(const CqrsEventType *event_type,
							  const char *signature, Oid argtype)
{
	CqrsPlace	place;

	if (takes(&event_type->payload_type, argtype))
		return;
	cqrs_event_type_require_payload(event_type);
	set_place(&place, event_type->name, &event_type->payload_type);
	cqrs_function_refuse(signature, &place,
						 psprintf("takes type %s", cqrs_type_name(argtype)));
}

/*
 * The type that an argument names, for payloads of an event; jsonb if it is not
 * given. Raises 42704 there is none in the search_path; 42804 it cannot be one of
 * payloads; 42601 what is wrong with the name.
 */
static Oid
payload_type_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	char	   *type_name;
	Oid			payload_type;

	if (PG_ARGISNULL(n))
		return JSONBOID;
	type_name = text_to_cstring(PG_GETARG_TEXT_PP(n));
	payload_type = cqrs_type_of_name(type_name);
	if (!OidIsValid(payload_type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("payload type \"%s\" of event \"%s\" does not exist",
						type_name, name),
				 errhint("It is looked for in the schemas of search_path. Name it with its schema if it is in another one.")));
	if (payload_type != JSONBOID &&
		!cqrs_payload_type_is_composite(payload_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("payload of event \"%s\" cannot be of type %s", name,
						cqrs_type_name(payload_type)),
				 errhint("The payload type is jsonb or a composite type.")));
	if (cqrs_type_is_temporary(payload_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("payload of event \"%s\" cannot be of type %s", name,
						cqrs_type_name(payload_type)),
				 errdetail("The type is in a temporary schema.")));
	return payload_type;
}

/*
 * Could the handlers that an event has still be called, if its payloads were of
 * this type? Raises 42P13: else each of its events would be an error. One that is
 * not there does not count.
 */
static void
check_handlers(const char *name, Oid payload_type)
{
	CqrsEventType *event_type = cqrs_registry_event_type(name);
	CqrsEventHandler *handler;

	if (event_type == NULL)
		return;
	for (handler = event_type->handlers; handler != NULL;
		 handler = handler->next)
		if (cqrs_handler_find(&handler->handler) &&
			!takes(&payload_type, handler->handler.argtype))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
					 errmsg("payload of event \"%s\" cannot be of type %s",
							name, cqrs_type_name(payload_type)),
					 errdetail("Its handler %s takes type %s.",
							   handler->handler.signature,
							   cqrs_type_name(handler->handler.argtype)),
					 errhint("Remove the handler first, with cqrs_unregister_event_handler().")));
}

/*
 * What can handle an event; the place is good for as long as the other two.
 */
static void
set_place(CqrsPlace *place, const char *name, const Oid *payload_type)
{
	memset(place, 0, sizeof(*place));
	place->what = psprintf("a handler of event \"%s\"", name);
	place->wanted = psprintf("A handler of this event has one argument, of type cqrs_event%s%s, and returns void or one value.",
							 *payload_type == JSONBOID ? " or jsonb" :
							 ", jsonb or ",
							 *payload_type == JSONBOID ? "" :
							 cqrs_type_name(*payload_type));
	place->takes = takes;
	place->arg = payload_type;
}

/*
 * May a handler have an argument of this type?
 */
static bool
takes(const void *payload_type, Oid argtype)
{
	return argtype == JSONBOID || argtype == *(const Oid *) payload_type ||
		cqrs_event_is_type(argtype);
}
