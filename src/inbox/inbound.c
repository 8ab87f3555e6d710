/*-------------------------------------------------------------------------
 *
 * inbound.c
 *	  Messages of a broker as events.
 *
 * Formats
 *
 * raw: the body is the payload, a JSON object.
 *
 * bytes: the body may be anything; the payload is {"base64": "..."}.
 *
 * cqrs: the body is the envelope that message.c makes in this format. Its
 * event_name is the event's, unless the consumer names one; its event_id is the
 * event's causation_id, its event_timestamp the occurred_at.
 *
 * cloudevents: CloudEvents 1.0. If the content type says that the body is an
 * event (application/cloudevents+json), its members are the attributes, and data or
 * data_base64 the payload; otherwise headers are the attributes, with the prefix
 * of the protocol's binding, and the body is the payload: JSON, unless the content
 * type says something else. type is the event's name, unless the consumer names
 * one, id its causation_id, time its occurred_at, subject its key, if the message
 * has none; traceparent and tracestate are headers of the event.
 *
 * In every format, no body is no payload, the message's key is the event's, and its
 * headers are, except that ours replace those of the same name: source,
 * source_partition, source_offset, source_message_id, occurred_at. A value that is
 * not text in UTF-8 is its bytes in hexadecimal behind \x.
 *
 * Ids
 *
 * An event's id is made of the consumer's incarnation and of where the message is
 * from, so that what is consumed again has the same; its time is the message's.
 *
 * Errors
 *
 * Whatever cannot be an event raises an error, most of class 22: it is for the
 * caller to roll back a subtransaction, and to keep the message elsewhere.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/namespace.h"
#include "common/base64.h"
#include "common/int.h"
#include "datatype/timestamp.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "base/event_id.h"
#include "base/rfc3339.h"
#include "emit/emit.h"
#include "inbox/inbound.h"
#include "inbox/message_id.h"
#include "registry/registry.h"

/* Microseconds from 1970 to 2000. */
#define UNIX_EPOCH_OFFSET_USEC \
	((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

#define STRUCTURED	"application/cloudevents"

/* What a message says about its event, in a format that has it. */
typedef struct Attributes
{
	char	   *event_name;
	char	   *key;
	char	   *causation_id;
	char	   *occurred_at;
	char	   *traceparent;
	char	   *tracestate;
} Attributes;

static const char *const format_names[] = {
	[CQRS_INBOUND_RAW] = "raw",
	[CQRS_INBOUND_BYTES] = "bytes",
	[CQRS_INBOUND_CQRS] = "cqrs",
	[CQRS_INBOUND_CLOUDEVENTS] = "cloudevents",
};

static char *digest(const char *bytes, size_t size);
static const CqrsBrokerReceivedHeader *find_header(const CqrsBrokerReceived *message,
												   const char *prefix,
												   const char *name);
static char *header_text(const CqrsBrokerReceived *message,
						 const char *prefix, const char *name);
static Jsonb *parse_json(const char *body, size_t size);
static Jsonb *base64_payload(const char *body, size_t size);
static Jsonb *base64_text_payload(const char *text, int len);
static Jsonb *open_envelope(const CqrsBrokerReceived *message,
							Attributes *attributes);
static Jsonb *open_structured(const CqrsBrokerReceived *message,
							  Attributes *attributes);
static Jsonb *open_binary(const CqrsBrokerReceived *message,
						  const char *prefix, Attributes *attributes);
static Jsonb *member_payload(Jsonb *object, const char *name);
static char *member_text(Jsonb *object, const char *name);
static bool is_json(const char *content_type);
static char *text_of(const char *bytes, size_t size);
static char *hex_of(const char *bytes, size_t size);
static bool server_has(const char *text, size_t size);
static Jsonb *make_headers(const CqrsInbound *inbound,
						   const CqrsBrokerReceived *message,
						   const char *message_id,
						   const Attributes *attributes);
static void push_headers(JsonbParseState * *state,
						 const CqrsBrokerReceived *message);
static void push_text(JsonbParseState * *state, const char *name,
					  const char *value);
static void push_number(JsonbParseState * *state, const char *name,
						int64 value);

/*
 * The format of this name. Returns false if there is none.
 */
bool
cqrs_inbound_format_parse(const char *name, CqrsInboundFormat *format)
{
	int			i;

	for (i = 0; i < lengthof(format_names); i++)
		if (strcmp(name, format_names[i]) == 0)
		{
			*format = i;
			return true;
		}
	return false;
}

/*
 * Prepare to make events. Raises 42704 if the consumer's event type is not
 * registered.
 */
void
cqrs_inbound_init(CqrsInbound *inbound, const CqrsConsumer *consumer,
				  const char *attribute_prefix, int max_size)
{
	memset(inbound, 0, sizeof(*inbound));
	inbound->consumer = consumer;
	if (!cqrs_inbound_format_parse(consumer->format, &inbound->format))
		elog(ERROR, "consumer \"%s\" has format \"%s\"", consumer->name,
			 consumer->format);
	inbound->attribute_prefix = attribute_prefix;
	inbound->max_size = max_size;
	inbound->now = GetCurrentTimestamp();
	if (consumer->event_name == NULL)
		return;
	inbound->event_type = cqrs_event_type_get(consumer->event_name);
	inbound->event_name = CStringGetTextDatum(consumer->event_name);
}

/*
 * By what a message of a source without offsets is recognised that comes again, in
 * the current memory context; NULL: it has no such thing. What is too long for the
 * table is recognised by its hash; what the server's encoding does not have, by its
 * bytes in hexadecimal.
 */
char *
cqrs_inbound_message_id(const CqrsInbound *inbound,
						const CqrsBrokerReceived *message)
{
	const char *rule = inbound->consumer->message_id;
	const char *id = message->message_id;
	size_t		size = id != NULL ? strlen(id) : 0;
	char	   *text;

	if (strcmp(rule, "body_hash") == 0)
		return digest(message->body, message->body != NULL ? message->body_size : 0);
	if (strncmp(rule, "header:", 7) == 0)
	{
		const CqrsBrokerReceivedHeader *header = find_header(message, "", rule + 7);

		id = header != NULL ? header->value : NULL;
		size = id != NULL ? header->value_size : 0;
	}
	if (size == 0)
		return NULL;
	if (size > CQRS_MAX_MESSAGE_ID * pg_encoding_max_length(PG_UTF8))
		return digest(id, size);
	text = server_has(id, size) ? text_of(id, size) : hex_of(id, size);
	return strlen(text) <= CQRS_MAX_MESSAGE_ID ? text : digest(id, size);
}

/*
 * When a message was sent, as the broker has it; DT_NOBEGIN: it does not say.
 */
TimestampTz
cqrs_inbound_time(const CqrsBrokerReceived *message)
{
	TimestampTz time;

	if (message->timestamp == INT64_MIN ||
		pg_sub_s64_overflow(message->timestamp, UNIX_EPOCH_OFFSET_USEC, &time) ||
		!IS_VALID_TIMESTAMP(time))
		return DT_NOBEGIN;
	return time;
}

/*
 * The id of a message's event.
 */
void
cqrs_inbound_event_id(const CqrsInbound *inbound,
					  const CqrsBrokerReceived *message,
					  const char *message_id, pg_uuid_t *event_id)
{
	char		incarnation[40];
	TimestampTz time = cqrs_inbound_time(message);
	char	   *what;

	(void) cqrs_uuid_text(&inbound->consumer->incarnation, incarnation);
	what = message_id != NULL ? psprintf("%s/%s", incarnation, message_id) :
		psprintf("%s/%d/" INT64_FORMAT, incarnation, message->partition,
				 message->offset);

	/* Without a time, the id is not in order, but the same each time. */
	cqrs_event_id_derive(time == DT_NOBEGIN ? 0 : time, what, event_id);
	pfree(what);
}

/*
 * Make a message an event, in the current memory context. Raises an error if it
 * cannot be one.
 */
void
cqrs_inbound_event(const CqrsInbound *inbound,
				   const CqrsBrokerReceived *message, const char *message_id,
				   pg_uuid_t *event_id, CqrsEvent *event)
{
	Attributes	attributes = {0};
	CqrsEventType *event_type = inbound->event_type;
	Jsonb	   *payload = NULL;

	if (message->body_size > inbound->max_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a message of %zu bytes is larger than %d",
						message->body_size, inbound->max_size),
				 errhint("The server's option max_message_size is the limit.")));

	/* As any other text, it may be one that the server's encoding lacks. */
	if (message_id != NULL && message->message_id != NULL &&
		strcmp(inbound->consumer->message_id, "required") == 0)
		(void) text_of(message->message_id, strlen(message->message_id));

	switch (inbound->format)
	{
		case CQRS_INBOUND_RAW:
			if (message->body != NULL)
				payload = parse_json(message->body, message->body_size);
			break;
		case CQRS_INBOUND_BYTES:
			if (message->body != NULL)
				payload = base64_payload(message->body, message->body_size);
			break;
		case CQRS_INBOUND_CQRS:
			if (message->body != NULL)
				payload = open_envelope(message, &attributes);
			break;
		case CQRS_INBOUND_CLOUDEVENTS:
			if (message->content_type != NULL &&
				pg_strncasecmp(message->content_type, STRUCTURED,
							   strlen(STRUCTURED)) == 0)
				payload = open_structured(message, &attributes);
			else
				payload = open_binary(message, inbound->attribute_prefix,
									  &attributes);
			break;
	}

	memset(event, 0, sizeof(*event));
	event->topic = inbound->consumer->topic;
	event->emitted_at = inbound->now;
	event->event_id = UUIDPGetDatum(event_id);
	if (event_type != NULL)
		event->event_name = inbound->event_name;
	else if (attributes.event_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the message does not say which event it is"),
				 errhint("Give the consumer an event_name.")));
	else
	{
		event_type = cqrs_event_type_get(attributes.event_name);
		event->event_name = CStringGetTextDatum(attributes.event_name);
	}

	event->key.isnull = message->key == NULL && attributes.key == NULL;
	if (message->key != NULL)
		event->key.value = CStringGetTextDatum(text_of(message->key,
													   message->key_size));
	else if (attributes.key != NULL)
		event->key.value = CStringGetTextDatum(attributes.key);
	event->payload.isnull = payload == NULL;
	event->payload.value = JsonbPGetDatum(payload);
	cqrs_emit_check_payload(event_type, event->payload);
	event->headers.isnull = false;
	event->headers.value = JsonbPGetDatum(make_headers(inbound, message,
													   message_id,
													   &attributes));
}

