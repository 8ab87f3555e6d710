/*-------------------------------------------------------------------------
 *
 * adopt.c
 *	  cqrs_adopt(): makes what was restored from a dump events of this
 *	  cluster, and has the restored subscriptions go on where they were.
 *
 * In a copy made by CREATE DATABASE ... TEMPLATE, it makes this a database of
 * its own: a row of cqrs.identity has its OID. Rows are only added, so that
 * logical replication of the table cannot fail.
 *
 * A dump has the events' transaction ids and the cursors' snapshots. They are
 * another cluster's: compared only with each other, they say exactly which
 * event a cursor had delivered; but they must be gone before this cluster's
 * transaction ids come near them. Until then, generated columns mark such rows
 * (see topic.c), and nobody uses them.
 *
 * Labels
 *
 * An event's transaction id is needed only to tell which subscriptions have
 * delivered it. So restored events are put into classes: those that the same
 * restored subscriptions have delivered. Each class gets one transaction id as
 * its label, for all of its events. (Only the cursor of the event's own
 * partition counts, so there are few classes.) A restored cursor's new
 * snapshot shows the labels of what its subscription has delivered, lists the
 * others as in progress, and ends behind the last label: it has delivered
 * nothing that was emitted in this cluster.
 *
 * Labels count up from the lowest transaction id there is. No transaction of
 * ours can get such an id any more, as they lie before the oldest running one;
 * and we check that none that had one has emitted. So events with labels and
 * events of this cluster never mix, whatever was emitted since the restore, or
 * is being emitted now. Any snapshot that is taken here shows all labels: a
 * subscription that started at 'latest' after the restore is behind them
 * already.
 *
 * Protocol
 *
 * All in one transaction, with the latest snapshots:
 * 1. Take the locks of the restored topics: nobody truncates them, or
 *	  subscribes to them, or adopts them.
 * 2. Take the locks of all cursors of restored subscriptions, and only then
 *	  keep others from creating topics: whoever has a cursor's lock may be about
 *	  to drop its topic, as unsubscribing from commands does.
 * 3. Give each restored row its label. It stays where it is, and so does a
 *	  payload that is stored out of line; memory is bounded.
 * 4. Append the restored cursors' new rows, and mark the topics.
 *
 * Windows of restored subscriptions begin only after the commit, for until
 * then the cursors that others see are restored ones, and these are moved
 * only under the locks that we hold. By then all rows can be seen. Windows
 * whose events leave the database end at a tick behind the cursors' new one,
 * whose commit therefore comes after ours in the WAL; and ours is not
 * asynchronous.
 *
 * Emitters need not wait, and are not waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "nodes/bitmapset.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "control/adopt.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "inbox/consumer.h"
#include "log/cursor.h"
#include "log/event.h"
#include "log/segment.h"
#include "log/segment_index.h"
#include "log/tick.h"
#include "log/topic.h"
#include "log/window_scan.h"
#include "registry/registry.h"
#include "shared/announce.h"
#include "subscription/epoch.h"
#include "subscription/subscription.h"

/* What a cursor had delivered when the dump was made. */
typedef struct Delivered
{
	bool		restored;		/* false: it has delivered all restored events */
	CqrsSnapshot *snapshot;
	CqrsSnapshot *until_snapshot;	/* NULL: it was in no window */
	int64		position;		/* of that window, up to here ... */
	int			npassed;		/* ... and some beyond */
	int64	   *passed;
} Delivered;

/* A restored subscription. */
typedef struct Restored
{
	CqrsSubscription *subscription;
	Delivered  *partitions;
	bool		by_topic;		/* ordering of its events */
	int64		undelivered;	/* how many events wait for it */
} Restored;

/* Events that the same subscriptions have delivered. */
typedef struct EventClass
{
	Bitmapset  *delivered;		/* indexes into subscriptions */
	FullTransactionId label;
} EventClass;

