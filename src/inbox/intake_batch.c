/*-------------------------------------------------------------------------
 *
 * intake_batch.c
 *	  A batch of messages: events, in one transaction. intake.c has the protocol.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <stdlib.h>

#include "access/xact.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/debug_point.h"
#include "base/event_id.h"
#include "emit/emit.h"
#include "extension/catalog.h"
#include "inbox/dead_message.h"
#include "inbox/inbound.h"
#include "inbox/intake.h"
#include "inbox/intake_state.h"
#include "inbox/message_id.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "retry/blame.h"
#include "retry/failure.h"
#include "shared/clock.h"

/* A batch has no more than this. */
#define MOST_MESSAGES	5000
#define MOST_BYTES		(8 * 1024 * 1024)

CqrsIntake	cqrs_intake;

static void reset_batch(void);
static bool touch(int32 partition);
static void store_messages(CqrsConsumer *consumer);
static bool *recognise(const CqrsInbound *inbound, char **ids);
static bool is_new(CqrsPart *part, const CqrsBrokerReceived *message);
static bool convert(const CqrsInbound *inbound,
					const CqrsBrokerReceived *message, const char *message_id,
					pg_uuid_t *event_id, CqrsEvent *event);
static void bury(const CqrsInbound *inbound,
				 const CqrsBrokerReceived *message, const char *message_id,
				 const pg_uuid_t *event_id, const ErrorData *error);
static void apply_notices(CqrsConsumer *consumer);
static bool is_moved(const CqrsPart *part);
static int64 message_hash(const CqrsBrokerReceived *message);

/*
 * Make events of what has come.
 */
void
cqrs_intake_store(CqrsConsumer *consumer)
{
	int			i;

	reset_batch();
	if (!cqrs_intake_lock(&consumer))
		return;
	cqrs_intake_begin_batch();
	if (!cqrs_intake_lock_places())
	{
		cqrs_intake.renew = true;
		return;
	}
	if (cqrs_intake.batch_last != NULL)
		store_messages(consumer);
	apply_notices(consumer);
	CQRS_DEBUG_POINT("intake_before_place");
	for (i = 0; i < cqrs_intake.nparts; i++)
	{
		CqrsPart   *part = &cqrs_intake.parts[i];

		if (!part->touched || !is_moved(part))
			continue;
		if (part->last != NULL)
			part->moved.last_hash = message_hash(part->last);
		if (part->moved.end_offset >= 0)
			part->moved.end_offset = Max(part->moved.end_offset,
										 part->moved.next_offset);
		cqrs_place_append(&part->moved);
		cqrs_intake.renew |= part->moved.stopped != CQRS_STOPPED_NOT;
	}
	if (cqrs_intake.failed && !cqrs_intake.renew &&
		!cqrs_intake.troubled && cqrs_intake.troubles == 0)
		cqrs_failure_clear(consumer->consumer_id, cqrs_intake.worker);
	cqrs_commit_durably();
}

/*
 * The batch has committed: tell the broker.
 */
void
cqrs_intake_stored(void)
{
	int			i;

	for (i = 0; i < cqrs_intake.nparts; i++)
	{
		CqrsPart   *part = &cqrs_intake.parts[i];

		if (!part->touched)
			continue;
		part->place = part->moved;
		part->compare = part->compared;
		part->end_moved = false;
	}
	while (cqrs_intake.notices != cqrs_intake.batch_notices)
	{
		CqrsLinkNotice *notice = cqrs_intake.notices;

		cqrs_intake.notices = notice->next;
		free(notice);
	}
	if (cqrs_intake.batch_last != NULL && !cqrs_intake.renew)
	{
		CqrsBrokerReceived *first = cqrs_intake.first;

		cqrs_intake.first = cqrs_intake.batch_last->next;
		if (cqrs_intake.first == NULL)
			cqrs_intake.last = NULL;
		cqrs_intake.batch_last->next = NULL;
		cqrs_intake.nstored += cqrs_intake.nbatch;
		cqrs_intake.apart = Max(cqrs_intake.apart - cqrs_intake.nbatch, 0);
		CQRS_DEBUG_POINT("intake_before_settle");
		cqrs_link_settle(cqrs_intake.link, first, cqrs_intake.batch_last);
	}
	cqrs_intake.batch_last = NULL;

	/* What the broker complains of may be about another partition. */
	if (!cqrs_intake.troubled && cqrs_intake.troubles == 0)
		cqrs_intake.failed = false;
}

