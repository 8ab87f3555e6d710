/*-------------------------------------------------------------------------
 *
 * failure.c
 *	  A connection to RabbitMQ is lost, or it refuses something: why.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <string.h>

#include "client.h"

/*
 * The host that is tried first. It moves on when a connection was lost; else a
 * host that accepts connections and nothing else would always be tried. Shared
 * by the connections of a process, whose threads change it at will: any value
 * is right.
 */
static unsigned first_host = 0;

unsigned
rabbitmq_first_host(void)
{
	return __atomic_load_n(&first_host, __ATOMIC_RELAXED);
}

/*
 * The connection is lost: the next one may be to another host.
 */
void
rabbitmq_mark_lost(RabbitClient *client)
{
	if (!client->lost)
		__atomic_fetch_add(&first_host, 1, __ATOMIC_RELAXED);
	client->lost = true;
}

/*
 * The connection is lost, as a status of the library says: set error to why.
 * Returns false.
 */
bool
rabbitmq_lost(RabbitClient *client, int status, char *error)
{
	int			code = errno;

	rabbitmq_mark_lost(client);

	switch (status)
	{
		case AMQP_STATUS_CONNECTION_CLOSED:
		case AMQP_STATUS_SOCKET_CLOSED:
			return broker_error(error,
								"RabbitMQ at %s ended the connection without saying why",
								client->peer);
		case AMQP_STATUS_SOCKET_ERROR:
			return broker_error(error, "the connection to RabbitMQ at %s broke: %s",
								client->peer, rabbitmq_socket_error(code));
		case AMQP_STATUS_SSL_ERROR:
			return broker_error(error, "the connection to RabbitMQ at %s broke: %s",
								client->peer, rabbitmq_tls_reason());
		case AMQP_STATUS_HEARTBEAT_TIMEOUT:
			return broker_error(error,
								"RabbitMQ at %s does not answer: nothing came for %d seconds, twice the heartbeat",
								client->peer,
								2 * amqp_get_heartbeat(client->amqp));
		case AMQP_STATUS_BAD_AMQP_DATA:
		case AMQP_STATUS_UNKNOWN_CLASS:
		case AMQP_STATUS_UNKNOWN_METHOD:
		case AMQP_STATUS_WRONG_METHOD:
			return broker_error(error, "what answers at %s does not speak AMQP 0-9-1",
								client->peer);
		default:
			return broker_error(error, "the connection to RabbitMQ at %s failed: %s",
								client->peer, amqp_error_string2(status));
	}
}

/*
 * Set error to what the broker replied instead of what was asked for. Returns
 * false.
 */
bool
rabbitmq_replied(RabbitClient *client, amqp_rpc_reply_t reply, char *error)
{
	char		reply_text[RABBITMQ_TEXT_SIZE] = "";

	if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
	{
		if (reply.library_error == AMQP_STATUS_TIMEOUT)
			return broker_error(error,
								"RabbitMQ at %s accepts connections, but did not answer within %d seconds",
								client->peer, client->connect_timeout);
		return rabbitmq_lost(client, reply.library_error, error);
	}

	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
		reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
		rabbitmq_text(((amqp_connection_close_t *) reply.reply.decoded)->reply_text,
					  reply_text);
	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
		reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD)
		rabbitmq_text(((amqp_channel_close_t *) reply.reply.decoded)->reply_text,
					  reply_text);
	return broker_error(error, "RabbitMQ at %s refused to open a channel: %s",
						client->peer, reply_text);
}

/*
 * The broker does not keep to the protocol: set error to how. Returns false.
 */
bool
rabbitmq_violated(RabbitClient *client, const char *what, char *error)
{
	return broker_error(error,
						"what answers at %s does not keep to AMQP 0-9-1: it sent %s",
						client->peer, what);
}

/*
 * Copy what the broker says, at most 255 bytes, to buffer, an array of
 * RABBITMQ_TEXT_SIZE bytes.
 */
void
rabbitmq_text(amqp_bytes_t bytes, char *buffer)
{
	size_t		length = bytes.len;

	if (length > RABBITMQ_TEXT_SIZE - 1)
		length = RABBITMQ_TEXT_SIZE - 1;
	if (length > 0)
		memcpy(buffer, bytes.bytes, length);
	buffer[length] = '\0';
}

/*
 * What a call to a socket failed with.
 */
const char *
rabbitmq_socket_error(int code)
{
	switch (code)
	{
		case ECONNREFUSED:
			return "connection refused; nothing listens there";
		case ECONNRESET:
		case EPIPE:
			return "the other side reset it";
		case ETIMEDOUT:
		case EINPROGRESS:
			return "the network does not answer";
		case EHOSTUNREACH:
		case ENETUNREACH:
		case ENETDOWN:
			return "no route to the host";
		case EACCES:
		case EPERM:
			return "a firewall does not permit it";
		case EMFILE:
		case ENFILE:
			return "too many open files";
		default:
			return "an error of the network";
	}
}
