/*-------------------------------------------------------------------------
 *
 * json.c
 *	  JSON text for readers outside the server.
 *
 * Unlike that of jsonb's output function, the text is compact, without blanks
 * between tokens, and it is UTF-8, whatever the database's encoding. Only what
 * JSON requires is escaped.
 *
 * Failure
 *
 * If the database's encoding is not UTF-8, all of these raise 22P05 for a
 * character without an equivalent in UTF-8 or, if it is SQL_ASCII, 22021 for
 * bytes that are not UTF-8.
 *
 * The text of a number can be ten thousand times as long as the number. So all
 * of these raise 54000 before the buffer gets larger than limit bytes; escapes
 * and punctuation may make it a little larger.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"

#include "base/json.h"

static inline void check_room(StringInfo buf, size_t more, int limit);
static void append_escaped(StringInfo buf, const char *str, int len);

/*
 * Append a jsonb value: a whole one (&jsonb->root), or an object or array
 * within it. Keys come in jsonb's order.
 */
void
cqrs_json_append(StringInfo buf, JsonbContainer *container, int limit)
{
	bool		brackets = !JsonContainerIsScalar(container);
	bool		comma = false;
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		check_room(buf, 0, limit);
		if (comma && token != WJB_END_OBJECT && token != WJB_END_ARRAY)
			appendStringInfoCharMacro(buf, ',');
		comma = true;
		switch (token)
		{
			case WJB_BEGIN_OBJECT:
				appendStringInfoCharMacro(buf, '{');
				comma = false;
				break;
			case WJB_KEY:
				cqrs_json_append_string(buf, value.val.string.val,
										value.val.string.len, limit);
				appendStringInfoCharMacro(buf, ':');
				comma = false;
				break;
			case WJB_VALUE:
			case WJB_ELEM:
				cqrs_json_append_scalar(buf, &value, limit);
				break;
			case WJB_END_OBJECT:
				appendStringInfoCharMacro(buf, '}');
				break;
			case WJB_BEGIN_ARRAY:
				if (brackets)
					appendStringInfoCharMacro(buf, '[');
				comma = false;
				break;
			case WJB_END_ARRAY:
				if (brackets)
					appendStringInfoCharMacro(buf, ']');
				break;
			default:
				elog(ERROR, "unexpected token of a jsonb value: %d",
					 (int) token);
		}
	}
}

/*
 * Append a value that is neither an object nor an array.
 */
void
cqrs_json_append_scalar(StringInfo buf, const JsonbValue *value, int limit)
{
	char	   *digits;

	switch (value->type)
	{
		case jbvNull:
			appendBinaryStringInfo(buf, "null", 4);
			break;
		case jbvString:
			cqrs_json_append_string(buf, value->val.string.val,
									value->val.string.len, limit);
			break;
		case jbvNumeric:
			digits = DatumGetCString(DirectFunctionCall1(numeric_out,
														 NumericGetDatum(value->val.numeric)));
			check_room(buf, strlen(digits), limit);
			appendStringInfoString(buf, digits);
			pfree(digits);
			break;
		case jbvBool:
			appendStringInfoString(buf,
								   value->val.boolean ? "true" : "false");
			break;
		default:
			elog(ERROR, "unexpected type of a jsonb scalar: %d",
				 (int) value->type);
	}
}

/*
 * Append text in the database's encoding, len bytes of it, as a JSON string.
 */
void
cqrs_json_append_string(StringInfo buf, const char *str, int len, int limit)
{
	char	   *utf8;

	check_room(buf, len, limit);
	utf8 = pg_server_to_any(str, len, PG_UTF8);
	appendStringInfoCharMacro(buf, '"');
	if (utf8 == str)
		append_escaped(buf, str, len);
	else
	{
		append_escaped(buf, utf8, strlen(utf8));
		pfree(utf8);
	}
	appendStringInfoCharMacro(buf, '"');
}

/*
 * Append text in the database's encoding, len bytes of it, as it is.
 */
void
cqrs_utf8_append(StringInfo buf, const char *str, int len, int limit)
{
	char	   *utf8;

	check_room(buf, len, limit);
	utf8 = pg_server_to_any(str, len, PG_UTF8);
	if (utf8 == str)
		appendBinaryStringInfo(buf, str, len);
	else
	{
		appendStringInfoString(buf, utf8);
		pfree(utf8);
	}
}

/*
 * Raise 54000 if that many bytes more are too many.
 */
static inline void
check_room(StringInfo buf, size_t more, int limit)
{
	if (unlikely(more > (size_t) limit || buf->len > limit - (int) more))
		cqrs_text_too_long();
}

/*
 * Raise 54000: a text that cannot be sent now never can.
 */
void
cqrs_text_too_long(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("the message has more bytes than option \"max_message_size\" of the server allows")));
}

/*
 * Append UTF-8 text, escaping what a JSON string cannot contain. Most text has
 * nothing to escape, and is copied in one go.
 */
static void
append_escaped(StringInfo buf, const char *str, int len)
{
	static const char hex[] = "0123456789abcdef";
	const char *end = str + len;
	const char *run = str;
	const char *p;

	for (p = str; p < end; p++)
	{
		unsigned char c = (unsigned char) *p;
		char		escape[6] = {'\\', 'u', '0', '0'};
		int			size = 2;

		if (likely(c >= 0x20 && c != '"' && c != '\\'))
			continue;
		switch (c)
		{
			case '"':
			case '\\':
				escape[1] = c;
				break;
			case '\b':
				escape[1] = 'b';
				break;
			case '\f':
				escape[1] = 'f';
				break;
			case '\n':
				escape[1] = 'n';
				break;
			case '\r':
				escape[1] = 'r';
				break;
			case '\t':
				escape[1] = 't';
				break;
			default:
				escape[4] = hex[c >> 4];
				escape[5] = hex[c & 0xf];
				size = 6;
		}
		appendBinaryStringInfo(buf, run, p - run);
		appendBinaryStringInfo(buf, escape, size);
		run = p + 1;
	}
	appendBinaryStringInfo(buf, run, end - run);
}