/*
 * A message's own headers, for people to read; NULL: there are none.
 */
Jsonb *
cqrs_inbound_headers(const CqrsBrokerReceived *message)
{
	JsonbParseState *state = NULL;

	if (message->nheaders == 0)
		return NULL;
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_headers(&state, message);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * SHA-256, in hexadecimal.
 */
static char *
digest(const char *bytes, size_t size)
{
	bytea	   *copy = palloc(VARHDRSZ + size);
	bytea	   *hash;
	char	   *text;

	SET_VARSIZE(copy, VARHDRSZ + size);
	if (size > 0)
		memcpy(VARDATA(copy), bytes, size);
	hash = DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
											   PointerGetDatum(copy)));
	text = palloc0(2 * VARSIZE_ANY_EXHDR(hash) + 1);

	hex_encode(VARDATA_ANY(hash), VARSIZE_ANY_EXHDR(hash), text);
	pfree(copy);
	return text;
}

/*
 * The last header of that name, or NULL.
 */
static const CqrsBrokerReceivedHeader *
find_header(const CqrsBrokerReceived *message, const char *prefix,
			const char *name)
{
	size_t		length = strlen(prefix);
	int			i;

	for (i = message->nheaders - 1; i >= 0; i--)
	{
		const char *found = message->headers[i].name;

		if (strncmp(found, prefix, length) == 0 &&
			strcmp(found + length, name) == 0)
			return &message->headers[i];
	}
	return NULL;
}

