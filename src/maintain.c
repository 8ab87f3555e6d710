/*-------------------------------------------------------------------------
 *
 * maintain.c
 *	  Has the log empty itself: rotates and truncates the segments of topics,
 *	  and suspends subscriptions that keep too much of it. By the manager, or
 *	  by hand.
 *
 * Protocol
 *
 * 1. A topic goes on to its next segment if that is empty, and the current one
 *	  is not, and is large or old enough; but not before half the retention
 *	  has passed, so that three segments are enough for it. An emitter may
 *	  have a stale idea of which segment is the current one. That is harmless:
 *	  who reads, reads all of them, and who truncates looks at what is there.
 * 2. A segment other than the current one is truncated when nothing holds it
 *	  (see retention.c). First this is looked at without locks. Then, in this
 *	  order, none of them waited for:
 *	  a) the lock on the topic, against which subscribing and seeking lock: who
 *		 decides sees every cursor there is or is about to be; and the rows of
 *		 suspended subscriptions: none of them is being resumed;
 *	  b) the segment's lock (see segment.c): who has written to it has ended;
 *	  c) a snapshot. So it shows all of these cursors and events. It is looked
 *		 again whether anything holds the segment. A snapshot from before (a)
 *		 or (b) would miss a cursor, or an event, and lose the event.
 *	  d) TRUNCATE, and commit.
 * 3. Subscriptions past their limits are suspended, in a transaction of its
 *	  own. Only then may their segments be truncated, for all to see why.
 *
 * TRUNCATE is not MVCC-safe: a transaction with an older snapshot, if it has
 * not read the segment yet (else its lock holds us off), finds it empty. It
 * misses only what every subscription had got: cqrs_receive() and the workers
 * read cursors and events with the latest snapshot.
 *
 * The manager's way
 *
 * It does one such step at a time, in a transaction of its own, and goes on
 * with its other work in between. Passes over the topics begin at least
 * PASS_INTERVAL apart. A pass looks only at topics where there may be something
 * to do: at a time known before (a retention ends, a segment gets old), or, if
 * anything was emitted anywhere, at those that were not looked at for a while;
 * where nothing changes, for ever longer. So a thousand idle topics cost a walk
 * over a thousand entries in memory. An error in one topic is logged, and the
 * others go on.
 *
 *-------------------------------------------------------------------------
 */
#include "cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "debug_point.h"
#include "maintain.h"
#include "registry.h"
#include "retention.h"
#include "segment.h"
#include "tick.h"

/* Passes begin so far apart, in milliseconds. */
#define PASS_INTERVAL	1000

/* A topic where nothing changes is looked at this seldom at most; the same. */
#define LONGEST_WAIT	8000

/* ... and one that cannot be looked at, because of an error. */
#define ERROR_WAIT		60000

typedef enum Action
{
	ACTION_NONE,
	ACTION_ROTATED,
	ACTION_TRUNCATED
} Action;

/* What was found and done in a topic. */
typedef struct Step
{
	Action		action;
	int			segment;		/* made the current one, or truncated */
	int64		sizes[CQRS_SEGMENTS];	/* as found */
	CqrsHold	holds[CQRS_SEGMENTS];	/* on those that are not truncated */
	TimestampTz rotate_at;		/* not before; DT_NOEND: nothing to rotate */
} Step;

/* A topic, as the manager remembers it. */
typedef struct Watch
{
	int32		topic_id;		/* hash key */
	int64		retention;		/* as it was */
	int64		sizes[CQRS_SEGMENTS];	/* as they were */
	TimestampTz look_at;		/* then, whatever happens */
	TimestampTz may_look_at;	/* then, if anything was emitted ... */
	int64		position;		/* ... since this one */
	int			wait;			/* between looks, in milliseconds */
	uint64		pass;			/* in which it was registered */
	bool		known;			/* it was looked at */
} Watch;

/* A part of the manager's work. */
typedef struct Work
{
	int32		topic_id;
	Action		action;			/* what was done */
} Work;

/* The manager's memory. NULL: not in a manager. */
static MemoryContext maintain_context = NULL;
static HTAB *watches = NULL;

/* The pass underway, or the last one. */
static List *todo = NIL;		/* topics still to be looked at */
static uint64 pass = 0;
static TimestampTz pass_began = 0;
static int64 pass_position = 0;
static int	pass_segment_age = 0;
static int	pass_segment_size = 0;

/* When there is something to do for a pass, if nothing is emitted. */
static TimestampTz wake_at = DT_NOEND;

