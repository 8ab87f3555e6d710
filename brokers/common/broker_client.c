/*-------------------------------------------------------------------------
 *
 * broker_client.c
 *	  What the clients of this repository's broker modules share: options,
 *	  templates, texts of errors.
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "broker_client.h"

static int	character_length(const unsigned char *c);
static bool parse_int(const char *value, long *result);
static bool parse_bool(const char *value, bool *result);
static const char *template_field(const char **template,
								  const CqrsBrokerMessage *message,
								  size_t * length);

/*
 * Set error, an array of CQRS_BROKER_ERROR_SIZE bytes, as printf() would. What
 * libraries and brokers say may have several lines, or be cut in the middle of
 * a character: what comes out is one line of UTF-8.
 *
 * Returns false, for callers that do so when they have set an error.
 */
bool
broker_error(char *error, const char *format,...)
{
	va_list		args;
	char	   *c;

	va_start(args, format);
	vsnprintf(error, CQRS_BROKER_ERROR_SIZE, format, args);
	va_end(args);

	for (c = error; *c != '\0';)
	{
		int			length = character_length((unsigned char *) c);

		if (length == 0)
			*c++ = '?';
		else if ((unsigned char) *c < ' ' || *c == 0x7F)
			*c++ = ' ';
		else
			c += length;
	}
	while (c > error && c[-1] == ' ')
		*--c = '\0';
	return false;
}

/*
 * The value of an option of server or user mapping; NULL if it is not set.
 */
const char *
broker_option(const CqrsBrokerConnection *connection, const char *name)
{
	int			i;

	for (i = 0; i < connection->noptions; i++)
	{
		if (strcmp(connection->options[i].name, name) == 0)
			return connection->options[i].value;
	}
	return NULL;
}

/*
 * The value of an option that broker_check_int() allowed; otherwise, if it is
 * not set.
 */
int
broker_option_int(const CqrsBrokerConnection *connection, const char *name,
				  int otherwise)
{
	const char *value = broker_option(connection, name);
	long		result;

	if (value == NULL || !parse_int(value, &result))
		return otherwise;
	return (int) result;
}

/*
 * The value of an option that broker_check_bool() allowed; otherwise, if it is
 * not set.
 */
bool
broker_option_bool(const CqrsBrokerConnection *connection, const char *name,
				   bool otherwise)
{
	const char *value = broker_option(connection, name);
	bool		result;

	if (value == NULL || !parse_bool(value, &result))
		return otherwise;
	return result;
}

/*
 * Checks for a BrokerOptionDef: false, and what would be right as a sentence in
 * error, if an option cannot have the value. The value itself is not in the
 * sentence.
 */

/* A decimal integer from min to max. */
bool
broker_check_int(const char *value, int min, int max, char *error)
{
	long		result;

	if (parse_int(value, &result) && result >= min && result <= max)
		return true;
	return broker_error(error, "It must be an integer from %d to %d.", min, max);
}

/* What a boolean setting of the server may be, in full. */
bool
broker_check_bool(const char *value, char *error)
{
	bool		result;

	if (parse_bool(value, &result))
		return true;
	return broker_error(error, "It must be \"true\" or \"false\".");
}

/* Any text of at least one character. */
bool
broker_check_not_empty(const char *value, char *error)
{
	if (*value != '\0')
		return true;
	return broker_error(error, "It must not be empty.");
}

/* A template; see broker_template_expand(). */
bool
broker_template_check(const char *template, char *error)
{
	CqrsBrokerMessage message = {.topic = "",.event_name = ""};
	size_t		length;

	while (*template != '\0')
	{
		if (template_field(&template, &message, &length) == NULL)
			return broker_error(error,
								"In a template, braces must be around topic, event_name or key; a brace itself is written twice.");
	}
	return true;
}

/*
 * Write a template that broker_template_check() allowed to buffer, with {topic},
 * {event_name} and {key} replaced by the message's (nothing, if it has no key),
 * and {{ and }} by a brace.
 *
 * Returns the length of the whole, without the NUL, as snprintf() does: if it is
 * not less than size, only its beginning was written.
 */
size_t
broker_template_expand(const char *template, const CqrsBrokerMessage *message,
					   char *buffer, size_t size)
{
	size_t		total = 0;

	while (*template != '\0')
	{
		size_t		length;
		const char *text = template_field(&template, message, &length);

		if (text == NULL)
			break;				/* it was not checked */
		if (total < size)
			memcpy(buffer + total, text,
				   length < size - total ? length : size - total);
		total += length;
	}
	if (size > 0)
		buffer[total < size ? total : size - 1] = '\0';
	return total;
}

/*
 * The length of the character of UTF-8 at c; 0 if there is none.
 */
static int
character_length(const unsigned char *c)
{
	/* The second byte's range depends on the first one: shortest forms only. */
	unsigned char low = 0x80;
	unsigned char high = 0xBF;
	int			length;
	int			i;

	if (c[0] < 0x80)
		return 1;
	if (c[0] < 0xC2 || c[0] > 0xF4)
		return 0;
	if (c[0] == 0xE0)
		low = 0xA0;
	if (c[0] == 0xED)
		high = 0x9F;			/* no surrogates */
	if (c[0] == 0xF0)
		low = 0x90;
	if (c[0] == 0xF4)
		high = 0x8F;
	length = c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : 4;
	if (c[1] < low || c[1] > high)
		return 0;
	for (i = 2; i < length; i++)
	{
		if ((c[i] & 0xC0) != 0x80)
			return 0;
	}
	return length;
}

/*
 * A decimal integer and nothing else? What does not fit into a long is its
 * largest or smallest, which no option may be.
 */
static bool
parse_int(const char *value, long *result)
{
	char	   *end;

	*result = strtol(value, &end, 10);
	return end != value && *end == '\0';
}

/*
 * A boolean?
 */
static bool
parse_bool(const char *value, bool *result)
{
	static const char *const values[] = {
		"true", "false", "on", "off", "yes", "no", "1", "0"
	};
	int			i;

	for (i = 0; i < (int) (sizeof(values) / sizeof(values[0])); i++)
	{
		if (strcasecmp(value, values[i]) == 0)
		{
			*result = i % 2 == 0;
			return true;
		}
	}
	return false;
}

/*
 * The next part of a template, which is moved past it: its text and length.
 * NULL if it is not one.
 */
static const char *
template_field(const char **template, const CqrsBrokerMessage *message,
			   size_t * length)
{
	const struct
	{
		const char *name;
		const char *value;
	}			fields[] = {
		{"{topic}", message->topic},
		{"{event_name}", message->event_name},
		{"{key}", message->key != NULL ? message->key : ""},
		{"{{", "{"},
		{"}}", "}"}
	};
	const char *start = *template;
	int			i;

	*length = strcspn(start, "{}");
	if (*length > 0)
	{
		*template += *length;
		return start;
	}
	for (i = 0; i < (int) (sizeof(fields) / sizeof(fields[0])); i++)
	{
		size_t		name_length = strlen(fields[i].name);

		if (strncmp(start, fields[i].name, name_length) == 0)
		{
			*template += name_length;
			*length = strlen(fields[i].value);
			return fields[i].value;
		}
	}
	return NULL;
}
