/*-------------------------------------------------------------------------
 *
 * position.h
 *	  Positions of events: a sequence, for all topics.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_POSITION_H
#define CQRS_POSITION_H

extern int64 cqrs_last_position(void);
extern void cqrs_position_pass_restored(void);

#endif							/* CQRS_POSITION_H */
