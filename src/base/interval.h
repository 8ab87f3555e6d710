/*-------------------------------------------------------------------------
 *
 * interval.h
 *	  Intervals: as milliseconds, and added to a time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_INTERVAL_H
#define CQRS_INTERVAL_H

#include "datatype/timestamp.h"

extern int64 cqrs_milliseconds(Datum interval);
extern bool cqrs_interval_is_negative(Datum interval);
extern TimestampTz cqrs_time_plus(TimestampTz time, Datum interval);

#endif							/* CQRS_INTERVAL_H */
