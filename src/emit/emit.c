/*-------------------------------------------------------------------------
 *
 * emit.c
 *	  The write path: events into the outbox, in the caller's transaction.
 *
 * An event is a row of the topic's current segment. It is written past the
 * executor, so that the caller needs no privilege on the table, forges
 * neither xid nor position, and pays about half of what an INSERT
 * costs.
 *
 * Which segment is the current one may have changed since the registry was
 * loaded. That is harmless: readers read all of them.
 *
 * An event whose type has handlers is also queued for them (domain_event.c).
 * If its type has no topic, nothing is written, unless the caller names one.
 *
 * Locking
 *
 * The lock on the segment stays until the end of the transaction. Otherwise, a
 * TRUNCATE could remove the uncommitted row.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "emit/emit.h"
#include "extension/catalog.h"
#include "log/header.h"
#include "log/position.h"
#include "log/segment.h"
#include "log/segment_index.h"
#include "log/topic.h"
#include "mediator/context.h"
#include "mediator/dispatch.h"
#include "mediator/domain_event.h"
#include "mediator/dry_run.h"
#include "mediator/event_type.h"
#include "registry/payload.h"
#include "registry/registry.h"
#include "shared/announce.h"

/* How many events, and how many bytes, are written at once, as in COPY. */
#define MULTI_INSERT_ROWS	1000
#define MULTI_INSERT_BYTES	65536

/*
 * A segment is written at its end, whatever room a VACUUM has found before
 * that. Otherwise old pages would be written again, and whole to WAL after
 * each checkpoint, although they are truncated soon anyway.
 */
#define INSERT_OPTIONS	TABLE_INSERT_SKIP_FSM

/* A segment open for writing. */
typedef struct Writer
{
	Relation	rel;
	CqrsIndexes indexes;
	Oid			position_seq;
	FullTransactionId xid;
	int32		topic_id;
} Writer;

/* The elements of an array; no values: there is no array. */
typedef struct Elements
{
	Datum	   *values;
	bool	   *nulls;
	int			n;
} Elements;

/* Events of one type on their way to a segment. */
struct CqrsEmitter
{
	CqrsEventType *event_type;
	const CqrsTopic *topic;		/* NULL: none */
	Datum		event_name;
	Writer		writer;			/* from here on: only if there is a topic */
	MemoryContext context;		/* where all of this is */
	MemoryContext scratch;		/* reset after each write */
	BulkInsertState bistate;
	TupleTableSlot *slots[MULTI_INSERT_ROWS];
	int			nslots;
	int			used;			/* slots in use, not written yet */
	Size		bytes;			/* of their payloads */
};

static const CqrsTopic *topic_arg(FunctionCallInfo fcinfo, int argno,
								  const CqrsEventType *event_type);
static void get_elements(FunctionCallInfo fcinfo, int argno, Oid type,
						 Elements *elements);
static void get_matching(FunctionCallInfo fcinfo, int argno, Oid type,
						 const char *what, const char *event_name,
						 int npayloads, Elements *elements);
static inline NullableDatum element(const Elements *elements, int i);
static ArrayType *make_ids(int n);
static inline void init_event(CqrsEvent *event, const CqrsTopic *topic,
							  pg_uuid_t *event_id, Datum event_name,
							  NullableDatum key, NullableDatum payload);
static inline void emit(CqrsEmitter *emitter, CqrsEventType *event_type,
						CqrsEvent *event);
static void writer_open(Writer *writer, const CqrsTopic *topic);
static void writer_close(Writer *writer);
static void fill_slot(Writer *writer, TupleTableSlot *slot, CqrsEvent *event);
static void buffer(CqrsEmitter *emitter, CqrsEvent *event);
static void insert_many(CqrsEmitter *emitter);

PG_FUNCTION_INFO_V1(cqrs_emit);
PG_FUNCTION_INFO_V1(cqrs_emit_many);

/*
 * cqrs_emit(event_name, payload, key, headers, topic, event_id)
 */
