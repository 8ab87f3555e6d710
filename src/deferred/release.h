/*-------------------------------------------------------------------------
 *
 * release.h
 *	  Puts scheduled commands into the outbox when their time has come.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RELEASE_H
#define CQRS_RELEASE_H

#include "shared/shmem.h"

extern long cqrs_release_next(CqrsDatabaseSlot *slot, long wait);

#endif							/* CQRS_RELEASE_H */
