-- What the benchmarks measure with, in the server: a process of the machine's
-- own for each look would be part of what is measured.
\set QUIET on

-- milliseconds that a statement takes
CREATE FUNCTION ms(statement text) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz := clock_timestamp();
BEGIN
	EXECUTE statement;
	RETURN extract(epoch FROM clock_timestamp() - started) * 1000;
END $$;

-- Wait until a condition holds, keeping no snapshot meanwhile.
CREATE PROCEDURE wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
	reached boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO reached;
		COMMIT;
		EXIT WHEN reached;
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;

-- events that the subscriptions of such names still have to get; not known, and so
-- not 0, as long as a topic's table is locked
CREATE FUNCTION lag(pattern text DEFAULT '%') RETURNS bigint LANGUAGE sql AS $$
	SELECT coalesce(sum(coalesce(lag_events, 1)), 0) FROM cqrs_subscription_status WHERE subscription LIKE pattern
$$;

-- Commit so many events of one type, so many a transaction.
CREATE PROCEDURE emit_events(event_name text, events bigint, each integer) LANGUAGE plpgsql AS $$
DECLARE
	payloads jsonb[] := array_fill('{"user_id": "1", "meeting_id": "1"}'::jsonb, ARRAY[each]);
BEGIN
	SET synchronous_commit = off;
	FOR n IN 1 .. events / each LOOP
		PERFORM cqrs_emit_many(event_name, payloads);
		COMMIT;
	END LOOP;
END $$;

-- what the kernel says of a process: a number of /proc/PID/status
CREATE FUNCTION proc_status(pid integer, field text) RETURNS bigint LANGUAGE sql AS $$
	SELECT substring(pg_read_file(format('/proc/%s/status', pid), 0, 10000, true) FROM field || ':\s*(\d+)')::bigint
$$;

-- seconds of processor time that a process has used: the 14th and 15th number
-- of /proc/PID/stat, in ticks of 10 ms
CREATE FUNCTION proc_cpu(pid integer) RETURNS double precision LANGUAGE sql AS $$
	SELECT (field[12]::bigint + field[13]::bigint) / 100.0
	FROM regexp_split_to_array(substring(pg_read_file(format('/proc/%s/stat', pid), 0, 10000, true) FROM '\) (.*)'), ' ') field
$$;

-- the same of our processes of a kind together
CREATE FUNCTION cpu(kind text) RETURNS double precision LANGUAGE sql AS $$
	SELECT coalesce(sum(proc_cpu(pid)), 0) FROM pg_stat_activity WHERE backend_type LIKE 'cqrs_outbox ' || kind
$$;

-- what observe() saw
CREATE TABLE observed (longest_transaction interval, rss_anon bigint, cpu double precision);

-- Until a condition holds, look at the workers of this database: how old their
-- transactions become, how much memory of their own they have, in kB, and how
-- much processor time they use, in seconds; "observed" gets the most of the
-- first two, and the sum of the last.
CREATE PROCEDURE observe(condition text) LANGUAGE plpgsql AS $$
DECLARE
	worker record;
	longest interval := '0';
	rss_anon bigint := 0;
	cpu_before double precision := cpu('worker');
	reached boolean;
	checked timestamptz := '-infinity';
BEGIN
	LOOP
		FOR worker IN
			SELECT clock_timestamp() - xact_start AS age, proc_status(pid, 'RssAnon') AS rss
			FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' AND datname = current_database()
		LOOP
			longest := greatest(longest, worker.age);
			rss_anon := greatest(rss_anon, worker.rss);
		END LOOP;
		COMMIT;

		-- The condition may cost more than a look.
		IF clock_timestamp() > checked + interval '20 ms' THEN
			EXECUTE 'SELECT ' || condition INTO reached;
			checked := clock_timestamp();
			EXIT WHEN reached;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.005);
	END LOOP;
	INSERT INTO observed VALUES (longest, rss_anon, cpu('worker') - cpu_before);
END $$;
