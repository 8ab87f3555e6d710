/*-------------------------------------------------------------------------
 *
 * rfc3339.c
 *	  Timestamps as the internet writes them.
 *
 * The server's own input function takes much more than RFC 3339 does, and what
 * it makes of some of it depends on the session.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"
#include "utils/datetime.h"

#include "base/rfc3339.h"

static int	digits(const char **str, const char *end, int n);
static bool skip(const char **str, const char *end, const char *any_of);

/*
 * Read 2024-12-31T23:59:59.123456+01:00, or with Z for the offset, of len bytes.
 * Further digits of the second are cut off. Returns false if it is nothing of
 * the kind, or no date and time that there is.
 */
bool
cqrs_rfc3339_parse(const char *str, int len, TimestampTz *result)
{
	const char *end = str + len;
	struct pg_tm tm = {0};
	fsec_t		fsec = 0;
	int			zone = 0;
	bool		fits;

	tm.tm_year = digits(&str, end, 4);
	fits = skip(&str, end, "-");
	tm.tm_mon = digits(&str, end, 2);
	fits = fits && skip(&str, end, "-");
	tm.tm_mday = digits(&str, end, 2);
	fits = fits && skip(&str, end, "Tt");
	tm.tm_hour = digits(&str, end, 2);
	fits = fits && skip(&str, end, ":");
	tm.tm_min = digits(&str, end, 2);
	fits = fits && skip(&str, end, ":");
	tm.tm_sec = digits(&str, end, 2);
	if (!fits || tm.tm_year < 1 || tm.tm_mon < 1 || tm.tm_mon > 12 ||
		tm.tm_mday < 1 ||
		tm.tm_mday > day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] ||
		tm.tm_hour < 0 || tm.tm_hour > 23 ||
		tm.tm_min < 0 || tm.tm_min > 59 || tm.tm_sec < 0 || tm.tm_sec > 60)
		return false;

	if (skip(&str, end, "."))
	{
		int			unit = USECS_PER_SEC / 10;
		int			digit = digits(&str, end, 1);

		if (digit < 0)
			return false;
		for (; digit >= 0; digit = digits(&str, end, 1), unit /= 10)
			fsec += digit * unit;
	}

	if (!skip(&str, end, "Zz"))
	{
		bool		west = str < end && *str == '-';
		int			hours;
		int			minutes;

		if (!skip(&str, end, "+-"))
			return false;
		hours = digits(&str, end, 2);
		fits = skip(&str, end, ":");
		minutes = digits(&str, end, 2);
		if (!fits || hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
			return false;

		/* The server counts to the west. */
		zone = (hours * MINS_PER_HOUR + minutes) * SECS_PER_MINUTE;
		if (!west)
			zone = -zone;
	}
	return str == end && tm2timestamp(&tm, fsec, &zone, result) == 0;
}

/*
 * Append 2024-01-01T00:00:00.000000+00:00. Raises 22008 for infinity, and for
 * years before 1 and after 9999.
 */
void
cqrs_rfc3339_append(StringInfo buf, TimestampTz timestamp)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char text[	MAXDATELEN + 1];
	char	   *p = text;

	if (TIMESTAMP_NOT_FINITE(timestamp) ||
		timestamp2tm(timestamp, NULL, &tm, &fsec, NULL, NULL) != 0 ||
		tm.tm_year < 1 || tm.tm_year > 9999)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	p = pg_ultostr_zeropad(p, tm.tm_year, 4);
	*p++ = '-';
	p = pg_ultostr_zeropad(p, tm.tm_mon, 2);
	*p++ = '-';
	p = pg_ultostr_zeropad(p, tm.tm_mday, 2);
	*p++ = 'T';
	p = pg_ultostr_zeropad(p, tm.tm_hour, 2);
	*p++ = ':';
	p = pg_ultostr_zeropad(p, tm.tm_min, 2);
	*p++ = ':';
	p = pg_ultostr_zeropad(p, tm.tm_sec, 2);
	*p++ = '.';
	p = pg_ultostr_zeropad(p, fsec, 6);
	memcpy(p, "+00:00", 6);
	p += 6;
	appendBinaryStringInfo(buf, text, p - text);
}

/*
 * So many digits as a number, or -1: there are not.
 */
static int
digits(const char **str, const char *end, int n)
{
	int			value = 0;

	for (; n > 0; n--)
	{
		if (*str == end || **str < '0' || **str > '9')
			return -1;
		value = 10 * value + *(*str)++ - '0';
	}
	return value;
}

/*
 * Step over a character that is one of these, if there is one.
 */
static bool
skip(const char **str, const char *end, const char *any_of)
{
	if (*str == end || **str == '\0' || strchr(any_of, **str) == NULL)
		return false;
	(*str)++;
	return true;
}
