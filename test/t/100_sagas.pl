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
is(outcome(start('trip')), 'completed: reserve charge issue', 'steps in order');

breaks('issue');
is(outcome(start('trip')), 'compensated: reserve charge refund cancel', 'undone in reverse, what failed left nothing');
breaks();

# Retried, with the attempts counted; a final error is not tried again.
$node->safe_psql('postgres', q(
	CREATE TABLE tries (saga uuid, attempt int);
	CREATE FUNCTION third(state jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF (cqrs_context()).attempts < 3 THEN RAISE 'not yet'; END IF;
		INSERT INTO tries VALUES ((cqrs_context()).id, (cqrs_context()).attempts);
	END $$;
	CREATE FUNCTION declined(state jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'declined' USING ERRCODE = 'ZZ001'; END $$;
	SELECT cqrs_register_saga('patient', ARRAY[cqrs_step('third', 'third', retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('final', ARRAY[cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_step('card', 'declined', max_attempts => 0, final_sqlstates => ARRAY['ZZ'])]);
));
my $id = start('patient');
is(outcome($id), 'completed: ', 'a step is tried again');
is($node->safe_psql('postgres', "SELECT attempt FROM tries WHERE saga = '$id'"), '3', '... and knows how often');
is($node->safe_psql('postgres', "SELECT string_agg(event || coalesce(' ' || step_name, '') || coalesce(' ' || attempt, '') || ' -> ' || status, ', ') FROM cqrs_saga_history('$id')"),
	'started -> running, failed third 1 -> retrying, failed third 2 -> retrying, done third -> completed', 'its history');
$id = start('final');
is(outcome($id), 'compensated: reserve cancel', 'a final error');
is($node->safe_psql('postgres', "SELECT error FROM cqrs_saga_status WHERE saga_id = '$id'"), '', 'the last entry has no error');
is($node->safe_psql('postgres', "SELECT error_sqlstate, error FROM cqrs_saga_history('$id') WHERE event = 'failed'"), 'ZZ001|declined', '... its history has it');

# The state: what a step returns; composite types.
$node->safe_psql('postgres', q(
	CREATE TYPE trip AS (nights int, price numeric);
	CREATE FUNCTION priced(t trip) RETURNS trip LANGUAGE sql AS $$ SELECT t.nights, t.nights * 10.5 $$;
	CREATE FUNCTION wrong(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[1]'::jsonb $$;
	SELECT cqrs_register_saga('priced', ARRAY[cqrs_step('price', 'priced'), cqrs_step('nothing', 'third', max_attempts => 3, retry_delay => '1 ms')]);
	SELECT cqrs_register_saga('wrong', ARRAY[cqrs_step('wrong', 'wrong', max_attempts => 1)]);
));
$id = start('priced', '{"nights": 3}');
is($node->safe_psql('postgres', "SELECT status, state FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"price": 31.5, "nights": 3}', 'state of a composite type');
is(scalar $node->psql('postgres', q(SELECT cqrs_start_saga('priced', '{"nights": "three"}'))), 3, 'a payload that does not fit is refused');
$id = start('wrong');
is(outcome($id), 'compensated: ', 'an answer that is no object fails the step');

# Undoing fails: a person decides.
breaks('issue', 'refund');
$id = start('trip');
is(outcome($id), 'failed: reserve charge', 'what cannot be undone stops the saga');
is($node->safe_psql('postgres', "SELECT status, step_name, attempt, error FROM cqrs_saga_status WHERE saga_id = '$id'"), 'failed|money|2|cannot refund', '... and is told');
is($node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'hotel'), cqrs_skip_step('$id', 'tickets')"), 't|t', 'told about steps that it is not at');
is($node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'money')"), 't', 'told to try again');
$node->poll_query_until('postgres', "SELECT count(*) = 2 FROM cqrs_saga_history('$id') WHERE event = 'undoing failed' AND attempt = 2") or die 'not tried again';
breaks();
$node->safe_psql('postgres', "SELECT cqrs_skip_step('$id', 'money')");
$node->poll_query_until('postgres', "SELECT status = 'compensated' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'not skipped';
is(did($id), 'reserve charge cancel', 'what could not be undone was passed by');

# The point of no return.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('pivotal', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_step('tickets', 'issue', pivot => true),
		cqrs_step('remind', 'send', max_attempts => 2, retry_delay => '10 ms')])));
breaks('send');
$id = start('pivotal');
is(outcome($id), 'failed: reserve issue', 'behind the point of no return nothing is undone');
$node->safe_psql('postgres', "SELECT cqrs_cancel_saga('$id')");
breaks();
$node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'remind')");
$node->poll_query_until('postgres', "SELECT status = 'completed' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'not completed';
is(did($id), 'reserve issue send', '... nor by cancelling; it goes forward');

# Fallbacks.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('careful', ARRAY[
		cqrs_step('money', 'charge', compensation => 'refund', fallback => 'invoice', fallback_compensation => 'void'),
		cqrs_step('tickets', 'issue', max_attempts => 1)])));
breaks('charge');
is(outcome(start('careful')), 'completed: invoice issue', 'a fallback does the step, the primary left nothing');
breaks('charge', 'issue');
is(outcome(start('careful')), 'compensated: invoice void', '... and what it did is undone');
breaks('issue');
is(outcome(start('careful')), 'compensated: charge refund', 'what the primary did, too');
breaks();

# Keys.
is($node->safe_psql('postgres', q(SELECT a.started, b.started, a.saga_id = b.saga_id
	FROM cqrs_start_saga('trip', unique_key => 'k') a, LATERAL (SELECT * FROM cqrs_start_saga('trip', unique_key => 'k') WHERE a.started) b)), 't|f|t', 'a key starts one saga');
$id = $node->safe_psql('postgres', q(SELECT saga_id FROM cqrs_start_saga('trip', unique_key => 'k')));
like(outcome($id), qr/^completed/, '... which is run');
is($node->safe_psql('postgres', qq(SELECT started, saga_id = '$id' FROM cqrs_start_saga('trip', unique_key => 'k'))), 'f|t', '... and is not started again when it is over');
is($node->safe_psql('postgres', qq(SELECT started, saga_id = '$id' FROM cqrs_start_saga('trip', unique_key => 'k', restart => true))), 't|f', '... unless that is wanted');
is($node->safe_psql('postgres', q(SELECT started FROM cqrs_start_saga('careful', unique_key => 'k'))), 't', 'a key is one of a saga');
my ($ret, $out, $err) = $node->psql('postgres', q(BEGIN; SELECT saga_id FROM cqrs_start_saga('trip') \gset
	SELECT cqrs_wait_saga(:'saga_id')));
like($err, qr/was started by this transaction/, 'one cannot wait for what begins only after the commit');

# Waiting: signals, early, late and twice; timeouts.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('wait', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('brief', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', timeout => '50 ms'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('otherwise', ARRAY[
		cqrs_await('paid', timeout => '50 ms', on_timeout => 'remind'),
		cqrs_step('tickets', 'issue'),
		cqrs_step('remind', 'send')]);
	SELECT cqrs_register_saga('nap', ARRAY[cqrs_sleep('night', '50 ms'), cqrs_step('tickets', 'issue')]);
));
$id = $node->safe_psql('postgres', q(SELECT saga_id FROM cqrs_start_saga('wait') \gset
	SELECT :'saga_id' FROM (SELECT cqrs_signal(:'saga_id', 'paid', '{"amount": 5}')) s));
