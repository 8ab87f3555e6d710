/*-------------------------------------------------------------------------
 *
 * intake.c
 *	  Messages consumed by this process, from its connection into a topic.
 *
 * Protocol
 *
 * 1. Partition p of a source is consumed by worker p modulo their number. When
 *	  that changes, two may believe for a moment that it is theirs. So whoever
 *	  stores messages has the place's lock, and sees under it that the place is
 *	  where he left it; if not, he begins anew.
 * 2. A batch is a transaction: the messages become events, and the places move
 *	  behind them. Only then the broker is told. So after a crash anywhere, a
 *	  message is an event or is consumed again, and never both.
 * 3. Of a source without offsets, the ids of messages are noted in the same
 *	  transaction; one that is there already came again, and is only acknowledged.
 * 4. Where consuming begins, the last message that was consumed is compared with
 *	  what the place says of it. If it is another one, the source was made anew,
 *	  or has lost what we have: the partition stops, loudly.
 * 5. If a message cannot be an event, the batch is rolled back, and its messages
 *	  are made events in a subtransaction each: what fails there is a dead letter.
 *	  An error elsewhere is no message's fault, and the consumer waits.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <stdlib.h>

#include "access/xact.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "broker/link.h"
#include "broker/server.h"
#include "emit/emit.h"
#include "extension/catalog.h"
#include "inbox/consumer.h"
#include "inbox/dead_message.h"
#include "inbox/inbound.h"
#include "inbox/intake.h"
#include "inbox/message_id.h"
#include "inbox/place.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "shared/clock.h"

/* A batch has no more than this. */
#define MOST_MESSAGES	5000
#define MOST_BYTES		(8 * 1024 * 1024)
#define MOST_PARTITIONS	64

/* How often to look whether the consumer is what it was, in milliseconds. */
#define CHECK_INTERVAL	1000

/* How often to write that a partition's end has moved, likewise. */
#define END_INTERVAL	10000

/* How often to note that a source without offsets is consumed, likewise. */
#define NOTE_INTERVAL	20000

/* What the broker complains of for this long is told, likewise. */
#define LONGEST_TROUBLE	2000

/* A partition that this process consumes. */
typedef struct Part
{
	CqrsPlace	place;			/* as it is stored */
	bool		compare;		/* the last message is to come once more */

	/* Of the batch. */
	CqrsPlace	moved;
	bool		compared;
	bool		touched;
	CqrsBrokerReceived *last;	/* the last one consumed */
} Part;

/* The connection of this process, if server is not NULL. */
static struct
{
	MemoryContext context;
	CqrsBrokerServer *server;
	CqrsBrokerLink *link;		/* NULL: not begun to connect */
	uint64		generation;		/* of servers, when it was read */
	TimestampTz retried_at;		/* the consumer's, likewise */
	int			worker;
	bool		keeps_offsets;
	bool		assigned;
	bool		renew;			/* begin anew */
	int			npartitions;	/* of the source; -1: unknown */
	Part	   *parts;			/* by partition */
	int			nparts;

	/* Received, and not stored. */
	CqrsBrokerReceived *first;
	CqrsBrokerReceived *last;
	uint64		nstored;		/* so many were before these */
	CqrsLinkNotice *notices;
	CqrsLinkNotice *last_notice;

	/* The batch. */
	CqrsBrokerReceived *batch_last; /* NULL: it is empty */
	int			nbatch;
	CqrsLinkNotice *batch_notices;	/* the first that is not in it */
	bool		converting;		/* an error is a message's */
	int			apart;			/* so many messages get a subtransaction each */

	bool		failed;			/* cqrs.failure has a row of us */
	bool		ends_moved;		/* not written yet */
	TimestampTz ends_written_at;
	TimestampTz checked_at;
	TimestampTz noted_at;		/* that the source is consumed */
	TimestampTz trouble_since;	/* 0: there is none */
	char		trouble[CQRS_BROKER_ERROR_SIZE];
}			intake;

static bool is_same(const CqrsConsumer *consumer);
static void plan_source(CqrsConsumer *consumer);
static CqrsPlace *complete_places(CqrsConsumer *consumer, CqrsPlace *places,
								  int *nplaces);
