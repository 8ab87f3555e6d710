/*-------------------------------------------------------------------------
 *
 * worker_status.c
 *	  Our processes as people see them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "commands/dbcommands.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "extension/catalog.h"
#include "shared/clock.h"
#include "shared/shmem.h"

static void put_process(Tuplestorestate *store, TupleDesc desc,
						const char *kind, int pid, Oid dboid,
						const CqrsWorkerSlot *worker, const char *state,
						TimestampTz started_at);

PG_FUNCTION_INFO_V1(cqrs_worker_status);

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

	/* Copy: the lock should not be held while the result is made. */
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
	values[6] = TimestampTzGetDatum(cqrs_steady_to_wall(started_at));
	tuplestore_putvalues(store, desc, values, nulls);
}
