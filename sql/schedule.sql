-- Commands that are enqueued again and again
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
SET timezone = 'America/Los_Angeles';	-- which changes nothing

-- what an expression means
CREATE FUNCTION runs(cron text, zone text, after text, n integer DEFAULT 5) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT to_char(r AT TIME ZONE zone, 'Dy YYYY-MM-DD HH24:MI:SS') || to_char(r AT TIME ZONE 'UTC', ' = HH24:MI:SS') FROM cqrs_next_runs(cron, zone, (after::timestamp AT TIME ZONE zone)::timestamptz, n) r $$;
SELECT * FROM cqrs_next_runs('0 12 * * *', after => '2026-03-01 00:00+00', max_runs => 2);
SELECT runs('*/15 * * * *', 'UTC', '2026-01-31 23:40');
SELECT runs('5-20/5,50 8,20 * * *', 'UTC', '2026-02-28 08:06');
SELECT runs('30/10 1 * * *', 'UTC', '2026-02-28', 4);
SELECT runs('0 0 29 2 *', 'UTC', '2026-01-01', 3);
SELECT runs('0 9 * jan,Jul mon-FRI', 'UTC', '2026-01-30 09:00', 3);
SELECT runs('0 0 13 * 5', 'UTC', '2026-02-01', 4);		-- Fridays, and each 13th
SELECT runs('0 0 */10 * 1', 'UTC', '2026-01-01', 3);	-- Mondays that are a 1st, 11th, 21st or 31st
SELECT runs('0 0 * * 7', 'UTC', '2026-01-01', 2);
SELECT runs('*/20 59 23 31 12 *', 'UTC', '2026-01-01', 4);
SELECT runs('@Daily', 'Europe/Berlin', '2026-06-30 12:00', 2);
SELECT name, array_agg(to_char(r AT TIME ZONE 'UTC', 'MM-DD HH24:MI')) FROM unnest('{@yearly,@annually,@monthly,@weekly,@midnight,@hourly}'::text[]) name,
	cqrs_next_runs(name, NULL, '2026-05-05 05:05+00', 2) r GROUP BY 1 ORDER BY 1;
-- behind a time, and not at it; fractions; long ago; far ahead
SELECT runs('0 0 1 1 *', 'UTC', '2026-01-01', 1), runs('0 0 1 1 *', 'UTC', '2025-12-31 23:59:59.999999', 1);
SELECT r FROM cqrs_next_runs('0 0 1 1 *', NULL, '0001-06-01 00:00:00.5+00', 1) r;
SELECT count(*) FROM cqrs_next_runs('0 0 1 1 *', NULL, 'infinity');
SELECT count(*) FROM cqrs_next_runs('0 0 1 1 *', NULL, '294276-12-31 23:59:59+00');
SELECT count(*) FROM cqrs_next_runs('0 0 1 1 *', NULL, '4714-11-24 00:00+00 BC');

-- clocks are put forward: what is skipped comes once, at once
SELECT runs('30 2 * * *', 'Europe/Berlin', '2026-03-28 00:00', 3);
SELECT runs('*/10 2 * * *', 'Europe/Berlin', '2026-03-29 00:00', 3);
SELECT runs('30 2 * * *', 'America/New_York', '2026-03-07 12:00', 3);
SELECT runs('15 2 * * *', 'Australia/Lord_Howe', '2026-10-03 12:00', 3);	-- half an hour
SELECT runs('0 0 * * *', 'America/Santiago', '2026-09-05 00:00', 3);		-- at midnight
SELECT runs('0 12 * * *', 'Pacific/Apia', '2011-12-28 13:00', 3);		-- a whole day
SELECT runs('0 3 * * *', 'Europe/Berlin', '2026-03-28 12:00', 2);
SELECT runs('0,30 2,3 * * *', 'Europe/Berlin', '2026-03-29 01:00', 3);
-- and back: once
SELECT runs('30 2 * * *', 'Europe/Berlin', '2026-10-24 12:00', 3);
SELECT runs('30 1 * * *', 'America/New_York', '2026-10-31 12:00', 3);
SELECT runs('45 1 * * *', 'Australia/Lord_Howe', '2026-04-04 12:00', 3);
SELECT runs('30 23 * * *', 'America/Santiago', '2026-04-04 12:00', 3);
SELECT to_char(r AT TIME ZONE 'UTC', 'DD HH24:MI') FROM cqrs_next_runs('30 2 * * *', 'Europe/Berlin', '2026-10-25 01:10+00', 1) r;	-- in the second hour
-- intervals go on
SELECT count(*), max(step), min(step) FROM (SELECT r - lag(r) OVER (ORDER BY r) AS step FROM cqrs_next_runs('*/15 * * * *', 'Europe/Berlin', '2026-03-28 20:00+00', 60) r) s;
SELECT count(*), max(step), min(step) FROM (SELECT r - lag(r) OVER (ORDER BY r) AS step FROM cqrs_next_runs('*/15 * * * *', 'Europe/Berlin', '2026-10-24 20:00+00', 60) r) s;
SELECT count(*), max(step), min(step) FROM (SELECT r - lag(r) OVER (ORDER BY r) AS step FROM cqrs_next_runs('*/15 * * * * *', 'Australia/Lord_Howe', '2026-04-04 14:00+00', 1000) r) s;
-- a year of a day, each once, in every zone
SELECT name FROM pg_timezone_names, LATERAL (SELECT count(*) AS runs, count(DISTINCT (r AT TIME ZONE name)::date) AS days FROM cqrs_next_runs('30 2 * * *', name, '2026-01-01 00:00+00', 400) r) c
WHERE runs <> 400 OR days <> 400;

