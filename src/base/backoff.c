/*-------------------------------------------------------------------------
 *
 * backoff.c
 *	  How long to wait before something is tried again.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "base/backoff.h"

/*
 * After so many failures in a row, at least one: first, doubled with each of
 * the others up to longest, if that is more.
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
 * The same, and up to a quarter more or less, so that what failed together is
 * not tried together.
 */
int64
cqrs_backoff(int64 first, int64 longest, int failures)
{
	return (int64) (cqrs_backoff_exact(first, longest, failures) *
					(0.75 + 0.5 * cqrs_random()));
}
