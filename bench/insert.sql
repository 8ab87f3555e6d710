INSERT INTO plain (event_name, payload) VALUES ('bench', '{"user_id": "1", "meeting_id": "1"}');
