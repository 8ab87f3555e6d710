/*-------------------------------------------------------------------------
 *
 * operation.c
 *	  Operating subscriptions: pause, resume, seek, retry, wait.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "base/interval.h"
#include "control/dead_letter.h"
#include "control/operation.h"
#include "delivery/broker_sent.h"
#include "delivery/underway.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/position.h"
#include "log/tick.h"
#include "log/window_scan.h"
#include "registry/registry.h"
#include "retry/failure.h"
#include "retry/parked.h"
#include "shared/clock.h"
#include "shared/delivered.h"
#include "shared/shmem.h"
#include "subscription/epoch.h"
#include "subscription/subscription.h"

static bool read_native(const CqrsSubscription *subscription, int partition,
						Snapshot snapshot, CqrsCursor *cursor);
static bool set_state(const CqrsSubscription *subscription,
					  const char *state, const char *reason, int64 *missed);
static void settle_sent(CqrsSubscription *subscription, const char *sent);
static void seek(CqrsSubscription *subscription, bool latest,
				 const TimestampTz *time);
static void start_since(CqrsCursor *cursor, const CqrsSubscription *subscription,
						TimestampTz time);
static bool has_reached(const CqrsSubscription *subscription,
						const CqrsSnapshot *target, int64 last,
						TimestampTz since, Snapshot snapshot);
static bool is_parked(const CqrsCursor *cursor, int64 last, TimestampTz since,
					  Snapshot snapshot);
static bool has_given_up(int32 subscription_id, int64 last, TimestampTz since,
						 Snapshot snapshot);
static void tell_why(CqrsSubscription *subscription);

PG_FUNCTION_INFO_V1(cqrs_pause);
PG_FUNCTION_INFO_V1(cqrs_resume);
PG_FUNCTION_INFO_V1(cqrs_seek);
PG_FUNCTION_INFO_V1(cqrs_seek_time);
PG_FUNCTION_INFO_V1(cqrs_retry);
PG_FUNCTION_INFO_V1(cqrs_retry_all);
PG_FUNCTION_INFO_V1(cqrs_wait);

/*
 * cqrs_pause(subscription)
 */
Datum
cqrs_pause(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo, "cqrs_pause()");
	int64		missed;

	/* It is stopped already, and what it misses must stay known. */
	if (subscription->state == CQRS_SUBSCRIPTION_SUSPENDED)
	{
		ereport(NOTICE,
				(errmsg("subscription \"%s\" is suspended",
						subscription->name),
				 errhint("Use cqrs_resume() first to have its events kept.")));
		PG_RETURN_BOOL(false);
	}

	/* Once we have the locks, no batch is under way. */
	subscription = cqrs_subscription_lock_all(subscription);
	PG_RETURN_BOOL(set_state(subscription, "paused", "by cqrs_pause()",
							 &missed));
}

/*
 * cqrs_resume(subscription, sent)
 */
Datum
cqrs_resume(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo, "cqrs_resume()");
	int64		missed;

	if (!PG_ARGISNULL(1))
		settle_sent(subscription, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	(void) set_state(subscription, "active", "", &missed);
	cqrs_subscription_wake(subscription);
	cqrs_subscription_lost_events(subscription);
	if (missed > 0)
		ereport(WARNING,
				(errmsg("events that subscription \"%s\" missed: " INT64_FORMAT,
						subscription->name, missed),
				 errdetail("They were truncated while it was suspended.")));
	PG_RETURN_INT64(missed);
}

/*
 * cqrs_seek(subscription, target text)
 */
Datum
cqrs_seek(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo, "cqrs_seek()");
	char	   *target;

	cqrs_arg_required(fcinfo, 1, "target of cqrs_seek()", NULL, NULL);
	target = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (pg_strcasecmp(target, "earliest") == 0)
		seek(subscription, false, NULL);
	else if (pg_strcasecmp(target, "latest") == 0)
		seek(subscription, true, NULL);
	else
	{
		TimestampTz time;

		time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
													   CStringGetDatum(target),
													   ObjectIdGetDatum(InvalidOid),
													   Int32GetDatum(-1)));
		seek(subscription, false, &time);
	}
	PG_RETURN_VOID();
}

