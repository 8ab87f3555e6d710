-- Handlers of subscriptions that take the payload: as it is, or converted. A STRICT
-- one gets no tombstones.
CREATE EXTENSION cqrs_outbox;
CREATE TYPE numbered AS (n int);
CREATE TABLE taken (who text, payload text);
CREATE FUNCTION take_jsonb(jsonb) RETURNS void LANGUAGE sql AS $$INSERT INTO public.taken VALUES ('jsonb', $1::text)$$;
CREATE FUNCTION take_composite(numbered) RETURNS void LANGUAGE sql AS $$INSERT INTO public.taken VALUES ('composite', $1.n + 1)$$;
CREATE FUNCTION take_strict(numbered) RETURNS void LANGUAGE plpgsql STRICT AS $$BEGIN INSERT INTO public.taken VALUES ('strict', $1.n); END$$;
SELECT cqrs_register_event('numbered', 'numbers', 'numbered'), cqrs_register_event('lettered', 'numbers');
SELECT cqrs_subscribe('jsonb', ARRAY['numbers'], 'take_jsonb'), cqrs_subscribe('composite', ARRAY['numbers'], 'take_composite'),
	   cqrs_subscribe('strict', ARRAY['numbers'], 'take_strict');
SELECT cqrs_emit('numbered', '{"n": 1}') IS NOT NULL, cqrs_emit('lettered', '{"n": "x"}', 'x') IS NOT NULL,
	   cqrs_emit('lettered', '{"N": 1}', 'x') IS NOT NULL, cqrs_emit('numbered', NULL) IS NOT NULL, cqrs_emit('lettered', '{"n": 2}', 'x') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SET client_min_messages = error;
SELECT cqrs_drain('jsonb'), cqrs_drain('composite'), cqrs_drain('strict');
RESET client_min_messages;
SELECT who, array_agg(payload ORDER BY payload COLLATE "C") FROM taken GROUP BY who ORDER BY who;
-- what does not convert is given up at once; what waits behind it is not
SELECT attempts, sqlstate, message FROM cqrs.dead_letter ORDER BY subscription_id, position;
CREATE TYPE other AS (x int);
CREATE FUNCTION take_other(other) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_alter_subscription('composite', handler => 'take_other');
SELECT cqrs_alter_subscription('composite', handler => 'take_jsonb');
SELECT cqrs_redrive_all('composite');
SELECT cqrs_drain('composite');
SELECT payload FROM taken WHERE who = 'jsonb' ORDER BY payload COLLATE "C";
SELECT cqrs_unsubscribe('jsonb'), cqrs_unsubscribe('composite'), cqrs_unsubscribe('strict');
-- the checks of a domain are the event's fault, too; what is wrong with it is not
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE counted AS (n positive);
CREATE FUNCTION take_counted(counted) RETURNS void LANGUAGE sql AS $$INSERT INTO public.taken VALUES ('counted', $1.n)$$;
SELECT cqrs_subscribe('counted', ARRAY['numbers'], 'take_counted', start => 'latest');
SELECT cqrs_emit('lettered', '{"n": 0}') IS NOT NULL, cqrs_emit('lettered', '{"n": 3}', 'x') IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SET client_min_messages = error;
SELECT cqrs_drain('counted');
RESET client_min_messages;
SELECT attempts, sqlstate, message FROM cqrs.dead_letter;
SELECT payload FROM taken WHERE who = 'counted';
-- it moves its own subscription while it has a payload
CREATE FUNCTION take_and_seek(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.cqrs_unsubscribe('seeks');
	INSERT INTO public.taken VALUES ('seeks', p::text);
END $$;
SELECT cqrs_subscribe('seeks', ARRAY['numbers'], 'take_and_seek', start => 'latest');
SELECT cqrs_emit('lettered', jsonb_build_object('n', repeat('x', 100000))) IS NOT NULL;
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_drain('seeks');
SELECT length(payload) FROM taken WHERE who = 'seeks';
-- either has its place: a name is not enough
CREATE FUNCTION take_any(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION take_any(cqrs_event) RETURNS void LANGUAGE sql AS '';
SELECT cqrs_subscribe('any', ARRAY['numbers'], 'take_any');
SELECT cqrs_subscribe('any', ARRAY['numbers'], 'take_any(cqrs_event)');

\set VERBOSITY terse
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE taken;
DROP FUNCTION take_jsonb, take_composite, take_strict, take_other, take_counted, take_and_seek, take_any(jsonb);
DROP TYPE numbered, other, counted;
DROP DOMAIN positive;
