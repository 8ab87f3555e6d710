# Steps of sagas at the edges: their time is over, they meet each other, they fail at the
# very end; sagas started from everywhere, in transactions of all kinds; large states and
# strange names; many sagas.

use strict;
use warnings;
use utf8;

use CqrsTest;
use Encode qw(decode encode);
use Test::More;

my $node = new_server('main');

$node->append_conf('postgresql.conf', "cqrs_outbox.poll_interval = 500\n");
$node->start;
query($node, q(
	CREATE EXTENSION cqrs_outbox;
	CREATE TABLE did (id bigint GENERATED ALWAYS AS IDENTITY, saga uuid, what text);
	CREATE SEQUENCE calls;
	CREATE FUNCTION note(state jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, 'note') $$;
	CREATE FUNCTION unnote(state jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO did (saga, what) VALUES ((cqrs_context()).id, 'unnote') $$;
	SELECT cqrs_create_saga_queue();
	SELECT cqrs_create_command_queue();
	SELECT cqrs_register_saga('noted', ARRAY[cqrs_step('note', 'note')]);
));

sub start
{
	my ($name, $payload) = @_;

	return query($node, sprintf(q(SELECT saga_id FROM cqrs_start_saga('%s', '%s')), $name, $payload // '{}'));
}

sub outcome
{
	my ($id) = @_;

	return query($node, "SELECT status FROM cqrs_wait_saga('$id', '60 s')") . ': ' .
	  query($node, "SELECT coalesce(string_agg(what, ' ' ORDER BY id), '') FROM did WHERE saga = '$id'");
}

sub failures
{
	my ($id) = @_;

	return query($node, "SELECT string_agg(concat_ws('/', step_name, attempt, error_sqlstate), ' ') FROM cqrs_saga_history('$id') WHERE event ~ 'failed'");
}

# ----------------------------------------------------------------------
# A step's time is over
# ----------------------------------------------------------------------
query($node, q(
	CREATE FUNCTION slow(state jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM note(state); PERFORM pg_sleep(3600); END $$;
	CREATE FUNCTION catching(state jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM note(state);
		BEGIN
			PERFORM pg_sleep(3600);
		EXCEPTION WHEN query_canceled THEN
		END;
	END $$;
	CREATE FUNCTION stubborn(state jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM note(state);
		LOOP
			BEGIN
				PERFORM pg_sleep(3600);
			EXCEPTION WHEN query_canceled THEN
			END;
		END LOOP;
	END $$;
	SELECT cqrs_register_saga(name, ARRAY[cqrs_step('first', 'note', compensation => 'unnote'), cqrs_step('late', name, timeout => '100 ms', max_attempts => 2, retry_delay => '1 ms')])
	FROM unnest(ARRAY['slow', 'catching', 'stubborn']) name;
	SELECT cqrs_register_saga('slow to undo', ARRAY[cqrs_step('first', 'note', compensation => 'slow', timeout => '100 ms', max_attempts => 1), cqrs_step('second', 'slow', timeout => '1 ms', max_attempts => 1)]);
));
for my $name ('slow', 'catching', 'stubborn')
{
	my $id = start($name);

	is(outcome($id), 'compensated: note unnote', "a step whose time is over: $name");
	is(failures($id), 'late/1/57014 late/2/57014', '... it has failed each time');
}
my $id = start('slow to undo');
is(outcome($id), 'failed: note', 'what undoes it has as much time');
is(failures($id), 'second/1/57014 first/1/57014', '... and is cancelled after that');
is(outcome(start('noted')), 'completed: note', 'others go on');

# ----------------------------------------------------------------------
# Steps that meet others
# ----------------------------------------------------------------------
query($node, q(
	CREATE FUNCTION meets(state jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM note(state);
		IF nextval('calls') <= (state->>'times')::int THEN RAISE 'met' USING ERRCODE = state->>'code'; END IF;
	END $$;
	SELECT cqrs_register_saga('meets', ARRAY[cqrs_step('first', 'note', compensation => 'unnote'), cqrs_step('meets', 'meets', max_attempts => 2, retry_delay => '1 ms')])));
for my $code ('40001', '40P01')
{
	query($node, "SELECT setval('calls', 1, false)");
	$id = start('meets', qq({"code": "$code", "times": 3}));
	is(outcome($id), 'completed: note note', "three times $code");
	is(failures($id), '', '... are no attempt');
	query($node, "SELECT setval('calls', 1, false)");
	$id = start('meets', qq({"code": "$code", "times": 1000}));
	is(outcome($id), 'compensated: note unnote', "$code without end");
	is(failures($id), "meets/1/$code meets/2/$code", '... has failed');
	is(query($node, 'SELECT last_value FROM calls'), '8', '... after four calls each');
}

# A real one: the client has the row that the step wants, and wants what it has.
query($node, q(
	CREATE TABLE account (n int PRIMARY KEY, balance int);
	INSERT INTO account VALUES (1, 0), (2, 0);
	CREATE FUNCTION moves(state jsonb) RETURNS void LANGUAGE sql AS $$
		UPDATE account SET balance = balance - 1 WHERE n = 1;
		UPDATE account SET balance = balance + 1 WHERE n = 2 $$;
	SELECT cqrs_register_saga('moves', ARRAY[cqrs_step('moves', 'moves', max_attempts => 1)])));
my $client = new_session($node, 'postgres');
$client->query(q(SET deadlock_timeout = '1 h'; BEGIN; UPDATE account SET balance = balance + 1 WHERE n = 2));
$id = start('moves');
in_handler($node, 'postgres');
$client->begin('UPDATE account SET balance = balance - 1 WHERE n = 1');
is($client->finish, '', 'a deadlock with a client, which goes on');
$client->query('COMMIT');
$client->quit;
is(outcome($id), 'completed: ', '... and so does the step');
is(failures($id), '', '... which has not failed');
is(query($node, q(SELECT string_agg(balance::text, ' ' ORDER BY n) FROM account)), '-2 2', '... and was done once');

# ----------------------------------------------------------------------
# Errors at the very end of a step
# ----------------------------------------------------------------------
query($node, q(
	CREATE TABLE parent (n int PRIMARY KEY);
	CREATE TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
	INSERT INTO parent VALUES (1);
	CREATE FUNCTION bears(state jsonb) RETURNS jsonb LANGUAGE sql AS $$
		SELECT note(state);
		INSERT INTO child VALUES ((state->>'n')::int);
		SELECT state || '{"born": true}' $$;
	CREATE FUNCTION buries(state jsonb) RETURNS void LANGUAGE sql AS $$
		SELECT unnote(state);
		INSERT INTO child VALUES ((state->>'dead')::int) $$;
	SELECT cqrs_register_saga('bears', ARRAY[cqrs_step('first', 'note', compensation => 'unnote'), cqrs_step('bears', 'bears', max_attempts => 2, retry_delay => '1 ms')]);
	SELECT cqrs_register_saga('buries', ARRAY[cqrs_step('first', 'note', compensation => 'buries', max_attempts => 1), cqrs_step('bears', 'bears', max_attempts => 1)])));
$id = start('bears', '{"n": 7}');
is(outcome($id), 'compensated: note unnote', 'a deferred constraint fails the step');
is(failures($id), 'bears/1/23503 bears/2/23503', '... as any error');
is(query($node, "SELECT state ? 'born' FROM cqrs_wait_saga('$id')"), 'f', '... whose answer does not count');
is(outcome(start('buries', '{"n": 7, "dead": 8}')), 'failed: note', '... or what undoes it');
my @ids = split /\n/, query($node, q(SELECT (cqrs_start_saga('bears', jsonb_build_object('n', 1 + (i % 10 = 0)::int))).saga_id FROM generate_series(1, 50) i));
is(query($node, sprintf(q(SELECT string_agg(DISTINCT w.status, ' ') FROM unnest('{%s}'::uuid[]) WITH ORDINALITY s (id, i), cqrs_wait_saga(s.id, '60 s') w WHERE i %% 10 <> 0), join ',', @ids)),
	'completed', 'among many, those that do not fail are done');
is(query($node, sprintf(q(SELECT string_agg(DISTINCT w.status, ' ') FROM unnest('{%s}'::uuid[]) WITH ORDINALITY s (id, i), cqrs_wait_saga(s.id, '60 s') w WHERE i %% 10 = 0), join ',', @ids)),
	'compensated', '... and those that do are undone');
is(query($node, 'SELECT count(*), sum(n) FROM child'), '45|45', '... and leave nothing');

# ----------------------------------------------------------------------
# Started from everywhere
# ----------------------------------------------------------------------
query($node, q(
	CREATE FUNCTION book(command jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
	DECLARE
		s record;
	BEGIN
		s := cqrs_start_saga('noted', command, command->>'key');
		IF command ? 'fail' THEN RAISE 'no'; END IF;
		RETURN to_jsonb(s);
	END $$;
	SELECT cqrs_register_command('Book', 'book');
	CREATE FUNCTION on_booking(event cqrs_event) RETURNS void LANGUAGE sql AS $$
		SELECT cqrs_start_saga('noted', event.payload, event.event_id::text) $$;
	SELECT cqrs_register_event('booking', 'bookings');
	SELECT cqrs_subscribe('bookings', ARRAY['bookings'], 'on_booking(cqrs_event)')));
$id = query($node, q(SELECT cqrs_send('Book', '{"key": "b1"}')->>'saga_id'));
is(outcome($id), 'completed: note', "started by a command's handler");
is(query($node, qq(SELECT cqrs_send('Book', '{"key": "b1"}') = '{"saga_id": "$id", "started": false}')), 't', '... once');
like(error_parts($node, q(SELECT cqrs_send('Book', '{"key": "b2", "fail": true}'))), qr/^P0001: no/, "a command's handler fails");
is(query($node, q(SELECT count(*) FROM cqrs_saga_status WHERE unique_key = 'b2')), '0', '... and so there is no saga');
my $event_id = query($node, q(SELECT cqrs_emit('booking', '{"n": 3}')));
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_saga_status WHERE unique_key = '$event_id' AND status = 'completed' AND state = '{\"n\": 3}'") or die 'not started';
pass("started by a subscription's handler");
query($node, q(SELECT cqrs_schedule('booking', '* * * * * *', 'Book', '{"key": "scheduled"}')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM cqrs_saga_status WHERE unique_key = 'scheduled' AND status = 'completed')) or die 'not started';
query($node, q(SELECT cqrs_unschedule('booking')));
pass('started by a schedule');

# ----------------------------------------------------------------------
# Transactions
# ----------------------------------------------------------------------
my $session = new_session($node, 'postgres');
my $id_of = q(SELECT saga_id FROM cqrs_start_saga('noted', '{}', '%s'));
$session->query('BEGIN');
$id = $session->query(sprintf $id_of, 'p1');
$session->query("PREPARE TRANSACTION 'p1'");
is(query($node, 'SELECT count(*) FROM pg_prepared_xacts'), '1', 'a start is prepared');
is(query($node, "SELECT count(*) FROM cqrs_saga_status WHERE saga_id = '$id'"), '0', '... and not there');
like(error_of($node, 'postgres', "SET lock_timeout = '10 ms'; " . sprintf $id_of, 'p1'), qr/55P03/, '... though its key is taken');
query($node, "COMMIT PREPARED 'p1'");
is(outcome($id), 'completed: note', '... and committed');
$session->query('BEGIN');
$id = $session->query(sprintf $id_of, 'p2');
$session->query("PREPARE TRANSACTION 'p2'");
$session->quit;
$node->stop('immediate');
$node->start;
is(query($node, "ROLLBACK PREPARED 'p2'; SELECT count(*) FROM cqrs_saga_status WHERE saga_id = '$id'"), '0', 'one that is rolled back, after a crash');
is(query($node, q(SELECT started FROM cqrs_start_saga('noted', '{}', 'p2'))), 't', '... leaves its key free');

$session = new_session($node, 'postgres');
$session->query('BEGIN; SAVEPOINT s');
my $gone = $session->query(sprintf $id_of, 's1');
$session->query('ROLLBACK TO s');
like($session->query("SAVEPOINT t; SELECT cqrs_wait_saga('$gone')"), qr/saga $gone does not exist/, 'a start behind a savepoint that is rolled back');
$session->query('ROLLBACK TO t');
is($session->query("SELECT cqrs_signal('$gone', 'note')"), 'f', '... is none');
$id = $session->query(sprintf $id_of, 's1');
isnt($id, $gone, '... and another one has its key');
$session->query('SAVEPOINT u');
is($session->query(sprintf(q(SELECT started, saga_id FROM cqrs_start_saga('noted', '{}', 's1')))), "f|$id", '... as the same transaction sees');
$session->query('RELEASE u; COMMIT');
is(outcome($id), 'completed: note', '... which is run');
is(query($node, "SELECT count(*) FROM did WHERE saga = '$gone'"), '0', '... and the other one is not');
is($session->query(sprintf 'BEGIN; SAVEPOINT s; ' . $id_of . '; ROLLBACK TO s; COMMIT', 's2') =~ s/.*-.*//r, '', 'a transaction that has only that');
is(query($node, q(SELECT count(*) FROM cqrs_saga_status WHERE unique_key = 's2')), '0', '... starts nothing');
$session->quit;

# ----------------------------------------------------------------------
# Large states, strange names, payloads of nothing
# ----------------------------------------------------------------------
query($node, q(
	CREATE FUNCTION grows(state jsonb) RETURNS jsonb LANGUAGE sql AS $$
		SELECT state || jsonb_build_object('x' || (SELECT count(*) FROM jsonb_object_keys(state)), (SELECT string_agg(md5(i::text || random()), '') FROM generate_series(1, 32768) i)) $$;
	CREATE FUNCTION fails(state jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'no: %', state USING ERRCODE = 'OB100'; END $$;
	SELECT cqrs_register_saga('grows', ARRAY[cqrs_step('one', 'grows'), cqrs_await('go'), cqrs_parallel('both', ARRAY[cqrs_step('a', 'grows'), cqrs_step('b', 'grows')]), cqrs_sub_saga('more', 'more')]);
	SELECT cqrs_register_saga('more', ARRAY[cqrs_step('one', 'grows')]);
	SELECT cqrs_register_saga('too much', ARRAY[cqrs_step('one', 'grows', compensation => 'unnote'), cqrs_step('fails', 'fails', max_attempts => 1)]);
));
$id = start('grows');
is(query($node, "SELECT cqrs_signal('$id', 'go', to_jsonb(repeat('y', 1048576)))"), 't', 'a signal of a megabyte');
is(query($node, "SELECT w.status, length(state->>'x0'), length(state->>'go'), length(state->'a'->>'x2'), length(state->'b'->>'x0'), length(state->>'x4') FROM cqrs_wait_saga('$id', '60 s') w"),
	'completed|1048576|1048576|1048576|1048576|1048576', 'states of megabytes');
$id = start('too much');
is(outcome($id), 'compensated: unnote', 'an error of a megabyte');
is(query($node, "SELECT error LIKE 'no: {%' FROM cqrs_saga_history('$id') WHERE event = 'failed'"), 't', '... is kept');
is(query($node, 'SELECT count(*) FROM cqrs_events(\'sagas_of_\' || current_user)'), '0', '... and nothing else');

my ($saga, $step, $key) = ('it\'s "Ünï" \\ ☃ {} %s', 'Schritt "1" \\ \' ☃ $1', 'ключ \' " \\ %');
my $quoted = sub { "\$q\$$_[0]\$q\$" };
my $sql = sprintf(q(
	CREATE FUNCTION "fn '☃"" \\"(state jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT state || jsonb_build_object((cqrs_context()).name, true) $$;
	SELECT cqrs_register_event('☃ "e"', '☃ "t"');
	SELECT cqrs_register_saga(%1$s, ARRAY[cqrs_step(%2$s, '"fn ''☃"" \\"', compensation => '"fn ''☃"" \\"'), cqrs_await('☃ "e"', event_name => '☃ "e"')]);
	SELECT cqrs_start_saga(%1$s, '{}', %3$s) \g /dev/null
	SELECT cqrs_emit('☃ "e"', '{"☃": "\\""}', key => %3$s) \g /dev/null
	SELECT w.status, w.state FROM cqrs_saga_status s, cqrs_wait_saga(s.saga_id, '60 s') w WHERE s.unique_key = %3$s
), map { $quoted->($_) } $saga, $step, $key) =~ s/\\\\/\\/gr;
query($node, encode('UTF-8', $sql =~ s/SELECT w\.status.*//sr));
$sql = encode('UTF-8', $sql =~ s/.*(?=SELECT w\.status)//sr);
is(decode('UTF-8', query($node, $sql)), 'completed|{"☃ \"e\"": {"☃": "\""}, "it\'s \"Ünï\" \\\\ ☃ {} %s.Schritt \"1\" \\\\ \' ☃ $1": true}', 'strange names');
is(decode('UTF-8', query($node, encode('UTF-8', sprintf q(SELECT string_agg(h.step_name, '|') FROM cqrs_saga_status s, cqrs_saga_history(s.saga_id) h WHERE unique_key = %s AND event <> 'started'), $quoted->($key)))),
	qq($step|☃ "e"), '... in its history');
like(decode('UTF-8', query($node, encode('UTF-8', sprintf q(SELECT cqrs_diagram('saga', %s)), $quoted->($saga)))), qr/^flowchart TD\n.*☃/s, '... in a picture');

query($node, q(
	SELECT cqrs_register_event('answered', 'answers');
	SELECT cqrs_register_saga('asks', ARRAY[cqrs_await('one', event_name => 'answered'), cqrs_step('note', 'note')])));
for ([ 'NULL', '{"q": 1}' ], [ q('null'), '{"q": 1, "one": null}' ], [ q('[1]'), '{"q": 1, "one": [1]}' ])
{
	my ($payload, $state) = @$_;

	$id = start('asks', '{"q": 1}');
	query($node, "SELECT cqrs_signal('$id', 'answered', $payload)");
	is(query($node, "SELECT status, state FROM cqrs_wait_saga('$id', '60 s')"), "completed|$state", "a signal with payload $payload");
}
$id = query($node, q(SELECT saga_id FROM cqrs_start_saga('asks', '{"q": 1}', 'k')));
query($node, q(SELECT cqrs_emit('answered', NULL, key => 'k')));
is(query($node, "SELECT status, state FROM cqrs_wait_saga('$id', '60 s')"), 'completed|{"q": 1}', 'an event without a payload');

# ----------------------------------------------------------------------
# Many
# ----------------------------------------------------------------------
query($node, q(
	SELECT cqrs_register_saga('rests', ARRAY[cqrs_step('note', 'note'), cqrs_await('go')]);
	SELECT count(cqrs_start_saga('rests', '{}', 'many ' || i)) FROM generate_series(1, 2000) i));
$node->poll_query_until('postgres', q(SELECT count(*) = 2000 FROM cqrs_saga_status WHERE saga_name = 'rests' AND status = 'waiting')) or die 'do not wait';
query($node, 'CREATE ROLE owner; GRANT CREATE ON SCHEMA public TO owner');
$id = query($node, q(SELECT saga_id FROM cqrs_saga_status WHERE unique_key = 'many 1000'));
for my $role ('postgres', 'owner')
{
	for ([ "cqrs_saga_status WHERE saga_id = '$id'", 'the status of one' ], [ q(cqrs_saga_status WHERE unique_key = 'many 1000'), 'that of a key' ],
		[ "cqrs_saga_history('$id')", 'the history of one' ])
	{
		my ($what, $name) = @$_;
		my $plan = query($node, ($role eq 'owner' ? 'SET ROLE owner; ' : '') . "EXPLAIN (COSTS off) SELECT * FROM $what");

		unlike($plan, qr/Seq Scan on saga_entry/, "$name of thousands is found by an index, by $role") or diag($plan);
	}
}

is(query($node, q(SELECT count(*) FROM cqrs_dead_letters)), '0', 'no dead letters');

# ----------------------------------------------------------------------
# What cannot go on says so
# ----------------------------------------------------------------------

# Past a pivot that was passed by, nothing is undone: what is behind it would not be.
query($node, q(
	CREATE FUNCTION boom(state jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	SELECT cqrs_register_saga('passes by', ARRAY[cqrs_step('hotel', 'note', compensation => 'unnote'),
		cqrs_await('paid', timeout => '1 ms', on_timeout => 'behind'), cqrs_step('charge', 'note', pivot => true),
		cqrs_step('behind', 'note'), cqrs_step('last', 'boom', max_attempts => 1)])));
is(outcome(start('passes by')), 'failed: note note', 'a pivot that was passed by is a point of no return, too');

# How the other saga ended is not there any more.
query($node, q(
	SELECT cqrs_register_saga('waits', ARRAY[cqrs_await('never')]);
	SELECT cqrs_register_saga('around', ARRAY[cqrs_step('first', 'note', compensation => 'unnote'), cqrs_sub_saga('other', 'waits')])));
my $around = start('around');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_saga_status WHERE saga_name = 'waits' AND status = 'waiting'"), 'another saga is waited for');
query($node, q(
	CREATE TEMP TABLE gone AS SELECT saga_id FROM cqrs_saga_status WHERE saga_name = 'waits';
	DELETE FROM cqrs.saga WHERE saga_id IN (TABLE gone);
	DELETE FROM cqrs.saga_entry_0 WHERE saga_id IN (TABLE gone);
	DELETE FROM cqrs.saga_entry_1 WHERE saga_id IN (TABLE gone);
	DELETE FROM cqrs.saga_entry_2 WHERE saga_id IN (TABLE gone);
	SELECT cqrs_resume_sagas()));
is(outcome($around), 'compensated: note unnote', 'if how that ended is not kept any more, the step has failed');
like(query($node, "SELECT string_agg(error, ' ') FROM cqrs_saga_history('$around')"), qr/how saga "waits" ended is not kept any more/, '... which the history says');

# The other saga waits for what its role does not get, until it does.
query($node, q(
	SELECT cqrs_register_event('settled', 'secrets');
	SELECT cqrs_register_saga('inner', ARRAY[cqrs_await('settled', topic => 'secrets', event_name => 'settled')]);
	SELECT cqrs_register_saga('outer', ARRAY[cqrs_sub_saga('in', 'inner')]);
	CREATE ROLE outsider LOGIN));
query($node, q(SET ROLE outsider; SELECT cqrs_create_saga_queue()));
like($node->safe_psql('postgres', q(SET ROLE outsider; SELECT saga_id FROM cqrs_start_saga('outer'))), qr/^[0-9a-f-]{36}$/, 'a saga with another one');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_saga_status WHERE saga_name = 'outer' AND status = 'stuck' AND error ~ 'not brought to'"),
	'... which would not get what it waits for: it is stuck');
query($node, 'GRANT SELECT ON cqrs_topics.secrets TO outsider');
query($node, q(SET ROLE outsider; SELECT cqrs_create_saga_queue()));
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_saga_status WHERE saga_name = 'inner' AND status = 'waiting'"), '... until it gets it');

# The one under way is the one of that key.
my $arguments = "'waits', unique_key => 'again'";
my $old = query($node, "SELECT saga_id FROM cqrs_start_saga($arguments)");
query($node, "SELECT cqrs_cancel_saga('$old')");
is(query($node, "SELECT status FROM cqrs_wait_saga('$old', '60 s')"), 'cancelled', 'one is over');
my $new = query($node, "SELECT saga_id FROM cqrs_start_saga($arguments, restart => true)");
is(query($node, "SELECT saga_id, started FROM cqrs_start_saga($arguments)"), "$new|f", '... the next one is found');
query($node, "SELECT cqrs_cancel_saga('$new')");
is(query($node, "SELECT status FROM cqrs_wait_saga('$new', '60 s')"), 'cancelled', '... when it is over, too');
is(query($node, "SELECT saga_id, started FROM cqrs_start_saga($arguments)"), "$new|f", '... the newest is found');

$node->stop;
done_testing();
