/*-------------------------------------------------------------------------
 *
 * delivery.c
 *	  A message from RabbitMQ as the core wants it.
 *
 * Memory
 *
 * All of a message is in one piece of memory, but what it takes is not known
 * before headers are written as text. So a message is laid out twice: at first,
 * only how much it takes is counted.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

/* Properties that become headers, at most. */
#define EXTRA_HEADERS	4

/* Tables in tables are as deep at most; anything deeper is null. */
#define DEPTH_MAX		32

/* A decimal number may have 255 digits behind its point. */
#define NUMBER_SIZE		300

/*
 * Where things are put. If base is NULL, they are only counted.
 */
typedef struct Layout
{
	char	   *base;
	size_t		used;
} Layout;

static void lay_out(Layout *out, const amqp_basic_properties_t *properties,
					const char *routing_key, size_t body_size);
static const char *put_string(Layout *out, amqp_bytes_t bytes, bool present);
static void put_headers(Layout *out, CqrsBrokerReceived *message,
						const amqp_basic_properties_t *properties,
						const char *routing_key);
static void add_header(Layout *out, CqrsBrokerReceived *message,
					   amqp_bytes_t name, const amqp_field_value_t *value);
static bool has_header(const amqp_table_t *headers, const char *name);
static void put_value(Layout *out, const amqp_field_value_t *value);
static void put_json(Layout *out, const amqp_field_value_t *value, int depth);
static void put_json_string(Layout *out, amqp_bytes_t string);
static bool format_scalar(const amqp_field_value_t *value, char *text);
static void format_decimal(amqp_decimal_t decimal, char *text);
static void format_float(double value, bool single, char *text);
static void put(Layout *out, const void *bytes, size_t size);
static void put_text(Layout *out, const char *text);

/*
 * A message with these properties, and room for a body of this size. NULL if
 * there is no memory. To be freed with free().
 */
RabbitDelivery *
rabbitmq_delivery(const amqp_basic_properties_t *properties,
				  const char *routing_key, size_t body_size)
{
	Layout		out = {NULL, 0};

	lay_out(&out, properties, routing_key, body_size);
	out.base = malloc(out.used);
	out.used = 0;
	if (out.base != NULL)
		lay_out(&out, properties, routing_key, body_size);
	return (RabbitDelivery *) out.base;
}

/*
 * First what has to be aligned, then text, finally the body.
 */
