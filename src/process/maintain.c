/*-------------------------------------------------------------------------
 *
 * maintain.c
 *	  Keeps the log from growing: rotates and truncates segments (see
 *	  rotation.c), and suspends subscriptions that keep too much (see
 *	  retention.c). By the manager, or by hand.
 *
 * In the manager
 *
 * It does one step at a time, in a transaction of its own, and goes on with
 * its other work in between. Passes over the topics begin at least
 * PASS_INTERVAL apart. A pass looks only at topics where there may be something
 * to do: at a time known before (a retention ends, a segment gets old) or, if
 * anything was emitted anywhere, when a topic was not looked at for a while,
 * which is longer the less changes there. So a thousand idle topics cost a walk
 * over a thousand entries in memory. An error in one topic is logged, and the
 * others go on. Times are steady ones (see clock.c).
 *
 * Subscriptions past their limits are suspended at the end of a pass, in a
 * transaction of its own. Only after that may their segments be truncated, so
 * that all can see why. Then idempotency keys are looked at, if any may have
 * got too old since the last time (see idempotency.c).
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/hash.h"
#include "extension/catalog.h"
#include "inbox/message_turn.h"
#include "log/position.h"
#include "log/retention.h"
#include "log/rotation.h"
#include "log/segment.h"
#include "mediator/idempotency.h"
#include "process/maintain.h"
#include "registry/registry.h"
#include "saga/keep.h"
#include "shared/clock.h"

/* How far apart passes begin, in milliseconds. */
#define PASS_INTERVAL	1000

/* The longest wait between looks at a topic where nothing changes ... */
#define LONGEST_WAIT	8000

/* ... and one that cannot be looked at, because of an error. */
#define ERROR_WAIT		60000

/* How long not to look for what is kept if there is none; milliseconds. */
#define NOTHING_KEPT_WAIT	(3600 * INT64CONST(1000))

/* What the manager remembers of a topic. */
typedef struct Watch
{
	int32		topic_id;		/* hash key */
	int64		retention;		/* when last looked at ... */
	int64		sizes[CQRS_SEGMENTS];	/* ... and its segments' sizes */
	TimestampTz look_at;		/* look then, whatever happens */
	TimestampTz may_look_at;	/* look then, if anything was emitted ... */
	int64		position;		/* ... after this position */
	int			wait;			/* between looks, in milliseconds */
	TimestampTz due_at;			/* there is something to do then */
	bool		held;			/* ... or else when somebody lets go of it */
	uint64		pass;			/* the last one in which it was registered */
	bool		known;			/* it was looked at */
} Watch;

/* A part of the manager's work. */
typedef struct Work
{
	int32		topic_id;
	CqrsStepAction action;		/* what was done */
} Work;

/* The manager's memory. NULL: not in a manager. */
static MemoryContext maintain_context = NULL;
static HTAB *watches = NULL;

/* What is in tables that are written in turn. */
typedef struct Kept
{
	const char *what;
	const int  *retention;		/* the setting */
	CqrsTableState (*truncate) (int segment, TimestampTz *look_at,
								int *pid);
	TimestampTz look_at;		/* when to look at it again ... */
	int			kept_for;		/* ... and the setting the last time */
} Kept;

static Kept kept[] = {
	{"idempotency keys", &cqrs_idempotency_retention, cqrs_idempotency_truncate},
	{"sagas", &cqrs_saga_retention, cqrs_saga_truncate},
	{"message ids", &cqrs_consumed_retention, cqrs_message_ids_truncate},
};

/* The pass underway, or the last one. */
static List *todo = NIL;		/* topics still to be looked at */
static uint64 pass = 0;
static TimestampTz pass_began = 0;
static int64 pass_position = 0;
static int	pass_segment_age = 0;
static int	pass_segment_size = 0;

/* When there is something to do for a pass, even if nothing is emitted. */
static TimestampTz wake_at = DT_NOEND;

/* When there is something to do, if nobody emits or lets go of anything. */
static TimestampTz due_at = DT_NOEND;
static bool any_held = false;	/* or not looked at since somebody emitted */

/* Subscriptions whose limits raised an error, and are left alone until ... */
static List *failed_limits = NIL;
static TimestampTz failed_limits_until = 0;

/* The subscription whose limits are being looked at, or 0. */
static int32 limit_of = 0;

/* What is being maintained, for error_callback(). */
static char context_topic[NAMEDATALEN];
static Kept *context_kept = NULL;

static bool in_transaction(void (*part) (void *work), Work *work);
static void begin_pass(void *arg);
static void maintain_topic(void *arg);
static void note_step(Watch *watch, const CqrsStep *step);
static void note_failure(int32 topic_id);
static void finish_pass(void);
static void end_pass(void *arg);
static void maintain_kept(void *arg);
static int64 known_size(const CqrsTopic *topic, int segment);
static void maintain_by_hand(CqrsTopic *topic, Tuplestorestate *store,
							 TupleDesc desc);
static void maintain_kept_by_hand(const Kept *one, Tuplestorestate *store,
								  TupleDesc desc);
