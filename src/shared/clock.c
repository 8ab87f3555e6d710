/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  What time it is, even if somebody sets the clock.
 *
 * The wall clock can be set. Our processes use two times instead, both as
 * TimestampTz:
 *
 * 1. Steady time goes on evenly from when the server started, also while the
 *	  machine is suspended. How long something takes or is to wait is measured
 *	  by it: an interval is over when it is over, whatever the wall clock says.
 *	  It is the same in all processes, so it can be stored in shared memory,
 *	  but not in a table.
 * 2. Times in tables (when a command is to run, when a retention ends) go by
 *	  the wall clock, as far as it is believed. A clock that is set back is
 *	  believed at once. One that is suddenly more than LONGEST_STEP ahead is not
 *	  believed for LONGEST_DOUBT: until then, time goes on from where it was. So
 *	  if a clock that was set forward by mistake is put right within a minute,
 *	  it has released nothing that cannot be taken back. cqrs_health() tells of
 *	  it.
 *
 * A jump is noticed by whoever asks for the time first; a manager does so
 * about each poll_interval. As long as the clock only drifts, nobody takes the
 * mutex, since each command with an idempotency key asks for the time, too.
 * Without shared memory there is no process of ours to notice a jump: then the
 * wall clock counts.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <time.h>

#include "shared/clock.h"

/* How far the wall clock may jump ahead and be believed at once. */
#define LONGEST_STEP	USECS_PER_MINUTE

/* How far it may drift before that is written down. */
#define LONGEST_DRIFT	USECS_PER_SEC

/* How long a clock that jumps further is not believed. */
#define LONGEST_DOUBT	USECS_PER_MINUTE

/* The clock that goes on while the machine is suspended, if there is one. */
#ifdef CLOCK_BOOTTIME
#define MACHINE_CLOCK	CLOCK_BOOTTIME
#else
#define MACHINE_CLOCK	CLOCK_MONOTONIC
#endif

/* NULL if not preloaded. */
static CqrsClock *shared_clock = NULL;

#ifdef CQRS_DEBUG_POINTS
#define debug_passed() \
	(shared_clock != NULL ? shared_clock->debug_passed : 0)
#else
#define debug_passed()	0
#endif

static int64 machine_now(void);
static int64 believed_offset(TimestampTz steady);

/*
 * Where the clock is in shared memory; set it up, unless it was found there.
 */
void
cqrs_clock_attach(CqrsClock *clock, bool found)
{
	shared_clock = clock;
	if (found)
		return;
	SpinLockInit(&clock->mutex);
	clock->steady_base = GetCurrentTimestamp() - machine_now();
	pg_atomic_init_u64(&clock->offset, 0);
	pg_atomic_init_u64(&clock->jumped_at, 0);
#ifdef CQRS_DEBUG_POINTS
	clock->debug_ahead = clock->debug_passed = 0;
#endif
}

TimestampTz
cqrs_steady_now(void)
{
	return machine_now() +
		(shared_clock != NULL ? shared_clock->steady_base : 0);
}

/*
 * The wall clock, as far as it is believed.
 */
TimestampTz
cqrs_wall_now(void)
{
	TimestampTz steady;

	if (shared_clock == NULL)
		return GetCurrentTimestamp();
	steady = cqrs_steady_now();
	return steady + believed_offset(steady);
}

/*
 * When something is due, by the believed wall clock, according to a table: at was
 * computed at the time since. If since is in the future, the clock was set back,
 * and it is due at once: as of a while ago, for callers that have read the clock
 * before.
 */
TimestampTz
cqrs_wall_due(TimestampTz at, TimestampTz since)
{
	TimestampTz now = cqrs_wall_now();

	return since > now + LONGEST_STEP ? Min(at, now - LONGEST_STEP) : at;
}

/*
 * The steady time at which the believed wall clock will get to this time,
 * unless it is set. DT_NOBEGIN and DT_NOEND stay what they are.
 */
TimestampTz
cqrs_steady_from_wall(TimestampTz wall)
{
	TimestampTz steady = cqrs_steady_now();

	if (TIMESTAMP_NOT_FINITE(wall))
		return wall;
	Assert(shared_clock != NULL);
	return wall - believed_offset(steady);
}

