-- What is being handled, and what events are told of it.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_context() IS NULL AS is_null;
SELECT cqrs_register_event('happened', 'things'), cqrs_register_event('followed', 'things');

-- in each kind of handler
CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, c cqrs_context);
CREATE FUNCTION see(jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen (c) VALUES (cqrs_context());
	RETURN (cqrs_context()).id;
END $$;
CREATE FUNCTION ask(jsonb) RETURNS cqrs_context LANGUAGE sql AS 'SELECT cqrs_context()';
CREATE FUNCTION stream(jsonb) RETURNS SETOF cqrs_context LANGUAGE sql AS 'SELECT cqrs_context() FROM generate_series(1, 2)';
SELECT cqrs_register_command('See', 'see(jsonb)'), cqrs_register_query('Ask', 'ask(jsonb)'),
	   cqrs_register_command('Stream', 'stream(jsonb)'), cqrs_register_event_handler('happened', 'see(jsonb)');
SELECT cqrs_send('See') #>> '{}' AS id \gset
SELECT (c).kind, (c).name, (c).id = :'id' AS id, substr((c).id::text, 15, 1) AS version,
	   (c).correlation_id = :'id' AS is_origin, (c).causation_id, (c).attempts, (c).traceparent,
	   (c).caller = current_user AS caller
FROM seen;
SELECT cqrs_query('Ask') - '{id,correlation_id,caller}'::text[];
SELECT row - '{id,correlation_id,caller}'::text[], row->'id' = first_value(row->'id') OVER () AS same
FROM (SELECT cqrs_stream('Stream') AS row) s;
TRUNCATE seen;
SELECT cqrs_emit('happened', '{}') AS id \gset
SELECT (c).kind, (c).name, (c).id = :'id' AS id, (c).correlation_id = :'id' AS is_origin, (c).causation_id FROM seen;
SELECT cqrs_context() IS NULL AS is_null;
-- each dispatch has an id of its own
SELECT count(DISTINCT cqrs_send('See')) FROM generate_series(1, 3);
TRUNCATE seen;

-- what caused what: commands, in commands, events, their handlers, and what those send and emit
CREATE FUNCTION outermost(jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_emit('happened', '{"n": 1}');
	PERFORM cqrs_send('Inner');
	PERFORM cqrs_emit_many('happened', ARRAY['{"n": 3}', '{"n": 4}']::jsonb[]);
	RETURN see(NULL);
END $$;
CREATE FUNCTION inner_one(jsonb) RETURNS text LANGUAGE sql AS $$SELECT cqrs_emit('happened', '{"n": 2}'); SELECT see(NULL)$$;
CREATE FUNCTION follow(e cqrs_event) RETURNS void LANGUAGE sql AS $$
	SELECT cqrs_emit('followed', jsonb_build_object('follows', e.event_id, 'seen', cqrs_send('See')))
	WHERE e.payload @> '{"n": 2}'
$$;
SELECT cqrs_register_command('Outermost', 'outermost(jsonb)'), cqrs_register_command('Inner', 'inner_one(jsonb)'),
	   cqrs_register_event_handler('happened', 'follow(cqrs_event)'),
	   cqrs_register_event_handler('followed', 'see(jsonb)');
SELECT cqrs_send('Outermost') #>> '{}' AS origin \gset
CREATE VIEW story AS
SELECT s.n, (s.c).kind, (s.c).name, (s.c).correlation_id, (s.c).causation_id,
	   coalesce((c.c).kind || ' ' || (c.c).name || ' ' || coalesce(e.payload->>'n', ''), 'nothing') AS caused_by
FROM seen s LEFT JOIN seen c ON (c.c).id::text = (s.c).causation_id
LEFT JOIN cqrs_events('things') e ON e.event_id::text = (s.c).causation_id;
SELECT n, kind, name, correlation_id = :'origin' AS correlated, caused_by FROM story ORDER BY n;
SELECT e.event_name, e.payload - '{follows,seen}'::text[] AS payload, (SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(headers) k) AS headers,
	   e.headers->>'correlation_id' = :'origin' AS correlated,
	   (SELECT DISTINCT (c).kind || ' ' || (c).name FROM seen WHERE (c).id::text = headers->>'causation_id') AS caused_by
FROM cqrs_events('things') e WHERE headers IS NOT NULL;
TRUNCATE seen;

-- headers that are given win, and what follows correlates with them; others are kept
SELECT cqrs_unregister_event_handler('happened', 'follow(cqrs_event)');
CREATE FUNCTION emits(headers jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT cqrs_emit('happened', '{"given": true}', headers => headers)
$$;
CREATE FUNCTION last_headers() RETURNS jsonb LANGUAGE sql AS $$
	SELECT headers || jsonb_build_object('correlated', headers->>'causation_id' = headers->>'correlation_id')
	FROM cqrs_events('things', 1000) ORDER BY position DESC LIMIT 1
$$;
SELECT cqrs_register_command('Emits', 'emits(jsonb)');
SELECT cqrs_send('Emits', '{"correlation_id": "größer \"1\"", "causation_id": "me", "a": 1}');
SELECT last_headers();
SELECT (c).correlation_id, (c).causation_id FROM seen;
TRUNCATE seen;
SELECT cqrs_send('Emits', '{"correlation_id": null, "causation_id": null}');
SELECT last_headers();
SELECT (c).correlation_id = (c).id::text AS is_origin, (c).causation_id FROM seen;
SELECT cqrs_send('Emits', '{"a": 1}');
SELECT last_headers() - '{correlation_id,causation_id}'::text[];

-- events emitted outside have none
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT headers IS NULL AS none FROM cqrs_events('things', 1000) ORDER BY position DESC LIMIT 1;

-- the settings
SET cqrs_outbox.correlation_id = 'request "4711"';
SET cqrs_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
TRUNCATE seen;
SELECT cqrs_send('Outermost') IS NOT NULL AS sent;
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT (c).kind, (c).name, (c).correlation_id, (c).causation_id IS NULL AS is_origin, (c).traceparent FROM seen ORDER BY n;
SELECT headers - 'causation_id' AS headers, headers ? 'causation_id' AS caused
FROM cqrs_events('things', 1000) ORDER BY position DESC LIMIT 3;
RESET cqrs_outbox.traceparent;
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT last_headers();
-- shorter, longer, the same length, and none
SET cqrs_outbox.correlation_id = 'x';
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT last_headers();
SET cqrs_outbox.correlation_id = 'y';
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT last_headers();
SELECT set_config('cqrs_outbox.correlation_id', repeat('z', 255), false) IS NOT NULL AS set;
SELECT cqrs_emit('happened', '{}') IS NOT NULL AS emitted;
SELECT last_headers()->>'correlation_id' = repeat('z', 255) AS correlated;
SELECT set_config('cqrs_outbox.correlation_id', repeat('z', 256), false);
SET cqrs_outbox.correlation_id = 'größer';
RESET cqrs_outbox.correlation_id;
-- each event has kept its own
SELECT count(DISTINCT headers->>'correlation_id'), count(DISTINCT headers->>'causation_id') FROM cqrs_events('things', 1000);

-- the caller is who sent it, not who the handler is run as
CREATE ROLE regress_cqrs_caller;
GRANT INSERT, SELECT ON seen TO PUBLIC;
ALTER FUNCTION ask(jsonb) SECURITY DEFINER;
SET ROLE regress_cqrs_caller;
SELECT cqrs_query('Ask')->>'caller' AS caller;
RESET ROLE;

-- an error leaves no context behind
CREATE FUNCTION fails(jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'in %', (cqrs_context()).name; END $$;
CREATE FUNCTION catches(jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM cqrs_send('Fails');
	EXCEPTION WHEN raise_exception THEN
		NULL;
	END;
	RETURN (cqrs_context()).name;
END $$;
SELECT cqrs_register_command('Fails', 'fails(jsonb)'), cqrs_register_command('Catches', 'catches(jsonb)'),
	   cqrs_register_event_handler('followed', 'fails(jsonb)');
\set VERBOSITY terse
SELECT cqrs_send('Fails');
SELECT cqrs_context() IS NULL AS is_null;
SELECT cqrs_emit('followed', '{}');
SELECT cqrs_context() IS NULL AS is_null;
SELECT cqrs_send('Catches');
BEGIN;
SAVEPOINT s;
SELECT cqrs_emit('followed', '{}');
ROLLBACK TO s;
SELECT cqrs_context() IS NULL AS is_null;
COMMIT;

-- a subscription's handler has the event's, by attempt; what it emits was caused by that
TRUNCATE seen;
CREATE FUNCTION delivered(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen (c) VALUES (cqrs_context());
	IF e.payload ? 'fail' AND (cqrs_context()).attempts = 1 THEN
		RAISE EXCEPTION 'not at first';
	END IF;
	PERFORM cqrs_emit('reaction', jsonb_build_object('to', cqrs_send('See')));
END $$;
SELECT cqrs_register_event('reaction', 'reactions');
SELECT cqrs_subscribe('reader', '{things}', 'delivered(cqrs_event)', start => 'latest', retry_delay => '0 s');
SELECT cqrs_emit('happened', '{"n": 1}') AS first \gset
SELECT cqrs_emit('happened', '{"fail": true}', headers => '{"correlation_id": "mine", "causation_id": "before", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}') AS second \gset
TRUNCATE seen;
SELECT cqrs_drain('reader');
SELECT cqrs_context() IS NULL AS is_null;
SELECT cqrs_drain('reader');
SELECT (c).kind, (c).name, CASE (c).id WHEN :'first' THEN 'first' WHEN :'second' THEN 'second' END AS id,
	   CASE (c).correlation_id WHEN :'first' THEN 'first' ELSE (c).correlation_id END AS correlation_id,
	   CASE (c).causation_id WHEN :'first' THEN 'first' WHEN :'second' THEN 'second' ELSE (c).causation_id END AS causation_id,
	   (c).attempts, (c).traceparent, (c).caller = current_user AS caller
FROM seen ORDER BY n;
SELECT CASE headers->>'correlation_id' WHEN :'first' THEN 'first' ELSE headers->>'correlation_id' END AS correlation_id,
	   CASE headers->>'causation_id' WHEN :'first' THEN 'first' WHEN :'second' THEN 'second' END AS causation_id
FROM cqrs_events('reactions') ORDER BY position;
-- drained by a command, an event has nothing to do with that
TRUNCATE seen;
CREATE FUNCTION drains(jsonb) RETURNS text LANGUAGE sql AS $$SELECT cqrs_drain('reader'); SELECT (cqrs_context()).name$$;
SELECT cqrs_register_command('Drains', 'drains(jsonb)');
SELECT cqrs_emit('happened', '{"n": 2}') AS third \gset
SELECT cqrs_send('Drains');
SELECT (c).kind, (c).name, (c).correlation_id = :'third' AS is_origin, (c).causation_id = :'third' AS caused FROM seen
WHERE (c).id = :'third' OR (c).kind = 'command' ORDER BY n;

DROP TABLE seen CASCADE;
SELECT cqrs_unsubscribe('reader');
DROP FUNCTION delivered;
SELECT cqrs_drop_topic('reactions', cascade => true);
SELECT cqrs_drop_topic('things', cascade => true);
DROP FUNCTION follow, ask, stream;
DROP EXTENSION cqrs_outbox;
DROP FUNCTION drains, see, outermost, inner_one, emits, last_headers, fails, catches;
DROP ROLE regress_cqrs_caller;
