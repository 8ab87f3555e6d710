# Messages of RabbitMQ become events: what is in them, by what they are recognised
# when they come again, in what order; each once, and none left unacknowledged,
# whatever ends meanwhile: the connection between our commit and the
# acknowledgement, the channel, the queue, the worker, the server, the broker.
#
#   CQRS_MESSAGES, CQRS_ROUNDS: of the last part

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use CqrsTest;
use RabbitMQ;
use TcpProxy;

my $broker = RabbitMQ->new('inbox');
$broker->start;
my $proxy = TcpProxy->new($broker->{port});
# No consumer waits for a worker.
my $node = new_server('main', "restart_after_crash = on\ncqrs_outbox.max_workers = 16");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('came', 'things')));
$broker->create_server($node, 'postgres', 'rabbit');
$broker->create_server($node, 'postgres', 'fragile', port => $proxy->{port}, window => 20);

# consume(QUEUE, SERVER, ARGUMENTS...): a consumer of its name, into a topic of its
# name.
sub consume
{
	my ($queue, $server, @arguments) = @_;
	my $list = join ', ', map { "'$_'" } $queue, $server, $queue, $queue;

	$node->safe_psql('postgres', "SELECT cqrs_create_topic('$queue')");
	$node->safe_psql('postgres',
		"SELECT cqrs_create_consumer(" . join(', ', $list, "event_name => 'came'", @arguments) . ')');
	return;
}

# wait_drained(QUEUE, EVENTS): until its topic has so many, each once, and the queue
# has no message, ready or not.
sub wait_drained
{
	my ($queue, $events, $what) = @_;
	my $done = poll_through_crashes($node, "SELECT count(*) >= $events FROM cqrs_topics.$queue");

	ok($done, "$what: everything has come");
	is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT payload) FROM cqrs_topics.$queue"),
		"$events|$events", "$what: each once");
	ok(wait_until(sub { $broker->depth($queue) eq '0' }), "$what: the queue is empty");
	return;
}

# wait_status_of(QUEUE, CONDITION, WHAT): until it is true of its consumer.
sub wait_status_of
{
	my ($queue, $condition, $what) = @_;

	ok($node->poll_query_until('postgres', "SELECT $condition FROM cqrs_consumer_status WHERE consumer = '$queue'"), $what)
	  or diag($node->safe_psql('postgres', 'SELECT consumer, state, error FROM cqrs_consumer_status'));
	return;
}

# counts(QUEUE): how many were consumed, came again, are dead letters.
sub counts
{
	my ($queue) = @_;

	return $node->safe_psql('postgres', "SELECT consumed, repeated, dead FROM cqrs_consumer_status WHERE consumer = '$queue'");
}

# ----------------------------------------------------------------------
# What is in a message
# ----------------------------------------------------------------------

$broker->command('queue plain', 'queue by_header', 'queue by_body');
$broker->command('put plain {"body": "{\"n\": 1}", "messageId": "m-1", "timestamp": 1700000000, "correlationId": "c-1", '
	  . '"replyTo": "back", "type": "thing", "headers": {"text": "é", "number": -5, "real": 0.1, "yes": true, '
	  . '"nothing": null, "at": {"!": "timestamp", "value": 1700000001}, "decimal": {"!": "decimal", "value": {"digits": 5, "places": 2}}, '
	  . '"nested": {"list": [1, "two\\"", null], "deep": {"x": false}}}}',
	'put plain {"body": "{\"n\": 2}", "messageId": "m-2", "correlationId": "of the property", '
	  . '"headers": {"correlation_id": "of the header"}}');
consume('plain', 'rabbit');
wait_drained('plain', 2, 'properties and headers');
is($node->safe_psql('postgres', q(
	SELECT headers - 'source' FROM cqrs_topics.plain WHERE payload->>'n' = '1')),
	'{"at": "1700000001", "yes": "true", "real": "0.1", "text": "é", "type": "thing", "nested": "{\"list\": [1, \"two\\\\u0022\", null], \"deep\": {\"x\": false}}", '
	  . '"number": "-5", "decimal": "0.05", "nothing": null, "reply_to": "back", "occurred_at": "2023-11-14T22:13:20.000000+00:00", '
	  . '"routing_key": "plain", "correlation_id": "c-1", "source_message_id": "m-1"}', 'headers are text, and some properties are headers');
is($node->safe_psql('postgres', q(SELECT headers->>'correlation_id' FROM cqrs_topics.plain WHERE payload->>'n' = '2')),
	'of the header', 'a header comes before the property of its name');

