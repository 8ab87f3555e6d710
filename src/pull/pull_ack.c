/*-------------------------------------------------------------------------
 *
 * pull_ack.c
 *	  What settles events that were handed out: cqrs_ack(), cqrs_nack(), and
 *	  cqrs_renew(), which prolongs their lease.
 *
 * The cursor's row and cqrs.retry tell what is handed out and not settled: of
 * the positions that the receipt covers, those parked with this receipt, and
 * those of the window beyond the cursor that are neither parked nor noted as
 * passed. An acknowledgement removes the row, or notes the position; the
 * cursor moves up to the first that is not settled. A nack parks the event
 * with its error. So neither depends on the order in which events are settled.
 *
 * Locking
 *
 * In the transaction that received, the cursor's lock is ours. In another one,
 * while the lease lasts, whoever has the lock settles, too, or moves the
 * cursor: we wait for it. Otherwise whoever has it is about to make a newer
 * receipt.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "base/interval.h"
#include "delivery/relay.h"
#include "extension/catalog.h"
#include "pull/pull.h"
#include "registry/registry.h"
#include "retry/retry.h"
#include "shared/clock.h"
#include "subscription/receipt.h"
#include "subscription/subscription.h"

/* The most references to events at once. */
#define WINDOW_ENTRIES	(64 * 1024)

/* What a receipt covers; the cursor's lock is held. */
typedef struct Handed
{
	CqrsSubscription *subscription;
	CqrsCursor	cursor;
} Handed;

/* An event of the window that is not settled. */
typedef struct Open
{
	int64		position;
	uint64		lane;
	bool		failed;
} Open;

static List *find_handed(CqrsSubscription *subscription, bool shown,
						 const pg_uuid_t *receipt);
static Handed *handed_here(CqrsSubscription *subscription,
						   const CqrsReceived *received);
static Handed *handed_elsewhere(CqrsSubscription *subscription,
								const pg_uuid_t *receipt);
static Handed *read_handed(CqrsSubscription *subscription, int partition);
static int	positions_arg(FunctionCallInfo fcinfo, int argno,
						  int64 **positions);
static void check_positions(CqrsSubscription *subscription, List *handed,
							const int64 *positions, int npositions);
static int64 settle(Handed *handed, const int64 *positions, int npositions);
static bool settles_all(const Handed *handed, const int64 *positions,
						int npositions);
static int64 fail(Handed *handed, const int64 *positions, int npositions,
				  const CqrsFault *fault);
static int64 fail_new(Handed *handed, const int64 *positions, int npositions,
					  const CqrsFault *fault);
static CqrsWindow *open_window(Handed *handed, int64 start,
							   Snapshot snapshot);
static bool next_open(Handed *handed, CqrsWindow *window, int64 last,
					  CqrsEvent *event);
static void move_cursor(Handed *handed);
static void give_back(Handed *handed, int64 position, bool all_settled);

PG_FUNCTION_INFO_V1(cqrs_ack);
PG_FUNCTION_INFO_V1(cqrs_ack_positions);
PG_FUNCTION_INFO_V1(cqrs_nack);
PG_FUNCTION_INFO_V1(cqrs_renew);

/*
 * cqrs_ack(subscription)
 */
Datum
cqrs_ack(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	List	   *all;
	ListCell   *lc;
	int64		n = 0;

	cqrs_require_writable("cqrs_ack()");
	subscription = cqrs_pull_subscription(name);
	all = find_handed(subscription, false, NULL);
	foreach(lc, all)
	{
		Handed	   *handed = (Handed *) lfirst(lc);

		n += settle(handed, handed->cursor.covered, handed->cursor.ncovered);
	}
	cqrs_received_settled();
	PG_RETURN_INT64(n);
}

/*
 * cqrs_ack(subscription, positions, receipt)
 */
Datum
cqrs_ack_positions(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription;
	int64	   *positions;
	int			npositions;
	List	   *all;
	ListCell   *lc;
	int64		n = 0;

	cqrs_require_writable("cqrs_ack()");
	subscription = cqrs_pull_subscription(name);
	npositions = positions_arg(fcinfo, 1, &positions);
	if (npositions == 0)
		PG_RETURN_INT64(0);
	all = find_handed(subscription, !PG_ARGISNULL(2),
					  PG_ARGISNULL(2) ? NULL : PG_GETARG_UUID_P(2));
	check_positions(subscription, all, positions, npositions);
	foreach(lc, all)
		n += settle((Handed *) lfirst(lc), positions, npositions);
	cqrs_received_settled();
	PG_RETURN_INT64(n);
}

/*
 * cqrs_nack(subscription, positions, error, retry_after, give_up, receipt)
 */
