-- Deferred commands: enqueued, scheduled, cancelled, executed by hand.
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
CREATE ROLE regress_cqrs_app LOGIN;
CREATE ROLE regress_cqrs_nologin;
GRANT CREATE ON SCHEMA public TO regress_cqrs_app;
GRANT EXECUTE ON FUNCTION cqrs_drain(text), cqrs_unsubscribe(text, boolean),
	cqrs_register_command(text, text, boolean) TO regress_cqrs_app;
CREATE TYPE new_item AS (n int);
CREATE TABLE item (seq serial, n int, role text DEFAULT current_user, context cqrs_context DEFAULT cqrs_context());
GRANT INSERT, SELECT ON item TO regress_cqrs_app;
GRANT USAGE ON SEQUENCE item_seq_seq TO regress_cqrs_app;
CREATE TABLE secret (n int);
CREATE FUNCTION add_item(c new_item) RETURNS int LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	INSERT INTO item (n) VALUES (c.n);
	IF c.n < 0 THEN
		RAISE 'item % is negative', c.n;
	END IF;
	RETURN c.n;
END $$;
CREATE FUNCTION steal(jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.secret VALUES (1)';
CREATE FUNCTION read_items(jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.item';
CREATE FUNCTION list_items(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT n FROM public.item';
CREATE FUNCTION enqueue_in_query(jsonb) RETURNS uuid LANGUAGE sql AS $$ SELECT cqrs_enqueue('Add', '{"n": 1}') $$;
CREATE FUNCTION add_later(c jsonb) RETURNS uuid LANGUAGE sql SET search_path = public AS $$
	SELECT cqrs_enqueue('Add', c, run_at => now() + interval '1 hour')
$$;
SELECT cqrs_register_command('Add', 'add_item(new_item)');
SELECT cqrs_register_command('Steal', 'steal(jsonb)');
SELECT cqrs_register_command('List', 'list_items(jsonb)');
SELECT cqrs_register_command('AddLater', 'add_later(jsonb)');
SELECT cqrs_register_query('Read', 'read_items(jsonb)');
SELECT cqrs_register_query('EnqueueInQuery', 'enqueue_in_query(jsonb)');
-- What has come due has: nobody waits for the clock here.
CREATE FUNCTION be_due() RETURNS void LANGUAGE sql AS $$
	UPDATE cqrs.scheduled_command SET run_at = run_at - interval '2 hours'
$$;

-- each role has a queue of its own, which is created beforehand
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_create_command_queue('no_such_role');
SELECT cqrs_create_command_queue('regress_cqrs_nologin');
\echo :LAST_ERROR_SQLSTATE
BEGIN;
SELECT cqrs_create_command_queue();
ROLLBACK;
BEGIN READ ONLY;
SELECT cqrs_create_command_queue();
ROLLBACK;
RESET ROLE;
SELECT cqrs_create_command_queue('regress_cqrs_app') AS created, cqrs_create_command_queue('regress_cqrs_app') AS again;
SET ROLE regress_cqrs_app;
SELECT cqrs_create_command_queue(NULL) AS again;

-- enqueued now: in the outbox at once, executed once committed
BEGIN;
SELECT cqrs_enqueue('Add', '{"n": 1}') AS id \gset
SELECT cqrs_drain('commands_of_regress_cqrs_app');
COMMIT;
SELECT event_name, event_id = :'id' AS same_id, key IS NULL AS no_key, payload, headers, status
FROM cqrs_events('commands_of_regress_cqrs_app');
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n, role, (context).kind, (context).name, (context).id = :'id' AS same_id,
	   (context).correlation_id = :'id' AS own_origin, (context).causation_id, (context).attempts, (context).caller
FROM item;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT subscription, topics, kind, handler, owner, partitions, lag_events FROM cqrs_subscription_status;
-- rolled back: not at all; with the subscription or without
BEGIN;
SAVEPOINT s;
SELECT cqrs_enqueue('Add', '{"n": 2}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 2}', run_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
ROLLBACK TO s;
COMMIT;
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET ROLE;
-- what fails from here on is not tried again, however slow the machine is
SELECT cqrs_alter_subscription('commands_of_regress_cqrs_app', retry_delay => '1 hour', max_retry_delay => '1 hour');

-- its name is another one where that is taken
SELECT cqrs_create_topic('commands_of_' || current_user);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM item;
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Add', '{"n": 3}', key => 7) IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 4}', key => 'k', run_at => now() - interval '1 day') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 5}', run_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
COMMIT;
SELECT replace(s.subscription, current_user, 'me') AS subscription, s.runs, s.max_retained_size,
	   replace(t.topic, current_user, 'me') AS topic
FROM cqrs.subscription s JOIN cqrs.subscription_topic USING (subscription_id) JOIN cqrs.topic t USING (topic_id)
ORDER BY 1 DESC;
SELECT count(*) FROM cqrs_events('commands_of_' || current_user);
SELECT array_agg(key ORDER BY position) AS keys FROM cqrs_events('commands_of_' || current_user || '_2');
SELECT cqrs_drain('commands_of_' || current_user || '_2');
SELECT n, role = current_user AS mine FROM item ORDER BY seq;

-- a role may not emit to its topic, nor another read it
SELECT cqrs_register_event('happened', 'things');
SET ROLE regress_cqrs_app;
SELECT cqrs_emit('happened', '{}', topic => 'commands_of_regress_cqrs_app');
SELECT topic FROM cqrs_topic_status;
SET ROLE regress_cqrs_nologin;
SELECT * FROM cqrs_events('commands_of_regress_cqrs_app');
SET ROLE regress_cqrs_app;
-- nor do more by this than it may
SELECT cqrs_enqueue('Steal') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET ROLE;
SELECT cqrs_seek('commands_of_regress_cqrs_app', 'latest');
SELECT count(*) FROM secret;
SET ROLE regress_cqrs_nologin;
DO $$
BEGIN
	PERFORM cqrs_create_command_queue();
	RAISE 'LOGIN is not needed' USING ERRCODE = '42501';	-- not before 17
EXCEPTION WHEN insufficient_privilege THEN
	RAISE NOTICE 'not created';
END $$;
RESET ROLE;

-- for later: not in the outbox before it is due, and moved there once
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 6}', 'k', now() + interval '1 hour') AS later \gset
SELECT cqrs_enqueue('Add', '{"n": 7}', 'k', now() + interval '30 min') AS sooner \gset
SELECT cqrs_enqueue('Add', '{"n": 8}', 'k', now() + interval '1 day') AS cancelled \gset
SELECT command_name, owner, key, payload, run_at > now() AS later, enqueued_at <= now() AS enqueued
FROM cqrs_enqueued_commands WHERE state = 'scheduled' ORDER BY run_at;
SELECT cqrs_enqueue_scheduled();
RESET ROLE;
SELECT cqrs_enqueue_scheduled();
SELECT be_due();
SELECT cqrs_cancel_command(:'cancelled');
BEGIN;
SELECT cqrs_enqueue_scheduled();
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
ROLLBACK;
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
SELECT cqrs_enqueue_scheduled();
SELECT cqrs_enqueue_scheduled();
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
SET ROLE regress_cqrs_app;
SELECT event_id = :'sooner' AS sooner, event_id = :'later' AS later FROM cqrs_events('commands_of_regress_cqrs_app')
ORDER BY position DESC LIMIT 2;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n, (context).id IN (:'sooner', :'later') AS same_id FROM item WHERE n IN (6, 7) ORDER BY seq;
SELECT cqrs_cancel_command(:'later');
RESET ROLE;
-- what is too large for a row comes along
CREATE FUNCTION measure(c jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$
	INSERT INTO item (n) VALUES (length(c->>'text'))
$$;
SELECT cqrs_register_command('Measure', 'measure(jsonb)');
SELECT cqrs_enqueue('Measure', jsonb_build_object('text', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i)),
	run_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
SELECT be_due();
SELECT cqrs_enqueue_scheduled();
VACUUM cqrs.scheduled_command;
SELECT cqrs_drain('commands_of_' || current_user || '_2');
SELECT max(n) FROM item;

-- cancelled
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 9}', run_at => now() + interval '1 hour') AS id \gset
RESET ROLE;
SET ROLE regress_cqrs_nologin;
\set VERBOSITY sqlstate
SELECT cqrs_cancel_command(:'id');
\set VERBOSITY terse
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';
RESET ROLE;
SET ROLE regress_cqrs_app;
BEGIN;
SAVEPOINT s;
SELECT cqrs_cancel_command(:'id');
SELECT cqrs_cancel_command(:'id');
ROLLBACK TO s;
SELECT cqrs_cancel_command(:'id');
COMMIT;
SELECT cqrs_cancel_command(:'id');
SELECT cqrs_cancel_command(cqrs_enqueue('Add', '{"n": 9}', run_at => now() + interval '1 hour'));
SELECT cqrs_cancel_command(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM cqrs_enqueued_commands WHERE state = 'scheduled';

-- what caused it
SET cqrs_outbox.correlation_id = 'request-1';
SELECT cqrs_enqueue('Add', '{"n": 10}') AS id \gset
SELECT cqrs_send('AddLater', '{"n": 11}') AS later \gset
RESET cqrs_outbox.correlation_id;
RESET ROLE;
SELECT headers - 'causation_id' AS headers, headers ? 'causation_id' AS caused FROM cqrs.scheduled_command;
SELECT be_due();
SELECT cqrs_enqueue_scheduled();
SET ROLE regress_cqrs_app;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n, (context).correlation_id, (context).causation_id IS NOT NULL AS caused FROM item WHERE n IN (10, 11) ORDER BY n;

-- one that fails is tried again, and those of its key wait; those of no key do not
SELECT cqrs_enqueue('Add', '{"n": -1}', 'a') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 12}', 'a') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 13}', 'b') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": -2}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 14}') IS NOT NULL AS enqueued;
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT n FROM item WHERE n > 11 AND n < 100 ORDER BY seq;
-- what waits is seen by who enqueued it, whatever it waits for
SELECT cqrs_enqueue('Add', '{"n": 15}') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 16}', 'k', run_at => now() + interval '1 hour') AS later \gset
SELECT command_name, owner, key, payload, state, run_at > now() AS later, now() - enqueued_at < interval '1 day' AS enqueued
FROM cqrs_enqueued_commands ORDER BY (payload->>'n')::int;
SELECT cqrs_cancel_command(:'later'), cqrs_drain('commands_of_regress_cqrs_app');
-- NULL is what is not given
BEGIN;
SELECT cqrs_enqueue('Add', NULL, NULL, NULL, NULL, NULL) AS id \gset
SELECT payload, key, state FROM cqrs_enqueued_commands WHERE command_id = :'id';
ROLLBACK;
RESET ROLE;
SELECT key, event_name, attempts, message FROM cqrs.retry WHERE key = 'a' ORDER BY position;

