/*-------------------------------------------------------------------------
 *
 * maintain.h
 *	  Keeps the log from growing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MAINTAIN_H
#define CQRS_MAINTAIN_H

#include "utils/timestamp.h"

extern long cqrs_maintain_next(long wait);
extern TimestampTz cqrs_maintain_due(bool *polled);

#endif							/* CQRS_MAINTAIN_H */
