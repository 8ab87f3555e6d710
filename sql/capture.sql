-- Change capture: a table's changes become events.
CREATE EXTENSION cqrs_outbox;
CREATE TYPE other_row AS (id int);
CREATE DOMAIN amount AS numeric CHECK (VALUE >= 0);
CREATE TABLE orders (
	gone int,
	id int PRIMARY KEY,
	amount amount,
	doubled numeric GENERATED ALWAYS AS (amount * 2) STORED,
	lines jsonb
);
ALTER TABLE orders DROP COLUMN gone;
SELECT cqrs_register_event('order_changed', 'orders');
SELECT cqrs_register_event('order_state', 'order_states', 'orders');
SELECT cqrs_register_event('other', 'others', 'other_row');

-- What was emitted since it was last asked.
CREATE TABLE seen AS SELECT 0::bigint AS position;
CREATE FUNCTION emitted() RETURNS TABLE (event_name text, key text, payload jsonb) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT e.event_name, e.key, e.payload FROM cqrs_events(NULL, 1000) e
		WHERE e.position > (SELECT s.position FROM seen s) ORDER BY e.position;
	UPDATE seen SET position = (SELECT max(e.position) FROM cqrs_events(NULL, 1000) e);
END $$;

-- envelopes, row by row
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
CREATE TRIGGER capture_truncate AFTER TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
INSERT INTO orders VALUES (1, 10, DEFAULT, '[{"sku": "a"}]'), (2, NULL, DEFAULT, NULL);
UPDATE orders SET amount = 11 WHERE id = 1;
UPDATE orders SET id = 3 WHERE id = 2;
DELETE FROM orders WHERE id = 3;
UPDATE orders SET amount = 0 WHERE id = 4;
SELECT * FROM emitted();
INSERT INTO orders VALUES (1, 12) ON CONFLICT (id) DO UPDATE SET amount = excluded.amount;
TRUNCATE orders;
SELECT * FROM emitted();

-- in the same transaction, and undone with it
BEGIN;
INSERT INTO orders VALUES (1, 1);
SAVEPOINT s;
INSERT INTO orders VALUES (2, 2);
ROLLBACK TO s;
INSERT INTO orders VALUES (3, 3);
COMMIT;
BEGIN;
INSERT INTO orders VALUES (4, 4);
ROLLBACK;
SELECT key, payload->'new'->'id' AS id FROM emitted();

-- a column with a default that old rows do not store
ALTER TABLE orders ADD COLUMN color text DEFAULT 'red';
UPDATE orders SET amount = 5 WHERE id = 1;
SELECT key, payload FROM emitted();

-- toasted values, also of a row whose old version is the only one to have them
ALTER TABLE orders ALTER COLUMN color SET STORAGE EXTERNAL;
INSERT INTO orders VALUES (5, 5, DEFAULT, NULL, repeat('x', 100000));
UPDATE orders SET amount = 6 WHERE id = 5;
UPDATE orders SET color = 'blue' WHERE id = 5;
SELECT key, payload->>'op' AS op, length(payload->'old'->>'color') AS old, length(payload->'new'->>'color') AS new FROM emitted();

-- a deferred trigger: at the commit
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
BEGIN;
INSERT INTO orders VALUES (6, 6);
SELECT cqrs_emit('order_changed', '{"between": true}') IS NOT NULL;
COMMIT;
SELECT key, payload - 'new' AS payload FROM emitted();
DROP TRIGGER late ON orders;
DROP TRIGGER capture ON orders;
DROP TRIGGER capture_truncate ON orders;
TRUNCATE orders;

-- envelopes, of a statement's rows
CREATE TRIGGER i AFTER INSERT ON orders REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
CREATE TRIGGER u AFTER UPDATE ON orders REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
CREATE TRIGGER d AFTER DELETE ON orders REFERENCING OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
INSERT INTO orders SELECT n, n * 10 FROM generate_series(1, 3) n;
UPDATE orders SET id = id + 10, amount = amount + 1 WHERE id < 3;
DELETE FROM orders WHERE id > 10;
DELETE FROM orders WHERE id > 10;
SELECT * FROM emitted();
INSERT INTO orders VALUES (3, 31), (4, 40) ON CONFLICT (id) DO UPDATE SET amount = excluded.amount;
WITH gone AS (DELETE FROM orders WHERE id = 4 RETURNING *) INSERT INTO orders SELECT 5, amount FROM gone;
SELECT key, payload->>'op' AS op, payload->'old'->'amount' AS old, payload->'new'->'amount' AS new FROM emitted();

-- the transition tables are there for others too
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% rows', (SELECT count(*) FROM n);
	RETURN NULL;
END $$;
CREATE TRIGGER a AFTER UPDATE ON orders REFERENCING NEW TABLE AS n EXECUTE FUNCTION count_rows();
CREATE TRIGGER z AFTER UPDATE ON orders REFERENCING NEW TABLE AS n EXECUTE FUNCTION count_rows();
UPDATE orders SET amount = 1;
SELECT count(*) FROM emitted();
DROP TRIGGER a ON orders;
DROP TRIGGER z ON orders;

