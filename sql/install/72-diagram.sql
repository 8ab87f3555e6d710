/*
 * 72-diagram.sql
 *		What is registered, as pictures.
 *
 * The text is Mermaid's (https://mermaid.js.org). Names may be anything, so they
 * appear in labels only; in the diagram's text, things have a letter and a
 * number. Everything is ordered by name, so that equal registries have equal
 * diagrams. A function is one node, however many things it handles.
 */

-- A name as the text of a label: every character that Mermaid, Markdown or HTML
-- might interpret is an entity code.
CREATE FUNCTION cqrs.diagram_label(name text) RETURNS text
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cqrs_diagram_label';
REVOKE ALL ON FUNCTION cqrs.diagram_label(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.diagram_label(text) TO pg_monitor;
COMMENT ON FUNCTION cqrs.diagram_label(text) IS 'a name as the text of a label';

-- Raises the error that says why there is no such diagram: 22004, 22023, 42704 or
-- 42883; see cqrs_diagram().
CREATE FUNCTION cqrs.no_diagram(kind text, name text) RETURNS text
LANGUAGE C STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cqrs_no_diagram';
REVOKE ALL ON FUNCTION cqrs.no_diagram(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.no_diagram(text, text) TO pg_monitor;
COMMENT ON FUNCTION cqrs.no_diagram(text, text) IS 'says why there is no such diagram';

-- What is called for what, by names, in the order of the calls: the handlers
-- of commands, queries and streams, and those of events in the transaction.
-- For cqrs_diagram().
--   section   2: handlers of what is dispatched; 3: of events
--   n         which one of the handlers
--   fallback  of the handler, with the errors that it is called after, in words;
--             NULL: it has none
CREATE VIEW cqrs.diagram_handler WITH (security_barrier) AS
SELECT h.*, b.fallback, b.max_failures > 0 AS has_breaker,
	   CASE WHEN b.sqlstates IS NULL THEN 'an error'
			ELSE array_to_string(ARRAY(SELECT CASE length(code) WHEN 2 THEN 'class ' ELSE '' END || code
									   FROM unnest(b.sqlstates) WITH ORDINALITY u(code, n) ORDER BY u.n), ', ') END AS errors
FROM (
	SELECT 2 AS section, c.kind, c.command_name AS name, h.n::integer, cardinality(c.handlers) AS handlers, h.signature AS function
	FROM cqrs.command c
	CROSS JOIN LATERAL unnest(c.handlers) WITH ORDINALITY h(signature, n)
	UNION ALL
	SELECT 3, 'event', h.event_name, (row_number() OVER (PARTITION BY h.event_name ORDER BY h.seq))::integer,
		   (count(*) OVER (PARTITION BY h.event_name))::integer, h.handler
	FROM cqrs.event_handler h
	JOIN cqrs.event_type USING (event_name)
) h
LEFT JOIN cqrs.fallback b ON b.handler = h.function;
GRANT SELECT ON cqrs.diagram_handler TO pg_monitor;
COMMENT ON VIEW cqrs.diagram_handler IS 'what is called for what';

-- The arrows of a flowchart, in the order of the first four columns. If to_name
-- is NULL, there is no arrow, only the node it would come from. Which events a
-- handler emits is not registered, so there is no arrow for that.
CREATE VIEW cqrs.diagram_edge WITH (security_barrier) AS
SELECT 1 AS section, '' AS name, (row_number() OVER inwards)::integer AS n, 0 AS last,
	   'middleware' AS from_kind, handler AS from_name, '-->' AS arrow, NULL AS label,
	   'middleware' AS to_kind, lead(handler) OVER inwards AS to_name
FROM cqrs.middleware
WINDOW inwards AS (ORDER BY priority, seq)
UNION ALL
SELECT 2, c.command_name, 0, 0, 'middleware', m.handler, '-->', NULL, c.kind, c.command_name
FROM cqrs.command c
CROSS JOIN (SELECT handler FROM cqrs.middleware ORDER BY priority DESC, seq DESC LIMIT 1) m
WHERE c.kind <> 'stream'
UNION ALL
SELECT section, name, n, 1, kind, name, '-->', CASE WHEN handlers > 1 THEN n::text END, 'function', function
FROM cqrs.diagram_handler
UNION ALL
-- a function has one fallback, wherever it is a handler
(SELECT DISTINCT ON (function) section, name, n, 0, 'function', function, '-.->', 'on ' || errors, 'function', fallback
 FROM cqrs.diagram_handler
 WHERE fallback IS NOT NULL
 ORDER BY function, section, name COLLATE "C", n)
UNION ALL
SELECT 3, e.event_name, 0, 0, 'event', e.event_name, '==>', NULL, 'topic', t.topic
FROM cqrs.event_type e
LEFT JOIN cqrs.topic t USING (topic_id)
UNION ALL
SELECT 4, '', 0, 0, 'topic', topic, NULL, NULL, NULL, NULL
FROM cqrs.topic
UNION ALL
SELECT 5, s.subscription, 0, 0, 'topic', t.topic, '==>', NULL, 'subscription', s.subscription
FROM cqrs.subscription s
JOIN cqrs.subscription_topic USING (subscription_id)
JOIN cqrs.topic t USING (topic_id)
UNION ALL
SELECT 5, subscription, 1, 0, 'subscription', subscription, '==>', cqrs.diagram_label(format),
	   CASE WHEN handler IS NOT NULL THEN 'function' ELSE 'broker' END, coalesce(handler, server)
FROM cqrs.subscription;
GRANT SELECT ON cqrs.diagram_edge TO pg_monitor;
COMMENT ON VIEW cqrs.diagram_edge IS 'what leads to what';

-- The flowchart for cqrs_diagram(); NULL if nothing has that name. jit is off
-- because compiling would take longer than running.
CREATE FUNCTION cqrs.flowchart(name text) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE SET jit = off
BEGIN ATOMIC
	WITH RECURSIVE edge AS (
		SELECT * FROM cqrs.diagram_edge
	), node(kind, name) AS (
		SELECT e.from_kind, e.from_name FROM edge e
		UNION
		SELECT e.to_kind, e.to_name FROM edge e WHERE e.to_name IS NOT NULL
	), named AS (
		SELECT * FROM node n
		WHERE flowchart.name IS NULL OR (n.kind NOT IN ('function', 'middleware') AND n.name = flowchart.name)
	), above AS (
		SELECT * FROM named
		UNION
		SELECT e.from_kind, e.from_name FROM above a JOIN edge e ON e.to_kind = a.kind AND e.to_name = a.name
	), below AS (
		SELECT * FROM named
		UNION
		SELECT e.to_kind, e.to_name FROM below b JOIN edge e ON e.from_kind = b.kind AND e.from_name = b.name
		WHERE e.to_name IS NOT NULL
	), shown AS (
		SELECT s.*, n.name, n.above, n.below,
			   s.letter || row_number() OVER (PARTITION BY n.kind ORDER BY n.name COLLATE "C") AS id
		FROM (SELECT u.kind, u.name, bool_or(u.above) AS above, bool_or(NOT u.above) AS below
			  FROM (SELECT *, true AS above FROM above UNION ALL SELECT *, false FROM below) u
			  GROUP BY u.kind, u.name) n
		JOIN (VALUES (1, 'middleware', 'm', 'middleware<br/>', '[[', ']]'),
					 (2, 'command', 'c', 'command<br/>', '([', '])'),
					 (3, 'query', 'q', 'query<br/>', '([', '])'),
					 (4, 'stream', 'r', 'stream<br/>', '([', '])'),
					 (5, 'function', 'f', '', '[', ']'),
					 (6, 'event', 'e', 'event<br/>', '>', ']'),
					 (7, 'topic', 't', 'topic<br/>', '[(', ')]'),
					 (8, 'subscription', 's', 'subscription<br/>', '[/', '/]'),
					 (9, 'broker', 'b', 'broker<br/>', '{{', '}}')
			 ) s(place, kind, letter, title, opens, closes) USING (kind)
	), line AS (
		SELECT false AS is_edge, s.place AS section, s.name, 0 AS n, 0 AS last, '' AS from_name,
			   format('%s%s"%s%s"%s', s.id, s.opens, s.title, cqrs.diagram_label(s.name), s.closes) AS text
		FROM shown s
		UNION ALL
		SELECT true, e.section, e.name, e.n, e.last, e.from_name,
			   format('%s %s%s %s', f.id, e.arrow, '|"' || e.label || '"|', t.id)
		FROM edge e
		JOIN shown f ON f.kind = e.from_kind AND f.name = e.from_name
		JOIN shown t ON t.kind = e.to_kind AND t.name = e.to_name
		-- only what is on a path, not what merely connects two
		WHERE (f.above AND t.above) OR (f.below AND t.below)
	)
	SELECT E'flowchart LR\n' ||
		   coalesce(string_agg(format(E'    %s\n', l.text), ''
							   ORDER BY l.is_edge, l.section, l.name COLLATE "C", l.n, l.last, l.from_name COLLATE "C"), '')
	FROM line l
	HAVING flowchart.name IS NULL OR count(*) > 0;
END;
REVOKE ALL ON FUNCTION cqrs.flowchart(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.flowchart(text) TO pg_monitor;
COMMENT ON FUNCTION cqrs.flowchart(text) IS 'what is registered, as a flowchart';

-- The sequence diagram for cqrs_diagram(); NULL if there is no command, query or
-- stream of that name. Which events there are is not registered.
CREATE FUNCTION cqrs.sequence_diagram(name text) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE SET jit = off
BEGIN ATOMIC
	WITH edge AS (
		SELECT * FROM cqrs.diagram_edge
	), called AS (
		SELECT * FROM cqrs.diagram_handler
	), handler AS (
		SELECT * FROM called h WHERE h.section = 2 AND h.name = sequence_diagram.name
	), participant AS (
		SELECT p.function, 'h' || row_number() OVER (ORDER BY min(p.place)) AS id, min(p.place) AS place
		FROM (SELECT h.function, 2 * h.n AS place FROM handler h
			  UNION ALL
			  SELECT h.fallback, 2 * h.n + 1 FROM handler h WHERE h.fallback IS NOT NULL) p
		GROUP BY p.function
	), middleware AS (
		SELECT 'm' || e.n AS id, e.n, e.from_name AS function
		FROM edge e
		WHERE e.section = 1 AND NOT EXISTS (SELECT FROM handler h WHERE h.kind = 'stream')
	), hop AS (
		-- from the mediator through the middleware to the mediator
		SELECT g.n, coalesce(o.id, 'mediator') AS from_id, coalesce(i.id, 'mediator') AS to_id
		FROM generate_series(1, (SELECT max(m.n) + 1 FROM middleware m)) g(n)
		LEFT JOIN middleware o ON o.n = g.n - 1
		LEFT JOIN middleware i ON i.n = g.n
	), step AS (
		SELECT h.*, h.handlers > 1 AS is_chain, p.id, f.id AS fallback_id
		FROM handler h
		JOIN participant p USING (function)
		LEFT JOIN participant f ON f.function = h.fallback
	), around AS (
		SELECT h.kind, h.kind = 'stream' AS is_stream, CASE h.kind WHEN 'stream' THEN 2 ELSE 1 END AS depth,
			   h.kind <> 'query' AND EXISTS (SELECT FROM called c WHERE c.section = 3) AS handles_events,
			   h.kind <> 'query' AND EXISTS (SELECT FROM edge e WHERE e.section = 4) AS has_topics,
			   s.*
		FROM handler h
		CROSS JOIN (SELECT count(*) > 0 AS has_subscriptions,
						   count(e.to_name) FILTER (WHERE e.to_kind = 'function') > 0 AS to_handlers,
						   count(e.to_name) FILTER (WHERE e.to_kind = 'broker') > 0 AS to_brokers,
						   count(*) > count(e.to_name) AS to_clients
					FROM edge e WHERE e.section = 5 AND e.n = 1) s
		WHERE h.n = 1
	), line(place, depth, text) AS (
		SELECT ARRAY[l.place], l.depth, l.text
		FROM around a
		CROSS JOIN LATERAL (VALUES
			(1, 0, true, 'sequenceDiagram'),
			(2, 1, true, 'actor caller'),
			(3, 1, true, 'participant mediator'),
			(6, 1, a.handles_events, 'participant events as handlers of events'),
			(7, 1, a.has_topics, 'participant outbox'),
			(8, 1, a.has_subscriptions AND a.kind <> 'query', 'participant relay'),
			(9, 1, true, format('caller->>mediator: cqrs_%s(%s)', CASE a.kind WHEN 'command' THEN 'send' ELSE a.kind END,
								cqrs.diagram_label(sequence_diagram.name))),
			(10, 1, a.is_stream, 'loop for each row'),
			(11, 2, a.is_stream, 'mediator->>h1: payload'),
			(12, 2, a.is_stream, 'h1-->>mediator: row'),
			(17, a.depth, a.handles_events, 'loop until no event is left that has handlers'),
			(18, a.depth + 1, a.handles_events, 'mediator->>events: what was emitted'),
			(19, a.depth + 1, a.handles_events, 'events-->>mediator: done'),
			(20, a.depth, a.handles_events, 'end'),
			(21, a.depth, true, 'mediator-->>caller: ' || CASE WHEN a.is_stream THEN 'row' ELSE 'answer' END),
			(22, 1, a.is_stream, 'end'),
			(23, 1, a.has_topics, 'caller->>outbox: COMMIT, with what was emitted to topics'),
			(24, 1, a.has_topics AND a.has_subscriptions, 'outbox->>relay: what is committed, in order'),
			(25, 1, a.has_topics AND a.to_handlers, 'Note over relay: calls the handlers of subscriptions, once for each event'),
			(26, 1, a.has_topics AND a.to_brokers, 'Note over relay: sends to brokers, at least once'),
			(27, 1, a.has_topics AND a.to_clients, 'Note over relay: hands out to clients that ask, until they acknowledge')
		) l(place, depth, applies, text)
		WHERE l.applies
		UNION ALL
		SELECT ARRAY[4, m.n], 1, format('participant %s as %s', m.id, cqrs.diagram_label(m.function)) FROM middleware m
		UNION ALL
		SELECT ARRAY[5, p.place], 1, format('participant %s as %s', p.id, cqrs.diagram_label(p.function)) FROM participant p
		UNION ALL
		SELECT ARRAY[13, h.n], 1, format('%s->>%s: %s', h.from_id, h.to_id, CASE h.n WHEN 1 THEN 'request' ELSE 'cqrs_proceed()' END)
		FROM hop h
		UNION ALL
		SELECT ARRAY[16, -h.n], 1, format('%s-->>%s: answer', h.to_id, h.from_id) FROM hop h
		UNION ALL
		-- one handler or a chain: each is tried if those before it passed on
		SELECT ARRAY[l.place, l.within, l.n], s.n + l.deeper, l.text
		FROM step s
		CROSS JOIN LATERAL (VALUES
			(14, s.n, 1, 0, true, format('mediator->>%s: payload', s.id)),
			(14, s.n, 2, 0, s.is_chain OR s.fallback IS NOT NULL, 'alt it answers'),
			(14, s.n, 3, (s.is_chain OR s.fallback IS NOT NULL)::integer, true, format('%s-->>mediator: answer', s.id)),
			(14, s.n, 4, 0, s.fallback IS NOT NULL,
			 format('else it raises %s%s', s.errors, CASE WHEN s.has_breaker THEN ', or its circuit breaker is open' END)),
			(14, s.n, 5, 1, s.fallback IS NOT NULL, format('%s--xmediator: error, and all that it did is rolled back', s.id)),
			(14, s.n, 6, 1, s.fallback IS NOT NULL, format('mediator->>%s: payload', s.fallback_id)),
			(14, s.n, 7, 1, s.fallback IS NOT NULL, format('%s-->>mediator: answer', s.fallback_id)),
			(14, s.n, 8, 0, s.is_chain, 'else it passes on'),
			(14, s.n, 9, 1, s.is_chain, format('%s-->>mediator: cqrs_next(), and all that it did is rolled back', s.id)),
			(14, s.n, 10, 1, s.is_chain AND s.n = s.handlers, 'Note over mediator: the answer is NULL'),
			(15, -s.n, 1, 0, s.is_chain OR s.fallback IS NOT NULL, 'end')
		) l(place, within, n, deeper, applies, text)
		WHERE l.applies AND s.kind <> 'stream'
	)
	SELECT string_agg(repeat('    ', l.depth::integer) || l.text || E'\n', '' ORDER BY l.place) FROM line l;
END;
REVOKE ALL ON FUNCTION cqrs.sequence_diagram(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.sequence_diagram(text) TO pg_monitor;
COMMENT ON FUNCTION cqrs.sequence_diagram(text) IS 'how a command is handled, as a sequence diagram';

-- The picture of a saga for cqrs_diagram(); NULL if there is none of that name. What
-- undoes a step leads to what undoes the one before.
CREATE FUNCTION cqrs.saga_diagram(name text) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE SET jit = off
BEGIN ATOMIC
	WITH numbered AS (
		SELECT * FROM cqrs.diagram_step d WHERE d.saga_name = saga_diagram.name
	), step AS (
		SELECT s.number, s.step, s.within, s.step ->> 'kind' AS kind, s.step ->> 'name' AS step_name,
			   nullif(s.within, s.step ->> 'name') AS parent,
			   s.step ->> 'compensation' AS compensation,
			   -- the step that comes when this one is done
			   (SELECT min(n.number) FROM numbered n WHERE n.number > s.number AND n.within <> s.within) AS next,
			   coalesce(bool_or((s.step ->> 'pivot')::boolean) OVER (ORDER BY s.number ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW), false) AS past_pivot
		FROM numbered s
	), undoing AS (
		SELECT s.*, (SELECT max(u.number) FROM step u
					 WHERE u.compensation IS NOT NULL AND NOT u.past_pivot AND u.number < s.number) AS undo,
			   -- what is done beside a parallel step that fails
			   (SELECT max(u.number) FROM step u WHERE u.compensation IS NOT NULL AND u.parent = s.parent AND u.number <> s.number) AS beside
		FROM step s
	), line(place, n, text) AS (
		SELECT 1, -1, format('start(["saga<br/>%s"])', cqrs.diagram_label(saga_diagram.name)) FROM step WHERE number = 0
		UNION ALL
		SELECT 2, s.number,
			   format(CASE s.kind WHEN 'step' THEN 's%s["%s%s%s"]' WHEN 'parallel' THEN 's%s{{"%s%s%s"}}' ELSE 's%s(["%s%s%s"])' END, s.number,
					  cqrs.diagram_label(s.step_name),
					  '<br/>' || CASE s.kind WHEN 'step' THEN cqrs.diagram_label(s.step ->> 'handler')
							WHEN 'await' THEN 'waits for ' || cqrs.diagram_label(coalesce(s.step ->> 'event_name', s.step_name))
							WHEN 'sleep' THEN 'sleeps ' || cqrs.diagram_label(s.step ->> 'duration')
							WHEN 'saga' THEN 'saga ' || cqrs.diagram_label(s.step ->> 'saga_name') ELSE 'side by side' END,
					  coalesce('<br/>or ' || cqrs.diagram_label(s.step ->> 'fallback'), '') ||
					  CASE WHEN (s.step ->> 'pivot')::boolean THEN '<br/>point of no return' ELSE '' END)
		FROM step s
		UNION ALL
		SELECT 3, 0, 'completed(["completed"])' FROM step WHERE number = 0
		UNION ALL
		SELECT 4, s.number, format('u%s["undo %s<br/>%s"]', s.number, cqrs.diagram_label(s.step_name), cqrs.diagram_label(s.compensation))
		FROM step s
		WHERE s.compensation IS NOT NULL AND NOT s.past_pivot
		UNION ALL
		SELECT 5, 0, 'compensated(["compensated"])' FROM step WHERE number = 0
		UNION ALL
		SELECT 6, 0, 'failed(["failed: a person decides"])' FROM step WHERE past_pivot HAVING count(*) > 0
		UNION ALL
		SELECT 7, -1, 'start --> s0' FROM step WHERE number = 0
		UNION ALL
		SELECT 7, s.number, format('s%s --> %s', s.number, coalesce('s' || s.next, 'completed')) FROM step s WHERE s.kind <> 'parallel'
		UNION ALL
		SELECT 7, c.number, format('s%s --> s%s', p.number, c.number) FROM step c JOIN step p ON p.step_name = c.parent
		UNION ALL
		SELECT 8, s.number,
			   format('s%s -. "%s" .-> %s', s.number, CASE s.kind WHEN 'await' THEN 'not in time' ELSE 'fails' END,
					  CASE WHEN s.step ->> 'on_timeout' IS NOT NULL THEN 's' || (SELECT t.number FROM step t WHERE t.step_name = s.step ->> 'on_timeout')
						   WHEN s.past_pivot THEN 'failed' ELSE coalesce('u' || s.beside, 'u' || s.undo, 'compensated') END)
		FROM undoing s
		WHERE s.kind IN ('step', 'saga') OR (s.kind = 'await' AND s.step ->> 'timeout' IS NOT NULL)
		UNION ALL
		SELECT 9, -s.number, format('u%s --> %s', s.number, coalesce('u' || s.undo, 'compensated'))
		FROM undoing s
		WHERE s.compensation IS NOT NULL AND NOT s.past_pivot
	)
	SELECT E'flowchart TD\n' || string_agg(format(E'    %s\n', l.text), '' ORDER BY l.place, l.n, l.text COLLATE "C")
	FROM line l
	HAVING count(*) > 0;
END;
REVOKE ALL ON FUNCTION cqrs.saga_diagram(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cqrs.saga_diagram(text) TO pg_monitor;
COMMENT ON FUNCTION cqrs.saga_diagram(text) IS 'a saga, as a flowchart';

-- A picture of what is registered, as Mermaid text (https://mermaid.js.org).
-- Equal registries give equal texts.
--   kind  NULL or 'flowchart': middleware, from the outermost to the innermost;
--         commands, queries and streams, their handlers (a chain's are
--         numbered), and fallbacks (dotted, with the errors that they are
--         called after); events, their handlers, and their topics;
--         subscriptions, and where they deliver to. Arrows to and from topics,
--         where delivery is after the commit, are thick. Which events a
--         handler emits is not registered.
--         'sequence': how one command, query or stream is handled
--         'saga': the steps of one saga, and what undoes them
--   name  flowchart: only what leads to or from the command, query, stream,
--         event, topic, subscription or server of this name; NULL: all.
--         sequence: the command, query or stream; saga: that
-- Errors: 22023 another kind; 22004 no name for a sequence or a saga; 42704 nothing
-- has that name; 42883 no command, query, stream or saga has.
-- Privileges: EXECUTE, granted to pg_monitor, not to PUBLIC.
CREATE FUNCTION @extschema@.cqrs_diagram(kind text DEFAULT 'flowchart', name text DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE
BEGIN ATOMIC
	SELECT coalesce(CASE coalesce(cqrs_diagram.kind, 'flowchart')
						WHEN 'flowchart' THEN cqrs.flowchart(cqrs_diagram.name)
						WHEN 'sequence' THEN cqrs.sequence_diagram(cqrs_diagram.name)
						WHEN 'saga' THEN cqrs.saga_diagram(cqrs_diagram.name) END,
					cqrs.no_diagram(cqrs_diagram.kind, cqrs_diagram.name));
END;
REVOKE ALL ON FUNCTION @extschema@.cqrs_diagram(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.cqrs_diagram(text, text) TO pg_monitor;
COMMENT ON FUNCTION @extschema@.cqrs_diagram(text, text) IS 'a picture of what is registered, as Mermaid text';
