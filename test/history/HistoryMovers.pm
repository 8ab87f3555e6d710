# What happens to the server, and to subscriptions and topics, while the
# history checker's clients are at work: movers, which are clients themselves,
# and strikes, which end processes.

package HistoryMovers;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep time);

use HistoryClients;
use HistorySession;

our @EXPORT = qw(movers strike);

my $file;
my $number = 0;

sub pick { return $_[ rand @_ ]; }

# did(SESSION, WHAT, SQL): and how it went
sub did
{
	my ($session, $what, $sql) = @_;
	my $output = $session->query($sql);
	my ($error) = $output =~ /ERROR: +(.*)/;

	say_history($file, "$what: $sql" . (defined $error ? " -- $error" : ''));
	$session->query("INSERT INTO done VALUES ('$what')") unless defined $error;
	return !defined $error;
}

# ------------------------------------------------------------------------
# Movers
# ------------------------------------------------------------------------

sub seek_somewhere
{
	my ($session) = @_;
	my $target = pick("'earliest'", "'latest'", sprintf "(clock_timestamp() - interval '%d ms')::text", rand 3000);

	did($session, 'seek', sprintf "SELECT seek('%s', %s)", pick(qw(replayer replay_puller)), $target);
}

sub pause_and_resume
{
	my ($session) = @_;

	did($session, 'pause', "SELECT cqrs_pause('paused')");
	usleep(rand 300_000);
	did($session, 'resume', "SELECT cqrs_resume('paused')");
}

sub alter
{
	my ($session) = @_;

	did($session, 'alter', pick(
		"SELECT cqrs_alter_subscription('paused', delivery_timeout => '30 s')",
		"SELECT cqrs_alter_subscription('paused', handler => handle('paused'))",
		"SELECT cqrs_alter_subscription('flaky', retry_delay => '10 ms')",
		"SELECT cqrs_alter_topic('payments', '1 s')",
		"SELECT cqrs_alter_topic('payments', '0')"));
}

# How many partitions a subscription has, and now and then its ordering, of any kind
# but those that come and go.
sub repartition
{
	my ($session) = @_;
	my ($subscription) = split /\n/, $session->query(
		"SELECT subscription FROM cqrs_subscription_status WHERE subscription NOT LIKE 'passing%' AND subscription NOT LIKE 'saga\\_events%' ORDER BY random() LIMIT 1");

	did($session, 'partitions', sprintf "SELECT cqrs_alter_subscription('$subscription', partitions => %d, ordering => %s)",
		pick(1, 1, 2, 3, 5), pick('NULL', 'NULL', "'key'", "'topic'"));
}

sub redrive
{
	my ($session) = @_;

	did($session, 'redrive', pick((map { "SELECT cqrs_redrive_all('$_')" } qw(poisoned puller sharers leased)),
		"SELECT cqrs_redrive('poisoned', (SELECT array_agg(event_id) FROM (SELECT event_id FROM cqrs_dead_letters WHERE subscription = 'poisoned' ORDER BY random() LIMIT 1) one))"));
}

# What waits for another attempt is tried at once: all, or some.
sub retry
{
	my ($session) = @_;
	my $subscription = pick(qw(flaky poisoned single spread puller sharers leased));

	did($session, 'retry', pick("SELECT cqrs_retry_all('$subscription')",
		"SELECT cqrs_retry('$subscription', (SELECT array_agg(event_id) FROM cqrs_retries WHERE subscription = '$subscription' AND random() < 0.5))"));
}

