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

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "extension/catalog.h"
#include "inbox/consumer.h"
#include "inbox/intake.h"
#include "inbox/intake_state.h"
#include "inbox/message_source.h"
#include "registry/registry.h"
#include "retry/failure.h"
#include "shared/clock.h"

/* How often to look whether the consumer is what it was, in milliseconds. */
#define CHECK_INTERVAL	1000

/* How often to write that a partition's end has moved, likewise. */
#define END_INTERVAL	10000

/* How often to note that a source without offsets is consumed, likewise. */
#define NOTE_INTERVAL	20000

/* What the broker complains of before so many checks in a row is told. */
#define TROUBLES		3

static void plan_source(CqrsConsumer *consumer);
static CqrsPlace *complete_places(CqrsConsumer *consumer, CqrsPlace *places,
								  int *nplaces);
static void take_arrivals(void);
static void take_notice(CqrsLinkNotice *notice);
static bool may_store(void);

/*
 * Read all that it takes to connect, as the current user, the consumer's owner.
 */
void
cqrs_intake_prepare(CqrsConsumer *consumer, int worker, bool failed_before)
{
	MemoryContext oldcontext;

	Assert(cqrs_intake.server == NULL);
	memset(&cqrs_intake, 0, sizeof(cqrs_intake));
	cqrs_intake.context = AllocSetContextCreate(TopMemoryContext, "cqrs intake",
												ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(cqrs_intake.context);
	cqrs_intake.generation = cqrs_broker_server_generation();
	cqrs_intake.server = cqrs_broker_server(consumer->server, consumer->name,
											consumer->owner);
	cqrs_intake.server->connection.source =
		pg_server_to_any(pstrdup(consumer->source), strlen(consumer->source),
						 PG_UTF8);
	MemoryContextSwitchTo(oldcontext);
	if (cqrs_intake.server->module->assign == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("nothing can be consumed from server \"%s\"",
						consumer->server)));
	cqrs_intake.keeps_offsets = cqrs_intake.server->module->keeps_offsets;
	cqrs_intake.retried_at = consumer->retried_at;
	cqrs_intake.worker = worker;
	cqrs_intake.npartitions = -1;
	cqrs_intake.failed = failed_before;
	cqrs_intake.checked_at = cqrs_intake.ends_written_at = cqrs_steady_now();
}

/*
 * Begin to connect.
 */
void
cqrs_intake_connect(void)
{
	cqrs_intake.link = cqrs_link_open(cqrs_intake.server->module,
									  &cqrs_intake.server->connection);
}

/*
 * What there is to do. error, of CQRS_BROKER_ERROR_SIZE bytes, gets why the
 * connection is lost.
 */
CqrsIntakeTask
cqrs_intake_task(char *error)
{
	TimestampTz now;

	if (cqrs_intake.link == NULL)
		return CQRS_INTAKE_OPEN;
	switch (cqrs_link_state(cqrs_intake.link, error))
	{
		case CQRS_LINK_CONNECTING:
			return CQRS_INTAKE_WAIT;
		case CQRS_LINK_LOST:
			return CQRS_INTAKE_FAIL;
		case CQRS_LINK_OPEN:
			break;
	}

	now = cqrs_steady_now();
	if (error[0] != '\0')
	{
		cqrs_intake.troubled = true;
		strlcpy(cqrs_intake.trouble, error, sizeof(cqrs_intake.trouble));
	}
	take_arrivals();
	if (cqrs_intake.renew)
		return CQRS_INTAKE_RENEW;
	if (!cqrs_intake.assigned && (!cqrs_intake.keeps_offsets || cqrs_intake.npartitions >= 0))
		return CQRS_INTAKE_PLAN;
	if (TimestampDifferenceExceeds(cqrs_intake.checked_at, now, CHECK_INTERVAL))
		return CQRS_INTAKE_CHECK;
	if (may_store())
		return CQRS_INTAKE_STORE;
	return CQRS_INTAKE_WAIT;
}

/*
 * Find out which partitions are ours, and where each is. Returns false if there is
 * none.
 */