/*
 * The batch was rolled back by an error. Is that a message's, so that they are to
 * be tried one by one?
 */
bool
cqrs_intake_goes_apart(void)
{
	bool		converting = cqrs_intake.converting;

	cqrs_intake.converting = false;
	cqrs_intake.batch_last = NULL;
	if (!converting || cqrs_intake.apart > 0)
		return false;
	cqrs_intake.apart = cqrs_intake.nbatch;
	return true;
}

/*
 * Let nobody change the consumer until the end of the transaction. Returns false if it
 * is not what it was when the connection was made: then that is to be made anew.
 */
bool
cqrs_intake_lock(CqrsConsumer **consumer)
{
	(void) cqrs_object_lock(CQRS_REL_CONSUMER, (*consumer)->consumer_id, 0,
							ShareLock, true);

	/* While we waited, somebody may have changed it. */
	*consumer = cqrs_registry_consumer_by_id((*consumer)->consumer_id);
	if (*consumer == NULL || !cqrs_intake_is_same(*consumer))
		cqrs_intake.renew = true;
	return !cqrs_intake.renew;
}

/*
 * Choose the messages of a batch, and the notices behind them.
 */
void
cqrs_intake_begin_batch(void)
{
	CqrsBrokerReceived *message;
	CqrsLinkNotice *notice;
	size_t		bytes = 0;
	int			npartitions = 0;

	reset_batch();
	for (message = cqrs_intake.first;
		 message != NULL && cqrs_intake.nbatch < MOST_MESSAGES && bytes < MOST_BYTES;
		 message = message->next)
	{
		if (touch(message->partition) && ++npartitions > CQRS_INTAKE_PARTS)
		{
			cqrs_intake_find_part(message->partition)->touched = false;
			break;
		}
		cqrs_intake.batch_last = message;
		cqrs_intake.nbatch++;
		bytes += message->body_size + message->key_size;
	}
	for (notice = cqrs_intake.notices;
		 notice != NULL && notice->behind <= cqrs_intake.nstored + cqrs_intake.nbatch;
		 notice = notice->next)
		if (touch(notice->notice.partition) && ++npartitions > CQRS_INTAKE_PARTS)
		{
			cqrs_intake_find_part(notice->notice.partition)->touched = false;
			break;
		}
	cqrs_intake.batch_notices = notice;
}

/*
 * A batch in which there is nothing.
 */
static void
reset_batch(void)
{
	int			i;

	cqrs_intake.batch_last = NULL;
	cqrs_intake.nbatch = 0;
	cqrs_intake.batch_notices = cqrs_intake.notices;
	for (i = 0; i < cqrs_intake.nparts; i++)
	{
		cqrs_intake.parts[i].moved = cqrs_intake.parts[i].place;
		cqrs_intake.parts[i].compared = cqrs_intake.parts[i].compare;
		cqrs_intake.parts[i].touched = false;
		cqrs_intake.parts[i].last = NULL;
	}
}

/*
 * A partition is in the batch. Returns whether it was not before.
 */
static bool
touch(int32 partition)
{
	CqrsPart   *part = cqrs_intake_find_part(partition);

	if (part == NULL || part->touched)
		return false;
	part->touched = true;
	return true;
}

/*
 * Lock the places of the batch, in their order. Returns false if somebody moved one
 * of them.
 */
