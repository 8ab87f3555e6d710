/*-------------------------------------------------------------------------
 *
 * domain_event.c
 *	  Handlers of events, called in the transaction that emits.
 *
 * Protocol
 *
 * 1. An event whose type has handlers is queued, with these handlers, when it
 *	  is emitted.
 * 2. The queue is worked off when nothing is being dispatched any more: at
 *	  once, or when the outermost dispatch is over (cqrs_dispatch_events). What
 *	  the handlers emit, or the commands that they send, is queued behind what
 *	  is there. All of it is done before the emitter, or whoever sent the
 *	  outermost command, goes on.
 * 3. An event that a handler emits was caused by the event being handled. The
 *	  length of a chain of causes is limited, so that a cycle ends.
 *
 * Subtransactions
 *
 * An event belongs to the subtransaction that emitted it: it leaves the queue
 * if that is rolled back, and goes to the parent if it is committed. The events
 * of the innermost subtransaction are the last ones of the queue, as an outer
 * one cannot emit meanwhile.
 *
 * An error while the queue is being worked off ends in the rollback of every
 * event in it: all of them belong to the subtransaction that works it off, or
 * to one within that.
 *
 * Memory
 *
 * Queued events are copies, in a context of the transaction. One that was
 * handled is kept as long as an event that it caused, so that it can be named.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "mediator/context.h"
#include "mediator/domain_event.h"
#include "mediator/event_type.h"
#include "mediator/fallback.h"
#include "registry/payload.h"

/* An event to be handled, or that caused one. */
typedef struct DomainEvent
{
	dlist_node	node;			/* in the queue */
	int			references;		/* from the queue, and from the events that it
								 * caused */
	struct DomainEvent *cause;	/* whose handler emitted it; NULL: none */
	int			depth;			/* of the chain of causes; 1: no cause */
	SubTransactionId subid;
	CqrsEventType *type;
	CqrsEvent	event;
	pg_uuid_t	event_id;
} DomainEvent;

/* An event on its way through a handler. */
typedef struct EventCall
{
	const DomainEvent *event;
	const CqrsHandler *handler;
	NullableDatum arg;			/* of the handler, and of its fallback */
} EventCall;

dlist_head	cqrs_domain_event_queue = DLIST_STATIC_INIT(cqrs_domain_event_queue);
static MemoryContext queue_context = NULL;

/*
 * Whether the queue is being worked off up the stack, and what is being
 * handled.
 */
static bool working = false;
static DomainEvent *handling = NULL;

static void register_callbacks(void);
static void move_queue(dlist_head *to, dlist_head *from);
static NullableDatum copy(NullableDatum value);
static void release(DomainEvent *event);
static void work_off(void);
static void call_handlers(const DomainEvent *event);
static Datum call_handler(void *arg, CqrsHandler *handler, bool *isnull);
static NullableDatum argument(const DomainEvent *event,
							  CqrsEventHandler *handler);
static char *path_to(const DomainEvent *event);
static void error_callback(void *arg);
static void at_subxact_event(SubXactEvent event, SubTransactionId subid,
							 SubTransactionId parent, void *arg);
static void at_xact_event(XactEvent event, void *arg);

/*
 * Queue an event, whose type has handlers; it is copied. The caller calls
 * cqrs_dispatch_events() after all else is done.
 *
 * Raises 54001 if its chain of causes is too long.
 */
void
cqrs_domain_event_add(CqrsEventType *event_type, const CqrsEvent *event)
{
	int			depth = handling ? handling->depth + 1 : 1;
	MemoryContext oldcontext;
	DomainEvent *added;

	if (depth > cqrs_max_event_depth)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("event \"%s\" has too long a chain of causes",
						event_type->name),
				 errdetail("Each of these events was emitted by a handler of the one before: %s -> %s.",
						   path_to(handling), event_type->name),
				 errhint("The handlers may emit each other's events without end; otherwise raise cqrs_outbox.max_event_depth.")));

	register_callbacks();
	if (queue_context == NULL)
		queue_context = AllocSetContextCreate(TopTransactionContext,
											  "cqrs domain events",
											  ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(queue_context);
	added = palloc(sizeof(DomainEvent));
	added->references = 1;
	added->cause = handling;
	added->depth = depth;
	added->subid = GetCurrentSubTransactionId();
	added->type = event_type;
	added->event = *event;
	added->event_id = *DatumGetUUIDP(event->event_id);
	added->event.event_id = UUIDPGetDatum(&added->event_id);
	added->event.event_name = CStringGetTextDatum(event_type->name);
	added->event.key = copy(event->key);
	added->event.headers = copy(event->headers);
	added->event.payload = copy(event->payload);
	MemoryContextSwitchTo(oldcontext);

	if (handling != NULL)
		handling->references++;
	dlist_push_tail(&cqrs_domain_event_queue, &added->node);
}

