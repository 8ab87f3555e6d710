/*-------------------------------------------------------------------------
 *
 * client.h
 *	  The broker module "Kafka".
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_CLIENT_H
#define KAFKA_CLIENT_H

#include "broker_client.h"

#define KAFKA_DEFAULT_WINDOW	10000

#pragma GCC visibility push(hidden) /* as in broker_client.h */

extern const CqrsBrokerModule *kafka_module(void);

#pragma GCC visibility pop

#endif							/* KAFKA_CLIENT_H */
