/*-------------------------------------------------------------------------
 *
 * link.c
 *	  A connection to a broker, and the thread that runs its module.
 *
 * Client libraries block: while a name is looked up, a connection is made, or
 * a socket's buffer is full. In the worker's own thread, that would keep it
 * from ending when the server stops, and from reading on meanwhile. So each
 * connection has a thread, and the worker waits for its latch and a pipe.
 *
 * Protocol
 *
 * 1. The worker hands messages over in the list todo, the thread hands them
 *	  back in the list reported. The mutex protects both, and everything else
 *	  that is not the thread's own. Neither side does anything slow while it
 *	  holds it.
 * 2. Each side has a pipe by which the other wakes it. Whoever writes to one
 *	  sets its flag; with the flag set, nothing more is written. The reader
 *	  empties the pipe, and only then clears the flag and looks at the lists.
 *	  The worker does so when it asks for the state, which comes first, and not
 *	  when it takes what was reported: otherwise, a state that changed in
 *	  between would wake nobody.
 * 3. The thread runs with all signals blocked: they are the worker's. It calls
 *	  no function of the server: no palloc(), no ereport().
 * 4. With a transactional_id, the thread begins a transaction before it publishes
 *	  the first message of one. What else is to be done with transactions, the
 *	  worker asks for, one thing at a time, and is woken when there is an answer.
 * 5. To close, the worker asks the thread to end, and waits for a while. If
 *	  the thread does not end, because the module does not return, the process
 *	  has to: the thread still uses the messages. As long as there is a thread,
 *	  exit() would run the libraries' exit handlers under its feet; so at the
 *	  end of the process, _exit() ends both. By then, the process has released
 *	  everything shared: all callbacks of before_shmem_exit() and
 *	  on_shmem_exit() have run. Those that were registered with on_proc_exit()
 *	  before the first link was made, or with atexit(), are not called.
 *
 *-------------------------------------------------------------------------
 */
#include "base/cqrs_outbox.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "storage/ipc.h"
#include "utils/memutils.h"

#include "broker/link.h"
#include "broker/link_thread.h"

/* How long the thread is given to end, in milliseconds. */
#define LONGEST_CLOSE	500

/* How long the thread waits at most, in milliseconds: idle, or without fd(). */
#define LONGEST_WAIT	1000
#define BLIND_WAIT		10

/* Of this process. */
static CqrsBrokerLink *current_link = NULL;

static const char *copy_string(const char *string);
static void open_pipe(Pipe *pipe);
static void close_link(CqrsBrokerLink *link);
static void close_at_exit(int code, Datum arg);
static void exit_with_threads(int code, Datum arg);
static void *thread_main(void *arg);
static bool thread_cycle(CqrsBrokerLink *link, bool *stop, char *error);
static bool thread_publish(CqrsBrokerLink *link, CqrsLinkMessage *todo,
						   char *error);
static bool thread_begin(CqrsBrokerLink *link, char *error);
static bool thread_call(CqrsBrokerLink *link, char *error);
static void thread_report(CqrsBrokerMessage *message,
						  CqrsBrokerOutcome outcome, const char *error);
static void thread_hand_back(CqrsBrokerLink *link, CqrsLinkState state,
							 const char *error);
static void thread_wait(CqrsBrokerLink *link);
static void thread_wait_for_stop(CqrsBrokerLink *link, const char *error);

/*
 * Begin to connect. The connection is copied; its report need not be set. A
 * process has one link at a time.
 */
CqrsBrokerLink *
cqrs_link_open(const CqrsBrokerModule *module,
			   const CqrsBrokerConnection *connection)
{
	static bool registered = false;
	MemoryContext context;
	MemoryContext oldcontext;
	CqrsBrokerLink *link;
	CqrsBrokerOption *options;
	sigset_t	all;
	sigset_t	save;
	int			result;
	int			i;

	Assert(current_link == NULL);
	if (!registered)
	{
		on_proc_exit(exit_with_threads, (Datum) 0);
		before_shmem_exit(close_at_exit, (Datum) 0);
		registered = true;
	}

	context = AllocSetContextCreate(TopMemoryContext, "cqrs broker link",
									ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	link = palloc0(sizeof(CqrsBrokerLink));
	link->context = context;
	link->module = module;
	link->state = CQRS_LINK_CONNECTING;
	link->connection = *connection;
	link->connection.database = copy_string(connection->database);
	link->connection.subscription = copy_string(connection->subscription);
	link->connection.transactional_id = copy_string(connection->transactional_id);
	options = palloc(sizeof(CqrsBrokerOption) * (connection->noptions + 1));
	for (i = 0; i < connection->noptions; i++)
	{
		options[i].name = copy_string(connection->options[i].name);
		options[i].value = copy_string(connection->options[i].value);
	}
	link->connection.options = options;
	link->connection.source = copy_string(connection->source);
	link->connection.transactional_id = copy_string(connection->transactional_id);
	link->connection.report = thread_report;
	if (connection->source != NULL)
		cqrs_link_source_init(link);
	MemoryContextSwitchTo(oldcontext);

	open_pipe(&link->to_thread);
	open_pipe(&link->to_worker);
	pthread_mutex_init(&link->mutex, NULL);

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &save);
	result = pthread_create(&link->thread, NULL, thread_main, link);
	pthread_sigmask(SIG_SETMASK, &save, NULL);
	if (result != 0)
	{
		close_link(link);
		errno = result;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not create a thread: %m")));
	}
	current_link = link;
	return link;
}

