# Exactly once to Kafka, with a standby that is promoted before the first worker has
# written anything: it has the name of the transactions. With on_divergence 'resend', who
# has lost events that were sent goes on at once, and says so; an old primary stops.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

my $kafka = RealKafka->new(1);
$kafka->create_topic('things');

my $first = new_server('server0', "log_statement = none\n", allows_streaming => 1);
$first->start;
$first->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));
$kafka->create_server($first, 'postgres', 'events');

# emit(NODE, NAMES...): events, in a transaction.
sub emit
{
	my ($node, @names) = @_;

	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', jsonb_build_object('name', name), 'key') FROM unnest('{" . join(',', @names) . "}'::text[]) name");
	return;
}

# arrived(): the names of the events that are committed in Kafka.
sub arrived
{
	return join ' ', map { $_->{value} =~ /"name":"(.*)"/ } $kafka->committed_records('things');
}

# delivered(NODE): wait until all is.
sub delivered
{
	my ($node) = @_;

	return $node->poll_query_until('postgres', 'SELECT bool_and(lag_events = 0) FROM cqrs_subscription_status');
}

# promote(NODE, FORMER): the former one dies, and this one, stopped by now, goes on.
sub promote
{
	my ($node, $former) = @_;

	$former->stop('immediate');
	$node->start;
	$node->promote;
	$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die;
	return;
}

# problem(NODE, PROBLEM): what cqrs_health() says of it, once it says so, and why.
sub problem
{
	my ($node, $problem) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cqrs_health() WHERE problem = '$problem' AND detail NOT LIKE '%knows nothing of.'")
	  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_health()'));
	return $node->safe_psql('postgres', "SELECT severity, object, detail FROM cqrs_health() WHERE problem = '$problem' ORDER BY object");
}

# One subscription is delivered exactly once from the start, another one later. The
# standby has both, and nothing that a worker has written since.
$first->safe_psql('postgres', q(
	BEGIN;
	SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw', delivery => 'exactly_once', on_divergence => 'resend');
	SELECT cqrs_pause('things');
	SELECT cqrs_subscribe('later', ARRAY['things'], server => 'events', format => 'raw', partitions => 2);
	SELECT cqrs_pause('later');
	COMMIT;
	SELECT cqrs_alter_subscription('later', delivery => 'exactly_once')));
is($first->safe_psql('postgres', 'SELECT on_divergence FROM cqrs_subscriptions ORDER BY subscription'), "stop\nresend", 'what is to be is shown');
is($first->safe_psql('postgres', 'SELECT count(*), count(DISTINCT producer) FROM cqrs.cursor c
	WHERE seq = (SELECT max(seq) FROM cqrs.cursor n WHERE (n.subscription_id, n.partition) = (c.subscription_id, c.partition))'), '3|3',
	'each cursor has a producer before any is connected');
my $second = new_standby($first, 'server1');

# One event is one transaction: of several, which may be more, the standby could not
# tell that they were sent.
emit($first, 'a');
$first->safe_psql('postgres', 'SELECT cqrs_tick()');
$first->wait_for_catchup($second);
$second->stop('fast');
$first->safe_psql('postgres', "SELECT cqrs_resume('things')");
$first->safe_psql('postgres', "SELECT cqrs_resume('later')");
ok(delivered($first), 'delivered by the first primary, to both');
is(join(' ', sort split / /, arrived()), 'a a', '... for the first time');

promote($second, $first);
$second->safe_psql('postgres', "SELECT cqrs_resume('things')");
$second->safe_psql('postgres', "SELECT cqrs_resume('later')");
ok(delivered($second), 'the standby finds out what was sent')
  or diag($second->safe_psql('postgres', 'SELECT * FROM cqrs_health()'));
is(join(' ', sort split / /, arrived()), 'a a', '... and sends nothing again');
$second->safe_psql('postgres', "SELECT cqrs_unsubscribe('later')");
emit($second, 'c');
ok(delivered($second), '... and goes on');
is(join(' ', sort split / /, arrived()), 'a a c', '... once');

# An old primary does not take its events for those that were lost.
$first->start;
$first->safe_psql('postgres', "SELECT cqrs_unsubscribe('later')");
emit($first, 'zombie');
like(problem($first, 'diverged'), qr/^error\|subscription "things"\|Partition 0 is stopped: another server has taken over: /,
	'the old primary stops, whatever its on_divergence is');
$first->stop('fast');

# The next standby has lost events that were sent.
my $third = new_standby($second, 'server2');
$second->wait_for_catchup($third);
$third->stop('fast');
emit($second, 'lost1', 'lost2');
ok(delivered($second), 'delivered by the second primary');
my $offset = -s $third->logfile;
promote($third, $second);
emit($third, 'd');
ok(delivered($third), 'who has lost events that were sent goes on');
is(join(' ', sort split / /, arrived()), 'a a c d lost1 lost2', '... with what it has');
like(problem($third, 'resent'), qr/^warning\|subscription "things"\|Partition 0 has sent again, since /, '... and says so in health');
like(slurp_file($third->logfile, $offset),
	qr/WARNING:.*subscription "things" sends what may have been sent before\n.*DETAIL:  the broker has a transaction of timeline 2 that this database knows nothing of: [12] events/,
	'... and in the log');
is($third->safe_psql('postgres', "SELECT count(*) FROM cqrs_health() WHERE problem = 'diverged'"), 0, '... and nothing is stopped');

# What is not delivered exactly once does not diverge.
like(error_of($third, 'postgres', "SELECT cqrs_subscribe('other', ARRAY['things'], server => 'events', on_divergence => 'resend')"),
	qr/ERROR:  22023: subscription "other" cannot have on_divergence "resend"\n.*HINT:  It is for subscriptions with delivery => 'exactly_once'/s,
	'at least once is refused');
$third->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', delivery => 'at_least_once')");
is($third->safe_psql('postgres', 'SELECT on_divergence FROM cqrs_subscriptions'), 'stop', '... and if it becomes so, that is as usual again');

$third->stop('fast');
done_testing();
