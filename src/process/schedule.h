/*-------------------------------------------------------------------------
 *
 * schedule.h
 *	  Which cursors of a database have something to get, and which worker
 *	  delivers which.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SCHEDULE_H
#define CQRS_SCHEDULE_H

#include "nodes/pg_list.h"

#include "shared/shmem.h"

/* A topic that clients pull. */
typedef struct CqrsPulledTopic
{
	int32		topic_id;
	char		name[NAMEDATALEN];
} CqrsPulledTopic;

extern void cqrs_schedule_refresh(bool careful);
extern void cqrs_schedule_due(const CqrsTopicSet *topics, int64 look,
							  bool brokers);
extern long cqrs_schedule_assign(CqrsDatabaseSlot *slot,
								 const char *database_name);
extern bool cqrs_schedule_busy(void);
extern bool cqrs_schedule_may_end(void);
extern bool cqrs_schedule_uneasy(bool *careful);
extern List *cqrs_schedule_pulled_topics(void);
extern List *cqrs_schedule_epochs(void);
extern bool cqrs_schedule_has_brokers(void);

#endif							/* CQRS_SCHEDULE_H */
