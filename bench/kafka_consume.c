/*-------------------------------------------------------------------------
 *
 * kafka_consume.c
 *	  What bench/inbox compares with: a program that consumes a topic, and has the
 *	  messages and its offsets in the same transactions.
 *
 *	kafka_consume BROKERS TOPIC PARTITIONS COUNT BATCH HOW
 *
 * Begins at the offsets in the table "place", which has a row for each partition,
 * and ends when it has COUNT messages more, so many BATCHes, a transaction each.
 * HOW it stores them:
 *
 *	copy		COPY into the table "plain", in binary format
 *	pipeline	calls of handle(key, payload), sent without waiting for answers
 *	call		the same, each of which waits for its answer
 *
 * Prints how many it stored a second. libpq's variables say where.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>

#include "program.h"

#define MOST_PARTITIONS	64

/*
 * As the module's; but more is fetched ahead, as a librdkafka before 2.2 looks only
 * once a second again when it has enough.
 */
static const char *const settings[][2] = {
	{"group.id", "bare"},
	{"isolation.level", "read_committed"},
	{"queued.min.messages", "1000000"},
	{"fetch.max.bytes", "4194304"},
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"auto.offset.reset", "error"},
	{"check.crcs", "true"},
	{"socket.nagle.disable", "true"}
};

/* What is sent to the server at once. */
typedef struct Buffer
{
	char	   *data;
	size_t		size;
	size_t		room;
} Buffer;

static PGconn *conn;
static Buffer buffer;

static void
check_result(PGresult *result, ExecStatusType status)
{
	check(PQresultStatus(result) == status, PQerrorMessage(conn));
	PQclear(result);
}

static void
append(const void *data, size_t size)
{
	if (buffer.size + size > buffer.room)
	{
		buffer.room = 2 * (buffer.size + size);
		buffer.data = realloc(buffer.data, buffer.room);
		check(buffer.data != NULL, "realloc");
	}
	memcpy(buffer.data + buffer.size, data, size);
	buffer.size += size;
}

static void
append_int16(int value)
{
	uint16_t	number = htons(value);

	append(&number, sizeof(number));
}

static void
append_int32(long value)
{
	uint32_t	number = htonl(value);

	append(&number, sizeof(number));
}

/* A column, behind a version, as jsonb has it; 0: none. */
static void
append_column(char version, const void *data, size_t size)
{
	append_int32(size + (version != 0));
	if (version != 0)
		append(&version, 1);
	append(data, size);
}

