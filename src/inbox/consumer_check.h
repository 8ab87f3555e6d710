/*-------------------------------------------------------------------------
 *
 * consumer_check.h
 *	  Whether a consumer can be what is wanted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CONSUMER_CHECK_H
#define CQRS_CONSUMER_CHECK_H

#include "utils/timestamp.h"

#include "include/cqrs_broker.h"
#include "registry/entry.h"

/* What is chosen for a consumer; NULL, or 0: not given. */
typedef struct CqrsConsumerChoice
{
	char	   *server;
	char	   *source;
	CqrsTopic  *topic;
	char	   *event_name;
	char	   *format;
	char	   *start;
	char	   *message_id;
	char	   *on_gap;
	int			workers;
} CqrsConsumerChoice;

extern void cqrs_consumer_check(const char *name,
								const CqrsConsumerChoice *choice);
extern char *cqrs_consumer_parse_start(const char *name, const char *start);
extern TimestampTz cqrs_consumer_parse_time(const char *name,
											const char *text);
extern void cqrs_consumer_check_event_name(const char *name,
										   const char *event_name,
										   const char *format);
extern const CqrsBrokerModule *cqrs_consumer_check_server(const char *name,
														  const char *server);
extern void cqrs_consumer_check_message_id(const char *name,
										   const CqrsBrokerModule *module,
										   const CqrsConsumerChoice *choice);
extern bool cqrs_consumer_is_like(const CqrsConsumer *consumer,
								  const CqrsConsumerChoice *choice);

#endif							/* CQRS_CONSUMER_CHECK_H */
