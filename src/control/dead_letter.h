/*-------------------------------------------------------------------------
 *
 * dead_letter.h
 *	  Events that a subscription gave up on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DEAD_LETTER_H
#define CQRS_DEAD_LETTER_H

#include "utils/snapshot.h"

#include "log/event.h"

typedef struct CqrsDeadLetterScan CqrsDeadLetterScan;

extern CqrsDeadLetterScan *cqrs_dead_letter_begin(int32 subscription_id,
												  Snapshot snapshot);
extern bool cqrs_dead_letter_next(CqrsDeadLetterScan *scan, CqrsEvent *event,
								  int *attempts);
extern void cqrs_dead_letter_end(CqrsDeadLetterScan *scan);
extern int	cqrs_dead_letter_attempts(int32 subscription_id, int64 position,
									  Snapshot snapshot);

#endif							/* CQRS_DEAD_LETTER_H */