/*
 * The link's state, to be asked for before cqrs_link_take(). error, of
 * CQRS_BROKER_ERROR_SIZE bytes, gets why it was lost, or why the broker accepts
 * nothing at present; otherwise it is empty.
 *
 * A lost link has handed back all that it ever will: what cqrs_link_take()
 * does not return was not reported.
 */
CqrsLinkState
cqrs_link_state(CqrsBrokerLink *link, char *error)
{
	CqrsLinkState state;

	pthread_mutex_lock(&link->mutex);
	cqrs_link_drain_pipe(&link->to_worker);
	state = link->state;
	strlcpy(error, link->error, CQRS_BROKER_ERROR_SIZE);
	pthread_mutex_unlock(&link->mutex);
	return state;
}

/*
 * The descriptor that is readable when the state changed, or there is
 * something to take.
 */
int
cqrs_link_fd(const CqrsBrokerLink *link)
{
	return link->to_worker.fds[0];
}

/*
 * Have a list of messages published, in this order. Their field link must be
 * this link.
 */
void
cqrs_link_send(CqrsBrokerLink *link, CqrsLinkMessage *first,
			   CqrsLinkMessage *last)
{
	pthread_mutex_lock(&link->mutex);
	if (link->todo == NULL)
		link->todo = first;
	else
		link->todo_last->next = first;
	link->todo_last = last;
	cqrs_link_wake(&link->to_thread);
	pthread_mutex_unlock(&link->mutex);
}

/*
 * The list of messages reported since the last call, or NULL. Those reported
 * after cqrs_link_state() was called make cqrs_link_fd() readable.
 */
CqrsLinkMessage *
cqrs_link_take(CqrsBrokerLink *link)
{
	CqrsLinkMessage *reported;

	pthread_mutex_lock(&link->mutex);
	reported = link->reported;
	link->reported = link->reported_last = NULL;
	pthread_mutex_unlock(&link->mutex);
	return reported;
}

/*
 * Have the module do something; the link is open, and the last answer was taken.
 * The record is for CQRS_LINK_COMMIT.
 */
void
cqrs_link_call(CqrsBrokerLink *link, CqrsLinkCall call, const char *record)
{
	pthread_mutex_lock(&link->mutex);
	Assert(!link->called);
	link->called = true;
	link->call = call;
	strlcpy(link->record, record, sizeof(link->record));
	cqrs_link_wake(&link->to_thread);
	pthread_mutex_unlock(&link->mutex);
}

/*
 * Is what was called done? *committed gets whether the transaction is committed,
 * record, of CQRS_BROKER_RECORD_SIZE bytes, what was read.
 */
bool
cqrs_link_answer(CqrsBrokerLink *link, bool *committed, char *record)
{
	bool		answered;

	pthread_mutex_lock(&link->mutex);
	answered = !link->called;
	*committed = link->committed;
	strlcpy(record, link->record, CQRS_BROKER_RECORD_SIZE);
	pthread_mutex_unlock(&link->mutex);
	return answered;
}

/*
 * Disconnect, and free the link. Ends the process if the module does not
 * return.
 */
void
cqrs_link_close(CqrsBrokerLink *link)
{
	struct pollfd pollfd = {.fd = link->to_worker.fds[0],.events = POLLIN};
	int			waited;
	bool		ended;

	/* Not a second time at the end of the process. */
	current_link = NULL;
	pthread_mutex_lock(&link->mutex);
	link->stop = true;
	ended = link->ended;
	cqrs_link_wake(&link->to_thread);
	pthread_mutex_unlock(&link->mutex);

	for (waited = 0; !ended && waited < LONGEST_CLOSE; waited += BLIND_WAIT)
	{
		(void) poll(&pollfd, 1, BLIND_WAIT);
		pthread_mutex_lock(&link->mutex);
		cqrs_link_drain_pipe(&link->to_worker);
		ended = link->ended;
		pthread_mutex_unlock(&link->mutex);
	}
	if (!ended)
	{
		if (proc_exit_inprogress)
			return;
		ereport(DEBUG1,
				(errmsg_internal("connection to the broker of subscription \"%s\" does not close",
								 link->connection.subscription)));
		proc_exit(0);
	}
	pthread_join(link->thread, NULL);
	close_link(link);
}

