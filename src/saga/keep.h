/*-------------------------------------------------------------------------
 *
 * keep.h
 *	  How long sagas are kept that are over.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_KEEP_H
#define CQRS_SAGA_KEEP_H

#include "utils/timestamp.h"

#include "log/rotation.h"

extern CqrsTableState cqrs_saga_truncate(int segment,
										 TimestampTz *look_at,
										 int *pid);

#endif							/* CQRS_SAGA_KEEP_H */
