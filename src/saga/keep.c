/*-------------------------------------------------------------------------
 *
 * keep.c
 *	  How long sagas are kept that are over.
 *
 * Entries are in three tables, which are written in turn, by the clock, a retention
 * each. One is truncated when the last saga in it that ended has been over for as
 * long, and none of those under way is there. Each of these is asked, by a message
 * in its lane, to move to the current table, before its table is written again: it does
 * that itself, so nobody else ever writes its entries. A saga that waits for years is
 * moved once in three turns.
 *
 * As with idempotency keys, the truncation is decided under ACCESS EXCLUSIVE, which is
 * tried, not waited for. Whoever has written an entry has a lock on its table until
 * the end of the transaction: so with the lock, what is not seen is not there.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"

#include "base/event_id.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/segment.h"
#include "registry/registry.h"
#include "saga/keep.h"
#include "saga/message.h"
#include "shared/clock.h"

/* How many sagas are asked to move at once. */
#define MOVED_AT_ONCE	1000

/* How long to wait until they have, in milliseconds. */
#define MOVE_WAIT		1000

/* ... and until those that could not are asked again. */
#define MOVE_AGAIN_WAIT	60000

/* The last one that this process has asked. */
static char last_asked[CQRS_UUID_TEXT_LEN + 1] = "";

static bool is_old(int segment, TimestampTz *look_at);
static bool has_sagas(int segment);
static int	ask_to_move(int segment);

/*
 * Truncate a table of entries, if what it has is old, and that is possible at once;
 * the lock then stays until the end of the transaction. If sagas that are under way
 * are in it, and it is the next one to be written, ask some of them to move. For
 * *look_at and *pid, see cqrs_idempotency_truncate().
 */
CqrsTableState
cqrs_saga_truncate(int segment, TimestampTz *look_at, int *pid)
{
	Oid			relid = cqrs_relation_oid(CQRS_REL_SAGA_ENTRY_0 + segment);
	CqrsTableState state = CQRS_TABLE_LOCKED;
	int			current = cqrs_saga_current_segment();

	*pid = 0;
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return state;
	if (segment == current)
	{
		*look_at = cqrs_wall_now() + Max(cqrs_saga_retention, 1) * USECS_PER_SEC;
		state = CQRS_TABLE_KEPT;
	}
	else if (!is_old(segment, look_at))
		state = CQRS_TABLE_KEPT;
	else if (has_sagas(segment))
	{
		state = CQRS_TABLE_KEPT;
		*look_at = segment == (current + 1) % CQRS_SEGMENTS ?
			TimestampTzPlusMilliseconds(cqrs_wall_now(), ask_to_move(segment) > 0 ?
										MOVE_WAIT : MOVE_AGAIN_WAIT) :
			cqrs_wall_now() + Max(cqrs_saga_retention, 1) * USECS_PER_SEC;
	}
	else if (!cqrs_table_in_use(relid, pid) && cqrs_table_lock(relid))
	{
		/* All transactions that wrote to it have ended now. */
		if (is_old(segment, look_at) && !has_sagas(segment))
		{
			cqrs_admin_run(psprintf("TRUNCATE cqrs.saga_entry_%d", segment), 0);
			state = CQRS_TABLE_TRUNCATED;
		}
		else
			state = CQRS_TABLE_KEPT;
	}
	UnlockRelationOid(relid, AccessShareLock);
	return state;
}

/*
 * Does a locked table have entries, and are the sagas in it that are over old enough to
 * go? If not, *look_at gets when that may be the case.
 */
static bool
is_old(int segment, TimestampTz *look_at)
{
	TimestampTz now = cqrs_wall_now();
	TimestampTz kept = cqrs_saga_retention * USECS_PER_SEC;
	TimestampTz ended_at;
	bool		empty;

	*look_at = now + Max(kept, USECS_PER_SEC);
	if (!cqrs_saga_newest_end(segment, &ended_at, &empty))
		return !empty;
	if (ended_at + kept <= now)
		return true;
	*look_at = ended_at + kept;
	return false;
}

/*
 * Are sagas in this table that are under way?
 */
static bool
has_sagas(int segment)
{
	return cqrs_admin_run("SELECT FROM cqrs.saga WHERE segment = $1 LIMIT 1",
						  1, CQRS_INT4(segment)) > 0;
}

/*
 * Ask the next ones of the sagas in this table to move. Returns how many; 0: all were
 * asked, and from now on it begins anew.
 */
static int
ask_to_move(int segment)
{
	NullableDatum none = {.isnull = true};
	MemoryContext context = CurrentMemoryContext;
	CqrsSaga   *sagas = palloc(sizeof(CqrsSaga) * MOVED_AT_ONCE);
	CqrsAdmin	admin;
	int			n;
	int			i;

	cqrs_admin_begin(&admin);
	n = cqrs_admin_execute("SELECT saga_id, saga_name, topic_id FROM cqrs.saga"
						   " WHERE segment = $1 AND ($2 = '' OR saga_id > $2::uuid) ORDER BY saga_id LIMIT $3",
						   3, CQRS_INT4(segment), CQRS_TEXT(last_asked),
						   CQRS_INT4(MOVED_AT_ONCE));
	for (i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		sagas[i].saga_id = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		sagas[i].name = MemoryContextStrdup(context,
											TextDatumGetCString(SPI_getbinval(row, desc, 2, &isnull)));
		sagas[i].topic_id = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
	}
	cqrs_admin_end(&admin);

	last_asked[0] = '\0';
	for (i = 0; i < n; i++)
	{
		CqrsSagaMessage message = {.kind = CQRS_SAGA_MOVE};
		const CqrsTopic *topic = cqrs_registry_topic_by_id(sagas[i].topic_id);

		message.saga_id = sagas[i].saga_id;
		message.payload.isnull = true;
		if (topic != NULL && topic->runner != NULL)
			cqrs_saga_send(topic, sagas[i].name, &message, none);
	}
	if (n > 0)
		(void) cqrs_uuid_text(&sagas[n - 1].saga_id, last_asked);
	return n;
}
