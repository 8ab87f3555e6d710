/*-------------------------------------------------------------------------
 *
 * transaction.c
 *	  Transactions of a producer, and the record of the last one.
 *
 * A record is the metadata of an offset that is committed in the transaction,
 * to a group of the producer's own, named like its transactional.id. Nobody
 * consumes in that group. The offset numbers the records: it is one higher each
 * time. An offset is one of a topic that exists: that is the first one that the
 * transaction writes to, its partition 0. So to find the last record, the group's
 * offsets in all topics of the cluster are asked for; the highest is of the last.
 *
 * Failure
 *
 * Kafka forgets the offsets of a group in which nothing was committed for
 * offsets.retention.minutes, seven days by default, and those of a topic that is
 * deleted. Then there is no record.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "properties.h"
#include "transaction.h"

/* How long to try what Kafka cannot do just now, in milliseconds. */
#define LONGEST_CALL	30000
#define PAUSE			20

/* How long giving up may take, in milliseconds: two times. */
#define LONGEST_END		150

static bool call_failed(rd_kafka_error_t *failure, const char *what,
						char *error);
static bool is_retriable(rd_kafka_error_t *failure, int64_t deadline);
static rd_kafka_error_t *send_record(KafkaTransactions *transactions,
									 rd_kafka_t *rk, const char *record,
									 int timeout);
static rd_kafka_topic_partition_list_t * all_topics(rd_kafka_t *rk,
													char *error);
static bool ask_offsets(const CqrsBrokerConnection *connection, bool ended,
						rd_kafka_topic_partition_list_t * offsets,
						char *error);
static int64_t now_ms(void);
static void pause_a_little(void);

/*
 * End all other producers with the transactional.id, and what they have not
 * committed. Returns false, and sets error, if that fails.
 */
bool
kafka_transactions_fence(KafkaTransactions *transactions, rd_kafka_t *rk,
						 char *error)
{
	int64_t		deadline = now_ms() + LONGEST_CALL;
	rd_kafka_error_t *failure;

	do
	{
		failure = rd_kafka_init_transactions(rk, LONGEST_CALL);
	} while (failure != NULL && is_retriable(failure, deadline));
	if (failure != NULL)
		return call_failed(failure, "could not begin to use transactions of Kafka",
						   error);
	transactions->fenced = true;
	return true;
}

/*
 * Begin a transaction. Returns false, and sets error, if that fails.
 */
bool
kafka_transaction_begin(KafkaTransactions *transactions, rd_kafka_t *rk,
						char *error)
{
	rd_kafka_error_t *failure = rd_kafka_begin_transaction(rk);

	if (failure != NULL)
		return call_failed(failure, "could not begin a transaction of Kafka",
						   error);
	transactions->open = true;
	transactions->failed = false;
	transactions->topic[0] = '\0';
	transactions->several = false;
	return true;
}

/*
 * The transaction writes to this topic, whose name is valid.
 */
void
kafka_transaction_topic(KafkaTransactions *transactions, const char *topic)
{
	if (transactions->topic[0] == '\0')
		strncpy(transactions->topic, topic, KAFKA_TOPIC_SIZE - 1);
	else if (strcmp(transactions->topic, topic) != 0)
		transactions->several = true;
}

/*
 * Commit the transaction, with this record; all its messages are written. If it
 * cannot be committed, or who knows, sets error.
 */
KafkaCommit
kafka_transaction_commit(KafkaTransactions *transactions, rd_kafka_t *rk,
						 const char *record, char *error)
{
	int64_t		deadline = now_ms() + LONGEST_CALL;
	rd_kafka_error_t *failure = NULL;
	bool		abort;

	if (transactions->topic[0] == '\0')
		memcpy(transactions->topic, transactions->record_topic,
			   KAFKA_TOPIC_SIZE);
	if (transactions->topic[0] != '\0')
	{
		do
		{
			failure = send_record(transactions, rk, record, LONGEST_CALL);
		} while (failure != NULL && is_retriable(failure, deadline));
	}
	if (failure == NULL)
	{
		/* This may be called again until it says how it ended. */
		do
		{
			failure = rd_kafka_commit_transaction(rk, LONGEST_CALL);
		} while (failure != NULL && is_retriable(failure, deadline));
	}
	if (failure == NULL)
	{
		transactions->open = false;
		transactions->number++;
		memcpy(transactions->record_topic, transactions->topic,
			   KAFKA_TOPIC_SIZE);
		return KAFKA_COMMIT_DONE;
	}
	abort = rd_kafka_error_txn_requires_abort(failure);
	(void) call_failed(failure, "could not commit a transaction of Kafka",
					   error);
	return abort ? KAFKA_COMMIT_ABORT : KAFKA_COMMIT_LOST;
}

