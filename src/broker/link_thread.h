/*-------------------------------------------------------------------------
 *
 * link_thread.h
 *	  What a link is, for the files that are it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CQRS_LINK_THREAD_H
#define CQRS_LINK_THREAD_H

#include <pthread.h>

#include "broker/link_message.h"

typedef struct Pipe
{
	int			fds[2];
	bool		written;		/* under the mutex */
} Pipe;

/* Messages in a list, by their field next. */
typedef struct ReceivedList
{
	CqrsBrokerReceived *first;	/* NULL: none */
	CqrsBrokerReceived *last;
} ReceivedList;

typedef struct NoticeList
{
	CqrsLinkNotice *first;		/* NULL: none */
	CqrsLinkNotice *last;
} NoticeList;

struct CqrsBrokerLink
{
	MemoryContext context;
	const CqrsBrokerModule *module;
	CqrsBrokerConnection connection;
	pthread_t	thread;
	Pipe		to_thread;
	Pipe		to_worker;

	pthread_mutex_t mutex;
	CqrsLinkState state;
	char		error[CQRS_BROKER_ERROR_SIZE];
	bool		stop;			/* the thread is to end */
	bool		ended;			/* it uses nothing any more */
	CqrsLinkMessage *todo;
	CqrsLinkMessage *todo_last;
	CqrsLinkMessage *reported;
	CqrsLinkMessage *reported_last;
	bool		called;			/* to do call, which is not answered */
	CqrsLinkCall call;
	bool		committed;		/* the answer */
	char		record[CQRS_BROKER_RECORD_SIZE];	/* what to commit, or was
													 * read */

	/* With a source. */
	const CqrsBrokerPosition *positions;	/* to be assigned; NULL: none */
	int			npositions;
	ReceivedList settled;		/* to be acknowledged */
	ReceivedList received;
	NoticeList	notices;

	/* The thread's own. */
	void	   *module_state;
	bool		in_transaction;
	int			outstanding;	/* published, and not reported */
	CqrsLinkMessage *reports;	/* since the last look at the lists */
	CqrsLinkMessage *reports_last;

	/* Likewise, with a source. */
	int			most;			/* of messages, received and not settled */
	int			unsettled;		/* so many are */
	size_t		unsettled_bytes;
	uint64		nreceived;		/* since the link was opened */
	bool		out_of_memory;	/* a notice was lost */
	ReceivedList new_received;	/* since the last look at the lists */
	NoticeList	new_notices;
};

extern void cqrs_link_wake(Pipe *pipe_to_write);
extern void cqrs_link_drain_pipe(Pipe *pipe_to_read);
extern void cqrs_link_source_init(CqrsBrokerLink *link);
extern void cqrs_link_source_free(CqrsBrokerLink *link);
extern bool cqrs_link_source_cycle(CqrsBrokerLink *link, bool *stop,
								   char *error);

#endif							/* CQRS_LINK_THREAD_H */
