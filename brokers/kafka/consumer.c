/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The callbacks of the broker module "Kafka" for consuming.
 *
 * No header of PostgreSQL is included: what runs here cannot call the server.
 *
 * Protocol
 *
 * The core keeps the offsets and says what to consume, so there are no members
 * of a group, and nothing is ever rebalanced. A group is only told how far we
 * are, for those who watch its lag.
 *
 * librdkafka fetches ahead, up to a limit, and has two queues for us: one for
 * what is consumed, one for all else. Both write to the event descriptor.
 *
 * No error of a partition is passed by: librdkafka would go on behind a batch
 * whose checksum is wrong. partitions.c has what happens then, and when offsets
 * are out of range.
 *
 * Failure
 *
 * Broken connections are mended by librdkafka. When it tells of one, the topic
 * is looked at; once the cluster has not answered that for a while, the
 * connection is lost. It also is if the topic cannot be read any more.
 *
 * Memory
 *
 * A message is librdkafka's until it is settled. It keeps all that was fetched
 * with it.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "consumer.h"
#include "producer.h"
#include "properties.h"

/* How long to wait for the cluster's answer about the topic, in milliseconds. */
#define LOOK_TIMEOUT	1000

/* The same while connecting, until librdkafka's errors are looked at. */
#define CONNECT_TIMEOUT	20

/* librdkafka repeats an error that lasts after 30 s. */
#define BROKER_ERROR_LASTS	40000

/* How often is told what may change with each message; and commits that fail. */
#define SECOND			1000
#define COMMIT_RETRY	30000

/* How long the last commit may take. */
#define LAST_COMMIT_TIMEOUT	100

/* How many messages are allocated at a time. */
#define BLOCK_SIZE		256

/* A message with more headers gives back their room. */
#define HEADERS_KEPT	16

/* How much is fetched at a time by default, if one record may not be more. */
#define FETCH_MAX_BYTES	(4 * 1024 * 1024)

/* How long librdkafka, once it has enough, waits until it looks again. */
#define FETCH_BACKOFF	"10"

/*
 * A message of ours, in use if it has a handle: librdkafka's message.
 */
typedef struct KafkaReceived
{
	CqrsBrokerReceived message;
	CqrsBrokerReceivedHeader *headers;
	size_t		room;			/* for how many headers */
} KafkaReceived;

typedef struct ReceivedBlock
{
	struct ReceivedBlock *next;
	KafkaReceived entries[BLOCK_SIZE];
} ReceivedBlock;

static void consumer_shutdown(void *state);
static bool consumer_open(KafkaConsumer *consumer, char *error);
static bool wait_topic(KafkaConsumer *consumer, char *error);
static void on_error(rd_kafka_t *rk, int code, const char *reason,
					 void *opaque);
static void on_commit(rd_kafka_t *rk, rd_kafka_resp_err_t code,
					  rd_kafka_topic_partition_list_t * offsets, void *opaque);
static void tell_notices(KafkaConsumer *consumer);
static void tell_ends(KafkaConsumer *consumer);
static void notice(KafkaConsumer *consumer, CqrsBrokerNoticeKind kind,
				   int32_t partition, int64_t value);
static void receive_messages(KafkaConsumer *consumer, int most, size_t bytes);
static KafkaPartition *consumed_partition(KafkaConsumer *consumer,
										  const rd_kafka_message_t *message);
static bool hand_over(KafkaConsumer *consumer, rd_kafka_message_t *message);
static KafkaReceived *new_received(KafkaConsumer *consumer);
static bool read_headers(KafkaReceived *received,
						 const rd_kafka_message_t *message);
static const char *header_text(const char *value, size_t size);
static int64_t message_timestamp(const rd_kafka_message_t *message);

/*
 * The callbacks; see cqrs_broker.h for their contracts.
 */
