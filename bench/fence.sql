-- For bench/fence: pgmq's queue "bench", and two tables that are read in the order
-- of their ids, each with one of the ways to pass nothing by that commits late.
-- peers.sql has the rest.
\set QUIET on

CREATE EXTENSION pgmq;
SELECT pgmq.create('bench') \g /dev/null
CREATE PROCEDURE consume_pgmq() LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		WITH taken AS MATERIALIZED (SELECT msg_id, message FROM pgmq.read('bench', 30, 1000)),
			deleted AS (SELECT pgmq.delete('bench', array_agg(msg_id)) FROM taken HAVING count(*) > 0),
			done AS (SELECT count(*) FROM deleted)
		INSERT INTO sink SELECT clock_timestamp(), (message->>'at')::timestamptz, (message->>'xid')::xid8 FROM taken, done;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE NOT FOUND;
	END LOOP;
END $$;

-- Who emits has a lock that he shares with others until his transaction ends, and
-- who reads waits until nobody has it: what is there then is complete.
CREATE SCHEMA fence;
CREATE TABLE fence.event (id bigserial PRIMARY KEY, payload jsonb);
CREATE TABLE fence.reader AS SELECT 0::bigint AS done;
CREATE PROCEDURE consume_fence() LANGUAGE plpgsql AS $$
DECLARE
	complete bigint;
BEGIN
	LOOP
		PERFORM pg_advisory_xact_lock(42);
		SELECT max(id) INTO complete FROM fence.event;
		COMMIT;
		INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz, (payload->>'xid')::xid8 FROM fence.event, fence.reader
		WHERE id > done AND id <= complete ORDER BY id;
		UPDATE fence.reader SET done = complete WHERE done < complete;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE NOT FOUND;
	END LOOP;
END $$;

-- Who reads stops before the oldest transaction that is running.
CREATE SCHEMA xmin;
CREATE TABLE xmin.event (xid xid8 DEFAULT pg_current_xact_id(), id bigserial, payload jsonb, PRIMARY KEY (xid, id));
CREATE TABLE xmin.reader AS SELECT '0'::xid8 AS done;
CREATE PROCEDURE consume_xmin() LANGUAGE plpgsql AS $$
DECLARE
	complete xid8;
BEGIN
	LOOP
		complete := pg_snapshot_xmin(pg_current_snapshot());
		INSERT INTO sink SELECT clock_timestamp(), (payload->>'at')::timestamptz, (payload->>'xid')::xid8 FROM xmin.event, xmin.reader
		WHERE xid >= done AND xid < complete ORDER BY xid, id;
		UPDATE xmin.reader SET done = complete WHERE done < complete;
		COMMIT;
		PERFORM pg_sleep(0.01) WHERE NOT FOUND;
	END LOOP;
END $$;
