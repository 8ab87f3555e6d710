/*-------------------------------------------------------------------------
 *
 * message.c
 *	  What is sent to sagas, by way of their role's topic.
 *
 * A message is an event, named like the saga. Its key is its lane: the saga's id,
 * with "/" and the number of the branch behind it, if it is to one. Its payload is an
 * object with one key that says what it is:
 *
 *		{"wake": 5}							go on from entry 5
 *		{"signal": "paid", "payload": {}}	and "id", if it is an event's
 *		{"cancel": "hotel"}					or null: wherever it is
 *		{"retry": "hotel"}
 *		{"skip": "hotel"}
 *		{"ended": 3}						branch 3, or (0) the saga that is waited for
 *		{"stop": true}
 *		{"move": true}
 *
 * A wake-up for later is a row of cqrs.scheduled_command, as a command for later.
 * Its id follows from what it wakes, so that it can be taken back, and is not there
 * twice.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/fmgroids.h"
#include "utils/numeric.h"

#include "base/event_id.h"
#include "deferred/enqueue.h"
#include "emit/emit.h"
#include "extension/row.h"
#include "saga/message.h"
#include "shared/announce.h"

/* By kind; what has no value of its own has true. */
static const char *const keys[] = {
	[CQRS_SAGA_WAKE] = "wake",
	[CQRS_SAGA_SIGNAL] = "signal",
	[CQRS_SAGA_CANCEL] = "cancel",
	[CQRS_SAGA_RETRY] = "retry",
	[CQRS_SAGA_SKIP] = "skip",
	[CQRS_SAGA_ENDED] = "ended",
	[CQRS_SAGA_STOP] = "stop",
	[CQRS_SAGA_MOVE] = "move",
};

static void make_event(CqrsEvent *event, const CqrsTopic *topic,
					   const char *saga_name, const CqrsSagaMessage *message,
					   NullableDatum headers);
static Datum make_payload(const CqrsSagaMessage *message);
static void push_key(JsonbParseState * *state, const char *key);
static void push_string(JsonbParseState * *state, const char *string);
static void push_int(JsonbParseState * *state, int32 number);
static char *lane_of(const pg_uuid_t *saga_id, int32 branch);
static void wake_id(const pg_uuid_t *saga_id, int32 branch, int32 seq,
					pg_uuid_t *id);
static bool read_lane(NullableDatum key, CqrsSagaMessage *message);
static int32 read_int(const JsonbValue *value);

/*
 * Send a message; it is delivered after the commit. The headers, which may be NULL,
 * say what caused it.
 */
void
cqrs_saga_send(const CqrsTopic *topic, const char *saga_name,
			   const CqrsSagaMessage *message, NullableDatum headers)
{
	CqrsEvent	event;

	make_event(&event, topic, saga_name, message, headers);
	cqrs_event_write(&event);
}

/*
 * Send a wake-up, not before a time.
 */
void
cqrs_saga_wake_at(const CqrsTopic *topic, const char *saga_name,
				  const CqrsSagaMessage *message, NullableDatum headers,
				  TimestampTz at)
{
	CqrsEvent	event;
	pg_uuid_t	id;

	make_event(&event, topic, saga_name, message, headers);
	wake_id(&message->saga_id, message->branch, message->seq, &id);
	event.event_id = UUIDPGetDatum(&id);
	cqrs_command_schedule(&event, at, 0);
}

/*
 * Take back a wake-up that is for later. If there is none, it has been sent.
 */
void
cqrs_saga_forget_wake(const CqrsSaga *saga, int32 branch, int32 seq)
{
	CqrsScan	scan;
	ScanKeyData key;
	pg_uuid_t	id;
	HeapTuple	row;

	wake_id(&saga->saga_id, branch, seq, &id);
	ScanKeyInit(&key, CQRS_SCHEDULED_COMMAND_ID, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(&id));
	cqrs_scan_begin(&scan, CQRS_REL_SCHEDULED_COMMAND,
					CQRS_REL_SCHEDULED_COMMAND_PKEY, RowExclusiveLock, NULL,
					ForwardScanDirection, 1, &key);
	row = cqrs_scan_next(&scan);
	if (row != NULL && cqrs_scan_delete_if_free(&scan, row))
		cqrs_shmem_command_removed(DatumGetTimestampTz(cqrs_row_column(row, CQRS_SCHEDULED_RUN_AT,
																	   RelationGetDescr(scan.rel))));
	cqrs_scan_end(&scan, NoLock);
}

/*
 * What an event in a topic of sagas says; in the current memory context. Returns
 * false if it says nothing: somebody else has put it there.
 */
