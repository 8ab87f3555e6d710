/*-------------------------------------------------------------------------
 *
 * link_source.c
 *	  A connection that consumes from a broker.
 *
 * link.c has the thread, and how both sides wake each other. Here is what the
 * thread does for a source, and how messages go to the worker and back.
 *
 * Protocol
 *
 * 1. The thread hands over messages in the list received, and notices, each of
 *	  which says how many messages had been received before it. The worker has
 *	  a message until it settles it; then the thread acknowledges it. A message
 *	  that is not settled is the module's again once the link is closed.
 * 2. So that memory is bounded, the module is given room: what may be received
 *	  and not settled, in messages and in bytes. What does not fit stays with
 *	  the broker.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <stdlib.h>

#include "broker/link.h"
#include "broker/link_thread.h"

/*
 * How much may be received, and not settled. The last message received may be
 * beyond the bytes.
 */
#define MOST_MESSAGES	20000
#define MOST_BYTES		(32 * 1024 * 1024)

/* How many messages are acknowledged in one call. */
#define SETTLE_MESSAGES	1024

static void thread_received(const CqrsBrokerConnection *connection,
							CqrsBrokerReceived *message);
static void thread_notice(const CqrsBrokerConnection *connection,
						  const CqrsBrokerNotice *notice);
static bool thread_settle(CqrsBrokerLink *link, CqrsBrokerReceived *message,
						  char *error);
static void hand_over(CqrsBrokerLink *link, const char *error);
static size_t message_size(const CqrsBrokerReceived *message);
static void append(ReceivedList *list, ReceivedList *more);

/*
 * Have the thread consume these partitions; to be called once the link is open,
 * and once.
 */
void
cqrs_link_assign(CqrsBrokerLink *link, const CqrsBrokerPosition *positions,
				 int npositions)
{
	Size		size = sizeof(CqrsBrokerPosition) * npositions;
	CqrsBrokerPosition *copy = MemoryContextAlloc(link->context,
												  Max(size, 1));

	memcpy(copy, positions, size);
	pthread_mutex_lock(&link->mutex);
	link->positions = copy;
	link->npositions = npositions;
	cqrs_link_wake(&link->to_thread);
	pthread_mutex_unlock(&link->mutex);
}

/*
 * The messages received since the last call, as a list, or NULL, and the last of
 * them; and the notices, to be freed with free(). cqrs_link_state() is to be
 * called first, as for cqrs_link_take().
 */
CqrsBrokerReceived *
cqrs_link_receive(CqrsBrokerLink *link, CqrsBrokerReceived **last,
				  CqrsLinkNotice **notices)
{
	ReceivedList received;

	pthread_mutex_lock(&link->mutex);
	received = link->received;
	link->received.first = link->received.last = NULL;
	*notices = link->notices.first;
	link->notices.first = link->notices.last = NULL;
	pthread_mutex_unlock(&link->mutex);
	*last = received.last;
	return received.first;
}

/*
 * A list of messages is in the database, durably: have the broker told. They are
 * the module's again.
 */
void
cqrs_link_settle(CqrsBrokerLink *link, CqrsBrokerReceived *first,
				 CqrsBrokerReceived *last)
{
	ReceivedList list = {first, last};

	pthread_mutex_lock(&link->mutex);
	append(&link->settled, &list);
	cqrs_link_wake(&link->to_thread);
	pthread_mutex_unlock(&link->mutex);
}

/*
 * For link.c: of a link with a source, before there is a thread, and when there
 * is none any more.
 */
void
cqrs_link_source_init(CqrsBrokerLink *link)
{
	link->connection.received = thread_received;
	link->connection.notice = thread_notice;
	link->connection.context = link;
	link->most = MOST_MESSAGES;
}

void
cqrs_link_source_free(CqrsBrokerLink *link)
{
	NoticeList *lists[] = {&link->notices, &link->new_notices};
	int			i;

	for (i = 0; i < lengthof(lists); i++)
		while (lists[i]->first != NULL)
		{
			CqrsLinkNotice *notice = lists[i]->first;

			lists[i]->first = notice->next;
			free(notice);
		}
}

/*
 * From here on, everything runs in the thread.
 *
 * Acknowledge what is settled, and receive as long as something comes, and there
 * is room. Returns false if the connection is lost.
 */
