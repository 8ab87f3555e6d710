# Everything at once, at a moderate rate, for minutes or hours: commands, events,
# handlers that fail now and then, clients that pull, a broker, from which all comes
# back, deferred and repeated commands, small segments, subscriptions and topics that come and go,
# and looks at the status from new connections. Meanwhile we measure what
# processes and tables take up and how long deliveries take; all of that is flat
# after a while.
#
# CQRS_SOAK_MINUTES says how long (2), CQRS_SOAK_RATE how many scripts of the
# load a second (40).

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use CqrsTest;
use RabbitMQ;
use SoakSeries;

my $seconds = 60 * ($ENV{CQRS_SOAK_MINUTES} || 2);
my $rate = $ENV{CQRS_SOAK_RATE} || 40;
my %weight = (send => 10, emit => 6, repeat => 4, defer => 4, pull => 6, ask => 4);

# At least 40 values in each third.
my $interval = $seconds > 1200 ? 10 : $seconds / 120;

my $broker = RabbitMQ->new('soak');
$broker->start;
$broker->command('queue things {"x-max-length":1000}');

# A worker for each cursor, and one that consumes: none is ended for another.
my $node = new_server('main', q(
autovacuum = on
autovacuum_naptime = '2s'
log_min_messages = fatal
cqrs_outbox.poll_interval = '200ms'
cqrs_outbox.max_workers = 14
cqrs_outbox.segment_size = '64kB'
cqrs_outbox.segment_age = '1s'
cqrs_outbox.idempotency_retention = '5s'
cqrs_outbox.consumed_retention = '5s'
));
$node->start;
$node->safe_psql('postgres', slurp_file("$FindBin::Bin/setup.sql"));
$broker->create_server($node, 'postgres', 'events', routing_key => 'things');
$node->safe_psql('postgres', q(SELECT cqrs_subscribe('out', ARRAY['orders', 'payments'], server => 'events')));
$node->safe_psql('postgres', q(
	SELECT cqrs_create_topic('returned', '0');
	SELECT cqrs_register_event('returned', 'returned');
	SELECT cqrs_create_consumer('back', 'events', 'things', 'returned', event_name => 'returned');
	SELECT cqrs_subscribe('returned', ARRAY['returned'], handle('returned', 0))));

my $series = SoakSeries->new("$PostgreSQL::Test::Utils::log_path/soak.tsv");
my $looker = new_session($node, 'postgres');
my %load;

# start_load(NAME, OPTIONS...): a pgbench, to run all the time
sub start_load
{
	my ($name, @options) = @_;
	my $pid = fork // die "fork: $!";

	if ($pid == 0)
	{
		$ENV{PGAPPNAME} = $name;
		open STDOUT, '>', "$PostgreSQL::Test::Utils::log_path/$name.log";
		open STDERR, '>&', \*STDOUT;
		exec 'pgbench', '-n', '-M', 'prepared', '-T', $seconds + 3600, @options, $node->connstr('postgres');
		POSIX::_exit(127);
	}
	$load{$name} = $pid;
}

sub end_load
{
	kill 'TERM', values %load;
	waitpid $_, 0 for values %load;
	%load = ();
}

END
{
	my $status = $?;

	end_load();
	$? = $status;
}

# rows(SQL): each a reference to its columns
sub rows
{
	my ($sql) = @_;
	my $out = $looker->query($sql);

	die $out if $out =~ /ERROR:/;
	return map { [ split /\|/ ] } split /\n/, $out;
}

# measure_process(WHAT, NAME, PID): its private memory, in kB, and its files. It
# may have ended.
sub measure_process
{
	my ($what, $name, $pid) = @_;

	open my $in, '<', "/proc/$pid/smaps_rollup" or return;
	my ($memory) = map { /^Anonymous:\s+(\d+) kB/ } <$in>;
	my @files = glob "/proc/$pid/fd/*";

	return unless defined $memory;
	$series->add($what, $name, $memory);
	$series->add('descriptors', $name, scalar @files);
}

# measure(): everything, once
sub measure
{
	my ($processes, $connections) = (0, 0);

	for (rows(q(SELECT pid, backend_type, application_name FROM pg_stat_activity
		WHERE backend_type LIKE 'cqrs_outbox %' OR backend_type = 'client backend')))
	{
		my ($pid, $type, $application) = @$_;

		if ($type =~ s/^cqrs_outbox //)
		{
			$processes++;
			measure_process('memory', "$type $pid", $pid);
		}
		else
		{
			$connections++;
			measure_process('sessions', "session $pid", $pid) if $application eq 'load';
		}
	}
	$series->add('processes', 'all', $processes);
	$series->add('connections', 'all', $connections);
	for (rows('SELECT name, bytes, dead FROM looked_at'),
		[ 'catalogs', @{ (rows(q(SELECT sum(pg_total_relation_size(oid)), sum(pg_stat_get_dead_tuples(oid))
			FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r')))[0] } ])
	{
		my ($name, $bytes, $dead) = @$_;

		$series->add('bytes', $name, $bytes);
		$series->add('dead rows', $name, $dead);
	}
	$series->add('behind', @$_) for rows(q(SELECT subscription, lag_events + retrying + waiting FROM cqrs_subscription_status
		WHERE subscription <> 'passing' AND lag_events IS NOT NULL));
	$series->add('latency', @$_) for rows(q(WITH gone AS (DELETE FROM delivered RETURNING *)
		SELECT consumer, round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2) FROM gone GROUP BY 1));
	my $begun = time;
	rows(q(SELECT cqrs_send('Place', '{"account": 1, "amount": 1}')));
	$series->add('latency', 'of a command', sprintf '%.2f', (time - $begun) * 1000);
}

start_load('load', '-c', 4, '-R', $rate, map { ('-f', "$FindBin::Bin/load_$_.sql\@$weight{$_}") } sort keys %weight);
start_load('look', '-C', '-R', 2, '-f', "$FindBin::Bin/load_look.sql");
start_load('operate', '-R', 0.5, '-f', "$FindBin::Bin/load_operate.sql");

my $begun = time;
for (my $next = $begun; $next < $begun + $seconds; $next += $interval)
{
	sleep($next - time) if $next > time;
	$series->begin(time - $begun);
	measure();
}
for my $name (sort keys %load)
{
	is(waitpid($load{$name}, POSIX::WNOHANG()), 0, "the load goes on to the end: $name")
	  or diag(slurp_file("$PostgreSQL::Test::Utils::log_path/$name.log"));
}
end_load();

# That there was something to be measured.
for my $kind ('launcher', 'manager', 'worker', 'session')
{
	cmp_ok(scalar(grep { /^$kind/ } map { $series->names($_) } 'memory', 'sessions'), '>', 0, "a $kind was there all the time");
}
is(join(' ', $series->names('latency')), 'commands flaky of a command puller recorder returned sharers single spread', 'all kinds of consumers were delivered to');
cmp_ok($node->safe_psql('postgres', "SELECT sum(delivered) FROM cqrs.cursor c JOIN cqrs.subscription USING (subscription_id) WHERE subscription = 'out'"),
	'>', $seconds, 'and the broker');
is($node->safe_psql('postgres', "SELECT consumed > $seconds, dead FROM cqrs_consumer_status"), 't|0', 'and its messages were consumed')
  or diag($node->safe_psql('postgres', 'SELECT * FROM cqrs_consumer_status'));

for my $what (sort keys %ALLOWED)
{
	is(join("\n", $series->risen($what)), '', "$what: flat");
	note($_) for $series->summary($what);
}
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|signal 11/, 'no process crashed');
$node->stop('fast');
$broker->stop;

done_testing();
