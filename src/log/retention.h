/*-------------------------------------------------------------------------
 *
 * retention.h
 *	  What keeps a segment from being truncated, and for how long it may.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETENTION_H
#define CQRS_RETENTION_H

#include "nodes/pg_list.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "registry/entry.h"

typedef enum CqrsHolder
{
	CQRS_HELD_BY_NOTHING,
	CQRS_HELD_BY_RETENTION,
	CQRS_HELD_BY_RESTORE,
	CQRS_HELD_BY_SUBSCRIPTION,
	CQRS_HELD_BY_LOCK,			/* on the segment */
	CQRS_HELD_BY_CHANGE			/* of its topic or subscriptions, underway */
} CqrsHolder;

/* What holds a segment. */
typedef struct CqrsHold
{
	CqrsHolder	holder;
	char		subscription[NAMEDATALEN];
	int			pid;			/* the process that has the lock; 0: a
								 * prepared transaction, or not known */
	TimestampTz since;			/* 0: not known */
	TimestampTz until;			/* RETENTION: until then */
} CqrsHold;

/* How many events a suspended subscription loses with a segment. */
typedef struct CqrsMissed CqrsMissed;

extern void cqrs_segment_hold(const CqrsTopic *topic, int segment,
							  TimestampTz now, CqrsHold *hold);
extern void cqrs_retention_hold(const CqrsTopic *topic, int segment,
								TimestampTz now, CqrsHold *hold);
extern const char *cqrs_hold_word(const CqrsHold *hold);
extern char *cqrs_hold_describe(const CqrsHold *hold);

extern CqrsMissed *cqrs_missed_count(const CqrsTopic *topic, int segment);
extern bool cqrs_missed_lock(CqrsMissed *missed);
extern void cqrs_subscription_hold(const CqrsTopic *topic, int segment,
								   CqrsMissed *missed, Snapshot snapshot,
								   CqrsHold *hold);

/* The bytes of a segment, as far as the caller knows them. */
typedef int64 (*CqrsSegmentBytes) (const CqrsTopic *topic, int segment);

extern List *cqrs_limits_apply(const CqrsTopic *topic, CqrsSegmentBytes bytes,
							   List *except, int32 *current);

#endif							/* CQRS_RETENTION_H */
