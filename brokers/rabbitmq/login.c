/*-------------------------------------------------------------------------
 *
 * login.c
 *	  The beginning of a connection to RabbitMQ: who we are, and what is agreed
 *	  on.
 *
 * The library could do all of this, but takes whatever frame size the broker
 * wants for the size of its own buffer: with one that is smaller than a frame's
 * envelope, it would write past its end. So what the broker wants is checked
 * here before the library gets it.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "client.h"

/* What the protocol says that both sides must accept, in bytes. */
#define FRAME_MIN_SIZE	4096

static bool wait_method(RabbitClient *client, amqp_method_number_t expected,
						void **decoded, char *error);
static bool start(RabbitClient *client, char *error);
static bool offers_plain(amqp_bytes_t mechanisms);
static int	send_start_ok(RabbitClient *client);
static bool tune(RabbitClient *client, char *error);
static bool open_vhost(RabbitClient *client, char *error);
static bool ended_early(RabbitClient *client, char *error);
static bool refused_login(RabbitClient *client, amqp_connection_close_t *close,
						  char *error);

/*
 * Log in with the user mapping's username and password.
 */
bool
rabbitmq_log_in(RabbitClient *client, char *error)
{
	struct timeval timeout = {.tv_sec = client->connect_timeout};
	int			status;

	amqp_set_rpc_timeout(client->amqp, &timeout);
	errno = 0;
	status = amqp_send_header(client->amqp);
	if (status != AMQP_STATUS_OK)
		return rabbitmq_lost(client, status, error);
	return start(client, error) && tune(client, error) &&
		open_vhost(client, error);
}

/*
 * Wait for a method of the connection, for as long as a connection may take.
 * What it is decoded to is good until buffers are released.
 */
static bool
wait_method(RabbitClient *client, amqp_method_number_t expected,
			void **decoded, char *error)
{
	struct timeval timeout = {.tv_sec = client->connect_timeout};
	amqp_frame_t frame;
	int			status;

	errno = 0;
	status = amqp_simple_wait_frame_noblock(client->amqp, &frame, &timeout);
	if (status == AMQP_STATUS_TIMEOUT)
		return broker_error(error,
							"RabbitMQ at %s accepts connections, but did not answer within %d seconds",
							client->peer, client->connect_timeout);
	if (status == AMQP_STATUS_CONNECTION_CLOSED ||
		status == AMQP_STATUS_SOCKET_ERROR)
		return ended_early(client, error);
	if (status != AMQP_STATUS_OK)
		return rabbitmq_lost(client, status, error);
	if (frame.frame_type == AMQP_FRAME_METHOD && frame.channel == 0)
	{
		*decoded = frame.payload.method.decoded;
		if (frame.payload.method.id == expected)
			return true;
		if (frame.payload.method.id == AMQP_CONNECTION_CLOSE_METHOD)
			return refused_login(client, *decoded, error);
	}
	return rabbitmq_lost(client, AMQP_STATUS_WRONG_METHOD, error);
}

/*
 * The broker says what it is, and we say who we are.
 */
static bool
start(RabbitClient *client, char *error)
{
	amqp_connection_start_t *offer;
	void	   *decoded;
	int			status;

	if (!wait_method(client, AMQP_CONNECTION_START_METHOD, &decoded, error))
		return false;
	offer = decoded;
	if (offer->version_major != AMQP_PROTOCOL_VERSION_MAJOR ||
		offer->version_minor != AMQP_PROTOCOL_VERSION_MINOR)
		return rabbitmq_lost(client, AMQP_STATUS_BAD_AMQP_DATA, error);
	if (!offers_plain(offer->mechanisms))
		return broker_error(error,
							"RabbitMQ at %s does not allow to log in with username and password (PLAIN)",
							client->peer);
	errno = 0;
	status = send_start_ok(client);
	if (status != AMQP_STATUS_OK)
		return rabbitmq_lost(client, status, error);
	amqp_release_buffers(client->amqp);
	return true;
}

/*
 * Is PLAIN one of the words of this list?
 */
static bool
offers_plain(amqp_bytes_t mechanisms)
{
	static const char plain[] = "PLAIN";
	const char *list = mechanisms.bytes;
	size_t		length = sizeof(plain) - 1;
	size_t		i;

	for (i = 0; i + length <= mechanisms.len; i++)
	{
		if (memcmp(list + i, plain, length) == 0 &&
			(i == 0 || list[i - 1] == ' ') &&
			(i + length == mechanisms.len || list[i + length] == ' '))
			return true;
	}
	return false;
}

/*
 * Say who we are, what we understand, and the password. Returns a status of the
 * library.
 */