static void put_row(Tuplestorestate *store, TupleDesc desc, const char *topic,
					const char *action, int segment, const char *detail,
					int pid);
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
	int			i;

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
		topics = cqrs_registry_topic_list();

	store = cqrs_srf_begin(fcinfo, &desc);
	foreach(lc, cqrs_limits_apply(topic, cqrs_segment_bytes, NIL, NULL))
		put_row(store, desc, NULL, "suspended", -1, (char *) lfirst(lc), 0);
	foreach(lc, topics)
		maintain_by_hand((CqrsTopic *) lfirst(lc), store, desc);
	for (i = 0; topic == NULL && i < lengthof(kept); i++)
		maintain_kept_by_hand(&kept[i], store, desc);
	return (Datum) 0;
}

/*
 * Do the next step, if there is any; the manager calls this in each of its
 * cycles, outside a transaction. Returns how long to wait then, in
 * milliseconds: no longer than wait (-1: until woken), for what else there is
 * to do.
 */
long
cqrs_maintain_next(long wait)
{
	TimestampTz now = cqrs_steady_now();

	if (maintain_context == NULL)
	{
		maintain_context = AllocSetContextCreate(TopMemoryContext,
												 "cqrs maintenance",
												 ALLOCSET_DEFAULT_SIZES);
		watches = cqrs_hash_create("cqrs topics watched", sizeof(int32),
								   sizeof(Watch), maintain_context);
	}

	if (todo == NIL &&
		!TimestampDifferenceExceeds(pass_began, now, PASS_INTERVAL))
	{
		/*
		 * The event that woke us may have been emitted after the last pass
		 * began.
		 */
		return cqrs_sooner(wait, now,
						   TimestampTzPlusMilliseconds(pass_began, PASS_INTERVAL));
	}
	if (todo == NIL)
	{
		Work		work = {0, CQRS_STEP_NONE};

		pass_began = now;
		wake_at = DT_NOEND;
		(void) in_transaction(begin_pass, &work);
		if (todo == NIL)
			finish_pass();
	}
	while (todo != NIL)
	{
		Work		work = {linitial_int(todo), CQRS_STEP_NONE};

		if (!in_transaction(maintain_topic, &work))
			note_failure(work.topic_id);

		/* If there was something to do, there may be more. */
		if (work.action != CQRS_STEP_NONE)
			return 0;
		todo = list_delete_first(todo);
		if (todo == NIL)
			finish_pass();
	}

	if (wake_at == DT_NOEND)
		return wait;
	return cqrs_sooner(wait, cqrs_steady_now(),
					   Max(wake_at, TimestampTzPlusMilliseconds(pass_began,
																PASS_INTERVAL)));
}

/*
 * When there will be something to do if nobody emits; called in a transaction by
 * a manager that is about to end. *polled gets whether there may be at any time.
 */
TimestampTz
cqrs_maintain_due(bool *polled)
{
	*polled = any_held || pass == 0 || pass_position != cqrs_last_position();
	return due_at;
}

/*
 * Run a part of the manager's work. Returns whether there was no error.
 */
static bool
in_transaction(void (*part) (void *work), Work *work)
{
	context_topic[0] = '\0';
	if (cqrs_registry_run_guarded(part, work, error_callback))
		return true;
	work->action = CQRS_STEP_NONE;
	return false;
}

static void
begin_pass(void *arg)
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
		{
			watch->may_look_at = pass_began;
			watch->position = 0;
			watch->known = false;
			watch->due_at = DT_NOEND;
			watch->held = false;
		}
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

static void
maintain_topic(void *arg)
{
	Work	   *work = (Work *) arg;
	CqrsTopic  *topic = cqrs_registry_topic_by_id(work->topic_id);
	Watch	   *watch = hash_search(watches, &work->topic_id, HASH_FIND, NULL);
	CqrsStep	step;

	if (topic == NULL || watch == NULL)
		return;
	strlcpy(context_topic, topic->name, NAMEDATALEN);
	cqrs_topic_step(topic, &step);
	work->action = step.action;
	if (step.action == CQRS_STEP_NONE)
		note_step(watch, &step);
	else
		watch->wait = PASS_INTERVAL;
}

/*
 * Note when to look at a topic again, after there was nothing to do.
 */
static void
note_step(Watch *watch, const CqrsStep *step)
{
	TimestampTz now = cqrs_steady_now();
	TimestampTz next;
	TimestampTz rotate_at = cqrs_steady_from_wall(step->rotate_at);
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
	watch->look_at = rotate_at > now ? rotate_at : next;
	watch->due_at = rotate_at > now ? rotate_at : DT_NOEND;
	watch->held = false;
	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		const CqrsHold *hold = &step->holds[i];
		TimestampTz until = cqrs_steady_deadline(hold->until, 0);

		if (hold->holder != CQRS_HELD_BY_NOTHING)
		{
			watch->look_at = Min(watch->look_at, until > now ? until : next);
			if (until > now)
				watch->due_at = Min(watch->due_at, until);
			else
				watch->held = true;
		}
	}
}

/*
 * Note when to look at a topic again after an error.
 */