/* The headers that an event would have. */
static int
make_headers(const rd_kafka_message_t *message, const char *topic, char *json,
			 size_t room)
{
	rd_kafka_timestamp_type_t type;
	int64_t		timestamp = rd_kafka_message_timestamp(message, &type);
	time_t		seconds = timestamp / 1000;
	rd_kafka_headers_t *headers;
	const void *id = "";
	size_t		id_size = 0;
	struct tm	utc;
	char		occurred_at[32];

	if (rd_kafka_message_headers(message, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
		rd_kafka_header_get_last(headers, "message_id", &id, &id_size);
	strftime(occurred_at, sizeof(occurred_at), "%Y-%m-%dT%H:%M:%S",
			 gmtime_r(&seconds, &utc));
	return snprintf(json, room,
					"{\"source\": \"%s\", \"source_message_id\": \"%.*s\", \"source_partition\": %d,"
					" \"source_offset\": %lld, \"occurred_at\": \"%s.%03d000+00:00\"}",
					topic, (int) id_size, (const char *) id, message->partition,
					(long long) message->offset, occurred_at,
					(int) (timestamp % 1000));
}

static void
copy(rd_kafka_message_t **messages, int n, const char *topic)
{
	check_result(PQexec(conn, "BEGIN; COPY plain (event_name, key, headers, payload) FROM STDIN (FORMAT binary)"),
				 PGRES_COPY_IN);
	buffer.size = 0;
	append("PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0", 19);
	for (int i = 0; i < n; i++)
	{
		char		headers[1024];
		int			size = make_headers(messages[i], topic, headers,
										sizeof(headers));

		append_int16(4);
		append_column(0, topic, strlen(topic));
		append_column(0, messages[i]->key, messages[i]->key_len);
		append_column(1, headers, size);
		append_column(1, messages[i]->payload, messages[i]->len);
	}
	append_int16(-1);
	check(PQputCopyData(conn, buffer.data, buffer.size) == 1 &&
		  PQputCopyEnd(conn, NULL) == 1, PQerrorMessage(conn));
	check_result(PQgetResult(conn), PGRES_COMMAND_OK);
	check(PQgetResult(conn) == NULL, "COPY");
}

/* handle() for each message; in a pipeline, without waiting for it. */
static void
call(rd_kafka_message_t **messages, int n, int piped)
{
	static const int formats[] = {1, 1};

	for (int i = 0; i < n; i++)
	{
		const char *values[] = {messages[i]->key, NULL};
		int			sizes[] = {messages[i]->key_len, messages[i]->len + 1};

		buffer.size = 0;
		append("\1", 1);
		append(messages[i]->payload, messages[i]->len);
		values[1] = buffer.data;
		if (piped)
			check(PQsendQueryPrepared(conn, "handle", 2, values, sizes, formats, 0),
				  PQerrorMessage(conn));
		else
			check_result(PQexecPrepared(conn, "handle", 2, values, sizes, formats, 0),
						 PGRES_TUPLES_OK);
	}
}

static void
pipeline(rd_kafka_message_t **messages, int n)
{
	check(PQenterPipelineMode(conn), PQerrorMessage(conn));
	check(PQsendQueryParams(conn, "BEGIN", 0, NULL, NULL, NULL, NULL, 0),
		  PQerrorMessage(conn));
	call(messages, n, 1);
	check(PQpipelineSync(conn), PQerrorMessage(conn));
	for (int i = 0; i <= n; i++)
	{
		check_result(PQgetResult(conn), i == 0 ? PGRES_COMMAND_OK : PGRES_TUPLES_OK);
		check(PQgetResult(conn) == NULL, "pipeline");
	}
	check_result(PQgetResult(conn), PGRES_PIPELINE_SYNC);
	check(PQexitPipelineMode(conn), PQerrorMessage(conn));
}

int
main(int argc, char **argv)
{
	double		started = now();
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *start = rd_kafka_topic_partition_list_new(1);
	rd_kafka_message_t **messages;
	rd_kafka_queue_t *queue;
	rd_kafka_t *rk;
	PGresult   *places;
	char		error[512];
	const char *topic;
	const char *how;
	long		count;
	long		stored = 0;
	int			partitions;
	int			batch;

	check(argc == 7, "counting the arguments");
	topic = argv[2];
	partitions = atoi(argv[3]);
	count = atol(argv[4]);
	batch = atoi(argv[5]);
	how = argv[6];
	messages = calloc(batch, sizeof(*messages));
	check(messages != NULL && partitions <= MOST_PARTITIONS, "calloc");

	conn = PQconnectdb("");
	check(PQstatus(conn) == CONNECTION_OK, PQerrorMessage(conn));
	check_result(PQprepare(conn, "handle", "SELECT handle($1::text, $2::jsonb)", 0, NULL),
				 PGRES_COMMAND_OK);

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		check(rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error,
								sizeof(error)) == RD_KAFKA_CONF_OK, error);
	check(rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], error,
							sizeof(error)) == RD_KAFKA_CONF_OK, error);
	rd_kafka_conf_set_log_cb(conf, NULL);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	check(rk != NULL, error);
	rd_kafka_poll_set_consumer(rk);
	queue = rd_kafka_queue_get_consumer(rk);

	places = PQexec(conn, "SELECT partition, next_offset FROM place");
	check(PQntuples(places) == partitions, PQerrorMessage(conn));
	for (int i = 0; i < partitions; i++)
		rd_kafka_topic_partition_list_add(start, topic, atoi(PQgetvalue(places, i, 0)))->offset =
			atoll(PQgetvalue(places, i, 1));
	PQclear(places);
	check(rd_kafka_assign(rk, start) == RD_KAFKA_RESP_ERR_NO_ERROR, "assigning");
	rd_kafka_topic_partition_list_destroy(start);

	while (stored < count)
	{
		long long	next[MOST_PARTITIONS] = {0};
		char		update[MOST_PARTITIONS * 100];
		char	   *end = update;
		int			most = count - stored < batch ? count - stored : batch;
		int			n = 0;

		/* It returns when it has so many, or time is over. */
		while (n < most)
		{
			ssize_t		more = rd_kafka_consume_batch_queue(queue, 1000, messages + n,
															most - n);

			check(more >= 0, "consuming");
			n += more;
		}
		for (int i = 0; i < n; i++)
		{
			check(messages[i]->err == RD_KAFKA_RESP_ERR_NO_ERROR,
				  rd_kafka_message_errstr(messages[i]));
			next[messages[i]->partition] = messages[i]->offset + 1;
		}

		if (strcmp(how, "copy") == 0)
			copy(messages, n, topic);
		else if (strcmp(how, "pipeline") == 0)
			pipeline(messages, n);
		else
		{
			check_result(PQexec(conn, "BEGIN"), PGRES_COMMAND_OK);
			call(messages, n, 0);
		}
		for (int i = 0; i < partitions; i++)
			if (next[i] > 0)
				end += sprintf(end, "UPDATE place SET next_offset = %lld WHERE partition = %d; ",
							   next[i], i);
		strcpy(end, "COMMIT");
		check_result(PQexec(conn, update), PGRES_COMMAND_OK);
		for (int i = 0; i < n; i++)
			rd_kafka_message_destroy(messages[i]);
		stored += n;
	}
	printf("%.0f\n", count / (now() - started));
	PQfinish(conn);

	/* Who measures does not wait for it to be tidied up. */
	fflush(stdout);
	_Exit(0);
}
