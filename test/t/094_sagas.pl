# Sagas, run by the worker: the steps in order, compensations in reverse, waiting,
# parallel steps, sagas within sagas, and what people tell them.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main');

$node->append_conf('postgresql.conf', "cqrs_outbox.poll_interval = 500\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text);
	CREATE TABLE broken (what text);

	-- What each step does: it says so, fails if it is to, and notes it in the state.
	CREATE FUNCTION act(state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, what);
		IF EXISTS (SELECT FROM broken b WHERE b.what = act.what) THEN
			RAISE 'cannot %', what;
		END IF;
		RETURN state || jsonb_build_object('last', what);
	END $$;
	SELECT format('CREATE FUNCTION %1$I(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT act($1, %1$L) $f$', name)
	FROM unnest(ARRAY['reserve', 'cancel', 'charge', 'refund', 'invoice', 'void', 'issue', 'send', 'a', 'b', 'un_a', 'un_b']) name \gexec
	SELECT cqrs_create_saga_queue();
));

# The saga that is started so, when it is over: status, and what it did.
sub start
{
	my ($name, $payload, $key) = @_;

	return $node->safe_psql('postgres', sprintf(q(SELECT saga_id FROM cqrs_start_saga('%s', '%s', %s)), $name, $payload // '{}',
		defined $key ? "'$key'" : 'NULL'));
}

sub outcome
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT status FROM cqrs_wait_saga('$id', '60 s')") . ': ' . did($id);
}

sub did
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT string_agg(what, ' ' ORDER BY id) FROM did WHERE saga = '$id'");
}

sub breaks
{
	$node->safe_psql('postgres', join ';', 'TRUNCATE broken', map { "INSERT INTO broken VALUES ('$_')" } @_);
}

$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('trip', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel', max_attempts => 2, retry_delay => '10 ms'),
		cqrs_step('money', 'charge', compensation => 'refund', max_attempts => 2, retry_delay => '10 ms'),
		cqrs_step('tickets', 'issue', max_attempts => 2, retry_delay => '10 ms')])));
is(outcome(start('trip')), 'completedX: reserve charge issue', 'steps in order');

breaks('issue');
is(outcome(start('trip')), 'compensated: reserve charge refund cancel', 'undone in reverse, what failed left nothing');
breaks();

$node->stop;
done_testing();