void *
kafka_consumer_startup(const CqrsBrokerConnection *connection, char *error)
{
	KafkaConsumer *consumer = calloc(1, sizeof(KafkaConsumer));

	if (consumer == NULL)
	{
		broker_error(error, "out of memory");
		return NULL;
	}
	consumer->state.shutdown = consumer_shutdown;
	consumer->connection = connection;
	consumer->state.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (consumer->state.event_fd < 0)
		broker_error(error, "could not make a Kafka consumer: %s",
					 strerror(errno));
	else if (consumer_open(consumer, error) && wait_topic(consumer, error))
		return consumer;
	consumer_shutdown(consumer);
	return NULL;
}

bool
kafka_consumer_assign(void *state, const CqrsBrokerPosition *positions, int n,
					  char *error)
{
	KafkaConsumer *consumer = state;
	int			i;

	consumer->partitions = calloc(consumer->topic_partitions,
								  sizeof(KafkaPartition));
	if (consumer->partitions == NULL)
		return broker_error(error, "out of memory");
	consumer->npartitions = consumer->topic_partitions;
	for (i = 0; i < n; i++)
	{
		KafkaPartition *partition;

		if (positions[i].partition < 0 ||
			positions[i].partition >= consumer->npartitions)
			return broker_error(error, "Kafka topic \"%s\" has no partition %d",
								rd_kafka_topic_name(consumer->topic),
								(int) positions[i].partition);

		partition = &consumer->partitions[positions[i].partition];
		partition->position = positions[i];
		partition->received = partition->reached = partition->end = -1;
		partition->next = positions[i].last >= 0 ? positions[i].last :
			positions[i].offset;
		if (partition->next >= 0)
			partition->state = KAFKA_PARTITION_CONSUMED;
		else
		{
			partition->state = KAFKA_PARTITION_ASK;
			consumer->asking++;
		}
	}
	if (consumer->asking > 0)
		kafka_partitions_ask(consumer);
	if (consumer->asking < n && consumer->lost[0] == '\0')
		kafka_partitions_consume(consumer);
	return consumer->lost[0] == '\0' ||
		broker_error(error, "%s", consumer->lost);
}

bool
kafka_consumer_receive(void *state, int most, size_t bytes, char *error)
{
	KafkaConsumer *consumer = state;
	uint64_t	count;
	int64_t		now;

	/* Before the queues are looked at: what comes later is told anew. */
	while (read(consumer->state.event_fd, &count, sizeof(count)) < 0 &&
		   errno == EINTR)
		;
	rd_kafka_poll(consumer->rk, 0);
	receive_messages(consumer, most, bytes);
	if (consumer->wake && consumer->lost[0] == '\0' &&
		(consumer->taken_messages > consumer->wake_messages ||
		 consumer->taken_bytes > consumer->wake_bytes))
	{
		kafka_partitions_wake(consumer);
		consumer->taken_messages = consumer->taken_bytes = 0;
	}

	now = kafka_now_ms();
	if (consumer->lost[0] == '\0' && now >= consumer->next_look)
	{
		kafka_partitions_look(consumer, LOOK_TIMEOUT);
		if (consumer->lost[0] == '\0')
			kafka_partitions_retry(consumer);
	}
	if (consumer->lost[0] == '\0' && consumer->asking > 0 &&
		now >= consumer->next_ask)
		kafka_partitions_ask(consumer);
	tell_notices(consumer);
	if (now >= consumer->next_second)
	{
		tell_ends(consumer);
		consumer->next_second = now + SECOND;
	}
	if (now >= consumer->next_commit)
	{
		kafka_partitions_commit(consumer);
		consumer->next_commit = now + SECOND;
	}

	if (consumer->lost[0] != '\0')
		return broker_error(error, "%s", consumer->lost);
	if (consumer->failing > 0)
	{
		const KafkaPartition *partition = consumer->partitions;

		while (partition->error == NULL)
			partition++;
		broker_error(error, "%s", partition->error);
	}
	else if (consumer->trouble[0] != '\0')
		broker_error(error, "%s", consumer->trouble);
	else if (now < consumer->broker_error_until)
		broker_error(error, "%s", consumer->broker_error);
	return true;
}

