/*-------------------------------------------------------------------------
 *
 * handler_call.c
 *	  A handler, found and called, within a batch of its events.
 *
 * target_handler.c says which events of a batch it is called for, and whether in
 * a subtransaction of their own.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "base/rethrow.h"
#include "delivery/handler_call.h"
#include "delivery/handler_timeout.h"
#include "delivery/relay.h"
#include "delivery/session.h"
#include "delivery/underway.h"
#include "extension/catalog.h"
#include "mediator/context.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/retry.h"
#include "subscription/subscription.h"

/* A batch ends before it has more subtransactions than this. */
#define BATCH_SUBTRANSACTIONS	48

/* A handler that takes several events gets no more once it has so many bytes. */
#define ARRAY_BYTES		(4 * 1024 * 1024)

static Datum array_of(const CqrsBatch *batch, Datum *values, int n);
static ErrorData *call_apart(CqrsBatch *batch, const CqrsEvent *event,
							 const CqrsParked *parked, int attempts);
static void call(CqrsBatch *batch, const CqrsEvent *event,
				 const CqrsParked *parked, int attempts);
static NullableDatum argument(const CqrsBatch *batch, const CqrsEvent *event);
static Datum convert(const CqrsEvent *event, Oid argtype);
static void call_limited(CqrsBatch *batch, NullableDatum arg);
static void end_event(CqrsBatch *batch, int level, int subtransactions,
					  bool failed);
static void refresh(CqrsBatch *batch);

/*
 * Find the handler, and check that the owner may call it. If it is not there,
 * no event is to blame.
 */
void
cqrs_batch_find_handler(CqrsBatch *batch)
{
	CqrsSubscription *subscription = batch->relay.subscription;
	Oid			argtype;

	if (batch->found)
		return;
	if (batch->guc_level == 0 &&
		strcmp(namespace_search_path, subscription->search_path) != 0)
	{
		batch->guc_level = NewGUCNestLevel();
		cqrs_set_config("search_path", subscription->search_path,
						GUC_ACTION_SAVE);
		if (batch->in_worker)
			cqrs_session_keep_search_path(subscription->search_path);
	}
	cqrs_handler_check(&subscription->handler, "subscription",
					   subscription->name);

	/* It may have been dropped, and made anew by somebody else. */
	cqrs_subscription_check_handler_owner(subscription->name,
										  subscription->owner,
										  subscription->handler.signature,
										  subscription->handler.owner);
	argtype = subscription->handler.argtype;
	batch->array = 0;
	if (cqrs_event_is_array(argtype))
	{
		/* The first that fails alone is called apart, and so is the next. */
		batch->array = batch->most;
		if (batch->array == 1)
		{
			batch->one = true;
			batch->nplain = 0;
		}
		argtype = get_element_type(argtype);
	}
	batch->delivery->array = batch->array > 0 ? 1 : 0;
	if (cqrs_event_is_type(argtype))
		batch->desc = lookup_rowtype_tupdesc(argtype, -1);
	batch->found = true;
}

/*
 * Call the handler with one event, under a snapshot of its own. The context
 * that cqrs_drain() was called in has nothing to do with the event. Sets stop
 * if the batch has to end with this event. Returns the error, if it was called
 * apart.
 */
ErrorData *
cqrs_batch_call(CqrsBatch *batch, const CqrsEvent *event,
				const CqrsParked *parked, int attempts, bool apart)
{
	CqrsContext *outer = cqrs_context_innermost;
	int			subtransactions = cqrs_session_subtransactions();
	ErrorData  *error = NULL;
	int			level;

	CHECK_FOR_INTERRUPTS();
	batch->where.event = event;
	batch->delivery->position = event->position;
	CommandCounterIncrement();
	level = cqrs_session_begin_event(batch->in_worker);
	if (apart)
		error = call_apart(batch, event, parked, attempts);
	else
		call(batch, event, parked, attempts);
	end_event(batch, level, subtransactions, error != NULL);
	cqrs_context_innermost = outer;
	batch->where.event = NULL;
	batch->delivery->position = 0;
	if (error == NULL)
	{
		batch->delivery->last = event->position;
		batch->delivery->nevents++;
	}
	return error;
}

/*
 * Call the handler with this new event, and as many as come next: the batch's only
 * call. An error rolls all back.
 */
