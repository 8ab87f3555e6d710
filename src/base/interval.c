/*-------------------------------------------------------------------------
 *
 * interval.c
 *	  Intervals: as milliseconds, and added to a time.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "base/interval.h"

/*
 * An interval in milliseconds; a month has 30 days. The result is limited so
 * that it can be added to the time.
 */
int64
cqrs_milliseconds(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);

	return Min(((int64) value->month * DAYS_PER_MONTH + value->day) *
			   (USECS_PER_DAY / 1000) + value->time / 1000,
			   PG_INT64_MAX / 4000);
}

bool
cqrs_interval_is_negative(Datum interval)
{
	Interval	zero = {0};

	return DatumGetInt32(DirectFunctionCall2(interval_cmp, interval,
											 IntervalPGetDatum(&zero))) < 0;
}

/*
 * A time and an interval, as SQL adds them. Raises 22008.
 */
TimestampTz
cqrs_time_plus(TimestampTz time, Datum interval)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(time),
												   interval));
}
