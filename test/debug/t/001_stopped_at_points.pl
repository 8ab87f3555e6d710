# The server stops at the worst places, between the two halves of what belongs
# together. Each event is delivered exactly once all the same.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;

my $node = new_server('main', "restart_after_crash = on\n");
my $emitted = 0;

$node->start;
set_up_recording($node, 'postgres');

sub emit
{
	my ($count) = @_;

	emit_numbers($node, 'postgres', $emitted + 1 .. $emitted + $count);
	$emitted += $count;
}

sub delivered
{
	my ($what) = @_;

	ok(wait_recorded($node, 'postgres', $emitted), "$what: delivery goes on");
	is(recorded($node, 'postgres'), join(' ', 1 .. $emitted), "$what: each event once, in order");
}

emit(10);
delivered('nobody was stopped');

# After the handler, before the cursor. Where nobody holds the lock, nobody
# waits: the setting may stay.
reconfigure($node, "cqrs_outbox.debug_points = 'relay_before_cursor=wait'");
my ($worker) = processes($node, 'worker');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 10000)") if defined $worker;

my $holder = hold_point($node, 'relay_before_cursor');
emit(10);
at_point($node, 'relay_before_cursor');
is(recorded($node, 'postgres'), join(' ', 1 .. 10), 'nothing of what the handler did is to be seen');
$node->stop('immediate');
$holder->kill;
$node->start;
delivered('server stopped');

$holder = hold_point($node, 'relay_before_cursor');
emit(10);
crash_server($node, at_point($node, 'relay_before_cursor'));
$holder->kill;
delivered('worker killed');

$holder = hold_point($node, 'relay_before_cursor');
emit(10);
my $pid = at_point($node, 'relay_before_cursor');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$holder->quit;
delivered('worker terminated');

# A row that is on disk, and in no index.
my $emitter = new_session($node, 'postgres');
$holder = hold_point($node, 'emit_before_index');
$emitter->query("SET cqrs_outbox.debug_points = 'emit_before_index=wait'");
$emitter->begin(q(SELECT cqrs_emit('happened', '{"n": "never"}')));
at_point($node, 'emit_before_index');
$node->safe_psql('postgres', 'CHECKPOINT');
$node->stop('immediate');
$holder->kill;
$emitter->kill;
$node->start;
emit(10);
delivered('emitter killed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_topics.things'), $emitted, 'and its event is not there');
$node->stop;

done_testing();
