/*-------------------------------------------------------------------------
 *
 * topic_poll.h
 *	  Finds what was committed and nobody announced.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TOPIC_POLL_H
#define CQRS_TOPIC_POLL_H

#include "shared/shmem.h"

extern void cqrs_poll_looked(const CqrsTopicSet *topics);
extern bool cqrs_poll_next(CqrsTopicSet *found);
extern long cqrs_poll_wait(void);

#endif							/* CQRS_TOPIC_POLL_H */
