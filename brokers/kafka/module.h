/*-------------------------------------------------------------------------
 *
 * module.h
 *	  The broker module "Kafka".
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_MODULE_H
#define KAFKA_MODULE_H

#include "broker_client.h"

#pragma GCC visibility push(hidden) /* as in broker_client.h */

/*
 * What the state of a connection begins with, whether it publishes or consumes.
 */
typedef struct KafkaState
{
	int			event_fd;		/* an eventfd, readable when librdkafka has
								 * something for us */
	void		(*shutdown) (void *state);
} KafkaState;

extern const CqrsBrokerModule *kafka_module(void);

#pragma GCC visibility pop

#endif							/* KAFKA_MODULE_H */
