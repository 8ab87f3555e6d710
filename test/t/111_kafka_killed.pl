# The only broker of a Kafka is killed, stopped in order, and does not answer, while
# events are drained to it: nothing is lost, each key's events arrive in order once
# duplicates are left out, and there are no more of these than may be unconfirmed.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RealKafka;

my $window = 100;
my $count = 1000;
my $n = 0;
my $kafka = RealKafka->new(1);
my $address = $kafka->bootstrap;
my $node = new_server('main');

$kafka->create_topic('things', 4);
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things')));

# So few records are in a request that a drain takes a while.
$kafka->create_server($node, 'postgres', 'events', window => $window, 'batch.num.messages' => 2, 'request.timeout.ms' => 500,
	'socket.timeout.ms' => 1000);
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	retry_delay => '20 ms', max_retry_delay => '100 ms')");

# emit(): more than is delivered at once.
sub emit
{
	$node->safe_psql('postgres', "SELECT cqrs_emit_many('happened', array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg('key ' || n % 50 ORDER BY n))
		FROM generate_series($n + 1, $n + $count) n");
	$n += $count;
	return;
}

# strike(NAME, STRIKE, RECOVER): while events are drained.
sub strike
{
	my ($name, $strike, $recover) = @_;

	$kafka->pause_amid($node, $window, \&emit, 1);
	$strike->();
	emit();
	ok(wait_error($node, 'postgres', 'things', "^(could not connect to Kafka at $address|Kafka at $address has written nothing)"), "$name, which is said");
	$recover->();
	ok(wait_status($node, 'postgres', 'things', '0/0/0/0'), '... and then all is delivered');
	return;
}

strike('killed', sub { $kafka->kill(1) }, sub { $kafka->start(1) });
strike('stopped', sub { $kafka->stop(1) }, sub { $kafka->start(1) });
strike('not answering', sub { }, sub { $kafka->resume(1) });

my @records = map { [ $_->{headers}{message_id}, $_->{key}, $_->{value} =~ /^\{"n":(\d+)\}$/ ] } $kafka->records('things');
my %there = map { $_->[2] => 1 } @records;
my ($ids, $duplicates, $disorder) = arrivals(@records);

is(scalar(grep { !$there{$_} } 1 .. $n), 0, 'nothing is lost');
is($ids, $n, 'nothing is there that was not emitted');
is($disorder, 0, 'each key is in order');
cmp_ok($duplicates, '<=', 3 * $window, 'there are no more duplicates than may have been unconfirmed');
note("$duplicates duplicates");

$node->stop('fast');
done_testing();
