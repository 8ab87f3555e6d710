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
 * A conversion's own memory is in a context that goes with it; only its
 * result is in the caller's.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "nodes/primnodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/rethrow.h"
#include "extension/catalog.h"
#include "registry/payload.h"
#include "registry/payload_path.h"
#include "registry/payload_type.h"

/* One call of cqrs_payload_to_composite(). */
typedef struct Conversion
{
	CqrsPayloadTypes *types;
	MemoryContext result_context;
	MemoryContext scratch;
	CqrsPayloadPath path;
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

static Datum convert_guarded(Conversion *conv, Jsonb *payload, Oid typid);
static Datum convert(Conversion *conv, CqrsPayloadType *type,
					 JsonbValue *value, bool *isnull);
static Datum convert_null(CqrsPayloadType *type);
static Datum convert_scalar(Conversion *conv, CqrsPayloadType *type,
							JsonbValue *value);
static Datum convert_json(JsonbValue *value);
static Datum convert_composite(Conversion *conv, CqrsPayloadType *type,
							   JsonbValue *value);
static void match_keys(Conversion *conv, CqrsPayloadType *type,
					   CqrsPayloadRow *row, JsonbContainer *object,
					   JsonbValue *fields);
static Datum convert_array(Conversion *conv, CqrsPayloadType *type,
						   JsonbValue *value);
static void find_dimensions(Conversion *conv, CqrsPayloadType *type,
							JsonbContainer *array, Elements *elements);
static void gather_elements(Conversion *conv, CqrsPayloadType *type, int dim,
							JsonbContainer *array, Elements *elements);
static bool is_object(const JsonbValue *value);
static bool is_array(const JsonbValue *value);
static const char *describe(const JsonbValue *value);

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
 * the conversion of a value raises. Data exceptions and constraint violations
 * (classes 22 and 23) keep their SQLSTATE and hint, but get a message that
 * names the value, with their own message in the detail. All other errors pass
 * unchanged.
 */
Datum
cqrs_payload_to_composite(Jsonb *payload, Oid typid, const char *kind,
						  const char *name)
{
	Conversion	conv;
	Datum		result;

	cqrs_payload_check_object(payload, kind, name);

	memset(&conv, 0, sizeof(conv));
	conv.path.kind = kind;
	conv.path.name = name;
	conv.result_context = CurrentMemoryContext;
	conv.scratch = AllocSetContextCreate(CurrentMemoryContext, "cqrs payload",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(conv.scratch);
	conv.path.context = conv.scratch;
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
 * For NULL and void, *result_null is true and the result 0. Raises what
 * to_jsonb() raises.
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

	/*
	 * Making a built-in function's FmgrInfo is cheaper than looking for a
	 * kept one.
	 */
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
 * Is this a named composite type or a domain over one? False for record, and
 * for a type that does not exist.
 */
bool
cqrs_payload_type_is_composite(Oid typid)
{
	char		typtype = get_typtype(typid);

	if (typtype == TYPTYPE_DOMAIN && cqrs_type_lock(typid))
	{
		typtype = get_typtype(getBaseType(typid));
		cqrs_type_unlock(typid);
	}
	return typtype == TYPTYPE_COMPOSITE;
}

/*
 * Convert, and raise errors as cqrs_payload_to_composite() promises.
 */
static Datum
convert_guarded(Conversion *conv, Jsonb *payload, Oid typid)
{
	Datum		result = (Datum) 0;

	conv->types = cqrs_payload_types_acquire(conv->scratch);
	PG_TRY();
	{
		CqrsPayloadType *type = cqrs_payload_type(conv->types, typid);
		JsonbValue	value;
		bool		isnull;

		if (type == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("payload type of %s \"%s\" does not exist",
							conv->path.kind, conv->path.name)));
		if (type->shape != SHAPE_COMPOSITE)
			elog(ERROR, "type %s is not composite", type->type_name);
		conv->path.type_name = type->type_name;

		value.type = jbvBinary;
		value.val.binary.data = &payload->root;
		value.val.binary.len = VARSIZE(payload) - VARHDRSZ;
		result = convert(conv, type, &value, &isnull);
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(conv->result_context);
		int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

		cqrs_payload_types_release(conv->types, true);
		if (!conv->path.final && conv->path.type_name != NULL &&
			(category == ERRCODE_DATA_EXCEPTION ||
			 category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION))
			cqrs_payload_reword_error(&conv->path, error);
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	cqrs_payload_types_release(conv->types, false);
	return result;
}

/*
 * Convert one value, at any depth. The result is in the current context,
 * except that of the whole payload, which is in the caller's.
 */
static Datum
convert(Conversion *conv, CqrsPayloadType *type, JsonbValue *value,
		bool *isnull)
{
	Datum		result = (Datum) 0;

	check_stack_depth();

	*isnull = (value->type == jbvNull);
	if (*isnull)
		return convert_null(type);

	switch (type->shape)
	{
		case SHAPE_SCALAR:
			/* The input function has checked a domain's constraints. */
			return convert_scalar(conv, type, value);
		case SHAPE_JSON:
			result = convert_json(value);
			break;
		case SHAPE_JSONB:
			result = JsonbPGetDatum(JsonbValueToJsonb(value));
			break;
		case SHAPE_ARRAY:
			result = convert_array(conv, type, value);
			break;
		case SHAPE_COMPOSITE:
			result = convert_composite(conv, type, value);
			break;
	}
	if (type->typid != type->base_typid)
		domain_check(result, false, type->typid, &type->domain_state,
					 type->context);
	return result;
}

/*
 * Convert to NULL, which only a domain can refuse.
 */
static Datum
convert_null(CqrsPayloadType *type)
{
	if (type->typid == type->base_typid)
		return (Datum) 0;

	/*
	 * domain_check() needs a type with a binary form, which a scalar may
	 * lack.
	 */
	if (type->shape == SHAPE_SCALAR)
		return InputFunctionCall(&type->input, NULL, type->typioparam,
								 type->typmod);
	domain_check((Datum) 0, true, type->typid, &type->domain_state,
				 type->context);
	return (Datum) 0;
}

static Datum
convert_scalar(Conversion *conv, CqrsPayloadType *type, JsonbValue *value)
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
				(cqrs_payload_errmismatch(&conv->path),
				 errdetail("The value is %s, not a string, number or boolean.",
						   describe(value))));

	result = InputFunctionCall(&type->input, str, type->typioparam,
							   type->typmod);
	pfree(str);
	return result;
}

/*
 * Convert to json: the text of the value.
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
convert_composite(Conversion *conv, CqrsPayloadType *type, JsonbValue *value)
{
	CqrsPayloadRow *row;
	JsonbValue *fields;
	Datum	   *values;
	bool	   *nulls;
	HeapTuple	tuple;
	int			i;

	if (!is_object(value))
		ereport(ERROR,
				(cqrs_payload_errmismatch(&conv->path),
				 errdetail("The value is %s, not an object.",
						   describe(value))));

	row = cqrs_payload_row(type);
	fields = palloc(sizeof(JsonbValue) * (row->ncolumns + 1));
	match_keys(conv, type, row, value->val.binary.data, fields);

	values = palloc0(sizeof(Datum) * (row->desc->natts + 1));
	nulls = palloc(sizeof(bool) * (row->desc->natts + 1));
	memset(nulls, true, sizeof(bool) * row->desc->natts);
	for (i = 0; i < row->ncolumns; i++)
	{
		CqrsPayloadColumn *column = &row->columns[i];

		cqrs_payload_path_push(&conv->path, column->key, 0,
							   column->type.type_name);
		values[column->index] = convert(conv, &column->type, &fields[i],
										&nulls[column->index]);
		cqrs_payload_path_pop(&conv->path);
	}

	if (conv->path.nsteps == 0)
		MemoryContextSwitchTo(conv->result_context);
	tuple = heap_form_tuple(row->desc, values, nulls);
	MemoryContextSwitchTo(conv->scratch);
	return HeapTupleGetDatum(tuple);
}

/*
 * Put the value of each column into fields, in the order of row->columns; null
 * where there is none. Raises 22023 if a key is left.
 */
static void
match_keys(Conversion *conv, CqrsPayloadType *type, CqrsPayloadRow *row,
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

	/* Keys and columns are in the same order. */
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		CqrsPayloadColumn *column = NULL;
		int			cmp = 1;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		while (next < row->ncolumns && cmp > 0)
		{
			column = row->by_key[next++];
			cmp = cqrs_payload_compare_keys(key.val.string.val,
											key.val.string.len, column->key,
											column->key_length);
		}
		if (cmp != 0)
			cqrs_payload_unknown_key(&conv->path, type, row, &key);
		fields[column - row->columns] = value;
	}
}

