/*-------------------------------------------------------------------------
 *
 * connect.c
 *	  To RabbitMQ and away from it, and why it cannot be reached.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "client.h"

#define PORT			5672
#define PORT_TLS		5671

/* Time to say goodbye; less than the core waits for shutdown(). */
#define CLOSE_TIMEOUT_US	250000

static const char *next_host(const char *list, char *host, int *port);
static bool connect_host(RabbitClient *client, const char *host, int port,
						 char *error);
static bool open_socket(RabbitClient *client, const char *host, int port,
						char *error);
static bool open_channel(RabbitClient *client, char *error);
static void why_unreachable(const char *host, int port, char *reason);

/*
 * Check of option host: "host", "host:port" or "[IPv6 address]:port", several
 * of them with commas between.
 */
bool
rabbitmq_hosts_check(const char *value, char *error)
{
	char		host[RABBITMQ_HOST_SIZE];
	int			port;

	do
	{
		value = next_host(value, host, &port);
		if (value == NULL)
			return broker_error(error,
								"It must be a list of \"host\" or \"host:port\", separated by commas.");
	} while (*value != '\0');
	return true;
}

/*
 * Check of option port.
 */
bool
rabbitmq_port_check(const char *value, char *error)
{
	return broker_check_int(value, 1, 65535, error);
}

/*
 * Connect to the first host that lets us, beginning with another one after a
 * connection was lost.
 */
bool
rabbitmq_connect(RabbitClient *client, char *error)
{
	const char *list = broker_option(client->connection, "host");
	bool		tls = broker_option_bool(client->connection, "tls", false);
	int			default_port = broker_option_int(client->connection, "port",
												 tls ? PORT_TLS : PORT);
	unsigned	first = rabbitmq_first_host();
	unsigned	count = 0;
	unsigned	i;
	const char *rest;
	char		host[RABBITMQ_HOST_SIZE];
	int			port;
	char		all[CQRS_BROKER_ERROR_SIZE] = "";

	if (list == NULL)
		list = "localhost";
	for (rest = list; *rest != '\0'; count++)
	{
		rest = next_host(rest, host, &port);
		if (rest == NULL)
			return broker_error(error, "option \"host\" of the server is not a list of hosts");
	}

	for (i = 0; i < count; i++)
	{
		unsigned	skip = (first + i) % count;
		size_t		length = strlen(all);

		for (rest = list; skip > 0; skip--)
			rest = next_host(rest, host, &port);
		next_host(rest, host, &port);
		if (connect_host(client, host, port != 0 ? port : default_port, error))
			return true;
		snprintf(all + length, sizeof(all) - length, "%s%s",
				 length > 0 ? "; " : "", error);
	}
	return broker_error(error, "%s", all);
}

/*
 * End the connection, if there is one.
 */
void
rabbitmq_disconnect(RabbitClient *client)
{
	struct pollfd pollfd = {.events = POLLOUT};

	if (client->amqp == NULL)
		return;

	/*
	 * A broker that is told so does not log that the connection broke. But it
	 * is not worth waiting for one that does not read.
	 */
	pollfd.fd = amqp_get_sockfd(client->amqp);
	if (!client->lost && !client->blocked && pollfd.fd >= 0 &&
		poll(&pollfd, 1, 0) == 1 && pollfd.revents == POLLOUT)
	{
		struct timeval timeout = {.tv_usec = CLOSE_TIMEOUT_US};

		amqp_set_rpc_timeout(client->amqp, &timeout);
		amqp_connection_close(client->amqp, AMQP_REPLY_SUCCESS);
	}
	amqp_destroy_connection(client->amqp);
	client->amqp = NULL;
}

/*
 * The first host of a list, in an array of RABBITMQ_HOST_SIZE bytes, and its
 * port, 0 if it has none. Returns the rest of the list, NULL if there is no
 * host.
 */
static const char *
next_host(const char *list, char *host, int *port)
{
	size_t		length;
	const char *end;

	list += strspn(list, " ");
	if (*list == '[')
	{
		list++;
		length = strcspn(list, "],");
		if (list[length] != ']')
			return NULL;
		end = list + length + 1;
	}
	else
	{
		length = strcspn(list, ":, ");
		end = list + length;
	}
	if (length == 0 || length >= RABBITMQ_HOST_SIZE)
		return NULL;
	memcpy(host, list, length);
	host[length] = '\0';

	*port = 0;
	if (*end == ':')
	{
		char	   *after;
		long		value = strtol(end + 1, &after, 10);

		if (after == end + 1 || value < 1 || value > 65535)
			return NULL;
		*port = (int) value;
		end = after;
	}
	end += strspn(end, " ");
	if (*end == '\0')
		return end;
	if (*end != ',' || end[1 + strspn(end + 1, " ")] == '\0')
		return NULL;
	return end + 1;
}