bool
cqrs_saga_message_read(const CqrsEvent *event, CqrsSagaMessage *message)
{
	Jsonb	   *payload;
	JsonbValue	value;
	int			i;

	memset(message, 0, sizeof(*message));
	message->payload.isnull = true;
	message->id = *DatumGetUUIDP(event->event_id);
	if (event->payload.isnull || !read_lane(event->key, message))
		return false;
	payload = DatumGetJsonbP(event->payload.value);
	if (!JB_ROOT_IS_OBJECT(payload))
		return false;
	for (i = 0; i < lengthof(keys); i++)
		if (getKeyJsonValueFromContainer(&payload->root, keys[i],
										 strlen(keys[i]), &value) != NULL)
			break;
	if (i == lengthof(keys))
		return false;
	message->kind = i;
	if (value.type == jbvString)
		message->name = pnstrdup(value.val.string.val, value.val.string.len);
	if (value.type == jbvNumeric)
		message->seq = read_int(&value);
	if (message->kind == CQRS_SAGA_WAKE &&
		getKeyJsonValueFromContainer(&payload->root, "looks",
									 strlen("looks"), &value) != NULL)
		message->looks = read_int(&value);
	if (message->kind != CQRS_SAGA_SIGNAL)
		return message->name != NULL ||
			(message->kind != CQRS_SAGA_RETRY &&
			 message->kind != CQRS_SAGA_SKIP);

	if (getKeyJsonValueFromContainer(&payload->root, "id", strlen("id"),
									 &value) != NULL &&
		value.type == jbvString)
		(void) cqrs_uuid_read(value.val.string.val, value.val.string.len,
							  &message->id);
	if (getKeyJsonValueFromContainer(&payload->root, "payload",
									 strlen("payload"), &value) != NULL)
	{
		message->payload.value = JsonbPGetDatum(JsonbValueToJsonb(&value));
		message->payload.isnull = false;
	}
	return message->name != NULL;
}

static void
make_event(CqrsEvent *event, const CqrsTopic *topic, const char *saga_name,
		   const CqrsSagaMessage *message, NullableDatum headers)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	memset(event, 0, sizeof(*event));
	event->topic = topic;
	event->emitted_at = GetCurrentTimestamp();
	cqrs_event_id_generate(event->emitted_at, id);
	event->event_id = UUIDPGetDatum(id);
	event->event_name = CStringGetTextDatum(saga_name);
	event->key.value = CStringGetTextDatum(lane_of(&message->saga_id,
												   message->branch));
	event->headers = headers;
	event->payload.value = make_payload(message);
}

static Datum
make_payload(const CqrsSagaMessage *message)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;
	char		id[CQRS_UUID_TEXT_LEN + 1];

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_key(&state, keys[message->kind]);
	if (message->kind == CQRS_SAGA_WAKE || message->kind == CQRS_SAGA_ENDED)
		push_int(&state, message->seq);
	else if (message->name != NULL)
		push_string(&state, message->name);
	else
	{
		value.type = message->kind == CQRS_SAGA_CANCEL ? jbvNull : jbvBool;
		value.val.boolean = true;
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	if (message->looks > 0)
	{
		push_key(&state, "looks");
		push_int(&state, message->looks);
	}
	if (message->kind == CQRS_SAGA_SIGNAL)
	{
		push_key(&state, "id");
		push_string(&state, cqrs_uuid_text(&message->id, id));
		if (!message->payload.isnull)
		{
			push_key(&state, "payload");
			JsonbToJsonbValue(DatumGetJsonbP(message->payload.value), &value);
			pushJsonbValue(&state, WJB_VALUE, &value);
		}
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT,
														   NULL)));
}

static void
push_key(JsonbParseState * *state, const char *key)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = unconstify(char *, key);
	value.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_string(JsonbParseState * *state, const char *string)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_int(JsonbParseState * *state, int32 number)
{
	JsonbValue	value = {.type = jbvNumeric};

	value.val.numeric = int64_to_numeric(number);
	pushJsonbValue(state, WJB_VALUE, &value);
}

/*
 * The lane of a saga, or of a branch of it.
 */
static char *
lane_of(const pg_uuid_t *saga_id, int32 branch)
{
	char		id[CQRS_UUID_TEXT_LEN + 1];

	(void) cqrs_uuid_text(saga_id, id);
	return branch == CQRS_SAGA_TRUNK ? pstrdup(id) :
		psprintf("%s/%d", id, branch);
}

/*
 * The id of a wake-up that is for later.
 */
static void
wake_id(const pg_uuid_t *saga_id, int32 branch, int32 seq, pg_uuid_t *id)
{
	char		what[CQRS_UUID_TEXT_LEN + 40];
	char text[	CQRS_UUID_TEXT_LEN + 1];

	snprintf(what, sizeof(what), "wake %s/%d/%d",
			 cqrs_uuid_text(saga_id, text), branch, seq);
	cqrs_event_id_from(what, id);
}

static bool
read_lane(NullableDatum key, CqrsSagaMessage *message)
{
	char	   *lane;
	char	   *end;

	if (key.isnull)
		return false;
	lane = TextDatumGetCString(key.value);
	if (strlen(lane) < CQRS_UUID_TEXT_LEN ||
		!cqrs_uuid_read(lane, CQRS_UUID_TEXT_LEN, &message->saga_id))
		return false;
	end = lane + CQRS_UUID_TEXT_LEN;
	if (*end == '\0')
		return true;
	message->branch = *end == '/' ? atoi(end + 1) : 0;
	return message->branch > 0;
}

/*
 * A number that we wrote; 0 for what is none.
 */
static int32
read_int(const JsonbValue *value)
{
	bool		failed = false;
	int32		result;

	if (value->type !=jbvNumeric)
		return 0;
	result = numeric_int4_opt_error(value->val.numeric, &failed);
	return failed ? 0 : result;
}
