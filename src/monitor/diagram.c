/*-------------------------------------------------------------------------
 *
 * diagram.c
 *	  What is registered, as a picture: cqrs_diagram().
 *
 * The text is Mermaid's (https://mermaid.js.org). Names may be anything, so
 * they are in labels only, where all that Mermaid, Markdown or HTML could take
 * for something is an entity code. What a diagram itself calls things by is a
 * letter and a number.
 *
 * A flowchart is a graph that is collected from the registry in order of the
 * names, so that equal registries have equal diagrams. A function is one node,
 * however many things it handles. Which events a handler emits is not
 * registered, so there is no edge for it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"

#include "monitor/diagram_sequence.h"
#include "monitor/diagram_text.h"
#include "registry/registry.h"

typedef enum DiagramKind
{
	NODE_MIDDLEWARE,
	NODE_COMMAND,
	NODE_QUERY,
	NODE_STREAM,
	NODE_FUNCTION,
	NODE_EVENT,
	NODE_TOPIC,
	NODE_SUBSCRIPTION,
	NODE_BROKER,
	NODE_KINDS
} DiagramKind;

/* What a node looks like; begin and end are the shape. */
typedef struct DiagramShape
{
	const char *id;				/* what its number is put behind */
	const char *title;			/* the label's first line, or NULL */
	const char *begin;
	const char *end;
} DiagramShape;

static const DiagramShape shapes[NODE_KINDS] = {
	[NODE_MIDDLEWARE] = {"m", "middleware", "[[", "]]"},
	[NODE_COMMAND] = {"c", "command", "([", "])"},
	[NODE_QUERY] = {"q", "query", "([", "])"},
	[NODE_STREAM] = {"r", "stream", "([", "])"},
	[NODE_FUNCTION] = {"f", NULL, "[", "]"},
	[NODE_EVENT] = {"e", "event", ">", "]"},
	[NODE_TOPIC] = {"t", "topic", "[(", ")]"},
	[NODE_SUBSCRIPTION] = {"s", "subscription", "[/", "/]"},
	[NODE_BROKER] = {"b", "broker", "{{", "}}"},
};

typedef struct DiagramKey
{
	DiagramKind kind;
	char		name[CQRS_MAX_SIGNATURE];
} DiagramKey;

typedef struct DiagramNode
{
	DiagramKey	key;			/* hash key */
	bool		has_fallback;	/* ... among the edges */
	bool		above;			/* leads to what was asked for */
	bool		below;			/* is led to from there */
	int			number;			/* of its kind */
} DiagramNode;

typedef struct DiagramEdge
{
	DiagramNode *from;
	DiagramNode *to;
	const char *arrow;
	const char *label;			/* escaped; NULL: none */
} DiagramEdge;

typedef struct Diagram
{
	HTAB	   *nodes;
	List	   *edges;			/* in the order in which they are shown */
} Diagram;

static char *flowchart(const char *name);
static void add_commands(Diagram *graph);
static DiagramNode *add_middleware(Diagram *graph);
static void add_events(Diagram *graph);
static void add_topics(Diagram *graph);
static DiagramNode *add_node(Diagram *graph, DiagramKind kind, const char *name);
static DiagramNode *add_function(Diagram *graph, const CqrsHandler *handler);
static void add_edge(Diagram *graph, DiagramNode *from, const char *arrow,
					 const char *label, DiagramNode *to);
static void choose(Diagram *graph, const char *name);
static List *chosen_nodes(Diagram *graph);
static int	compare_nodes(const ListCell *a, const ListCell *b);

PG_FUNCTION_INFO_V1(cqrs_diagram);

/*
 * cqrs_diagram(kind, name)
 */
Datum
cqrs_diagram(PG_FUNCTION_ARGS)
{
	char	   *kind;
	char	   *name = NULL;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("kind of diagram must not be null")));
	kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
		name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	AcceptInvalidationMessages();
	if (strcmp(kind, "flowchart") == 0)
		PG_RETURN_TEXT_P(cstring_to_text(flowchart(name)));
	if (strcmp(kind, "sequence") == 0)
	{
		if (name == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("name must not be null"),
					 errdetail("A sequence diagram shows one command, query or stream.")));
		PG_RETURN_TEXT_P(cstring_to_text(cqrs_diagram_sequence(name)));
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized kind of diagram \"%s\"", kind),
			 errhint("Valid values are \"flowchart\" and \"sequence\".")));
}

/*
 * The flowchart, palloc'd; unless name is NULL, of what leads to and from what
 * has that name. Raises 42704 if nothing has.
 */