/* What is being maintained, for error_callback(). */
static char context_topic[NAMEDATALEN];

static long sooner(long wait, TimestampTz now, TimestampTz then);
static bool in_transaction(void (*part) (Work *work), Work *work);
static void begin_pass(Work *work);
static void maintain_topic(Work *work);
static void note_step(Watch *watch, const Step *step);
static void note_failure(int32 topic_id);
static void end_pass(Work *work);
static int64 known_size(const CqrsTopic *topic, int segment);
static void maintain_by_hand(CqrsTopic *topic, Tuplestorestate *store,
							 TupleDesc desc);
static void put_row(Tuplestorestate *store, TupleDesc desc, const char *topic,
					const char *action, int segment, const char *detail,
					int pid);
static void take_step(CqrsTopic *topic, Step *step);
static bool truncate_segment(int32 topic_id, int segment, CqrsHold *hold);
static bool rotate_topic(const CqrsTopic *topic);
static void error_callback(void *arg);

PG_FUNCTION_INFO_V1(cqrs_maintain);

/*
 * cqrs_maintain(topic)
 */
Datum
cqrs_maintain(PG_FUNCTION_ARGS)
{
	CqrsTopic  *topic = NULL;
	List	   *topics = NIL;
	Tuplestorestate *store;
	TupleDesc	desc;
	ListCell   *lc;

	cqrs_require_writable("cqrs_maintain()");
	if (IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cqrs_maintain() cannot run inside a transaction block"),
				 errdetail("It would keep everybody from reading the tables that it truncates until the transaction ends."),
				 errhint("Call it in a transaction of its own (autocommit).")));

	if (!PG_ARGISNULL(0))
	{
		topic = cqrs_topic_get(text_to_cstring(PG_GETARG_TEXT_PP(0)));
		topics = list_make1(topic);
	}
	else
	{
		HASH_SEQ_STATUS status;
		CqrsTopic  *any;

		/* Not during the walk: an error would leave it unfinished. */
		cqrs_registry_topics(&status);
		while ((any = hash_seq_search(&status)) != NULL)
			topics = lappend(topics, any);
	}

	store = cqrs_srf_begin(fcinfo, &desc);
	foreach(lc, cqrs_limits_apply(topic, cqrs_segment_bytes))
		put_row(store, desc, NULL, "suspended", -1, (char *) lfirst(lc), 0);
	foreach(lc, topics)
		maintain_by_hand((CqrsTopic *) lfirst(lc), store, desc);
	return (Datum) 0;
}

/*
 * The manager calls this in each of its cycles, outside a transaction: does
 * the next step, if there is any. Returns how long to wait then, in
 * milliseconds, if it is wait (-1: until woken) for what else there is to do.
 */
