/*-------------------------------------------------------------------------
 *
 * pull_wait.c
 *	  How cqrs_receive() avoids waiting for locks, and how it waits for events.
 *
 * What commits can be pulled once a tick shows it. The manager records one
 * soon after a commit was announced, and then wakes the clients that wait. A
 * client that finds nothing, although something is committed that no tick
 * shows yet, asks for a tick as an emitter does.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "log/position.h"
#include "log/tick.h"
#include "log/window_scan.h"
#include "pull/pull.h"
#include "shared/database.h"
#include "shared/shmem.h"

/* Where we wait; NULL: no manager serves this database. */
static CqrsDatabaseSlot *my_database = NULL;

static bool lock_segments(const CqrsTopic *topic);

/*
 * Lock the tables of the subscription's topics, so that opening them waits for
 * nobody. Returns false, with nothing locked, if somebody has locked one
 * exclusively: a truncation, for a moment, or whoever drops the topic.
 */
bool
cqrs_pull_lock_segments(const CqrsSubscription *subscription)
{
	int			i;
	int			j;

	for (i = 0; i < subscription->ntopics; i++)
	{
		if (lock_segments(subscription->topics[i]))
			continue;
		while (--i >= 0)
			for (j = 0; j < CQRS_SEGMENTS; j++)
				UnlockRelationOid(subscription->topics[i]->segments[j],
								  AccessShareLock);
		return false;
	}
	return true;
}

/*
 * Release those locks; the tables that were opened since stay locked.
 */
void
cqrs_pull_unlock_segments(const CqrsSubscription *subscription)
{
	int			i;
	int			j;

	for (i = 0; i < subscription->ntopics; i++)
		for (j = 0; j < CQRS_SEGMENTS; j++)
			UnlockRelationOid(subscription->topics[i]->segments[j],
							  AccessShareLock);
}

static bool
lock_segments(const CqrsTopic *topic)
{
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		if (ConditionalLockRelationOid(topic->segments[i], AccessShareLock))
			continue;
		while (--i >= 0)
			UnlockRelationOid(topic->segments[i], AccessShareLock);
		return false;
	}
	return true;
}

/*
 * Does the newest tick show all events of the subscription that target shows?
 * *tick_id gets its id, or 0 if there is none. Returns false, too, if it
 * cannot be told without waiting for a lock. If target is NULL, only the id is
 * wanted.
 */
bool
cqrs_pull_is_covered(const CqrsSubscription *subscription,
					 const CqrsSnapshot *target, int64 *tick_id)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CqrsTick	tick;
	bool		found = cqrs_tick_newest(snapshot, PG_INT64_MAX, &tick);
	bool		covered = true;
	int			i;

	*tick_id = found ? tick.tick_id : 0;
	if (!found)
		tick.snapshot = cqrs_snapshot_empty();

	/*
	 * No position was drawn since the tick, and nobody who had drawn one
	 * before has committed.
	 */
	if (target != NULL &&
		(!found || tick.snapshot->nxip > 0 ||
		 tick.last_position != cqrs_last_position()))
	{
		covered = cqrs_pull_lock_segments(subscription);
		if (covered)
		{
			for (i = 0; covered && i < subscription->ntopics; i++)
				covered = !cqrs_window_has_events(subscription->topics[i],
												  tick.snapshot, target,
												  snapshot);
			cqrs_pull_unlock_segments(subscription);
		}
	}
	UnregisterSnapshot(snapshot);
	return covered;
}

/*
 * From here on, a tick wakes us.
 */
void
cqrs_pull_wait_begin(void)
{
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	my_database = cqrs_database_find(MyDatabaseId);
	LWLockRelease(cqrs_shared->lock);
	if (my_database != NULL)
		ConditionVariablePrepareToSleep(&my_database->ticked);
}

void
cqrs_pull_wait_end(void)
{
	if (my_database != NULL)
		ConditionVariableCancelSleep();
	my_database = NULL;
}

/*
 * Wait for a tick, or until the time is over.
 */
void
cqrs_pull_wait(long timeout_ms)
{
	static uint32 wait_event = 0;
	uint32		info = CQRS_WAIT_EVENT(wait_event, "CqrsOutboxReceive");

	if (my_database != NULL)
		(void) ConditionVariableTimedSleep(&my_database->ticked, timeout_ms,
										   info);
	else
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout_ms, info);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Something is committed in the subscription's topics that no tick shows yet:
 * have the manager look. Returns whether a manager has to be started first.
 */
bool
cqrs_pull_request_tick(const CqrsSubscription *subscription)
{
	bool		running;

	CqrsTopicSet topics = {0};
	int			i;

	if (my_database == NULL)
		return false;
	for (i = 0; i < subscription->ntopics; i++)
		cqrs_topic_set_add(&topics, subscription->topics[i]->topic_id);
	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		if (topics.words[i] != 0)
			(void) pg_atomic_fetch_or_u64(&my_database->dirty[i],
										  topics.words[i]);
	LWLockAcquire(cqrs_shared->lock, LW_SHARED);
	running = my_database->state == CQRS_DATABASE_RUNNING;
	LWLockRelease(cqrs_shared->lock);
	cqrs_shmem_wake(my_database);
	return !running;
}
