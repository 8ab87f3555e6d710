/*-------------------------------------------------------------------------
 *
 * handler_timeout.h
 *	  The time that a handler of events may take, in a worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HANDLER_TIMEOUT_H
#define CQRS_HANDLER_TIMEOUT_H

extern void cqrs_handler_timeout_begin(int64 timeout);
extern bool cqrs_handler_timeout_is_armed(void);
extern void cqrs_handler_timeout_disarm(void);
extern bool cqrs_handler_timed_out(void);
extern bool cqrs_handler_timeout_end(void);
extern bool cqrs_handler_is_overdue(void);

#endif							/* CQRS_HANDLER_TIMEOUT_H */
