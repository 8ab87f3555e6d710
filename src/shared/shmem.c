/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  What the processes share.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "replication/logicallauncher.h"
#include "storage/shmem.h"

#include "shared/shmem.h"

CqrsShared *cqrs_shared = NULL;

static Size shmem_size(void);
static void share_processes(void);

/*
 * Ask for shared memory; in the postmaster.
 */
void
cqrs_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("cqrs_outbox", 1);
}

/*
 * Find the shared memory, or set it up. AddinShmemInitLock is held.
 */
void
cqrs_shmem_startup(void)
{
	static int	startups = 0;
	bool		found;
	int			i;
	int			j;

	cqrs_shared = ShmemInitStruct("cqrs_outbox", shmem_size(), &found);
	if (!found)
	{
		memset(cqrs_shared, 0, shmem_size());
		cqrs_shared->lock = &(GetNamedLWLockTranche("cqrs_outbox"))->lock;
		ConditionVariableInit(&cqrs_shared->exited);
		ConditionVariableInit(&cqrs_shared->delivered);

		/* The postmaster does this again after a process crashed. */
		cqrs_shared->crashed = startups++ > 0;
		pg_atomic_init_u32(&cqrs_shared->contended, 0);
		pg_atomic_init_u64(&cqrs_shared->looks, 0);
		pg_atomic_init_u32(&cqrs_shared->ncancels, 0);
		cqrs_shared->ndatabases = cqrs_max_databases;
		share_processes();
		cqrs_shared->databases = (CqrsDatabaseSlot *)
			((char *) cqrs_shared + MAXALIGN(sizeof(CqrsShared)));
		cqrs_shared->workers = (CqrsWorkerSlot *)
			(cqrs_shared->databases + cqrs_max_databases);
		for (i = 0; i < cqrs_max_workers; i++)
		{
			pg_atomic_init_u32(&cqrs_shared->workers[i].running, 0);
			pg_atomic_init_u32(&cqrs_shared->workers[i].to_end, 0);
		}
		for (i = 0; i < cqrs_max_databases; i++)
		{
			pg_atomic_init_u64(&cqrs_shared->databases[i].durable_tick, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].recorded_tick, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].next_run_at, 0);
			pg_atomic_init_u64(&cqrs_shared->databases[i].looked_at, 0);
			pg_atomic_init_u32(&cqrs_shared->databases[i].prepared, 0);
			ConditionVariableInit(&cqrs_shared->databases[i].ticked);
			pg_atomic_init_u32(&cqrs_shared->databases[i].pending, 0);
			pg_atomic_init_u32(&cqrs_shared->databases[i].asleep, 0);
			for (j = 0; j < CQRS_TOPIC_WORDS; j++)
				pg_atomic_init_u64(&cqrs_shared->databases[i].dirty[j], 0);
		}
	}
	cqrs_clock_attach(&cqrs_shared->clock, found);
}

/*
 * Raises 55000 if there are no background workers.
 */
void
cqrs_require_preloaded(void)
{
	if (cqrs_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cqrs_outbox is not preloaded"),
				 errdetail("Nothing is delivered in the background."),
				 errhint("Add cqrs_outbox to shared_preload_libraries and restart the server.")));
}

/*
 * A command may be scheduled for that time. Returns whether the manager
 * expected none so early. Needs no lock.
 */
bool
cqrs_shmem_lower_next_run_at(CqrsDatabaseSlot *slot, TimestampTz run_at)
{
	uint64		known = pg_atomic_read_u64(&slot->next_run_at);

	while (run_at < (TimestampTz) known)
		if (pg_atomic_compare_exchange_u64(&slot->next_run_at, &known,
										   (uint64) run_at))
			return true;
	return false;
}

void
cqrs_topic_set_add(CqrsTopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_TOPIC_BITS;

	topics->words[bit / 64] |= UINT64CONST(1) << (bit % 64);
}

bool
cqrs_topic_set_has(const CqrsTopicSet *topics, int32 topic_id)
{
	int			bit = (uint32) topic_id % CQRS_TOPIC_BITS;

	return (topics->words[bit / 64] & (UINT64CONST(1) << (bit % 64))) != 0;
}

/*
 * Take the set of topics of a database that were announced since the last
 * call.
 */
void
cqrs_shmem_take_dirty(CqrsDatabaseSlot *slot, CqrsTopicSet *topics)
{
	int			i;

	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		topics->words[i] = pg_atomic_read_u64(&slot->dirty[i]) == 0 ? 0 :
			pg_atomic_exchange_u64(&slot->dirty[i], 0);
}

/*
 * A worker slot became free, or something else changed that any manager may
 * be waiting for. The lock is held.
 */
void
cqrs_shmem_wake_all_managers(void)
{
	int			i;

	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].manager_pid != 0)
			SetLatch(cqrs_shared->databases[i].manager_latch);
}

void
cqrs_shmem_wake_launcher(void)
{
	Latch	   *latch = cqrs_shared->launcher_latch;

	if (latch != NULL)
		SetLatch(latch);
}

static Size
shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(CqrsShared));

	size = add_size(size, mul_size(cqrs_max_databases,
								   MAXALIGN(sizeof(CqrsDatabaseSlot))));
	return add_size(size, mul_size(cqrs_max_workers,
								   MAXALIGN(sizeof(CqrsWorkerSlot))));
}

/*
 * How many managers and workers there may be at the same time. Each kind has a
 * share of its own, so that neither can take all processes, and then wait for
 * the other. They get what the server's logical replication launcher and ours
 * leave; managers, which make way sooner, get no more than half of that.
 */
static void
share_processes(void)
{
	int			left = max_worker_processes - 1 -
	(max_logical_replication_workers > 0 ? 1 : 0);

	cqrs_shared->nmanagers = Max(Min(cqrs_max_managers, left / 2), 1);
	cqrs_shared->nworkers = Max(Min(cqrs_max_workers,
									left - cqrs_shared->nmanagers), 1);
}
