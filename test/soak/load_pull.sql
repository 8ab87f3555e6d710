CALL pull('puller');
CALL pull('sharers');
BEGIN;
SELECT count(*) FROM cqrs_receive('sharers', 10);
ROLLBACK;
