/*
 * Of what broker modules share: templates, options, texts of errors.
 *
 * fuzz: -Isrc/include -Ibrokers/common brokers/common/broker_client.c
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "broker_client.h"

#define SENTINEL	0x5A

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * A template that is allowed expands to what it says, and writes no more than
 * there is room for.
 */
static void
expand(const char *template, size_t room)
{
	char		error[CQRS_BROKER_ERROR_SIZE];
	char		buffer[300];
	CqrsBrokerMessage message = {.topic = "topic",.event_name = "",.key = NULL};
	size_t		whole;
	size_t		written;

	memset(buffer, SENTINEL, sizeof(buffer));
	if (!broker_template_check(template, error) && strlen(error) == 0)
		abort();
	whole = broker_template_expand(template, &message, NULL, 0);
	written = broker_template_expand(template, &message, buffer, room);
	if (whole != written || buffer[room] != SENTINEL)
		abort();
	if (room > 0 && strlen(buffer) != (whole < room ? whole : room - 1))
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *text;
	char		error[CQRS_BROKER_ERROR_SIZE];
	CqrsBrokerOption option = {.name = "o"};
	CqrsBrokerConnection connection = {.noptions = 1,.options = &option};
	const char *c;

	if (size < 1)
		return 0;
	text = malloc(size);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';

	expand(text, data[0]);
	option.value = text;
	(void) broker_check_not_empty(text, error);
	(void) broker_option_bool(&connection, "o", false);
	if (broker_check_int(text, -5, 1000, error) &&
		(broker_option_int(&connection, "o", -100) < -5 ||
		 broker_option_int(&connection, "o", -100) > 1000))
		abort();

	/* One line, whatever it was. */
	if (broker_error(error, "%s", text) || strlen(error) >= sizeof(error))
		abort();
	for (c = error; *c != '\0'; c++)
		if ((unsigned char) *c < ' ')
			abort();
	free(text);
	return 0;
}
