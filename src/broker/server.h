/*-------------------------------------------------------------------------
 *
 * server.h
 *	  The foreign server that stands for a broker, and its module.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_SERVER_H
#define CQRS_BROKER_SERVER_H

#include "include/cqrs_broker.h"

/* All that it takes to connect to a broker. */
typedef struct CqrsBrokerServer
{
	const CqrsBrokerModule *module;
	CqrsBrokerConnection connection;
	int			window;			/* messages that may be unconfirmed */
	int			max_message_size;	/* in bytes */
	const char *source;			/* for cloudevents; NULL: the default */
} CqrsBrokerServer;

extern CqrsBrokerServer *cqrs_broker_server(const char *server_name,
											const char *subscription,
											Oid owner);
extern uint64 cqrs_broker_server_generation(void);
extern char *cqrs_broker_error(const char *error);

#endif							/* CQRS_BROKER_SERVER_H */