is($node->safe_psql('postgres', "SELECT status, state->'paid' FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"amount": 5}', 'a signal in the transaction that starts it');
$id = start('wait');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
is($node->safe_psql('postgres', "SELECT cqrs_signal('$id', 'nosuch', '1'), cqrs_signal('$id', 'paid', '7')"), 't|t', 'signals');
is($node->safe_psql('postgres', "SELECT status, state->'paid' FROM cqrs_wait_saga('$id', '60 s')"), 'completed|7', 'a signal while it waits');
is($node->safe_psql('postgres', "SELECT cqrs_signal('$id', 'paid')"), 'f', 'a signal for one that is over');
is(outcome(start('brief')), 'compensated: reserve cancel', 'it waits for so long');
is(outcome(start('otherwise')), 'completed: send', '... and goes on elsewhere');
is(outcome(start('nap')), 'completed: issue', 'it sleeps');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');

# Cancelling.
$id = start('wait');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
$node->safe_psql('postgres', "SELECT cqrs_cancel_saga('$id', 'tickets')");
$node->safe_psql('postgres', "SELECT cqrs_cancel_saga('$id', 'paid')");
is(outcome($id), 'cancelled: reserve cancel', 'what was done is undone');

# Events: by key, by correlation, from the right topic only, what came early.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('payment_settled', 'payments');
	SELECT cqrs_create_topic('chat');
	SELECT cqrs_register_saga('bought', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', event_name => 'payment_settled', timeout => '1 hour'),
		cqrs_step('tickets', 'issue')]);
));
$id = start('bought', '{}', 'order-1');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('payment_settled', '{"from": "chat"}', key => 'order-1', topic => 'chat');
	SELECT cqrs_emit('payment_settled', '{"n": 0}', key => 'order-2');
	SELECT cqrs_emit('payment_settled', '{"n": 1}', key => 'order-1');
	SELECT cqrs_emit('payment_settled', '{"n": 2}', key => 'order-1')));
is($node->safe_psql('postgres', "SELECT status, state->'paid' FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"n": 1}', 'an event by its key, of the topic that is named');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');
$id = start('bought');
$node->safe_psql('postgres', qq(SELECT cqrs_emit('payment_settled', '{"n": 3}', headers => '{"correlation_id": "$id"}')));
is($node->safe_psql('postgres', "SELECT status, state->'paid' FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"n": 3}', 'an event by its correlation id');

# Parallel steps.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('both', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[cqrs_step('one', 'a', compensation => 'un_a', max_attempts => 2, retry_delay => '10 ms'),
			cqrs_step('two', 'b', compensation => 'un_b', max_attempts => 2, retry_delay => '10 ms')]),
		cqrs_step('tickets', 'issue', max_attempts => 1)])));
