/*-------------------------------------------------------------------------
 *
 * context.c
 *	  What is being handled, what caused it, and what its events' headers say of
 *	  that.
 *
 * A command, a query or a stream, or an event at a handler, has a context while
 * its handler runs. Whatever is handled or emitted within is caused by it. A
 * dispatch gets its id when it is first needed: by cqrs_context(), or by an
 * event that is emitted.
 *
 * Everything with the same origin has the same correlation id. An event has it
 * in its headers; a dispatch has that of what it is within; the outermost one
 * has that of the setting, or else its own id.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/event_id.h"
#include "log/event.h"
#include "log/header.h"
#include "mediator/context.h"

/* Columns of type cqrs_context. */
#define CONTEXT_COLUMNS	11

/*
 * The headers that were made last. Later ones of the same form differ only in
 * the ids, which are overwritten.
 */
typedef struct MadeHeaders
{
	Jsonb	   *object;			/* NULL: none yet */
	char		traceparent[CQRS_TRACEPARENT_LEN + 1];
	int			correlation_len;	/* 0: it has none */
	char	   *correlation;	/* where it is in the object */
	char	   *causation;		/* the same, or NULL: it has none */
} MadeHeaders;

CqrsContext *cqrs_context_innermost = NULL;
struct CqrsDryRun *cqrs_dry_run_innermost = NULL;

static MadeHeaders made;

static CqrsEffects *find_effects(void);
static const char *correlation_id(CqrsContext *context, char *buffer);
static const char *causation_id(CqrsContext *context, char *buffer);
static char *header(const CqrsContext *context, const char *name);
static void make_headers(const char *correlation, bool has_causation);

PG_FUNCTION_INFO_V1(cqrs_context);

/*
 * cqrs_context()
 */
Datum
cqrs_context(PG_FUNCTION_ARGS)
{
	CqrsContext *context = cqrs_context_innermost;
	const CqrsEvent *event;
	char		buffer[CQRS_UUID_TEXT_LEN + 1];
	const char *text;
	char	   *traceparent;
	CqrsEffects *effects;
	TupleDesc	desc;
	Datum		values[CONTEXT_COLUMNS] = {0};
	bool		nulls[CONTEXT_COLUMNS] = {0};

	if (context == NULL)
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != CONTEXT_COLUMNS)
		elog(ERROR, "unexpected result type");
	desc = BlessTupleDesc(desc);
	event = context->event;

	values[0] = CStringGetTextDatum(context->kind);
	values[1] = CStringGetTextDatum(context->name);
	values[2] = UUIDPGetDatum(cqrs_context_id(context));
	nulls[3] = event == NULL || event->topic == NULL;
	if (!nulls[3])
		values[3] = CStringGetTextDatum(event->topic->name);
	nulls[4] = event == NULL || event->key.isnull;
	if (!nulls[4])
		values[4] = event->key.value;
	values[5] = CStringGetTextDatum(correlation_id(context, buffer));
	text = causation_id(context, buffer);
	nulls[6] = text == NULL;

	if (text !=NULL)
		values[6] = CStringGetTextDatum(text);
	values[7] = Int32GetDatum(context->attempts);
	traceparent = header(context, "traceparent");
	if (traceparent == NULL && cqrs_traceparent[0] != '\0')
		traceparent = cqrs_traceparent;
	nulls[8] = traceparent == NULL;
	if (traceparent != NULL)
		values[8] = CStringGetTextDatum(traceparent);
	values[9] = CStringGetTextDatum(GetUserNameFromId(context->caller, false));
	effects = find_effects();
	nulls[10] = effects == NULL;
	if (effects != NULL)
	{
		pg_uuid_t	key;

		cqrs_event_id_from(effects->key, &key);
		values[10] = CStringGetTextDatum(cqrs_uuid_text(&key, buffer));
	}
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/*
 * The id, which is made if nobody has asked for it before.
 */
const pg_uuid_t *
cqrs_context_id(CqrsContext *context)
{
	if (!context->has_id)
	{
		cqrs_event_id_generate(GetCurrentTimestamp(), &context->id);
		context->has_id = true;
	}
	return &context->id;
}

/*
 * An id for what is made now, which follows from what it is made in if that has effects;
 * else a new one.
 */
void
cqrs_context_derive_id(TimestampTz now, pg_uuid_t *id)
{
	CqrsEffects *effects = find_effects();

	if (effects == NULL)
		cqrs_event_id_generate(now, id);
	else
	{
		char	   *what = psprintf("%s/%d", effects->key, ++effects->n);

		cqrs_event_id_from(what, id);
		pfree(what);
	}
}

