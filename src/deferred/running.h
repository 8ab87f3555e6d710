/*-------------------------------------------------------------------------
 *
 * running.h
 *	  The commands that workers are executing, and who wants one to end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RUNNING_H
#define CQRS_RUNNING_H

#include "utils/uuid.h"

#include "shared/shmem.h"

extern void cqrs_running_attach(CqrsWorkerSlot *slot);
extern bool cqrs_running_begin(const pg_uuid_t *command_id);
extern void cqrs_running_check(const char *command_name);
extern void cqrs_running_end(bool began);
extern void cqrs_running_failed(bool began, const char *command_name);
extern bool cqrs_running_shows(const pg_uuid_t *command_id);
extern int	cqrs_running_cancel(const pg_uuid_t *command_id, bool *running);
extern void cqrs_running_forget(int request);

#endif							/* CQRS_RUNNING_H */
