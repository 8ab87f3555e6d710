/*-------------------------------------------------------------------------
 *
 * receipt.h
 *	  Receipts: who may settle what was handed out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_RECEIPT_H
#define CQRS_RECEIPT_H

#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "log/cursor.h"
#include "retry/parked.h"

/* One cqrs_receive() of this transaction. */
typedef struct CqrsReceived
{
	int32		subscription_id;
	int			partition;		/* -1: there was nothing */
	pg_uuid_t	receipt;
	SubTransactionId subid;		/* in which it was called */
} CqrsReceived;

extern void cqrs_receipt_generate(int partition, pg_uuid_t *receipt);
extern int	cqrs_receipt_partition(const pg_uuid_t *receipt);
extern bool cqrs_receipt_is_newest(const CqrsCursor *cursor,
								   const pg_uuid_t *receipt);
extern bool cqrs_receipt_is_open(const CqrsCursor *cursor, int64 position,
								 CqrsParked *parked);
pg_noreturn extern void cqrs_receipt_invalid(const CqrsSubscription *subscription,
											 const char *detail);

extern void cqrs_received_note(int32 subscription_id, int partition,
							   const pg_uuid_t *receipt, bool leased);
extern bool cqrs_received_here(int32 subscription_id,
							   const CqrsCursor *cursor);
extern List *cqrs_received_list(int32 subscription_id);
extern void cqrs_received_settled(void);

#endif							/* CQRS_RECEIPT_H */