/*
 * Call the handlers of all queued events, and of those that they emit, until
 * none is left; unless that is being done up the stack. Not to be called
 * during a dispatch.
 *
 * Raises 42883 no such handler; 42501 it may not be executed; 42P13 it takes
 * another argument than when it was registered; and whatever a handler raises.
 */
void
cqrs_domain_events_handle(void)
{
	CqrsContext *context = cqrs_context_innermost;

	if (working || dlist_is_empty(&cqrs_domain_event_queue))
		return;
	working = true;
	PG_TRY();
	{
		work_off();
	}
	PG_FINALLY();
	{
		working = false;
		handling = NULL;
		cqrs_context_innermost = context;
	}
	PG_END_TRY();
	MemoryContextReset(queue_context);
}

/*
 * Begin anew, with nothing queued and nothing being handled, until
 * cqrs_domain_events_bring_back(), which the caller must call even after an
 * error. Called at the start of a subtransaction that is rolled back in the
 * end: so what is set aside sees no subtransaction end.
 */
void
cqrs_domain_events_set_aside(CqrsDomainEvents *aside)
{
	move_queue(&aside->queue, &cqrs_domain_event_queue);
	aside->context = queue_context;
	aside->working = working;
	aside->handling = handling;
	queue_context = NULL;
	working = false;
	handling = NULL;
}

/*
 * Go on with what was set aside. The queue is empty: it was rolled back.
 */
void
cqrs_domain_events_bring_back(CqrsDomainEvents *aside)
{
	Assert(dlist_is_empty(&cqrs_domain_event_queue));
	if (queue_context != NULL)
		MemoryContextDelete(queue_context);
	move_queue(&cqrs_domain_event_queue, &aside->queue);
	queue_context = aside->context;
	working = aside->working;
	handling = aside->handling;
}

/*
 * Only a backend with a queue needs callbacks at the end of transactions.
 */
static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterSubXactCallback(at_subxact_event, NULL);
	RegisterXactCallback(at_xact_event, NULL);
	registered = true;
}

/*
 * Move all events to another head, whose contents do not matter.
 */
static void
move_queue(dlist_head *to, dlist_head *from)
{
	dlist_init(to);
	if (!dlist_is_empty(from))
	{
		to->head = from->head;
		to->head.next->prev = to->head.prev->next = &to->head;
	}
	dlist_init(from);
}

/*
 * A copy of a varlena that is not toasted.
 */
static NullableDatum
copy(NullableDatum value)
{
	if (!value.isnull)
		value.value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value.value));
	return value;
}

/*
 * Release a reference to an event, and with the last one the event.
 */
static void
release(DomainEvent *event)
{
	while (event != NULL && --event->references == 0)
	{
		DomainEvent *cause = event->cause;

		pfree(DatumGetPointer(event->event.event_name));
		if (!event->event.key.isnull)
			pfree(DatumGetPointer(event->event.key.value));
		if (!event->event.headers.isnull)
			pfree(DatumGetPointer(event->event.headers.value));
		if (!event->event.payload.isnull)
			pfree(DatumGetPointer(event->event.payload.value));
		pfree(event);
		event = cause;
	}
}