-- cancelled wherever it waits: one that failed, one behind it, one that nobody has begun
SET ROLE regress_cqrs_app;
CREATE FUNCTION cancel(wanted int) RETURNS boolean LANGUAGE sql AS $$
	SELECT cqrs_cancel_command(command_id) FROM cqrs_enqueued_commands WHERE payload->'n' = to_jsonb(wanted)
$$;
CREATE VIEW waiting AS SELECT payload->'n' AS n, state FROM cqrs_enqueued_commands ORDER BY payload->'n';
SELECT cqrs_enqueue('Add', '{"n": 17}', 'a') IS NOT NULL, cqrs_enqueue('Add', '{"n": 18}', 'a') IS NOT NULL, cqrs_enqueue('Add', '{"n": 19}') IS NOT NULL,
	   cqrs_enqueue('Add', '{"n": 20}') IS NOT NULL;
SELECT * FROM waiting;
BEGIN;
SELECT cancel(-1), cancel(17), cancel(19);
SELECT * FROM waiting;
ROLLBACK;
SELECT * FROM waiting;
RESET ROLE;
SELECT event_id AS failed FROM cqrs.retry WHERE payload->>'n' = '-1' \gset
SET ROLE regress_cqrs_nologin;
SELECT cqrs_cancel_command(:'failed');
RESET ROLE;
SELECT cqrs_cancel_command(event_id) FROM cqrs.retry WHERE payload->>'n' = '-2';
SET ROLE regress_cqrs_app;
SELECT cancel(-1), cancel(17), cancel(19);
SELECT cqrs_cancel_command(cqrs_enqueue('Add', '{"n": 21}'));
SELECT * FROM waiting;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n FROM item WHERE n BETWEEN 12 AND 21 ORDER BY seq;
SELECT * FROM waiting;
SELECT retrying, waiting, retry_at FROM cqrs_subscription_status WHERE subscription = 'commands_of_regress_cqrs_app';
-- by a command of the same batch; itself it cannot cancel, nor when it is tried again
CREATE TABLE cancels (by_id uuid, n int, cancelled boolean);
CREATE FUNCTION cancel_next(c jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF (cqrs_context()).attempts = (c->>'fails')::int THEN
		RAISE 'once more';
	END IF;
	INSERT INTO cancels SELECT (cqrs_context()).id, (payload->>'n')::int, cqrs_cancel_command(command_id) FROM cqrs_enqueued_commands;
	INSERT INTO cancels SELECT (cqrs_context()).id, NULL, cqrs_cancel_command((cqrs_context()).id);
END $$;
RESET ROLE;
SELECT cqrs_register_command('CancelNext', 'cancel_next');
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('CancelNext', '{}') IS NOT NULL, cqrs_enqueue('Add', '{"n": 21}') IS NOT NULL, cqrs_enqueue('Add', '{"n": 22}') IS NOT NULL;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT cqrs_enqueue('CancelNext', '{"fails": 1}') IS NOT NULL;
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
SELECT cqrs_enqueue('Add', '{"n": 23}') IS NOT NULL;
SELECT cqrs_retry_all('commands_of_regress_cqrs_app'), cqrs_drain('commands_of_regress_cqrs_app');
SELECT n, cancelled FROM cancels ORDER BY by_id, n;
SELECT n FROM item WHERE n > 20 AND n < 100 ORDER BY seq;
SELECT * FROM waiting;
DROP VIEW waiting;
DROP FUNCTION cancel;
RESET ROLE;

-- what cannot be enqueued
SELECT cqrs_enqueue('NoSuchCommand');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue(NULL);
SELECT cqrs_enqueue('Read');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('List');
SELECT cqrs_enqueue('Add', '[1]');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Add', '{"n": "many"}');
SELECT cqrs_enqueue('Add', '{"n": 1}', options => '[]');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Add', '{"n": 1}', options => '{"priority": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Add', '{"n": 1}', idempotency_key => '');
SELECT cqrs_enqueue('Add', '{"n": 1}', key => 1.5);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Add', '{"n": 1}', run_at => 'infinity');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_enqueue('Add', '{"n": 1}', run_at => '-infinity');
BEGIN READ ONLY;
SELECT cqrs_enqueue('Add', '{"n": 1}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
DO $$
BEGIN
	PERFORM cqrs_query('EnqueueInQuery');
EXCEPTION WHEN read_only_sql_transaction THEN
	RAISE NOTICE 'a query enqueues nothing: %', SQLERRM;
END $$;
REVOKE EXECUTE ON FUNCTION add_item(new_item) FROM PUBLIC;
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 1}');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT EXECUTE ON FUNCTION add_item(new_item) TO PUBLIC;

-- it is looked at again when it is executed
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Measure', '{"text": ""}') IS NOT NULL AS enqueued;
RESET ROLE;
SELECT cqrs_unregister_command('Measure');
SET ROLE regress_cqrs_app;
SET client_min_messages = error;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
RESET client_min_messages;
RESET ROLE;

-- the subscription goes with all that is enqueued; then it is created anew
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 20}', run_at => now() + interval '1 hour') IS NOT NULL AS enqueued;
SELECT cqrs_enqueue('Add', '{"n": 21}') IS NOT NULL AS enqueued;
SELECT cqrs_unsubscribe('commands_of_regress_cqrs_app');
RESET ROLE;
SELECT topic FROM cqrs.topic WHERE topic LIKE '%regress%';
SELECT count(*) FROM cqrs.scheduled_command;
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 22}');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Add', '{"n": 22}') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n FROM item WHERE n BETWEEN 20 AND 29 ORDER BY seq;
RESET ROLE;
-- the same without its topic
SELECT cqrs_drop_topic('commands_of_regress_cqrs_app', cascade => true);
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 23}');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Add', '{"n": 23}') IS NOT NULL AS enqueued;
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT n FROM item WHERE n = 23;
SELECT topics FROM cqrs_subscription_status;
RESET ROLE;

