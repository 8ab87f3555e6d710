/*-------------------------------------------------------------------------
 *
 * assign.h
 *	  Which worker delivers which of the cursors that are due.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ASSIGN_H
#define CQRS_ASSIGN_H

#include "shared/shmem.h"

extern long cqrs_assign_workers(CqrsDatabaseSlot *slot,
								const char *database_name);
extern bool cqrs_assign_busy(void);
extern bool cqrs_assign_may_end(void);

#endif							/* CQRS_ASSIGN_H */