typedef struct Adoption
{
	MemoryContext context;		/* where all of this is */
	List	   *topics;			/* restored ones, by id */
	int			nsubscriptions;
	Restored   *subscriptions;
	List	   *classes;		/* in order of their labels */
	FullTransactionId next_label;
	FullTransactionId end;		/* labels must be lower */
	int64		last_position;	/* the highest of a restored event */
	Snapshot	snapshot;		/* taken under the locks; shows no label */
} Adoption;

static void resume_sagas(void);
static void forget_receipts(void);
static void lock_topics(Adoption *adoption);
static void lock_cursors(void);
static void list_subscriptions(Adoption *adoption);
static bool is_restored(const CqrsSubscription *subscription,
						Snapshot snapshot);
static void read_cursors(Restored *restored, Snapshot snapshot);
static FullTransactionId end_of_labels(Adoption *adoption);
static void adopt_segment(Adoption *adoption, const CqrsTopic *topic,
						  int segment);
static FullTransactionId label_of(Adoption *adoption, const CqrsTopic *topic,
								  TupleTableSlot *slot);
static bool was_delivered(const Delivered *cursor, FullTransactionId xid,
						  int64 position);
static FullTransactionId new_label(Adoption *adoption,
								   const Bitmapset *delivered);
static void check_labels(Adoption *adoption);
static void raise_sequences(int64 last_position);
static void move_cursors(Adoption *adoption, int subscription);

PG_FUNCTION_INFO_V1(cqrs_adopt);

/*
 * cqrs_adopt()
 */
Datum
cqrs_adopt(PG_FUNCTION_ARGS)
{
	Tuplestorestate *store;
	TupleDesc	desc;
	Adoption	adoption = {0};
	bool		is_copy;
	ListCell   *lc;
	int			i;

	cqrs_require_writable("cqrs_adopt()");
	store = cqrs_srf_begin(fcinfo, &desc);
	adoption.context = CurrentMemoryContext;
	is_copy = cqrs_registry_is_copy();
	if (is_copy)
		cqrs_adopt_identity();
	lock_topics(&adoption);
	lock_cursors();

	/*
	 * Keep others from creating or dropping topics, and find those that were
	 * restored, or adopted, while we waited for locks.
	 */
	cqrs_admin_run("LOCK TABLE cqrs.topic IN SHARE ROW EXCLUSIVE MODE", 0);
	lock_topics(&adoption);
	list_subscriptions(&adoption);
	if (is_copy)
		forget_receipts();
	cqrs_consumers_adopt();
	if (adoption.topics == NIL && adoption.nsubscriptions == 0)
	{
		if (is_copy)
			resume_sagas();
		return (Datum) 0;
	}

	adoption.snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < adoption.nsubscriptions; i++)
		read_cursors(&adoption.subscriptions[i], adoption.snapshot);
	adoption.next_label =
		FullTransactionIdFromEpochAndXid(0, FirstNormalTransactionId);
	adoption.end = end_of_labels(&adoption);

	foreach(lc, adoption.topics)
	{
		for (i = 0; i < CQRS_SEGMENTS; i++)
			adopt_segment(&adoption, lfirst(lc), i);
	}
	check_labels(&adoption);
	raise_sequences(adoption.last_position);
	for (i = 0; i < adoption.nsubscriptions; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {0};

		move_cursors(&adoption, i);
		cqrs_epoch_restart(adoption.subscriptions[i].subscription->subscription_id);
		values[0] = CStringGetTextDatum(adoption.subscriptions[i].subscription->name);
		values[1] = Int64GetDatum(adoption.subscriptions[i].undelivered);
		tuplestore_putvalues(store, desc, values, nulls);
	}
	foreach(lc, adoption.topics)
		cqrs_topic_set_native(((CqrsTopic *) lfirst(lc))->topic_id);
	UnregisterSnapshot(adoption.snapshot);

	cqrs_catalog_invalidate_registry();
	resume_sagas();
	cqrs_shmem_changed();
	cqrs_shmem_command_scheduled(DT_NOBEGIN);
	cqrs_commit_durably();
	return (Datum) 0;
}