static char *
header_text(const CqrsBrokerReceived *message, const char *prefix,
			const char *name)
{
	const CqrsBrokerReceivedHeader *header = find_header(message, prefix, name);

	return header == NULL || header->value == NULL ? NULL :
		text_of(header->value, header->value_size);
}

/*
 * Raises 22021 for what is not UTF-8, and what jsonb_in() does.
 */
static Jsonb *
parse_json(const char *body, size_t size)
{
	char	   *copy = palloc_extended(size + 1, MCXT_ALLOC_HUGE);
	char	   *text;
	Datum		result;

	memcpy(copy, body, size);
	copy[size] = '\0';
	text = pg_any_to_server(copy, size, PG_UTF8);

	result = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
	pfree(copy);
	return DatumGetJsonbP(result);
}

static Jsonb *
base64_payload(const char *body, size_t size)
{
	int			length = pg_b64_enc_len(size);
	char	   *text = palloc(length + 1);

	length = cqrs_base64_encode((const uint8 *) body, size, text, length);
	if (length < 0)
		elog(ERROR, "could not encode a message");
	return base64_text_payload(text, length);
}

static Jsonb *
base64_text_payload(const char *text, int len)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "base64", pnstrdup(text, len));
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * Format cqrs.
 */
static Jsonb *
open_envelope(const CqrsBrokerReceived *message, Attributes *attributes)
{
	Jsonb	   *envelope = parse_json(message->body, message->body_size);

	if (!JB_ROOT_IS_OBJECT(envelope))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the message is not an envelope"),
				 errdetail("Its body is not a JSON object.")));
	attributes->event_name = member_text(envelope, "event_name");
	attributes->causation_id = member_text(envelope, "event_id");
	attributes->occurred_at = member_text(envelope, "event_timestamp");
	return member_payload(envelope, "payload");
}

