/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The callbacks of the broker module "Kafka" for publishing.
 *
 * No header of PostgreSQL is included: what runs here cannot call the server.
 *
 * Protocol
 *
 * Unreported messages are in one list, in the order of publishing. The producer
 * has the first of them, up to a limit. It is idempotent, and has no timeout of
 * its own: as long as it lives, each partition gets its messages once and in
 * order, through broken connections and new leaders.
 *
 * With the property enable.gapless.guarantee, a batch that a broker refuses for
 * good ends the producer: nothing later is sent, as it would overtake what is
 * to be tried again. Then we wait for all that the producer still has, and a
 * new producer gets the list's messages again ("renewal").
 *
 * A broker refuses a batch as a whole, whichever record it dislikes. Only the
 * message that was refused alone is reported. Until then, batches are made
 * smaller: after a refused batch of n messages, the producer gets n / 2 at
 * most, doubled each time that all it has are written.
 *
 * What is published at a time goes into as few batches as may be: a broker works
 * per batch, too. So records linger while others of the same time are given to the
 * producer, and then it is told to send them. By itself, it would send the first few
 * alone; that is left to it if the property linger.ms is set.
 *
 * In a transaction, no batch needs a renewal, and nothing is sent again: once one
 * was refused, or the transaction has failed otherwise, the producer gets nothing
 * more until it is aborted. What is not at fault then is to be published again.
 *
 * Failure
 *
 * Broken connections are mended by librdkafka; it tells when no broker is
 * connected. If that has lasted for DOWN_GRACE while something was unreported,
 * the connection is lost. It also is after an error that says nothing about the
 * message, and after a fatal one. The messages are then published again by
 * another producer, all of them from the first unreported one: each key's order
 * of first arrivals is kept, whatever of the old producer's arrives when.
 *
 * Memory
 *
 * A message's body is used until it is reported, or the producer is closed.
 * The list's entries, as many as the window, are allocated once.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "producer.h"
#include "properties.h"
#include "transaction.h"

/* How long librdkafka may try to reconnect, in milliseconds. */
#define DOWN_GRACE		2000

/*
 * Something is wrong if nothing is written or rejected for this much longer
 * than a request may take, or a topic may be unknown.
 */
#define STALL_GRACE		5000

/* How long a renewal waits for what the producer still has. */
#define RENEWAL_TIMEOUT	5000

/*
 * How long the producer is told to send, in milliseconds; its thread only has to
 * notice. If it does not, linger.ms is over soon.
 */
#define FLUSH_TIME		1

/* Room for the name of a topic, or for what shows that it is none. */
#define TOPIC_SIZE		512

/*
 * A message that is not reported yet.
 */
typedef struct Entry
{
	struct Entry *prev;			/* NULL: the first */
	struct Entry *next;			/* NULL: the last; also links free ones */
	CqrsBrokerMessage *message;
} Entry;

typedef struct KafkaClient
{
	KafkaState	state;
	const CqrsBrokerConnection *connection;
	const char *topic_template; /* NULL: the message's topic */
	int			window;
	int64_t		stall_timeout;

	KafkaProducer producer;
	KafkaTransactions transactions;

	Entry	   *entries;		/* window of them */
	Entry	   *free;
	Entry	   *first;			/* unreported, in the order of publishing */
	Entry	   *last;
	Entry	   *waiting;		/* the first that the producer does not have */
	int			outstanding;	/* how many it has */
	int			limit;			/* how many it may have */
	bool		hurried;		/* it is told when to send ... */
	bool		lingering;		/* ... and has got some since then */

	bool		renewing;		/* the producer gets nothing more */
	int64_t		renewing_since;

	bool		down;			/* no broker is connected */
	int64_t		down_since;		/* with something unreported */
	int64_t		progress;		/* when a batch last had a report, or the
								 * first message was published */
	char		broker_error[CQRS_BROKER_ERROR_SIZE];	/* the last one, or "" */
	char		lost[CQRS_BROKER_ERROR_SIZE];	/* why; "": it is not */
} KafkaClient;

static void client_shutdown(void *state);

static bool wait_connected(KafkaClient *client, char *error);
static void produce_waiting(KafkaClient *client);
static bool produce_entry(KafkaClient *client, Entry *entry);
static void handle_events(KafkaClient *client);
static void handle_error(KafkaClient *client, rd_kafka_event_t *event);
static void handle_delivery(KafkaClient *client,
							const rd_kafka_message_t *delivery, int batch);