Datum
cqrs_nack(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsFault	fault = {ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION, ""};
	CqrsSubscription *subscription;
	int64	   *positions;
	int			npositions;
	List	   *all;
	ListCell   *lc;
	int64		n = 0;

	cqrs_require_writable("cqrs_nack()");
	subscription = cqrs_pull_subscription(name);
	if (!PG_ARGISNULL(2))
		fault.message = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (!PG_ARGISNULL(3))
	{
		if (cqrs_milliseconds(PG_GETARG_DATUM(3)) < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("retry_after must not be negative")));
		fault.retry_at = cqrs_time_plus(cqrs_wall_now(), PG_GETARG_DATUM(3));
	}
	fault.final = !PG_ARGISNULL(4) && PG_GETARG_BOOL(4);
	npositions = positions_arg(fcinfo, 1, &positions);
	if (npositions == 0)
		PG_RETURN_INT64(0);
	all = find_handed(subscription, !PG_ARGISNULL(5),
					  PG_ARGISNULL(5) ? NULL : PG_GETARG_UUID_P(5));
	check_positions(subscription, all, positions, npositions);
	foreach(lc, all)
		n += fail((Handed *) lfirst(lc), positions, npositions, &fault);
	cqrs_received_settled();
	PG_RETURN_INT64(n);
}

/*
 * cqrs_renew(subscription, receipt, lease)
 */
Datum
cqrs_renew(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	TimestampTz now = cqrs_wall_now();
	CqrsSubscription *subscription;
	Handed	   *handed;
	int64		lease;
	TimestampTz until = now;

	cqrs_require_writable("cqrs_renew()");
	subscription = cqrs_pull_subscription(name);
	cqrs_arg_required(fcinfo, 1, "receipt", NULL, NULL);
	cqrs_arg_required(fcinfo, 2, "lease", NULL, NULL);
	lease = cqrs_milliseconds(PG_GETARG_DATUM(2));
	if (lease < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must not be negative")));

	handed = linitial(find_handed(subscription, true, PG_GETARG_UUID_P(1)));
	if (lease > 0)
		until = cqrs_time_plus(now, PG_GETARG_DATUM(2));
	handed->cursor.leased_until = lease > 0 ? until : 0;
	cqrs_cursor_append(&handed->cursor);
	PG_RETURN_TIMESTAMPTZ(until);
}

/*
 * What the given receipt covers or, if none is given, all that this
 * transaction received. Raises OB003.
 */
static List *
find_handed(CqrsSubscription *subscription, bool shown,
			const pg_uuid_t *receipt)
{
	List	   *received;
	List	   *all = NIL;
	ListCell   *lc;

	if (shown)
		return list_make1(handed_elsewhere(subscription, receipt));

	received = cqrs_received_list(subscription->subscription_id);
	if (received == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_INVALID_RECEIPT),
				 errmsg("this transaction has not received from subscription \"%s\"",
						subscription->name),
				 errhint("Receive and acknowledge in one transaction, or name the positions and the receipt.")));
	foreach(lc, received)
	{
		CqrsReceived *entry = (CqrsReceived *) lfirst(lc);

		if (entry->partition >= 0)
			all = lappend(all, handed_here(subscription, entry));
	}
	return all;
}

static Handed *
handed_here(CqrsSubscription *subscription, const CqrsReceived *received)
{
	Handed	   *handed;

	(void) cqrs_subscription_lock(subscription, received->partition, true);
	handed = read_handed(subscription, received->partition);
	if (!cqrs_receipt_is_newest(&handed->cursor, &received->receipt))
		cqrs_receipt_invalid(subscription,
							 "The subscription was moved since, or adopted.");
	cqrs_parked_open(&handed->cursor);
	return handed;
}

static Handed *
handed_elsewhere(CqrsSubscription *subscription, const pg_uuid_t *receipt)
{
	const char *newer = "Its events were handed out again since, or the subscription was moved.";
	int			partition = cqrs_receipt_partition(receipt);
	Handed	   *handed;
	bool		wait;

	if (cqrs_registry_is_copy())
		cqrs_receipt_invalid(subscription, "This database is a copy: what was handed out is settled in the original.");
	handed = read_handed(subscription, partition);
	if (!cqrs_receipt_is_newest(&handed->cursor, receipt))
		cqrs_receipt_invalid(subscription, newer);
	wait = handed->cursor.leased_until > cqrs_wall_now();
	if (!cqrs_subscription_lock(subscription, partition, wait))
		cqrs_receipt_invalid(subscription,
							 "Another transaction is receiving its events.");

	/* The cursor may have moved before we had the lock. */
	handed = read_handed(cqrs_pull_subscription(subscription->name),
						 partition);
	if (!cqrs_receipt_is_newest(&handed->cursor, receipt))
		cqrs_receipt_invalid(subscription, newer);
	cqrs_parked_open(&handed->cursor);
	return handed;
}