/*
 * Make this database, which is a copy, one of its own. Its cursors are in this
 * cluster's terms, so they go on where they were.
 */
void
cqrs_adopt_identity(void)
{
	(void) cqrs_admin_run("INSERT INTO cqrs.identity (id, database) VALUES (pg_catalog.gen_random_uuid(), $1)",
						  1, CQRS_ARG(OIDOID, ObjectIdGetDatum(MyDatabaseId)));
	cqrs_shmem_changed();
	cqrs_commit_durably();
}

/*
 * A dump may lack what was to have a saga go on: if its topic was truncated after the
 * dump's snapshot was taken, and before its table was locked.
 */
static void
resume_sagas(void)
{
	ListCell   *lc;

	CommandCounterIncrement();
	foreach(lc, cqrs_registry_subscription_list(NULL))
	{
		CqrsSubscription *subscription = lfirst(lc);

		if (subscription->runs_sagas)
			cqrs_subscription_lost_events(subscription);
	}
}

/*
 * Forget what the original had handed out to clients: they settle it there; and in
 * which transactions it sends to brokers.
 */
static void
forget_receipts(void)
{
	ListCell   *lc;

	foreach(lc, cqrs_registry_subscription_list(NULL))
	{
		CqrsSubscription *subscription = lfirst(lc);
		int			i;

		for (i = 0; i < subscription->partitions; i++)
		{
			CqrsCursor	cursor;
			Snapshot	snapshot;
			bool		found;

			(void) cqrs_object_lock(CQRS_REL_SUBSCRIPTION,
									subscription->subscription_id, i,
									ExclusiveLock, true);
			snapshot = RegisterSnapshot(GetLatestSnapshot());
			found = cqrs_cursor_read(subscription->subscription_id, i,
									 snapshot, &cursor);
			UnregisterSnapshot(snapshot);
			if (!found || (!cursor.has_receipt && !cursor.sent.producer.given))
				continue;
			cqrs_cursor_forget_receipt(&cursor);
			memset(&cursor.sent, 0, sizeof(cursor.sent));
			if (subscription->exactly_once)
				cqrs_cursor_draw_producer(&cursor);
			cqrs_cursor_append(&cursor);
		}
	}
}

static void
lock_topics(Adoption *adoption)
{
	ListCell   *lc;

	adoption->topics = NIL;
	foreach(lc, cqrs_registry_topic_list())
	{
		CqrsTopic  *topic = (CqrsTopic *) lfirst(lc);

		if (!topic->native)
			adoption->topics = lappend(adoption->topics, topic);
	}
	foreach(lc, adoption->topics)
		(void) cqrs_object_lock(CQRS_REL_TOPIC,
								((CqrsTopic *) lfirst(lc))->topic_id, 0,
								ExclusiveLock, true);
}

