/*-------------------------------------------------------------------------
 *
 * register.c
 *	  Registering sagas.
 *
 * The steps are stored as they are given, as JSON, with functions by their signatures.
 * Who owned these is stored beside them: if that is all that is different, it is the
 * same saga, and what is under way goes on with the functions' new owners. Anything
 * else makes a new version, with which new sagas begin.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/interval.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/event.h"
#include "registry/lookup.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "saga/definition.h"
#include "saga/awaited.h"

#define LOCK_SAGAS	"LOCK TABLE cqrs.saga_definition IN SHARE ROW EXCLUSIVE MODE"

/* A saga has at most this many steps. */
#define MOST_STEPS	1000

/* What is being registered. */
typedef struct Registration
{
	const char *saga;
	List	   *names;			/* of the steps so far */
	int			nsteps;
	bool		past_pivot;
	StringInfoData steps;		/* as JSON */
	StringInfoData owners;
} Registration;

static void add_steps(Registration *registration, ArrayType *array);
static void add_step(Registration *registration, const char *name,
					 const char *kind, Jsonb *options, bool within);
static void add_children(Registration *registration, const char *name,
						 Jsonb *options, StringInfo text);
static void add_functions(Registration *registration, const char *name,
						  Jsonb *options, StringInfo text);
static char *add_function(Registration *registration, const char *name,
						  Jsonb *options, const char *key, StringInfo text);
static void add_await(Registration *registration, const char *name,
					  Jsonb *options, StringInfo text);
static void check_timeouts(const Registration *registration, Datum steps);
static bool takes(const void *arg, Oid argtype);
static void check_interval(const Registration *registration,
						   const char *name, Jsonb *options, const char *key);
static void check_sqlstates(Jsonb *options);
static char *option(Jsonb *options, const char *key);
static char *topic_of_event(const char *saga, const char *topic,
							const char *event_name);
static bool store(const Registration *registration, Datum steps,
				  Datum owners, const char *on_topic, const char *on_event,
				  bool or_replace);

PG_FUNCTION_INFO_V1(cqrs_register_saga);
PG_FUNCTION_INFO_V1(cqrs_unregister_saga);

/*
 * cqrs_register_saga(saga_name, steps, on_event, on_topic, or_replace)
 */
Datum
cqrs_register_saga(PG_FUNCTION_ARGS)
{
	Registration registration = {0};
	char	   *on_event = PG_ARGISNULL(2) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *on_topic = PG_ARGISNULL(3) ? NULL :
	text_to_cstring(PG_GETARG_TEXT_PP(3));
	Datum		steps;
	Datum		owners;
	bool		changed;

	registration.saga = cqrs_name_arg(fcinfo, 0, "saga");
	cqrs_require_writable("cqrs_register_saga()");
	cqrs_name_check("saga", registration.saga);
	cqrs_arg_required(fcinfo, 1, "steps", "saga", registration.saga);
	initStringInfo(&registration.steps);
	initStringInfo(&registration.owners);
	appendStringInfoChar(&registration.steps, '[');
	appendStringInfoChar(&registration.owners, '{');
	add_steps(&registration, PG_GETARG_ARRAYTYPE_P(1));
	appendStringInfoChar(&registration.steps, ']');
	appendStringInfoChar(&registration.owners, '}');
	steps = DirectFunctionCall1(jsonb_in,
								CStringGetDatum(registration.steps.data));
	owners = DirectFunctionCall1(jsonb_in,
								 CStringGetDatum(registration.owners.data));
	check_timeouts(&registration, steps);

	if (on_event == NULL && on_topic != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("saga \"%s\" has on_topic without on_event",
						registration.saga)));
	if (on_event != NULL)
	{
		on_topic = topic_of_event(registration.saga, on_topic, on_event);
		if (cqrs_registry_saga_subscription(GetUserId()) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("role \"%s\" has no queue of sagas",
							GetUserNameFromId(GetUserId(), false)),
					 errdetail("Those that an event starts are run by the role that registers the saga."),
					 errhint("Create it with cqrs_create_saga_queue().")));
	}
	changed = store(&registration, steps, owners, on_topic, on_event,
					cqrs_flag_arg(fcinfo, 4));
	if (changed)
		cqrs_saga_routers_complete();
	PG_RETURN_BOOL(changed);
}

/*
 * cqrs_unregister_saga(saga_name, if_exists)
 */
