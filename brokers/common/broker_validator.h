/*-------------------------------------------------------------------------
 *
 * broker_validator.h
 *	  The validator of a foreign-data wrapper whose servers are brokers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BROKER_VALIDATOR_H
#define BROKER_VALIDATOR_H

#include "postgres.h"

/*
 * An option that a module knows.
 */
typedef struct BrokerOptionDef
{
	const char *name;

	/* ForeignServerRelationId or UserMappingRelationId */
	Oid			catalog;

	/* What reads the server's files, or runs code. */
	bool		superuser_only;

	/*
	 * May it have this value? If not, returns false, and sets error (of
	 * CQRS_BROKER_ERROR_SIZE bytes) to a sentence that says which it may
	 * have, and does not have this one in it. NULL: any.
	 */
	bool		(*check) (const char *value, char *error);
} BrokerOptionDef;

#pragma GCC visibility push(hidden) /* as in broker_client.h */

extern void broker_validate(Datum options, Oid catalog,
							const BrokerOptionDef *defs, int ndefs,
							const char *module);

#pragma GCC visibility pop

#endif							/* BROKER_VALIDATOR_H */