Datum
cqrs_emit(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	CqrsEventType *event_type;
	CqrsEvent	event;

	cqrs_require_writable("cqrs_emit()");
	event_type = cqrs_event_type_get(name);
	event.topic = topic_arg(fcinfo, 4, event_type);
	event.event_name = PG_GETARG_DATUM(0);
	event.payload = fcinfo->args[1];
	event.key = cqrs_key_arg(fcinfo, 2, "event", name);
	event.headers = fcinfo->args[3];
	cqrs_emit_given(event_type, &event, fcinfo->args[5]);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();
	PG_RETURN_DATUM(event.event_id);
}

/*
 * cqrs_emit_many(event_name, payloads, keys, headers, topic, event_ids)
 */
Datum
cqrs_emit_many(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	CqrsEventType *event_type;
	const CqrsTopic *topic;
	Elements	payloads;
	Elements	keys;
	Elements	headers;
	Elements	given_ids;
	CqrsEmitter *emitter;
	ArrayType  *result;
	pg_uuid_t  *event_id;
	int			i;

	cqrs_require_writable("cqrs_emit_many()");
	event_type = cqrs_event_type_get(name);
	topic = topic_arg(fcinfo, 4, event_type);
	cqrs_arg_required(fcinfo, 1, "payloads", "event", name);
	get_elements(fcinfo, 1, JSONBOID, &payloads);
	if (ARR_NDIM(PG_GETARG_ARRAYTYPE_P(1)) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("payloads of event \"%s\" are not a one-dimensional array",
						name)));
	get_matching(fcinfo, 2, TEXTOID, "keys", name, payloads.n, &keys);
	get_matching(fcinfo, 3, JSONBOID, "headers", name, payloads.n, &headers);
	get_matching(fcinfo, 5, UUIDOID, "event_ids", name, payloads.n,
				 &given_ids);

	result = make_ids(payloads.n);
	if (payloads.n == 0)
		PG_RETURN_ARRAYTYPE_P(result);
	event_id = (pg_uuid_t *) ARR_DATA_PTR(result);
	emitter = cqrs_emitter_begin(event_type, topic, PG_GETARG_DATUM(0));
	for (i = 0; i < payloads.n; i++, event_id++)
	{
		CqrsEvent	event;
		NullableDatum given_id = element(&given_ids, i);

		CHECK_FOR_INTERRUPTS();
		init_event(&event, topic, event_id, emitter->event_name,
				   element(&keys, i), element(&payloads, i));
		if (!given_id.isnull)
			*event_id = *DatumGetUUIDP(given_id.value);
		cqrs_emit_check_payload(event_type, event.payload);
		if (headers.values != NULL)
		{
			event.headers = element(&headers, i);
			cqrs_headers_check(event.headers, name);
		}
		emit(emitter, event_type, &event);
	}
	cqrs_emitter_end(emitter);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();
	PG_RETURN_ARRAYTYPE_P(result);
}

/*
 * Emit one event as somebody gives it: topic, which may be NULL, name, key,
 * payload, headers, and its id, or NULL for a new one. The rest of the event is
 * filled in; its headers are good until something else is emitted. The caller
 * has checked that the transaction may write (cqrs_require_writable) and that
 * the user may emit it, and has the handlers called when it is done
 * (cqrs_dispatch_events).
 *
 * Raises 22023 for headers that cannot be, what payload.c says for a payload
 * that does not fit, and what cqrs_emit_event() raises.
 */
void
cqrs_emit_given(CqrsEventType *event_type, CqrsEvent *event,
				NullableDatum event_id)
{
	cqrs_emit_check_payload(event_type, event->payload);
	cqrs_headers_check(event->headers, event_type->name);
	event->position = 0;
	event->emitted_at = GetCurrentTimestamp();
	event->event_id = event_id.value;
	if (event_id.isnull)
	{
		pg_uuid_t  *new_id = palloc(sizeof(pg_uuid_t));

		cqrs_context_new_id(event->emitted_at, new_id);
		event->event_id = UUIDPGetDatum(new_id);
	}
	emit(NULL, event_type, event);
}

/*
 * May the current user emit events of this type? If not, raises what
 * cqrs_topic_require() does.
 */
void
cqrs_emit_require(const CqrsEventType *event_type)
{
	if (event_type->topic != NULL)
		cqrs_topic_require(event_type->topic, ACL_INSERT);
}

