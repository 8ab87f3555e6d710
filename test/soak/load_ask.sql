\set account random(1, 200)
SELECT cqrs_query('Balance', jsonb_build_object('account', :account::int));
SELECT count(*) FROM cqrs_stream('Balances');
SELECT cqrs_send('Quote', '{}');
SELECT answer FROM cqrs_dry_run('Place', jsonb_build_object('account', :account::int, 'amount', 1));
