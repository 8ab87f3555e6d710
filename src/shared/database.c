/*-------------------------------------------------------------------------
 *
 * database.c
 *	  The slot of a database: whether it has a manager, when it is to get one,
 *	  and what the manager has said.
 *
 * Protocol
 *
 * A database with nothing to do has no process. Its slot is RESTING, and says
 * when there will be something: next_due, which its last manager wrote as it
 * ended, and next_run_at, which is lowered when a command is scheduled.
 *
 * 1. A manager that ends so first makes the slot RESTING, without a latch, sets
 *	  asleep, and only then wakes the launcher. The launcher, having reset its
 *	  latch, looks at pending. An emitter sets pending first; then it clears
 *	  asleep, and sets the slot's latch: without one, the launcher's. So either
 *	  the launcher sees pending, or it is woken by the emitter that has set it.
 * 2. A manager raises next_due when it notes what its workers have done, under
 *	  the lock. A worker that leaves something to do after that lowers it, even
 *	  if the manager is about to end, or is gone.
 * 3. The next manager looks at everything, so no more need be remembered.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "storage/latch.h"

#include "shared/clock.h"
#include "shared/database.h"
#include "shared/shmem.h"

static CqrsDatabaseSlot *my_database_slot(void);

/*
 * The slot of a database, or NULL. The lock is held.
 */
CqrsDatabaseSlot *
cqrs_database_find(Oid dboid)
{
	int			i;

	Assert(LWLockHeldByMe(cqrs_shared->lock));
	for (i = 0; i < cqrs_shared->nused; i++)
		if (cqrs_shared->databases[i].state != CQRS_DATABASE_FREE &&
			cqrs_shared->databases[i].dboid == dboid)
			return &cqrs_shared->databases[i];
	return NULL;
}

/*
 * Request a manager for a database. Returns its slot, which is made if there
 * is none; NULL if all are taken. The lock is held exclusively.
 */
CqrsDatabaseSlot *
cqrs_database_request(Oid dboid)
{
	CqrsDatabaseSlot *slot = cqrs_database_find(dboid);
	int			i;

	Assert(LWLockHeldByMeInMode(cqrs_shared->lock, LW_EXCLUSIVE));
	if (slot != NULL)
	{
		cqrs_database_due(slot, cqrs_steady_now());
		return slot;
	}
	for (i = 0; i < cqrs_shared->ndatabases; i++)
		if (cqrs_shared->databases[i].state == CQRS_DATABASE_FREE)
			break;
	if (i == cqrs_shared->ndatabases)
		return NULL;
	cqrs_shared->nused = Max(cqrs_shared->nused, i + 1);
	slot = &cqrs_shared->databases[i];
	slot->dboid = dboid;
	slot->state = CQRS_DATABASE_REQUESTED;
	slot->announced = false;
	slot->known = false;
	slot->told = false;
	slot->held = 0;
	slot->failures = 0;
	slot->failure_hash = 0;
	slot->start_after = cqrs_steady_now();
	slot->worker_forgotten = false;
	slot->worker_owner = InvalidOid;
	slot->rests = 0;
	pg_atomic_write_u32(&slot->prepared, 0);
	pg_atomic_write_u64(&slot->durable_tick, 0);
	pg_atomic_write_u64(&slot->recorded_tick, 0);
	cqrs_database_clear(slot);
	return slot;
}

/*
 * Forget the manager of a slot, and what it had to say. The lock is held
 * exclusively.
 */
void
cqrs_database_clear(CqrsDatabaseSlot *slot)
{
	slot->manager_pid = 0;
	slot->manager_latch = NULL;
	slot->asked_to_leave = 0;
	slot->exhausted = false;
	slot->waiting_since = 0;
	slot->failed_subscription = 0;
}

/*
 * The manager ends; it knows of nothing to do before next_due. The caller wakes
 * the launcher afterwards. The lock is held exclusively.
 */
void
cqrs_database_rest(CqrsDatabaseSlot *slot, TimestampTz next_due)
{
	Assert(LWLockHeldByMeInMode(cqrs_shared->lock, LW_EXCLUSIVE));
	Assert(slot->manager_latch == NULL);
	slot->state = CQRS_DATABASE_RESTING;
	slot->rests_since = cqrs_steady_now();
	slot->next_due = Min(slot->next_due, next_due);
	pg_memory_barrier();
	pg_atomic_write_u32(&slot->asleep, 1);
	pg_memory_barrier();
}

