/*-------------------------------------------------------------------------
 *
 * clock.h
 *	  What time it is, whatever somebody does to the clock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CLOCK_H
#define CQRS_CLOCK_H

#include "port/atomics.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

/* In shared memory; the mutex protects all but steady_base, which stays. */
typedef struct CqrsClock
{
	slock_t		mutex;
	int64		steady_base;	/* steady time less the machine's */
	/* Changed with the mutex, and read without it. */
	pg_atomic_uint64 offset;	/* wall clock less steady time, as believed */
	pg_atomic_uint64 jumped_at; /* steady; since when the wall clock is ahead;
								 * 0: it is not */
#ifdef CQRS_DEBUG_POINTS
	int64		debug_ahead;	/* wall clock less the machine's */
	int64		debug_passed;	/* time to add to what has passed */
#endif
} CqrsClock;

extern void cqrs_clock_attach(CqrsClock *clock, bool found);
extern TimestampTz cqrs_steady_now(void);
extern TimestampTz cqrs_wall_now(void);
extern TimestampTz cqrs_wall_due(TimestampTz at, TimestampTz since);
extern TimestampTz cqrs_steady_from_wall(TimestampTz wall);
extern TimestampTz cqrs_steady_deadline(TimestampTz wall, int64 longest);
extern TimestampTz cqrs_steady_to_wall(TimestampTz steady);
extern long cqrs_sooner(long wait, TimestampTz now, TimestampTz then);
extern bool cqrs_clock_jumped(TimestampTz *until);

#endif							/* CQRS_CLOCK_H */
