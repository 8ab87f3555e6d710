-- What bench/mediator compares: handlers, and the same by hand.
CREATE FUNCTION plain(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE FUNCTION safe(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE FUNCTION fails(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
CREATE FUNCTION passes(jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN cqrs_next(); END';
CREATE FUNCTION emits(jsonb) RETURNS uuid LANGUAGE plpgsql AS $$BEGIN RETURN cqrs_emit('heard', $1); END$$;
CREATE FUNCTION hears(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION outbox(jsonb) RETURNS uuid LANGUAGE plpgsql AS $$BEGIN RETURN cqrs_emit('stored', $1); END$$;

SELECT cqrs_register_command('Plain', 'plain(jsonb)'), cqrs_register_query('Ask', 'plain(jsonb)'),
	   cqrs_register_command('Safe', 'safe(jsonb)'), cqrs_register_fallback('safe(jsonb)', 'plain(jsonb)'),
	   cqrs_register_command('Fails', 'fails(jsonb)'), cqrs_register_fallback('fails(jsonb)', 'plain(jsonb)', max_failures => 0),
	   cqrs_register_chain('Chain', ARRAY['passes(jsonb)', 'plain(jsonb)']),
	   cqrs_register_event('heard'), cqrs_register_event_handler('heard', 'hears(jsonb)'),
	   cqrs_register_command('Emits', 'emits(jsonb)'),
	   cqrs_register_event('stored', 'stored'), cqrs_register_command('Outbox', 'outbox(jsonb)');
CREATE FUNCTION around(cqrs_request) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN cqrs_proceed(); END';

CREATE SCHEMA by_hand;
CREATE TABLE by_hand.sent (key text PRIMARY KEY, command jsonb NOT NULL, answer jsonb);
CREATE FUNCTION by_hand.safe(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN safe(command);
EXCEPTION WHEN OTHERS THEN
	RETURN plain(command);
END $$;
CREATE FUNCTION by_hand.fails(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN fails(command);
EXCEPTION WHEN OTHERS THEN
	RETURN plain(command);
END $$;
CREATE FUNCTION by_hand.around(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN plain(command); END';
-- who passes on is undone
CREATE FUNCTION by_hand.passes(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION SQLSTATE 'PASS0'; END$$;
CREATE FUNCTION by_hand.chain(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		RETURN by_hand.passes(command);
	EXCEPTION WHEN SQLSTATE 'PASS0' THEN
	END;
	BEGIN
		RETURN plain(command);
	EXCEPTION WHEN SQLSTATE 'PASS0' THEN
	END;
	RETURN NULL;
END $$;
CREATE FUNCTION by_hand.once(key text, command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	result jsonb;
BEGIN
	INSERT INTO by_hand.sent VALUES (once.key, once.command) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT s.answer INTO result FROM by_hand.sent s WHERE s.key = once.key AND s.command = once.command;
		RETURN result;
	END IF;
	result := plain(command);
	UPDATE by_hand.sent s SET answer = result WHERE s.key = once.key;
	RETURN result;
END $$;
CREATE FUNCTION by_hand.emits(jsonb) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
	id uuid := gen_random_uuid();
BEGIN
	PERFORM hears($1);
	RETURN id;
END $$;
CREATE FUNCTION by_hand.outbox(jsonb) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
	id uuid := gen_random_uuid();
BEGIN
	RETURN cqrs_emit('stored', $1, headers => jsonb_build_object('correlation_id', id, 'causation_id', id));
END $$;

-- Deferred commands, and a table of jobs with what it takes.
CREATE TABLE sink (id uuid);
CREATE FUNCTION job(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.sink VALUES ((public.cqrs_context()).id);
END $$;
SELECT cqrs_register_command('Job', 'job(jsonb)');

CREATE TABLE by_hand.job (id uuid PRIMARY KEY, command_name text NOT NULL, payload jsonb, run_at timestamptz NOT NULL, attempts int NOT NULL DEFAULT 0);
CREATE INDEX ON by_hand.job (run_at);
CREATE FUNCTION by_hand.do_job(id uuid, command jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.sink VALUES (id);
END $$;
CREATE FUNCTION by_hand.enqueue(payload jsonb, run_at timestamptz) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
	id uuid := gen_random_uuid();
BEGIN
	INSERT INTO by_hand.job (id, command_name, payload, run_at) VALUES (id, 'job', payload, run_at);
	RETURN id;
END $$;
CREATE PROCEDURE by_hand.work() LANGUAGE plpgsql AS $$
DECLARE
	n int;
BEGIN
	LOOP
		WITH due AS MATERIALIZED (
			DELETE FROM by_hand.job WHERE id IN (
				SELECT id FROM by_hand.job WHERE run_at <= now() ORDER BY run_at LIMIT 1000 FOR UPDATE SKIP LOCKED)
			RETURNING id, payload)
		SELECT count(by_hand.do_job(id, payload)) INTO n FROM due;
		COMMIT;
		EXIT WHEN n = 0;
	END LOOP;
END $$;

CREATE TABLE enqueued (id uuid);
CREATE PROCEDURE enqueue_one_by_one(commands int) LANGUAGE plpgsql AS $$
DECLARE
	seen int;
BEGIN
	TRUNCATE enqueued;
	COMMIT;
	FOR i IN 1 .. commands LOOP
		INSERT INTO enqueued VALUES (cqrs_enqueue('Job', '{"user_id": "1", "meeting_id": "1"}'));
		COMMIT;
		LOOP
			SELECT count(*) INTO seen FROM sink;
			COMMIT;
			EXIT WHEN seen = i;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END LOOP;
END $$;
