SELECT cqrs_emit('bench', '{"user_id": "1", "meeting_id": "1"}');