-- one of the two tables
DROP TRIGGER u ON orders;
CREATE TRIGGER u AFTER UPDATE ON orders REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
CREATE TRIGGER u_old AFTER UPDATE ON orders REFERENCING OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
UPDATE orders SET id = 30 WHERE id = 3;
SELECT * FROM emitted();
DROP TRIGGER i ON orders;
DROP TRIGGER u ON orders;
DROP TRIGGER u_old ON orders;
DROP TRIGGER d ON orders;
DELETE FROM orders;

-- many rows, in order, wider than what is written at once and than work_mem
CREATE TABLE wide (n int, filler text);
SELECT cqrs_register_event('wide', 'wide');
CREATE TRIGGER i AFTER INSERT ON wide REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('wide', 'n');
SET work_mem = '64kB';
INSERT INTO wide SELECT n, repeat('x', n % 200) FROM generate_series(1, 3000) n;
RESET work_mem;
SELECT count(*), count(DISTINCT event_id) AS ids, bool_and(key::int = n AND (payload->'new'->>'n')::int = n) AS in_order
FROM cqrs_events('wide', 10000)
	 WITH ORDINALITY AS e(position, event_id, event_name, topic, key, payload, headers, status, attempts, emitted_at, n);
DROP TABLE wide;
SELECT cqrs_drop_topic('wide', cascade => true);

-- state transfer, row by row
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
INSERT INTO orders VALUES (1, 10), (2, 20);
UPDATE orders SET amount = 11 WHERE id = 1;
UPDATE orders SET id = 3 WHERE id = 2;
DELETE FROM orders WHERE id = 3;
SELECT * FROM emitted();
-- what it emits is what cqrs_emit() takes
SELECT cqrs_emit('order_state', payload) IS NOT NULL FROM cqrs_events('order_states', 1);
SELECT count(*) FROM emitted();
DROP TRIGGER capture ON orders;

-- state transfer, of a statement's rows
CREATE TRIGGER i AFTER INSERT ON orders REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
CREATE TRIGGER u AFTER UPDATE ON orders REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
CREATE TRIGGER d AFTER DELETE ON orders REFERENCING OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
INSERT INTO orders VALUES (4, 40), (5, 50);
UPDATE orders SET id = CASE id WHEN 5 THEN 6 ELSE id END WHERE id > 3;
DELETE FROM orders WHERE id > 3;
SELECT event_name, key, payload->'amount' AS amount, payload IS NULL AS tombstone FROM emitted();
DROP TRIGGER i ON orders;
DROP TRIGGER u ON orders;
DROP TRIGGER d ON orders;

-- what it cannot tell
CREATE TRIGGER t AFTER TRUNCATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
TRUNCATE orders;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER INSERT OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_state');
INSERT INTO orders VALUES (7, 70);
SELECT key, payload->'id' AS id FROM emitted();
DELETE FROM orders;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders REFERENCING OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state', 'id');
UPDATE orders SET amount = 1;
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_state');
UPDATE orders SET amount = 1;
SELECT key, payload->'amount' AS amount FROM emitted();
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('other', 'id');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
SELECT * FROM emitted();

-- keys of several columns, and of none
CREATE TABLE item ("order" int, "Sku" text, kind "char");
SELECT cqrs_register_event('item_changed', 'orders');
CREATE TRIGGER t AFTER INSERT OR UPDATE ON item
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_changed', 'order', 'Sku');
INSERT INTO item VALUES (1, 'a'), (1, E'"quoted", \\\n'), (NULL, 'b'), (2, NULL), (NULL, NULL), (2, '');
SELECT key, payload->'new' AS new FROM emitted();
DROP TRIGGER t ON item;
CREATE TRIGGER t AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_changed', 'Sku');
INSERT INTO item VALUES (1, 'it''s'), (1, ''), (1, NULL);
SELECT key, key IS NULL AS is_null FROM emitted();
DROP TRIGGER t ON item;
-- from NULL to a key, and back
SELECT cqrs_register_event('item_state', 'orders', 'item');
CREATE TRIGGER t AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('item_state', 'Sku');
UPDATE item SET "Sku" = 'c' WHERE "Sku" IS NULL AND "order" = 2;
UPDATE item SET "Sku" = NULL WHERE "Sku" = 'c';
UPDATE item SET kind = 'x' WHERE "Sku" IS NULL AND "order" = 2;
SELECT key, payload FROM emitted();
DROP TRIGGER t ON item;
TRUNCATE item;
-- a key handed on from row to row: no tombstone behind the new state
INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, 'c');
CREATE TRIGGER t AFTER UPDATE ON item REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('item_state', 'order');
UPDATE item SET "order" = "order" % 2 + 1 WHERE "order" < 3;
UPDATE item SET "order" = "order" + 1;
SELECT key, payload->'Sku' AS sku FROM emitted();
DROP TABLE item;

