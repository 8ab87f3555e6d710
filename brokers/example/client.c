/*-------------------------------------------------------------------------
 *
 * client.c
 *	  What speaks to the peer: events as lines of JSON, over TCP.
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
#define DEFAULT_TIMEOUT	"10"

/* Send when there is this much, in bytes. */
#define FLUSH_SIZE		65536

/* A line of the peer is shorter. */
#define LINE_SIZE		1024

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

	Buffer		out;
	char		in[LINE_SIZE];
	size_t		in_used;
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
static bool handle_line(Example *example, char *line, char *error);
static bool handle_outcome(Example *example, char *line, char *error);
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
	.shutdown = example_shutdown
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
 * The messages that are not reported are the core's business: it publishes
 * them again.
 */
static void
example_shutdown(void *state)
{
	Example    *example = state;

	if (example->socket >= 0)
		close(example->socket);
	free(example->messages);
	free(example->free_tags);
	free(example->out.data);
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
 * Send all that is to be sent. While the peer does not read on, its answers are
 * read: it may wait for that, and both of us would wait for ever.
 */
static bool
flush(Example *example, char *error)
{
	Buffer	   *out = &example->out;

	if (out->failed)
		return fail(error, "out of memory");
	while (out->sent < out->used)
	{
		/* The process is not to get a SIGPIPE, which would be the server's. */
		ssize_t		n = send(example->socket, out->data + out->sent,
							 out->used - out->sent, MSG_NOSIGNAL);

		if (n >= 0)
			out->sent += n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
		{
			if (!wait_for(example, POLLIN | POLLOUT, error) ||
				!receive(example, error))
				return false;
		}
		else if (errno != EINTR)
			return fail(error, "could not send to %s:%s: %s", example->host,
						example->port, strerror(errno));
	}
	out->used = out->sent = 0;
	return true;
}

/*
 * Read and handle what the peer has sent so far.
 */
static bool
receive(Example *example, char *error)
{
	for (;;)
	{
		ssize_t		n = recv(example->socket, example->in + example->in_used,
							 LINE_SIZE - example->in_used, 0);
		char	   *line = example->in;
		char	   *end;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return true;
		if (n < 0)
			return fail(error, "could not receive from %s:%s: %s",
						example->host, example->port, strerror(errno));
		if (n == 0)
			return fail(error, "%s:%s has closed the connection",
						example->host, example->port);

		example->in_used += n;
		while ((end = memchr(line, '\n',
							 example->in + example->in_used - line)) != NULL)
		{
			*end = '\0';
			if (!handle_line(example, line, error))
				return false;
			line = end + 1;
		}
		example->in_used -= line - example->in;
		memmove(example->in, line, example->in_used);
		if (example->in_used == LINE_SIZE)
			return fail(error, "%s:%s has sent too long a line",
						example->host, example->port);
	}
}

static bool
handle_line(Example *example, char *line, char *error)
{
	if (line[0] == '~')
	{
		strcpy(example->busy, line + 1);
		return true;
	}
	if (example->welcome)
		return handle_outcome(example, line, error);
	if (line[0] != '+')
		return fail(error, "%s:%s does not accept us: %s", example->host,
					example->port, line[0] == '-' ? line + 1 : line);
	example->welcome = true;
	return true;
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