Datum
cqrs_unregister_saga(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "saga");
	CqrsAdmin	admin;
	bool		removed;

	cqrs_require_writable("cqrs_unregister_saga()");
	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_SAGAS);
	removed = cqrs_admin_execute("UPDATE cqrs.saga_definition SET is_current = false WHERE saga_name = $1 AND is_current",
								 1, CQRS_TEXT(name)) > 0;
	cqrs_admin_end(&admin);
	if (!removed && !cqrs_flag_arg(fcinfo, 1))
		cqrs_nothing_to_remove(psprintf("saga \"%s\" is not registered", name),
							   "cqrs_sagas");
	PG_RETURN_BOOL(removed);
}

/*
 * Add the elements of a cqrs_saga_step[].
 */
static void
add_steps(Registration *registration, ArrayType *array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n = 0;
	int			i;

	if (ARR_NDIM(array) == 1)
		deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_DOUBLE,
						  &elements, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("saga \"%s\" has no steps", registration->saga)));
	for (i = 0; i < n; i++)
	{
		HeapTupleHeader header;
		HeapTupleData tuple;
		TupleDesc	desc;
		Datum		values[3];
		bool		isnull[3];

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("steps of saga \"%s\" must not be null",
							registration->saga)));
		header = DatumGetHeapTupleHeader(elements[i]);
		desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
									  HeapTupleHeaderGetTypMod(header));
		tuple.t_len = HeapTupleHeaderGetDatumLength(header);
		tuple.t_data = header;
		if (desc->natts != lengthof(values))
			elog(ERROR, "unexpected type of a step");
		heap_deform_tuple(&tuple, desc, values, isnull);
		ReleaseTupleDesc(desc);
		if (isnull[0] || isnull[1] || isnull[2])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("name and kind of a step of saga \"%s\" must not be null",
							registration->saga),
					 errhint("Make steps with cqrs_step(), cqrs_await(), cqrs_sleep(), cqrs_parallel() and cqrs_sub_saga().")));
		add_step(registration, TextDatumGetCString(values[0]),
				 TextDatumGetCString(values[1]), DatumGetJsonbP(values[2]),
				 false);
	}
}

/*
 * Add a step; within: it is part of a parallel one.
 */
static void
add_step(Registration *registration, const char *name, const char *kind,
		 Jsonb *options, bool within)
{
	StringInfoData text;
	ListCell   *lc;
	bool		pivot;
	char	   *value;
	Datum		step;

	cqrs_name_check("step", name);
	foreach(lc, registration->names)
		if (strcmp(lfirst(lc), name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("saga \"%s\" has two steps \"%s\"",
						registration->saga, name)));
	registration->names = lappend(registration->names, pstrdup(name));
	if (++registration->nsteps > MOST_STEPS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("saga \"%s\" has more than %d steps",
						registration->saga, MOST_STEPS)));
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of step \"%s\" are no JSON object", name)));
	if (within && strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_STEP]) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" cannot be done in parallel",
						name, registration->saga),
				 errhint("What is done in parallel is made with cqrs_step().")));

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"name\": ");
	escape_json(&text, name);
	appendStringInfoString(&text, ", \"kind\": ");
	escape_json(&text, kind);
	value = option(options, "pivot");
	pivot = value != NULL && strcmp(value, "true") == 0;
	if (within && pivot)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" is done in parallel, and so no point of no return",
						name, registration->saga),
				 errhint("Add a step behind the parallel ones.")));
	if (registration->past_pivot && option(options, "compensation") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" has a compensation that would never be called",
						name, registration->saga),
				 errdetail("It is behind the point of no return.")));

	if (strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_STEP]) == 0)
		add_functions(registration, name, options, &text);
	else if (strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_AWAIT]) == 0)
		add_await(registration, name, options, &text);
	else if (strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_SLEEP]) == 0)
	{
		if (option(options, "duration") == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("duration of step \"%s\" of saga \"%s\" must not be null",
							name, registration->saga)));
		check_interval(registration, name, options, "duration");
	}
	else if (strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_PARALLEL]) == 0)
		add_children(registration, name, options, &text);
	else if (strcmp(kind, cqrs_saga_step_kinds[CQRS_SAGA_SUB_SAGA]) == 0)
	{
		if (option(options, "saga_name") == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("saga of step \"%s\" of saga \"%s\" must not be null",
							name, registration->saga)));
		cqrs_name_check("saga", option(options, "saga_name"));
		(void) add_function(registration, name, options, "compensation", &text);
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" is of no kind that there is: \"%s\"",
						name, registration->saga, kind),
				 errhint("Make steps with cqrs_step(), cqrs_await(), cqrs_sleep(), cqrs_parallel() and cqrs_sub_saga().")));
	check_interval(registration, name, options, "retry_delay");
	check_interval(registration, name, options, "max_retry_delay");
	check_interval(registration, name, options, "timeout");
	check_sqlstates(options);
	registration->past_pivot |= pivot;
	appendStringInfoChar(&text, '}');

	step = DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(options),
							   DirectFunctionCall1(jsonb_in,
												   CStringGetDatum(text.data)));
	if (registration->steps.data[registration->steps.len - 1] != '[')
		appendStringInfoChar(&registration->steps, ',');
	(void) JsonbToCString(&registration->steps, &DatumGetJsonbP(step)->root,
						  VARSIZE(DatumGetPointer(step)));
}