static Handed *
read_handed(CqrsSubscription *subscription, int partition)
{
	Handed	   *handed = palloc0(sizeof(Handed));
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	if (subscription->state == CQRS_SUBSCRIPTION_SUSPENDED)
		cqrs_subscription_require_active(subscription);
	handed->subscription = subscription;
	if (!cqrs_cursor_read(subscription->subscription_id, partition, snapshot,
						  &handed->cursor))
		cqrs_receipt_invalid(subscription, "It is not a receipt of this subscription, or of a partition that is no more.");
	UnregisterSnapshot(snapshot);
	return handed;
}

/*
 * The positions that an argument names, each once, in order.
 */
static int
positions_arg(FunctionCallInfo fcinfo, int argno, int64 **positions)
{
	Datum	   *values;
	bool	   *nulls;
	int			nvalues;
	int			n = 0;
	int			i;

	if (PG_ARGISNULL(argno))
		return 0;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &values, &nulls,
					  &nvalues);
	*positions = palloc(sizeof(int64) * Max(nvalues, 1));
	for (i = 0; i < nvalues; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("positions must not contain null")));
		(*positions)[i] = DatumGetInt64(values[i]);
	}
	qsort(*positions, nvalues, sizeof(int64), cqrs_position_compare);
	for (i = 0; i < nvalues; i++)
		if (n == 0 || (*positions)[i] != (*positions)[n - 1])
			(*positions)[n++] = (*positions)[i];
	return n;
}

/*
 * Raises 22023 if no receipt covers one of the positions.
 */
static void
check_positions(CqrsSubscription *subscription, List *handed,
				const int64 *positions, int npositions)
{
	int			i;

	for (i = 0; i < npositions; i++)
	{
		bool		covered = false;
		ListCell   *lc;

		foreach(lc, handed)
			covered |= cqrs_cursor_covers(&((Handed *) lfirst(lc))->cursor,
										  positions[i]);
		if (!covered)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("position " INT64_FORMAT " was not received by subscription \"%s\" with this receipt",
							positions[i], subscription->name),
					 errhint("Name positions that cqrs_receive() returned with it.")));
	}
}

/*
 * Acknowledge the positions that are covered here and not settled. Returns how
 * many.
 */
static int64
settle(Handed *handed, const int64 *positions, int npositions)
{
	CqrsCursor *cursor = &handed->cursor;
	int64		n = 0;
	int			i;

	if (settles_all(handed, positions, npositions))
	{
		cursor->delivered += npositions;
		give_back(handed, cursor->received, true);
		return npositions;
	}
	for (i = 0; i < npositions; i++)
	{
		CqrsParked	parked;

		if (!cqrs_cursor_covers(cursor, positions[i]) ||
			!cqrs_receipt_is_open(cursor, positions[i], &parked))
			continue;
		if (parked.position != 0)
			cqrs_parked_done(&parked, cursor);
		else
			cqrs_cursor_pass(cursor, positions[i]);
		n++;
	}
	if (n > 0)
	{
		cursor->delivered += n;
		move_cursor(handed);
	}
	return n;
}

/*
 * Is this a whole batch, with nothing settled or parked yet? That is the usual
 * case, and then there is nothing to look for.
 */
static bool
settles_all(const Handed *handed, const int64 *positions, int npositions)
{
	const CqrsCursor *cursor = &handed->cursor;

	return cursor->next_retry_at == 0 && cursor->npassed == 0 &&
		cursor->until_tick != 0 && npositions > 0 &&
		npositions == cursor->ncovered &&
		positions[0] > cursor->position &&
		positions[npositions - 1] <= cursor->received &&
		memcmp(positions, cursor->covered, sizeof(int64) * npositions) == 0;
}

/*
 * Record that the events at the positions that are covered here and not
 * settled failed. Returns how many.
 */
static int64
fail(Handed *handed, const int64 *positions, int npositions,
	 const CqrsFault *fault)
{
	CqrsCursor *cursor = &handed->cursor;
	int64		n = 0;
	bool		any_new = false;
	int			i;

	for (i = 0; i < npositions; i++)
	{
		CqrsParked	parked;

		if (!cqrs_cursor_covers(cursor, positions[i]) ||
			!cqrs_receipt_is_open(cursor, positions[i], &parked))
			continue;
		if (parked.position != 0)
		{
			/* For an event handed out alone, the attempt was counted. */
			cqrs_parked_failed(&parked, handed->subscription, cursor, fault,
							   parked.killed);
			n++;
		}
		else
			any_new = true;
	}
	if (any_new)
		n += fail_new(handed, positions, npositions, fault);
	if (n > 0)
		move_cursor(handed);
	return n;
}

