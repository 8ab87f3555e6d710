/*-------------------------------------------------------------------------
 *
 * payload.c
 *	  Payloads: jsonb from and to SQL values.
 *
 * From jsonb to a composite type is stricter than jsonb_populate_record():
 *
 * 1. A key that the type does not have is an error. A key that is missing,
 *	  and JSON's null, are NULL.
 * 2. A composite takes a JSON object, an array a JSON array, json and jsonb
 *	  take anything, and every other type takes a JSON string, number or
 *	  boolean, by its text form and the type's input function.
 * 3. Nested arrays are the dimensions of an SQL array, unless its elements
 *	  take JSON arrays themselves; then they are its elements.
 * 4. A domain's constraints are checked, also on NULL and on missing keys.
 * 5. An error names the value by its path, such as items[2].qty; elements
 *	  count from 0, as in jsonpath.
 *
 * Memory
 *
 * How a type is converted is kept for the life of the backend, one Target
 * for each type asked for, with those of its columns and elements below it.
 * Only the columns of a composite type can change: they are checked against
 * the type cache each time, and built again if it has others. Constraints of
 * a domain are checked by the server, which notices their changes itself.
 *
 * A domain's CHECK, and an input function, may call functions that come back
 * here. A Target holds state of the functions it calls, which cannot be in
 * use twice, so such an inner conversion makes its own Targets for itself.
 *
 * A conversion's own memory is in a context that goes with it; only its
 * result is in the caller's.
 *
 * Failure
 *
 * An error of a function that was called may have left that function's state
 * half-way. The Targets are thrown away then, by the next conversion.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "nodes/primnodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "payload.h"

/* What comes from the payload is cut in messages, to so many bytes. */
#define MAX_KEY_SHOWN		100
#define MAX_MESSAGE_SHOWN	1000

/* What a type takes. */
typedef enum Shape
{
	SHAPE_SCALAR,				/* a string, number or boolean */
	SHAPE_JSON,					/* anything, as text */
	SHAPE_JSONB,				/* anything, as it is */
	SHAPE_ARRAY,				/* an array */
	SHAPE_COMPOSITE				/* an object */
} Shape;

/* How a JSON value becomes a value of one type, at one place. */
typedef struct Target
{
	Oid			typid;			/* hash key of those of a cache */
	char	   *type_name;		/* for messages */
	Shape		shape;
	Oid			base_typid;		/* typid, or the domain's base type */
	int32		typmod;
	MemoryContext context;		/* where all of this is */
	void	   *domain_state;	/* domain_check()'s */

	/* SHAPE_SCALAR; a domain's input function checks its constraints */
	FmgrInfo	input;
	Oid			typioparam;

	/* SHAPE_ARRAY */
	struct Target *element;
	int16		element_length;
	bool		element_byval;
	char		element_align;

	/* SHAPE_COMPOSITE; row_id 0 if not built yet */
	uint64		row_id;			/* the type cache's tupDesc_identifier */
	struct Row *row;
} Target;

/* A column that is not dropped. */
typedef struct Column
{
	int			index;			/* in the tuple descriptor, from 0 */
	const char *key;
	int			key_length;
	Target		target;
} Column;

/* The columns of a composite type. */
typedef struct Row
{
	MemoryContext context;		/* where all of this is */
	TupleDesc	desc;
	int			ncolumns;
	Column	   *columns;		/* in the type's order */
	Column	  **by_key;			/* in the order of jsonb's keys */
} Row;

/* Targets by type. */
typedef struct Cache
{
	MemoryContext context;		/* where all of this is */
	HTAB	   *targets;
} Cache;

/* One step of the path to the value that is being converted. */
typedef struct Step
{
	const char *key;			/* NULL: an array's element */
	int			index;
	const char *type_name;
} Step;

/* One call of cqrs_payload_to_composite(). */
typedef struct Conversion
{
	const char *kind;
	const char *name;
	Cache	   *cache;
	bool		owns_session_cache;
	MemoryContext result_context;
	MemoryContext scratch;
	const char *type_name;		/* of the whole */
	Step	   *steps;			/* heap: read after the stack has gone */
	int			nsteps;
	int			max_steps;
	bool		final;			/* the error is worded by us already */
} Conversion;

