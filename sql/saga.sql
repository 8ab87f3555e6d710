-- Sagas, by hand: without the worker, each cqrs_drain() does what is due
CREATE EXTENSION cqrs_outbox;
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, what text, attempt integer);
CREATE FUNCTION did(what text) RETURNS void LANGUAGE sql AS $$ INSERT INTO did (what, attempt) VALUES (what, (cqrs_context()).attempts) $$;
CREATE FUNCTION reserve(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT did('reserve'); SELECT state || '{"hotel": 7}' $$;
CREATE FUNCTION cancel(state jsonb) RETURNS void LANGUAGE sql AS $$ SELECT did('cancel') $$;
CREATE FUNCTION charge(state jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM did('charge');
	IF state ? 'poor' THEN RAISE 'declined' USING ERRCODE = 'OB100'; END IF;
END $$;
CREATE FUNCTION refund(state jsonb) RETURNS void LANGUAGE sql AS $$ SELECT did('refund') $$;
CREATE FUNCTION two(a jsonb, b jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION rows(a jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION of_event(e cqrs_event) RETURNS void LANGUAGE sql AS '';

-- what steps are made of
SELECT cqrs_step('hotel', 'reserve'), cqrs_await('paid', timeout => '3 days'), cqrs_sleep('night', '1 mon 2 days');
SELECT cqrs_parallel('both', ARRAY[cqrs_step('a', 'reserve')]), cqrs_sub_saga('inner', 'other');

-- what cannot be registered
SELECT cqrs_register_saga(NULL, ARRAY[cqrs_step('a', 'reserve')]);
SELECT cqrs_register_saga('', ARRAY[cqrs_step('a', 'reserve')]);
SELECT cqrs_register_saga('s', NULL);
SELECT cqrs_register_saga('s', '{}');
SELECT cqrs_register_saga('s', ARRAY[NULL::cqrs_saga_step]);
SELECT cqrs_register_saga('s', ARRAY[ROW('a', NULL, NULL)::cqrs_saga_step]);
SELECT cqrs_register_saga('s', ARRAY[ROW('a', 'leap', '{}')::cqrs_saga_step]);
SELECT cqrs_register_saga('s', ARRAY[ROW('a', 'step', '[]')::cqrs_saga_step]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('', 'reserve')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve'), cqrs_step('a', 'charge')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', NULL)]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'nosuch')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'two')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'rows')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'of_event')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', max_attempts => -1)]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', retry_delay => '-1 s')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', final_sqlstates => ARRAY['nonsense'])]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', fallback_compensation => 'cancel')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_await('a', event_name => 'nosuch')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_await('a', topic => 'nosuch')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_await('a', timeout => '1 s', on_timeout => 'nosuch')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('b', 'reserve'), cqrs_await('a', timeout => '1 s', on_timeout => 'b')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_sleep('a', NULL)]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_sleep('a', '-1 s')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_parallel('a', '{}')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_parallel('a', ARRAY[cqrs_sleep('b', '1 s')])]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_parallel('a', ARRAY[cqrs_step('b', 'reserve', pivot => true)])]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_sub_saga('a', NULL)]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', pivot => true), cqrs_step('b', 'charge', compensation => 'refund')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve', pivot => true), cqrs_await('b', timeout => '1 s')]);
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve')], on_topic => 'x');
SELECT cqrs_register_saga('s', ARRAY[cqrs_step('a', 'reserve')], on_event => 'nosuch');
SELECT cqrs_unregister_saga('s');
SELECT cqrs_unregister_saga('s', if_exists => true);

-- registered, again, and otherwise
SELECT cqrs_register_saga('trip', ARRAY[cqrs_step('hotel', 'reserve', compensation => 'cancel'), cqrs_step('money', 'charge', compensation => 'refund')]);
SELECT cqrs_register_saga('trip', ARRAY[cqrs_step('hotel', 'reserve', compensation => 'cancel'), cqrs_step('money', 'charge', compensation => 'refund')]);
SELECT cqrs_register_saga('trip', ARRAY[cqrs_step('hotel', 'reserve')]);
SELECT saga_name, version, steps, on_topic, on_event, starter FROM cqrs_sagas;

