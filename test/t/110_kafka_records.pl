# What Kafka itself does with records: it refuses some, forgets producers, and has
# topics that go, come back, or are not for everybody. The event that is to blame
# is given up, no other is, and each key stays in order. Here its own broker
# answers; 036_kafka_failures has the faults that cannot be had at will.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

# What a broker knows of a producer, it forgets as soon as it can.
my $kafka = RealKafka->new(1,
	listeners => ['SASL_PLAINTEXT'],
	users => { app => 'secret' },
	settings => { 'producer.id.expiration.ms' => 1, 'producer.id.expiration.check.interval.ms' => 1 });
my $address = $kafka->bootstrap('SASL_PLAINTEXT');
my $node = new_server('main');
my $n = 0;

$kafka->create_topic('things', 2);
$kafka->create_topic('compacted', 1, 'cleanup.policy' => 'compact');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	SELECT cqrs_register_event('changed', 'compacted')));
$kafka->create_server($node, 'postgres', 'events', 'bootstrap.servers' => $address, 'security.protocol' => 'sasl_plaintext',
	'sasl.mechanism' => 'PLAIN', 'batch.size' => 10000, 'topic.metadata.propagation.max.ms' => 200);
$node->safe_psql('postgres', qq(
	ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS ("sasl.username" 'app', "sasl.password" 'secret');
	SELECT cqrs_subscribe(topic, ARRAY[topic], server => 'events', format => 'raw', max_attempts => 3, retry_delay => '100 ms',
		max_retry_delay => '200 ms') FROM unnest(ARRAY['things', 'compacted']) topic));

# emit(COUNT): so many events, numbered, over seven keys, in one transaction.
sub emit
{
	my ($count) = @_;

	$node->safe_psql('postgres', "SELECT cqrs_emit('happened', jsonb_build_object('n', i), 'key ' || i % 7) FROM generate_series($n + 1, $n + $count) i");
	$n += $count;
	return;
}

# delivered(NAME, SUBSCRIPTION, DEAD): all is, but so many dead letters.
sub delivered
{
	my ($name, $subscription, $dead) = @_;

	return ok(wait_status($node, 'postgres', $subscription // 'things', '0/0/0/' . ($dead // 0)), $name);
}

# check_records(NAME, FIRST): each event from this one on is there, and each key in
# order.
sub check_records
{
	my ($name, $first) = @_;
	my @numbered = map { $_->{value} =~ /^\{"n":(\d+)\}$/ ? [ $_->{headers}{message_id}, $_->{key}, $1 ] : () } $kafka->records('things');
	my %there = map { $_->[2] => 1 } @numbered;
	my (undef, undef, $disorder) = arrivals(@numbered);

	is(join(' ', grep { !$there{$_} } $first .. $n), '', "$name: nothing is missing");
	is($disorder, 0, "$name: each key is in order");
	return;
}

# One producer, which the broker has forgotten before each of these.
my $offset = -s $node->logfile;
for (1 .. 5)
{
	emit(10);
	delivered('a producer that the broker has forgotten goes on');
}
unlike(slurp_file($node->logfile, $offset), qr/could not|not authorized/, 'nobody is told of that');
my @timestamps = map { $_->{timestamp} } $kafka->records('things');
my @emitted = split /\n/, $node->safe_psql('postgres', q(SELECT floor(extract(epoch FROM emitted_at) * 1000) FROM cqrs_events('things', status => 'all')));
is_deeply([ sort @timestamps ], [ sort @emitted ], 'records have the time when their events were emitted');

# A compacted topic keeps each key's last record, and takes none without a key.
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('changed', '{"n": 1}', 'a');
	SELECT cqrs_emit('changed', '{"n": 2}');
	SELECT cqrs_emit('changed', '{"n": 3}', 'b');
	SELECT cqrs_emit('changed', NULL, 'a')));
delivered('a compacted topic takes records that have a key, and tombstones', 'compacted', 1);
like(take_dead($node, 'compacted', 'attempts, payload, error'),
	qr/^3\/\{"n": 2\}\/Kafka topic "compacted" does not accept the record: .*\(INVALID_RECORD\)$/, 'and none without a key, which is given up');
my %last = map { $_->{key} => $_->{value} } $kafka->records('compacted');
is_deeply(\%last, { a => undef, b => '{"n":3}' }, 'each key is left as it was emitted last');

# Records larger than the topic may have: one alone, and many in one batch.
$kafka->set_config('things', 'max.message.bytes' => 5000);
$node->safe_psql('postgres', q(SELECT cqrs_emit('happened', jsonb_build_object('text', repeat('x', 6000)), 'key 0')));
emit(1000);
delivered('a record is too large for its topic', 'things', 1);
like(take_dead($node, 'things', 'attempts, error'), qr/^1\/a record of 6011 bytes is larger than Kafka topic "things" or /, 'after one attempt, and for a reason');
check_records('a batch is too large, and none of its records', 1);
$kafka->set_config('things', 'max.message.bytes' => undef);

# Who may write.
$kafka->add_acl(qw(deny app write things));
emit(100);
ok(wait_error($node, 'postgres', 'things', '^not authorized to write to Kafka topic "things"$'), 'the topic is not for us any more');
ok($node->poll_query_until('postgres', 'SELECT max(failures) > 3 FROM cqrs.failure'), '... which is tried again and again');
is($node->safe_psql('postgres', "SELECT retrying, dead FROM cqrs_subscription_status WHERE subscription = 'things'"), '0|0', '... no event is to blame');
$kafka->remove_acl(qw(deny app write things));
delivered('... until it is again');
check_records('not authorized', 1);

# A topic that is not there, and then is another one of that name.
my $first = $n + 1;
$kafka->delete_topic('things');
emit(100);
ok(wait_error($node, 'postgres', 'things', '^Kafka topic "things" does not exist, and its cluster does not create it$'), 'the topic is deleted');
$kafka->create_topic('things', 3);
delivered('it is made anew');
emit(100);
delivered('and goes on');
check_records('a new topic', $first);
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_dead_letters"), 0, 'no event was to blame');

# Anew without a pause: the same producer meets a log that does not know it.
$first = $n + 1;
$kafka->delete_topic('things');
$kafka->create_topic('things', 1);
emit(100);
delivered('it is deleted and made anew at once');
check_records('another new topic', $first);
is($node->safe_psql('postgres', 'SELECT sum(dead + retrying + waiting) FROM cqrs_subscription_status'), 0, 'no event is to blame');

$node->stop('fast');
done_testing();
