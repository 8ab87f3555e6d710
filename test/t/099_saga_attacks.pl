# Sagas are attacked: what wakes them is thrown away, others fail beside them, their
# steps end the process, the partitions change, what they wait for comes late. Each
# ends, and each step was done once, or was undone.

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('main', q(
restart_after_crash = on
cqrs_outbox.poll_interval = 500
log_statement = none
jit = off
));

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text, by name DEFAULT current_user);
	CREATE TABLE broken (what text, how text);
	CREATE SEQUENCE calls;

	-- What each step does: it says so, and fails as it is told.
	CREATE FUNCTION need_disk() RETURNS bigint LANGUAGE sql SET temp_file_limit = '64kB' SET work_mem = '64kB' AS $$
		SELECT count(*) FROM (SELECT g FROM generate_series(1, 200000) g ORDER BY g DESC OFFSET 0) x
	$$;
	CREATE FUNCTION act(state jsonb, what text) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	DECLARE
		how text := (SELECT b.how FROM broken b WHERE b.what = act.what);
	BEGIN
		PERFORM nextval('calls');
		INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, what);
		IF how = 'kill' THEN
			COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID';
		ELSIF how = 'disk' THEN
			PERFORM need_disk();
		ELSIF how = 'hold' THEN
			PERFORM pg_advisory_xact_lock(1);
		ELSIF how IS NOT NULL THEN
			RAISE 'cannot %', what USING errcode = how;
		END IF;
		RETURN state || jsonb_build_object('last', what);
	END $$;
	SELECT format('CREATE FUNCTION %1$I(jsonb) RETURNS jsonb LANGUAGE sql SET search_path = public AS $f$ SELECT act($1, %1$L) $f$', name)
	FROM unnest(ARRAY['reserve', 'cancel', 'charge', 'refund', 'issue', 'a', 'b', 'un_a', 'un_b', 'bad']) name \gexec
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_register_event('payment_settled', 'payments');
));

sub start
{
	my ($name, $payload, $key) = @_;

	return $node->safe_psql('postgres', sprintf(q(SELECT saga_id FROM cqrs_start_saga('%s', '%s', %s)), $name, $payload // '{}',
		defined $key ? "'$key'" : 'NULL'));
}

# start_killer(NAME): one that ends all sessions; that which starts it ends before
sub start_killer
{
	my $id;

	$node->safe_psql('postgres', "SELECT cqrs_pause('sagas_of_postgres')");
	$id = start(@_);
	$node->psql('postgres', "SELECT cqrs_resume('sagas_of_postgres')");
	return $id;
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

# breaks(STEP => HOW ...): an SQLSTATE, mostly
sub breaks
{
	my (%how) = @_;

	$node->safe_psql('postgres', join ';', 'TRUNCATE broken', map { "INSERT INTO broken VALUES ('$_', '$how{$_}')" } sort keys %how);
}

sub wait_saga_status
{
	my ($id, $status) = @_;

	return $node->poll_query_until('postgres', "SELECT status = '$status' FROM cqrs_saga_status WHERE saga_id = '$id'")
	  || diag($node->safe_psql('postgres', "SELECT * FROM cqrs_saga_history('$id')"));
}

sub history
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT string_agg(concat_ws(' ', event, step_name, attempt), ', ') FROM cqrs_saga_history('$id')");
}

# The status of all, if that is over.
sub all_over
{
	my ($where) = @_;

	return $node->poll_query_until('postgres',
		"SELECT bool_and(status IN ('completed', 'compensated', 'cancelled')) FROM cqrs_saga_status WHERE $where")
	  || diag($node->safe_psql('postgres', "SELECT saga_id, saga_name, status, step_name, attempt, due_at - now(), error FROM cqrs_saga_status WHERE $where AND status NOT IN ('completed', 'compensated', 'cancelled')"));
}

# ----------------------------------------------------------------------
# What wakes them is thrown away.
# ----------------------------------------------------------------------