/*
 * Emit one event, without headers of its own and with a new id. The caller has
 * checked that the transaction may write (cqrs_require_writable), that the
 * user may emit it (cqrs_emit_require), and that the payload, if not NULL,
 * fits the event type; and then has the handlers called
 * (cqrs_dispatch_events). event_name is text.
 *
 * Raises 55000 if the topic's tables were altered; 54001 for a chain of
 * causes that is too long.
 */
void
cqrs_emit_event(CqrsEventType *event_type, Datum event_name,
				NullableDatum key, NullableDatum payload)
{
	CqrsEvent	event;
	pg_uuid_t	event_id;

	init_event(&event, event_type->topic, &event_id, event_name, key, payload);
	emit(NULL, event_type, &event);
}

/*
 * Emit many events of one type, to this topic (NULL: to none), like this: begin,
 * add each, end. They are written in the order in which they were added, some of
 * them only by cqrs_emitter_end(). On an error, the transaction's abort cleans
 * up.
 *
 * The emitter is in the current memory context. event_name must live as long;
 * keys and payloads are copied.
 */
CqrsEmitter *
cqrs_emitter_begin(CqrsEventType *event_type, const CqrsTopic *topic,
				   Datum event_name)
{
	CqrsEmitter *emitter = palloc0(sizeof(CqrsEmitter));

	emitter->event_type = event_type;
	emitter->topic = topic;
	emitter->event_name = event_name;
	if (topic == NULL)
		return emitter;
	emitter->context = CurrentMemoryContext;
	emitter->scratch = AllocSetContextCreate(CurrentMemoryContext,
											 "cqrs emitter",
											 ALLOCSET_DEFAULT_SIZES);
	writer_open(&emitter->writer, topic);
	emitter->bistate = GetBulkInsertState();
	return emitter;
}

void
cqrs_emitter_add(CqrsEmitter *emitter, NullableDatum key,
				 NullableDatum payload)
{
	CqrsEvent	event;
	pg_uuid_t	event_id;

	CHECK_FOR_INTERRUPTS();
	init_event(&event, emitter->topic, &event_id, emitter->event_name, key,
			   payload);
	emit(emitter, emitter->event_type, &event);
}

/*
 * Add one event as it is, with its own name, id and headers; what
 * cqrs_event_write() leaves to the caller, this does, too.
 */
void
cqrs_emitter_add_event(CqrsEmitter *emitter, CqrsEvent *event)
{
	buffer(emitter, event);
}

void
cqrs_emitter_end(CqrsEmitter *emitter)
{
	int			i;

	if (emitter->topic != NULL)
	{
		if (emitter->used > 0)
			insert_many(emitter);
		for (i = 0; i < emitter->nslots; i++)
			ExecDropSingleTupleTableSlot(emitter->slots[i]);
		FreeBulkInsertState(emitter->bistate);
		writer_close(&emitter->writer);
		MemoryContextDelete(emitter->scratch);
	}
	pfree(emitter);
}

/*
 * Write one event to its topic as it is, and do no more: its type, which need
 * not be registered, the payload and the user's privileges are up to the
 * caller; no handler is called, and no header added. Its position is set.
 *
 * Raises 55000 if the topic's tables were altered.
 */
void
cqrs_event_write(CqrsEvent *event)
{
	Writer		writer;
	TupleTableSlot *slot;

	writer_open(&writer, event->topic);
	slot = table_slot_create(writer.rel, NULL);
	fill_slot(&writer, slot, event);
	table_tuple_insert(writer.rel, slot, GetCurrentCommandId(true),
					   INSERT_OPTIONS, NULL);
	CQRS_DEBUG_POINT("emit_before_index");
	cqrs_indexes_insert(&writer.indexes, slot);
	ExecDropSingleTupleTableSlot(slot);
	writer_close(&writer);
}

/*
 * The topic that an argument names, or the event type's, or NULL: none. The user
 * may emit to it.
 */
static const CqrsTopic *
topic_arg(FunctionCallInfo fcinfo, int argno, const CqrsEventType *event_type)
{
	const CqrsTopic *topic = event_type->topic;

	if (!PG_ARGISNULL(argno))
		topic = cqrs_topic_get(text_to_cstring(PG_GETARG_TEXT_PP(argno)));
	if (topic != NULL)
		cqrs_topic_require(topic, ACL_INSERT);
	return topic;
}

