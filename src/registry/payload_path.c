/*-------------------------------------------------------------------------
 *
 * payload_path.c
 *	  Where in a payload a conversion is, for its errors.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "registry/payload_path.h"

/* What comes from the payload is cut to this many bytes in messages. */
#define MAX_KEY_SHOWN		100
#define MAX_MESSAGE_SHOWN	1000

static void append_path(StringInfo buf, const CqrsPayloadPath *path);
static char *failure_message(const CqrsPayloadPath *path);
static char *clip(const char *str, int length, int limit);

/*
 * Go down to the value of a key, or to an element if key is NULL. The strings
 * are kept by reference.
 */
void
cqrs_payload_path_push(CqrsPayloadPath *path, const char *key, int index,
					   const char *type_name)
{
	CqrsPayloadStep *step;

	if (path->nsteps == path->max_steps)
	{
		Size		size;

		path->max_steps = Max(path->max_steps * 2, 8);
		size = sizeof(CqrsPayloadStep) * path->max_steps;
		if (path->steps == NULL)
			path->steps = MemoryContextAlloc(path->context, size);
		else
			path->steps = repalloc(path->steps, size);
	}
	step = &path->steps[path->nsteps++];
	step->key = key;
	step->index = index;
	step->type_name = type_name;
}

void
cqrs_payload_path_pop(CqrsPayloadPath *path)
{
	Assert(path->nsteps > 0);
	path->nsteps--;
}

static void
append_path(StringInfo buf, const CqrsPayloadPath *path)
{
	int			i;

	for (i = 0; i < path->nsteps; i++)
	{
		const CqrsPayloadStep *step = &path->steps[i];

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
failure_message(const CqrsPayloadPath *path)
{
	StringInfoData text;

	if (path->nsteps == 0)
		return psprintf("payload of %s \"%s\" does not convert to type %s",
						path->kind, path->name, path->type_name);
	initStringInfo(&text);
	append_path(&text, path);
	return psprintf("value of key \"%s\" in payload of %s \"%s\" does not convert to type %s",
					text.data, path->kind, path->name,
					path->steps[path->nsteps - 1].type_name);
}

/*
 * For ereport(): SQLSTATE 22023 and the message, for a kind of JSON value that
 * the type does not take.
 */
int
cqrs_payload_errmismatch(CqrsPayloadPath *path)
{
	path->final = true;
	errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	errmsg_internal("%s", failure_message(path));
	return 0;					/* return value does not matter */
}

/*
 * Raise 22023 for a key that the type at the present step does not have.
 */
void
cqrs_payload_unknown_key(CqrsPayloadPath *path, CqrsPayloadType *type,
						 CqrsPayloadRow *row, const JsonbValue *key)
{
	StringInfoData text;
	StringInfoData hint;
	int			i;

	initStringInfo(&text);
	append_path(&text, path);
	if (text.len > 0)
		appendStringInfoChar(&text, '.');
	appendStringInfoString(&text, clip(key->val.string.val,
									   key->val.string.len, MAX_KEY_SHOWN));

	initStringInfo(&hint);
	if (row->ncolumns == 0)
		appendStringInfo(&hint, "Type %s has no keys.", type->type_name);
	for (i = 0; i < row->ncolumns; i++)
	{
		if (i == 0)
			appendStringInfo(&hint, "The keys of type %s are",
							 type->type_name);
		appendStringInfo(&hint, "%s \"%s\"", i > 0 ? "," : "",
						 row->columns[i].key);
	}
	if (row->ncolumns > 0)
		appendStringInfoChar(&hint, '.');

	path->final = true;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("payload of %s \"%s\" has an unknown key \"%s\"",
					path->kind, path->name, text.data),
			 errhint("%s", hint.data)));
}

/*
 * Make a conversion's error name the value; see cqrs_payload_to_composite().
 */
void
cqrs_payload_reword_error(const CqrsPayloadPath *path, ErrorData *edata)
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
	edata->message = failure_message(path);
}

/*
 * A copy of at most limit bytes, with a mark if something was cut off.
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