-- an idempotency key: once, with the id of the first time
SET ROLE regress_cqrs_app;
SELECT cqrs_enqueue('Add', '{"n": 24}', idempotency_key => 'once') AS first \gset
SELECT cqrs_enqueue('Add', '{"n": 24}', run_at => 'tomorrow', idempotency_key => 'once') = :'first' AS same;
SELECT cqrs_enqueue('Add', '{"n": 25}', idempotency_key => 'once');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_send('Add', '{"n": 24}', idempotency_key => 'once');
SELECT cqrs_drain(subscription) FROM cqrs_subscription_status;
SELECT n FROM item WHERE n IN (24, 25);
BEGIN;
SELECT cqrs_enqueue('Add', '{"n": 25}', idempotency_key => 'rolled back') IS NOT NULL AS enqueued;
ROLLBACK;
SELECT cqrs_enqueue('Add', '{"n": 25}', idempotency_key => 'rolled back', options => '{}') IS NOT NULL AS enqueued;
SELECT cqrs_drain(subscription) FROM cqrs_subscription_status;
SELECT n FROM item WHERE n IN (24, 25);
RESET ROLE;

-- the queue is dropped, but not with what is in it
SET ROLE regress_cqrs_app;
\set VERBOSITY default
SELECT cqrs_enqueue('Add', '{"n": 31}', run_at => now() + interval '1 hour') AS id \gset
SELECT cqrs_drop_command_queue();
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_cancel_command(:'id');
SELECT cqrs_enqueue('Add', '{"n": 31}') AS id \gset
SELECT cqrs_drop_command_queue(cascade => NULL);
SELECT cqrs_cancel_command(:'id');
SELECT count(*) AS waiting FROM cqrs_enqueued_commands;
SELECT cqrs_drop_command_queue('regress_cqrs_app');
SELECT cqrs_drop_command_queue();
SELECT cqrs_drop_command_queue(if_exists => true);
SELECT cqrs_enqueue('Add', '{"n": 31}');
SELECT cqrs_create_command_queue();
SELECT cqrs_enqueue('Add', '{"n": 31}') IS NOT NULL, cqrs_enqueue('Add', '{"n": 31}', run_at => now() + interval '1 hour') IS NOT NULL;
RESET ROLE;
SET ROLE regress_cqrs_nologin;
SELECT cqrs_drop_command_queue('regress_cqrs_app', cascade => true);
RESET ROLE;
SELECT cqrs_drop_command_queue('no_such_role');
SELECT cqrs_drop_command_queue('regress_cqrs_app', cascade => true);
SELECT count(*) FROM cqrs.scheduled_command;
SELECT subscription FROM cqrs.subscription WHERE subscription ~ 'app';
\set VERBOSITY terse

