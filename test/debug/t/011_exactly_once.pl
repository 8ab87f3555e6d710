# The worker ends between Kafka's commit and the cursor, and a transaction that was in
# progress commits meanwhile, with a lower position than those that were sent: it
# arrives, and nothing else arrives twice.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use DebugPoints;
use RealKafka;

my $kafka = RealKafka->new(1);
$kafka->create_topic('things');

my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.debug_points = 'broker_committed=wait'\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$kafka->create_server($node, 'postgres', 'events');
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	delivery => 'exactly_once')");

# arrived(): the numbers of the events that are committed in Kafka.
sub arrived
{
	return join ' ', map { $_->{value} =~ /(\d+)/ } $kafka->committed_records('things');
}

# late(NUMBER): a session that has emitted it, and is yet to commit.
sub late
{
	my ($number) = @_;
	my $session = new_session($node, 'postgres');

	$session->query("BEGIN; SELECT cqrs_emit('happened', '{\"n\": $number}')");
	return $session;
}

my $late = late(1);
my $holder = hold_point($node, 'broker_committed');
emit_numbers($node, 'postgres', 2, 3);
my $pid = at_point($node, 'broker_committed');
is(arrived(), '2 3', 'Kafka has committed, the cursor does not know it');
$late->query('COMMIT');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$holder->query('SELECT pg_advisory_unlock_all()');
ok($node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status'), 'the worker is ended: all is delivered');
is(arrived(), '2 3 1', '... the late one, too, and nothing twice');

$late = late(4);
$holder->query("SELECT pg_advisory_lock(hashtext('cqrs_outbox'), hashtext('broker_committed'))");
emit_numbers($node, 'postgres', 5, 6);
$pid = at_point($node, 'broker_committed');
is(arrived(), '2 3 1 5 6', 'Kafka has committed, the cursor does not know it');
$late->query('COMMIT');
$node->stop('immediate');
$holder->kill;
$node->start;
ok($node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status'), 'the server is stopped: all is delivered');
is(arrived(), '2 3 1 5 6 4', '... the late one, too, and nothing twice');

# Moved meanwhile, the cursor stays where it was moved to.
$holder = hold_point($node, 'broker_committed');
emit_numbers($node, 'postgres', 7);
$pid = at_point($node, 'broker_committed');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid") or die;
$node->safe_psql('postgres', "BEGIN; SELECT cqrs_pause('things'); SELECT cqrs_seek('things', 'earliest'); SELECT cqrs_resume('things'); COMMIT");
$holder->query('SELECT pg_advisory_unlock_all()');
ok($node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status'), 'moved back: all is delivered');
is(join(' ', sort split / /, arrived()), '1 1 2 2 3 3 4 4 5 5 6 6 7 7', '... again');

$node->stop('fast');
done_testing();
