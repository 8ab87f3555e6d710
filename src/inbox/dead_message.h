/*-------------------------------------------------------------------------
 *
 * dead_message.h
 *	  Messages that could not become events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DEAD_MESSAGE_H
#define CQRS_DEAD_MESSAGE_H

#include "utils/uuid.h"

#include "include/cqrs_broker.h"

extern bool cqrs_dead_message_add(int32 consumer_id,
								  const CqrsBrokerReceived *message,
								  const char *message_id,
								  const pg_uuid_t *event_id,
								  const ErrorData *error);

#endif							/* CQRS_DEAD_MESSAGE_H */
