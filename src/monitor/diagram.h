/*-------------------------------------------------------------------------
 *
 * diagram.h
 *	  What is registered, as a picture.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DIAGRAM_H
#define CQRS_DIAGRAM_H

#include "base/cqrs_outbox.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "registry/registry.h"

extern char *cqrs_diagram_sequence(const char *name);

/* For either kind. */
extern void cqrs_diagram_line(StringInfo text, int indent,
							  const char *format,...)
			pg_attribute_printf(3, 4);
extern List *cqrs_diagram_entries(void (*walk) (HASH_SEQ_STATUS *status));
extern char *cqrs_diagram_errors(const CqrsFallback *fallback);
extern char *cqrs_diagram_escaped(const char *text);

#endif							/* CQRS_DIAGRAM_H */
