/*-------------------------------------------------------------------------
 *
 * cron_schedule.c
 *	  Commands that are executed again and again.
 *
 * A schedule belongs to a role's command queue. Its next run is a scheduled
 * command like others, which waits in cqrs.scheduled_command; release.c puts it
 * into the outbox and, in the same transaction, writes the one after it. So a run
 * is enqueued once, whatever is killed in between; and a schedule that rests costs
 * nothing, however many there are.
 *
 * The id of a run follows from the schedule and the time: where a failover, or a
 * restore, has a run enqueued again, it is the same command.
 *
 * Locking
 *
 * Whoever changes schedules takes SHARE ROW EXCLUSIVE on cqrs.schedule, then the
 * schedule's own lock, and then removes its next run and writes another. Who
 * releases commands takes the schedule's lock only if it is free, reads the
 * schedule under it, and has it until the next run is committed. So no run is
 * left over from a schedule that was changed, and none is missing.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/event_id.h"
#include "base/rfc3339.h"
#include "deferred/cron.h"
#include "deferred/cron_schedule.h"
#include "deferred/enqueue.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "mediator/command.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "shared/clock.h"

/* Without catch_up, a run comes no later than this. */
#define LONGEST_DELAY	USECS_PER_MINUTE

/* A schedule, as it is in its table. */
typedef struct Schedule
{
	int32		schedule_id;
	int32		topic_id;
	char	   *name;
	char	   *cron;
	char	   *time_zone;
	char	   *command_name;
	Datum		payload;
	char	   *catch_up;
	bool		overlap;
	bool		paused;
	bool		waiting;		/* a run of it waits to be tried again */
} Schedule;

static bool find(const char *name, int32 schedule_id, Schedule *schedule);
static Schedule *own(FunctionCallInfo fcinfo, const char *function);
static void require_own(const Schedule *schedule);
static bool is_same(const Schedule *a, const Schedule *b);
static void lock(const Schedule *schedule);
static void disarm(const Schedule *schedule);
static void arm(const Schedule *schedule);
static TimestampTz next_run(const Schedule *schedule, TimestampTz after);
static void id_of_run(const Schedule *schedule, TimestampTz run_at,
					  pg_uuid_t *id);
static Datum headers_of_run(const Schedule *schedule, TimestampTz run_at);

PG_FUNCTION_INFO_V1(cqrs_schedule);
PG_FUNCTION_INFO_V1(cqrs_unschedule);
PG_FUNCTION_INFO_V1(cqrs_pause_schedule);
PG_FUNCTION_INFO_V1(cqrs_resume_schedule);

/*
 * cqrs_schedule(schedule, cron, command_name, payload, time_zone, catch_up, overlap,
 *				 or_replace)
 */
