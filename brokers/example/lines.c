/*-------------------------------------------------------------------------
 *
 * lines.c
 *	  Lines of JSON to send.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lines.h"

static void append_member(Buffer *out, const char *name, const char *value);
static void append_text(Buffer *out, const char *str);
static void append_json(Buffer *out, const char *str, size_t size);
static void append(Buffer *out, const char *bytes, size_t size);

/*
 * Append the line that says who we are. token may be NULL.
 */
void
example_append_hello(Buffer *out, const char *client, const char *token)
{
	append_text(out, "{");
	append_member(out, "client", client);
	if (token != NULL)
	{
		append_text(out, ",");
		append_member(out, "token", token);
	}
	append_text(out, "}\n");
}

/*
 * Append a message. Its body is a string here, JSON or not.
 */
void
example_append_message(Buffer *out, int tag, const CqrsBrokerMessage *message)
{
	char		number[64];
	int			i;

	snprintf(number, sizeof(number), "{\"tag\":%d,\"timestamp\":%lld,", tag,
			 (long long) message->timestamp);
	append_text(out, number);
	append_member(out, "topic", message->topic);
	append_text(out, ",");
	append_member(out, "event_name", message->event_name);
	append_text(out, ",");
	append_member(out, "key", message->key);
	append_text(out, ",");
	append_member(out, "message_id", message->message_id);
	append_text(out, ",");
	append_member(out, "content_type", message->content_type);
	append_text(out, ",\"headers\":{");
	for (i = 0; i < message->nheaders; i++)
	{
		if (i > 0)
			append_text(out, ",");
		append_member(out, message->headers[i].name,
					  message->headers[i].value);
	}
	append_text(out, "},\"body\":");
	if (message->body == NULL)
		append_text(out, "null");
	else
		append_json(out, message->body, message->body_size);
	append_text(out, "}\n");
}

/*
 * "name":"value"; of NULL, "name":null.
 */
static void
append_member(Buffer *out, const char *name, const char *value)
{
	append_json(out, name, strlen(name));
	append_text(out, ":");
	if (value == NULL)
		append_text(out, "null");
	else
		append_json(out, value, strlen(value));
}

static void
append_text(Buffer *out, const char *str)
{
	append(out, str, strlen(str));
}

/*
 * A string of JSON.
 */
static void
append_json(Buffer *out, const char *str, size_t size)
{
	size_t		done = 0;
	size_t		i;

	append_text(out, "\"");
	for (i = 0; i < size; i++)
	{
		unsigned char c = str[i];
		char		escape[8];

		if (c >= ' ' && c != '"' && c != '\\')
			continue;
		append(out, str + done, i - done);
		snprintf(escape, sizeof(escape), "\\u%04x", c);
		append_text(out, escape);
		done = i + 1;
	}
	append(out, str + done, size - done);
	append_text(out, "\"");
}

static void
append(Buffer *out, const char *bytes, size_t size)
{
	if (out->size - out->used < size)
	{
		size_t		enough = 2 * (out->used + size);
		char	   *data = realloc(out->data, enough);

		if (data == NULL)
		{
			out->failed = true;
			return;
		}
		out->data = data;
		out->size = enough;
	}
	if (size > 0)
		memcpy(out->data + out->used, bytes, size);
	out->used += size;
}
