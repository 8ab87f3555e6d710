/*-------------------------------------------------------------------------
 *
 * inbound.h
 *	  Messages of a broker as events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_INBOUND_H
#define CQRS_INBOUND_H

#include "utils/jsonb.h"

#include "include/cqrs_broker.h"
#include "log/event.h"

/* What a message looks like; described in inbound.c. */
typedef enum CqrsInboundFormat
{
	CQRS_INBOUND_RAW,
	CQRS_INBOUND_BYTES,
	CQRS_INBOUND_CQRS,
	CQRS_INBOUND_CLOUDEVENTS
} CqrsInboundFormat;

/* How a consumer's messages become events. */
typedef struct CqrsInbound
{
	const CqrsConsumer *consumer;
	CqrsInboundFormat format;
	const char *attribute_prefix;	/* of headers that are CloudEvents
									 * attributes */
	int			max_size;		/* of a body, in bytes */
	CqrsEventType *event_type;	/* of all of them; NULL: the message says */
	Datum		event_name;		/* only with event_type */
	TimestampTz now;			/* when the events are emitted */
} CqrsInbound;

extern bool cqrs_inbound_format_parse(const char *name,
									  CqrsInboundFormat *format);
extern void cqrs_inbound_init(CqrsInbound *inbound,
							  const CqrsConsumer *consumer,
							  const char *attribute_prefix, int max_size);
extern char *cqrs_inbound_message_id(const CqrsInbound *inbound,
									 const CqrsBrokerReceived *message);
extern TimestampTz cqrs_inbound_time(const CqrsBrokerReceived *message);
extern void cqrs_inbound_event_id(const CqrsInbound *inbound,
								  const CqrsBrokerReceived *message,
								  const char *message_id, pg_uuid_t *event_id);
extern void cqrs_inbound_event(const CqrsInbound *inbound,
							   const CqrsBrokerReceived *message,
							   const char *message_id, pg_uuid_t *event_id,
							   CqrsEvent *event);
extern Jsonb *cqrs_inbound_headers(const CqrsBrokerReceived *message);

#endif							/* CQRS_INBOUND_H */
