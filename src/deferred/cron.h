/*-------------------------------------------------------------------------
 *
 * cron.h
 *	  The times at which something is to be done again and again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_CRON_H
#define CQRS_CRON_H

#include "pgtime.h"
#include "utils/timestamp.h"

/* A bit for each value that fits. */
typedef struct CqrsCron
{
	uint64		seconds;
	uint64		minutes;
	uint64		hours;
	uint64		days;
	uint64		months;
	uint64		weekdays;		/* 0 is Sunday */
	bool		any_day;		/* its field begins with an asterisk */
	bool		any_weekday;	/* likewise */
	bool		any_hour;		/* likewise: it goes on when clocks are
								 * changed */
} CqrsCron;

extern void cqrs_cron_parse(const char *expression, CqrsCron *cron);
extern pg_tz * cqrs_cron_time_zone(const char *name, bool missing_ok);
extern TimestampTz cqrs_cron_next(const CqrsCron *cron, pg_tz * zone,
								  TimestampTz after);

#endif							/* CQRS_CRON_H */