/*
 * Like cqrs_steady_from_wall(), for a time that is at most longest milliseconds
 * ahead; if it is further, the clock was set back. 0 stays 0: none.
 */
TimestampTz
cqrs_steady_deadline(TimestampTz wall, int64 longest)
{
	TimestampTz steady;

	if (wall == 0)
		return 0;
	steady = cqrs_steady_from_wall(wall);
	if (longest == 0)
		return steady;
	return Min(steady, TimestampTzPlusMilliseconds(cqrs_steady_now(), longest));
}

/*
 * The wall clock's time for a steady time, for people to read.
 */
TimestampTz
cqrs_steady_to_wall(TimestampTz steady)
{
	if (TIMESTAMP_NOT_FINITE(steady) || shared_clock == NULL || steady == 0)
		return steady;
	return steady + believed_offset(cqrs_steady_now());
}

/*
 * The shorter one of wait (in milliseconds; -1: for ever) and the time from
 * now until then.
 */
long
cqrs_sooner(long wait, TimestampTz now, TimestampTz then)
{
	long		until = TimestampDifferenceMilliseconds(now, then);

	return wait < 0 ? until : Min(wait, until);
}

/*
 * Is the wall clock ahead of what is believed? *until, in steady time, gets
 * when it will be believed.
 */
bool
cqrs_clock_jumped(TimestampTz *until)
{
	TimestampTz jumped_at;

	(void) believed_offset(cqrs_steady_now());
	jumped_at = (TimestampTz) pg_atomic_read_u64(&shared_clock->jumped_at);
	*until = jumped_at + LONGEST_DOUBT;
	return jumped_at != 0;
}

/*
 * The machine's monotonic clock, in microseconds.
 */
static int64
machine_now(void)
{
	struct timespec now;

	(void) clock_gettime(MACHINE_CLOCK, &now);
	return now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000 + debug_passed();
}

/*
 * How far the believed wall clock is ahead of steady time. Notices if that has
 * changed.
 */
static int64
believed_offset(TimestampTz steady)
{
	CqrsClock  *clock = shared_clock;
	int64		offset = GetCurrentTimestamp() - steady;
	int64		drift = offset - (int64) pg_atomic_read_u64(&clock->offset);
	TimestampTz jumped_at = (TimestampTz) pg_atomic_read_u64(&clock->jumped_at);

	if (drift >= -LONGEST_DRIFT && drift <= LONGEST_DRIFT && jumped_at == 0)
		return offset;

	SpinLockAcquire(&clock->mutex);
	drift = offset - (int64) pg_atomic_read_u64(&clock->offset);
	jumped_at = (TimestampTz) pg_atomic_read_u64(&clock->jumped_at);
	if (drift <= LONGEST_STEP)
		jumped_at = 0;
	else if (jumped_at == 0)
		jumped_at = steady;
	if (jumped_at == 0 || steady - jumped_at >= LONGEST_DOUBT)
	{
		pg_atomic_write_u64(&clock->offset, (uint64) offset);
		jumped_at = 0;
	}
	pg_atomic_write_u64(&clock->jumped_at, (uint64) jumped_at);
	offset = (int64) pg_atomic_read_u64(&clock->offset);
	SpinLockRelease(&clock->mutex);
	return offset;
}

#ifdef CQRS_DEBUG_POINTS
#undef GetCurrentTimestamp

PG_FUNCTION_INFO_V1(cqrs_debug_clock);

/*
 * This replaces GetCurrentTimestamp() everywhere in a build with debug points.
 */
TimestampTz
cqrs_debug_wall_clock(void)
{
	if (shared_clock == NULL)
		return GetCurrentTimestamp();
	return GetCurrentTimestamp() + shared_clock->debug_passed +
		shared_clock->debug_ahead;
}

/*
 * cqrs_debug_clock(ahead, passed): set the wall clock ahead, and let time
 * pass, both in milliseconds. A test creates the function.
 */
Datum
cqrs_debug_clock(PG_FUNCTION_ARGS)
{
	CqrsClock  *clock = shared_clock;

	SpinLockAcquire(&clock->mutex);
	clock->debug_ahead = PG_GETARG_INT64(0) * 1000;
	clock->debug_passed += PG_GETARG_INT64(1) * 1000;
	SpinLockRelease(&clock->mutex);
	PG_RETURN_VOID();
}
#endif
