/*-------------------------------------------------------------------------
 *
 * interval.h
 *	  Intervals as we reckon with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_INTERVAL_H
#define CQRS_INTERVAL_H

extern int64 cqrs_milliseconds(Datum interval);

#endif							/* CQRS_INTERVAL_H */