static void
lock_cursors(void)
{
	List	   *subscriptions;
	ListCell   *lc;
	Snapshot	snapshot;
	int			i;

	subscriptions = cqrs_registry_subscription_list(NULL);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	foreach(lc, subscriptions)
	{
		CqrsSubscription *subscription = lfirst(lc);

		if (!is_restored(subscription, snapshot))
			continue;
		for (i = 0; i < subscription->partitions; i++)
			(void) cqrs_object_lock(CQRS_REL_SUBSCRIPTION,
									subscription->subscription_id, i,
									ExclusiveLock, true);
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Find the restored subscriptions. While we waited for locks, some may have
 * been removed, or moved by hand.
 */
static void
list_subscriptions(Adoption *adoption)
{
	List	   *subscriptions = cqrs_registry_subscription_list(NULL);
	ListCell   *lc;
	Snapshot	snapshot;

	adoption->subscriptions = palloc0(sizeof(Restored) *
									  Max(list_length(subscriptions), 1));
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	foreach(lc, subscriptions)
	{
		CqrsSubscription *subscription = lfirst(lc);

		if (is_restored(subscription, snapshot))
			adoption->subscriptions[adoption->nsubscriptions++].subscription =
				subscription;
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Does it have a cursor that waits for the adoption?
 */
static bool
is_restored(const CqrsSubscription *subscription, Snapshot snapshot)
{
	CqrsCursor	cursor;
	int			i;

	for (i = 0; i < subscription->partitions; i++)
		if (cqrs_cursor_read(subscription->subscription_id, i, snapshot,
							 &cursor) && !cursor.native)
			return true;
	return false;
}

/*
 * Read what the dump says about the subscription's cursors.
 */
static void
read_cursors(Restored *restored, Snapshot snapshot)
{
	CqrsSubscription *subscription = restored->subscription;
	int			i;

	restored->partitions = palloc0(sizeof(Delivered) *
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
	{
		Delivered  *delivered = &restored->partitions[i];
		CqrsCursor	cursor;

		if (!cqrs_cursor_read_restored(subscription->subscription_id, i,
									   snapshot, &cursor))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("subscription \"%s\" has no cursor",
							subscription->name),
					 errdetail("The restore is not complete."),
					 errhint("Restore all of the dump, or remove the subscription with cqrs_unsubscribe().")));
		restored->by_topic = cursor.by_topic;
		delivered->restored = !cursor.native;
		if (!delivered->restored)
			continue;
		delivered->snapshot = cursor.snapshot;
		if (cursor.until_tick != 0)
			delivered->until_snapshot = cursor.until_snapshot;
		delivered->position = cursor.position;
		delivered->npassed = cursor.npassed;
		delivered->passed = cursor.passed;
	}
}

/*
 * Labels must be lower than this: than any transaction id to come, and than
 * those that a cursor moved here since the restore may list as in progress.
 */
static FullTransactionId
end_of_labels(Adoption *adoption)
{
	FullTransactionId end = cqrs_snapshot_take()->xmin;
	ListCell   *lc;
	int			i;

	foreach(lc, cqrs_registry_subscription_list(NULL))
	{
		CqrsSubscription *subscription = lfirst(lc);
		bool		concerned = false;
		ListCell   *lc2;

		foreach(lc2, adoption->topics)
			concerned |= cqrs_subscription_reads(subscription, lfirst(lc2));
		for (i = 0; concerned && i < subscription->partitions; i++)
		{
			CqrsCursor	cursor;

			if (cqrs_cursor_read(subscription->subscription_id, i,
								 adoption->snapshot, &cursor) &&
				cursor.native &&
				FullTransactionIdPrecedes(cursor.snapshot->xmin, end))
				end = cursor.snapshot->xmin;
		}
	}
	return end;
}

/*
 * Label the restored rows of a segment.
 */
static void
adopt_segment(Adoption *adoption, const CqrsTopic *topic, int segment)
{
	Relation	rel = cqrs_segment_open(topic, segment, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TupleTableSlot *labelled = table_slot_create(rel, NULL);
	CqrsIndexes indexes;
	TableScanDesc scan;
	MemoryContext per_row;
	MemoryContext oldcontext;

	per_row = AllocSetContextCreate(CurrentMemoryContext, "cqrs adoption",
									ALLOCSET_DEFAULT_SIZES);
	cqrs_indexes_open(&indexes, rel);

	/* The snapshot does not show what we write. */
	scan = cqrs_table_beginscan(rel, adoption->snapshot);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		FullTransactionId label;
		ItemPointerData tid = slot->tts_tid;
		int			natts = slot->tts_tupleDescriptor->natts;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		if (DatumGetBool(slot->tts_values[CQRS_SEG_NATIVE - 1]))
			continue;

		oldcontext = MemoryContextSwitchTo(per_row);
		label = label_of(adoption, topic, slot);
		adoption->last_position =
			Max(adoption->last_position,
				DatumGetInt64(slot->tts_values[CQRS_SEG_POSITION - 1]));
		ExecClearTuple(labelled);
		memcpy(labelled->tts_values, slot->tts_values, sizeof(Datum) * natts);
		memcpy(labelled->tts_isnull, slot->tts_isnull, sizeof(bool) * natts);
		labelled->tts_values[CQRS_SEG_XID - 1] =
			FullTransactionIdGetDatum(label);
		labelled->tts_values[CQRS_SEG_NATIVE - 1] = BoolGetDatum(true);
		ExecStoreVirtualTuple(labelled);
		if (cqrs_table_update(rel, &tid, labelled, adoption->snapshot))
			cqrs_indexes_insert(&indexes, labelled);
		ExecClearTuple(labelled);
		MemoryContextSwitchTo(oldcontext);
		MemoryContextReset(per_row);
	}
	table_endscan(scan);
	cqrs_indexes_close(&indexes);
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(labelled);
	MemoryContextDelete(per_row);
	table_close(rel, NoLock);
}

/*
 * Find the label for a restored row, and count the event for the subscriptions
 * that have not got it.
 */
static FullTransactionId
label_of(Adoption *adoption, const CqrsTopic *topic, TupleTableSlot *slot)
{
	NullableDatum key;
	FullTransactionId xid;
	int64		position;
	Bitmapset  *delivered = NULL;
	ListCell   *lc;
	int			i;

	xid = DatumGetFullTransactionId(slot->tts_values[CQRS_SEG_XID - 1]);
	position = DatumGetInt64(slot->tts_values[CQRS_SEG_POSITION - 1]);
	key.value = slot->tts_values[CQRS_SEG_KEY - 1];
	key.isnull = slot->tts_isnull[CQRS_SEG_KEY - 1];
	for (i = 0; i < adoption->nsubscriptions; i++)
	{
		Restored   *restored = &adoption->subscriptions[i];
		int			partition;

		if (!cqrs_subscription_reads(restored->subscription, topic))
			continue;
		partition = cqrs_event_partition(topic->topic_id,
										 slot->tts_values[CQRS_SEG_EVENT_ID - 1],
										 key, restored->by_topic,
										 restored->subscription->partitions);
		if (was_delivered(&restored->partitions[partition], xid, position))
			delivered = bms_add_member(delivered, i);
		else
			restored->undelivered++;
	}

	foreach(lc, adoption->classes)
	{
		EventClass *class = lfirst(lc);

		if (bms_equal(class->delivered, delivered))
			return class->label;
	}
	return new_label(adoption, delivered);
}

/*
 * Had a cursor passed this event when the dump was made?
 */
static bool
was_delivered(const Delivered *cursor, FullTransactionId xid, int64 position)
{
	return !cursor->restored ||
		cqrs_snapshot_shows(cursor->snapshot, xid) ||
		(cursor->until_snapshot != NULL &&
		 cqrs_snapshot_shows(cursor->until_snapshot, xid) &&
		 (position <= cursor->position ||
		  cqrs_positions_contain(cursor->passed, cursor->npassed, position)));
}

/*
 * A label for one more class.
 */
static FullTransactionId
new_label(Adoption *adoption, const Bitmapset *delivered)
{
	MemoryContext oldcontext;
	EventClass *class;

	if (!FullTransactionIdPrecedes(adoption->next_label, adoption->end))
	{
		/* Labels of an earlier adoption may be in the way. */
		adoption->next_label.value++;
		check_labels(adoption);
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot adopt the restored events"),
				 errdetail("The subscriptions had got too many different sets of them, and this cluster has not had as many transactions."),
				 errhint("Remove subscriptions, or move them to the latest event, and try again.")));
	}

	oldcontext = MemoryContextSwitchTo(adoption->context);
	class = palloc(sizeof(EventClass));
	class->delivered = bms_copy(delivered);
	class->label = adoption->next_label;
	adoption->next_label.value++;
	adoption->classes = lappend(adoption->classes, class);
	MemoryContextSwitchTo(oldcontext);
	return class->label;
}

/*
 * Raise 55000 if one of the labels is the transaction id of another event.
 */
static void
check_labels(Adoption *adoption)
{
	CqrsSnapshot *empty = cqrs_snapshot_empty();
	CqrsSnapshot *labels = cqrs_snapshot_empty();
	ListCell   *lc;

	labels->xmin = labels->xmax = adoption->next_label;
	foreach(lc, cqrs_registry_topic_list())
	{
		CqrsTopic  *topic = (CqrsTopic *) lfirst(lc);

		if (cqrs_window_has_events(topic, empty, labels, adoption->snapshot))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot adopt the restored events"),
					 errdetail("Topic \"%s\" has events that were adopted before.",
							   topic->name),
					 errhint("Restore into a database without topics.")));
	}
}