void
cqrs_batch_call_several(CqrsBatch *batch, CqrsEvent *event)
{
	CqrsContext *outer = cqrs_context_innermost;
	int			subtransactions = cqrs_session_subtransactions();
	Datum	   *values = MemoryContextAlloc(batch->context,
											sizeof(Datum) * batch->array);
	int64		first = event->position;
	int64		last;
	Size		bytes = 0;
	int			n = 0;
	CqrsContext context;
	NullableDatum arg = {.isnull = false};
	int			level;

	CHECK_FOR_INTERRUPTS();
	MemoryContextSwitchTo(batch->per_event);
	do
	{
		last = event->position;
		values[n] = cqrs_event_form(event, batch->desc);
		bytes += VARSIZE_ANY(DatumGetPointer(values[n]));
		n++;
	} while (n < batch->array && bytes < ARRAY_BYTES &&
			 cqrs_relay_next(&batch->relay, batch->array, event));
	arg.value = array_of(batch, values, n);
	batch->delivery->array = n;
	batch->delivery->position = first;
	CommandCounterIncrement();
	level = cqrs_session_begin_event(batch->in_worker);
	cqrs_context_init(&context, "events",
					  batch->relay.subscription->name);
	cqrs_context_innermost = &context;
	call_limited(batch, arg);
	MemoryContextSwitchTo(batch->context);
	end_event(batch, level, subtransactions, false);
	cqrs_context_innermost = outer;
	batch->delivery->position = 0;
	batch->delivery->last = last;
	batch->delivery->nevents += n;
}

/*
 * Events as the argument of a handler that takes several.
 */
static Datum
array_of(const CqrsBatch *batch, Datum *values, int n)
{
	return PointerGetDatum(construct_array(values, n,
										   batch->desc->tdtypeid, -1, false,
										   TYPALIGN_DOUBLE));
}

/*
 * Call the handler in a subtransaction. Returns the error that rolled it back,
 * in the batch's context, or NULL. What the handler left in the session is
 * ended with the event, not here: the trigger manager, for one, must not begin
 * anew within the subtransaction.
 */
