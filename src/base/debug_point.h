/*-------------------------------------------------------------------------
 *
 * debug_point.h
 *	  Named points in the code at which a test can stop a process, or have it
 *	  fail. They exist only in builds with make DEBUG_POINTS=1.
 *
 * In such a build, CQRS_DEBUG_POINT("name") does what the setting
 * cqrs_outbox.debug_points says of that name, which is a list such as
 * 'emit_before_index=wait, tick_before_commit=error':
 *
 * wait: take and release a shared advisory lock, and so wait while a test
 * holds that lock exclusively, in the same database:
 *
 *	SELECT pg_advisory_lock(hashtext('cqrs_outbox'), hashtext('<name>'));
 *
 * As it is a lock, pg_locks shows it, and the isolation tester sees that the
 * session is blocked. A process can be ended there as in any wait for a lock.
 *
 * error: raise an error with SQLSTATE DBGPT that names the point.
 *
 * twice: do what CQRS_DEBUG_TWICE("name") guards, which is what came before it once
 * more, as if a message had been delivered a second time.
 *
 * Background processes take the setting from the configuration, as they do
 * all others: ALTER SYSTEM and a reload.
 *
 * A point stands where waiting for a lock and raising an error are allowed:
 * inside a transaction, never in a critical section or with an LWLock or a
 * buffer's lock held. There, no process could be stopped without stopping
 * others that no test knows of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DEBUG_POINT_H
#define CQRS_DEBUG_POINT_H

#ifdef CQRS_DEBUG_POINTS
#define CQRS_DEBUG_POINT(name)	cqrs_debug_point(name)
#define CQRS_DEBUG_TWICE(name)	cqrs_debug_twice(name)

extern void cqrs_debug_point_define(void);
extern void cqrs_debug_point(const char *name);
extern bool cqrs_debug_twice(const char *name);
#else
#define CQRS_DEBUG_POINT(name)	((void) 0)
#define CQRS_DEBUG_TWICE(name)	(false)
#define cqrs_debug_point_define()	((void) 0)
#endif

#endif							/* CQRS_DEBUG_POINT_H */