static void
note_failure(int32 topic_id)
{
	Watch	   *watch = hash_search(watches, &topic_id, HASH_FIND, NULL);

	if (watch == NULL)
		return;
	watch->look_at = TimestampTzPlusMilliseconds(cqrs_steady_now(),
												 ERROR_WAIT);
	watch->may_look_at = watch->look_at;
	watch->due_at = watch->look_at;
}

static void
finish_pass(void)
{
	Work		work = {0, CQRS_STEP_NONE};
	int			i;

	/*
	 * Try again without the subscription that raised an error, so that it
	 * concerns no other.
	 */
	if (failed_limits_until <= pass_began)
	{
		list_free(failed_limits);
		failed_limits = NIL;
	}
	limit_of = 0;
	while (!in_transaction(end_pass, &work) && limit_of != 0)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(maintain_context);

		failed_limits = lappend_int(failed_limits, limit_of);
		MemoryContextSwitchTo(oldcontext);
		failed_limits_until = TimestampTzPlusMilliseconds(pass_began, ERROR_WAIT);
		limit_of = 0;
	}
	for (i = 0; i < lengthof(kept); i++)
	{
		if (kept[i].look_at <= pass_began ||
			kept[i].kept_for != *kept[i].retention)
		{
			kept[i].kept_for = *kept[i].retention;
			kept[i].look_at = TimestampTzPlusMilliseconds(pass_began, ERROR_WAIT);
			context_kept = &kept[i];
			(void) in_transaction(maintain_kept, &work);
			context_kept = NULL;
		}
		wake_at = Min(wake_at, kept[i].look_at);
		due_at = Min(due_at, kept[i].look_at);
	}
}

/*
 * Apply the limits of subscriptions, and find out when the next pass is needed.
 */
static void
end_pass(void *arg)
{
	HASH_SEQ_STATUS status;
	Watch	   *watch;
	CqrsSubscription *subscription;

	due_at = DT_NOEND;
	any_held = false;
	hash_seq_init(&status, watches);
	while ((watch = hash_seq_search(&status)) != NULL)
	{
		due_at = Min(due_at, watch->due_at);
		any_held |= watch->held;
		wake_at = Min(wake_at, watch->look_at);
		if (watch->position != pass_position)
		{
			any_held = true;
			wake_at = Min(wake_at, watch->may_look_at);
		}
	}
	cqrs_registry_subscriptions(&status);
	while ((subscription = hash_seq_search(&status)) != NULL)
		if (subscription->max_retained_age > 0 &&
			subscription->state != CQRS_SUBSCRIPTION_SUSPENDED)
		{
			any_held = true;
			wake_at = Min(wake_at,
						  TimestampTzPlusMilliseconds(pass_began,
													  LONGEST_WAIT));
		}
	if (cqrs_limits_apply(NULL, known_size, failed_limits, &limit_of) != NIL)
		wake_at = pass_began;
}

/*
 * Truncate what is old of context_kept, and note when there may be more to do.
 */
static void
maintain_kept(void *arg)
{
	Kept	   *one = context_kept;
	TimestampTz look_at = DT_NOEND;
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		TimestampTz next;
		int			pid;

		if (one->truncate(i, &next, &pid) == CQRS_TABLE_LOCKED)
			next = TimestampTzPlusMilliseconds(pass_began, LONGEST_WAIT);
		else
			next = cqrs_steady_from_wall(next);
		look_at = Min(look_at, next);
	}

	/* What is new is not announced. */
	if (look_at == DT_NOEND)
		look_at = TimestampTzPlusMilliseconds(pass_began,
											  Max(*one->retention * INT64CONST(1000),
												  NOTHING_KEPT_WAIT));
	one->look_at = look_at;
}

/*
 * The size of a segment when it was last looked at.
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
	CqrsStep	step;
	int			i;

	/*
	 * Each step changes the registry, and empties a segment or goes on to
	 * one.
	 */
	while ((topic = cqrs_registry_topic_by_id(topic_id)) != NULL)
	{
		cqrs_topic_step(topic, &step);
		if (step.action == CQRS_STEP_NONE)
			break;
		put_row(store, desc, topic->name,
				step.action == CQRS_STEP_ROTATED ? "rotated" : "truncated",
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
 * Truncate what is old, and tell what was done, and what was not because of a lock.
 */
static void
maintain_kept_by_hand(const Kept *one, Tuplestorestate *store, TupleDesc desc)
{
	int			i;

	for (i = 0; i < CQRS_SEGMENTS; i++)
	{
		TimestampTz look_at;
		int			pid;
		CqrsTableState state = one->truncate(i, &look_at, &pid);

		if (state != CQRS_TABLE_KEPT)
			put_row(store, desc, NULL,
					state == CQRS_TABLE_TRUNCATED ? "truncated" : "held", i,
					one->what, pid);
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

static void
error_callback(void *arg)
{
	if (context_topic[0] != '\0')
		errcontext("maintaining topic \"%s\"", context_topic);
	else if (context_kept != NULL)
		errcontext("maintaining %s", context_kept->what);
	else
		errcontext("maintaining topics");
}
