/*-------------------------------------------------------------------------
 *
 * router.c
 *	  What sagas wait for, brought to them.
 *
 * A role with sagas has a second subscription, to the topics whose events its sagas wait
 * for, or are started by. Its handler sends an event on to the sagas that may wait for
 * it, as a signal with the event's id; so an event that comes twice counts once. Which
 * these are is looked up: those of the role that await an event of this name from
 * this topic, and either have the event's key as their unique_key, or their id as its
 * correlation id. A saga that waits costs nothing.
 *
 * That is one subscription with one partition, so that what one event causes and
 * another one answers is brought in this order. The times of steps that wait for
 * events go the same way, in a topic of their own: so an event that had committed
 * before the time was over is there first, however late all of this is.
 *
 * The owner is the role, and is checked as any subscription's: if it may not read one
 * of the topics any more, its sagas get nothing, and nobody else's are concerned.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "log/header.h"
#include "mediator/context.h"
#include "registry/registry.h"
#include "saga/start.h"

static void route(const CqrsEvent *event);
static void forward(const CqrsEvent *event, const CqrsTopic *topic);
static void signal_by_key(const CqrsEvent *event, const CqrsTopic *topic,
						  const char *event_name);
static void signal_by_correlation(const CqrsEvent *event,
								  const CqrsTopic *topic,
								  const char *event_name);
static bool awaits(const CqrsSagaDefinition *definition, const char *topic,
				   const char *event_name);
static void send_signal(const CqrsEvent *event, const CqrsTopic *topic,
						const CqrsSaga *saga, const char *event_name);
static void start_by_event(const CqrsEvent *event, const CqrsTopic *topic,
						   const char *event_name);

PG_FUNCTION_INFO_V1(cqrs_route_to_sagas);

/*
 * cqrs.route_to_sagas(event): handler of the subscriptions to what sagas wait for. As
 * cqrs.run_saga(), it takes what is being delivered.
 */
Datum
cqrs_route_to_sagas(PG_FUNCTION_ARGS)
{
	CqrsContext *delivery = cqrs_context_innermost;

	if (delivery == NULL || !delivery->routes_to_sagas ||
		delivery->event == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no event that a saga may wait for is being delivered"),
				 errdetail("cqrs.route_to_sagas() is only called by the delivery.")));
	cqrs_saga_definitions_hold();
	PG_TRY();
	{
		route(delivery->event);
		if (CQRS_DEBUG_TWICE("saga_route"))
		{
			CommandCounterIncrement();
			route(delivery->event);
		}
	}
	PG_FINALLY();
	{
		cqrs_saga_definitions_release();
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

/*
 * Bring an event to the sagas that may wait for it.
 */
static void
route(const CqrsEvent *event)
{
	CqrsSubscription *queue = cqrs_registry_saga_subscription(GetUserId());
	char	   *event_name = TextDatumGetCString(event->event_name);
	const CqrsTopic *topic;

	if (queue == NULL || queue->ntopics == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CQRS_WAIT),
				 errmsg("role \"%s\" has no queue of sagas",
						GetUserNameFromId(GetUserId(), true)),
				 errhint("Create it with cqrs_create_saga_queue().")));
	topic = queue->topics[0];
	if (event->topic->runner != NULL)
	{
		forward(event, topic);
		return;
	}
	if (!event->key.isnull)
		signal_by_key(event, topic, event_name);
	signal_by_correlation(event, topic, event_name);
	start_by_event(event, topic, event_name);
}

/*
 * A time is over: it goes on to the saga.
 */
static void
forward(const CqrsEvent *event, const CqrsTopic *topic)
{
	CqrsSagaMessage message;

	if (cqrs_saga_message_read(event, &message))
		cqrs_saga_send(topic, TextDatumGetCString(event->event_name), &message,
					   event->headers);
}

/*
 * Bring an event to the sagas that await it and have its key.
 */
static void
signal_by_key(const CqrsEvent *event, const CqrsTopic *topic,
			  const char *event_name)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, cqrs_saga_definitions())
	{
		CqrsSagaDefinition *definition = lfirst(lc);
		ListCell   *lc2;
		bool		known = false;

		if (!awaits(definition, event->topic->name, event_name))
			continue;
		foreach(lc2, names)
			known |= strcmp(lfirst(lc2), definition->name) == 0;
		if (known)
			continue;
		names = lappend(names, definition->name);
		foreach(lc2, cqrs_saga_find_by_key(topic->topic_id, definition->name,
										   event->key.value))
		{
			CqrsSaga	saga;

			if (cqrs_saga_find(&((CqrsSaga *) lfirst(lc2))->saga_id, &saga))
				send_signal(event, topic, &saga, event_name);
		}
	}
}