static int
send_start_ok(RabbitClient *client)
{
	static const char *const understood[] = {
		"authentication_failure_close", "connection.blocked",
		"publisher_confirms", "basic.nack", "consumer_cancel_notify"
	};
	const char *username = broker_option(client->connection, "username");
	const char *password = broker_option(client->connection, "password");
	amqp_table_entry_t capabilities[sizeof(understood) / sizeof(understood[0])];
	amqp_table_entry_t properties[3];
	amqp_connection_start_ok_t answer = {
		.mechanism = amqp_cstring_bytes("PLAIN"),
		.locale = amqp_cstring_bytes("en_US")
	};
	char		name[256];
	size_t		i;
	int			status;

	for (i = 0; i < sizeof(understood) / sizeof(understood[0]); i++)
	{
		capabilities[i].key = amqp_cstring_bytes(understood[i]);
		capabilities[i].value.kind = AMQP_FIELD_KIND_BOOLEAN;
		capabilities[i].value.value.boolean = 1;
	}
	snprintf(name, sizeof(name), "cqrs_outbox %s/%s",
			 client->connection->database, client->connection->subscription);
	properties[0].key = amqp_cstring_bytes("product");
	properties[0].value.kind = AMQP_FIELD_KIND_UTF8;
	properties[0].value.value.bytes = amqp_cstring_bytes("cqrs_outbox");
	properties[1].key = amqp_cstring_bytes("connection_name");
	properties[1].value.kind = AMQP_FIELD_KIND_UTF8;
	properties[1].value.value.bytes = amqp_cstring_bytes(name);
	properties[2].key = amqp_cstring_bytes("capabilities");
	properties[2].value.kind = AMQP_FIELD_KIND_TABLE;
	properties[2].value.value.table.num_entries = (int) i;
	properties[2].value.value.table.entries = capabilities;
	answer.client_properties.num_entries = 3;
	answer.client_properties.entries = properties;

	username = username != NULL ? username : "";
	password = password != NULL ? password : "";
	answer.response.len = strlen(username) + strlen(password) + 2;
	answer.response.bytes = calloc(1, answer.response.len + 1);
	if (answer.response.bytes == NULL)
		return AMQP_STATUS_NO_MEMORY;
	memcpy((char *) answer.response.bytes + 1, username, strlen(username));
	memcpy((char *) answer.response.bytes + strlen(username) + 2, password,
		   strlen(password));
	status = amqp_send_method(client->amqp, 0, AMQP_CONNECTION_START_OK_METHOD,
							  &answer);
	free(answer.response.bytes);
	return status;
}

/*
 * Agree on sizes and heartbeats. If the broker says 0, it has no limit.
 */
static bool
tune(RabbitClient *client, char *error)
{
	amqp_connection_tune_t *wanted;
	amqp_connection_tune_ok_t agreed;
	void	   *decoded;
	int			status;

	if (!wait_method(client, AMQP_CONNECTION_TUNE_METHOD, &decoded, error))
		return false;
	wanted = decoded;
	if (wanted->frame_max != 0 && wanted->frame_max < FRAME_MIN_SIZE)
		return broker_error(error,
							"what answers at %s does not keep to AMQP 0-9-1: it wants frames of at most %u bytes",
							client->peer, (unsigned) wanted->frame_max);
	agreed.channel_max = RABBITMQ_CHANNEL;	/* all that is used; nobody can
											 * want fewer */
	agreed.frame_max = client->frame_max;
	if (wanted->frame_max != 0 && wanted->frame_max < agreed.frame_max)
		agreed.frame_max = wanted->frame_max;
	agreed.heartbeat = client->heartbeat;
	if (wanted->heartbeat != 0 && wanted->heartbeat < agreed.heartbeat)
		agreed.heartbeat = wanted->heartbeat;

	errno = 0;
	status = amqp_tune_connection(client->amqp, agreed.channel_max,
								  (int) agreed.frame_max, agreed.heartbeat);
	if (status == AMQP_STATUS_OK)
		status = amqp_send_method(client->amqp, 0,
								  AMQP_CONNECTION_TUNE_OK_METHOD, &agreed);
	if (status != AMQP_STATUS_OK)
		return rabbitmq_lost(client, status, error);
	amqp_release_buffers(client->amqp);
	return true;
}

static bool
open_vhost(RabbitClient *client, char *error)
{
	amqp_method_number_t replies[] = {AMQP_CONNECTION_OPEN_OK_METHOD, 0};
	amqp_connection_open_t wanted = {
		.virtual_host = amqp_cstring_bytes(client->vhost),
		.capabilities = amqp_empty_bytes,
		.insist = 1
	};
	amqp_rpc_reply_t reply;

	errno = 0;
	reply = amqp_simple_rpc(client->amqp, 0, AMQP_CONNECTION_OPEN_METHOD,
							replies, &wanted);
	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
	{
		amqp_maybe_release_buffers(client->amqp);
		return true;
	}
	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
		reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
		return refused_login(client, reply.reply.decoded, error);
	if (reply.library_error == AMQP_STATUS_CONNECTION_CLOSED ||
		reply.library_error == AMQP_STATUS_SOCKET_ERROR)
		return ended_early(client, error);
	return rabbitmq_replied(client, reply, error);
}

/*
 * The broker said nothing: set error to what that may mean. Returns false.
 */
static bool
ended_early(RabbitClient *client, char *error)
{
	return broker_error(error,
						"RabbitMQ at %s ended the connection during the login; perhaps this port expects %s",
						client->peer,
						broker_option_bool(client->connection, "tls", false) ?
						"another protocol" : "TLS");
}

/*
 * The broker refuses to let us in: set error to why. Returns false.
 */
static bool
refused_login(RabbitClient *client, amqp_connection_close_t *close,
			  char *error)
{
	char		reply_text[RABBITMQ_TEXT_SIZE];

	rabbitmq_text(close->reply_text, reply_text);
	if (close->reply_code == AMQP_ACCESS_REFUSED)
		return broker_error(error,
							"RabbitMQ at %s refused username or password of the user mapping: %s",
							client->peer, reply_text);
	if (close->reply_code == AMQP_NOT_ALLOWED && strstr(reply_text, "not found") != NULL)
		return broker_error(error, "vhost \"%s\" does not exist in RabbitMQ at %s: %s",
							client->vhost, client->peer, reply_text);
	if (close->reply_code == AMQP_NOT_ALLOWED)
		return broker_error(error, "RabbitMQ at %s refused access to vhost \"%s\": %s",
							client->peer, client->vhost, reply_text);
	return broker_error(error, "RabbitMQ at %s refused the connection: %s",
						client->peer, reply_text);
}
