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
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "emit/emit.h"
#include "extension/catalog.h"
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

/* Events of one type on their way to a segment. */
struct CqrsEmitter
{
	CqrsEventType *event_type;
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

static void check_payload(CqrsEventType *event_type, Datum payload);
static inline void init_event(CqrsEvent *event,
							  const CqrsEventType *event_type,
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
	CqrsEvent	event = {0};
	pg_uuid_t  *event_id;

	cqrs_require_writable("cqrs_emit()");
	event_type = cqrs_event_type_get(name);
	event.topic = event_type->topic;
	if (!PG_ARGISNULL(4))
		event.topic = cqrs_topic_get(text_to_cstring(PG_GETARG_TEXT_PP(4)));
	if (event.topic != NULL)
		cqrs_topic_require(event.topic, ACL_INSERT);
	if (!PG_ARGISNULL(1))
		check_payload(event_type, PG_GETARG_DATUM(1));
	if (!PG_ARGISNULL(3) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(3)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of event \"%s\" are not a JSON object",
						name)));

	event.emitted_at = GetCurrentTimestamp();
	if (PG_ARGISNULL(5))
	{
		event_id = palloc(sizeof(pg_uuid_t));
		cqrs_event_id_generate(event.emitted_at, event_id);
	}
	else
		event_id = PG_GETARG_UUID_P(5);

	event.event_id = UUIDPGetDatum(event_id);
	event.event_name = PG_GETARG_DATUM(0);
	event.payload = fcinfo->args[1];
	event.key = fcinfo->args[2];
	event.headers = fcinfo->args[3];
	emit(NULL, event_type, &event);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();
	PG_RETURN_UUID_P(event_id);
}

/*
 * cqrs_emit_many(event_name, payloads, keys)
 */
Datum
cqrs_emit_many(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "event");
	CqrsEventType *event_type;
	ArrayType  *array;
	Datum	   *payloads;
	bool	   *payload_nulls;
	int			npayloads;
	Datum	   *keys = NULL;
	bool	   *key_nulls = NULL;
	int			nkeys;
	CqrsEmitter *emitter;
	int			i;

	cqrs_require_writable("cqrs_emit_many()");
	event_type = cqrs_event_type_get(name);
	cqrs_emit_require(event_type);
	cqrs_arg_required(fcinfo, 1, "payloads", "event", name);

	array = PG_GETARG_ARRAYTYPE_P(1);
	deconstruct_array(array, JSONBOID, -1, false, TYPALIGN_INT,
					  &payloads, &payload_nulls, &npayloads);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("payloads of event \"%s\" are not a one-dimensional array",
						name)));
	if (!PG_ARGISNULL(2))
	{
		array = PG_GETARG_ARRAYTYPE_P(2);
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
						  &keys, &key_nulls, &nkeys);
		if (ARR_NDIM(array) > 1 || nkeys != npayloads)
			ereport(ERROR,
					(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
					 errmsg("keys of event \"%s\" do not match its payloads",
							name),
					 errdetail("There are %d payloads and %d keys.",
							   npayloads, nkeys)));
	}
	if (npayloads == 0)
		PG_RETURN_INT64(0);

	emitter = cqrs_emitter_begin(event_type, PG_GETARG_DATUM(0));
	for (i = 0; i < npayloads; i++)
	{
		NullableDatum key = {.isnull = true};
		NullableDatum payload = {.isnull = true};

		if (!payload_nulls[i])
		{
			check_payload(event_type, payloads[i]);
			payload.isnull = false;
			payload.value = payloads[i];
		}
		if (keys != NULL && !key_nulls[i])
		{
			key.isnull = false;
			key.value = keys[i];
		}
		cqrs_emitter_add(emitter, key, payload);
	}
	cqrs_emitter_end(emitter);
	if (event_type->handlers != NULL)
		cqrs_dispatch_events();

	PG_RETURN_INT64(npayloads);
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

	init_event(&event, event_type, &event_id, event_name, key, payload);
	emit(NULL, event_type, &event);
}

/*
 * Emit many events of one type like this: begin, add each, end. They are
 * written in the order in which they were added, some of them only by
 * cqrs_emitter_end(). On an error, the transaction's abort cleans up.
 *
 * The emitter is in the current memory context. event_name must live as long;
 * keys and payloads are copied.
 */
CqrsEmitter *
cqrs_emitter_begin(CqrsEventType *event_type, Datum event_name)
{
	CqrsEmitter *emitter = palloc0(sizeof(CqrsEmitter));

	emitter->event_type = event_type;
	emitter->event_name = event_name;
	if (event_type->topic == NULL)
		return emitter;
	emitter->context = CurrentMemoryContext;
	emitter->scratch = AllocSetContextCreate(CurrentMemoryContext,
											 "cqrs emitter",
											 ALLOCSET_DEFAULT_SIZES);
	writer_open(&emitter->writer, event_type->topic);
	emitter->bistate = GetBulkInsertState();
	return emitter;
}

void
cqrs_emitter_add(CqrsEmitter *emitter, NullableDatum key,
				 NullableDatum payload)
{
	CqrsEventType *event_type = emitter->event_type;
	CqrsEvent	event;
	pg_uuid_t	event_id;

	CHECK_FOR_INTERRUPTS();
	init_event(&event, event_type, &event_id, emitter->event_name, key,
			   payload);
	emit(emitter, event_type, &event);
}

void
cqrs_emitter_end(CqrsEmitter *emitter)
{
	int			i;

	if (emitter->event_type->topic != NULL)
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
 * Does the payload fit the event type? If not, raises what payload.c does.
 */
static void
check_payload(CqrsEventType *event_type, Datum payload)
{
	Jsonb	   *object = DatumGetJsonbP(payload);

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
init_event(CqrsEvent *event, const CqrsEventType *event_type,
		   pg_uuid_t *event_id, Datum event_name, NullableDatum key,
		   NullableDatum payload)
{
	event->topic = event_type->topic;
	event->position = 0;
	event->emitted_at = GetCurrentTimestamp();
	cqrs_event_id_generate(event->emitted_at, event_id);
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
	values[CQRS_SEG_EMITTED_AT - 1] = TimestampTzGetDatum(event->emitted_at);
	values[CQRS_SEG_EVENT_ID - 1] = event->event_id;
	values[CQRS_SEG_NATIVE - 1] = BoolGetDatum(true);
	values[CQRS_SEG_EVENT_NAME - 1] = event->event_name;
	values[CQRS_SEG_KEY - 1] = event->key.value;
	nulls[CQRS_SEG_KEY - 1] = event->key.isnull;
	values[CQRS_SEG_HEADERS - 1] = event->headers.value;
	nulls[CQRS_SEG_HEADERS - 1] = event->headers.isnull;
	values[CQRS_SEG_PAYLOAD - 1] = event->payload.value;
	nulls[CQRS_SEG_PAYLOAD - 1] = event->payload.isnull;
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
