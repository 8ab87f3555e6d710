/*-------------------------------------------------------------------------
 *
 * payload_path.h
 *	  Where in a payload a conversion is, for its errors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_PAYLOAD_PATH_H
#define CQRS_PAYLOAD_PATH_H

#include "utils/jsonb.h"

#include "registry/payload_type.h"

/* One step of the path to the value that is being converted. */
typedef struct CqrsPayloadStep
{
	const char *key;			/* NULL: an array's element */
	int			index;
	const char *type_name;
} CqrsPayloadStep;

typedef struct CqrsPayloadPath
{
	const char *kind;
	const char *name;
	const char *type_name;		/* of the whole payload */
	MemoryContext context;
	CqrsPayloadStep *steps;		/* allocated: read after the stack is gone */
	int			nsteps;
	int			max_steps;
	bool		final;			/* the error has our wording already */
} CqrsPayloadPath;

extern void cqrs_payload_path_push(CqrsPayloadPath *path, const char *key,
								   int index, const char *type_name);
extern void cqrs_payload_path_pop(CqrsPayloadPath *path);

extern int	cqrs_payload_errmismatch(CqrsPayloadPath *path);
extern void cqrs_payload_unknown_key(CqrsPayloadPath *path,
									 CqrsPayloadType *type,
									 CqrsPayloadRow *row,
									 const JsonbValue *key);
extern void cqrs_payload_reword_error(const CqrsPayloadPath *path,
									  ErrorData *edata);

#endif							/* CQRS_PAYLOAD_PATH_H */
