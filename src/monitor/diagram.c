/*-------------------------------------------------------------------------
 *
 * diagram.c
 *	  What cqrs_diagram(), which is SQL, cannot say there.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"

static bool takes_codes(const char *text);
static bool is_word_char(char c);

PG_FUNCTION_INFO_V1(cqrs_diagram_label);
PG_FUNCTION_INFO_V1(cqrs_no_diagram);

/*
 * cqrs.diagram_label(name): makes an entity code of every character that
 * Mermaid, Markdown or HTML might interpret, so that the name is shown as it is.
 * Only control characters, which are not allowed in an SVG file, are replaced.
 */
Datum
cqrs_diagram_label(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	StringInfoData result;
	const char *c;

	initStringInfo(&result);
	for (c = name; *c != '\0'; c++)
	{
		bool		in_word = c > name && is_word_char(c[-1]) &&
		is_word_char(c[1]);

		if (is_word_char(*c) || *c == '(' || *c == ')' ||
			(in_word && (*c == '_' || *c == '.' || *c == '-')) ||
			(*c == ' ' && c > name && c[-1] != ' ' && c[1] != '\0'))
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
	PG_RETURN_TEXT_P(cstring_to_text_with_len(result.data, result.len));
}

/*
 * Does something begin here that Mermaid turns into a line break, a formula or
 * an icon, even if it is written in entity codes? A zero-width space after the
 * first character prevents that.
 */
static bool
takes_codes(const char *text)
{
	return strncmp(text, "\\n", 2) == 0 || strncmp(text, "$$", 2) == 0 ||
		strncmp(text, ":fa-", 4) == 0;
}

/*
 * Is it a letter or a digit, in any script, which means nothing to Mermaid?
 */
static bool
is_word_char(char c)
{
	return IS_HIGHBIT_SET(c) || (c >= 'a' && c <= 'z') ||
		(c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/*
 * cqrs.no_diagram(kind, name)
 */
Datum
cqrs_no_diagram(PG_FUNCTION_ARGS)
{
	char	   *kind = PG_ARGISNULL(0) ? "flowchart" :
	text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *name = NULL;

	if (!PG_ARGISNULL(1))
		name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	if (strcmp(kind, "flowchart") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("nothing is registered as \"%s\"", name ? name : ""),
				 errhint("Name a command, a query, a stream, an event, a topic, a subscription or a broker's server.")));
	if (strcmp(kind, "sequence") != 0 && strcmp(kind, "saga") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized kind of diagram \"%s\"", kind),
				 errhint("Valid values are \"flowchart\", \"sequence\" and \"saga\".")));
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name must not be null"),
				 strcmp(kind, "saga") == 0 ?
				 errdetail("It shows one saga.") :
				 errdetail("A sequence diagram shows one command, query or stream.")));
	if (strcmp(kind, "saga") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_NOT_REGISTERED),
				 errmsg("saga \"%s\" is not registered", name)));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("command \"%s\" is not registered", name),
			 errdetail("Nor is a query or a stream of that name.")));
}
