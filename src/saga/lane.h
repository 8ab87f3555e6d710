/*-------------------------------------------------------------------------
 *
 * lane.h
 *	  A saga, or a branch of it, for which a message is being handled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_LANE_H
#define CQRS_SAGA_LANE_H

#include "saga/definition.h"
#include "saga/entry.h"
#include "saga/message.h"

typedef struct CqrsSagaRun
{
	CqrsSaga	saga;
	CqrsSagaDefinition *definition;
	const CqrsTopic *topic;		/* its role's */
	NullableDatum headers;		/* of what it sends */
	CqrsSagaEntry last;			/* the newest entry of the branch */
} CqrsSagaRun;

extern void cqrs_saga_next_entry(const CqrsSagaRun *run, CqrsSagaEntry *entry,
								 CqrsSagaHappening event, int step);
extern void cqrs_saga_write(CqrsSagaRun *run, CqrsSagaEntry *entry);
extern void cqrs_saga_wake(const CqrsSagaRun *run);
extern void cqrs_saga_wake_again(const CqrsSagaRun *run);
extern void cqrs_saga_look_later(const CqrsSagaRun *run, int looks);
extern void cqrs_saga_forget(const CqrsSagaRun *run);
extern bool cqrs_saga_has_ended(const CqrsSagaRun *run, int branch);
extern Datum cqrs_saga_state(const CqrsSagaRun *run);
extern const CqrsSagaStep *cqrs_saga_current_step(const CqrsSagaRun *run);
extern void cqrs_saga_child_id(const CqrsSagaRun *run, int step,
							   pg_uuid_t *child_id);
extern void cqrs_saga_tell(const CqrsSagaRun *run, CqrsSagaMessageKind kind,
						   int32 branch, int32 seq);

#endif							/* CQRS_SAGA_LANE_H */
