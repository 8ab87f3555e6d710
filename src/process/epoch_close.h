/*-------------------------------------------------------------------------
 *
 * epoch_close.h
 *	  Closes epochs, to complete changes of partitions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EPOCH_CLOSE_H
#define CQRS_EPOCH_CLOSE_H

#include "shared/shmem.h"

extern long cqrs_epoch_next(CqrsDatabaseSlot *slot, int64 look, long wait);

#endif							/* CQRS_EPOCH_CLOSE_H */