Datum
cqrs_schedule(PG_FUNCTION_ARGS)
{
	Schedule	wanted = {.name = cqrs_name_arg(fcinfo, 0, "schedule")};
	Schedule	old;
	CqrsCommand *command;
	CqrsCron	cron;
	pg_tz	   *zone;
	bool		exists;

	cqrs_require_writable("cqrs_schedule()");
	cqrs_name_check("schedule", wanted.name);
	cqrs_arg_required(fcinfo, 1, "cron expression", "schedule", wanted.name);
	wanted.cron = text_to_cstring(PG_GETARG_TEXT_PP(1));
	cqrs_cron_parse(wanted.cron, &cron);
	zone = cqrs_cron_time_zone(PG_ARGISNULL(4) ? "UTC" :
							   text_to_cstring(PG_GETARG_TEXT_PP(4)), false);
	wanted.time_zone = pstrdup(pg_get_timezone_name(zone));
	command = cqrs_command_get(cqrs_name_arg(fcinfo, 2, "command"),
							   CQRS_COMMAND);
	wanted.command_name = command->name;
	if (PG_ARGISNULL(3))
		wanted.payload = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	else
	{
		wanted.payload = PG_GETARG_DATUM(3);
		cqrs_payload_check_object(PG_GETARG_JSONB_P(3), "command",
								  command->name);
	}
	cqrs_enqueue_check(command, wanted.payload);
	wanted.catch_up = PG_ARGISNULL(5) ? "one" :
		text_to_cstring(PG_GETARG_TEXT_PP(5));
	if (strcmp(wanted.catch_up, "none") != 0 &&
		strcmp(wanted.catch_up, "one") != 0 &&
		strcmp(wanted.catch_up, "all") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schedule \"%s\" cannot have catch_up \"%s\"",
						wanted.name, wanted.catch_up),
				 errhint("Valid values are \"none\", \"one\" and \"all\".")));
	wanted.overlap = !PG_ARGISNULL(6) && PG_GETARG_BOOL(6);
	wanted.topic_id = cqrs_command_queue_topic()->topic_id;

	cqrs_admin_run("LOCK TABLE cqrs.schedule IN SHARE ROW EXCLUSIVE MODE", 0);
	exists = find(wanted.name, 0, &old);
	if (exists)
	{
		require_own(&old);
		if (is_same(&old, &wanted))
			PG_RETURN_BOOL(false);
		if (!cqrs_flag_arg(fcinfo, 7))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("schedule \"%s\" already exists, and is another one",
							wanted.name),
					 errhint("Use or_replace => true to replace it.")));
		lock(&old);
		disarm(&old);
	}
	(void) cqrs_admin_run("INSERT INTO cqrs.schedule (schedule, topic_id, cron, time_zone, command_name, payload, catch_up, overlap)"
						  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
						  " ON CONFLICT (schedule) DO UPDATE SET topic_id = $2, cron = $3, time_zone = $4,"
						  " command_name = $5, payload = $6, catch_up = $7, overlap = $8",
						  8, CQRS_TEXT(wanted.name), CQRS_INT4(wanted.topic_id),
						  CQRS_TEXT(wanted.cron), CQRS_TEXT(wanted.time_zone),
						  CQRS_TEXT(wanted.command_name),
						  CQRS_ARG(JSONBOID, wanted.payload),
						  CQRS_TEXT(wanted.catch_up), CQRS_BOOL(wanted.overlap));
	if (!find(wanted.name, 0, &wanted))
		elog(ERROR, "schedule \"%s\" is not there", wanted.name);
	if (!wanted.paused)
		arm(&wanted);
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_unschedule(schedule, if_exists)
 */
Datum
cqrs_unschedule(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "schedule");
	Schedule	schedule;

	cqrs_require_writable("cqrs_unschedule()");
	cqrs_admin_run("LOCK TABLE cqrs.schedule IN SHARE ROW EXCLUSIVE MODE", 0);
	if (!find(name, 0, &schedule))
	{
		if (cqrs_flag_arg(fcinfo, 1))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("schedule \"%s\" does not exist", name),
							   "cqrs_schedules");
	}
	require_own(&schedule);
	lock(&schedule);
	disarm(&schedule);
	(void) cqrs_admin_run("DELETE FROM cqrs.schedule WHERE schedule_id = $1",
						  1, CQRS_INT4(schedule.schedule_id));
	PG_RETURN_BOOL(true);
}

/*
 * cqrs_pause_schedule(schedule)
 */
Datum
cqrs_pause_schedule(PG_FUNCTION_ARGS)
{
	Schedule   *schedule = own(fcinfo, "cqrs_pause_schedule()");

	disarm(schedule);
	PG_RETURN_BOOL(cqrs_admin_run("UPDATE cqrs.schedule SET paused = true"
								  " WHERE schedule_id = $1 AND NOT paused",
								  1, CQRS_INT4(schedule->schedule_id)) > 0);
}

/*
 * cqrs_resume_schedule(schedule)
 */
Datum
cqrs_resume_schedule(PG_FUNCTION_ARGS)
{
	Schedule   *schedule = own(fcinfo, "cqrs_resume_schedule()");
	bool		armed;

	(void) cqrs_admin_run("UPDATE cqrs.schedule SET paused = false"
						  " WHERE schedule_id = $1 AND paused",
						  1, CQRS_INT4(schedule->schedule_id));
	armed = cqrs_admin_run("SELECT FROM cqrs.scheduled_command WHERE schedule_id = $1",
						   1, CQRS_INT4(schedule->schedule_id)) > 0;
	if (!armed)
		arm(schedule);
	PG_RETURN_BOOL(!armed);
}

