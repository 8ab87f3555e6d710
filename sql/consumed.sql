-- Messages from elsewhere: each is consumed once.
CREATE EXTENSION cqrs_outbox;
SET client_min_messages = warning;
CREATE FUNCTION ids() RETURNS TABLE (role_name text, source text, message_id text) LANGUAGE sql AS $$
	SELECT role_name, source, message_id FROM cqrs.message_id_0
	UNION ALL SELECT role_name, source, message_id FROM cqrs.message_id_1
	UNION ALL SELECT role_name, source, message_id FROM cqrs.message_id_2
	ORDER BY 1, 2, 3
$$;
CREATE ROLE regress_cqrs_one;
CREATE ROLE regress_cqrs_two;

-- the first, and repeats
SELECT cqrs_consumed('sqs', 'a'), cqrs_consumed('sqs', 'b');
SELECT cqrs_consumed('sqs', 'a'), cqrs_consumed('sqs', 'A'), cqrs_consumed('sns', 'a');
SELECT cqrs_consumed('sqs', '{c,a,c,d,b,c}'::text[]);
SELECT cqrs_consumed('sqs', '{d,e}'::text[]), cqrs_consumed('sqs', '{}'::text[]);
SELECT cqrs_consumed('sqs', '[5:6]={e,f}'::text[]);
SELECT cqrs_consumed(repeat('s', 255), repeat('m', 255)), cqrs_consumed(repeat('s', 255), ARRAY[repeat('m', 255), repeat('m', 254)]);
SELECT cqrs_consumed('sqs', 'äöü'), cqrs_consumed('sqs', 'äöü'), cqrs_consumed('sqs', 'äö');

-- what is rolled back was not consumed
BEGIN;
SELECT cqrs_consumed('tx', 'undone');
ROLLBACK;
SELECT cqrs_consumed('tx', 'undone');
BEGIN;
SELECT cqrs_consumed('tx', 'kept');
SAVEPOINT s;
SELECT cqrs_consumed('tx', '{kept,undone again}'::text[]), cqrs_consumed('new', 'source');
ROLLBACK TO s;
SELECT cqrs_consumed('tx', '{kept,undone again}'::text[]), cqrs_consumed('new', 'source');
COMMIT;
SELECT cqrs_consumed('tx', '{kept,undone again}'::text[]), cqrs_consumed('new', 'source');
DO $$
BEGIN
	PERFORM cqrs_consumed('tx', 'failed');
	RAISE EXCEPTION 'failed';
EXCEPTION WHEN OTHERS THEN
	RAISE WARNING '% %', SQLERRM, cqrs_consumed('tx', 'failed');
END $$;

-- each role has its own
SET ROLE regress_cqrs_one;
SELECT cqrs_consumed('sqs', 'a'), cqrs_consumed('sqs', '{a,b}'::text[]);
SELECT * FROM cqrs.message_id_0;
INSERT INTO cqrs.message_id_0 (source_time, role, role_name, source, message_id) VALUES (0, 'regress_cqrs_two'::regrole, 'regress_cqrs_two', 'sqs', 'a');
SET ROLE regress_cqrs_two;
SELECT cqrs_consumed('sqs', '{a,b}'::text[]);
RESET ROLE;
SELECT * FROM ids() WHERE role_name LIKE 'regress%';
-- what is renamed leaves them behind; so does what is dropped, whoever gets the name
ALTER ROLE regress_cqrs_two RENAME TO regress_cqrs_three;
SET ROLE regress_cqrs_three;
SELECT cqrs_consumed('sqs', 'a');
RESET ROLE;
DROP ROLE regress_cqrs_one;
CREATE ROLE regress_cqrs_one;
SET ROLE regress_cqrs_one;
SELECT cqrs_consumed('sqs', 'a');
RESET ROLE;
-- restored rows are the role's that has the name
INSERT INTO cqrs.message_id_1 (source_time, role, role_name, source, message_id) VALUES (7, 0, 'regress_cqrs_one', 'restored', 'x');
INSERT INTO cqrs.message_source (source_time, noted_at, role, role_name, source) VALUES (1000000000, now(), 0, 'regress_cqrs_one', 'restored');
SET ROLE regress_cqrs_one;
SELECT cqrs_consumed('restored', '{x,y}'::text[]);
RESET ROLE;
SELECT source_time > 1000000000 AS goes_on FROM cqrs.message_id_0 WHERE source = 'restored';

-- arguments
SELECT cqrs_consumed(NULL, 'a');
SELECT cqrs_consumed('sqs', NULL);
SELECT cqrs_consumed('sqs', NULL::text[]);
SELECT cqrs_consumed('sqs', '{a,NULL}'::text[]);
SELECT cqrs_consumed('sqs', '{{a},{b}}'::text[]);
SELECT cqrs_consumed('', 'a');
SELECT cqrs_consumed('sqs', '');
SELECT cqrs_consumed('sqs', '{new,""}'::text[]);
SELECT cqrs_consumed(repeat('s', 256), 'a');
SELECT cqrs_consumed('sqs', repeat('m', 256));
SELECT cqrs_consumed('sqs', 'new') AS nothing_was_consumed;

-- where nothing can be written
BEGIN READ ONLY;
SELECT cqrs_consumed('sqs', 'a');
ROLLBACK;

-- other ways to run a transaction
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT cqrs_consumed('sqs', '{a,serializable}'::text[]);
SELECT cqrs_consumed('sqs', '{a,serializable}'::text[]);
COMMIT;

-- A table is written until its turn is over, and the ids of a source that rests stay.
-- With no retention, each turn is over at once.
SELECT action FROM cqrs_maintain() WHERE detail = 'message ids';
SET cqrs_outbox.consumed_retention = 0;
SELECT cqrs_consumed('turns', 'a');
CREATE TABLE turns AS SELECT current FROM cqrs.message_turn;
SELECT count(*) FROM (SELECT cqrs_maintain()) m;
SELECT m.current <> t.current AS changed FROM cqrs.message_turn m, turns t;
SELECT cqrs_consumed('turns', '{a,b}'::text[]);

DROP TABLE turns;
DROP FUNCTION ids;
DROP EXTENSION cqrs_outbox CASCADE;
DROP ROLE regress_cqrs_one;
DROP ROLE regress_cqrs_three;
