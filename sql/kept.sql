-- What a session keeps of a window between batches is not believed: topics go,
-- rows are vacuumed and their places taken, cursors are moved
CREATE EXTENSION cqrs_outbox;
CREATE FUNCTION emit_kept(event_name text, VARIADIC n integer[]) RETURNS void LANGUAGE sql AS $$
	SELECT cqrs_emit(event_name, jsonb_build_object('n', i), key => i::text) FROM unnest(n) i $$;
CREATE TABLE got_kept (seq serial, what text);

-- a topic goes, without or with events of the window, with what is kept of
-- three, and of two
SELECT cqrs_register_event('a', 'ta'), cqrs_register_event('b', 'tb'), cqrs_register_event('c', 'tc'), cqrs_register_event('d', 'td');
SELECT cqrs_subscribe('pull', ARRAY['ta', 'tb', 'tc', 'td']);
SELECT emit_kept('b', 1), emit_kept('c', 2), emit_kept('b', 3), emit_kept('d', 4), emit_kept('c', 5), emit_kept('b', 6), emit_kept('c', 7), emit_kept('b', 8), emit_kept('b', 9);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT event_name, payload FROM cqrs_receive('pull', 2);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT cqrs_drop_topic('ta', true);
BEGIN;
SELECT event_name, payload FROM cqrs_receive('pull', 3);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT cqrs_drop_topic('tc', true);
BEGIN;
SELECT event_name, payload FROM cqrs_receive('pull', 2);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT cqrs_drop_topic('td', true);
BEGIN;
SELECT event_name, payload FROM cqrs_receive('pull', 10);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT cqrs_unsubscribe('pull');

