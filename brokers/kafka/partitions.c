/*-------------------------------------------------------------------------
 *
 * partitions.c
 *	  Which partitions of its source a consumer consumes, and from where.
 *
 * librdkafka is assigned partitions at offsets that we know. What it could find
 * out itself (a group's offsets, the first one, the last one), we ask for, so
 * that the core can record it before anything has come.
 *
 * An offset may be out of range. What is there tells what has happened, by the
 * partition's first offset ("low") and the one after its last ("high"), as
 * long as nothing of it was received yet:
 *
 * 1. What is to be consumed next is below low: a gap.
 * 2. It is above high: the partition is another one, as it is shorter than what
 *	  was consumed of it.
 * 3. Otherwise, the last message consumed, where consuming began for the core
 *	  to compare it, is gone, or has only come since. If it is there, it is
 *	  asked for once more; if not, consuming begins behind it.
 *
 * If something was received, and it is neither 1 nor 2, then the partition was
 * shorter for a while. The connection is given up: another one begins with the
 * last message consumed, and the core sees whether that is the same.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "consumer.h"
#include "producer.h"
#include "properties.h"

/* How long, in milliseconds, the cluster may be silent. */
#define DOWN_GRACE		2000

/*
 * How often, in milliseconds, the topic is looked at, if no option says so; and
 * while something is wrong with it.
 */
#define LOOK_INTERVAL	60000
#define TROUBLE_INTERVAL	5000

/* The same while the cluster does not answer. */
#define LOOK_AGAIN		100

/* How long is waited for offsets; and before they are asked for again. */
#define ASK_TIMEOUT		3000
#define ASK_INTERVAL	1000

static int	look_interval(const KafkaConsumer *consumer);
static bool look_at_topic(KafkaConsumer *consumer,
						  const rd_kafka_metadata_topic_t * topic);
static rd_kafka_topic_partition_list_t * query(KafkaConsumer *consumer,
											   int64_t offset);
static int64_t result(const rd_kafka_topic_partition_list_t * list,
					  const char *topic, int32_t partition);
static bool begin(KafkaConsumer *consumer, KafkaPartition *partition,
				  int64_t low, int64_t high, int64_t at_time);
static void drain(rd_kafka_queue_t *queue);
static void tell(KafkaConsumer *consumer, KafkaPartition *partition,
				 CqrsBrokerNoticeKind kind, int64_t value);

/*
 * Look at the topic, waiting so many milliseconds. Returns false if the cluster
 * has not answered; if that has lasted, or the topic is not there, the
 * connection is lost.
 */
bool
kafka_partitions_look(KafkaConsumer *consumer, int timeout)
{
	const struct rd_kafka_metadata *metadata;
	bool		seen = false;

	if (rd_kafka_metadata(consumer->rk, 0, consumer->topic, &metadata,
						  timeout) == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		seen = metadata->topic_cnt == 1 &&
			look_at_topic(consumer, &metadata->topics[0]);
		rd_kafka_metadata_destroy(metadata);

		/* While no broker was there, all errors were about that. */
		if (consumer->unseen_since != 0)
			consumer->broker_error_until = 0;
		consumer->unseen_since = 0;
		consumer->connected = true;
		consumer->next_look = kafka_now_ms() +
			(seen && consumer->trouble[0] == '\0' ?
			 look_interval(consumer) : TROUBLE_INTERVAL);
		return seen;
	}

	if (consumer->unseen_since == 0)
		consumer->unseen_since = kafka_now_ms() - timeout;
	else if (kafka_now_ms() - consumer->unseen_since > DOWN_GRACE)
	{
		if (consumer->broker_error[0] != '\0')
			broker_error(consumer->lost, "%s", consumer->broker_error);
		else if (consumer->connected)
			broker_error(consumer->lost, "Kafka at %s does not answer",
						 broker_option(consumer->connection,
									   "bootstrap.servers"));
	}
	consumer->next_look = kafka_now_ms() + LOOK_AGAIN;
	return false;
}

/*
 * How often the topic is looked at.
 */
static int
look_interval(const KafkaConsumer *consumer)
{
	int			interval;

	interval = broker_option_int(consumer->connection,
								 "topic.metadata.refresh.interval.ms", -1);
	return interval > 0 ? interval : LOOK_INTERVAL;
}

/*
 * Note what the cluster says of the topic. Returns false if it will know later.
 */
