/*-------------------------------------------------------------------------
 *
 * subscribe_check.h
 *	  Whether a subscription can have the settings that are wanted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SUBSCRIBE_CHECK_H
#define CQRS_SUBSCRIBE_CHECK_H

#include "nodes/pg_list.h"

#include "registry/entry.h"
#include "registry/lookup.h"
#include "subscription/settings.h"

extern void cqrs_subscribe_set_handler(CqrsSettings *settings,
									   const char *name,
									   CqrsFunction *function);
extern void cqrs_subscribe_check(CqrsSettings *settings, const char *name,
								 const CqrsSubscription *old,
								 const CqrsFunction *handler);
extern void cqrs_subscribe_warn(const CqrsSettings *settings, const char *name,
								const CqrsSubscription *old,
								const CqrsFunction *function, List *topics);
extern bool cqrs_subscribe_by_topic(const CqrsSettings *settings);
extern bool cqrs_subscribe_exactly_once(const CqrsSettings *settings,
										const CqrsSubscription *old);
extern bool cqrs_subscribe_resends(const CqrsSettings *settings);

#endif							/* CQRS_SUBSCRIBE_CHECK_H */
