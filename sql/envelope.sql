-- What a broker gets of an event: cqrs_envelope(). TAP 040 compares it with that.
CREATE EXTENSION cqrs_outbox;
CREATE FUNCTION event(name text = 'joined', topic text = 'meetings', payload jsonb = '{"n": 1.0, "s": "\u00e9\n"}', headers jsonb = '{"a": "b"}',
	key text = 'k', event_id uuid = '01890A5D-AC96-774B-BCCE-B302099A8057', emitted_at timestamptz = '2026-01-31 12:00:00.5+01')
RETURNS cqrs_event LANGUAGE sql AS $$SELECT 1::bigint, event_id, name, topic, key, payload, headers, emitted_at$$;
CREATE FUNCTION body(event cqrs_event, format text = NULL) RETURNS text LANGUAGE sql AS
	$$SELECT coalesce(convert_from(cqrs_envelope(event, format), 'UTF8'), 'NULL')$$;
\pset format unaligned
\pset tuples_only on
SELECT convert_from(cqrs_envelope(event()), 'UTF8');
SELECT body(event(), format) FROM unnest('{NULL,cqrs,cloudevents,raw}'::text[]) format;
SELECT body(event(payload => NULL), format) FROM unnest('{cqrs,cloudevents,raw}'::text[]) format;
-- when it happened, if that is not when it was emitted
SELECT body(event(headers => '{"occurred_at": "2024-12-31T23:59:59+01:00"}', key => NULL));
SELECT body(event('say "hi"', E'a\\b'));
SELECT body(NULL), body(NULL, 'raw');
-- whatever the session's settings are
SET timezone = 'Asia/Kolkata';
SET datestyle = 'german';
SELECT body(event());
RESET timezone;
RESET datestyle;
-- what is none
\set VERBOSITY default
\set SHOW_CONTEXT never
SELECT cqrs_envelope(event(), 'avro');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
SELECT cqrs_envelope(event(name => NULL));
SELECT cqrs_envelope(event(topic => NULL));
SELECT cqrs_envelope(event(topic => repeat('x', 64)));
SELECT cqrs_envelope(event(event_id => NULL));
SELECT cqrs_envelope(event(emitted_at => NULL));
SELECT cqrs_envelope(event(emitted_at => 'infinity'));
SELECT cqrs_envelope(event(payload => '[1]'));
SELECT cqrs_envelope(event(headers => '"x"'));
-- whoever has an event
CREATE ROLE regress_cqrs_nobody;
SET ROLE regress_cqrs_nobody;
SELECT body(event(), 'raw');
RESET ROLE;
DROP ROLE regress_cqrs_nobody;
DROP FUNCTION body, event;
DROP EXTENSION cqrs_outbox;
