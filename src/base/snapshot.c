/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  Snapshots that are kept: values of type pg_snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "fmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "base/snapshot.h"

/*
 * A snapshot of what is committed now, in the current memory context. It does
 * not show our own transaction, which is not committed.
 */
CqrsSnapshot *
cqrs_snapshot_take(void)
{
	FullTransactionId own;
	CqrsSnapshot *snapshot;
	CqrsSnapshot *result;
	uint32		i;

	PushActiveSnapshot(GetLatestSnapshot());
	snapshot = (CqrsSnapshot *)
		DatumGetPointer(DirectFunctionCall1(pg_current_snapshot, (Datum) 0));
	PopActiveSnapshot();

	/*
	 * The server's snapshot does not list its own transaction as in progress.
	 */
	own = GetTopFullTransactionIdIfAny();
	if (!FullTransactionIdIsValid(own) ||
		!FullTransactionIdPrecedes(own, snapshot->xmax))
		return snapshot;

	result = palloc(VARSIZE(snapshot) + sizeof(FullTransactionId));
	memcpy(result, snapshot, VARSIZE(snapshot));
	SET_VARSIZE(result, VARSIZE(snapshot) + sizeof(FullTransactionId));
	for (i = snapshot->nxip;
		 i > 0 && FullTransactionIdFollows(snapshot->xip[i - 1], own);
		 i--)
		result->xip[i] = snapshot->xip[i - 1];
	result->xip[i] = own;
	result->nxip++;
	if (FullTransactionIdPrecedes(own, result->xmin))
		result->xmin = own;
	pfree(snapshot);
	return result;
}

/*
 * The snapshot that shows nothing.
 */
CqrsSnapshot *
cqrs_snapshot_empty(void)
{
	CqrsSnapshot *snapshot = palloc(offsetof(CqrsSnapshot, xip));

	SET_VARSIZE(snapshot, offsetof(CqrsSnapshot, xip));
	snapshot->nxip = 0;
	snapshot->xmin = FullTransactionIdFromEpochAndXid(0, FirstNormalTransactionId);
	snapshot->xmax = snapshot->xmin;
	return snapshot;
}

/*
 * A copy of a pg_snapshot value.
 */
CqrsSnapshot *
cqrs_snapshot_from_datum(Datum value)
{
	return (CqrsSnapshot *) PG_DETOAST_DATUM_COPY(value);
}

/*
 * Had this top-level transaction ended? (Its rows tell whether it committed.)
 */
bool
cqrs_snapshot_shows(const CqrsSnapshot *snapshot, FullTransactionId xid)
{
	uint32		low = 0;
	uint32		high = snapshot->nxip;

	if (FullTransactionIdPrecedes(xid, snapshot->xmin))
		return true;
	if (!FullTransactionIdPrecedes(xid, snapshot->xmax))
		return false;
	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (FullTransactionIdEquals(snapshot->xip[middle], xid))
			return false;
		if (FullTransactionIdPrecedes(snapshot->xip[middle], xid))
			low = middle + 1;
		else
			high = middle;
	}
	return true;
}

/*
 * Does the later one show all that the earlier one does?
 */
bool
cqrs_snapshot_within(const CqrsSnapshot *earlier, const CqrsSnapshot *later)
{
	uint32		i;

	if (FullTransactionIdPrecedes(later->xmax, earlier->xmax))
		return false;
	for (i = 0; i < later->nxip; i++)
		if (cqrs_snapshot_shows(earlier, later->xip[i]))
			return false;
	return true;
}
