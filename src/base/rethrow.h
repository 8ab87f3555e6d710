/*-------------------------------------------------------------------------
 *
 * rethrow.h
 *	  Errors that go on after what they passed through was cleaned up.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RETHROW_H
#define CQRS_RETHROW_H

extern ErrorData *cqrs_error_take(MemoryContext context);
pg_noreturn extern void cqrs_error_rethrow(ErrorData *error);

#endif							/* CQRS_RETHROW_H */
