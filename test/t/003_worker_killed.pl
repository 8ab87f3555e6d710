# Launcher, managers and workers may be ended in any way in the middle of
# delivering: others take over, and each event is delivered exactly once.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "restart_after_crash = on\n");
my $expected = 0;

$node->start;
set_up_recording($node, 'postgres');

# emit(COUNT): so many events more.
sub emit
{
	my ($count) = @_;

	emit_numbers($node, 'postgres', $expected + 1 .. $expected + $count);
	$expected += $count;
}

# Nobody is killed without anybody else taking its place.
sub another
{
	my ($kind, $pid) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox $kind' AND pid <> $pid");
}

sub delivered
{
	my ($what) = @_;

	ok(wait_recorded($node, 'postgres', $expected), "$what: delivery goes on");
	is(recorded($node, 'postgres'), join(' ', 1 .. $expected), "$what: each event once, in order");
}

emit(10);
delivered('nobody was ended');

my $holder = hold_handlers($node, 'postgres');
emit(10);
my $pid = in_handler($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(another('worker', $pid), 'a worker that was terminated is replaced');
$holder->quit;
delivered('worker terminated');

# While it waits for work.
($pid) = processes($node, 'worker');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 10000)");
emit(10);
delivered('idle worker terminated');

# A cancel is an error of the handler's.
$holder = hold_handlers($node, 'postgres');
emit(10);
$pid = in_handler($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"), 'the event is tried again by itself');
$pid = in_handler($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT error_sqlstate = '57014' FROM cqrs_subscription_status"), 'a cancelled handler has failed');
$holder->quit;
delivered('handler cancelled');
is($node->safe_psql('postgres', 'SELECT error, state FROM cqrs_subscription_status'), '|idle', 'and the failure is over');

# Managers: while the worker is in a handler, which goes on.
$holder = hold_handlers($node, 'postgres');
emit(10);
in_handler($node, 'postgres');
($pid) = processes($node, 'manager');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(another('manager', $pid), 'a manager that was terminated is replaced');
emit(10);
$holder->quit;
delivered('manager terminated');

# Both.
$holder = hold_handlers($node, 'postgres');
emit(10);
$pid = in_handler($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('cqrs_outbox manager', 'cqrs_outbox worker')");
emit(10);
ok(another('worker', $pid), 'so are both');
$holder->quit;
delivered('manager and worker terminated');

($pid) = processes($node, 'launcher');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
emit(10);
ok(another('launcher', $pid), 'a launcher that was terminated is replaced');
$node->safe_psql('postgres', 'CREATE DATABASE later');
$node->safe_psql('later', 'CREATE EXTENSION cqrs_outbox');
ok(wait_managers($node, 'later', 'postgres'), 'and starts managers');
delivered('launcher terminated');

# SIGKILL is a crash of the server.
for my $kind (qw(worker manager launcher))
{
	$holder = hold_handlers($node, 'postgres');
	emit(10);
	my $worker = in_handler($node, 'postgres');
	($pid) = $kind eq 'worker' ? $worker : processes($node, $kind, $kind eq 'manager' ? 'postgres' : undef);
	crash_server($node, $pid);
	$holder->quit;
	emit(10);
	delivered("$kind killed");
}
ok(wait_managers($node, 'later', 'postgres'), 'all managers are there');
$node->stop;

done_testing();