/*
 * Abort the transaction; the producer has reported all messages. Returns false,
 * and sets error, if that fails.
 */
bool
kafka_transaction_abort(KafkaTransactions *transactions, rd_kafka_t *rk,
						char *error)
{
	int64_t		deadline = now_ms() + LONGEST_CALL;
	rd_kafka_error_t *failure;

	do
	{
		failure = rd_kafka_abort_transaction(rk, LONGEST_CALL);
	} while (failure != NULL && is_retriable(failure, deadline));
	if (failure != NULL)
		return call_failed(failure, "could not abort a transaction of Kafka",
						   error);
	transactions->open = transactions->failed = false;
	return true;
}

/*
 * Try to abort the transaction, without waiting for long, so that consumers need
 * not wait for its timeout. Nothing is reported.
 */
void
kafka_transaction_give_up(rd_kafka_t *rk, rd_kafka_queue_t *queue)
{
	int64_t		deadline = now_ms() + LONGEST_END;

	if (rd_kafka_fatal_error(rk, NULL, 0) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	rd_kafka_purge(rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT |
				   RD_KAFKA_PURGE_F_NON_BLOCKING);
	while (rd_kafka_outq_len(rk) > 0 && now_ms() < deadline)
	{
		rd_kafka_event_t *event = rd_kafka_queue_poll(queue, PAUSE);

		if (event != NULL)
			rd_kafka_event_destroy(event);
	}
	rd_kafka_error_destroy(rd_kafka_abort_transaction(rk, LONGEST_END));
}

/*
 * Why the open transaction has to be aborted; librdkafka tells it whoever tries
 * to begin another one.
 */
rd_kafka_resp_err_t
kafka_transaction_error(rd_kafka_t *rk)
{
	rd_kafka_error_t *failure = rd_kafka_begin_transaction(rk);
	rd_kafka_resp_err_t code = rd_kafka_error_code(failure);

	rd_kafka_error_destroy(failure);
	return code;
}

/*
 * Read the last record; "": there is none. Once other producers are fenced, what
 * they were committing is waited for; before, it is not seen. Returns false, and
 * sets error, if that fails.
 */
bool
kafka_record_read(KafkaTransactions *transactions, rd_kafka_t *rk,
				  const CqrsBrokerConnection *connection, char *record,
				  char *error)
{
	rd_kafka_topic_partition_list_t *offsets = all_topics(rk, error);
	bool		done;
	int			i;

	if (offsets == NULL)
		return false;
	done = ask_offsets(connection, transactions->fenced, offsets, error);
	record[0] = '\0';
	transactions->number = 0;
	transactions->record_topic[0] = '\0';
	for (i = 0; done && i < offsets->cnt; i++)
	{
		const		rd_kafka_topic_partition_t *offset = &offsets->elems[i];

		if (offset->err != RD_KAFKA_RESP_ERR_NO_ERROR)
			done = broker_error(error, "could not read offsets of Kafka's group \"%s\" in topic \"%s\": %s (%s)",
								transactions->id, offset->topic,
								rd_kafka_err2str(offset->err),
								rd_kafka_err2name(offset->err));
		if (offset->offset <= transactions->number ||
			offset->metadata_size == 0 ||
			offset->metadata_size >= CQRS_BROKER_RECORD_SIZE)
			continue;
		transactions->number = offset->offset;
		strncpy(transactions->record_topic, offset->topic,
				KAFKA_TOPIC_SIZE - 1);
		memcpy(record, offset->metadata, offset->metadata_size);
		record[offset->metadata_size] = '\0';
	}
	rd_kafka_topic_partition_list_destroy(offsets);
	return done;
}

/*
 * Say why a call failed, and destroy the failure. Returns false.
 */
static bool
call_failed(rd_kafka_error_t *failure, const char *what, char *error)
{
	switch (rd_kafka_error_code(failure))
	{
		case RD_KAFKA_RESP_ERR__FENCED:
		case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
			broker_error(error, "%s: another producer took over, or it took longer than 60 s",
						 what);
			break;
		default:
			broker_error(error, "%s: %s (%s)", what,
						 rd_kafka_error_string(failure),
						 rd_kafka_error_name(failure));
	}
	rd_kafka_error_destroy(failure);
	return false;
}

/*
 * Is a call to be made again? Then the failure is destroyed.
 */
static bool
is_retriable(rd_kafka_error_t *failure, int64_t deadline)
{
	if (!rd_kafka_error_is_retriable(failure) || now_ms() >= deadline)
		return false;
	rd_kafka_error_destroy(failure);
	pause_a_little();
	return true;
}

static rd_kafka_error_t *
send_record(KafkaTransactions *transactions, rd_kafka_t *rk,
			const char *record, int timeout)
{
	rd_kafka_topic_partition_list_t *offsets =
	rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *offset =
	rd_kafka_topic_partition_list_add(offsets, transactions->topic, 0);
	rd_kafka_consumer_group_metadata_t *group =
	rd_kafka_consumer_group_metadata_new(transactions->id);
	rd_kafka_error_t *failure;

	offset->offset = transactions->number + 1;
	offset->metadata = strdup(record);	/* freed with the list */
	offset->metadata_size = strlen(record);
	failure = rd_kafka_send_offsets_to_transaction(rk, offsets, group,
												   timeout);
	rd_kafka_consumer_group_metadata_destroy(group);
	rd_kafka_topic_partition_list_destroy(offsets);
	return failure;
}

/*
 * Partition 0 of all topics that we may see. NULL, with error set, if they
 * cannot be had.
 */
static rd_kafka_topic_partition_list_t *
all_topics(rd_kafka_t *rk, char *error)
{
	const		rd_kafka_metadata_t *metadata;
	rd_kafka_topic_partition_list_t *topics;
	rd_kafka_resp_err_t code = rd_kafka_metadata(rk, 1, NULL, &metadata,
												 LONGEST_CALL);
	int			i;

	if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		broker_error(error, "could not read the list of Kafka's topics: %s",
					 rd_kafka_err2str(code));
		return NULL;
	}
	topics = rd_kafka_topic_partition_list_new(metadata->topic_cnt);
	for (i = 0; i < metadata->topic_cnt; i++)
		rd_kafka_topic_partition_list_add(topics, metadata->topics[i].topic, 0);
	rd_kafka_metadata_destroy(metadata);
	return topics;
}

