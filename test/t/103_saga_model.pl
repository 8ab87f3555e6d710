# What the tests of sagas of python-cqrs expect, of ours: see docs/python-cqrs.md. Steps
# and compensations, these tried again, sagas that were interrupted, fallbacks, what is
# kept of a saga, events and many sagas at once, pictures.

use strict;
use warnings;

use CqrsTest;
use Test::More;

my $node = new_server('main');

$node->append_conf('postgresql.conf', "cqrs_outbox.poll_interval = 500\n");
$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text);
	CREATE TABLE broken (what text PRIMARY KEY, attempts int, code text);
	CREATE TABLE held (what text PRIMARY KEY);

	-- What each step does: it counts its calls, also those that are rolled back; fails in
	-- so many attempts as it is to; waits while it is held; and says so, in a table and in
	-- the state.
	CREATE FUNCTION act(state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql AS $$
	DECLARE
		b broken;
	BEGIN
		PERFORM nextval('calls_' || what);
		INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, what);
		SELECT * INTO b FROM broken WHERE broken.what = act.what;
		IF (cqrs_context()).attempts <= b.attempts THEN
			RAISE 'cannot %', what USING ERRCODE = b.code;
		END IF;
		IF EXISTS (SELECT FROM held WHERE held.what = act.what) THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
		RETURN state || jsonb_build_object(what, (cqrs_context()).attempts);
	END $$;
	SELECT format('CREATE SEQUENCE calls_%1$s; CREATE FUNCTION %1$I(jsonb) RETURNS jsonb LANGUAGE sql AS $f$ SELECT act($1, %1$L) $f$', name)
	FROM unnest(ARRAY['reserve', 'cancel', 'charge', 'refund', 'issue', 'void', 'invoice', 'uninvoice', 'quote', 'guess', 'rate', 'peg']) name \gexec
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_saga('order', ARRAY[
		cqrs_step('inventory', 'reserve', compensation => 'cancel', max_attempts => 3, retry_delay => '10 ms'),
		cqrs_step('payment', 'charge', compensation => 'refund', max_attempts => 3, retry_delay => '10 ms'),
		cqrs_step('shipping', 'issue', compensation => 'void', max_attempts => 1)]);
));

