/*-------------------------------------------------------------------------
 *
 * delivered.h
 *	  Waiting, for a while, for what deliveries do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_DELIVERED_H
#define CQRS_DELIVERED_H

#include "fmgr.h"

#include "datatype/timestamp.h"

extern TimestampTz cqrs_delivered_deadline(FunctionCallInfo fcinfo,
										   int argument);
extern void cqrs_delivered_sleep(TimestampTz deadline,
								 uint32 wait_event_info);

#endif							/* CQRS_DELIVERED_H */
