/*-------------------------------------------------------------------------
 *
 * tell.h
 *	  Telling a handler that an event of it failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_TELL_H
#define CQRS_TELL_H

#include "log/event.h"

extern bool cqrs_tell_failure(CqrsSubscription *subscription,
							  const CqrsEvent *event,
							  const ErrorData *error);

#endif							/* CQRS_TELL_H */
