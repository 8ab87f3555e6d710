# Partitions are changed every now and then while events are emitted and
# delivered, to a handler that fails at times, and to clients that pull in all
# the ways that they have: each event comes once, and each key in order.
#
#   CQRS_PARTITIONS_EVENTS   of each emitter
#   CQRS_PARTITIONS_CHANGES  of each subscription, at least

use strict;
use warnings;

use CqrsTest;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(usleep);

my $events = $ENV{CQRS_PARTITIONS_EVENTS} || 8000;
my $changes = $ENV{CQRS_PARTITIONS_CHANGES} || 12;
my $keys = 40;
my $emitters = 2;
my @numbers = (1, 2, 3, 5, 8);
my $node = new_server('main', 'log_error_verbosity = verbose');

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION cqrs_outbox;
	SELECT cqrs_register_event('happened', 'things');
	CREATE TABLE got (id bigserial, subscription text, key text, n integer);
	CREATE TABLE stop ();
	CREATE FUNCTION handle(event cqrs_event) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
	BEGIN
		INSERT INTO got (subscription, key, n) VALUES ('handled', event.key, (event.payload->>'n')::integer);
		IF random() < 0.01 THEN
			RAISE 'bad luck';
		END IF;
	END $$;
	SELECT cqrs_subscribe('handled', ARRAY['things'], 'handle(cqrs_event)', max_attempts => 0, retry_delay => '10 ms', max_retry_delay => '50 ms');
	SELECT cqrs_subscribe('pulled', ARRAY['things'], max_attempts => 0, retry_delay => '10 ms', max_retry_delay => '50 ms');
));

# What a waiting client cannot have, as its key waits, it does not pass by.
$node->safe_psql('postgres', q(
	SELECT cqrs_register_event('said', 'words');
	SELECT cqrs_subscribe('waiting', ARRAY['words']);
	SELECT cqrs_emit('said', '{"n": 1}', key => 'a')));
is($node->safe_psql('postgres', "WITH r AS (SELECT * FROM cqrs_receive('waiting', wait => '30 s')) SELECT cqrs_nack('waiting', array_agg(position), retry_after => '1 hour') FROM r"),
	'1', 'one is refused');
$node->safe_psql('postgres', q(
	SELECT cqrs_emit('said', '{"n": 2}', key => 'a');
	SELECT cqrs_alter_subscription('waiting', partitions => 3)));
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs_receive('waiting', wait => '1 s')"), '0', 'its key waits');
ok($node->poll_query_until('postgres', "SELECT partitions = 3 FROM cqrs.subscription WHERE subscription = 'waiting'"), 'the partitions are changed');
is($node->safe_psql('postgres', q(
	BEGIN;
	UPDATE cqrs.retry SET retry_at = now(), due_at = CASE WHEN due_at IS NOT NULL THEN now() END WHERE attempts > 0;
	UPDATE cqrs.cursor SET next_retry_at = now() WHERE next_retry_at > now();
	COMMIT;
	SELECT payload->>'n' FROM cqrs_receive('waiting', wait => '30 s', lease => '1 hour');
	SELECT cqrs_ack('waiting', covered.positions, covered.receipt) FROM (SELECT array_agg(position) AS positions, receipt FROM cqrs.retry GROUP BY receipt) covered WHERE receipt IS NOT NULL;
	SELECT payload->>'n' FROM cqrs_receive('waiting', wait => '30 s')
)), "1\n1\n2", 'nothing is lost');
$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('waiting')");

# Its keys' events are numbered; some transactions commit late.
sub emit_all
{
	my ($emitter) = @_;
	my $session = new_session($node, 'postgres');

	srand($emitter);
	for (my $from = 1; $from <= $events;)
	{
		my $to = $from + 1 + int rand 60;
		$to = $events if $to > $events;
		$session->query("BEGIN; SELECT count(cqrs_emit('happened', jsonb_build_object('n', (i - 1) / $keys + 1), key => format('$emitter %s', (i - 1) % $keys)))"
			. " FROM generate_series($from, $to) i");
		usleep(rand 100_000) if rand() < 0.03;
		$session->query('COMMIT');
		usleep(rand 10_000);
		$from = $to + 1;
	}
	$session->quit;
}

my $record = "INSERT INTO got (subscription, key, n) SELECT 'pulled', key, (payload->>'n')::integer FROM ";