static void take_arrivals(void);
static void take_notice(CqrsLinkNotice *notice);
static bool may_store(void);
static Part *find_part(int32 partition);
static void begin_batch(void);
static bool touch(int32 partition);
static bool lock_places(void);
static void store_messages(CqrsConsumer *consumer);
static bool *recognise(const CqrsInbound *inbound, char **ids);
static bool is_new(Part *part, const CqrsBrokerReceived *message);
static bool convert(const CqrsInbound *inbound,
					const CqrsBrokerReceived *message, const char *message_id,
					pg_uuid_t *event_id, CqrsEvent *event);
static void bury(const CqrsInbound *inbound,
				 const CqrsBrokerReceived *message, const char *message_id,
				 const pg_uuid_t *event_id, const ErrorData *error);
static void apply_notices(CqrsConsumer *consumer);
static int64 message_hash(const CqrsBrokerReceived *message);
static char *source_name(const CqrsConsumer *consumer);

/*
 * Read all that it takes to connect, as the current user, the consumer's owner.
 */
void
cqrs_intake_prepare(CqrsConsumer *consumer, int worker, bool failed_before)
{
	MemoryContext oldcontext;

	Assert(intake.server == NULL);
	memset(&intake, 0, sizeof(intake));
	intake.context = AllocSetContextCreate(TopMemoryContext, "cqrs intake",
										   ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(intake.context);
	intake.generation = cqrs_broker_server_generation();
	intake.server = cqrs_broker_server(consumer->server, consumer->name,
									   consumer->owner);
	intake.server->connection.source =
		pg_server_to_any(pstrdup(consumer->source), strlen(consumer->source),
						 PG_UTF8);
	MemoryContextSwitchTo(oldcontext);
	if (intake.server->module->assign == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("nothing can be consumed from server \"%s\"",
						consumer->server)));
	intake.keeps_offsets = intake.server->module->keeps_offsets;
	intake.retried_at = consumer->retried_at;
	intake.worker = worker;
	intake.npartitions = -1;
	intake.failed = failed_before;
	intake.checked_at = intake.ends_written_at = cqrs_steady_now();
}

/*
 * Begin to connect.
 */
void
cqrs_intake_connect(void)
{
	intake.link = cqrs_link_open(intake.server->module,
								 &intake.server->connection);
}

/*
 * What there is to do. error, of CQRS_BROKER_ERROR_SIZE bytes, gets why the
 * connection is lost.
 */
CqrsIntakeTask
cqrs_intake_task(char *error)
{
	TimestampTz now;

	if (intake.link == NULL)
		return CQRS_INTAKE_OPEN;
	switch (cqrs_link_state(intake.link, error))
	{
		case CQRS_LINK_CONNECTING:
			return CQRS_INTAKE_WAIT;
		case CQRS_LINK_LOST:
			return CQRS_INTAKE_FAIL;
		case CQRS_LINK_OPEN:
			break;
	}

	now = cqrs_steady_now();
	if (error[0] == '\0')
		intake.trouble_since = 0;
	else if (intake.trouble_since == 0)
		intake.trouble_since = now;
	strlcpy(intake.trouble, error, sizeof(intake.trouble));
	take_arrivals();
	if (intake.renew)
		return CQRS_INTAKE_RENEW;
	if (!intake.assigned && (!intake.keeps_offsets || intake.npartitions >= 0))
		return CQRS_INTAKE_PLAN;
	if (may_store())
		return CQRS_INTAKE_STORE;
	if (TimestampDifferenceExceeds(intake.checked_at, now, CHECK_INTERVAL))
		return CQRS_INTAKE_CHECK;
	return CQRS_INTAKE_WAIT;
}

/*
 * Find out which partitions are ours, and where each is. Returns false if there is
 * none; or if they were restored from a dump, and are not adopted.
 */
bool
cqrs_intake_plan(CqrsConsumer *consumer)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(intake.context);

	if (!is_same(consumer))
		intake.renew = true;
	else
		plan_source(consumer);
	MemoryContextSwitchTo(oldcontext);
	return intake.renew || intake.nparts > 0;
}

/*
 * The plan has committed: have them consumed.
 */
