/*-------------------------------------------------------------------------
 *
 * dry_run.h
 *	  Commands that are handled without effect, to see what they would do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DRY_RUN_H
#define CQRS_DRY_RUN_H

#include "base/cqrs_outbox.h"

#include "mediator/dispatch.h"

typedef struct CqrsDryRun CqrsDryRun;

/* The innermost one, or NULL: what is done is to stay. */
extern CqrsDryRun *cqrs_dry_run_innermost;

#define cqrs_dry_run_is_active() (cqrs_dry_run_innermost != NULL)

extern Datum cqrs_dry_run_dispatch(CqrsDispatch *dispatch, Oid event_type,
								   Datum *answer, bool *answer_isnull);
extern void cqrs_dry_run_emitted(const CqrsEvent *event);

#endif							/* CQRS_DRY_RUN_H */
