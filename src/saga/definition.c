/*-------------------------------------------------------------------------
 *
 * definition.c
 *	  What a saga does: its steps.
 *
 * A definition is a row of cqrs.saga_definition, which does not change but for
 * whether it is current. It is read when it is first needed, and kept, with what the
 * languages keep of its functions, until the registry changes: whatever changes
 * a definition changes that. What is in use then stays until it no longer is.
 *
 * Steps are numbered from 0; those within a parallel step come right behind it, and
 * have numbers, too.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/interval.h"
#include "extension/catalog.h"
#include "extension/row.h"
#include "registry/registry.h"
#include "saga/definition.h"

/* Columns of cqrs.saga_definition. */
enum
{
	DEFINITION_SAGA_NAME = 1,
	DEFINITION_VERSION,
	DEFINITION_STEPS,
	DEFINITION_OWNERS,
	DEFINITION_ON_TOPIC,
	DEFINITION_ON_EVENT,
	DEFINITION_STARTER,
	DEFINITION_IS_CURRENT,
	DEFINITION_REGISTERED_AT,
	DEFINITION_COLUMNS = DEFINITION_REGISTERED_AT
};

/* A step's fallback has a breaker as one that is registered by default. */
#define FALLBACK_MAX_FAILURES	5
#define FALLBACK_RESET_AFTER	60000

PG_FUNCTION_INFO_V1(cqrs_saga_steps);

const char *const cqrs_saga_step_kinds[] = {
	[CQRS_SAGA_STEP] = "step",
	[CQRS_SAGA_AWAIT] = "await",
	[CQRS_SAGA_SLEEP] = "sleep",
	[CQRS_SAGA_PARALLEL] = "parallel",
	[CQRS_SAGA_SUB_SAGA] = "saga",
};

/* What was read: a list, as there are few. */
static MemoryContext kept = NULL;
static List *definitions = NIL;
static bool has_all = false;	/* these are all of them */
static uint64 kept_registry = 0;

static int	holders = 0;		/* who may use what is kept */
static List *outdated = NIL;	/* contexts, to be deleted when nobody does */

static void begin(void);
static CqrsSagaDefinition *look_up(const char *name, int32 version);
static CqrsSagaDefinition *read_row(const Datum *values, const bool *nulls);
static void parse_steps(CqrsSagaDefinition *definition, JsonbContainer *array,
						int parent);
static int	count_steps(JsonbContainer *array);
static void parse_step(CqrsSagaDefinition *definition, CqrsSagaStep *step,
					   JsonbContainer *object);
static void parse_handler(const CqrsSagaDefinition *definition, CqrsSagaStep *step,
						  JsonbContainer *object);
static bool parse_function(const CqrsSagaDefinition *definition,
						   CqrsHandler *handler, JsonbContainer *object,
						   const char *key);
static void parse_sqlstates(CqrsSagaStep *step, JsonbContainer *object);
static char *get_string(JsonbContainer *object, const char *key);
static int	get_int(JsonbContainer *object, const char *key);
static Datum get_interval(JsonbContainer *object, const char *key);
static int64 get_milliseconds(JsonbContainer *object, const char *key);
static bool get_bool(JsonbContainer *object, const char *key);

/*
 * A version of a saga's definition, or NULL. Valid until the caller may have called
 * functions of others, unless it holds the definitions.
 */
CqrsSagaDefinition *
cqrs_saga_definition(const char *name, int32 version)
{
	ListCell   *lc;

	begin();
	foreach(lc, definitions)
	{
		CqrsSagaDefinition *definition = lfirst(lc);

		if (definition->version == version &&
			strcmp(definition->name, name) == 0)
			return definition;
	}
	return look_up(name, version);
}

/*
 * The definition that new sagas of this name begin with, or NULL; valid as that of
 * cqrs_saga_definition().
 */
CqrsSagaDefinition *
cqrs_saga_definition_current(const char *name)
{
	ListCell   *lc;

	begin();
	foreach(lc, definitions)
	{
		CqrsSagaDefinition *definition = lfirst(lc);

		if (definition->is_current && strcmp(definition->name, name) == 0)
			return definition;
	}
	return has_all ? NULL : look_up(name, 0);
}

/*
 * All of all versions; the list and they are valid as that of cqrs_saga_definition().
 */
