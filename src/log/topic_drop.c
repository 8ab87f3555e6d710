/*-------------------------------------------------------------------------
 *
 * topic_drop.c
 *	  Topics dropped, with all that is about them.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "extension/admin.h"
#include "extension/catalog.h"
#include "log/topic_drop.h"
#include "registry/registry.h"

/* How often a lock is waited for with none of the others held. */
#define DROP_ATTEMPTS	10

/* One of the locks that dropping a topic takes. */
typedef struct DropLock
{
	LOCKTAG		tag;
	LOCKMODE	mode;
} DropLock;

static List *locks_to_drop(const CqrsTopic *topic);
static void add_relation(List **locks, Oid relid, LOCKMODE mode);
static DropLock *new_lock(List **locks, LOCKMODE mode);
static void lock_all(List *locks);
static bool take(const DropLock *lock, bool wait);
static void release(const DropLock *lock);
static bool same_locks(const List *a, const List *b);

/*
 * Have the topic to ourselves: nobody reads it, writes it, or moves a cursor
 * over it; nobody changes what it is registered for. Returns it as it is then.
 * Raises 42704 if it was dropped meanwhile.
 */
CqrsTopic *
cqrs_topic_lock_to_drop(const char *name)
{
	for (;;)
	{
		List	   *locks = locks_to_drop(cqrs_topic_get(name));
		CqrsTopic  *topic;
		ListCell   *lc;

		lock_all(locks);
		AcceptInvalidationMessages();
		topic = cqrs_topic_get(name);
		if (same_locks(locks, locks_to_drop(topic)))
			return topic;

		/* It was subscribed to, or made anew, while we waited. */
		foreach(lc, locks)
			release(lfirst(lc));
	}
}

/*
 * Drop a topic, and what is registered, parked, dead or scheduled in it. It is
 * locked to be dropped, and the caller has checked that the user may.
 */
void
cqrs_topic_drop(const CqrsTopic *topic)
{
	CqrsAdmin	admin;
	int			i;

	cqrs_admin_begin(&admin);
	cqrs_admin_execute("DELETE FROM cqrs.event_handler h USING cqrs.event_type t WHERE h.event_name = t.event_name AND t.topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.event_type WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.subscription_topic WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.retry WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.dead_letter WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.scheduled_command WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.schedule WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_execute("DELETE FROM cqrs.topic WHERE topic_id = $1",
					   1, CQRS_INT4(topic->topic_id));
	cqrs_admin_ddl("DROP VIEW IF EXISTS %s.%s", CQRS_TOPIC_SCHEMA,
				   quote_identifier(topic->name));
	for (i = 0; i < CQRS_SEGMENTS; i++)
		cqrs_admin_ddl("DROP TABLE IF EXISTS cqrs.topic_%d_%d",
					   topic->topic_id, i);
	cqrs_admin_end(&admin);
}

/*
 * All that has to be locked to drop a topic, in the order in which a batch
 * would take it.
 */
static List *
locks_to_drop(const CqrsTopic *topic)
{
	static const CqrsRelation tables[] = {
		CQRS_REL_EVENT_TYPE, CQRS_REL_TOPIC, CQRS_REL_SUBSCRIPTION_TOPIC
	};
	List	   *locks = NIL;
	ListCell   *lc;
	int			i;

	foreach(lc, cqrs_registry_subscription_list(topic))
	{
		CqrsSubscription *subscription = (CqrsSubscription *) lfirst(lc);

		for (i = 0; i < subscription->partitions; i++)
		{
			DropLock   *lock = new_lock(&locks, ExclusiveLock);

			cqrs_object_tag(&lock->tag, CQRS_REL_SUBSCRIPTION,
							subscription->subscription_id, i);
		}
	}
	for (i = 0; i < lengthof(tables); i++)
		add_relation(&locks, cqrs_relation_oid(tables[i]),
					 ShareRowExclusiveLock);
	add_relation(&locks, topic->view, AccessExclusiveLock);
	for (i = 0; i < CQRS_SEGMENTS; i++)
		add_relation(&locks, topic->segments[i], AccessExclusiveLock);
	return locks;
}

static void
add_relation(List **locks, Oid relid, LOCKMODE mode)
{
	/* Somebody may have dropped it by hand. */
	if (OidIsValid(relid))
	{
		DropLock   *lock = new_lock(locks, mode);

		SET_LOCKTAG_RELATION(lock->tag, MyDatabaseId, relid);
	}
}

static DropLock *
new_lock(List **locks, LOCKMODE mode)
{
	DropLock   *lock = palloc0(sizeof(DropLock));

	lock->mode = mode;
	*locks = lappend(*locks, lock);
	return lock;
}

/*
 * Take all the locks, waiting for one only while none of the others is held.
 *
 * Whoever has one of them may still want any other: a batch has its cursor and
 * what it has parked, and goes on to the next segment; a transaction has
 * emitted, and registers an event. So waiting for it with another one held
 * could deadlock, at the expense of those at work, not of the drop.
 *
 * With everybody busy, they might never all be free at once. So after some
 * attempts, they are waited for in turn, come what may.
 */
static void
lock_all(List *locks)
{
	int			first = -1;
	int			attempt;
	int			i;

	for (attempt = 0; attempt < DROP_ATTEMPTS; attempt++)
	{
		int			busy = -1;

		if (first >= 0)
			take(list_nth(locks, first), true);
		for (i = 0; busy < 0 && i < list_length(locks); i++)
			if (i != first && !take(list_nth(locks, i), false))
				busy = i;
		if (busy < 0)
			return;
		for (i = 0; i < busy; i++)
			if (i != first)
				release(list_nth(locks, i));
		if (first >= 0)
			release(list_nth(locks, first));
		first = busy;
	}
	for (i = 0; i < list_length(locks); i++)
		take(list_nth(locks, i), true);
}

static bool
take(const DropLock *lock, bool wait)
{
	return LockAcquire(&lock->tag, lock->mode, false, !wait) !=
		LOCKACQUIRE_NOT_AVAIL;
}

static void
release(const DropLock *lock)
{
	LockRelease(&lock->tag, lock->mode, false);
}

static bool
same_locks(const List *a, const List *b)
{
	ListCell   *lca;
	ListCell   *lcb;

	if (list_length(a) != list_length(b))
		return false;
	forboth(lca, a, lcb, b)
		if (memcmp(lfirst(lca), lfirst(lcb), sizeof(DropLock)) != 0)
		return false;
	return true;
}
