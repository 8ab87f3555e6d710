# Exactly once to Kafka, and the server is another one. A standby that has the
# events, but does not know that they were sent, finds that out. One that has lost
# events that were sent stops, and says so, until a person decides. An old primary
# that comes back leaves the new one alone.

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
$first->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	delivery => 'exactly_once')");

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

	return $node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status');
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

# diverged(NODE): what cqrs_health() says, once it says so, and why.
sub diverged
{
	my ($node) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_health() WHERE problem = 'diverged' AND detail NOT LIKE '%knows nothing of.'")
	  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_health()'));
	return $node->safe_psql('postgres', "SELECT severity, object, detail FROM cqrs_health() WHERE problem = 'diverged'");
}

# The standby has the events and the tick, and not what the worker has written about
# them.
my $second = new_standby($first, 'server1');
emit($first, 'a', 'b');
ok(delivered($first), 'delivered by the first primary');
$first->safe_psql('postgres', "SELECT cqrs_pause('things')");
emit($first, 'c', 'd');
$first->poll_query_until('postgres', "SELECT lag_events = 2 FROM cqrs_subscription_status") or die;
$first->safe_psql('postgres', 'SELECT cqrs_tick()');
$first->wait_for_catchup($second);
$second->stop('fast');
$first->safe_psql('postgres', "SELECT cqrs_resume('things')");
ok(delivered($first), '... which does not tell its standby');
is(arrived(), 'a b c d', 'all is there');

promote($second, $first);
is($second->safe_psql('postgres', 'SELECT state, lag_events FROM cqrs_subscription_status'), 'paused|2', 'the standby knows nothing of it');
$second->safe_psql('postgres', "SELECT cqrs_resume('things')");
ok(delivered($second), '... but finds out');
is(arrived(), 'a b c d', '... and sends nothing twice');
emit($second, 'e');
ok(delivered($second), '... and goes on');
is(arrived(), 'a b c d e', '... once');

# The old primary comes back.
$first->start;
emit($first, 'zombie');
like(diverged($first), qr/^error\|subscription "things"\|Partition 0 is stopped: another server has taken over: the broker has a transaction of timeline 2, this is 1\.$/,
	'the old primary sees that there is another one');
like($first->safe_psql('postgres', 'SELECT error FROM cqrs_subscription_status'), qr/^another server has taken over/, '... and says so in the status');
my $pid = $second->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
my $offset = -s $second->logfile;
emit($second, 'f');
ok(delivered($second), '... which goes on');
is(arrived(), 'a b c d e f', '... and is the only one that sends');
is($second->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'"), $pid, '... with the same process');
unlike(slurp_file($second->logfile, $offset), qr/could not deliver/, '... and the same connection');
$first->stop('fast');

# The next standby has lost events that were sent.
my $third = new_standby($second, 'server2');
$second->wait_for_catchup($third);
$third->stop('fast');
emit($second, 'lost1', 'lost2', 'lost3');
ok(delivered($second), 'delivered by the second primary');
promote($third, $second);
like(diverged($third), qr/^error\|subscription "things"\|Partition 0 is stopped: the broker has a transaction of timeline 2 that this database knows nothing of: 3 events up to position \d+\.$/,
	'who has lost events that were sent stops');
emit($third, 'g');
is($third->safe_psql('postgres', "SELECT cqrs_wait('things', '2 s')"), 'f', '... and sends nothing');
is(arrived(), 'a b c d e f lost1 lost2 lost3', '... at all');
like(error_of($third, 'postgres', "SELECT cqrs_resume('things', sent => 'perhaps')"), qr/ERROR:  22023: /, 'what is to be is said in words');
like(error_of($third, 'postgres', "SELECT cqrs_resume('things', sent => 'trust')"), qr/ERROR:  55000: /, '... and what is not known cannot be trusted');

# Kafka forgets the record while nobody decides. That tells nothing.
$kafka->delete_topic('things');
$kafka->create_topic('things');
ok($third->poll_query_until('postgres', "SELECT lag_events = 0 OR error LIKE '%its record is gone' FROM cqrs_subscription_status"), 'the record is gone');
is(arrived(), '', '... and still nothing is sent');
like(error_of($third, 'postgres', "SELECT cqrs_resume('things', sent => 'trust')"), qr/ERROR:  55000: /, '... nor trusted');
$third->safe_psql('postgres', "SELECT cqrs_resume('things', sent => 'again')");
ok(delivered($third), '... until a person says that it is to');
is(arrived(), 'g', '... and all that was not sent before is there');
is($third->safe_psql('postgres', "SELECT count(*) FROM cqrs_health() WHERE problem = 'diverged'"), 0, '... and health says nothing more');
like(error_of($third, 'postgres', "SELECT cqrs_resume('things', sent => 'again')"), qr/ERROR:  55000: /, 'who is not stopped need not be told');

$third->stop('fast');
done_testing();
