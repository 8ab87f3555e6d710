/*-------------------------------------------------------------------------
 *
 * kafka_produce.c
 *	  What bench/kafka compares with: the same records, produced by a program
 *	  that does nothing else, with the module's settings of librdkafka. bench/inbox
 *	  has its messages from it.
 *
 *	kafka_produce BROKERS TOPIC BODY COUNT WINDOW KEYS [INTERVAL]
 *
 * Prints how many it produced a second, with WINDOW of them unconfirmed. With an
 * INTERVAL, in milliseconds, it waits that long behind each, which does not linger,
 * and the body is the time, {"at": SECONDS}, whatever BODY is.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#include "program.h"

static const char *const settings[][2] = {
	{"enable.idempotence", "true"},
	{"enable.gapless.guarantee", "true"},
	{"acks", "all"},
	{"message.timeout.ms", "0"},
	{"queue.buffering.max.messages", "0"},
	{"queue.buffering.max.kbytes", "2147483647"},
	{"socket.nagle.disable", "true"},
	{"partitioner", "murmur2_random"}
};

static long confirmed;

static void
confirm(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	check(message->err == RD_KAFKA_RESP_ERR_NO_ERROR,
		  rd_kafka_err2str(message->err));
	confirmed++;
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	char		error[512];
	long		count;
	long		window;
	long		keys;
	long		interval;
	long		sent = 0;
	double		started = now();

	check(argc == 7 || argc == 8, "counting the arguments");
	count = atol(argv[4]);
	window = atol(argv[5]);
	keys = atol(argv[6]);
	interval = argc == 8 ? atol(argv[7]) : 0;

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		check(rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error,
								sizeof(error)) == RD_KAFKA_CONF_OK, error);
	check(rd_kafka_conf_set(conf, "linger.ms", interval > 0 ? "0" : "5", error,
							sizeof(error)) == RD_KAFKA_CONF_OK, error);
	check(rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], error,
							sizeof(error)) == RD_KAFKA_CONF_OK, error);
	rd_kafka_conf_set_log_cb(conf, NULL);
	rd_kafka_conf_set_dr_msg_cb(conf, confirm);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	check(rk != NULL, error);
	topic = rd_kafka_topic_new(rk, argv[2], NULL);

	while (confirmed < count)
	{
		while (sent < count && sent - confirmed < window)
		{
			rd_kafka_headers_t *headers = rd_kafka_headers_new(2);
			char		message_id[64];
			char		key[32];
			char		at[64];
			rd_kafka_vu_t args[] = {
				{.vtype = RD_KAFKA_VTYPE_RKT, .u.rkt = topic},
				{.vtype = RD_KAFKA_VTYPE_TIMESTAMP, .u.i64 = time(NULL) * 1000},
				{.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers},
				{.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = 0},
				{.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {key, 0}},
				{.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {argv[3], strlen(argv[3])}}
			};

			snprintf(message_id, sizeof(message_id),
					 "00000000-0000-7000-8000-%012ld", sent);
			rd_kafka_header_add(headers, "message_id", -1, message_id, -1);
			rd_kafka_header_add(headers, "content-type", -1,
								"application/json", -1);
			if (interval > 0)
			{
				args[5].u.mem.ptr = at;
				args[5].u.mem.size = snprintf(at, sizeof(at), "{\"at\": %.6f}",
											  seconds(CLOCK_REALTIME));
			}
			args[4].u.mem.size = snprintf(key, sizeof(key), "%ld", sent % keys);
			check(rd_kafka_produceva(rk, args, 6) == NULL, "producing");
			sent++;
			if (interval > 0)
				usleep(interval * 1000);
		}
		rd_kafka_poll(rk, 100);
	}
	printf("%.0f\n", count / (now() - started));
	rd_kafka_topic_destroy(topic);
	rd_kafka_destroy(rk);
	return 0;
}