void
cqrs_intake_planned(void)
{
	CqrsBrokerPosition *positions;
	int			i;

	if (intake.renew)
		return;
	positions = palloc0(sizeof(CqrsBrokerPosition) * intake.nparts);
	for (i = 0; i < intake.nparts; i++)
	{
		Part	   *part = &intake.parts[i];

		positions[i].partition = intake.keeps_offsets ? part->place.partition : 0;
		positions[i].offset = part->place.next_offset;
		positions[i].last = part->place.last_offset;
		positions[i].timestamp = part->place.start_at +
			(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
		part->compare = part->place.last_offset >= 0;
	}
	cqrs_link_assign(intake.link, positions, intake.nparts);
	pfree(positions);
	intake.assigned = true;
}

/*
 * Make events of what has come.
 */
void
cqrs_intake_store(CqrsConsumer *consumer)
{
	int			i;

	(void) cqrs_object_lock(CQRS_REL_CONSUMER, consumer->consumer_id, 0,
							ShareLock, true);

	/* While we waited, somebody may have changed it. */
	consumer = cqrs_registry_consumer_by_id(consumer->consumer_id);
	if (consumer == NULL || !is_same(consumer))
	{
		intake.renew = true;
		return;
	}
	begin_batch();
	if (!lock_places())
	{
		intake.renew = true;
		return;
	}
	if (intake.batch_last != NULL)
		store_messages(consumer);
	apply_notices(consumer);
	CQRS_DEBUG_POINT("intake_before_place");
	for (i = 0; i < intake.nparts; i++)
	{
		Part	   *part = &intake.parts[i];

		if (!part->touched)
			continue;
		if (part->last != NULL)
			part->moved.last_hash = message_hash(part->last);
		if (part->moved.end_offset >= 0)
			part->moved.end_offset = Max(part->moved.end_offset,
										 part->moved.next_offset);
		cqrs_place_append(&part->moved);
		intake.renew |= part->moved.stopped != CQRS_STOPPED_NOT;
	}
	if (intake.failed && !intake.renew && intake.trouble_since == 0)
		cqrs_failure_clear(consumer->consumer_id, intake.worker);
	cqrs_commit_durably();
}

/*
 * The batch has committed: tell the broker.
 */
void
cqrs_intake_stored(void)
{
	int			i;

	for (i = 0; i < intake.nparts; i++)
	{
		Part	   *part = &intake.parts[i];

		if (!part->touched)
			continue;
		part->place = part->moved;
		part->compare = part->compared;
	}
	while (intake.notices != intake.batch_notices)
	{
		CqrsLinkNotice *notice = intake.notices;

		intake.notices = notice->next;
		free(notice);
	}
	if (intake.batch_last != NULL && !intake.renew)
	{
		CqrsBrokerReceived *first = intake.first;

		intake.first = intake.batch_last->next;
		if (intake.first == NULL)
			intake.last = NULL;
		intake.batch_last->next = NULL;
		intake.nstored += intake.nbatch;
		intake.apart = Max(intake.apart - intake.nbatch, 0);
		CQRS_DEBUG_POINT("intake_before_settle");
		cqrs_link_settle(intake.link, first, intake.batch_last);
	}
	intake.batch_last = NULL;

	/* What the broker complains of may be about another partition. */
	if (intake.trouble_since == 0)
		intake.failed = false;
}

/*
 * The batch was rolled back by an error. Is that a message's, so that they are to
 * be tried one by one?
 */
bool
cqrs_intake_goes_apart(void)
{
	bool		converting = intake.converting;

	intake.converting = false;
	intake.batch_last = NULL;
	if (!converting || intake.apart > 0)
		return false;
	intake.apart = intake.nbatch;
	return true;
}

/*
 * See whether the consumer is what it was; write what is worth it.
 */
void
cqrs_intake_check(CqrsConsumer *consumer)
{
	TimestampTz now = cqrs_steady_now();
	int			i;

	intake.checked_at = now;
	if (!is_same(consumer))
	{
		intake.renew = true;
		return;
	}
	if (intake.trouble_since != 0 && !intake.failed &&
		TimestampDifferenceExceeds(intake.trouble_since, now, LONGEST_TROUBLE))
	{
		ErrorData	error = {0};

		error.sqlerrcode = ERRCODE_FDW_ERROR;
		error.message = cqrs_broker_error(intake.trouble);
		(void) cqrs_failure_record(consumer->consumer_id, intake.worker,
								   &error, CQRS_FAILURE_DELAY);
		intake.failed = true;
	}
	else if (intake.trouble_since == 0 && intake.failed && intake.assigned)
	{
		cqrs_failure_clear(consumer->consumer_id, intake.worker);
		intake.failed = false;
	}

	/* While it is connected, what its messages' ids are kept for passes. */
	if (!intake.keeps_offsets &&
		TimestampDifferenceExceeds(intake.noted_at, now, NOTE_INTERVAL))
	{
		CqrsMessageSource source;

		cqrs_message_source_init(&source, consumer->owner,
								 source_name(consumer));
		(void) cqrs_message_source_note(&source);
		intake.noted_at = now;
	}
	if (!intake.ends_moved ||
		!TimestampDifferenceExceeds(intake.ends_written_at, now, END_INTERVAL))
		return;
	(void) cqrs_object_lock(CQRS_REL_CONSUMER, consumer->consumer_id, 0,
							ShareLock, true);
	begin_batch();
	intake.batch_last = NULL;
	intake.batch_notices = intake.notices;
	for (i = 0; i < intake.nparts; i++)
		intake.parts[i].touched = true;
	if (!lock_places())
	{
		intake.renew = true;
		return;
	}
	for (i = 0; i < intake.nparts; i++)
	{
		cqrs_place_append(&intake.parts[i].moved);

		/* If this is rolled back, we see that somebody else moved it. */
		intake.parts[i].place = intake.parts[i].moved;
	}
	intake.ends_moved = false;
	intake.ends_written_at = now;
}

/*
 * The descriptor that is readable when there is something to do.
 */
int
cqrs_intake_fd(void)
{
	return cqrs_link_fd(intake.link);
}

/*
 * How long to wait for it at most, in milliseconds.
 */
long
cqrs_intake_patience(void)
{
	return CHECK_INTERVAL;
}

/*
 * Close the connection, and forget what was not stored. May end the process.
 */
void
cqrs_intake_close(void)
{
	CqrsBrokerLink *link = intake.link;
	MemoryContext context = intake.context;

	while (intake.notices != NULL)
	{
		CqrsLinkNotice *notice = intake.notices;

		intake.notices = notice->next;
		free(notice);
	}
	memset(&intake, 0, sizeof(intake));
	if (link != NULL)
		cqrs_link_close(link);
	if (context != NULL)
		MemoryContextDelete(context);
}

/*
 * Is the consumer, and its server, what it was when the connection was made?
 */
static bool
is_same(const CqrsConsumer *consumer)
{
	return consumer->active && consumer->retried_at == intake.retried_at &&
		cqrs_broker_server_generation() == intake.generation;
}

static void
plan_source(CqrsConsumer *consumer)
{
	CqrsPlace  *places;
	int			n;
	int			i;

	places = cqrs_places_read(consumer->consumer_id, &n);
	for (i = 0; i < n; i++)
		if (!places[i].native)
			return;
	places = complete_places(consumer, places, &n);
	if (intake.renew)
		return;

	intake.parts = palloc0(sizeof(Part) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		bool		ours = intake.keeps_offsets ?
		places[i].partition % consumer->workers == intake.worker &&
		places[i].partition < intake.npartitions :
		places[i].partition == intake.worker;

		if (ours && places[i].stopped == CQRS_STOPPED_NOT)
			intake.parts[intake.nparts++].place = places[i];
	}
}

/*
 * Add the places of partitions that are not known yet: where the consumer starts, if
 * none was known; at their beginning, if they came later.
 */
static CqrsPlace *
complete_places(CqrsConsumer *consumer, CqrsPlace *places, int *nplaces)
{
	int			wanted = intake.keeps_offsets ? intake.npartitions : 1;
	bool		is_first = *nplaces == 0;
	int			known = 0;
	int			i;

	for (i = 0; i < *nplaces; i++)
		if (intake.keeps_offsets ? places[i].partition < wanted :
			places[i].partition == intake.worker)
			known++;
	if (known >= wanted)
		return places;

	/* Somebody else may be about to do the same. */
	cqrs_consumer_lock(consumer);
	consumer = cqrs_registry_consumer_by_id(consumer->consumer_id);
	if (!is_same(consumer))
	{
		intake.renew = true;
		return places;
	}
	places = cqrs_places_read(consumer->consumer_id, nplaces);
	is_first = *nplaces == 0;
	for (i = 0; i < wanted; i++)
	{
		int32		partition = intake.keeps_offsets ? i : intake.worker;
		CqrsPlace	place;
		int			j;

		for (j = 0; j < *nplaces && places[j].partition != partition; j++)
			;
		if (j < *nplaces)
			continue;
		cqrs_place_init(&place, consumer->consumer_id, partition);
		if (is_first && strcmp(consumer->start, "latest") == 0)
			place.next_offset = CQRS_BROKER_OFFSET_LATEST;
		else if (is_first && strcmp(consumer->start, "earliest") != 0)
		{
			place.next_offset = CQRS_BROKER_OFFSET_TIME;
			place.start_at =
				DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
														CStringGetDatum(consumer->start),
														ObjectIdGetDatum(InvalidOid),
														Int32GetDatum(-1)));
		}
		cqrs_place_append(&place);
	}

	/* A worker that had none may have one now. */
	if (!is_first && intake.keeps_offsets && consumer->workers > 1)
	{
		cqrs_consumer_changed(consumer->consumer_id);
		intake.renew = true;
	}
	return cqrs_places_read(consumer->consumer_id, nplaces);
}

