# The server, or the worker, stops between the broker's confirmation and the
# cursor. What was confirmed then comes once more, nothing else does, and
# nothing is lost.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;
use ExamplePeer;

my $peer = ExamplePeer->new;
my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.debug_points = 'relay_before_cursor=wait'\n");
my $emitted = 0;

$node->start;
$peer->create_server($node, 'postgres', 'peer');
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_subscribe('sender', ARRAY['things'], server => 'peer', format => 'raw');
));

sub emit
{
	my ($count) = @_;

	emit_numbers($node, 'postgres', $emitted + 1 .. $emitted + $count);
	$emitted += $count;
}

# sent(): the numbers that the broker got since it was reset
sub sent
{
	return join ' ', map { $_->{message}{body} =~ /(\d+)/ } $peer->messages;
}

# is_sent(EXPECTED, WHAT): in the end
sub is_sent
{
	my ($expected, $what) = @_;

	$node->poll_query_until('postgres', "SELECT cqrs_wait('sender', '10 s')") or die 'not delivered';
	is(sent(), $expected, $what);
	$peer->tell('reset');
}

# stop_after_confirmation(COUNT): emit so many; the process that waits between
# their confirmation and the cursor, and the session that makes it wait
sub stop_after_confirmation
{
	my ($count) = @_;
	my $holder;

	$peer->tell('hold');
	emit($count);
	$peer->wait_held($count) or die 'not sent';
	$holder = hold_point($node, 'relay_before_cursor');
	$peer->tell('release');
	return (at_point($node, 'relay_before_cursor'), $holder);
}

emit(3);
is_sent('1 2 3', 'nobody is stopped');

my ($pid, $holder) = stop_after_confirmation(3);
$node->stop('immediate');
$holder->kill;
$node->start;
is_sent('4 5 6 4 5 6', 'the server is stopped: what was confirmed comes again');
emit(2);
is_sent('7 8', 'and then what is new');

($pid, $holder) = stop_after_confirmation(3);
crash_server($node, $pid);
$holder->kill;
is_sent('9 10 11 9 10 11', 'the worker is killed: the same');

($pid, $holder) = stop_after_confirmation(3);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die 'still there';
$holder->quit;
is_sent('12 13 14 12 13 14', 'the worker is ended: the same');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.retry, cqrs.dead_letter'), '0', 'nothing was a fault of the events');

done_testing();