$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('trip', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel', max_attempts => 2, retry_delay => '10 ms'),
		cqrs_step('money', 'charge', compensation => 'refund', max_attempts => 2, retry_delay => '10 ms'),
		cqrs_step('tickets', 'issue', max_attempts => 2, retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('bad', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_step('bad', 'bad', max_attempts => 3, retry_delay => '10 ms')]);
	SELECT cqrs_register_saga('slow', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_step('bad', 'bad', max_attempts => 0, retry_delay => '1 hour', max_retry_delay => '1 hour')]);
	SELECT cqrs_register_saga('nap', ARRAY[cqrs_sleep('night', '1 hour'), cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('signalled', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', timeout => '1 hour')]);
	SELECT cqrs_register_saga('bought', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_await('paid', event_name => 'payment_settled', timeout => '1 hour'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('outer', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_sub_saga('inner', 'trip'),
		cqrs_step('tickets', 'issue')]);
	SELECT cqrs_register_saga('both', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[
			cqrs_step('one', 'a', compensation => 'un_a', max_attempts => 0, retry_delay => '1 hour', max_retry_delay => '1 hour'),
			cqrs_step('two', 'b', compensation => 'un_b')]),
		cqrs_step('tickets', 'issue')]);
));
my $topics = q(SELECT topic_id FROM cqrs.topic WHERE topic IN ('sagas_of_postgres', 'saga_events_of_postgres'));
my $segments = $node->safe_psql('postgres', "SELECT string_agg(format('cqrs.topic_%s_%s', topic_id, n), ', ') FROM ($topics) t, generate_series(0, 2) n");

# lose(): all that is to have sagas go on, now or later
sub lose
{
	$node->safe_psql('postgres', "TRUNCATE cqrs.scheduled_command, $segments");
}

# make_due(): as if time had passed
sub make_due
{
	$node->safe_psql('postgres', join ';', (map { "UPDATE cqrs.saga_entry_$_ SET due = now() WHERE due IS NOT NULL" } 0 .. 2),
		'SELECT cqrs_resume_sagas()');
}

breaks(bad => 'P0001', a => 'P0001');
$node->safe_psql('postgres', q(SELECT cqrs_start_saga(name) FROM unnest(ARRAY['slow', 'nap', 'signalled', 'bought', 'both']) name, generate_series(1, 10)));
$node->poll_query_until('postgres', q(
	SELECT count(*) = 50 FROM cqrs_saga_status WHERE status IN ('retrying', 'sleeping', 'waiting') AND due_at IS NOT NULL OR saga_name = 'both' AND step_name = 'both'))
  or die $node->safe_psql('postgres', 'SELECT * FROM cqrs_saga_status');
lose();
$node->safe_psql('postgres', "SELECT cqrs_pause('sagas_of_postgres')");
$node->safe_psql('postgres', q(SELECT cqrs_start_saga(name) FROM unnest(ARRAY['trip', 'outer']) name, generate_series(1, 25)));
lose();
breaks();
$node->safe_psql('postgres', "UPDATE cqrs.saga_entry_$_ SET due = now() WHERE due IS NOT NULL") for 0 .. 2;
is($node->safe_psql('postgres', q(SELECT count(*) FROM cqrs_saga_status WHERE status IN ('completed', 'compensated', 'cancelled'))), '0', 'what nothing wakes stays where it is');
$node->safe_psql('postgres', "SELECT cqrs_resume('sagas_of_postgres')");
ok(all_over('true'), 'they go on once the subscription is resumed');
is($node->safe_psql('postgres', q(SELECT string_agg(DISTINCT saga_name || ' ' || status, ', ' ORDER BY saga_name || ' ' || status) FROM cqrs_saga_status)),
	'both completed, bought compensated, nap completed, outer completed, signalled compensated, slow completed, trip completed', 'each to its end');
is($node->safe_psql('postgres', q(
	SELECT string_agg(DISTINCT done, ', ' ORDER BY done)
	FROM (SELECT saga_name || ': ' || replace(string_agg(what, ' ' ORDER BY id), 'b a', 'a b') AS done FROM cqrs_saga_status JOIN did ON did.saga = saga_id GROUP BY saga_id, saga_name) s)),
	'both: reserve a b issue, bought: reserve cancel, nap: issue, outer: reserve issue, signalled: reserve cancel, slow: reserve bad, trip: reserve charge issue',
	'each step once');