-- partitions: commands of one key are in one of them
\set VERBOSITY default
SELECT cqrs_create_command_queue('regress_cqrs_app', partitions => 0);
SELECT cqrs_create_command_queue('regress_cqrs_app', partitions => 1001);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_create_command_queue('regress_cqrs_app', partitions => 3), cqrs_create_command_queue('regress_cqrs_app', partitions => 3) AS again,
	   cqrs_create_command_queue('regress_cqrs_app') AS whatever;
SELECT cqrs_create_command_queue('regress_cqrs_app', partitions => 2);
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SET ROLE regress_cqrs_app;
SELECT count(cqrs_enqueue('Add', jsonb_build_object('n', n), key => n % 5)) FROM generate_series(1001, 1040) n;
SELECT count(cqrs_enqueue('Add', jsonb_build_object('n', n))) FROM generate_series(1041, 1060) n;
-- while the number is being changed, what waits is cancelled wherever it is
RESET ROLE;
SELECT cqrs_alter_subscription('commands_of_regress_cqrs_app', partitions => 2);
SET ROLE regress_cqrs_app;
SELECT cqrs_create_command_queue(partitions => 2);
SELECT count(*) AS cancelled FROM (SELECT command_id FROM cqrs_enqueued_commands WHERE (payload->>'n')::int >= 1036 OFFSET 0) w WHERE cqrs_cancel_command(command_id);
SELECT cqrs_drain('commands_of_regress_cqrs_app');
SELECT subscription, partitions FROM cqrs_subscriptions;
SELECT count(*), count(DISTINCT n) FROM item WHERE n BETWEEN 1001 AND 1060;
SELECT count(*) AS out_of_order FROM (SELECT n, lag(n) OVER (PARTITION BY n % 5 ORDER BY seq) AS before FROM item WHERE n BETWEEN 1001 AND 1040) i WHERE n < before;
RESET ROLE;