bool
kafka_consumer_settle(void *state, CqrsBrokerReceived *const *messages, int n,
					  char *error)
{
	KafkaConsumer *consumer = state;
	int			i;

	for (i = 0; i < n; i++)
	{
		CqrsBrokerReceived *message = messages[i];
		KafkaReceived *received = (KafkaReceived *) message;

		consumer->partitions[message->partition].settled = message->offset + 1;
		rd_kafka_message_destroy(message->handle);
		message->handle = NULL;
		if (received->room > HEADERS_KEPT)
		{
			free(received->headers);
			received->headers = NULL;
			received->room = 0;
		}
		message->next = consumer->free;
		consumer->free = message;
	}
	return true;
}

/*
 * Callback shutdown(); also called for a consumer that startup did not finish.
 * It waits for a commit that is sent, but not for brokers that do not answer.
 */
static void
consumer_shutdown(void *state)
{
	KafkaConsumer *consumer = state;
	int			i;

	if (consumer->unseen_since == 0 && consumer->partitions != NULL)
	{
		int64_t		deadline = kafka_now_ms() + LAST_COMMIT_TIMEOUT;

		kafka_partitions_commit(consumer);
		while (consumer->committing && kafka_now_ms() < deadline)
			rd_kafka_poll(consumer->rk, 10);
	}

	if (consumer->held != NULL)
		rd_kafka_message_destroy(consumer->held);
	while (consumer->blocks != NULL)
	{
		ReceivedBlock *block = consumer->blocks;

		for (i = 0; i < BLOCK_SIZE; i++)
		{
			if (block->entries[i].message.handle != NULL)
				rd_kafka_message_destroy(block->entries[i].message.handle);
			free(block->entries[i].headers);
		}
		consumer->blocks = block->next;
		free(block);
	}
	if (consumer->queue != NULL)
		kafka_partitions_release(consumer);
	if (consumer->events != NULL)
		rd_kafka_queue_io_event_enable(consumer->events, -1, NULL, 0);
	if (consumer->queue != NULL)
		rd_kafka_queue_io_event_enable(consumer->queue, -1, NULL, 0);
	if (consumer->events != NULL)
		rd_kafka_queue_destroy(consumer->events);
	if (consumer->queue != NULL)
		rd_kafka_queue_destroy(consumer->queue);
	if (consumer->topic != NULL)
		rd_kafka_topic_destroy(consumer->topic);
	if (consumer->rk != NULL)
		rd_kafka_destroy_flags(consumer->rk,
							   RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	for (i = 0; i < consumer->npartitions; i++)
		free(consumer->partitions[i].error);
	free(consumer->partitions);
	if (consumer->state.event_fd >= 0)
		close(consumer->state.event_fd);
	free(consumer);
}

/*
 * Make a consumer, which starts to connect. Returns false, and sets error, if
 * it cannot be made with these options.
 */
static bool
consumer_open(KafkaConsumer *consumer, char *error)
{
	static const uint64_t one = 1;
	const CqrsBrokerConnection *connection = consumer->connection;
	char		reason[CQRS_BROKER_ERROR_SIZE] = "";
	rd_kafka_conf_t *conf = kafka_conf_new(connection, error);

	if (conf == NULL)
		return false;
	if (broker_option(connection, "group.id") == NULL)
	{
		snprintf(reason, sizeof(reason), "%s.%s", connection->database,
				 connection->subscription);
		rd_kafka_conf_set(conf, "group.id", reason, NULL, 0);
	}
	if (broker_option(connection, "fetch.max.bytes") == NULL)
	{
		/* It may not be less than one record that is allowed. */
		int			most = broker_option_int(connection, "message.max.bytes", 0);

		snprintf(reason, sizeof(reason), "%d",
				 most > FETCH_MAX_BYTES ? most : FETCH_MAX_BYTES);
		rd_kafka_conf_set(conf, "fetch.max.bytes", reason, NULL, 0);
	}
	consumer->wake = rd_kafka_conf_set(conf, "fetch.queue.backoff.ms",
									   FETCH_BACKOFF, NULL, 0) !=
		RD_KAFKA_CONF_OK;
	consumer->wake_messages =
		kafka_option_int(connection, "queued.min.messages") / 2;
	consumer->wake_bytes = (size_t) 1024 / 2 *
		kafka_option_int(connection, "queued.max.messages.kbytes");
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_offset_commit_cb(conf, on_commit);
	rd_kafka_conf_set_opaque(conf, consumer);

	consumer->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, reason,
								sizeof(reason));
	if (consumer->rk == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return broker_error(error, "could not make a Kafka consumer: %s",
							reason);
	}
	consumer->topic = rd_kafka_topic_new(consumer->rk, connection->source,
										 NULL);
	if (consumer->topic == NULL)
		return broker_error(error, "could not use Kafka topic \"%s\": %s",
							connection->source,
							rd_kafka_err2str(rd_kafka_last_error()));
	consumer->events = rd_kafka_queue_get_main(consumer->rk);
	consumer->queue = rd_kafka_queue_get_consumer(consumer->rk);
	rd_kafka_queue_io_event_enable(consumer->events, consumer->state.event_fd,
								   &one, sizeof(one));
	rd_kafka_queue_io_event_enable(consumer->queue, consumer->state.event_fd,
								   &one, sizeof(one));
	return true;
}

