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

extern NullableDatum cqrs_saga_headers(const pg_uuid_t *saga_id,
									   NullableDatum cause);

#endif							/* CQRS_SAGA_RUN_H */
