/*-------------------------------------------------------------------------
 *
 * interval.c
 *	  Intervals as we reckon with them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "datatype/timestamp.h"
#include "utils/timestamp.h"

#include "base/interval.h"

/*
 * An interval in milliseconds; a month has 30 days. At most so much that it
 * can be added to the time.
 */
int64
cqrs_milliseconds(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);

	return Min(((int64) value->month * DAYS_PER_MONTH + value->day) *
			   (USECS_PER_DAY / 1000) + value->time / 1000,
			   PG_INT64_MAX / 4000);
}
