/*-------------------------------------------------------------------------
 *
 * awaited.h
 *	  The topics whose events sagas wait for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_AWAITED_H
#define CQRS_SAGA_AWAITED_H

#include "registry/entry.h"
#include "saga/definition.h"

extern const CqrsTopic *cqrs_saga_router_topic(const CqrsTopic *topic);
extern void cqrs_saga_router_complete(CqrsSubscription *router);
extern void cqrs_saga_routers_complete(void);
extern const char *cqrs_saga_router_lacks(const CqrsSagaDefinition *definition,
										  Oid owner);
extern void cqrs_saga_router_require(const CqrsSagaDefinition *definition,
									 Oid owner);

#endif							/* CQRS_SAGA_AWAITED_H */
