/*-------------------------------------------------------------------------
 *
 * backoff.h
 *	  How long to wait before something is tried again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BACKOFF_H
#define CQRS_BACKOFF_H

extern int64 cqrs_backoff(int64 first, int64 longest, int failures);
extern int64 cqrs_backoff_exact(int64 first, int64 longest, int failures);

#endif							/* CQRS_BACKOFF_H */
