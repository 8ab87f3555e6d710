/*-------------------------------------------------------------------------
 *
 * machine.h
 *	  How a saga goes on: from one entry to the next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_MACHINE_H
#define CQRS_SAGA_MACHINE_H

#include "saga/definition.h"
#include "saga/entry.h"
#include "saga/message.h"

/* A saga, or a branch of it, for which a message is being handled. */
typedef struct CqrsSagaRun
{
	CqrsSaga	saga;
	CqrsSagaDefinition *definition;
	const CqrsTopic *topic;		/* its role's */
	NullableDatum headers;		/* of what it sends */
	CqrsSagaEntry last;			/* the newest entry of the branch */
} CqrsSagaRun;

extern void cqrs_saga_begin(CqrsSagaRun *run, Datum state,
							NullableDatum unique_key);
extern void cqrs_saga_next_entry(const CqrsSagaRun *run, CqrsSagaEntry *entry,
								 CqrsSagaHappening event, int step);
extern void cqrs_saga_write(CqrsSagaRun *run, CqrsSagaEntry *entry);
extern void cqrs_saga_wake(const CqrsSagaRun *run);
extern void cqrs_saga_wake_again(const CqrsSagaRun *run);
extern void cqrs_saga_look_later(const CqrsSagaRun *run, int looks);
extern Datum cqrs_saga_state(const CqrsSagaRun *run);
extern void cqrs_saga_step_done(CqrsSagaRun *run, CqrsSagaEntry *entry,
								NullableDatum answer, bool by_fallback);
extern void cqrs_saga_step_undone(CqrsSagaRun *run, CqrsSagaEntry *entry,
								  NullableDatum answer);
extern void cqrs_saga_step_failed(CqrsSagaRun *run, CqrsSagaEntry *entry);
extern void cqrs_saga_receive(CqrsSagaRun *run,
							  const CqrsSagaMessage *message);
extern Datum cqrs_saga_merge(Datum state, const char *name,
							 NullableDatum answer);
extern void cqrs_saga_child_id(const CqrsSagaRun *run, int step,
							   pg_uuid_t *child_id);

#endif							/* CQRS_SAGA_MACHINE_H */
