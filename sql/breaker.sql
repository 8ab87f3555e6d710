-- Circuit breakers: handlers that keep failing are not called for a while.
CREATE EXTENSION cqrs_outbox;
-- counts the handler's calls: a sequence is not rolled back
CREATE SEQUENCE calls;
SELECT nextval('calls');
CREATE FUNCTION flaky(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('calls');
	IF c->>'error' IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = c->>'error', MESSAGE = 'flaky failed';
	END IF;
	RETURN '{"by": "flaky"}';
END $$;
CREATE FUNCTION steady(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT '{"by": "steady"}'::jsonb$$;
SELECT cqrs_register_command('Do', 'flaky(jsonb)');
SELECT cqrs_register_fallback('flaky(jsonb)', 'steady(jsonb)', max_failures => 3, reset_after => '1 hour');
SELECT * FROM cqrs_fallbacks;

-- send with this error, or none: who answers, was the handler called, and how
-- is its breaker afterwards
CREATE FUNCTION send(error text, OUT answer text, OUT called boolean, OUT state text, OUT failures int) LANGUAGE plpgsql AS $$
DECLARE
	before bigint := (SELECT last_value FROM calls);
BEGIN
	BEGIN
		answer := cqrs_send('Do', jsonb_build_object('error', error))->>'by';
	EXCEPTION WHEN OTHERS OR query_canceled THEN
		answer := SQLSTATE;
	END;
	called := before < (SELECT last_value FROM calls);
	SELECT b.state, b.failures INTO state, failures FROM cqrs_breaker_status b WHERE handler LIKE '%flaky%';
END $$;
-- make it anew, with these settings
CREATE FUNCTION renew(sqlstates text[] DEFAULT NULL, excluded_sqlstates text[] DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cqrs_unregister_fallback('flaky(jsonb)');
	PERFORM cqrs_register_fallback('flaky(jsonb)', 'steady(jsonb)', sqlstates, excluded_sqlstates, 3, '1 hour');
END $$;

-- failures in a row count; the third opens it, and then all go to the fallback
SELECT error, s.* FROM unnest(ARRAY['22012', '22012', NULL, '22012', '22012', '22012', '22012', NULL]) error, send(error) s;
SELECT handler, fallback, state, failures, opened_at <= now() AS opened, retry_at - opened_at AS after FROM cqrs_breaker_status;
SELECT severity, problem, object, substring(detail, '^[^;]*'), substring(hint, '^[^;]*') FROM cqrs_health() WHERE problem = 'breaker_open';
-- open, the fallback's error says so
SELECT cqrs_unregister_fallback('flaky(jsonb)');
CREATE FUNCTION fails(c jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / (length(c::text) * 0))';
SELECT cqrs_register_fallback('flaky(jsonb)', 'fails(jsonb)', max_failures => 1, reset_after => '1 hour');
SELECT cqrs_send('Do', '{"error": "P0001"}');
SELECT cqrs_send('Do', '{"error": "P0001"}');
\echo :LAST_ERROR_SQLSTATE

-- registered anew, it is closed
SELECT renew();
SELECT * FROM send('22012');

-- what it counts is not undone by a rollback, and what is done to it by
-- unregistering is
BEGIN;
SELECT * FROM send('22012');
SAVEPOINT s;
SELECT * FROM send('22012');
ROLLBACK TO s;
ROLLBACK;
SELECT * FROM send(NULL);
BEGIN;
SELECT renew();
SELECT * FROM send(NULL);
ROLLBACK;
SELECT * FROM send(NULL);

-- half-open: the next call is the trial. A time that is over at once
UPDATE cqrs.fallback SET reset_after = '0';
SELECT state, failures FROM cqrs_breaker_status;
CREATE TEMP TABLE was AS SELECT opened_at FROM cqrs_breaker_status;
SELECT * FROM send('22012');
SELECT b.opened_at > was.opened_at AS opened_again FROM cqrs_breaker_status b, was;
UPDATE cqrs.fallback SET reset_after = '1 hour';
SELECT * FROM send(NULL);
UPDATE cqrs.fallback SET reset_after = '0';
SELECT * FROM send(NULL);
UPDATE cqrs.fallback SET reset_after = '1 hour';
SELECT error, s.* FROM unnest(ARRAY[NULL, '22012', '22012', '22012']) error, send(error) s;

-- excluded errors count like success; the fallback is called all the same
SELECT renew(excluded_sqlstates => '{P0001,23}');
SELECT error, s.* FROM unnest(ARRAY['22012', '22012', 'P0001', '22012', '22012', '23505', '22012', '22012', '22012']) error, send(error) s;
UPDATE cqrs.fallback SET reset_after = '0';
SELECT * FROM send('P0001');

-- errors that the fallback is not for leave it as it is, the trial too
SELECT renew(sqlstates => '{22}', excluded_sqlstates => '{57}');
SELECT error, s.* FROM unnest(ARRAY['22012', '22012', 'P0001', '57014', '22012', '22012']) error, send(error) s;
UPDATE cqrs.fallback SET reset_after = '0';
SELECT error, s.* FROM unnest(ARRAY['P0001', '57014', '22012', NULL]) error, send(error) s;
-- one that both is excluded and goes to the caller
SELECT renew(sqlstates => '{22}', excluded_sqlstates => '{P0001}');
SELECT error, s.* FROM unnest(ARRAY['22012', '22012', 'P0001', '22012']) error, send(error) s;

-- one trial at a time: what the handler itself sends meanwhile is not
CREATE FUNCTION again(c jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF c ? 'error' THEN
		RAISE 'again failed';
	END IF;
	RETURN jsonb_build_object('again', cqrs_send('Again', c));
END $$;
SELECT cqrs_register_command('Again', 'again(jsonb)');
SELECT cqrs_register_fallback('again(jsonb)', 'steady(jsonb)', max_failures => 1, reset_after => '0');
SELECT cqrs_send('Again', '{"error": 1}');
SELECT cqrs_send('Again');
-- closed, it goes on until it is nested too deeply, which is a failure there
SET cqrs_outbox.max_command_depth = 3;
SELECT cqrs_send('Again');
RESET cqrs_outbox.max_command_depth;
SELECT state, failures FROM cqrs_breaker_status WHERE handler LIKE '%again%';

-- the same for a query, and in a chain, and each by itself
CREATE FUNCTION ask(c jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(1 / (c->>'by')::int)$$;
SELECT cqrs_register_query('Ask', 'ask(jsonb)');
SELECT cqrs_register_chain('Chain', ARRAY['ask(jsonb)', 'steady(jsonb)']);
SELECT cqrs_register_fallback('ask(jsonb)', 'fails(jsonb)', excluded_sqlstates => '{}');
SELECT cqrs_unregister_fallback('ask(jsonb)');
SELECT cqrs_register_fallback('ask(jsonb)', 'steady(jsonb)', max_failures => 2, reset_after => '1 day');
SELECT cqrs_query('Ask', '{"by": 1}');
BEGIN READ ONLY;
SELECT cqrs_query('Ask', '{"by": 0}');
COMMIT;
SELECT cqrs_send('Chain', '{"by": 0}');
SELECT cqrs_query('Ask', '{"by": 1}');
SELECT cqrs_send('Chain', '{"by": 1}');
SELECT substring(handler, '^[^(]*') AS handler, state, failures FROM cqrs_breaker_status ORDER BY 1;
-- 0: no breaker
SELECT cqrs_unregister_fallback('ask(jsonb)');
SELECT cqrs_register_fallback('ask(jsonb)', 'steady(jsonb)', max_failures => 0);
SELECT count(cqrs_query('Ask', '{"by": 0}')) FROM generate_series(1, 10);
SELECT cqrs_query('Ask', '{"by": 1}');
SELECT count(*) FROM cqrs_breaker_status WHERE handler LIKE '%ask%';
SELECT cqrs.breaker_state('no.such(handler)') IS NULL;

-- privileges: anybody sees them
CREATE ROLE regress_cqrs_breaker;
SET ROLE regress_cqrs_breaker;
SELECT state, failures FROM cqrs_breaker_status WHERE handler LIKE '%flaky%';
RESET ROLE;
DROP ROLE regress_cqrs_breaker;

-- registering
SELECT cqrs_register_fallback('steady(jsonb)', 'ask(jsonb)', max_failures => -1);
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_register_fallback('steady(jsonb)', 'ask(jsonb)', reset_after => '-1 ms');
SELECT cqrs_register_fallback('steady(jsonb)', 'ask(jsonb)', excluded_sqlstates => '{220}');
SELECT cqrs_register_fallback('steady(jsonb)', 'ask(jsonb)', excluded_sqlstates => ARRAY[NULL]);

-- more of them than there is room for: closed ones are forgotten first, then the
-- one whose failure is longest ago
CREATE SCHEMA many;
DO $$
BEGIN
	FOR i IN 1..129 LOOP
		EXECUTE format('CREATE FUNCTION many.many_%s(c jsonb) RETURNS jsonb LANGUAGE sql AS ''SELECT to_jsonb(1 / (c->>''''by'''')::int)''', i);
		EXECUTE format('SELECT cqrs_register_command(''Many%1$s'', ''many.many_%1$s(jsonb)''), '
					   'cqrs_register_fallback(''many.many_%1$s(jsonb)'', ''steady(jsonb)'', max_failures => %2$s)', i,
					   CASE i WHEN 2 THEN 2 ELSE 1 END);
	END LOOP;
END $$;
SELECT renew();
SELECT count(cqrs_send('Many' || n, '{"by": 0}')) FROM generate_series(1, 128) n;
CREATE VIEW closed AS
SELECT substring(handler, 'many_(\d+)')::int AS closed, failures FROM cqrs_breaker_status
WHERE handler LIKE '%many%' AND state = 'closed' ORDER BY 1;
SELECT * FROM closed;
SELECT cqrs_send('Many129', '{"by": 0}');
SELECT * FROM closed;
SELECT cqrs_send('Many2', '{"by": 0}');
SELECT * FROM closed;
DROP VIEW closed;

-- an extension made anew counts its ids from the start, and its breakers are closed
CREATE TEMP TABLE id AS SELECT fallback_id FROM cqrs.fallback WHERE handler LIKE '%many_129(%';
\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
CREATE EXTENSION cqrs_outbox;
SELECT setval('cqrs.fallback_id', fallback_id, false) > 0 FROM id;
SELECT cqrs_register_command('Do', 'flaky(jsonb)');
SELECT cqrs_register_fallback('flaky(jsonb)', 'steady(jsonb)', max_failures => 3);
SELECT * FROM send(NULL);

DROP EXTENSION cqrs_outbox CASCADE;
DROP SCHEMA many CASCADE;
DROP FUNCTION flaky, steady, send, renew, fails, again, ask;
DROP SEQUENCE calls;