/*
 * Ask for the offsets of our group; only of transactions that have ended, or of
 * the last one that has. Returns false, and sets error, if that fails.
 */
static bool
ask_offsets(const CqrsBrokerConnection *connection, bool ended,
			rd_kafka_topic_partition_list_t * offsets, char *error)
{
	rd_kafka_conf_t *conf = kafka_conf_new(connection, error);
	char		reason[CQRS_BROKER_ERROR_SIZE];
	rd_kafka_t *consumer;
	rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;

	if (conf == NULL)
		return false;
	rd_kafka_conf_set(conf, "group.id", connection->transactional_id, NULL, 0);
	rd_kafka_conf_set(conf, "enable.auto.commit", "false", NULL, 0);
	rd_kafka_conf_set(conf, "isolation.level", ended ? "read_committed" :
					  "read_uncommitted", NULL, 0);
	consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, reason, sizeof(reason));
	if (consumer == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return broker_error(error, "could not make a Kafka consumer: %s",
							reason);
	}
	if (offsets->cnt > 0)
		code = rd_kafka_committed(consumer, offsets, LONGEST_CALL);
	rd_kafka_destroy_flags(consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	return code == RD_KAFKA_RESP_ERR_NO_ERROR ||
		broker_error(error, "could not read the offsets of Kafka's group \"%s\": %s (%s)",
					 connection->transactional_id, rd_kafka_err2str(code),
					 rd_kafka_err2name(code));
}

/*
 * Milliseconds of a clock that nobody sets.
 */
static int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
pause_a_little(void)
{
	struct timespec time = {.tv_nsec = PAUSE * 1000000L};

	nanosleep(&time, NULL);
}