/*
 * The elements of an argument that is an array of that type.
 */
static void
get_elements(FunctionCallInfo fcinfo, int argno, Oid type, Elements *elements)
{
	int16		length;
	bool		by_value;
	char		align;

	get_typlenbyvalalign(type, &length, &by_value, &align);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), type, length, by_value,
					  align, &elements->values, &elements->nulls,
					  &elements->n);
}

/*
 * The same of one that has an element for each payload, or is NULL. Raises 2202E
 * if it has not.
 */
static void
get_matching(FunctionCallInfo fcinfo, int argno, Oid type, const char *what,
			 const char *event_name, int npayloads, Elements *elements)
{
	elements->values = NULL;
	if (PG_ARGISNULL(argno))
		return;
	get_elements(fcinfo, argno, type, elements);
	if (ARR_NDIM(PG_GETARG_ARRAYTYPE_P(argno)) > 1 || elements->n != npayloads)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s of event \"%s\" do not match its payloads", what,
						event_name),
				 errdetail("There are %d payloads and %d %s.", npayloads,
						   elements->n, what)));
}

static inline NullableDatum
element(const Elements *elements, int i)
{
	NullableDatum result = {.isnull = true};

	if (elements->values != NULL && !elements->nulls[i])
	{
		result.value = elements->values[i];
		result.isnull = false;
	}
	return result;
}

/*
 * An array of n ids, to be filled in.
 */
static ArrayType *
make_ids(int n)
{
	Size		size = ARR_OVERHEAD_NONULLS(1) + n * sizeof(pg_uuid_t);
	ArrayType  *result;

	if (n == 0)
		return construct_empty_array(UUIDOID);
	result = palloc(size);
	SET_VARSIZE(result, size);
	result->ndim = 1;
	result->dataoffset = 0;
	result->elemtype = UUIDOID;
	ARR_DIMS(result)[0] = n;
	ARR_LBOUND(result)[0] = 1;
	return result;
}

/*
 * Does the payload fit the event type? If not, raises what payload.c does.
 */
void
cqrs_emit_check_payload(CqrsEventType *event_type, NullableDatum payload)
{
	Jsonb	   *object;

	if (payload.isnull)
		return;
	object = DatumGetJsonbP(payload.value);
	cqrs_payload_check_object(object, "event", event_type->name);
	if (event_type->payload_type != JSONBOID)
	{
		cqrs_event_type_require_payload(event_type);
		cqrs_payload_to_composite(object, event_type->payload_type, "event",
								  event_type->name);
	}
}

/*
 * Make an event without headers of its own, and with a new id.
 */
static inline void
init_event(CqrsEvent *event, const CqrsTopic *topic, pg_uuid_t *event_id,
		   Datum event_name, NullableDatum key, NullableDatum payload)
{
	event->topic = topic;
	event->position = 0;
	event->emitted_at = GetCurrentTimestamp();
	cqrs_context_new_id(event->emitted_at, event_id);
	event->event_id = UUIDPGetDatum(event_id);
	event->event_name = event_name;
	event->key = key;
	event->headers.isnull = true;
	event->payload = payload;
}

/*
 * Emit one event to its topic, if it has one, and to the handlers. If there is
 * an emitter, it is written together with others. Its position is set.
 */
static inline void
emit(CqrsEmitter *emitter, CqrsEventType *event_type, CqrsEvent *event)
{
	if (cqrs_context_has_headers())
		event->headers = cqrs_context_headers(event->headers);
	if (event->topic != NULL && emitter != NULL)
		buffer(emitter, event);
	else if (event->topic != NULL)
		cqrs_event_write(event);
	if (cqrs_dry_run_is_active())
		cqrs_dry_run_emitted(event);
	if (event_type->handlers != NULL)
		cqrs_domain_event_add(event_type, event);
}

/*
 * Open the topic's current segment for writing, and give the transaction its
 * xid.
 */