/*
 * Wait until the cluster tells of the topic. Returns false, and sets error, once
 * it is known that this fails.
 *
 * The time is enough for two brokers that do not answer.
 */
static bool
wait_topic(KafkaConsumer *consumer, char *error)
{
	int64_t		deadline = kafka_now_ms() + 1000 +
	2 * (int64_t) kafka_option_int(consumer->connection,
								   "socket.connection.setup.timeout.ms");

	while (!kafka_partitions_look(consumer, CONNECT_TIMEOUT))
	{
		rd_kafka_poll(consumer->rk, CONNECT_TIMEOUT);
		if (kafka_now_ms() > deadline && consumer->lost[0] == '\0')
		{
			if (consumer->trouble[0] != '\0')
				broker_error(consumer->lost, "%s", consumer->trouble);
			else
				broker_error(consumer->lost, "could not connect to Kafka at %s: no answer",
							 broker_option(consumer->connection,
										   "bootstrap.servers"));
		}
		if (consumer->lost[0] != '\0')
			break;
	}
	return consumer->lost[0] == '\0' ||
		broker_error(error, "%s", consumer->lost);
}

/*
 * librdkafka tells of an error that is no partition's. All brokers being down,
 * or one of them, may be over at once: the topic is looked at, which tells.
 *
 * That a connection was closed that was made is none of ours: it is made again.
 * Nor does it matter if the group cannot be told anything.
 */
static void
on_error(rd_kafka_t *rk, int code, const char *reason, void *opaque)
{
	KafkaConsumer *consumer = opaque;
	int64_t		now = kafka_now_ms();

	switch (code)
	{
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
			break;

		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
			kafka_describe_broker(code, reason, consumer->lost);
			break;

		default:
			if (strstr(reason, "GroupCoordinator") != NULL)
				return;
			if (code != RD_KAFKA_RESP_ERR__TRANSPORT ||
				strstr(reason, "in state UP") == NULL)
				consumer->broker_error_until = now + BROKER_ERROR_LASTS;
			kafka_describe_broker(code, reason, consumer->broker_error);
			break;
	}
	if (consumer->next_look > now)
		consumer->next_look = now;
}

/*
 * A commit has ended. If it has failed, it is tried again, sometime.
 */
static void
on_commit(rd_kafka_t *rk, rd_kafka_resp_err_t code,
		  rd_kafka_topic_partition_list_t * offsets, void *opaque)
{
	KafkaConsumer *consumer = opaque;
	int			i;

	consumer->committing = false;
	if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	for (i = 0; i < consumer->npartitions; i++)
		consumer->partitions[i].committed = 0;
	consumer->next_commit = kafka_now_ms() + COMMIT_RETRY;
}

/*
 * Tell the core what is new about the source.
 */
