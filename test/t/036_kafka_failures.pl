# Kafka fails in the ways it can. A fault of the cluster or the connection counts
# as no event's attempt, and the status says what is wrong; after a record's own
# fault it is tried again or given up, without affecting other records. Each key
# stays in order.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CqrsTest;
use Kafka;

my $cluster = Kafka->new(1);
my $address = $cluster->bootstrap;
my $n = 0;

$cluster->command('topic', 'things', 4);
$cluster->down;

my $node = new_server('main');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_register_event('moved away', 'things');
	SELECT cqrs_register_event('vanished', 'things')));

# Unlike a real one, the mock cluster takes a batch though the one before it was
# refused. So a batch waits until all that is emitted is in it.
$cluster->create_server($node, 'postgres', 'events', 'message.max.bytes' => 10000, 'linger.ms' => 100);
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	max_attempts => 3, retry_delay => '100 ms', max_retry_delay => '200 ms')");

# emit(COUNT, KEYS): so many events, numbered, over so many keys, in one
# transaction.
sub emit
{
	my ($count, $keys) = @_;

	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', jsonb_build_object('n', i), 'key ' || i % $keys) FROM generate_series($n + 1, $n + $count) i");
	$n += $count;
	return;
}

# delivered(NAME, DEAD): all is, but so many dead letters.
sub delivered
{
	my ($name, $dead) = @_;

	return ok(wait_status($node, 'postgres', 'things', '0/0/0/' . ($dead // 0)), $name);
}

# status(COLUMNS): of the subscription.
sub status
{
	return $node->safe_psql('postgres', "SELECT concat_ws('|', $_[0]) FROM cqrs_subscription_status WHERE subscription = 'things'");
}

# dead(): attempts and error of each dead letter; none are left.
sub dead { return take_dead($node, 'things', 'attempts, error'); }

# check_records(NAME, DUPLICATES): each event is there, once if there may be no
# duplicates, and each key's in order of their first arrivals.
sub check_records
{
	my ($name, $duplicates) = @_;
	my @numbered = map { $_->{value} =~ /^\{"n":(\d+)\}$/ ? [ $1, $_->{key}, $1 ] : () } $cluster->records('things');
	my %there = map { $_->[0] => 1 } @numbered;
	my (undef, $again, $disorder) = arrivals(@numbered);

	is(join(' ', grep { !$there{$_} } 1 .. $n), '', "$name: nothing is missing");
	is($disorder, 0, "$name: each key is in order");
	is($again, 0, "$name: nothing is there twice") unless $duplicates;
	return;
}

# The connection's faults.
emit(100, 7);
ok(wait_error($node, 'postgres', 'things', "^could not connect to Kafka at $address: Connection refused\$"),
	'a cluster that is down is named');
is(status('retrying, waiting, dead'), '0|0|0', 'no event is to blame');
$cluster->up;
delivered('once it is up, all is delivered');
is(status('error'), '', 'and nothing is wrong');

$cluster->down;
emit(1000, 7);
ok(wait_error($node, 'postgres', 'things', "^could not connect to Kafka at $address: "), 'it goes down while connected');
$cluster->up;
delivered('and comes up again');

$cluster->pause;
emit(10, 7);
my $offset = -s $node->logfile;
$node->restart;
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM cqrs_worker_status WHERE kind = 'worker'"), 'a worker waits for a cluster that does not answer')
  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_worker_status'));
my $started = time;
$node->stop('fast');
cmp_ok(time - $started, '<', 2, 'the server can be stopped meanwhile');
$node->start;
ok(wait_error($node, 'postgres', 'things', "^could not connect to Kafka at $address: .*(timed out|no answer)"), 'silence is an error as well');
$cluster->resume;
delivered('until it answers');
check_records('outages', 1);

# What librdkafka mends by itself.
for my $error (qw(not_leader not_enough_replicas request_timed_out unknown_topic))
{
	$cluster->inject('produce', $error, $error);
	emit(10, 10);
	delivered("$error is not for long");
}
is(status('error'), '', 'nobody is told of that');

# Producers that a broker does not want any more.
for my $error (qw(out_of_order_sequence invalid_producer_epoch producer_fenced cluster_authorization_failed))
{
	# More often than an event may be tried.
	$cluster->inject('produce', ($error) x 4);
	emit(1, 1);
	delivered("$error: another producer goes on, and no event is to blame");
}
like(slurp_file($node->logfile, $offset), qr/could not write to Kafka topic "things": .*\(CLUSTER_AUTHORIZATION_FAILED\)/, 'but the log has it');

# A refused batch: others are smaller, until one record is alone.
$cluster->inject('produce', 'message_too_large');
emit(1000, 7);
delivered('a batch is refused as too large, and none of its records alone');
$cluster->inject('produce', 'invalid_record', 'invalid_record');
emit(1000, 7);
delivered('batches are refused as not valid, and none of their records alone');
check_records('refused batches', 1);

# Records that are to blame.
$cluster->inject('produce', 'message_too_large');
emit(1, 1);
delivered('a record is refused as too large', 1);
is(dead(), '1/a record of ' . length("{\"n\":$n}") . ' bytes is larger than Kafka topic "things" or the server\'s option "message.max.bytes" allows',
	'after one attempt, and for a reason');
$cluster->inject('produce', 'invalid_record', 'invalid_record');
emit(1, 1);
delivered('a record is refused twice as not valid, and then accepted');

# As long as no other is accepted, nobody knows whose fault that is. Here more often
# than an event may be tried.
$offset = -s $node->logfile;
$cluster->inject('produce', ('invalid_record') x 4);
emit(1, 1);
delivered('a record is refused, and there is no other to tell by: it waits until it is accepted');
like(slurp_file($node->logfile, $offset), qr/there is no other to tell by.*\n.*Kafka topic "things" does not accept the record: Broker: Broker failed to validate record \(INVALID_RECORD\)/,
	'the log has it');

$node->safe_psql('postgres', q(
	SELECT cqrs_emit('happened', jsonb_build_object('text', repeat('x', 20000)), 'key 0');
	SELECT cqrs_emit('happened', jsonb_build_object('text', repeat('y', 9000)), 'key 0')));
delivered('a record is larger than the server allows', 1);
like(dead(), qr/^1\/a record of 20011 bytes is larger than/, 'it is not tried a second time');
ok((grep { $_->{value} =~ /yyyy/ } $cluster->records('things')), 'the next one of its key is there');

# Topics.
$offset = -s $node->logfile;
$cluster->inject('produce', ('topic_authorization_failed') x 100);
emit(100, 10);
ok(wait_error($node, 'postgres', 'things', '^not authorized to write to Kafka topic "things"$'), 'a topic is not for us');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 3 FROM cqrs.failure'), '... which is tried again and again');
is(status('retrying, dead'), '0|0', '... no event is to blame');
$cluster->succeed('produce');
delivered('... until it is');
my %there = map { $_->{value} => 1 } $cluster->records('things');
is(scalar(grep { $there{"{\"n\":$_}"} } $n - 99 .. $n), 100, '... then all is there');

$cluster->command('topic_error', 'vanished', $Kafka::error{unknown_topic});
$cluster->create_server($node, 'postgres', 'by_name', topic => '{event_name}', 'topic.metadata.propagation.max.ms' => 200);
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('names', ARRAY['things'], server => 'by_name', start => 'latest', max_attempts => 2, retry_delay => '10 ms');
	SELECT cqrs_emit('moved away', '{}');
	SELECT cqrs_emit('vanished', '{}', 'k');
	SELECT cqrs_emit('happened', '{}', 'l')));
ok(wait_status($node, 'postgres', 'names', '0/0/0/2'), 'topics that cannot be, and that are not');
like($node->safe_psql('postgres', "SELECT attempts, error FROM cqrs_dead_letters WHERE subscription = 'names' ORDER BY position"),
	qr/^2\|Kafka cannot have a topic "moved away": names have .*\n2\|Kafka topic "vanished" does not exist, and its cluster does not create it$/,
	'both are named');
is(scalar($cluster->records('happened')), 1, 'other topics get what is theirs');
delivered('and so do other subscriptions');

# Authentication: the mock cluster has none, and says so.
$node->safe_psql('postgres', q(
	ALTER SERVER events OPTIONS (ADD "security.protocol" 'sasl_plaintext', ADD "sasl.mechanism" 'PLAIN');
	ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (ADD "sasl.username" 'app', ADD "sasl.password" 'secret word')));
emit(1, 1);
ok(wait_error($node, 'postgres', 'things', "^could not authenticate to Kafka at $address: "), 'authentication fails');
is(status('retrying, waiting, dead'), '0|0|0', 'which is no event\'s fault');
$node->safe_psql('postgres', q(ALTER SERVER events OPTIONS (SET "security.protocol" 'plaintext')));
delivered('once it is not asked for, all is delivered');

$node->stop('fast');
done_testing();
