/*-------------------------------------------------------------------------
 *
 * event.c
 *	  An event, and how people and handlers see it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/htup_details.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "extension/catalog.h"
#include "log/event.h"
#include "registry/registry.h"

/*
 * Which of the partitions the events of a key are in: by the hash of the key
 * alone, so that they stay together whatever their topics. Without a key, the
 * first one.
 */
int
cqrs_key_partition(NullableDatum key, int partitions)
{
	text	   *value;
	uint32		hash;

	if (partitions == 1 || key.isnull)
		return 0;
	value = DatumGetTextPP(key.value);
	hash = hash_bytes((unsigned char *) VARDATA_ANY(value),
					  VARSIZE_ANY_EXHDR(value));
	if ((Pointer) value != DatumGetPointer(key.value))
		pfree(value);
	return hash % partitions;
}

/*
 * The columns that our tables store of an event; they point where the event
 * does.
 */
void
cqrs_event_store(const CqrsEvent *event, Datum *values, bool *nulls)
{
	values[0] = Int32GetDatum(event->topic->topic_id);
	values[1] = event->event_id;
	values[2] = event->event_name;
	values[3] = event->key.value;
	nulls[3] = event->key.isnull;
	values[4] = event->headers.value;
	nulls[4] = event->headers.isnull;
	values[5] = event->payload.value;
	nulls[5] = event->payload.isnull;
	values[6] = TimestampTzGetDatum(event->emitted_at);
}

/*
 * An event from those columns; its topic is NULL if that was dropped.
 */
void
cqrs_event_load(CqrsEvent *event, int64 position, const Datum *values,
				const bool *nulls)
{
	event->topic = cqrs_registry_topic_by_id(DatumGetInt32(values[0]));
	event->position = position;
	event->xid = InvalidFullTransactionId;
	event->event_id = values[1];
	event->event_name = values[2];
	event->key.value = values[3];
	event->key.isnull = nulls[3];
	event->headers.value = values[4];
	event->headers.isnull = nulls[4];
	event->payload.value = values[5];
	event->payload.isnull = nulls[5];
	event->emitted_at = DatumGetTimestampTz(values[6]);
}

/*
 * The columns that people see first; nulls was cleared.
 */
void
cqrs_event_show(const CqrsEvent *event, Datum *values, bool *nulls)
{
	values[0] = Int64GetDatum(event->position);
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
}

/*
 * The columns of a cqrs_event; they point where the event does.
 */
void
cqrs_event_deform(const CqrsEvent *event, const char *status, int attempts,
				  Datum *values, bool *nulls)
{
	memset(nulls, 0, sizeof(bool) * CQRS_EVENT_COLUMNS);
	cqrs_event_show(event, values, nulls);
	nulls[0] = event->topic == NULL;
	values[7] = CStringGetTextDatum(status);
	values[8] = Int32GetDatum(attempts);
	values[9] = TimestampTzGetDatum(event->emitted_at);
}

/*
 * A cqrs_event value, in the current memory context. desc is the type's.
 */
Datum
cqrs_event_form(const CqrsEvent *event, const char *status, int attempts,
				TupleDesc desc)
{
	Datum		values[CQRS_EVENT_COLUMNS];
	bool		nulls[CQRS_EVENT_COLUMNS];

	cqrs_event_deform(event, status, attempts, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

bool
cqrs_event_is_type(Oid typid)
{
	return cqrs_type_is(typid, "cqrs_event");
}