/*
 * cqrs_seek(subscription, target timestamptz)
 */
Datum
cqrs_seek_time(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo, "cqrs_seek()");
	TimestampTz time;

	cqrs_arg_required(fcinfo, 1, "target of cqrs_seek()", NULL, NULL);
	time = PG_GETARG_TIMESTAMPTZ(1);
	seek(subscription, false, &time);
	PG_RETURN_VOID();
}

/*
 * cqrs_retry(subscription, event_ids)
 */
Datum
cqrs_retry(PG_FUNCTION_ARGS)
{
	CqrsSubscription *subscription = cqrs_subscription_own(fcinfo, "cqrs_retry()");
	CqrsEventIds *ids = cqrs_event_ids_arg(fcinfo, 1);

	PG_RETURN_INT64(PG_ARGISNULL(1) ? 0 :
					cqrs_subscription_try_now(subscription, ids));
}

/*
 * cqrs_retry_all(subscription)
 */
Datum
cqrs_retry_all(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(cqrs_subscription_try_now(cqrs_subscription_own(fcinfo,
																	"cqrs_retry_all()"),
											  NULL));
}

/*
 * cqrs_wait(subscription, timeout, since)
 */
Datum
cqrs_wait(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	char	   *name = cqrs_name_arg(fcinfo, 0, "subscription");
	CqrsSubscription *subscription = cqrs_subscription_get(name);
	int32		subscription_id = subscription->subscription_id;
	TimestampTz deadline;
	CqrsSnapshot *target;
	int64		last;
	TimestampTz since = PG_ARGISNULL(2) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(2);
	bool		given_up = false;
	bool		reached = false;

	cqrs_subscription_require_owner(subscription);
	deadline = cqrs_delivered_deadline(fcinfo, 1);
	cqrs_require_preloaded();
	if (cqrs_underway_is(subscription_id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("subscription \"%s\" is being delivered by this session",
						name),
				 errhint("Its handler must not call cqrs_wait() for it.")));

	target = cqrs_snapshot_take();
	last = cqrs_last_position();
	ConditionVariablePrepareToSleep(&cqrs_shared->delivered);
	for (;;)
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

		/* If it was dropped while we waited, there is nothing more to get. */
		subscription = cqrs_registry_subscription_by_id(subscription_id);
		reached = subscription == NULL ||
			has_reached(subscription, target, last, since, snapshot);
		given_up = subscription != NULL &&
			has_given_up(subscription_id, last, since, snapshot);
		UnregisterSnapshot(snapshot);
		if (reached || given_up || cqrs_steady_now() >= deadline)
			break;
		cqrs_delivered_sleep(deadline, CQRS_WAIT_EVENT(wait_event,
													   "CqrsOutboxWait"));
	}
	ConditionVariableCancelSleep();
	if (given_up)
		ereport(NOTICE,
				(errmsg("subscription \"%s\" has dead letters", name),
				 errhint("See cqrs_dead_letters; then use cqrs_redrive_all(), cqrs_discard() or cqrs_discard_all(). With since => ..., only what was emitted from then on counts.")));
	else if (!reached)
		tell_why(subscription);
	PG_RETURN_BOOL(reached && !given_up);
}

/*
 * A subscription has not got what was waited for. Say why, if it will not get it
 * unless somebody does something.
 */
