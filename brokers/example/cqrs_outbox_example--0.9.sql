/* cqrs_outbox_example */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cqrs_outbox_example" to load this file. \quit

-- ----------------------------------------------------------------------
-- cqrs_example_validator(options, catalog): checks the options of servers and
-- user mappings of foreign-data wrapper cqrs_example
--
-- Options of a server; who may use it, GRANT USAGE ON FOREIGN SERVER says:
--
-- host               name or address of the peer; default localhost
-- port               1 to 65535; necessary
-- timeout            in seconds, 1 to 3600: how long to wait for a connection,
--                    for its acceptance, and for the peer to read on; default
--                    10
-- window             how many messages may be unconfirmed, 1 to 1000000;
--                    default 1000
-- max_message_size   the largest body of a message, in bytes, 1 to 536870912;
--                    an event with a larger one is a dead letter at once.
--                    Default 16777216
-- cloudevents_source source of events in format cloudevents; default
--                    /<database>/<topic>
--
-- Options of a user mapping, which is not necessary:
--
-- token              what the peer may want to know us by
--
-- Errors: HV00D there is no such option; 22023 it cannot have this value.
-- ----------------------------------------------------------------------
CREATE FUNCTION cqrs_example_validator(options text[], catalog oid) RETURNS void
LANGUAGE C STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
REVOKE ALL ON FUNCTION cqrs_example_validator(text[], oid) FROM PUBLIC;
COMMENT ON FUNCTION cqrs_example_validator(text[], oid) IS 'checks options of servers and user mappings of cqrs_example';

-- ----------------------------------------------------------------------
-- cqrs_example: whoever reads JSON lines, as a foreign server that events are
-- published to
--
-- It has no handler: there are no foreign tables. GRANT USAGE on it allows to
-- create servers, and with it to have the database server connect anywhere.
-- ----------------------------------------------------------------------
CREATE FOREIGN DATA WRAPPER cqrs_example VALIDATOR cqrs_example_validator;
COMMENT ON FOREIGN DATA WRAPPER cqrs_example IS 'publishes events of cqrs_outbox as JSON lines';
