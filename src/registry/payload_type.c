/*-------------------------------------------------------------------------
 *
 * payload_type.c
 *	  How JSON values become values of a type.
 *
 * Memory
 *
 * How a type is converted is kept for the life of the backend, one
 * CqrsPayloadType for each type asked for, with those of its columns and
 * elements below it. Only the columns of a composite type can change: they are
 * compared with the type cache each time, and built again if they differ.
 * Constraints of a domain are checked by the server, which notices their
 * changes itself.
 *
 * A domain's CHECK, or an input function, may call functions that come back
 * here. What is kept includes state of the functions that are called, which
 * cannot be in use twice, so such an inner conversion makes its own.
 *
 * Failure
 *
 * An error in a function that was called may have left its state unfinished.
 * So the next conversion throws away what is kept.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "base/debug_point.h"
#include "base/hash.h"
#include "extension/catalog.h"
#include "registry/payload_type.h"

struct CqrsPayloadTypes
{
	MemoryContext context;		/* where all of this is */
	HTAB	   *by_oid;
};

static CqrsPayloadTypes *session_types = NULL;
static bool session_types_used = false; /* by a conversion up the stack */
static bool session_types_broken = false;

static CqrsPayloadTypes *create_types(MemoryContext parent);
static void init_type(CqrsPayloadType *type, Oid typid, int32 typmod);
static void build_row(CqrsPayloadType *type, TypeCacheEntry *typentry);
static int	compare_columns(const void *a, const void *b);

/*
 * The session's types or, if those are in use, others in memory below parent.
 * Whoever acquires them releases them, also after an error.
 */
CqrsPayloadTypes *
cqrs_payload_types_acquire(MemoryContext parent)
{
	if (session_types_used)
		return create_types(parent);

	if (session_types_broken)
	{
		CqrsPayloadTypes *broken = session_types;

		session_types = NULL;
		session_types_broken = false;
		if (broken != NULL)
			MemoryContextDelete(broken->context);
	}
	if (session_types == NULL)
		session_types = create_types(TopMemoryContext);
	session_types_used = true;
	return session_types;
}

void
cqrs_payload_types_release(CqrsPayloadTypes *types, bool failed)
{
	if (types != session_types)
		return;
	session_types_used = false;
	session_types_broken = failed;
}

static CqrsPayloadTypes *
create_types(MemoryContext parent)
{
	MemoryContext context;
	CqrsPayloadTypes *types;

	context = AllocSetContextCreate(parent, "cqrs payload types",
									ALLOCSET_SMALL_SIZES);
	types = MemoryContextAlloc(context, sizeof(CqrsPayloadTypes));
	types->context = context;
	types->by_oid = cqrs_hash_create("cqrs payload types", sizeof(Oid),
									 sizeof(CqrsPayloadType), context);
	return types;
}

/*
 * How a whole payload becomes a value of this type; NULL if it was dropped.
 */
CqrsPayloadType *
cqrs_payload_type(CqrsPayloadTypes *types, Oid typid)
{
	CqrsPayloadType *type = hash_search(types->by_oid, &typid, HASH_FIND, NULL);
	MemoryContext oldcontext;
	CqrsPayloadType init;

	if (type !=NULL)
		return type;

	CQRS_DEBUG_POINT("payload_before_type");
	if (!cqrs_type_lock(typid))
		return NULL;
	oldcontext = MemoryContextSwitchTo(types->context);
	init_type(&init, typid, -1);
	cqrs_type_unlock(typid);
	type = hash_search(types->by_oid, &typid, HASH_ENTER, NULL);

	*type = init;
	MemoryContextSwitchTo(oldcontext);
	return type;
}

/*
 * Find out how values of a type are made; what belongs to that is in the
 * current context. The caller has a lock that keeps the type, which keeps all
 * that it is made of: whoever drops that drops the type, too.
 */
