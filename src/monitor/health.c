/*-------------------------------------------------------------------------
 *
 * health.c
 *	  What the views that cqrs_health() reads cannot see: what is in shared
 *	  memory, who has locked a topic's table, which function a signature names.
 *
 * Nothing here waits for a lock, or raises an error because something is
 * broken.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "extension/catalog.h"
#include "log/segment.h"
#include "registry/registry.h"
#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

#define BACKGROUND_COLUMNS	17

static CqrsSegmentState look_twice(const CqrsTopic *topic, int segment,
								   const char **detail, int *pid);

PG_FUNCTION_INFO_V1(cqrs_usable);
PG_FUNCTION_INFO_V1(cqrs_library_version);
PG_FUNCTION_INFO_V1(cqrs_background);
PG_FUNCTION_INFO_V1(cqrs_broken_tables);
PG_FUNCTION_INFO_V1(cqrs_find_function);

/*
 * cqrs.usable()
 */
Datum
cqrs_usable(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(cqrs_registry_usable());
}

/*
 * cqrs.library_version()
 */
Datum
cqrs_library_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(CQRS_VERSION));
}

/*
 * cqrs.background()
 */
Datum
cqrs_background(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {
		[CQRS_DATABASE_FREE] = "unknown",
		[CQRS_DATABASE_RESTING] = "resting",
		[CQRS_DATABASE_REQUESTED] = "requested",
		[CQRS_DATABASE_STARTING] = "starting",
		[CQRS_DATABASE_RUNNING] = "running",
	};
	CqrsDatabaseSlot slot = {.state = CQRS_DATABASE_FREE};
	CqrsDatabaseSlot *found;
	Datum		values[BACKGROUND_COLUMNS];
	bool		nulls[BACKGROUND_COLUMNS] = {0};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;
	bool		launcher;
	bool		exhausted;
	int			ndatabases = 0;
	int			n = 0;
	int			i;

	if (cqrs_shared == NULL)
		PG_RETURN_NULL();
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	launcher = cqrs_shared->launcher_pid != 0;
	exhausted = cqrs_shared->exhausted;
	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].state != CQRS_DATABASE_FREE)
			ndatabases++;
	found = cqrs_database_find(MyDatabaseId);
	if (found != NULL)
		slot = *found;
	LWLockRelease(cqrs_shared->lock);

	values[n++] = Int32GetDatum(cqrs_shared->ndatabases);
	values[n++] = Int32GetDatum(cqrs_shared->nmanagers);
	values[n++] = Int32GetDatum(cqrs_shared->nworkers);
	values[n++] = BoolGetDatum(launcher);
	values[n++] = BoolGetDatum(ndatabases == cqrs_shared->ndatabases);
	values[n++] = BoolGetDatum(exhausted);
	values[n++] = CStringGetTextDatum(states[slot.state]);
	values[n++] = BoolGetDatum(slot.held > 0);
	values[n++] = Int32GetDatum(slot.failures);
	values[n++] = TimestampTzGetDatum(cqrs_steady_to_wall(slot.start_after));
	values[n++] = BoolGetDatum(slot.exhausted);
	nulls[n] = slot.waiting_since == 0;
	values[n++] = TimestampTzGetDatum(cqrs_steady_to_wall(slot.waiting_since));
	values[n++] = Int32GetDatum(slot.failed_subscription);
	values[n++] = Int32GetDatum(slot.worker_failures);
	values[n++] = TimestampTzGetDatum(cqrs_steady_to_wall(slot.worker_retry_at));
	values[n++] = TimestampTzGetDatum(cqrs_steady_to_wall(cqrs_steady_now()));
	nulls[n] = !cqrs_clock_jumped(&until);
	values[n] = TimestampTzGetDatum(nulls[n] ? 0 :
									until + now - cqrs_steady_now());
	Assert(n == BACKGROUND_COLUMNS - 1);
	return cqrs_row(fcinfo, values, nulls);
}

/*
 * cqrs.broken_tables(topic_id)
 */
Datum
cqrs_broken_tables(PG_FUNCTION_ARGS)
{
	static const char *const states[] = {
		[CQRS_SEGMENT_LOCKED] = "locked",
		[CQRS_SEGMENT_MISSING] = "missing",
		[CQRS_SEGMENT_ALTERED] = "altered",
	};
	CqrsTopic  *topic = cqrs_registry_topic_by_id(PG_GETARG_INT32(0));
	TupleDesc	desc;
	Tuplestorestate *store = cqrs_srf_begin(fcinfo, &desc);
	int			i;

	for (i = 0; topic != NULL && i < CQRS_SEGMENTS; i++)
	{
		const char *detail;
		int			pid;
		CqrsSegmentState state = look_twice(topic, i, &detail, &pid);
		Datum		values[4];
		bool		nulls[4] = {0};

		if (state == CQRS_SEGMENT_INTACT)
			continue;
		values[0] = CStringGetTextDatum(psprintf("%s.topic_%d_%d", CQRS_SCHEMA,
												 topic->topic_id, i));
		values[1] = CStringGetTextDatum(states[state]);
		nulls[2] = detail == NULL;
		if (detail != NULL)
			values[2] = CStringGetTextDatum(detail);
		values[3] = Int32GetDatum(pid);
		nulls[3] = pid == 0;
		tuplestore_putvalues(store, desc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * The state of a segment. If it is locked, *pid gets the process that has the
 * lock. If none has, the lock may just have been released, or somebody waits
 * for it and blocks all others.
 */
static CqrsSegmentState
look_twice(const CqrsTopic *topic, int segment, const char **detail, int *pid)
{
	CqrsSegmentState state;
	LOCKTAG		tag;
	int			i;

	*pid = 0;
	for (i = 0; i < 2; i++)
	{
		state = cqrs_segment_look(topic, segment, detail);
		if (state != CQRS_SEGMENT_LOCKED)
			break;
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, topic->segments[segment]);
		if (cqrs_lock_holder(&tag, AccessShareLock, pid))
			break;
	}
	return state;
}

/*
 * cqrs.find_function(signature, registered_owner, returns_set)
 */
Datum
cqrs_find_function(PG_FUNCTION_ARGS)
{
	CqrsHandler handler;
	Datum		values[5] = {0};
	bool		nulls[5];

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	cqrs_handler_init(&handler, text_to_cstring(PG_GETARG_TEXT_PP(0)),
					  PG_ARGISNULL(1) ? NULL :
					  text_to_cstring(PG_GETARG_TEXT_PP(1)),
					  CurrentMemoryContext);
	handler.returns_set = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	nulls[0] = nulls[1] = nulls[2] = nulls[3] = !cqrs_handler_find(&handler);
	values[0] = ObjectIdGetDatum(handler.funcid);
	values[1] = ObjectIdGetDatum(handler.owner);
	values[2] = ObjectIdGetDatum(handler.argtype);
	values[3] = ObjectIdGetDatum(handler.rettype);
	nulls[4] = !handler.taken_over;
	if (handler.taken_over)
		values[4] = CStringGetTextDatum(cqrs_handler_why_missing(&handler));
	return cqrs_row(fcinfo, values, nulls);
}
