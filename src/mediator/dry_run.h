/*-------------------------------------------------------------------------
 *
 * dry_run.h
 *	  Commands that are handled without effect, to see what they would do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DRY_RUN_H
#define CQRS_DRY_RUN_H

#include "log/event.h"
#include "mediator/dispatch_stack.h"

extern Datum cqrs_dry_run_dispatch(CqrsDispatch *dispatch, Oid event_type,
								   Datum *answer, bool *answer_isnull);
extern Datum cqrs_dry_run_call(const char *what, Oid event_type,
							   void (*call) (void *arg), void *arg);
extern Datum cqrs_dry_run_take_events(void);
extern void cqrs_dry_run_emitted(const CqrsEvent *event);

#endif							/* CQRS_DRY_RUN_H */
