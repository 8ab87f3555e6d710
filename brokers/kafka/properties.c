/*-------------------------------------------------------------------------
 *
 * properties.c
 *	  Which of librdkafka's properties are options, whose, and what they are by
 *	  default.
 *
 * What is not in the table is not an option. Left out on purpose: what order
 * and confirmation depend on; what loads code (plugins, engines and providers
 * of OpenSSL); callbacks; and the mechanisms GSSAPI, which runs a command with
 * the principal's name in it and shows the server's own tickets, and
 * OAUTHBEARER, which fetches tokens from where an option says.
 *
 * What opens a file opens it as the server's operating system user, and is a
 * superuser's to set. What is secret is an option of user mappings, as these
 * are the only ones that other users cannot read.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "properties.h"

#define lengthof(array) ((int) (sizeof(array) / sizeof((array)[0])))

const KafkaProperty kafka_properties[] = {
	{KAFKA_OPTION_TOPIC, KAFKA_SERVER},

	/* Whom to connect to, and how. */
	{"bootstrap.servers", KAFKA_SERVER},
	{"client.id", KAFKA_SERVER},
	{"client.rack", KAFKA_SERVER},
	{"security.protocol", KAFKA_SERVER},
	{"sasl.mechanism", KAFKA_SERVER},
	{"ssl.ca.pem", KAFKA_SERVER},
	{"ssl.ca.location", KAFKA_SERVER, true},
	{"ssl.crl.location", KAFKA_SERVER, true},
	{"ssl.cipher.suites", KAFKA_SERVER},
	{"ssl.curves.list", KAFKA_SERVER},
	{"ssl.sigalgs.list", KAFKA_SERVER},
	{"ssl.endpoint.identification.algorithm", KAFKA_SERVER},
	{"enable.ssl.certificate.verification", KAFKA_SERVER},

	/* Who we are. */
	{"sasl.username", KAFKA_USER_MAPPING},
	{"sasl.password", KAFKA_USER_MAPPING},
	{"ssl.certificate.pem", KAFKA_USER_MAPPING},
	{"ssl.certificate.location", KAFKA_USER_MAPPING, true},
	{"ssl.key.pem", KAFKA_USER_MAPPING},
	{"ssl.key.location", KAFKA_USER_MAPPING, true},
	{"ssl.key.password", KAFKA_USER_MAPPING},
	{"ssl.keystore.location", KAFKA_USER_MAPPING, true},
	{"ssl.keystore.password", KAFKA_USER_MAPPING},

	/*
	 * The network. By default, what does not answer is given up sooner than
	 * librdkafka would; and what is small is sent at once.
	 */
	{"socket.connection.setup.timeout.ms", KAFKA_SERVER, false, "5000"},
	{"socket.timeout.ms", KAFKA_SERVER, false, "10000"},
	{"socket.keepalive.enable", KAFKA_SERVER, false, "true"},
	{"socket.nagle.disable", KAFKA_SERVER, false, "true"},
	{"socket.send.buffer.bytes", KAFKA_SERVER},
	{"socket.receive.buffer.bytes", KAFKA_SERVER},
	{"broker.address.family", KAFKA_SERVER},
	{"broker.address.ttl", KAFKA_SERVER},
	{"connections.max.idle.ms", KAFKA_SERVER},
	{"reconnect.backoff.ms", KAFKA_SERVER},
	{"reconnect.backoff.max.ms", KAFKA_SERVER, false, "1000"},
	{"receive.message.max.bytes", KAFKA_SERVER},
	{"metadata.max.age.ms", KAFKA_SERVER},
	{"topic.metadata.refresh.interval.ms", KAFKA_SERVER},
	{"topic.metadata.propagation.max.ms", KAFKA_SERVER, false, "5000"},

	/*
	 * Records. Partitions are those that the Java client chooses for the same
	 * keys. If nobody says how long records linger, the client does not let
	 * them (see client.c).
	 */
	{"message.max.bytes", KAFKA_SERVER},
	{"request.timeout.ms", KAFKA_SERVER, false, "8000"},
	{"retry.backoff.ms", KAFKA_SERVER},
	{"linger.ms", KAFKA_SERVER, false, "5"},
	{"batch.size", KAFKA_SERVER},
	{"batch.num.messages", KAFKA_SERVER},
	{"compression.type", KAFKA_SERVER},
	{"compression.level", KAFKA_SERVER},
	{"partitioner", KAFKA_SERVER, false, "murmur2_random"},
	{"sticky.partitioning.linger.ms", KAFKA_SERVER},

	/*
	 * Each message is written once by this producer and in order, and waits
	 * for as long as the producer is there: one that gave up waiting would be
	 * overtaken by the next of its key.
	 */
	{"enable.idempotence", KAFKA_NOWHERE, false, "true"},
	{"enable.gapless.guarantee", KAFKA_NOWHERE, false, "true"},
	{"acks", KAFKA_NOWHERE, false, "all"},
	{"message.timeout.ms", KAFKA_NOWHERE, false, "0"},
	{"transaction.timeout.ms", KAFKA_NOWHERE, false, "60000"},

	/*
	 * Records to consume. What librdkafka has fetched ahead is bounded by all
	 * of these together: each record takes about 1 kB there beside its value.
	 */
	{"group.id", KAFKA_SERVER},
	{"isolation.level", KAFKA_SERVER, false, "read_committed"},
	{"queued.min.messages", KAFKA_SERVER, false, "30000"},
	{"queued.max.messages.kbytes", KAFKA_SERVER, false, "16384"},
	{"fetch.max.bytes", KAFKA_SERVER},
	{"fetch.message.max.bytes", KAFKA_SERVER},
	{"fetch.min.bytes", KAFKA_SERVER},
	{"fetch.wait.max.ms", KAFKA_SERVER},

	/* The core keeps offsets, and is told of each that is not there. */
	{"enable.auto.commit", KAFKA_NOWHERE, false, "false"},
	{"enable.auto.offset.store", KAFKA_NOWHERE, false, "false"},
	{"auto.offset.reset", KAFKA_NOWHERE, false, "error"},
	{"enable.partition.eof", KAFKA_NOWHERE, false, "true"},
	{"check.crcs", KAFKA_NOWHERE, false, "true"},
	{"allow.auto.create.topics", KAFKA_NOWHERE, false, "false"},

	/* The core limits how much is on its way. */
	{"queue.buffering.max.messages", KAFKA_NOWHERE, false, "0"},
	{"queue.buffering.max.kbytes", KAFKA_NOWHERE, false, "2147483647"}
};

