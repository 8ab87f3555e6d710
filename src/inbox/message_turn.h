/*-------------------------------------------------------------------------
 *
 * message_turn.h
 *	  Which table of message ids is written, and what is kept of the others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_MESSAGE_TURN_H
#define CQRS_MESSAGE_TURN_H

#include "log/rotation.h"

extern CqrsTableState cqrs_message_ids_truncate(int segment,
												TimestampTz *look_at,
												int *pid);

#endif							/* CQRS_MESSAGE_TURN_H */
