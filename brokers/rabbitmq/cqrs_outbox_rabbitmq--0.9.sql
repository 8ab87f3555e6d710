/* cqrs_outbox_rabbitmq */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cqrs_outbox_rabbitmq" to load this file. \quit

-- ----------------------------------------------------------------------
-- cqrs_rabbitmq_validator(options, catalog): checks the options of servers
-- and user mappings of foreign-data wrapper cqrs_rabbitmq
--
-- Options of a server; who may use it, GRANT USAGE ON FOREIGN SERVER says:
--
-- host               where RabbitMQ is: names or addresses, each with :port
--                    if it is not that of option port, separated by commas.
--                    They are tried in turn, beginning with another one after
--                    a connection was lost. An IPv6 address with a port is in
--                    brackets. Default localhost
-- port               1 to 65535; default 5672, with TLS 5671
-- vhost              the virtual host; default /
-- exchange           what to publish to; default the default exchange, whose
--                    routing keys are names of queues. A template
-- routing_key        a template; default {topic}
-- mandatory          whether a message that cannot be routed to any queue is
--                    rejected: tried again and given up in the end. If not,
--                    the broker discards it. Default true
-- persistent         whether queues are to store messages durably; default
--                    true
-- heartbeat          in seconds, 1 to 3600; after twice that without a sign
--                    of life the connection is given up. The broker may ask
--                    for less. Default 10
-- connect_timeout    in seconds, 1 to 3600; for the connection to one host,
--                    and again for the login. Default 10
-- frame_max          in bytes, 4096 to 16777216; the headers of a message
--                    must fit. The broker may ask for less. Default 131072
-- max_message_size   the largest body of a message, in bytes, 1 to 536870912;
--                    an event with a larger one is a dead letter at once. The
--                    broker has a limit of its own. Default 16777216
-- tls                whether to use TLS, 1.2 or later; default false
-- tls_verify         whether the broker's certificate must be signed by a
--                    known authority, and for the host; default true
-- tls_ca_file        the authorities, PEM; default those of the system's
--                    OpenSSL. Set by superusers only
-- tls_cert_file      a certificate to show to the broker, PEM, with those
--                    that lead to an authority. Set by superusers only
-- tls_key_file       its key, PEM, without passphrase. Set by superusers only
-- window             how many messages may be unconfirmed, 1 to 1000000;
--                    default 1000
-- cloudevents_source source of events in format cloudevents; default
--                    /<database>/<topic>
--
-- In templates {topic}, {event_name} and {key} stand for the event's; {{ and
-- }} for a brace. An event without a key has an empty one. Booleans are true
-- or false.
--
-- Options of a user mapping, both necessary:
--
-- username           of RabbitMQ
-- password           its password
--
-- HV00D: there is no such option; 22023: it cannot have this value; 42501:
-- only a superuser may set it.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs_rabbitmq_validator(options text[], catalog oid)
RETURNS void
LANGUAGE c STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION cqrs_rabbitmq_validator(text[], oid) FROM PUBLIC;
COMMENT ON FUNCTION cqrs_rabbitmq_validator(text[], oid) IS
'checks options of servers and user mappings of cqrs_rabbitmq';

-- ----------------------------------------------------------------------
-- cqrs_rabbitmq: RabbitMQ, as a foreign server that events are published to
--
-- It has no handler: there are no foreign tables. GRANT USAGE on it allows to
-- create servers, and with it to have the database server connect anywhere.
-- ----------------------------------------------------------------------
CREATE FOREIGN DATA WRAPPER cqrs_rabbitmq VALIDATOR cqrs_rabbitmq_validator;
COMMENT ON FOREIGN DATA WRAPPER cqrs_rabbitmq IS
'publishes events of cqrs_outbox to RabbitMQ';