static void
init_type(CqrsPayloadType *type, Oid typid, int32 typmod)
{
	Oid			element;
	Oid			input;

	check_stack_depth();

	memset(type, 0, sizeof(CqrsPayloadType));
	type	  ->typid = typid;
	type	  ->type_name = format_type_with_typemod(typid, typmod);
	type	  ->typmod = typmod;
	type	  ->base_typid = getBaseTypeAndTypmod(typid, &type->typmod);
	type	  ->context = CurrentMemoryContext;

	/* int2vector and the like are no arrays that we could make. */
	element = get_element_type(type->base_typid);
	if (OidIsValid(element) && get_array_type(element) != type->base_typid)
		element = InvalidOid;

	if (type->base_typid == JSONOID)
		type	  ->shape = SHAPE_JSON;

	else if (type->base_typid == JSONBOID)
		type	  ->shape = SHAPE_JSONB;

	else if (OidIsValid(element))
	{
		type	  ->shape = SHAPE_ARRAY;
		type	  ->element = palloc(sizeof(CqrsPayloadType));

		init_type(type->element, element, type->typmod);
		get_typlenbyvalalign(element, &type->element_length,
							 &type->element_byval, &type->element_align);
	}
	else if (get_typtype(type->base_typid) == TYPTYPE_COMPOSITE)
		type	  ->shape = SHAPE_COMPOSITE;

	else
	{
		type	  ->shape = SHAPE_SCALAR;

		getTypeInputInfo(typid, &input, &type->typioparam);
		fmgr_info(input, &type->input);
	}
}

/*
 * The columns that the composite type has now. Nothing keeps a type from being
 * dropped, so they are only looked up under its relation's lock. Raises 42704 if
 * it is gone.
 */
CqrsPayloadRow *
cqrs_payload_row(CqrsPayloadType *type)
{
	TypeCacheEntry *typentry;
	Relation	rel;

	CQRS_DEBUG_POINT("payload_before_row");
	typentry = lookup_type_cache(type->base_typid, 0);
	if (type->row_id != 0 && typentry->tupDesc != NULL &&
		type->row_id == typentry->tupDesc_identifier)
		return type->row;

	rel = try_relation_open(typentry->typrelid, AccessShareLock);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type %s does not exist", type->type_name)));
	typentry = lookup_type_cache(type->base_typid, TYPECACHE_TUPDESC);
	if (type->row_id != typentry->tupDesc_identifier)
		build_row(type, typentry);
	relation_close(rel, AccessShareLock);
	return type->row;
}

static void
build_row(CqrsPayloadType *type, TypeCacheEntry *typentry)
{
	MemoryContext context;
	MemoryContext oldcontext;
	uint64		row_id;
	CqrsPayloadRow *row;
	int			i;

	if (type->row_id != 0)
	{
		type	  ->row_id = 0;

		MemoryContextDelete(type->row->context);
	}

	context = AllocSetContextCreate(type->context, "cqrs payload columns",
									ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(context);

	/* Copy first: a look into the catalogs may change *typentry. */
	row = palloc0(sizeof(CqrsPayloadRow));
	row_id = typentry->tupDesc_identifier;
	row->desc = CreateTupleDescCopy(typentry->tupDesc);
	row->context = context;
	row->columns = palloc(sizeof(CqrsPayloadColumn) * (row->desc->natts + 1));
	row->by_key = palloc(sizeof(CqrsPayloadColumn *) * (row->desc->natts + 1));
	for (i = 0; i < row->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(row->desc, i);
		CqrsPayloadColumn *column = &row->columns[row->ncolumns];

		if (att->attisdropped)
			continue;
		column->index = i;
		column->key = NameStr(att->attname);
		column->key_length = strlen(column->key);
		init_type(&column->type, att->atttypid, att->atttypmod);
		row->by_key[row->ncolumns++] = column;
	}
	qsort(row->by_key, row->ncolumns, sizeof(CqrsPayloadColumn *), compare_columns);

	MemoryContextSwitchTo(oldcontext);
	type	  ->row = row;
	type	  ->row_id = row_id;
}

/*
 * The order in which jsonb stores an object's keys.
 */
int
cqrs_payload_compare_keys(const char *a, int a_length, const char *b, int b_length)
{
	if (a_length != b_length)
		return a_length < b_length ? -1 : 1;
	return memcmp(a, b, a_length);
}

static int
compare_columns(const void *a, const void *b)
{
	const CqrsPayloadColumn *x = *(CqrsPayloadColumn *const *) a;
	const CqrsPayloadColumn *y = *(CqrsPayloadColumn *const *) b;

	return cqrs_payload_compare_keys(x->key, x->key_length, y->key, y->key_length);
}