static void
writer_open(Writer *writer, const CqrsTopic *topic)
{
	if (cqrs_registry_has_restored())
		cqrs_position_pass_restored();
	writer->topic_id = topic->topic_id;
	writer->xid = GetTopFullTransactionId();
	writer->position_seq = cqrs_relation_oid(CQRS_REL_POSITION_SEQ);
	writer->rel = cqrs_segment_open(topic, topic->current_segment,
									RowExclusiveLock);
	cqrs_indexes_open(&writer->indexes, writer->rel);
}

/*
 * Close it, and have the manager woken at commit, unless nothing will be left
 * of the event then. The lock stays.
 */
static void
writer_close(Writer *writer)
{
	cqrs_indexes_close(&writer->indexes);
	table_close(writer->rel, NoLock);
	if (!cqrs_dry_run_is_active())
		cqrs_shmem_emitted(writer->topic_id);
}

/*
 * Put one event into a slot of the segment, with the next position.
 */
static void
fill_slot(Writer *writer, TupleTableSlot *slot, CqrsEvent *event)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;

	/* Columns behind ours are dropped ones. */
	memset(nulls, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	memset(nulls, false, sizeof(bool) * CQRS_SEG_COLUMNS);
	event->position = nextval_internal(writer->position_seq, false);
	CQRS_DEBUG_POINT("emit_after_nextval");
	values[CQRS_SEG_POSITION - 1] = Int64GetDatum(event->position);
	values[CQRS_SEG_XID - 1] = FullTransactionIdGetDatum(writer->xid);
	values[CQRS_SEG_EVENT_ID - 1] = event->event_id;
	values[CQRS_SEG_EMITTED_AT - 1] = TimestampTzGetDatum(event->emitted_at);
	values[CQRS_SEG_NATIVE - 1] = BoolGetDatum(true);
	values[CQRS_SEG_EVENT_NAME - 1] = event->event_name;
	values[CQRS_SEG_KEY - 1] = event->key.value;
	nulls[CQRS_SEG_KEY - 1] = event->key.isnull;
	values[CQRS_SEG_PAYLOAD - 1] = event->payload.value;
	nulls[CQRS_SEG_PAYLOAD - 1] = event->payload.isnull;
	values[CQRS_SEG_HEADERS - 1] = event->headers.value;
	nulls[CQRS_SEG_HEADERS - 1] = event->headers.isnull;
	ExecStoreVirtualTuple(slot);
}

/*
 * Keep one event to be written with others. Its position is set.
 */
static void
buffer(CqrsEmitter *emitter, CqrsEvent *event)
{
	TupleTableSlot *slot;

	if (emitter->used == emitter->nslots)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(emitter->context);

		emitter->slots[emitter->nslots++] =
			table_slot_create(emitter->writer.rel, NULL);
		MemoryContextSwitchTo(oldcontext);
	}
	else
		ExecClearTuple(emitter->slots[emitter->used]);
	slot = emitter->slots[emitter->used];
	fill_slot(&emitter->writer, slot, event);

	/*
	 * The emitter does not own what the event points to: have the slot copy
	 * it.
	 */
	ExecMaterializeSlot(slot);
	emitter->used++;
	if (!event->payload.isnull)
		emitter->bytes += VARSIZE_ANY(DatumGetPointer(event->payload.value));

	if (emitter->used == MULTI_INSERT_ROWS ||
		emitter->bytes >= MULTI_INSERT_BYTES)
		insert_many(emitter);
}

/*
 * Write the buffered rows, as COPY does.
 */
static void
insert_many(CqrsEmitter *emitter)
{
	MemoryContext oldcontext;
	int			i;

	/* table_multi_insert() leaks. */
	oldcontext = MemoryContextSwitchTo(emitter->scratch);
	table_multi_insert(emitter->writer.rel, emitter->slots, emitter->used,
					   GetCurrentCommandId(true), INSERT_OPTIONS,
					   emitter->bistate);
	for (i = 0; i < emitter->used; i++)
	{
		CQRS_DEBUG_POINT("emit_before_index");
		cqrs_indexes_insert(&emitter->writer.indexes, emitter->slots[i]);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextReset(emitter->scratch);
	emitter->used = 0;
	emitter->bytes = 0;
}