/*
 * Connect to one host, so that messages can be published, or consumed.
 */
static bool
connect_host(RabbitClient *client, const char *host, int port, char *error)
{
	snprintf(client->peer, sizeof(client->peer),
			 strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d", host, port);
	client->tls_problem[0] = '\0';
	client->lost = false;

	client->amqp = amqp_new_connection();
	if (client->amqp == NULL)
		return broker_error(error, "out of memory");
	if (open_socket(client, host, port, error) &&
		rabbitmq_log_in(client, error) &&
		open_channel(client, error))
		return true;

	client->lost = true;		/* no goodbye */
	rabbitmq_disconnect(client);
	return false;
}

/*
 * Open a socket to a host, and do the TLS handshake if TLS is used.
 */
static bool
open_socket(RabbitClient *client, const char *host, int port, char *error)
{
	struct timeval timeout = {.tv_sec = client->connect_timeout};
	amqp_socket_t *socket;
	char		reason[RABBITMQ_TEXT_SIZE];
	int			status;

	if (broker_option_bool(client->connection, "tls", false))
	{
		socket = rabbitmq_tls_socket(client, host, error);
		if (socket == NULL)
			return false;
	}
	else
	{
		socket = amqp_tcp_socket_new(client->amqp);
		if (socket == NULL)
			return broker_error(error, "out of memory");
	}

	status = amqp_socket_open_noblock(socket, host, port, &timeout);
	switch (status)
	{
		case AMQP_STATUS_OK:
			return true;
		case AMQP_STATUS_HOSTNAME_RESOLUTION_FAILED:
		case AMQP_STATUS_SOCKET_ERROR:
			why_unreachable(host, port, reason);
			return broker_error(error, "could not connect to RabbitMQ at %s: %s",
								client->peer, reason);
		case AMQP_STATUS_TIMEOUT:
			return broker_error(error,
								"could not connect to RabbitMQ at %s: no answer within %d seconds",
								client->peer, client->connect_timeout);
		case AMQP_STATUS_SSL_CONNECTION_FAILED:
		case AMQP_STATUS_SSL_PEER_VERIFY_FAILED:
			if (client->tls_problem[0] != '\0')
				return broker_error(error,
									"the certificate of RabbitMQ at %s is not trusted: %s",
									client->peer, client->tls_problem);
			return broker_error(error,
								"could not agree on TLS with RabbitMQ at %s: %s",
								client->peer, rabbitmq_tls_reason());
		default:
			return rabbitmq_lost(client, status, error);
	}
}

/*
 * Open the channel, for a queue that can be consumed, or to have what is
 * published confirmed.
 */
static bool
open_channel(RabbitClient *client, char *error)
{
	errno = 0;
	if (amqp_channel_open(client->amqp, RABBITMQ_CHANNEL) == NULL ||
		(client->connection->source == NULL &&
		 amqp_confirm_select(client->amqp, RABBITMQ_CHANNEL) == NULL))
		return rabbitmq_replied(client, amqp_get_rpc_reply(client->amqp), error);
	return client->connection->source == NULL ||
		rabbitmq_find_queue(client, error);
}

/*
 * Why could the library not connect? It does not say, so look again, with the
 * same calls. Sets reason, an array of RABBITMQ_TEXT_SIZE bytes.
 *
 * The texts are ours: the C library's would be in the server's language and
 * encoding.
 */
static void
why_unreachable(const char *host, int port, char *reason)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *addresses;
	struct addrinfo *address;
	char		service[16];
	const char *why = "no address";
	int			status;

	snprintf(service, sizeof(service), "%d", port);
	status = getaddrinfo(host, service, &hints, &addresses);
	if (status != 0)
	{
		snprintf(reason, RABBITMQ_TEXT_SIZE, "%s",
				 status == EAI_AGAIN ? "the name server does not answer" :
				 "there is no host of this name");
		return;
	}
	for (address = addresses; address != NULL; address = address->ai_next)
	{
		int			fd = socket(address->ai_family, address->ai_socktype,
								address->ai_protocol);
		struct timeval timeout = {.tv_sec = 1};

		if (fd < 0 ||
			setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO,
					   &timeout, sizeof(timeout)) != 0 ||
			connect(fd, address->ai_addr, address->ai_addrlen) != 0)
			why = rabbitmq_socket_error(errno);
		else
			why = "it was not reachable";	/* and is again */
		if (fd >= 0)
			close(fd);
	}
	freeaddrinfo(addresses);
	snprintf(reason, RABBITMQ_TEXT_SIZE, "%s", why);
}