/*
 * Have all sequences go on behind the restored values: logical replication
 * leaves sequences out.
 */
static void
raise_sequences(int64 last_position)
{
	(void) cqrs_admin_run("SELECT pg_catalog.setval(s.sequence, s.restored)"
						  " FROM (SELECT 'cqrs.position'::pg_catalog.regclass, greatest($1,"
						  " (SELECT pg_catalog.max(position) FROM cqrs.retry),"
						  " (SELECT pg_catalog.max(position) FROM cqrs.dead_letter))"
						  " UNION ALL SELECT 'cqrs.topic_id', (SELECT pg_catalog.max(topic_id) FROM cqrs.topic)"
						  " UNION ALL SELECT 'cqrs.subscription_id', greatest((SELECT pg_catalog.max(subscription_id) FROM cqrs.subscription),"
						  " (SELECT pg_catalog.max(consumer_id) FROM cqrs.consumer))"
						  " UNION ALL SELECT 'cqrs.event_handler_seq', (SELECT pg_catalog.max(seq) FROM cqrs.event_handler)"
						  " UNION ALL SELECT 'cqrs.middleware_seq', (SELECT pg_catalog.max(seq) FROM cqrs.middleware)"
						  " UNION ALL SELECT 'cqrs.fallback_id', (SELECT pg_catalog.max(fallback_id) FROM cqrs.fallback)"
						  ") s (sequence, restored)"
						  " WHERE s.restored > coalesce(pg_catalog.pg_sequence_last_value(s.sequence), 0)",
						  1, CQRS_INT8(last_position));
}