static const char *
copy_string(const char *string)
{
	return string ? pstrdup(string) : NULL;
}

static void
open_pipe(Pipe *pipe_to_open)
{
	int			i;

	if (pipe(pipe_to_open->fds) != 0)
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not create a pipe: %m")));
	for (i = 0; i < 2; i++)
	{
		(void) fcntl(pipe_to_open->fds[i], F_SETFL, O_NONBLOCK);
		(void) fcntl(pipe_to_open->fds[i], F_SETFD, FD_CLOEXEC);
	}
}

/*
 * Free a link that has no thread.
 */
static void
close_link(CqrsBrokerLink *link)
{
	int			i;

	for (i = 0; i < 2; i++)
	{
		close(link->to_thread.fds[i]);
		close(link->to_worker.fds[i]);
	}
	pthread_mutex_destroy(&link->mutex);
	cqrs_link_source_free(link);
	MemoryContextDelete(link->context);
}

static void
close_at_exit(int code, Datum arg)
{
	if (current_link != NULL)
		cqrs_link_close(current_link);
}

static void
exit_with_threads(int code, Datum arg)
{
	_exit(code);
}

/*
 * From here on, everything runs in the thread.
 */
static void *
thread_main(void *arg)
{
	CqrsBrokerLink *link = (CqrsBrokerLink *) arg;
	const CqrsBrokerModule *module = link->module;
	char		error[CQRS_BROKER_ERROR_SIZE] = "";

	link->module_state = module->startup(&link->connection, error);
	if (link->module_state != NULL)
	{
		bool		stop = false;

		thread_hand_back(link, CQRS_LINK_OPEN, "");
		while (thread_cycle(link, &stop, error) && !stop)
			thread_wait(link);

		/* What was reported last still counts. */
		thread_hand_back(link, CQRS_LINK_OPEN, "");
		if (link->connection.source != NULL)
			thread_wait_for_stop(link, error);
		module->shutdown(link->module_state);
	}

	pthread_mutex_lock(&link->mutex);
	link->state = CQRS_LINK_LOST;
	strlcpy(link->error, error[0] != '\0' ? error : "connection lost",
			sizeof(link->error));
	link->ended = true;
	cqrs_link_wake(&link->to_worker);
	pthread_mutex_unlock(&link->mutex);
	return NULL;
}

/*
 * Publish what there is to publish, and handle what came. Returns false if the
 * connection is lost.
 */
static bool
thread_cycle(CqrsBrokerLink *link, bool *stop, char *error)
{
	CqrsLinkMessage *todo;
	bool		called;

	if (link->connection.source != NULL)
		return cqrs_link_source_cycle(link, stop, error);
	for (;;)
	{
		pthread_mutex_lock(&link->mutex);
		cqrs_link_drain_pipe(&link->to_thread);
		todo = link->todo;
		called = link->called;
		link->todo = link->todo_last = NULL;
		*stop = link->stop;
		pthread_mutex_unlock(&link->mutex);
		if (*stop)
			return true;

		error[0] = '\0';
		if ((todo != NULL && !thread_publish(link, todo, error)) ||
			(called && !thread_call(link, error)) ||
			!link->module->poll(link->module_state, error))
			return false;
		thread_hand_back(link, CQRS_LINK_OPEN, error);
		if (todo == NULL && !called)
			return true;
	}
}

static bool
thread_publish(CqrsBrokerLink *link, CqrsLinkMessage *todo, char *error)
{
	CqrsBrokerMessage *messages[256];

	if (link->connection.transactional_id != NULL &&
		!thread_begin(link, error))
		return false;
	while (todo != NULL)
	{
		int			n = 0;

		for (; todo != NULL && n < lengthof(messages); todo = todo->next)
			messages[n++] = &todo->message;
		link->outstanding += n;
		if (!link->module->publish(link->module_state, messages, n, error))
			return false;
	}
	return true;
}

static bool
thread_begin(CqrsBrokerLink *link, char *error)
{
	if (!link->in_transaction &&
		!link->module->begin(link->module_state, error))
		return false;
	link->in_transaction = true;
	return true;
}