static void
tell_notices(KafkaConsumer *consumer)
{
	int			i;

	if (consumer->told_partitions != consumer->topic_partitions)
	{
		consumer->told_partitions = consumer->topic_partitions;
		notice(consumer, CQRS_BROKER_NOTICE_PARTITIONS, 0,
			   consumer->topic_partitions);
	}
	for (i = 0; i < consumer->npartitions && consumer->notices; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		if (partition->notice)
			notice(consumer, partition->notice_kind, i,
				   partition->notice_value);
		partition->notice = false;
	}
	consumer->notices = false;
}

/*
 * Tell the core where partitions end, as of what was fetched last.
 */
static void
tell_ends(KafkaConsumer *consumer)
{
	int			i;

	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];
		int64_t		low;
		int64_t		high;

		if (partition->state == KAFKA_PARTITION_CONSUMED &&
			rd_kafka_get_watermark_offsets(consumer->rk,
										   rd_kafka_topic_name(consumer->topic),
										   i, &low, &high) ==
			RD_KAFKA_RESP_ERR_NO_ERROR &&
			high >= 0 && high != partition->end)
		{
			partition->end = high;
			notice(consumer, CQRS_BROKER_NOTICE_END, i, high);
		}
	}
}

static void
notice(KafkaConsumer *consumer, CqrsBrokerNoticeKind kind, int32_t partition,
	   int64_t value)
{
	CqrsBrokerNotice notice = {kind, partition, value};

	consumer->connection->notice(consumer->connection, &notice);
}

/*
 * Hand over what has come, as receive() says. A message for which there is no
 * room is held.
 */
static void
receive_messages(KafkaConsumer *consumer, int most, size_t bytes)
{
	int			n = 0;
	size_t		size = 0;

	while (consumer->lost[0] == '\0')
	{
		rd_kafka_message_t *message = consumer->held;

		if (message == NULL)
			message = rd_kafka_consume_queue(consumer->queue, 0);
		consumer->held = NULL;
		if (message == NULL)
			return;

		if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			kafka_consumer_partition_error(consumer, message);
			rd_kafka_message_destroy(message);
			continue;
		}
		if (n >= most || (n > 0 && size >= bytes))
		{
			consumer->held = message;
			return;
		}
		size += message->len + message->key_len;
		consumer->taken_messages++;
		consumer->taken_bytes += message->len;
		if (hand_over(consumer, message))
			n++;
		else
			rd_kafka_message_destroy(message);
	}
}

/*
 * Handle what librdkafka says of a partition instead of a message of it.
 */
void
kafka_consumer_partition_error(KafkaConsumer *consumer,
							   const rd_kafka_message_t *message)
{
	KafkaPartition *partition = consumed_partition(consumer, message);

	/* Of the group, nothing matters. */
	if (message->rkt == NULL)
		return;

	switch (message->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			if (partition == NULL || message->offset < partition->next)
				return;
			if (partition->error != NULL)
				kafka_partition_mended(consumer, partition);
			if (partition->reached != message->offset)
				notice(consumer, CQRS_BROKER_NOTICE_REACHED,
					   message->partition, message->offset);
			partition->next = partition->reached = message->offset;
			return;

		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			if (partition != NULL)
				kafka_partition_out_of_range(consumer, partition);
			return;

		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			kafka_describe_source(message->err,
								  rd_kafka_topic_name(consumer->topic),
								  consumer->lost);
			return;

		default:
			if (partition != NULL)
				kafka_partition_break(consumer, partition,
									  message->offset >= 0 ? message->offset :
									  partition->next,
									  rd_kafka_message_errstr(message));
			return;
	}
}

/*
 * The partition of a message, if that is consumed.
 */
static KafkaPartition *
consumed_partition(KafkaConsumer *consumer, const rd_kafka_message_t *message)
{
	KafkaPartition *partition;

	if (message->partition < 0 || message->partition >= consumer->npartitions)
		return NULL;
	partition = &consumer->partitions[message->partition];
	return partition->state == KAFKA_PARTITION_CONSUMED ? partition : NULL;
}

/*
 * Hand over a message. Returns false if the core must not have it: the message
 * is still the caller's then.
 */
