/*-------------------------------------------------------------------------
 *
 * message.c
 *	  Events as messages of a broker.
 *
 * Formats
 *
 * cqrs: the body is the envelope of python-cqrs, {"payload":{...},
 * "event_id":"...","event_timestamp":"...","event_name":"...","topic":"..."}.
 *
 * cloudevents: CloudEvents 1.0 in binary mode. The body is the payload; the
 * attributes are headers, with the prefix of the protocol's binding: id (the
 * event's), source, type (the event's name), time, and subject if the event
 * has a key; its headers traceparent and tracestate are there a second time
 * as the attributes of the distributed tracing extension.
 *
 * raw: the body is the payload; event_id, event_name, event_timestamp and topic
 * are headers.
 *
 * event_timestamp and time are the event's header occurred_at, and where it has
 * none, when it was emitted.
 *
 * In every format, the event's own headers follow ours, except those of the
 * same name. A string is its text, any other value its JSON text, and a JSON
 * null is left out. JSON is compact (json.c), a timestamp is in UTC, with six
 * digits behind the second, and everything is UTF-8.
 *
 * Memory
 *
 * All text of a message is in one buffer, which may move as it grows; so until
 * it is complete, a text is known by its offset.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/detoast.h"
#include "commands/dbcommands.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "base/json.h"
#include "base/rfc3339.h"
#include "broker/message.h"
#include "log/header.h"

/* Microseconds from 1970 to 2000. */
#define UNIX_EPOCH_OFFSET_USEC \
	((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* The most headers that a format has of its own: cloudevents has this many. */
#define MAX_OWN_HEADERS	8

/* About the size of a message without the payload. */
#define TEXT_SIZE		448

/* This many bytes of jsonb make at least one byte of JSON. */
#define JSONB_BYTES		16

/* Where a text begins in the buffer. */
typedef int Offset;

#define NO_TEXT			(-1)

typedef struct HeaderText
{
	Offset		name;
	Offset		value;
} HeaderText;

/* A message that is being formed. */
typedef struct Draft
{
	const CqrsEvent *event;
	Jsonb	   *payload;		/* NULL: the event has none */
	Jsonb	   *headers;		/* NULL: the event has none, not even {} */
	const char *prefix;			/* of attributes */
	StringInfoData text;
	int			limit;			/* the most bytes it may have */
	Offset		topic;
	Offset		event_name;
	Offset		key;
	Offset		event_id;
	Offset		timestamp;
	Offset		body;			/* NO_TEXT: a tombstone */
	bool		has_data;		/* the body, unless empty, is JSON */
	HeaderText *header_texts;	/* NULL: there are none */
	int			nheaders;
} Draft;

static const char *const format_names[] = {
	[CQRS_FORMAT_CQRS] = "cqrs",
	[CQRS_FORMAT_CLOUDEVENTS] = "cloudevents",
	[CQRS_FORMAT_RAW] = "raw",
};

static Jsonb *get_jsonb(NullableDatum datum, int max_size);
static void free_jsonb(Jsonb *jsonb, NullableDatum datum);
static void init_draft(Draft *draft, const CqrsEvent *event,
					   CqrsFormat format, int max_size);
static void finish_draft(const Draft *draft, CqrsBrokerMessage *message);
static Offset end_text(Draft *draft, Offset start);
static Offset add_string(Draft *draft, const char *str);
static Offset add_utf8(Draft *draft, const char *str);
static Offset add_value(Draft *draft, Datum value);
static Offset add_event_id(Draft *draft);
static Offset add_timestamp(Draft *draft);
static void add_header(Draft *draft, Offset name, Offset value);
static void add_attributes(Draft *draft, const char *source);
static Offset add_attribute_name(Draft *draft, const char *name);
static void add_tracing_attribute(Draft *draft, const char *name);
static Offset add_default_source(Draft *draft);
static void append_percent_encoded(StringInfo buf, const char *str);
static void add_metadata(Draft *draft);
static void add_event_headers(Draft *draft);
static bool has_header(const Draft *draft, int nheaders, Offset name);
static Offset add_header_value(Draft *draft, const JsonbValue *value);
static void add_envelope(Draft *draft);
static void append_again(Draft *draft, Offset start);
static void add_data(Draft *draft, const char *without_payload);

/*
 * The format of this name. Returns false if there is none.
 */
bool
cqrs_format_parse(const char *name, CqrsFormat *format)
{
	int			i;

	for (i = 0; i < lengthof(format_names); i++)
	{
		if (strcmp(name, format_names[i]) == 0)
		{
			*format = (CqrsFormat) i;
			return true;
		}
	}
	return false;
}

const char *
cqrs_format_name(CqrsFormat format)
{
	return format_names[format];
}

/*
 * Fill in *message from an event, for a broker of this module. source is the
 * attribute of that name in the format cloudevents, in UTF-8; NULL stands for
 * /<database>/<topic>. Neither the body nor the rest is larger than max_size
 * bytes.
 *
 * All that *message points to is allocated in the current memory context, and
 * nothing else is left there. Its tag is 0.
 *
 * Raises what json.c does, 54000 if the message would be larger, 22008 for an
 * event that was emitted at infinity, as one written by hand may say, and
 * whatever fetching a toasted value raises: then this event cannot be a message,
 * but others can. Needs a transaction.
 */
void
cqrs_message_form(const CqrsEvent *event, CqrsFormat format,
				  const CqrsBrokerModule *module, const char *source,
				  int max_size, CqrsBrokerMessage *message)
{
	Draft		draft;

	init_draft(&draft, event, format, max_size);
	draft.prefix = module->cloudevents_prefix;
	if (format == CQRS_FORMAT_CLOUDEVENTS)
		add_attributes(&draft, source);
	else if (format == CQRS_FORMAT_RAW)
		add_metadata(&draft);
	if (draft.headers != NULL)
		add_event_headers(&draft);

	draft.body = draft.text.len;
	draft.limit = draft.body + max_size;
	if (draft.payload == NULL && module->tombstones)
		draft.body = NO_TEXT;
	else if (format == CQRS_FORMAT_CQRS)
		add_envelope(&draft);
	else
		add_data(&draft, format == CQRS_FORMAT_RAW ? "null" : "");
	if (draft.text.len > draft.limit)
		cqrs_text_too_long();
	finish_draft(&draft, message);
}

/*
 * The jsonb, or NULL for NULL. If it has to be fetched or unpacked, it is in
 * the current context; one that is too long in any case is refused before
 * that.
 */
static Jsonb *
get_jsonb(NullableDatum datum, int max_size)
{
	if (datum.isnull)
		return NULL;
	if (toast_raw_datum_size(datum.value) / JSONB_BYTES > (Size) max_size)
		cqrs_text_too_long();
	return DatumGetJsonbP(datum.value);
}

static void
free_jsonb(Jsonb *jsonb, NullableDatum datum)
{
	if (jsonb != NULL && (Pointer) jsonb != DatumGetPointer(datum.value))
		pfree(jsonb);
}

/*
 * Start with what every message has: everything but the headers and the body.
 */
static void
init_draft(Draft *draft, const CqrsEvent *event, CqrsFormat format,
		   int max_size)
{
	Size		size = TEXT_SIZE;
	int			nheaders = 0;

	draft->event = event;
	draft->limit = 4 * TEXT_SIZE + max_size;
	draft->payload = get_jsonb(event->payload, max_size);
	draft->headers = get_jsonb(event->headers, max_size);
	draft->has_data = false;
	if (draft->headers != NULL && JB_ROOT_COUNT(draft->headers) == 0)
	{
		free_jsonb(draft->headers, event->headers);
		draft->headers = NULL;
	}

	/* JSON is about as large as jsonb; each header may occur twice. */
	if (draft->payload != NULL)
		size += VARSIZE(draft->payload);
	if (draft->headers != NULL)
	{
		size += VARSIZE(draft->headers);
		nheaders = JB_ROOT_COUNT(draft->headers);
	}
	size = Min(size, 2 * ((Size) max_size + TEXT_SIZE));
	if (format != CQRS_FORMAT_CQRS)
		nheaders += MAX_OWN_HEADERS;
	draft->text.data = palloc(size);
	draft->text.maxlen = size;
	resetStringInfo(&draft->text);
	draft->nheaders = 0;
	draft->header_texts = nheaders == 0 ? NULL :
		palloc(sizeof(HeaderText) * nheaders);

	draft->topic = add_string(draft, event->topic->name);
	draft->event_name = add_value(draft, event->event_name);
	draft->key = event->key.isnull ? NO_TEXT :
		add_value(draft, event->key.value);
	draft->event_id = add_event_id(draft);
	draft->timestamp = add_timestamp(draft);
}

/*
 * The buffer does not move any more: hand it over, and free the rest.
 */
static void
finish_draft(const Draft *draft, CqrsBrokerMessage *message)
{
	const CqrsEvent *event = draft->event;
	const char *base = draft->text.data;
	CqrsBrokerHeader *headers = NULL;
	int			i;

	if (draft->nheaders > 0)
		headers = palloc(sizeof(CqrsBrokerHeader) * draft->nheaders);
	for (i = 0; i < draft->nheaders; i++)
	{
		headers[i].name = base + draft->header_texts[i].name;
		headers[i].value = base + draft->header_texts[i].value;
	}

	message->topic = base + draft->topic;
	message->event_name = base + draft->event_name;
	message->key = draft->key == NO_TEXT ? NULL : base + draft->key;
	message->message_id = base + draft->event_id;
	message->timestamp = event->emitted_at + UNIX_EPOCH_OFFSET_USEC;
	message->content_type = draft->has_data ? "application/json" : NULL;
	message->body = draft->body == NO_TEXT ? NULL : base + draft->body;
	message->body_size = draft->body == NO_TEXT ? 0 :
		draft->text.len - draft->body;
	message->nheaders = draft->nheaders;
	message->headers = headers;
	message->tag = 0;

	if (draft->header_texts != NULL)
		pfree(draft->header_texts);
	free_jsonb(draft->payload, event->payload);
	free_jsonb(draft->headers, event->headers);
}

/*
 * Make a text of what was appended since start.
 */
static Offset
end_text(Draft *draft, Offset start)
{
	appendStringInfoCharMacro(&draft->text, '\0');
	return start;
}

/*
 * Add a text from a string in the database's encoding.
 */
static Offset
add_string(Draft *draft, const char *str)
{
	Offset		start = draft->text.len;

	cqrs_utf8_append(&draft->text, str, strlen(str), draft->limit);
	return end_text(draft, start);
}

/*
 * Add a text from a string in UTF-8.
 */
static Offset
add_utf8(Draft *draft, const char *str)
{
	Offset		start = draft->text.len;

	appendStringInfoString(&draft->text, str);
	return end_text(draft, start);
}

/*
 * Add a text from a value of type text.
 */
static Offset
add_value(Draft *draft, Datum value)
{
	Offset		start = draft->text.len;
	text	   *unpacked = DatumGetTextPP(value);

	cqrs_utf8_append(&draft->text, VARDATA_ANY(unpacked),
					 VARSIZE_ANY_EXHDR(unpacked), draft->limit);
	if ((Pointer) unpacked != DatumGetPointer(value))
		pfree(unpacked);
	return end_text(draft, start);
}

/*
 * 00000000-0000-7000-8000-000000000000
 */
static Offset
add_event_id(Draft *draft)
{
	Offset		start = draft->text.len;
	char		id[CQRS_UUID_TEXT_LEN + 1];

	appendStringInfoString(&draft->text,
						   cqrs_uuid_text(DatumGetUUIDP(draft->event->event_id),
										  id));
	return end_text(draft, start);
}

/*
 * When the event happened, or if it does not say so, when it was emitted.
 */
static Offset
add_timestamp(Draft *draft)
{
	Offset		start = draft->text.len;
	TimestampTz timestamp;

	if (draft->headers == NULL ||
		!cqrs_header_occurred_at(draft->headers, &timestamp))
		timestamp = draft->event->emitted_at;
	cqrs_rfc3339_append(&draft->text, timestamp);
	return end_text(draft, start);
}

static void
add_header(Draft *draft, Offset name, Offset value)
{
	HeaderText *header = &draft->header_texts[draft->nheaders++];

	header->name = name;
	header->value = value;
}

/*
 * Add the attributes of CloudEvents. Optional ones are never empty.
 */
static void
add_attributes(Draft *draft, const char *source)
{
	Offset		value;

	value = add_utf8(draft, "1.0");
	add_header(draft, add_attribute_name(draft, "specversion"), value);
	add_header(draft, add_attribute_name(draft, "id"), draft->event_id);
	value = source == NULL ? add_default_source(draft) :
		add_utf8(draft, source);
	add_header(draft, add_attribute_name(draft, "source"), value);
	add_header(draft, add_attribute_name(draft, "type"), draft->event_name);
	add_header(draft, add_attribute_name(draft, "time"), draft->timestamp);
	if (draft->key != NO_TEXT && draft->text.data[draft->key] != '\0')
		add_header(draft, add_attribute_name(draft, "subject"), draft->key);
	if (draft->headers != NULL)
	{
		add_tracing_attribute(draft, "traceparent");
		add_tracing_attribute(draft, "tracestate");
	}
}

static Offset
add_attribute_name(Draft *draft, const char *name)
{
	Offset		start = draft->text.len;

	appendStringInfoString(&draft->text, draft->prefix);
	appendStringInfoString(&draft->text, name);
	return end_text(draft, start);
}

/*
 * Add the event's header of this name, if it has one, as an attribute.
 */
static void
add_tracing_attribute(Draft *draft, const char *name)
{
	JsonbValue	value;
	Offset		start;

	if (!JB_ROOT_IS_OBJECT(draft->headers) ||
		getKeyJsonValueFromContainer(&draft->headers->root, name,
									 strlen(name), &value) == NULL ||
		value.type !=jbvString || value.val.string.len == 0)
		return;
	start = add_header_value(draft, &value);
	add_header(draft, add_attribute_name(draft, name), start);
}

/*
 * /<database>/<topic>, a URI reference.
 */
static Offset
add_default_source(Draft *draft)
{
	static char *database = NULL;
	Offset		start = draft->text.len;

	/* The database cannot be renamed while we are connected to it. */
	if (database == NULL)
	{
		char	   *name = get_database_name(MyDatabaseId);

		database = MemoryContextStrdup(TopMemoryContext, name);
		pfree(name);
	}

	appendStringInfoCharMacro(&draft->text, '/');
	append_percent_encoded(&draft->text, database);
	appendStringInfoCharMacro(&draft->text, '/');
	append_percent_encoded(&draft->text, draft->event->topic->name);
	return end_text(draft, start);
}

/*
 * Append a string in the database's encoding as a segment of a URI's path.
 */
static void
append_percent_encoded(StringInfo buf, const char *str)
{
	static const char hex[] = "0123456789ABCDEF";
	char	   *utf8 = pg_server_to_any(str, strlen(str), PG_UTF8);
	const char *p;

	for (p = utf8; *p != '\0'; p++)
	{
		unsigned char c = (unsigned char) *p;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(c >= '0' && c <= '9') || strchr("-._~", c) != NULL)
			appendStringInfoCharMacro(buf, c);
		else
		{
			appendStringInfoCharMacro(buf, '%');
			appendStringInfoCharMacro(buf, hex[c >> 4]);
			appendStringInfoCharMacro(buf, hex[c & 0xf]);
		}
	}
	if (utf8 != str)
		pfree(utf8);
}

/*
 * Add what the format raw has besides the body.
 */
static void
add_metadata(Draft *draft)
{
	add_header(draft, add_utf8(draft, "event_id"), draft->event_id);
	add_header(draft, add_utf8(draft, "event_name"), draft->event_name);
	add_header(draft, add_utf8(draft, "event_timestamp"),
			   draft->timestamp);
	add_header(draft, add_utf8(draft, "topic"), draft->topic);
}

/*
 * Add the event's own headers, except those that have the name of one of ours.
 */
static void
add_event_headers(Draft *draft)
{
	int			nown = draft->nheaders;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	Offset		name = NO_TEXT;

	/* Only a row written by hand has anything else. */
	if (!JB_ROOT_IS_OBJECT(draft->headers))
		return;

	it = JsonbIteratorInit(&draft->headers->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			name = draft->text.len;
			cqrs_utf8_append(&draft->text, value.val.string.val,
							 value.val.string.len, draft->limit);
			end_text(draft, name);
			if (has_header(draft, nown, name))
				name = NO_TEXT;
		}
		else if (token == WJB_VALUE && name != NO_TEXT &&
				 value.type !=jbvNull)
			add_header(draft, name, add_header_value(draft, &value));
	}
}