/*
 * There is something to do in a database at that time: wake its manager, or
 * have one started. The lock is held exclusively.
 */
void
cqrs_database_due(CqrsDatabaseSlot *slot, TimestampTz at)
{
	Assert(LWLockHeldByMeInMode(cqrs_shared->lock, LW_EXCLUSIVE));
	slot->next_due = Min(slot->next_due, at);
	if (slot->manager_latch != NULL)
		SetLatch(slot->manager_latch);
	else if (slot->state == CQRS_DATABASE_RESTING)
		cqrs_shmem_wake_launcher();
}

/*
 * When a RESTING database is to get a manager, as far as is known: DT_NOBEGIN
 * if something was announced.
 */
TimestampTz
cqrs_database_next_due(CqrsDatabaseSlot *slot)
{
	TimestampTz run_at;
	TimestampTz due = slot->next_due;

	if (pg_atomic_read_u32(&slot->pending) != 0)
		return DT_NOBEGIN;
	if (pg_atomic_read_u32(&slot->prepared) != 0)
		due = Min(due, TimestampTzPlusMilliseconds(slot->rests_since,
												   cqrs_poll_interval));
	run_at = (TimestampTz) pg_atomic_read_u64(&slot->next_run_at);
	return Min(due, cqrs_steady_from_wall(run_at));
}

/*
 * A transaction that emitted was prepared in this database. If there is a
 * manager, it polls anyway; if not, the launcher must know when to start one.
 * Needs no lock: a manager that ends after we looked for it has the launcher
 * look.
 */
void
cqrs_database_prepared(CqrsDatabaseSlot *slot)
{
	pg_atomic_write_u32(&slot->prepared, 1);
	pg_memory_barrier();
	if (slot->manager_latch == NULL)
		cqrs_shmem_wake_launcher();
}

/*
 * Something was committed in this database: wake its manager, if it sleeps, or
 * have one started. Needs no lock; if the slot is another database's by now,
 * its manager wakes in vain.
 */
void
cqrs_shmem_wake(CqrsDatabaseSlot *slot)
{
	pg_memory_barrier();
	if (pg_atomic_read_u32(&slot->pending) == 0)
		pg_atomic_write_u32(&slot->pending, 1);
	pg_memory_barrier();
	if (pg_atomic_read_u32(&slot->asleep) != 0 &&
		pg_atomic_exchange_u32(&slot->asleep, 0) != 0)
	{
		Latch	   *latch = slot->manager_latch;

		if (latch != NULL)
			SetLatch(latch);
		else
			cqrs_shmem_wake_launcher();
	}
}

/*
 * The newest tick of this database that no crash, and no failover to a
 * synchronous standby, takes back; 0: none is known.
 */
int64
cqrs_shmem_durable_tick(void)
{
	int64		durable;
	int64		recorded;

	cqrs_shmem_manager_ticks(&durable, &recorded);
	return durable;
}

/*
 * That tick, and the one that the manager recorded last; 0: none.
 */
void
cqrs_shmem_manager_ticks(int64 *durable, int64 *recorded)
{
	CqrsDatabaseSlot *slot = my_database_slot();

	*durable = slot ? pg_atomic_read_u64(&slot->durable_tick) : 0;
	*recorded = slot ? pg_atomic_read_u64(&slot->recorded_tick) : 0;
}

/*
 * Note that the manager is recording this tick.
 */
void
cqrs_shmem_tick_recorded(int64 tick_id)
{
	CqrsDatabaseSlot *slot = my_database_slot();

	if (slot != NULL)
		pg_atomic_write_u64(&slot->recorded_tick, tick_id);
}

static CqrsDatabaseSlot *
my_database_slot(void)
{
	CqrsDatabaseSlot *slot;

	if (cqrs_shared == NULL)
		return NULL;
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	slot = cqrs_database_find(MyDatabaseId);
	LWLockRelease(cqrs_shared->lock);
	return slot;
}
