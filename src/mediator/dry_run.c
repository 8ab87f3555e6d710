/*-------------------------------------------------------------------------
 *
 * dry_run.c
 *	  Commands that are handled without effect, to see what they would do.
 *
 * Protocol
 *
 * 1. The command is dispatched in a subtransaction as if it were the outermost
 *	  one, even if cqrs_dry_run() is called in a handler: events that wait for
 *	  the end of that handler's dispatch are set aside, and those of the dry
 *	  run are handled before it is over.
 * 2. What is deferred until the commit is done as by SET CONSTRAINTS ALL
 *	  IMMEDIATE. That includes what the transaction had deferred before, as it
 *	  cannot be told apart; the rollback makes it pending again.
 * 3. Answer and events are copied, and the subtransaction is rolled back.
 *
 * Every event that is written to a topic, or queued for handlers, is noted.
 * As nothing of it stays, the manager is not told, and circuit breakers do not
 * count what happens.
 *
 * Subtransactions
 *
 * A note belongs to the subtransaction that emitted the event, and goes with
 * it, as the event does. The notes of the innermost subtransaction are the last
 * ones, as an outer one cannot emit meanwhile.
 *
 * A dry run within another has its own notes; its events are not among the
 * outer one's.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/typcache.h"

#include "base/rethrow.h"
#include "log/topic.h"
#include "mediator/dispatch.h"
#include "mediator/domain_event.h"
#include "mediator/dry_run.h"

/* How many notes there is room for at first. */
#define FIRST_NOTES	16

/* An event that was emitted. */
typedef struct Note
{
	SubTransactionId subid;
	Datum		event;			/* a cqrs_event */
} Note;

/* A dry run; in the memory of the function that runs it. */
typedef struct CqrsDryRun
{
	struct CqrsDryRun *outer;	/* NULL: none */
	int			depth;			/* 1: the outermost */
	Oid			userid;			/* who gets the events */
	MemoryContext context;		/* of what follows */
	TupleDesc	event_desc;
	Note	   *notes;
	int			nnotes;
	int			maxnotes;

	/* What is around it. */
	CqrsDispatch *dispatch;
	CqrsDomainEvents domain_events;
} CqrsDryRun;

/* A dispatch, and where its answer goes. */
typedef struct Dispatched
{
	CqrsDispatch *dispatch;
	MemoryContext context;
	Datum	   *answer;
	bool	   *isnull;
} Dispatched;

static void run_dispatch(void *arg);
static bool may_read(const CqrsDryRun *run, const CqrsEvent *event);
static void begin(CqrsDryRun *run, Oid event_type);
static void enter(CqrsDryRun *run);
static void leave(CqrsDryRun *run);
static void do_deferred(void);
static Datum noted_events(const CqrsDryRun *run);
static void at_subxact_event(SubXactEvent event, SubTransactionId subid,
							 SubTransactionId parent, void *arg);

/*
 * Dispatch a command, and take back all that this did. Returns the events that
 * it would have emitted, as an array of event_type, which is cqrs_event; and
 * the answer, in *answer. Both are in the current memory context.
 *
 * Raises what cqrs_dry_run_call() does, and cqrs_dispatch_run().
 */
Datum
cqrs_dry_run_dispatch(CqrsDispatch *dispatch, Oid event_type, Datum *answer,
					  bool *answer_isnull)
{
	Dispatched	dispatched = {dispatch, CurrentMemoryContext, answer, answer_isnull};

	return cqrs_dry_run_call(psprintf("command \"%s\"", dispatch->command->name),
							 event_type, run_dispatch, &dispatched);
}

/*
 * Dispatch, and copy the answer: what it points to may go with the rollback.
 */
static void
run_dispatch(void *arg)
{
	Dispatched *dispatched = (Dispatched *) arg;
	MemoryContext oldcontext;

	*dispatched->answer = cqrs_dispatch_run(dispatched->dispatch,
											dispatched->isnull);
	oldcontext = MemoryContextSwitchTo(dispatched->context);
	if (!*dispatched->isnull)
		*dispatched->answer =
			PointerGetDatum(PG_DETOAST_DATUM_COPY(*dispatched->answer));
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Call a function, and what is deferred until the commit, and take back all that this
 * did. what is "command "x"", for messages. Returns the events that it would have
 * emitted, as an array of event_type, which is cqrs_event, in the current memory
 * context.
 *
 * Raises 25000 in parallel mode; 54001 for dry runs nested too deeply; what the
 * function raises; and what deferred constraints and triggers do.
 */
Datum
cqrs_dry_run_call(const char *what, Oid event_type, void (*call) (void *arg),
				  void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			depth = cqrs_dry_run_is_active() ?
	cqrs_dry_run_innermost->depth : 0;
	CqrsDryRun	run;
	Datum		events;

	PreventCommandIfParallelMode("cqrs_dry_run()");
	if (depth >= cqrs_max_command_depth)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("dry run of %s is nested too deeply", what),
				 errdetail("%d dry runs are under way already, one within the other.",
						   depth),
				 errhint("A handler may have its own command run dry without end; otherwise raise cqrs_outbox.max_command_depth.")));

	begin(&run, event_type);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	enter(&run);
	PG_TRY();
	{
		call(arg);
		do_deferred();
		events = noted_events(&run);
	}
	PG_CATCH();
	{
		ErrorData  *error = cqrs_error_take(context);

		RollbackAndReleaseCurrentSubTransaction();
		leave(&run);
		CurrentResourceOwner = owner;
		cqrs_error_rethrow(error);
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	leave(&run);
	MemoryContextDelete(run.context);
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return events;
}

