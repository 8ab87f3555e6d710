/*-------------------------------------------------------------------------
 *
 * backoff.c
 *	  How long to wait before something is tried again.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "common/pg_prng.h"

#include "base/backoff.h"

/*
 * The wait after this many failures in a row, at least one: first, doubled
 * with each further one, up to longest if that is more.
 */
int64
cqrs_backoff_exact(int64 first, int64 longest, int failures)
{
	int64		wait = first;

	while (--failures > 0 && wait < longest)
		wait *= 2;
	return Min(wait, Max(first, longest));
}

/*
 * The same, but up to a quarter more or less, so that what failed together is
 * not tried again together.
 */
int64
cqrs_backoff(int64 first, int64 longest, int failures)
{
	return (int64) (cqrs_backoff_exact(first, longest, failures) *
					(0.75 + 0.5 * pg_prng_double(&pg_global_prng_state)));
}
