-- Who owns a subscription: whoever owns its view, which PostgreSQL knows.
\set VERBOSITY terse
\set SHOW_CONTEXT never
CREATE EXTENSION cqrs_outbox;
CREATE ROLE regress_cqrs_alice LOGIN;
CREATE ROLE regress_cqrs_bob LOGIN;
CREATE ROLE regress_cqrs_carol LOGIN;
GRANT CREATE ON SCHEMA public TO regress_cqrs_alice, regress_cqrs_carol;
GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_unsubscribe, cqrs_drain, cqrs_alter_subscription
	TO regress_cqrs_alice, regress_cqrs_bob, regress_cqrs_carol;
SELECT cqrs_register_event('happened', 'things');
GRANT SELECT ON cqrs_topics.things TO regress_cqrs_alice, regress_cqrs_bob;
CREATE FUNCTION emit(n int) RETURNS void LANGUAGE sql AS $$
	SELECT public.cqrs_emit('happened', jsonb_build_object('n', n))
$$;
CREATE FUNCTION problems(OUT problem text, OUT object text, OUT detail text, OUT hint text) RETURNS SETOF record LANGUAGE sql AS $$
	SELECT problem, object, detail, hint FROM public.cqrs_health('1 day', '1 day') WHERE severity = 'error' AND problem NOT IN ('not_preloaded', 'no_manager')