bool
cqrs_intake_plan(CqrsConsumer *consumer)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(cqrs_intake.context);

	if (!cqrs_intake_is_same(consumer))
		cqrs_intake.renew = true;
	else
		plan_source(consumer);
	MemoryContextSwitchTo(oldcontext);
	return cqrs_intake.renew || cqrs_intake.nparts > 0;
}

/*
 * The plan has committed: have them consumed.
 */
void
cqrs_intake_planned(void)
{
	CqrsBrokerPosition *positions;
	int			i;

	if (cqrs_intake.renew)
		return;
	positions = palloc0(sizeof(CqrsBrokerPosition) * cqrs_intake.nparts);
	for (i = 0; i < cqrs_intake.nparts; i++)
	{
		CqrsPart   *part = &cqrs_intake.parts[i];

		positions[i].partition = cqrs_intake.keeps_offsets ? part->place.partition : 0;
		positions[i].offset = part->place.next_offset;
		positions[i].last = part->place.last_offset;
		positions[i].timestamp = part->place.start_at +
			(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
		part->compare = part->place.last_offset >= 0;
	}
	cqrs_link_assign(cqrs_intake.link, positions, cqrs_intake.nparts);
	pfree(positions);
	cqrs_intake.assigned = true;
}

/*
 * See whether the consumer is what it was; write what is worth it.
 */
void
cqrs_intake_check(CqrsConsumer *consumer)
{
	TimestampTz now = cqrs_steady_now();
	int			n = 0;
	int			i;

	cqrs_intake.checked_at = now;
	if (!cqrs_intake_lock(&consumer))
		return;
	cqrs_intake.troubles = cqrs_intake.troubled ? cqrs_intake.troubles + 1 : 0;
	cqrs_intake.troubled = false;
	if (cqrs_intake.troubles >= TROUBLES && !cqrs_intake.failed)
	{
		ErrorData	error = {0};

		error.sqlerrcode = ERRCODE_FDW_ERROR;
		error.message = cqrs_broker_error(cqrs_intake.trouble);
		(void) cqrs_failure_record(consumer->consumer_id, cqrs_intake.worker,
								   &error, CQRS_FAILURE_DELAY);
		cqrs_intake.failed = true;
	}
	else if (cqrs_intake.troubles == 0 && cqrs_intake.failed &&
			 cqrs_intake.assigned)
	{
		cqrs_failure_clear(consumer->consumer_id, cqrs_intake.worker);
		cqrs_intake.failed = false;
	}

	/* While it is connected, what its messages' ids are kept for passes. */
	if (!cqrs_intake.keeps_offsets &&
		TimestampDifferenceExceeds(cqrs_intake.noted_at, now, NOTE_INTERVAL))
	{
		CqrsMessageSource source;

		cqrs_message_source_init(&source, cqrs_extension_owner(),
								 cqrs_intake_source_name(consumer));
		(void) cqrs_message_source_note(&source);
		cqrs_intake.noted_at = now;
	}
	if (!cqrs_intake.ends_moved ||
		!TimestampDifferenceExceeds(cqrs_intake.ends_written_at, now, END_INTERVAL))
		return;
	cqrs_intake_begin_batch();
	cqrs_intake.batch_last = NULL;
	cqrs_intake.batch_notices = cqrs_intake.notices;
	for (i = 0; i < cqrs_intake.nparts; i++)
		cqrs_intake.parts[i].touched = cqrs_intake.parts[i].end_moved &&
			n++ < CQRS_INTAKE_PARTS;
	if (!cqrs_intake_lock_places())
	{
		cqrs_intake.renew = true;
		return;
	}
	for (i = 0; i < cqrs_intake.nparts; i++)
	{
		CqrsPart   *part = &cqrs_intake.parts[i];

		if (!part->touched)
			continue;
		cqrs_place_append(&part->moved);

		/* If this is rolled back, we see that somebody else moved it. */
		part->place = part->moved;
		part->end_moved = false;
	}

	/* The others' turn is when we look the next time. */
	if (n > CQRS_INTAKE_PARTS)
		return;
	cqrs_intake.ends_moved = false;
	cqrs_intake.ends_written_at = now;
}

/*
 * The descriptor that is readable when there is something to do.
 */
int
cqrs_intake_fd(void)
{
	return cqrs_link_fd(cqrs_intake.link);
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
	CqrsBrokerLink *link = cqrs_intake.link;
	MemoryContext context = cqrs_intake.context;

	while (cqrs_intake.notices != NULL)
	{
		CqrsLinkNotice *notice = cqrs_intake.notices;

		cqrs_intake.notices = notice->next;
		free(notice);
	}
	memset(&cqrs_intake, 0, sizeof(cqrs_intake));
	if (link != NULL)
		cqrs_link_close(link);
	if (context != NULL)
		MemoryContextDelete(context);
}

static void
plan_source(CqrsConsumer *consumer)
{
	CqrsPlace  *places;
	int			n;
	int			i;

	places = cqrs_places_read(consumer->consumer_id, &n);
	places = complete_places(consumer, places, &n);
	if (cqrs_intake.renew)
		return;

	cqrs_intake.parts = palloc0(sizeof(CqrsPart) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		bool		ours = cqrs_intake.keeps_offsets ?
		places[i].partition % consumer->workers == cqrs_intake.worker &&
		places[i].partition < cqrs_intake.npartitions :
		places[i].partition == cqrs_intake.worker;

		if (ours && places[i].stopped == CQRS_STOPPED_NOT)
			cqrs_intake.parts[cqrs_intake.nparts++].place = places[i];
	}
}

/*
 * Add the places of partitions that are not known yet: where the consumer starts, if
 * none was known; at their beginning, if they came later.
 */
static CqrsPlace *
complete_places(CqrsConsumer *consumer, CqrsPlace *places, int *nplaces)
{
	int			wanted = cqrs_intake.keeps_offsets ? cqrs_intake.npartitions : 1;
	bool		is_first = *nplaces == 0;
	int			known = 0;
	int			i;

	for (i = 0; i < *nplaces; i++)
		if (cqrs_intake.keeps_offsets ? places[i].partition < wanted :
			places[i].partition == cqrs_intake.worker)
			known++;
	if (known >= wanted)
		return places;

	/* Somebody else may be about to do the same. */
	cqrs_consumer_lock(consumer);
	consumer = cqrs_registry_consumer_by_id(consumer->consumer_id);
	if (!cqrs_intake_is_same(consumer))
	{
		cqrs_intake.renew = true;
		return places;
	}
	places = cqrs_places_read(consumer->consumer_id, nplaces);
	is_first = *nplaces == 0;
	for (i = 0; i < wanted; i++)
	{
		int32		partition = cqrs_intake.keeps_offsets ? i : cqrs_intake.worker;
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
	if (!is_first && cqrs_intake.keeps_offsets && consumer->workers > 1)
	{
		cqrs_consumer_changed(consumer->consumer_id);
		cqrs_intake.renew = true;
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
	CqrsBrokerReceived *first = cqrs_link_receive(cqrs_intake.link, &last, &notice);

	if (first != NULL)
	{
		if (cqrs_intake.first == NULL)
			cqrs_intake.first = first;
		else
			cqrs_intake.last->next = first;
		cqrs_intake.last = last;
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
	CqrsPart   *part = cqrs_intake_find_part(notice->notice.partition);

	switch (notice->notice.kind)
	{
		case CQRS_BROKER_NOTICE_PARTITIONS:
			if (cqrs_intake.assigned && notice->notice.value != cqrs_intake.npartitions)
				cqrs_intake.renew = true;
			cqrs_intake.npartitions = notice->notice.value;
			break;

		case CQRS_BROKER_NOTICE_END:
			if (part != NULL && part->place.end_offset != notice->notice.value)
			{
				part->place.end_offset = notice->notice.value;
				part->end_moved = cqrs_intake.ends_moved = true;
			}
			break;

		default:
			notice->next = NULL;
			if (cqrs_intake.notices == NULL)
				cqrs_intake.notices = notice;
			else
				cqrs_intake.last_notice->next = notice;
			cqrs_intake.last_notice = notice;
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
	return cqrs_intake.assigned &&
		(cqrs_intake.first != NULL ||
		 (cqrs_intake.notices != NULL && cqrs_intake.notices->behind <= cqrs_intake.nstored));
}
