/*-------------------------------------------------------------------------
 *
 * cron.c
 *	  The times at which something is to be done again and again.
 *
 * An expression has the five fields of crontab(5), or six with the seconds first:
 * minute, hour, day of the month, month, day of the week. A field is a list of
 * values, ranges, or asterisks, each with a step or without. If both days are
 * restricted, one of them is enough.
 *
 * Changes of the clock
 *
 * Time in a zone is a row of stretches with the same offset from UTC each. In one
 * of them, local times are found by the fields alone. Where the hour is an asterisk
 * (with a step or not), that is all: what is done each quarter of an hour is done
 * each quarter of an hour, whatever clocks show. Otherwise, something is to be done
 * once a day, say. So between two stretches:
 *
 * 1. local times that are skipped, if one of them fits: it is done when the second
 *	  stretch begins;
 * 2. local times that come twice count only the first time.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <ctype.h>

#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "deferred/cron.h"
#include "extension/catalog.h"
#include "shared/clock.h"

/* If there is nothing for so many years, there never is. */
#define LONGEST_YEARS	40

/* The most times that cqrs_next_runs() returns. */
#define MOST_RUNS		1000

#define DAY_SECONDS				INT64CONST(86400)

/* No time. Local times are seconds since 1970, as if clocks showed UTC. */
#define NEVER			PG_INT64_MIN

/* A field of an expression. */
typedef struct Field
{
	const char *name;
	int			least;
	int			most;
	const char *const *words;	/* for the least and those that follow, or
								 * NULL */
} Field;

static const char *const month_words[] = {
	"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov",
	"dec", NULL
};

static const char *const weekday_words[] = {
	"sun", "mon", "tue", "wed", "thu", "fri", "sat", NULL
};

/* In their order. */
static const Field fields[] = {
	{"second", 0, 59, NULL},
	{"minute", 0, 59, NULL},
	{"hour", 0, 23, NULL},
	{"day of the month", 1, 31, NULL},
	{"month", 1, 12, month_words},
	{"day of the week", 0, 7, weekday_words},
};

#define FIELDS	lengthof(fields)

static const struct
{
	const char *name;
	const char *expression;
}			names[] =

{
	{"@yearly", "0 0 1 1 *"},
	{"@annually", "0 0 1 1 *"},
	{"@monthly", "0 0 1 * *"},
	{"@weekly", "0 0 * * 0"},
	{"@daily", "0 0 * * *"},
	{"@midnight", "0 0 * * *"},
	{"@hourly", "0 * * * *"},
};

static uint64 parse_field(const char *expression, const Field *field,
						  const char *text);
static const char *parse_value(const char *expression, const Field *field,
							   const char *whole, const char *text,
							   int *value);
pg_noreturn static void invalid(const char *expression, const Field *field,
								const char *text);
static int64 find_local(const CqrsCron *cron, int64 from, int64 until);
static bool is_day(const CqrsCron *cron, int month, int day, int weekday);
static int	find_time(const CqrsCron *cron, int from);
static int	next_bit(uint64 bits, int from);

PG_FUNCTION_INFO_V1(cqrs_next_runs);

/*
 * cqrs_next_runs(cron, time_zone, after, max_runs)
 */
Datum
cqrs_next_runs(PG_FUNCTION_ARGS)
{
	Tuplestorestate *store;
	TupleDesc	desc;
	CqrsCron	cron;
	pg_tz	   *zone;
	TimestampTz time;
	int			max_runs = PG_ARGISNULL(3) ? 10 : PG_GETARG_INT32(3);

	cqrs_arg_required(fcinfo, 0, "cron expression", NULL, NULL);
	cqrs_cron_parse(text_to_cstring(PG_GETARG_TEXT_PP(0)), &cron);
	zone = cqrs_cron_time_zone(PG_ARGISNULL(1) ? "UTC" :
							   text_to_cstring(PG_GETARG_TEXT_PP(1)), false);
	time = PG_ARGISNULL(2) ? cqrs_wall_now() : PG_GETARG_TIMESTAMPTZ(2);
	if (max_runs < 0 || max_runs > MOST_RUNS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_runs must not be %d", max_runs),
				 errhint("Valid are 0 to %d.", MOST_RUNS)));

	store = cqrs_srf_begin(fcinfo, &desc);
	while (max_runs-- > 0 &&
		   (time = cqrs_cron_next(&cron, zone, time)) != DT_NOEND)
	{
		Datum		value = TimestampTzGetDatum(time);
		bool		isnull = false;

		tuplestore_putvalues(store, desc, &value, &isnull);
	}
	return (Datum) 0;
}

