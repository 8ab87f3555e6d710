/*-------------------------------------------------------------------------
 *
 * topics.c
 *	  Which topics a subscription reads.
 *
 * Others count under the locks of all cursors. Whoever moves one has its lock before
 * it looks the topics up, and takes its snapshots afterwards: so no window that
 * shows what commits after the change is read with the topics of before. A cursor
 * reads a new topic from where it is.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "control/topics.h"
#include "delivery/underway.h"
#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/cursor.h"
#include "log/topic.h"
#include "registry/registry.h"
#include "retry/parked.h"
#include "shared/announce.h"
#include "subscription/subscription.h"

/*
 * The ids of the topics to subscribe to. Raises 22023 if there are none,
 * 42704, or 42501.
 */
List *
cqrs_topics_check(const char *subscription, ArrayType *array)
{
	List	   *ids = NIL;
	Datum	   *names = NULL;
	bool	   *nulls = NULL;
	int			nnames = 0;
	int			i;

	if (array != NULL)
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
						  &names, &nulls, &nnames);
	if (nnames == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no topics", subscription),
				 errhint("Name at least one topic.")));
	for (i = 0; i < nnames; i++)
	{
		CqrsTopic  *topic;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("topic name must not be null")));
		topic = cqrs_topic_get(TextDatumGetCString(names[i]));
		cqrs_topic_require(topic, ACL_SELECT);
		ids = list_append_unique_int(ids, topic->topic_id);
	}
	return ids;
}

/*
 * The ids of the topics that it reads.
 */
List *
cqrs_topics_of(const CqrsSubscription *subscription)
{
	List	   *ids = NIL;
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		ids = lappend_int(ids, subscription->topics[i]->topic_id);
	return ids;
}

/*
 * Does it read just these topics?
 */
bool
cqrs_topics_are(const CqrsSubscription *subscription, List *topics)
{
	int			i;

	for (i = 0; i < subscription->ntopics; i++)
		if (!list_member_int(topics, subscription->topics[i]->topic_id))
			return false;
	return list_length(topics) == subscription->ntopics;
}

/*
 * Have a subscription read these topics, a list of ids, and no others; what is
 * parked of others is forgotten. Waits for the batches being delivered. Raises 55000
 * if the subscription was restored, and not adopted: its cursors say what it has got
 * elsewhere, and must stay as they are.
 */
void
cqrs_topics_set(const CqrsSubscription *subscription, List *topics)
{
	int32		subscription_id = subscription->subscription_id;
	List	   *added = list_copy(topics);
	CqrsCursor *cursors;
	ListCell   *lc;
	int			i;
	int			j;

	/* Topics are locked before cursors. */
	for (i = 0; i < subscription->ntopics; i++)
		added = list_delete_int(added, subscription->topics[i]->topic_id);
	foreach(lc, added)
		(void) cqrs_object_lock(CQRS_REL_TOPIC, lfirst_int(lc), 0, ShareLock,
								true);
	subscription = cqrs_subscription_lock_all(subscription);
	cqrs_underway_settle(subscription_id);
	cursors = cqrs_cursor_read_all(subscription_id, subscription->partitions);
	for (i = 0; i < subscription->partitions; i++)
		cqrs_cursor_require_native(&cursors[i], subscription->name);

	for (i = 0; i < subscription->ntopics; i++)
	{
		int32		topic_id = subscription->topics[i]->topic_id;

		added = list_delete_int(added, topic_id);
		if (list_member_int(topics, topic_id))
			continue;
		(void) cqrs_admin_run("DELETE FROM cqrs.subscription_topic WHERE subscription_id = $1 AND topic_id = $2",
							  2, CQRS_INT4(subscription_id), CQRS_INT4(topic_id));
		for (j = 0; j < subscription->partitions; j++)
			cqrs_parked_discard_topic(&cursors[j], topic_id);
	}
	foreach(lc, added)
	{
		(void) cqrs_subscription_add_topic(subscription_id, lfirst_int(lc));
		cqrs_shmem_emitted(lfirst_int(lc));
	}

	/* Whoever has read ahead sees that the cursor is not where it was. */
	for (i = 0; i < subscription->partitions; i++)
		cqrs_cursor_append(&cursors[i]);
}
