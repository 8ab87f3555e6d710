/*-------------------------------------------------------------------------
 *
 * transaction.h
 *	  Transactions of a producer, and the record of the last one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_TRANSACTION_H
#define KAFKA_TRANSACTION_H

#include <librdkafka/rdkafka.h>

#include "broker_client.h"

#pragma GCC visibility push(hidden) /* as in broker_client.h */

/* Room for the name of a topic. */
#define KAFKA_TOPIC_SIZE	256

/*
 * What is known of a producer's transactions. All zeroes, it has none.
 */
typedef struct KafkaTransactions
{
	const char *id;				/* the transactional.id; NULL: it has none */
	bool		fenced;			/* there is no other producer any more */
	bool		open;			/* one is */
	bool		failed;			/* ... and has to be aborted */
	char		topic[KAFKA_TOPIC_SIZE];	/* the first one that is written
											 * to; "": none yet */
	bool		several;		/* others are, too */
	int64_t		number;			/* of the last record */
	char		record_topic[KAFKA_TOPIC_SIZE]; /* where that is; "": there is
												 * none */
} KafkaTransactions;

typedef enum KafkaCommit
{
	KAFKA_COMMIT_DONE,
	KAFKA_COMMIT_ABORT,			/* cannot be: it has to be aborted */
	KAFKA_COMMIT_LOST			/* who knows */
} KafkaCommit;

extern bool kafka_transactions_fence(KafkaTransactions *transactions,
									 rd_kafka_t *rk, char *error);
extern bool kafka_transaction_begin(KafkaTransactions *transactions,
									rd_kafka_t *rk, char *error);
extern void kafka_transaction_topic(KafkaTransactions *transactions,
									const char *topic);
extern KafkaCommit kafka_transaction_commit(KafkaTransactions *transactions,
											rd_kafka_t *rk,
											const char *record, char *error);
extern bool kafka_transaction_abort(KafkaTransactions *transactions,
									rd_kafka_t *rk, char *error);
extern void kafka_transaction_give_up(rd_kafka_t *rk,
									  rd_kafka_queue_t *queue);
extern rd_kafka_resp_err_t kafka_transaction_error(rd_kafka_t *rk);
extern bool kafka_record_read(KafkaTransactions *transactions, rd_kafka_t *rk,
							  const CqrsBrokerConnection *connection,
							  char *record, char *error);

#pragma GCC visibility pop

#endif							/* KAFKA_TRANSACTION_H */
