/*-------------------------------------------------------------------------
 *
 * topic_status.c
 *	  What a topic keeps, and what keeps it from being truncated: view
 *	  cqrs_topic_status.
 *
 * The backlog is not counted; only a few pages and index entries, and file
 * sizes, are read. Whoever may know this need not have privileges on the
 * tables.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_authid.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "extension/catalog.h"
#include "log/retention.h"
#include "log/segment.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "shared/clock.h"

/* Columns of cqrs.topic_progress(). */
enum
{
	PROGRESS_EVENTS,
	PROGRESS_BYTES,
	PROGRESS_OLDEST_EMITTED_AT,
	PROGRESS_SEGMENTS,
	PROGRESS_HELD_BY,
	PROGRESS_HELD_BY_NAME,
	PROGRESS_HELD_BY_PID,
	PROGRESS_HELD_SINCE,
	PROGRESS_COLUMNS
};

PG_FUNCTION_INFO_V1(cqrs_topic_progress);

/*
 * cqrs.topic_progress(topic_id)
 */
Datum
cqrs_topic_progress(PG_FUNCTION_ARGS)
{
	CqrsTopic  *topic = cqrs_registry_topic_by_id(PG_GETARG_INT32(0));
	Datum		values[PROGRESS_COLUMNS] = {0};
	bool		nulls[PROGRESS_COLUMNS] = {0};
	TimestampTz oldest = 0;
	CqrsHold	hold = {CQRS_HELD_BY_NOTHING};
	int64		events = 0;
	int64		bytes = 0;
	int			segments = 0;
	bool		looked = false;
	bool		locked;
	int			i;

	if (topic == NULL ||
		(!cqrs_topic_allows(topic, ACL_SELECT) &&
		 !has_privs_of_role(GetUserId(), ROLE_PG_MONITOR)))
		PG_RETURN_NULL();

	/*
	 * Do not wait for anybody, nor fail, even if the topic is dropped
	 * meanwhile: the others should still be shown.
	 */
	locked = cqrs_segments_lock(topic);
	if (!locked || !cqrs_segments_intact(topic))
	{
		if (locked)
			cqrs_segments_unlock(topic);
		memset(nulls, true, sizeof(nulls));
		nulls[PROGRESS_HELD_BY] = false;
		values[PROGRESS_HELD_BY] =
			CStringGetTextDatum("unusable");
		return cqrs_row(fcinfo, values, nulls);
	}

	/* From the oldest segment to the current one. */
	for (i = 1; i <= CQRS_SEGMENTS; i++)
	{
		int			segment = (topic->current_segment + i) % CQRS_SEGMENTS;
		int64		size = cqrs_segment_bytes(topic, segment);

		if (size == 0)
			continue;
		bytes += size;
		segments++;
		events += cqrs_segment_estimate(topic, segment);
		if (oldest == 0)
			(void) cqrs_segment_oldest(topic, segment, GetActiveSnapshot(),
									   &oldest);
		if (!looked && segment != topic->current_segment)
		{
			cqrs_segment_hold(topic, segment, cqrs_wall_now(), &hold);
			looked = true;
		}
	}

	cqrs_segments_unlock(topic);

	values[PROGRESS_EVENTS] = Int64GetDatum(events);
	values[PROGRESS_BYTES] = Int64GetDatum(bytes);
	values[PROGRESS_OLDEST_EMITTED_AT] = TimestampTzGetDatum(oldest);
	nulls[PROGRESS_OLDEST_EMITTED_AT] = oldest == 0;
	values[PROGRESS_SEGMENTS] = Int32GetDatum(segments);
	nulls[PROGRESS_HELD_BY] = hold.holder == CQRS_HELD_BY_NOTHING;
	if (hold.holder != CQRS_HELD_BY_NOTHING)
		values[PROGRESS_HELD_BY] =
			CStringGetTextDatum(cqrs_hold_word(&hold));
	nulls[PROGRESS_HELD_BY_NAME] = hold.holder != CQRS_HELD_BY_SUBSCRIPTION;
	if (hold.holder == CQRS_HELD_BY_SUBSCRIPTION)
		values[PROGRESS_HELD_BY_NAME] = CStringGetTextDatum(hold.subscription);
	values[PROGRESS_HELD_BY_PID] = Int32GetDatum(hold.pid);
	nulls[PROGRESS_HELD_BY_PID] = hold.pid == 0;
	values[PROGRESS_HELD_SINCE] = TimestampTzGetDatum(hold.since);
	nulls[PROGRESS_HELD_SINCE] = hold.since == 0 ||
		hold.holder == CQRS_HELD_BY_NOTHING;
	return cqrs_row(fcinfo, values, nulls);
}
