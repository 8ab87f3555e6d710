-- An event is an INSERT into the view of its topic.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('joined', 'meetings'), cqrs_register_event('left', 'elsewhere');
CREATE TYPE paid AS (id integer, amount numeric);
SELECT cqrs_register_event('paid', 'meetings', 'paid');
CREATE FUNCTION last_events(n integer) RETURNS SETOF cqrs_topics.meetings LANGUAGE sql AS $$
	SELECT * FROM (SELECT * FROM cqrs_topics.meetings ORDER BY position DESC LIMIT n) e ORDER BY position
$$;

-- every column that may be given; what comes back is the event
INSERT INTO cqrs_topics.meetings (event_name, payload, key, headers, event_id)
	VALUES ('joined', '{"n": 1}', 'a', '{"tenant": "x"}', '01890a5d-ac96-774b-bcce-b302099a8057')
	RETURNING position IS NOT NULL AS drawn, event_id, event_name, key, payload, headers, emitted_at BETWEEN now() AND clock_timestamp() AS emitted_now, occurred_at;
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined') RETURNING * \gset
SELECT (SELECT e FROM cqrs_topics.meetings e WHERE event_id = :'event_id')::text
	= (:'position', :'event_id', 'joined', NULL, NULL, NULL, :'emitted_at', NULL)::text AS same, substr(:'event_id', 15, 1) AS version;
SELECT event_name, topic, key, payload, headers, status FROM cqrs_events('meetings');
-- several at once, of several types, in order; from a query; of another topic's type
INSERT INTO cqrs_topics.meetings (event_name, payload, key)
	VALUES ('joined', '{"n": 2}', 'a'), ('paid', '{"id": 1, "amount": 2.5}', 'b'), ('left', '{"n": 3}', 'a') RETURNING event_name, payload;
INSERT INTO cqrs_topics.meetings (event_name, payload)
	SELECT 'joined', jsonb_build_object('n', n) FROM generate_series(4, 6) n ORDER BY n;
SELECT event_name, key, payload FROM last_events(6);
WITH e AS (INSERT INTO cqrs_topics.meetings (event_name, payload) VALUES ('joined', '{"n": 7}') RETURNING *)
	INSERT INTO cqrs_topics.elsewhere (event_name, key, payload) SELECT event_name, event_id, payload FROM e RETURNING key IS NOT NULL AS keyed;
-- values of other types, by assignment
INSERT INTO cqrs_topics.meetings (event_name, key, payload) VALUES ('joined', 17, '{"n": 8}'::json),
	('joined', '01890a5d-ac96-774b-bcce-b302099a8057'::uuid, NULL);
INSERT INTO cqrs_topics.meetings (event_name, key, payload) SELECT 'joined'::varchar, 18::bigint, json_build_object('n', 9);
SELECT key, payload FROM last_events(3);
PREPARE bare AS INSERT INTO cqrs_topics.meetings (event_name, key, payload, headers, event_id, occurred_at) VALUES ($1, $2, $3, $4, $5, $6);
SELECT parameter_types FROM pg_prepared_statements WHERE name = 'bare';
EXECUTE bare('joined', '19', '{"n": 10}', NULL, NULL, NULL);
COPY cqrs_topics.meetings (event_name, key, payload, occurred_at) FROM STDIN;
joined	20	{"n": 11}	2024-12-31 23:00:00+00
paid	\N	{"id": 1}	\N
\.
SELECT event_name, key, payload, headers FROM last_events(3);
-- a column's default
ALTER VIEW cqrs_topics.elsewhere ALTER event_name SET DEFAULT 'left';
INSERT INTO cqrs_topics.elsewhere (payload) VALUES ('{"n": 12}') RETURNING event_name;

-- in the transaction, and undone with it
SELECT count(*) AS before FROM cqrs_topics.meetings \gset
BEGIN;
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined');
SAVEPOINT s;
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined');
ROLLBACK TO s;
SELECT count(*) - :before AS more FROM cqrs_topics.meetings;
ROLLBACK;
SELECT count(*) - :before AS more FROM cqrs_topics.meetings;
BEGIN READ ONLY;
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined');
ROLLBACK;

