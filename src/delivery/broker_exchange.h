/*-------------------------------------------------------------------------
 *
 * broker_exchange.h
 *	  What a worker has read for a broker, and not recorded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_EXCHANGE_H
#define CQRS_BROKER_EXCHANGE_H

#include "broker/server.h"
#include "delivery/broker_entry.h"
#include "delivery/broker_transaction.h"
#include "delivery/broker_trial.h"
#include "delivery/relay.h"
#include "delivery/target_handler.h"

/* The connection of this process, if server is not NULL. */
typedef struct CqrsBrokerSession
{
	MemoryContext context;
	CqrsBrokerServer *server;
	char	   *server_name;
	char	   *subscription_name;
	uint64		generation;		/* of servers, when it was read */
	int			partition;

	/* Read, and not recorded. */
	CqrsReadAhead ahead;
	MemoryContext cursor_context;	/* of the snapshots in ahead */
	CqrsBrokerEntries entries;	/* the events */
	CqrsBrokerTransaction transaction;
	bool		strict;			/* with strict_key_order */

	bool		read_all;		/* nothing more can be read just now */
	bool		hold;			/* send nothing */
	bool		new_first;		/* the last ones were parked */
	bool		moved;			/* somebody else moved the cursor */

	CqrsBrokerTrial trial;		/* of what was rejected */

	TimestampTz waiting_since;	/* for the broker to answer */
	TimestampTz trouble_since;	/* it accepts nothing since then; 0: it does */
	int64		timeout;		/* of the subscription, in milliseconds */
} CqrsBrokerSession;

extern CqrsBrokerSession cqrs_broker;

/* In a transaction. */
extern void cqrs_broker_exchange(CqrsSubscription *subscription,
								 bool read, int64 announced,
								 const char *lost,
								 volatile CqrsDelivery *delivery);

/* Outside. */
extern int	cqrs_broker_pending(void);
extern bool cqrs_broker_has_room(void);

#endif							/* CQRS_BROKER_EXCHANGE_H */