static void
tell_why(CqrsSubscription *subscription)
{
	const char *name = subscription->name;
	const char *detail = NULL;
	const char *hint = "See cqrs_health().";
	int			i;

	if (subscription->state != CQRS_SUBSCRIPTION_ACTIVE)
	{
		detail = subscription->state == CQRS_SUBSCRIPTION_PAUSED ?
			"It is paused." : "It is suspended.";
		hint = "Use cqrs_resume().";
	}
	else if (cqrs_subscription_is_pulled(subscription))
	{
		detail = "It has neither a handler nor a server: clients have to receive and acknowledge.";
		hint = "Use cqrs_receive().";
	}
	else if (!cqrs_deliver)
	{
		detail = "Nothing is delivered, as cqrs_outbox.deliver is off.";
		hint = "Set it to on, and reload the server's configuration.";
	}
	else if (subscription->has_handler &&
			 !cqrs_handler_find(&subscription->handler))
	{
		detail = psprintf("Its handler %s does not exist.",
						  subscription->handler.signature);
		hint = "Create it, or name another one with cqrs_alter_subscription().";
	}
	for (i = 0; detail == NULL && i < subscription->partitions; i++)
		detail = cqrs_failure_message(subscription->subscription_id, i);
	if (detail != NULL)
		ereport(NOTICE,
				(errmsg("subscription \"%s\" has not got everything", name),
				 errdetail_internal("%s", detail),
				 errhint("%s", hint)));
}

/*
 * Let what waits by the rate of its key be tried now, if another rate allows it.
 */
void
cqrs_subscription_due_anew(CqrsSubscription *subscription)
{
	Snapshot	snapshot;
	int			i;

	subscription = cqrs_subscription_lock_all(subscription);
	cqrs_underway_settle(subscription->subscription_id);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;

		if (!read_native(subscription, i, snapshot, &cursor))
			continue;
		cqrs_parked_open(&cursor);
		if (cqrs_parked_due_anew(&cursor, cqrs_wall_now()) > 0)
			cqrs_cursor_append(&cursor);
	}
	UnregisterSnapshot(snapshot);
}

/*
 * Let what failed be tried now: the parked events (all, or those with these ids),
 * and the whole subscription, if it waits. Returns how many events were not due
 * before.
 *
 * The manager knows until when a cursor waits, and does not look into the table:
 * a new retried_at shows it that the wait is over.
 */
int64
cqrs_subscription_try_now(CqrsSubscription *subscription,
						  const CqrsEventIds *ids)
{
	TimestampTz now = cqrs_wall_now();
	Snapshot	snapshot;
	bool		failing = false;
	int64		total = 0;
	int			i;

	subscription = cqrs_subscription_lock_all(subscription);
	cqrs_underway_settle(subscription->subscription_id);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor	cursor;
		int64		n;

		if (!read_native(subscription, i, snapshot, &cursor))
			continue;
		cqrs_parked_open(&cursor);
		n = cqrs_parked_try_now(&cursor, now, ids);
		if (n > 0)
			cqrs_cursor_append(&cursor);
		total += n;
		failing |= cqrs_failure_try_now(subscription->subscription_id, i);
	}
	UnregisterSnapshot(snapshot);
	if (failing)
		cqrs_admin_run("UPDATE cqrs.subscription SET retried_at = pg_catalog.clock_timestamp()"
					   " WHERE subscription_id = $1",
					   1, CQRS_INT4(subscription->subscription_id));
	if (failing || total > 0)
		cqrs_subscription_wake(subscription);
	return total;
}

/*
 * Read a cursor. A restored one must stay as it is, for cqrs_adopt().
 */
static bool
read_native(const CqrsSubscription *subscription, int partition,
			Snapshot snapshot, CqrsCursor *cursor)
{
	return cqrs_cursor_read(subscription->subscription_id, partition, snapshot,
							cursor) &&
		cursor->native;
}

/*
 * Set the state; *missed gets how many events were missed in the old one. Returns
 * false if it is in that state. From suspended, it can only become active.
 */
