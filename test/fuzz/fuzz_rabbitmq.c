/*
 * What a RabbitMQ, or who stands in its place, sends while messages are on their
 * way to it, or while it is consumed from; and lists of hosts.
 *
 * The input says which frames come: mostly of the kinds that matter, in any
 * order, with any content; sometimes only bytes. Whatever comes, each message
 * is reported once at most, or received as it should be, and nothing loops.
 *
 * fuzz: -Isrc/include -Ibrokers/common -Ibrokers/rabbitmq brokers/rabbitmq/publish.c
 * fuzz: brokers/rabbitmq/consume.c brokers/rabbitmq/delivery.c brokers/rabbitmq/frames.c
 * fuzz: brokers/rabbitmq/failure.c brokers/rabbitmq/connect.c brokers/rabbitmq/login.c brokers/rabbitmq/tls.c
 * fuzz: brokers/common/broker_client.c -lrabbitmq -lssl -lcrypto -lpthread
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

#define MESSAGES	10
#define ROOM		3

typedef struct Out
{
	uint8_t		bytes[60000];
	size_t		used;
} Out;

static CqrsBrokerMessage messages[MESSAGES];
static int	reports[MESSAGES];
static CqrsBrokerReceived *unsettled[ROOM];
static int	nunsettled;
static Out	out;

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
report(CqrsBrokerMessage *message, CqrsBrokerOutcome outcome,
	   const char *error)
{
	if (message < messages || message >= messages + MESSAGES ||
		++reports[message - messages] > 1)
		abort();
	if (error != NULL && strlen(error) >= CQRS_BROKER_ERROR_SIZE)
		abort();
}

/* Not more than there is room for, and each byte is there. */
static void
received(const CqrsBrokerConnection *connection, CqrsBrokerReceived *message)
{
	static volatile size_t sum;
	size_t		i;
	int			j;

	(void) connection;
	if (nunsettled >= ROOM || message->body == NULL)
		abort();
	unsettled[nunsettled++] = message;
	for (i = 0; i < message->body_size; i++)
		sum += message->body[i];
	if (message->message_id != NULL)
		sum += strlen(message->message_id);
	if (message->content_type != NULL)
		sum += strlen(message->content_type);
	for (j = 0; j < message->nheaders; j++)
	{
		sum += strlen(message->headers[j].name);
		for (i = 0; i < message->headers[j].value_size; i++)
			sum += message->headers[j].value[i];
	}
}

/*
 * Receive, and settle some, until the connection is lost.
 */
static void
consume(RabbitClient *client, char *error)
{
	int			round;

	client->consuming = true;
	nunsettled = 0;
	for (round = 0;; round++)
	{
		int			n = round % 2 == 0 || nunsettled < 2 ? nunsettled : nunsettled - 1;

		client->room_messages = ROOM - nunsettled;
		client->room_bytes = round % 3 == 0 ? 10 : 1000;
		if (!rabbitmq_receive(client, error))
			break;
		n = n < nunsettled ? n : nunsettled;
		if (!rabbitmq_settle(client, unsettled + (nunsettled - n), n, error))
		{
			nunsettled -= n;
			break;
		}
		nunsettled -= n;
	}
	rabbitmq_free_deliveries(client);
}

static void
put(const void *bytes, size_t size)
{
	if (out.used + size > sizeof(out.bytes))
		return;
	memcpy(out.bytes + out.used, bytes, size);
	out.used += size;
}

static void
put_int(uint64_t value, int size)
{
	while (size-- > 0)
	{
		uint8_t		byte = (uint8_t) (value >> (8 * size));

		put(&byte, 1);
	}
}

/*
 * A frame of the kind that the first byte says, with the rest as its content.
 */
static void
put_frame(uint8_t kind, const uint8_t *data, size_t size)
{
	static const uint8_t methods[][4] = {
		{0, 60, 0, 80}, {0, 60, 0, 120}, {0, 60, 0, 50}, {0, 20, 0, 40},
		{0, 10, 0, 50}, {0, 10, 0, 60}, {0, 60, 0, 30}, {0, 60, 0, 60}
	};
	int			type = kind < 160 ? 1 : kind < 208 ? 2 : kind < 240 ? 3 : 8;
	const uint8_t *method = methods[kind % 8];
	size_t		head = type == 1 ? 4 : type == 2 && kind % 4 != 0 ? 4 : 0;
	int			channel = (kind % 8 >= 4 && kind % 8 < 6 && type == 1) ? 0 : 1;

	if (kind == 255)
	{
		put(data, size);
		return;
	}
	put_int(type, 1);
	put_int(kind % 37 == 0 ? 7 : channel, 2);
	put_int(head + size, 4);
	if (type == 1)
		put(method, 4);
	else if (head > 0)
		put_int(UINT64_C(60) << 16, 4);
	put(data, size);
	put_int(kind % 61 == 0 ? 0 : 0xCE, 1);
}

static void
check_hosts(const uint8_t *data, size_t size)
{
	char	   *text = malloc(size + 1);
	char		error[CQRS_BROKER_ERROR_SIZE];

	memcpy(text, data, size);
	text[size] = '\0';
	(void) rabbitmq_hosts_check(text, error);
	free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CqrsBrokerConnection connection = {.report = report,.received = received};
	RabbitClient client = {.connection = &connection,.vhost = "/",
		.exchange = "{event_name}",.routing_key = "{topic}",.mandatory = true
	};
	char		error[CQRS_BROKER_ERROR_SIZE] = "";
	amqp_socket_t *socket;
	int			fds[2];
	int			i;

	check_hosts(data, size);
	if (size > 0)
	{
		connection.source = *data % 2 == 0 ? "queue" : NULL;
		data++;
		size--;
	}
	out.used = 0;
	while (size >= 2)
	{
		size_t		length = data[1] < size - 2 ? data[1] : size - 2;

		put_frame(data[0], data + 2, length);
		data += 2 + length;
		size -= 2 + length;
	}

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
		abort();
	client.amqp = amqp_new_connection();
	socket = amqp_tcp_socket_new(client.amqp);
	amqp_tcp_socket_set_sockfd(socket, fds[0]);
	memset(reports, 0, sizeof(reports));
	client.oldest = client.unsent = client.next = 1;
	for (i = 0; i < MESSAGES && connection.source == NULL; i++)
	{
		messages[i] = (CqrsBrokerMessage)
		{
			.topic = "topic",.event_name = "event",
			.message_id = "00000000-0000-7000-8000-000000000000"
		};
		if (!rabbitmq_accept(&client, &messages[i], error))
			abort();
		client.unsent += i < MESSAGES - 2 ? 1 : 0;
	}
	if (write(fds[1], out.bytes, out.used) != (ssize_t) out.used)
		abort();
	close(fds[1]);

	/* In the end, the other side has closed it. */
	if (connection.source != NULL)
		consume(&client, error);
	else if (rabbitmq_receive(&client, error))
		abort();
	if (error[0] == '\0')
		abort();
	amqp_destroy_connection(client.amqp);
	free(client.ring);
	free(client.headers);
	return 0;
}
