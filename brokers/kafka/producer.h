/*-------------------------------------------------------------------------
 *
 * producer.h
 *	  One producer of librdkafka's, and what its errors mean.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_PRODUCER_H
#define KAFKA_PRODUCER_H

#include <librdkafka/rdkafka.h>

#include "broker_client.h"

#pragma GCC visibility push(hidden) /* as in broker_client.h */

/* Headers with what is not a header in other brokers. */
#define KAFKA_HEADER_MESSAGE_ID		"message_id"
#define KAFKA_HEADER_CONTENT_TYPE	"content-type"

/*
 * A producer. All zeroes, it is closed.
 */
typedef struct KafkaProducer
{
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;	/* of all its events */
	rd_kafka_topic_t *topic;	/* what is produced to; NULL: none yet */
} KafkaProducer;

/*
 * What an error says about the message that has it.
 */
typedef enum KafkaErrorKind
{
	KAFKA_ERROR_NONE,			/* it is written */
	KAFKA_ERROR_GIVEN_BACK,		/* nothing: the producer gave it up, as asked */
	KAFKA_ERROR_RECORD,			/* some record of its batch is not accepted */
	KAFKA_ERROR_TOPIC,			/* its topic is not there, or not for us */
	KAFKA_ERROR_CONNECTION		/* nothing: cluster or connection are at fault */
} KafkaErrorKind;

extern bool kafka_producer_open(KafkaProducer *producer,
								const CqrsBrokerConnection *connection,
								int event_fd, char *error);
extern void kafka_producer_close(KafkaProducer *producer);
extern bool kafka_producer_topic(KafkaProducer *producer, const char *name,
								 char *error);
extern rd_kafka_resp_err_t kafka_producer_produce(KafkaProducer *producer,
												  CqrsBrokerMessage *message,
												  void *opaque);

extern KafkaErrorKind kafka_error_kind(rd_kafka_resp_err_t code);
extern void kafka_describe_rejection(rd_kafka_resp_err_t code,
									 const char *topic,
									 const CqrsBrokerMessage *message,
									 char *error);
extern void kafka_describe_source(rd_kafka_resp_err_t code, const char *topic,
								  char *error);
extern void kafka_describe_broker(rd_kafka_resp_err_t code, const char *text,
								  char *error);

#pragma GCC visibility pop

#endif							/* KAFKA_PRODUCER_H */
