/*-------------------------------------------------------------------------
 *
 * diagram_sequence.c
 *	  How a command is handled, as a sequence diagram.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "monitor/diagram_sequence.h"
#include "monitor/diagram_text.h"
#include "registry/registry.h"

static List *sequence_participants(StringInfo text, const CqrsCommand *command);
static void sequence_middleware(StringInfo text, bool in);
static void sequence_handlers(StringInfo text, const CqrsCommand *command,
							  List *functions);
static void sequence_events(StringInfo text, int indent);
static void sequence_delivery(StringInfo text);
static int	number_of(List *functions, const char *signature);
static bool any_event_handlers(void);

/*
 * The sequence diagram of a command, palloc'd. Raises 42883 if there is none of
 * that name.
 */
char *
cqrs_diagram_sequence(const char *name)
{
	CqrsCommand *command = cqrs_registry_command(name);
	StringInfoData text;
	List	   *functions;
	const char *sent;

	if (command == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("command \"%s\" is not registered", name),
				 errdetail("Nor is a query or a stream of that name.")));
	sent = cqrs_command_function(command->kind);

	initStringInfo(&text);
	functions = sequence_participants(&text, command);
	cqrs_diagram_line(&text, 1, "caller->>mediator: %.*s(%s)",
					  (int) strcspn(sent, "("), sent,
					  cqrs_diagram_escaped(name));
	if (command->kind == CQRS_STREAM)
	{
		cqrs_diagram_line(&text, 1, "loop for each row");
		cqrs_diagram_line(&text, 2, "mediator->>h1: payload");
		cqrs_diagram_line(&text, 2, "h1-->>mediator: row");
		sequence_events(&text, 2);
		cqrs_diagram_line(&text, 2, "mediator-->>caller: row");
		cqrs_diagram_line(&text, 1, "end");
	}
	else
	{
		sequence_middleware(&text, true);
		sequence_handlers(&text, command, functions);
		sequence_middleware(&text, false);
		if (command->kind == CQRS_COMMAND)
			sequence_events(&text, 1);
		cqrs_diagram_line(&text, 1, "mediator-->>caller: answer");
	}
	if (command->kind != CQRS_QUERY)
		sequence_delivery(&text);
	return text.data;
}

/*
 * Begin with those who take part. Returns the signatures of the functions: the
 * n-th, counted from 1, is participant hn.
 */
static List *
sequence_participants(StringInfo text, const CqrsCommand *command)
{
	List	   *functions = NIL;
	CqrsMiddleware *middleware;
	ListCell   *lc;
	int			m = 0;
	int			n = 0;
	int			i;

	for (i = 0; i < command->nhandlers; i++)
	{
		CqrsHandler *handler = &command->handlers[i];

		if (number_of(functions, handler->signature) == 0)
			functions = lappend(functions, handler->signature);
		if (handler->fallback != NULL &&
			number_of(functions, handler->fallback->handler.signature) == 0)
			functions = lappend(functions,
								handler->fallback->handler.signature);
	}

	cqrs_diagram_line(text, 0, "sequenceDiagram");
	cqrs_diagram_line(text, 1, "actor caller");
	cqrs_diagram_line(text, 1, "participant mediator");
	if (command->kind != CQRS_STREAM)
		for (middleware = cqrs_registry_get_middleware(); middleware != NULL;
			 middleware = middleware->next)
			cqrs_diagram_line(text, 1, "participant m%d as %s", ++m,
							  cqrs_diagram_escaped(middleware->handler.signature));
	foreach(lc, functions)
		cqrs_diagram_line(text, 1, "participant h%d as %s", ++n,
						  cqrs_diagram_escaped(lfirst(lc)));
	if (command->kind == CQRS_QUERY)
		return functions;
	if (any_event_handlers())
		cqrs_diagram_line(text, 1, "participant events as handlers of events");
	if (cqrs_diagram_entries(cqrs_registry_topics) != NIL)
		cqrs_diagram_line(text, 1, "participant outbox");
	if (cqrs_diagram_entries(cqrs_registry_subscriptions) != NIL)
		cqrs_diagram_line(text, 1, "participant relay");
	return functions;
}

/*
 * The way in through the middleware to the mediator, or the way out.
 */
static void
sequence_middleware(StringInfo text, bool in)
{
	CqrsMiddleware *middleware;
	int			n = 0;

	for (middleware = cqrs_registry_get_middleware(); middleware != NULL;
		 middleware = middleware->next)
		n++;
	if (n == 0)
		return;
	if (in)
	{
		int			i;

		cqrs_diagram_line(text, 1, "mediator->>m1: request");
		for (i = 1; i < n; i++)
			cqrs_diagram_line(text, 1, "m%d->>m%d: cqrs_proceed()", i, i + 1);
		cqrs_diagram_line(text, 1, "m%d->>mediator: cqrs_proceed()", n);
		return;
	}
	cqrs_diagram_line(text, 1, "mediator-->>m%d: answer", n);
	for (; n > 1; n--)
		cqrs_diagram_line(text, 1, "m%d-->>m%d: answer", n, n - 1);
	cqrs_diagram_line(text, 1, "m1-->>mediator: answer");
}

