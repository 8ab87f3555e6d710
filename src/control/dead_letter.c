/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *	  Events that a subscription gave up on: shown, tried anew, discarded.
 *	  retry.c puts them there.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
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

/* Columns of what cqrs_dead_letters() returns. */
#define RESULT_COLUMNS	12

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
static CqrsSubscription *letters_subscription(FunctionCallInfo fcinfo);
static int64 remove_letters(FunctionCallInfo fcinfo,
							CqrsSubscription *subscription,
							CqrsCursor *cursors);

PG_FUNCTION_INFO_V1(cqrs_dead_letters);
PG_FUNCTION_INFO_V1(cqrs_redrive);
PG_FUNCTION_INFO_V1(cqrs_discard);

/*
 * cqrs_dead_letters(subscription)
 */
Datum
cqrs_dead_letters(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = letters_subscription(fcinfo);
	Tuplestorestate *store;
	TupleDesc	desc;
	CqrsDeadLetterScan *scan;
	CqrsEvent	event;
	int			attempts;

	store = cqrs_srf_begin(fcinfo, &desc);
	scan = cqrs_dead_letter_begin(subscription->subscription_id,
								  GetActiveSnapshot());
	while (cqrs_dead_letter_next(scan, &event, &attempts))
	{
		Datum		values[RESULT_COLUMNS];
		bool		nulls[RESULT_COLUMNS] = {0};

		cqrs_event_show(&event, values, nulls);
		values[8] = Int32GetDatum(attempts);
		values[9] = scan->values[CQRS_DEAD_DIED_AT - 1];
		values[10] = scan->values[CQRS_DEAD_SQLSTATE - 1];
		values[11] = scan->values[CQRS_DEAD_MESSAGE - 1];
		tuplestore_putvalues(store, desc, values, nulls);
	}
	cqrs_dead_letter_end(scan);
	return (Datum) 0;
}

/*
 * cqrs_redrive(subscription, event_id)
 */
Datum
cqrs_redrive(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription;
	CqrsCursor *cursors;
	int64		n;
	int			i;

	cqrs_require_writable("cqrs_redrive()");
	subscription = letters_subscription(fcinfo);
	subscription = cqrs_subscription_lock_all(subscription);
	cqrs_underway_settle(subscription->subscription_id);
	cursors = cqrs_cursor_read_all(subscription->subscription_id,
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
	{
		cqrs_cursor_require_native(&cursors[i], subscription->name);
		cqrs_parked_open(&cursors[i]);
	}

	n = remove_letters(fcinfo, subscription, cursors);
	for (i = 0; n > 0 && i < subscription->partitions; i++)
		cqrs_cursor_append(&cursors[i]);
	if (n > 0)
		cqrs_subscription_wake(subscription);
	PG_RETURN_INT64(n);
}

/*
 * cqrs_discard(subscription, event_id)
 */
Datum
cqrs_discard(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription;

	cqrs_require_writable("cqrs_discard()");
	subscription = letters_subscription(fcinfo);
	PG_RETURN_INT64(remove_letters(fcinfo, subscription, NULL));
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
 * The subscription that the first argument names; the current user must own
 * it.
 */
static CqrsSubscription *
letters_subscription(FunctionCallInfo fcinfo)
{
	CqrsSubscription *subscription;

	subscription = cqrs_subscription_get(cqrs_name_arg(fcinfo, 0,
													   "subscription"));
	cqrs_subscription_require_owner(subscription);
	return subscription;
}

/*
 * Remove the subscription's dead letters, or the one whose event id is the
 * second argument, and return how many there were. If cursors, one for each
 * partition, are given, park them there, to be delivered in order of position.
 * Raises 42704 if there is none with that event id.
 */
static int64
remove_letters(FunctionCallInfo fcinfo, CqrsSubscription *subscription,
			   CqrsCursor *cursors)
{
	pg_uuid_t  *event_id = PG_ARGISNULL(1) ? NULL : PG_GETARG_UUID_P(1);
	TimestampTz now = cqrs_wall_now();
	CqrsDeadLetterScan *scan;
	CqrsEvent	event;
	char		id[CQRS_UUID_TEXT_LEN + 1];
	int			attempts;
	int64		n = 0;

	scan = begin_scan(subscription->subscription_id, 0, NULL,
					  RowExclusiveLock);
	while (cqrs_dead_letter_next(scan, &event, &attempts))
	{
		if (event_id != NULL &&
			memcmp(DatumGetUUIDP(event.event_id), event_id, UUID_LEN) != 0)
			continue;
		if (cursors != NULL && event.topic != NULL &&
			!cqrs_parked_redrive(&cursors[cqrs_key_partition(event.key,
															 subscription->partitions)],
								 &event, now))
			continue;
		cqrs_scan_delete(&scan->scan, scan->row);
		n++;
	}
	cqrs_dead_letter_end(scan);
	CommandCounterIncrement();

	if (n == 0 && event_id != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" has no dead letter %s",
						subscription->name,
						cqrs_uuid_text(event_id, id))));
	return n;
}
