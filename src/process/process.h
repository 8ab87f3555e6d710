/*-------------------------------------------------------------------------
 *
 * process.h
 *	  What the launcher, managers and workers do alike.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PROCESS_H
#define CQRS_PROCESS_H

#include "postmaster/bgworker.h"

#include "shared/shmem.h"

extern void cqrs_process_signals(void);
extern bool cqrs_process_start_worker(CqrsWorkerSlot *worker, Oid dboid,
									  Oid owner, bool broker);
extern void cqrs_process_describe(BackgroundWorker *worker, const char *type,
								  const char *main_function);
extern void cqrs_process_settings(const char *application_name);
extern void cqrs_process_reload(void);
extern void cqrs_process_wait(long timeout_ms, pgsocket socket,
							  uint32 wait_event_info);
extern long cqrs_restart_wait(int failures);

#endif							/* CQRS_PROCESS_H */