static bool
look_at_topic(KafkaConsumer *consumer, const rd_kafka_metadata_topic_t * topic)
{
	int			i;

	consumer->trouble[0] = '\0';
	if (topic->err == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)
	{
		broker_error(consumer->trouble, "Kafka topic \"%s\" has no leader",
					 topic->topic);
		return false;
	}
	if (topic->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		kafka_describe_source(topic->err, topic->topic, consumer->lost);
		return true;
	}

	consumer->topic_partitions = topic->partition_cnt;
	for (i = 0; i < topic->partition_cnt; i++)
	{
		const		rd_kafka_metadata_partition_t *seen = &topic->partitions[i];
		KafkaPartition *partition;

		if (seen->id < 0 || seen->id >= consumer->npartitions)
			continue;
		partition = &consumer->partitions[seen->id];
		partition->leaderless = seen->leader < 0;
		if (partition->leaderless &&
			partition->state != KAFKA_PARTITION_IDLE &&
			consumer->trouble[0] == '\0')
			broker_error(consumer->trouble, "partition %d of Kafka topic \"%s\" has no leader",
						 (int) seen->id, topic->topic);
	}
	return true;
}

/*
 * Ask where the partitions begin that are in state ASK, and have librdkafka
 * consume those of which this is known then. It may be asked for again later.
 */
void
kafka_partitions_ask(KafkaConsumer *consumer)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *low = query(consumer, RD_KAFKA_OFFSET_BEGINNING);
	rd_kafka_topic_partition_list_t *high = NULL;
	rd_kafka_topic_partition_list_t *at_time = NULL;
	bool		begun = false;
	int			i;

	if (low != NULL)
		high = query(consumer, RD_KAFKA_OFFSET_END);
	if (high != NULL)
		at_time = query(consumer, CQRS_BROKER_OFFSET_TIME);

	for (i = 0; at_time != NULL && i < low->cnt; i++)
	{
		int32_t		number = low->elems[i].partition;
		int64_t		first = result(low, topic, number);
		int64_t		end = result(high, topic, number);

		if (first >= 0 && end >= 0)
			begun |= begin(consumer, &consumer->partitions[number], first, end,
						   result(at_time, topic, number));
	}
	if (low != NULL)
		rd_kafka_topic_partition_list_destroy(low);
	if (high != NULL)
		rd_kafka_topic_partition_list_destroy(high);
	if (at_time != NULL)
		rd_kafka_topic_partition_list_destroy(at_time);

	consumer->next_ask = kafka_now_ms() + ASK_INTERVAL;
	if (consumer->asking > 0)
	{
		if (consumer->next_look > consumer->next_ask)
			consumer->next_look = consumer->next_ask;
	}
	if (begun && consumer->lost[0] == '\0')
		kafka_partitions_consume(consumer);
}

/*
 * Ask for an offset of each partition in state ASK: the first one, the one
 * after the last, or for CQRS_BROKER_OFFSET_TIME that of the core's timestamp.
 *
 * Returns a list of them; NULL if there is no answer. The caller destroys it.
 */
static rd_kafka_topic_partition_list_t *
query(KafkaConsumer *consumer, int64_t offset)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *list;
	int			i;

	list = rd_kafka_topic_partition_list_new(consumer->asking);
	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];
		int64_t		timestamp = offset;

		if (partition->state != KAFKA_PARTITION_ASK || partition->leaderless)
			continue;
		if (offset == CQRS_BROKER_OFFSET_TIME)
		{
			if (partition->position.offset != CQRS_BROKER_OFFSET_TIME)
				continue;
			timestamp = partition->position.timestamp / 1000 +
				(partition->position.timestamp % 1000 > 0);
			if (timestamp < 0)
				timestamp = 0;
		}

		/* The protocol has special timestamps for the first and the last. */
		rd_kafka_topic_partition_list_add(list, topic, i)->offset = timestamp;
	}
	if (list->cnt > 0 &&
		rd_kafka_offsets_for_times(consumer->rk, list, ASK_TIMEOUT) !=
		RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		rd_kafka_topic_partition_list_destroy(list);
		return NULL;
	}
	return list;
}

/*
 * The offset that was asked for; negative if there is none.
 */
static int64_t
result(const rd_kafka_topic_partition_list_t * list, const char *topic,
	   int32_t partition)
{
	rd_kafka_topic_partition_t *found;

	/* The list is not changed. */
	found = rd_kafka_topic_partition_list_find((rd_kafka_topic_partition_list_t *) list,
											   topic, partition);
	return found == NULL || found->err != RD_KAFKA_RESP_ERR_NO_ERROR ?
		RD_KAFKA_OFFSET_INVALID : found->offset;
}

/*
 * Decide where to begin a partition that has these offsets; at_time is the one
 * of the core's timestamp, negative if that is later than all messages. Returns
 * whether it is to be consumed.
 */