# ----------------------------------------------------------------------
# By what it is recognised
# ----------------------------------------------------------------------

$broker->command('put plain {"body": "{\"n\": 2}", "messageId": "m-2"}', 'put plain {"body": "{}"}', 'put plain {"body": "{}", "messageId": "a\u0000b"}',
	'put plain {"body": "no JSON", "messageId": "m-3"}', 'put plain {"body": "{\"n\": 4}", "messageId": "m-4"}');
wait_drained('plain', 3, 'message ids');
is(counts('plain'), '3|1|3', 'a repeat is dropped; without an id, or without JSON, it is a dead letter');
is($node->safe_psql('postgres', q(SELECT count(*), count(message_id), string_agg(convert_from(body, 'UTF8'), ',' ORDER BY body) FROM cqrs_consumer_dead_letters)),
	'3|1|no JSON,{},{}', 'whose body is kept');

consume('by_header', 'rabbit', "message_id => 'header:request'");
consume('by_body', 'rabbit', "message_id => 'body_hash'");
$broker->command((map { "put by_header {\"body\": \"{\\\"n\\\": $_}\", \"messageId\": \"same\", \"headers\": {\"request\": $_}}" } 1, 2),
	'put by_header {"body": "{\"n\": 3}", "headers": {"request": 2}}', 'put by_header {"body": "{\"n\": 3}", "messageId": "x"}',
	(map { "put by_body {\"body\": \"{\\\"n\\\": $_}\"}" } 1, 2, 2, 3));
wait_drained('by_header', 2, 'a header');
is(counts('by_header'), '2|1|1', 'is what tells messages apart');
wait_drained('by_body', 3, 'a hash of the body');
is(counts('by_body'), '3|1|0', 'is, too');

# ----------------------------------------------------------------------
# Order; quorum queues; what is no queue
# ----------------------------------------------------------------------

$broker->command('queue quorum {"x-queue-type":"quorum"}', 'queue stream {"x-queue-type":"stream"}', 'fill quorum 1 3000');
consume('quorum', 'rabbit');
wait_drained('quorum', 3000, 'a quorum queue');
is($node->safe_psql('postgres', q(
	SELECT bool_and(n = r) FROM (SELECT (payload->>'n')::int AS n, row_number() OVER (ORDER BY position) AS r FROM cqrs_topics.quorum) o)),
	't', 'in order');

consume('stream', 'rabbit');
wait_status_of('stream', q(error ~ '"stream" in vhost "/" of RabbitMQ at 127.0.0.1:\d+ is a stream'), 'a stream is refused');
consume('missing', 'rabbit');
wait_status_of('missing', q(error ~ 'queue "missing" does not exist in vhost "/"'), 'without the queue, the status says so');
$broker->command('queue missing', 'fill missing 1 10');
wait_drained('missing', 10, 'once it is there');
wait_status_of('missing', q(error IS NULL AND state = 'active'), 'the error is gone');

# It is deleted: RabbitMQ cancels the consumer.
$broker->command('delete missing');
wait_status_of('missing', q(error ~ 'was deleted, or has moved|does not exist'), 'a queue that is deleted is missed');
$broker->command('queue missing', 'fill missing 11 20');
wait_drained('missing', 20, 'once it is declared again');

# ----------------------------------------------------------------------
# The acknowledgement does not arrive
# ----------------------------------------------------------------------

$broker->command('queue cut', 'fill cut 1 1500');
consume('cut', 'fragile');

# cut_counts(): the same as counts('cut'), by a session that stays. It goes on without
# a wait behind the error if it is to hurry.
my $looker = new_session($node, 'postgres');
sub cut_counts
{
	my ($hurries) = @_;

	$looker->query(q(SELECT cqrs_resume_consumer(consumer) FROM cqrs_consumer_status WHERE consumer = 'cut' AND state = 'failing')) if $hurries;
	return $looker->query(q(SELECT consumed, repeated, dead FROM cqrs_consumer_status WHERE consumer = 'cut'));
}

# Each connection sends some hundred bytes to log in, then 21 for each batch. After
# five cuts, nobody waits any more.
for my $strike (1 .. 25)
{
	my $before = cut_counts();

	$proxy->tell('cut ' . (1 + 150 * $strike % 1100));
	$broker->command("fill cut " . (1500 + 25 * $strike - 24) . ' ' . (1500 + 25 * $strike));
	last unless ok(wait_until(sub { cut_counts($strike > 5) ne $before }), "cut $strike: it goes on");
}
$proxy->tell('pass');
wait_drained('cut', 2125, 'cut off');