# While nothing is lost: it makes no difference, however often it is done.
breaks(bad => 'P0001', a => 'P0001');
$node->safe_psql('postgres', q(TRUNCATE did; SELECT cqrs_start_saga(name) FROM unnest(ARRAY['trip', 'slow', 'nap', 'signalled', 'bought', 'both', 'outer']) name, generate_series(1, 10)));
for (1 .. 30)
{
	$node->safe_psql('postgres', 'SELECT cqrs_resume_sagas()');
	breaks() if $_ == 10;
	make_due() if $_ % 10 == 0;
}
ok(all_over('true'), 'all end, however often they are woken');
is($node->safe_psql('postgres', q(
	SELECT string_agg(DISTINCT done, ', ' ORDER BY done)
	FROM (SELECT saga_name || ': ' || replace(string_agg(what, ' ' ORDER BY id), 'b a', 'a b') AS done FROM cqrs_saga_status JOIN did ON did.saga = saga_id GROUP BY saga_id, saga_name) s)),
	'both: reserve a b issue, bought: reserve cancel, nap: issue, outer: reserve issue, signalled: reserve cancel, slow: reserve bad, trip: reserve charge issue',
	'each step once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.saga'), '0', 'none is under way');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'nothing was given up');

# A dead letter that is discarded: here, because what the saga does is missing.
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('sagas_of_postgres', max_attempts => 2, retry_delay => '10 ms')");
my $id = start('signalled');
$node->poll_query_until('postgres', "SELECT status = 'waiting' FROM cqrs_saga_status WHERE saga_id = '$id'") or die 'does not wait';
$node->safe_psql('postgres', q(
	CREATE TABLE kept AS SELECT * FROM cqrs.saga_definition WHERE saga_name = 'signalled';
	DELETE FROM cqrs.saga_definition WHERE saga_name = 'signalled';
	UPDATE cqrs.scheduled_command SET run_at = now()));
$node->safe_psql('postgres', "UPDATE cqrs.saga_entry_$_ SET due = now() WHERE due IS NOT NULL") for 0 .. 2;
my $beside = start('trip');
is(outcome($beside), 'completed: reserve charge issue', 'one beside it');
for (1 .. 300)
{
	last if $node->safe_psql('postgres', "SELECT count(*) FROM cqrs_dead_letters WHERE subscription = 'sagas_of_postgres'") eq '1';
	outcome(start('trip')) for 1 .. 4;
}
is($node->safe_psql('postgres', "SELECT subscription, error_sqlstate FROM cqrs_dead_letters"), 'sagas_of_postgres|XX001', 'what wakes it is a dead letter');
$node->safe_psql('postgres', q(INSERT INTO cqrs.saga_definition SELECT * FROM kept; SELECT cqrs_discard_all('sagas_of_postgres')));
is(outcome($id), 'compensated: reserve cancel', '... and once that is discarded, it goes on');
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('sagas_of_postgres', max_attempts => 25)");

# ----------------------------------------------------------------------
# Others fail beside them.
# ----------------------------------------------------------------------

# A thousand commands of the same role.
$node->safe_psql('postgres', q(
	CREATE FUNCTION fail(command jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
	SELECT cqrs_register_command('Fail', 'fail(jsonb)');
	SELECT cqrs_create_command_queue();
	SELECT count(cqrs_enqueue('Fail', '{}')) FROM generate_series(1, 1000)));
$node->poll_query_until('postgres', 'SELECT count(*) > 900 FROM cqrs.retry') or die 'no command fails';
is(outcome(start('trip')), 'completed: reserve charge issue', 'a saga beside a thousand commands that fail');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.retry'), '>', 0, '... which still do');
$node->safe_psql('postgres', q(SELECT cqrs_drop_command_queue(cascade => true)));

# One step that always needs too much disk, is cancelled, or meets what else looks like
# nobody's fault.
for my $how ('disk', '57014', '53200', '08006', 'XX000', '42501', 'OB004', 'OB005')
{
	breaks(bad => $how);
	my $bad = start('bad');
	my @others = map { start('trip') } 1 .. 20;
	is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT s.status, ' ') FROM unnest('{" . join(',', @others) . "}'::uuid[]) o, LATERAL cqrs_wait_saga(o, '60 s') s"),
		'completed', "$how: the others are done");
	for (1 .. 300)
	{
		last if $node->safe_psql('postgres', "SELECT status FROM cqrs_saga_status WHERE saga_id = '$bad'") eq 'compensated';
		start('trip') for 1 .. 4;
		$node->safe_psql('postgres', "SELECT cqrs_wait_saga('$bad', '500 ms')");
	}
	is(outcome($bad), 'compensated: reserve cancel', '... it has failed');
	is(history($bad), 'started, done hotel, failed bad 1, failed bad 2, failed bad 3, undone hotel', '... after its attempts');
}
breaks();
ok(all_over('true'), 'the others are done');

