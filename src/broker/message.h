/*-------------------------------------------------------------------------
 *
 * message.h
 *	  Events as messages of a broker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MESSAGE_H
#define CQRS_MESSAGE_H

#include "include/cqrs_broker.h"
#include "log/event.h"

/* What a message looks like; described in message.c. */
typedef enum CqrsFormat
{
	CQRS_FORMAT_CQRS,
	CQRS_FORMAT_CLOUDEVENTS,
	CQRS_FORMAT_RAW
} CqrsFormat;

extern bool cqrs_format_parse(const char *name, CqrsFormat *format);
extern const char *cqrs_format_name(CqrsFormat format);
extern void cqrs_message_form(const CqrsEvent *event, CqrsFormat format,
							  const CqrsBrokerModule *module,
							  const char *source, int max_size, CqrsBrokerMessage *message);

#endif							/* CQRS_MESSAGE_H */
