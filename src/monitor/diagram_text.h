/*-------------------------------------------------------------------------
 *
 * diagram_text.h
 *	  The text of diagrams, of either kind.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DIAGRAM_TEXT_H
#define CQRS_DIAGRAM_TEXT_H

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "registry/entry.h"

extern void cqrs_diagram_line(StringInfo text, int indent,
							  const char *format,...)
			pg_attribute_printf(3, 4);
extern List *cqrs_diagram_entries(void (*walk) (HASH_SEQ_STATUS *status));
extern int	cqrs_diagram_compare(const ListCell *a, const ListCell *b);
extern char *cqrs_diagram_errors(const CqrsFallback *fallback);
extern char *cqrs_diagram_escaped(const char *text);

#endif							/* CQRS_DIAGRAM_TEXT_H */