static Datum
convert_array(Conversion *conv, CqrsPayloadType *type, JsonbValue *value)
{
	Elements	elements;
	int			lower_bounds[MAXDIM];
	int			i;

	if (!is_array(value))
		ereport(ERROR,
				(cqrs_payload_errmismatch(&conv->path),
				 errdetail("The value is %s, not an array.",
						   describe(value))));

	find_dimensions(conv, type, value->val.binary.data, &elements);
	elements.count = 0;
	elements.size = Max(elements.dims[0], 1);
	elements.values = palloc(sizeof(Datum) * elements.size);
	elements.nulls = palloc(sizeof(bool) * elements.size);
	gather_elements(conv, type, 0, value->val.binary.data, &elements);

	for (i = 0; i < elements.ndims; i++)
		lower_bounds[i] = 1;
	return PointerGetDatum(construct_md_array(elements.values, elements.nulls,
											  elements.ndims, elements.dims,
											  lower_bounds,
											  type->element->typid,
											  type->element_length,
											  type->element_byval,
											  type->element_align));
}

/*
 * The dimensions that the first elements have; gather_elements() finds out
 * whether the others have the same.
 */
static void
find_dimensions(Conversion *conv, CqrsPayloadType *type, JsonbContainer *array,
				Elements *elements)
{
	CqrsPayloadShape shape = type->element->shape;
	bool		nests = (shape == SHAPE_SCALAR || shape == SHAPE_COMPOSITE);

	elements->ndims = 0;
	for (;;)
	{
		JsonbValue *first;

		if (elements->ndims == MAXDIM)
			ereport(ERROR,
					(cqrs_payload_errmismatch(&conv->path),
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
gather_elements(Conversion *conv, CqrsPayloadType *type, int dim,
				JsonbContainer *array, Elements *elements)
{
	CqrsPayloadType *element = type->element;
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
		cqrs_payload_path_push(&conv->path, NULL, index++,
							   innermost ? element->type_name : type->type_name);
		if (!innermost)
		{
			JsonbContainer *nested = value.val.binary.data;

			if (!is_array(&value))
				ereport(ERROR,
						(cqrs_payload_errmismatch(&conv->path),
						 errdetail("The value is %s, but the first one is an array.",
								   describe(&value))));
			if ((int) JsonContainerSize(nested) != elements->dims[dim + 1])
				ereport(ERROR,
						(cqrs_payload_errmismatch(&conv->path),
						 errdetail("The nested array is of %d elements, but the first one of %d.",
								   (int) JsonContainerSize(nested),
								   elements->dims[dim + 1])));
			gather_elements(conv, type, dim + 1, nested, elements);
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
		cqrs_payload_path_pop(&conv->path);
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
 * What kind of value it is, with an article.
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