sub start
{
	my ($name, $payload) = @_;

	return query($node, sprintf(q(SELECT saga_id FROM cqrs_start_saga('%s', '%s')), $name, $payload // '{}'));
}

sub status
{
	my ($id) = @_;

	return query($node, "SELECT status FROM cqrs_wait_saga('$id', '60 s')");
}

sub did
{
	my ($id) = @_;

	return query($node, "SELECT coalesce(string_agg(what, ' ' ORDER BY id), '') FROM did WHERE saga = '$id'");
}

sub outcome
{
	my ($id) = @_;

	return status($id) . ': ' . did($id);
}

# breaks(WHAT => ATTEMPTS, ...): these fail so often, and no others.
sub breaks
{
	my (%attempts) = @_;

	query($node, join ';', 'DELETE FROM broken', map { "INSERT INTO broken VALUES ('$_', $attempts{$_}, 'P0001')" } keys %attempts);
}

sub history
{
	my ($id, $columns, $events) = @_;

	return query($node, "SELECT string_agg(concat_ws('/', $columns), ' ') FROM cqrs_saga_history('$id') WHERE event ~ '^($events)\$'");
}

sub calls
{
	my ($what) = @_;

	return query($node, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM calls_$what");
}

# ----------------------------------------------------------------------
# Steps, and what undoes them
# ----------------------------------------------------------------------
my $id = start('order', '{"order": 1}');
is(outcome($id), 'completed: reserve charge issue', 'all steps, in their order; what undoes them is not called');
is(query($node, "SELECT state FROM cqrs_wait_saga('$id')"), '{"issue": 1, "order": 1, "charge": 1, "reserve": 1}', 'what they answer is in the state');
is(history($id, 'event, step_name, status, error_sqlstate, error', '.*'), 'started/running done/inventory/running done/payment/running done/shipping/completed',
	'each has an entry, without an error');
is(history($id, q(step_name, state), 'done') =~ s/"//gr, 'inventory/{order: 1, reserve: 1} payment/{order: 1, charge: 1, reserve: 1} shipping/{issue: 1, order: 1, charge: 1, reserve: 1}',
	'... with what it answered');

breaks(issue => 9);
$id = start('order');
is(outcome($id), 'compensated: reserve charge refund cancel', 'a step fails: those before it are undone, last first, and not itself');
is(history($id, 'event, step_name, error_sqlstate, error', 'failed|undone'), 'failed/shipping/P0001/cannot issue undone/payment undone/inventory', '... and why is kept');
is(error_parts($node, "SELECT cqrs_register_saga('empty', '{}')") =~ s/:.*//r, '22023', 'a saga without steps is refused');
is(query($node, "WITH s AS (SELECT saga_id FROM cqrs_start_saga('order')) SELECT status FROM cqrs_saga_status, s WHERE cqrs_saga_status.saga_id = s.saga_id"), '',
	'a start returns before anything is done');

breaks(issue => 9, refund => 9);
$id = start('order');
is(outcome($id), 'failed: reserve charge', 'what cannot be undone stops the saga');
is(history($id, 'step_name, error', 'failed'), 'shipping/cannot issue', '... and does not hide the first error');
query($node, "SELECT cqrs_skip_step('$id', 'payment')");
$node->poll_query_until('postgres', "SELECT status = 'compensated' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'not skipped';
is(did($id), 'reserve charge cancel', 'the rest is undone when somebody passes it by');

# ----------------------------------------------------------------------
# Undoing is tried again
# ----------------------------------------------------------------------
breaks(issue => 9, refund => 2);
$id = start('order');
is(outcome($id), 'compensated: reserve charge refund cancel', 'undoing that fails twice');
is(history($id, 'event, attempt', 'undoing failed|undone'), 'undoing failed/1 undoing failed/2 undone undone', '... is tried three times');
breaks(issue => 9, refund => 1, cancel => 2);
$id = start('order');
is(status($id), 'compensated', 'undoing of several steps fails');
is(history($id, 'step_name, event, attempt', 'undoing failed|undone'), 'payment/undoing failed/1 payment/undone inventory/undoing failed/1 inventory/undoing failed/2 inventory/undone',
	'... each step for itself');

query($node, q(
	SELECT cqrs_register_saga('patient', ARRAY[
		cqrs_step('payment', 'charge', compensation => 'refund', retry_delay => '20 ms', max_retry_delay => '50 ms', max_attempts => 5),
		cqrs_step('shipping', 'issue', max_attempts => 1)]);
	SELECT cqrs_register_saga('default', ARRAY[
		cqrs_step('payment', 'charge', compensation => 'refund'),
		cqrs_step('shipping', 'issue', max_attempts => 1)])));
breaks(issue => 9, refund => 9);
$id = start('patient');
is(status($id), 'failed', 'undoing that never succeeds');
is(history($id, 'attempt, error_sqlstate, error', 'undoing failed'), join(' ', map { "$_/P0001/cannot refund" } 1 .. 5), '... is tried as often as is wanted');
my @delays = split /\n/, query($node, "SELECT extract(milliseconds FROM due - at) FROM cqrs.saga_entry WHERE saga_id = '$id' AND event = 'undoing failed' AND due < 'infinity' ORDER BY seq");
is(scalar @delays, 4, '... with a delay before each further time');
for ([ 0, 20 ], [ 1, 40 ], [ 2, 50 ], [ 3, 50 ])
{
	my ($n, $expected) = @$_;

	ok($delays[$n] >= 0.75 * $expected && $delays[$n] <= 1.25 * $expected, "delay $n of $expected ms, a quarter more or less") or diag($delays[$n]);
}
is(history($id, 'error', 'failed'), 'cannot issue', '... and does not hide the first error');

breaks(issue => 9, refund => 1);
$id = start('default');
$node->poll_query_until('postgres', "SELECT attempt = 1 AND status = 'compensating' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'not tried';
is(query($node, "SELECT due_at - since_at BETWEEN '0.75 s' AND '1.25 s' FROM cqrs_saga_status WHERE saga_id = '$id'"), 't', 'by default, after a second');
query($node, "SELECT cqrs_retry_saga('$id', 'payment')");
is(query($node, "SELECT (options->>'max_attempts')::int FROM cqrs_step('x', 'refund')"), '5', '... and five times');
breaks(issue => 9);
is(status($id), 'compensated', '... or at once, if somebody says so');
breaks();

# ----------------------------------------------------------------------
# Interrupted
# ----------------------------------------------------------------------

# interrupt(ID, WHAT): the server dies while this waits in a step, and comes back.
sub interrupt
{
	my ($start, $what, %broken) = @_;
	my ($holder, $saga);

	query($node, "DELETE FROM held; INSERT INTO held VALUES ('$what')");
	$holder = hold_handlers($node, 'postgres');
	$saga = $start->();
	in_handler($node, 'postgres');
	breaks(%broken);
	my $before = query($node, "SELECT status FROM cqrs_saga_status WHERE saga_id = '$saga'");
	$node->stop('immediate');
	$holder->quit;
	$node->start;
	return ($saga, $before);
}

($id, my $was) = interrupt(sub { start('order') }, 'charge');
is($was, 'running', 'a saga is in its second step when the server dies');
is(outcome($id), 'completed: reserve charge issue', '... and goes on by itself, without doing the first again');
is(history($id, 'event, step_name, attempt', '.*'), 'started done/inventory done/payment done/shipping', '... as if nothing had been');

($id, $was) = interrupt(sub { start('order') }, 'charge', issue => 9);
is(outcome($id), 'compensated: reserve charge refund cancel', 'a step fails after that');
is(history($id, 'step_name, error', 'failed'), 'shipping/cannot issue', '... with its error');

breaks(issue => 9);
($id, $was) = interrupt(sub { start('order') }, 'refund');
is($was, 'compensating', 'a saga is being undone when the server dies');
is(outcome($id), 'compensated: reserve charge refund cancel', '... and is undone, though what failed would succeed now');
is(history($id, 'event, step_name', 'failed|undone'), 'failed/shipping undone/payment undone/inventory', '... each once');
query($node, 'DELETE FROM held');

breaks(issue => 9, refund => 9);
my $failed = start('order');
my $done = query($node, "SELECT saga_id FROM cqrs_saga_status WHERE status = 'completed' LIMIT 1");
is(status($failed), 'failed', 'one that failed');
query($node, q(
	CREATE TYPE trip AS (order_id text, amount numeric, go jsonb);
	CREATE FUNCTION priced(t trip) RETURNS trip LANGUAGE sql AS $$ SELECT t.order_id, t.amount * 2, t.go $$;
	SELECT cqrs_register_saga('typed', ARRAY[cqrs_step('one', 'priced'), cqrs_await('go'), cqrs_step('two', 'priced', compensation => 'refund', max_attempts => 1)])));
my $typed = start('typed', '{"order_id": "7", "amount": 1.5}');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$typed'") or die 'does not wait';
breaks();
my @before = map { calls($_) } qw(reserve charge refund issue);
$node->restart;
is(query($node, 'SELECT cqrs_resume_sagas()'), '0', 'those that failed, are over, or wait, are not to go on');
query($node, "SELECT cqrs_signal('$typed', 'go', '{\"x\": 1}')");
is(query($node, "SELECT status, state FROM cqrs_wait_saga('$typed', '60 s')"), 'completed|{"go": {"x": 1}, "amount": 6.0, "order_id": "7"}', 'a composite state, before and after');
is(query($node, "SELECT status FROM cqrs_saga_status WHERE saga_id = '$failed'"), 'failed', 'what failed does not go forward, nor back');
is(join(' ', map { calls($_) } qw(reserve charge refund issue)), "@before", '... nothing is called');
is(query($node, "SELECT cqrs_retry_saga('$done', 'payment')"), 'f', 'what is over cannot go on');
query($node, "SELECT cqrs_retry_saga('$failed', 'payment')");
$node->poll_query_until('postgres', "SELECT status = 'compensated' FROM cqrs_saga_status WHERE saga_id = '$failed'") or die 'not undone';
is(did($failed), 'reserve charge refund cancel', 'what failed is undone when somebody says so');

my $none = '00000000-0000-7000-8000-000000000000';
like(error_parts($node, "SELECT cqrs_wait_saga('$none')"), qr/^42704: saga $none does not exist/, 'a saga that is not there');
is(query($node, "SELECT cqrs_retry_saga('$none', 'payment')"), 'f', '... cannot go on');
like(error_parts($node, q(SELECT cqrs_start_saga('typed', '{"nonsense": 1}'))), qr/nonsense/, 'a payload that does not fit is refused');
query($node, q(SELECT cqrs_register_saga('unfit', ARRAY[cqrs_step('one', 'reserve', compensation => 'cancel'), cqrs_step('two', 'priced', max_attempts => 1)])));
$id = start('unfit');
is(outcome($id), 'compensated: reserve cancel', 'a state that does not fit a later step');
like(history($id, 'error', 'failed'), qr/"reserve"/, '... fails it, and says which key');

# ----------------------------------------------------------------------
# Fallbacks
# ----------------------------------------------------------------------
query($node, q(
	SELECT cqrs_register_saga('careful', ARRAY[
		cqrs_step('payment', 'charge', compensation => 'refund', fallback => 'invoice', fallback_compensation => 'uninvoice', max_attempts => 1),
		cqrs_step('shipping', 'issue', max_attempts => 1)]);
	SELECT cqrs_register_fallback('quote', 'guess', sqlstates => '{08}', max_failures => 2, reset_after => '1 h', excluded_sqlstates => '{ZZ}');
	SELECT cqrs_register_fallback('rate', 'peg', max_failures => 3, reset_after => '1 h', excluded_sqlstates => '{ZZ}');
	SELECT cqrs_register_saga('quoted', ARRAY[cqrs_step('quote', 'quote', compensation => 'void', max_attempts => 1)]);
	SELECT cqrs_register_saga('rated', ARRAY[cqrs_step('rate', 'rate', max_attempts => 1)]);
));
breaks(charge => 9);
$id = start('careful', '{"order": 1}');
is(outcome($id), 'completed: invoice issue', 'a fallback does what the step cannot');
is(query($node, "SELECT state FROM cqrs_wait_saga('$id')"), '{"issue": 1, "order": 1, "invoice": 1}', '... with the state as it was before');
is(history($id, 'event, step_name, attempt', 'done|failed'), 'done/payment done/shipping', '... and the step was done once');
is(query($node, "SELECT cqrs_retry_saga('$id', 'payment')"), 'f', '... and is not done again');
breaks(charge => 9, issue => 9);
is(outcome(start('careful')), 'compensated: invoice uninvoice', 'what the fallback did is undone by what undoes it');
breaks(charge => 9, invoice => 9);
$id = start('careful');
is(outcome($id), 'compensated: ', 'the fallback fails, too');
is(history($id, 'event, error', 'failed'), 'failed/cannot invoice', '... and says why');
breaks();
my $invoices = calls('invoice');
is(outcome(start('careful')), 'completed: charge issue', 'no failure');
is(calls('invoice'), $invoices, '... no fallback');

# code(SQLSTATE): "quote" and "rate" fail with it.
sub code
{
	my ($code) = @_;

	query($node, "DELETE FROM broken; INSERT INTO broken VALUES ('quote', 9, '$code'), ('rate', 9, '$code')");
}

code('08006');
is(outcome(start('quoted')), 'completed: guess', 'an error that is named');
code('22012');
is(outcome(start('quoted')), 'compensated: ', '... and one that is not');
code('ZZ001');
is(outcome(start('rated')), 'completed: peg', 'an error that is none for the breaker') for 1 .. 4;
is(query($node, q(SELECT state, failures FROM cqrs_breaker_status WHERE handler ~ 'rate')), 'closed|0', '... which stays closed');
code('08006');
is(outcome(start('quoted')), 'completed: guess', 'a further failure');
is(query($node, q(SELECT state, failures FROM cqrs_breaker_status WHERE handler ~ 'quote')), 'open|2', '... opens the breaker');
breaks();
my $quotes = calls('quote');
is(outcome(start('quoted')), 'completed: guess', 'while it is open, the fallback does it');
is(calls('quote'), $quotes, '... and the step is not called');
is(outcome(start('rated')), 'completed: rate', "another one's is for itself");

# ----------------------------------------------------------------------
# What is kept
# ----------------------------------------------------------------------
my $session = new_session($node, 'postgres');
$session->query('BEGIN');
$id = $session->query(q(SELECT saga_id FROM cqrs_start_saga('order', '{"key": "value"}', 'k1')));
is($session->query("SELECT saga_name, status, state, started_at IS NOT NULL, since_at >= started_at FROM cqrs_saga_status WHERE saga_id = '$id'"), 'order|running|{"key": "value"}|t|t',
	'one that was started');
is($session->query("SELECT event, step_name FROM cqrs_saga_history('$id')"), 'started|', '... has done nothing');
is(query($node, "SELECT count(*) FROM cqrs_saga_status WHERE saga_id = '$id'"), '0', '... and is not there for others, until the commit');
is($session->query(qq(SELECT started, saga_id = '$id' FROM cqrs_start_saga('order', '{}', 'k1'))), 'f|t', 'started again, it is the same');
$session->query('COMMIT');
is(outcome($id), 'completed: reserve charge issue', 'committed, it is run');
is(query($node, "SELECT string_agg((at >= lag)::text, ' ') FROM (SELECT at, lag(at) OVER () FROM cqrs_saga_history('$id')) h WHERE lag IS NOT NULL"), 'true true true', 'times go forward');
is(query($node, "SELECT count(*), count(DISTINCT step_name) FROM cqrs_saga_history('$id')"), '4|3', 'its history has its own entries only');
is(query($node, "SELECT count(*) FROM cqrs_saga_history('$none')"), '0', 'that of none is empty');
$session->query('BEGIN');
$id = $session->query(q(SELECT saga_id FROM cqrs_start_saga('order', '{}', 'k2')));
$session->query('ROLLBACK');
is(query($node, "SELECT count(*) FROM cqrs_saga_status WHERE saga_id = '$id'"), '0', 'rolled back, there is none');
is(query($node, q(SELECT started FROM cqrs_start_saga('order', '{}', 'k2'))), 't', '... nor its key');
$session->quit;
query($node, q(
	CREATE FUNCTION replace(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"all": "new"}'::jsonb $$;
	SELECT cqrs_register_saga('replaced', ARRAY[cqrs_step('one', 'replace'), cqrs_await('go'), cqrs_await('go on')])));
my @waiting = map { start('replaced', "{\"n\": $_}") } 1 .. 3;
$node->poll_query_until('postgres', q(SELECT count(*) = 3 FROM cqrs_saga_status WHERE saga_name = 'replaced' AND status = 'waiting')) or die 'do not wait';
is(query($node, "SELECT state FROM cqrs_saga_status WHERE saga_id = '$waiting[0]'"), '{"all": "new"}', 'an answer replaces the state');
is(query($node, q(SELECT string_agg(saga_id::text, ' ' ORDER BY started_at) FROM (SELECT * FROM cqrs_saga_status
	WHERE saga_name = 'replaced' AND status = 'waiting' AND since_at < clock_timestamp() ORDER BY started_at LIMIT 2) s)), "@waiting[0, 1]",
	'those under way, by name, status, age, and so many');
is(query($node, q(SELECT count(*) FROM cqrs_saga_status WHERE saga_name = 'replaced' AND status = 'completed')), '0', '... and those that are not');
my @signals = map { my $n = $_; in_background(sub { $node->safe_psql('postgres', "SELECT cqrs_signal('$waiting[0]', '$n', '1')") }) } 'go', 'go on';
waitpid $_, 0 for @signals;
is(query($node, "SELECT status, state FROM cqrs_wait_saga('$waiting[0]', '60 s')"), 'completed|{"go": 1, "all": "new", "go on": 1}', 'two at once, neither is lost');

# ----------------------------------------------------------------------
# Events, and many at once
# ----------------------------------------------------------------------
query($node, q(
	CREATE TABLE handled (what text, saga uuid, amount int);
	CREATE TABLE published (event_name text, correlation_id uuid, payload jsonb);
	CREATE FUNCTION charged(state jsonb) RETURNS void LANGUAGE sql AS $$
		SELECT cqrs_emit('payment_done', state || '{"amount": 5}');
		SELECT cqrs_emit('payment_told', state || '{"amount": 5}') $$;
	CREATE FUNCTION on_payment(event jsonb) RETURNS void LANGUAGE sql AS $$
		INSERT INTO handled SELECT 'payment', (cqrs_context()).correlation_id::uuid, (event->>'amount')::int $$;
	CREATE FUNCTION publish(event cqrs_event) RETURNS void LANGUAGE sql AS $$
		INSERT INTO published VALUES (event.event_name, (event.headers->>'correlation_id')::uuid, event.payload) $$;
	SELECT cqrs_register_event('payment_done');
	SELECT cqrs_register_event_handler('payment_done', 'on_payment');
	SELECT cqrs_register_event('payment_told', 'payments');
	SELECT cqrs_subscribe('published', ARRAY['payments'], 'publish(cqrs_event)');
	SELECT cqrs_register_saga('telling', ARRAY[cqrs_step('payment', 'charged', compensation => 'refund'), cqrs_step('shipping', 'issue', max_attempts => 1)])));
$id = start('telling');
is(status($id), 'completed', 'a step emits');
is(query($node, "SELECT string_agg(what || amount, ' ') FROM handled WHERE saga = '$id'"), 'payment5', "its event's handler is called once, with the step");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM published WHERE correlation_id = '$id'") or die 'not published';
is(query($node, "SELECT string_agg(event_name, ' ') FROM published WHERE correlation_id = '$id'"), 'payment_told', '... and the outbox has its event, once');
query($node, q(CREATE OR REPLACE FUNCTION on_payment(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = 'OB100'; END $$));
$id = start('telling');
is(status($id), 'compensated', 'its event cannot be handled: the step has failed');
is(query($node, "SELECT count(*) FROM cqrs_events('payments', status => 'all') WHERE headers->>'correlation_id' = '$id'"), '0', '... and what it emitted is not there');

my @sessions = map { new_session($node, 'postgres') } 1 .. 10;
my $n = 0;
$_->begin(sprintf q(SELECT saga_id FROM cqrs_start_saga('order', '{"n": %d}')), ++$n) for @sessions;
my @ids = map { $_->finish } @sessions;
$_->quit for @sessions;
is(join(' ', map { outcome($_) } @ids), join(' ', ('completed: reserve charge issue') x 10), 'ten, started at once');
is(query($node, sprintf q(SELECT string_agg(state->>'n', ' ' ORDER BY (state->>'n')::int) FROM cqrs_saga_status WHERE saga_id = ANY ('{%s}')), join ',', @ids),
	join(' ', 1 .. 10), '... each with its own state');

# ----------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------
my $long = 'n' x 63;
query($node, qq(SELECT cqrs_register_saga('long', ARRAY[cqrs_step('$long', 'reserve')])));
my $diagram = query($node, q(SELECT cqrs_diagram('saga', 'order')));
like($diagram, qr/inventory.*payment.*shipping.*undo inventory.*undo payment.*undo shipping/s, 'a picture has all steps, in their order, and what undoes them');
like($diagram, qr/start --> s0\n +s0 --> s1\n +s1 --> s2\n +s2 --> completed/, '... one behind the other');
like($diagram, qr/u1 --> u0\n +u0 --> compensated/, '... and undone in reverse');
like(query($node, q(SELECT cqrs_diagram('saga', 'careful'))), qr/s0\["payment<br\/>\S+charge\(pg_catalog\.jsonb\)<br\/>or \S+invoice\(/, '... a fallback');
like(query($node, q(SELECT cqrs_diagram('saga', 'long'))), qr/start --> s0\n +s0 --> completed/, 'a single step');
like(query($node, q(SELECT cqrs_diagram('saga', 'long'))), qr/"$long</, '... with the longest name, in full');

is(query($node, 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'no dead letters');
$node->stop;
done_testing();
