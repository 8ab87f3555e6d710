/*-------------------------------------------------------------------------
 *
 * stream.h
 *	  Commands that answer with a set of rows, one by one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_STREAM_H
#define CQRS_STREAM_H

#include "registry/entry.h"

extern void cqrs_stream_begin(FunctionCallInfo fcinfo, CqrsCommand *command,
							  Datum payload);
extern Datum cqrs_stream_next(FunctionCallInfo fcinfo);

#endif							/* CQRS_STREAM_H */
