/*-------------------------------------------------------------------------
 *
 * client.c
 *	  What speaks to the peer: lines over TCP, for events and for messages.
 *
 * It stands for a broker's client library, and is as small as one can be that
 * loses nothing. Each line that we send is answered by one line, in whatever
 * order the peer likes:
 *
 *	  {"client":"db/subscription","token":"secret"}
 *							+			welcome
 *							-reason		go away
 *	  {"tag":0,"topic":...,"body":...}
 *							+0			the message of tag 0 is safe
 *							-0 reason	not this one, for the time being
 *							!0 reason	not this one, ever
 *
 * Unasked, the peer may send
 *
 *							~reason		I accept nothing at present
 *							~			I do again
 *
 * The peer must not answer + before the message would survive its crash: we
 * forget it then.
 *
 * To consume, we say from where, and how many messages it may send before we
 * acknowledge any. It sends each as a line of words (see lines.c), and keeps it
 * until it is acknowledged; if the connection ends before, it sends it again on
 * the next one.
 *
 *	  {"consume":"source","window":1000}
 *							=7 0 ...	message 7
 *							-reason		no such source
 *	  {"ack":7}
 *
 * The core calls us in a thread of our own, one callback at a time, so there
 * is nothing to lock. That thread is not PostgreSQL's: no header of the server
 * is included here.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "lines.h"

#define DEFAULT_WINDOW	1000
#define DEFAULT_WINDOW_TEXT	"1000"
#define DEFAULT_TIMEOUT	"10"

/* Send when there is this much, in bytes. */
#define FLUSH_SIZE		65536

/* Read so much at a time, in bytes. */
#define READ_SIZE		65536

/* A line of the peer is shorter, or, if it is a message, as long at most. */
#define LINE_SIZE		1024
#define MESSAGE_SIZE	(32 * 1024 * 1024)

/* A connection: what the core knows as state. */
typedef struct Example
{
	const CqrsBrokerConnection *connection;
	const char *host;
	const char *port;
	int			timeout;		/* in milliseconds */
	int			socket;			/* -1: none */
	bool		welcome;		/* the peer said so */
	char		busy[LINE_SIZE];	/* why it accepts nothing; empty: it does */

	/*
	 * Messages that are not reported, each at the index that is its tag; NULL
	 * where there is none.
	 */
	CqrsBrokerMessage **messages;
	int			nmessages;
	int		   *free_tags;
	int			nfree;

	/*
	 * Messages that were received, and are not settled; and what the core has
	 * room for.
	 */
	Received   *first;
	Received   *last;
	int			room;
	size_t		room_bytes;

	Buffer		out;
	Buffer		in;
} Example;

static bool example_check(const CqrsBrokerConnection *connection,
						  char *error);
static void *example_startup(const CqrsBrokerConnection *connection,
							 char *error);
static bool example_publish(void *state, CqrsBrokerMessage *const *messages,
							int n, char *error);
static bool example_poll(void *state, char *error);
static int	example_fd(void *state);
static void example_shutdown(void *state);
static bool example_assign(void *state, const CqrsBrokerPosition *positions,
						   int n, char *error);
static bool example_receive(void *state, int most, size_t bytes, char *error);
static bool example_settle(void *state, CqrsBrokerReceived *const *messages,
						   int n, char *error);
static const char *option(const CqrsBrokerConnection *connection,
						  const char *name, const char *otherwise);
static bool fail(char *error, const char *format,...)
			__attribute__((format(printf, 2, 3)));
static bool open_socket(Example *example, char *error);
static bool try_address(Example *example, const struct addrinfo *address,
						char *error);
static bool say_hello(Example *example, char *error);
static bool wait_for(Example *example, short events, char *error);
static bool flush(Example *example, char *error);
static bool receive(Example *example, char *error);
static bool read_some(Example *example, bool *more, char *error);
static char *take_line(Example *example, size_t * size);
static bool handle_line(Example *example, char *line, size_t size,
						char *error);
