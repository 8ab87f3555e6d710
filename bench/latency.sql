-- Milliseconds from the commit of an emitter to the commit of the handler,
-- one event at a time, in an otherwise idle cluster.
\set QUIET on
SET client_min_messages = warning;
SELECT cqrs_register_event('ping', 'pings') \g /dev/null
CREATE TABLE pong (emitter xid8, handler xid8);
CREATE FUNCTION pong(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.pong VALUES ((event.payload->>'xid')::xid8, pg_current_xact_id());
END $$;
SELECT cqrs_subscribe('pong', ARRAY['pings'], 'pong(cqrs_event)') \g /dev/null

CREATE PROCEDURE ping_pong(rounds integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN 1 .. rounds LOOP
		PERFORM cqrs_emit('ping', jsonb_build_object('xid', pg_current_xact_id()));
		COMMIT;
		WHILE (SELECT count(*) FROM pong) < n LOOP
			PERFORM pg_sleep(0.01);
			COMMIT;
		END LOOP;
	END LOOP;
END $$;
CALL ping_pong(220);

-- the first twenty warm up
SELECT extract(epoch FROM pg_xact_commit_timestamp(xid(handler)) - pg_xact_commit_timestamp(xid(emitter))) * 1000
FROM pong ORDER BY emitter OFFSET 20;
