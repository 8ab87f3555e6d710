# From Kafka through the inbox to a handler, and back to Kafka, while the broker,
# workers and the server are killed, and the number of workers changes: each message
# takes effect once, in the order of its key, and arrives once.
#
#   CQRS_MESSAGES, CQRS_ROUNDS

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;
use RealKafka;

my $messages = $ENV{CQRS_MESSAGES} || 12000;
my $rounds = $ENV{CQRS_ROUNDS} || 3;
my $keys = 50;
my $node = new_server('main', "cqrs_outbox.max_workers = 12\nrestart_after_crash = on\nlog_statement = none\n");

$node->start;
my $kafka = RealKafka->new(1);
$kafka->create_topic('in', 6);
$kafka->create_topic('out', 6);
query($node, 'CREATE EXTENSION cqrs_outbox');
$kafka->create_server($node, 'postgres', 'kafka', topic => 'out', 'reconnect.backoff.max.ms' => 500);
query($node, q(
	CREATE TABLE taken (id bigserial PRIMARY KEY, key text, n integer, event_id uuid);
	CREATE FUNCTION take(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO taken (key, n, event_id) VALUES (event.key, (event.payload->>'n')::integer, event.event_id);
		PERFORM cqrs_emit('taken', event.payload, key => event.key);
	END $$;
	SELECT cqrs_create_topic('inbox'), cqrs_create_topic('outbox');
	SELECT cqrs_register_event('came', 'inbox'), cqrs_register_event('taken', 'outbox');
	SELECT cqrs_create_consumer('reader', 'kafka', 'in', 'inbox', event_name => 'came', workers => 2);
	SELECT cqrs_subscribe('taker', ARRAY['inbox'], 'take', partitions => 2);
	SELECT cqrs_subscribe('sender', ARRAY['outbox'], server => 'kafka', format => 'raw', delivery => 'exactly_once', retry_delay => '10 ms', max_retry_delay => '100 ms')));

my $client = $kafka->another_client;
my $producer = in_background(sub {
	for (my $from = 1; $from <= $messages; $from += 200)
	{
		my $to = $from + 199 < $messages ? $from + 199 : $messages;

		my @written = $client->produce('in', map { { key => 'key ' . $_ % $keys, value => "{\"n\": $_}" } } $from .. $to);
		die 'not produced' if grep { !defined } @written;
		usleep(rand 100_000);
	}
});

# kill_worker(): one that delivers, or consumes. Nobody minds if there is none.
sub kill_worker
{
	my @pids = eval { processes($node, 'worker') };

	kill 'TERM', $pids[ rand @pids ] if @pids;
	return;
}

srand(7);
my @happens = (
	sub { $kafka->kill(1); usleep(rand 100_000); $kafka->start(1); },
	\&kill_worker,
	sub { $node->psql('postgres', sprintf "SELECT cqrs_alter_consumer('reader', workers => %d)", 1 + int rand 4); },
	sub { crash_server($node, processes($node, 'launcher')) });
for my $round (1 .. $rounds)
{
	for my $happens (@happens)
	{
		usleep(rand 100_000);
		$happens->();
	}
}
waitpid $producer, 0;
is($?, 0, 'all is produced');

ok(poll_through_crashes($node, "SELECT count(*) >= $messages FROM taken"), 'all takes effect')
  or diag(query($node, 'SELECT * FROM cqrs_consumer_status; SELECT * FROM cqrs_consumer_partitions; SELECT * FROM cqrs_subscription_status'));
ok($node->poll_query_until('postgres', "SELECT bool_and(lag_events = 0 AND retrying = 0 AND waiting = 0) FROM cqrs_subscription_status"), 'and is sent');
is(query($node, 'SELECT count(*), count(DISTINCT n), count(DISTINCT event_id) FROM taken'), "$messages|$messages|$messages", 'each once');
is(query($node, 'SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY id) AS before FROM taken) t WHERE n <= before'), '0', 'in the order of each key');
is(query($node, 'SELECT sum(consumed), sum(dead), count(stopped) FROM cqrs_consumer_partitions'), "$messages|0|0", 'as the consumer says');
my @arrivals = map { [ $_->{headers}{event_id} // $_->{value}, $_->{key}, $_->{value} =~ /(\d+)/ ] } $kafka->committed_records('out');
my ($ids, $again, $disorder) = arrivals(@arrivals);
is("$ids $again $disorder", "$messages 0 0", 'all arrive, once, in the order of each key');

$node->stop;
done_testing();