-- what is none
CREATE FUNCTION cron_error(cron text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	PERFORM cqrs_next_runs(cron);
	RETURN 'none';
EXCEPTION WHEN invalid_parameter_value THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLERRM || ': ' || detail;
END $$;
SELECT cron_error(c) FROM unnest(ARRAY['', '* * * *', '* * * * * * *', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * 32 * *', '* * * 13 *', '* * * * 8',
	'-1 * * * *', '1- * * * *', '5-1 * * * *', '1,,2 * * * *', '1, * * * *', '*/0 * * * *', '*/60 * * * *', '*/x * * * *', '1/ * * * *', '** * * * *', '1.5 * * * *',
	'99999999999999999999 * * * *', '* * * janu *', '* * * * mon-', '@reboot', '@every 5m', '0 0 30 2 *', '0 0 31 4,6,9,11 *', '* * L * *', '* * ? * *', E'0\u00a00 * * *', '* * * * * é']) c;
SELECT cqrs_next_runs(NULL);
SELECT cqrs_next_runs('* * * * *', 'Europe/Nowhere');
SELECT cqrs_next_runs('* * * * *', max_runs => 1001);
SELECT cqrs_next_runs('* * * * *', max_runs => -1);
SELECT count(*) FROM cqrs_next_runs(repeat('1,', 100000) || '1 * * * *');

-- a role's schedules
CREATE ROLE regress_cqrs_app LOGIN;
CREATE ROLE regress_cqrs_other LOGIN;
CREATE TABLE done (seq serial, payload jsonb, role text DEFAULT current_user, context cqrs_context DEFAULT cqrs_context());
GRANT INSERT, SELECT ON done TO regress_cqrs_app;
GRANT USAGE ON SEQUENCE done_seq_seq TO regress_cqrs_app;
CREATE TYPE size AS (n integer);
CREATE FUNCTION work(p jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF p ? 'fail' THEN
		RAISE 'no';
	END IF;
	INSERT INTO done (payload) VALUES (p);
END $$;
CREATE FUNCTION sized(s size) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION hidden(jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
REVOKE EXECUTE ON FUNCTION hidden FROM PUBLIC;
SELECT cqrs_register_command('Work', 'work'), cqrs_register_command('Sized', 'sized'), cqrs_register_command('Hidden', 'hidden');
SELECT cqrs_create_command_queue('regress_cqrs_app');
GRANT EXECUTE ON FUNCTION cqrs_drain TO regress_cqrs_app;
CREATE FUNCTION drain() RETURNS bigint LANGUAGE sql AS $$ SELECT cqrs_drain('commands_of_regress_cqrs_app') $$;
-- as if it was the time of the next run, and so long ago
CREATE FUNCTION be_due(ago interval) RETURNS bigint LANGUAGE sql AS $$
	WITH updated AS (UPDATE cqrs.scheduled_command SET run_at = now() - ago RETURNING 1) SELECT count(*) FROM updated $$;
CREATE FUNCTION run(ago interval) RETURNS TABLE (due bigint, enqueued bigint) LANGUAGE sql AS $$ SELECT be_due(ago), cqrs_enqueue_scheduled() $$;
CREATE FUNCTION again() RETURNS TABLE (schedule text, next boolean, key text, correlation text, same_id boolean) LANGUAGE sql AS $$
	SELECT s.schedule, c.run_at = (SELECT * FROM cqrs_next_runs(s.cron, s.time_zone, max_runs => 1)), c.key, c.headers->>'correlation_id', (c.headers->>'occurred_at')::timestamptz = c.run_at
	FROM cqrs.schedule s LEFT JOIN cqrs.scheduled_command c USING (schedule_id) ORDER BY 1 $$;

SET ROLE regress_cqrs_other;
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_cqrs_app;
SELECT cqrs_schedule('nightly', '0 2 * *', 'Work');
SELECT cqrs_schedule('nightly', NULL, 'Work');
SELECT cqrs_schedule(NULL, '0 2 * * *', 'Work');
SELECT cqrs_schedule(repeat('x', 64), '0 2 * * *', 'Work');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Wrok');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Hidden');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', '[]');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Sized', '{"n": "x"}');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', time_zone => 'Nowhere');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', catch_up => 'some');
BEGIN READ ONLY;
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work');
ROLLBACK;
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', '{"n": 1}', 'Europe/Berlin');
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', '{"n": 1.0}', time_zone => 'Europe/Berlin');
SELECT cqrs_schedule('nightly', '0 3 * * *', 'Work', '{"n": 1}', 'Europe/Berlin');
SELECT cqrs_schedule('nightly', '0 3 * * *', 'Work', '{"n": 1}', 'Europe/Berlin', or_replace => true);
SELECT schedule, cron, time_zone, command_name, payload, catch_up, overlap, owner, state, next_run_at > now() AS later FROM cqrs_schedules;
SELECT command_name, key, payload, state FROM cqrs_enqueued_commands;
SELECT command_id AS id FROM cqrs_enqueued_commands \gset
DO $$ BEGIN PERFORM cqrs_cancel_command(command_id) FROM cqrs_enqueued_commands; EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE NOTICE 'not cancelled'; END $$;
SET ROLE regress_cqrs_other;
SELECT * FROM cqrs_schedules;
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', or_replace => true);
SELECT cqrs_unschedule('nightly');
SELECT cqrs_pause_schedule('nightly');
RESET ROLE;
SELECT cqrs_create_command_queue('regress_cqrs_other');
SET ROLE regress_cqrs_other;
SELECT cqrs_schedule('nightly', '0 2 * * *', 'Work', or_replace => true);
SELECT cqrs_unschedule('nightly', if_exists => true);
SELECT cqrs_resume_schedule('nightly');
SELECT cqrs_resume_schedule('none');
SELECT cqrs_unschedule('none');
SELECT cqrs_unschedule('none', if_exists => true);
RESET ROLE;