bool
cqrs_intake_lock_places(void)
{
	int			i;

	for (i = 0; i < cqrs_intake.nparts; i++)
		if (cqrs_intake.parts[i].touched && !cqrs_place_lock(&cqrs_intake.parts[i].place))
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
	CqrsBrokerReceived *message = cqrs_intake.first;
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
					  cqrs_intake.server->module->cloudevents_prefix,
					  cqrs_intake.server->max_message_size);
	if (!cqrs_intake.keeps_offsets)
	{
		ids = palloc(sizeof(char *) * cqrs_intake.nbatch);
		first = recognise(&inbound, ids);
	}

	emitter = cqrs_emitter_begin(NULL, consumer->topic, (Datum) 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "cqrs message",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	for (i = 0; i < cqrs_intake.nbatch; i++, message = message->next)
	{
		CqrsPart   *part = cqrs_intake_find_part(message->partition);
		char	   *id = ids != NULL ? ids[i] : NULL;
		CqrsEvent	event;
		pg_uuid_t	event_id;

		CHECK_FOR_INTERRUPTS();
		if (part == NULL || !is_new(part, message))
			continue;
		part->last = message;
		if (cqrs_intake.keeps_offsets)
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
	bool	   *first = palloc0(sizeof(bool) * cqrs_intake.nbatch);
	bool	   *known = palloc0(sizeof(bool) * cqrs_intake.nbatch);
	Datum	   *given = palloc(sizeof(Datum) * cqrs_intake.nbatch);
	CqrsBrokerReceived *message = cqrs_intake.first;
	int			n = 0;
	int			i;

	for (i = 0; i < cqrs_intake.nbatch; i++, message = message->next)
	{
		ids[i] = cqrs_inbound_message_id(inbound, message);
		if (ids[i] != NULL)
			given[n++] = CStringGetTextDatum(ids[i]);
	}
	if (n > 0)
		cqrs_message_ids_consume(cqrs_extension_owner(),
								 cqrs_intake_source_name(inbound->consumer), n, given,
								 known);
	for (i = n = 0; i < cqrs_intake.nbatch; i++)
		if (ids[i] != NULL)
			first[i] = known[n++];
	return first;
}

/*
 * Is the message one that was not consumed before? If it is the last one that was,
 * see whether that is so.
 */
static bool
is_new(CqrsPart *part, const CqrsBrokerReceived *message)
{
	CqrsPlace  *place = &part->moved;

	if (!cqrs_intake.keeps_offsets)
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

	cqrs_intake.converting = true;
	if (cqrs_intake.apart == 0)
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
	cqrs_intake.converting = false;
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

	for (notice = cqrs_intake.notices; notice != cqrs_intake.batch_notices;
		 notice = notice->next)
	{
		CqrsPart   *part = cqrs_intake_find_part(notice->notice.partition);
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
					cqrs_intake.renew = true;
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
 * Is there anything to be written of a partition?
 */
static bool
is_moved(const CqrsPart *part)
{
	return part->last != NULL ||
		part->moved.next_offset != part->place.next_offset ||
		part->moved.stopped != part->place.stopped;
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
 * Is the consumer, and its server, what it was when the connection was made?
 */
bool
cqrs_intake_is_same(const CqrsConsumer *consumer)
{
	return consumer->active && consumer->retried_at == cqrs_intake.retried_at &&
		cqrs_broker_server_generation() == cqrs_intake.generation;
}

CqrsPart *
cqrs_intake_find_part(int32 partition)
{
	int			low = 0;
	int			high = cqrs_intake.nparts - 1;

	if (!cqrs_intake.keeps_offsets)
		return cqrs_intake.nparts > 0 ? &cqrs_intake.parts[0] : NULL;
	while (low <= high)
	{
		int			middle = (low + high) / 2;
		CqrsPart   *part = &cqrs_intake.parts[middle];

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
 * The name of a consumer among the extension owner's sources of messages' ids. They
 * stay known when the consumer is given to another owner.
 */
char *
cqrs_intake_source_name(const CqrsConsumer *consumer)
{
	char		incarnation[40];

	return psprintf("consumer %s",
					cqrs_uuid_text(&consumer->incarnation, incarnation));
}
