/*-------------------------------------------------------------------------
 *
 * client.h
 *	  The callbacks of the broker module "Kafka" for publishing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_CLIENT_H
#define KAFKA_CLIENT_H

#include "module.h"

#define KAFKA_DEFAULT_WINDOW	10000

#pragma GCC visibility push(hidden) /* as in broker_client.h */

extern void *kafka_client_startup(const CqrsBrokerConnection *connection,
								  char *error);
extern bool kafka_client_publish(void *state,
								 CqrsBrokerMessage *const *messages, int n,
								 char *error);
extern bool kafka_client_poll(void *state, char *error);
extern bool kafka_client_fence(void *state, char *error);
extern bool kafka_client_begin(void *state, char *error);
extern bool kafka_client_commit(void *state, const char *record,
								bool *committed, char *error);
extern bool kafka_client_abort(void *state, char *error);
extern bool kafka_client_read_record(void *state, char *record, char *error);

#pragma GCC visibility pop

#endif							/* KAFKA_CLIENT_H */
