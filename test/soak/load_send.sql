\set account random(1, 200)
SELECT cqrs_send('Place', jsonb_build_object('account', :account::int, 'amount', 1));
