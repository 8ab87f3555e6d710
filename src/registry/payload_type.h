/*-------------------------------------------------------------------------
 *
 * payload_type.h
 *	  How JSON values become values of a type.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PAYLOAD_TYPE_H
#define CQRS_PAYLOAD_TYPE_H

#include "access/tupdesc.h"
#include "fmgr.h"

/* What a type takes. */
typedef enum CqrsPayloadShape
{
	SHAPE_SCALAR,				/* a string, number or boolean */
	SHAPE_JSON,					/* anything, as text */
	SHAPE_JSONB,				/* anything, as it is */
	SHAPE_ARRAY,				/* an array */
	SHAPE_COMPOSITE				/* an object */
} CqrsPayloadShape;

/* How a JSON value becomes a value of one type, at one place. */
typedef struct CqrsPayloadType
{
	Oid			typid;			/* hash key of those in the cache */
	char	   *type_name;		/* for messages */
	CqrsPayloadShape shape;
	Oid			base_typid;		/* typid, or the domain's base type */
	int32		typmod;
	MemoryContext context;		/* where all of this is */
	void	   *domain_state;	/* domain_check()'s */

	/* SHAPE_SCALAR; a domain's input function checks its constraints */
	FmgrInfo	input;
	Oid			typioparam;

	/* SHAPE_ARRAY */
	struct CqrsPayloadType *element;
	int16		element_length;
	bool		element_byval;
	char		element_align;

	/* SHAPE_COMPOSITE; row_id 0 if not built yet */
	uint64		row_id;			/* the type cache's tupDesc_identifier */
	struct CqrsPayloadRow *row;
} CqrsPayloadType;

/* A column that is not dropped. */
typedef struct CqrsPayloadColumn
{
	int			index;			/* in the tuple descriptor, from 0 */
	const char *key;
	int			key_length;
	CqrsPayloadType type;
} CqrsPayloadColumn;

/* The columns of a composite type. */
typedef struct CqrsPayloadRow
{
	MemoryContext context;		/* where all of this is */
	TupleDesc	desc;
	int			ncolumns;
	CqrsPayloadColumn *columns; /* in the type's order */
	CqrsPayloadColumn **by_key; /* in the order of jsonb's keys */
} CqrsPayloadRow;

/* The types of a session, or of one conversion. */
typedef struct CqrsPayloadTypes CqrsPayloadTypes;

extern CqrsPayloadTypes *cqrs_payload_types_acquire(MemoryContext parent);
extern void cqrs_payload_types_release(CqrsPayloadTypes *types, bool failed);
extern CqrsPayloadType *cqrs_payload_type(CqrsPayloadTypes *types, Oid typid);
extern CqrsPayloadRow *cqrs_payload_row(CqrsPayloadType *type);
extern int	cqrs_payload_compare_keys(const char *a, int a_length,
									  const char *b, int b_length);

#endif							/* CQRS_PAYLOAD_TYPE_H */
