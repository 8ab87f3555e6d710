-- What is registered, as a picture.
CREATE EXTENSION cqrs_outbox;
SELECT cqrs_diagram();

CREATE TABLE meeting (id text, user_id text);
CREATE FUNCTION join_meeting(command jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO meeting VALUES (command->>'meeting_id', command->>'user_id');
	SELECT cqrs_emit('user_joined', command), cqrs_emit('meeting_joined', command)
$$;
CREATE FUNCTION count_users(query jsonb) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM meeting WHERE id = query->>''meeting_id''';
CREATE FUNCTION list_users(query jsonb) RETURNS SETOF text LANGUAGE sql AS 'SELECT user_id FROM meeting WHERE id = query->>''meeting_id''';
CREATE FUNCTION greet(event jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION count_seats(event jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION project(event cqrs_event) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION pay_by_card(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_next()';
CREATE FUNCTION pay_by_invoice(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION pay_later(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SELECT cqrs_register_event('user_joined', 'users'), cqrs_register_event('meeting_joined', 'meetings'),
	   cqrs_register_event('seats_changed'),
	   cqrs_register_command('JoinMeeting', 'join_meeting(jsonb)'),
	   cqrs_register_query('CountUsers', 'count_users(jsonb)'),
	   cqrs_register_command('ListUsers', 'list_users(jsonb)'),
	   cqrs_register_chain('Pay', ARRAY['pay_by_card(jsonb)', 'pay_by_invoice(jsonb)']),
	   cqrs_register_fallback('pay_by_card(jsonb)', 'pay_later(jsonb)', '{08,57014}'),
	   cqrs_register_fallback('greet(jsonb)', 'count_seats(jsonb)', max_failures => 0),
	   cqrs_register_event_handler('user_joined', 'greet(jsonb)'),
	   cqrs_register_event_handler('user_joined', 'count_seats(jsonb)'),
	   cqrs_register_event_handler('seats_changed', 'count_seats(jsonb)'),
	   cqrs_create_topic('unused');
SELECT cqrs_subscribe('projection', '{users,meetings}', 'project(cqrs_event)'), cqrs_subscribe('pulled', '{meetings}');
SELECT cqrs_diagram();

-- what leads to and from one of them
SELECT cqrs_diagram('flowchart', 'Pay');
SELECT cqrs_diagram(name => 'user_joined');
SELECT cqrs_diagram(name => 'meetings');
SELECT cqrs_diagram(name => 'projection');
SELECT cqrs_diagram(name => 'unused');
SELECT cqrs_diagram(name => 'nothing');
\echo :LAST_ERROR_SQLSTATE

-- how one is handled
SELECT cqrs_diagram('sequence', 'JoinMeeting');
SELECT cqrs_diagram('sequence', 'CountUsers');
SELECT cqrs_diagram('sequence', 'ListUsers');
SELECT cqrs_diagram('sequence', 'Pay');
SELECT cqrs_diagram('sequence', 'user_joined');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_diagram('sequence');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_diagram('pie');
\echo :LAST_ERROR_SQLSTATE
SELECT cqrs_diagram(NULL) = cqrs_diagram() AS the_default;

-- the order is that of the names
CREATE TABLE before AS SELECT cqrs_diagram() AS diagram;
SELECT cqrs_unregister_command('Pay'), cqrs_unsubscribe('projection');
SELECT cqrs_subscribe('projection', '{meetings,users}', 'project(cqrs_event)'),
	   cqrs_register_chain('Pay', ARRAY['pay_by_card(jsonb)', 'pay_by_invoice(jsonb)']);
SELECT diagram = cqrs_diagram() AS same FROM before;

-- what just lies between is no way; and a fallback is shown where its handler is first
BEGIN;
SELECT cqrs_register_event_handler('meeting_joined', 'project(cqrs_event)'), cqrs_register_command('Also', 'pay_by_card(jsonb)');
SELECT cqrs_diagram(name => 'meetings');
SELECT line FROM regexp_split_to_table(cqrs_diagram(), '\n') line WHERE line ~ '^ *[cf]\d [-.=]';
ROLLBACK;

-- middleware goes around all commands and queries, but no stream
BEGIN;
CREATE FUNCTION around(request cqrs_request) RETURNS jsonb LANGUAGE sql AS 'SELECT cqrs_proceed()';
SELECT cqrs_register_middleware('around(cqrs_request)'), cqrs_register_middleware('cqrs_log_dispatch(cqrs_request)', -1);
SELECT cqrs_diagram(name => 'JoinMeeting');
SELECT line FROM regexp_split_to_table(cqrs_diagram(), '\n') line WHERE line ~ '^ *m\d ';
SELECT cqrs_diagram('sequence', 'CountUsers');
SELECT cqrs_diagram('sequence', 'ListUsers') ~ 'cqrs_log_dispatch' AS shown;
ROLLBACK;

-- names may be anything; a registration counts at once, one that is rolled back never did
BEGIN;
SELECT cqrs_register_event(E'end"];<b>#35;\n`x` %% ünï 1. - _a_', 'users'), cqrs_register_query('subgraph (x) --> y', 'count_users(jsonb)');
SELECT cqrs_diagram(name => E'end"];<b>#35;\n`x` %% ünï 1. - _a_');
SELECT cqrs_diagram('sequence', 'subgraph (x) --> y');
ROLLBACK;
SELECT diagram = cqrs_diagram() AS same FROM before;

-- a handler that is gone is shown all the same; on a standby too: it writes nothing
DROP FUNCTION pay_by_card(jsonb);
BEGIN READ ONLY;
SELECT diagram = cqrs_diagram() AS same FROM before;
ROLLBACK;

-- it is for who watches
CREATE ROLE regress_cqrs_viewer;
SET ROLE regress_cqrs_viewer;
SELECT cqrs_diagram();
RESET ROLE;
GRANT pg_monitor TO regress_cqrs_viewer;
SET ROLE regress_cqrs_viewer;
SELECT substr(cqrs_diagram(), 1, 12);
RESET ROLE;

\set VERBOSITY terse
DROP FUNCTION project;
DROP EXTENSION cqrs_outbox CASCADE;
DROP TABLE before, meeting;
DROP FUNCTION join_meeting, count_users, list_users, greet, count_seats, pay_by_invoice, pay_later;
DROP ROLE regress_cqrs_viewer;
