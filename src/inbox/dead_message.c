/*-------------------------------------------------------------------------
 *
 * dead_message.c
 *	  Messages that could not become events: kept as they are, until somebody
 *	  has them tried again, or discards them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/event_id.h"
#include "broker/server.h"
#include "emit/emit.h"
#include "extension/catalog.h"
#include "extension/row.h"
#include "inbox/consumer.h"
#include "inbox/dead_message.h"
#include "inbox/inbound.h"
#include "log/topic.h"
#include "retry/blame.h"
#include "shared/clock.h"

/* Columns of cqrs.consumer_dead_letter. */
enum
{
	DEAD_CONSUMER_ID = 1,
	DEAD_EVENT_ID,
	DEAD_PARTITION,
	DEAD_OFFSET,
	DEAD_MESSAGE_ID,
	DEAD_KEY,
	DEAD_BODY,
	DEAD_BODY_SIZE,
	DEAD_CONTENT_TYPE,
	DEAD_HEADERS,
	DEAD_MESSAGE_TIME,
	DEAD_SQLSTATE,
	DEAD_MESSAGE,
	DEAD_DIED_AT,
	DEAD_COLUMNS = DEAD_DIED_AT
};

/* Of a body that is too large to be an event, this much is kept, in bytes. */
#define KEPT_BYTES	(1024 * 1024)

/* A body of up to this size is kept whole, in bytes. */
#define WHOLE_BYTES	(64 * 1024 * 1024)

static Datum bytes_of(const char *bytes, size_t size);
static Jsonb *readable_headers(const CqrsBrokerReceived *message);
static int64 redrive_these(CqrsConsumer *consumer, CqrsEventIds *ids);
static int64 discard_these(CqrsConsumer *consumer, CqrsEventIds *ids);
static void begin_walk(CqrsScan *scan, int32 consumer_id);
static HeapTuple next_letter(CqrsScan *scan, CqrsEventIds *ids, Datum *values,
							 bool *nulls);
static bool redrive(const CqrsInbound *inbound, const Datum *values,
					const bool *nulls);
static void read_message(CqrsBrokerReceived *message, const Datum *values,
						 const bool *nulls);
static void read_headers(CqrsBrokerReceived *message, Jsonb *headers);
static char *utf8(char *text);

PG_FUNCTION_INFO_V1(cqrs_redrive_consumed);
PG_FUNCTION_INFO_V1(cqrs_redrive_all_consumed);
PG_FUNCTION_INFO_V1(cqrs_discard_consumed);
PG_FUNCTION_INFO_V1(cqrs_discard_all_consumed);

/*
 * Keep a message, and why it cannot be an event. Returns false if it is kept
 * already.
 */