/*
 * Take what the link has received.
 */
static void
take_arrivals(void)
{
	CqrsBrokerReceived *last;
	CqrsLinkNotice *notice;
	CqrsBrokerReceived *first = cqrs_link_receive(intake.link, &last, &notice);

	if (first != NULL)
	{
		if (intake.first == NULL)
			intake.first = first;
		else
			intake.last->next = first;
		intake.last = last;
	}
	while (notice != NULL)
	{
		CqrsLinkNotice *next = notice->next;

		take_notice(notice);
		notice = next;
	}
}

/*
 * What does not move a place counts at once; the rest when it is its turn.
 */
static void
take_notice(CqrsLinkNotice *notice)
{
	Part	   *part = find_part(notice->notice.partition);

	switch (notice->notice.kind)
	{
		case CQRS_BROKER_NOTICE_PARTITIONS:
			if (intake.assigned && notice->notice.value != intake.npartitions)
				intake.renew = true;
			intake.npartitions = notice->notice.value;
			break;

		case CQRS_BROKER_NOTICE_END:
			if (part != NULL && part->place.end_offset != notice->notice.value)
			{
				part->place.end_offset = notice->notice.value;
				intake.ends_moved = true;
			}
			break;

		default:
			notice->next = NULL;
			if (intake.notices == NULL)
				intake.notices = notice;
			else
				intake.last_notice->next = notice;
			intake.last_notice = notice;
			return;
	}
	free(notice);
}

