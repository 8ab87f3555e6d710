# The server stops at the worst places, between the two halves of what belongs
# together. Each event is delivered exactly once all the same.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;

my $node = new_server('main', "restart_after_crash = on\n");
my $emitted = 0;

$node->start;
set_up_recording($node, 'postgres');

sub emit
{
	my ($count) = @_;
	my $from = $emitted + 1;

	$emitted += $count;
	$node->safe_psql('postgres',
		"SELECT cqrs_emit_many('happened', ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series($from, $emitted) n))");
}

sub delivered
{
	my ($what) = @_;

	ok(wait_recorded($node, 'postgres', $emitted), "$what: delivery goes on");
	is(recorded($node, 'postgres'), join(' ', 1 .. $emitted), "$what: each event once, in order");
}

# hold(POINT): who comes there waits, until the session that is returned ends.
sub hold
{
	my ($point) = @_;
	my $holder = new_session($node, 'postgres');

	$holder->query("SELECT pg_advisory_lock(hashtext('cqrs_outbox'), hashtext('$point'))");
	return $holder;
}

# stopped(POINT): the process that waits there.
sub stopped
{
	my ($point) = @_;
	my $waits = "FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 2"
	  . " AND classid::bigint = hashtext('cqrs_outbox')::bigint & 4294967295 AND objid::bigint = hashtext('$point')::bigint & 4294967295";

	$node->poll_query_until('postgres', "SELECT count(*) = 1 $waits") or die "nobody is at $point";
	return $node->safe_psql('postgres', "SELECT pid $waits");
}

emit(10);
delivered('nobody was stopped');

# After the handler, before the cursor. Where nobody holds the lock, nobody
# waits: the setting may stay.
$node->safe_psql('postgres', "ALTER SYSTEM SET cqrs_outbox.debug_points = 'relay_before_cursor=wait'");
$node->reload;
my ($worker) = processes($node, 'worker');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 10000)") if defined $worker;

my $holder = hold('relay_before_cursor');
emit(10);
stopped('relay_before_cursor');
is(recorded($node, 'postgres'), join(' ', 1 .. 10), 'nothing of what the handler did is to be seen');
$node->stop('immediate');
$holder->kill;
$node->start;
delivered('server stopped');

$holder = hold('relay_before_cursor');
emit(10);
my $pid = stopped('relay_before_cursor');
my $offset = -s $node->logfile;
kill 'KILL', $pid or die "no such process: $pid";
$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
$holder->kill;
$node->poll_query_until('postgres', 'SELECT true');
delivered('worker killed');

$holder = hold('relay_before_cursor');
emit(10);
$pid = stopped('relay_before_cursor');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$holder->quit;
delivered('worker terminated');

# A row that is on disk, and in no index.
my $emitter = new_session($node, 'postgres');
$holder = hold('emit_before_index');
$emitter->query("SET cqrs_outbox.debug_points = 'emit_before_index=wait'");
$emitter->begin(q(SELECT cqrs_emit('happened', '{"n": "never"}')));
stopped('emit_before_index');
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