static bool
begin(KafkaConsumer *consumer, KafkaPartition *partition, int64_t low,
	  int64_t high, int64_t at_time)
{
	const CqrsBrokerPosition *position = &partition->position;
	int64_t		wanted = partition->received >= 0 ? partition->next :
	position->offset;

	consumer->asking--;
	partition->state = KAFKA_PARTITION_CONSUMED;

	if (wanted < 0)
	{
		partition->next = wanted == CQRS_BROKER_OFFSET_EARLIEST ? low :
			wanted == CQRS_BROKER_OFFSET_TIME && at_time >= 0 ? at_time : high;
		partition->position.offset = partition->next;
		tell(consumer, partition, CQRS_BROKER_NOTICE_REACHED, partition->next);
		return true;
	}
	if (wanted < low)
	{
		partition->state = KAFKA_PARTITION_IDLE;
		tell(consumer, partition, CQRS_BROKER_NOTICE_GAP, low);
		return true;
	}
	if (wanted > high)
	{
		partition->state = KAFKA_PARTITION_IDLE;
		tell(consumer, partition, CQRS_BROKER_NOTICE_SHORTER, high);
		return true;
	}
	if (partition->received >= 0)
		return broker_error(consumer->lost, "Kafka topic \"%s\" had fewer messages in partition %d for a while than were consumed: it may be another one",
							rd_kafka_topic_name(consumer->topic),
							(int) position->partition);

	partition->next = position->last >= low ? position->last :
		position->offset;
	return true;
}

/*
 * Have the core told something of a partition, behind what it has received.
 */
static void
tell(KafkaConsumer *consumer, KafkaPartition *partition,
	 CqrsBrokerNoticeKind kind, int64_t value)
{
	partition->notice = true;
	partition->notice_kind = kind;
	partition->notice_value = value;
	consumer->notices = true;
}

/*
 * Have librdkafka consume the partitions in state CONSUMED, each from what is
 * next. What it has fetched already is dropped.
 */
void
kafka_partitions_consume(KafkaConsumer *consumer)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_message_t *message;
	rd_kafka_resp_err_t code;
	int			i;

	/* From here on, what it has fetched comes no more, except for errors. */
	rd_kafka_assign(consumer->rk, NULL);
	if (consumer->held != NULL)
		rd_kafka_message_destroy(consumer->held);
	consumer->held = NULL;
	while ((message = rd_kafka_consume_queue(consumer->queue, 0)) != NULL)
	{
		if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR &&
			message->err != RD_KAFKA_RESP_ERR__PARTITION_EOF)
			kafka_consumer_partition_error(consumer, message);
		rd_kafka_message_destroy(message);
	}

	list = rd_kafka_topic_partition_list_new(consumer->npartitions);
	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		if (partition->state == KAFKA_PARTITION_CONSUMED)
			rd_kafka_topic_partition_list_add(list, topic, i)->offset =
				partition->next;
	}
	code = rd_kafka_assign(consumer->rk, list->cnt > 0 ? list : NULL);
	rd_kafka_topic_partition_list_destroy(list);
	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
		broker_error(consumer->lost, "could not consume Kafka topic \"%s\": %s",
					 topic, rd_kafka_err2str(code));

	/* Later, when it may be gone, there is no way to this queue. */
	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		if (partition->state == KAFKA_PARTITION_CONSUMED &&
			partition->queue == NULL)
			partition->queue = rd_kafka_queue_get_partition(consumer->rk,
															topic, i);
	}
}

/*
 * Have librdkafka look whether it has room again. Before version 2.2, it does
 * that once a second while it does nothing else: so each broker is asked
 * something, whose answer nobody waits for.
 */
void
kafka_partitions_wake(KafkaConsumer *consumer)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *list;
	int			i;

	list = rd_kafka_topic_partition_list_new(consumer->npartitions);
	for (i = 0; i < consumer->npartitions; i++)
	{
		if (consumer->partitions[i].state == KAFKA_PARTITION_CONSUMED)
			rd_kafka_topic_partition_list_add(list, topic, i)->offset =
				RD_KAFKA_OFFSET_END;
	}
	if (list->cnt > 0)
		rd_kafka_offsets_for_times(consumer->rk, list, 0);
	rd_kafka_topic_partition_list_destroy(list);
}

/*
 * Have librdkafka consume nothing any more, as its consumer is to be destroyed.
 *
 * Before version 2.6.1, destroying it never ends if something is left in the
 * queue of a partition that the cluster does not have any more.
 */
