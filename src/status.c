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
#include "shmem.h"
#include "window.h"

/* Events are counted up to here; beyond, positions are subtracted. */
#define EXACT_LAG	10000

static int64 count_lag(CqrsSubscription *subscription,
					   const CqrsCursor *cursor, Snapshot snapshot,
					   TimestampTz *oldest);
static const char *state_of(const CqrsSubscription *subscription,
							int *pid);
static const char *worker_of(int32 subscription_id, int *pid);
static void put_process(Tuplestorestate *store, TupleDesc desc,
						const char *kind, int pid, Oid dboid,
						const CqrsWorkerSlot *worker, const char *state,
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
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {0};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz oldest = now;
	int64		lag = 0;
	double		rate = 0;
	bool		restored = false;
	int			pid = 0;
	const char *state;
	int			i;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL)
		PG_RETURN_NULL();
	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription_id, i, GetActiveSnapshot(),
							  &cursor))
			PG_RETURN_NULL();
		restored |= !cursor.native;
		if (cursor.native)
			lag += count_lag(subscription, &cursor, GetActiveSnapshot(),
							 &oldest);
		rate += cqrs_cursor_rate(&cursor, GetActiveSnapshot());
	}

	state = restored ? "restored" : state_of(subscription, &pid);
	values[0] = Int64GetDatum(lag);
	values[1] = Float8GetDatum((now - oldest) / (double) USECS_PER_SEC);
	values[2] = Float8GetDatum(rate);
	values[3] = Int32GetDatum(pid);
	nulls[3] = pid == 0;
	nulls[4] = state == NULL;
	if (state != NULL)
		values[4] = CStringGetTextDatum(state);
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

	cqrs_require_preloaded();

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
		put_process(store, desc, "launcher", launcher_pid, InvalidOid, NULL,
					"running", launcher_started_at);
	for (i = 0; i < cqrs_shared->ndatabases; i++)
		if (databases[i].manager_pid != 0)
			put_process(store, desc, "manager", databases[i].manager_pid,
						databases[i].dboid, NULL,
						database_states[databases[i].state],
						databases[i].started_at);
	for (i = 0; i < cqrs_shared->nworkers; i++)
		if (workers[i].pid != 0)
			put_process(store, desc, "worker", workers[i].pid,
						workers[i].dboid, &workers[i],
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
									 subscription->partitions,
									 cursor->partition, snapshot,
									 EXACT_LAG - lag, oldest);
			lower = cursor->until_snapshot;
		}
		lag += cqrs_window_count(subscription->topics[i], lower, NULL, 0,
								 subscription->partitions, cursor->partition,
								 snapshot, EXACT_LAG - lag, oldest);
	}
	if (lag >= EXACT_LAG)
		lag = Max(lag, cqrs_last_position() - cursor->last_position);
	return lag;
}

/*
 * What a subscription is at, in a word; NULL: it is pulled, there is nothing to
 * say. *pid gets that of its worker.
 */
static const char *
state_of(const CqrsSubscription *subscription, int *pid)
{
	switch (subscription->state)
	{
		case CQRS_SUBSCRIPTION_PAUSED:
			return "paused";
		case CQRS_SUBSCRIPTION_SUSPENDED:
			return "suspended";
		case CQRS_SUBSCRIPTION_ACTIVE:
			break;
	}
	return subscription->has_handler ?
		worker_of(subscription->subscription_id, pid) : NULL;
}

/*
 * The state of a subscription's workers, and the pid of one if there is one:
 * of one that delivers, rather than of an idle one.
 */
static const char *
worker_of(int32 subscription_id, int *pid)
{
	const char *state = "no worker";
	TimestampTz now = GetCurrentTimestamp();
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
		state = worker->failed_until > now || worker->retry_at > now ?
			"waiting to retry" : "idle";
		if (worker->state != CQRS_WORKER_IDLE)
		{
			state = "delivering";
			break;
		}
	}
	LWLockRelease(cqrs_shared->lock);
	return state;
}

static void
put_process(Tuplestorestate *store, TupleDesc desc, const char *kind, int pid,
			Oid dboid, const CqrsWorkerSlot *worker, const char *state,
			TimestampTz started_at)
{
	Datum		values[7];
	bool		nulls[7] = {0};
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
	nulls[3] = nulls[4] = worker == NULL || worker->subscription_id == 0;
	if (!nulls[3])
	{
		values[3] = Int32GetDatum(worker->subscription_id);
		values[4] = Int32GetDatum(worker->partition);
	}
	values[5] = CStringGetTextDatum(state);
	values[6] = TimestampTzGetDatum(started_at);
	tuplestore_putvalues(store, desc, values, nulls);
}