const int	kafka_nproperties = lengthof(kafka_properties);

static bool check_choice(const char *value, const char *const *choices,
						 char *error);
static const KafkaProperty *find_property(const char *name);

/*
 * May an option have this value? If not, returns false, and sets error to a
 * sentence that says so; a secret is not in it.
 */
bool
kafka_property_check(const KafkaProperty *property, const char *value,
					 char *error)
{
	static const char *const mechanisms[] = {
		"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", NULL
	};
	static const char *const partitioners[] = {
		"murmur2_random", "murmur2", "consistent_random", "consistent",
		"fnv1a_random", "fnv1a", NULL
	};
	char		reason[CQRS_BROKER_ERROR_SIZE];
	rd_kafka_conf_t *conf;
	rd_kafka_conf_res_t result;

	if (strcmp(property->name, KAFKA_OPTION_TOPIC) == 0)
		return broker_check_not_empty(value, error) &&
			broker_template_check(value, error);
	if (strcmp(property->name, "bootstrap.servers") == 0 &&
		!broker_check_not_empty(value, error))
		return false;
	if (strcmp(property->name, "sasl.mechanism") == 0)
		return check_choice(value, mechanisms, error);

	/* Not "random": it keeps no order. */
	if (strcmp(property->name, "partitioner") == 0)
		return check_choice(value, partitioners, error);

	conf = rd_kafka_conf_new();
	result = rd_kafka_conf_set(conf, property->name, value, reason,
							   sizeof(reason));
	rd_kafka_conf_destroy(conf);

	if (result == RD_KAFKA_CONF_OK)
		return true;
	if (result == RD_KAFKA_CONF_UNKNOWN)
		return broker_error(error, "The installed librdkafka, version %s, does not have it.",
							rd_kafka_version_str());
	if (property->place == KAFKA_USER_MAPPING)
		return broker_error(error, "librdkafka does not accept it.");
	return broker_error(error, "librdkafka says: %s", reason);
}

