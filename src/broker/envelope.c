/*-------------------------------------------------------------------------
 *
 * envelope.c
 *	  cqrs_envelope(): what a broker would get of an event, for whoever sends it
 *	  by himself.
 *
 * It is the body of the message that message.c makes. Nothing of a server or a
 * subscription counts: a broker that knows tombstones gets none of an event
 * without payload, and a server may limit how large a message is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "executor/executor.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "broker/message.h"
#include "extension/catalog.h"
#include "log/header.h"
#include "registry/payload.h"

/* Attributes of type cqrs_event. */
enum
{
	EVENT_POSITION = 1,
	EVENT_ID,
	EVENT_NAME,
	EVENT_TOPIC,
	EVENT_KEY,
	EVENT_PAYLOAD,
	EVENT_HEADERS,
	EVENT_EMITTED_AT
};

/* The most bytes of a body: with its header, it has to be a bytea. */
#define MAX_BODY	(MaxAllocSize / 2)

static NullableDatum attribute(HeapTupleHeader event, AttrNumber attno,
							   const char *required);

PG_FUNCTION_INFO_V1(cqrs_envelope);

/*
 * cqrs_envelope(event, format)
 */
Datum
cqrs_envelope(PG_FUNCTION_ARGS)
{
	static const CqrsBrokerModule module = {.cloudevents_prefix = ""};
	char	   *format_name = PG_ARGISNULL(1) ? "cqrs" :
	text_to_cstring(PG_GETARG_TEXT_PP(1));
	CqrsFormat	format;
	HeapTupleHeader given;
	CqrsTopic	topic = {0};
	CqrsEvent	event = {0};
	CqrsBrokerMessage message;
	const char *name;
	char	   *topic_name;
	bytea	   *body;

	if (!cqrs_format_parse(format_name, &format))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no format \"%s\"", format_name),
				 errhint("Valid values are \"cqrs\", \"cloudevents\" and \"raw\".")));
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	given = PG_GETARG_HEAPTUPLEHEADER(0);
	event.event_name = attribute(given, EVENT_NAME, "event_name").value;
	name = TextDatumGetCString(event.event_name);
	event.event_id = attribute(given, EVENT_ID, "event_id").value;
	event.emitted_at =
		DatumGetTimestampTz(attribute(given, EVENT_EMITTED_AT, "emitted_at").value);
	event.key = attribute(given, EVENT_KEY, NULL);
	event.payload = attribute(given, EVENT_PAYLOAD, NULL);
	event.headers = attribute(given, EVENT_HEADERS, NULL);
	event.topic = &topic;
	topic_name = TextDatumGetCString(attribute(given, EVENT_TOPIC, "topic").value);
	cqrs_name_check("topic", topic_name);
	strlcpy(topic.name, topic_name, sizeof(topic.name));
	if (!event.payload.isnull)
		cqrs_payload_check_object(DatumGetJsonbP(event.payload.value), "event",
								  name);
	cqrs_headers_check(event.headers, name);

	cqrs_message_form(&event, format, &module, NULL, MAX_BODY, &message);
	body = palloc(VARHDRSZ + message.body_size);
	SET_VARSIZE(body, VARHDRSZ + message.body_size);
	memcpy(VARDATA(body), message.body, message.body_size);
	PG_RETURN_BYTEA_P(body);
}

/*
 * An attribute of an event. Raises 22004 if it is NULL, and required: its name.
 */
static NullableDatum
attribute(HeapTupleHeader event, AttrNumber attno, const char *required)
{
	NullableDatum value;

	value.value = GetAttributeByNum(event, attno, &value.isnull);
	if (value.isnull && required != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of an event must not be null", required)));
	return value;
}