/* The elements of an array, as they are gathered. */
typedef struct Elements
{
	Datum	   *values;
	bool	   *nulls;
	int			count;
	int			size;
	int			ndims;
	int			dims[MAXDIM];
} Elements;

static Cache *session_cache = NULL;
static bool session_cache_used = false; /* by a conversion up the stack */
static bool session_cache_broken = false;

static Cache *cache_acquire(Conversion *conv);
static Cache *cache_create(MemoryContext parent);
static Target *cache_target(Cache *cache, Oid typid);
static void target_init(Target *target, Oid typid, int32 typmod);
static Row *target_row(Target *target);
static int	compare_keys(const char *a, int a_length, const char *b,
						 int b_length);
static int	compare_columns(const void *a, const void *b);
static Datum convert_guarded(Conversion *conv, Jsonb *payload, Oid typid);
static Datum convert(Conversion *conv, Target *target, JsonbValue *value,
					 bool *isnull);
static Datum convert_null(Target *target);
static Datum convert_scalar(Conversion *conv, Target *target,
							JsonbValue *value);
static Datum convert_json(JsonbValue *value);
static Datum convert_composite(Conversion *conv, Target *target,
							   JsonbValue *value);
static void match_keys(Conversion *conv, Target *target, Row *row,
					   JsonbContainer *object, JsonbValue *fields);
static Datum convert_array(Conversion *conv, Target *target,
						   JsonbValue *value);
static void find_dimensions(Conversion *conv, Target *target,
							JsonbContainer *array, Elements *elements);
static void gather_elements(Conversion *conv, Target *target, int dim,
							JsonbContainer *array, Elements *elements);
static bool is_object(const JsonbValue *value);
static bool is_array(const JsonbValue *value);
static const char *describe(const JsonbValue *value);
static void push_step(Conversion *conv, const char *key, int index,
					  const char *type_name);
static void pop_step(Conversion *conv);
static void append_path(StringInfo buf, const Conversion *conv);
static char *failure_message(const Conversion *conv);
static int	errmismatch(Conversion *conv);
static void report_unknown_key(Conversion *conv, Target *target, Row *row,
							   const JsonbValue *key);
static void reword_error(const Conversion *conv, ErrorData *edata);
static char *clip(const char *str, int length, int limit);

/*
 * Raise 22023 unless the payload is a JSON object.
 */
void
cqrs_payload_check_object(Jsonb *payload, const char *kind, const char *name)
{
	JsonbValue	value;

	if (JB_ROOT_IS_OBJECT(payload))
		return;
	if (!JB_ROOT_IS_SCALAR(payload))
	{
		value.type = jbvBinary;
		value.val.binary.data = &payload->root;
		value.val.binary.len = VARSIZE(payload) - VARHDRSZ;
	}
	else
		value = *getIthJsonbValueFromContainer(&payload->root, 0);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("payload of %s \"%s\" is not a JSON object", kind, name),
			 errdetail("The payload is %s.", describe(&value)),
			 errhint("Pass an object, such as {\"key\": \"value\"}.")));
}

/*
 * Convert a payload to a value of the type typid, which is a named composite
 * or a domain over one; see cqrs_payload_type_is_composite().
 *
 * The result is a composite Datum, which never is NULL, in the current
 * context; nothing else is left there. The payload must not be toasted.
 *
 * Raises 22023 if the payload is not an object, has a key that the type does
 * not have, or an object or array where another type is wanted; and whatever
 * the conversion of a value raises. Of that, data exceptions and constraint
 * violations (classes 22 and 23) keep their SQLSTATE and hint, but get a
 * message that names the value, with their own message in the detail. All
 * other errors pass as they are.
 */
