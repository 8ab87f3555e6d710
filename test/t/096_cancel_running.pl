# A command that is being executed is cancelled: it ends, leaves nothing, and is a
# dead letter. Whatever becomes of it and of whoever cancels it, no other command
# meets that.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;

my $commands = $ENV{CQRS_COMMANDS} || 2000;
my $node = new_server('main', "cqrs_outbox.max_workers = 4");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE app LOGIN;
	CREATE ROLE other LOGIN;
	GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO app;
	CREATE TABLE done (n integer, command_id uuid DEFAULT (cqrs_context()).id);
	CREATE TABLE begun (n integer);
	GRANT ALL ON done, begun TO app;
	CREATE SEQUENCE tries;
	GRANT ALL ON SEQUENCE tries TO app;
	-- waits for who has advisory lock 1
	CREATE FUNCTION do_it(c jsonb) RETURNS jsonb LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO done VALUES ((c->>'n')::integer);
		IF c ? 'waits' THEN
			PERFORM nextval('tries');
			PERFORM pg_advisory_xact_lock_shared(1);
		ELSIF c ? 'catches' THEN
			BEGIN
				PERFORM pg_advisory_xact_lock_shared(1);
			EXCEPTION WHEN query_canceled THEN
				RAISE LOG 'caught';
				IF c ? 'again' THEN
					PERFORM pg_advisory_xact_lock_shared(1);
				END IF;
			END;
		ELSIF c ? 'takes' THEN
			PERFORM pg_sleep((c->>'takes')::float8);
		END IF;
		RETURN c->'n';
	END $$;
	SELECT cqrs_register_command('Do', 'do_it');
	SET ROLE app;
	SELECT cqrs_create_command_queue(partitions => 2);
	SELECT cqrs_alter_subscription('commands_of_app', delivery_timeout => '10 min')));

my $session = new_session($node, 'postgres');
$session->query('SET ROLE app');

# enqueue(PAYLOAD): returns the id. All have one key, so that they are executed one
# after the other, in one batch if they are enqueued together.
sub enqueue { return join '|', map { $session->query("SELECT cqrs_enqueue('Do', '$_', key => 'k', options => '{\"keep_answer\": true}')") } @_; }

# cancel(ID): what cqrs_cancel_command() says
sub cancel { return query($node, "SET ROLE app; SELECT cqrs_cancel_command('$_[0]')"); }

# result(ID): what has become of it
sub result { return $session->query("SELECT state, error_sqlstate, error FROM cqrs_wait_command('$_[0]', '1 hour')"); }

my $canceled = 'failed|OB005|command "Do" was canceled';

# Alone.
my $holder = hold_handlers($node, 'postgres');
my $id = enqueue('{"n": 1, "waits": 1}');
in_handler($node, 'postgres');
my $state = "SELECT state, error_sqlstate FROM cqrs_command_result('$id')";
is($session->query($state), 'running|', 'a command that is executed is running');
is(query($node, "SET ROLE other; $state"), 'unknown|', 'but not for another role');
$node->safe_psql('postgres', "SET ROLE other; SELECT cqrs_cancel_command('$id')");
is(query($node, "SET ROLE other; SELECT cqrs_cancel_command('$id')"), 'f', "another role's is not found");
in_handler($node, 'postgres');
is(cancel($id), 't', 'a command that is executed is cancelled');
is(result($id), $canceled, 'it is a dead letter, which says so');
is(query($node, 'SELECT count(*) FROM done'), '0', 'it has left nothing');
is(query($node, 'SELECT last_value FROM tries'), '1', 'it was begun once');
is(cancel($id), 'f', 'it is over');
is(query($node, "SET ROLE app; SELECT attempts, payload->>'n' FROM cqrs_dead_letters"), '1|1', 'it was tried once');
$holder->quit;

# A signal that comes late, when another command is executed, is about nothing.
$holder = hold_handlers($node, 'postgres');
$id = enqueue('{"n": 2, "waits": 1}');
is(kill('USR2', in_handler($node, 'postgres')), 1, 'a signal is sent');
$holder->quit;
is(result($id), 'done||', 'a late signal ends nothing');
is(query($node, 'SELECT last_value FROM tries'), '2', 'not even to have it begun anew');
query($node, 'TRUNCATE done');

# In the middle of a batch: those before and behind it are executed, once.
$holder = hold_handlers($node, 'postgres');
$session->query('BEGIN');
my @ids = map { enqueue(sprintf '{"n": %d%s}', $_, $_ == 15 ? ', "waits": 1' : '') } 10 .. 20;
$session->query('COMMIT');
in_handler($node, 'postgres');
is(join(' ', map { $session->query("SELECT state FROM cqrs_command_result('$ids[$_]')") } 4, 5, 6),
	'ready running ready', 'of a batch, one is running');
