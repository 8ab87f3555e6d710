/*-------------------------------------------------------------------------
 *
 * owner.h
 *	  Who owns a subscription, or a consumer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_OWNER_H
#define CQRS_OWNER_H

extern void cqrs_owner_make_view(const char *name, bool is_consumer,
								 Oid owner);
extern void cqrs_owner_drop_view(const char *subscription);

/* For the registry, from which all others get owners. */
extern void cqrs_owner_watch_nothing(void);
extern bool cqrs_owner_is_watched(uint32 hashvalue);
extern Oid	cqrs_owner_find(const char *subscription, Oid *view);
extern bool cqrs_owner_has_commands(const char *topic, Oid role);

#endif							/* CQRS_OWNER_H */