/*
 * Record the failure of events of the window: park them, and with them the
 * events of their lanes before them that are not settled, so that these keep
 * their place.
 */
static int64
fail_new(Handed *handed, const int64 *positions, int npositions,
		 const CqrsFault *fault)
{
	CqrsCursor *cursor = &handed->cursor;
	CqrsSubscription *subscription = handed->subscription;
	int64		last = Min(positions[npositions - 1], cursor->received);
	int64		start = cursor->position;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	CqrsWindow *window;
	CqrsEvent	event;
	Open	   *opens = palloc(sizeof(Open) * cursor->ncovered);
	int			nopens = 0;
	int64		n = 0;
	int			i;
	int			j;

	window = open_window(handed, start, snapshot);
	while (next_open(handed, window, last, &event))
	{
		Open	   *open = &opens[nopens++];

		open->position = event.position;
		open->lane = cqrs_event_lane(&event, cursor->by_topic);
		open->failed = cqrs_positions_contain(positions, npositions, event.position);
	}

	cqrs_window_detach(window);
	cqrs_window_free(window);

	/* Walk over them again, and park. */
	window = open_window(handed, start, snapshot);
	for (i = 0; i < nopens && next_open(handed, window, last, &event); i++)
	{
		bool		before = false;

		for (j = i + 1; !opens[i].failed && !before && j < nopens; j++)
			before = opens[j].failed && opens[j].lane == opens[i].lane;
		if (opens[i].failed)
		{
			cqrs_park(subscription, cursor, &event, fault);
			n++;
		}
		else if (before)
			cqrs_park_received(cursor, &event, &cursor->receipt);
	}
	cqrs_window_detach(window);
	cqrs_window_free(window);
	UnregisterSnapshot(snapshot);
	return n;
}

static CqrsWindow *
open_window(Handed *handed, int64 start, Snapshot snapshot)
{
	CqrsWindow *window;

	window = cqrs_window_create(CurrentMemoryContext, handed->cursor.snapshot,
								handed->cursor.until_snapshot, start,
								WINDOW_ENTRIES);
	cqrs_window_attach(window, handed->subscription->ntopics,
					   handed->subscription->topics, snapshot);
	return window;
}

/*
 * The window's next event, up to position last, that was handed out and is not
 * settled.
 */
static bool
next_open(Handed *handed, CqrsWindow *window, int64 last, CqrsEvent *event)
{
	CqrsParked	parked;

	while (cqrs_window_next(window, event) && event->position <= last)
	{
		CHECK_FOR_INTERRUPTS();
		if (cqrs_cursor_covers(&handed->cursor, event->position) &&
			cqrs_receipt_is_open(&handed->cursor, event->position, &parked) &&
			parked.position == 0)
			return true;
	}
	return false;
}

/*
 * Move the cursor up to what is not settled yet, and write it down.
 */
static void
move_cursor(Handed *handed)
{
	CqrsCursor *cursor = &handed->cursor;
	int64		position = Max(cursor->received, cursor->position);
	bool		all_settled = true;
	int			i;

	for (i = 0; i < cursor->ncovered; i++)
	{
		CqrsParked	parked;

		if (!cqrs_receipt_is_open(cursor, cursor->covered[i], &parked))
			continue;
		all_settled = false;
		if (parked.position == 0)
		{
			position = cursor->covered[i] - 1;
			break;
		}
	}
	give_back(handed, position, all_settled);
}

/*
 * Write down that all is settled up to this position. When all of the batch
 * is, the partition is given back. If events are handed out one by one, others
 * of the same batch, which the receipt does not cover, are not settled: then
 * the next cqrs_receive() moves the cursor.
 */
static void
give_back(Handed *handed, int64 position, bool all_settled)
{
	CqrsCursor *cursor = &handed->cursor;

	/* With nothing left, nobody need wait for the end of the lease. */
	if (all_settled)
		cursor->leased_until = 0;
	if (cursor->until_tick != 0 && cursor->expired < CQRS_LEASES_EXPIRED)
	{
		cursor->position = position;
		cursor->last_position = Max(cursor->last_position, position);
		cqrs_cursor_forget_passed(cursor);
		if (cursor->position == cursor->received && cursor->received_all)
			cqrs_relay_close_window(cursor);
	}
	cqrs_parked_close(cursor);
	cqrs_cursor_append(cursor);
}
