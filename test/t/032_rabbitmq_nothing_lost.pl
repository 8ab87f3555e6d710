# Broker and workers are struck down again and again, with events on their way:
# none is lost, those of a key arrive in order once duplicates are removed, and
# no strike makes more duplicates than may be unconfirmed at a time.
#
# CQRS_RABBITMQ_EVENTS and CQRS_RABBITMQ_STRIKES, of each kind, make it longer.

use strict;
use warnings;

use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;

my $events = $ENV{CQRS_RABBITMQ_EVENTS} // 50_000;
my $strikes = $ENV{CQRS_RABBITMQ_STRIKES} // 10;
my $keys = 500;
my $emitters = 2;
my $batch = 250;
my $window = 500;

my $broker = RabbitMQ->new('struck');
$broker->start;
$broker->command('queue things');

my $node = new_server('main', 'restart_after_crash = on');
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE emitted (first integer PRIMARY KEY)));
$broker->create_server($node, 'postgres', 'events', window => $window);
$node->safe_psql('postgres', q(
	SELECT cqrs_subscribe('out', ARRAY['things'], server => 'events', retry_delay => '100 ms', max_retry_delay => '1 s')));

# emit_all(EMITTER): its share of the events, in transactions of a batch, each
# until it is committed. A key is of one emitter, so its events' order is known.
sub emit_all
{
	my ($emitter) = @_;

	for (my $from = 1; $from <= $events; $from += $batch)
	{
		my $to = $from + $batch - 1;
		my $sql = qq(
			WITH once AS (INSERT INTO emitted VALUES ($from * $emitters + $emitter) ON CONFLICT DO NOTHING RETURNING 1)
			SELECT cqrs_emit_many('happened', payloads, keys) FROM once,
				(SELECT array_agg(jsonb_build_object('n', i) ORDER BY i) AS payloads,
						array_agg((i % $keys)::text ORDER BY i) AS keys
				 FROM generate_series($from, $to) i WHERE i <= $events AND i % $emitters = $emitter) e);

		1 while $node->psql('postgres', $sql) != 0;
	}
	return;
}

my @pids = map { in_background(\&emit_all, $_) } 0 .. $emitters - 1;

# progress(): how many were confirmed and recorded; undef while the server
# starts again.
sub progress
{
	my ($status, $out) = $node->psql('postgres', 'SELECT delivered FROM cqrs.cursor ORDER BY seq DESC LIMIT 1');

	return $status == 0 ? $out || 0 : undef;
}

# strike(NUMBER): broker and worker in turn, each in good order and not.
sub strike
{
	my ($number) = @_;
	my $orderly = $number % 4 < 2;

	if ($number % 2 == 0)
	{
		$orderly ? $broker->stop : $broker->crash;
		$broker->start;
		return 1;
	}
	my ($worker) = processes($node, 'worker', 'postgres');
	return 0 unless defined $worker;
	if ($orderly)
	{
		return $node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)") eq 't';
	}
	my $offset = -s $node->logfile;
	kill 'KILL', $worker or return 0;
	return $node->wait_for_log(qr/database system is ready to accept connections/, $offset);
}

my $hit = 0;
for my $number (0 .. 2 * $strikes - 1)
{
	# Enough is left for the last ones, also if a broker that stops takes more.
	my $goal = int($events * ($number + 1) / (3 * $strikes + 1));

	wait_until(sub { (progress() // 0) >= $goal }) or die "no progress to $goal";
	$hit++ if (progress() // 0) < $events;
	1 until strike($number);
}
is($hit, 2 * $strikes, 'each strike comes while events are delivered');

for my $pid (@pids)
{
	waitpid $pid, 0;
	is($?, 0, 'an emitter has emitted all it was to');
}
ok(wait_status($node, 'postgres', 'out', '0/0/0/0'), 'everything is delivered');

my ($count, $duplicates, $disorder) = arrivals(map {
	my $n = decode_json($_->{body})->{payload}{n};
	[ $_->{messageId}, $n % $keys, $n ]
} $broker->messages('things'));
is($count, $events, 'nothing is lost, nothing is there that was not emitted');
is($disorder, 0, 'in order by key');
cmp_ok($duplicates, '<=', 2 * $strikes * $window, 'duplicates are no more than were on their way');
note("$duplicates duplicates of $events events in " . 2 * $strikes . ' strikes');

$node->stop('fast');
$broker->stop;
done_testing();
