/*-------------------------------------------------------------------------
 *
 * breaker.c
 *	  Circuit breakers: a handler that keeps failing is not called for a while.
 *
 * Protocol
 *
 * 1. Closed: the handler is called. max_failures failures in a row, in whatever
 *	  backends, open the breaker; a success in between starts the count again.
 * 2. Open: the handler is not called. The outcomes of calls that began before
 *	  are ignored.
 * 3. Half-open, reset_after later: the next call is the trial, and others do
 *	  not call the handler until it has ended. Its success closes the breaker,
 *	  its failure opens it again. If its outcome is undecided, or its
 *	  transaction ends without one, the next call is the trial.
 *
 * All of this takes effect at once, and is not undone by a rollback. A dry run,
 * which must leave nothing behind, only looks: it calls the handler if another
 * call would, and does not report the outcome.
 *
 * Memory
 *
 * Only breakers that have counted failures have a slot; success frees it, so
 * that a handler that works costs a look at the few slots of those that do not.
 * The slots are in shared memory, or, if we are not preloaded, in the backend's
 * own. If all are taken, a breaker is forgotten, which closes it: a closed one
 * first, then the one whose last failure is longest ago. In time, this also
 * removes those of fallbacks and databases that are gone.
 *
 * A slot is found by database, table cqrs.fallback and fallback_id: an
 * extension that was dropped and made anew begins its ids again, but in
 * another table.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

#include "extension/catalog.h"
#include "mediator/breaker.h"
#include "mediator/context.h"
#include "shared/clock.h"

#define TRANCHE		"cqrs_outbox_breaker"

typedef struct Slot
{
	Oid			dboid;
	Oid			relid;
	int32		fallback_id;
	int			failures;		/* in a row */
	TimestampTz failed_at;		/* ... the last time */
	TimestampTz opened_at;		/* 0: closed */
	VirtualTransactionId trial; /* who makes it; not valid if nobody */
} Slot;

/* The lock, if there is one, protects nused and the slots. */
typedef struct Breakers
{
	LWLock	   *lock;			/* NULL: in the backend's own memory */
	int			nslots;
	int			nused;			/* that many, from the first, are in use */
	Slot		slots[FLEXIBLE_ARRAY_MEMBER];
} Breakers;

static Breakers *breakers = NULL;

static Size breakers_size(void);
static void lock_slots(LWLockMode mode);
static void unlock_slots(void);
static Slot *find(const CqrsBreakerCall *call);
static Slot *add(const CqrsBreakerCall *call);
static bool may_go(const Slot *a, const Slot *b);
static CqrsBreakerState state_of(const Slot *slot, const CqrsBreaker *breaker);
static void own_transaction(VirtualTransactionId *vxid);

/*
 * Ask for shared memory; in the postmaster.
 */
void
cqrs_breaker_shmem_request(void)
{
	RequestAddinShmemSpace(breakers_size());
	RequestNamedLWLockTranche(TRANCHE, 1);
}

/*
 * Find the shared memory, or set it up. AddinShmemInitLock is held.
 */
void
cqrs_breaker_shmem_startup(void)
{
	bool		found;

	breakers = ShmemInitStruct(TRANCHE, breakers_size(), &found);
	if (!found)
	{
		breakers->lock = &(GetNamedLWLockTranche(TRANCHE))->lock;
		breakers->nslots = cqrs_max_breakers;
		breakers->nused = 0;
	}
}

/*
 * Is the handler to be called? If so, the caller passes *call to
 * cqrs_breaker_leave() after the call, unless an error ends the transaction.
 */
bool
cqrs_breaker_enter(CqrsBreakerCall *call, const CqrsBreaker *breaker)
{
	CqrsBreakerState state;
	bool		free_for_trial;
	Slot	   *slot;

	call->breaker = breaker;
	call->counts = breaker->max_failures > 0 && !cqrs_dry_run_is_active();
	call->trial = false;
	if (breaker->max_failures == 0)
		return true;

	call->relid = cqrs_relation_oid(CQRS_REL_FALLBACK);
	lock_slots(LW_SHARED);
	slot = find(call);
	state = state_of(slot, breaker);
	free_for_trial = state == CQRS_BREAKER_HALF_OPEN &&
		cqrs_vxid_pid(slot->trial) == 0;
	unlock_slots();
	if (state != CQRS_BREAKER_HALF_OPEN)
		return state == CQRS_BREAKER_CLOSED;
	if (!free_for_trial || !call->counts)
		return free_for_trial;

	lock_slots(LW_EXCLUSIVE);
	slot = find(call);
	state = state_of(slot, breaker);
	if (state == CQRS_BREAKER_HALF_OPEN && cqrs_vxid_pid(slot->trial) == 0)
	{
		own_transaction(&slot->trial);
		call->trial = true;
	}
	unlock_slots();
	return call->trial || state == CQRS_BREAKER_CLOSED;
}

/*
 * Report the outcome of a call. Returns true if that opened the breaker.
 * Raises nothing.
 */