static bool handle_outcome(Example *example, char *line, char *error);
static bool handle_message(Example *example, const char *line, size_t size,
						   char *error);
static void unlink_received(Example *example, Received *received);
static int	take_tag(Example *example, CqrsBrokerMessage *message);

const CqrsBrokerModule example_module = {
	.magic = CQRS_BROKER_MAGIC,
	.version = CQRS_BROKER_VERSION,
	.name = "the example broker",
	.cloudevents_prefix = "ce-",
	.tombstones = true,
	.window = DEFAULT_WINDOW,
	.check = example_check,
	.startup = example_startup,
	.publish = example_publish,
	.poll = example_poll,
	.fd = example_fd,
	.shutdown = example_shutdown,
	.keeps_offsets = false,
	.assign = example_assign,
	.receive = example_receive,
	.settle = example_settle
};

/*
 * Could this be connected to? The validator has seen that each option is good
 * by itself; only here all of server and user mapping are seen together.
 */
static bool
example_check(const CqrsBrokerConnection *connection, char *error)
{
	if (option(connection, "port", NULL) == NULL)
		return fail(error, "option \"port\" of the server is not set");
	return true;
}

/*
 * Connect, and be welcome.
 */
static void *
example_startup(const CqrsBrokerConnection *connection, char *error)
{
	Example    *example = calloc(1, sizeof(Example));

	if (example == NULL)
	{
		fail(error, "out of memory");
		return NULL;
	}
	example->connection = connection;
	example->host = option(connection, "host", "localhost");
	example->port = option(connection, "port", "");
	example->timeout = 1000 * atoi(option(connection, "timeout",
										  DEFAULT_TIMEOUT));
	example->socket = -1;
	if (!open_socket(example, error) || !say_hello(example, error))
	{
		example_shutdown(example);
		return NULL;
	}
	return example;
}

/*
 * Send messages. They are reported when the peer has answered, which may be
 * while we are here.
 */
static bool
example_publish(void *state, CqrsBrokerMessage *const *messages, int n,
				char *error)
{
	Example    *example = state;
	int			i;

	for (i = 0; i < n; i++)
	{
		int			tag = take_tag(example, messages[i]);

		if (tag < 0)
			return fail(error, "out of memory");
		example_append_message(&example->out, tag, messages[i]);
		if (example->out.used >= FLUSH_SIZE && !flush(example, error))
			return false;
	}
	return flush(example, error);
}

/*
 * Handle what the peer said. If that is that it accepts nothing, say so: the
 * core waits for a while, then tries with another connection.
 */
static bool
example_poll(void *state, char *error)
{
	Example    *example = state;

	if (!receive(example, error))
		return false;
	if (example->busy[0] != '\0')
		fail(error, "%s:%s accepts nothing: %s", example->host, example->port,
			 example->busy);
	return true;
}

static int
example_fd(void *state)
{
	return ((Example *) state)->socket;
}

/*
 * Begin to consume. The source has no partitions, so there is nothing to choose.
 */
static bool
example_assign(void *state, const CqrsBrokerPosition *positions, int n,
			   char *error)
{
	Example    *example = state;

	if (n == 0)
		return true;
	example_append_consume(&example->out, example->connection->source,
						   option(example->connection,
								  CQRS_BROKER_OPTION_WINDOW,
								  DEFAULT_WINDOW_TEXT));
	return flush(example, error);
}

/*
 * Hand over what has come, as far as there is room. The rest stays where it is:
 * in our buffer, in the socket's, with the peer. That the socket is not readable
 * does not mean that there is nothing: but we are called after settle(), too.
 */
static bool
example_receive(void *state, int most, size_t bytes, char *error)
{
	Example    *example = state;

	example->room = most;
	example->room_bytes = bytes;
	return receive(example, error);
}

/*
 * Acknowledge messages. Only now may the peer forget them.
 */
