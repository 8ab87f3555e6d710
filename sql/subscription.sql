-- Subscriptions: handlers drained by hand, and pull consumers.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_register_event('a', 'topic_a');
SELECT cqrs_register_event('b', 'topic_b');

-- like the model's outbox: add three, read three, mark one, read two
SELECT cqrs_subscribe('reader', ARRAY['topic_a']);
SELECT count(cqrs_emit('a', jsonb_build_object('n', n))) FROM generate_series(1, 3) n;
SELECT count(*) AS before_tick FROM cqrs_receive('reader');
SELECT cqrs_tick() > 0 AS ticked;
SELECT event_name, payload FROM cqrs_events('topic_a');
SELECT payload, attempts FROM cqrs_receive('reader', 1);
BEGIN;
SELECT payload AS again FROM cqrs_receive('reader', 1);
SELECT cqrs_ack('reader');
COMMIT;
SELECT payload FROM cqrs_events('topic_a');
SELECT payload, status FROM cqrs_events('topic_a', status => 'all');
SELECT cqrs_ack('reader');
\echo :LAST_ERROR_SQLSTATE
SELECT payload FROM cqrs_receive('reader');
SELECT lag_events, kind, state, pid FROM cqrs_subscription_status;

-- by position, repeated, wrong
SELECT min(position) AS first, max(position) AS last FROM cqrs_topics.topic_a \gset
SELECT max(receipt::text) AS receipt FROM cqrs_receive('reader') \gset
SELECT cqrs_ack('reader', ARRAY[:last - 1], :'receipt') AS acked;
SELECT cqrs_ack('reader', ARRAY[:last - 1], :'receipt') AS acked_again;
\set VERBOSITY sqlstate
SELECT cqrs_ack('reader', ARRAY[:first], :'receipt') AS acked_long_ago;
\set VERBOSITY terse
SELECT cqrs_ack('reader', ARRAY[9223372036854775807], :'receipt');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
BEGIN;
SELECT payload FROM cqrs_receive('reader');
SELECT cqrs_ack('reader', ARRAY[:last]) AS acked;
COMMIT;
SELECT count(*) FROM cqrs_receive('reader');
SELECT count(*) FROM cqrs_events('topic_a');

-- receive, work and acknowledge in one transaction
SELECT count(cqrs_emit('a', jsonb_build_object('n', n))) FROM generate_series(4, 5) n;
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT payload FROM cqrs_receive('reader');
SELECT cqrs_ack('reader') > 0 AS acked;
SELECT count(*) AS behind FROM cqrs_receive('reader');
ROLLBACK;
BEGIN;
SELECT payload FROM cqrs_receive('reader');
SAVEPOINT s;
SELECT cqrs_ack('reader') > 0 AS acked;
ROLLBACK TO s;
SELECT count(*) AS handed_out FROM cqrs_receive('reader');
SELECT cqrs_ack('reader') > 0 AS acked;
COMMIT;
SELECT count(*) FROM cqrs_receive('reader');

-- one after the other, over several windows
DO $$
BEGIN
	FOR n IN 6 .. 8 LOOP
		PERFORM cqrs_emit('a', jsonb_build_object('n', n));
		COMMIT;
		PERFORM cqrs_tick();
		COMMIT;
	END LOOP;
END $$;
DO $$
DECLARE
	e cqrs_received;
BEGIN
	LOOP
		SELECT * INTO e FROM cqrs_receive('reader', 1);
		EXIT WHEN e.position IS NULL;
		RAISE NOTICE '%', e.payload;
		PERFORM cqrs_ack('reader');
		COMMIT;
	END LOOP;
END $$;

