/*-------------------------------------------------------------------------
 *
 * notify.h
 *	  Tells those who listen that there is something to pull.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_NOTIFY_H
#define CQRS_NOTIFY_H

#include "shared/shmem.h"

extern void cqrs_notify_add(const CqrsTopicSet *topics);
extern long cqrs_notify_next(long wait);

#endif							/* CQRS_NOTIFY_H */