-- a run: it is a command of the role's, and the next one is scheduled with it
SELECT * FROM again();
SELECT * FROM run('1 second');
SELECT * FROM again();
SET ROLE regress_cqrs_app;
SELECT drain();
RESET ROLE;
SELECT payload, role, (context).name, (context).correlation_id, (context).causation_id IS NULL AS no_cause, (context).attempts FROM done;
-- the same run, enqueued again as after a failover, is the same command
SELECT count(DISTINCT command_id) FROM cqrs.scheduled_command;
SELECT command_id AS id FROM cqrs.scheduled_command \gset
SELECT cqrs_pause_schedule('nightly'), cqrs_pause_schedule('nightly') AS again;
SELECT state, next_run_at FROM cqrs_schedules;
SELECT count(*) FROM cqrs.scheduled_command;
SET ROLE regress_cqrs_app;
SELECT cqrs_schedule('nightly', '0 3 * * *', 'Work', '{"n": 2}', 'Europe/Berlin', or_replace => true);
RESET ROLE;
SELECT state, payload FROM cqrs_schedules;
SELECT cqrs_resume_schedule('nightly'), cqrs_resume_schedule('nightly') AS again;
SELECT command_id = :'id' AS same FROM cqrs.scheduled_command;
SELECT state FROM cqrs_schedules;