-- a handler for two topics: exactly once, in the transaction that moves the cursor
CREATE TABLE got (n serial, event_name text, key text, payload jsonb);
CREATE FUNCTION on_event(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF event.payload ? 'fail' THEN
		RAISE EXCEPTION 'cannot handle %', event.payload;
	END IF;
	INSERT INTO public.got (event_name, key, payload) VALUES (event.event_name, event.key, event.payload);
END $$;
SELECT cqrs_subscribe('handler', ARRAY['topic_a', 'topic_b', 'topic_a'], 'on_event(cqrs_event)', start => 'latest');
SELECT cqrs_drain('handler');
SELECT cqrs_emit('a', '{"n": 1}', 'k1') IS NOT NULL;
SELECT cqrs_emit('b', '{"n": 2}', 'k2') IS NOT NULL;
SELECT cqrs_emit('a', NULL, 'k1') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT cqrs_drain('handler');
SELECT event_name, key, payload FROM got ORDER BY n;
ROLLBACK;
SELECT cqrs_drain('handler');
SELECT event_name, key, payload FROM got ORDER BY n;
SELECT cqrs_drain('handler');

-- an error is the drainer's, and says where it was
SELECT cqrs_emit('a', '{"fail": true}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SELECT max(position) AS last FROM cqrs_topics.topic_a \gset
\set VERBOSITY terse
SELECT cqrs_drain('handler');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SELECT subscription, lag_events, state FROM cqrs_subscription_status ORDER BY 1;

-- more events than a batch
SELECT cqrs_unsubscribe('handler');
SELECT cqrs_subscribe('handler', ARRAY['topic_b'], 'on_event(cqrs_event)', start => 'latest');
TRUNCATE got;
SELECT cardinality(cqrs_emit_many('b', array_agg(jsonb_build_object('n', n) ORDER BY n))) FROM generate_series(1, 2500) n;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('handler');
SELECT count(*), bool_and((payload->>'n')::int = rank) AS in_order
FROM (SELECT payload, row_number() OVER (ORDER BY n) AS rank FROM got) g;

-- a handler that emits: the follow-ups come with the next tick
CREATE FUNCTION on_chain(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF (event.payload->>'depth')::int > 0 THEN
		PERFORM cqrs_emit('chain', jsonb_build_object('depth', (event.payload->>'depth')::int - 1));
	END IF;
END $$;
SELECT cqrs_register_event('chain', 'chain');
SELECT cqrs_subscribe('chain', ARRAY['chain'], 'on_chain(cqrs_event)');
SELECT cqrs_emit('chain', '{"depth": 2}') IS NOT NULL;
SELECT cqrs_drain('chain');
SELECT cqrs_drain('chain');
SELECT cqrs_drain('chain');
SELECT cqrs_drain('chain');

-- a handler must not drain its own subscription; another's it may
CREATE FUNCTION on_nested(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	PERFORM cqrs_drain(event.payload->>'drain');
END $$;
SELECT cqrs_register_event('nested', 'nested');
SELECT cqrs_subscribe('nested', ARRAY['nested'], 'on_nested(cqrs_event)');
SELECT cqrs_emit('nested', '{"drain": "chain"}') IS NOT NULL;
SELECT cqrs_emit('chain', '{"depth": 0}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('nested');
SELECT lag_events FROM cqrs_subscription_status WHERE subscription = 'chain';
SELECT cqrs_emit('nested', '{"drain": "nested"}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
\set VERBOSITY terse
SELECT cqrs_drain('nested');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_drain('nested');
\set VERBOSITY default

-- a handler that removes its own subscription
CREATE FUNCTION on_last(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	PERFORM cqrs_unsubscribe('once');
END $$;
SELECT cqrs_subscribe('once', ARRAY['topic_a'], 'on_last(cqrs_event)', start => 'latest');
SELECT cqrs_emit('a', '{}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('once');
SELECT count(*) FROM cqrs.cursor c WHERE NOT EXISTS (SELECT FROM cqrs.subscription s WHERE s.subscription_id = c.subscription_id);

-- handlers in SQL and in C: what this one does is send a command, whose handler is in SQL
CREATE TABLE sent (n int, subscription text, context cqrs_context);
CREATE FUNCTION on_sql(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.sent VALUES ((event.payload->>'n')::int, 'sql', cqrs_context())
$$;
CREATE TYPE numbered AS (n int);
CREATE FUNCTION on_c(numbered) RETURNS jsonb LANGUAGE c STRICT AS '$libdir/cqrs_outbox', 'cqrs_send_composite';
CREATE FUNCTION sent_by_c(c numbered) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.sent VALUES (c.n, 'c', cqrs_context())
$$;
SELECT cqrs_register_command('SentByC', 'sent_by_c');
SELECT cqrs_subscribe('sql', ARRAY['topic_a'], 'on_sql(cqrs_event)', start => 'latest'), cqrs_subscribe('c', ARRAY['topic_a'], 'on_c', start => 'latest');
SELECT cardinality(cqrs_emit_many('a', ARRAY['{"n": 1}', '{"n": 2}']::jsonb[]));
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('sql'), cqrs_drain('c');
SELECT n, subscription, (context).kind, (context).name, (context).causation_id IS NOT NULL AS caused FROM sent ORDER BY subscription, n;
SELECT cqrs_unsubscribe('sql'), cqrs_unsubscribe('c');
SELECT cqrs_unregister_command('SentByC');
DROP TABLE sent;
DROP FUNCTION on_sql, on_c, sent_by_c;
DROP TYPE numbered;

-- cursors and ticks are deleted behind
DO $$
BEGIN
	FOR n IN 1 .. 200 LOOP
		PERFORM cqrs_emit('chain', '{"depth": 0}');
		COMMIT;
		PERFORM cqrs_tick();
		COMMIT;
		PERFORM cqrs_drain('chain');
		COMMIT;
	END LOOP;
END $$;
SELECT count(*) < 70 AS few_cursors FROM cqrs.cursor JOIN cqrs.subscription USING (subscription_id) WHERE subscription = 'chain';
SELECT count(*) < 70 AS few_ticks FROM cqrs.tick;

-- subscribing
SELECT cqrs_subscribe('reader', ARRAY['topic_a'], max_attempts => 3);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_subscribe(NULL, ARRAY['topic_a']);
SELECT cqrs_subscribe('', ARRAY['topic_a']);
SELECT cqrs_subscribe(repeat('s', 64), ARRAY['topic_a']);
SELECT cqrs_subscribe('x', NULL);
SELECT cqrs_subscribe('x', '{}');
SELECT cqrs_subscribe('x', ARRAY[NULL]::text[]);
SELECT cqrs_subscribe('x', ARRAY['no such topic']);
SELECT cqrs_subscribe('x', ARRAY['topic_a'], start => 'yesterday');
CREATE FUNCTION on_text(text) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_subscribe('x', ARRAY['topic_a'], 'on_text(text)');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], 'no_such_function(cqrs_event)');
SELECT cqrs_subscribe('a "quoted"; it''s', ARRAY['topic_a']);
SELECT cqrs_unsubscribe('a "quoted"; it''s');
-- NULL is what is not given: as a default, and nothing to be altered
SELECT cqrs_subscribe('x', ARRAY['topic_a'], NULL, start => NULL, partitions => NULL, max_attempts => NULL, retry_delay => NULL,
	max_retry_delay => NULL, delivery_timeout => NULL, max_retained_size => NULL, max_retained_age => NULL, server => NULL,
	format => NULL, strict_key_order => NULL, transaction => NULL);
SELECT subscription, handler, server, format, strict_key_order, transaction, partitions, max_attempts, retry_delay, max_retry_delay,
	   delivery_timeout, max_retained_size, max_retained_age
FROM cqrs.subscription WHERE subscription = 'x' \gx
SELECT cqrs_unsubscribe('x');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], max_attempts => 7);
SELECT cqrs_alter_subscription('x', NULL, max_attempts => NULL, retry_delay => '2 s');
SELECT max_attempts, retry_delay, max_retry_delay FROM cqrs.subscription WHERE subscription = 'x';
-- exactly once is for brokers
SELECT cqrs_alter_subscription('x', delivery => 'exactly_once');
SELECT cqrs_resume('x', sent => 'again');
SELECT cqrs_resume('x', sent => 'perhaps');
SELECT cqrs_unsubscribe('x');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], delivery => 'exactly_once');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], delivery => 'twice');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], on_divergence => 'resend');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], on_divergence => 'hope');
SELECT cqrs_subscribe('x', ARRAY['topic_a'], on_divergence => 'stop');
SELECT cqrs_alter_subscription('x', on_divergence => 'resend');
SELECT cqrs_alter_subscription('x', on_divergence => 'stop');
SELECT on_divergence FROM cqrs_subscriptions WHERE subscription = 'x';
SELECT cqrs_unsubscribe('x');