bool
cqrs_breaker_leave(CqrsBreakerCall *call, CqrsBreakerOutcome outcome)
{
	VirtualTransactionId own;
	bool		has_slot;
	bool		opened = false;
	Slot	   *slot;

	if (!call->counts)
		return false;
	if (outcome != CQRS_BREAKER_FAILED)
	{
		lock_slots(LW_SHARED);
		has_slot = find(call) != NULL;
		unlock_slots();
		if (!has_slot)
			return false;
	}

	own_transaction(&own);
	lock_slots(LW_EXCLUSIVE);
	slot = find(call);
	if (slot == NULL && outcome == CQRS_BREAKER_FAILED)
		slot = add(call);

	/* If it is open, only the trial counts. */
	if (slot != NULL &&
		(slot->opened_at == 0 ||
		 (call->trial && VirtualTransactionIdEquals(slot->trial, own))))
	{
		SetInvalidVirtualTransactionId(slot->trial);
		if (outcome == CQRS_BREAKER_SUCCEEDED)
			*slot = breakers->slots[--breakers->nused];
		else if (outcome == CQRS_BREAKER_FAILED)
		{
			slot->failures++;
			slot->failed_at = cqrs_steady_now();
			if (call->trial || slot->failures >= call->breaker->max_failures)
			{
				slot->opened_at = slot->failed_at;
				opened = true;
			}
		}
	}
	unlock_slots();
	return opened;
}

/*
 * The state of a breaker now, how often its handler has failed in a row, and
 * since when the breaker is open (0: it is not).
 */
CqrsBreakerState
cqrs_breaker_look(const CqrsBreaker *breaker, int *failures,
				  TimestampTz *opened_at)
{
	CqrsBreakerCall call;
	CqrsBreakerState state;
	Slot	   *slot;

	call.breaker = breaker;
	call.relid = cqrs_relation_oid(CQRS_REL_FALLBACK);
	lock_slots(LW_SHARED);
	slot = find(&call);
	state = state_of(slot, breaker);
	*failures = slot ? slot->failures : 0;
	*opened_at = slot ? slot->opened_at : 0;
	unlock_slots();
	return state;
}

static Size
breakers_size(void)
{
	return add_size(offsetof(Breakers, slots),
					mul_size(cqrs_max_breakers, sizeof(Slot)));
}

/*
 * Lock the slots. Without shared memory, make them at the first call.
 */
static void
lock_slots(LWLockMode mode)
{
	if (breakers == NULL)
	{
		breakers = MemoryContextAllocZero(TopMemoryContext, breakers_size());
		breakers->nslots = cqrs_max_breakers;
	}
	if (breakers->lock != NULL)
		LWLockAcquire(breakers->lock, mode);
}

static void
unlock_slots(void)
{
	if (breakers->lock != NULL)
		LWLockRelease(breakers->lock);
}

/*
 * Find the slot, or NULL. The slots are locked.
 */
static Slot *
find(const CqrsBreakerCall *call)
{
	int			i;

	for (i = 0; i < breakers->nused; i++)
	{
		Slot	   *slot = &breakers->slots[i];

		if (slot->fallback_id == call->breaker->fallback_id &&
			slot->relid == call->relid && slot->dboid == MyDatabaseId)
			return slot;
	}
	return NULL;
}

/*
 * Make a new slot, instead of another one if need be. The slots are locked
 * exclusively.
 */
static Slot *
add(const CqrsBreakerCall *call)
{
	Slot	   *slot = &breakers->slots[0];
	int			i;

	if (breakers->nused < breakers->nslots)
		slot = &breakers->slots[breakers->nused++];
	else
		for (i = 1; i < breakers->nused; i++)
			if (may_go(&breakers->slots[i], slot))
				slot = &breakers->slots[i];

	memset(slot, 0, sizeof(*slot));
	slot->dboid = MyDatabaseId;
	slot->relid = call->relid;
	slot->fallback_id = call->breaker->fallback_id;
	SetInvalidVirtualTransactionId(slot->trial);
	return slot;
}

/*
 * Should a be forgotten rather than b?
 */
static bool
may_go(const Slot *a, const Slot *b)
{
	if ((a->opened_at == 0) != (b->opened_at == 0))
		return a->opened_at == 0;
	return a->failed_at < b->failed_at;
}

/*
 * The state of a breaker now; its slot may be NULL.
 */
static CqrsBreakerState
state_of(const Slot *slot, const CqrsBreaker *breaker)
{
	if (slot == NULL || slot->opened_at == 0)
		return CQRS_BREAKER_CLOSED;
	return cqrs_steady_now() >=
		TimestampTzPlusMilliseconds(slot->opened_at, breaker->reset_after) ?
		CQRS_BREAKER_HALF_OPEN : CQRS_BREAKER_OPEN;
}

static void
own_transaction(VirtualTransactionId *vxid)
{
	GET_VXID_FROM_PGPROC(*vxid, *MyProc);
}
