# A queue of several partitions has its commands executed side by side, those of one
# key in order. Their number is changed every now and then while commands are
# enqueued, executed, tried again and cancelled: each is executed once or cancelled,
# never both, and each key is in order.
#
#   CQRS_COMMANDS   of each session that enqueues

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;

my $commands = $ENV{CQRS_COMMANDS} || 4000;
my $keys = 30;
my $sessions = 2;
my $changes = 10;
my @numbers = (1, 2, 3, 5, 8);
my $node = new_server('main', "cqrs_outbox.max_workers = 6\nlog_error_verbosity = verbose");

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE ROLE app LOGIN;
	GRANT EXECUTE ON FUNCTION cqrs_alter_subscription TO app;
	CREATE TABLE done (id bigserial, command_id uuid, key text, n integer);
	CREATE TABLE cancelled (command_id uuid);
	GRANT SELECT, INSERT ON done, cancelled TO app;
	GRANT USAGE ON SEQUENCE done_id_seq TO app;
	-- one that fails now and then; one that waits for who has advisory lock 1
	CREATE FUNCTION do_it(c jsonb) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO done (command_id, key, n) VALUES ((cqrs_context()).id, c->>'key', (c->>'n')::integer);
		IF random() < 0.01 THEN
			RAISE 'bad luck';
		END IF;
	END $$;
	CREATE FUNCTION hold(c jsonb) RETURNS void LANGUAGE sql SET search_path = public AS $$
		SELECT pg_advisory_xact_lock_shared(1);
		INSERT INTO done (key, n) VALUES (c->>'key', (c->>'n')::integer)
	$$;
	SELECT cqrs_register_command('Do', 'do_it'), cqrs_register_command('Hold', 'hold');
	SET ROLE app;
	SELECT cqrs_create_command_queue(partitions => 4);
	SELECT cqrs_alter_subscription('commands_of_app', max_attempts => 0, retry_delay => '10 ms', max_retry_delay => '50 ms')));

# How many commands are being executed, and wait for the lock.
my $held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";

# partitions(N): change them, and wait until it is done.
sub partitions
{
	my ($n) = @_;

	query($node, "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', partitions => $n)");
	ok($node->poll_query_until('postgres', "SELECT partitions = $n AND next_partitions IS NULL FROM cqrs.subscription WHERE subscription = 'commands_of_app'"), "there are $n partitions");
}

# hold(COUNT, KEY): enqueue so many that wait for the lock.
sub hold
{
	my ($count, $key) = @_;

	query($node, "SET ROLE app; SELECT count(cqrs_enqueue('Hold', jsonb_build_object('n', n), key => $key)) FROM generate_series(1, $count) n");
}

# Without a key, side by side: ids are random, so of 200 there are some in each
# partition.
my $holder = hold_handlers($node, 'postgres');
hold(200, 'NULL::text');
ok($node->poll_query_until('postgres', "SELECT ($held) = 4"), 'four commands without a key are executed side by side');
$holder->quit;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 200 FROM done'), 'in the end, all are executed');
partitions(2);
$holder = hold_handlers($node, 'postgres');
hold(200, 'NULL::text');
ok($node->poll_query_until('postgres', "SELECT ($held) = 2"), 'with two partitions, two are');
$holder->quit;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 400 FROM done'), 'all are executed');
partitions(4);

# With a key, one after the other: what comes later of another key is begun, and the
# second one of the key is not.
$holder = hold_handlers($node, 'postgres');
hold(200, "'one'");
ok($node->poll_query_until('postgres', "SELECT ($held) = 1"), 'the first command of a key is executed');
hold(40, "'other ' || n");
ok($node->poll_query_until('postgres', "SELECT ($held) = 4"), 'beside it, those of other keys');
my $waiting = "SELECT state, count(*) FROM cqrs_enqueued_commands WHERE key = 'one' GROUP BY state";
is(query($node, "SET ROLE app; $waiting"), 'ready|200', 'what waits is seen');
$holder->quit;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 640 FROM done'), 'all are executed');
query($node, 'TRUNCATE done');