/*
 * What ids are to follow from, or NULL.
 */
static CqrsEffects *
find_effects(void)
{
	CqrsContext *context;

	for (context = cqrs_context_innermost; context != NULL;
		 context = context->outer)
		if (context->effects != NULL)
			return context->effects;
	return NULL;
}

/*
 * The headers of an event that is emitted now: those given, which take
 * precedence, and ours. If none are given, the result is valid until the next
 * call; else it is in the current memory context.
 */
NullableDatum
cqrs_context_headers(NullableDatum headers)
{
	CqrsContext *context = cqrs_context_innermost;
	char		buffer[CQRS_UUID_TEXT_LEN + 1];
	const char *correlation;
	int			len;
	NullableDatum result = {.isnull = false};

	if (!cqrs_context_has_headers())
		return headers;
	correlation = context != NULL ? correlation_id(context, buffer) :
		cqrs_correlation_id;
	len = strlen(correlation);
	if (made.object == NULL || made.correlation_len != len ||
		(made.causation != NULL) != (context != NULL) ||
		strcmp(made.traceparent, cqrs_traceparent) != 0)
		make_headers(correlation, context != NULL);
	if (len > 0)
		memcpy(made.correlation, correlation, len);
	if (context != NULL)
	{
		(void) cqrs_uuid_text(cqrs_context_id(context), buffer);
		memcpy(made.causation, buffer, CQRS_UUID_TEXT_LEN);
	}
	result.value = JsonbPGetDatum(made.object);
	if (!headers.isnull)
		result.value = DirectFunctionCall2(jsonb_concat, result.value,
										   headers.value);
	return result;
}

/*
 * The correlation id. It may be in the buffer, of CQRS_UUID_TEXT_LEN + 1 bytes,
 * or in the current memory context, if it was in headers.
 */
static const char *
correlation_id(CqrsContext *context, char *buffer)
{
	for (;;)
	{
		char	   *given = header(context, "correlation_id");

		if (given != NULL)
			return given;
		if (context->outer == NULL)
			break;
		context = context->outer;
	}
	if (cqrs_correlation_id[0] != '\0')
		return cqrs_correlation_id;
	(void) cqrs_uuid_text(cqrs_context_id(context), buffer);
	return buffer;
}

/*
 * The id of what caused this, or NULL; it may be where correlation_id() puts
 * it.
 */
static const char *
causation_id(CqrsContext *context, char *buffer)
{
	if (!context->headers.isnull)
		return header(context, "causation_id");
	if (context->outer == NULL)
		return NULL;
	(void) cqrs_uuid_text(cqrs_context_id(context->outer), buffer);
	return buffer;
}

/*
 * A header of the event, palloc'd, or NULL if it is not a string.
 */
static char *
header(const CqrsContext *context, const char *name)
{
	char	   *value;
	int			len;

	if (context->headers.isnull)
		return NULL;
	value = cqrs_header_string(DatumGetJsonbP(context->headers.value), name,
							   &len);
	return value != NULL ? pnstrdup(value, len) : NULL;
}

static void
make_headers(const char *correlation, bool has_causation)
{
	StringInfoData text;
	Jsonb	   *object;
	int			len;

	initStringInfo(&text);
	appendStringInfoString(&text, "{");
	if (correlation[0] != '\0')
	{
		appendStringInfoString(&text, "\"correlation_id\": ");
		escape_json(&text, correlation);
	}
	if (has_causation)
		appendStringInfo(&text, "%s\"causation_id\": \"%*s\"",
						 text.len > 1 ? ", " : "", CQRS_UUID_TEXT_LEN, "");
	if (cqrs_traceparent[0] != '\0')
		appendStringInfo(&text, "%s\"traceparent\": \"%s\"",
						 text.len > 1 ? ", " : "", cqrs_traceparent);
	appendStringInfoString(&text, "}");

	object = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												CStringGetDatum(text.data)));
	if (made.object != NULL)
		pfree(made.object);
	memset(&made, 0, sizeof(made));
	made.object = MemoryContextAlloc(TopMemoryContext, VARSIZE(object));
	memcpy(made.object, object, VARSIZE(object));
	strlcpy(made.traceparent, cqrs_traceparent, sizeof(made.traceparent));
	made.correlation = cqrs_header_string(made.object, "correlation_id",
										  &made.correlation_len);
	made.causation = cqrs_header_string(made.object, "causation_id", &len);
	pfree(object);
	pfree(text.data);
}