Datum
cqrs_payload_to_composite(Jsonb *payload, Oid typid, const char *kind,
						  const char *name)
{
	Conversion	conv;
	Datum		result;

	cqrs_payload_check_object(payload, kind, name);

	memset(&conv, 0, sizeof(conv));
	conv.kind = kind;
	conv.name = name;
	conv.result_context = CurrentMemoryContext;
	conv.scratch = AllocSetContextCreate(CurrentMemoryContext, "cqrs payload",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(conv.scratch);
	conv.cache = cache_acquire(&conv);
	result = convert_guarded(&conv, payload, typid);
	MemoryContextSwitchTo(conv.result_context);
	MemoryContextDelete(conv.scratch);
	return result;
}

/*
 * What SQL's to_jsonb() gives for a value of type typid. jsonb is returned as
 * it is, without a copy; else the result is in the current context, with
 * whatever to_jsonb() leaves there.
 *
 * NULL and void are no value: *result_null is true and the result 0.
 * Raises what to_jsonb() raises.
 */
Datum
cqrs_payload_from_value(Datum value, bool isnull, Oid typid, bool *result_null)
{
	FmgrInfo	flinfo;

	*result_null = isnull || typid == VOIDOID;
	if (*result_null)
		return (Datum) 0;
	if (typid == JSONBOID)
		return value;

	/* A built-in function's FmgrInfo is cheaper to make than to find. */
	cqrs_payload_init_to_jsonb(&flinfo, typid);
	return FunctionCall1(&flinfo, value);
}

/*
 * Make an FmgrInfo of to_jsonb() for values of type typid, in the current
 * context.
 */
void
cqrs_payload_init_to_jsonb(FmgrInfo *flinfo, Oid typid)
{
	Param	   *arg = makeNode(Param);

	arg->paramkind = PARAM_EXTERN;
	arg->paramtype = typid;
	arg->paramtypmod = -1;
	arg->location = -1;
	fmgr_info(F_TO_JSONB, flinfo);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
											 list_make1(arg), InvalidOid,
											 InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   flinfo);
}

/*
 * Is this a named composite type or a domain over one? Not so for record, nor
 * for a type that does not exist.
 */
bool
cqrs_payload_type_is_composite(Oid typid)
{
	char		typtype = get_typtype(typid);

	if (typtype == TYPTYPE_DOMAIN)
		typtype = get_typtype(getBaseType(typid));
	return typtype == TYPTYPE_COMPOSITE;
}

/*
 * The session's Targets, or if they are in use, some for this conversion
 * alone.
 */
static Cache *
cache_acquire(Conversion *conv)
{
	if (session_cache_used)
		return cache_create(conv->scratch);

	if (session_cache_broken)
	{
		Cache	   *broken = session_cache;

		session_cache = NULL;
		session_cache_broken = false;
		if (broken != NULL)
			MemoryContextDelete(broken->context);
	}
	if (session_cache == NULL)
		session_cache = cache_create(TopMemoryContext);
	conv->owns_session_cache = true;
	return session_cache;
}

static Cache *
cache_create(MemoryContext parent)
{
	MemoryContext context;
	Cache	   *cache;
	HASHCTL		ctl;

	context = AllocSetContextCreate(parent, "cqrs payload types",
									ALLOCSET_SMALL_SIZES);
	cache = MemoryContextAlloc(context, sizeof(Cache));
	cache->context = context;
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Target);
	ctl.hcxt = context;
	cache->targets = hash_create("cqrs payload types", 16, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return cache;
}

/*
 * The Target of a whole payload.
 */
static Target *
cache_target(Cache *cache, Oid typid)
{
	Target	   *target = hash_search(cache->targets, &typid, HASH_FIND, NULL);
	MemoryContext oldcontext;
	Target		init;

	if (target != NULL)
		return target;

	oldcontext = MemoryContextSwitchTo(cache->context);
	target_init(&init, typid, -1);
	target = hash_search(cache->targets, &typid, HASH_ENTER, NULL);
	*target = init;
	MemoryContextSwitchTo(oldcontext);
	return target;
}

/*
 * Fill a Target; what belongs to it goes to the current context.
 */
static void
target_init(Target *target, Oid typid, int32 typmod)
{
	Oid			element;
	Oid			input;

	check_stack_depth();

	memset(target, 0, sizeof(Target));
	target->typid = typid;
	target->type_name = format_type_with_typemod(typid, typmod);
	target->typmod = typmod;
	target->base_typid = getBaseTypeAndTypmod(typid, &target->typmod);
	target->context = CurrentMemoryContext;

	/* int2vector and its like are no arrays that we could make. */
	element = get_element_type(target->base_typid);
	if (OidIsValid(element) && get_array_type(element) != target->base_typid)
		element = InvalidOid;

	if (target->base_typid == JSONOID)
		target->shape = SHAPE_JSON;
	else if (target->base_typid == JSONBOID)
		target->shape = SHAPE_JSONB;
	else if (OidIsValid(element))
	{
		target->shape = SHAPE_ARRAY;
		target->element = palloc(sizeof(Target));
		target_init(target->element, element, target->typmod);
		get_typlenbyvalalign(element, &target->element_length,
							 &target->element_byval, &target->element_align);
	}
	else if (get_typtype(target->base_typid) == TYPTYPE_COMPOSITE)
		target->shape = SHAPE_COMPOSITE;
	else
	{
		target->shape = SHAPE_SCALAR;
		getTypeInputInfo(typid, &input, &target->typioparam);
		fmgr_info(input, &target->input);
	}
}

