/*-------------------------------------------------------------------------
 *
 * receive.h
 *	  What a message says to a saga.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_SAGA_RECEIVE_H
#define CQRS_SAGA_RECEIVE_H

#include "saga/lane.h"

extern void cqrs_saga_receive(CqrsSagaRun *run,
							  const CqrsSagaMessage *message);

#endif							/* CQRS_SAGA_RECEIVE_H */
