/*-------------------------------------------------------------------------
 *
 * schedule.h
 *	  Which cursors of a database have something to get.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SCHEDULE_H
#define CQRS_SCHEDULE_H

#include "lib/ilist.h"
#include "nodes/pg_list.h"
#include "utils/timestamp.h"

#include "shared/shmem.h"

typedef struct CqrsScheduledKey
{
	int32		subscription_id;
	int32		partition;
} CqrsScheduledKey;

/* A cursor that workers deliver, as the manager sees it. */
typedef struct CqrsScheduled
{
	CqrsScheduledKey key;		/* hash key */
	Oid			owner;
	bool		broker;			/* it has a connection, and so a process of
								 * its own */
	bool		consumer;		/* one worker of a consumer */
	bool		changed;		/* since the refresh before */
	int64		due_look;		/* has events up to this look */
	int64		drained_look;	/* and none up to this one */
	bool		unfinished;		/* its worker left something to do */
	TimestampTz retry_at;		/* a parked event may be tried then; 0: none */
	TimestampTz failed_until;	/* nothing can be done before */
	bool		put_off;		/* others come first; see
								 * cqrs_schedule_begin_calmly() */
	TimestampTz retried_at;		/* the subscription's */
	int			failures;		/* of its workers, in a row */
	int			careful;		/* see worker.c */
	bool		listed;			/* in the list of those that are due */
	dlist_node	node;
	uint64		generation;		/* of the registry that has it */
} CqrsScheduled;

/* A topic that clients pull. */
typedef struct CqrsPulledTopic
{
	int32		topic_id;
	char		name[NAMEDATALEN];
} CqrsPulledTopic;

extern void cqrs_schedule_refresh(bool careful);
extern void cqrs_schedule_due(const CqrsTopicSet *topics, int64 look,
							  bool brokers);
extern void cqrs_schedule_begin_calmly(const CqrsTopicSet *announced);
extern TimestampTz cqrs_schedule_calm_until(void);
extern bool cqrs_schedule_exists(void);
extern CqrsScheduled *cqrs_schedule_find(int32 subscription_id,
										 int32 partition);
extern dlist_head *cqrs_schedule_due_list(void);
extern void cqrs_schedule_make_due(CqrsScheduled *scheduled);
extern void cqrs_schedule_all_careful(void);
extern bool cqrs_schedule_uneasy(bool *careful);
extern List *cqrs_schedule_pulled_topics(void);
extern List *cqrs_schedule_epochs(void);
extern bool cqrs_schedule_has_brokers(void);

#endif							/* CQRS_SCHEDULE_H */