/*
 * The run of a schedule that was for run_at is due. Says in *due, in the current
 * memory context, what is to be done about it. Waits for nobody: if the schedule
 * is free, it is locked.
 */
void
cqrs_due_run(int32 schedule_id, TimestampTz run_at, TimestampTz now,
			 CqrsDueRun *due)
{
	Schedule	schedule;

	memset(due, 0, sizeof(*due));
	due->next = DT_NOEND;
	due->locked = !cqrs_object_lock(CQRS_REL_SCHEDULE, schedule_id, 0,
									ExclusiveLock, false);
	if (due->locked || !find(NULL, schedule_id, &schedule))
		return;

	due->next = next_run(&schedule, run_at);
	due->runs = true;
	if (strcmp(schedule.catch_up, "all") != 0)
	{
		if (due->next <= now)
			due->next = next_run(&schedule, now);
		due->runs = !schedule.waiting &&
			(strcmp(schedule.catch_up, "one") == 0 ||
			 now - run_at <= LONGEST_DELAY);
	}
	if (due->next == DT_NOEND)
		return;
	id_of_run(&schedule, due->next, &due->next_id);
	due->next_headers.value = headers_of_run(&schedule, due->next);
}

/*
 * Read a schedule, by its name or, if that is NULL, by its id.
 */
static bool
find(const char *name, int32 schedule_id, Schedule *schedule)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext oldcontext;
	CqrsAdmin	admin;
	bool		found;

	cqrs_admin_begin(&admin);
	found = cqrs_admin_execute("SELECT d.schedule_id, d.topic_id, d.schedule, d.cron, d.time_zone, d.command_name,"
							   " d.payload, d.catch_up, d.overlap, d.paused, NOT d.overlap AND EXISTS ("
							   "  SELECT FROM cqrs.subscription_topic t"
							   "  JOIN cqrs.subscription s ON s.subscription_id = t.subscription_id AND s.runs = 'commands'"
							   "  JOIN cqrs.retry r ON r.subscription_id = s.subscription_id"
							   "   AND r.partition = cqrs.event_partition(d.topic_id, '00000000-0000-0000-0000-000000000000', d.schedule, s.ordering = 'topic', s.partitions)"
							   "   AND r.lane = cqrs.event_lane(d.topic_id, '00000000-0000-0000-0000-000000000000', d.schedule, s.ordering = 'topic')"
							   "   AND r.key = d.schedule"
							   "  WHERE t.topic_id = d.topic_id)"
							   " FROM cqrs.schedule d WHERE d.schedule = $1 OR d.schedule_id = $2",
							   2, CQRS_NULLABLE(TEXTOID, name == NULL ? 0 :
												CStringGetTextDatum(name), name == NULL),
							   CQRS_NULLABLE(INT4OID, Int32GetDatum(schedule_id), name != NULL)) > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Datum		values[11];
		bool		nulls[11];

		heap_deform_tuple(row, desc, values, nulls);
		oldcontext = MemoryContextSwitchTo(context);
		schedule->schedule_id = DatumGetInt32(values[0]);
		schedule->topic_id = DatumGetInt32(values[1]);
		schedule->name = TextDatumGetCString(values[2]);
		schedule->cron = TextDatumGetCString(values[3]);
		schedule->time_zone = TextDatumGetCString(values[4]);
		schedule->command_name = TextDatumGetCString(values[5]);
		schedule->payload = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[6]));
		schedule->catch_up = TextDatumGetCString(values[7]);
		schedule->overlap = DatumGetBool(values[8]);
		schedule->paused = DatumGetBool(values[9]);
		schedule->waiting = DatumGetBool(values[10]);
		MemoryContextSwitchTo(oldcontext);
	}
	cqrs_admin_end(&admin);
	return found;
}

/*
 * The schedule that the first argument names, which is the user's, locked. Raises
 * 42704 or 42501.
 */
