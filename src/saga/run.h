/*-------------------------------------------------------------------------
 *
 * run.h
 *	  The handler of the subscriptions that run sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_RUN_H
#define CQRS_SAGA_RUN_H

#include "utils/uuid.h"

#include "saga/definition.h"

extern NullableDatum cqrs_saga_call(const CqrsSagaDefinition *definition,
									int number, CqrsHandler *handler,
									bool undo, const pg_uuid_t *saga_id,
									int branch, int attempt, Datum state,
									NullableDatum cause, bool *by_fallback);
extern NullableDatum cqrs_saga_headers(const pg_uuid_t *saga_id,
									   NullableDatum cause);

#endif							/* CQRS_SAGA_RUN_H */
