/*-------------------------------------------------------------------------
 *
 * notify.c
 *	  Tells those who listen to a topic's channel that there is something to
 *	  pull. That is a courtesy: it may be late, or fail, and nothing else waits
 *	  for it.
 *
 * A commit that notifies takes a lock of the whole cluster's, and keeps it
 * until the commit is done, including any wait for a synchronous standby. So
 * we try the lock, never wait for it, and our own commit waits for nothing.
 * NOTIFY fails if a listener, in any database, has let the queue fill up. Then
 * it is tried again later, with growing delays. Until it has worked, we
 * remember the topics to notify of, each once, however often it had something
 * new.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "commands/async.h"
#include "pgstat.h"

#include "base/backoff.h"
#include "extension/catalog.h"
#include "process/notify.h"
#include "process/schedule.h"

/* How long to wait if another session has the lock, in milliseconds. */
#define LOCKED_WAIT		10

/* After an error, doubling: in milliseconds. */
#define FIRST_WAIT		1000
#define LONGEST_WAIT	60000

/* The topics with something new that was not notified yet. */
static CqrsTopicSet untold;
static bool any_untold = false;

/* When to try again, in steady time. */
static TimestampTz retry_at = 0;
static int	failures = 0;		/* in a row */

static bool notify_in_transaction(void);
static bool try_lock(void);
static void notify_topics(void);

/*
 * Note that there is something new to pull in these topics.
 */
void
cqrs_notify_add(const CqrsTopicSet *topics)
{
	int			i;

	if (cqrs_schedule_pulled_topics() == NIL)
		return;
	for (i = 0; i < CQRS_TOPIC_WORDS; i++)
		untold.words[i] |= topics->words[i];
	any_untold = true;
}

/*
 * Notify of what is new, if that can be done just now; the manager calls this
 * in each of its cycles, outside a transaction. Returns how long to wait then,
 * in milliseconds: no longer than wait (-1: until woken), for what else there
 * is to do.
 */
long
cqrs_notify_next(long wait)
{
	TimestampTz now = cqrs_steady_now();

	if (!any_untold)
		return wait;
	if (retry_at <= now)
	{
		if (notify_in_transaction())
		{
			memset(&untold, 0, sizeof(untold));
			any_untold = false;
			return wait;
		}
		now = cqrs_steady_now();
	}
	return cqrs_sooner(wait, now, retry_at);
}

/*
 * Returns false, and sets retry_at, if it did not work. An error is logged,
 * but only the first of several in a row.
 */
static bool
notify_in_transaction(void)
{
	volatile bool done = false;

	retry_at = TimestampTzPlusMilliseconds(cqrs_steady_now(), LOCKED_WAIT);
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		if (try_lock())
		{
			notify_topics();
			CommitTransactionCommand();
			done = true;
			failures = 0;
		}
		else
			AbortCurrentTransaction();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		if (failures == 0)
			EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
		retry_at = TimestampTzPlusMilliseconds(cqrs_steady_now(),
											   cqrs_backoff_exact(FIRST_WAIT, LONGEST_WAIT,
																  ++failures));
	}
	PG_END_TRY();
	pgstat_report_stat(false);
	return done;
}

/*
 * Take the lock that the commit of a transaction with a NOTIFY takes (see the
 * server's PreCommit_Notify()). Returns false if it cannot be had at once.
 */
static bool
try_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, InvalidOid, 0);
	return LockAcquire(&tag, AccessExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

static void
notify_topics(void)
{
	ListCell   *lc;

	cqrs_set_commit(SYNCHRONOUS_COMMIT_OFF);
	foreach(lc, cqrs_schedule_pulled_topics())
	{
		CqrsPulledTopic *topic = (CqrsPulledTopic *) lfirst(lc);

		if (cqrs_topic_set_has(&untold, topic->topic_id))
			Async_Notify(topic->name, "");
	}
}
