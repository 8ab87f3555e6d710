/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  Messages to RabbitMQ, and what it says of them.
 *
 * Protocol
 *
 * The channel numbers what is published on it, from 1, and confirms by number:
 * basic.ack, that it has the message durably (in all queues that it was routed
 * to), basic.nack, that it has not; each for one message, or for all up to it.
 * A message that cannot be routed comes back whole (basic.return), with its
 * properties, but without its number, and is acknowledged afterwards. By then it
 * is reported, and its place in the ring is empty.
 *
 * Anything that the broker does not like at all makes it close the channel,
 * and all that is unconfirmed on it is lost. If it was a message's fault, it
 * would be the same on the next connection, and for ever. So that message must
 * be found and reported before the connection is given up.
 *
 * While the broker blocks, sending may block in the library for as long as
 * heartbeats come. So we look at the socket before it could.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

/*
 * How much is sent without a look at the socket, in bytes. A socket that can be
 * written to has room for more than this.
 */
#define UNPOLLED_MAX	32768

/* A size that no fixed part of a frame with properties reaches, in bytes. */
#define PROPERTIES_SIZE 1024

static bool refuse(CqrsBrokerMessage *message, const RabbitClient *client,
				   char *reason);
static bool grow(RabbitClient *client, char *error);
static bool wait_writable(RabbitClient *client, char *error);
static int	send_message(RabbitClient *client, const CqrsBrokerMessage *message);
static bool confirmed(RabbitClient *client, uint64_t tag, bool multiple,
					  CqrsBrokerOutcome outcome, char *error);
static void report(RabbitClient *client, uint64_t tag,
				   CqrsBrokerOutcome outcome, const char *error);
static void returned(RabbitClient *client, amqp_bytes_t message_id);
static bool channel_closed(RabbitClient *client,
						   const amqp_channel_close_t *close, char *error);
static void blame_messages(RabbitClient *client, int code, const char *text);
static bool is_template(const char *template);

/*
 * Take a message to be sent by rabbitmq_send(). One that RabbitMQ would close
 * the channel for is refused instead. False if memory is short.
 */
bool
rabbitmq_accept(RabbitClient *client, CqrsBrokerMessage *message, char *error)
{
	char		reason[CQRS_BROKER_ERROR_SIZE] = "";

	if (refuse(message, client, reason))
	{
		client->connection->report(message, CQRS_BROKER_REFUSED, reason);
		return true;
	}
	if (client->next - client->oldest >= client->ring_size &&
		!grow(client, error))
		return false;
	client->ring[client->next++ & (client->ring_size - 1)] = message;
	return true;
}

/*
 * Send what was accepted, as far as the broker lets us. False if the connection
 * is lost.
 */
bool
rabbitmq_send(RabbitClient *client, char *error)
{
	while (client->unsent < client->next)
	{
		const CqrsBrokerMessage *message =
		client->ring[client->unsent & (client->ring_size - 1)];
		int			status;

		if (client->unpolled > UNPOLLED_MAX &&
			!wait_writable(client, error))
			return false;
		if (client->blocked)
			break;

		errno = 0;
		status = send_message(client, message);
		if (status != AMQP_STATUS_OK)
		{
			/* The broker may have said why. */
			if (status != AMQP_STATUS_HEARTBEAT_TIMEOUT &&
				!rabbitmq_receive(client, error))
				return false;
			return rabbitmq_lost(client, status, error);
		}
		client->unpolled += PROPERTIES_SIZE + message->body_size;
		client->unsent++;
	}
	return true;
}

/*
 * Is there something in a message that RabbitMQ could not take? If so, sets
 * reason.
 */
