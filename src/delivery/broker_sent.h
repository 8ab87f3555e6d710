/*-------------------------------------------------------------------------
 *
 * broker_sent.h
 *	  What a cursor's row says of a broker's transactions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_SENT_H
#define CQRS_BROKER_SENT_H

#include "log/cursor.h"
#include "registry/registry.h"

extern void cqrs_sent_apply(CqrsCursor *cursor);
extern void cqrs_sent_begin(const CqrsSubscription *subscription,
							bool elsewhere);
extern bool cqrs_sent_elsewhere(CqrsSent *sent);

#endif							/* CQRS_BROKER_SENT_H */
