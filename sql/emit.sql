-- Events: registering and emitting.
CREATE EXTENSION cqrs_outbox;

SELECT cqrs_create_topic('orders');
SELECT cqrs_register_event('order_placed', 'orders');
SELECT cqrs_register_event('order_paid', 'payments');
SELECT topic, retention FROM cqrs.topic ORDER BY topic;

-- registering
SELECT cqrs_register_event('order_placed', 'orders');
SELECT cqrs_register_event('order_placed', 'payments');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_event(NULL, 'orders');
SELECT cqrs_register_event('', 'orders');
SELECT cqrs_register_event(repeat('x', 64), 'orders');
SELECT cqrs_register_event('x', repeat('t', 64));
SELECT cqrs_register_event('x', '');
SELECT cqrs_register_event('x', 'orders', 'text');
SELECT cqrs_register_event('x', 'orders', 'record');
SELECT cqrs_unregister_event('x');
SELECT cqrs_unregister_event(NULL);

-- topics
SELECT cqrs_create_topic('orders');
SELECT cqrs_create_topic('orders', '2 days');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_create_topic(NULL);
SELECT cqrs_create_topic('');
SELECT cqrs_create_topic(repeat('t', 64));
SELECT cqrs_create_topic('t', '-1 hour');
SELECT cqrs_create_topic('Or"ders, it''s; "quoted".name', '0');
SELECT cqrs_register_event('ev"ent; it''s', 'Or"ders, it''s; "quoted".name');
SELECT cqrs_emit('ev"ent; it''s', '{}') IS NOT NULL;
SELECT event_name, topic FROM cqrs_events('Or"ders, it''s; "quoted".name');
SELECT cqrs_create_topic(repeat('t', 63));
SELECT cqrs_drop_topic(repeat('t', 63));
SELECT cqrs_drop_topic('no such topic');
SELECT cqrs_drop_topic(NULL);

-- emitting
SELECT cqrs_emit('order_placed', '{"id": 1}') IS NOT NULL;
SELECT cqrs_emit('order_placed', '{"id": 2}', key => 'k', headers => '{"traceparent": "00-1"}') IS NOT NULL;
SELECT cqrs_emit('order_placed', '{"id": 3}', topic => 'payments') IS NOT NULL;
SELECT cqrs_emit('order_placed', '{"id": 4}', event_id => '01890a5d-ac96-774b-bcce-b302099a8057');
SELECT cqrs_emit('order_placed', NULL, key => 'gone') IS NOT NULL;
SELECT cqrs_emit('order_placed', '{}', key => '') IS NOT NULL;
SELECT event_name, topic, key, payload, headers FROM cqrs_events('orders');
SELECT event_name, topic, payload FROM cqrs_events('payments');
SELECT event_id FROM cqrs_events('orders') WHERE payload->>'id' = '4';

