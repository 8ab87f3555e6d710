-- The background worker has drained both topics.
SELECT subscription, topics, kind, lag_events, state FROM cqrs_subscription_status;
SELECT * FROM meeting;

-- Nothing is left to deliver; the events stay for their topic's retention.
SELECT count(*) AS undelivered FROM cqrs_events();
SELECT topic, status, count(*) FROM cqrs_events(status => 'all') GROUP BY topic, status ORDER BY topic;

-- Who did it.
SELECT kind, database, state FROM cqrs_worker_status;
