\set n random(1, 200)
SELECT cqrs_send('Place', jsonb_build_object('account', :n::int, 'amount', 1), idempotency_key => to_char(now(), 'MI ') || :n::text);