/*
 * Does one of the first nheaders headers have this name?
 */
static bool
has_header(const Draft *draft, int nheaders, Offset name)
{
	const char *base = draft->text.data;
	int			i;

	for (i = 0; i < nheaders; i++)
	{
		if (strcmp(base + draft->header_texts[i].name, base + name) == 0)
			return true;
	}
	return false;
}

static Offset
add_header_value(Draft *draft, const JsonbValue *value)
{
	Offset		start = draft->text.len;

	if (value->type == jbvString)
		cqrs_utf8_append(&draft->text, value->val.string.val,
						 value->val.string.len, draft->limit);
	else if (value->type == jbvBinary)
		cqrs_json_append(&draft->text, value->val.binary.data,
						 draft->limit);
	else
		cqrs_json_append_scalar(&draft->text, value, draft->limit);
	return end_text(draft, start);
}

/*
 * Add the envelope of python-cqrs. Its readers may depend on the order of the
 * keys.
 */
static void
add_envelope(Draft *draft)
{
	StringInfo	buf = &draft->text;
	const CqrsEvent *event = draft->event;
	text	   *name = DatumGetTextPP(event->event_name);

	appendStringInfoString(buf, "{\"payload\":");
	if (draft->payload == NULL)
		appendStringInfoString(buf, "null");
	else
		cqrs_json_append(buf, &draft->payload->root, draft->limit);
	appendStringInfoString(buf, ",\"event_id\":\"");
	append_again(draft, draft->event_id);
	appendStringInfoString(buf, "\",\"event_timestamp\":\"");
	append_again(draft, draft->timestamp);
	appendStringInfoString(buf, "\",\"event_name\":");
	cqrs_json_append_string(buf, VARDATA_ANY(name),
							VARSIZE_ANY_EXHDR(name), draft->limit);
	appendStringInfoString(buf, ",\"topic\":");
	cqrs_json_append_string(buf, event->topic->name,
							strlen(event->topic->name), draft->limit);
	appendStringInfoCharMacro(buf, '}');
	draft->has_data = true;
}

/*
 * Append again a text that is in the buffer already, and needs no escapes.
 */
static void
append_again(Draft *draft, Offset start)
{
	int			len = strlen(draft->text.data + start);

	enlargeStringInfo(&draft->text, len);
	appendBinaryStringInfo(&draft->text, draft->text.data + start, len);
}

/*
 * Add the payload alone or, if there is none, without_payload.
 */
static void
add_data(Draft *draft, const char *without_payload)
{
	if (draft->payload != NULL)
		cqrs_json_append(&draft->text, &draft->payload->root,
						 draft->limit);
	else
		appendStringInfoString(&draft->text, without_payload);
	draft->has_data = draft->text.len > draft->body;
}
