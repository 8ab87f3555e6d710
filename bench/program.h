/*-------------------------------------------------------------------------
 *
 * program.h
 *	  What each program that is measured beside ours has: a clock, and an end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_PROGRAM_H
#define BENCH_PROGRAM_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/*
 * Of a clock, in seconds.
 */
static inline double
seconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/*
 * By which a duration is measured, in seconds.
 */
static inline double
now(void)
{
	return seconds(CLOCK_MONOTONIC);
}

/*
 * If something failed, say what, and end.
 */
static inline void
check(int ok, const char *what)
{
	if (!ok)
	{
		fprintf(stderr, "%s failed\n", what);
		exit(1);
	}
}

#endif							/* BENCH_PROGRAM_H */
