/*-------------------------------------------------------------------------
 *
 * handler_call.h
 *	  A handler, found and called, within a batch of its events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HANDLER_CALL_H
#define CQRS_HANDLER_CALL_H

#include "delivery/handler_batch.h"

extern void cqrs_batch_find_handler(CqrsBatch *batch);
extern ErrorData *cqrs_batch_call(CqrsBatch *batch, const CqrsEvent *event,
								  const CqrsParked *parked, int attempts,
								  bool apart);
extern void cqrs_batch_call_several(CqrsBatch *batch, CqrsEvent *event);

#endif							/* CQRS_HANDLER_CALL_H */
