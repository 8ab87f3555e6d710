-- Options of a command that is enqueued: when it expires, and that its answer is
-- kept; what has become of it. The worker is not involved: cqrs_drain() executes.
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
CREATE ROLE regress_cqrs_app LOGIN;
CREATE ROLE regress_cqrs_mate LOGIN IN ROLE regress_cqrs_app;
CREATE ROLE regress_cqrs_other LOGIN;
CREATE TABLE done (seq serial, n int);
GRANT ALL ON done, done_seq_seq TO regress_cqrs_app;
CREATE FUNCTION double(c jsonb) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	INSERT INTO done (n) VALUES ((c->>'n')::int);
	IF c ? 'fails' THEN
		RAISE 'no';
	END IF;
	RETURN CASE WHEN NOT c ? 'null' THEN to_jsonb(2 * (c->>'n')::int) END;
END $$;
SELECT cqrs_register_command('Double', 'double');
SELECT cqrs_create_command_queue('regress_cqrs_app');
GRANT EXECUTE ON FUNCTION cqrs_alter_subscription, cqrs_drain TO regress_cqrs_app;
SET ROLE regress_cqrs_app;

-- an answer is kept if that is asked for
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '{"keep_answer": true}') AS kept \gset
SELECT cqrs_enqueue('Double', '{"n": 2}', options => '{"keep_answer": false}') AS lost \gset
SELECT cqrs_enqueue('Double', '{"n": 3, "null": 1}', options => '{"keep_answer": true}') AS none \gset
SELECT cqrs_enqueue('Double', '{"n": 4, "fails": 1}', 'key', options => '{"keep_answer": true}') AS fails \gset
SELECT cqrs_enqueue('Double', '{"n": 5}', 'key', options => '{"keep_answer": true}') AS behind \gset
SELECT cqrs_enqueue('Double', '{"n": 6}', run_at => now() + interval '1 hour', options => '{"keep_answer": true}') AS later \gset
SELECT * FROM cqrs_command_result(:'kept');
SELECT * FROM cqrs_command_result(:'later');
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT what, r.* FROM (VALUES (1, 'kept', :'kept'), (2, 'lost', :'lost'), (3, 'none', :'none'), (4, 'fails', :'fails'), (5, 'behind', :'behind'), (6, 'later', :'later'),
	(7, 'never', '00000000-0000-0000-0000-000000000000'), (8, 'null', NULL)) v (n, what, id) CROSS JOIN LATERAL cqrs_command_result(coalesce(id, '00000000-0000-0000-0000-000000000001')::uuid) r ORDER BY n;
SELECT cqrs_command_result(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT n FROM done ORDER BY seq;
-- by members of the role, and nobody else
RESET ROLE;
SET ROLE regress_cqrs_mate;
SELECT * FROM cqrs_command_result(:'kept');
SELECT * FROM cqrs_command_result(:'fails');
RESET ROLE;
SET ROLE regress_cqrs_other;
SELECT state FROM unnest(ARRAY[:'kept', :'fails', :'behind', :'later']::uuid[]) id, cqrs_command_result(id);
RESET ROLE;
-- a key of a client's is no answer of a command
SET ROLE regress_cqrs_app;
SELECT cqrs_send('Double', '{"n": 7}', idempotency_key => '00000000-0000-0000-0000-000000000000');
SELECT * FROM cqrs_command_result('00000000-0000-0000-0000-000000000000');
\set VERBOSITY sqlstate
SELECT cqrs_send('Double', '{"n": 7}', idempotency_key => :'kept');
\set VERBOSITY terse
-- what was given up, tried anew, and cancelled
SELECT cqrs_alter_subscription('commands_of_regress_cqrs_app', max_attempts => 1);
SET client_min_messages = error;
SELECT cqrs_retry_all('commands_of_regress_cqrs_app'), cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT * FROM cqrs_command_result(:'fails');
SELECT * FROM cqrs_command_result(:'behind');
SELECT cqrs_redrive_all('commands_of_regress_cqrs_app');
SELECT * FROM cqrs_command_result(:'fails');
SELECT cqrs_cancel_command(:'fails'), cqrs_cancel_command(:'later');
SELECT state FROM unnest(ARRAY[:'fails', :'later']::uuid[]) id, cqrs_command_result(id);
-- delivered again, it is not executed again while its answer is kept
SELECT cqrs_seek('commands_of_regress_cqrs_app', 'earliest');
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT n, count(*) FROM done GROUP BY n ORDER BY n;
SELECT * FROM cqrs_command_result(:'kept');
-- within the transaction that enqueued it, and in one that keeps its snapshot
BEGIN;
SELECT cqrs_enqueue('Double', '{"n": 8}', options => '{"keep_answer": true}') AS own \gset
SELECT state FROM cqrs_command_result(:'own');
ROLLBACK;
SELECT state FROM cqrs_command_result(:'own');
SELECT state FROM cqrs_command_result(cqrs_enqueue('Double', '{"n": 9}'));
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT * FROM cqrs_command_result(:'kept');
COMMIT;
SELECT cqrs_drain('commands_of_regress_cqrs_app');

-- one that expires: it is not begun, nor tried again
SELECT cqrs_enqueue('Double', '{"n": 20}', options => '{"expires_at": "2020-01-01T00:00:00Z", "keep_answer": true}') AS expired \gset
SELECT cqrs_enqueue('Double', '{"n": 21}', options => jsonb_build_object('expires_at', now() + interval '1 hour')) IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Double', '{"n": 22}', run_at => now() + interval '1 hour', options => jsonb_build_object('expires_at', now() + interval '2 hours')) AS later \gset
SET timezone = 'UTC';
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT n FROM done WHERE n >= 20;
SELECT * FROM cqrs_command_result(:'expired');
SELECT event_name, attempts, error, error_sqlstate, headers FROM cqrs_dead_letters WHERE event_id = :'expired';
RESET ROLE;
SELECT headers ? 'expires_at' AS expires FROM cqrs.scheduled_command;
UPDATE cqrs.scheduled_command SET run_at = now() - interval '3 hours', headers = '{"expires_at": "2021-01-01T00:00:00+01:00"}';
SELECT cqrs_enqueue_scheduled();
SET ROLE regress_cqrs_app;
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT state, error_sqlstate FROM cqrs_command_result(:'later');
-- a long row of them keeps nobody waiting
SELECT count(cqrs_enqueue('Double', '{"n": 23}', options => '{"expires_at": "2020-01-01T00:00:00Z"}')) FROM generate_series(1, 50);
SELECT cqrs_enqueue('Double', '{"n": 24}') IS NOT NULL AS enqueued;
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT n FROM done WHERE n > 21;
SELECT count(*) FROM cqrs_dead_letters WHERE error_sqlstate = 'OB004';
SELECT count(*) FROM cqrs_retries;

-- what is no option
\set VERBOSITY default
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '[]');
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '{"keep_answer": true, "priority": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '{"keep_answer": "yes"}');
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '{"expires_at": "tomorrow"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Double', '{"n": 1}', options => '{"expires_at": 1}');
SELECT cqrs_enqueue('Double', '{"n": 1}', run_at => '2100-01-01 00:00Z', options => '{"expires_at": "2100-01-01T00:00:00Z"}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Double', '{"n": 30}', options => '{"expires_at": null, "keep_answer": null}') IS NOT NULL AS enqueued;
RESET ROLE;
\set VERBOSITY terse

DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION double;
DROP TABLE done;
DROP OWNED BY regress_cqrs_app;
DROP ROLE regress_cqrs_mate, regress_cqrs_app, regress_cqrs_other;
