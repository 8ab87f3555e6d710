/*
 * What the peer of the example module answers.
 *
 * fuzz: -Isrc/include -Ibrokers/example brokers/example/lines.c
 */
#include "../../brokers/example/client.c"

#include <stdint.h>

#define MESSAGES	10

static CqrsBrokerMessage messages[MESSAGES];
static int	reports[MESSAGES];

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

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CqrsBrokerConnection connection = {.report = report};
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
	example->welcome = size > 0 && data[0] % 2 == 0;
	for (i = 0; i < MESSAGES; i++)
		if (take_tag(example, &messages[i]) < 0)
			abort();
	if (size > 60000)
		size = 60000;
	if (write(fds[1], data, size) != (ssize_t) size)
		abort();
	close(fds[1]);
	if (receive(example, error) || error[0] == '\0')
		abort();
	example_shutdown(example);
	return 0;
}
