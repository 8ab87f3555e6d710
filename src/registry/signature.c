/*-------------------------------------------------------------------------
 *
 * signature.c
 *	  How a function with one argument is named in our tables, and found again.
 *
 * A signature is schema.name(schema.type). Each of the four is quoted unless
 * it has nothing but lower case letters, digits and underscores, and does not
 * begin with a digit. So the text depends on no setting (as regprocedure's
 * does on quote_all_identifiers), on no search_path, and on no version's list
 * of key words: texts may be compared.
 *
 * A function is looked up by its signature whoever asks: USAGE of schemas does
 * not matter, EXECUTE is checked elsewhere. Nothing raises an error here: what
 * does not exist, or is no signature, is not found. Nor is anything in a
 * temporary schema: tomorrow, its name may be another's.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "registry/signature.h"

/* What a name says; all but the name may be left out by people, and is NULL. */
typedef struct Signature
{
	char	   *schema;
	char	   *name;
	char	   *type_schema;
	char	   *type_name;
} Signature;

static bool same_part(const char *part, const char *named);
static bool parse(const char *text, Signature *signature);
static bool parse_pair(const char **text, char **schema, char **name);
static char *parse_identifier(const char **text);
static void skip_space(const char **text);
static char *compose(const Signature *signature);
static void append_identifier(StringInfo buf, const char *identifier);
static char *type_schema(Oid typid, char **name);
static Oid	find_schema(const char *name);
static Oid	find_type(const Signature *signature);

/*
 * The signature of a function that exists and has one argument, palloc'd. Raises
 * 42883 if it, or its argument's type, was dropped meanwhile.
 */
char *
cqrs_signature_of(Oid funcid)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(funcid));
	Form_pg_proc proc;
	Signature	signature;
	char	   *text;

	if (!HeapTupleIsValid(tuple))
		cqrs_signature_gone(funcid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	Assert(proc->pronargs == 1);
	signature.schema = get_namespace_name(proc->pronamespace);
	signature.name = NameStr(proc->proname);
	signature.type_schema = type_schema(proc->proargtypes.values[0],
										&signature.type_name);
	if (signature.schema == NULL || signature.type_schema == NULL ||
		signature.type_name == NULL)
		cqrs_signature_gone(funcid);
	text = compose(&signature);

	ReleaseSysCache(tuple);
	return text;
}

/*
 * Raise the error that a function is not there any more.
 */
void
cqrs_signature_gone(Oid funcid)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("function with OID %u does not exist", funcid)));
}

/*
 * The function with this signature, or InvalidOid.
 */
Oid
cqrs_signature_find(const char *text)
{
	Signature	signature;
	oidvector  *argtypes;
	Oid			argtype;
	Oid			schema;

	if (!parse(text, &signature) || signature.schema == NULL ||
		signature.type_schema == NULL)
		return InvalidOid;
	schema = find_schema(signature.schema);
	argtype = find_type(&signature);
	if (!OidIsValid(schema) || !OidIsValid(argtype))
		return InvalidOid;
	argtypes = buildoidvector(&argtype, 1);
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum(signature.name),
						   PointerGetDatum(argtypes),
						   ObjectIdGetDatum(schema));
}

/*
 * Is this signature one that the name may mean? It is name, schema.name or
 * schema.name(type), quoted as one likes; what is left out may be anything. The
 * function need not exist.
 */
bool
cqrs_signature_fits(const char *text, const char *name)
{
	Signature	signature;
	Signature	named;

	return parse(name, &named) && parse(text, &signature) &&
		same_part(signature.schema, named.schema) &&
		same_part(signature.name, named.name) &&
		same_part(signature.type_schema, named.type_schema) &&
		same_part(signature.type_name, named.type_name);
}

/*
 * Does a name say which argument it takes?
 */
bool
cqrs_signature_has_argument(const char *name)
{
	char	   *schema;
	char	   *function;

	return parse_pair(&name, &schema, &function) && *name == '(';
}

static bool
same_part(const char *part, const char *named)
{
	return named == NULL || (part != NULL && strcmp(part, named) == 0);
}

