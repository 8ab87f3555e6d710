/*-------------------------------------------------------------------------
 *
 * registry.h
 *	  The backend's copy of what is registered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_REGISTRY_H
#define CQRS_REGISTRY_H

#include "utils/hsearch.h"

#include "registry/entry.h"

/* Whether an entry of the copy had been handed out. */
typedef struct CqrsRegistryMark
{
	MemoryContext context;
	bool		handed_out;
} CqrsRegistryMark;

/*
 * The outermost middleware, or NULL, in the copy that was last looked at. Only
 * to test whether there is any.
 */
extern CqrsMiddleware *cqrs_registry_middleware;

extern void cqrs_registry_init(void);
extern bool cqrs_registry_usable(void);
extern uint64 cqrs_registry_generation(void);
extern bool cqrs_registry_is_copy(void);
extern bool cqrs_registry_lacks_identity(void);
extern bool cqrs_registry_has_restored(void);
extern bool cqrs_registry_is_past(uint64 generation);
extern bool cqrs_registry_is_stale(void);

/* Those that look something up return NULL, 0 or false if there is none. */
extern CqrsRegistryMark cqrs_registry_mark(void);
extern void cqrs_registry_give_back(CqrsRegistryMark mark);
extern CqrsMiddleware *cqrs_registry_get_middleware(void);
extern int32 cqrs_registry_topic_id(const char *name);
extern bool cqrs_registry_has_event_type(const char *name);
extern CqrsTopic *cqrs_registry_topic(const char *name);
extern CqrsTopic *cqrs_registry_topic_by_id(int32 topic_id);
extern CqrsEventType *cqrs_registry_event_type(const char *name);
extern CqrsCommand *cqrs_registry_command(const char *name);
extern CqrsFallback *cqrs_registry_fallback(const char *signature);
extern CqrsSubscription *cqrs_registry_subscription(const char *name);
extern CqrsSubscription *cqrs_registry_subscription_by_id(int32 subscription_id);
extern CqrsConsumer *cqrs_registry_consumer(const char *name);
extern CqrsConsumer *cqrs_registry_consumer_by_id(int32 consumer_id);
extern CqrsSubscription *cqrs_registry_command_subscription(Oid owner);
extern CqrsSubscription *cqrs_registry_saga_subscription(Oid owner);
extern CqrsSubscription *cqrs_registry_saga_router(Oid owner);

/* These raise an error if there is none. */
extern CqrsTopic *cqrs_topic_get(const char *name);
extern CqrsEventType *cqrs_event_type_get(const char *name);
extern CqrsSubscription *cqrs_subscription_get(const char *name);
extern CqrsConsumer *cqrs_consumer_get(const char *name);

/* Walks over all; each must be run to its end or ended by hash_seq_term(). */
extern void cqrs_registry_topics(HASH_SEQ_STATUS *status);
extern void cqrs_registry_event_types(HASH_SEQ_STATUS *status);
extern void cqrs_registry_commands(HASH_SEQ_STATUS *status);
extern void cqrs_registry_subscriptions(HASH_SEQ_STATUS *status);
extern void cqrs_registry_consumers(HASH_SEQ_STATUS *status);
extern List *cqrs_registry_topic_list(void);
extern List *cqrs_registry_subscription_list(const CqrsTopic *topic);
extern bool cqrs_subscription_reads(const CqrsSubscription *subscription,
									const CqrsTopic *topic);

extern bool cqrs_registry_run_guarded(void (*part) (void *arg), void *arg,
									  void (*context) (void *arg));

#endif							/* CQRS_REGISTRY_H */