long
cqrs_maintain_next(long wait)
{
	TimestampTz now = GetCurrentTimestamp();

	if (maintain_context == NULL)
	{
		HASHCTL		ctl;

		maintain_context = AllocSetContextCreate(TopMemoryContext,
												 "cqrs maintenance",
												 ALLOCSET_DEFAULT_SIZES);
		ctl.keysize = sizeof(int32);
		ctl.entrysize = sizeof(Watch);
		ctl.hcxt = maintain_context;
		watches = hash_create("cqrs topics watched", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	if (todo == NIL &&
		!TimestampDifferenceExceeds(pass_began, now, PASS_INTERVAL))
	{
		/* What woke us may have been emitted after the last pass began. */
		return sooner(wait, now,
					  TimestampTzPlusMilliseconds(pass_began, PASS_INTERVAL));
	}
	if (todo == NIL)
	{
		Work		work = {0, ACTION_NONE};

		pass_began = now;
		wake_at = DT_NOEND;
		(void) in_transaction(begin_pass, &work);
		if (todo == NIL)
			(void) in_transaction(end_pass, &work);
	}
	while (todo != NIL)
	{
		Work		work = {linitial_int(todo), ACTION_NONE};

		if (!in_transaction(maintain_topic, &work))
			note_failure(work.topic_id);

		/* Where there was something to do, there may be more. */
		if (work.action != ACTION_NONE)
			return 0;
		todo = list_delete_first(todo);
		if (todo == NIL)
			(void) in_transaction(end_pass, &work);
	}

	if (wake_at == DT_NOEND)
		return wait;
	return sooner(wait, GetCurrentTimestamp(),
				  Max(wake_at, TimestampTzPlusMilliseconds(pass_began,
														   PASS_INTERVAL)));
}

/*
 * The shorter one of wait (in milliseconds; -1: for ever) and the time until
 * then.
 */
static long
sooner(long wait, TimestampTz now, TimestampTz then)
{
	long		until = TimestampDifferenceMilliseconds(now, then);

	return wait < 0 ? until : Min(wait, until);
}

/*
 * Run a part of the manager's work in a transaction of its own. An error is
 * logged, and only ends this part. Returns whether there was none.
 */
static bool
in_transaction(void (*part) (Work *work), Work *work)
{
	ErrorContextCallback callback;
	volatile bool done = false;

	context_topic[0] = '\0';
	callback.callback = error_callback;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	PG_TRY();
	{
		error_context_stack = &callback;
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());

		/* If the extension is gone, or another, so is all there was to do. */
		if (OidIsValid(cqrs_extension_lock()) && cqrs_registry_usable())
			part(work);
		PopActiveSnapshot();
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
		work->action = ACTION_NONE;
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	pgstat_report_stat(false);
	return done;
}

/*
 * List the topics to look at.
 */
static void
begin_pass(Work *work)
{
	bool		resized = pass_segment_age != cqrs_segment_age ||
	pass_segment_size != cqrs_segment_size;
	HASH_SEQ_STATUS status;
	CqrsTopic  *topic;
	Watch	   *watch;
	MemoryContext oldcontext;

	pass++;
	pass_position = cqrs_last_position();
	pass_segment_age = cqrs_segment_age;
	pass_segment_size = cqrs_segment_size;

	oldcontext = MemoryContextSwitchTo(maintain_context);
	cqrs_registry_topics(&status);
	while ((topic = hash_seq_search(&status)) != NULL)
	{
		bool		found;

		watch = hash_search(watches, &topic->topic_id, HASH_ENTER, &found);
		if (!found || resized || watch->retention != topic->retention)
		{
			watch->retention = topic->retention;
			watch->look_at = pass_began;
			watch->wait = PASS_INTERVAL;
		}
		if (!found)
			watch->known = false;
		watch->pass = pass;
		if (watch->look_at <= pass_began ||
			(watch->may_look_at <= pass_began &&
			 watch->position != pass_position))
			todo = lappend_int(todo, topic->topic_id);
	}
	MemoryContextSwitchTo(oldcontext);

	hash_seq_init(&status, watches);
	while ((watch = hash_seq_search(&status)) != NULL)
		if (watch->pass != pass)
			(void) hash_search(watches, &watch->topic_id, HASH_REMOVE, NULL);
}

/*
 * Do a step in a topic, if there is one to do.
 */
static void
maintain_topic(Work *work)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(work->topic_id);
	Watch	   *watch = hash_search(watches, &work->topic_id, HASH_FIND, NULL);
	Step		step;

	if (topic == NULL || watch == NULL)
		return;
	strlcpy(context_topic, topic->name, NAMEDATALEN);
	take_step(topic, &step);
	work->action = step.action;
	if (step.action == ACTION_NONE)
		note_step(watch, &step);
	else
		watch->wait = PASS_INTERVAL;
}

/*
 * Note when to look at a topic again, after there was nothing to do.
 */
static void
note_step(Watch *watch, const Step *step)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;
	int			i;

	if (!watch->known ||
		memcmp(watch->sizes, step->sizes, sizeof(step->sizes)) != 0)
		watch->wait = PASS_INTERVAL;
	else
		watch->wait = Min(2 * watch->wait, LONGEST_WAIT);
	next = TimestampTzPlusMilliseconds(now, watch->wait);

	memcpy(watch->sizes, step->sizes, sizeof(step->sizes));
	watch->known = true;
	watch->position = pass_position;
	watch->may_look_at = next;
	watch->look_at = step->rotate_at > now ? step->rotate_at : next;
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		const CqrsHold *hold = &step->holds[i];

		if (hold->holder != CQRS_HELD_BY_NOTHING)
			watch->look_at = Min(watch->look_at,
								 hold->until > now ? hold->until : next);
	}
}

/*
 * The same, after an error.
 */
static void
note_failure(int32 topic_id)
{
	Watch	   *watch = hash_search(watches, &topic_id, HASH_FIND, NULL);

	if (watch == NULL)
		return;
	watch->look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												 ERROR_WAIT);
	watch->may_look_at = watch->look_at;
}

/*
 * Apply the limits of subscriptions, and find out when the next pass is needed.
 */