/*
 * Can a connection be made with these options, each of them checked? If not,
 * returns false and sets error.
 */
bool
kafka_properties_check(const CqrsBrokerConnection *connection, char *error)
{
	const char *protocol = broker_option(connection, "security.protocol");
	rd_kafka_conf_t *conf;

	if (broker_option(connection, "bootstrap.servers") == NULL)
		return broker_error(error, "the server has no option \"bootstrap.servers\": the addresses of some brokers, such as kafka1:9092,kafka2:9092");

	if (protocol != NULL && strncasecmp(protocol, "sasl_", 5) == 0)
	{
		if (broker_option(connection, "sasl.mechanism") == NULL)
			return broker_error(error, "with \"security.protocol\" %s, the server needs the option \"sasl.mechanism\"",
								protocol);
		if (broker_option(connection, "sasl.username") == NULL ||
			broker_option(connection, "sasl.password") == NULL)
			return broker_error(error, "with \"security.protocol\" %s, the user mapping needs the options \"sasl.username\" and \"sasl.password\"",
								protocol);
	}

	conf = kafka_conf_new(connection, error);
	if (conf == NULL)
		return false;
	rd_kafka_conf_destroy(conf);
	return true;
}

/*
 * The value of a property that has a default here, and is a number.
 */
int
kafka_option_int(const CqrsBrokerConnection *connection, const char *name)
{
	return broker_option_int(connection, name,
							 atoi(find_property(name)->value));
}

/*
 * A client's configuration: options, and defaults. What it has no use for, as it
 * publishes or consumes, librdkafka leaves alone. NULL, with error set, if
 * librdkafka does not accept it. The caller destroys it, or gives it to
 * rd_kafka_new().
 *
 * It logs nothing: librdkafka would write to the server's standard error.
 */
rd_kafka_conf_t *
kafka_conf_new(const CqrsBrokerConnection *connection, char *error)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		client_id[256];
	int			i;

	rd_kafka_conf_set_log_cb(conf, NULL);

	snprintf(client_id, sizeof(client_id), "cqrs_outbox-%s-%s",
			 connection->database, connection->subscription);
	rd_kafka_conf_set(conf, "client.id", client_id, NULL, 0);
	if (connection->transactional_id != NULL)
		rd_kafka_conf_set(conf, "transactional.id",
						  connection->transactional_id, NULL, 0);

	for (i = 0; i < kafka_nproperties; i++)
	{
		const KafkaProperty *property = &kafka_properties[i];
		const char *value = NULL;
		char		reason[CQRS_BROKER_ERROR_SIZE];

		if (property->place != KAFKA_NOWHERE)
			value = broker_option(connection, property->name);
		if (value == NULL)
			value = property->value;
		if (value == NULL ||
			strcmp(property->name, KAFKA_OPTION_TOPIC) == 0)
			continue;

		/* A transaction in which a record is refused is aborted as a whole. */
		if (connection->transactional_id != NULL &&
			strcmp(property->name, "enable.gapless.guarantee") == 0)
			continue;

		if (rd_kafka_conf_set(conf, property->name, value, reason,
							  sizeof(reason)) != RD_KAFKA_CONF_OK)
		{
			if (property->place == KAFKA_USER_MAPPING)
				broker_error(error, "librdkafka does not accept the option \"%s\" of the user mapping",
							 property->name);
			else
				broker_error(error, "librdkafka %s: %s",
							 rd_kafka_version_str(), reason);
			rd_kafka_conf_destroy(conf);
			return NULL;
		}
	}
	return conf;
}

/*
 * Is the value one of these? The comparison is librdkafka's: exact.
 */
static bool
check_choice(const char *value, const char *const *choices, char *error)
{
	char		list[128] = "";
	int			i;

	for (i = 0; choices[i] != NULL; i++)
	{
		if (strcmp(value, choices[i]) == 0)
			return true;
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s",
				 i == 0 ? "" : ", ", choices[i]);
	}
	return broker_error(error, "It must be one of: %s.", list);
}

/*
 * The property of this name, which is in the table.
 */
static const KafkaProperty *
find_property(const char *name)
{
	const KafkaProperty *property = kafka_properties;

	while (strcmp(property->name, name) != 0)
		property++;
	return property;
}
