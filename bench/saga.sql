-- Three steps, each one UPDATE by key, as a saga and as commands that follow one another.
\set QUIET on
SET client_min_messages = warning;
CREATE TABLE account (id integer PRIMARY KEY, n bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
INSERT INTO account (id) SELECT generate_series(1, :sagas);

CREATE FUNCTION one(state jsonb) RETURNS void LANGUAGE sql AS
	$$ UPDATE public.account SET n = n + 1 WHERE id = (state ->> 'id')::integer $$;
CREATE FUNCTION two(state jsonb) RETURNS void LANGUAGE sql AS
	$$ UPDATE public.account SET n = n + 1 WHERE id = (state ->> 'id')::integer $$;
CREATE FUNCTION three(state jsonb) RETURNS void LANGUAGE sql AS
	$$ UPDATE public.account SET n = n + 1 WHERE id = (state ->> 'id')::integer $$;
SELECT cqrs_create_saga_queue() \g /dev/null
SELECT cqrs_register_saga('three', ARRAY[cqrs_step('one', 'one'), cqrs_step('two', 'two'), cqrs_step('three', 'three')]) \g /dev/null
SELECT cqrs_register_saga('waiting', ARRAY[cqrs_await('never', timeout => '1 day')]) \g /dev/null

-- The first attempt fails for that share of the steps, in percent, which the state says.
CREATE FUNCTION failing(state jsonb, step text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF (cqrs_context()).attempts = 1 AND hashtext(step || (state ->> 'id')) & 1023 < (state ->> 'failing')::integer * 1024 / 100 THEN
		RAISE 'fails once';
	END IF;
	UPDATE public.account SET n = n + 1 WHERE id = (state ->> 'id')::integer;
END $$;
CREATE FUNCTION failing_one(state jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.failing(state, 'one') $$;
CREATE FUNCTION failing_two(state jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.failing(state, 'two') $$;
CREATE FUNCTION failing_three(state jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.failing(state, 'three') $$;
SELECT cqrs_register_saga('failing', ARRAY[cqrs_step('one', 'failing_one', retry_delay => '10 ms'),
	cqrs_step('two', 'failing_two', retry_delay => '10 ms'), cqrs_step('three', 'failing_three', retry_delay => '10 ms')]) \g /dev/null

CREATE FUNCTION command_one(command jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE public.account SET n = n + 1 WHERE id = (command ->> 'id')::integer;
	PERFORM cqrs_enqueue('two', command);
END $$;
CREATE FUNCTION command_two(command jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE public.account SET n = n + 1 WHERE id = (command ->> 'id')::integer;
	PERFORM cqrs_enqueue('three', command);
END $$;
CREATE FUNCTION command_three(command jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE public.account SET n = n + 1 WHERE id = (command ->> 'id')::integer;
END $$;
SELECT cqrs_create_command_queue() \g /dev/null
SELECT cqrs_register_command(name, format('command_%s(jsonb)', name)) FROM unnest(ARRAY['one', 'two', 'three']) name \g /dev/null

-- Start sagas, one at a time, each so many seconds after the one before was over.
CREATE TABLE started (saga_id uuid);
CREATE PROCEDURE start_each(sagas integer, pause double precision) LANGUAGE plpgsql AS $$
DECLARE
	id uuid;
BEGIN
	FOR i IN 1 .. sagas LOOP
		PERFORM pg_sleep(pause);
		COMMIT;
		SELECT saga_id INTO id FROM cqrs_start_saga('three', jsonb_build_object('id', i));
		INSERT INTO started VALUES (id);
		COMMIT;
		WHILE EXISTS (SELECT FROM cqrs.saga WHERE saga_id = id) LOOP
			COMMIT;
			PERFORM pg_sleep(0.005);
		END LOOP;
	END LOOP;
END $$;

-- Milliseconds from the commit of a saga's start to the commit of its first step, and of
-- its third.
CREATE VIEW latency AS
SELECT s.saga_id, extract(epoch FROM min(at) FILTER (WHERE seq = 2) - min(at) FILTER (WHERE seq = 1)) * 1000 AS first_step,
	   extract(epoch FROM min(at) FILTER (WHERE seq = 4) - min(at) FILTER (WHERE seq = 1)) * 1000 AS third_step
FROM started s
JOIN LATERAL (
	SELECT seq, pg_xact_commit_timestamp(xmin) AS at FROM cqrs.saga_entry_0 WHERE saga_id = s.saga_id AND branch = 0
	UNION ALL
	SELECT seq, pg_xact_commit_timestamp(xmin) FROM cqrs.saga_entry_1 WHERE saga_id = s.saga_id AND branch = 0
	UNION ALL
	SELECT seq, pg_xact_commit_timestamp(xmin) FROM cqrs.saga_entry_2 WHERE saga_id = s.saga_id AND branch = 0
) e ON true
GROUP BY s.saga_id;
