/*-------------------------------------------------------------------------
 *
 * consumer_check.c
 *	  Whether a consumer can be what is wanted.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "base/rfc3339.h"
#include "broker/server.h"
#include "inbox/consumer_check.h"
#include "inbox/inbound.h"
#include "registry/registry.h"

#define MAX_WORKERS	64

/* The years 1970 to 9999. */
static const TimestampTz first_time =
(UNIX_EPOCH_JDATE - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY;
static const TimestampTz last_time =
INT64CONST(2921940) * USECS_PER_DAY - 1;

/*
 * Raises 22023.
 */
void
cqrs_consumer_check(const char *name, const CqrsConsumerChoice *choice)
{
	CqrsInboundFormat format;

	if (choice->source[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" has no source", name),
				 errhint("Name a topic or queue of the broker.")));
	if (!cqrs_inbound_format_parse(choice->format, &format))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot have format \"%s\"", name,
						choice->format),
				 errhint("Valid values are \"raw\", \"bytes\", \"cqrs\" and \"cloudevents\".")));
	if (strcmp(choice->on_gap, "stop") != 0 &&
		strcmp(choice->on_gap, "earliest") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot have on_gap \"%s\"", name,
						choice->on_gap),
				 errhint("Valid values are \"stop\" and \"earliest\".")));
	if (choice->workers < 1 || choice->workers > MAX_WORKERS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot have %d workers", name,
						choice->workers),
				 errhint("It may have 1 to %d.", MAX_WORKERS)));
}

/*
 * Where to start, as the worker is to read it: a timestamp means the same in any time
 * zone, and tomorrow.
 */
char *
cqrs_consumer_parse_start(const char *name, const char *start)
{
	StringInfoData text;

	if (strcmp(start, "earliest") == 0 || strcmp(start, "latest") == 0)
		return pstrdup(start);
	initStringInfo(&text);
	cqrs_rfc3339_append(&text, cqrs_consumer_parse_time(name, start));
	return text.data;
}

/*
 * Raises 22007 or 22008 for what is no timestamp, or one that no message has.
 */
TimestampTz
cqrs_consumer_parse_time(const char *name, const char *text)
{
	TimestampTz time;

	time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												   CStringGetDatum(text),
												   ObjectIdGetDatum(InvalidOid),
												   Int32GetDatum(-1)));
	if (time < first_time || time > last_time)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("consumer \"%s\" cannot begin at \"%s\"", name, text),
				 errhint("Give a time from 1970 to 9999, \"earliest\" or \"latest\".")));
	return time;
}

/*
 * Raises 42704 if the event type is not registered, 22023 if there has to be one.
 */
void
cqrs_consumer_check_event_name(const char *name, const char *event_name, const char *format)
{
	if (event_name != NULL)
		(void) cqrs_event_type_get(event_name);
	else if (strcmp(format, "raw") == 0 || strcmp(format, "bytes") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" has no event_name", name),
				 errdetail("In format \"%s\", messages do not say which event they are.",
						   format)));
}

/*
 * The module of a server. Raises what cqrs_broker_server() does, and 0A000 if it
 * cannot consume.
 */
const CqrsBrokerModule *
cqrs_consumer_check_server(const char *name, const char *server)
{
	const CqrsBrokerModule *module;

	module = cqrs_broker_server(server, name, GetUserId())->module;
	if (module->assign == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("nothing can be consumed from server \"%s\"", server),
				 errdetail("The module for %s does not have that.",
						   module->name)));
	return module;
}

/*
 * Raises 22023.
 */
void
cqrs_consumer_check_message_id(const char *name, const CqrsBrokerModule *module,
							   const CqrsConsumerChoice *choice)
{
	const char *message_id = choice->message_id;

	if (module->keeps_offsets && message_id != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" needs no message_id", name),
				 errdetail("%s has offsets, by which messages are recognised.",
						   module->name)));
	if (!module->keeps_offsets && strcmp(message_id, "required") != 0 &&
		strcmp(message_id, "body_hash") != 0 &&
		(strncmp(message_id, "header:", 7) != 0 || message_id[7] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot have message_id \"%s\"", name,
						message_id),
				 errhint("Valid values are \"required\", \"header:NAME\" and \"body_hash\".")));
}

/*
 * Is the consumer what is chosen?
 */
bool
cqrs_consumer_is_like(const CqrsConsumer *consumer, const CqrsConsumerChoice *choice)
{
	return strcmp(consumer->server, choice->server) == 0 &&
		strcmp(consumer->source, choice->source) == 0 &&
		consumer->topic != NULL && choice->topic != NULL &&
		consumer->topic->topic_id == choice->topic->topic_id &&
		(consumer->event_name == NULL ? choice->event_name == NULL :
		 choice->event_name != NULL &&
		 strcmp(consumer->event_name, choice->event_name) == 0) &&
		strcmp(consumer->format, choice->format) == 0 &&
		strcmp(consumer->start, choice->start) == 0 &&
		(consumer->message_id == NULL ? choice->message_id == NULL :
		 choice->message_id != NULL &&
		 strcmp(consumer->message_id, choice->message_id) == 0) &&
		consumer->skips_gaps == (strcmp(choice->on_gap, "earliest") == 0) &&
		consumer->workers == choice->workers;
}
