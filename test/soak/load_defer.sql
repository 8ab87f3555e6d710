\set delay random(100, 3000)
SELECT cqrs_enqueue('Settle', jsonb_build_object('due', clock_timestamp()));
SELECT cqrs_enqueue('Settle', jsonb_build_object('due', at), run_at => at) FROM (SELECT clock_timestamp() + interval '1 ms' * :delay::int) v (at);
SELECT cqrs_enqueue('Settle', '{}', run_at => now() + interval '1 hour') AS id \gset
SELECT cqrs_cancel_command(:id::uuid);
SET ROLE app;
SELECT cqrs_enqueue('Settle', jsonb_build_object('due', clock_timestamp()));
RESET ROLE;
