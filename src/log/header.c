/*-------------------------------------------------------------------------
 *
 * header.c
 *	  Headers of events that have a meaning here.
 *
 * An event's headers are a JSON object of the user's. These names are
 * reserved; who gives one gives a string, or null: that the event is to have
 * none.
 *
 * correlation_id	 what events of one origin have in common
 * causation_id		 the id of what the event was caused by
 * traceparent, tracestate
 *					 the trace that it belongs to, as W3C has it
 * occurred_at		 when it happened, as RFC 3339 has it, if that is not when it
 *					 was emitted
 *
 * The first three are added to what is emitted; see context.c. Headers come from
 * tables, too, where a restore or a superuser may have put anything: who reads
 * them there takes what is not as it should be for not given.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "base/rfc3339.h"
#include "log/header.h"

#define OCCURRED_AT "occurred_at"

static const char *const reserved_names[] = {
	"correlation_id", "causation_id", "traceparent", "tracestate", OCCURRED_AT
};

PG_FUNCTION_INFO_V1(cqrs_occurred_at);

/*
 * cqrs.occurred_at(headers): what a topic's view shows.
 */
Datum
cqrs_occurred_at(PG_FUNCTION_ARGS)
{
	TimestampTz occurred_at;

	if (!cqrs_header_occurred_at(PG_GETARG_JSONB_P(0), &occurred_at))
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(occurred_at);
}

/*
 * May an event be emitted with these headers? Raises 22023 for what is no
 * object, for a reserved header that is neither a string nor null, and for an
 * occurred_at that is no timestamp.
 */
void
cqrs_headers_check(NullableDatum headers, const char *event_name)
{
	Jsonb	   *object;
	char	   *text;
	int			len;
	TimestampTz occurred_at;
	int			i;

	if (headers.isnull)
		return;
	object = DatumGetJsonbP(headers.value);
	if (!JB_ROOT_IS_OBJECT(object))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of event \"%s\" are not a JSON object",
						event_name)));
	for (i = 0; i < lengthof(reserved_names); i++)
	{
		const char *name = reserved_names[i];
		JsonbValue	value;

		if (getKeyJsonValueFromContainer(&object->root, name, strlen(name),
										 &value) != NULL &&
			value.type !=jbvString && value.type !=jbvNull)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header \"%s\" of event \"%s\" is not a string",
							name, event_name),
					 errdetail("Headers of this name have a meaning: correlation_id, causation_id, traceparent, tracestate, occurred_at."),
					 errhint("Give a string, or null for none; or another name.")));
	}

	text = cqrs_header_string(object, OCCURRED_AT, &len);

	if (text !=NULL && !cqrs_rfc3339_parse(text, len, &occurred_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%s\" of event \"%s\" is not a timestamp of RFC 3339",
						OCCURRED_AT, event_name),
				 errhint("It looks like 2024-12-31T23:59:59.123456+01:00, or ends with Z.")));
}

/*
 * Where in headers the string of that name is, and its length; NULL and 0 if
 * there is none.
 */
char *
cqrs_header_string(Jsonb *headers, const char *name, int *len)
{
	JsonbValue	value;

	*len = 0;
	if (!JB_ROOT_IS_OBJECT(headers) ||
		getKeyJsonValueFromContainer(&headers->root, name, strlen(name),
									 &value) == NULL ||
		value.type !=jbvString)
		return NULL;
	*len = value.val.string.len;
	return value.val.string.val;
}

/*
 * When the event happened; returns false if its headers do not say.
 */
bool
cqrs_header_occurred_at(Jsonb *headers, TimestampTz *occurred_at)
{
	int			len;
	char	   *text = cqrs_header_string(headers, OCCURRED_AT, &len);

	return text !=NULL && cqrs_rfc3339_parse(text, len, occurred_at);
}

/*
 * The headers, which were checked or are NULL, with this occurred_at, in the
 * current memory context. Raises 22008 for infinity.
 */
NullableDatum
cqrs_headers_with_occurred_at(NullableDatum headers, TimestampTz occurred_at)
{
	StringInfoData text;
	NullableDatum result = {.isnull = false};

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"" OCCURRED_AT "\": \"");
	cqrs_rfc3339_append(&text, occurred_at);
	appendStringInfoString(&text, "\"}");
	result.value = DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
	if (!headers.isnull)
		result.value = DirectFunctionCall2(jsonb_concat, headers.value,
										   result.value);
	return result;
}