/*
 * Have a restored subscription's cursors show what it has delivered, in terms
 * of labels.
 */
static void
move_cursors(Adoption *adoption, int subscription)
{
	Restored   *restored = &adoption->subscriptions[subscription];
	CqrsSnapshot *snapshot;
	ListCell   *lc;
	int			i;

	snapshot = palloc(offsetof(CqrsSnapshot, xip) +
					  sizeof(FullTransactionId) *
					  list_length(adoption->classes));
	snapshot->nxip = 0;
	foreach(lc, adoption->classes)
	{
		EventClass *class = lfirst(lc);

		if (!bms_is_member(subscription, class->delivered))
			snapshot->xip[snapshot->nxip++] = class->label;
	}
	snapshot->xmax = adoption->next_label;
	snapshot->xmin = snapshot->nxip > 0 ? snapshot->xip[0] : snapshot->xmax;
	SET_VARSIZE(snapshot, offsetof(CqrsSnapshot, xip) +
				sizeof(FullTransactionId) * snapshot->nxip);

	for (i = 0; i < restored->subscription->partitions; i++)
	{
		CqrsCursor	cursor;

		if (!restored->partitions[i].restored)
			continue;
		(void) cqrs_cursor_read(restored->subscription->subscription_id, i,
								adoption->snapshot, &cursor);
		cursor.native = true;
		cursor.snapshot = snapshot;
		cursor.tick_id = cqrs_tick_next_id();
		if (restored->subscription->exactly_once)
			cqrs_cursor_draw_producer(&cursor);
		cqrs_cursor_append(&cursor);
	}
}
