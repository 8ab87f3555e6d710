/*-------------------------------------------------------------------------
 *
 * rate.h
 *	  How often something may be done, as people write it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RATE_H
#define CQRS_RATE_H

extern bool cqrs_rate_parse(const char *rate, int64 *interval);

#endif							/* CQRS_RATE_H */
