/*-------------------------------------------------------------------------
 *
 * machine.h
 *	  How a saga goes on: from one entry to the next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_MACHINE_H
#define CQRS_SAGA_MACHINE_H

#include "saga/lane.h"

extern void cqrs_saga_begin(CqrsSagaRun *run, Datum state,
							NullableDatum unique_key);
extern void cqrs_saga_go_on(CqrsSagaRun *run, CqrsSagaEntry *entry, int step);
extern char *cqrs_saga_child_missing(const CqrsSagaRun *run, int step);
extern void cqrs_saga_fail(CqrsSagaRun *run, CqrsSagaEntry *entry);
extern void cqrs_saga_end_branch(CqrsSagaRun *run, CqrsSagaEntry *entry,
								 CqrsSagaStatus status);
extern void cqrs_saga_step_done(CqrsSagaRun *run, CqrsSagaEntry *entry,
								NullableDatum answer, bool by_fallback);
extern void cqrs_saga_step_undone(CqrsSagaRun *run, CqrsSagaEntry *entry,
								  NullableDatum answer);
extern void cqrs_saga_step_failed(CqrsSagaRun *run, CqrsSagaEntry *entry);
extern void cqrs_saga_note_done(const CqrsSagaRun *run, CqrsSagaEntry *entry,
								int number, bool by_fallback);
extern void cqrs_saga_take_signal(CqrsSagaRun *run,
								  const CqrsSagaEntry *signal);
extern Datum cqrs_saga_merge(Datum state, const char *name,
							 NullableDatum answer);

#endif							/* CQRS_SAGA_MACHINE_H */
