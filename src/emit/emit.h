/*-------------------------------------------------------------------------
 *
 * emit.h
 *	  The write path: events into the outbox, in the caller's transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_EMIT_H
#define CQRS_EMIT_H

#include "log/event.h"

typedef struct CqrsEmitter CqrsEmitter;

extern void cqrs_emit_check_payload(CqrsEventType *event_type,
									NullableDatum payload);
extern void cqrs_emit_require(const CqrsEventType *event_type);
extern void cqrs_emit_given(CqrsEventType *event_type, CqrsEvent *event,
							NullableDatum event_id);
extern void cqrs_emit_event(CqrsEventType *event_type, Datum event_name,
							NullableDatum key, NullableDatum payload);
extern void cqrs_event_write(CqrsEvent *event);
extern CqrsEmitter *cqrs_emitter_begin(CqrsEventType *event_type,
									   const CqrsTopic *topic,
									   Datum event_name);
extern void cqrs_emitter_add(CqrsEmitter *emitter, NullableDatum key,
							 NullableDatum payload);
extern void cqrs_emitter_add_event(CqrsEmitter *emitter, CqrsEvent *event);
extern void cqrs_emitter_end(CqrsEmitter *emitter);

#endif							/* CQRS_EMIT_H */
