# Who has enqueued a command waits for its answer: it comes when the command was
# executed, given up or cancelled, and is there after a restore. A command that was
# not begun in time is not executed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', 'max_locks_per_transaction = 10');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE app LOGIN;
	GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO app;
	CREATE TABLE done (n integer);
	GRANT SELECT, INSERT ON done TO app;
	-- waits for who has advisory lock 1
	CREATE FUNCTION do_it(c jsonb) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO done VALUES ((c->>'n')::integer);
		IF c ? 'fails' THEN
			RAISE 'no';
		END IF;
		RETURN jsonb_build_object('n', c->'n', 'attempts', (cqrs_context()).attempts);
	END $$;
	CREATE FUNCTION wait_for(c jsonb) RETURNS text LANGUAGE sql SET search_path = public AS $$
		SELECT state FROM cqrs_wait_command((c->>'id')::uuid, '1 hour')
	$$;
	SELECT cqrs_register_command('Do', 'do_it'), cqrs_register_command('WaitFor', 'wait_for');
	SET ROLE app;
	SELECT cqrs_create_command_queue();
	SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 2, retry_delay => '10 ms')));

my $session = new_session($node, 'postgres');
$session->query('SET ROLE app');

# enqueue(PAYLOAD, OPTIONS): returns the id
sub enqueue
{
	my ($payload, $options, $arguments) = @_;

	return $session->query("SELECT cqrs_enqueue('Do', '$payload', options => $options" . ($arguments // '') . ')');
}
my $keep = q('{"keep_answer": true}');

# An answer that is waited for.
my $holder = hold_handlers($node, 'postgres');
my $id = enqueue('{"n": 1}', $keep);
in_handler($node, 'postgres');
is($session->query("SELECT * FROM cqrs_wait_command('$id', '0')"), 'running|||', 'not over yet');
is($session->query("SELECT state FROM cqrs_wait_command('$id', '300 ms')"), 'running', 'nor a while later');
$session->begin("SELECT * FROM cqrs_wait_command('$id', '1 hour')");
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query ~ '^SELECT . FROM cqrs_wait_command' AND wait_event_type IN ('Extension', 'Timeout'))),
	'somebody waits for it');
$holder->quit;
is($session->finish, 'done|{"n": 1, "attempts": 1}||', 'it is executed, and this is its answer');
is($session->query("SELECT * FROM cqrs_wait_command('$id', '0')"), 'done|{"n": 1, "attempts": 1}||', 'it is kept');
is($session->query("SELECT * FROM cqrs_command_result('$id')"), 'done|{"n": 1, "attempts": 1}||', 'for who asks later, too');

# One that fails, and one that is cancelled.
$id = enqueue('{"n": 2, "fails": 1}', $keep);
is($session->query("SELECT * FROM cqrs_wait_command('$id', '1 hour')"), 'failed||no|P0001', 'one that is given up');
query($node, "SET ROLE app; SELECT cqrs_pause('commands_of_app')");
$id = enqueue('{"n": 3}', $keep);
is($session->query("SELECT * FROM cqrs_wait_command('$id', '0')"), 'ready|||', 'one that is not begun');
$session->begin("SELECT * FROM cqrs_wait_command('$id', '1 hour')");
is(query($node, "SET ROLE app; SELECT cqrs_cancel_command('$id')"), 't', 'cancelled');
is($session->finish, 'unknown|||', 'one that is cancelled is waited for no longer');

# One whose time passes while it waits.
$id = enqueue('{"n": 4}', q(jsonb_build_object('expires_at', clock_timestamp() + interval '300 ms', 'keep_answer', true)));
my $in_time = enqueue('{"n": 5}', q(jsonb_build_object('expires_at', clock_timestamp() + interval '1 hour', 'keep_answer', true)));
my $expires = query($node, "SELECT headers->>'expires_at' FROM cqrs_topics.commands_of_app WHERE event_id = '$id'");
ok($node->poll_query_until('postgres', "SELECT clock_timestamp() > '$expires'"), 'its time has passed');
query($node, "SET ROLE app; SELECT cqrs_resume('commands_of_app')");
is($session->query("SELECT state, error_sqlstate FROM cqrs_wait_command('$id', '1 hour')"), 'failed|OB004', 'it is not executed');
is($session->query("SELECT state FROM cqrs_wait_command('$in_time', '1 hour')"), 'done', 'another one is');
is(query($node, 'SELECT count(*) FROM done WHERE n = 4'), '0', 'nothing was done');
is(query($node, "SET ROLE app; SELECT count(*) FROM cqrs_dead_letters WHERE event_id = '$id' AND attempts = 1"), '1', 'it is a dead letter, at once');

# What would be waited for for ever.
is(error_of($node, 'postgres', "SET ROLE app; SELECT cqrs_wait_command(cqrs_enqueue('Do', '{\"n\": 6}'), '1 hour')") =~ /55000.*was enqueued by this transaction/ ? 1 : 0, 1, 'one that this transaction enqueued');
like(error_of($node, 'postgres', "SET ROLE app; SELECT cqrs_wait_command(cqrs_enqueue('Do', '{\"n\": 6}', run_at => now() + interval '1 hour'), '1 hour')"),
	qr/55000.*was enqueued by this transaction/, 'also for later');
like(error_of($node, 'postgres', "SET ROLE app; BEGIN; SAVEPOINT s; SELECT cqrs_enqueue('Do', '{\"n\": 6}') AS id \\gset\nRELEASE s; SELECT cqrs_wait_command(:'id', '1 hour')"),
	qr/55000.*was enqueued by this transaction/, 'and in a savepoint');
$holder = hold_handlers($node, 'postgres');
$id = $session->query("SELECT cqrs_enqueue('Do', '{\"n\": 7}', run_at => now() + interval '1 day')");
$session->query("SELECT cqrs_enqueue('WaitFor', jsonb_build_object('id', '$id'))");
$holder->quit;
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs.dead_letter WHERE event_name = 'WaitFor' AND sqlstate = '55006'"), 'by a command of the same queue');
is($session->query("SELECT cqrs_cancel_command('$id')"), 't', 'cancelled');

# Many answers take no locks.
$session->query("SELECT count(cqrs_enqueue('Do', jsonb_build_object('n', n), options => $keep)) FROM generate_series(1001, 5000) n");
$id = enqueue('{"n": 5001}', $keep);
is($session->query("SELECT state FROM cqrs_wait_command('$id', '1 hour')"), 'done', 'many commands whose answers are kept');
is(query($node, 'SELECT count(*), count(DISTINCT n) FROM done WHERE n > 1000'), '4001|4001', 'are executed once each');

# Restored.
my $dump = $node->backup_dir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'dumped');
query($node, 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'restored');
is($node->safe_psql('copy', "SET ROLE app; SELECT state, answer->'n' FROM cqrs_command_result('$id')"), 'done|5001', 'the answer comes along');
unlike(slurp_file($node->logfile), qr/out of shared memory/, 'no lock too many');

$session->quit;
$node->stop;
done_testing();
