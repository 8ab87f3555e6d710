/*-------------------------------------------------------------------------
 *
 * producer.c
 *	  One producer of librdkafka's, and what its errors mean.
 *
 *-------------------------------------------------------------------------
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "producer.h"
#include "properties.h"

/* The longest name that a topic can have. */
#define TOPIC_NAME_MAX	249

/*
 * Before, librdkafka sends a nonce in SCRAM that is not the one it began with.
 * Kafka 4 notices, and answers as if the password were wrong.
 */
#define FIRST_WITH_SCRAM_OF_KAFKA_4	0x020601ff	/* 2.6.1 */

static bool check_topic_name(const char *name, char *error);
static rd_kafka_headers_t *message_headers(const CqrsBrokerMessage *message);

/*
 * Make a producer, which starts to connect. When it has an event, it writes to
 * event_fd, an eventfd, which must stay open for as long as the producer is.
 *
 * Returns false, and sets error, if it cannot be made with these options.
 */
bool
kafka_producer_open(KafkaProducer *producer,
					const CqrsBrokerConnection *connection, int event_fd,
					char *error)
{
	static const uint64_t one = 1;
	char		reason[CQRS_BROKER_ERROR_SIZE] = "";
	rd_kafka_conf_t *conf = kafka_conf_new(connection, error);

	if (conf == NULL)
		return false;
	rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR);
	producer->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason,
								sizeof(reason));
	if (producer->rk == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return broker_error(error, "could not make a Kafka producer: %s",
							reason);
	}
	producer->queue = rd_kafka_queue_get_main(producer->rk);
	rd_kafka_queue_io_event_enable(producer->queue, event_fd, &one,
								   sizeof(one));
	return true;
}

/*
 * End a producer, without waiting for what is on its way, for a name server, or
 * for the network. No event comes any more, and nothing of a message is used.
 */
void
kafka_producer_close(KafkaProducer *producer)
{
	if (producer->rk == NULL)
		return;
	rd_kafka_purge(producer->rk, RD_KAFKA_PURGE_F_QUEUE |
				   RD_KAFKA_PURGE_F_INFLIGHT |
				   RD_KAFKA_PURGE_F_NON_BLOCKING);
	rd_kafka_queue_io_event_enable(producer->queue, -1, NULL, 0);
	if (producer->topic != NULL)
		rd_kafka_topic_destroy(producer->topic);
	rd_kafka_queue_destroy(producer->queue);
	rd_kafka_destroy(producer->rk);
	memset(producer, 0, sizeof(*producer));
}

/*
 * Produce to a topic from now on. Returns false, and sets error, if there
 * cannot be one of this name.
 */
bool
kafka_producer_topic(KafkaProducer *producer, const char *name, char *error)
{
	if (producer->topic != NULL)
	{
		if (strcmp(rd_kafka_topic_name(producer->topic), name) == 0)
			return true;
		rd_kafka_topic_destroy(producer->topic);
		producer->topic = NULL;
	}
	if (!check_topic_name(name, error))
		return false;
	producer->topic = rd_kafka_topic_new(producer->rk, name, NULL);
	return producer->topic != NULL ||
		broker_error(error, "could not use Kafka topic \"%s\": %s", name,
					 rd_kafka_err2str(rd_kafka_last_error()));
}

/*
 * Is this a name that a topic can have? If not, returns false and sets error.
 */
