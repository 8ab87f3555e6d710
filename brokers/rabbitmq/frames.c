/*-------------------------------------------------------------------------
 *
 * frames.c
 *	  What comes from RabbitMQ, frame by frame.
 *
 * A frame is a method, or part of a message that follows its method: a header
 * with the properties and the size of the body, and then the body, in as many
 * frames as it takes. What the library decoded is taken for nothing but what it
 * was checked to be.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <sys/time.h>

#include "client.h"

static bool handle_frame(RabbitClient *client, const amqp_frame_t *frame,
						 char *error);
static bool handle_connection_method(RabbitClient *client,
									 const amqp_method_t *method, char *error);
static bool handle_method(RabbitClient *client, const amqp_method_t *method,
						  char *error);
static bool handle_header(RabbitClient *client, const amqp_frame_t *frame,
						  char *error);
static bool handle_body(RabbitClient *client, amqp_bytes_t fragment,
						char *error);

/*
 * Handle all that came from the broker, and send a heartbeat if one is due; but
 * read no message that was consumed and that there is no room for. False, with
 * error set, if the connection is lost.
 */
bool
rabbitmq_receive(RabbitClient *client, char *error)
{
	while (!rabbitmq_consume_full(client))
	{
		struct timeval no_time = {0};
		amqp_frame_t frame;
		int			status;

		errno = 0;
		status = amqp_simple_wait_frame_noblock(client->amqp, &frame,
												&no_time);
		if (status == AMQP_STATUS_TIMEOUT)
			return true;
		if (status != AMQP_STATUS_OK)
			return rabbitmq_lost(client, status, error);
		if (!handle_frame(client, &frame, error))
		{
			rabbitmq_mark_lost(client);
			return false;
		}
		amqp_maybe_release_buffers(client->amqp);
	}
	return rabbitmq_keep_alive(client, error);
}

/*
 * False, with error set, if the broker ends the connection or the channel, or
 * says what no broker does.
 */
static bool
handle_frame(RabbitClient *client, const amqp_frame_t *frame, char *error)
{
	if (frame->frame_type == AMQP_FRAME_METHOD && frame->channel == 0)
		return handle_connection_method(client, &frame->payload.method, error);
	if (frame->channel != RABBITMQ_CHANNEL)
		return rabbitmq_violated(client, "a frame on another channel", error);

	switch (frame->frame_type)
	{
		case AMQP_FRAME_METHOD:
			return handle_method(client, &frame->payload.method, error);
		case AMQP_FRAME_HEADER:
			return handle_header(client, frame, error);
		case AMQP_FRAME_BODY:
			return handle_body(client, frame->payload.body_fragment, error);
		default:
			return rabbitmq_violated(client, "a frame of another type", error);
	}
}

/*
 * What the broker says of the connection.
 */
static bool
handle_connection_method(RabbitClient *client, const amqp_method_t *method,
						 char *error)
{
	char		reply_text[RABBITMQ_TEXT_SIZE];

	switch (method->id)
	{
		case AMQP_CONNECTION_BLOCKED_METHOD:
			client->blocked = true;
			rabbitmq_text(((amqp_connection_blocked_t *) method->decoded)->reason,
						  client->blocked_reason);
			return true;
		case AMQP_CONNECTION_UNBLOCKED_METHOD:
			client->blocked = false;
			return true;
		case AMQP_CONNECTION_CLOSE_METHOD:
			rabbitmq_text(((amqp_connection_close_t *) method->decoded)->reply_text,
						  reply_text);
			return broker_error(error,
								"RabbitMQ at %s ended the connection: %s",
								client->peer, reply_text);
		default:
			return rabbitmq_violated(client,
									 "another method of the connection", error);
	}
}

/*
 * What it says of the channel, and of messages on it.
 */
static bool
handle_method(RabbitClient *client, const amqp_method_t *method, char *error)
{
	if (client->expected != EXPECT_METHOD)
		return rabbitmq_violated(client, "a method within a message", error);
	if (client->connection->source != NULL)
		return rabbitmq_consume_method(client, method, error);
	return rabbitmq_publish_method(client, method, error);
}

/*
 * The header of a message. The library has decoded its properties as those of
 * whatever class it says it is of, and those that it has no flag for not at all.
 */
static bool
handle_header(RabbitClient *client, const amqp_frame_t *frame, char *error)
{
	const amqp_basic_properties_t *properties = frame->payload.properties.decoded;
	uint64_t	size = frame->payload.properties.body_size;

	if (client->expected != EXPECT_HEADER)
		return rabbitmq_violated(client, "a header that is no message's", error);
	if (frame->payload.properties.class_id != AMQP_BASIC_CLASS)
		return rabbitmq_violated(client, "a header of another class", error);
	client->body_left = size;
	client->expected = size > 0 ? EXPECT_BODY : EXPECT_METHOD;
	if (client->connection->source != NULL)
		return rabbitmq_consume_header(client, properties, error);
	rabbitmq_publish_header(client, properties);
	return true;
}

/*
 * Part of a message's body. Nobody needs that of a message that comes back.
 */
static bool
handle_body(RabbitClient *client, amqp_bytes_t fragment, char *error)
{
	if (client->expected != EXPECT_BODY || fragment.len > client->body_left)
		return rabbitmq_violated(client, "a body that is no message's", error);
	if (client->connection->source != NULL)
		rabbitmq_consume_body(client, fragment);
	client->body_left -= fragment.len;
	if (client->body_left == 0)
		client->expected = EXPECT_METHOD;
	return true;
}
