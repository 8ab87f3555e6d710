/*-------------------------------------------------------------------------
 *
 * consumer.h
 *	  The callbacks of the broker module "Kafka" for consuming, and what its
 *	  two files share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_CONSUMER_H
#define KAFKA_CONSUMER_H

#include <librdkafka/rdkafka.h>

#include "module.h"

#pragma GCC visibility push(hidden) /* as in broker_client.h */

typedef enum KafkaPartitionState
{
	KAFKA_PARTITION_IDLE,		/* not assigned, or not there any more */
	KAFKA_PARTITION_ASK,		/* the cluster must be asked where to begin */
	KAFKA_PARTITION_CONSUMED,	/* librdkafka fetches it */
	KAFKA_PARTITION_BROKEN		/* what is next cannot be read */
} KafkaPartitionState;

/*
 * A partition of the source.
 */
typedef struct KafkaPartition
{
	KafkaPartitionState state;
	CqrsBrokerPosition position;	/* as the core has assigned it */
	int64_t		next;			/* the next offset to receive */
	int64_t		received;		/* the last one received; -1: none */
	int64_t		settled;		/* the one after the last one settled, or 0 */
	int64_t		reached;		/* where its end was seen, or -1 */
	int64_t		committed;		/* what the group was told, or 0 */
	int64_t		end;			/* what the core was told of its end, or -1 */
	bool		leaderless;		/* when last looked at */
	bool		notice;			/* the core is to be told: */
	CqrsBrokerNoticeKind notice_kind;
	int64_t		notice_value;
	rd_kafka_queue_t *queue;	/* of this one alone, for when we end */
	char	   *error;			/* why it was broken, as long as nothing of it
								 * has come since; or NULL */
} KafkaPartition;

typedef struct KafkaConsumer
{
	KafkaState	state;
	const CqrsBrokerConnection *connection;

	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	rd_kafka_queue_t *events;	/* errors, and what became of commits */
	rd_kafka_queue_t *queue;	/* what is consumed */
	rd_kafka_message_t *held;	/* taken from it, and not handed over yet */

	int			topic_partitions;	/* that the source has, as last seen */
	int			told_partitions;	/* as the core was told */
	int			npartitions;	/* of the array */
	KafkaPartition *partitions;
	int			asking;			/* how many are in state ASK */
	int			failing;		/* how many have an error */
	bool		notices;		/* does any have a notice? */

	struct ReceivedBlock *blocks;	/* all messages of ours */
	CqrsBrokerReceived *free;	/* those not in use */

	bool		wake;			/* does librdkafka sleep when it has enough? */
	size_t		wake_messages;	/* then wake it after so many of them, */
	size_t		wake_bytes;		/* or bytes, */
	size_t		taken_messages; /* which we took from it */
	size_t		taken_bytes;

	int64_t		next_look;		/* when to look at the topic */
	int64_t		next_ask;		/* and not to ask before */
	int64_t		next_second;	/* and to do what is done once a second */
	int64_t		next_commit;	/* and to commit */
	bool		connected;		/* the cluster has answered once */
	int64_t		unseen_since;	/* the cluster does not answer; 0: it does */
	bool		committing;		/* a commit is on its way */

	char		broker_error[CQRS_BROKER_ERROR_SIZE];	/* the last one, or "" */
	int64_t		broker_error_until; /* tell it so long */
	char		trouble[CQRS_BROKER_ERROR_SIZE];	/* that is not a
													 * message's, or "" */
	char		lost[CQRS_BROKER_ERROR_SIZE];	/* why the connection is; or
												 * "" */
} KafkaConsumer;

/* consumer.c */
extern void *kafka_consumer_startup(const CqrsBrokerConnection *connection,
									char *error);
extern bool kafka_consumer_assign(void *state,
								  const CqrsBrokerPosition *positions, int n,
								  char *error);
extern bool kafka_consumer_receive(void *state, int most, size_t bytes,
								   char *error);
extern bool kafka_consumer_settle(void *state,
								  CqrsBrokerReceived *const *messages, int n,
								  char *error);
extern void kafka_consumer_partition_error(KafkaConsumer *consumer,
										   const rd_kafka_message_t *message);

/* partitions.c */
extern bool kafka_partitions_look(KafkaConsumer *consumer, int timeout);
extern void kafka_partitions_ask(KafkaConsumer *consumer);
extern void kafka_partitions_consume(KafkaConsumer *consumer);
extern void kafka_partitions_release(KafkaConsumer *consumer);
extern void kafka_partitions_wake(KafkaConsumer *consumer);
extern void kafka_partitions_retry(KafkaConsumer *consumer);
extern void kafka_partitions_commit(KafkaConsumer *consumer);
extern void kafka_partition_break(KafkaConsumer *consumer,
								  KafkaPartition *partition, int64_t offset,
								  const char *reason);
extern void kafka_partition_mended(KafkaConsumer *consumer,
								   KafkaPartition *partition);
extern void kafka_partition_out_of_range(KafkaConsumer *consumer,
										 KafkaPartition *partition);
extern int64_t kafka_now_ms(void);

#pragma GCC visibility pop

#endif							/* KAFKA_CONSUMER_H */