-- started
SELECT cqrs_start_saga('nosuch');
SELECT cqrs_start_saga('trip');
SELECT cqrs_create_saga_queue(partitions => 0);
SELECT cqrs_create_saga_queue(), cqrs_create_saga_queue();
SELECT cqrs_start_saga('trip', '[]');
SELECT cqrs_start_saga('trip', unique_key => '');
SELECT cqrs_start_saga('trip', unique_key => repeat('x', 1025));
SELECT started FROM cqrs_start_saga('trip', '{"x": 1}', 'one');
SELECT started FROM cqrs_start_saga('trip', '{"poor": true}', 'two');
SELECT unique_key, status, step_name, state FROM cqrs_saga_status ORDER BY 1;
CREATE FUNCTION drain() RETURNS bigint LANGUAGE sql AS $$
	SELECT cqrs_enqueue_scheduled(); SELECT cqrs_tick();
	SELECT sum(cqrs_drain(subscription)) FROM cqrs.subscription WHERE runs LIKE 'saga%' $$;
SELECT drain();
SELECT unique_key, status, step_name, attempt, error, state FROM cqrs_saga_status ORDER BY 1;
SELECT drain() FROM generate_series(1, 2);
SELECT unique_key, status, step_name, attempt, error, state FROM cqrs_saga_status ORDER BY 1;
SELECT drain();
SELECT unique_key, status, step_name, state FROM cqrs_saga_status ORDER BY 1;
SELECT s.unique_key, h.event, h.step_name, h.status, h.attempt, h.error_sqlstate, h.error, h.state
FROM cqrs_saga_status s, cqrs_saga_history(s.saga_id) WITH ORDINALITY h ORDER BY s.unique_key, h.ordinality;
SELECT what, attempt FROM did ORDER BY id;

-- what is told a saga, and what cannot be
SELECT saga_id AS over FROM cqrs_saga_status WHERE unique_key = 'one' \gset
SELECT cqrs_signal(:'over', 'x'), cqrs_cancel_saga(:'over'), cqrs_retry_saga(:'over', 'money'), cqrs_skip_step(:'over', 'money');
SELECT cqrs_register_saga('waits', ARRAY[cqrs_await('a'), cqrs_sleep('b', '1 day'), cqrs_await('c', timeout => '0 s')]);
SELECT saga_id AS waits FROM cqrs_start_saga('waits') \gset
SELECT cqrs_retry_saga(:'waits', 'nosuch');
SELECT cqrs_skip_step(:'waits', NULL);
SELECT cqrs_signal(:'waits', NULL);
SELECT cqrs_signal(NULL, 'a');
-- what comes early is kept, what nothing waits for is not; the oldest comes first
SELECT cqrs_signal(:'waits', 'c', '1'), cqrs_signal(:'waits', 'nosuch'), cqrs_signal(:'waits', 'a', '[1]'), cqrs_signal(:'waits', 'a', '[2]');
SELECT drain();
SELECT status, step_name, due_at - since_at AS due, state FROM cqrs_saga_status WHERE saga_id = :'waits';
\set VERBOSITY sqlstate
SELECT cqrs_cancel_command(command_id) FROM cqrs.scheduled_command;	-- a saga's time is no command
\set VERBOSITY terse
SELECT cqrs_skip_step(:'waits', 'b');
SELECT drain();
SELECT event, step_name, status, message_name, state FROM cqrs_saga_history(:'waits');
-- of a name, 100 are kept
SELECT saga_id AS many FROM cqrs_start_saga('waits') \gset
SELECT count(cqrs_signal(:'many', 'c', to_jsonb(n))) FROM generate_series(1, 110) n;
SELECT drain();
SELECT count(*), min(state::int), max(state::int) FROM cqrs_saga_history(:'many') WHERE event = 'signal';
SELECT cqrs_cancel_saga(:'many', 'b');
SELECT drain();
SELECT status FROM cqrs_saga_status WHERE saga_id = :'many';
SELECT cqrs_cancel_saga(:'many', 'a');
SELECT drain();
SELECT status FROM cqrs_saga_status WHERE saga_id = :'many';