# A step that ends its process, and so all.
breaks(bad => 'kill');
my $offset = -s $node->logfile;
$id = start_killer('bad');
$node->wait_for_log(qr/was terminated by signal 9/, $offset);
poll_through_crashes($node, "SELECT status = 'compensated' FROM cqrs_saga_status WHERE saga_id = '$id'") or diag('not given up');
is(outcome($id), 'compensated: reserve cancel', 'a step that ends its process is given up, and what was done before is undone');
like($node->safe_psql('postgres', "SELECT error FROM cqrs_saga_history('$id') WHERE event = 'failed'"), qr/the server process ended/, '... which its history says');
is(outcome(start('trip')), 'completed: reserve charge issue', '... others go on');
breaks(cancel => 'kill', bad => 'P0001');
$id = start_killer('bad');
poll_through_crashes($node, "SELECT status = 'failed' FROM cqrs_saga_status WHERE saga_id = '$id'") or diag('not given up');
is(outcome($id), 'failed: reserve', 'so is one that is to undo; then a person decides');
breaks();
$node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'hotel')");
ok(wait_saga_status($id, 'compensated'), '... and has it done');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'no dead letters');

# ----------------------------------------------------------------------
# Side by side: one fails, another one is at it.
# ----------------------------------------------------------------------

# It is tried again and again.
breaks(a => 'P0001', b => 'P0001');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('hasty', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[
			cqrs_step('one', 'a', compensation => 'un_a', max_attempts => 0, retry_delay => '1 ms', max_retry_delay => '1 ms'),
			cqrs_step('two', 'b', compensation => 'un_b', max_attempts => 20, retry_delay => '1 ms', max_retry_delay => '10 ms'),
			cqrs_step('three', 'issue', compensation => 'refund')]),
		cqrs_step('tickets', 'charge')])));
$id = start('hasty');
is(outcome($id), 'compensated: reserve issue refund cancel', 'one fails while another one is tried again and again: no step is done once what was done is undone');
my $calls = $node->safe_psql('postgres', 'SELECT last_value FROM calls');
outcome(start('trip'));
is($node->safe_psql('postgres', 'SELECT last_value FROM calls'), $calls + 3, '... nor tried');

# It is being done, by a worker that runs none of the others.
breaks(a => 'hold', b => 'P0001');
my $holder;
for (1 .. 50)
{
	$holder = hold_handlers($node, 'postgres');
	$id = start('hasty');
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory')) or die 'no step is held';
	last if $node->poll_query_until('postgres',
		"SELECT count(*) FILTER (WHERE event = 'branch ended') = 2 OR clock_timestamp() > min(at) + interval '3 s' FROM cqrs_saga_history('$id')")
	  && $node->safe_psql('postgres', "SELECT count(*) FROM cqrs_saga_history('$id') WHERE event = 'branch ended' AND step_name IN ('two', 'three')") eq '2';
	$holder->quit;
	outcome($id);
}
like(did($id), qr/^reserve (a issue|issue|issue a)$/, 'one fails while another one is at it: that is waited for');
$holder->quit;
like(outcome($id), qr/^compensated: reserve (a issue|issue a) un_a refund cancel$/, '... and undone with the rest, the last one first');

# Both fail, and one is cancelled meanwhile.
breaks(a => 'P0001', b => 'P0001');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('stubborn', ARRAY[
		cqrs_step('hotel', 'reserve', compensation => 'cancel'),
		cqrs_parallel('both', ARRAY[
			cqrs_step('one', 'a', compensation => 'un_a', max_attempts => 0, retry_delay => '1 ms', max_retry_delay => '1 ms'),
			cqrs_step('two', 'b', compensation => 'un_b', max_attempts => 0, retry_delay => '1 hour', max_retry_delay => '1 hour')])])));
$id = start('stubborn');
$node->poll_query_until('postgres', "SELECT count(*) > 3 FROM cqrs_saga_history('$id') WHERE event = 'failed' AND branch = 'one'") or die 'not tried again';
$node->safe_psql('postgres', "SELECT cqrs_cancel_saga('$id')");
is(outcome($id), 'cancelled: reserve cancel', 'cancelled while all are tried again');
breaks();
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');

