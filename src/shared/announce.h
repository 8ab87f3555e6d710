/*-------------------------------------------------------------------------
 *
 * announce.h
 *	  What a transaction tells the managers and the launcher when it ends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_ANNOUNCE_H
#define CQRS_ANNOUNCE_H

#include "utils/timestamp.h"

extern void cqrs_announce_init(void);
extern void cqrs_shmem_emitted(int32 topic_id);
extern void cqrs_shmem_changed(void);
extern void cqrs_shmem_look(void);
extern void cqrs_shmem_command_scheduled(TimestampTz run_at);
extern void cqrs_shmem_command_removed(TimestampTz run_at);
extern void cqrs_shmem_announce(Oid dboid);

#endif							/* CQRS_ANNOUNCE_H */
