-- The main job: four commands, eight events, four on each topic.
CREATE EXTENSION cqrs_outbox;

SELECT cqrs_register_event('user_joined_notification', 'user_notification_events');
SELECT cqrs_register_event('user_joined_ecst', 'user_ecst_events');

CREATE TABLE member (meeting_id text, user_id text);
CREATE FUNCTION join_meeting(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO member VALUES (command->>'meeting_id', command->>'user_id');
	PERFORM cqrs_emit('user_joined_notification', command, key => command->>'meeting_id');
	PERFORM cqrs_emit('user_joined_ecst', command, key => command->>'meeting_id');
	RETURN jsonb_build_object('joined', command->'user_id');
END $$;
SELECT cqrs_register_command('JoinMeeting', 'join_meeting(jsonb)');

SELECT cqrs_send('JoinMeeting', '{"user_id": "1", "meeting_id": "1"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "2", "meeting_id": "1"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "3", "meeting_id": "1"}');
SELECT cqrs_send('JoinMeeting', '{"user_id": "4", "meeting_id": "1"}');

-- a command that rolls back leaves nothing, neither state nor events
BEGIN;
SELECT cqrs_send('JoinMeeting', '{"user_id": "5", "meeting_id": "1"}');
SELECT count(*) FROM cqrs_events();
ROLLBACK;
DO $$
BEGIN
	PERFORM cqrs_send('JoinMeeting', '{"user_id": "6", "meeting_id": "1"}');
	RAISE EXCEPTION 'changed my mind';
EXCEPTION WHEN raise_exception THEN
	NULL;
END $$;

SELECT count(*) FROM member;
CREATE FUNCTION read_meeting(query jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('users', jsonb_agg(user_id ORDER BY user_id)) FROM member WHERE meeting_id = query->>'meeting_id'
$$;
SELECT cqrs_register_query('ReadMeeting', 'read_meeting(jsonb)');
SELECT cqrs_query('ReadMeeting', '{"meeting_id": "1"}') AS answer, jsonb_array_length(cqrs_query('ReadMeeting', '{"meeting_id": "1"}')->'users') AS users;
SELECT count(*) FROM cqrs_events();
SELECT topic, count(*), array_agg(payload->>'user_id' ORDER BY position) AS users
FROM cqrs_events() GROUP BY topic ORDER BY topic;

-- in order, with everything that a consumer needs
SELECT event_name, topic, key, payload, headers - ARRAY['correlation_id', 'causation_id'] AS headers, status, attempts,
	   position = lag(position, 1, position - 1) OVER () + 1 AS next_position,
	   event_id > lag(event_id) OVER () AS next_id,
	   substr(event_id::text, 15, 1) AS uuid_version,
	   emitted_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS emitted_just_now
FROM cqrs_events();

-- the batch size is respected
SELECT count(*) FROM cqrs_events(max_events => 3);
SELECT count(*) FROM cqrs_events('user_ecst_events', 3);
SELECT position FROM cqrs_events('user_ecst_events', 2);

-- filters
SELECT count(*) FROM cqrs_events(event_name => 'user_joined_ecst');
SELECT count(*) FROM cqrs_events(event_name => 'user_joined');
SELECT count(*) FROM cqrs_events(after_position => 5);
SELECT count(*) FROM cqrs_events(status => 'new');
SELECT count(*) FROM cqrs_events(status => 'delivered');
SELECT count(*) FROM cqrs_events(status => 'all');

-- the topic's view shows the same rows
SELECT position, event_name, key, payload FROM cqrs_topics.user_ecst_events ORDER BY position;

-- a subscription whose handler keeps a read model of members by meeting
CREATE TABLE meeting (meeting_id text PRIMARY KEY, members int NOT NULL);
CREATE FUNCTION count_member(event cqrs_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.meeting VALUES (event.payload->>'meeting_id', 1)
	ON CONFLICT (meeting_id) DO UPDATE SET members = meeting.members + 1
$$;
SELECT cqrs_subscribe('meetings', ARRAY['user_ecst_events'], 'count_member(cqrs_event)');
SELECT subscription, topics, kind, handler, lag_events, lag > '0' AS lags FROM cqrs_subscription_status;
SELECT cqrs_drain('meetings');
SELECT * FROM meeting;
SELECT cqrs_drain('meetings') AS again;

-- what is delivered is not returned again; the other topic's is
SELECT topic, count(*) FROM cqrs_events() GROUP BY topic;
SELECT topic, status, count(*) FROM cqrs_events(status => 'all') GROUP BY topic, status ORDER BY topic;
SELECT lag_events, lag FROM cqrs_subscription_status;

DROP TABLE member, meeting;
DROP FUNCTION count_member;
DROP EXTENSION cqrs_outbox;
DROP EXTENSION cqrs_outbox CASCADE;
DROP FUNCTION join_meeting, read_meeting;
