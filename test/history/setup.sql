-- What the history checker runs on: tables of what was emitted and of what
-- arrived, functions that emit and consume, and the subscriptions.
--
-- An emitter writes into "truth" what it emits, in the same transaction. So
-- what "truth" holds in the end is what happened, whatever became of a commit
-- that was never answered. Each event carries a tag, which "truth" has too. One
-- with a key also carries a number, counted up in a row that stays locked until
-- the end of the transaction: of two events of one topic and key, the one with
-- the higher number was emitted after the other's commit, and no number is
-- missing.

CREATE EXTENSION cqrs_outbox;
CREATE EXTENSION cqrs_outbox_example;
SELECT cqrs_create_topic('orders', '0'), cqrs_create_topic('payments', '0'), cqrs_create_topic('replayed', '1 day');
SELECT cqrs_register_event('happened', 'orders');

CREATE TABLE truth (tag uuid PRIMARY KEY, event_id uuid, topic text, key text, n bigint,
	xid xid8 DEFAULT pg_current_xact_id(), pid int DEFAULT pg_backend_pid(),
	client text DEFAULT current_setting('application_name'), at timestamptz DEFAULT clock_timestamp());

-- seq is in the order of arrival; epoch counts a subscription's seeks.
CREATE TABLE arrived (seq bigserial, subscription text, tag uuid, event_id uuid, topic text, key text, n bigint,
	epoch int, xid xid8 DEFAULT pg_current_xact_id(), pid int DEFAULT pg_backend_pid(),
	at timestamptz DEFAULT clock_timestamp());
CREATE TABLE epoch (subscription text, epoch int, target text, at timestamptz DEFAULT clock_timestamp(),
	PRIMARY KEY (subscription, epoch));

-- Batches that clients wrote into files: here, if they are acknowledged.
CREATE TABLE batch (seq bigserial, id text PRIMARY KEY);

-- Subscriptions that come and go: the highest numbers when they came, and when
-- they were to have got everything.
CREATE TABLE lifetime (subscription text, ended boolean, topic text, key text, n bigint);

-- How often what happened.
CREATE TABLE done (what text);

CREATE TABLE counter (topic text, key text, n bigint DEFAULT 0, PRIMARY KEY (topic, key));
INSERT INTO counter
SELECT topic, key
FROM unnest(ARRAY['orders', 'payments', 'replayed', 'commands']) topic,
	 (SELECT 'k' || k FROM generate_series(1, 6) k
	  UNION ALL SELECT 'late' || k FROM generate_series(1, 2) k
	  UNION ALL SELECT 'prepared' || k FROM generate_series(1, 20) k) keys (key);

CREATE FUNCTION count_up(counted_topic text, counted text, OUT n bigint) LANGUAGE sql AS $$
	UPDATE counter SET n = counter.n + 1 WHERE topic = counted_topic AND key = counted RETURNING counter.n
$$;

-- ----------------------------------------------------------------------
-- Emitters
-- ----------------------------------------------------------------------

CREATE FUNCTION emit(topic text, key text) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
DECLARE
	tag uuid := gen_random_uuid();
	n bigint := count_up(topic, key);
BEGIN
	INSERT INTO truth
	VALUES (tag, cqrs_emit('happened', jsonb_build_object('tag', tag, 'n', n), key => key, topic => topic), topic, key, n);
END $$;