/*
 * The handlers, one or a chain: each in the case that those before passed on.
 */
static void
sequence_handlers(StringInfo text, const CqrsCommand *command,
				  List *functions)
{
	bool		is_chain = command->nhandlers > 1;
	int			cases = 0;		/* not ended */
	int			i;

	for (i = 0; i < command->nhandlers; i++)
	{
		CqrsFallback *fallback = command->handlers[i].fallback;
		int			h = number_of(functions, command->handlers[i].signature);
		int			indent = i + 1;

		cqrs_diagram_line(text, indent, "mediator->>h%d: payload", h);
		if (!is_chain && fallback == NULL)
		{
			cqrs_diagram_line(text, indent, "h%d-->>mediator: answer", h);
			break;
		}
		cqrs_diagram_line(text, indent, "alt it answers");
		cases++;
		cqrs_diagram_line(text, indent + 1, "h%d-->>mediator: answer", h);
		if (fallback != NULL)
		{
			int			f = number_of(functions, fallback->handler.signature);

			cqrs_diagram_line(text, indent, "else it raises %s%s",
							  cqrs_diagram_errors(fallback),
							  fallback->breaker.fail_max > 0 ?
							  ", or its circuit breaker is open" : "");
			cqrs_diagram_line(text, indent + 1,
							  "h%d--xmediator: error, and all that it did is rolled back",
							  h);
			cqrs_diagram_line(text, indent + 1, "mediator->>h%d: payload", f);
			cqrs_diagram_line(text, indent + 1, "h%d-->>mediator: answer", f);
		}
		if (is_chain)
		{
			cqrs_diagram_line(text, indent, "else it passes on");
			cqrs_diagram_line(text, indent + 1,
							  "h%d-->>mediator: cqrs_next(), and all that it did is rolled back",
							  h);
			if (i + 1 == command->nhandlers)
				cqrs_diagram_line(text, indent + 1, "Note over mediator: the answer is NULL");
		}
	}
	while (cases > 0)
		cqrs_diagram_line(text, cases--, "end");
}

/*
 * What becomes of events in the transaction. Which there are is not
 * registered.
 */
static void
sequence_events(StringInfo text, int indent)
{
	if (!any_event_handlers())
		return;
	cqrs_diagram_line(text, indent, "loop until no event is left that has handlers");
	cqrs_diagram_line(text, indent + 1, "mediator->>events: what was emitted");
	cqrs_diagram_line(text, indent + 1, "events-->>mediator: done");
	cqrs_diagram_line(text, indent, "end");
}

/*
 * What becomes of them after it.
 */
static void
sequence_delivery(StringInfo text)
{
	bool		to_handlers = false;
	bool		to_clients = false;
	bool		to_brokers = false;
	ListCell   *lc;

	if (cqrs_diagram_entries(cqrs_registry_topics) == NIL)
		return;
	cqrs_diagram_line(text, 1, "caller->>outbox: COMMIT, with what was emitted to topics");
	foreach(lc, cqrs_diagram_entries(cqrs_registry_subscriptions))
	{
		CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);

		if (subscription->has_handler)
			to_handlers = true;
		else if (subscription->server != NULL)
			to_brokers = true;
		else
			to_clients = true;
	}
	if (!to_handlers && !to_brokers && !to_clients)
		return;
	cqrs_diagram_line(text, 1, "outbox->>relay: what is committed, in order");
	if (to_handlers)
		cqrs_diagram_line(text, 1, "Note over relay: calls the handlers of subscriptions, once for each event");
	if (to_brokers)
		cqrs_diagram_line(text, 1, "Note over relay: sends to brokers, at least once");
	if (to_clients)
		cqrs_diagram_line(text, 1, "Note over relay: hands out to clients that ask, until they acknowledge");
}

/*
 * Which one of the functions it is, counted from 1; 0: none.
 */
static int
number_of(List *functions, const char *signature)
{
	ListCell   *lc;
	int			n = 0;

	foreach(lc, functions)
	{
		n++;
		if (strcmp(lfirst(lc), signature) == 0)
			return n;
	}
	return 0;
}

static bool
any_event_handlers(void)
{
	ListCell   *lc;

	foreach(lc, cqrs_diagram_entries(cqrs_registry_event_types))
		if (((CqrsEventType *) lfirst(lc))->handlers != NULL)
		return true;
	return false;
}