/*
 * The columns that the composite type has now.
 */
static Row *
target_row(Target *target)
{
	TypeCacheEntry *typentry = lookup_type_cache(target->base_typid,
												 TYPECACHE_TUPDESC);
	MemoryContext context;
	MemoryContext oldcontext;
	uint64		row_id;
	Row		   *row;
	int			i;

	if (typentry->tupDesc == NULL)
		elog(ERROR, "type %s is not composite", target->type_name);
	if (target->row_id == typentry->tupDesc_identifier)
		return target->row;

	if (target->row_id != 0)
	{
		target->row_id = 0;
		MemoryContextDelete(target->row->context);
	}

	context = AllocSetContextCreate(target->context, "cqrs payload columns",
									ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(context);

	/* Before anything that looks into the catalogs and so changes *typentry. */
	row = palloc0(sizeof(Row));
	row_id = typentry->tupDesc_identifier;
	row->desc = CreateTupleDescCopy(typentry->tupDesc);
	row->context = context;
	row->columns = palloc(sizeof(Column) * (row->desc->natts + 1));
	row->by_key = palloc(sizeof(Column *) * (row->desc->natts + 1));
	for (i = 0; i < row->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(row->desc, i);
		Column	   *column = &row->columns[row->ncolumns];

		if (att->attisdropped)
			continue;
		column->index = i;
		column->key = NameStr(att->attname);
		column->key_length = strlen(column->key);
		target_init(&column->target, att->atttypid, att->atttypmod);
		row->by_key[row->ncolumns++] = column;
	}
	qsort(row->by_key, row->ncolumns, sizeof(Column *), compare_columns);

	MemoryContextSwitchTo(oldcontext);
	target->row = row;
	target->row_id = row_id;
	return row;
}

/*
 * The order in which jsonb stores an object's keys.
 */
static int
compare_keys(const char *a, int a_length, const char *b, int b_length)
{
	if (a_length != b_length)
		return a_length < b_length ? -1 : 1;
	return memcmp(a, b, a_length);
}

static int
compare_columns(const void *a, const void *b)
{
	const Column *x = *(Column *const *) a;
	const Column *y = *(Column *const *) b;

	return compare_keys(x->key, x->key_length, y->key, y->key_length);
}

/*
 * Convert, and let errors out as cqrs_payload_to_composite() promises.
 */
static Datum
convert_guarded(Conversion *conv, Jsonb *payload, Oid typid)
{
	Datum		result = (Datum) 0;

	if (conv->owns_session_cache)
		session_cache_used = true;
	PG_TRY();
	{
		Target	   *target = cache_target(conv->cache, typid);
		JsonbValue	value;
		bool		isnull;

		if (target->shape != SHAPE_COMPOSITE)
			elog(ERROR, "type %s is not composite", target->type_name);
		conv->type_name = target->type_name;
		value.type = jbvBinary;
		value.val.binary.data = &payload->root;
		value.val.binary.len = VARSIZE(payload) - VARHDRSZ;
		result = convert(conv, target, &value, &isnull);
	}
	PG_CATCH();
	{
		int			category = ERRCODE_TO_CATEGORY(geterrcode());

		MemoryContextSwitchTo(conv->result_context);
		if (conv->owns_session_cache)
		{
			session_cache_used = false;
			session_cache_broken = true;
		}
		if (!conv->final && conv->type_name != NULL &&
			(category == ERRCODE_DATA_EXCEPTION ||
			 category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION))
		{
			ErrorData  *edata = CopyErrorData();

			FlushErrorState();
			reword_error(conv, edata);
			ReThrowError(edata);
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (conv->owns_session_cache)
		session_cache_used = false;
	return result;
}

/*
 * Convert one value, at any depth. The result is in the current context, but
 * that of the whole payload in the result's.
 */
static Datum
convert(Conversion *conv, Target *target, JsonbValue *value, bool *isnull)
{
	Datum		result = (Datum) 0;

	check_stack_depth();

	*isnull = (value->type == jbvNull);
	if (*isnull)
		return convert_null(target);

	switch (target->shape)
	{
		case SHAPE_SCALAR:
			/* The input function has checked the domain, if it is one. */
			return convert_scalar(conv, target, value);
		case SHAPE_JSON:
			result = convert_json(value);
			break;
		case SHAPE_JSONB:
			result = JsonbPGetDatum(JsonbValueToJsonb(value));
			break;
		case SHAPE_ARRAY:
			result = convert_array(conv, target, value);
			break;
		case SHAPE_COMPOSITE:
			result = convert_composite(conv, target, value);
			break;
	}
	if (target->typid != target->base_typid)
		domain_check(result, false, target->typid, &target->domain_state,
					 target->context);
	return result;
}

/*
 * NULL, which only a domain can refuse.
 */
static Datum
convert_null(Target *target)
{
	if (target->typid == target->base_typid)
		return (Datum) 0;

	/* domain_check() wants a type that has a binary form; a scalar may not. */
	if (target->shape == SHAPE_SCALAR)
		return InputFunctionCall(&target->input, NULL, target->typioparam,
								 target->typmod);
	domain_check((Datum) 0, true, target->typid, &target->domain_state,
				 target->context);
	return (Datum) 0;
}

static Datum
convert_scalar(Conversion *conv, Target *target, JsonbValue *value)
{
	char	   *str;
	Datum		result;

	if (value->type == jbvString)
		str = pnstrdup(value->val.string.val, value->val.string.len);
	else if (value->type == jbvNumeric)
	{
		result = NumericGetDatum(value->val.numeric);
		str = DatumGetCString(DirectFunctionCall1(numeric_out, result));
	}
	else if (value->type == jbvBool)
		str = pstrdup(value->val.boolean ? "true" : "false");
	else
		ereport(ERROR,
				(errmismatch(conv),
				 errdetail("The value is %s, not a string, number or boolean.",
						   describe(value))));

	result = InputFunctionCall(&target->input, str, target->typioparam,
							   target->typmod);
	pfree(str);
	return result;
}

/*
 * A value of type json: the text of the value.
 */
static Datum
convert_json(JsonbValue *value)
{
	Jsonb	   *jsonb = JsonbValueToJsonb(value);
	StringInfoData buf;

	/* Leave room for the header of the result. */
	initStringInfo(&buf);
	appendStringInfoSpaces(&buf, VARHDRSZ);
	JsonbToCString(&buf, &jsonb->root, VARSIZE(jsonb));
	SET_VARSIZE(buf.data, buf.len);
	pfree(jsonb);
	return PointerGetDatum(buf.data);
}

static Datum
convert_composite(Conversion *conv, Target *target, JsonbValue *value)
{
	Row		   *row;
	JsonbValue *fields;
	Datum	   *values;
	bool	   *nulls;
	HeapTuple	tuple;
	int			i;

	if (!is_object(value))
		ereport(ERROR,
				(errmismatch(conv),
				 errdetail("The value is %s, not an object.",
						   describe(value))));

	row = target_row(target);
	fields = palloc(sizeof(JsonbValue) * (row->ncolumns + 1));
	match_keys(conv, target, row, value->val.binary.data, fields);

	values = palloc0(sizeof(Datum) * (row->desc->natts + 1));
	nulls = palloc(sizeof(bool) * (row->desc->natts + 1));
	memset(nulls, true, sizeof(bool) * row->desc->natts);
	for (i = 0; i < row->ncolumns; i++)
	{
		Column	   *column = &row->columns[i];

		push_step(conv, column->key, 0, column->target.type_name);
		values[column->index] = convert(conv, &column->target, &fields[i],
										&nulls[column->index]);
		pop_step(conv);
	}

	if (conv->nsteps == 0)
		MemoryContextSwitchTo(conv->result_context);
	tuple = heap_form_tuple(row->desc, values, nulls);
	MemoryContextSwitchTo(conv->scratch);
	return HeapTupleGetDatum(tuple);
}

/*
 * Find the value of each column, null where there is none, into fields; they
 * are in the order of row->columns. Raises 22023 if a key is left.
 */
static void
match_keys(Conversion *conv, Target *target, Row *row,
		   JsonbContainer *object, JsonbValue *fields)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	int			next = 0;
	int			i;

	for (i = 0; i < row->ncolumns; i++)
		fields[i].type = jbvNull;

	/* Both are in the same order. */
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		Column	   *column = NULL;
		int			cmp = 1;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		while (next < row->ncolumns && cmp > 0)
		{
			column = row->by_key[next++];
			cmp = compare_keys(key.val.string.val, key.val.string.len,
							   column->key, column->key_length);
		}
		if (cmp != 0)
			report_unknown_key(conv, target, row, &key);
		fields[column - row->columns] = value;
	}
}

static Datum
convert_array(Conversion *conv, Target *target, JsonbValue *value)
{
	Elements	elements;
	int			lower_bounds[MAXDIM];
	int			i;

	if (!is_array(value))
		ereport(ERROR,
				(errmismatch(conv),
				 errdetail("The value is %s, not an array.",
						   describe(value))));

	find_dimensions(conv, target, value->val.binary.data, &elements);
	elements.count = 0;
	elements.size = Max(elements.dims[0], 1);
	elements.values = palloc(sizeof(Datum) * elements.size);
	elements.nulls = palloc(sizeof(bool) * elements.size);
	gather_elements(conv, target, 0, value->val.binary.data, &elements);

	for (i = 0; i < elements.ndims; i++)
		lower_bounds[i] = 1;
	return PointerGetDatum(construct_md_array(elements.values, elements.nulls,
											  elements.ndims, elements.dims,
											  lower_bounds,
											  target->element->typid,
											  target->element_length,
											  target->element_byval,
											  target->element_align));
}

/*
 * The dimensions that the first elements have; gather_elements() finds out
 * whether the others have the same.
 */
static void
find_dimensions(Conversion *conv, Target *target, JsonbContainer *array,
				Elements *elements)
{
	Shape		shape = target->element->shape;
	bool		nests = (shape == SHAPE_SCALAR || shape == SHAPE_COMPOSITE);

	elements->ndims = 0;
	for (;;)
	{
		JsonbValue *first;

		if (elements->ndims == MAXDIM)
			ereport(ERROR,
					(errmismatch(conv),
					 errdetail("Arrays are nested to more than %d dimensions.",
							   MAXDIM)));
		elements->dims[elements->ndims++] = JsonContainerSize(array);
		if (!nests || JsonContainerSize(array) == 0)
			return;
		first = getIthJsonbValueFromContainer(array, 0);
		if (!is_array(first))
			return;
		array = first->val.binary.data;
	}
}

/*
 * Add the elements of a JSON array, which is one of dimension dim.
 */
static void
gather_elements(Conversion *conv, Target *target, int dim,
				JsonbContainer *array, Elements *elements)
{
	Target	   *element = target->element;
	bool		innermost = (dim == elements->ndims - 1);
	JsonbIterator *it = JsonbIteratorInit(array);
	JsonbIteratorToken token;
	JsonbValue	value;
	int			index = 0;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;

		CHECK_FOR_INTERRUPTS();
		push_step(conv, NULL, index++,
				  innermost ? element->type_name : target->type_name);
		if (!innermost)
		{
			JsonbContainer *nested = value.val.binary.data;

			if (!is_array(&value))
				ereport(ERROR,
						(errmismatch(conv),
						 errdetail("The value is %s, but the first one is an array.",
								   describe(&value))));
			if ((int) JsonContainerSize(nested) != elements->dims[dim + 1])
				ereport(ERROR,
						(errmismatch(conv),
						 errdetail("The nested array is of %d elements, but the first one of %d.",
								   (int) JsonContainerSize(nested),
								   elements->dims[dim + 1])));
			gather_elements(conv, target, dim + 1, nested, elements);
		}
		else
		{
			if (elements->count == elements->size)
			{
				elements->size *= 2;
				elements->values = repalloc(elements->values,
											sizeof(Datum) * elements->size);
				elements->nulls = repalloc(elements->nulls,
										   sizeof(bool) * elements->size);
			}
			elements->values[elements->count] =
				convert(conv, element, &value,
						&elements->nulls[elements->count]);
			elements->count++;
		}
		pop_step(conv);
	}
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}

