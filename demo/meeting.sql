-- The whole installation, once the library is preloaded.
CREATE EXTENSION cqrs_outbox;

-- Two event types, each on a topic of its own.
SELECT cqrs_register_event('user_joined_notification', 'user_notification_events');
SELECT cqrs_register_event('user_joined_ecst', 'user_ecst_events');

-- A command, and the function that handles it: it changes state, and emits
-- one event of each type, in the transaction of whoever sends the command.
CREATE TABLE member (meeting_id text, user_id text, PRIMARY KEY (meeting_id, user_id));
CREATE TYPE join_meeting AS (user_id text, meeting_id text);
CREATE FUNCTION join_meeting(command join_meeting) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO member VALUES (command.meeting_id, command.user_id);
	PERFORM cqrs_emit('user_joined_notification', to_jsonb(command), key => command.meeting_id);
	PERFORM cqrs_emit('user_joined_ecst', to_jsonb(command), key => command.meeting_id);
	RETURN jsonb_build_object('joined', command.user_id);
END $$;
SELECT cqrs_register_command('JoinMeeting', 'join_meeting');

-- Four commands: by name with a JSON object, or as the typed value itself.
SELECT cqrs_send('JoinMeeting', '{"user_id": "1", "meeting_id": "1"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "2", "meeting_id": "1"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "3", "meeting_id": "1"}');
SELECT cqrs_send(ROW('4', '1')::join_meeting);

-- A fifth one rolls back. Its member goes, and so do its events.
BEGIN;
SELECT cqrs_send('JoinMeeting', '{"user_id": "5", "meeting_id": "1"}');
ROLLBACK;

-- The outbox: 4 + 4 = 8 events, in the order in which they will be delivered.
SELECT topic, count(*) FROM cqrs_events() GROUP BY ROLLUP (topic) ORDER BY topic;
SELECT position, event_id, event_name, key, payload, status FROM cqrs_events();

-- A subscription: its handler keeps a read model, and is called once for each
-- event, in the transaction that moves the subscription's cursor.
CREATE TABLE meeting (meeting_id text PRIMARY KEY, members int NOT NULL, notifications int NOT NULL);
CREATE FUNCTION update_meeting(event cqrs_event) RETURNS void LANGUAGE sql
SET search_path = public AS $$
	INSERT INTO meeting VALUES (event.payload->>'meeting_id',
								(event.event_name = 'user_joined_ecst')::int,
								(event.event_name = 'user_joined_notification')::int)
	ON CONFLICT (meeting_id) DO UPDATE
	SET members = meeting.members + excluded.members,
		notifications = meeting.notifications + excluded.notifications
$$;
SELECT cqrs_subscribe('meetings', ARRAY['user_notification_events', 'user_ecst_events'],
					  'update_meeting');
