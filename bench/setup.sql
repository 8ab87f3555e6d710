-- What every figure is measured on.
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION pgq;

-- a server that has been up for a while has touched its shared buffers
CREATE UNLOGGED TABLE filler (x text);
ALTER TABLE filler ALTER COLUMN x SET STORAGE PLAIN;
INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, 135000);
DROP TABLE filler;

-- what a team would write instead: an outbox table with its key
CREATE TABLE plain (
	position	bigserial	PRIMARY KEY,
	xid			xid8		NOT NULL DEFAULT pg_current_xact_id(),
	emitted_at	timestamptz	NOT NULL DEFAULT clock_timestamp(),
	event_id	uuid		NOT NULL DEFAULT gen_random_uuid(),
	event_name	text		NOT NULL,
	key			text,
	headers		jsonb,
	payload		jsonb
);
ALTER TABLE plain SET (autovacuum_enabled = false);
CREATE TABLE plain_copy (LIKE plain INCLUDING ALL);

-- 300 arrays of 1,000 payloads: the input of cqrs_emit_many(), uncompressed
-- as COPY's is
CREATE TABLE batch (payloads jsonb[]);
ALTER TABLE batch ALTER COLUMN payloads SET STORAGE EXTERNAL;
INSERT INTO batch
SELECT array_agg(jsonb_build_object('user_id', n::text, 'meeting_id', b::text))
FROM generate_series(1, 300) b, generate_series(1, 1000) n
GROUP BY b;

-- trivial handlers
CREATE FUNCTION sql_handler(command jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION plpgsql_handler(command jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
SELECT cqrs_register_command('SqlCommand', 'sql_handler(jsonb)');
SELECT cqrs_register_command('PlpgsqlCommand', 'plpgsql_handler(jsonb)');
