-- An event that carries its transaction id, and a subscription whose handler
-- notes it beside its own: the commit timestamps of both tell the latency.
\set QUIET on
SELECT cqrs_register_event('traced', 'traced') \g /dev/null
CREATE TABLE handled (emitter xid8, handler xid8);
CREATE FUNCTION trace(event cqrs_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.handled VALUES ((event.payload->>'xid')::xid8, pg_current_xact_id());
END $$;
SELECT cqrs_subscribe('traced', ARRAY['traced'], 'trace(cqrs_event)') \g /dev/null

-- milliseconds from an emitter's commit to its handler's
CREATE VIEW delivered AS
SELECT emitter, extract(epoch FROM pg_xact_commit_timestamp(xid(handler)) -
								   pg_xact_commit_timestamp(xid(emitter))) * 1000 AS ms
FROM handled;

CREATE VIEW latency AS
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) AS p50,
	   percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) AS p99,
	   max(ms) AS highest,
	   count(*) AS events
FROM delivered;
