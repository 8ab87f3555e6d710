/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The background processes: their main functions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LAUNCHER_H
#define CQRS_LAUNCHER_H

/* Called by name. */
extern PGDLLEXPORT void cqrs_launcher_main(Datum arg);
extern PGDLLEXPORT void cqrs_manager_main(Datum arg);
extern PGDLLEXPORT void cqrs_worker_main(Datum arg);

extern void cqrs_launcher_register(void);

#endif							/* CQRS_LAUNCHER_H */