static bool
set_state(const CqrsSubscription *subscription, const char *state,
		  const char *reason, int64 *missed)
{
	CqrsAdmin	admin;
	bool		changed;

	cqrs_admin_begin(&admin);
	changed = cqrs_admin_execute("UPDATE cqrs.subscription n"
								 " SET state = $2, state_since = pg_catalog.now(), state_reason = nullif($3, ''), missed_events = 0"
								 " FROM (SELECT subscription_id, missed_events FROM cqrs.subscription"
								 "       WHERE subscription_id = $1 FOR UPDATE) o"
								 " WHERE n.subscription_id = o.subscription_id AND n.state <> $2"
								 " AND (n.state <> 'suspended' OR $2 = 'active')"
								 " RETURNING o.missed_events",
								 3, CQRS_INT4(subscription->subscription_id),
								 CQRS_TEXT(state), CQRS_TEXT(reason)) > 0;
	*missed = changed ? DatumGetInt64(cqrs_admin_result()) : 0;
	cqrs_admin_end(&admin);
	return changed;
}

/*
 * What a broker has, and this database knows nothing of, is known from now on. sent
 * says whether what is in doubt was sent: "trust", or is to be sent "again". Raises
 * 22023 or 55000.
 */
static void
settle_sent(CqrsSubscription *subscription, const char *sent)
{
	bool		trust = strcmp(sent, "trust") == 0;
	const char *name = subscription->name;
	CqrsCursor *cursors;
	bool		any = false;
	int			i;

	if (!trust && strcmp(sent, "again") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cqrs_resume() cannot have sent \"%s\"", sent),
				 errhint("Valid values are \"again\" and \"trust\".")));
	subscription = cqrs_subscription_lock_all(subscription);
	cursors = cqrs_cursor_read_all(subscription->subscription_id,
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor *cursor = &cursors[i];
		CqrsSent   *known = &cursor->sent;
		static const pg_uuid_t none;
		bool		has_record;

		if (!known->diverged.given)
			continue;
		any = true;
		has_record = memcmp(&known->diverged.id, &none, UUID_LEN) != 0;
		if (trust && has_record)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("what the broker of subscription \"%s\" has cannot be told from here",
							name),
					 errdetail("In partition %d, it is not what this database was about to send.",
							   i),
					 errhint("Use sent => 'again'; before that, cqrs_seek() can pass by what consumers have.")));
		cqrs_parked_open(cursor);
		if (trust)
			cqrs_sent_apply(cursor);
		cqrs_parked_close(cursor);
		known->sent.given = has_record;
		known->sent.id = known->diverged.id;
		known->intent.given = known->diverged.given = false;

		/* It may have been forgotten by now. */
		(void) cqrs_sent_elsewhere(known);
		cqrs_cursor_append(cursor);
		(void) cqrs_failure_try_now(subscription->subscription_id, i);
	}
	if (!any)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is not stopped because of what its broker has",
						name),
				 errhint("Use cqrs_resume() without sent.")));
	(void) cqrs_admin_run("UPDATE cqrs.subscription SET retried_at = pg_catalog.clock_timestamp()"
						  " WHERE subscription_id = $1",
						  1, CQRS_INT4(subscription->subscription_id));
}

/*
 * Move the cursors: to what is retained, to what commits from now on, or to
 * the first transaction that emitted at this time or later. Parked events are
 * forgotten: they come again, or are passed by.
 */
