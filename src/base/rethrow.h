/*-------------------------------------------------------------------------
 *
 * rethrow.h
 *	  Errors that are raised again after a cleanup.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETHROW_H
#define CQRS_RETHROW_H

extern ErrorData *cqrs_error_take(MemoryContext context);
pg_noreturn extern void cqrs_error_rethrow(ErrorData *error);

#endif							/* CQRS_RETHROW_H */