-- a long name, in the middle of a character
DO $$
DECLARE
	role text := 'regress_cqrs_' || repeat('ä', 24);
BEGIN
	EXECUTE format('CREATE ROLE %I LOGIN; GRANT INSERT ON item TO %1$I; GRANT USAGE ON SEQUENCE item_seq_seq TO %1$I', role);
	EXECUTE format('SET ROLE %I', role);
	PERFORM cqrs_create_command_queue(), cqrs_enqueue('Add', '{"n": 30}');
	RESET ROLE;
END $$;
SELECT length(subscription), octet_length(subscription) FROM cqrs.subscription WHERE subscription LIKE '%ä%';

-- the function by itself: only a delivery can call it
SELECT cqrs.run_command(ROW(1, NULL, 'Add', NULL, NULL, '{"n": 40}', NULL, NULL)::cqrs_event);
SELECT cqrs.run_command(NULL);
SELECT n FROM item WHERE n = 40;

DROP FUNCTION add_item, steal, read_items, list_items, enqueue_in_query, add_later, be_due, measure;
DROP TABLE item, secret;
DROP TYPE new_item;
DROP EXTENSION cqrs_outbox CASCADE;
DO $$
BEGIN
	EXECUTE format('DROP OWNED BY %I; DROP ROLE %1$I', 'regress_cqrs_' || repeat('ä', 24));
END $$;
DROP OWNED BY regress_cqrs_app;
DROP ROLE regress_cqrs_app, regress_cqrs_nologin;
