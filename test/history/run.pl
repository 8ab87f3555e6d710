# Random emitters, every kind of subscription, movers, and processes that are
# ended, all at once. What each consumer saw is compared with what was
# committed: nothing is lost, nothing is invented, each key is in order, and
# what arrives in the database arrives once.
#
# It goes in rounds: a load of some seconds; then nothing is emitted until all
# is delivered, without a poll or a restart to help; then comes the comparison.
#
# CQRS_HISTORY_SECONDS says how long (120), or CQRS_HISTORY_CRASHES how many times
# a process of the server is killed; CQRS_HISTORY_SEED decides what happens, as
# far as that is in our hands: the rest is up to the machine.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

use CqrsTest;
use ExamplePeer;
use HistoryChecks;
use HistoryClients;
use HistoryMovers;
use HistorySession;

my $crashes = $ENV{CQRS_HISTORY_CRASHES};
my $seconds = $ENV{CQRS_HISTORY_SECONDS} || 120;
my $seed = $ENV{CQRS_HISTORY_SEED} || 1 + time % 1_000_000;
my $begun = time;
my $end = $begun + $seconds;

# Nobody polls: what is not announced, or found after a restart, stays.
my $node = new_server('main', q(
restart_after_crash = on
deadlock_timeout = '100 ms'
log_statement = none
jit = off
max_connections = 60
max_prepared_transactions = 50
cqrs_outbox.max_workers = 12
cqrs_outbox.manager_idle_timeout = '50ms'
cqrs_outbox.segment_size = '64kB'
cqrs_outbox.segment_age = '100ms'
));
my %peers = map { $_ => ExamplePeer->new } qw(sender strict);
my $history = "$PostgreSQL::Test::Utils::log_path/events.history";
my %files = map { $_ => $node->basedir . "/$_" } qw(filed leased);
my %clients;
my $struck = 0;
my $striking = 0;

srand($seed);
diag("seed $seed");
$node->start;
$node->safe_psql('postgres', slurp_file("$FindBin::Bin/setup.sql"));
$node->safe_psql('postgres', qq(
	CREATE SERVER $_ FOREIGN DATA WRAPPER cqrs_example OPTIONS (host '127.0.0.1', port '${\$peers{$_}->port}');
	SELECT cqrs_subscribe('$_', ARRAY['orders', 'payments'], server => '$_', format => 'raw', max_attempts => 0,
		retry_delay => '20 ms', strict_key_order => '$_' = 'strict');
)) for sort keys %peers;

my %consumers = map { my ($f, $file) = ($CONSUMERS{$_}, $files{ $_ =~ s/r\d$/d/r }); ($_ => sub { $f->($_[0], $file) }) } keys %CONSUMERS;
my %others = (%EMITTERS, movers($history));