static void
end_pass(Work *work)
{
	HASH_SEQ_STATUS status;
	Watch	   *watch;
	CqrsSubscription *subscription;

	hash_seq_init(&status, watches);
	while ((watch = hash_seq_search(&status)) != NULL)
	{
		wake_at = Min(wake_at, watch->look_at);
		if (watch->position != pass_position)
			wake_at = Min(wake_at, watch->may_look_at);
	}
	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		if (subscription->max_retained_age > 0 &&
			subscription->state != CQRS_SUBSCRIPTION_SUSPENDED)
			wake_at = Min(wake_at,
						  TimestampTzPlusMilliseconds(pass_began,
													  LONGEST_WAIT));
	if (cqrs_limits_apply(NULL, known_size) != NIL)
		wake_at = pass_began;
}

/*
 * The size of a segment as it was last looked at.
 */
static int64
known_size(const CqrsTopic *topic, int segment)
{
	Watch	   *watch = hash_search(watches, &topic->topic_id, HASH_FIND, NULL);

	return watch && watch->known ? watch->sizes[segment] : 0;
}

/*
 * Do all there is to do in a topic, and tell what was done and what was not.
 */
static void
maintain_by_hand(CqrsTopic *topic, Tuplestorestate *store, TupleDesc desc)
{
	int32		topic_id = topic->topic_id;
	Step		step;
	int			i;

	/* A step changes the registry. Each empties a segment, or goes on to one. */
	while ((topic = cqrs_registry_topic_by_id(topic_id)) != NULL)
	{
		take_step(topic, &step);
		if (step.action == ACTION_NONE)
			break;
		put_row(store, desc, topic->name,
				step.action == ACTION_ROTATED ? "rotated" : "truncated",
				step.segment, NULL, 0);
	}
	for (i = 0; topic != NULL && i < CQRS_SEGMENTS; i++)
	{
		const CqrsHold *hold = &step.holds[i];

		if (hold->holder != CQRS_HELD_BY_NOTHING)
			put_row(store, desc, topic->name, "held", i,
					cqrs_hold_describe(hold), hold->pid);
	}
}

/*
 * A row of cqrs_maintain()'s result; segment -1 and pid 0 are NULL.
 */
static void
put_row(Tuplestorestate *store, TupleDesc desc, const char *topic,
		const char *action, int segment, const char *detail, int pid)
{
	Datum		values[5] = {0};
	bool		nulls[5];

	nulls[0] = topic == NULL;
	if (topic != NULL)
		values[0] = CStringGetTextDatum(topic);
	nulls[1] = false;
	values[1] = CStringGetTextDatum(action);
	nulls[2] = segment < 0;
	values[2] = Int32GetDatum(segment);
	nulls[3] = detail == NULL;
	if (detail != NULL)
		values[3] = CStringGetTextDatum(detail);
	nulls[4] = pid == 0;
	values[4] = Int32GetDatum(pid);
	tuplestore_putvalues(store, desc, values, nulls);
}

/*
 * Do one step in a topic, if there is one to do: truncate a segment, or rotate.
 * Locks stay until the end of the transaction only if something was done, or
 * nearly. The topic may be gone afterwards.
 */
static void
take_step(CqrsTopic *topic, Step *step)
{
	int32		topic_id = topic->topic_id;
	TimestampTz now = GetCurrentTimestamp();
	int			current;
	int			next;
	int			i;

	memset(step, 0, sizeof(*step));
	step->rotate_at = DT_NOEND;
	if (!cqrs_segments_lock(topic))
	{
		/* It is perhaps being dropped. */
		step->holds[topic->current_segment].holder = CQRS_HELD_BY_CHANGE;
		return;
	}
	topic = cqrs_registry_topic_by_id(topic_id);
	if (topic == NULL)
		return;
	current = topic->current_segment;
	next = (current + 1) % CQRS_SEGMENTS;
	for (i = 0; i < CQRS_SEGMENTS; i++)
		step->sizes[i] = cqrs_segment_bytes(topic, i);

	/* The oldest first. */
	for (i = 1; i < CQRS_SEGMENTS; i++)
	{
		int			segment = (current + i) % CQRS_SEGMENTS;

		if (step->sizes[segment] == 0)
			continue;
		cqrs_segment_hold(topic, segment, now, &step->holds[segment]);
		if (step->holds[segment].holder == CQRS_HELD_BY_NOTHING &&
			truncate_segment(topic_id, segment, &step->holds[segment]))
		{
			step->action = ACTION_TRUNCATED;
			step->segment = segment;
			break;
		}
	}

	if (step->action == ACTION_NONE && step->sizes[current] > 0)
	{
		int64		wait = topic->retention / 2;

		if (step->sizes[current] / 1024 < cqrs_segment_size)
			wait = Max(wait, cqrs_segment_age);
		step->rotate_at =
			TimestampTzPlusMilliseconds(topic->opened_at[current], wait);
		if (step->rotate_at <= now && step->sizes[next] == 0 &&
			rotate_topic(topic))
		{
			step->action = ACTION_ROTATED;
			step->segment = next;
		}
	}
	cqrs_segments_unlock(topic);
}