static Schedule *
own(FunctionCallInfo fcinfo, const char *function)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "schedule");
	Schedule   *schedule = palloc(sizeof(Schedule));

	cqrs_require_writable(function);
	cqrs_admin_run("LOCK TABLE cqrs.schedule IN SHARE ROW EXCLUSIVE MODE", 0);
	if (!find(name, 0, schedule))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("schedule \"%s\" does not exist", name),
				 errhint("cqrs_schedules lists those that there are.")));
	require_own(schedule);
	lock(schedule);
	return schedule;
}

static void
require_own(const Schedule *schedule)
{
	if (!cqrs_command_is_own(schedule->topic_id))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of schedule \"%s\"", schedule->name),
				 errhint("What it takes is membership in the role that made it.")));
}

static bool
is_same(const Schedule *a, const Schedule *b)
{
	return a->topic_id == b->topic_id && strcmp(a->cron, b->cron) == 0 &&
		strcmp(a->time_zone, b->time_zone) == 0 &&
		strcmp(a->command_name, b->command_name) == 0 &&
		DatumGetBool(DirectFunctionCall2(jsonb_eq, a->payload, b->payload)) &&
		strcmp(a->catch_up, b->catch_up) == 0 && a->overlap == b->overlap;
}

static void
lock(const Schedule *schedule)
{
	(void) cqrs_object_lock(CQRS_REL_SCHEDULE, schedule->schedule_id, 0,
							ExclusiveLock, true);
}

/*
 * Remove the next run. It is locked.
 */
static void
disarm(const Schedule *schedule)
{
	CqrsAdmin	admin;

	cqrs_admin_begin(&admin);
	if (cqrs_admin_execute("DELETE FROM cqrs.scheduled_command WHERE schedule_id = $1 RETURNING run_at",
						   1, CQRS_INT4(schedule->schedule_id)) > 0)
		cqrs_shmem_command_removed(DatumGetTimestampTz(cqrs_admin_result()));
	cqrs_admin_end(&admin);
}

/*
 * Write the next run. It has none, and is locked.
 */
static void
arm(const Schedule *schedule)
{
	TimestampTz run_at = next_run(schedule, cqrs_wall_now());
	pg_uuid_t	id;
	CqrsEvent	event = {0};

	if (run_at == DT_NOEND)
		return;
	id_of_run(schedule, run_at, &id);
	event.topic = cqrs_registry_topic_by_id(schedule->topic_id);
	event.event_id = UUIDPGetDatum(&id);
	event.event_name = CStringGetTextDatum(schedule->command_name);
	event.key.isnull = schedule->overlap;
	if (!schedule->overlap)
		event.key.value = CStringGetTextDatum(schedule->name);
	event.payload.value = schedule->payload;
	event.headers.value = headers_of_run(schedule, run_at);
	event.emitted_at = GetCurrentTimestamp();
	cqrs_command_schedule(&event, run_at, schedule->schedule_id);
}

/*
 * DT_NOEND: there is none. That can only be if the time zone is not known any
 * more; cqrs_health() tells.
 */
static TimestampTz
next_run(const Schedule *schedule, TimestampTz after)
{
	pg_tz	   *zone = cqrs_cron_time_zone(schedule->time_zone, true);
	CqrsCron	cron;

	if (zone == NULL)
		return DT_NOEND;
	cqrs_cron_parse(schedule->cron, &cron);
	return cqrs_cron_next(&cron, zone, after);
}

static void
id_of_run(const Schedule *schedule, TimestampTz run_at, pg_uuid_t *id)
{
	cqrs_event_id_derive(run_at,
						 psprintf("%d %s", schedule->schedule_id, schedule->name),
						 id);
}

/*
 * What a run is about, and when it was to be.
 */
static Datum
headers_of_run(const Schedule *schedule, TimestampTz run_at)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"correlation_id\": ");
	escape_json(&json, schedule->name);
	appendStringInfoString(&json, ", \"occurred_at\": \"");
	cqrs_rfc3339_append(&json, run_at);
	appendStringInfoString(&json, "\"}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}
