/*
 * What the peer of the example module answers, or has us consume.
 *
 * fuzz: -Isrc/include -Ibrokers/example brokers/example/lines.c
 */
#include "../../brokers/example/client.c"

#include <stdint.h>

#define MESSAGES	10
#define ROOM		3

static CqrsBrokerMessage messages[MESSAGES];
static int	reports[MESSAGES];
static CqrsBrokerReceived *unsettled[ROOM];
static int	nunsettled;

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
report(CqrsBrokerMessage *message, CqrsBrokerOutcome outcome,
	   const char *reason)
{
	if (message < messages || message >= messages + MESSAGES ||
		++reports[message - messages] > 1)
		abort();
	if (reason != NULL && strlen(reason) >= LINE_SIZE)
		abort();
}

static void
received(const CqrsBrokerConnection *connection, CqrsBrokerReceived *message)
{
	static volatile size_t sum;
	size_t		i;
	int			j;

	(void) connection;
	if (nunsettled >= ROOM)
		abort();
	unsettled[nunsettled++] = message;
	for (i = 0; i < message->body_size; i++)
		sum += message->body[i];
	for (i = 0; i < message->key_size; i++)
		sum += message->key[i];
	sum += message->message_id != NULL ? strlen(message->message_id) : 0;
	sum += message->content_type != NULL ? strlen(message->content_type) : 0;
	for (j = 0; j < message->nheaders; j++)
	{
		sum += strlen(message->headers[j].name);
		for (i = 0; i < message->headers[j].value_size; i++)
			sum += message->headers[j].value[i];
	}
}

/*
 * Receive, and forget some, until the connection is lost.
 */
static void
consume(Example *example, char *error)
{
	int			round;

	nunsettled = 0;
	for (round = 0; example_receive(example, ROOM - nunsettled, 1 + round % 100, error); round++)
	{
		int			left = round % 3 == 0 && nunsettled == ROOM ? 1 : 0;

		while (nunsettled > left)
			unlink_received(example, unsettled[--nunsettled]->handle);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CqrsBrokerConnection connection = {.report = report,.received = received};
	Example    *example = calloc(1, sizeof(Example));
	char		error[CQRS_BROKER_ERROR_SIZE] = "";
	int			fds[2];
	int			i;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
		abort();
	fcntl(fds[0], F_SETFL, O_NONBLOCK);
	memset(reports, 0, sizeof(reports));
	example->connection = &connection;
	example->host = "host";
	example->port = "1";
	example->socket = fds[0];
	if (size > 0)
	{
		example->welcome = data[0] % 2 == 0;
		connection.source = data[0] % 4 < 2 ? "source" : NULL;
		data++;
		size--;
	}
	for (i = 0; i < MESSAGES; i++)
		if (take_tag(example, &messages[i]) < 0)
			abort();
	if (size > 60000)
		size = 60000;
	if (write(fds[1], data, size) != (ssize_t) size)
		abort();
	close(fds[1]);
	if (connection.source != NULL)
		consume(example, error);
	else if (receive(example, error))
		abort();
	if (error[0] == '\0')
		abort();
	example_shutdown(example);
	return 0;
}