/*
 * Is there something that moves a place?
 */
static bool
may_store(void)
{
	return intake.assigned &&
		(intake.first != NULL ||
		 (intake.notices != NULL && intake.notices->behind <= intake.nstored));
}

static Part *
find_part(int32 partition)
{
	int			low = 0;
	int			high = intake.nparts - 1;

	if (!intake.keeps_offsets)
		return intake.nparts > 0 ? &intake.parts[0] : NULL;
	while (low <= high)
	{
		int			middle = (low + high) / 2;
		Part	   *part = &intake.parts[middle];

		if (part->place.partition == partition)
			return part;
		if (part->place.partition < partition)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return NULL;
}

/*
 * Choose the messages of a batch, and the notices behind them.
 */
static void
begin_batch(void)
{
	CqrsBrokerReceived *message;
	CqrsLinkNotice *notice;
	size_t		bytes = 0;
	int			npartitions = 0;
	int			i;

	intake.batch_last = NULL;
	intake.nbatch = 0;
	for (i = 0; i < intake.nparts; i++)
	{
		intake.parts[i].moved = intake.parts[i].place;
		intake.parts[i].compared = intake.parts[i].compare;
		intake.parts[i].touched = false;
		intake.parts[i].last = NULL;
	}
	for (message = intake.first;
		 message != NULL && intake.nbatch < MOST_MESSAGES && bytes < MOST_BYTES;
		 message = message->next)
	{
		if (touch(message->partition) && ++npartitions > MOST_PARTITIONS)
		{
			find_part(message->partition)->touched = false;
			break;
		}
		intake.batch_last = message;
		intake.nbatch++;
		bytes += message->body_size + message->key_size;
	}
	for (notice = intake.notices;
		 notice != NULL && notice->behind <= intake.nstored + intake.nbatch;
		 notice = notice->next)
		if (touch(notice->notice.partition) && ++npartitions > MOST_PARTITIONS)
		{
			find_part(notice->notice.partition)->touched = false;
			break;
		}
	intake.batch_notices = notice;
}

/*
 * A partition is in the batch. Returns whether it was not before.
 */
static bool
touch(int32 partition)
{
	Part	   *part = find_part(partition);

	if (part == NULL || part->touched)
		return false;
	part->touched = true;
	return true;
}

/*
 * Lock the places of the batch, in their order. Returns false if somebody moved one
 * of them.
 */
static bool
lock_places(void)
{
	int			i;

	for (i = 0; i < intake.nparts; i++)
		if (intake.parts[i].touched && !cqrs_place_lock(&intake.parts[i].place))
			return false;
	return true;
}

static void
store_messages(CqrsConsumer *consumer)
{
	MemoryContext context;
	MemoryContext oldcontext;
	CqrsInbound inbound;
	CqrsEmitter *emitter;
	CqrsBrokerReceived *message = intake.first;
	char	  **ids = NULL;
	bool	   *first = NULL;
	int			i;

	if (consumer->topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the topic of consumer \"%s\" was dropped",
						consumer->name),
				 errhint("Use cqrs_alter_consumer().")));
	cqrs_topic_require(consumer->topic, ACL_INSERT);
	cqrs_inbound_init(&inbound, consumer,
					  intake.server->module->cloudevents_prefix,
					  intake.server->max_message_size);
	if (!intake.keeps_offsets)
	{
		ids = palloc(sizeof(char *) * intake.nbatch);
		first = recognise(&inbound, ids);
	}

	emitter = cqrs_emitter_begin(NULL, consumer->topic, (Datum) 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "cqrs message",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	for (i = 0; i < intake.nbatch; i++, message = message->next)
	{
		Part	   *part = find_part(message->partition);
		char	   *id = ids != NULL ? ids[i] : NULL;
		CqrsEvent	event;
		pg_uuid_t	event_id;

		CHECK_FOR_INTERRUPTS();
		if (part == NULL || !is_new(part, message))
			continue;
		part->last = message;
		if (intake.keeps_offsets)
		{
			part->moved.last_offset = message->offset;
			part->moved.next_offset = message->offset + 1;
		}
		part->moved.last_time = cqrs_inbound_time(message);
		if (ids != NULL && id == NULL)
		{
			ErrorData	error = {.sqlerrcode = ERRCODE_NULL_VALUE_NOT_ALLOWED,
			.message = "the message has no id by which it would be recognised"};

			cqrs_event_id_generate(GetCurrentTimestamp(), &event_id);
			bury(&inbound, message, NULL, &event_id, &error);
			part->moved.dead++;
			continue;
		}
		if (first != NULL && !first[i])
		{
			part->moved.repeated++;
			continue;
		}
		cqrs_inbound_event_id(&inbound, message, id, &event_id);
		if (convert(&inbound, message, id, &event_id, &event))
		{
			cqrs_emitter_add_event(emitter, &event);
			part->moved.consumed++;
		}
		else
			part->moved.dead++;
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	cqrs_emitter_end(emitter);
}

/*
 * Of a source without offsets: the ids of the batch's messages, NULL for those that
 * have none, and whether each came for the first time.
 */
static bool *
recognise(const CqrsInbound *inbound, char **ids)
{
	bool	   *first = palloc0(sizeof(bool) * intake.nbatch);
	bool	   *known = palloc0(sizeof(bool) * intake.nbatch);
	Datum	   *given = palloc(sizeof(Datum) * intake.nbatch);
	CqrsBrokerReceived *message = intake.first;
	int			n = 0;
	int			i;

	for (i = 0; i < intake.nbatch; i++, message = message->next)
	{
		ids[i] = cqrs_inbound_message_id(inbound, message);

		/* What is too long for the table is recognised by its hash. */
		if (ids[i] != NULL && strlen(ids[i]) > CQRS_MAX_MESSAGE_ID)
			ids[i] = psprintf("%016" INT64_MODIFIER "x%016" INT64_MODIFIER "x:%zu",
							  hash_bytes_extended((unsigned char *) ids[i],
												  strlen(ids[i]), 0),
							  hash_bytes_extended((unsigned char *) ids[i],
												  strlen(ids[i]), 1),
							  strlen(ids[i]));
		if (ids[i] != NULL)
			given[n++] = CStringGetTextDatum(ids[i]);
	}
	if (n > 0)
		cqrs_message_ids_consume(inbound->consumer->owner,
								 source_name(inbound->consumer), n, given,
								 known);
	for (i = n = 0; i < intake.nbatch; i++)
		if (ids[i] != NULL)
			first[i] = known[n++];
	return first;
}

/*
 * Is the message one that was not consumed before? If it is the last one that was,
 * see whether that is so.
 */
static bool
is_new(Part *part, const CqrsBrokerReceived *message)
{
	CqrsPlace  *place = &part->moved;

	if (!intake.keeps_offsets)
		return true;
	if (place->stopped != CQRS_STOPPED_NOT)
		return false;
	if (part->compared)
	{
		part->compared = false;
		if (message->offset == place->last_offset &&
			message_hash(message) != place->last_hash)
			place->stopped = CQRS_STOPPED_OTHER;
	}
	return place->stopped == CQRS_STOPPED_NOT &&
		(place->next_offset < 0 || message->offset >= place->next_offset);
}

/*
 * Make a message an event. Returns false if it is a dead letter instead.
 */
static bool
convert(const CqrsInbound *inbound, const CqrsBrokerReceived *message,
		const char *message_id, pg_uuid_t *event_id, CqrsEvent *event)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	intake.converting = true;
	if (intake.apart == 0)
		cqrs_inbound_event(inbound, message, message_id, event_id, event);
	else
	{
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(context);
		PG_TRY();
		{
			cqrs_inbound_event(inbound, message, message_id, event_id, event);
			ReleaseCurrentSubTransaction();
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			if (cqrs_blame(error) == CQRS_BLAME_NOBODY)
				PG_RE_THROW();
			FlushErrorState();
			RollbackAndReleaseCurrentSubTransaction();
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	intake.converting = false;
	if (error != NULL)
		bury(inbound, message, message_id, event_id, error);
	return error == NULL;
}

/*
 * Keep a message that cannot be an event.
 */
static void
bury(const CqrsInbound *inbound, const CqrsBrokerReceived *message,
	 const char *message_id, const pg_uuid_t *event_id,
	 const ErrorData *error)
{
	if (!cqrs_dead_message_add(inbound->consumer->consumer_id, message,
							   message_id, event_id, error))
		return;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("a message of consumer \"%s\" is a dead letter",
					inbound->consumer->name),
			 errdetail_internal("%s", error->message)));
}