List *
cqrs_saga_definitions(void)
{
	List	   *rows = NIL;
	ListCell   *lc;

	begin();
	if (!has_all)
	{
		CqrsScan	scan;
		Datum		values[DEFINITION_COLUMNS];
		bool		nulls[DEFINITION_COLUMNS];

		cqrs_scan_begin(&scan, CQRS_REL_SAGA_DEFINITION,
						CQRS_REL_SAGA_DEFINITION_PKEY, AccessShareLock, NULL,
						ForwardScanDirection, 0, NULL);
		while (cqrs_scan_read(&scan, values, nulls))
		{
			CqrsSagaDefinition *definition;
			bool		known = false;

			foreach(lc, definitions)
			{
				definition = lfirst(lc);
				known |= definition->version == DatumGetInt32(values[DEFINITION_VERSION - 1]) &&
					strcmp(definition->name, TextDatumGetCString(values[DEFINITION_SAGA_NAME - 1])) == 0;
			}
			if (!known)
				rows = lappend(rows, read_row(values, nulls));
		}
		cqrs_scan_end(&scan, AccessShareLock);
		foreach(lc, rows)
		{
			MemoryContext oldcontext = MemoryContextSwitchTo(kept);

			definitions = lappend(definitions, lfirst(lc));
			MemoryContextSwitchTo(oldcontext);
		}
		has_all = true;
	}
	return definitions;
}

/*
 * cqrs.saga_steps(saga_name, version)
 */
Datum
cqrs_saga_steps(PG_FUNCTION_ARGS)
{
	CqrsSagaDefinition *definition;
	Datum	   *names;
	int			i;

	definition = cqrs_saga_definition(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									  PG_GETARG_INT32(1));
	if (definition == NULL)
		PG_RETURN_NULL();
	names = palloc(sizeof(Datum) * Max(definition->nsteps, 1));
	for (i = 0; i < definition->nsteps; i++)
		names[i] = CStringGetTextDatum(definition->steps[i].name);
	PG_RETURN_ARRAYTYPE_P(construct_array(names, definition->nsteps, TEXTOID, -1,
										  false, TYPALIGN_INT));
}

/*
 * The number of a step, or -1.
 */
int
cqrs_saga_find_step(const CqrsSagaDefinition *definition, const char *name)
{
	int			i;

	for (i = 0; i < definition->nsteps; i++)
		if (strcmp(definition->steps[i].name, name) == 0)
			return i;
	return -1;
}

/*
 * The number of the step that comes when this one is done; that of steps: none.
 */
int
cqrs_saga_step_after(const CqrsSagaDefinition *definition, int step)
{
	return step + definition->steps[step].nchildren + 1;
}

/*
 * From here on, what is returned above stays, until it is released.
 */
void
cqrs_saga_definitions_hold(void)
{
	holders++;
}

void
cqrs_saga_definitions_release(void)
{
	ListCell   *lc;

	if (--holders > 0)
		return;
	foreach(lc, outdated)
		MemoryContextDelete(lfirst(lc));
	list_free(outdated);
	outdated = NIL;
}

/*
 * See that what is kept is as the registry is.
 */
static void
begin(void)
{
	uint64		registry = cqrs_registry_generation();

	if (kept != NULL && kept_registry == registry)
		return;
	if (kept != NULL && holders > 0)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

		outdated = lappend(outdated, kept);
		MemoryContextSwitchTo(oldcontext);
	}
	else if (kept != NULL)
		MemoryContextDelete(kept);
	definitions = NIL;
	has_all = false;
	kept = AllocSetContextCreate(TopMemoryContext, "cqrs sagas",
								 ALLOCSET_SMALL_SIZES);
	kept_registry = registry;
}

/*
 * Read a definition, and keep it; version 0: the current one. Returns NULL if there
 * is none.
 */
static CqrsSagaDefinition *
look_up(const char *name, int32 version)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[DEFINITION_COLUMNS];
	bool		nulls[DEFINITION_COLUMNS];
	CqrsSagaDefinition *result = NULL;

	ScanKeyInit(&keys[0], DEFINITION_SAGA_NAME, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	cqrs_key_int4(&keys[1], DEFINITION_VERSION, version);
	cqrs_scan_begin(&scan, CQRS_REL_SAGA_DEFINITION,
					CQRS_REL_SAGA_DEFINITION_PKEY, AccessShareLock, NULL,
					BackwardScanDirection, version == 0 ? 1 : 2, keys);
	while (result == NULL && cqrs_scan_read(&scan, values, nulls))
		if (version != 0 || DatumGetBool(values[DEFINITION_IS_CURRENT - 1]))
			result = read_row(values, nulls);
	cqrs_scan_end(&scan, AccessShareLock);
	if (result != NULL)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(kept);

		definitions = lappend(definitions, result);
		MemoryContextSwitchTo(oldcontext);
	}
	return result;
}