$$;
SET ROLE regress_cqrs_alice;
CREATE FUNCTION handle(e cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% handled as %', e.payload, current_user;
END $$;
SELECT cqrs_subscribe('it''s "hers"', ARRAY['things'], 'handle(cqrs_event)');
SELECT cqrs_subscribe('pulled', ARRAY['things']);
-- the longest name, and one that would be the same if it were cut
SELECT cqrs_subscribe(repeat('ä', 31), ARRAY['things']), cqrs_subscribe(repeat('ä', 31) || 'b', ARRAY['things']);
SELECT cqrs_subscribe(repeat('ä', 31) || 'bc', ARRAY['things']);
SELECT cqrs_unsubscribe(repeat('ä', 31)), cqrs_unsubscribe(repeat('ä', 31) || 'b');
SELECT subscription, topics, kind, owner, state, lag_events FROM cqrs_subscriptions."it's ""hers""";
RESET ROLE;
SELECT relname, relowner::regrole, reloptions, relacl FROM pg_class WHERE relnamespace = 'cqrs_subscriptions'::regnamespace ORDER BY relname;
SELECT emit(1);

-- PostgreSQL knows who it is
DROP ROLE regress_cqrs_alice;
\echo :LAST_ERROR_SQLSTATE

-- to another role: from the next batch on, and with its checks
ALTER VIEW cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_bob;
SET ROLE regress_cqrs_alice;
SELECT cqrs_drain('it''s "hers"');
SELECT cqrs_pause('it''s "hers"');
SELECT count(*) FROM cqrs_subscriptions."it's ""hers""";
SET ROLE regress_cqrs_bob;
SELECT cqrs_drain('it''s "hers"');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT problem, object, detail FROM problems();
ALTER FUNCTION handle OWNER TO regress_cqrs_bob;
SET ROLE regress_cqrs_bob;
SELECT cqrs_drain('it''s "hers"');
SELECT cqrs_alter_subscription('it''s "hers"', handler => 'handle(cqrs_event)');
SELECT owner FROM cqrs_subscription_status WHERE subscription LIKE 'it%';
RESET ROLE;
-- rolled back, it is as before
BEGIN;
ALTER VIEW cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_alice;
SELECT subscription, owner FROM cqrs_subscription_status ORDER BY 1;
ROLLBACK;
SELECT subscription, owner FROM cqrs_subscription_status ORDER BY 1;
-- all that a role has
REASSIGN OWNED BY regress_cqrs_bob TO regress_cqrs_alice;
SELECT emit(2);
SET ROLE regress_cqrs_bob;
SELECT cqrs_drain('it''s "hers"');
SET ROLE regress_cqrs_alice;
SELECT cqrs_drain('it''s "hers"');

-- what its owner cannot do: make somebody else run her handler, take a name
\set VERBOSITY sqlstate
ALTER VIEW cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_bob;
ALTER VIEW cqrs_subscriptions.pulled RENAME TO taken;
CREATE VIEW cqrs_subscriptions.taken AS SELECT 1 AS a;
CREATE OR REPLACE VIEW cqrs_subscriptions.pulled AS SELECT 1 AS a;
RESET ROLE;
GRANT regress_cqrs_bob TO regress_cqrs_alice;
SET ROLE regress_cqrs_alice;
ALTER VIEW cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_bob;
RESET ROLE;
REVOKE regress_cqrs_bob FROM regress_cqrs_alice;
\set VERBOSITY terse

-- who else may see it, and receive
SET ROLE regress_cqrs_bob;
SELECT cqrs_receive('pulled');
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_cqrs_alice;
GRANT SELECT ON cqrs_subscriptions.pulled TO regress_cqrs_bob, regress_cqrs_carol;
SET ROLE regress_cqrs_bob;
SELECT subscription, owner, lag_events > 0 AS lags FROM cqrs_subscriptions.pulled;
SELECT subscription FROM cqrs_subscription_status;
SELECT cqrs_receive('pulled');
SET ROLE regress_cqrs_alice;
GRANT UPDATE ON cqrs_subscriptions.pulled TO regress_cqrs_bob, regress_cqrs_carol;
RESET ROLE;
SELECT cqrs_tick() > 0 AS ticked;
SET ROLE regress_cqrs_bob;
BEGIN;
SELECT payload, receipt IS NOT NULL AS receipt FROM cqrs_receive('pulled', 1);
SELECT cqrs_ack('pulled');
COMMIT;
SELECT receipt, position FROM cqrs_receive('pulled', 1, lease => '1 hour') \gset
SELECT cqrs_renew('pulled', :'receipt', '1 hour') IS NOT NULL AS renewed;
SELECT cqrs_nack('pulled', ARRAY[:position]::bigint[], 'no', receipt => :'receipt', give_up => true);
SELECT cqrs_renew('pulled', :'receipt', '0') IS NOT NULL AS given_back;
-- ... and no more
SELECT cqrs_pause('pulled');
SELECT count(*) FROM cqrs_dead_letters;
SELECT cqrs_redrive_all('pulled');
SELECT cqrs_unsubscribe('pulled');
\set VERBOSITY sqlstate
UPDATE cqrs_subscriptions.pulled SET state = 'x';
\set VERBOSITY terse
-- what he receives, he must be allowed to read
SET ROLE regress_cqrs_carol;
SELECT cqrs_receive('pulled');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
REVOKE ALL ON cqrs_subscriptions.pulled FROM regress_cqrs_bob, regress_cqrs_carol;
SET ROLE regress_cqrs_bob;
SELECT cqrs_receive('pulled');
SELECT subscription FROM cqrs_subscription_status;
RESET ROLE;

-- without its view it has no owner, and gets nothing
SELECT emit(3);
SET ROLE regress_cqrs_alice;
DROP VIEW cqrs_subscriptions."it's ""hers""";
SELECT cqrs_drain('it''s "hers"');
SELECT cqrs_unsubscribe('it''s "hers"');
SELECT cqrs_alter_subscription('it''s "hers"', max_attempts => 3);
RESET ROLE;
SELECT * FROM problems();
SELECT subscription, owner, lag_events FROM cqrs_subscription_status ORDER BY 1;
SELECT cqrs_drain('it''s "hers"');
\echo :LAST_ERROR_SQLSTATE
-- nor with something else of that name, or a view elsewhere
CREATE TABLE cqrs_subscriptions."it's ""hers""" ();
ALTER TABLE cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_bob;
SELECT problem, object FROM problems();
SELECT cqrs_alter_subscription('it''s "hers"', max_attempts => 3);
\echo :LAST_ERROR_SQLSTATE
DROP TABLE cqrs_subscriptions."it's ""hers""";
SET ROLE regress_cqrs_alice;
ALTER VIEW cqrs_subscriptions.pulled SET SCHEMA public;
SELECT cqrs_receive('pulled');
RESET ROLE;
SELECT problem, object FROM problems() ORDER BY 2;
SELECT cqrs_receive('pulled');
\echo :LAST_ERROR_SQLSTATE
-- who changes it then owns it, and may give it away
SELECT cqrs_alter_subscription('it''s "hers"', max_attempts => 3);
SELECT subscription, owner = current_user AS mine FROM cqrs_subscription_status ORDER BY 1;
ALTER VIEW cqrs_subscriptions."it's ""hers""" OWNER TO regress_cqrs_alice;
ALTER VIEW public.pulled SET SCHEMA cqrs_subscriptions;
SELECT * FROM problems();
SET ROLE regress_cqrs_alice;
SELECT cqrs_drain('it''s "hers"');
RESET ROLE;
-- a view that is in the way
CREATE VIEW cqrs_subscriptions.new AS SELECT 1 AS a;
SELECT cqrs_subscribe('new', ARRAY['things']);
\echo :LAST_ERROR_SQLSTATE
DROP VIEW cqrs_subscriptions.new;
-- something that depends on it
CREATE VIEW watched AS SELECT * FROM cqrs_subscriptions.pulled;
SELECT cqrs_unsubscribe('pulled');
\echo :LAST_ERROR_SQLSTATE
DROP VIEW watched;

-- a role that goes: nothing of it is left for the next one
DROP OWNED BY regress_cqrs_alice;
DROP ROLE regress_cqrs_alice;
SELECT problem, object FROM problems() ORDER BY 2;
SELECT cqrs_unsubscribe('pulled'), cqrs_unsubscribe('it''s "hers"');
SELECT count(*) FROM pg_class WHERE relnamespace = 'cqrs_subscriptions'::regnamespace;

-- ----------------------------------------------------------------------
-- Commands are executed as who enqueued them, or not at all
-- ----------------------------------------------------------------------
CREATE FUNCTION run(c jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% run as %', c, CASE current_user WHEN 'regress_cqrs_bob' THEN current_user ELSE 'somebody else' END;
END $$;
SELECT cqrs_register_command('Run', 'run(jsonb)');
SET ROLE regress_cqrs_bob;
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Run', '{"n": 1}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Run', '{"n": 2}', run_at => now() + interval '1 hour') AS later \gset
RESET ROLE;
UPDATE cqrs.scheduled_command SET run_at = now() - interval '1 minute';
DROP ROLE regress_cqrs_bob;
\echo :LAST_ERROR_SQLSTATE
-- with all that he has, a superuser gets his subscription; not what he said
SELECT current_user AS me \gset
REASSIGN OWNED BY regress_cqrs_bob TO :"me";
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue_scheduled();
SELECT problem, object, replace(detail, current_user, 'me') AS detail, replace(hint, current_user, 'me') AS hint FROM problems();
SELECT problem, object, detail ~ ': nobody owns them\.$' AS detail FROM cqrs_health('0') WHERE problem = 'commands_late';
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Run', '{"n": 3}') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_' || current_user);
SET ROLE regress_cqrs_bob;
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
\set VERBOSITY sqlstate
SELECT cqrs_cancel_command(:'later');
\set VERBOSITY terse
RESET ROLE;
-- a grant of somebody else's, or without grant option, makes no owner
GRANT SELECT ON cqrs_topics.commands_of_regress_cqrs_bob TO regress_cqrs_carol;
SET ROLE regress_cqrs_bob;
GRANT SELECT ON cqrs_topics.commands_of_regress_cqrs_bob TO regress_cqrs_carol WITH GRANT OPTION;
RESET ROLE;
ALTER VIEW cqrs_subscriptions.commands_of_regress_cqrs_bob OWNER TO regress_cqrs_carol;
SET ROLE regress_cqrs_carol;
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
SELECT cqrs_unsubscribe('commands_of_regress_cqrs_bob');
RESET ROLE;
-- what the extension's owner says, does
GRANT SELECT ON cqrs_topics.commands_of_regress_cqrs_bob TO regress_cqrs_carol WITH GRANT OPTION;
SELECT cqrs_enqueue_scheduled();
SET ROLE regress_cqrs_carol;
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
RESET ROLE;
-- back with whom it was
REVOKE SELECT ON cqrs_topics.commands_of_regress_cqrs_bob FROM regress_cqrs_carol;
ALTER VIEW cqrs_subscriptions.commands_of_regress_cqrs_bob OWNER TO regress_cqrs_bob;
SET ROLE regress_cqrs_bob;
SELECT cqrs_enqueue('Run', '{"n": 4}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Run', '{"n": 5}', run_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
SELECT cqrs_enqueue('Run', '{"n": 6}') IS NOT NULL AS enqueued;
RESET ROLE;
-- they end with him; the next one of his name begins anew
DROP OWNED BY regress_cqrs_bob;
DROP ROLE regress_cqrs_bob;
CREATE ROLE regress_cqrs_bob LOGIN;
GRANT EXECUTE ON FUNCTION cqrs_drain TO regress_cqrs_bob;
SELECT problem, object, detail FROM problems();
SET ROLE regress_cqrs_bob;
SELECT cqrs_drain('commands_of_regress_cqrs_bob');
SELECT cqrs_enqueue('Run', '{"n": 7}');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Run', '{"n": 7}') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_regress_cqrs_bob_2');
RESET ROLE;
-- also if he gets the view of the one before
SELECT cqrs_alter_subscription('commands_of_regress_cqrs_bob');
ALTER VIEW cqrs_subscriptions.commands_of_regress_cqrs_bob OWNER TO regress_cqrs_bob;
SELECT problem, object, detail FROM problems();
SELECT cqrs_unsubscribe('commands_of_regress_cqrs_bob');
SELECT count(*) FROM cqrs.scheduled_command;
SELECT * FROM problems();

-- ----------------------------------------------------------------------
-- A key is that of a role of this name and number
-- ----------------------------------------------------------------------
CREATE SEQUENCE handled;
GRANT USAGE ON SEQUENCE handled TO PUBLIC;
CREATE FUNCTION count_up(c jsonb) RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('public.handled') $$;
SELECT cqrs_register_command('CountUp', 'count_up(jsonb)');
SET ROLE regress_cqrs_carol;
SELECT cqrs_send('CountUp', idempotency_key => 'k');
SELECT cqrs_send('CountUp', idempotency_key => 'k');
RESET ROLE;
-- the number, with another name
ALTER ROLE regress_cqrs_carol RENAME TO regress_cqrs_dora;
SET ROLE regress_cqrs_dora;
SELECT cqrs_send('CountUp', idempotency_key => 'k');
RESET ROLE;
-- the name, with another number
CREATE ROLE regress_cqrs_carol;
SET ROLE regress_cqrs_carol;
SELECT cqrs_send('CountUp', idempotency_key => 'k');
SELECT cqrs_send('CountUp', idempotency_key => 'k');
RESET ROLE;
ALTER ROLE regress_cqrs_carol RENAME TO regress_cqrs_eve;
ALTER ROLE regress_cqrs_dora RENAME TO regress_cqrs_carol;
SET ROLE regress_cqrs_carol;
SELECT cqrs_send('CountUp', idempotency_key => 'k');
RESET ROLE;
-- what was restored has a number of another cluster: the name counts
INSERT INTO cqrs.idempotency_0 (role, role_name, idempotency_key, command_name, request, answer, stored_at)
SELECT 1, 'regress_cqrs_eve', 'restored', command_name, request, '99', stored_at
FROM (TABLE cqrs.idempotency_0 UNION ALL TABLE cqrs.idempotency_1 UNION ALL TABLE cqrs.idempotency_2) k LIMIT 1;
SET ROLE regress_cqrs_eve;
SELECT cqrs_send('CountUp', idempotency_key => 'restored');
SET ROLE regress_cqrs_carol;
SELECT cqrs_send('CountUp', idempotency_key => 'restored');
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION emit, problems, run, count_up;
DROP SEQUENCE handled;
DROP OWNED BY regress_cqrs_bob, regress_cqrs_carol, regress_cqrs_eve;
DROP ROLE regress_cqrs_bob, regress_cqrs_carol, regress_cqrs_eve;
