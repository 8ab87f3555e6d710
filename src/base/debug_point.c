/*-------------------------------------------------------------------------
 *
 * debug_point.c
 *	  Named points in the code at which a test can stop a process, or have it
 *	  fail. Only in builds with make DEBUG_POINTS=1; see debug_point.h.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "base/debug_point.h"

#define ERRCODE_DEBUG_POINT		MAKE_SQLSTATE('D','B','G','P','T')

typedef enum Action
{
	ACTION_NONE,
	ACTION_WAIT,
	ACTION_ERROR,
	ACTION_TWICE
} Action;

static char *debug_points = NULL;

static bool check_debug_points(char **newval, void **extra, GucSource source);
static Action asked_at(const char *name);
static Action parse_item(const char *item, const char *name);
static void wait_at(const char *name);
static uint32 hash_of(const char *string);

/*
 * Define the setting; called once in each process.
 */
void
cqrs_debug_point_define(void)
{
	DefineCustomStringVariable("cqrs_outbox.debug_points",
							   "Sets at which points of the code a process waits or fails.",
							   "A list of point=wait, point=error and point=twice.",
							   &debug_points, "", PGC_SUSET, GUC_LIST_INPUT,
							   check_debug_points, NULL, NULL);
}

/*
 * Do what the setting says of this point. Raises DBGPT if it says so. Called
 * in a transaction, and without an LWLock, which would hold off interrupts.
 */
void
cqrs_debug_point(const char *name)
{
	Action		action;

	/* Also in a build without assertions: this is for tests only. */
	if (!IsTransactionState() || CritSectionCount > 0 ||
		InterruptHoldoffCount > 0)
		elog(PANIC, "debug point \"%s\" is at no place to wait or to fail",
			 name);
	action = asked_at(name);
	if (action == ACTION_WAIT)
		wait_at(name);
	else if (action == ACTION_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_DEBUG_POINT),
				 errmsg("debug point \"%s\" was reached", name)));
}

/*
 * Does the setting say that what was done before this point is to be done again?
 */
bool
cqrs_debug_twice(const char *name)
{
	return asked_at(name) == ACTION_TWICE;
}

/*
 * What the setting says of this point.
 */
static Action
asked_at(const char *name)
{
	Action		action = ACTION_NONE;
	List	   *items;
	ListCell   *lc;

	if (debug_points[0] == '\0')
		return ACTION_NONE;
	if (!SplitIdentifierString(pstrdup(debug_points), ',', &items))
		elog(ERROR, "could not parse cqrs_outbox.debug_points");
	foreach(lc, items)
	{
		if (action == ACTION_NONE)
			action = parse_item((char *) lfirst(lc), name);
	}
	list_free(items);
	return action;
}

static bool
check_debug_points(char **newval, void **extra, GucSource source)
{
	List	   *items;
	ListCell   *lc;

	if (!SplitIdentifierString(pstrdup(*newval), ',', &items))
	{
		GUC_check_errdetail("List syntax is invalid.");
		return false;
	}
	foreach(lc, items)
	{
		if (parse_item((char *) lfirst(lc), NULL) == ACTION_NONE)
		{
			GUC_check_errdetail("\"%s\" is none of point=wait, point=error, point=twice.",
								(char *) lfirst(lc));
			return false;
		}
	}
	return true;
}

/*
 * What an item of the list says of the point name; if that is NULL, of
 * whichever point it is about.
 */
static Action
parse_item(const char *item, const char *name)
{
	const char *equals = strchr(item, '=');

	if (equals == NULL || equals == item)
		return ACTION_NONE;
	if (name != NULL && (strlen(name) != equals - item ||
						 strncmp(item, name, equals - item) != 0))
		return ACTION_NONE;
	if (strcmp(equals + 1, "wait") == 0)
		return ACTION_WAIT;
	if (strcmp(equals + 1, "error") == 0)
		return ACTION_ERROR;
	if (strcmp(equals + 1, "twice") == 0)
		return ACTION_TWICE;
	return ACTION_NONE;
}

static void
wait_at(const char *name)
{
	LOCKTAG		tag;

	/* As pg_advisory_lock(integer, integer) does. */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, hash_of("cqrs_outbox"),
						 hash_of(name), 2);
	(void) LockAcquire(&tag, ShareLock, false, false);
	LockRelease(&tag, ShareLock, false);
}

/*
 * What SQL's hashtext() gives.
 */
static uint32
hash_of(const char *string)
{
	return DatumGetUInt32(hash_any((const unsigned char *) string,
								   strlen(string)));
}