/*
 * Add the steps of a parallel one; they are in the option "steps", as to_jsonb()
 * makes them of a cqrs_saga_step[].
 */
static void
add_children(Registration *registration, const char *name, Jsonb *options,
			 StringInfo text)
{
	Registration children = *registration;
	JsonbValue	array;
	int			n = 0;
	int			i;

	if (getKeyJsonValueFromContainer(&options->root, "steps", strlen("steps"),
									 &array) != NULL &&
		array.type == jbvBinary && JsonContainerIsArray(array.val.binary.data))
		n = JsonContainerSize(array.val.binary.data);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" has no steps", name,
						registration->saga)));
	initStringInfo(&children.steps);
	appendStringInfoChar(&children.steps, '[');
	for (i = 0; i < n; i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(array.val.binary.data, i);
		Jsonb	   *child = JsonbValueToJsonb(element);
		char	   *child_name = NULL;
		char	   *kind = NULL;
		JsonbValue	child_options;

		if (JB_ROOT_IS_OBJECT(child))
		{
			child_name = option(child, "step_name");
			kind = option(child, "kind");
		}
		if (child_name == NULL || kind == NULL ||
			getKeyJsonValueFromContainer(&child->root, "options",
										 strlen("options"),
										 &child_options) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("steps of step \"%s\" of saga \"%s\" must not be null",
							name, registration->saga)));
		add_step(&children, child_name, kind,
				 JsonbValueToJsonb(&child_options), true);
	}
	appendStringInfoChar(&children.steps, ']');
	appendStringInfo(text, ", \"steps\": %s", children.steps.data);
	registration->names = children.names;
	registration->nsteps = children.nsteps;
	registration->owners = children.owners;
}

/*
 * Add the functions of a step, in place of what the options say.
 */
static void
add_functions(Registration *registration, const char *name, Jsonb *options,
			  StringInfo text)
{
	char	   *attempts = option(options, "max_attempts");
	char	   *fallback;

	if (add_function(registration, name, options, "handler", text) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("handler of step \"%s\" of saga \"%s\" must not be null",
						name, registration->saga)));
	(void) add_function(registration, name, options, "compensation", text);
	fallback = add_function(registration, name, options, "fallback", text);
	if (add_function(registration, name, options, "fallback_compensation",
					 text) != NULL && fallback == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("step \"%s\" of saga \"%s\" has a fallback_compensation without a fallback",
						name, registration->saga)));

	/* Ids of fallbacks that are registered by themselves are positive. */
	if (fallback != NULL)
		appendStringInfo(text, ", \"breaker\": %d",
						 -1 - (int) (hash_bytes((const unsigned char *) psprintf("%s.%s", registration->saga, name),
												strlen(registration->saga) + strlen(name) + 1) >> 2));
	if (attempts != NULL && attempts[0] == '-')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts of step \"%s\" of saga \"%s\" must not be negative",
						name, registration->saga),
				 errhint("With 0, it is tried without end.")));
}

/*
 * Add the function that an option names, if it is given: its signature, and its owner.
 * Returns the signature, or NULL.
 */