-- a topic goes while a batch runs, by its handler; of three, and of two
CREATE FUNCTION drop_one(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.got_kept (what) VALUES (event.event_name || (event.payload->>'n'));
	IF (event.payload->>'n')::integer = 500 THEN
		PERFORM public.cqrs_drop_topic('ta', true);
	END IF;
END $$;
SELECT cqrs_register_event('a', 'ta'), cqrs_register_event('c', 'tc');
SELECT cqrs_subscribe('three', ARRAY['ta', 'tb', 'tc'], 'drop_one(cqrs_event)', start => 'latest');
SELECT count(CASE WHEN i % 2 = 0 THEN emit_kept('b', i) ELSE emit_kept('c', i) END) FROM generate_series(1, 1500) i;
SELECT cqrs_drain('three');
SELECT count(DISTINCT what), min(seq), max(seq) FROM got_kept;
SELECT cqrs_unsubscribe('three');
TRUNCATE got_kept RESTART IDENTITY;
SELECT cqrs_register_event('a', 'ta');
SELECT cqrs_subscribe('two', ARRAY['ta', 'tb'], 'drop_one(cqrs_event)', start => 'latest');
SELECT count(emit_kept('b', i)) FROM generate_series(1, 1500) i;
SELECT cqrs_drain('two');
SELECT count(DISTINCT what), min(seq), max(seq) FROM got_kept;
SELECT cqrs_unsubscribe('two');

-- another event takes the place of one that was rolled back
SELECT cqrs_register_event('e', 'te');
SELECT cqrs_subscribe('pull', ARRAY['te']);
BEGIN;
SELECT emit_kept('e', 1, 2, 3);
SAVEPOINT before;
SELECT count(emit_kept('e', i)) FROM generate_series(1001, 1040) i;
ROLLBACK TO before;
SELECT emit_kept('e', 4, 5, 6);
COMMIT;
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT payload FROM cqrs_receive('pull', 2);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT format('VACUUM cqrs.topic_%s_0', topic_id) FROM cqrs.topic WHERE topic = 'te' \gexec
SELECT emit_kept('e', 100);
SELECT format('cqrs.topic_%s_0', topic_id) AS segment FROM cqrs.topic WHERE topic = 'te' \gset
SELECT ctid < (SELECT max(ctid) FROM :segment) AS took_a_place FROM :segment WHERE payload->>'n' = '100';
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT payload FROM cqrs_receive('pull', 2);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
BEGIN;
SELECT payload FROM cqrs_receive('pull', 100);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
BEGIN;
SELECT payload FROM cqrs_receive('pull', 100);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
-- a cursor is moved back: what is kept ends where the new window does, too, but
-- begins later
SELECT cqrs_unsubscribe('pull');
SELECT cqrs_register_event('f', 'tf');
SELECT cqrs_subscribe('pull', ARRAY['tf']);
SELECT emit_kept('f', 1, 2, 3);
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT count(*) FROM cqrs_receive('pull', 10);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
SELECT emit_kept('f', 4, 5);
SELECT cqrs_tick() > 0 AS ticked;
SELECT payload FROM cqrs_receive('pull', 1);
SELECT cqrs_seek('pull', 'earliest');
BEGIN;
SELECT payload FROM cqrs_receive('pull', 2);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;
BEGIN;
SELECT payload FROM cqrs_receive('pull', 10);
SELECT cqrs_ack('pull') IS NOT NULL AS acknowledged;
COMMIT;

-- also if nothing was read of what is kept, but an event that had failed
SELECT cqrs_subscribe('again', ARRAY['tf'], start => 'latest');
SELECT emit_kept('f', 6, 7);
SELECT cqrs_tick() > 0 AS ticked;
SELECT cqrs_nack('again', ARRAY[min(position)], 'no', '1 hour') FROM cqrs_receive('again', 10);
BEGIN;
SELECT payload FROM cqrs_receive('again', 10);
SELECT cqrs_ack('again') IS NOT NULL AS acknowledged;
COMMIT;
SELECT emit_kept('f', 8);
SELECT cqrs_tick() > 0 AS ticked;
UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now();
UPDATE cqrs.retry SET retry_at = now(), due_at = now();
SELECT payload FROM cqrs_receive('again', 1);
SELECT cqrs_seek('again', 'earliest');
BEGIN;
SELECT payload FROM cqrs_receive('again', 10);
SELECT cqrs_ack('again') IS NOT NULL AS acknowledged;
COMMIT;
SELECT payload FROM cqrs_receive('again', 10);
SELECT cqrs_unsubscribe('again');

-- to a time: what was emitted before does not come, though the newest tick is
-- older than the place
SELECT cqrs_subscribe('timely', ARRAY['tf'], start => 'earliest');
SELECT setval('cqrs.tick_id', 10000);
SELECT cqrs_tick() > 10000 AS ticked;
SELECT emit_kept('f', 9);
SELECT cqrs_seek('timely', now() + '1 day');
SELECT payload FROM cqrs_receive('timely', 10);
SELECT cqrs_tick() > 0 AS ticked;
SELECT payload FROM cqrs_receive('timely', 10);
SELECT clock_timestamp() AS since \gset
SELECT emit_kept('f', 10);
SELECT cqrs_seek('timely', :'since');
SELECT cqrs_tick() > 0 AS ticked;
BEGIN;
SELECT payload FROM cqrs_receive('timely', 10);
SELECT cqrs_ack('timely') IS NOT NULL AS acknowledged;
COMMIT;
-- and what the newest tick shows comes at once
SELECT cqrs_seek('timely', :'since');
SELECT payload FROM cqrs_receive('timely', 10);
SELECT cqrs_unsubscribe('timely');

-- events are written behind those before, whatever room there is
SELECT cqrs_register_event('g', 'tg');
SELECT format('cqrs.topic_%s_0', topic_id) AS segment FROM cqrs.topic WHERE topic = 'tg' \gset
BEGIN;
SELECT count(emit_kept('g', i)) FROM generate_series(1, 1000) i;
ROLLBACK;
SELECT emit_kept('g', 1001);
VACUUM :segment;
\c -
SELECT emit_kept('g', 1002);
SELECT cardinality(cqrs_emit_many('g', ARRAY['{"n": 1003}', '{"n": 1004}']::jsonb[]));
SELECT payload, (ctid::text::point)[0] < (SELECT (ctid::text::point)[0] FROM :segment WHERE payload->>'n' = '1001') AS before FROM :segment ORDER BY position;

DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE got_kept;
DROP FUNCTION emit_kept(text, integer[]);