-- nobody but the delivery runs them
SELECT cqrs.run_saga(NULL), 1;
SELECT cqrs.route_to_sagas(NULL);
SELECT cqrs_emit('trip', '{}', topic => (SELECT topic FROM cqrs.topic WHERE topic LIKE 'sagas%'));
-- nothing else may take their events away
SELECT format('SELECT cqrs_seek(%1$L, ''latest'')', subscription) FROM cqrs.subscription WHERE runs = 'sagas' \gexec
SELECT format('SELECT cqrs_unsubscribe(%1$L)', subscription) FROM cqrs.subscription WHERE runs = 'sagas' \gexec
SELECT format('SELECT cqrs_drop_topic(%1$L, cascade => true)', subscription) FROM cqrs.subscription WHERE runs = 'saga_events' \gexec
SELECT format('SELECT cqrs_alter_subscription(%1$L, ARRAY[%2$L])', s.subscription, r.subscription)
FROM cqrs.subscription s, cqrs.subscription r WHERE s.runs = 'sagas' AND r.runs = 'saga_events' \gexec

SELECT format('SELECT cqrs_alter_subscription(%L, handler => ''reserve'')', subscription) FROM cqrs.subscription WHERE runs = 'sagas' \gexec
-- nor wait for what is in it
SELECT format('SELECT cqrs_register_saga(''s'', ARRAY[cqrs_await(''a'', topic => %L)])', subscription) FROM cqrs.subscription WHERE runs = 'sagas' \gexec
-- nothing happens for now
SELECT cqrs_pause(subscription) FROM cqrs.subscription WHERE runs = 'sagas';
SELECT saga_id AS paused FROM cqrs_start_saga('waits') \gset
SET client_min_messages = notice;
SELECT cqrs_cancel_saga(:'paused');
SET client_min_messages = warning;
SELECT cqrs_resume(subscription) FROM cqrs.subscription WHERE runs = 'sagas';

-- what was lost is woken again: what waits for nothing else, and times
SELECT saga_id AS lost FROM cqrs_start_saga('trip') \gset
SELECT cqrs_start_saga('waits') IS NOT NULL;
ALTER TABLE cqrs.scheduled_command DISABLE TRIGGER refuse_write;
DO $$
DECLARE t text;
BEGIN
	FOR t IN SELECT format('cqrs.topic_%s_%s', topic_id, n) FROM cqrs.topic, generate_series(0, 2) n WHERE topic LIKE 'sagas%' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER refuse_write', t);
		EXECUTE format('DELETE FROM %s', t);
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_write', t);
	END LOOP;
END $$;
ALTER TABLE cqrs.scheduled_command ENABLE ALWAYS TRIGGER refuse_write;
SELECT drain();
SELECT cqrs_resume_sagas();
SELECT drain();
SELECT drain();
SELECT status FROM cqrs_saga_status WHERE saga_id = :'lost';

-- sagas that begin each other, without end
SELECT cqrs_register_saga('ping', ARRAY[cqrs_sub_saga('next', 'pong')]), cqrs_register_saga('pong', ARRAY[cqrs_sub_saga('next', 'ping')]);
SELECT started FROM cqrs_start_saga('ping');
SELECT status, count(*), max(error) AS error FROM cqrs_saga_status WHERE saga_name IN ('ping', 'pong') GROUP BY 1 ORDER BY 1;
SELECT cqrs_unregister_saga('ping'), cqrs_unregister_saga('pong');

-- dropped
SELECT cqrs_drop_saga_queue();
SELECT cqrs_drop_saga_queue(cascade => true);
SELECT cqrs_drop_saga_queue();
SELECT cqrs_drop_saga_queue(if_exists => true);
SELECT count(*) FROM cqrs.saga;
SELECT cqrs_unregister_saga('trip'), cqrs_unregister_saga('trip', true);
SELECT cqrs_create_saga_queue();
SELECT cqrs_start_saga('trip');
SELECT cqrs_start_saga('waits') IS NOT NULL;
BEGIN READ ONLY;
SELECT cqrs_start_saga('waits');
ROLLBACK;
SELECT cqrs_dry_run_saga('nosuch');
SELECT cqrs_diagram('saga', 'nosuch');
SELECT cqrs_diagram('saga');

DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE did;
DROP FUNCTION did, reserve(jsonb), cancel(jsonb), charge(jsonb), refund(jsonb), two(jsonb, jsonb), rows(jsonb), drain;
