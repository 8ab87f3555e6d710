# In a server that preloads the extension, a circuit breaker has one state for
# all sessions, one trial at a time among them, and no trial that blocks for
# ever.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main');

# state_of(): the one breaker
sub state_of { return $node->safe_psql('postgres', q(SELECT state FROM cqrs_breaker_status WHERE handler LIKE '%flaky%')); }

# reset_after(INTERVAL): from now on, also of a breaker that is open
sub reset_after { $node->safe_psql('postgres', "UPDATE cqrs.fallback SET reset_after = '$_[0]'"); }

# begin_trial(SESSION): one that waits in the handler, for the advisory lock 1
sub begin_trial
{
	my ($session) = @_;
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->begin(q(SELECT cqrs_send('Do', '{"wait": true}')));
	ok($node->poll_query_until('postgres',
			"SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = $pid"), 'a trial is under way');
	return $pid;
}

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	CREATE FUNCTION flaky(c jsonb) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		IF c ? 'wait' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
		IF c ? 'fail' THEN
			RAISE 'flaky failed';
		END IF;
		RETURN 'flaky';
	END $$;
	CREATE FUNCTION steady(c jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'steady'$$;
	SELECT cqrs_register_command('Do', 'flaky(jsonb)');
	SELECT cqrs_register_fallback('flaky(jsonb)', 'steady(jsonb)', max_failures => 2, reset_after => '1 hour', excluded_sqlstates => '{57}');
));
my $one = new_session($node, 'postgres');
my $two = new_session($node, 'postgres');
my $holder = new_session($node, 'postgres');
my $send = q(SELECT cqrs_send('Do'));
my $fail = q(SELECT cqrs_send('Do', '{"fail": true}'));

# The failures of all sessions count, and none is undone.
is($one->query("BEGIN; $fail; ROLLBACK"), '"steady"', 'a failure');
is(state_of(), 'closed', 'is not enough');
my $log = -s $node->logfile;
is($two->query($fail), '"steady"', 'another session has the second one');
is(state_of(), 'open', 'which opens the breaker');
ok($node->wait_for_log(qr/LOG:  circuit breaker of handler public\.flaky.*opened\n.*DETAIL:  The last error was P0001: flaky failed/, $log),
	'the log says so');
is($one->query($send), '"steady"', 'for both');
is($two->query($send), '"steady"', 'of them');

# One trial at a time.
$holder->query('SELECT pg_advisory_lock(1)');
reset_after('0');
begin_trial($one);
is(state_of(), 'half_open', 'and shows');
is($two->query($send), '"steady"', 'others go to the fallback meanwhile');
is($two->query("SELECT answer FROM cqrs_dry_run('Do')"), '"steady"', 'and so does a dry run');
$holder->query('SELECT pg_advisory_unlock(1)');
is($one->finish, '"flaky"', 'it succeeds');
is(state_of(), 'closed', 'and closes the breaker');
is($two->query($send), '"flaky"', 'for others too');

# A trial that says nothing, and one that is killed, make room for the next.
$holder->query('SELECT pg_advisory_lock(1)');
$two->query($fail) for 1 .. 2;
is(state_of(), 'half_open', 'open again, and the time is over');
my $pid = begin_trial($one);
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
like($one->finish, qr/canceling statement due to user request/, 'a cancel comes through');
is(state_of(), 'half_open', 'and decides nothing');
$pid = begin_trial($one);
is($two->query($send), '"steady"', 'the next one is the trial');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)"),
	'which is terminated');
is(state_of(), 'half_open', 'and decides nothing');
is($two->query($send), '"flaky"', 'the next one is the trial, and closes it');
$one->quit;

# What a call that began before has to say when the breaker is open.
$one = new_session($node, 'postgres');
reset_after('1 hour');
begin_trial($one);
$two->query($fail) for 1 .. 2;
is(state_of(), 'open', 'opened while a call is under way');
$holder->query('SELECT pg_advisory_unlock(1)');
is($one->finish, '"flaky"', 'that call succeeds');
is(state_of(), 'open', 'and does not close it');

# A restart closes them.
$_->quit for $one, $two, $holder;
$node->restart;
is(state_of(), 'closed', 'closed after a restart');

# Another database's are others, also if it is a copy.
$node->safe_psql('postgres', $fail) for 1 .. 2;
is(state_of(), 'open', 'open in one database');
$node->safe_psql('template1', 'CREATE DATABASE other TEMPLATE postgres');
is($node->safe_psql('other', $send), '"flaky"', 'is closed in its copy');
is($node->safe_psql('postgres', $send), '"steady"', 'and still open in the one');
$node->stop;

done_testing();