static ErrorData *
call_apart(CqrsBatch *batch, const CqrsEvent *event, const CqrsParked *parked,
		   int attempts)
{
	CqrsCursor *cursor = &batch->relay.cursor;
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	CqrsCursor	before = *cursor;
	ErrorData  *volatile error = NULL;
	volatile bool all = false;	/* the error concerns the whole batch */

	if (cursor->npassed > 0)
	{
		before.passed = MemoryContextAlloc(batch->context, sizeof(int64) *
										   pg_nextpower2_32(cursor->npassed));
		memcpy(before.passed, cursor->passed,
			   sizeof(int64) * cursor->npassed);
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(oldcontext);
	PG_TRY();
	{
		call(batch, event, parked, attempts);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		bool		timed_out = false;

		if (batch->in_worker)
			timed_out = cqrs_handler_timeout_end();

		MemoryContextSwitchTo(batch->context);
		error = CopyErrorData();
		all = cqrs_blame(error) == CQRS_BLAME_NOBODY ||
			(batch->again && cqrs_batch_comes_first(batch) &&
			 cqrs_error_is_transient(error)) ||
			(!batch->in_worker &&
			 error->sqlerrcode == ERRCODE_QUERY_CANCELED);
		batch->timed_out = timed_out &&
			error->sqlerrcode == ERRCODE_QUERY_CANCELED;
		if (batch->in_worker && batch->clean && !all &&
			!batch->relay.subscription->runs_sagas &&
			(batch->timed_out || cqrs_blame(error) == CQRS_BLAME_EVENT))
			EmitErrorReport();
		FlushErrorState();
		if (timed_out)
			QueryCancelPending = false;
		RollbackAndReleaseCurrentSubTransaction();
		cqrs_underway_innermost = &batch->underway;
		*cursor = before;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	if (all)
		cqrs_error_rethrow(error);
	return error;
}

/*
 * Remove the event from the parked ones, if it is there, and call the handler.
 */
static void
call(CqrsBatch *batch, const CqrsEvent *event, const CqrsParked *parked,
	 int attempts)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	CqrsContext context;
	NullableDatum arg;

	/* Before the call, so that the handler may move the cursor. */
	if (parked != NULL)
		cqrs_parked_done(parked, &batch->relay.cursor);
	MemoryContextSwitchTo(batch->per_event);
	arg = argument(batch, event);
	cqrs_context_init(&context, "event",
					  TextDatumGetCString(event->event_name));
	context.has_id = true;
	context.id = *DatumGetUUIDP(event->event_id);
	context.headers = event->headers;
	context.event = event;
	context.attempts = attempts + 1;
	context.runs_command = batch->relay.subscription->runs_commands;
	context.runs_saga = batch->relay.subscription->runs_sagas;
	context.routes_to_sagas = batch->relay.subscription->routes_to_sagas;
	cqrs_context_innermost = &context;
	call_limited(batch, arg);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * What the handler takes of an event, in the current memory context: all of it, an
 * array of that, or its payload, which is NULL of a tombstone.
 */
static NullableDatum
argument(const CqrsBatch *batch, const CqrsEvent *event)
{
	Oid			argtype = batch->relay.subscription->handler.argtype;
	NullableDatum arg = event->payload;

	if (batch->desc != NULL)
	{
		arg.value = cqrs_event_form(event, batch->desc);
		if (batch->array > 0)
			arg.value = array_of(batch, &arg.value, 1);
		arg.isnull = false;
	}
	else if (!arg.isnull)
		arg.value = argtype == JSONBOID ?
			PointerGetDatum(PG_DETOAST_DATUM_COPY(arg.value)) :
			convert(event, argtype);
	return arg;
}

/*
 * The payload of an event as a composite value. One that does not fit will not do
 * so the next time, either: its event is given up at once.
 */
static Datum
convert(const CqrsEvent *event, Oid argtype)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Datum value = (Datum) 0;

	PG_TRY();
	{
		value = cqrs_payload_to_composite(DatumGetJsonbP(event->payload.value),
										  argtype, "event",
										  TextDatumGetCString(event->event_name));
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(context);
		int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

		if (category == ERRCODE_DATA_EXCEPTION ||
			category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
			error->sqlerrcode = ERRCODE_CQRS_GIVE_UP;
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	return value;
}

/*
 * The call itself; in a worker, including what is deferred to the end of the
 * transaction, and within the time that the subscription allows.
 */
static void
call_limited(CqrsBatch *batch, NullableDatum arg)
{
	CqrsSubscription *subscription = batch->relay.subscription;
	bool		limited = batch->in_worker &&
	subscription->delivery_timeout > 0;
	int			commit = synchronous_commit;
	bool		isnull;

	if (limited)
		cqrs_handler_timeout_begin(subscription->delivery_timeout);
	PushActiveSnapshot(GetTransactionSnapshot());
	(void) cqrs_handler_call_nullable(&subscription->handler, arg, &isnull);
	PopActiveSnapshot();
	if (batch->in_worker)
		cqrs_session_fire_deferred();
	if (limited || cqrs_handler_timeout_is_armed())
	{
		cqrs_handler_timeout_disarm();
		CHECK_FOR_INTERRUPTS();
		if (cqrs_handler_timed_out())
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("handler took too long")));
	}

	/* The batch commits as the most demanding of its events wants. */
	if (synchronous_commit != commit)
		commit = synchronous_commit;
	else if (batch->is_short && !cqrs_session_event_was_alone())
		commit = SYNCHRONOUS_COMMIT_OFF;
	batch->commit = Max(batch->commit, commit);
}

/*
 * End an event that was handled, or failed apart, and see if the batch has to
 * end, too. An event that failed leaves nothing but what the session keeps.
 */
static void
end_event(CqrsBatch *batch, int level, int subtransactions, bool failed)
{
	int			now;

	cqrs_session_end_event(level, batch->in_worker);
	if (failed)
	{
		if (batch->in_worker)
			cqrs_session_after_failure();
		refresh(batch);
		return;
	}
	if (cqrs_underway_moved(&batch->underway))
		batch->moved = batch->stop = true;
	if (cqrs_registry_is_past(batch->registry))
		batch->stop = true;
	if (!batch->in_worker)
		return;
	now = cqrs_session_subtransactions();
	batch->subtransactions = Max(batch->subtransactions,
								 now - subtransactions);
	if (now + batch->subtransactions > BATCH_SUBTRANSACTIONS ||
		cqrs_session_event_was_alone())
		batch->stop = true;
}

/*
 * A subtransaction was rolled back. If the registry was loaded in it, the
 * subscription is another copy now, whose handler is yet to be found.
 */
static void
refresh(CqrsBatch *batch)
{
	CqrsRelay  *relay = &batch->relay;
	int32		subscription_id = relay->cursor.subscription_id;
	CqrsSubscription *subscription;

	subscription = cqrs_registry_subscription_by_id(subscription_id);
	if (subscription == NULL)
		elog(ERROR, "subscription %d, which is being delivered, is gone",
			 subscription_id);
	batch->registry = cqrs_registry_generation();
	if (subscription == relay->subscription)
		return;
	relay->subscription = subscription;
	batch->where.subscription = subscription;
	if (batch->desc != NULL)
		ReleaseTupleDesc(batch->desc);
	batch->desc = NULL;
	batch->found = false;
}
