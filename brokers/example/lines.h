/*-------------------------------------------------------------------------
 *
 * lines.h
 *	  Lines of JSON to send.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EXAMPLE_LINES_H
#define EXAMPLE_LINES_H

#include "cqrs_broker.h"

/* Lines on their way out. */
typedef struct Buffer
{
	char	   *data;
	size_t		size;
	size_t		used;
	size_t		sent;			/* ... of that */
	bool		failed;			/* out of memory: something is missing */
} Buffer;

#pragma GCC visibility push(hidden) /* as in client.h */

extern void example_append_hello(Buffer *out, const char *client,
								 const char *token);
extern void example_append_message(Buffer *out, int tag,
								   const CqrsBrokerMessage *message);

#pragma GCC visibility pop

#endif							/* EXAMPLE_LINES_H */