static void
lay_out(Layout *out, const amqp_basic_properties_t *properties,
		const char *routing_key, size_t body_size)
{
	amqp_flags_t flags = properties->_flags;
	RabbitDelivery counted = {0};
	RabbitDelivery *delivery = out->base != NULL ?
	(RabbitDelivery *) out->base : &counted;
	CqrsBrokerReceived *message = &delivery->message;

	memset(delivery, 0, sizeof(RabbitDelivery));
	out->used = sizeof(RabbitDelivery);
	message->offset = -1;
	message->timestamp = INT64_MIN;
	if ((flags & AMQP_BASIC_TIMESTAMP_FLAG) != 0 &&
		properties->timestamp <= INT64_MAX / 1000000)
		message->timestamp = (int64_t) properties->timestamp * 1000000;

	put_headers(out, message, properties, routing_key);
	message->message_id = put_string(out, properties->message_id,
									 (flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0);
	message->content_type = put_string(out, properties->content_type,
									   (flags & AMQP_BASIC_CONTENT_TYPE_FLAG) != 0);
	delivery->body = out->base != NULL ? out->base + out->used : NULL;
	message->body = delivery->body;
	message->body_size = body_size;
	out->used += body_size;
}

/*
 * Put a string, and return where it is. NULL if there is none: one with a NUL
 * would be taken for another that ends there.
 */
static const char *
put_string(Layout *out, amqp_bytes_t bytes, bool present)
{
	const char *string = out->base != NULL ? out->base + out->used : NULL;

	if (!present ||
		(bytes.len > 0 && memchr(bytes.bytes, '\0', bytes.len) != NULL))
		return NULL;
	put(out, bytes.bytes, bytes.len);
	put(out, "", 1);
	return string;
}

/*
 * The headers, and what the protocol has in other places and no field of a
 * message is for; a header of the same name comes before that.
 */
static void
put_headers(Layout *out, CqrsBrokerReceived *message,
			const amqp_basic_properties_t *properties, const char *routing_key)
{
	const struct
	{
		const char *name;
		bool		present;
		amqp_bytes_t value;
	}			extra[EXTRA_HEADERS] = {
		{"correlation_id", (properties->_flags & AMQP_BASIC_CORRELATION_ID_FLAG) != 0,
		properties->correlation_id},
		{"reply_to", (properties->_flags & AMQP_BASIC_REPLY_TO_FLAG) != 0,
		properties->reply_to},
		{"type", (properties->_flags & AMQP_BASIC_TYPE_FLAG) != 0,
		properties->type},
		{"routing_key", true, amqp_cstring_bytes(routing_key)}
	};
	amqp_table_t headers = amqp_empty_table;
	int			i;

	if ((properties->_flags & AMQP_BASIC_HEADERS_FLAG) != 0)
		headers = properties->headers;
	if (out->base != NULL)
		message->headers = (CqrsBrokerReceivedHeader *) (out->base + out->used);
	out->used += (headers.num_entries + EXTRA_HEADERS) *
		sizeof(CqrsBrokerReceivedHeader);

	for (i = 0; i < headers.num_entries; i++)
		add_header(out, message, headers.entries[i].key,
				   &headers.entries[i].value);
	for (i = 0; i < EXTRA_HEADERS; i++)
	{
		const amqp_field_value_t value = {
			.kind = AMQP_FIELD_KIND_UTF8,.value.bytes = extra[i].value
		};

		if (extra[i].present && !has_header(&headers, extra[i].name))
			add_header(out, message, amqp_cstring_bytes(extra[i].name), &value);
	}
}

/*
 * A header, unless its name cannot be said.
 */
static void
add_header(Layout *out, CqrsBrokerReceived *message, amqp_bytes_t name,
		   const amqp_field_value_t *value)
{
	CqrsBrokerReceivedHeader header = {0};
	size_t		start;

	start = out->used;
	header.name = put_string(out, name, true);
	if (out->used == start)
		return;
	if (value->kind != AMQP_FIELD_KIND_VOID)
	{
		start = out->used;
		put_value(out, value);
		header.value = out->base != NULL ? out->base + start : NULL;
		header.value_size = out->used - start;
	}
	if (out->base != NULL)
		((CqrsBrokerReceivedHeader *) message->headers)[message->nheaders] = header;
	message->nheaders++;
}

static bool
has_header(const amqp_table_t *headers, const char *name)
{
	int			i;

	for (i = 0; i < headers->num_entries; i++)
	{
		amqp_bytes_t key = headers->entries[i].key;

		if (key.len == strlen(name) && memcmp(key.bytes, name, key.len) == 0)
			return true;
	}
	return false;
}

/*
 * A header's value: a string as it is, a number, boolean or timestamp as text,
 * a table or array as JSON.
 */
static void
put_value(Layout *out, const amqp_field_value_t *value)
{
	char		scalar[NUMBER_SIZE];

	if (value->kind == AMQP_FIELD_KIND_UTF8 ||
		value->kind == AMQP_FIELD_KIND_BYTES)
		put(out, value->value.bytes.bytes, value->value.bytes.len);
	else if (format_scalar(value, scalar))
		put_text(out, scalar);
	else
		put_json(out, value, 0);
}

static void
put_json(Layout *out, const amqp_field_value_t *value, int depth)
{
	char		scalar[NUMBER_SIZE];
	int			i;

	if (depth > DEPTH_MAX)
		put_text(out, "null");
	else if (value->kind == AMQP_FIELD_KIND_UTF8 ||
			 value->kind == AMQP_FIELD_KIND_BYTES)
		put_json_string(out, value->value.bytes);
	else if (value->kind == AMQP_FIELD_KIND_ARRAY)
	{
		const amqp_array_t *array = &value->value.array;

		put_text(out, "[");
		for (i = 0; i < array->num_entries; i++)
		{
			if (i > 0)
				put_text(out, ", ");
			put_json(out, &array->entries[i], depth + 1);
		}
		put_text(out, "]");
	}
	else if (value->kind == AMQP_FIELD_KIND_TABLE)
	{
		const amqp_table_t *table = &value->value.table;

		put_text(out, "{");
		for (i = 0; i < table->num_entries; i++)
		{
			if (i > 0)
				put_text(out, ", ");
			put_json_string(out, table->entries[i].key);
			put_text(out, ": ");
			put_json(out, &table->entries[i].value, depth + 1);
		}
		put_text(out, "}");
	}
	else if (format_scalar(value, scalar) && strpbrk(scalar, "ni") == NULL)
		put_text(out, scalar);
	else
		put_text(out, "null");	/* nothing, no number, or infinite */
}

static void
put_json_string(Layout *out, amqp_bytes_t string)
{
	const char *bytes = string.bytes;
	size_t		done = 0;
	size_t		i;

	put_text(out, "\"");
	for (i = 0; i < string.len; i++)
	{
		unsigned char c = bytes[i];
		char		escape[8];

		if (c >= ' ' && c != '"' && c != '\\')
			continue;
		put(out, bytes + done, i - done);
		snprintf(escape, sizeof(escape), "\\u%04x", c);
		put_text(out, escape);
		done = i + 1;
	}
	put(out, bytes + done, string.len - done);
	put_text(out, "\"");
}

/*
 * Write what has no parts to text, an array of NUMBER_SIZE bytes. False if it is
 * nothing of the kind.
 */
static bool
format_scalar(const amqp_field_value_t *value, char *text)
{
	int64_t		number;

	switch (value->kind)
	{
		case AMQP_FIELD_KIND_BOOLEAN:
			strcpy(text, value->value.boolean ? "true" : "false");
			return true;
		case AMQP_FIELD_KIND_I8:
			number = value->value.i8;
			break;
		case AMQP_FIELD_KIND_U8:
			number = value->value.u8;
			break;
		case AMQP_FIELD_KIND_I16:
			number = value->value.i16;
			break;
		case AMQP_FIELD_KIND_U16:
			number = value->value.u16;
			break;
		case AMQP_FIELD_KIND_I32:
			number = value->value.i32;
			break;
		case AMQP_FIELD_KIND_U32:
			number = value->value.u32;
			break;
		case AMQP_FIELD_KIND_I64:
			number = value->value.i64;
			break;
		case AMQP_FIELD_KIND_U64:
		case AMQP_FIELD_KIND_TIMESTAMP:
			snprintf(text, NUMBER_SIZE, "%" PRIu64, value->value.u64);
			return true;
		case AMQP_FIELD_KIND_F32:
			format_float(value->value.f32, true, text);
			return true;
		case AMQP_FIELD_KIND_F64:
			format_float(value->value.f64, false, text);
			return true;
		case AMQP_FIELD_KIND_DECIMAL:
			format_decimal(value->value.decimal, text);
			return true;
		default:
			return false;
	}
	snprintf(text, NUMBER_SIZE, "%" PRId64, number);
	return true;
}

/*
 * An integer with so many of its digits behind the point.
 */
static void
format_decimal(amqp_decimal_t decimal, char *text)
{
	int			length;

	length = snprintf(text, NUMBER_SIZE, "%0*" PRIu32, decimal.decimals + 1,
					  decimal.value);
	if (decimal.decimals > 0)
	{
		char	   *point = text +length - decimal.decimals;

		memmove(point + 1, point, decimal.decimals + 1);
		*point = '.';
	}
}

/*
 * As few digits as it takes to read the same number again, in single or double
 * precision.
 */
static void
format_float(double value, bool single, char *text)
{
	int			digits;

	for (digits = 6; digits <= 17; digits++)
	{
		double		read;

		snprintf(text, NUMBER_SIZE, "%.*g", digits, value);
		read = single ? strtof(text, NULL) : strtod(text, NULL);
		if (!isfinite(value) || read == value)
			break;
	}
}

static void
put(Layout *out, const void *bytes, size_t size)
{
	if (out->base != NULL && size > 0)
		memcpy(out->base + out->used, bytes, size);
	out->used += size;
}

static void
put_text(Layout *out, const char *text)
{
	put(out, text, strlen(text));
}