static void handle_given_back(KafkaClient *client, Entry *entry,
							  const char *topic);
static void fail_transaction(KafkaClient *client);
static void report_entry(KafkaClient *client, Entry *entry,
						 CqrsBrokerOutcome outcome, const char *error);
static void start_renewal(KafkaClient *client);
static void finish_renewal(KafkaClient *client);
static void check_progress(KafkaClient *client, char *error);
static int64_t now_ms(void);

/*
 * The callbacks; see cqrs_broker.h for their contracts.
 */
void *
kafka_client_startup(const CqrsBrokerConnection *connection, char *error)
{
	KafkaClient *client = calloc(1, sizeof(KafkaClient));
	int			propagation;
	int			i;

	if (client == NULL)
	{
		broker_error(error, "out of memory");
		return NULL;
	}
	client->state.shutdown = client_shutdown;
	client->connection = connection;
	client->transactions.id = connection->transactional_id;
	client->topic_template = broker_option(connection, KAFKA_OPTION_TOPIC);
	client->window = broker_option_int(connection, CQRS_BROKER_OPTION_WINDOW,
									   KAFKA_DEFAULT_WINDOW);
	client->limit = client->window;
	client->hurried = broker_option(connection, "linger.ms") == NULL;
	client->stall_timeout = kafka_option_int(connection, "socket.timeout.ms");
	propagation = kafka_option_int(connection,
								   "topic.metadata.propagation.max.ms");
	if (client->stall_timeout < propagation)
		client->stall_timeout = propagation;
	client->stall_timeout += STALL_GRACE;

	client->entries = calloc(client->window, sizeof(Entry));
	client->state.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (client->entries == NULL || client->state.event_fd < 0)
	{
		broker_error(error, "could not make a Kafka producer: %s",
					 strerror(errno));
		client_shutdown(client);
		return NULL;
	}
	for (i = client->window - 1; i >= 0; i--)
	{
		client->entries[i].next = client->free;
		client->free = &client->entries[i];
	}

	if (!kafka_producer_open(&client->producer, connection, client->state.event_fd,
							 error) ||
		!wait_connected(client, error))
	{
		client_shutdown(client);
		return NULL;
	}
	return client;
}

bool
kafka_client_publish(void *state, CqrsBrokerMessage *const *messages, int n,
					 char *error)
{
	KafkaClient *client = state;
	int			i;

	/* While there was nothing to write, nothing was late. */
	if (client->first == NULL)
		client->progress = client->down_since = now_ms();

	for (i = 0; i < n; i++)
	{
		Entry	   *entry = client->free;

		client->free = entry->next;
		entry->message = messages[i];
		entry->prev = client->last;
		entry->next = NULL;
		if (client->last != NULL)
			client->last->next = entry;
		else
			client->first = entry;
		client->last = entry;
		if (client->waiting == NULL)
			client->waiting = entry;
	}
	produce_waiting(client);
	return client->lost[0] == '\0' || broker_error(error, "%s", client->lost);
}

