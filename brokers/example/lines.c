/*-------------------------------------------------------------------------
 *
 * lines.c
 *	  Lines of JSON to send, and lines that are messages.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lines.h"

/* Of a message, before its headers. */
#define FIXED_WORDS	7

/* Words that are left of a line. */
typedef struct Words
{
	char	   *at;
	char	   *end;
} Words;

static void append_member(Buffer *out, const char *name, const char *value);
static void append_text(Buffer *out, const char *str);
static void append_json(Buffer *out, const char *str, size_t size);
static void append(Buffer *out, const char *bytes, size_t size);
static char *take_word(Words *words, size_t * size);
static const char *take_string(Words *words);
static int	hex_digit(char c);

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
 * Append that we want the messages of a source, so many before we acknowledge
 * any.
 */
void
example_append_consume(Buffer *out, const char *source, const char *window)
{
	append_text(out, "{");
	append_member(out, "consume", source);
	append_text(out, ",\"window\":");
	append_text(out, window);
	append_text(out, "}\n");
}

/*
 * Append that a message may be forgotten.
 */
void
example_append_ack(Buffer *out, uint64_t tag)
{
	char		line[64];

	snprintf(line, sizeof(line), "{\"ack\":%llu}\n", (unsigned long long) tag);
	append_text(out, line);
}

/*
 * Make room for so many bytes more. Returns false if there is no memory.
 */
bool
example_buffer_reserve(Buffer *buffer, size_t size)
{
	size_t		enough = 2 * (buffer->used + size);
	char	   *data;

	if (buffer->size - buffer->used >= size)
		return true;
	data = realloc(buffer->data, enough);
	if (data == NULL)
		return false;
	buffer->data = data;
	buffer->size = enough;
	return true;
}

/*
 * Make a message of a line: words with a space between them, which are tag, 1 if
 * redelivered, timestamp, id, key, content type, body, and name and value of each
 * header. In a word, %XX is a byte, in hexadecimal; the word - stands for
 * nothing.
 *
 * Returns false if it is no such line. *received is to be freed with free(), and
 * NULL if there is no memory.
 */
bool
example_parse_message(const char *line, size_t size, Received **received)
{
	int			nwords = 1;
	CqrsBrokerReceived *message;
	CqrsBrokerReceivedHeader *headers;
	const char *word;
	Words		words;
	size_t		i;

	for (i = 0; i < size; i++)
		nwords += line[i] == ' ';
	if (nwords < FIXED_WORDS || (nwords - FIXED_WORDS) % 2 != 0)
		return false;
	nwords = (nwords - FIXED_WORDS) / 2;
	*received = calloc(1, sizeof(Received) +
					   nwords * sizeof(CqrsBrokerReceivedHeader) + size + 1);
	if (*received == NULL)
		return true;
	message = &(*received)->message;
	headers = (CqrsBrokerReceivedHeader *) (*received + 1);
	words.at = (char *) (headers + nwords);
	words.end = words.at + size;
	memcpy(words.at, line, size);

	message->offset = -1;
	word = take_string(&words);
	message->tag = word != NULL ? strtoull(word, NULL, 10) : 0;
	word = take_string(&words);
	message->redelivered = word != NULL && word[0] == '1';
	word = take_string(&words);
	message->timestamp = word != NULL ? strtoll(word, NULL, 10) : INT64_MIN;
	message->message_id = take_string(&words);
	message->key = take_word(&words, &message->key_size);
	message->content_type = take_string(&words);
	message->body = take_word(&words, &message->body_size);
	message->headers = headers;
	while (nwords-- > 0)
	{
		headers->name = take_string(&words);
		headers->value = take_word(&words, &headers->value_size);
		if (headers->name != NULL)
		{
			headers++;
			message->nheaders++;
		}
	}
	message->handle = *received;
	return true;
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
	if (!example_buffer_reserve(out, size))
	{
		out->failed = true;
		return;
	}
	if (size > 0)
		memcpy(out->data + out->used, bytes, size);
	out->used += size;
}

/*
 * The next word, decoded in its place, and with a NUL behind it; NULL if it
 * stands for nothing.
 */
static char *
take_word(Words *words, size_t * size)
{
	char	   *word = words->at;
	char	   *to = word;
	bool		nothing;

	while (words->at < words->end && *words->at != ' ')
	{
		char	   *at = words->at;
		int			high = words->end - at > 2 ? hex_digit(at[1]) : -1;
		int			low = words->end - at > 2 ? hex_digit(at[2]) : -1;
		bool		escape = *at == '%' && high >= 0 && low >= 0;

		*to++ = escape ? (char) (high << 4 | low) : *at;
		words->at += escape ? 3 : 1;
	}
	nothing = words->at - word == 1 && word[0] == '-';
	*to = '\0';
	*size = nothing ? 0 : to - word;
	words->at++;
	return nothing ? NULL : word;
}

/*
 * The same, of a word that must not have a NUL in it: it would be taken for
 * another one that ends there.
 */
static const char *
take_string(Words *words)
{
	size_t		size;
	const char *word = take_word(words, &size);

	return word != NULL && strlen(word) == size ? word : NULL;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}