# Behind the point of no return, a person has them tried again: those that failed.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_saga('forward', ARRAY[
		cqrs_step('hotel', 'reserve', pivot => true),
		cqrs_parallel('both', ARRAY[cqrs_step('one', 'a', max_attempts => 1), cqrs_step('two', 'b', max_attempts => 1)]),
		cqrs_sub_saga('inner', 'trip'),
		cqrs_step('tickets', 'issue')])));
breaks(b => 'P0001', issue => 'P0001');
$id = start('forward');
is(outcome($id), 'failed: reserve a', 'behind the point of no return, one of two fails');
breaks(issue => 'P0001');
$node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'both')");
$node->poll_query_until('postgres', "SELECT status = 'failed' AND step_name = 'inner' FROM cqrs_saga_status WHERE saga_id = '$id'")
  or diag($node->safe_psql('postgres', "SELECT * FROM cqrs_saga_history('$id'); SELECT * FROM cqrs_dead_letters"));
is(did($id), 'reserve a b', '... only that one is done again');
breaks();
$node->safe_psql('postgres', "SELECT cqrs_retry_saga('$id', 'inner')");
ok(wait_saga_status($id, 'completed'), 'a saga within, which failed, is begun anew');
is(did($id), 'reserve a b issue', '... and it goes on');
is($node->safe_psql('postgres', "SELECT string_agg(status, ' ' ORDER BY started_at) FROM cqrs_saga_status WHERE parent_id = '$id'"), 'compensated completed', '... as another one');

# ----------------------------------------------------------------------
# Partitions change under load.
# ----------------------------------------------------------------------

$node->safe_psql('postgres', q(TRUNCATE did; CREATE TABLE many (saga_id uuid)));
my $load = in_background(sub {
	my $session = new_session($node, 'postgres');

	$session->query(q(INSERT INTO many SELECT (cqrs_start_saga(name)).saga_id FROM unnest(ARRAY['trip', 'both']) name, generate_series(1, 10))) for 1 .. 100;
	$session->quit;
});
for my $partitions (1, 4, 2, 5, 1, 4)
{
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM did');

	$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('sagas_of_postgres', partitions => $partitions)");
	$node->poll_query_until('postgres', "SELECT partitions = $partitions AND next_partitions IS NULL FROM cqrs_subscription_status WHERE subscription = 'sagas_of_postgres'")
	  or die 'partitions not changed';
	$node->poll_query_until('postgres', "SELECT (SELECT count(*) FROM did) > $before + 50 OR (SELECT count(*) FROM many) = 2000") or die 'no load';
}
waitpid $load, 0;
is($?, 0, 'sagas are started while the partitions change');
ok(all_over('saga_id IN (SELECT saga_id FROM many)'), 'all end');
is($node->safe_psql('postgres', q(
	SELECT string_agg(concat_ws(' ', done, count), ', ' ORDER BY done) FROM (
		SELECT saga_name || ': ' || replace(done, 'b a', 'a b') AS done, count(*) AS count
		FROM cqrs_saga_status JOIN (SELECT saga, string_agg(what, ' ' ORDER BY id) AS done FROM did GROUP BY saga) d ON d.saga = saga_id
		WHERE saga_id IN (SELECT saga_id FROM many) GROUP BY 1) s)),
	'both: reserve a b issue 1000, trip: reserve charge issue 1000', 'each step once, and in order');
unlike(slurp_file($node->logfile), qr/snapshot .* still active/, '... and a worker whose partition is gone leaves nothing behind');

# ----------------------------------------------------------------------
# What comes in time, but is brought late.
# ----------------------------------------------------------------------

$node->safe_psql('postgres', "SELECT cqrs_register_saga('brief', ARRAY[
	cqrs_step('hotel', 'reserve', compensation => 'cancel'),
	cqrs_await('paid', event_name => 'payment_settled', timeout => '1 hour'),
	cqrs_step('tickets', 'issue')])");