/*
 * Do what the worker asks for. What the module reports meanwhile is handed back
 * before the answer is.
 */
static bool
thread_call(CqrsBrokerLink *link, char *error)
{
	const CqrsBrokerModule *module = link->module;
	bool		committed = false;
	char		record[CQRS_BROKER_RECORD_SIZE] = "";
	bool		done = false;

	switch (link->call)
	{
		case CQRS_LINK_READ:
			done = module->read_record(link->module_state, record, error);
			break;
		case CQRS_LINK_FENCE:
			done = module->fence(link->module_state, error);
			break;
		case CQRS_LINK_COMMIT:
			done = thread_begin(link, error) &&
				module->commit(link->module_state, link->record, &committed,
							   error);
			link->in_transaction = false;
			break;
		case CQRS_LINK_ABORT:
			done = !link->in_transaction ||
				module->abort(link->module_state, error);
			link->in_transaction = false;
			break;
	}
	if (!done)
		return false;
	thread_hand_back(link, CQRS_LINK_OPEN, "");
	pthread_mutex_lock(&link->mutex);
	link->called = false;
	link->committed = committed;
	strlcpy(link->record, record, sizeof(link->record));
	cqrs_link_wake(&link->to_worker);
	pthread_mutex_unlock(&link->mutex);
	return true;
}

static void
thread_report(CqrsBrokerMessage *message, CqrsBrokerOutcome outcome,
			  const char *error)
{
	CqrsLinkMessage *reported = (CqrsLinkMessage *) message;
	CqrsBrokerLink *link = reported->link;

	reported->outcome = outcome;
	reported->error = error ? strndup(error, CQRS_BROKER_ERROR_SIZE - 1) : NULL;
	reported->next = NULL;
	if (link->reports == NULL)
		link->reports = reported;
	else
		link->reports_last->next = reported;
	link->reports_last = reported;
	link->outstanding--;
}

/*
 * Hand back what was reported, and wake the worker if there is something new.
 */
static void
thread_hand_back(CqrsBrokerLink *link, CqrsLinkState state, const char *error)
{
	pthread_mutex_lock(&link->mutex);
	if (link->reports != NULL)
	{
		if (link->reported == NULL)
			link->reported = link->reports;
		else
			link->reported_last->next = link->reports;
		link->reported_last = link->reports_last;
	}
	if (link->reports != NULL || link->state != state ||
		strcmp(link->error, error) != 0)
		cqrs_link_wake(&link->to_worker);
	link->reports = link->reports_last = NULL;
	link->state = state;
	strlcpy(link->error, error, sizeof(link->error));
	pthread_mutex_unlock(&link->mutex);
}

static void
thread_wait(CqrsBrokerLink *link)
{
	struct pollfd pollfds[2] = {0};
	int			fd = link->module->fd(link->module_state);

	pollfds[0].fd = link->to_thread.fds[0];
	pollfds[0].events = POLLIN;
	pollfds[1].fd = fd;
	pollfds[1].events = POLLIN;
	(void) poll(pollfds, fd < 0 ? 1 : 2,
				fd < 0 && (link->outstanding > 0 || link->connection.source != NULL) ?
				BLIND_WAIT : LONGEST_WAIT);
}

/*
 * The connection is lost, but the worker may be reading messages that are the
 * module's: they stay until it closes the link.
 */
static void
thread_wait_for_stop(CqrsBrokerLink *link, const char *error)
{
	struct pollfd pollfd = {.fd = link->to_thread.fds[0],.events = POLLIN};
	bool		stop = false;

	thread_hand_back(link, CQRS_LINK_LOST,
					 error[0] != '\0' ? error : "connection lost");
	while (!stop)
	{
		(void) poll(&pollfd, 1, LONGEST_WAIT);
		pthread_mutex_lock(&link->mutex);
		cqrs_link_drain_pipe(&link->to_thread);
		stop = link->stop;
		pthread_mutex_unlock(&link->mutex);
	}
}

/*
 * In both threads: wake the other one. The mutex is held.
 */
void
cqrs_link_wake(Pipe *pipe_to_write)
{
	char		byte = 0;

	if (!pipe_to_write->written &&
		write(pipe_to_write->fds[1], &byte, 1) == 1)
		pipe_to_write->written = true;
}

/*
 * In both threads: read what woke this one. The mutex is held.
 */
void
cqrs_link_drain_pipe(Pipe *pipe_to_read)
{
	char		bytes[16];

	if (pipe_to_read->written)
	{
		while (read(pipe_to_read->fds[0], bytes, sizeof(bytes)) > 0)
			;
		pipe_to_read->written = false;
	}
}
