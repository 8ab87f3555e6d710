/*-------------------------------------------------------------------------
 *
 * kafka_cluster.c
 *	  A Kafka cluster for tests: librdkafka's mock cluster, in a process of its
 *	  own.
 *
 *	  kafka_cluster BROKERS
 *
 * Prints the addresses of its brokers, then obeys the commands on its standard
 * input, a line each, and answers each with "ok" or "error: ...". It ends when
 * its input does. Brokers are numbered from 1; requests and errors are the
 * protocol's numbers.
 *
 *	  topic NAME PARTITIONS			make a topic; others are made when used
 *	  leader TOPIC PARTITION BROKER	have this broker lead it; 0: none
 *	  down BROKER, up BROKER		break its connections, and accept none
 *	  rtt BROKER MILLISECONDS		answer so late
 *	  fail REQUEST ERROR ...		answer the next requests of this kind so
 *	  succeed REQUEST				forget what "fail" has left
 *	  topic_error TOPIC ERROR		what clients are told of a topic; 0: nothing
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define MAX_ERRORS	1000

static rd_kafka_resp_err_t obey(rd_kafka_mock_cluster_t *cluster, char *line);
static rd_kafka_resp_err_t fail(rd_kafka_mock_cluster_t *cluster);
static int	number(void);

int
main(int argc, char **argv)
{
	char		reason[512];
	char		line[16384];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	rd_kafka_mock_cluster_t *cluster;

	if (argc != 2)
	{
		fprintf(stderr, "usage: %s BROKERS\n", argv[0]);
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);

	/* A cluster lives in a client, which has no other use. */
	rd_kafka_conf_set_log_cb(conf, NULL);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof(reason));
	if (rk == NULL)
	{
		fprintf(stderr, "%s\n", reason);
		return 1;
	}
	cluster = rd_kafka_mock_cluster_new(rk, atoi(argv[1]));
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));

	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		rd_kafka_resp_err_t code = obey(cluster, line);

		if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
			printf("ok\n");
		else
			printf("error: %s\n", rd_kafka_err2str(code));
	}
	rd_kafka_mock_cluster_destroy(cluster);
	rd_kafka_destroy(rk);
	return 0;
}

/*
 * Obey a command.
 */
static rd_kafka_resp_err_t
obey(rd_kafka_mock_cluster_t *cluster, char *line)
{
	const char *command = strtok(line, " \n");
	const char *topic;
	int			n;

	if (command == NULL)
		return RD_KAFKA_RESP_ERR__INVALID_ARG;
	if (strcmp(command, "topic") == 0)
	{
		topic = strtok(NULL, " \n");
		return rd_kafka_mock_topic_create(cluster, topic, number(), 1);
	}
	if (strcmp(command, "leader") == 0)
	{
		topic = strtok(NULL, " \n");
		n = number();
		return rd_kafka_mock_partition_set_leader(cluster, topic, n, number());
	}
	if (strcmp(command, "down") == 0)
		return rd_kafka_mock_broker_set_down(cluster, number());
	if (strcmp(command, "up") == 0)
		return rd_kafka_mock_broker_set_up(cluster, number());
	if (strcmp(command, "rtt") == 0)
	{
		n = number();
		return rd_kafka_mock_broker_set_rtt(cluster, n, number());
	}
	if (strcmp(command, "fail") == 0)
		return fail(cluster);
	if (strcmp(command, "succeed") == 0)
	{
		rd_kafka_mock_clear_request_errors(cluster, number());
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	}
	if (strcmp(command, "topic_error") == 0)
	{
		topic = strtok(NULL, " \n");
		rd_kafka_mock_topic_set_error(cluster, topic, number());
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	}
	return RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED;
}

/*
 * Obey "fail".
 */
static rd_kafka_resp_err_t
fail(rd_kafka_mock_cluster_t *cluster)
{
	rd_kafka_resp_err_t errors[MAX_ERRORS];
	int			request = number();
	const char *word;
	int			n = 0;

	while (n < MAX_ERRORS && (word = strtok(NULL, " \n")) != NULL)
		errors[n++] = atoi(word);
	rd_kafka_mock_push_request_errors_array(cluster, request, n, errors);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/*
 * The next word, as a number.
 */
static int
number(void)
{
	const char *word = strtok(NULL, " \n");

	return word == NULL ? 0 : atoi(word);
}
