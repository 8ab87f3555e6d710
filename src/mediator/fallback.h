/*-------------------------------------------------------------------------
 *
 * fallback.h
 *	  What is called instead of a handler that failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_FALLBACK_H
#define CQRS_FALLBACK_H

#include "registry/handler.h"

/*
 * Calls a handler that was checked, with what the dispatch has for it, and
 * returns the answer, in the current memory context.
 */
typedef Datum (*CqrsCall) (void *arg, CqrsHandler *handler, bool *isnull);

extern Datum cqrs_fallback_run(CqrsHandler *handler, const char *kind,
							   const char *name, CqrsCall call, void *arg,
							   bool *isnull);

#endif							/* CQRS_FALLBACK_H */
