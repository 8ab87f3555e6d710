# Events go to Kafka exactly once: who reads what is committed gets each of them
# once, and each key's in order. So it is when a record is refused, when a
# subscription is paused in the middle of a transaction, or is moved, and when
# workers are ended, servers crash, and Kafka does.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;
use RealKafka;

my $kafka = RealKafka->new(1);
$kafka->create_topic('things', 3, 'max.message.bytes' => 100_000);

my $node = new_server('main', "restart_after_crash = on\nlog_statement = none\n");
$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE SEQUENCE n;
	CREATE PROCEDURE emit(count bigint, at_once bigint) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. count / at_once LOOP
			PERFORM cqrs_emit_many('happened', array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg('key ' || n % 7 ORDER BY n))
			FROM (SELECT nextval('n') AS n FROM generate_series(1, at_once)) e;
			COMMIT;
		END LOOP;
	END $$));
$kafka->create_server($node, 'postgres', 'events');
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	delivery => 'exactly_once', retry_delay => '20 ms', max_retry_delay => '100 ms')");

# all_delivered(): whether all is, in time.
sub all_delivered
{
	return poll_through_crashes($node, 'SELECT lag_events = 0 AND retrying + waiting = 0 FROM cqrs_subscription_status');
}

# check(WHAT, COPIES): each event is there, COPIES times; each key's are in order, if
# that is once.
sub check
{
	my ($what, $copies) = @_;
	my (%times, %last);
	my $disorder = 0;

	ok(all_delivered(), "$what: all is delivered")
	  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_subscription_status; SELECT * FROM cqrs_health()'));
	for my $record ($kafka->committed_records('things'))
	{
		my ($n) = $record->{value} =~ /^\{"n":(\d+)\}$/ or next;

		$times{$n}++;
		$disorder++ if $n <= ($last{ $record->{key} // '' } // 0);
		$last{ $record->{key} // '' } = $n;
	}
	my @emitted = split /\n/, $node->safe_psql('postgres', "SELECT payload ->> 'n' FROM cqrs_topics.things WHERE payload ? 'n'");
	is(scalar(@emitted), scalar(keys %times), "$what: no event is there that was not emitted");
	is(scalar(grep { ($times{$_} // 0) != $copies } @emitted), 0, "$what: each event is there " . ($copies == 1 ? 'once' : "$copies times"));
	is($disorder, 0, "$what: each key is in order") if $copies == 1;
	return;
}

# start_emitter(COUNT, AT_ONCE)
sub start_emitter
{
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "CALL emit($_[0], $_[1])" ],
		'<', \undef, '>', \my $out, '2>', \my $err);
}

# sent(): how many events the broker has confirmed, as far as the cursor says.
sub sent
{
	return $node->safe_psql('postgres', 'SELECT delivered FROM cqrs.cursor ORDER BY seq DESC LIMIT 1');
}

$node->safe_psql('postgres', 'CALL emit(1, 1)');
check('one event', 1);
$node->safe_psql('postgres', 'CALL emit(3000, 100)');
check('many', 1);

# With a window that is confirmed as a whole before more is read: it goes on at once, and
# not when it next looks, which would be a second for each event.
$node->safe_psql('postgres', "ALTER SERVER events OPTIONS (ADD window '1'); CALL emit(600, 600)");
check('one at a time', 1);
$node->safe_psql('postgres', 'ALTER SERVER events OPTIONS (DROP window)');

# One in the middle of a transaction is refused: it is a dead letter, and what is
# behind it, of its key, too, arrives once.
$node->safe_psql('postgres', q(
	BEGIN;
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')), 'key 1') FROM generate_series(1, 20);
	SELECT cqrs_emit('happened', jsonb_build_object('large', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 5000) i)), 'key 1');
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')), 'key 1') FROM generate_series(1, 20);
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')), 'key 2') FROM generate_series(1, 20);
	COMMIT));
check('one refused', 1);
is($node->safe_psql('postgres', "SELECT count(*), min(error) ~ 'larger than' FROM cqrs_dead_letters"), '1|t', '... which is a dead letter');
$node->safe_psql('postgres', "SELECT cqrs_discard_all('things')");

# One that the topic does not take, as it has no key, is in a batch with others: it is
# tried again later, alone, and the others arrive once.
$kafka->set_config('things', 'cleanup.policy' => 'compact');
$node->safe_psql('postgres', q(
	BEGIN;
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')), 'key 3') FROM generate_series(1, 20);
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')));
	SELECT cqrs_emit('happened', jsonb_build_object('n', nextval('n')), 'key 3') FROM generate_series(1, 20);
	COMMIT));
ok($node->poll_query_until('postgres', 'SELECT lag_events = 0 AND retrying = 1 AND waiting = 0 FROM cqrs_subscription_status'),
	'one that the topic does not take: it is tried again')
  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_subscription_status'));
$kafka->set_config('things', 'cleanup.policy' => undef);
$node->safe_psql('postgres', "SELECT cqrs_retry_all('things')");
check('one that the topic does not take', 1);

# Paused while it is at it: no transaction stays open, so that nobody waits for its
# end; and what is committed is what the cursor says.
my $before = sent();
my $emitter = start_emitter(6000, 200);
$node->poll_query_until('postgres', "SELECT delivered > $before FROM cqrs.cursor ORDER BY seq DESC LIMIT 1") or die;
$node->safe_psql('postgres', "SELECT cqrs_pause('things')");
ok(IPC::Run::finish($emitter), 'paused: emitted');
$node->poll_query_until('postgres', 'SELECT intent IS NULL FROM cqrs.cursor ORDER BY seq DESC LIMIT 1') or die;
is(scalar($kafka->committed_records('things')), sent(), 'paused: what is sent is committed, and recorded');
$node->safe_psql('postgres', "SELECT cqrs_resume('things')");
check('paused and resumed', 1);

# More or fewer partitions.
$emitter = start_emitter(2000, 20);
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', partitions => 3)");
IPC::Run::finish($emitter);
all_delivered();
$emitter = start_emitter(2000, 20);
$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', partitions => 1)");
IPC::Run::finish($emitter);
check('other partitions', 1);
is($node->safe_psql('postgres', 'SELECT partitions FROM cqrs_subscriptions'), 1, '... which there were');

# Delivered otherwise for a while, or through another server, which is the same Kafka.
$kafka->create_server($node, 'postgres', 'same');
for my $changes ([ "delivery => 'at_least_once'", "delivery => 'exactly_once'" ], [ "server => 'same'", "server => 'events'" ])
{
	for my $change (@$changes)
	{
		my $sent = sent();

		$emitter = start_emitter(2000, 20);
		$node->poll_query_until('postgres', "SELECT delivered > $sent FROM cqrs.cursor ORDER BY seq DESC LIMIT 1") or die;
		$node->safe_psql('postgres', "SELECT cqrs_alter_subscription('things', $change)");
		IPC::Run::finish($emitter);
		check($change, 1);
	}
}

# worker(): its pid, once there is one.
sub worker
{
	my ($pid, $status);

	wait_until(sub {
		($status, $pid) = $node->psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker' LIMIT 1");
		return $status == 0 && $pid =~ /^\d+$/;
	}) or die 'no worker';
	return $pid;
}

# Workers are ended, wherever they are.
$emitter = start_emitter(4000, 20);
for (1 .. 10)
{
	usleep(int(rand(90_000)));
	my $pid = worker();
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
}
IPC::Run::finish($emitter);
check('workers ended', 1);

# The server crashes.
for (1 .. 3)
{
	$emitter = start_emitter(200, 10);
	usleep(int(rand(90_000)));
	crash_server($node, worker());
	IPC::Run::finish($emitter);
}
$node->safe_psql('postgres', 'CALL emit(100, 10)');
check('server crashed', 1);

# Kafka does.
$emitter = start_emitter(2000, 10);
usleep(int(rand(90_000)));
$kafka->kill(1);
IPC::Run::finish($emitter);
$kafka->start(1);
check('Kafka killed', 1);

is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs_dead_letters'), 0, 'no event was to blame');

# Moved back on purpose, it sends again.
$node->safe_psql('postgres', "SELECT cqrs_seek('things', 'earliest')");
check('moved to the beginning', 2);

# Not every broker has transactions.
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox_rabbitmq;
	CREATE SERVER rabbit FOREIGN DATA WRAPPER cqrs_rabbitmq OPTIONS (host '127.0.0.1');
	CREATE USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS (username 'guest', password 'guest')));
like(error_of($node, 'postgres', "SELECT cqrs_subscribe('rabbit', ARRAY['things'], server => 'rabbit', delivery => 'exactly_once')"),
	qr/ERROR:  0A000: subscription "rabbit" cannot be delivered exactly once\nDETAIL:  RabbitMQ, of server "rabbit", has no transactions/,
	'another broker has no transactions');
like(error_of($node, 'postgres', "SELECT cqrs_alter_subscription('things', server => 'rabbit')"), qr/ERROR:  0A000: /,
	'... and cannot take the place of one that has');

$node->stop('fast');
done_testing();