/*
 * Places move by what was said behind the batch's messages.
 */
static void
apply_notices(CqrsConsumer *consumer)
{
	CqrsLinkNotice *notice;

	for (notice = intake.notices; notice != intake.batch_notices;
		 notice = notice->next)
	{
		Part	   *part = find_part(notice->notice.partition);
		CqrsPlace  *place = part != NULL ? &part->moved : NULL;

		if (place == NULL || place->stopped != CQRS_STOPPED_NOT)
			continue;
		switch (notice->notice.kind)
		{
			case CQRS_BROKER_NOTICE_REACHED:
				place->next_offset = Max(place->next_offset,
										 notice->notice.value);
				break;
			case CQRS_BROKER_NOTICE_GAP:
				ereport(LOG,
						(errcode(ERRCODE_DATA_EXCEPTION),
						 errmsg("consumer \"%s\" has missed messages of partition %d",
								consumer->name, place->partition),
						 errdetail("It begins at offset " INT64_FORMAT ", and the next one was to be " INT64_FORMAT ".",
								   notice->notice.value, place->next_offset)));
				if (consumer->skips_gaps)
				{
					place->next_offset = notice->notice.value;
					place->last_offset = -1;
					intake.renew = true;
				}
				else
					place->stopped = CQRS_STOPPED_GAP;
				break;
			case CQRS_BROKER_NOTICE_SHORTER:
				place->stopped = CQRS_STOPPED_OTHER;
				break;
			default:
				break;
		}
		if (place->stopped != CQRS_STOPPED_NOT)
			place->end_offset = notice->notice.value;
	}
}

/*
 * By which a message is told from another one at the same place.
 */
static int64
message_hash(const CqrsBrokerReceived *message)
{
	uint64		hash = message->timestamp;

	if (message->key != NULL)
		hash = hash_bytes_extended((const unsigned char *) message->key,
								   message->key_size, hash + 1);
	if (message->body != NULL)
		hash = hash_bytes_extended((const unsigned char *) message->body,
								   message->body_size, hash + 2);
	return (int64) hash;
}

/*
 * The name of a consumer among the sources of messages' ids.
 */
static char *
source_name(const CqrsConsumer *consumer)
{
	char		incarnation[40];

	return psprintf("consumer %s",
					cqrs_uuid_text(&consumer->incarnation, incarnation));
}