bool
kafka_client_poll(void *state, char *error)
{
	KafkaClient *client = state;
	uint64_t	count;

	/* Before the events are looked at: what comes later is told anew. */
	while (read(client->state.event_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	handle_events(client);
	if (client->lost[0] == '\0' && client->renewing)
		finish_renewal(client);
	if (client->lost[0] == '\0')
		produce_waiting(client);
	if (client->lost[0] == '\0' && client->hurried && client->lingering)
	{
		(void) rd_kafka_flush(client->producer.rk, FLUSH_TIME);
		client->lingering = false;
	}
	if (client->lost[0] == '\0')
		check_progress(client, error);
	return client->lost[0] == '\0' || broker_error(error, "%s", client->lost);
}

/*
 * Callback shutdown(); also called for a client that startup did not finish.
 */
static void
client_shutdown(void *state)
{
	KafkaClient *client = state;

	if (client->transactions.open)
		kafka_transaction_give_up(client->producer.rk,
								  client->producer.queue);
	kafka_producer_close(&client->producer);
	if (client->state.event_fd >= 0)
		close(client->state.event_fd);
	free(client->entries);
	free(client);
}

bool
kafka_client_fence(void *state, char *error)
{
	KafkaClient *client = state;

	return kafka_transactions_fence(&client->transactions,
									client->producer.rk, error);
}

bool
kafka_client_begin(void *state, char *error)
{
	KafkaClient *client = state;

	return kafka_transaction_begin(&client->transactions,
								   client->producer.rk, error);
}

bool
kafka_client_commit(void *state, const char *record, bool *committed, char *error)
{
	KafkaClient *client = state;
	KafkaCommit result;

	*committed = false;
	handle_events(client);
	if (client->lost[0] != '\0')
		return broker_error(error, "%s", client->lost);
	if (client->transactions.failed)
		return kafka_client_abort(state, error);
	result = kafka_transaction_commit(&client->transactions,
									  client->producer.rk, record, error);
	if (result == KAFKA_COMMIT_ABORT)
	{
		error[0] = '\0';
		return kafka_client_abort(state, error);
	}
	*committed = result == KAFKA_COMMIT_DONE;
	return *committed;
}

bool
kafka_client_abort(void *state, char *error)
{
	KafkaClient *client = state;
	struct pollfd pollfd = {.fd = client->state.event_fd,.events = POLLIN};
	int64_t		deadline = now_ms() + client->stall_timeout;

	/* What the broker is about to answer is waited for, the rest is not sent. */
	fail_transaction(client);
	for (;;)
	{
		handle_events(client);
		if (client->lost[0] != '\0')
			return broker_error(error, "%s", client->lost);
		if (client->outstanding == 0)
			break;
		if (now_ms() > deadline)
			return broker_error(error, "Kafka at %s does not answer",
								broker_option(client->connection,
											  "bootstrap.servers"));
		rd_kafka_purge(client->producer.rk, RD_KAFKA_PURGE_F_QUEUE |
					   RD_KAFKA_PURGE_F_NON_BLOCKING);
		(void) poll(&pollfd, 1, 10);
	}
	client->waiting = NULL;
	while (client->first != NULL)
		report_entry(client, client->first, CQRS_BROKER_AGAIN, NULL);
	return kafka_transaction_abort(&client->transactions,
								   client->producer.rk, error);
}

bool
kafka_client_read_record(void *state, char *record, char *error)
{
	KafkaClient *client = state;

	return kafka_record_read(&client->transactions, client->producer.rk,
							 client->connection, record, error);
}

/*
 * Wait until the cluster has been talked to. Returns false, and sets error, once
 * it is known that this fails.
 *
 * The time is enough for two brokers that do not answer.
 */
static bool
wait_connected(KafkaClient *client, char *error)
{
	int64_t		deadline = now_ms() + 1000 +
	2 * (int64_t) kafka_option_int(client->connection,
								   "socket.connection.setup.timeout.ms");

	for (;;)
	{
		/* What every broker tells first, of a version that can serve us. */
		char	   *cluster = rd_kafka_clusterid(client->producer.rk, 20);

		if (cluster != NULL)
		{
			rd_kafka_mem_free(client->producer.rk, cluster);
			client->down = false;
			return true;
		}

		handle_events(client);
		if (client->lost[0] != '\0')
			return broker_error(error, "%s", client->lost);
		if (client->down && client->broker_error[0] != '\0')
			return broker_error(error, "%s", client->broker_error);
		if (now_ms() > deadline)
			return broker_error(error, "could not connect to Kafka at %s: no answer",
								broker_option(client->connection,
											  "bootstrap.servers"));
	}
}

/*
 * Give the producer what it does not have, as much as it may have.
 */
static void
produce_waiting(KafkaClient *client)
{
	while (client->waiting != NULL && !client->renewing &&
		   !client->transactions.failed &&
		   client->outstanding < client->limit)
	{
		Entry	   *entry = client->waiting;

		client->waiting = entry->next;
		if (!produce_entry(client, entry))
		{
			client->waiting = entry;
			break;
		}
	}
}

/*
 * Give the producer a message, or report at once why that cannot be. Returns
 * false if it must be tried again.
 */
static bool
produce_entry(KafkaClient *client, Entry *entry)
{
	char		expanded[TOPIC_SIZE];
	const char *topic = entry->message->topic;
	char		error[CQRS_BROKER_ERROR_SIZE];
	rd_kafka_resp_err_t code;

	if (client->topic_template != NULL)
	{
		broker_template_expand(client->topic_template, entry->message,
							   expanded, sizeof(expanded));
		topic = expanded;
	}
	if (!kafka_producer_topic(&client->producer, topic, error))
	{
		fail_transaction(client);
		report_entry(client, entry, CQRS_BROKER_REJECTED, error);
		return true;
	}

	if (client->transactions.id != NULL)
		kafka_transaction_topic(&client->transactions, topic);
	code = kafka_producer_produce(&client->producer, entry->message, entry);
	switch (kafka_error_kind(code))
	{
		case KAFKA_ERROR_NONE:
			client->outstanding++;
			client->lingering = true;
			return true;

		case KAFKA_ERROR_RECORD:
		case KAFKA_ERROR_TOPIC:
			kafka_describe_rejection(code, topic, entry->message, error);
			fail_transaction(client);
			report_entry(client, entry,
						 code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ?
						 CQRS_BROKER_REFUSED : CQRS_BROKER_REJECTED, error);
			return true;

		case KAFKA_ERROR_GIVEN_BACK:
			return false;

			/* Of a producer that has failed, an event says why. */
		case KAFKA_ERROR_CONNECTION:
			if (rd_kafka_fatal_error(client->producer.rk, NULL, 0) !=
				RD_KAFKA_RESP_ERR_NO_ERROR)
				return false;
			if (client->transactions.id != NULL)
			{
				handle_given_back(client, entry, topic);
				return true;
			}
			broker_error(client->lost, "could not produce to Kafka topic \"%s\": %s",
						 topic, rd_kafka_err2str(code));
			return false;
	}
	return false;
}

/*
 * Handle all events that there are.
 */
static void
handle_events(KafkaClient *client)
{
	rd_kafka_event_t *event;

	while ((event = rd_kafka_queue_poll(client->producer.queue, 0)) != NULL)
	{
		if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_DR)
		{
			/* An event has the reports of one batch. */
			int			batch = (int) rd_kafka_event_message_count(event);
			const rd_kafka_message_t *delivery;

			client->progress = now_ms();
			while ((delivery = rd_kafka_event_message_next(event)) != NULL)
				handle_delivery(client, delivery, batch);
		}
		else if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR)
			handle_error(client, event);
		rd_kafka_event_destroy(event);
	}
}

