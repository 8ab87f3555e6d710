/*-------------------------------------------------------------------------
 *
 * notify.c
 *	  Tells those who listen to a topic's channel that there is something to
 *	  pull. That is a courtesy: it may be late, or fail, and nothing else waits
 *	  for it.
 *
 * A commit that notifies takes a lock of the whole cluster's, and keeps it
 * until it is done, be it that a synchronous standby has it; so it is tried,
 * never waited for, and our own commit waits for nothing. It fails if somebody
 * who listens, in whatever database, has let the queue fill up. Then it is
 * tried again later, by and by more seldom. Who is to be told is remembered
 * until it worked: a topic is named once, however often it had something new.
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

/* Who has the lock lets it go soon, or not: in milliseconds. */
#define LOCKED_WAIT		10

/* After an error, doubling: in milliseconds. */
#define FIRST_WAIT		1000
#define LONGEST_WAIT	60000

/* The topics that have something new, as far as that was not told. */
static CqrsTopicSet untold;
static bool any_untold = false;

/* Not before, in steady time. */
static TimestampTz retry_at = 0;
static int	failures = 0;		/* in a row */

static bool notify_in_transaction(void);
static bool try_lock(void);
static void notify_topics(void);

/*
 * There is something new to pull in these topics.
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
 * The manager calls this in each of its cycles, outside a transaction: tells
 * what is to be told, if that can be done just now. Returns how long to wait
 * then, in milliseconds, if it is wait (-1: until woken) for what else there
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
 * Returns false, having set retry_at, if it did not work. An error is logged,
 * but only the first of some in a row.
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
 * The lock that the commit of a transaction which notifies takes (see the
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
