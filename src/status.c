/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What the views show.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/htup_details.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "cursor.h"
#include "registry.h"
#include "retry.h"
#include "shmem.h"
#include "window.h"

/* Events are counted up to here; beyond, positions are subtracted. */
#define EXACT_LAG	10000

static int64 count_lag(CqrsSubscription *subscription,
					   const CqrsCursor *cursor, Snapshot snapshot,
					   TimestampTz *oldest);
static const char *worker_of(int32 subscription_id, int *pid);
static void put_process(Tuplestorestate *store, TupleDesc desc,
						const char *kind, int pid, Oid dboid,
						int32 subscription_id, const char *state,
						TimestampTz started_at);

PG_FUNCTION_INFO_V1(cqrs_subscription_progress);
PG_FUNCTION_INFO_V1(cqrs_worker_status);

/*
 * cqrs.subscription_progress(subscription_id)
 */
Datum
cqrs_subscription_progress(PG_FUNCTION_ARGS)
{
	int32		subscription_id = PG_GETARG_INT32(0);
	CqrsSubscription *subscription;
	CqrsCursor	cursor;
	CqrsFailure failure;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false, false, true, false};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz oldest = now;
	int			pid = 0;
	const char *state;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL ||
		!cqrs_cursor_read(subscription_id, 0, GetActiveSnapshot(), &cursor))
		PG_RETURN_NULL();

	values[0] = Int64GetDatum(count_lag(subscription, &cursor,
										GetActiveSnapshot(), &oldest));
	values[1] = Float8GetDatum((now - oldest) / (double) USECS_PER_SEC);
	state = worker_of(subscription_id, &pid);
	if (pid != 0)
	{
		values[2] = Int32GetDatum(pid);
		nulls[2] = false;
	}
	if (!subscription->has_handler)
		nulls[3] = true;
	else
	{
		if (strcmp(state, "delivering") != 0 &&
			cqrs_failure_read(subscription_id, GetActiveSnapshot(), &failure))
			state = "waiting to retry";
		values[3] = CStringGetTextDatum(state);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/*
 * cqrs_worker_status()
 */
Datum
cqrs_worker_status(PG_FUNCTION_ARGS)
{
	static const char *const database_states[] = {
		[CQRS_DATABASE_STARTING] = "starting",
		[CQRS_DATABASE_RUNNING] = "running",
	};
	static const char *const worker_states[] = {
		[CQRS_WORKER_STARTING] = "starting",
		[CQRS_WORKER_DELIVERING] = "delivering",
		[CQRS_WORKER_IDLE] = "idle",
	};
	Tuplestorestate *store;
	TupleDesc	desc;
	CqrsDatabaseSlot *databases;
	CqrsWorkerSlot *workers;
	int			launcher_pid;
	TimestampTz launcher_started_at;
	int			i;

	if (cqrs_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_outbox is not preloaded"),
				 errdetail("Nothing is delivered in the background."),
				 errhint("Add cqrs_outbox to shared_preload_libraries and restart the server.")));

	/* The lock is not held while the result is made. */
	databases = palloc(sizeof(CqrsDatabaseSlot) * cqrs_shared->ndatabases);
	workers = palloc(sizeof(CqrsWorkerSlot) * cqrs_shared->nworkers);
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	launcher_pid = cqrs_shared->launcher_pid;
	launcher_started_at = cqrs_shared->launcher_started_at;
	memcpy(databases, cqrs_shared->databases,
		   sizeof(CqrsDatabaseSlot) * cqrs_shared->ndatabases);
	memcpy(workers, cqrs_shared->workers,
		   sizeof(CqrsWorkerSlot) * cqrs_shared->nworkers);
	LWLockRelease(cqrs_shared->lock);

	store = cqrs_srf_begin(fcinfo, &desc);
	if (launcher_pid != 0)
		put_process(store, desc, "launcher", launcher_pid, InvalidOid, 0,
					"running", launcher_started_at);
	for (i = 0; i < cqrs_shared->ndatabases; i++)
		if (databases[i].manager_pid != 0)
			put_process(store, desc, "manager", databases[i].manager_pid,
						databases[i].dboid, 0,
						database_states[databases[i].state],
						databases[i].started_at);
	for (i = 0; i < cqrs_shared->nworkers; i++)
		if (workers[i].pid != 0)
			put_process(store, desc, "worker", workers[i].pid,
						workers[i].dboid, workers[i].subscription_id,
						workers[i].stop ? "stopping" :
						worker_states[workers[i].state],
						workers[i].started_at);
	return (Datum) 0;
}

/*
 * How many events the snapshot shows beyond a cursor, and when the oldest was
 * emitted.
 */
static int64
count_lag(CqrsSubscription *subscription, const CqrsCursor *cursor,
		  Snapshot snapshot, TimestampTz *oldest)
{
	int64		lag = 0;
	int			i;

	for (i = 0; i < subscription->ntopics && lag < EXACT_LAG; i++)
	{
		const CqrsSnapshot *lower = cursor->snapshot;

		if (cursor->until_tick != 0)
		{
			lag += cqrs_window_count(subscription->topics[i], lower,
									 cursor->until_snapshot, cursor->position,
									 snapshot, EXACT_LAG - lag, oldest);
			lower = cursor->until_snapshot;
		}
		lag += cqrs_window_count(subscription->topics[i], lower, NULL, 0,
								 snapshot, EXACT_LAG - lag, oldest);
	}
	if (lag >= EXACT_LAG)
		lag = Max(lag, cqrs_last_position() - cursor->last_position);
	return lag;
}

/*
 * The state of a subscription's worker, and its pid if there is one.
 */
static const char *
worker_of(int32 subscription_id, int *pid)
{
	const char *state = "no worker";
	int			i;

	if (cqrs_shared == NULL)
		return state;
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	for (i = 0; i < cqrs_shared->nworkers; i++)
	{
		CqrsWorkerSlot *worker = &cqrs_shared->workers[i];

		if (worker->state < CQRS_WORKER_STARTING ||
			worker->dboid != MyDatabaseId ||
			worker->subscription_id != subscription_id)
			continue;
		*pid = worker->pid;
		state = worker->state == CQRS_WORKER_IDLE ? "idle" : "delivering";
	}
	LWLockRelease(cqrs_shared->lock);
	return state;
}

static void
put_process(Tuplestorestate *store, TupleDesc desc, const char *kind, int pid,
			Oid dboid, int32 subscription_id, const char *state,
			TimestampTz started_at)
{
	Datum		values[6];
	bool		nulls[6] = {0};
	char	   *database = OidIsValid(dboid) ? get_database_name(dboid) : NULL;
	NameData	name;

	values[0] = CStringGetTextDatum(kind);
	values[1] = Int32GetDatum(pid);
	nulls[2] = database == NULL;
	if (database != NULL)
	{
		namestrcpy(&name, database);
		values[2] = NameGetDatum(&name);
	}
	values[3] = Int32GetDatum(subscription_id);
	nulls[3] = subscription_id == 0;
	values[4] = CStringGetTextDatum(state);
	values[5] = TimestampTzGetDatum(started_at);
	tuplestore_putvalues(store, desc, values, nulls);
}