static bool
example_settle(void *state, CqrsBrokerReceived *const *messages, int n,
			   char *error)
{
	Example    *example = state;
	int			i;

	for (i = 0; i < n; i++)
	{
		example_append_ack(&example->out, messages[i]->tag);
		unlink_received(example, messages[i]->handle);
	}
	return flush(example, error);
}

/*
 * The messages that are not reported are the core's business: it publishes
 * them again. Those that are not settled are the peer's: it sends them again.
 */
static void
example_shutdown(void *state)
{
	Example    *example = state;

	if (example->socket >= 0)
		close(example->socket);
	free(example->messages);
	free(example->free_tags);
	while (example->first != NULL)
		unlink_received(example, example->first);
	free(example->out.data);
	free(example->in.data);
	free(example);
}

/*
 * The value of an option of server or user mapping, or otherwise.
 */
static const char *
option(const CqrsBrokerConnection *connection, const char *name,
	   const char *otherwise)
{
	int			i;

	for (i = 0; i < connection->noptions; i++)
	{
		if (strcmp(connection->options[i].name, name) == 0)
			return connection->options[i].value;
	}
	return otherwise;
}

/*
 * Say what is wrong. Returns false.
 */
static bool
fail(char *error, const char *format,...)
{
	va_list		args;

	va_start(args, format);
	vsnprintf(error, CQRS_BROKER_ERROR_SIZE, format, args);
	va_end(args);
	return false;
}

/*
 * Connect to one of the host's addresses. If none accepts, error is about the
 * last.
 */
static bool
open_socket(Example *example, char *error)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *addresses;
	struct addrinfo *address;
	int			result;

	result = getaddrinfo(example->host, example->port, &hints, &addresses);
	if (result != 0)
		return fail(error, "could not find host \"%s\": %s", example->host,
					gai_strerror(result));
	for (address = addresses; address != NULL; address = address->ai_next)
	{
		if (try_address(example, address, error))
			break;
	}
	freeaddrinfo(addresses);
	return address != NULL;
}

/*
 * The socket does not block, so that we decide how long to wait.
 */
static bool
try_address(Example *example, const struct addrinfo *address, char *error)
{
	int			failure = 0;
	socklen_t	size = sizeof(failure);

	example->socket = socket(address->ai_family, address->ai_socktype,
							 address->ai_protocol);
	if (example->socket >= 0 &&
		fcntl(example->socket, F_SETFD, FD_CLOEXEC) == 0 &&
		fcntl(example->socket, F_SETFL, O_NONBLOCK) == 0)
	{
		if (connect(example->socket, address->ai_addr,
					address->ai_addrlen) == 0)
			return true;
		if (errno == EINPROGRESS)
		{
			if (!wait_for(example, POLLOUT, error))
				failure = ETIMEDOUT;
			else if (getsockopt(example->socket, SOL_SOCKET, SO_ERROR,
								&failure, &size) == 0 && failure == 0)
				return true;
		}
	}
	if (failure == 0)
		failure = errno;
	fail(error, "could not connect to %s:%s: %s", example->host, example->port,
		 strerror(failure));
	if (example->socket >= 0)
		close(example->socket);
	example->socket = -1;
	return false;
}

static bool
say_hello(Example *example, char *error)
{
	const CqrsBrokerConnection *connection = example->connection;
	Buffer	   *out = &example->out;
	char		client[512];

	snprintf(client, sizeof(client), "%s/%s", connection->database,
			 connection->subscription);
	example_append_hello(out, client, option(connection, "token", NULL));
	if (!flush(example, error))
		return false;
	while (!example->welcome)
	{
		if (!wait_for(example, POLLIN, error) || !receive(example, error))
			return false;
	}
	return true;
}

/*
 * Wait until the socket is ready for one of these, but not for ever.
 */