/*
 * Note an event that was emitted, in the innermost dry run. It is copied.
 */
void
cqrs_dry_run_emitted(const CqrsEvent *event)
{
	CqrsDryRun *run = cqrs_dry_run_innermost;
	CqrsEvent	shown = *event;
	Datum		values[CQRS_EVENT_COLUMNS];
	bool		nulls[CQRS_EVENT_COLUMNS] = {0};
	HeapTuple	tuple;
	MemoryContext oldcontext;

	/* Hide the contents from those who may not read them. */
	if (!may_read(run, event))
		shown.key.isnull = shown.payload.isnull = shown.headers.isnull = true;

	/* It has none: another event may get the one that was drawn. */
	shown.position = 0;
	cqrs_event_show(&shown, values, nulls);
	tuple = heap_form_tuple(run->event_desc, values, nulls);

	oldcontext = MemoryContextSwitchTo(run->context);
	if (run->nnotes == run->maxnotes)
	{
		run->maxnotes *= 2;
		run->notes = repalloc_huge(run->notes, sizeof(Note) * run->maxnotes);
	}
	run->notes[run->nnotes].subid = GetCurrentSubTransactionId();
	run->notes[run->nnotes].event =
		heap_copy_tuple_as_datum(tuple, run->event_desc);
	run->nnotes++;
	MemoryContextSwitchTo(oldcontext);
	heap_freetuple(tuple);
}

/*
 * May the user of the dry run read this event? Nobody can read one without a
 * topic later: it is shown to whoever has the privileges of its emitter.
 */
static bool
may_read(const CqrsDryRun *run, const CqrsEvent *event)
{
	if (event->topic == NULL)
		return has_privs_of_role(run->userid, GetUserId());
	return cqrs_topic_allows_role(event->topic, ACL_SELECT, run->userid);
}

/*
 * Set up a dry run, in the current memory context.
 */
static void
begin(CqrsDryRun *run, Oid event_type)
{
	static bool registered = false;
	MemoryContext oldcontext;

	if (!registered)
		RegisterSubXactCallback(at_subxact_event, NULL);
	registered = true;

	run->context = AllocSetContextCreate(CurrentMemoryContext, "cqrs dry run",
										 ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(run->context);
	run->event_desc = lookup_rowtype_tupdesc_copy(event_type, -1);
	run->userid = GetUserId();
	run->nnotes = 0;
	run->maxnotes = FIRST_NOTES;
	run->notes = palloc(sizeof(Note) * run->maxnotes);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * From now on, what happens is part of the dry run. The subtransaction that
 * will be rolled back has begun.
 */
static void
enter(CqrsDryRun *run)
{
	run->outer = cqrs_dry_run_innermost;
	run->depth = run->outer ? run->outer->depth + 1 : 1;
	cqrs_dry_run_innermost = run;
	run->dispatch = cqrs_dispatch_innermost;
	cqrs_dispatch_innermost = NULL;
	cqrs_domain_events_set_aside(&run->domain_events);
}

/*
 * From now on, it is not. That subtransaction was rolled back, and with it the
 * notes, and what was queued for handlers of events.
 */
static void
leave(CqrsDryRun *run)
{
	Assert(cqrs_dry_run_innermost == run && run->nnotes == 0);
	cqrs_domain_events_bring_back(&run->domain_events);
	cqrs_dispatch_innermost = run->dispatch;
	cqrs_dry_run_innermost = run->outer;
}

/*
 * Do what is deferred until the commit. The rollback restores which
 * constraints are deferred, and which deferred triggers have been fired.
 */
static void
do_deferred(void)
{
	ConstraintsSetStmt *all_immediate = makeNode(ConstraintsSetStmt);

	/* A trigger should see what the handlers did, whatever their language. */
	CommandCounterIncrement();
	AfterTriggerSetState(all_immediate);
	pfree(all_immediate);
}

/*
 * What was noted, as an array in the current memory context.
 */
static Datum
noted_events(const CqrsDryRun *run)
{
	Datum	   *events = palloc_extended(sizeof(Datum) * Max(run->nnotes, 1),
										 MCXT_ALLOC_HUGE);
	ArrayType  *array;
	int			i;

	for (i = 0; i < run->nnotes; i++)
		events[i] = run->notes[i].event;
	array = construct_array(events, run->nnotes, run->event_desc->tdtypeid,
							-1, false, TYPALIGN_DOUBLE);
	pfree(events);
	return PointerGetDatum(array);
}

/*
 * What was emitted so far in the innermost dry run, as an array in the current memory
 * context. From now on, it is as if it had not been.
 */
Datum
cqrs_dry_run_take_events(void)
{
	Datum		events = noted_events(cqrs_dry_run_innermost);

	cqrs_dry_run_innermost->nnotes = 0;
	return events;
}

/*
 * At the end of a subtransaction, what it emitted becomes its parent's, or is
 * forgotten.
 */
static void
at_subxact_event(SubXactEvent event, SubTransactionId subid,
				 SubTransactionId parent, void *arg)
{
	CqrsDryRun *run = cqrs_dry_run_innermost;
	int			i;

	if (run == NULL)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (i = run->nnotes; i > 0 && run->notes[i - 1].subid == subid; i--)
			run->notes[i - 1].subid = parent;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		for (; run->nnotes > 0 && run->notes[run->nnotes - 1].subid == subid;
			 run->nnotes--)
			pfree(DatumGetPointer(run->notes[run->nnotes - 1].event));
	}
}
