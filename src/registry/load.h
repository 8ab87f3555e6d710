/*-------------------------------------------------------------------------
 *
 * load.h
 *	  What is registered, read from its tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LOAD_H
#define CQRS_LOAD_H

#include "utils/hsearch.h"
#include "utils/snapshot.h"

#include "registry/entry.h"

/* Entries are found by their names, unless otherwise noted. */
typedef struct CqrsRegistryCopy
{
	HTAB	   *topics;
	HTAB	   *event_types;
	HTAB	   *commands;
	HTAB	   *fallbacks;		/* by the signatures that they are for */
	HTAB	   *subscriptions;
	HTAB	   *consumers;

	/* The same entries by their ids. */
	HTAB	   *topics_by_id;
	HTAB	   *subscriptions_by_id;
	HTAB	   *consumers_by_id;

	/* The subscriptions that run commands, by their owners. */
	HTAB	   *command_subscriptions;
	HTAB	   *saga_subscriptions;
	HTAB	   *saga_routers;

	CqrsMiddleware *middleware; /* the outermost, or NULL */

	/* Does cqrs.identity name this database? A template? */
	bool		has_identity;
	bool		is_from_template;

	/* Is there a restored topic that was not adopted? */
	bool		has_restored;
} CqrsRegistryCopy;

extern void cqrs_registry_load(CqrsRegistryCopy *copy, Snapshot snapshot);
extern void *cqrs_registry_find_by_id(HTAB *table, int32 id);

#endif							/* CQRS_LOAD_H */