/*
 * The definition in a row, in what is kept.
 */
static CqrsSagaDefinition *
read_row(const Datum *values, const bool *nulls)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(kept);
	CqrsSagaDefinition *definition;

	definition = cqrs_saga_definition_parse(TextDatumGetCString(values[DEFINITION_SAGA_NAME - 1]),
											values[DEFINITION_STEPS - 1],
											values[DEFINITION_OWNERS - 1]);
	definition->version = DatumGetInt32(values[DEFINITION_VERSION - 1]);
	definition->is_current = DatumGetBool(values[DEFINITION_IS_CURRENT - 1]);
	if (!nulls[DEFINITION_ON_TOPIC - 1] && !nulls[DEFINITION_ON_EVENT - 1])
	{
		definition->on_topic =
			TextDatumGetCString(values[DEFINITION_ON_TOPIC - 1]);
		definition->on_event =
			TextDatumGetCString(values[DEFINITION_ON_EVENT - 1]);
	}
	definition->starter = TextDatumGetCString(values[DEFINITION_STARTER - 1]);
	MemoryContextSwitchTo(oldcontext);
	return definition;
}

/*
 * A definition from its steps and owners, as the table has them, in the current
 * memory context. What a restore put there may be anything: what is missing or has another
 * type is as if it was not given.
 */
CqrsSagaDefinition *
cqrs_saga_definition_parse(const char *name, Datum steps, Datum owners)
{
	CqrsSagaDefinition *definition = palloc0(sizeof(CqrsSagaDefinition));
	Jsonb	   *array = DatumGetJsonbPCopy(steps);
	Jsonb	   *object = DatumGetJsonbPCopy(owners);
	int			i;

	definition->name = pstrdup(name);
	definition->owners = &object->root;
	if (!JB_ROOT_IS_ARRAY(array) || !JB_ROOT_IS_OBJECT(object))
		return definition;
	definition->steps = palloc0(sizeof(CqrsSagaStep) *
								Max(count_steps(&array->root), 1));
	parse_steps(definition, &array->root, -1);

	/* Where a timeout leads is known only now. */
	for (i = 0; i < definition->nsteps; i++)
		if (definition->steps[i].timeout_step != NULL)
			definition->steps[i].on_timeout =
				cqrs_saga_find_step(definition,
									definition->steps[i].timeout_step);
	return definition;
}

/*
 * Add the steps of an array.
 */
static void
parse_steps(CqrsSagaDefinition *definition, JsonbContainer *array, int parent)
{
	int			n = JsonContainerSize(array);
	int			i;

	for (i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);
		CqrsSagaStep *step;
		int			number;
		JsonbValue	children;

		if (value->type !=jbvBinary || !JsonContainerIsObject(value->val.binary.data))
			continue;
		number = definition->nsteps++;
		step = &definition->steps[number];
		step->parent = parent;
		parse_step(definition, step, value->val.binary.data);
		if (parent >= 0)
			definition->steps[parent].nchildren++;
		else if (step->kind == CQRS_SAGA_PARALLEL &&
				 getKeyJsonValueFromContainer(value->val.binary.data, "steps",
											  strlen("steps"), &children) != NULL &&
				 children.type == jbvBinary &&
				 JsonContainerIsArray(children.val.binary.data))
			parse_steps(definition, children.val.binary.data, number);
	}
}

/*
 * At most how many steps an array and those in it have.
 */
static int
count_steps(JsonbContainer *array)
{
	int			n = JsonContainerSize(array);
	int			result = n;
	int			i;

	for (i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);
		JsonbValue	children;

		if (value->type == jbvBinary && JsonContainerIsObject(value->val.binary.data) &&
			getKeyJsonValueFromContainer(value->val.binary.data, "steps",
										 strlen("steps"), &children) != NULL &&
			children.type == jbvBinary &&
			JsonContainerIsArray(children.val.binary.data))
			result += JsonContainerSize(children.val.binary.data);
	}
	return result;
}

