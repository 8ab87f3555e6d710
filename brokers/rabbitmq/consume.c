/*-------------------------------------------------------------------------
 *
 * consume.c
 *	  Messages from a queue of RabbitMQ, and their acknowledgement.
 *
 * Protocol
 *
 * The broker sends messages until as many as we said (basic.qos) are not
 * acknowledged. The channel numbers them, from 1; that number is what is
 * acknowledged, alone or with all before it. It means nothing on another
 * channel. So there is one channel for the connection's whole life: if the
 * broker closes it, the connection is lost, and what was not acknowledged comes
 * again on the next one.
 *
 * Nothing is ever rejected or put back: it is for the core to decide what becomes
 * of a message, and until it has, it stays with the broker, which gives it back
 * to the queue when the connection ends.
 *
 * Memory
 *
 * A message for which receive() has no room is not read, but for its first
 * frame: the rest stays in the socket, and with the broker. After a while that
 * fills, the broker cannot write, and would give us up if it did not hear from
 * us; the library sends heartbeats only when it reads, so we do.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

static bool refused_queue(RabbitClient *client, char *error);
static bool channel_closed(RabbitClient *client,
						   const amqp_channel_close_t *close, char *error);
static void hand_over(RabbitClient *client);
static void unlink_delivery(RabbitClient *client, RabbitDelivery *delivery);

/*
 * Is there a queue to consume? And no more of it is to come than the core takes
 * at a time. False, with error set, if not.
 */
bool
rabbitmq_find_queue(RabbitClient *client, char *error)
{
	int			prefetch = broker_option_int(client->connection,
											 CQRS_BROKER_OPTION_WINDOW,
											 RABBITMQ_WINDOW);

	if (prefetch > RABBITMQ_PREFETCH_MAX)
		prefetch = RABBITMQ_PREFETCH_MAX;
	errno = 0;
	if (amqp_queue_declare(client->amqp, RABBITMQ_CHANNEL,
						   amqp_cstring_bytes(client->connection->source),
						   true, false, false, false,
						   amqp_empty_table) == NULL ||
		amqp_basic_qos(client->amqp, RABBITMQ_CHANNEL, 0, (uint16_t) prefetch,
					   false) == NULL)
		return refused_queue(client, error);
	return true;
}

/*
 * Have the queue's messages sent to us. False, with error set, if the broker
 * does not.
 *
 * A stream is no queue: it forgets who has received what, so that what came in
 * while nobody was connected would never be seen. Streams have no priorities of
 * consumers, and say so; for queues, 0 is the one by default.
 */
bool
rabbitmq_consume(RabbitClient *client, char *error)
{
	amqp_table_entry_t priority = {
		.key = amqp_cstring_bytes("x-priority"),
		.value = {.kind = AMQP_FIELD_KIND_I32,.value.i32 = 0}
	};
	amqp_table_t arguments = {.num_entries = 1,.entries = &priority};

	errno = 0;
	if (amqp_basic_consume(client->amqp, RABBITMQ_CHANNEL,
						   amqp_cstring_bytes(client->connection->source),
						   amqp_empty_bytes, false, false, false,
						   arguments) == NULL)
		return refused_queue(client, error);
	client->consuming = true;
	return true;
}

/*
 * Has a message begun that there is no room for?
 */
bool
rabbitmq_consume_full(const RabbitClient *client)
{
	return client->connection->source != NULL &&
		client->expected != EXPECT_METHOD &&
		(client->room_messages <= 0 || client->room_bytes == 0);
}

/*
 * While nothing is read: send a heartbeat if one is due.
 */
bool
rabbitmq_keep_alive(RabbitClient *client, char *error)
{
	const amqp_frame_t heartbeat = {.frame_type = AMQP_FRAME_HEARTBEAT};
	struct timespec now;
	int			status;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec < client->alive_until)
		return true;
	errno = 0;
	status = amqp_send_frame(client->amqp, &heartbeat);
	if (status != AMQP_STATUS_OK)
		return rabbitmq_lost(client, status, error);
	client->alive_until = now.tv_sec + (amqp_get_heartbeat(client->amqp) + 1) / 2;
	return true;
}

/*
 * Acknowledge messages, and free them. False, with error set, if the connection
 * is lost.
 */
bool
rabbitmq_settle(RabbitClient *client, CqrsBrokerReceived *const *messages,
				int n, char *error)
{
	uint64_t	pending;
	uint64_t	last = 0;
	int			status = AMQP_STATUS_OK;
	int			i;

	for (i = 0; i < n; i++)
		unlink_delivery(client, messages[i]->handle);

	/*
	 * All before the first one that is still with the core are settled: one
	 * acknowledgement does for them. The others take one each.
	 */
	pending = client->first != NULL ? client->first->message.tag : UINT64_MAX;
	for (i = 0; i < n; i++)
	{
		uint64_t	tag = messages[i]->tag;

		if (tag < pending && tag > last)
			last = tag;
	}
	errno = 0;
	if (last > 0)
		status = amqp_basic_ack(client->amqp, RABBITMQ_CHANNEL, last, true);
	for (i = 0; i < n && status == AMQP_STATUS_OK; i++)
	{
		if (messages[i]->tag > pending)
			status = amqp_basic_ack(client->amqp, RABBITMQ_CHANNEL,
									messages[i]->tag, false);
	}

	for (i = 0; i < n; i++)
		free(messages[i]->handle);
	return status == AMQP_STATUS_OK || rabbitmq_lost(client, status, error);
}

