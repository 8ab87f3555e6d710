/*-------------------------------------------------------------------------
 *
 * rate.c
 *	  How often something may be done, as people write it: "10/s".
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "base/rate.h"

/* The most that may be done in the time that is given. */
#define MOST	1000000

static const struct
{
	const char *name;
	int64		length;			/* in nanoseconds */
}			units[] =

{
	{"s", INT64CONST(1000000000)},
	{"min", INT64CONST(60) * 1000000000},
	{"h", INT64CONST(3600) * 1000000000},
};

/*
 * What a rate means: *interval gets how many nanoseconds one takes; 0: there is no
 * limit. Returns false if this is no rate.
 */
bool
cqrs_rate_parse(const char *rate, int64 *interval)
{
	const char *end = rate;
	int64		n = 0;
	int			i;

	for (; *end >= '0' && *end <= '9' && n <= MOST; end++)
		n = n * 10 + (*end - '0');
	if (end == rate || n > MOST)
		return false;
	*interval = 0;
	if (*end == '\0')
		return n == 0;
	if (*end++ != '/')
		return false;
	for (i = 0; i < lengthof(units); i++)
		if (strcmp(end, units[i].name) == 0)
		{
			*interval = n == 0 ? 0 : units[i].length / n;
			return true;
		}
	return false;
}