bool
cqrs_dead_message_add(int32 consumer_id, const CqrsBrokerReceived *message,
					  const char *message_id, const pg_uuid_t *event_id,
					  const ErrorData *error)
{
	CqrsScan	scan;
	ScanKeyData keys[2];
	Datum		values[DEAD_COLUMNS];
	bool		nulls[DEAD_COLUMNS] = {0};
	TimestampTz time = cqrs_inbound_time(message);
	size_t		kept = message->body_size <= WHOLE_BYTES ? message->body_size :
	KEPT_BYTES;
	Jsonb	   *headers;
	bool		found;

	cqrs_key_int4(&keys[0], DEAD_CONSUMER_ID, consumer_id);
	ScanKeyInit(&keys[1], DEAD_EVENT_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(event_id));
	cqrs_scan_begin(&scan, CQRS_REL_CONSUMER_DEAD_LETTER,
					CQRS_REL_CONSUMER_DEAD_LETTER_PKEY, RowExclusiveLock, NULL,
					ForwardScanDirection, 2, keys);
	found = cqrs_scan_next(&scan) != NULL;
	cqrs_scan_end(&scan, NoLock);
	if (found)
		return false;

	headers = readable_headers(message);
	values[DEAD_CONSUMER_ID - 1] = Int32GetDatum(consumer_id);
	values[DEAD_EVENT_ID - 1] = UUIDPGetDatum(event_id);
	values[DEAD_PARTITION - 1] = Int32GetDatum(message->partition);
	values[DEAD_OFFSET - 1] = Int64GetDatum(message->offset);
	nulls[DEAD_MESSAGE_ID - 1] = message_id == NULL;
	if (message_id != NULL)
		values[DEAD_MESSAGE_ID - 1] = CStringGetTextDatum(message_id);
	nulls[DEAD_KEY - 1] = message->key == NULL;
	if (message->key != NULL)
		values[DEAD_KEY - 1] = bytes_of(message->key,
										Min(message->key_size, WHOLE_BYTES));
	nulls[DEAD_BODY - 1] = message->body == NULL;
	if (message->body != NULL)
		values[DEAD_BODY - 1] = bytes_of(message->body, kept);
	values[DEAD_BODY_SIZE - 1] = Int64GetDatum((int64) message->body_size);
	nulls[DEAD_CONTENT_TYPE - 1] = message->content_type == NULL ||
		!pg_is_ascii(message->content_type);
	if (!nulls[DEAD_CONTENT_TYPE - 1])
		values[DEAD_CONTENT_TYPE - 1] = CStringGetTextDatum(message->content_type);
	nulls[DEAD_HEADERS - 1] = headers == NULL;
	values[DEAD_HEADERS - 1] = JsonbPGetDatum(headers);
	nulls[DEAD_MESSAGE_TIME - 1] = time == DT_NOBEGIN;
	values[DEAD_MESSAGE_TIME - 1] = TimestampTzGetDatum(time);
	values[DEAD_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[DEAD_MESSAGE - 1] =
		CStringGetTextDatum(error->detail == NULL ? error->message :
							psprintf("%s\n%s", error->message, error->detail));
	values[DEAD_DIED_AT - 1] = TimestampTzGetDatum(cqrs_wall_now());
	cqrs_row_insert(CQRS_REL_CONSUMER_DEAD_LETTER, values, nulls);
	CommandCounterIncrement();
	return true;
}

/*
 * cqrs_redrive_consumed(consumer, event_ids)
 */
Datum
cqrs_redrive_consumed(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_redrive_consumed()");

	PG_RETURN_INT64(redrive_these(consumer, cqrs_event_ids_arg(fcinfo, 1)));
}

/*
 * cqrs_redrive_all_consumed(consumer)
 */
Datum
cqrs_redrive_all_consumed(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(redrive_these(cqrs_consumer_own(fcinfo, "cqrs_redrive_all_consumed()"),
								  NULL));
}

/*
 * cqrs_discard_consumed(consumer, event_ids)
 */
Datum
cqrs_discard_consumed(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_discard_consumed()");

	PG_RETURN_INT64(discard_these(consumer, cqrs_event_ids_arg(fcinfo, 1)));
}

/*
 * cqrs_discard_all_consumed(consumer)
 */
Datum
cqrs_discard_all_consumed(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(discard_these(cqrs_consumer_own(fcinfo, "cqrs_discard_all_consumed()"),
								  NULL));
}

/*
 * Make events of these dead letters, or of all if ids is NULL. Returns how many
 * became events.
 */
static int64
redrive_these(CqrsConsumer *consumer, CqrsEventIds *ids)
{
	CqrsBrokerServer *server;
	CqrsInbound inbound;
	MemoryContext context;
	MemoryContext oldcontext;
	CqrsScan	scan;
	Datum		values[DEAD_COLUMNS];
	bool		nulls[DEAD_COLUMNS];
	HeapTuple	row;
	bool		done;
	int64		n = 0;

	consumer = cqrs_consumer_lock(consumer);
	if (!OidIsValid(consumer->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("consumer \"%s\" has no owner", consumer->name),
				 errhint("Use cqrs_alter_consumer(), to own it.")));
	if (consumer->topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the topic of consumer \"%s\" was dropped",
						consumer->name),
				 errhint("Use cqrs_alter_consumer().")));
	cqrs_topic_require(consumer->topic, ACL_INSERT);
	server = cqrs_broker_server(consumer->server, consumer->name,
								consumer->owner);
	cqrs_inbound_init(&inbound, consumer, server->module->cloudevents_prefix,
					  server->max_message_size);

	/* Not for what the walk allocates. */
	context = AllocSetContextCreate(CurrentMemoryContext, "cqrs message",
									ALLOCSET_DEFAULT_SIZES);
	begin_walk(&scan, consumer->consumer_id);
	while ((row = next_letter(&scan, ids, values, nulls)) != NULL)
	{
		MemoryContextReset(context);
		oldcontext = MemoryContextSwitchTo(context);
		done = redrive(&inbound, values, nulls);
		MemoryContextSwitchTo(oldcontext);
		if (!done)
			continue;
		cqrs_scan_delete(&scan, row);
		n++;
	}
	cqrs_scan_end(&scan, NoLock);
	MemoryContextDelete(context);
	CommandCounterIncrement();
	return n;
}

/*
 * Delete these dead letters, or all if ids is NULL. Returns how many there were.
 */
static int64
discard_these(CqrsConsumer *consumer, CqrsEventIds *ids)
{
	CqrsScan	scan;
	Datum		values[DEAD_COLUMNS];
	bool		nulls[DEAD_COLUMNS];
	HeapTuple	row;
	int64		n = 0;

	consumer = cqrs_consumer_lock(consumer);
	begin_walk(&scan, consumer->consumer_id);
	while ((row = next_letter(&scan, ids, values, nulls)) != NULL)
	{
		cqrs_scan_delete(&scan, row);
		n++;
	}
	cqrs_scan_end(&scan, NoLock);
	CommandCounterIncrement();
	return n;
}

/*
 * Walk through a consumer's dead letters.
 */