/*
 * Read an expression. Raises 22023.
 */
void
cqrs_cron_parse(const char *expression, CqrsCron *cron)
{
	uint64	   *bits[FIELDS] = {
		&cron->seconds, &cron->minutes, &cron->hours, &cron->days,
		&cron->months, &cron->weekdays
	};
	char	   *copy = pstrdup(expression);
	char	   *words[FIELDS + 1];
	int			nwords = 0;
	char	   *word;
	int			i;

	memset(cron, 0, sizeof(*cron));
	for (i = 0; i < lengthof(names); i++)
		if (pg_strcasecmp(expression, names[i].name) == 0)
			copy = pstrdup(names[i].expression);
	for (word = strtok(copy, " \t\r\n"); word != NULL && nwords <= FIELDS;
		 word = strtok(NULL, " \t\r\n"))
		words[nwords++] = word;
	if (nwords != FIELDS && nwords != FIELDS - 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid cron expression \"%s\"", expression),
				 errdetail("It has five fields, minute, hour, day of the month, month and day of the week, or six, with the second first; or is one of @yearly, @monthly, @weekly, @daily and @hourly.")));

	/* Without seconds, each minute begins with one. */
	cron->seconds = 1;
	for (i = 0; i < nwords; i++)
	{
		int			n = i + (FIELDS - nwords);

		*bits[n] = parse_field(expression, &fields[n], words[i]);
	}
	word = words[nwords - 4];
	cron->any_hour = word[0] == '*';
	cron->any_day = words[nwords - 3][0] == '*';
	cron->any_weekday = words[nwords - 1][0] == '*';

	/* Sunday is 0, and 7. */
	cron->weekdays = (cron->weekdays | cron->weekdays >> 7) & 0x7f;
	if (find_local(cron, 0, LONGEST_YEARS * 366 * DAY_SECONDS) == NEVER)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid cron expression \"%s\"", expression),
				 errdetail("There is no such day.")));
}

/*
 * Find a time zone. If there is none of that name, returns NULL or, unless
 * missing_ok, raises 22023.
 */
pg_tz *
cqrs_cron_time_zone(const char *name, bool missing_ok)
{
	pg_tz	   *zone = pg_tzset(name);

	if (zone != NULL && pg_tz_acceptable(zone))
		return zone;
	if (!missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time zone \"%s\" not recognized", name),
				 errhint("pg_timezone_names lists those that there are.")));
	return NULL;
}

/*
 * The first time behind this one, or DT_NOEND if there is none.
 */
TimestampTz
cqrs_cron_next(const CqrsCron *cron, pg_tz * zone, TimestampTz after)
{
	pg_time_t	first;			/* the first second that may be it */
	pg_time_t	last;
	pg_time_t	begin;			/* of a stretch */
	int64		passed = NEVER; /* local times before this have been, in the
								 * stretch before */

	if (TIMESTAMP_NOT_FINITE(after))
		return DT_NOEND;
	first = timestamptz_to_time_t(after - (after % USECS_PER_SEC + USECS_PER_SEC) % USECS_PER_SEC) + 1;
	last = first + LONGEST_YEARS * 366 * DAY_SECONDS;

	/* What has come twice lately may still be going on. */
	begin = first - 2 * DAY_SECONDS;
	while (begin < last)
	{
		long int	offset;
		long int	next_offset;
		int			is_dst;
		pg_time_t	end;
		int			found;
		int64		from;
		int64		local = NEVER;

		found = pg_next_dst_boundary(&begin, &offset, &is_dst, &end,
									 &next_offset, &is_dst, zone);
		if (found < 0)
			break;
		if (found == 0)
			end = last;
		from = Max(begin, first) + offset;
		if (!cron->any_hour)
			from = Max(from, passed);
		if (end > first)
			local = find_local(cron, from, end + offset);
		if (local == NEVER && found > 0 && end >= first && !cron->any_hour &&
			find_local(cron, end + offset, end + next_offset) != NEVER)
			local = end + offset;
		if (local != NEVER)
		{
			TimestampTz next = time_t_to_timestamptz(local - offset);

			return IS_VALID_TIMESTAMP(next) ? next : DT_NOEND;
		}
		passed = Max(passed, end + offset);
		begin = end;
	}
	return DT_NOEND;
}

/*
 * The values of a field, a bit for each.
 */
