/*-------------------------------------------------------------------------
 *
 * receipt.c
 *	  Receipts: who may settle what was handed out.
 *
 * A receipt is a UUID of version 8: 16 bits are the partition, so that nobody
 * need name it, the rest is random, so that nobody guesses it. The newest one
 * of a partition is in its cursor's row; it is the only valid one.
 *
 * What this transaction received is remembered here, so that it can be settled
 * without showing a receipt: only the partitions and receipts, since what
 * these cover is in the cursor. An entry goes with the subtransaction that
 * made it, as the cursor's row does; all of them go with the transaction, also
 * when it is prepared.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "subscription/receipt.h"

/* What this transaction received, in order; in its own memory. */
static List *received = NIL;

/* Did it receive something without a lease, and settle nothing? */
static bool unsettled = false;

static void at_xact_end(XactEvent event, void *arg);
static void at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
						   SubTransactionId parentSubid, void *arg);
static void remind(void);

void
cqrs_receipt_generate(int partition, pg_uuid_t *receipt)
{
	if (!pg_strong_random(receipt->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	receipt->data[6] = (receipt->data[6] & 0x0F) | 0x80;
	receipt->data[8] = (receipt->data[8] & 0x3F) | 0x80;
	receipt->data[14] = (partition >> 8) & 0xFF;
	receipt->data[15] = partition & 0xFF;
}

int
cqrs_receipt_partition(const pg_uuid_t *receipt)
{
	return (receipt->data[14] << 8) | receipt->data[15];
}

/*
 * Is this the receipt of what was handed out last?
 */
bool
cqrs_receipt_is_newest(const CqrsCursor *cursor, const pg_uuid_t *receipt)
{
	return cursor->has_receipt &&
		memcmp(&cursor->receipt, receipt, UUID_LEN) == 0;
}

/*
 * Is this position, which the newest receipt covers, still to be settled?
 * *parked gets the event if it is parked, or else position 0.
 */
bool
cqrs_receipt_is_open(const CqrsCursor *cursor, int64 position,
					 CqrsParked *parked)
{
	if (cqrs_parked_find(cursor, position, parked))
		return parked->received &&
			cqrs_receipt_is_newest(cursor, &parked->receipt);

	/* A position beyond received is of an earlier window, and was parked. */
	return cursor->until_tick != 0 && position > cursor->position &&
		position <= cursor->received &&
		!cqrs_cursor_has_passed(cursor, position);
}

/*
 * Raises OB003.
 */
void
cqrs_receipt_invalid(const CqrsSubscription *subscription, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_CQRS_INVALID_RECEIPT),
			 errmsg("receipt is not valid for subscription \"%s\"",
					subscription->name),
			 errdetail_internal("%s", detail),
			 errhint("What was not settled comes again: receive it anew.")));
}

/*
 * Remember what this transaction received; partition -1: nothing.
 */
void
cqrs_received_note(int32 subscription_id, int partition,
				   const pg_uuid_t *receipt, bool leased)
{
	static bool registered = false;
	MemoryContext oldcontext;
	CqrsReceived *entry;

	if (!registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		RegisterSubXactCallback(at_subxact_end, NULL);
		registered = true;
	}
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	entry = palloc0(sizeof(CqrsReceived));
	entry->subscription_id = subscription_id;
	entry->partition = partition;
	if (partition >= 0)
		entry->receipt = *receipt;
	entry->subid = GetCurrentSubTransactionId();
	received = lappend(received, entry);
	MemoryContextSwitchTo(oldcontext);
	unsettled |= partition >= 0 && !leased;
}

/*
 * Did this transaction receive what was handed out last at this cursor?
 */
bool
cqrs_received_here(int32 subscription_id, const CqrsCursor *cursor)
{
	ListCell   *lc;

	foreach(lc, received)
	{
		const CqrsReceived *entry = (const CqrsReceived *) lfirst(lc);

		if (entry->subscription_id == subscription_id &&
			entry->partition == cursor->partition &&
			cqrs_receipt_is_newest(cursor, &entry->receipt))
			return true;
	}
	return false;
}

/*
 * What this transaction received from a subscription: the newest entry of each
 * partition. NIL if it has not called cqrs_receive(). If no call returned
 * anything, one entry says so.
 */
List *
cqrs_received_list(int32 subscription_id)
{
	List	   *list = NIL;
	CqrsReceived *nothing = NULL;
	ListCell   *lc;
	ListCell   *lc2;

	foreach(lc, received)
	{
		CqrsReceived *entry = (CqrsReceived *) lfirst(lc);

		if (entry->subscription_id != subscription_id)
			continue;
		if (entry->partition < 0)
		{
			nothing = entry;
			continue;
		}
		foreach(lc2, list)
			if (((CqrsReceived *) lfirst(lc2))->partition == entry->partition)
			break;
		if (lc2 != NULL)
			lfirst(lc2) = entry;
		else
			list = lappend(list, entry);
	}
	return list == NIL && nothing != NULL ? list_make1(nothing) : list;
}

void
cqrs_received_settled(void)
{
	unsettled = false;
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (unsettled && !IsTransactionBlock())
				remind();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			received = NIL;
			unsettled = false;
			break;
		default:
			break;
	}
}

/*
 * What a subtransaction received passes to its parent, or, after an abort, was
 * never received.
 */
static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, received)
	{
		CqrsReceived *entry = (CqrsReceived *) lfirst(lc);

		if (entry->subid != mySubid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			entry->subid = parentSubid;
		else
			received = foreach_delete_current(received, lc);
	}
}

/*
 * In autocommit, what a client is handed goes to the next one as soon as the
 * statement ends. Say so once a session.
 */
static void
remind(void)
{
	static bool reminded = false;

	if (reminded)
		return;
	reminded = true;
	ereport(NOTICE,
			(errmsg("received events were not acknowledged in the same transaction"),
			 errhint("Begin a transaction before cqrs_receive(), or receive with a lease.")));
}
