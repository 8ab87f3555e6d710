/*-------------------------------------------------------------------------
 *
 * lookup.h
 *	  The function that somebody means who registers it, or removes it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LOOKUP_H
#define CQRS_LOOKUP_H

#include "fmgr.h"

/* What a function is to be registered as. */
typedef struct CqrsPlace
{
	const char *what;			/* "a handler of a command", for messages */
	const char *wanted;			/* a hint's sentence: which functions can be */
	bool		(*takes) (const void *arg, Oid argtype);
	const void *arg;			/* its first argument */
	Oid			rettype;		/* InvalidOid: it may return any */
	bool		may_return_set;
} CqrsPlace;

/* The function that was found; palloc'd. */
typedef struct CqrsFunction
{
	Oid			funcid;
	char	   *signature;		/* what it is registered by; see signature.c */
	Oid			owner;
	char	   *owner_name;		/* is registered with it; see handler.c */
	Oid			argtype;
	Oid			rettype;
	bool		returns_set;
} CqrsFunction;

extern void cqrs_function_look_up(const char *name, const CqrsPlace *place,
								  CqrsFunction *function);
pg_noreturn extern void cqrs_function_refuse(const char *signature,
											 const CqrsPlace *place,
											 const char *wrong);
extern char *cqrs_function_choose(const char *name, const char *what);

#endif							/* CQRS_LOOKUP_H */