static bool
check_topic_name(const char *name, char *error)
{
	size_t		length = strspn(name, "abcdefghijklmnopqrstuvwxyz"
								"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
								"0123456789._-");

	if (name[length] == '\0' && length >= 1 && length <= TOPIC_NAME_MAX &&
		strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
		return true;
	return broker_error(error, "Kafka cannot have a topic \"%.250s\": names have 1 to %d letters, digits, dots, hyphens and underscores of ASCII; see the server's option \"topic\"",
						name, TOPIC_NAME_MAX);
}

/*
 * Give a message to the producer, which then has it until a delivery report
 * comes with this opaque. Its body is not copied. The topic has been chosen.
 *
 * Returns an error if it does not take it.
 */
rd_kafka_resp_err_t
kafka_producer_produce(KafkaProducer *producer, CqrsBrokerMessage *message,
					   void *opaque)
{
	rd_kafka_headers_t *headers = message_headers(message);
	rd_kafka_vu_t args[7];
	rd_kafka_error_t *failure;
	rd_kafka_resp_err_t code;
	int			n = 0;

	args[n].vtype = RD_KAFKA_VTYPE_RKT;
	args[n++].u.rkt = producer->topic;
	args[n].vtype = RD_KAFKA_VTYPE_TIMESTAMP;
	args[n++].u.i64 = message->timestamp / 1000;
	args[n].vtype = RD_KAFKA_VTYPE_HEADERS;
	args[n++].u.headers = headers;
	args[n].vtype = RD_KAFKA_VTYPE_OPAQUE;
	args[n++].u.ptr = opaque;
	args[n].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
	args[n++].u.i = 0;			/* neither copied nor freed */
	if (message->key != NULL)
	{
		args[n].vtype = RD_KAFKA_VTYPE_KEY;
		args[n].u.mem.ptr = (void *) message->key;
		args[n++].u.mem.size = strlen(message->key);
	}
	if (message->body != NULL)
	{
		args[n].vtype = RD_KAFKA_VTYPE_VALUE;
		args[n].u.mem.ptr = (void *) message->body;
		args[n++].u.mem.size = message->body_size;
	}

	failure = rd_kafka_produceva(producer->rk, args, n);
	if (failure == NULL)
		return RD_KAFKA_RESP_ERR_NO_ERROR;

	/* The headers are ours again. */
	rd_kafka_headers_destroy(headers);
	code = rd_kafka_error_code(failure);
	rd_kafka_error_destroy(failure);
	return code;
}

/*
 * The headers of a record.
 */
static rd_kafka_headers_t *
message_headers(const CqrsBrokerMessage *message)
{
	rd_kafka_headers_t *headers = rd_kafka_headers_new(message->nheaders + 2);
	int			i;

	rd_kafka_header_add(headers, KAFKA_HEADER_MESSAGE_ID,
						sizeof(KAFKA_HEADER_MESSAGE_ID) - 1,
						message->message_id, strlen(message->message_id));
	if (message->content_type != NULL)
		rd_kafka_header_add(headers, KAFKA_HEADER_CONTENT_TYPE,
							sizeof(KAFKA_HEADER_CONTENT_TYPE) - 1,
							message->content_type,
							strlen(message->content_type));
	for (i = 0; i < message->nheaders; i++)
		rd_kafka_header_add(headers, message->headers[i].name, -1,
							message->headers[i].value,
							strlen(message->headers[i].value));
	return headers;
}

/*
 * What an error, of a delivery report or of producing, says about the message.
 */
KafkaErrorKind
kafka_error_kind(rd_kafka_resp_err_t code)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			return KAFKA_ERROR_NONE;

			/* After purging, and after a fatal error. */
		case RD_KAFKA_RESP_ERR__PURGE_QUEUE:
		case RD_KAFKA_RESP_ERR__PURGE_INFLIGHT:
		case RD_KAFKA_RESP_ERR__FATAL:
			return KAFKA_ERROR_GIVEN_BACK;

			/* A broker accepts or refuses a batch as a whole. */
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
		case RD_KAFKA_RESP_ERR_INVALID_RECORD:
		case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
		case RD_KAFKA_RESP_ERR_POLICY_VIOLATION:
			return KAFKA_ERROR_RECORD;

		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			return KAFKA_ERROR_TOPIC;

		default:
			return KAFKA_ERROR_CONNECTION;
	}
}

/*
 * Why a message was rejected or refused: set error.
 */
void
kafka_describe_rejection(rd_kafka_resp_err_t code, const char *topic,
						 const CqrsBrokerMessage *message, char *error)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			broker_error(error, "not authorized to write to Kafka topic \"%s\"",
						 topic);
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			broker_error(error, "Kafka topic \"%s\" does not exist, and its cluster does not create it",
						 topic);
			break;
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
			broker_error(error, "a record of %zu bytes is larger than Kafka topic \"%s\" or the server's option \"message.max.bytes\" allows",
						 message->body_size, topic);
			break;
		default:
			broker_error(error, "Kafka topic \"%s\" does not accept the record: %s (%s)",
						 topic, rd_kafka_err2str(code),
						 rd_kafka_err2name(code));
			break;
	}
}

/*
 * Why a topic cannot be consumed: set error.
 */
void
kafka_describe_source(rd_kafka_resp_err_t code, const char *topic, char *error)
{
	switch (code)
	{
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			broker_error(error, "not authorized to read Kafka topic \"%s\"",
						 topic);
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			broker_error(error, "Kafka topic \"%s\" does not exist", topic);
			break;
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			broker_error(error, "Kafka cannot have a topic \"%s\"", topic);
			break;
		default:
			broker_error(error, "could not read Kafka topic \"%s\": %s (%s)",
						 topic, rd_kafka_err2str(code),
						 rd_kafka_err2name(code));
			break;
	}
}

/*
 * Say in our words what librdkafka says of a broker, such as
 *
 *	sasl_ssl://kafka1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed:
 *	Connection refused (after 0ms in state CONNECT, 3 identical errors ...)
 *
 * The broker's name and the reason are what matters.
 */
void
kafka_describe_broker(rd_kafka_resp_err_t code, const char *text, char *error)
{
	char		copy[CQRS_BROKER_ERROR_SIZE];
	const char *verb = code == RD_KAFKA_RESP_ERR__AUTHENTICATION ?
	"could not authenticate to" : "could not connect to";
	char	   *name = copy;
	char	   *reason;
	char	   *end;

	broker_error(copy, "%s", text);

	reason = strstr(copy, ": ");
	if (reason == NULL)
	{
		broker_error(error, "%s Kafka: %s", verb, copy);
		return;
	}
	*reason = '\0';
	reason += 2;

	end = strstr(name, "://");
	if (end != NULL)
		name = end + 3;
	end = strrchr(name, '/');
	if (end != NULL)
		*end = '\0';

	if (strncmp(reason, "Connect to ", 11) == 0)
	{
		end = strstr(reason, " failed: ");
		if (end != NULL)
			reason = end + 9;
	}
	end = strstr(reason, " (after ");
	if (end != NULL)
		*end = '\0';

	if (code == RD_KAFKA_RESP_ERR__AUTHENTICATION &&
		strstr(reason, "SCRAM") != NULL &&
		rd_kafka_version() < FIRST_WITH_SCRAM_OF_KAFKA_4)
		broker_error(error, "%s Kafka at %s: %s; librdkafka %s cannot log in to Kafka 4 with SCRAM, and 2.6.1 can",
					 verb, name, reason, rd_kafka_version_str());
	else
		broker_error(error, "%s Kafka at %s: %s", verb, name, reason);
}
