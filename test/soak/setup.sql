-- What the soak runs on: a subscription of every kind, and functions that the
-- load, load_*.sql, calls. Nothing of its own grows: accounts are updated, and
-- "delivered" is emptied by whoever looks how long deliveries took.

CREATE EXTENSION cqrs_outbox;
CREATE ROLE app LOGIN;
SELECT cqrs_create_topic('orders', '0'), cqrs_create_topic('payments', '0');
SELECT cqrs_register_event('placed', 'orders'), cqrs_register_event('paid', 'payments');

CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
INSERT INTO account SELECT generate_series(1, 200);
CREATE TABLE delivered (consumer text, ms float8);
GRANT INSERT ON delivered TO app;

-- ----------------------------------------------------------------------
-- Commands and queries
-- ----------------------------------------------------------------------

CREATE TYPE "order" AS (account int, amount int);

CREATE FUNCTION place(command "order") RETURNS bigint LANGUAGE plpgsql SET search_path = public AS $$
DECLARE
	result bigint;
BEGIN
	UPDATE account SET balance = balance + command.amount WHERE id = command.account RETURNING balance INTO STRICT result;
	PERFORM cqrs_emit('placed', to_jsonb(command), key => command.account::text);
	RETURN result;
END $$;

CREATE FUNCTION settle(command jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	IF random() < 0.02 THEN
		RAISE EXCEPTION 'cannot settle now';
	END IF;
	INSERT INTO delivered
	VALUES ('commands', extract(epoch FROM clock_timestamp() - (command->>'due')::timestamptz) * 1000);
END $$;

CREATE FUNCTION balance(query jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $$
	SELECT to_jsonb(a) FROM account a WHERE id = (query->>'account')::int
$$;

CREATE FUNCTION balances(query jsonb) RETURNS SETOF jsonb LANGUAGE sql SET search_path = public AS $$
	SELECT to_jsonb(a) FROM account a ORDER BY id LIMIT 20
$$;

CREATE FUNCTION quote(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF random() < 0.3 THEN
		RAISE EXCEPTION 'no quote';
	END IF;
	RETURN command;
END $$;

CREATE FUNCTION quote_later(command jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION around(request cqrs_request) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS 'BEGIN RETURN cqrs_proceed(); END';
CREATE FUNCTION on_placed(event jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS 'BEGIN PERFORM cqrs_context(); END';

SELECT cqrs_register_command('Place', 'place("order")'), cqrs_register_command('Settle', 'settle(jsonb)'),
	   cqrs_register_command('Quote', 'quote(jsonb)'), cqrs_register_command('Balances', 'balances(jsonb)');
SELECT cqrs_register_query('Balance', 'balance(jsonb)');
SELECT cqrs_register_fallback('quote(jsonb)', 'quote_later(jsonb)');
SELECT cqrs_register_middleware('around(cqrs_request)');
SELECT cqrs_register_event_handler('placed', 'on_placed(jsonb)');

-- ----------------------------------------------------------------------
-- Subscriptions
-- ----------------------------------------------------------------------

-- What came at the first attempt tells how long deliveries take.
CREATE FUNCTION note(consumer text, attempts int, emitted_at timestamptz) RETURNS void LANGUAGE sql SET search_path = public AS $$
	INSERT INTO delivered
	SELECT consumer, extract(epoch FROM clock_timestamp() - emitted_at) * 1000 WHERE attempts < 2
$$;

-- handle(CONSUMER, FAILS): makes its handler. Returns what to register.
CREATE FUNCTION handle(consumer text, fails float8) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION on_%1$s(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $f$
		BEGIN
			IF random() < %2$s THEN
				RAISE EXCEPTION ''not now'';
			END IF;
			PERFORM note(%1$L, (public.cqrs_context()).attempts, event.emitted_at);
		END $f$', consumer, fails);
	RETURN format('on_%s(cqrs_event)', consumer);
END $$;

SELECT cqrs_subscribe('recorder', ARRAY['orders', 'payments'], handle('recorder', 0)),
	   cqrs_subscribe('single', ARRAY['orders'], handle('single', 0), transaction => 'event'),
	   cqrs_subscribe('spread', ARRAY['orders', 'payments'], handle('spread', 0.002), partitions => 2, max_attempts => 5, retry_delay => '50 ms'),
	   cqrs_subscribe('flaky', ARRAY['orders', 'payments'], handle('flaky', 0.03), retry_delay => '50 ms', max_attempts => 2),
	   cqrs_subscribe('puller', ARRAY['orders', 'payments'], max_attempts => 5, retry_delay => '50 ms'),
	   cqrs_subscribe('sharers', ARRAY['payments'], partitions => 2);

-- Their topics keep nothing.
SELECT cqrs_create_command_queue(), cqrs_create_command_queue('app');
SELECT cqrs_alter_topic(topic, '0') FROM cqrs.topic WHERE topic LIKE 'commands\_of\_%';

-- What a client does with a lease: receives and commits, works, and settles.
CREATE PROCEDURE pull(consumer text) LANGUAGE plpgsql AS $$
DECLARE
	batch cqrs_received[] := ARRAY(SELECT r FROM cqrs_receive(consumer, 200, lease => '1 min') r);
	refused bigint[];
BEGIN
	COMMIT;
	IF batch = '{}' THEN
		RETURN;
	END IF;
	refused := ARRAY(SELECT position FROM unnest(batch) WHERE consumer = 'puller' AND random() < 0.02);
	PERFORM cqrs_nack(consumer, refused, 'not now', receipt => batch[1].receipt);
	PERFORM cqrs_ack(consumer, ARRAY(SELECT position FROM unnest(batch) WHERE position <> ALL (refused)), batch[1].receipt);
	PERFORM note(consumer, attempts, emitted_at) FROM unnest(batch);
END $$;

-- ----------------------------------------------------------------------
-- Looking
-- ----------------------------------------------------------------------

-- What there is of each of our tables, a topic's together. Those of topics that
-- come and go are one.
CREATE VIEW looked_at AS
SELECT coalesce('topic ' || t.topic, CASE WHEN c.relname ~ '^topic_' THEN 'topics that go' END, c.relname) AS name,
	   sum(pg_total_relation_size(c.oid)) AS bytes, sum(pg_stat_get_dead_tuples(c.oid)) AS dead
FROM pg_class c LEFT JOIN cqrs.topic t ON c.relname ~ ('^topic_' || t.topic_id || '_[0-9]$') AND t.topic <> 'passing'
WHERE c.relnamespace = 'cqrs'::regnamespace AND c.relkind = 'r'
GROUP BY 1;