void
kafka_partitions_release(KafkaConsumer *consumer)
{
	rd_kafka_topic_partition_list_t *none;
	int			i;

	rd_kafka_assign(consumer->rk, NULL);

	/* The answer comes once partitions are stopped, which fills queues. */
	if (rd_kafka_assignment(consumer->rk, &none) == RD_KAFKA_RESP_ERR_NO_ERROR)
		rd_kafka_topic_partition_list_destroy(none);
	drain(consumer->queue);
	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];

		if (partition->queue == NULL)
			continue;
		drain(partition->queue);
		rd_kafka_queue_destroy(partition->queue);
	}
}

/*
 * Drop all that is in a queue.
 */
static void
drain(rd_kafka_queue_t *queue)
{
	rd_kafka_message_t *message;

	while (rd_kafka_consume_batch_queue(queue, 0, &message, 1) > 0)
		rd_kafka_message_destroy(message);
}

/*
 * Try again what is broken.
 */
void
kafka_partitions_retry(KafkaConsumer *consumer)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *list;
	int			i;

	if (consumer->failing == 0)
		return;
	list = rd_kafka_topic_partition_list_new(consumer->failing);
	for (i = 0; i < consumer->npartitions; i++)
	{
		if (consumer->partitions[i].state != KAFKA_PARTITION_BROKEN)
			continue;
		consumer->partitions[i].state = KAFKA_PARTITION_CONSUMED;
		rd_kafka_topic_partition_list_add(list, topic, i);
	}
	if (list->cnt > 0)
	{
		/* That it is paused would last. */
		rd_kafka_resume_partitions(consumer->rk, list);
		kafka_partitions_consume(consumer);
	}
	rd_kafka_topic_partition_list_destroy(list);
}

/*
 * What a partition has at this offset cannot be read. librdkafka would go on
 * behind it: so nothing more is taken from the partition until it is tried
 * again.
 */
void
kafka_partition_break(KafkaConsumer *consumer, KafkaPartition *partition,
					  int64_t offset, const char *reason)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	int32_t		number = partition->position.partition;
	rd_kafka_topic_partition_list_t *list;
	char		error[CQRS_BROKER_ERROR_SIZE];

	if (partition->state != KAFKA_PARTITION_CONSUMED)
		return;
	partition->state = KAFKA_PARTITION_BROKEN;
	if (partition->error == NULL)
		consumer->failing++;
	free(partition->error);
	broker_error(error, "could not read partition %d of Kafka topic \"%s\" at offset %" PRId64 ": %s",
				 (int) number, topic, offset, reason);
	partition->error = strdup(error);

	list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_list_add(list, topic, number);
	rd_kafka_pause_partitions(consumer->rk, list);
	rd_kafka_topic_partition_list_destroy(list);
}

/*
 * Something of a partition that was broken has come.
 */
void
kafka_partition_mended(KafkaConsumer *consumer, KafkaPartition *partition)
{
	free(partition->error);
	partition->error = NULL;
	consumer->failing--;
}

/*
 * A partition does not have the offset that was to be consumed next. librdkafka
 * fetches it no more.
 */
void
kafka_partition_out_of_range(KafkaConsumer *consumer,
							 KafkaPartition *partition)
{
	if (partition->state != KAFKA_PARTITION_CONSUMED)
		return;
	partition->state = KAFKA_PARTITION_ASK;
	consumer->asking++;
}

/*
 * Tell the group what is settled, for whoever watches its lag. Nobody needs it:
 * if it fails, it fails.
 */
void
kafka_partitions_commit(KafkaConsumer *consumer)
{
	const char *topic = rd_kafka_topic_name(consumer->topic);
	rd_kafka_topic_partition_list_t *list;
	int			i;

	if (consumer->committing)
		return;
	list = rd_kafka_topic_partition_list_new(consumer->npartitions);
	for (i = 0; i < consumer->npartitions; i++)
	{
		KafkaPartition *partition = &consumer->partitions[i];
		int64_t		offset = partition->settled;

		/* If all is settled, then also what is no message, at the end. */
		if (partition->settled == partition->received + 1 &&
			partition->reached > offset)
			offset = partition->reached;
		if (offset <= partition->committed)
			continue;
		rd_kafka_topic_partition_list_add(list, topic, i)->offset = offset;
		partition->committed = offset;
	}
	if (list->cnt > 0)
		consumer->committing = rd_kafka_commit(consumer->rk, list, true) ==
			RD_KAFKA_RESP_ERR_NO_ERROR;
	rd_kafka_topic_partition_list_destroy(list);
}

/*
 * Milliseconds of a clock that nobody sets.
 */
int64_t
kafka_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
