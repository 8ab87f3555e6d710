/*-------------------------------------------------------------------------
 *
 * hash.h
 *	  Hash tables in a memory context, by keys of fixed size.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HASH_H
#define CQRS_HASH_H

#include "utils/hsearch.h"

static inline HTAB *
cqrs_hash_create(const char *name, Size keysize, Size entrysize,
				 MemoryContext context)
{
	HASHCTL		ctl;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = context;
	return hash_create(name, 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

#endif							/* CQRS_HASH_H */
