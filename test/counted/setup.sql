CREATE EXTENSION cqrs_outbox
SELECT cqrs_register_event('counted', 'counted')
CREATE FUNCTION answer(command jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'
SELECT cqrs_register_command('Counted', 'answer(jsonb)')
CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'
SELECT cqrs_subscribe('handled', ARRAY['counted'], 'handle(cqrs_event)')
SELECT cqrs_subscribe('pulled', ARRAY['counted'])
CREATE TABLE hundred AS SELECT array_agg('{"user_id": "1"}'::jsonb) AS payloads, array_agg(i::text) AS keys FROM generate_series(1, 100) i
CREATE PROCEDURE emit_each(n integer) LANGUAGE plpgsql AS 'BEGIN FOR i IN 1..n LOOP PERFORM cqrs_emit(''counted'', ''{"user_id": "1"}'', key => i::text); COMMIT; END LOOP; END'
CREATE PROCEDURE receive_each(n integer) LANGUAGE plpgsql AS 'BEGIN FOR i IN 1..n LOOP PERFORM FROM cqrs_receive(''pulled'', 1); PERFORM cqrs_ack(''pulled''); COMMIT; END LOOP; END'
