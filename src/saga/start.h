/*-------------------------------------------------------------------------
 *
 * start.h
 *	  Starting sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_START_H
#define CQRS_SAGA_START_H

#include "saga/machine.h"

extern bool cqrs_saga_key_is_valid(NullableDatum unique_key);
extern void cqrs_saga_lock_key(int32 topic_id, const char *saga_name,
							   text *unique_key);
extern void cqrs_saga_start(CqrsSagaDefinition *definition,
							const CqrsTopic *topic, const pg_uuid_t *saga_id,
							Datum state, NullableDatum unique_key,
							NullableDatum headers);

#endif							/* CQRS_SAGA_START_H */