static void
parse_step(CqrsSagaDefinition *definition, CqrsSagaStep *step,
		   JsonbContainer *object)
{
	char	   *kind = get_string(object, "kind");
	int			i;

	step->name = get_string(object, "name");
	if (step->name == NULL)
		step->name = "";
	for (i = 0; kind != NULL && i < lengthof(cqrs_saga_step_kinds); i++)
		if (strcmp(kind, cqrs_saga_step_kinds[i]) == 0)
			step->kind = i;
	step->on_timeout = -1;
	switch (step->kind)
	{
		case CQRS_SAGA_STEP:
			parse_handler(definition, step, object);
			break;
		case CQRS_SAGA_AWAIT:
			step->topic = get_string(object, "topic");
			step->event_name = get_string(object, "event_name");
			if (step->event_name == NULL)
				step->event_name = step->name;
			step->interval = get_interval(object, "timeout");

			step->timeout_step = get_string(object, "on_timeout");
			break;
		case CQRS_SAGA_SLEEP:
			step->interval = get_interval(object, "duration");
			break;
		case CQRS_SAGA_PARALLEL:
			break;
		case CQRS_SAGA_SUB_SAGA:
			step->saga_name = get_string(object, "saga_name");
			if (step->saga_name == NULL)
				step->saga_name = "";
			break;
	}
	step->max_attempts = Max(get_int(object, "max_attempts"), 0);
	step->retry_delay = Max(get_milliseconds(object, "retry_delay"), 1);
	step->max_retry_delay = get_milliseconds(object, "max_retry_delay");
	parse_sqlstates(step, object);
	step->has_compensation = parse_function(definition, &step->compensation, object,
											"compensation");
	step->has_fallback_compensation =
		parse_function(definition, &step->fallback_compensation, object,
					   "fallback_compensation");
}

/*
 * A step's function, and how it is called.
 */
static void
parse_handler(const CqrsSagaDefinition *definition, CqrsSagaStep *step,
			  JsonbContainer *object)
{
	CqrsHandler fallback;

	if (!parse_function(definition, &step->handler, object, "handler"))
		cqrs_handler_init(&step->handler, "", NULL, CurrentMemoryContext);
	if (parse_function(definition, &fallback, object, "fallback"))
	{
		CqrsFallback *entry = palloc0(sizeof(CqrsFallback));

		strlcpy(entry->primary, step->handler.signature, CQRS_MAX_SIGNATURE);
		entry->handler = fallback;
		entry->nsqlstates = -1;
		entry->breaker.fallback_id = get_int(object, "breaker");
		entry->breaker.max_failures = entry->breaker.fallback_id == 0 ? 0 :
			FALLBACK_MAX_FAILURES;
		entry->breaker.reset_after = FALLBACK_RESET_AFTER;
		step->handler.fallback = entry;
	}
	step->pivot = get_bool(object, "pivot");
	step->timeout = get_milliseconds(object, "timeout");
}

/*
 * The function under a key.
 */
static bool
parse_function(const CqrsSagaDefinition *definition, CqrsHandler *handler,
			   JsonbContainer *object, const char *key)
{
	char	   *signature = get_string(object, key);

	if (signature == NULL)
		return false;
	cqrs_handler_init(handler, signature,
					  get_string(definition->owners, signature),
					  CurrentMemoryContext);
	return true;
}

static void
parse_sqlstates(CqrsSagaStep *step, JsonbContainer *object)
{
	JsonbValue	array;
	int			i;
	int			n;

	if (getKeyJsonValueFromContainer(object, "final_sqlstates",
									 strlen("final_sqlstates"), &array) == NULL ||
		array.type !=jbvBinary || !JsonContainerIsArray(array.val.binary.data))
		return;
	n = JsonContainerSize(array.val.binary.data);
	step->final = palloc(sizeof(CqrsSqlstate) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array.val.binary.data, i);

		if (value->type == jbvString &&
			cqrs_sqlstate_parse(pnstrdup(value->val.string.val,
										 value->val.string.len),
								&step->final[step->nfinal]))
			step->nfinal++;
	}
}

/*
 * A string of an object, or NULL.
 */
static char *
get_string(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(object, key, strlen(key), &value) == NULL ||
		value.type !=jbvString)
		return NULL;
	return pnstrdup(value.val.string.val, value.val.string.len);
}

static int
get_int(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(object, key, strlen(key), &value) == NULL ||
		value.type !=jbvNumeric)
		return 0;
	return DatumGetInt32(DirectFunctionCall1(numeric_int4,
											 NumericGetDatum(value.val.numeric)));
}

static bool
get_bool(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return getKeyJsonValueFromContainer(object, key, strlen(key), &value) != NULL &&
		value.type == jbvBool && value.val.boolean;
}

/*
 * An interval, or 0.
 */
static Datum
get_interval(JsonbContainer *object, const char *key)
{
	char	   *text = get_string(object, key);

	if (text == NULL)
		return (Datum) 0;
	return DirectFunctionCall3(interval_in, CStringGetDatum(text),
							   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}

static int64
get_milliseconds(JsonbContainer *object, const char *key)
{
	Datum		interval = get_interval(object, key);

	return interval == (Datum) 0 ? 0 : cqrs_milliseconds(interval);
}