# start(NAME, NUMBER): a client
sub start
{
	my ($name, $number) = @_;

	$clients{$name} = start_client($node->connstr('postgres'), "$seed $number", $name, $consumers{$name} // $others{$name});
}

sub end_clients
{
	kill_client(delete $clients{$_}) for grep { exists $clients{$_} } @_;
}

# One of the two accepts what it is sent; it may break off. The other one
# rejects some, too.
sub disturb_peers
{
	my $dice = rand;

	$peers{sender}->tell('close') if $dice < 0.15;
	$peers{strict}->tell('close') if $dice > 0.85;
	$peers{strict}->tell('rule', '-not now', '.', 1 + int rand 5) if $dice > 0.3 && $dice < 0.6;
}

END
{
	my $status = $?;

	end_clients(sort keys %clients);
	$? = $status;
}

# cycle(NUMBER): some load, and then somebody ends
sub cycle
{
	my ($number) = @_;
	my $what;

	# If it goes by crashes, these are what is rare.
	usleep($crashes ? 100_000 + rand 600_000 : 200_000 + rand 900_000);
	disturb_peers();
	if (!$crashes && rand() < 0.4)
	{
		my @names = sort keys %clients;
		$what = $names[ rand @names ];
		end_clients($what);
		start($what, $number);
	}
	else
	{
		my $begun = time;
		$what = strike($node);
		$struck++;
		$striking += time - $begun;
	}
	say_history($history, "cycle $number: $what");
}

# wait_delivered(WHAT): until nothing is left to deliver. Returns what is wrong,
# if it takes too long.
sub wait_delivered
{
	my ($what) = @_;
	my $begun = time;
	my $told = $begun;

	while (time < $begun + 90)
	{
		if (time > $told + 5)
		{
			$told = time;
			note("$what: not yet delivered:\n" . $node->safe_psql('postgres', q(SELECT subscription, state, partitions, next_partitions, lag_events, retrying, waiting, retry_at - now(), held_by_pid, error
				FROM cqrs_subscription_status WHERE coalesce(lag_events + retrying + waiting > 0, true) OR next_partitions IS NOT NULL))
				. $node->safe_psql('postgres', 'SELECT command_id, command_name, state, run_at - now() FROM cqrs_enqueued_commands')
				. $node->safe_psql('postgres', q(SELECT saga_id, saga_name, status, step_name, attempt, due_at - now(), error FROM cqrs_saga_status WHERE status NOT IN ('completed', 'compensated', 'cancelled'))));
		}
		# The lag is not known as long as a topic's table is locked.
		if ($node->safe_psql('postgres', q(SELECT bool_and(coalesce(lag_events + retrying + waiting = 0, false)) AND count(next_partitions) = 0
			AND (SELECT count(*) = 0 FROM cqrs_enqueued_commands) AND (SELECT count(*) = 0 FROM cqrs.saga) FROM cqrs_subscription_status)) eq 't')
		{
			note(sprintf '%s: all delivered after %.1f s', $what, time - $begun);
			return ();
		}
		usleep(100_000);
	}
	diag("$what: not everything is delivered (seed $seed)\n"
		  . $node->safe_psql('postgres', 'SELECT subscription, state, state_since, partitions, next_partitions, lag_events, retrying, waiting, dead, retry_at, held_by_pid, error FROM cqrs_subscription_status ORDER BY 1')
		  . "\n" . $node->safe_psql('postgres', "SELECT pid, backend_type, application_name, state, wait_event, query FROM pg_stat_activity WHERE backend_type <> 'autovacuum launcher'")
		  . "\n" . $node->safe_psql('postgres', 'SELECT * FROM cqrs_health()'));
	return { what => 'not delivered', subscription => $what, tags => [], count => 1 };
}

# end_all(NAMES...): clients, with the server's processes that served them: a
# killed one's last statement, which may be its COMMIT, is carried out all the same
sub end_all
{
	end_clients(@_);
	HistoryMovers::wait_up($node);
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = ANY('{" . join(',', @_) . "}')")
	  or die 'they did not end';
}

# settle(): nothing is emitted, moved, or killed any more
sub settle
{
	my $begun = time;

	end_all(sort keys %others);
	$node->safe_psql('postgres', (rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'")
	  for split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY gid');
	$node->safe_psql('postgres', "SELECT cqrs_resume('paused'), set_clock(0, 0)");
	$node->safe_psql('postgres', "SELECT cqrs_unsubscribe('$_')")
	  for split /\n/, $node->safe_psql('postgres', "SELECT subscription FROM cqrs_subscription_status WHERE subscription LIKE 'passing%'");
	$peers{strict}->tell('rule_off');
	note(sprintf 'settled after %.1f s', time - $begun);
}

# compare(): everything. Returns what must not be.
sub compare
{
	my @topics = ('orders,payments');
	my @found = wait_delivered('load');

	push @found, differences($node, $_, @topics, 1) for qw(poisoned puller sharers);
	$node->safe_psql('postgres', "INSERT INTO cure VALUES (true); SELECT cqrs_redrive_all(s) FROM unnest('{poisoned, puller, sharers, leased}'::text[]) s");
	for my $target ("(SELECT min(at) + (max(at) - min(at)) / 2 FROM truth)::text", "'earliest'")
	{
		last if @found;
		$node->safe_psql('postgres', "SELECT seek('$_', $target)") for qw(replayer replay_puller);
		push @found, wait_delivered("seek to $target");
		$node->safe_psql('postgres', 'ANALYZE truth, arrived');
		push @found, seek_differences($node, $_) for qw(replayer replay_puller);
	}
	end_all(sort keys %clients);

	$node->safe_psql('postgres', 'ANALYZE truth, arrived, lifetime, epoch');
	my $begun = time;
	load_file($node, $_, $files{$_}) for qw(filed leased);
	load_messages($node, $_, map { $_->{message}{body} } $peers{$_}->messages) for sort keys %peers;
	push @found, differences($node, $_, @topics)
	  for qw(recorder paused drained single flaky spread poisoned puller sharers filed leased), sort keys %peers;
	push @found, differences($node, 'commands', 'commands');
	push @found, lifetime_differences($node);
	push @found, saga_differences($node);
	note(sprintf 'compared in %.1f s', time - $begun);
	return @found;
}

my %totals;
my $round = 0;
my $number = 0;
my $faults = 0;

while (!$faults && ($crashes ? $struck < $crashes : $round == 0 || time < $end - 10))
{
	my $until = time + ($crashes ? 24 : 12);

	$round++;
	start($_, "round $round") for sort(keys %others), sort keys %consumers;
	while (time < $until && ($crashes ? $struck < $crashes : time < $end - 5))
	{
		cycle(++$number);
	}
	my $settling = time;
	settle();
	my @found = compare();
	my $counts = $node->safe_psql('postgres', q(SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE key LIKE 'prepared%'),
		count(*) FILTER (WHERE key LIKE 'late%'), count(*) FILTER (WHERE topic = 'commands'), count(*) FILTER (WHERE is_poison(tag)), (SELECT count(*) FROM saga_truth)) FROM truth));
	my ($emitted, $prepared, $late, $commands, $poison, $sagas) = split / /, $counts;

	note(sprintf 'round %d: %d events, settled and compared in %.1f s', $round, $emitted, time - $settling);
	$totals{events} += $emitted;
	$totals{prepared} += $prepared;
	$totals{late} += $late;
	$totals{commands} += $commands;
	$totals{poison} += $poison;
	$totals{sagas} = $sagas;
	for my $difference (@found)
	{
		$faults++;
		diag("seed $seed, round $round, $difference->{count} $difference->{what}: $difference->{subscription} " . join ' ', @{ $difference->{tags} });
		say_history($history, history_of($node, $difference, $history));
	}
	last if $faults;
	unlink values %files;
	$_->tell('reset') for values %peers;
	$node->safe_psql('postgres', 'SELECT begin_round()');
}
end_clients(sort keys %clients);

is($faults, 0, "nothing is lost, invented, out of order, or twice (seed $seed; $history)");
cmp_ok($totals{$_}, '>', 0, "there was a load: $totals{$_} $_") for sort keys %totals;
note(sprintf '%d times a process was killed, in %d rounds and %.0f s, %.0f s of which until the server was back', $struck, $round, time - $begun, $striking);
note($node->safe_psql('postgres', "SELECT what, count(*) FROM done GROUP BY 1 ORDER BY 1"));
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|signal 11/, 'no process crashed by itself');
$node->stop('fast');

done_testing();