static void
seek(CqrsSubscription *subscription, bool latest, const TimestampTz *time)
{
	CqrsCursor *cursors;
	bool		native = true;
	int			i;

	cqrs_subscription_refuse_sagas(subscription,
								   "To have sagas go on whose events were lost, use cqrs_resume_sagas().");
	/* Until the new place can be seen, nothing behind it is truncated. */
	for (i = 0; i < subscription->ntopics; i++)
		(void) cqrs_object_lock(CQRS_REL_TOPIC,
								subscription->topics[i]->topic_id, 0,
								ShareLock, true);
	subscription = cqrs_subscription_lock_all(subscription);
	for (i = 0; i < subscription->ntopics; i++)
		native &= subscription->topics[i]->native;
	cqrs_underway_settle(subscription->subscription_id);
	subscription = cqrs_epoch_abandon(subscription);
	cursors = cqrs_cursor_read_all(subscription->subscription_id,
								   subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
	{
		CqrsCursor *cursor = &cursors[i];

		cqrs_parked_discard_all(cursor);
		cursor->until_tick = 0;
		cursor->received_all = false;
		cqrs_cursor_start(cursor, latest, native);
		if (subscription->exactly_once)
			cqrs_cursor_draw_producer(cursor);
		if (time != NULL)
		{
			cqrs_cursor_require_native(cursor, subscription->name);
			start_since(cursor, subscription, *time);
		}
		cqrs_cursor_append(cursor);
	}
	cqrs_subscription_wake(subscription);
}

/*
 * Have a cursor start before the first transaction that emitted at this time
 * or later.
 *
 * A window must not end at a tick that does not show all that the cursor does:
 * the cursor would move back. If the newest tick does, so do later ones; if
 * not, only ticks with ids yet to be drawn are sure to (see tick.c).
 */
static void
start_since(CqrsCursor *cursor, const CqrsSubscription *subscription,
			TimestampTz time)
{
	Snapshot	snapshot;
	CqrsTick	tick;

	cursor->snapshot = cqrs_window_since(subscription->ntopics,
										 subscription->topics, time);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (cqrs_tick_newest(snapshot, PG_INT64_MAX, &tick) &&
		!FullTransactionIdPrecedes(tick.snapshot->xmin, cursor->snapshot->xmax))
		cursor->tick_id = tick.tick_id - 1;
	else
		cursor->tick_id = cqrs_tick_next_id();
	UnregisterSnapshot(snapshot);
}

/*
 * Has the subscription got all events that this snapshot shows? What is parked up
 * to the last position that was drawn by then it has not; there may be events
 * among those that committed later. While its cursors are being replaced, that
 * cannot be told.
 */
static bool
has_reached(const CqrsSubscription *subscription, const CqrsSnapshot *target,
			int64 last, TimestampTz since, Snapshot snapshot)
{
	int			partitions = cqrs_cursor_partitions(subscription->subscription_id,
													snapshot);
	bool		reached = partitions == 0 ||
	partitions == subscription->partitions;
	int			i;
	int			j;

	for (i = 0; reached && i < partitions; i++)
	{
		CqrsCursor	cursor;

		if (!cqrs_cursor_read(subscription->subscription_id, i, snapshot,
							  &cursor))
			break;
		reached = !is_parked(&cursor, last, since, snapshot);
		for (j = 0; reached && j < subscription->ntopics; j++)
			reached = !cqrs_window_has_events(subscription->topics[j],
											  cursor.snapshot, target,
											  snapshot);
	}
	return reached;
}

/*
 * Is an event parked that was emitted since then, up to this position?
 */
static bool
is_parked(const CqrsCursor *cursor, int64 last, TimestampTz since,
		  Snapshot snapshot)
{
	CqrsScan	scan;
	CqrsEvent	event;
	int			attempts;
	bool		found = false;

	if (cursor->next_retry_at == 0)
		return false;
	cqrs_parked_events_begin(&scan, cursor, 0, snapshot);
	while (!found && cqrs_parked_events_next(&scan, &event, &attempts) &&
		   event.position <= last)
		found = event.emitted_at >= since;
	cqrs_scan_end(&scan, NoLock);
	return found;
}

/*
 * Was an event given up that was emitted since then, up to this position?
 */
static bool
has_given_up(int32 subscription_id, int64 last, TimestampTz since,
			 Snapshot snapshot)
{
	CqrsDeadLetterScan *scan = cqrs_dead_letter_begin(subscription_id,
													  snapshot);
	CqrsEvent	event;
	int			attempts;
	bool		found = false;

	while (!found && cqrs_dead_letter_next(scan, &event, &attempts) &&
		   event.position <= last)
		found = event.emitted_at >= since;
	cqrs_dead_letter_end(scan);
	return found;
}