/*
 * Bring an event to the saga whose id is its correlation id, if that awaits it.
 */
static void
signal_by_correlation(const CqrsEvent *event, const CqrsTopic *topic,
					  const char *event_name)
{
	pg_uuid_t	saga_id;
	CqrsSaga	saga;
	char	   *correlation;
	int			len;

	if (event->headers.isnull ||
		!JB_ROOT_IS_OBJECT(DatumGetJsonbP(event->headers.value)))
		return;
	correlation = cqrs_header_string(DatumGetJsonbP(event->headers.value),
									 "correlation_id", &len);
	if (correlation == NULL || !cqrs_uuid_read(correlation, len, &saga_id) ||
		!cqrs_saga_find(&saga_id, &saga) ||
		saga.topic_id != topic->topic_id)
		return;
	send_signal(event, topic, &saga, event_name);
}

/*
 * Does a saga wait for an event of this name from this topic?
 */
static bool
awaits(const CqrsSagaDefinition *definition, const char *topic,
	   const char *event_name)
{
	int			i;

	for (i = 0; i < definition->nsteps; i++)
	{
		const CqrsSagaStep *step = &definition->steps[i];

		if (step->kind == CQRS_SAGA_AWAIT && step->topic != NULL &&
			strcmp(step->topic, topic) == 0 &&
			strcmp(step->event_name, event_name) == 0)
			return true;
	}
	return false;
}

/*
 * Tell a saga of an event, if it awaits such a one.
 */
static void
send_signal(const CqrsEvent *event, const CqrsTopic *topic,
			const CqrsSaga *saga, const char *event_name)
{
	CqrsSagaDefinition *definition = cqrs_saga_definition(saga->name,
														  saga->version);
	CqrsSagaMessage message = {.kind = CQRS_SAGA_SIGNAL};

	if (definition == NULL ||
		!awaits(definition, event->topic->name, event_name))
		return;
	message.saga_id = saga->saga_id;
	message.id = *DatumGetUUIDP(event->event_id);
	message.name = unconstify(char *, event_name);
	message.payload = event->payload;
	cqrs_saga_send(topic, saga->name, &message, event->headers);
}

/*
 * Start the sagas that begin with such an event: once each, as their ids follow from
 * it. One that is kept with its key is enough.
 */
static void
start_by_event(const CqrsEvent *event, const CqrsTopic *topic,
			   const char *event_name)
{
	char	   *owner = GetUserNameFromId(GetUserId(), false);
	char		id[CQRS_UUID_TEXT_LEN + 1];
	ListCell   *lc;

	foreach(lc, cqrs_saga_definitions())
	{
		CqrsSagaDefinition *definition = lfirst(lc);
		NullableDatum unique_key = event->key;
		pg_uuid_t	saga_id;
		CqrsSaga	saga;

		if (!definition->is_current || definition->on_event == NULL ||
			strcmp(definition->on_event, event_name) != 0 ||
			strcmp(definition->on_topic, event->topic->name) != 0 ||
			strcmp(definition->starter, owner) != 0)
			continue;
		cqrs_event_id_from(psprintf("saga \"%s\" on %s", definition->name,
									cqrs_uuid_text(DatumGetUUIDP(event->event_id), id)),
						   &saga_id);
		if (cqrs_saga_find_kept(&saga_id, &saga, NULL))
			continue;

		/* Not every key of an event can be one of a saga. */
		unique_key.isnull |= !cqrs_saga_key_is_valid(unique_key);
		if (!unique_key.isnull)
		{
			cqrs_saga_lock_key(topic->topic_id, definition->name,
							   DatumGetTextPP(unique_key.value));
			if (cqrs_saga_find_by_key(topic->topic_id, definition->name,
									  unique_key.value) != NIL)
				continue;
		}
		cqrs_saga_start(definition, topic, &saga_id, event->payload.isnull ?
						DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) :
						event->payload.value, unique_key,
						event->headers);
		CommandCounterIncrement();
	}
}