bool
cqrs_link_source_cycle(CqrsBrokerLink *link, bool *stop, char *error)
{
	for (;;)
	{
		const CqrsBrokerModule *module = link->module;
		const CqrsBrokerPosition *positions;
		ReceivedList settled;
		size_t		room;

		pthread_mutex_lock(&link->mutex);
		cqrs_link_drain_pipe(&link->to_thread);
		positions = link->positions;
		link->positions = NULL;
		settled = link->settled;
		link->settled.first = link->settled.last = NULL;
		*stop = link->stop;
		pthread_mutex_unlock(&link->mutex);

		error[0] = '\0';
		if (!thread_settle(link, settled.first, error))
			return false;
		if (*stop)
			return true;
		if (positions != NULL &&
			!module->assign(link->module_state, positions, link->npositions,
							error))
			return false;
		room = link->unsettled_bytes < MOST_BYTES ?
			MOST_BYTES - link->unsettled_bytes : 0;
		if (!module->receive(link->module_state,
							 room > 0 ? link->most - link->unsettled : 0,
							 room, error))
			return false;
		if (link->out_of_memory)
		{
			strlcpy(error, "out of memory", CQRS_BROKER_ERROR_SIZE);
			return false;
		}
		if (positions == NULL && settled.first == NULL &&
			link->new_received.first == NULL)
		{
			hand_over(link, error);
			return true;
		}
		hand_over(link, error);
	}
}

static void
thread_received(const CqrsBrokerConnection *connection,
				CqrsBrokerReceived *message)
{
	CqrsBrokerLink *link = connection->context;
	ReceivedList list = {message, message};

	message->next = NULL;
	append(&link->new_received, &list);
	link->unsettled++;
	link->unsettled_bytes += message_size(message);
	link->nreceived++;
}

static void
thread_notice(const CqrsBrokerConnection *connection,
			  const CqrsBrokerNotice *notice)
{
	CqrsBrokerLink *link = connection->context;
	CqrsLinkNotice *copy = malloc(sizeof(CqrsLinkNotice));

	/* A notice that is lost may leave a partition idle: connect anew. */
	if (copy == NULL)
	{
		link->out_of_memory = true;
		return;
	}
	copy->notice = *notice;
	copy->behind = link->nreceived;
	copy->next = NULL;
	if (link->new_notices.first == NULL)
		link->new_notices.first = copy;
	else
		link->new_notices.last->next = copy;
	link->new_notices.last = copy;
}

/*
 * Acknowledge a list of messages. Returns false if the connection is lost.
 */
static bool
thread_settle(CqrsBrokerLink *link, CqrsBrokerReceived *message, char *error)
{
	CqrsBrokerReceived *messages[SETTLE_MESSAGES];

	while (message != NULL)
	{
		int			n = 0;

		for (; message != NULL && n < SETTLE_MESSAGES; message = message->next)
		{
			link->unsettled_bytes -= message_size(message);
			messages[n++] = message;
		}
		link->unsettled -= n;
		if (!link->module->settle(link->module_state, messages, n, error))
			return false;
	}
	return true;
}

/*
 * Hand over what was received, and wake the worker if there is something new.
 */
static void
hand_over(CqrsBrokerLink *link, const char *error)
{
	pthread_mutex_lock(&link->mutex);
	if (link->new_received.first != NULL || link->new_notices.first != NULL ||
		strcmp(link->error, error) != 0)
		cqrs_link_wake(&link->to_worker);
	append(&link->received, &link->new_received);
	if (link->notices.first == NULL)
		link->notices = link->new_notices;
	else if (link->new_notices.first != NULL)
	{
		link->notices.last->next = link->new_notices.first;
		link->notices.last = link->new_notices.last;
	}
	strlcpy(link->error, error, sizeof(link->error));
	pthread_mutex_unlock(&link->mutex);
	link->new_received.first = link->new_received.last = NULL;
	link->new_notices.first = link->new_notices.last = NULL;
}

static size_t
message_size(const CqrsBrokerReceived *message)
{
	return (message->key != NULL ? message->key_size : 0) +
		(message->body != NULL ? message->body_size : 0);
}

static void
append(ReceivedList *list, ReceivedList *more)
{
	if (more->first == NULL)
		return;
	if (list->first == NULL)
		list->first = more->first;
	else
		list->last->next = more->first;
	list->last = more->last;
}