static bool
is_array(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsArray(value->val.binary.data);
}

/*
 * What a value is, with its article.
 */
static const char *
describe(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvString:
			return "a string";
		case jbvNumeric:
			return "a number";
		case jbvBool:
			return "a boolean";
		default:
			return is_array(value) ? "an array" : "an object";
	}
}

/*
 * Go down to the value of a key, or to an element if key is NULL. The strings
 * are kept by reference.
 */
static void
push_step(Conversion *conv, const char *key, int index, const char *type_name)
{
	Step	   *step;

	if (conv->nsteps == conv->max_steps)
	{
		conv->max_steps = Max(conv->max_steps * 2, 8);
		if (conv->steps == NULL)
			conv->steps = MemoryContextAlloc(conv->scratch,
											 sizeof(Step) * conv->max_steps);
		else
			conv->steps = repalloc(conv->steps,
								   sizeof(Step) * conv->max_steps);
	}
	step = &conv->steps[conv->nsteps++];
	step->key = key;
	step->index = index;
	step->type_name = type_name;
}

static void
pop_step(Conversion *conv)
{
	Assert(conv->nsteps > 0);
	conv->nsteps--;
}

static void
append_path(StringInfo buf, const Conversion *conv)
{
	int			i;

	for (i = 0; i < conv->nsteps; i++)
	{
		const Step *step = &conv->steps[i];

		if (step->key == NULL)
			appendStringInfo(buf, "[%d]", step->index);
		else
			appendStringInfo(buf, "%s%s", i > 0 ? "." : "", step->key);
	}
}