SELECT cqrs_emit('order_shipped', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit(NULL, '{}');
SELECT cqrs_emit('order_placed', '[]');
SELECT cqrs_emit('order_placed', '1');
SELECT cqrs_emit('order_placed', 'null');
SELECT cqrs_emit('order_placed', '{}', headers => '[]');
SELECT cqrs_emit('order_placed', '{}', topic => 'no such topic');
SELECT cqrs_emit('order_placed', '{}', topic => '');

-- a typed payload
CREATE DOMAIN quantity AS int CHECK (VALUE > 0);
CREATE DOMAIN sku AS text NOT NULL;
CREATE TYPE order_line AS (sku sku, quantity quantity);
CREATE TYPE order_changed AS (id int, placed date, lines order_line[]);
SELECT cqrs_register_event('order_changed', 'orders', 'order_changed');
SELECT cqrs_emit('order_changed', '{"id": 1, "placed": "2024-02-29", "lines": [{"sku": "a", "quantity": 2}]}') IS NOT NULL;
SELECT cqrs_emit('order_changed', '{}') IS NOT NULL;
SELECT cqrs_emit('order_changed', NULL) IS NOT NULL;
SELECT cqrs_emit('order_changed', '{"id": 1, "color": "red"}');
SELECT cqrs_emit('order_changed', '{"id": "one"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('order_changed', '{"id": 1.5}');
SELECT cqrs_emit('order_changed', '{"id": 99999999999}');
SELECT cqrs_emit('order_changed', '{"placed": "2023-02-29"}');
SELECT cqrs_emit('order_changed', '{"lines": [{"sku": "a", "quantity": 0}]}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('order_changed', '{"lines": [{"quantity": 1}]}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_emit('order_changed', '{"lines": [{"sku": "a", "price": 1}]}');
SELECT cqrs_emit('order_changed', '{"lines": {"sku": "a"}}');
ALTER TYPE order_changed ADD ATTRIBUTE color text;
SELECT cqrs_emit('order_changed', '{"id": 1, "color": "red"}') IS NOT NULL;
DROP TYPE order_changed;
SELECT cqrs_emit('order_changed', '{}');

-- many at once
SELECT cqrs_register_event('bulk', 'bulk');
SELECT cardinality(cqrs_emit_many('bulk', ARRAY['{"n": 1}', NULL, '{"n": 3}']::jsonb[]));
SELECT cardinality(cqrs_emit_many('bulk', ARRAY['{"n": 4}', '{"n": 5}']::jsonb[], ARRAY['k', NULL]));
SELECT cardinality(cqrs_emit_many('bulk', '{}'));
SELECT key, payload FROM cqrs_events('bulk');
SELECT cardinality(cqrs_emit_many('bulk', NULL));
SELECT cardinality(cqrs_emit_many('bulk', ARRAY['{}', '[]']::jsonb[]));
SELECT cardinality(cqrs_emit_many('bulk', ARRAY['{}']::jsonb[], ARRAY['a', 'b']));
SELECT cardinality(cqrs_emit_many('bulk', ARRAY[ARRAY['{}'], ARRAY['{}']]::jsonb[]));
SELECT cardinality(cqrs_emit_many('nothing', ARRAY['{}']::jsonb[]));
SELECT cardinality(cqrs_emit_many('bulk', array_agg(jsonb_build_object('n', n) ORDER BY n))) FROM generate_series(1, 5000) n;
SELECT count(*), bool_and((payload->>'n')::int = n) AS in_order, count(DISTINCT event_id) AS ids
FROM cqrs_events('bulk', 10000, after_position => (SELECT max(position) - 5000 FROM cqrs_topics.bulk))
	 WITH ORDINALITY AS e(position, event_id, event_name, topic, key, payload, headers, emitted_at, status, attempts, n);

-- what a key may be; an untyped literal, NULL, and an untyped parameter are text
CREATE DOMAIN key_domain AS bigint;
SELECT cqrs_register_event('keyed', 'keyed');
SELECT count(e) FROM (VALUES (cqrs_emit('keyed', '{}', 'literal')), (cqrs_emit('keyed', '{}', NULL)), (cqrs_emit('keyed', '{}', key => 'named'::text)),
	(cqrs_emit('keyed', '{}', 'varchar'::varchar(7))), (cqrs_emit('keyed', '{}', 'char'::char(7))), (cqrs_emit('keyed', '{}', key => 'name'::name)),
	(cqrs_emit('keyed', '{}', 32767::smallint)), (cqrs_emit('keyed', '{}', key => -2147483648)), (cqrs_emit('keyed', '{}', 9223372036854775807)),
	(cqrs_emit('keyed', '{}', key => '01890A5D-AC96-774B-BCCE-B302099A8057'::uuid)), (cqrs_emit('keyed', '{}', 42::key_domain)),
	(cqrs_emit('keyed', '{}', NULL::integer)), (cqrs_emit('keyed', '{}', headers => '{}')), (cqrs_emit('keyed', '{}'))) v (e);
PREPARE bare AS SELECT cqrs_emit($1, $2, $3, $4, $5, $6) IS NOT NULL AS emitted;
SELECT parameter_types FROM pg_prepared_statements WHERE name = 'bare';
EXECUTE bare('keyed', '{}', 'parameter', NULL, NULL, NULL);
PREPARE typed (uuid) AS SELECT cqrs_emit('keyed', '{}', key => $1) IS NOT NULL AS emitted;
EXECUTE typed('01890a5d-ac96-774b-bcce-b302099a8058');
DO $$ DECLARE n integer := 7; BEGIN PERFORM cqrs_emit('keyed', '{}', key => n); END $$;
SELECT key, pg_typeof(key) FROM cqrs_topics.keyed ORDER BY position;
SELECT cqrs_emit('keyed', '{}', key => 1.0);
SELECT cqrs_emit('keyed', '{}', key => now());
SELECT cqrs_emit('keyed', '{}', key => '{1}'::integer[]);
SELECT cqrs_emit('keyed', '{}', key => '{}'::jsonb);
SELECT cqrs_emit('keyed', '{}', key => true);
DEALLOCATE bare;
DEALLOCATE typed;

-- many: the ids, in order; headers, ids and a topic
SELECT cqrs_emit_many('keyed', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}']::jsonb[]) AS ids \gset
SELECT array_agg(event_id ORDER BY payload->'n') = :'ids' AS same FROM cqrs_topics.keyed WHERE payload ? 'n';
SELECT cqrs_emit_many('keyed', ARRAY['{"n": 4}', '{"n": 5}']::jsonb[], headers => ARRAY['{"h": 4}', NULL]::jsonb[], topic => 'bulk',
	event_ids => ARRAY[NULL, '01890a5d-ac96-774b-bcce-b302099a8059']::uuid[]) AS ids \gset
SELECT payload, headers, event_id = (:'ids'::uuid[])[(payload->>'n')::integer - 3] AS same, (:'ids'::uuid[])[2]
FROM cqrs_topics.bulk WHERE event_name = 'keyed' ORDER BY position;
SELECT cqrs_emit_many('keyed', '{}', topic => 'bulk');
SELECT cqrs_emit_many('keyed', '{}', topic => 'nothing');
SELECT cqrs_emit_many('keyed', ARRAY['{}']::jsonb[], headers => ARRAY['{}', '{}']::jsonb[]);
SELECT cqrs_emit_many('keyed', ARRAY['{}']::jsonb[], event_ids => '{}');
SELECT cqrs_emit_many('keyed', ARRAY['{}', '{}']::jsonb[], headers => ARRAY['{}', '[]']::jsonb[]);
SELECT cqrs_drop_topic('keyed', cascade => true);
DROP DOMAIN key_domain;

-- traced
SELECT cqrs_register_event('traced', 'traced');
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
SELECT cqrs_emit('traced', '{"n": 1}') IS NOT NULL;
SELECT cqrs_emit('traced', '{"n": 2}', headers => '{"a": 1, "tracestate": "k=v"}') IS NOT NULL;
SELECT cqrs_emit('traced', '{"n": 3}', headers => '{}') IS NOT NULL;
SELECT cqrs_emit('traced', '{"n": 4}', headers => '{"traceparent": "its own"}') IS NOT NULL;
SELECT cqrs_emit('traced', '{"n": 5}', headers => '{"traceparent": null}') IS NOT NULL;
SELECT cardinality(cqrs_emit_many('traced', ARRAY['{"n": 6}', '{"n": 7}']::jsonb[]));
CREATE TABLE traced (n int);
CREATE TRIGGER each_row AFTER INSERT ON traced
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('traced', 'n');
CREATE TRIGGER statement AFTER INSERT ON traced REFERENCING NEW TABLE AS new
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('traced', 'n');
INSERT INTO traced VALUES (8);
BEGIN;
SET LOCAL cqrs_outbox.traceparent = '00-ffffffffffffffffffffffffffffffff-ffffffffffffffff-00';
SELECT cqrs_emit('traced', '{"n": 9}') IS NOT NULL;
COMMIT;
SELECT cqrs_emit('traced', '{"n": 10}') IS NOT NULL;
SET cqrs_outbox.traceparent = '';
SELECT cqrs_emit('traced', '{"n": 11}') IS NOT NULL;
SELECT cqrs_emit('traced', '{"n": 12}', headers => '{"a": 1}') IS NOT NULL;
SELECT coalesce(payload->'n', payload->'new'->'n') AS n, headers FROM cqrs_events('traced');
SET cqrs_outbox.traceparent = '00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SET cqrs_outbox.traceparent = '00-00000000000000000000000000000000-00f067aa0ba902b7-01';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x';
SET cqrs_outbox.traceparent = '01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
\set VERBOSITY default
SHOW cqrs_outbox.traceparent;
DROP TABLE traced;

-- a huge payload
SELECT cqrs_emit('bulk', jsonb_build_object('blob', repeat('x', 100 * 1024 * 1024))) IS NOT NULL;
SELECT length(payload->>'blob') FROM cqrs_events('bulk', 1, after_position => (SELECT max(position) - 1 FROM cqrs_topics.bulk));

-- savepoints
BEGIN;
SELECT cqrs_emit('order_paid', '{"n": 1}') IS NOT NULL;
SAVEPOINT a;
SELECT cqrs_emit('order_paid', '{"n": 2}') IS NOT NULL;
ROLLBACK TO a;
SAVEPOINT b;
SELECT cqrs_emit('order_paid', '{"n": 3}') IS NOT NULL;
RELEASE b;
COMMIT;
SELECT payload FROM cqrs_events('payments', event_name => 'order_paid');

-- where it cannot be done
BEGIN READ ONLY;
SELECT cqrs_emit('order_placed', '{}');
ROLLBACK;
\echo :LAST_ERROR_SQLSTATE
BEGIN READ ONLY;
SELECT cardinality(cqrs_emit_many('order_placed', '{}'));
ROLLBACK;
BEGIN READ ONLY;
SELECT count(*) FROM cqrs_events('payments');
SELECT cqrs_register_event('x', 'x');
ROLLBACK;
CREATE FUNCTION pretends(jsonb) RETURNS uuid LANGUAGE sql PARALLEL SAFE AS $$SELECT cqrs_emit('order_placed', $1)$$;
CREATE FUNCTION pretends_plpgsql(payload jsonb) RETURNS uuid LANGUAGE plpgsql PARALLEL SAFE COST 100000 AS $$
BEGIN
	RETURN cqrs_emit('order_placed', payload);
END $$;
CREATE TABLE many AS SELECT '{}'::jsonb AS payload FROM generate_series(1, 1000);
BEGIN;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL max_parallel_workers_per_gather = 2;
\set VERBOSITY terse
SELECT count(pretends_plpgsql(payload)) FROM many;
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
ROLLBACK;

-- a topic's table altered by hand
SELECT cqrs_create_topic('empty');
SELECT format('cqrs.topic_%s_0', topic_id) AS empty FROM cqrs.topic WHERE topic = 'empty' \gset
SELECT format('cqrs.topic_%s_0', topic_id) AS segment, format('topic_%s_0_xid', topic_id) AS index FROM cqrs.topic WHERE topic = 'payments' \gset
\set VERBOSITY terse
ALTER TABLE :segment ADD COLUMN x int;
SELECT cqrs_emit('order_paid', '{}');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM cqrs_events('payments');
ALTER TABLE :segment DROP COLUMN x;
SELECT cqrs_emit('order_paid', '{"n": 4}') IS NOT NULL;
SELECT cardinality(cqrs_emit_many('order_paid', ARRAY['{"n": 5}']::jsonb[]));
SELECT payload FROM cqrs_events('payments', event_name => 'order_paid');
ALTER TABLE :segment SET UNLOGGED;
SELECT cqrs_emit('order_paid', '{}');
ALTER TABLE :segment SET LOGGED;
ALTER TABLE :segment ENABLE ROW LEVEL SECURITY;
SELECT cqrs_emit('order_paid', '{}');
ALTER TABLE :segment DISABLE ROW LEVEL SECURITY;
CREATE TRIGGER t AFTER INSERT ON :segment EXECUTE FUNCTION cqrs.registry_changed();
SELECT cqrs_emit('order_paid', '{}');
DROP TRIGGER t ON :segment;
ALTER TABLE :empty ALTER COLUMN key SET NOT NULL;
SELECT cqrs_emit('order_paid', '{}', topic => 'empty');
ALTER TABLE :empty ALTER COLUMN key DROP NOT NULL;
SELECT cqrs_emit('order_paid', '{}', topic => 'empty') IS NOT NULL;
CREATE RULE r AS ON DELETE TO :segment DO INSTEAD NOTHING;
SELECT cqrs_emit('order_paid', '{}');
DROP RULE r ON :segment;
DROP INDEX cqrs.:index;
SELECT cqrs_emit('order_paid', '{}') IS NOT NULL;
SELECT count(*) FROM cqrs_events('payments');
SELECT cqrs_drop_topic('payments', cascade => true);
SELECT cqrs_emit('order_paid', '{}');
\set VERBOSITY default

-- rows that did not come through cqrs_emit() are not events
SELECT format('cqrs.topic_%s_0', topic_id) AS segment FROM cqrs.topic WHERE topic = 'orders' \gset
SELECT count(*) AS before FROM cqrs_events('orders') \gset
INSERT INTO :segment (position, xid, emitted_at, event_id, event_name, payload)
	SELECT position, xid, emitted_at, gen_random_uuid(), event_name, payload FROM :segment;
SELECT count(*) - :before AS more FROM cqrs_events('orders');
INSERT INTO :segment (position, xid, emitted_at, event_id, event_name, native)
	VALUES (1, '1', now(), '01890a5d-ac96-774b-bcce-b302099a8057', 'forged', true);

-- an index of the user's own is kept up
CREATE INDEX by_name ON :segment (event_name);
SELECT cqrs_emit('order_placed', '{"indexed": true}') IS NOT NULL;
SELECT cardinality(cqrs_emit_many('order_placed', ARRAY['{"indexed": true}', '{"indexed": true}']::jsonb[]));
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM :segment WHERE event_name = 'order_placed' AND payload->'indexed' IS NOT NULL;
RESET enable_seqscan;
RESET enable_bitmapscan;
CREATE UNIQUE INDEX by_id ON :segment (event_id);
SELECT cqrs_emit('order_placed', '{}', event_id => '01890a5d-ac96-774b-bcce-b302099a8058') IS NOT NULL;
SELECT cqrs_emit('order_placed', '{}', event_id => '01890a5d-ac96-774b-bcce-b302099a8058');
\echo :LAST_ERROR_SQLSTATE
CREATE INDEX by_lower ON :segment (lower(event_name));
SELECT cqrs_emit('order_placed', '{}');
DROP INDEX cqrs.by_lower;
CREATE INDEX partly ON :segment (event_name) WHERE key IS NOT NULL;
SELECT cqrs_emit('order_placed', '{}');
DROP INDEX cqrs.partly;
SELECT cqrs_emit('order_placed', '{}') IS NOT NULL;

-- dropping a topic
SELECT cqrs_drop_topic('orders');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_unregister_event('order_placed');
SELECT cqrs_unregister_event('order_changed');
SELECT cqrs_drop_topic('orders');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_drop_topic('orders', cascade => true);
SELECT cqrs_drop_topic('orders');
SELECT cqrs_drop_topic('bulk', cascade => true);
SELECT cqrs_drop_topic('traced', cascade => true);
SELECT cqrs_emit('bulk', '{}');
SELECT cqrs_drop_topic('empty', cascade => true);
SELECT cqrs_create_topic('empty');
SELECT cqrs_drop_topic('empty');

DROP TABLE many;
\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION pretends, pretends_plpgsql;
DROP TYPE order_line;
DROP DOMAIN quantity, sku;