-- what cannot be: the statement does nothing
\set VERBOSITY default
INSERT INTO cqrs_topics.meetings (event_name, payload, position) VALUES ('joined', '{}', NULL), ('joined', '{}', 1);
INSERT INTO cqrs_topics.meetings (event_name, payload, emitted_at) VALUES ('joined', '{}', '2024-01-01');
INSERT INTO cqrs_topics.meetings (event_name, topic) VALUES ('joined', 'elsewhere');
INSERT INTO cqrs_topics.meetings (payload) VALUES ('{}');
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('nothing');
INSERT INTO cqrs_topics.meetings (event_name, payload) VALUES ('joined', '[]');
INSERT INTO cqrs_topics.meetings (event_name, payload) VALUES ('paid', '{"id": "one"}');
INSERT INTO cqrs_topics.meetings (event_name, headers) VALUES ('joined', '[]');
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined') ON CONFLICT DO NOTHING;
UPDATE cqrs_topics.meetings SET payload = '{}';
DELETE FROM cqrs_topics.meetings;
SELECT count(*) - :before AS more FROM cqrs_topics.meetings;

-- when it happened
\set VERBOSITY terse
SET timezone = 'UTC';
INSERT INTO cqrs_topics.meetings (event_name, occurred_at) VALUES ('joined', '2024-12-31 23:59:59.5+01') RETURNING headers, occurred_at;
INSERT INTO cqrs_topics.meetings (event_name, headers, occurred_at) VALUES ('joined', '{"tenant": "x", "occurred_at": null}', '0001-01-01') RETURNING headers, occurred_at;
INSERT INTO cqrs_topics.meetings (event_name, headers) VALUES ('joined', '{"occurred_at": "2024-12-31T23:59:59.1234567+01:00"}') RETURNING headers, occurred_at;
-- the same in both ways, as when it is copied; and not the same
INSERT INTO cqrs_topics.meetings (event_name, headers, occurred_at) SELECT event_name, headers, occurred_at FROM last_events(1) RETURNING headers, occurred_at;
INSERT INTO cqrs_topics.meetings (event_name, headers, occurred_at) SELECT event_name, headers, now() FROM last_events(1);
INSERT INTO cqrs_topics.meetings (event_name, occurred_at) VALUES ('joined', 'infinity');
INSERT INTO cqrs_topics.meetings (event_name, occurred_at) VALUES ('joined', '0044-03-15 BC');
INSERT INTO cqrs_topics.meetings (event_name, occurred_at) VALUES ('joined', '10000-01-01');
SELECT cqrs_emit('joined', NULL, headers => '{"occurred_at": "2024-02-29T12:00:00Z"}') IS NOT NULL AS emitted;
SELECT headers, occurred_at FROM last_events(5);
-- what is RFC 3339, and what is not; on its own, cqrs.occurred_at() raises nothing
CREATE FUNCTION takes(occurred_at text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('joined', NULL, headers => jsonb_build_object('occurred_at', occurred_at));
	RETURN coalesce(cqrs.occurred_at(jsonb_build_object('occurred_at', occurred_at))::text, 'not');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || coalesce(cqrs.occurred_at(jsonb_build_object('occurred_at', occurred_at))::text, '');
END $$;
SELECT t, takes(t) FROM unnest(ARRAY['2024-01-02T03:04:05Z', '2024-01-02t03:04:05z', '2024-01-02T03:04:05.1-05:30', '2024-01-02T03:04:05.123456789+00:00',
	'2024-12-31T23:59:60Z', '9999-12-31T23:59:59Z', '0001-01-01T00:00:00Z', '2024-02-29T00:00:00Z', '2000-02-29T00:00:00Z',
	'2023-02-29T00:00:00Z', '1900-02-29T00:00:00Z', '0000-01-01T00:00:00Z', '2024-13-01T00:00:00Z', '2024-00-01T00:00:00Z', '2024-01-00T00:00:00Z', '2024-04-31T00:00:00Z',
	'2024-01-01T24:00:00Z', '2024-01-01T00:60:00Z', '2024-01-01T00:00:61Z', '2024-01-01T00:00:00', '2024-01-01 00:00:00Z',
	'2024-01-01T00:00:00.Z', '2024-01-01T00:00:00+01', '2024-01-01T00:00:00+0100', '2024-01-01T00:00:00+24:00', '2024-01-01T00:00:00+00:60',
	'2024-01-01T00:00:00Z ', ' 2024-01-01T00:00:00Z', '2024-1-1T00:00:00Z', '24-01-01T00:00:00Z', '2024-01-01T00:00Z', '2024-01-01', '+024-01-01T00:00:00Z', 'now', 'infinity', '']) t;
SELECT cqrs.occurred_at('[]') IS NULL AND cqrs.occurred_at('{"occurred_at": 5}') IS NULL AND cqrs.occurred_at('"occurred_at"') IS NULL AS null;
RESET timezone;
-- the other reserved headers
SELECT cqrs_emit('joined', NULL, headers => headers) IS NOT NULL AS emitted FROM unnest(ARRAY['{"a": 1, "correlation_id": "x", "causation_id": "not a uuid",
	"traceparent": "z", "tracestate": "y"}', '{"correlation_id": null, "tracestate": null}']::jsonb[]) headers;
\set VERBOSITY default
SELECT cqrs_emit('joined', NULL, headers => '{"correlation_id": 5}');
\set VERBOSITY terse
SELECT cqrs_emit('joined', NULL, headers => '{"causation_id": ["x"]}');
SELECT cqrs_emit('joined', NULL, headers => '{"traceparent": {}}');
SELECT cqrs_emit('joined', NULL, headers => '{"tracestate": true}');
SELECT cqrs_emit('joined', NULL, headers => '{"occurred_at": 1735689599}');
SELECT cqrs_emit_many('joined', ARRAY[NULL, NULL]::jsonb[], headers => ARRAY['{}', '{"occurred_at": "today"}']::jsonb[]);
INSERT INTO cqrs_topics.meetings (event_name, headers) VALUES ('joined', '{"correlation_id": 5}');

-- handlers are called, and get headers, as of what cqrs_emit() emits
CREATE TABLE heard (n int GENERATED ALWAYS AS IDENTITY, context cqrs_context, payload jsonb);
CREATE FUNCTION hears(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO heard (context, payload) VALUES (cqrs_context(), payload);
	IF payload->>'n' = '1' THEN
		INSERT INTO cqrs_topics.elsewhere (event_name, payload) VALUES ('left', '{"from": "handler"}');
	ELSIF payload->>'n' = '2' THEN
		RAISE EXCEPTION 'not the second';
	END IF;
END $$;
SELECT cqrs_register_event_handler('joined', 'hears(jsonb)');
SET cqrs_outbox.correlation_id = 'request 4711';
INSERT INTO cqrs_topics.meetings (event_name, payload, key) VALUES ('joined', '{"n": 1}', 'k') RETURNING event_id, headers \gset
SELECT :'headers' AS headers;
RESET cqrs_outbox.correlation_id;
INSERT INTO cqrs_topics.elsewhere (event_name, payload) VALUES ('joined', '{"n": 3}');
SELECT (context).kind, (context).name, (context).topic, (context).key, (context).correlation_id = 'request 4711' AS correlated, (context).attempts, payload FROM heard ORDER BY n;
SELECT payload, headers->>'causation_id' = :'event_id' AS caused FROM cqrs_topics.elsewhere WHERE payload ? 'from';
INSERT INTO cqrs_topics.meetings (event_name, payload) VALUES ('joined', '{"n": 3}'), ('joined', '{"n": 2}');
SELECT count(*) FROM heard;
-- in a dry run, too
CREATE FUNCTION joins(c jsonb) RETURNS uuid LANGUAGE sql AS $$
	INSERT INTO cqrs_topics.meetings (event_name, payload, key) VALUES ('joined', c, 'dry') RETURNING event_id
$$;
SELECT cqrs_register_command('Join', 'joins(jsonb)');
SELECT e.position, e.event_name, e.topic, e.key, e.payload FROM cqrs_dry_run('Join', '{"n": 4}'), unnest(events) e;
SELECT count(*) FROM cqrs_topics.meetings WHERE key = 'dry';

-- a subscription gets it; its handler knows the topic and the key, if it takes jsonb
CREATE FUNCTION gets(payload jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.heard (context, payload) VALUES (public.cqrs_context(), payload)';
CREATE FUNCTION gets_event(event cqrs_event) RETURNS void LANGUAGE sql AS 'SELECT public.gets(event.payload)';
SELECT cqrs_subscribe('getter', '{meetings}', 'gets_event(cqrs_event)', start => 'latest');
TRUNCATE heard;
INSERT INTO cqrs_topics.meetings (event_name, payload, key) VALUES ('paid', '{"id": 1}', 'p') RETURNING event_id \gset
SELECT cqrs_drain('getter');
SELECT (context).kind, (context).name, (context).id = :'event_id' AS id, (context).topic, (context).key, (context).attempts, payload FROM heard;
SELECT cqrs_unsubscribe('getter');
SELECT cqrs_unregister_event_handler('joined', 'hears(jsonb)');

-- the trigger is for views of topics, in one form
\set VERBOSITY default
CREATE TABLE plain (LIKE cqrs_topics.meetings);
CREATE TRIGGER emit BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event();
INSERT INTO plain (event_name) VALUES ('joined');
DROP TABLE plain;
CREATE VIEW meetings AS SELECT * FROM cqrs_topics.meetings;
CREATE TRIGGER emit INSTEAD OF INSERT ON meetings FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event();
\set VERBOSITY terse
INSERT INTO meetings (event_name) VALUES ('joined');
DROP TRIGGER emit ON meetings;
INSERT INTO meetings (event_name) VALUES ('joined') RETURNING event_name;
DROP VIEW meetings;
CREATE ROLE regress_cqrs_writer;
GRANT ALL ON cqrs_topics.meetings TO regress_cqrs_writer;
SET ROLE regress_cqrs_writer;
\set VERBOSITY default
UPDATE cqrs_topics.meetings SET payload = '{}';
UPDATE cqrs_topics.meetings SET payload = '{}' WHERE false;
DELETE FROM cqrs_topics.meetings WHERE false;
\set VERBOSITY terse
RESET ROLE;
REVOKE ALL ON cqrs_topics.meetings FROM regress_cqrs_writer;
DROP ROLE regress_cqrs_writer;
CREATE TRIGGER emit_twice INSTEAD OF INSERT ON cqrs_topics.meetings FOR EACH ROW EXECUTE FUNCTION cqrs.insert_event();
INSERT INTO cqrs_topics.meetings (event_name) VALUES ('joined');
DROP TRIGGER emit_twice ON cqrs_topics.meetings;
SELECT cqrs.insert_event();
-- nobody inserts a command
CREATE FUNCTION does(c jsonb) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_register_command('Do', 'does(jsonb)');
SELECT cqrs_create_command_queue() AS created;
INSERT INTO cqrs_topics.commands_of_postgres (event_name) VALUES ('joined');
-- without the trigger, and with columns of its own; health knows
DROP TRIGGER emit ON cqrs_topics.elsewhere;
INSERT INTO cqrs_topics.elsewhere (event_name) VALUES ('joined');
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE problem LIKE 'topic%';
SELECT hint AS mend FROM cqrs_health() WHERE problem = 'topic_trigger_missing' \gset
:mend
INSERT INTO cqrs_topics.elsewhere (event_name) VALUES ('joined') RETURNING event_name;
SELECT count(*) FROM cqrs_health() WHERE problem LIKE 'topic%';
-- without the view, its events are kept
SELECT count(*) FROM cqrs_topics.elsewhere \gset
DROP VIEW cqrs_topics.elsewhere;
SELECT severity, problem, object, detail, hint FROM cqrs_health() WHERE problem LIKE 'topic%';
SELECT cqrs_emit('left', '{}');
GRANT EXECUTE ON FUNCTION cqrs_alter_topic TO PUBLIC;
CREATE ROLE regress_cqrs_writer;
SET ROLE regress_cqrs_writer;
SELECT cqrs_alter_topic('elsewhere');
RESET ROLE;
DROP ROLE regress_cqrs_writer;
REVOKE EXECUTE ON FUNCTION cqrs_alter_topic FROM PUBLIC;
SELECT cqrs_alter_topic('elsewhere'), cqrs_alter_topic('elsewhere');
SELECT count(*) = :count AS kept FROM cqrs_topics.elsewhere;
INSERT INTO cqrs_topics.elsewhere (event_name) VALUES ('joined') RETURNING event_name;
SELECT count(*) FROM cqrs_health() WHERE problem LIKE 'topic%';
DROP VIEW cqrs_topics.elsewhere;
CREATE VIEW cqrs_topics.elsewhere AS SELECT 1 AS event_name;
SELECT cqrs_create_topic('another');	-- has the registry look again
:mend
INSERT INTO cqrs_topics.elsewhere VALUES (1);

\set VERBOSITY terse
SET client_min_messages = warning;
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE heard;
DROP FUNCTION takes, hears, joins, gets, does;
DROP TYPE paid;
