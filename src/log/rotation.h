/*-------------------------------------------------------------------------
 *
 * rotation.h
 *	  Goes on to a topic's next segment, and truncates those before.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ROTATION_H
#define CQRS_ROTATION_H

#include "log/retention.h"

typedef enum CqrsStepAction
{
	CQRS_STEP_NONE,
	CQRS_STEP_ROTATED,
	CQRS_STEP_TRUNCATED
} CqrsStepAction;

/* What was found and done in a topic. */
typedef struct CqrsStep
{
	CqrsStepAction action;
	int			segment;		/* made the current one, or truncated */
	int64		sizes[CQRS_SEGMENTS];	/* as found */
	CqrsHold	holds[CQRS_SEGMENTS];	/* on those that are not truncated */
	TimestampTz rotate_at;		/* not before; DT_NOEND: nothing to rotate */
} CqrsStep;

/*
 * Rows that are kept for a while, such as idempotency keys, and finished sagas, are in
 * tables that take turns, as the segments of a topic do. What became of one that was
 * to be truncated:
 */
typedef enum CqrsTableState
{
	CQRS_TABLE_KEPT,			/* what is in it is not old enough */
	CQRS_TABLE_LOCKED,			/* somebody uses it */
	CQRS_TABLE_TRUNCATED
} CqrsTableState;

extern void cqrs_topic_step(CqrsTopic *topic, CqrsStep *step);

#endif							/* CQRS_ROTATION_H */