/*
 * Handle an error that is no message's.
 */
static void
handle_error(KafkaClient *client, rd_kafka_event_t *event)
{
	rd_kafka_resp_err_t code = rd_kafka_event_error(event);
	const char *text = rd_kafka_event_error_string(event);
	char		reason[CQRS_BROKER_ERROR_SIZE] = "";

	if (rd_kafka_event_error_is_fatal(event))
	{
		code = rd_kafka_fatal_error(client->producer.rk, reason,
									sizeof(reason));
		if (code == RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE)
			start_renewal(client);
		else
			broker_error(client->lost, "the Kafka producer failed: %s (%s)",
						 reason, rd_kafka_err2name(code));
		return;
	}

	switch (code)
	{
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
			if (!client->down)
				client->down_since = now_ms();
			client->down = true;
			break;

		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
			kafka_describe_broker(code, text, client->lost);
			break;

		default:
			kafka_describe_broker(code, text, client->broker_error);
			break;
	}
}

/*
 * Handle the report of a message. batch is how many messages its batch had.
 */
static void
handle_delivery(KafkaClient *client, const rd_kafka_message_t *delivery,
				int batch)
{
	Entry	   *entry = delivery->_private;
	const char *topic = rd_kafka_topic_name(delivery->rkt);
	char		error[CQRS_BROKER_ERROR_SIZE];

	client->outstanding--;
	switch (kafka_error_kind(delivery->err))
	{
		case KAFKA_ERROR_NONE:
			client->down = false;
			report_entry(client, entry, CQRS_BROKER_CONFIRMED, NULL);
			if (client->outstanding == 0 && !client->renewing &&
				client->limit < client->window)
				client->limit = client->limit <= client->window / 2 ?
					client->limit * 2 : client->window;
			break;

		case KAFKA_ERROR_GIVEN_BACK:
			if (client->transactions.id != NULL)
				handle_given_back(client, entry, topic);
			break;

		case KAFKA_ERROR_RECORD:
			fail_transaction(client);
			if (batch > 1)
			{
				if (client->limit > batch / 2)
					client->limit = batch / 2;
				if (client->transactions.id != NULL)
					report_entry(client, entry, CQRS_BROKER_AGAIN, NULL);
				break;
			}
			kafka_describe_rejection(delivery->err, topic, entry->message,
									 error);
			report_entry(client, entry,
						 delivery->err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ?
						 CQRS_BROKER_REFUSED : CQRS_BROKER_REJECTED, error);
			break;

		case KAFKA_ERROR_TOPIC:
			fail_transaction(client);
			kafka_describe_rejection(delivery->err, topic, entry->message,
									 error);
			report_entry(client, entry, CQRS_BROKER_REJECTED, error);
			break;

		case KAFKA_ERROR_CONNECTION:
			if (client->lost[0] == '\0')
				broker_error(client->lost, "could not write to Kafka topic \"%s\": %s (%s)",
							 topic, rd_kafka_err2str(delivery->err),
							 rd_kafka_err2name(delivery->err));
			break;
	}
}