/*
 * Format cloudevents, where the body has it all.
 */
static Jsonb *
open_structured(const CqrsBrokerReceived *message, Attributes *attributes)
{
	Jsonb	   *event;
	char	   *base64;

	if (message->body == NULL || !is_json(message->content_type) ||
		pg_strncasecmp(message->content_type, STRUCTURED "-batch",
					   strlen(STRUCTURED "-batch")) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the message is not one event in JSON"),
				 errdetail("Its content type is \"%s\".",
						   text_of(message->content_type,
								   strlen(message->content_type)))));
	event = parse_json(message->body, message->body_size);
	if (!JB_ROOT_IS_OBJECT(event))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the message is not a CloudEvent"),
				 errdetail("Its body is not a JSON object.")));
	attributes->event_name = member_text(event, "type");
	attributes->causation_id = member_text(event, "id");
	attributes->occurred_at = member_text(event, "time");
	attributes->key = member_text(event, "subject");
	attributes->traceparent = member_text(event, "traceparent");
	attributes->tracestate = member_text(event, "tracestate");
	base64 = member_text(event, "data_base64");
	if (base64 != NULL)
		return base64_text_payload(base64, strlen(base64));
	return member_payload(event, "data");
}

/*
 * Format cloudevents, where headers are the attributes.
 */
static Jsonb *
open_binary(const CqrsBrokerReceived *message, const char *prefix,
			Attributes *attributes)
{
	attributes->event_name = header_text(message, prefix, "type");
	attributes->causation_id = header_text(message, prefix, "id");
	attributes->occurred_at = header_text(message, prefix, "time");
	attributes->key = header_text(message, prefix, "subject");
	attributes->traceparent = header_text(message, prefix, "traceparent");
	attributes->tracestate = header_text(message, prefix, "tracestate");
	if (message->body == NULL || message->body_size == 0)
		return NULL;
	if (message->content_type != NULL && !is_json(message->content_type))
		return base64_payload(message->body, message->body_size);
	return parse_json(message->body, message->body_size);
}

/*
 * The payload that a member of an object is, or NULL if there is none, or null.
 */
static Jsonb *
member_payload(Jsonb *object, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, name,
													 strlen(name), NULL);

	if (value == NULL || value->type == jbvNull)
		return NULL;
	return JsonbValueToJsonb(value);
}

/*
 * A member of an object that is a string; NULL: it is not there, or is none.
 */