static bool
refuse(CqrsBrokerMessage *message, const RabbitClient *client, char *reason)
{
	size_t		exchange;
	size_t		routing_key;
	size_t		size = PROPERTIES_SIZE;
	int			i;

	exchange = broker_template_expand(client->exchange, message, NULL, 0);
	routing_key = broker_template_expand(client->routing_key, message, NULL, 0);
	if (exchange > RABBITMQ_SHORT_MAX || routing_key > RABBITMQ_SHORT_MAX)
		return !broker_error(reason,
							 "the message's %s has %zu bytes; RabbitMQ allows %d",
							 exchange > RABBITMQ_SHORT_MAX ? "exchange" : "routing key",
							 exchange > RABBITMQ_SHORT_MAX ? exchange : routing_key,
							 RABBITMQ_SHORT_MAX);

	for (i = 0; i < message->nheaders; i++)
	{
		const char *name = message->headers[i].name;

		if (strlen(name) > RABBITMQ_SHORT_MAX)
			return !broker_error(reason,
								 "the name of a header has %zu bytes; RabbitMQ allows %d",
								 strlen(name), RABBITMQ_SHORT_MAX);

		/* Lists of further routing keys: not an emitter's to choose. */
		if (strcmp(name, "CC") == 0 || strcmp(name, "BCC") == 0)
			return !broker_error(reason,
								 "the event has a header \"%s\", by which RabbitMQ would route it",
								 name);
		size += strlen(name) + strlen(message->headers[i].value) + 6;
	}
	if (size > (size_t) amqp_get_frame_max(client->amqp))
		return !broker_error(reason,
							 "the headers of the message have %zu bytes, but must fit into a frame of RabbitMQ, %d",
							 size - PROPERTIES_SIZE,
							 amqp_get_frame_max(client->amqp));
	return false;
}

/*
 * Double the ring. Beyond the window it grows when a message is confirmed much
 * later than those after it.
 */
static bool
grow(RabbitClient *client, char *error)
{
	uint64_t	size = client->ring_size > 0 ? client->ring_size * 2 : 1024;
	CqrsBrokerMessage **ring = malloc(size * sizeof(CqrsBrokerMessage *));
	uint64_t	tag;

	if (ring == NULL)
		return broker_error(error, "out of memory");
	for (tag = client->oldest; tag < client->next; tag++)
		ring[tag & (size - 1)] = client->ring[tag & (client->ring_size - 1)];
	free(client->ring);
	client->ring = ring;
	client->ring_size = size;
	return true;
}

/*
 * Wait until the socket takes more, or the broker says that it blocks. What
 * comes meanwhile is handled. False if the connection is lost, so it does not
 * wait longer than heartbeats allow.
 */
static bool
wait_writable(RabbitClient *client, char *error)
{
	while (!client->blocked)
	{
		struct pollfd pollfd = {
			.fd = amqp_get_sockfd(client->amqp),
			.events = POLLIN | POLLOUT
		};

		if (poll(&pollfd, 1, 1000) < 0 && errno != EINTR)
			return rabbitmq_lost(client, AMQP_STATUS_SOCKET_ERROR, error);
		if (pollfd.revents != POLLOUT && !rabbitmq_receive(client, error))
			return false;
		if ((pollfd.revents & POLLOUT) != 0)
			break;
	}
	client->unpolled = 0;
	return true;
}

/*
 * Send one message. Returns a status of the library.
 */
static int
send_message(RabbitClient *client, const CqrsBrokerMessage *message)
{
	char		exchange[RABBITMQ_SHORT_MAX + 1];
	char		routing_key[RABBITMQ_SHORT_MAX + 1];
	amqp_basic_properties_t properties = {
		._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG |
		AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG |
		AMQP_BASIC_HEADERS_FLAG,
		.delivery_mode = client->persistent ? AMQP_DELIVERY_PERSISTENT :
		AMQP_DELIVERY_NONPERSISTENT,
		.message_id = amqp_cstring_bytes(message->message_id),
		.timestamp = message->timestamp / 1000000,
		.type = amqp_cstring_bytes(message->event_name)
	};
	amqp_bytes_t body = {
		.len = message->body_size,
		.bytes = (void *) message->body
	};
	int			i;

	if (message->content_type != NULL)
	{
		properties._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;
		properties.content_type = amqp_cstring_bytes(message->content_type);
	}
	if (message->nheaders > client->headers_size)
	{
		amqp_table_entry_t *headers;

		headers = realloc(client->headers,
						  message->nheaders * sizeof(amqp_table_entry_t));
		if (headers == NULL)
			return AMQP_STATUS_NO_MEMORY;
		client->headers = headers;
		client->headers_size = message->nheaders;
	}
	for (i = 0; i < message->nheaders; i++)
	{
		amqp_table_entry_t *entry = &client->headers[i];

		entry->key = amqp_cstring_bytes(message->headers[i].name);
		entry->value.kind = AMQP_FIELD_KIND_UTF8;
		entry->value.value.bytes = amqp_cstring_bytes(message->headers[i].value);
	}
	properties.headers.num_entries = message->nheaders;
	properties.headers.entries = client->headers;

	broker_template_expand(client->exchange, message,
						   exchange, sizeof(exchange));
	broker_template_expand(client->routing_key, message,
						   routing_key, sizeof(routing_key));
	return amqp_basic_publish(client->amqp, RABBITMQ_CHANNEL,
							  amqp_cstring_bytes(exchange),
							  amqp_cstring_bytes(routing_key),
							  client->mandatory, 0, &properties, body);
}