# Receives in one of the ways there are, until it is told to stop.
sub pull
{
	my ($client) = @_;
	my $session = new_session($node, 'postgres');

	srand(100 + $client);
	$session->query("\\set VERBOSITY sqlstate\nSET client_min_messages = error; CREATE TEMP TABLE mine AS SELECT * FROM cqrs_receive('pulled', 0 + 1) LIMIT 0");
	while ($session->query("SELECT to_regclass('stop') IS NULL") ne 't')
	{
		my $way = rand;
		my $some = 1 + int rand 100;
		my $part = rand() < 0.2 ? int rand 8 : 'NULL';

		if ($way < 0.4)
		{
			$session->query("BEGIN; $record cqrs_receive('pulled', $some, partition => $part)");
			usleep(rand 20_000) if rand() < 0.1;
			$session->query("SELECT cqrs_ack('pulled'); COMMIT");
		}
		elsif ($way < 0.5)
		{
			$session->query("BEGIN; $record cqrs_receive('pulled', $some, wait => '200 ms'); SELECT cqrs_ack('pulled'); COMMIT");
		}
		else
		{
			$session->query("TRUNCATE mine; INSERT INTO mine SELECT * FROM cqrs_receive('pulled', $some, lease => '1 s', partition => $part)");
			usleep(rand 20_000);
			# Some are lost, and some are refused.
			next if $way > 0.99;
			$session->query($way > 0.95 ? "SELECT cqrs_nack('pulled', array_agg(position), receipt => receipt) FROM mine GROUP BY receipt" :
				"BEGIN; $record mine; SELECT cqrs_ack('pulled', array_agg(position), receipt) FROM mine GROUP BY receipt; COMMIT");
		}
	}
	$session->quit;
}

# what_is_missing(SUBSCRIPTION): and where its cursors are
sub what_is_missing
{
	my ($subscription) = @_;

	return $node->safe_psql('postgres', qq(
		SELECT count(*), min(position), max(position) FROM cqrs_topics.things t
		WHERE NOT EXISTS (SELECT FROM got g WHERE g.subscription = '$subscription' AND g.key = t.key AND g.n = (t.payload->>'n')::integer);
		SELECT * FROM cqrs.subscription WHERE subscription = '$subscription';
		SELECT * FROM cqrs.cursor c WHERE subscription_id = (SELECT subscription_id FROM cqrs.subscription WHERE subscription = '$subscription')
			AND seq = (SELECT max(seq) FROM cqrs.cursor l WHERE l.subscription_id = c.subscription_id AND l.partition = c.partition);
		SELECT * FROM cqrs.tick ORDER BY tick_id DESC LIMIT 1));
}

my @emitters = map { in_background(\&emit_all, $_) } 1 .. $emitters;
my @clients = map { in_background(\&pull, $_) } 1 .. 3;

# Changes, until all is emitted, and there were enough of them.
my %changed = (handled => 0, pulled => 0);
my $open = 0;
srand(1000);
for (my $emitting = @emitters; $emitting > 0 || grep { $_ < $changes } values %changed;)
{
	if ($emitting > 0 && (my $pid = waitpid(-1, POSIX::WNOHANG())) > 0)
	{
		is($?, 0, 'an emitter has emitted all it was to');
		$emitting--;
	}
	for my $subscription (keys %changed)
	{
		$node->safe_psql('postgres', sprintf "SELECT cqrs_alter_subscription('$subscription', partitions => %d)", $numbers[ rand @numbers ]);
		$changed{$subscription}++;
	}
	$open += $node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.subscription WHERE next_partitions IS NOT NULL');
	usleep(rand 100_000);
}
cmp_ok($open, '>', 0, 'there were changes under way');

for my $subscription (keys %changed)
{
	ok($node->poll_query_until('postgres', "SELECT count(*) >= $events * $emitters FROM got WHERE subscription = '$subscription'"), "all is delivered: $subscription")
		or diag(what_is_missing($subscription));
	ok($node->poll_query_until('postgres', "SELECT next_partitions IS NULL FROM cqrs.subscription WHERE subscription = '$subscription'"), "the last change is done: $subscription");
}
$node->safe_psql('postgres', 'DROP TABLE stop');
for my $pid (@clients)
{
	waitpid $pid, 0;
	is($?, 0, 'a client has done what it was to');
}

for my $subscription (sort keys %changed)
{
	is($node->safe_psql('postgres', "SELECT count(*) || ' ' || count(DISTINCT (key, n)) FROM got WHERE subscription = '$subscription'"),
		join(' ', ($events * $emitters) x 2), "each once: $subscription");
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY key ORDER BY id) AS nth FROM got WHERE subscription = '$subscription') g WHERE n <> nth"),
		'0', "each key in order: $subscription");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM cqrs.cursor c JOIN cqrs.subscription s USING (subscription_id) WHERE c.partition >= s.partitions"),
	'0', 'no cursor of a partition that is no more');
is($node->safe_psql('postgres', 'SELECT count(*) FROM cqrs.retry'), '0', 'nothing is left');
unlike(slurp_file($node->logfile), qr/(?:ERROR|FATAL|PANIC):  (?!P0001|OB003|22023|25P02)/, 'no errors but those that are to be');
note(join ', ', map { "$changed{$_} changes of $_" } sort keys %changed);
note("$open of them were seen under way");

$node->stop;
done_testing();