static bool
wait_for(Example *example, short events, char *error)
{
	struct pollfd pollfd = {.fd = example->socket,.events = events};
	int			result;

	do
		result = poll(&pollfd, 1, example->timeout);
	while (result < 0 && errno == EINTR);
	if (result == 0)
		return fail(error, "%s:%s has not reacted for %d s", example->host,
					example->port, example->timeout / 1000);
	return true;
}

/*
 * Send all that is to be sent. While the peer does not read on, what it says is
 * read: it may wait for that, and both of us would wait for ever. Answers are
 * handled at once, messages wait for example_receive().
 */
static bool
flush(Example *example, char *error)
{
	Buffer	   *out = &example->out;
	bool		consumes = example->connection->source != NULL;

	if (out->failed)
		return fail(error, "out of memory");
	while (out->done < out->used)
	{
		/* The process is not to get a SIGPIPE, which would be the server's. */
		ssize_t		n = send(example->socket, out->data + out->done,
							 out->used - out->done, MSG_NOSIGNAL);

		if (n >= 0)
			out->done += n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
		{
			bool		full = consumes && example->in.used >= MESSAGE_SIZE;
			bool		more;

			if (!wait_for(example, full ? POLLOUT : POLLIN | POLLOUT, error))
				return false;
			if (!consumes && !receive(example, error))
				return false;
			if (consumes && !full && !read_some(example, &more, error))
				return false;
		}
		else if (errno != EINTR)
			return fail(error, "could not send to %s:%s: %s", example->host,
						example->port, strerror(errno));
	}
	out->used = out->done = 0;
	return true;
}

/*
 * Read and handle what the peer has sent so far. Of messages, no more than there
 * is room for.
 */
static bool
receive(Example *example, char *error)
{
	for (;;)
	{
		char	   *line;
		size_t		size;
		bool		more;

		if (example->connection->source != NULL && example->welcome &&
			(example->room <= 0 || example->room_bytes == 0))
			return true;
		line = take_line(example, &size);
		if (line != NULL)
		{
			if (!handle_line(example, line, size, error))
				return false;
			continue;
		}
		if (!read_some(example, &more, error))
			return false;
		if (!more)
			return true;
	}
}

/*
 * Read some of what the peer has sent. Sets *more to whether there was something.
 */
static bool
read_some(Example *example, bool *more, char *error)
{
	Buffer	   *in = &example->in;
	size_t		longest = example->connection->source != NULL ? MESSAGE_SIZE :
	LINE_SIZE;
	ssize_t		n;

	if (in->done > 0)
	{
		in->used -= in->done;
		memmove(in->data, in->data + in->done, in->used);
		in->done = 0;
	}
	if (in->used > longest && memchr(in->data, '\n', in->used) == NULL)
		return fail(error, "%s:%s has sent too long a line",
					example->host, example->port);
	if (!example_buffer_reserve(in, READ_SIZE))
		return fail(error, "out of memory");

	do
		n = recv(example->socket, in->data + in->used, READ_SIZE, 0);
	while (n < 0 && errno == EINTR);
	*more = n > 0;
	if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
		return fail(error, "could not receive from %s:%s: %s",
					example->host, example->port, strerror(errno));
	if (n == 0)
		return fail(error, "%s:%s has closed the connection",
					example->host, example->port);
	if (n > 0)
		in->used += n;
	return true;
}

/*
 * The next line that was read, of this size, with a NUL instead of its end. NULL
 * if it is not complete.
 */
static char *
take_line(Example *example, size_t * size)
{
	Buffer	   *in = &example->in;
	char	   *line;
	char	   *end;

	if (in->done == in->used)
		return NULL;
	line = in->data + in->done;
	end = memchr(line, '\n', in->used - in->done);
	if (end == NULL)
		return NULL;
	*end = '\0';
	*size = end - line;
	in->done += *size + 1;
	return line;
}