static void
begin_walk(CqrsScan *scan, int32 consumer_id)
{
	ScanKeyData key;

	cqrs_key_int4(&key, DEAD_CONSUMER_ID, consumer_id);
	cqrs_scan_begin(scan, CQRS_REL_CONSUMER_DEAD_LETTER,
					CQRS_REL_CONSUMER_DEAD_LETTER_PKEY, RowExclusiveLock, NULL,
					ForwardScanDirection, 1, &key);
}

/*
 * The next one of these, or of all if ids is NULL; NULL: there is none.
 */
static HeapTuple
next_letter(CqrsScan *scan, CqrsEventIds *ids, Datum *values, bool *nulls)
{
	HeapTuple	row;

	while ((row = cqrs_scan_read(scan, values, nulls)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (ids == NULL ||
			cqrs_event_ids_contain(ids, DatumGetUUIDP(values[DEAD_EVENT_ID - 1])))
			break;
	}
	return row;
}

static Datum
bytes_of(const char *bytes, size_t size)
{
	bytea	   *result = palloc(VARHDRSZ + size);

	SET_VARSIZE(result, VARHDRSZ + size);
	memcpy(VARDATA(result), bytes, size);
	return PointerGetDatum(result);
}

/*
 * The headers, or, if they are what is wrong with the message, NULL.
 */
static Jsonb *
readable_headers(const CqrsBrokerReceived *message)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Jsonb	   *volatile headers = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		headers = cqrs_inbound_headers(message);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return headers;
}

/*
 * Make a dead letter an event. Returns false, with a notice, if that still cannot
 * be.
 */
static bool
redrive(const CqrsInbound *inbound, const Datum *values, const bool *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	CqrsBrokerReceived message;
	volatile bool done = false;
	pg_uuid_t	id = *DatumGetUUIDP(values[DEAD_EVENT_ID - 1]);

	read_message(&message, values, nulls);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		CqrsEvent	event;

		if (DatumGetInt64(values[DEAD_BODY_SIZE - 1]) > message.body_size)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("of a message of " INT64_FORMAT " bytes, the first %zu are kept",
							DatumGetInt64(values[DEAD_BODY_SIZE - 1]),
							message.body_size)));
		cqrs_inbound_event(inbound, &message, message.message_id, &id, &event);
		cqrs_event_write(&event);
		done = true;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (cqrs_blame(error) == CQRS_BLAME_NOBODY)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(NOTICE,
				(errmsg("a dead letter of consumer \"%s\" still cannot be an event",
						inbound->consumer->name),
				 errdetail_internal("%s", error->message)));
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/*
 * The message that a row is.
 */
static void
read_message(CqrsBrokerReceived *message, const Datum *values,
			 const bool *nulls)
{
	memset(message, 0, sizeof(*message));
	message->partition = DatumGetInt32(values[DEAD_PARTITION - 1]);
	message->offset = DatumGetInt64(values[DEAD_OFFSET - 1]);
	if (!nulls[DEAD_MESSAGE_ID - 1])
		message->message_id = utf8(TextDatumGetCString(values[DEAD_MESSAGE_ID - 1]));
	if (!nulls[DEAD_KEY - 1])
	{
		bytea	   *key = DatumGetByteaPP(values[DEAD_KEY - 1]);

		message->key = VARDATA_ANY(key);
		message->key_size = VARSIZE_ANY_EXHDR(key);
	}
	if (!nulls[DEAD_BODY - 1])
	{
		bytea	   *body = DatumGetByteaPP(values[DEAD_BODY - 1]);

		message->body = VARDATA_ANY(body);
		message->body_size = VARSIZE_ANY_EXHDR(body);
	}
	if (!nulls[DEAD_CONTENT_TYPE - 1])
		message->content_type =
			utf8(TextDatumGetCString(values[DEAD_CONTENT_TYPE - 1]));
	message->timestamp = nulls[DEAD_MESSAGE_TIME - 1] ? INT64_MIN :
		DatumGetTimestampTz(values[DEAD_MESSAGE_TIME - 1]) +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	if (!nulls[DEAD_HEADERS - 1])
		read_headers(message, DatumGetJsonbP(values[DEAD_HEADERS - 1]));
}

static void
read_headers(CqrsBrokerReceived *message, Jsonb *headers)
{
	CqrsBrokerReceivedHeader *list;
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	int			n = 0;

	list = palloc0(sizeof(CqrsBrokerReceivedHeader) *
				   (JB_ROOT_COUNT(headers) + 1));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			list[n].name = utf8(pnstrdup(value.val.string.val,
										 value.val.string.len));
		else if (token == WJB_VALUE)
		{
			if (value.type == jbvString)
			{
				list[n].value = utf8(pnstrdup(value.val.string.val,
											  value.val.string.len));
				list[n].value_size = strlen(list[n].value);
			}
			n++;
		}
	}
	message->nheaders = n;
	message->headers = list;
}

static char *
utf8(char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}
