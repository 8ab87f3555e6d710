# Each message to a saga, and each event that sagas wait for, is delivered a second
# time: each saga does the same, and ends the same, as if it came once.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main', "log_statement = none\njit = off\n");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text);
	CREATE FUNCTION act(state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, what || (cqrs_context()).attempts);
		IF what = 'bad' OR what = 'flaky' AND (cqrs_context()).attempts < 3 THEN RAISE 'not now'; END IF;
		RETURN state || jsonb_build_object(what, coalesce((state->>what)::integer, 0) + 1);
	END $$;
	SELECT format('CREATE FUNCTION %1$I(jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $f$ SELECT act($1, %1$L) $f$', name)
	FROM unnest(ARRAY['reserve', 'cancel', 'charge', 'refund', 'issue', 'flaky', 'bad']) name \gexec
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_event(name, 'payments') FROM unnest(ARRAY['payment_settled', 'paid']) name;
	SELECT cqrs_register_saga('trip', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sleep('moment', '10 ms'),
		cqrs_step('retried', 'flaky', max_attempts => 5, retry_delay => '10 ms'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('bad', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_step('money', 'charge', compensation => 'refund'),
		cqrs_step('bad', 'bad', max_attempts => 3, retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('signalled', ARRAY[
		cqrs_await('paid', timeout => '1 hour'),
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sleep('moment', '10 ms'),
		cqrs_await('twice', event_name => 'paid', timeout => '300 ms')]);
	SELECT cqrs_register_saga('bought', ARRAY[
		cqrs_await('first', event_name => 'payment_settled', timeout => '1 hour'),
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('second', event_name => 'payment_settled', timeout => '300 ms')]);
	SELECT cqrs_register_saga('both', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[
			cqrs_step('one', 'flaky', max_attempts => 5, retry_delay => '10 ms'),
			cqrs_step('two', 'charge', compensation => 'refund')]),
		cqrs_step('bad', 'bad', max_attempts => 2, retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('outer', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sub_saga('inner', 'trip'),
		cqrs_step('tickets', 'issue')]);
));

# run_all(): start each, and give it what it waits for. Returns what they did, and how
# they ended.
sub run_all
{
	$node->safe_psql('postgres', q(
		CREATE TABLE started AS
			SELECT name, (cqrs_start_saga(name)).saga_id FROM unnest(ARRAY['trip', 'bad', 'signalled', 'bought', 'both', 'outer']) name, generate_series(1, 5)));
	$node->safe_psql('postgres', q(SELECT cqrs_signal(saga_id, 'paid', '{}') FROM started WHERE name = 'signalled'));
	$node->safe_psql('postgres', q(SELECT cqrs_emit('payment_settled', '{"paid": true}', headers => jsonb_build_object('correlation_id', saga_id)) FROM started WHERE name = 'bought'));
	ok($node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM cqrs.saga)), 'all end')
	  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_saga_status'));
	my $result = $node->safe_psql('postgres', q(
		SELECT DISTINCT saga_name, status,
			(SELECT string_agg(what, ' ' ORDER BY what) FROM did WHERE saga = saga_id),
			(SELECT string_agg(concat_ws(' ', event, step_name, attempt), ', ' ORDER BY event, step_name, attempt) FROM cqrs_saga_history(saga_id))
		FROM cqrs_saga_status JOIN started USING (saga_id) ORDER BY 1));
	$node->safe_psql('postgres', 'DROP TABLE started');
	return $result;
}

my $once = run_all();
like($once, qr/^$_/m, "without that: $_")
  for 'bad\|compensated\|cancel1 charge1 refund1 reserve1\|', 'both\|compensated\|', 'bought\|compensated\|cancel1 reserve1\|', 'outer\|completed\|issue1 reserve1\|',
  'signalled\|compensated\|cancel1 reserve1\|', 'trip\|completed\|';
is(scalar(split /\n/, $once), 6, 'those of one name do the same');
reconfigure($node, "cqrs_outbox.debug_points = 'saga_receive=twice, saga_route=twice'");
is(run_all(), $once, 'what comes twice counts once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'nothing was given up');
$node->stop;

done_testing();
