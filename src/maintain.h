/*-------------------------------------------------------------------------
 *
 * maintain.h
 *	  Rotates and truncates the segments of topics.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MAINTAIN_H
#define CQRS_MAINTAIN_H

#include "cqrs_outbox.h"

extern long cqrs_maintain_next(long wait);

#endif							/* CQRS_MAINTAIN_H */