$id = start('both');
like(outcome($id), qr/^completed: reserve (a b|b a) issue$/, 'parallel steps');
is($node->safe_psql('postgres', "SELECT state FROM cqrs_wait_saga('$id')"), '{"one": {"last": "a"}, "two": {"last": "b"}, "last": "issue"}', '... their answers') or
	diag($node->safe_psql('postgres', "SELECT * FROM cqrs_saga_history('$id')"));
breaks('issue');
like(outcome(start('both')), qr/^compensated: reserve (a b un_b un_a|b a un_a un_b|b a un_b un_a|a b un_a un_b) cancel$/, '... are undone');
breaks('b');
is(outcome($id = start('both')), 'compensated: reserve a un_a cancel', '... if one fails');
breaks();

# A saga within a saga.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('outer', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sub_saga('inner', 'trip', compensation => 'void'),
		cqrs_step('remind', 'send', max_attempts => 1)])));
$id = start('outer', '{"x": 1}');
is($node->safe_psql('postgres', "SELECT status, state FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"x": 1, "last": "send"}', 'a saga within a saga');
breaks('issue');
is(outcome(start('outer')), 'compensated: reserve cancel', '... which fails');
breaks('send');
is(outcome(start('outer')), 'compensated: reserve void cancel', '... which is undone by a step');
breaks();

# A step that waits for a saga of its own queue, which may never be its turn.
$node->safe_psql('postgres', q(
	CREATE FUNCTION wait_for(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('found', status) FROM cqrs_wait_saga((state->>'id')::uuid, '1 hour') $$;
	SELECT cqrs_register_saga('waiter', ARRAY[cqrs_step('wait', 'wait_for', max_attempts => 1)])));
my $over = $id;
$id = start('wait');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
my $waiter = start('waiter', qq({"id": "$id"}));
is($node->safe_psql('postgres', "SELECT status, error, (SELECT error_sqlstate FROM cqrs_saga_history('$waiter') WHERE event = 'failed') FROM cqrs_wait_saga('$waiter', '60 s')"),
	"compensated|saga $id is in the queue whose sagas this session executes|55006", 'a step must not wait for another saga of its queue');
$waiter = start('waiter', qq({"id": "$over"}));
is($node->safe_psql('postgres', "SELECT state->>'found' FROM cqrs_wait_saga('$waiter', '60 s')"), 'completed', 'but may ask for one that is over');
$node->safe_psql('postgres', "SELECT cqrs_signal('$id', 'paid')");
like(outcome($id), qr/^completed/, 'which goes on');

# What is missing, and comes back.
$node->safe_psql('postgres', 'DROP FUNCTION issue(jsonb)');
is(scalar $node->psql('postgres', q(SELECT cqrs_start_saga('trip'))), 3, 'no start without its functions');
$node->safe_psql('postgres', q(CREATE FUNCTION issue(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT act($1, 'issue') $f$));
$id = start('wait');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
$node->safe_psql('postgres', 'DROP FUNCTION issue(jsonb)');
$node->safe_psql('postgres', "SELECT cqrs_signal('$id', 'paid')");
$node->poll_query_until('postgres', "SELECT status = 'stuck' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'not stuck';
like($node->safe_psql('postgres', "SELECT error FROM cqrs_saga_status WHERE saga_id = '$id'"), qr/^function public\.issue\(pg_catalog\.jsonb\) does not exist/, 'what is missing is told');
$node->safe_psql('postgres', q(CREATE FUNCTION issue(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT act($1, 'issue') $f$));
is(outcome($id), 'completed: reserve issue', '... and waited for');

# Started by an event; once.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('order_placed', 'orders');
	SELECT cqrs_register_saga('ordered', ARRAY[cqrs_step('hotel', 'reserve')], on_event => 'order_placed');
	SELECT cqrs_emit('order_placed', '{"order": 1}', key => 'o1');
	SELECT cqrs_emit('order_placed', '{"order": 1}', key => 'o1')));
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_saga_status WHERE saga_name = 'ordered' AND status = 'completed'") or die 'not started';
is($node->safe_psql('postgres', "SELECT unique_key, state->'order' FROM cqrs_saga_status WHERE saga_name = 'ordered'"), 'o1|1', 'started by an event');

# A new version; what is under way goes on as it began.
$id = start('wait');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('wait', ARRAY[cqrs_step('remind', 'send')], or_replace => true)));
my $new = start('wait');
is(outcome($new), 'completed: send', 'a new version');
$node->safe_psql('postgres', "SELECT cqrs_signal('$id', 'paid')");
is(outcome($id), 'completed: reserve issue', 'what began with the old one');

is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.saga'), '0', 'nothing is under way');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'no dead letters');
$node->stop;
done_testing();