-- what was missed: one, none, all
TRUNCATE done;
SELECT cqrs_unschedule('nightly');
SET ROLE regress_cqrs_app;
SELECT cqrs_schedule('one', '0 * * * *', 'Work', '{"s": "one"}'), cqrs_schedule('none', '0 * * * *', 'Work', '{"s": "none"}', catch_up => 'none'),
	cqrs_schedule('all', '0 * * * *', 'Work', '{"s": "all"}', catch_up => 'all'), cqrs_schedule('side', '0 * * * *', 'Work', '{"s": "side"}', overlap => true);
RESET ROLE;
SELECT date_trunc('hour', now()) - interval '4 hours' AS missed \gset
UPDATE cqrs.scheduled_command SET run_at = :'missed';
SELECT cqrs_enqueue_scheduled(), cqrs_enqueue_scheduled(), cqrs_enqueue_scheduled(), cqrs_enqueue_scheduled(), cqrs_enqueue_scheduled(), cqrs_enqueue_scheduled();
SELECT * FROM again();
SET ROLE regress_cqrs_app;
SELECT drain();
RESET ROLE;
SELECT payload->>'s' AS schedule, count(*) FROM done GROUP BY 1 ORDER BY 1;
-- late, but not by a minute
TRUNCATE done;
SELECT * FROM run('30 seconds');
SET ROLE regress_cqrs_app;
SELECT drain();
RESET ROLE;
SELECT payload->>'s' AS schedule, count(*) FROM done GROUP BY 1 ORDER BY 1;

-- one that fails: no further one, unless all are to come, or side by side
TRUNCATE done;
SET ROLE regress_cqrs_app;
SELECT cqrs_unschedule('none'), cqrs_schedule('one', '0 * * * *', 'Work', '{"s": "one", "fail": 1}', or_replace => true),
	cqrs_schedule('all', '0 * * * *', 'Work', '{"s": "all", "fail": 1}', catch_up => 'all', or_replace => true),
	cqrs_schedule('side', '0 * * * *', 'Work', '{"s": "side", "fail": 1}', overlap => true, or_replace => true);
RESET ROLE;
SELECT cqrs_alter_subscription('commands_of_regress_cqrs_app', retry_delay => '1 hour');
SET client_min_messages = error;
SELECT * FROM run('30 seconds');
SET ROLE regress_cqrs_app;
SELECT drain();
RESET ROLE;
SELECT * FROM run('30 seconds');
SET ROLE regress_cqrs_app;
SELECT drain();
RESET ROLE;
SELECT payload->>'s' AS schedule, count(*), count(*) FILTER (WHERE attempts > 0) AS tried FROM cqrs.retry GROUP BY 1 ORDER BY 1;
RESET client_min_messages;

-- what waits for nobody: a run of a schedule that is being changed
BEGIN;
SELECT cqrs_pause_schedule('one');
ROLLBACK;
SELECT count(*) FROM cqrs.scheduled_command;

-- somebody removed what is scheduled
TRUNCATE cqrs.scheduled_command;
SELECT severity, problem, object, hint FROM cqrs_health() WHERE problem = 'schedule_stopped' ORDER BY 3;
SELECT schedule, state FROM cqrs_schedules ORDER BY 1;
SELECT cqrs_resume_schedule(schedule) FROM cqrs_schedules;
-- a time zone that is not known any more stops no others
UPDATE cqrs.schedule SET time_zone = 'Gone/Away' WHERE schedule = 'side';
SELECT * FROM run('30 seconds');
SELECT schedule, state FROM cqrs_schedules ORDER BY 1;
SELECT detail FROM cqrs_health() WHERE problem = 'schedule_stopped';
-- they go with the queue, if they may; a paused one has nothing scheduled
TRUNCATE cqrs.scheduled_command;
SET client_min_messages = error;
SELECT cqrs_pause_schedule(schedule) FROM cqrs_schedules;
SELECT cqrs_seek('commands_of_regress_cqrs_app', 'latest');
RESET client_min_messages;
SELECT cqrs_drop_command_queue('regress_cqrs_app');
SELECT cqrs_unsubscribe('commands_of_regress_cqrs_app');
SELECT count(*) FROM cqrs.schedule;
SELECT count(*) FROM cqrs.scheduled_command;

DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE done;
DROP FUNCTION runs, cron_error, work, hidden, be_due, run, again, drain;
DROP TYPE size CASCADE;
DROP ROLE regress_cqrs_app, regress_cqrs_other;