-- twice is once; something else takes or_replace, and goes on where it is
SELECT cqrs_subscribe('x', ARRAY['topic_b', 'topic_a'], 'on_event(cqrs_event)', start => 'LATEST', max_attempts => 2, retry_delay => '60 s');
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b', 'topic_a'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min'),
	   cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min', or_replace => true);
SET search_path = pg_catalog, public;
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min');
RESET search_path;
CREATE VIEW chosen AS
SELECT handler, partitions, max_attempts, retry_delay, search_path, next_partitions,
	   (SELECT max(seq) FROM cqrs.cursor c WHERE c.subscription_id = s.subscription_id) AS cursor
FROM cqrs.subscription s WHERE subscription = 'x';
SELECT * FROM chosen;
\set VERBOSITY default
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)');
\set VERBOSITY terse
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min', search_path => 'nowhere');
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min', partitions => 2);
SELECT cqrs_subscribe('x', ARRAY['topic_a'], 'on_event(cqrs_event)', max_attempts => 2, retry_delay => '1 min');
SELECT * FROM chosen;
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_last(cqrs_event)', retry_delay => '5 s', start => 'earliest', partitions => 2,
	search_path => 'nowhere', or_replace => true);
SELECT * FROM chosen;
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], 'on_event(cqrs_event)', or_replace => true);
SELECT * FROM chosen;
-- what it is not to become
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], or_replace => true);
CREATE ROLE regress_cqrs_other LOGIN;
CREATE ROLE regress_cqrs_member LOGIN IN ROLE regress_cqrs_other;
GRANT SELECT ON cqrs_topics.topic_a, cqrs_topics.topic_b TO regress_cqrs_other;
GRANT EXECUTE ON FUNCTION cqrs_subscribe, cqrs_unsubscribe TO regress_cqrs_other;
SET ROLE regress_cqrs_other;
SELECT cqrs_subscribe('x', ARRAY['topic_a', 'topic_b'], or_replace => true);
SELECT cqrs_unsubscribe('x', if_exists => true);
SELECT cqrs_subscribe('theirs', ARRAY['topic_a']);
-- a member may ask for the same, but not own what it replaces
SET ROLE regress_cqrs_member;
SELECT cqrs_subscribe('theirs', ARRAY['topic_a']);
SELECT cqrs_subscribe('theirs', ARRAY['topic_a'], max_attempts => 1, or_replace => true);
SELECT cqrs_unsubscribe('theirs');
RESET ROLE;
SELECT cqrs_unsubscribe('x'), cqrs_unsubscribe('x', if_exists => true);
SELECT cqrs_unsubscribe('x', if_exists => NULL);
\set VERBOSITY default
DROP VIEW chosen;
DROP OWNED BY regress_cqrs_other, regress_cqrs_member;
DROP ROLE regress_cqrs_other, regress_cqrs_member;
-- the wrong kind, and what does not exist
SELECT cqrs_receive('no such subscription');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_ack('no such subscription');
SELECT cqrs_drain('no such subscription');
SELECT cqrs_unsubscribe('no such subscription');
SELECT cqrs_receive(NULL);
SELECT cqrs_receive('handler');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_ack('handler');
SELECT cqrs_drain('reader');
SELECT cqrs_receive('reader', 0);
SELECT cqrs_receive('reader', wait => '-1 s');
SELECT cqrs_receive('reader', wait => '2 min');
SELECT cqrs_receive('reader', lease => '0');
SELECT cqrs_events(max_events => 0);
SELECT cqrs_events(status => 'done');
SELECT cqrs_events('no such topic');
BEGIN READ ONLY;
SELECT cqrs_receive('reader');
ROLLBACK;
BEGIN;
SELECT cqrs_tick();
ROLLBACK;
\echo :LAST_ERROR_SQLSTATE

-- a handler that is dropped
DROP FUNCTION on_event(cqrs_event);
SELECT cqrs_emit('b', '{}') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
\set VERBOSITY terse
SELECT cqrs_drain('handler');
\echo :LAST_ERROR_SQLSTATE

-- a topic that is dropped leaves its subscriptions
SELECT cqrs_drop_topic('topic_a', cascade => true);
SELECT count(*) FROM cqrs_receive('reader');
SELECT subscription, topics, lag_events FROM cqrs_subscription_status WHERE subscription = 'reader';

DROP TABLE got;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION on_text;