static bool
hand_over(KafkaConsumer *consumer, rd_kafka_message_t *message)
{
	KafkaPartition *partition = consumed_partition(consumer, message);
	KafkaReceived *received;

	if (partition == NULL || message->offset < partition->next)
		return false;
	received = new_received(consumer);
	if (received == NULL)
		return broker_error(consumer->lost, "out of memory");

	received->message = (CqrsBrokerReceived)
	{
		.partition = message->partition,
			.offset = message->offset,
			.key = message->key,
			.key_size = message->key_len,
			.body = message->payload,
			.body_size = message->len,
			.timestamp = message_timestamp(message)
	};
	if (!read_headers(received, message))
	{
		received->message.next = consumer->free;
		consumer->free = &received->message;
		kafka_partition_break(consumer, partition, message->offset,
							  "its headers are malformed");
		return false;
	}
	received->message.handle = message;

	if (partition->error != NULL)
		kafka_partition_mended(consumer, partition);
	partition->received = message->offset;
	partition->next = message->offset + 1;
	consumer->connection->received(consumer->connection, &received->message);
	return true;
}

/*
 * A message of ours that is not in use; NULL if there is no memory.
 */
static KafkaReceived *
new_received(KafkaConsumer *consumer)
{
	KafkaReceived *received;
	int			i;

	if (consumer->free == NULL)
	{
		ReceivedBlock *block = calloc(1, sizeof(ReceivedBlock));

		if (block == NULL)
			return NULL;
		block->next = consumer->blocks;
		consumer->blocks = block;
		for (i = BLOCK_SIZE - 1; i >= 0; i--)
		{
			block->entries[i].message.next = consumer->free;
			consumer->free = &block->entries[i].message;
		}
	}
	received = (KafkaReceived *) consumer->free;
	consumer->free = received->message.next;
	return received;
}

/*
 * Read a message's headers, the first of each of those that have a place of
 * their own to there. Returns false if they cannot be read.
 */
static bool
read_headers(KafkaReceived *received, const rd_kafka_message_t *message)
{
	CqrsBrokerReceived *to = &received->message;
	rd_kafka_headers_t *headers;
	rd_kafka_resp_err_t code;
	CqrsBrokerReceivedHeader header;
	const void *value;
	size_t		n;
	size_t		i;

	code = rd_kafka_message_headers(message, &headers);
	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
		return code == RD_KAFKA_RESP_ERR__NOENT;

	n = rd_kafka_header_cnt(headers);
	if (received->room < n)
	{
		free(received->headers);
		received->headers = calloc(n, sizeof(CqrsBrokerReceivedHeader));
		received->room = received->headers != NULL ? n : 0;
		if (received->headers == NULL)
			return false;
	}
	for (i = 0; rd_kafka_header_get_all(headers, i, &header.name, &value,
										&header.value_size) ==
		 RD_KAFKA_RESP_ERR_NO_ERROR; i++)
	{
		const char *text = header_text(value, header.value_size);

		if (to->message_id == NULL && text !=NULL &&
			strcmp(header.name, KAFKA_HEADER_MESSAGE_ID) == 0)
			to->message_id = text;

		else if (to->content_type == NULL && text !=NULL &&
				 strcmp(header.name, KAFKA_HEADER_CONTENT_TYPE) == 0)
			to->content_type = text;

		else
		{
			header.value = value;
			received->headers[to->nheaders++] = header;
		}
	}
	to->headers = received->headers;
	return true;
}

/*
 * A header's value as a string, which librdkafka has a NUL behind; NULL if it
 * is none.
 */
static const char *
header_text(const char *value, size_t size)
{
	return value != NULL && memchr(value, '\0', size) == NULL ? value : NULL;
}

/*
 * When a message was sent, or written, in microseconds; INT64_MIN if that is not
 * known, or is no time.
 */
static int64_t
message_timestamp(const rd_kafka_message_t *message)
{
	rd_kafka_timestamp_type_t type;
	int64_t		milliseconds = rd_kafka_message_timestamp(message, &type);

	if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE || milliseconds < 0 ||
		milliseconds > INT64_MAX / 1000)
		return INT64_MIN;
	return milliseconds * 1000;
}