static char *
add_function(Registration *registration, const char *name, Jsonb *options,
			 const char *key, StringInfo text)
{
	char	   *given = option(options, key);
	CqrsPlace	place = {.takes = takes};
	CqrsFunction function;

	if (given == NULL)
		return NULL;
	place.what = psprintf("the %s of a step", key);
	place.wanted = "It has one argument, jsonb or of a composite type, and returns void or one value.";
	cqrs_function_look_up(given, &place, &function);
	appendStringInfo(text, ", \"%s\": ", key);
	escape_json(text, function.signature);
	if (registration->owners.len > 1)
		appendStringInfoChar(&registration->owners, ',');
	escape_json(&registration->owners, function.signature);
	appendStringInfoString(&registration->owners, ": ");
	escape_json(&registration->owners, function.owner_name);
	return function.signature;
}

/*
 * Add what a step waits for: an event of this name has to come from one topic, or
 * whoever may emit to any could answer.
 */
static void
add_await(Registration *registration, const char *name, Jsonb *options,
		  StringInfo text)
{
	char	   *event_name = option(options, "event_name");
	char	   *topic = option(options, "topic");

	if (event_name == NULL && topic == NULL)
		return;
	if (event_name == NULL)
		event_name = pstrdup(name);
	cqrs_name_check("event", event_name);
	topic = topic_of_event(registration->saga, topic, event_name);
	appendStringInfoString(text, ", \"event_name\": ");
	escape_json(text, event_name);
	appendStringInfoString(text, ", \"topic\": ");
	escape_json(text, topic);
}

/*
 * Check where timeouts lead: to a step that comes later. Behind the point of no
 * return, where nothing is undone, there must be such a step.
 */
static void
check_timeouts(const Registration *registration, Datum steps)
{
	CqrsSagaDefinition *definition;
	bool		past_pivot = false;
	int			i;

	definition = cqrs_saga_definition_parse(registration->saga, steps,
											DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	for (i = 0; i < definition->nsteps; i++)
	{
		CqrsSagaStep *step = &definition->steps[i];

		past_pivot |= step->pivot;
		if (step->kind != CQRS_SAGA_AWAIT)
			continue;
		if (step->timeout_step != NULL &&
			(step->on_timeout <= i ||
			 definition->steps[step->on_timeout].parent >= 0))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("step \"%s\" of saga \"%s\" cannot go on with \"%s\" when its time is over",
							step->name, registration->saga,
							step->timeout_step),
					 errdetail("There is no step of this name behind it.")));
		if (past_pivot && step->interval != (Datum) 0 &&
			step->on_timeout < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("step \"%s\" of saga \"%s\" has a timeout, and cannot fail",
							step->name, registration->saga),
					 errdetail("Behind the point of no return, nothing is undone."),
					 errhint("Say with on_timeout with which step the saga goes on.")));
	}
}

/*
 * May a step's function have an argument of this type?
 */
static bool
takes(const void *arg, Oid argtype)
{
	return argtype == JSONBOID ||
		(cqrs_payload_type_is_composite(argtype) &&
		 !cqrs_event_is_type(argtype) &&
		 !cqrs_type_is(argtype, "cqrs_request"));
}

static void
check_interval(const Registration *registration, const char *name,
			   Jsonb *options, const char *key)
{
	char	   *text = option(options, key);
	Datum		interval;

	if (text == NULL)
		return;
	interval = DirectFunctionCall3(interval_in, CStringGetDatum(text),
								   ObjectIdGetDatum(InvalidOid),
								   Int32GetDatum(-1));
	if (INTERVAL_NOT_FINITE(DatumGetIntervalP(interval)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of step \"%s\" of saga \"%s\" must be finite",
						key, name, registration->saga)));
	if (cqrs_interval_is_negative(interval))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of step \"%s\" of saga \"%s\" must not be negative",
						key, name, registration->saga)));
}

static void
check_sqlstates(Jsonb *options)
{
	JsonbValue	array;
	Datum	   *codes;
	int			n;
	int			i;

	if (getKeyJsonValueFromContainer(&options->root, "final_sqlstates",
									 strlen("final_sqlstates"), &array) == NULL ||
		array.type !=jbvBinary || !JsonContainerIsArray(array.val.binary.data))
		return;
	n = JsonContainerSize(array.val.binary.data);
	codes = palloc(sizeof(Datum) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		JsonbValue *code = getIthJsonbValueFromContainer(array.val.binary.data, i);

		codes[i] = code->type == jbvString ?
			PointerGetDatum(cstring_to_text_with_len(code->val.string.val,
													 code->val.string.len)) :
			CStringGetTextDatum("null");
	}
	(void) cqrs_sqlstates_parse(PointerGetDatum(construct_array(codes, n, TEXTOID, -1, false, TYPALIGN_INT)),
								"final_sqlstates", &n);
}