-- One with a key, one with the other, one without, and so on.
CREATE FUNCTION emit_many(events int, key text, other_key text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k text;
	n bigint;
	tag uuid;
	payloads jsonb[];
	keys text[];
BEGIN
	FOR i IN 0 .. events - 1 LOOP
		k := (ARRAY[key, other_key, NULL])[1 + i % 3];
		n := count_up('orders', k);
		tag := gen_random_uuid();
		INSERT INTO truth VALUES (tag, NULL, 'orders', k, n);
		keys[i] := k;
		payloads[i] := jsonb_build_object('tag', tag, 'n', n);
	END LOOP;
	PERFORM cqrs_emit_many('happened', payloads, keys);
END $$;

-- In subtransactions, one inside the other: half of the outer ones, and all of
-- the inner, are rolled back.
CREATE FUNCTION emit_nested(events int, topic text, key text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. events LOOP
		BEGIN
			PERFORM emit(topic, key);
			BEGIN
				PERFORM emit(topic, key);
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
			END;
			IF i % 2 = 0 THEN
				RAISE no_data_found;
			END IF;
		EXCEPTION WHEN no_data_found THEN
		END;
	END LOOP;
END $$;

-- With a key that no prepared transaction holds.
CREATE FUNCTION emit_free(emitted_topic text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	free text;
BEGIN
	SELECT key INTO STRICT free FROM counter WHERE topic = emitted_topic AND key LIKE 'prepared%'
	ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
	PERFORM emit(emitted_topic, free);
END $$;

-- A command, now or later. Later ones have no order.
CREATE FUNCTION enqueue(key text, delay interval DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	tag uuid := gen_random_uuid();
	n bigint := CASE WHEN delay IS NULL THEN count_up('commands', key) END;
	payload jsonb := jsonb_build_object('tag', tag, 'n', n, 'key', key);
BEGIN
	IF delay IS NULL THEN
		INSERT INTO truth VALUES (tag, cqrs_enqueue('Note', payload, key => key), 'commands', key, n);
	ELSE
		INSERT INTO truth VALUES (tag, cqrs_enqueue('Note', payload, run_at => clock_timestamp() + delay), 'commands', key, n);
	END IF;
END $$;

CREATE FUNCTION place(command jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$
	SELECT emit(command->>'topic', command->>'key')
$$;
SELECT cqrs_register_command('Place', 'place(jsonb)');

-- ----------------------------------------------------------------------
-- Consumers
-- ----------------------------------------------------------------------

CREATE FUNCTION arrive(consumer text, event_id uuid, topic text, key text, payload jsonb) RETURNS void
LANGUAGE sql SET search_path = public AS $$
	INSERT INTO arrived (subscription, tag, event_id, topic, key, n, epoch)
	VALUES (consumer, (payload->>'tag')::uuid, event_id, topic, key, (payload->>'n')::bigint,
			(SELECT max(e.epoch) FROM epoch e WHERE e.subscription = consumer))
$$;

CREATE FUNCTION note(command jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$
	SELECT arrive('commands', (SELECT event_id FROM truth WHERE tag = (command->>'tag')::uuid), 'commands', command->>'key', command)
$$;
SELECT cqrs_register_command('Note', 'note(jsonb)');
SELECT cqrs_create_command_queue();

-- One event in 32 fails at its first attempt; one in 43 always, until cured.
CREATE TABLE cure (done boolean);
CREATE FUNCTION fails_first(payload jsonb) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT payload->>'tag' < '08' $$;
CREATE FUNCTION is_poison(tag uuid) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT tag >= 'fa000000-0000-0000-0000-000000000000' $$;

-- Whether a client gives up on the event. Volatile, to see what was committed
-- while cqrs_receive() waited.
CREATE FUNCTION gives_up(subscription text, payload jsonb) RETURNS boolean VOLATILE LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	RETURN subscription IN ('puller', 'sharers', 'leased') AND is_poison((payload->>'tag')::uuid) AND NOT EXISTS (SELECT FROM cure);
END $$;

CREATE FUNCTION fail_perhaps(consumer text, payload jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF consumer IN ('flaky', 'spread', 'single') AND fails_first(payload) AND (cqrs_context()).attempts = 1 THEN
		RAISE EXCEPTION 'not at the first attempt';
	ELSIF consumer = 'poisoned' AND is_poison((payload->>'tag')::uuid) AND NOT EXISTS (SELECT FROM cure) THEN
		RAISE EXCEPTION 'poison';
	END IF;
END $$;

-- Some are slow, so that something happens in the middle of their windows.
CREATE FUNCTION take_time(consumer text) RETURNS void LANGUAGE sql AS $$
	SELECT pg_catalog.pg_sleep(random() * 0.06)
	WHERE consumer LIKE 'passing%' AND random() < 0.5 OR consumer = 'replayer' AND random() < 0.05
$$;

-- handle(CONSUMER): makes its handler. Returns what to register.
CREATE FUNCTION handle(consumer text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE OR REPLACE FUNCTION on_%1$s(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $f$
		BEGIN
			PERFORM arrive(%1$L, event.event_id, event.topic, event.key, event.payload);
			PERFORM fail_perhaps(%1$L, event.payload);
			PERFORM take_time(%1$L);
		END $f$', consumer);
	RETURN format('on_%s(cqrs_event)', consumer);
END $$;

-- Receive so many batches, and work on so many of their events. One that fails
-- is refused, poison for good. What of its key comes behind it, or behind what
-- was not worked on, is left: so holes are acknowledged around.
CREATE FUNCTION pull(subscription text, batch_size int, worked_on int, batches int DEFAULT 1) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	event record;
	done bigint[] := '{}';
	refused bigint[] := '{}';
	given_up bigint[] := '{}';
	left_lanes text[] := '{}';
	left_any boolean := false;
BEGIN
	FOR i IN 1 .. batches LOOP
		FOR event IN SELECT *, topic || ' ' || key AS lane FROM cqrs_receive(subscription, batch_size, wait => CASE WHEN random() < 0.2 THEN interval '20 ms' END) LOOP
			IF event.lane = ANY (left_lanes) OR cardinality(done) >= worked_on THEN
				left_any := true;
			ELSIF gives_up(subscription, event.payload) THEN
				given_up := given_up || event.position;
				CONTINUE;
			ELSIF fails_first(event.payload) AND event.attempts = 1 THEN
				refused := refused || event.position;
			ELSE
				PERFORM arrive(subscription, event.event_id, event.topic, event.key, event.payload);
				done := done || event.position;
				CONTINUE;
			END IF;
			left_lanes := left_lanes || coalesce(event.lane, '');
		END LOOP;
	END LOOP;
	PERFORM cqrs_nack(subscription, refused, 'not at the first attempt', retry_after => '20 ms') WHERE refused <> '{}';
	PERFORM cqrs_nack(subscription, given_up, 'poison', give_up => true) WHERE given_up <> '{}';
	IF left_any OR random() < 0.5 THEN
		PERFORM cqrs_ack(subscription, done) WHERE done <> '{}';
	ELSE
		PERFORM cqrs_ack(subscription);
	END IF;
END $$;

-- ----------------------------------------------------------------------
-- Sagas
-- ----------------------------------------------------------------------

-- What was started, in the transaction that did, and what the steps did, in theirs.
CREATE TABLE saga_truth (saga uuid PRIMARY KEY, saga_name text, key text);
CREATE TABLE saga_did (seq bigserial, saga uuid, what text, undoes boolean, branch boolean, xid xid8 DEFAULT pg_current_xact_id(),
	pid int DEFAULT pg_backend_pid(), at timestamptz DEFAULT clock_timestamp());

-- Some fail at their first attempt, and one in 16 always. What undoes does not for ever.
CREATE FUNCTION saga_act(what text, undoes boolean) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
DECLARE
	saga uuid := (cqrs_context()).id;
	dice text := substr(md5(saga || what || undoes), 1, 1);
BEGIN
	INSERT INTO saga_did (saga, what, undoes, branch) VALUES (saga, what, undoes, what IN ('one', 'two'));
	IF dice = '0' AND NOT undoes THEN
		RAISE 'never' USING errcode = 'ZZ001';
	ELSIF dice < '4' AND (cqrs_context()).attempts = 1 THEN
		RAISE 'not at the first attempt';
	ELSIF dice = '4' THEN
		PERFORM pg_sleep(random() * 0.02);
	ELSIF dice = '5' THEN
		PERFORM emit('orders', NULL);
	END IF;
	RETURN jsonb_build_object('last', what);
END $$;
SELECT format('CREATE FUNCTION do_%1$s(jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $f$ SELECT saga_act(%1$L, false) $f$;
	CREATE FUNCTION undo_%1$s(jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $f$ SELECT saga_act(%1$L, true) $f$', what)
FROM unnest(ARRAY['first', 'second', 'third', 'one', 'two']) what \gexec
CREATE FUNCTION saga_step(what text) RETURNS cqrs_saga_step LANGUAGE sql AS $$
	SELECT cqrs_step(what, 'do_' || what, compensation => 'undo_' || what, max_attempts => 0, retry_delay => '20 ms', max_retry_delay => '100 ms',
		final_sqlstates => ARRAY['ZZ001'])
$$;
SELECT cqrs_create_saga_queue();
SELECT cqrs_register_event('settled', 'settlements');
SELECT cqrs_register_saga('trip', ARRAY[saga_step('first'), saga_step('second'), saga_step('third')]),
	   cqrs_register_saga('nap', ARRAY[saga_step('first'), cqrs_sleep('night', '50 ms'), saga_step('second')]),
	   cqrs_register_saga('signalled', ARRAY[saga_step('first'), cqrs_await('go', timeout => '500 ms'), saga_step('second')]),
	   cqrs_register_saga('bought', ARRAY[saga_step('first'), cqrs_await('paid', event_name => 'settled', timeout => '1 s'), saga_step('second')]),
	   cqrs_register_saga('both', ARRAY[saga_step('first'), cqrs_parallel('both', ARRAY[saga_step('one'), saga_step('two')]), saga_step('third')]),
	   cqrs_register_saga('outer', ARRAY[saga_step('first'), cqrs_sub_saga('inner', 'trip'), saga_step('third')]);

-- Sagas within others are started by their steps.
CREATE FUNCTION start_saga(saga_name text, key text DEFAULT NULL) RETURNS uuid LANGUAGE sql AS $$
	INSERT INTO saga_truth SELECT saga_id, start_saga.saga_name, start_saga.key FROM cqrs_start_saga(start_saga.saga_name, unique_key => start_saga.key)
	WHERE started RETURNING saga
$$;

-- ----------------------------------------------------------------------
-- Movers
-- ----------------------------------------------------------------------

-- A seek begins an epoch. Whoever delivers has the cursor's lock, and so is
-- in the one or in the other.
CREATE FUNCTION seek(sought text, goal text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_seek(sought, goal);
	INSERT INTO epoch SELECT sought, max(epoch) + 1, goal FROM epoch WHERE subscription = sought;
	INSERT INTO done VALUES ('seek');
END $$;

-- Of our own code only: SQL's clock goes on.
CREATE FUNCTION set_clock(ahead bigint, passed bigint) RETURNS void LANGUAGE c AS 'cqrs_outbox', 'cqrs_debug_clock';

-- What is to wake sagas later is thrown away; then somebody has them go on.
CREATE FUNCTION lose_and_resume() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM cqrs.scheduled_command USING cqrs.topic t WHERE t.topic_id = scheduled_command.topic_id AND t.topic ~ '^saga';
	RETURN cqrs_resume_sagas();
END $$;

CREATE FUNCTION record_lifetime(subscription text, ended boolean) RETURNS void LANGUAGE sql AS $$
	INSERT INTO lifetime SELECT subscription, ended, topic, key, n FROM counter WHERE topic = 'orders'
$$;

-- ----------------------------------------------------------------------
-- Subscriptions
-- ----------------------------------------------------------------------

SELECT cqrs_subscribe(s, ARRAY['orders', 'payments'], handle(s))
FROM unnest(ARRAY['recorder', 'paused', 'drained']) s;
SELECT cqrs_subscribe('single', ARRAY['orders', 'payments'], handle('single'), max_attempts => 5, retry_delay => '20 ms', transaction => 'event'),
	   cqrs_subscribe('flaky', ARRAY['orders', 'payments'], handle('flaky'), max_attempts => 5, retry_delay => '20 ms'),
	   cqrs_subscribe('spread', ARRAY['orders', 'payments'], handle('spread'), partitions => 3, max_attempts => 5, retry_delay => '20 ms'),
	   cqrs_subscribe('poisoned', ARRAY['orders', 'payments'], handle('poisoned'), max_attempts => 2, retry_delay => '20 ms');
SELECT cqrs_subscribe(s, ARRAY['orders', 'payments'], max_attempts => 0) FROM unnest(ARRAY['puller', 'filed']) s;
SELECT cqrs_subscribe('sharers', ARRAY['orders', 'payments'], partitions => 2, max_attempts => 0);
SELECT cqrs_subscribe('leased', ARRAY['orders', 'payments'], partitions => 2, max_attempts => 0, retry_delay => '20 ms', max_retry_delay => '100 ms');

-- What is sought has a topic of its own, which is made anew for each round.
CREATE FUNCTION begin_round() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE truth, arrived, epoch, batch, lifetime, cure;
	UPDATE counter SET n = 0;
	IF EXISTS (SELECT FROM cqrs_subscription_status WHERE subscription = 'replayer') THEN
		PERFORM cqrs_unsubscribe('replayer'), cqrs_unsubscribe('replay_puller');
		PERFORM cqrs_drop_topic('replayed', true);
		PERFORM cqrs_create_topic('replayed', '1 day');
	END IF;
	INSERT INTO epoch VALUES ('replayer', 0, 'earliest'), ('replay_puller', 0, 'earliest');
	PERFORM cqrs_subscribe('replayer', ARRAY['replayed'], handle('replayer'));
	PERFORM cqrs_subscribe('replay_puller', ARRAY['replayed'], max_attempts => 0);
END $$;
SELECT begin_round();