/*
 * Parse a name. Returns false if it has another form.
 */
static bool
parse(const char *text, Signature *signature)
{
	signature->type_schema = signature->type_name = NULL;
	if (!parse_pair(&text, &signature->schema, &signature->name))
		return false;
	if (*text == '\0')
		return true;
	if (*text ++!= '(' ||
		!parse_pair(&text, &signature->type_schema, &signature->type_name) ||
		*text ++!= ')')
		return false;
	skip_space(&text);
	return *text == '\0';
}

/*
 * Parse a name, with or without its schema.
 */
static bool
parse_pair(const char **text, char **schema, char **name)
{
	*schema = NULL;
	*name = parse_identifier(text);
	if (*name != NULL && **text == '.')
	{
		(*text) ++;
		*schema = *name;
		*name = parse_identifier(text);
	}
	return *name != NULL;
}

/*
 * Parse one SQL identifier, with the space around it; NULL if there is none.
 */
static char *
parse_identifier(const char **text)
{
	StringInfoData buf;
	const char *at;

	skip_space(text);
	at = *text;
	initStringInfo(&buf);
	if (*at == '"')
	{
		/* A quote inside is doubled. */
		for (at++; *at != '"' || at[1] == '"'; at++)
		{
			if (*at == '\0')
				return NULL;
			appendStringInfoChar(&buf, *at);
			if (*at == '"')
				at++;
		}
		at++;
	}
	else
	{
		char	   *folded;

		while (*at != '\0' && strchr(".()\"", *at) == NULL &&
			   !scanner_isspace(*at))
			appendStringInfoChar(&buf, *at++);
		folded = downcase_identifier(buf.data, buf.len, false, false);
		resetStringInfo(&buf);
		appendStringInfoString(&buf, folded);
	}
	*text = at;
	skip_space(text);
	if (buf.len == 0 || buf.len >= NAMEDATALEN)
		return NULL;
	return buf.data;
}

static void
skip_space(const char **text)
{
	while (scanner_isspace(**text))
		(*text) ++;
}

static char *
compose(const Signature *signature)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_identifier(&buf, signature->schema);
	appendStringInfoChar(&buf, '.');
	append_identifier(&buf, signature->name);
	appendStringInfoChar(&buf, '(');
	append_identifier(&buf, signature->type_schema);
	appendStringInfoChar(&buf, '.');
	append_identifier(&buf, signature->type_name);
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

static void
append_identifier(StringInfo buf, const char *identifier)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyz_0123456789";
	const char *at;

	if (identifier[strspn(identifier, plain)] == '\0' &&
		!(identifier[0] >= '0' && identifier[0] <= '9'))
	{
		appendStringInfoString(buf, identifier);
		return;
	}
	appendStringInfoChar(buf, '"');
	for (at = identifier; *at != '\0'; at++)
	{
		if (*at == '"')
			appendStringInfoChar(buf, '"');
		appendStringInfoChar(buf, *at);
	}
	appendStringInfoChar(buf, '"');
}

/*
 * A type's schema, and its name there; palloc'd, NULL if it is gone.
 */
static char *
type_schema(Oid typid, char **name)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	Form_pg_type type;
	char	   *schema;

	*name = NULL;
	if (!HeapTupleIsValid(tuple))
		return NULL;
	type = (Form_pg_type) GETSTRUCT(tuple);

	*name = pstrdup(NameStr(type->typname));
	schema = get_namespace_name(type->typnamespace);
	ReleaseSysCache(tuple);
	return schema;
}

/*
 * Find a schema that is not a temporary one, or InvalidOid.
 */
static Oid
find_schema(const char *name)
{
	Oid			schema = get_namespace_oid(name, true);

	return OidIsValid(schema) && isAnyTempNamespace(schema) ? InvalidOid :
		schema;
}

static Oid
find_type(const Signature *signature)
{
	Oid			schema = find_schema(signature->type_schema);

	return !OidIsValid(schema) ? InvalidOid :
		GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
						CStringGetDatum(signature->type_name),
						ObjectIdGetDatum(schema));
}
