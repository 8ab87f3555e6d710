/*-------------------------------------------------------------------------
 *
 * signal.h
 *	  Signals that were sent to a saga.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_SIGNAL_H
#define CQRS_SAGA_SIGNAL_H

#include "saga/lane.h"

extern const CqrsSagaEntry *cqrs_saga_keep_signal(const CqrsSagaRun *run,
												  const CqrsSagaMessage *message);
extern const CqrsSagaEntry *cqrs_saga_find_signal(const CqrsSagaRun *run,
												  const char *name,
												  List **untaken);

#endif							/* CQRS_SAGA_SIGNAL_H */