/*
 * An option as text, or NULL if it is not given.
 */
static char *
option(Jsonb *options, const char *key)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(&options->root, key, strlen(key),
									 &value) == NULL)
		return NULL;
	switch (value.type)
	{
		case jbvString:
			return pnstrdup(value.val.string.val, value.val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value.val.numeric)));
		case jbvBool:
			return pstrdup(value.val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

/*
 * The topic from which an event is to come: the one given, or else that of its type.
 */
static char *
topic_of_event(const char *saga, const char *topic, const char *event_name)
{
	CqrsEventType *event_type;

	if (topic != NULL && cqrs_topic_get(topic)->runner != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("saga \"%s\" cannot wait for events of topic \"%s\"",
						saga, topic),
				 errdetail("What is in it is to be done, and is no event.")));
	if (topic != NULL)
		return cqrs_topic_get(topic)->name;
	event_type = cqrs_registry_event_type(event_name);
	if (event_type == NULL || event_type->topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga \"%s\" names event \"%s\", which is not registered on a topic",
						saga, event_name),
				 errhint("Register it with cqrs_register_event(), or name the topic.")));
	return event_type->topic->name;
}

/*
 * Store what is registered, unless it is there. Returns whether anything changed.
 * Raises 42710.
 */
static bool
store(const Registration *registration, Datum steps, Datum owners,
	  const char *on_topic, const char *on_event, bool or_replace)
{
	char	   *starter = GetUserNameFromId(GetUserId(), false);
	CqrsAdmin	admin;
	bool		exists;
	bool		is_same = false;
	bool		same_owners = false;
	bool		isnull;

	cqrs_admin_begin(&admin);
	cqrs_admin_ddl(LOCK_SAGAS);
	exists = cqrs_admin_execute("SELECT steps = $2 AND on_topic IS NOT DISTINCT FROM $3 AND on_event IS NOT DISTINCT FROM $4"
								" AND (on_event IS NULL OR starter = $5), owners = $6"
								" FROM cqrs.saga_definition WHERE saga_name = $1 AND is_current",
								6, CQRS_TEXT(registration->saga),
								CQRS_ARG(JSONBOID, steps),
								CQRS_NULLABLE(TEXTOID, on_topic ? CStringGetTextDatum(on_topic) : 0, on_topic == NULL),
								CQRS_NULLABLE(TEXTOID, on_event ? CStringGetTextDatum(on_event) : 0, on_event == NULL),
								CQRS_TEXT(starter),
								CQRS_ARG(JSONBOID, owners)) > 0;
	if (exists)
	{
		is_same = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1, &isnull));
		same_owners = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 2, &isnull));
	}
	if (exists && !is_same && !or_replace)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("saga \"%s\" is already registered, with other steps",
						registration->saga),
				 errhint("Use or_replace => true to have new ones begin with these. Those that are under way go on as they began.")));
	if (!exists || !same_owners)
		cqrs_admin_execute("UPDATE cqrs.saga_definition SET owners = owners || $2 WHERE saga_name = $1",
						   2, CQRS_TEXT(registration->saga),
						   CQRS_ARG(JSONBOID, owners));
	if (!is_same)
	{
		cqrs_admin_execute("UPDATE cqrs.saga_definition SET is_current = false WHERE saga_name = $1 AND is_current",
						   1, CQRS_TEXT(registration->saga));
		cqrs_admin_execute("INSERT INTO cqrs.saga_definition (saga_name, version, steps, owners, on_topic, on_event, starter)"
						   " SELECT $1, coalesce(max(version), 0) + 1, $2, $6, $3, $4, $5"
						   " FROM cqrs.saga_definition WHERE saga_name = $1",
						   6, CQRS_TEXT(registration->saga),
						   CQRS_ARG(JSONBOID, steps),
						   CQRS_NULLABLE(TEXTOID, on_topic ? CStringGetTextDatum(on_topic) : 0, on_topic == NULL),
						   CQRS_NULLABLE(TEXTOID, on_event ? CStringGetTextDatum(on_event) : 0, on_event == NULL),
						   CQRS_TEXT(starter),
						   CQRS_ARG(JSONBOID, owners));
	}
	cqrs_admin_end(&admin);
	return !is_same || !same_owners;
}
