/*-------------------------------------------------------------------------
 *
 * handler.h
 *	  A registered SQL function: found, checked and called.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HANDLER_H
#define CQRS_HANDLER_H

#include "catalog/pg_proc.h"
#include "fmgr.h"

typedef struct CqrsHandler
{
	char	   *signature;		/* see signature.c */
	char	   *registered_owner;	/* its owner then; NULL: may be anybody's */
	MemoryContext parent;		/* what the rest is allocated below */
	bool		returns_set;	/* it must return a set; else it must not */
	struct CqrsFallback *fallback;	/* NULL: none, or none that counts */

	/* The rest is valid while generation is that of the catalogs. */
	uint64		generation;
	uint64		proc_generation;	/* ... of pg_proc alone */
	Oid			funcid;
	Oid			argtype;
	Oid			rettype;
	Oid			owner;			/* also with taken_over */
	bool		taken_over;		/* not found because it is somebody else's */
	bool		security_definer;
	MemoryContext context;		/* of flinfo */
	FmgrInfo	flinfo;
	bool		busy;			/* flinfo is in use up the stack */
	bool		stale;			/* ... and is to be thrown away after that */
} CqrsHandler;

extern void cqrs_handler_init_process(void);
extern void cqrs_handler_init(CqrsHandler *handler, const char *signature,
							  const char *owner, MemoryContext parent);
extern bool cqrs_handler_find(CqrsHandler *handler);
extern uint64 cqrs_handler_generation(void);
extern char *cqrs_handler_why_missing(const CqrsHandler *handler);
extern void cqrs_handler_check(CqrsHandler *handler, const char *kind,
							   const char *name);
extern void cqrs_handler_check_privilege(CqrsHandler *handler);
extern Datum cqrs_handler_call(CqrsHandler *handler, Datum arg, bool *isnull);
extern Datum cqrs_handler_call_nullable(CqrsHandler *handler,
										NullableDatum arg, bool *isnull);

/* Of any function. */
extern bool cqrs_function_is_temporary(Form_pg_proc proc);
extern void cqrs_function_require_execute(Oid funcid, const char *signature);

#endif							/* CQRS_HANDLER_H */