/*
 * The producer gives a message back, as its transaction has to be aborted. If that
 * is because of the topic, which is the only one, the message is at fault.
 */
static void
handle_given_back(KafkaClient *client, Entry *entry, const char *topic)
{
	char		error[CQRS_BROKER_ERROR_SIZE];
	rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;

	/* Of a producer that has failed, an event says why. */
	if (rd_kafka_fatal_error(client->producer.rk, NULL, 0) !=
		RD_KAFKA_RESP_ERR_NO_ERROR)
		return;

	/* We may have asked for it, because of another message. */
	if (!client->transactions.several)
		code = kafka_transaction_error(client->producer.rk);
	fail_transaction(client);
	if (kafka_error_kind(code) == KAFKA_ERROR_TOPIC)
	{
		kafka_describe_rejection(code, topic, entry->message, error);
		report_entry(client, entry, CQRS_BROKER_REJECTED, error);
	}
	else
		report_entry(client, entry, CQRS_BROKER_AGAIN, NULL);
}

/*
 * If there is a transaction, it has to be aborted.
 */
static void
fail_transaction(KafkaClient *client)
{
	client->transactions.failed = client->transactions.id != NULL;
}

/*
 * Report a message, and forget it.
 */
static void
report_entry(KafkaClient *client, Entry *entry, CqrsBrokerOutcome outcome,
			 const char *error)
{
	CqrsBrokerMessage *message = entry->message;

	if (entry->prev != NULL)
		entry->prev->next = entry->next;
	else
		client->first = entry->next;
	if (entry->next != NULL)
		entry->next->prev = entry->prev;
	else
		client->last = entry->prev;
	entry->next = client->free;
	client->free = entry;

	client->connection->report(message, outcome, error);
}

/*
 * The producer has ended itself, so that no message overtakes another. It
 * gives back what it has not sent, and still reports what is on its way.
 */
static void
start_renewal(KafkaClient *client)
{
	client->renewing = true;
	client->renewing_since = now_ms();
}

/*
 * Once the producer has reported all it had, have another one go on.
 */
static void
finish_renewal(KafkaClient *client)
{
	if (client->outstanding > 0)
	{
		/* This includes what it was to send again, and now does not. */
		rd_kafka_purge(client->producer.rk, RD_KAFKA_PURGE_F_QUEUE |
					   RD_KAFKA_PURGE_F_NON_BLOCKING);
		if (now_ms() - client->renewing_since > RENEWAL_TIMEOUT)
			broker_error(client->lost, "Kafka at %s does not answer",
						 broker_option(client->connection,
									   "bootstrap.servers"));
		return;
	}

	kafka_producer_close(&client->producer);
	if (!kafka_producer_open(&client->producer, client->connection,
							 client->state.event_fd, client->lost))
		return;
	client->renewing = false;
	client->down = false;
	client->waiting = client->first;
}

/*
 * Is the connection lost, as far as time tells? If brokers are connected, but
 * nothing is written, only set error.
 */
static void
check_progress(KafkaClient *client, char *error)
{
	const char *servers = broker_option(client->connection,
										"bootstrap.servers");
	const char *reason = client->broker_error;
	int64_t		now = now_ms();

	if (client->first == NULL)
		return;
	if (client->down && now - client->down_since > DOWN_GRACE)
	{
		if (reason[0] != '\0')
			broker_error(client->lost, "%s", reason);
		else
			broker_error(client->lost, "no broker of Kafka at %s can be connected to",
						 servers);
	}
	else if (now - client->progress > client->stall_timeout)
		broker_error(error, "Kafka at %s has written nothing for %d s: %s",
					 servers, (int) ((now - client->progress) / 1000),
					 reason[0] != '\0' ? reason :
					 "partitions may have no leader, or fewer in-sync replicas than min.insync.replicas");
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
