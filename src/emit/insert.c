/*-------------------------------------------------------------------------
 *
 * insert.c
 *	  An event is an INSERT: the trigger of a topic's view.
 *
 * Who inserts into the view of a topic emits: the same checks, headers and
 * handlers as of cqrs_emit(), for it is the same code. It is an INSTEAD OF
 * trigger, so the executor has checked the INSERT privilege, of whom it is due
 * to: if the rows come by way of another view, that is that view's owner. Here,
 * it is not checked again.
 *
 * The row that the trigger returns is the event as it was emitted, for
 * RETURNING.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "emit/emit.h"
#include "extension/catalog.h"
#include "log/header.h"
#include "log/topic.h"
#include "mediator/dispatch.h"
#include "registry/registry.h"

/* Columns of a topic's view; cqrs_topic_create() makes it. */
enum
{
	VIEW_POSITION,
	VIEW_EVENT_ID,
	VIEW_EVENT_NAME,
	VIEW_KEY,
	VIEW_PAYLOAD,
	VIEW_HEADERS,
	VIEW_EMITTED_AT,
	VIEW_OCCURRED_AT,
	VIEW_COLUMNS
};

static const Oid column_types[VIEW_COLUMNS] = {
	INT8OID, UUIDOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID
};

static const CqrsTopic *trigger_topic(const TriggerData *trigdata);
static bool has_columns(TupleDesc desc);
static NullableDatum given_headers(const char *event_name,
								   NullableDatum headers,
								   NullableDatum occurred_at);
static void fill_in(const CqrsEvent *event, Datum *values, bool *nulls);
static void refuse(const char *column, const char *event_name,
				   const char *detail);

PG_FUNCTION_INFO_V1(cqrs_insert_event);
PG_FUNCTION_INFO_V1(cqrs_refuse_change);

/*
 * cqrs.insert_event(): INSTEAD OF INSERT trigger of topics' views
 */
Datum
cqrs_insert_event(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum	   *values;
	bool	   *nulls;
	NullableDatum column[VIEW_COLUMNS];
	CqrsEventType *event_type;
	CqrsEvent	event;
	HeapTuple	tuple;
	int			i;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"insert_event\" was not called by trigger manager")));
	event.topic = trigger_topic(trigdata);
	desc = RelationGetDescr(trigdata->tg_relation);
	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(trigdata->tg_trigtuple, desc, values, nulls);
	for (i = 0; i < VIEW_COLUMNS; i++)
	{
		column[i].value = values[i];
		column[i].isnull = nulls[i];
	}

	cqrs_require_writable("INSERT");
	if (column[VIEW_EVENT_NAME].isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("event name must not be null")));
	event_type = cqrs_event_type_get(TextDatumGetCString(column[VIEW_EVENT_NAME].value));
	if (!column[VIEW_POSITION].isnull)
		refuse("position", event_type->name,
			   "It is drawn when the event is emitted.");
	if (!column[VIEW_EMITTED_AT].isnull)
		refuse("emitted_at", event_type->name,
			   "It is when the event is emitted. When it happened, if that is not the same, is its occurred_at.");
	event.event_name = column[VIEW_EVENT_NAME].value;
	event.key = column[VIEW_KEY];
	event.payload = column[VIEW_PAYLOAD];
	event.headers = given_headers(event_type->name, column[VIEW_HEADERS],
								  column[VIEW_OCCURRED_AT]);
	cqrs_emit_given(event_type, &event, column[VIEW_EVENT_ID]);

	/* Its headers are good only until a handler emits something. */
	fill_in(&event, values, nulls);
	tuple = heap_form_tuple(desc, values, nulls);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();
	return PointerGetDatum(tuple);
}

/*
 * cqrs.refuse_change(): trigger of topics' views that refuses UPDATE and DELETE.
 * One for each row, so that the server does not refuse them by itself, and one
 * for each statement, which comes first, and does not ask whether there is a row.
 */
Datum
cqrs_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"refuse_change\" was not called by trigger manager")));
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("events of topic \"%s\" are never changed",
					RelationGetRelationName(trigdata->tg_relation)),
			 TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ?
			 errhint("They are removed once they are delivered and their retention is over: see cqrs_alter_topic().") :
			 errhint("Emit another event that says what is true now.")));
}

/*
 * The topic whose view the trigger is on. Raises 39P01 if it is on anything
 * else, or is of another form; 55000 if the view has not its columns; 42501 for
 * a topic of commands.
 */
static const CqrsTopic *
trigger_topic(const TriggerData *trigdata)
{
	Relation	view = trigdata->tg_relation;
	const CqrsTopic *topic;

	topic = cqrs_registry_topic(RelationGetRelationName(view));
	if (topic == NULL || topic->view != RelationGetRelid(view) ||
		!TRIGGER_FIRED_INSTEAD(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" for relation \"%s\" is not an INSTEAD OF INSERT trigger of a topic's view",
						trigdata->tg_trigger->tgname,
						RelationGetRelationName(view)),
				 errhint("cqrs_create_topic() makes it; to emit the changes of a table, use cqrs_emit_trigger().")));
	if (!has_columns(RelationGetDescr(view)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("view of topic \"%s\" was altered", topic->name),
				 errdetail("It has other columns.")));
	if (topic->runner != NULL)
		cqrs_topic_require(topic, ACL_INSERT);
	return topic;
}

static bool
has_columns(TupleDesc desc)
{
	int			i;

	if (desc->natts < VIEW_COLUMNS)
		return false;
	for (i = 0; i < VIEW_COLUMNS; i++)
		if (TupleDescAttr(desc, i)->atttypid != column_types[i])
			return false;
	return true;
}

/*
 * The headers, with occurred_at among them if it is given as a column. Raises
 * 22023 if it is given in both ways, and differs.
 */
static NullableDatum
given_headers(const char *event_name, NullableDatum headers,
			  NullableDatum occurred_at)
{
	TimestampTz given;
	TimestampTz header;

	if (occurred_at.isnull)
		return headers;
	given = DatumGetTimestampTz(occurred_at.value);
	cqrs_headers_check(headers, event_name);
	if (headers.isnull ||
		!cqrs_header_occurred_at(DatumGetJsonbP(headers.value), &header))
		return cqrs_headers_with_occurred_at(headers, given);
	if (header != given)
		refuse("occurred_at", event_name,
			   "It is another time than that in the event's headers.");
	return headers;
}

/*
 * What the row did not have before its event was emitted.
 */
static void
fill_in(const CqrsEvent *event, Datum *values, bool *nulls)
{
	TimestampTz occurred_at;

	values[VIEW_POSITION] = Int64GetDatum(event->position);
	nulls[VIEW_POSITION] = false;
	values[VIEW_EVENT_ID] = event->event_id;
	nulls[VIEW_EVENT_ID] = false;
	values[VIEW_HEADERS] = event->headers.value;
	nulls[VIEW_HEADERS] = event->headers.isnull;
	values[VIEW_EMITTED_AT] = TimestampTzGetDatum(event->emitted_at);
	nulls[VIEW_EMITTED_AT] = false;
	nulls[VIEW_OCCURRED_AT] = event->headers.isnull ||
		!cqrs_header_occurred_at(DatumGetJsonbP(event->headers.value),
								 &occurred_at);
	if (!nulls[VIEW_OCCURRED_AT])
		values[VIEW_OCCURRED_AT] = TimestampTzGetDatum(occurred_at);
}

static void
refuse(const char *column, const char *event_name, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s of event \"%s\" cannot be given", column, event_name),
			 errdetail_internal("%s", detail)));
}
