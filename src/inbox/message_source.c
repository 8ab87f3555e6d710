/*-------------------------------------------------------------------------
 *
 * message_source.c
 *	  Where messages come from, and for how long each source was consumed.
 *
 * A broker may send a message again long after it was consumed: when it, or its
 * consumer, was away. So how long an id is kept is measured by the source's own time,
 * which passes only while the source is consumed.
 *
 * That time is noted now and then by who consumes, in the same transaction: a row says
 * that the source had been consumed for so long at that moment. The one with the
 * most time counts. The next one adds what has passed since, but at most the longest
 * gap: whoever consumes notes it more often than that, so what is longer is a rest.
 * Who consumes seldom has a clock that is slow. So is that of a transaction that
 * takes long, or rolls back. None is ever fast, whatever is done to the wall clock.
 *
 * Rows are only added, so nobody waits: of two that add one at the same time, each says
 * what it knows. Those that do not count are deleted when another table of ids is
 * written (see message_turn.c).
 *
 * As with idempotency keys, a source belongs to a role with its name and, unless the
 * row was restored, its number.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "extension/row.h"
#include "inbox/message_source.h"
#include "shared/clock.h"

/* Columns of cqrs.message_source. */
enum
{
	SOURCE_TIME = 1,
	SOURCE_NOTED_AT,
	SOURCE_ROLE,
	SOURCE_NATIVE,
	SOURCE_ROLE_NAME,
	SOURCE_NAME,
	SOURCE_COLUMNS = SOURCE_NAME
};

static bool find_time(const CqrsMessageSource *source, bool any_role,
					  int64 *source_time, TimestampTz *noted_at);

/*
 * A role's source of this name; in the current memory context.
 */
void
cqrs_message_source_init(CqrsMessageSource *source, Oid role, const char *name)
{
	source->role = role;
	source->role_name = CStringGetTextDatum(GetUserNameFromId(role, false));
	source->name = CStringGetTextDatum(name);
}

/*
 * Note that a source is being consumed, if that is due. The transaction may write.
 * Returns the source's time, in microseconds, up to the longest gap ahead, but never
 * behind.
 */
int64
cqrs_message_source_note(const CqrsMessageSource *source)
{
	int64		longest = cqrs_message_longest_gap();
	TimestampTz now = cqrs_wall_now();
	TimestampTz noted_at = now;
	int64		source_time = 0;
	bool		found = cqrs_message_source_time(source, &source_time, &noted_at);

	/* A clock that was set back has no time pass until it is noted again. */
	if (!found || now < noted_at || now - noted_at >= longest / 2)
	{
		Datum		values[SOURCE_COLUMNS];
		bool		nulls[SOURCE_COLUMNS] = {0};

		/* Always more than before: it is the one that counts. */
		source_time += Max(1, Min(now - noted_at, longest));
		values[SOURCE_TIME - 1] = Int64GetDatum(source_time);
		values[SOURCE_NOTED_AT - 1] = TimestampTzGetDatum(now);
		values[SOURCE_ROLE - 1] = ObjectIdGetDatum(source->role);
		values[SOURCE_NATIVE - 1] = BoolGetDatum(true);
		values[SOURCE_ROLE_NAME - 1] = source->role_name;
		values[SOURCE_NAME - 1] = source->name;
		cqrs_row_insert(CQRS_REL_MESSAGE_SOURCE, values, nulls);
	}
	return source_time + longest;
}

/*
 * How long a source was consumed, in microseconds, and when that was noted. Returns
 * false if it never was.
 */
bool
cqrs_message_source_time(const CqrsMessageSource *source, int64 *source_time,
						 TimestampTz *noted_at)
{
	return find_time(source, false, source_time, noted_at) ||
		find_time(source, true, source_time, noted_at);
}

/*
 * The longest time between two messages that counts as consuming, in microseconds.
 */
int64
cqrs_message_longest_gap(void)
{
	return Min(cqrs_consumed_retention * USECS_PER_SEC / 10, USECS_PER_MINUTE);
}

/*
 * The row that counts: of those with the role's number, or else of the restored ones
 * with its name.
 */
static bool
find_time(const CqrsMessageSource *source, bool any_role, int64 *source_time,
		  TimestampTz *noted_at)
{
	CqrsScan	scan;
	ScanKeyData keys[3];
	Datum		values[SOURCE_COLUMNS];
	bool		nulls[SOURCE_COLUMNS];
	bool		found = false;

	ScanKeyInit(&keys[0], SOURCE_NAME, BTEqualStrategyNumber, F_TEXTEQ,
				source->name);
	ScanKeyInit(&keys[1], SOURCE_ROLE_NAME, BTEqualStrategyNumber, F_TEXTEQ,
				source->role_name);
	ScanKeyInit(&keys[2], SOURCE_ROLE, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(source->role));
	cqrs_scan_begin(&scan, CQRS_REL_MESSAGE_SOURCE,
					CQRS_REL_MESSAGE_SOURCE_TIME, AccessShareLock, SnapshotSelf,
					BackwardScanDirection, any_role ? 2 : 3, keys);
	while (!found && cqrs_scan_read(&scan, values, nulls))
		found = !any_role || !DatumGetBool(values[SOURCE_NATIVE - 1]);
	if (found)
	{
		*source_time = DatumGetInt64(values[SOURCE_TIME - 1]);
		*noted_at = DatumGetTimestampTz(values[SOURCE_NOTED_AT - 1]);
	}
	cqrs_scan_end(&scan, AccessShareLock);
	return found;
}
