/*-------------------------------------------------------------------------
 *
 * rabbitmq_publish.c
 *	  What bench/rabbitmq compares with: the same messages, published to the
 *	  default exchange by a program that does nothing else.
 *
 *	rabbitmq_publish PORT USER PASSWORD QUEUE TYPE BODY COUNT WINDOW
 *
 * Prints how many it published a second, with WINDOW of them unconfirmed; with
 * a window of 1, the median of milliseconds from publishing one to its confirm.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <amqp.h>
#include <amqp_tcp_socket.h>

#include "program.h"

/* Between two messages, if it is one at a time: the system is to be idle. */
#define PAUSE_US	20000

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

int
main(int argc, char **argv)
{
	amqp_connection_state_t amqp = amqp_new_connection();
	amqp_socket_t *socket = amqp_tcp_socket_new(amqp);
	char		message_id[64];
	amqp_basic_properties_t properties = {
		._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG |
			AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG |
			AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG,
		.delivery_mode = AMQP_DELIVERY_PERSISTENT
	};
	long		count;
	long		window;
	long		sent = 0;
	long		confirmed = 0;
	double	   *times;
	double		started;

	check(argc == 9, "counting the arguments");
	count = atol(argv[7]);
	window = atol(argv[8]);
	times = malloc(sizeof(double) * (count + 1));
	check(amqp_socket_open(socket, "127.0.0.1", atoi(argv[1])) == AMQP_STATUS_OK,
		  "connecting");
	check(amqp_login(amqp, "/", 1, AMQP_DEFAULT_FRAME_SIZE, 0,
					 AMQP_SASL_METHOD_PLAIN, argv[2],
					 argv[3]).reply_type == AMQP_RESPONSE_NORMAL, "logging in");
	check(amqp_channel_open(amqp, 1) != NULL, "opening a channel");
	check(amqp_confirm_select(amqp, 1) != NULL, "selecting confirms");
	properties.type = amqp_cstring_bytes(argv[5]);
	properties.content_type = amqp_cstring_bytes("application/json");
	properties.timestamp = time(NULL);

	started = now();
	while (confirmed < count)
	{
		amqp_frame_t frame;

		while (sent < count && sent - confirmed < window)
		{
			if (window == 1)
				usleep(PAUSE_US);
			snprintf(message_id, sizeof(message_id),
					 "00000000-0000-7000-8000-%012ld", sent);
			properties.message_id = amqp_cstring_bytes(message_id);
			times[sent++] = now();
			check(amqp_basic_publish(amqp, 1, amqp_cstring_bytes(""),
									 amqp_cstring_bytes(argv[4]), 1, 0,
									 &properties,
									 amqp_cstring_bytes(argv[6])) == AMQP_STATUS_OK,
				  "publishing");
		}
		amqp_maybe_release_buffers(amqp);
		check(amqp_simple_wait_frame(amqp, &frame) == AMQP_STATUS_OK,
			  "waiting");
		if (frame.frame_type == AMQP_FRAME_METHOD)
		{
			amqp_basic_ack_t *ack = frame.payload.method.decoded;

			check(frame.payload.method.id == AMQP_BASIC_ACK_METHOD,
				  "waiting for a confirm");
			if (window == 1)
				times[confirmed] = now() - times[confirmed];
			confirmed = ack->multiple ? (long) ack->delivery_tag : confirmed + 1;
		}
	}
	if (window == 1)
	{
		qsort(times, count, sizeof(double), compare);
		printf("%.4f\n", times[count / 2] * 1000);
	}
	else
		printf("%.0f\n", count / (now() - started));
	amqp_connection_close(amqp, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(amqp);
	return 0;
}
