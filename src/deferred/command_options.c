/*-------------------------------------------------------------------------
 *
 * command_options.c
 *	  What may be chosen for one command when it is enqueued: the argument
 *	  options of cqrs_enqueue().
 *
 * They travel with the command as headers of its event, under the same names:
 * so they are wherever the command is, also while it waits for its time, is
 * parked, or dead, and a dump has them. Nobody else can write an event to a
 * queue. A restore can: so what is found there is not trusted to be well formed.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"

#include "base/rfc3339.h"
#include "deferred/command_options.h"
#include "log/header.h"

#define EXPIRES_AT	"expires_at"
#define KEEP_ANSWER	"keep_answer"

static bool is_named(const JsonbValue *key, const char *name);
static void set_expires_at(CqrsCommandOptions *options,
						   const JsonbValue *value, const char *command_name);

/*
 * What an object says; NULL: nothing was chosen, like an option that is null.
 * Raises 22023.
 */
void
cqrs_command_options_parse(Jsonb *given, const char *command_name,
						   CqrsCommandOptions *options)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	options->expires_at = DT_NOEND;
	options->keep_answer = false;
	if (given == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(given))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of command \"%s\" are not a JSON object",
						command_name)));
	it = JsonbIteratorInit(&given->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		if (is_named(&key, EXPIRES_AT))
			set_expires_at(options, &value, command_name);
		else if (!is_named(&key, KEEP_ANSWER))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("command \"%s\" has unknown option \"%.*s\"",
							command_name, key.val.string.len,
							key.val.string.val),
					 errhint("Valid options are \"%s\" and \"%s\".",
							 EXPIRES_AT, KEEP_ANSWER)));
		else if (value.type == jbvBool)
			options->keep_answer = value.val.boolean;
		else if (value.type !=jbvNull)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" of command \"%s\" is neither true nor false",
							KEEP_ANSWER, command_name)));
	}
}

/*
 * The options as headers of the command's event; NULL if there are none.
 */
NullableDatum
cqrs_command_options_headers(const CqrsCommandOptions *options)
{
	NullableDatum headers = {.isnull = true};
	StringInfoData text;

	if (options->expires_at == DT_NOEND && !options->keep_answer)
		return headers;
	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	if (options->expires_at != DT_NOEND)
	{
		appendStringInfoString(&text, "\"" EXPIRES_AT "\": \"");
		cqrs_rfc3339_append(&text, options->expires_at);
		appendStringInfoString(&text, options->keep_answer ? "\", " : "\"");
	}
	if (options->keep_answer)
		appendStringInfoString(&text, "\"" KEEP_ANSWER "\": true");
	appendStringInfoChar(&text, '}');
	headers.isnull = false;
	headers.value = DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
	return headers;
}

/*
 * The options that these headers say. What cannot be read is as if it was not
 * there.
 */
void
cqrs_command_options_of(NullableDatum headers, CqrsCommandOptions *options)
{
	Jsonb	   *object;
	JsonbValue	value;
	const char *text;
	int			len;

	options->expires_at = DT_NOEND;
	options->keep_answer = false;
	if (headers.isnull)
		return;
	object = DatumGetJsonbP(headers.value);
	if (!JB_ROOT_IS_OBJECT(object))
		return;
	text = cqrs_header_string(object, EXPIRES_AT, &len);

	if (text !=NULL && !cqrs_rfc3339_parse(text, len, &options->expires_at))
		options->expires_at = DT_NOEND;
	options->keep_answer =
		getKeyJsonValueFromContainer(&object->root, KEEP_ANSWER,
									 strlen(KEEP_ANSWER), &value) != NULL &&
		value.type == jbvBool && value.val.boolean;
}

static bool
is_named(const JsonbValue *key, const char *name)
{
	return key->val.string.len == strlen(name) &&
		memcmp(key->val.string.val, name, strlen(name)) == 0;
}

static void
set_expires_at(CqrsCommandOptions *options, const JsonbValue *value,
			   const char *command_name)
{
	if (value->type == jbvNull ||
		(value->type == jbvString &&
		 cqrs_rfc3339_parse(value->val.string.val, value->val.string.len,
							&options->expires_at)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" of command \"%s\" is not a timestamp of RFC 3339",
					EXPIRES_AT, command_name),
			 errhint("It looks like 2024-12-31T23:59:59.123456+01:00, or ends with Z, as to_jsonb(now() + interval '1 hour') makes it.")));
}
