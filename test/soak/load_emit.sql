\set account random(1, 200)
SELECT cqrs_emit('paid', jsonb_build_object('account', :account::int), key => :account::text);
BEGIN;
SELECT cqrs_emit('paid', '{}');
SAVEPOINT s;
SELECT cqrs_emit_many('paid', ARRAY['{}', '{}']::jsonb[]);
ROLLBACK TO s;
COMMIT;
BEGIN;
SELECT cqrs_emit('paid', '{"of": "nobody"}');
ROLLBACK;