static char *
flowchart(const char *name)
{
	HASHCTL		ctl = {.keysize = sizeof(DiagramKey),.entrysize = sizeof(DiagramNode)};
	int			numbers[NODE_KINDS] = {0};
	StringInfoData text;
	Diagram		graph;
	ListCell   *lc;

	ctl.hcxt = CurrentMemoryContext;
	graph.nodes = hash_create("cqrs diagram", 256, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	graph.edges = NIL;
	add_commands(&graph);
	add_events(&graph);
	add_topics(&graph);
	choose(&graph, name);

	initStringInfo(&text);
	cqrs_diagram_line(&text, 0, "flowchart LR");
	foreach(lc, chosen_nodes(&graph))
	{
		DiagramNode *node = (DiagramNode *) lfirst(lc);
		const DiagramShape *shape = &shapes[node->key.kind];

		node->number = ++numbers[node->key.kind];
		cqrs_diagram_line(&text, 1, "%s%d%s\"%s%s%s\"%s", shape->id, node->number,
						  shape->begin, shape->title ? shape->title : "",
						  shape->title ? "<br/>" : "", cqrs_diagram_escaped(node->key.name),
						  shape->end);
	}
	foreach(lc, graph.edges)
	{
		DiagramEdge *edge = (DiagramEdge *) lfirst(lc);

		/* Only what is on a way, not what just lies between. */
		if (!(edge->from->above && edge->to->above) &&
			!(edge->from->below && edge->to->below))
			continue;
		cqrs_diagram_line(&text, 1, "%s%d %s%s%s%s %s%d",
						  shapes[edge->from->key.kind].id, edge->from->number, edge->arrow,
						  edge->label ? "|\"" : "", edge->label ? edge->label : "",
						  edge->label ? "\"|" : "",
						  shapes[edge->to->key.kind].id, edge->to->number);
	}
	return text.data;
}

/*
 * Add commands, queries and streams, with what handles them.
 */
static void
add_commands(Diagram *graph)
{
	static const DiagramKind kinds[] = {
		[CQRS_COMMAND] = NODE_COMMAND,
		[CQRS_QUERY] = NODE_QUERY,
		[CQRS_STREAM] = NODE_STREAM,
	};
	List	   *commands = cqrs_diagram_entries(cqrs_registry_commands);
	DiagramNode *innermost = add_middleware(graph);
	ListCell   *lc;

	foreach(lc, commands)
	{
		CqrsCommand *command = (CqrsCommand *) lfirst(lc);
		DiagramNode *node = add_node(graph, kinds[command->kind],
									 command->name);
		int			i;

		if (innermost != NULL && command->kind != CQRS_STREAM)
			add_edge(graph, innermost, "-->", NULL, node);
		for (i = 0; i < command->nhandlers; i++)
			add_edge(graph, node, "-->",
					 command->nhandlers > 1 ? psprintf("%d", i + 1) : NULL,
					 add_function(graph, &command->handlers[i]));
	}
}

/*
 * Add the middleware, from the outermost to the innermost, which is returned;
 * NULL if there is none. The registry was looked at before.
 */
static DiagramNode *
add_middleware(Diagram *graph)
{
	DiagramNode *innermost = NULL;
	CqrsMiddleware *middleware;

	for (middleware = cqrs_registry_get_middleware(); middleware != NULL;
		 middleware = middleware->next)
	{
		DiagramNode *node = add_node(graph, NODE_MIDDLEWARE,
									 middleware->handler.signature);

		if (innermost != NULL)
			add_edge(graph, innermost, "-->", NULL, node);
		innermost = node;
	}
	return innermost;
}

/*
 * Add events, where they go, and what handles them in the transaction.
 */
static void
add_events(Diagram *graph)
{
	ListCell   *lc;

	foreach(lc, cqrs_diagram_entries(cqrs_registry_event_types))
	{
		CqrsEventType *type = (CqrsEventType *) lfirst(lc);
		DiagramNode *node = add_node(graph, NODE_EVENT, type->name);
		CqrsEventHandler *handler;
		int			n = 0;

		if (type->topic != NULL)
			add_edge(graph, node, "==>", NULL,
					 add_node(graph, NODE_TOPIC, type->topic->name));
		for (handler = type->handlers; handler != NULL;
			 handler = handler->next)
			add_edge(graph, node, "-->",
					 type->handlers->next ? psprintf("%d", ++n) : NULL,
					 add_function(graph, &handler->handler));
	}
}

/*
 * Add topics, the subscriptions to them, and where those deliver to.
 */
static void
add_topics(Diagram *graph)
{
	ListCell   *lc;

	foreach(lc, cqrs_diagram_entries(cqrs_registry_topics))
		(void) add_node(graph, NODE_TOPIC, ((CqrsTopic *) lfirst(lc))->name);
	foreach(lc, cqrs_diagram_entries(cqrs_registry_subscriptions))
	{
		CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);
		DiagramNode *node = add_node(graph, NODE_SUBSCRIPTION,
									 subscription->name);
		List	   *topics = NIL;
		ListCell   *topic;
		int			i;

		for (i = 0; i < subscription->ntopics; i++)
			topics = lappend(topics, subscription->topics[i]);
		list_sort(topics, cqrs_diagram_compare);
		foreach(topic, topics)
			add_edge(graph, add_node(graph, NODE_TOPIC, lfirst(topic)), "==>",
					 NULL, node);
		if (subscription->has_handler)
			add_edge(graph, node, "==>", NULL,
					 add_function(graph, &subscription->handler));
		if (subscription->server != NULL)
			add_edge(graph, node, "==>", cqrs_diagram_escaped(subscription->format),
					 add_node(graph, NODE_BROKER, subscription->server));
	}
}

