/* cqrs_outbox_kafka */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cqrs_outbox_kafka" to load this file. \quit

-- ----------------------------------------------------------------------
-- cqrs_kafka_validator(options, catalog): checks the options of servers and
-- user mappings of foreign-data wrapper cqrs_kafka
--
-- Most options are properties of librdkafka, under its names: write them in
-- double quotes. Where none is given, the default is librdkafka's.
--
-- Options of a server; who may use it, GRANT USAGE ON FOREIGN SERVER says:
--
-- topic              the topic to write to, a template: {topic}, {event_name}
--                    and {key} stand for the event's (an event without a key
--                    has an empty one), {{ and }} for a brace. Default {topic}
-- bootstrap.servers  necessary: host:port of some brokers, separated by commas
-- client.id          default cqrs_outbox-<database>-<subscription>
-- client.rack
-- security.protocol  plaintext (the default), ssl, sasl_plaintext or sasl_ssl
-- sasl.mechanism     PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
-- ssl.ca.pem         authorities, PEM; default those of the system's OpenSSL
-- ssl.ca.location, ssl.crl.location
--                    files of authorities and of revoked certificates. Set by
--                    superusers only
-- ssl.cipher.suites, ssl.curves.list, ssl.sigalgs.list
-- ssl.endpoint.identification.algorithm
--                    https (the default): a broker's certificate must be for
--                    its host; or none
-- enable.ssl.certificate.verification
--                    whether it must be signed by an authority; default true
-- socket.connection.setup.timeout.ms
--                    for a connection with TLS and login; default 5000
-- socket.timeout.ms  for an answer; default 10000
-- socket.keepalive.enable, socket.nagle.disable
--                    default true
-- socket.send.buffer.bytes, socket.receive.buffer.bytes,
-- broker.address.family, broker.address.ttl, connections.max.idle.ms,
-- reconnect.backoff.ms
-- reconnect.backoff.max.ms
--                    default 1000
-- receive.message.max.bytes, metadata.max.age.ms,
-- topic.metadata.refresh.interval.ms
-- topic.metadata.propagation.max.ms
--                    how long a topic may be missing before its events are
--                    rejected; default 5000
-- message.max.bytes  larger records are dead letters at once; default 1000000
-- request.timeout.ms how long a broker waits for its replicas; default 8000
-- retry.backoff.ms
-- linger.ms          how long a record waits for others to share a request
--                    with; default 0: they do so while brokers are busy
-- batch.size, batch.num.messages, compression.type, compression.level
-- partitioner        which partition a key has: murmur2_random (the default,
--                    the Java client's), murmur2, consistent_random,
--                    consistent, fnv1a_random or fnv1a
-- sticky.partitioning.linger.ms
-- window             how many records may be unconfirmed, 1 to 1000000;
--                    default 10000
-- max_message_size   the largest body of a message, in bytes, 1 to 536870912;
--                    an event with a larger one is a dead letter at once.
--                    Default 16777216
-- cloudevents_source source of events in format cloudevents; default
--                    /<database>/<topic>
--
-- Options of a user mapping:
--
-- sasl.username, sasl.password
--                    necessary if security.protocol is sasl_...
-- ssl.certificate.pem, ssl.key.pem
--                    a certificate to show to brokers, and its key, PEM
-- ssl.certificate.location, ssl.key.location, ssl.keystore.location
--                    the same as files; the last one has both, PKCS#12. Set by
--                    superusers only
-- ssl.key.password, ssl.keystore.password
--                    with which they are encrypted
--
-- HV00D: there is no such option; 22023: it cannot have this value, or the
-- installed librdkafka does not know it; 42501: only a superuser may set it.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs_kafka_validator(options text[], catalog oid)
RETURNS void
LANGUAGE c STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION cqrs_kafka_validator(text[], oid) FROM PUBLIC;
COMMENT ON FUNCTION cqrs_kafka_validator(text[], oid) IS
'checks options of servers and user mappings of cqrs_kafka';

-- ----------------------------------------------------------------------
-- cqrs_kafka: Apache Kafka, as a foreign server that events are published to
--
-- It has no handler: there are no foreign tables. GRANT USAGE on it allows to
-- create servers, and with it to have the database server connect anywhere.
-- ----------------------------------------------------------------------
CREATE FOREIGN DATA WRAPPER cqrs_kafka VALIDATOR cqrs_kafka_validator;
COMMENT ON FOREIGN DATA WRAPPER cqrs_kafka IS
'publishes events of cqrs_outbox to Apache Kafka';
