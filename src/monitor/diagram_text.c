/*-------------------------------------------------------------------------
 *
 * diagram_text.c
 *	  The text of diagrams, of either kind.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/elog.h"
#include "utils/hsearch.h"

#include "monitor/diagram_text.h"

static bool takes_codes(const char *text);
static bool is_word_char(char c);

/*
 * Append a line, indented by so many steps.
 */
void
cqrs_diagram_line(StringInfo text, int indent, const char *format,...)
{
	int			needed = 0;

	appendStringInfoSpaces(text, 4 * indent);
	do
	{
		va_list		args;

		if (needed > 0)
			enlargeStringInfo(text, needed);
		va_start(args, format);
		needed = appendStringInfoVA(text, format, args);
		va_end(args);
	} while (needed > 0);
	appendStringInfoChar(text, '\n');
}

/*
 * All entries of one of the registry's tables, by name.
 */
List *
cqrs_diagram_entries(void (*walk) (HASH_SEQ_STATUS *status))
{
	HASH_SEQ_STATUS status;
	List	   *entries = NIL;
	void	   *entry;

	walk(&status);
	while ((entry = hash_seq_search(&status)) != NULL)
		entries = lappend(entries, entry);
	list_sort(entries, cqrs_diagram_compare);
	return entries;
}

/*
 * After which errors a fallback is called, in words; palloc'd.
 */
char *
cqrs_diagram_errors(const CqrsFallback *fallback)
{
	StringInfoData text;
	int			i;

	if (fallback->nsqlstates < 0)
		return pstrdup("an error");
	initStringInfo(&text);
	for (i = 0; i < fallback->nsqlstates; i++)
	{
		const CqrsSqlstate *sqlstate = &fallback->sqlstates[i];
		const char *code = unpack_sql_state(sqlstate->code);

		if (sqlstate->mask == ERRCODE_TO_CATEGORY(sqlstate->mask))
			appendStringInfo(&text, "%sclass %.2s", i > 0 ? ", " : "", code);
		else
			appendStringInfo(&text, "%s%s", i > 0 ? ", " : "", code);
	}
	return text.data;
}

/*
 * A name as a label's text, palloc'd. It is shown as it is; only control
 * characters, which are not allowed in an SVG file, are replaced.
 */
char *
cqrs_diagram_escaped(const char *text)
{
	StringInfoData result;
	const char *c;

	initStringInfo(&result);
	for (c = text; *c != '\0'; c++)
	{
		bool		in_word = c > text &&is_word_char(c[-1]) &&
		is_word_char(c[1]);

		if (is_word_char(*c) || *c == '(' || *c == ')' ||
			(in_word && (*c == '_' || *c == '.' || *c == '-')) ||
			(*c == ' ' && c > text &&c[-1] != ' ' && c[1] != '\0'))
			appendStringInfoChar(&result, *c);
		else if (*c == ' ')		/* one that would be dropped */
			appendStringInfoString(&result, "#160;");
		else if (*c == '\n' || *c == '\t' || (*c > ' ' && *c < '\177'))
			appendStringInfo(&result, "#%d;", *c);
		else
			appendStringInfoString(&result, "#65533;");
		if (takes_codes(c))
			appendStringInfoString(&result, "#8203;");
	}
	return result.data;
}

/*
 * Does something begin here that Mermaid makes a line break, a formula or an
 * icon of, even if it is written in entity codes? A space without width after
 * the first character keeps it from that.
 */
static bool
takes_codes(const char *text)
{
	return strncmp(text, "\\n", 2) == 0 || strncmp(text, "$$", 2) == 0 ||
		strncmp(text, ":fa-", 4) == 0;
}

/*
 * A letter or a digit, in whatever script, which means nothing to Mermaid?
 */
static bool
is_word_char(char c)
{
	return IS_HIGHBIT_SET(c) || (c >= 'a' && c <= 'z') ||
		(c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/*
 * For list_sort(): entries of the registry, which begin with their names.
 */
int
cqrs_diagram_compare(const ListCell *a, const ListCell *b)
{
	return strcmp((const char *) lfirst(a), (const char *) lfirst(b));
}