static char *
member_text(Jsonb *object, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, name,
													 strlen(name), NULL);

	if (value == NULL || value->type !=jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/*
 * Does this type say that the content is JSON, as application/json and
 * application/problem+json do?
 */
static bool
is_json(const char *content_type)
{
	size_t		length = strcspn(content_type, "; ");

	return length >= 5 &&
		(pg_strncasecmp(content_type + length - 5, "/json", 5) == 0 ||
		 pg_strncasecmp(content_type + length - 5, "+json", 5) == 0);
}

/*
 * Bytes as text of the server's encoding: if they are not text in UTF-8, in
 * hexadecimal. Raises 22P05 for text that the server's encoding does not have.
 */
static char *
text_of(const char *bytes, size_t size)
{
	char	   *text;

	if (size > MaxAllocSize / 4)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a key or header of %zu bytes is too large", size)));
	if (!pg_verify_mbstr(PG_UTF8, bytes, size, true))
		return hex_of(bytes, size);
	text = palloc(size + 1);

	memcpy(text, bytes, size);
	text[		size] = '\0';

	return pg_any_to_server(text, size, PG_UTF8);
}

/*
 * Bytes in hexadecimal, behind \x.
 */
static char *
hex_of(const char *bytes, size_t size)
{
	char	   *hex = palloc(2 + 2 * size + 1);

	memcpy(hex, "\\x", 2);
	hex[2 + hex_encode(bytes, size, hex + 2)] = '\0';
	return hex;
}

/*
 * Would text_of() raise no 22P05?
 */
static bool
server_has(const char *text, size_t size)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	char	   *converted;
	int			converted_size = size * MAX_CONVERSION_GROWTH + 1;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII ||
		!pg_verify_mbstr(PG_UTF8, text, size, true))
		return true;
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return false;
	converted = palloc(converted_size);
	return pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding,
										 (unsigned char *) unconstify(char *, text),
										 size, (unsigned char *) converted,
										 converted_size, true) == size;
}

/*
 * The event's headers: the message's, and ours behind them, as the last of one
 * name counts.
 */
static Jsonb *
make_headers(const CqrsInbound *inbound, const CqrsBrokerReceived *message,
			 const char *message_id, const Attributes *attributes)
{
	JsonbParseState *state = NULL;
	TimestampTz occurred_at = cqrs_inbound_time(message);
	TimestampTz said;
	StringInfoData text;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_headers(&state, message);
	if (attributes->causation_id != NULL)
		push_text(&state, "causation_id", attributes->causation_id);
	if (attributes->traceparent != NULL)
		push_text(&state, "traceparent", attributes->traceparent);
	if (attributes->tracestate != NULL)
		push_text(&state, "tracestate", attributes->tracestate);
	push_text(&state, "source", inbound->consumer->source);
	if (message_id != NULL)
		push_text(&state, "source_message_id", message_id);
	else
	{
		if (message->message_id != NULL)
			push_text(&state, "source_message_id",
					  text_of(message->message_id,
							  strlen(message->message_id)));
		push_number(&state, "source_partition", message->partition);
		push_number(&state, "source_offset", message->offset);
	}
	if (attributes->occurred_at != NULL &&
		cqrs_rfc3339_parse(attributes->occurred_at,
						   strlen(attributes->occurred_at), &said))
		occurred_at = said;
	if (occurred_at != DT_NOBEGIN)
	{
		initStringInfo(&text);
		cqrs_rfc3339_append(&text, occurred_at);
		push_text(&state, "occurred_at", text.data);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * A header occurred_at that is no timestamp is left out: it would have a meaning.
 */
static void
push_headers(JsonbParseState * *state, const CqrsBrokerReceived *message)
{
	int			i;

	for (i = 0; i < message->nheaders; i++)
	{
		const CqrsBrokerReceivedHeader *header = &message->headers[i];
		char	   *name = text_of(header->name, strlen(header->name));
		char	   *value = header->value == NULL ? NULL :
		text_of(header->value, header->value_size);
		TimestampTz time;

		if (strcmp(name, "occurred_at") == 0 &&
			(value == NULL || !cqrs_rfc3339_parse(value, strlen(value), &time)))
			continue;
		push_text(state, name, value);
	}
}

/*
 * value NULL: a JSON null.
 */
static void
push_text(JsonbParseState * *state, const char *name, const char *value)
{
	JsonbValue	member;

	member.type = jbvString;
	member.val.string.val = unconstify(char *, name);
	member.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &member);
	member.type = value == NULL ? jbvNull : jbvString;
	if (value != NULL)
	{
		member.val.string.val = unconstify(char *, value);
		member.val.string.len = strlen(value);
	}
	pushJsonbValue(state, WJB_VALUE, &member);
}

static void
push_number(JsonbParseState * *state, const char *name, int64 value)
{
	JsonbValue	member;

	member.type = jbvString;
	member.val.string.val = unconstify(char *, name);
	member.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &member);
	member.type = jbvNumeric;
	member.val.numeric =
		DatumGetNumeric(DirectFunctionCall1(int8_numeric, Int64GetDatum(value)));
	pushJsonbValue(state, WJB_VALUE, &member);
}