/*
 * What the broker says of the channel, and of messages on it.
 */
bool
rabbitmq_publish_method(RabbitClient *client, const amqp_method_t *method,
						char *error)
{
	switch (method->id)
	{
		case AMQP_BASIC_ACK_METHOD:
			{
				amqp_basic_ack_t *ack = method->decoded;

				return confirmed(client, ack->delivery_tag, ack->multiple,
								 CQRS_BROKER_CONFIRMED, error);
			}
		case AMQP_BASIC_NACK_METHOD:
			{
				amqp_basic_nack_t *nack = method->decoded;

				return confirmed(client, nack->delivery_tag, nack->multiple,
								 CQRS_BROKER_REJECTED, error);
			}
		case AMQP_BASIC_RETURN_METHOD:
			{
				amqp_basic_return_t *message = method->decoded;

				client->expected = EXPECT_HEADER;
				client->return_code = message->reply_code;
				rabbitmq_text(message->reply_text, client->return_text);
				return true;
			}
		case AMQP_CHANNEL_CLOSE_METHOD:
			return channel_closed(client, method->decoded, error);
		default:
			return rabbitmq_violated(client, "another method of the channel",
									 error);
	}
}

/*
 * The properties of a message that comes back.
 */
void
rabbitmq_publish_header(RabbitClient *client,
						const amqp_basic_properties_t *properties)
{
	if ((properties->_flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0)
		returned(client, properties->message_id);
}

/*
 * The broker confirmed a message, or all up to it; 0 stands for all. False if
 * it was never sent.
 */
static bool
confirmed(RabbitClient *client, uint64_t tag, bool multiple,
		  CqrsBrokerOutcome outcome, char *error)
{
	char		reason[CQRS_BROKER_ERROR_SIZE] = "";
	uint64_t	first = tag;

	if (tag >= client->unsent || (tag == 0 && !multiple))
		return rabbitmq_violated(client, "a confirm of what was not published", error);
	if (outcome == CQRS_BROKER_REJECTED)
		broker_error(reason,
					 "RabbitMQ at %s did not take the message (basic.nack); a queue may be full",
					 client->peer);
	if (multiple)
	{
		first = client->oldest;
		if (tag == 0)
			tag = client->unsent - 1;
	}
	for (; first <= tag; first++)
		report(client, first, outcome, reason);
	return true;
}

/*
 * Report a message, unless it was.
 */
static void
report(RabbitClient *client, uint64_t tag, CqrsBrokerOutcome outcome,
	   const char *error)
{
	CqrsBrokerMessage **place;

	if (tag < client->oldest || tag >= client->unsent)
		return;
	place = &client->ring[tag & (client->ring_size - 1)];
	if (*place != NULL)
		client->connection->report(*place, outcome,
								   outcome != CQRS_BROKER_CONFIRMED ? error : NULL);
	*place = NULL;
	while (client->oldest < client->unsent &&
		   client->ring[client->oldest & (client->ring_size - 1)] == NULL)
		client->oldest++;
}

/*
 * The message with this id comes back.
 */
static void
returned(RabbitClient *client, amqp_bytes_t message_id)
{
	uint64_t	count = client->unsent - client->oldest;
	uint64_t	tag = client->return_hint;
	char		exchange[RABBITMQ_SHORT_MAX + 1];
	char		routing_key[RABBITMQ_SHORT_MAX + 1];
	char		error[CQRS_BROKER_ERROR_SIZE] = "";
	CqrsBrokerMessage *message;

	/*
	 * They come back in the order in which they were published: so it is most
	 * likely one of the next after the last.
	 */
	for (;; tag++)
	{
		if (count-- == 0)
			return;
		if (tag < client->oldest || tag >= client->unsent)
			tag = client->oldest;
		message = client->ring[tag & (client->ring_size - 1)];
		if (message != NULL &&
			message_id.len == strlen(message->message_id) &&
			memcmp(message_id.bytes, message->message_id, message_id.len) == 0)
			break;
	}
	client->return_hint = tag + 1;

	broker_template_expand(client->exchange, message,
						   exchange, sizeof(exchange));
	broker_template_expand(client->routing_key, message,
						   routing_key, sizeof(routing_key));
	if (client->return_code == AMQP_NO_ROUTE && exchange[0] == '\0')
		broker_error(error,
					 "queue \"%s\" does not exist in vhost \"%s\" of RabbitMQ at %s (%s)",
					 routing_key, client->vhost, client->peer,
					 client->return_text);
	else if (client->return_code == AMQP_NO_ROUTE)
		broker_error(error,
					 "no queue is bound to exchange \"%s\" for routing key \"%s\" in vhost \"%s\" of RabbitMQ at %s (%s)",
					 exchange, routing_key, client->vhost, client->peer,
					 client->return_text);
	else
		broker_error(error, "RabbitMQ at %s returned the message: %s (%d)",
					 client->peer, client->return_text, client->return_code);
	report(client, tag, CQRS_BROKER_REJECTED, error);
}

/*
 * The broker closed the channel: set error to why. Returns false.
 */
static bool
channel_closed(RabbitClient *client, const amqp_channel_close_t *close,
			   char *error)
{
	char		reply_text[RABBITMQ_TEXT_SIZE];

	rabbitmq_text(close->reply_text, reply_text);
	blame_messages(client, close->reply_code, reply_text);

	if (close->reply_code == AMQP_NOT_FOUND && !is_template(client->exchange))
		return broker_error(error,
							"exchange \"%s\" does not exist in vhost \"%s\" of RabbitMQ at %s (%s)",
							client->exchange, client->vhost, client->peer,
							reply_text);
	if (close->reply_code == AMQP_ACCESS_REFUSED)
		return broker_error(error,
							"the user of the user mapping may not publish to RabbitMQ at %s: %s",
							client->peer, reply_text);
	return broker_error(error, "RabbitMQ at %s closed the channel: %s",
						client->peer, reply_text);
}

/*
 * The broker closed the channel: if messages were at fault, report them. The
 * broker does not say which one it was; but others that it would treat in the
 * same way are no better.
 */
static void
blame_messages(RabbitClient *client, int code, const char *text)
{
	const char *size = strstr(text, "message size ");
	const char *max = strstr(text, " max size ");
	char		error[CQRS_BROKER_ERROR_SIZE] = "";
	uint64_t	unsent = client->unsent;
	uint64_t	tag;

	broker_error(error, "RabbitMQ at %s did not take the message: %s",
				 client->peer, text);
	for (tag = client->oldest; tag < unsent; tag++)
	{
		const CqrsBrokerMessage *message =
		client->ring[tag & (client->ring_size - 1)];

		if (message == NULL)
			continue;
		if (code == AMQP_PRECONDITION_FAILED && size != NULL && max != NULL)
		{
			if (message->body_size > strtoull(max + strlen(" max size "), NULL, 10))
				report(client, tag, CQRS_BROKER_REFUSED, error);
		}
		else if ((code == AMQP_NOT_FOUND || code == AMQP_ACCESS_REFUSED) &&
				 is_template(client->exchange))
		{
			char		exchange[RABBITMQ_SHORT_MAX + 3] = "'";

			/* It has the name of the exchange in quotes. */
			broker_template_expand(client->exchange, message, exchange + 1,
								   RABBITMQ_SHORT_MAX + 1);
			strcat(exchange, "'");
			if (strstr(text, exchange) != NULL)
				report(client, tag, CQRS_BROKER_REJECTED, error);
		}
	}
}

/*
 * Does a template have fields, so that it is not the same for all messages?
 */
static bool
is_template(const char *template)
{
	const CqrsBrokerMessage one = {.topic = "1",.event_name = "1",.key = "1"};
	const CqrsBrokerMessage two = {.topic = "",.event_name = "",.key = ""};

	return broker_template_expand(template, &one, NULL, 0) !=
		broker_template_expand(template, &two, NULL, 0);
}