$node->safe_psql('postgres', "SELECT cqrs_pause('saga_events_of_postgres')");
$id = start('brief', '{}', 'paid in time');
my $late = start('brief', '{}', 'paid too late');
$node->poll_query_until('postgres', "SELECT count(*) = 2 FROM cqrs_saga_status WHERE saga_id IN ('$id', '$late') AND status = 'waiting'") or die 'does not wait';
$node->safe_psql('postgres', q(SELECT cqrs_emit('payment_settled', '{"n": 1}', key => 'paid in time')));
$node->safe_psql('postgres', "UPDATE cqrs.saga_entry_$_ SET due = now() WHERE due IS NOT NULL") for 0 .. 2;
$node->safe_psql('postgres', 'UPDATE cqrs.scheduled_command SET run_at = now()');
$node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM cqrs.scheduled_command') or die 'the time is not over';
$node->safe_psql('postgres', q(SELECT cqrs_emit('payment_settled', '{"n": 1}', key => 'paid too late')));
is($node->safe_psql('postgres', "SELECT status FROM cqrs_saga_status WHERE saga_id = '$late'"), 'waiting', 'the time is over, but it goes the way of the events');
$node->safe_psql('postgres', "SELECT cqrs_resume('saga_events_of_postgres')");
is(outcome($id), 'completed: reserve issue', 'an event that came in time counts, however late it is brought');
is(outcome($late), 'compensated: reserve cancel', 'one that came too late does not');

# ----------------------------------------------------------------------
# Started by several, or by a transaction that is prepared.
# ----------------------------------------------------------------------

my ($first, $second) = map { new_session($node, 'postgres') } 1 .. 2;
for my $end ('COMMIT', 'ROLLBACK')
{
	my $start = "SELECT started FROM cqrs_start_saga('trip', unique_key => 'once or $end')";

	$first->query('BEGIN');
	is($first->query($start), 't', "$end: one starts it");
	$second->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$second->begin($start);
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock')) or die 'does not wait';
	$first->query($end);
	is($second->finish, $end eq 'COMMIT' ? 'f' : 't', '... another one waits for him, and sees what became of it');
	$second->query('COMMIT');
	is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_saga_status WHERE unique_key = 'once or $end'"), '1', '... there is one');
}
$_->quit for $first, $second;
$id = $node->safe_psql('postgres', q(BEGIN; SELECT saga_id FROM cqrs_start_saga('nap', unique_key => 'prepared'); PREPARE TRANSACTION 'p'));
$node->restart;
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_saga_status WHERE saga_id = '$id'"), '0', 'one that is only prepared is not under way');
$node->safe_psql('postgres', "COMMIT PREPARED 'p'; SELECT cqrs_signal('$id', 'night')");
make_due();
is(outcome($id), 'completed: issue', '... and is done once that is committed');
ok(all_over('true'), 'so are the others');

# What is missing or forbidden, is not an attempt, however often somebody looks.
$node->safe_psql('postgres', q(
	CREATE ROLE traveller LOGIN;
	GRANT SELECT ON broken TO traveller; GRANT INSERT ON did TO traveller; GRANT USAGE ON SEQUENCE calls TO traveller;
	REVOKE EXECUTE ON FUNCTION issue(jsonb) FROM PUBLIC; GRANT EXECUTE ON FUNCTION issue(jsonb) TO traveller;
	SET ROLE traveller;
	SELECT cqrs_create_saga_queue(search_path => 'public')));
$node->safe_psql('postgres', "SELECT cqrs_pause('sagas_of_traveller')");
$id = $node->safe_psql('postgres', "SET ROLE traveller; SELECT saga_id FROM cqrs_start_saga('trip')");
$node->safe_psql('postgres', "REVOKE EXECUTE ON FUNCTION issue(jsonb) FROM traveller; SELECT cqrs_resume('sagas_of_traveller')");
ok(wait_saga_status($id, 'stuck'), 'a step that its role may not execute any more');
like($node->safe_psql('postgres', "SELECT error FROM cqrs_saga_status WHERE saga_id = '$id'"), qr/role "traveller" may not execute function public\.issue/, '... is told');
$node->safe_psql('postgres', "SELECT cqrs_resume_sagas('traveller') FROM generate_series(1, 3)") for 1 .. 10;
is($node->safe_psql('postgres', "SELECT status FROM cqrs_saga_status WHERE saga_id = '$id'"), 'stuck', '... and does not fail');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION issue(jsonb) TO traveller');
$node->safe_psql('postgres', "SELECT cqrs_resume_sagas('traveller')");
is(outcome($id), 'completed: reserve charge issue', '... once it may, it goes on');
is(history($id), 'started, done hotel, done money, function missing tickets, done tickets', '... which was no attempt');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT by, ' ') FROM did WHERE saga = '$id'"), 'traveller', 'steps are done as who started it');

is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.saga'), '0', 'nothing is under way');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), '0', 'no dead letters');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.scheduled_command'), '0', 'no time is left behind');
$node->stop;
done_testing();
