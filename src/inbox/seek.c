/*-------------------------------------------------------------------------
 *
 * seek.c
 *	  Having a source consumed from elsewhere.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "utils/builtins.h"

#include "extension/catalog.h"
#include "include/cqrs_broker.h"
#include "inbox/consumer.h"
#include "inbox/consumer_check.h"
#include "inbox/place.h"

static void seek(CqrsConsumer *consumer, NullableDatum partition,
				 int64 offset, TimestampTz time);

PG_FUNCTION_INFO_V1(cqrs_seek_consumer);
PG_FUNCTION_INFO_V1(cqrs_seek_consumer_offset);

/*
 * cqrs_seek_consumer(consumer, target, partition)
 */
Datum
cqrs_seek_consumer(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_seek_consumer()");
	char	   *target;

	cqrs_arg_required(fcinfo, 1, "target of cqrs_seek_consumer()", NULL, NULL);
	target = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(target, "earliest") == 0)
		seek(consumer, fcinfo->args[2], CQRS_BROKER_OFFSET_EARLIEST, 0);
	else if (strcmp(target, "latest") == 0)
		seek(consumer, fcinfo->args[2], CQRS_BROKER_OFFSET_LATEST, 0);
	else
		seek(consumer, fcinfo->args[2], CQRS_BROKER_OFFSET_TIME,
			 cqrs_consumer_parse_time(consumer->name, target));
	PG_RETURN_VOID();
}

/*
 * cqrs_seek_consumer(consumer, partition, offset)
 */
Datum
cqrs_seek_consumer_offset(PG_FUNCTION_ARGS)
{
	CqrsConsumer *consumer = cqrs_consumer_own(fcinfo, "cqrs_seek_consumer()");

	cqrs_arg_required(fcinfo, 1, "partition of cqrs_seek_consumer()", NULL, NULL);
	cqrs_arg_required(fcinfo, 2, "offset of cqrs_seek_consumer()", NULL, NULL);
	if (PG_GETARG_INT64(2) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("consumer \"%s\" cannot go to offset " INT64_FORMAT,
						consumer->name, PG_GETARG_INT64(2)),
				 errhint("Offsets count from 0. \"earliest\" and \"latest\" are targets, too.")));
	seek(consumer, fcinfo->args[1], PG_GETARG_INT64(2), 0);
	PG_RETURN_VOID();
}

/*
 * Have a partition, or all, consumed from there. Raises 55000 or 22023.
 */
static void
seek(CqrsConsumer *consumer, NullableDatum partition, int64 offset,
	 TimestampTz time)
{
	CqrsPlace  *places;
	int			n;
	int			i;
	bool		found = false;

	if (consumer->message_id != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source of consumer \"%s\" has no offsets",
						consumer->name),
				 errdetail("What was acknowledged, the broker has forgotten.")));
	cqrs_consumer_lock(consumer);
	places = cqrs_places_read(consumer->consumer_id, &n);
	for (i = 0; i < n; i++)
	{
		CqrsPlace  *place = &places[i];

		if (!partition.isnull &&
			place->partition != DatumGetInt32(partition.value))
			continue;
		place->next_offset = offset;
		place->start_at = time;
		place->last_offset = -1;
		place->stopped = CQRS_STOPPED_NOT;
		cqrs_place_append(place);
		found = true;
	}
	if (!found)
		ereport(ERROR,
				(errcode(partition.isnull ? ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 partition.isnull ?
				 errmsg("no partition of the source of consumer \"%s\" is known yet",
						consumer->name) :
				 errmsg("the source of consumer \"%s\" has no partition %d that is known",
						consumer->name, DatumGetInt32(partition.value)),
				 errhint("See cqrs_consumer_partitions.")));
	cqrs_consumer_changed(consumer->consumer_id);
}
