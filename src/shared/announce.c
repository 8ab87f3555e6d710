/*-------------------------------------------------------------------------
 *
 * announce.c
 *	  What a transaction tells the managers and the launcher when it ends.
 *
 * A transaction that emitted tells its database's manager after its commit
 * has become visible, and after its invalidations were sent: it may have
 * changed the registry. That is later than XACT_EVENT_COMMIT. A transaction
 * that created the extension, or a database that may have it, tells the
 * launcher. So does one that emitted in a database without a slot: CREATE
 * DATABASE may have copied the extension there. One that scheduled a command,
 * or removed a scheduled one, tells the manager the command's time; see
 * release.c.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/resowner.h"

#include "shared/announce.h"
#include "shared/database.h"
#include "shared/shmem.h"

/* What this transaction will tell when it commits. */
static bool emitted = false;
static CqrsTopicSet emitted_topics;
static Oid	announced = InvalidOid;

/*
 * The earliest times of commands that this transaction scheduled, and removed;
 * or DT_NOEND.
 */
static TimestampTz scheduled_from = DT_NOEND;
static TimestampTz removed_from = DT_NOEND;

/* What the transaction that is just ending has to tell. */
static bool tell_manager = false;
static bool tell_prepared = false;
static TimestampTz tell_run_at = DT_NOEND;
static Oid	tell_launcher = InvalidOid;

/* Our database's slot, when it was last found. */
static CqrsDatabaseSlot *my_database = NULL;

static void at_xact_end(XactEvent event, void *arg);
static void at_release(ResourceReleasePhase phase, bool is_commit,
					   bool is_top_level, void *arg);

/*
 * Called once in each process, preloaded or not.
 */
void
cqrs_announce_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterResourceReleaseCallback(at_release, NULL);
}

/*
 * This transaction emitted to a topic, or changed who gets its events: have
 * the manager look at the topic when it commits.
 */
void
cqrs_shmem_emitted(int32 topic_id)
{
	emitted = true;
	cqrs_topic_set_add(&emitted_topics, topic_id);
}

/*
 * The same for all topics, as it is not known which are concerned.
 */
void
cqrs_shmem_changed(void)
{
	emitted = true;
	memset(&emitted_topics, 0xFF, sizeof(emitted_topics));
}

/*
 * This transaction changed something else that concerns the manager.
 */
void
cqrs_shmem_look(void)
{
	emitted = true;
}

/*
 * This transaction scheduled a command for that time (DT_NOBEGIN: any time):
 * tell the manager when it commits.
 */
void
cqrs_shmem_command_scheduled(TimestampTz run_at)
{
	scheduled_from = Min(scheduled_from, run_at);
}

/*
 * This transaction removed a command scheduled for that time. Tell the manager
 * however the transaction ends: it passes by what somebody is removing, and
 * that may come back, even if only a savepoint is rolled back.
 */
void
cqrs_shmem_command_removed(TimestampTz run_at)
{
	removed_from = Min(removed_from, run_at);
}

/*
 * When this transaction commits, have the launcher look for the extension in
 * this database.
 */
void
cqrs_shmem_announce(Oid dboid)
{
	announced = dboid;
}

/*
 * At the end of a transaction, settle what to tell. At XACT_EVENT_COMMIT, the
 * commit is visible.
 */
static void
at_xact_end(XactEvent event, void *arg)
{
	/* Most transactions have nothing to tell. */
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	if (event == XACT_EVENT_COMMIT && cqrs_shared != NULL)
	{
		tell_manager = emitted;
		tell_launcher = announced;
		tell_run_at = Min(scheduled_from, removed_from);
	}
	else if (emitted)
	{
		memset(&emitted_topics, 0, sizeof(emitted_topics));
		tell_prepared = event == XACT_EVENT_PREPARE && cqrs_shared != NULL;
	}
	if (event == XACT_EVENT_ABORT && cqrs_shared != NULL)
		tell_run_at = removed_from;
	emitted = false;
	announced = InvalidOid;
	scheduled_from = removed_from = DT_NOEND;
}

/*
 * Tell what is to be told, once the transaction has released its locks.
 */
static void
at_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level,
		   void *arg)
{
	CqrsDatabaseSlot *slot;

	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level ||
		(!tell_manager && !tell_prepared && tell_run_at == DT_NOEND &&
		 !OidIsValid(tell_launcher)))
		return;

	if (tell_manager || tell_prepared || tell_run_at != DT_NOEND)
	{
		if (my_database == NULL || my_database->dboid != MyDatabaseId)
		{
			LWLockAcquire(cqrs_shared->lock, LW_SHARED);
			my_database = cqrs_database_find(MyDatabaseId);
			LWLockRelease(cqrs_shared->lock);
		}
		if (my_database != NULL)
		{
			int			i;

			if (tell_prepared)
				cqrs_database_prepared(my_database);

			/*
			 * Write only what is not there yet: others read it. If it is, the
			 * manager takes it later, and then sees our commit.
			 */
			pg_memory_barrier();
			for (i = 0; tell_manager && i < CQRS_TOPIC_WORDS; i++)
				if ((pg_atomic_read_u64(&my_database->dirty[i]) &
					 emitted_topics.words[i]) != emitted_topics.words[i])
					(void) pg_atomic_fetch_or_u64(&my_database->dirty[i],
												  emitted_topics.words[i]);
			if (cqrs_shmem_lower_next_run_at(my_database, tell_run_at) ||
				tell_manager)
				cqrs_shmem_wake(my_database);
		}
		else if (!OidIsValid(tell_launcher))
			tell_launcher = MyDatabaseId;
	}

	if (OidIsValid(tell_launcher))
	{
		LWLockAcquire(cqrs_shared->lock, LW_EXCLUSIVE);
		slot = cqrs_database_request(tell_launcher);
		if (slot != NULL)
			slot->announced = true;
		LWLockRelease(cqrs_shared->lock);
		cqrs_shmem_wake_launcher();
	}
	if (tell_manager)
		memset(&emitted_topics, 0, sizeof(emitted_topics));
	tell_manager = tell_prepared = false;
	tell_run_at = DT_NOEND;
	tell_launcher = InvalidOid;
}