# Changed under load. Each key's commands are numbered; every fourth has none.
sub enqueue_all
{
	my ($session) = @_;
	my $psql = new_session($node, 'postgres');

	srand($session);
	$psql->query('SET ROLE app');
	for (my $from = 1; $from <= $commands;)
	{
		my $to = $from + 1 + int rand 40;
		$to = $commands if $to > $commands;
		$psql->query("BEGIN; SELECT count(cqrs_enqueue('Do', jsonb_build_object('key', k, 'n', (i - 1) / $keys + 1), key => k))"
			. " FROM (SELECT i, CASE WHEN i % 4 > 0 THEN format('$session %s', (i - 1) % $keys) END AS k FROM generate_series($from, $to) i ORDER BY i) c");
		usleep(rand 100_000) if rand() < 0.03;
		$psql->query('COMMIT');
		usleep(rand 10_000);
		$from = $to + 1;
	}
	$psql->quit;
}

# Some of those that wait are cancelled: one without a key, so that the numbers of
# each key have no gaps.
sub cancel_some
{
	my $psql = new_session($node, 'postgres');

	$psql->query('SET ROLE app');
	while ($psql->query("SELECT to_regclass('stop') IS NULL") eq 't')
	{
		$psql->query(q(WITH waiting AS MATERIALIZED (SELECT command_id FROM cqrs_enqueued_commands WHERE key IS NULL ORDER BY random() LIMIT 1)
			INSERT INTO cancelled SELECT command_id FROM waiting WHERE cqrs_cancel_command(command_id)));
		usleep(rand 10_000);
	}
	$psql->quit;
}

# A change waits for what is being executed.
my $alter = "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', partitions => 3)";

$holder = hold_handlers($node, 'postgres');
hold(1, "'held'");
ok($node->poll_query_until('postgres', "SELECT ($held) = 1"), 'a command is executed');
my $changer = in_background(sub { query($node, $alter) });
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'object' AND NOT granted"), 'a change waits for it');
$holder->quit;
waitpid $changer, 0;
is($?, 0, 'the change has begun');
ok($node->poll_query_until('postgres', 'SELECT partitions = 3 AND next_partitions IS NULL FROM cqrs.subscription'), 'then it is done');
is(query($node, 'SELECT count(*) FROM done'), '1', 'the command was executed');
query($node, 'TRUNCATE done');

my @enqueuers = map { in_background(\&enqueue_all, $_) } 1 .. $sessions;
my $canceller = in_background(\&cancel_some);
my ($changed, $open) = (0, 0);
srand(1000);
for (my $enqueuing = @enqueuers; $enqueuing > 0 || $changed < $changes;)
{
	if ($enqueuing > 0 && (my $pid = waitpid(-1, POSIX::WNOHANG())) > 0)
	{
		is($?, 0, 'a session has enqueued all it was to');
		$enqueuing--;
	}
	query($node, sprintf "SET ROLE app; SELECT cqrs_alter_subscription('commands_of_app', partitions => %d)", $numbers[ rand @numbers ]);
	$changed++;
	$open += query($node, 'SELECT count(*) FROM cqrs.subscription WHERE next_partitions IS NOT NULL');
	usleep(rand 100_000);
}
query($node, 'CREATE TABLE stop ()');
waitpid $canceller, 0;
is($?, 0, 'some were cancelled');

my $all = $commands * $sessions;
ok($node->poll_query_until('postgres', "SELECT (SELECT count(*) FROM done) + (SELECT count(*) FROM cancelled) >= $all"), 'all are executed, or cancelled');
ok($node->poll_query_until('postgres', 'SELECT bool_and(next_partitions IS NULL) FROM cqrs.subscription'), 'the last change is done');
is(query($node, "SELECT count(*) - count(DISTINCT command_id), (SELECT count(*) FROM cancelled) + count(*) - $all FROM done"), '0|0', 'each once');
is(query($node, 'SELECT count(*) FROM done JOIN cancelled USING (command_id)'), '0', 'and none that was cancelled');
is(query($node, q(SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM done WHERE key IS NOT NULL) d WHERE n <= before)), '0', 'each key in order');
cmp_ok(query($node, 'SELECT count(*) FROM cancelled'), '>', 0, 'some were cancelled');
is(query($node, 'SELECT count(*) FROM cqrs.retry'), '0', 'nothing is left');
unlike(slurp_file($node->logfile), qr/(?:ERROR|FATAL|PANIC):  (?!P0001|OB005)/, 'no errors but those that are to be');
note("$changed changes, $open of them seen under way, " . query($node, 'SELECT count(*) FROM cancelled') . ' cancelled');

$node->stop;
done_testing();