static void
work_off(void)
{
	MemoryContext per_event = AllocSetContextCreate(CurrentMemoryContext,
													"cqrs domain event",
													ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(per_event);

	while (!dlist_is_empty(&cqrs_domain_event_queue))
	{
		CHECK_FOR_INTERRUPTS();
		handling = dlist_container(DomainEvent, node,
								   dlist_pop_head_node(&cqrs_domain_event_queue));
		call_handlers(handling);
		release(handling);
		handling = NULL;
		MemoryContextReset(per_event);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(per_event);
}

/*
 * Call an event's handlers, one after the other, each with its fallback if it
 * has one.
 */
static void
call_handlers(const DomainEvent *event)
{
	EventCall	call = {.event = event};
	ErrorContextCallback errcallback;
	CqrsContext context;
	CqrsEventHandler *handler;

	errcallback.callback = error_callback;
	errcallback.arg = &call;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;
	cqrs_context_init(&context, "event", event->type->name);
	context.has_id = true;
	context.id = event->event_id;
	context.headers = event->event.headers;
	context.event = &event->event;
	cqrs_context_push(&context);
	for (handler = event->type->handlers; handler != NULL;
		 handler = handler->next)
	{
		bool		isnull;

		call.handler = &handler->handler;
		cqrs_handler_check(&handler->handler, "event", event->type->name);
		call.arg = argument(event, handler);
		if (handler->handler.fallback != NULL)
			(void) cqrs_fallback_run(&handler->handler, "event",
									 event->type->name, call_handler, &call,
									 &isnull);
		else
			(void) call_handler(&call, &handler->handler, &isnull);
	}
	cqrs_context_pop(&context);
	error_context_stack = errcallback.previous;
}

/*
 * Call a handler, or a fallback. It sees what those before it did, whatever its
 * volatility.
 */
static Datum
call_handler(void *arg, CqrsHandler *handler, bool *isnull)
{
	EventCall  *call = (EventCall *) arg;
	Datum		answer;

	call->handler = handler;
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	answer = cqrs_handler_call_nullable(handler, call->arg, isnull);
	PopActiveSnapshot();
	return answer;
}

static NullableDatum
argument(const DomainEvent *event, CqrsEventHandler *handler)
{
	Oid			argtype = handler->handler.argtype;
	NullableDatum arg = event->event.payload;
	TupleDesc	desc;

	/* It may be another function now than the one registered. */
	if (argtype != handler->checked_type)
	{
		cqrs_event_type_check_handler(event->type,
									  handler->handler.signature, argtype);
		handler->checked_type = argtype;
	}
	if (argtype == JSONBOID)
		return arg;
	if (argtype == event->type->payload_type)
	{
		if (!arg.isnull)
			arg.value = cqrs_payload_to_composite(DatumGetJsonbP(arg.value),
												  argtype, "event",
												  event->type->name);
		return arg;
	}
	desc = lookup_rowtype_tupdesc(argtype, -1);
	arg.value = cqrs_event_form(&event->event, desc);
	arg.isnull = false;
	ReleaseTupleDesc(desc);
	return arg;
}

/*
 * The names of the events that led to this one, and its own, in the current
 * memory context.
 */
static char *
path_to(const DomainEvent *event)
{
	const char **names = palloc(sizeof(char *) * event->depth);
	StringInfoData path;
	int			depth = event->depth;
	int			i;

	for (i = depth; i > 0; i--, event = event->cause)
		names[i - 1] = event->type->name;
	initStringInfo(&path);
	for (i = 0; i < depth; i++)
		appendStringInfo(&path, "%s%s", i > 0 ? " -> " : "", names[i]);
	pfree(names);
	return path.data;
}

static void
error_callback(void *arg)
{
	EventCall  *call = (EventCall *) arg;

	if (call->event->cause == NULL)
		errcontext("handler %s of event \"%s\"",
				   call->handler->signature, call->event->type->name);
	else
		errcontext("handler %s of event \"%s\", caused by %s",
				   call->handler->signature, call->event->type->name,
				   path_to(call->event->cause));
}

/*
 * At the end of a subtransaction, what it emitted becomes its parent's, or is
 * forgotten.
 */
static void
at_subxact_event(SubXactEvent event, SubTransactionId subid,
				 SubTransactionId parent, void *arg)
{
	dlist_iter	iter;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		dlist_reverse_foreach(iter, &cqrs_domain_event_queue)
		{
			DomainEvent *queued = dlist_container(DomainEvent, node, iter.cur);

			if (queued->subid != subid)
				break;
			queued->subid = parent;
		}
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (!dlist_is_empty(&cqrs_domain_event_queue))
		{
			DomainEvent *last = dlist_tail_element(DomainEvent, node, &cqrs_domain_event_queue);

			if (last->subid != subid)
				break;
			dlist_delete(&last->node);
			release(last);
		}

		/* After an error, what was being handled is still there. */
		if (!working && queue_context != NULL && dlist_is_empty(&cqrs_domain_event_queue))
			MemoryContextReset(queue_context);
	}
}

/*
 * The transaction's end. Its memory goes, and with it what is queued.
 */
static void
at_xact_event(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	Assert(event == XACT_EVENT_ABORT || dlist_is_empty(&cqrs_domain_event_queue));
	dlist_init(&cqrs_domain_event_queue);
	queue_context = NULL;
	working = false;
	handling = NULL;
}