/*
 * The message for a failure at the present step, in the current context. Does
 * not look into the catalogs: it is also called after an error.
 */
static char *
failure_message(const Conversion *conv)
{
	StringInfoData path;

	if (conv->nsteps == 0)
		return psprintf("payload of %s \"%s\" does not convert to type %s",
						conv->kind, conv->name, conv->type_name);
	initStringInfo(&path);
	append_path(&path, conv);
	return psprintf("value of key \"%s\" in payload of %s \"%s\" does not convert to type %s",
					path.data, conv->kind, conv->name,
					conv->steps[conv->nsteps - 1].type_name);
}

/*
 * For ereport(): 22023 and the message, for a JSON value of a sort that the
 * type does not take.
 */
static int
errmismatch(Conversion *conv)
{
	conv->final = true;
	errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	errmsg_internal("%s", failure_message(conv));
	return 0;					/* return value does not matter */
}

static void
report_unknown_key(Conversion *conv, Target *target, Row *row,
				   const JsonbValue *key)
{
	StringInfoData path;
	StringInfoData hint;
	int			i;

	initStringInfo(&path);
	append_path(&path, conv);
	if (path.len > 0)
		appendStringInfoChar(&path, '.');
	appendStringInfoString(&path, clip(key->val.string.val,
									   key->val.string.len, MAX_KEY_SHOWN));

	initStringInfo(&hint);
	if (row->ncolumns == 0)
		appendStringInfo(&hint, "Type %s has no keys.", target->type_name);
	for (i = 0; i < row->ncolumns; i++)
	{
		if (i == 0)
			appendStringInfo(&hint, "The keys of type %s are",
							 target->type_name);
		appendStringInfo(&hint, "%s \"%s\"", i > 0 ? "," : "",
						 row->columns[i].key);
	}
	if (row->ncolumns > 0)
		appendStringInfoChar(&hint, '.');

	conv->final = true;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("payload of %s \"%s\" has an unknown key \"%s\"",
					conv->kind, conv->name, path.data),
			 errhint("%s", hint.data)));
}

/*
 * Make a conversion's error name the value; see cqrs_payload_to_composite().
 */
static void
reword_error(const Conversion *conv, ErrorData *edata)
{
	char	   *detail = "value cannot be converted";

	if (edata->message != NULL)
		detail = clip(edata->message, strlen(edata->message),
					  MAX_MESSAGE_SHOWN);
	if (edata->detail != NULL)
		detail = psprintf("%s. %s", detail,
						  clip(edata->detail, strlen(edata->detail),
							   MAX_MESSAGE_SHOWN));
	edata->detail = detail;
	edata->message = failure_message(conv);
}

/*
 * A copy of at most limit bytes, and a mark if that is not all.
 */
static char *
clip(const char *str, int length, int limit)
{
	int			shown;

	if (length <= limit)
		return pnstrdup(str, length);
	shown = pg_mbcliplen(str, length, limit);
	return psprintf("%.*s...", shown, str);
}
