/*-------------------------------------------------------------------------
 *
 * fallback.h
 *	  What is called instead of a handler that failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_FALLBACK_H
#define CQRS_FALLBACK_H

#include "base/cqrs_outbox.h"

#include "mediator/breaker.h"
#include "registry/handler.h"

/* A signature fits: schema, name, and a type with its schema, all quoted. */
#define CQRS_MAX_SIGNATURE	(8 * NAMEDATALEN + 16)

/* An error code, or all of a class: those that are code under mask. */
typedef struct CqrsSqlstate
{
	int			code;
	int			mask;
} CqrsSqlstate;

typedef struct CqrsFallback
{
	char		primary[CQRS_MAX_SIGNATURE];	/* hash key */
	CqrsHandler handler;		/* the fallback */
	int			nsqlstates;		/* -1: see cqrs.fallback */
	CqrsSqlstate *sqlstates;
	int			nexcluded;
	CqrsSqlstate *excluded;
	CqrsBreaker breaker;
} CqrsFallback;

/*
 * Calls a handler that was checked, with what the dispatch has for it, and
 * returns the answer, in the current memory context.
 */
typedef Datum (*CqrsCall) (void *arg, CqrsHandler *handler, bool *isnull);

extern Datum cqrs_fallback_run(CqrsHandler *handler, const char *kind,
							   const char *name, CqrsCall call, void *arg,
							   bool *isnull);
extern void cqrs_fallback_load(CqrsFallback *fallback, Datum *values,
							   bool *nulls);
extern char *cqrs_fallback_primary(Datum *values);

#endif							/* CQRS_FALLBACK_H */
