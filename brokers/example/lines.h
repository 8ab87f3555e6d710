/*-------------------------------------------------------------------------
 *
 * lines.h
 *	  Lines of JSON to send, and lines that are messages.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EXAMPLE_LINES_H
#define EXAMPLE_LINES_H

#include "cqrs_broker.h"

/* Lines on their way out, or in. */
typedef struct Buffer
{
	char	   *data;
	size_t		size;
	size_t		used;
	size_t		done;			/* ... of that, sent or handled */
	bool		failed;			/* out of memory: something is missing */
} Buffer;

/*
 * A message that was received, in one piece of memory with all that it points
 * to. Those that are not settled are in a list.
 */
typedef struct Received
{
	CqrsBrokerReceived message;
	struct Received *previous;
	struct Received *next;
} Received;

#pragma GCC visibility push(hidden) /* as in client.h */

extern void example_append_hello(Buffer *out, const char *client,
								 const char *token);
extern void example_append_message(Buffer *out, int tag,
								   const CqrsBrokerMessage *message);
extern void example_append_consume(Buffer *out, const char *source,
								   const char *window);
extern void example_append_ack(Buffer *out, uint64_t tag);
extern bool example_buffer_reserve(Buffer *buffer, size_t size);
extern bool example_parse_message(const char *line, size_t size,
								  Received **received);

#pragma GCC visibility pop

#endif							/* EXAMPLE_LINES_H */
