/*-------------------------------------------------------------------------
 *
 * intake_state.h
 *	  What this process consumes, for the files that do it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_INTAKE_STATE_H
#define CQRS_INTAKE_STATE_H

#include "broker/link.h"
#include "broker/server.h"
#include "inbox/place.h"
#include "registry/entry.h"

/* A partition that this process consumes. */
typedef struct CqrsPart
{
	CqrsPlace	place;			/* as it is stored */
	bool		compare;		/* the last message is to come once more */
	bool		end_moved;		/* not written yet */

	/* Of the batch. */
	CqrsPlace	moved;
	bool		compared;
	bool		touched;
	CqrsBrokerReceived *last;	/* the last one consumed */
} CqrsPart;

/* No transaction moves more parts: each has a lock. */
#define CQRS_INTAKE_PARTS	64

/* The connection of this process, if server is not NULL. */
typedef struct CqrsIntake
{
	MemoryContext context;
	CqrsBrokerServer *server;
	CqrsBrokerLink *link;		/* NULL: not begun to connect */
	uint64		generation;		/* of servers, when it was read */
	TimestampTz retried_at;		/* the consumer's, likewise */
	int			worker;
	bool		keeps_offsets;
	bool		assigned;
	bool		renew;			/* begin anew */
	int			npartitions;	/* of the source; -1: unknown */
	CqrsPart   *parts;			/* by partition */
	int			nparts;

	/* Received, and not stored. */
	CqrsBrokerReceived *first;
	CqrsBrokerReceived *last;
	uint64		nstored;		/* so many were before these */
	CqrsLinkNotice *notices;
	CqrsLinkNotice *last_notice;

	/* The batch. */
	CqrsBrokerReceived *batch_last; /* NULL: it is empty */
	int			nbatch;
	CqrsLinkNotice *batch_notices;	/* the first that is not in it */
	bool		converting;		/* an error is a message's */
	int			apart;			/* so many messages get a subtransaction each */

	bool		failed;			/* cqrs.failure has a row of us */
	bool		ends_moved;		/* of some part, likewise */
	TimestampTz ends_written_at;
	TimestampTz checked_at;
	TimestampTz noted_at;		/* that the source is consumed */
	bool		troubled;		/* the broker complained since the last check */
	int			troubles;		/* ... and before so many checks in a row */
	char		trouble[CQRS_BROKER_ERROR_SIZE];
} CqrsIntake;

extern CqrsIntake cqrs_intake;

extern bool cqrs_intake_is_same(const CqrsConsumer *consumer);
extern CqrsPart *cqrs_intake_find_part(int32 partition);
extern char *cqrs_intake_source_name(const CqrsConsumer *consumer);
extern bool cqrs_intake_lock(CqrsConsumer **consumer);
extern void cqrs_intake_begin_batch(void);
extern bool cqrs_intake_lock_places(void);

#endif							/* CQRS_INTAKE_STATE_H */
