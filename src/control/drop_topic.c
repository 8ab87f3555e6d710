/*-------------------------------------------------------------------------
 *
 * drop_topic.c
 *	  cqrs_drop_topic(): checks whether what a topic holds may be lost.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"

#include "control/drop_topic.h"
#include "control/events.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/topic.h"
#include "log/topic_drop.h"
#include "registry/registry.h"
#include "subscription/subscription.h"

static void refuse_in_use(CqrsTopic *topic);

PG_FUNCTION_INFO_V1(cqrs_drop_topic);

/*
 * cqrs_drop_topic(topic, cascade, if_exists)
 */
Datum
cqrs_drop_topic(PG_FUNCTION_ARGS)
{
	char	   *name = cqrs_name_arg(fcinfo, 0, "topic");
	CqrsTopic  *topic;

	cqrs_require_writable("cqrs_drop_topic()");
	if (cqrs_registry_topic(name) == NULL)
	{
		if (cqrs_flag_arg(fcinfo, 2))
			PG_RETURN_BOOL(false);
		cqrs_nothing_to_remove(psprintf("topic \"%s\" does not exist", name),
							   "cqrs_topic_status");
	}
	topic = cqrs_topic_get(name);
	cqrs_topic_require_control(topic, "drop");
	if (topic->runner != NULL)
		cqrs_subscription_refuse_sagas(topic->runner,
									   "Use cqrs_drop_saga_queue().");

	/* From here on nobody emits, so what is undelivered stays as it is. */
	topic = cqrs_topic_lock_to_drop(name);
	if (!cqrs_flag_arg(fcinfo, 1))
		refuse_in_use(topic);
	cqrs_topic_drop(topic);
	PG_RETURN_BOOL(true);
}

/*
 * Raises 2BP01 if an event is registered on the topic, or a consumer writes to it;
 * 55006 if it holds events that are not delivered.
 */
static void
refuse_in_use(CqrsTopic *topic)
{
	CqrsAdmin	admin;

	cqrs_admin_begin(&admin);
	if (cqrs_admin_execute("SELECT event_name FROM cqrs.event_type WHERE topic_id = $1 ORDER BY 1 LIMIT 1",
						   1, CQRS_INT4(topic->topic_id)) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop topic \"%s\" because event \"%s\" is registered on it",
						topic->name, SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1)),
				 errhint("Use cqrs_unregister_event() first, or cascade => true.")));
	if (cqrs_admin_execute("SELECT consumer FROM cqrs.consumer WHERE topic_id = $1 ORDER BY 1 LIMIT 1",
						   1, CQRS_INT4(topic->topic_id)) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop topic \"%s\" because consumer \"%s\" writes to it",
						topic->name, SPI_getvalue(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1)),
				 errhint("Use cqrs_drop_consumer() or cqrs_alter_consumer() first, or cascade => true: it waits then for another topic.")));
	cqrs_admin_end(&admin);
	if (cqrs_topic_holds_events(topic))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("topic \"%s\" holds undelivered events", topic->name),
				 errhint("Have them delivered first, or use cascade => true.")));
}

/*
 * Would events, commands or schedules be lost with this topic, which nobody emits
 * to: what is not delivered, given up, or to come?
 */
bool
cqrs_topic_holds_events(CqrsTopic *topic)
{
	CqrsAdmin	admin;
	bool		holds;

	cqrs_admin_begin(&admin);
	holds = !topic->native || cqrs_events_pending(topic) ||
		cqrs_admin_execute("SELECT FROM cqrs.dead_letter WHERE topic_id = $1 LIMIT 1",
						   1, CQRS_INT4(topic->topic_id)) > 0 ||
		cqrs_admin_execute("SELECT FROM cqrs.scheduled_command WHERE topic_id = $1 LIMIT 1",
						   1, CQRS_INT4(topic->topic_id)) > 0 ||
		cqrs_admin_execute("SELECT FROM cqrs.schedule WHERE topic_id = $1 LIMIT 1",
						   1, CQRS_INT4(topic->topic_id)) > 0;
	cqrs_admin_end(&admin);
	return holds;
}
