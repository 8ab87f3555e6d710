/*-------------------------------------------------------------------------
 *
 * handler_batch.h
 *	  A batch of events that a handler gets, while it is under way.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_HANDLER_BATCH_H
#define CQRS_HANDLER_BATCH_H

#include "access/tupdesc.h"

#include "delivery/underway.h"
#include "retry/blame.h"

/* How much of a message is kept. */
#define CQRS_DELIVERY_MESSAGE	512

/* What became of a batch; also valid after an error. */
typedef struct CqrsDelivery
{
	int			nevents;		/* handled; if there was an error, before it */
	int			nfailed;		/* called apart, and failed */
	int			array;			/* how many events the last call got at once;
								 * 0: the handler takes one */
	int64		position;		/* of the event being handled, or of the first
								 * one; 0: none is */
	int64		last;			/* of the one handled last */
	bool		more;			/* there may be more to do at once ... */
	bool		announce;		/* ... but the next event is to be announced */
	bool		parked_last;	/* parked events left no time for new ones */
	bool		paced;			/* it has a rate, or one for each key */
	TimestampTz paced_until;	/* ... which allows no more before; 0: it does */
	bool		not_flushed;	/* it commits without waiting for the disk */
	TimestampTz retry_at;		/* a parked event may be tried then; 0: none */
	int			outage;			/* not 0: what failed is nobody's fault; the
								 * SQLSTATE */
	char		message[CQRS_DELIVERY_MESSAGE]; /* ... why ... */
	bool		lone;			/* ... there is no other lane to compare with */
	TimestampTz failed_until;	/* ... not to be tried again before */
	bool		failing;		/* to a broker: the last failure was nobody's
								 * fault, and nothing was confirmed since */
} CqrsDelivery;

/* What is being delivered, to name it in errors. */
typedef struct CqrsDeliveryContext
{
	const CqrsSubscription *subscription;
	const CqrsEvent *event;		/* NULL: not at an event */
} CqrsDeliveryContext;

/* A batch under way, with what its events have done to it. */
typedef struct CqrsBatch
{
	CqrsRelay	relay;
	CqrsUnderway underway;
	CqrsDeliveryContext where;
	bool		found;			/* the handler was, as it is now */
	TupleDesc	desc;			/* of its argument, if that is a cqrs_event,
								 * or several */
	int			most;			/* how many it may get at once */
	int			array;			/* ... if it takes several; 0: it takes one */
	int			guc_level;		/* has the handler's search_path; 0: the
								 * session has it */
	MemoryContext context;
	MemoryContext per_event;
	bool		in_worker;
	TimestampTz deadline;		/* if nothing fails */
	int			nplain;			/* how many more are not called apart */
	bool		again;			/* a transient error of the first event does
								 * not count */
	bool		one;			/* ends with the first that is handled ... */
	bool		alone;			/* ... or fails */
	bool		clean;			/* nothing was handled yet */
	bool		passed;			/* the cursor is to say when, see
								 * note_passed() */
	bool		is_short;		/* it need not wait for the disk by itself */
	bool		paced;			/* the subscription has a rate, or one for
								 * each key, that counts */
	bool		key_paced;		/* it has one for each key, that counts */
	CqrsEvidence evidence;		/* of what failed while it was clean */
	int			enough;			/* how many lanes of evidence are enough */
	int			nfailed;		/* in a row, since it is not clean */
	bool		timed_out;		/* what failed last took too long */
	uint64		registry;		/* its generation */
	int			subtransactions;	/* of the event that had the most */
	bool		stop;			/* no further event */
	bool		moved;			/* the handler moved the cursor */
	int			commit;			/* what synchronous_commit is to be */
	volatile CqrsDelivery *delivery;
} CqrsBatch;

extern bool cqrs_batch_take_token(CqrsBatch *batch);
extern void cqrs_batch_did_not_call(CqrsBatch *batch);
extern bool cqrs_key_may_go(const CqrsSubscription *subscription,
							const CqrsEvent *event, TimestampTz *due_at);
extern bool cqrs_batch_take_key_token(CqrsBatch *batch,
									  const CqrsEvent *event,
									  bool is_parked);
extern void cqrs_batch_record_failure(CqrsBatch *batch,
									  const CqrsEvent *event,
									  const CqrsParked *parked,
									  ErrorData *error);
extern void cqrs_batch_note_passed(CqrsBatch *batch);
extern bool cqrs_batch_comes_first(const CqrsBatch *batch);
extern void cqrs_batch_decide(CqrsBatch *batch);
extern void cqrs_target_wait(volatile CqrsDelivery *delivery,
							 CqrsEvidence *evidence, CqrsCursor *cursor);

/*
 * May the handler be called once more, by the subscription's rate? If not, the batch
 * ends. Inline, as it is asked for each event.
 */
static inline bool
cqrs_batch_may_call(CqrsBatch *batch)
{
	return likely(!batch->paced) || cqrs_batch_take_token(batch);
}

/*
 * May it be called for this event, by the rate of its key? If not, the event waits,
 * and others go on.
 */
static inline bool
cqrs_batch_key_may_go(CqrsBatch *batch, const CqrsEvent *event, bool is_parked)
{
	return likely(!batch->key_paced) ||
		cqrs_batch_take_key_token(batch, event, is_parked);
}

#endif							/* CQRS_HANDLER_BATCH_H */