/*
 * The node with this name, added if need be.
 */
static DiagramNode *
add_node(Diagram *graph, DiagramKind kind, const char *name)
{
	DiagramKey	key;
	DiagramNode *node;
	bool		found;

	memset(&key, 0, sizeof(key));
	key.kind = kind;
	strlcpy(key.name, name, sizeof(key.name));
	node = hash_search(graph->nodes, &key, HASH_ENTER, &found);
	if (!found)
	{
		node->has_fallback = node->above = node->below = false;
		node->number = 0;
	}
	return node;
}

/*
 * The node of a handler, with its fallback.
 */
static DiagramNode *
add_function(Diagram *graph, const CqrsHandler *handler)
{
	DiagramNode *node = add_node(graph, NODE_FUNCTION, handler->signature);

	if (handler->fallback != NULL && !node->has_fallback)
	{
		node->has_fallback = true;
		add_edge(graph, node, "-.->",
				 psprintf("on %s", cqrs_diagram_errors(handler->fallback)),
				 add_node(graph, NODE_FUNCTION,
						  handler->fallback->handler.signature));
	}
	return node;
}

static void
add_edge(Diagram *graph, DiagramNode *from, const char *arrow, const char *label,
		 DiagramNode *to)
{
	DiagramEdge *edge = palloc(sizeof(DiagramEdge));

	edge->from = from;
	edge->to = to;
	edge->arrow = arrow;
	edge->label = label;
	graph->edges = lappend(graph->edges, edge);
}

/*
 * Mark what is to be shown: all, or what leads to or is led to from the nodes
 * with this name, but not those of functions. Raises 42704 if there are none.
 */
static void
choose(Diagram *graph, const char *name)
{
	HASH_SEQ_STATUS status;
	DiagramNode *node;
	bool		found = name == NULL;
	bool		changed = name != NULL;

	hash_seq_init(&status, graph->nodes);
	while ((node = hash_seq_search(&status)) != NULL)
	{
		node->above = node->below = name == NULL ||
			(node->key.kind != NODE_FUNCTION &&
			 node->key.kind != NODE_MIDDLEWARE &&
			 strcmp(node->key.name, name) == 0);
		found = found || node->above;
	}
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("nothing is registered as \"%s\"", name),
				 errhint("Name a command, a query, a stream, an event, a topic, a subscription or a broker's server.")));

	/* No way has more than a few steps. */
	while (changed)
	{
		ListCell   *lc;

		changed = false;
		foreach(lc, graph->edges)
		{
			DiagramEdge *edge = (DiagramEdge *) lfirst(lc);

			if (edge->from->below && !edge->to->below)
				changed = edge->to->below = true;
			if (edge->to->above && !edge->from->above)
				changed = edge->from->above = true;
		}
	}
}

/*
 * The nodes to be shown, by kind and name.
 */
static List *
chosen_nodes(Diagram *graph)
{
	HASH_SEQ_STATUS status;
	List	   *nodes = NIL;
	DiagramNode *node;

	hash_seq_init(&status, graph->nodes);
	while ((node = hash_seq_search(&status)) != NULL)
		if (node->above || node->below)
			nodes = lappend(nodes, node);
	list_sort(nodes, compare_nodes);
	return nodes;
}

static int
compare_nodes(const ListCell *a, const ListCell *b)
{
	const DiagramKey *left = &((const DiagramNode *) lfirst(a))->key;
	const DiagramKey *right = &((const DiagramNode *) lfirst(b))->key;

	if (left->kind != right->kind)
		return (int) left->kind - (int) right->kind;
	return strcmp(left->name, right->name);
}
