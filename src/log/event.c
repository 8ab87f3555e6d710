/*-------------------------------------------------------------------------
 *
 * event.c
 *	  An event, and how people and handlers see it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

#include "extension/catalog.h"
#include "log/event.h"
#include "registry/registry.h"

static Datum as_text(PGFunction output, Datum value);

/*
 * The key given as an argument of a SQL function, of type anycompatible, as text.
 * It is called that of something of this kind and name in messages.
 *
 * What may be a key has one text form, which no setting changes. Raises 22023
 * for anything else.
 */
NullableDatum
cqrs_key_arg(FunctionCallInfo fcinfo, int argno, const char *kind,
			 const char *name)
{
	NullableDatum key = fcinfo->args[argno];
	Oid			key_type;

	if (key.isnull)
		return key;
	key_type = get_fn_expr_argtype(fcinfo->flinfo, argno);
	if (likely(key_type == TEXTOID))
		return key;
	switch (OidIsValid(key_type) ? getBaseType(key_type) : InvalidOid)
	{
		case TEXTOID:
		case VARCHAROID:
			break;
		case BPCHAROID:
			key.value = DirectFunctionCall1(rtrim1, key.value);
			break;
		case NAMEOID:
			key.value = DirectFunctionCall1(name_text, key.value);
			break;
		case UUIDOID:
			key.value = as_text(uuid_out, key.value);
			break;
		case INT2OID:
			key.value = as_text(int2out, key.value);
			break;
		case INT4OID:
			key.value = as_text(int4out, key.value);
			break;
		case INT8OID:
			key.value = as_text(int8out, key.value);
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key of %s \"%s\" cannot be of type %s", kind, name,
							cqrs_type_name(key_type)),
					 errhint("Give text, an integer, or a uuid; or cast it to text.")));
	}
	return key;
}

static Datum
as_text(PGFunction output, Datum value)
{
	return CStringGetTextDatum(DatumGetCString(DirectFunctionCall1(output,
																   value)));
}

/*
 * The lane of an event: those of one lane are delivered in order, and wait for
 * each other. With by_topic, that is its topic; otherwise its topic and key or,
 * without a key, it alone. A hash stands for it.
 */
uint64
cqrs_event_lane(const CqrsEvent *event, bool by_topic)
{
	int32		topic_id = event->topic->topic_id;
	text	   *key;
	uint64		lane;

	if (by_topic)
		return hash_bytes_uint32_extended(topic_id, 1);
	if (event->key.isnull)
		return hash_bytes_extended(DatumGetUUIDP(event->event_id)->data,
								   UUID_LEN, topic_id);
	key = DatumGetTextPP(event->key.value);
	lane = hash_bytes_extended((unsigned char *) VARDATA_ANY(key),
							   VARSIZE_ANY_EXHDR(key), topic_id);
	if ((Pointer) key != DatumGetPointer(event->key.value))
		pfree(key);
	return lane;
}

/*
 * Which of the partitions an event is in. All of a lane are in one; and those of a
 * key are, whatever their topics, unless by_topic.
 */
int
cqrs_event_partition(int32 topic_id, Datum event_id, NullableDatum key,
					 bool by_topic, int partitions)
{
	text	   *value;
	uint32		hash;

	if (partitions == 1)
		return 0;
	if (by_topic)
		return hash_bytes_uint32(topic_id) % partitions;
	if (key.isnull)
		return hash_bytes(DatumGetUUIDP(event_id)->data, UUID_LEN) % partitions;
	value = DatumGetTextPP(key.value);
	hash = hash_bytes((unsigned char *) VARDATA_ANY(value),
					  VARSIZE_ANY_EXHDR(value));
	if ((Pointer) value != DatumGetPointer(key.value))
		pfree(value);
	return hash % partitions;
}

/*
 * The columns that our tables store of an event; they point where the event
 * does. nulls was cleared.
 */
void
cqrs_event_store(const CqrsEvent *event, Datum *values, bool *nulls)
{
	values[0] = Int64GetDatum(event->position);
	values[1] = event->event_id;
	values[2] = event->event_name;
	values[3] = Int32GetDatum(event->topic->topic_id);
	values[4] = event->key.value;
	nulls[4] = event->key.isnull;
	values[5] = event->payload.value;
	nulls[5] = event->payload.isnull;
	values[6] = event->headers.value;
	nulls[6] = event->headers.isnull;
	values[7] = TimestampTzGetDatum(event->emitted_at);
}

/*
 * An event from those columns; its topic is NULL if that was dropped.
 */
void
cqrs_event_load(CqrsEvent *event, const Datum *values, const bool *nulls)
{
	event->position = DatumGetInt64(values[0]);
	event->xid = InvalidFullTransactionId;
	event->event_id = values[1];
	event->event_name = values[2];
	event->topic = cqrs_registry_topic_by_id(DatumGetInt32(values[3]));
	event->key.value = values[4];
	event->key.isnull = nulls[4];
	event->payload.value = values[5];
	event->payload.isnull = nulls[5];
	event->headers.value = values[6];
	event->headers.isnull = nulls[6];
	event->emitted_at = DatumGetTimestampTz(values[7]);
}

/*
 * The columns of an event as people see them; they point where the event's do.
 * nulls was cleared.
 */
void
cqrs_event_show(const CqrsEvent *event, Datum *values, bool *nulls)
{
	values[0] = Int64GetDatum(event->position);
	nulls[0] = event->position == 0;
	values[1] = event->event_id;
	values[2] = event->event_name;
	nulls[3] = event->topic == NULL;
	if (event->topic != NULL)
		values[3] = CStringGetTextDatum(event->topic->name);
	values[4] = event->key.value;
	nulls[4] = event->key.isnull;
	values[5] = event->payload.value;
	nulls[5] = event->payload.isnull;
	values[6] = event->headers.value;
	nulls[6] = event->headers.isnull;
	values[7] = TimestampTzGetDatum(event->emitted_at);
}

/*
 * A cqrs_event value, in the current memory context. desc is the type's.
 */
Datum
cqrs_event_form(const CqrsEvent *event, TupleDesc desc)
{
	Datum		values[CQRS_EVENT_COLUMNS];
	bool		nulls[CQRS_EVENT_COLUMNS] = {0};

	cqrs_event_show(event, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

bool
cqrs_event_is_type(Oid typid)
{
	return cqrs_type_is(typid, "cqrs_event");
}

bool
cqrs_event_is_array(Oid typid)
{
	Oid			element = get_element_type(typid);

	return OidIsValid(element) && cqrs_event_is_type(element);
}
