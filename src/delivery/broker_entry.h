/*-------------------------------------------------------------------------
 *
 * broker_entry.h
 *	  The events on their way to a broker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_BROKER_ENTRY_H
#define CQRS_BROKER_ENTRY_H

#include "lib/ilist.h"
#include "utils/hsearch.h"

#include "broker/link.h"
#include "broker/message.h"
#include "retry/parked.h"

typedef enum CqrsBrokerEntryState
{
	CQRS_ENTRY_READ,			/* to be sent */
	CQRS_ENTRY_SENT,

	/* From here on, it has an outcome. */
	CQRS_ENTRY_CONFIRMED,
	CQRS_ENTRY_REJECTED,
	CQRS_ENTRY_REFUSED,
	CQRS_ENTRY_WAITS,			/* behind a rejected one of its lane */
	CQRS_ENTRY_AGAIN			/* its transaction is aborted */
} CqrsBrokerEntryState;

/* The events read in one exchange. */
typedef struct CqrsBrokerBatch
{
	MemoryContext context;
	int			nentries;		/* not recorded */
} CqrsBrokerBatch;

/* An event. */
typedef struct CqrsBrokerEntry
{
	CqrsLinkMessage message;	/* first */
	dlist_node	node;
	CqrsBrokerEntryState state;
	CqrsBrokerBatch *batch;
	uint64		lane;
	int32		topic_id;
	bool		announced;		/* its attempt is counted already */
	CqrsFault	fault;			/* with a message: the event cannot be sent */
	CqrsEvent	event;			/* last; a copy, except for topic */
} CqrsBrokerEntry;

/* The events that were read and are not recorded, in the order of delivery. */
typedef struct CqrsBrokerEntries
{
	MemoryContext context;
	CqrsBrokerLink *link;		/* NULL: not begun to connect */
	CqrsFormat	format;
	const CqrsBrokerModule *module;
	const char *source;			/* in messages */
	int			max_message_size;	/* in bytes */
	bool		strict;			/* with strict_key_order */
	bool		parked;			/* the entries are in cqrs.retry */
	bool		apart;			/* what has an outcome when it is read is not
								 * kept here, and no lane has failed by it */
	dlist_head	list;
	dlist_node *unsent;			/* the first to be sent; NULL: none */
	HTAB	   *lanes;
	bool		failed;			/* events of some lanes were rejected */
	int			nentries;
	int			nread;			/* ... to be sent */
	int			nsent;			/* ... on their way */
	int			nout;			/* ... that were sent, on their way or not */
	int64		nbytes;
} CqrsBrokerEntries;

extern void cqrs_broker_entries_init(CqrsBrokerEntries *entries,
									 MemoryContext context);
extern void cqrs_broker_entries_close(CqrsBrokerEntries *entries, int window);
extern CqrsBrokerBatch *cqrs_broker_batch(CqrsBrokerEntries *entries);
extern void cqrs_broker_batch_free(CqrsBrokerBatch *batch);
extern CqrsBrokerEntry *cqrs_broker_entry_add(CqrsBrokerEntries *entries,
											  CqrsBrokerBatch *batch,
											  const CqrsEvent *event,
											  bool by_topic);
extern CqrsFault *cqrs_broker_entry_fault(CqrsBrokerEntry *entry);
extern void cqrs_broker_entry_forget(CqrsBrokerEntries *entries,
									 CqrsBrokerEntry *entry);
extern void cqrs_broker_entries_forget(CqrsBrokerEntries *entries);
extern bool cqrs_broker_first_is_final(CqrsBrokerEntries *entries);
extern bool cqrs_broker_entries_take(CqrsBrokerEntries *entries);
extern void cqrs_broker_entries_send(CqrsBrokerEntries *entries, int most);

#endif							/* CQRS_BROKER_ENTRY_H */