# While the connection is at rest, the next that goes is an acknowledgement: it is cut
# off after its first byte. (Unless that is a heartbeat's.)
my $sent = 2125;
while ((split /\|/, counts('cut'))[1] == 0 && $sent < 2625)
{
	$proxy->tell('cut 1');
	$broker->command(sprintf 'fill cut %d %d', $sent + 1, $sent + 25);
	$sent += 25;
	wait_drained('cut', $sent, "cut off, $sent");
}
$proxy->tell('pass');
cmp_ok((split /\|/, counts('cut'))[1], '>', 0, 'some came again') or diag(counts('cut'));
is((split /\|/, counts('cut'))[2], 0, 'none is a dead letter');
unlike(slurp_file($broker->logfile), qr/unknown delivery tag/, 'nothing is acknowledged that is not of its channel');

# RabbitMQ closes the channel, as nothing is acknowledged for too long.
$broker->ctl('eval', 'application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 200).');
$broker->command('queue slow');
consume('slow', 'rabbit');
$broker->command('fill slow 1 10');
wait_drained('slow', 10, 'a channel of its own');
my $blocker = new_session($node, 'postgres');
$blocker->query('BEGIN; LOCK TABLE cqrs.consumer_position IN SHARE MODE; SELECT 1');
my $offset = -s $broker->logfile;
$broker->command('fill slow 11 30');
ok($broker->wait_log(qr/timed out waiting for delivery acknowledgement/, $offset), 'the channel is closed');
$blocker->query('COMMIT; SELECT 1');
wait_drained('slow', 30, 'consumer_timeout');
is((split /\|/, counts('slow'))[0], 30, 'what came again is dropped');
$broker->ctl('eval', 'application:set_env(rabbit, consumer_timeout, 600000), application:set_env(rabbit, channel_tick_interval, 60000).');

# ----------------------------------------------------------------------
# Worker, server and broker end
# ----------------------------------------------------------------------

# On to a handler. A round is a worker and the broker killed, and, in every other one,
# the server crashed and the number of workers changed.
my $messages = $ENV{CQRS_MESSAGES} || 12000;
my $rounds = $ENV{CQRS_ROUNDS} || 1;
my $workers = 1;
my @often = (
	[ 'a worker killed', sub {
		crash_server($node, $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' LIMIT 1"));
	} ],
	[ 'the broker killed', sub { $broker->crash; $broker->start } ]);
my @seldom = (
	[ 'the server crashed', sub { $node->restart('immediate') } ],
	[ 'another number of workers', sub {
		$workers = $workers % 4 + 1;
		$node->safe_psql('postgres', "SELECT cqrs_alter_consumer('quorum', workers => $workers)");
	} ]);
my @strikes = map { (@often, $_ % 2 ? @seldom : ()) } 1 .. $rounds;
my $last = 3000;
my $all = $last + $messages;

$node->safe_psql('postgres', q(
	CREATE TABLE taken (n integer, event_id uuid);
	CREATE FUNCTION take(event cqrs_event) RETURNS void LANGUAGE sql AS $$
		INSERT INTO public.taken VALUES ((event.payload->>'n')::integer, event.event_id)
	$$;
	SELECT cqrs_subscribe('taker', ARRAY['quorum'], 'take');
	SELECT cqrs_pause_consumer(consumer) FROM cqrs_consumers WHERE consumer <> 'quorum'));
while (my $strike = shift @strikes)
{
	my ($name, $strike_down) = @$strike;
	my $first = $last + 1;

	$last = @strikes ? $last + int(($all - $last) / (@strikes + 1)) : $all;
	$node->safe_psql('postgres', "SELECT cqrs_pause_consumer('quorum')");
	$broker->command("fill quorum $first $last");
	$node->safe_psql('postgres', "SELECT cqrs_resume_consumer('quorum')");
	ok($node->poll_query_until('postgres', "SELECT count(*) > $first FROM cqrs_topics.quorum"), "$name: in the middle");
	$strike_down->();
	wait_drained('quorum', $last, $name);
}
is((split /\|/, counts('quorum'))[2], 0, 'no message has become a dead letter');
ok(poll_through_crashes($node, "SELECT count(*) >= $all FROM taken"), 'the handler gets them');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT n), count(DISTINCT event_id), min(n), max(n) FROM taken'),
	"$all|$all|$all|1|$all", 'each once');
is($node->safe_psql('postgres', 'SELECT bool_and(lag_events = 0), sum(dead) FROM cqrs_subscription_status'), 't|0', 'and nothing else');

$node->stop('fast');
done_testing();
