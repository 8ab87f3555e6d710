/*-------------------------------------------------------------------------
 *
 * broker_transaction.h
 *	  Events delivered to a broker exactly once, in its transactions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_TRANSACTION_H
#define CQRS_BROKER_TRANSACTION_H

#include "delivery/broker_entry.h"
#include "delivery/relay.h"

/* What is done next, or is under way. */
typedef enum CqrsTransactionPhase
{
	/* With a new connection, in this order. */
	CQRS_TRANSACTION_LOOK,		/* read the record */
	CQRS_TRANSACTION_FENCE,		/* end others */
	CQRS_TRANSACTION_READ,		/* read the record, which is the last now */
	CQRS_TRANSACTION_CLAIM,		/* an exchange sees what it means */

	/* Then, in turns. */
	CQRS_TRANSACTION_OPEN,		/* events are added */
	CQRS_TRANSACTION_CLOSED,	/* no more; commit once all are confirmed */
	CQRS_TRANSACTION_COMMIT,
	CQRS_TRANSACTION_COMMITTED, /* an exchange moves the cursor */
	CQRS_TRANSACTION_ABORT,
	CQRS_TRANSACTION_ABORTED,	/* an exchange records what was refused */

	CQRS_TRANSACTION_STOPPED
} CqrsTransactionPhase;

/* Of a connection. */
typedef struct CqrsBrokerTransaction
{
	bool		used;			/* the subscription is delivered exactly once */
	char		id[64];			/* the connection's transactional_id */
	uint32		timeline;		/* of this server */
	bool		resends;		/* what has diverged */
	CqrsSent	known;			/* as it was before we connected */
	int64		seq;			/* the cursor's, then */
	CqrsTransactionPhase phase;
	bool		asked;			/* the link has not answered yet */
	bool		taken_over;		/* by another server: do not fence it */
	char		record[CQRS_BROKER_RECORD_SIZE];	/* read, or to be written */

	/* What is in the transaction, beside the entries. */
	int			nevents;		/* that are confirmed and forgotten ... */
	pg_uuid_t  *ids;			/* ... with these ids; there is room for all */
	int64		position;		/* of the last of these */
	TimestampTz began;			/* steady; only with any event */

	int			most;			/* events in one; at most this: */
#define CQRS_TRANSACTION_EVENTS	200000
	int			fruitless;		/* aborted in a row, with no event at fault */
	char		reason[CQRS_BROKER_ERROR_SIZE]; /* why it is stopped */
} CqrsBrokerTransaction;

/* Are there events in it, or is it being ended? */
#define cqrs_transaction_is_under_way(transaction) \
	((transaction)->nevents > 0 || \
	 ((transaction)->phase > CQRS_TRANSACTION_OPEN && \
	  (transaction)->phase < CQRS_TRANSACTION_STOPPED))

/* In a transaction of the server's, with the cursor's lock. */
extern bool cqrs_transaction_prepare(CqrsBrokerTransaction *transaction,
									 const CqrsSubscription *subscription,
									 int partition);
extern void cqrs_transaction_init(CqrsBrokerTransaction *transaction);
extern bool cqrs_transaction_is_of(const CqrsBrokerTransaction *transaction,
								   const CqrsCursor *cursor);
extern bool cqrs_transaction_may_claim(const CqrsBrokerTransaction *transaction,
									   const CqrsCursor *cursor);
extern void cqrs_transaction_claim(CqrsBrokerTransaction *transaction,
								   CqrsRelay *relay);
extern void cqrs_transaction_close(CqrsBrokerTransaction *transaction,
								   CqrsBrokerEntries *entries,
								   CqrsRelay *relay, int64 position);
extern bool cqrs_transaction_refresh(CqrsBrokerTransaction *transaction,
									 CqrsRelay *relay);
extern void cqrs_transaction_wants(const CqrsCursor *cursor,
								   volatile TimestampTz *at);
extern bool cqrs_transaction_settle(CqrsBrokerTransaction *transaction,
									CqrsCursor *cursor);
extern void cqrs_transaction_forget(CqrsBrokerTransaction *transaction,
									CqrsCursor *cursor, bool found_fault);

/* Outside. */
extern void cqrs_transaction_answers(CqrsBrokerTransaction *transaction,
									 CqrsBrokerLink *link);
extern void cqrs_transaction_confirmed(CqrsBrokerTransaction *transaction,
									   CqrsBrokerEntries *entries);
extern void cqrs_transaction_advance(CqrsBrokerTransaction *transaction,
									 CqrsBrokerEntries *entries);
extern bool cqrs_transaction_is_late(const CqrsBrokerTransaction *transaction);

#endif							/* CQRS_BROKER_TRANSACTION_H */
