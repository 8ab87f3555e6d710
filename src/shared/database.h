/*-------------------------------------------------------------------------
 *
 * database.h
 *	  The slot of a database: whether it has a manager, and what the manager
 *	  has said.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DATABASE_H
#define CQRS_DATABASE_H

#include "shared/shmem.h"

extern int64 cqrs_shmem_durable_tick(void);
extern void cqrs_shmem_manager_ticks(int64 *durable, int64 *recorded);
extern void cqrs_shmem_tick_recorded(int64 tick_id);
extern CqrsDatabaseSlot *cqrs_database_find(Oid dboid);
extern CqrsDatabaseSlot *cqrs_database_request(Oid dboid);
extern void cqrs_database_clear(CqrsDatabaseSlot *slot);
extern void cqrs_database_rest(CqrsDatabaseSlot *slot, TimestampTz next_due);
extern void cqrs_database_due(CqrsDatabaseSlot *slot, TimestampTz at);
extern void cqrs_database_prepared(CqrsDatabaseSlot *slot);
extern TimestampTz cqrs_database_next_due(CqrsDatabaseSlot *slot);
extern void cqrs_shmem_wake(CqrsDatabaseSlot *slot);

#endif							/* CQRS_DATABASE_H */