# A subscription comes, its other topics go, one by one, while it is delivered
# to, and in the end it goes.
sub topics_come_and_go
{
	my ($session) = @_;
	my $name = sprintf 'passing_%d_%d', $$, $number++;
	my @topics = map { "${name}_$_" } 1 .. 1 + rand 3;
	my $list = join ', ', map { "'$_'" } $topics[0], 'orders', @topics[1 .. $#topics];
	my $created = join ', ', map { "cqrs_create_topic('$_', '0')" } @topics;

	did($session, 'create topics', "SELECT $created") or return;
	did($session, 'subscribe', "SELECT cqrs_subscribe('$name', ARRAY[$list], handle('$name'), start => 'latest', retry_delay => '20 ms')") or return;
	$session->query("SELECT record_lifetime('$name', false)");
	for my $topic (sort { $a cmp $b } @topics)
	{
		$session->query("SELECT cqrs_emit('happened', '{}', topic => '$topic')") if rand() < 0.5;
		usleep(rand 300_000);
		did($session, 'drop topic', "SELECT cqrs_drop_topic('$topic', true)");
	}
	usleep(rand 500_000);
	# It counts only once it was waited for: we may be killed before.
	$session->query("SELECT record_lifetime('$name waited for', true)");
	if ($session->query("SELECT cqrs_wait('$name', '15 s')") =~ /^t$/m)
	{
		$session->query("UPDATE lifetime SET subscription = '$name' WHERE subscription = '$name waited for'");
	}
	else
	{
		say_history($file, "$name was not waited for");
	}
	did($session, 'unsubscribe', "SELECT cqrs_unsubscribe('$name')");
}

sub maintain
{
	my ($session) = @_;
	my $table = pick(split /\n/, $session->query(
		"SELECT oid::regclass FROM pg_class WHERE relnamespace = 'cqrs'::regnamespace AND relkind = 'r' ORDER BY oid"));

	$session->query("SET lock_timeout = '500 ms'");
	did($session, 'maintain', pick((map { "VACUUM $_" } $table, $table, ''), "VACUUM (FULL) $table", "REINDEX TABLE $table", "REINDEX TABLE CONCURRENTLY $table",
		"ANALYZE $table", 'CHECKPOINT', 'SELECT count(*) FROM cqrs_tick()', 'SELECT count(*) FROM cqrs_maintain()', 'SELECT count(*) FROM cqrs_enqueue_scheduled()'));
	$session->query('RESET lock_timeout');
}

sub signal_somebody
{
	my ($session) = @_;
	my $type = pick('client backend', 'cqrs_outbox worker', 'cqrs_outbox manager', 'cqrs_outbox launcher');

	did($session, 'signal', sprintf(
		"SELECT pg_%s_backend(pid) FROM pg_stat_activity WHERE backend_type = '$type' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1",
		pick(qw(cancel terminate))));
}

# So many milliseconds ahead. An hour is doubted for a minute, and not believed
# before it is put right. Far back is not among them: only a poll finds out that
# time goes on where it was, and here nobody polls.
sub set_clock
{
	my ($session) = @_;

	did($session, 'set clock', sprintf 'SELECT set_clock(%d, 0)', pick(0, 0, rand(2000), 3_600_000, -rand(2000)));
}

# What people and programs tell a saga, and wake-ups that are thrown away, if there is one
# who has them go on.
sub tell_saga
{
	my ($session) = @_;
	my $saga = "(SELECT saga_id FROM cqrs.saga WHERE parent_id IS NULL ORDER BY random() LIMIT 1)";

	did($session, 'tell a saga', pick(
		(map { "SELECT cqrs_signal($saga, 'go') FROM generate_series(1, 5)" } 1 .. 3),
		"SELECT cqrs_cancel_saga($saga)", "SELECT cqrs_retry_saga($saga, 'first')",
		'SELECT cqrs_resume_sagas()',
		'SELECT lose_and_resume()'));
}

sub loop
{
	my ($rest, @actions) = @_;

	return sub {
		my ($session) = @_;

		pick(@actions)->($session);
		usleep(1000 * rand $rest);
	};
}

# movers(FILE): by name
sub movers
{
	($file) = @_;
	return (
		seeker => loop(600, \&seek_somewhere),
		resizer => loop(500, \&repartition),
		steerer => loop(400, \&pause_and_resume, \&alter, \&redrive, \&retry),
		passer => loop(100, \&topics_come_and_go),
		maintainer => loop(150, \&maintain),
		signaller => loop(800, \&signal_somebody),
		teller => loop(100, \&tell_saga),
		clock => loop(1500, \&set_clock));
}

# ------------------------------------------------------------------------
# Strikes
# ------------------------------------------------------------------------

# Which process to end, and how. SIGKILL of any has the server end all.
my @STRIKES = (
	(map { [ KILL => $_ ] } 'client backend', 'cqrs_outbox worker', 'cqrs_outbox worker', 'cqrs_outbox manager',
		'cqrs_outbox launcher', 'checkpointer', 'walwriter'),
	[ KILL => 'postmaster' ], [ STOP => 'immediate' ], [ STOP => 'immediate' ], [ STOP => 'fast' ]);

# pids(SERVER, TYPE)
sub pids
{
	my ($node, $type) = @_;
	my ($rc, $out) = $node->psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '$type' AND pid <> pg_backend_pid() ORDER BY pid");

	return $rc == 0 ? split /\n/, $out : ();
}

# wait_up(SERVER): until it lets us in
sub wait_up
{
	my ($node) = @_;

	for (1 .. 20 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if run_log([ 'psql', '-Xq', '-d', $node->connstr('postgres'), '-c', 'SELECT true' ],
			'<', \undef, '>', '/dev/null', '2>', '/dev/null');
		usleep(50_000);
	}
	die 'the server did not come back';
}

# strike(SERVER): something ends. Returns what; it is up again.
sub strike
{
	my ($node) = @_;
	my ($signal, $victim) = @{ pick(@STRIKES) };
	my @pids;

	if ($signal eq 'STOP')
	{
		$node->stop($victim);
		$node->start;
		return "$victim shutdown";
	}
	if ($victim eq 'postmaster')
	{
		@pids = pids($node, '%');
		$node->kill9;

		# Until all its children have noticed, there can be no other.
		usleep(10_000) while grep { kill 0, $_ } @pids;
		usleep(100_000) until $node->start(fail_ok => 1);
		return 'postmaster killed';
	}

	my $offset = -s $node->logfile;
	@pids = pids($node, $victim);
	return "no $victim" unless @pids && kill 'KILL', pick(@pids);
	# Nobody notices if it was about to end anyway.
	for (my $begun = time; time < $begun + 2; usleep(10_000))
	{
		next if slurp_file($node->logfile, $offset) !~ /terminating any other active server processes/;
		wait_up($node);
		return "$victim killed";
	}
	wait_up($node);
	return "$victim ended by itself";
}

1;
