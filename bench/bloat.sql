-- For bench/bloat: what its figures are made of. peers.sql has the rest.
\set QUIET on

-- Dead rows and size, with indexes and TOAST, of every table of a schema, each
-- five seconds.
CREATE TABLE sample (at timestamptz, relation text, bytes bigint, dead bigint);
CREATE PROCEDURE watch(schema name) LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		INSERT INTO sample
		SELECT now(), relid::regclass, pg_total_relation_size(relid), n_dead_tup
		FROM pg_stat_user_tables WHERE schemaname = schema;
		COMMIT;
		PERFORM pg_sleep(5);
	END LOOP;
END $$;
CREATE VIEW most AS
SELECT max(bytes) / 1048576.0 AS megabytes, max(dead) AS dead
FROM (SELECT sum(bytes) AS bytes, sum(dead) AS dead FROM sample GROUP BY at) s;

-- events a second and median milliseconds of latency, of a span of time
CREATE FUNCTION delivered(since timestamptz, seconds double precision, OUT rate double precision, OUT latency double precision)
LANGUAGE sql AS $$
	SELECT count(*) / seconds,
		   percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM handled_at - emitted_at)) * 1000
	FROM sink WHERE handled_at >= since AND handled_at < since + seconds * interval '1 second'
$$;

-- For the chart: since a time, in steps of five seconds, what the median latency
-- was, in milliseconds, and megabytes and dead rows of all tables together.
CREATE FUNCTION latencies(since timestamptz) RETURNS TABLE (minute numeric, ms double precision)
LANGUAGE sql AS $$
	SELECT floor(extract(epoch FROM handled_at - since) / 5) / 12,
		   percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM handled_at - emitted_at)) * 1000
	FROM sink WHERE handled_at >= since GROUP BY 1
$$;
CREATE FUNCTION sizes(since timestamptz) RETURNS TABLE (minute numeric, megabytes numeric, dead numeric)
LANGUAGE sql AS $$
	SELECT extract(epoch FROM at - since) / 60, sum(bytes) / 1048576, sum(sample.dead)
	FROM sample WHERE at >= since GROUP BY at
$$;
