# Events go to Kafka through outages of its broker and deaths of the worker:
# nothing is lost, each key's events arrive in order once duplicates are left
# out, and there are no more duplicates than each of these may cause.
#
# Longer: CQRS_KAFKA_EVENTS=1000000 CQRS_KAFKA_STRIKES=100

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use CqrsTest;
use Kafka;

my $events = $ENV{CQRS_KAFKA_EVENTS} // 50_000;
my $strikes = $ENV{CQRS_KAFKA_STRIKES} // 20;
my $keys = 500;
my $window = 1000;
my $round = int($events / $strikes);
my $seed = $ENV{CQRS_KAFKA_SEED} // time;

note("seed $seed");
srand($seed);

my $cluster = Kafka->new(1);
$cluster->command('topic', 'things', 12 + int($events / 10_000));

my $node = new_server('main', "restart_after_crash = on\nlog_statement = none\n");
$node->start;
$node->safe_psql('postgres', qq(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE emitted (n bigint);
	CREATE PROCEDURE emit(first bigint, last bigint) LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN first .. last BY 50 LOOP
			PERFORM cqrs_emit_many('happened',
				array_agg(jsonb_build_object('n', n) ORDER BY n), array_agg('key ' || n % $keys ORDER BY n))
				FROM generate_series(i, least(i + 49, last)) n;
			INSERT INTO emitted SELECT generate_series(i, least(i + 49, last));
			COMMIT;
		END LOOP;
	END \$\$));
$cluster->create_server($node, 'postgres', 'events', window => $window);
$node->safe_psql('postgres', "SELECT cqrs_subscribe('things', ARRAY['things'], server => 'events', format => 'raw',
	retry_delay => '20 ms', max_retry_delay => '100 ms')");

# worker(): its pid, once there is one.
sub worker
{
	my ($status, $pid);

	wait_until(sub {
		($status, $pid) = $node->psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'cqrs_outbox worker'");
		return $status == 0 && $pid =~ /^\d+$/;
	}) or die 'no worker';
	return $pid;
}

# start_emitter(FIRST, LAST)
sub start_emitter
{
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "CALL emit($_[0], $_[1])" ],
		'<', \undef, '>', \my $out, '2>', \my $err);
}

my %count;

for my $strike (0 .. $strikes - 1)
{
	my ($first, $last) = ($strike * $round + 1, ($strike + 1) * $round);
	my $emitter;

	# Strike while events are on their way: the cluster answers late.
	$cluster->command('rtt', 1, 300);
	$emitter = start_emitter($first, $last);
	$node->poll_query_until('postgres', "SELECT coalesce(max(n), 0) >= $first FROM emitted") or die;
	my $pid = worker();
	usleep(int(rand(300_000)));
	if ($strike % 2 == 0)
	{
		$count{ $strike % 8 == 0 ? 'long outages' : 'short outages' }++;
		$cluster->down;
		if ($strike % 8 == 0)
		{
			wait_error($node, 'postgres', 'things', '^could not connect to Kafka at ') or die;
		}
		else
		{
			usleep(int(rand(300_000)));
		}
		$cluster->up;
	}
	elsif ($strike % 4 == 1)
	{
		$count{'terminated workers'}++;
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	}
	else
	{
		$count{'killed workers'}++;
		kill 'KILL', $pid;
		$node->poll_query_until('postgres', 'SELECT true') or die;
	}

	$cluster->command('rtt', 1, 0);

	# A crash may have ended the emitter.
	unless (IPC::Run::finish($emitter))
	{
		my $next = $node->safe_psql('postgres', 'SELECT max(n) + 1 FROM emitted');

		IPC::Run::finish(start_emitter($next, $last)) or die;
	}

	# After a crash, a thousand events are delivered one by one.
	$node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status') or last;
}
note(join ', ', map { "$count{$_} $_" } sort keys %count);
ok($node->poll_query_until('postgres', 'SELECT lag_events = 0 FROM cqrs_subscription_status'), 'all is delivered in the end')
  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_subscription_status'));
is($node->safe_psql('postgres', 'SELECT retrying + waiting + dead FROM cqrs_subscription_status'), 0, 'no event was to blame');

my @records = map { [ $_->{headers}{message_id}, $_->{key}, $_->{value} =~ /^\{"n":(\d+)\}$/ ] } $cluster->records('things');
my ($count, $duplicates, $disorder) = arrivals(@records);
my %there = map { $_->[2] => 1 } @records;

is(scalar(grep { !$there{$_} } split /\n/, $node->safe_psql('postgres', 'SELECT n FROM emitted')), 0, 'nothing is lost');
is($count, $round * $strikes, 'nothing is there that was not emitted');
is(scalar(keys %there), $count, 'or under two ids');
is($disorder, 0, 'each key is in order');
cmp_ok($duplicates, '<=', $strikes * $window, 'there are no more duplicates than may have been on their way');
note("$duplicates duplicates of $count events");

$node->stop('fast');
done_testing();