static bool
handle_line(Example *example, char *line, size_t size, char *error)
{
	if (size >= LINE_SIZE && line[0] != '=')
		return fail(error, "%s:%s has sent too long a line",
					example->host, example->port);
	if (line[0] == '~')
	{
		snprintf(example->busy, sizeof(example->busy), "%s", line + 1);
		return true;
	}
	if (!example->welcome)
	{
		if (line[0] != '+')
			return fail(error, "%s:%s does not accept us: %s", example->host,
						example->port, line[0] == '-' ? line + 1 : line);
		example->welcome = true;
		return true;
	}
	if (example->connection->source != NULL)
		return handle_message(example, line, size, error);
	return handle_outcome(example, line, error);
}

/*
 * Report a message. Once that is done it is not ours any more.
 */
static bool
handle_outcome(Example *example, char *line, char *error)
{
	CqrsBrokerReport report = example->connection->report;
	CqrsBrokerMessage *message = NULL;
	char	   *reason;
	long		tag = strtol(line[0] != '\0' ? line + 1 : line, &reason, 10);

	if (tag >= 0 && tag < example->nmessages)
		message = example->messages[tag];
	if (message == NULL)
		return fail(error, "%s:%s has answered what was not asked: %s",
					example->host, example->port, line);
	example->messages[tag] = NULL;
	example->free_tags[example->nfree++] = tag;

	while (*reason == ' ')
		reason++;
	switch (line[0])
	{
		case '+':
			report(message, CQRS_BROKER_CONFIRMED, NULL);
			return true;
		case '-':
			report(message, CQRS_BROKER_REJECTED, reason);
			return true;
		case '!':
			report(message, CQRS_BROKER_REFUSED, reason);
			return true;
		default:
			return fail(error, "%s:%s has answered in another language: %s",
						example->host, example->port, line);
	}
}

/*
 * Hand over a message. It is ours again once it is settled.
 */
static bool
handle_message(Example *example, const char *line, size_t size, char *error)
{
	Received   *received;
	size_t		bytes;

	if (line[0] == '-')
		return fail(error, "%s:%s has no source \"%s\": %s", example->host,
					example->port, example->connection->source, line + 1);
	if (line[0] != '=' || !example_parse_message(line + 1, size - 1, &received))
		return fail(error, "%s:%s has sent what is no message: %s",
					example->host, example->port, line);
	if (received == NULL)
		return fail(error, "out of memory for a message of %s:%s",
					example->host, example->port);

	received->previous = example->last;
	if (example->last != NULL)
		example->last->next = received;
	else
		example->first = received;
	example->last = received;

	bytes = received->message.key_size + received->message.body_size;
	example->room--;
	example->room_bytes -= bytes < example->room_bytes ? bytes :
		example->room_bytes;
	example->connection->received(example->connection, &received->message);
	return true;
}

/*
 * Forget a message.
 */
static void
unlink_received(Example *example, Received *received)
{
	if (received->previous != NULL)
		received->previous->next = received->next;
	else
		example->first = received->next;
	if (received->next != NULL)
		received->next->previous = received->previous;
	else
		example->last = received->previous;
	free(received);
}

/*
 * A tag for a message that is to be sent; -1 if there is no memory. The core
 * lets no more than the window be on its way, so the array does not grow
 * without end.
 */
static int
take_tag(Example *example, CqrsBrokerMessage *message)
{
	int			tag;

	if (example->nfree == 0)
	{
		int			n = example->nmessages == 0 ? 64 : 2 * example->nmessages;
		CqrsBrokerMessage **messages;
		int		   *free_tags;

		messages = realloc(example->messages, n * sizeof(*messages));
		if (messages == NULL)
			return -1;
		example->messages = messages;
		free_tags = realloc(example->free_tags, n * sizeof(*free_tags));
		if (free_tags == NULL)
			return -1;
		example->free_tags = free_tags;
		while (example->nmessages < n)
		{
			messages[example->nmessages] = NULL;
			free_tags[example->nfree++] = example->nmessages++;
		}
	}
	tag = example->free_tags[--example->nfree];
	example->messages[tag] = message;
	return tag;
}
