/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *	  Events that a subscription gave up on: tried anew, discarded. retry.c puts
 *	  them there; view cqrs_dead_letters shows them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/event_id.h"
#include "control/dead_letter.h"
#include "delivery/underway.h"
#include "extension/row.h"
#include "registry/registry.h"
#include "retry/retry.h"
#include "shared/clock.h"
#include "subscription/subscription.h"

/* A walk over a subscription's dead letters, by position. */
struct CqrsDeadLetterScan
{
	CqrsScan	scan;

	/* The row read last. */
	HeapTuple	row;
	Datum		values[CQRS_DEAD_COLUMNS];
	bool		nulls[CQRS_DEAD_COLUMNS];
};

static CqrsDeadLetterScan *begin_scan(int32 subscription_id, int64 position,
									  Snapshot snapshot, LOCKMODE lockmode);
static int64 discard(CqrsSubscription *subscription, const CqrsEventIds *ids);
static int64 redrive(CqrsSubscription *subscription, const CqrsEventIds *ids);
static int64 remove_letters(CqrsSubscription *subscription,
							const CqrsEventIds *ids, CqrsCursor *cursors);

PG_FUNCTION_INFO_V1(cqrs_redrive);
PG_FUNCTION_INFO_V1(cqrs_redrive_all);
PG_FUNCTION_INFO_V1(cqrs_discard);
PG_FUNCTION_INFO_V1(cqrs_discard_all);

/*
 * cqrs_redrive(subscription, event_ids)
 */
Datum
cqrs_redrive(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_redrive()");

	PG_RETURN_INT64(redrive(subscription, cqrs_event_ids_arg(fcinfo, 1)));
}

/*
 * cqrs_redrive_all(subscription)
 */
Datum
cqrs_redrive_all(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(redrive(cqrs_subscription_own(fcinfo,
												  "cqrs_redrive_all()"), NULL));
}

/*
 * Have the subscription's dead letters with these ids (NULL: all) delivered after
 * all, and return how many there were.
 */
static int64
redrive(CqrsSubscription *subscription, const CqrsEventIds *ids)
{
	CqrsCursor *cursors;
	int64		n;
	int			i;

	subscription = cqrs_subscription_lock_all(subscription);
	cqrs_underway_settle(subscription->subscription_id);
	cursors = cqrs_cursor_read_all(subscription->subscription_id,
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
	{
		cqrs_cursor_require_native(&cursors[i], subscription->name);
		cqrs_parked_open(&cursors[i]);
	}

	n = remove_letters(subscription, ids, cursors);
	for (i = 0; n > 0 && i < subscription->partitions; i++)
		cqrs_cursor_append(&cursors[i]);
	if (n > 0)
		cqrs_subscription_wake(subscription);
	return n;
}

/*
 * cqrs_discard(subscription, event_ids)
 */
Datum
cqrs_discard(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_discard()");
	CqrsEventIds *ids = cqrs_event_ids_arg(fcinfo, 1);

	PG_RETURN_INT64(discard(subscription, ids));
}

/*
 * cqrs_discard_all(subscription)
 */
Datum
cqrs_discard_all(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo,
														   "cqrs_discard_all()");

	PG_RETURN_INT64(discard(subscription, NULL));
}

/*
 * Forget the subscription's dead letters with these ids (NULL: all), and return how
 * many there were.
 */
static int64
discard(CqrsSubscription *subscription, const CqrsEventIds *ids)
{
	int64		n = remove_letters(subscription, ids, NULL);

	if (n > 0)
		cqrs_subscription_lost_events(subscription);
	return n;
}

CqrsDeadLetterScan *
cqrs_dead_letter_begin(int32 subscription_id, Snapshot snapshot)
{
	return begin_scan(subscription_id, 0, snapshot, AccessShareLock);
}

/*
 * The walk's next event, valid until the one after it is read. Its topic is
 * NULL if that was dropped.
 */
bool
cqrs_dead_letter_next(CqrsDeadLetterScan *scan, CqrsEvent *event,
					  int *attempts)
{
	Datum	   *values = scan->values;

	CHECK_FOR_INTERRUPTS();
	scan->row = cqrs_scan_read(&scan->scan, values, scan->nulls);
	if (scan->row == NULL)
		return false;
	cqrs_event_load(event, &values[CQRS_DEAD_POSITION - 1],
					&scan->nulls[CQRS_DEAD_POSITION - 1]);
	*attempts = DatumGetInt32(values[CQRS_DEAD_ATTEMPTS - 1]);
	return true;
}

void
cqrs_dead_letter_end(CqrsDeadLetterScan *scan)
{
	cqrs_scan_end(&scan->scan, NoLock);
	pfree(scan);
}

/*
 * How often the event at this position (0: any of the subscription's) was
 * tried before it was given up. 0: there is none.
 */
int
cqrs_dead_letter_attempts(int32 subscription_id, int64 position,
						  Snapshot snapshot)
{
	CqrsDeadLetterScan *scan;
	CqrsEvent	event;
	int			attempts = 0;

	scan = begin_scan(subscription_id, position, snapshot, AccessShareLock);
	(void) cqrs_dead_letter_next(scan, &event, &attempts);
	cqrs_dead_letter_end(scan);
	return attempts;
}

/*
 * Begin a walk over the subscription's dead letters or, if position is not 0,
 * to the one there; as the snapshot (NULL: the latest) shows them.
 */
static CqrsDeadLetterScan *
begin_scan(int32 subscription_id, int64 position, Snapshot snapshot,
		   LOCKMODE lockmode)
{
	CqrsDeadLetterScan *scan = palloc(sizeof(CqrsDeadLetterScan));
	ScanKeyData keys[2];

	cqrs_key_int4(&keys[0], CQRS_DEAD_SUBSCRIPTION_ID, subscription_id);
	cqrs_key_int8(&keys[1], CQRS_DEAD_POSITION, BTEqualStrategyNumber,
				  position);
	cqrs_scan_begin(&scan->scan, CQRS_REL_DEAD_LETTER,
					CQRS_REL_DEAD_LETTER_PKEY, lockmode, snapshot,
					ForwardScanDirection, position != 0 ? 2 : 1, keys);
	return scan;
}

/*
 * Remove the subscription's dead letters with these ids (NULL: all), and return
 * how many there were. If cursors, one for each partition, are given, park them
 * there, to be delivered in order of position.
 */
static int64
remove_letters(CqrsSubscription *subscription, const CqrsEventIds *ids,
			   CqrsCursor *cursors)
{
	TimestampTz now = cqrs_wall_now();
	CqrsDeadLetterScan *scan;
	CqrsEvent	event;
	int			attempts;
	int64		n = 0;

	scan = begin_scan(subscription->subscription_id, 0, NULL,
					  RowExclusiveLock);
	while (cqrs_dead_letter_next(scan, &event, &attempts))
	{
		if (ids != NULL &&
			!cqrs_event_ids_contain(ids, DatumGetUUIDP(event.event_id)))
			continue;

		/* What cannot be delivered stays: its topic was dropped. */
		if (cursors != NULL &&
			(event.topic == NULL ||
			 !cqrs_parked_redrive(&cursors[cqrs_event_partition(event.topic->topic_id,
																event.event_id,
																event.key,
																cursors[0].by_topic,
																subscription->partitions)],
								  &event, now)))
			continue;
		cqrs_scan_delete(&scan->scan, scan->row);
		n++;
	}
	cqrs_dead_letter_end(scan);
	CommandCounterIncrement();
	return n;
}