static uint64
parse_field(const char *expression, const Field *field, const char *text)
{
	const char *rest = text;
	uint64		bits = 0;

	for (;;)
	{
		int			from = field->least;
		int			until = field->most;
		int			step = 1;

		if (*rest == '*')
			rest++;
		else
		{
			rest = parse_value(expression, field, text, rest, &from);
			if (*rest == '-')
				rest = parse_value(expression, field, text, rest + 1, &until);
			else if (*rest != '/')
				until = from;
		}
		if (*rest == '/')
		{
			char	   *end;
			long		number = isdigit((unsigned char) rest[1]) ?
			strtol(rest + 1, &end, 10) : 0;

			if (number < 1 || number > field->most)
				invalid(expression, field, text);
			rest = end;
			step = number;
		}
		if (until < from || (*rest != '\0' && *rest != ','))
			invalid(expression, field, text);
		for (; from <= until; from += step)
			bits |= UINT64CONST(1) << from;
		if (*rest++ == '\0')
			return bits;
	}
}

/*
 * A number, or a word. Returns what is behind it.
 */
static const char *
parse_value(const char *expression, const Field *field, const char *whole,
			const char *text, int *value)
{
	char	   *end;
	long		number;
	int			i;

	for (i = 0; field->words != NULL && field->words[i] != NULL; i++)
	{
		int			len = strlen(field->words[i]);

		if (pg_strncasecmp(text, field->words[i], len) == 0 &&
			!isalpha((unsigned char) text[len]))
		{
			*value = field->least + i;
			return text +len;
		}
	}
	if (!isdigit((unsigned char) *text))
		invalid(expression, field, whole);
	number = strtol(text, &end, 10);
	if (number < field->least || number > field->most)
		invalid(expression, field, whole);
	*value = number;
	return end;
}

static void
invalid(const char *expression, const Field *field, const char *text)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid cron expression \"%s\"", expression),
			 errdetail("The %s \"%s\" is no list of numbers from %d to %d%s, of ranges like %d-%d, or of \"*\", with a step behind a slash or without.",
					   field->name, text, field->least, field->most,
					   field->words == month_words ? " or names like jan" :
					   field->words == weekday_words ? " or names like sun" : "",
					   field->least, field->most)));
}

/*
 * The first local time that fits, from one on and before another; or NEVER.
 */
static int64
find_local(const CqrsCron *cron, int64 from, int64 until)
{
	int64		day = from / DAY_SECONDS - (from % DAY_SECONDS < 0 ? 1 : 0);
	int			time = from - day * DAY_SECONDS;

	while (day * DAY_SECONDS < until)
	{
		int			julian = day + UNIX_EPOCH_JDATE;
		int			year;
		int			month;
		int			mday;

		j2date(julian, &year, &month, &mday);
		if ((cron->months & UINT64CONST(1) << month) == 0)
		{
			/* on to the next month */
			day += date2j(month < 12 ? year : year + 1,
						  month < 12 ? month + 1 : 1, 1) - julian;
			time = 0;
			continue;
		}
		if (is_day(cron, month, mday, j2day(julian)))
		{
			int			found = find_time(cron, time);

			if (found >= 0)
				return day * DAY_SECONDS + found < until ? day * DAY_SECONDS + found : NEVER;
		}
		day++;
		time = 0;
	}
	return NEVER;
}

static bool
is_day(const CqrsCron *cron, int month, int day, int weekday)
{
	bool		fits = (cron->days & UINT64CONST(1) << day) != 0;
	bool		weekday_fits = (cron->weekdays & UINT64CONST(1) << weekday) != 0;

	if (cron->any_day || cron->any_weekday)
		return fits && weekday_fits;
	return fits || weekday_fits;
}

/*
 * The first second of a day that fits, from one on; or -1.
 */
static int
find_time(const CqrsCron *cron, int from)
{
	int			hour = from / 3600;
	int			minute = from / 60 % 60;
	int			second = from % 60;
	int			found;

	if ((cron->hours & UINT64CONST(1) << hour) != 0)
	{
		if ((cron->minutes & UINT64CONST(1) << minute) != 0)
		{
			found = next_bit(cron->seconds, second);
			if (found >= 0)
				return hour * 3600 + minute * 60 + found;
		}
		found = next_bit(cron->minutes, minute + 1);
		if (found >= 0)
			return hour * 3600 + found * 60 + next_bit(cron->seconds, 0);
	}
	found = next_bit(cron->hours, hour + 1);
	if (found < 0)
		return -1;
	return found * 3600 + next_bit(cron->minutes, 0) * 60 +
		next_bit(cron->seconds, 0);
}

/*
 * The lowest bit that is set, from one on; or -1.
 */
static int
next_bit(uint64 bits, int from)
{
	int			i;

	for (i = from; i < 64; i++)
		if ((bits & UINT64CONST(1) << i) != 0)
			return i;
	return -1;
}