/*
 * Free all messages. The connection has ended.
 */
void
rabbitmq_free_deliveries(RabbitClient *client)
{
	free(client->delivery);
	while (client->first != NULL)
	{
		RabbitDelivery *delivery = client->first;

		client->first = delivery->next;
		free(delivery);
	}
}

/*
 * A method of the channel: mostly, that a message follows.
 */
bool
rabbitmq_consume_method(RabbitClient *client, const amqp_method_t *method,
						char *error)
{
	switch (method->id)
	{
		case AMQP_BASIC_DELIVER_METHOD:
			{
				amqp_basic_deliver_t *deliver = method->decoded;

				if (!client->consuming ||
					deliver->delivery_tag != client->delivery_tag + 1)
					return rabbitmq_violated(client,
											 "a message out of turn", error);
				client->delivery_tag = deliver->delivery_tag;
				client->redelivered = deliver->redelivered;
				rabbitmq_text(deliver->routing_key, client->delivery_key);
				client->expected = EXPECT_HEADER;
				return true;
			}
		case AMQP_BASIC_CANCEL_METHOD:
			return broker_error(error,
								"queue \"%s\" in vhost \"%s\" of RabbitMQ at %s was deleted, or has moved",
								client->connection->source, client->vhost,
								client->peer);
		case AMQP_CHANNEL_CLOSE_METHOD:
			return channel_closed(client, method->decoded, error);
		default:
			return rabbitmq_violated(client, "another method of the channel",
									 error);
	}
}

/*
 * A message's properties. Its body is still to come, unless that is empty.
 */
bool
rabbitmq_consume_header(RabbitClient *client,
						const amqp_basic_properties_t *properties, char *error)
{
	RabbitDelivery *delivery;

	/* No broker has larger ones, nor could the database take them. */
	if (client->body_left > CQRS_BROKER_MAX_MESSAGE_SIZE)
		return rabbitmq_violated(client, "a message of more than 512 MB", error);
	delivery = rabbitmq_delivery(properties, client->delivery_key,
								 client->body_left);
	if (delivery == NULL)
		return broker_error(error,
							"out of memory for a message of %zu bytes from queue \"%s\" of RabbitMQ at %s",
							(size_t) client->body_left,
							client->connection->source, client->peer);
	delivery->message.redelivered = client->redelivered;
	delivery->message.tag = client->delivery_tag;
	delivery->message.handle = delivery;
	client->delivery = delivery;
	if (client->body_left == 0)
		hand_over(client);
	return true;
}

/*
 * The next part of a message's body, no more than is left of it.
 */
void
rabbitmq_consume_body(RabbitClient *client, amqp_bytes_t fragment)
{
	RabbitDelivery *delivery = client->delivery;
	size_t		size = delivery->message.body_size;

	if (fragment.len > 0)
		memcpy(delivery->body + (size - client->body_left), fragment.bytes,
			   fragment.len);
	if (fragment.len == client->body_left)
		hand_over(client);
}

/*
 * The broker does not let the queue be consumed: set error to why. Returns
 * false.
 */
static bool
refused_queue(RabbitClient *client, char *error)
{
	amqp_rpc_reply_t reply = amqp_get_rpc_reply(client->amqp);

	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
		reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD)
		return channel_closed(client, reply.reply.decoded, error);
	return rabbitmq_replied(client, reply, error);
}

/*
 * The broker closed the channel: set error to why. Returns false.
 */
static bool
channel_closed(RabbitClient *client, const amqp_channel_close_t *close,
			   char *error)
{
	const char *queue = client->connection->source;
	char		reply_text[RABBITMQ_TEXT_SIZE];

	rabbitmq_text(close->reply_text, reply_text);
	if (close->reply_code == AMQP_NOT_FOUND)
		return broker_error(error,
							"queue \"%s\" does not exist in vhost \"%s\" of RabbitMQ at %s (%s)",
							queue, client->vhost, client->peer, reply_text);
	if (close->reply_code == AMQP_ACCESS_REFUSED)
		return broker_error(error,
							"the user of the user mapping may not consume queue \"%s\" of RabbitMQ at %s: %s",
							queue, client->peer, reply_text);
	if (strstr(reply_text, "x-priority") != NULL)
		return broker_error(error,
							"\"%s\" in vhost \"%s\" of RabbitMQ at %s is a stream; only queues can be consumed (%s)",
							queue, client->vhost, client->peer, reply_text);
	return broker_error(error,
						"RabbitMQ at %s ended the consumption of queue \"%s\": %s",
						client->peer, queue, reply_text);
}

/*
 * A message is complete.
 */
static void
hand_over(RabbitClient *client)
{
	RabbitDelivery *delivery = client->delivery;
	size_t		size = delivery->message.body_size;

	client->delivery = NULL;
	delivery->previous = client->last;
	if (client->last != NULL)
		client->last->next = delivery;
	else
		client->first = delivery;
	client->last = delivery;

	client->room_messages--;
	client->room_bytes -= size < client->room_bytes ? size : client->room_bytes;
	client->connection->received(client->connection, &delivery->message);
}

/*
 * Take a message out of the list of those that are not settled.
 */
static void
unlink_delivery(RabbitClient *client, RabbitDelivery *delivery)
{
	if (delivery->previous != NULL)
		delivery->previous->next = delivery->next;
	else
		client->first = delivery->next;
	if (delivery->next != NULL)
		delivery->next->previous = delivery->previous;
	else
		client->last = delivery->previous;
}
