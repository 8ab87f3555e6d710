/*-------------------------------------------------------------------------
 *
 * client.c
 *	  A client of RabbitMQ, as a module of cqrs_outbox: its callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "client.h"

static bool client_check(const CqrsBrokerConnection *connection, char *error);
static void *client_startup(const CqrsBrokerConnection *connection,
							char *error);
static bool client_publish(void *state, CqrsBrokerMessage *const *messages,
						   int n, char *error);
static bool client_poll(void *state, char *error);
static int	client_fd(void *state);
static void client_shutdown(void *state);
static bool client_assign(void *state, const CqrsBrokerPosition *positions,
						  int n, char *error);
static bool client_receive(void *state, int most, size_t bytes, char *error);
static bool client_settle(void *state, CqrsBrokerReceived *const *messages,
						  int n, char *error);
static const char *option_or(const CqrsBrokerConnection *connection,
							 const char *name, const char *otherwise);

const CqrsBrokerModule rabbitmq_module = {
	.magic = CQRS_BROKER_MAGIC,
	.version = CQRS_BROKER_VERSION,
	.name = "RabbitMQ",
	.cloudevents_prefix = "cloudEvents_",
	.tombstones = false,
	.window = RABBITMQ_WINDOW,
	.check = client_check,
	.startup = client_startup,
	.publish = client_publish,
	.poll = client_poll,
	.fd = client_fd,
	.shutdown = client_shutdown,
	.keeps_offsets = false,
	.assign = client_assign,
	.receive = client_receive,
	.settle = client_settle
};

/*
 * Callback check(): checks that need both server and user mapping.
 */
static bool
client_check(const CqrsBrokerConnection *connection, char *error)
{
	static const char *const required[] = {"username", "password"};
	static const char *const tls_only[] = {
		"tls_verify", "tls_ca_file", "tls_cert_file", "tls_key_file"
	};
	const char *source = connection->source;
	size_t		i;

	/* No name would stand for the last queue that was declared. */
	if (source != NULL &&
		(source[0] == '\0' || strlen(source) > RABBITMQ_SHORT_MAX))
		return broker_error(error,
							"the name of a queue must have 1 to %d bytes",
							RABBITMQ_SHORT_MAX);
	for (i = 0; i < sizeof(required) / sizeof(required[0]); i++)
	{
		if (broker_option(connection, required[i]) == NULL)
			return broker_error(error,
								"the user mapping has no option \"%s\"",
								required[i]);
	}
	for (i = 0; i < sizeof(tls_only) / sizeof(tls_only[0]); i++)
	{
		if (broker_option(connection, tls_only[i]) != NULL &&
			!broker_option_bool(connection, "tls", false))
			return broker_error(error,
								"the server has option \"%s\", but not \"tls\"",
								tls_only[i]);
	}
	if ((broker_option(connection, "tls_cert_file") == NULL) !=
		(broker_option(connection, "tls_key_file") == NULL))
		return broker_error(error,
							"the server must have both options \"tls_cert_file\" and \"tls_key_file\", or none");
	return true;
}

/*
 * Callback startup().
 */
static void *
client_startup(const CqrsBrokerConnection *connection, char *error)
{
	RabbitClient *client = calloc(1, sizeof(RabbitClient));

	if (client == NULL)
	{
		broker_error(error, "out of memory");
		return NULL;
	}
	client->connection = connection;
	client->vhost = option_or(connection, "vhost", AMQP_DEFAULT_VHOST);
	client->exchange = option_or(connection, "exchange", "");
	client->routing_key = option_or(connection, "routing_key", "{topic}");
	client->mandatory = broker_option_bool(connection, "mandatory", true);
	client->persistent = broker_option_bool(connection, "persistent", true);
	client->heartbeat = broker_option_int(connection, "heartbeat", 10);
	client->connect_timeout = broker_option_int(connection,
												"connect_timeout", 10);
	client->frame_max = broker_option_int(connection, "frame_max",
										  AMQP_DEFAULT_FRAME_SIZE);
	client->oldest = client->unsent = client->next = 1;

	if (!rabbitmq_connect(client, error))
	{
		client_shutdown(client);
		return NULL;
	}
	return client;
}

/*
 * Callback publish(). While the broker blocks, messages are only kept.
 */
static bool
client_publish(void *state, CqrsBrokerMessage *const *messages, int n,
			   char *error)
{
	RabbitClient *client = state;
	int			i;

	for (i = 0; i < n; i++)
	{
		if (!rabbitmq_accept(client, messages[i], error))
			return false;
	}
	return rabbitmq_send(client, error);
}

/*
 * Callback poll().
 */
static bool
client_poll(void *state, char *error)
{
	RabbitClient *client = state;

	/*
	 * The socket does not show what the library read while it was sending, so
	 * go on until there is nothing.
	 */
	do
	{
		if (!rabbitmq_receive(client, error) ||
			!rabbitmq_send(client, error))
			return false;
	} while (amqp_frames_enqueued(client->amqp) ||
			 amqp_data_in_buffer(client->amqp));

	if (client->blocked)
		broker_error(error, "RabbitMQ at %s accepts no messages at present: %s",
					 client->peer, client->blocked_reason);
	return true;
}

/*
 * Callback fd().
 */
static int
client_fd(void *state)
{
	RabbitClient *client = state;

	return amqp_get_sockfd(client->amqp);
}

/*
 * Callback shutdown().
 */
static void
client_shutdown(void *state)
{
	RabbitClient *client = state;

	rabbitmq_disconnect(client);
	rabbitmq_free_deliveries(client);
	free(client->ring);
	free(client->headers);
	free(client);
}

/*
 * Callback assign(). A queue has no partitions, so that it is consumed, or not.
 */
static bool
client_assign(void *state, const CqrsBrokerPosition *positions, int n,
			  char *error)
{
	return n == 0 || rabbitmq_consume(state, error);
}

/*
 * Callback receive().
 */
static bool
client_receive(void *state, int most, size_t bytes, char *error)
{
	RabbitClient *client = state;

	client->room_messages = most;
	client->room_bytes = bytes;
	return rabbitmq_receive(client, error);
}

/*
 * Callback settle().
 */
static bool
client_settle(void *state, CqrsBrokerReceived *const *messages, int n,
			  char *error)
{
	return rabbitmq_settle(state, messages, n, error);
}

/*
 * The value of an option; otherwise, if it is not set.
 */
static const char *
option_or(const CqrsBrokerConnection *connection, const char *name,
		  const char *otherwise)
{
	const char *value = broker_option(connection, name);

	return value != NULL ? value : otherwise;
}