/*
 * Truncate a segment that seemed to be held by nothing, or say what holds it
 * now. Steps (a) to (d) of the protocol.
 */
static bool
truncate_segment(int32 topic_id, int segment, CqrsHold *hold)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(topic_id);
	CqrsMissed *missed;
	Snapshot	snapshot;

	if (topic == NULL)
		return false;
	missed = cqrs_missed_count(topic, segment);
	CQRS_DEBUG_POINT("truncate_before_lock");

	hold->holder = CQRS_HELD_BY_CHANGE;
	if (!cqrs_object_lock(CQRS_REL_TOPIC, topic_id, 0, ExclusiveLock, false))
	{
		LOCKTAG		tag;

		cqrs_object_tag(&tag, CQRS_REL_TOPIC, topic_id, 0);
		(void) cqrs_lock_holder(&tag, ExclusiveLock, &hold->pid);
		return false;
	}
	topic = cqrs_registry_topic_by_id(topic_id);
	if (topic == NULL || topic->current_segment == segment ||
		(missed != NULL && !cqrs_missed_lock(missed)))
		return false;

	if (!cqrs_segment_lock(topic, segment))
	{
		/* Or else somebody waits for the lock, or was faster, and is done. */
		if (cqrs_segment_in_use(topic, segment, &hold->pid))
			hold->holder = CQRS_HELD_BY_LOCK;
		return false;
	}

	CQRS_DEBUG_POINT("truncate_after_lock");
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	cqrs_retention_hold(topic, segment, GetCurrentTimestamp(), hold);
	if (hold->holder == CQRS_HELD_BY_NOTHING)
		cqrs_subscription_hold(topic, segment, snapshot, hold);
	if (hold->holder == CQRS_HELD_BY_NOTHING &&
		!cqrs_missed_record(missed, topic, snapshot))
		hold->holder = CQRS_HELD_BY_CHANGE;
	UnregisterSnapshot(snapshot);
	if (hold->holder != CQRS_HELD_BY_NOTHING)
		return false;

	cqrs_segment_truncate(topic, segment);
	ereport(DEBUG1,
			(errmsg_internal("truncated segment %d of topic \"%s\"", segment,
							 topic->name)));
	return true;
}

/*
 * Make the next segment the current one. Returns false if the topic is being
 * changed by somebody else.
 */
static bool
rotate_topic(const CqrsTopic *topic)
{
	Oid			types[3] = {INT4OID, INT4OID, INT4OID};
	Datum		values[3];
	CqrsAdmin	admin;
	bool		done;

	if (!ConditionalLockRelationOid(cqrs_relation_oid(CQRS_REL_TOPIC),
									RowExclusiveLock))
		return false;
	values[0] = Int32GetDatum(topic->topic_id);
	values[1] = Int32GetDatum(topic->current_segment);
	values[2] = Int32GetDatum((topic->current_segment + 1) % CQRS_SEGMENTS);
	cqrs_admin_begin(&admin);
	done = cqrs_admin_execute("UPDATE cqrs.topic t"
							  " SET current_segment = $3, opened_at[$3 + 1] = pg_catalog.clock_timestamp()"
							  " FROM (SELECT topic_id FROM cqrs.topic"
							  "		  WHERE topic_id = $1 AND current_segment = $2"
							  "		  FOR NO KEY UPDATE SKIP LOCKED) l"
							  " WHERE t.topic_id = l.topic_id",
							  3, types, values, NULL) > 0;
	cqrs_admin_end(&admin);
	if (done)
		ereport(DEBUG1,
				(errmsg_internal("topic \"%s\" goes on in segment %d",
								 topic->name, DatumGetInt32(values[2]))));
	return done;
}

static void
error_callback(void *arg)
{
	if (context_topic[0] != '\0')
		errcontext("maintaining topic \"%s\"", context_topic);
	else
		errcontext("maintaining topics");
}