-- partitions: named like the table of the trigger, whatever their columns' order
CREATE TABLE city (country text, name text, people int) PARTITION BY LIST (country);
CREATE TABLE city_de (people int, dropped int, name text, country text);
ALTER TABLE city_de DROP COLUMN dropped;
ALTER TABLE city ATTACH PARTITION city_de FOR VALUES IN ('de');
CREATE TABLE city_rest PARTITION OF city DEFAULT PARTITION BY LIST (name);
CREATE TABLE city_rest_all PARTITION OF city_rest DEFAULT;
SELECT cqrs_register_event('city_changed', 'cities');
SELECT cqrs_register_event('city_state', 'cities', 'city');
SELECT cqrs_register_event('city_de_state', 'cities', 'city_de');
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON city
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('city_changed', 'country', 'name');
CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON city
	FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('city_state', 'name');
INSERT INTO city VALUES ('de', 'Ulm', 1), ('fr', 'Lyon', 2);
UPDATE city SET country = 'fr' WHERE name = 'Ulm';
SELECT * FROM emitted();
DROP TRIGGER a ON city;
DROP TRIGGER b ON city;
CREATE TRIGGER a AFTER UPDATE ON city REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('city_changed', 'name');
CREATE TRIGGER b AFTER UPDATE ON city REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('city_state', 'name');
UPDATE city SET country = 'de', people = people + 1;
SELECT * FROM emitted();
-- a row that does not arrive in its new partition
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_out BEFORE INSERT ON city_rest_all FOR EACH ROW WHEN (new.name = 'Ulm') EXECUTE FUNCTION keep_out();
UPDATE city SET country = 'fr', name = CASE name WHEN 'Lyon' THEN 'Lugdunum' ELSE name END;
SELECT * FROM emitted();
-- a partition's own trigger
CREATE TRIGGER own AFTER INSERT ON city_de FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('city_de_state', 'name');
INSERT INTO city VALUES ('de', 'Bonn', 3);
SELECT * FROM emitted();
CREATE TRIGGER wrong AFTER INSERT ON city_de FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('city_state', 'name');
INSERT INTO city VALUES ('de', 'Kiel', 3);
DROP TABLE city;

-- where it is not at its place
SELECT cqrs_emit_trigger();
\echo :LAST_ERROR_SQLSTATE
CREATE TRIGGER t BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger();
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('no such event');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id', 'ID');
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON orders;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'ctid');
UPDATE orders SET amount = 1;
DROP TRIGGER t ON orders;
CREATE VIEW orders_view AS SELECT * FROM orders;
CREATE TRIGGER t INSTEAD OF INSERT ON orders_view FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
INSERT INTO orders_view VALUES (1);
DROP VIEW orders_view;
CREATE TEMP TABLE scratch (id int);
CREATE TRIGGER t AFTER INSERT ON scratch FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
BEGIN READ ONLY;
INSERT INTO scratch VALUES (1);
ROLLBACK;
\echo :LAST_ERROR_SQLSTATE
DROP TABLE scratch;

-- what a json column may hold, and an event's payload may not: the error says who wants it
CREATE TABLE doc (id int PRIMARY KEY, body json);
INSERT INTO doc VALUES (1, '{"k": "\u0000"}');
CREATE TRIGGER c AFTER INSERT OR UPDATE OR DELETE ON doc FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
UPDATE doc SET body = '{}';
DROP TRIGGER c ON doc;
CREATE TRIGGER s AFTER UPDATE ON doc REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION cqrs_emit_trigger('order_changed');
UPDATE doc SET body = '{}';
ALTER TABLE doc DISABLE TRIGGER s;
UPDATE doc SET body = '{}';
ALTER TABLE doc ENABLE TRIGGER s;
UPDATE doc SET body = '{"k": 1}';
SELECT payload->'old'->'body' AS old, payload->'new'->'body' AS new FROM emitted();
DROP TABLE doc;

-- the privileges of who changes the table
CREATE ROLE regress_cqrs_app;
GRANT SELECT, UPDATE ON orders TO regress_cqrs_app;
CREATE TRIGGER t AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION cqrs_emit_trigger('order_changed', 'id');
CREATE FUNCTION change_order() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public
	AS 'UPDATE orders SET amount = 2';
SET ROLE regress_cqrs_app;
UPDATE orders SET amount = 1;
\echo :LAST_ERROR_SQLSTATE
SELECT change_order();
RESET ROLE;
GRANT INSERT ON cqrs_topics.orders TO regress_cqrs_app;
SET ROLE regress_cqrs_app;
UPDATE orders SET amount = 1;
RESET ROLE;
SELECT key, payload->'new'->'amount' AS amount FROM emitted();
REVOKE ALL ON orders, cqrs_topics.orders FROM regress_cqrs_app;
DROP ROLE regress_cqrs_app;

DROP TABLE seen;
DROP FUNCTION emitted, count_rows, keep_out, change_order;
\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE orders;
DROP TYPE other_row;
DROP DOMAIN amount;
