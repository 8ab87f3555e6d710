/*-------------------------------------------------------------------------
 *
 * underway.h
 *	  Batches under way up the stack.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_UNDERWAY_H
#define CQRS_UNDERWAY_H

#include "delivery/relay.h"

/* A batch whose handler may be running. */
typedef struct CqrsUnderway
{
	struct CqrsUnderway *outer; /* NULL: none */
	CqrsRelay  *relay;
	bool		parked;			/* the event at hand was */
	bool		settled;		/* cqrs_underway_settle() was called */
} CqrsUnderway;

/* The innermost one, or NULL. */
extern CqrsUnderway *cqrs_underway_innermost;

extern bool cqrs_underway_is(int32 subscription_id);
extern void cqrs_underway_settle(int32 subscription_id);
extern bool cqrs_underway_moved(const CqrsUnderway *underway);

#endif							/* CQRS_UNDERWAY_H */