is(cancel($ids[5]), 't', 'one in the middle of a batch is cancelled');
is(result($ids[$_]), "done||", 'one of the others is executed') for 0 .. 4, 6 .. 10;
is(result($ids[5]), $canceled, 'it is not');
is(query($node, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM done"), '10 11 12 13 14 16 17 18 19 20', 'each of them once');
$holder->quit;

# Who catches it does not escape it.
query($node, 'TRUNCATE done');
$holder = hold_handlers($node, 'postgres');
$id = enqueue('{"n": 30, "catches": 1}');
in_handler($node, 'postgres');
is(cancel($id), 't', 'one that catches this is cancelled');
is(result($id), $canceled, 'all the same');
like(slurp_file($node->logfile), qr/caught/, 'it did catch it');
is(result(enqueue('{"n": 31}')), 'done||', 'the next one is executed');
is(query($node, 'SELECT n FROM done'), '31', 'it alone');
$holder->quit;

# Whoever cancels, and is ended himself while the handler will not end, leaves nothing
# behind: it is executed after all.
$holder = hold_handlers($node, 'postgres');
$id = enqueue('{"n": 40, "catches": 1, "again": 1}');
in_handler($node, 'postgres');
my $offset = -s $node->logfile;
my $canceller = new_session($node, 'postgres');
my $pid = $canceller->query('SELECT pg_backend_pid()');
$canceller->query('SET ROLE app');
$canceller->begin("SELECT cqrs_cancel_command('$id')");
ok(wait_until(sub { slurp_file($node->logfile, $offset) =~ /caught/ }), 'it is told to end');
query($node, "SELECT pg_terminate_backend($pid, 60000)");
$canceller->quit;
$holder->quit;
is(result($id), 'done||', 'whoever gives up leaves it to be executed');
is(result(enqueue('{"n": 41}')), 'done||', 'what comes next is executed');
is(query($node, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM done WHERE n >= 40"), '40 41', 'once');

# At random: commands are cancelled as they are begun, executed and over. Whoever is
# told that one was cancelled finds that it did nothing; all others are done.
query($node, 'TRUNCATE done');
$session->query("CREATE TEMP TABLE mine AS SELECT n, NULL::uuid AS id FROM generate_series(1, $commands) n");
$session->query("UPDATE mine SET id = cqrs_enqueue('Do', jsonb_build_object('n', n, 'takes', 0.0005), options => '{\"keep_answer\": true}')");
$node->safe_psql('postgres', 'CREATE TABLE canceled (id uuid); GRANT ALL ON canceled TO app');
sub cancel_some
{
	my ($seed) = @_;
	my $psql = new_session($node, 'postgres');

	$psql->query('SET ROLE app');
	$psql->query("SELECT setseed(0.$seed)");
	for (1 .. 60)
	{
		$psql->query(q(WITH waiting AS MATERIALIZED (SELECT command_id FROM cqrs_enqueued_commands ORDER BY command_id OFFSET (random() * 3)::integer LIMIT 1)
			INSERT INTO canceled SELECT command_id FROM waiting WHERE cqrs_cancel_command(command_id)));
		usleep(rand 3_000);
	}
	$psql->quit;
}
my @cancellers = map { in_background(\&cancel_some, $_) } 1 .. 2;
for my $pid (@cancellers)
{
	waitpid $pid, 0;
	is($?, 0, 'some were cancelled');
}
ok($node->poll_query_until('postgres', "SELECT (SELECT count(*) FROM done) + (SELECT count(DISTINCT id) FROM canceled) >= $commands"), 'the others are executed');
is(query($node, "SELECT count(*) - count(DISTINCT command_id), (SELECT count(DISTINCT id) FROM canceled) + count(*) - $commands FROM done"), '0|0', 'each once');
is(query($node, 'SELECT count(*) FROM done JOIN canceled ON command_id = id'), '0', 'and none that was cancelled');
is(query($node, "SELECT count(*) FROM cqrs.dead_letter d WHERE sqlstate <> 'OB005' OR (event_id NOT IN (SELECT id FROM canceled) AND (payload->>'n')::integer > 41)"), '0', 'no other command met that');
is(query($node, 'SELECT count(*) FROM cqrs.retry'), '0', 'nothing waits');
cmp_ok(query($node, 'SELECT count(*) FROM cqrs.dead_letter JOIN canceled ON event_id = id'), '>', 0, 'some were being executed');
note(query($node, 'SELECT count(*) FROM canceled') . ' cancelled, of them being executed: ' . query($node, 'SELECT count(*) FROM cqrs.dead_letter JOIN canceled ON event_id = id'));

$session->quit;
$node->stop;
done_testing();
