SELECT count(*) FROM cqrs_subscription_status;
SELECT count(*) FROM cqrs_topic_status;
SELECT count(*) FROM cqrs_health();
SELECT count(*) FROM cqrs_events();
SELECT count(*) FROM cqrs_enqueued_commands;
SELECT count(*) FROM cqrs_breaker_status;
SELECT count(*) FROM cqrs_worker_status;
